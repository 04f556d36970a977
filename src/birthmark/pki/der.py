"""The little of DER (ITU-T X.690) that issuing and checking certificates needs.

Writing joins bytes; reading walks one level and answers offsets, so nothing is copied.  Reading is strict:
definite lengths in the shortest form, one-octet tags, nothing left over; everything else is
``errors.MalformedRequest``.  What the bytes mean is left to the modules that read them.
"""

from functools import lru_cache

from birthmark.errors import MalformedRequest

__all__ = [
    "BIT_STRING",
    "BOOLEAN",
    "GENERALIZED_TIME",
    "IA5_STRING",
    "INTEGER",
    "OCTET_STRING",
    "OID",
    "PRINTABLE_STRING",
    "SEQUENCE",
    "SET",
    "UTC_TIME",
    "UTF8_STRING",
    "Element",
    "attribute",
    "children",
    "encode",
    "integer",
    "oid",
    "only",
]

BOOLEAN = 0x01
INTEGER = 0x02
BIT_STRING = 0x03
OCTET_STRING = 0x04
OID = 0x06
UTF8_STRING = 0x0C
PRINTABLE_STRING = 0x13
IA5_STRING = 0x16
UTC_TIME = 0x17
GENERALIZED_TIME = 0x18
SEQUENCE = 0x30
SET = 0x31


def encode(tag: int, *contents: bytes) -> bytes:
    """Return one element: the tag octet, the length, the contents joined."""
    body = b"".join(contents)
    length = len(body)
    if length < 0x80:
        return bytes((tag, length)) + body
    if length < 0x100:
        return bytes((tag, 0x81, length)) + body
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(octets))) + octets + body


def integer(value: int) -> bytes:
    """Return a non-negative INTEGER."""
    return encode(INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


@lru_cache(maxsize=256)
def attribute(kind: bytes, value: bytes) -> bytes:
    """Return an Attribute (RFC 2986 section 4.1, RFC 5652 section 5.3): type and one value (DER)."""
    return encode(SEQUENCE, kind, encode(SET, value))


def oid(dotted: str) -> bytes:
    """Return an OBJECT IDENTIFIER from dotted decimals.

    Raises:
        MalformedRequest: not an object identifier (X.660: first arc 0 to 2, second below 40 under 0 and 1).
    """
    arcs = dotted.split(".")
    canonical = all(arc.isascii() and arc.isdigit() and (arc == "0" or arc[0] != "0") for arc in arcs)
    if not canonical or len(arcs) < 2 or len(dotted) > 128:
        raise MalformedRequest(f"{dotted!r} is not an object identifier in dotted decimals")
    first, second, *rest = (int(arc) for arc in arcs)
    if first > 2 or (first < 2 and second > 39):
        raise MalformedRequest(f"{dotted!r} is not an object identifier: no such first arcs")
    return encode(OID, *(_base128(arc) for arc in (40 * first + second, *rest)))


def _base128(arc: int) -> bytes:
    octets = [arc & 0x7F]
    while arc := arc >> 7:
        octets.append(0x80 | arc & 0x7F)
    return bytes(reversed(octets))


Element = tuple[int, int, int, int]
"""Where one element lies: its tag octet, where it starts, where its contents start, where it ends."""


def children(data: bytes, start: int = 0, end: int | None = None) -> list[Element]:
    """Return the elements that fill ``data[start:end]`` exactly.

    Raises:
        MalformedRequest: the octets are no run of DER elements, or something is left over.
    """
    stop = len(data) if end is None else end
    found: list[Element] = []
    position = start
    while position < stop:
        content = position + 2
        if content > stop:
            raise MalformedRequest(f"der: truncated header at offset {position}")
        # Plain tuples and one pass: this loop runs some forty times for each certificate that is linted.
        tag = data[position]
        if tag & 0x1F == 0x1F:
            raise MalformedRequest(f"der: tag of several octets at offset {position}")
        length = data[position + 1]
        if length >= 0x80:
            octets = length & 0x7F
            content += octets
            if not 1 <= octets <= 4 or content > stop:
                raise MalformedRequest(f"der: bad length at offset {position}")
            length = int.from_bytes(data[position + 2 : content], "big")
            if length < 0x80 or length >> (8 * (octets - 1)) == 0:
                raise MalformedRequest(f"der: length not in the shortest form at offset {position}")
        following = content + length
        if following > stop:
            raise MalformedRequest(f"der: element at offset {position} runs past its end")
        found.append((tag, position, content, following))
        position = following
    return found


def only(data: bytes, tag: int, start: int = 0, end: int | None = None) -> Element:
    """Return the one element of this tag that fills ``data[start:end]``.

    Raises:
        MalformedRequest: it is another tag, or not exactly one element.
    """
    stop = len(data) if end is None else end
    content = start + 2
    if content <= stop and data[start] == tag and data[start + 1] == stop - content < 0x80:
        return (tag, start, content, stop)  # nearly always; what follows says the same of longer ones
    found = children(data, start, stop)
    if len(found) != 1 or found[0][0] != tag:
        raise MalformedRequest(f"der: expected one element with tag {tag:02x} at offset {start}")
    return found[0]
