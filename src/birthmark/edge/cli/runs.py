"""``birthmark run``: production runs, the signed licences to issue (SPEC C3)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from birthmark import errors
from birthmark.edge.application import Application
from birthmark.edge.cli import allowlists, printing
from birthmark.edge.cli.hierarchy import only_authority
from birthmark.edge.cli.inputs import moment, pairs
from birthmark.edge.cli.options import DEFAULT_SETTINGS, AsDirectory, AsJson, Reason, SettingsPath
from birthmark.edge.cli.session import session_of
from birthmark.floor.clients import Credential
from birthmark.floor.devices import KeyOrigin
from birthmark.floor.hardware_ids import HardwareIdKind, HardwareIdRule
from birthmark.floor.revocations import Partitioning
from birthmark.floor.runs import Run, RunLicence, RunPurpose, RunStatus
from birthmark.ledger.entry import decode
from birthmark.ports import carry
from birthmark.services.runs import signers

__all__ = ["runs"]

runs = typer.Typer(
    name="run",
    no_args_is_help=True,
    help="Production runs: what is made, how many, where, until when, under whose licence.",
)
DEFAULT_HOURS = 24
_IDS, _SCOPE, _CERTIFICATES = "Hardware ids", "Inside whose scope", "Certificates"
_LOCATIONS = frozenset({"crl_url", "ocsp_url", "issuer_url"})
"""Variables that say where things are published: the settings know them."""


def document(run: Run) -> dict[str, object]:
    """Return a run as it is shown."""
    licence = RunLicence.decode(run.document)
    rule = licence.hardware_id
    return {
        "id": run.id,
        "status": str(run.status),
        "purpose": str(licence.purpose),
        "looked_at": licence.approval,
        "product": licence.product,
        "batch": licence.batch,
        "class": licence.device_class or None,
        "region": licence.region or None,
        "site": licence.site or None,
        "profile": licence.profile,
        "further_profiles": list(licence.further_profiles),
        "profile_sha256": licence.profile_sha256,
        "element": licence.element or None,
        "element_sha256": licence.element_sha256 or None,
        "firmware": licence.firmware or None,
        "partition": licence.partition,
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
        "approver": run.approver,
        "approval": None if run.approval is None else run.approval.hex(),
    }


def _evidence(application: Application, run: Run) -> Mapping[str, Any]:
    """Return what was inspected and tried when a run was opened, as the log says."""
    if run.opening is None:
        return {}
    (item,) = application.log.entries(run.opening, run.opening + 1)
    entry = decode(item.entry)
    names = (
        "inspections",
        "constraints",
        "negative_tests",
        "negative_tests_done",
        "master",
        "scheme",
        "route",
    )
    return {"opening": {"entry": run.opening, **{name: entry[name] for name in names if name in entry}}}


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
    device_class: Annotated[
        str, typer.Option("--class", help="The devices' class.", rich_help_panel=_SCOPE)
    ] = "",
    region: Annotated[str, typer.Option(help="The market they are made for.", rich_help_panel=_SCOPE)] = "",
    site: Annotated[
        str,
        typer.Option(help="Where they are made: all stations must be there.", rich_help_panel=_SCOPE),
    ] = "",
    profile: Annotated[
        str, typer.Option(help="Their profile; see 'birthmark profile list'.", rich_help_panel=_CERTIFICATES)
    ] = "vehicle",
    further: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PROFILE",
            help="Another certificate that each device gets; may be given again.",
            rich_help_panel=_CERTIFICATES,
        ),
    ] = None,
    element: Annotated[
        str,
        typer.Option(
            metavar="ELEMENT",
            help="The secure element that each device has; see 'birthmark element list'.",
            rich_help_panel=_CERTIFICATES,
        ),
    ] = "",
    firmware: Annotated[
        str,
        typer.Option(metavar="REF", help="The firmware that the devices carry, e.g. 'bms-4.2.1 sha256:…'."),
    ] = "",
    partition: Annotated[
        Partitioning | None,
        typer.Option(
            help="Whose CRL they name. [batch, where the settings publish and the profile names a CRL]",
            rich_help_panel=_CERTIFICATES,
        ),
    ] = None,
    authority: Annotated[
        str | None, typer.Option(metavar="ID", help="Who certifies. [the only one for product and profiles]")
    ] = None,
    station: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Station that may work on it; may be given again."),
    ] = None,
    bootstrap_only: Annotated[
        bool, typer.Option("--bootstrap-only", help="No station: only devices with a bootstrap credential.")
    ] = False,
    operational: Annotated[
        bool,
        typer.Option(
            "--operational", help="It admits nothing: released devices get a certificate for where they work."
        ),
    ] = False,
    approval: Annotated[
        bool,
        typer.Option(
            "--approval", help="A person looks at each request by EST or CMP; see 'birthmark enrolment'."
        ),
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
        HardwareIdKind,
        typer.Option(
            help="What the devices are called by; a DLMS meter by its system-title.", rich_help_panel=_IDS
        ),
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
            metavar="NAME=VALUE",
            help="For the certificates' names, e.g. hardware_type=1.3.6.1.4.1.…",
            rich_help_panel=_CERTIFICATES,
        ),
    ] = None,
    sample: Annotated[
        str | None,
        typer.Option(metavar="ID", help="A hardware id for the first article.", rich_help_panel=_IDS),
    ] = None,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
    as_json: AsJson = False,
) -> None:
    """Open a run: sign a licence to issue with the operator's own key, and put it on record.

    In a production realm this proposes it, and another operator opens it with 'run approve'. A first article
    is made and inspected; a finding that the profile does not waive refuses the run.

    With --hardware-ids only the listed devices are admitted; the file is judged whole before anything is
    imported. Quantity and end are hard limits; a licence is never changed, only closed.
    """
    rule = HardwareIdRule(
        kind=hardware_id_kind,
        check_digit=check_digit,
        wmi=frozenset(w.upper() for w in wmi or []),
        pattern=pattern,
    )
    if [bool(station), bootstrap_only, operational].count(True) != 1:
        raise errors.MalformedRequest(
            "say which --station may work on the run, or --bootstrap-only, or --operational"
        )
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
        issued = (profile, *(further or ()))
        certifier = authority or only_authority(application, product=product, profiles=issued).id
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
            variables=given,
            opened_by=operator.caller.client.id,
            device_class=device_class,
            site=site,
            region=region,
            further_profiles=tuple(further or ()),
            element=element,
            element_sha256=application.runs.elements.load(element).sha256 if element else "",
            firmware=firmware,
            purpose=RunPurpose.OPERATIONAL if operational else RunPurpose.IDENTITY,
            approval=approval,
        )
        licence = _completed(application, licence, partition)
        signature = operator.sign(licence.encode())
        use_case = application.opening.open(operator.caller, licence, signature, sample=sample)
        opened = carry(application.store, use_case)
        shown = {**document(opened), **_evidence(application, opened)}
    _print(shown, as_json=as_json)
    if opened.status is RunStatus.PROPOSED and not as_json:
        printing.line(f"another operator opens it: birthmark run approve {run} --as DIR")


def _completed(application: Application, licence: RunLicence, wanted: Partitioning | None) -> RunLicence:
    """Return the licence with its profiles pinned, and the values that the settings know."""
    profiles = [application.catalogue.load(name) for name in (licence.profile, *licence.further_profiles)]
    publication = application.settings.publication_table
    given = sorted(_LOCATIONS & licence.variables.keys())
    if publication is not None and given:
        raise errors.MalformedRequest(f"the settings' [publication] says what {', '.join(given)} is")
    listed = all(profile.crl_distribution_point is not None for profile in profiles)
    default = Partitioning.BATCH if listed and publication is not None else Partitioning.NONE
    licence = replace(
        licence,
        profile_sha256=profiles[0].sha256,
        further_sha256=tuple(profile.sha256 for profile in profiles[1:]),
        partitioning=default if wanted is None else wanted,
    )
    known = {"organization": application.settings.realm.organization}
    if publication is not None:
        known |= publication.locations.variables(licence.authority, licence.partition)
    used = frozenset[str]().union(*(profile.variables for profile in profiles))
    variables = {name: value for name, value in known.items() if name in used} | dict(licence.variables)
    return replace(licence, variables=variables)


@runs.command("approve")
def approve_run(
    context: typer.Context,
    run: Annotated[str, typer.Argument(metavar="ID")],
    *,
    sample: Annotated[
        str | None, typer.Option(metavar="ID", help="A hardware id for the first article.")
    ] = None,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
    as_json: AsJson = False,
) -> None:
    """Open a run that another operator proposed: sign the same licence with your own key.

    Look at it first with 'run show'. Everything is judged again, and the first article inspected again.
    """
    with session_of(context).acting(settings, as_directory) as (application, operator):
        found = application.store.look({Run: (run,)}).get(Run, run)
        if found is None:
            raise errors.NotFound(f"there is no run {run}")
        signature = operator.sign(found.document)
        use_case = application.opening.approve(operator.caller, run, signature, sample=sample)
        opened = carry(application.store, use_case)
        shown = {**document(opened), **_evidence(application, opened)}
    _print(shown, as_json=as_json)


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


def _print(shown: dict[str, object], *, as_json: bool) -> None:
    if as_json:
        printing.line(printing.json_text(shown))
    else:
        _say(shown)


def _say(shown: Mapping[str, object]) -> None:
    flat = {name: value for name, value in shown.items() if not isinstance(value, dict | list)}
    for name in ("stations", "origins", "further_profiles"):
        values = shown[name]
        flat[name] = ", ".join(values) if isinstance(values, list) and values else None
    for name in ("hardware_id", "allow_list", "variables"):
        table = shown[name]
        if isinstance(table, dict):
            flat[name] = ", ".join(f"{key}={value}" for key, value in table.items() if value) or None
    opening = shown.get("opening")
    tests: Sequence[Mapping[str, object]] = ()
    if isinstance(opening, dict):
        for one in opening.get("inspections", ()):
            flat[f"first article, {one['profile']}"] = _said_of(one)
        tests = opening.get("negative_tests", ())
        flat["constraints"] = (
            f"{opening['constraints']}; {opening['negative_tests_done']} wrong values refused"
        )
    printing.fields(flat)
    if tests:
        printing.line()
        keys = ("rule", "tried", "refused_with")
        printing.columns(keys, ([test[key] for key in keys] for test in tests))


def _said_of(inspection: Mapping[str, Any]) -> str:
    waived = [finding["code"] for finding in inspection["findings"]]
    return f"{inspection['inspector']}: " + (f"waived {', '.join(waived)}" if waived else "no finding")


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
    keys = (
        "id",
        "status",
        "purpose",
        "product",
        "quantity",
        "admitted",
        "released",
        "held",
        "scrapped",
        "not_after",
    )
    printing.columns(keys, ([row[key] for key in keys] for row in found))


@runs.command("show")
def show_run(
    context: typer.Context,
    run: Annotated[str, typer.Argument(metavar="ID")],
    *,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_json: AsJson = False,
) -> None:
    """Show a run: its licence, the signatures on it verified, its counters, and what was inspected."""
    with session_of(context).application(settings) as application:
        facts = application.store.look({Run: (run,)})
        found = facts.get(Run, run)
        if found is None:
            raise errors.NotFound(f"there is no run {run}")
        application.runs.verify(found, application.store.look({Credential: signers(found)}))
        shown = {**document(found), **_evidence(application, found)}
    _print(shown, as_json=as_json)


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
