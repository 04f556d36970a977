"""A backup of the whole record in one file, and what it has to prove before anybody relies on it (SPEC E7).

A ZIP archive of four members, in this order:

    README.txt      what this is
    manifest.json   whose record it is, how long its log is and with which root, the database's hash
    checkpoint      the log's newest signed checkpoint in it
    database        the database as its own program copies it (``engine`` says which)

It holds no key, PIN or passphrase, because the database holds none.  Its log proves itself: the tree over
the leaves must be the signed one, and every checkpoint in it, and every one that somebody outside holds, must
be a prefix.  The rest of the record is held against the log by ``check``, after it was restored.

A restored log may be shorter than it was.  Only checkpoints from outside can tell, so a restore wants to see
some, and what is lost is the first thing the restored log says.
"""

import base64
import shutil
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Protocol

from birthmark import errors
from birthmark.floor.clients import Capability
from birthmark.ledger.checkpoint import NOTE_LIMIT, Checkpoint, VerifierKey, decode_base64, open_note
from birthmark.ledger.entry import canonical, parse, parse_time, time_text
from birthmark.ledger.merkle import Edge, Frontier, leaf_hash
from birthmark.ports import Decision, Facts, UseCase
from birthmark.services.acts import Caller, decided, live_client
from birthmark.services.entry_fields import number_of, text_of

__all__ = [
    "Backup",
    "CopyReader",
    "DatabaseCopies",
    "Engine",
    "Manifest",
    "Restored",
    "Verified",
    "describe",
    "digest_of",
    "open_backup",
    "record_restore",
    "require_no_loss",
    "verify",
    "write_backup",
]

FORMAT = "birthmark-backup/v1"
MANIFEST_LIMIT = 65_536
MEMBERS = ("README.txt", "manifest.json", "checkpoint", "database")
_CHUNK = 1 << 20
_EPOCH = (1980, 1, 1, 0, 0, 0)
_PROGRESS_EVERY = 4096
_README = """\
A backup of a realm's database, made by Birthmark.

    birthmark backup verify FILE --vkey FILE [--checkpoint FILE ...]
    birthmark restore FILE --settings FILE --checkpoint FILE [...]

"database" is a SQLite database file, or what pg_dump writes in its custom format: manifest.json says which.
No key is in it: the key store is backed up apart from it.
"""


class Engine(StrEnum):
    """Whose database it is."""

    SQLITE = "sqlite"
    POSTGRESQL = "postgresql"


class CopyReader(Protocol):
    """Reads a copy of a database, without the database's server.

    Every method raises ``errors.MalformedRequest`` if it is none, or lacks what is looked for.
    """

    def schema(self) -> str:
        """Return the newest migration that the copy has seen."""
        ...

    def realm(self) -> tuple[str, str, str, str]:
        """Return name, environment, origin and verifier key of the realm."""
        ...

    def head(self) -> tuple[int, bytes]:
        """Return size and edge of the log."""
        ...

    def leaves(self) -> Iterator[tuple[int, bytes, bytes]]:
        """Iterate over index, hash and entry of the log's leaves, in their order."""
        ...

    def checkpoints(self) -> Iterator[tuple[int, str]]:
        """Iterate over all checkpoints that are stored: (size, signed note)."""
        ...

    def deviations(self) -> list[str]:
        """Return how its schema differs from what the migrations make, and what its engine finds damaged."""
        ...


class DatabaseCopies(Protocol):
    """Copies a database while it is in use, and puts a copy back.

    Every method raises ``errors.Unavailable`` if the database, its disk or a program it takes does not do its
    part, and ``errors.NotFound`` if that program is not installed.
    """

    @property
    def engine(self) -> Engine:
        """Whose database it is."""
        ...

    def copy(self, out: Path, told: Callable[[int, int], None]) -> None:
        """Write a copy as of one moment; others go on reading and writing meanwhile."""
        ...

    def require_empty(self) -> None:
        """Refuse a database that holds anything.

        Raises:
            errors.IllegalTransition: it does.
        """
        ...

    def put_back(self, copy: Path, schema: str) -> None:
        """Make an empty database what the copy is, wholly or not at all; durable on return.

        Nothing in the copy is run, and its schema is what the migrations make, provided that
        ``CopyReader.deviations`` found nothing.

        Raises:
            errors.IllegalTransition: it is not empty.
            errors.MalformedRequest: the copy is none, or of a schema that this program does not know.
        """
        ...

    def take_back(self) -> None:
        """Empty the database again that ``put_back`` filled."""
        ...

    def set_aside(self) -> str:
        """Keep what ``put_back`` filled where no settings look for it; return where."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a backup says of itself."""

    realm: str
    environment: str
    origin: str
    vkey: str
    engine: Engine
    schema: str
    size: int
    """Entries in the log."""
    root: bytes
    """Of the log, 32 octets."""
    checkpoint_sha256: str
    database_octets: int
    database_sha256: str
    program: str
    """Version of what made it."""
    made_at: datetime

    def encode(self) -> bytes:
        """Spell it, in the canonical JSON of log entries."""
        return canonical(
            {
                "format": FORMAT,
                "realm": self.realm,
                "environment": self.environment,
                "origin": self.origin,
                "vkey": self.vkey,
                "engine": str(self.engine),
                "schema": self.schema,
                "log_size": self.size,
                "log_root": base64.b64encode(self.root).decode(),
                "checkpoint_sha256": self.checkpoint_sha256,
                "database_octets": self.database_octets,
                "database_sha256": self.database_sha256,
                "program": self.program,
                "made_at": time_text(self.made_at),
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> "Manifest":
        """Read it back.

        Raises:
            errors.MalformedRequest: it is not, byte for byte, what ``encode`` writes.
        """
        said = parse(data)
        if said.get("format") != FORMAT:
            raise errors.MalformedRequest(f"the manifest is not of format {FORMAT}")
        try:
            engine = Engine(text_of(said, "engine"))
        except ValueError as cause:
            raise errors.MalformedRequest("the manifest names no engine that we know") from cause
        manifest = cls(
            realm=text_of(said, "realm"),
            environment=text_of(said, "environment"),
            origin=text_of(said, "origin"),
            vkey=text_of(said, "vkey"),
            engine=engine,
            schema=text_of(said, "schema"),
            size=number_of(said, "log_size"),
            root=decode_base64(text_of(said, "log_root")),
            checkpoint_sha256=text_of(said, "checkpoint_sha256"),
            database_octets=number_of(said, "database_octets"),
            database_sha256=text_of(said, "database_sha256"),
            program=text_of(said, "program"),
            made_at=parse_time(text_of(said, "made_at")),
        )
        if manifest.encode() != data:
            raise errors.MalformedRequest("the manifest has something that manifests do not have")
        return manifest


def describe(
    reader: CopyReader, database: BinaryIO, engine: Engine, *, program: str, made_at: datetime
) -> tuple[Manifest, str]:
    """Return the manifest of a copy, and the newest checkpoint in it.

    Raises:
        errors.IntegrityFailure: its log has no checkpoint.
    """
    realm, environment, origin, vkey = reader.realm()
    size, edge = reader.head()
    newest = max(reader.checkpoints(), default=None)
    if newest is None:
        raise errors.IntegrityFailure("the log has no checkpoint")
    octets, digest = digest_of(database)
    manifest = Manifest(
        realm=realm,
        environment=environment,
        origin=origin,
        vkey=vkey,
        engine=engine,
        schema=reader.schema(),
        size=size,
        root=Edge.from_bytes(size, edge).root(),
        checkpoint_sha256=sha256(newest[1].encode()).hexdigest(),
        database_octets=octets,
        database_sha256=digest,
        program=program,
        made_at=made_at,
    )
    return manifest, newest[1]


def digest_of(file: BinaryIO) -> tuple[int, str]:
    """Return how many octets a file has from here on, and their SHA-256 in hex."""
    octets, digest = 0, sha256()
    while piece := file.read(_CHUNK):
        octets += len(piece)
        digest.update(piece)
    return octets, digest.hexdigest()


# --- the archive --------------------------------------------------------------------------------------------


def write_backup(out: BinaryIO, manifest: Manifest, checkpoint: str, database: BinaryIO) -> None:
    """Write the archive."""
    with zipfile.ZipFile(out, "w", allowZip64=True) as archive:
        small = (("README.txt", _README.encode()), ("manifest.json", manifest.encode()))
        for name, data in (*small, ("checkpoint", checkpoint.encode())):
            archive.writestr(_member(name, zipfile.ZIP_STORED), data)
        # pg_dump has compressed what it writes.
        how = zipfile.ZIP_STORED if manifest.engine is Engine.POSTGRESQL else zipfile.ZIP_DEFLATED
        with archive.open(_member("database", how), "w", force_zip64=True) as member:
            shutil.copyfileobj(database, member, _CHUNK)


_WAYS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})


def _member(name: str, how: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.compress_type, info.external_attr = how, 0o600 << 16
    return info


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """An archive that is open."""

    manifest: Manifest
    checkpoint: str
    _archive: zipfile.ZipFile

    def extract(self, out: BinaryIO) -> None:
        """Write the database; never more than the manifest says.

        Raises:
            errors.IntegrityFailure: it is not what the manifest says.
            errors.MalformedRequest: it cannot be unpacked.
        """
        left, digest = self.manifest.database_octets, sha256()
        with _reading(), self._archive.open("database") as member:
            while piece := member.read(min(_CHUNK, left + 1)):
                left -= len(piece)
                digest.update(piece)
                if left < 0:
                    break
                out.write(piece)
        if left != 0 or digest.hexdigest() != self.manifest.database_sha256:
            raise errors.IntegrityFailure("the database in the backup is not what its manifest says")


@contextmanager
def open_backup(source: BinaryIO) -> Iterator[Backup]:
    """Open an archive; what it says is not believed yet.

    Raises:
        errors.MalformedRequest: it is none.
        errors.IntegrityFailure: its checkpoint is not what its manifest says.
    """
    with _reading():
        archive = zipfile.ZipFile(source)
    with archive:
        if sorted(names := archive.namelist()) != sorted(MEMBERS):
            strange = [name for name in names if name not in MEMBERS or names.count(name) > 1]
            raise errors.MalformedRequest(
                f"the file is no backup of ours: its members are not {', '.join(MEMBERS)}"
                + (f", as {strange[0][:40]!r} is there" if strange else "")
            )
        if any(member.compress_type not in _WAYS for member in archive.infolist()):
            # Other decompressors fail in other ways, and take other amounts of memory.
            raise errors.MalformedRequest("the file is no backup of ours: it is compressed in another way")
        manifest = Manifest.decode(_small(archive, "manifest.json", MANIFEST_LIMIT))
        checkpoint = _small(archive, "checkpoint", NOTE_LIMIT)
        if sha256(checkpoint).hexdigest() != manifest.checkpoint_sha256:
            raise errors.IntegrityFailure("the checkpoint in the backup is not what its manifest says")
        try:
            note = checkpoint.decode()
        except UnicodeDecodeError as cause:
            raise errors.MalformedRequest("the checkpoint in the backup is no text") from cause
        yield Backup(manifest=manifest, checkpoint=note, _archive=archive)


def _small(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    with _reading(), archive.open(name) as member:
        data = member.read(limit + 1)
    if len(data) > limit:
        raise errors.MalformedRequest(f"{name} in the backup is longer than {limit} octets")
    return data


@contextmanager
def _reading() -> Iterator[None]:
    """Raise what ``zipfile`` makes of an archive that is none, or is damaged."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, OverflowError) as cause:
        raise errors.MalformedRequest(f"the file is no backup, or is damaged: {cause}") from cause
    except (NotImplementedError, RuntimeError) as cause:  # an encrypted or otherwise compressed member
        raise errors.MalformedRequest(f"the file is no backup of ours: {cause}") from cause


# --- what it proves -----------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Verified:
    """What came of holding a backup against its own signatures and the checkpoints of others."""

    findings: list[str] = field(default_factory=list)
    entries: int = 0
    checkpoints: int = 0
    """How many that are stored in it agree."""
    outside: int = 0
    """How many of others' agree."""
    newest_outside: int | None = None
    """Size of the largest one that others hold; None if nobody brought any."""

    @property
    def missing(self) -> int:
        """How many entries others have seen that are not in it."""
        return max(0, (self.newest_outside or 0) - self.entries)

    @property
    def ok(self) -> bool:
        """Whether nothing contradicts; entries may be missing all the same."""
        return not self.findings


def verify(
    manifest: Manifest,
    checkpoint: str,
    reader: CopyReader,
    key: VerifierKey,
    outside: Iterable[str] = (),
    told: Callable[[int, int], None] = lambda _done, _total: None,
) -> Verified:
    """Hold a backup against the log's key and what others hold of the log.

    1. Its key is the trusted one, and signed a checkpoint of the manifest's size and root.
    2. The database is of the realm, schema and log that the manifest says, and its schema is what this
       program's migrations make: no trigger less, and nothing that runs more.
    3. The tree over its leaves is the signed one.
    4. Every checkpoint in it, and every one from outside that is not newer, is a prefix of that tree.

    Args:
        manifest: with the hashes of the parts, which ``Backup.extract`` has compared.
        checkpoint: the archive's.
        reader: of the database in it.
        key: of the log, from somebody who is trusted.
        outside: notes that others hold.
        told: how far it is.

    Raises:
        errors.MalformedRequest: what should be the database's copy cannot be read.
        errors.IntegrityFailure: a note from outside is not one of this log's.
    """
    report = Verified()
    if VerifierKey.parse(manifest.vkey) != key:
        report.findings.append("the backup is of a log with another key than the one that is trusted")
        return report
    _check_signed(report, manifest, checkpoint, key)
    if reader.realm() != (manifest.realm, manifest.environment, manifest.origin, manifest.vkey):
        report.findings.append("the database is of another realm than the manifest says")
    if reader.schema() != manifest.schema:
        report.findings.append("the database has another schema than the manifest says")
    report.findings += reader.deviations()
    expected, outsiders = _expected(report, reader, key, outside)
    tree = Frontier()
    for index, digest, entry in reader.leaves():
        if index != tree.size or leaf_hash(entry) != digest:
            report.findings.append(f"entry {index} is not the next one, or its hash is another")
            break
        tree.append(digest)
        if (roots := expected.pop(tree.size, None)) is not None:
            _compare(report, tree, roots)
        if tree.size % _PROGRESS_EVERY == 0:
            told(tree.size, manifest.size)
    told(tree.size, manifest.size)
    report.entries = tree.size
    if (tree.size, tree.root()) != (manifest.size, manifest.root):
        report.findings.append("the tree over the entries is not the one that the manifest says")
    size, edge = reader.head()
    if (size, edge) != (tree.size, tree.edge.to_bytes()):
        report.findings.append("the log's head is not what its entries make")
    report.findings += [
        f"a stored checkpoint speaks of {size} entries, there are {tree.size}"
        for size, roots in sorted(expected.items())
        if "stored" in {source for source, _ in roots}
    ]
    report.newest_outside = max(outsiders, default=None)
    return report


def _check_signed(report: Verified, manifest: Manifest, checkpoint: str, key: VerifierKey) -> None:
    try:
        signed = open_note(checkpoint, key)
    except errors.Refusal as refusal:
        report.findings.append(f"the checkpoint in the backup does not verify: {refusal}")
        return
    if signed != Checkpoint(manifest.origin, manifest.size, manifest.root):
        report.findings.append("the checkpoint in the backup is not of the manifest's log, size and root")


_Roots = set[tuple[str, bytes]]


def _expected(
    report: Verified, reader: CopyReader, key: VerifierKey, outside: Iterable[str]
) -> tuple[dict[int, _Roots], list[int]]:
    """Return which roots are claimed for which sizes and by whom, and the sizes that outsiders claim."""
    expected: dict[int, _Roots] = defaultdict(set)
    for size, note in reader.checkpoints():
        try:
            stored = open_note(note, key)
        except errors.Refusal as refusal:
            report.findings.append(f"the stored checkpoint of size {size} does not verify: {refusal}")
            continue
        if stored.size != size:
            report.findings.append(f"the stored checkpoint of size {size} speaks of {stored.size} entries")
        expected[stored.size].add(("stored", stored.root))
    received = [open_note(note, key) for note in outside]
    for checkpoint in received:
        expected[checkpoint.size].add(("outside", checkpoint.root))
    return expected, [checkpoint.size for checkpoint in received]


def _compare(report: Verified, tree: Frontier, roots: _Roots) -> None:
    root = tree.root()
    for source, claimed in sorted(roots):
        if claimed != root:
            report.findings.append(f"a checkpoint of size {tree.size} ({source}) contradicts the log")
        elif source == "stored":
            report.checkpoints += 1
        else:
            report.outside += 1


def require_no_loss(verified: Verified, *, accept_loss: bool) -> None:
    """Refuse to restore what proves nothing, or less than was there, unless somebody says so.

    Raises:
        errors.IntegrityFailure: it contradicts itself or others; nobody can accept that.
        errors.PolicyRefused: rule ``log-loss``: entries are missing, or nobody brought a checkpoint.
    """
    if not verified.ok:
        raise errors.IntegrityFailure(f"the backup is not to be trusted: {verified.findings[0]}")
    if accept_loss:
        return
    if verified.newest_outside is None:
        raise errors.PolicyRefused(
            "log-loss",
            "whether the backup is the newest, only checkpoints from outside can tell: bring those that"
            " stations hold with --checkpoint, or say --accept-loss",
        )
    if verified.missing:
        raise errors.PolicyRefused(
            "log-loss",
            f"the backup ends at entry {verified.entries}, and others hold a checkpoint of"
            f" {verified.newest_outside}: {verified.missing} entries are missing; look for a newer backup, or"
            " say --accept-loss, and it is the first thing the restored log says",
        )


# --- what the restored log says -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What was restored."""

    backup_sha256: str
    """Of the archive."""
    made_at: datetime
    size: int
    root: bytes
    newest_outside: int | None
    missing: int


def record_restore(caller: Caller, restored: Restored) -> UseCase[int]:
    """Make the restore the first entry after those that were restored; return its index.

    Raises:
        errors.IllegalTransition: somebody wrote to the log before.
        errors.NotPermitted: the caller may not.
    """
    fields = {
        "backup_sha256": restored.backup_sha256,
        "backup_made_at": time_text(restored.made_at),
        "log_size": restored.size,
        "log_root": base64.b64encode(restored.root).decode(),
        "newest_outside": restored.newest_outside,
        "entries_missing": restored.missing,
    }

    def decide(facts: Facts, at: datetime) -> Decision[int]:
        live_client(facts, caller, Capability.KEEP_KEYS, at)
        if facts.next_leaf != restored.size:
            raise errors.IllegalTransition("somebody wrote to the log before its restore was on record")
        return Decision(facts.next_leaf, [("log-restored", fields)])

    said = {"backup_sha256": restored.backup_sha256}
    return (yield from decided(caller, "restore", said, decide, {}))
