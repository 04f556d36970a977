"""``birthmark serve``: the planes of the settings."""

from typing import Annotated

import typer

from birthmark.edge.cli.options import DEFAULT_SETTINGS, SettingsPath
from birthmark.edge.cli.session import session_of
from birthmark.floor.exposure import Plane
from birthmark.settings import load

__all__ = ["serve"]


def serve(
    context: typer.Context,
    *,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1, max=64, help="Processes of the station plane, sharing the database. [as the settings say]"
        ),
    ] = None,
    plane: Annotated[
        list[Plane] | None,
        typer.Option(help="Which plane; may be repeated. [all that the settings have]"),
    ] = None,
    settings: SettingsPath = DEFAULT_SETTINGS,
) -> None:
    """Run the planes of the settings (stations, devices, public, ops) until SIGTERM or Ctrl-C."""
    loaded = load(settings)
    from birthmark.edge.http.serve import serve as serve_planes  # noqa: PLC0415  # a web framework nobody else needs

    loader = session_of(context).loader
    raise typer.Exit(serve_planes(loader, loaded, processes=processes, planes=plane or ()))
