"""Where NodePorts are served, as ``--nodeport-addresses`` and kube-proxy's ``nodePortAddresses`` say it.

Source: kubernetes pkg/proxy/util/nodeport_addresses.go, and pkg/proxy/nftables/proxier.go, which leaves loopback out.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import NamedTuple

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

EVERYWHERE: tuple[IPNetwork, ...] = (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))
LOOPBACK: tuple[IPNetwork, ...] = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
PRIMARY = "primary"
KEYWORDS: dict[str, tuple[IPNetwork, ...]] = {"all": EVERYWHERE, "localhost": LOOPBACK}


class NodePortAddresses(NamedTuple):
    """Where NodePorts are served: on node addresses in ``cidrs``, and on the Node's primary ones when ``primary``."""

    cidrs: tuple[IPNetwork, ...] = ()
    primary: bool = True

    def choose(self, own: Iterable[IPAddress], primary: Iterable[IPAddress]) -> tuple[IPAddress, ...]:
        """Return those of the node's ``own`` addresses that serve NodePorts; never a loopback address.

        As in kube-proxy, a family that no block is of serves all of its addresses, unless ``primary`` speaks for it.
        """
        first = set(primary) if self.primary else set()
        return tuple(
            address
            for address in dict.fromkeys(own)
            if not address.is_loopback and (address in first or self._covers(address))
        )

    def everywhere(self, version: int) -> bool:
        """Say whether every address of a family serves."""
        blocks = [each for each in self.cidrs if each.version == version]
        return any(each.prefixlen == 0 for each in blocks) if blocks else not self.primary

    def _covers(self, address: IPAddress) -> bool:
        return self.everywhere(address.version) or any(address in each for each in self.cidrs)

    @property
    def loopback(self) -> tuple[IPNetwork, ...]:
        """The blocks that say loopback addresses, too: nothing is served there."""
        return tuple(
            each for each in self.cidrs for loop in LOOPBACK if each.version == loop.version and each.overlaps(loop)
        )


PRIMARY_ONLY = NodePortAddresses()


def expand(listed: Iterable[str]) -> NodePortAddresses:
    """Read CIDRs and keywords; raises ``ValueError`` for what is neither."""
    cidrs: list[IPNetwork] = []
    listed = list(listed)
    for text in listed:
        if text != PRIMARY:
            cidrs += KEYWORDS.get(text) or (network(text),)
    return NodePortAddresses(tuple(dict.fromkeys(cidrs)), primary=PRIMARY in listed)


def network(text: str) -> IPNetwork:
    """Read a block; like Go's, the text may have bits set behind the prefix. Raises ``ValueError``."""
    if "/" not in text:
        raise ValueError(f"{text!r} has no prefix length")
    return ipaddress.ip_network(text.strip(), strict=False)
