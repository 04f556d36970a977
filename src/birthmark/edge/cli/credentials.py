"""Credential directories: key, certificate, the authorities above it, and where to find the service.

Stations, operators and bootstrap credentials all have the form that the station kit reads, so that an
operator's directory works on the command line and on a station's screen alike.  A key made here is written
once, readable by its owner alone, and shown nowhere.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from birthmark import errors
from birthmark.edge.station.credentials import read_station_directory, settings_text, write_station_directory
from birthmark.pki.algorithms import ALGORITHMS, recognise
from birthmark.pki.certificates import Certificate, from_pem, to_pem
from birthmark.secret import SecretBytes
from birthmark.services.authorise import Enrolled

__all__ = [
    "DIRECTORY_MODE",
    "PRIVATE_MODE",
    "REQUEST",
    "Credential",
    "PrivateKey",
    "Service",
    "fresh_key",
    "private_pem",
    "public_der",
    "read",
    "require_room",
    "write",
    "write_new_file",
]

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

PRIVATE_MODE = 0o400
"""Of a file that holds a secret."""
PUBLIC_MODE = 0o644
REQUEST = "request.csr"
"""What a person who was not let in yet has beside the key."""
DIRECTORY_MODE = 0o700


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """A certificate and its private key."""

    directory: Path
    certificate: Certificate
    key: PrivateKey = field(repr=False)

    def sign(self, message: bytes) -> bytes:
        """Sign as ``pki.possession`` checks it: SHA-256 on P-256, SHA-384 on P-384, or Ed25519."""
        if isinstance(self.key, ed25519.Ed25519PrivateKey):
            return self.key.sign(message)
        algorithm = recognise(public_der(self.key))
        hash_algorithm = None if algorithm is None else ALGORITHMS[algorithm].hash_algorithm
        if hash_algorithm is None:
            raise errors.MalformedRequest(f"the key in {self.directory} is neither P-256, P-384 nor Ed25519")
        return self.key.sign(message, ec.ECDSA(hash_algorithm))


def fresh_key() -> ec.EllipticCurvePrivateKey:
    """Return a new P-256 key, for whoever has no key of their own."""
    return ec.generate_private_key(ec.SECP256R1())


def public_der(key: PrivateKey) -> bytes:
    """Return the SubjectPublicKeyInfo (DER)."""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def private_pem(key: PrivateKey, passphrase: SecretBytes | None = None) -> str:
    """Return the key as PKCS #8 (PEM), encrypted if there is a passphrase.

    The library's ``BestAvailableEncryption`` derives with few rounds; it is given passphrases of 256 random
    bits only.
    """
    encryption: KeySerializationEncryption = (
        NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase.reveal())
    )
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption).decode("ascii")


def read(directory: Path) -> Credential:
    """Read a credential directory.

    Raises:
        errors.NotFound: it, or a file of it, does not exist.
        errors.NotPermitted: others than its owner can read the private key.
        errors.MalformedRequest: a file is not what it should be.
    """
    try:
        found = read_station_directory(directory)
    except errors.NotFound as missing:
        if not (directory / REQUEST).is_file():
            raise
        raise errors.NotFound(
            f"{directory} has a request and no certificate yet: fetch the certificate first"
            f" (birthmark operator fetch {directory.name} --out {directory})"
        ) from missing
    passphrase = None if found.passphrase is None else found.passphrase.reveal()
    key = load_pem_private_key(found.private_key.reveal(), passphrase)
    if not isinstance(key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey):
        raise errors.MalformedRequest(f"the key in {directory} is neither an EC nor an Ed25519 key")
    certificate = Certificate.from_der(from_pem(found.certificate_pem)[0])
    return Credential(directory=directory, certificate=certificate, key=key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What a credential says about the service it is for."""

    url: str
    root_pem: str
    """Who signs for the service."""
    device_anchors_pem: str
    """Who signs for devices."""
    vkey: str


def write(out: Path, name: str, enrolled: Enrolled, key: PrivateKey | None, service: Service) -> None:
    """Write a credential directory, whole or not at all; without ``key``, leave a place for it.

    Raises:
        errors.NotPermitted: there is something else already.
    """
    chain_pem = "".join(map(to_pem, enrolled.chain))
    if key is not None:
        write_station_directory(
            out,
            name=name,
            url=service.url,
            certificate_pem=enrolled.certificate.pem,
            chain_pem=chain_pem,
            private_key_pem=SecretBytes(private_pem(key).encode()),
            root_pem=service.root_pem,
            device_anchors_pem=service.device_anchors_pem,
            vkey=service.vkey,
        )
        return
    out.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
    write_new_file(out / "station.crt", enrolled.certificate.pem + chain_pem)
    write_new_file(out / "root.crt", service.root_pem)
    write_new_file(out / "device-anchors.pem", service.device_anchors_pem)
    write_new_file(out / "vkey", service.vkey.rstrip("\n") + "\n")
    write_new_file(out / "station.toml", settings_text(name=name, url=service.url))


def require_room(out: Path, *, renew: bool = False) -> None:
    """Refuse a directory that a credential cannot be written to, before anything is certified.

    Raises:
        errors.NotFound: there is no directory to make it in.
        errors.IllegalTransition: there is something in it already.
    """
    if not out.absolute().parent.is_dir():
        raise errors.NotFound(f"there is no directory {out.absolute().parent} to make {out.name} in")
    if renew and (out / "station.crt").exists():
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise errors.IllegalTransition(f"{out} exists already and is not empty")


def write_new_file(path: Path, text: str, mode: int = PUBLIC_MODE) -> None:
    """Write a new file with exactly this mode, durable on return.

    Raises:
        errors.IllegalTransition: it exists.
        errors.Unavailable: it cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
    except FileExistsError as cause:
        raise errors.IllegalTransition(f"{path} exists already") from cause
    except OSError as cause:
        raise errors.Unavailable(f"{path} cannot be written: {cause.strerror}") from cause
