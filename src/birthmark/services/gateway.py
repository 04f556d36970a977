"""Whose device is at the door: decided from the record at each contact (SPEC H3, H6).

The handshake has verified a path to an anchor, or a proxy did; that says who certified a key, and nothing of
whether the device may come in now.  ``own_devices`` and ``foreign_devices`` say what has to be so for that;
besides, nobody holds it in the field, and it is at one place.  What comes under another realm's root is
refused whatever it is.

A device's own handshake with a certificate of an operational run that waits for it is the proof that the
device holds its key, here as everywhere (``confirmations``); what a proxy passes on is no handshake with us.

The first contact is an entry of the log, once; a later one only reads, unless something changes.

Left to others: what is told to the applications behind (``gateway_tokens``), who may connect at all
(``edge/http``), and lifting a hold (``field_devices``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from birthmark import errors
from birthmark.floor.authorities import Authority
from birthmark.floor.clients import Capability, require
from birthmark.floor.exposure import Exposure, require_open
from birthmark.floor.fleet import FieldDevice, FieldStatus, moved
from birthmark.pki.certificates import Certificate, issued_by
from birthmark.ports import Act, Clock, Committed, Decision, Facts, Look, Reads, Scan, UseCase
from birthmark.services.acts import Caller, outcomes, refuse
from birthmark.services.confirmations import ConfirmEnrolments
from birthmark.services.field_devices import FIELD_HELD
from birthmark.services.foreign_devices import ForeignDevices
from birthmark.services.own_devices import OwnDevices
from birthmark.services.recognition import recognise_device
from birthmark.services.visits import (
    AT_THE_DOOR,
    PLANE_EXPOSURE,
    Candidate,
    Reason,
    TurnedAway,
    Visit,
    Welcome,
)

__all__ = ["FIRST_SEEN", "Gateway", "require_proxy"]

FIRST_SEEN = "device-first-seen"
REQUEST = "contact"


class Gateway:
    """The use case by which a device comes in."""

    def __init__(
        self,
        clock: Clock,
        own: OwnDevices,
        foreign: ForeignDevices,
        confirmations: ConfirmEnrolments,
        other_realms: Mapping[bytes, str],
    ) -> None:
        """Let devices in.

        Args:
            clock: judges a contact that changes nothing; one that does is judged by the commit's.
            own: finds devices of this realm.
            foreign: finds those of registered authorities.
            confirmations: takes a handshake as the proof of a certificate.
            other_realms: roots (DER) of realms whose devices are told apart from strangers, and their names.
        """
        self._clock = clock
        self._own = own
        self._foreign = foreign
        self._confirmations = confirmations
        self._other_realms = [(Certificate.from_der(der), name) for der, name in other_realms.items()]

    def meet(self, visit: Visit) -> UseCase[Welcome]:
        """Let a device in, or turn it away; a commit only if it is new, has moved, proves or is found twice.

        Raises:
            TurnedAway: it is not let in; says why.
            errors.NotPermitted: the gateway is closed at this time.
            errors.MalformedRequest: what it shows is no certificate.
            errors.Unavailable: what decides about it is being changed.
        """
        try:
            return (yield from self._judged(visit))
        except TurnedAway as refusal:
            if refusal.rule != Reason.NOT_RELEASED or visit.actor != AT_THE_DOOR:
                raise
            caller = yield from recognise_device(visit.certificate)
            if not (yield from self._confirmations.proved_by_use(caller)):
                raise
        return (yield from self._judged(visit))

    def _judged(self, visit: Visit) -> UseCase[Welcome]:
        shown = Certificate.from_der(visit.certificate)
        candidate = yield from self._own.find(visit, shown)
        if candidate is None:
            self._require_this_realm(visit.path, shown)
            candidate = yield from self._foreign.find(visit, shown)
            if candidate is not None:  # whatever somebody registered
                self._require_this_realm([candidate.anchor], shown)
        if candidate is None:
            raise (yield from _stranger(visit, shown))
        reads: Reads = {
            **candidate.reads,
            FieldDevice: (candidate.device,),
            Exposure: (PLANE_EXPOSURE,),
        }
        facts: Facts = yield Look(reads)
        now = self._clock.now()
        before = _judge(facts, candidate, now)
        if before is not None and (before.place, before.certificate) == (visit.place, shown.fingerprint):
            return _welcome(before, candidate, now, first=False)
        return (yield from _act(visit, shown, candidate, reads))

    def _require_this_realm(self, above: Sequence[bytes], shown: Certificate) -> None:
        """Refuse a device of another realm: test and production never mix.

        It is one if that realm's root stands above it, has its key there under another certificate, or has
        issued what does.
        """
        if not self._other_realms:
            return
        for certificate in map(Certificate.from_der, above):
            for root, name in self._other_realms:
                if certificate.subject_public_key_info == root.subject_public_key_info or (
                    certificate.issuer_name == root.subject_name and issued_by(certificate.der, root.der)
                ):
                    raise TurnedAway(
                        Reason.WRONG_REALM,
                        f"{shown.subject[:200]} is under {name[:200]}: its devices never come in here",
                    )


def _act(visit: Visit, shown: Certificate, candidate: Candidate, reads: Reads) -> UseCase[Welcome]:
    """Judge at the commit, and put on record what is new."""

    def decide(facts: Facts, at: datetime) -> Decision[Welcome | errors.Refusal]:
        before = _judge(facts, candidate, at)
        return _arrived(facts, visit, candidate, shown, before, at)

    said = {"device": candidate.device, "address": visit.place, "certificate_sha256": shown.fingerprint}
    committed: list[Committed[Welcome | errors.Refusal]] = yield [
        Act(actor=visit.actor, decide=decide, refuse=refuse(None, REQUEST, said), reads=reads)
    ]
    (answer,) = outcomes(committed)
    if isinstance(answer, errors.Refusal):  # outcomes has raised it
        raise answer
    return answer


def _stranger(visit: Visit, shown: Certificate) -> UseCase[TurnedAway]:
    """Return why a certificate is turned away that nobody knows."""
    ours: list[Authority] = yield Scan(kind=Authority, where={})
    issuer = next((one.id for one in ours if one.der in visit.path), None)
    said = "no registered authority stands above it" if issuer is None else f"though it is under {issuer}"
    return TurnedAway(
        Reason.UNKNOWN, f"certificate {shown.serial_hex} ({shown.subject[:200]}) is not on record; {said}"
    )


def _judge(facts: Facts, candidate: Candidate, at: datetime) -> FieldDevice | None:
    """Return what is known of the device in the field, None if it was never here; raises if it is not let in.

    A hold of a person's, or for a clone, comes before what its certificate says.
    """
    require_open([facts.get(Exposure, PLANE_EXPOSURE)], at)
    found = facts.get(FieldDevice, candidate.device)
    if found is not None and found.status is FieldStatus.HELD:
        raise TurnedAway(
            Reason.HELD, f"{candidate.device} is held in the field: {found.reason}", device=candidate.device
        )
    candidate.judge(facts, at)
    if found is None:
        candidate.register(facts)
    return found


def _arrived(
    facts: Facts,
    visit: Visit,
    candidate: Candidate,
    shown: Certificate,
    before: FieldDevice | None,
    at: datetime,
) -> Decision[Welcome | errors.Refusal]:
    """Put on record where a device is, that it was seen first, or that it is held for being at two places."""
    if before is None:
        return _first_seen(facts, visit, candidate, shown, at)
    try:
        device = moved(before, visit.place, visit.connected_at, at)
    except errors.NotPermitted as cloned:
        return _hold_both(facts, visit, shown, before, str(cloned))
    device = replace(device, certificate=shown.fingerprint)
    if device != before:
        facts.put(device)
    return Decision(_welcome(device, candidate, at, first=False))


def _first_seen(
    facts: Facts, visit: Visit, candidate: Candidate, shown: Certificate, at: datetime
) -> Decision[Welcome | errors.Refusal]:
    device = FieldDevice(
        id=candidate.device,
        authority=candidate.fleet,
        certificate=shown.fingerprint,
        status=FieldStatus.ACTIVE,
        reason=None,
        place=visit.place,
        moved_at=visit.connected_at,
        moves=0,
        counted_from=at,
        first_seen_at=at,
        first_seen_leaf=facts.next_leaf,
    )
    facts.put(device)
    entry = {
        "device": device.id,
        "fleet_authority": device.authority,
        "authority": candidate.authority,
        "certificate_sha256": device.certificate,
        "address": device.place,
    }
    return Decision(_welcome(device, candidate, at, first=True), [(FIRST_SEEN, entry)])


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
    return Decision(refusal, [(FIELD_HELD, entry)])


def _welcome(device: FieldDevice, candidate: Candidate, at: datetime, *, first: bool) -> Welcome:
    return Welcome(
        device=device.id,
        authority=candidate.authority,
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
    facts: Facts = yield Look({Exposure: (PLANE_EXPOSURE, caller.client.id)})
    require_open((facts.get(Exposure, name) for name in (PLANE_EXPOSURE, caller.client.id)), at)
