"""Where a certificate stands, and how that changes: the one place that writes a CRL's lines.

Revoked is for good, suspended is not (RFC 5280 section 5.3.1): a suspended certificate may be revoked or
reinstated, a revoked one stays as it is, with the reason and the time it was first given.
"""

from dataclasses import dataclass
from datetime import datetime

from birthmark import errors
from birthmark.floor.authorities import Authority, AuthorityStatus
from birthmark.floor.clients import Credential
from birthmark.floor.devices import Attempt, Device, DeviceCertificate
from birthmark.floor.revocations import AUTHORITIES, CLIENTS, Revocation, revocation_key
from birthmark.pki.certificates import Certificate
from birthmark.pki.revocation import ReasonCode, revoked_entry
from birthmark.ports import Facts

__all__ = [
    "Line",
    "device_status",
    "identity_status",
    "line_of",
    "reinstate",
    "require_good",
    "revoke",
    "status",
]


@dataclass(frozen=True, slots=True)
class Line:
    """Which line of which CRL is a certificate's."""

    authority: str
    """Id of the authority that issued it."""
    partition: str
    serial: str
    """Serial number, lower-case hex."""

    @property
    def id(self) -> str:
        """Id of its ``Revocation``."""
        return revocation_key(self.authority, self.partition, self.serial)


def line_of(certificate: DeviceCertificate | Credential | Authority) -> Line:
    """Return the line of a device's, a client's or an authority's certificate."""
    if isinstance(certificate, DeviceCertificate):
        return Line(certificate.authority, certificate.partition, certificate.serial)
    if isinstance(certificate, Credential):
        return Line(certificate.authority, CLIENTS, certificate.serial)
    serial = Certificate.from_der(certificate.der).serial_hex
    return Line(certificate.issuer, AUTHORITIES, serial)


def status(facts: Facts, line: Line) -> ReasonCode | None:
    """Return why the certificate is not good, or None if it is."""
    revocation = facts.get(Revocation, line.id)
    return None if revocation is None else revocation.status


def _identity_below(facts: Facts, shown: DeviceCertificate) -> DeviceCertificate | None:
    """Return the identity that a certificate of a device stands on; None if it is the identity itself.

    Raises:
        errors.IntegrityFailure: it is gone.
    """
    device = facts.get(Device, shown.device)
    if device is not None and device.attempt == shown.attempt:
        return None
    attempt = None if device is None else facts.get(Attempt, device.attempt)
    identity = None if attempt is None else facts.get(DeviceCertificate, attempt.certificate)
    if identity is None:
        raise errors.IntegrityFailure(f"the identity of {shown.device} is gone")
    return identity


def identity_status(facts: Facts, shown: DeviceCertificate) -> ReasonCode | None:
    """Return why the identity that a certificate stands on is not good, or None if it is.

    What a device has besides its identity was given to that: whoever recalls the identity, by whatever
    selection, means the device (SPEC H2).

    Raises:
        errors.IntegrityFailure: it, or an authority above it, is gone.
    """
    identity = _identity_below(facts, shown)
    return None if identity is None else device_status(facts, identity)


def device_status(facts: Facts, shown: DeviceCertificate) -> ReasonCode | None:
    """Return why a device's certificate, or an authority above it, is not good; None if all are.

    Raises:
        errors.IntegrityFailure: an authority above it is gone.
    """
    because = status(facts, line_of(shown))
    name, below = shown.authority, ""
    while because is None and name != below:
        authority = facts.get(Authority, name)
        if authority is None:
            raise errors.IntegrityFailure(f"authority {name} above {shown.device} is gone")
        if authority.status is AuthorityStatus.REVOKED:
            because = ReasonCode.CA_COMPROMISE
        name, below = authority.issuer, name
    return because


def revoke(
    facts: Facts,
    line: Line,
    reason: ReasonCode,
    at: datetime,
    cause: str,
    *,
    invalidity_date: datetime | None = None,
) -> bool:
    """Revoke or suspend a certificate; return whether that changed anything.

    A certificate that is revoked, or suspended again, stays as it is.
    """
    before = status(facts, line)
    if before is not None and (before is not ReasonCode.CERTIFICATE_HOLD or reason is before):
        return False
    entry = revoked_entry(int(line.serial, 16), at, reason, invalidity_date=invalidity_date)
    facts.put(Revocation(id=line.id, entry=entry, reason=reason, revoked_at=at, cause=cause))
    return True


def revoke_all(facts: Facts, attempt: Attempt, reason: ReasonCode, at: datetime, cause: str) -> list[str]:
    """Revoke the certificates of an attempt; return the serial numbers of those that changed.

    Raises:
        errors.IntegrityFailure: one is gone.
    """
    revoked = []
    for serial in attempt.certificates:
        certificate = facts.get(DeviceCertificate, serial)
        if certificate is None:
            raise errors.IntegrityFailure(f"certificate {serial} of attempt {attempt.id} is gone")
        if revoke(facts, line_of(certificate), reason, at, cause):
            revoked.append(serial)
    return revoked


def reinstate(facts: Facts, line: Line, at: datetime, cause: str) -> bool:
    """Lift a suspension; return whether there was one."""
    if status(facts, line) is not ReasonCode.CERTIFICATE_HOLD:
        return False
    lifted = ReasonCode.REMOVE_FROM_CRL
    facts.put(Revocation(id=line.id, entry=b"", reason=lifted, revoked_at=at, cause=cause))
    return True


def require_good(facts: Facts, attempt: Attempt) -> None:
    """Refuse to go on with a device one of whose certificates was recalled since it was issued.

    Raises:
        errors.IllegalTransition: one is revoked.
        errors.IntegrityFailure: one is gone.
    """
    for serial in attempt.certificates:
        certificate = facts.get(DeviceCertificate, serial)
        if certificate is None:
            raise errors.IntegrityFailure(f"certificate {serial} of attempt {attempt.id} is gone")
        reason = status(facts, line_of(certificate))
        if reason is not None:
            raise errors.IllegalTransition(
                f"the certificate of {attempt.device} is revoked ({reason}): hold the device and rework it"
            )
