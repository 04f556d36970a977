"""The statuses of a CMP transaction: what may follow what, and nothing else (SPEC H1)."""

import itertools
from datetime import UTC, datetime, timedelta

import pytest

from birthmark import errors
from birthmark.floor.enrolments import CMP_TRANSITIONS, CMPEvent, CMPStatus, CMPTransaction, moved

S, E = CMPStatus, CMPEvent
ALLOWED = {
    (S.WAITING, E.WAIT): S.WAITING,
    (S.WAITING, E.ISSUE): S.ISSUED,
    (S.WAITING, E.REJECT): S.REJECTED,
    (S.ISSUED, E.ISSUE): S.ISSUED,
    (S.ISSUED, E.CONFIRM): S.CONFIRMED,
    (S.ISSUED, E.REJECT): S.REJECTED,
    (S.CONFIRMED, E.ISSUE): S.CONFIRMED,
    (S.CONFIRMED, E.CONFIRM): S.CONFIRMED,
    (S.REJECTED, E.REJECT): S.REJECTED,
}
"""Written down a second time, so that a slip in the table is a failing test and not a new rule."""
END = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)


def transaction(status: CMPStatus) -> CMPTransaction:
    return CMPTransaction(
        id="device:serial:D1/00",
        client="device:serial:D1",
        run="L1",
        body="cr",
        request=b"",
        request_id=0,
        key="k",
        nonce=b"",
        status=status,
        expires_at=END,
    )


@pytest.mark.parametrize(("status", "event"), list(itertools.product(S, E)))
def test_every_move_is_the_one_that_is_meant_or_refused(status: CMPStatus, event: CMPEvent) -> None:
    """SPEC H1: what was rejected is never confirmed, and what was confirmed never rejected."""
    following = ALLOWED.get((status, event))
    if following is not None:
        assert moved(transaction(status), event) == transaction(following)
        return
    said = rf"^cannot {event} in cmp transaction device:serial:D1/00: it is {status}; begin another$"
    with pytest.raises(errors.IllegalTransition, match=said):
        moved(transaction(status), event)


def test_an_end_is_for_ever() -> None:
    """SPEC H1."""
    for status in (S.CONFIRMED, S.REJECTED):
        assert set(CMP_TRANSITIONS[status].values()) == {status}


def test_a_transaction_is_open_until_its_end_or_its_time() -> None:
    """RFC 9810 section 5.1.1.2: the time to confirm."""
    moment = timedelta(microseconds=1)
    assert [status for status in S if transaction(status).is_open(END - moment)] == [S.WAITING, S.ISSUED]
    assert not any(transaction(status).is_open(END) for status in S)
