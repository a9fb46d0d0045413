"""A pod of a Deployment as the API server holds it, about 6 kB of JSON."""

from __future__ import annotations

from typing import Any

from tests.apiserver.template import WHEN, Template, fields, managed, metadata, owner

HASH = "7d4b9c6f5d"
IMAGE = "registry.test/team/application:2026.1.0"
DIGEST = "sha256:0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0"
TOKEN_MOUNT = {
    "name": "kube-api-access-x7k2p",
    "readOnly": True,
    "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
}
PORTS = [
    {"name": "http", "containerPort": 8080, "protocol": "TCP"},
    {"name": "metrics", "containerPort": 9090, "protocol": "TCP"},
]
CONDITIONS = ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")


def _probe(path: str) -> dict[str, Any]:
    times = {"timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3}
    return {"httpGet": {"path": path, "port": "http", "scheme": "HTTP"}, **times}


def _container(name: str, ports: list[dict[str, Any]]) -> dict[str, Any]:
    environment = [{"name": f"SETTING_{index}", "value": f"value-of-setting-{index}"} for index in range(10)]
    address = {"name": "POD_IP", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.podIP"}}}
    hardened = {"capabilities": {"drop": ["ALL"]}, "runAsNonRoot": True, "readOnlyRootFilesystem": True}
    return {
        "name": name,
        "image": IMAGE,
        "args": [f"--name={name}", "--log-level=info", "--listen=:8080"],
        "ports": ports,
        "env": [*environment, address],
        "resources": {"limits": {"memory": "512Mi"}, "requests": {"cpu": "100m", "memory": "256Mi"}},
        "volumeMounts": [{"name": "config", "mountPath": "/etc/application"}, TOKEN_MOUNT],
        "livenessProbe": _probe("/healthz"),
        "readinessProbe": _probe("/readyz"),
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "imagePullPolicy": "IfNotPresent",
        "securityContext": hardened,
    }


def _status(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "state": {"running": {"startedAt": WHEN}},
        "lastState": {},
        "ready": True,
        "restartCount": 0,
        "image": IMAGE,
        "imageID": f"{IMAGE}-{DIGEST}",
        "containerID": "containerd://@uid@-0123456789abcdef",
        "started": True,
    }


def _managed_spec() -> dict[str, Any]:
    container = fields("args", "env", "image", "imagePullPolicy", "livenessProbe", "name", "ports", "readinessProbe")
    more = fields("resources", "securityContext", "terminationMessagePath", "terminationMessagePolicy", "volumeMounts")
    spec = fields("dnsPolicy", "enableServiceLinks", "restartPolicy", "schedulerName", "securityContext", "volumes")
    return {
        "f:metadata": {
            "f:generateName": {},
            "f:labels": fields(".", "app", "pod-template-hash", "team", "tier"),
            "f:ownerReferences": {".": {}, 'k:{"uid":"@owner@"}': {}},
        },
        "f:spec": {"f:containers": {'k:{"name":"main"}': container | more}, **spec},
    }


def _managed_status() -> dict[str, Any]:
    each = fields(".", "lastProbeTime", "lastTransitionTime", "status", "type")
    conditions = {f'k:{{"type":"{kind}"}}': each for kind in CONDITIONS}
    rest = fields("containerStatuses", "hostIP", "hostIPs", "phase", "podIP", "podIPs", "startTime")
    return {"f:status": {"f:conditions": conditions, **rest}}


def _toleration(key: str) -> dict[str, Any]:
    return {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}


POD = Template(
    {
        "metadata": metadata(
            generateName=f"@service@-{HASH}-",
            labels={"app": "@service@", "pod-template-hash": HASH, "team": "@team@", "tier": "@tier@"},
            annotations={"checksum/config": DIGEST, "prometheus.io/port": "9090", "prometheus.io/scrape": "true"},
            ownerReferences=owner("ReplicaSet", "apps/v1", f"@service@-{HASH}", "@owner@"),
            managedFields=[
                managed("kube-controller-manager", _managed_spec()),
                managed("kubelet", _managed_status(), "status"),
            ],
        ),
        "spec": {
            "volumes": [
                {"name": "config", "configMap": {"name": "@service@", "defaultMode": 420}},
                {
                    "name": TOKEN_MOUNT["name"],
                    "projected": {
                        "sources": [
                            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                        ],
                        "defaultMode": 420,
                    },
                },
            ],
            "containers": [
                _container("main", PORTS),
            ],
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 30,
            "dnsPolicy": "ClusterFirst",
            "serviceAccountName": "default",
            "serviceAccount": "default",
            "nodeName": "@node@",
            "securityContext": {},
            "schedulerName": "default-scheduler",
            "tolerations": [_toleration("node.kubernetes.io/not-ready"), _toleration("node.kubernetes.io/unreachable")],
            "priority": 0,
            "enableServiceLinks": True,
            "preemptionPolicy": "PreemptLowerPriority",
        },
        "status": {
            "phase": "Running",
            "conditions": [
                {"type": kind, "status": "True", "lastProbeTime": None, "lastTransitionTime": WHEN}
                for kind in CONDITIONS
            ],
            "hostIP": "@host@",
            "hostIPs": [{"ip": "@host@"}],
            "podIP": "@ip@",
            "podIPs": [{"ip": "@ip@"}],
            "startTime": WHEN,
            "containerStatuses": [_status("main")],
            "qosClass": "Burstable",
        },
    },
    "rv",
)
