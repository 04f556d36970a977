"""A type for bytes that must not be seen.

Private keys, passphrases and PINs travel as ``SecretBytes``: it cannot be printed, formatted, hashed or
pickled, and compares in constant time.  The raw value is behind one greppable word, ``reveal``.  It does not
claim to wipe memory: Python cannot promise that.
"""

import hmac
from typing import NoReturn, final

__all__ = ["SecretBytes"]


@final
class SecretBytes:
    """Bytes that do not show themselves."""

    __slots__ = ("_value",)
    __hash__ = None  # type: ignore[assignment]  # the documented way to make a class unhashable

    def __init__(self, value: bytes) -> None:
        self._value = value

    def reveal(self) -> bytes:
        """Return the raw bytes.  Grep for this name to audit every use."""
        return self._value

    def __len__(self) -> int:
        return len(self._value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SecretBytes):
            return NotImplemented
        return hmac.compare_digest(self._value, other._value)

    def __repr__(self) -> str:
        return f"SecretBytes(<{len(self._value)} bytes>)"

    def __format__(self, format_spec: str) -> str:
        return repr(self)

    def __reduce__(self) -> NoReturn:
        raise TypeError("SecretBytes does not leave the process")
