"""Refusals of those who go too fast, counted: one entry a minute and actor, for whom no bucket pays.

Every other refusal is an entry of its own, and costs its actor as much as what is granted.  Somebody whose
bucket is empty could otherwise not be told of, or fill the disk.
"""

import asyncio
import logging
from collections import Counter

from birthmark import errors
from birthmark.ports import Store, carry
from birthmark.services.acts import record_refusal

__all__ = ["MINUTE", "Hasty"]

log = logging.getLogger(__name__)

MINUTE = 60.0


class Hasty:
    """Who was refused as too fast in this minute, by one process."""

    def __init__(self, store: Store) -> None:
        """Put the counts on this record."""
        self._store = store
        self._counts: Counter[str] = Counter()
        self._task: asyncio.Task[None] | None = None

    def note(self, actor: str) -> None:
        """Note one refusal, on the loop's thread."""
        self._counts[actor] += 1
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._flush())

    def end(self) -> None:
        """Put on record what waits, at the end of the service; blocks."""
        if self._task is not None:
            self._task.cancel()
        self.record_all()

    def record_all(self) -> None:
        """Put on record what waits; what cannot be recorded now waits on.  Blocks."""
        counts, self._counts = self._counts, Counter()
        for actor, count in counts.items():
            told = errors.RateLimited(f"{count} requests of {actor} were refused as too fast")
            try:
                carry(self._store, record_refusal(actor, "requests", {"count": count}, told))
            except errors.Refusal as unrecorded:
                self._counts[actor] += count
                log.warning("refusals wait to be recorded: %s", unrecorded)

    async def _flush(self) -> None:
        while self._counts:
            await asyncio.sleep(MINUTE)
            await asyncio.to_thread(self.record_all)
        self._task = None
