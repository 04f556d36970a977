"""What devices pin, and which realms they never come from: read from the files that the settings name."""

from base64 import b64encode
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from birthmark import errors
from birthmark.pki.certificates import Certificate, from_pem, one_from_pem
from birthmark.settings_gateway import GatewayPlane

__all__ = ["Pins", "other_realms", "pin_of", "pins_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pins:
    """What devices pin: the keys of the gateway's certificates (SHA-256 of SubjectPublicKeyInfo, base64).

    The form is that of RFC 7469 section 2.4, which curl's ``--pinnedpubkey`` and others know.
    """

    now: str
    next: str | None
    """None if it is not decided yet."""


def pins_of(plane: GatewayPlane) -> Pins:
    """Return the pins of a gateway's certificates as they are on disk.

    Raises:
        errors.NotFound: a file cannot be read.
        errors.MalformedRequest: it is no certificate.
    """
    following = plane.next_certificate_file
    there = following is not None and following.exists()
    return Pins(now=pin_of(plane.certificate_file), next=pin_of(following) if following and there else None)


def other_realms(plane: GatewayPlane) -> dict[bytes, str]:
    """Return the roots (DER) of other realms, and what they are called: their subjects.

    Raises:
        errors.NotFound: a file cannot be read.
        errors.MalformedRequest: it is not one certificate.
    """
    found = {}
    for path in plane.other_realms:
        certificate = Certificate.from_der(one_from_pem(_text(path)))
        found[certificate.der] = certificate.subject
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except UnicodeError as cause:
        raise errors.MalformedRequest(f"{path} is no PEM") from cause
    except OSError as cause:
        raise errors.NotFound(f"cannot read {path}: {cause.strerror}") from cause


def pin_of(path: Path) -> str:
    """Return the pin of a certificate that lies in a file, the authorities above it behind it.

    Raises:
        errors.NotFound: the file cannot be read.
        errors.MalformedRequest: it is no certificate.
    """
    leaf = Certificate.from_der(from_pem(_text(path))[0])
    return b64encode(sha256(leaf.subject_public_key_info).digest()).decode("ascii")
