"""scripts/install, tried on a small project with a lock and a registry of its own."""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

BACKEND = """
import zipfile
def build_wheel(folder, config_settings=None, metadata_directory=None):
    name = "small-1-py3-none-any.whl"
    with zipfile.ZipFile(f"{folder}/{name}", "w") as wheel:
        wheel.writestr("small.py", "")
        wheel.writestr("small-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: small\\nVersion: 1\\n")
        tags = "Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
        wheel.writestr("small-1.dist-info/WHEEL", tags)
        wheel.writestr("small-1.dist-info/RECORD", "")
    return name
build_editable = build_wheel
"""
PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "small"
version = "1"
"""
# What compiles the sources below: a back end that is a locked package itself.
MAKER = """
import pathlib, zipfile
def build_wheel(folder, config_settings=None, metadata_directory=None):
    module = next(pathlib.Path().glob("made_*.py"))
    wheel = f"{module.stem}-1-py3-none-any.whl"
    info = f"{module.stem}-1.dist-info"
    tags = "Wheel-Version: 1.0\\nGenerator: maker\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
    with zipfile.ZipFile(f"{folder}/{wheel}", "w") as archive:
        archive.writestr(module.name, module.read_text())
        archive.writestr(f"{info}/METADATA", pathlib.Path("PKG-INFO").read_text())
        archive.writestr(f"{info}/WHEEL", tags)
        archive.writestr(f"{info}/RECORD", "")
    return wheel
"""


def source(folder: Path, name: str, backend: str = "maker") -> str:
    """Write the source of a package of one module and return its line in a lock."""
    path = folder / f"{name}-1.tar.gz"
    files = {
        f"{name}.py": "",
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n",
        "pyproject.toml": f'[build-system]\nrequires = ["maker"]\nbuild-backend = "{backend}"\n',
    }
    with tarfile.open(path, "w:gz") as archive:
        for file, text in files.items():
            (folder / "part").write_text(text)
            archive.add(folder / "part", f"{name}-1/{file}")
    return f"{name}==1 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


def wheel(folder: Path, name: str, content: str = "") -> str:
    """Write a wheel of one module and return its line in a lock."""
    path = folder / f"{name}-1-py3-none-any.whl"
    info = f"{name}-1.dist-info"
    files = {
        f"{name}.py": content,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(file, text)
    return f"{name}==1 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


class Place:
    """A checkout of the small project."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.wheels = folder / "wheels"
        for part in ("scripts", "requirements", "requirements/peers", "wheels"):
            (folder / part).mkdir()
        shutil.copy(ROOT / "scripts/install", folder / "scripts/install")
        shutil.copytree(ROOT / "scripts/packages", folder / "scripts/packages")
        (folder / "pyproject.toml").write_text(PROJECT)
        (folder / "backend.py").write_text(BACKEND)
        self.maker = wheel(self.wheels, "maker", MAKER)
        self.requirements("compile", self.maker)
        self.requirements("pcsc", source(self.wheels, "made_reader"))
        self.requirements("tpm", source(self.wheels, "made_trust"))

    def requirements(self, stem: str, *lines: str) -> None:
        (self.folder / f"requirements/{stem}.txt").write_text("".join(lines))

    def lock(self, *lines: str) -> None:
        self.requirements("runtime", *lines)
        self.requirements("dev", self.maker, *lines)

    def lock_peer(self, name: str, *lines: str) -> None:
        self.requirements(f"peers/{name}", *lines)

    def install(self, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
        return subprocess.run(
            [str(self.folder / "scripts/install"), *options],
            env={
                **clean,
                "PYTHON": sys.executable,
                "PIP_CONFIG_FILE": os.devnull,
                "PIP_NO_INDEX": "1",
                "PIP_FIND_LINKS": str(self.wheels),
                **environment,
            },
            capture_output=True,
            text=True,
            check=False,
        )

    def imports(self, module: str, environment: str = ".venv") -> bool:
        command = [str(self.folder / environment / "bin/python"), "-c", f"import {module}"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A checkout where only Debian packages may be left to do."""
    place = Place(tmp_path_factory.mktemp("installed"))
    place.lock(wheel(place.wheels, "first"))
    done = place.install()
    assert done.returncode == 0, done.stderr
    return place


def test_it_installs_the_lock_and_then_has_nothing_to_do(place: Place) -> None:
    place.lock(wheel(place.wheels, "first"), wheel(place.wheels, "second"))
    done = place.install()
    assert done.returncode == 0, done.stderr
    assert place.imports("first, second, small")
    assert place.imports("made_reader, made_trust"), "development compiles the extras"
    again = place.install()
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert place.install("--runtime").stderr == "", "an environment for development serves the demo"

    # A later lock without the second package takes it away: what is not in the lock must not be importable.
    place.lock(wheel(place.wheels, "first"))
    changed = place.install()
    assert changed.returncode == 0, changed.stderr
    assert place.imports("first, small")
    assert not place.imports("second")


def test_a_file_that_is_not_the_locked_one_is_refused(place: Place) -> None:
    place.lock(wheel(place.wheels, "first"))
    wheel(place.wheels, "first", content="print('not what was locked')")
    refused = place.install()
    assert refused.returncode != 0
    assert "DO NOT MATCH THE HASHES" in refused.stderr
    assert not place.imports("first")
    assert place.install().returncode != 0, "a failed installation is not taken for a finished one"


def test_a_part_of_the_demo_that_needs_an_extra_gets_this_one(place: Place, tmp_path: Path) -> None:
    path = commands(tmp_path / "bin", id="echo 1000", dpkg_query="echo installed")
    place.lock(wheel(place.wheels, "first"))
    assert place.install("--runtime").returncode == 0
    assert not place.imports("made_reader"), "the product alone needs no compiler"
    done = place.install("--runtime", "--with", "scp03", PATH=path)
    assert done.returncode == 0, done.stderr
    assert place.imports("made_reader")
    assert not place.imports("made_trust")
    again = place.install("--runtime", "--with", "scp03", PATH=path)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")


def test_an_extra_that_cannot_be_compiled_is_left_out_and_taken_when_it_can_be(
    place: Place, tmp_path: Path
) -> None:
    path = commands(tmp_path / "bin", id="echo 1000", dpkg_query="echo installed")
    place.lock(wheel(place.wheels, "first"))
    place.requirements("pcsc", source(place.wheels, "made_reader", backend="compiler_that_is_missing"))
    place.requirements("tpm", f"made_trust==1 --hash=sha256:{'0' * 64}\n")
    done = place.install(PATH=path)
    assert done.returncode == 0, done.stderr
    assert "requirements/pcsc.txt cannot be compiled here" in done.stderr
    assert "going on without it" in done.stderr
    assert "compiler_that_is_missing" in (place.folder / ".venv/pcsc.log").read_text()
    assert "DO NOT MATCH THE HASHES" in (place.folder / ".venv/tpm.log").read_text()
    assert place.imports("first")
    assert not place.imports("made_trust")
    without = place.install("--with", "scp03", PATH=path)
    assert without.returncode == 0, without.stderr
    assert "the demo will reach its elements over TCP" in without.stderr
    assert not place.imports("made_reader")

    # As soon as it can be compiled it is.
    place.requirements("pcsc", source(place.wheels, "made_reader"))
    assert place.install("--with", "scp03", PATH=path).returncode == 0
    assert place.imports("made_reader")


def commands(folder: Path, **scripts: str) -> str:
    """Write small programs that stand in for the system's and return a PATH that finds them first."""
    folder.mkdir()
    for name, body in scripts.items():
        (folder / name.replace("_", "-")).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name.replace("_", "-")).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_without_root_it_says_which_debian_packages_are_missing_and_how_to_get_them(
    installed: Place, tmp_path: Path
) -> None:
    path = commands(
        tmp_path / "bin", id="echo 1000", dpkg_query="exit 1", apt_get=f"touch {tmp_path}/called; exit 1"
    )
    done = installed.install("--system", PATH=path)
    assert done.returncode == 0, done.stderr
    assert "sudo apt-get update && sudo apt-get install --no-install-recommends" in done.stderr
    for package in ("softhsm2", "opensc", "postgresql", "openssl", "procps"):
        assert f" {package}" in done.stderr
    assert not (tmp_path / "called").exists()


@pytest.fixture
def asking(installed: Place) -> Iterator[Place]:
    """The installed checkout while it asks for checkers."""
    yield installed
    for lock in (installed.folder / "requirements/peers").iterdir():
        lock.unlink()
    shutil.rmtree(installed.folder / ".tools")


def test_a_checker_gets_an_environment_of_its_own_for_tests_and_for_nothing_else(
    asking: Place, tmp_path: Path
) -> None:
    path = commands(tmp_path / "bin", id="echo 1000", dpkg_query="echo installed")
    asking.lock_peer("doubter", wheel(asking.wheels, "doubter"))
    for options in ([], ["--runtime"], ["--runtime", "--with", "softhsm2"]):
        assert asking.install(*options, PATH=path).returncode == 0
        assert not (asking.folder / ".tools/peers").exists(), options
    done = asking.install("--system", PATH=path)
    assert done.returncode == 0, done.stderr
    assert asking.imports("doubter", ".tools/peers/doubter")
    assert not asking.imports("doubter")
    assert not asking.imports("first", ".tools/peers/doubter")
    again = asking.install("--system", PATH=path)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")


def test_a_checker_that_cannot_be_had_is_said_and_does_not_stop_the_rest(
    asking: Place, tmp_path: Path
) -> None:
    path = commands(tmp_path / "bin", id="echo 1000", dpkg_query="echo installed")
    asking.lock_peer("another", wheel(asking.wheels, "another"), source(asking.wheels, "made_other"))
    asking.lock_peer("absent", f"absent==1 --hash=sha256:{'0' * 64}\n")
    done = asking.install("--system", PATH=path)
    assert done.returncode == 0, done.stderr
    assert "requirements/peers/absent.txt could not be installed" in done.stderr
    assert not (asking.folder / ".tools/peers/absent/.installed").exists()
    assert asking.imports("another, made_other", ".tools/peers/another")
    assert not asking.imports("maker", ".tools/peers/another"), "it is compiled elsewhere"


def test_a_part_of_the_demo_asks_only_for_its_own_packages(installed: Place, tmp_path: Path) -> None:
    path = commands(tmp_path / "bin", id="echo 1000", dpkg_query="exit 1", apt_get="exit 1")
    said = installed.install("--with", "softhsm2", PATH=path).stderr
    assert "softhsm2" in said
    assert "postgresql" not in said
    refused = installed.install("--with", "mainframe")
    assert refused.returncode == 1
    assert "no part named mainframe" in refused.stderr


def test_the_benchmark_gets_what_it_compares_with_and_no_checkers(asking: Place, tmp_path: Path) -> None:
    path = commands(tmp_path / "bin", id="echo 1000", dpkg_query="exit 1", apt_get="exit 1")
    asking.lock_peer("doubter", wheel(asking.wheels, "doubter"))
    asking.lock_peer("openbao", wheel(asking.wheels, "vault"))
    done = asking.install("--bench", PATH=path)
    assert done.returncode == 0, done.stderr
    assert " golang-cfssl" in done.stderr
    assert " softhsm2" not in done.stderr
    assert asking.imports("vault", ".tools/peers/openbao")
    assert not (asking.folder / ".tools/peers/doubter").exists()


def test_a_python_without_venv_is_told_about_in_one_line(place: Place, tmp_path: Path) -> None:
    # Debian's python3 without python3-venv: it runs, it is new enough, it cannot make environments.
    blind = f'case "$*" in *ensurepip*) exit 1 ;; *) exec {sys.executable} "$@" ;; esac'
    path = commands(tmp_path / "bin", id="echo 1000", dpkg_query="exit 1", python3=blind)
    place.lock(wheel(place.wheels, "first"))
    refused = place.install(PATH=path, PYTHON="python3")
    assert refused.returncode == 1
    assert "python3-venv" in refused.stderr
    assert "cannot make environments" in refused.stderr


def test_an_old_python_is_refused(place: Place, tmp_path: Path) -> None:
    old = {name.replace(".", ""): "exit 1" for name in ("python3",)}
    path = commands(tmp_path / "bin", id="echo 1000", dpkg_query="exit 1", apt_get="exit 1", **old)
    for newer in ("python3.11", "python3.12", "python3.13", "python3.14"):
        (tmp_path / "bin" / newer).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / "bin" / newer).chmod(0o755)
    place.lock(wheel(place.wheels, "first"))
    refused = place.install(PATH=path, PYTHON="python3")
    assert refused.returncode == 1
    assert "Python 3.11 or newer is needed" in refused.stderr


@pytest.mark.parametrize("name", ["bench", "demo", "test"])
def test_every_debian_package_has_a_reason(name: str) -> None:
    lines = (ROOT / f"scripts/packages/{name}.txt").read_text().splitlines()
    listed = [line for line in lines if not line.startswith("#")]
    assert listed == sorted(listed)
    for line in listed:
        fields, _, reason = line.partition("#")
        assert len(fields.split()) == (2 if name == "demo" else 1), line
        assert len(reason.split()) > 2, line
