"""Devices that get several certificates in one transaction: all are proved, or none counts (SPEC C5, C6)."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from hashlib import sha256
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from birthmark import errors
from birthmark.floor.authorities import Authority
from birthmark.floor.devices import (
    Device,
    DeviceCertificate,
    DeviceEvent,
    DeviceState,
    IdentityRecord,
    KeyUse,
)
from birthmark.floor.runs import Run
from birthmark.ledger import proof as tlog
from birthmark.pki.certificates import Certificate
from birthmark.pki.possession import proof_message, verify_proof
from birthmark.pki.revocation import ReasonCode
from birthmark.ports import Act, Decision, Facts
from birthmark.services.acts import outcomes, refuse
from birthmark.services.issue import Issued, IssueRequest
from birthmark.services.revocations import line_of, revoke
from tests.support.realm import Line
from tests.support.several import (
    PROFILES,
    Several,
    Shown,
    certificates_of,
    delivered_keys,
    findings,
    issue,
    open_several,
    request_of,
    serial_of,
    shown,
    spki_sha256,
)


@pytest.fixture
def several(line: Line) -> Line:
    """A line with a run whose devices get three certificates, on both databases."""
    open_several(line)
    return line


@pytest.fixture
def small(small_line: Line) -> Line:
    """The same on SQLite."""
    open_several(small_line)
    return small_line


# --- what is issued, proved and released


def test_three_certificates_are_proved_with_one_challenge_and_released_with_one_token(several: Line) -> None:
    """SPEC C5, C6, C7: the token names all three; each proof verifies under its certificate's key."""
    device = Several(hardware_id="M1")
    issued = issue(several, device.request())
    assert tuple(one.profile for one in issued.further) == PROFILES[1:]
    parsed = [Certificate.from_der(der) for der in certificates_of(issued)]
    assert [sha256(one.subject_public_key_info).hexdigest() for one in parsed] == [
        spki_sha256(key) for key in device.keys
    ]
    loaded = [x509.load_der_x509_certificate(der) for der in certificates_of(issued)]
    issuer = x509.load_der_x509_certificate(issued.chain[0])
    for certificate in loaded:
        certificate.verify_directly_issued_by(issuer)
    proofs = shown(issued, device.keys)
    token = several.prove(request_of(issued, proofs)).token
    record: dict[str, Any] = tlog.verify(token, several.vkey)["record"]  # type: ignore[assignment]  # JSON, as the test knows it
    assert (record["profile"], record["certificate_sha256"]) == ("vehicle", parsed[0].fingerprint)
    assert record["further"] == [
        {
            "profile": profile,
            "certificate": one.serial_hex,
            "certificate_sha256": one.fingerprint,
            "spki_sha256": spki_sha256(key),
            "proof": signature.hex(),
        }
        for profile, one, key, (_, signature) in zip(
            PROFILES[1:], parsed[1:], device.keys[1:], proofs[1:], strict=True
        )
    ]
    for told, one in zip(record["further"], parsed[1:], strict=True):
        message = proof_message(
            attempt=record["attempt"],
            certificate_sha256=told["certificate_sha256"],
            challenge=bytes.fromhex(record["challenge"]),
        )
        verify_proof(one.subject_public_key_info, bytes.fromhex(told["proof"]), message)
    (kept,) = several.service.store.scan(IdentityRecord)
    assert kept.document()["further"] == record["further"]
    assert several.the(Device, "serial:M1").state is DeviceState.RELEASED
    stored = [several.the(DeviceCertificate, one.serial_hex) for one in parsed]
    assert {(one.device, one.attempt, one.run) for one in stored} == {("serial:M1", issued.attempt, "R2")}
    assert findings(several).findings == []


def test_a_device_may_have_several_of_many_in_a_gang_and_each_stands_alone(several: Line) -> None:
    """SPEC C10."""
    devices = [Several(hardware_id=f"M{number}") for number in range(4)]
    answers = several.service.carry(
        several.service.issue(several.station.caller, "R2", [device.request() for device in devices])
    )
    requests = []
    for device, issued in zip(devices, answers, strict=True):
        assert isinstance(issued, Issued)
        proofs = shown(issued, device.keys)
        if device is devices[2]:
            proofs[1] = proofs[0]
        requests.append(request_of(issued, proofs))
    results = several.service.carry(several.service.prove(several.station.caller, requests))
    assert [isinstance(result, errors.ProofFailed) for result in results] == [False, False, True, False]
    assert [several.the(Device, f"serial:{device.hardware_id}").state for device in devices] == [
        DeviceState.RELEASED,
        DeviceState.RELEASED,
        DeviceState.HELD,
        DeviceState.RELEASED,
    ]


def test_another_process_takes_the_proofs_of_what_this_one_issued(several: Line) -> None:
    device = Several(hardware_id="M1")
    issued = issue(several, device.request())
    several.prove(request_of(issued, shown(issued, device.keys)), service=several.another_service())
    assert several.the(Device, "serial:M1").state is DeviceState.RELEASED


# --- proofs that do not prove all of it


def _another_key(proofs: Shown, issued: Issued, at: int) -> Shown:
    other = ec.generate_private_key(ec.SECP256R1())
    proofs[at] = shown(issued, [other] * 3)[at]
    return proofs


def _another_certificate(proofs: Shown, _issued: Issued, at: int) -> Shown:
    proofs[at] = ("0" * 64, proofs[at][1])
    return proofs


def _another_challenge(proofs: Shown, issued: Issued, at: int) -> Shown:
    other = ec.generate_private_key(ec.SECP256R1())
    proofs[at] = shown(replace(issued, challenge=bytes(32)), [other] * 3)[at]
    return proofs


def _empty(proofs: Shown, _issued: Issued, at: int) -> Shown:
    proofs[at] = (proofs[at][0], b"")
    return proofs


@pytest.mark.parametrize("at", range(3))
@pytest.mark.parametrize(
    "spoil",
    [_another_key, _another_certificate, _another_challenge, _empty],
    ids=lambda one: one.__name__[1:],
)
def test_one_wrong_proof_of_three_holds_the_device(
    small: Line, spoil: Callable[[Shown, Issued, int], Shown], at: int
) -> None:
    """SPEC C6: two good keys do not make up for a bad one."""
    device = Several(hardware_id="M1")
    issued = issue(small, device.request())
    good = shown(issued, device.keys)
    with pytest.raises(errors.ProofFailed, match="serial:M1 is held"):
        small.prove(request_of(issued, spoil(list(good), issued, at)))
    assert small.the(Device, "serial:M1").state is DeviceState.HELD
    assert small.the(Run, "R2").released == 0
    with pytest.raises(errors.IllegalTransition):
        small.prove(request_of(issued, good))
    assert list(small.service.store.scan(IdentityRecord)) == []
    assert findings(small).findings == []


@pytest.mark.parametrize(
    "choose",
    [
        pytest.param(lambda p: p[:1], id="the first alone"),
        pytest.param(lambda p: p[:2], id="the last missing"),
        pytest.param(lambda p: p[1:], id="the first missing"),
        pytest.param(lambda p: [*p, p[2]], id="one too many"),
        pytest.param(lambda p: [p[1], p[0], p[2]], id="the first two swapped"),
        pytest.param(lambda p: [p[0], p[2], p[1]], id="the last two swapped"),
        pytest.param(lambda p: [p[0], p[0], p[0]], id="the first three times"),
        pytest.param(lambda p: [p[0], (p[1][0], p[2][1]), (p[2][0], p[1][1])], id="two signatures swapped"),
    ],
)
def test_proofs_that_are_missing_or_in_each_others_place_hold_the_device(
    several: Line, choose: Callable[[Shown], Shown]
) -> None:
    device = Several(hardware_id="M1")
    issued = issue(several, device.request())
    with pytest.raises(errors.ProofFailed, match="serial:M1 is held"):
        several.prove(request_of(issued, choose(shown(issued, device.keys))))
    assert several.the(Device, "serial:M1").state is DeviceState.HELD


def test_a_device_with_one_certificate_shows_one_key(small: Line) -> None:
    device = Several(hardware_id="M1")
    issued = issue(small, replace(device.request(), further_csrs=()), run="R1")
    (proof,) = shown(issued, device.keys[:1])
    with pytest.raises(errors.ProofFailed, match="has 1 certificates and shows 2 keys"):
        small.prove(request_of(issued, [proof, proof]))


def test_a_refused_proof_repeated_with_other_further_proofs_is_another_request(small: Line) -> None:
    """The idempotency key covers every proof."""
    device = Several(hardware_id="M1")
    issued = issue(small, device.request())
    good = shown(issued, device.keys)
    with pytest.raises(errors.ProofFailed):
        small.prove(request_of(issued, [good[0], good[2], good[1]], key="k"))
    with pytest.raises(errors.ProofFailed):
        small.prove(request_of(issued, [good[0], good[2], good[1]], key="k"))
    with pytest.raises(errors.KeyReused):
        small.prove(request_of(issued, good, key="k"))


# --- requests


@pytest.mark.parametrize(("one", "other"), [(0, 1), (0, 2), (1, 2)])
def test_one_key_for_two_certificates_of_a_device_is_refused(several: Line, one: int, other: int) -> None:
    """SPEC C8: each certificate needs a key of its own."""
    keys = list(Several(hardware_id="M1").keys)
    keys[other] = keys[one]
    with pytest.raises(errors.PolicyRefused, match="a key of its own") as refused:
        issue(several, Several(hardware_id="M1", keys=tuple(keys)).request())
    assert refused.value.rule == "key-is-unique"
    assert several.get(Device, "serial:M1") is None
    assert list(several.service.store.scan(DeviceCertificate)) == []


@pytest.mark.parametrize("at", range(3))
def test_a_key_of_another_device_is_refused_wherever_it_comes(several: Line, at: int) -> None:
    first = Several(hardware_id="M1")
    issue(several, first.request())
    keys = list(Several(hardware_id="M2").keys)
    keys[at] = first.keys[(at + 1) % 3]
    issued_before = several.the(Authority, "issuing-1").issued
    with pytest.raises(errors.PolicyRefused, match="already belongs to serial:M1"):
        issue(several, Several(hardware_id="M2", keys=tuple(keys)).request())
    assert several.get(Device, "serial:M2") is None
    assert several.the(Authority, "issuing-1").issued == issued_before
    assert several.get(KeyUse, spki_sha256(keys[(at + 1) % 3])) is None


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_request_with_another_number_of_keys_is_refused(small: Line, count: int) -> None:
    request = Several(hardware_id="M1").request()
    further = (*request.further_csrs, *Several(hardware_id="M1").csrs)[:count]
    with pytest.raises(errors.MalformedRequest, match=f"wants 2 further certification requests, not {count}"):
        issue(small, replace(request, further_csrs=further))
    with pytest.raises(errors.MalformedRequest, match="wants 0 further certification requests, not 2"):
        issue(small, replace(request, csr=None, key="delivered"))
    with pytest.raises(errors.MalformedRequest, match="wants 0 further certification requests, not 2"):
        issue(small, Several(hardware_id="M1").request(), run="R1")
    assert small.get(Device, "serial:M1") is None


@pytest.mark.parametrize("at", range(3))
def test_each_request_is_vetted_by_itself(small: Line, at: int) -> None:
    """SPEC C8: one that names another device, or that its key did not sign."""
    device, other = Several(hardware_id="M1"), Several(hardware_id="M2")
    broken = bytearray(device.csrs[at])
    broken[-1] ^= 1
    for bad in (other.csrs[at], bytes(broken)):
        csrs = list(device.csrs)
        csrs[at] = bad
        with pytest.raises((errors.PolicyRefused, errors.MalformedRequest, errors.ProofFailed)):
            issue(small, replace(device.request(), csr=csrs[0], further_csrs=tuple(csrs[1:])))
    assert small.get(Device, "serial:M1") is None


def test_a_repeated_request_gets_the_same_certificates(several: Line) -> None:
    """SPEC C4."""
    device = Several(hardware_id="M1")
    request = device.request("again")
    first = issue(several, request)
    again = issue(several, request)
    elsewhere = issue(several, request, service=several.another_service())
    for one in (again, elsewhere):
        assert (certificates_of(one), one.challenge) == (certificates_of(first), first.challenge)
        assert [each.profile for each in one.further] == list(PROFILES[1:])
    with pytest.raises(errors.KeyReused):
        issue(several, replace(request, further_csrs=request.further_csrs[::-1]))
    assert len(list(several.service.store.scan(DeviceCertificate))) == 3
    several.prove(request_of(again, shown(again, device.keys)))


# --- what becomes of certificates that were not proved


def test_when_the_answer_with_delivered_keys_is_lost_all_its_certificates_are_superseded(
    several: Line,
) -> None:
    """SPEC B7, C4: the keys are kept nowhere, so that all of them are made anew."""
    request = IssueRequest(hardware_id="M1", csr=None, key="lost")
    lost, found = issue(several, request), issue(several, request)
    assert lost.attempt == found.attempt
    old = [several.the(DeviceCertificate, serial_of(der)) for der in certificates_of(lost)]
    new = [several.the(DeviceCertificate, serial_of(der)) for der in certificates_of(found)]
    assert [several.status(one) for one in old] == [ReasonCode.SUPERSEDED] * 3
    assert [several.status(one) for one in new] == [None] * 3
    assert len({spki_sha256(key) for key in (*delivered_keys(lost), *delivered_keys(found))}) == 6
    (entry,) = [entry for entry in several.entries() if entry["kind"] == "device-reissued"]
    assert entry["certificates"] == [one.serial for one in old]
    assert several.the(Device, "serial:M1").attempts == 1
    several.prove(request_of(found, shown(found, delivered_keys(found))))
    assert findings(several).findings == []


def test_what_was_lost_proves_nothing(small: Line) -> None:
    request = IssueRequest(hardware_id="M1", csr=None, key="lost")
    lost, found = issue(small, request), issue(small, request)
    mixed = shown(found, delivered_keys(found))
    mixed[2] = shown(replace(lost, challenge=found.challenge), delivered_keys(lost))[2]
    with pytest.raises(errors.ProofFailed):
        small.prove(request_of(found, mixed))
    assert small.the(Device, "serial:M1").state is DeviceState.HELD


def test_rework_revokes_every_certificate_of_the_attempt(several: Line) -> None:
    """SPEC C4."""
    device = Several(hardware_id="M1")
    issued = issue(several, device.request())
    several.dispose(DeviceEvent.HOLD, "serial:M1")
    several.dispose(DeviceEvent.REWORK, "serial:M1")
    serials = [serial_of(der) for der in certificates_of(issued)]
    states = [several.status(several.the(DeviceCertificate, serial)) for serial in serials]
    assert None not in states
    assert len(set(states)) == 1
    (entry,) = [entry for entry in several.entries() if entry["kind"] == "device-reworked"]
    assert entry["certificates"] == serials
    again = issue(several, device.request())
    several.prove(request_of(again, shown(again, device.keys)))
    assert several.the(Device, "serial:M1").attempts == 2
    assert findings(several).findings == []


@pytest.mark.parametrize("at", range(3))
def test_a_device_is_not_released_when_one_of_its_certificates_was_revoked(small: Line, at: int) -> None:
    device = Several(hardware_id="M1")
    issued = issue(small, device.request())
    certificate = small.the(DeviceCertificate, serial_of(certificates_of(issued)[at]))

    def decide(facts: Facts, moment: datetime) -> Decision[None]:
        revoke(facts, line_of(certificate), ReasonCode.KEY_COMPROMISE, moment, "test")
        return Decision(None, [])

    act = Act(actor=small.operator.id, decide=decide, refuse=refuse(None, "revoke", {}), reads={})
    outcomes(small.service.store.submit([act]).result())
    with pytest.raises(errors.IllegalTransition, match="is revoked"):
        small.prove(request_of(issued, shown(issued, device.keys)))
    assert small.the(Device, "serial:M1").state is DeviceState.ISSUED
