"""kube-proxy's file: what applies is typed, and nothing that is set is passed over in silence."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
import yaml

from ebpfnet.exits import BadInput
from ebpfnet.operate.nodeports import NodePortAddresses
from ebpfnet.operate.proxyconfig import ProxyConfig, parse, read
from ebpfnet.operate.proxyfields import FIELDS, Duration

HEAD = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
EVERYWHERE = (ip_network("0.0.0.0/0"), ip_network("::/0"))

KUBEADM = """
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  {acceptContentTypes: "", burst: 0, contentType: "", kubeconfig: /var/lib/kube-proxy/kubeconfig.conf, qps: 0}
clusterCIDR: 10.244.0.0/16
configSyncPeriod: 0s
conntrack: {maxPerCore: null, min: null, tcpBeLiberal: false, tcpCloseWaitTimeout: null, tcpEstablishedTimeout: null,
  udpStreamTimeout: 0s, udpTimeout: 0s}
detectLocal: {bridgeInterface: "", interfaceNamePrefix: ""}
detectLocalMode: ""
enableProfiling: false
healthzBindAddress: ""
hostnameOverride: ""
iptables: {localhostNodePorts: null, masqueradeAll: false, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}
ipvs: {excludeCIDRs: null, minSyncPeriod: 0s, scheduler: "", strictARP: false, syncPeriod: 0s, tcpFinTimeout: 0s,
  tcpTimeout: 0s, udpTimeout: 0s}
logging: {flushFrequency: 0, options: {json: {infoBufferSize: "0"}, text: {infoBufferSize: "0"}}, verbosity: 0}
metricsBindAddress: ""
mode: ""
nftables: {masqueradeAll: false, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
showHiddenMetricsForVersion: ""
winkernel: {enableDSR: false, forwardHealthCheckVip: false, networkName: "", rootHnsEndpointName: "", sourceVip: ""}
"""


def config(text: str = "") -> ProxyConfig:
    return parse("kp.yaml", (HEAD + text).encode())


def test_what_kubeadm_writes_applies():
    assert config(KUBEADM) == ProxyConfig(
        bind_address=ip_address("0.0.0.0"),
        healthz_bind_address="0.0.0.0:10256",
        metrics_bind_address="127.0.0.1:10249",
        bind_address_hard_fail=False,
        kubeconfig="/var/lib/kube-proxy/kubeconfig.conf",
        hostname_override="",
        cluster_cidrs=(ip_network("10.244.0.0/16"),),
        node_port_addresses=NodePortAddresses(EVERYWHERE, primary=False),
        sync_period_s=30,
        oom_score_adj=None,
        max_per_core=None,
        min_connections=None,
        log_format="",
        log_level="",
        warnings=(),
    )


def test_json_and_yaml_are_the_same(tmp_path: Path):
    path = tmp_path / "kp.json"
    path.write_text(json.dumps(yaml.safe_load(HEAD + KUBEADM)))
    assert read(path) == parse(str(path), (HEAD + KUBEADM).encode())


@pytest.mark.parametrize(
    ("text", "attribute", "want"),
    [
        ('bindAddress: "fd00::1"', "healthz_bind_address", "[::]:10256"),
        ('bindAddress: "fd00::1"', "metrics_bind_address", "[::1]:10249"),
        ("metricsBindAddress: 0.0.0.0", "metrics_bind_address", "0.0.0.0:10249"),
        ('healthzBindAddress: "[::1]:1"', "healthz_bind_address", "[::1]:1"),
        ("bindAddressHardFail: true", "bind_address_hard_fail", True),
        ("hostnameOverride: ' Node-A '", "hostname_override", "node-a"),
        ("clusterCIDR: 10.0.0.0/8,fd00::/8", "cluster_cidrs", (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))),
        ("iptables: {syncPeriod: 1m0.5s}", "sync_period_s", 60.5),
        ("{mode: nftables, iptables: {syncPeriod: 1m}, nftables: {syncPeriod: 10s}}", "sync_period_s", 10),
        ("oomScoreAdj: 0", "oom_score_adj", 0),
        ("logging: {format: json}", "log_format", "json"),
        ("logging: {verbosity: 2}", "log_level", "info"),
        ("logging: {verbosity: 4}", "log_level", "debug"),
    ],
)
def test_what_applies(text: str, attribute: str, want: object):
    document = {**yaml.safe_load(HEAD), **yaml.safe_load(text)}
    assert getattr(parse("kp.yaml", json.dumps(document).encode()), attribute) == want


@pytest.mark.parametrize(
    ("listed", "mode", "want"),
    [
        ("[]", "nftables", NodePortAddresses((), primary=True)),
        ("[primary, 192.0.2.0/24]", "iptables", NodePortAddresses((ip_network("192.0.2.0/24"),), primary=True)),
        ("[localhost]", "ipvs", NodePortAddresses((ip_network("127.0.0.0/8"), ip_network("::1/128")), primary=False)),
        ("[all, '::/0']", "ipvs", NodePortAddresses(EVERYWHERE, primary=False)),
    ],
)
def test_node_port_addresses(listed: str, mode: str, want: NodePortAddresses):
    assert config(f"mode: {mode}\nnodePortAddresses: {listed}").node_port_addresses == want


@pytest.mark.parametrize(
    ("conntrack", "want"),
    [
        ("{}", None),
        ("{maxPerCore: 0, min: 5}", None),
        ("{maxPerCore: 1000}", 131072),
        ("{maxPerCore: 1000, min: 0}", 4000),
        ("{min: 5}", 131072),
    ],
)
def test_connections_are_counted_as_kube_proxy_does(conntrack: str, want: int | None):
    assert config(f"conntrack: {conntrack}").max_connections(4) == want


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("mode: ipvs", "mode"),
        ("iptables: {masqueradeAll: true}", "iptables.masqueradeAll"),
        ("conntrack: {tcpEstablishedTimeout: 1h}", "conntrack.tcpEstablishedTimeout"),
        ("featureGates: {Foo: false}", "featureGates.Foo"),
        ("logging: {options: {json: {infoBufferSize: 1Ki}}}", "logging.options"),
        ("ipvs: {syncPeriod: 1m}", "ipvs.syncPeriod"),
        ("winkernel: {networkName: x}", "winkernel.networkName"),
    ],
)
def test_what_does_not_apply_is_named_with_its_reason(text: str, field: str):
    [warning] = config(text).warnings
    assert warning.startswith(f"kp.yaml: {field}: does not apply, ignored: ")


def test_every_field_that_does_not_apply_has_a_zero_that_is_silent():
    zeros = {str: "", bool: False, int: 0, float: 0, list[str]: [], Duration: "0s"}
    for path, field in FIELDS.items():
        if field.why_not and field.type in zeros:
            *sections, name = path.split(".")
            value: object = {name: zeros[field.type]}
            for section in reversed(sections):
                value = {section: value}
            assert config(yaml.safe_dump(value)).warnings == ()


def test_local_pods_are_known_by_other_means():
    [warning] = config("detectLocalMode: BridgeInterface").warnings
    assert warning.startswith("kp.yaml: detectLocalMode: does not apply, ignored: a pod of this node")
    assert config("detectLocalMode: ClusterCIDR").warnings == ()


@pytest.mark.parametrize(("text", "field"), [("foo: 1", "foo"), ("iptables: {bar: 1}", "iptables.bar"), ("7: x", "7")])
def test_unknown_fields_are_named(text: str, field: str):
    assert config(text).warnings == (f"kp.yaml: {field}: unknown field, ignored",)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("mode: [1]", "mode: Expected `str`, got `array`"),
        ("mode: userspace", "mode: 'userspace' is not one of iptables, ipvs, nftables, kernelspace"),
        ("enableProfiling: 1", "enableProfiling: Expected `bool`, got `int`"),
        ("iptables: 3", "iptables: Expected `object`, got `int`"),
        ("iptables: {syncPeriod: 30}", "iptables.syncPeriod: 30 is not a duration"),
        ("iptables: {syncPeriod: 30 s}", "iptables.syncPeriod: '30 s' is not a duration"),
        ("nodePortAddresses: [a, 3]", "nodePortAddresses[1]: Expected `str`, got `int`"),
        ("nodePortAddresses: [all, 192.0.2.1]", "nodePortAddresses[1]: '192.0.2.1' has no prefix length"),
        ("clusterCIDR: 10.0.0.0/33", "clusterCIDR: '10.0.0.0/33' does not appear"),
        ("clusterCIDR: '10.0.0.0/8,11.0.0.0/8'", "clusterCIDR: more than one of a family"),
        ("bindAddress: here", "bindAddress: 'here' does not appear"),
        ("healthzBindAddress: here:80", "healthzBindAddress: 'here:80' is not IP:PORT"),
        ("oomScoreAdj: -1001", "oomScoreAdj: -1001 is not within -1000 and 1000"),
        ("logging: {format: xml}", "logging.format: 'xml' is not one of text, json"),
        ("conntrack: {min: -1}", "conntrack.min: -1 is not within 0 and"),
        ("a: [", "line "),
        ("---\nx: 1", "not one KubeProxyConfiguration alone"),
    ],
)
def test_what_can_not_be_used_is_named_by_file_and_field(text: str, told: str):
    with pytest.raises(BadInput) as caught:
        config(text)
    assert str(caught.value).startswith(f"kp.yaml: {told}")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"", "not one KubeProxyConfiguration alone"),
        (b"[1]", "not one KubeProxyConfiguration alone"),
        (b"kind: KubeProxyConfiguration", "apiVersion: None is not kubeproxy"),
        (HEAD.replace("KubeProxy", "Kubelet").encode(), "kind: 'KubeletConfiguration' is not"),
        (HEAD.replace("v1alpha1", "v1").encode(), "apiVersion: 'kubeproxy.config.k8s.io/v1' is not"),
        (b"\xff\xfe\x00", ""),
    ],
)
def test_another_kind_of_file(text: bytes, told: str):
    with pytest.raises(BadInput) as caught:
        parse("kp.yaml", text)
    assert str(caught.value).startswith(f"kp.yaml: {told}")


def test_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(BadInput, match="no\\.yaml: No such file"):
        read(tmp_path / "no.yaml")
