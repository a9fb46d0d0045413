import pytest
from scapy.all import Ether

from ebpfnet import abi
from ebpfnet.simulate import packets
from tests.packets import FAMILIES, Ends, has_right_checksums, raw

MACS = (b"\x02" * 6, b"\x04" * 6)
PROTOCOLS = [abi.Protocol.TCP, abi.Protocol.UDP, abi.Protocol.SCTP, None]


def key_of(ends: Ends, protocol: int | None) -> bytes:
    number = protocol or (abi.Protocol.ICMPV6 if ends.ipv6 else abi.Protocol.ICMP)
    return packets.tuple_key(raw(ends.alice), raw(ends.bob), 4000, 80 if protocol else 4000, number)


@pytest.mark.parametrize("answer", [False, True])
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("ends", FAMILIES)
def test_what_is_built_is_right_and_reads_back(ends: Ends, protocol: int | None, answer: bool) -> None:
    key = key_of(ends, protocol)
    packet = packets.build(key, *MACS, answer=answer)
    assert has_right_checksums(packet)
    assert packets.checksums_hold(packet)
    assert packets.tuple_of(packet) == key


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("ends", FAMILIES)
def test_any_octet_that_changes_is_noticed(ends: Ends, protocol: int | None) -> None:
    packet = packets.build(key_of(ends, protocol), *MACS, answer=False)
    for at in range(54 if ends.ipv6 else 34, len(packet)):
        changed = packet[:at] + bytes((packet[at] ^ 1,)) + packet[at + 1 :]
        assert not packets.checksums_hold(changed), at


@pytest.mark.parametrize("ends", FAMILIES)
def test_a_router_takes_one_off_the_time_to_live(ends: Ends) -> None:
    packet = packets.forwarded(packets.build(key_of(ends, 6), *MACS, answer=False), *reversed(MACS))
    assert packet[21 if ends.ipv6 else 22] == packets.TTL - 1
    assert has_right_checksums(packet)
    assert Ether(packet).dst == "02:02:02:02:02:02"


def test_crc32c_of_the_standard() -> None:
    assert packets.crc32c(b"123456789") == 0xE3069283


def test_reverse_is_its_own_inverse() -> None:
    key = key_of(FAMILIES[0], 6)
    assert packets.reverse(packets.reverse(key)) == key
    assert packets.show(packets.reverse(key)) == "10.1.1.11:80 > 10.1.1.10:4000"
