"""The operating system's clock and randomness, behind the ``Clock`` and ``Entropy`` ports.

Rules kept here: times are aware and in UTC; what is random is tested (``entropy``).  Left to others: a clock
that jumps (``clocks``), and cutting times to seconds where DER needs it.
"""

from datetime import UTC, datetime

from birthmark.adapters.entropy import SystemEntropy

__all__ = ["SystemClock", "SystemEntropy"]


class SystemClock:
    """The time of day, as the operating system keeps it."""

    __slots__ = ()

    def now(self) -> datetime:
        """Return the time, aware, in UTC."""
        return datetime.now(UTC)
