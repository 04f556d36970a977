"""A small realm to issue in: keys that live for one test run, a root, an issuing authority, device keys."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from birthmark.pki import issuance, lint, profiles
from birthmark.pki.issuer import Issuer
from birthmark.pki.keys import KeyAlgorithm, KeyLabel

PrivateKey = (
    ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey | rsa.RSAPrivateKey
)

ROOT_KEY, ISSUING_KEY = KeyLabel("root"), KeyLabel("issuing")
FOUNDED = datetime(2026, 1, 1, tzinfo=UTC)
NOW = datetime(2026, 11, 22, 12, 30, 15, 999999, tzinfo=UTC)
VIN = "1M8GDM9AXKP042788"

VARIABLES = {
    "authority": "Line 1 Issuing CA",
    "certificate_policy": "1.3.6.1.4.1.32473.2.1",
    "dns_names": "factory.example line-1.factory.example localhost",
    "environment_mark": " TEST",
    "hardware_id": VIN,
    "hardware_type": "1.3.6.1.4.1.32473.1.7",
    "host": "factory.example",
    "ip_addresses": "192.0.2.7 2001:db8::7",
    "operator": "operator-17",
    "organization": "Example Motors",
    "organizational_unit": "Line 1",
    "product_id": "80A1",
    "product_uri": "https://products.example/line-1/",
    "realm": "Lab",
    "responder": "Line 1 OCSP Responder",
    "run": "run-2026-0042",
    "signer": "Boot loader signing 1",
    "station": "station-3",
    "proxy": "proxy-1",
    "shared": "image-7",
    "vendor_id": "FFF1",
}


@lru_cache(maxsize=128)
def private_key(algorithm: KeyAlgorithm, name: str) -> PrivateKey:
    """A key of this algorithm, the same for the same name, and no secret."""
    seed = hashlib.sha512(name.encode()).digest()
    match algorithm:
        case KeyAlgorithm.EC_P256:
            return ec.derive_private_key(int.from_bytes(seed[:31], "big"), ec.SECP256R1())
        case KeyAlgorithm.EC_P384:
            return ec.derive_private_key(int.from_bytes(seed[:47], "big"), ec.SECP384R1())
        case KeyAlgorithm.EC_P521:
            return ec.derive_private_key(int.from_bytes(seed, "big"), ec.SECP521R1())
        case KeyAlgorithm.ED25519:
            return ed25519.Ed25519PrivateKey.from_private_bytes(seed[:32])
        case KeyAlgorithm.ED448:
            return ed448.Ed448PrivateKey.from_private_bytes(seed[:57])
        case KeyAlgorithm.RSA_2048 | KeyAlgorithm.RSA_3072 | KeyAlgorithm.RSA_4096:
            return _rsa_key(int(algorithm.removeprefix("rsa-")), name)


@lru_cache(maxsize=32)
def _rsa_key(bits: int, name: str) -> rsa.RSAPrivateKey:
    """The same for the same name as long as the process lives: nobody can seed the library's primes."""
    del name
    return rsa.generate_private_key(65537, bits)


@lru_cache(maxsize=128)
def spki(algorithm: KeyAlgorithm, name: str) -> bytes:
    """Its public half, SubjectPublicKeyInfo in DER."""
    key = private_key(algorithm, name).public_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def signed_by(key: PrivateKey, message: bytes) -> bytes:
    """What a key store answers for this key."""
    if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey):
        return key.sign(message)
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(message, padding.PKCS1v15(), hashes.SHA256())
    digest = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}[key.curve.key_size]
    return key.sign(message, ec.ECDSA(digest))


def serial(name: str) -> int:
    """A serial number, the same for the same name."""
    return issuance.serial_number(hashlib.sha256(name.encode()).digest())


@dataclass(frozen=True)
class Realm:
    """A root and an issuing authority with keys of one algorithm."""

    algorithm: KeyAlgorithm
    root: Issuer
    issuing: Issuer

    @property
    def sign(self) -> Callable[[KeyLabel, bytes], bytes]:
        return lambda label, message: signed_by(private_key(self.algorithm, label), message)

    @property
    def root_der(self) -> bytes:
        assert self.root.certificate is not None
        return self.root.certificate

    @property
    def issuing_der(self) -> bytes:
        assert self.issuing.certificate is not None
        return self.issuing.certificate

    def issue(self, profile: profiles.Profile, subject_public_key_info: bytes) -> bytes:
        """A leaf, the way of the line."""
        template = issuance.compile_template(profile, self.issuing, VARIABLES)
        tbs = template.fill(
            serial_number=serial(profile.name),
            subject_public_key_info=subject_public_key_info,
            not_before=NOW,
            variables={},
        )
        return issuance.sign_certificate(lint.permit(tbs), self.sign)


@lru_cache(maxsize=8)
def realm(algorithm: KeyAlgorithm, not_after: datetime | None = None) -> Realm:
    """A realm founded at FOUNDED whose authorities end at ``not_after``, or never."""
    root_tbs = issuance.build_root(
        profiles.load("root"),
        key_label=ROOT_KEY,
        serial_number=serial("root"),
        subject_public_key_info=spki(algorithm, ROOT_KEY),
        not_before=FOUNDED,
        not_after=not_after,
        variables=VARIABLES,
    )

    def signer(label: KeyLabel, message: bytes) -> bytes:
        return signed_by(private_key(algorithm, label), message)

    root = Issuer.from_certificate(ROOT_KEY, issuance.sign_certificate(lint.permit(root_tbs), signer))
    issuing_tbs = issuance.build_reference(
        profiles.load("issuing"),
        root,
        serial_number=serial("issuing"),
        subject_public_key_info=spki(algorithm, ISSUING_KEY),
        not_before=FOUNDED,
        not_after=not_after,
        variables=VARIABLES,
    )
    issuing_der = issuance.sign_certificate(lint.permit(issuing_tbs), signer)
    return Realm(algorithm, root, Issuer.from_certificate(ISSUING_KEY, issuing_der))


def extension_texts(certificate_der: bytes) -> list[str]:
    """The dotted object identifiers of a certificate's extensions, in order."""
    return [found.oid.dotted_string for found in x509.load_der_x509_certificate(certificate_der).extensions]
