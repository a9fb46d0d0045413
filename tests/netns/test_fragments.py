"""Datagrams larger than the MTU: later fragments carry no ports and still follow the first."""

from __future__ import annotations

from ebpfnet.lab import client
from ebpfnet.lab.cluster import Inside, Lab
from tests.netns import objects


def test_fragmented_request_to_a_service(lab: Lab, caller: Inside, distance: str, family: int):
    assert client.udp(caller, lab.service(f"{distance}-dns").of(family), 53, b"x" * 8000).bytes == 8000


def test_fragmented_answer_of_a_service(lab: Lab, caller: Inside, distance: str, family: int):
    assert len(client.udp(caller, lab.service(f"{distance}-dns").of(family), 53, b"pad=8000").pad) == 8000


def test_fragmented_both_ways_between_pods(lab: Lab, caller: Inside, distance: str, family: int):
    pod = lab.pod({"near": objects.NEAR_DNS, "far": objects.FAR_DNS}[distance])
    answer = client.udp(caller, pod.of(family), 5353, b"pad=8000 " + b"x" * 8000)
    assert (answer.bytes, len(answer.pad)) == (8009, 8000)


def test_fragmented_hairpin(lab: Lab, family: int):
    dns = lab.pod(objects.NEAR_DNS)
    assert client.udp(dns, lab.service("mirror-dns").of(family), 53, b"x" * 8000).bytes == 8000
