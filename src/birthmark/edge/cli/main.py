"""The ``birthmark`` command: all commands, and the one place where what they raise becomes an exit code.

A command parses, calls a use case and prints.  Refusals become one line and a code (``exits``); anything else
is a fault of ours, shown without detail.  Imports below this package stay clear of web framework and database
drivers: those come with the factory, and the factory comes when a command first needs it.
"""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

import birthmark
from birthmark import errors
from birthmark.edge.application import Factory
from birthmark.edge.cli import exits, printing
from birthmark.edge.cli.authorities import authorities
from birthmark.edge.cli.backups import backups, restore
from birthmark.edge.cli.ceremonies import ceremonies
from birthmark.edge.cli.clients import bootstraps
from birthmark.edge.cli.configuration import config
from birthmark.edge.cli.devices import devices
from birthmark.edge.cli.elements import elements
from birthmark.edge.cli.exposures import exposures
from birthmark.edge.cli.histories import show_history
from birthmark.edge.cli.incidents import show_incident
from birthmark.edge.cli.invitations import stations
from birthmark.edge.cli.keys import keys
from birthmark.edge.cli.logs import logs, read_notes
from birthmark.edge.cli.options import DEFAULT_SETTINGS, AsJson, SettingsPath
from birthmark.edge.cli.people import operators
from birthmark.edge.cli.profiles import profiles
from birthmark.edge.cli.proposals import proposals
from birthmark.edge.cli.provisioning import provision
from birthmark.edge.cli.publication import PlaneName, publish, responders
from birthmark.edge.cli.realms import init
from birthmark.edge.cli.recalls import recalls
from birthmark.edge.cli.runs import runs
from birthmark.edge.cli.servers import servers
from birthmark.edge.cli.session import Session, session_of
from birthmark.edge.cli.shipments import shipments
from birthmark.edge.cli.status import status
from birthmark.services.check import check as check_realm
from birthmark.settings import load

__all__ = ["command_tree", "run"]


def run(loader: Callable[[], Factory], arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        loader: imports and returns what builds applications; called when first needed.
        arguments: without the program's name; ``sys.argv`` if None.
    """
    session = Session(loader=loader)
    try:
        code = command_tree()(
            args=None if arguments is None else list(arguments),
            prog_name="birthmark",
            standalone_mode=False,
            obj=session,
        )
        sys.stdout.flush()
    except errors.Refusal as refusal:
        return exits.complain_of(refusal)
    except typer.TyperException as wrong:
        return _usage(wrong)
    except typer.Abort:
        return exits.INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone (head, less): nothing to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    except Exception as fault:  # noqa: BLE001  # the last stop before Python would print a traceback
        return exits.report_fault(fault, debug=session.debug)
    return code if isinstance(code, int) else 0


def _usage(wrong: typer.TyperException) -> int:
    if not wrong.format_message():  # a group without a command: its help was printed
        return exits.USAGE
    where = getattr(getattr(wrong, "ctx", None), "command_path", "birthmark")
    exits.complain(wrong.format_message().removesuffix("."), f"see '{where} --help'")
    return exits.USAGE


def command_tree() -> typer.Typer:
    """Return the command with all its subcommands."""
    tree = typer.Typer(
        name="birthmark",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        help="One permanent, provable identity for every device that leaves the production line.",
        epilog="Begin with 'birthmark init DIR --realm NAME --organization ORG'. "
        "Secrets are given as files, never as values.",
    )
    tree.callback(no_args_is_help=True)(_common)
    tree.command("init")(init)
    tree.command("serve")(serve)
    tree.command("publish")(publish)
    tree.command("check")(check)
    tree.command("status")(status)
    tree.command("history")(show_history)
    tree.command("incident")(show_incident)
    tree.command("provision")(provision)
    tree.command("restore")(restore)
    tree.command("version")(version)
    people = (stations, exposures, operators, proposals, bootstraps, servers, responders)
    fleet = (runs, devices, recalls, shipments)
    judged = (profiles, elements)
    kept = (logs, backups, config, _database())
    for group in (*fleet, *people, authorities, ceremonies, keys, *judged, *kept):
        tree.add_typer(group)
    return tree


def _common(
    context: typer.Context,
    *,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an internal fault happened.")] = False,
) -> None:
    session_of(context).debug = debug


def version(*, as_json: AsJson = False) -> None:
    """Print the version."""
    print(printing.json_text({"version": birthmark.__version__}) if as_json else birthmark.__version__)


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
        list[PlaneName] | None,
        typer.Option(help="Which plane; may be repeated. [all that the settings have]"),
    ] = None,
    settings: SettingsPath = DEFAULT_SETTINGS,
) -> None:
    """Run the planes of the settings until SIGTERM or Ctrl-C: the stations', the public and the ops plane."""
    loaded = load(settings)
    from birthmark.edge.http.serve import Plane  # noqa: PLC0415  # a web framework nobody else needs
    from birthmark.edge.http.serve import serve as serve_planes  # noqa: PLC0415  # likewise

    planes = [Plane(str(one)) for one in plane or ()]
    raise typer.Exit(serve_planes(session_of(context).loader, loaded, processes=processes, planes=planes))


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


def _database() -> typer.Typer:
    database = typer.Typer(name="database", no_args_is_help=True, help="The database's schema.")

    @database.callback()
    def group() -> None:
        """Keep ``migrate`` a command of its own although it is the only one."""

    @database.command()
    def migrate(context: typer.Context, *, settings: SettingsPath = DEFAULT_SETTINGS) -> None:
        """Bring the database to the newest schema; what is in it stays."""
        loaded = load(settings)
        session_of(context).factory().migrate(loaded.database)
        printing.line("the database has the newest schema")

    return database
