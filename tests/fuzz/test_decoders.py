"""A decoder without a target fails the build: this compares what there is with what the targets reach."""

import subprocess
import sys
from pathlib import Path

from tests.fuzz.decoders import ELSEWHERE, decoders

_ROOT = Path(__file__).parents[2]


def test_every_decoder_has_a_target_or_a_reason() -> None:
    asked = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.reach"], cwd=_ROOT, capture_output=True, text=True, check=False
    )
    assert asked.returncode == 0, asked.stderr
    known = set(asked.stdout.split())
    excepted = [name for names in ELSEWHERE.values() for name in names]
    there = set(decoders())
    assert sorted(there - known - set(excepted)) == [], "give it a target, or a reason in decoders.ELSEWHERE"
    assert sorted(set(excepted) & known) == [], "a target reaches it: take it out of ELSEWHERE"
    assert sorted(set(excepted) - there) == [], "there is no such decoder any more"
    assert len(set(excepted)) == len(excepted)
