"""The resources that are served, and the paths they are found under."""

from __future__ import annotations

from typing import NamedTuple


class Resource(NamedTuple):
    """A resource as discovery would name it.

    ``blank`` is what a real server's BOOKMARK carries after ``metadata``: the fields of an empty Go struct, with null
    where a list has no ``omitempty``. A custom resource has nothing there.
    """

    group: str
    version: str
    name: str
    kind: str
    namespaced: bool
    blank: bytes = b""

    @property
    def api_version(self) -> str:
        """``v1`` or ``group/version``."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def path(self) -> str:
        """Where the whole cluster's objects are listed."""
        return f"/apis/{self.api_version}/{self.name}" if self.group else f"/api/{self.version}/{self.name}"


NODE_INFO = b",".join(
    b'"%s":""' % field
    for field in (
        b"machineID",
        b"systemUUID",
        b"bootID",
        b"kernelVersion",
        b"osImage",
        b"containerRuntimeVersion",
        b"kubeletVersion",
        b"kubeProxyVersion",
        b"operatingSystem",
        b"architecture",
    )
)
NODE_STATUS = b'"spec":{},"status":{"daemonEndpoints":{"kubeletEndpoint":{"Port":0}},"nodeInfo":{%b}}' % NODE_INFO
POLICIES = "clusternetworkpolicies"

RESOURCES = (
    Resource("", "v1", "services", "Service", True, b'"spec":{},"status":{"loadBalancer":{}}'),
    Resource("", "v1", "pods", "Pod", True, b'"spec":{"containers":null},"status":{}'),
    Resource("", "v1", "namespaces", "Namespace", False, b'"spec":{},"status":{}'),
    Resource("", "v1", "nodes", "Node", False, NODE_STATUS),
    Resource(
        "discovery.k8s.io",
        "v1",
        "endpointslices",
        "EndpointSlice",
        True,
        b'"addressType":"","endpoints":null,"ports":null',
    ),
    Resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", True, b'"spec":{"podSelector":{}}'),
    Resource("networking.k8s.io", "v1", "servicecidrs", "ServiceCIDR", False, b'"spec":{},"status":{}'),
    Resource("policy.networking.k8s.io", "v1alpha2", POLICIES, "ClusterNetworkPolicy", False),
    Resource("events.k8s.io", "v1", "events", "Event", True, b'"eventTime":null'),
)
OPTIONAL = frozenset({POLICIES})
BY_KIND = {resource.kind: resource for resource in RESOURCES}
BY_NAME = {resource.name: resource for resource in RESOURCES}


class Target(NamedTuple):
    """What a path asks for; ``resource`` may be one that is not served."""

    group: str
    version: str
    resource: str
    namespace: str
    name: str

    def served(self) -> Resource | None:
        """Return the resource, or None when there is none of this group, version and name."""
        found = BY_NAME.get(self.resource)
        return found if found and (found.group, found.version) == (self.group, self.version) else None


def parse_path(path: str) -> Target | None:
    """Return what a path names; None for one that is not of the API (``/version``, ``/healthz``)."""
    parts = path.strip("/").split("/")
    match parts:
        case ["api", version, *rest]:
            group = ""
        case ["apis", group, version, *rest]:
            pass
        case _:
            return None
    namespace = ""
    if len(rest) > 2 and rest[0] == "namespaces":
        _, namespace, *rest = rest
    match rest:
        case [resource]:
            return Target(group, version, resource, namespace, "")
        case [resource, name]:
            return Target(group, version, resource, namespace, name)
    return None
