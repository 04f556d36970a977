"""What two people do together: change authorities, let a person in, give one another role (SPEC K1).

One person signs a motion, another signs the same octets, and the commit of the second signature does what the
motion says.  Whoever may do it alone (a test realm's people) does not come here.  Runs and recalls are
proposed and approved in modules of their own, by the same rules: other people, other keys, an end.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

from birthmark import errors
from birthmark.floor.authorities import Authority, AuthorityStatus
from birthmark.floor.clients import (
    FEWEST_OFFICERS,
    PEOPLE,
    TWO_PERSON,
    Capability,
    Client,
    ClientStatus,
    Credential,
    Role,
    takes_two,
)
from birthmark.floor.fleet import FleetAuthority, FleetPolicy, FleetStatus
from birthmark.floor.proposals import Deed, Motion, Proposal, ProposalStatus
from birthmark.floor.realm import Realm
from birthmark.ledger.entry import parse_time, time_text
from birthmark.pki.certificates import Certificate
from birthmark.ports import Decision, Entropy, Facts, Look, Scan, UseCase
from birthmark.services.acts import Caller, admitted, decided, live_client, recorded
from birthmark.services.authorise import Authorise, Enrolment, put_changed, put_enrolled
from birthmark.services.fleet import (
    put_policy,
    put_registered,
    put_status,
    registered,
    require_registrable,
)
from birthmark.services.shared import put_shared, require_shareable, sharing_of
from birthmark.services.two_people import require_second, require_two, verify_approval, verify_signed

__all__ = ["NEEDED", "Proposals", "enrolment_of", "put_role", "signed_motion", "terms_of"]

T = TypeVar("T")

NEEDED: dict[Deed, Capability] = {
    Deed.CHANGE_AUTHORITY: Capability.CHANGE_AUTHORITY,
    Deed.ENROL_PERSON: Capability.CHANGE_ROLES,
    Deed.CHANGE_ROLE: Capability.CHANGE_ROLES,
    Deed.REGISTER_FLEET: Capability.CHANGE_FLEET,
    Deed.CHANGE_FLEET: Capability.CHANGE_FLEET,
    Deed.SHARE_CREDENTIAL: Capability.SHARE_CREDENTIAL,
}
"""What whoever proposes a deed must be allowed to; ``TWO_PERSON`` says the same of the second person."""


def terms_of(enrolment: Enrolment) -> dict[str, str]:
    """Return the terms of a motion that lets this person in, or renews the person's certificate."""
    ends = {} if enrolment.not_after is None else {"not_after": time_text(enrolment.not_after)}
    return ends | {
        "role": str(enrolment.role),
        "authority": enrolment.authority,
        "public_key": enrolment.subject_public_key_info.hex(),
        "organization": enrolment.variables["organization"],
        "renew": "yes" if enrolment.renew else "no",
    }


def enrolment_of(motion: Motion) -> Enrolment:
    """Return the enrolment a motion describes.

    Raises:
        errors.MalformedRequest: it describes none of a person.
    """
    terms, (kind, _, name) = dict(motion.terms), motion.subject.partition(":")
    try:
        enrolment = Enrolment(
            role=Role(terms.pop("role")),
            name=name,
            subject_public_key_info=bytes.fromhex(terms.pop("public_key")),
            authority=terms.pop("authority"),
            variables={"organization": terms.pop("organization"), kind: name},
            not_after=parse_time(terms.pop("not_after")) if "not_after" in terms else None,
            renew={"yes": True, "no": False}[terms.pop("renew")],
        )
    except (KeyError, ValueError) as cause:
        raise errors.MalformedRequest("the motion does not say whom to let in") from cause
    if terms or enrolment.role not in PEOPLE or enrolment.client != motion.subject:
        raise errors.MalformedRequest("the motion does not say whom to let in")
    return enrolment


def signed_motion(
    proposal: Proposal, realm: Realm, proposer: Credential | None, approver: Credential | None
) -> Motion:
    """Return the motion of a proposal, if the people it names signed it: two of them once it is approved.

    Raises:
        errors.IntegrityFailure: a signature, a signer, the realm or the id is not the motion's, or both
            signatures are one person's.
    """
    try:
        motion = Motion.decode(proposal.document)
        _require_signed(proposal, proposer, proposal.proposer, proposal.proposal)
        if proposer is None or proposer.client != motion.proposed_by:
            raise errors.IntegrityFailure(f"proposal {proposal.id} is not signed by {motion.proposed_by}")
        if proposal.status is ProposalStatus.APPROVED:
            _require_signed(proposal, approver, proposal.approver, proposal.approval)
            require_two(proposer, approver)
    except (errors.MalformedRequest, errors.ProofFailed, errors.NotPermitted) as cause:
        raise errors.IntegrityFailure(
            f"proposal {proposal.id} is not what two people signed: {cause}"
        ) from cause
    if (motion.id, motion.realm, motion.environment) != (proposal.id, realm.name, realm.environment):
        raise errors.IntegrityFailure(
            f"proposal {proposal.id} belongs to {motion.realm} ({motion.environment}) as {motion.id}"
        )
    return motion


def _require_signed(
    proposal: Proposal, credential: Credential | None, serial: str | None, signature: bytes | None
) -> None:
    if credential is None or credential.serial != serial or signature is None:
        raise errors.IntegrityFailure(f"proposal {proposal.id} is signed by nobody of this realm")
    verify_signed(credential, signature, proposal.document)


def put_role(
    facts: Facts, person: str, role: Role, officers: Sequence[str], realm: Realm
) -> Decision[Client]:
    """Give a person another role; whether anybody may is judged before.

    Args:
        facts: as the commit sees them.
        person: the client id.
        role: one of ``PEOPLE``.
        officers: ids of all who were officers a moment ago: the realm must keep enough of them.
        realm: whose person it is.

    Raises:
        errors.NotFound: there is no such person.
        errors.IllegalTransition: the person was revoked, or has that role.
        errors.PolicyRefused: too few officers would be left (rule ``officers``).
    """
    found = facts.get(Client, person)
    if found is None or found.role not in PEOPLE:
        raise errors.NotFound(f"there is no person {person[:100]}")
    if found.status is not ClientStatus.ACTIVE:
        raise errors.IllegalTransition(f"{person} was revoked")
    if found.role is role:
        raise errors.IllegalTransition(f"{person} is {role} already")
    if found.role is Role.OFFICER and takes_two(Capability.CHANGE_ROLES, realm.environment):
        others = [facts.get(Client, name) for name in officers if name != person]
        left = [one for one in others if one and one.status is ClientStatus.ACTIVE]
        if len([one for one in left if one.role is Role.OFFICER]) < FEWEST_OFFICERS:
            raise errors.PolicyRefused(
                "officers", f"without {person} fewer than {FEWEST_OFFICERS} officers would be left"
            )
    changed = replace(found, role=role)
    facts.put(changed)
    return Decision(
        changed, [("role-changed", {"client": person, "role": str(role), "before": str(found.role)})]
    )


class Proposals:
    """The proposals of a realm."""

    def __init__(self, realm: Realm, authorise: Authorise, entropy: Entropy) -> None:
        """Carry out what ``authorise`` does alone where one person may."""
        self._realm = realm
        self._authorise = authorise
        self._entropy = entropy

    def draft(self, caller: Caller, deed: Deed, subject: str, terms: dict[str, str], reason: str) -> Motion:
        """Write a motion; its ``encode`` is what is to be signed."""
        return Motion(
            realm=self._realm.name,
            environment=str(self._realm.environment),
            id=f"pp-{self._entropy.token(5).hex()}",
            deed=deed,
            subject=subject,
            terms=terms,
            reason=reason,
            proposed_by=caller.client.id,
        )

    def get(self, proposal: str) -> UseCase[tuple[Proposal, Motion]]:
        """Return a proposal and its motion, the signatures verified.

        Raises:
            errors.NotFound: there is none of this id.
            errors.IntegrityFailure: it is not what was signed.
        """
        facts: Facts = yield Look({Proposal: (proposal,)})
        found = facts.get(Proposal, proposal)
        if found is None:
            raise errors.NotFound(f"there is no proposal {proposal[:64]}")
        facts = yield Look({Credential: [found.proposer, *([found.approver] if found.approver else [])]})
        approver = None if found.approver is None else facts.get(Credential, found.approver)
        return found, signed_motion(found, self._realm, facts.get(Credential, found.proposer), approver)

    def propose(self, caller: Caller, motion: Motion, signature: bytes) -> UseCase[Proposal]:
        """Put a motion on record that one person signed; nothing is done yet.

        Raises:
            errors.NotPermitted: the caller may not, or the motion or the signature is not the caller's.
            errors.MalformedRequest: the motion says nothing that can be done.
        """

        def decide(facts: Facts, at: datetime) -> Decision[Proposal]:
            live_client(facts, caller, NEEDED[motion.deed], at)
            if motion.proposed_by != caller.client.id:
                raise errors.NotPermitted(f"the motion is {motion.proposed_by}'s, not {caller.client.id}'s")
            if facts.get(Proposal, motion.id) is not None:
                raise errors.IllegalTransition(f"there is a proposal {motion.id} already")
            _require_sense(facts, motion, at)
            proposal = Proposal(
                id=motion.id,
                document=motion.encode(),
                proposer=caller.credential.serial,
                proposal=signature,
                approver=None,
                approval=None,
                status=ProposalStatus.PROPOSED,
                proposed_at=at,
            )
            try:
                signed_motion(proposal, self._realm, caller.credential, None)
            except errors.IntegrityFailure as cause:
                raise errors.NotPermitted(str(cause)) from cause
            facts.put(proposal)
            return Decision(proposal, [("proposal-made", _entry(proposal))])

        return (yield from _act(caller, "propose", motion.id, decide))

    def approve(self, caller: Caller, proposal: str, approval: bytes) -> UseCase[Proposal]:
        """Sign a motion as the second person; the commit does what it says.

        Raises:
            errors.NotFound: there is no such proposal, or not any more what it is about.
            errors.IllegalTransition: it is approved, withdrawn or ended, who proposed it may not any more, or
                what it is about changed meanwhile.
            errors.NotPermitted: the caller is the proposer, may not, or the signature is not the caller's.
        """
        _, motion = yield from self.get(proposal)
        said = {"subject": proposal[:64]}
        judge = partial(self._judge_approval, caller, proposal, approval)
        yield from admitted(caller, "approve", said, judge, {Proposal: (proposal,)})
        certificate: Certificate | None = None
        officers: list[str] = []
        if motion.deed in (Deed.ENROL_PERSON, Deed.SHARE_CREDENTIAL):
            certifying = self._authorise.certify(_certified(motion))
            _, certificate = yield from recorded(caller, "approve", said, certifying)
        if motion.deed is Deed.CHANGE_ROLE:
            clients: list[Client] = yield Scan(kind=Client, where={"role": str(Role.OFFICER)})
            officers = [one.id for one in clients]

        def decide(facts: Facts, at: datetime) -> Decision[Proposal]:
            row, motion = judge(facts, at)
            done = self._do(facts, motion, row.proposed_at, certificate, officers, at)
            approved = replace(
                row, status=ProposalStatus.APPROVED, approver=caller.credential.serial, approval=approval
            )
            facts.put(approved)
            return Decision(approved, [("proposal-approved", _entry(approved)), *done.entries])

        return (yield from _act(caller, "approve", proposal, decide))

    def _judge_approval(
        self, caller: Caller, proposal: str, approval: bytes, facts: Facts, at: datetime
    ) -> tuple[Proposal, Motion]:
        """Return the proposal if this caller may make it true now."""
        row = facts.get(Proposal, proposal)
        if row is None:
            raise errors.NotFound(f"there is no proposal {proposal[:64]}")
        needed = NEEDED[Motion.decode(row.document).deed]
        live_client(facts, caller, TWO_PERSON[needed], at)
        if row.status is not ProposalStatus.PROPOSED:
            raise errors.IllegalTransition(f"proposal {proposal} is {row.status}")
        proposer = facts.get(Credential, row.proposer)
        motion = signed_motion(row, self._realm, proposer, None)
        what = f"proposal {proposal}"
        require_second(facts, caller.credential, proposer, needed, row.proposed_at, at, what)
        verify_approval(caller.credential, approval, row.document, what)
        return row, motion

    def _do(
        self,
        facts: Facts,
        motion: Motion,
        proposed_at: datetime,
        certificate: Certificate | None,
        officers: Sequence[str],
        at: datetime,
    ) -> Decision[Any]:
        match motion.deed:
            case Deed.CHANGE_AUTHORITY:
                status = AuthorityStatus(motion.terms["status"])
                return put_changed(facts, motion.subject, status, motion.reason)
            case Deed.CHANGE_ROLE:
                return put_role(facts, motion.subject, Role(motion.terms["role"]), officers, self._realm)
            case Deed.ENROL_PERSON:
                return put_enrolled(facts, enrolment_of(motion), _made(certificate), at)
            case Deed.REGISTER_FLEET:
                shown, policy = bytes.fromhex(motion.terms["verification"]), motion.terms["policy"]
                return put_registered(facts, motion.subject, shown, policy, proposed_at, at)
            case Deed.CHANGE_FLEET:
                return _changed_fleet(facts, motion)
            case Deed.SHARE_CREDENTIAL:
                return put_shared(facts, sharing_of(motion), _made(certificate), at)

    def withdraw(self, caller: Caller, proposal: str, reason: str) -> UseCase[Proposal]:
        """Take a proposal back before anybody approved it; whoever could have made it may.

        Raises:
            errors.NotFound: there is no such proposal.
            errors.IllegalTransition: it is no proposal any more.
        """

        def decide(facts: Facts, at: datetime) -> Decision[Proposal]:
            row = facts.get(Proposal, proposal)
            needed = Capability.READ if row is None else NEEDED[Motion.decode(row.document).deed]
            live_client(facts, caller, needed, at)
            if row is None:
                raise errors.NotFound(f"there is no proposal {proposal[:64]}")
            if row.status is not ProposalStatus.PROPOSED:
                raise errors.IllegalTransition(f"proposal {proposal} is {row.status}")
            withdrawn = replace(row, status=ProposalStatus.WITHDRAWN)
            facts.put(withdrawn)
            return Decision(withdrawn, [("proposal-withdrawn", {"proposal": proposal, "reason": reason})])

        return (yield from _act(caller, "withdraw-proposal", proposal, decide))

    def change_role(self, caller: Caller, person: str, role: Role) -> UseCase[Client]:
        """Give a person another role, where one person may.

        Raises:
            errors.NotFound: there is no such person.
            errors.NotPermitted: the caller may not, or it takes two people.
            errors.IllegalTransition: the person was revoked, or has that role.
        """

        def decide(facts: Facts, at: datetime) -> Decision[Client]:
            live_client(facts, caller, Capability.CHANGE_ROLES, at)
            if takes_two(Capability.CHANGE_ROLES, self._realm.environment):
                raise errors.NotPermitted(
                    f"{person} gets another role by two people: propose it, and have another approve"
                )
            return put_role(facts, person, role, (), self._realm)

        return (yield from _act(caller, "change-role", person, decide))


def _act(
    caller: Caller, request: str, subject: str, decide: Callable[[Facts, datetime], Decision[T]]
) -> UseCase[T]:
    said = {"subject": subject[:64]}
    return (yield from decided(caller, request, said, decide, {Proposal: (subject,)}))


def _certified(motion: Motion) -> Enrolment:
    """Return who is certified when a motion becomes true."""
    return enrolment_of(motion) if motion.deed is Deed.ENROL_PERSON else sharing_of(motion).enrolment


def _made(certificate: Certificate | None) -> Certificate:
    if certificate is None:
        raise errors.Fault("somebody is let in without a certificate")
    return certificate


def _agreed(motion: Motion) -> FleetPolicy | FleetStatus:
    """Return what a fleet authority is to get."""
    if set(motion.terms) == {"policy"}:
        return FleetPolicy.decode(motion.terms["policy"])
    if set(motion.terms) == {"status"}:
        return FleetStatus(motion.terms["status"])
    raise errors.MalformedRequest("a fleet authority gets another policy, or another status")


def _changed_fleet(facts: Facts, motion: Motion) -> Decision[FleetAuthority]:
    agreed = _agreed(motion)
    if isinstance(agreed, FleetPolicy):
        return put_policy(facts, motion.subject, agreed, motion.reason)
    return put_status(facts, motion.subject, agreed, motion.reason)


def _require_sense(facts: Facts, motion: Motion, at: datetime) -> None:
    """Refuse a motion that could never be carried out."""
    try:
        match motion.deed:
            case Deed.CHANGE_AUTHORITY:
                AuthorityStatus(motion.terms["status"])
                if set(motion.terms) != {"status"} or facts.get(Authority, motion.subject) is None:
                    raise errors.NotFound(f"there is no authority {motion.subject[:100]}")
            case Deed.CHANGE_ROLE:
                if Role(motion.terms["role"]) not in PEOPLE or set(motion.terms) != {"role"}:
                    raise errors.MalformedRequest("a person is operator, line-lead, officer or auditor")
                if facts.get(Client, motion.subject) is None:
                    raise errors.NotFound(f"there is no person {motion.subject[:100]}")
            case Deed.ENROL_PERSON:
                enrolment_of(motion)
            case Deed.REGISTER_FLEET:
                if set(motion.terms) != {"verification", "policy"}:
                    raise errors.MalformedRequest("a fleet authority is registered as it was challenged")
                shown, policy = bytes.fromhex(motion.terms["verification"]), motion.terms["policy"]
                require_registrable(facts, motion.subject, shown, policy, at)
            case Deed.CHANGE_FLEET:
                registered(facts, motion.subject)
                _agreed(motion)
            case Deed.SHARE_CREDENTIAL:
                require_shareable(facts, sharing_of(motion), at)
    except (KeyError, ValueError) as cause:
        raise errors.MalformedRequest("the motion says nothing that can be done") from cause


def _entry(proposal: Proposal) -> dict[str, Any]:
    entry = {
        "proposal": proposal.id,
        "motion": proposal.document.decode(),
        "signature": proposal.proposal.hex(),
        "signer": proposal.proposer,
    }
    if proposal.approver is not None and proposal.approval is not None:
        entry |= {"approver": proposal.approver, "approval": proposal.approval.hex()}
    return entry
