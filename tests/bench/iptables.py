"""The ruleset of kube-proxy's iptables mode for ClusterIP and NodePort services, written after its documents
(kubernetes.io "Virtual IPs and Service Proxies") and what `iptables-save` shows on a node of such a cluster.

KUBE-SERVICES is one list of all services, walked by the first packet of every connection; KUBE-SVC-… picks one
KUBE-SEP-… with the statistic match; masquerade by mark. Loaded in one `iptables-legacy-restore`.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence

from tests.bench.namespace import Namespace
from tests.bench.nftables import POD_CIDR
from tests.bench.services import ENDPOINT_PORT, SERVICE_PORT, Service

FILTER = """*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SERVICES - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment "load balancer firewall" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment "health check service ports" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment "externally-visible services" -j KUBE-EXTERNAL-SERVICES
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "load balancer firewall" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment "forwarding rules" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "service portals" -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "externally-visible services" -j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "load balancer firewall" -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "service portals" -j KUBE-SERVICES
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT"""

NAT = """*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
{chains}
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment "service traffic requiring SNAT" -j MASQUERADE --random-fully
{rules}
-A KUBE-SERVICES -m comment --comment "node ports; must be last" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
COMMIT
"""


def _chain(kind: str, text: str) -> str:
    return f"KUBE-{kind}-{base64.b32encode(hashlib.sha256(text.encode()).digest())[:16].decode()}"


def _ends(service: Service, name: str) -> list[str]:
    return [_chain("SEP", f"{name}{service.protocol}{address}:{ENDPOINT_PORT}") for address in service.endpoints]


def _rules(service: Service) -> Iterator[str]:
    name = f"{service.namespace}/{service.name}:http"
    chain = _chain("SVC", f"{name}{service.protocol}")
    note = f'-m comment --comment "{name}"'
    protocol = f"-m {service.protocol} -p {service.protocol}"
    vip = f"{protocol} -d {service.vip} --dport {SERVICE_PORT}"
    yield f'-A KUBE-SERVICES -m comment --comment "{name} cluster IP" {vip} -j {chain}'
    yield f'-A {chain} -m comment --comment "{name} cluster IP" {vip} ! -s {POD_CIDR} -j KUBE-MARK-MASQ'
    if service.node_port:
        outside = _chain("EXT", f"{name}{service.protocol}")
        port = f"{protocol} --dport {service.node_port}"
        yield f"-A KUBE-NODEPORTS {note} {port} -j {outside}"
        yield f"-A {outside} {note} -j KUBE-MARK-MASQ"
        yield f"-A {outside} -j {chain}"
    ends = _ends(service, name)
    for index, (address, end) in enumerate(zip(service.endpoints, ends, strict=True)):
        left = len(ends) - index
        chance = f"-m statistic --mode random --probability {1 / left:.10f} " if left > 1 else ""
        yield f"-A {chain} {note} {chance}-j {end}"
        yield f"-A {end} {note} -s {address} -j KUBE-MARK-MASQ"
        yield f"-A {end} {note} {protocol} -j DNAT --to-destination {address}:{ENDPOINT_PORT}"


def _chains(service: Service) -> Iterator[str]:
    name = f"{service.namespace}/{service.name}:http"
    outside = [_chain("EXT", f"{name}{service.protocol}")] if service.node_port else []
    for chain in (_chain("SVC", f"{name}{service.protocol}"), *_ends(service, name), *outside):
        yield f":{chain} - [0:0]"


def load(node: Namespace, services: Sequence[Service]) -> None:
    """Put the ruleset into a node; raises ``RuntimeError`` with the tool's own words."""
    chains = "\n".join(line for service in services for line in _chains(service))
    rules = "\n".join(line for service in services for line in _rules(service))
    text = f"{FILTER}\n{NAT.format(chains=chains, rules=rules)}"
    node.call(["iptables-legacy-restore", "--noflush", "-w"], text)
