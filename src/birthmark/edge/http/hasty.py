"""Refusals of those who go too fast, counted: one entry a minute and actor, for whom no bucket pays.

Every other refusal is an entry of its own, and costs its actor as much as what is granted.  Somebody whose
bucket is empty could otherwise not be told of, or fill the disk.
"""

import asyncio
import logging
from collections import Counter
from contextlib import suppress

from birthmark import errors
from birthmark.ports import Store, carry
from birthmark.services.acts import record_refusal

__all__ = ["Hasty"]

log = logging.getLogger(__name__)

MINUTE = 60.0


class Hasty:
    """Who was refused as too fast in this minute, by one process; used on the loop's thread."""

    def __init__(self, store: Store) -> None:
        """Put the counts on this record."""
        self._store = store
        self._counts: Counter[str] = Counter()
        self._task: asyncio.Task[None] | None = None
        self._ending = asyncio.Event()

    def note(self, actor: str) -> None:
        """Note one refusal."""
        self._counts[actor] += 1
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._flush())

    async def end(self) -> None:
        """Put on record what waits, at the end of the service."""
        self._ending.set()
        if self._task is not None:
            await self._task

    async def _flush(self) -> None:
        try:
            while self._counts:
                with suppress(TimeoutError):
                    async with asyncio.timeout(MINUTE):
                        await self._ending.wait()
                counts, self._counts = self._counts, Counter()
                self._counts.update(await asyncio.to_thread(self._unrecorded, counts))
                if self._ending.is_set():
                    return
        finally:
            self._task = None

    def _unrecorded(self, counts: Counter[str]) -> Counter[str]:
        """Put counts on record; return those that cannot be recorded now.  Blocks."""
        waiting: Counter[str] = Counter()
        for actor, count in counts.items():
            told = errors.RateLimited(f"{count} requests of {actor} were refused as too fast")
            try:
                carry(self._store, record_refusal(actor, "requests", {"count": count}, told))
            except errors.Refusal as unrecorded:
                waiting[actor] = count
                log.warning("refusals wait to be recorded: %s", unrecorded)
        return waiting
