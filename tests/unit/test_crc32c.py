"""bpf/lib/crc32c.h on this machine's processor: packets longer than a test run takes, and every power."""

import random
import subprocess
from pathlib import Path

from ebpfnet.datapath.source import bpf_dir
from tests import crc32c

PROBE = """
#include <linux/types.h>
#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>
#define __always_inline inline
#define bpf_ntohl ntohl
#include "lib/crc32c.h"
int main(void)
{
	unsigned char head[4];
	unsigned length;
	while (scanf("%2hhx%2hhx%2hhx%2hhx %u", head, head + 1, head + 2, head + 3, &length) == 5) {
		__be32 word;
		memcpy(&word, head, 4);
		printf("%u\\n", crc32c_of_head(word, length));
	}
	return 0;
}
"""
LENGTHS = (4, 5, 6, 7, 8, 12, 16, 17, 31, 1023, 1480, 8999, 9000, 16_384, 32_768, 65_515, 65_535)


def test_the_definition() -> None:
    assert crc32c.crc32c(b"123456789") == 0xE3069283


def test_new_ports_change_the_checksum_by_their_remainder(tmp_path: Path) -> None:
    chance = random.Random(9260)
    source, probe = tmp_path / "probe.c", tmp_path / "probe"
    source.write_text(PROBE)
    subprocess.run(["cc", "-I", bpf_dir(), "-Wno-unknown-pragmas", "-o", probe, source], check=True)
    questions, expected = "", []
    for length in LENGTHS:
        packet, ports = chance.randbytes(length), chance.randbytes(4)
        changed = bytes(a ^ b for a, b in zip(packet[:4], ports, strict=True))
        questions += f"{changed.hex()} {length}\n"
        expected.append(crc32c.crc32c(packet) ^ crc32c.crc32c(ports + packet[4:]))
    answer = subprocess.check_output([probe], input=questions, text=True)
    assert [int(line) for line in answer.split()] == expected
