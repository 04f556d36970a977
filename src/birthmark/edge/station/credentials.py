"""Who a station is, and where its service is: the station directory and its reader and writer.

    station.crt      its certificate, then the authorities above it, PEM
    station.key      its private key, PKCS#8 PEM, mode 0400; may be encrypted (PBES2)
    root.crt         the trust anchors: who signs for the service, PEM
    device-anchors.pem   the trust anchors of devices, PEM; without it those of root.crt
    station.toml     name, url, and optionally key-passphrase-file (relative to the directory)
    vkey             the log's verifier key (C2SP signed-note), pinned at enrolment or on first contact

The same form serves operators and devices with a bootstrap certificate.  While it works, a station also keeps
``sequence``, ``checkpoint``, ``checkpoints`` and ``pending-*.json`` here: see ``records`` and ``pending``.

``write_station_directory`` makes the directory whole or not at all; over an existing one (renewal) it changes
certificate and key so that a reader never meets one without the other.
"""

import json
import os
import shutil
import ssl
import tomllib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from birthmark.edge.station.folder import Folder, flush_directory
from birthmark.errors import IntegrityFailure, MalformedRequest, NotFound, NotPermitted
from birthmark.ledger.checkpoint import VerifierKey
from birthmark.pki.certificates import from_pem
from birthmark.pki.envelope import open_envelope
from birthmark.pki.library import UNREADABLE
from birthmark.secret import SecretBytes

__all__ = [
    "CERTIFICATE",
    "NEXT_KEY",
    "RENEWAL_LOCK",
    "Credentials",
    "read_station_directory",
    "settings_text",
    "settle",
    "write_station_directory",
]

CERTIFICATE = "station.crt"
_KEY = "station.key"
NEXT_KEY = "station.key.next"
RENEWAL_LOCK = "renewal"
"""A file that whoever changes certificate and key has locked."""
_ROOT = "root.crt"
_DEVICE_ANCHORS = "device-anchors.pem"
_SETTINGS = "station.toml"
_VKEY = "vkey"
_KNOWN = {"name", "url", "key-passphrase-file"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a station shows and whom it believes."""

    name: str
    url: str
    """Where the service is, https://host:port."""
    certificate_pem: str = field(repr=False)
    """Its certificate, then the authorities above it."""
    private_key: SecretBytes
    """PKCS#8 PEM, perhaps encrypted."""
    passphrase: SecretBytes | None = None
    """Of an encrypted key."""
    root_pem: str = field(repr=False)
    """Trust anchors, one or more: who signs for the service."""
    device_anchors_pem: str | None = field(default=None, repr=False)
    """Trust anchors of devices; None where they are those of the service."""

    def anchors(self) -> tuple[bytes, ...]:
        """Return the service's trust anchors (DER)."""
        return from_pem(self.root_pem)

    def device_anchors(self) -> tuple[bytes, ...]:
        """Return the trust anchors that the chain of a device must lead to (DER)."""
        return self.anchors() if self.device_anchors_pem is None else from_pem(self.device_anchors_pem)

    def open_envelope(self, envelope: bytes) -> SecretBytes:
        """Return the delivered key (PKCS#8, DER) in an envelope to the station's own key.

        Raises:
            IntegrityFailure: it does not open.
        """
        try:
            key = load_pem_private_key(
                self.private_key.view(), None if self.passphrase is None else self.passphrase.reveal()
            )
            if isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
                return open_envelope(envelope, key, from_pem(self.certificate_pem)[0])
            complaint = f"the key of {self.name} can only sign"
        except (MalformedRequest, *UNREADABLE) as wrong:
            complaint = str(wrong) if isinstance(wrong, MalformedRequest) else "the key cannot be read"
        raise IntegrityFailure(f"a delivered key cannot be taken out of its envelope: {complaint}")

    def tls_context(self) -> ssl.SSLContext:
        """Return a client context: TLS 1.3, the service verified by name against the trust anchors alone.

        Raises:
            MalformedRequest: the certificate, the key or the anchors cannot be used, or do not belong
                together.
        """
        _check_pair(self)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks the chain and the host name
        context.set_ecdh_curve("prime256v1")  # the service's group: to offer another costs a round trip
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        passphrase = b"" if self.passphrase is None else self.passphrase.reveal()
        try:
            context.load_verify_locations(cadata=self.root_pem)
            with _readable(self.certificate_pem.encode() + b"\n" + self.private_key.reveal()) as path:
                context.load_cert_chain(path, password=passphrase)  # never asks on the terminal
        except (ssl.SSLError, ValueError) as wrong:
            raise MalformedRequest(f"the credentials of {self.name} cannot be used for tls") from wrong
        return context


class _readable:  # noqa: N801 -- a context manager, used like a function
    """Octets under a path, for OpenSSL, which reads keys from files only: anonymous memory, never a disk."""

    def __init__(self, content: bytes) -> None:
        self._fd = os.memfd_create("credentials", os.MFD_CLOEXEC)
        os.write(self._fd, content)

    def __enter__(self) -> str:
        return f"/proc/self/fd/{self._fd}"

    def __exit__(self, *exception: object) -> None:
        os.close(self._fd)


def read_station_directory(path: str | os.PathLike[str]) -> Credentials:
    """Read a station's credentials.

    Raises:
        NotFound: the directory or one of its files is missing.
        NotPermitted: others may touch the key or the passphrase file, or enter the directory.
        MalformedRequest: a file does not hold what belongs there, or certificate and key do not match.
    """
    folder = Folder(path)
    try:
        settings = _settings(folder)
        passphrase = _passphrase(folder, settings)
        certificate, private_key = _pair(folder, passphrase)
        return Credentials(
            name=settings["name"],
            url=settings["url"],
            certificate_pem=certificate,
            private_key=private_key,
            passphrase=passphrase,
            root_pem=_text(folder, _ROOT),
            device_anchors_pem=_text(folder, _DEVICE_ANCHORS) if folder.exists(_DEVICE_ANCHORS) else None,
        )
    finally:
        folder.close()


def write_station_directory(
    path: str | os.PathLike[str],
    *,
    name: str,
    url: str,
    certificate_pem: str,
    chain_pem: str,
    private_key_pem: SecretBytes,
    root_pem: str,
    device_anchors_pem: str | None = None,
    vkey: str | None = None,
    key_passphrase_file: str | None = None,
    passphrase: SecretBytes | None = None,
) -> None:
    """Make a station directory, or renew the credentials in one.

    Args:
        path: the directory (mode 0700 when made here); its parent exists.
        name: of the station, operator or device.
        url: of the service, https.
        certificate_pem: its certificate.
        chain_pem: the authorities above it, the root not included; may be empty.
        private_key_pem: PKCS#8 PEM, perhaps encrypted.
        root_pem: the trust anchors: who signs for the service.
        device_anchors_pem: the trust anchors of devices; None where they are the same.
        vkey: the log's verifier key, if it is known; else it is pinned on first contact.
        key_passphrase_file: where the passphrase of an encrypted key is read from; relative to the directory.
        passphrase: of an encrypted key, needed here only to see that certificate and key match.

    Raises:
        MalformedRequest: something is not what it is said to be, or certificate and key do not match.
    """
    if vkey is not None:
        VerifierKey.parse(vkey)
    certificates = certificate_pem.rstrip("\n") + "\n" + chain_pem
    credentials = Credentials(
        name=name,
        url=url,
        certificate_pem=certificates,
        private_key=private_key_pem,
        passphrase=passphrase,
        root_pem=root_pem,
        device_anchors_pem=device_anchors_pem,
    )
    _check_pair(credentials)
    credentials.anchors()
    credentials.device_anchors()
    toml = settings_text(name=name, url=url, key_passphrase_file=key_passphrase_file)
    files = [(_SETTINGS, toml, 0o644), (_ROOT, root_pem, 0o644)]
    if device_anchors_pem is not None:
        files.append((_DEVICE_ANCHORS, device_anchors_pem, 0o644))
    if vkey is not None:
        files.append((_VKEY, vkey.rstrip("\n") + "\n", 0o644))
    target = Path(path)
    if (target / CERTIFICATE).exists():
        _renew(target, files, certificates, private_key_pem)
        return
    if target.exists():
        target.rmdir() if not any(target.iterdir()) else _refuse_foreign(target)
    making = target.with_name(f".{target.name}.new")
    with suppress(FileNotFoundError):
        shutil.rmtree(making)  # what a crash left behind
    folder = Folder(making, create=True)
    for file_name, text, mode in [*files, (CERTIFICATE, certificates, 0o644)]:
        folder.write(file_name, text.encode(), mode=mode)
    folder.write(_KEY, private_key_pem.reveal(), mode=0o400)
    folder.close()
    making.rename(target)
    flush_directory(target.parent)


def settings_text(*, name: str, url: str, key_passphrase_file: str | None = None) -> str:
    """Return the text of ``station.toml``."""
    settings = {"name": name, "url": url}
    if key_passphrase_file is not None:
        settings["key-passphrase-file"] = key_passphrase_file
    # A JSON string is a TOML basic string, once DEL is escaped, too (TOML 1.0, "String").
    quoted = {key: json.dumps(value, ensure_ascii=False) for key, value in settings.items()}
    return "".join(f"{key} = {text}\n" for key, text in quoted.items()).replace("\x7f", "\\u007f")


def _refuse_foreign(target: Path) -> None:
    raise NotPermitted(f"{target} holds something else than a station's credentials")


def _renew(
    target: Path, files: list[tuple[str, str, int]], certificates: str, private_key: SecretBytes
) -> None:
    folder = Folder(target)
    for file_name, text, mode in files:
        folder.write(file_name, text.encode(), mode=mode)
    with folder.locked(RENEWAL_LOCK):
        settle(folder)
        # The new key waits beside the old one until the certificate is there; a reader who meets the state
        # between takes the waiting key (see _private_key).
        folder.write(NEXT_KEY, private_key.reveal(), mode=0o400)
        folder.write(CERTIFICATE, certificates.encode(), mode=0o644)
        folder.rename(NEXT_KEY, _KEY)
    folder.close()


def settle(folder: Folder) -> None:
    """Finish a renewal that broke off between certificate and key; the caller has the lock.

    A key that waits and is not the certificate's is left there.

    Raises:
        MalformedRequest: the certificate is for neither key.
    """
    passphrase = _passphrase(folder, _settings(folder))
    content = folder.read_private(NEXT_KEY)
    if content is None:
        return
    try:
        waiting = _spki_of_key(SecretBytes(content), passphrase, str(folder.path / NEXT_KEY))
    except MalformedRequest:
        return  # a key that was never certified, in whatever state it is
    if waiting == _spki_of_certificate(_text(folder, CERTIFICATE)):
        folder.rename(NEXT_KEY, _KEY)


def _pair(folder: Folder, passphrase: SecretBytes | None) -> tuple[str, SecretBytes]:
    """Return the certificates and their key, also while somebody renews them."""
    certificate = _text(folder, CERTIFICATE)
    while True:
        try:
            return certificate, _private_key(folder, certificate, passphrase)
        except MalformedRequest:
            now = _text(folder, CERTIFICATE)
            if now == certificate:
                raise
            certificate = now  # it was replaced between the two


def _private_key(folder: Folder, certificate: str, passphrase: SecretBytes | None) -> SecretBytes:
    complaint = f"{folder.path / _KEY}: there is no such file"
    for name in (_KEY, NEXT_KEY):
        content = folder.read_private(name)
        if content is None:
            continue
        key = SecretBytes(content)
        if _spki_of_key(key, passphrase, str(folder.path / name)) == _spki_of_certificate(certificate):
            return key
        complaint = f"{folder.path}: the certificate in {CERTIFICATE} is for another key than {_KEY}"
    raise MalformedRequest(complaint)


def _check_pair(credentials: Credentials) -> None:
    key = _spki_of_key(credentials.private_key, credentials.passphrase, f"the key of {credentials.name}")
    if key != _spki_of_certificate(credentials.certificate_pem):
        raise MalformedRequest(f"the certificate of {credentials.name} is for another key than its own")


def _spki_of_certificate(certificate_pem: str) -> bytes:
    try:
        key = x509.load_der_x509_certificate(from_pem(certificate_pem)[0]).public_key()
    except UNREADABLE as wrong:
        raise MalformedRequest(f"the station's certificate cannot be read: {wrong}") from wrong
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _spki_of_key(key: SecretBytes, passphrase: SecretBytes | None, what: str) -> bytes:
    loaded: PrivateKeyTypes | None = None
    # There may be a passphrase beside a key in the clear.
    for password in (None,) if passphrase is None else (passphrase.reveal(), None):
        with suppress(*UNREADABLE):
            loaded = load_pem_private_key(key.reveal(), password=password)
            break
    if loaded is None:
        raise MalformedRequest(f"{what} is no pkcs#8 key, or is encrypted under another passphrase")
    return loaded.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _settings(folder: Folder) -> dict[str, str]:
    try:
        settings = tomllib.loads(_text(folder, _SETTINGS))
    except (ValueError, RecursionError) as wrong:
        raise MalformedRequest(f"{folder.path / _SETTINGS}: {wrong}") from wrong
    if unknown := sorted(settings.keys() - _KNOWN):
        raise MalformedRequest(f"{folder.path / _SETTINGS}: unknown key {unknown[0]}")
    for key in ("name", "url"):
        if not isinstance(settings.get(key), str):
            raise MalformedRequest(f"{folder.path / _SETTINGS}: {key} is a text and not left out")
    if not isinstance(settings.get("key-passphrase-file", ""), str):
        raise MalformedRequest(f"{folder.path / _SETTINGS}: key-passphrase-file is a path")
    return settings


def _passphrase(folder: Folder, settings: dict[str, str]) -> SecretBytes | None:
    if "key-passphrase-file" not in settings:
        return None
    name = settings["key-passphrase-file"]
    try:
        content = folder.read_private(name)
    except OSError as wrong:
        raise NotFound(
            f"the passphrase file {folder.path / name} cannot be read: {wrong.strerror}"
        ) from wrong
    if content is None:
        raise NotFound(f"there is no passphrase file {folder.path / name}")
    passphrase = content.removesuffix(b"\n")
    if passphrase != content:
        passphrase = passphrase.removesuffix(b"\r")
    if not passphrase:
        raise MalformedRequest(f"{folder.path / name} holds no passphrase")
    return SecretBytes(passphrase)


def _text(folder: Folder, name: str) -> str:
    content = folder.read(name)
    if content is None:
        raise NotFound(f"{folder.path / name}: there is no such file")
    try:
        return content.decode()
    except UnicodeDecodeError as wrong:
        raise MalformedRequest(f"{folder.path / name} is not utf-8") from wrong
