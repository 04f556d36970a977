"""The locks say exactly what is installed, and not where it comes from."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
OURS = sorted((ROOT / "requirements").glob("*.txt"))
PEERS = sorted((ROOT / "requirements/peers").glob("*.txt"))
LOCKS = [*OURS, *PEERS]
PIN = re.compile(r"([a-z0-9][a-z0-9.-]*)==([0-9][0-9A-Za-z.!+]*)(?: ; .+)?")
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def entries(lock: Path) -> dict[str, tuple[str, int]]:
    """Return name -> (version, number of hashes), failing on any line that is neither."""
    found: dict[str, tuple[str, int]] = {}
    logical = re.sub(r" *\\\n *", "\n", re.sub(r"(?m)^ *#.*\n?", "", lock.read_text()))
    name = ""
    for line in filter(None, logical.splitlines()):
        if HASH.fullmatch(line.strip()):
            version, hashes = found[name]
            found[name] = (version, hashes + 1)
        else:
            pin = PIN.fullmatch(line.strip())
            assert pin is not None, f"{lock.name}: {line!r} is neither a pin nor a hash"
            name = pin[1]
            assert name not in found, f"{lock.name} pins {name} twice"
            found[name] = (pin[2], 0)
    return found


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_there_is_a_lock_for_the_product_its_extras_development_and_the_lock_itself() -> None:
    assert [lock.stem for lock in OURS] == ["compile", "dev", "lock", "pcsc", "runtime", "tpm", "tracing"]


def test_every_checker_that_tests_run_has_a_lock_that_answers_what_is_asked_for() -> None:
    wanted = sorted((ROOT / "requirements/peers").glob("*.in"))
    assert [lock.stem for lock in PEERS] == [file.stem for file in wanted]
    for lock, file in zip(PEERS, wanted, strict=True):
        pins = entries(lock)
        for line in (line for line in file.read_text().splitlines() if not line.startswith("#")):
            requirement = Requirement(line)
            version, _ = pins[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), f"{lock.name} has {version} for {line}"


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_every_requirement_has_one_version_and_hashes(lock: Path) -> None:
    pins = entries(lock)
    assert pins
    assert [name for name, (_, hashes) in pins.items() if hashes == 0] == []


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_no_lock_names_a_host_or_an_option(lock: Path) -> None:
    text = lock.read_text()
    assert "://" not in text
    assert re.search(r"\b[\w-]+\.(org|com|net|io|dev|internal|local)\b", text) is None
    options = {line.split("=")[0].strip() for line in text.splitlines() if line.lstrip().startswith("-")}
    assert options == {"--hash"}


@pytest.mark.parametrize("name", ["cryptography", "psycopg-binary", "pydantic-core", "uvloop", "httptools"])
def test_compiled_packages_are_locked_for_more_than_one_machine(name: str) -> None:
    # Wheels of one version: at least Python 3.11 to 3.13 on two architectures; a lock of only the files this
    # machine needed would have one or two hashes.
    assert entries(ROOT / "requirements/runtime.txt")[name][1] >= 6


def test_the_product_runs_the_versions_it_was_tested_with() -> None:
    runtime = entries(ROOT / "requirements/runtime.txt")
    tracing = entries(ROOT / "requirements/tracing.txt")
    assert runtime.items() <= tracing.items() <= entries(ROOT / "requirements/dev.txt").items()


def test_the_locks_answer_what_the_project_asks_for() -> None:
    described = project()
    groups = described["dependency-groups"]
    wanted = {
        "runtime": described["project"]["dependencies"] + groups["build"],
        "dev": described["project"]["dependencies"] + groups["build"] + groups["compile"] + groups["dev"],
        "compile": groups["compile"],
        "lock": groups["lock"],
        **described["project"]["optional-dependencies"],
    }
    for stem, requirements in wanted.items():
        pins = entries(ROOT / "requirements" / f"{stem}.txt")
        for text in (text for text in requirements if isinstance(text, str)):
            requirement = Requirement(text)
            version, _ = pins[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), f"{stem}.txt has {version} for {text}"


def test_what_builds_the_project_is_locked_too() -> None:
    described = project()
    built_with = {canonicalize_name(Requirement(text).name) for text in described["build-system"]["requires"]}
    assert built_with <= entries(ROOT / "requirements/runtime.txt").keys()


def test_development_brings_all_that_compiles_an_extra_and_what_it_needs_but_not_the_extra_itself() -> None:
    # A machine without a compiler could not install the lock for development otherwise.
    dev = entries(ROOT / "requirements/dev.txt")
    assert entries(ROOT / "requirements/compile.txt").items() <= dev.items()
    described = project()["project"]["optional-dependencies"]
    for extra, requirements in ((extra, described[extra]) for extra in ("pcsc", "tpm")):
        names = {canonicalize_name(Requirement(text).name) for text in requirements}
        assert entries(ROOT / f"requirements/{extra}.txt").keys() == names
        assert not names & dev.keys()


def test_the_product_needs_no_compiler() -> None:
    runtime = entries(ROOT / "requirements/runtime.txt")
    assert not runtime.keys() & {"setuptools", "pyscard", "tpm2-pytss"}
