"""Figures in memory that the processes of the service share: each writes its part, the ops plane reads all.

The memory is made before the processes are forked and has room for every figure there can be, because every
label has a fixed list of values: nothing grows, whoever asks.  A part belongs to a place in the service
(``station-1``), not to a process id: whoever is started there next goes on counting where the last one was
killed.  A reader needs no answer from a writer: it sees a process that hangs as it stands.

A cell is an aligned double, written in one piece.  Longer texts carry a checksum: one that was torn by a kill
is nothing.  Within a process a lock orders the threads; between processes there is nothing to order.
"""

import json
import mmap
import os
import threading
import time
import zlib
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import product
from math import prod
from typing import Any

__all__ = ["Board", "Desk", "Kind", "Layout", "Metric"]

_DOUBLE = 8
_PID, _BEAT, _STARTS, _STAGE, _STAGE_SINCE = range(5)
_HEADER = 5
_NOTES = 16_384
"""Octets for the text of a part, with its length and checksum."""


class Kind(StrEnum):
    """What a figure does."""

    COUNTER = "counter"
    GAUGE = "gauge"
    """What is now; nothing again when another process begins in its place."""
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A figure, as Prometheus names it."""

    name: str
    kind: Kind
    help: str
    labels: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Names, and all values there can be; the last value stands for any other."""
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram, without infinity."""

    @property
    def width(self) -> int:
        """Cells for one combination of labels: a histogram has its buckets, infinity, and the sum."""
        return len(self.buckets) + 2 if self.kind is Kind.HISTOGRAM else 1


class Layout:
    """Where each figure stands in a part."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        """Lay these out."""
        self.metrics = tuple(metrics)
        self._first: dict[str, int] = {}
        self._rows: dict[str, dict[tuple[str, ...], int]] = {}
        at = _HEADER
        for metric in metrics:
            combinations = list(product(*(values for _, values in metric.labels)))
            self._rows[metric.name] = {
                values: at + number * metric.width for number, values in enumerate(combinations)
            }
            at += metric.width * prod(len(values) for _, values in metric.labels)
        self.cells = at

    def cell(self, metric: Metric, *values: str) -> int:
        """Return the first cell of a figure under these label values; an unknown one is the last."""
        rows = self._rows[metric.name]
        found = rows.get(values)
        if found is None:
            known = zip(values, metric.labels, strict=True)
            found = rows[tuple(value if value in all_ else all_[-1] for value, (_, all_) in known)]
        return found

    def rows(self, metric: Metric) -> Iterator[tuple[tuple[str, ...], int]]:
        """Iterate over the label values of a figure and their first cells."""
        return iter(self._rows[metric.name].items())


class Desk:
    """One place's part of the memory."""

    def __init__(self, name: str, layout: Layout, memory: memoryview) -> None:
        """See ``Board.desk``."""
        self.name = name
        self.layout = layout
        self._cells = memory[: layout.cells * _DOUBLE].cast("d")
        self._notes = memory[layout.cells * _DOUBLE :]
        self._lock = threading.Lock()

    def take(self) -> None:
        """Begin here as a new process: the counters go on, what was only true of the last one ends."""
        self._lock = threading.Lock()
        for metric in self.layout.metrics:
            if metric.kind is Kind.GAUGE:
                for _, cell in self.layout.rows(metric):
                    self._cells[cell] = 0.0
        self._notes[:_DOUBLE] = bytes(_DOUBLE)
        self._cells[_STAGE] = self._cells[_STAGE_SINCE] = 0.0
        self._cells[_PID] = os.getpid()
        self._cells[_STARTS] += 1
        self.beat()

    def beat(self) -> None:
        """Show that the event loop goes round."""
        self._cells[_BEAT] = time.monotonic()

    def stage(self, number: int) -> None:
        """Show what is being looked at; 0 for nothing."""
        self._cells[_STAGE_SINCE] = time.monotonic()
        self._cells[_STAGE] = number

    def add(self, cell: int, amount: float = 1.0) -> None:
        """Add to a counter or gauge."""
        with self._lock:
            self._cells[cell] += amount

    def put(self, cell: int, value: float) -> None:
        """Set a gauge."""
        self._cells[cell] = value

    def observe(self, cell: int, buckets: tuple[float, ...], value: float) -> None:
        """Add one observation to a histogram."""
        at = cell + bisect_left(buckets, value)
        with self._lock:
            self._cells[at] += 1
            self._cells[cell + len(buckets) + 1] += value

    def note(self, text: dict[str, Any]) -> None:
        """Leave a text for whoever reads; one that is too long is left out.

        The numbers in it are for programs, the rest for people.
        """
        octets = json.dumps(text, separators=(",", ":")).encode()
        if len(octets) > len(self._notes) - _DOUBLE:
            return
        self._notes[:_DOUBLE] = bytes(_DOUBLE)
        self._notes[_DOUBLE : _DOUBLE + len(octets)] = octets
        self._notes[:_DOUBLE] = len(octets).to_bytes(4, "big") + zlib.crc32(octets).to_bytes(4, "big")

    # --- read by others

    @property
    def pid(self) -> int:
        """The process that sits here; 0 if none ever did."""
        return int(self._cells[_PID])

    @property
    def starts(self) -> int:
        """How many processes began here."""
        return int(self._cells[_STARTS])

    @property
    def silence(self) -> float:
        """For how many seconds its event loop has not gone round."""
        return max(0.0, time.monotonic() - self._cells[_BEAT])

    @property
    def looking(self) -> tuple[int, float]:
        """What is being looked at, 0 for nothing, and for how many seconds."""
        return int(self._cells[_STAGE]), max(0.0, time.monotonic() - self._cells[_STAGE_SINCE])

    def value(self, cell: int) -> float:
        """Return what a cell says."""
        return self._cells[cell]

    def noted(self) -> dict[str, Any] | None:
        """Return the text that was left, if there is a whole one."""
        for _ in range(3):  # it may be written at this moment
            head = bytes(self._notes[:_DOUBLE])
            octets = bytes(self._notes[_DOUBLE : _DOUBLE + int.from_bytes(head[:4], "big")])
            if octets and zlib.crc32(octets) == int.from_bytes(head[4:], "big"):
                found: dict[str, Any] = json.loads(octets)
                return found
        return None


class Board:
    """The memory of all places."""

    def __init__(self, names: Sequence[str], layout: Layout) -> None:
        """Make room for these places; to be done before they are forked."""
        self.layout = layout
        size = layout.cells * _DOUBLE + _NOTES
        self._memory = mmap.mmap(-1, size * len(names))
        view = memoryview(self._memory)
        self.desks = tuple(
            Desk(name, layout, view[at * size : (at + 1) * size]) for at, name in enumerate(names)
        )

    def desk(self, name: str) -> Desk:
        """Return the part of a place."""
        return next(desk for desk in self.desks if desk.name == name)

    def total(self, cell: int) -> float:
        """Return the sum of a cell over all places."""
        return sum(desk.value(cell) for desk in self.desks)
