"""The service's own log, a JSON object a line on standard error: for operators.  docs/observing.md lists it.

A line that is written while a request is answered names the request: its route, the run that the route names,
the client (once it is known), and the trace the client says it is part of.  Nothing else of a request gets
into the log by itself: no header, no body.  ``tell`` is how a refusal gets there, and into the figures.
"""

import logging
import os
import sys
import time
from collections.abc import MutableMapping
from typing import Any

import structlog

from birthmark import __version__, errors
from birthmark.edge.application import Application
from birthmark.edge.http.metrics import CLIENT_KEY, SCOPE, TRACE_KEY, route_of
from birthmark.edge.http.models import Problem
from birthmark.edge.http.problems import problem

__all__ = ["configure_log", "request_fields", "tell"]

log = logging.getLogger(__name__)

_Event = MutableMapping[str, Any]
LONGEST = 100
"""Characters of what a client wrote that get into a line; JSON escapes what is no text."""


def configure_log() -> None:
    """Write the log of this process to standard error."""
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ExtraAdder(),
            _without_colours,
            request_fields,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    sys.unraisablehook = _not_raised


def _not_raised(seen: Any) -> None:
    """Take what Python would print: it can raise it nowhere."""
    # The ssl module's complaint of a server name that is not ASCII; the handshake fails, and tells it itself.
    if not isinstance(seen.exc_value, UnicodeDecodeError):
        log.error("an exception that nobody can catch", exc_info=seen.exc_value)


def _without_colours(_logger: object, _method: str, event: _Event) -> _Event:
    event.pop("color_message", None)  # uvicorn's second copy of the message, for terminals
    return event


def request_fields(_logger: object, _method: str, event: _Event) -> _Event:
    """Add the version, and what is known of the request that is being answered (a processor of structlog)."""
    event["birthmark_version"] = __version__
    scope = SCOPE.get()
    if scope is None:
        return event
    event.setdefault("route", route_of(scope))
    event.setdefault("method", scope["method"])
    named = scope.get("path_params") or {}
    for name in ("run", "device"):
        if name in named:
            event.setdefault(name, str(named[name])[:LONGEST])
    if CLIENT_KEY in scope:
        event.setdefault("client", scope[CLIENT_KEY])
    trace = scope.get(TRACE_KEY)
    if trace is not None:
        event.setdefault("trace_id", trace.trace_id)
    return event


def tell(application: Application, error: BaseException, status: int | None = None) -> Problem:
    """Return what a client is told of an error, having told the log and the figures.

    Args:
        application: whose instance ids and figures they are.
        error: a ``Refusal`` is told in full; anything else is "internal", its detail in the log alone.
        status: for errors of HTTP itself, which have no class of their own.
    """
    told = problem(error, _instance(application), status=status)
    application.observer.refused(told.code)
    said = {"code": told.code, "detail": told.detail, "instance": told.instance}
    if not isinstance(error, errors.Refusal):
        log.error("request failed", exc_info=error, extra=said)
    elif isinstance(error, errors.Unavailable | errors.IntegrityFailure | errors.Fault):
        log.warning("refused", extra=said)
    else:
        log.info("refused", extra=said)
    return told


def _instance(application: Application) -> str:
    try:
        return application.entropy.token(8).hex()
    except errors.Refusal:
        # What is refused may be refused for want of randomness; the id only has to tell two lines apart.
        return f"{os.getpid():08x}{time.monotonic_ns() & 0xFFFFFFFF:08x}"
