from __future__ import annotations

import json

import pytest

from ebpfnet.lab import echo


@pytest.mark.parametrize(("host", "shown"), [("10.0.0.1", "10.0.0.1:5"), ("fd00::1", "[fd00::1]:5")])
def test_names_pod_and_client(host: str, shown: str):
    assert json.loads(echo.answer("ns/x", (host, 5), "TCP", b"hello\n")) == {
        "pod": "ns/x",
        "client": shown,
        "protocol": "TCP",
        "bytes": 6,
    }


def test_pads_on_request():
    assert len(json.loads(echo.answer("ns/x", ("10.0.0.1", 5), "UDP", b"GET /?pad=300 HTTP/1.1"))["pad"]) == 300


def test_ends_in_one_newline():
    assert echo.answer("ns/x", ("10.0.0.1", 5), "UDP", b"").count(b"\n") == 1
