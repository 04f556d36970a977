"""Who is at the other end: the only file that knows how the server hands over the certificate.

``contexts`` has verified it against the realm's root.  A valid chain is not yet a live client:
``services.acts`` decides that from the record.  uvicorn does not show the application the certificate;
``protocol`` makes the subclass that does, under ``SCOPE_KEY``.  No header is ever trusted for it.

What a connection may cost is limited here, too: the head of a request, how many are asked ahead, answers that
nobody takes, connections of one certificate.  A refusal ends the connection, but never before an answer that
is under way: it would be taken for the answer to another request.
"""

import _ssl
import asyncio
import http
import logging
import re
import ssl
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from birthmark import errors
from birthmark.edge.http.contexts import shown_by, why_unwelcome
from birthmark.edge.http.limits import Cause, Told
from birthmark.edge.http.problems import MEDIA_TYPE, RETRY_AFTER_SECONDS, problem

__all__ = [
    "ABORT_KEY",
    "OPENED_KEY",
    "PATH_KEY",
    "SCOPE_KEY",
    "PeerProtocol",
    "opened_seconds_ago",
    "path_above",
    "peer_certificate",
    "protocol",
    "tls_unique",
]

log = logging.getLogger(__name__)

SCOPE_KEY = "birthmark.peer"
PATH_KEY = "birthmark.path"
"""Where a listener whose clients have several roots puts the certificates above the client's."""
OPENED_KEY = "birthmark.opened"
"""Where it puts when the connection was opened, by the loop's clock."""
_TLS_KEY = "birthmark.tls"
"""Where the TLS of a request's connection is; see ``tls_unique``."""
ABORT_KEY = "birthmark.abort"
"""Where a public listener puts what ends a connection at once."""
HEAD_LIMIT = 65_536
"""Octets of a request's line and headers."""
URL_LIMIT = 8_192
HEADERS_LIMIT = 64
PIPELINE_LIMIT = 32
"""Requests asked ahead while one is answered."""
_HOST = re.compile(
    rb"(?:\[[\w:.~!$&'()*+,;=%-]+\]|(?:[\w.~!$&'()*+;=-]|%[0-9A-Fa-f]{2})*)(?::[0-9]*)?", re.ASCII
)
"""What the field may be: a host, an address in brackets, or nothing, and a port (RFC 9110 section 7.2,
RFC 3986 section 3.2.2).  A comma may stand in a name; here it is a list, of which nobody knows the right one.
"""


_DER = _ssl.ENCODING_DER


class _BothWays(FlowControl):
    """Reads nothing from a client that does not take what is written to it."""

    def resume_reading(self) -> None:
        if not self.write_paused:
            super().resume_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.resume_reading()


def _nothing() -> None:
    """Do nothing: nobody keeps count."""


class PeerProtocol(HttpToolsProtocol):
    """One connection; ``protocol`` and ``direct.public_protocol`` fill in what it is to do."""

    refused: ClassVar[Told]
    request_seconds: ClassVar[float]
    answer_seconds: ClassVar[float]
    most_of_one: ClassVar[int]
    """Connections of one certificate."""
    connected: ClassVar[Counter[bytes]]
    """How many there are, by certificate."""
    several_roots: ClassVar[bool] = False
    """Requests are told the certificates above the client's, and when the connection was opened."""

    peer: bytes = b""
    tls: ssl.SSLObject | None = None
    verified_path: tuple[bytes, ...] = ()
    opened: float = 0.0
    counted: bool = False
    ended: bool = False
    """What comes is not read any more."""
    complaint: str = ""
    """What the parser was stopped for."""
    head_timer: asyncio.TimerHandle | None = None
    head_size: int = 0
    """Octets that were read and are not of a body, since the last that meant something."""
    untaken: asyncio.TimerHandle | None = None
    gone: Callable[[], None] = staticmethod(_nothing)
    running: RequestResponseCycle | None = None
    """The request that is being answered, or was last; uvicorn's ``cycle`` is the one that was read last."""

    def connection_made(self, transport: Any) -> None:
        """See ``asyncio.Protocol``."""
        super().connection_made(transport)
        self.flow = _BothWays(transport)
        self.tls = tls = transport.get_extra_info("ssl_object")
        self.peer = shown_by(tls) if tls is not None else b""
        if self.several_roots:
            self.verified_path, self.opened = _verified_path(tls), self.loop.time()
        unwelcome: errors.Refusal | None = getattr(tls, "unwelcome", None)
        if unwelcome is not None:
            self._refuse(why_unwelcome(unwelcome), unwelcome)
        elif self.peer and self.connected[self.peer] >= self.most_of_one:
            told = errors.Unavailable(f"a certificate has at most {self.most_of_one} connections")
            self._refuse(Cause.LIMIT, told)
        else:
            if self.peer:
                self.counted = True
                self.connected[self.peer] += 1
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """See ``asyncio.Protocol``."""
        self.gone()
        self._head_arrived()
        self._taken()
        if self.counted:
            self.counted = False
            self.connected[self.peer] -= 1
            if not self.connected[self.peer]:
                del self.connected[self.peer]
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``."""
        if self.ended:
            return
        self.head_size += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(Cause.NO_HTTP, errors.MalformedRequest("no other protocol is spoken here"))
        except httptools.HttpParserError:
            self._refuse(Cause.NO_HTTP, errors.MalformedRequest(self.complaint or "this is not HTTP/1.1"))
        if self.head_size > HEAD_LIMIT:
            told = errors.MalformedRequest(f"the head of a request has at most {HEAD_LIMIT} octets")
            self._refuse(Cause.NO_HTTP, told)

    def pause_writing(self) -> None:
        """See ``asyncio.Protocol``: more is written than the client takes."""
        super().pause_writing()
        if self.untaken is None:
            self.untaken = self.loop.call_later(self.answer_seconds, self._is_not_taken)

    def resume_writing(self) -> None:
        """See ``asyncio.Protocol``."""
        self._taken()
        super().resume_writing()

    def on_message_begin(self) -> None:
        """The parser's: a request begins."""
        if len(self.pipeline) >= PIPELINE_LIMIT:
            self._stop(f"at most {PIPELINE_LIMIT} requests may wait for their answers")
        super().on_message_begin()
        self._await_head()
        self.scope[SCOPE_KEY] = self.peer  # type: ignore[literal-required]  # a key of our own
        self.scope[_TLS_KEY] = self.tls  # type: ignore[literal-required]  # likewise
        if self.several_roots:
            self.scope[PATH_KEY] = self.verified_path  # type: ignore[literal-required]  # likewise
            self.scope[OPENED_KEY] = self.opened  # type: ignore[literal-required]  # likewise

    def on_url(self, url: bytes) -> None:
        """The parser's: a part of the address."""
        super().on_url(url)
        if len(self.url) > URL_LIMIT:
            self._stop(f"the address of a request has at most {URL_LIMIT} octets")

    def on_header(self, name: bytes, value: bytes) -> None:
        """The parser's: a header, or a trailer, of which we want none."""
        if self.head_timer is None:
            return
        super().on_header(name, value)
        if len(self.headers) > HEADERS_LIMIT:
            self._stop(f"a request has at most {HEADERS_LIMIT} headers")

    def on_headers_complete(self) -> None:
        """The parser's: line and headers are there."""
        self._require_form()
        self.head_size = 0
        self._head_arrived()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """The parser's: a part of the body; an endless trailer has none."""
        self.head_size = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The parser's: the request is there."""
        self.head_size = 0
        super().on_message_complete()

    def shutdown(self) -> None:
        """End the connection as soon as nothing is under way."""
        cycle: RequestResponseCycle | None = (
            self.cycle
        )  # None before the first request, whatever its type says
        idle = cycle is None or cycle.response_complete
        super().shutdown()
        # Closing waits for the client to say goodbye, too; a station that rests would hold up the stopping.
        if idle and not self.transport.get_write_buffer_size():
            self.transport.abort()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self.running = cycle
        super()._start_asgi_task(cycle, app)

    def _await_head(self) -> None:
        self._head_arrived()
        self.head_timer = self.loop.call_later(self.request_seconds, self._head_is_late)

    def _head_arrived(self) -> None:
        # Not for any octet, as uvicorn does it: empty lines would keep a connection for ever.
        self._unset_keepalive_if_required()
        if self.head_timer is not None:
            self.head_timer.cancel()
            self.head_timer = None

    def _head_is_late(self) -> None:
        self._refuse(Cause.LATE, errors.MalformedRequest(f"no request within {self.request_seconds:g} s"))

    def _taken(self) -> None:
        if self.untaken is not None:
            self.untaken.cancel()
            self.untaken = None

    def _is_not_taken(self) -> None:
        self.untaken = None
        why = errors.MalformedRequest(f"an answer was not taken within {self.answer_seconds:g} s")
        type(self).refused(Cause.LATE, why, self.peer)
        self.transport.abort()

    def _require_form(self) -> None:
        """Stop at a head that the parser lets pass and two may read differently.

        A coding other than ``chunked`` (RFC 9112 section 6.1), and a Host that is not there once and well
        (section 3.2); before HTTP/1.1 it may be missing.
        """
        hosts = []
        for name, value in self.headers:
            if name == b"host":
                hosts.append(value)
            elif name == b"transfer-encoding" and value.strip(b" \t").lower() != b"chunked":
                self._stop("a body may be chunked, and not be coded otherwise")
        if len(hosts) != 1:
            if hosts or self.parser.get_http_version() == "1.1":
                self._stop(f"a request has one host field, not {len(hosts)}")
        elif _HOST.fullmatch(hosts[0].strip(b" \t")) is None:
            self._stop("the host field names no host")

    def _stop(self, complaint: str) -> None:
        """Stop the parser; what called it refuses."""
        self.complaint = complaint
        raise ValueError(complaint)

    def _refuse(self, cause: Cause, refusal: errors.Refusal) -> None:
        """Refuse, and end the connection: at once, or behind the answer that is under way."""
        if self.ended:
            return
        self.ended = True
        self._head_arrived()
        type(self).refused(cause, refusal, self.peer)
        self.pipeline.clear()
        cycle = self.running
        if cycle is not None and not cycle.response_complete:
            cycle.keep_alive = False
            if not cycle.more_body:
                return
            # What is wrong is the body of the request that is being answered.
            cycle.disconnected = True
            cycle.message_event.set()
            if getattr(cycle, "response_started", False):
                self.transport.close()
                return
        told = problem(refusal, "none")
        body = told.model_dump_json().encode()
        again = (
            f"retry-after: {RETRY_AFTER_SECONDS}\r\n"
            if told.status == http.HTTPStatus.SERVICE_UNAVAILABLE
            else ""
        )
        head = (
            f"HTTP/1.1 {told.status} {http.HTTPStatus(told.status).phrase}\r\ncontent-type: {MEDIA_TYPE}\r\n"
            f"content-length: {len(body)}\r\n{again}connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


def _verified_path(tls: Any) -> tuple[bytes, ...]:
    """Return the certificates above the client's (DER) in the path that OpenSSL verified, the anchor last."""
    # Public as ssl.SSLObject.get_verified_chain since Python 3.13; before that the module only has what it is
    # made of.  The chain a client sends is no path: it may hold anything.
    chain = tls._sslobj.get_verified_chain()  # noqa: SLF001  # as said above
    return tuple(certificate.public_bytes(_DER) for certificate in chain[1:])


def protocol(
    on_refused: Told,
    request_seconds: float,
    answer_seconds: float,
    most_of_one: int,
    *,
    several_roots: bool = False,
) -> type[PeerProtocol]:
    """Return the HTTP protocol that puts the client's certificate (DER) into each request's scope.

    Args:
        on_refused: told why a connection was ended, and the peer's certificate (DER).
        request_seconds: how long line and headers of a request may take to arrive.
        answer_seconds: how long an answer may wait for the client to take it.
        most_of_one: how many connections a certificate may have.
        several_roots: tell requests by which path the client was verified; see ``path_above``.
    """

    class ListenersProtocol(PeerProtocol):
        """As this listener wants it."""

    ListenersProtocol.refused = staticmethod(on_refused)
    ListenersProtocol.request_seconds = request_seconds
    ListenersProtocol.answer_seconds = answer_seconds
    ListenersProtocol.most_of_one = most_of_one
    ListenersProtocol.connected = Counter()
    ListenersProtocol.several_roots = several_roots
    return ListenersProtocol


def peer_certificate(scope: Any) -> bytes:
    """Return the client's certificate (DER), which the handshake verified against the realm's root.

    Raises:
        errors.Unauthenticated: the connection has none: it did not come through this listener.
    """
    peer: bytes = scope.get(SCOPE_KEY, b"")
    if not peer:
        raise errors.Unauthenticated("no client certificate")
    return peer


def path_above(scope: Any) -> tuple[bytes, ...]:
    """Return the certificates above the client's (DER), as the handshake verified them, the anchor last."""
    path: tuple[bytes, ...] = scope.get(PATH_KEY, ())
    return path


def opened_seconds_ago(scope: Any) -> float:
    """Return for how long the connection of a request has been open; on the loop's thread."""
    now = asyncio.get_running_loop().time()
    opened: float = scope.get(OPENED_KEY, now)
    return max(0.0, now - opened)


def tls_unique(scope: Any) -> bytes | None:
    """Return a connection's channel binding (RFC 5929 section 3); TLS 1.3 has none (RFC 8446 C.5)."""
    tls: ssl.SSLObject | None = scope.get(_TLS_KEY)
    if tls is None or tls.version() != "TLSv1.2":
        return None
    return tls.get_channel_binding("tls-unique")
