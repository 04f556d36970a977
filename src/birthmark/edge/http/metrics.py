"""Every figure that a process of the service counts by itself, and what counts it.

``METRICS`` is the whole list.  No label names a device, a serial number or a client: who asks cannot make
the list longer.  What is read from the record now and then (log size, room of runs) is ``readiness``'s.
"""

import os
import resource
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Any, Protocol

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from birthmark import errors
from birthmark.edge.http.board import Desk, Kind, Layout, Metric
from birthmark.edge.http.limits import Cause
from birthmark.edge.http.tracecontext import trace_of
from birthmark.services.visits import Reason

__all__ = [
    "CLIENT_KEY",
    "LAYOUT",
    "METRICS",
    "ROUTES",
    "SCOPE",
    "TRACE_KEY",
    "CountedAnswering",
    "Meter",
    "ObservedApp",
    "counted",
    "measure_process",
    "route_of",
]

SCOPE: ContextVar[dict[str, Any] | None] = ContextVar("birthmark.scope", default=None)
"""The request that is being answered; for the service's own log."""
CLIENT_KEY = "birthmark.client"
"""Where the station plane puts the id of whoever asks, once it knows."""
TRACE_KEY = "birthmark.trace"

ROUTES = (
    "/v1/me",
    "/v1/me/certificate",
    "/v1/runs/{run}",
    "/v1/devices/{device}",
    "/v1/devices/{device}/token",
    "/v1/checkpoint",
    "/v1/runs/{run}/attest",
    "/v1/runs/{run}/issue",
    "/v1/runs/{run}/gang-issue",
    "/v1/inject",
    "/v1/gang-inject",
    "/v1/prove",
    "/v1/gang-prove",
    "/v1/devices/{device}/hold",
    "/v1/devices/{device}/rework",
    "/v1/devices/{device}/scrap",
    "/v1/contact",
    "/v1/status",
    "/v1/authorise",
    "/v1/authorise/{rest:path}",
    "/.well-known/jwks.json",
    "public",
    "enrolment",
    "device",
    "other",
)
_STATUSES = (
    "200",
    "204",
    "304",
    "400",
    "403",
    "404",
    "405",
    "408",
    "409",
    "413",
    "422",
    "429",
    "500",
    "503",
    "other",
)
_OUTCOMES = {
    "device-issued": "issued",
    "device-reissued": "issued",
    "device-released": "released",
    "device-held": "held",
    "device-reworked": "reworked",
    "device-scrapped": "scrapped",
    "local-issued": "enrolled",
    "local-proved": "proved",
}


def _codes() -> tuple[str, ...]:
    found, classes = set(), [errors.Refusal]
    while classes:
        kind = classes.pop()
        classes += kind.__subclasses__()
        found.add(kind.code)
    return (*sorted(found - {"internal"}), "internal")


_QUICK = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)

REQUESTS = Metric(
    name="birthmark_requests_total",
    kind=Kind.COUNTER,
    help="Requests answered, by route and HTTP status.",
    labels=(("route", ROUTES), ("status", _STATUSES)),
)
REQUEST_SECONDS = Metric(
    name="birthmark_request_seconds",
    kind=Kind.HISTOGRAM,
    help="From the head of a request to the end of its answer.",
    labels=(("route", ROUTES),),
    buckets=_QUICK[4:],
)
IN_FLIGHT = Metric(name="birthmark_requests_in_flight", kind=Kind.GAUGE, help="Requests being answered.")
REFUSALS = Metric(
    name="birthmark_refusals_total",
    kind=Kind.COUNTER,
    help="Refusals told to clients, by code; those of a gang one by one.",
    labels=(("code", _codes()),),
)
DEVICES = Metric(
    name="birthmark_devices_total",
    kind=Kind.COUNTER,
    help="What became of devices, as it was committed by this service.",
    labels=(("outcome", ("issued", "released", "held", "reworked", "scrapped")),),
)
ENTRIES = Metric(
    name="birthmark_log_entries_total", kind=Kind.COUNTER, help="Log entries committed by this service."
)
TRAIN_ACTS = Metric(
    name="birthmark_commit_train_acts",
    kind=Kind.HISTOGRAM,
    help="Acts in a commit train.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
)
TRAIN_SECONDS = Metric(
    name="birthmark_commit_train_seconds",
    kind=Kind.HISTOGRAM,
    help="From taking the log's head to the durable commit.",
    buckets=_QUICK[2:],
)
TRAIN_FAILURES = Metric(
    name="birthmark_commit_train_failures_total",
    kind=Kind.COUNTER,
    help="Commit trains that failed as a whole: nothing of them was answered.",
)
WAITING = Metric(name="birthmark_acts_waiting", kind=Kind.GAUGE, help="Acts that wait for a commit train.")
KEY_SECONDS = Metric(
    name="birthmark_key_store_operation_seconds",
    kind=Kind.HISTOGRAM,
    help="One operation of the key store, with the wait for its turn.",
    buckets=_QUICK[:-1],
)
KEY_FAILURES = Metric(
    name="birthmark_key_store_failures_total",
    kind=Kind.COUNTER,
    help="Operations that the key store did not do because it, or its key, was not there.",
)
HANDSHAKES_REFUSED = Metric(
    name="birthmark_handshakes_refused_total",
    kind=Kind.COUNTER,
    help="Connections refused before there was a request, by reason.",
    labels=(("reason", tuple(Cause)),),
)
CONNECTIONS = Metric(name="birthmark_connections_open", kind=Kind.GAUGE, help="Connections that are open.")
OCSP = Metric(
    name="birthmark_ocsp_requests_total", kind=Kind.COUNTER, help="Questions to the OCSP responder."
)
CONTACTS = Metric(
    name="birthmark_contacts_total",
    kind=Kind.COUNTER,
    help="Devices that came to the gateway, by what became of it.",
    labels=(("outcome", ("first-seen", "accepted", *Reason, "other")),),
)
MEMORY = Metric(
    name="birthmark_process_resident_memory_bytes", kind=Kind.GAUGE, help="Resident memory of the process."
)
DESCRIPTORS = Metric(
    name="birthmark_process_open_fds", kind=Kind.GAUGE, help="File descriptors the process has open."
)
MAX_DESCRIPTORS = Metric(
    name="birthmark_process_max_fds", kind=Kind.GAUGE, help="File descriptors the process may have open."
)

METRICS = (
    REQUESTS,
    REQUEST_SECONDS,
    IN_FLIGHT,
    REFUSALS,
    DEVICES,
    ENTRIES,
    TRAIN_ACTS,
    TRAIN_SECONDS,
    TRAIN_FAILURES,
    WAITING,
    KEY_SECONDS,
    KEY_FAILURES,
    HANDSHAKES_REFUSED,
    CONNECTIONS,
    OCSP,
    CONTACTS,
    MEMORY,
    DESCRIPTORS,
    MAX_DESCRIPTORS,
)
LAYOUT = Layout(METRICS)


class Spans(Protocol):
    """What makes spans; ``tracing.Tracing`` is one."""

    def request(self, trace: Any) -> AbstractContextManager[Callable[[str, int], None]]:
        """Surround a request; called at its end with its route and status."""
        ...

    def span(self, name: str) -> AbstractContextManager[object]:
        """Surround a stretch of work inside a request."""
        ...


class Meter:
    """Counts for one process; see ``ports.Observer``."""

    def __init__(self, desk: Desk, spans: Spans | None = None) -> None:
        """Count at this desk."""
        self.desk = desk
        self.spans = spans
        cell = desk.layout.cell
        self._requests = {
            (route, int(status)): cell(REQUESTS, route, status)
            for route in ROUTES
            for status in _STATUSES
            if status.isdigit()
        }
        self._seconds = {route: cell(REQUEST_SECONDS, route) for route in ROUTES}
        self._outcomes = {kind: cell(DEVICES, outcome) for kind, outcome in _OUTCOMES.items()}
        self._in_flight, self._entries = cell(IN_FLIGHT), cell(ENTRIES)
        self._train_acts, self._train_seconds = cell(TRAIN_ACTS), cell(TRAIN_SECONDS)
        self._train_failures, self._waiting = cell(TRAIN_FAILURES), cell(WAITING)
        self._key_seconds, self._key_failures = cell(KEY_SECONDS), cell(KEY_FAILURES)
        self._connections, self._ocsp = cell(CONNECTIONS), cell(OCSP)

    # --- ports.Observer

    def span(self, name: str) -> AbstractContextManager[object]:
        """See ``ports.Observer.span``."""
        return nullcontext() if self.spans is None else self.spans.span(name)

    def refused(self, code: str) -> None:
        """See ``ports.Observer.refused``."""
        self.desk.add(self.desk.layout.cell(REFUSALS, code))

    def waiting(self, acts: int) -> None:
        """See ``ports.Observer.waiting``."""
        self.desk.add(self._waiting, acts)

    def committed(self, acts: int, kinds: Sequence[str], seconds: float) -> None:
        """See ``ports.Observer.committed``."""
        desk = self.desk
        desk.observe(self._train_acts, TRAIN_ACTS.buckets, acts)
        desk.observe(self._train_seconds, TRAIN_SECONDS.buckets, seconds)
        desk.add(self._entries, len(kinds))
        for kind in kinds:
            outcome = self._outcomes.get(kind)
            if outcome is not None:
                desk.add(outcome)

    def not_committed(self, acts: int) -> None:  # noqa: ARG002  # the port's signature
        """See ``ports.Observer.not_committed``."""
        self.desk.add(self._train_failures)

    def key_used(self, seconds: float, *, failed: bool) -> None:
        """See ``ports.Observer.key_used``."""
        self.desk.observe(self._key_seconds, KEY_SECONDS.buckets, seconds)
        if failed:
            self.desk.add(self._key_failures)

    # --- the listener's

    def began(self) -> None:
        """Count a request that is being answered."""
        self.desk.add(self._in_flight)

    def ended(self, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered; ``status`` 0 is one that was not."""
        desk = self.desk
        desk.add(self._in_flight, -1)
        route = route if route in self._seconds else "other"
        cell = self._requests.get((route, status))
        desk.add(desk.layout.cell(REQUESTS, route, "other") if cell is None else cell)
        desk.observe(self._seconds[route], REQUEST_SECONDS.buckets, seconds)

    def handshake_refused(self, cause: Cause) -> None:
        """Count what was refused before there was a request."""
        self.desk.add(self.desk.layout.cell(HANDSHAKES_REFUSED, cause))

    def connected(self, change: int) -> None:
        """Count connections that come, or go if negative."""
        self.desk.add(self._connections, change)

    def contact(self, outcome: str) -> None:
        """Count a device that came to the gateway; what the list does not know is ``other``."""
        self.desk.add(self.desk.layout.cell(CONTACTS, outcome))

    def ocsp_asked(self) -> None:
        """Count a question to the responder."""
        self.desk.add(self._ocsp)


class ObservedApp:
    """An ASGI application, each of its requests counted, timed, and known to the log.

    Args:
        app: the application.
        meter: counts.
        route: the name of all its requests; None to ask the framework's router.
    """

    def __init__(self, app: Any, meter: Meter, route: str | None = None) -> None:
        self._app = app
        self._meter = meter
        self._route = route

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request (ASGI 3)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, begun, spans = 0, time.perf_counter(), self._meter.spans
        scope[TRACE_KEY] = trace = trace_of(scope["headers"])
        SCOPE.set(scope)  # each request has a task, and so a context, of its own

        async def watched(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._meter.began()
        try:
            if spans is None:
                await self._app(scope, receive, watched)
            else:
                with spans.request(trace) as tell:
                    try:
                        await self._app(scope, receive, watched)
                    finally:
                        tell(self._route or route_of(scope), status)
        finally:
            self._meter.ended(self._route or route_of(scope), status, time.perf_counter() - begun)


def route_of(scope: Any) -> str:
    """Return the route's pattern, which names no device; ``other`` where nothing is."""
    found: str = getattr(scope.get("route"), "path", "other")
    return found if found in ROUTES else "other"


def counted(protocol: type[HttpToolsProtocol], meter: Meter) -> type[HttpToolsProtocol]:
    """Return an HTTP protocol whose connections are counted."""

    class CountedProtocol(protocol):  # type: ignore[valid-type,misc]  # a class made for this listener
        """Tells when it begins and ends."""

        def connection_made(self, transport: Any) -> None:
            """See ``asyncio.Protocol``."""
            meter.connected(1)
            super().connection_made(transport)

        def connection_lost(self, exc: Exception | None) -> None:
            """See ``asyncio.Protocol``."""
            meter.connected(-1)
            super().connection_lost(exc)

    return CountedProtocol


class CountedAnswering:
    """What answers OCSP, its questions counted; see ``answering.Answering``."""

    def __init__(self, answering: Any, meter: Meter) -> None:
        """Ask this one."""
        self._answering = answering
        self._meter = meter

    def ask(self, octets: bytes, done: Any) -> None:
        """See ``answering.Answering.ask``."""
        self._meter.ocsp_asked()
        self._answering.ask(octets, done)

    def close(self) -> None:
        """See ``answering.Answering.close``."""
        self._answering.close()


def measure_process(desk: Desk) -> None:
    """Leave memory and file descriptors of this process on its part of the board."""
    with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123  # one of the kernel's
        pages = int(statm.read().split()[1])
    put, cell = desk.put, desk.layout.cell
    put(cell(MEMORY), pages * resource.getpagesize())
    put(cell(DESCRIPTORS), len(os.listdir("/proc/self/fd")))  # noqa: PTH208  # likewise
    put(cell(MAX_DESCRIPTORS), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
