"""``BPF_PROG_TEST_RUN``: one packet through one loaded program, nothing attached (kernel net/bpf/test_run.c)."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

from ebpfnet.maps.syscall import bpf

BPF_PROG_TEST_RUN = 10
ROOM = 256  # a program may grow a packet by so much
BPF_F_TEST_SKB_CHECKSUM_COMPLETE = 1 << 2
TC_ACT_OK, TC_ACT_SHOT, TC_ACT_REDIRECT = 0, 2, 7


class Context(ctypes.Structure):
    """``struct __sk_buff`` (include/uapi/linux/bpf.h); the last 76 bytes are room, or the kernel says ENOSPC."""

    _fields_ = (
        ("len", ctypes.c_uint32),
        ("pkt_type", ctypes.c_uint32),
        ("mark", ctypes.c_uint32),
        ("queue_mapping", ctypes.c_uint32),
        ("protocol", ctypes.c_uint32),
        ("vlan_present", ctypes.c_uint32),
        ("vlan_tci", ctypes.c_uint32),
        ("vlan_proto", ctypes.c_uint32),
        ("priority", ctypes.c_uint32),
        ("ingress_ifindex", ctypes.c_uint32),
        ("ifindex", ctypes.c_uint32),
        ("tc_index", ctypes.c_uint32),
        ("cb", ctypes.c_uint32 * 5),
        ("_between", ctypes.c_uint8 * 96),
        ("gso_segs", ctypes.c_uint32),
        ("_sk", ctypes.c_uint64),
        ("gso_size", ctypes.c_uint32),
        ("rest", ctypes.c_uint8 * 76),
    )


class _Attributes(ctypes.Structure):
    """The head of ``union bpf_attr`` for BPF_PROG_TEST_RUN."""

    _fields_ = (
        ("prog_fd", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("data_in", ctypes.c_uint64),
        ("data_out", ctypes.c_uint64),
        ("repeat", ctypes.c_uint32),
        ("duration", ctypes.c_uint32),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_uint64),
        ("ctx_out", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
    )


class Result(NamedTuple):
    """What came of a packet: tc verdict, the packet as it left, ``skb->cb``, nanoseconds for one run on average."""

    retval: int
    packet: bytes
    cb: tuple[int, ...]
    ns: int


def run(
    fd: int,
    packet: bytes,
    *,
    ingress_ifindex: int = 0,
    ifindex: int = 0,
    repeat: int = 1,
    gso: tuple[int, int] = (0, 0),
    checksum_complete: bool = False,
) -> Result:
    """Send ``packet`` (from its Ethernet header, 14 bytes at least) through program ``fd``.

    ``ifindex`` is a device of this namespace that the packet is on, or 0: loopback, and always to this host then.
    With ``repeat`` the rewritten packet goes in again. ``gso`` makes it a train of so many segments of so many bytes.
    With ``checksum_complete`` a card summed the packet up: EBADMSG says that the program left a wrong sum, EINVAL that
    this kernel can't tell. Raises ``OSError``.
    """
    out = ctypes.create_string_buffer(len(packet) + ROOM)
    context = Context(ingress_ifindex=ingress_ifindex, ifindex=ifindex, gso_segs=gso[0], gso_size=gso[1])
    given = ctypes.create_string_buffer(packet, len(packet))
    attributes = _Attributes(
        prog_fd=fd,
        data_size_in=len(packet),
        data_size_out=len(out),
        data_in=ctypes.addressof(given),
        data_out=ctypes.addressof(out),
        repeat=repeat,
        ctx_size_in=ctypes.sizeof(context),
        ctx_size_out=ctypes.sizeof(context),
        ctx_in=ctypes.addressof(context),
        ctx_out=ctypes.addressof(context),
        flags=BPF_F_TEST_SKB_CHECKSUM_COMPLETE if checksum_complete else 0,
    )
    bpf(BPF_PROG_TEST_RUN, attributes)
    return Result(attributes.retval, out.raw[: attributes.data_size_out], tuple(context.cb), attributes.duration)
