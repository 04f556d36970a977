"""The fault table: what is broken, in which order, and what has to hold afterwards.

A scenario is first carried out twice undisturbed: that gives its steps, the record after each of its commits,
and what a repetition says.  Then, for a step and a fault, a copy of the prepared record is taken, the step is
broken, and:

* whoever asked was told ``Unavailable``, or nothing (a dead process), or the answer;
* the record is exactly what it is after so many commits, the broken one done or not: never in between;
* the same request again, of the same process or of a new one if it died, brings the same end and answer;
* ``check`` finds nothing, and every certificate that was handed out is on record.
"""

import ast
import itertools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from birthmark import errors
from birthmark.floor.clients import Credential
from birthmark.floor.devices import Device, DeviceCertificate, DeviceState
from birthmark.floor.enrolments import CMPStatus, CMPTransaction
from birthmark.floor.fleet import FieldDevice, FieldStatus
from birthmark.floor.revocations import Revocation
from birthmark.ledger.checkpoint import VerifierKey
from birthmark.ledger.proof import verify
from birthmark.services.authorise import Enrolled
from birthmark.services.check import check
from birthmark.services.enrolments import Granted
from birthmark.services.issue import Issued
from birthmark.services.prove import Released
from birthmark.services.revocations import line_of, status
from birthmark.services.visits import Welcome
from tests.faults.places import Ground, Place, Summary, place, summary
from tests.faults.ports import Fault, Killed, Steps, faults_of
from tests.faults.scenario import Scenario
from tests.support.realm import Line

__all__ = ["Case", "Ready", "cases", "ready", "run_case", "use_cases"]

SERVICES = Path(__file__).parents[2] / "src" / "birthmark" / "services"
_numbers = itertools.count(1)


def use_cases() -> dict[str, ast.FunctionDef]:
    """Return every public function of the services that returns a use case, by ``module.name``."""
    found: dict[str, ast.FunctionDef] = {}

    def walk(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef):
                walk(node.body, f"{prefix}.{node.name}")
            elif isinstance(node, ast.FunctionDef) and node.returns is not None:
                public = not node.name.startswith("_") or node.name == "__call__"
                if public and ast.unparse(node.returns).startswith("UseCase["):
                    found[f"{prefix}.{node.name}"] = node

    for path in sorted(SERVICES.glob("*.py")):
        walk(ast.parse(path.read_text(encoding="utf-8")).body, path.stem)
    return found


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came back: a kind of answer, or the code of a refusal."""

    said: str
    answer: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A scenario, prepared, and what it does undisturbed."""

    scenario: Scenario
    ground: Ground
    folder: Path
    line: Line
    """Closed; its folder is what every case copies."""
    prepared: Any
    steps: tuple[str, ...]
    before: tuple[int, ...]
    """Commits before each step."""
    trail: tuple[Summary, ...]
    """The record after so many commits."""
    first: Outcome
    again: Outcome
    twice: Summary
    """The record after the repetition."""
    entered: frozenset[str]
    """Use cases it went through."""


def _ask(scenario: Scenario, at: Place, prepared: Any) -> Outcome:
    try:
        answer = scenario.request(at, prepared)
    except errors.Refusal as refusal:
        return Outcome(refusal.code)
    return Outcome(type(answer).__name__, answer)


@contextmanager
def _watched(entered: set[str]) -> Iterator[None]:
    """Note which functions of the services are entered in this thread."""

    def seen(frame: FrameType, event: str, _arg: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(SERVICES)):
            entered.add(f"{Path(code.co_filename).stem}.{code.co_qualname}")

    before = sys.getprofile()
    sys.setprofile(seen)
    try:
        yield
    finally:
        sys.setprofile(before)


def ready(scenario: Scenario, ground: Ground, base: Line, base_folder: Path, folder: Path) -> Ready:
    """Prepare a scenario on a copy of a line, and carry it out twice undisturbed."""
    origin = folder / "prepared"
    line = ground.line(base, base_folder, origin)
    prepared = scenario.prepare(line)
    line.close()
    steps, entered, trail = Steps(), set[str](), list[Summary]()
    with _copied(ground, line, origin, folder / "undisturbed", steps) as at:
        trail.append(summary(at.service))
        steps.on_commit = lambda: trail.append(summary(at.service))
        with _watched(entered):
            first = _ask(scenario, at, prepared)
        names, before, once = tuple(steps.names), tuple(steps.before), tuple(trail)
        again = _ask(scenario, at, prepared)
        twice = summary(at.service)
        require_sound(at, first)
    return Ready(
        scenario=scenario,
        ground=ground,
        folder=folder,
        line=line,
        prepared=prepared,
        steps=names,
        before=before,
        trail=once,
        first=Outcome(first.said),
        again=Outcome(again.said),
        twice=twice,
        entered=frozenset(entered),
    )


@contextmanager
def _copied(ground: Ground, line: Line, origin: Path, target: Path, steps: Steps) -> Iterator[Place]:
    """Copy a prepared record and start a process on it."""
    ground.copy(origin, target)
    try:
        with place(target, ground.url(target), line.clock.at, steps) as at:
            yield at
    finally:
        ground.drop(target)


@dataclass(frozen=True, slots=True)
class Case:
    """One step, broken in one way."""

    step: int
    name: str
    fault: Fault

    def __str__(self) -> str:
        """Return how it is shown."""
        return f"{self.step} {self.name}: {self.fault}"


def cases(found: Ready) -> list[Case]:
    """Return all cases of a scenario."""
    return [Case(number, name, fault) for number, name in enumerate(found.steps) for fault in faults_of(name)]


def run_case(found: Ready, case: Case) -> None:
    """Break one step, look, repair, look again."""
    steps = Steps(case.step, case.fault)
    target = found.folder / f"case-{next(_numbers)}"
    with _copied(found.ground, found.line, found.folder / "prepared", target, steps) as at:
        told, died = Outcome("nothing"), False
        try:
            told = _ask(found.scenario, at, found.prepared)
        except Killed:
            died = True
        assert died == (case.fault in (Fault.KILLED, Fault.ANSWER_LOST)), told.said
        if not died:
            _judge(found, case, at, told)
            return
        # What the kernel does for a dead process: its files are closed, nothing is finished.
        at.service.store.close()
        with place(target, found.ground.url(target), found.line.clock.at, Steps()) as another:
            _judge(found, case, another, told)


def _judge(found: Ready, case: Case, at: Place, told: Outcome) -> None:
    done = case.fault in (Fault.FAILS_BUT_DONE, Fault.ANSWER_LOST)
    commits = found.before[case.step] + (done and case.name == "commit")
    if told.said in ("nothing", errors.Unavailable.code):
        assert summary(at.service) == found.trail[commits], "neither before nor after"
    else:
        # The use case can do without this step; then nothing of it is missing.
        assert told.said == found.first.said, f"told {told.said}"
        commits = len(found.trail) - 1
        assert summary(at.service) == found.trail[commits], "answered, and not done"
    at.steps.mend()
    repaired = _ask(found.scenario, at, found.prepared)
    if commits == 0 and _left_behind(found, case, done=done):
        assert repaired.said == errors.IllegalTransition.code, f"repaired: {repaired.said}"
        if found.scenario.mend is not None:
            found.scenario.mend(at, found.prepared)
            assert summary(at.service).rows == found.trail[-1].rows, "not mended"
        require_sound(at, repaired)
        return
    end = summary(at.service)
    if commits == 0:
        assert (repaired.said, end) == (found.first.said, found.trail[-1]), f"repaired: {repaired.said}"
    elif commits == len(found.trail) - 1:
        assert (repaired.said, end) == (found.again.said, found.twice), f"repaired: {repaired.said}"
    else:
        assert end.rows == found.trail[-1].rows, f"half done: repaired: {repaired.said}"
    require_sound(at, repaired)


def _left_behind(found: Ready, case: Case, *, done: bool) -> bool:
    """Return whether something was made by then that no commit takes back."""
    made = found.steps[: case.step + done]
    return any(step in found.scenario.orphan for step in made)


def require_sound(at: Place, outcome: Outcome) -> None:
    """Nothing contradicts anything; what was handed out is on record, what is released has its proof."""
    store = at.service.store
    report = check(store, store.log, store.realm)
    assert report.findings == [], report.findings
    answer = outcome.answer
    _require_rejected(at)
    if isinstance(answer, Issued | Granted):
        assert answer.certificate in {one.der for one in store.scan(DeviceCertificate)}
    elif isinstance(answer, Enrolled):
        assert answer.certificate.serial_hex in {one.serial for one in store.scan(Credential)}
    elif isinstance(answer, Released):
        _require_token(at, answer)
    elif isinstance(answer, Welcome):
        device = store.look({FieldDevice: (answer.device,)}).get(FieldDevice, answer.device)
        assert device is not None
        assert device.status is FieldStatus.ACTIVE


def _require_rejected(at: Place) -> None:
    """What a CMP client did not take is revoked, and what it confirmed is not."""
    store = at.service.store
    for row in store.scan(CMPTransaction):
        certificate = store.look({DeviceCertificate: (row.certificate or "",)}).get(
            DeviceCertificate, row.certificate or ""
        )
        if certificate is not None:
            line = line_of(certificate)
            revoked = status(store.look({Revocation: (line.id,)}), line) is not None
            assert revoked == (row.status is CMPStatus.REJECTED), f"{row.status}, revoked: {revoked}"


def _require_token(at: Place, released: Released) -> None:
    store = at.service.store
    entry = verify(released.token, VerifierKey.parse(store.realm.vkey))
    assert (entry["kind"], entry["device"]) == ("device-released", released.device)
    device = store.look({Device: (released.device,)}).get(Device, released.device)
    assert device is not None
    assert device.state is DeviceState.RELEASED
