"""Lines that a machine reads, and secrets that nobody does."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from ebpfnet.operate.logs import HIDDEN, handler, redact

JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJzeXN0ZW0ifQ.c2lnbmF0dXJl-_x"
SECRET = "s3cr3t-V4lue"
PEM = f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\nabc=\n-----END RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {SECRET}",
        f"authorization: bearer {SECRET}\r\nHost: x",
        f"{{'Authorization': 'Bearer {SECRET}', 'Accept': 'x'}}",
        f'{{"Authorization":"Basic {SECRET}"}}',
        f"('authorization', 'Bearer {SECRET}')",
        f"b'Authorization: Bearer {SECRET}'",
        f"Proxy-Authorization: Negotiate {SECRET}",
        f"Cookie: a={SECRET}; b={SECRET}",
        f"Authorization: Basic {SECRET}",
        f"sent Bearer {SECRET} to the server",
        f"the token is {JWT}, it says",
        f"GET https://10.0.0.1/api?watch=1&access_token={SECRET}&x=1",
        f"GET https://10.0.0.1/api?token={SECRET}",
        f"GET https://admin:{SECRET}@10.0.0.1:6443/api",
        f"users:\n- user:\n    token: {SECRET}\n    client-certificate: /x\n",
        f"client-key-data: {SECRET}",
        f'"client-key-data": "{SECRET} and more"',
        f"client_key='{SECRET}'",
        f"password={SECRET}",
        f"api_key = '{SECRET}'",
        f"id-token: {SECRET}",
        f"ran kubectl --token {SECRET} get pods",
        PEM,
        PEM.replace(" RSA", ""),
        f"cut off -----BEGIN EC PRIVATE KEY-----\n{SECRET}",
        "client: LS0tLS1CRUdJTiBSU0EgUFJJVkFURSBLRVktLS0tLQps3cr3tV4lue==",
    ],
)
def test_no_secret_gets_out(text: str):
    shown = redact(text)
    assert HIDDEN in shown
    assert SECRET not in shown
    assert "eyJ" not in shown
    assert "s3cr3t" not in shown


@pytest.mark.parametrize(
    "text",
    [
        "Service default/web: spec.ports[0].port: 0 is not a port (1 to 65535)",
        "in sync after 0.25 s",
        "GET https://10.0.0.1:6443/api/v1/services?watch=true&resourceVersion=12 401",
        "attach to veth1234 of default/token-service: no such device",
        "Secret default/bearer is not followed",
        "endpoints of kube-system/keycloak: 3",
    ],
)
def test_everything_else_stays(text: str):
    assert redact(text) == text


def test_what_stands_around_a_secret_stays():
    assert redact(f"GET /a?token={SECRET}&x=1 failed") == f"GET /a?token={HIDDEN}&x=1 failed"
    assert redact(f"token: {SECRET}\nnext: line") == f"token: {HIDDEN}\nnext: line"


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    logger = logging.getLogger("ebpfnet.test")
    logger.propagate = False
    yield logger
    logger.handlers.clear()
    logger.propagate = True


def written(log: logging.Logger, form: str | None = "json") -> io.StringIO:
    stream = io.StringIO()
    log.addHandler(handler(form, "node-a", stream))
    return stream


def test_a_line_of_json(log: logging.Logger):
    stream = written(log)
    log.warning("attach to %s", "veth1")
    line = json.loads(stream.getvalue())
    when = line.pop("time")
    assert line == {"level": "warning", "logger": "ebpfnet.test", "message": "attach to veth1", "node": "node-a"}
    assert (len(when), when[10], when[-1]) == (27, "T", "Z")


@pytest.mark.parametrize("form", ["json", "text"])
def test_an_error_comes_with_its_traceback_and_without_its_secret(log: logging.Logger, form: str):
    stream = written(log, form)
    try:
        raise ValueError(f"Authorization: Bearer {SECRET}")
    except ValueError:
        log.exception("request %s", {"token": SECRET}, stack_info=True)
    text = stream.getvalue()
    assert SECRET not in text.replace('Bearer {SECRET}"', "")
    assert "Traceback" in text
    if form == "json":
        line = json.loads(text)
        assert line["message"] == f"request {{'token': {HIDDEN}}}"
        assert line["error"].endswith(f"ValueError: Authorization: {HIDDEN}")


def test_a_message_that_does_not_fit_its_arguments_is_told():
    stream = io.StringIO()
    handler("json", "node-a", stream).handle(logging.makeLogRecord({"msg": "%d of %d", "args": ("x", 1)}))
    assert "can't be written" in json.loads(stream.getvalue())["message"]


def test_json_when_it_is_no_terminal(log: logging.Logger):
    stream = written(log, None)
    log.warning("x")
    assert json.loads(stream.getvalue())["message"] == "x"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_text_on_a_terminal(log: logging.Logger):
    stream = Terminal()
    log.addHandler(handler(None, "node-a", stream))
    log.warning("x y")
    assert stream.getvalue().split(maxsplit=1)[1] == "WARNING x y\n"
