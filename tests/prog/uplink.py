"""A node on the network, for packets that come from outside and leave to it: an uplink, a router, its own addresses."""

from __future__ import annotations

import subprocess
from typing import NamedTuple

from scapy.all import Ether, Packet

from ebpfnet import abi
from ebpfnet.abi import Mark
from tests import packets
from tests.packets import ALICE_IFINDEX, BOB_IFINDEX, Ends
from tests.prog.loaded import Datapath, Result

UPLINK = 77
OUR_MAC, ROUTER_MAC = "02:00:00:00:07:01", "02:00:00:00:07:02"
NODE_PORT, SOURCE_PORTS = 30080, (45000, 45999)
LOOPBACK = 1
NOTHING_DECIDED, REDIRECT = 0xFFFFFFFF, 7
"""TC_ACT_UNSPEC and TC_ACT_REDIRECT."""
NODE = {False: "192.0.2.1", True: "2001:db8:7::1"}
UNRESOLVED = {False: "192.0.2.77", True: "2001:db8:7::77"}
"""On the uplink's network, with a MAC that nobody knows yet."""

LINKS = f"""
link add alice index {ALICE_IFINDEX} type veth peer name in-alice index 2001
link add bob index {BOB_IFINDEX} type veth peer name in-bob index 2002
link add uplink index {UPLINK} address {OUR_MAC} type veth peer name router index 2003
link set lo up
link set alice up
link set in-alice up
link set bob up
link set in-bob up
link set uplink up
link set router up
addr add {NODE[False]}/24 dev uplink
addr add {NODE[True]}/64 dev uplink nodad
neigh add 192.0.2.2 lladdr {ROUTER_MAC} dev uplink nud permanent
neigh add 192.0.2.9 lladdr {ROUTER_MAC} dev uplink nud permanent
neigh add 2001:db8:7::2 lladdr {ROUTER_MAC} dev uplink nud permanent
route add default via 192.0.2.2
route add default via 2001:db8:7::2
"""
FORWARDING = ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")


class Uplink(NamedTuple):
    """The programs on a node that has a network, for one address family."""

    datapath: Datapath
    ends: Ends

    @property
    def node(self) -> str:
        return NODE[self.ends.ipv6]

    def serve(self, backend: str, port: int = packets.POD_PORT, protocol: int = 6) -> None:
        """Let service and NodePort lead to one backend: one of ``Ends``, an address, or nobody ("")."""
        address = getattr(self.ends, backend, backend) if backend else ""
        backends = [(address, port)] if address else []
        for front, number in (
            (self.ends.service, packets.SERVICE_PORT),
            ("::" if self.ends.ipv6 else "0.0.0.0", NODE_PORT),
        ):
            self.datapath.set_service(front, number, protocol, backends, 7000 + protocol)

    def come(self, packet: Packet, source: str = "", destination: str = "", **fields: int) -> Result:
        """Send a packet in from the network: from a client outside to the node, if nothing else is said."""
        header = packets.ip(source or self.ends.outside, destination or self.node, **fields)
        return self.raw(Ether(src=ROUTER_MAC, dst=OUR_MAC) / header / packet)

    def raw(self, packet: Packet) -> Result:
        return self.datapath.run("from_network", packet, UPLINK, device=UPLINK)

    def go(self, packet: Packet, destination: str, source: str = "", program: str = "to_network") -> Result:
        """Send a packet of the node's own on its way."""
        header = packets.ip(source or self.node, destination, ttl=64)
        if program == "from_host":
            mac = "00:00:00:00:00:00"
            return self.datapath.run(program, packets.ethernet(mac, mac) / header / packet, 0)
        return self.datapath.run(program, Ether(src=OUR_MAC, dst=ROUTER_MAC) / header / packet, 0, device=UPLINK)

    def set_node(self, ports: tuple[int, int] = SOURCE_PORTS, address: str | None = None) -> None:
        """Say what stands in for clients."""
        mine = bytes(16) if address == "" else packets.raw(address or self.node)
        none = bytes(16)
        value = abi.Node(none, mine, *ports) if self.ends.ipv6 else abi.Node(mine, none, *ports)
        self.datapath.tables["node"].put((0).to_bytes(4, "little"), value.pack())

    def mark(self, address: str, marks: int) -> None:
        frontend, service = abi.Frontend(packets.raw(address), 0, 0), abi.Service(0, 0, marks=marks)
        self.datapath.tables["services"].put(frontend.pack(), service.pack())


def connect(datapath: Datapath, ends: Ends) -> Uplink:
    """Give this network namespace an uplink, and the tables what the node is."""
    subprocess.run(["sysctl", "-qw", *FORWARDING], check=True)
    subprocess.run(["ip", "-batch", "-"], input=LINKS, text=True, check=True)
    made = Uplink(datapath, ends)
    made.mark(made.node, Mark.OWN | Mark.NODEPORTS)
    made.mark(ends.service, Mark.CLUSTER_IP)
    made.set_node()
    return made
