"""``credentials.zip``: what an image needs to have its device fetch a certificate of its own (SPEC H4).

The same contents are the same octets.  The archive holds a private key: it is readable by its owner alone,
and written whole or not at all.
"""

import io
import json
import os
import tempfile
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from birthmark import errors
from birthmark.pki.library import UNREADABLE
from birthmark.secret import SecretBytes

__all__ = [
    "CERTIFICATE",
    "FIRST_BOOT",
    "GATEWAY",
    "KEY",
    "ROOT",
    "packed",
    "read_waiting_key",
    "require_room",
    "waiting_key",
    "write_archive",
]

GATEWAY, ROOT = "gateway.json", "gateway-ca.pem"
CERTIFICATE, KEY = "provisioning.pem", "provisioning.key"
FIRST_BOOT = "first-boot.sh"
_MODES = {KEY: 0o600, FIRST_BOOT: 0o755}
_EARLIEST = (1980, 1, 1, 0, 0, 0)
"""The first time that a ZIP archive can say."""
_UNIX = 3
_LARGEST = 16_384


def packed(
    gateway: Mapping[str, object],
    root_pem: str,
    certificate_pem: str,
    key_pem: SecretBytes,
    first_boot: bytes,
) -> SecretBytes:
    """Return the archive.

    Args:
        gateway: where the device asks, as JSON.
        root_pem: who signs for the service: the only one the device believes.
        certificate_pem: of the shared credential, with the authorities above it.
        key_pem: its key (PKCS#8).
        first_boot: a script to run at the first boot; empty for none.
    """
    files = {
        GATEWAY: json.dumps(gateway, indent=2, sort_keys=True).encode() + b"\n",
        ROOT: root_pem.encode(),
        CERTIFICATE: certificate_pem.encode(),
        KEY: key_pem.reveal(),
        **({FIRST_BOOT: first_boot} if first_boot else {}),
    }
    octets = io.BytesIO()
    with zipfile.ZipFile(octets, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            member = zipfile.ZipInfo(name, _EARLIEST)
            member.create_system = _UNIX
            member.external_attr = (0o100000 | _MODES.get(name, 0o644)) << 16
            archive.writestr(member, files[name])
    return SecretBytes(octets.getvalue())


def require_room(out: Path) -> None:
    """Refuse a file that cannot be made, before anything is certified.

    Raises:
        errors.NotFound: there is no directory to make it in.
        errors.IllegalTransition: it, or the key that waits beside it, is there already.
    """
    if not out.absolute().parent.is_dir():
        raise errors.NotFound(f"there is no directory {out.absolute().parent} to make {out.name} in")
    for path in (out, waiting_key(out)):
        if path.exists():
            raise errors.IllegalTransition(f"{path} exists already")


def waiting_key(out: Path) -> Path:
    """Return where the key lies until a second person has approved."""
    return out.with_name(f"{out.name}.key")


def write_archive(out: Path, archive: SecretBytes) -> None:
    """Write a new file of mode 0600, durable on return, whole or not at all.

    Raises:
        errors.IllegalTransition: it exists.
        errors.Unavailable: it cannot be written.
    """
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.absolute().parent)  # mode 0600
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(archive.reveal())
                file.flush()
                os.fsync(descriptor)
            os.link(name, out)  # which never replaces
        finally:
            with suppress(FileNotFoundError):
                Path(name).unlink()
        directory = os.open(out.absolute().parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except FileExistsError as cause:
        raise errors.IllegalTransition(f"{out} exists already") from cause
    except OSError as cause:
        raise errors.Unavailable(f"{out} cannot be written: {cause.strerror}") from cause


def read_waiting_key(out: Path) -> ec.EllipticCurvePrivateKey:
    """Read the key that waited for a second person.

    Raises:
        errors.NotFound: there is none.
        errors.NotPermitted: others can read it.
        errors.MalformedRequest: it is none that was made here.
    """
    path = waiting_key(out)
    try:
        with path.open("rb") as file:
            others = os.fstat(file.fileno()).st_mode & 0o077
            octets = file.read(_LARGEST)
    except OSError as cause:
        raise errors.NotFound(f"{path} cannot be read: {cause.strerror}") from cause
    if others:
        raise errors.NotPermitted(f"others than its owner could read {path}: make another credential")
    try:
        key = load_pem_private_key(octets, None)
    except (TypeError, *UNREADABLE) as cause:
        raise errors.MalformedRequest(f"{path} holds no private key") from cause
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise errors.MalformedRequest(f"{path} holds no key that was made here")
    return key
