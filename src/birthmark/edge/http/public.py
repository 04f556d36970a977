"""The public plane: CRLs, authorities' certificates, log tiles, checkpoints and OCSP, for everyone (SPEC F4).

Plain HTTP, no client is known, nothing is written and nothing secret can be read: what is served are files
of known names in one directory, and OCSP answers (``services.status``, or files signed beforehand).  It holds
no key of an authority; at most the responder's.

A bare ASGI application.  The requests that a whole fleet sends, OCSP by POST and plain GET, are answered by
``direct`` before they get here.  Nothing that comes in is a fault: what is no OCSP request is answered
malformedRequest (RFC 6960 section 2.3), what cannot be answered now tryLater, and a file that cannot be read
now is 503, which no cache keeps.  Bodies have a limit, and a client that takes too long, to ask or to listen,
loses its connection.
"""

import asyncio
import errno
import logging
import mmap
import os
import re
import stat
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any

from birthmark import errors
from birthmark.edge.application import PublicApplication
from birthmark.edge.http.answering import (
    MALFORMED,
    Answering,
    Headers,
    LiveAnswers,
    SignedAnswersFound,
    entity_tag,
    response_headers,
)
from birthmark.edge.http.peer import ABORT_KEY
from birthmark.floor.locations import CHECKPOINT_PATH, INDEX_PATH, LOG_PREFIX, OCSP_PATH
from birthmark.floor.segments import SEGMENT
from birthmark.ledger.tiles import TILE_WIDTH, parse_path
from birthmark.pki.crl import read_crl
from birthmark.pki.ocsp_request import MAX_REQUEST_SIZE, request_of_get
from birthmark.services.status import Answered

__all__ = ["PublicPlane"]

log = logging.getLogger(__name__)

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

_PIECE = 262_144
_CRL = re.compile(rf"crl/{SEGMENT}(?:/{SEGMENT})?\.crl")
_CERTIFICATE = re.compile(rf"ca/{SEGMENT}\.cer")
_NOTHING = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
"""Why a file cannot be opened if there is none; the last of a link, which is never followed."""
_NEVER_CHANGES = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class _Kind:
    """How a file is served."""

    content_type: bytes
    cache_control: str
    """Empty for a CRL, whose own end decides."""


def _kind(path: str) -> _Kind | None:
    """Return how a path is served, or None if nothing has such a name."""
    if _CRL.fullmatch(path):
        return _Kind(b"application/pkix-crl", "")
    if _CERTIFICATE.fullmatch(path):
        return _Kind(b"application/pkix-cert", "public, max-age=86400")
    if path == CHECKPOINT_PATH:
        return _Kind(b"text/plain; charset=utf-8", "public, max-age=5, must-revalidate")
    if path == INDEX_PATH:
        return _Kind(b"application/json", "public, max-age=60")
    if path.startswith(LOG_PREFIX):
        try:
            tile = parse_path(path.removeprefix(LOG_PREFIX))
        except errors.MalformedRequest:
            return None
        # A partial tile goes when it is full.
        return _Kind(
            b"application/octet-stream", _NEVER_CHANGES if tile.width == TILE_WIDTH else "public, max-age=60"
        )
    return None


class PublicPlane:
    """The application."""

    def __init__(self, application: PublicApplication) -> None:
        """Serve what this application reads."""
        self._app = application
        self._plane = application.settings.public_plane
        self.answering: Answering | None = None
        """Who answers OCSP; ``direct`` asks it without this application."""
        if application.answer is not None:
            self.answering = LiveAnswers(application)
        elif application.answers is not None:
            self.answering = SignedAnswersFound(application, application.answers)
        self._ends: dict[str, tuple[str, datetime]] = {}
        """Entity tag and nextUpdate of CRLs."""

    def close(self) -> None:
        """Let go of what answers."""
        if self.answering is not None:
            self.answering.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI 3)."""
        if scope["type"] != "http":
            return
        path: str = scope["path"]
        prefix = self._plane.prefix
        if prefix and not path.startswith(f"{prefix}/"):
            await _text(send, 404, "there is nothing here")
            return
        path = path[len(prefix) + 1 :]
        if self.answering is not None and (path == OCSP_PATH or path.startswith(f"{OCSP_PATH}/")):
            await self._ocsp(scope, receive, send, self.answering)
        elif scope["method"] not in ("GET", "HEAD"):
            await _text(send, 405, "only GET and HEAD here", [(b"allow", b"GET, HEAD")])
        else:
            await self._file(scope, send, path)

    # --- files

    async def _file(self, scope: Scope, send: Send, path: str) -> None:
        kind = _kind(path)
        try:
            file = None if kind is None else _open(self._app.directory / path)
        except OSError as failed:
            log.error("%s cannot be read: %s", path, failed)  # noqa: TRY400  # told, not traced
            again = [(b"cache-control", b"no-store"), (b"retry-after", b"5")]
            await _text(send, 503, "it cannot be read now", again)
            return
        if kind is None or file is None:
            await _text(send, 404, "there is nothing here", [(b"cache-control", b"public, max-age=5")])
            return
        try:
            found = os.fstat(file)
            tag = f'"{found.st_mtime_ns:x}-{found.st_size:x}"'
            modified = datetime.fromtimestamp(int(found.st_mtime), self._app.clock.now().tzinfo)
            headers = [
                (b"content-type", kind.content_type),
                (b"cache-control", (kind.cache_control or self._crl_cache(path, tag, file)).encode()),
                (b"etag", tag.encode()),
                (b"last-modified", format_datetime(modified, usegmt=True).encode()),
                (b"x-content-type-options", b"nosniff"),
            ]
            if _matches(scope, tag):
                await _whole(send, 304, headers)
                return
            headers.append((b"content-length", str(found.st_size).encode()))
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            if scope["method"] == "HEAD":
                await send({"type": "http.response.body", "body": b""})
            else:
                await self._pieces(scope, send, file, found.st_size)
        finally:
            os.close(file)

    async def _pieces(self, scope: Scope, send: Send, file: int, size: int) -> None:
        """Send a file, piece by piece; who does not take one in time loses the connection."""
        loop, sent = asyncio.get_running_loop(), 0
        while sent < size:
            piece = os.pread(file, min(_PIECE, size - sent), sent)
            sent += len(piece)
            slow = loop.call_later(self._plane.request_seconds, scope.get(ABORT_KEY, _nothing))
            try:
                await send({"type": "http.response.body", "body": piece, "more_body": sent < size})
            finally:
                slow.cancel()
            if not piece:  # it was cut short under us, which nobody of ours does
                return

    def _crl_cache(self, path: str, tag: str, file: int) -> str:
        """Never past nextUpdate: what is served after that is worse than nothing."""
        known = self._ends.get(path)
        if known is None or known[0] != tag:
            try:
                known = (tag, _next_update(file))
            except (OSError, ValueError, errors.MalformedRequest):
                return "no-cache"
            self._ends[path] = known
        left = int((known[1] - self._app.clock.now()).total_seconds())
        return f"public, max-age={max(0, min(left, self._plane.crl_cache_seconds))}, must-revalidate"

    # --- OCSP

    async def _ocsp(self, scope: Scope, receive: Receive, send: Send, answering: Answering) -> None:
        """RFC 6960 appendix A.1; what ``direct`` leaves to us: HEAD, conditions, limits, refusals."""
        method = scope["method"]
        try:
            if method == "POST":
                octets = await self._body(receive)
            elif method in ("GET", "HEAD"):
                raw = scope["raw_path"].decode("latin-1")
                octets = request_of_get(raw.removeprefix(f"{self._plane.prefix}/{OCSP_PATH}"))
            else:
                await _text(send, 405, "GET and POST here", [(b"allow", b"GET, HEAD, POST")])
                return
        except errors.TooLarge:
            await _text(send, 413, "an OCSP request is smaller", [(b"connection", b"close")])
            return
        except TimeoutError:
            await _text(send, 408, "the request did not arrive", [(b"connection", b"close")])
            return
        except errors.MalformedRequest:
            found = MALFORMED
        except errors.Unavailable:
            return  # the client has gone
        else:
            future: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()
            answering.ask(octets, lambda answer: None if future.done() else future.set_result(answer))
            found = await future
        headers = response_headers(found, self._app.clock.now(), posted=method == "POST")
        kept = any(name == b"etag" for name, _ in headers)
        if kept and _matches(scope, entity_tag(found)):
            await _whole(send, 304, headers)
        else:
            await _whole(send, 200, headers, found.octets)

    async def _body(self, receive: Receive) -> bytes:
        """Return the body of a request.

        Raises:
            errors.TooLarge: it is larger than an OCSP request may be.
            errors.Unavailable: the client has gone.
            TimeoutError: it did not arrive in time.
        """
        body = b""
        async with asyncio.timeout(self._plane.request_seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise errors.Unavailable("the client has gone")
                body += bytes(message.get("body", b""))
                if len(body) > MAX_REQUEST_SIZE:
                    raise errors.TooLarge(f"an ocsp request has at most {MAX_REQUEST_SIZE} octets")
                if not message.get("more_body", False):
                    return body


# --- answers


def _nothing() -> None:
    """Do nothing: this server has no way to end a connection."""


def _open(path: Path) -> int | None:
    """Open a file; None if there is nothing, or no file.

    Raises:
        OSError: there may be one, but it cannot be opened: nobody is to remember that there is nothing.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as cause:
        if cause.errno in _NOTHING:
            return None
        raise
    if stat.S_ISREG(os.fstat(file).st_mode):
        return file
    os.close(file)
    return None


def _next_update(file: int) -> datetime:
    """Return the end of a CRL, of which no more is read than what says so: it may have many megabytes.

    Raises:
        errors.MalformedRequest: it is none.
        ValueError: the file is empty.
        OSError: it cannot be read.
    """
    octets = mmap.mmap(file, 0, access=mmap.ACCESS_READ)
    try:
        return read_crl(octets).next_update
    finally:
        with suppress(BufferError):  # an exception's traceback may hold a view; it is unmapped with that
            octets.close()


def _matches(scope: Scope, tag: str) -> bool:
    """Return whether the client has it already (RFC 9110 section 13.1.2)."""
    for name, value in scope["headers"]:
        if name == b"if-none-match":
            tags = [one.strip().removeprefix("W/") for one in value.decode("latin-1").split(",")]
            if tag in tags or "*" in tags:
                return True
    return False


async def _whole(send: Send, status: int, headers: Headers, body: bytes = b"") -> None:
    """Send an answer; of one to HEAD the server keeps the body to itself."""
    if status != 304:
        headers = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _text(send: Send, status: int, text: str, headers: Headers | None = None) -> None:
    said = [(b"content-type", b"text/plain; charset=utf-8"), *(headers or [])]
    await _whole(send, status, said, f"{text}\n".encode())
