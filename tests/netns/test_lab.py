"""The lab itself: what it builds without agents, and that it leaves nothing behind, whatever happens."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from ebpfnet.lab import client, cluster, folder, namespace, state
from ebpfnet.lab.cluster import Lab, down
from ebpfnet.lab.report import report
from tests.netns import objects

Wait = Callable[[Callable[[], object], float], None]


def test_pods_reach_each_other_without_agents(lab_name: str, family: int):
    with Lab.up(lab_name, agents=False) as lab:
        for target in ("web-a", "web-b"):
            answer = client.http(lab.pod("client"), lab.pod(target).of(family), 8080, "/?pad=100000")
            assert (answer.pod, len(answer.pad)) == (f"default/{target}", 100_000)


def test_down_leaves_nothing(lab_name: str):
    Lab.up(lab_name, agents=False).down()
    assert leftovers(lab_name) == []


def test_down_twice(lab_name: str):
    Lab.up(lab_name, agents=False)
    assert (down(lab_name), down(lab_name)) == (True, False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("after", ["is there", "wired"])
def test_interrupted_up_cleans_up(lab_name: str, number: int, after: str):
    process = start_up(lab_name)
    assert process.stderr is not None
    for line in process.stderr:
        if after in line:
            process.send_signal(number)
            break
    process.communicate(timeout=30)
    assert process.returncode != 0
    assert leftovers(lab_name) == []


def test_down_after_a_crash(lab_name: str):
    process = start_up(lab_name)
    assert process.stderr is not None
    for line in process.stderr:
        if "wired" in line:
            process.kill()
            break
    process.communicate(timeout=30)
    assert leftovers(lab_name) != []
    down(lab_name)
    assert leftovers(lab_name) == []


def test_up_after_a_crash_builds_anew(lab_name: str, family: int):
    test_crash = start_up(lab_name)
    assert test_crash.stderr is not None
    for line in test_crash.stderr:
        if "is there" in line:
            test_crash.kill()
            break
    test_crash.communicate(timeout=30)
    with Lab.up(lab_name, agents=False) as lab:
        assert client.tcp(lab.pod("client"), lab.pod("web-b").of(family), 8080).pod == "default/web-b"
    assert leftovers(lab_name) == []


def test_sync_follows_pods(lab_name: str, tmp_path: Path, family: int):
    folder.copy(folder.DEMO, tmp_path)
    with Lab.up(lab_name, tmp_path, agents=False) as lab:
        added = lab.manifests / "late.yaml"
        added.write_text(yaml.safe_dump(objects.pod("late", 2, 77)))
        lab.sync()
        assert client.tcp(lab.pod("client"), lab.pod("late").of(family), 8080).pod == "default/late"
        netns = lab.pod("late").netns
        added.unlink()
        lab.sync()
        assert not namespace.exists(netns)
        with pytest.raises(cluster.NotInLabError, match="no pod 'late'"):
            lab.pod("late")


def test_sync_follows_nodes(lab_name: str, family: int):
    with Lab.up(lab_name, agents=False) as lab:
        node = yaml.safe_load((folder.DEMO / "nodes.yaml").read_text().split("---")[0])
        node["metadata"]["name"] = "node-c"
        node["spec"] = {"podCIDRs": ["10.244.3.0/24", "fd00:10:244:3::/64"]}
        node["status"]["addresses"] = [{"type": "InternalIP", "address": each} for each in ("10.0.0.13", "fd00:10::13")]
        pod = objects.pod("third", 1, 5)
        pod["spec"]["nodeName"] = "node-c"
        pod["status"]["podIPs"] = [{"ip": "10.244.3.5"}, {"ip": "fd00:10:244:3::5"}]
        pod["status"]["podIP"] = "10.244.3.5"
        added = lab.manifests / "third.yaml"
        added.write_text(yaml.safe_dump_all([node, pod]))
        lab.sync()
        for caller in ("client", "web-b"):
            assert client.tcp(lab.pod(caller), lab.pod("third").of(family), 8080).pod == "default/third"
        added.unlink()
        lab.sync()
        assert [node.name for node in lab.plan.nodes] == ["node-a", "node-b"]
    assert leftovers(lab_name) == []


def test_a_pod_without_an_address_is_named(lab_name: str, tmp_path: Path):
    folder.copy(folder.DEMO, tmp_path)
    pod = objects.pod("lost", 1, 50)
    pod["status"] = {}
    (tmp_path / "lost.yaml").write_text(yaml.safe_dump(pod))
    with pytest.raises(Exception, match=r"Pod default/lost: status\.podIPs") as error:
        Lab.up(lab_name, tmp_path, agents=False)
    assert getattr(error.value, "exit_code", None) == 9
    assert leftovers(lab_name) == []


def test_a_half_written_file_changes_nothing(lab_name: str, family: int):
    with Lab.up(lab_name, agents=False) as lab:
        (lab.manifests / "pods.yaml").write_text('kind: Pod\nmetadata: {name: "')
        with pytest.raises(Exception, match=r"pods\.yaml"):
            lab.sync()
        assert client.tcp(lab.pod("client"), lab.pod("web-a").of(family), 8080).pod == "default/web-a"


def test_a_taken_port_names_the_pod_and_cleans_up(lab_name: str, tmp_path: Path):
    folder.copy(folder.DEMO, tmp_path)
    for name in ("one", "two"):
        pod = objects.pod(name, 1, 50)
        pod["spec"]["hostNetwork"] = True
        pod["status"]["podIPs"] = [{"ip": "10.0.0.11"}]
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(pod))
    with pytest.raises(Exception, match=r"echo server of default/(one|two)"):
        Lab.up(lab_name, tmp_path, agents=False)
    assert leftovers(lab_name) == []


def test_processes_that_are_not_ours_are_left_alone(lab_name: str):
    """A pid that was used again has another start time than the record."""
    with Lab.up(lab_name, agents=False) as lab, subprocess.Popen(["sleep", "60"]) as bystander:
        stat = Path(f"/proc/{bystander.pid}/stat").read_text()
        head, _, tail = stat.rpartition(")")
        fields = tail.split()
        fields[19] = str(int(fields[19]) - 1)
        (lab.places.processes / "echo:default:old").write_text(f"{head}) {' '.join(fields)}\n")
        lab.down()
        assert bystander.poll() is None
        bystander.kill()


def test_report(lab_name: str):
    with Lab.up(lab_name, agents=False) as lab:
        document = json.loads(json.dumps(report(lab)))
    assert [node["name"] for node in document["nodes"]] == ["node-a", "node-b"]
    assert all(pod["echo"] for pod in document["pods"])


def test_down_with_agents_leaves_nothing(lab_name: str):
    Lab.up(lab_name).down()
    assert leftovers(lab_name) == []


def start_up(name: str) -> subprocess.Popen[str]:
    """Start ``ebpfnet lab up`` without agents."""
    command = [sys.executable, "-m", "ebpfnet", "lab", "up", "--name", name, "--no-agents"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def leftovers(name: str) -> list[str]:
    """Return every trace of a lab: namespaces, mounts, files, processes."""
    found = [str(each) for each in namespace.FOLDER.iterdir() if each.name.startswith(f"ebn-{name}-")]
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found += [f"mount {line.split()[4]}" for line in mounts if f"/{name}/" in line or f"ebn-{name}-" in line]
    if (state.FOLDER / name).exists():
        found.append(str(state.FOLDER / name))
    return found + [f"process {pid}" for pid in writers_into(f"/run/ebpfnet-lab/{name}/")]


def writers_into(folder: str) -> list[int]:
    """Return the processes whose output goes to a file in a folder, also when the file is deleted."""
    found = []
    for each in Path("/proc").glob("[0-9]*/fd/1"):
        try:
            if str(each.readlink()).startswith(folder):
                found.append(int(each.parts[2]))
        except OSError:
            continue
    return found
