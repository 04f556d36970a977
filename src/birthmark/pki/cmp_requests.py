"""What clients say in CMP, except their requests for certificates (bodies; RFC 9810 section 5.3).

Confirmations, revocations, polls, batches, errors, and what a genm asks about CRLs.  The bodies of ir, cr and
kur are ``crmf``'s, that of a p10cr is ``csr``'s.  Every reader is total: any octets become a value or
``errors.MalformedRequest``.
"""

from dataclasses import dataclass, field
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import SignatureAlgorithmOID

from birthmark.errors import MalformedRequest, PolicyRefused
from birthmark.pki import cmp_der, der
from birthmark.pki.cmp import MAX_MESSAGE_SIZE, PKIMessage, decode, read_directory_name
from birthmark.pki.cmp_signatures import HASHES
from birthmark.pki.cmp_status import PKIStatus, PKIStatusInfo, read_status
from birthmark.pki.crl_reading import CRLSummary
from birthmark.pki.crmf import CertId, read_template
from birthmark.pki.library import UNREADABLE
from birthmark.pki.revocation import ENUMERATED, REASON_CODE, REASONS, ReasonCode, read_time

__all__ = [
    "CRLStatus",
    "CertStatus",
    "RevocationRequest",
    "certificate_hash",
    "read_confirmations",
    "read_crl_statuses",
    "read_error",
    "read_nested",
    "read_polls",
    "read_revocations",
    "verify_confirmation",
]

_MAX_ENTRIES = 32
"""Confirmations, revocations, polls, messages or CRLs in one body; our own limit."""
_LONGEST_HASH = 64
_SHORT_SHAKE256 = 32
_EXPLICIT_0, _EXPLICIT_1 = 0xA0, 0xA1
_URI = 0x86
"""uniformResourceIdentifier of a GeneralName (RFC 5280 section 4.2.1.6)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CertStatus:
    """Whether a client takes a certificate (RFC 9810 section 5.3.18)."""

    cert_hash: bytes
    cert_req_id: int
    status: PKIStatusInfo | None
    """None means that it does."""
    hash_algorithm: bytes | None = None
    """OBJECT IDENTIFIER (DER) of the hash, where the client says it; a matter of version 3 only."""

    @property
    def accepted(self) -> bool:
        """Whether it takes the certificate."""
        return self.status is None or self.status.status in {PKIStatus.ACCEPTED, PKIStatus.GRANTED_WITH_MODS}


@dataclass(frozen=True, slots=True, kw_only=True)
class RevocationRequest:
    """Which certificate is to be revoked, and why (RFC 9810 section 5.3.9)."""

    certificate: CertId
    reason: ReasonCode | None
    """None where the client says none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CRLStatus:
    """Which CRL a client asks for, and which it has (RFC 9810 section 5.3.19.17)."""

    source: bytes = field(repr=False)
    """CRLSource (DER)."""
    issuer: bytes | None
    """Name (DER) of the CRL's issuer, if the client says that; else it says a distribution point."""
    location: str | None
    """The distribution point, if the client says that by its URI."""
    this_update: datetime | None
    """Of the CRL that it has; None if it has none."""

    def wants(self, crl: CRLSummary, location: str | None) -> bool:
        """Return whether a CRL, published at a location, is the one it asks for, and newer than its own.

        The distribution point is but a name for it (RFC 9810 section 5.3.19.17): nothing is fetched.
        """
        named = self.issuer == crl.issuer if self.issuer is not None else self.location == location
        said = self.issuer is not None or self.location is not None
        return said and named and (self.this_update is None or self.this_update < crl.this_update)


# --- confirmations ---


def read_confirmations(body: bytes) -> tuple[CertStatus, ...]:
    """Return what a certConf says (CertConfirmContent, DER); nothing means that all are rejected.

    Raises:
        MalformedRequest: the octets are something else.
    """
    element = der.only(body, der.SEQUENCE)
    found = cmp_der.sequence_of(body, element, "CertConfirmContent", _MAX_ENTRIES, fewest=0)
    return tuple(_confirmation(body, one) for one in found)


def _confirmation(octets: bytes, element: der.Element) -> CertStatus:
    found = cmp_der.fields(octets, element, "CertStatus")
    if len(found) < 2:
        raise MalformedRequest("CertStatus: not certHash and certReqId")
    optional = cmp_der.tagged(found[2:], (der.SEQUENCE, _EXPLICIT_0), "CertStatus")
    status, algorithm = optional.get(der.SEQUENCE), optional.get(_EXPLICIT_0)
    hashed = None
    if algorithm is not None:
        inner = cmp_der.explicit(octets, algorithm, "hashAlg")
        hashed, _ = cmp_der.identifier_and_value(octets, inner, "hashAlg")
    return CertStatus(
        cert_hash=cmp_der.octet_string(octets, found[0], "certHash", _LONGEST_HASH),
        cert_req_id=cmp_der.number(octets, found[1], "certReqId"),
        status=None if status is None else read_status(octets, status),
        hash_algorithm=hashed,
    )


def verify_confirmation(confirmed: CertStatus, certificate: bytes, *, pvno: int) -> None:
    """Check that a confirmation is of this certificate.

    Args:
        confirmed: from ``read_confirmations``.
        certificate: the one that was issued (DER).
        pvno: version of the message: only version 3 has a hashAlg (RFC 9810 section 5.3.18).

    Raises:
        PolicyRefused: it is of another, or hashed in a way that is none of ours ("certificate-confirmation").
        MalformedRequest: ``certificate`` cannot be read.
    """
    if confirmed.hash_algorithm is not None and pvno < 3:
        raise PolicyRefused("certificate-confirmation", "hashAlg belongs to version 3 only")
    algorithm = _hash(certificate, confirmed.hash_algorithm)
    expected = _digest(algorithm, certificate)
    if isinstance(algorithm, hashes.SHAKE256) and len(confirmed.cert_hash) == _SHORT_SHAKE256:
        expected = expected[:_SHORT_SHAKE256]  # what OpenSSL 3.0 sends for Ed448: half of it
    if confirmed.cert_hash != expected:
        raise PolicyRefused("certificate-confirmation", "the hash is not that of the certificate")


def certificate_hash(certificate: bytes, algorithm: bytes | None = None) -> bytes:
    """Return the certHash of a certificate (RFC 9810 section 5.3.18).

    Args:
        certificate: DER.
        algorithm: OBJECT IDENTIFIER (DER) of SHA-2; None for the hash of the certificate's own signature,
            which for Ed25519 is SHA-512 and for Ed448 SHAKE256 with 64 octets (RFC 9481 section 3.3).

    Raises:
        PolicyRefused: the hash is none of ours ("certificate-confirmation").
        MalformedRequest: ``certificate`` cannot be read.
    """
    return _digest(_hash(certificate, algorithm), certificate)


def _digest(algorithm: hashes.HashAlgorithm, octets: bytes) -> bytes:
    digest = hashes.Hash(algorithm)
    digest.update(octets)
    return digest.finalize()


def _hash(certificate: bytes, algorithm: bytes | None) -> hashes.HashAlgorithm:
    return _own_hash(certificate) if algorithm is None else _named_hash(algorithm)


def _named_hash(algorithm: bytes) -> hashes.HashAlgorithm:
    made = HASHES.get(algorithm)
    if made is None:
        raise PolicyRefused("certificate-confirmation", f"the hash {algorithm.hex()[:80]} is none of ours")
    return made()


def _own_hash(certificate: bytes) -> hashes.HashAlgorithm:
    try:
        read = x509.load_der_x509_certificate(certificate)
        signed_with, found = read.signature_algorithm_oid, read.signature_hash_algorithm
    except UnsupportedAlgorithm as error:
        raise PolicyRefused("certificate-confirmation", "the certificate's hash is none of ours") from error
    except UNREADABLE as error:
        raise MalformedRequest("the certificate that is confirmed cannot be read") from error
    if signed_with == SignatureAlgorithmOID.ED25519:
        return hashes.SHA512()
    if signed_with == SignatureAlgorithmOID.ED448:
        return hashes.SHAKE256(64)
    if found is None:
        raise PolicyRefused("certificate-confirmation", "the certificate's signature has no hash of its own")
    return found


# --- revocations ---


def read_revocations(body: bytes) -> tuple[RevocationRequest, ...]:
    """Return what an rr asks for (RevReqContent, DER), one or more.

    Raises:
        MalformedRequest: the octets are something else; a certificate is not named by issuer and serial
            number (RFC 9483 section 4.2), or a reason is none of RFC 5280 section 5.3.1.
    """
    found = cmp_der.sequence_of(body, der.only(body, der.SEQUENCE), "RevReqContent", _MAX_ENTRIES)
    return tuple(_revocation(body, one) for one in found)


def _revocation(octets: bytes, element: der.Element) -> RevocationRequest:
    found = cmp_der.fields(octets, element, "RevDetails")
    if len(found) not in {1, 2}:
        raise MalformedRequest("RevDetails: not certDetails and crlEntryDetails")
    template = read_template(octets, found[0])
    if template.issuer is None or template.serial_number is None:
        raise MalformedRequest("RevDetails: a certificate is named by its issuer and serial number")
    return RevocationRequest(
        certificate=CertId(issuer=template.issuer, serial_number=template.serial_number),
        reason=_reason(octets, found[1]) if len(found) == 2 else None,
    )


def _reason(octets: bytes, element: der.Element) -> ReasonCode | None:
    reason = None
    for one in cmp_der.sequence_of(octets, element, "crlEntryDetails", _MAX_ENTRIES, fewest=0):
        parts = cmp_der.fields(octets, one, "crlEntryDetails")
        if not parts or parts[0][0] != der.OID or parts[-1][0] != der.OCTET_STRING:
            raise MalformedRequest("crlEntryDetails: not extensions")
        if cmp_der.whole(octets, parts[0]) != REASON_CODE:
            continue  # a wish that we pass over, such as invalidityDate
        number = cmp_der.number(
            octets, cmp_der.explicit(octets, parts[-1], "reasonCode"), "reasonCode", ENUMERATED
        )
        if reason is not None or number not in REASONS:
            raise MalformedRequest(f"reasonCode {number} is none, or one of several")
        reason = REASONS[number]
    return reason


# --- polls, batches, errors, CRLs ---


def read_polls(body: bytes) -> tuple[int, ...]:
    """Return the certReqIds of a pollReq (PollReqContent, DER), one or more; -1 stands for the whole message.

    Raises:
        MalformedRequest: the octets are something else.
    """
    found = cmp_der.sequence_of(body, der.only(body, der.SEQUENCE), "PollReqContent", _MAX_ENTRIES)
    identifiers = []
    for one in found:
        inner = cmp_der.sequence_of(body, one, "PollReqContent", 1)
        identifiers.append(cmp_der.number(body, inner[0], "certReqId"))
    return tuple(identifiers)


def read_nested(body: bytes, limit: int = MAX_MESSAGE_SIZE) -> tuple[PKIMessage, ...]:
    """Return the messages in a nested one (PKIMessages, DER), one or more; those in them are not looked at.

    Raises:
        MalformedRequest: the octets are something else.
        TooLarge: one of the messages has more than ``limit`` octets.
    """
    found = cmp_der.sequence_of(body, der.only(body, der.SEQUENCE), "PKIMessages", _MAX_ENTRIES)
    return tuple(decode(cmp_der.whole(body, one), limit) for one in found)


def read_error(body: bytes) -> PKIStatusInfo:
    """Return what an error says (ErrorMsgContent, DER; RFC 9810 section 5.3.21).

    Raises:
        MalformedRequest: the octets are something else.
    """
    found = cmp_der.fields(body, der.only(body, der.SEQUENCE), "ErrorMsgContent")
    if not found:
        raise MalformedRequest("ErrorMsgContent: empty")
    cmp_der.tagged(found[1:], (der.INTEGER, der.SEQUENCE), "ErrorMsgContent")
    return read_status(body, found[0])


def read_crl_statuses(value: bytes) -> tuple[CRLStatus, ...]:
    """Return which CRLs are asked for by id-it-crlStatusList (CRLStatusListValue, DER).

    Raises:
        MalformedRequest: the octets are something else.
    """
    found = cmp_der.sequence_of(value, der.only(value, der.SEQUENCE), "CRLStatusListValue", _MAX_ENTRIES)
    return tuple(_crl_status(value, one) for one in found)


def _crl_status(octets: bytes, element: der.Element) -> CRLStatus:
    """CRLStatus ::= SEQUENCE { CHOICE { dpn [0], issuer [1] GeneralNames }, thisUpdate Time OPTIONAL }."""
    found = cmp_der.fields(octets, element, "CRLStatus")
    if len(found) not in {1, 2} or found[0][0] not in {_EXPLICIT_0, _EXPLICIT_1}:
        raise MalformedRequest("CRLStatus: not source and thisUpdate")
    inner = cmp_der.explicit(octets, found[0], "CRLSource")
    issuer, location = None, None
    if found[0][0] == _EXPLICIT_0 and inner[0] == _EXPLICIT_0:  # fullName
        names = cmp_der.sequence_of(octets, inner, "CRLSource", _MAX_ENTRIES, tag=_EXPLICIT_0)
        uris = [cmp_der.contents(octets, name) for name in names if name[0] == _URI]
        location = next((uri.decode("latin-1") for uri in uris), None)
    if found[0][0] == _EXPLICIT_1:
        names = cmp_der.sequence_of(octets, inner, "CRLSource", _MAX_ENTRIES)
        read = [read_directory_name(cmp_der.whole(octets, name)) for name in names]
        issuer = next((name for name in read if name is not None), None)
    time = found[1] if len(found) == 2 else None
    return CRLStatus(
        source=cmp_der.whole(octets, found[0]),
        issuer=issuer,
        location=location,
        this_update=None if time is None else read_time(time[0], cmp_der.contents(octets, time)),
    )
