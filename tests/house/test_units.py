"""The units keep the secrets of the service as it does itself, and give it nothing it does not need (B7)."""

import configparser
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.programs import need

UNITS = sorted((Path(__file__).parents[2] / "deploy" / "systemd").glob("*.service"))
MOST_EXPOSED = 20
"""Tenths, as ``systemd-analyze`` counts them: below it the verdict is OK."""


def directives(unit: Path) -> dict[str, str]:
    """Return the directives of a unit's service, the last one where there are several of a name."""
    text = re.sub(r"(?m)^[#;].*$", "", unit.read_text(encoding="utf-8"))
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # its way to keep capitals
    parser.read_string(text)
    return dict(parser["Service"])


def test_there_is_a_unit_for_each_role() -> None:
    assert {unit.stem for unit in UNITS} == {"birthmark", "birthmark-public", "birthmark-publish"}


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_no_secret_reaches_a_disk_and_nobody_is_root(unit: Path) -> None:
    found = directives(unit)
    wanted = {
        "LimitCORE": "0",
        "LimitMEMLOCK": "infinity",
        "MemorySwapMax": "0",
        "NoNewPrivileges": "yes",
        "ProtectProc": "invisible",
        "UMask": "0077",
    }
    assert {name: found.get(name) for name in wanted} == wanted
    assert found["User"].startswith("birthmark")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_finds_little_that_it_is_exposed_to(unit: Path) -> None:
    analyze = need("systemd-analyze", "systemd")
    done = subprocess.run(
        [analyze, "security", "--offline=yes", "--no-pager", f"--threshold={MOST_EXPOSED}", unit],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_what_the_service_tells_the_kernel_is_not_filtered(unit: Path) -> None:
    """``hardening`` asks for these; a filter that forbade one would leave memory unlocked."""
    analyze = need("systemd-analyze", "systemd")
    groups = [
        word for word in unit.read_text(encoding="utf-8").split("\n") if word.startswith("SystemCallFilter=")
    ]
    allowed: set[str] = set()
    for line in groups:
        value = line.removeprefix("SystemCallFilter=")
        named = {call for group in value.lstrip("~").split() for call in calls_of(analyze, group)}
        allowed = allowed - named if value.startswith("~") else allowed | named
    assert {"prctl", "mlockall", "prlimit64", "getrlimit"} <= allowed
    assert not {"setresuid", "ptrace", "process_vm_readv"} & allowed


def calls_of(analyze: str, group: str) -> set[str]:
    """Return the system calls of a group, and of the groups in it; a call is its own."""
    if not group.startswith("@"):
        return {group}
    told = subprocess.run(
        [analyze, "syscall-filter", group], check=True, capture_output=True, text=True
    ).stdout
    words = {
        line.strip() for line in told.splitlines()[1:] if line.strip() and not line.strip().startswith("#")
    }
    return {call for word in words for call in calls_of(analyze, word)}
