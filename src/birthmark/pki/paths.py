"""Paths of other people's certificates: does an authority that is trusted stand for this one (RFC 5280)?

``verify_path`` is for certificates that we did not issue: devices of a registered fleet authority.  It holds
them to section 6.1 as far as anybody uses it: signatures, names, validity, who may certify and how deep, name
constraints, purposes.  A critical extension that is not among these is a refusal.  Status is not looked at.

Ours are compared with the record, byte for byte, and need none of this.
"""

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import NamedTuple

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from birthmark.errors import MalformedRequest, PolicyRefused
from birthmark.pki.algorithms import BROKEN_HASHES
from birthmark.pki.certificates import Certificate, issued_by
from birthmark.pki.library import UNREADABLE
from birthmark.pki.nameconstraints import NameLimits, complaint, read_limits

__all__ = [
    "LARGEST",
    "MOST_BETWEEN",
    "RULE",
    "purposes",
    "require_authority",
    "verify_authority",
    "verify_path",
]

MOST_BETWEEN = 6
"""Authorities between a device and its fleet authority."""
LARGEST = 16_384
"""Octets of a certificate."""
RULE = "foreign-path"
_UNDERSTOOD = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.NAME_CONSTRAINTS,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.CERTIFICATE_POLICIES,
    }
)
"""Extensions that may be critical; policies are no condition of ours, and so every one of them will do."""


class Purposes(NamedTuple):
    """What a certificate is for, by its extensions."""

    certificate: Certificate
    authority: bool
    """basicConstraints say that it is one."""
    path_length: int | None
    certifies: bool
    """keyUsage allows keyCertSign, or is not there."""
    signs_lists: bool
    """keyUsage allows cRLSign, or is not there."""
    authenticates: bool
    """As a TLS client: keyUsage allows a signature or key agreement, extendedKeyUsage clientAuth."""
    answers_status: bool
    """extendedKeyUsage names OCSPSigning."""
    unknown: str | None
    """A critical extension that we do not understand."""
    hash_name: str | None
    """What its signature hashes with; None for EdDSA."""
    limits: NameLimits | None
    alternative: bytes | None
    """subjectAltName (GeneralNames, DER)."""


@lru_cache(maxsize=256)  # every contact of a fleet shows the same few authorities
def purposes(octets: bytes) -> Purposes:
    """Read a certificate (DER) of any origin.

    Raises:
        MalformedRequest: it is no X.509 version 3 certificate, or an extension cannot be read.
    """
    if len(octets) > LARGEST:
        raise MalformedRequest(f"a certificate has at most {LARGEST} octets, not {len(octets)}")
    certificate = Certificate.from_der(octets)
    try:
        parsed = x509.load_der_x509_certificate(octets)
        found = {one.oid: one for one in parsed.extensions}
        values = {oid: one.value for oid, one in found.items()}
        basic = values.get(ExtensionOID.BASIC_CONSTRAINTS)
        usage = values.get(ExtensionOID.KEY_USAGE)
        extended = values.get(ExtensionOID.EXTENDED_KEY_USAGE)
        limits = values.get(ExtensionOID.NAME_CONSTRAINTS)
        alternative = values.get(ExtensionOID.SUBJECT_ALTERNATIVE_NAME)
        digest = parsed.signature_hash_algorithm
        return Purposes(
            certificate=certificate,
            authority=isinstance(basic, x509.BasicConstraints) and basic.ca,
            path_length=basic.path_length if isinstance(basic, x509.BasicConstraints) else None,
            certifies=not isinstance(usage, x509.KeyUsage) or usage.key_cert_sign,
            signs_lists=not isinstance(usage, x509.KeyUsage) or usage.crl_sign,
            authenticates=_authenticates(usage, extended),
            answers_status=isinstance(extended, x509.ExtendedKeyUsage)
            and ExtendedKeyUsageOID.OCSP_SIGNING in extended,
            unknown=next(
                (oid.dotted_string for oid, one in found.items() if one.critical and oid not in _UNDERSTOOD),
                None,
            ),
            hash_name=None if digest is None else digest.name,
            limits=None if limits is None else read_limits(limits.public_bytes()),
            alternative=None if alternative is None else alternative.public_bytes(),
        )
    except UNREADABLE as cause:
        raise MalformedRequest(f"not a certificate that can be read: {cause}") from cause


def _authenticates(usage: x509.ExtensionType | None, extended: x509.ExtensionType | None) -> bool:
    if isinstance(usage, x509.KeyUsage) and not (usage.digital_signature or usage.key_agreement):
        return False
    if not isinstance(extended, x509.ExtendedKeyUsage):
        return True
    return bool({ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(extended))


def verify_path(
    certificate: bytes, between: Sequence[bytes], anchor: bytes, at: datetime
) -> tuple[bytes, ...]:
    """Return the path (DER) of a device: its certificate first, the authority that is trusted last.

    Args:
        certificate: of the device.
        between: authorities above it, the lowest first; what is not needed is passed over from the end.
        anchor: the authority that is trusted; its own issuer is not asked about.
        at: now.

    Raises:
        MalformedRequest: a certificate cannot be read.
        PolicyRefused: the path does not hold (rule ``foreign-path``).
    """
    device = purposes(certificate)
    _require_sound(device, at)
    if device.authority or not device.authenticates:
        raise PolicyRefused(RULE, "the certificate is an authority's, or not for a device that connects")
    return _climb([certificate], between, anchor, at)


def verify_authority(certificate: bytes, between: Sequence[bytes], anchor: bytes, at: datetime) -> None:
    """Check that an authority is one below another; as ``verify_path``.

    Raises:
        MalformedRequest: a certificate cannot be read.
        PolicyRefused: the path does not hold (rule ``foreign-path``).
    """
    require_authority(purposes(certificate), 0, at)
    _climb([certificate], between, anchor, at, below=1)


def _climb(
    path: list[bytes], between: Sequence[bytes], anchor: bytes, at: datetime, *, below: int = 0
) -> tuple[bytes, ...]:
    """Add to a path what is above it, the anchor last; ``below`` authorities are in it already."""
    for issuer in (*between[:MOST_BETWEEN], anchor):
        # The trusted one wins over whatever else of its name and key was sent along.
        arrived = issued_by(path[-1], anchor)
        if not arrived and not issued_by(path[-1], issuer):
            break
        found = anchor if arrived else issuer
        require_authority(purposes(found), len(path) - 1 + below, at)
        path.append(found)
        if arrived:
            _require_names(path)
            return tuple(path)
    raise PolicyRefused(RULE, "the certificates do not lead to the fleet authority")


def require_authority(found: Purposes, below: int, at: datetime) -> None:
    """Refuse what may not certify others.

    Args:
        found: its certificate.
        below: authorities that stand between it and the device.
        at: now.

    Raises:
        PolicyRefused: rule ``foreign-path``.
    """
    _require_sound(found, at)
    name = found.certificate.subject
    if not found.authority or not found.certifies:
        raise PolicyRefused(RULE, f"{name} is no authority: basicConstraints or keyUsage forbid it")
    if found.path_length is not None and below > found.path_length:
        raise PolicyRefused(RULE, f"{name} allows {found.path_length} authorities below it, not {below}")


def _require_sound(found: Purposes, at: datetime) -> None:
    certificate = found.certificate
    if not certificate.not_before <= at <= certificate.not_after:
        raise PolicyRefused(RULE, f"the certificate of {certificate.subject} is not valid at this time")
    if found.unknown is not None:
        raise PolicyRefused(RULE, f"{certificate.subject}: extension {found.unknown} is critical and unknown")
    if found.hash_name in BROKEN_HASHES:
        raise PolicyRefused(RULE, f"{certificate.subject} is signed with {found.hash_name}")


def _require_names(path: Sequence[bytes]) -> None:
    """Hold every name to the constraints of all authorities above it (section 4.2.1.10)."""
    limits = [purposes(octets).limits for octets in path]
    for place, octets in enumerate(path[:-1]):
        above = [one for one in limits[place + 1 :] if one is not None]
        if not above:
            continue
        read = purposes(octets)
        said = complaint(above, read.certificate.subject_name, read.alternative)
        if said is not None:
            raise PolicyRefused(RULE, said)
