"""The control path of a server that runs in a process of its own: ``POST /_test/ACTION`` with JSON, JSON back.

| action | body | does |
|---|---|---|
| ``put`` | a manifest, or a list of them | `Store.put` |
| ``delete`` | ``{"kind", "namespace", "name"}`` | `Store.delete` |
| ``get`` | the same | `Store.get` |
| ``compact``, ``bookmark`` | | `Store.compact`, `Store.bookmark` |
| ``install``, ``uninstall`` | ``{"resource"}`` | an optional resource |
| ``fault`` | ``{"fault": {"kind", …}, "resource", "verb", "times"}`` | `Faults.add` |
| ``clear`` | ``{"resource"}`` or nothing | `Faults.clear` |
| ``rbac`` | ``{"allowed": [[verb, resource], …]}``, null allows all | `Access.allowed` |
| ``token`` | ``{"token"}``, null asks for none | `Access.token` |
| ``streaming`` | ``{"on"}`` | whether ``sendInitialEvents`` is known |
| ``drop`` | ``{"resource"}`` or nothing | `ApiServer.drop_watches` |
| ``outage`` | ``{"seconds"}`` | stops, and starts again after so long |
| ``flip`` | ``{"rate", "count"}`` | `Churn.flip`; ``count`` may be left out |
| ``roll`` | ``{"rate", "service"}`` | `Churn.roll`; ``service`` may be left out |
| ``calm`` | | `Churn.stop`; returns how many changes it made |
| ``requests`` | | the requests so far, oldest first |
| ``state`` | | version, live watches, objects of each resource, changes of the churn |
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from tests.apiserver.churn import Churn
from tests.apiserver.failure import bad_request
from tests.apiserver.faults import Order

if TYPE_CHECKING:
    from tests.apiserver.server import ApiServer

CONTROL = "/_test/"
OUTAGE_DELAY_S = 0.02  # the answer to the order goes out first


def _put(api: ApiServer, body: Any) -> Any:
    return [api.store.put(manifest) for manifest in (body if isinstance(body, list) else [body])]


def _rbac(api: ApiServer, body: Any) -> None:
    allowed = body["allowed"]
    api.access.allowed = None if allowed is None else {(verb, resource) for verb, resource in allowed}


def _token(api: ApiServer, body: Any) -> None:
    api.access.token = body["token"]


def _streaming(api: ApiServer, body: Any) -> None:
    api.streaming = body["on"]


def _outage(api: ApiServer, body: Any) -> None:
    seconds = float(body["seconds"])

    def stop() -> None:
        api.stop()
        _later(seconds, api.start)

    _later(OUTAGE_DELAY_S, stop)


def _later(seconds: float, do: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, do)
    timer.daemon = True
    timer.start()


def _churn(api: ApiServer) -> Churn:
    if not api.churn:
        raise ValueError("this server has no cluster at scale")
    return api.churn


def _calm(api: ApiServer, _body: Any) -> int:
    churn = _churn(api)
    churn.stop()
    return churn.done


def _state(api: ApiServer, _body: Any) -> Any:
    store = api.store
    with api.log.changed:
        watches = dict(api.log.watches)
    with store.lock:
        objects = {name: len(table.items) for name, table in store.tables.items()}
    changes = api.churn.done if api.churn else 0
    return {"version": store.version, "watches": watches, "objects": objects, "changes": changes}


ACTIONS: dict[str, Callable[[ApiServer, Any], Any]] = {
    "put": _put,
    "delete": lambda api, body: api.store.delete(**body),
    "get": lambda api, body: api.store.get(**body),
    "compact": lambda api, _: api.store.compact(),
    "bookmark": lambda api, _: api.store.bookmark(),
    "install": lambda api, body: api.store.install(**body),
    "uninstall": lambda api, body: api.store.uninstall(**body),
    "fault": lambda api, body: api.faults.order(msgspec.convert(body, Order)),
    "clear": lambda api, body: api.faults.clear(**body),
    "rbac": _rbac,
    "token": _token,
    "streaming": _streaming,
    "drop": lambda api, body: api.drop_watches(**body),
    "outage": _outage,
    "flip": lambda api, body: _churn(api).flip(**body),
    "roll": lambda api, body: _churn(api).roll(**body),
    "calm": _calm,
    "requests": lambda api, _: api.log.requests,
    "state": _state,
}


def control(api: ApiServer, action: str, body: bytes) -> bytes:
    """Do an action; returns its result as JSON. Raises Failure (400) for what it does not know."""
    if action not in ACTIONS:
        raise bad_request(f"no such action: {action}; there are {', '.join(ACTIONS)}")
    try:
        return msgspec.json.encode(ACTIONS[action](api, msgspec.json.decode(body or b"{}")))
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
        raise bad_request(f"{action}: {error!r}") from error
