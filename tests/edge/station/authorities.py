"""Certification authorities of the station tests' own."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

Extensions = Sequence[tuple[x509.ExtensionType, bool]]
DAYS = (datetime(2020, 1, 1, tzinfo=UTC), datetime(2049, 1, 1, tzinfo=UTC))


@dataclass(frozen=True, kw_only=True)
class Authority:
    """A certification authority of the tests."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def authority(
    text: str, above: Authority | None = None, *, ca: bool = True, path_length: int | None = None
) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    extensions: Extensions = [(x509.BasicConstraints(ca, path_length), True)]
    issuer, signer = (name(text), key) if above is None else (above.certificate.subject, above.key)
    return Authority(certificate=_signed(name(text), key.public_key(), issuer, signer, extensions), key=key)


def certify(
    subject: x509.Name, public_key: Any, above: Authority, extensions: Extensions = ()
) -> x509.Certificate:
    return _signed(subject, public_key, above.certificate.subject, above.key, extensions)


def _signed(
    subject: x509.Name,
    public_key: Any,
    issuer: x509.Name,
    signer: ec.EllipticCurvePrivateKey,
    extensions: Extensions,
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(DAYS[0])
        .not_valid_after(DAYS[1])
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(signer, hashes.SHA256())


def pem_key(key: ec.EllipticCurvePrivateKey, passphrase: bytes | None = None) -> bytes:
    protection = NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection)
