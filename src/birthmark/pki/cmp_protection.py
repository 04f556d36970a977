"""What makes a message one's own: a signature, or a MAC under a shared secret (RFC 9810 section 5.1.3).

    signature   RFC 9481 section 3, see ``cmp_signatures``
    PBM         password-based MAC, RFC 4211 section 4.4: what OpenSSL 3.0 does with ``-secret``
    PBMAC1      RFC 8018 section 7.1 with PBKDF2 and HMAC, RFC 9481 section 6.1.2

``verify_signature`` and ``verify_mac`` check one, ``protect`` makes one.  An answer has the kind of
protection that the request had (RFC 9483 section 3.2), and under a secret the algorithms, too, with a salt of
its own.

How often a secret is hashed is what the sender says, before it has shown that it knows the secret: the bounds
here keep that below a tenth of a second.  The secret is looked up, and how often one may try is limited, by
others.
"""

import hashlib
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from birthmark.errors import MalformedRequest, PolicyRefused
from birthmark.pki import cmp_der, der
from birthmark.pki.algorithms import ALGORITHMS
from birthmark.pki.cmp import BodyKind, PKIHeader, PKIMessage, assemble, encode_header, protected_part
from birthmark.pki.cmp_signatures import HASHES, is_signature_algorithm, verify_named
from birthmark.pki.keys import KeyAlgorithm
from birthmark.secret import SecretBytes

__all__ = [
    "ITERATIONS",
    "LEAST_PBKDF2_ITERATIONS",
    "SALT_SIZE",
    "MACAlgorithm",
    "MACProtector",
    "ProtectionKind",
    "SignatureProtector",
    "encode_mac_algorithm",
    "protect",
    "protection_kind",
    "read_mac_algorithm",
    "verify_mac",
    "verify_signature",
]

ITERATIONS = range(100, 100_001)
"""How often a secret may be hashed; RFC 4211 section 4.4 has at least 100, OpenSSL at most 100 000."""
LEAST_PBKDF2_ITERATIONS = 1000
"""RFC 8018 section 4.2."""
SALT_SIZE = 16
"""Octets of a salt that we make; those of others have 8 to 64 (RFC 4211 section 4.4: at least 8)."""
_SALTS = range(8, 65)
_KEYS = range(16, 65)
"""Octets of a key that PBKDF2 derives."""

_PBM = der.oid("1.2.840.113533.7.66.13")
_PBMAC1 = der.oid("1.2.840.113549.1.5.14")
_PBKDF2 = der.oid("1.2.840.113549.1.5.12")
_HASH_NAMES = {identifier: hashed().name for identifier, hashed in HASHES.items()}
_HMAC_SHA2 = {
    der.oid("1.2.840.113549.2.9"): "sha256",
    der.oid("1.2.840.113549.2.10"): "sha384",
    der.oid("1.2.840.113549.2.11"): "sha512",
}
_HMACS = {
    **_HMAC_SHA2,
    # HMAC-SHA1 is what OpenSSL 3.0 takes unless told otherwise; as a MAC it is not broken.
    der.oid("1.3.6.1.5.5.8.1.2"): "sha1",
    der.oid("1.2.840.113549.2.7"): "sha1",
}


class ProtectionKind(StrEnum):
    """The kinds of protection."""

    SIGNATURE = "signature"
    PBM = "pbm"
    PBMAC1 = "pbmac1"


@dataclass(frozen=True, slots=True, kw_only=True)
class MACAlgorithm:
    """How a MAC follows from a secret."""

    kind: ProtectionKind
    """PBM or PBMAC1."""
    salt: bytes
    iterations: int
    hashed: bytes
    """OBJECT IDENTIFIER (DER): of the one-way function (PBM), or of PBKDF2's HMAC (PBMAC1)."""
    mac: bytes
    """OBJECT IDENTIFIER (DER) of the HMAC."""
    key_size: int | None
    """Octets that PBKDF2 derives; None for PBM."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignatureProtector:
    """Who signs our messages."""

    algorithm: KeyAlgorithm
    key_identifier: bytes
    """The subjectKeyIdentifier of its certificate, for senderKID (RFC 9483 section 3.1)."""
    sign: Callable[[bytes], bytes] = field(repr=False)
    """As ``ports.KeyStore.sign`` answers: DER Ecdsa-Sig-Value, RSASSA-PKCS1-v1_5 with SHA-256, or EdDSA."""
    certificates: tuple[bytes, ...] = field(repr=False)
    """Its certificate (DER) and those above it, for extraCerts: its own first (section 3.3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MACProtector:
    """Whose secret our message is under."""

    algorithm: MACAlgorithm
    reference: bytes
    """What names the secret: senderKID (RFC 9483 section 3.1)."""
    secret: SecretBytes

    @classmethod
    def answering(cls, asked: PKIMessage, secret: SecretBytes, salt: bytes) -> "MACProtector":
        """Return what protects the answer to a message, of which ``verify_mac`` has thought well.

        Args:
            asked: the message.
            secret: the one it was protected with.
            salt: ``SALT_SIZE`` random octets.

        Raises:
            MalformedRequest: the message is not under a secret.
            PolicyRefused: as ``read_mac_algorithm``.
        """
        algorithm = read_mac_algorithm(asked.header.protection_alg or b"")
        return cls(
            algorithm=replace(algorithm, salt=salt),
            reference=asked.header.sender_kid or b"",
            secret=secret,
        )


def protection_kind(message: PKIMessage) -> ProtectionKind:
    """Return how a message says that it is protected.

    Raises:
        PolicyRefused: it is not protected at all, or only by half ("message-protection"); or in a way that is
            none of ours ("protection-algorithm").
    """
    if message.header.protection_alg is None or message.protection is None:
        raise PolicyRefused("message-protection", "the message is not protected")
    if is_signature_algorithm(message.header.protection_alg):
        return ProtectionKind.SIGNATURE
    identifier = _identifier(message.header.protection_alg)
    if identifier not in {_PBM, _PBMAC1}:
        raise PolicyRefused(
            "protection-algorithm",
            f"protection algorithm {message.header.protection_alg.hex()[:80]} is none of ours",
        )
    return ProtectionKind.PBM if identifier == _PBM else ProtectionKind.PBMAC1


def _identifier(algorithm: bytes) -> bytes:
    return cmp_der.identifier_and_value(algorithm, der.only(algorithm, der.SEQUENCE), "algorithm")[0]


# --- verifying ---


def verify_signature(message: PKIMessage, subject_public_key_info: bytes) -> None:
    """Check that a key signed a message.

    Args:
        message: the message.
        subject_public_key_info: the key (DER); that it may, is for ``cmp_checks`` and the use cases.

    Raises:
        PolicyRefused: the message is not protected by a signature ("message-protection", "protection-kind",
            "protection-algorithm"), by one of another kind of key ("request-signature"), or by another key
            ("message-protection").
    """
    if protection_kind(message) is not ProtectionKind.SIGNATURE:
        raise PolicyRefused("protection-kind", "the message is under a secret, and a signature is expected")
    verify_named(
        subject_public_key_info,
        message.header.protection_alg or b"",
        message.protection or b"",
        message.protected_part,
        rule="message-protection",
    )


def verify_mac(message: PKIMessage, secret: SecretBytes) -> None:
    """Check that a message is under a secret.

    Raises:
        PolicyRefused: it is not protected by a MAC ("message-protection", "protection-kind",
            "protection-algorithm"), or by one under another secret ("message-protection").
        MalformedRequest: the parameters of the MAC cannot be read.
    """
    if protection_kind(message) is ProtectionKind.SIGNATURE:
        raise PolicyRefused("protection-kind", "the message is signed, and one under a secret is expected")
    algorithm = read_mac_algorithm(message.header.protection_alg or b"")
    expected = _mac(algorithm, secret, message.protected_part)
    if not hmac.compare_digest(expected, message.protection or b""):
        raise PolicyRefused(
            "message-protection", "the message is not protected with the secret of its sender"
        )


def _mac(algorithm: MACAlgorithm, secret: SecretBytes, message: bytes) -> bytes:
    """Return the MAC of a message (RFC 4211 section 4.4, RFC 8018 section 7.1.1)."""
    if algorithm.kind is ProtectionKind.PBM:
        base = _base_key(algorithm, secret)
    else:
        name, size = _HMAC_SHA2[algorithm.hashed], algorithm.key_size
        derived = hashlib.pbkdf2_hmac(name, secret.view(), algorithm.salt, algorithm.iterations, size)
        base = SecretBytes.taking(derived)
    with base:
        return hmac.digest(base.view(), message, _HMACS[algorithm.mac])


def _base_key(algorithm: MACAlgorithm, secret: SecretBytes) -> SecretBytes:
    """Hash the secret and the salt once, and the result so often that it is ``iterations`` times in all."""
    name = _HASH_NAMES[algorithm.hashed]
    first = hashlib.new(name, secret.view())
    first.update(algorithm.salt)
    key = first.digest()
    hashed = {"sha256": hashlib.sha256, "sha384": hashlib.sha384, "sha512": hashlib.sha512}[name]
    for _ in range(algorithm.iterations - 1):
        key = hashed(key).digest()
    return SecretBytes.taking(key)


# --- the parameters of a MAC ---


def read_mac_algorithm(identifier: bytes) -> MACAlgorithm:
    """Return what an AlgorithmIdentifier (DER) of PBM or PBMAC1 says.

    Raises:
        MalformedRequest: it is none of them, or its parameters cannot be read.
        PolicyRefused: with algorithms that are none of ours, or hashing more or less often than is allowed
            ("protection-algorithm").
    """
    element = der.only(identifier, der.SEQUENCE)
    kind, parameters = cmp_der.identifier_and_value(identifier, element, "protectionAlg")
    if kind not in {_PBM, _PBMAC1} or parameters is None:
        raise MalformedRequest("protectionAlg: not a mac under a secret")
    read = _pbm if kind == _PBM else _pbmac1
    algorithm = read(identifier, cmp_der.fields(identifier, parameters, "protectionAlg"))
    if len(algorithm.salt) not in _SALTS:
        raise PolicyRefused("protection-algorithm", f"a salt has 8 to 64 octets, not {len(algorithm.salt)}")
    least = ITERATIONS[0] if algorithm.kind is ProtectionKind.PBM else LEAST_PBKDF2_ITERATIONS
    if not least <= algorithm.iterations <= ITERATIONS[-1]:
        raise PolicyRefused(
            "protection-algorithm",
            f"a secret is hashed {least} to {ITERATIONS[-1]} times, not {algorithm.iterations} times",
        )
    return algorithm


def _pbm(octets: bytes, found: Sequence[der.Element]) -> MACAlgorithm:
    """PBMParameter ::= SEQUENCE { salt, owf, iterationCount, mac } (RFC 4211 section 4.4)."""
    if len(found) != 4:
        raise MalformedRequest("PBMParameter: not salt, owf, iterationCount and mac")
    salt, owf, iterations, mac = found
    return MACAlgorithm(
        kind=ProtectionKind.PBM,
        salt=cmp_der.octet_string(octets, salt, "salt", _SALTS[-1]),
        iterations=cmp_der.number(octets, iterations, "iterationCount"),
        hashed=_one_of(octets, owf, _HASH_NAMES, "one-way function"),
        mac=_one_of(octets, mac, _HMACS, "mac"),
        key_size=None,
    )


def _pbmac1(octets: bytes, found: Sequence[der.Element]) -> MACAlgorithm:
    """PBMAC1-params ::= SEQUENCE { keyDerivationFunc, messageAuthScheme } (RFC 8018 appendix A.5)."""
    if len(found) != 2:
        raise MalformedRequest("PBMAC1-params: not keyDerivationFunc and messageAuthScheme")
    function, parameters = cmp_der.identifier_and_value(octets, found[0], "keyDerivationFunc")
    if function != _PBKDF2 or parameters is None:
        raise PolicyRefused("protection-algorithm", "keyDerivationFunc is not PBKDF2")
    # PBKDF2-params: a salt, how often, keyLength OPTIONAL, prf DEFAULT hmacWithSHA1 (appendix A.2).
    inner = cmp_der.fields(octets, parameters, "PBKDF2-params")
    if [one[0] for one in inner] != [der.OCTET_STRING, der.INTEGER, der.INTEGER, der.SEQUENCE]:
        raise PolicyRefused(
            "protection-algorithm", "PBKDF2 has to say salt, iterationCount, keyLength and a prf with SHA-2"
        )
    salt, iterations, size, prf = inner
    return MACAlgorithm(
        kind=ProtectionKind.PBMAC1,
        salt=cmp_der.octet_string(octets, salt, "salt", _SALTS[-1]),
        iterations=cmp_der.number(octets, iterations, "iterationCount"),
        hashed=_one_of(octets, prf, _HMAC_SHA2, "prf"),
        mac=_one_of(octets, found[1], _HMAC_SHA2, "mac"),
        key_size=cmp_der.named_number(octets, size, "keyLength", _KEYS[0], _KEYS[-1]),
    )


def _one_of(octets: bytes, element: der.Element, known: dict[bytes, str], what: str) -> bytes:
    """Return the identifier of an algorithm whose parameters are NULL or absent."""
    identifier, parameters = cmp_der.identifier_and_value(octets, element, what)
    null = parameters is None or cmp_der.whole(octets, parameters) == cmp_der.NULL
    if identifier not in known or not null:
        raise PolicyRefused("protection-algorithm", f"the {what} {identifier.hex()[:80]} is none of ours")
    return identifier


def encode_mac_algorithm(algorithm: MACAlgorithm) -> bytes:
    """Return the AlgorithmIdentifier (DER) of a MAC."""
    salt = der.encode(der.OCTET_STRING, algorithm.salt)
    iterations = der.integer(algorithm.iterations)
    hashed = der.encode(der.SEQUENCE, algorithm.hashed, cmp_der.NULL)
    mac = der.encode(der.SEQUENCE, algorithm.mac, cmp_der.NULL)
    if algorithm.key_size is None:
        parameters = der.encode(der.SEQUENCE, salt, hashed, iterations, mac)
        return der.encode(der.SEQUENCE, _PBM, parameters)
    derived = der.encode(der.SEQUENCE, salt, iterations, der.integer(algorithm.key_size), hashed)
    function = der.encode(der.SEQUENCE, _PBKDF2, derived)
    return der.encode(der.SEQUENCE, _PBMAC1, der.encode(der.SEQUENCE, function, mac))


# --- making ---


def protect(
    header: PKIHeader,
    kind: BodyKind,
    body: bytes,
    by: SignatureProtector | MACProtector,
    extra_certs: Sequence[bytes] = (),
) -> bytes:
    """Return a protected message (DER).

    Args:
        header: without protectionAlg and senderKID, which are the protector's.
        kind: of the body.
        body: DER of the type that ``kind`` has.
        by: who protects it.
        extra_certs: certificates (DER) to go with it, behind the protector's own.
    """
    if isinstance(by, SignatureProtector):
        algorithm, name = ALGORITHMS[by.algorithm].signature_algorithm, by.key_identifier
    else:
        algorithm, name = encode_mac_algorithm(by.algorithm), by.reference
    part = protected_part(
        encode_header(replace(header, protection_alg=algorithm, sender_kid=name)), kind, body
    )
    if isinstance(by, SignatureProtector):
        own = (*by.certificates, *(one for one in extra_certs if one not in by.certificates))
        return assemble(part, by.sign(part), own)
    return assemble(part, _mac(by.algorithm, by.secret, part), extra_certs)
