"""``birthmark backup`` and ``birthmark restore``: the whole record in one file, which has to prove itself.

``verify`` needs no database.  A restore is refused if the backup contradicts itself or what others hold, if
anything is there already, or if entries are missing and nobody said that this is accepted; until the restored
log has said so itself, it is undone when anything goes wrong, and what has findings is not left in place.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Annotated, BinaryIO, cast

import typer

import birthmark
from birthmark import errors
from birthmark.edge.application import Application, Factory
from birthmark.edge.cli import printing
from birthmark.edge.cli.logs import read_notes
from birthmark.edge.cli.options import DEFAULT_SETTINGS, AsDirectory, AsJson, SettingsPath
from birthmark.edge.cli.session import Session, session_of
from birthmark.ledger.checkpoint import VerifierKey, vkey
from birthmark.pki.algorithms import ALGORITHMS
from birthmark.pki.keys import KeyAlgorithm, KeyLabel
from birthmark.ports import carry
from birthmark.services.backup import (
    Backup,
    DatabaseCopies,
    Manifest,
    Restored,
    Verified,
    describe,
    digest_of,
    open_backup,
    record_restore,
    require_no_loss,
    verify,
    write_backup,
)
from birthmark.services.check import Report
from birthmark.services.check import check as check_realm
from birthmark.settings import Settings, load

__all__ = ["backups", "restore"]

backups = typer.Typer(
    name="backup", no_args_is_help=True, help="The whole record in one file: make it, prove it, restore it."
)

FilePath = Annotated[Path, typer.Argument(metavar="FILE", help="What 'birthmark backup create' wrote.")]
Checkpoints = Annotated[
    list[Path] | None,
    typer.Option(
        "--checkpoint",
        metavar="FILE",
        help="Signed checkpoints that left the building: from stations, headquarters, printed reports.",
    ),
]


@backups.command()
def create(
    context: typer.Context,
    *,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The file to write; must not exist.")],
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_json: AsJson = False,
) -> None:
    """Copy the database while the line works, as of one moment, and prove the copy.

    It holds no key: back up the key store apart from it.
    """
    if out.exists():
        raise errors.IllegalTransition(f"{out} exists already")
    loaded, factory = load(settings), session_of(context).factory()
    with _written(out) as (file, folder):
        manifest = _create(factory, loaded, folder / "database", file)
        file.seek(0)
        digest = digest_of(file)[1]
    _show({"backup": str(out), "sha256": digest, **_shown(manifest)}, as_json=as_json)


@contextmanager
def _written(out: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """Yield a file that gets its name when all is on disk, and a folder beside it for what comes between."""
    place = out.absolute().parent
    try:
        with (
            TemporaryDirectory(dir=place, prefix=f".{out.name}.") as folder,
            NamedTemporaryFile(dir=folder) as file,
        ):
            yield cast(BinaryIO, file), Path(folder)
            file.flush()
            os.fsync(file.fileno())
            os.link(file.name, out)  # rename(2) would replace a file made meanwhile
    except FileExistsError as cause:
        raise errors.IllegalTransition(f"{out} exists already") from cause
    except OSError as cause:
        raise errors.Unavailable(f"{out} cannot be written: {cause.strerror}") from cause


def _create(factory: Factory, settings: Settings, copy: Path, out: BinaryIO) -> Manifest:
    copies = factory.copies(settings.database)
    with printing.progress("copying") as advance:
        copies.copy(copy, advance)
    reader = factory.read_copy(copies.engine, copy)
    with copy.open("rb") as database:
        made_at = factory.clock().now()
        manifest, checkpoint = describe(
            reader, database, copies.engine, program=birthmark.__version__, made_at=made_at
        )
        if (manifest.realm, manifest.environment) != (settings.realm.name, settings.realm.environment):
            raise errors.IntegrityFailure(
                f"the settings are for realm {settings.realm.name}, the database belongs to {manifest.realm}"
            )
        with printing.progress("proving") as advance:
            verified = verify(manifest, checkpoint, reader, VerifierKey.parse(manifest.vkey), told=advance)
        if not verified.ok:
            raise errors.IntegrityFailure(f"the database is not fit for a backup: {verified.findings[0]}")
        database.seek(0)
        write_backup(out, manifest, checkpoint, database)
    return manifest


@backups.command("verify")
def verify_backup(
    context: typer.Context,
    file: FilePath,
    *,
    key_file: Annotated[
        Path | None,
        typer.Option(
            "--vkey", metavar="FILE", help="The log's verifier key. [that of the settings' key store]"
        ),
    ] = None,
    checkpoint: Checkpoints = None,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_json: AsJson = False,
) -> None:
    """Prove a backup with nothing but the log's public key; exit 1 if anything is found.

    Entries that others have seen and the backup lacks are told; they are what came after it was made.
    """
    notes, session = read_notes(checkpoint or []), session_of(context)
    with _opened(file) as (backup, _), TemporaryDirectory() as folder:
        key = _trusted(session, settings, key_file, backup.manifest)
        verified = _proved(session.factory(), backup, Path(folder) / "database", key, notes)
    _show({**_shown(backup.manifest), **_told(verified)}, as_json=as_json, verified=verified)
    raise typer.Exit(0 if verified.ok else 1)


def restore(
    context: typer.Context,
    file: FilePath,
    *,
    checkpoint: Checkpoints = None,
    accept_loss: Annotated[
        bool,
        typer.Option(
            "--accept-loss", help="Restore although entries are missing, or nobody can tell whether they are."
        ),
    ] = False,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
    as_json: AsJson = False,
) -> None:
    """Restore a backup into an empty database, and hold everything in it against everything else.

    The key store must be that of the backup's log. The first entry of the restored log says what was
    restored, by whom, and how many entries are missing of which others hold a checkpoint.
    """
    notes, session, loaded = read_notes(checkpoint or []), session_of(context), load(settings)
    factory = session.factory()
    copies = factory.copies(loaded.database)
    with _opened(file) as (backup, digest), TemporaryDirectory() as folder:
        manifest, copy = backup.manifest, Path(folder) / "database"
        _require_fit(manifest, loaded, copies)
        key = _trusted(session, settings, None, manifest)
        copies.require_empty()
        verified = _proved(factory, backup, copy, key, notes)
        require_no_loss(verified, accept_loss=accept_loss)
        copies.put_back(copy, manifest.schema)
    restored = Restored(
        backup_sha256=digest,
        made_at=manifest.made_at,
        size=manifest.size,
        root=manifest.root,
        newest_outside=verified.newest_outside,
        missing=verified.missing,
    )
    undo = _Undo(session=session, settings=settings, as_directory=as_directory, copies=copies)
    index, report, aside = undo.unless_proved(loaded, restored)
    told: dict[str, object] = {
        **_shown(manifest),
        **_told(verified),
        "backup_sha256": digest,
        "log_restored": index,
        "check_findings": report.findings,
        **({} if aside is None else {"set_aside": aside}),
        "ok": report.ok,
    }
    _show(told, as_json=as_json)
    if aside is not None:
        printing.warn(f"nothing is in place: what was restored has findings, and was set aside: {aside}")
    raise typer.Exit(0 if report.ok else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Undo:
    """What was put back goes again, unless its log says so; and is not left in place unless all agrees."""

    session: Session
    settings: Path
    as_directory: Path | None
    copies: DatabaseCopies

    def unless_proved(self, loaded: Settings, restored: Restored) -> tuple[int, Report, str | None]:
        """Bring what was put back to this program's schema and on record, and check it.

        Returns:
            the entry, what the check found, and where what has findings lies now.
        """
        recorded = False
        try:
            self.session.factory().migrate(loaded.database)
            with self.session.acting(self.settings, self.as_directory) as (application, operator):
                index = carry(application.store, record_restore(operator.caller, restored))
                recorded = True
                report = _checked(application)
        except BaseException:
            if recorded:
                self.copies.set_aside()
            else:
                self.copies.take_back()
            raise
        return index, report, None if report.ok else self.copies.set_aside()


def _checked(application: Application) -> Report:
    with printing.stages() as told:
        return check_realm(application.store, application.log, application.realm, progress=told)


def _require_fit(manifest: Manifest, settings: Settings, copies: DatabaseCopies) -> None:
    if (manifest.realm, manifest.environment) != (settings.realm.name, settings.realm.environment):
        raise errors.PolicyRefused(
            "realm",
            f"the backup is of realm {manifest.realm} ({manifest.environment}), the settings are for"
            f" {settings.realm.name} ({settings.realm.environment})",
        )
    if manifest.engine is not copies.engine:
        raise errors.PolicyRefused(
            "engine",
            f"the backup is of a {manifest.engine} database, the settings name one of {copies.engine}",
        )


def _trusted(session: Session, settings: Path, key_file: Path | None, manifest: Manifest) -> VerifierKey:
    """Return the log's key: from a file, or the public half of the one in the settings' key store."""
    if key_file is not None:
        try:
            return VerifierKey.parse(key_file.read_text(encoding="ascii"))
        except OSError as cause:
            raise errors.NotFound(f"{key_file} cannot be read: {cause.strerror}") from cause
        except UnicodeDecodeError as cause:
            raise errors.MalformedRequest(f"{key_file} is no verifier key") from cause
    loaded = load(settings)
    keys = session.factory().open_key_store(loaded.key_store)
    try:
        spki = keys.public_key(KeyLabel(loaded.log.key))
    finally:
        keys.close()
    return VerifierKey.parse(
        vkey(manifest.origin, spki.removeprefix(ALGORITHMS[KeyAlgorithm.ED25519].spki_prefix))
    )


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Backup, str]]:
    """Open a backup; yield it and its SHA-256."""
    try:
        file = path.open("rb")
    except OSError as cause:
        raise errors.NotFound(f"{path} cannot be read: {cause.strerror}") from cause
    with file:
        digest = digest_of(file)[1]
        file.seek(0)
        with open_backup(file) as backup:
            yield backup, digest


def _proved(factory: Factory, backup: Backup, copy: Path, key: VerifierKey, notes: list[str]) -> Verified:
    try:
        with copy.open("xb") as out:
            backup.extract(out)
    except OSError as cause:
        raise errors.Unavailable(f"{copy} cannot be written: {cause.strerror}") from cause
    reader = factory.read_copy(backup.manifest.engine, copy)
    with printing.progress("proving") as advance:
        return verify(backup.manifest, backup.checkpoint, reader, key, notes, told=advance)


def _shown(manifest: Manifest) -> dict[str, object]:
    return {
        "realm": manifest.realm,
        "environment": manifest.environment,
        "origin": manifest.origin,
        "engine": str(manifest.engine),
        "schema": manifest.schema,
        "entries": manifest.size,
        "root": manifest.root.hex(),
        "made_at": manifest.made_at,
        "database_octets": manifest.database_octets,
    }


def _told(verified: Verified) -> dict[str, object]:
    return {
        "checkpoints_agreeing": verified.checkpoints,
        "outside_agreeing": verified.outside,
        "newest_outside": verified.newest_outside,
        "entries_missing": verified.missing,
        "findings": verified.findings,
        "ok": verified.ok,
    }


def _show(values: dict[str, object], *, as_json: bool, verified: Verified | None = None) -> None:
    if as_json:
        printing.line(printing.json_text(values))
        return
    lists = {name: value for name, value in values.items() if isinstance(value, list)}
    printing.fields(
        {name.replace("_", " "): v for name, v in values.items() if name not in lists and name != "ok"}
    )
    for findings in lists.values():
        for finding in findings:
            printing.line(f"error: {printing.shown(finding)}")
    if "ok" in values:
        printing.line("ok" if values["ok"] else "NOT OK")
    if verified is not None and verified.missing:
        printing.line(f"note: {verified.missing} entries came after it was made")
