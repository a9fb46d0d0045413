"""Reaching an API server: credentials, certificates, several servers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ebpfnet.exits import BadInput
from ebpfnet.watch.kube import connection
from tests.apiserver.server import ApiServer
from tests.apiserver.tls import Certificates, write_kubeconfig
from tests.unit.watch.kube.conftest import Follow
from tests.unit.watch.kube.objects import service, watching


def test_a_token_is_read_again_when_it_is_refused(server: ApiServer, follow: Follow, tmp_path: Path):
    server.access.token = "first"
    write_kubeconfig(tmp_path / "kubeconfig", server.url, token="first")
    with follow("services") as told:
        told.wait(lambda told: told.synced)
        server.log.wait(watching("services"))
        server.access.token = "second"
        write_kubeconfig(tmp_path / "kubeconfig", server.url, token="second")
        server.drop_watches()
        server.store.put(service("web"))
        told.wait(lambda told: "web" in told.names())
        assert told.problems == {}


def test_expired_credentials_are_named(server: ApiServer, follow: Follow, tmp_path: Path):
    server.access.token = "right"
    write_kubeconfig(tmp_path / "kubeconfig", server.url, token="very-secret")
    with follow("services") as told:
        told.wait(lambda told: told.problems)
        assert "401" in told.said()
        assert "credentials" in told.said()
        assert "very-secret" not in told.said()


def test_tls_with_a_client_certificate(follow: Follow, tmp_path: Path):
    certificates = Certificates(tmp_path)
    with ApiServer(certificates=certificates) as secure:
        secure.access.token = "none has this"
        secure.store.put(service("web"))
        write_kubeconfig(tmp_path / "kubeconfig", secure.url, certificates, client=True)
        with follow("services") as told:
            told.wait(lambda told: told.synced)
            assert told.names() == {"web"}


def test_a_certificate_of_nobody_we_know_is_named(follow: Follow, tmp_path: Path):
    (tmp_path / "ours").mkdir()
    (tmp_path / "theirs").mkdir()
    with ApiServer(certificates=Certificates(tmp_path / "theirs")) as secure:
        write_kubeconfig(tmp_path / "kubeconfig", secure.url, Certificates(tmp_path / "ours"))
        with follow("services") as told:
            told.wait(lambda told: "certificate" in told.said())


def test_servers_are_tried_in_turn(server: ApiServer, follow: Follow):
    server.store.put(service("web"))
    with follow("services", urls=("http://127.0.0.1:1", server.url)) as told:
        told.wait(lambda told: told.synced)
        assert told.names() == {"web"}
        assert told.problems == {}


@pytest.mark.parametrize("text", ["", "kind: [", json.dumps({"kind": "Config"})])
def test_a_kubeconfig_that_can_t_be_used_is_named(tmp_path: Path, text: str):
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    with pytest.raises(BadInput, match="kubeconfig"):
        connection.load(path)
    with pytest.raises(BadInput, match="nowhere"):
        connection.load(tmp_path / "nowhere")


def test_an_exec_plugin_s_credentials_are_asked_for_again_when_they_are_refused(
    server: ApiServer, follow: Follow, tmp_path: Path
):
    server.access.token = "first"
    (tmp_path / "token").write_text("first")
    plugin = tmp_path / "plugin"
    credential = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": "%s"}}
    plugin.write_text(f"#!/bin/sh\nprintf '{json.dumps(credential)}' \"$(cat {tmp_path}/token)\"\n")
    plugin.chmod(0o700)
    write_kubeconfig(tmp_path / "kubeconfig", server.url)
    config = json.loads((tmp_path / "kubeconfig").read_text())
    how = {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin), "interactiveMode": "Never"}
    config["users"][0]["user"] = {"exec": how}
    (tmp_path / "kubeconfig").write_text(json.dumps(config))
    with follow("services") as told:
        told.wait(lambda told: told.synced)
        server.log.wait(watching("services"))
        (tmp_path / "token").write_text("second")
        server.access.token = "second"
        server.drop_watches()
        server.store.put(service("web"))
        told.wait(lambda told: "web" in told.names())
        assert told.problems == {}


def test_a_service_account_s_token_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    certificates = Certificates(tmp_path)
    (tmp_path / "token").write_text("first")
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setattr("kubernetes.config.incluster_config.SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr("kubernetes.config.incluster_config.SERVICE_CERT_FILENAME", str(certificates.certificate("ca")))
    with ApiServer(certificates=certificates) as secure:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(secure.port))
        api = connection.Api(lambda: connection.load(None))
        for token in ("first", "second"):
            (tmp_path / "token").write_text(token)
            secure.access.token = token
            with api.get("/api/v1/services", {}, 5.0) as response:
                assert response.status == 200


def test_a_server_that_is_no_api_server_is_named(tmp_path: Path, follow: Follow, server: ApiServer):
    write_kubeconfig(tmp_path / "kubeconfig", f"{server.url}/elsewhere")
    with follow("services") as told:
        told.wait(lambda told: told.problems)
        assert "404" in told.said()
        assert "is this a Kubernetes API server" in told.said()
