"""Responders to answer with: certificates that an authority of the sample realm gave for OCSP signing."""

from datetime import UTC, datetime
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from birthmark.pki.algorithms import ALGORITHMS
from birthmark.pki.keys import KeyAlgorithm, KeyLabel
from birthmark.pki.ocsp import Responder
from tests.pki.sample import FOUNDED, ISSUING_KEY, Realm, private_key, serial

RESPONDER_KEY = KeyLabel("responder")
ENDS = datetime(2099, 1, 1, tzinfo=UTC)


@lru_cache(maxsize=32)
def responder_der(
    ours: Realm,
    algorithm: KeyAlgorithm | None = None,
    *,
    signer: str = ISSUING_KEY,
    ocsp_signing: bool = True,
    digital_signature: bool = True,
    purposes: bool = True,
    curve: ec.EllipticCurve | None = None,
) -> bytes:
    """A responder's certificate (DER) with a key of this algorithm, the realm's by default."""
    issuer = x509.load_der_x509_certificate(ours.issuing_der)
    key = private_key(algorithm or ours.algorithm, RESPONDER_KEY)
    if curve is not None:
        key = ec.derive_private_key(4711, curve)
    usage = [digital_signature, not digital_signature, *[False] * 7]
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Line 1 OCSP Responder")]))
        .issuer_name(issuer.subject)
        .serial_number(serial("responder"))
        .not_valid_before(FOUNDED)
        .not_valid_after(ENDS)
        .public_key(key.public_key())
        .add_extension(x509.KeyUsage(*usage), critical=True)
        .add_extension(x509.OCSPNoCheck(), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier(ours.issuing.key_identifier, None, None), critical=False)
    )
    if purposes:
        purpose = ExtendedKeyUsageOID.OCSP_SIGNING if ocsp_signing else ExtendedKeyUsageOID.TIME_STAMPING
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    signed = builder.sign(private_key(ours.algorithm, signer), ALGORITHMS[ours.algorithm].hash_algorithm)  # type: ignore[arg-type]  # Ed25519 goes with no hash
    return signed.public_bytes(Encoding.DER)


def responder(ours: Realm, algorithm: KeyAlgorithm | None = None, *, by_name: bool = False) -> Responder:
    """A responder of the realm's issuing authority."""
    return Responder.from_certificate(
        RESPONDER_KEY, responder_der(ours, algorithm), ours.issuing, by_name=by_name
    )
