"""Who comes in at the gateway, by the record alone: own devices, other fleets, clones (SPEC H3, H5, H6).

Other fleets are made by OpenSSL (``tests.support.foreign``); handshakes are in ``tests/system``.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from birthmark import errors
from birthmark.adapters.system import SystemEntropy
from birthmark.floor.clients import Role
from birthmark.floor.devices import DeviceCertificate, DeviceEvent
from birthmark.floor.fleet import (
    MOST_MOVES,
    FieldDevice,
    FieldStatus,
    FirstContact,
    FleetAuthority,
    FleetPolicy,
    FleetStatus,
    RevocationRule,
)
from birthmark.pki.certificates import Certificate
from birthmark.pki.revocation import ReasonCode
from birthmark.ports import Decision, Facts
from birthmark.services.check import check
from birthmark.services.exposures import clear_exposure, close_now
from birthmark.services.field_devices import hold_device, resume_device
from birthmark.services.fleet import Fleet
from birthmark.services.foreign_devices import ForeignDevices, Listed, StatusMissing
from birthmark.services.foreign_lists import take_crl
from birthmark.services.foreign_status import Answers, Lists, take_answer
from birthmark.services.gateway import Gateway, require_proxy
from birthmark.services.own_devices import OwnDevices
from birthmark.services.revocations import line_of, reinstate, revoke
from birthmark.services.visits import AT_THE_DOOR, Reason, TurnedAway, Visit, Welcome
from tests.support.acts import act
from tests.support.foreign import ForeignPKI, Issuer
from tests.support.realm import Line, Service, hierarchy, proof, tamper, workpiece

HOME, AWAY = "192.0.2.1", "198.51.100.7"


class Door:
    """The gateway of one process over a line."""

    def __init__(
        self, line: Line, service: Service | None = None, *, others: Mapping[bytes, str] | None = None
    ) -> None:
        self.line, self.service = line, service or line.service
        self.listed = Listed(lists=Lists(), answers=Answers())
        foreign = ForeignDevices(line.clock, SystemEntropy(), self.listed)
        confirmations = self.service.confirmations
        self.gateway = Gateway(line.clock, OwnDevices(), foreign, confirmations, others or {})

    def visit(
        self,
        der: bytes,
        *,
        path: tuple[bytes, ...] | None = None,
        place: str = HOME,
        connected_at: datetime | None = None,
        actor: str = AT_THE_DOOR,
    ) -> Visit:
        above = (hierarchy().issuing, hierarchy().root) if path is None else path
        when = connected_at or self.line.clock.now()
        return Visit(certificate=der, path=above, place=place, connected_at=when, actor=actor)

    def meet(self, der: bytes, **how: object) -> Welcome:
        return self.service.carry(self.gateway.meet(self.visit(der, **how)))  # type: ignore[arg-type]  # as the test says

    def refuses(self, der: bytes, reason: Reason, **how: object) -> TurnedAway:
        with pytest.raises(TurnedAway) as refused:
            self.meet(der, **how)
        assert refused.value.rule == reason, refused.value
        return refused.value

    def device(self, name: str) -> FieldDevice:
        return self.line.the(FieldDevice, name)

    def findings(self) -> list[str]:
        store = self.line.service.store
        return check(store, store.log, store.realm).findings


def made(line: Line, name: str) -> bytes:
    """Bring a device through the line; return its certificate (DER)."""
    device = workpiece(name)
    issued = line.issue(device)
    line.prove(proof(issued, device.key))
    return issued.certificate


@pytest.fixture
def door(line: Line) -> Door:
    return Door(line)


@pytest.fixture
def small(small_line: Line) -> Door:
    """On SQLite: where the database is not what is asked about."""
    return Door(small_line)


@pytest.fixture
def pki(tmp_path: Path) -> ForeignPKI:
    return ForeignPKI(folder=tmp_path / "foreign")


# --- own devices


def test_the_first_contact_is_an_entry_and_the_next_reads_only(door: Door) -> None:
    der = made(door.line, "D1")
    first = door.meet(der)
    assert (first.device, first.authority, first.first) == ("serial:D1", "issuing-1", True)
    entry = door.line.entries()[-1]
    assert (entry["kind"], entry["actor"], entry["address"]) == ("device-first-seen", AT_THE_DOOR, HOME)
    assert door.device("serial:D1").first_seen_leaf == door.line.size() - 1
    size = door.line.size()
    door.line.clock.turn(hours=1)
    again = door.meet(der)
    assert (again.first, again.first_seen_at) == (False, first.first_seen_at)
    assert door.line.size() == size
    assert door.findings() == []


def test_a_device_that_is_not_released_is_refused(door: Door) -> None:
    device = workpiece("D1")
    issued = door.line.issue(device)
    assert door.refuses(issued.certificate, Reason.NOT_RELEASED).device == "serial:D1"
    door.line.prove(proof(issued, device.key))
    assert door.meet(issued.certificate).first


def test_a_device_that_the_line_holds_is_refused(door: Door) -> None:
    issued = door.line.issue(workpiece("D1"))
    door.line.dispose(DeviceEvent.HOLD, "serial:D1", reason="scratched")
    assert "scratched" in str(door.refuses(issued.certificate, Reason.HELD))
    door.line.dispose(DeviceEvent.REWORK, "serial:D1")
    door.refuses(issued.certificate, Reason.REVOKED)


def test_suspended_reinstated_revoked_each_counts_at_the_next_contact(door: Door) -> None:
    der = made(door.line, "D1")
    certificate = door.line.the(DeviceCertificate, Certificate.from_der(der).serial_hex)

    def changed(reason: ReasonCode | None) -> None:
        def decide(facts: Facts, at: datetime) -> Decision[None]:
            if reason is None:
                reinstate(facts, line_of(certificate), at, "test")
            else:
                revoke(facts, line_of(certificate), reason, at, "test")
            return Decision(None)

        door.service.store.submit([act(decide)]).result()

    door.meet(der)
    changed(ReasonCode.CERTIFICATE_HOLD)
    door.refuses(der, Reason.SUSPENDED)
    changed(None)
    door.meet(der)
    changed(ReasonCode.KEY_COMPROMISE)
    assert "keyCompromise" in str(door.refuses(der, Reason.REVOKED))


def test_what_an_authority_issued_is_refused_when_it_or_one_above_it_is_revoked(small: Door) -> None:
    der = made(small.line, "D1")
    small.meet(der)
    tamper(small.line.url, ("UPDATE authority SET status = 'revoked' WHERE id = %s", ("root",)))
    assert "authority root" in str(small.refuses(der, Reason.AUTHORITY_REVOKED))


def test_only_the_very_certificate_that_is_on_record_counts(small: Door) -> None:
    der = made(small.line, "D1")
    # Another signature over the same certificate: the same serial number, the same names, the same key.
    other = der[:-1] + bytes([der[-1] ^ 1])
    refused = small.refuses(other, Reason.UNKNOWN)
    assert "though it is under issuing-1" in str(refused)
    assert "no registered authority" in str(small.refuses(other, Reason.UNKNOWN, path=()))
    for client in (small.line.station, small.line.operator):
        small.refuses(client.caller.credential.der, Reason.UNKNOWN)


def test_a_certificate_counts_for_as_long_as_it_is_valid(small: Door) -> None:
    der = made(small.line, "D1")
    small.line.clock.turn(days=-1)
    small.refuses(der, Reason.ENDED)


def test_a_device_of_another_realm_is_refused_as_one_whatever_is_registered(
    small: Door, pki: ForeignPKI
) -> None:
    root = pki.root("another", subject="/CN=another")
    issuing, renewed = root.below("issuing"), root.again("/CN=another, again")
    door = Door(small.line, others={root.der: "CN=another"})
    device, old = issuing.certify("D1"), root.certify("D2")
    refused = door.refuses(device, Reason.WRONG_REALM, path=(issuing.der, root.der))
    assert "CN=another" in str(refused)
    door.refuses(device, Reason.UNKNOWN, path=())
    fleet, anna, carry = (
        Fleet(small.line.realm, SystemEntropy()),
        small.line.operator.caller,
        small.service.carry,
    )
    policy = FleetPolicy(first_contact=FirstContact.REGISTER, revocation=RevocationRule.NONE)
    for name, authority in (("issuing", issuing), ("again", renewed)):
        challenged = carry(fleet.challenge(anna, name, authority.der, policy))
        carry(fleet.register(anna, name, authority.verification(challenged.nonce)))
    for path, actor in (((issuing.der,), AT_THE_DOOR), ((), "proxy:edge")):
        door.refuses(device, Reason.WRONG_REALM, path=path, actor=actor)
    door.refuses(old, Reason.WRONG_REALM, path=(renewed.der,))
    assert small.meet(device, path=(issuing.der,)).device == "fleet:issuing/D1", "nobody said whose it is"


@pytest.mark.parametrize("octets", [b"", b"\x30\x00", b"\x30\x82\xff\xff"])
def test_what_is_no_certificate_is_malformed(small: Door, octets: bytes) -> None:
    with pytest.raises(errors.MalformedRequest):
        small.meet(octets)


def test_a_closed_gateway_lets_nobody_in(small: Door) -> None:
    der = made(small.line, "D1")
    small.service.carry(close_now(small.line.operator.caller, "plane:gateway", "night"))
    small.line.clock.turn(seconds=1)
    with pytest.raises(errors.NotPermitted, match="plane:gateway is closed"):
        small.meet(der)
    small.service.carry(clear_exposure(small.line.operator.caller, "plane:gateway", "day"))
    assert small.meet(der).first


def test_a_storm_at_two_processes_is_one_entry_a_device(door: Door) -> None:
    ders = [made(door.line, f"S{number}") for number in range(8)]
    doors = [door, Door(door.line, door.line.another_service())]
    size = door.line.size()
    with ThreadPoolExecutor(8) as pool:
        met = list(pool.map(lambda n: doors[n % 2].meet(ders[n // 2 % 8]), range(64)))
    assert sum(one.first for one in met) == 8
    seen = [entry["device"] for entry in door.line.entries(size)]
    assert sorted(seen) == [f"serial:S{number}" for number in range(8)]
    assert door.findings() == []


# --- places


def test_who_speaks_on_an_old_connection_from_elsewhere_is_one_of_two(door: Door) -> None:
    der, clock = made(door.line, "D1"), door.line.clock
    connected = clock.now()
    door.meet(der, connected_at=connected)
    clock.turn(minutes=1)
    door.meet(der, place=AWAY)
    clock.turn(minutes=1)
    refused = door.refuses(der, Reason.CLONED, connected_at=connected)
    assert (HOME in str(refused), AWAY in str(refused), refused.recorded) == (True, True, True)
    held = door.device("serial:D1")
    assert (held.status, held.place) == (FieldStatus.HELD, AWAY)
    entry = door.line.entries()[-1]
    assert (entry["kind"], entry["rule"], entry["reason"]) == (
        "field-device-held",
        "device-cloned",
        held.reason,
    )
    for place in (HOME, AWAY):
        door.refuses(der, Reason.HELD, place=place)
    assert door.findings() == []
    # A person lets it go on; connections from before stay refused, which is to hold it again.
    clock.turn(minutes=1)
    door.service.carry(resume_device(door.line.operator.caller, "serial:D1", "it is the one in Oslo"))
    door.refuses(der, Reason.CLONED, connected_at=connected)
    door.service.carry(resume_device(door.line.operator.caller, "serial:D1", "now"))
    clock.turn(minutes=1)
    assert not door.meet(der, place=HOME).first
    assert door.findings() == []


def test_who_moves_more_often_than_one_can_is_held(small: Door) -> None:
    der = made(small.line, "D1")
    for number in range(MOST_MOVES + 1):
        small.meet(der, place=f"203.0.113.{number}")
        small.line.clock.turn(seconds=20)
    small.refuses(der, Reason.CLONED, place=HOME)


def test_who_travels_slowly_is_let_in_everywhere(small: Door) -> None:
    der = made(small.line, "D1")
    for number in range(3 * MOST_MOVES):
        small.meet(der, place=f"203.0.113.{number}")
        small.line.clock.turn(minutes=1)
    assert small.device("serial:D1").moves <= MOST_MOVES


def test_what_a_person_holds_in_the_field_stays_out(small: Door) -> None:
    der = made(small.line, "D1")
    small.meet(der)
    small.service.carry(hold_device(small.line.operator.caller, "serial:D1", "reported stolen"))
    assert "reported stolen" in str(small.refuses(der, Reason.HELD))
    small.service.carry(resume_device(small.line.operator.caller, "serial:D1", "found"))
    assert not small.meet(der).first


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE field_device SET status = 'held', reason = 'x'", "is not what the log says of it"),
        ("UPDATE field_device SET first_seen_leaf = 1", "is not what the log says of it"),
        ("UPDATE field_device SET authority = 'fjord'", "is not what the log says of it"),
        ("DELETE FROM field_device", "it is gone"),
    ],
)
def test_a_row_that_was_tampered_with_is_found(small: Door, statement: str, said: str) -> None:
    small.meet(made(small.line, "D1"))
    tamper(small.line.url, (statement, ()))
    (finding,) = small.findings()
    assert said in finding


# --- other fleets


class Fjord:
    """Another fleet's authority, registered at a door."""

    def __init__(self, door: Door, pki: ForeignPKI, **policy: object) -> None:
        self.door, self.root, self.lists = door, pki.root(), 0
        self.fleet = Fleet(door.line.realm, SystemEntropy())
        agreed = FleetPolicy(**{"first_contact": FirstContact.REGISTER, **policy})  # type: ignore[arg-type]  # as the test says
        anna = door.line.operator.caller
        carry = door.service.carry
        challenged = carry(self.fleet.challenge(anna, "fjord", self.root.der, agreed))
        carry(self.fleet.register(anna, "fjord", self.root.verification(challenged.nonce)))

    def list(self) -> None:
        """Take in its next CRL, ten minutes younger than the last."""
        self.lists += 1
        octets = self.root.list(at=self.root.at + timedelta(minutes=10 * self.lists))
        self.door.service.carry(take_crl(self.door.line.operator.caller, "fjord", octets))

    def move(self, status: FleetStatus) -> None:
        anna = self.door.line.operator.caller
        self.door.service.carry(self.fleet.move(anna, "fjord", status, "a test"))

    def meet(self, der: bytes, *path: Issuer, **how: object) -> Welcome:
        return self.door.meet(der, path=(*(one.der for one in path), self.root.der), **how)

    def refuses(self, der: bytes, reason: Reason, *path: Issuer, **how: object) -> TurnedAway:
        return self.door.refuses(der, reason, path=(*(one.der for one in path), self.root.der), **how)


def test_a_device_of_a_registered_fleet_comes_in_under_a_name_of_its_own(door: Door, pki: ForeignPKI) -> None:
    fjord = Fjord(door, pki)
    fjord.list()
    der = fjord.root.certify("BOAT-1")
    met = fjord.meet(der)
    assert (met.device, met.authority, met.first) == ("fleet:fjord/BOAT-1", "fjord", True)
    entry = door.line.entries()[-1]
    assert (entry["device"], entry["fleet_authority"]) == ("fleet:fjord/BOAT-1", "fjord")
    assert not fjord.meet(der).first
    below = fjord.root.below("sub")
    boat = below.certify("BOAT-2")
    fjord.refuses(boat, Reason.STATUS_UNKNOWN, below)
    anna = door.line.operator.caller
    door.service.carry(take_crl(anna, "fjord", below.list(), issuer=below.der))
    assert fjord.meet(boat, below).device == "fleet:fjord/BOAT-2"
    assert door.findings() == []


def test_without_a_fresh_proof_that_it_is_good_it_stays_out(door: Door, pki: ForeignPKI) -> None:
    fjord = Fjord(door, pki)
    der = fjord.root.certify("BOAT-1")
    fjord.refuses(der, Reason.STATUS_UNKNOWN)
    fjord.list()
    fjord.meet(der)
    door.line.clock.turn(days=8)
    fjord.refuses(der, Reason.STATUS_UNKNOWN)


def test_what_its_own_authority_revoked_is_refused(door: Door, pki: ForeignPKI) -> None:
    fjord = Fjord(door, pki)
    der = fjord.root.certify("BOAT-1")
    fjord.list()
    fjord.meet(der)
    fjord.root.revoke("BOAT-1")
    fjord.list()
    fjord.refuses(der, Reason.FOREIGN_REVOKED)


def test_a_responder_is_asked_where_no_list_says_enough(small: Door, pki: ForeignPKI) -> None:
    fjord = Fjord(small, pki, ocsp_url="http://ocsp.example.com/")
    der = fjord.root.certify("BOAT-1")
    missing = fjord.refuses(der, Reason.STATUS_UNKNOWN)
    assert isinstance(missing, StatusMissing)
    (question,) = missing.questions
    assert question.url == "http://ocsp.example.com/"
    take_answer(
        small.listed.answers,
        question,
        fjord.root.answer(question.request, minutes=600),
        small.line.clock.now(),
    )
    assert fjord.meet(der).first


def test_a_fleet_that_is_suspended_or_retired_is_refused_with_that_reason(
    door: Door, pki: ForeignPKI
) -> None:
    fjord = Fjord(door, pki, revocation=RevocationRule.NONE)
    der = fjord.root.certify("BOAT-1")
    fjord.meet(der)
    fjord.move(FleetStatus.SUSPENDED)
    assert "suspended" in str(fjord.refuses(der, Reason.FLEET_CLOSED))
    fjord.move(FleetStatus.ACTIVE)
    fjord.meet(der)
    fjord.move(FleetStatus.RETIRED)
    assert "retired" in str(fjord.refuses(der, Reason.FLEET_CLOSED))


def test_a_fleet_that_only_was_challenged_is_a_stranger(small: Door, pki: ForeignPKI) -> None:
    root = pki.root()
    fleet = Fleet(small.line.realm, SystemEntropy())
    policy = FleetPolicy(first_contact=FirstContact.REGISTER, revocation=RevocationRule.NONE)
    small.service.carry(fleet.challenge(small.line.operator.caller, "fjord", root.der, policy))
    small.refuses(root.certify("BOAT-1"), Reason.UNKNOWN, path=(root.der,))


def test_a_policy_registers_everybody_those_on_a_list_or_nobody(small: Door, pki: ForeignPKI) -> None:
    listed = small.service.carry(
        small.service.runs.import_list(small.line.operator.caller, ["BOAT-1", "BOAT-3"])
    )
    fjord = Fjord(small, pki, revocation=RevocationRule.NONE, first_contact=FirstContact.REFUSE)
    boats = {name: fjord.root.certify(name) for name in ("BOAT-1", "BOAT-2")}
    for der in boats.values():
        fjord.refuses(der, Reason.NOT_REGISTERED)
    row = small.line.the(FleetAuthority, "fjord")
    changed = replace(
        FleetPolicy.decode(row.policy), first_contact=FirstContact.LISTED, allow_list=listed.sha256
    )
    anna = small.line.operator.caller
    small.service.carry(fjord.fleet.change(anna, "fjord", changed, "a list"))
    fjord.refuses(boats["BOAT-2"], Reason.NOT_REGISTERED)
    assert fjord.meet(boats["BOAT-1"]).first
    assert small.line.get(FieldDevice, "fleet:fjord/BOAT-2") is None


def test_a_name_that_breaks_the_policy_is_refused(small: Door, pki: ForeignPKI) -> None:
    fjord = Fjord(small, pki, revocation=RevocationRule.NONE, pattern="BOAT-[0-9]+")
    fjord.refuses(fjord.root.certify("FERRY-1"), Reason.NAME)
    fjord.meet(fjord.root.certify("BOAT-9"))


def test_a_proxy_passes_on_a_leaf_and_the_path_is_built_from_it(small: Door, pki: ForeignPKI) -> None:
    fjord = Fjord(small, pki, revocation=RevocationRule.NONE)
    der = fjord.root.certify("BOAT-1")
    assert small.meet(der, path=(), actor="proxy:edge").device == "fleet:fjord/BOAT-1"
    # The same names by somebody else: the signature is not theirs.
    stranger = pki.root("stranger")
    small.refuses(stranger.certify("BOAT-1"), Reason.FOREIGN_PATH, path=(), actor="proxy:edge")
    small.refuses(
        fjord.root.certify("sub", "basicConstraints=critical,CA:TRUE\n"), Reason.FOREIGN_PATH, path=()
    )


def test_a_device_that_two_fleets_name_alike_is_two(small: Door, pki: ForeignPKI) -> None:
    fjord = Fjord(small, pki, revocation=RevocationRule.NONE)
    small.meet(made(small.line, "TWIN"))
    assert fjord.meet(fjord.root.certify("TWIN"), place=AWAY).device == "fleet:fjord/TWIN"
    assert (
        small.meet(small.line.the(DeviceCertificate, _serial(small, "serial:TWIN")).der).device
        == "serial:TWIN"
    )


def _serial(door: Door, device: str) -> str:
    found = door.service.store.scan(DeviceCertificate)
    return next(one.serial for one in found if one.device == device)


# --- proxies


def test_only_a_live_proxy_may_ask(small: Door) -> None:
    line = small.line
    proxy = line.enrol(Role.PROXY, "edge-1")
    small.service.carry(require_proxy(proxy.caller, line.clock.now()))
    for other in (line.station, line.operator):
        with pytest.raises(errors.NotPermitted):
            small.service.carry(require_proxy(other.caller, line.clock.now()))
    with pytest.raises(errors.Unauthenticated, match="ended"):
        small.service.carry(require_proxy(proxy.caller, line.clock.now() + timedelta(days=91)))


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing of this is a fault of ours."""
    yield
    assert [one for one in caplog.records if one.levelname == "ERROR"] == []
