"""A TBSCertificate as its octets say (RFC 5280 section 4.1): what ``lint`` judges.

``read`` is total and strict: any octets are a ``Reading`` or ``errors.MalformedRequest``.  It takes version 3
with extensions and without unique identifiers, which is all that we issue, and judges nothing.
"""

from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple

from birthmark.errors import MalformedRequest
from birthmark.pki import der

__all__ = ["Reading", "read"]


class Reading(NamedTuple):
    """A TBSCertificate as its octets say (RFC 5280 section 4.1)."""

    octets: bytes
    version: bytes
    serial_number: bytes
    """Contents of the INTEGER."""
    signature_algorithm: bytes
    issuer: bytes
    not_before: datetime
    not_after: datetime
    times: tuple[tuple[int, bytes], ...]
    """Tag and contents of notBefore and notAfter."""
    subject: bytes
    subject_public_key_info: bytes
    extensions: dict[bytes, bytes]
    """Contents of extnValue by extnID (DER), in order."""
    criticality: tuple[bool, ...]


def read(octets: bytes) -> Reading:
    """Read a TBSCertificate (DER), version 3 with extensions and without unique identifiers.

    Raises:
        MalformedRequest: the octets are something else.
    """
    _, _, content, end = der.only(octets, der.SEQUENCE)
    fields = der.children(octets, content, end)
    if [found[0] for found in fields] != _FIELDS:
        raise MalformedRequest(
            "not version, serial number, algorithm, issuer, validity, subject, key, extensions"
        )
    version, serial, algorithm, issuer, validity, subject, key, wrapped = fields
    times = [(tag, octets[start:stop]) for tag, _, start, stop in der.children(octets, *validity[2:])]
    if len(times) != 2:
        raise MalformedRequest("validity is not two times")
    _, _, content, end = der.only(octets, der.SEQUENCE, *wrapped[2:])
    extensions: dict[bytes, bytes] = {}
    criticality: list[bool] = []
    for tag, _, start, stop in der.children(octets, content, end):
        parts = der.children(octets, start, stop)
        tags = [part[0] for part in parts]
        if tag != der.SEQUENCE or tags not in (_PLAIN_EXTENSION, _MARKED_EXTENSION):
            raise MalformedRequest("an extension is not identifier, criticality and value")
        critical = tags == _MARKED_EXTENSION
        if critical and octets[parts[1][2] : parts[1][3]] != b"\xff":
            raise MalformedRequest("criticality is not TRUE: FALSE is left out (X.690 section 11.5)")
        identifier = octets[parts[0][1] : parts[0][3]]
        if identifier in extensions:
            raise MalformedRequest("an extension occurs twice")
        extensions[identifier] = octets[parts[-1][2] : parts[-1][3]]
        criticality.append(critical)
    return Reading(
        octets,
        octets[version[1] : version[3]],
        octets[serial[2] : serial[3]],
        octets[algorithm[1] : algorithm[3]],
        octets[issuer[1] : issuer[3]],
        _moment(*times[0]),
        _moment(*times[1]),
        tuple(times),
        octets[subject[1] : subject[3]],
        octets[key[1] : key[3]],
        extensions,
        tuple(criticality),
    )


_FIELDS = [0xA0, der.INTEGER, der.SEQUENCE, der.SEQUENCE, der.SEQUENCE, der.SEQUENCE, der.SEQUENCE, 0xA3]
_PLAIN_EXTENSION = [der.OID, der.OCTET_STRING]
_MARKED_EXTENSION = [der.OID, der.BOOLEAN, der.OCTET_STRING]


@lru_cache(maxsize=64)  # most certificates of a minute share theirs
def _moment(tag: int, contents: bytes) -> datetime:
    digits = contents[:-1]
    if not digits.isdigit() or contents[-1:] != b"Z" or (tag, len(contents)) not in {(0x17, 13), (0x18, 15)}:
        raise MalformedRequest(f"{contents!r} is no time with seconds and Z")
    if tag == der.UTC_TIME:
        digits = (b"20" if digits < b"5" else b"19") + digits
    try:
        return datetime(
            int(digits[0:4]), int(digits[4:6]), int(digits[6:8]), int(digits[8:10]), int(digits[10:12]),
            int(digits[12:14]), tzinfo=UTC,
        )  # fmt: skip
    except ValueError as error:
        raise MalformedRequest(f"{contents!r} is no time: {error}") from error
