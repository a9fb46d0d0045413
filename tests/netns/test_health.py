"""A service's load balancer asks every node whether it has endpoints, and hears it from where NodePorts are served."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator

import pytest

from ebpfnet.lab.cluster import Inside, Lab
from tests.netns.conftest import Wait

PORT, OTHER_PORT = 32100, 32101
FIELD = "spec.healthCheckNodePort"

MANIFEST = """
apiVersion: v1
kind: Service
metadata: {{name: balanced, namespace: default, creationTimestamp: "2026-01-01T00:00:00Z"}}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.78
  clusterIPs: [10.96.0.78]
  ipFamilies: [IPv4]
  externalTrafficPolicy: Local
  healthCheckNodePort: {port}
  ports: [{{name: http, port: 80, targetPort: 80, nodePort: 30080, protocol: TCP}}]
status: {{loadBalancer: {{ingress: [{{ip: 203.0.113.7}}]}}}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: balanced-1, namespace: default, labels: {{kubernetes.io/service-name: balanced}}}}
addressType: IPv4
ports: [{{name: http, port: 80, protocol: TCP}}]
endpoints:
- {{addresses: [10.244.1.11], nodeName: node-a, conditions: {{ready: {ready}, serving: true, terminating: false}}}}
"""


@pytest.fixture
def own(lab_name: str) -> Iterator[Lab]:
    """Return a lab of the test's own."""
    with Lab.up(lab_name) as lab:
        yield lab


def say(lab: Lab, *, port: int = PORT, ready: bool = True) -> None:
    text = MANIFEST.format(port=port, ready=str(ready).lower())
    (lab.manifests / "balanced.yaml").write_text(text)


def answer(node: Inside, port: int = PORT) -> tuple[int, int] | None:
    """Return status and number of endpoints; None: nobody listens."""
    done = node.exec("curl", "-s", "-w", "\n%{http_code}", f"http://{node.addresses[0]}:{port}/")
    if done.returncode:
        return None
    body, _, status = done.stdout.rpartition("\n")
    return int(status), json.loads(body)["localEndpoints"]


def problems(lab: Lab, node: str) -> list[str]:
    return [each["reason"] for each in (lab.agent_status(node) or {})["problems"] if each["field"] == FIELD]


def test_every_node_says_what_it_has(own: Lab, wait: Wait):
    near, far = own.node("node-a"), own.node("node-b")
    say(own)
    wait(lambda: answer(near) == (200, 1) and answer(far) == (503, 0))
    say(own, ready=False)
    wait(lambda: answer(near) == (503, 0))
    say(own, port=OTHER_PORT)
    wait(lambda: answer(near, OTHER_PORT) == (200, 1) and answer(near) is None)
    (own.manifests / "balanced.yaml").unlink()
    wait(lambda: answer(near, OTHER_PORT) is None)


def test_a_port_that_is_somebody_elses_is_named_and_taken_when_it_is_free(own: Lab, wait: Wait):
    node = own.node("node-a")
    with node.socket(socket.AF_INET, socket.SOCK_STREAM) as somebody:
        somebody.bind(("", PORT))
        somebody.listen()
        say(own)
        wait(lambda: problems(own, "node-a"))
        assert "Address already in use" in problems(own, "node-a")[0]
    wait(lambda: answer(node) == (200, 1) and not problems(own, "node-a"))


def test_the_doctor_finds_a_node_of_the_lab_fine_until_its_agent_is_dead(own: Lab):
    node = own.node("node-a")
    places = ("--pins", str(own.pins("node-a")), "--run", str(own.places.run("node-a")))

    def said() -> tuple[int, set[str]]:
        done = node.exec(sys.executable, "-m", "ebpfnet", "doctor", "-q", "-o", "json", *places)
        return done.returncode, {each["check"] for each in json.loads(done.stdout)["findings"]} - {"kube-proxy"}

    assert said() == (0, set())
    own.kill_agent("node-a")
    code, checks = said()
    assert (code, checks) == (2, {"agent"})
