"""Open something for a time, close it, or leave it open again: planes, runs and stations (SPEC C1, C2).

Nothing has to happen at the end of a time: whoever judges an act compares it with the clock.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from birthmark import errors
from birthmark.floor.clients import Capability, Client
from birthmark.floor.exposure import Exposed, Exposure, parse_exposure
from birthmark.floor.runs import Run
from birthmark.ledger.entry import time_text
from birthmark.ports import Decision, Facts, UseCase
from birthmark.services.acts import Caller, decided, live_client

__all__ = ["clear_exposure", "close_now", "set_exposure"]

CLEARED, SET = "exposure-cleared", "exposure-set"


def set_exposure(
    caller: Caller, what: str, opens_at: datetime | None, closes_at: datetime | None, reason: str
) -> UseCase[Exposure]:
    """Say from when until when something is open; what was said before is replaced.

    Args:
        caller: who says so.
        what: id of the exposure, see ``floor.exposure``.
        opens_at: None for now.
        closes_at: None for until somebody closes it.
        reason: for the log.

    Raises:
        errors.MalformedRequest: it is no id, or the time ends before it begins, or has ended.
        errors.NotFound: there is no such run or station.
        errors.NotPermitted: the caller may not.
    """

    def made(_before: Exposure | None, at: datetime) -> Exposure:
        start = at if opens_at is None else opens_at
        if closes_at is not None and (closes_at <= start or closes_at <= at):
            raise errors.MalformedRequest(f"{what} would never be open: it closes at {time_text(closes_at)}")
        return Exposure(id=what, opens_at=start, closes_at=closes_at)

    return _put(caller, what, SET, reason, made)


def close_now(caller: Caller, what: str, reason: str) -> UseCase[Exposure]:
    """Close something from this moment on, until it is opened again.

    Raises:
        errors.MalformedRequest: it is no id of an exposure.
        errors.NotFound: there is no such run or station.
        errors.NotPermitted: the caller may not.
    """

    def made(before: Exposure | None, at: datetime) -> Exposure:
        opened = at if before is None else min(before.opens_at, at)
        return Exposure(id=what, opens_at=opened, closes_at=at)

    return _put(caller, what, SET, reason, made)


def clear_exposure(caller: Caller, what: str, reason: str) -> UseCase[Exposure]:
    """Leave something open from this moment on without an end, as if no time had ever been said.

    Raises:
        errors.MalformedRequest: it is no id of an exposure.
        errors.NotFound: no time was said for it.
        errors.NotPermitted: the caller may not.
    """

    def made(before: Exposure | None, at: datetime) -> Exposure:
        if before is None:
            raise errors.NotFound(
                f"no time was said for {what}: it is open as long as nothing else forbids it"
            )
        return Exposure(id=what, opens_at=at, closes_at=None)

    return _put(caller, what, CLEARED, reason, made)


def _put(
    caller: Caller,
    what: str,
    kind: str,
    reason: str,
    made: Callable[[Exposure | None, datetime], Exposure],
) -> UseCase[Exposure]:
    exposed, name = parse_exposure(what)
    said = {"exposure": what, "reason": reason}

    def decide(facts: Facts, at: datetime) -> Decision[Exposure]:
        live_client(facts, caller, Capability.SET_EXPOSURE, at)
        if exposed is Exposed.RUN and facts.get(Run, name) is None:
            raise errors.NotFound(f"there is no run {name}")
        if exposed in (Exposed.STATION, Exposed.SHARED) and facts.get(Client, what) is None:
            raise errors.NotFound(f"there is no {what}")
        exposure = made(facts.get(Exposure, what), at)
        facts.put(exposure)
        return Decision(exposure, [(kind, said | _times(exposure))])

    return (yield from decided(caller, "set-exposure", said, decide, {Exposure: (what,)}))


def _times(exposure: Exposure) -> dict[str, Any]:
    until = exposure.closes_at
    return {
        "from": time_text(exposure.opens_at),
        "until": None if until is None else time_text(until),
    }
