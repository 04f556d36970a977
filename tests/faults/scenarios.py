"""The scenarios of the fault table: for every use case that writes, one request that makes it write.

``prepare`` brings a line to where the request makes sense and returns what the request needs; it runs once.
``request`` is what is asked of one process, and asked again in the same words after a fault.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

from birthmark import errors
from birthmark.adapters.system import SystemEntropy
from birthmark.floor.authorities import AuthorityStatus
from birthmark.floor.clients import Role
from birthmark.floor.devices import DeviceEvent
from birthmark.floor.key_assets import KeyPurpose
from birthmark.floor.proposals import Deed
from birthmark.floor.realm import Environment
from birthmark.floor.recalls import SelectionKind
from birthmark.pki.attributes import SecretKind
from birthmark.pki.keys import KeyAlgorithm, KeyLabel
from birthmark.services.acts import record_refusal
from birthmark.services.authorise import Enrolment
from birthmark.services.backup import Restored, record_restore
from birthmark.services.ceremonies import commit
from birthmark.services.custody import KeyCustody
from birthmark.services.dialogues import BEGIN, Responses
from birthmark.services.disposition import dispose
from birthmark.services.exposures import clear_exposure, close_now, set_exposure
from birthmark.services.injection import InjectRequest
from birthmark.services.invitations import Guest, Invitations
from birthmark.services.issue import IssueRequest
from birthmark.services.proposals import Proposals, terms_of
from birthmark.services.publication_alarms import Alarm, record_alarm
from birthmark.services.publication_index import Published
from birthmark.services.publication_record import record_published
from birthmark.services.recall import Recalls
from birthmark.services.shipments import record_shipment
from tests.faults.places import ORGANIZATION, RATES, Place, catalogue, here_and_mirror
from tests.faults.scenario import Prepared, Scenario, bela, csr, folder_of, one, spki
from tests.faults.scenarios_field import FIELD
from tests.faults.scenarios_fleet import FLEET
from tests.services.ceremonies import more
from tests.support.ceremonies import sealed
from tests.support.elements import element_profile, give_masters, put_on_record
from tests.support.keystores import KEK, TRANSPORT
from tests.support.realm import Line, hierarchy, proof, workpiece
from tests.support.recalls import People, sign

__all__ = ["ALONE", "READERS", "SCENARIOS"]

CA, NEW = KeyLabel("ca"), KeyLabel("new")
WINDOW = timedelta(hours=1)


# --- the line


def _issue(*, delivered: bool) -> Callable[[Line], Prepared]:
    def prepare(line: Line) -> Prepared:
        device = workpiece("D1", delivered=delivered)
        return line.station.caller, IssueRequest(hardware_id="D1", csr=device.csr, key="k")

    return prepare


def _ask_issue(place: Place, prepared: Prepared) -> object:
    caller, request = prepared
    return one(place.carry(place.service.issue(caller, "R1", [request])))


def _prove(line: Line) -> Prepared:
    device = workpiece("D1")
    return line.station.caller, proof(line.issue(device), device.key, idempotency="p")


def _wrong_proof(line: Line) -> Prepared:
    caller, request = _prove(line)
    return caller, replace(request, signature=b"\0" + request.signature[1:])


def _ask_prove(place: Place, prepared: Prepared) -> object:
    caller, request = prepared
    return one(place.carry(place.service.prove(caller, [request])))


def _made(line: Line) -> Prepared:
    return line.operator.caller, line.make("D1").device


def _issued(line: Line) -> Prepared:
    line.issue(workpiece("D1"))
    return line.operator.caller, "serial:D1"


def _held(line: Line) -> Prepared:
    prepared = _issued(line)
    line.dispose(DeviceEvent.HOLD, "serial:D1")
    return prepared


def _exposed(line: Line) -> Prepared:
    caller = line.operator.caller
    line.service.carry(close_now(caller, "run:R1", "night"))
    return caller, "run:R1", "day"


def _disposing(event: DeviceEvent) -> Callable[[Place, Any], object]:
    def ask(place: Place, prepared: Prepared) -> object:
        caller, device = prepared
        return place.carry(dispose(caller, device, event, reason="scratched", key="d"))

    return ask


def _ask_refusal(place: Place, actor: str) -> object:
    refusal = errors.MalformedRequest("nothing in it")
    return place.carry(record_refusal(actor, "issue", {}, refusal))


# --- runs


def _licence(line: Line) -> Prepared:
    licence = line.licence("R7", opened_by=line.operator.id)
    return line.operator.caller, licence, line.sign(licence)


def _ask_open(place: Place, prepared: Prepared) -> object:
    return place.carry(place.service.opening.open(*prepared))


def _proposed_run(line: Line) -> Prepared:
    caller, licence, signature = _licence(line)
    line.service.carry(line.service.opening.open(caller, licence, signature))
    second = bela(line)
    return second.caller, "R7", sign(second, licence.encode())


def _ask_approve_run(place: Place, prepared: Prepared) -> object:
    return place.carry(place.service.opening.approve(*prepared))


# --- people and stations


def _enrolment(line: Line) -> Prepared:
    variables = {"organization": ORGANIZATION, "station": "ST09", "site": "Graz", "line": "L1"}
    return line.operator.caller, Enrolment(
        role=Role.STATION,
        name="ST09",
        subject_public_key_info=spki(),
        authority="issuing-1",
        variables=variables,
    )


def _invitations(line: Line) -> Invitations:
    return Invitations(line.service.authorise, line.clock, SystemEntropy(), catalogue(), ORGANIZATION, RATES)


def _guest(line: Line) -> Prepared:
    return line.operator.caller, Guest(name="ST05", site="Graz", line="L1", authority="issuing-1")


def _invited(line: Line) -> Prepared:
    code, _ = line.service.carry(_invitations(line).invite(*_guest(line)))
    return code, csr()


def _newcomer() -> Enrolment:
    return Enrolment(
        role=Role.OFFICER,
        name="dora",
        subject_public_key_info=spki(),
        authority="issuing-1",
        variables={"organization": ORGANIZATION, "operator": "dora"},
    )


def _proposals(line: Line) -> Proposals:
    return Proposals(line.realm, line.service.authorise, SystemEntropy())


def _motion(line: Line) -> Prepared:
    motion = _proposals(line).draft(
        line.operator.caller, Deed.ENROL_PERSON, "operator:dora", terms_of(_newcomer()), "because"
    )
    return line.operator.caller, motion, sign(line.operator, motion.encode())


def _proposed(line: Line) -> Prepared:
    found = line.service.carry(_proposals(line).propose(*_motion(line)))
    second = bela(line)
    return second.caller, found.id, sign(second, found.document)


def _proposed_withdrawn(line: Line) -> Prepared:
    _, proposal, _ = _proposed(line)
    return line.operator.caller, proposal, "not wanted"


def _role(line: Line) -> Prepared:
    return line.operator.caller, bela(line).id, Role.AUDITOR


# --- keys


def _keys(line: Line) -> tuple[Any, Any, KeyCustody]:
    here, mirror = here_and_mirror(folder_of(line))
    return here, mirror, KeyCustody(line.realm, line.clock, SystemEntropy())


def _adoptable(line: Line) -> Prepared:
    here, _, _ = _keys(line)
    here.generate(CA, KeyAlgorithm.EC_P256, exportable=True)
    return line.operator.caller


def _shared(line: Line) -> Prepared:
    here, mirror, custody = _keys(line)
    taker = mirror.generate_transport(TRANSPORT)
    made = here.generate_secret(KEK, SecretKind.KEK, recipients=[taker])
    caller = line.operator.caller
    line.service.carry(custody.adopt(caller, here, "floor", KEK, KeyPurpose.KEK, "custodians"))
    return caller, made.shares[0], made.check_value


def _guarded(line: Line) -> Prepared:
    caller, share, check_value = _shared(line)
    here, mirror, custody = _keys(line)
    here.generate(CA, KeyAlgorithm.EC_P256, exportable=True)
    line.service.carry(custody.adopt(caller, here, "floor", CA, KeyPurpose.ISSUING_CA, "ca"))
    line.service.carry(custody.accept(caller, mirror, "mirror", KEK, share, TRANSPORT, check_value))
    return caller


def _backed_up(line: Line) -> Prepared:
    caller = _guarded(line)
    here, _, custody = _keys(line)
    return caller, line.service.carry(custody.back_up(caller, here, "floor", CA, KEK))


def _ask_generate(place: Place, caller: Prepared) -> object:
    made = place.custody.generate(
        caller,
        place.here,
        "floor",
        NEW,
        KeyPurpose.KEK,
        lambda: place.here.generate_secret(NEW, SecretKind.KEK),
    )
    return place.carry(made)


def _ask_accept(place: Place, prepared: Prepared) -> object:
    caller, share, value = prepared
    return place.carry(place.custody.accept(caller, place.mirror, "mirror", KEK, share, TRANSPORT, value))


def _ceremony(line: Line) -> Prepared:
    _, progress = more(line)
    return line.operator.caller, progress, sealed(progress, [hierarchy().custodian], line.clock)


# --- recalls and shipments


def _people(line: Line) -> People:
    return People(line=line, anna=line.operator, bela=bela(line), carl=line.operator)


def _order(line: Line) -> Prepared:
    line.make("D1")
    line.make("D2")
    line.service.carry(line.service.runs.close(line.operator.caller, "R1", "recalled"))
    made = _people(line)
    order = made.order(SelectionKind.RUN, "R1")
    return line.operator.caller, order, sign(line.operator, order.encode())


def _recall(line: Line) -> Prepared:
    line.make("D1")
    line.make("D2")
    line.service.carry(line.service.runs.close(line.operator.caller, "R1", "recalled"))
    made = _people(line)
    row = made.propose(made.order(SelectionKind.RUN, "R1"))
    return made.bela.caller, row.id, sign(made.bela, row.document)


class _Stopped(Exception):  # who watches a recall goes home
    """Somebody stopped watching."""


def _stopped(_done: int, _total: int) -> None:
    raise _Stopped


def _approved(line: Line) -> Prepared:
    caller, recall, signature = _recall(line)
    recalls = Recalls(line.realm, line.clock, SystemEntropy(), line.service.store.log)
    try:
        line.service.carry(recalls.approve(caller, recall, signature, _stopped))
    except _Stopped:
        return caller, recall
    raise AssertionError("the recall was carried out before anybody could stop it")


def _recall_withdrawn(line: Line) -> Prepared:
    _, recall, _ = _recall(line)
    return line.operator.caller, recall, "not wanted"


def _consignment(line: Line) -> Prepared:
    return line.operator.caller, "C1", [line.make(name).device for name in ("D1", "D2")]


def _restored(line: Line) -> Prepared:
    return line.operator.caller, Restored(
        backup_sha256="00" * 32,
        made_at=line.clock.now(),
        size=line.size(),
        root=bytes(32),
        newest_outside=None,
        missing=0,
    )


# --- what is published


def _published(line: Line) -> Prepared:
    at = line.clock.now()
    return Published(
        authority="issuing-1",
        partition="",
        number=1,
        this_update=at,
        next_update=at + WINDOW,
        octets=400,
        sha256="00" * 32,
    ), line.size()


# --- secure elements


def _begun(line: Line) -> Prepared:
    profile = element_profile()
    give_masters(line.keys, profile.key_size)
    put_on_record(line, "maker", "ours")
    licence = line.licence("R8", element=profile.name, element_sha256=profile.sha256)
    line.service.carry(line.service.opening.open(line.operator.caller, licence, line.sign(licence)))
    issued = line.issue(workpiece("D1"), run="R8")
    return line.station.caller, InjectRequest(
        attempt=issued.attempt, element=Responses(step=BEGIN, responses=())
    )


def _ask_inject(place: Place, prepared: Prepared) -> object:
    caller, request = prepared
    return one(place.carry(place.service.inject(caller, [request])))


_LINE: Mapping[str, Scenario] = {
    "issue": Scenario(
        covers=("issue.IssueDevices.__call__",), prepare=_issue(delivered=False), request=_ask_issue
    ),
    "issue a delivered key": Scenario(
        covers=("issue.IssueDevices.__call__",), prepare=_issue(delivered=True), request=_ask_issue
    ),
    "prove": Scenario(covers=("prove.ProveDevices.__call__",), prepare=_prove, request=_ask_prove),
    "prove wrongly": Scenario(
        covers=("prove.ProveDevices.__call__",), prepare=_wrong_proof, request=_ask_prove
    ),
    "hold": Scenario(covers=("disposition.dispose",), prepare=_issued, request=_disposing(DeviceEvent.HOLD)),
    "scrap": Scenario(covers=("disposition.dispose",), prepare=_held, request=_disposing(DeviceEvent.SCRAP)),
    "refuse": Scenario(
        covers=("acts.record_refusal",), prepare=lambda line: line.station.id, request=_ask_refusal
    ),
    "open a run": Scenario(covers=("opening.OpenRuns.open",), prepare=_licence, request=_ask_open),
    "propose a run": Scenario(
        covers=("opening.OpenRuns.open",),
        prepare=_licence,
        request=_ask_open,
        environment=Environment.PRODUCTION,
    ),
    "approve a run": Scenario(
        covers=("opening.OpenRuns.approve",),
        prepare=_proposed_run,
        request=_ask_approve_run,
        environment=Environment.PRODUCTION,
    ),
    "import a list": Scenario(
        covers=("runs.Runs.import_list",),
        prepare=lambda line: (line.operator.caller, ["serial:A1", "serial:A2"]),
        request=lambda place, prepared: place.carry(place.service.runs.import_list(*prepared)),
    ),
    "close a run": Scenario(
        covers=("runs.Runs.close",),
        prepare=lambda line: (line.operator.caller, "R1", "done"),
        request=lambda place, prepared: place.carry(place.service.runs.close(*prepared)),
    ),
    "enrol a station": Scenario(
        covers=(
            "authorise.Authorise.enrol",
            "acts.admitted",
            "acts.decided",
            "acts.recorded",
            "authorise.Authorise.certify",
        ),
        prepare=_enrolment,
        request=lambda place, prepared: place.carry(place.authorise.enrol(*prepared)),
    ),
    "revoke a station": Scenario(
        covers=("authorise.Authorise.revoke",),
        prepare=lambda line: (line.operator.caller, line.station.id, "stolen"),
        request=lambda place, prepared: place.carry(place.authorise.revoke(*prepared)),
    ),
    "suspend an authority": Scenario(
        covers=("authorise.Authorise.change",),
        prepare=lambda line: (line.operator.caller, "issuing-1", AuthorityStatus.SUSPENDED, "doubt"),
        request=lambda place, prepared: place.carry(place.authorise.change(*prepared)),
    ),
    "invite a station": Scenario(
        covers=("invitations.Invitations.invite",),
        prepare=_guest,
        request=lambda place, prepared: place.carry(place.invitations.invite(*prepared)),
    ),
    "join": Scenario(
        covers=("invitations.Invitations.join",),
        prepare=_invited,
        request=lambda place, prepared: place.carry(
            place.invitations.join(prepared[0], prepared[1], "192.0.2.7")
        ),
    ),
    "renew": Scenario(
        covers=("renewals.Renewals.renew",),
        prepare=lambda line: (line.station.caller, csr()),
        request=lambda place, prepared: place.carry(place.renewals.renew(*prepared)),
    ),
    "let a responder answer": Scenario(
        covers=("responders.Responders.enrol",),
        prepare=lambda line: (line.operator.caller, "r1", "issuing-1", spki()),
        request=lambda place, prepared: place.carry(place.responders.enrol(*prepared)),
    ),
    "propose a person": Scenario(
        covers=("proposals.Proposals.propose",),
        prepare=_motion,
        request=lambda place, prepared: place.carry(place.proposals.propose(*prepared)),
        environment=Environment.PRODUCTION,
    ),
    "approve a person": Scenario(
        covers=("proposals.Proposals.approve",),
        prepare=_proposed,
        request=lambda place, prepared: place.carry(place.proposals.approve(*prepared)),
        environment=Environment.PRODUCTION,
    ),
    "withdraw a proposal": Scenario(
        covers=("proposals.Proposals.withdraw",),
        prepare=_proposed_withdrawn,
        request=lambda place, prepared: place.carry(place.proposals.withdraw(*prepared)),
        environment=Environment.PRODUCTION,
    ),
    "change a role": Scenario(
        covers=("proposals.Proposals.change_role",),
        prepare=_role,
        request=lambda place, prepared: place.carry(place.proposals.change_role(*prepared)),
    ),
    "set an exposure": Scenario(
        covers=("exposures.set_exposure",),
        prepare=lambda line: (
            line.operator.caller,
            "run:R1",
            line.clock.now(),
            line.clock.now() + WINDOW,
            "shift",
        ),
        request=lambda place, prepared: place.carry(set_exposure(*prepared)),
    ),
    "close an exposure": Scenario(
        covers=("exposures.close_now",),
        prepare=lambda line: (line.operator.caller, "run:R1", "night"),
        request=lambda place, prepared: place.carry(close_now(*prepared)),
    ),
    "clear an exposure": Scenario(
        covers=("exposures.clear_exposure",),
        prepare=_exposed,
        request=lambda place, prepared: place.carry(clear_exposure(*prepared)),
    ),
    "adopt a key": Scenario(
        covers=("custody.KeyCustody.adopt", "custody.KeyCustody.record"),
        prepare=_adoptable,
        request=lambda place, caller: place.carry(
            place.custody.adopt(caller, place.here, "floor", CA, KeyPurpose.ISSUING_CA, "ca")
        ),
    ),
    "generate a key": Scenario(
        covers=("custody.KeyCustody.generate",),
        prepare=lambda line: line.operator.caller,
        request=_ask_generate,
        orphan=("here.generate_secret new",),
        mend=lambda place, caller: place.carry(
            place.custody.adopt(caller, place.here, "floor", NEW, KeyPurpose.KEK, "custodians")
        ),
    ),
    "accept a key": Scenario(
        covers=("custody.KeyCustody.accept",),
        slow=True,
        prepare=_shared,
        request=_ask_accept,
    ),
    "back up a key": Scenario(
        covers=("custody.KeyCustody.back_up",),
        slow=True,
        prepare=_guarded,
        request=lambda place, caller: place.carry(
            place.custody.back_up(caller, place.here, "floor", CA, KEK)
        ),
    ),
    "restore a key": Scenario(
        covers=("custody.KeyCustody.restore",),
        slow=True,
        prepare=_backed_up,
        request=lambda place, prepared: place.carry(
            place.custody.restore(prepared[0], place.mirror, "mirror", prepared[1])
        ),
    ),
    "perform a ceremony": Scenario(
        covers=("ceremonies.commit", "ceremonies.succeed"),
        prepare=_ceremony,
        request=lambda place, prepared: place.carry(
            commit(prepared[0], prepared[1], prepared[2], "software")
        ),
    ),
    "record a restore": Scenario(
        covers=("backup.record_restore",),
        prepare=_restored,
        request=lambda place, prepared: place.carry(record_restore(*prepared)),
    ),
    "propose a recall": Scenario(
        covers=("recall.Recalls.propose",),
        prepare=_order,
        request=lambda place, prepared: place.carry(place.recalls.propose(*prepared)),
    ),
    "approve a recall": Scenario(
        covers=("recall.Recalls.approve",),
        prepare=_recall,
        request=lambda place, prepared: place.carry(place.recalls.approve(*prepared)),
    ),
    "resume a recall": Scenario(
        covers=("recall.Recalls.resume",),
        prepare=_approved,
        request=lambda place, prepared: place.carry(place.recalls.resume(*prepared)),
    ),
    "withdraw a recall": Scenario(
        covers=("recall.Recalls.withdraw",),
        prepare=_recall_withdrawn,
        request=lambda place, prepared: place.carry(place.recalls.withdraw(*prepared)),
    ),
    "ship": Scenario(
        covers=("shipments.record_shipment",),
        prepare=_consignment,
        request=lambda place, prepared: place.carry(record_shipment(*prepared)),
    ),
    "begin an injection": Scenario(
        covers=("injection.InjectDevices.__call__",), slow=True, prepare=_begun, request=_ask_inject
    ),
    "sound an alarm": Scenario(
        covers=("publication_alarms.record_alarm",),
        prepare=lambda _line: Alarm(
            kind="crl-late", authority="issuing-1", partition="", number=1, detail="late"
        ),
        request=lambda place, alarm: place.carry(record_alarm(alarm)),
    ),
    "record what was published": Scenario(
        covers=("publication_record.record_published",),
        prepare=_published,
        request=lambda place, prepared: place.carry(record_published([prepared[0]], prepared[1])),
    ),
}
SCENARIOS: Mapping[str, Scenario] = {**_LINE, **FIELD, **FLEET}

READERS: Mapping[str, str] = {
    "acts.recognise": "finds a client by its certificate",
    "acts.require_reader": "finds whether somebody may read now",
    "attestations.recalled": "finds what a TPM was asked",
    "blastradius.gone_since": "counts",
    "blastradius.scan_all": "reads a table",
    "blastradius.choose": "finds what a recall is about",
    "blastradius.next_page": "reads a page of certificates",
    "blastradius.preview": "counts what a recall would do",
    "challenges.Challenges.recall": "finds what a proof is checked against",
    "dialogues.Dialogues.require_decided": "finds whether a profile's keys are on record",
    "proposals.Proposals.get": "reads a proposal",
    "recall.Recalls.preview": "counts what a recall would do",
    "recall.Recalls.get": "reads a recall",
    "runs.authorities_above": "reads the authorities above a run, or above all that issue",
    "runs.authority_chain": "reads the authorities above one",
    "runs.Runs.context": "reads a run",
    "runs.Runs.known": "reads a run",
    "runs.Runs.compile": "fills a template; what it compiles is signed by nobody",
}
"""Use cases that write nothing, each with what it does; their source is looked at."""

ALONE: Mapping[str, str] = {
    "attest.AttestDevices.__call__": "one act, for which a TPM is needed: tests/services/test_attest.py",
}
"""Use cases whose faults are not in the table, each with why."""
