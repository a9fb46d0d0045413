"""What a process may do, read from its status."""

from __future__ import annotations

import pytest

from ebpfnet.datapath import capabilities


@pytest.mark.parametrize(
    ("mask", "absent"),
    [
        ("000001ffffffffff", []),
        ("000000c000001000", []),
        ("0000000000000000", ["CAP_NET_ADMIN", "CAP_PERFMON", "CAP_BPF"]),
        ("000001bfffffffff", ["CAP_PERFMON"]),
    ],
)
def test_what_is_missing_is_named(mask: str, absent: list[str]):
    status = f"Name:\tagent\nCapPrm:\t0000000000000000\nCapEff:\t{mask}\nCapBnd:\t000001ffffffffff\n"
    assert capabilities.missing(status) == absent
