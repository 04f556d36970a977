"""BER-TLV as smart cards use it, and the key information template.

Tags have one or two octets and are written as numbers (E0, 7F21); lengths have one to three octets.  Lengths
longer than need be are read and never written; the indefinite length, padding between objects and longer tags
are refused.

Sources: ISO/IEC 7816-4 section 5.2.2, GlobalPlatform Card Specification v2.3 section 11.3.3.1.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from birthmark import errors
from birthmark.element.keyset import KeyEntry

__all__ = [
    "KEY_INFORMATION_TEMPLATE",
    "TLV",
    "decode",
    "decode_one",
    "encode",
    "encode_key_information",
    "encode_tag",
    "read_key_information",
]

KEY_INFORMATION_TEMPLATE = 0xE0
_KEY_INFORMATION_DATA = 0xC0
_EXTENDED_KEY = 0xFF


@dataclass(frozen=True, slots=True)
class TLV:
    """One data object."""

    tag: int
    value: bytes = field(repr=False)

    def encode(self) -> bytes:
        """Return tag, length and value."""
        return encode(self.tag, self.value)

    def children(self) -> tuple["TLV", ...]:
        """Return the data objects that the value is made of.

        Raises:
            MalformedRequest: it is not made of any.
        """
        return decode(self.value)


def encode_tag(tag: int) -> bytes:
    """Return the one or two octets of a tag.

    Raises:
        MalformedRequest: it is no tag of one or two octets.
    """
    if 0 < tag <= 0xFF and tag & 0x1F != 0x1F:
        return bytes((tag,))
    if 0xFF < tag <= 0xFFFF and tag >> 8 & 0x1F == 0x1F and 0x1F <= tag & 0xFF < 0x80:
        return tag.to_bytes(2, "big")
    raise errors.MalformedRequest(f"{tag:X} is no tag of one or two octets")


def encode(tag: int, value: bytes) -> bytes:
    """Return a data object.

    Raises:
        MalformedRequest: the tag is none, or the value has more than 65535 octets.
    """
    size = len(value)
    if size > 0xFFFF:
        raise errors.MalformedRequest("a data object has at most 65535 octets")
    if size < 0x80:
        length = bytes((size,))
    elif size <= 0xFF:
        length = bytes((0x81, size))
    else:
        length = b"\x82" + size.to_bytes(2, "big")
    return encode_tag(tag) + length + value


def decode(octets: bytes) -> tuple[TLV, ...]:
    """Read data objects that stand one behind the other, to the last octet.

    Raises:
        MalformedRequest: the octets are something else.
    """
    objects, at = [], 0
    while at < len(octets):
        found, at = _read(octets, at)
        objects.append(found)
    return tuple(objects)


def decode_one(octets: bytes, tag: int) -> bytes:
    """Return the value of the one data object that the octets are.

    Raises:
        MalformedRequest: they are not one, or it has another tag.
    """
    objects = decode(octets)
    if len(objects) != 1 or objects[0].tag != tag:
        raise errors.MalformedRequest(f"the octets are not one data object {tag:X}")
    return objects[0].value


def _read(octets: bytes, at: int) -> tuple[TLV, int]:
    width = 2 if octets[at] & 0x1F == 0x1F else 1
    tag = int.from_bytes(octets[at : at + width], "big")
    encode_tag(tag)  # refuses what is none
    at += width
    if at >= len(octets):
        raise errors.MalformedRequest(f"data object {tag:X} ends before its length")
    size, at = octets[at], at + 1
    if size >= 0x80:
        wide = size - 0x80
        if wide not in (1, 2) or at + wide > len(octets):
            raise errors.MalformedRequest(f"the length of data object {tag:X} is not of one to three octets")
        size, at = int.from_bytes(octets[at : at + wide], "big"), at + wide
    if at + size > len(octets):
        raise errors.MalformedRequest(f"data object {tag:X} is cut short")
    return TLV(tag, octets[at : at + size]), at + size


def encode_key_information(entries: Iterable[KeyEntry], *, bare: bool = False) -> bytes:
    """Return the key information template, as an element answers GET DATA E0.

    Args:
        entries: keys of one component each; sizes of 256 octets and more are written as 00.
        bare: leave out the template's tag, as YubiKeys do.
    """
    inner = b"".join(
        encode(
            _KEY_INFORMATION_DATA,
            bytes((entry.kid, entry.kvn, entry.key_type, entry.size if entry.size <= 0xFF else 0)),
        )
        for entry in entries
    )
    return inner if bare else encode(KEY_INFORMATION_TEMPLATE, inner)


def read_key_information(data: bytes, *, bare: bool = False) -> tuple[KeyEntry, ...]:
    """Read the answer to GET DATA E0: the keys in the order in which they are listed.

    Of a key of several components (RSA) the first one stands for all; the size is 0 where the element does
    not say it because it has 256 octets or more.

    Args:
        data: of the response.
        bare: the template's tag E0 is left out.

    Raises:
        MalformedRequest: it is no such list.
    """
    if not bare:
        templates = decode(data)
        if not templates or any(template.tag != KEY_INFORMATION_TEMPLATE for template in templates):
            raise errors.MalformedRequest("the key information is not a template E0")
        data = b"".join(template.value for template in templates)
    return tuple(_key_entry(found) for found in decode(data))


def _key_entry(found: TLV) -> KeyEntry:
    value = found.value
    if found.tag != _KEY_INFORMATION_DATA or len(value) < 4:
        raise errors.MalformedRequest("the key information lists something else than keys")
    kid, kvn, key_type, size = value[:4]
    if key_type == _EXTENDED_KEY:
        key_type, size = _extended(value[3:])
    elif len(value) % 2:
        raise errors.MalformedRequest(f"the key information of key {kvn:02X}/{kid:02X} is cut short")
    return KeyEntry(kvn=kvn, kid=kid, key_type=key_type, size=size)


def _extended(components: bytes) -> tuple[int, int]:
    """Read the extended form: components (type, length in two octets), usage and access with theirs."""
    at = 0
    while components[at : at + 1] >= b"\x80":  # a key type; a length of usage is smaller
        at += 3
    for _ in ("usage", "access"):
        at += 1 + (components[at] if at < len(components) else 0)
    if at != len(components) or components[0] < 0x80:
        raise errors.MalformedRequest("an extended entry of the key information is cut short")
    return components[0], int.from_bytes(components[1:3], "big")
