"""In each process of the station plane: looks again and again whether the next device could be served.

One thread, beside the event loop and the commit train, because what it looks at may hang.  What it finds it
leaves on the process's part of the board, with the time; what it is looking at stands there, too, so that the
ops plane can say where it hangs.  It changes nothing and nobody waits for it.
"""

import logging
import re
import threading
import time
from typing import Any

from birthmark import errors
from birthmark.edge.application import Application
from birthmark.edge.http.board import Desk
from birthmark.edge.readiness import Part, directories, examine, figures, free_bytes
from birthmark.settings import OpsPlane

__all__ = ["Lookout"]

log = logging.getLogger(__name__)

FIGURES_SECONDS = 60.0
"""How often the record is read for its figures."""
STOP_SECONDS = 2.0
_NUMBERS = re.compile(r"\d+")
_PARTS = {part: number for number, part in enumerate(Part, 1)}


class Lookout:
    """Looks; ``start`` begins, ``stop`` ends it before the application is closed."""

    def __init__(self, application: Application, desk: Desk, table: OpsPlane) -> None:
        """Look at this application."""
        self._application = application
        self._desk = desk
        self._table = table
        self._stopping = threading.Event()
        self._figures: dict[str, Any] = {}
        self._figures_due = 0.0
        self._seen: dict[str, str] = {}
        self._began: float | None = None
        """The time of day less the time since the machine began, when it was first seen."""
        self._thread = threading.Thread(target=self._run, name="lookout", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; a look that hangs is left to hang."""
        self._stopping.set()
        self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._look()
            except Exception:
                log.exception("the lookout failed")
            self._stopping.wait(self._table.look_seconds)

    def _look(self) -> None:
        begun = time.monotonic()
        found = examine(
            self._application,
            least_free_bytes=self._table.least_free_megabytes << 20,
            stage=lambda part: self._desk.stage(0 if part is None else _PARTS[part]),
        )
        if self._stopping.is_set():
            return  # what is being closed is not down
        self._tell({str(part): reason for part, reason in found.reasons.items()})
        if not found.reasons[Part.DATABASE] and begun >= self._figures_due:
            self._read_figures(begun)
        self._desk.note(
            {
                "monotonic": begun,
                "parts": dict(found.reasons),
                "last_entry": None if found.last_entry is None else found.last_entry.timestamp(),
                "clock_offset": self._clock_offset(),
                "degraded": self._degraded(),
                "free": free_bytes(directories(self._application)),
                "figures": self._figures,
            }
        )

    def _read_figures(self, now: float) -> None:
        try:
            self._figures = figures(self._application).document()
            self._figures_due = now + FIGURES_SECONDS
        except (errors.Refusal, OSError) as failed:
            log.warning("the figures of the record cannot be read: %s", failed)

    def _clock_offset(self) -> float:
        """Return how far the clock has been set since we began, as far as the process can see."""
        try:
            now = self._application.clock.now().timestamp() - time.clock_gettime(time.CLOCK_BOOTTIME)
        except errors.Refusal:
            return 0.0  # it holds the line, and that is told
        if self._began is None:
            self._began = now
        return now - self._began

    def _degraded(self) -> bool:
        health = self._application.keys.health()
        return health.up and bool(health.reason)

    def _tell(self, reasons: dict[str, str]) -> None:
        """Say once what holds the line, and once that it does not any more."""
        for part, reason in reasons.items():
            cause = _NUMBERS.sub("", reason)  # one that only counts on is the same
            if cause and cause != self._seen.get(part):
                log.warning("not ready", extra={"part": part, "reason": reason})
            elif not cause and self._seen.get(part):
                log.warning("ready again", extra={"part": part})
            self._seen[part] = cause
