"""Distinguished names as values.

A ``Name`` is its attributes in order, one attribute a relative distinguished name.  ``encode`` writes exactly
the octets ``cryptography`` would: PrintableString for C and serialNumber, IA5String for DC, else UTF8String.
It is stricter in two places: ``cryptography`` puts any text into a PrintableString, we refuse what does not
belong there, and what Matter's ids cannot have.  Sizes are RFC 5280 appendix A.1's upper bounds.

Names we read may be anybody's: ``attribute_values`` looks for one attribute and passes over what it does not
know.  Comparing names is comparing their octets, as RFC 5280 section 7.1 does for names of one encoder;
those of somebody else's are compared by ``comparable``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from cryptography import x509

from birthmark.errors import MalformedRequest
from birthmark.pki import der

__all__ = [
    "ATTRIBUTES",
    "OIDS",
    "Attribute",
    "AttributeType",
    "Comparable",
    "Name",
    "attribute_values",
    "comparable",
    "encode",
    "encode_attribute",
]


class Attribute(StrEnum):
    """Attribute types, spelled as RFC 4519 spells them; those of Matter have no spelling there."""

    C = "C"
    ST = "ST"
    L = "L"
    O = "O"  # noqa: E741 -- the standard's name
    OU = "OU"
    DC = "DC"
    CN = "CN"
    SERIAL_NUMBER = "serialNumber"
    MATTER_VID = "matterVID"
    """Vendor id of Matter 1.x section 6.1.1: four capital hex digits."""
    MATTER_PID = "matterPID"
    """Product id of the same."""


Name = tuple[tuple[Attribute, str], ...]
"""A distinguished name, most significant attribute first (the order of its DER)."""
Comparable = tuple[frozenset[tuple[bytes, str]], ...]
"""A name that anybody wrote, so that equal ones are equal: types (DER) and values by their RDN."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeType:
    """How one attribute is encoded."""

    dotted: str
    """OBJECT IDENTIFIER, in text."""
    oid: bytes
    """OBJECT IDENTIFIER (DER)."""
    tag: int
    """Tag of the string type we write."""
    shortest: int
    """Fewest characters."""
    longest: int
    """Most characters."""
    alphabet: frozenset[str] | None
    """The characters it may have; None for those of its string type that can be printed."""


_PRINTABLE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 '()+,-./:=?")
"""The characters of a PrintableString (X.680 section 41.4)."""
_CAPITAL_HEX = frozenset("0123456789ABCDEF")


def _attribute_type(
    dotted: str, tag: int, longest: int, shortest: int = 1, alphabet: frozenset[str] | None = None
) -> AttributeType:
    if tag == der.PRINTABLE_STRING:
        alphabet = _PRINTABLE
    return AttributeType(
        dotted=dotted, oid=der.oid(dotted), tag=tag, shortest=shortest, longest=longest, alphabet=alphabet
    )


ATTRIBUTES: Mapping[Attribute, AttributeType] = {
    Attribute.C: _attribute_type("2.5.4.6", der.PRINTABLE_STRING, 2, 2),
    Attribute.ST: _attribute_type("2.5.4.8", der.UTF8_STRING, 128),
    Attribute.L: _attribute_type("2.5.4.7", der.UTF8_STRING, 128),
    Attribute.O: _attribute_type("2.5.4.10", der.UTF8_STRING, 64),
    Attribute.OU: _attribute_type("2.5.4.11", der.UTF8_STRING, 64),
    Attribute.DC: _attribute_type("0.9.2342.19200300.100.1.25", der.IA5_STRING, 63),
    Attribute.CN: _attribute_type("2.5.4.3", der.UTF8_STRING, 64),
    Attribute.SERIAL_NUMBER: _attribute_type("2.5.4.5", der.PRINTABLE_STRING, 64),
    Attribute.MATTER_VID: _attribute_type("1.3.6.1.4.1.37244.2.1", der.UTF8_STRING, 4, 4, _CAPITAL_HEX),
    Attribute.MATTER_PID: _attribute_type("1.3.6.1.4.1.37244.2.2", der.UTF8_STRING, 4, 4, _CAPITAL_HEX),
}

OIDS: Mapping[Attribute, x509.ObjectIdentifier] = {
    attribute: x509.ObjectIdentifier(kind.dotted) for attribute, kind in ATTRIBUTES.items()
}
"""The library's word for each attribute."""

_CODECS = {0x0C: "utf-8", 0x13: "ascii", 0x14: "latin-1", 0x16: "ascii", 0x1E: "utf-16-be"}
"""String types of other people's names: UTF8String, PrintableString, TeletexString, IA5String, BMPString."""
_WIDE = {0x14: "latin-1", 0x1C: "utf-32-be", 0x1E: "utf-16-be"}
"""Those that are compared in other octets than UTF-8, UniversalString among them."""


def encode_attribute(attribute: Attribute, value: str) -> bytes:
    """Return one RelativeDistinguishedName (DER): SET { SEQUENCE { type, value } }.

    Raises:
        MalformedRequest: the value is too short, too long, or has a character its string type lacks.
    """
    kind = ATTRIBUTES[attribute]
    if not kind.shortest <= len(value) <= kind.longest:
        bounds = f"{kind.shortest} to {kind.longest}" if kind.shortest < kind.longest else str(kind.longest)
        raise MalformedRequest(f"{attribute} {value!r}: must have {bounds} characters, has {len(value)}")
    alphabet = kind.alphabet
    if alphabet is not None:
        refused = None if alphabet.issuperset(value) else next(c for c in value if c not in alphabet)
    elif kind.tag == der.IA5_STRING:
        refused = next((c for c in value if not (c.isascii() and c.isprintable())), None)
    else:
        refused = None if value.isprintable() else next(c for c in value if not c.isprintable())
    if refused is not None:
        raise MalformedRequest(f"{attribute} {value!r}: {refused!r} is not allowed there")
    octets = value.encode("utf-8")
    return der.encode(der.SET, der.encode(der.SEQUENCE, kind.oid, der.encode(kind.tag, octets)))


def encode(name: Name) -> bytes:
    """Return a Name (DER; RFC 5280 section 4.1.2.4).

    Raises:
        MalformedRequest: as ``encode_attribute``.
    """
    return der.encode(der.SEQUENCE, *(encode_attribute(attribute, value) for attribute, value in name))


def attribute_values(name_der: bytes, attribute: Attribute) -> tuple[str, ...]:
    """Return the values of one attribute in a Name (DER) of any origin, in order.

    Raises:
        MalformedRequest: the octets are no Name, or a value of this attribute is no text.
    """
    wanted = ATTRIBUTES[attribute].oid
    values: list[str] = []
    _, _, content, end = der.only(name_der, der.SEQUENCE)
    for set_tag, _, set_content, set_end in der.children(name_der, content, end):
        if set_tag != der.SET:
            raise MalformedRequest(f"name: tag {set_tag:02x} where a SET belongs")
        for pair_tag, _, pair_content, pair_end in der.children(name_der, set_content, set_end):
            parts = der.children(name_der, pair_content, pair_end)
            if pair_tag != der.SEQUENCE or len(parts) != 2 or parts[0][0] != der.OID:
                raise MalformedRequest("name: an attribute is not a type and a value")
            (_, kind_start, _, kind_end), (value_tag, _, value_content, value_end) = parts
            if name_der[kind_start:kind_end] == wanted:
                values.append(_decode(value_tag, name_der[value_content:value_end], attribute))
    return tuple(values)


def _decode(tag: int, octets: bytes, attribute: Attribute) -> str:
    codec = _CODECS.get(tag)
    if codec is None:
        raise MalformedRequest(f"name: {attribute} has tag {tag:02x}, which is no text")
    try:
        return octets.decode(codec)
    except UnicodeDecodeError as error:
        raise MalformedRequest(f"name: {attribute} is not valid {codec}") from error


def comparable(name: bytes) -> Comparable:
    """Return each relative distinguished name as its attributes, without case and runs of spaces.

    Names that a verifier takes for one compare equal, whatever kinds of strings they are made of (RFC 5280
    section 7.1).

    Args:
        name: Name (DER).

    Raises:
        MalformedRequest: it is none.
    """
    _, _, start, stop = der.only(name, der.SEQUENCE)
    found = []
    for _, _, set_start, set_stop in der.children(name, start, stop):
        pairs = []
        for _, _, content, end in der.children(name, set_start, set_stop):
            parts = der.children(name, content, end)
            if len(parts) != 2:
                raise MalformedRequest("a name has an attribute that is not a type and a value")
            kind, value = parts
            octets = name[value[2] : value[3]]
            text = " ".join(octets.decode(_WIDE.get(value[0], "utf-8"), "replace").casefold().split())
            pairs.append((name[kind[1] : kind[3]], text))
        found.append(frozenset(pairs))
    return tuple(found)
