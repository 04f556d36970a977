"""What a device keeps beside its chip, for chips that have room for a key and a certificate and no more.

    element                 which chip it belongs to, e.g. "atecc 0123a1b2c3d4e5f6ee"
    chain.pem               the authorities above the certificate, PEM, the root not included
    release.tlog-proof      the release token

It is a directory of the device's: its file system, mounted in the fixture, or what the fixture later puts
there.  Nothing in it is secret, and nothing in it is proof: key and certificate are read from the chip, and
whether the device is released is for the chip to say, which keeps the token's SHA-256 (``token_mark``).

The directory stays with its first chip: with another one it is refused, so that nobody finds the token of one
device beside the certificate of another.
"""

from collections.abc import Sequence
from hashlib import sha256

from birthmark.edge.station.folder import Folder
from birthmark.errors import IllegalTransition, MalformedRequest, NotPermitted, PolicyRefused
from birthmark.pki.certificates import to_pem
from birthmark.secret import SecretBytes

__all__ = ["Beside", "refuse_delivered", "refuse_released", "token_mark"]

_ELEMENT = "element"
_CHAIN = "chain.pem"
_TOKEN = "release.tlog-proof"  # noqa: S105 -- a file name


def token_mark(token: str) -> bytes:
    """Return what a chip keeps of a release token: its SHA-256, 32 octets."""
    return sha256(token.encode()).digest()


def refuse_delivered(private_key: SecretBytes | None) -> None:
    """Refuse a delivered key: the chip makes its own.

    Raises:
        PolicyRefused: there is one (rule ``key-origin``).
    """
    if private_key is not None:
        raise PolicyRefused("key-origin", "this element takes no delivered key: it makes its own")


def refuse_released(mark: bytes | None, chip: str) -> None:
    """Refuse to change a chip that has kept a token's mark.

    Raises:
        IllegalTransition: it has.
    """
    if mark is not None:
        raise IllegalTransition(f"the device of {chip} is released: its identity stays")


class Beside:
    """A device's directory beside its chip.  Not for several threads at once."""

    def __init__(self, directory: str | None, chip: str) -> None:
        """Take a directory, after making it where it is missing; ``close`` gives it back.

        Args:
            directory: path; its parent exists.
            chip: what the chip is, and its serial number.

        Raises:
            MalformedRequest: no directory is named.
            NotPermitted: it belongs to another chip, or others than its owner may enter it.
            Unavailable: somebody else has it.
        """
        if not directory:
            raise MalformedRequest("the chip has no room for chain and token: name a directory, beside=DIR")
        self._folder = Folder(directory, create=True)
        try:
            self._folder.lock()
            known = self._folder.read(_ELEMENT)
            if known is None:
                self._folder.write(_ELEMENT, chip.encode() + b"\n", mode=0o444)
            elif known != chip.encode() + b"\n":
                raise NotPermitted(
                    f"{directory} belongs to {known.decode(errors='replace').strip()}, not to {chip}"
                )
        except BaseException:
            self._folder.close()
            raise

    def close(self) -> None:
        """Give the directory back."""
        self._folder.close()

    def keep_chain(self, chain: Sequence[bytes]) -> None:
        """Store the authorities above the certificate (DER each), durably."""
        self._folder.write(_CHAIN, "".join(to_pem(one) for one in chain).encode(), mode=0o444)

    def keep_token(self, token: str) -> None:
        """Store the release token, durably."""
        self._folder.write(_TOKEN, token.encode(), mode=0o444)

    def token(self) -> str | None:
        """Return the release token, or None if there is none."""
        content = self._folder.read(_TOKEN)
        return None if content is None else content.decode()
