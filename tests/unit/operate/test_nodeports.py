"""Where NodePorts are served: kube-proxy's reading of blocks and keywords."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from ebpfnet.operate.nodeports import expand

OWN = [ip_address(text) for text in ("192.0.2.1", "198.51.100.1", "127.0.0.1", "fd00::1", "fe80::1", "::1")]
PRIMARY = [ip_address("192.0.2.1"), ip_address("fd00::1"), ip_address("203.0.113.9")]


@pytest.mark.parametrize(
    ("listed", "want"),
    [
        (["primary"], ["192.0.2.1", "fd00::1"]),
        (["all"], ["192.0.2.1", "198.51.100.1", "fd00::1", "fe80::1"]),
        # NewNodePortAddresses: a family that no block is of is served everywhere.
        (["198.51.100.0/24"], ["198.51.100.1", "fd00::1", "fe80::1"]),
        (["198.51.100.7/24", "fd00::/8"], ["198.51.100.1", "fd00::1"]),
        (["primary", "198.51.100.0/24"], ["192.0.2.1", "198.51.100.1", "fd00::1"]),
        (["localhost"], []),
    ],
)
def test_which_addresses_serve(listed: list[str], want: list[str]):
    assert [str(each) for each in expand(listed).choose(OWN, PRIMARY)] == want


@pytest.mark.parametrize(
    ("listed", "want"),
    [
        (["primary"], []),
        (["10.0.0.0/8", "fd00::/8"], []),
        (["127.0.0.1/32"], ["127.0.0.1/32"]),
        (["all"], ["0.0.0.0/0", "::/0"]),
    ],
)
def test_blocks_with_loopback_addresses_are_told_of(listed: list[str], want: list[str]):
    assert expand(listed).loopback == tuple(ip_network(text) for text in want)


@pytest.mark.parametrize("text", ["192.0.2.1", "secondary", "300.0.0.0/8"])
def test_what_is_no_block_is_refused(text: str):
    with pytest.raises(ValueError, match=text[:9]):
        expand([text])
