"""The same key gets the same answer, whatever became of the world meanwhile (SPEC C4)."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from birthmark import errors
from birthmark.floor.devices import Attempt, Device, DeviceCertificate, DeviceEvent, DeviceState
from birthmark.floor.runs import Run
from birthmark.pki.certificates import Certificate
from birthmark.pki.revocation import ReasonCode
from birthmark.services.check import check
from birthmark.services.issue import Issued, IssueRequest
from tests.support.realm import Line, Service, proof, workpiece


@pytest.fixture(params=["the same service", "another service"])
def again(request: pytest.FixtureRequest, line: Line) -> Service:
    """Where the retry arrives."""
    return line.service if request.param == "the same service" else line.another_service()


def test_a_born_issue_is_answered_with_identical_bytes(line: Line, again: Service) -> None:
    device = workpiece("D1")
    first = line.issue(device, key="k")
    second = line.issue(device, key="k", service=again)
    assert (second.certificate, second.chain, second.challenge, second.attempt, second.device) == (
        first.certificate,
        first.chain,
        first.challenge,
        first.attempt,
        first.device,
    )
    assert len(list(line.service.store.scan(DeviceCertificate))) == 1
    assert line.the(Run, "R1").admitted == 1
    assert line.entries()[-1]["kind"] == "answer-repeated"
    line.prove(proof(first, device.key))
    line.service.carry(line.service.runs.close(line.operator.caller, "R1", "full"))
    third = line.issue(device, key="k", service=again)
    assert third.certificate == first.certificate, "even when nothing new would be issued any more"


def test_a_release_is_answered_with_the_identical_token(line: Line, again: Service) -> None:
    device = workpiece("D1")
    request = proof(line.issue(device), device.key)
    first = line.prove(request)
    line.make("D2")
    assert line.prove(request, service=again) == first
    assert line.prove(request, service=again) == first


def test_a_refusal_is_repeated_even_when_it_would_succeed_now(line: Line, again: Service) -> None:
    line.open_run("R2", quantity=1)
    line.open_run("R3", quantity=1, stations=())
    device = workpiece("D2")
    for run, kind in (("R2", errors.QuotaExhausted), ("R3", errors.NotPermitted)):
        if run == "R2":
            line.make("D1", run=run)
        with pytest.raises(kind) as first:
            line.issue(device, run=run, key=run)
        with pytest.raises(kind) as second:
            line.issue(device, run=run, key=run, service=again)
        assert str(second.value) == str(first.value)
        assert line.entries()[-1]["detail"] == str(first.value), "and every attempt is in the log"

    held = line.issue(device, key="ok")
    wrong = proof(held, ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(errors.ProofFailed) as failed:
        line.prove(wrong)
    line.dispose(DeviceEvent.REWORK, device.id)
    line.prove(proof(line.issue(device), device.key))
    with pytest.raises(errors.ProofFailed) as repeated:
        line.prove(wrong, service=again)
    assert str(repeated.value) == str(failed.value)
    assert line.the(Device, device.id).state is DeviceState.RELEASED, "it holds nothing a second time"


def test_a_refusal_by_a_rule_keeps_its_rule(line: Line, again: Service) -> None:
    device = workpiece("D1", names="D2")
    for service in (line.service, again):
        with pytest.raises(errors.PolicyRefused) as refused:
            line.issue(device, key="k", service=service)
        assert refused.value.rule == "csr-names-the-device"


def test_a_disposition_is_answered_again_whatever_came_after(line: Line, again: Service) -> None:
    device = workpiece("D1")
    line.issue(device)
    hold = line.dispose(DeviceEvent.HOLD, device.id, key="h")
    assert line.dispose(DeviceEvent.HOLD, device.id, key="h", service=again) == hold
    rework = line.dispose(DeviceEvent.REWORK, device.id, key="r")
    line.issue(device)
    line.dispose(DeviceEvent.HOLD, device.id, key="h2")
    assert line.dispose(DeviceEvent.REWORK, device.id, key="r", service=again) == rework
    assert line.dispose(DeviceEvent.HOLD, device.id, key="h", service=again) == hold
    scrap = line.dispose(DeviceEvent.SCRAP, device.id, key="s")
    assert line.dispose(DeviceEvent.SCRAP, device.id, key="s", service=again) == scrap
    run = line.the(Run, "R1")
    assert (run.admitted, run.held, run.scrapped) == (1, 0, 1)


def test_a_key_that_comes_back_with_another_request_is_refused(line: Line, again: Service) -> None:
    device, other = workpiece("D1"), workpiece("D2")
    issued = line.issue(device, key="k")
    line.open_run("R2")
    elsewhere = line.issue(other, key="k2")
    request = proof(issued, device.key, idempotency="p")
    line.prove(request)
    line.dispose(DeviceEvent.HOLD, other.id, key="h")
    for act in (
        lambda: line.issue(other, key="k", service=again),
        lambda: line.issue(workpiece("D1"), key="k", service=again),  # another request of the same device
        lambda: line.issue(workpiece("D1", delivered=True), key="k", service=again),
        lambda: line.issue(device, run="R2", key="k", service=again),
        lambda: line.issue(device, key="p", service=again),
        lambda: line.prove(proof(elsewhere, other.key, idempotency="p"), service=again),
        lambda: line.prove(proof(elsewhere, other.key, idempotency="k"), service=again),
        lambda: line.dispose(DeviceEvent.SCRAP, other.id, key="h", service=again),
        lambda: line.dispose(DeviceEvent.HOLD, other.id, key="h", reason="other", service=again),
    ):
        with pytest.raises(errors.KeyReused):
            act()
        assert line.entries()[-1]["code"] == "idempotency-key-reused"
    assert line.prove(request, service=again).device == "serial:D1", "the first answer stays what it was"


def test_a_key_belongs_to_its_client(line: Line, again: Service) -> None:
    line.open_run("R2", stations=("ST01",))
    assert line.issue(workpiece("D1"), key="k").attempt
    held = line.dispose(DeviceEvent.HOLD, "serial:D1", key="k")
    assert held.state is DeviceState.HELD, "the operator's k is not the station's"


def test_a_repeated_delivered_issue_makes_a_new_key_and_supersedes_the_lost_one(
    line: Line, again: Service
) -> None:
    """SPEC E2: in the same commit, and admitted once."""
    device = workpiece("D1", delivered=True)
    lost = line.issue(device, key="k")
    size = line.size()
    got = line.issue(device, key="k", service=again)
    assert got.attempt == lost.attempt
    assert got.private_key is not None
    assert lost.private_key is not None
    assert got.private_key.reveal() != lost.private_key.reveal()
    assert line.size() == size + 1
    entry = line.entries()[-1]
    old = line.the(DeviceCertificate, Certificate.from_der(lost.certificate).serial_hex)
    new = line.the(DeviceCertificate, Certificate.from_der(got.certificate).serial_hex)
    assert (entry["kind"], entry["certificates"], entry["certificate"]) == (
        "device-reissued",
        [old.serial],
        new.serial,
    )
    assert (line.status(old), line.status(new)) == (ReasonCode.SUPERSEDED, None)
    assert line.the(Attempt, got.attempt).certificate == new.serial
    assert (line.the(Run, "R1").admitted, line.the(Device, device.id).attempts) == (1, 1)

    line.prove(proof(got, device.key), service=again)
    with pytest.raises(errors.IllegalTransition, match="its delivered key was sent and is kept nowhere"):
        line.issue(device, key="k")
    report = check(line.service.store, line.service.store.log, line.realm)
    assert report.findings == []


def test_a_request_number_is_counted_once_however_often_it_comes(line: Line) -> None:
    """SPEC E5: a retry repeats its number."""
    device = workpiece("D1")
    station = line.station.with_seq(5)
    line.issue(device, key="k", by=station)
    line.issue(device, key="k", by=station)
    with pytest.raises(errors.IllegalTransition):
        line.issue(device, key="k3", by=line.station.with_seq(4))
    client = replace(line.station.caller.client, last_seq=5)
    assert line.get(type(client), client.id) == client


def test_a_long_complaint_is_repeated_word_for_word(line: Line, again: Service) -> None:
    device = replace(workpiece("D1"), hardware_id="é" * 700)
    with pytest.raises(errors.MalformedRequest) as first:
        line.issue(device, key="k")
    with pytest.raises(errors.MalformedRequest) as second:
        line.issue(device, key="k", service=again)
    assert str(second.value) == str(first.value)


def test_two_services_asked_at_once_with_one_key_give_one_answer(line: Line) -> None:
    """SPEC C4: a client that gave up waiting asks elsewhere while the first request is still under way."""
    services = [line.service, line.another_service()]
    device = workpiece("D1")
    request = IssueRequest(hardware_id=device.hardware_id, csr=device.csr, key="once")
    with ThreadPoolExecutor(2) as threads:
        answers = list(
            threads.map(
                lambda service: service.carry(service.issue(line.station.caller, "R1", [request])),
                services,
            )
        )
    assert isinstance(answers[0][0], Issued)
    assert answers[0] == answers[1]
    assert line.the(Run, "R1").admitted == 1
