"""What the readers and writers of CMP and CRMF share about DER: fields that may be missing, numbers, texts.

Works on ``der.Element``, offsets into the octets as they came, since what is signed or hashed is compared as
it came.  ``cryptography.hazmat.asn1`` would say less of this in more words: it has no optional raw part,
and nearly every part that CMP leaves open (the parameters of an algorithm, an infoValue) is one.
"""

from collections.abc import Sequence

from birthmark.errors import MalformedRequest
from birthmark.pki import der

__all__ = [
    "NULL",
    "algorithm",
    "bits",
    "contents",
    "explicit",
    "fields",
    "identifier_and_value",
    "named_number",
    "number",
    "octet_string",
    "sequence_of",
    "signed_integer",
    "tagged",
    "text_sequence",
    "texts",
    "whole",
]

NULL = b"\x05\x00"
_LONGEST_INTEGER = 21
"""Octets: those of a serial number, and a zero before it (RFC 5280 section 4.1.2.2)."""
_MAX_TEXTS = 16
"""Strings in a PKIFreeText, and names of profiles; our own limit."""


def contents(octets: bytes, element: der.Element) -> bytes:
    """Return what an element holds."""
    return octets[element[2] : element[3]]


def whole(octets: bytes, element: der.Element) -> bytes:
    """Return an element with its tag and length."""
    return octets[element[1] : element[3]]


def fields(octets: bytes, element: der.Element, what: str, tag: int = der.SEQUENCE) -> list[der.Element]:
    """Return the elements in one that must have this tag.

    Raises:
        MalformedRequest: it has another, or its contents are no DER.
    """
    if element[0] != tag:
        raise MalformedRequest(f"{what}: tag {element[0]:02x} where {tag:02x} belongs")
    return der.children(octets, *element[2:])


def sequence_of(
    octets: bytes, element: der.Element, what: str, most: int, *, fewest: int = 1, tag: int = der.SEQUENCE
) -> list[der.Element]:
    """Return the elements of a SEQUENCE OF, of which there are so many.

    Raises:
        MalformedRequest: it is none, or there are fewer or more.
    """
    found = fields(octets, element, what, tag)
    if not fewest <= len(found) <= most:
        raise MalformedRequest(f"{what}: {len(found)} where {fewest} to {most} belong")
    return found


def tagged(found: Sequence[der.Element], allowed: Sequence[int], what: str) -> dict[int, der.Element]:
    """Return optional fields by their tags, which have to come in the order of ``allowed``, each once.

    Raises:
        MalformedRequest: another tag, one twice, or another order.
    """
    position = 0
    for element in found:
        if element[0] not in allowed[position:]:
            raise MalformedRequest(f"{what}: no field with tag {element[0]:02x} belongs there")
        position = allowed.index(element[0]) + 1
    return {element[0]: element for element in found}


def explicit(octets: bytes, element: der.Element, what: str, tag: int | None = None) -> der.Element:
    """Return the one element within an explicit tag, which must have the given tag.

    Raises:
        MalformedRequest: there is not exactly one, or it has another tag.
    """
    found = der.children(octets, *element[2:])
    if len(found) != 1 or tag not in {None, found[0][0]}:
        raise MalformedRequest(f"{what}: not exactly one value of its type")
    return found[0]


def octet_string(octets: bytes, element: der.Element, what: str, most: int) -> bytes:
    """Return the contents of an OCTET STRING of at most so many octets.

    Raises:
        MalformedRequest: it is none, or longer.
    """
    if element[0] != der.OCTET_STRING or element[3] - element[2] > most:
        raise MalformedRequest(f"{what}: not an octet string of at most {most} octets")
    return contents(octets, element)


def bits(octets: bytes, element: der.Element, what: str) -> bytes:
    """Return the octets of a BIT STRING that is a whole number of them.

    Raises:
        MalformedRequest: it is none, or has unused bits.
    """
    if (
        element[0] != der.BIT_STRING
        or octets[element[2] : element[2] + 1] != b"\0"
        or element[2] == element[3]
    ):
        raise MalformedRequest(f"{what}: not a bit string of whole octets")
    return octets[element[2] + 1 : element[3]]


def number(octets: bytes, element: der.Element, what: str, tag: int = der.INTEGER) -> int:
    """Return an INTEGER, which may be negative.

    Raises:
        MalformedRequest: it is none, not in the shortest form, or has more octets than a serial number.
    """
    digits = contents(octets, element)
    if element[0] != tag or not 1 <= len(digits) <= _LONGEST_INTEGER:
        raise MalformedRequest(f"{what}: not an integer of 1 to {_LONGEST_INTEGER} octets")
    value = int.from_bytes(digits, "big", signed=True)
    if contents(signed := signed_integer(value), der.only(signed, der.INTEGER)) != digits:
        raise MalformedRequest(f"{what}: an integer not in the shortest form")
    return value


def named_number(octets: bytes, element: der.Element, what: str, least: int, most: int) -> int:
    """Return an INTEGER between two, both included.

    Raises:
        MalformedRequest: it is none, or another one.
    """
    value = number(octets, element, what)
    if not least <= value <= most:
        raise MalformedRequest(f"{what}: {value} is not {least} to {most}")
    return value


def signed_integer(value: int) -> bytes:
    """Return an INTEGER (DER) that may be negative, such as the certReqId -1 of RFC 9483 section 4.1.4."""
    size = (value if value >= 0 else ~value).bit_length() // 8 + 1
    return der.encode(der.INTEGER, value.to_bytes(size, "big", signed=True))


def texts(octets: bytes, element: der.Element, what: str) -> tuple[str, ...]:
    """Return the strings of SEQUENCE SIZE (1..MAX) OF UTF8String, such as a PKIFreeText.

    Raises:
        MalformedRequest: it is none, empty, has more than 16, or one that is not UTF-8.
    """
    found = sequence_of(octets, element, what, _MAX_TEXTS)
    if any(one[0] != der.UTF8_STRING for one in found):
        raise MalformedRequest(f"{what}: not utf8 strings")
    try:
        return tuple(contents(octets, one).decode("utf-8") for one in found)
    except UnicodeDecodeError as error:
        raise MalformedRequest(f"{what}: not valid utf-8") from error


def text_sequence(*strings: str) -> bytes:
    """Return SEQUENCE OF UTF8String (DER); nothing for no strings, since a PKIFreeText is never empty.

    What has no UTF-8 (a lone surrogate, from a name in somebody's request) becomes a question mark.
    """
    if not strings:
        return b""
    return der.encode(
        der.SEQUENCE, *(der.encode(der.UTF8_STRING, string.encode("utf-8", "replace")) for string in strings)
    )


def identifier_and_value(octets: bytes, element: der.Element, what: str) -> tuple[bytes, der.Element | None]:
    """Return the OBJECT IDENTIFIER (DER) of SEQUENCE { type, value ANY OPTIONAL }, and where the value lies.

    Raises:
        MalformedRequest: it is something else.
    """
    found = fields(octets, element, what)
    if len(found) not in {1, 2} or found[0][0] != der.OID or found[0][2] == found[0][3]:
        raise MalformedRequest(f"{what}: not an identifier and perhaps a value")
    return whole(octets, found[0]), found[1] if len(found) == 2 else None


def algorithm(octets: bytes, element: der.Element, what: str) -> bytes:
    """Return an AlgorithmIdentifier (DER) as it stands there.

    Raises:
        MalformedRequest: it is none.
    """
    identifier_and_value(octets, element, what)
    return whole(octets, element)
