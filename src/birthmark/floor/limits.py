"""How fast one may go: token buckets, kept with the record: no restart and no second process refills them.

A bucket holds up to ``burst`` tokens, gets ``per_minute`` a minute, and an act takes one.  Time is that of
the commit, which never goes back.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from birthmark import errors

__all__ = ["Bucket", "Rate", "bucket_of", "take"]

_MILLISECOND = timedelta(milliseconds=1)
_MINUTE = 60_000
"""In milliseconds."""
_WHOLE = 1000
"""A token is a thousand of what is counted, so that little time adds something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """How fast, and how many at once."""

    per_minute: int
    burst: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """What is left of somebody's rate."""

    id: str
    """Whose: ``client/station:ST01``, ``run/R1``."""
    thousandths: int
    """Tokens left, in thousandths."""
    at: datetime
    """When that was."""


def bucket_of(kind: str, name: str) -> str:
    """Return the id of a bucket: of a ``client`` by its id, of a ``run`` by its name."""
    return f"{kind}/{name}"


def take(bucket: Bucket | None, name: str, rate: Rate, at: datetime) -> Bucket:
    """Return the bucket with one token less.

    Args:
        bucket: as it was; None for one never used, which is full.
        name: the bucket's id.
        rate: of this bucket, as it is set now.
        at: time of the act.

    Raises:
        errors.RateLimited: it is empty; says when there will be a token.
    """
    full = rate.burst * _WHOLE
    left = full
    if bucket is not None:
        # Whole numbers: a timedelta times a rate would overflow after some months.
        passed = max(0, (at - bucket.at) // _MILLISECOND)
        left = min(full, bucket.thousandths + passed * rate.per_minute * _WHOLE // _MINUTE)
    if left < _WHOLE:
        missing = _WHOLE - left
        seconds = -(-missing * 60 // (rate.per_minute * _WHOLE))
        raise errors.RateLimited(
            f"{name.partition('/')[2]} may make {rate.per_minute} request{'s'[: rate.per_minute != 1]}"
            f" a minute, {rate.burst} at once",
            retry_after=seconds,
        )
    return Bucket(id=name, thousandths=left - _WHOLE, at=at)
