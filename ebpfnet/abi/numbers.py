"""Constants and enumerations; the comments of what each means are in ``bpf/abi.h``."""

from __future__ import annotations

import enum

LAYOUT_VERSION = 3
DROP_SAMPLES = 1024
GENERATIONS = 1024
GENERATION_OF_ALL = 1
ROUTES = 256
NAME_SIZE = 384
TIMEOUT_TCP_NEW_S = 60
TIMEOUT_TCP_ESTABLISHED_S = 21600
TIMEOUT_TCP_CLOSING_S = 10
TIMEOUT_TCP_HALF_CLOSED_S = 240
TIMEOUT_DATAGRAM_NEW_S = 30
TIMEOUT_DATAGRAM_ESTABLISHED_S = 120
"""Idle seconds after which a flow is over; TCP's hold for SCTP too, the datagram ones for UDP and ICMP."""


class Protocol(enum.IntEnum):
    """IP protocol numbers (IANA) that the datapath knows."""

    ICMP = 1
    TCP = 6
    UDP = 17
    ICMPV6 = 58
    SCTP = 132


class Mark(enum.IntFlag):
    """What an address is that has a mark in ``services``, and of a frontend whether it is a load balancer's."""

    OWN = 1
    NODEPORTS = 2
    CLUSTER_IP = 4
    BALANCER = 8
    FOREIGN = 16
    DIRECT = 32
    TAKEN = 64
    NODE = 128


class SetFlag(enum.IntFlag):
    """Properties of an endpoint set."""

    ELSEWHERE = 1
    CONSISTENT = 2
    WEIGHTED = 4


class BlockKind(enum.IntEnum):
    """What the addresses of a block are."""

    PODS = 1
    SERVICES = 2


class FlowState(enum.IntEnum):
    """Where a connection is in its life."""

    NEW = 0
    ESTABLISHED = 1
    CLOSING = 2
    HALF_CLOSED = 3


class FlowFlag(enum.IntFlag):
    """Properties of a flow entry."""

    REPLY = 1
    NAT = 2
    BESIDE = 4
    HOST = 8
    GONE = 16
    DIRECT = 32
    OWN = 64


class Departure(enum.IntEnum):
    """How a backend left its service (value of ``departed``)."""

    UNFIT = 1
    GONE = 2


class Direction(enum.IntEnum):
    """Of a policy: what a pod receives, or what it sends."""

    INGRESS = 0
    EGRESS = 1


class Verdict(enum.IntEnum):
    """What a rule says; ``AUDIT`` passes, and is counted."""

    DENY = 0
    ALLOW = 1
    AUDIT = 2


class RuleFlag(enum.IntFlag):
    """Properties of a rule."""

    GRACEFUL = 1


class Hook(enum.IntEnum):
    """The programs' places."""

    FROM_POD = 0
    TO_POD = 1
    FROM_NETWORK = 2
    TO_NETWORK = 3
    FROM_HOST = 4


class Outcome(enum.IntEnum):
    """What became of a packet."""

    STACK = 0
    POD = 1
    NETWORK = 2
    REJECT = 3
    DROP = 4


class DropReason(enum.IntEnum):
    """Why a packet was dropped or rejected; the comments are in ``bpf/abi.h``."""

    NONE = 0
    TRUNCATED = 1
    MALFORMED = 2
    SPOOFED_ADDRESS = 3
    SPOOFED_MAC = 4
    UNSUPPORTED_ETHERTYPE = 5
    UNSUPPORTED_PROTOCOL = 6
    UNSUPPORTED_ICMP = 7
    UNSUPPORTED_EXTENSION = 8
    FRAGMENT_UNKNOWN = 9
    FLOW_UNKNOWN = 10
    FLOW_TABLE = 11
    NO_ENDPOINTS = 12
    NO_SLOT = 13
    NO_SOURCE_PORT = 14
    REWRITE = 15
    NO_LOCAL_ENDPOINTS = 16
    UNDEFINED_PORT = 17
    UNALLOCATED_ADDRESS = 18
    SOURCE_RANGE = 19
    BACKEND_GONE = 20
    NO_SOURCE_ADDRESS = 21
    TIME_EXCEEDED = 22
    TOO_BIG = 23
    NO_ROUTE = 24
    POLICY_EGRESS = 26
    POLICY_INGRESS = 27
    NO_RULES = 28
    AUDITED = 29


DROP_MAX = 32
