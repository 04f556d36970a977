"""Asking other people's OCSP responders about one certificate (RFC 6960, RFC 9654).

``question`` writes a request; ``read_answer`` believes a response only if the issuer signed it, or a
responder that the issuer itself certified for that, it speaks of this certificate, and it is of now.  A
response without our nonce is taken, as most responders sign beforehand (RFC 5019 section 4); one with another
nonce is not.  Whether the responder's own certificate was revoked is not asked (RFC 6960 section 4.2.2.2.1).
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from birthmark.errors import MalformedRequest, PolicyRefused, TooLarge
from birthmark.pki import der
from birthmark.pki.algorithms import BROKEN_HASHES
from birthmark.pki.certificates import Certificate, issued_by
from birthmark.pki.library import UNREADABLE
from birthmark.pki.ocsp_request import NONCE, CertIDHash, cert_id, issuer_ids
from birthmark.pki.ownership import SKEW
from birthmark.pki.paths import purposes
from birthmark.pki.revocation import CertStatus, ReasonCode

__all__ = ["LARGEST_RESPONSE", "LIFE_WITHOUT_END", "OCSPAnswer", "question", "read_answer"]

LARGEST_RESPONSE = 64 << 10
LIFE_WITHOUT_END = timedelta(minutes=5)
"""How long an answer is good that does not say until when."""
RULE = "foreign-ocsp"
_HASHES = {CertIDHash.SHA1: hashes.SHA1, CertIDHash.SHA256: hashes.SHA256}


@dataclass(frozen=True, slots=True, kw_only=True)
class OCSPAnswer:
    """What a responder said of one certificate, verified."""

    status: CertStatus
    reason: ReasonCode | None
    """Why it is revoked."""
    this_update: datetime
    until: datetime
    """nextUpdate, or a little after thisUpdate."""

    def is_fresh(self, at: datetime) -> bool:
        """Return whether it is the responder's word at this time."""
        return self.this_update <= at + SKEW and at < self.until


def question(certificate: bytes, issuer: bytes, nonce: bytes | None) -> bytes:
    """Return the OCSPRequest (DER) about a certificate.

    The CertID hashes with SHA-1, which every responder knows (RFC 5019 section 2.1.1) and whose strength
    nothing rests on: the answer is compared with the certificate again.

    Args:
        certificate: DER.
        issuer: certificate (DER) of whoever issued it.
        nonce: 32 octets (RFC 9654 section 2.1), or None for a responder that signs beforehand.

    Raises:
        MalformedRequest: one of them is no certificate.
    """
    asked, above = Certificate.from_der(certificate), Certificate.from_der(issuer)
    ids = {one[0]: one for one in issuer_ids(above.subject_name, above.subject_public_key_info)}
    one = der.encode(der.SEQUENCE, cert_id(ids[CertIDHash.SHA1], asked.serial_number).octets)
    parts = [der.encode(der.SEQUENCE, one)]
    if nonce is not None:
        value = der.encode(der.OCTET_STRING, der.encode(der.OCTET_STRING, nonce))
        parts.append(der.encode(0xA2, der.encode(der.SEQUENCE, der.encode(der.SEQUENCE, NONCE, value))))
    return der.encode(der.SEQUENCE, der.encode(der.SEQUENCE, *parts))


def read_answer(
    octets: bytes, certificate: bytes, issuer: bytes, nonce: bytes | None, at: datetime
) -> OCSPAnswer:
    """Return what an OCSPResponse (DER) says of a certificate.

    Args:
        octets: the response.
        certificate: that was asked about (DER).
        issuer: certificate (DER) of whoever issued it.
        nonce: that was sent.
        at: now.

    Raises:
        TooLarge: it has more than ``LARGEST_RESPONSE`` octets.
        MalformedRequest: it is no response.
        PolicyRefused: the responder refused; nobody signed it who may; it is about others, of another time,
            or carries another nonce or a critical extension (rule ``foreign-ocsp``).
    """
    if len(octets) > LARGEST_RESPONSE:
        raise TooLarge(f"an ocsp response has at most {LARGEST_RESPONSE} octets, not {len(octets)}")
    try:
        response = ocsp.load_der_ocsp_response(octets)
        if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
            raise PolicyRefused(RULE, f"the responder answers {response.response_status.name.lower()}")
        _require_signed(response, issuer, at)
        _require_extensions(response, nonce)
        for single in response.responses:
            if _is_about(single, certificate, issuer):
                return _answer(single, at)
    except UNREADABLE as cause:
        raise MalformedRequest(f"not an ocsp response that can be read: {cause}") from cause
    raise PolicyRefused(RULE, "the response speaks of other certificates")


def _require_signed(response: ocsp.OCSPResponse, issuer: bytes, at: datetime) -> None:
    """RFC 6960 section 4.2.2.2: the issuer, or who it certified for this and nothing in between."""
    digest = response.signature_hash_algorithm
    if digest is not None and digest.name in BROKEN_HASHES:
        raise PolicyRefused(RULE, f"the response is signed with {digest.name}")
    above = x509.load_der_x509_certificate(issuer)
    if _signed_by(response, above):
        return
    for one in response.certificates:
        octets = _der(one)
        read = purposes(octets)
        valid = read.certificate.not_before <= at <= read.certificate.not_after
        sound = read.answers_status and read.unknown is None and read.hash_name not in BROKEN_HASHES
        if valid and sound and issued_by(octets, issuer) and _signed_by(response, one):
            return
    raise PolicyRefused(
        RULE, "the response is signed neither by the issuer nor by a responder that it certified"
    )


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def _signed_by(response: ocsp.OCSPResponse, certificate: x509.Certificate) -> bool:
    key, digest = certificate.public_key(), response.signature_hash_algorithm
    signed, signature = response.tbs_response_bytes, response.signature
    try:
        if isinstance(key, ec.EllipticCurvePublicKey) and digest is not None:
            key.verify(signature, signed, ec.ECDSA(digest))
        elif isinstance(key, rsa.RSAPublicKey) and digest is not None:
            # RSASSA-PSS is not told from this one here, and so does not verify.
            key.verify(signature, signed, padding.PKCS1v15(), digest)
        elif isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
            key.verify(signature, signed)
        else:
            return False
    except InvalidSignature:
        return False
    return True


def _require_extensions(response: ocsp.OCSPResponse, nonce: bytes | None) -> None:
    for one in response.extensions:
        if isinstance(one.value, x509.OCSPNonce):
            if nonce is not None and one.value.nonce != nonce:
                raise PolicyRefused(RULE, "the response carries another nonce than was sent")
        elif one.critical:
            raise PolicyRefused(RULE, f"extension {one.oid.dotted_string} is critical and unknown")


def _is_about(single: ocsp.OCSPSingleResponse, certificate: bytes, issuer: bytes) -> bool:
    asked, above = Certificate.from_der(certificate), Certificate.from_der(issuer)
    for name, name_hash, key_hash in issuer_ids(above.subject_name, above.subject_public_key_info):
        if name in _HASHES and isinstance(single.hash_algorithm, _HASHES[name]):
            return (single.serial_number, single.issuer_name_hash, single.issuer_key_hash) == (
                asked.serial_number, name_hash, key_hash,
            )  # fmt: skip
    return False


def _answer(single: ocsp.OCSPSingleResponse, at: datetime) -> OCSPAnswer:
    this_update, end = single.this_update_utc, single.next_update_utc
    status = CertStatus(single.certificate_status.name.lower())
    flag = single.revocation_reason
    reason = None
    if status is CertStatus.REVOKED:
        reason = ReasonCode.UNSPECIFIED if flag is None else ReasonCode(flag.value)
    answer = OCSPAnswer(
        status=status,
        reason=reason,
        this_update=this_update,
        until=this_update + LIFE_WITHOUT_END if end is None else end,
    )
    if not answer.is_fresh(at):
        raise PolicyRefused(RULE, "the response is not of this time")
    return answer
