"""CMP transactions that nobody confirms: each is ended when its time is over, on every process of the plane.

What is open is learnt from the record when a process begins, of earlier ones, too; in memory are names and
times.  The record decides: a transaction that was prolonged by another process is looked at again later.
"""

import asyncio
import logging
from contextlib import suppress
from datetime import datetime

from birthmark import errors
from birthmark.edge.application import Application
from birthmark.edge.http.border import Border
from birthmark.floor.enrolments import CMPTransaction

__all__ = ["Unconfirmed"]

log = logging.getLogger(__name__)

SWEEP_SECONDS = 1.0
_LATER = "what was not confirmed is not revoked yet"


class Unconfirmed:
    """Transactions whose time runs."""

    def __init__(self, border: Border, application: Application) -> None:
        """End the transactions of this application's realm."""
        self._border = border
        self._app = application
        self._until: dict[str, datetime] = {}
        self._sweeper: asyncio.Task[None] | None = None

    def watch(self, row: CMPTransaction) -> None:
        """End a transaction when its time is over, unless it is over before."""
        self._until[row.id] = row.expires_at

    async def begin(self) -> None:
        """Learn what is open, and begin to look."""
        for row in await self._border.carry(self._app.cmp.unconfirmed()):
            self.watch(row)
        self._sweeper = asyncio.create_task(self._run())

    async def end(self) -> None:
        """Stop looking."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._sweeper

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                await self.sweep()
            except Exception:  # the task must not die of what the next round may be without
                log.exception(_LATER)

    async def sweep(self) -> None:
        """End what is overdue now; one that cannot be ended keeps no other."""
        now = self._app.clock.now()
        for name, until in [item for item in self._until.items() if now >= item[1]]:
            try:
                later = await self._border.carry(self._app.cmp.expire(name))
            except errors.Refusal as refusal:
                log.warning("%s: %s", _LATER, refusal)
                continue
            if self._until.get(name) != until:
                continue  # it was prolonged meanwhile
            if later is None:
                del self._until[name]
            else:
                self._until[name] = later
