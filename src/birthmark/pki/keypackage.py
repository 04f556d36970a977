"""Private keys in the envelopes of EST (RFC 7030 section 4.4.2): signed, then enveloped.

    ContentInfo              id-envelopedData (RFC 5652 section 6.1)
      recipientInfos         one: ``envelope.recipient_info``
      content                id-signedData under AES-256-CBC (RFC 3565): the DER of
        SignedData             RFC 5652 section 5.1, by whoever made the key, with that one's certificates
          content              id-ct-KP-aKeyPackage: AsymmetricKeyPackage (RFC 5958 section 2), one key

CBC says nothing of whether the octets are what was sealed; the signature within does, and says by whom.

The key is copied once, into octets that vanish; what else is put together here is no secret.  Who may have a
key, and for whom it is sealed, is left to others.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CBC

from birthmark.errors import MalformedRequest
from birthmark.pki import der
from birthmark.pki.algorithms import ALGORITHMS, SHA2, recognise
from birthmark.pki.certificates import Certificate
from birthmark.pki.envelope import Recipient, recipient_info
from birthmark.secret import SecretBytes, Vanishing

__all__ = ["AES256_CBC", "AES256_WRAP", "PackageSigner", "package_signer", "seal_package"]

AES256_CBC = der.oid("2.16.840.1.101.3.4.1.42")
"""What a package is encrypted with."""
AES256_WRAP = der.oid("2.16.840.1.101.3.4.1.45")
"""What the key of that is wrapped with, for an EC key."""
_ENVELOPED_DATA = der.oid("1.2.840.113549.1.7.3")
_SIGNED_DATA = der.oid("1.2.840.113549.1.7.2")
_KEY_PACKAGE = der.oid("2.16.840.1.101.2.1.2.78.5")
"""id-ct-KP-aKeyPackage (RFC 5958 appendix A)."""
_CONTENT_TYPE = der.oid("1.2.840.113549.1.9.3")
_MESSAGE_DIGEST = der.oid("1.2.840.113549.1.9.4")
_CONTEXT_0, _PRIMITIVE_0 = 0xA0, 0x80
_BLOCK = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageSigner:
    """Who signs key packages; ``package_signer`` makes one."""

    certificates: tuple[bytes, ...] = field(repr=False)
    """Its own (DER), and those above it."""
    name: bytes = field(repr=False)
    """IssuerAndSerialNumber (DER)."""
    hash_name: str
    algorithm: bytes = field(repr=False)
    """AlgorithmIdentifier of its signatures (DER)."""
    sign: Callable[[bytes], bytes] = field(repr=False)


def package_signer(certificates: tuple[bytes, ...], sign: Callable[[bytes], bytes]) -> PackageSigner:
    """Return who signs key packages.

    Args:
        certificates: its own (DER) first, then those above it.
        sign: makes a signature of its key, with the key's own hash (``algorithms.signature_by``).

    Raises:
        MalformedRequest: the certificate cannot be read, or its key is of a kind that signs no package: one
            of an Edwards curve.
    """
    own = Certificate.from_der(certificates[0])
    kind = recognise(own.subject_public_key_info)
    row = None if kind is None else ALGORITHMS[kind]
    if row is None or row.hash_algorithm is None:
        raise MalformedRequest(
            "key packages are signed with ecdsa or rsa, and the service's key is of neither kind"
        )
    return PackageSigner(
        certificates=certificates,
        name=der.encode(der.SEQUENCE, own.issuer_name, der.integer(own.serial_number)),
        hash_name=row.hash_algorithm.name,
        algorithm=row.signature_algorithm,
        sign=sign,
    )


def seal_package(
    signer: PackageSigner, private_key: SecretBytes, recipient: Recipient, random: Callable[[int], bytes]
) -> bytes:
    """Return a private key, signed and enveloped (DER); with its first argument bound it is a ``Sealer``.

    Args:
        signer: whoever made the key.
        private_key: PKCS#8 (DER), which is an OneAsymmetricKey of version 1.
        recipient: who opens it.
        random: returns as many random octets, for the initialization vector.
    """
    content_key = SecretBytes.taking(AESGCM.generate_key(256))
    vector = random(_BLOCK)
    with memoryview(_signed(signer, private_key)) as padded:
        encryptor = Cipher(AES256(content_key.view()), CBC(vector)).encryptor()
        encrypted = encryptor.update(padded) + encryptor.finalize()
    algorithm = der.encode(der.SEQUENCE, AES256_CBC, der.encode(der.OCTET_STRING, vector))
    info = recipient_info(recipient, content_key)
    # Section 6.1: 0 if all recipients are named as of version 0, else 2; an agreement's version is 3.
    body = der.encode(
        der.SEQUENCE,
        der.integer(0 if info[0] == der.SEQUENCE else 2),
        der.encode(der.SET, info),
        der.encode(der.SEQUENCE, _SIGNED_DATA, algorithm, der.encode(_PRIMITIVE_0, encrypted)),
    )
    return der.encode(der.SEQUENCE, _ENVELOPED_DATA, der.encode(_CONTEXT_0, body))


def _signed(signer: PackageSigner, private_key: SecretBytes) -> Vanishing:
    """Return SignedData (DER) over a package of one key, padded for the cipher (RFC 5652 section 6.3)."""
    size = len(private_key)
    package = _header(der.SEQUENCE, size)  # AsymmetricKeyPackage ::= SEQUENCE OF OneAsymmetricKey
    digest = hashlib.new(signer.hash_name, package)
    digest.update(private_key.view())
    octets = _header(der.OCTET_STRING, len(package) + size) + package
    explicit = _header(_CONTEXT_0, len(octets) + size) + octets
    algorithm = der.encode(der.SEQUENCE, SHA2[signer.hash_name])
    # Version 3, because the content is not id-data (section 5.1).
    before = b"".join(
        (
            der.integer(3),
            der.encode(der.SET, algorithm),
            _header(der.SEQUENCE, len(_KEY_PACKAGE) + len(explicit) + size) + _KEY_PACKAGE + explicit,
        )
    )
    after = der.encode(_CONTEXT_0, *sorted(signer.certificates)) + der.encode(
        der.SET, _signer_info(signer, algorithm, digest.digest())
    )
    before = _header(der.SEQUENCE, len(before) + size + len(after)) + before
    length = len(before) + size + len(after)
    missing = _BLOCK - length % _BLOCK
    padded = Vanishing(length + missing)
    with memoryview(padded) as place:
        place[: len(before)] = before
        place[len(before) : len(before) + size] = private_key.view()
        place[len(before) + size : length] = after
        place[length:] = bytes((missing,)) * missing
    return padded


def _signer_info(signer: PackageSigner, digest_algorithm: bytes, digest: bytes) -> bytes:
    attributes = sorted(
        (
            der.attribute(_CONTENT_TYPE, _KEY_PACKAGE),
            der.attribute(_MESSAGE_DIGEST, der.encode(der.OCTET_STRING, digest)),
        )
    )
    # What is signed is the SET OF itself, with its own tag (section 5.4).
    signature = signer.sign(der.encode(der.SET, *attributes))
    return der.encode(
        der.SEQUENCE,
        der.integer(1),
        signer.name,
        digest_algorithm,
        der.encode(_CONTEXT_0, *attributes),
        signer.algorithm,
        der.encode(der.OCTET_STRING, signature),
    )


def _header(tag: int, size: int) -> bytes:
    """Return tag and length of an element whose contents come from elsewhere."""
    return der.encode(tag, bytes(size))[:-size]
