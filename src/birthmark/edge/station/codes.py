"""The code by which a station gets in, as people write and type it (SPEC C2).

It has two halves, and a check.  The secret says who may come; the pin says whom to believe: it is the
beginning of the SHA-256 of the certificate of the service's root, so that a station needs nothing but this
code and an address.  The whole is 56 letters and digits of Crockford's base 32, in groups of four:

    secret (16 octets) || pin (16) || first 3 octets of SHA-256(secret || pin)

It has no I, L, O or U; what looks like 0 or 1 is taken for it, and neither case nor hyphens and spaces count.
"""

import hashlib
import hmac
from dataclasses import dataclass
from typing import Final

from birthmark.errors import IntegrityFailure, MalformedRequest
from birthmark.secret import SecretBytes

__all__ = ["PIN_OCTETS", "SECRET_OCTETS", "JoinCode", "pin_of"]

SECRET_OCTETS: Final = 16
PIN_OCTETS: Final = 16
_CHECK_OCTETS: Final = 3
_LETTERS: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_LENGTH: Final = (SECRET_OCTETS + PIN_OCTETS + _CHECK_OCTETS) * 8 // 5
_GROUP: Final = 4
_LIKE: Final = str.maketrans("OIL", "011", "- \t\r\n")
_VALUES: Final = {letter: value for value, letter in enumerate(_LETTERS)}


def pin_of(certificate: bytes) -> bytes:
    """Return the pin of a root's certificate (DER)."""
    return hashlib.sha256(certificate).digest()[:PIN_OCTETS]


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinCode:
    """A code."""

    secret: SecretBytes
    """16 octets."""
    pin: bytes
    """16 octets, see ``pin_of``."""

    @classmethod
    def parse(cls, text: str) -> "JoinCode":
        """Read what somebody typed.

        Raises:
            MalformedRequest: it is no code, or was mistyped.
        """
        letters = text.upper().translate(_LIKE)
        if len(letters) != _LENGTH or any(letter not in _VALUES for letter in letters):
            raise MalformedRequest(f"a code has {_LENGTH} letters and digits: look at it again")
        number = 0
        for letter in letters:
            number = number << 5 | _VALUES[letter]
        octets = number.to_bytes(_LENGTH * 5 // 8, "big")
        content, check = octets[:-_CHECK_OCTETS], octets[-_CHECK_OCTETS:]
        if not hmac.compare_digest(check, _check(content)):
            raise MalformedRequest("the code was mistyped: its check does not agree")
        return cls(secret=SecretBytes(content[:SECRET_OCTETS]), pin=content[SECRET_OCTETS:])

    def spell(self) -> str:
        """Return it as it is shown, once, to whoever invites."""
        content = self.secret.reveal() + self.pin
        number = int.from_bytes(content + _check(content), "big")
        letters = "".join(_LETTERS[number >> 5 * place & 31] for place in reversed(range(_LENGTH)))
        return "-".join(letters[start : start + _GROUP] for start in range(0, _LENGTH, _GROUP))

    def require_root(self, certificate: bytes) -> None:
        """Compare a root's certificate (DER) with the pin.

        Raises:
            IntegrityFailure: it is another root: this is not the service that the code is for.
        """
        if not hmac.compare_digest(pin_of(certificate), self.pin):
            raise IntegrityFailure(
                "this is not the service that the code is for: its root has another fingerprint"
            )


def _check(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:_CHECK_OCTETS]
