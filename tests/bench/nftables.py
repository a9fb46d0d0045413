"""The ruleset of kube-proxy's nftables mode for plain ClusterIP services, written after its documents
(kubernetes.io "Virtual IPs and Service Proxies", pkg/proxy/nftables/README.md) and what its tests expect at 1.34.

One table: verdict maps from (address, protocol, port) to a chain of the service, which picks an endpoint's chain with
numgen; checks of new connections in the filter hooks; masquerade by mark. Loaded in one transaction.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence

from tests.bench.namespace import Namespace
from tests.bench.services import ENDPOINT_PORT, SERVICE_PORT, Service

POD_CIDR = "10.128.0.0/9"
SERVICE_CIDR = "10.96.0.0/12"

FRAME = f"""
add table ip kube-proxy {{ comment "rules for kube-proxy" ; }}
add set ip kube-proxy cluster-ips {{ type ipv4_addr ; }}
add set ip kube-proxy nodeport-ips {{ type ipv4_addr ; }}
add map ip kube-proxy firewall-ips {{ type ipv4_addr . inet_proto . inet_service : verdict ; }}
add map ip kube-proxy no-endpoint-nodeports {{ type inet_proto . inet_service : verdict ; }}
add map ip kube-proxy no-endpoint-services {{ type ipv4_addr . inet_proto . inet_service : verdict ; }}
add map ip kube-proxy service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict ; }}
add map ip kube-proxy service-nodeports {{ type inet_proto . inet_service : verdict ; }}
add chain ip kube-proxy cluster-ips-check
add chain ip kube-proxy filter-prerouting-pre-dnat {{ type filter hook prerouting priority -110 ; }}
add chain ip kube-proxy filter-output-pre-dnat {{ type filter hook output priority -110 ; }}
add chain ip kube-proxy filter-forward {{ type filter hook forward priority 0 ; }}
add chain ip kube-proxy filter-input {{ type filter hook input priority 0 ; }}
add chain ip kube-proxy filter-output {{ type filter hook output priority 0 ; }}
add chain ip kube-proxy firewall-check
add chain ip kube-proxy mark-for-masquerade
add chain ip kube-proxy masquerading
add chain ip kube-proxy nat-output {{ type nat hook output priority -100 ; }}
add chain ip kube-proxy nat-postrouting {{ type nat hook postrouting priority 100 ; }}
add chain ip kube-proxy nat-prerouting {{ type nat hook prerouting priority -100 ; }}
add chain ip kube-proxy nodeport-endpoints-check
add chain ip kube-proxy services
add chain ip kube-proxy service-endpoints-check
add rule ip kube-proxy cluster-ips-check ip daddr @cluster-ips reject comment "Reject traffic to invalid ports"
add rule ip kube-proxy cluster-ips-check ip daddr {{ {SERVICE_CIDR} }} drop comment "Drop traffic to unallocated"
add rule ip kube-proxy filter-prerouting-pre-dnat ct state new jump firewall-check
add rule ip kube-proxy filter-forward ct state new jump service-endpoints-check
add rule ip kube-proxy filter-forward ct state new jump cluster-ips-check
add rule ip kube-proxy filter-input ct state new jump nodeport-endpoints-check
add rule ip kube-proxy filter-input ct state new jump service-endpoints-check
add rule ip kube-proxy filter-output ct state new jump service-endpoints-check
add rule ip kube-proxy filter-output ct state new jump cluster-ips-check
add rule ip kube-proxy filter-output-pre-dnat ct state new jump firewall-check
add rule ip kube-proxy firewall-check ip daddr . meta l4proto . th dport vmap @firewall-ips
add rule ip kube-proxy mark-for-masquerade mark set mark or 0x4000
add rule ip kube-proxy masquerading mark and 0x4000 == 0 return
add rule ip kube-proxy masquerading mark set mark xor 0x4000
add rule ip kube-proxy masquerading masquerade fully-random
add rule ip kube-proxy nat-output jump services
add rule ip kube-proxy nat-postrouting jump masquerading
add rule ip kube-proxy nat-prerouting jump services
add rule ip kube-proxy nodeport-endpoints-check \\
  ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
add rule ip kube-proxy service-endpoints-check ip daddr . meta l4proto . th dport vmap @no-endpoint-services
add rule ip kube-proxy services ip daddr . meta l4proto . th dport vmap @service-ips
add rule ip kube-proxy services ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
add element ip kube-proxy nodeport-ips {{ 192.168.0.2 }}
"""


def _hash(text: str) -> str:
    return base64.b32encode(hashlib.sha256(text.encode()).digest())[:8].decode()


def _rules(service: Service) -> Iterator[str]:
    tail = f"{service.namespace}/{service.name}/tcp/http"
    chain = f"service-{_hash(tail)}-{tail}"
    ends = []
    for address in service.endpoints:
        end_tail = f"{tail}__{address}/{ENDPOINT_PORT}"
        end = f"endpoint-{_hash(end_tail)}-{end_tail}"
        ends.append(end)
        yield f"add chain ip kube-proxy {end}"
        yield f"add rule ip kube-proxy {end} ip saddr {address} jump mark-for-masquerade"
        yield f"add rule ip kube-proxy {end} meta l4proto tcp dnat to {address}:{ENDPOINT_PORT}"
    verdicts = " , ".join(f"{index} : goto {end}" for index, end in enumerate(ends))
    yield f"add chain ip kube-proxy {chain}"
    yield f"add rule ip kube-proxy {chain} ip daddr {service.vip} ip saddr != {POD_CIDR} jump mark-for-masquerade"
    yield f"add rule ip kube-proxy {chain} numgen random mod {len(ends)} vmap {{ {verdicts} }}"
    yield f"add element ip kube-proxy cluster-ips {{ {service.vip} }}"
    yield f"add element ip kube-proxy service-ips {{ {service.vip} . tcp . {SERVICE_PORT} : goto {chain} }}"


def load(node: Namespace, services: Sequence[Service]) -> None:
    """Put the ruleset into a node; raises ``RuntimeError`` with nft's own words."""
    lines = [FRAME, *(rule for service in services for rule in _rules(service))]
    node.call(["nft", "-f", "-"], "\n".join(lines) + "\n")
