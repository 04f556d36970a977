"""Whatever happened, the state at each instant is the one that there was then (SPEC E6).

A line does what hypothesis draws.  After each step the model looks at the rows of the record, which only know
the present, and at the log's entries read one by one; the time machine, asked afterwards about each of those
instants, has to say the same from the log alone.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from birthmark import errors
from birthmark.floor.devices import Attempt, Device, DeviceCertificate, DeviceEvent, DeviceState
from birthmark.floor.recalls import RecallAction, SelectionKind
from birthmark.pki.revocation import ReasonCode
from birthmark.services.chronicle_states import CertificateState, DeviceStanding, Phase
from birthmark.services.investigate import history, subject_of
from birthmark.services.log_reading import log_of
from tests.support.realm import Line, Workpiece, make_line, proof, workpiece
from tests.support.recalls import People, people

Steps = list[tuple[str, int]]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["issue", "issue", "prove", "prove", "hold", "rework", "scrap", "suspend", "reinstate", "revoke"]
        ),
        st.integers(min_value=0, max_value=1),
    ),
    min_size=1,
    max_size=14,
)
_examples = itertools.count(1)


@dataclass(frozen=True)
class Seen:
    """What there was at an instant: a device's state, and each certificate's, by serial number."""

    at: datetime
    state: str
    attempts: int
    certificates: Mapping[str, tuple[Phase, str | None]]


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[People]:
    """One line for all examples; each takes devices of its own."""
    folder: Path = tmp_path_factory.mktemp("model")
    line = make_line(folder, f"sqlite:///{folder / 'line.sqlite'}")
    line.open_run(quantity=10_000)
    yield people(line)
    line.close()


def step(plant: People, what: str, piece: Workpiece, issued: dict[str, Any]) -> None:
    """Do one thing, or have it refused: both are history."""
    line = plant.line
    try:
        if what == "issue":
            issued[piece.id] = line.issue(piece)
        elif what == "prove" and piece.id in issued:
            line.prove(proof(issued[piece.id], piece.key))
        elif what in ("hold", "rework", "scrap"):
            line.dispose(DeviceEvent(what), piece.id)
        elif what in ("suspend", "reinstate", "revoke"):
            plant.recall(SelectionKind.DEVICE, piece.id, RecallAction(what))
    except errors.Refusal:
        pass


def of_record(line: Line, device: str) -> Seen:
    """Look at the rows, which know nothing but the present."""
    row = line.get(Device, device)
    found: dict[str, tuple[Phase, str | None]] = {}
    for one in line.service.store.scan(DeviceCertificate, where={"device": device}):
        reason = line.status(one)
        proved = line.the(Attempt, one.attempt).state is DeviceState.RELEASED
        phase = Phase.LIVE if proved else Phase.ISSUED
        if reason is not None:
            phase = Phase.SUSPENDED if reason is ReasonCode.CERTIFICATE_HOLD else Phase.REVOKED
        found[one.serial] = (phase, None if reason is None else str(reason))
    return Seen(
        at=line.clock.now(),
        state="unknown" if row is None else str(row.state),
        attempts=0 if row is None else row.attempts,
        certificates=found,
    )


def naive(line: Line, device: str, at: datetime) -> dict[str, tuple[Phase, str | None]]:
    """Replay the whole log for a device's certificates, in the plainest way there is."""
    found: dict[str, tuple[Phase, str | None]] = {}
    before: dict[str, Phase] = {}
    for entry in line.entries():
        if datetime.fromisoformat(entry["at"]) > at:
            break
        if entry["kind"] in ("device-issued", "device-reissued") and entry["device"] == device:
            found[entry["certificate"]] = (Phase.ISSUED, None)
        if entry["kind"] == "device-released" and entry["device"] == device:
            found[entry["record"]["certificate"]] = (Phase.LIVE, None)
        for serial in entry.get("certificates", ()):
            if serial not in found:
                continue
            reason = entry["revocation_reason"]
            if reason == "removeFromCRL":
                found[serial] = (before[serial], None)
            elif reason == "certificateHold":
                before[serial] = found[serial][0]
                found[serial] = (Phase.SUSPENDED, reason)
            else:
                found[serial] = (Phase.REVOKED, reason)
    return found


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_the_state_at_each_instant_is_what_the_record_said_then(plant: People, steps: Steps) -> None:
    line, example = plant.line, next(_examples)
    pieces = [workpiece(f"M{example}X{number}") for number in range(2)]
    seen: dict[str, list[Seen]] = {piece.id: [] for piece in pieces}
    issued: dict[str, Any] = {}
    for what, number in steps:
        line.clock.turn(seconds=1)
        step(plant, what, pieces[number], issued)
        for piece in pieces:
            seen[piece.id].append(of_record(line, piece.id))
    copy = log_of(line.service.store.log, line.realm)
    for piece in pieces:
        if seen[piece.id][-1].state == "unknown":
            continue
        for one in seen[piece.id]:
            state = history(copy, subject_of(piece.id), at=one.at).state
            assert isinstance(state, DeviceStanding)
            told = {each.certificate: (each.phase, each.reason) for each in state.certificates}
            assert (state.state, state.attempts, told) == (one.state, one.attempts, one.certificates)
            assert told == naive(line, piece.id, one.at)
        for serial in seen[piece.id][-1].certificates:
            moment = seen[piece.id][len(steps) // 2]
            alone = history(copy, subject_of(serial), at=moment.at).state
            assert isinstance(alone, CertificateState)
            expected = moment.certificates.get(serial, (Phase.NOT_ISSUED, None))
            assert (alone.phase, alone.reason) == expected
