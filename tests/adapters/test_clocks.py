"""A clock that notices when it is set (SPEC E4)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from birthmark import errors
from birthmark.adapters.clocks import SLEW, WatchedClock
from birthmark.ports import Clock
from tests.support.realm import START, Line, make_line, workpiece

TOLERANCE = 30.0
HOUR = 3600.0


@dataclass(slots=True)
class Machine:
    """A machine whose two clocks a test turns."""

    wall: float = START.timestamp()
    boot: float = 1000.0

    def clock(self) -> WatchedClock:
        return WatchedClock(TOLERANCE, wall=lambda: self.wall, boot=lambda: self.boot)

    def go(self, seconds: float, *, slew: float = 0.0) -> None:
        """Let time pass, with the time of day so much too fast."""
        self.boot += seconds
        self.wall += seconds * (1 + slew)


def test_it_tells_the_time_of_the_machine() -> None:
    clock: Clock = WatchedClock(TOLERANCE)
    before = datetime.now(UTC)
    now = clock.now()
    assert before - timedelta(microseconds=1) <= now <= datetime.now(UTC)
    assert now.utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    ("by", "said"),
    [
        (3 * HOUR, r"jumped forward by 3:00:00, to 2026-11-22T14:00:0\d\+00:00"),
        (-3 * HOUR, r"jumped back by 3:00:00, to 2026-11-22T08:00:0\d\+00:00"),
        (31.0, r"jumped forward by 0:00:31"),
        (-31.0, r"jumped back by 0:00:31"),
        (1e12, r"jumped forward by .* to no time at all"),
        (-1e11, r"jumped back by "),
    ],
)
def test_a_jump_is_told_with_what_to_do_and_ends_when_the_clock_is_put_back(by: float, said: str) -> None:
    machine = Machine()
    clock = machine.clock()
    machine.go(HOUR)
    clock.now()
    machine.wall += by
    for _ in range(3):
        with pytest.raises(
            errors.Unavailable, match=rf"{said}.*held until it is put back; if .* right, restart"
        ):
            clock.now()
        machine.go(1)
    machine.wall -= by
    assert clock.now() == START + timedelta(seconds=HOUR + 3)


def test_a_jump_is_not_forgotten_while_it_is_looked_at() -> None:
    machine = Machine()
    clock = machine.clock()
    machine.wall += 40
    for _ in range(24 * 60):
        with pytest.raises(errors.Unavailable, match="jumped forward by 0:00:40"):
            clock.now()
        machine.go(60)


def test_a_new_process_takes_the_time_as_it_is() -> None:
    machine = Machine()
    machine.clock().now()
    machine.wall += 3 * HOUR
    assert machine.clock().now() == START + timedelta(hours=3)


def test_a_machine_that_slept_has_not_jumped() -> None:
    """CLOCK_BOOTTIME goes on meanwhile."""
    machine = Machine()
    clock = machine.clock()
    machine.go(100 * HOUR)
    assert clock.now() == START + timedelta(hours=100)


@pytest.mark.parametrize("direction", [1, -1])
def test_a_clock_that_is_slewed_for_days_has_not_jumped(direction: int) -> None:
    """As fast as adjtimex(2) lets it: 43 seconds a day."""
    machine = Machine()
    clock = machine.clock()
    for _ in range(7 * 24):
        machine.go(HOUR, slew=direction * SLEW * 0.99)
        clock.now()
    machine.go(24 * HOUR, slew=direction * SLEW * 0.99)
    clock.now()


def test_small_steps_add_up_to_a_jump() -> None:
    machine = Machine()
    clock = machine.clock()
    for _ in range(3):
        machine.go(1)
        machine.wall += 9.9
        clock.now()
    machine.go(1)
    machine.wall += 9.9
    with pytest.raises(errors.Unavailable, match="jumped forward by 0:00:40"):
        clock.now()


def test_a_small_step_is_forgotten_as_fast_as_a_clock_is_slewed() -> None:
    machine = Machine()
    clock = machine.clock()
    machine.wall += 20
    clock.now()
    for _ in range(24):
        machine.go(HOUR)
        clock.now()
    machine.wall += 20
    clock.now()


# --- the log is not poisoned


@contextmanager
def line_with(machine: Machine, tmp_path: Path) -> Iterator[Line]:
    line = make_line(tmp_path, f"sqlite:///{tmp_path / 'birthmark.db'}")
    line.open_run()
    try:
        yield line
    finally:
        line.close()


def test_nothing_is_dated_in_the_future_and_the_line_goes_on(tmp_path: Path) -> None:
    """Were one entry dated three hours ahead, the store would refuse the right time for three hours."""
    machine = Machine()
    with line_with(machine, tmp_path) as line:
        service = line.another_service(clock=machine.clock())
        line.issue(workpiece("D1"), service=service)
        size = line.size()
        machine.wall += 3 * HOUR
        with pytest.raises(errors.Unavailable, match="jumped forward by 3:00:00"):
            line.issue(workpiece("D2"), key="d2", service=service)
        assert line.size() == size
        machine.wall -= 3 * HOUR
        line.issue(workpiece("D2"), key="d2", service=service)
        at = [datetime.fromisoformat(entry["at"]) for entry in line.entries()]
        assert max(at) < START + timedelta(minutes=1)
