"""Read TOML files that mean one thing: every key is taken once, and one that nobody took is an error.

For the profiles of certificates and of secure elements.  A complaint is one ``MalformedRequest`` that names
file and key.
"""

import tomllib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, NoReturn, Self, TypeVar

from birthmark.errors import MalformedRequest, Unavailable

__all__ = ["SUFFIX", "TomlTable", "document_of", "files_of"]

SUFFIX = ".toml"
_MOST_FILES = 1024

_T = TypeVar("_T", str, bool, int)
_E = TypeVar("_E", bound=StrEnum)
_SPOKEN: Mapping[type, str] = {str: "a text", bool: "true or false", int: "an integer"}


def document_of(octets: bytes, where: str) -> dict[str, Any]:
    """Return what a TOML file (UTF-8) holds.

    Args:
        octets: of the file.
        where: what to call it, e.g. ``profile x.toml: ``.

    Raises:
        MalformedRequest: it is no TOML file.
    """
    try:
        return tomllib.loads(octets.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise MalformedRequest(f"{where}not a toml file: {error}") from error


def files_of(directory: Path | None, what: str, longest: int) -> dict[str, bytes]:
    """Return every ``*.toml`` of a directory by its name, sorted; nothing of no directory.

    Args:
        directory: that holds the files.
        what: what one of them is, for complaints: ``profile``.
        longest: most octets a file may have.

    Raises:
        MalformedRequest: there are more than 1024, or one is too long.
        Unavailable: the directory, or a file in it, cannot be read.
    """
    if directory is None:
        return {}
    try:
        paths = sorted(path for path in directory.iterdir() if path.name.endswith(SUFFIX))
        if len(paths) > _MOST_FILES:
            raise MalformedRequest(f"{what} directory {directory}: {len(paths)} files, at most {_MOST_FILES}")
        return {path.name: _octets_of(path, what, longest) for path in paths}
    except OSError as failure:
        raise Unavailable(
            f"{what} directory {directory}: {failure.strerror}: {failure.filename}"
        ) from failure


def _octets_of(path: Path, what: str, longest: int) -> bytes:
    with path.open("rb") as file:
        octets = file.read(longest + 1)
    if len(octets) > longest:
        raise MalformedRequest(f"{what} {path.name}: more than {longest} octets")
    return octets


class TomlTable:
    """A TOML table that is emptied key by key; what is left over at the end is refused."""

    __slots__ = ("_rest", "where")

    def __init__(self, content: Mapping[str, Any], where: str) -> None:
        self._rest = dict(content)
        self.where = where

    def __contains__(self, key: str) -> bool:
        return key in self._rest

    def refuse(self, key: str, complaint: str) -> NoReturn:
        """Raise what is wrong with a key.

        Raises:
            MalformedRequest: always.
        """
        raise MalformedRequest(f"{self.where}{key}: {complaint}")

    def finish(self) -> None:
        """Refuse keys that nobody took."""
        for key in self._rest:
            self.refuse(key, "unknown key")

    def take(self, key: str, kind: type[_T], *, default: _T | None = None) -> _T:
        """Take the value of a key; without a default it must be there."""
        value = self._rest.pop(key, default)
        if type(value) is not kind:  # exactly: true is no integer
            complaint = "missing" if value is None else f"must be {_SPOKEN[kind]}"
            raise MalformedRequest(f"{self.where}{key}: {complaint}")
        return value

    def texts(self, key: str) -> list[str]:
        """Take a list of texts, empty if it is left out."""
        return self._list(key, str, "texts")

    def integers(self, key: str) -> list[int]:
        """Take a list of integers, empty if it is left out."""
        return self._list(key, int, "integers")

    def plain_tables(self, key: str) -> list[dict[str, Any]]:
        """Take a list of tables as they are, empty if it is left out."""
        return self._list(key, dict, "tables")

    def _list(self, key: str, kind: type, spoken: str) -> list[Any]:
        value = self._rest.pop(key, [])
        if not isinstance(value, list) or not all(type(item) is kind for item in value):
            self.refuse(key, f"must be a list of {spoken}")
        return list(value)

    def tables(self, key: str) -> list[Self]:
        """Take a list of tables, empty if it is left out."""
        found = self.plain_tables(key)
        return [type(self)(item, f"{self.where}{key}[{index}].") for index, item in enumerate(found)]

    def table(self, key: str) -> Self | None:
        """Take a table, or None if it is left out."""
        value = self._rest.pop(key, None)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.refuse(key, "must be a table")
        return type(self)(value, f"{self.where}{key}.")

    def enum(self, kind: type[_E], key: str, text: str) -> _E:
        """Return the member that a text of this key names."""
        try:
            return kind(text)
        except ValueError as error:
            known = ", ".join(kind)
            raise MalformedRequest(f"{self.where}{key}: {text!r} is none of {known}") from error
