"""Requests to the service, repeated until they are answered.

Every request of the station plane may be repeated: it carries an idempotency key, or only reads.  So a lost
connection, a timeout and 429, 502, 503, 504 lead to the same request again (same octets, same request
number) with growing pauses, until the patience ends; whoever waits may be told why.  Any other answer is
final.

TLS 1.3 with a client certificate; one kept connection a thread.  Problems (RFC 9457) become the refusals of
``birthmark.errors``.  An answer that is neither JSON of ours nor a problem raises ``IntegrityFailure``.  No
message here carries a body: it may hold a private key.
"""

import json
import ssl
import time
from collections.abc import Callable, Mapping
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, IncompleteRead
from threading import Event, Lock, local
from typing import Any, Final
from urllib.parse import urlsplit

from birthmark import errors

__all__ = ["Entropy", "OnWait", "Patience", "Transport", "decode_object", "refusal"]

OnWait = Callable[[str, float], None]
"""Called before each pause: why, and for how many seconds."""

Entropy = Callable[[int], bytes]
"""Random octets, as many as asked for."""

_LARGEST_ANSWER: Final = 64 << 20
_LONGEST_PAUSE: Final = 15.0
_LONGEST_TOLD: Final = 60.0
"""What a service may tell us to wait."""
_REPEAT: Final = frozenset({429, 502, 503, 504})
_LOST = (OSError, HTTPException)
_SHOWN: Final = 500
_ALERT: Final = "_ALERT_"
"""The reasons OpenSSL gives for alerts of the other side have this in their names."""

_BY_CODE: Mapping[str, type[errors.Refusal]] = {
    kind.code: kind for kind in errors.Refusal.__subclasses__() if kind is not errors.PolicyRefused
}


def refusal(problem: Mapping[str, Any]) -> errors.Refusal:
    """Rebuild a refusal from a problem (RFC 9457) with our ``code``.

    Raises:
        errors.IntegrityFailure: it is no problem of ours.
    """
    code, detail = problem.get("code"), problem.get("detail")
    if not isinstance(code, str) or not isinstance(detail, str):
        raise errors.IntegrityFailure("the service answered with an error that is no problem of ours")
    detail = _printable(detail)
    if code == errors.PolicyRefused.code:
        return errors.PolicyRefused(_printable(str(problem.get("rule"))), detail)
    kind = _BY_CODE.get(code)
    return errors.Refusal(f"{_printable(code)}: {detail}") if kind is None else kind(detail)


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text[:_SHOWN])


class _Connection(HTTPSConnection):
    """A connection whose server may have another name than its address."""

    def __init__(self, host: str, port: int, timeout: float, context: ssl.SSLContext, name: str) -> None:
        super().__init__(host, port, timeout=timeout, context=context)
        self.tls = context
        self._name = name

    def connect(self) -> None:
        HTTPConnection.connect(self)  # sets TCP_NODELAY
        self.sock = self.tls.wrap_socket(self.sock, server_hostname=self._name)


class Transport:
    """Connections to one service; any thread may use it."""

    def __init__(
        self,
        url: str,
        context: ssl.SSLContext,
        *,
        server_name: str | None,
        timeout_seconds: float,
        patience_seconds: float,
        first_pause_seconds: float,
        on_wait: OnWait | None,
        entropy: Entropy,
    ) -> None:
        """Prepare; nothing is connected yet.

        Raises:
            errors.MalformedRequest: the URL is not https://host or https://host:port.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port or 443
        except ValueError as wrong:
            raise errors.MalformedRequest(f"{url!r} is not https://host:port") from wrong
        if parts.scheme != "https" or not host or parts.path.strip("/") or parts.query or parts.username:
            raise errors.MalformedRequest(f"{url!r} is not https://host:port")
        self._host, self._port = host, port
        self._name = server_name or host
        self._context = context
        self._timeout = timeout_seconds
        self._patience = patience_seconds
        self._first_pause = first_pause_seconds
        self._on_wait = on_wait
        self._entropy = entropy
        self._kept = local()
        self._all: set[_Connection] = set()
        self._lock = Lock()
        self._closed = Event()

    def use(self, context: ssl.SSLContext) -> None:
        """Open new connections with other credentials; what is under way is finished on the old ones."""
        self._context = context

    def close(self) -> None:
        """Close all connections and wake whoever waits."""
        self._closed.set()
        with self._lock:
            for connection in self._all:
                connection.close()
            self._all.clear()

    def request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | None = None,
        *,
        patience_seconds: float | None = None,
    ) -> tuple[str, bytes]:
        """Ask until there is an answer; return its content type and body.

        Args:
            method: of HTTP.
            path: with the query, if there is one.
            headers: all but those of HTTP itself.
            body: octets.
            patience_seconds: for this request, in place of the usual.

        Raises:
            errors.Unavailable: there was none before the patience ended.
            errors.Unauthenticated: the service refused our certificate in the handshake.
            errors.IntegrityFailure: the service is not whom we believe, or its answer is no answer.
            errors.Refusal: the service refused.
        """
        patience = Patience(self, self._patience if patience_seconds is None else patience_seconds)
        while True:
            told = 0.0
            try:
                response, answer = self._once(method, path, headers, body)
            except _LOST as lost:
                _raise_if_final(lost)
                reason = f"the service at {self._host}:{self._port} does not answer: {_why(lost)}"
            else:
                if response.status not in _REPEAT:
                    return _content(response, answer)
                reason = _unavailable(response, answer)
                told = _retry_after(response)
            patience.wait(reason, told)

    def patience(self) -> "Patience":
        """Return the usual patience, beginning now, for what is repeated by somebody else."""
        return Patience(self, self._patience)

    def pause(self, reason: str, seconds: float) -> bool:
        """Tell whoever is told, and wait; return whether the transport was closed meanwhile."""
        if self._on_wait is not None:
            self._on_wait(reason, seconds)
        return self._closed.wait(seconds)

    @property
    def first_pause(self) -> float:
        """How long the first pause is, in seconds."""
        return self._first_pause

    def jitter(self) -> float:
        """Return a part of a pause: a half to the whole of it."""
        # Full jitter would sometimes not wait at all; half of it spreads a line's stations well enough.
        return 0.5 + self._entropy(1)[0] / 512

    def _once(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None
    ) -> tuple[HTTPResponse, bytes]:
        connection: _Connection | None = getattr(self._kept, "connection", None)
        if connection is not None and connection.tls is not self._context:
            self._drop(connection)
            connection = None
        if connection is not None:
            try:
                return self._exchange(connection, method, path, headers, body)
            except (ConnectionError, HTTPException, ssl.SSLEOFError, ssl.SSLZeroReturnError):
                # The service may have closed it while nobody spoke: try once on a new one before waiting.
                self._drop(connection)
        connection = _Connection(self._host, self._port, self._timeout, self._context, self._name)
        with self._lock:
            self._all.add(connection)
        self._kept.connection = connection
        return self._exchange(connection, method, path, headers, body)

    def _exchange(
        self,
        connection: _Connection,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | None,
    ) -> tuple[HTTPResponse, bytes]:
        try:
            if connection.sock is None:
                connection.connect()
            connection.request(method, path, body=body, headers=dict(headers))
            response = connection.getresponse()
            answer = response.read(_LARGEST_ANSWER + 1)
            if response.length and len(answer) <= _LARGEST_ANSWER:
                # The service died while it answered; http.client says so only where no size is asked for.
                raise IncompleteRead(b"", response.length)
        except BaseException:
            self._drop(connection)
            raise
        if len(answer) > _LARGEST_ANSWER:
            self._drop(connection)
            raise errors.IntegrityFailure(f"an answer is larger than {_LARGEST_ANSWER} octets")
        return response, answer

    def _drop(self, connection: _Connection) -> None:
        connection.close()
        self._kept.connection = None
        with self._lock:
            self._all.discard(connection)


class Patience:
    """What is left of it, with pauses that grow."""

    def __init__(self, transport: Transport, seconds: float) -> None:
        """Begin now."""
        self._transport = transport
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._pause = transport.first_pause

    def wait(self, reason: str, at_least: float = 0.0) -> None:
        """Wait before it is tried again.

        Raises:
            errors.Unavailable: there is no patience left, or the transport was closed.
        """
        wait = max(self._pause * self._transport.jitter(), at_least)
        if time.monotonic() + wait > self._deadline:
            raise errors.Unavailable(f"{reason}; gave up after {self._seconds:g} s")
        if self._transport.pause(reason, wait):
            raise errors.Unavailable(f"{reason}; the station was closed meanwhile")
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)


def _raise_if_final(lost: Exception) -> None:
    """Raise what repeating cannot mend."""
    if isinstance(lost, ssl.SSLCertVerificationError):
        raise errors.IntegrityFailure(
            f"the service's certificate is not to be trusted: {lost.verify_message}"
        ) from lost
    reason = (getattr(lost, "reason", None) or "") if isinstance(lost, ssl.SSLError) else ""
    if _ALERT in reason and "INTERNAL_ERROR" not in reason:
        raise errors.Unauthenticated(
            f"the service refused the handshake: {reason.lower().replace('_', ' ')}"
        ) from lost


def _why(lost: Exception) -> str:
    if isinstance(lost, TimeoutError):
        return "timeout"
    if isinstance(lost, OSError) and lost.strerror:
        return _printable(lost.strerror).lower()
    return type(lost).__name__


def _content(response: HTTPResponse, answer: bytes) -> tuple[str, bytes]:
    content_type = response.headers.get_content_type()
    if response.status == 200:
        return content_type, answer
    if response.status < 400 or content_type != "application/problem+json":
        raise errors.IntegrityFailure(f"the service answered {response.status} with no problem of ours")
    raise refusal(decode_object(answer))


def _unavailable(response: HTTPResponse, answer: bytes) -> str:
    """Return why the service is not available, in its own words if they are a problem's."""
    if response.headers.get_content_type() == "application/problem+json":
        try:
            return str(refusal(decode_object(answer)))
        except errors.IntegrityFailure:
            pass
    return f"the service answered {response.status}"


def _retry_after(response: HTTPResponse) -> float:
    text = response.headers.get("Retry-After", "")
    return min(float(text), _LONGEST_TOLD) if text.isascii() and text.isdigit() else 0.0


def decode_object(answer: bytes) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        errors.IntegrityFailure: it is none.
    """
    value: object
    try:
        value = json.loads(answer)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        # Outside of except: the cause would carry the answer along, and with it perhaps a key.
        raise errors.IntegrityFailure("the service's answer is no json object")
    return value
