"""``birthmark bootstrap code``: a one-time code for a device that comes by EST or CMP (SPEC C9, H1)."""

from datetime import timedelta
from typing import Annotated

import typer

from birthmark.edge.addresses import device_plane_url
from birthmark.edge.cli import printing
from birthmark.edge.cli.clients import bootstraps
from birthmark.edge.cli.inputs import device_id
from birthmark.edge.cli.options import DEFAULT_SETTINGS, AsDirectory, AsJson, SettingsPath
from birthmark.edge.cli.session import session_of
from birthmark.ports import carry
from birthmark.services.codes import Guest, give_code

__all__ = ["bootstraps"]


@bootstraps.command("code")
def give(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="What the code goes by: 1 to 64 of A-Z a-z 0-9 . _ -")
    ],
    *,
    hardware_id: Annotated[
        str,
        typer.Option(metavar="KIND:ID", help="The one device it is for, e.g. vin:1M8GDM9AXKP042788."),
    ],
    run: Annotated[str, typer.Option(metavar="RUN", help="The run that admits it.")],
    minutes: Annotated[int, typer.Option(metavar="N", help="How long it is good; at most 43200.")] = 1440,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
    as_json: AsJson = False,
) -> None:
    """Print a one-time code with which a device fetches its identity by EST or CMP; it is shown only now.

    The name is the user name of HTTP Basic (EST), or a MAC's reference (CMP). 'bootstrap revoke' shuts it.
    """
    guest = Guest(name=name, device=device_id(hardware_id), run=run, life=timedelta(minutes=minutes))
    with session_of(context).acting(settings, as_directory) as (application, operator):
        giving = give_code(application.codes, application.runs, application.entropy, operator.caller, guest)
        code, credential = carry(application.store, giving)
        served = application.settings.device_table is not None
        where = device_plane_url(application.settings) if served else None
    shown = {
        "name": name,
        "code": code.reveal().decode("ascii"),
        "client": credential.client,
        "device": guest.device,
        "run": run,
        "until": credential.not_after,
        "at": where,
    }
    if as_json:
        printing.line(printing.json_text(shown))
    else:
        printing.fields(shown)
    if where is None:
        printing.warn("the settings have no [device-plane]: nobody takes the code")
