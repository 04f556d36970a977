"""Stations come by a code, renew themselves, and are held to times and rates (SPEC C2)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from birthmark import errors
from birthmark.adapters.system import SystemEntropy
from birthmark.floor.clients import Client as ClientRow
from birthmark.floor.clients import Credential, Role
from birthmark.floor.exposure import Exposure
from birthmark.floor.invitations import Invitation
from birthmark.floor.limits import Bucket, Rate
from birthmark.pki.profiles import Catalogue
from birthmark.ports import Act, Look, UseCase
from birthmark.secret import SecretBytes
from birthmark.services.acts import Caller, recognise
from birthmark.services.authorise import Authorise, Enrolled
from birthmark.services.check import check
from birthmark.services.exposures import clear_exposure, close_now, set_exposure
from birthmark.services.invitations import Guest, Invitations
from birthmark.services.issue import IssueRequest
from birthmark.services.renewals import Renewals
from tests.support.realm import Line, tamper, workpiece

ADDRESS = "192.0.2.7"
FAST = (Rate(per_minute=600, burst=600), Rate(per_minute=600, burst=600))


def csr(key: ec.EllipticCurvePrivateKey | None = None) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    request = builder.sign(key or ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return request.public_bytes(Encoding.DER)


@dataclass(slots=True, kw_only=True)
class Gate:
    """A line, and who lets stations in."""

    line: Line
    rates: tuple[Rate, Rate] = FAST

    @property
    def authorise(self) -> Authorise:
        line = self.line
        return Authorise(line.realm, line.keys, line.clock, SystemEntropy(), Catalogue.read())

    @property
    def invitations(self) -> Invitations:
        clock, entropy = self.line.clock, SystemEntropy()
        return Invitations(self.authorise, clock, entropy, Catalogue.read(), "Acme Motors", self.rates)

    def invite(self, name: str = "ST05", *, by: Caller | None = None, **fields: Any) -> SecretBytes:
        guest = Guest(name=name, site="Graz", line="L1", authority="issuing-1", **fields)
        code, _ = self.line.service.carry(self.invitations.invite(by or self.line.operator.caller, guest))
        return code

    def join(self, code: SecretBytes, request: bytes | None = None, address: str = ADDRESS) -> Enrolled:
        return self.line.service.carry(self.invitations.join(code, request or csr(), address))

    def about_to_join(self, code: SecretBytes) -> list[Act[Any]]:
        """Return the acts that let a station in whose code was found good a moment ago."""
        return self.on_the_way(self.invitations.join(code, csr(), ADDRESS))

    def on_the_way(self, joining: UseCase[Enrolled]) -> list[Act[Any]]:
        """Carry a joining up to the acts that let the station in, and return those."""
        store = self.line.service.store
        answer: Any = None
        knocked = False
        while True:
            step = joining.send(answer)
            if isinstance(step, list):
                if knocked:
                    return step
                knocked, answer = True, store.submit(step).result()
            else:
                assert isinstance(step, Look)
                answer = store.look(step.reads)

    def renew(self, caller: Caller, request: bytes | None = None) -> Enrolled:
        renewals = Renewals(self.authorise, self.line.clock, Catalogue.read(), "Acme Motors")
        return self.line.service.carry(renewals.renew(caller, request or csr()))

    def refusals(self) -> list[Mapping[str, Any]]:
        return [one for one in self.line.entries() if one["kind"] == "refused"]

    def findings(self) -> list[str]:
        return check(self.line.service.store, self.line.service.store.log, self.line.realm).findings


@pytest.fixture
def gate(small_line: Line) -> Gate:
    return Gate(line=small_line)


@pytest.fixture
def gate_on_both(line: Line) -> Gate:
    return Gate(line=line)


# --- codes


def test_an_invited_station_gets_a_certificate_for_its_own_key_and_hours(gate_on_both: Gate) -> None:
    gate = gate_on_both
    code = gate.invite(runs=("R1", "R2"), hours=12)
    key = ec.generate_private_key(ec.SECP256R1())
    enrolled = gate.join(code, csr(key))
    client = gate.line.the(ClientRow, "station:ST05")
    assert (client.role, client.site, client.line, client.runs) == (Role.STATION, "Graz", "L1", "R1,R2")
    certificate = enrolled.certificate
    assert certificate.not_after - certificate.not_before == timedelta(hours=12)
    parsed = x509.load_der_x509_certificate(certificate.der)
    assert parsed.public_key() == key.public_key()
    assert parsed.subject.rfc4514_string().endswith("O=Acme Motors")
    assert [one["kind"] for one in gate.line.entries()[-3:]] == [
        "station-invited", "client-enrolled", "invitation-redeemed"
    ]  # fmt: skip
    assert gate.findings() == []


def test_a_lost_answer_is_given_again_to_the_same_key_and_to_no_other(gate: Gate) -> None:
    code, key = gate.invite(), ec.generate_private_key(ec.SECP256R1())
    first = gate.join(code, csr(key))
    size = gate.line.size()
    assert gate.join(code, csr(key)).certificate == first.certificate
    assert gate.line.size() == size, "nothing new happened"
    with pytest.raises(errors.Unauthenticated, match="used already"):
        gate.join(code)
    assert gate.refusals()[-1]["request"] == "join"
    gate.line.clock.turn(minutes=31)
    with pytest.raises(errors.Unauthenticated, match="ended at"):
        gate.join(code, csr(key))
    assert len([one for one in gate.line.service.store.scan(Credential) if one.client == "station:ST05"]) == 1


def test_two_that_come_with_one_code_at_once_are_one_station(gate: Gate) -> None:
    """Both find the code good; the commit is the judge."""
    code = gate.invite()
    ours, theirs = gate.about_to_join(code), gate.about_to_join(code)
    won, lost = gate.line.service.store.submit([*ours, *theirs]).result()
    assert not isinstance(won.answer, errors.Refusal)
    assert isinstance(lost.answer, Invitation), "it hears what became of the code"
    assert gate.findings() == []


@pytest.mark.parametrize("same", [True, False])
def test_who_asks_again_while_the_first_request_is_under_way_gets_what_that_one_gets(
    gate: Gate, *, same: bool
) -> None:
    """After a timeout, say; with another key it is somebody else."""
    code, request = gate.invite(), csr()
    slow = gate.invitations.join(code, request, ADDRESS)
    acts = gate.on_the_way(slow)
    first = gate.join(code, request if same else csr())
    step: Any = slow.send(gate.line.service.store.submit(acts).result())

    def rest() -> UseCase[Enrolled]:
        answer = yield step
        while True:
            try:
                answer = yield slow.send(answer)
            except StopIteration as done:
                enrolled: Enrolled = done.value
                return enrolled

    if same:
        assert gate.line.service.carry(rest()).certificate.der == first.certificate.der
        return
    with pytest.raises(errors.Unauthenticated, match="this code was used already"):
        gate.line.service.carry(rest())


@pytest.mark.parametrize("meanwhile", ["inviter revoked", "plane closed"])
def test_what_ends_a_code_ends_it_for_whoever_is_in_the_middle_of_joining(gate: Gate, meanwhile: str) -> None:
    line = gate.line
    carla = line.enrol(Role.LINE_LEAD, "carla")
    acts = gate.about_to_join(gate.invite(by=carla.caller))
    if meanwhile == "inviter revoked":
        line.service.carry(line.service.authorise.revoke(line.operator.caller, "operator:carla", "left"))
    else:
        line.service.carry(close_now(line.operator.caller, "plane:enrolment", "night"))
    (refused,) = line.service.store.submit(acts).result()
    assert isinstance(refused.answer, errors.Unauthenticated | errors.NotPermitted)
    assert not [one for one in line.service.store.scan(ClientRow) if one.id == "station:ST05"]
    assert gate.findings() == []


@pytest.mark.parametrize("after", ["inviter revoked", "plane closed", "name taken"])
def test_a_code_is_as_good_as_whoever_gave_it_and_the_plane_it_is_for(gate: Gate, after: str) -> None:
    line = gate.line
    carla = line.enrol(Role.LINE_LEAD, "carla")
    code = gate.invite(by=carla.caller)
    if after == "inviter revoked":
        line.service.carry(line.service.authorise.revoke(line.operator.caller, "operator:carla", "left"))
    elif after == "plane closed":
        line.service.carry(close_now(line.operator.caller, "plane:enrolment", "night"))
    else:
        line.enrol(Role.STATION, "ST05")
    with pytest.raises((errors.Unauthenticated, errors.NotPermitted, errors.IllegalTransition)):
        gate.join(code)
    assert gate.refusals()[-1]["request"] == "join"
    assert gate.findings() == []


@pytest.mark.parametrize("role", [Role.OPERATOR, Role.AUDITOR])
def test_who_may_not_let_stations_in_may_not_invite_one(gate: Gate, role: Role) -> None:
    person = gate.line.enrol(role, "olga")
    with pytest.raises(errors.NotPermitted, match="may not enrol-station"):
        gate.invite(by=person.caller)
    assert not list(gate.line.service.store.scan(Invitation))


def test_codes_cannot_be_tried_out(gate: Gate) -> None:
    """Each attempt costs the address and everybody; then nothing is judged, and nothing is written."""
    gate.rates = (Rate(per_minute=6, burst=10), Rate(per_minute=2, burst=4))
    entropy = SystemEntropy()
    outcomes: list[type[errors.Refusal]] = []
    for number in range(30):
        try:
            gate.join(SecretBytes(entropy.token(16)), address=f"192.0.2.{number // 6}")
        except errors.Refusal as refused:
            outcomes.append(type(refused))
    assert outcomes.count(errors.Unauthenticated) == 10
    assert outcomes[4] is errors.RateLimited, "one address has used up its own"
    assert len(gate.refusals()) == 10
    code = gate.invite()
    with pytest.raises(errors.RateLimited):
        gate.join(code)
    gate.line.clock.turn(seconds=10)
    gate.join(code)
    assert gate.findings() == []


def test_a_request_that_is_none_costs_the_code_nothing(gate: Gate) -> None:
    code = gate.invite()
    with pytest.raises(errors.MalformedRequest):
        gate.join(code, b"no request")
    assert len(gate.refusals()) == 1
    gate.join(code)


def test_the_code_is_nowhere_on_record(gate: Gate) -> None:
    code = gate.invite()
    gate.join(code)
    octets = code.reveal()
    path = Path(gate.line.url.removeprefix("sqlite:///"))
    stored = b"".join(file.read_bytes() for file in path.parent.glob(path.name + "*"))
    for spelled in (octets, octets.hex().encode(), octets.hex().upper().encode()):
        assert spelled not in stored


@pytest.mark.parametrize(
    "fields", [{"life": timedelta(seconds=59)}, {"life": timedelta(days=8)}, {"hours": 0}, {"hours": 721}]
)
def test_times_that_make_no_sense_are_refused(gate: Gate, fields: dict[str, Any]) -> None:
    with pytest.raises(errors.MalformedRequest):
        gate.invite(**fields)


@pytest.mark.parametrize(
    ("statement", "finding"),
    [
        ("UPDATE invitation SET hours = 700", "is not what the log says"),
        ("UPDATE invitation SET certificate = NULL", "is not what the log says"),
        ("DELETE FROM invitation", "it is gone"),
        ("UPDATE exposure SET closes_at = closes_at + 1000", "at other times than the log says"),
        ("DELETE FROM exposure", "that is gone"),
    ],
)
def test_a_changed_record_is_found(gate: Gate, statement: str, finding: str) -> None:
    gate.join(gate.invite())
    gate.line.service.carry(close_now(gate.line.operator.caller, "station:ST05", "night"))
    assert gate.findings() == []
    tamper(gate.line.url, (statement, ()))
    assert any(finding in one for one in gate.findings())


# --- renewal


def test_a_renewed_certificate_is_as_long_as_the_one_before_and_for_a_new_key(gate_on_both: Gate) -> None:
    gate = gate_on_both
    enrolled = gate.join(gate.invite(hours=12))
    caller = replace(gate.line.service.carry(recognise(enrolled.certificate.der)), plane="station", seq=7)
    gate.line.clock.turn(hours=8)
    fresh = gate.renew(caller).certificate
    assert fresh.not_after - fresh.not_before == timedelta(hours=12)
    assert fresh.subject_name == enrolled.certificate.subject_name
    entry = gate.line.entries()[-1]
    assert (entry["kind"], entry["actor"], entry["seq"]) == ("client-renewed", "station:ST05", 7)
    assert gate.line.the(ClientRow, "station:ST05").last_seq == 7
    assert gate.findings() == []


def test_the_key_of_another_client_is_no_new_key(gate: Gate) -> None:
    """One key under two names is one holder under two names."""
    key = ec.generate_private_key(ec.SECP256R1())
    gate.join(gate.invite(), csr(key))
    other = gate.line.service.carry(recognise(gate.join(gate.invite("ST06")).certificate.der))
    with pytest.raises(errors.PolicyRefused, match="a key that another client has") as refused:
        gate.renew(other, csr(key))
    assert refused.value.rule == "new-key"
    assert gate.line.entries()[-1]["kind"] == "refused"


def test_the_key_that_a_client_has_is_no_new_key(gate: Gate) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    caller = gate.line.service.carry(recognise(gate.join(gate.invite(), csr(key)).certificate.der))
    with pytest.raises(errors.PolicyRefused) as refused:
        gate.renew(caller, csr(key))
    assert refused.value.rule == "new-key"
    assert [one["request"] for one in gate.refusals()] == ["renew-self"]


def test_a_certificate_that_ended_renews_nothing(gate: Gate) -> None:
    enrolled = gate.join(gate.invite(hours=1))
    caller = replace(gate.line.service.carry(recognise(enrolled.certificate.der)), plane="station")
    gate.line.clock.turn(hours=1)
    with pytest.raises(errors.Unauthenticated, match="ended: renew it"):
        gate.renew(caller)


def test_a_station_that_renews_without_end_is_slowed_down(gate: Gate) -> None:
    caller = gate.line.service.carry(recognise(gate.join(gate.invite()).certificate.der))
    for _ in range(10):
        gate.renew(caller)
    with pytest.raises(errors.RateLimited):
        gate.renew(caller)


def test_a_renewal_is_one_request_and_costs_one_token(gate: Gate) -> None:
    known = gate.line.service.carry(recognise(gate.join(gate.invite()).certificate.der))
    caller = replace(known, rate=Rate(per_minute=1, burst=2))
    gate.renew(caller)
    with pytest.raises(errors.MalformedRequest):
        gate.renew(caller, b"none")
    with pytest.raises(errors.RateLimited):
        gate.renew(caller)


def test_a_bootstrap_credential_does_not_renew_itself(gate: Gate) -> None:
    bootstrap = gate.line.enrol(Role.BOOTSTRAP, "b1", run="R1")
    with pytest.raises(errors.NotPermitted):
        gate.renew(bootstrap.caller)


# --- times


def test_what_is_open_for_a_time_closes_by_itself_and_again_when_told(gate_on_both: Gate) -> None:
    line, anna = gate_on_both.line, gate_on_both.line.operator.caller
    station = replace(line.station.caller, plane="station")
    by = replace(line.station, caller=station)
    start = line.clock.now()
    line.service.carry(
        set_exposure(anna, "station:ST01", start + timedelta(hours=1), start + timedelta(hours=9), "shift")
    )
    with pytest.raises(errors.NotPermitted, match="station:ST01 is closed until"):
        line.issue(workpiece("E1"), by=by)
    line.clock.turn(hours=1)
    line.issue(workpiece("E2"), by=by)
    line.clock.turn(hours=8)
    with pytest.raises(errors.NotPermitted, match="station:ST01 is closed since"):
        line.issue(workpiece("E3"), by=by)
    line.service.carry(clear_exposure(anna, "station:ST01", "enough"))
    line.issue(workpiece("E4"), by=by)
    line.service.carry(close_now(anna, "run:R1", "a doubt"))
    with pytest.raises(errors.NotPermitted, match="run:R1 is closed since"):
        line.issue(workpiece("E5"), by=by)
    line.service.carry(clear_exposure(anna, "run:R1", "settled"))
    line.service.carry(close_now(anna, "plane:station", "night"))
    with pytest.raises(errors.NotPermitted, match="plane:station is closed"):
        line.issue(workpiece("E6"), by=by)
    line.issue(workpiece("E7")), "who acts at the host is not held to planes"
    assert gate_on_both.findings() == []


@pytest.mark.parametrize("what", ["station:ST99", "run:R9"])
def test_a_time_is_said_of_what_there_is(gate: Gate, what: str) -> None:
    with pytest.raises(errors.NotFound):
        gate.line.service.carry(close_now(gate.line.operator.caller, what, "typo"))
    assert not list(gate.line.service.store.scan(Exposure))


@pytest.mark.parametrize("what", ["station", "plane:public", "plane:", "device:X", "run:a b", ""])
def test_what_cannot_be_open_for_a_time_is_malformed(gate: Gate, what: str) -> None:
    with pytest.raises(errors.MalformedRequest):
        gate.line.service.carry(close_now(gate.line.operator.caller, what, "typo"))


def test_a_time_that_ends_before_it_begins_is_refused(gate: Gate) -> None:
    now, anna = gate.line.clock.now(), gate.line.operator.caller
    for start, end in ((now, now), (None, now - timedelta(hours=1)), (now + timedelta(hours=2), now)):
        with pytest.raises(errors.MalformedRequest, match="would never be open"):
            gate.line.service.carry(set_exposure(anna, "station:ST01", start, end, "typo"))


# --- rates


def test_a_bucket_holds_across_processes_and_restarts(line: Line) -> None:
    rate = Rate(per_minute=1, burst=6)
    caller = replace(line.station.caller, rate=rate)
    services = [line.service, line.another_service()]
    for number in range(6):
        line.issue(
            workpiece(f"Q{number}"), by=replace(line.station, caller=caller), service=services[number % 2]
        )
    for service in (*services, line.another_service()):
        with pytest.raises(errors.RateLimited) as refused:
            line.issue(workpiece("Q9"), by=replace(line.station, caller=caller), service=service)
        assert refused.value.retry_after == 60
    bucket = line.the(Bucket, "client/station:ST01")
    assert bucket.thousandths < 1000
    line.clock.turn(seconds=60)
    line.issue(workpiece("Q9"), by=replace(line.station, caller=caller))


def test_refusals_cost_as_much_as_what_is_granted(small_line: Line) -> None:
    """A flood of what is refused ends as entries when the bucket is empty."""
    line = small_line
    caller = replace(line.station.caller, rate=Rate(per_minute=1, burst=5))
    size = line.size()
    for number in range(20):
        asked = [IssueRequest(hardware_id="not valid!", csr=None, key=f"flood-{number}")]
        line.service.carry(line.service.issue(caller, "R1", asked))
    assert line.size() - size == 5


def test_the_devices_of_a_gang_that_find_no_token_are_refused_alone(small_line: Line) -> None:
    line = small_line
    caller = replace(line.station.caller, rate=Rate(per_minute=1, burst=3))
    pieces = [workpiece(f"G{number}") for number in range(5)]
    asked = [
        IssueRequest(hardware_id=one.hardware_id, csr=one.csr, key=f"g-{one.hardware_id}") for one in pieces
    ]
    results = line.service.carry(line.service.issue(caller, "R1", asked))
    assert [isinstance(one, errors.RateLimited) for one in results] == [False] * 3 + [True] * 2
    line.clock.turn(minutes=5)
    again = line.service.carry(line.service.issue(caller, "R1", asked[3:]))
    assert not any(isinstance(one, errors.Refusal) for one in again), "nothing was kept under their keys"
