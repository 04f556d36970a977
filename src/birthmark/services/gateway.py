"""Whose device is at the door: decided from the record at each contact (SPEC H3, H6).

The handshake has verified a path to an anchor, or a proxy did; that says who certified a key, and nothing of
whether the device may come in now.  A device of this realm comes in if, and only if:

1. its certificate is on record, byte for byte, and valid at this time;
2. neither the certificate nor an authority above it is revoked, nor the certificate suspended;
3. the attempt it belongs to has been proved and released;
4. the device is released, and not held;
5. nobody holds it in the field, and it is at one place.

What comes under another realm's root is refused whatever it is.  The first contact is an entry of the log,
once; a later one only reads, unless something changes.  Nothing is remembered from one contact to the next
but what never changes: which authorities stand above which.

Left to others: what is told to the applications behind (``gateway_tokens``), who may connect at all
(``edge/http``), and lifting a hold (a person).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

from birthmark import errors
from birthmark.floor.authorities import Authority, AuthorityStatus
from birthmark.floor.clients import Capability, require
from birthmark.floor.devices import Attempt, Device, DeviceCertificate, DeviceState
from birthmark.floor.exposure import Exposed, Exposure, exposure_id, require_open
from birthmark.floor.fleet import FieldDevice, FieldStatus, moved
from birthmark.floor.revocations import Revocation
from birthmark.pki.certificates import Certificate
from birthmark.pki.revocation import ReasonCode
from birthmark.ports import Act, Clock, Committed, Decision, Facts, Look, Scan, UseCase
from birthmark.services.acts import Caller, outcomes, refuse
from birthmark.services.revocations import line_of, status
from birthmark.services.runs import authority_chain

__all__ = ["AT_THE_DOOR", "PLANE", "Gateway", "Reason", "TurnedAway", "Visit", "Welcome", "require_proxy"]

PLANE = "gateway"
"""Its name where planes are opened and closed."""
AT_THE_DOOR = "peer:device"
"""The actor of what a device does by itself: it is no client, and entries name it in a field of their own."""
REQUEST = "contact"
_PLANE = exposure_id(Exposed.PLANE, PLANE)


class Reason(StrEnum):
    """Why a device is turned away: the rule that its refusal names."""

    UNKNOWN = "device-unknown"
    """No such certificate is on record."""
    NOT_RELEASED = "device-not-released"
    HELD = "device-held"
    """At the line, or in the field."""
    CLONED = "device-cloned"
    """It is at two places at once; from now on it is held."""
    ENDED = "certificate-ended"
    """Or not yet valid."""
    REVOKED = "certificate-revoked"
    SUSPENDED = "certificate-suspended"
    AUTHORITY_REVOKED = "authority-revoked"
    WRONG_REALM = "wrong-realm"


class TurnedAway(errors.PolicyRefused):
    """A device that is not let in; ``rule`` is the ``Reason``."""

    def __init__(self, reason: Reason, complaint: str, *, device: str = "") -> None:
        super().__init__(str(reason), complaint)
        self.device = device
        """Its id, where the record knows one for its certificate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """A certificate, and where whoever has its key is."""

    certificate: bytes = field(repr=False)
    """DER; possession of its key was shown in a handshake."""
    path: tuple[bytes, ...] = field(repr=False)
    """The certificates above it (DER) that it was verified with, the anchor last; empty from a proxy."""
    place: str
    """The address, or IPv6 network of 64 bits."""
    connected_at: datetime
    """When its connection was opened."""
    actor: str = AT_THE_DOOR
    """Who asks: the device itself, or a proxy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """A device that is let in."""

    device: str
    """``FieldDevice.id``."""
    authority: str
    """Who certified it: the authority of this realm that did."""
    certificate_sha256: str
    """Fingerprint (hex)."""
    first_seen_at: datetime
    at: datetime
    first: bool
    """This is its first contact."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """A certificate of this realm, and all that decides about it."""

    serial: str
    authority: str
    attempt: str
    device: str
    line: str
    """Id of its ``Revocation``, if it had one."""
    above: tuple[str, ...]
    """Ids of its authority and those above that one."""

    @property
    def reads(self) -> dict[type, Sequence[str]]:
        return {
            DeviceCertificate: (self.serial,),
            Attempt: (self.attempt,),
            Device: (self.device,),
            Revocation: (self.line,),
            Authority: self.above,
            FieldDevice: (self.device,),
            Exposure: (_PLANE,),
        }


class Gateway:
    """The use case by which a device comes in."""

    def __init__(self, clock: Clock, other_realms: Mapping[bytes, str]) -> None:
        """Let devices of this realm in.

        Args:
            clock: judges a contact that changes nothing; one that does is judged by the commit's.
            other_realms: roots (DER) of realms whose devices are told apart from strangers, and their names.
        """
        self._clock = clock
        self._other_realms = dict(other_realms)
        self._above: dict[str, tuple[str, ...]] = {}

    def meet(self, visit: Visit) -> UseCase[Welcome]:
        """Let a device in, or turn it away; a commit only if it is new, has moved or is found twice.

        Raises:
            TurnedAway: it is not let in; says why.
            errors.NotPermitted: the gateway is closed at this time.
            errors.MalformedRequest: what it shows is no certificate.
        """
        shown = Certificate.from_der(visit.certificate)
        known = yield from self._identify(visit, shown)
        facts: Facts = yield Look(known.reads)
        welcome = self._unchanged(facts, visit, known, shown, self._clock.now())
        if welcome is not None:
            return welcome
        said = {"device": known.device, "address": visit.place, "certificate_sha256": shown.fingerprint}

        def decide(facts: Facts, at: datetime) -> Decision[Welcome | errors.Refusal]:
            field_device = self._judge(facts, visit, known, shown, at)
            return _arrived(facts, visit, known, shown, field_device, at)

        committed: list[Committed[Welcome | errors.Refusal]] = yield [
            Act(actor=visit.actor, decide=decide, refuse=refuse(None, REQUEST, said), reads=known.reads)
        ]
        (answer,) = outcomes(committed)
        if isinstance(answer, errors.Refusal):  # outcomes has raised it
            raise answer
        return answer

    def _unchanged(
        self, facts: Facts, visit: Visit, known: _Known, shown: Certificate, at: datetime
    ) -> Welcome | None:
        """Judge a contact; return the answer if there is nothing to put on record."""
        device = self._judge(facts, visit, known, shown, at)
        if device is None or (device.place, device.certificate) != (visit.place, shown.fingerprint):
            return None
        return _welcome(device, known, at, first=False)

    # --- who it is

    def _identify(self, visit: Visit, shown: Certificate) -> UseCase[_Known]:
        facts: Facts = yield Look({DeviceCertificate: (shown.serial_hex,)})
        certificate = facts.get(DeviceCertificate, shown.serial_hex)
        if certificate is None or certificate.der != visit.certificate:
            raise (yield from self._stranger(visit, shown))
        return _Known(
            serial=certificate.serial,
            authority=certificate.authority,
            attempt=certificate.attempt,
            device=certificate.device,
            line=line_of(certificate).id,
            above=(yield from self._authorities(certificate.authority)),
        )

    def _authorities(self, authority: str) -> UseCase[tuple[str, ...]]:
        """Return an authority and those above it; that never changes."""
        found = self._above.get(authority)
        if found is None:
            chain: list[Authority] = yield from authority_chain(authority)
            found = self._above[authority] = tuple(one.id for one in chain)
        return found

    def _stranger(self, visit: Visit, shown: Certificate) -> UseCase[TurnedAway]:
        """Return why a certificate that is not on record is turned away."""
        for der in visit.path:
            if (realm := self._other_realms.get(der)) is not None:
                return TurnedAway(
                    Reason.WRONG_REALM,
                    f"{shown.subject[:200]} is of the realm {realm}: its devices never come in here",
                )
        ours: list[Authority] = yield Scan(kind=Authority, where={})
        issuer = next((one.id for one in ours if one.der in visit.path), None)
        said = "its path names no authority of ours" if issuer is None else f"its path leads to {issuer}"
        return TurnedAway(
            Reason.UNKNOWN, f"certificate {shown.serial_hex} ({shown.subject[:200]}) is not on record; {said}"
        )

    # --- whether it comes in

    def _judge(
        self, facts: Facts, visit: Visit, known: _Known, shown: Certificate, at: datetime
    ) -> FieldDevice | None:
        """Return what is known of the device in the field, if it may come in; the steps are the module's.

        Raises:
            TurnedAway: it may not.
            errors.NotPermitted: the gateway is closed.
        """
        require_open([facts.get(Exposure, _PLANE)], at)
        certificate = facts.get(DeviceCertificate, known.serial)
        if certificate is None or certificate.der != visit.certificate:
            raise errors.IntegrityFailure(f"certificate {known.serial} was on record, and is not")
        if not shown.not_before <= at <= shown.not_after:
            raise TurnedAway(
                Reason.ENDED,
                f"the certificate of {known.device} is valid from {shown.not_before:%Y-%m-%d} to"
                f" {shown.not_after:%Y-%m-%d}",
                device=known.device,
            )
        _require_not_revoked(facts, certificate, known.above)
        _require_released(facts, certificate)
        return _require_not_held(facts, known.device)


def _require_not_revoked(facts: Facts, certificate: DeviceCertificate, above: Sequence[str]) -> None:
    because = status(facts, line_of(certificate))
    if because is ReasonCode.CERTIFICATE_HOLD:
        raise TurnedAway(
            Reason.SUSPENDED,
            f"the certificate of {certificate.device} is suspended",
            device=certificate.device,
        )
    if because is not None:
        raise TurnedAway(
            Reason.REVOKED,
            f"the certificate of {certificate.device} is revoked ({because})",
            device=certificate.device,
        )
    for name in above:
        authority = facts.get(Authority, name)
        if authority is None or authority.status is AuthorityStatus.REVOKED:
            raise TurnedAway(
                Reason.AUTHORITY_REVOKED,
                f"the authority {name} above {certificate.device} is revoked",
                device=certificate.device,
            )


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
    if device.state is not DeviceState.RELEASED or attempt.state is not DeviceState.RELEASED:
        state = device.state if device.state is not DeviceState.RELEASED else attempt.state
        raise TurnedAway(Reason.NOT_RELEASED, f"{device.id} is {state}, not released", device=device.id)


def _require_not_held(facts: Facts, device: str) -> FieldDevice | None:
    found = facts.get(FieldDevice, device)
    if found is not None and found.status is FieldStatus.HELD:
        raise TurnedAway(Reason.HELD, f"{device} is held in the field: {found.reason}", device=device)
    return found


def _arrived(
    facts: Facts,
    visit: Visit,
    known: _Known,
    shown: Certificate,
    before: FieldDevice | None,
    at: datetime,
) -> Decision[Welcome | errors.Refusal]:
    """Put on record where a device is, that it was seen first, or that it is held for being at two places."""
    if before is None:
        device = FieldDevice(
            id=known.device,
            authority="",
            certificate=shown.fingerprint,
            status=FieldStatus.ACTIVE,
            reason=None,
            place=visit.place,
            moved_at=at,
            moves=0,
            counted_from=at,
            first_seen_at=at,
            first_seen_leaf=facts.next_leaf,
        )
        facts.put(device)
        entry = {
            "device": device.id,
            "fleet_authority": device.authority,
            "authority": known.authority,
            "certificate_sha256": device.certificate,
            "address": device.place,
        }
        return Decision(_welcome(device, known, at, first=True), [("device-first-seen", entry)])
    try:
        device = moved(before, visit.place, visit.connected_at, at)
    except errors.NotPermitted as cloned:
        return _hold_both(facts, visit, shown, before, str(cloned))
    device = replace(device, certificate=shown.fingerprint)
    if device != before:
        facts.put(device)
    return Decision(_welcome(device, known, at, first=False))


def _hold_both(
    facts: Facts, visit: Visit, shown: Certificate, before: FieldDevice, why: str
) -> Decision[Welcome | errors.Refusal]:
    """Hold a device that two have: nobody knows which of them is the clone."""
    facts.put(replace(before, status=FieldStatus.HELD, reason=why))
    entry = {
        "device": before.id,
        "reason": why,
        "rule": str(Reason.CLONED),
        "certificate_sha256": shown.fingerprint,
        "address": visit.place,
    }
    refusal = TurnedAway(Reason.CLONED, f"{why}; it is held", device=before.id)
    return Decision(refusal, [("field-device-held", entry)])


def _welcome(device: FieldDevice, known: _Known, at: datetime, *, first: bool) -> Welcome:
    return Welcome(
        device=device.id,
        authority=known.authority,
        certificate_sha256=device.certificate,
        first_seen_at=device.first_seen_at,
        at=at,
        first=first,
    )


def require_proxy(caller: Caller, at: datetime) -> UseCase[None]:
    """Refuse whoever may not ask about devices at this time.

    Raises:
        errors.Unauthenticated: it was revoked, or its certificate ended.
        errors.NotPermitted: its role may not, or the gateway is closed.
    """
    require(caller.client, caller.credential, Capability.ASK_DEVICE)
    if at >= caller.credential.not_after:
        raise errors.Unauthenticated(f"the certificate of {caller.client.id} ended: renew it")
    facts: Facts = yield Look({Exposure: (_PLANE, caller.client.id)})
    require_open((facts.get(Exposure, name) for name in (_PLANE, caller.client.id)), at)
