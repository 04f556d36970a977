"""The states of a device: what may follow what, and nothing else (SPEC C4)."""

import itertools
import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from birthmark import errors
from birthmark.floor.devices import (
    TRANSITIONS,
    DeviceEvent,
    DeviceState,
    IdentityRecord,
    KeyOrigin,
    move,
)
from birthmark.ledger.entry import canonical

S, E = DeviceState, DeviceEvent
ALLOWED = {
    (S.ADMITTED, E.ISSUE): S.ISSUED,
    (S.ADMITTED, E.HOLD): S.HELD,
    (S.ISSUED, E.PROVE): S.PROVED,
    (S.ISSUED, E.HOLD): S.HELD,
    (S.PROVED, E.RELEASE): S.RELEASED,
    (S.PROVED, E.HOLD): S.HELD,
    (S.HELD, E.REWORK): S.ADMITTED,
    (S.HELD, E.SCRAP): S.SCRAPPED,
}
"""Written down a second time, so that a slip in the table is a failing test and not a new rule."""


@pytest.mark.parametrize(("state", "event"), list(itertools.product(S, E)))
def test_every_move_is_the_one_that_is_meant_or_refused_with_state_and_advice(
    state: DeviceState, event: DeviceEvent
) -> None:
    """SPEC C4: the transaction's steps, in their order."""
    following = ALLOWED.get((state, event))
    if following is not None:
        assert move("serial:D1", state, event) is following
        return
    with pytest.raises(errors.IllegalTransition, match=rf"^cannot {event} serial:D1: it is {state}; \S.*"):
        move("serial:D1", state, event)


def test_the_only_way_into_released_is_from_proved() -> None:
    """SPEC C6."""
    ways = {(state, event) for state in S for event, to in TRANSITIONS[state].items() if to is S.RELEASED}
    assert ways == {(S.PROVED, E.RELEASE)}


def test_the_only_way_into_proved_is_a_proof_of_an_issued_certificate() -> None:
    """SPEC C6."""
    ways = {(state, event) for state in S for event, to in TRANSITIONS[state].items() if to is S.PROVED}
    assert ways == {(S.ISSUED, E.PROVE)}


def test_released_and_scrapped_are_for_ever() -> None:
    """SPEC C9: no second identity by moving on."""
    assert {state for state in S if not TRANSITIONS[state]} == {S.RELEASED, S.SCRAPPED}


def test_whatever_has_not_left_the_line_can_be_settled() -> None:
    """SPEC C4: an unknown outcome is held, and what is held is reworked or scrapped."""
    for state in set(S) - {S.RELEASED, S.SCRAPPED, S.HELD}:
        assert TRANSITIONS[state][E.HOLD] is S.HELD
    assert set(TRANSITIONS[S.HELD]) == {E.REWORK, E.SCRAP}


def test_the_record_in_the_log_says_everything_the_record_knows_but_its_own_place() -> None:
    """SPEC E1, E5: record and leaf agree."""
    at = datetime(2026, 11, 22, 10, 0, 0, 123000, tzinfo=UTC)
    record = IdentityRecord(
        leaf=7,
        device="serial:D1",
        attempt="a1",
        attempt_number=1,
        run="R1",
        batch="B7",
        product="car",
        profile="vehicle",
        authority="issuing-1",
        certificate="01",
        certificate_sha256="02",
        spki_sha256="03",
        origin=KeyOrigin.BORN,
        site="Graz",
        line="L1",
        client="station:ST01",
        operator=None,
        issued_at=at,
        issue_leaf=6,
        released_at=at,
        challenge=b"\x0a",
        proof=b"\x0b",
    )
    assert set(record.document()) == set(IdentityRecord.__slots__) - {"leaf", "further"}
    further = {"profile": "tpm-iak", "certificate": "04"}
    document = replace(record, further=json.dumps({"further": [further]})).document()
    assert set(document) == set(IdentityRecord.__slots__) - {"leaf"}
    assert document["further"] == [further]
    assert document["released_at"] == "2026-11-22T10:00:00.123Z"
    assert document["challenge"] == "0a"
    assert document["proof"] == "0b"
    assert canonical(document), "it can stand in an entry"
