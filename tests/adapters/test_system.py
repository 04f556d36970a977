"""The operating system's clock and randomness (SPEC B8)."""

import itertools
from collections.abc import Callable
from datetime import timedelta
from time import CLOCK_REALTIME, clock_gettime

import pytest

from birthmark import errors
from birthmark.adapters.system import SystemClock, SystemEntropy
from birthmark.ports import Clock, Entropy


def test_the_clock_tells_the_time_in_utc() -> None:
    clock: Clock = SystemClock()
    before = clock_gettime(CLOCK_REALTIME)
    now = clock.now()
    after = clock_gettime(CLOCK_REALTIME)
    # datetime cuts to microseconds.
    assert before - 1e-6 <= now.timestamp() <= after + 1e-6
    assert now.utcoffset() == timedelta(0)


@pytest.mark.parametrize("size", [1, 16, 20, 32, 4096])
def test_entropy_gives_what_is_asked_and_never_the_same(size: int) -> None:
    entropy: Entropy = SystemEntropy()
    draws = [entropy.token(size) for _ in range(64)]
    assert {len(draw) for draw in draws} == {size}
    if size >= 16:
        assert len(set(draws)) == 64


@pytest.mark.parametrize("size", [0, -1])
def test_asking_for_nothing_is_a_fault(size: int) -> None:
    with pytest.raises(ValueError, match="at least one octet"):
        SystemEntropy().token(size)


def alternating() -> Callable[[int], bytes]:
    starts = itertools.cycle([0, 1])

    def draw(size: int) -> bytes:
        start = next(starts)
        return bytes(range(start, start + size))

    return draw


def failing(_size: int) -> bytes:
    raise OSError(38, "Function not implemented")


def test_a_generator_that_repeats_itself_is_stopped() -> None:
    """B8: the draw before is the same."""
    entropy = SystemEntropy(lambda size: bytes(range(size)))
    entropy.token(20)
    with pytest.raises(errors.IntegrityFailure, match="stuck"):
        entropy.token(20)
    with pytest.raises(errors.IntegrityFailure, match="stuck"):
        entropy.token(20)


@pytest.mark.parametrize("octet", [0x00, 0x41, 0xFF])
def test_a_generator_stuck_at_one_octet_is_stopped_at_once(octet: int) -> None:
    with pytest.raises(errors.IntegrityFailure, match="stuck"):
        SystemEntropy(lambda size: bytes([octet]) * size).token(16)


def test_only_neighbours_are_compared_and_short_draws_may_repeat() -> None:
    """What could happen by chance is let pass: one octet repeats every 256th time."""
    entropy = SystemEntropy(alternating())
    for _ in range(4):
        assert len(entropy.token(16)) == 16
    short = SystemEntropy(bytes)
    assert [short.token(1), short.token(1), short.token(15)] == [b"\0", b"\0", bytes(15)]


def test_a_short_draw_is_not_made_longer() -> None:
    with pytest.raises(errors.IntegrityFailure, match="gave 19 octets for 20"):
        SystemEntropy(lambda size: bytes(range(size - 1))).token(20)


def test_no_randomness_is_unavailable() -> None:
    with pytest.raises(errors.Unavailable):
        SystemEntropy(failing).token(20)
