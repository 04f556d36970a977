"""Devices of other fleets at the gateway: what their authority's registration is worth to them (SPEC H3, H5).

One comes into question if, and only if:

1. a path leads from its certificate to a registered authority, the lowest one on it (``pki.paths``);
2. that authority is active;
3. its certificate names a device as the policy wants it (``floor.naming``);
4. nothing on the path is revoked, and fresh proofs say so, where the policy requires them.

Whether the first contact registers it, the policy says, too.  What OCSP would have to be asked is returned as
``StatusMissing``: asking is for whoever has a network.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from birthmark import errors
from birthmark.floor.fleet import (
    FirstContact,
    FleetAuthority,
    FleetPolicy,
    field_id,
    require_accepting,
)
from birthmark.floor.naming import device_name
from birthmark.floor.runs import AllowedDevice
from birthmark.pki.certificates import Certificate, issued_by
from birthmark.pki.crl_index import CRLIndex
from birthmark.ports import Clock, Entropy, Facts, Scan, UseCase
from birthmark.services.foreign_status import (
    Answers,
    Link,
    Lists,
    Question,
    fleet_of,
    judge,
    links_of,
    lists_of,
    questions,
)
from birthmark.services.visits import Candidate, Reason, TurnedAway, Visit

__all__ = ["ForeignDevices", "Listed", "StatusMissing"]

_RULES = frozenset(map(str, Reason))


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """What one process has of other fleets' revocations; see ``foreign_status``."""

    lists: Lists
    answers: Answers


class StatusMissing(TurnedAway):
    """Nothing fresh says that a certificate is good; somebody may ask ``questions``, and judge again."""

    def __init__(self, complaint: str, asked: Sequence[Question], *, device: str) -> None:
        super().__init__(Reason.STATUS_UNKNOWN, complaint, device=device)
        self.questions = tuple(asked)


class ForeignDevices:
    """Finds whose of other fleets a certificate is."""

    def __init__(self, clock: Clock, entropy: Entropy, listed: Listed) -> None:
        """Judge by what this process has of revocations."""
        self._clock = clock
        self._entropy = entropy
        self._listed = listed

    def find(self, visit: Visit, shown: Certificate) -> UseCase[Candidate | None]:
        """Return the device of a certificate, or None if no registered authority stands above it.

        Raises:
            TurnedAway: one does, and the certificate is none of a device that comes into question.
        """
        registered: list[FleetAuthority] = yield Scan(kind=FleetAuthority, where={})
        known = [one for one in registered if one.is_registered]
        chain = (visit.certificate, *visit.path)
        fleet = fleet_of(chain, known) or _above(shown, visit.path, known)
        if fleet is None:
            return None
        try:
            require_accepting(fleet)
        except errors.NotPermitted as closed:
            raise TurnedAway(Reason.FLEET_CLOSED, str(closed)) from closed
        policy, now = FleetPolicy.decode(fleet.policy), self._clock.now()
        device = ""
        try:
            links = links_of(fleet, chain, now)
            name = device_name(policy, visit.certificate)
            device = field_id(fleet.id, name)
            lists = yield from lists_of(self._listed.lists, links)
        except errors.PolicyRefused as refused:
            raise _turned_away(refused, device) from refused
        return Candidate(
            device=device,
            authority=fleet.id,
            fleet=fleet.id,
            anchor=fleet.der,
            judge=partial(self._judge, fleet, device, links, lists),
            register=partial(_register, policy, device, name),
            reads={
                FleetAuthority: (fleet.id,),
                AllowedDevice: (AllowedDevice.line(policy.allow_list, name),) if policy.allow_list else (),
            },
        )

    def _judge(
        self,
        fleet: FleetAuthority,
        device: str,
        links: Sequence[Link],
        lists: Mapping[str, CRLIndex],
        facts: Facts,
        at: datetime,
    ) -> None:
        current = facts.get(FleetAuthority, fleet.id)
        if current is None or (current.der, current.policy) != (fleet.der, fleet.policy):
            raise errors.Unavailable(f"fleet authority {fleet.id} is being changed: come again")
        try:
            require_accepting(current)
        except errors.NotPermitted as closed:
            raise TurnedAway(Reason.FLEET_CLOSED, str(closed), device=device) from closed
        policy, answers = FleetPolicy.decode(current.policy), self._listed.answers
        try:
            judge(policy, links, lists, answers, at)
        except errors.PolicyRefused as refused:
            if refused.rule == Reason.STATUS_UNKNOWN:
                asked = questions(policy, links, lists, answers, at, self._entropy)
                raise StatusMissing(str(refused), asked, device=device) from refused
            raise _turned_away(refused, device) from refused


def _above(
    shown: Certificate, path: Sequence[bytes], known: Sequence[FleetAuthority]
) -> FleetAuthority | None:
    """Return the registered authority that certificates a proxy passed on name as their issuer, if one does.

    Several may have the name: it is the one that signed.  Where none did, the path is going to say so.
    """
    named: FleetAuthority | None = None
    for certificate in (shown, *map(Certificate.from_der, path)):
        for one in known:
            if Certificate.from_der(one.der).subject_name == certificate.issuer_name:
                if issued_by(certificate.der, one.der):
                    return one
                named = named or one
    return named


def _turned_away(refused: errors.PolicyRefused, device: str) -> TurnedAway:
    reason = Reason(refused.rule) if refused.rule in _RULES else Reason.FOREIGN_PATH
    return TurnedAway(reason, str(refused), device=device)


def _register(policy: FleetPolicy, device: str, name: str, facts: Facts) -> None:
    """Refuse the first contact of a device that the policy does not register."""
    if policy.first_contact is FirstContact.REGISTER:
        return
    listed = policy.first_contact is FirstContact.LISTED
    if listed and facts.get(AllowedDevice, AllowedDevice.line(policy.allow_list, name)) is not None:
        return
    why = "it is not on the list of its fleet" if listed else "its fleet's policy registers nobody"
    raise TurnedAway(Reason.NOT_REGISTERED, f"{device} was never here, and {why}", device=device)
