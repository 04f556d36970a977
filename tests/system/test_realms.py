"""Test and production never mix: what is one realm's is nobody's in the other, on record (SPEC H6).

Both realms have the same name, the same maker, the same operator and the same station: what keeps them apart
is what they are, not what they are called.  What the gateway says to devices of other realms is held in
``test_gateway``; keys that come back from backups in ``tests/services/test_custody``.
"""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from birthmark import app, errors
from birthmark.edge.application import Application
from birthmark.edge.cli.credentials import read
from birthmark.floor.proposals import Deed
from birthmark.floor.recalls import RecallAction, RecallOrder, Selection, SelectionKind
from birthmark.floor.runs import Run, RunLicence
from birthmark.pki.revocation import ReasonCode
from birthmark.ports import carry
from birthmark.services.acts import Caller, recognise
from birthmark.settings import load
from tests.edge.cli.ceremonies import draft, papers_of, sha256, there
from tests.edge.cli.command import Place
from tests.edge.cli.command import done as succeeded
from tests.support.enrolling import Bench, DeviceRealm, est, openssl
from tests.support.gateways import Vehicle
from tests.support.server import RealmDirectory, Server, free_port, until

NAMES = ("--realm", "nord", "--organization", "Nord AG", "--operator", "anna")
SERIAL = ("--product", "T1", "--hardware-id-kind", "serial", "--quantity", "10", "--hours", "8")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two realms of one name."""

    test: Place
    real: Place
    papers: Path
    """Where production's custodians are."""

    def acting(self, place: Place) -> tuple[str, str]:
        return "--as", str(place.directory / "operators" / "anna")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A test realm with run R1, and a production realm; nobody changes them."""
    folder = tmp_path_factory.mktemp("pair")
    papers = folder / "papers"
    papers.mkdir()
    test, real = Place(folder / "test"), Place(folder / "real")
    for place, more in (
        (test, ()),
        (real, ("--environment", "production", "--development-keys", *papers_of(papers))),
    ):
        succeeded("init", place.directory, *NAMES, "--port", free_port(), "--device-port", free_port(), *more)
    test.done("run", "open", "R1", "--station", "ST01", *SERIAL)
    return Pair(test, real, papers)


@pytest.fixture
def pair(made: Pair, tmp_path: Path) -> Pair:
    """Copies of both."""
    for place in (made.test, made.real):
        shutil.copytree(place.directory, tmp_path / place.directory.name)
    return Pair(Place(tmp_path / "test"), Place(tmp_path / "real"), made.papers)


@contextmanager
def opened(place: Place) -> Iterator[tuple[Application, Caller]]:
    """Build a realm's application, and let anna act there."""
    application = app.build(load(place.settings))
    try:
        credential = read(place.directory / "operators/anna")
        yield application, carry(application.store, recognise(credential.certificate.der))
    finally:
        application.close()


def last(place: Place) -> dict[str, Any]:
    (line,) = place.done("log", "tail", "--lines", 1, "--json").out.splitlines()
    entry: dict[str, Any] = json.loads(line)
    return entry


def refused(place: Place) -> tuple[str, str]:
    entry = last(place)
    return str(entry["kind"]), str(entry.get("rule", entry.get("code")))


# --- settings, database, backup: before there is a log to write to ---


def test_settings_of_one_are_refused_with_the_database_of_the_other(pair: Pair) -> None:
    for place, before, after in ((pair.test, "test", "production"), (pair.real, "production", "test")):
        text = place.settings.read_text()
        place.settings.write_text(text.replace(f'environment = "{before}"', f'environment = "{after}"'))
        said = place("run", "list")
        assert said.code == 70, said
        assert f"the database belongs to nord ({before})" in said.err


def test_the_database_of_one_does_not_stand_in_for_that_of_the_other(pair: Pair) -> None:
    for name in ("birthmark.db", "birthmark.db.train"):
        shutil.copy(pair.test.directory / name, pair.real.directory / name)
    said = pair.real("check")
    assert said.code == 70, said
    assert "belongs to nord (test)" in said.err


def test_a_backup_of_one_is_not_restored_under_the_settings_of_the_other(pair: Pair, tmp_path: Path) -> None:
    backup = tmp_path / "monday.backup"
    pair.test.done("backup", "create", "--out", backup)
    over = pair.real("restore", backup, *pair.acting(pair.real))
    assert (over.code, "the backup is of realm nord (test)" in over.err) == (1, True)
    assert pair.real.done("check", "--json").document["findings"] == []
    for file in pair.real.directory.glob("birthmark.db*"):
        file.unlink()
    empty = pair.real("restore", backup, "--accept-loss", *pair.acting(pair.real))
    assert (empty.code, "the settings are for nord (production)" in empty.err) == (1, True)
    assert not (pair.real.directory / "birthmark.db").exists()


def test_a_backup_is_not_restored_over_another_realms_database(pair: Pair, tmp_path: Path) -> None:
    """Also where the settings agree with the backup: another realm's record is there already."""
    backup = tmp_path / "monday.backup"
    pair.test.done("backup", "create", "--out", backup)
    before = {name: (pair.real.directory / name).read_bytes() for name in ("birthmark.db",)}
    text = pair.test.settings.read_text()
    url = f"sqlite:///{pair.real.directory / 'birthmark.db'}"
    pair.test.settings.write_text(re.sub(r"(?m)^url = .*$", f"url = {json.dumps(url)}", text, count=1))
    said = pair.test("restore", backup)
    assert (said.code, "is there" in said.err) == (1, True), said
    assert before == {name: (pair.real.directory / name).read_bytes() for name in before}


# --- what people sign ---


def test_a_licence_of_one_opens_nothing_in_the_other(pair: Pair) -> None:
    with opened(pair.test) as (application, _):
        run = application.store.look({Run: ("R1",)}).get(Run, "R1")
        assert run is not None
        licence = RunLicence.decode(run.document)
    with opened(pair.real) as (application, anna):
        signature = read(pair.real.directory / "operators/anna").sign(licence.encode())
        with pytest.raises(errors.PolicyRefused, match=r"the licence is for nord \(test\)"):
            carry(application.store, application.opening.open(anna, licence, signature))
    assert refused(pair.real) == ("refused", "realm")


def test_a_proposal_of_one_is_none_in_the_other(pair: Pair) -> None:
    with opened(pair.test) as (application, anna):
        motion = application.proposals.draft(
            anna, Deed.CHANGE_AUTHORITY, "issuing-1", {"status": "suspended"}, "x"
        )
    with opened(pair.real) as (application, anna):
        signature = read(pair.real.directory / "operators/anna").sign(motion.encode())
        with pytest.raises(errors.NotPermitted, match=r"belongs to nord \(test\)"):
            carry(application.store, application.proposals.propose(anna, motion, signature))
    assert refused(pair.real) == ("refused", "not-permitted")


def test_a_recall_of_one_is_none_in_the_other(pair: Pair) -> None:
    order = RecallOrder(
        realm="nord",
        environment="test",
        id="rc-0000000000",
        selection=Selection(kind=SelectionKind.AUTHORITY, value="issuing-1"),
        action=RecallAction.REVOKE,
        reason=ReasonCode.KEY_COMPROMISE,
        justification="a test",
        previewed=1,
        proposed_by="operator:anna",
    )
    for environment, refusal in (("test", errors.NotPermitted), ("production", None)):
        with opened(pair.real) as (application, anna):
            wanted = replace(order, environment=environment)
            signature = read(pair.real.directory / "operators/anna").sign(wanted.encode())
            proposing = application.recalls.propose(anna, wanted, signature)
            if refusal is None:
                carry(application.store, proposing)
                continue
            with pytest.raises(refusal, match=r"nord \(test\)"):
                carry(application.store, proposing)
        assert refused(pair.real) == ("refused", "not-permitted")
    assert last(pair.real)["kind"] == "recall-proposed", "the same order of this realm is one"


def test_an_officer_of_one_is_nobody_in_the_other(pair: Pair) -> None:
    said = pair.real(
        "station", "revoke", "ST01", "--reason", "x", "--as", pair.test.directory / "operators/anna"
    )
    assert (said.code, "no client of this realm" in said.err) == (77, True)


# --- authorities ---


def test_a_ceremony_of_one_is_not_performed_in_the_other(pair: Pair, tmp_path: Path) -> None:
    file = draft(pair.test, tmp_path, "issuing", "--ends", "2035-01-01")
    assert 'environment: "test"' in file.read_text() or "environment: test" in file.read_text()
    said = pair.real("ceremony", "perform", file, *there(pair.test, file), *pair.acting(pair.real))
    assert (said.code, "the ceremony is for realm nord (test)" in said.err) == (77, True), said
    entry = last(pair.real)
    assert (entry["kind"], entry["request"], entry["code"]) == (
        "refused",
        "perform-ceremony",
        "not-permitted",
    )
    assert "trucks" not in pair.real.done("authority", "list").out


def test_an_authority_of_a_test_realm_is_not_imported_into_production(pair: Pair, tmp_path: Path) -> None:
    """Its name says TEST, and that is in the certificate for ever."""
    file, root = tmp_path / "import.yaml", pair.test.directory / "root.crt"
    options = ("--id", "nord-2", "--authority", "theirs", "--certificate", root)
    file.write_text(pair.real.done("ceremony", "template", "import", *options).out)
    said = pair.real("ceremony", "validate", file)
    assert (said.code, "theirs is a test realm's" in said.err) == (1, True), said
    two = [word for who in ("carla", "dora") for word in ("--custodian", str(pair.papers / who))]
    reviewed = ("--reviewed", sha256(file), *pair.acting(pair.real))
    said = pair.real("ceremony", "perform", file, *two, *reviewed)
    assert (said.code, "theirs is a test realm's" in said.err) == (1, True), said
    assert refused(pair.real) == ("refused", "realm")
    assert "theirs" not in pair.real.done("authority", "list").out
    assert pair.real.done("check", "--json").document["findings"] == []


def test_the_devices_of_one_are_shipped_from_the_other_by_nobody(pair: Pair, tmp_path: Path) -> None:
    file = tmp_path / "shipped.csv"
    file.write_text("device\nserial:D1\n")
    said = pair.real("shipment", "record", file, "--consignment", "C1", *pair.acting(pair.real))
    assert said.code == 66, said
    assert last(pair.real)["kind"] == "refused"


# --- what is shown to the planes ---


def device_realm(place: Place) -> DeviceRealm:
    settings = load(place.settings)
    port = settings.station_plane.port
    realm = RealmDirectory(path=place.directory, port=port, database_url=settings.database.url)
    return DeviceRealm(realm=realm, port=settings.device_plane.port)


def test_no_certificate_code_or_shared_credential_of_one_gets_anything_in_the_other(
    pair: Pair, tmp_path: Path
) -> None:
    """A test realm's device, station and image, and a code of the same name, come to production."""
    theirs, ours = device_realm(pair.test), device_realm(pair.real)
    code = pair.test.done(
        *("bootstrap", "code", "dock-1", "--hardware-id", "serial:D1", "--run", "R1", "--json")
    ).document["code"]
    archive = tmp_path / "image.zip"
    pair.test.done(
        *("shared", "make", "image-7", "--run", "R1", "--quantity", 5, "--hours", 8, "--out", archive)
    )
    shutil.unpack_archive(archive, tmp_path / "image")
    image = Vehicle(
        id="shared:image-7",
        certificate=tmp_path / "image/provisioning.pem",
        key=tmp_path / "image/provisioning.key",
    )
    device, other = (Bench(folder=tmp_path, name=name) for name in ("D1", "D2"))
    with Server(realm=theirs.realm):
        told = est(theirs, "R1/simpleenroll", device.request(), code=("dock-1", code))
        held = device.hold(told.certificates())
        assert est(theirs, "R1/simpleenroll", other.request(), who=image).status == 200, "good at home"
    with pair.real.settings.open("a", encoding="utf-8") as settings:
        settings.write("\n[service]\nallow-root = true\n")
    station = pair.test.directory / "stations/ST01"
    at_line = Vehicle(id="station:ST01", certificate=station / "station.crt", key=station / "station.key")
    with Server(realm=ours.realm):
        for who in (held, image, at_line):
            shown = est(ours, "R1/simpleenroll", other.request(), who=who)
            assert (shown.exit != 0, shown.status) == (True, 0), (who.id, shown)
        coded = est(ours, "R1/simpleenroll", device.request(), code=("dock-1", code))
        assert (coded.status, coded.reason) == (401, "unauthenticated")
        line = DeviceRealm(realm=ours.realm, port=ours.realm.port)
        knocked = est(line, "x", who=at_line)
        assert (knocked.exit != 0, knocked.status) == (True, 0)

        def on_record() -> bool:
            entries = [one for one in ours.realm.entries() if one["kind"] == "refused"]
            handshakes = sum(int(one.get("count", 1)) for one in entries if one["request"] == "handshake")
            return handshakes >= 4 and any(one["code"] == "unauthenticated" for one in entries)

        assert until(on_record), ours.realm.entries()[-4:]
    assert openssl("x509", "-in", held.certificate, "-noout", "-issuer").endswith(b"TEST\n")
    assert not any(one["kind"] == "device-issued" for one in ours.realm.entries())
    assert pair.real.done("check", "--json").document["findings"] == []
