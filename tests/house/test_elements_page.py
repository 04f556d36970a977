"""The example in docs/elements.md: installed with pip, held to the contract, and through the real line."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from birthmark.edge.station.elements import schemes
from tests.support import acme_ecu
from tests.support.server import RUN, Server, copy_realm

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/elements.md").read_text(encoding="utf-8")


def block(name: str) -> str:
    """The block of the page that follows the name of its file."""
    found = re.search(rf"`{re.escape(name)}`:\n\n```\w+\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None, name
    return found[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as the page has it, installed into a folder of its own."""
    source, target = tmp_path_factory.mktemp("acme"), tmp_path_factory.mktemp("site")
    for name in ("pyproject.toml", "acme_birthmark.py"):
        (source / name).write_text(block(name), encoding="utf-8")
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, check=False, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


@pytest.fixture
def ecu(tmp_path: Path) -> Iterator[acme_ecu.ECU]:
    with acme_ecu.ECU(tmp_path) as unit:
        yield unit


def run(installed: Path, *command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python with the package installed."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        check=False,
        text=True,
        timeout=110,
        env=environment,
        cwd=cwd,
    )


def test_the_example_passes_the_checks_it_is_told_to_run(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "test_acme.py").write_text(block("test_acme.py"), encoding="utf-8")
    simulator = Path(acme_ecu.__file__).read_text(encoding="utf-8")
    (tmp_path / "acme_ecu.py").write_text(simulator, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="ascii")
    done = run(installed, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "11 passed" in done.stdout


def test_the_example_goes_through_the_line(installed: Path, tmp_path: Path, ecu: acme_ecu.ECU) -> None:
    realm = copy_realm(tmp_path / "realm")
    arguments = ["--station", str(realm.station()), "--run", RUN, "--hardware-id", "ECU-1"]
    provision = ["-m", "birthmark", "provision", *arguments, "--element", f"acme:{ecu.address}"]
    with Server(realm=realm):
        done = run(installed, *provision)
        assert done.returncode == 0, done.stderr
        assert "released" in done.stdout
        assert (ecu.folder / "release.tlog-proof").exists()
        again = run(installed, *provision)
        assert (again.returncode, "is released: its identity stays" in again.stderr) == (1, True)
    unknown = run(installed, *provision[:-1], "acmee:x")
    assert unknown.returncode == 66
    assert "acme," in unknown.stderr


def test_the_page_names_every_element_that_is_registered() -> None:
    ours = {scheme for scheme, owner in schemes().items() if owner.startswith("birthmark ")}
    assert ours == set(re.findall(r"`([a-z0-9]+):[A-Z/a-z]", PAGE)) & ours
