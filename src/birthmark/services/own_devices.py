"""Devices of this realm at the gateway: what the record says of their certificates (SPEC H3).

One comes into question if, and only if:

1. its certificate is on record, byte for byte, and valid at this time;
2. neither the certificate nor an authority above it is revoked, nor the certificate suspended;
3. the attempt it belongs to has been proved and released;
4. the device is released, and not held;
5. where it is a certificate of an operational run, the identity it stands on is good, too.

The names in the certificate decide nothing.  Nothing is remembered from one contact to the next but what
never changes: which authorities stand above which.
"""

from collections.abc import Sequence
from datetime import datetime
from functools import partial

from birthmark import errors
from birthmark.floor.authorities import Authority, AuthorityStatus
from birthmark.floor.devices import Attempt, Device, DeviceCertificate, DeviceState
from birthmark.floor.revocations import Revocation
from birthmark.floor.runs import Run, RunLicence, RunPurpose
from birthmark.pki.certificates import Certificate
from birthmark.pki.revocation import ReasonCode
from birthmark.ports import Facts, Look, UseCase
from birthmark.services.revocations import identity_status, line_of, status
from birthmark.services.runs import authority_chain
from birthmark.services.visits import Candidate, Reason, TurnedAway, Visit

__all__ = ["OwnDevices"]


class OwnDevices:
    """Finds whose of this realm's a certificate is."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._above: dict[str, tuple[str, ...]] = {}
        self._operational: dict[str, bool] = {}

    def find(self, visit: Visit, shown: Certificate) -> UseCase[Candidate | None]:
        """Return the device of a certificate, or None if this realm did not issue it."""
        facts: Facts = yield Look({DeviceCertificate: (shown.serial_hex,)})
        found = facts.get(DeviceCertificate, shown.serial_hex)
        if found is None or found.der != visit.certificate:
            return None
        above = yield from self._authorities(found.authority)
        below = yield from self._identity(found)
        identity = [] if below is None else [below]
        rooted = () if below is None else (yield from self._authorities(below.authority))
        return Candidate(
            device=found.device,
            authority=found.authority,
            fleet="",
            judge=partial(_judge, visit.certificate, shown, above),
            register=lambda _facts: None,  # what was released is registered, whenever it comes
            reads={
                DeviceCertificate: [one.serial for one in (found, *identity)],
                Attempt: [one.attempt for one in (found, *identity)],
                Device: (found.device,),
                Revocation: [line_of(one).id for one in (found, *identity)],
                Authority: [*above, *(name for name in rooted if name not in above)],
            },
        )

    def _identity(self, shown: DeviceCertificate) -> UseCase[DeviceCertificate | None]:
        """Return the identity that a certificate stands on, to be read with it; None if it is one itself."""
        if not (yield from self._is_operational(shown.run)):
            return None
        facts: Facts = yield Look({Device: (shown.device,)})
        device = facts.get(Device, shown.device)
        name = "" if device is None else device.attempt
        facts = yield Look({Attempt: (name,)})
        attempt = facts.get(Attempt, name)
        serial = "" if attempt is None else attempt.certificate
        facts = yield Look({DeviceCertificate: (serial,)})
        return facts.get(DeviceCertificate, serial)

    def _is_operational(self, run: str) -> UseCase[bool]:
        """Return whether a run gives certificates besides the identity; that never changes."""
        found = self._operational.get(run)
        if found is None:
            facts: Facts = yield Look({Run: (run,)})
            row = facts.get(Run, run)
            if row is None:
                raise errors.IntegrityFailure(f"run {run} is gone")
            purpose = RunLicence.decode(row.document).purpose
            found = self._operational[run] = purpose is RunPurpose.OPERATIONAL
        return found

    def _authorities(self, authority: str) -> UseCase[tuple[str, ...]]:
        """Return an authority and those above it; that never changes."""
        found = self._above.get(authority)
        if found is None:
            chain: list[Authority] = yield from authority_chain(authority)
            found = self._above[authority] = tuple(one.id for one in chain)
        return found


def _judge(der: bytes, shown: Certificate, above: Sequence[str], facts: Facts, at: datetime) -> None:
    certificate = facts.get(DeviceCertificate, shown.serial_hex)
    if certificate is None or certificate.der != der:
        raise errors.IntegrityFailure(f"certificate {shown.serial_hex} was on record, and is not")
    device = certificate.device
    if not shown.not_before <= at <= shown.not_after:
        times = f"from {shown.not_before:%Y-%m-%d} to {shown.not_after:%Y-%m-%d}"
        raise TurnedAway(Reason.ENDED, f"the certificate of {device} is valid {times}", device=device)
    _require_good("certificate", device, status(facts, line_of(certificate)))
    for name in above:
        authority = facts.get(Authority, name)
        if authority is None or authority.status is AuthorityStatus.REVOKED:
            raise TurnedAway(
                Reason.AUTHORITY_REVOKED, f"authority {name} above {device} is revoked", device=device
            )
    _require_released(facts, certificate)
    _require_good("identity", device, identity_status(facts, certificate))


def _require_good(what: str, device: str, because: ReasonCode | None) -> None:
    if because is ReasonCode.CERTIFICATE_HOLD:
        raise TurnedAway(Reason.SUSPENDED, f"the {what} of {device} is suspended", device=device)
    if because is not None:
        raise TurnedAway(Reason.REVOKED, f"the {what} of {device} is revoked ({because})", device=device)


def _require_released(facts: Facts, certificate: DeviceCertificate) -> None:
    """Refuse a device that has not left the line; a certificate counts once its attempt was proved."""
    device, attempt = facts.get(Device, certificate.device), facts.get(Attempt, certificate.attempt)
    if device is None or attempt is None:
        raise errors.IntegrityFailure(
            f"certificate {certificate.serial} names a device or an attempt that does not exist"
        )
    if DeviceState.HELD in (device.state, attempt.state):
        raise TurnedAway(
            Reason.HELD, f"{device.id} is held at the line: {device.reason or 'no reason'}", device=device.id
        )
    for state in (device.state, attempt.state):
        if state is not DeviceState.RELEASED:
            raise TurnedAway(Reason.NOT_RELEASED, f"{device.id} is {state}, not released", device=device.id)
