"""Every field of KubeProxyConfiguration: its type, and whether it means anything here.

Source: kubernetes staging/src/k8s.io/kube-proxy/config/v1alpha1/types.go at 052d2d84f95e, component-base
config/v1alpha1/types.go (clientConnection) and logs/api/v1/types.go (logging). A field without a ``why_not`` applies.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, NamedTuple


class Duration:
    """The type of a field that is a duration as Go writes it ("1h2m3.5s")."""


class Mode(StrEnum):
    """Values of ``mode`` that kube-proxy has; empty is iptables on Linux."""

    IPTABLES = "iptables"
    IPVS = "ipvs"
    NFTABLES = "nftables"
    KERNELSPACE = "kernelspace"


LOCAL_MODES = ("ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix")


class Field(NamedTuple):
    """A field: what msgspec converts it to (or ``Duration``), and why it does not apply; empty: it does."""

    type: Any
    why_not: str = ""


LOCAL = "a pod of this node is known by its interface"
_AT_ONCE = "changes are written at once"
_EBPF = "the datapath is eBPF; there are no rules of that kind"
_FIXED = "how long an idle connection is remembered is fixed in the datapath"
_LOG = "the log goes to stderr line by line"
_MASQUERADE = "there is no such choice"
_WINDOWS = "it is for Windows"

FIELDS: dict[str, Field] = {
    "apiVersion": Field(str),
    "kind": Field(str),
    # What applies
    "bindAddress": Field(str),
    "bindAddressHardFail": Field(bool),
    "clientConnection.kubeconfig": Field(str),
    "clusterCIDR": Field(str),
    "conntrack.maxPerCore": Field(int),
    "conntrack.min": Field(int),
    "conntrack.tcpBeLiberal": Field(bool),  # sequence numbers are never judged
    "detectLocalMode": Field(str),
    "healthzBindAddress": Field(str),
    "hostnameOverride": Field(str),
    "iptables.syncPeriod": Field(Duration),
    "ipvs.syncPeriod": Field(Duration),
    "nftables.syncPeriod": Field(Duration),
    "logging.format": Field(str),
    "logging.verbosity": Field(int),
    "metricsBindAddress": Field(str),
    "mode": Field(str, _EBPF),  # still decides which syncPeriod holds, and what nodePortAddresses is when unset
    "nodePortAddresses": Field(list[str]),
    "oomScoreAdj": Field(int),
    # What does not
    "clientConnection.acceptContentTypes": Field(str, "objects are read as JSON"),
    "clientConnection.burst": Field(int, "requests are a few watches and Events, which have limits of their own"),
    "clientConnection.contentType": Field(str, "objects are read and written as JSON"),
    "clientConnection.qps": Field(float, "requests are a few watches and Events, which have limits of their own"),
    "configSyncPeriod": Field(Duration, "objects are watched, and listed anew only when a watch was lost"),
    "conntrack.tcpCloseWaitTimeout": Field(Duration, _FIXED),
    "conntrack.tcpEstablishedTimeout": Field(Duration, _FIXED),
    "conntrack.udpStreamTimeout": Field(Duration, _FIXED),
    "conntrack.udpTimeout": Field(Duration, _FIXED),
    "detectLocal.bridgeInterface": Field(str, LOCAL),
    "detectLocal.interfaceNamePrefix": Field(str, LOCAL),
    "enableProfiling": Field(bool, "there is no pprof"),
    "featureGates": Field(dict[str, bool], "gates are for kube-proxy's own code"),
    "iptables.localhostNodePorts": Field(bool, "NodePorts are not served on loopback addresses"),
    "iptables.masqueradeAll": Field(bool, _MASQUERADE),
    "iptables.masqueradeBit": Field(int, "no packet is marked"),
    "iptables.minSyncPeriod": Field(Duration, _AT_ONCE),
    "iptables.snatNodeInternalIP": Field(bool, _MASQUERADE),
    "ipvs.excludeCIDRs": Field(list[str], _EBPF),
    "ipvs.minSyncPeriod": Field(Duration, _AT_ONCE),
    "ipvs.scheduler": Field(str, "a backend is chosen at random for each connection"),
    "ipvs.strictARP": Field(bool, "no address of a service is put on an interface"),
    "ipvs.tcpFinTimeout": Field(Duration, _FIXED),
    "ipvs.tcpTimeout": Field(Duration, _FIXED),
    "ipvs.udpTimeout": Field(Duration, _FIXED),
    "logging.flushFrequency": Field(int | str, _LOG),
    "logging.options": Field(dict[str, Any], _LOG),
    "logging.vmodule": Field(list[dict[str, Any]], "there is one level for the whole agent"),
    "nftables.masqueradeAll": Field(bool, _MASQUERADE),
    "nftables.masqueradeBit": Field(int, "no packet is marked"),
    "nftables.minSyncPeriod": Field(Duration, _AT_ONCE),
    "portRange": Field(str, "kube-proxy does not use it any more either"),
    "showHiddenMetricsForVersion": Field(str, "no metric is hidden"),
    "windowsRunAsService": Field(bool, _WINDOWS),
    "winkernel.enableDSR": Field(bool, _WINDOWS),
    "winkernel.forwardHealthCheckVip": Field(bool, _WINDOWS),
    "winkernel.networkName": Field(str, _WINDOWS),
    "winkernel.rootHnsEndpointName": Field(str, _WINDOWS),
    "winkernel.sourceVip": Field(str, _WINDOWS),
}

SECTIONS = {path.rpartition(".")[0] for path in FIELDS if "." in path}
