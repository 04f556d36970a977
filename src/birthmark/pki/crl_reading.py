"""What a CRL says (RFC 5280 section 5), as values and as read from its octets.

``CRLScope`` and ``CRLTerms`` are what a list is agreed to say besides its entries.  ``read_crl`` reads what a
published one says; ``read_tbs`` reads the signed part for lint.  Both read in place and pass over the
entries, so that a list of any size costs the same; both raise ``errors.MalformedRequest`` and nothing else.
The reader shares nothing with the encoder in ``crl``: each finds the other's mistakes.
"""

import re
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from mmap import mmap
from typing import NamedTuple, cast

from birthmark.errors import MalformedRequest
from birthmark.pki import der
from birthmark.pki.issuer import Issuer
from birthmark.pki.revocation import read_time

__all__ = [
    "AUTHORITY_KEY_IDENTIFIER",
    "CRITICAL",
    "CRL_NUMBER",
    "DELTA_CRL_INDICATOR",
    "FRESHEST_CRL",
    "ISSUING_DISTRIBUTION_POINT",
    "Buffer",
    "CRLScope",
    "CRLSummary",
    "CRLTerms",
    "Covers",
    "Reading",
    "read_crl",
    "read_tbs",
]

Buffer = bytes | memoryview | mmap
"""Octets that can be read where they are; a file is mapped with ``mmap.ACCESS_READ``."""

AUTHORITY_KEY_IDENTIFIER = der.oid("2.5.29.35")
CRL_NUMBER = der.oid("2.5.29.20")
DELTA_CRL_INDICATOR = der.oid("2.5.29.27")
ISSUING_DISTRIBUTION_POINT = der.oid("2.5.29.28")
FRESHEST_CRL = der.oid("2.5.29.46")
CRITICAL = frozenset({DELTA_CRL_INDICATOR, ISSUING_DISTRIBUTION_POINT})
"""The extensions that have to be critical (sections 5.2.4 and 5.2.5); no other is."""

_LOCATION = re.compile(r"https?://[!-~]{1,1000}")
_VERSION_2 = b"\x02\x01\x01"


# --- what a list is to say ---


class Covers(StrEnum):
    """Which certificates of its issuer a list speaks of (RFC 5280 section 5.2.5)."""

    ALL = "all"
    USERS = "users"
    """onlyContainsUserCerts: everything that is no authority."""
    AUTHORITIES = "authorities"
    """onlyContainsCACerts: an authority revocation list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CRLScope:
    """What a list covers, and how it relates to others of the same scope.

    A whole list of everything, the default, has no issuingDistributionPoint; every other scope has one, and
    it is critical, so that nobody takes a part for the whole.
    """

    covers: Covers = Covers.ALL
    distribution_point: str | None = None
    """http location of the partition: the one that its certificates name in cRLDistributionPoints."""
    base: int | None = None
    """BaseCRLNumber: the number of the complete list that this delta adds to (section 5.2.4)."""
    freshest_crl: str | None = None
    """http location where deltas to this complete list are published (section 5.2.6)."""

    def __post_init__(self) -> None:
        """Refuse what no list may say.

        Raises:
            MalformedRequest: a location is not http, the base is no CRL number, or a delta names further
                deltas (section 5.2.6).
        """
        for location in (self.distribution_point, self.freshest_crl):
            if location is not None and not _LOCATION.fullmatch(location):
                raise MalformedRequest(f"{location!r} is no http location")
        if self.base is not None and not 0 <= self.base < 1 << 159:
            raise MalformedRequest("the base is negative or has more than 20 octets")
        if self.base is not None and self.freshest_crl is not None:
            raise MalformedRequest("a delta list names no further deltas")

    @property
    def limited(self) -> bool:
        """Return whether the list needs an issuingDistributionPoint."""
        return self.covers is not Covers.ALL or self.distribution_point is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class CRLTerms:
    """Everything that a list says besides its entries."""

    issuer: Issuer = field(repr=False)
    scope: CRLScope
    number: int
    """CRLNumber: grows within issuer and scope, see ``crl_number``."""
    this_update: datetime
    """When the list was made, aware; parts of a second are cut off."""
    next_update: datetime
    """When the next one will be there at the latest, aware; parts of a second are cut off."""


# --- reading ---


@dataclass(frozen=True, slots=True, kw_only=True)
class CRLSummary:
    """What a list says of itself (RFC 5280 section 5.1.2); not its entries."""

    issuer: bytes = field(repr=False)
    """Name (DER), as it stands there."""
    authority_key_identifier: bytes | None
    number: int
    this_update: datetime
    next_update: datetime
    scope: CRLScope
    entries_size: int
    """Octets of all entries."""


class Reading(NamedTuple):
    """A TBSCertList as its octets say."""

    octets: memoryview
    signature_algorithm: bytes
    entries: tuple[int, int] | None
    """Where the contents of revokedCertificates start and end; None without it."""
    extensions: dict[bytes, bytes]
    """Contents of extnValue by extnID (DER), in order."""
    criticality: tuple[bool, ...]
    summary: CRLSummary


def read_crl(octets: Buffer) -> CRLSummary:
    """Return what a CRL (DER) says of itself; neither its entries nor its signature are looked at.

    Reads version 2 with nextUpdate, CRLNumber and a scope that ``CRLScope`` can say; extensions that are not
    critical and that we do not know are passed over.

    Raises:
        MalformedRequest: the octets are something else.
    """
    with memoryview(octets) as view:
        parts = _children(view)
        if len(parts) != 1 or parts[0][0] != der.SEQUENCE:
            raise MalformedRequest("a CRL is one sequence")
        parts = _children(view, *parts[0][2:])
        if [part[0] for part in parts] != [der.SEQUENCE, der.SEQUENCE, der.BIT_STRING]:
            raise MalformedRequest("a CRL is list, algorithm and signature")
        with view[parts[0][1] : parts[0][3]] as tbs:
            seen = read_tbs(tbs)
        if bytes(view[parts[1][1] : parts[1][3]]) != seen.signature_algorithm:
            raise MalformedRequest("the signature's algorithm is not the one in the signed part")
        return seen.summary


def _children(view: memoryview, start: int = 0, end: int | None = None) -> list[der.Element]:
    # Reads octets one by one and slices only lengths, which a view can do as well as bytes.
    return der.children(cast("bytes", view), start, end)


def read_tbs(view: memoryview) -> Reading:
    """Read a TBSCertList (DER), version 2 with nextUpdate and extensions; the reading is of this very view.

    Raises:
        MalformedRequest: the octets are something else.
    """
    fields = _children(view, *_inside(view, der.SEQUENCE, 0, len(view)))
    tags = [found[0] for found in fields]
    listed = len(fields) == 7
    expected = [der.INTEGER, der.SEQUENCE, der.SEQUENCE, None, None, *[der.SEQUENCE] * listed, 0xA0]
    if len(tags) != len(expected) or any(
        want not in {None, tag} for tag, want in zip(tags, expected, strict=True)
    ):
        raise MalformedRequest("not version, algorithm, issuer, two times, entries and extensions")
    version, algorithm, issuer, this_update, next_update = (
        bytes(view[found[1] : found[3]]) for found in fields[:5]
    )
    if version != _VERSION_2:
        raise MalformedRequest("the version is not 2")
    entries = fields[5][2:] if listed else None
    extensions, criticality = _read_extensions(view, *fields[-1][2:])
    summary = CRLSummary(
        issuer=issuer,
        authority_key_identifier=_read_key_identifier(extensions),
        number=_read_number(extensions, CRL_NUMBER),
        this_update=read_time(tags[3], this_update[2:]),
        next_update=read_time(tags[4], next_update[2:]),
        scope=_read_scope(extensions),
        entries_size=entries[1] - entries[0] if entries else 0,
    )
    return Reading(view, algorithm, entries, extensions, criticality, summary)


def _inside(view: memoryview, tag: int, start: int, stop: int) -> tuple[int, int]:
    """Return where the contents of the one element with this tag start and end."""
    found = _children(view, start, stop)
    if len(found) != 1 or found[0][0] != tag:
        raise MalformedRequest(f"der: expected one element with tag {tag:02x} at offset {start}")
    return found[0][2:]


def _read_extensions(view: memoryview, start: int, stop: int) -> tuple[dict[bytes, bytes], tuple[bool, ...]]:
    start, stop = _inside(view, der.SEQUENCE, start, stop)
    extensions: dict[bytes, bytes] = {}
    criticality: list[bool] = []
    for tag, _, first, last in _children(view, start, stop):
        parts = _children(view, first, last)
        tags = [part[0] for part in parts]
        critical = tags == [der.OID, der.BOOLEAN, der.OCTET_STRING]
        if tag != der.SEQUENCE or not (critical or tags == [der.OID, der.OCTET_STRING]):
            raise MalformedRequest("an extension is not identifier, criticality and value")
        if critical and bytes(view[parts[1][2] : parts[1][3]]) != b"\xff":
            raise MalformedRequest("criticality is not TRUE: FALSE is left out (X.690 section 11.5)")
        identifier = bytes(view[parts[0][1] : parts[0][3]])
        if identifier in extensions:
            raise MalformedRequest("an extension occurs twice")
        if critical and identifier not in CRITICAL:
            raise MalformedRequest(f"extension {identifier.hex()} is critical and unknown")
        extensions[identifier] = bytes(view[parts[-1][2] : parts[-1][3]])
        criticality.append(critical)
    return extensions, tuple(criticality)


def _read_number(extensions: dict[bytes, bytes], identifier: bytes) -> int:
    value = extensions.get(identifier)
    if value is None:
        raise MalformedRequest("there is no CRLNumber")
    _, _, start, stop = der.only(value, der.INTEGER)
    contents = value[start:stop]
    if not 1 <= len(contents) <= 20 or contents[0] & 0x80:
        raise MalformedRequest("a CRL number is negative or has more than 20 octets")
    if len(contents) > 1 and contents[0] == 0 and not contents[1] & 0x80:
        raise MalformedRequest("a CRL number is not in the shortest form")
    return int.from_bytes(contents, "big")


def _read_key_identifier(extensions: dict[bytes, bytes]) -> bytes | None:
    value = extensions.get(AUTHORITY_KEY_IDENTIFIER)
    if value is None:
        return None
    _, _, start, stop = der.only(value, der.SEQUENCE)
    parts = der.children(value, start, stop)
    return value[parts[0][2] : parts[0][3]] if parts and parts[0][0] == 0x80 else None


def _read_scope(extensions: dict[bytes, bytes]) -> CRLScope:
    covers, location, freshest = Covers.ALL, None, None
    if (value := extensions.get(ISSUING_DISTRIBUTION_POINT)) is not None:
        _, _, start, stop = der.only(value, der.SEQUENCE)
        parts = der.children(value, start, stop)
        if parts and parts[0][0] == 0xA0:
            location = _read_location(value, *parts.pop(0)[2:])
        elif not parts:
            raise MalformedRequest("issuingDistributionPoint is empty")
        flags = [(tag, value[first:last]) for tag, _, first, last in parts]
        if flags not in ([], *([(tag, b"\xff")] for tag in _COVERS)):
            raise MalformedRequest("issuingDistributionPoint limits the list to something else")
        covers = _COVERS[flags[0][0]] if flags else Covers.ALL
    if (value := extensions.get(FRESHEST_CRL)) is not None:
        _, _, start, stop = der.only(value, der.SEQUENCE)
        _, _, start, stop = der.only(value, der.SEQUENCE, start, stop)
        _, _, start, stop = der.only(value, 0xA0, start, stop)
        freshest = _read_location(value, start, stop)
    base = _read_number(extensions, DELTA_CRL_INDICATOR) if DELTA_CRL_INDICATOR in extensions else None
    return CRLScope(covers=covers, distribution_point=location, base=base, freshest_crl=freshest)


_COVERS = {0x81: Covers.USERS, 0x82: Covers.AUTHORITIES}


def _read_location(value: bytes, start: int, stop: int) -> str:
    _, _, start, stop = der.only(value, 0xA0, start, stop)
    _, _, start, stop = der.only(value, 0x86, start, stop)
    return value[start:stop].decode("latin-1")
