"""The command starts cheaply, and an auditor's machine needs no database driver."""

import json
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest

from tests.edge.cli.command import Place

OTHER_COMMANDS = ("rich", "jinja2", "yaml", "birthmark.edge.cli.ceremonies", "birthmark.edge.cli.keys")
HEAVY = ("fastapi", "starlette", "uvicorn", "sqlalchemy", "alembic", "psycopg", "pkcs11", "birthmark.app")


def loaded_by(*arguments: object, among: Collection[str] = HEAVY) -> set[str]:
    """Run the command in a process of its own and return which of these modules it loaded."""
    program = (
        "import json, sys\n"
        "sys.argv = ['birthmark', *json.loads(sys.argv[1])]\n"
        "from birthmark.__main__ import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0, end.code\n"
        "sys.stderr.write('\\n' + json.dumps(sorted(sys.modules)))\n"
    )
    given = json.dumps([str(argument) for argument in arguments])
    result = subprocess.run(
        [sys.executable, "-c", program, given], check=True, capture_output=True, text=True, timeout=60
    )
    modules = set(json.loads(result.stderr.splitlines()[-1]))
    return modules & set(among)


@pytest.mark.parametrize("arguments", [("--help",), ("version",), ("run", "open", "--help")])
def test_help_loads_neither_web_framework_nor_database(arguments: tuple[str, ...]) -> None:
    assert loaded_by(*arguments) == set()


def test_a_command_loads_no_other(realm: Place) -> None:
    assert loaded_by("run", "list", "--settings", realm.settings, among=OTHER_COMMANDS) == set()


def test_a_group_alone_has_the_commands_it_has_among_all() -> None:
    """Stations have theirs from two modules."""
    program = (
        "from birthmark.edge.cli.main import command_tree\nimport typer\n"
        "def words(asked=None):\n"
        "    tree = typer.main.get_command(command_tree(asked))\n"
        "    return sorted(tree.commands), sorted(tree.commands['station'].commands)\n"
        "alone, everything = words('station'), words()\n"
        "assert alone[0] == ['station'] and len(everything[0]) > 25, (alone[0], everything[0])\n"
        "assert alone[1] == everything[1] and 'invite' in alone[1], (alone[1], everything[1])\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_offline_verification_loads_neither_web_framework_nor_database(realm: Place, tmp_path: Path) -> None:
    bundle, proof = tmp_path / "log.zip", tmp_path / "entry.tlog-proof"
    realm.done("log", "export", bundle)
    proof.write_text(realm.done("log", "proof", 0).out)
    assert loaded_by("log", "verify", bundle, "--vkey", realm.vkey) == set()
    assert loaded_by("log", "verify-proof", proof, "--vkey", realm.vkey) == set()


def test_what_needs_the_database_does_load_it(realm: Place) -> None:
    assert "birthmark.app" in loaded_by("run", "list", "--settings", realm.settings)
