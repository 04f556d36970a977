"""TLS as the planes speak it: which versions and suites, who is asked for a certificate, who is welcome.

``server_context`` takes TLS 1.3 only (its suites are all AEAD), demands a client certificate and verifies it;
``anonymous`` and ``optional`` ask for less.  Handshakes that fail are seen by a subclass of
``ssl.SSLObject``, because nothing else in the server hears of them.

Who is welcome at all is asked twice (``Admits``): before the client has said who it is, and as soon as the
handshake has verified its certificate, before any octet of a request is read.
"""

import logging
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from birthmark import errors
from birthmark.edge.http.limits import Cause, Told, end_soon
from birthmark.secret import SecretBytes

__all__ = ["Admits", "anonymous", "everybody", "optional", "server_context", "shown_by", "why_unwelcome"]

log = logging.getLogger(__name__)

Admits = Callable[[bytes | None], errors.Refusal | None]
"""Says why a client is not welcome now, or None if it is; asked with its certificate (DER), or with None
before there is any.  Called on the loop's thread: it must not block."""
_GROUP = "prime256v1"
"""The one group every implementation has (RFC 8446 section 9.1).  Python before 3.15 can choose one or leave
OpenSSL's own, which has groups that cost the server a hundred times as much: ffdhe8192."""
_CIPHERS = "DEFAULT:@SECLEVEL=2"
"""Keys and hashes of 112 bits and more, in certificates, too; the suites of TLS 1.3 are another list."""
_CIPHERS_1_2 = "ECDHE+AESGCM:ECDHE+CHACHA20:@SECLEVEL=2"
"""Of TLS 1.2: forward secrecy and AEAD, as all of TLS 1.3 are."""
_AFTERWARDS = frozenset({"APPLICATION_DATA_AFTER_CLOSE_NOTIFY"})
"""What OpenSSL complains of when our farewell crosses a request."""
_DROPPED = 16
"""How often something may come after a failure; each time a quarter of a megabyte at most."""


def everybody(_certificate: bytes | None) -> errors.Refusal | None:
    """Welcome everyone whose certificate is verified."""
    return None


def server_context(
    certificate: Path,
    key: Path,
    passphrase: SecretBytes,
    client_ca: Path | Sequence[bytes],
    on_refused: Told,
    admits: Admits = everybody,
) -> ssl.SSLContext:
    """Return the context of a plane that speaks mutual TLS 1.3 only (SPEC C1).

    Args:
        certificate: the server's certificate and the authorities above it (PEM).
        key: its private key (encrypted PKCS#8 PEM).
        passphrase: of the key.
        client_ca: the root that clients must chain to (PEM); or several certificates (DER), each of which is
            believed, root or not.
        on_refused: told the reason of each failed handshake (and no certificate), on the loop's thread.
        admits: whom to welcome.  A refusal before there is a certificate is the alert access_denied; after
            verification it is 403 and the end of the connection, whatever the client has sent.

    Raises:
        errors.NotFound: one of the files cannot be read.
        errors.MalformedRequest: one of them is not what it should be, or they do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_ciphers(_CIPHERS)
    context.set_ecdh_curve(_GROUP)
    # A resumed session would skip the certificate; tickets also cost a millisecond a handshake.
    context.num_tickets = 0
    try:
        context.load_cert_chain(certificate, key, passphrase.reveal)
        if isinstance(client_ca, Path):
            context.load_verify_locations(client_ca)
        elif client_ca:
            # Others' certificates are among them, of which ``pki.paths`` judges more than OpenSSL does; what
            # is strict about identifiers would be an alert, where a reason belongs into the log.
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
            context.load_verify_locations(cadata=b"".join(client_ca))
    except OSError as cause:
        if isinstance(cause, ssl.SSLError):
            roots = client_ca if isinstance(client_ca, Path) else f"{len(client_ca)} anchors"
            raise errors.MalformedRequest(
                f"{certificate}, {key}, {roots}: no matching certificate, key and root: {cause.reason}"
            ) from None
        raise errors.NotFound(f"cannot read {cause.filename}: {cause.strerror}") from cause
    context.sslobject_class = _observed(on_refused, admits)
    context.sni_callback = _at_hello
    return context


def anonymous(context: ssl.SSLContext) -> ssl.SSLContext:
    """Return the context of a plane that asks no client for a certificate; it is the one that was given."""
    context.verify_mode = ssl.CERT_NONE
    return context


def optional(context: ssl.SSLContext) -> ssl.SSLContext:
    """Return the context of a plane whose clients may have no certificate, and may speak TLS 1.2 (RFC 9325).

    It is the one that was given.  EST clients of today offer no more (``strongSwan`` 5.9); the suites of
    TLS 1.2 are those with forward secrecy and AEAD, as all of TLS 1.3 are.
    """
    context.verify_mode = ssl.CERT_OPTIONAL
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS_1_2)
    # A resumed session would skip the certificate there, too.
    context.options |= ssl.OP_NO_TICKET | ssl.OP_CIPHER_SERVER_PREFERENCE
    return context


def shown_by(tls: ssl.SSLObject) -> bytes:
    """Return the certificate (DER) whose key made this handshake, or nothing.

    A session of TLS 1.2 can be resumed by who has its secrets, and nobody signs (RFC 5246 section 7.3);
    Python cannot turn OpenSSL's cache of them off.  Such a connection is one without a certificate.
    """
    return b"" if tls.session_reused else tls.getpeercert(binary_form=True) or b""


def _asked(admits: Admits, certificate: bytes | None) -> errors.Refusal | None:
    try:
        return admits(certificate)
    except Exception:  # who cannot be judged is not let in
        log.exception("it cannot be told who is welcome")
        return errors.Unavailable("it cannot be told who is welcome now")


def _alert(refusal: errors.Refusal) -> int:
    """Return the alert for a refusal before there is a certificate; a station takes all but one for final."""
    alerts = ssl.AlertDescription
    again, final = alerts.ALERT_DESCRIPTION_INTERNAL_ERROR, alerts.ALERT_DESCRIPTION_ACCESS_DENIED
    return int(again if refusal.retryable else final)


def _observed(on_refused: Told, admits: Admits) -> type[ssl.SSLObject]:
    class ObservedSSLObject(ssl.SSLObject):
        """Tells when a handshake fails, lets the client hear of it, and asks who is welcome."""

        peer: bytes = b""
        failed: bool = False
        dropped: int = 0
        closed: errors.Refusal | None = None
        """Why nobody is welcome."""
        unwelcome: errors.Refusal | None = None
        """Why this client is not; the handshake is done."""

        def hello(self) -> int | None:
            """Return the alert for a client that has only said hello, or None to go on."""
            self.closed = _asked(admits, None)
            return None if self.closed is None else _alert(self.closed)

        def do_handshake(self) -> None:
            self._once_failed()
            try:
                super().do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise
            except ssl.SSLError as cause:
                on_refused(*_failure(cause, self.closed), b"")
                self._fail()
            self.peer = shown_by(self)
            self.unwelcome = _asked(admits, self.peer)

        def read(self, len: int = 1024, buffer: Any = None) -> Any:  # noqa: A002  # Python's own name
            self._once_failed()
            try:
                return super().read(len, buffer)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError, ssl.SSLZeroReturnError):
                raise
            except ssl.SSLError as cause:
                old = self.context.minimum_version < ssl.TLSVersion.TLSv1_3
                if cause.reason in _AFTERWARDS or (old and cause.reason is None):
                    raise  # a farewell as a fatal alert, which has no name: strongSwan 5.9 says it so
                told = errors.MalformedRequest(f"this is not TLS as it is spoken here: {_reason(cause)}")
                on_refused(Cause.PROTOCOL, told, self.peer)
                self._fail()

        def _fail(self) -> NoReturn:
            # The event loop drops a failed connection without sending what OpenSSL has ready: the alert that
            # tells a station why.  While nothing failed it does send it, so nothing has failed for a moment.
            # (Not kept: an exception leads back here, and only the garbage collector would find the two.)
            self.failed = True
            end_soon()
            raise ssl.SSLWantReadError

        def _once_failed(self) -> None:
            if not self.failed:
                return
            # What the client has sent before it read the alert is dropped, up to a limit: closing with that
            # unread would reset the connection, and the alert would be lost.
            self.dropped += 1
            raise ssl.SSLWantReadError if self.dropped <= _DROPPED else ssl.SSLError("it failed before")

    return ObservedSSLObject


def _at_hello(tls: Any, _name: str | None, _context: ssl.SSLContext) -> int | None:
    alert: int | None = tls.hello()
    return alert


def why_unwelcome(refusal: errors.Refusal) -> Cause:
    """Return what a refusal at the door counts as."""
    if refusal.retryable:
        return Cause.LIMIT
    return Cause.CERTIFICATE if isinstance(refusal, errors.Unauthenticated) else Cause.CLOSED


def _failure(failure: ssl.SSLError, closed: errors.Refusal | None) -> tuple[Cause, errors.Refusal]:
    if closed is not None:
        return why_unwelcome(closed), closed
    # OpenSSL's names: CERTIFICATE_VERIFY_FAILED, PEER_DID_NOT_RETURN_A_CERTIFICATE, the alerts about one.
    about_certificate = "CERTIFICATE" in (failure.reason or "")
    cause = Cause.CERTIFICATE if about_certificate else Cause.PROTOCOL
    return cause, errors.Unauthenticated(_reason(failure))


def _reason(failure: ssl.SSLError) -> str:
    if isinstance(failure, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {failure.verify_message}"
    if isinstance(failure, ssl.SSLZeroReturnError):
        return "the client said farewell"
    return (failure.reason or "for a reason that openssl does not tell").lower().replace("_", " ")
