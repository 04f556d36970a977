"""What stands in every line of the service's own log, beside what the line says: docs/observing.md lists it.

A line that is written while a request is answered names the request: its route, the run that the route names,
the client (once it is known), and the trace the client says it is part of.  Nothing else of a request gets
into the log by itself: no header, no body.
"""

from collections.abc import MutableMapping
from typing import Any

from birthmark import __version__
from birthmark.edge.http.metrics import CLIENT_KEY, SCOPE, TRACE_KEY, route_of

__all__ = ["request_fields"]

LONGEST = 100
"""Characters of what a client wrote that get into a line; JSON escapes what is no text."""


def request_fields(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
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
