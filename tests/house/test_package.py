"""What is shipped is what was written: the wheel carries the code, its data and nothing else."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The file names in a wheel built from a copy of the tree with two data files planted in it."""
    copy = tmp_path_factory.mktemp("tree")
    shutil.copy(ROOT / "pyproject.toml", copy)
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for data in (
        "pki/profiles/planted.toml",
        "element/packaged/planted.toml",
        "adapters/sql/migrations/versions/0000_planted.py",
    ):
        (copy / "src/birthmark" / data).parent.mkdir(parents=True, exist_ok=True)
        (copy / "src/birthmark" / data).touch()
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(copy / "dist")]
    subprocess.run(command, cwd=copy, check=True, capture_output=True)
    (wheel,) = (copy / "dist").glob("*.whl")
    return zipfile.ZipFile(wheel).namelist()


def test_profiles_migrations_and_the_typing_mark_are_in_the_wheel(names: list[str]) -> None:
    assert "birthmark/py.typed" in names
    assert "birthmark/pki/profiles/planted.toml" in names
    assert "birthmark/element/packaged/planted.toml" in names
    assert "birthmark/adapters/sql/migrations/versions/0000_planted.py" in names


def test_every_module_is_in_the_wheel(names: list[str]) -> None:
    source = ROOT / "src"
    modules = {str(path.relative_to(source)) for path in source.rglob("*.py")}
    assert modules <= set(names)


def test_nothing_but_the_package_is_in_the_wheel(names: list[str]) -> None:
    assert {name.split("/")[0].split("-")[0] for name in names} == {"birthmark"}
    assert not any("__pycache__" in name for name in names)
