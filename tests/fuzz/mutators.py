"""Mutators that know what an input is made of: DER, and JSON.

libFuzzer changes octets; in nested lengths almost every change is refused by the outermost reader.  These
take the nesting apart, change a part, and put it together again with lengths that fit, so that what lies
deep is reached.  ``random.Random`` says how, so that the same number makes the same input.
"""

import json
from collections.abc import Callable
from enum import StrEnum
from random import Random  # noqa: TID251  # not a secret among them
from typing import Any

__all__ = ["MUTATORS", "Shape", "changed", "mutate_der", "mutate_json"]

Octets = Callable[[bytes], bytes]
"""Changes the octets of a leaf."""


class Shape(StrEnum):
    """What an input is made of."""

    OCTETS = "octets"
    DER = "der"
    JSON = "json"


# --- DER


def _element(octets: bytes, at: int) -> tuple[int, int] | None:
    """Return where the contents of the element at ``at`` begin and end, or None if there is none."""
    if at + 2 > len(octets) or octets[at] & 0x1F == 0x1F:
        return None
    size, start = octets[at + 1], at + 2
    if size >= 0x80:
        wide = size - 0x80
        if not 1 <= wide <= 3 or start + wide > len(octets):
            return None
        size, start = int.from_bytes(octets[start : start + wide], "big"), start + wide
    return (start, start + size) if start + size <= len(octets) else None


Node = tuple[int, "bytes | list[Node]"]


def _tree(octets: bytes) -> list[Node] | None:
    """Return elements one behind the other, those inside them too; None if the octets are none."""
    nodes: list[Node] = []
    at = 0
    while at < len(octets):
        found = _element(octets, at)
        if found is None:
            return None
        tag, contents = octets[at], octets[found[0] : found[1]]
        # What an OCTET STRING or a BIT STRING wraps is often DER itself.
        inner = _tree(contents) if contents and (tag & 0x20 or tag in (0x04, 0x80)) else None
        nodes.append((tag, contents if inner is None else inner))
        at = found[1]
    return nodes


def _join(nodes: list[Node]) -> bytes:
    joined = b""
    for tag, inner in nodes:
        contents = inner if isinstance(inner, bytes) else _join(inner)
        size = len(contents)
        length = bytes((size,)) if size < 0x80 else b""
        if not length:
            wide = (size.bit_length() + 7) // 8
            length = bytes((0x80 | wide,)) + size.to_bytes(wide, "big")
        joined += bytes((tag,)) + length + contents
    return joined


def _places(nodes: list[Node]) -> list[tuple[list[Node], int]]:
    """Return where every element stands."""
    found = []
    for index, (_, inner) in enumerate(nodes):
        found.append((nodes, index))
        if not isinstance(inner, bytes):
            found += _places(inner)
    return found


_TAGS = bytes.fromhex("01020304050608090a0c1213161718191a1c1e3031808182868788a0a1a2a3a4")


def mutate_der(data: bytes, random: Random, octets: Octets) -> bytes | None:
    """Change one element somewhere; None if the input is no DER."""
    nodes = _tree(data)
    if not nodes:
        return None
    places = _places(nodes)
    here, index = random.choice(places)
    tag, inner = here[index]
    match random.randrange(8):
        case 0:
            del here[index]
        case 1:
            here.insert(index, (tag, inner))
        case 2:
            here[index] = (random.choice(_TAGS), inner)
        case 3:
            there, other = random.choice(places)
            here[index] = there[other] if other < len(there) else (tag, b"")
            return _join(nodes) if len(data) < 1 << 16 and not _contains_itself(nodes) else None
        case 4:
            here[index] = (tag, b"")
        case 5 if len(here) > 1:
            here[index], here[index - 1] = here[index - 1], here[index]
        case _:
            contents = inner if isinstance(inner, bytes) else _join(inner)
            here[index] = (tag, octets(contents))
    return _join(nodes)


def _contains_itself(nodes: list[Node], above: tuple[int, ...] = ()) -> bool:
    if id(nodes) in above:
        return True
    inside = (*above, id(nodes))
    return any(not isinstance(inner, bytes) and _contains_itself(inner, inside) for _, inner in nodes)


# --- JSON

_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**53, 2**63, 10**30, 1.5, 1e308, "", "0", "a" * 300, "\x00",
    "\ud800", "é", "\u202e", "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----", [], [[]], [None],
    {}, {"": ""},
)  # fmt: skip


def _spots(value: Any) -> list[tuple[Any, Any]]:
    """Return container and key or index of every value inside."""
    found = []
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        found.append((value, key))
        found += _spots(inner)
    return found


def _changed_text(text: str, random: Random, octets: Octets) -> str:
    changed = octets(text.encode("utf-8", "surrogatepass")).decode("utf-8", "replace")
    return random.choice((changed, text[:-1], text + text[-1:], text.upper(), text[1:]))


def mutate_json(data: bytes, random: Random, octets: Octets) -> bytes | None:
    """Change one value somewhere; None if the input is no JSON object or array.

    What was canonical (one line, keys sorted, nothing between the tokens) is so afterwards.
    """
    try:
        value = json.loads(data)
        if not (spots := _spots(value)):
            return None
        here, key = random.choice(spots)
        inner = here[key]
        match random.randrange(7):
            case 0:
                del here[key]
            case 1 if isinstance(here, dict):
                here[random.choice(("x", "", key + "x", key.upper()))] = here.pop(key)
            case 1:
                here.insert(key, inner)
            case 2:
                there, other = random.choice(spots)
                here[key] = json.loads(json.dumps(there[other]))
            case 3 if isinstance(inner, int) and not isinstance(inner, bool):
                here[key] = inner + random.choice((-1, 1, -inner, 256))
            case 4 | 5 if isinstance(inner, str):
                here[key] = _changed_text(inner, random, octets)
            case _:
                here[key] = random.choice(_VALUES)
        canonical = b'": ' not in data
        separators = (",", ":") if canonical else (", ", ": ")
        text = json.dumps(
            value, separators=separators, sort_keys=canonical, ensure_ascii=random.random() < 0.2
        )
        return text.encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError, LookupError):
        return None


MUTATORS: dict[Shape, Callable[[bytes, Random, Octets], bytes | None]] = {
    Shape.DER: mutate_der,
    Shape.JSON: mutate_json,
}


def _flipped(octets: bytes, random: Random) -> bytes:
    """Change, take out or put in one octet."""
    at = random.randrange(len(octets) + 1)
    return octets[:at] + random.choice((b"", bytes((random.randrange(256),)))) + octets[at + 1 :]


def changed(shape: Shape, data: bytes, random: Random) -> bytes:
    """Change an input a little, by what it is made of where that is known."""
    found = None
    if shape in MUTATORS and random.random() < 0.8:
        found = MUTATORS[shape](data, random, lambda octets: _flipped(octets, random))
    return _flipped(data, random) if found is None else found
