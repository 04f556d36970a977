"""What it means that a certificate is revoked, and how one revocation is written in a CRL.

``ReasonCode`` and ``CertStatus`` are the vocabulary of RFC 5280 section 5.3.1 and RFC 6960 section 2.2.
``revoked_entry`` encodes one element of revokedCertificates at the moment of revocation; the octets are
stored and every later CRL is put together from them, so an entry is read back and compared when it is made.
The two forms of time that CRLs and OCSP responses use are here as well.

Which certificates are revoked, and whether somebody may revoke them, is the use cases' business.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from types import MappingProxyType

from birthmark.errors import MalformedRequest, PolicyRefused
from birthmark.pki import der

__all__ = [
    "ENUMERATED",
    "REASONS",
    "REASON_CODE",
    "REASON_NUMBERS",
    "CertStatus",
    "ReasonCode",
    "RevokedEntry",
    "encode_generalized_time",
    "encode_time",
    "read_entry",
    "read_generalized_time",
    "read_time",
    "revoked_entry",
]

ENUMERATED = 0x0A

_FIRST_UTC_TIME = 1950
_FIRST_GENERALIZED_TIME = 2050
REASON_CODE = der.oid("2.5.29.21")
"""id-ce-cRLReasons (DER)."""
_INVALIDITY_DATE = der.oid("2.5.29.24")


class CertStatus(StrEnum):
    """What is known of a certificate (RFC 6960 section 2.2)."""

    GOOD = "good"
    """Issued here and not revoked; says nothing about its validity period."""
    REVOKED = "revoked"
    """Revoked, for good or on hold."""
    UNKNOWN = "unknown"
    """Nothing is known of it."""


class ReasonCode(StrEnum):
    """Why a certificate is revoked (RFC 5280 section 5.3.1), as the standard spells it."""

    UNSPECIFIED = "unspecified"
    """No reason was given; written by leaving the extension out."""
    KEY_COMPROMISE = "keyCompromise"
    CA_COMPROMISE = "cACompromise"
    """The key of the authority that the certificate is of."""
    AFFILIATION_CHANGED = "affiliationChanged"
    SUPERSEDED = "superseded"
    CESSATION_OF_OPERATION = "cessationOfOperation"
    CERTIFICATE_HOLD = "certificateHold"
    """Suspended: the only reason that may be taken back."""
    REMOVE_FROM_CRL = "removeFromCRL"
    """Not a revocation: says in a delta CRL that a hold ended or the certificate expired."""
    PRIVILEGE_WITHDRAWN = "privilegeWithdrawn"
    AA_COMPROMISE = "aACompromise"
    """The key of an attribute authority."""

    @property
    def number(self) -> int:
        """Return its number in CRLReason."""
        return REASON_NUMBERS[self]


REASON_NUMBERS = MappingProxyType(
    {
        ReasonCode.UNSPECIFIED: 0,
        ReasonCode.KEY_COMPROMISE: 1,
        ReasonCode.CA_COMPROMISE: 2,
        ReasonCode.AFFILIATION_CHANGED: 3,
        ReasonCode.SUPERSEDED: 4,
        ReasonCode.CESSATION_OF_OPERATION: 5,
        ReasonCode.CERTIFICATE_HOLD: 6,
        # 7 is not used.
        ReasonCode.REMOVE_FROM_CRL: 8,
        ReasonCode.PRIVILEGE_WITHDRAWN: 9,
        ReasonCode.AA_COMPROMISE: 10,
    }
)
"""CRLReason of each reason (RFC 5280 section 5.3.1)."""

REASONS = MappingProxyType({number: reason for reason, number in REASON_NUMBERS.items()})
"""The reason of each CRLReason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokedEntry:
    """One element of revokedCertificates (RFC 5280 section 5.1.2.6)."""

    serial_number: int
    revoked_at: datetime
    """revocationDate, aware, in seconds."""
    reason: ReasonCode
    invalidity_date: datetime | None
    """Since when the certificate is not to be trusted, where that is known (section 5.3.2)."""


def revoked_entry(
    serial_number: int,
    revoked_at: datetime,
    reason: ReasonCode,
    *,
    invalidity_date: datetime | None = None,
) -> bytes:
    """Return one element of revokedCertificates (DER), 20 to 81 octets.

    reasonCode and invalidityDate are not critical; "unspecified" is written by leaving reasonCode out
    (RFC 5280 section 5.3.1).  Parts of a second are cut off.

    Args:
        serial_number: of the revoked certificate; positive, at most 20 octets (section 4.1.2.2).
        revoked_at: revocationDate, aware.
        reason: why.
        invalidity_date: since when the key is suspected, aware; not after ``revoked_at``.

    Raises:
        PolicyRefused: the serial number does not fit, a date has no encoding, or the certificate would have
            become invalid after it was revoked.
    """
    if not 0 < serial_number < 1 << 159:
        raise PolicyRefused("serial_number_fits", "serial number is not positive or has more than 20 octets")
    asked = RevokedEntry(
        serial_number=serial_number,
        revoked_at=_cut(revoked_at),
        reason=reason,
        invalidity_date=None if invalidity_date is None else _cut(invalidity_date),
    )
    extensions = b""
    if reason is not ReasonCode.UNSPECIFIED:
        number = der.encode(ENUMERATED, bytes((reason.number,)))
        extensions += der.encode(der.SEQUENCE, REASON_CODE, der.encode(der.OCTET_STRING, number))
    if asked.invalidity_date is not None:
        if asked.invalidity_date > asked.revoked_at:
            raise PolicyRefused("invalidity_date", "the invalidity date is after the revocation")
        since = der.encode(der.OCTET_STRING, encode_generalized_time(asked.invalidity_date))
        extensions += der.encode(der.SEQUENCE, _INVALIDITY_DATE, since)
    wrapped = der.encode(der.SEQUENCE, extensions) if extensions else b""
    entry = der.encode(der.SEQUENCE, der.integer(serial_number), encode_time(revoked_at), wrapped)
    # It will be signed again and again, and nobody will look at it then as closely as now.
    if read_entry(entry) != asked:
        raise RuntimeError("a revoked entry does not say what it was made from")
    return entry


def read_entry(octets: bytes) -> RevokedEntry:
    """Return what one element of revokedCertificates (DER) says; strict, and only extensions we write.

    Raises:
        MalformedRequest: the octets are something else, or not as ``revoked_entry`` would write them.
    """
    _, _, start, stop = der.only(octets, der.SEQUENCE)
    fields = der.children(octets, start, stop)
    tags = [field[0] for field in fields]
    if len(fields) not in {2, 3} or tags[0] != der.INTEGER or tags[2:] not in ([], [der.SEQUENCE]):
        raise MalformedRequest("a revoked entry is not serial number, date and extensions")
    serial_number = _serial_number(octets[fields[0][2] : fields[0][3]])
    revoked_at = read_time(tags[1], octets[fields[1][2] : fields[1][3]])
    reason, invalidity_date = ReasonCode.UNSPECIFIED, None
    if len(fields) == 3:
        reason, invalidity_date = _entry_extensions(octets, *fields[2][2:])
    return RevokedEntry(
        serial_number=serial_number, revoked_at=revoked_at, reason=reason, invalidity_date=invalidity_date
    )


def _serial_number(contents: bytes) -> int:
    shortest = contents != b"\0" and (len(contents) < 2 or contents[0] or contents[1] & 0x80)
    if not 1 <= len(contents) <= 20 or contents[0] & 0x80 or not shortest:
        raise MalformedRequest("a serial number is not positive, too long or not in the shortest form")
    return int.from_bytes(contents, "big")


def _entry_extensions(octets: bytes, start: int, stop: int) -> tuple[ReasonCode, datetime | None]:
    values: dict[bytes, tuple[int, bytes]] = {}
    for tag, _, first, last in der.children(octets, start, stop):
        parts = der.children(octets, first, last)
        if tag != der.SEQUENCE or [part[0] for part in parts] != [der.OID, der.OCTET_STRING]:
            raise MalformedRequest("an extension of a revoked entry is critical or none")
        identifier = octets[parts[0][1] : parts[0][3]]
        inner = der.children(octets, *parts[1][2:])
        if identifier in values or len(inner) != 1:
            raise MalformedRequest("an extension of a revoked entry occurs twice or holds no single value")
        values[identifier] = (inner[0][0], octets[inner[0][2] : inner[0][3]])
    if not values:
        raise MalformedRequest("a revoked entry has an empty list of extensions")
    reason, invalidity_date = ReasonCode.UNSPECIFIED, None
    if (found := values.pop(REASON_CODE, None)) is not None:
        tag, contents = found
        number = contents[0] if len(contents) == 1 else -1
        if tag != ENUMERATED or number == 0 or number not in REASONS:
            raise MalformedRequest(f"reasonCode {contents.hex()} is none, or unspecified in so many words")
        reason = REASONS[number]
    if (found := values.pop(_INVALIDITY_DATE, None)) is not None:
        if found[0] != der.GENERALIZED_TIME:
            raise MalformedRequest("invalidityDate is not GeneralizedTime")
        invalidity_date = read_generalized_time(found[1])
    if values:
        raise MalformedRequest(f"extension {next(iter(values)).hex()} in a revoked entry")
    return reason, invalidity_date


# --- time ---


def encode_time(moment: datetime) -> bytes:
    """Return Time (DER): UTCTime through 2049, GeneralizedTime from 2050 (RFC 5280 section 5.1.2.4).

    Raises:
        PolicyRefused: before 1950, which has no encoding.
    """
    at = moment.astimezone(UTC)
    if at.year < _FIRST_UTC_TIME:
        raise PolicyRefused("encode_time", f"{at.isoformat()} is before 1950 and has no encoding")
    if at.year < _FIRST_GENERALIZED_TIME:
        return b"\x17\x0d%02d%02d%02d%02d%02d%02dZ" % (
            at.year % 100, at.month, at.day, at.hour, at.minute, at.second,
        )  # fmt: skip
    return encode_generalized_time(at)


def encode_generalized_time(moment: datetime) -> bytes:
    """Return GeneralizedTime (DER) in UTC with seconds and no fraction (RFC 5280 section 4.1.2.5.2)."""
    at = moment.astimezone(UTC)
    return b"\x18\x0f%04d%02d%02d%02d%02d%02dZ" % (
        at.year, at.month, at.day, at.hour, at.minute, at.second,
    )  # fmt: skip


def read_time(tag: int, contents: bytes) -> datetime:
    """Return what a Time says (RFC 5280 section 5.1.2.4).

    Raises:
        MalformedRequest: neither form, or the form that does not belong to the year.
    """
    if tag == der.UTC_TIME and len(contents) == 13:
        return read_generalized_time((b"20" if contents < b"5" else b"19") + contents)
    if tag == der.GENERALIZED_TIME and contents[:4] >= b"2050":
        return read_generalized_time(contents)
    raise MalformedRequest(f"{contents!r} with tag {tag:02x} is no time, or has the form of other years")


@lru_cache(maxsize=64)  # most responses of a second share theirs
def read_generalized_time(contents: bytes) -> datetime:
    """Return what the contents of a GeneralizedTime say, in UTC with seconds and no fraction.

    Raises:
        MalformedRequest: no such form, or no such moment.
    """
    digits = contents[:-1]
    if len(digits) != 14 or not digits.isdigit() or contents[-1:] != b"Z":
        raise MalformedRequest(f"{contents!r} is no time with seconds and Z")
    try:
        return datetime(
            int(digits[0:4]), int(digits[4:6]), int(digits[6:8]), int(digits[8:10]), int(digits[10:12]),
            int(digits[12:14]), tzinfo=UTC,
        )  # fmt: skip
    except ValueError as error:
        raise MalformedRequest(f"{contents!r} is no time: {error}") from error


def _cut(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(microsecond=0)
