"""What a key algorithm is, in DER.

One row an algorithm: how a certificate names its signature, how a SubjectPublicKeyInfo of it begins and ends
and how long it is.  A public key is recognised by those exact octets, which leaves one encoding for one key:
named curve and uncompressed point, or an RSA modulus of the full size with the exponent 65537.  A new
algorithm is a row here and a member of ``KeyAlgorithm``.

``signature_by`` and ``verify`` are the only places that know how an open key of each kind signs, and
``maker`` the only one that knows what makes one: others call it, since nothing is random here.  The
throwaway keys let ``cryptography`` build something whose signature nobody will use: the private key is the
number one, or made of the two largest primes of their size, so that nobody takes it for a secret.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import sha1

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from birthmark.errors import MalformedRequest
from birthmark.pki import der
from birthmark.pki.keys import KeyAlgorithm

__all__ = [
    "ALGORITHMS",
    "BROKEN_HASHES",
    "SHA2",
    "AlgorithmEncoding",
    "PrivateKey",
    "key_identifier",
    "maker",
    "recognise",
    "signature_by",
    "throwaway_key",
    "verify",
]

BROKEN_HASHES = frozenset({"md5", "sha1"})
"""Hashes with which nobody's signature is believed: others' certificates, CRLs and answers may have them."""
SHA2: Mapping[str, bytes] = {
    "sha256": der.oid("2.16.840.1.101.3.4.2.1"),
    "sha384": der.oid("2.16.840.1.101.3.4.2.2"),
    "sha512": der.oid("2.16.840.1.101.3.4.2.3"),
}
"""OBJECT IDENTIFIERs (DER; RFC 5754 section 2)."""
PrivateKey = (
    ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey | rsa.RSAPrivateKey
)
"""An open private key of one of our algorithms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlgorithmEncoding:
    """The octets of one key algorithm."""

    signature_algorithm: bytes
    """AlgorithmIdentifier of a signature (DER; RFC 5758 section 3.2, RFC 8410 section 3, RFC 4055)."""
    spki_prefix: bytes
    """SubjectPublicKeyInfo (DER) up to the key itself (RFC 5480 section 2, RFC 8410 section 4, RFC 3279)."""
    key_size: int
    """Octets of the key: the contents of subjectPublicKey after its unused-bits octet."""
    key_prefix: bytes
    """How every key begins: the octet of an uncompressed point, or RSAPublicKey up to the modulus."""
    key_suffix: bytes
    """How every key ends: the exponent of an RSAPublicKey."""
    signature_size: int
    """The most octets a signature can have: DER Ecdsa-Sig-Value, 64 or 114 octets of EdDSA, the modulus's."""
    hash_algorithm: hashes.HashAlgorithm | None
    """What the signature hashes with; None where the algorithm hashes for itself."""
    strength: int
    """Bits of security, NIST SP 800-57 part 1 revision 5, table 2: to compare an issuer with its subject."""


def _ec(name: str, spki_prefix: str, size: int, digest: hashes.HashAlgorithm) -> AlgorithmEncoding:
    integer = size + 2 + (0 if size == _P521_OCTETS else 1)  # a zero octet before a leading one bit
    return AlgorithmEncoding(
        signature_algorithm=bytes.fromhex("300a06082a8648ce3d0403" + name),
        spki_prefix=bytes.fromhex(spki_prefix),
        key_size=2 * size + 1,
        key_prefix=b"\x04",
        key_suffix=b"",
        signature_size=2 * integer + (2 if 2 * integer < 0x80 else 3),
        hash_algorithm=digest,
        strength={32: 128, 48: 192, _P521_OCTETS: 256}[size],
    )


def _edwards(arc: str, key_size: int, signature_size: int, strength: int) -> AlgorithmEncoding:
    identifier = bytes.fromhex("300506032b65" + arc)
    return AlgorithmEncoding(
        signature_algorithm=identifier,
        spki_prefix=bytes((0x30, 10 + key_size)) + identifier + bytes((0x03, key_size + 1, 0)),
        key_size=key_size,
        key_prefix=b"",
        key_suffix=b"",
        signature_size=signature_size,
        hash_algorithm=None,
        strength=strength,
    )


def _rsa(bits: int, strength: int) -> AlgorithmEncoding:
    """RSAPublicKey ::= SEQUENCE { modulus, publicExponent }: with its top bit set, of one length only."""
    size = bits // 8
    exponent = bytes.fromhex("0203010001")
    key_prefix = b"\x30\x82" + (size + 10).to_bytes(2) + b"\x02\x82" + (size + 1).to_bytes(2) + b"\0"
    algorithm = bytes.fromhex("300d06092a864886f70d0101010500")
    bit_string = b"\x03\x82" + (size + 15).to_bytes(2) + b"\0"
    return AlgorithmEncoding(
        signature_algorithm=bytes.fromhex("300d06092a864886f70d01010b0500"),
        spki_prefix=b"\x30\x82" + (size + 34).to_bytes(2) + algorithm + bit_string,
        key_size=size + 14,
        key_prefix=key_prefix,
        key_suffix=exponent,
        signature_size=size,
        hash_algorithm=hashes.SHA256(),
        strength=strength,
    )


_P521_OCTETS = 66

ALGORITHMS: Mapping[KeyAlgorithm, AlgorithmEncoding] = {
    KeyAlgorithm.EC_P256: _ec(
        "02", "3059301306072a8648ce3d020106082a8648ce3d030107034200", 32, hashes.SHA256()
    ),
    KeyAlgorithm.EC_P384: _ec("03", "3076301006072a8648ce3d020106052b81040022036200", 48, hashes.SHA384()),
    KeyAlgorithm.EC_P521: _ec(
        "04", "30819b301006072a8648ce3d020106052b8104002303818600", _P521_OCTETS, hashes.SHA512()
    ),
    KeyAlgorithm.ED25519: _edwards("70", 32, 64, 128),
    KeyAlgorithm.ED448: _edwards("71", 57, 114, 224),
    KeyAlgorithm.RSA_2048: _rsa(2048, 112),
    KeyAlgorithm.RSA_3072: _rsa(3072, 128),
    KeyAlgorithm.RSA_4096: _rsa(4096, 128),
}

_ECDSA = {256: ec.ECDSA(hashes.SHA256()), 384: ec.ECDSA(hashes.SHA384()), 521: ec.ECDSA(hashes.SHA512())}
"""Signature scheme by the size of the curve in bits."""

_BY_SIZE = {
    len(row.spki_prefix) + row.key_size: (algorithm, row.spki_prefix + row.key_prefix, row.key_suffix)
    for algorithm, row in ALGORITHMS.items()
}


def recognise(subject_public_key_info: bytes) -> KeyAlgorithm | None:
    """Return the algorithm of a SubjectPublicKeyInfo (DER), or None if it is in none of our encodings.

    Looks at the encoding alone; whether the point lies on its curve is for whoever loads the key, and whether
    an RSA modulus is a good one for ``csr``.
    """
    found = _BY_SIZE.get(len(subject_public_key_info))
    if found is None:
        return None
    algorithm, prefix, suffix = found
    if not subject_public_key_info.startswith(prefix) or not subject_public_key_info.endswith(suffix):
        return None
    if suffix and not subject_public_key_info[len(prefix)] & 0x80:
        return None  # a modulus with fewer bits, behind a zero octet too many
    return algorithm


def key_identifier(subject_public_key_info: bytes, method: int = 1) -> bytes:
    """Return the key identifier of a key (RFC 5280 section 4.2.1.2).

    Args:
        subject_public_key_info: DER.
        method: 1, the SHA-1 of the key's bits (20 octets), or 2, the bits 0100 and the last 60 of that hash
            (8 octets).

    Raises:
        MalformedRequest: the key is in none of our encodings.
    """
    algorithm = recognise(subject_public_key_info)
    if algorithm is None:
        raise MalformedRequest(
            "the public key is no uncompressed P-256, P-384 or P-521 point, Ed25519, Ed448 or RSA key"
        )
    key = subject_public_key_info[len(ALGORITHMS[algorithm].spki_prefix) :]
    digest = sha1(key, usedforsecurity=False).digest()
    return digest if method == 1 else bytes((0x40 | digest[12] & 0x0F,)) + digest[13:]


def signature_by(key: PrivateKey, message: bytes) -> bytes:
    """Return the signature of an open key, as ``ports.KeyStore.sign`` answers it.

    Raises:
        MalformedRequest: the key is on a curve of another size than ours.
    """
    if isinstance(key, ec.EllipticCurvePrivateKey):
        scheme = _ECDSA.get(key.key_size)
        if scheme is None:
            raise MalformedRequest(f"an elliptic curve of {key.key_size} bits is none of ours")
        return key.sign(message, scheme)
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(message, padding.PKCS1v15(), hashes.SHA256())
    return key.sign(message)


def verify(subject_public_key_info: bytes, signature: bytes, message: bytes) -> None:
    """Check a signature of one of our algorithms, each with its own hash.

    Raises:
        MalformedRequest: the key is in none of our encodings, or no key.
        cryptography.exceptions.InvalidSignature: it did not sign this message.
    """
    algorithm = recognise(subject_public_key_info)
    if algorithm is None:
        raise MalformedRequest("the key is in none of our encodings")
    digest = ALGORITHMS[algorithm].hash_algorithm
    try:
        key = load_der_public_key(subject_public_key_info)
        if isinstance(key, ec.EllipticCurvePublicKey) and digest is not None:
            key.verify(signature, message, ec.ECDSA(digest))
        elif isinstance(key, rsa.RSAPublicKey) and digest is not None:
            key.verify(signature, message, padding.PKCS1v15(), digest)
        elif isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
            key.verify(signature, message)
        else:
            raise MalformedRequest(f"a key of another kind than {algorithm}")
    except (ValueError, UnsupportedAlgorithm) as error:
        raise MalformedRequest(f"no {algorithm} key") from error


def maker(algorithm: KeyAlgorithm) -> Callable[[], PrivateKey]:
    """Return what makes a new key of an algorithm, with OpenSSL's random numbers, whenever it is called.

    An elliptic curve's takes well below a millisecond, an RSA key's a tenth of a second to some seconds.
    """
    match algorithm:
        case KeyAlgorithm.EC_P256:
            return partial(ec.generate_private_key, ec.SECP256R1())
        case KeyAlgorithm.EC_P384:
            return partial(ec.generate_private_key, ec.SECP384R1())
        case KeyAlgorithm.EC_P521:
            return partial(ec.generate_private_key, ec.SECP521R1())
        case KeyAlgorithm.ED25519:
            return ed25519.Ed25519PrivateKey.generate
        case KeyAlgorithm.ED448:
            return ed448.Ed448PrivateKey.generate
        case KeyAlgorithm.RSA_2048 | KeyAlgorithm.RSA_3072 | KeyAlgorithm.RSA_4096:
            return partial(rsa.generate_private_key, 65537, int(algorithm.removeprefix("rsa-")))


@lru_cache(maxsize=len(ALGORITHMS))
def throwaway_key(algorithm: KeyAlgorithm) -> PrivateKey:
    """Return a private key that everybody knows, whose signatures are named as this algorithm's are."""
    match algorithm:
        case KeyAlgorithm.EC_P256:
            return ec.derive_private_key(1, ec.SECP256R1())
        case KeyAlgorithm.EC_P384:
            return ec.derive_private_key(1, ec.SECP384R1())
        case KeyAlgorithm.EC_P521:
            return ec.derive_private_key(1, ec.SECP521R1())
        case KeyAlgorithm.ED25519:
            return ed25519.Ed25519PrivateKey.from_private_bytes((1).to_bytes(32, "big"))
        case KeyAlgorithm.ED448:
            return ed448.Ed448PrivateKey.from_private_bytes((1).to_bytes(57, "big"))
        case KeyAlgorithm.RSA_2048 | KeyAlgorithm.RSA_3072 | KeyAlgorithm.RSA_4096:
            return _throwaway_rsa_key()


def _throwaway_rsa_key() -> rsa.RSAPrivateKey:
    """The two largest primes below 2 to the 1024th; an AlgorithmIdentifier does not say how long a key is."""
    p, q, e = (1 << 1024) - 105, (1 << 1024) - 179, 65537
    d = pow(e, -1, (p - 1) * (q - 1))
    numbers = rsa.RSAPrivateNumbers(
        p=p,
        q=q,
        d=d,
        dmp1=d % (p - 1),
        dmq1=d % (q - 1),
        iqmp=pow(q, -1, p),
        public_numbers=rsa.RSAPublicNumbers(e, p * q),
    )
    return numbers.private_key()
