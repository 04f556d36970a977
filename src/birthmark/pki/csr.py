"""Certification requests (PKCS #10, RFC 2986): is there a good key in it, and does the asker hold it?

``vet`` is total: any octets give a ``VettedRequest`` or a refusal.  Cheap checks come before the signature,
which costs several times all the others.  The subject and the wished-for extensions are never copied into a
certificate (SPEC C8); the names are shown so that a use case can see whether the request is for the device it
admitted.

Keys that are known to everybody are refused: those of RFC 9500, private keys of the number one, and Edwards
keys of small order, for which anyone can make signatures.  An RSA key must have one of our sizes, the
exponent 65537 and a modulus without the marks of generators that are known to be broken (``rsakeys``).
Further keys may be given by the caller.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from hashlib import sha256

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from birthmark.errors import MalformedRequest, PolicyRefused, TooLarge
from birthmark.pki import der
from birthmark.pki.algorithms import ALGORITHMS, recognise
from birthmark.pki.certificates import from_pem
from birthmark.pki.keys import KeyAlgorithm
from birthmark.pki.names import Attribute, attribute_values
from birthmark.pki.rsakeys import weakness

__all__ = [
    "PUBLICLY_KNOWN",
    "SMALL_ORDER",
    "SMALL_ORDER_448",
    "VettedRequest",
    "device_of",
    "request_der",
    "vet",
    "vet_key",
    "vetted_request",
]

PUBLICLY_KNOWN = frozenset(
    {
        # RFC 9500, testECCP256, testECCP384, testECCP521 and testRSA2048: the private keys are printed there.
        "b2b04340cfaee616ec9c2c62d261b208e54bb197498df52e8cadede23ac0ba5e",
        "c4c10105a0be0ed4dd3354428dc38a9bfee64da141ce16e75c94eda272f9dd3a",
        "acb1b8327fef995e2458fdf5e3c33b2dc0749feabd6a894cb9bda9d70ac06c24",
        "8fb6bad671cfe698393c453357da61b56d757ab8c0f3fb9c87f2849e63131878",
        # The private key is the number one (algorithms.throwaway_key): P-256, P-384, P-521, Ed25519, Ed448.
        "5cd252fb0ce8932436faf8ccd1040981b89ee4ad6b9fe9e2a2b7e71aacb27cd3",
        "29f8fe74f38c49d49810cec736a26732a30bff2e64827b709a1c63340d4f7181",
        "dcaa139396632a8daba1ba49ceccce0c417786f014698a06221b083d77754bda",
        "1300ab5783848215efd5623772c6750e429f26a6f9f0388b3cad7eb67976f774",
        "3dbfb39052589353762e40635c9ecb91b6a9d6138fece1fdc6996225aec65a51",
    }
)
"""SHA-256 of SubjectPublicKeyInfo (DER), lower-case hex."""

_Y_SMALL = "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc"
_Y_LARGE = "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03"
SMALL_ORDER = frozenset(
    bytes.fromhex(text)
    for text in (
        # Points whose order divides 8, with both signs of x (RFC 8032 section 5.1.3): y = 1, -1, 0
        # and the two y of order 8; then 1 and 0 again with y not reduced modulo p.
        *("01" + "00" * 31, "01" + "00" * 30 + "80"),
        *("ec" + "ff" * 30 + "7f", "ec" + "ff" * 31),
        *("00" * 32, "00" * 31 + "80"),
        *(_Y_SMALL + "05", _Y_SMALL + "85"),
        *(_Y_LARGE + "7a", _Y_LARGE + "fa"),
        *("ee" + "ff" * 30 + "7f", "ee" + "ff" * 31),
        *("ed" + "ff" * 30 + "7f", "ed" + "ff" * 31),
    )
)
"""Encodings of the Ed25519 points of small order (32 octets)."""

SMALL_ORDER_448 = frozenset(
    bytes.fromhex(y + sign)
    for y in (
        # Points whose order divides 4 (RFC 8032 section 5.2.3): y = 1, -1 and 0; then 0 and 1 not reduced.
        *("01" + "00" * 55, "fe" + "ff" * 27 + "fe" + "ff" * 27, "00" * 56),
        *("ff" * 28 + "fe" + "ff" * 27, "00" * 28 + "ff" * 28),
    )
    for sign in ("00", "80")
)
"""Encodings of the Ed448 points of small order (57 octets)."""

_SMALL_ORDER = {KeyAlgorithm.ED25519: SMALL_ORDER, KeyAlgorithm.ED448: SMALL_ORDER_448}

_ECDSA = frozenset(bytes.fromhex(f"300a06082a8648ce3d0403{last}") for last in ("02", "03", "04"))
"""ecdsa-with-SHA256, -384, -512 (RFC 5758 section 3.2): tools often sign P-384 requests with SHA-256."""
_RSASSA = frozenset(bytes.fromhex(f"300d06092a864886f70d0101{last}0500") for last in ("0b", "0c", "0d"))
"""sha256-, sha384- and sha512WithRSAEncryption (RFC 4055 section 5)."""

_PEM_LABELS = ("CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST")
_RSA_KEY = bytes.fromhex("06092a864886f70d010101")


@dataclass(frozen=True, slots=True, kw_only=True)
class VettedRequest:
    """A request whose sender holds the private key."""

    subject_public_key_info: bytes = field(repr=False)
    """DER, as it stands in the request."""
    spki_sha256: str
    """Lower-case hex."""
    key_algorithm: KeyAlgorithm
    subject: bytes = field(repr=False)
    """Name (DER) that the request is for; never for issuance."""
    subject_common_name: str | None
    """The only common name of the request; for comparison, never for issuance."""
    subject_serial_number: str | None
    """The only serialNumber attribute of the request; for comparison, never for issuance."""


def vet(
    csr_bytes: bytes,
    *,
    allowed: Collection[KeyAlgorithm],
    max_size: int = 8192,
    blocked_spki: Collection[str] = (),
) -> VettedRequest:
    """Return the key of a certification request, proved to be in the sender's hands.

    Args:
        csr_bytes: DER, or PEM with exactly one request.
        allowed: the key algorithms that may pass.
        max_size: most octets looked at.
        blocked_spki: SHA-256 (lower-case hex) of further keys to refuse.

    Raises:
        TooLarge: more than ``max_size`` octets.
        MalformedRequest: not exactly one PKCS #10 request.
        PolicyRefused: the key is of a kind not allowed ("key-algorithm"), known to others ("known-key"), no
            point of its curve or a bad RSA modulus ("weak-key"), the signature is of a kind not allowed
            ("request-signature"), or it does not verify ("proof-of-possession").
    """
    if len(csr_bytes) > max_size:
        raise TooLarge(f"the request has {len(csr_bytes)} octets, the limit is {max_size}")
    octets = request_der(csr_bytes)
    try:
        request = x509.load_der_x509_csr(octets)
    except (ValueError, TypeError, x509.InvalidVersion) as error:
        raise MalformedRequest(f"not a pkcs #10 request: {error}") from error
    # CertificationRequest { info { version, subject, key, attributes }, algorithm, signature }
    _, _, content, end = der.only(octets, der.SEQUENCE)
    info, algorithm, _ = der.children(octets, content, end)
    _, subject, key, *_ = der.children(octets, *info[2:])
    spki = octets[key[1] : key[3]]
    key_algorithm = vet_key(spki, allowed=allowed, blocked_spki=blocked_spki)
    _refuse_signature_algorithm(octets[algorithm[1] : algorithm[3]], key_algorithm)
    vetted = vetted_request(spki, key_algorithm, octets[subject[1] : subject[3]])
    try:
        possessed = request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm) as error:
        raise PolicyRefused("weak-key", f"the {key_algorithm} key is no point of its curve") from error
    if not possessed:
        raise PolicyRefused("proof-of-possession", "the request is not signed with the key it carries")
    return vetted


def device_of(subject: bytes) -> str | None:
    """Return what a subject calls the device: its serialNumber, or else its common name; None for neither.

    Args:
        subject: Name (DER) in a request of any form.

    Raises:
        MalformedRequest: it is no Name, or has two names of one kind.
    """
    for attribute in (Attribute.SERIAL_NUMBER, Attribute.CN):
        names = attribute_values(subject, attribute)
        if len(names) > 1:
            raise MalformedRequest(f"the request has {len(names)} names of one kind: one device has one")
        if names:
            return names[0]
    return None


def vet_key(
    spki: bytes, *, allowed: Collection[KeyAlgorithm], blocked_spki: Collection[str] = ()
) -> KeyAlgorithm:
    """Return the algorithm of a key that may be certified, whatever the form of the request it came in.

    Args:
        spki: SubjectPublicKeyInfo (DER).
        allowed: the key algorithms that may pass.
        blocked_spki: SHA-256 (lower-case hex) of further keys to refuse.

    Raises:
        PolicyRefused: the key is of a kind not allowed ("key-algorithm"), known to others ("known-key"), of
            small order or a bad RSA modulus ("weak-key").  Whether it is a point of its curve shows when a
            signature is verified with it.
    """
    algorithm = _key_algorithm(spki, allowed)
    _refuse_known(sha256(spki).hexdigest(), blocked_spki)
    _refuse_weak(spki, algorithm)
    return algorithm


def vetted_request(spki: bytes, key_algorithm: KeyAlgorithm, subject: bytes) -> VettedRequest:
    """Return what is known of a request whose sender has proved possession of its key.

    Args:
        spki: SubjectPublicKeyInfo (DER).
        key_algorithm: from ``vet_key``.
        subject: Name (DER) that the request is for.

    Raises:
        MalformedRequest: the subject is no name.
    """
    common_names = attribute_values(subject, Attribute.CN)
    serial_numbers = attribute_values(subject, Attribute.SERIAL_NUMBER)
    return VettedRequest(
        subject_public_key_info=spki,
        spki_sha256=sha256(spki).hexdigest(),
        key_algorithm=key_algorithm,
        subject=subject,
        subject_common_name=common_names[0] if len(common_names) == 1 else None,
        subject_serial_number=serial_numbers[0] if len(serial_numbers) == 1 else None,
    )


def request_der(csr_bytes: bytes) -> bytes:
    """Return a request without its PEM, if it has one; whether it is a request is not looked at.

    Raises:
        MalformedRequest: it is PEM with not exactly one request.
    """
    if not csr_bytes.lstrip().startswith(b"-----BEGIN "):
        return csr_bytes
    try:
        text = csr_bytes.decode("ascii")
    except UnicodeDecodeError as error:
        raise MalformedRequest("pem: not ascii") from error
    label = next((name for name in _PEM_LABELS if f"-----BEGIN {name}-----" in text), _PEM_LABELS[0])
    blocks = from_pem(text, label)
    if len(blocks) != 1:
        raise MalformedRequest(f"pem: {len(blocks)} requests where one belongs")
    return blocks[0]


def _key_algorithm(spki: bytes, allowed: Collection[KeyAlgorithm]) -> KeyAlgorithm:
    algorithm = recognise(spki)
    if algorithm is None:
        raise PolicyRefused(
            "key-algorithm", f"the key is {_describe(spki)}; allowed are {', '.join(allowed)}"
        )
    if algorithm not in allowed:
        raise PolicyRefused("key-algorithm", f"the key is {algorithm}; allowed are {', '.join(allowed)}")
    return algorithm


def _describe(spki: bytes) -> str:
    """Say what kind of key it is, for a refusal."""
    if _RSA_KEY not in spki[:32]:
        return "neither rsa nor an uncompressed point of P-256, P-384 or P-521 nor ed25519 or ed448"
    try:
        key = load_der_public_key(spki)
    except (ValueError, UnsupportedAlgorithm):
        return "a broken rsa key"
    if not isinstance(key, rsa.RSAPublicKey):
        return "no rsa key"
    exponent = key.public_numbers().e
    return f"rsa of {key.key_size} bits" + ("" if exponent == 65537 else f" with the exponent {exponent}")


def _refuse_known(spki_sha256: str, blocked_spki: Collection[str]) -> None:
    if spki_sha256 in PUBLICLY_KNOWN:
        raise PolicyRefused("known-key", f"the key {spki_sha256} is known to everybody (RFC 9500)")
    if spki_sha256 in blocked_spki:
        raise PolicyRefused("known-key", f"the key {spki_sha256} is blocked")


def _refuse_weak(spki: bytes, algorithm: KeyAlgorithm) -> None:
    row = ALGORITHMS[algorithm]
    if algorithm in _SMALL_ORDER and spki[len(row.spki_prefix) :] in _SMALL_ORDER[algorithm]:
        raise PolicyRefused("weak-key", f"the {algorithm} key has small order: anyone can sign for it")
    if row.key_suffix:
        modulus = spki[len(row.spki_prefix) + len(row.key_prefix) : -len(row.key_suffix)]
        found = weakness(int.from_bytes(modulus))
        if found is not None:
            raise PolicyRefused("weak-key", f"the {algorithm} key is weak: {found}")


def _refuse_signature_algorithm(identifier: bytes, key_algorithm: KeyAlgorithm) -> None:
    row = ALGORITHMS[key_algorithm]
    if row.hash_algorithm is None:
        fits = identifier == row.signature_algorithm
    else:
        fits = identifier in (_RSASSA if row.key_suffix else _ECDSA)
    if not fits:
        raise PolicyRefused(
            "request-signature",
            f"signature algorithm {identifier.hex()} does not go with a {key_algorithm} key",
        )
