"""Other people's CRLs: is it the issuer's, and which certificates does it revoke (RFC 5280 sections 5, 6.3)?

``index_crl`` reads one of any size once: the signature is verified, every entry looked at, and what remains
is a sorted table of serial numbers, twenty-two octets each, in which ``find`` searches.  What it cannot rely
on it refuses as a whole: a list of a part of the certificates, a delta, one for several issuers, a critical
extension nobody here understands.  No list is better than one that is misread.

It shares ``crl_reading`` with our own lists, and asks for nothing that RFC 5280 does not ask for.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256

from cryptography import x509

from birthmark.errors import MalformedRequest, PolicyRefused, TooLarge
from birthmark.pki import der
from birthmark.pki.algorithms import BROKEN_HASHES
from birthmark.pki.certificates import from_pem
from birthmark.pki.crl_reading import Covers, CRLSummary, read_crl, read_tbs
from birthmark.pki.library import UNREADABLE
from birthmark.pki.ownership import SKEW
from birthmark.pki.paths import purposes
from birthmark.pki.revocation import ENUMERATED, REASON_CODE, REASONS, ReasonCode

__all__ = ["LARGEST_CRL", "CRLIndex", "crl_der", "index_crl", "records"]

LARGEST_CRL = 64 << 20
"""Octets: more than a million entries with their reasons."""
RULE = "foreign-crl"
_SERIAL = 21
"""Octets of a serial number in the table: 20, and one for the sign."""
_RECORD = _SERIAL + 1
_DATES = frozenset({(der.UTC_TIME, 13), (der.GENERALIZED_TIME, 15)})
_KEPT_READINGS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class CRLIndex:
    """What a verified CRL says, ready to be asked."""

    sha256: str
    """Of the CRL's octets (hex)."""
    number: int
    this_update: datetime
    next_update: datetime
    entries: int
    covers: Covers
    table: bytes = field(repr=False)
    """Serial numbers, each with the number of its reason, in order."""

    def find(self, serial_number: int) -> ReasonCode | None:
        """Return why a certificate is revoked; None if it is not on the list."""
        key = _key(serial_number.to_bytes(_SERIAL, "big", signed=True))
        low, high = 0, len(self.table) // _RECORD
        while low < high:
            middle = (low + high) // 2
            found = self.table[middle * _RECORD : middle * _RECORD + _SERIAL]
            if found == key:
                return REASONS[self.table[middle * _RECORD + _SERIAL]]
            low, high = (middle + 1, high) if found < key else (low, middle)
        return None

    def is_fresh(self, at: datetime) -> bool:
        """Return whether it is the word of its issuer at this time."""
        return self.this_update <= at + SKEW and at < self.next_update


def crl_der(octets: bytes) -> bytes:
    """Return the one CRL (DER) in a file, which may be PEM; whether it is one is not looked at.

    Raises:
        TooLarge: it has more than ``LARGEST_CRL`` octets.
        MalformedRequest: it is PEM with not exactly one CRL.
    """
    if len(octets) > 2 * LARGEST_CRL:
        raise TooLarge(f"a CRL has at most {LARGEST_CRL} octets")
    if octets.lstrip()[:11] != b"-----BEGIN ":
        return octets
    found = from_pem(octets.decode("latin-1"), "X509 CRL")
    if len(found) != 1:
        raise MalformedRequest(f"pem: {len(found)} CRLs where one belongs")
    return found[0]


def index_crl(octets: bytes, issuer: bytes) -> CRLIndex:
    """Read a CRL (DER) that an authority (its certificate, DER) signed.

    Whether it is its word now says ``CRLIndex.is_fresh``.

    Raises:
        TooLarge: it has more than ``LARGEST_CRL`` octets.
        MalformedRequest: it is no CRL of version 2 with nextUpdate and CRLNumber.
        PolicyRefused: it is not this authority's, which may not sign lists or did not sign this one, or it
            speaks of a part only (rule ``foreign-crl``).
    """
    if len(octets) > LARGEST_CRL:
        raise TooLarge(f"a CRL has at most {LARGEST_CRL} octets, not {len(octets)}")
    summary = read_crl(octets)
    if summary.scope.base is not None or summary.scope.distribution_point is not None:
        raise PolicyRefused(RULE, "the CRL is a delta or of one distribution point: a complete one is needed")
    if summary.scope.covers is Covers.AUTHORITIES:
        raise PolicyRefused(RULE, "the CRL speaks of authorities only")
    _require_signed(octets, summary, issuer)
    table = sorted(records(octets))
    return CRLIndex(
        sha256=sha256(octets).hexdigest(),
        number=summary.number,
        this_update=summary.this_update,
        next_update=summary.next_update,
        entries=len(table),
        covers=summary.scope.covers,
        table=b"".join(table),
    )


def _require_signed(octets: bytes, summary: CRLSummary, issuer: bytes) -> None:
    signer = purposes(issuer)
    if summary.issuer != signer.certificate.subject_name:
        raise PolicyRefused(RULE, f"the CRL is not {signer.certificate.subject}'s, but another issuer's")
    if not signer.signs_lists:
        raise PolicyRefused(RULE, f"{signer.certificate.subject} may not sign CRLs: keyUsage forbids it")
    try:
        parsed = x509.load_der_x509_crl(octets)
        digest = parsed.signature_hash_algorithm
        key = x509.load_der_x509_certificate(issuer).public_key()
        # The library's type of keys that certify is narrower than that of all keys; it says so at run time.
        good = parsed.is_signature_valid(key)  # type: ignore[arg-type]
    except UNREADABLE as cause:
        raise MalformedRequest(f"the CRL or its signature cannot be read: {cause}") from cause
    if digest is not None and digest.name in BROKEN_HASHES:
        raise PolicyRefused(RULE, f"the CRL is signed with {digest.name}")
    if not good:
        raise PolicyRefused(RULE, f"the CRL is not signed with the key of {signer.certificate.subject}")


def records(octets: bytes) -> Iterator[bytes]:
    """Yield the record of each entry of a CRL (DER) that ``read_crl`` has read: serial number and reason.

    Raises:
        MalformedRequest: an entry is none.
        PolicyRefused: it has a critical extension (rule ``foreign-crl``).
    """
    (whole,) = der.children(octets)
    tbs = der.children(octets, *whole[2:])[0]
    entries = read_tbs(memoryview(octets)[tbs[1] : tbs[3]]).entries
    if entries is None:
        return
    position, stop = tbs[1] + entries[0], tbs[1] + entries[1]
    known: dict[bytes, int] = {}
    while position < stop:
        # Written out: a million of them take two seconds, with a call for each part they take ten.
        size, content = octets[position + 1], position + 2
        if octets[position] != der.SEQUENCE or size >= 0x80:
            _, _, content, end = _longer(octets, position, stop)
        else:
            end = content + size
        if end > stop or end - content < 5:
            raise MalformedRequest(f"entry at offset {position} has no serial number and date")
        serial_end = content + 2 + octets[content + 1]
        if octets[content] != der.INTEGER or not 0 < octets[content + 1] <= _SERIAL or serial_end + 2 > end:
            raise MalformedRequest(f"the serial number at offset {content} has not 1 to {_SERIAL} octets")
        dated = serial_end + 2 + octets[serial_end + 1]
        if (octets[serial_end], octets[serial_end + 1]) not in _DATES or dated > end:
            raise MalformedRequest(f"what is at offset {serial_end} is no date")
        said = octets[dated:end]
        reason = known.get(said)
        if reason is None:
            reason = _reason(said)
            if len(known) < _KEPT_READINGS:
                known[said] = reason
        yield _key(octets[content + 2 : serial_end]) + bytes((reason,))
        position = end


def _longer(octets: bytes, position: int, stop: int) -> der.Element:
    """Return an entry of 128 octets and more."""
    octets_of_length = octets[position + 1] & 0x7F
    content = position + 2 + octets_of_length
    if octets[position] != der.SEQUENCE or not 1 <= octets_of_length <= 2 or content > stop:
        raise MalformedRequest(f"what is at offset {position} is no entry")
    end = content + int.from_bytes(octets[position + 2 : content], "big")
    return der.only(octets, der.SEQUENCE, position, min(end, stop))


def _key(serial: bytes) -> bytes:
    """Return a serial number (contents of an INTEGER) as the table orders it."""
    fill = b"\xff" if serial[0] & 0x80 else b"\0"
    return serial.rjust(_SERIAL, fill)


def _reason(said: bytes) -> int:
    """Return the number of the reason in an entry's extensions (DER; empty for none)."""
    if not said:
        return ReasonCode.UNSPECIFIED.number
    number = ReasonCode.UNSPECIFIED.number
    for tag, _, start, stop in der.children(said, *der.only(said, der.SEQUENCE)[2:]):
        parts = der.children(said, start, stop)
        tags = [part[0] for part in parts]
        if tag != der.SEQUENCE or tags not in ([der.OID, der.OCTET_STRING], _MARKED):
            raise MalformedRequest("an extension of an entry is not identifier, criticality and value")
        if tags == _MARKED and said[parts[1][2] : parts[1][3]] != b"\0":
            # certificateIssuer is: then the entries are of several issuers (section 5.3.3).
            raise PolicyRefused(RULE, "an entry has a critical extension: the CRL cannot be relied on")
        if said[parts[0][1] : parts[0][3]] == REASON_CODE:
            value = said[parts[-1][2] : parts[-1][3]]
            _, _, first, last = der.only(value, ENUMERATED)
            number = int.from_bytes(value[first:last], "big")
    if number not in REASONS:
        raise MalformedRequest(f"an entry has reason {number}, which there is not")
    return number


_MARKED = [der.OID, der.BOOLEAN, der.OCTET_STRING]
