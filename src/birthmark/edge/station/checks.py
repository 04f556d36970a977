"""What a station checks before it believes the service.

Both procedures raise ``IntegrityFailure``: a service that sends the wrong certificate or token is broken or
is not ours, and the line stops.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_private_key

from birthmark.errors import IntegrityFailure, MalformedRequest
from birthmark.ledger import proof
from birthmark.ledger.checkpoint import VerifierKey
from birthmark.pki import der
from birthmark.pki.certificates import Certificate, from_pem
from birthmark.pki.library import UNREADABLE
from birthmark.secret import SecretBytes

__all__ = [
    "Further",
    "VerifiedToken",
    "same_hardware_id",
    "spki_of_key",
    "spki_of_request",
    "verify_certificate",
    "verify_token",
]

Further = Sequence[tuple[str, str]]
"""Profile and fingerprint (hex) of each further certificate, in the order of the run's profiles."""

_FREE_SPELLING = ("vin", "eui-64", "system-title")


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedToken:
    """A release token that proves its entry."""

    leaf: int
    """Index of the release in the log."""
    record: dict[str, object]
    """The identity record as the log has it."""
    checkpoint_note: str


def same_hardware_id(asked: str, device: str) -> bool:
    """Tell whether ``device``, e.g. ``vin:1M8…``, names the hardware id that was asked for.

    The service stores VINs, EUI-64s and system titles in capitals, EUI-64s without separators; nothing else
    changes.
    """
    kind, _, stored = device.partition(":")
    if stored == asked:
        return True
    return kind in _FREE_SPELLING and asked.upper().replace("-", "").replace(":", "") == stored


def spki_of_request(csr: str) -> bytes:
    """Return the key (SubjectPublicKeyInfo, DER) that a certification request (PEM) is for.

    Raises:
        MalformedRequest: it cannot be read.
    """
    for label in ("CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"):
        try:
            request = x509.load_der_x509_csr(from_pem(csr, label)[0])
            return request.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        except (MalformedRequest, *UNREADABLE):
            continue
    raise MalformedRequest("the device's certification request cannot be read")


def spki_of_key(key: SecretBytes | None) -> bytes:
    """Return the public half (SubjectPublicKeyInfo, DER) of a delivered key.

    Raises:
        IntegrityFailure: it cannot be read.
    """
    try:
        loaded = None if key is None else load_der_private_key(key.view(), password=None)
    except UNREADABLE:
        loaded = None
    if loaded is None:  # outside of except: no cause that saw the key
        raise IntegrityFailure("the service sent a key that cannot be read")
    return loaded.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def verify_certificate(
    certificate: bytes,
    chain: Sequence[bytes],
    *,
    anchors: Sequence[bytes],
    device: str,
    hardware_id: str,
    public_key: bytes,
) -> Certificate:
    """Return the device's certificate if it is the one that was asked for.

    1. The answer is about the device that was asked for.
    2. The certified key is the device's.
    3. The subject (CN or serialNumber) or the subjectAltName holds the hardware id.
    4. Signatures and names lead from it through the chain to a trust anchor; every one above it is an
       authority (basicConstraints, keyCertSign, pathLenConstraint), and it is none itself.

    Not checked: validity dates (a station's clock is not to be trusted with them) and revocation.

    Args:
        certificate: DER.
        chain: DER each, the issuer first, the root not included.
        anchors: the trust anchors, DER each.
        device: kind and hardware id as the service answered.
        hardware_id: as it was asked for.
        public_key: SubjectPublicKeyInfo (DER) of the device's key.

    Raises:
        IntegrityFailure: it is not.
    """
    try:
        parsed = Certificate.from_der(certificate)
        leaf = x509.load_der_x509_certificate(certificate)
        # 1.
        if not same_hardware_id(hardware_id, device):
            raise IntegrityFailure(f"asked for {hardware_id!r}, the service answered for {device!r}")
        # 2.
        if parsed.subject_public_key_info != public_key:
            raise IntegrityFailure(f"the certificate for {device} is for another key than the device's")
        # 3.
        if device.partition(":")[2] not in _names(leaf):
            raise IntegrityFailure(f"the certificate {parsed.subject} does not name {device}")
        # 4.
        if _is_authority(leaf):
            raise IntegrityFailure(f"the certificate for {device} is that of an authority")
        issuer = _verified_issuer(tuple(chain), tuple(anchors))
        leaf.verify_directly_issued_by(issuer)
    except (MalformedRequest, InvalidSignature, *UNREADABLE) as wrong:
        said = f": {wrong}" if str(wrong) else ""
        raise IntegrityFailure(
            f"the certificate for {device} does not lead to the trust anchor{said}"
        ) from wrong
    return parsed


def verify_token(
    token: str,
    vkey: VerifierKey,
    *,
    device: str,
    attempt: str,
    certificate_sha256: str,
    further: Further = (),
    key_set: bool = False,
) -> VerifiedToken:
    """Return what a release token proves, if it is this device's.

    1. It is the log's own proof of its entry (C2SP tlog-proof) under the pinned key.
    2. The entry is a release.
    3. Its record names this device, this attempt and this certificate.
    4. It names these further certificates, in this order, and no others.
    5. It says that a key set was proved in the device's secure element, or that there is none.

    Raises:
        IntegrityFailure: it is not.
    """
    try:
        entry = proof.verify(token, vkey)
        text = proof.decode(token)
    except MalformedRequest as wrong:
        raise IntegrityFailure(f"the release token of {device} cannot be read: {wrong}") from wrong
    if entry.get("kind") != "device-released":
        raise IntegrityFailure(f"the release token of {device} proves an entry of another kind")
    record = entry.get("record")
    if not isinstance(record, dict):
        raise IntegrityFailure(f"the release token of {device} holds no record")
    for name, expected in (
        ("device", device),
        ("attempt", attempt),
        ("certificate_sha256", certificate_sha256),
    ):
        if record.get(name) != expected:
            raise IntegrityFailure(f"the release token of {device} names another {name}")
    if _further(record) != list(further):
        raise IntegrityFailure(f"the release token of {device} names other further certificates")
    if key_set != isinstance(record.get("key_set"), dict):
        raise IntegrityFailure(
            f"the release token of {device} says {'nothing of' if key_set else 'something of'} a key set"
            " in its secure element"
        )
    return VerifiedToken(leaf=text.index, record=record, checkpoint_note=text.checkpoint_note)


def _further(record: dict[str, object]) -> list[tuple[object, object]]:
    listed = record.get("further", [])
    if not isinstance(listed, list):
        return [(listed, None)]
    return [
        (one.get("profile"), one.get("certificate_sha256")) if isinstance(one, dict) else (one, None)
        for one in listed
    ]


@lru_cache(maxsize=64)
def _verified_issuer(chain: tuple[bytes, ...], anchors: tuple[bytes, ...]) -> x509.Certificate:
    """Return the certificate that is to have signed the device's, after following it to an anchor."""
    roots = [x509.load_der_x509_certificate(anchor) for anchor in anchors]
    path = [x509.load_der_x509_certificate(item) for item in chain]
    top = path[-1].issuer if path else None
    candidates = [root for root in roots if top is None or root.subject == top]
    if not candidates or (top is None and len(roots) != 1):
        raise ValueError("no trust anchor has the name that signed the last certificate of the chain")
    failure: Exception | None = None
    for root in candidates:
        try:
            _follow([*path, root])
        except (InvalidSignature, *UNREADABLE) as wrong:
            failure = wrong
        else:
            return path[0] if path else root
    raise ValueError(str(failure) or "no trust anchor signed the last certificate of the chain") from failure


def _follow(path: Sequence[x509.Certificate]) -> None:
    """RFC 5280 section 6.1.4 (k), (m), (n), and the signatures; the device's certificate is below path[0]."""
    for below, authority in enumerate(path):
        if not _is_authority(authority):
            raise ValueError("a certificate of the chain is not that of an authority")
        limit = authority.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length
        if limit is not None and below > limit:
            raise ValueError("the chain is longer than an authority in it allows")
    for signed, signer in pairwise(path):
        signed.verify_directly_issued_by(signer)


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return False
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return constraints.ca
    return constraints.ca and usage.key_cert_sign


def _names(certificate: x509.Certificate) -> frozenset[str]:
    """Return everything by which a certificate may name its device."""
    found = {
        str(attribute.value)
        for oid in (x509.NameOID.COMMON_NAME, x509.NameOID.SERIAL_NUMBER)
        for attribute in certificate.subject.get_attributes_for_oid(oid)
    }
    try:
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return frozenset(found)
    for name in alternative:
        if isinstance(name, x509.OtherName):
            found.add(_hardware_serial(name.value))
        elif isinstance(name, x509.DNSName | x509.UniformResourceIdentifier):
            found.add(name.value.rpartition(":")[2])
    return frozenset(found)


def _hardware_serial(value: bytes) -> str:
    """HardwareModuleName ::= SEQUENCE { hwType OBJECT IDENTIFIER, hwSerialNum OCTET STRING } (RFC 4108)."""
    _, _, start, end = der.only(value, der.SEQUENCE)
    elements = der.children(value, start, end)
    if len(elements) != 2 or elements[1][0] != der.OCTET_STRING:
        return ""
    return value[elements[1][2] : elements[1][3]].decode("latin-1")
