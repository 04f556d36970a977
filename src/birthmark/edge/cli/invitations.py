"""``birthmark station invite``, ``join`` and ``renew-self``: stations that make their own key (SPEC C2).

``invite`` is given where the realm is and shows a code once.  ``join`` and ``renew-self`` are given at the
station: they need no settings and nothing of the server.
"""

import re
import sys
from datetime import timedelta
from getpass import getpass
from pathlib import Path
from typing import Annotated

import typer

from birthmark import errors
from birthmark.edge.addresses import known_as, plane_url, public_host
from birthmark.edge.cli import printing
from birthmark.edge.cli.clients import AuthorityOption, stations
from birthmark.edge.cli.hierarchy import certifier
from birthmark.edge.cli.options import DEFAULT_SETTINGS, AsDirectory, Out, SettingsPath
from birthmark.edge.cli.session import session_of
from birthmark.edge.roots import service_root
from birthmark.edge.station import Station
from birthmark.edge.station.codes import JoinCode, pin_of
from birthmark.edge.station.joining import join
from birthmark.floor.clients import Role
from birthmark.ports import carry
from birthmark.services.invitations import Guest
from birthmark.settings import Settings

__all__ = ["duration", "stations"]

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_LONGEST = 6
"""Digits of a number of them."""


def duration(text: str) -> timedelta:
    """Read how long: ``30m``, ``8h``, ``2d``.

    Raises:
        errors.MalformedRequest: it is not that.
    """
    found = re.fullmatch(r"([0-9]+)([smhd])", text)
    if found is None:
        raise errors.MalformedRequest(f"how long is written like 30m, 8h or 2d, not {text[:50]!r}")
    if len(found[1]) > _LONGEST:
        raise errors.MalformedRequest(f"{text[:50]} is too long: at most {_LONGEST} digits and a unit")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


@stations.command("invite")
def invite_station(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="1 to 64 of A-Z a-z 0-9 . _ -")],
    *,
    site: Annotated[str, typer.Option(help="Where it stands.")],
    line: Annotated[str, typer.Option(help="The line it belongs to.")],
    runs: Annotated[
        list[str] | None,
        typer.Option("--run", metavar="RUN", help="May work on this run only; may be given again. [all]"),
    ] = None,
    life: Annotated[
        str, typer.Option("--for", metavar="TIME", help="How long the code is good: 30m, 8h; at most 7d.")
    ] = "30m",
    hours: Annotated[int, typer.Option(help="How long each of its certificates is good.")] = 72,
    authority: AuthorityOption = None,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
) -> None:
    """Invite a station: print a one-time code with which it gets in, with a key that it makes itself."""
    with session_of(context).acting(settings, as_directory) as (application, operator):
        guest = Guest(
            name=name,
            site=site,
            line=line,
            runs=tuple(runs or ()),
            authority=authority or certifier(application, Role.STATION),
            life=duration(life),
            hours=hours,
        )
        pin = pin_of(service_root(application).der)
        secret, invitation = carry(application.store, application.invitations.invite(operator.caller, guest))
        where = _enrolment_url(application.settings)
    printing.fields(
        {
            "client": invitation.client,
            "until": invitation.expires_at,
            "at the station": f"birthmark station join {where} --out DIR",
            "code": JoinCode(secret=secret, pin=pin).spell(),
        }
    )
    if application.settings.enrolment_table is None:
        printing.warn("the settings have no [enrolment-plane]: nobody takes the code")


def _enrolment_url(settings: Settings) -> str:
    if settings.enrolment_table is None or settings.station_table is None:
        return "URL"
    plane = settings.station_table
    host = public_host(plane.host, *known_as(plane.certificate_file))
    return plane_url(host, settings.enrolment_table.port)


@stations.command("join")
def join_station(
    url: Annotated[str, typer.Argument(metavar="URL", help="The enrolment plane, https://HOST:PORT.")],
    *,
    out: Out,
    code_file: Annotated[
        Path | None,
        typer.Option(
            "--code-file", metavar="FILE", help="Where the code is. [asked for, or read from standard input]"
        ),
    ] = None,
    patience: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="How long to repeat while the service is away.")
    ] = 30.0,
) -> None:
    """Get in with a one-time code, at the station: make a key, and write the credential directory.

    The same command again goes on where it was, as long as the code is good.
    """
    name = join(url, JoinCode.parse(_typed(code_file)), out, patience_seconds=patience, on_wait=_say_why)
    printing.fields({"client": f"{Role.STATION}:{name}", "directory": out})


def _typed(code_file: Path | None) -> str:
    """Return the code; never from the arguments, which others on this machine can read."""
    try:
        if code_file is not None:
            return code_file.read_text(encoding="ascii")
        return getpass("code: ") if sys.stdin.isatty() else sys.stdin.readline()
    except UnicodeDecodeError as wrong:
        raise errors.MalformedRequest("the code has letters and digits only") from wrong
    except OSError as wrong:
        raise errors.NotFound(f"{code_file} cannot be read: {wrong.strerror}") from wrong


def _say_why(reason: str, seconds: float) -> None:
    printing.warn(f"waiting {seconds:.1f} s: {printing.shown(reason)}")


@stations.command("renew-self")
def renew_self(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The station's credential directory.")],
    *,
    url: Annotated[
        str | None, typer.Option(help="The service, in place of the one in the credential.")
    ] = None,
) -> None:
    """Renew a station's key and certificate, at the station, with the certificate it has."""
    with Station(directory, url, patience_seconds=30.0, on_wait=_say_why) as station:
        ends = station.renew()
    printing.fields({"directory": directory, "until": ends})
