"""The ``birthmark`` command: all commands, and the one place where what they raise becomes an exit code.

A command parses, calls a use case and prints.  Refusals become one line and a code (``exits``); anything else
is a fault of ours, shown without detail.  Imports below this package stay clear of web framework and database
drivers: those come with the factory, and the factory comes when a command first needs it.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer

import birthmark
from birthmark import errors
from birthmark.edge.cli import exits, printing
from birthmark.edge.cli.options import AsJson
from birthmark.edge.cli.session import Session, session_of

if TYPE_CHECKING:  # it knows every use case, and what needs none of them starts without
    from birthmark.edge.application import Factory

__all__ = ["command_tree", "run"]

_COMMANDS: Mapping[str, tuple[str, str]] = {
    "init": ("realms", "init"),
    "serve": ("serving", "serve"),
    "publish": ("publication", "publish"),
    "check": ("checking", "check"),
    "status": ("status", "status"),
    "history": ("histories", "show_history"),
    "incident": ("incidents", "show_incident"),
    "provision": ("provisioning", "provision"),
    "restore": ("backups", "restore"),
    "version": ("main", "version"),
}
"""The commands: in which module of this package, and what.  In the order of the help, like the groups."""
_GROUPS: Mapping[str, tuple[str, str]] = {
    "run": ("runs", "runs"),
    "device": ("devices", "devices"),
    "recall": ("recalls", "recalls"),
    "shipment": ("shipments", "shipments"),
    "station": ("invitations", "stations"),
    "exposure": ("exposures", "exposures"),
    "operator": ("people", "operators"),
    "proposal": ("proposals", "proposals"),
    "bootstrap": ("codes", "bootstraps"),
    "enrolment": ("enrolments", "enrolments"),
    "shared": ("shared", "shareds"),
    "server": ("servers", "servers"),
    "gateway": ("gateways", "gateways"),
    "proxy": ("proxies", "proxies"),
    "fleet": ("fleet", "fleet"),
    "responder": ("publication", "responders"),
    "authority": ("authorities", "authorities"),
    "ceremony": ("ceremonies", "ceremonies"),
    "keys": ("keys", "keys"),
    "profile": ("profiles", "profiles"),
    "element": ("elements", "elements"),
    "log": ("logs", "logs"),
    "backup": ("backups", "backups"),
    "config": ("configuration", "config"),
    "database": ("databases", "databases"),
}


def run(loader: "Callable[[], Factory]", arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        loader: imports and returns what builds applications; called when first needed.
        arguments: without the program's name; ``sys.argv`` if None.
    """
    session = Session(loader=loader)
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = command_tree(_asked(words))(
            args=words,
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


def command_tree(asked: str | None = None) -> typer.Typer:
    """Return the command with all its subcommands.

    Args:
        asked: the one that is going to be used, so that only its module is loaded; if there is none of that
            name, all are.
    """
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
    everything = asked not in _COMMANDS and asked not in _GROUPS
    for name, place in _COMMANDS.items():
        if everything or name == asked:
            tree.command(name)(_loaded(place))
    for name, place in _GROUPS.items():
        if everything or name == asked:
            tree.add_typer(_loaded(place), name=name)
    return tree


def _loaded(place: tuple[str, str]) -> Any:
    module, name = place
    return getattr(import_module(f"birthmark.edge.cli.{module}"), name)


def _asked(arguments: Sequence[str]) -> str | None:
    """Return the subcommand, if nothing comes before it but ``--debug``: ``--help`` is about all of them."""
    return next((word for word in arguments if word != "--debug"), None)


def _common(
    context: typer.Context,
    *,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an internal fault happened.")] = False,
) -> None:
    session_of(context).debug = debug


def version(*, as_json: AsJson = False) -> None:
    """Print the version."""
    print(printing.json_text({"version": birthmark.__version__}) if as_json else birthmark.__version__)
