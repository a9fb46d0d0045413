"""Who may do what, the record of who did, events that are written, and TLS."""

from __future__ import annotations

import json
import ssl
from pathlib import Path

import pytest

from tests import clusters
from tests.apiserver.client import Client
from tests.apiserver.server import ApiServer
from tests.apiserver.store import Store
from tests.apiserver.tls import Certificates, write_kubeconfig

SERVICES, PODS = "/api/v1/services", "/api/v1/pods"
EVENTS = "/apis/events.k8s.io/v1/namespaces/default/events"


def test_a_token_that_changes(server: ApiServer):
    server.access.token = "one"
    client = Client(server.url, token="one")
    assert client.ask(PODS).code == 200
    server.access.token = "two"
    answer = client.ask(PODS)
    assert (answer.code, answer.json()["reason"]) == (401, "Unauthorized")
    assert Client(server.url, token="two").ask(PODS).code == 200


def test_not_allowed(client: Client, server: ApiServer):
    server.access.allowed = {("list", "pods"), ("watch", "services")}
    assert client.ask(PODS).code == 200
    status = client.ask(SERVICES).json()
    assert (status["code"], status["reason"], status["details"]) == (403, "Forbidden", {"kind": "services"})
    assert status["message"] == (
        'services is forbidden: User "system:serviceaccount:kube-system:ebpfnet" cannot list resource "services" '
        'in API group "" at the cluster scope'
    )
    message = client.ask(EVENTS, "POST", {"metadata": {"name": "e"}}).json()["message"]
    assert 'in API group "events.k8s.io" in the namespace "default"' in message


def test_every_request_is_recorded(client: Client, server: ApiServer):
    client.ask(PODS, limit=1)
    client.watch("/api/v1/namespaces/kube-system/services").close()
    client.ask("/api/v1/nodes/n0")
    client.ask(EVENTS, "POST", {"metadata": {"name": "e"}})
    client.ask(f"{EVENTS}/e", "PATCH", {})
    client.ask("/version")
    assert server.log.seen() == {
        ("list", "", "pods", ""),
        ("watch", "", "services", "kube-system"),
        ("get", "", "nodes", ""),
        ("create", "events.k8s.io", "events", "default"),
        ("patch", "events.k8s.io", "events", "default"),
        ("get", "", "/version", ""),
    }
    assert server.log.requests[0].path == f"{PODS}?limit=1"


def test_events_are_written_and_patched(client: Client, store: Store):
    event = {"metadata": {"name": "e"}, "reason": "Refused", "note": "no", "series": {"count": 2}}
    assert client.ask(EVENTS, "POST", event).code == 201
    assert client.ask(EVENTS, "POST", event).code == 409
    answer = client.ask(f"{EVENTS}/e", "PATCH", {"series": {"count": 3}, "note": None})
    assert answer.json()["series"] == {"count": 3}
    (found,) = store.objects("Event")
    assert (found["reason"], "note" in found, found["metadata"]["namespace"]) == ("Refused", False, "default")
    assert client.ask(f"{EVENTS}/other", "PATCH", {}).code == 404


def test_version(client: Client):
    assert client.ask("/version").json()["major"] == "1"


def test_a_put_object_keeps_its_uid(store: Store):
    first = store.get("Pod", "default", "p0")
    store.put(clusters.pod(0, 2))
    second = store.get("Pod", "default", "p0")
    assert first
    assert second
    assert first["metadata"]["uid"] == second["metadata"]["uid"]
    assert second["spec"]["nodeName"] == "n2"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


def test_tls(certificates: Certificates, store: Store):
    context = ssl.create_default_context(cafile=str(certificates.certificate("ca")))
    with ApiServer(store, certificates=certificates) as server:
        server.access.token = "secret"
        assert Client(server.url, context=context).ask(PODS).code == 401
        assert Client(server.url, context=context, token="secret").ask(PODS).code == 200
        with pytest.raises(ssl.SSLCertVerificationError):
            Client(server.url, context=ssl.create_default_context()).ask(PODS)
        context.load_cert_chain(certificates.certificate("client"), certificates.key("client"))
        client = Client(server.url, context=context)
        with client.watch(PODS, resourceVersion=store.version) as watch:
            store.delete("Pod", "default", "p0")
            assert watch.told(1) == ["DELETED p0"]


def test_kubeconfig(certificates: Certificates, tmp_path: Path):
    path = tmp_path / "kubeconfig"
    write_kubeconfig(path, "https://127.0.0.1:1", certificates, token="secret", client=True)
    config = json.loads(path.read_text())
    assert config["clusters"][0]["cluster"]["server"] == "https://127.0.0.1:1"
    assert set(config["users"][0]["user"]) == {"token", "client-certificate-data", "client-key-data"}
