"""Commands and responses of smart cards, and the batches in which they travel (ISO/IEC 7816-3 and -4).

A procedure (``injection``) is a generator that yields batches and is sent the responses: it does no I/O, so
the same code runs in the service with a station in between, next to a simulated element, and against a
recorded session.  Neither commands nor responses are in a ``repr``.

A ``Batch`` goes to the element in one piece, as far as it goes well.  After each command stands what has to
come back for the next one to be sent: a status word, or, where a response can be foretold, its hash.  So an
honest station carries out "prove, then delete" without asking in between and without knowing what the
responses say; whoever sent the batch judges them again, since a station may be anything.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Protocol

from birthmark import errors

__all__ = [
    "OK",
    "Batch",
    "CardChannel",
    "CommandAPDU",
    "Guarded",
    "ResponseAPDU",
    "chained",
    "relay",
]

OK = 0x9000
_MORE_DATA = 0x61
_WRONG_LE = 0x6C
_CHAINING = 0x10
_MOST_RESPONSES = 300
"""GET RESPONSE commands for one answer: 64 KiB in pieces of 256 octets, and some."""


@dataclass(frozen=True, slots=True)
class CommandAPDU:
    """A command (ISO/IEC 7816-3 section 12.1)."""

    cla: int
    ins: int
    p1: int
    p2: int
    data: bytes = field(default=b"", repr=False)
    le: int | None = None
    """Most octets wanted in the response: 1 to 65536, 256 being the most a short command can say; None for
    none."""
    extended: bool = False
    """Encode lengths in three octets even where one would do."""

    def __post_init__(self) -> None:
        """Refuse what cannot be encoded.

        Raises:
            MalformedRequest: a header octet or a length is out of range.
        """
        for octet in (self.cla, self.ins, self.p1, self.p2):
            if not 0 <= octet <= 0xFF:
                raise errors.MalformedRequest(f"{octet} is no octet of a command header")
        if len(self.data) > 0xFFFF or (self.le is not None and not 1 <= self.le <= 0x10000):
            raise errors.MalformedRequest("a command carries at most 65535 octets and asks for 1 to 65536")

    @property
    def is_extended(self) -> bool:
        """Return whether its lengths take three octets."""
        return self.extended or len(self.data) > 0xFF or (self.le or 0) > 0x100

    @property
    def header(self) -> bytes:
        """CLA INS P1 P2."""
        return bytes((self.cla, self.ins, self.p1, self.p2))

    @property
    def lc(self) -> bytes:
        """Lc as it is on the wire: nothing, one octet, or three."""
        if not self.data:
            return b""
        return self.length_field(len(self.data))

    def length_field(self, length: int) -> bytes:
        """Encode a length of data as this command does."""
        if self.is_extended or length > 0xFF:
            return b"\0" + length.to_bytes(2, "big")
        return bytes((length,))

    def encode(self) -> bytes:
        """Return the octets that go to the element."""
        body = self.lc + self.data
        if self.le is None:
            return self.header + body
        if not self.is_extended:
            return self.header + body + bytes((self.le % 0x100,))
        le = (self.le % 0x10000).to_bytes(2, "big")
        return self.header + body + (le if self.data else b"\0" + le)

    @classmethod
    def decode(cls, octets: bytes) -> "CommandAPDU":
        """Read a command.

        Raises:
            MalformedRequest: it is none.
        """
        if len(octets) < 4:
            raise errors.MalformedRequest("a command has at least 4 octets")
        cla, ins, p1, p2 = octets[:4]
        body = octets[4:]
        if not body:
            return cls(cla, ins, p1, p2)
        if len(body) == 1:
            return cls(cla, ins, p1, p2, le=body[0] or 0x100)
        extended = body[0] == 0
        if extended and len(body) == 3:
            return cls(cla, ins, p1, p2, le=int.from_bytes(body[1:], "big") or 0x10000, extended=True)
        width, at = (2, 3) if extended else (1, 1)
        length = int.from_bytes(body[at - width : at], "big")
        data, le = body[at : at + length], body[at + length :]
        if length == 0 or len(data) != length or len(le) not in (0, width):
            raise errors.MalformedRequest("the lengths of the command do not fit its octets")
        wanted = (int.from_bytes(le, "big") or 1 << 8 * width) if le else None
        return cls(cla, ins, p1, p2, data, wanted, extended)


@dataclass(frozen=True, slots=True)
class ResponseAPDU:
    """A response (ISO/IEC 7816-3 section 12.1)."""

    sw: int
    data: bytes = field(default=b"", repr=False)

    def encode(self) -> bytes:
        """Return the octets that come from the element."""
        return self.data + self.sw.to_bytes(2, "big")

    @classmethod
    def decode(cls, octets: bytes) -> "ResponseAPDU":
        """Read a response.

        Raises:
            MalformedRequest: it is none.
        """
        if not 2 <= len(octets) <= 0x10002:
            raise errors.MalformedRequest("a response has 2 to 65538 octets")
        return cls(int.from_bytes(octets[-2:], "big"), octets[:-2])


def chained(command: CommandAPDU) -> tuple[CommandAPDU, ...]:
    """Split a command into short ones with command chaining (ISO/IEC 7816-4 section 5.3.3).

    A C-MAC stays right where the data alone make the command long: the element puts them together again and
    finds the same Lc.
    """
    if not command.is_extended:
        return (command,)
    pieces = [command.data[at : at + 0xFF] for at in range(0, len(command.data), 0xFF)] or [b""]
    last = replace(command, data=pieces[-1], le=command.le and min(command.le, 0x100), extended=False)
    begin = [
        replace(command, cla=command.cla | _CHAINING, data=piece, le=None, extended=False)
        for piece in pieces[:-1]
    ]
    return (*begin, last)


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarded:
    """A command, and what has to come back for the next one of its batch to be sent."""

    command: bytes = field(repr=False)
    """As it goes to the element."""
    status_words: tuple[int, ...] = (OK,)
    """One of these."""
    response_sha256: str | None = None
    """And the response, status word included, has this hash (hex); None for any."""

    def lets_through(self, response: bytes) -> bool:
        """Return whether the next command may be sent after this response."""
        if int.from_bytes(response[-2:], "big") not in self.status_words:
            return False
        return self.response_sha256 in (None, sha256(response).hexdigest())


Batch = tuple[Guarded, ...]
"""Commands that go to the element one after the other; never empty."""


class CardChannel(Protocol):
    """One secure element, in one reader, held by nobody else as long as it is open."""

    def transmit(self, command: bytes) -> bytes:
        """Send one command and return the response, status word included.

        Raises:
            Unavailable: the element or the reader is gone; whether the command was carried out is unknown.
        """
        ...

    def reset(self) -> None:
        """Power the element off and on: what was selected or open in it is gone.

        Raises:
            Unavailable: the element or the reader is gone.
        """
        ...


def relay(channel: CardChannel, batch: Iterable[Guarded]) -> list[bytes]:
    """Carry a batch to an element until it ends, a guard stops it, or the element is lost.

    Returns:
        The responses there were, the one that stopped it included.
    """
    responses: list[bytes] = []
    for guarded in batch:
        try:
            response = _exchange(channel, guarded.command)
        except errors.Unavailable:
            break
        responses.append(response)
        if not guarded.lets_through(response):
            break
    return responses


def _exchange(channel: CardChannel, command: bytes) -> bytes:
    """Send a command and fetch the whole of its response (ISO/IEC 7816-4 section 5.3.4: 61xx and 6Cxx).

    Neither is part of a secure channel: a reader may do the same without our seeing it.
    """
    response = channel.transmit(command)
    if len(response) < 2:
        raise errors.Unavailable("the element answered without a status word")
    if len(response) == 2 and response[0] == _WRONG_LE:
        asked = CommandAPDU.decode(command)
        response = channel.transmit(replace(asked, le=response[1] or 0x100).encode())
    whole = b""
    for _ in range(_MOST_RESPONSES):
        if len(response) < 2:
            break
        if response[-2] != _MORE_DATA:
            return whole + response
        whole += response[:-2]
        cla = command[0] & 0x03 if command[0] < 0x40 else 0
        response = channel.transmit(CommandAPDU(cla, 0xC0, 0, 0, le=response[-1] or 0x100).encode())
    raise errors.Unavailable("the element's response does not end")
