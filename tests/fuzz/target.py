"""What a target is, and how a test input of octets becomes what a decoder takes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from birthmark import errors
from tests.fuzz.mutators import Shape

__all__ = ["Target", "halves", "joined", "line_text", "pieces", "read_whole", "text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A decoder, or several that read the same thing, under one name."""

    name: str
    run: Callable[[bytes], object]
    """Decode; whatever comes out is not looked at, but what follows from it may be done, too."""
    seeds: Callable[[], Iterable[bytes]]
    """Valid examples: at least one of them is not refused."""
    refuses: tuple[type[errors.Refusal], ...] = (errors.MalformedRequest,)
    """What may be raised."""
    refused_seeds: bool = False
    """No example passes: the last step would need a secret, or another input."""
    shape: Shape = Shape.OCTETS
    """What the inputs are made of."""
    longest: int = 4096
    """Most octets tried."""

    def attempt(self, data: bytes) -> bool:
        """Run once; return whether the octets were accepted.

        Raises:
            Exception: anything that the target may not raise: a finding.
        """
        try:
            self.run(data)
        except self.refuses:
            return False
        return True


def text(decoder: Callable[[str], object]) -> Callable[[bytes], object]:
    """Give a decoder of text any text there is: JSON and argument lists can have lone surrogates."""
    return lambda data: decoder(data.decode("utf-8", "surrogateescape"))


def line_text(decoder: Callable[[str], object]) -> Callable[[bytes], object]:
    """Give a decoder what a file of text can hold."""

    def run(data: bytes) -> object:
        try:
            content = data.decode()
        except UnicodeDecodeError:
            raise errors.MalformedRequest("not utf-8") from None
        return decoder(content)

    return run


def joined(*parts: bytes) -> bytes:
    """Put several inputs into one; ``pieces`` takes them apart."""
    return b"".join(len(part).to_bytes(2, "big") + part for part in parts)


def pieces(data: bytes, count: int) -> list[bytes]:
    """Take exactly so many inputs out of one; the last is what is left, and any may be empty."""
    found = []
    for _ in range(count - 1):
        size = int.from_bytes(data[:2], "big")
        found.append(data[2 : 2 + size])
        data = data[2 + size :]
    found.append(data[2:])
    return found


def halves(data: bytes, count: int) -> tuple[int, bytes]:
    """Take a choice of so many out of an input: its first octet."""
    return (data[0] % count if data else 0), data[1:]


def read_whole(data: bytes, width: int = 1) -> list[bytes]:
    """Take as many inputs as there are, each under its length."""
    found = []
    while data:
        size = int.from_bytes(data[:width], "big")
        found.append(data[width : width + size])
        data = data[width + size :]
    return found
