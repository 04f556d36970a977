"""Refusals that are counted before they go on record: a flood of them is one entry now and then.

Every other refusal is an entry of its own, and costs its actor as much as what is granted.  Who goes too fast
has an empty bucket, and what never was a request is free to send: entry by entry they could fill the disk.
"""

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from birthmark import errors
from birthmark.ports import Store, carry
from birthmark.services.acts import record_refusal

__all__ = ["MINUTE", "Tally", "hasty"]

log = logging.getLogger(__name__)

MINUTE = 60.0

_Seen = TypeVar("_Seen", bound=Hashable)


class Tally(Generic[_Seen]):
    """How often each was seen by one process, until it is on record."""

    def __init__(
        self, record: Callable[[_Seen, int, bool], None], *, first_seconds: float, seconds: float
    ) -> None:
        """Count.

        Args:
            record: puts a count on record; True for the last time.  It may block.  What it refuses waits.
            first_seconds: from the first that is seen until it is recorded.
            seconds: from then on, as long as there are more.
        """
        self._record = record
        self._first, self._seconds = first_seconds, seconds
        self._counts: Counter[_Seen] = Counter()
        self._counting, self._recording = threading.Lock(), threading.Lock()
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """Return how many different ones wait."""
        return len(self._counts)

    def __contains__(self, seen: _Seen) -> bool:
        """Return whether one like it waits."""
        return seen in self._counts

    def note(self, seen: _Seen) -> None:
        """Note one, on the loop's thread."""
        with self._counting:
            self._counts[seen] += 1
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._flush())

    async def _flush(self) -> None:
        try:
            await asyncio.sleep(self._first)
            while self._counts:
                await asyncio.to_thread(self.record_all)
                await asyncio.sleep(self._seconds)
        finally:
            self._task = None

    def record_all(self, *, last: bool = False) -> None:
        """Put on record what waits; what cannot be recorded now waits on, but for the last time.  Blocks."""
        with self._recording:
            with self._counting:
                counts, self._counts = self._counts, Counter()
            waiting: Counter[_Seen] = Counter()
            for seen, count in counts.items():
                try:
                    self._record(seen, count, last)
                except errors.RateLimited:
                    waiting[seen] = count  # told together with those to come
                except errors.Refusal as unrecorded:
                    # The peer was refused all the same; it goes on record when the store is back.
                    waiting[seen] = count
                    log.warning("refusals wait to be recorded: %s", unrecorded)
            with self._counting:
                self._counts.update(waiting)


def hasty(store: Store) -> Tally[str]:
    """Count who was refused as too fast: one entry a minute and actor, for whom no bucket pays."""

    def record(actor: str, count: int, _last: bool) -> None:  # noqa: FBT001  # see Tally
        told = errors.RateLimited(f"{count} requests of {actor} were refused as too fast")
        carry(store, record_refusal(actor, "requests", {"count": count}, told))

    return Tally(record, first_seconds=MINUTE, seconds=MINUTE)
