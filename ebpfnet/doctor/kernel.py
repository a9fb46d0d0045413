"""What the kernel must have and be told for a node's network to work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from ebpfnet.doctor.finding import Finding, Level

Sysctl = Callable[[str], str | None]
"""A value by its path below /proc/sys; None: there is no such one."""

Ports = tuple[int, int]
CONNTRACK_FULL = 0.8


def forwarding(sysctl: Sysctl, *, ipv6: bool) -> Iterator[Finding]:
    """Look whether packets between pods and the network are let through the host's stack."""
    paths = ["net/ipv4/ip_forward", *(["net/ipv6/conf/all/forwarding"] if ipv6 else [])]
    for path in paths:
        name = path.replace("/", ".")
        if sysctl(path) == "0":
            text = f"{name} is 0: the host lets no packet through between pods and other nodes"
            yield Finding("forwarding", Level.ERROR, text, f"sysctl -w {name}=1")
        else:
            yield Finding("forwarding", Level.OK, f"{name} is {sysctl(path)}")


def reverse_path(sysctl: Sysctl, uplinks: Mapping[int, str]) -> Iterator[Finding]:
    """Look for strict reverse path filtering (RFC 3704 §2.2); what holds is the larger of ``all`` and the device's."""
    for device in ("all", *uplinks.values()):
        path = f"net/ipv4/conf/{device}/rp_filter"
        if sysctl(path) == "1":
            name = path.replace("/", ".")
            text = f"{name} is 1 (strict): answers that come in at another interface than they would leave by are lost"
            yield Finding("rp_filter", Level.WARNING, text, f"sysctl -w {name}=2")
            return
    yield Finding("rp_filter", Level.OK, "reverse path filtering is not strict")


def loopback(sysctl: Sysctl) -> Iterator[Finding]:
    """Look whether a process may be answered by its own node's NodePort (ebpfnet/datapath/loopback.py)."""
    name = "net.ipv4.conf.lo.accept_local"
    if sysctl(name.replace(".", "/")) == "0":
        text = f"{name} is 0: processes of this node get no answer from its own NodePorts"
        yield Finding("loopback", Level.WARNING, text, f"sysctl -w {name}=1 net.ipv4.conf.lo.rp_filter=2")
    else:
        yield Finding("loopback", Level.OK, "answers of own NodePorts are let in")


def ports(sysctl: Sysctl, nodeports: Ports) -> Iterator[Finding]:
    """Look whether the kernel may give a NodePort to a socket as its own port."""
    first, last = nodeports
    low, high = _ports(sysctl("net/ipv4/ip_local_port_range") or "32768 60999")
    reserved = [_ports(each) for each in (sysctl("net/ipv4/ip_local_reserved_ports") or "").split(",") if each]
    free = set(range(max(first, low), min(last, high) + 1))
    for start, end in reserved:
        free -= set(range(start, end + 1))
    if free:
        text = (
            f"net.ipv4.ip_local_port_range ({low}-{high}) overlaps the NodePorts ({first}-{last}): a socket may get one"
        )
        kept = ",".join(f"{start}-{end}" for start, end in [*reserved, nodeports])
        command = f"sysctl -w net.ipv4.ip_local_reserved_ports={kept}"
        yield Finding("ports", Level.WARNING, text, command)
    else:
        yield Finding("ports", Level.OK, "no socket gets a NodePort for its own port")


def conntrack(sysctl: Sysctl) -> Iterator[Finding]:
    """Look how full the host's own connection table is: what goes up the stack still needs it."""
    count, most = sysctl("net/netfilter/nf_conntrack_count"), sysctl("net/netfilter/nf_conntrack_max")
    if not count or not most:
        yield Finding("conntrack", Level.OK, "the kernel keeps no connections of its own")
    elif int(count) >= CONNTRACK_FULL * int(most) > 0:
        text = f"the kernel's conntrack has {count} of {most} entries: new connections through the host will fail"
        yield Finding("conntrack", Level.WARNING, text, f"sysctl -w net.netfilter.nf_conntrack_max={2 * int(most)}")
    else:
        yield Finding("conntrack", Level.OK, f"the kernel's conntrack has {count} of {most} entries")


def features(sysctl: Sysctl, *, btf: bool, bpffs: bool, missing: list[str], place: str) -> Iterator[Finding]:
    """Look at what programs and pins need."""
    if btf:
        yield Finding("kernel", Level.OK, "the kernel has BTF")
    else:
        yield Finding("kernel", Level.ERROR, "the kernel has no BTF: build it with CONFIG_DEBUG_INFO_BTF")
    if sysctl("net/core/bpf_jit_enable") == "0":
        text = "net.core.bpf_jit_enable is 0: programs are interpreted, and several times slower"
        yield Finding("kernel", Level.WARNING, text, "sysctl -w net.core.bpf_jit_enable=1")
    if bpffs:
        yield Finding("bpffs", Level.OK, f"{place} is on a BPF filesystem")
    else:
        text = f"{place} is on no BPF filesystem: nothing can be pinned there"
        yield Finding("bpffs", Level.ERROR, text, "mount -t bpf bpf /sys/fs/bpf")
    if missing:
        text = f"this process has no {', '.join(missing)}: an agent with as little would not start"
        yield Finding("capabilities", Level.ERROR, text)


def _ports(text: str) -> Ports:
    words = text.replace("-", " ").split()
    return int(words[0]), int(words[-1])
