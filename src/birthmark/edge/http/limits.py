"""Who gets a place at a listener, and for how long (SPEC C1).

A connection has its place from accept(2) until its socket is gone.  Who comes when all places are taken, or
all places for handshakes, gets that of an unfinished handshake: the oldest of the address that has most of
them.  So those who only hold handshakes open push out each other, and nobody who finishes one in time.  Where
there is none to push out, the newcomer is refused with a TLS alert (or 503) that says that it may come again.

The counts are those of one process.  What a certificate may do is ``peer``'s affair, and the record's.
"""

import asyncio
import logging
import resource
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Any, Final, Protocol

from birthmark import errors

__all__ = ["Cause", "Door", "Limits", "Told", "allow_descriptors", "end_soon"]

log = logging.getLogger(__name__)

_AT_ONCE: Final = 32
"""How many connections are taken before the others get their turn."""
_REST_SECONDS: Final = 0.5
"""How long nobody is let in after accept(2) failed: for want of descriptors or memory."""
_SWEEP_SECONDS: Final = 1.0
_ALERT_SECONDS: Final = 1.0
"""How long a client whose TLS failed may take to go by itself, having got the alert."""
_SPARE_DESCRIPTORS: Final = 256
"""For what is not a connection: database, token, files."""
_SHARED_BITS_V6: Final = 8
"""Octets of an IPv6 address that one customer's hosts have in common (RFC 6177)."""
_ALERT: Final = bytes.fromhex("15 0303 0002 02 50")
"""A record with the fatal alert internal_error (RFC 8446 section 6.2): nothing is wrong with the client."""
_BUSY: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: 21\r\n"
    b"retry-after: 1\r\ncache-control: no-store\r\nconnection: close\r\n\r\ntoo many connections\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one process of a listener bears."""

    connections: int
    per_address: int | None = None
    """Connections from one IPv4 address or one IPv6 network of 64 bits; None for no limit."""
    handshakes: int = 1
    """Unfinished at a time; of no account without TLS."""
    handshake_seconds: float = 10.0
    shutdown_seconds: float = 5.0
    """How long the farewell of TLS may take."""
    answer_seconds: float = 30.0
    """How long a client may leave an answer untaken."""


class Guest(Protocol):
    """What the door asks of a connection's protocol; ``peer.PeerProtocol`` is one."""

    transport: Any
    gone: Callable[[], None]
    """Called when the connection is lost."""


class Cause(StrEnum):
    """Why a connection ended before there was a request."""

    CERTIFICATE = "certificate"
    """No certificate, or one that nobody live has here."""
    PROTOCOL = "protocol"
    """Nothing came of TLS."""
    CLOSED = "closed"
    """The plane or the client is closed at this time."""
    LIMIT = "limit"
    """Too many, or it could not be told who is welcome; it may come again."""
    LATE = "late"
    """The request did not come, or its answer was not taken."""
    NO_HTTP = "no-http"


Told = Callable[[Cause, errors.Refusal, bytes], None]
"""Told of everyone who does not get in: why, what was said, and the verified certificate (DER) if it came so
far.  Called on the loop's thread."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Visitor:
    """One connection."""

    address: bytes
    connection: socket.socket | None
    """While it is not its protocol's."""
    task: asyncio.Task[None] | None = None
    """Held here, because the loop holds tasks weakly."""
    guest: Guest | None = None
    closing_since: float | None = None
    failed: bool = False
    """Its TLS did, and that was told."""

    def end(self) -> None:
        """End the connection.

        Cancelling what greets it would not do: uvloop forgets a connection whose protocol was not called yet.
        """
        if self.connection is not None:
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
        elif self.guest is not None and self.guest.transport is not None:
            self.guest.transport.abort()


_VISITOR: ContextVar[_Visitor | None] = ContextVar("visitor", default=None)
"""Whose handshake the code is in: the loop calls a connection's protocols in the context it was made in."""


def end_soon() -> None:
    """Say, from within a connection's TLS, that it failed and that this is told already."""
    visitor = _VISITOR.get()
    if visitor is not None and not visitor.failed:
        visitor.failed = True
        asyncio.get_running_loop().call_later(_ALERT_SECONDS, visitor.end)


def allow_descriptors(connections: int) -> None:
    """Let this process have as many descriptors as these connections need.

    Raises:
        errors.Unavailable: the system does not allow so many.
    """
    wanted = connections + _SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise errors.Unavailable(
            f"{connections} connections need {wanted} file descriptors and the system allows {hard}: raise"
            " RLIMIT_NOFILE, or lower max-connections"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _network(address: Any) -> bytes:
    """Return what is counted as one address."""
    host = str(address[0])
    if ":" not in host:
        return socket.inet_aton(host)
    octets = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    if octets.startswith(bytes(10) + b"\xff\xff"):  # an IPv4 address (RFC 4291 section 2.5.5.2)
        return octets[12:]
    return octets[:_SHARED_BITS_V6]


@dataclass(slots=True, kw_only=True)
class Door:
    """A listening socket and those it let in; as far as uvicorn asks, an ``asyncio.Server``.

    Everything here happens on the loop's thread.
    """

    listener: socket.socket
    welcome: Callable[[], Any]
    """Makes the protocol (a ``Guest``) of a connection."""
    limits: Limits
    told: Told
    """Told of everyone who did not get in."""
    context: ssl.SSLContext | Callable[[], ssl.SSLContext] | None = None
    """Of TLS; where it changes while the door is open, what returns that of this moment."""
    _inside: set[_Visitor] = field(init=False, default_factory=set)
    _greeted: dict[bytes, dict[_Visitor, None]] = field(init=False, default_factory=dict)
    """Unfinished handshakes by address, the oldest first."""
    _handshakes: int = field(init=False, default=0)
    _addresses: Counter[bytes] = field(init=False, default_factory=Counter)
    _turned_away: int = field(init=False, default=0)
    _sweeping: asyncio.TimerHandle | None = field(init=False, default=None)
    _resting: asyncio.TimerHandle | None = field(init=False, default=None)

    def open(self) -> "Door":
        """Begin to let them in."""
        self.listener.setblocking(False)
        loop = asyncio.get_running_loop()
        loop.add_reader(self.listener.fileno(), self._arrivals)
        self._sweeping = loop.call_later(_SWEEP_SECONDS, self._sweep)
        return self

    def close(self) -> None:
        """Let nobody in any more; those inside stay."""
        for timer in (self._sweeping, self._resting):
            if timer is not None:
                timer.cancel()
        asyncio.get_running_loop().remove_reader(self.listener.fileno())
        for waiting in list(self._greeted.values()):
            for visitor in list(waiting):
                self._send_off(visitor)

    async def wait_closed(self) -> None:
        """Return; uvicorn waits for the connections itself."""

    # --- coming

    def _arrivals(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, address = self.listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue  # it left while it waited (accept(2))
            except OSError as failed:
                self._rest(failed)
                return
            self._arrived(connection, _network(address))

    def _arrived(self, connection: socket.socket, address: bytes) -> None:
        full = self._full(address)
        if full is not None:
            self._turn_away(connection, full)
            return
        if self.context is not None and self._handshakes >= self.limits.handshakes:
            self._make_room()
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # An answer that is not taken: the kernel sees it, whatever is buffered where (tcp(7)).
        untaken = int(self.limits.answer_seconds * 1000)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, untaken)
        visitor = _Visitor(address=address, connection=connection)
        self._inside.add(visitor)
        self._addresses[address] += 1
        if self.context is not None:
            self._greeted.setdefault(address, {})[visitor] = None
            self._handshakes += 1
        visitor.task = asyncio.get_running_loop().create_task(self._greet(visitor, connection))

    def _full(self, address: bytes) -> str | None:
        """Return why there is no place, having made one if that was possible."""
        most = self.limits.per_address
        if most is not None and self._addresses[address] >= most and not self._make_room(address):
            return f"an address has at most {most} connections"
        if len(self._inside) >= self.limits.connections and not self._make_room():
            return f"there are at most {self.limits.connections} connections"
        return None

    def _make_room(self, address: bytes | None = None) -> bool:
        """End the oldest handshake of this address, or of the one with most; return whether there was any."""
        if address is None and self._greeted:
            address = max(self._greeted, key=lambda one: len(self._greeted[one]))
        waiting = self._greeted.get(address) if address is not None else None
        if not waiting:
            return False
        self._send_off(next(iter(waiting)))
        self.told(
            Cause.PROTOCOL, errors.Unauthenticated("an unfinished handshake gave way to a newer one"), b""
        )
        return True

    def _send_off(self, visitor: _Visitor) -> None:
        self._leave(visitor)
        visitor.failed = True
        visitor.end()

    def _turn_away(self, connection: socket.socket, why: str) -> None:
        self._turned_away += 1
        self.told(Cause.LIMIT, errors.Unavailable(why), b"")
        with connection:
            connection.setblocking(False)
            try:
                connection.send(_BUSY if self.context is None else _ALERT)
                connection.shutdown(socket.SHUT_WR)
                connection.recv(65_536)  # what is unread when a socket is closed would undo what was sent
            except OSError:
                return

    def _rest(self, failed: OSError) -> None:
        """Try again a little later; who waits in the backlog keeps waiting."""
        log.error("no connection can be taken: %s", failed.strerror, extra={"connections": len(self._inside)})
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.listener.fileno())
        self._resting = loop.call_later(
            _REST_SECONDS, loop.add_reader, self.listener.fileno(), self._arrivals
        )

    async def _greet(self, visitor: _Visitor, connection: socket.socket) -> None:
        """Do the handshake, if there is one, and hand the connection to its protocol."""
        loop, limits = asyncio.get_running_loop(), self.limits
        _VISITOR.set(visitor)

        def welcome() -> Any:
            visitor.guest = self.welcome()
            visitor.guest.gone = partial(self._leave, visitor)
            return visitor.guest

        try:
            if self.context is None:
                await loop.connect_accepted_socket(welcome, connection)
            else:
                await loop.connect_accepted_socket(
                    welcome,
                    connection,
                    ssl=self.context() if callable(self.context) else self.context,
                    ssl_handshake_timeout=limits.handshake_seconds,
                    ssl_shutdown_timeout=limits.shutdown_seconds,
                )
        except OSError as failed:
            self._leave(visitor)
            if not visitor.failed and self.context is not None:
                self._failed(failed)
        except BaseException:
            self._leave(visitor)
            raise
        else:
            self._finished(visitor)
        finally:
            # Our hold on it; the loop has one of its own for as long as it needs the socket.
            visitor.connection = None
            connection.close()

    def _failed(self, why: OSError) -> None:
        said = "the client left during the handshake"
        if isinstance(why, ConnectionAbortedError | TimeoutError):  # as the loops say it
            said = f"no handshake within {self.limits.handshake_seconds:g} s"
        self.told(Cause.PROTOCOL, errors.Unauthenticated(said), b"")

    def _finished(self, visitor: _Visitor) -> None:
        waiting = self._greeted.get(visitor.address)
        if waiting is not None and visitor in waiting:
            del waiting[visitor]
            self._handshakes -= 1
            if not waiting:
                del self._greeted[visitor.address]

    # --- going

    def _leave(self, visitor: _Visitor) -> None:
        if visitor not in self._inside:
            return
        self._inside.discard(visitor)
        self._finished(visitor)
        visitor.guest = None  # they hold each other
        self._addresses[visitor.address] -= 1
        if not self._addresses[visitor.address]:
            del self._addresses[visitor.address]

    def _sweep(self) -> None:
        """End what is closing and does not come to an end, and say how many found no place."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for visitor in list(self._inside):
            transport = visitor.guest.transport if visitor.guest is not None else None
            if transport is None or not transport.is_closing():
                continue
            if visitor.closing_since is None:
                visitor.closing_since = now
            elif now - visitor.closing_since > self.limits.answer_seconds:
                transport.abort()
        if self._turned_away:
            log.warning("connections found no place", extra={"count": self._turned_away})
            self._turned_away = 0
        self._sweeping = loop.call_later(_SWEEP_SECONDS, self._sweep)
