"""The demo and the command line, as a user starts them."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from ebpfnet.lab import client, folder, state
from ebpfnet.lab.cluster import Lab
from tests.netns.test_lab import leftovers
from tests.prog.commands import completions

EBPFNET = [sys.executable, "-m", "ebpfnet"]


def test_the_demo_runs_twice(lab_name: str):
    for _ in range(2):
        done = run("lab", "demo", "--name", lab_name, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stdout
        for each in ("default/web-c", "Connection refused", "default/web:http", "SPOOFED_ADDRESS", "done in"):
            assert each in done.stdout
        for each in ("outside -> load balancer", "outside -> node port", "node-a -> 10.0.0.11:30080"):
            assert f"{each}" in done.stdout
    assert leftovers(lab_name) == []


def test_the_demo_interrupted_cleans_up(lab_name: str):
    command = [*EBPFNET, "lab", "demo", "--name", lab_name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "connections to" in line:
                process.send_signal(signal.SIGINT)
                break
        rest = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert "Traceback" not in rest
    assert "Interrupted: everything is being taken down" in rest
    assert f"lab {lab_name} is gone, after" in rest
    assert leftovers(lab_name) == []


def test_the_demo_leaves_a_lab_that_is_not_its_own_alone(lab_name: str):
    lab = Lab.up(lab_name, agents=False)
    done = run("lab", "demo", "--name", lab_name)
    assert done.returncode == 2
    assert "is not a demo's: it is left alone" in done.stderr
    assert client.http(lab.pod("client"), lab.pod("web-b").v4, 8080).pod == "default/web-b"


def test_only_a_dead_demos_lab_is_replaced(lab_name: str):
    with Lab.up_for_me(lab_name, folder.DEMO) as lab:
        for verb in ("demo", "up"):
            done = run("lab", verb, "--name", lab_name)
            assert done.returncode == 1
            assert f"belongs to a demo that is running (pid {os.getpid()})" in done.stderr
        found = state.load(lab_name)
        dead = dataclasses.replace(found.options, owner=state.Owner(os.getpid(), 1))  # the pid is another process's now
        state.save(lab.places, dataclasses.replace(found, options=dead))
        done = run("lab", "demo", "--name", lab_name, timeout=60)
        assert done.returncode == 0, done.stderr
        assert "left over from a demo that was interrupted" in done.stdout
    assert leftovers(lab_name) == []


def test_up_status_exec_down(lab_name: str):
    assert run("lab", "up", "--name", lab_name).returncode == 0
    status = json.loads(run("lab", "status", "--name", lab_name, "-o", "json").stdout)
    assert all(node["agent"]["synced"] for node in status["nodes"])
    get = "import urllib.request as r; print(r.urlopen('http://10.96.0.10/').read().decode())"
    answer = run("lab", "exec", "--name", lab_name, "client", "--", sys.executable, "-c", get)
    assert json.loads(answer.stdout)["protocol"] == "HTTP"
    assert completions("pod", "list", "--lab", lab_name[:-1]) == [lab_name]
    assert completions("pod", "list", "--lab", lab_name, "--node", "node-") == ["node-a", "node-b"]
    assert completions("lab", "exec", "--name", lab_name, "web-b") == ["web-b"]
    assert completions("lab", "exec", "--name", lab_name, "--on", "node-") == ["node-a", "node-b"]
    assert completions("lab", "exec", "--name", lab_name, "web-b", "--", "cl") == []
    node = run("lab", "exec", "--name", lab_name, "--node", "node-b", "--", "ip", "-br", "link")
    assert "uplink" in node.stdout
    get = get.replace("10.96.0.10", "203.0.113.80")
    for place in (["--outside"], ["--on", "node-b"]):
        answer = run("lab", "exec", "--name", lab_name, *place, "--", sys.executable, "-c", get)
        assert json.loads(answer.stdout)["pod"].startswith("default/web-"), answer.stderr
    assert "outside: 192.0.2.1, " in run("lab", "status", "--name", lab_name).stdout
    assert run("lab", "exec", "--name", lab_name, "client", "--", "false").returncode == 1
    assert run("lab", "down", "--name", lab_name).returncode == 0
    assert run("lab", "down", "--name", lab_name).returncode == 0
    assert leftovers(lab_name) == []


def test_nodes_whose_names_have_dots(lab_name: str, tmp_path: Path):
    """A bpffs has no names with dots."""
    for path in folder.DEMO.iterdir():
        text = path.read_text().replace("node-a", "node-a.example.org")
        (tmp_path / path.name).write_text(text)
    done = run("lab", "up", "--name", lab_name, "-f", str(tmp_path))
    assert done.returncode == 0, done.stderr
    listed = run("status", "--lab", lab_name, "--node", "node-a.example.org", "-o", "json")
    assert "node-a.example.org" in listed.stdout, listed.stderr


def test_status_of_no_lab(lab_name: str):
    done = run("lab", "status", "--name", lab_name)
    assert (done.returncode, done.stdout) == (8, "")
    assert f"no lab '{lab_name}' is up" in done.stderr


def test_bad_pods_are_named_at_the_end(lab_name: str):
    assert run("lab", "up", "--name", lab_name, "--no-agents").returncode == 0
    pods = Path("/run/ebpfnet-lab", lab_name, "manifests", "pods.yaml")
    folder.edit(pods, lambda pod: pod["status"].clear() if pod["metadata"]["name"] == "web-c" else None)
    done = run("lab", "sync", "--name", lab_name)
    assert (done.returncode, done.stdout) == (9, "")
    assert "Pod default/web-c: status.podIPs: the pod has no address (yet)" in done.stderr
    shown = run("lab", "status", "--name", lab_name).stdout
    assert "default/web-c" not in shown
    assert f"/run/ebpfnet-lab/{lab_name}/nodes/node-b/agent.log" in shown


def test_exec_in_no_pod(lab_name: str):
    run("lab", "up", "--name", lab_name, "--no-agents")
    done = run("lab", "exec", "--name", lab_name, "nobody", "--", "true")
    assert done.returncode == 8
    assert "no pod 'nobody' (pods: default/client" in done.stderr
    both = run("lab", "exec", "--name", lab_name, "--node", "node-a", "client", "--", "true")
    assert both.returncode == 2
    assert "a node or a pod, not both" in both.stderr
    both = run("lab", "exec", "--name", lab_name, "--outside", "client", "--", "true")
    assert both.returncode == 2
    assert "outside or in a pod, not both" in both.stderr
    assert run("lab", "exec", "--name", lab_name, "--outside", "--on", "node-a", "--", "true").returncode == 2


def run(*words: str, timeout: float = 30) -> subprocess.CompletedProcess[str]:
    """Run ``ebpfnet WORDS``."""
    return subprocess.run([*EBPFNET, *words], capture_output=True, text=True, timeout=timeout, check=False)
