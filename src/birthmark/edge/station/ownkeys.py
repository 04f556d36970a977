"""The station's own key: made here, asked about with a certification request, never sent anywhere."""

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from birthmark.errors import MalformedRequest
from birthmark.secret import SecretBytes

__all__ = ["new_key", "public_key_info", "request_for"]

_REMEDY = "delete the directory .NAME.joining that holds it, and join again"


def new_key(passphrase: SecretBytes | None = None) -> SecretBytes:
    """Return a new P-256 key, PKCS#8 PEM; encrypted (PBES2) if there is a passphrase."""
    encryption: KeySerializationEncryption = (
        NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase.reveal())
    )
    made = ec.generate_private_key(ec.SECP256R1())
    return SecretBytes(made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))


def request_for(key: SecretBytes, passphrase: SecretBytes | None = None) -> str:
    """Return a certification request (PKCS#10, PEM) for a key that ``new_key`` made.

    Raises:
        MalformedRequest: it is no such key, or the passphrase is another.
    """
    # What it names decides nothing: the service knows who asks.
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(_loaded(key, passphrase), hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def public_key_info(key: SecretBytes, passphrase: SecretBytes | None = None) -> bytes:
    """Return the SubjectPublicKeyInfo (DER) of a key that ``new_key`` made.

    Raises:
        MalformedRequest: it is no such key, or the passphrase is another.
    """
    return _loaded(key, passphrase).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _loaded(key: SecretBytes, passphrase: SecretBytes | None) -> ec.EllipticCurvePrivateKey:
    try:
        loaded = load_pem_private_key(key.reveal(), None if passphrase is None else passphrase.reveal())
    except (TypeError, ValueError) as wrong:
        raise MalformedRequest(f"the station's next key cannot be read: {_REMEDY}") from wrong
    if not isinstance(loaded, ec.EllipticCurvePrivateKey):
        raise MalformedRequest(f"the station's next key is none on a curve: {_REMEDY}")
    return loaded
