"""The ops plane: figures, health and readiness of this host's service, for those who watch it (SPEC K4).

A process of its own, which opens neither the record nor a key store: it reads the board that the other
processes write, so it answers while they hang.  Plain HTTP on a loopback address; three paths, nothing that
changes anything, nothing that names a device, a client or a secret.

``/health``: is there a process that only a restart would mend?  ``/ready``: can the next device be served?
``/metrics``: the figures, in Prometheus' text format or OpenMetrics.
"""

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.core import (
    Metric as Family,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import CollectorRegistry

from birthmark import __version__, errors
from birthmark.edge.http.board import Board, Desk, Kind, Metric
from birthmark.edge.http.metrics import DESCRIPTORS, MAX_DESCRIPTORS, MEMORY, METRICS
from birthmark.edge.readiness import Part
from birthmark.floor.exposure import Plane
from birthmark.floor.locations import INDEX_PATH
from birthmark.ledger.entry import time_text
from birthmark.ports import Clock
from birthmark.services.publication_index import Index
from birthmark.settings import OpsPlane, Settings

__all__ = ["OpsPlaneApp", "Readiness", "readiness"]

_BY_PROCESS = (MEMORY, DESCRIPTORS, MAX_DESCRIPTORS)
"""What is not added up."""
_BY_NAME = (
    (Part.DATABASE, "database_up", "1 if the database can be written to."),
    (Part.KEY_STORE, "key_store_up", "1 if the key store answers."),
)
_FILE_SECONDS = 2.0
"""How long the index of what is published may take to be read."""
_PARTS = dict(enumerate(Part, 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """What holds the line, if anything does."""

    parts: Mapping[str, str]
    """By part, why it is not ready; empty if it is.  A part that nobody could try is not there."""
    processes: Sequence[tuple[str, int, str]]
    """Place, process id, why it is not ready."""

    @property
    def ready(self) -> bool:
        """True if everything is."""
        return not any(self.parts.values()) and not any(reason for _, _, reason in self.processes)

    def document(self, at: datetime) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "ready": self.ready,
            "at": time_text(at),
            "version": __version__,
            "parts": {name: {"ready": not why, "reason": why} for name, why in self.parts.items()},
            "processes": [
                {"process": name, "pid": pid, "ready": not why, "reason": why}
                for name, pid, why in self.processes
            ],
        }


def _silent(desk: Desk, table: OpsPlane) -> str:
    if desk.pid == 0:
        return "it has not begun yet"
    if desk.silence > table.silent_seconds:
        return f"it does not answer since {desk.silence:.0f} s: it hangs"
    return ""


def _unseen(desk: Desk, table: OpsPlane, noted: Mapping[str, Any] | None, now: float) -> tuple[str, str]:
    """Return why what a process found is not to be relied on, and the part it hangs in, if that is known."""
    number, seconds = desk.looking
    if number and seconds > table.silent_seconds:
        part = str(_PARTS[number])
        return f"the {part} has not answered for {seconds:.0f} s", part
    if noted is None:
        return "it has not looked yet", ""
    if now - noted["monotonic"] > table.look_seconds + table.silent_seconds:
        return f"it has not looked for {now - noted['monotonic']:.0f} s", ""
    return "", ""


def readiness(board: Board, table: OpsPlane, now: float) -> Readiness:
    """Say whether the next device can be served, by whichever process it comes to.

    Args:
        board: what the processes left.
        table: the settings.
        now: of the clock that is never set.
    """
    stations = [desk for desk in board.desks if desk.name.startswith(Plane.STATION)]
    parts: dict[str, str] = {}
    processes = []
    for desk in board.desks:
        noted = desk.noted()
        # A process that waits for its database has not looked, and has left only what it waits for.
        waits = "" if noted is None else noted.get("waits", "")
        why = waits or _silent(desk, table)
        noted = noted if desk in stations and not waits else None
        if desk in stations and desk.pid:
            unseen, part = _unseen(desk, table, noted, now)
            if part:
                parts[part] = parts.get(part) or unseen
            why = why or unseen
        if not why and noted is not None:
            for name, reason in noted["parts"].items():
                parts[name] = parts.get(name) or reason
        processes.append((desk.name, desk.pid, why))
    return Readiness(parts=parts, processes=processes)


# --- figures


def _counted(board: Board, metric: Metric) -> Family:
    names = [name for name, _ in metric.labels]
    if metric.kind is Kind.HISTOGRAM:
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=names)
        for values, cell in board.layout.rows(metric):
            running, buckets = 0.0, []
            for at, bound in enumerate((*map(str, map(float, metric.buckets)), "+Inf")):
                running += board.total(cell + at)
                buckets.append((bound, running))
            histogram.add_metric(values, buckets, board.total(cell + len(metric.buckets) + 1))
        return histogram
    kind = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
    family = kind(metric.name.removesuffix("_total"), metric.help, labels=names)
    for values, cell in board.layout.rows(metric):
        family.add_metric(values, board.total(cell))
    return family


def _gauge(name: str, text: str, value: float | None) -> Iterator[Family]:
    """One figure; none if it is not known."""
    if value is not None:
        yield GaugeMetricFamily(f"birthmark_{name}", text, value=value)


def _gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> Family:
    family = GaugeMetricFamily(f"birthmark_{name}", text, labels=[label])
    for value, figure in values.items():
        family.add_metric([value], figure)
    return family


def _processes(board: Board) -> Iterator[Family]:
    desks = {desk.name: desk for desk in board.desks}
    for metric in _BY_PROCESS:
        cell = board.layout.cell(metric)
        short = metric.name.removeprefix("birthmark_")
        yield _gauges(short, metric.help, "process", {name: desk.value(cell) for name, desk in desks.items()})
    yield _gauges(
        "process_silence_seconds",
        "For how long the event loop of a process has not gone round.",
        "process",
        {name: desk.silence for name, desk in desks.items() if desk.pid},
    )
    starts = CounterMetricFamily(
        "birthmark_process_starts", "How often a process was begun in this place.", labels=["process"]
    )
    for name, desk in desks.items():
        starts.add_metric([name], desk.starts)
    yield starts


def _latest(board: Board) -> dict[str, Any] | None:
    """Return what the process that looked last has found."""
    found = [noted for desk in board.desks if (noted := desk.noted()) is not None and "waits" not in noted]
    return max(found, key=lambda noted: noted["monotonic"], default=None)


def _record(noted: Mapping[str, Any], at: datetime) -> Iterator[Family]:
    figures, now = noted["figures"], at.timestamp()
    last = noted["last_entry"]
    yield from _gauge(
        "checkpoint_age_seconds",
        "Since the newest checkpoint was signed.",
        None if last is None else now - last,
    )
    yield from _gauge(
        "clock_offset_seconds", "How far the clock was set since the process began.", noted["clock_offset"]
    )
    yield from _gauge(
        "key_store_degraded",
        "1 if the key store serves and something of it is lost, as of a pair that is one.",
        float(noted["degraded"]),
    )
    yield _gauges(
        "disk_free_bytes", "What the disk has left, by what is written there.", "place", noted["free"]
    )
    if not figures:
        return
    yield from _gauge("log_size_entries", "Entries of the log.", figures["log_entries"])
    yield from _gauge("runs_open", "Runs that admit devices.", figures["runs_open"])
    yield _gauges(
        "run_room_devices",
        "For how many devices an open run has room; at most 32 runs, those with the least.",
        "run",
        dict(figures["room"]),
    )
    yield _gauges(
        "certificate_end_timestamp_seconds",
        "The soonest end of a certificate that is in use, by whose it is.",
        "of",
        figures["certificates"],
    )


def _crl_ends(index: Index | None) -> Iterator[Family]:
    if index is not None and index.crls:
        soonest = min(one.next_update for one in index.crls.values())
        yield from _gauge(
            "crl_next_update_timestamp_seconds",
            "nextUpdate of the published CRL that ends soonest.",
            soonest.timestamp(),
        )
        yield from _gauge("crls_published", "CRLs that are published.", len(index.crls))


class _Collector:
    """What is shown now; prometheus_client asks it once."""

    def __init__(self, families: Callable[[], Iterator[Family]]) -> None:
        self._families = families

    def collect(self) -> Iterator[Family]:
        return self._families()


# --- the plane


class OpsPlaneApp:
    """The application (ASGI 3)."""

    def __init__(self, board: Board, settings: Settings, clock: Clock) -> None:
        """Show this board."""
        self._board = board
        self._settings = settings
        self._table = settings.ops_plane
        self._clock = clock

    async def __call__(self, scope: Any, _receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        if scope["method"] not in ("GET", "HEAD"):
            await _answer(
                send,
                405,
                "text/plain; charset=utf-8",
                b"only GET and HEAD here\n",
                [(b"allow", b"GET, HEAD")],
            )
            return
        path = scope["path"]
        if path == "/metrics":
            accept = dict(scope["headers"]).get(b"accept", b"").decode("latin-1")
            await self._metrics(send, accept)
        elif path == "/health":
            reasons = {desk.name: _silent(desk, self._table) for desk in self._board.desks}
            well = not any(reasons.values())
            await _json(
                send, 200 if well else 503, {"healthy": well, "version": __version__, "processes": reasons}
            )
        elif path == "/ready":
            found = readiness(self._board, self._table, time.monotonic())
            await _json(send, 200 if found.ready else 503, found.document(self._clock.now()))
        else:
            await _answer(send, 404, "text/plain; charset=utf-8", b"/metrics, /health, /ready\n")

    async def _metrics(self, send: Any, accept: str) -> None:
        index = await self._index()
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collector(lambda: self._families(index)))
        if "application/openmetrics-text" in accept:
            text = openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call]  # it has no types
            await _answer(send, 200, openmetrics.CONTENT_TYPE_LATEST, text)
        else:
            await _answer(send, 200, CONTENT_TYPE_PLAIN_0_0_4, generate_latest(registry))

    def _families(self, index: Index | None) -> Iterator[Family]:
        board, now = self._board, time.monotonic()
        build = GaugeMetricFamily(
            "birthmark_build_info", "What runs here.", labels=["version", "realm", "environment"]
        )
        build.add_metric([__version__, self._settings.realm.name, self._settings.realm.environment], 1.0)
        yield build
        found = readiness(board, self._table, now)
        yield from _gauge("ready", "1 if the next device can be served.", float(found.ready))
        yield _gauges(
            "part_ready",
            "1 if this part is.",
            "part",
            {name: float(not why) for name, why in found.parts.items()},
        )
        for part, name, text in _BY_NAME:
            if part in found.parts:
                yield from _gauge(name, text, float(not found.parts[part]))
        if Part.CLOCK in found.parts:
            yield from _gauge(
                "clock_held", "1 if the clock holds the line.", float(bool(found.parts[Part.CLOCK]))
            )
        for metric in METRICS:
            if metric not in _BY_PROCESS:
                yield _counted(board, metric)
        yield from _processes(board)
        noted = _latest(board)
        if noted is not None:
            yield from _record(noted, self._clock.now())
        yield from _crl_ends(index)

    async def _index(self) -> Index | None:
        """Return the index of what is published here, if there is one and it can be read."""
        table, public = self._settings.publication_table, self._settings.public_table
        if table is None and public is None:
            return None
        file = (self._settings.public_directory if table is None else table.directory) / INDEX_PATH
        try:
            async with asyncio.timeout(_FILE_SECONDS):
                return await asyncio.to_thread(_read_index, file)
        except (OSError, TimeoutError, errors.Refusal):
            return None


def _read_index(file: Path) -> Index:
    return Index.decode(file.read_bytes())


async def _json(send: Any, status: int, document: Mapping[str, Any]) -> None:
    await _answer(send, status, "application/json", json.dumps(document, indent=1).encode() + b"\n")


async def _answer(
    send: Any, status: int, content_type: str, body: bytes, headers: Sequence[tuple[bytes, bytes]] = ()
) -> None:
    said = [
        (b"content-type", content_type.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": said})
    await send({"type": "http.response.body", "body": body})
