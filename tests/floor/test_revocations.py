"""Names of partitions and lines of CRLs (SPEC F2)."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birthmark.floor.revocations import Partitioning, partition_name, revocation_key


@pytest.mark.parametrize(
    ("partitioning", "batch", "name"),
    [
        (Partitioning.NONE, "2026-W47", "all"),
        (Partitioning.RUN, "2026-W47", "run.R1"),
        (Partitioning.BATCH, "2026-W47", "batch.2026-W47"),
        # printf 'week 47/a' | sha256sum | cut -c-32
        (Partitioning.BATCH, "week 47/a", "batch.-52bcd29719698c2f675a9bc1c2dc29b9"),
    ],
)
def test_a_partition_is_named_after_the_run_or_the_batch(
    partitioning: Partitioning, batch: str, name: str
) -> None:
    assert partition_name(partitioning, "R1", batch) == name


@given(st.text(min_size=1, max_size=64), st.text(min_size=1, max_size=64))
def test_a_partition_can_stand_in_a_url_and_two_batches_never_share_one(one: str, other: str) -> None:
    names = [partition_name(Partitioning.BATCH, "R1", batch) for batch in (one, other)]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{3,58}", name) and name not in {".", ".."} for name in names)
    assert (names[0] == names[1]) is (one == other)


def test_lines_of_one_crl_are_neighbours() -> None:
    """No other CRL's lines lie between: what a walk from the prefix to its end relies on."""
    keys = sorted(
        revocation_key(authority, partition, serial)
        for authority in ("a", "a-b", "ab")
        for partition in ("all", "batch.x", "run.x")
        for serial in ("01", "ff")
    )
    for prefix in {key.rpartition("/")[0] + "/" for key in keys} | {"a/", "a-b/", "ab/"}:
        inside = [key.startswith(prefix) for key in keys]
        first = inside.index(True)
        assert inside[first : first + sum(inside)] == [True] * sum(inside)
