"""What many devices share brings in so many, from there, for so long, and in production by two (SPEC H4)."""

import multiprocessing
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from ipaddress import ip_network
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from birthmark import errors
from birthmark.adapters.softkeys import SoftwareKeyStore
from birthmark.adapters.system import SystemEntropy
from birthmark.floor.clients import Client as Row
from birthmark.floor.clients import Role
from birthmark.floor.devices import Device, DeviceEvent
from birthmark.floor.enrolments import WaitingEnrolment, waiting_id
from birthmark.floor.proposals import Deed, Motion, Proposal, ProposalStatus
from birthmark.floor.realm import Environment
from birthmark.floor.runs import Run
from birthmark.floor.shared import SharedCredential, networks_text, require_network
from birthmark.ports import Act, Decision, Facts, carry
from birthmark.services.acts import Caller, outcomes, recognise, refuse
from birthmark.services.approvals import Approvals
from birthmark.services.check import check
from birthmark.services.enrolments import Granted, Waiting
from birthmark.services.exposures import close_now, set_exposure
from birthmark.services.issue import IssueRequest
from birthmark.services.proposals import Proposals
from birthmark.services.shared import Sharing, put_shared, share, sharing_of
from tests.support.realm import (
    ORGANIZATION,
    PASSPHRASE,
    START,
    Client,
    Hands,
    Line,
    Service,
    make_line,
    open_service,
    tamper,
    workpiece,
)
from tests.support.recalls import sign

HERE = "10.4.7.7"
_numbers = count(1)


def wanted(**changes: Any) -> Sharing:
    key = ec.generate_private_key(ec.SECP256R1())
    values: dict[str, Any] = {
        "name": "image-7",
        "run": "R1",
        "quantity": 3,
        "networks": "10.4.0.0/16",
        "not_after": START + timedelta(hours=8),
        "authority": "issuing-1",
        "organization": ORGANIZATION,
        "subject_public_key_info": key.public_key().public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        ),
    }
    return Sharing(**(values | changes))


def made(line: Line, **changes: Any) -> Caller:
    """Make a shared credential, and return a device that shows it on the device plane."""
    sharing = wanted(**changes)
    service = line.service
    enrolled = service.carry(share(service.authorise, line.realm, line.operator.caller, sharing))
    return replace(service.carry(recognise(enrolled.certificate.der)), plane="device", address=HERE)


def brought(
    line: Line, caller: Caller, name: str, label: str | None = None, *, by: Service | None = None
) -> Granted:
    device = workpiece(name)
    request = IssueRequest(hardware_id="", csr=device.csr, key=f"est-{next(_numbers)}")
    service = by or line.service
    answer = service.carry(service.enrolments.enrol(caller, label, request))
    assert isinstance(answer, Granted)
    return answer


def findings(line: Line) -> list[str]:
    return check(line.service.store, line.service.store.log, line.realm).findings


def used(line: Line) -> int:
    return line.the(SharedCredential, "shared:image-7").used


def refused(line: Line) -> tuple[str, str, str]:
    entry = line.entries()[-1]
    return entry["kind"], entry["actor"], entry["code"]


# --- what it may


def test_it_brings_in_devices_of_one_run_and_each_is_counted_once(line: Line) -> None:
    caller = made(line)
    for number in (1, 2):
        assert brought(line, caller, f"D{number}").run == "R1"
        assert used(line) == number
    line.dispose(DeviceEvent.HOLD, "serial:D1")
    line.dispose(DeviceEvent.REWORK, "serial:D1")
    brought(line, caller, "D1")
    assert (used(line), line.the(Run, "R1").admitted) == (2, 2), "a device that comes again is no other"
    assert findings(line) == []


def test_the_same_request_again_is_answered_again_and_not_counted(line: Line) -> None:
    caller, device = made(line), workpiece("D1")
    request = IssueRequest(hardware_id="", csr=device.csr, key="est-again")
    enrol = line.service.enrolments.enrol
    first, second = (line.service.carry(enrol(caller, None, request)) for _ in range(2))
    assert isinstance(first, Granted)
    assert isinstance(second, Granted)
    assert (first.certificate == second.certificate, used(line)) == (True, 1)


def test_one_more_than_its_number_is_refused_and_the_run_does_not_count_it(line: Line) -> None:
    caller = made(line, quantity=1)
    brought(line, caller, "D1")
    with pytest.raises(errors.QuotaExhausted, match="all 1 devices"):
        brought(line, caller, "D2")
    assert refused(line) == ("refused", "shared:image-7", "quota-exhausted")
    assert (used(line), line.the(Run, "R1").admitted, line.get(Device, "serial:D2")) == (1, 1, None)
    assert findings(line) == []


def test_it_is_good_from_its_networks_only(line: Line) -> None:
    caller = made(line)
    for address in ("10.5.0.1", "fd00::1", "", "nowhere"):
        with pytest.raises(errors.NotPermitted, match=r"10\.4\.0\.0/16 only"):
            brought(line, replace(caller, address=address), "D1")
        assert refused(line) == ("refused", "shared:image-7", "not-permitted")
    brought(line, replace(caller, address="::ffff:10.4.0.9"), "D1")


def test_a_reworked_device_is_given_nothing_to_a_thief_elsewhere(line: Line) -> None:
    caller = made(line)
    brought(line, caller, "D1")
    line.dispose(DeviceEvent.HOLD, "serial:D1")
    line.dispose(DeviceEvent.REWORK, "serial:D1")
    with pytest.raises(errors.NotPermitted, match="only, not for"):
        brought(line, replace(caller, address="192.0.2.1"), "D1")


def test_it_ends_and_is_open_only_in_its_window(line: Line) -> None:
    caller = made(line)
    opens = line.clock.now() + timedelta(hours=1)
    line.service.carry(set_exposure(line.operator.caller, "shared:image-7", opens, None, "first shift"))
    with pytest.raises(errors.NotPermitted, match="closed until"):
        brought(line, caller, "D1")
    line.clock.turn(hours=1)
    brought(line, caller, "D1")
    line.service.carry(close_now(line.operator.caller, "shared:image-7", "shift ends"))
    with pytest.raises(errors.NotPermitted, match="closed since"):
        brought(line, caller, "D2")
    line.clock.turn(hours=7)
    with pytest.raises(errors.Unauthenticated, match="ended"):
        brought(line, caller, "D2")
    assert refused(line)[2] == "unauthenticated"
    assert findings(line) == []


def test_it_is_shut_out_at_once(line: Line) -> None:
    caller = made(line)
    line.service.carry(line.service.authorise.revoke(line.operator.caller, "shared:image-7", "leaked"))
    with pytest.raises(errors.Unauthenticated, match="revoked"):
        brought(line, caller, "D1")
    assert refused(line)[2] == "unauthenticated"
    assert findings(line) == []


def test_it_is_for_its_run_alone_and_proves_nothing(line: Line) -> None:
    line.open_run("R2")
    line.open_operational("L1")
    caller = made(line)
    for label in ("R2", "L1"):
        with pytest.raises(errors.NotPermitted):
            brought(line, caller, "D1", label)
        assert refused(line)[2] == "not-permitted"
    assert used(line) == 0


# --- where a person looks at each request


def asks(line: Line, caller: Caller, name: str, key: str) -> Granted | Waiting:
    request = IssueRequest(hardware_id="", csr=_same(name), key=key)
    return line.service.carry(line.service.enrolments.enrol(caller, None, request))


@cache
def _same(name: str) -> bytes | None:
    return workpiece(name).csr


def settle(line: Line, key: str, *, approved: bool) -> None:
    name = waiting_id("shared:image-7", key)
    line.service.carry(Approvals().settle(line.operator.caller, name, approved=approved, reason="seen"))


def waiting(line: Line) -> int:
    return line.the(SharedCredential, "shared:image-7").waiting


def test_what_waits_counts_against_its_number_until_a_person_settles_it(line: Line) -> None:
    line.open_run("RA", approval=True)
    caller = made(line, run="RA", quantity=2)
    for name, key in (("D1", "a"), ("D2", "b"), ("D1", "a")):
        assert isinstance(asks(line, caller, name, key), Waiting)
    assert waiting(line) == 2, "asking again is waiting once"
    with pytest.raises(errors.QuotaExhausted, match="2 of its requests wait: a person has to"):
        asks(line, caller, "D3", "c")
    assert refused(line) == ("refused", "shared:image-7", "quota-exhausted")
    assert line.get(WaitingEnrolment, waiting_id("shared:image-7", "c")) is None
    settle(line, "a", approved=False)
    assert isinstance(asks(line, caller, "D3", "c"), Waiting)
    settle(line, "b", approved=True)
    assert isinstance(asks(line, caller, "D2", "b"), Granted)
    assert (waiting(line), used(line)) == (1, 1)
    with pytest.raises(errors.QuotaExhausted):
        asks(line, caller, "D4", "d")
    assert findings(line) == []


def test_a_name_that_no_device_of_the_run_can_have_does_not_wait(line: Line) -> None:
    line.open_run("RA", approval=True)
    caller, size = made(line, run="RA"), line.size()
    with pytest.raises(errors.PolicyRefused, match="serial"):
        asks(line, caller, "no/device", "a")
    assert (line.size(), refused(line)) == (size + 1, ("refused", "shared:image-7", "policy-refused"))


def test_what_waited_too_long_keeps_its_place_until_it_is_refused(line: Line) -> None:
    line.open_run("RA", approval=True, not_after=START + timedelta(days=30))
    caller = made(line, run="RA", quantity=1, not_after=START + timedelta(days=20))
    assert isinstance(asks(line, caller, "D1", "a"), Waiting)
    line.clock.turn(days=8)
    with pytest.raises(errors.QuotaExhausted):
        asks(line, caller, "D1", "b")
    with pytest.raises(errors.IllegalTransition, match="ended"):
        settle(line, "a", approved=True)
    settle(line, "a", approved=False)
    with pytest.raises(errors.IllegalTransition, match="is refused"):
        settle(line, "a", approved=False)
    assert isinstance(asks(line, caller, "D1", "b"), Waiting)
    assert (waiting(line), findings(line)) == (1, [])


def test_a_device_that_is_known_waits_though_all_are_brought_in(line: Line) -> None:
    line.open_run("RA", approval=True)
    caller = made(line, run="RA", quantity=1)
    asks(line, caller, "D1", "a")
    settle(line, "a", approved=True)
    asks(line, caller, "D1", "a")
    assert isinstance(asks(line, caller, "D1", "b"), Waiting)
    with pytest.raises(errors.QuotaExhausted):
        asks(line, caller, "D1", "c")
    assert (waiting(line), used(line), findings(line)) == (1, 1, [])


def test_at_once_no_more_wait_than_its_number(line: Line) -> None:
    line.open_run("RA", approval=True)
    caller = made(line, run="RA", quantity=4)
    services = [line.service, line.another_service()]

    def one(number: int) -> bool:
        request = IssueRequest(hardware_id="", csr=_same(f"M{number}"), key=f"m{number}")
        try:
            services[number % 2].carry(services[number % 2].enrolments.enrol(caller, None, request))
        except errors.QuotaExhausted:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        came = list(pool.map(one, range(12)))
    assert (sum(came), waiting(line)) == (4, 4)
    assert findings(line) == []


# --- how it is made


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"run": "R9"}, errors.NotFound),
        ({"run": "L1"}, errors.NotPermitted),
        ({"run": "RC"}, errors.IllegalTransition),
        ({"quantity": 1001}, errors.PolicyRefused),
        ({"not_after": START}, errors.PolicyRefused),
        ({"authority": "nobody"}, errors.NotFound),
    ],
)
def test_what_could_bring_nothing_in_is_not_made(
    line: Line, changes: dict[str, Any], refusal: type[errors.Refusal]
) -> None:
    line.open_operational("L1")
    line.open_run("RC")
    line.service.carry(line.service.runs.close(line.operator.caller, "RC", "over"))
    with pytest.raises(refusal):
        made(line, **changes)
    assert line.entries()[-1]["request"] == "share-credential"
    assert line.get(Row, "shared:image-7") is None


def test_a_name_is_good_once(line: Line) -> None:
    made(line)
    with pytest.raises(errors.IllegalTransition, match="another name"):
        made(line)


@pytest.mark.parametrize("role", [Role.LINE_LEAD, Role.OPERATOR, Role.AUDITOR])
def test_only_an_officer_makes_one(line: Line, role: Role) -> None:
    somebody = line.enrol(role, "lena")
    sharing = share(line.service.authorise, line.realm, somebody.caller, wanted())
    with pytest.raises(errors.NotPermitted):
        line.service.carry(sharing)
    assert refused(line)[1] == "operator:lena"


def test_none_is_enrolled_without_limits(line: Line) -> None:
    with pytest.raises(errors.NotPermitted, match="has limits"):
        line.enrol(Role.SHARED, "image-8", by=line.operator, run="R1")


@pytest.mark.parametrize(
    "changes", [{"quantity": 0}, {"networks": "10.4.0.0/16 10.4.0.0/16"}, {"name": "../x"}]
)
def test_limits_that_are_none_are_malformed(changes: dict[str, Any]) -> None:
    with pytest.raises(errors.MalformedRequest):
        wanted(**changes)


# --- two people


@pytest.fixture
def plant(tmp_path: Path, database_url: str) -> Iterator[Line]:
    """A production realm with officers anna and bela, and run R1."""
    made_line = make_line(tmp_path, database_url, environment=Environment.PRODUCTION)
    bela = made_line.enrol(Role.OFFICER, "bela")
    licence = made_line.licence("R1")
    signed = made_line.sign(licence)
    opening = made_line.service.opening
    made_line.service.carry(opening.open(made_line.operator.caller, licence, signed))
    made_line.service.carry(opening.approve(bela.caller, "R1", sign(bela, licence.encode())))
    yield made_line
    made_line.close()


def bela_of(line: Line) -> Client:
    return line.enrol(Role.OFFICER, f"officer-{next(_numbers)}")


def proposals(line: Line) -> Proposals:
    return Proposals(line.realm, line.service.authorise, SystemEntropy())


def proposed(line: Line, sharing: Sharing, **terms: str) -> Proposal:
    service = proposals(line)
    motion = service.draft(
        line.operator.caller, Deed.SHARE_CREDENTIAL, sharing.client, sharing.terms | terms, "an image"
    )
    signature = sign(line.operator, motion.encode())
    return line.service.carry(service.propose(line.operator.caller, motion, signature))


def test_in_production_nobody_makes_one_alone(plant: Line) -> None:
    with pytest.raises(errors.NotPermitted, match="two people"):
        made(plant)
    assert refused(plant) == ("refused", "operator:anna", "not-permitted")
    row = proposed(plant, wanted())
    signature = sign(plant.operator, row.document)
    with pytest.raises(errors.NotPermitted):
        plant.service.carry(proposals(plant).approve(plant.operator.caller, row.id, signature))
    assert plant.get(SharedCredential, "shared:image-7") is None
    assert findings(plant) == []


def test_in_production_two_officers_make_one_with_the_limits_both_signed(plant: Line) -> None:
    row, second = proposed(plant, wanted()), bela_of(plant)
    plant.service.carry(proposals(plant).approve(second.caller, row.id, sign(second, row.document)))
    assert plant.the(SharedCredential, "shared:image-7") == SharedCredential(
        id="shared:image-7", quantity=3, used=0, networks="10.4.0.0/16"
    )
    entry = plant.entries()[-1]
    assert (entry["kind"], entry["quantity"], entry["networks"]) == ("client-enrolled", 3, "10.4.0.0/16")
    assert entry["until"] == row_terms(row)["not_after"]
    assert findings(plant) == []


def row_terms(row: Proposal) -> dict[str, str]:
    return dict(Motion.decode(row.document).terms)


@pytest.mark.parametrize(
    "changes",
    [
        {"quantity": 4},
        {"networks": ""},
        {"not_after": START + timedelta(hours=9)},
        {"subject_public_key_info": wanted().subject_public_key_info},
    ],
)
def test_the_check_finds_one_that_was_made_otherwise_than_two_people_signed(
    plant: Line, changes: dict[str, Any]
) -> None:
    """As a program would that shows two people one thing and does another."""
    sharing, second = wanted(), bela_of(plant)
    row = proposed(plant, sharing)
    signature = sign(second, row.document)
    other = replace(sharing, **changes)
    certified = plant.service.carry(plant.service.authorise.certify(other.enrolment))

    def decide(facts: Facts, at: datetime) -> Decision[Row]:
        before = facts.get(Proposal, row.id)
        assert before is not None
        facts.put(
            replace(
                before,
                status=ProposalStatus.APPROVED,
                approver=second.caller.credential.serial,
                approval=signature,
            )
        )
        entry = {
            "proposal": row.id,
            "motion": row.document.decode(),
            "approver": second.caller.credential.serial,
            "approval": signature.hex(),
        }
        made_of = put_shared(facts, other, certified[1], at)
        return Decision(made_of.answer, [("proposal-approved", entry), *made_of.entries])

    act = Act(actor=second.id, decide=decide, refuse=refuse(None, "x", {}), reads={Proposal: (row.id,)})
    outcomes(plant.service.store.submit([act]).result())
    assert any("has other limits than two people signed" in finding for finding in findings(plant))


@pytest.mark.parametrize(
    "terms",
    [{"quantity": "many"}, {"quantity": "03"}, {"networks": "here"}, {"not_after": "soon"}, {"more": "1"}],
)
def test_a_motion_that_says_no_limits_is_not_even_proposed(plant: Line, terms: dict[str, str]) -> None:
    with pytest.raises(errors.MalformedRequest):
        proposed(plant, wanted(), **terms)


@given(st.dictionaries(st.sampled_from([*wanted().terms, "x"]), st.text(max_size=20)))
def test_terms_are_limits_or_malformed(terms: dict[str, str]) -> None:
    motion = Motion(
        realm="acme", environment="test", id="pp-0", deed=Deed.SHARE_CREDENTIAL, subject="shared:image-7",
        terms=wanted().terms | terms, reason="", proposed_by="operator:anna",
    )  # fmt: skip
    try:
        assert sharing_of(motion).terms == motion.terms
    except errors.MalformedRequest:
        return


def alone(line: Line, sharing: Sharing) -> None:
    """Make one as a program would that left out the second person."""
    carried = line.service.carry(line.service.authorise.certify(sharing.enrolment))

    def decide(facts: Facts, at: datetime) -> Decision[Row]:
        return put_shared(facts, sharing, carried[1], at)

    act = Act(actor=line.operator.id, decide=decide, refuse=refuse(None, "x", {}), reads={})
    outcomes(line.service.store.submit([act]).result())


def test_the_check_finds_one_that_nobody_approved_in_production(plant: Line) -> None:
    alone(plant, wanted())
    assert any("without a second person" in finding for finding in findings(plant))


def test_the_check_finds_no_fault_with_one_that_a_test_realm_made_alone(line: Line) -> None:
    alone(line, wanted())
    assert findings(line) == []


@pytest.mark.parametrize(
    ("statement", "value"),
    [
        ("UPDATE shared_credential SET quantity = %s", 1000),
        ("UPDATE shared_credential SET networks = %s", ""),
        ("UPDATE shared_credential SET used = %s", 0),
        ("UPDATE shared_credential SET waiting = %s", 1),
        ("DELETE FROM shared_credential WHERE quantity > %s", 0),
        ("UPDATE client SET run = %s WHERE role = 'shared'", "R2"),
        ("UPDATE credential SET not_after = not_after + %s WHERE profile = 'shared'", 1000),
    ],
)
def test_limits_that_somebody_changed_in_the_database_are_found(
    line: Line, statement: str, value: Any
) -> None:
    brought(line, made(line), "D1")
    assert findings(line) == []
    tamper(line.url, (statement, [value]))
    assert any("image-7" in finding for finding in findings(line))


def test_without_its_limits_it_brings_nothing_in(line: Line) -> None:
    caller = made(line)
    tamper(line.url, ("DELETE FROM shared_credential WHERE quantity > %s", [0]))
    with pytest.raises(errors.IntegrityFailure, match="limits"):
        brought(line, caller, "D1")


# --- many at once


def test_many_processes_bring_in_no_more_than_its_number(line: Line) -> None:
    caller = made(line, quantity=5)
    services = [line.service, line.another_service(), line.another_service()]

    def one(number: int) -> bool:
        try:
            brought(line, caller, f"M{number}", by=services[number % 3])
        except errors.QuotaExhausted:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        came = list(pool.map(one, range(18)))
    assert (sum(came), used(line), line.the(Run, "R1").admitted) == (5, 5, 5)
    assert sum(entry.get("code") == "quota-exhausted" for entry in line.entries()) == 13
    assert findings(line) == []


def bring_on_and_on(url: str, keys: str, der: bytes, prefix: str) -> None:
    """Bring devices in as another process of the service would, until there are no more."""
    service = open_service(url, SoftwareKeyStore.open(Path(keys), PASSPHRASE), Hands())
    caller = replace(carry(service.store, recognise(der)), plane="device", address=HERE)
    for number in range(1000):
        request = IssueRequest(
            hardware_id="", csr=workpiece(f"{prefix}{number}").csr, key=f"{prefix}{number}"
        )
        try:
            carry(service.store, service.enrolments.enrol(caller, None, request))
        except errors.QuotaExhausted:
            break
    service.store.close()


def test_its_count_is_right_after_a_process_was_killed_in_the_middle(line: Line) -> None:
    caller = made(line, quantity=40)
    spawn = multiprocessing.get_context("spawn")
    keys = str(_keys_directory())
    workers = [
        spawn.Process(target=bring_on_and_on, args=(line.url, keys, caller.credential.der, prefix))
        for prefix in ("A", "B")
    ]
    for worker in workers:
        worker.start()
    pause = threading.Event()
    for _ in range(1500):
        if used(line) >= 5:
            break
        pause.wait(0.02)
    workers[0].kill()
    for worker in workers:
        worker.join(60)
    assert workers[1].exitcode == 0
    assert (used(line), line.the(Run, "R1").admitted) == (40, 40)
    assert sum(entry["kind"] == "device-issued" for entry in line.entries()) == 40
    assert findings(line) == []


def _keys_directory() -> Path:
    from tests.support.realm import hierarchy  # noqa: PLC0415  # made once a test run

    return hierarchy().directory


# --- networks


@given(st.lists(st.ip_addresses(), min_size=1, max_size=3), st.ip_addresses())
def test_an_address_is_let_in_if_it_is_in_one_of_the_networks(networks: list[Any], address: Any) -> None:
    text = networks_text(str(one) for one in networks)
    shared = SharedCredential(id="shared:s", quantity=1, used=0, networks=text)
    mapped = getattr(address, "ipv4_mapped", None) or address
    inside = any(mapped in ip_network(str(one)) for one in networks)
    try:
        require_network(shared, str(address))
    except errors.NotPermitted:
        assert not inside
    else:
        assert inside


@pytest.mark.parametrize("text", ["10.4.0.1/16", "here", "10.4.0.0/33", "10.4.0.0/16 10.5.0.0/16", ""])
def test_what_is_no_network_is_malformed(text: str) -> None:
    with pytest.raises(errors.MalformedRequest):
        networks_text([text])


def test_networks_are_kept_sorted_and_each_once() -> None:
    assert networks_text(["fd00::/8", "10.4.0.0/16", "10.4.0.0/16"]) == "10.4.0.0/16 fd00::/8"
    assert START.tzinfo is UTC
