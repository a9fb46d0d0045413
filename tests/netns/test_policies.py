"""Policies between real sockets: every kind of client, on every path, over both families.

The lab is one for all; each case writes its policies, waits until they are enforced, and asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.netns.policies import PODS, Manifest, World, addresses, block, cluster_policy, labelled, policy

ALL = "asker>near asker>far asker>service-near asker>service-far remote>near remote>service-near"
OTHERS = "stranger>near stranger>far stranger>service-near stranger>service-far"
HAIRPINS = "near>service-near far>service-far"
PORTS = "outside>port-near outside>port-far"
ASKER = addresses(PODS["asker"])
FRIENDS = {"podSelector": labelled(role="friend")}
BLUE = {"namespaceSelector": labelled(team="blue")}
NO_INGRESS = policy("deny", policyTypes=["Ingress"])
NO_EGRESS = policy("deny-egress", {}, policyTypes=["Egress"])


NAMES_OF_NAMESPACES = ("kubernetes.io/metadata.name", "io.kubernetes.pod.namespace", "namespace")
"""Labels that say what namespace a pod is in, to some; here they are labels like any other."""


class Case(NamedTuple):
    """Policies, and who gets through under them."""

    name: str
    policies: list[Manifest]
    allowed: str
    denied: str = ""


def ports(*given: Manifest | int | str) -> list[Manifest]:
    """Return ports of a rule, TCP where nothing else is said."""
    return [each if isinstance(each, dict) else {"port": each} for each in given]


def broad_and_narrow(first: str, then: str) -> Manifest:
    """Return what pods may call: the block of all pods, and in it that of one server; the narrow one is accepted."""
    blocks = {"Deny": ["10.244.0.0/16", "fd00:10:244::/48", "10.0.0.0/24", "fd00:10::/64"],
              "Accept": [block(each) for each in addresses(PODS["near"])]}  # fmt: skip
    rules = [{"action": each, "to": [{"networks": blocks[each]}]} for each in (first, then)]
    return cluster_policy("blocks", "Admin", 1, subject={"pods": {"namespaceSelector": {}, **FRIENDS}}, egress=rules)


PATHS = {
    "same node": "asker>near",
    "across nodes": "asker>far",
    "cluster IP": ">service-",
    "node port": ">port-",
    "hairpin": "near>service-near",
}

CASES = [
    Case("none", [], f"{ALL} {OTHERS} {HAIRPINS} {PORTS} asker>near:udp asker>far:icmp"),
    Case(
        "no ingress", [NO_INGRESS], "near>stranger far>asker node-a>near node-a>near:udp node-a>near:icmp node-b>far",
        f"{ALL} {OTHERS} {HAIRPINS} {PORTS} asker>near:udp asker>far:udp asker>near:icmp asker>far:icmp"
        " remote>near:icmp outside>port-near:udp near>far node-b>near node-b>near:icmp node-a>far",
    ),
    Case(
        "no egress", [NO_EGRESS], f"{PORTS} node-a>near node-b>near node-a>near:icmp blue>near blue>far"
        " blue>service-far",
        f"{ALL} {OTHERS} {HAIRPINS} asker>near:udp asker>far:udp asker>near:icmp asker>far:icmp asker>hostly"
        " near>asker far>asker",
    ),
    Case("the host's network is nobody's", [NO_INGRESS], "asker>hostly remote>hostly node-b>hostly hostly>near",
         f"{ALL} {HAIRPINS} {PORTS} hostly>far"),
    Case("replies", [policy("deny-both", labelled(role="friend"), policyTypes=["Ingress"])],
         f"{ALL} {HAIRPINS} {PORTS} asker>near:udp asker>far:udp asker>near:icmp asker>far:icmp blue>near",
         "near>asker far>asker near>remote"),
    Case("all allowed", [NO_INGRESS, policy("all", ingress=[{}])], f"{ALL} {OTHERS} {HAIRPINS} {PORTS}"
         " asker>near:icmp"),
    Case("pods of the namespace", [policy("some", ingress=[{"from": [FRIENDS]}])],
         f"{ALL} asker>near:udp asker>far:icmp", f"{OTHERS} {HAIRPINS} {PORTS} blue>near blue>service-far"),
    Case("namespaces", [policy("some", ingress=[{"from": [BLUE]}])], "blue>near blue-stranger>near"
         " blue>service-far", f"{ALL} {HAIRPINS} {PORTS}"),
    Case("pods of namespaces", [policy("some", ingress=[{"from": [{**BLUE, **FRIENDS}]}])], "blue>near"
         " blue>service-far",
         f"{ALL} {HAIRPINS} {PORTS} blue-stranger>near blue-stranger>far"),
    Case("union", [policy("one", ingress=[{"from": [FRIENDS]}]), policy("two", ingress=[{"from": [BLUE]}])],
         f"{ALL} blue>near blue-stranger>far", f"{OTHERS} {HAIRPINS} {PORTS}"),
    Case("itself through its service", [policy("own", ingress=[{"from": [{"podSelector": labelled(app="server")}]}])],
         f"{HAIRPINS} near>far far>near near>service-far", f"{ALL} {PORTS}"),
    Case("egress to pods",
         [policy("out", labelled(role="friend"), egress=[{"to": [{"podSelector": labelled(app="server")}]}])],
         f"{ALL} {HAIRPINS} {PORTS} asker>near:icmp asker>service-far:udp",
         "asker>stranger asker>hostly remote>stranger:icmp"),
    Case("a port", [policy("port", ingress=[{"ports": ports(8080)}])],
         f"{ALL} {HAIRPINS} {PORTS}", "asker>near:8081 asker>far:8081 asker>near:udp asker>near:icmp"),
    Case("a port, by its name", [policy("named", ingress=[{"ports": ports("web")}])],
         "asker>near asker>far:8081 remote>near asker>service-near outside>port-near near>service-near",
         "asker>near:8081 asker>far:8080 asker>service-far outside>port-far far>service-far"),
    Case("a port of others, by its name", [policy("named", labelled(role="friend"), egress=[{"ports": ports("web")}])],
         f"asker>near asker>far:8081 asker>service-near {HAIRPINS} {PORTS}", "asker>near:8081 asker>far:8080"
         " asker>service-far asker>hostly"),
    Case("a range", [policy("range", ingress=[{"ports": [{"port": 8081, "endPort": 9001}]}])],
         "asker>near:8081 asker>far:9000 asker>near:9001", f"{ALL} {HAIRPINS} {PORTS} asker>near:9010 asker>far:udp"
         " asker>far:icmp"),
    Case("a protocol", [policy("udp", ingress=[{"ports": [{"protocol": "UDP"}]}])],
         "asker>near:udp asker>far:udp asker>service-far:udp outside>port-near:udp outside>port-far:udp"
         " near>service-near:udp far>service-far:udp", f"{ALL} {HAIRPINS} {PORTS} asker>near:icmp"),
    Case("a client outside", [policy("block", ingress=[{"from": [
        {"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.2/32"]}},
        {"ipBlock": {"cidr": "2001:db8::/64", "except": ["2001:db8::2/128"]}}]}])],
         "outside>port-near outside>port-near:udp node-a>near",
         f"{ALL} {HAIRPINS} outside-2>port-near outside-2>port-near:udp outside>port-far"),
    Case("a client whom a node stands in for", [policy("block", ingress=[{"from": [
        {"ipBlock": {"cidr": "10.0.0.11/32"}}, {"ipBlock": {"cidr": "fd00:10::11/128"}}]}])],
         "outside>port-far outside-2>port-far:udp node-a>far hostly>far",
         f"{ALL} {HAIRPINS} outside>port-near node-b>near"),
    Case("pods in a block", [policy("block", ingress=[{"from": [
        {"ipBlock": {"cidr": "10.244.0.0/16", "except": [block(ASKER[0])]}},
        {"ipBlock": {"cidr": "fd00:10:244::/48", "except": [block(ASKER[1])]}}]}])],
         f"{OTHERS} {HAIRPINS} remote>near blue>near", f"{PORTS} asker>near asker>far asker>service-far"),
    Case("a narrow block in one denied", [policy("block", ingress=[
        {"from": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.244.0.0/16"]}},
                  {"ipBlock": {"cidr": "::/0", "except": ["fd00:10:244::/48"]}}]},
        {"from": [{"ipBlock": {"cidr": block(ASKER[0])}}, {"ipBlock": {"cidr": block(ASKER[1])}}]}])],
         f"{PORTS} asker>near asker>far asker>service-far node-b>near", f"{OTHERS} {HAIRPINS} remote>near blue>far"),
    Case("a broad block denied before a narrow one is allowed",
         [broad_and_narrow("Deny", "Accept"), policy("all", labelled(role="friend"), egress=[{}])],
         f"{OTHERS} {HAIRPINS} {PORTS}", f"{ALL} asker>hostly asker>near:icmp asker>service-far:udp"),
    Case("a narrow block allowed before a broad one is denied",
         [broad_and_narrow("Accept", "Deny"), policy("none", labelled(role="friend"), policyTypes=["Egress"])],
         f"{OTHERS} {HAIRPINS} {PORTS} asker>near asker>service-near remote>near remote>service-near asker>near:icmp",
         "asker>far asker>service-far asker>hostly remote>stranger:icmp"),
    Case("policies of another namespace", [policy("thief", {}, "team-blue", policyTypes=["Ingress", "Egress"])],
         f"{ALL} {OTHERS} {HAIRPINS} {PORTS} node-a>blue",
         "asker>blue remote>blue-stranger blue>near blue>service-far"),
    Case("selectors that try to leave their namespace",
         [policy("names", ingress=[{"from": [{"podSelector": {"matchExpressions": [
             {"key": key, "operator": "In", "values": ["team-blue"]}]}} for key in NAMES_OF_NAMESPACES]}])],
         "node-a>near node-b>far", f"{ALL} {OTHERS} {HAIRPINS} {PORTS} blue>near blue-stranger>far blue>service-far"),
    Case("selectors that every pod of their namespace matches",
         [policy("others", ingress=[{"from": [{"podSelector": {"matchExpressions": [
             {"key": key, "operator": "NotIn", "values": ["default"]} for key in NAMES_OF_NAMESPACES]}}]}])],
         f"{ALL} {OTHERS} {HAIRPINS}", f"{PORTS} blue>near blue-stranger>far blue>service-far"),
    Case("admin over network policies",
         [policy("all", ingress=[{}]), cluster_policy("lock", "Admin", 5, ingress=[
             {"action": "Deny", "from": [{"pods": FRIENDS}]}])],
         f"{OTHERS} {HAIRPINS} {PORTS} node-a>near", f"{ALL} blue>near asker>near:icmp asker>far:udp"),
    Case("admin lets pass on",
         [NO_INGRESS, cluster_policy("pass", "Admin", 1, ingress=[{"action": "Pass", "from": [{"pods": FRIENDS}]}]),
          cluster_policy("open", "Admin", 2, ingress=[{"action": "Accept", "from": [{"namespaces": {}}]}])],
         f"{OTHERS} {HAIRPINS}", f"{ALL} {PORTS} blue>near"),
    Case("baseline is for those whom nothing selects",
         [cluster_policy("base", "Baseline", 1, ingress=[{"action": "Deny", "from": [{"namespaces": {}}]}])],
         f"{PORTS} node-a>near node-b>near asker>hostly", f"{ALL} {OTHERS} {HAIRPINS} asker>near:icmp"),
    Case("baseline under network policies",
         [policy("some", ingress=[{"from": [FRIENDS]}]),
          cluster_policy("base", "Baseline", 1, ingress=[{"action": "Deny", "from": [{"namespaces": {}}]}])],
         ALL, f"{OTHERS} {HAIRPINS} {PORTS}"),
    Case("cluster's egress to networks, nodes and ports",
         [cluster_policy("out", "Admin", 1, subject={"pods": {"namespaceSelector": {}, **FRIENDS}}, egress=[
             {"action": "Accept", "to": [{"nodes": labelled(**{"kubernetes.io/hostname": "node-a"})}]},
             {"action": "Accept", "to": [{"namespaces": {}}], "protocols": [{"destinationNamedPort": "web"}]},
             {"action": "Deny", "to": [{"networks": ["0.0.0.0/0", "::/0"]}]}])],
         f"{HAIRPINS} {PORTS} asker>near asker>far:8081 asker>service-near asker>hostly remote>hostly stranger>far",
         "asker>far asker>near:8081 asker>near:udp asker>service-far blue>near:icmp remote>stranger"),
]  # fmt: skip


def test_every_case_takes_every_path():
    asked = {case.name: f"{case.allowed} {case.denied}" for case in CASES}
    assert [(case, path) for case in asked for path, text in PATHS.items() if text not in asked[case]] == []


@pytest.mark.parametrize("case", CASES, ids=[each.name.replace(" ", "-") for each in CASES])
def test_who_gets_through(policed: World, case: Case):
    policed.apply(case.policies)
    policed.check(case.allowed, case.denied)


@pytest.fixture(scope="module", autouse=True)
def _as_before(policed: World) -> Iterator[None]:
    yield
    policed.restore()
