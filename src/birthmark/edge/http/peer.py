"""TLS, and who is at the other end: the only file that knows how the server hands over the certificate.

The context takes TLS 1.3 only (its suites are all AEAD), demands a client certificate and verifies it against
the realm's root. A valid chain is not yet a live client: ``services.acts`` decides that from the record.
uvicorn does not show the application the certificate; ``protocol`` makes the subclass that does, under
``SCOPE_KEY``.  No header is ever trusted for it.

Handshakes that fail are seen by a subclass of ``ssl.SSLObject``, because nothing else in the server hears of
them.
"""

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from birthmark import errors
from birthmark.edge.http.problems import MEDIA_TYPE, problem
from birthmark.secret import SecretBytes

__all__ = ["ABORT_KEY", "SCOPE_KEY", "PeerProtocol", "peer_certificate", "protocol", "server_context"]

SCOPE_KEY = "birthmark.peer"
ABORT_KEY = "birthmark.abort"
"""Where a public listener puts what ends a connection at once."""
Refused = Callable[[str, bytes], None]
HEAD_LIMIT = 65_536
"""Octets of a request's line and headers."""


def server_context(
    certificate: Path, key: Path, passphrase: SecretBytes, client_ca: Path, on_refused: Refused
) -> ssl.SSLContext:
    """Return the context of a plane that speaks mutual TLS 1.3 only (SPEC C1).

    Args:
        certificate: the server's certificate and the authorities above it (PEM).
        key: its private key (encrypted PKCS#8 PEM).
        passphrase: of the key.
        client_ca: the root that clients must chain to (PEM).
        on_refused: told the reason of each failed handshake (and no certificate), on the loop's thread.

    Raises:
        errors.NotFound: one of the files cannot be read.
        errors.MalformedRequest: one of them is not what it should be, or they do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    # A resumed session would skip the certificate; tickets also cost a millisecond a handshake.
    context.num_tickets = 0
    try:
        context.load_cert_chain(certificate, key, passphrase.reveal)
        context.load_verify_locations(client_ca)
    except OSError as cause:
        if isinstance(cause, ssl.SSLError):
            raise errors.MalformedRequest(
                f"{certificate}, {key}, {client_ca}: no matching certificate, key and root: {cause.reason}"
            ) from None
        raise errors.NotFound(f"cannot read {cause.filename}: {cause.strerror}") from cause
    context.sslobject_class = _observed(on_refused)
    return context


def _observed(on_refused: Refused) -> type[ssl.SSLObject]:
    class ObservedSSLObject(ssl.SSLObject):
        """Tells when a handshake fails, and lets the client hear of it."""

        failure: ssl.SSLError | None = None

        def do_handshake(self) -> None:
            if self.failure is not None:
                raise self.failure
            try:
                super().do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise
            except ssl.SSLError as cause:
                on_refused(_reason(cause), b"")
                self.failure = cause
                # The event loop drops a failed connection without sending what OpenSSL has ready: the alert
                # that tells a station why.  While the handshake goes on it does send it: fail the next time.
                raise ssl.SSLWantReadError from cause

    return ObservedSSLObject


def _reason(failure: ssl.SSLError) -> str:
    if isinstance(failure, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {failure.verify_message}"
    return (failure.reason or type(failure).__name__).lower().replace("_", " ")


class PeerProtocol(HttpToolsProtocol):
    """One connection; ``protocol`` and ``direct.public_protocol`` fill in what it is to do."""

    refused: ClassVar[Refused]
    request_seconds: ClassVar[float]

    peer: bytes = b""
    head_timer: asyncio.TimerHandle | None = None
    head_size: int = 0

    def connection_made(self, transport: Any) -> None:
        """See ``asyncio.Protocol``."""
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        self.peer = (tls.getpeercert(binary_form=True) or b"") if tls is not None else b""
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """See ``asyncio.Protocol``."""
        self._head_arrived()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``."""
        super().data_received(data)
        if self.head_timer is not None:
            self.head_size += len(data)
            if self.head_size > HEAD_LIMIT:
                self._refuse(f"the head of a request has at most {HEAD_LIMIT} octets")

    def on_message_begin(self) -> None:
        """The parser's: a request begins."""
        super().on_message_begin()
        self._await_head()
        self.scope[SCOPE_KEY] = self.peer  # type: ignore[literal-required]  # a key of our own

    def on_headers_complete(self) -> None:
        """The parser's: line and headers are there."""
        self._head_arrived()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  # uvicorn's signature
        """Refuse what is no HTTP."""
        self._refuse("this is not HTTP/1.1")

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

    def _await_head(self) -> None:
        self._head_arrived()
        self.head_timer = self.loop.call_later(self.request_seconds, self._head_is_late)

    def _head_arrived(self) -> None:
        self.head_size = 0
        if self.head_timer is not None:
            self.head_timer.cancel()
            self.head_timer = None

    def _head_is_late(self) -> None:
        self._refuse(f"no request within {self.request_seconds:g} s")

    def _refuse(self, reason: str) -> None:
        self._head_arrived()
        type(self).refused(reason, self.peer)
        body = problem(errors.MalformedRequest(reason), "none").model_dump_json().encode()
        head = (
            f"HTTP/1.1 400 Bad Request\r\ncontent-type: {MEDIA_TYPE}\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


def protocol(on_refused: Refused, request_seconds: float) -> type[HttpToolsProtocol]:
    """Return the HTTP protocol that puts the client's certificate (DER) into each request's scope.

    Args:
        on_refused: told the reason why a connection was ended, and the peer's certificate (DER).
        request_seconds: how long line and headers of a request may take to arrive.
    """

    class ListenersProtocol(PeerProtocol):
        """As this listener wants it."""

    ListenersProtocol.refused = staticmethod(on_refused)
    ListenersProtocol.request_seconds = request_seconds
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
