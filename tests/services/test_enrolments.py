"""Devices that ask for certificates themselves: the identity, and what they have besides (SPEC H1, H2)."""

import itertools
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from birthmark import errors
from birthmark.floor.authorities import Authority, AuthorityStatus, Custody
from birthmark.floor.clients import Role
from birthmark.floor.devices import Attempt, Device, DeviceCertificate, DeviceEvent, DeviceState
from birthmark.floor.enrolments import LocalIdentity, WaitingEnrolment, local_identity_id, waiting_id
from birthmark.floor.fleet import FieldDevice, FieldStatus
from birthmark.floor.runs import Run, RunLicence, RunPurpose
from birthmark.pki.certificates import Certificate
from birthmark.pki.revocation import ReasonCode
from birthmark.services.acts import outcomes
from birthmark.services.approvals import Approvals
from birthmark.services.check import check
from birthmark.services.chronicle import Chronicle
from birthmark.services.enrolments import Granted, Waiting
from birthmark.services.issue import IssueRequest
from birthmark.services.recognition import recognise_device
from birthmark.services.runs import authorities_above
from tests.support.acts import put
from tests.support.realm import START, Client, Line, hierarchy, proof, successor, workpiece

_numbers = itertools.count(1)


def released(line: Line, name: str = "D1") -> Client:
    """Make a device, and return it as it shows its identity."""
    device = workpiece(name)
    issued = line.issue(device)
    line.prove(proof(issued, device.key))
    return line.device(issued.certificate, device.key)


def asked(
    line: Line,
    by: Client,
    label: str | None = "L1",
    *,
    name: str | None = None,
    key: ec.EllipticCurvePrivateKey | None = None,
    idempotency: str | None = None,
    renewal: bool = False,
) -> tuple[Granted | Waiting, ec.EllipticCurvePrivateKey]:
    hardware_id = name or (by.caller.client.hardware_id or "").partition(":")[2]
    device = successor(by.caller.credential.der, key) if renewal else workpiece(hardware_id, key=key)
    request = IssueRequest(hardware_id="", csr=device.csr, key=idempotency or f"enrol-{next(_numbers)}")
    answer = line.service.carry(line.service.enrolments.enrol(by.caller, label, request, renewal=renewal))
    return answer, device.key


def granted(line: Line, by: Client, label: str | None = "L1", **more: object) -> tuple[Granted, Client]:
    answer, key = asked(line, by, label, **more)  # type: ignore[arg-type]  # passed on
    assert isinstance(answer, Granted)
    return answer, line.device(answer.certificate, key)


def uses(line: Line, device: Client) -> bool:
    return line.service.carry(line.service.confirmations.proved_by_use(device.caller))


def serial(one: Granted) -> str:
    return Certificate.from_der(one.certificate).serial_hex


def reason(line: Line, one: Granted) -> ReasonCode | None:
    return line.status(line.the(DeviceCertificate, serial(one)))


def assert_sound(line: Line) -> None:
    assert check(line.service.store, line.service.store.log, line.realm).findings == []


def test_a_released_device_gets_a_certificate_for_where_it_works(line: Line) -> None:
    """SPEC H2: an LDevID from an IDevID, by the same counters, log and record as everything."""
    line.open_operational()
    idevid = released(line)
    first, ldevid = granted(line, idevid)
    assert first.device == "serial:D1"
    read = x509.load_der_x509_certificate(first.certificate)
    assert read.subject.get_attributes_for_oid(x509.NameOID.SERIAL_NUMBER)[0].value == "D1"
    row = line.the(LocalIdentity, local_identity_id("serial:D1", "L1"))
    assert (row.attempts, row.certificate) == (1, None)
    assert line.the(Run, "L1").admitted == 1
    assert line.the(Run, "L1").released == 0
    assert_sound(line)

    assert uses(line, ldevid)
    assert not uses(line, ldevid), "it is proved once"
    assert line.the(LocalIdentity, row.id).certificate == serial(first)
    assert line.the(Attempt, row.attempt).state is DeviceState.RELEASED
    assert line.the(Run, "L1").released == 1
    assert line.the(Device, "serial:D1").state is DeviceState.RELEASED
    assert_sound(line)


def test_the_one_before_is_superseded_only_when_the_new_one_was_used(line: Line) -> None:
    line.open_operational()
    idevid = released(line)
    first, holder = granted(line, idevid)
    uses(line, holder)
    second, renewed = granted(line, holder, renewal=True)
    assert reason(line, first) is None, "it is good until the new one is proved"
    assert_sound(line)
    assert uses(line, renewed)
    assert reason(line, first) is ReasonCode.SUPERSEDED
    assert reason(line, second) is None
    assert line.the(Run, "L1").admitted == 1, "a renewal is no other device"
    with pytest.raises(errors.Unauthenticated, match=r"is revoked \(superseded\)"):
        granted(line, holder, renewal=True)
    assert_sound(line)


def test_a_renewal_that_never_arrived_costs_nothing_but_itself(line: Line) -> None:
    """The answer was lost: the device asks again with another key, and what it had stays good meanwhile."""
    line.open_operational()
    idevid = released(line)
    first, holder = granted(line, idevid)
    uses(line, holder)
    lost, _ = granted(line, holder, renewal=True)
    again, renewed = granted(line, holder, renewal=True)
    assert reason(line, first) is None
    assert reason(line, lost) is ReasonCode.SUPERSEDED
    assert line.the(Attempt, lost.attempt).state is DeviceState.HELD
    assert_sound(line)
    assert uses(line, renewed)
    assert reason(line, first) is ReasonCode.SUPERSEDED
    assert reason(line, again) is None
    assert_sound(line)


def test_a_device_that_renews_with_its_newest_certificate_has_shown_that_it_holds_it(line: Line) -> None:
    """It has used nothing else of it yet: giving that one up would leave the device with nothing."""
    line.open_operational()
    idevid = released(line)
    first, holder = granted(line, idevid)
    uses(line, holder)
    second, renewed = granted(line, holder, renewal=True)
    third, newest = granted(line, renewed, renewal=True)
    assert [reason(line, one) for one in (first, second, third)] == [ReasonCode.SUPERSEDED, None, None]
    assert line.entries()[-2]["by"] == "request"
    assert_sound(line)
    assert uses(line, newest)
    assert reason(line, second) is ReasonCode.SUPERSEDED
    assert_sound(line)


def test_after_a_factory_reset_the_identity_brings_it_back(line: Line) -> None:
    line.open_operational()
    idevid = released(line)
    first, holder = granted(line, idevid)
    uses(line, holder)
    second, back = granted(line, idevid)
    assert reason(line, first) is None
    uses(line, back)
    assert (reason(line, first), reason(line, second)) == (ReasonCode.SUPERSEDED, None)
    assert_sound(line)


def test_the_same_request_gets_the_same_certificate(line: Line) -> None:
    line.open_operational()
    idevid = released(line)
    key = ec.generate_private_key(ec.SECP256R1())
    device = workpiece("D1", key=key)
    request = IssueRequest(hardware_id="", csr=device.csr, key="once")
    answers = [
        line.service.carry(line.service.enrolments.enrol(idevid.caller, "L1", request)) for _ in range(2)
    ]
    assert answers[0] == answers[1]
    other = replace(request, csr=workpiece("D1").csr)
    with pytest.raises(errors.KeyReused):
        line.service.carry(line.service.enrolments.enrol(idevid.caller, "L1", other))
    assert_sound(line)


def test_what_was_given_up_is_not_given_again(line: Line) -> None:
    line.open_operational()
    idevid = released(line)
    key = ec.generate_private_key(ec.SECP256R1())
    device = workpiece("D1", key=key)
    request = IssueRequest(hardware_id="", csr=device.csr, key="once")
    line.service.carry(line.service.enrolments.enrol(idevid.caller, "L1", request))
    granted(line, idevid)
    with pytest.raises(errors.IllegalTransition, match="is revoked: make a new key"):
        line.service.carry(line.service.enrolments.enrol(idevid.caller, "L1", request))


def test_a_device_that_is_not_released_enrols_for_nothing(line: Line) -> None:
    line.open_operational()
    device = workpiece("D1")
    issued = line.issue(device)
    with pytest.raises(errors.IllegalTransition, match="serial:D1 is issued: only a released device enrols"):
        granted(line, line.device(issued.certificate, device.key))
    assert line.entries()[-1]["code"] == "illegal-transition"


def test_a_device_whose_identity_is_revoked_enrols_for_nothing(line: Line) -> None:
    line.open_operational()
    device = workpiece("D1")
    issued = line.issue(device)
    holder = line.device(issued.certificate, device.key)
    line.dispose(DeviceEvent.HOLD, "serial:D1")
    line.dispose(DeviceEvent.SCRAP, "serial:D1")
    with pytest.raises(errors.Unauthenticated, match="is revoked"):
        granted(line, holder)


def test_nobody_else_enrols_under_an_operational_run(line: Line) -> None:
    line.open_operational()
    with pytest.raises(errors.NotPermitted, match="station:ST01 may not enrol-self"):
        asked(line, line.station, name="D1")
    with pytest.raises(errors.NotPermitted, match="run L1 is for devices that have their identity"):
        line.issue(workpiece("D1"), run="L1", by=line.enrol(Role.BOOTSTRAP, "b", hardware_id="serial:D1"))


def test_a_device_gets_no_second_identity(line: Line) -> None:
    idevid = released(line)
    with pytest.raises(errors.NotPermitted, match="device:serial:D1 may not issue"):
        asked(line, idevid, "R1")
    assert line.entries()[-1]["actor"] == "device:serial:D1"


def test_a_request_that_names_another_device_is_refused(line: Line) -> None:
    line.open_operational()
    idevid = released(line)
    with pytest.raises(errors.PolicyRefused, match="the certification request names D2, not D1"):
        asked(line, idevid, name="D2")


def test_a_key_of_another_device_is_refused(line: Line) -> None:
    line.open_operational()
    mine, other = released(line), released(line, "D2")
    with pytest.raises(errors.PolicyRefused, match="this public key already belongs to serial:D2"):
        asked(line, mine, key=other.key)


def test_a_renewal_is_of_the_run_it_is_asked_of(line: Line) -> None:
    line.open_operational()
    line.open_operational("L2")
    idevid = released(line)
    with pytest.raises(errors.NotPermitted, match="only a certificate of run L1 is renewed there"):
        granted(line, idevid, renewal=True)
    _, holder = granted(line, idevid)
    uses(line, holder)
    with pytest.raises(errors.NotPermitted, match="only a certificate of run L2"):
        granted(line, holder, "L2", renewal=True)
    again, _ = granted(line, holder, None, renewal=True)
    assert again.run == "L1", "the certificate that is shown says which"


def test_a_renewal_is_of_the_same_names(line: Line) -> None:
    """RFC 7030 section 4.2.2; and what is refused is on record."""
    line.open_operational()
    _, holder = granted(line, released(line))
    uses(line, holder)
    request = IssueRequest(hardware_id="", csr=workpiece("D1").csr, key="other-names")
    with pytest.raises(errors.PolicyRefused, match="the request's subject is not that of the certificate"):
        line.service.carry(line.service.enrolments.enrol(holder.caller, None, request, renewal=True))
    assert line.entries()[-1]["rule"] == "renewal-names"
    granted(line, holder, renewal=True)
    assert_sound(line)


def test_the_authorities_of_a_realm_are_those_that_issue_and_what_is_above_them(line: Line) -> None:
    """RFC 7030 section 4.1.3: what a client is told that names no run."""
    made = hierarchy()
    context = line.service.carry(line.service.runs.context("R1"))
    assert set(line.service.carry(authorities_above(context))) == {made.issuing, made.root}
    everywhere = line.service.carry(authorities_above(None))
    assert sorted(everywhere) == sorted(
        one.der
        for one in line.service.store.scan(Authority)
        if one.custody is Custody.SERVICE or one.issuer == one.id
    )
    revoked = replace(line.the(Authority, "issuing-1"), status=AuthorityStatus.REVOKED)
    outcomes(line.service.store.submit([put(revoked)]).result())
    assert made.issuing not in line.service.carry(authorities_above(None))
    assert made.issuing in line.service.carry(authorities_above(context)), "it stands above what it issued"


def test_the_quantity_of_an_operational_run_is_hard(line: Line) -> None:
    line.open_operational(quantity=1)
    first, second = released(line), released(line, "D2")
    granted(line, first)
    with pytest.raises(errors.QuotaExhausted, match="run L1 is full"):
        granted(line, second)
    granted(line, first)
    assert_sound(line)


def test_only_listed_devices_enrol_where_there_is_a_list(line: Line) -> None:
    line.open_operational(listed=["serial:D2"], quantity=1)
    with pytest.raises(errors.PolicyRefused, match="serial:D1 is not on the list of run L1"):
        granted(line, released(line))
    granted(line, released(line, "D2"))


@pytest.mark.parametrize(
    "fields",
    [
        {"stations": ("ST01",)},
        {"further_profiles": ("vehicle",), "further_sha256": ("00",)},
    ],
)
def test_an_operational_run_has_nothing_of_the_line(line: Line, fields: dict[str, Any]) -> None:
    with pytest.raises(errors.PolicyRefused) as refused:
        line.open_operational(**fields)
    assert refused.value.rule == "operational"


def test_the_licence_says_what_a_run_is_for(line: Line) -> None:
    licence = line.open_operational(approval=True)
    assert RunLicence.decode(licence.encode()) == licence
    plain = line.licence()
    assert plain.purpose is RunPurpose.IDENTITY
    assert b"purpose" not in plain.encode(), "licences of before stay as they were signed"


# --- a person looks at each


def test_a_request_waits_for_a_person_where_the_licence_says_so(line: Line) -> None:
    line.open_operational(approval=True)
    idevid = released(line)
    key = ec.generate_private_key(ec.SECP256R1())
    answer, _ = asked(line, idevid, key=key, idempotency="w1")
    assert isinstance(answer, Waiting)
    name = waiting_id("device:serial:D1", "w1")
    waits = line.the(WaitingEnrolment, name)
    assert (waits.device, waits.run) == ("serial:D1", "L1")
    assert_sound(line)
    with pytest.raises(errors.NotPermitted):
        line.service.carry(Approvals().settle(line.station.caller, name, approved=True, reason="looks good"))
    line.service.carry(Approvals().settle(line.operator.caller, name, approved=True, reason="looks good"))
    with pytest.raises(errors.KeyReused):
        asked(line, idevid, idempotency="w1")
    assert_sound(line)


def test_what_was_approved_is_granted_to_that_very_request(line: Line) -> None:
    line.open_operational(approval=True)
    idevid = released(line)
    device = workpiece("D1")
    request = IssueRequest(hardware_id="", csr=device.csr, key="w1")

    def ask() -> Granted | Waiting:
        return line.service.carry(line.service.enrolments.enrol(idevid.caller, "L1", request))

    assert isinstance(ask(), Waiting)
    assert isinstance(ask(), Waiting), "asking twice is waiting once"
    name = waiting_id("device:serial:D1", "w1")
    line.service.carry(Approvals().settle(line.operator.caller, name, approved=True, reason="ok"))
    got = ask()
    assert isinstance(got, Granted)
    with pytest.raises(errors.IllegalTransition, match="is approved, by operator:anna"):
        line.service.carry(Approvals().settle(line.operator.caller, name, approved=False, reason="late"))
    assert_sound(line)


def test_what_was_refused_stays_refused_and_what_nobody_saw_ends(line: Line) -> None:
    line.open_operational(approval=True)
    idevid = released(line)
    key = ec.generate_private_key(ec.SECP256R1())
    device = workpiece("D1", key=key)
    one, two = (IssueRequest(hardware_id="", csr=device.csr, key=name) for name in ("a", "b"))
    for request in (one, two):
        line.service.carry(line.service.enrolments.enrol(idevid.caller, "L1", request))
    name = waiting_id("device:serial:D1", "a")
    line.service.carry(Approvals().settle(line.operator.caller, name, approved=False, reason="stolen"))
    with pytest.raises(errors.NotPermitted, match="operator:anna refused it: stolen"):
        line.service.carry(line.service.enrolments.enrol(idevid.caller, "L1", one))
    line.clock.turn(days=8)
    with pytest.raises(errors.NotPermitted, match="it was not looked at within 7 days"):
        line.service.carry(line.service.enrolments.enrol(idevid.caller, "L1", two))
    assert_sound(line)


def test_nobody_approves_what_has_ended_and_an_approval_does_not_last_for_ever(line: Line) -> None:
    line.open_operational(approval=True, not_after=START + timedelta(days=30))
    idevid = released(line)
    device = workpiece("D1")
    seen, unseen = (IssueRequest(hardware_id="", csr=device.csr, key=name) for name in ("a", "b"))
    for request in (seen, unseen):
        line.service.carry(line.service.enrolments.enrol(idevid.caller, "L1", request))
    name = waiting_id("device:serial:D1", "a")
    line.service.carry(Approvals().settle(line.operator.caller, name, approved=True, reason="ok"))
    line.clock.turn(days=8)
    with pytest.raises(errors.NotPermitted, match="it was approved, and not asked for within 7 days"):
        line.service.carry(line.service.enrolments.enrol(idevid.caller, "L1", seen))
    late = waiting_id("device:serial:D1", "b")
    with pytest.raises(errors.IllegalTransition, match="ended: the device asks again"):
        line.service.carry(Approvals().settle(line.operator.caller, late, approved=True, reason="late"))
    assert_sound(line)


def test_a_device_that_is_held_in_the_field_gets_nothing(line: Line) -> None:
    """Two may have its key: the clone would take the certificate, and revoke the genuine device's."""
    line.open_operational()
    idevid = released(line)
    first, holder = granted(line, idevid)
    uses(line, holder)
    second, renewed = granted(line, holder, renewal=True)
    met = FieldDevice(
        id="serial:D1",
        authority="",
        certificate="00",
        status=FieldStatus.HELD,
        reason="it is a clone",
        place="127.0.0.1",
        moved_at=START,
        moves=0,
        counted_from=START,
        first_seen_at=START,
        first_seen_leaf=0,
    )
    outcomes(line.service.store.submit([put(met)]).result())
    for attempt in (lambda: granted(line, idevid), lambda: uses(line, renewed)):
        with pytest.raises(errors.NotPermitted, match="serial:D1 is held in the field: it is a clone"):
            attempt()
    assert [reason(line, one) for one in (first, second)] == [None, None], "nothing is superseded meanwhile"


@pytest.mark.parametrize("text", ["L1\x00", "\x00"])
def test_a_run_that_no_database_can_hold_is_one_that_is_not_there(line: Line, text: str) -> None:
    with pytest.raises(errors.NotFound):
        asked(line, released(line), text)
    with pytest.raises(errors.Unauthenticated):
        line.service.carry(line.service.codes.named(text))
    assert_sound(line)


def test_no_station_goes_around_the_person(line: Line) -> None:
    line.open_run("R9", approval=True)
    with pytest.raises(errors.NotPermitted, match="a person looks at each request of run R9"):
        line.issue(workpiece("D9"), run="R9")


# --- the identity itself


def test_a_bootstrapped_device_gets_its_identity_and_passes_the_same_gate(line: Line) -> None:
    """SPEC H1, C6: what enrols during production proves like everything else before it is released."""
    bootstrap = line.enrol(Role.BOOTSTRAP, "boot-1", hardware_id="serial:D7")
    got, device = granted(line, bootstrap, "R1")
    assert line.the(Device, "serial:D7").state is DeviceState.ISSUED
    assert not uses(line, device), "a handshake is no proof on the line"
    asked_for = line.service.carry(line.service.confirmations.challenge(device.caller))
    assert asked_for is not None
    attempt, message = asked_for
    assert attempt == got.attempt
    assert message.startswith(b"birthmark/proof/v1\n")
    issued = line.issue(workpiece("D8"))  # another's challenge proves nothing for it
    with pytest.raises(errors.NotPermitted, match="may provision serial:D7 only"):
        line.prove(proof(issued, device.key), by=device)
    attempt_row = line.the(Attempt, got.attempt)
    request = proof(
        replace(issued, attempt=got.attempt, certificate=got.certificate, challenge=attempt_row.challenge),
        device.key,
    )
    token = line.prove(request, by=device)
    assert token.device == "serial:D7"
    assert line.the(Device, "serial:D7").state is DeviceState.RELEASED
    record = line.entries()[-1]["record"]
    assert record["client"] == "device:serial:D7"
    assert (record["site"], record["line"]) == ("Graz", "L1")
    assert_sound(line)


def test_a_certificate_that_was_not_taken_is_revoked_and_holds_the_device(line: Line) -> None:
    bootstrap = line.enrol(Role.BOOTSTRAP, "boot-1", hardware_id="serial:D7")
    got, _ = granted(line, bootstrap, "R1")
    line.service.carry(
        line.service.confirmations.reject(bootstrap.id, got.attempt, "the client did not confirm it")
    )
    assert reason(line, got) is ReasonCode.CESSATION_OF_OPERATION
    device = line.the(Device, "serial:D7")
    assert (device.state, device.reason) == (DeviceState.HELD, "the client did not confirm it")
    assert line.the(Run, "R1").held == 1
    assert_sound(line)


def test_a_device_that_was_reworked_is_not_held_for_what_nobody_confirmed_before(line: Line) -> None:
    """SPEC C4: its old attempt is over, and revoked; what it waits for is a new one."""
    device = workpiece("D7")
    issued = line.issue(device)
    for event in (DeviceEvent.HOLD, DeviceEvent.REWORK):
        line.dispose(event, "serial:D7")
    with pytest.raises(errors.IllegalTransition, match="is over: it is held"):
        line.service.carry(line.service.confirmations.reject("realm:device-plane", issued.attempt, "in vain"))
    assert line.the(Device, "serial:D7").state is DeviceState.ADMITTED
    assert line.the(Run, "R1").held == 0
    assert_sound(line)


def test_an_operational_certificate_that_was_not_taken_is_revoked_and_the_one_before_stays(
    line: Line,
) -> None:
    line.open_operational()
    idevid = released(line)
    first, holder = granted(line, idevid)
    uses(line, holder)
    second, _ = granted(line, holder, renewal=True)
    line.service.carry(line.service.confirmations.reject(holder.id, second.attempt, "not taken"))
    assert reason(line, second) is ReasonCode.CESSATION_OF_OPERATION
    assert reason(line, first) is None
    assert_sound(line)


def test_a_confirmed_certificate_is_live(line: Line) -> None:
    line.open_operational()
    idevid = released(line)
    first, _ = granted(line, idevid)
    line.service.carry(line.service.confirmations.confirm(idevid.caller, first.attempt))
    assert line.the(LocalIdentity, local_identity_id("serial:D1", "L1")).certificate == serial(first)
    line.service.carry(line.service.confirmations.confirm(idevid.caller, first.attempt))
    other = released(line, "D2")
    second, _ = granted(line, idevid)
    with pytest.raises(errors.NotPermitted, match="proves no certificate of serial:D1"):
        line.service.carry(line.service.confirmations.confirm(other.caller, second.attempt))
    assert_sound(line)


def test_a_device_gives_an_operational_certificate_back_and_never_its_identity(line: Line) -> None:
    line.open_operational()
    idevid = released(line)
    first, holder = granted(line, idevid)
    uses(line, holder)
    issuer = Certificate.from_der(first.certificate).issuer_name
    because = ReasonCode.CESSATION_OF_OPERATION

    def give_back(by: Client, which: str, issuer: bytes = issuer) -> None:
        line.service.carry(line.service.confirmations.revoke_own(by.caller, issuer, which, because))

    with pytest.raises(errors.NotPermitted, match="is an identity: people recall it"):
        give_back(idevid, idevid.caller.credential.serial)
    with pytest.raises(errors.NotFound, match="has no certificate"):
        give_back(released(line, "D2"), serial(first))
    with pytest.raises(errors.NotFound, match="is of another authority"):
        give_back(idevid, serial(first), b"0")
    give_back(idevid, serial(first))
    assert reason(line, first) is because
    with pytest.raises(errors.PolicyRefused, match="is revoked already"):
        give_back(idevid, serial(first))
    assert_sound(line)
    second, again = granted(line, idevid)
    assert uses(line, again)
    assert reason(line, second) is None
    assert_sound(line)


def test_a_stranger_is_nobody(line: Line) -> None:
    for octets in (b"", b"0", line.the(DeviceCertificate, serial_of_new(line)).der[:-1]):
        with pytest.raises(errors.Unauthenticated):
            line.service.carry(recognise_device(octets))


def serial_of_new(line: Line) -> str:
    return Certificate.from_der(line.issue(workpiece("D5")).certificate).serial_hex


def test_the_time_machine_knows_operational_certificates(line: Line) -> None:
    """SPEC E6."""
    line.open_operational()
    idevid = released(line)
    first, holder = granted(line, idevid)
    uses(line, holder)
    second, renewed = granted(line, holder, renewal=True)
    uses(line, renewed)
    chronicle = Chronicle()
    for index, entry in enumerate(line.entries()):
        chronicle.take(index, entry)
    assert chronicle.contradictions == []
    phases = [str(chronicle.certificates[serial(one)].phase) for one in (first, second)]
    assert phases == ["revoked", "live"]
