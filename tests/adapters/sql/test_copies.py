"""A copy of a database may come from anybody: what is none is refused, and nothing else happens (SPEC E7)."""

import io
import sqlite3
import zipfile
from contextlib import closing, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birthmark import errors
from birthmark.adapters.sql import copies
from birthmark.adapters.sql.copies import copies_of, read_copy
from birthmark.services.backup import Engine, Manifest, open_backup
from tests.support.postgresql import LocalPostgreSQL
from tests.support.programs import need
from tests.support.realm import START, libpq

MANIFEST = Manifest(
    realm="nord",
    environment="test",
    origin="nord/log",
    vkey="nord/log+00000000+AA==",
    engine=Engine.SQLITE,
    schema="0001",
    size=7,
    root=bytes(32),
    checkpoint_sha256="00",
    database_octets=5,
    database_sha256="00",
    program="1",
    made_at=START,
)


@given(st.binary(max_size=400))
def test_octets_that_are_no_manifest_are_refused(data: bytes) -> None:
    with pytest.raises(errors.MalformedRequest):
        Manifest.decode(data)


@given(st.integers(0, len(MANIFEST.encode()) - 1), st.integers(0, 255))
def test_a_manifest_with_another_octet_is_another_or_none(place: int, octet: int) -> None:
    data = bytearray(MANIFEST.encode())
    data[place] = octet
    with suppress(errors.MalformedRequest):
        assert Manifest.decode(bytes(data)).encode() == bytes(data)


def archive() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, data in (
            ("README.txt", b""),
            ("manifest.json", MANIFEST.encode()),
            ("checkpoint", b"note"),
            ("database", b"12345"),
        ):
            file.writestr(name, data, zipfile.ZIP_DEFLATED)
    return out.getvalue()


@given(st.one_of(st.binary(max_size=300), st.tuples(st.integers(0, 500), st.binary(min_size=1, max_size=8))))
def test_octets_that_are_no_archive_are_refused(changed: bytes | tuple[int, bytes]) -> None:
    data = changed if isinstance(changed, bytes) else bytearray(archive())
    if isinstance(changed, tuple) and isinstance(data, bytearray):
        data[changed[0] : changed[0] + len(changed[1])] = changed[1]
    with (
        suppress(errors.MalformedRequest, errors.IntegrityFailure),
        open_backup(io.BytesIO(bytes(data))) as backup,
    ):
        backup.extract(io.BytesIO())


@pytest.mark.parametrize("octets", [b"", b"nothing", b"SQLite format 3\0" + bytes(84), b"PGDMP" + bytes(90)])
@pytest.mark.parametrize("engine", Engine)
def test_a_file_that_is_no_copy_is_refused(tmp_path: Path, engine: Engine, octets: bytes) -> None:
    if engine is Engine.POSTGRESQL:
        need("pg_restore", "postgresql-client")
    (tmp_path / "copy").write_bytes(octets)
    reader = read_copy(engine, tmp_path / "copy")
    for ask in (reader.schema, reader.realm, reader.head, lambda: list(reader.leaves())):
        with pytest.raises(errors.MalformedRequest):
            ask()


def test_a_copy_with_values_of_other_types_is_refused(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "copy", isolation_level=None)) as db:
        db.execute("CREATE TABLE leaf (idx, hash, entry)")
        db.execute("INSERT INTO leaf VALUES ('0', 1, NULL)")
        db.execute("CREATE TABLE head (size, edge)")
        db.execute("INSERT INTO head VALUES (1, 'text')")
    reader = read_copy(Engine.SQLITE, tmp_path / "copy")
    for ask in (reader.head, lambda: list(reader.leaves())):
        with pytest.raises(errors.MalformedRequest, match="other types"):
            ask()


@given(st.lists(st.tuples(*[st.text(st.characters(blacklist_categories=["Cs"]))] * 2), max_size=5))
def test_what_copy_escapes_is_read_back(rows: list[tuple[str, str]]) -> None:
    """PostgreSQL 15, COPY, "Text Format"."""
    escapes = {"\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v"}
    lines = ["SET x = 1;\n", "COPY public.t (a, b, c) FROM stdin;\n"]
    for a, c in rows:
        cells = ("".join(escapes.get(letter, letter) for letter in text) for text in (a, "b", c))
        lines.append("\t".join(cells) + "\n")
    lines += ["\\.\n", "after\n"]
    assert list(copies._copied(iter(lines), ("c", "a"))) == [(c, a) for a, c in rows]  # noqa: SLF001  # a pure part


def test_postgresql_itself_spells_what_we_read(tmp_path: Path, postgresql: LocalPostgreSQL) -> None:
    url = postgresql.create_database("spelling")
    texts = ["", "\\", "a\\nb", "line\nline", "\t\\t\r\v\f\b", "\\x00", "ünï\u2028code", "\\."]
    with postgresql.connect("spelling") as db:
        db.execute("CREATE TABLE checkpoint (size BIGINT, note TEXT)")
        for size, note in enumerate(texts):
            db.execute("INSERT INTO checkpoint VALUES (%s, %s)", (size, note))
        db.execute("CREATE TABLE leaf (idx BIGINT, hash BYTEA, entry BYTEA)")
        for index in (1, 0, 2):  # as it lies, which need not be in order
            db.execute("INSERT INTO leaf VALUES (%s, %s, %s)", (index, b"\\\x00", bytes(range(256))))
    copy = tmp_path / "copy"
    copies_of(libpq(url)).copy(copy, lambda _done, _total: None)
    reader = read_copy(Engine.POSTGRESQL, copy)
    assert [note for _, note in reader.checkpoints()] == texts
    assert list(reader.leaves()) == [(index, b"\\\x00", bytes(range(256))) for index in range(3)]
    with pytest.raises(errors.MalformedRequest):
        reader.realm()
    postgresql.drop_database("spelling")


def test_a_copy_is_not_read_into_memory_to_find_its_first_leaf(
    tmp_path: Path, postgresql: LocalPostgreSQL
) -> None:
    url = postgresql.create_database("headless")
    with postgresql.connect("headless") as db:
        db.execute("CREATE TABLE leaf (idx BIGINT, hash BYTEA, entry BYTEA)")
        db.execute(
            "INSERT INTO leaf SELECT idx, '\\x00', decode(repeat('00', 65535), 'hex')"
            " FROM generate_series(1, 300) AS idx"
        )
        db.execute("CREATE TABLE checkpoint (size BIGINT, note TEXT)")
        db.execute("INSERT INTO checkpoint VALUES (1, repeat('a', 1048576))")
    copy = tmp_path / "copy"
    copies_of(libpq(url)).copy(copy, lambda _done, _total: None)
    reader = read_copy(Engine.POSTGRESQL, copy)
    with pytest.raises(errors.MalformedRequest, match="leaf 0 is not where it belongs"):
        next(reader.leaves())
    with pytest.raises(errors.MalformedRequest, match="a row is too long"):
        next(reader.checkpoints())
    postgresql.drop_database("headless")


def test_a_server_that_is_away_is_no_backup(tmp_path: Path) -> None:
    need("pg_dump", "postgresql-client")
    gone = copies_of("postgresql://nobody@127.0.0.1:1/nothing")
    with pytest.raises(errors.Unavailable, match="pg_dump failed"):
        gone.copy(tmp_path / "copy", lambda _done, _total: None)
    with pytest.raises(errors.Unavailable, match="cannot be reached"):
        gone.require_empty()


def test_a_machine_without_postgresqls_programs_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(errors.NotFound, match="pg_dump is not installed"):
        copies_of("postgresql://a/b").copy(tmp_path / "copy", lambda _done, _total: None)


def test_a_backup_of_a_later_program_is_left_alone(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.write_bytes(b"")
    with pytest.raises(errors.MalformedRequest, match="schema 9999"):
        copies_of(f"sqlite:///{tmp_path / 'new.db'}").put_back(copy, "9999")
    assert not (tmp_path / "new.db").exists()
