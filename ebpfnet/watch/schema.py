"""The fields of Kubernetes objects that we use, typed for msgspec.

Field names and defaults are the API's (``v1``, ``discovery.k8s.io/v1``, ``networking.k8s.io/v1``); anything not named
here is skipped unread. None and an empty list mean the same, and every accessor below says so once.
"""

from __future__ import annotations

from typing import Any

import msgspec

Text = str | None
Number = int | None
Flag = bool | None


class Struct(msgspec.Struct, rename="camel", gc=False, omit_defaults=True):
    """camelCase on the wire, no garbage-collector tracking: there are millions of them and no cycles."""


class Meta(Struct):
    """``ObjectMeta``."""

    name: Text = None
    namespace: Text = None
    labels: dict[str, str] | None = None
    creation_timestamp: Any = None


class NodeMeta(Meta):
    """``ObjectMeta`` of a Node."""

    deletion_timestamp: Any = None


class AnnotatedMeta(Meta):
    """``ObjectMeta`` with annotations: all are read, so that one of ours that means nothing is named."""

    annotations: dict[str, Any] | None = None


class Taint(Struct):
    """``Taint``."""

    key: Text = None


class NodeAddress(Struct):
    """``NodeAddress``."""

    type: str
    address: str


class NodeStatus(Struct):
    """``NodeStatus``."""

    addresses: list[NodeAddress] | None = None


class NodeSpec(Struct):
    """``NodeSpec``."""

    pod_cidr: Text = msgspec.field(default=None, name="podCIDR")
    pod_cidrs: list[str] | None = msgspec.field(default=None, name="podCIDRs")
    taints: list[Taint] | None = None


class NodeObject(Struct):
    """``v1 Node``."""

    metadata: NodeMeta
    spec: NodeSpec | None = None
    status: NodeStatus | None = None


class NamespaceObject(Struct):
    """``v1 Namespace``."""

    metadata: Meta


class ContainerPort(Struct):
    """``ContainerPort``."""

    container_port: int
    name: Text = None
    protocol: Text = None


class Container(Struct):
    """``Container``."""

    ports: list[ContainerPort] | None = None


class InitContainer(Container):
    """``Container`` that comes before the others; one that is restarted ``Always`` stays beside them (KEP-753)."""

    restart_policy: Text = None


class PeerSpec(Struct):
    """The least of ``PodSpec``."""

    host_network: Flag = None
    containers: list[Container] | None = None
    init_containers: list[InitContainer] | None = None


class PodSpec(PeerSpec):
    """``PodSpec``."""

    node_name: Text = None


class PodIP(Struct):
    """``PodIP``."""

    ip: Text = None


class PodStatus(Struct):
    """``PodStatus``."""

    phase: Text = None
    pod_ip: Text = msgspec.field(default=None, name="podIP")
    pod_ips: list[PodIP] | None = msgspec.field(default=None, name="podIPs")


class PodObject(Struct):
    """``v1 Pod``."""

    metadata: Meta
    spec: PodSpec | None = None
    status: PodStatus | None = None


class PeerMeta(Struct):
    """``ObjectMeta`` of a pod, with what tells its version."""

    name: str = ""
    namespace: str = ""
    resource_version: str = ""
    labels: dict[str, str] | None = None


class PeerObject(Struct):
    """``v1 Pod``, as far as policies see one."""

    metadata: PeerMeta
    spec: PeerSpec | None = None
    status: PodStatus | None = None


class ServicePortObject(Struct):
    """``ServicePort``."""

    port: int
    name: Text = None
    protocol: Text = None
    node_port: Number = None


class ClientIPConfig(Struct):
    """``ClientIPConfig``."""

    timeout_seconds: Number = None


class SessionAffinityConfig(Struct):
    """``SessionAffinityConfig``."""

    client_ip: ClientIPConfig | None = msgspec.field(default=None, name="clientIP")


class ServiceSpec(Struct):
    """``ServiceSpec``."""

    type: Text = None
    cluster_ip: Text = msgspec.field(default=None, name="clusterIP")
    cluster_ips: list[str] | None = msgspec.field(default=None, name="clusterIPs")
    external_ips: list[str] | None = msgspec.field(default=None, name="externalIPs")
    session_affinity: Text = None
    session_affinity_config: SessionAffinityConfig | None = None
    internal_traffic_policy: Text = None
    external_traffic_policy: Text = None
    load_balancer_source_ranges: list[str] | None = None
    health_check_node_port: Number = None
    ports: list[ServicePortObject] | None = None


class LoadBalancerIngress(Struct):
    """``LoadBalancerIngress``."""

    ip: Text = None
    ip_mode: Text = None


class LoadBalancerStatus(Struct):
    """``LoadBalancerStatus``."""

    ingress: list[LoadBalancerIngress] | None = None


class ServiceStatus(Struct):
    """``ServiceStatus``."""

    load_balancer: LoadBalancerStatus | None = None


class ServiceObject(Struct):
    """``v1 Service``."""

    metadata: AnnotatedMeta
    spec: ServiceSpec | None = None
    status: ServiceStatus | None = None


class ServiceCIDRSpec(Struct):
    """``ServiceCIDRSpec``."""

    cidrs: list[str] | None = None


class ServiceCIDRObject(Struct):
    """``networking.k8s.io/v1 ServiceCIDR``."""

    metadata: Meta
    spec: ServiceCIDRSpec | None = None


class EndpointConditions(Struct):
    """``EndpointConditions``."""

    ready: Flag = None
    serving: Flag = None
    terminating: Flag = None


class Meant(Struct):
    """``ForZone`` or ``ForNode``."""

    name: str


class EndpointHints(Struct):
    """``EndpointHints``."""

    for_zones: list[Meant] | None = None
    for_nodes: list[Meant] | None = None


class Endpoint(Struct):
    """``Endpoint``."""

    addresses: list[str]
    conditions: EndpointConditions | None = None
    node_name: Text = None
    hints: EndpointHints | None = None


class EndpointPort(Struct):
    """``EndpointPort``."""

    port: Number = None
    name: Text = None
    protocol: Text = None


class EndpointSliceObject(Struct):
    """``discovery.k8s.io/v1 EndpointSlice``."""

    metadata: AnnotatedMeta
    address_type: str
    endpoints: list[Endpoint] | None = None
    ports: list[EndpointPort] | None = None
