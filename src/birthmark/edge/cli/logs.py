"""``birthmark log``: the audit log: read, carry away, and verify with nothing but its public key (SPEC E).

``verify`` and ``verify-proof`` need no realm, no database and no settings: the same checks as
``python -m birthmark.ledger.verify``, for whoever has the command at hand.
"""

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Annotated, BinaryIO, cast

import typer

from birthmark import errors
from birthmark.edge.cli import printing
from birthmark.edge.cli.options import DEFAULT_SETTINGS, AsJson, SettingsPath
from birthmark.edge.cli.session import session_of
from birthmark.ledger import entry as entries_format
from birthmark.ledger import proof, verify
from birthmark.ledger.bundle import split_notes, write_bundle
from birthmark.ledger.checkpoint import VerifierKey, open_note

if TYPE_CHECKING:  # verifying loads no use case
    from birthmark.edge.application import Application
    from birthmark.ports import LogEntry

__all__ = ["logs"]

logs = typer.Typer(
    name="log", no_args_is_help=True, help="The audit log: read it, carry it away, verify it anywhere."
)
VkeyOption = Annotated[
    Path, typer.Option("--vkey", metavar="FILE", help="The log's verifier key, from somebody you trust.")
]
FOLLOW_SECONDS = 0.5
_COMMON = {"v", "at", "realm", "environment", "actor", "seq", "operator", "kind"}


@logs.command()
def checkpoint(context: typer.Context, *, settings: SettingsPath = DEFAULT_SETTINGS) -> None:
    """Print the newest signed checkpoint: what others keep, so that history cannot be rewritten."""
    with session_of(context).application(settings) as application:
        sys.stdout.write(application.store.checkpoint())


@logs.command()
def tail(
    context: typer.Context,
    *,
    count: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last entries.")] = 10,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with new ones until interrupted.")
    ] = False,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_json: AsJson = False,
) -> None:
    """Print the last entries; with --json each line is the entry as the log hashes it."""
    with session_of(context).application(settings) as application:
        at = max(application.log.size() - count, 0)
        while True:
            for item in application.log.entries(at):
                _print_entry(item, as_json=as_json)
                at = item.index + 1
            sys.stdout.flush()
            if not follow:
                return
            time.sleep(FOLLOW_SECONDS)


def _print_entry(item: "LogEntry", *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(item.entry.decode() + "\n")
        return
    entry = entries_format.decode(item.entry)
    rest = " ".join(f"{name}={printing.shown(entry[name])}" for name in entry if name not in _COMMON)
    shortened = rest if len(rest) <= 200 else rest[:199] + "…"
    printing.line(f"{item.index} {entry['at']} {entry['kind']} {printing.shown(entry['actor'])} {shortened}")


@logs.command()
def export(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The bundle to write; must not exist.")],
    *,
    settings: SettingsPath = DEFAULT_SETTINGS,
) -> None:
    """Write the whole log, all its checkpoints and the identity records into one file for an auditor.

    The line may go on meanwhile: the bundle ends at the checkpoint that was the newest when it was begun.
    """
    if file.exists():
        raise errors.IllegalTransition(f"{file} exists already")
    with session_of(context).application(settings) as application:
        size = _export(application, file)
    printing.line(f"{size} entries in {file}; verify it with 'birthmark log verify {file} --vkey FILE'")


def _export(application: "Application", file: Path) -> int:
    vkey = VerifierKey.parse(application.realm.vkey)
    note = application.store.checkpoint()
    size = open_note(note, vkey).size
    try:
        # The name is given by link(2) when all is on disk: rename(2) would replace a file made meanwhile.
        place = file.absolute().parent
        with (
            printing.progress("exporting") as advance,
            NamedTemporaryFile(dir=place, prefix=f".{file.name}.") as out,
        ):
            write_bundle(
                cast(BinaryIO, out),
                vkey=vkey,
                checkpoint=note,
                entries=_entries(application, size, advance),
                records=_records(application, size),
                earlier=_earlier(application, size),
            )
            out.flush()
            os.fchmod(out.fileno(), 0o644)
            os.fsync(out.fileno())
            os.link(out.name, file)
    except FileExistsError as cause:
        raise errors.IllegalTransition(f"{file} exists already") from cause
    except OSError as cause:
        raise errors.Unavailable(f"{file} cannot be written: {cause.strerror}") from cause
    return size


def _entries(application: "Application", size: int, advance: printing.Advance) -> Iterator[bytes]:
    for item in application.log.entries(0, size):
        if item.index % 4096 == 0:
            advance(item.index, size)
        yield item.entry
    advance(size, size)


def _records(application: "Application", size: int) -> Iterator[tuple[int, dict[str, object]]]:
    from birthmark.floor.devices import IdentityRecord  # noqa: PLC0415  # verifying needs none

    for record in application.store.scan(IdentityRecord):
        if record.leaf >= size:
            return
        yield record.leaf, record.document()


def _earlier(application: "Application", size: int) -> Iterator[str]:
    for at, note in application.log.checkpoints():
        if at >= size:
            return
        yield note


@logs.command("proof")
def prove(
    context: typer.Context,
    index: Annotated[int, typer.Argument(min=0, metavar="INDEX")],
    *,
    settings: SettingsPath = DEFAULT_SETTINGS,
) -> None:
    """Print the proof of one entry (C2SP .tlog-proof): entry, inclusion proof and checkpoint."""
    with session_of(context).application(settings) as application:
        sys.stdout.write(application.store.token(index))


# --- without a realm ----------------------------------------------------------------------------------------


def _read_vkey(path: Path) -> VerifierKey:
    return VerifierKey.parse(_read_text(path))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as cause:
        raise errors.NotFound(f"{path} cannot be read: {cause.strerror}") from cause
    except UnicodeDecodeError as cause:
        raise errors.MalformedRequest(f"{path} is not text in UTF-8") from cause


def read_notes(paths: list[Path]) -> list[str]:
    """Read files of signed checkpoints, one after another in each; none in a file is an error.

    Raises:
        errors.NotFound: a file cannot be read.
        errors.MalformedRequest: it holds no checkpoint.
    """
    notes: list[str] = []
    for path in paths:
        *lines, last = _read_text(path).encode().split(b"\n")
        found = list(split_notes(lines))
        if last or not found:
            raise errors.MalformedRequest(f"{path} holds no signed checkpoint")
        notes += found
    return notes


@logs.command("verify")
def verify_log(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="What 'birthmark log export' wrote.")],
    *,
    vkey: VkeyOption,
    checkpoints: Annotated[
        list[Path] | None,
        typer.Option(
            "--checkpoint",
            metavar="FILE",
            help="Signed checkpoints that left the building: from stations, headquarters, printed reports.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Verify an exported log with nothing but its public key; exit 1 if anything is found.

    That the log is the same that others saw, it can show only with their checkpoints.
    """
    key, earlier = _read_vkey(vkey), read_notes(checkpoints or [])
    if not bundle.is_file():
        raise errors.NotFound(f"there is no file {bundle}")
    with printing.progress("verifying") as advance:
        report = verify.verify_bundle(bundle, key, earlier=earlier, progress=advance)
    if as_json:
        printing.line(printing.json_text({"ok": report.ok, **asdict(report)}))
    else:
        _print_report(report)
    raise typer.Exit(0 if report.ok else 1)


def _print_report(report: verify.Report) -> None:
    printing.fields(
        {
            "log": report.origin,
            "entries": report.size,
            "root": report.root,
            "realm": report.realm,
            "environment": report.environment,
            "first": report.first_at,
            "last": report.last_at,
            "checkpoints agreeing": report.earlier,
            "records agreeing": report.records,
        }
    )
    for step, claim, verdict in verify.verdicts(report):
        printing.line(f"{step}. {claim}: {verdict}")
    for finding in report.findings:
        printing.line(f"{finding.severity}: {printing.shown(finding.text)} (step {finding.step})")
    printing.line("ok" if report.ok else "NOT OK")


@logs.command("verify-proof")
def verify_token(
    token: Annotated[
        Path, typer.Argument(metavar="TOKENFILE", help="A release token, or any entry's proof.")
    ],
    *,
    vkey: VkeyOption,
) -> None:
    """Verify a release token offline and print the entry it proves."""
    entry = proof.verify(_read_text(token), _read_vkey(vkey))
    printing.line(printing.json_text(entry))
