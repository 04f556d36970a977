"""One-time codes: given by those who let devices in, good once, for one device of one run (SPEC C9, H1)."""

import hashlib
from datetime import timedelta
from typing import Any

import pytest

from birthmark import errors
from birthmark.adapters.system import SystemEntropy
from birthmark.floor.clients import Client as Row
from birthmark.floor.clients import Credential, Role
from birthmark.floor.devices import Device, DeviceState
from birthmark.secret import SecretBytes
from birthmark.services.acts import Caller
from birthmark.services.check import check
from birthmark.services.codes import Guest, give_code
from birthmark.services.enrolments import Granted
from birthmark.services.issue import IssueRequest
from tests.support.realm import Client, Line, Workpiece, tamper, workpiece

DEVICE = "serial:D1"


def given(
    line: Line, name: str = "dock-1", *, by: Client | None = None, **wanted: Any
) -> tuple[SecretBytes, Credential]:
    service, guest = line.service, Guest(**{"name": name, "device": DEVICE, "run": "R1", **wanted})
    caller = (by or line.operator).caller
    return service.carry(give_code(service.codes, service.runs, SystemEntropy(), caller, guest))


def shown(line: Line, code: SecretBytes, name: str = "dock-1") -> Caller:
    return line.service.carry(line.service.codes.recognise(name, code))


def fetched(
    line: Line, caller: Caller, device: Workpiece, label: str | None = None, key: str = "code"
) -> Granted:
    request = IssueRequest(hardware_id="", csr=device.csr, key=key)
    answer = line.service.carry(line.service.enrolments.enrol(caller, label, request))
    assert isinstance(answer, Granted)
    return answer


def findings(line: Line) -> list[str]:
    return check(line.service.store, line.service.store.log, line.realm).findings


def test_a_device_fetches_its_identity_with_a_code_and_the_record_has_only_a_salt(line: Line) -> None:
    code, credential = given(line)
    device = workpiece("D1")
    granted = fetched(line, shown(line, code), device)
    assert (granted.device, granted.run) == (DEVICE, "R1")
    assert line.the(Device, DEVICE).state is DeviceState.ISSUED
    row = line.the(Row, "bootstrap:dock-1")
    assert (row.role, row.hardware_id, row.run) == (Role.BOOTSTRAP, DEVICE, "R1")
    entry = next(one for one in line.entries() if one.get("client") == row.id)
    assert (entry["kind"], entry["certificate"]) == ("client-enrolled", "code:dock-1")
    assert entry["certificate_sha256"] == hashlib.sha256(credential.der).hexdigest()
    kept = code.reveal().decode()
    assert kept not in repr(line.entries())
    assert kept.encode() not in credential.der
    assert findings(line) == []


def test_the_same_code_with_the_same_request_is_answered_again_and_with_another_refused(line: Line) -> None:
    code, _ = given(line)
    device = workpiece("D1")
    first = fetched(line, shown(line, code), device)
    assert fetched(line, shown(line, code), device).certificate == first.certificate
    with pytest.raises(errors.KeyReused):
        fetched(line, shown(line, code), workpiece("D1"))
    assert line.entries()[-1]["code"] == "idempotency-key-reused"


def test_a_code_is_for_its_device_and_its_run_alone(line: Line) -> None:
    line.open_run("R2")
    code, _ = given(line)
    caller = shown(line, code)
    with pytest.raises(errors.PolicyRefused):  # whose names are another's
        fetched(line, caller, workpiece("D2"))
    with pytest.raises(errors.NotPermitted, match="R1"):
        fetched(line, caller, workpiece("D1"), "R2", "another")
    assert line.get(Device, "serial:D2") is None


def test_a_code_that_ended_or_was_revoked_gives_nothing(line: Line) -> None:
    code, _ = given(line, life=timedelta(minutes=5))
    caller = Caller(**{**_fields(shown(line, code)), "plane": "device"})
    line.clock.turn(minutes=5)
    with pytest.raises(errors.Unauthenticated, match="ended"):
        fetched(line, caller, workpiece("D1"))
    other, _ = given(line, "dock-2", device="serial:D2")
    caller = shown(line, other, "dock-2")
    line.service.carry(line.service.authorise.revoke(line.operator.caller, "bootstrap:dock-2", "lost"))
    with pytest.raises(errors.Unauthenticated, match="revoked"):
        fetched(line, caller, workpiece("D2"))
    assert line.entries()[-1]["kind"] == "refused"
    assert findings(line) == []


def _fields(caller: Caller) -> dict[str, Any]:
    return {"client": caller.client, "credential": caller.credential}


def test_a_name_is_good_once_also_after_it_was_revoked(line: Line) -> None:
    given(line)
    with pytest.raises(errors.IllegalTransition, match="was used"):
        given(line)
    line.service.carry(line.service.authorise.revoke(line.operator.caller, "bootstrap:dock-1", "lost"))
    with pytest.raises(errors.IllegalTransition, match="was used"):
        given(line)


@pytest.mark.parametrize(
    ("wanted", "refusal"),
    [
        ({"run": "R9"}, errors.NotFound),
        ({"run": "L1"}, errors.NotPermitted),
        ({"device": "vin:1M8GDM9AXKP042788"}, errors.PolicyRefused),
        ({"device": "serial:lower"}, errors.PolicyRefused),
        ({"run": "RL", "device": "serial:D2"}, errors.PolicyRefused),
        ({"run": "RC"}, errors.IllegalTransition),
    ],
)
def test_a_code_by_which_nothing_could_be_had_is_not_given(
    line: Line, wanted: dict[str, Any], refusal: type[errors.Refusal]
) -> None:
    line.open_operational("L1")
    line.open_run("RL", listed=["serial:D1"])
    line.open_run("RC")
    line.service.carry(line.service.runs.close(line.operator.caller, "RC", "over"))
    with pytest.raises(refusal):
        given(line, **wanted)
    assert line.entries()[-1]["request"] == "give-code"
    assert line.get(Row, "bootstrap:dock-1") is None


@pytest.mark.parametrize("role", [Role.OPERATOR, Role.AUDITOR])
def test_who_may_not_let_devices_in_gives_no_code(line: Line, role: Role) -> None:
    somebody = line.enrol(role, "bela")
    with pytest.raises(errors.NotPermitted):
        given(line, by=somebody)
    assert line.entries()[-1]["actor"] == "operator:bela"


@pytest.mark.parametrize("life", [timedelta(0), timedelta(days=31)])
def test_a_code_is_good_for_a_time_that_makes_sense(life: timedelta) -> None:
    with pytest.raises(errors.MalformedRequest):
        Guest(name="dock-1", device=DEVICE, run="R1", life=life)


@pytest.mark.parametrize(
    ("column", "value"), [("not_after", 10**14), ("der", b"0" * 16), ("client", "station:ST01")]
)
def test_a_code_that_somebody_changed_in_the_database_is_found(line: Line, column: str, value: Any) -> None:
    given(line)
    statement = f"UPDATE credential SET {column} = %s WHERE serial = %s"  # noqa: S608  # names of ours
    tamper(line.url, (statement, [value, "code:dock-1"]))
    assert any("code:dock-1" in finding for finding in findings(line))
