"""``birthmark run``: production runs, the signed licences to issue (SPEC C3)."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from birthmark import errors
from birthmark.edge.application import Application
from birthmark.edge.cli import allowlists, printing
from birthmark.edge.cli.inputs import moment, only_authority, pairs
from birthmark.edge.cli.options import DEFAULT_SETTINGS, AsDirectory, AsJson, Reason, SettingsPath
from birthmark.edge.cli.session import session_of
from birthmark.floor.authorities import AuthorityKind
from birthmark.floor.clients import Credential
from birthmark.floor.devices import KeyOrigin
from birthmark.floor.hardware_ids import HardwareIdKind, HardwareIdRule
from birthmark.floor.runs import Run, RunLicence, RunStatus
from birthmark.ports import carry

__all__ = ["runs"]

runs = typer.Typer(
    name="run",
    no_args_is_help=True,
    help="Production runs: what is made, how many, where, until when, under whose licence.",
)
DEFAULT_HOURS = 24
_IDS = "Hardware ids"


def document(run: Run) -> dict[str, object]:
    """Return a run as it is shown."""
    licence = RunLicence.decode(run.document)
    rule = licence.hardware_id
    return {
        "id": run.id,
        "status": str(run.status),
        "product": licence.product,
        "batch": licence.batch,
        "profile": licence.profile,
        "authority": licence.authority,
        "quantity": run.quantity,
        "admitted": run.admitted,
        "released": run.released,
        "held": run.held,
        "scrapped": run.scrapped,
        "not_before": licence.not_before,
        "not_after": licence.not_after,
        "stations": list(licence.stations),
        "hardware_id": {
            "kind": str(rule.kind),
            "check_digit": rule.check_digit,
            "wmi": sorted(rule.wmi),
            "pattern": rule.pattern,
        },
        "allow_list": (
            None
            if licence.allow_list is None
            else {"count": licence.allow_list.count, "sha256": licence.allow_list.sha256}
        ),
        "origins": [str(origin) for origin in licence.origins],
        "variables": dict(licence.variables),
        "opened_by": licence.opened_by,
        "signer": run.signer,
        "signature": run.signature.hex(),
    }


@runs.command("open")
def open_run(
    context: typer.Context,
    run: Annotated[str, typer.Argument(metavar="ID", help="The work order's number.")],
    *,
    product: Annotated[str, typer.Option(help="What is made; the authority's scope must cover it.")],
    quantity: Annotated[
        int | None,
        typer.Option(metavar="N", help="The most devices it may admit, for ever. [all that are listed]"),
    ] = None,
    batch: Annotated[str | None, typer.Option(help="The batch. [the run's ID]")] = None,
    profile: Annotated[str, typer.Option(help="The certificates' profile: vehicle or idevid.")] = "vehicle",
    authority: Annotated[
        str | None, typer.Option(metavar="ID", help="Who certifies. [the only active one for the product]")
    ] = None,
    station: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Station that may work on it; may be given again."),
    ] = None,
    bootstrap_only: Annotated[
        bool, typer.Option("--bootstrap-only", help="No station: only devices with a bootstrap credential.")
    ] = False,
    start: Annotated[str | None, typer.Option("--from", metavar="TIME", help="When it opens. [now]")] = None,
    until: Annotated[
        str | None, typer.Option(metavar="TIME", help="When it ends, e.g. 2026-11-22T22:00Z.")
    ] = None,
    hours: Annotated[
        int | None, typer.Option(min=1, max=1_000_000, help="Or how long it lasts. [24]")
    ] = None,
    born: Annotated[bool, typer.Option("--born", help="Only keys made in the device. [both]")] = False,
    delivered: Annotated[
        bool, typer.Option("--delivered", help="Only keys made by the service. [both]")
    ] = False,
    hardware_id_kind: Annotated[
        HardwareIdKind, typer.Option(help="What the devices are called by.", rich_help_panel=_IDS)
    ],
    check_digit: Annotated[
        bool,
        typer.Option(help="VINs: position 9 is a check digit (North America, China).", rich_help_panel=_IDS),
    ] = False,
    wmi: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ABC", help="VINs: an accepted maker; may be given again.", rich_help_panel=_IDS
        ),
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(metavar="RE", help="Serials: what the whole serial must match.", rich_help_panel=_IDS),
    ] = None,
    hardware_ids: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.csv",
            help="Only these devices: a column headed hardware_id, or the first column.",
            rich_help_panel=_IDS,
        ),
    ] = None,
    variable: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="For the certificates' names, e.g. hardware_type=1.3.6.1.4.1.…"
        ),
    ] = None,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
    as_json: AsJson = False,
) -> None:
    """Open a run: sign a licence to issue with the operator's own key, and put it on record.

    With --hardware-ids only the listed devices are admitted; the file is judged whole before anything is
    imported. Quantity and end are hard limits; a licence is never changed, only closed.
    """
    rule = HardwareIdRule(
        kind=hardware_id_kind,
        check_digit=check_digit,
        wmi=frozenset(w.upper() for w in wmi or []),
        pattern=pattern,
    )
    if bool(station) == bootstrap_only:
        raise errors.MalformedRequest("say which --station may work on the run, or --bootstrap-only")
    if until is not None and hours is not None:
        raise errors.MalformedRequest("say when it ends with --until or with --hours, not with both")
    if quantity is None and hardware_ids is None:
        raise errors.MalformedRequest("say with --quantity how many devices the run may admit")
    given = pairs(variable or [])
    device_ids = None if hardware_ids is None else _judged(hardware_ids, rule)
    with session_of(context).acting(settings, as_directory) as (application, operator):
        not_before = moment(start) if start is not None else _now(application)
        length = timedelta(hours=hours or DEFAULT_HOURS)
        if application.store.look({Run: (run,)}).get(Run, run) is not None:
            raise errors.IllegalTransition(f"there is a run {run} already")
        certifier = authority or only_authority(application, AuthorityKind.ISSUING, product=product).id
        allow_list = None
        if device_ids is not None:
            with printing.progress("importing") as advance:
                allow_list = allowlists.import_list(
                    application.store, application.runs, operator.caller, device_ids, advance
                )
        licence = RunLicence(
            realm=application.realm.name,
            environment=str(application.realm.environment),
            id=run,
            product=product,
            batch=batch or run,
            profile=profile,
            authority=certifier,
            quantity=quantity if quantity is not None else len(device_ids or ()),
            not_before=not_before,
            not_after=moment(until) if until is not None else not_before + length,
            stations=tuple(dict.fromkeys(station or ())),
            hardware_id=rule,
            allow_list=allow_list,
            origins=_origins(born=born, delivered=delivered),
            variables={"organization": application.settings.realm.organization, **given},
            opened_by=operator.caller.client.id,
        )
        signature = operator.sign(licence.encode())
        opened = carry(application.store, application.runs.open(operator.caller, licence, signature))
    shown = document(opened)
    if as_json:
        printing.line(printing.json_text(shown))
    else:
        _say(shown)


def _judged(path: Path, rule: HardwareIdRule) -> list[str]:
    """Return a file's device ids.

    Raises:
        errors.MalformedRequest: a line is wrong; the first twenty were shown.
    """
    with printing.progress("reading") as advance:
        listed = allowlists.read_list(path, rule, advance)
    if listed.complaints:
        for complaint in allowlists.shown_complaints(listed):
            printing.warn(printing.shown(complaint))
        count = len(listed.complaints)
        raise errors.MalformedRequest(
            f"{path}: {count} {'line is' if count == 1 else 'lines are'} wrong; nothing was imported"
        )
    return listed.device_ids


def _now(application: Application) -> datetime:
    now = application.clock.now()
    return now.replace(microsecond=now.microsecond // 1000 * 1000)  # what the licence can say


def _origins(*, born: bool, delivered: bool) -> tuple[KeyOrigin, ...]:
    if born == delivered:
        return (KeyOrigin.BORN, KeyOrigin.DELIVERED)
    return (KeyOrigin.BORN,) if born else (KeyOrigin.DELIVERED,)


def _say(shown: dict[str, object]) -> None:
    flat = {name: value for name, value in shown.items() if not isinstance(value, dict | list)}
    for name in ("stations", "origins"):
        values = shown[name]
        flat[name] = ", ".join(values) if isinstance(values, list) and values else None
    for name in ("hardware_id", "allow_list", "variables"):
        table = shown[name]
        if isinstance(table, dict):
            flat[name] = ", ".join(f"{key}={value}" for key, value in table.items() if value) or None
    printing.fields(flat)


@runs.command("list")
def list_runs(
    context: typer.Context,
    *,
    status: Annotated[RunStatus | None, typer.Option(help="Only these.")] = None,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_json: AsJson = False,
) -> None:
    """List the runs and how far each is."""
    with session_of(context).application(settings) as application:
        found = [
            document(run) for run in application.store.scan(Run) if status is None or run.status is status
        ]
    if as_json:
        printing.line(printing.json_text(found))
        return
    keys = ("id", "status", "product", "quantity", "admitted", "released", "held", "scrapped", "not_after")
    printing.columns(keys, ([row[key] for key in keys] for row in found))


@runs.command("show")
def show_run(
    context: typer.Context,
    run: Annotated[str, typer.Argument(metavar="ID")],
    *,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_json: AsJson = False,
) -> None:
    """Show a run: its licence, whose signature on it is verified, and its counters."""
    with session_of(context).application(settings) as application:
        facts = application.store.look({Run: (run,)})
        found = facts.get(Run, run)
        if found is None:
            raise errors.NotFound(f"there is no run {run}")
        signer = application.store.look({Credential: (found.signer,)}).get(Credential, found.signer)
        application.runs.verify(found, signer)
    shown = document(found)
    if as_json:
        printing.line(printing.json_text(shown))
    else:
        _say(shown)


@runs.command("close")
def close_run(
    context: typer.Context,
    run: Annotated[str, typer.Argument(metavar="ID")],
    *,
    reason: Reason,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
) -> None:
    """Close a run: it admits nothing more; devices already issued may still be proved."""
    with session_of(context).acting(settings, as_directory) as (application, operator):
        closed = carry(application.store, application.runs.close(operator.caller, run, reason))
    printing.line(
        f"run {closed.id} is {closed.status}: {closed.released} of {closed.admitted} admitted devices are"
        f" released, {closed.held} held, {closed.scrapped} scrapped"
    )
