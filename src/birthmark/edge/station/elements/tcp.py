"""Secure elements behind a TCP connection: ``tcp:HOST:PORT``, ``tcp:[::1]:PORT?timeout=30``.

For simulated elements, and for readers that a small program of a fixture serves.  The framing is vpcd's
(vsmartcard), with the element as the server: a message is its length (2 octets, big-endian) and its octets.
A message of one octet is about power: 00 off, 01 on, 02 reset, none of them answered; 04 asks for the answer
to reset (ISO/IEC 7816-3, 8), empty if there is no element.  Anything longer is a command, and is answered by
its response.

After connecting, and to ``reset``, this end sends 00, 01 and 04.  After anything that went wrong, a timeout
for one, the connection is closed, since a late response would be taken for the next one's; ``reset`` then
connects again.

The connection is neither encrypted nor authenticated, and need not be for what goes over it: SCP03 protects
commands and responses end to end.  Whoever is in between can break a dialogue off, as anybody can who holds
the element.
"""

import socket
from collections.abc import Mapping
from contextlib import suppress
from threading import Lock
from typing import Self

from birthmark import errors
from birthmark.edge.station.elements import allow
from birthmark.edge.station.elements.carded import OPTIONS, CardedEnclave, carded, seconds

__all__ = ["TCPChannel", "channel", "element"]

_OFF, _ON, _ATR = b"\x00", b"\x01", b"\x04"
_PATIENCE = 30.0
"""Seconds to wait for an element's answer, unless told otherwise: making an RSA key may take as long."""


class TCPChannel:
    """A ``CardChannel`` to an element behind a socket.  Close it, or use it in a ``with``."""

    def __init__(self, host: str, port: int, *, timeout_seconds: float = _PATIENCE) -> None:
        """Connect, and power the element on.

        Raises:
            Unavailable: nobody answers there.
        """
        self._address = (host, port)
        self._timeout = timeout_seconds
        self._lock = Lock()
        self._socket: socket.socket | None = None
        self._connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"TCPChannel({self._address[0]!r}, {self._address[1]})"

    def transmit(self, command: bytes) -> bytes:
        """Send one command; see ``CardChannel``.

        Raises:
            Unavailable: the connection is gone, or nobody answered in time; whether the command was carried
                out is unknown.
            MalformedRequest: the command is longer than a message may be (65535 octets), or shorter than one.
        """
        if not 4 <= len(command) <= 0xFFFF:
            raise errors.MalformedRequest("a command has 4 to 65535 octets here")
        with self._lock:
            if self._socket is None:
                raise self._gone("the connection is closed")
            try:
                self._send(self._socket, command)
                return self._receive(self._socket)
            except OSError as lost:
                self._drop()
                raise self._gone(_why(lost)) from lost

    def reset(self) -> None:
        """Power the element off and on; connect again where the connection is gone.

        Raises:
            Unavailable: nobody answers there.
        """
        with self._lock:
            if self._socket is not None:
                try:
                    self._power(self._socket)
                except OSError:
                    self._drop()
                else:
                    return
            self._connect()

    def close(self) -> None:
        """Power the element off and close the connection."""
        with self._lock:
            if self._socket is not None:
                with suppress(OSError):
                    self._send(self._socket, _OFF)
                self._drop()

    def _connect(self) -> None:
        try:
            self._socket = socket.create_connection(self._address, self._timeout)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._power(self._socket)
        except OSError as lost:
            self._drop()
            raise self._gone(_why(lost)) from lost

    def _power(self, connection: socket.socket) -> None:
        for message in (_OFF, _ON, _ATR):
            self._send(connection, message)
        if not self._receive(connection):
            raise ConnectionError("there is none, or it is dead")

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def _gone(self, why: str) -> errors.Unavailable:
        host, port = self._address
        return errors.Unavailable(f"the element at {host}:{port} does not answer: {why}")

    @staticmethod
    def _send(connection: socket.socket, message: bytes) -> None:
        # In one piece: two would wait for each other (Nagle's algorithm and delayed acknowledgements).
        connection.sendall(len(message).to_bytes(2, "big") + message)

    @staticmethod
    def _receive(connection: socket.socket) -> bytes:
        length = int.from_bytes(_exactly(connection, 2), "big")
        return _exactly(connection, length)


def channel(place: str, options: Mapping[str, str]) -> TCPChannel:
    """Connect to the element at ``place`` (HOST:PORT); the option ``timeout`` is in seconds."""
    allow(options, "timeout")
    return _open(place, options)


def element(place: str, options: Mapping[str, str]) -> CardedEnclave:
    """Open the directory of the option ``enclave``, with the element at ``place``."""
    allow(options, "timeout", *OPTIONS)
    return carded(options, lambda: _open(place, options))


def _open(place: str, options: Mapping[str, str]) -> TCPChannel:
    host, _, port = place.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 0x10000):
        raise errors.MalformedRequest(f"{place[:100]!r} is no place of an element: write tcp:HOST:PORT")
    return TCPChannel(host, int(port), timeout_seconds=seconds(options, "timeout", _PATIENCE))


def _exactly(connection: socket.socket, count: int) -> bytes:
    octets = b""
    while len(octets) < count:
        piece = connection.recv(count - len(octets))
        if not piece:
            raise ConnectionError("it hung up")
        octets += piece
    return octets


def _why(lost: OSError) -> str:
    if isinstance(lost, TimeoutError):
        return "timeout"
    return (lost.strerror or str(lost)).lower()
