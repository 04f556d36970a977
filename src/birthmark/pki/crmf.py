"""Requests for certificates in CMP's own form, CRMF (RFC 4211): a good key, and does the asker hold it?

``decode`` is total: any octets become a ``CertReqMsg`` or ``errors.MalformedRequest``.  ``vet`` is what
``csr.vet`` is for PKCS #10: it answers the same ``VettedRequest``, after the same checks of the key.

Possession is proved by a signature over the request as it came (RFC 4211 section 4.1, case 3).  The other
proofs are refused by name: that an RA has seen one (raVerified) is nobody's word here, and keys that can only
encrypt or agree get no certificate.  As of PKCS #10 requests, nothing of a template is ever copied into a
certificate (SPEC C8); it is shown so that a use case can compare.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

from birthmark.errors import MalformedRequest, PolicyRefused
from birthmark.pki import cmp_der, der
from birthmark.pki.cmp import read_directory_name
from birthmark.pki.cmp_signatures import verify_named
from birthmark.pki.csr import VettedRequest, vet_key, vetted_request
from birthmark.pki.keys import KeyAlgorithm

__all__ = [
    "CertId",
    "CertReqMsg",
    "CertTemplate",
    "decode",
    "encode_template",
    "read_cert_id",
    "read_template",
    "vet",
]

_OLD_CERT_ID = der.oid("1.3.6.1.5.5.7.5.1.5")
_REG_TOKEN = der.oid("1.3.6.1.5.5.7.5.1.1")
_AUTHENTICATOR = der.oid("1.3.6.1.5.5.7.5.1.2")
_MAX_CONTROLS = 16
_MAX_EXTENSIONS = 32

_SERIAL_NUMBER, _ISSUER, _SUBJECT, _PUBLIC_KEY, _EXTENSIONS = 0x81, 0xA3, 0xA5, 0xA6, 0xA9
_TEMPLATE_TAGS = (0x80, _SERIAL_NUMBER, 0xA2, _ISSUER, 0xA4, _SUBJECT, _PUBLIC_KEY, 0x87, 0x88, _EXTENSIONS)
"""version, serialNumber, signingAlg, issuer, validity, subject, publicKey, issuerUID, subjectUID, extensions.

IMPLICIT, but explicit where a Name, which is a CHOICE, is tagged (X.680 section 31.2.7).
"""
_RA_VERIFIED, _SIGNATURE, _KEY_ENCIPHERMENT, _KEY_AGREEMENT = 0x80, 0xA1, 0xA2, 0xA3
_POPOSK_INPUT = 0xA0


@dataclass(frozen=True, slots=True, kw_only=True)
class CertId:
    """Which certificate is meant (RFC 4211 section 6.5)."""

    issuer: bytes
    """Name (DER)."""
    serial_number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CertTemplate:
    """What somebody wishes for in a certificate, or how a certificate is described (RFC 4211 section 5)."""

    serial_number: int | None = None
    issuer: bytes | None = None
    """Name (DER)."""
    subject: bytes | None = None
    """Name (DER)."""
    public_key: bytes | None = field(default=None, repr=False)
    """SubjectPublicKeyInfo (DER)."""
    extensions: bytes | None = field(default=None, repr=False)
    """Extensions (DER); each has the form of an extension, and no more is known of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CertReqMsg:
    """One request for a certificate."""

    cert_req_id: int
    template: CertTemplate
    old_cert_id: CertId | None
    """The certificate that is to be replaced (control oldCertID)."""
    controls: frozenset[bytes] = field(repr=False)
    """The OBJECT IDENTIFIERs (DER) of all controls."""
    request: bytes = field(repr=False)
    """CertRequest (DER), as it came: what a proof of possession signs."""
    popo: bytes | None = field(repr=False)
    """ProofOfPossession (DER)."""


# --- reading ---


def decode(body: bytes) -> CertReqMsg:
    """Return the one request in the body of an ir, cr or kur (CertReqMessages, DER).

    Raises:
        MalformedRequest: the octets are something else, or there is more than one request (RFC 9483 section
            4.1.1 has exactly one).
    """
    (element,) = cmp_der.sequence_of(body, der.only(body, der.SEQUENCE), "CertReqMessages", 1)
    found = cmp_der.fields(body, element, "CertReqMsg")
    if not found:
        raise MalformedRequest("CertReqMsg: empty")
    allowed = (_RA_VERIFIED, _SIGNATURE, _KEY_ENCIPHERMENT, _KEY_AGREEMENT, der.SEQUENCE)
    rest = cmp_der.tagged(found[1:], allowed, "CertReqMsg")  # regInfo, the last of these, is passed over
    proofs = [one for tag, one in rest.items() if tag != der.SEQUENCE]
    if len(proofs) > 1:
        raise MalformedRequest("CertReqMsg: more than one proof of possession")
    request = cmp_der.fields(body, found[0], "CertRequest")
    if len(request) not in {2, 3}:
        raise MalformedRequest("CertRequest: not certReqId, certTemplate and controls")
    controls = _controls(body, request[2]) if len(request) == 3 else {}
    old = controls.get(_OLD_CERT_ID)
    return CertReqMsg(
        cert_req_id=cmp_der.number(body, request[0], "certReqId"),
        template=read_template(body, request[1]),
        old_cert_id=None if old is None else read_cert_id(body, old),
        controls=frozenset(controls),
        request=cmp_der.whole(body, found[0]),
        popo=cmp_der.whole(body, proofs[0]) if proofs else None,
    )


def _controls(octets: bytes, element: der.Element) -> dict[bytes, der.Element]:
    controls: dict[bytes, der.Element] = {}
    for one in cmp_der.sequence_of(octets, element, "controls", _MAX_CONTROLS):
        identifier, value = cmp_der.identifier_and_value(octets, one, "control")
        if value is None or identifier in controls:
            raise MalformedRequest("controls: one without a value, or one twice")
        controls[identifier] = value
    return controls


def read_cert_id(octets: bytes, element: der.Element) -> CertId:
    """Return the CertId (DER) at an element.

    Raises:
        MalformedRequest: something else stands there, or its issuer is no directoryName.
    """
    found = cmp_der.fields(octets, element, "CertId")
    if len(found) != 2:
        raise MalformedRequest("CertId: not issuer and serialNumber")
    issuer = read_directory_name(cmp_der.whole(octets, found[0]))
    if issuer is None:
        raise MalformedRequest("CertId: the issuer is no directoryName")
    return CertId(issuer=issuer, serial_number=cmp_der.number(octets, found[1], "serialNumber"))


def read_template(octets: bytes, element: der.Element) -> CertTemplate:
    """Return the CertTemplate (DER) at an element; what we never look at is passed over.

    Raises:
        MalformedRequest: something else stands there.
    """
    found = cmp_der.tagged(cmp_der.fields(octets, element, "CertTemplate"), _TEMPLATE_TAGS, "CertTemplate")

    def name(tag: int, what: str) -> bytes | None:
        one = found.get(tag)
        return (
            None if one is None else cmp_der.whole(octets, cmp_der.explicit(octets, one, what, der.SEQUENCE))
        )

    def untagged(tag: int) -> bytes | None:
        one = found.get(tag)
        return None if one is None else der.encode(der.SEQUENCE, cmp_der.contents(octets, one))

    serial = found.get(_SERIAL_NUMBER)
    if (extensions := found.get(_EXTENSIONS)) is not None:
        _check_extensions(octets, extensions)
    return CertTemplate(
        serial_number=None
        if serial is None
        else cmp_der.number(octets, serial, "serialNumber", _SERIAL_NUMBER),
        issuer=name(_ISSUER, "issuer"),
        subject=name(_SUBJECT, "subject"),
        public_key=untagged(_PUBLIC_KEY),
        extensions=untagged(_EXTENSIONS),
    )


def _check_extensions(octets: bytes, element: der.Element) -> None:
    seen = set()
    for one in cmp_der.sequence_of(octets, element, "extensions", _MAX_EXTENSIONS, tag=_EXTENSIONS):
        parts = cmp_der.fields(octets, one, "extension")
        if [part[0] for part in parts if part[0] != der.BOOLEAN] != [der.OID, der.OCTET_STRING]:
            raise MalformedRequest("an extension is not identifier, criticality and value")
        identifier = cmp_der.whole(octets, parts[0])
        if len(parts) > 3 or parts[-1][0] == der.BOOLEAN or identifier in seen:
            raise MalformedRequest("an extension occurs twice, or is not identifier, criticality and value")
        seen.add(identifier)


# --- judging ---


def vet(
    message: CertReqMsg,
    *,
    allowed: Collection[KeyAlgorithm],
    blocked_spki: Collection[str] = (),
) -> VettedRequest:
    """Return the key of a request, proved to be in the sender's hands.

    Args:
        message: from ``decode``.
        allowed: the key algorithms that may pass.
        blocked_spki: SHA-256 (lower-case hex) of further keys to refuse.

    Raises:
        MalformedRequest: the proof of possession cannot be read, or the subject is no name.
        PolicyRefused: the template lacks subject or key ("request-template"), there is a control that we do
            not support and whose meaning would be lost ("request-control"), the key may not be certified
            (as ``csr.vet``), the signature is of a kind not allowed ("request-signature"), or possession is
            not proved ("proof-of-possession").
    """
    template = message.template
    if template.subject is None or template.public_key is None:
        # RFC 9483 section 4.1.1 demands both; without them a proof would sign a poposkInput.
        raise PolicyRefused("request-template", "the request has to name its subject and its public key")
    if message.controls & {_REG_TOKEN, _AUTHENTICATOR}:
        raise PolicyRefused("request-control", "the controls regToken and authenticator are not supported")
    algorithm = vet_key(template.public_key, allowed=allowed, blocked_spki=blocked_spki)
    vetted = vetted_request(template.public_key, algorithm, template.subject)
    identifier, signature = _proof(message.popo)
    verify_named(template.public_key, identifier, signature, message.request, rule="proof-of-possession")
    return vetted


_REFUSED_PROOFS = {
    _RA_VERIFIED: "an ra's word (raVerified) is not accepted",
    _KEY_ENCIPHERMENT: "keyEncipherment is not supported",
    _KEY_AGREEMENT: "keyAgreement is not supported",
}


def _proof(popo: bytes | None) -> tuple[bytes, bytes]:
    """Return algorithm (DER) and signature of POPOSigningKey (RFC 4211 section 4.1)."""
    if popo is None:
        raise PolicyRefused("proof-of-possession", "the request has no proof that its sender holds the key")
    if (why := _REFUSED_PROOFS.get(popo[0])) is not None:
        raise PolicyRefused(
            "proof-of-possession", f"possession of the key has to be proved by a signature: {why}"
        )
    found = cmp_der.fields(popo, der.only(popo, _SIGNATURE), "POPOSigningKey", _SIGNATURE)
    if found and found[0][0] == _POPOSK_INPUT:
        # "This field MUST NOT be present" where the template has both subject and key (section 4.1).
        raise PolicyRefused(
            "proof-of-possession", "a proof with a poposkInput is not over the request itself"
        )
    if len(found) != 2:
        raise MalformedRequest("POPOSigningKey: not algorithmIdentifier and signature")
    algorithm = cmp_der.algorithm(popo, found[0], "POPOSigningKey")
    return algorithm, cmp_der.bits(popo, found[1], "POPOSigningKey")


# --- writing ---


def encode_template(template: CertTemplate) -> bytes:
    """Return CertTemplate (DER), as a CA describes what it wants to be asked (RFC 9483 section 4.3.3)."""

    def implicit(tag: int, octets: bytes) -> bytes:
        return der.encode(tag, cmp_der.contents(octets, der.children(octets)[0]))

    serial, issuer, subject = template.serial_number, template.issuer, template.subject
    return der.encode(
        der.SEQUENCE,
        b"" if serial is None else implicit(_SERIAL_NUMBER, cmp_der.signed_integer(serial)),
        b"" if issuer is None else der.encode(_ISSUER, issuer),
        b"" if subject is None else der.encode(_SUBJECT, subject),
        b"" if template.public_key is None else implicit(_PUBLIC_KEY, template.public_key),
        b"" if template.extensions is None else implicit(_EXTENSIONS, template.extensions),
    )
