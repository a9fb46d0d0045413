"""A lab whose agents follow API servers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import yaml

from ebpfnet import abi
from ebpfnet.datapath import interfaces
from ebpfnet.datapath.netlink import SOCK_DIAG, Reader
from ebpfnet.hosting import HostSettings, Observed, describe, observe
from ebpfnet.lab import namespace
from ebpfnet.lab.cluster import Lab
from ebpfnet.lab.topology import UPLINK
from ebpfnet.maps import dump, pins
from ebpfnet.model.facts import Fact, Node, Synced, Upsert
from ebpfnet.model.host import Host
from ebpfnet.reconcile.reconciler import Reconciler
from ebpfnet.watch import manifests
from tests import cluster
from tests.apiserver.server import ApiServer
from tests.apiserver.store import Store
from tests.apiserver.tls import write_kubeconfig

NODES = ("node-a", "node-b")
PORT = 6443


class Kube:
    """A lab whose agents follow API servers, one in each node, over one store."""

    def __init__(self, lab: Lab, store: Store) -> None:
        self.lab, self.store = lab, store
        self.servers = {node: ApiServer(store, port=PORT) for node in NODES}

    @classmethod
    @contextmanager
    def up(cls, name: str, folder: Path, tmp_path: Path) -> Iterator[Self]:
        """Bring a lab up with a folder's objects; they are in the store from then on."""
        kubeconfig = tmp_path / "kubeconfig"
        write_kubeconfig(kubeconfig, f"http://127.0.0.1:{PORT}")
        store = Store(each for path in folder.glob("*.yaml") for each in yaml.safe_load_all(path.read_text()) if each)
        flags = ("--kubeconfig", str(kubeconfig), "--sweep-interval", "1")
        with Lab.up(name, folder, agents=False, agent_arguments=flags) as lab:
            found = cls(lab, store)
            found.start_servers()
            try:
                found.start_agents()
                yield found
            finally:
                found.stop_servers()

    def start_servers(self) -> None:
        for node, server in self.servers.items():
            namespace.run(self.lab.node(node).netns, server.start)

    def stop_servers(self) -> None:
        for server in self.servers.values():
            server.stop()

    def start_agents(self) -> None:
        for node in NODES:
            self.lab.start_agent(node)
        self.lab.wait_synced()

    def put(self, manifest: dict[str, Any]) -> None:
        self.store.put(manifest)

    def metrics(self, node: str, path: str = ":10249/metrics") -> str:
        return self.lab.node(node).exec("curl", "-s", f"http://127.0.0.1{path}").stdout

    def want(self, node: str) -> list[str]:
        """Return what a node's tables must hold: the store's objects, compiled from nothing into tables in memory."""
        kinds = ("Namespace", "Pod", "Service", "EndpointSlice", "NetworkPolicy")
        items = [{"kind": kind, **each} for kind in kinds for each in self.store.objects(kind)]
        nodes = [{"kind": "Node", **each} for each in self.store.objects("Node")]
        items += [each for each in nodes if each["metadata"]["name"] == node]  # an agent asks for its own only
        content = manifests.parse("store.json", json.dumps({"kind": "List", "items": items}).encode())
        status = self.lab.agent_status(node)
        assert status is not None
        wires = {each["pod"]: _wire(self.lab, node, each["name"], each["ifindex"]) for each in status["interfaces"]}
        reconciler = Reconciler(tables := cluster.memory_tables(), node)
        reconciler.set_host(_host(self.lab, node, content.facts.values()))
        reconciler.apply([*(Upsert(fact) for fact in content.facts.values()), Synced()])
        reconciler.set_wires(wires)
        return dump.summary(tables)

    def have(self, node: str) -> list[str]:
        with pins.opened(self.lab.pins(node)) as tables:
            return dump.summary(tables)

    def equal(self) -> bool:
        """Say whether every node's tables hold what the store says, and nothing else."""
        return all(self.want(node) == self.have(node) for node in NODES)


def _host(lab: Lab, node: str, facts: Iterable[Fact]) -> Host:
    """Return what a node is to services: looked at from its namespace, as its agent does."""

    def look() -> Observed:
        with Reader() as routes, Reader(SOCK_DIAG) as diag:
            settings = HostSettings()
            return observe(routes, diag, lambda: interfaces.find((UPLINK,)), settings.nodeport_range)

    here = [fact for fact in facts if isinstance(fact, Node) and fact.ref.name == node]
    return describe(HostSettings(), namespace.run(lab.node(node).netns, look), here[0] if here else None, here)


def _wire(lab: Lab, node: str, interface: str, ifindex: int) -> abi.Wire:
    shown = lab.node(node).exec("ip", "-j", "link", "show", "dev", interface).stdout
    mac = json.loads(shown)[0]["ifalias"].rpartition("mac=")[2]
    return abi.Wire(ifindex, bytes.fromhex(mac.replace(":", "")))
