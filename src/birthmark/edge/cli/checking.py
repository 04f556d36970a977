"""``birthmark check``: everything on record held against everything else and the log."""

from pathlib import Path
from typing import Annotated

import typer

from birthmark.edge.cli import printing
from birthmark.edge.cli.logs import read_notes
from birthmark.edge.cli.options import DEFAULT_SETTINGS, AsJson, SettingsPath
from birthmark.edge.cli.session import session_of
from birthmark.services.check import check as check_realm

__all__ = ["check"]


def check(
    context: typer.Context,
    *,
    received_checkpoints: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="Checkpoints that stations or others hold; each must be a prefix of the log."
        ),
    ] = None,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_json: AsJson = False,
) -> None:
    """Hold everything on record against everything else and the log; exit 1 if anything contradicts.

    Nothing may be written meanwhile: stop the service, or check a copy.
    """
    notes = read_notes(received_checkpoints or [])
    with session_of(context).application(settings) as application, printing.stages() as told:
        report = check_realm(
            application.store, application.log, application.realm, progress=told, received_checkpoints=notes
        )
    if as_json:
        shown = {
            "ok": report.ok,
            "findings": report.findings,
            "notes": report.notes,
            "counts": dict(report.counts),
        }
        printing.line(printing.json_text(shown))
    else:
        printing.fields(report.counts)
        for note in report.notes:
            printing.line(f"note: {printing.shown(note)}")
        for finding in report.findings:
            printing.line(f"error: {printing.shown(finding)}")
        printing.line("ok" if report.ok else "NOT OK: stop the line and look")
    raise typer.Exit(0 if report.ok else 1)
