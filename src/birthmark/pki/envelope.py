"""Private keys in envelopes: CMS AuthEnvelopedData to the key of a certificate (SPEC B7).

    ContentInfo            id-ct-authEnvelopedData (RFC 5083 section 2)
      recipientInfos       one: KeyAgreeRecipientInfo for an EC key (RFC 5652 section 6.2.2, RFC 5753 section
                           3.1, standard ECDH with an ephemeral key, AES-256 key wrap), or
                           KeyTransRecipientInfo for an RSA key (section 6.2.1; RSAES-OAEP, RFC 3560)
      content              id-data: OneAsymmetricKey, version 1 (RFC 5958 section 2), which is PKCS#8,
                           under AES-256-GCM (RFC 5084)

The content is id-data and not an AsymmetricKeyPackage: for any type but id-data RFC 5083 section 2.1 demands
authenticated attributes, and OpenSSL 3.0, with which others open it, cannot read an envelope that has them.
So ``openssl cms -decrypt`` gives out what ``openssl pkey`` reads.

An envelope says nothing of who made it.  That its key is the service's follows from the certificate that
comes with it, which is for this key and signed by the realm.

``seal`` makes envelopes; ``open_envelope`` opens those that ``seal`` makes, and refuses everything else.
``keypackage`` makes those of EST, for the same recipients (``recipient_info``).
Keys are made by OpenSSL.  Who may ask for an envelope, and what becomes of the key in it, is left to others.
"""

from collections.abc import Callable
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.x963kdf import X963KDF
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from birthmark.errors import MalformedRequest, PolicyRefused
from birthmark.pki import der
from birthmark.pki.algorithms import SHA2
from birthmark.pki.library import UNREADABLE
from birthmark.secret import SecretBytes

__all__ = [
    "LONGEST",
    "NONCE_SIZE",
    "Recipient",
    "Sealer",
    "open_envelope",
    "recipient_info",
    "recipient_of",
    "seal",
]

LONGEST = 16_384
"""Octets of an envelope; our own limit.  That of an RSA key of 4096 bits has less than 4096."""
NONCE_SIZE = 12
"""Octets (RFC 5084 section 3.2)."""
_TAG_SIZE = 16

_AUTH_ENVELOPED_DATA = der.oid("1.2.840.113549.1.9.16.1.23")
_DATA = der.oid("1.2.840.113549.1.7.1")
_AES256_GCM = der.oid("2.16.840.1.101.3.4.1.46")
_AES256_WRAP = der.encode(der.SEQUENCE, der.oid("2.16.840.1.101.3.4.1.45"))
_EC_PUBLIC_KEY = der.encode(der.SEQUENCE, der.oid("1.2.840.10045.2.1"))
"""Without parameters: the curve is the recipient's (RFC 5753 section 3.1.1)."""


def _oaep(null: bytes) -> bytes:
    """Return RSAES-OAEP with SHA-256, and MGF1 with SHA-256 (RFC 4055 section 4.1)."""
    sha256 = der.encode(der.SEQUENCE, SHA2["sha256"], null)
    mgf1 = der.encode(der.SEQUENCE, der.oid("1.2.840.113549.1.1.8"), sha256)
    parameters = der.encode(der.SEQUENCE, der.encode(0xA0, sha256), der.encode(0xA1, mgf1))
    return der.encode(der.SEQUENCE, der.oid("1.2.840.113549.1.1.7"), parameters)


_OAEP = _oaep(b"\x05\x00")
_OAEPS = (_OAEP, _oaep(b""))
"""The parameters of a hash may be NULL or left out: both are to be accepted (RFC 4055 section 2.1)."""
_CONTEXT_0, _CONTEXT_1, _CONTEXT_2 = 0xA0, 0xA1, 0xA2
_PRIMITIVE_0 = 0x80


def _agreed(number: int) -> bytes:
    """Return dhSinglePass-stdDH with a KDF, and what the agreed key wraps with (RFC 5753 section 7.1.4)."""
    return der.encode(der.SEQUENCE, der.oid(f"1.3.132.1.11.{number}"), _AES256_WRAP)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Curve:
    curve: ec.EllipticCurve
    hashed: Callable[[], hashes.HashAlgorithm]
    algorithm: bytes
    """KeyEncryptionAlgorithmIdentifier (DER)."""


_CURVES = {
    one.curve.name: one
    for one in (
        # As strong as the curve is (RFC 5753 section 8).
        _Curve(curve=ec.SECP256R1(), hashed=hashes.SHA256, algorithm=_agreed(1)),
        _Curve(curve=ec.SECP384R1(), hashed=hashes.SHA384, algorithm=_agreed(2)),
        _Curve(curve=ec.SECP521R1(), hashed=hashes.SHA512, algorithm=_agreed(3)),
    )
}
_PADDING = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipient:
    """Whose key opens an envelope."""

    name: bytes
    """IssuerAndSerialNumber (DER; RFC 5652 section 10.2.4)."""
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey


Sealer = Callable[[SecretBytes, Recipient, Callable[[int], bytes]], bytes]
"""Puts a private key (PKCS#8, DER) in an envelope (CMS, DER); the last argument returns random octets."""


def recipient_of(certificate: bytes) -> Recipient:
    """Return whom a certificate (DER) lets an envelope be sealed to.

    Its key usage has to say so: keyAgreement for an EC key, keyEncipherment for an RSA key (RFC 5280 section
    4.2.1.3, RFC 8813 section 3).

    Raises:
        PolicyRefused: the certificate is for another use, or its key is of a kind that nothing can be sealed
            to, such as Ed25519 (rule ``envelope-recipient``).
        MalformedRequest: it cannot be read.
    """
    try:
        read = x509.load_der_x509_certificate(certificate)
        key = read.public_key()
        usage = read.extensions.get_extension_for_class(x509.KeyUsage).value
        name = der.encode(der.SEQUENCE, read.issuer.public_bytes(), der.integer(read.serial_number))
    except x509.ExtensionNotFound as missing:
        raise _refused("it does not say what its key is for") from missing
    except (OverflowError, *UNREADABLE) as wrong:  # a negative serial number overflows
        raise MalformedRequest("the recipient's certificate cannot be read") from wrong
    if isinstance(key, ec.EllipticCurvePublicKey):
        if not usage.key_agreement:
            raise _refused("its key usage lacks keyAgreement")
        if key.curve.name not in _CURVES:
            raise _refused(f"its key is on {key.curve.name}")
    elif isinstance(key, rsa.RSAPublicKey):
        if not usage.key_encipherment:
            raise _refused("its key usage lacks keyEncipherment")
    else:
        raise _refused("its key can only sign")
    return Recipient(name=name, key=key)


def _refused(why: str) -> PolicyRefused:
    return PolicyRefused(
        "envelope-recipient", f"nothing can be enveloped to the certificate that was shown: {why}"
    )


def seal(private_key: SecretBytes, recipient: Recipient, nonce: bytes) -> bytes:
    """Return a private key in an envelope (DER).

    Args:
        private_key: PKCS#8 (DER).
        recipient: who opens it.
        nonce: ``NONCE_SIZE`` octets; random, although the key of the content is used once only.
    """
    content_key = SecretBytes.taking(AESGCM.generate_key(256))
    info = recipient_info(recipient, content_key)
    sealed = AESGCM(content_key.view()).encrypt(nonce, private_key.view(), None)
    parameters = der.encode(der.SEQUENCE, der.encode(der.OCTET_STRING, nonce), der.integer(_TAG_SIZE))
    content = der.encode(
        der.SEQUENCE,
        _DATA,
        der.encode(der.SEQUENCE, _AES256_GCM, parameters),
        der.encode(_PRIMITIVE_0, sealed[:-_TAG_SIZE]),
    )
    body = der.encode(
        der.SEQUENCE,
        der.integer(0),
        der.encode(der.SET, info),
        content,
        der.encode(der.OCTET_STRING, sealed[-_TAG_SIZE:]),
    )
    return der.encode(der.SEQUENCE, _AUTH_ENVELOPED_DATA, der.encode(_CONTEXT_0, body))


def recipient_info(recipient: Recipient, content_key: SecretBytes) -> bytes:
    """Return the RecipientInfo (DER) by which a recipient gets at the key of a content, 32 octets."""
    if isinstance(recipient.key, rsa.RSAPublicKey):
        return _transported(recipient.name, recipient.key, content_key)
    return _wrapped(recipient.name, recipient.key, content_key)


def _transported(name: bytes, key: rsa.RSAPublicKey, content_key: SecretBytes) -> bytes:
    encrypted = key.encrypt(content_key.reveal(), _PADDING)
    return der.encode(
        der.SEQUENCE, der.integer(0), name, _OAEP, der.encode(der.OCTET_STRING, encrypted)
    )  # version 0: named by issuer and serial number


def _wrapped(name: bytes, key: ec.EllipticCurvePublicKey, content_key: SecretBytes) -> bytes:
    curve = _CURVES[key.curve.name]
    ephemeral = ec.generate_private_key(curve.curve)
    wrapping = _wrapping_key(ephemeral, key, curve)
    point = ephemeral.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    originator = der.encode(_CONTEXT_1, _EC_PUBLIC_KEY, der.encode(der.BIT_STRING, b"\0", point))
    wrapped = der.encode(der.OCTET_STRING, aes_key_wrap(wrapping.view(), content_key.view()))
    return der.encode(
        _CONTEXT_1,
        der.integer(3),
        der.encode(_CONTEXT_0, originator),
        curve.algorithm,
        der.encode(der.SEQUENCE, der.encode(der.SEQUENCE, name, wrapped)),
    )


def _wrapping_key(
    own: ec.EllipticCurvePrivateKey, other: ec.EllipticCurvePublicKey, curve: _Curve
) -> SecretBytes:
    """Return the key that wraps the content's (RFC 5753 section 7.2, ECC-CMS-SharedInfo; SEC 1 3.6.1)."""
    shared_info = der.encode(
        der.SEQUENCE,
        _AES256_WRAP,
        der.encode(_CONTEXT_2, der.encode(der.OCTET_STRING, (256).to_bytes(4, "big"))),
    )
    agreed = SecretBytes.taking(own.exchange(ec.ECDH(), other))
    return SecretBytes.taking(X963KDF(curve.hashed(), 32, shared_info).derive(agreed.view()))


# --- opening ---


def open_envelope(
    envelope: bytes, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, certificate: bytes
) -> SecretBytes:
    """Return the private key (PKCS#8, DER) in an envelope.

    Args:
        envelope: DER, as ``seal`` makes it.
        key: the recipient's.
        certificate: the recipient's (DER): the envelope has to name it.

    Raises:
        MalformedRequest: it is no such envelope, it is for somebody else, or it was changed on its way.
    """
    if len(envelope) > LONGEST:
        raise MalformedRequest(f"an envelope has at most {LONGEST} octets")
    info, nonce, sealed = _parts(envelope)
    try:
        name = recipient_of(certificate).name
    except PolicyRefused as refused:
        raise MalformedRequest(str(refused)) from refused
    if isinstance(key, rsa.RSAPrivateKey):
        content_key = _received(info, key, name)
    else:
        content_key = _unwrapped(info, key, name)
    try:
        return SecretBytes.taking(AESGCM(content_key.view()).decrypt(nonce, sealed, None))
    except InvalidTag:
        raise MalformedRequest("the envelope was changed on its way") from None


def _fields(octets: bytes, element: der.Element, tags: tuple[int, ...]) -> list[der.Element]:
    found = der.children(octets, *element[2:])
    if tuple(one[0] for one in found) != tags:
        raise MalformedRequest("this is no envelope of ours")
    return found


def _whole(octets: bytes, element: der.Element) -> bytes:
    return octets[element[1] : element[3]]


def _contents(octets: bytes, element: der.Element) -> bytes:
    return octets[element[2] : element[3]]


def _require(octets: bytes, element: der.Element, expected: bytes, what: str) -> None:
    if _whole(octets, element) != expected:
        raise MalformedRequest(f"the envelope's {what} is another than expected")


def _parts(envelope: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the one RecipientInfo (DER), the nonce, and the content with its authentication tag."""
    outer = der.only(envelope, der.SEQUENCE)
    kind, wrapped = _fields(envelope, outer, (der.OID, _CONTEXT_0))
    _require(envelope, kind, _AUTH_ENVELOPED_DATA, "type")
    (body,) = _fields(envelope, wrapped, (der.SEQUENCE,))
    version, infos, content, mac = _fields(
        envelope, body, (der.INTEGER, der.SET, der.SEQUENCE, der.OCTET_STRING)
    )
    _require(envelope, version, der.integer(0), "version")
    found = der.children(envelope, *infos[2:])
    if len(found) != 1:
        raise MalformedRequest("the envelope has not one recipient")
    kind, algorithm, sealed = _fields(envelope, content, (der.OID, der.SEQUENCE, _PRIMITIVE_0))
    _require(envelope, kind, _DATA, "content type")
    cipher, parameters = _fields(envelope, algorithm, (der.OID, der.SEQUENCE))
    _require(envelope, cipher, _AES256_GCM, "cipher")
    nonce, size = _fields(envelope, parameters, (der.OCTET_STRING, der.INTEGER))
    _require(envelope, size, der.integer(_TAG_SIZE), "tag size")
    tag = _contents(envelope, mac)
    if len(_contents(envelope, nonce)) != NONCE_SIZE or len(tag) != _TAG_SIZE:
        raise MalformedRequest("the envelope's nonce or tag is of another size")
    return _whole(envelope, found[0]), _contents(envelope, nonce), _contents(envelope, sealed) + tag


def _received(info: bytes, key: rsa.RSAPrivateKey, name: bytes) -> SecretBytes:
    fields = (der.INTEGER, der.SEQUENCE, der.SEQUENCE, der.OCTET_STRING)
    version, named, algorithm, encrypted = _fields(info, der.only(info, der.SEQUENCE), fields)
    _require(info, version, der.integer(0), "recipient's version")
    _require(info, named, name, "recipient")
    if _whole(info, algorithm) not in _OAEPS:
        raise MalformedRequest("the envelope's key transport is another than expected")
    try:
        return _content_key(SecretBytes.taking(key.decrypt(_contents(info, encrypted), _PADDING)))
    except ValueError:
        raise MalformedRequest("the envelope does not open with this key") from None


def _unwrapped(info: bytes, key: ec.EllipticCurvePrivateKey, name: bytes) -> SecretBytes:
    curve = _CURVES.get(key.curve.name)
    if curve is None:
        raise MalformedRequest(f"envelopes are not for keys on {key.curve.name}")
    fields = (der.INTEGER, _CONTEXT_0, der.SEQUENCE, der.SEQUENCE)
    version, originator, algorithm, keys = _fields(info, der.only(info, _CONTEXT_1), fields)
    _require(info, version, der.integer(3), "recipient's version")
    _require(info, algorithm, curve.algorithm, "key agreement")
    (one,) = _fields(info, originator, (_CONTEXT_1,))
    kind, point = _fields(info, one, (der.SEQUENCE, der.BIT_STRING))
    _require(info, kind, _EC_PUBLIC_KEY, "ephemeral key")
    (single,) = _fields(info, keys, (der.SEQUENCE,))
    named, wrapped = _fields(info, single, (der.SEQUENCE, der.OCTET_STRING))
    _require(info, named, name, "recipient")
    try:
        octets = _contents(info, point)
        if octets[:2] != b"\0\x04":  # no unused bits, and an uncompressed point
            raise ValueError("not an uncompressed point")
        other = ec.EllipticCurvePublicKey.from_encoded_point(curve.curve, octets[1:])
        wrapping = _wrapping_key(key, other, curve)
        return _content_key(SecretBytes.taking(aes_key_unwrap(wrapping.view(), _contents(info, wrapped))))
    except (ValueError, InvalidUnwrap):
        raise MalformedRequest("the envelope does not open with this key") from None


def _content_key(found: SecretBytes) -> SecretBytes:
    if len(found) != 32:
        raise ValueError("not a key of AES-256")
    return found
