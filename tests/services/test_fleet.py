"""Fleet authorities: registered by who holds the key, changed by two, never of another environment (H5)."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from birthmark import errors
from birthmark.adapters.system import SystemEntropy
from birthmark.floor.authorities import Authority
from birthmark.floor.clients import Role
from birthmark.floor.devices import KeyUse
from birthmark.floor.fleet import (
    FieldDevice,
    FieldStatus,
    FirstContact,
    FleetAuthority,
    FleetPolicy,
    FleetStatus,
    ForeignCRL,
    ForeignCRLOctets,
)
from birthmark.floor.proposals import Deed, Proposal
from birthmark.floor.realm import Environment
from birthmark.ports import Act, Decision, Facts
from birthmark.services.acts import outcomes, refuse
from birthmark.services.check import check
from birthmark.services.field_devices import hold_device, resume_device
from birthmark.services.fleet import Fleet
from birthmark.services.foreign_lists import ListTaken, take_crl
from birthmark.services.proposals import Proposals
from tests.support.foreign import ForeignPKI, Issuer
from tests.support.realm import START, Client, Line, make_line, tamper
from tests.support.recalls import sign

POLICY = FleetPolicy(first_contact=FirstContact.REGISTER)


class Harbour:
    """A realm, the fleet of somebody else, and who does what."""

    def __init__(self, line: Line, pki: ForeignPKI) -> None:
        self.line, self.pki, self.anna = line, pki, line.operator
        self.bela = line.enrol(Role.OFFICER, "bela")
        self.fleet = Fleet(line.realm, SystemEntropy())

    def challenge(
        self, issuer: Issuer, name: str = "fjord", *, policy: FleetPolicy = POLICY, by: Client | None = None
    ) -> FleetAuthority:
        caller = (by or self.anna).caller
        return self.line.service.carry(self.fleet.challenge(caller, name, issuer.der, policy))

    def register(
        self, issuer: Issuer, name: str = "fjord", *, shown: bytes | None = None, by: Client | None = None
    ) -> FleetAuthority:
        nonce = self.line.the(FleetAuthority, name).nonce
        octets = shown or issuer.verification(nonce)
        return self.line.service.carry(self.fleet.register((by or self.anna).caller, name, octets))

    def accepted(self, issuer: Issuer, name: str = "fjord") -> FleetAuthority:
        self.challenge(issuer, name)
        return self.register(issuer, name)

    def move(self, status: FleetStatus, *, by: Client | None = None) -> FleetAuthority:
        return self.line.service.carry(self.fleet.move((by or self.anna).caller, "fjord", status, "because"))

    def take(self, crl: bytes, **how: object) -> ListTaken:
        return self.line.service.carry(take_crl(self.anna.caller, "fjord", crl, **how))  # type: ignore[arg-type]  # as the test says

    def proposals(self) -> Proposals:
        service = self.line.service
        return Proposals(service.store.realm, service.authorise, SystemEntropy())

    def propose(self, deed: Deed, **terms: str) -> Proposal:
        service = self.proposals()
        motion = service.draft(self.anna.caller, deed, "fjord", terms, "because")
        return self.line.service.carry(
            service.propose(self.anna.caller, motion, sign(self.anna, motion.encode()))
        )

    def approve(self, proposal: Proposal, *, by: Client | None = None) -> Proposal:
        who = by or self.bela
        return self.line.service.carry(
            self.proposals().approve(who.caller, proposal.id, sign(who, proposal.document))
        )

    def enter(self, *values: object, entries: Sequence[tuple[str, Mapping[str, Any]]] = ()) -> None:
        """Put values and entries on record without a use case."""

        def decide(facts: Facts, _at: datetime) -> Decision[None]:
            for value in values:
                facts.put(value)
            return Decision(None, entries)

        act = Act(actor=self.anna.id, decide=decide, refuse=refuse(None, "test", {}), reads={})
        outcomes(self.line.service.store.submit([act]).result())

    def kinds(self, last: int) -> list[str]:
        return [entry["kind"] for entry in self.line.entries()[-last:]]

    def findings(self) -> list[str]:
        store = self.line.service.store
        return check(store, store.log, store.realm).findings


@pytest.fixture
def harbour(bare_line: Line, tmp_path: Path) -> Harbour:
    return Harbour(bare_line, ForeignPKI(folder=tmp_path / "foreign"))


@pytest.fixture
def port(tmp_path: Path) -> Iterator[Harbour]:
    """In production, on SQLite."""
    line = make_line(tmp_path, f"sqlite:///{tmp_path / 'line.sqlite'}", environment=Environment.PRODUCTION)
    yield Harbour(line, ForeignPKI(folder=tmp_path / "foreign"))
    line.close()


# --- registering


def test_who_shows_the_key_of_an_authority_has_it_registered(harbour: Harbour) -> None:
    root = harbour.pki.root()
    challenged = harbour.challenge(root)
    assert (challenged.status, len(challenged.nonce)) == (FleetStatus.CHALLENGED, 64)
    registered = harbour.register(root)
    assert registered.status is FleetStatus.ACTIVE
    assert FleetPolicy.decode(registered.policy) == POLICY
    assert harbour.kinds(2) == ["fleet-challenged", "fleet-registered"]
    assert harbour.findings() == []


def test_who_does_not_show_the_key_has_nothing_registered(harbour: Harbour) -> None:
    root, other = harbour.pki.root(), harbour.pki.root("other")
    nonce = harbour.challenge(root).nonce
    for shown in (other.verification(nonce), root.verification("ab" * 32)):
        with pytest.raises(errors.ProofFailed):
            harbour.register(root, shown=shown)
        assert harbour.kinds(1) == ["refused"]
    with pytest.raises(errors.MalformedRequest, match="cannot be read"):
        harbour.register(root, shown=b"nothing")
    assert harbour.line.the(FleetAuthority, "fjord").status is FleetStatus.CHALLENGED
    assert harbour.findings() == []


def test_a_nonce_is_good_for_a_day_and_for_one_challenge(harbour: Harbour) -> None:
    root = harbour.pki.root()
    first = harbour.challenge(root)
    shown = root.verification(first.nonce, days=5)
    harbour.line.clock.turn(hours=24)
    with pytest.raises(errors.IllegalTransition, match="challenge it anew"):
        harbour.register(root, shown=shown)
    second = harbour.challenge(root)
    assert second.nonce != first.nonce
    with pytest.raises(errors.ProofFailed, match="not the nonce"):
        harbour.register(root, shown=shown)
    harbour.register(root, shown=root.verification(second.nonce, days=5))
    assert harbour.findings() == []


def test_a_key_is_one_authoritys_for_good(harbour: Harbour) -> None:
    root = harbour.pki.root()
    registered = harbour.accepted(root)
    with pytest.raises(errors.IllegalTransition, match="fleet:fjord's already"):
        harbour.challenge(root, "fjord-2")
    with pytest.raises(errors.IllegalTransition, match="active already"):
        harbour.challenge(root)
    harbour.move(FleetStatus.RETIRED)
    with pytest.raises(errors.IllegalTransition, match="fleet:fjord's already"):
        harbour.challenge(root, "fjord-2")
    with pytest.raises(errors.IllegalTransition, match="another certificate"):
        harbour.challenge(harbour.pki.root("other"))
    again = harbour.accepted(root)
    assert (again.status, again.der) == (FleetStatus.ACTIVE, registered.der)
    assert again.nonce != registered.nonce
    assert harbour.findings() == []


def test_two_names_are_challenged_with_one_key_and_the_first_to_show_it_has_it(harbour: Harbour) -> None:
    root = harbour.pki.root()
    harbour.challenge(root, "one")
    harbour.challenge(root, "two")
    harbour.register(root, "two")
    with pytest.raises(errors.IllegalTransition, match="fleet:two's already"):
        harbour.register(root, "one")
    assert harbour.findings() == []


def test_a_devices_key_is_no_fleet_authoritys(harbour: Harbour) -> None:
    root = harbour.pki.root()
    harbour.line.open_run()
    harbour.line.make("D1")
    (used,) = harbour.line.service.store.scan(KeyUse)
    harbour.accepted(root)
    owners = {one.device for one in harbour.line.service.store.scan(KeyUse)}
    assert owners == {"serial:D1", "fleet:fjord"}
    assert used.device == "serial:D1"
    assert harbour.findings() == []


def test_this_realms_own_root_and_its_authorities_are_not_registered(harbour: Harbour) -> None:
    for own in harbour.line.service.store.scan(Authority):
        with pytest.raises(errors.PolicyRefused) as refused:
            harbour.line.service.carry(harbour.fleet.challenge(harbour.anna.caller, "own", own.der, POLICY))
        assert refused.value.rule == "own-key"


def test_no_name_of_this_realms_is_anybody_elses_however_it_is_written(harbour: Harbour) -> None:
    """In a handshake an issuer is found by its name: who has ours shuts our devices out."""
    for number, own in enumerate(harbour.line.service.store.scan(Authority)):
        said = x509.load_der_x509_certificate(own.der).subject
        subject = "".join(f"/{one.rfc4514_attribute_name}={str(one.value).upper()} " for one in said)
        with pytest.raises(errors.PolicyRefused, match="the name of an authority of this realm") as refused:
            harbour.challenge(harbour.pki.root(f"evil-{number}", subject=subject), "evil")
        assert refused.value.rule == "own-name"
    assert list(harbour.line.service.store.scan(FleetAuthority)) == []


def test_two_fleets_have_two_names(harbour: Harbour) -> None:
    first, second = harbour.pki.root(), harbour.pki.root("second")
    harbour.challenge(second, "two")
    harbour.accepted(first)
    taken = "is the name of fleet authority fjord"
    with pytest.raises(errors.IllegalTransition, match=taken):
        harbour.register(second, "two")
    with pytest.raises(errors.IllegalTransition, match=taken):
        harbour.challenge(second, "two")
    harbour.move(FleetStatus.RETIRED)
    assert harbour.accepted(second, "two").status is FleetStatus.ACTIVE
    assert harbour.findings() == []


@pytest.mark.parametrize("name", ["", "a/b", ".x", "é", "x" * 65, "fleet:x"])
def test_a_name_can_stand_in_ids(small_line: Line, tmp_path: Path, name: str) -> None:
    harbour = Harbour(small_line, ForeignPKI(folder=tmp_path / "foreign"))
    with pytest.raises(errors.MalformedRequest, match="fleet authority's name"):
        harbour.challenge(harbour.pki.root(), name)


def test_what_is_no_certificate_is_a_refusal_on_record(harbour: Harbour) -> None:
    with pytest.raises(errors.MalformedRequest):
        harbour.line.service.carry(harbour.fleet.challenge(harbour.anna.caller, "x", b"\x30\x00", POLICY))
    assert harbour.kinds(1) == ["refused"]


# --- realms


def test_what_a_test_realm_certifies_is_not_registered_in_production(port: Harbour) -> None:
    for number, subject in enumerate(("/O=Fjord/CN=Fjord Root TEST", "/CN=fjord root test")):
        with pytest.raises(errors.PolicyRefused) as refused:
            port.challenge(port.pki.root(f"r{number}", subject=subject))
        assert refused.value.rule == "wrong-realm"
    under = port.pki.root("marked", subject="/CN=Root TEST").below("sub")
    with pytest.raises(errors.PolicyRefused, match="test realm's"):
        port.challenge(under)
    assert port.kinds(1) == ["refused"]
    assert port.findings() == []


def test_in_a_test_realm_it_is(harbour: Harbour) -> None:
    assert harbour.accepted(harbour.pki.root(subject="/CN=Fjord Root TEST")).status is FleetStatus.ACTIVE


# --- two people


def test_in_production_two_people_register_an_authority(port: Harbour) -> None:
    root = port.pki.root()
    challenged = port.challenge(root)
    shown = root.verification(challenged.nonce, days=3)
    with pytest.raises(errors.NotPermitted, match="by two people"):
        port.register(root, shown=shown)
    proposed = port.propose(Deed.REGISTER_FLEET, verification=shown.hex(), policy=challenged.policy)
    assert port.line.the(FleetAuthority, "fjord").status is FleetStatus.CHALLENGED
    with pytest.raises(errors.NotPermitted, match="it takes two"):
        port.approve(proposed, by=port.anna)
    port.line.clock.turn(hours=23)
    port.approve(proposed)
    assert port.line.the(FleetAuthority, "fjord").status is FleetStatus.ACTIVE
    assert port.kinds(2) == ["proposal-approved", "fleet-registered"]
    assert port.findings() == []


def test_what_does_not_show_the_key_cannot_even_be_proposed(port: Harbour) -> None:
    root, other = port.pki.root(), port.pki.root("other")
    challenged = port.challenge(root)
    shown = other.verification(challenged.nonce)
    with pytest.raises(errors.ProofFailed):
        port.propose(Deed.REGISTER_FLEET, verification=shown.hex(), policy=challenged.policy)
    good = root.verification(challenged.nonce).hex()
    with pytest.raises(errors.IllegalTransition, match="policy"):
        port.propose(Deed.REGISTER_FLEET, verification=good, policy=FleetPolicy().encode())
    for terms in ({"verification": good}, {"verification": "zz", "policy": challenged.policy}, {}):
        with pytest.raises(errors.MalformedRequest):
            port.propose(Deed.REGISTER_FLEET, **terms)
    assert port.findings() == []


def test_a_registration_that_was_challenged_anew_meanwhile_is_not_approved(port: Harbour) -> None:
    root = port.pki.root()
    challenged = port.challenge(root)
    shown = root.verification(challenged.nonce)
    proposed = port.propose(Deed.REGISTER_FLEET, verification=shown.hex(), policy=challenged.policy)
    port.challenge(root)
    with pytest.raises(errors.ProofFailed, match="not the nonce"):
        port.approve(proposed)
    assert port.findings() == []


def production(port: Harbour) -> None:
    root = port.pki.root()
    challenged = port.challenge(root)
    shown = root.verification(challenged.nonce)
    port.approve(port.propose(Deed.REGISTER_FLEET, verification=shown.hex(), policy=challenged.policy))


def test_one_person_suspends_and_two_resume_change_and_retire(port: Harbour) -> None:
    production(port)
    assert port.move(FleetStatus.SUSPENDED).status is FleetStatus.SUSPENDED
    for status in (FleetStatus.ACTIVE, FleetStatus.RETIRED):
        with pytest.raises(errors.NotPermitted, match="by two people"):
            port.move(status)
    with pytest.raises(errors.NotPermitted, match="by two people"):
        port.line.service.carry(port.fleet.change(port.anna.caller, "fjord", FleetPolicy(), "because"))
    port.approve(port.propose(Deed.CHANGE_FLEET, status="active"))
    assert port.line.the(FleetAuthority, "fjord").status is FleetStatus.ACTIVE
    port.approve(port.propose(Deed.CHANGE_FLEET, policy=FleetPolicy().encode()))
    assert port.line.the(FleetAuthority, "fjord").policy == FleetPolicy().encode()
    port.approve(port.propose(Deed.CHANGE_FLEET, status="retired"))
    assert port.line.the(FleetAuthority, "fjord").status is FleetStatus.RETIRED
    for terms in ({"status": "lost"}, {"policy": "{}"}, {"status": "active", "policy": "x"}, {}):
        with pytest.raises(errors.MalformedRequest):
            port.propose(Deed.CHANGE_FLEET, **terms)
    assert port.findings() == []


def test_what_one_person_did_behind_the_programs_back_is_found(port: Harbour) -> None:
    production(port)
    entry = {"fleet_authority": "fjord", "reason": "because"}
    port.enter(entries=[("fleet-suspended", entry), ("fleet-resumed", entry)])
    assert any("fleet-resumed of fjord by operator:anna" in one for one in port.findings())


# --- changing


def test_a_policy_changes_and_statuses_go_only_where_they_may(harbour: Harbour) -> None:
    root = harbour.pki.root()
    harbour.challenge(root)
    with pytest.raises(errors.IllegalTransition, match="not registered"):
        harbour.move(FleetStatus.SUSPENDED)
    harbour.register(root)
    carry, fleet, anna = harbour.line.service.carry, harbour.fleet, harbour.anna.caller
    changed = carry(fleet.change(anna, "fjord", FleetPolicy(), "stricter"))
    assert FleetPolicy.decode(changed.policy) == FleetPolicy()
    with pytest.raises(errors.IllegalTransition, match="already"):
        carry(fleet.change(anna, "fjord", FleetPolicy(), "again"))
    with pytest.raises(errors.IllegalTransition, match="is active"):
        harbour.move(FleetStatus.ACTIVE)
    harbour.move(FleetStatus.SUSPENDED)
    harbour.move(FleetStatus.ACTIVE)
    harbour.move(FleetStatus.RETIRED)
    for status in (FleetStatus.ACTIVE, FleetStatus.SUSPENDED, FleetStatus.RETIRED):
        with pytest.raises(errors.IllegalTransition, match="is retired"):
            harbour.move(status)
    with pytest.raises(errors.IllegalTransition, match="is retired"):
        carry(fleet.change(anna, "fjord", POLICY, "too late"))
    with pytest.raises(errors.NotFound):
        carry(fleet.change(anna, "nobody", POLICY, "because"))
    assert harbour.findings() == []


@pytest.mark.parametrize("role", [Role.OPERATOR, Role.LINE_LEAD, Role.AUDITOR, Role.STATION])
def test_only_officers_change_the_fleet(small_line: Line, tmp_path: Path, role: Role) -> None:
    harbour = Harbour(small_line, ForeignPKI(folder=tmp_path / "foreign"))
    root, who = harbour.pki.root(), small_line.enrol(role, "zoe")
    with pytest.raises(errors.NotPermitted, match="may not change-fleet"):
        harbour.challenge(root, by=who)
    harbour.challenge(root)
    with pytest.raises(errors.NotPermitted, match="may not change-fleet"):
        harbour.register(root, by=who)
    harbour.register(root)
    with pytest.raises(errors.NotPermitted, match="may not change-fleet"):
        harbour.move(FleetStatus.SUSPENDED, by=who)
    with pytest.raises(errors.NotPermitted, match="may not change-fleet"):
        small_line.service.carry(take_crl(who.caller, "fjord", root.list()))


# --- CRLs


def test_a_crl_is_taken_in_once_and_numbers_never_go_back(harbour: Harbour) -> None:
    root = harbour.pki.root()
    harbour.accepted(root)
    old, new = root.list(), root.list()
    taken = harbour.take(new)
    assert (taken.new, taken.crl.number, taken.crl.entries) == (True, "1001", 0)
    assert harbour.kinds(1) == ["foreign-crl-taken"]
    size = harbour.line.size()
    assert not harbour.take(new).new
    assert harbour.line.size() == size, "nothing new is no entry"
    with pytest.raises(errors.PolicyRefused) as refused:
        harbour.take(old)
    assert refused.value.rule == "crl-number"
    (root.folder / "crlnumber").write_text("1001\n")
    root.certify("d1")
    root.revoke("d1")
    with pytest.raises(errors.PolicyRefused, match="numbers grow"):
        harbour.take(root.list())
    assert harbour.take(root.list()).crl.entries == 1
    assert harbour.findings() == []


def test_a_crl_of_another_or_another_time_is_not_taken_in(harbour: Harbour) -> None:
    root, other = harbour.pki.root(), harbour.pki.root("other")
    with pytest.raises(errors.NotFound):
        harbour.take(root.list())
    harbour.challenge(root)
    with pytest.raises(errors.IllegalTransition, match="not registered"):
        harbour.take(root.list())
    harbour.register(root)
    with pytest.raises(errors.PolicyRefused, match="not signed with the key"):
        harbour.take(other.list())
    assert harbour.kinds(1) == ["refused"]
    with pytest.raises(errors.MalformedRequest):
        harbour.take(b"no crl")
    crl = root.list()
    harbour.line.clock.turn(days=8)
    with pytest.raises(errors.PolicyRefused) as refused:
        harbour.take(crl)
    assert refused.value.rule == "crl-window"
    harbour.move(FleetStatus.RETIRED)
    with pytest.raises(errors.IllegalTransition, match="retired"):
        harbour.take(root.list(at=harbour.line.clock.at))
    assert harbour.line.get(ForeignCRL, "fjord") is None
    assert harbour.findings() == []


def test_an_authority_below_has_a_crl_of_its_own(harbour: Harbour) -> None:
    root = harbour.pki.root()
    sub, stranger = root.below("sub"), harbour.pki.root("stranger").below("sub-2")
    harbour.accepted(root)
    taken = harbour.take(sub.list(), issuer=sub.der, url="http://crl.example/sub.crl")
    assert taken.crl.id.startswith("fjord/")
    assert (taken.crl.authority, taken.crl.issuer) == ("fjord", sub.der)
    harbour.take(root.list())
    assert len(list(harbour.line.service.store.scan(ForeignCRL))) == 2
    with pytest.raises(errors.PolicyRefused, match="do not lead to the fleet authority"):
        harbour.take(stranger.list(), issuer=stranger.der)
    for url in ("https://crl.example/x", "http://user@crl.example/x", "file:///etc/passwd", "http://"):
        with pytest.raises(errors.MalformedRequest, match="fetched by http"):
            harbour.take(sub.list(), issuer=sub.der, url=url)
    with pytest.raises(errors.MalformedRequest, match="says its policy"):
        harbour.take(root.list(), url="http://crl.example/root.crl")
    assert harbour.findings() == []


# --- what check finds


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("UPDATE fleet_authority SET status = 'suspended'", "fleet authority fjord is not what the log says"),
        ("UPDATE fleet_authority SET nonce = 'ab'", "fleet authority fjord is not what the log says"),
        ("UPDATE fleet_authority SET policy = ''", "fleet authority fjord is not what the log says"),
        ("UPDATE fleet_authority SET verification = der", "fleet authority fjord is not what the log says"),
        ("DELETE FROM fleet_authority", "the log speaks of fleet authority fjord; it is gone"),
        ("UPDATE foreign_crl SET number = 'ffff'", "the CRL fjord is not what the log says"),
        ("UPDATE foreign_crl SET next_update = next_update + 1000", "the CRL fjord is not what the log says"),
        ("UPDATE foreign_crl_octets SET der = sha256_of_nothing", "the octets of the CRL fjord are others"),
        ("DELETE FROM foreign_crl_octets", "the CRL fjord has no octets"),
        ("DELETE FROM foreign_crl", "the log says a CRL fjord was taken in; it is gone"),
        ("DELETE FROM key_use", "the key of fleet:fjord is not kept as its own"),
    ],
)
def test_what_is_changed_behind_the_programs_back_is_found(
    harbour: Harbour, statement: str, found: str
) -> None:
    root = harbour.pki.root()
    harbour.accepted(root)
    harbour.take(root.list())
    assert harbour.findings() == []
    empty = (b"\x30\x00",) if "sha256_of_nothing" in statement else ()
    tamper(harbour.line.url, (statement.replace("sha256_of_nothing", "%s"), empty))
    assert any(found in one for one in harbour.findings()), harbour.findings()


# --- devices in the field


def met(line: Line, name: str) -> FieldDevice:
    return FieldDevice(
        id=name,
        authority="",
        certificate="00",
        status=FieldStatus.ACTIVE,
        reason=None,
        place="192.0.2.1",
        moved_at=START,
        moves=3,
        counted_from=START,
        first_seen_at=START,
        first_seen_leaf=line.size(),
    )


def test_a_device_in_the_field_is_held_and_let_go_on_by_who_may(harbour: Harbour) -> None:
    line, lena = harbour.line, harbour.line.enrol(Role.LINE_LEAD, "lena")
    device = met(line, "serial:D9")
    harbour.enter(device)
    olga = line.enrol(Role.OPERATOR, "olga")
    with pytest.raises(errors.NotPermitted, match="may not meet-devices"):
        line.service.carry(hold_device(olga.caller, device.id, "stolen"))
    held = line.service.carry(hold_device(lena.caller, device.id, "stolen"))
    assert (held.status, held.reason) == (FieldStatus.HELD, "stolen")
    with pytest.raises(errors.IllegalTransition, match="held already"):
        line.service.carry(hold_device(lena.caller, device.id, "stolen"))
    line.clock.turn(minutes=5)
    again = line.service.carry(resume_device(lena.caller, device.id, "found"))
    assert (again.status, again.reason, again.moves) == (FieldStatus.ACTIVE, None, 0)
    assert again.moved_at == line.clock.at, "connections from before are not its own"
    with pytest.raises(errors.IllegalTransition, match="active already"):
        line.service.carry(resume_device(lena.caller, device.id, "found"))
    with pytest.raises(errors.NotFound, match="has not met"):
        line.service.carry(hold_device(lena.caller, "serial:X", "stolen"))
    assert [one["kind"] for one in line.entries() if one["kind"].startswith("field-")] == [
        "field-device-held",
        "field-device-resumed",
    ]


def test_octets_and_row_of_a_crl_change_together(harbour: Harbour) -> None:
    root = harbour.pki.root()
    harbour.accepted(root)
    for _ in range(2):
        harbour.take(root.list())
        row, octets = harbour.line.the(ForeignCRL, "fjord"), harbour.line.the(ForeignCRLOctets, "fjord")
        assert row.sha256 == octets.sha256
