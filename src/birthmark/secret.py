"""A type for bytes that must not be seen.

Private keys, passphrases and PINs travel as ``SecretBytes``: it cannot be printed, formatted, hashed or
pickled, and compares in constant time.  The raw value is behind two greppable words: ``reveal``, a copy, and
``view``, the value itself.

It overwrites its value when it is destroyed, or nobody refers to it any more, and ``wipe`` does so with what
a library has just returned.  What a library keeps or frees by itself is out of reach: what remains is
measured in ``docs/secrets-in-memory.md``.
"""

import ctypes
import hmac
from typing import NoReturn, Self, final

__all__ = ["SecretBytes", "Vanishing", "wipe"]

_HEADER = bytes.__basicsize__ - 1
"""Octets of a ``bytes`` object before its value: the size that it has without a value counts a final zero."""


def wipe(value: bytes | bytearray) -> None:
    """Overwrite octets with zeros, where they are.

    Args:
        value: of ``bytes`` only what a library has just returned, and what nobody else refers to, hashes or
            uses afterwards: they are changed although Python promises that they never do.  The language has
            no other way to a value that a library hands out so.
    """
    if isinstance(value, bytearray):
        value[:] = bytes(len(value))
    elif len(value) > 1:  # shorter ones are shared by the whole interpreter
        ctypes.memset(id(value) + _HEADER, 0, len(value))


class Vanishing(bytearray):
    """Octets that are overwritten when nobody refers to them any more, be it as a ``memoryview``.

    For what others hold as long as they need it, such as an answer that waits to be sent.  It is made with
    its final size: whatever grows moves, and leaves its old place as it was.
    """

    def __del__(self) -> None:
        """Overwrite them."""
        wipe(self)


@final
class SecretBytes:
    """Bytes that do not show themselves."""

    __slots__ = ("_value",)
    __hash__ = None  # type: ignore[assignment]  # the documented way to make a class unhashable

    def __init__(self, value: bytes | bytearray | memoryview) -> None:
        """Keep a copy."""
        self._value: Vanishing | None = Vanishing(value)

    @classmethod
    def taking(cls, value: bytes | bytearray) -> "SecretBytes":
        """Keep a copy, and overwrite the original: for what a library has just returned (see ``wipe``)."""
        taken = cls(value)
        wipe(value)
        return taken

    def reveal(self) -> bytes:
        """Return a copy of the raw bytes, which nobody overwrites.  Grep for this name to audit every use.

        Raises:
            RuntimeError: it is destroyed.
        """
        return bytes(self._there())

    def view(self) -> memoryview:
        """Return the raw bytes themselves, until they are destroyed: for whoever reads any buffer.

        Raises:
            RuntimeError: it is destroyed.
        """
        return memoryview(self._there()).toreadonly()

    def destroy(self) -> None:
        """Overwrite the value; nobody gets it any more.  Destroying twice does nothing."""
        value, self._value = self._value, None
        if value is not None:
            wipe(value)

    def _there(self) -> Vanishing:
        if self._value is None:
            raise RuntimeError("this secret is destroyed")
        return self._value

    def __enter__(self) -> Self:
        """Lend it to a block."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Destroy it."""
        self.destroy()

    def __len__(self) -> int:
        return len(self._there())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SecretBytes):
            return NotImplemented
        return hmac.compare_digest(self._there(), other._there())

    def __repr__(self) -> str:
        return "SecretBytes(<destroyed>)" if self._value is None else f"SecretBytes(<{len(self)} bytes>)"

    def __format__(self, format_spec: str) -> str:
        return repr(self)

    def __reduce__(self) -> NoReturn:
        raise TypeError("SecretBytes does not leave the process")
