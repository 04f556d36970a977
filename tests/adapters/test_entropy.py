"""Randomness under test while it is used (SPEC B8; NIST SP 800-90B section 4.4)."""

import itertools
import random
import threading
from collections.abc import Callable, Sequence
from fractions import Fraction
from math import ceil, comb, log2
from pathlib import Path

import pytest

from birthmark import errors
from birthmark.adapters.entropy import IN_WINDOW, REPEATED, STARTUP_OCTETS, WINDOW, SystemEntropy
from birthmark.floor.devices import KeyOrigin
from birthmark.pki import algorithms
from birthmark.pki.keys import KeyAlgorithm
from birthmark.ports import Entropy
from tests.support.realm import make_line, proof, workpiece

FAILS = "the source of randomness fails its health test: "


class Lying:
    """A source that is good, and then what a test makes of it."""

    def __init__(self) -> None:
        self._good = random.Random(4711)  # noqa: S311  # a source that a test can repeat
        self.lie: Callable[[int], bytes] | None = None
        self.asked: list[int] = []

    def __call__(self, size: int) -> bytes:
        self.asked.append(size)
        return self._good.randbytes(size) if self.lie is None else self.lie(size)


def served(source: Sequence[bytes]) -> Callable[[int], bytes]:
    """Return a source that gives a good start and then these draws."""
    draws = iter([random.Random(1).randbytes(STARTUP_OCTETS), *source])  # noqa: S311  # as above
    return lambda _size: next(draws)


def all_different(size: int, first: int = 0) -> bytes:
    return bytes((first + at) % 256 for at in range(size))


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


# --- the cutoffs


def at_least(count: int, of: int) -> Fraction:
    """Return the probability that so many of these octets equal a given one."""
    p = Fraction(1, 256)
    return sum((comb(of, k) * p**k * (1 - p) ** (of - k) for k in range(count, of + 1)), Fraction(0))


def test_the_cutoffs_are_those_of_the_standard() -> None:
    """SP 800-90B sections 4.4.1 and 4.4.2 with H = 8 and alpha = 2**-40, computed exactly."""
    alpha = Fraction(1, 2**40)
    assert 1 + ceil(40 / 8) == REPEATED
    critical = next(k for k in range(513) if at_least(k + 1, 512) <= alpha)
    assert WINDOW == 512
    assert 1 + critical == IN_WINDOW


def test_the_false_positive_rates_are_what_the_module_says() -> None:
    assert Fraction(1, 256) ** (REPEATED - 1) == Fraction(1, 2**40)
    window = at_least(IN_WINDOW - 1, 511)
    assert round(-log2(window), 1) == 37.6
    of_a_device = 100 * Fraction(1, 2**40) + Fraction(100, 512) * window
    assert Fraction(1, 2000) < 10_000_000 * of_a_device < Fraction(1, 1000)


def test_what_is_just_allowed_passes_and_what_is_not_fails() -> None:
    """Repetition count: five equal octets pass, six do not, also if two draws share them."""
    draws = [b"\x01\x02" + b"\x07" * 5 + b"\x03", b"\x04" + b"\x09" * 3, b"\x09" * 2, b"\x09"]
    entropy = SystemEntropy(served(draws))
    for draw in draws[:3]:
        assert entropy.token(len(draw)) == draw
    with pytest.raises(errors.Unavailable, match="repetition count, 6 equal octets in a row"):
        entropy.token(1)


@pytest.mark.parametrize(("equal", "passes"), [(18, True), (19, False)])
def test_a_window_holds_so_many_equal_octets_and_no_more(equal: int, passes: bool) -> None:  # noqa: FBT001  # a parameter
    """Adaptive proportion: windows of 512, whatever the draws are; no run of six is in it."""
    rest = itertools.cycle(range(1, 256))
    window = bytes(0 if at % 2 == 0 and at // 2 < equal else next(rest) for at in range(512))
    entropy = SystemEntropy(served([window[at : at + 64] for at in range(0, 512, 64)] + [all_different(64)]))

    def all_of_it() -> bytes:
        return b"".join(entropy.token(64) for _ in range(8))

    if passes:
        assert all_of_it() == window
        entropy.token(64)
    else:
        with pytest.raises(errors.Unavailable, match="adaptive proportion, 19 equal octets among 512"):
            all_of_it()


# --- a source that fails


@pytest.mark.parametrize(
    "lie",
    [
        bytes,
        lambda size: b"\xff" * size,
        lambda size: bytes(at % 2 for at in range(size)),
        lambda size: bytes(at % 16 for at in range(size)),
        lambda size: bytes(size)[: size - 1],
        all_different,
    ],
    ids=["zeros", "ones", "two values", "four bits", "too short", "the same again"],
)
def test_while_the_source_lies_nothing_is_given_out_and_then_all_goes_on(lie: Callable[[int], bytes]) -> None:
    source = Lying()
    entropy = SystemEntropy(source)
    entropy.token(32)
    source.lie = lie

    def draw_a_window() -> None:
        for _ in range(WINDOW // 32):  # two values show after a window at the latest
            entropy.token(32)

    with pytest.raises(errors.Unavailable, match=FAILS):
        draw_a_window()
    if lie is not all_different:  # which begins anew with every draw, and no single draw shows that
        for _ in range(3):
            with pytest.raises(errors.Unavailable, match=FAILS):
                entropy.token(32)
    source.lie = None
    source.asked.clear()
    assert len(entropy.token(32)) == 32
    assert source.asked == [STARTUP_OCTETS, 32], "a clean test of its own comes first"
    entropy.token(32)
    assert source.asked == [STARTUP_OCTETS, 32, 32], "and only once"


def test_a_source_that_is_bad_from_the_start_gives_nothing() -> None:
    entropy = SystemEntropy(bytes)
    for _ in range(2):
        with pytest.raises(errors.Unavailable, match=FAILS):
            entropy.token(1)


def test_no_randomness_is_unavailable() -> None:
    def failing(_size: int) -> bytes:
        raise OSError(38, "Function not implemented")

    with pytest.raises(errors.Unavailable, match="gives no random octets"):
        SystemEntropy(failing).token(20)


def test_eight_threads_draw_what_nobody_else_draws() -> None:
    entropy, drawn = SystemEntropy(), set[bytes]()

    def draw() -> None:
        drawn.update(entropy.token(16) for _ in range(500))

    threads = [threading.Thread(target=draw) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(drawn) == 4000


# --- what depends on it


def test_no_key_is_made_for_a_device_while_the_source_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B7, B8: OpenSSL draws from the same source; the line is held, and goes on with the same request."""
    line = make_line(tmp_path, f"sqlite:///{tmp_path / 'birthmark.db'}")
    try:
        line.open_run(origins=(KeyOrigin.DELIVERED,))
        source = Lying()
        failing = SystemEntropy(source)
        for part in (line.service.issue, line.service.issue._certifier):  # noqa: SLF001  # where it is drawn
            monkeypatch.setattr(part, "_entropy", failing)
        device, size = workpiece("D1", delivered=True), line.size()
        made: list[KeyAlgorithm] = []

        def maker(algorithm: KeyAlgorithm) -> Callable[[], algorithms.PrivateKey]:
            made.append(algorithm)
            return algorithms.maker(algorithm)

        monkeypatch.setattr("birthmark.services.delivered.maker", maker)
        source.lie = bytes
        with pytest.raises(errors.Unavailable, match=FAILS):
            line.issue(device, key="k")
        assert (made, line.size()) == ([], size)
        source.lie = None
        issued = line.issue(device, key="k")
        assert len(made) == 1
        line.prove(proof(issued, device.key))
    finally:
        line.close()
