"""``blocks`` and ``node``: what the node and the addresses around it are to services."""

from __future__ import annotations

from collections.abc import Mapping

from ebpfnet.compile.host import NODE_KEY, compile_blocks, compile_node
from ebpfnet.maps.table import Table
from ebpfnet.model.cluster import Cluster
from ebpfnet.model.host import Host
from ebpfnet.reconcile.keyed import Keyed
from ebpfnet.reconcile.units import BLOCKS, NODE


class PlaceTables:
    """Two small tables, each a unit."""

    def __init__(self, tables: Mapping[str, Table]) -> None:
        self.tables: dict[int, Keyed] = {BLOCKS: Keyed(tables["blocks"]), NODE: Keyed(tables["node"])}
        self.tables[NODE].ask(NODE_KEY, compile_node(Host()))

    def want(self, host: Host, cluster: Cluster) -> None:
        """Take in what the host, the cluster's nodes and its ServiceCIDRs say."""
        pod_cidrs = (block for node in cluster.nodes.values() for block in node.pod_cidrs)
        self.tables[BLOCKS].ask_all(compile_blocks(host, pod_cidrs, cluster.service_cidrs))
        self.tables[NODE].ask(NODE_KEY, compile_node(host))

    def read_back(self, *, keep: bool) -> None:
        """Look at the tables; blocks that nobody knows stay with ``keep``."""
        for table in self.tables.values():
            table.read_back(keep=keep)

    def know_all(self) -> None:
        """Forget what was kept because somebody might want it."""
        for table in self.tables.values():
            table.know_all()
