"""Each target with its seeds, with what once broke it, and with what hypothesis makes of the seeds."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.inputs import KEPT, kept
from tests.fuzz.mutators import changed
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS

# What the library is going to refuse some day: said on standard error, and to nobody who asks.
pytestmark = pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
EXAMPLES = 50
"""For each target: `make fuzz` tries millions."""
every_target = pytest.mark.parametrize("name", TARGETS)


@every_target
def test_seeds_are_accepted(name: str) -> None:
    """A target that refuses its own examples tests a door that is shut."""
    target = TARGETS[name]
    refused = [number for number, seed in enumerate(target.seeds()) if not target.attempt(seed)]
    assert refused == [] or target.refused_seeds


@every_target
def test_what_broke_it_once_does_not_again(name: str) -> None:
    for file in kept(name):
        TARGETS[name].attempt(file.read_bytes())


def test_every_kept_input_has_a_target_and_an_origin() -> None:
    for folder in KEPT.iterdir():
        if folder.is_dir():
            assert folder.name in TARGETS
            assert (folder / "ORIGIN").is_file()


@st.composite
def mutated(draw: st.DrawFn, target: Target, seeds: Sequence[bytes]) -> bytes:
    """A seed changed a few times, two seeds cut and joined, or anything."""
    octets, random = draw(st.sampled_from(seeds)), draw(st.randoms(use_true_random=False))
    match draw(st.integers(0, 9)):
        case 0:
            return draw(st.binary(max_size=64))
        case 1:
            other = draw(st.sampled_from(seeds))
            octets = octets[: draw(st.integers(0, len(octets)))] + other[draw(st.integers(0, len(other))) :]
        case _:
            for _ in range(draw(st.integers(1, 4))):
                octets = changed(target.shape, octets, random)
    return octets[: target.longest]


@every_target
def test_nothing_else_than_a_refusal(name: str) -> None:
    target: Target = TARGETS[name]

    @settings(max_examples=EXAMPLES)
    @given(mutated(target, list(target.seeds())))
    def try_it(data: bytes) -> None:
        target.attempt(data)

    try_it()
