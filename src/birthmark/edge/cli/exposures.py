"""``birthmark exposure``: what can be reached, and when (SPEC C1, C2)."""

from collections.abc import Sequence
from typing import Annotated

import typer

from birthmark import errors
from birthmark.edge.cli import printing
from birthmark.edge.cli.inputs import moment
from birthmark.edge.cli.invitations import duration
from birthmark.edge.cli.options import DEFAULT_SETTINGS, AsDirectory, AsJson, Reason, SettingsPath
from birthmark.edge.cli.session import session_of
from birthmark.floor.exposure import Exposure, why_closed
from birthmark.ports import carry
from birthmark.services.exposures import clear_exposure, close_now, set_exposure

__all__ = ["exposures"]

exposures = typer.Typer(
    name="exposure",
    no_args_is_help=True,
    help="Planes, runs, stations and shared credentials that are open for a time.",
)
What = Annotated[
    str,
    typer.Argument(
        metavar="WHAT",
        help="plane:NAME, run:RUN, station:NAME, shared:NAME; planes: station, enrolment, device, gateway.",
    ),
]


@exposures.command("list")
def list_exposures(
    context: typer.Context, *, settings: SettingsPath = DEFAULT_SETTINGS, as_json: AsJson = False
) -> None:
    """List what is open or closed at a time; whatever is not here is open."""
    with session_of(context).application(settings) as application:
        found = list(application.store.scan(Exposure))
        now = application.clock.now()
    rows = [
        {
            "exposure": one.id,
            "state": "open" if why_closed(one, now) is None else "closed",
            "from": one.opens_at,
            "until": one.closes_at,
        }
        for one in found
    ]
    if as_json:
        printing.line(printing.json_text(rows))
        return
    heads: Sequence[str] = ("exposure", "state", "from", "until")
    printing.columns(heads, ([row[head] for head in heads] for row in rows))


@exposures.command("open")
def open_exposure(
    context: typer.Context,
    what: What,
    *,
    reason: Reason,
    life: Annotated[
        str | None,
        typer.Option("--for", metavar="TIME", help="How long, from its beginning on: 30m, 8h, 2d."),
    ] = None,
    begin: Annotated[str | None, typer.Option("--from", metavar="TIME", help="When. [now]")] = None,
    end: Annotated[
        str | None, typer.Option("--until", metavar="TIME", help="Until when. [until somebody closes it]")
    ] = None,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
) -> None:
    """Open something for a time: it is closed before, and closes by itself."""
    if life is not None and end is not None:
        raise errors.MalformedRequest("say --for or --until, not both")
    opens_at = None if begin is None else moment(begin)
    closes_at = None if end is None else moment(end)
    with session_of(context).acting(settings, as_directory) as (application, operator):
        if life is not None:
            closes_at = (opens_at or application.clock.now()) + duration(life)
            closes_at = closes_at.replace(microsecond=closes_at.microsecond // 1000 * 1000)
        exposure = carry(application.store, set_exposure(operator.caller, what, opens_at, closes_at, reason))
    _print(exposure)


@exposures.command("close")
def close_exposure(
    context: typer.Context,
    what: What,
    *,
    reason: Reason,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
) -> None:
    """Close something from this moment on, until it is opened or cleared."""
    with session_of(context).acting(settings, as_directory) as (application, operator):
        exposure = carry(application.store, close_now(operator.caller, what, reason))
    _print(exposure)


@exposures.command("clear")
def clear(
    context: typer.Context,
    what: What,
    *,
    reason: Reason,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
) -> None:
    """Leave something open without an end, as if no time had ever been said."""
    with session_of(context).acting(settings, as_directory) as (application, operator):
        exposure = carry(application.store, clear_exposure(operator.caller, what, reason))
    _print(exposure)


def _print(exposure: Exposure) -> None:
    printing.fields(
        {
            "exposure": exposure.id,
            "open from": exposure.opens_at,
            "until": exposure.closes_at or "somebody closes it",
        }
    )
