"""Batches that say what their responses have to be, and the reading of those responses.

Responses are read one by one, in the order of their commands.  A procedure judges each as it reads it, so the
first thing that is wrong decides.  Two kinds of wrong are told apart:

- ``errors.Interrupted``: there is no response, or a status word that nothing protects.  Anybody between us
  and the element can bring that about; what the element has done is unknown.
- ``errors.ProofFailed``: a success that is not authentic.
"""

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from birthmark import errors
from birthmark.element.apdu import OK, Batch, CommandAPDU, Guarded, ResponseAPDU
from birthmark.element.scp03 import SecureChannel, is_protected

__all__ = ["Exchange", "Transcript", "Wanted", "batch_of", "plain", "reading", "sealed"]

_LONGEST = 0xFFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A command in clear, and the answers we can go on with."""

    name: str
    """As a message calls it."""
    command: CommandAPDU = field(repr=False)
    accepted: Container[int] = (OK,)
    """Status words that are read; all others end the dialogue with ``errors.Interrupted``."""
    guards: tuple[int, ...] = (OK,)
    """Status words with which the station sends the next command."""
    foretold: ResponseAPDU | None = field(default=None, repr=False)
    """The one answer in clear with which the station sends the next command."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A command as it goes to the element, and what its response is read with."""

    name: str
    guarded: Guarded
    accepted: Container[int]
    channel: SecureChannel | None
    """After this command; None where nothing protects the response."""


def plain(wanted: Wanted) -> Exchange:
    """Return an exchange outside any secure channel."""
    guarded = Guarded(command=wanted.command.encode(), status_words=wanted.guards)
    return Exchange(name=wanted.name, guarded=guarded, accepted=wanted.accepted, channel=None)


def sealed(channel: SecureChannel, commands: Iterable[Wanted]) -> Iterator[Exchange]:
    """Yield exchanges in a secure channel, one after the other."""
    for wanted in commands:
        wrapped, channel = channel.wrap(wanted.command)
        guard = None
        if wanted.foretold is not None:
            guard = sha256(channel.protect(wanted.foretold).encode()).hexdigest()
        guarded = Guarded(command=wrapped.encode(), status_words=wanted.guards, response_sha256=guard)
        yield Exchange(name=wanted.name, guarded=guarded, accepted=wanted.accepted, channel=channel)


def batch_of(script: Sequence[Exchange]) -> Batch:
    """Return the commands for the station."""
    return tuple(exchange.guarded for exchange in script)


def reading(script: Sequence[Exchange], responses: Sequence[bytes]) -> Iterator[ResponseAPDU]:
    """Yield the responses, checked and in clear.

    Raises:
        Interrupted: the next response is missing, is none, or has a status word that was not accepted;
            ``accepted`` if there was an authentic one before it.
        ProofFailed: it is a success and not authentic.
    """
    accepted = False
    for number, exchange in enumerate(script):
        try:
            if number == len(responses):
                raise errors.Interrupted(f"{exchange.name}: no answer; what the element did is unknown")
            response = _read(exchange, responses[number])
        except errors.Interrupted as unknown:
            raise errors.Interrupted(str(unknown), accepted=accepted) from unknown.__cause__
        accepted = accepted or (exchange.channel is not None and is_protected(response.sw))
        yield response


def _read(exchange: Exchange, octets: bytes) -> ResponseAPDU:
    if not 2 <= len(octets) <= _LONGEST:
        raise errors.Interrupted(f"{exchange.name}: what came back is no response")
    response = ResponseAPDU.decode(octets)
    if exchange.channel is not None:
        try:
            response = exchange.channel.unwrap(response)
        except errors.ProofFailed as error:
            raise errors.ProofFailed(f"{exchange.name}: {error}") from error
    if response.sw not in exchange.accepted:
        raise errors.Interrupted(f"{exchange.name}: the element answered {response.sw:04X}")
    return response


class Transcript:
    """A hash over commands and their responses, each with its length (2 octets) in front.

    Commands that were not answered are left out.
    """

    def __init__(self) -> None:
        self._hash = sha256()

    def add(self, batch: Batch, responses: Sequence[bytes]) -> None:
        """Take in a batch as far as it was answered.

        Raises:
            Interrupted: there are more responses than commands, or one is too long for a response.
        """
        if len(responses) > len(batch):
            raise errors.Interrupted("the station sent more responses than there were commands")
        for guarded, response in zip(batch, responses, strict=False):
            for octets in (guarded.command, response):
                if len(octets) > _LONGEST:
                    raise errors.Interrupted("what came back is too long for a response")
                self._hash.update(len(octets).to_bytes(2, "big") + octets)

    def hexdigest(self) -> str:
        """Return the SHA-256 of it so far (hex)."""
        return self._hash.hexdigest()
