"""What takes two people: proposed by one, made true by another, and by nobody alone (SPEC K1)."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from birthmark import errors
from birthmark.adapters.system import SystemEntropy
from birthmark.floor.authorities import Authority, AuthorityStatus
from birthmark.floor.clients import Client as Row
from birthmark.floor.clients import Role
from birthmark.floor.proposals import Deed, Motion, Proposal, ProposalStatus
from birthmark.floor.realm import Environment
from birthmark.ports import Act, Decision, Facts
from birthmark.services.acts import outcomes, recognise, refuse
from birthmark.services.authorise import Enrolment, put_changed
from birthmark.services.check import check
from birthmark.services.investigate import history, subject_of
from birthmark.services.log_reading import log_of
from birthmark.services.proposals import Proposals, terms_of
from tests.support.realm import ORGANIZATION, Client, Line, Service, make_line, open_service, tamper
from tests.support.recalls import enrol_with_key, sign


@pytest.fixture
def plant(tmp_path: Path, database_url: str) -> "Iterator[Plant]":
    line = make_line(tmp_path, database_url, environment=Environment.PRODUCTION)
    yield Plant(line)
    line.close()


class Plant:
    """A production realm with three officers, a line lead and a station."""

    def __init__(self, line: Line) -> None:
        self.line, self.anna = line, line.operator
        self.bela = line.enrol(Role.OFFICER, "bela")
        self.carl = line.enrol(Role.OFFICER, "carl")
        self.lena = line.enrol(Role.LINE_LEAD, "lena")

    def proposals(self, service: Service | None = None) -> Proposals:
        at = service or self.line.service
        return Proposals(at.store.realm, at.authorise, SystemEntropy())

    def propose(self, who: Client, deed: Deed, subject: str, **terms: str) -> Proposal:
        service = self.proposals()
        motion = service.draft(who.caller, deed, subject, terms, "because")
        return self.line.service.carry(service.propose(who.caller, motion, sign(who, motion.encode())))

    def approve(self, who: Client, proposal: Proposal, *, signature: bytes | None = None) -> Proposal:
        signed = signature if signature is not None else sign(who, proposal.document)
        return self.line.service.carry(self.proposals().approve(who.caller, proposal.id, signed))

    def suspend(self, who: Client) -> Proposal:
        return self.propose(who, Deed.CHANGE_AUTHORITY, "issuing-1", status="suspended")

    def findings(self) -> list[str]:
        store = self.line.service.store
        return check(store, store.log, store.realm).findings


def newcomer(name: str = "dora", role: Role = Role.OFFICER, *, renew: bool = False) -> Enrolment:
    key = ec.generate_private_key(ec.SECP256R1())
    return Enrolment(
        role=role,
        name=name,
        subject_public_key_info=key.public_key().public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        ),
        authority="issuing-1",
        variables={"organization": ORGANIZATION, "operator": name},
        renew=renew,
    )


def test_a_history_tells_who_proposed_what_became_true_and_what_did_not(plant: Plant) -> None:
    line = plant.line
    taken_back = plant.suspend(plant.anna)
    line.service.carry(plant.proposals().withdraw(plant.bela.caller, taken_back.id, "a mistake"))
    plant.approve(plant.bela, plant.suspend(plant.anna))
    plant.approve(plant.bela, plant.propose(plant.anna, Deed.CHANGE_ROLE, "operator:lena", role="operator"))

    def kinds(subject: str) -> list[str]:
        found = history(log_of(line.service.store.log, line.realm), subject_of(subject))
        return [event.read()["kind"] for event in found.events]

    assert kinds("authority:issuing-1")[-5:] == [
        "proposal-made", "proposal-withdrawn", "proposal-made", "proposal-approved", "authority-suspended"
    ]  # fmt: skip
    assert kinds("operator:lena") == ["client-enrolled", "proposal-made", "proposal-approved", "role-changed"]


def test_an_authority_is_suspended_by_two_people_and_by_nobody_alone(plant: Plant) -> None:
    line = plant.line
    with pytest.raises(errors.NotPermitted, match="changed by two people"):
        line.service.carry(
            line.service.authorise.change(plant.anna.caller, "issuing-1", AuthorityStatus.SUSPENDED, "x")
        )
    proposed = plant.suspend(plant.anna)
    assert line.the(Authority, "issuing-1").status is AuthorityStatus.ACTIVE, "nothing is done yet"
    done = plant.approve(plant.bela, proposed)
    assert done.status is ProposalStatus.APPROVED
    assert line.the(Authority, "issuing-1").status is AuthorityStatus.SUSPENDED
    kinds = [(entry["kind"], entry["actor"]) for entry in line.entries()[-2:]]
    assert kinds == [("proposal-approved", "operator:bela"), ("authority-suspended", "operator:bela")]
    assert plant.findings() == []


def test_a_person_is_let_in_by_two_people(plant: Plant) -> None:
    line, wanted = plant.line, newcomer()
    with pytest.raises(errors.NotPermitted, match="by two people"):
        line.service.carry(line.service.authorise.enrol(plant.anna.caller, wanted))
    proposed = plant.propose(plant.anna, Deed.ENROL_PERSON, "operator:dora", **terms_of(wanted))
    assert line.get(Row, "operator:dora") is None
    plant.approve(plant.bela, proposed)
    assert line.the(Row, "operator:dora").role is Role.OFFICER
    assert plant.findings() == []


def test_nobody_takes_over_a_colleague_by_renewing_the_colleagues_certificate(plant: Plant) -> None:
    """Whoever could would be both of two people."""
    line = plant.line
    with pytest.raises(errors.NotPermitted, match="operator:bela gets a certificate by two people"):
        line.service.carry(line.service.authorise.enrol(plant.anna.caller, newcomer("bela", renew=True)))
    own = newcomer("anna", renew=True)
    assert (
        line.service.carry(line.service.authorise.enrol(plant.anna.caller, own)).client.id == "operator:anna"
    )


def test_a_person_gets_another_role_by_two_people_and_loses_what_the_old_one_could(plant: Plant) -> None:
    proposed = plant.propose(plant.anna, Deed.CHANGE_ROLE, "operator:carl", role="auditor")
    plant.approve(plant.bela, proposed)
    assert plant.line.the(Row, "operator:carl").role is Role.AUDITOR
    with pytest.raises(errors.NotPermitted, match="auditor does not have it"):
        plant.suspend(plant.carl)
    assert plant.findings() == []


def test_the_last_two_officers_stay_officers(plant: Plant) -> None:
    plant.approve(plant.bela, plant.propose(plant.anna, Deed.CHANGE_ROLE, "operator:carl", role="operator"))
    proposed = plant.propose(plant.anna, Deed.CHANGE_ROLE, "operator:bela", role="operator")
    with pytest.raises(errors.PolicyRefused, match="fewer than 2 officers"):
        plant.approve(plant.bela, proposed)


ALONE: dict[str, Callable[[Plant, Proposal], object]] = {
    "the proposer again": lambda plant, made: plant.approve(plant.anna, made),
    "the proposer with another certificate": lambda plant, made: plant.approve(renewed(plant), made),
    "the proposer's key under another name": lambda plant, made: plant.approve(twin(plant), made),
    "a line lead": lambda plant, made: plant.approve(plant.lena, made),
    "a station": lambda plant, made: plant.approve(plant.line.station, made),
    "another with the proposer's signature": lambda plant, made: plant.approve(
        plant.bela, made, signature=sign(plant.anna, made.document)
    ),
}


def renewed(plant: Plant) -> Client:
    key = ec.generate_private_key(ec.SECP256R1())
    wanted = newcomer("anna", renew=True)
    enrolled = plant.line.service.carry(
        plant.line.service.authorise.enrol(
            plant.anna.caller,
            Enrolment(
                role=wanted.role,
                name="anna",
                subject_public_key_info=key.public_key().public_bytes(
                    Encoding.DER, PublicFormat.SubjectPublicKeyInfo
                ),
                authority="issuing-1",
                variables=wanted.variables,
                renew=True,
            ),
        )
    )
    return Client(key=key, caller=plant.line.service.carry(recognise(enrolled.certificate.der)))


def twin(plant: Plant) -> Client:
    return enrol_with_key(plant.line, "anna2", plant.anna.key)


@pytest.mark.parametrize("alone", ALONE)
def test_one_person_is_not_two(plant: Plant, alone: str) -> None:
    made = plant.suspend(plant.anna)
    with pytest.raises(errors.NotPermitted):
        ALONE[alone](plant, made)
    assert plant.line.the(Authority, "issuing-1").status is AuthorityStatus.ACTIVE
    last = plant.line.entries()[-1]
    assert (last["kind"], last["code"]) == ("refused", "not-permitted"), "the refusal of an act is an entry"
    assert plant.findings() == []


def test_a_proposal_ends_by_itself(plant: Plant) -> None:
    made = plant.suspend(plant.anna)
    plant.line.clock.turn(hours=24)
    with pytest.raises(errors.IllegalTransition, match=r"^proposal pp-\w+ ended at .*: propose it again"):
        plant.approve(plant.bela, made)


@pytest.mark.parametrize("late", ["approved", "withdrawn", "the proposer left"])
def test_what_is_over_is_not_approved(plant: Plant, late: str) -> None:
    line, made = plant.line, plant.suspend(plant.anna)
    if late == "approved":
        plant.approve(plant.bela, made)
    elif late == "withdrawn":
        line.service.carry(plant.proposals().withdraw(plant.carl.caller, made.id, "a mistake"))
    else:
        line.service.carry(line.service.authorise.revoke(plant.carl.caller, "operator:anna", "left"))
    with pytest.raises(errors.IllegalTransition):
        plant.approve(plant.carl, made)


def test_of_two_who_approve_at_once_one_wins(plant: Plant) -> None:
    line, made = plant.line, plant.suspend(plant.anna)
    other = open_service(line.url, line.keys, line.clock)

    def elsewhere() -> Proposal:
        signed = sign(plant.carl, made.document)
        return other.carry(plant.proposals(other).approve(plant.carl.caller, made.id, signed))

    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(elsewhere), pool.submit(plant.approve, plant.bela, made)]
        outcomes = [one.exception(30) for one in both]
    other.store.close()
    assert [type(one) for one in outcomes if one is not None] == [errors.IllegalTransition]
    assert plant.findings() == []


def test_a_motion_that_was_not_signed_as_it_stands_is_refused(plant: Plant) -> None:
    service, line = plant.proposals(), plant.line
    motion = service.draft(plant.anna.caller, Deed.CHANGE_AUTHORITY, "issuing-1", {"status": "retired"}, "x")
    with pytest.raises(errors.NotPermitted):
        line.service.carry(service.propose(plant.anna.caller, motion, sign(plant.bela, motion.encode())))
    with pytest.raises(errors.NotPermitted, match="the motion is operator:anna's"):
        line.service.carry(service.propose(plant.bela.caller, motion, sign(plant.bela, motion.encode())))


@pytest.mark.parametrize(
    ("deed", "subject", "terms"),
    [
        (Deed.CHANGE_AUTHORITY, "issuing-1", {"status": "tired"}),
        (Deed.CHANGE_AUTHORITY, "issuing-1", {}),
        (Deed.CHANGE_AUTHORITY, "nobody", {"status": "retired"}),
        (Deed.CHANGE_ROLE, "operator:bela", {"role": "station"}),
        (Deed.CHANGE_ROLE, "operator:nobody", {"role": "officer"}),
        (Deed.ENROL_PERSON, "station:ST09", {}),
    ],
)
def test_a_motion_that_says_nothing_that_can_be_done_is_refused(
    plant: Plant, deed: Deed, subject: str, terms: dict[str, str]
) -> None:
    with pytest.raises(errors.Refusal) as refused:
        plant.propose(plant.anna, deed, subject, **terms)
    assert isinstance(refused.value, errors.MalformedRequest | errors.NotFound)


def test_a_proposal_changed_in_the_database_is_not_believed(plant: Plant) -> None:
    made = plant.suspend(plant.anna)
    forged = Motion.decode(made.document).encode().replace(b"suspended", b"retired")
    statement = "UPDATE proposal SET document = %s WHERE id = %s"
    tamper(plant.line.url, (statement, (forged, made.id)))
    with pytest.raises(errors.IntegrityFailure):
        plant.approve(plant.bela, made)


TAMPERINGS = {
    "a row changed": ("UPDATE proposal SET status = 'withdrawn'", "is not what the log says of it"),
    "a row removed": ("DELETE FROM proposal", "it is gone"),
    "a role given by nobody": (
        "UPDATE client SET role = 'officer' WHERE id = 'operator:lena'",
        "operator:lena is officer, the log says line-lead",
    ),
}


@pytest.mark.parametrize("what", TAMPERINGS)
def test_a_tampering_is_found(plant: Plant, what: str) -> None:
    statement, finding = TAMPERINGS[what]
    plant.approve(plant.bela, plant.suspend(plant.anna))
    tamper(plant.line.url, (statement, ()))
    assert any(finding in one for one in plant.findings()), plant.findings()


def test_what_one_person_did_alone_by_another_program_is_found(plant: Plant) -> None:
    """A process of the service that keeps fewer rules writes a log that says so."""
    line = plant.line

    def decide(facts: Facts, _at: datetime) -> Decision[Authority]:
        return put_changed(facts, "issuing-1", AuthorityStatus.SUSPENDED, "x")

    act = Act(actor="operator:anna", decide=decide, refuse=refuse(None, "change", {}), reads={})
    outcomes(line.service.store.submit([act]).result(10))
    assert any(
        "authority-suspended of issuing-1 by operator:anna, without a second" in one
        for one in plant.findings()
    )
