"""Copies of whole databases, made online, read without a server, and put back (SPEC E7).

SQLite's backup interface copies the file as of one moment while others write; ``pg_dump`` does the same for
PostgreSQL, in its custom format, and ``pg_restore`` reads that.  Both programs are PostgreSQL's own and have
to be installed; no password is in their arguments.

Nothing that a copy of a PostgreSQL database says is run: the migrations make the schema, and only the rows of
the tables that they make are taken over.  A copy of a SQLite database is put back as it is, after its schema
was held against what the migrations make.
"""

import io
import itertools
import os
import re
import shutil
import sqlite3
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import psycopg
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from psycopg import sql
from psycopg.conninfo import make_conninfo

from birthmark import errors
from birthmark.adapters.sql.database import Broken, failure_of
from birthmark.adapters.sql.log import CHECKPOINT, HEAD, LEAF
from birthmark.adapters.sql.migrate import migrate
from birthmark.adapters.sql.postgresql import connection_parameters
from birthmark.adapters.sql.schema import deviations, parts_of_dump, parts_of_sqlite
from birthmark.adapters.sql.tables import METADATA
from birthmark.secret import SecretBytes
from birthmark.services.backup import CopyReader, DatabaseCopies, Engine

__all__ = ["copies_of", "dumped_schema", "read_copy"]

_PAGES = 2048
"""How much of a SQLite file is copied at a time."""
_MIGRATIONS = Path(__file__).parent / "migrations"
_PRESENT = "SELECT count(*) FROM pg_catalog.pg_class WHERE relnamespace = 'public'::regnamespace"
_COLUMNS = (
    "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public'"
    " AND table_name <> 'alembic_version'"
)


def copies_of(url: str, password: SecretBytes | None = None) -> DatabaseCopies:
    """Return what copies the database of a URL, and puts a copy back.

    Raises:
        errors.MalformedRequest: another kind of URL.
    """
    if url.startswith("sqlite:///"):
        return _SQLiteCopies(Path(url.removeprefix("sqlite:///")))
    return _PostgreSQLCopies(url, password)


def read_copy(engine: Engine, path: Path) -> CopyReader:
    """Return what reads a copy."""
    return _SQLiteReader(path) if engine is Engine.SQLITE else _PostgreSQLReader(path)


def _require_known(schema: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    try:
        ScriptDirectory.from_config(config).get_revision(schema)
    except CommandError as cause:
        raise errors.MalformedRequest(
            f"the backup has schema {schema[:40]}, which this program does not know: take a newer one"
        ) from cause


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as cause:
        raise errors.Unavailable(f"{path} cannot be written: {cause.strerror}") from cause


# --- SQLite -------------------------------------------------------------------------------------------------


class _SQLiteCopies:
    engine = Engine.SQLITE

    def __init__(self, path: Path) -> None:
        self._path = path

    def copy(self, out: Path, told: Callable[[int, int], None]) -> None:
        if not self._path.is_file():
            raise errors.NotFound(f"there is no database at {self._path}")
        try:
            with (
                closing(sqlite3.connect(_uri(self._path, "rw"), uri=True, isolation_level=None)) as source,
                closing(sqlite3.connect(out, isolation_level=None)) as target,
            ):
                source.execute("BEGIN")  # one moment, however many steps: nobody's commit restarts the copy
                source.execute("SELECT size FROM head").fetchone()
                source.backup(
                    target, pages=_PAGES, progress=lambda _status, left, total: told(total - left, total)
                )
                target.execute("PRAGMA journal_mode = DELETE")  # one file, without a log of its own
        except sqlite3.Error as cause:
            raise failure_of(cause) from cause

    def require_empty(self) -> None:
        for name in (self._path, *self._remains()):
            if name.exists():
                raise errors.IllegalTransition(
                    f"{name} is there: a backup is restored where nothing is; move it away first"
                )

    def _remains(self) -> tuple[Path, ...]:
        # What a log of the file that was there before holds would be played into the restored one.
        return tuple(Path(f"{self._path}{suffix}") for suffix in ("-wal", "-shm", "-journal"))

    def put_back(self, copy: Path, schema: str) -> None:
        _require_known(schema)
        self.require_empty()
        beside = self._path.with_name(f".{self._path.name}.restoring")
        with _disk(self._path):
            try:
                shutil.copyfile(copy, beside)
                beside.chmod(0o600)
                _synchronise(beside)
                os.link(beside, self._path)  # fails if something came to be there meanwhile
            finally:
                beside.unlink(missing_ok=True)
            _synchronise(self._path.parent)

    def take_back(self) -> None:
        with _disk(self._path):
            for name in (self._path, *self._remains()):
                name.unlink(missing_ok=True)

    def set_aside(self) -> str:
        with _disk(self._path):
            aside = next(name for name in map(self._aside, itertools.count(1)) if not name.exists())
            self._path.rename(aside)
            for name in self._remains():
                if name.exists():
                    name.rename(f"{aside}{str(name).removeprefix(str(self._path))}")
            _synchronise(self._path.parent)
        return str(aside)

    def _aside(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.refused-{number}")


def _synchronise(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _uri(path: Path, mode: str) -> str:
    return f"{path.absolute().as_uri()}?mode={mode}"


class _SQLiteReader:
    def __init__(self, path: Path) -> None:
        self._path = path

    def _rows(self, statement: str) -> Iterator[tuple[Any, ...]]:
        try:
            with closing(sqlite3.connect(f"{_uri(self._path, 'ro')}&immutable=1", uri=True)) as db:
                db.execute("PRAGMA trusted_schema = OFF")
                yield from db.execute(statement)
        except (sqlite3.Error, UnicodeDecodeError) as cause:
            raise errors.MalformedRequest(f"the copy of the database cannot be read: {cause}") from cause

    def _one(self, statement: str) -> tuple[Any, ...]:
        rows = list(self._rows(f"{statement} LIMIT 2"))
        if len(rows) != 1:
            raise errors.MalformedRequest("the copy of the database is not of a realm")
        return rows[0]

    def schema(self) -> str:
        return str(self._one("SELECT version_num FROM alembic_version")[0])

    def realm(self) -> tuple[str, str, str, str]:
        name, environment, origin, vkey = self._one("SELECT name, environment, origin, vkey FROM realm")
        return str(name), str(environment), str(origin), str(vkey)

    def head(self) -> tuple[int, bytes]:
        return _typed(self._one("SELECT size, edge FROM head"), int, bytes)

    def leaves(self) -> Iterator[tuple[int, bytes, bytes]]:
        for row in self._rows("SELECT idx, hash, entry FROM leaf ORDER BY idx"):
            yield _typed(row, int, bytes, bytes)

    def checkpoints(self) -> Iterator[tuple[int, str]]:
        for row in self._rows("SELECT size, note FROM checkpoint ORDER BY size"):
            yield _typed(row, int, str)

    def deviations(self) -> list[str]:
        found = deviations("sqlite", parts_of_sqlite(self._rows), self.schema())
        # An index that does not hold what its table does answers a look-up by key with nothing.
        said = [str(row[0]) for row in self._rows("PRAGMA integrity_check(3)")]
        return found if said == ["ok"] else [*found, *(f"SQLite finds it damaged: {one}" for one in said)]


def _typed(row: tuple[Any, ...], *types: type) -> tuple[Any, ...]:
    """Return a row whose values are of these types: a copy may come from anybody."""
    if not all(type(value) is wanted for value, wanted in zip(row, types, strict=True)):
        raise errors.MalformedRequest("the copy of the database holds values of other types than ours")
    return row


# --- PostgreSQL ---------------------------------------------------------------------------------------------


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise errors.NotFound(f"{name} is not installed: PostgreSQL's client programs bring it")
    return found


class _PostgreSQLCopies:
    engine = Engine.POSTGRESQL

    def __init__(self, url: str, password: SecretBytes | None) -> None:
        self._url = url
        self._parameters = connection_parameters(url)
        self._password = password

    def copy(self, out: Path, told: Callable[[int, int], None]) -> None:
        told(0, 1)
        options = ("--format=custom", "--encoding=UTF8", "--no-owner", "--no-privileges")
        self._run("pg_dump", *options, f"--file={out}", self._target())
        told(1, 1)

    def require_empty(self) -> None:
        with self._connected() as db:
            row = db.execute(_PRESENT).fetchone()
        if row is None or row[0]:
            raise errors.IllegalTransition(
                "the database holds something: a backup is restored into an empty one; make a new one first"
            )

    def put_back(self, copy: Path, schema: str) -> None:
        _require_known(schema)
        self.require_empty()
        try:
            migrate(self._url, self._password, revision=schema)
            with self._connected() as db, db.transaction():
                db.execute("SET LOCAL client_encoding = 'UTF8'")
                self._load(db, copy)
        except BaseException:
            self.take_back()
            raise

    def _load(self, db: psycopg.Connection[Any], copy: Path) -> None:
        columns: dict[str, set[str]] = defaultdict(set)
        for table, column in db.execute(_COLUMNS.encode()):
            columns[table].add(column)
        with _printed("--data-only", str(copy)) as script:
            missing = set(columns)
            for table, named in _blocks(script, columns):
                if table not in missing:
                    raise errors.MalformedRequest(f"the copy of the database has table {table} twice")
                missing.remove(table)
                try:
                    with db.cursor().copy(_copy_statement(table, named)) as into:
                        for piece in _pieces(script):
                            into.write(piece)
                except psycopg.Error as cause:
                    meant = failure_of(cause)
                    if isinstance(meant, Broken):
                        raise errors.MalformedRequest(
                            f"table {table} in the copy is not fit: {meant}"
                        ) from cause
                    raise meant from cause
        if missing:
            raise errors.MalformedRequest(f"the copy of the database lacks table {min(missing)}")

    def take_back(self) -> None:
        with self._connected() as db, db.transaction():
            for name in _TABLES:
                db.execute(sql.SQL("DROP TABLE IF EXISTS {} CASCADE").format(sql.Identifier("public", name)))
            db.execute("DROP FUNCTION IF EXISTS public.append_only() CASCADE")

    def set_aside(self) -> str:
        with self._connected() as db, db.transaction():
            schemas = {name for (name,) in db.execute("SELECT nspname FROM pg_catalog.pg_namespace")}
            aside = next(name for name in map("refused_{}".format, itertools.count(1)) if name not in schemas)
            to = sql.Identifier(aside)
            db.execute(sql.SQL("CREATE SCHEMA {}").format(to))
            for name in _TABLES:
                table = sql.Identifier("public", name)
                db.execute(sql.SQL("ALTER TABLE IF EXISTS {} SET SCHEMA {}").format(table, to))
            db.execute(sql.SQL("ALTER FUNCTION public.append_only() SET SCHEMA {}").format(to))
        return f"schema {aside}"

    @contextmanager
    def _connected(self) -> Iterator[psycopg.Connection[Any]]:
        secret = {} if self._password is None else {"password": self._password.reveal().decode()}
        try:
            with psycopg.connect("", autocommit=True, **{**self._parameters, **secret}) as db:
                yield db
        except psycopg.Error as cause:
            raise failure_of(cause) from cause

    def _target(self) -> str:
        named = {name: value for name, value in self._parameters.items() if name != "password"}
        return f"--dbname={make_conninfo('', **named)}"

    def _run(self, program: str, *arguments: str) -> None:
        environment = {**os.environ, "LC_ALL": "C.UTF-8"}
        secret = self._parameters.get("password")
        if self._password is not None:
            secret = self._password.reveal().decode()
        if secret is not None:
            environment["PGPASSWORD"] = str(secret)
        done = subprocess.run(  # noqa: S603  # PostgreSQL's own programs, found on PATH
            [_program(program), "--no-password", *arguments],
            stdin=subprocess.DEVNULL, capture_output=True, env=environment, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise errors.Unavailable(f"{program} failed: {_said(done.stderr)}")


def _said(output: bytes) -> str:
    lines = [line for line in output.decode(errors="replace").splitlines() if line.strip()]
    return lines[0].removeprefix("pg_dump: ").removeprefix("pg_restore: ") if lines else "it does not say why"


_TABLES = (*(table.name for table in METADATA.sorted_tables), "alembic_version")
_BLOCK = re.compile(rb'COPY public\."?(\w+)"? \(([\w", ]+)\) FROM stdin;\n')


@contextmanager
def _printed(*arguments: str) -> Iterator[IO[bytes]]:
    """Yield what ``pg_restore`` makes of a copy: SQL, which nobody here runs.

    Raises:
        errors.MalformedRequest: it is no copy, or damaged; not before all was read.
    """
    with subprocess.Popen(  # noqa: S603  # PostgreSQL's own program, found on PATH
        [_program("pg_restore"), "--no-owner", "--no-privileges", "--file=-", *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        try:
            if process.stdout is None:
                raise RuntimeError("its output was asked for")
            yield process.stdout
            if process.stdout.read(1) or process.wait() != 0:
                raise errors.MalformedRequest("the copy of the database cannot be read")
        finally:
            with suppress(ProcessLookupError):
                process.kill()


def dumped_schema(copy: Path) -> Iterator[str]:
    """Iterate over the lines of the schema in what ``pg_dump`` wrote.

    Raises:
        errors.MalformedRequest: it is none.
    """
    with _printed("--schema-only", str(copy)) as script:
        text = io.TextIOWrapper(script, encoding="utf-8", errors="backslashreplace", newline="\n")
        yield from (line.rstrip("\n") for line in _lines(text))


def _blocks(script: IO[bytes], columns: Mapping[str, set[str]]) -> Iterator[tuple[str, list[str]]]:
    """Iterate over the tables of these names; rows have to be read before the next one is asked for."""
    while line := script.readline(_LONGEST_ROW):
        block = _BLOCK.fullmatch(line)
        table = "" if block is None else block[1].decode("ascii", "replace")
        if block is not None and table in columns:
            named = [name.strip('" ') for name in block[2].decode("ascii", "replace").split(",")]
            if sorted(named) != sorted(columns[table]):
                raise errors.MalformedRequest(
                    f"table {table} in the copy has other columns than it must have"
                )
            yield table, named
        elif line.startswith(b"COPY "):  # a table that somebody added
            for _ in _pieces(script):
                pass


def _pieces(script: IO[bytes]) -> Iterator[bytes]:
    """Iterate over the rows of a block, long ones in pieces."""
    begins = True
    while piece := script.readline(_LONGEST_ROW):
        if begins and piece == b"\\.\n":
            return
        yield piece
        begins = piece.endswith(b"\n")
    raise errors.MalformedRequest("the copy of the database is cut off")


def _copy_statement(table: str, columns: list[str]) -> sql.Composed:
    return sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier("public", table), sql.SQL(", ").join(map(sql.Identifier, columns))
    )


_LONGEST_ROW = 1 << 20
"""Characters; a leaf's entry, in hexadecimal, has at most 131 070."""
_MOST_WAITING = 1 << 24
"""Octets of leaves that come before their turn."""
_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


class _PostgreSQLReader:
    """Reads what ``pg_dump`` wrote, through ``pg_restore``, which needs no server for it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def _rows(self, table: str, *columns: str) -> Iterator[tuple[str, ...]]:
        """Iterate over rows of a table as COPY spells them, undone (PostgreSQL 15, COPY, "Text Format")."""
        command = [_program("pg_restore"), "--data-only", f"--table={table}", "--file=-", str(self._path)]
        with subprocess.Popen(  # noqa: S603  # PostgreSQL's own program, found on PATH
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            try:
                if process.stdout is None:
                    raise RuntimeError("its output was asked for")
                # Lines end with a newline alone: nothing else that looks like one is COPY's.
                text = io.TextIOWrapper(process.stdout, encoding="utf-8", errors="strict", newline="\n")
                yield from _copied(_lines(text), columns)
            except UnicodeDecodeError as cause:
                raise errors.MalformedRequest(f"{table} in the copy is no text") from cause
            finally:
                with suppress(ProcessLookupError):
                    process.kill()

    def _one(self, table: str, *columns: str) -> tuple[str, ...]:
        rows = list(self._rows(table, *columns))
        if len(rows) != 1:
            raise errors.MalformedRequest("the copy of the database is not of a realm")
        return rows[0]

    def schema(self) -> str:
        return self._one("alembic_version", "version_num")[0]

    def realm(self) -> tuple[str, str, str, str]:
        name, environment, origin, vkey = self._one("realm", "name", "environment", "origin", "vkey")
        return name, environment, origin, vkey

    def head(self) -> tuple[int, bytes]:
        size, edge = self._one(HEAD.table, "size", "edge")
        return _integer(size), _octets(edge)

    def leaves(self) -> Iterator[tuple[int, bytes, bytes]]:
        # A table is dumped as it lies, which is nearly always in the order it was written in.
        waiting: dict[int, tuple[int, bytes, bytes]] = {}
        due = held = 0
        for index, digest, entry in self._rows(LEAF.table, "idx", "hash", "entry"):
            leaf = _integer(index), _octets(digest), _octets(entry)
            waiting[leaf[0]] = leaf
            held += _size(leaf)
            while due in waiting:
                held -= _size(waiting[due])
                yield waiting.pop(due)
                due += 1
            if held > _MOST_WAITING:
                raise errors.MalformedRequest(
                    f"leaf {due} is not where it belongs in the copy of the database, nor anywhere near: use"
                    " another copy"
                )
        yield from (waiting[index] for index in sorted(waiting))

    def checkpoints(self) -> Iterator[tuple[int, str]]:
        for size, note in self._rows(CHECKPOINT.table, "size", "note"):
            yield _integer(size), note

    def deviations(self) -> list[str]:
        return deviations("dump", parts_of_dump(dumped_schema(self._path)), self.schema())


def _size(leaf: tuple[int, bytes, bytes]) -> int:
    """Return about how much memory a leaf that waits takes; there may be very many small ones."""
    return 256 + len(leaf[1]) + len(leaf[2])


def _lines(text: io.TextIOWrapper) -> Iterator[str]:
    while line := text.readline(_LONGEST_ROW):
        if len(line) == _LONGEST_ROW:
            raise errors.MalformedRequest("the copy of the database is damaged: a row is too long")
        yield line


def _copied(lines: Iterator[str], columns: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    places: list[int] | None = None
    for line in lines:
        if places is None:
            if line.startswith("COPY "):
                named = line.partition("(")[2].partition(")")[0].split(", ")
                if not set(columns) <= set(named):
                    raise errors.MalformedRequest("the copy of the database lacks columns that we need")
                places = [named.index(column) for column in columns]
            continue
        if line == "\\.\n":
            return
        cells = line.removesuffix("\n").split("\t")
        if len(cells) <= max(places):
            raise errors.MalformedRequest("the copy of the database is damaged")
        yield tuple(_undone(cells[place]) for place in places)
    raise errors.MalformedRequest("the copy of the database cannot be read, or lacks a table that we need")


def _undone(cell: str) -> str:
    if "\\" not in cell:
        return cell
    first, *rest = cell.split("\\\\")
    parts = [first, *rest]
    return "\\".join(_simple(part) for part in parts)


def _simple(part: str) -> str:
    for letter, meant in _ESCAPES.items():
        part = part.replace(f"\\{letter}", meant)
    return part


def _integer(text: str) -> int:
    if not text.isascii() or not text.removeprefix("-").isdigit() or len(text) > 20:
        raise errors.MalformedRequest("a number in the copy of the database is none")
    return int(text)


def _octets(text: str) -> bytes:
    try:
        if not text.startswith("\\x"):
            raise ValueError("not in hex")
        return bytes.fromhex(text[2:])
    except ValueError as cause:
        raise errors.MalformedRequest("octets in the copy of the database are none") from cause
