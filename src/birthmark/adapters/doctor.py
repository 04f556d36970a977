"""How a key store that can fail is kept in use, or left alone, and who looks after it (SPEC B3).

A *breaker* stands before a store.  Closed, it lets every call through.  A store that could not do what it was
asked opens it: from then on every call is refused at once with the reason, and the store is not asked.  After
a wait, which grows with each failure, one call is let through to try (half-open): the doctor's or whoever
comes first.  If it is answered, the breaker closes by itself; a refusal of another kind is an answer, too.

The *doctor* is a thread that examines a store every few seconds, so that an outage is known before somebody
needs the store, and its end as soon.  A call that does not come back cannot be ended: the thread it hangs in
has the library to itself for as long as the process lives.  So when one has hung for too long the doctor
gives the process up, with the reason in the service's log; whoever supervises it starts another one.

Left to others: what an examination is (the stores), and the supervisor (``edge.http.serve``, systemd).
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Protocol

from birthmark import errors
from birthmark.ports import Health

__all__ = ["LONGEST_WAIT_SECONDS", "Breaker", "Doctor", "Patient"]

log = logging.getLogger(__name__)

LONGEST_WAIT_SECONDS = 30.0
"""Between two attempts to reach a store, however long it has been down."""


class Breaker:
    """Stands before one store.  Safe to call from any thread.

    Args:
        name: of the store, for its health.
        first_wait_seconds: how long a store that failed is left alone; doubled with each further failure.
        monotonic: reads a clock that is never set, in seconds; another one is for tests.
    """

    def __init__(
        self, name: str, *, first_wait_seconds: float, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._name = name
        self._first_wait_seconds = first_wait_seconds
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._because = ""
        self._failures = 0
        self._due = 0.0
        self._trying = False
        self._changed_at = datetime.now(UTC)

    def admit(self) -> bool:
        """Let a call through, or refuse it; return whether it is the one that tries.

        Who is let through says how it ended: ``answered`` or ``failed``, with what was returned.

        Raises:
            errors.Unavailable: the breaker is open; with the reason for which it is.
        """
        with self._lock:
            if not self._because:
                return False
            if self._trying or self._monotonic() < self._due:
                raise errors.Unavailable(self._because)
            self._trying = True
            return True

    def require(self, *, trying: bool) -> None:
        """Refuse a call that was let through before the breaker opened.

        Raises:
            errors.Unavailable: it is open.
        """
        with self._lock:
            if self._because and not trying:
                raise errors.Unavailable(self._because)

    def failed(self, reason: str, *, trying: bool) -> errors.Unavailable:
        """Open, or stay open for longer; return what to raise."""
        with self._lock:
            opened = not self._because
            if opened:
                self._failures, self._changed_at = 0, datetime.now(UTC)
            if opened or trying:
                self._because = reason
                self._due = self._monotonic() + self._wait()
                self._failures += 1
            self._trying = self._trying and not trying
        return errors.Unavailable(reason)

    def answered(self, *, trying: bool) -> None:
        """Close, if this call was the one that tried."""
        if not trying:
            return
        with self._lock:
            self._because, self._trying, self._changed_at = "", False, datetime.now(UTC)

    def health(self) -> Health:
        """Say whether it is closed, and why not."""
        with self._lock:
            return Health(
                up=not self._because, reason=self._because, since=self._changed_at, active=self._name
            )

    def _wait(self) -> float:
        # Bounded before it is raised to a power: a store may be down for a weekend.
        doubled = self._first_wait_seconds * 2.0 ** min(self._failures, 16)
        return min(doubled, max(self._first_wait_seconds, LONGEST_WAIT_SECONDS))


class Patient(Protocol):
    """A store that can be examined."""

    def health(self) -> Health:
        """See ``ports.KeyStore.health``."""
        ...

    def examine(self) -> None:
        """Ask the store whether it and every key that was used is still there; ``health`` says what it was.

        Raises:
            errors.Refusal: it is not.
        """
        ...

    def stuck_seconds(self) -> float:
        """Return for how long a call has not come back; 0 if none is under way, or another store serves."""
        ...


class Doctor:
    """Examines a store every few seconds, in a thread of its own, until it is dismissed.

    Args:
        patient: the store.
        every_seconds: how often.
        give_up_seconds: how long a call may hang.
        give_up: ends the process; gets the reason.
    """

    def __init__(
        self,
        patient: Patient,
        *,
        every_seconds: float,
        give_up_seconds: float,
        give_up: Callable[[str], None],
    ) -> None:
        self._patient = patient
        self._every_seconds = every_seconds
        self._give_up_seconds = give_up_seconds
        self._give_up = give_up
        self._dismissed = threading.Event()
        self._thread = threading.Thread(target=self._attend, name="doctor", daemon=True)
        self._thread.start()

    def dismiss(self) -> None:
        """Examine no more.  What is under way is not waited for: it may hang."""
        self._dismissed.set()

    def _attend(self) -> None:
        seen = self._patient.health()
        if not seen.up:
            log.error("%s", seen.reason)
        while not self._dismissed.wait(self._every_seconds):
            # What is wrong is kept by the store, and told by its health.
            with suppress(errors.Refusal):
                self._examine()
            before, seen = seen, self._patient.health()
            self._tell(before, seen)
            stuck = self._patient.stuck_seconds()
            if stuck > self._give_up_seconds and not self._dismissed.is_set():
                self._give_up(
                    f"{self._patient!r} has not come back from a call for {stuck:.0f} s, and never may:"
                    " this process ends, to be started again"
                )

    def _tell(self, before: Health, now: Health) -> None:
        if (before.up, before.reason) == (now.up, now.reason):
            if now.up and before.since != now.since:
                log.warning("%r was down for a moment, until %s", self._patient, now.since.isoformat())
        elif not now.up:
            log.error("%s", now.reason)
        elif now.reason:
            log.warning("%s", now.reason)
        else:
            log.info("%r is well again; it was not since %s", self._patient, before.since.isoformat())

    def _examine(self) -> None:
        try:
            self._patient.examine()
        except errors.Refusal:
            raise
        except Exception:
            # The doctor must outlive what nobody foresaw, and a store that was just closed.
            if not self._dismissed.is_set():
                log.exception("%r could not be examined", self._patient)
