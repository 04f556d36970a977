"""A backup is made while the line works, proves itself to strangers, and comes back as a record (SPEC E7)."""

import base64
import io
import itertools
import json
import re
import shutil
import sqlite3
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_pem_x509_certificate

from birthmark import app
from birthmark.ledger.proof import decode
from birthmark.ports import carry
from birthmark.services.acts import recognise
from birthmark.services.backup import Manifest, describe, open_backup, write_backup
from birthmark.services.issue import Issued, IssueRequest
from birthmark.services.prove import Released
from birthmark.settings import load
from tests.edge.cli.command import Place, Said
from tests.edge.cli.command import done as succeeded
from tests.support.postgresql import LocalPostgreSQL
from tests.support.realm import START, libpq, proof, workpiece

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Plant(Place):
    """A realm on a database of either kind."""

    engine: str
    cluster: LocalPostgreSQL | None

    @contextmanager
    def station(self) -> Iterator[Callable[[], str]]:
        """Let a station work in this process; call it to make a device and have its release token."""
        application = app.build(load(self.settings))
        pem = (self.directory / "stations/ST01/station.crt").read_bytes()
        caller = carry(
            application.store, recognise(load_pem_x509_certificate(pem).public_bytes(Encoding.DER))
        )

        def make() -> str:
            device = workpiece(f"D{next(_numbers)}")
            request = IssueRequest(hardware_id=device.hardware_id, csr=device.csr, key=device.hardware_id)
            (issued,) = carry(application.store, application.issue(caller, "R1", [request]))
            assert isinstance(issued, Issued), issued
            shown = proof(issued, device.key, idempotency=f"prove-{device.hardware_id}")
            (released,) = carry(application.store, application.prove(caller, [shown]))
            assert isinstance(released, Released), released
            return released.token

        try:
            yield make
        finally:
            application.close()

    def elsewhere(self) -> "Plant":
        """Return the same realm on another machine: all its files, and an empty database."""
        directory = self.directory.with_name(f"elsewhere{next(_numbers)}")
        shutil.copytree(self.directory, directory, ignore=shutil.ignore_patterns("birthmark.db*"))
        if self.cluster is not None:
            url = without_password(self.cluster.create_database(directory.name))
            text = (directory / "birthmark.toml").read_text(encoding="utf-8")
            text = re.sub(r"(?m)^url = .*$", f"url = {json.dumps(url)}", text)
            (directory / "birthmark.toml").write_text(text, encoding="utf-8")
        return Plant(directory, self.engine, self.cluster)

    def entries(self) -> list[dict[str, Any]]:
        said = self.done("log", "tail", "--lines", 100_000, "--json")
        return [json.loads(line) for line in said.out.splitlines()]


def without_password(url: str) -> str:
    return re.sub(r":[^:@/]+@", "@", libpq(url))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Plant:
    """A realm on SQLite with run R1 open, which nobody changes."""
    return make_plant(tmp_path_factory.mktemp("made"), None)


def make_plant(folder: Path, cluster: LocalPostgreSQL | None) -> Plant:
    folder.mkdir(exist_ok=True)
    place = Plant(folder / "nord", "sqlite" if cluster is None else "postgresql", cluster)
    options: list[object] = []
    if cluster is not None:
        url = cluster.create_database(f"backup_{next(_numbers)}")
        secret = folder / "password"
        secret.touch(mode=0o600)
        secret.write_text(url.split(":")[2].partition("@")[0], encoding="ascii")
        options = ["--database-url", without_password(url), "--database-password-file", secret]
    names = ("--realm", "nord", "--organization", "Nord AG", "--operator", "anna")
    succeeded("init", place.directory, *names, *options)
    place.done(
        "run", "open", "R1", "--product", "T1", "--station", "ST01", "--hardware-id-kind", "serial",
        "--quantity", 10_000, "--hours", 8,
    )  # fmt: skip
    return place


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Plant:
    """Another realm of the same name, with keys of its own, which nobody changes."""
    return make_plant(tmp_path_factory.mktemp("other"), None)


@pytest.fixture
def plant(made: Plant, tmp_path: Path) -> Plant:
    """A copy of it."""
    shutil.copytree(made.directory, tmp_path / "nord")
    return Plant(tmp_path / "nord", "sqlite", None)


@pytest.fixture(params=["sqlite", "postgresql"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Plant:
    """One on either database."""
    if request.param == "sqlite":
        plant: Plant = request.getfixturevalue("plant")
        return plant
    return make_plant(tmp_path, request.getfixturevalue("postgresql"))


def checkpoint_file(folder: Path, *tokens: str) -> Path:
    """Write the checkpoints that stations hold, as they keep them."""
    path = folder / f"checkpoints{next(_numbers)}"
    path.write_text("".join(decode(token).checkpoint_note for token in tokens), encoding="utf-8")
    return path


def test_a_backup_made_while_the_line_works_comes_back_and_says_what_is_missing(
    either: Plant, tmp_path: Path
) -> None:
    tokens: list[str] = []
    file, stop, enough = tmp_path / "monday.backup", threading.Event(), threading.Event()

    def work() -> None:
        with either.station() as make:
            while not stop.is_set():
                tokens.append(make())
                if len(tokens) >= 10:
                    enough.set()

    worker = threading.Thread(target=work)
    worker.start()
    try:
        assert enough.wait(60)
        told = either.done("backup", "create", "--out", file, "--json").document
    finally:
        stop.set()
        worker.join()
    with either.station() as make:
        tokens.append(make())
    size = told["entries"]
    received = checkpoint_file(tmp_path, *tokens)
    newest = decode(tokens[-1]).index + 1
    assert 20 <= size < newest

    verified = succeeded(
        "backup", "verify", file, "--vkey", either.vkey, "--checkpoint", received, "--json"
    ).document
    assert (verified["entries"], verified["findings"]) == (size, [])
    assert (verified["newest_outside"], verified["entries_missing"]) == (newest, newest - size)
    assert verified["outside_agreeing"] >= 8, "what stations saw before is in it"

    elsewhere = either.elsewhere()
    unproved = elsewhere("restore", file)
    assert (unproved.code, "bring those that stations hold" in unproved.err) == (1, True), unproved
    lossy = elsewhere("restore", file, "--checkpoint", received)
    assert lossy.code == 1
    assert f"{newest - size} entries are missing" in lossy.err
    assert elsewhere("check").code != 0, "nothing was restored"
    restored = elsewhere.done("restore", file, "--checkpoint", received, "--accept-loss", "--json").document
    assert (restored["log_restored"], restored["check_findings"]) == (size, [])
    entry = elsewhere.entries()[size]
    assert (entry["kind"], entry["actor"]) == ("log-restored", "operator:anna")
    assert (entry["log_size"], entry["entries_missing"]) == (size, newest - size)
    assert (entry["newest_outside"], entry["backup_sha256"]) == (newest, told["sha256"])
    with elsewhere.station() as make:
        assert decode(make()).index > size, "and the line goes on"
    elsewhere.done("check")


def test_the_newest_backup_loses_nothing_and_needs_nobody_to_accept_it(plant: Plant, tmp_path: Path) -> None:
    with plant.station() as make:
        token = make()
    file, received = tmp_path / "now.backup", checkpoint_file(tmp_path, token)
    plant.done("backup", "create", "--out", file)
    shown = plant.done("backup", "verify", file, "--checkpoint", received)
    assert shown.out.splitlines()[-1] == "ok", "the key store of the settings has the log's key"
    elsewhere = plant.elsewhere()
    elsewhere.done("restore", file, "--checkpoint", received)
    last = elsewhere.entries()[-1]
    assert (last["kind"], last["entries_missing"]) == ("log-restored", 0)
    elsewhere.done("check", "--received-checkpoints", received)


def test_a_backup_holds_no_key_pin_or_passphrase(plant: Plant, tmp_path: Path) -> None:
    with plant.station() as make:
        make()
    file = tmp_path / "now.backup"
    plant.done("backup", "create", "--out", file)
    with zipfile.ZipFile(file) as archive:
        octets = b"".join(archive.read(name) for name in archive.namelist())
    assert b"PRIVATE KEY" not in octets
    secrets = [*plant.directory.rglob("secrets/*"), *plant.directory.rglob("*passphrase*")]
    assert secrets
    for secret in secrets:
        if secret.is_file():
            assert secret.read_bytes().strip() not in octets, secret


def test_a_backup_is_not_written_over_anything(plant: Plant, tmp_path: Path) -> None:
    file = tmp_path / "taken"
    file.write_bytes(b"mine")
    assert plant("backup", "create", "--out", file).code == 1
    assert file.read_bytes() == b"mine"
    assert plant("backup", "create", "--out", tmp_path / "no/such/folder").code == 75
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


# --- what is not to be trusted ---


@pytest.fixture(scope="module")
def good(made: Plant, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup of the realm that nobody changes."""
    file = tmp_path_factory.mktemp("good") / "good.backup"
    made.done("backup", "create", "--out", file)
    return file


@pytest.fixture
def backup(good: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copy(good, tmp_path))


def forged(
    backup: Path,
    *,
    database: Callable[[sqlite3.Connection], object] | None = None,
    manifest: dict[str, object] | None = None,
    honest: bool = True,
    bare: bool = False,
) -> Path:
    """Write another backup: the database changed past its triggers; the manifest agrees if ``honest``.

    Its triggers are there again afterwards, unless it is ``bare``.
    """
    path = backup.with_name(f"forged{next(_numbers)}")
    with zipfile.ZipFile(backup) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    if database is not None:
        copy = path.with_suffix(".db")
        copy.write_bytes(members["database"])
        with closing(sqlite3.connect(copy, isolation_level=None)) as db:
            triggers = db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
            for name, _ in triggers:
                db.execute(f"DROP TRIGGER {name}")
            database(db)
            for _, statement in [] if bare else triggers:
                db.execute(statement)
        members["database"] = copy.read_bytes()
    said = json.loads(members["manifest.json"]) | (manifest or {})
    if database is not None and honest:
        said["database_octets"] = len(members["database"])
        said["database_sha256"] = sha256(members["database"]).hexdigest()
    members["manifest.json"] = json.dumps(said, sort_keys=True, separators=(",", ":")).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


PROMOTING = "CREATE TRIGGER later AFTER INSERT ON checkpoint BEGIN UPDATE client SET role = 'officer'; END"
FORGERIES: dict[str, tuple[dict[str, Any], str]] = {
    "an entry": (
        {"database": lambda db: db.execute("UPDATE leaf SET entry = x'7b7d' WHERE idx = 3")},
        "entry 3",
    ),
    "an entry and its hash": (
        {
            "database": lambda db: db.execute(
                "UPDATE leaf SET (hash, entry) = (SELECT hash, entry FROM leaf WHERE idx = 2) WHERE idx = 3"
            )
        },
        "contradicts the log",
    ),
    "the last entry": (
        {"database": lambda db: db.execute("DELETE FROM leaf WHERE idx = (SELECT max(idx) FROM leaf)")},
        "not the one that the manifest says",
    ),
    "the edge": ({"database": lambda db: db.execute("UPDATE head SET edge = x'00'")}, "cannot be|head"),
    "a checkpoint": (
        {"database": lambda db: db.execute("UPDATE checkpoint SET note = replace(note, 'nord', 'sued')")},
        "does not verify",
    ),
    "the realm": ({"database": lambda db: db.execute("UPDATE realm SET name = 'sued'")}, "another realm"),
    "the schema": (
        {"database": lambda db: db.execute("UPDATE alembic_version SET version_num = '0001'")},
        "another schema",
    ),
    "all triggers": ({"database": lambda db: None, "bare": True}, "trigger leaf_no_delete is missing"),
    "a trigger more": (
        {"database": lambda db: db.execute(PROMOTING)},
        "trigger later is there, which no migration makes",
    ),
    "an index": (
        {
            "database": lambda db: (
                db.execute("PRAGMA writable_schema = ON"),
                db.execute(
                    "UPDATE sqlite_master SET rootpage = (SELECT rootpage FROM sqlite_master"
                    " WHERE name = 'sqlite_autoindex_client_1') WHERE name = 'sqlite_autoindex_credential_1'"
                ),
            )
        },
        "SQLite finds it damaged",
    ),
    "the size": ({"manifest": {"log_size": 3}}, "not of the manifest's log, size and root"),
    "the root": (
        {"manifest": {"log_root": base64.b64encode(bytes(32)).decode()}},
        "not of the manifest's log, size and root",
    ),
}


@pytest.mark.parametrize("what", FORGERIES)
def test_a_backup_that_was_changed_is_found_out(made: Plant, backup: Path, what: str) -> None:
    changes, words = FORGERIES[what]
    said = made("backup", "verify", forged(backup, **changes), "--vkey", made.vkey)
    assert said.code in (1, 65), said
    assert re.search(words, said.out + said.err), said


@pytest.mark.parametrize("what", ["the last entry", "all triggers", "a trigger more"])
def test_a_backup_that_was_changed_is_not_restored(
    made: Plant, backup: Path, tmp_path: Path, what: str
) -> None:
    shutil.copytree(made.directory, tmp_path / "nord")
    elsewhere = Plant(tmp_path / "nord", "sqlite", None).elsewhere()
    said = elsewhere("restore", forged(backup, **FORGERIES[what][0]), "--accept-loss")
    assert (said.code, "not to be trusted" in said.err) == (70, True), said
    assert not (elsewhere.directory / "birthmark.db").exists()


def test_a_backup_whose_parts_are_not_what_its_manifest_says_is_refused(made: Plant, backup: Path) -> None:
    file = forged(backup, database=lambda db: db.execute("UPDATE head SET at = at + 1"), honest=False)
    said = made("backup", "verify", file, "--vkey", made.vkey)
    assert (said.code, "not what its manifest says" in said.err) == (70, True), said


def test_a_postgresql_database_whose_schema_was_changed_is_no_backup_and_not_restored(
    postgresql: LocalPostgreSQL, tmp_path: Path
) -> None:
    plant = make_plant(tmp_path, postgresql)
    clean, file = plant.elsewhere(), tmp_path / "changed.backup"
    settings = load(plant.settings).database
    copies = app.copies(settings)
    copies.copy(tmp_path / "before", lambda _done, _total: None)
    with postgresql.connect(settings.url.rpartition("/")[2]) as db:
        db.execute("DROP TRIGGER leaf_no_delete ON leaf")
        db.execute("CREATE FUNCTION later() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN END $$")
        db.execute("CREATE TRIGGER later AFTER INSERT ON checkpoint EXECUTE FUNCTION later()")
    refused = plant("backup", "create", "--out", file)
    assert (refused.code, "trigger leaf leaf_no_delete is missing" in refused.err) == (70, True), refused
    copies.copy(tmp_path / "copy", lambda _done, _total: None)
    with (tmp_path / "copy").open("rb") as database, file.open("wb") as out:
        reader = app.read_copy(copies.engine, tmp_path / "copy")
        manifest, note = describe(reader, database, copies.engine, program="1", made_at=START)
        database.seek(0)
        write_backup(out, manifest, note, database)
    verified = plant("backup", "verify", file)
    assert verified.code == 1
    for words in (
        "leaf_no_delete is missing",
        "trigger checkpoint later is there",
        "function later() is there",
    ):
        assert words in verified.out, verified
    said = clean("restore", file, "--accept-loss")
    assert (said.code, "not to be trusted" in said.err) == (70, True), said
    said = plant("check")
    assert (said.code, "its schema was changed: trigger leaf.leaf_no_delete is missing" in said.err) == (
        70,
        True,
    )


def test_a_restore_that_ends_with_findings_leaves_nothing_in_place(either: Plant, tmp_path: Path) -> None:
    file, change = tmp_path / "now.backup", "UPDATE client SET site = 'elsewhere'"
    if either.cluster is None:
        with closing(sqlite3.connect(either.directory / "birthmark.db", isolation_level=None)) as db:
            db.execute(change)
    else:
        with either.cluster.connect(load(either.settings).database.url.rpartition("/")[2]) as server:
            server.execute(change.encode())
    either.done("backup", "create", "--out", file)
    elsewhere = either.elsewhere()
    for number in (1, 2):
        said = elsewhere("restore", file, "--accept-loss", "--json")
        assert (said.code, "nothing is in place" in said.err) == (1, True), said
        assert said.document["check_findings"]
        assert said.document["set_aside"].endswith(f"refused{'-' if either.cluster is None else '_'}{number}")
        assert elsewhere("check").code in (66, 70), "nothing can be served"
    if either.cluster is None:
        (aside,) = elsewhere.directory.glob("birthmark.db.refused-1")
        aside.rename(elsewhere.directory / "birthmark.db")
        said = elsewhere("check")
        assert (said.code, "log-restored" in json.dumps(elsewhere.entries())) == (1, True), said


@pytest.mark.parametrize("members", [["database", "database"], ["extra"], []])
def test_an_archive_with_other_members_is_no_backup(made: Plant, backup: Path, members: list[str]) -> None:
    path = backup.with_name("more.backup")
    with zipfile.ZipFile(backup) as archive, zipfile.ZipFile(path, "w") as more:
        for name in archive.namelist():
            if members or name != "README.txt":
                more.writestr(name, archive.read(name))
        for name in members:
            twice = name in more.namelist()
            with pytest.warns(UserWarning, match="Duplicate name") if twice else nullcontext():
                more.writestr(name, b"something")
    said = made("backup", "verify", path, "--vkey", made.vkey)
    assert (said.code, "its members are not" in said.err) == (65, True), said


def test_a_backup_of_another_log_is_not_ours(made: Plant, other: Plant, backup: Path, tmp_path: Path) -> None:
    said = made("backup", "verify", backup, "--vkey", other.vkey)
    assert (said.code, "another key" in said.out) == (1, True), said
    shutil.copytree(other.directory, tmp_path / "nord")
    elsewhere = Plant(tmp_path / "nord", "sqlite", None).elsewhere()
    said = elsewhere("restore", backup, "--accept-loss")
    assert (said.code, "another key" in said.err) == (70, True), said


def test_a_file_that_is_no_backup_is_refused(made: Plant, backup: Path, tmp_path: Path) -> None:
    torn, empty = tmp_path / "torn", tmp_path / "empty"
    torn.write_bytes(backup.read_bytes()[:-400])
    empty.write_bytes(b"")
    flipped = bytearray(backup.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    (tmp_path / "flipped").write_bytes(flipped)
    for name, codes in (("torn", {65}), ("empty", {65}), ("flipped", {65, 70}), ("nothing", {66})):
        said = made("backup", "verify", tmp_path / name, "--vkey", made.vkey)
        assert said.code in codes, said


# --- where it goes ---


def test_a_backup_is_restored_where_nothing_is(plant: Plant, backup: Path) -> None:
    assert refused_for(plant("restore", backup, "--accept-loss"), "is there: a backup is restored where")
    elsewhere = plant.elsewhere()
    stale = elsewhere.directory / "birthmark.db-wal"
    stale.write_bytes(b"of the database that was there")
    assert refused_for(elsewhere("restore", backup, "--accept-loss"), "birthmark.db-wal is there")
    stale.unlink()
    elsewhere.done("restore", backup, "--accept-loss")


def test_a_backup_goes_into_its_own_realm_and_kind_of_database(
    plant: Plant, backup: Path, postgresql: LocalPostgreSQL
) -> None:
    other = plant.elsewhere()
    settings = other.settings.read_text(encoding="utf-8")
    other.settings.write_text(settings.replace('"nord"', '"sued"'), encoding="utf-8")
    assert refused_for(other("restore", backup, "--accept-loss"), "the settings are for sued")
    url = without_password(postgresql.create_database(f"kind{next(_numbers)}"))
    other.settings.write_text(re.sub(r"(?m)^url = .*$", f'url = "{url}"', settings), encoding="utf-8")
    assert refused_for(other("restore", backup, "--accept-loss"), "of a sqlite database")


def test_a_restore_that_cannot_be_put_on_record_is_undone(
    either: Plant, other: Plant, tmp_path: Path
) -> None:
    file, stranger = tmp_path / "now.backup", other.directory / "operators/anna"
    either.done("backup", "create", "--out", file)
    elsewhere = either.elsewhere()
    said = elsewhere("restore", file, "--accept-loss", "--as", stranger)
    assert (said.code, "belongs to no client" in said.err) == (77, True), said
    elsewhere.done("restore", file, "--accept-loss")
    elsewhere.done("check")


def refused_for(said: Said, words: str) -> bool:
    assert said.code == 1, said
    assert words in said.err, said
    return True


def test_a_manifest_reads_back(backup: Path) -> None:
    with open_backup(io.BytesIO(backup.read_bytes())) as opened:
        assert Manifest.decode(opened.manifest.encode()) == opened.manifest
