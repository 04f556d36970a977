"""What is read from the service and from a file about a secure element, whatever it holds."""

import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birthmark.edge.station.answers import ElementStep
from birthmark.edge.station.pending import ElementPending, Pending, Phase
from birthmark.element.apdu import CommandAPDU
from birthmark.errors import IntegrityFailure

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
HEX = st.binary(max_size=12).map(bytes.hex)
COMMAND = st.fixed_dictionaries(
    {
        "command": HEX | st.sampled_from(["00a40400", "80500000080000000000000000"]) | JSON,
        "status_words": st.lists(HEX | st.just("9000") | JSON, max_size=3) | JSON,
    },
    optional={"response_sha256": st.binary(min_size=32, max_size=32).map(bytes.hex) | JSON},
)
STEP = st.fixed_dictionaries(
    {
        "step": st.integers(-1, 3) | JSON,
        "last": st.booleans() | JSON,
        "commands": st.lists(COMMAND | JSON, max_size=3) | JSON,
    }
)
PENDING = Pending(
    station="ST01",
    hardware_id="1M8GDM9AXKP042788",
    run="r",
    delivered=False,
    issue_key="k",
    issue_seq=1,
    phase=Phase.PROVING,
    device="vin:1M8GDM9AXKP042788",
    attempt="0" * 32,
    challenge="00" * 32,
    certificate_sha256="0" * 64,
    prove_key="p",
    prove_seq=2,
    signature="00",
    element=ElementPending(step=3, responses=("9000", "6a88")),
)


@given(STEP | st.dictionaries(st.text(), JSON))
def test_an_answer_is_read_or_refused(body: dict[str, Any]) -> None:
    with suppress(IntegrityFailure):
        step = ElementStep.read(body)
        assert step.step >= 1
        assert step.batch
        for guarded in step.batch:
            CommandAPDU.decode(guarded.command)
            assert guarded.status_words
            assert all(0 <= word <= 0xFFFF for word in guarded.status_words)


def test_what_is_under_way_is_read_back() -> None:
    assert Pending.decode(PENDING.encode()) == PENDING
    installed = replace(PENDING, phase=Phase.INSTALLED, element=ElementPending())
    assert Pending.decode(installed.encode()) == installed
    without = replace(PENDING, element=None)
    assert b"element" not in without.encode(), "a kit of the time before reads it, too"


@pytest.mark.parametrize(
    "element",
    [
        "x",
        1,
        [],
        {"step": "3"},
        {"step": 3.0},
        {"step": True},
        {"step": 3, "responses": [1]},
        {"step": 3, "responses": ["90x0"]},
        {"step": 3, "responses": "9000"},
        {"step": 3, "responses": None},
        {"step": 3, "responses": ["9000"], "more": 1},
        {"step": 0, "responses": []},
        {"step": -1, "responses": []},
    ],
)
def test_what_nobody_wrote_down_is_refused(element: Any) -> None:
    document = json.loads(PENDING.encode()) | {"element": element}
    with pytest.raises(IntegrityFailure):
        Pending.decode(json.dumps(document).encode())


def test_last_responses_belong_to_a_proof() -> None:
    with pytest.raises(IntegrityFailure, match="strange element"):
        Pending.decode(replace(PENDING, phase=Phase.INSTALLED).encode())


@given(JSON)
def test_what_is_written_down_is_read_or_refused(element: Any) -> None:
    document = json.loads(PENDING.encode()) | {"element": element}
    with suppress(IntegrityFailure):
        Pending.decode(json.dumps(document).encode())
