"""What can go wrong between a server and its client, on demand."""

from __future__ import annotations

import threading
from enum import StrEnum
from typing import Literal

import msgspec

NO_JSON = b"this is no JSON\n"


class Fault(msgspec.Struct, frozen=True):
    """What happens to a request.

    | kind | a list, or any other request | a watch |
    |---|---|---|
    | refuse | closed without an answer | the same |
    | cut | closed after ``bytes`` (0) of the body | closed after ``bytes`` of the body, or after ``events`` |
    | stall | no answer, and the connection stays | the same; with ``events``: answered, silent after that many |
    | garbage | a body that is no JSON | a line that is no JSON, after ``events`` (0) |
    | truncate | the first half of the body, as if it were whole | half of an event in a line, after ``events`` (0) |
    | slow | ``rate`` bytes per second | the same |
    | status | ``code``, ``headers`` and a Status | the same |
    | duplicate | nothing | event number ``events`` (from 0) is sent twice; without a number all are |
    | reorder | nothing | event number ``events`` comes after the next; without a number every two change places |
    """

    class Kind(StrEnum):
        """The names of the faults."""

        REFUSE = "refuse"
        CUT = "cut"
        STALL = "stall"
        GARBAGE = "garbage"
        TRUNCATE = "truncate"
        SLOW = "slow"
        STATUS = "status"
        DUPLICATE = "duplicate"
        REORDER = "reorder"

    kind: Kind
    bytes: int | None = None
    events: int | None = None
    rate: int = 1_000
    code: int = 503
    reason: str = "ServiceUnavailable"
    message: str = "the test wants it so"
    headers: dict[str, str] = {}


class Order(msgspec.Struct):
    """A fault for the next ``times`` requests (None: until cleared) of a resource and a verb (None: any)."""

    fault: Fault
    resource: str | None = None
    verb: str | None = None
    times: int | None = 1


class Faults:
    """The faults that wait for their requests; the oldest that fits is taken."""

    def __init__(self) -> None:
        self._orders: list[Order] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault, resource: str | None = None, verb: str | None = None, times: int | None = 1) -> None:
        """Have a fault happen; see `Order`. Requests under way are not touched."""
        self.order(Order(fault, resource, verb, times))

    def order(self, order: Order) -> None:
        """Have a fault happen."""
        with self._lock:
            self._orders.append(order)

    def clear(self, resource: str | None = None) -> None:
        """Forget what was ordered for a resource, or everything."""
        with self._lock:
            self._orders = [each for each in self._orders if resource and each.resource != resource]

    def take(self, resource: str, verb: str) -> Fault | None:
        """Return the fault that happens to a request."""
        with self._lock:
            for order in self._orders:
                if order.resource in {None, resource} and order.verb in {None, verb}:
                    if order.times is not None:
                        order.times -= 1
                        if not order.times:
                            self._orders.remove(order)
                    return order.fault
        return None


class Mangled:
    """The frames of a watch, made wrong by a fault; ``then`` says how the stream ends, when it does."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.then: Literal["", "cut", "stall"] = ""
        self._sent = 0
        self._held: bytes | None = None

    def __call__(self, frames: list[bytes]) -> list[bytes]:
        """Return what is sent instead of some frames."""
        return [out for frame in frames for out in self._one(frame)]

    def start(self) -> list[bytes]:
        """Return what is sent before any event, and notice a stream that ends at once."""
        fault = self.fault
        if fault.events == 0 and fault.kind in {Fault.Kind.CUT, Fault.Kind.STALL}:
            self.then = "cut" if fault.kind == Fault.Kind.CUT else "stall"
        return [NO_JSON] if fault.kind == Fault.Kind.GARBAGE and not fault.events else []

    def _one(self, frame: bytes) -> list[bytes]:
        if self.then:
            return []
        number, self._sent = self._sent, self._sent + 1
        events = self.fault.events
        match self.fault.kind:
            case Fault.Kind.CUT | Fault.Kind.STALL if events == number + 1:
                self.then = "cut" if self.fault.kind == Fault.Kind.CUT else "stall"
            case Fault.Kind.GARBAGE if events == number + 1:
                return [frame, NO_JSON]
            case Fault.Kind.TRUNCATE if (events or 0) == number:
                return [frame[: len(frame) // 2] + b"\n"]
            case Fault.Kind.DUPLICATE if events in {None, number}:
                return [frame, frame]
            case Fault.Kind.REORDER if self._held:
                held, self._held = self._held, None
                return [frame, held]
            case Fault.Kind.REORDER if events in {None, number}:
                self._held = frame
                return []
        return [frame]
