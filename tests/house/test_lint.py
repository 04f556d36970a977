"""Our rules bite: each is shown something it has to refuse."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.programs import need

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

BANNED = {
    "datetime.now": "from datetime import UTC, datetime\n\nx = datetime.now(tz=UTC)\n",
    "date.today": "import datetime\n\nx = datetime.date.today()\n",
    "os.urandom": "import os\n\nx = os.urandom(8)\n",
    "uuid4": "import uuid\n\nx = uuid.uuid4()\n",
    "time.time": "import time\n\nx = time.time()\n",
    "random": "import random\n\nx = random.random()\n",
    "secrets": "from secrets import token_bytes\n\nx = token_bytes(8)\n",
}


def findings(source: str, path: str) -> set[str]:
    command = [
        str(BIN / "ruff"),
        "check",
        "--output-format=concise",
        "--no-cache",
        f"--stdin-filename={path}",
        "-",
    ]
    done = subprocess.run(command, input=source, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return {
        line.split(": ", 1)[1].split()[0]
        for line in done.stdout.splitlines()
        if ": " in line and path in line
    }


@pytest.mark.parametrize("name", BANNED)
@pytest.mark.parametrize(
    "path", ["src/birthmark/floor/new.py", "src/birthmark/services/new.py", "tests/pki/new.py"]
)
def test_time_and_randomness_are_lint_errors_outside_the_adapters(name: str, path: str) -> None:
    assert "TID251" in findings(BANNED[name], path)


@pytest.mark.parametrize("name", BANNED)
def test_the_adapters_may_ask_the_machine(name: str) -> None:
    assert "TID251" not in findings(BANNED[name], "src/birthmark/adapters/system.py")


@pytest.mark.parametrize(
    ("importer", "statement", "broken"),
    [
        ("pki/bad.py", "import birthmark.ports", "imports point down BROKEN"),
        ("pki/bad.py", "import birthmark.ledger.entry", "imports point down BROKEN"),
        ("services/bad.py", "import birthmark.adapters", "imports point down BROKEN"),
        ("adapters/bad.py", "import birthmark.edge.http", "imports point down BROKEN"),
        ("surprise.py", "", "imports point down BROKEN"),
        (
            "edge/station/bad.py",
            "import birthmark.services",
            "a station carries the client kit without the server BROKEN",
        ),
        (
            "edge/station/bad.py",
            "import birthmark.ports",
            "a station carries the client kit without the server BROKEN",
        ),
        ("edge/http/bad.py", "import birthmark.edge.cli", "the planes do without the command BROKEN"),
        ("ledger/verify.py", "import birthmark.secret", "an auditor can carry the verifier away BROKEN"),
        ("ledger/entry.py", "import birthmark.secret", "an auditor can carry the verifier away BROKEN"),
        ("ledger/verify.py", "import birthmark.errors", ""),
        ("edge/station/good.py", "import birthmark.pki, birthmark.ledger.entry, birthmark", ""),
    ],
)
def test_an_import_against_the_rule_breaks_a_contract(
    tmp_path: Path, importer: str, statement: str, broken: str
) -> None:
    """On a tree of empty modules."""
    package = tmp_path / "birthmark"
    planes = ("edge", "edge/http", "edge/station", "edge/cli")
    for folder in ("", "pki", "ledger", "floor", "services", "adapters", *planes):
        (package / folder).mkdir(exist_ok=True)
        (package / folder / "__init__.py").touch()
    for module in ("errors", "secret", "ports"):
        (package / f"{module}.py").touch()
    (package / "ledger/entry.py").touch()
    (package / "ledger/verify.py").write_text("import birthmark.ledger.entry\n")
    with (package / importer).open("a") as module_file:
        module_file.write(statement + "\n")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    command = [str(BIN / "lint-imports"), "--no-cache", "--no-logo"]
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "/usr/bin:/bin", "COLUMNS": "200"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    if broken:
        assert done.returncode == 1, done.stdout + done.stderr
        assert broken in done.stdout or "not listed as layers" in done.stdout
    else:
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Contracts: 4 kept, 0 broken." in done.stdout


def test_the_shell_scripts_pass_shellcheck() -> None:
    scripts = [ROOT / ".ci/run", ROOT / "deploy/compose/make-secrets", ROOT / "deploy/first-boot.sh"]
    scripts += [path for path in sorted((ROOT / "scripts").iterdir()) if path.is_file() and not path.suffix]
    command = [need("shellcheck"), *map(str, scripts)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == ""
    assert done.returncode == 0
