"""What an OCSP response says (RFC 6960 section 4.2), as values and as read from its octets.

``Responder`` is who signs, checked once to be entitled to; ``SingleResponse`` is what is said of one
certificate; ``TBSResponse`` holds the octets to be signed together with what they were made from.
``read_tbs`` reads such octets for lint and shares nothing with the encoder in ``ocsp``.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import ExtendedKeyUsageOID

from birthmark.errors import MalformedRequest, PolicyRefused
from birthmark.pki import der
from birthmark.pki.algorithms import key_identifier, recognise
from birthmark.pki.certificates import Certificate
from birthmark.pki.issuer import Issuer
from birthmark.pki.keys import KeyAlgorithm, KeyLabel
from birthmark.pki.library import UNREADABLE
from birthmark.pki.ocsp_request import CertID
from birthmark.pki.revocation import (
    ENUMERATED,
    REASON_NUMBERS,
    CertStatus,
    ReasonCode,
    read_generalized_time,
)

__all__ = ["Reading", "Responder", "SingleReading", "SingleResponse", "TBSResponse", "read_tbs"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Responder:
    """Who signs responses about the certificates of one authority (RFC 6960 section 4.2.2.2)."""

    key_label: KeyLabel
    key_algorithm: KeyAlgorithm
    responder_id: bytes = field(repr=False)
    """ResponderID (DER): its name, or the SHA-1 of its key."""
    carried: bytes = field(repr=False)
    """certs of BasicOCSPResponse ([0], DER): its certificate."""
    not_before: datetime
    not_after: datetime

    @classmethod
    def from_certificate(
        cls, key_label: KeyLabel, certificate_der: bytes, issuer: Issuer, *, by_name: bool = False
    ) -> Self:
        """Return the responder that an authority delegated to by this certificate (DER).

        Args:
            key_label: the responder's key.
            certificate_der: the responder's certificate.
            issuer: the authority whose certificates it speaks of; it must have issued it itself.
            by_name: name the responder by its subject; otherwise by its key, which is shorter.

        Raises:
            MalformedRequest: not a certificate, or its key is in none of our encodings.
            PolicyRefused: the authority did not issue it, it is not for OCSP signing (section 4.2.2.2), or
                its keyUsage forbids signatures.
        """
        certificate = Certificate.from_der(certificate_der)
        try:
            parsed = x509.load_der_x509_certificate(certificate_der)
            extensions = parsed.extensions
            purposes = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
            usage = extensions.get_extension_for_class(x509.KeyUsage).value
            if issuer.certificate is None:
                raise PolicyRefused("responder_is_delegated", "the authority has no certificate yet")
            parsed.verify_directly_issued_by(x509.load_der_x509_certificate(issuer.certificate))
        except x509.ExtensionNotFound as error:
            raise PolicyRefused(
                "responder_is_delegated", f"not a responder's certificate: {error}"
            ) from error
        except InvalidSignature as error:
            raise PolicyRefused("responder_is_delegated", "the signature is not the authority's") from error
        except UNREADABLE as error:
            raise PolicyRefused("responder_is_delegated", f"not of the authority: {error}") from error
        if ExtendedKeyUsageOID.OCSP_SIGNING not in purposes or not usage.digital_signature:
            raise PolicyRefused("responder_is_delegated", "the certificate is not for signing ocsp responses")
        key = certificate.subject_public_key_info
        algorithm = recognise(key)
        if algorithm is None:
            raise MalformedRequest("the responder's key is in none of our encodings")
        if by_name:
            responder_id = der.encode(0xA1, certificate.subject_name)
        else:
            responder_id = der.encode(0xA2, der.encode(der.OCTET_STRING, key_identifier(key)))
        return cls(
            key_label=key_label,
            key_algorithm=algorithm,
            responder_id=responder_id,
            carried=der.encode(0xA0, der.encode(der.SEQUENCE, certificate_der)),
            not_before=certificate.not_before,
            not_after=certificate.not_after,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleResponse:
    """What is said of one certificate (RFC 6960 section 4.2.1).

    A serial number that a known authority never gave is answered "unknown".  The other choice of section 2.2,
    "revoked" since 1970 with the extended-revoke extension, would tell clients that trust nothing unknown no
    more than that, and those who do would take a forged certificate for a revoked one of ours.
    """

    cert_id: CertID
    status: CertStatus
    this_update: datetime
    """When the status was known to be so, aware; parts of a second are cut off."""
    next_update: datetime
    """When there will be newer information at the latest (RFC 5019 section 2.2.4 wants it there)."""
    revoked_at: datetime | None = None
    """When it was revoked; there if and only if it is."""
    reason: ReasonCode = ReasonCode.UNSPECIFIED


@dataclass(frozen=True, slots=True, kw_only=True)
class TBSResponse:
    """A ResponseData (RFC 6960 section 4.2.1) that is to be signed, and what it was made from."""

    der: bytes = field(repr=False)
    responder: Responder
    responses: tuple[SingleResponse, ...]
    produced_at: datetime
    nonce: bytes | None


# --- reading ---


class SingleReading(NamedTuple):
    """A SingleResponse as its octets say."""

    cert_id: bytes
    """DER."""
    status: CertStatus
    revoked_at: datetime | None
    reason: ReasonCode
    this_update: datetime
    next_update: datetime | None


class Reading(NamedTuple):
    """A ResponseData as its octets say: version 1, and no extension but a nonce."""

    responder_id: bytes
    """DER."""
    produced_at: datetime
    responses: tuple[SingleReading, ...]
    nonce: bytes | None


def read_tbs(octets: bytes) -> Reading:
    """Read a ResponseData (DER).

    Raises:
        MalformedRequest: the octets are something else, or say more than a ``Reading`` can.
    """
    fields = der.children(octets, *der.only(octets, der.SEQUENCE)[2:])
    tags = bytes(field[0] for field in fields)
    if tags[:1] not in {b"\xa1", b"\xa2"} or tags[1:] not in {b"\x18\x30", b"\x18\x30\xa1"}:
        raise MalformedRequest("not responder, time, responses and extensions")
    return Reading(
        octets[fields[0][1] : fields[0][3]],
        read_generalized_time(octets[fields[1][2] : fields[1][3]]),
        tuple(_read_single(octets, element) for element in der.children(octets, *fields[2][2:])),
        _read_nonce(octets, *fields[3][2:]) if len(fields) == 4 else None,
    )


_STATUS = {0x80: CertStatus.GOOD, 0xA1: CertStatus.REVOKED, 0x82: CertStatus.UNKNOWN}
_REASONS = {bytes((number,)): reason for reason, number in REASON_NUMBERS.items() if number}


def _read_single(octets: bytes, element: der.Element) -> SingleReading:
    parts = der.children(octets, *element[2:])
    tags = bytes(part[0] for part in parts)
    if element[0] != der.SEQUENCE or tags[:1] != b"\x30" or tags[2:] not in {b"\x18", b"\x18\xa0"}:
        raise MalformedRequest("a response is not certificate, status and times")
    status = _STATUS.get(tags[1])
    revoked_at, reason = None, ReasonCode.UNSPECIFIED
    if status is CertStatus.REVOKED:
        revoked_at, reason = _read_revoked(octets, *parts[1][2:])
    elif status is None or parts[1][2] != parts[1][3]:
        raise MalformedRequest("a status is neither good nor revoked nor unknown")
    next_update = None
    if len(parts) == 4:
        _, _, start, stop = der.only(octets, der.GENERALIZED_TIME, *parts[3][2:])
        next_update = read_generalized_time(octets[start:stop])
    this_update = read_generalized_time(octets[parts[2][2] : parts[2][3]])
    return SingleReading(
        octets[parts[0][1] : parts[0][3]], status, revoked_at, reason, this_update, next_update
    )


def _read_revoked(octets: bytes, start: int, stop: int) -> tuple[datetime, ReasonCode]:
    parts = der.children(octets, start, stop)
    if [part[0] for part in parts] not in ([der.GENERALIZED_TIME], [der.GENERALIZED_TIME, 0xA0]):
        raise MalformedRequest("a revocation is not time and reason")
    reason = ReasonCode.UNSPECIFIED
    if len(parts) == 2:
        _, _, first, last = der.only(octets, ENUMERATED, *parts[1][2:])
        if octets[first:last] not in _REASONS:
            raise MalformedRequest("a reason is none, or unspecified in so many words")
        reason = _REASONS[octets[first:last]]
    return read_generalized_time(octets[parts[0][2] : parts[0][3]]), reason


def _read_nonce(octets: bytes, start: int, stop: int) -> bytes:
    for tag in (der.SEQUENCE, der.SEQUENCE):
        _, _, start, stop = der.only(octets, tag, start, stop)
    if not octets.startswith(_NONCE, start):
        raise MalformedRequest("the extension of a response is no nonce, or critical")
    _, _, start, stop = der.only(octets, der.OCTET_STRING, start + len(_NONCE), stop)
    _, _, start, stop = der.only(octets, der.OCTET_STRING, start, stop)
    return octets[start:stop]


_NONCE = bytes.fromhex("06092b0601050507300102")  # 1.3.6.1.5.5.7.48.1.2
