"""Credentials that many devices share: made by one person in a test realm, by two in production (SPEC H4).

Whoever has such a credential can bring devices in.  So it is refused in production unless two officers sign
the same limits; and what it did is counted in the commit of each device, by ``issue``.
"""

from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256

from birthmark import errors
from birthmark.floor.authorities import Authority
from birthmark.floor.clients import Capability, Client, Role, check_name, client_id, takes_two
from birthmark.floor.proposals import Motion
from birthmark.floor.realm import Realm
from birthmark.floor.runs import Run, RunLicence, require_going, require_identities
from birthmark.floor.shared import SharedCredential, networks_text
from birthmark.ledger.entry import parse_time, time_text
from birthmark.pki.certificates import Certificate
from birthmark.ports import Decision, Facts, UseCase
from birthmark.services.acts import Caller, admitted, decided, live_client, recorded
from birthmark.services.authorise import Authorise, Enrolled, Enrolment, put_enrolled

__all__ = ["Sharing", "put_shared", "require_shareable", "share", "sharing_of"]

_REQUEST = "share-credential"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """A shared credential somebody wants."""

    name: str
    run: str
    quantity: int
    """The most devices that it brings in, for ever."""
    networks: str
    """As ``floor.shared.networks_text`` spells them; empty for everywhere."""
    not_after: datetime
    """Whole seconds, as certificates say it."""
    authority: str
    organization: str
    subject_public_key_info: bytes = field(repr=False)

    def __post_init__(self) -> None:
        """Refuse names that cannot stand in an id, and limits that are none."""
        check_name("shared credential", self.name)
        check_name("run", self.run)
        if self.quantity < 1:
            raise errors.MalformedRequest("a shared credential brings in at least one device")
        if networks_text(self.networks.split()) != self.networks:
            raise errors.MalformedRequest("networks are sorted, each once")

    @property
    def client(self) -> str:
        """The id of the credential."""
        return client_id(Role.SHARED, self.name)

    @property
    def enrolment(self) -> Enrolment:
        """The client it becomes."""
        return Enrolment(
            role=Role.SHARED,
            name=self.name,
            subject_public_key_info=self.subject_public_key_info,
            authority=self.authority,
            variables={"organization": self.organization, "run": self.run, str(Role.SHARED): self.name},
            run=self.run,
            not_after=self.not_after,
        )

    @property
    def terms(self) -> dict[str, str]:
        """The terms of a motion that makes it."""
        return {
            "run": self.run,
            "quantity": str(self.quantity),
            "networks": self.networks,
            "not_after": time_text(self.not_after),
            "authority": self.authority,
            "organization": self.organization,
            "public_key": self.subject_public_key_info.hex(),
        }


def sharing_of(motion: Motion) -> Sharing:
    """Return what a motion wants made.

    Raises:
        errors.MalformedRequest: it describes no shared credential.
    """
    terms, name = motion.terms, motion.subject.partition(":")[2]
    try:
        sharing = Sharing(
            name=name,
            run=terms["run"],
            quantity=int(terms["quantity"]),
            networks=terms["networks"],
            not_after=parse_time(terms["not_after"]),
            authority=terms["authority"],
            organization=terms["organization"],
            subject_public_key_info=bytes.fromhex(terms["public_key"]),
        )
    except (KeyError, ValueError) as cause:
        raise errors.MalformedRequest("the motion does not say what is to be shared") from cause
    if sharing.terms != dict(terms) or sharing.client != motion.subject:
        raise errors.MalformedRequest("the motion does not say what is to be shared")
    return sharing


def share(authorise: Authorise, realm: Realm, caller: Caller, sharing: Sharing) -> UseCase[Enrolled]:
    """Certify a shared credential and put its limits on record, where one person may.

    Raises:
        errors.NotFound: there is no such run or authority.
        errors.IllegalTransition: the name is taken or was revoked, or the run is over.
        errors.NotPermitted: the caller may not, it takes two people, or the run gives no identities.
        errors.PolicyRefused: it is for more devices than its run, or ends before it begins (rules
            ``quantity``, ``window``), or the certificate would break its profile.
    """
    said = {"client": sharing.client, "run": sharing.run}
    reads = {Authority: (sharing.authority,), Run: (sharing.run,), Client: (sharing.client,)}

    def judge(facts: Facts, at: datetime) -> None:
        live_client(facts, caller, Capability.SHARE_CREDENTIAL, at)
        if takes_two(Capability.SHARE_CREDENTIAL, realm.environment):
            raise errors.NotPermitted(f"{sharing.client} is made by two people: propose it, another approves")
        require_shareable(facts, sharing, at)

    def decide(facts: Facts, at: datetime) -> Decision[Client]:
        judge(facts, at)
        return put_shared(facts, sharing, certificate, at)

    yield from admitted(caller, _REQUEST, said, judge, reads)
    certifying = authorise.certify(sharing.enrolment)
    chain, certificate = yield from recorded(caller, _REQUEST, said, certifying)
    client = yield from decided(caller, _REQUEST, said, decide, reads)
    return Enrolled(
        client=client, certificate=certificate, chain=tuple(authority.der for authority in chain[:-1])
    )


def require_shareable(facts: Facts, sharing: Sharing, at: datetime) -> None:
    """Refuse a credential by which nothing could be brought in, or more than its run admits.

    Raises:
        errors.NotFound: there is no such run.
        errors.IllegalTransition: the run is proposed only, closed or over; the name was used.
        errors.NotPermitted: the run gives no identities.
        errors.PolicyRefused: see ``share``.
    """
    row = facts.get(Run, sharing.run)
    if row is None:
        raise errors.NotFound(f"there is no run {sharing.run}")
    licence = RunLicence.decode(row.document)
    require_going(row, licence, at)
    require_identities(licence)
    if sharing.quantity > row.quantity:
        raise errors.PolicyRefused(
            "quantity", f"run {row.id} is for {row.quantity} devices, not for {sharing.quantity}"
        )
    if sharing.not_after <= at:
        raise errors.PolicyRefused("window", f"{sharing.client} would have ended before it began")
    if facts.get(Client, sharing.client) is not None:
        raise errors.IllegalTransition(f"there was a credential {sharing.client}: give it another name")


def put_shared(facts: Facts, sharing: Sharing, certificate: Certificate, at: datetime) -> Decision[Client]:
    """Put a shared credential and its limits on record; whether anybody may is judged before.

    Raises:
        errors.Refusal: as ``require_shareable`` and ``authorise.judge_enrolment``.
    """
    require_shareable(facts, sharing, at)
    made = put_enrolled(facts, sharing.enrolment, certificate, at)
    facts.put(
        SharedCredential(id=sharing.client, quantity=sharing.quantity, used=0, networks=sharing.networks)
    )
    limits = {
        "quantity": sharing.quantity,
        "networks": sharing.networks,
        "until": time_text(sharing.not_after),
        "spki_sha256": sha256(sharing.subject_public_key_info).hexdigest(),
    }
    return Decision(made.answer, [(kind, {**entry, **limits}) for kind, entry in made.entries])
