"""Certificate revocation lists (RFC 5280 section 5), made without ever holding their entries.

Entries are encoded once, by ``revocation.revoked_entry``, and stored; a list is a frame around them.
``frame`` gives what stands before and after the entries, so that they can be streamed into a file between
the two; ``crl_lint.permit`` reads that file's octets in place and asks every rule; ``sign_crl`` gives what
goes around them.  A list of any size takes the memory of its frame.  ``assemble_crl`` is all of that for a
list that fits in memory.

When lists are made, where they are published and which are due is the use cases' business.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import cast

from cryptography import x509

from birthmark.errors import IntegrityFailure, MalformedRequest, PolicyRefused, TooLarge
from birthmark.pki import der
from birthmark.pki.algorithms import ALGORITHMS
from birthmark.pki.crl_lint import CRLPermit, permit
from birthmark.pki.crl_reading import (
    AUTHORITY_KEY_IDENTIFIER,
    CRL_NUMBER,
    DELTA_CRL_INDICATOR,
    FRESHEST_CRL,
    ISSUING_DISTRIBUTION_POINT,
    Buffer,
    Covers,
    CRLScope,
    CRLSummary,
    CRLTerms,
    read_crl,
)
from birthmark.pki.issuer import Issuer
from birthmark.pki.keys import KeyLabel
from birthmark.pki.library import UNREADABLE
from birthmark.pki.revocation import encode_time

__all__ = [
    "Buffer",
    "CRLFrame",
    "CRLPermit",
    "CRLScope",
    "CRLSummary",
    "CRLTerms",
    "Covers",
    "assemble_crl",
    "crl_number",
    "frame",
    "permit",
    "read_crl",
    "sign_crl",
    "verify_crl",
]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CRITICAL = b"\x01\x01\xff"
_VERSION_2 = b"\x02\x01\x01"


def crl_number(this_update: datetime) -> int:
    """Return microseconds since 1970: a CRLNumber that grows as the clock does and needs no counter.

    A complete list and a delta of one scope that are made at the same moment get the same number, as RFC 5280
    section 5.2.3 asks.  Takes 8 octets where 20 are allowed.

    Raises:
        PolicyRefused: before 1970.
    """
    number = (this_update - _EPOCH) // timedelta(microseconds=1)
    if number < 0:
        raise PolicyRefused("crl_number_fits", f"{this_update.isoformat()} is before 1970")
    return number


# --- the frame around the entries ---


@dataclass(frozen=True, slots=True, kw_only=True)
class CRLFrame:
    """A TBSCertList (DER) without its entries: ``prefix``, the entries, ``suffix``."""

    prefix: bytes
    suffix: bytes


def frame(terms: CRLTerms, entries_size: int) -> CRLFrame:
    """Return the frame of a list whose entries will have this many octets altogether.

    Without entries there is no revokedCertificates at all (RFC 5280 section 5.1.2.6).

    Raises:
        TooLarge: the list would have 4 GiB.
        PolicyRefused: a date or the number has no encoding.
    """
    number = terms.number
    if not 0 <= number < 1 << 159:
        raise PolicyRefused("crl_number_fits", "CRLNumber is negative or has more than 20 octets")
    fields = b"".join(
        (
            _VERSION_2,
            ALGORITHMS[terms.issuer.key_algorithm].signature_algorithm,
            terms.issuer.subject,
            encode_time(terms.this_update),
            encode_time(terms.next_update),
            _header(der.SEQUENCE, entries_size) if entries_size else b"",
        )
    )
    suffix = der.encode(0xA0, der.encode(der.SEQUENCE, *_extensions(terms)))
    whole = _header(der.SEQUENCE, len(fields) + entries_size + len(suffix))
    return CRLFrame(prefix=whole + fields, suffix=suffix)


def _header(tag: int, length: int) -> bytes:
    if length < 0x80:
        return bytes((tag, length))
    if length >> 32:
        raise TooLarge(f"a CRL of {length} octets: 4 GiB is the limit")
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(octets))) + octets


def _extensions(terms: CRLTerms) -> list[bytes]:
    scope = terms.scope
    key_identifier = der.encode(der.SEQUENCE, der.encode(0x80, terms.issuer.key_identifier))
    found = [
        _extension(AUTHORITY_KEY_IDENTIFIER, key_identifier),
        _extension(CRL_NUMBER, der.integer(terms.number)),
    ]
    if scope.base is not None:
        found.append(_extension(DELTA_CRL_INDICATOR, der.integer(scope.base), critical=True))
    if scope.limited:
        point = b""
        if scope.distribution_point is not None:
            point = _distribution_point_name(scope.distribution_point)
        only = {Covers.ALL: b"", Covers.USERS: b"\x81\x01\xff", Covers.AUTHORITIES: b"\x82\x01\xff"}
        value = der.encode(der.SEQUENCE, point, only[scope.covers])
        found.append(_extension(ISSUING_DISTRIBUTION_POINT, value, critical=True))
    if scope.freshest_crl is not None:
        points = der.encode(
            der.SEQUENCE, der.encode(der.SEQUENCE, _distribution_point_name(scope.freshest_crl))
        )
        found.append(_extension(FRESHEST_CRL, points))
    return found


def _extension(identifier: bytes, value: bytes, *, critical: bool = False) -> bytes:
    marked = _CRITICAL if critical else b""
    return der.encode(der.SEQUENCE, identifier, marked, der.encode(der.OCTET_STRING, value))


def _distribution_point_name(location: str) -> bytes:
    """[0] { fullName [0] { uniformResourceIdentifier [6] } }."""
    return der.encode(0xA0, der.encode(0xA0, der.encode(0x86, location.encode("ascii"))))


# --- the signature ---


def sign_crl(permit: CRLPermit, sign: Callable[[KeyLabel, bytes], bytes]) -> tuple[bytes, bytes]:
    """Return what stands before and after the permitted octets in the CertificateList (DER).

    Args:
        permit: from ``permit``.
        sign: ``KeyStore.sign``; it gets the permitted buffer itself, and what it raises passes through.

    Raises:
        TooLarge: the list would have 4 GiB.
    """
    algorithm = ALGORITHMS[permit.issuer.key_algorithm].signature_algorithm
    signature = sign(permit.issuer.key_label, cast("bytes", permit.tbs))
    trailer = algorithm + der.encode(der.BIT_STRING, b"\0" + signature)
    return _header(der.SEQUENCE, len(permit.tbs) + len(trailer)), trailer


def assemble_crl(
    terms: CRLTerms, entries: Iterable[bytes], sign: Callable[[KeyLabel, bytes], bytes]
) -> bytes:
    """Return a whole CRL (DER) whose entries fit in memory; arguments and errors as of the single steps.

    Args:
        terms: what it says besides its entries.
        entries: each from ``revocation.revoked_entry``.
        sign: ``KeyStore.sign``.
    """
    joined = b"".join(entries)
    around = frame(terms, len(joined))
    tbs = around.prefix + joined + around.suffix
    header, trailer = sign_crl(permit(tbs, terms), sign)
    return header + tbs + trailer


def verify_crl(octets: bytes, issuer: Issuer) -> CRLSummary:
    """Return what a published CRL (DER) says of itself, if this authority signed it.

    1. It can be read, see ``read_crl``.
    2. Its issuer and authorityKeyIdentifier are the authority's.
    3. Its signature verifies with the authority's key.

    Whether it is current is for the caller, who has a clock, to see.

    Raises:
        MalformedRequest: step 1 fails.
        IntegrityFailure: step 2 or 3 fails.
    """
    summary = read_crl(octets)
    named = summary.issuer == issuer.subject
    if not named or summary.authority_key_identifier != issuer.key_identifier or issuer.certificate is None:
        raise IntegrityFailure("the CRL is another issuer's")
    key = x509.load_der_x509_certificate(issuer.certificate).public_key()
    try:
        parsed = x509.load_der_x509_crl(octets)
        genuine = parsed.is_signature_valid(key)  # type: ignore[arg-type]  # a key that cannot sign is refused
    except UNREADABLE as error:
        raise MalformedRequest(f"not a CRL: {error}") from error
    if not genuine:
        raise IntegrityFailure("the CRL's signature is not of its issuer's key")
    return summary
