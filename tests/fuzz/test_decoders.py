"""A decoder without a target fails the build: this compares what there is with what the targets reach."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random  # noqa: TID251  # not a secret among them
from types import FrameType
from typing import Any

import pytest

from tests.fuzz.decoders import ELSEWHERE, SOURCE, decoders
from tests.fuzz.mutators import changed
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS

CHANGES = 8
"""Changed inputs for each target: what is remembered of an octet string is not read again."""


@contextmanager
def calls(into: set[str]) -> Iterator[None]:
    """Take down which functions of the package are called."""
    prefix = f"{SOURCE}/"

    def called(frame: FrameType, event: str, _argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(prefix):
            into.add(f"{code.co_filename.removeprefix(prefix)}:{code.co_qualname}")

    before = sys.getprofile()
    sys.setprofile(called)
    try:
        yield
    finally:
        sys.setprofile(before)


def reached(target: Target) -> set[str]:
    """Return what a target calls with its inputs; what it makes to be able to, was made before."""
    seeds = list(target.seeds())
    target.attempt(seeds[0])
    random, found = Random(1), set[str]()  # noqa: S311  # repeatable, not secret
    with calls(found):
        for seed in seeds:
            target.attempt(seed)
        for _ in range(CHANGES):
            target.attempt(changed(target.shape, random.choice(seeds), random))
    return found


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_every_decoder_has_a_target_or_a_reason() -> None:
    known = {name for target in TARGETS.values() for name in reached(target)}
    excepted = [name for names in ELSEWHERE.values() for name in names]
    there = set(decoders())
    assert sorted(there - known - set(excepted)) == [], "give it a target, or a reason in decoders.ELSEWHERE"
    assert sorted(set(excepted) & known) == [], "a target reaches it: take it out of ELSEWHERE"
    assert sorted(set(excepted) - there) == [], "there is no such decoder any more"
    assert len(set(excepted)) == len(excepted)
