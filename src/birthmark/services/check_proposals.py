"""What a log says of proposals, and whether the record agrees; a part of ``check``.

The rule it keeps: in production authorities change, also those of fleets, people come in and roles change
only by the entry right after the approval of a motion that says so, of the same commit.  People renew their
own certificates, and one person suspends a fleet authority.  Logs that begin before people had roles are held
to it from the first entry on that gives one.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from hashlib import sha256

from birthmark import errors
from birthmark.floor.clients import PERSON, Credential, Role
from birthmark.floor.proposals import Deed, Motion, Proposal, ProposalStatus
from birthmark.floor.realm import Environment, Realm
from birthmark.ledger.entry import time_text
from birthmark.services.acts import INIT
from birthmark.services.entry_fields import Entry, known, text_of
from birthmark.services.proposals import signed_motion
from birthmark.services.shared import sharing_of

__all__ = ["PROPOSAL_ENTRIES", "ProposalSaid", "ProposalsSaid", "check_proposals"]

PROPOSAL_ENTRIES = frozenset({"proposal-made", "proposal-approved", "proposal-withdrawn"})
_OF_TWO = {
    "authority-active": Deed.CHANGE_AUTHORITY,
    "authority-suspended": Deed.CHANGE_AUTHORITY,
    "authority-retired": Deed.CHANGE_AUTHORITY,
    "client-enrolled": Deed.ENROL_PERSON,
    "client-renewed": Deed.ENROL_PERSON,
    "role-changed": Deed.CHANGE_ROLE,
    "fleet-registered": Deed.REGISTER_FLEET,
    "fleet-changed": Deed.CHANGE_FLEET,
    "fleet-resumed": Deed.CHANGE_FLEET,
    "fleet-retired": Deed.CHANGE_FLEET,
}
_SUBJECTS = {"authority": "authority", "fleet": "fleet_authority"}
"""The field that says whom an entry is about, by how its kind begins; ``client`` for the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposalSaid:
    """A proposal, after the last entry about it; signatures in hex."""

    motion: str
    signature: str
    signer: str
    approver: str | None
    approval: str | None
    status: ProposalStatus
    proposed_at: str


@dataclass(slots=True)
class ProposalsSaid:
    """All proposals by id, and what was done without one."""

    proposals: dict[str, ProposalSaid] = field(default_factory=dict)
    alone: list[str] = field(default_factory=list)
    """What one person did that takes two, in words."""
    _granted: tuple[str, Motion] | None = None
    """Who approved what, in the entry right before."""
    _roles: bool = False

    def take(self, index: int, entry: Entry) -> None:
        """Take in any entry.

        Raises:
            errors.MalformedRequest: one of proposals that lacks a field, or moves what is over.
        """
        kind, granted, self._granted = entry["kind"], self._granted, None
        self._roles = self._roles or (kind.startswith("client-") and "role" in entry)
        if kind in PROPOSAL_ENTRIES:
            self._take(entry)
        elif kind in _OF_TWO and self._roles and entry["environment"] == Environment.PRODUCTION:
            self._judge(index, entry, granted)

    def _take(self, entry: Entry) -> None:
        name, kind = text_of(entry, "proposal"), entry["kind"]
        if kind == "proposal-made":
            if name in self.proposals:
                raise errors.MalformedRequest(f"proposal {name[:64]} was made twice")
            self.proposals[name] = ProposalSaid(
                motion=text_of(entry, "motion"),
                signature=text_of(entry, "signature"),
                signer=text_of(entry, "signer"),
                approver=None,
                approval=None,
                status=ProposalStatus.PROPOSED,
                proposed_at=entry["at"],
            )
            return
        before = known(self.proposals, "proposal", name)
        if before.status is not ProposalStatus.PROPOSED:
            raise errors.MalformedRequest(f"proposal {name[:64]} was {before.status} already")
        if kind == "proposal-withdrawn":
            self.proposals[name] = replace(before, status=ProposalStatus.WITHDRAWN)
            return
        if text_of(entry, "motion") != before.motion:
            raise errors.MalformedRequest(f"proposal {name[:64]} was approved otherwise than it was made")
        self.proposals[name] = replace(
            before,
            status=ProposalStatus.APPROVED,
            approver=text_of(entry, "approver"),
            approval=text_of(entry, "approval"),
        )
        self._granted = (entry["actor"], Motion.decode(before.motion.encode()))

    def _judge(self, index: int, entry: Entry, granted: tuple[str, Motion] | None) -> None:
        group = entry["kind"].partition("-")[0]
        subject = text_of(entry, _SUBJECTS.get(group, "client"))
        deed, kind = _OF_TWO[entry["kind"]], entry["kind"]
        if deed is Deed.ENROL_PERSON and subject.startswith(f"{Role.SHARED}:"):
            deed = Deed.SHARE_CREDENTIAL
        elif deed is Deed.ENROL_PERSON and not subject.startswith(f"{PERSON}:"):
            return
        if entry["actor"] == INIT or (kind == "client-renewed" and entry["actor"] == subject):
            return
        if granted is None or (granted[0], granted[1].deed, granted[1].subject) != (
            entry["actor"],
            deed,
            subject,
        ):
            self.alone.append(
                f"entry {index}: {kind} of {subject} by {entry['actor']}, without a second person"
            )
        elif deed is Deed.SHARE_CREDENTIAL:
            self._judge_limits(index, entry, granted[1])

    def _judge_limits(self, index: int, entry: Entry, motion: Motion) -> None:
        signed = sharing_of(motion)
        limits = {
            "run": signed.run,
            "quantity": signed.quantity,
            "networks": signed.networks,
            "until": time_text(signed.not_after),
            "authority": signed.authority,
            "spki_sha256": sha256(signed.subject_public_key_info).hexdigest(),
        }
        if limits != {name: entry.get(name) for name in limits}:
            self.alone.append(f"entry {index}: {motion.subject} has other limits than two people signed")


def check_proposals(
    find: Callable[[str], None],
    realm: Realm,
    proposals: Iterable[Proposal],
    credential: Callable[[str], Credential | None],
    said: ProposalsSaid,
) -> None:
    """Check that each proposal is what the log says and its people signed, and nothing was done alone."""
    left = dict(said.proposals)
    for proposal in proposals:
        approver = None if proposal.approver is None else credential(proposal.approver)
        try:
            signed_motion(proposal, realm, credential(proposal.proposer), approver)
        except errors.Refusal as refusal:
            find(str(refusal))
        was = left.pop(proposal.id, None)
        row = ProposalSaid(
            motion=proposal.document.decode(errors="replace"),
            signature=proposal.proposal.hex(),
            signer=proposal.proposer,
            approver=proposal.approver,
            approval=None if proposal.approval is None else proposal.approval.hex(),
            status=proposal.status,
            proposed_at=time_text(proposal.proposed_at),
        )
        if was is None:
            find(f"proposal {proposal.id} has no entry in the log")
        elif was != row:
            find(f"proposal {proposal.id} is not what the log says of it")
    for name in left:
        find(f"the log says proposal {name} was made; it is gone")
    for what in said.alone:
        find(what)
