"""Every step of every use case, broken in every way it can be (SPEC E4; see table.py)."""

import ast
import functools
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from birthmark.floor.realm import Environment
from tests.faults.places import Ground
from tests.faults.ports import faults_of
from tests.faults.scenario import base_line
from tests.faults.scenarios import ALONE, READERS, SCENARIOS
from tests.faults.table import Case, Ready, cases, ready, run_case, use_cases
from tests.support.realm import Line, make_line

STEPS = Path(__file__).parent / "steps.toml"
EXPECTED = tomllib.loads(STEPS.read_text(encoding="utf-8")) if STEPS.exists() else {}
LOOK = "look: python -m tests.faults.show | diff tests/faults/steps.toml -"
_WRITE = {"Act", "record_refusal", "admitted", "decided", "recorded", "outcomes"}


Base = Callable[[str, Environment], tuple[Ground, Line, Path]]


@pytest.fixture(scope="module")
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    """Lines on either database, for tests and of production, each made once, closed."""

    @functools.cache
    def ground(database: str) -> Ground:
        return Ground(request.getfixturevalue("postgresql") if database == "postgresql" else None)

    @functools.cache
    def made(database: str, environment: Environment) -> tuple[Ground, Line, Path]:
        folder = tmp_path_factory.mktemp(str(environment))
        line = make_line(folder, ground(database).new(folder), environment=environment)
        base_line(line)
        line.close()
        return ground(database), line, folder

    return made


def prepared(name: str, base: Base, folder: Path, database: str = "sqlite") -> Ready:
    scenario = SCENARIOS[name]
    return ready(scenario, *base(database, scenario.environment), folder)


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


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.soak] if scenario.slow else [])
        for name, scenario in SCENARIOS.items()
    ],
)
def test_a_broken_step_leaves_the_record_whole_and_the_same_request_repairs_it(
    name: str, base: Base, tmp_path: Path
) -> None:
    found = prepared(name, base, tmp_path)
    expected = EXPECTED.get(name, {})
    assert list(found.steps) == expected.get("steps"), (
        "python -m tests.faults.show | diff tests/faults/steps.toml -"
    )
    assert [found.first.said, found.again.said] == [expected["first"], expected["again"]]
    assert set(found.scenario.covers) <= found.entered
    assert broken(found, sample(found)) == []


@pytest.mark.parametrize("name", ["issue", "prove"])
def test_a_broken_commit_is_whole_or_not_there_on_postgresql(name: str, base: Base, tmp_path: Path) -> None:
    found = prepared(name, base, tmp_path, "postgresql")
    assert list(found.steps) == EXPECTED[name]["steps"]
    assert broken(found, [case for case in cases(found) if case.name == "commit"]) == []


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_step_broken_in_every_way(name: str, database: str, base: Base, tmp_path: Path) -> None:
    found = prepared(name, base, tmp_path, database)
    assert broken(found, cases(found)) == []
