"""The public listener's HTTP protocol, which answers OCSP as soon as the parser has the request.

uvicorn makes a task, a scope and events for each request, which costs three times what the look-up of an
answer does.  A POST or GET to the responder needs none of them: it is decoded where it was read, asked of
``answering``, and its answer written in one piece.  Everything else goes through the application as ever:
HEAD, conditional requests, ``Expect``, whatever comes while the client does not read.

For uvicorn an ``_Asked`` is the request under way: pipelined ones wait for it, and so does the end of the
server.
"""

from collections import Counter

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from birthmark import errors
from birthmark.edge.http.answering import MALFORMED, NOT_KEPT, Answering, Headers, response_headers
from birthmark.edge.http.peer import ABORT_KEY, PeerProtocol
from birthmark.floor.locations import OCSP_PATH
from birthmark.pki.ocsp_request import MAX_REQUEST_SIZE, request_of_get
from birthmark.ports import Clock
from birthmark.services.status import Answered

__all__ = ["public_protocol"]


def _head(headers: Headers) -> bytes:
    return b"".join([b"%s: %s\r\n" % header for header in headers])


_POSTED = _head(NOT_KEPT)


class _Nobody:
    """Stands for the event that tells an application of more: there is no application."""

    def set(self) -> None:
        """Do nothing."""


class _Asked:
    """One request to the responder, in place of uvicorn's ``RequestResponseCycle``."""

    __slots__ = ("body", "disconnected", "keep_alive", "message_event", "more_body", "response_complete")

    def __init__(self, *, keep_alive: bool) -> None:
        self.keep_alive = keep_alive
        self.body = b""
        self.more_body = True
        self.response_complete = False
        self.disconnected = False
        self.message_event = _Nobody()


class _DirectProtocol(PeerProtocol):
    """One connection; ``public_protocol`` fills in what it is to do."""

    answering: Answering
    clock: Clock
    path: bytes
    asked: _Asked | None = None
    """The request that is being read, if it is for us."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope[ABORT_KEY] = self.transport.abort  # type: ignore[literal-required]  # a key of our own

    def on_headers_complete(self) -> None:
        if not self._is_direct():
            self.asked = None
            super().on_headers_complete()
            return
        self._require_form()
        # The timer of the head runs on until the body is there, too.
        self.head_size = 0
        keep_alive = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
        self.asked = _Asked(keep_alive=keep_alive)
        self.cycle = self.running = self.asked  # type: ignore[assignment]  # see the module's text

    def _is_direct(self) -> bool:
        method, url = self.parser.get_method(), self.url
        before: RequestResponseCycle | None = self.cycle  # None before the first, whatever its type says
        if method == b"POST":
            wanted = url == self.path
        else:
            wanted = method == b"GET" and url.startswith(self.path + b"/") and b"?" not in url
        return (
            wanted
            and (before is None or before.response_complete)
            and not self.flow.write_paused
            and not self.expect_100_continue
            and not self.parser.should_upgrade()
            and not any(name == b"if-none-match" for name, _ in self.headers)
        )

    def on_body(self, body: bytes) -> None:
        self.head_size = 0
        asked = self.asked
        if asked is None:
            super().on_body(body)
        elif not asked.response_complete:
            asked.body += body
            if len(asked.body) > MAX_REQUEST_SIZE:
                self._give_up(asked, b"413 Content Too Large", b"an OCSP request is smaller\n")

    def on_message_complete(self) -> None:
        asked = self.asked
        if asked is None:
            super().on_message_complete()
            return
        if asked.response_complete:
            return
        self.head_size = 0
        self._head_arrived()
        asked.more_body = False
        posted = self.parser.get_method() == b"POST"
        octets = asked.body
        if not posted:
            try:
                octets = request_of_get(self.url[len(self.path) :].decode("latin-1"))
            except errors.MalformedRequest:
                self._answer(asked, MALFORMED, posted=posted)
                return
        self.answering.ask(octets, lambda found: self._answer(asked, found, posted=posted))

    def _answer(self, asked: _Asked, found: Answered, *, posted: bool) -> None:
        asked.response_complete = True
        if asked.disconnected or self.transport.is_closing():
            return
        headers = _POSTED
        if not posted:
            headers = _head(response_headers(found, self.clock.now(), posted=False))
        self.transport.write(
            b"HTTP/1.1 200 OK\r\n%s%s%scontent-length: %d\r\n\r\n%s"
            % (
                _head(self.server_state.default_headers),
                headers,
                b"" if asked.keep_alive else b"connection: close\r\n",
                len(found.octets),
                found.octets,
            )
        )
        if not asked.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def _head_is_late(self) -> None:
        if self.asked is not None and self.asked.more_body:
            self._give_up(self.asked, b"408 Request Timeout", b"the request did not arrive\n")
        else:
            super()._head_is_late()

    def _give_up(self, asked: _Asked, status: bytes, said: bytes) -> None:
        self._head_arrived()
        asked.response_complete = True
        self.transport.write(
            b"HTTP/1.1 %s\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\n"
            b"connection: close\r\n\r\n%s" % (status, len(said), said)
        )
        self.transport.close()


def public_protocol(
    request_seconds: float, answering: Answering | None, clock: Clock, prefix: str
) -> type[PeerProtocol]:
    """Return the HTTP protocol of the public plane: it puts what ends the connection into each scope.

    Args:
        request_seconds: how long line and headers of a request may take to arrive, and a question to the
            responder altogether; and how long an answer may wait for the client to take it.
        answering: the responder; None to leave everything to the application.
        clock: tells how long answers may still be kept.
        prefix: before every path, such as ``/pki``.
    """
    asked, now = answering, clock

    class PublicProtocol(_DirectProtocol):
        """Without TLS; nobody is told who was refused."""

        path = f"{prefix}/{OCSP_PATH}".encode()
        clock = now

        if asked is None:

            def _is_direct(self) -> bool:
                return False

        else:
            answering = asked

    PublicProtocol.refused = staticmethod(lambda _cause, _reason, _peer: None)
    PublicProtocol.request_seconds = PublicProtocol.answer_seconds = request_seconds
    PublicProtocol.most_of_one, PublicProtocol.connected = 0, Counter()  # nobody shows a certificate
    return PublicProtocol
