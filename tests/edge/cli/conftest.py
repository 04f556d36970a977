"""A realm made by the command itself, once; each test gets a copy of its directory."""

import shutil
from pathlib import Path

import pytest

from tests.edge.cli.command import Place, done


@pytest.fixture(scope="session")
def made_realm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("realm") / "nord"
    done("init", directory, "--realm", "nord", "--organization", "Nord AG", "--operator", "anna")
    return directory


@pytest.fixture
def realm(made_realm: Path, tmp_path: Path) -> Place:
    """A realm of the test's own: a realm's directory may be moved, and so copied."""
    directory = tmp_path / "nord"
    shutil.copytree(made_realm, directory)
    return Place(directory)
