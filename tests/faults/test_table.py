"""Every step of every use case, broken in every way it can be (SPEC E4; see table.py)."""

import ast
import tomllib
from pathlib import Path

import pytest

from birthmark.floor.realm import Environment
from tests.faults.ports import faults_of
from tests.faults.scenarios import ALONE, READERS, SCENARIOS, base_line
from tests.faults.table import Case, Ready, cases, ready, run_case, use_cases
from tests.support.realm import Line, make_line

STEPS = Path(__file__).parent / "steps.toml"
EXPECTED = tomllib.loads(STEPS.read_text(encoding="utf-8")) if STEPS.exists() else {}
LOOK = "look: python -m tests.faults.show | diff tests/faults/steps.toml -"
_WRITE = {"Act", "record_refusal", "admitted", "recorded", "outcomes"}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[Environment, tuple[Line, Path]]:
    """A line for tests and one of production, closed."""
    made = {}
    for environment in (Environment.TEST, Environment.PRODUCTION):
        folder = tmp_path_factory.mktemp(str(environment))
        line = make_line(folder, f"sqlite:///{folder / 'line.sqlite'}", environment=environment)
        base_line(line)
        line.close()
        made[environment] = (line, folder)
    return made


def prepared(name: str, bases: dict[Environment, tuple[Line, Path]], folder: Path) -> Ready:
    scenario = SCENARIOS[name]
    line, base = bases[scenario.environment]
    return ready(scenario, line, base, folder)


def broken(found: Ready, chosen: list[Case]) -> list[str]:
    """Run cases; return those after which something does not hold."""
    wrong = []
    for case in chosen:
        try:
            run_case(found, case)
        except AssertionError as failed:
            wrong.append(f"{case}: {failed}")
    return wrong


def sample(found: Ready) -> list[Case]:
    """Return every fault of the commits, and of the other steps one each, in turn."""
    return [
        case
        for case in cases(found)
        if case.name == "commit" or case.fault is faults_of(case.name)[case.step % len(faults_of(case.name))]
    ]


def test_every_use_case_is_in_the_table_or_writes_nothing() -> None:
    covered = {name for scenario in SCENARIOS.values() for name in scenario.covers}
    found = use_cases()
    assert covered | READERS.keys() | ALONE.keys() == found.keys()
    assert not covered & READERS.keys()
    for name in READERS:
        called = {
            node.func.id
            for node in ast.walk(found[name])
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not called & _WRITE, f"{name} writes: it needs a scenario"


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_broken_step_leaves_the_record_whole_and_the_same_request_repairs_it(
    name: str, bases: dict[Environment, tuple[Line, Path]], tmp_path: Path
) -> None:
    found = prepared(name, bases, tmp_path)
    expected = EXPECTED.get(name, {})
    assert list(found.steps) == expected.get("steps"), (
        "python -m tests.faults.show | diff tests/faults/steps.toml -"
    )
    assert [found.first.said, found.again.said] == [expected["first"], expected["again"]]
    assert set(found.scenario.covers) <= found.entered
    assert broken(found, sample(found)) == []


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_step_broken_in_every_way(
    name: str, bases: dict[Environment, tuple[Line, Path]], tmp_path: Path
) -> None:
    found = prepared(name, bases, tmp_path)
    assert broken(found, cases(found)) == []
