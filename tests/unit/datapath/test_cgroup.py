"""Where cgroups are, from the kernel's text."""

from pathlib import Path

from ebpfnet.datapath.cgroup import mounts

MOUNTINFO = r"""24 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 24 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate
32 30 0:28 / /sys/fs/cgroup/cpu rw,relatime shared:11 - cgroup cgroup rw,cpu
33 24 0:27 /../.. /mnt/a\040place rw - cgroup2 cgroup rw
"""


def test_mounts_of_version_2():
    assert mounts(MOUNTINFO) == [Path("/sys/fs/cgroup/unified"), Path("/mnt/a place")]


def test_no_mounts():
    assert mounts("") == []
