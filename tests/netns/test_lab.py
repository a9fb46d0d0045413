"""The lab itself: what it builds without agents, and that it leaves nothing behind, whatever happens."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ebpfnet.lab import client, cluster, folder, namespace, state, topology
from ebpfnet.lab.cluster import Lab, down
from ebpfnet.lab.report import report
from tests.netns import objects


def test_pods_reach_each_other_without_agents(lab_name: str, family: int):
    with Lab.up(lab_name, agents=False) as lab:
        for target in ("web-a", "web-b"):
            answer = client.http(lab.pod("client"), lab.pod(target).of(family), 8080, "/?pad=100000")
            assert (answer.pod, len(answer.pad)) == (f"default/{target}", 100_000)


def test_the_outside_reaches_nodes_and_no_pod(lab_name: str, family: int):
    with Lab.up(lab_name, agents=False) as lab:
        outside = lab.outside()
        for node in ("node-a", "node-b"):
            place = lab.node(node)
            with place.socket(family, socket.SOCK_STREAM) as listener:
                listener.bind((place.of(family), 7000))
                listener.listen()
                sources = [each for each in outside.addresses if (":" in each) == (family == socket.AF_INET6)]
                assert len(sources) == topology.OUTSIDE_ADDRESSES
                for source in sources:
                    with client.connected(outside, socket.IPPROTO_TCP, place.of(family), 7000, source=source):
                        accepted, peer = listener.accept()
                        accepted.close()
                        assert peer[0] == source
        with pytest.raises(OSError, match=r"unreachable|No route"):
            client.tcp(outside, lab.pod("web-a").of(family), 8080)


def test_packets_for_addresses_of_services_arrive_at_a_node(lab_name: str, tmp_path: Path, family: int):
    """Without agents nobody serves them, so the node is given the address to see what comes."""
    folder.copy(folder.DEMO, tmp_path)
    address, late = ("203.0.113.9", "203.0.113.10") if family == socket.AF_INET else ("2001:db8:1::9", "2001:db8:1::a")
    with Lab.up(lab_name, tmp_path, agents=False) as lab:
        for wanted in (address, late, address):
            (lab.manifests / "outside.yaml").write_text(yaml.safe_dump(balancer(wanted)))
            lab.sync()
            bits = 128 if ":" in wanted else 32
            assert lab.node("node-a").exec("ip", "address", "add", f"{wanted}/{bits}", "dev", "lo").returncode == 0
            done = lab.outside().exec("ping", "-c", "1", "-W", "2", wanted)
            assert ", 0% packet loss" in done.stdout, done.stdout + done.stderr
            lab.node("node-a").exec("ip", "address", "del", f"{wanted}/{bits}", "dev", "lo")
            known = lab.outside().exec("ip", "-6" if ":" in wanted else "-4", "route").stdout
            assert wanted in known
            assert ({address, late} - {wanted}).pop() + " " not in known


def balancer(address: str) -> dict[str, Any]:
    """Return a dual-stack service of type LoadBalancer that has this address."""
    spec = {"type": "LoadBalancer", "clusterIPs": ["10.96.0.99", "fd00:10:96::99"], "ports": [{"port": 80}]}
    status = {"loadBalancer": {"ingress": [{"ip": address}]}}
    return {"apiVersion": "v1", "kind": "Service", "metadata": objects.meta("out"), "spec": spec, "status": status}


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
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert leftovers(lab_name) == []


def test_up_cleans_up_also_when_nobody_listens_any_more(lab_name: str):
    def say(text: str) -> None:
        raise BrokenPipeError(text)

    with pytest.raises(BrokenPipeError):
        Lab.up(lab_name, agents=False, say=say)
    assert leftovers(lab_name) == []


def test_down_after_a_crash(lab_name: str):
    process = start_up(lab_name)
    assert process.stderr is not None
    for line in process.stderr:
        if "wired" in line:
            process.kill()
            break
    process.communicate(timeout=60)
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
    test_crash.communicate(timeout=60)
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


def test_pods_that_get_no_wire_stop_no_other(lab_name: str, tmp_path: Path, family: int):
    folder.copy(folder.DEMO, tmp_path)
    over, lost = objects.pod("over", 1, 50), objects.pod("lost", 1, 51)
    over["status"]["phase"] = "Succeeded"
    lost["status"] = {"phase": "Pending"}
    (tmp_path / "more.yaml").write_text(yaml.safe_dump_all([over, lost]))
    with Lab.up(lab_name, tmp_path, agents=False) as lab:
        assert [f"{problem.ref}: {problem.field}" for problem in lab.left_out] == ["Pod default/lost: status.podIPs"]
        assert {"over", "lost"}.isdisjoint(pod.name for pod in lab.plan.pods)
        twin = objects.pod("twin", 1, 11)
        twin["status"]["podIPs"] = [{"ip": each} for each in objects.pod_addresses("client")]
        (lab.manifests / "late.yaml").write_text(yaml.safe_dump_all([twin, objects.pod("late", 1, 78)]))
        lab.sync()
        assert [problem.ref.name for problem in lab.left_out] == ["lost", "twin"]
        assert client.tcp(lab.pod("client"), lab.pod("late").of(family), 8080).pod == "default/late"
        wrong = {**objects.pod("late", 1, 78), "status": {"podIPs": 5}}
        (lab.manifests / "late.yaml").write_text(yaml.safe_dump(wrong))
        lab.sync()  # it keeps the wire that it had
        assert [problem.ref.name for problem in lab.left_out] == ["late", "lost"]
        assert client.tcp(lab.pod("client"), lab.pod("late").of(family), 8080).pod == "default/late"


def test_up_and_sync_repair_what_a_killed_sync_left(lab_name: str, family: int):
    for repair in ("sync", "up"):
        with Lab.up(lab_name, agents=False) as lab:
            netns = lab.pod("client").netns
            inode = namespace.path(netns).stat().st_ino
            before = state.load(lab_name)
            (lab.manifests / "late.yaml").write_text(yaml.safe_dump(objects.pod("late", 2, 77)))
            wanted = folder.read(lab_name, lab.manifests).plan
            late = [pod for pod in wanted.pods if pod.name == "late"]
            half = topology.Plan(lab_name, wanted.uplink_netns, wanted.nodes, (*before.plan.pods, *late))
            state.save(lab.places, state.State(state.VERSION, False, before.options, half, before.plan))
            namespace.create(late[0].netns)  # as far as it got
            if repair == "sync":
                lab.sync()
            else:
                Lab.up(lab_name)
            mended = Lab(lab_name)
            assert client.tcp(mended.pod("client"), mended.pod("late").of(family), 8080).pod == "default/late"
            assert namespace.path(netns).stat().st_ino == inode  # what nobody had touched stays
        assert leftovers(lab_name) == []


def test_a_sync_that_fails_is_repaired_by_the_next(lab_name: str):
    with Lab.up(lab_name) as lab:
        late = lab.manifests / "late.yaml"
        late.write_text(yaml.safe_dump(objects.pod("late", 2, 77)))
        with pytest.raises(Exception, match="in time"):
            lab.sync(timeout=0)
        lab.sync()
        assert client.http(lab.pod("client"), lab.pod("late").v4, 8080).pod == "default/late"


def test_up_and_sync_start_dead_agents_and_keep_the_manifests(lab_name: str, tmp_path: Path):
    objects.write(tmp_path)
    with Lab.up(lab_name, tmp_path) as lab:
        said: list[str] = []
        for again in (lambda: Lab.up(lab_name, say=said.append), lambda: lab.sync(say=said.append)):
            lab.kill_agent("node-a")
            again()
            assert "the agent of node-a was dead and is started again" in said
            assert lab.agent_process("node-a") is not None
            said.clear()
        assert (lab.manifests / "tests.yaml").exists()
        Lab.up(lab_name, folder.DEMO, say=said.append)
        assert f"the manifests that were there are kept in {lab.places.root}/manifests.1" in said
        assert (lab.places.root / "manifests.1" / "tests.yaml").exists()
        assert not (lab.manifests / "tests.yaml").exists()
        log = (lab.places.run("node-a") / "agent.log").read_text()
        assert log.count("in sync after") == 1  # of this start alone; what was before is beside it
        assert (lab.places.run("node-a") / "agent.log.old").exists()


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
