"""``birthmark recall``: revoke, suspend or reinstate many certificates at once, by two people (SPEC F1, K1).

One operator looks at what it would do and proposes it, another sees the same and approves; each signs the
order with their own key.  The approval carries it out; broken off, it goes on with ``resume``.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Annotated, Any

import typer

from birthmark import errors
from birthmark.edge.application import Application
from birthmark.edge.cli import printing
from birthmark.edge.cli.inputs import device_id, moment
from birthmark.edge.cli.options import DEFAULT_SETTINGS, AsDirectory, AsJson, SettingsPath
from birthmark.edge.cli.session import session_of
from birthmark.floor.recalls import (
    REASONS,
    Criterion,
    Recall,
    RecallAction,
    RecallOrder,
    RecallStatus,
    Selection,
    SelectionKind,
)
from birthmark.pki.revocation import ReasonCode
from birthmark.ports import carry
from birthmark.services.blastradius import Preview, selection_document

__all__ = ["recalls"]

recalls = typer.Typer(
    name="recall",
    no_args_is_help=True,
    help="Revoke, suspend or reinstate many certificates at once; it takes two people.",
)
_NAMED: tuple[SelectionKind | Criterion, ...] = (
    SelectionKind.DEVICE,
    SelectionKind.RUN,
    SelectionKind.BATCH,
    SelectionKind.AUTHORITY,
    SelectionKind.ISSUED_BY,
    SelectionKind.STATION,
    Criterion.OPERATOR,
    Criterion.FIRMWARE,
)
"""What can be named, in the order in which the commands take it."""
_SELECT, _SHOWN = "Which certificates: one of these", 20

Device = Annotated[
    str | None, typer.Option("--device", metavar="ID", help="Of one device, vin:…", rich_help_panel=_SELECT)
]
RunId = Annotated[str | None, typer.Option("--run", metavar="ID", help="Of a run.", rich_help_panel=_SELECT)]
Batch = Annotated[
    str | None, typer.Option("--batch", help="Of all runs of a batch.", rich_help_panel=_SELECT)
]
AuthorityId = Annotated[
    str | None,
    typer.Option(
        "--authority",
        metavar="ID",
        help="The authority's own: with it ends all that it issued.",
        rich_help_panel=_SELECT,
    ),
]
IssuedBy = Annotated[
    str | None,
    typer.Option(
        "--issued-by", metavar="ID", help="All that an authority issued; it stays.", rich_help_panel=_SELECT
    ),
]
Station = Annotated[
    str | None,
    typer.Option("--station", metavar="NAME", help="All that a station asked for.", rich_help_panel=_SELECT),
]
Operator = Annotated[
    str | None,
    typer.Option(
        "--operator",
        metavar="NAME",
        help="Of all devices a person worked on; see 'birthmark incident'.",
        rich_help_panel=_SELECT,
    ),
]
Firmware = Annotated[
    str | None,
    typer.Option(
        "--firmware",
        metavar="REF",
        help="Of all devices made with a firmware; see 'birthmark incident'.",
        rich_help_panel=_SELECT,
    ),
]
Since = Annotated[
    str | None,
    typer.Option(
        "--since",
        metavar="TIME",
        help="With --station, --operator, --firmware: from then on.",
        rich_help_panel=_SELECT,
    ),
]
Until = Annotated[
    str | None,
    typer.Option("--until", metavar="TIME", help="With the same: before. [now]", rich_help_panel=_SELECT),
]
Suspend = Annotated[
    bool, typer.Option("--suspend", help="Suspend them instead: certificateHold, which can be lifted.")
]
Reinstate = Annotated[bool, typer.Option("--reinstate", help="Lift their suspension instead.")]
RecallId = Annotated[str, typer.Argument(metavar="ID")]


def _selection(
    application: Application,
    named: Mapping[SelectionKind | Criterion, str | None],
    since: str | None,
    until: str | None,
) -> Selection:
    given = {kind: value for kind, value in named.items() if value is not None}
    if len(given) != 1:
        options = ", ".join(f"--{kind}" for kind in named)
        raise errors.MalformedRequest(f"say which certificates, with one of {options}")
    ((kind, value),) = given.items()
    if isinstance(kind, SelectionKind) and kind is not SelectionKind.STATION:
        if since is not None or until is not None:
            raise errors.MalformedRequest("--since and --until go with --station, --operator and --firmware")
        return Selection(kind=kind, value=device_id(value) if kind is SelectionKind.DEVICE else value)
    begins = None if since is None else moment(since)
    # What is chosen must not grow while people look at it.
    ends = _now(application) if until is None else moment(until)
    if isinstance(kind, SelectionKind):
        return Selection(kind=kind, value=value, since=begins, until=ends)
    if begins is None:
        raise errors.MalformedRequest(f"say with --since from when on --{kind} counts")
    return Selection(kind=SelectionKind.INCIDENT, value="", since=begins, until=ends, criteria={kind: value})


def _now(application: Application) -> datetime:
    now = application.clock.now()
    return now.replace(microsecond=now.microsecond // 1000 * 1000)  # what an order can say


def _named(*values: str | None) -> dict[SelectionKind | Criterion, str | None]:
    return dict(zip(_NAMED, values, strict=True))


def _action(*, suspend: bool, reinstate: bool) -> RecallAction:
    if suspend and reinstate:
        raise errors.MalformedRequest("either --suspend or --reinstate")
    if suspend:
        return RecallAction.SUSPEND
    return RecallAction.REINSTATE if reinstate else RecallAction.REVOKE


def _reason(action: RecallAction, reason: ReasonCode | None) -> ReasonCode:
    if reason is not None:
        return reason  # whether it goes with the action is the use case's to say
    if action is RecallAction.REVOKE:
        names = ", ".join(sorted(REASONS[action]))
        raise errors.MalformedRequest(f"say with --reason why: {names}")
    (only,) = REASONS[action]
    return only


def _preview(application: Application, selection: Selection, action: RecallAction) -> Preview:
    with printing.progress("counting") as advance:
        return carry(application.store, application.recalls.preview(selection, action, advance))


def document(recall: Recall, order: RecallOrder) -> dict[str, Any]:
    """Return a recall as it is shown."""
    selection = order.selection
    return {
        "id": recall.id,
        "status": str(recall.status),
        "action": str(order.action),
        "selection": selection_document(selection),
        "reason": str(order.reason),
        "because": order.justification,
        "invalid_since": order.invalidity_date,
        "previewed": order.previewed,
        "changed": recall.changed,
        "proposed_by": order.proposed_by,
        "proposed_at": recall.proposed_at,
        "proposer": recall.proposer,
        "approved_at": recall.approved_at,
        "approver": recall.approver,
    }


def _say(shown: Mapping[str, Any], selection: Selection) -> None:
    printing.fields({**shown, "selection": str(selection)})


def _say_preview(seen: Preview) -> None:
    shown = seen.document()
    flat = {name: value for name, value in shown.items() if not isinstance(value, dict | list)}
    tables = {name: _counted(shown[name]) for name in ("runs", "states", "already", "consignments", "crls")}
    printing.fields({"selection": str(seen.selection), **flat, **tables})
    for run in seen.open_runs:
        printing.line(f"run {run} still issues: close it before the recall is approved")
    for note in seen.notes:
        printing.line(f"note: {note}")


def _counted(table: Mapping[str, int]) -> str | None:
    """Return names and their numbers, the largest first, the many cut off."""
    ordered = sorted(table.items(), key=lambda item: (-item[1], item[0]))
    more = [] if len(ordered) <= _SHOWN else [f"… and {len(ordered) - _SHOWN} more"]
    return ", ".join([f"{name} {count}" for name, count in ordered[:_SHOWN]] + more) or None


@recalls.command()
def preview(
    context: typer.Context,
    *,
    device: Device = None,
    run: RunId = None,
    batch: Batch = None,
    authority: AuthorityId = None,
    issued_by: IssuedBy = None,
    station: Station = None,
    operator: Operator = None,
    firmware: Firmware = None,
    since: Since = None,
    until: Until = None,
    suspend: Suspend = False,
    reinstate: Reinstate = False,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_json: AsJson = False,
) -> None:
    """Show what a recall would do: how many, of which runs, how many are shipped. Changes nothing."""
    action = _action(suspend=suspend, reinstate=reinstate)
    named = _named(device, run, batch, authority, issued_by, station, operator, firmware)
    with session_of(context).application(settings) as application:
        seen = _preview(application, _selection(application, named, since, until), action)
    if as_json:
        printing.line(printing.json_text(seen.document()))
    else:
        _say_preview(seen)


@recalls.command()
def propose(
    context: typer.Context,
    *,
    device: Device = None,
    run: RunId = None,
    batch: Batch = None,
    authority: AuthorityId = None,
    issued_by: IssuedBy = None,
    station: Station = None,
    operator: Operator = None,
    firmware: Firmware = None,
    since: Since = None,
    until: Until = None,
    suspend: Suspend = False,
    reinstate: Reinstate = False,
    reason: Annotated[
        ReasonCode | None, typer.Option(help="Why, as RFC 5280 has it; goes into the CRL.")
    ] = None,
    because: Annotated[
        str, typer.Option(metavar="TEXT", help="Why, in your own words; goes into the order and the log.")
    ],
    invalid_since: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="For a compromise: since when the keys are suspected."),
    ] = None,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
    as_json: AsJson = False,
) -> None:
    """Propose a recall: sign the order with the operator's own key. Another person must approve it."""
    action = _action(suspend=suspend, reinstate=reinstate)
    why = _reason(action, reason)
    named = _named(device, run, batch, authority, issued_by, station, operator, firmware)
    suspected = None if invalid_since is None else moment(invalid_since)
    with session_of(context).acting(settings, as_directory) as (application, someone):
        seen = _preview(application, _selection(application, named, since, until), action)
        order = application.recalls.draft(someone.caller, seen, why, because, suspected)
        signature = someone.sign(order.encode())
        proposed = carry(application.store, application.recalls.propose(someone.caller, order, signature))
    if as_json:
        printing.line(printing.json_text({**document(proposed, order), "preview": seen.document()}))
        return
    _say_preview(seen)
    printing.line(f"proposed as {proposed.id}: another operator approves it with")
    printing.line(f"  birthmark recall approve {proposed.id} --as operators/NAME")


@recalls.command()
def approve(
    context: typer.Context,
    recall: RecallId,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
    as_json: AsJson = False,
) -> None:
    """Approve a recall as the second person, and carry it out.

    Shows what it would do now and asks. Given again after an interruption it goes on where it was.
    """
    if as_json and not yes:
        raise errors.MalformedRequest("--json shows nothing to decide on: give --yes, too")
    with session_of(context).acting(settings, as_directory) as (application, operator):
        found, order = carry(application.store, application.recalls.get(recall))
        if found.status is RecallStatus.PROPOSED and not as_json:
            _say(document(found, order), order.selection)
            printing.line()
            _say_preview(_preview(application, order.selection, order.action))
        if not yes:
            typer.confirm(f"{order.action} them?", abort=True, err=True)
        with printing.progress("recalling") as advance:
            approval = operator.sign(found.document)
            act = application.recalls.approve(operator.caller, recall, approval, advance)
            done = carry(application.store, act)
    _finished(done, order, as_json=as_json)


@recalls.command()
def resume(
    context: typer.Context,
    recall: RecallId,
    *,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
    as_json: AsJson = False,
) -> None:
    """Go on with an approved recall that was broken off; what is done is not done again."""
    with session_of(context).acting(settings, as_directory) as (application, operator):
        with printing.progress("recalling") as advance:
            done = carry(application.store, application.recalls.resume(operator.caller, recall, advance))
        _, order = carry(application.store, application.recalls.get(recall))
    _finished(done, order, as_json=as_json)


def _finished(done: Recall, order: RecallOrder, *, as_json: bool) -> None:
    if as_json:
        printing.line(printing.json_text(document(done, order)))
        return
    what = {
        RecallAction.REVOKE: "revoked",
        RecallAction.SUSPEND: "suspended",
        RecallAction.REINSTATE: "reinstated",
    }[order.action]
    printing.line(f"recall {done.id} is {done.status}: {done.changed} certificates {what}")
    printing.line("OCSP says so from now on, CRLs once they are published: birthmark publish")


@recalls.command()
def withdraw(
    context: typer.Context,
    recall: RecallId,
    *,
    because: Annotated[str, typer.Option(metavar="TEXT", help="Why; goes into the log.")],
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
) -> None:
    """Take a proposal back before it is approved."""
    with session_of(context).acting(settings, as_directory) as (application, operator):
        taken = carry(application.store, application.recalls.withdraw(operator.caller, recall, because))
    printing.line(f"recall {taken.id} is {taken.status}")


@recalls.command("list")
def list_recalls(
    context: typer.Context,
    *,
    status: Annotated[RecallStatus | None, typer.Option(help="Only these.")] = None,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_json: AsJson = False,
) -> None:
    """List the recalls and how far each is; whether they were signed is told by 'show' and 'check'."""
    with session_of(context).application(settings) as application:
        found = [
            (one, RecallOrder.decode(one.document))
            for one in application.store.scan(Recall)
            if status is None or one.status is status
        ]
    found.sort(key=lambda both: (both[0].proposed_at, both[0].id))
    if as_json:
        printing.line(printing.json_text([document(*both) for both in found]))
        return
    printing.columns(
        ("id", "status", "action", "selection", "reason", "previewed", "changed", "proposed_by", "at"),
        _rows(found),
    )


def _rows(found: Iterable[tuple[Recall, RecallOrder]]) -> Iterable[tuple[object, ...]]:
    for recall, order in found:
        yield (
            recall.id,
            recall.status,
            order.action,
            str(order.selection),
            order.reason,
            order.previewed,
            recall.changed,
            order.proposed_by,
            recall.proposed_at,
        )


@recalls.command()
def show(
    context: typer.Context,
    recall: RecallId,
    *,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_json: AsJson = False,
) -> None:
    """Show a recall, its signatures verified."""
    with session_of(context).application(settings) as application:
        found, order = carry(application.store, application.recalls.get(recall))
    if as_json:
        printing.line(printing.json_text(document(found, order)))
    else:
        _say(document(found, order), order.selection)
