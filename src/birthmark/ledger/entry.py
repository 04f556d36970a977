"""Log entries: one JSON object each, in the one spelling of RFC 8785 (JSON Canonicalization Scheme).

An entry is what an auditor reads in twenty years, so it is text, self-describing and at most 65 535 octets.
It holds no secret, and people only by their operator id; that is for whoever writes it.  Values are
restricted to what has one obvious spelling: objects, arrays, strings, integers that a double holds exactly,
booleans and null.  Names are 1 to 64 of ``a-z 0-9 _``, for which the order of UTF-16 code units (RFC 8785
section 3.2.3) is plain string order.

Every entry has these names, and others as its kind wants:

    v            1, the version of this format
    kind         what happened, lower case with hyphens: device-released
    at           when, RFC 3339 in UTC with milliseconds: 2026-11-22T10:00:00.000Z
    realm        whose log this is
    environment  test or production
    actor        on whose behalf, role and name: station:ST01
    seq          optional: the actor's own number of its request, 1 and up
    operator     optional: the operator's id
"""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache

from birthmark import errors

__all__ = [
    "DEPTH_LIMIT",
    "ENTRY_LIMIT",
    "INTEGER_LIMIT",
    "canonical",
    "decode",
    "encode",
    "parse",
    "parse_time",
    "time_text",
]

ENTRY_LIMIT = 65_535
"""Largest entry, in octets (C2SP tlog-tiles)."""

INTEGER_LIMIT = (1 << 53) - 1
"""Largest magnitude of an integer: what an IEEE 754 double holds exactly (RFC 7493 section 2.2)."""

DEPTH_LIMIT = 16
"""Deepest nesting of objects and arrays."""


def _refuse_number(text: str) -> object:
    raise ValueError(f"{text[:32]} is not an integer")


_DECODER = json.JSONDecoder(parse_float=_refuse_number, parse_constant=_refuse_number)
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
_NAME = re.compile(r"[a-z0-9_]{1,64}", re.ASCII)
_KIND = re.compile(r"(?=.{1,64}\Z)[a-z][a-z0-9]*(?:-[a-z0-9]+)*", re.ASCII)
_ACTOR = re.compile(r"[a-z][a-z0-9-]{0,31}:[!-~]{1,128}")
_LABEL = re.compile(r"[^\x00-\x20\x7f]{1,128}")
_TIME = re.compile(
    r"[0-9]{4}-[01][0-9]-[0-3][0-9]T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]\.[0-9]{3}Z", re.ASCII
)
_ENVIRONMENTS = frozenset({"test", "production"})


def time_text(moment: datetime) -> str:
    """Spell a time as entries do: RFC 3339, UTC, cut to milliseconds.

    Raises:
        ValueError: the time knows no time zone.
    """
    if moment.tzinfo is None:
        raise ValueError("a time without a time zone is no time")
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def parse_time(text: str) -> datetime:
    """Read a time in the one spelling that ``time_text`` has; aware, UTC.

    Raises:
        errors.MalformedRequest: it is not that.
    """
    if _TIME.fullmatch(text) is None:
        raise errors.MalformedRequest("a time is spelled like 2026-11-22T10:00:00.000Z")
    try:
        return datetime.fromisoformat(text)
    except ValueError as wrong:
        raise errors.MalformedRequest("there is no such day") from wrong


def canonical(value: Mapping[str, object]) -> bytes:
    """Spell an object as RFC 8785 does.

    Raises:
        errors.MalformedRequest: it holds a value or a name that entries do not have.
    """
    _check_object(value, DEPTH_LIMIT)
    try:
        return _ENCODER.encode(value if type(value) is dict else dict(value)).encode()
    except UnicodeEncodeError as wrong:  # RFC 8785 section 3.2.2.2: lone surrogates are an error
        raise errors.MalformedRequest("a string has a lone surrogate") from wrong


def parse(data: bytes) -> dict[str, object]:
    """Read an object back; the inverse of ``canonical``.

    Raises:
        errors.MalformedRequest: it is not, byte for byte, what ``canonical`` writes.
    """
    try:
        value = _DECODER.decode(data.decode())
    except (ValueError, RecursionError) as wrong:
        raise errors.MalformedRequest("not a JSON object of the kind that entries are") from wrong
    if type(value) is not dict:
        raise errors.MalformedRequest("not a JSON object")
    if canonical(value) != data:
        raise errors.MalformedRequest("the JSON object is not in its canonical spelling")
    return value


def encode(entry: Mapping[str, object]) -> bytes:
    """Spell an entry as the log keeps it.

    Raises:
        errors.MalformedRequest: a name that every entry has is missing or wrong, or a value cannot be in an
            entry.
        errors.TooLarge: it has more than 65 535 octets.
    """
    _check_entry(entry)
    data = canonical(entry)
    if len(data) > ENTRY_LIMIT:
        raise errors.TooLarge(f"an entry of {len(data)} octets is larger than {ENTRY_LIMIT}")
    return data


def decode(data: bytes) -> dict[str, object]:
    """Read an entry back; the inverse of ``encode``.

    Raises:
        errors.MalformedRequest: it is not, byte for byte, what ``encode`` writes.
    """
    if len(data) > ENTRY_LIMIT:
        raise errors.MalformedRequest(f"an entry of {len(data)} octets is larger than {ENTRY_LIMIT}")
    entry = parse(data)
    _check_entry(entry)
    return entry


def _check_object(value: Mapping[str, object], depth: int) -> None:
    if not depth:
        raise errors.MalformedRequest(f"an entry nests at most {DEPTH_LIMIT} deep")
    for name, item in value.items():
        _check_name(name)
        # Strings are most of it; whether they are Unicode shows when they are encoded.
        if type(item) is not str:
            _check_value(item, depth - 1)


def _check_value(value: object, depth: int) -> None:
    if value is None or isinstance(value, (str, bool)):
        return
    if isinstance(value, int):
        if not -INTEGER_LIMIT <= value <= INTEGER_LIMIT:
            raise errors.MalformedRequest("an integer in an entry is beyond 2**53 - 1")
    elif isinstance(value, dict):
        _check_object(value, depth)
    elif isinstance(value, list):
        if not depth:
            raise errors.MalformedRequest(f"an entry nests at most {DEPTH_LIMIT} deep")
        for item in value:
            _check_value(item, depth - 1)
    else:
        raise errors.MalformedRequest(f"an entry cannot hold a {type(value).__name__}")


def _check_entry(entry: Mapping[str, object]) -> None:
    version = entry.get("v")
    if type(version) is not int or version != 1:
        raise errors.MalformedRequest("an entry has the version v = 1")
    _check_kind(_text(entry, "kind"))
    parse_time(_text(entry, "at"))
    _check_label("realm", _text(entry, "realm"))
    if _text(entry, "environment") not in _ENVIRONMENTS:
        raise errors.MalformedRequest("the environment of an entry is test or production")
    _check_actor(_text(entry, "actor"))
    if "seq" in entry:
        seq = entry["seq"]
        if type(seq) is not int or seq < 1:
            raise errors.MalformedRequest("the seq of an entry is a number from 1")
    if "operator" in entry:
        _check_label("operator", _text(entry, "operator"))


def _text(entry: Mapping[str, object], name: str) -> str:
    value = entry.get(name)
    if not isinstance(value, str):
        raise errors.MalformedRequest(f"the {name} of an entry is a string and not left out")
    return value


# The same few names, kinds and actors come again in every entry.  A refusal is raised, so it is not
# remembered: what fills these caches is short.


@lru_cache(maxsize=4096)
def _check_name(text: str) -> None:
    if _NAME.fullmatch(text) is None:
        raise errors.MalformedRequest(f"a name in an entry is 1 to 64 of a-z, 0-9 and _, not {text[:64]!a}")


@lru_cache(maxsize=1024)
def _check_kind(text: str) -> None:
    if _KIND.fullmatch(text) is None:
        raise errors.MalformedRequest(f"the kind of an entry is lower case with hyphens, not {text[:64]!a}")


@lru_cache(maxsize=4096)
def _check_actor(text: str) -> None:
    if _ACTOR.fullmatch(text) is None:
        raise errors.MalformedRequest(f"the actor of an entry is like station:ST01, not {text[:64]!a}")


@lru_cache(maxsize=4096)
def _check_label(name: str, text: str) -> None:
    if _LABEL.fullmatch(text) is None:
        raise errors.MalformedRequest(f"the {name} of an entry is a name without spaces, not {text[:64]!a}")
