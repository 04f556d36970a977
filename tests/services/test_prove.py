"""Prove and release: a claim is not a proof, and what is not proved is held (SPEC C4, C6)."""

from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from birthmark import errors
from birthmark.floor.devices import (
    Attempt,
    Device,
    DeviceCertificate,
    DeviceEvent,
    DeviceState,
    IdentityRecord,
)
from birthmark.floor.runs import Run
from birthmark.ledger.proof import verify
from birthmark.pki.certificates import Certificate, fingerprint
from birthmark.pki.revocation import ReasonCode
from birthmark.services.challenges import REMEMBERED_ATTEMPTS
from birthmark.services.issue import Issued, IssueRequest
from birthmark.services.prove import ProveRequest
from tests.support.realm import Line, Workpiece, proof, workpiece

Wrong = Callable[[Issued, Workpiece, Issued], ProveRequest]
SIGNATURE = "the device's signature does not verify with the certified key"
READ_BACK = "the certificate read back from the device is not the one that was issued"


def _garbage(issued: Issued, device: Workpiece, _other: Issued) -> ProveRequest:
    right = proof(issued, device.key)
    return ProveRequest(
        attempt=right.attempt, certificate_sha256=right.certificate_sha256, signature=b"OK", key=right.key
    )


def _over_nothing(issued: Issued, device: Workpiece, _other: Issued) -> ProveRequest:
    return ProveRequest(
        attempt=issued.attempt,
        certificate_sha256=fingerprint(issued.certificate),
        signature=device.key.sign(issued.challenge, ec.ECDSA(hashes.SHA256())),
        key="over the bare challenge",
    )


WRONG: dict[str, tuple[Wrong, str]] = {
    "a signature that is none": (_garbage, SIGNATURE),
    "the bare challenge signed": (_over_nothing, SIGNATURE),
    "another key": (lambda i, _d, _o: proof(i, ec.generate_private_key(ec.SECP256R1())), SIGNATURE),
    "another challenge": (lambda i, d, o: proof(i, d.key, challenge=o.challenge), SIGNATURE),
    "another attempt's proof": (lambda i, d, o: proof(i, d.key, attempt=o.attempt), SIGNATURE),
    "another certificate read back": (
        lambda i, d, o: proof(i, d.key, certificate_sha256=fingerprint(o.certificate)),
        READ_BACK,
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_proof_holds_the_device_until_rework(small_line: Line, case: str) -> None:
    """SPEC C4, C6: and after the rework the old certificate is revoked, and the new one releases."""
    line, (wrong, complaint) = small_line, WRONG[case]
    device, other = workpiece("D1"), workpiece("D2")
    issued, elsewhere = line.issue(device), line.issue(other)
    request = wrong(issued, device, elsewhere)
    with pytest.raises(errors.ProofFailed) as caught:
        line.prove(request)
    assert str(caught.value) == f"{complaint}; serial:D1 is held"
    assert caught.value.recorded
    entry = line.entries()[-1]
    assert (entry["kind"], entry["device"], entry["code"]) == ("device-held", "serial:D1", "proof-failed")
    assert entry["reason"] == complaint
    held = line.the(Device, device.id)
    assert (held.state, held.reason) == (DeviceState.HELD, complaint)
    assert line.the(Attempt, issued.attempt).state is DeviceState.HELD
    assert line.the(Run, "R1").held == 1

    with pytest.raises(errors.IllegalTransition, match="it is held"):
        line.prove(proof(issued, device.key))
    line.dispose(DeviceEvent.REWORK, device.id)
    again = line.issue(device)
    released = line.prove(proof(again, device.key))
    assert verify(released.token, line.vkey)["device"] == "serial:D1"
    old = line.the(DeviceCertificate, Certificate.from_der(issued.certificate).serial_hex)
    new = line.the(DeviceCertificate, Certificate.from_der(again.certificate).serial_hex)
    assert (line.status(old), line.status(new)) == (ReasonCode.SUPERSEDED, None)
    assert line.the(Run, "R1").held == 0


def test_a_proof_after_a_hold_is_refused_however_right(line: Line) -> None:
    """SPEC C4."""
    device = workpiece("D1")
    issued = line.issue(device)
    line.dispose(DeviceEvent.HOLD, device.id, by=line.station, reason="dropped on the floor")
    with pytest.raises(errors.IllegalTransition, match="it is held; rework it or scrap it"):
        line.prove(proof(issued, device.key))
    assert not list(line.service.store.scan(IdentityRecord))
    assert line.the(Device, device.id).reason == "dropped on the floor"


def test_a_second_right_proof_under_another_key_releases_nothing_twice(line: Line) -> None:
    device = workpiece("D1")
    issued = line.issue(device)
    line.prove(proof(issued, device.key))
    with pytest.raises(errors.IllegalTransition, match="it is released"):
        line.prove(proof(issued, device.key))
    with pytest.raises(errors.IllegalTransition, match="it is released"):
        line.prove(proof(issued, ec.generate_private_key(ec.SECP256R1())))
    assert line.the(Device, device.id).state is DeviceState.RELEASED, "a wrong proof takes nothing back"
    assert len(list(line.service.store.scan(IdentityRecord))) == 1


def test_the_same_device_twice_in_one_gang_is_released_once(line: Line) -> None:
    """SPEC C10: acts of one train see each other."""
    device = workpiece("D1")
    issued = line.issue(device)
    requests = [proof(issued, device.key), proof(issued, device.key)]
    first, second = line.service.carry(line.service.prove(line.station.caller, requests))
    assert not isinstance(first, errors.Refusal)
    assert isinstance(second, errors.IllegalTransition)
    assert line.the(Run, "R1").released == 1


def test_an_attempt_that_does_not_exist_is_not_found_and_logged(line: Line) -> None:
    device = workpiece("D1")
    issued = line.issue(device)
    right = proof(issued, device.key)
    with pytest.raises(errors.NotFound, match="there is no attempt 0000"):
        line.prove(
            ProveRequest(
                attempt="0" * 32,
                certificate_sha256=right.certificate_sha256,
                signature=right.signature,
                key="k",
            )
        )
    entry = line.entries()[-1]
    assert (entry["kind"], entry["request"], entry["code"], entry["attempt"]) == (
        "refused",
        "prove",
        "not-found",
        "0" * 32,
    )


def test_a_service_that_never_saw_the_issue_releases_the_device(line: Line) -> None:
    """No state in a process that another could need."""
    device = workpiece("D1")
    issued = line.issue(device)
    released = line.prove(proof(issued, device.key), service=line.another_service())
    assert verify(released.token, line.vkey)["device"] == "serial:D1"


def test_a_challenge_that_was_replaced_elsewhere_is_read_again(line: Line) -> None:
    """Decision 5: the key delivered last counts, whichever process delivered it."""
    device = workpiece("D1", delivered=True)
    lost = line.issue(device, key="k")  # this service remembers the first challenge
    delivered = line.issue(device, key="k", service=line.another_service())
    assert delivered.attempt == lost.attempt
    assert delivered.challenge != lost.challenge
    released = line.prove(proof(delivered, device.key))
    assert verify(released.token, line.vkey)["device"] == "serial:D1"
    assert [entry["kind"] for entry in line.entries()[-3:]] == [
        "device-issued",
        "device-reissued",
        "device-released",
    ]


def test_the_key_that_was_replaced_elsewhere_proves_nothing(line: Line) -> None:
    device = workpiece("D1", delivered=True)
    lost = line.issue(device, key="k")
    line.issue(device, key="k", service=line.another_service())
    with pytest.raises(errors.ProofFailed, match=f"{READ_BACK}; serial:D1 is held"):
        line.prove(proof(lost, device.key))


def test_a_reworked_devices_old_attempt_cannot_be_proved_before_the_new_one_is_issued(line: Line) -> None:
    """SPEC C4: the old certificate is revoked already."""
    device = workpiece("D1")
    issued = line.issue(device)
    line.dispose(DeviceEvent.HOLD, device.id)
    line.dispose(DeviceEvent.REWORK, device.id)
    with pytest.raises(errors.IllegalTransition, match="it waits for a credential"):
        line.prove(proof(issued, device.key))
    with pytest.raises(errors.IllegalTransition, match="it waits for a credential"):
        line.prove(proof(issued, ec.generate_private_key(ec.SECP256R1())))
    assert line.the(Device, device.id).state is DeviceState.ADMITTED


def test_more_attempts_than_a_process_remembers_are_all_proved(
    small_line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is remembered is a cache: its size changes nothing but the number of reads."""
    assert REMEMBERED_ATTEMPTS > 512, "a whole gang fits"
    monkeypatch.setattr("birthmark.services.challenges.REMEMBERED_ATTEMPTS", 3)
    line = small_line
    pieces = [workpiece(f"D{number}") for number in range(12)]
    requests = [IssueRequest(hardware_id=p.hardware_id, csr=p.csr, key=p.hardware_id) for p in pieces]
    issued = line.service.carry(line.service.issue(line.station.caller, "R1", requests))
    proofs = [proof(i, p.key) for i, p in zip(issued, pieces, strict=True) if isinstance(i, Issued)]
    proved = line.service.carry(line.service.prove(line.station.caller, proofs))
    assert [getattr(result, "device", result) for result in proved] == [p.id for p in pieces]
