"""What a TPM 2.0 says of its keys: public areas, attestations, signatures, read and judged.

A key's public area (TPMT_PUBLIC) names what the key may do and that it cannot leave; its Name is a hash over
all of that.  Whoever knows that a TPM holds an object of this Name therefore knows the attributes.  Two
things show it: the object opened a credential made for its Name (``tpm_credential``), or an attestation key
of the same TPM certified it (``check_certified``).

Reading is total and strict: any octets give a value or ``MalformedRequest``, and nothing is left over.

Left to others: whether the endorsement key is a TPM's (``tpm_endorsement``), whether a nonce was ours.

Sources: TPM 2.0 Library part 1 (architecture) sections 16 (names) and 31.4 (certification), part 2
(structures) sections 8.3, 10.12, 11.3 and 12.2; TCG TPM 2.0 Keys for Device Identity and Attestation 1.0
revision 12 section 7.3 (templates).  All integers are big-endian.
"""

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from hashlib import new as new_hash
from typing import TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from birthmark.errors import MalformedRequest, PolicyRefused

__all__ = [
    "HASHES",
    "Algorithm",
    "Attest",
    "Attributes",
    "Curve",
    "Public",
    "Signature",
    "check_certified",
    "check_iak",
    "check_idevid",
    "digest",
]

_T = TypeVar("_T")

GENERATED = 0xFF544347
"""TPM_GENERATED_VALUE: what everything a TPM says of itself begins with (part 2 section 6.2)."""
ATTEST_CERTIFY = 0x8017
"""TPM_ST_ATTEST_CERTIFY (part 2 section 6.9)."""
LONGEST = 2048
"""Octets of a structure that is read at all; that of an RSA-4096 key has 538."""


class Algorithm(IntEnum):
    """TPM_ALG_ID (part 2 section 6.3), as far as they are told apart here."""

    RSA = 0x0001
    SHA256 = 0x000B
    SHA384 = 0x000C
    SHA512 = 0x000D
    NULL = 0x0010
    RSASSA = 0x0014
    RSAES = 0x0015
    ECDSA = 0x0018
    ECDAA = 0x001A
    ECC = 0x0023


class Curve(IntEnum):
    """TPM_ECC_CURVE (part 2 section 6.4)."""

    NIST_P256 = 0x0003
    NIST_P384 = 0x0004
    NIST_P521 = 0x0005


class Attributes(IntFlag):
    """TPMA_OBJECT (part 2 section 8.3), as far as they are looked at here."""

    FIXED_TPM = 1 << 1
    FIXED_PARENT = 1 << 4
    SENSITIVE_DATA_ORIGIN = 1 << 5
    RESTRICTED = 1 << 16
    DECRYPT = 1 << 17
    SIGN = 1 << 18


HASHES: Mapping[int, hashes.HashAlgorithm] = {
    Algorithm.SHA256: hashes.SHA256(),
    Algorithm.SHA384: hashes.SHA384(),
    Algorithm.SHA512: hashes.SHA512(),
}
"""Hash algorithms that a key may have: SHA-1 is not one."""

_CURVES: Mapping[int, ec.EllipticCurve] = {
    Curve.NIST_P256: ec.SECP256R1(),
    Curve.NIST_P384: ec.SECP384R1(),
    Curve.NIST_P521: ec.SECP521R1(),
}
_STAYS = Attributes.FIXED_TPM | Attributes.FIXED_PARENT | Attributes.SENSITIVE_DATA_ORIGIN
_NAMES = {
    Attributes.FIXED_TPM: "fixedTPM",
    Attributes.FIXED_PARENT: "fixedParent",
    Attributes.SENSITIVE_DATA_ORIGIN: "sensitiveDataOrigin",
    Attributes.RESTRICTED: "restricted",
    Attributes.DECRYPT: "decrypt",
    Attributes.SIGN: "sign",
}


def digest(algorithm: int, octets: bytes) -> bytes:
    """Return the hash of octets under one of ``HASHES``."""
    return new_hash(HASHES[algorithm].name, octets).digest()


class _Reader:
    """Octets, read from the front."""

    def __init__(self, what: str, octets: bytes) -> None:
        self._what = what
        self._octets = octets
        self._at = 0
        if len(octets) > LONGEST:
            raise MalformedRequest(f"{what}: {len(octets)} octets are too many, {LONGEST} the most")

    def take(self, count: int) -> bytes:
        taken = self._octets[self._at : self._at + count]
        if len(taken) != count:
            raise MalformedRequest(f"{self._what}: ends where {count} more octets belong")
        self._at += count
        return taken

    def integer(self, octets: int) -> int:
        return int.from_bytes(self.take(octets), "big")

    def sized(self) -> bytes:
        """A TPM2B: two octets of length, and so many."""
        return self.take(self.integer(2))

    def end(self) -> None:
        if self._at != len(self._octets):
            raise MalformedRequest(f"{self._what}: {len(self._octets) - self._at} octets are left over")


@dataclass(frozen=True, slots=True, kw_only=True)
class Public:
    """A key's public area (TPMT_PUBLIC, part 2 section 12.2.4): an RSA key or a point of a NIST curve."""

    octets: bytes = field(repr=False)
    """As it came, which is what the Name is over."""
    name_algorithm: int
    """One of ``HASHES``."""
    attributes: int
    """TPMA_OBJECT, all bits."""
    scheme: int
    """Signature scheme: ``Algorithm.NULL`` if the key has none of its own."""
    scheme_hash: int
    """Its hash algorithm; ``Algorithm.NULL`` for none."""
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey = field(repr=False)

    @property
    def name(self) -> bytes:
        """Return the Name: nameAlg and the hash of the public area (part 1 section 16)."""
        return self.name_algorithm.to_bytes(2, "big") + digest(self.name_algorithm, self.octets)

    @property
    def subject_public_key_info(self) -> bytes:
        """Return the key as certificates have it (DER)."""
        return self.key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    @classmethod
    def decode(cls, octets: bytes) -> "Public":
        """Read a public area.

        Raises:
            MalformedRequest: it is none, or of a kind of key that is not read here.
        """
        reader = _Reader("tpmt_public", octets)
        kind, name_algorithm, attributes = reader.integer(2), reader.integer(2), reader.integer(4)
        if name_algorithm not in HASHES:
            raise MalformedRequest(f"tpmt_public: name algorithm {name_algorithm:04x} is no hash of ours")
        reader.sized()  # authPolicy
        if reader.integer(2) != Algorithm.NULL:
            reader.take(4)  # of a symmetric algorithm: key size and mode
        scheme, scheme_hash = reader.integer(2), int(Algorithm.NULL)
        if scheme not in (Algorithm.NULL, Algorithm.RSAES):
            scheme_hash = reader.integer(2)
        if scheme == Algorithm.ECDAA:
            reader.take(2)
        if kind not in (Algorithm.RSA, Algorithm.ECC):
            raise MalformedRequest(f"tpmt_public: object type {kind:04x} is neither rsa nor ecc")
        key = _rsa_key(reader) if kind == Algorithm.RSA else _point(reader)
        reader.end()
        return cls(
            octets=octets,
            name_algorithm=name_algorithm,
            attributes=attributes,
            scheme=scheme,
            scheme_hash=scheme_hash,
            key=key,
        )


def _rsa_key(reader: _Reader) -> rsa.RSAPublicKey:
    bits, exponent, modulus = reader.integer(2), reader.integer(4) or 65537, reader.sized()
    if bits not in (2048, 3072, 4096) or len(modulus) * 8 != bits or not modulus[0] & 0x80:
        raise MalformedRequest(f"tpmt_public: {len(modulus)} octets are no rsa modulus of {bits} bits")
    return _made(rsa.RSAPublicNumbers(exponent, int.from_bytes(modulus, "big")).public_key)


def _point(reader: _Reader) -> ec.EllipticCurvePublicKey:
    curve = _CURVES.get(code := reader.integer(2))
    if reader.integer(2) != Algorithm.NULL:  # kdf
        reader.take(2)
    x, y = reader.sized(), reader.sized()
    if curve is None:
        raise MalformedRequest(f"tpmt_public: curve {code:04x} is none of P-256, P-384 and P-521")
    numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), curve)
    return _made(numbers.public_key)


def _made(public_key: Callable[[], _T]) -> _T:
    try:
        return public_key()
    except ValueError as wrong:
        raise MalformedRequest(f"tpmt_public: no public key: {wrong}") from wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class Attest:
    """A TPM's statement that it has an object loaded (TPMS_ATTEST, type certify; part 2 section 10.12.12)."""

    octets: bytes = field(repr=False)
    """As it came, which is what the signature is over."""
    extra_data: bytes
    """Qualifying data: what whoever asked gave the TPM to repeat."""
    name: bytes
    """Of the object."""

    @classmethod
    def decode(cls, octets: bytes) -> "Attest":
        """Read an attestation.

        Raises:
            MalformedRequest: it is none of the type certify.
        """
        reader = _Reader("tpms_attest", octets)
        if (magic := reader.integer(4)) != GENERATED:
            raise MalformedRequest(f"tpms_attest: {magic:08x} is not how what a TPM generated begins")
        if (kind := reader.integer(2)) != ATTEST_CERTIFY:
            raise MalformedRequest(f"tpms_attest: type {kind:04x} is not certify, {ATTEST_CERTIFY:04x}")
        reader.sized()  # qualifiedSigner
        extra_data = reader.sized()
        reader.take(17 + 8)  # clockInfo, firmwareVersion
        name = reader.sized()
        reader.sized()  # qualifiedName
        reader.end()
        return cls(octets=octets, extra_data=extra_data, name=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """A signature (TPMT_SIGNATURE, part 2 section 11.3.4): RSASSA or ECDSA."""

    scheme: int
    hash_algorithm: int
    octets: bytes = field(repr=False)
    """As certificates have it: DER Ecdsa-Sig-Value, or the octets of RSASSA-PKCS1-v1_5."""

    @classmethod
    def decode(cls, octets: bytes) -> "Signature":
        """Read a signature.

        Raises:
            MalformedRequest: it is none, or of another scheme.
        """
        reader = _Reader("tpmt_signature", octets)
        scheme, hash_algorithm = reader.integer(2), reader.integer(2)
        if scheme not in (Algorithm.RSASSA, Algorithm.ECDSA) or hash_algorithm not in HASHES:
            raise MalformedRequest(f"tpmt_signature: scheme {scheme:04x} with hash {hash_algorithm:04x}")
        if scheme == Algorithm.RSASSA:
            value = reader.sized()
        else:
            r, s = (int.from_bytes(reader.sized(), "big") for _ in range(2))
            value = utils.encode_dss_signature(r, s)
        reader.end()
        return cls(scheme=scheme, hash_algorithm=hash_algorithm, octets=value)


def check_iak(public: Public) -> None:
    """Check that a key can be an attestation key: it stays where it was made and signs for its TPM only.

    A restricted key signs what the TPM generated, and nothing from outside that looks like it.

    Raises:
        PolicyRefused: it is not (rule ``iak-attributes``).
    """
    _check_attributes("iak-attributes", "attestation key", public, _STAYS | Attributes.SIGN, restricted=True)
    if public.scheme not in (Algorithm.RSASSA, Algorithm.ECDSA) or public.scheme_hash not in HASHES:
        raise PolicyRefused("iak-attributes", f"the attestation key's scheme is {public.scheme:04x}")


def check_idevid(public: Public) -> None:
    """Check that a key can be a device's identity key: it stays where it was made and signs anything.

    Raises:
        PolicyRefused: it is not (rule ``idevid-attributes``).
    """
    _check_attributes("idevid-attributes", "identity key", public, _STAYS | Attributes.SIGN, restricted=False)


def _check_attributes(rule: str, what: str, public: Public, wanted: Attributes, *, restricted: bool) -> None:
    missing = [name for flag, name in _NAMES.items() if wanted & flag and not public.attributes & flag]
    if missing:
        raise PolicyRefused(rule, f"the {what} is not {', '.join(missing)}")
    if public.attributes & Attributes.DECRYPT:
        raise PolicyRefused(rule, f"the {what} may decrypt")
    if bool(public.attributes & Attributes.RESTRICTED) is not restricted:
        raise PolicyRefused(rule, f"the {what} is {'not ' if restricted else ''}restricted")


def check_certified(
    *, iak: Public, certified: Public, attest: Attest, signature: Signature, nonce: bytes
) -> None:
    """Check that an attestation key certified another key of its TPM, for us, now.

    1. The attestation repeats the nonce.
    2. It names the key: the Name is over the whole public area.
    3. The attestation key signed it, under the scheme it is bound to.

    Raises:
        PolicyRefused: one of them does not hold (rule ``tpm-certify``).
    """
    if not hmac.compare_digest(attest.extra_data, nonce):
        raise PolicyRefused("tpm-certify", "the certification is not for this attestation's nonce")
    if not hmac.compare_digest(attest.name, certified.name):
        raise PolicyRefused("tpm-certify", "the certification is of another key than the identity key")
    if (signature.scheme, signature.hash_algorithm) != (iak.scheme, iak.scheme_hash):
        raise PolicyRefused("tpm-certify", "the certification is signed under another scheme than the key's")
    algorithm = HASHES[signature.hash_algorithm]
    try:
        if isinstance(iak.key, rsa.RSAPublicKey):
            iak.key.verify(signature.octets, attest.octets, padding.PKCS1v15(), algorithm)
        else:
            iak.key.verify(signature.octets, attest.octets, ec.ECDSA(algorithm))
    except InvalidSignature as wrong:
        raise PolicyRefused(
            "tpm-certify", "the certification is not signed by the attestation key"
        ) from wrong
