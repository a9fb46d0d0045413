"""Events to the API server, from a thread of their own: the hot path only queues.

An Event is shown by ``kubectl describe`` when it carries its object's uid, so that is asked for before it is sent.
What can't be sent is dropped with a line in the log: an Event is worth no memory.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Sequence
from typing import Any

import msgspec

from ebpfnet.watch.kube.connection import Api, RequestFailed
from ebpfnet.watch.kube.reflector import Resource

log = logging.getLogger(__name__)

EVENTS = "/apis/events.k8s.io/v1/namespaces/{}/events"
WAITING_MAX = 256
Body = dict[str, Any]


class _Meta(msgspec.Struct):
    uid: str = ""


class _Object(msgspec.Struct):
    metadata: _Meta


class Sender:
    """``post`` queues, ``run`` sends."""

    def __init__(self, api: Api, followed: Sequence[Resource]) -> None:
        self._api = api
        self._paths = {str(each.kind): each.path for each in followed}
        self._waiting: queue.Queue[tuple[str, Body]] = queue.Queue(WAITING_MAX)

    def post(self, namespace: str, body: Body) -> None:
        """Queue an Event; one with ``series`` was sent before."""
        try:
            self._waiting.put_nowait((namespace, body))
        except queue.Full:
            log.debug("event %s is dropped: %d wait", body["metadata"]["name"], WAITING_MAX)

    def run(self, stop: threading.Event) -> None:
        """Send until ``stop`` is set."""
        while not stop.is_set():
            try:
                namespace, body = self._waiting.get(timeout=0.5)
            except queue.Empty:
                continue
            try:
                self._send(namespace, body)
            except RequestFailed as error:
                log.warning("event about %s: %s", body["regarding"].get("name"), error)

    def _send(self, namespace: str, body: Body) -> None:
        path = EVENTS.format(namespace)
        if "series" in body:
            patch = msgspec.json.encode({"series": body["series"]})
            try:
                self._api.send("PATCH", f"{path}/{body['metadata']['name']}", patch)
            except RequestFailed as error:
                if error.code != 404:  # it lives an hour; then it is told anew
                    raise
            else:
                return
        self._api.send("POST", path, msgspec.json.encode({**body, "regarding": self._with_uid(body["regarding"])}))

    def _with_uid(self, regarding: Body) -> Body:
        path = self._paths.get(str(regarding.get("kind")))
        if path is None or regarding.get("uid"):
            return regarding
        head, _, plural = path.rpartition("/")
        scope = f"/namespaces/{regarding['namespace']}" if regarding.get("namespace") else ""
        try:
            with self._api.get(f"{head}{scope}/{plural}/{regarding['name']}", {}, 10.0) as response:
                found = msgspec.json.decode(response.read(decode_content=True), type=_Object)
        except (RequestFailed, msgspec.MsgspecError) as error:
            log.debug("uid of %s: %s", regarding.get("name"), error)
            return regarding
        return {**regarding, "uid": found.metadata.uid}
