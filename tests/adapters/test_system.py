"""The operating system's clock."""

from datetime import timedelta
from time import CLOCK_REALTIME, clock_gettime

from birthmark.adapters.system import SystemClock
from birthmark.ports import Clock


def test_the_clock_tells_the_time_in_utc() -> None:
    clock: Clock = SystemClock()
    before = clock_gettime(CLOCK_REALTIME)
    now = clock.now()
    after = clock_gettime(CLOCK_REALTIME)
    # datetime cuts to microseconds.
    assert before - 1e-6 <= now.timestamp() <= after + 1e-6
    assert now.utcoffset() == timedelta(0)
