"""What a plane refuses goes on record and is answered as a problem (RFC 9457): the same for every plane.

A refusal that cannot be logged is not told: the answer is then why it could not be.  A fault of ours stands
in the log, too, under the instance that the client is told.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from fastapi import Request, Response

from birthmark import errors
from birthmark.edge.application import Application
from birthmark.edge.http.border import Border
from birthmark.edge.http.metrics import CLIENT_KEY
from birthmark.edge.http.models import Problem
from birthmark.edge.http.problems import MEDIA_TYPE, RETRY_AFTER_SECONDS
from birthmark.edge.http.servicelog import tell
from birthmark.edge.http.tally import hasty
from birthmark.floor.limits import Rate
from birthmark.services.acts import ANONYMOUS, record_refusal
from birthmark.settings import Settings

__all__ = ["Asker", "Refusals", "rate_of"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """Whom a refusal is put on record for."""

    actor: str = ANONYMOUS
    seq: int | None = None
    """The client's number of the request."""
    said: Mapping[str, str] = field(default_factory=dict)
    """What else the entry says."""


class Refusals:
    """The refusals of one plane; see ``gate.Refused``."""

    def __init__(
        self,
        application: Application,
        border: Border,
        *,
        asker: Callable[[Request], Awaitable[Asker]],
        is_unwelcome: Callable[[Request, Exception], bool],
        rate: Callable[[str], Rate] | None = None,
    ) -> None:
        """Refuse.

        Args:
            application: whose record it is.
            border: to get to it.
            asker: returns who asked; what it refuses is told in place of the refusal.
            is_unwelcome: returns whether whoever asked has nothing to do in here: the connection ends.
            rate: returns how fast an actor may be refused; as at the station plane if None.
        """
        self._app, self._border = application, border
        self._asker, self._is_unwelcome = asker, is_unwelcome
        self._rate = rate or partial(rate_of, application.settings)
        self._hasty = hasty(application.store)

    async def __call__(self, request: Request, error: Exception, status: int | None = None) -> Response:
        """Put a refusal, or a fault of ours, on record and answer it."""
        if isinstance(error, errors.Refusal):
            try:
                await self.put_on_record(request, error)
            except errors.Refusal as why:
                error, status = why, None
            told = tell(self._app, error, status)
        else:
            told = tell(self._app, error, status)
            try:
                await self.put_on_record(request, errors.Fault(f"internal fault {told.instance}"))
            except errors.Refusal as why:
                log.warning("a fault is not on record: %s", why, extra={"instance": told.instance})
        headers = {"connection": "close"} if self._is_unwelcome(request, error) else {}
        if told.status == 503:
            headers["retry-after"] = str(RETRY_AFTER_SECONDS)
        if isinstance(error, errors.RateLimited):
            headers["retry-after"] = str(error.retry_after)
            self._hasty.note(request.scope.get(CLIENT_KEY) or ANONYMOUS)
        return Response(told.model_dump_json(), told.status, headers=headers, media_type=MEDIA_TYPE)

    async def put_on_record(self, request: Request, refusal: errors.Refusal) -> None:
        """Put a refusal on record that is told in the words of another protocol; once.

        Raises:
            errors.Refusal: it cannot be recorded, and so not told.
        """
        if refusal.recorded or refusal.retryable:
            return
        asker, what = await self._asker(request), f"{request.method} {request.url.path}"[:200]
        rate = self._rate(asker.actor)
        recording = record_refusal(asker.actor, what, asker.said, refusal, seq=asker.seq, rate=rate)
        await self._border.carry(recording)

    def problem(self, actor: str, refusal: errors.Refusal) -> Problem:
        """Return one item's refusal, which is on record, for the answer about many."""
        if isinstance(refusal, errors.RateLimited):
            self._hasty.note(actor)
        return tell(self._app, refusal)

    def end(self) -> None:
        """Put on record what waits, at the end of the service.  Blocks."""
        self._hasty.record_all(last=True)


def rate_of(settings: Settings, actor: str) -> Rate:
    """Return how fast somebody may be refused."""
    table = settings.station_plane
    return table.stranger_rate if actor == ANONYMOUS else table.client_rate
