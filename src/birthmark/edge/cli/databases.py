"""``birthmark database``: the database's schema."""

import typer

from birthmark.edge.cli import printing
from birthmark.edge.cli.options import DEFAULT_SETTINGS, SettingsPath
from birthmark.edge.cli.session import session_of
from birthmark.settings import load

__all__ = ["databases"]

databases = typer.Typer(name="database", no_args_is_help=True, help="The database's schema.")


@databases.callback()
def group() -> None:
    """Keep ``migrate`` a command of its own although it is the only one."""


@databases.command()
def migrate(context: typer.Context, *, settings: SettingsPath = DEFAULT_SETTINGS) -> None:
    """Bring the database to the newest schema; what is in it stays."""
    loaded = load(settings)
    session_of(context).factory().migrate(loaded.database)
    printing.line("the database has the newest schema")
