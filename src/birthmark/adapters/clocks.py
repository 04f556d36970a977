"""The clock of a service, which notices when the time of day is set under it (SPEC E4).

An entry of the log that is dated in the future cannot be taken back, and a certificate that begins in the
past covers what never was; so while the time of day has jumped, nobody is told a time.  A jump shows against
CLOCK_BOOTTIME (clock_gettime(2)), which nothing sets and which goes on while the machine sleeps.

What is kept is the difference of the two clocks, as it should be.  It follows the time of day as fast as a
clock that is slewed can go (500 ppm, adjtimex(2)) and no faster, so that several small steps add up to a
jump.  A reading farther off than the tolerance is a jump, forward or back; it ends by itself when the clock
is put back.  If the new time is the right one, only a person can know that: a restart takes it as it is.

Left to others: that the time is right when a process starts (the store refuses one before the log's last
entry), and cutting times to seconds where DER needs it.
"""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from birthmark import errors

__all__ = ["SLEW", "WatchedClock"]

SLEW = 500e-6
"""Seconds a second by which a clock is slewed at most."""


def _boot_time() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class WatchedClock:
    """The time of day, as long as it has not jumped.  Safe to call from any thread.

    Args:
        tolerance_seconds: how far the time of day may be from where it should be.
        wall: reads the time of day, in seconds since 1970.
        boot: reads a clock that nobody sets, in seconds.
    """

    __slots__ = ("_boot", "_lock", "_offset", "_read_at", "_tolerance", "_wall")

    def __init__(
        self,
        tolerance_seconds: float,
        *,
        wall: Callable[[], float] = time.time,
        boot: Callable[[], float] = _boot_time,
    ) -> None:
        self._tolerance = tolerance_seconds
        self._wall = wall
        self._boot = boot
        self._lock = threading.Lock()
        self._read_at = boot()
        self._offset = wall() - self._read_at

    def now(self) -> datetime:
        """Return the time, aware, in UTC.

        Raises:
            errors.Unavailable: the time of day has jumped.
        """
        with self._lock:
            boot, wall = self._boot(), self._wall()
            jump = wall - boot - self._offset
            slewed = SLEW * max(boot - self._read_at, 0.0)
            self._read_at = boot
            if abs(jump) > self._tolerance + slewed:
                raise errors.Unavailable(_said(jump, wall))
            self._offset += min(max(jump, -slewed), slewed)
        return datetime.fromtimestamp(wall, UTC)


def _said(jump: float, wall: float) -> str:
    by = timedelta(seconds=round(abs(jump)))
    direction = "forward" if jump > 0 else "back"
    try:
        shown = datetime.fromtimestamp(wall, UTC).isoformat(timespec="seconds")
    except (OverflowError, ValueError, OSError):
        shown = "no time at all"
    return (
        f"the machine's clock jumped {direction} by {by}, to {shown}: the line is held until it is put back;"
        " if the new time is right, restart the service"
    )
