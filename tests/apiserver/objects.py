"""The objects of a large cluster, as a real server holds them: with owners, managed fields, conditions and defaults."""

from __future__ import annotations

from tests.apiserver.template import WHEN, Template, fields, managed, metadata, owner

TRIGGER = "endpoints.kubernetes.io/last-change-trigger-time"
MANAGED_BY, SERVICE_NAME = "endpointslice.kubernetes.io/managed-by", "kubernetes.io/service-name"
READY = {"ready": True, "serving": True, "terminating": False}

NAMESPACE = Template(
    {
        "metadata": metadata(namespaced=False, labels={"kubernetes.io/metadata.name": "@name@", "team": "@team@"}),
        "spec": {"finalizers": ["kubernetes"]},
        "status": {"phase": "Active"},
    },
    "rv",
)
SERVICE = Template(
    {
        "metadata": metadata(
            labels={"app": "@name@", "app.kubernetes.io/managed-by": "Helm"},
            annotations={"meta.helm.sh/release-name": "@name@", "meta.helm.sh/release-namespace": "@namespace@"},
            managedFields=[
                managed(
                    "helm",
                    {
                        "f:metadata": {"f:annotations": fields(".", "meta.helm.sh/release-name")},
                        "f:spec": {
                            **fields("internalTrafficPolicy", "selector", "sessionAffinity", "type"),
                            "f:ports": {
                                ".": {},
                                'k:{"port":80,"protocol":"TCP"}': fields("name", "port", "targetPort"),
                            },
                        },
                    },
                )
            ],
        ),
        "spec": {
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}],
            "selector": {"app": "@name@"},
            "clusterIP": "@ip@",
            "clusterIPs": ["@ip@"],
            "type": "ClusterIP",
            "sessionAffinity": "None",
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster",
        },
        "status": {"loadBalancer": {}},
    },
    "rv",
)
SLICE = Template(
    {
        "metadata": metadata(
            generateName="@service@-",
            generation=1,
            labels={
                "app": "@service@",
                MANAGED_BY: "endpointslice-controller.k8s.io",
                SERVICE_NAME: "@service@",
            },
            annotations={TRIGGER: "@trigger@"},
            ownerReferences=owner("Service", "v1", "@service@", "@owner@"),
            managedFields=[
                managed(
                    "kube-controller-manager",
                    {
                        **fields("addressType", "endpoints", "ports"),
                        "f:metadata": {
                            "f:annotations": fields(".", TRIGGER),
                            "f:generateName": {},
                            "f:labels": fields(".", "app", MANAGED_BY, SERVICE_NAME),
                            "f:ownerReferences": {".": {}, 'k:{"uid":"@owner@"}': {}},
                        },
                    },
                )
            ],
        ),
        "addressType": "IPv4",
        "endpoints": ["@@endpoints@@"],
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    },
    "rv",
    "trigger",
    "endpoints",
)
ENDPOINT = Template(
    {
        "addresses": ["@ip@"],
        "conditions": READY,
        "targetRef": {"kind": "Pod", "namespace": "@namespace@", "name": "@name@", "uid": "@uid@"},
        "nodeName": "@node@",
        "zone": "@zone@",
    },
)
NODE = Template(
    {
        "metadata": metadata(
            namespaced=False,
            labels={
                "beta.kubernetes.io/arch": "amd64",
                "kubernetes.io/hostname": "@name@",
                "kubernetes.io/os": "linux",
                "topology.kubernetes.io/region": "eu-central-1",
                "topology.kubernetes.io/zone": "@zone@",
            },
            annotations={"node.alpha.kubernetes.io/ttl": "0"},
        ),
        "spec": {"podCIDR": "@cidr@", "podCIDRs": ["@cidr@"], "providerID": "test:///@name@"},
        "status": {
            "capacity": {"cpu": "32", "memory": "131072000Ki", "pods": "250"},
            "allocatable": {"cpu": "32", "memory": "130000000Ki", "pods": "250"},
            "conditions": [
                {
                    "type": kind,
                    "status": "True" if kind == "Ready" else "False",
                    "lastHeartbeatTime": WHEN,
                    "lastTransitionTime": WHEN,
                    "reason": "Kubelet",
                    "message": f"kubelet reports {kind}",
                }
                for kind in ("MemoryPressure", "DiskPressure", "PIDPressure", "Ready")
            ],
            "addresses": [{"type": "InternalIP", "address": "@ip@"}, {"type": "Hostname", "address": "@name@"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
            "nodeInfo": {"kernelVersion": "6.12.0", "osImage": "Debian 12", "kubeletVersion": "v1.33.0"},
            "images": [
                {
                    "names": [f"registry.test/image-{index}@sha256:{index:064x}".replace("@", "-")],
                    "sizeBytes": 123456789,
                }
                for index in range(20)
            ],
        },
    },
    "rv",
)
