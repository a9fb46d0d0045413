"""Certificates that ``openssl`` makes for a test, and the kubeconfig that goes with a server."""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
from pathlib import Path
from typing import Any

KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
NAME = "ebpfnet-test"


class Certificates:
    """An authority of its own in a folder, and a server's and a client's certificate from it. Raises on no openssl."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._openssl("ca", "/CN=test-ca", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
        self.issue("server", "/CN=kube-apiserver", "subjectAltName=IP:127.0.0.1,DNS:localhost")
        self.issue("client", "/CN=system:serviceaccount:kube-system:ebpfnet", "extendedKeyUsage=clientAuth")

    def _openssl(self, name: str, subject: str, *more: str) -> None:
        files = ("-keyout", str(self.key(name)), "-out", str(self.certificate(name)))
        command = ["openssl", "req", "-x509", *KEY, "-days", "2", "-subj", subject, *files, *more]
        subprocess.run(command, check=True, capture_output=True)

    def issue(self, name: str, subject: str, extension: str) -> None:
        """Write ``name.crt`` and ``name.key``; again, to rotate."""
        authority = ("-CA", str(self.certificate("ca")), "-CAkey", str(self.key("ca")))
        self._openssl(name, subject, "-addext", "basicConstraints=critical,CA:FALSE", "-addext", extension, *authority)

    def certificate(self, name: str) -> Path:
        """Return where a certificate is."""
        return self.folder / f"{name}.crt"

    def key(self, name: str) -> Path:
        """Return where a key is."""
        return self.folder / f"{name}.key"

    def context(self) -> ssl.SSLContext:
        """Return the server's side, which takes a client certificate when there is one."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate("server"), self.key("server"))
        context.load_verify_locations(self.certificate("ca"))
        context.verify_mode = ssl.CERT_OPTIONAL
        return context


def _data(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def write_kubeconfig(
    path: Path, url: str, certificates: Certificates | None = None, *, token: str | None = None, client: bool = False
) -> None:
    """Write a kubeconfig for a server; ``client`` puts the client certificate in, beside a token if there is one."""
    cluster: dict[str, Any] = {"server": url}
    user: dict[str, Any] = {"token": token} if token else {}
    if certificates:
        cluster["certificate-authority-data"] = _data(certificates.certificate("ca"))
        if client:
            user["client-certificate-data"] = _data(certificates.certificate("client"))
            user["client-key-data"] = _data(certificates.key("client"))
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": NAME, "cluster": cluster}],
        "users": [{"name": NAME, "user": user}],
        "contexts": [{"name": NAME, "context": {"cluster": NAME, "user": NAME}}],
        "current-context": NAME,
    }
    path.write_text(json.dumps(config, indent=2))  # JSON is YAML
