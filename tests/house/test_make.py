"""The runner: what it offers is what is documented, and CI cannot pass on nothing."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.programs import need

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


def make(*words: str) -> subprocess.CompletedProcess[str]:
    """Run make as a person does: not as a part of the make that runs the tests, which would say more."""
    outside = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MAKELEVEL"}}
    return subprocess.run(
        [need("make"), *words], cwd=ROOT, env=outside, capture_output=True, text=True, check=True
    )


def test_the_promised_targets_are_there() -> None:
    assert {"demo", "test", "check", "bench", "soak", "fuzz", "lock", "clean", "help"} <= TARGETS


def test_make_alone_prints_every_target_with_what_it_does() -> None:
    done = make()
    shown = dict(line.split(None, 1) for line in done.stdout.splitlines())
    assert shown.keys() == TARGETS
    assert all(len(words.split()) >= 2 for words in shown.values())


def test_documents_name_only_targets_that_exist() -> None:
    for document in DOCUMENTS:
        named = re.findall(r"(?:^|`|\$ )make ([a-z]+)\b", document.read_text(), re.MULTILINE)
        assert set(named) <= TARGETS, document.name


@pytest.mark.parametrize("words", ["TOKEN=softhsm2", "DATABASE=postgresql", "ELEMENT=scp03"])
def test_the_demo_hands_its_choices_on(words: str) -> None:
    done = make("--dry-run", "demo", words)
    option, _, value = words.partition("=")
    install, demo = done.stdout.splitlines()
    assert install.split() == ["scripts/install", "--runtime", "--with", value]
    assert demo.split() == [".venv/bin/python", "demo/line.py", f"--{option.lower()}", value]


def test_the_demo_is_told_that_there_is_a_gateway() -> None:
    install, demo = make("--dry-run", "demo", "GATEWAY=1").stdout.splitlines()
    assert install.split() == ["scripts/install", "--runtime", "--with", "gateway"]
    assert demo.split() == [".venv/bin/python", "demo/line.py", "--gateway"]


@pytest.mark.parametrize(
    ("printed", "returned", "expected"),
    [
        ("12 passed in 3.20s", 0, 0),
        ("12 passed, 3 skipped in 63.20s (0:01:03)", 0, 0),
        ("1 failed, 12 passed in 3.20s", 1, 2),
        ("12 passed in 3.20s", 1, 2),
        ("3 skipped in 0.10s", 0, 1),
        ("no tests ran in 0.01s", 5, 2),
        ("4 deselected in 0.01s", 0, 1),
        ("", 0, 1),
    ],
)
def test_ci_repeats_the_closing_line_and_fails_without_a_passed_test(
    tmp_path: Path, printed: str, returned: int, expected: int
) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci/run")
    (tmp_path / "Makefile").write_text(f"test:\n\t@echo \"CI=$$CI\"; echo '{printed}'; exit {returned}\n")
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "MAKEFLAGS")}
    done = subprocess.run(
        [str(tmp_path / ".ci/run")], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == expected
    assert "CI=true" in done.stdout
    if "passed" in printed:
        assert done.stdout.splitlines()[-1] == printed
