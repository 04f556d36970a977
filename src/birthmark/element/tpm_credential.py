"""MakeCredential: a secret that only one TPM can read, and only while it holds one object.

The secret is encrypted to the endorsement key together with the Name of an attestation key.  TPM2_
ActivateCredential gives it out if both are in the TPM at once; so whoever returns the secret has shown that
the attestation key, with the attributes its Name stands for, lives in the TPM of that endorsement key.

The endorsement key is the one of a certificate: its name algorithm and symmetric cipher follow from its type
as the TCG EK Credential Profile 2.5 (section B, default and high-range templates) fixes them, so nothing that
a station says takes part.

Randomness comes in through ``token``; OpenSSL adds that of the OAEP padding.

Sources: TPM 2.0 Library part 1 sections 11.4.10 (KDFa, KDFe), 24 (credential protection), annexes B.4, B.10.4
and C.6.1, C.7.4.
"""

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from birthmark.element.tpm import HASHES, Algorithm, digest
from birthmark.errors import MalformedRequest, PolicyRefused
from birthmark.secret import SecretBytes

__all__ = ["Credential", "EndorsementKey", "check_endorsement_key", "kdfa", "kdfe", "make_credential"]

EndorsementKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey

_BLOCK = 16
_LABEL = b"IDENTITY\0"

_TEMPLATES: Mapping[tuple[type, int], tuple[Algorithm, int]] = {
    (rsa.RSAPublicKey, 2048): (Algorithm.SHA256, 128),
    (rsa.RSAPublicKey, 3072): (Algorithm.SHA384, 256),
    (ec.EllipticCurvePublicKey, 256): (Algorithm.SHA256, 128),
    (ec.EllipticCurvePublicKey, 384): (Algorithm.SHA384, 256),
    (ec.EllipticCurvePublicKey, 521): (Algorithm.SHA512, 256),
}
"""Name algorithm and bits of AES-CFB by type and size of the key."""
_CURVES = ("secp256r1", "secp384r1", "secp521r1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """What TPM2_ActivateCredential takes."""

    id_object: bytes = field(repr=False)
    """TPM2B_ID_OBJECT, its size in front."""
    encrypted_secret: bytes = field(repr=False)
    """TPM2B_ENCRYPTED_SECRET, its size in front."""


def check_endorsement_key(key: object) -> EndorsementKey:
    """Return a key that is of the type of an endorsement key.

    Raises:
        PolicyRefused: no template of TCG's has such keys (rule ``ek-certificate``).
    """
    if isinstance(key, rsa.RSAPublicKey):
        known = (rsa.RSAPublicKey, key.key_size) in _TEMPLATES
    else:
        known = isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES
    if not known or not isinstance(key, EndorsementKey):
        raise PolicyRefused(
            "ek-certificate", "an endorsement key is rsa of 2048 or 3072 bits, or on P-256, P-384 or P-521"
        )
    return key


def make_credential(
    key: EndorsementKey, name: bytes, secret: SecretBytes, token: Callable[[int], bytes]
) -> Credential:
    """Encrypt a secret to an endorsement key and the Name of an object beside it.

    Args:
        key: from ``check_endorsement_key``.
        name: of the object that has to be loaded.
        secret: at most as long as a hash of the key's name algorithm: 32 octets fit all of them.
        token: so many random octets.

    Raises:
        MalformedRequest: the secret is longer.
    """
    kind = rsa.RSAPublicKey if isinstance(key, rsa.RSAPublicKey) else ec.EllipticCurvePublicKey
    algorithm, bits = _TEMPLATES[kind, key.key_size]
    size = HASHES[algorithm].digest_size
    if len(secret) > size:
        raise MalformedRequest(f"a credential for this key carries at most {size} octets")
    if isinstance(key, rsa.RSAPublicKey):
        seed = token(size)
        mgf = padding.MGF1(HASHES[algorithm])
        encrypted = key.encrypt(seed, padding.OAEP(mgf=mgf, algorithm=HASHES[algorithm], label=_LABEL))
    else:
        seed, encrypted = _agreed(key, algorithm, token)
    storage = kdfa(algorithm, seed, b"STORAGE", name, b"", bits)
    hidden = _cfb(storage, len(secret).to_bytes(2, "big") + secret.reveal())
    integrity = kdfa(algorithm, seed, b"INTEGRITY", b"", b"", 8 * size)
    outer = hmac.digest(integrity, hidden + name, HASHES[algorithm].name)
    return Credential(id_object=_sized(_sized(outer) + hidden), encrypted_secret=_sized(encrypted))


def _agreed(
    key: ec.EllipticCurvePublicKey, algorithm: Algorithm, token: Callable[[int], bytes]
) -> tuple[bytes, bytes]:
    """Return seed and encrypted secret of one-pass Diffie-Hellman (annex C.6.1)."""
    size = (key.key_size + 7) // 8
    # FIPS 186-5 appendix A.2.1: 64 extra bits make what is left of the remainder's bias negligible.
    scalar = int.from_bytes(token(size + 8), "big") % (key.curve.group_order - 1) + 1
    ephemeral = ec.derive_private_key(scalar, key.curve)
    shared = ephemeral.exchange(ec.ECDH(), key)
    point, own = ephemeral.public_key().public_numbers(), key.public_numbers()
    x, y, own_x = (number.to_bytes(size, "big") for number in (point.x, point.y, own.x))
    bits = 8 * HASHES[algorithm].digest_size
    return kdfe(algorithm, shared, b"IDENTITY", x, own_x, bits), _sized(x) + _sized(y)


def kdfa(algorithm: int, key: bytes, label: bytes, context_u: bytes, context_v: bytes, bits: int) -> bytes:
    """Derive so many bits, a multiple of 8, with HMAC (part 1 section 11.4.10.2, SP 800-108)."""
    rest = label + b"\0" + context_u + context_v + bits.to_bytes(4, "big")
    return _counted(algorithm, bits, lambda i: hmac.digest(key, i + rest, HASHES[algorithm].name))


def kdfe(algorithm: int, shared: bytes, label: bytes, party_u: bytes, party_v: bytes, bits: int) -> bytes:
    """Derive so many bits, a multiple of 8, from a shared x coordinate (section 11.4.10.3, SP 800-56A)."""
    rest = shared + label + b"\0" + party_u + party_v
    return _counted(algorithm, bits, lambda i: digest(algorithm, i + rest))


def _counted(algorithm: int, bits: int, block: Callable[[bytes], bytes]) -> bytes:
    count = -(-bits // (8 * HASHES[algorithm].digest_size))
    return b"".join(block(i.to_bytes(4, "big")) for i in range(1, count + 1))[: bits // 8]


def _cfb(key: bytes, clear: bytes) -> bytes:
    """AES in CFB mode with a feedback of 128 bits and an initial value of zero (part 1 section 24.4)."""
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305  # the block cipher under CFB
    hidden, feedback = b"", bytes(_BLOCK)
    for at in range(0, len(clear), _BLOCK):
        block = clear[at : at + _BLOCK]
        stream = encryptor.update(feedback)
        feedback = bytes(a ^ b for a, b in zip(block, stream, strict=False))
        hidden += feedback
    return hidden


def _sized(octets: bytes) -> bytes:
    return len(octets).to_bytes(2, "big") + octets
