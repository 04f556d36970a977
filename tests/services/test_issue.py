"""Admit and issue: who gets a certificate, and who is told why not (SPEC C3, C5, C8, C9, C10)."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from functools import partial
from hashlib import sha256
from typing import Any, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_private_key

from birthmark import errors
from birthmark.floor.authorities import Authority, AuthorityStatus
from birthmark.floor.clients import Client as ClientRow
from birthmark.floor.clients import Role
from birthmark.floor.devices import (
    Attempt,
    Device,
    DeviceCertificate,
    DeviceEvent,
    DeviceState,
    IdentityRecord,
    KeyOrigin,
    KeyUse,
)
from birthmark.floor.hardware_ids import HardwareIdKind, HardwareIdRule
from birthmark.floor.revocations import Revocation
from birthmark.floor.runs import Run
from birthmark.ledger.proof import verify
from birthmark.pki.certificates import Certificate, fingerprint
from birthmark.pki.keys import KeyLabel
from birthmark.pki.revocation import ReasonCode
from birthmark.ports import KeyStore
from birthmark.services.issue import Issued, IssueRequest
from birthmark.services.revocations import line_of
from tests.support.realm import LOG, START, Line, proof, tamper, workpiece


def refused(
    line: Line, kind: type[errors.Refusal], match: str, act: Callable[[], object]
) -> Mapping[str, Any]:
    """Run an act that must be refused, committing nothing but the refusal; return its entry."""
    size, states = line.size(), {device.id: device for device in line.service.store.scan(Device)}
    runs = list(line.service.store.scan(Run))
    with pytest.raises(kind, match=match) as caught:
        act()
    assert caught.value.recorded
    assert line.size() == size + 1
    assert {device.id: device for device in line.service.store.scan(Device)} == states
    assert list(line.service.store.scan(Run)) == runs, "nothing was counted"
    entry = line.entries(size)[0]
    assert entry["kind"] == "refused"
    assert entry["code"] == kind.code
    assert entry["detail"] == str(caught.value)[:500]
    return entry


def test_a_device_born_with_its_key_gets_its_identity_and_record_leaf_and_token_agree(line: Line) -> None:
    """SPEC C5, C6, C7, E1, E2."""
    device = workpiece("D1")
    station = line.station.with_seq(1).with_operator("anna")
    issued = line.issue(device, by=station)
    assert issued.private_key is None
    certificate = x509.load_der_x509_certificate(issued.certificate)
    assert certificate.public_key() == device.key.public_key()
    certificate.verify_directly_issued_by(x509.load_der_x509_certificate(issued.chain[0]))
    assert line.the(Device, "serial:D1").state is DeviceState.ISSUED

    released = line.prove(proof(issued, device.key), by=station.with_seq(2))
    entry = verify(released.token, line.vkey)
    assert entry == line.entries()[-1]
    assert (entry["kind"], entry["actor"], entry["seq"], entry["operator"]) == (
        "device-released",
        "station:ST01",
        2,
        "anna",
    )
    (record,) = line.service.store.scan(IdentityRecord)
    assert entry["record"] == record.document()
    assert record.leaf == line.size() - 1
    assert record.certificate_sha256 == fingerprint(issued.certificate)
    assert line.entries()[record.issue_leaf]["kind"] == "device-issued"
    assert line.entries()[record.issue_leaf]["certificate_sha256"] == record.certificate_sha256
    assert (record.device, record.site, record.line, record.operator) == ("serial:D1", "Graz", "L1", "anna")
    attempt = line.the(Attempt, issued.attempt)
    assert (attempt.state, attempt.release_leaf) == (DeviceState.RELEASED, record.leaf)
    assert line.the(Device, "serial:D1").state is DeviceState.RELEASED
    run = line.the(Run, "R1")
    assert (run.admitted, run.released, run.held, run.scrapped) == (1, 1, 0, 0)
    assert line.the(ClientRow, "station:ST01").last_seq == 2


def test_a_delivered_key_is_the_certified_one_and_the_device_proves_with_it(line: Line) -> None:
    """SPEC C5."""
    device = workpiece("D1", delivered=True)
    issued = line.issue(device)
    assert issued.private_key is not None
    key = load_der_private_key(issued.private_key.reveal(), None)
    assert x509.load_der_x509_certificate(issued.certificate).public_key() == key.public_key()
    released = line.prove(proof(issued, device.key))
    record = verify(released.token, line.vkey)["record"]
    assert isinstance(record, dict)
    assert record["origin"] == "delivered"


def test_a_gang_succeeds_and_fails_one_by_one(line: Line) -> None:
    """SPEC C10."""
    line.make("D1")
    pieces = [
        workpiece("D1"),
        workpiece("D2"),
        workpiece("not one"),
        workpiece("D3", names="D4"),
        workpiece("D5"),
    ]
    results = line.service.carry(
        line.service.issue(
            line.station.caller,
            "R1",
            [IssueRequest(hardware_id=p.hardware_id, csr=p.csr, key=f"g{i}") for i, p in enumerate(pieces)],
        )
    )
    shown = [r.device if isinstance(r, Issued) else r.code for r in results]
    assert shown == ["illegal-transition", "serial:D2", "malformed-request", "policy-refused", "serial:D5"]
    proofs = [proof(r, p.key) for r, p in zip(results, pieces, strict=True) if isinstance(r, Issued)]
    proofs[0] = replace(proofs[0], signature=proofs[1].signature)
    proved = line.service.carry(line.service.prove(line.station.caller, proofs))
    assert isinstance(proved[0], errors.ProofFailed)
    assert line.the(Device, "serial:D2").state is DeviceState.HELD
    assert line.the(Device, "serial:D5").state is DeviceState.RELEASED


@pytest.mark.parametrize(
    ("rule", "text", "kind", "complaint"),
    [
        (
            HardwareIdRule(kind=HardwareIdKind.VIN),
            "1M8GDM9AXKP04278",
            errors.MalformedRequest,
            "has 16 characters",
        ),
        (
            HardwareIdRule(kind=HardwareIdKind.VIN),
            "1M8GDM9AXKP0427O8",
            errors.MalformedRequest,
            "position 16: O",
        ),
        (
            HardwareIdRule(kind=HardwareIdKind.VIN, check_digit=True),
            "1M8GDM9A1KP042788",
            errors.MalformedRequest,
            "position 9 should be X, is 1",
        ),
        (
            HardwareIdRule(kind=HardwareIdKind.VIN, wmi=frozenset({"WVW"})),
            "1M8GDM9AXKP042788",
            errors.PolicyRefused,
            "none of the accepted makers WVW",
        ),
        (HardwareIdRule(kind=HardwareIdKind.EUI_64), "0" * 16, errors.MalformedRequest, "all zeros"),
        (HardwareIdRule(kind=HardwareIdKind.SERIAL), "a b", errors.MalformedRequest, "position 2: ' '"),
        (HardwareIdRule(kind=HardwareIdKind.SERIAL), "é", errors.MalformedRequest, "is not ascii"),
    ],
)
def test_a_wrong_hardware_id_is_refused_with_the_exact_reason_and_logged(
    small_line: Line, rule: HardwareIdRule, text: str, kind: type[errors.Refusal], complaint: str
) -> None:
    """SPEC C9."""
    small_line.open_run("R2", hardware_id=rule)
    device = workpiece(text, delivered=True)
    entry = refused(small_line, kind, complaint, lambda: small_line.issue(device, run="R2"))
    assert (entry["request"], entry["hardware_id"], entry["run"]) == ("issue", text, "R2")


def test_ids_of_two_kinds_never_mean_the_same_device(line: Line) -> None:
    """SPEC C9: hardware ids are typed."""
    line.open_run("R2", hardware_id=HardwareIdRule(kind=HardwareIdKind.VIN))
    vin = "1M8GDM9AXKP042788"
    assert line.make(vin).device == f"serial:{vin}"
    assert line.make(vin, run="R2").device == f"vin:{vin}"


def test_a_hardware_id_that_is_under_way_or_released_gets_no_second_identity(line: Line) -> None:
    """SPEC C9."""
    device = workpiece("D1")
    issued = line.issue(device)
    refused(line, errors.IllegalTransition, "it is issued; prove it", lambda: line.issue(workpiece("D1")))
    line.prove(proof(issued, device.key))
    refused(line, errors.IllegalTransition, "it is released; it has", lambda: line.issue(workpiece("D1")))
    refused(
        line, errors.IllegalTransition, "it is released", lambda: line.issue(workpiece("D1", delivered=True))
    )
    assert len(list(line.service.store.scan(DeviceCertificate))) == 1


def test_a_device_of_one_run_is_not_taken_in_by_another(line: Line) -> None:
    line.open_run("R2")
    line.make("D1")
    refused(
        line,
        errors.IllegalTransition,
        "serial:D1 belongs to run R1",
        lambda: line.issue(workpiece("D1"), run="R2"),
    )


def test_no_two_devices_share_a_key(line: Line) -> None:
    """SPEC C8."""
    device = workpiece("D1")
    line.issue(device)
    entry = refused(
        line,
        errors.PolicyRefused,
        "this public key already belongs to serial:D1",
        lambda: line.issue(workpiece("D2", key=device.key)),
    )
    assert entry["rule"] == "key-is-unique"
    spki = device.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert line.the(KeyUse, sha256(spki).hexdigest()).device == "serial:D1"


def test_one_key_for_two_devices_in_one_gang_goes_to_the_first(line: Line) -> None:
    """SPEC C8, C10: acts of one train see each other."""
    key = ec.generate_private_key(ec.SECP256R1())
    requests = [
        IssueRequest(hardware_id=p.hardware_id, csr=p.csr, key=p.hardware_id)
        for p in (workpiece("D1", key=key), workpiece("D2", key=key))
    ]
    first, second = line.service.carry(line.service.issue(line.station.caller, "R1", requests))
    assert isinstance(first, Issued)
    assert isinstance(second, errors.PolicyRefused)


def test_a_request_that_names_another_device_is_refused(line: Line) -> None:
    """SPEC C8."""
    entry = refused(
        line,
        errors.PolicyRefused,
        "the certification request names D2, not D1",
        lambda: line.issue(workpiece("D1", names="D2")),
    )
    assert entry["rule"] == "csr-names-the-device"


def test_the_quota_holds_under_sixteen_threads_on_several_services(line: Line) -> None:
    """SPEC C3: the quantity is a hard limit, under concurrency, too."""
    line.open_run("R2", quantity=20)
    services = [line.service, line.another_service(), line.another_service()]
    pieces = [workpiece(f"Q{number}") for number in range(48)]

    def try_one(number: int) -> str:
        try:
            return line.issue(pieces[number], run="R2", service=services[number % 3]).device
        except errors.Refusal as refusal:
            return refusal.code

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(try_one, range(48)))
    assert answers.count("quota-exhausted") == 28
    assert line.the(Run, "R2").admitted == 20
    assert sum(device.run == "R2" for device in line.service.store.scan(Device)) == 20
    assert sum(entry["kind"] == "refused" for entry in line.entries()) == 28


def test_a_run_admits_inside_its_window_only(line: Line) -> None:
    """SPEC C3."""
    line.open_run("R2", not_before=START + timedelta(hours=1), not_after=START + timedelta(hours=2))
    refused(
        line,
        errors.IllegalTransition,
        "run R2 opens at 2026-11-22T11:00:00.000Z",
        lambda: line.issue(workpiece("W0"), run="R2"),
    )
    line.clock.turn(hours=1)
    device = workpiece("W1")
    issued = line.issue(device, run="R2")
    line.clock.turn(hours=1)
    refused(
        line,
        errors.IllegalTransition,
        "run R2 ended at 2026-11-22T12:00:00.000Z",
        lambda: line.issue(workpiece("W2"), run="R2"),
    )
    assert line.prove(proof(issued, device.key)).device == "serial:W1", "what was issued may still be proved"


def test_a_closed_run_admits_nobody_and_what_was_issued_may_still_be_proved(line: Line) -> None:
    """SPEC C3."""
    device = workpiece("D1")
    issued = line.issue(device)
    closed = line.service.carry(line.service.runs.close(line.operator.caller, "R1", "shift is over"))
    assert (closed.admitted, closed.released) == (1, 0)
    refused(line, errors.IllegalTransition, "run R1 is closed", lambda: line.issue(workpiece("D2")))
    assert line.prove(proof(issued, device.key)).device == "serial:D1"
    with pytest.raises(errors.IllegalTransition, match="closed already"):
        line.service.carry(line.service.runs.close(line.operator.caller, "R1", "again"))


def test_a_station_that_is_not_on_the_run_neither_issues_nor_proves_nor_holds(line: Line) -> None:
    """SPEC C2: allowed only what its run allows."""
    other = line.enrol(Role.STATION, "ST02", by=line.operator)
    device = workpiece("D1")
    match = "station:ST02 is not allowed on run R1"
    refused(line, errors.NotPermitted, match, lambda: line.issue(device, by=other))
    issued = line.issue(device)
    refused(line, errors.NotPermitted, match, lambda: line.prove(proof(issued, device.key), by=other))
    refused(line, errors.NotPermitted, match, lambda: line.dispose(DeviceEvent.HOLD, device.id, by=other))


def test_a_revoked_station_is_refused_at_once_whatever_a_process_remembers(line: Line) -> None:
    """SPEC C2: revocable at once."""
    elsewhere = line.another_service()
    device = workpiece("D1")
    issued = line.issue(device, service=elsewhere)
    line.service.carry(line.service.authorise.revoke(line.operator.caller, line.station.id, "stolen"))
    for act in (
        lambda: line.issue(workpiece("D2"), service=elsewhere),
        lambda: line.prove(proof(issued, device.key), service=elsewhere),
        lambda: line.dispose(DeviceEvent.HOLD, device.id, by=line.station, service=elsewhere),
    ):
        entry = refused(line, errors.Unauthenticated, "station:ST01 was revoked", act)
        assert entry["actor"] == "station:ST01"


def test_an_operator_who_does_not_exist_or_was_revoked_stands_at_no_station(line: Line) -> None:
    """SPEC E1: people by operator id; an id that nobody has proves nothing."""
    bob = line.enrol(Role.OFFICER, "bob", by=line.operator)
    with_bob = line.station.with_operator("bob")
    line.issue(workpiece("D1"), by=with_bob)
    line.service.carry(line.service.authorise.revoke(line.operator.caller, bob.id, "left"))
    match = "is no live operator of this realm"
    refused(line, errors.NotPermitted, f"bob {match}", lambda: line.issue(workpiece("D2"), by=with_bob))
    nobody = line.station.with_operator("nobody")
    refused(line, errors.NotPermitted, f"nobody {match}", lambda: line.issue(workpiece("D2"), by=nobody))


def test_an_operator_does_not_issue(line: Line) -> None:
    refused(
        line,
        errors.NotPermitted,
        "operator:anna may not issue",
        lambda: line.issue(workpiece("D1"), by=line.operator),
    )


def test_a_run_with_a_list_admits_what_is_listed(line: Line) -> None:
    """SPEC C9: allow-lists per run."""
    line.open_run("R2", listed=["serial:D1", "serial:D2"])
    assert line.make("D1", run="R2").device == "serial:D1"
    entry = refused(
        line,
        errors.PolicyRefused,
        "serial:D3 is not on the list of run R2",
        lambda: line.issue(workpiece("D3"), run="R2"),
    )
    assert entry["rule"] == "hardware-id-is-listed"


def test_a_bootstrap_certificate_for_one_device_provisions_that_device_only(line: Line) -> None:
    """SPEC A2."""
    own = line.enrol(Role.BOOTSTRAP, "D1", by=line.operator, hardware_id="serial:D1")
    refused(
        line,
        errors.NotPermitted,
        "bootstrap:D1 may provision serial:D1 only, not serial:D2",
        lambda: line.issue(workpiece("D2"), by=own),
    )
    device = workpiece("D1")
    issued = line.issue(device, by=own)
    other = line.enrol(Role.BOOTSTRAP, "D2", by=line.operator, hardware_id="serial:D2")
    refused(
        line,
        errors.NotPermitted,
        "bootstrap:D2 may provision serial:D2 only",
        lambda: line.prove(proof(issued, device.key), by=other),
    )
    assert line.prove(proof(issued, device.key), by=own).device == "serial:D1"


def test_a_bootstrap_certificate_for_a_run_provisions_what_that_run_lists(line: Line) -> None:
    """SPEC A2, C9."""
    line.open_run("R2", listed=["serial:D1"], stations=())
    line.open_run("R3", listed=["serial:D2"])
    for_run = line.enrol(Role.BOOTSTRAP, "lot-7", by=line.operator, run="R2")
    for_open_run = line.enrol(Role.BOOTSTRAP, "lot-8", by=line.operator, run="R1")
    match = "may provision only the devices that run R2 lists"
    refused(line, errors.NotPermitted, match, lambda: line.issue(workpiece("D2"), run="R3", by=for_run))
    refused(
        line,
        errors.PolicyRefused,
        "not on the list",
        lambda: line.issue(workpiece("D2"), run="R2", by=for_run),
    )
    refused(
        line,
        errors.NotPermitted,
        "only the devices that run R1 lists",
        lambda: line.issue(workpiece("D9"), by=for_open_run),
    )
    device = workpiece("D1")
    issued = line.issue(device, run="R2", by=for_run)
    assert line.prove(proof(issued, device.key), by=for_run).device == "serial:D1"


def test_a_bootstrap_client_may_not_dispose_of_anything(line: Line) -> None:
    own = line.enrol(Role.BOOTSTRAP, "D1", by=line.operator, hardware_id="serial:D1")
    line.issue(workpiece("D1"), by=own)
    for event in (DeviceEvent.HOLD, DeviceEvent.REWORK, DeviceEvent.SCRAP):
        refused(line, errors.NotPermitted, "may not", partial(line.dispose, event, "serial:D1", by=own))


def test_an_authority_that_is_suspended_full_or_at_its_end_issues_nothing(line: Line) -> None:
    """SPEC A1."""
    der = line.the(Authority, "issuing-1").der
    limited = Authority(
        **{
            name: getattr(line.the(Authority, "issuing-1"), name)
            for name in Authority.__slots__
            if name not in ("id", "quota", "ends_at", "issued", "der")
        },
        id="issuing-2",
        quota=2,
        ends_at=START + timedelta(hours=2),
        issued=0,
        der=der,
    )
    line.establish(limited)
    # Each of the two has room for what its authority may issue; together they have not.
    for run in ("R2", "R3"):
        line.open_run(run, authority="issuing-2", not_after=START + timedelta(hours=2), quantity=2)
    line.issue(workpiece("D1"), run="R2")

    change = line.service.authorise.change
    line.service.carry(change(line.operator.caller, "issuing-2", AuthorityStatus.SUSPENDED, "audit"))
    refused(
        line,
        errors.IllegalTransition,
        "authority issuing-2 is suspended",
        lambda: line.issue(workpiece("D2"), run="R2"),
    )
    line.service.carry(change(line.operator.caller, "issuing-2", AuthorityStatus.ACTIVE, "fine"))
    line.issue(workpiece("D2"), run="R2")
    refused(
        line,
        errors.QuotaExhausted,
        "authority issuing-2 has issued all 2",
        lambda: line.issue(workpiece("D3"), run="R3"),
    )
    assert line.the(Authority, "issuing-2").issued == 2


def test_an_authority_past_its_end_reissues_nothing(line: Line) -> None:
    """SPEC A1: the end date binds a retry of a delivered key, too."""
    ended = replace(
        line.the(Authority, "issuing-1"), id="issuing-2", ends_at=START + timedelta(hours=1), issued=0
    )
    line.establish(ended)
    line.open_run("R2", authority="issuing-2", not_after=START + timedelta(hours=1))
    device = workpiece("D1", delivered=True)
    line.issue(device, run="R2", key="k")
    line.clock.turn(hours=1)
    refused(
        line,
        errors.IllegalTransition,
        "run R2 ended",  # no run outlives its authority
        lambda: line.issue(device, run="R2", key="k"),
    )


def test_a_closed_run_gives_no_new_key_for_a_lost_one(line: Line) -> None:
    """SPEC C3: another certificate is another issuance, and needs the licence like the first."""
    device = workpiece("D1", delivered=True)
    issued = line.issue(device, key="k")
    line.service.carry(line.service.runs.close(line.operator.caller, "R1", "enough"))
    refused(line, errors.IllegalTransition, "run R1 is closed", lambda: line.issue(device, key="k"))
    assert line.prove(proof(issued, device.key)).device == "serial:D1", "what was issued may still be proved"


def test_a_born_key_gets_its_certificate_again_though_nothing_new_could_be_signed(line: Line) -> None:
    """SPEC C4: the same key, the same answer; a key store that is down changes nothing about it."""
    device = workpiece("D1")
    issued = line.issue(device, key="k")
    line.service.carry(line.service.runs.close(line.operator.caller, "R1", "enough"))
    assert line.issue(device, key="k") == issued


class _RefusingKeys:
    """A key store whose authority keys refuse to sign, as a token does after its PIN was changed."""

    def __init__(self, keys: KeyStore) -> None:
        self._keys = keys
        self.refusing = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._keys, name)

    def sign(self, label: KeyLabel, message: bytes) -> bytes:
        if self.refusing and label != LOG:
            raise errors.NotPermitted("the token refuses the PIN")
        return self._keys.sign(label, message)


def test_what_is_wrong_with_a_key_is_not_the_devices_refusal(line: Line) -> None:
    """SPEC B3: the line is held with the reason, and the same request succeeds when the key signs again."""
    keys = _RefusingKeys(line.keys)
    service = line.another_service(keys=cast("KeyStore", keys))
    device, size = workpiece("D1"), line.size()
    with pytest.raises(errors.Unavailable, match="the key issuing-1 cannot sign: the token refuses the PIN"):
        line.issue(device, key="k", service=service)
    assert line.size() == size, "nothing is kept under the idempotency key"
    keys.refusing = False
    assert line.issue(device, key="k", service=service).device == "serial:D1"


def test_a_run_takes_only_the_key_origins_it_allows(line: Line) -> None:
    """SPEC C5."""
    line.open_run("R2", origins=(KeyOrigin.BORN,))
    line.open_run("R3", origins=(KeyOrigin.DELIVERED,))
    refused(
        line,
        errors.NotPermitted,
        "run R2 does not allow delivered keys",
        lambda: line.issue(workpiece("D1", delivered=True), run="R2"),
    )
    refused(
        line,
        errors.NotPermitted,
        "run R3 does not allow born keys",
        lambda: line.issue(workpiece("D1"), run="R3"),
    )


def test_a_run_that_does_not_exist_is_not_found(line: Line) -> None:
    with pytest.raises(errors.NotFound, match="there is no run R9"):
        line.issue(workpiece("D1"), run="R9")


def test_rework_makes_a_new_attempt_and_supersedes_the_old_certificate(line: Line) -> None:
    """SPEC C4, C9: the rework flow makes a second certificate and revokes the first in one commit."""
    device = workpiece("D1")
    first = line.issue(device)
    assert line.dispose(DeviceEvent.HOLD, device.id).state is DeviceState.HELD
    refused(line, errors.IllegalTransition, "it is held; rework it", lambda: line.issue(workpiece("D1")))
    assert line.dispose(DeviceEvent.REWORK, device.id).state is DeviceState.ADMITTED
    old = line.the(DeviceCertificate, Certificate.from_der(first.certificate).serial_hex)
    revocation = line.the(Revocation, line_of(old).id)
    assert (revocation.reason, revocation.revoked_at) == (ReasonCode.SUPERSEDED, START)
    assert line.entries()[-1]["certificates"] == [old.serial]

    second = line.issue(device)
    assert (line.the(Attempt, second.attempt).number, line.the(Device, device.id).attempts) == (2, 2)
    refused(line, errors.IllegalTransition, "is over", lambda: line.prove(proof(first, device.key)))
    released = line.prove(proof(second, device.key))
    record = verify(released.token, line.vkey)["record"]
    assert isinstance(record, dict)
    assert (record["attempt_number"], record["attempt"]) == (2, second.attempt)
    run = line.the(Run, "R1")
    assert (run.admitted, run.released, run.held, run.scrapped) == (1, 1, 0, 0)


def test_scrap_is_the_end_of_a_device(line: Line) -> None:
    """SPEC C4, F1."""
    device = workpiece("D1")
    issued = line.issue(device)
    line.dispose(DeviceEvent.HOLD, device.id)
    line.dispose(DeviceEvent.SCRAP, device.id, reason="burnt")
    certificate = line.the(DeviceCertificate, Certificate.from_der(issued.certificate).serial_hex)
    assert line.status(certificate) is ReasonCode.CESSATION_OF_OPERATION
    match = "it is scrapped; it never gets another identity"
    refused(line, errors.IllegalTransition, match, lambda: line.issue(workpiece("D1")))
    refused(line, errors.IllegalTransition, match, lambda: line.prove(proof(issued, device.key)))
    for event in (DeviceEvent.HOLD, DeviceEvent.REWORK, DeviceEvent.SCRAP):
        refused(line, errors.IllegalTransition, match, partial(line.dispose, event, device.id))
    assert line.the(Device, device.id).reason == "burnt"
    run = line.the(Run, "R1")
    assert (run.admitted, run.released, run.held, run.scrapped) == (1, 0, 0, 1)


def test_a_released_device_is_not_held_reworked_or_scrapped_on_the_line(line: Line) -> None:
    """What has left is revoked, not reworked."""
    line.make("D1")
    for event in (DeviceEvent.HOLD, DeviceEvent.REWORK, DeviceEvent.SCRAP):
        refused(line, errors.IllegalTransition, "it is released", partial(line.dispose, event, "serial:D1"))
    refused(
        line,
        errors.NotFound,
        "there is no device serial:D9",
        lambda: line.dispose(DeviceEvent.HOLD, "serial:D9"),
    )


def test_a_licence_tampered_with_in_the_database_stops_the_run(small_line: Line) -> None:
    """SPEC C3: a signed licence; who owns the database does not own the quantity."""
    line = small_line
    line.open_run("R2", quantity=1)
    line.make("D1", run="R2")
    tamper(line.url, ("UPDATE run SET quantity = 1000 WHERE id = 'R2'", ()))
    refused(
        line,
        errors.IntegrityFailure,
        "contradicts its licence",
        lambda: line.issue(workpiece("D2"), run="R2"),
    )
    with pytest.raises(errors.IntegrityFailure, match="contradicts its licence"):
        line.issue(workpiece("D2"), run="R2", service=line.another_service())

    bigger = line.licence("R2", quantity=1000).encode()
    tamper(line.url, ("UPDATE run SET document = %s WHERE id = 'R2'", (bigger,)))
    with pytest.raises(errors.IntegrityFailure, match="is not what was signed"):
        line.issue(workpiece("D2"), run="R2", service=line.another_service())
