"""``birthmark incident``: everything that was touched between two instants, and its recall (SPEC E6).

What is listed comes from the log alone, on a live realm or in an exported bundle.  With ``--propose`` it goes
straight into a proposal to recall exactly the listed certificates that are live; another person approves it
with ``birthmark recall approve``.
"""

import csv
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from birthmark import errors
from birthmark.edge.cli import printing
from birthmark.edge.cli.histories import BundleFile, VkeyFile, opened_bundle
from birthmark.edge.cli.inputs import moment
from birthmark.edge.cli.options import DEFAULT_SETTINGS, AsDirectory, AsJson, SettingsPath
from birthmark.edge.cli.session import session_of
from birthmark.floor.recalls import Criterion, RecallAction, RecallOrder, Selection, SelectionKind
from birthmark.pki.revocation import ReasonCode
from birthmark.ports import carry
from birthmark.services.incidents import Incident, Touched, incident
from birthmark.services.log_reading import log_of

__all__ = ["show_incident"]

_WHOSE = "Whose acts: all that are given have to hold"
_COLUMNS = (
    "device", "state", "acts", "first", "last", "runs", "consignment", "shipped_at", "key_set", "certificate",
    "authority", "issued_at", "status",
)  # fmt: skip


def show_incident(
    context: typer.Context,
    *,
    since: Annotated[str, typer.Option("--from", metavar="TIME", help="From this instant on.")],
    until: Annotated[str, typer.Option("--until", metavar="TIME", help="Before this instant.")],
    station: Annotated[
        str | None, typer.Option(metavar="NAME", help="Done by a station.", rich_help_panel=_WHOSE)
    ] = None,
    operator: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Done by a person, or at a station in their name.", rich_help_panel=_WHOSE
        ),
    ] = None,
    authority: Annotated[
        str | None, typer.Option(metavar="ID", help="On runs it certifies.", rich_help_panel=_WHOSE)
    ] = None,
    run: Annotated[
        str | None, typer.Option(metavar="ID", help="On this run.", rich_help_panel=_WHOSE)
    ] = None,
    firmware: Annotated[
        str | None,
        typer.Option(metavar="REF", help="On runs whose licence names it.", rich_help_panel=_WHOSE),
    ] = None,
    element_profile: Annotated[
        str | None,
        typer.Option(metavar="ELEMENT", help="On runs with this secure element.", rich_help_panel=_WHOSE),
    ] = None,
    csv_file: Annotated[
        Path | None,
        typer.Option("--csv", metavar="FILE", help="Write the list of devices and certificates; a new file."),
    ] = None,
    propose: Annotated[
        ReasonCode | None,
        typer.Option(metavar="REASON", help="Propose to revoke what is live, for this reason (RFC 5280)."),
    ] = None,
    justification: Annotated[
        str | None, typer.Option(metavar="TEXT", help="With --propose: why; goes into the order and the log.")
    ] = None,
    bundle: BundleFile = None,
    vkey: VkeyFile = None,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
    as_json: AsJson = False,
) -> None:
    """Tell everything that was touched between two instants: devices, certificates, runs, clients, shipments.

    The whole log is read, and verified. With --propose, a recall of exactly the listed live certificates is
    proposed; another person approves it. Exit code 1 where the log contradicts itself.
    """
    selection = Selection(
        kind=SelectionKind.INCIDENT,
        value="",
        since=moment(since),
        until=moment(until),
        criteria=_criteria(station, operator, authority, run, firmware, element_profile),
    )
    if selection.since is not None and selection.until is not None and selection.since >= selection.until:
        raise errors.MalformedRequest("the window ends before it begins")
    if (propose is None) != (justification is None):
        raise errors.MalformedRequest("--propose and --justification go together")
    order: RecallOrder | None = None
    if bundle is not None:
        if propose is not None:
            raise errors.MalformedRequest("a recall is proposed in the realm, not on an exported log")
        with opened_bundle(bundle, vkey) as copy, printing.progress("reading") as advance:
            found = incident(copy, selection, advance)
    elif propose is None or justification is None:
        with (
            session_of(context).application(settings) as application,
            printing.progress("reading") as advance,
        ):
            found = incident(log_of(application.log, application.realm), selection, advance)
    else:
        found, order = _proposed(context, settings, as_directory, selection, propose, justification)
    if csv_file is not None:
        _write_csv(csv_file, found)
    if as_json:
        printing.line(printing.json_text(_document(found, order)))
    else:
        _print(found, order)
    raise typer.Exit(1 if found.contradictions else 0)


def _criteria(*values: str | None) -> dict[Criterion, str]:
    names = (
        Criterion.STATION,
        Criterion.OPERATOR,
        Criterion.AUTHORITY,
        Criterion.RUN,
        Criterion.FIRMWARE,
        Criterion.ELEMENT,
    )
    found = {name: value for name, value in zip(names, values, strict=True) if value is not None}
    if not found:
        raise errors.MalformedRequest(
            "say whose acts: --station, --operator, --authority, --run, --firmware or --element-profile"
        )
    return found


def _proposed(
    context: typer.Context,
    settings: Path,
    as_directory: Path | None,
    selection: Selection,
    reason: ReasonCode,
    justification: str,
) -> tuple[Incident, RecallOrder]:
    with session_of(context).acting(settings, as_directory) as (application, someone):
        with printing.progress("reading") as advance:
            found = incident(log_of(application.log, application.realm), selection, advance)
        seen = carry(application.store, application.recalls.preview(selection, RecallAction.REVOKE))
        if not seen.changes:
            raise errors.IllegalTransition(
                "none of the listed certificates is live: there is nothing to recall"
            )
        order = application.recalls.draft(someone.caller, seen, reason, justification)
        signature = someone.sign(order.encode())
        carry(application.store, application.recalls.propose(someone.caller, order, signature))
    return found, order


def _document(found: Incident, order: RecallOrder | None) -> dict[str, Any]:
    shown: dict[str, Any] = {
        **found.document(),
        "others": [asdict(one) for one in found.others],
        "list": [_device(one, found) for one in found.devices.values()],
    }
    if order is not None:
        shown["proposed"] = {"recall": order.id, "previewed": order.previewed, "reason": str(order.reason)}
    return shown


def _device(one: Touched, found: Incident) -> dict[str, Any]:
    return {
        "device": one.device,
        "state": one.state,
        "acts": dict(one.acts),
        "first": one.first,
        "last": one.last,
        "runs": sorted(one.runs),
        "consignment": one.consignment,
        "shipped_at": one.shipped_at,
        "key_set": one.key_set,
        "certificates": [asdict(found.listed[serial]) for serial in one.certificates],
    }


def _write_csv(path: Path, found: Incident) -> None:
    """Write a line for each certificate, or for a device that has none of the listed."""
    try:
        with path.open("x", encoding="utf-8", newline="") as file:
            out = csv.writer(file)
            out.writerow(_COLUMNS)
            for one in found.devices.values():
                for serial in one.certificates or [""]:
                    out.writerow(_cells(one, found, serial))
    except FileExistsError as cause:
        raise errors.IllegalTransition(f"{path} exists already") from cause
    except OSError as cause:
        raise errors.Unavailable(f"{path} cannot be written: {cause.strerror}") from cause


def _cells(one: Touched, found: Incident, serial: str) -> list[str]:
    listed = found.listed.get(serial)
    acts = " ".join(f"{name}={count}" for name, count in sorted(one.acts.items()))
    about = ["", "", ""] if listed is None else [listed.authority, listed.issued_at, listed.reason or "live"]
    return [
        one.device, one.state, acts, one.first, one.last, " ".join(sorted(one.runs)), one.consignment or "",
        one.shipped_at or "", one.key_set or "", serial, *about,
    ]  # fmt: skip


def _print(found: Incident, order: RecallOrder | None) -> None:
    shown = found.document()
    flat = {name: value for name, value in shown.items() if not isinstance(value, dict | list)}
    tables = ("states", "consignments", "key_sets", "not_live", "actors", "operators")
    printing.fields(
        {
            "selection": str(found.selection),
            **flat,
            **{name: _counted(shown[name]) for name in tables},
            "acts": _counted(shown["counts"]),
        }
    )
    if found.others:
        printing.line()
        printing.columns(
            ("entry", "at", "what", "actor", "said"),
            ((one.index, one.at, one.kind, one.actor, one.what) for one in found.others),
        )
    for contradiction in found.contradictions:
        printing.line(f"CONTRADICTION: {printing.shown(contradiction)}")
    if found.devices:
        printing.line("each device and certificate: --json, or --csv FILE")
    if order is not None:
        printing.line(
            f"proposed as {order.id}, for {order.previewed} certificates: another person approves it with"
        )
        printing.line(f"  birthmark recall approve {order.id} --as operators/NAME")


def _counted(table: Mapping[str, int]) -> str | None:
    return ", ".join(f"{name} {count}" for name, count in table.items()) or None
