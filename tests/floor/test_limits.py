"""Token buckets: what is left, what comes back, and when it is worth trying again (SPEC C2)."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birthmark import errors
from birthmark.floor.limits import Bucket, Rate, bucket_of, take

START = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
NAME = bucket_of("client", "station:ST01")
RATE = Rate(per_minute=60, burst=3)


def spent(bucket: Bucket | None, rate: Rate, at: datetime, times: int) -> Bucket:
    for _ in range(times):
        bucket = take(bucket, NAME, rate, at)
    assert bucket is not None
    return bucket


def test_a_bucket_that_was_never_used_is_full_and_then_empty() -> None:
    bucket = spent(None, RATE, START, 3)
    with pytest.raises(errors.RateLimited, match="station:ST01 may make 60 requests a minute, 3 at once"):
        take(bucket, NAME, RATE, START)


def test_what_is_refused_says_when_there_will_be_a_token_and_then_there_is_one() -> None:
    slow = Rate(per_minute=2, burst=1)
    bucket = spent(None, slow, START, 1)
    with pytest.raises(errors.RateLimited) as refused:
        take(bucket, NAME, slow, START + timedelta(seconds=3))
    assert refused.value.retry_after == 27
    take(bucket, NAME, slow, START + timedelta(seconds=30))


def test_one_request_is_one() -> None:
    slow = Rate(per_minute=1, burst=1)
    with pytest.raises(errors.RateLimited, match="station:ST01 may make 1 request a minute, 1 at once"):
        take(spent(None, slow, START, 1), NAME, slow, START)


def test_time_that_goes_back_gives_nothing() -> None:
    bucket = spent(None, RATE, START, 3)
    with pytest.raises(errors.RateLimited):
        take(bucket, NAME, RATE, START - timedelta(hours=1))


def test_a_station_that_rested_for_years_finds_a_full_bucket_and_no_more() -> None:
    huge = Rate(per_minute=1_000_000_000, burst=1_000_000_000)
    for rate in (RATE, huge):
        rested = take(spent(None, rate, START, 3), NAME, rate, START + timedelta(days=36500))
        assert rested.thousandths == (rate.burst - 1) * 1000


@given(
    gaps=st.lists(st.integers(0, 5000), min_size=1, max_size=60),
    per_minute=st.integers(1, 600),
    burst=st.integers(1, 20),
)
def test_nobody_gets_more_than_the_burst_and_what_time_brought(
    gaps: list[int], per_minute: int, burst: int
) -> None:
    rate, at, bucket, granted = Rate(per_minute=per_minute, burst=burst), START, None, 0
    for gap in gaps:
        at += timedelta(milliseconds=gap)
        try:
            bucket = take(bucket, NAME, rate, at)
        except errors.RateLimited:
            continue
        granted += 1
    minutes = (at - START) / timedelta(minutes=1)
    assert granted <= burst + per_minute * minutes + 1e-9
