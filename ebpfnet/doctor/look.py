"""Looks at this node: files, netlink, and the tools of iptables where they are installed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ebpfnet.datapath import addresses, attach, capabilities, interfaces, nftables
from ebpfnet.datapath.netlink import Reader
from ebpfnet.doctor import agent, kernel, kubeproxy
from ebpfnet.doctor.finding import Finding, Level
from ebpfnet.exits import EbpfnetError, NotRunning
from ebpfnet.maps import pins
from ebpfnet.status import ask

PROC = Path("/proc")
BTF = Path("/sys/kernel/btf/vmlinux")
NODEPORTS = (30000, 32767)
TOOL_S = 60
HOST_PIDS = "pid:[4026531836]"  # PROC_PID_INIT_INO of include/linux/proc_ns.h
LEGACY = {"iptables-legacy": "ip_tables_names", "ip6tables-legacy": "ip6_tables_names"}
COUNTED = ("services", "sets", "slots", "members", "ranges", "blocks", "pods", "flows", "names")


def everything(pinned: Path, run: Path, nodeports: tuple[int, int] = NODEPORTS) -> Iterator[Finding]:
    """Yield what was found, the worst not first: in the order in which a person would look."""
    status, why = _status(run)
    uplinks = _uplinks(status)
    with Reader() as reader:
        ipv6 = any(each.address.version == 6 and not each.address.is_link_local for each in addresses.own(reader))
    yield from kernel.features(
        sysctl,
        btf=BTF.exists(),
        bpffs=pins.is_bpffs(pinned),
        missing=capabilities.missing((PROC / "self/status").read_text()),
        place=str(pinned),
    )
    yield from kernel.forwarding(sysctl, ipv6=ipv6)
    yield from kernel.reverse_path(sysctl, uplinks)
    yield from kernel.loopback(sysctl)
    yield from kernel.ports(sysctl, nodeports)
    yield from kernel.conntrack(sysctl)
    yield from leftovers()
    yield from agent.state(status, why)
    yield from agent.attached(dict(attach.everywhere(remove=False)), uplinks.values(), running=status is not None)
    yield from _tables(pinned)


def sysctl(path: str) -> str | None:
    """Return a value of this network namespace; None: there is no such one."""
    try:
        return (PROC / "sys" / path).read_text().strip()
    except OSError:
        return None


def leftovers() -> Iterator[Finding]:
    """Yield what is here of kube-proxy, or that nothing is."""
    found = [*kubeproxy.in_ipvs(_read("net/ip_vs"), [name for _, name in socket.if_nameindex()])]
    unseen = []
    try:
        found += kubeproxy.in_nftables(nftables.listed())
    except OSError as error:
        unseen.append(f"nftables ({error.strerror})")
    for tool, names in LEGACY.items():
        if _read(f"net/{names}"):
            saved = _saved(tool)
            if saved is None:
                unseen.append(f"the rules of {tool} ({tool}-save is not installed or failed)")
            else:
                found += kubeproxy.in_iptables(tool, saved)
    if str((PROC / "self/ns/pid").readlink()) == HOST_PIDS:
        found += kubeproxy.running(_processes())
    else:
        unseen.append("processes (only this container's can be seen)")
    yield from found
    if not found:
        yield Finding(kubeproxy.CHECK, Level.OK, "nothing of kube-proxy was found")
    elif len(found) > 1:
        yield Finding(kubeproxy.CHECK, Level.WARNING, "all of these go at once, too", kubeproxy.CLEANUP)
    for each in unseen:
        yield Finding(kubeproxy.CHECK, Level.UNKNOWN, f"not looked at: {each}")


def _saved(tool: str) -> str | None:
    path = shutil.which(f"{tool}-save", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path is None:
        return None
    try:
        done = subprocess.run([path], capture_output=True, text=True, check=False, timeout=TOOL_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _processes() -> list[tuple[int, str]]:
    return [(int(each.name), name) for each in PROC.glob("[0-9]*") if (name := _read(f"{each.name}/comm"))]


def _read(path: str) -> str:
    try:
        return (PROC / path).read_text().strip()
    except OSError:  # a part of the kernel that is not there, or a process that has just ended
        return ""


def _status(run: Path) -> tuple[dict[str, Any] | None, str]:
    try:
        return ask(run), ""
    except NotRunning as error:
        return None, str(error)


def _uplinks(status: dict[str, Any] | None) -> dict[int, str]:
    try:
        found = interfaces.find(status["uplink"] if status else ())
        return {index: socket.if_indextoname(index) for index in found}
    except (NotRunning, OSError):
        return {}


def _tables(pinned: Path) -> Iterator[Finding]:
    try:
        with pins.opened(pinned) as tables:
            used = {name: tables[name] for name in COUNTED}
            yield from agent.tables(
                {
                    name: (sum(len(keys) // table.spec.key_size for keys, _ in table.chunks()), table.spec.max_entries)
                    for name, table in used.items()
                }
            )
    except NotRunning as error:
        yield Finding("tables", Level.WARNING, str(error))
    except EbpfnetError as error:
        yield Finding("tables", Level.ERROR, str(error))
