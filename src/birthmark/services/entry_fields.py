"""Take the fields of a log entry apart: what is missing, or of another type, is refused.

Each raises ``errors.MalformedRequest`` and names the field; ``testimony`` makes a finding of it.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from birthmark import errors

__all__ = [
    "Entry",
    "known",
    "number_of",
    "object_of",
    "objects_of",
    "text_of",
    "text_or_none",
    "texts_of",
    "value_of",
]

T = TypeVar("T")
Entry = Mapping[str, Any]


def value_of(entry: Entry, name: str) -> object:
    """Return a field that has to be there."""
    if name not in entry:
        raise errors.MalformedRequest(f"its {name} is missing")
    value: object = entry[name]
    return value


def text_of(entry: Entry, name: str) -> str:
    """Return a text."""
    value = value_of(entry, name)
    if not isinstance(value, str):
        raise errors.MalformedRequest(f"its {name} is no text")
    return value


def texts_of(entry: Entry, name: str) -> list[str]:
    """Return a list of texts."""
    value = value_of(entry, name)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise errors.MalformedRequest(f"its {name} is no list of texts")
    return list(value)


def object_of(entry: Entry, name: str) -> Entry:
    """Return an object."""
    value = value_of(entry, name)
    if not isinstance(value, dict):
        raise errors.MalformedRequest(f"its {name} is no object")
    return value


def objects_of(entry: Entry, name: str) -> list[Entry]:
    """Return a list of objects that may be left out."""
    value = entry.get(name, [])
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise errors.MalformedRequest(f"its {name} is no list of objects")
    return list(value)


def text_or_none(entry: Entry, name: str) -> str | None:
    """Return a text, or None where the entry says null."""
    return None if value_of(entry, name) is None else text_of(entry, name)


def number_of(entry: Entry, name: str) -> int:
    """Return a whole number."""
    value = value_of(entry, name)
    if type(value) is not int:
        raise errors.MalformedRequest(f"its {name} is no number")
    return value


def known(said: Mapping[str, T], what: str, name: str) -> T:
    """Return what an entry before this one made."""
    found = said.get(name)
    if found is None:
        raise errors.MalformedRequest(f"no entry before it issued {what} {name[:100]}")
    return found
