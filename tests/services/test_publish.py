"""What is published: CRLs by partition, certificates, the log, and the alarms (SPEC F2, F4)."""

import hashlib
import json
import threading
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from birthmark import errors
from birthmark.adapters.publication import PublicationDirectory
from birthmark.adapters.softkeys import SoftwareKeyStore
from birthmark.floor.authorities import Authority, AuthorityStatus
from birthmark.floor.devices import Attempt, DeviceCertificate
from birthmark.floor.locations import Locations
from birthmark.floor.revocations import Partitioning
from birthmark.ledger.checkpoint import open_note
from birthmark.ledger.merkle import leaf_hash
from birthmark.pki import crl
from birthmark.pki.issuer import Issuer
from birthmark.pki.keys import KeyLabel
from birthmark.pki.revocation import ReasonCode, revoked_entry
from birthmark.ports import Act, Decision, Facts, KeyStore
from birthmark.services.acts import refuse
from birthmark.services.check import check
from birthmark.services.publish import PublicationTerms, Publish
from birthmark.services.revocations import line_of, reinstate, revoke
from tests.support.checkers.openssl import crl_verdict
from tests.support.checkers.values import Chain, Status
from tests.support.realm import PASSPHRASE, ROOT, Line, hierarchy

PKI = Locations("http://pki.example.com")
TERMS: dict[str, Any] = {
    "locations": PKI,
    "crl_validity": timedelta(hours=48),
    "crl_refresh": timedelta(hours=12),
    "crl_alarm": timedelta(hours=24),
    "offline_alarm": timedelta(days=14),
    "behind": timedelta(minutes=15),
    "partitions": True,
    "log_entries": False,
}


def publisher(line: Line, www: Path, keys: KeyStore | None = None, **terms: Any) -> Publish:
    return Publish(
        realm=line.realm,
        store=line.service.store,
        log=line.service.store.log,
        keys=keys or line.keys,
        clock=line.clock,
        publication=PublicationDirectory(www),
        terms=PublicationTerms(**(TERMS | terms)),
    )


def made(line: Line, name: str, run: str = "R1") -> DeviceCertificate:
    """Make a device and return its certificate."""
    attempt = line.the(Attempt, line.make(name, run=run).attempt)
    return line.the(DeviceCertificate, attempt.certificate)


def mark(line: Line, certificate: DeviceCertificate, reason: ReasonCode) -> None:
    """Revoke, suspend, or (removeFromCRL) reinstate, as a recall does."""
    kinds = {ReasonCode.CERTIFICATE_HOLD: "suspended", ReasonCode.REMOVE_FROM_CRL: "reinstated"}

    def decide(facts: Facts, at: datetime) -> Decision[None]:
        if reason is ReasonCode.REMOVE_FROM_CRL:
            assert reinstate(facts, line_of(certificate), at, "test")
        else:
            assert revoke(facts, line_of(certificate), reason, at, "test")
        entry = {"certificates": [certificate.serial], "reason": str(reason)}
        return Decision(None, [(f"certificates-{kinds.get(reason, 'revoked')}", entry)])

    act = Act(actor="operator:anna", decide=decide, refuse=refuse(None, "test", {}), reads={})
    assert line.service.store.submit([act]).result()[0].answer is None


def listed(www: Path, path: str) -> dict[int, x509.RevokedCertificate]:
    read = x509.load_der_x509_crl((www / path).read_bytes())
    return {one.serial_number: one for one in read}


def number(www: Path, path: str) -> int:
    return crl.read_crl((www / path).read_bytes()).number


@pytest.fixture
def batches(line: Line) -> Line:
    """A line with two runs whose certificates have CRLs of their own."""
    for run, partitioning, partition in (
        ("RB", Partitioning.BATCH, "batch.B-1"),
        ("RR", Partitioning.RUN, "run.RR"),
    ):
        variables = {"hardware_type": "1.3.6.1.4.1.32473.1", "crl_url": PKI.crl("issuing-1", partition)}
        line.open_run(run, profile="ldevid", batch="B-1", partitioning=partitioning, variables=variables)
    return line


def test_every_revocation_is_on_the_full_crl_and_on_that_of_its_own_partition_only(
    batches: Line, tmp_path: Path
) -> None:
    """SPEC F2."""
    line, www = batches, tmp_path / "www"
    plain, batch, run = made(line, "A1"), made(line, "A2", "RB"), made(line, "A3", "RR")
    good = made(line, "A4", "RB")
    for certificate, reason in (
        (plain, ReasonCode.SUPERSEDED),
        (batch, ReasonCode.KEY_COMPROMISE),
        (run, ReasonCode.CERTIFICATE_HOLD),
    ):
        mark(line, certificate, reason)
    report = publisher(line, www).cycle()
    assert [one.path for one in report.built] == [
        "crl/issuing-1/batch.B-1.crl",
        "crl/issuing-1/run.RR.crl",
        "crl/issuing-1.crl",
    ]
    assert set(listed(www, "crl/issuing-1.crl")) == {int(one.serial, 16) for one in (plain, batch, run)}
    assert set(listed(www, "crl/issuing-1/batch.B-1.crl")) == {int(batch.serial, 16)}
    assert set(listed(www, "crl/issuing-1/run.RR.crl")) == {int(run.serial, 16)}
    partition = x509.load_der_x509_crl((www / "crl/issuing-1/batch.B-1.crl").read_bytes())
    point = partition.extensions.get_extension_for_class(x509.IssuingDistributionPoint)
    assert point.critical
    assert point.value.only_contains_user_certs
    assert point.value.full_name is not None
    assert point.value.full_name[0].value == PKI.crl("issuing-1", "batch.B-1")
    at = line.clock.at + timedelta(minutes=1)
    full = [(www / "crl/issuing-1.crl").read_bytes()]
    for certificate, status in ((plain, Status.REVOKED), (run, Status.REVOKED), (good, Status.GOOD)):
        chain = Chain(leaf=certificate.der, between=(hierarchy().issuing,), root=hierarchy().root)
        assert crl_verdict(chain, full, tmp_path, at=at).status is status


def test_only_what_changed_or_is_due_is_made_anew(batches: Line, tmp_path: Path) -> None:
    """SPEC F2: one more revocation in a batch costs the batch's CRL and the full one."""
    line, www = batches, tmp_path / "www"
    publish = publisher(line, www)
    assert len(publish.cycle().built) == 3
    line.clock.turn(minutes=1)
    made(line, "A1")
    assert publish.cycle().built == ()
    certificate = made(line, "A2", "RB")
    mark(line, certificate, ReasonCode.KEY_COMPROMISE)
    line.clock.turn(minutes=1)
    assert [one.partition for one in publish.cycle().built] == ["batch.B-1", "all"]
    line.clock.turn(minutes=1)
    made(line, "A3")
    assert publish.cycle().built == ()
    line.clock.turn(hours=12)
    assert len(publish.cycle().built) == 3
    # Another process knows from what is published.
    assert publisher(line, www).cycle().built == ()


def test_a_lifted_suspension_leaves_the_crl_whatever_else_changed(batches: Line, tmp_path: Path) -> None:
    """SPEC F1, F2: as many octets as before, and other ones."""
    line, www = batches, tmp_path / "www"
    one, other = made(line, "A1", "RB"), made(line, "A2", "RB")
    mark(line, one, ReasonCode.CERTIFICATE_HOLD)
    publish = publisher(line, www)
    publish.cycle()
    path, before = "crl/issuing-1/batch.B-1.crl", number(www, "crl/issuing-1/batch.B-1.crl")
    line.clock.turn(seconds=1)
    mark(line, one, ReasonCode.REMOVE_FROM_CRL)
    mark(line, other, ReasonCode.CERTIFICATE_HOLD)
    publish.cycle()
    assert set(listed(www, path)) == {int(other.serial, 16)}
    line.clock.turn(seconds=1)
    mark(line, other, ReasonCode.KEY_COMPROMISE)
    publish.cycle()
    reason = listed(www, path)[int(other.serial, 16)].extensions.get_extension_for_class(x509.CRLReason)
    assert reason.value.reason is x509.ReasonFlags.key_compromise
    assert number(www, path) > before


def test_what_is_revoked_in_the_millisecond_of_a_cycle_is_not_forgotten(line: Line, tmp_path: Path) -> None:
    """SPEC F2: the clock stands still, so every train has the same time."""
    www = tmp_path / "www"
    publish = publisher(line, www)
    one, other = made(line, "A1"), made(line, "A2")
    mark(line, one, ReasonCode.SUPERSEDED)
    line.clock.turn(seconds=1)
    publish.cycle()
    line.clock.turn(seconds=-1)
    mark(line, other, ReasonCode.SUPERSEDED)
    line.clock.turn(seconds=2)
    publish.cycle()
    assert set(listed(www, "crl/issuing-1.crl")) == {int(one.serial, 16), int(other.serial, 16)}


def test_a_clock_that_went_back_is_an_alarm_and_no_smaller_crl(line: Line, tmp_path: Path) -> None:
    """SPEC F2: CRLNumber only grows."""
    www = tmp_path / "www"
    publish = publisher(line, www)
    publish.cycle()
    before = (www / "crl/issuing-1.crl").read_bytes()
    mark(line, made(line, "A1"), ReasonCode.SUPERSEDED)
    line.clock.turn(seconds=-2)
    report = publish.cycle()
    assert [(alarm.kind, alarm.number) for alarm in report.alarms] == [
        ("crl-failed", crl.read_crl(before).number)
    ]
    assert "the clock has gone back" in report.alarms[0].detail
    assert (www / "crl/issuing-1.crl").read_bytes() == before
    line.clock.turn(seconds=10)
    assert len(publish.cycle().built) == 1  # not forgotten
    assert len(listed(www, "crl/issuing-1.crl")) == 1


def test_a_crl_that_is_not_replaced_is_an_alarm_a_day_before_it_ends_and_logged_once(
    batches: Line, tmp_path: Path
) -> None:
    """SPEC F2: the alarm comes before nextUpdate, not after."""
    line, www = batches, tmp_path / "www"
    publish = publisher(line, www)
    publish.cycle()
    line.clock.turn(hours=23, minutes=59)
    assert publish.check().alarms == ()
    line.clock.turn(minutes=1)
    late = publish.check().alarms
    assert [(alarm.kind, alarm.partition) for alarm in late] == [
        ("crl-late", "batch.B-1"),
        ("crl-late", "run.RR"),
        ("crl-late", "all"),
    ]
    # Only a cycle puts them on record; the keys are gone, so it makes none anew.
    keyless = {"keys": SoftwareKeyStore.open(tmp_path / "keys", PASSPHRASE)}
    publisher(line, www, **keyless).cycle()
    publisher(line, www, **keyless).cycle()
    publish.check()
    entries = [entry for entry in line.entries() if entry["kind"] == "crl-late"]
    assert [entry["partition"] for entry in entries] == ["batch.B-1", "run.RR", "all"]
    assert entries[2]["crl_number"] == str(number(www, "crl/issuing-1.crl"))
    assert publish.cycle().alarms == ()
    assert check(line.service.store, line.service.store.log, line.realm).ok


def test_a_missing_crl_and_an_unpublished_revocation_are_alarms(line: Line, tmp_path: Path) -> None:
    """SPEC F2."""
    www = tmp_path / "www"
    publish = publisher(line, www)
    assert [alarm.kind for alarm in publish.check().alarms] == ["crl-missing"]
    publish.cycle()
    mark(line, made(line, "A1"), ReasonCode.SUPERSEDED)
    line.clock.turn(minutes=14)
    assert publish.check().alarms == ()
    line.clock.turn(minutes=2)
    assert [alarm.kind for alarm in publish.check().alarms] == ["crl-behind"]
    (www / "crl/issuing-1.crl").unlink()
    assert {alarm.kind for alarm in publish.check().alarms} == {"crl-missing", "crl-behind"}


def test_a_crl_that_cannot_be_made_is_an_alarm_and_the_others_are_published(
    batches: Line, tmp_path: Path
) -> None:
    """SPEC F2."""
    line, www = batches, tmp_path / "www"
    (www / "crl/issuing-1/run.RR.crl").mkdir(parents=True)
    report = publisher(line, www).cycle()
    assert [(alarm.kind, alarm.partition) for alarm in report.alarms] == [
        ("crl-failed", "run.RR"),
        ("crl-missing", "run.RR"),
    ]
    assert len(report.built) == 2


def test_without_the_authoritys_key_nothing_is_published_and_all_is_told(line: Line, tmp_path: Path) -> None:
    """SPEC F2."""
    publish = publisher(line, tmp_path, keys=SoftwareKeyStore.open(tmp_path / "keys", PASSPHRASE))
    assert [alarm.kind for alarm in publish.cycle().alarms] == ["crl-failed", "crl-missing"]
    assert not (tmp_path / "crl").exists()


def test_a_suspended_and_a_retired_authority_go_on_signing_their_crls(line: Line, tmp_path: Path) -> None:
    """SPEC A5, F2."""
    certificate = made(line, "A1")
    for status in (AuthorityStatus.SUSPENDED, AuthorityStatus.RETIRED):
        line.service.carry(
            line.service.authorise.change(line.operator.caller, "issuing-1", status, "rollover")
        )
        line.clock.turn(hours=13)
        assert len(publisher(line, tmp_path / "www").cycle().built) == 1
    assert certificate.authority == "issuing-1"


def test_the_record_that_was_put_back_is_not_published(line: Line, tmp_path: Path) -> None:
    """SPEC E4: what was revoked since would be good again."""
    www = tmp_path / "www"
    publish = publisher(line, www)
    publish.cycle()
    index = json.loads((www / "index.json").read_text())
    index["record"]["size"] += 1
    (www / "index.json").write_text(json.dumps(index))
    with pytest.raises(errors.IntegrityFailure, match="put back"):
        publish.cycle()


# --- offline authorities


def root_crl(line: Line, *revoked: int, **terms: Any) -> bytes:
    values: dict[str, Any] = {
        "issuer": Issuer.from_certificate(ROOT, hierarchy().root),
        "scope": crl.CRLScope(),
        "number": crl.crl_number(line.clock.at),
        "this_update": line.clock.at,
        "next_update": line.clock.at + timedelta(days=90),
    }
    entries = [revoked_entry(serial, line.clock.at, ReasonCode.CESSATION_OF_OPERATION) for serial in revoked]
    return crl.assemble_crl(crl.CRLTerms(**(values | terms)), entries, line.keys.sign)


def test_a_crl_from_a_ceremony_is_published_if_it_is_newer_current_and_complete(
    line: Line, tmp_path: Path
) -> None:
    """SPEC A3, F2."""
    www = tmp_path / "www"
    publish = publisher(line, www)
    octets = root_crl(line)
    assert publish.take_in(octets).path == "crl/root.crl"
    assert (www / "crl/root.crl").read_bytes() == octets
    with pytest.raises(errors.PolicyRefused, match="gone back, or the list is an old one"):
        publish.take_in(octets)
    ended = {
        "this_update": line.clock.at - timedelta(days=2),
        "next_update": line.clock.at - timedelta(days=1),
    }
    limited = crl.CRLScope(covers=crl.Covers.AUTHORITIES)
    ahead = {"this_update": line.clock.at + timedelta(hours=1)}
    for wrong, rule in ((ended, "crl-current"), (ahead, "crl-current"), ({"scope": limited}, "crl-full")):
        with pytest.raises(errors.PolicyRefused) as refused:
            publish.take_in(root_crl(line, **wrong))
        assert refused.value.rule == rule
    foreign = Issuer.from_certificate(KeyLabel("issuing-1"), hierarchy().issuing)
    with pytest.raises(errors.IntegrityFailure):
        publish.take_in(root_crl(line, issuer=foreign))
    broken = bytearray(octets)
    broken[-1] ^= 1
    with pytest.raises(errors.IntegrityFailure):
        publish.take_in(bytes(broken))


def test_an_offline_crl_that_lacks_what_is_on_record_is_refused_and_its_lateness_told_weeks_before(
    line: Line, tmp_path: Path
) -> None:
    """SPEC F2: a ceremony has to be called in time."""
    www = tmp_path / "www"
    publish = publisher(line, www)
    publish.take_in(root_crl(line))
    publish.cycle()
    issuing = line.the(Authority, "issuing-1")

    def decide(facts: Facts, at: datetime) -> Decision[None]:
        revoke(facts, line_of(issuing), ReasonCode.CESSATION_OF_OPERATION, at, "test")
        return Decision(None, [("authority-noted", {})])

    line.clock.turn(minutes=1)
    act = Act(actor="operator:anna", decide=decide, refuse=refuse(None, "test", {}), reads={})
    line.service.store.submit([act]).result()
    line.clock.turn(minutes=20)
    publish.cycle()
    assert [(alarm.kind, alarm.authority) for alarm in publish.check().alarms] == [("crl-behind", "root")]
    with pytest.raises(errors.PolicyRefused, match="is revoked and not on it"):
        publish.take_in(root_crl(line))
    serial = x509.load_der_x509_certificate(issuing.der).serial_number
    publish.take_in(root_crl(line, serial))
    assert publish.check().alarms == ()
    line.clock.turn(days=77)
    assert ("crl-late", "root") in [(alarm.kind, alarm.authority) for alarm in publish.cycle().alarms]


# --- the log


def test_tiles_and_checkpoint_lead_to_the_logs_root(line: Line, tmp_path: Path) -> None:
    """SPEC E3, F4: C2SP tlog-tiles; tiles of the published checkpoint are all there."""
    www = tmp_path / "www"
    publish = publisher(line, www, log_entries=True)
    for round_ in range(3):
        for index in range(60):
            line.make(f"D{round_}X{index}")
        publish.cycle()
        checkpoint = open_note((www / "log/checkpoint").read_text(), line.vkey)
        assert checkpoint.size == line.size()
        full, width = divmod(checkpoint.size, 256)
        leaves = b"".join((www / f"log/tile/0/{n:03d}").read_bytes() for n in range(full))
        leaves += (www / f"log/tile/0/{full:03d}.p/{width}").read_bytes() if width else b""
        assert [leaves[at : at + 32] for at in range(0, len(leaves), 32)] == [
            leaf_hash(one.entry) for one in line.service.store.log.entries()
        ]
        for n in range(full):
            assert not (www / f"log/tile/0/{n:03d}.p").exists()
    bundle = (www / "log/tile/entries/000").read_bytes()
    assert bundle[2 : 2 + int.from_bytes(bundle[:2], "big")] == next(line.service.store.log.entries()).entry


def test_what_the_entries_say_is_published_only_where_that_is_wanted(line: Line, tmp_path: Path) -> None:
    """SPEC F4: the hashes are for everyone, the devices are not."""
    publisher(line, tmp_path / "www").cycle()
    assert (tmp_path / "www/log/tile/0").is_dir()
    assert not (tmp_path / "www/log/tile/entries").exists()


def test_certificates_and_index_say_what_is_there(line: Line, tmp_path: Path) -> None:
    """SPEC F4."""
    www = tmp_path / "www"
    assert publisher(line, www).cycle().certificates == 2
    assert (www / "ca/root.cer").read_bytes() == hierarchy().root
    (entry,) = json.loads((www / "index.json").read_text())["crls"]
    octets = (www / entry["path"]).read_bytes()
    assert (entry["octets"], entry["sha256"]) == (len(octets), hashlib.sha256(octets).hexdigest())


# --- what is no list of ours


def test_only_a_crl_that_is_signed_here_can_be_made_out_of_turn(batches: Line, tmp_path: Path) -> None:
    """SPEC F2: no partition that there is none of, and no authority whose key is elsewhere."""
    line, www = batches, tmp_path / "www"
    publish = publisher(line, www)
    publish.cycle()
    before = (www / "crl/issuing-1.crl").read_bytes()
    line.clock.turn(seconds=1)
    for authority, partition in (
        ("issuing-1", "clients"),
        ("issuing-1", "authorities"),
        ("issuing-1", "batch.B-9"),
        ("issuing-1", "delta"),
        ("root", "all"),
        ("nobody", "all"),
    ):
        with pytest.raises(errors.NotFound, match="is signed here"):
            publish.make(authority, partition)
    assert (www / "crl/issuing-1.crl").read_bytes() == before
    assert not (www / "crl/root.crl").exists()
    assert publish.make("issuing-1", "batch.B-1").path == "crl/issuing-1/batch.B-1.crl"
    assert publish.make("issuing-1", "all").number > crl.read_crl(before).number


@pytest.mark.parametrize(("name", "der"), [(".ca", None), ("..", None), ("a.delta", None), ("odd", b"no")])
def test_an_authority_that_cannot_be_published_is_an_alarm_and_stops_no_other(
    line: Line, tmp_path: Path, name: str, der: bytes | None
) -> None:
    """SPEC F2, F4."""
    root, www = line.the(Authority, "root"), tmp_path / "www"
    bad = replace(root, id=name, der=der or root.der)

    def decide(facts: Facts, _at: datetime) -> Decision[None]:
        facts.put(bad)
        return Decision(None, [("authority-noted", {})])

    act = Act(actor="operator:anna", decide=decide, refuse=refuse(None, "test", {}), reads={})
    line.service.store.submit([act]).result()
    mark(line, made(line, "A1"), ReasonCode.SUPERSEDED)
    publish = publisher(line, www)
    report = publish.cycle()
    assert [(alarm.kind, alarm.authority) for alarm in report.alarms] == [("crl-failed", name)]
    assert [one.path for one in report.built] == ["crl/issuing-1.crl"]
    assert report.certificates == 2
    assert publish.check().alarms == report.alarms
    line.clock.turn(hours=13)
    assert len(publish.cycle().built) == 1


# --- atomicity


def test_a_reader_never_sees_half_a_crl(line: Line, tmp_path: Path) -> None:
    """SPEC F2."""
    www = tmp_path / "www"
    publish, directory = publisher(line, www), PublicationDirectory(www)
    publish.cycle()
    issuer = Issuer.from_certificate(KeyLabel("issuing-1"), hierarchy().issuing)
    done, seen, wrong = threading.Event(), set(), []

    def read() -> None:
        while not done.is_set():
            try:
                seen.add(crl.verify_crl((www / "crl/issuing-1.crl").read_bytes(), issuer).number)
                with directory.read("crl/issuing-1.crl") as octets:
                    assert octets is not None
                    crl.read_crl(octets)
            except Exception as cause:
                wrong.append(cause)
                raise

    reader = threading.Thread(target=read)
    reader.start()
    for index in range(30):
        mark(line, made(line, f"A{index}"), ReasonCode.SUPERSEDED)
        line.clock.turn(seconds=1)
        assert len(publish.cycle().built) == 1
    done.set()
    reader.join()
    assert not wrong
    assert len(seen) > 1


def test_a_directory_that_cannot_be_read_is_an_outage(tmp_path: Path, small_line: Line) -> None:
    """SPEC F2."""
    (tmp_path / "www" / "index.json").mkdir(parents=True)
    with pytest.raises(errors.Unavailable):
        publisher(small_line, tmp_path / "www").cycle()
