"""The trace a client's request belongs to: the header ``traceparent`` (W3C Trace Context, section 3.2).

Read whether or not traces are kept: the service's log names the trace, so that a line there is found from the
client's side.  A header that is none is as good as no header (section 3.2.2.3), never a reason to refuse.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["TraceParent", "decode_traceparent", "trace_of"]

_VERSION_00 = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceParent:
    """The span of the client that a request is part of."""

    trace_id: str
    """32 hex digits."""
    span_id: str
    """16 hex digits."""
    sampled: bool
    """The client keeps this trace."""


def decode_traceparent(text: str) -> TraceParent | None:
    """Read a ``traceparent``; None if it is none.

    A later version than 00 may go on behind the flags, and is read as far as it is known (section 3.2.4).
    """
    found = _VERSION_00.fullmatch(text)
    if found is None:
        return None
    version, trace, span, flags, more = found.groups()
    if version == "ff" or (version == "00" and more is not None):
        return None
    if not trace.strip("0") or not span.strip("0"):
        return None
    return TraceParent(trace_id=trace, span_id=span, sampled=bool(int(flags, 16) & 1))


def trace_of(headers: Iterable[tuple[bytes, bytes]]) -> TraceParent | None:
    """Return the trace that a request's headers name; None if they name none, or more than one."""
    named = [value for name, value in headers if name == b"traceparent"]
    if len(named) != 1 or len(named[0]) > 512:
        return None
    return decode_traceparent(named[0].decode("latin-1"))
