"""The commit train: order, one act kept from another, time, and answers for everybody (decision 1)."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from datetime import datetime, timedelta
from typing import Any

import pytest

from birthmark import errors
from birthmark.adapters.sql.database import Database
from birthmark.adapters.sql.store import LONGEST_TRAIN
from birthmark.floor.clients import Client
from birthmark.floor.devices import Device, KeyUse
from birthmark.floor.runs import Run
from birthmark.ledger.entry import parse_time
from birthmark.ledger.proof import verify
from birthmark.ports import BACKWARD_TOLERANCE, Act, Decision, Facts
from tests.support.acts import act, note, put, use
from tests.support.faults import Gate
from tests.support.realm import START, Line, tamper


def commit(line: Line, *acts: Act[Any]) -> list[Any]:
    """Commit acts as one job and return their answers."""
    return [committed.answer for committed in line.service.store.submit(acts).result(10)]


def test_acts_decide_in_order_and_each_sees_what_the_ones_before_it_did(line: Line) -> None:
    seen: list[tuple[int, bool]] = []

    def look(facts: Facts, _at: datetime) -> Decision[None]:
        seen.append((facts.next_leaf, facts.get(KeyUse, "a") is not None))
        return Decision(None, [("noted", {}), ("noted", {})])

    size = line.size()
    commit(line, act(look), put(use("a")), act(look))
    assert seen == [(size, False), (size + 3, True)]
    assert line.size() == size + 5


def test_an_act_sees_its_own_changes_and_reads_what_it_did_not_announce(line: Line) -> None:
    def decide(facts: Facts, _at: datetime) -> Decision[tuple[Any, ...]]:
        before = facts.get(KeyUse, "a")
        facts.put(use("a"))
        return Decision((before, facts.get(KeyUse, "a"), facts.get(Run, "R1"), facts.get(Run, "R9")))

    ((before, after, run, none),) = commit(line, act(decide))
    assert (before, after, none) == (None, use("a"), None)
    assert run is not None
    assert run.id == "R1"


def test_a_refusal_drops_its_own_changes_and_is_logged_where_it_happened(line: Line) -> None:
    """SPEC E3: rejections and errors too."""

    def decide(facts: Facts, _at: datetime) -> Decision[None]:
        facts.put(use("b"))
        raise errors.NotPermitted("not today")

    size = line.size()
    first, second, third = commit(line, put(use("a")), act(decide), put(use("c")))
    assert (first, third) == ("put", "put")
    assert isinstance(second, errors.NotPermitted)
    assert second.recorded
    assert [line.get(KeyUse, key) is not None for key in "abc"] == [True, False, True]
    entry = line.entries(size)[1]
    assert (entry["kind"], entry["code"], entry["detail"]) == ("refused", "not-permitted", "not today")


def test_a_refusal_that_may_be_retried_commits_nothing(line: Line) -> None:
    def decide(facts: Facts, _at: datetime) -> Decision[None]:
        facts.put(use("b"))
        raise errors.Unavailable("in a moment")

    size = line.size()
    (answer,) = commit(line, act(decide))
    assert isinstance(answer, errors.Unavailable)
    assert not answer.recorded
    assert line.size() == size
    assert line.get(KeyUse, "b") is None


def test_a_fault_of_ours_in_one_act_harms_no_other_and_is_logged(
    line: Line, caplog: pytest.LogCaptureFixture
) -> None:
    """SPEC C10, E3: no detail of the fault reaches the client or the log of the realm."""

    def decide(facts: Facts, _at: datetime) -> Decision[None]:
        facts.put(use("b"))
        raise ZeroDivisionError("the secret detail")

    size = line.size()
    first, second, third = commit(line, put(use("a")), act(decide), put(use("c")))
    assert (first, third) == ("put", "put")
    assert isinstance(second, errors.Fault)
    assert str(second) == "internal fault; see the service's log"
    assert line.get(KeyUse, "b") is None
    entry = line.entries(size)[1]
    assert (entry["kind"], entry["code"]) == ("refused", "internal")
    assert "the secret detail" not in str(line.entries(size))
    assert "the secret detail" in caplog.text, "the operator finds it in the service's log"


def _raise(error: Exception) -> Any:
    raise error


UNRECORDABLE: dict[str, Callable[[], Act[Any]]] = {
    "a fault in its refusal": lambda: act(
        lambda _f, _a: _raise(errors.NotFound("gone")), refuse=lambda _f, _a, _r: _raise(ZeroDivisionError())
    ),
    "a text that is none": lambda: note({"hardware_id": "\ud800"}),
    "an actor that is none": lambda: act(
        lambda _f, _a: Decision(None, [("noted", {})]), actor="not an actor"
    ),
    "a number beyond JSON's": lambda: act(lambda _f, _a: Decision(None, [("noted", {})]), seq=2**60),
    "an entry too large": lambda: note({"text": "x" * 70_000}),
}


@pytest.mark.parametrize("case", UNRECORDABLE)
def test_what_cannot_be_logged_does_not_happen_and_harms_no_other(line: Line, case: str) -> None:
    """SPEC E4."""
    first, second, third = commit(line, put(use("a")), UNRECORDABLE[case](), put(use("c")))
    assert (first, third) == ("put", "put")
    assert isinstance(second, errors.Refusal)
    assert all(line.get(KeyUse, key) for key in "ac")
    assert line.service.store.log.size() == len(line.entries())


IMPOSSIBLE: dict[str, Callable[[], Act[Any]]] = {
    "a key with a lone surrogate": lambda: act(
        lambda _f, _a: Decision("never", [("noted", {})]), reads={Device: ("\ud800",)}
    ),
    "a key with a lone surrogate nobody announced": lambda: act(
        lambda f, _a: Decision(f.get(KeyUse, "\ud800"), [("noted", {})])
    ),
    "a value with a lone surrogate": lambda: put(use("x", device="\ud800")),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_a_text_that_no_database_holds_fails_its_act_alone_and_not_for_ever(line: Line, case: str) -> None:
    size = line.size()
    first, second, third = commit(line, put(use("a")), IMPOSSIBLE[case](), put(use("c")))
    assert (first, third) == ("put", "put")
    assert isinstance(second, errors.IntegrityFailure | errors.Fault | errors.MalformedRequest)
    assert second.recorded
    assert not second.retryable
    assert [entry["kind"] for entry in line.entries(size)] == ["noted", "refused", "noted"]
    assert commit(line, put(use("d"))) == ["put"], "and the next train runs"


def test_a_nul_harms_no_other(line: Line) -> None:
    """PostgreSQL's text has no NUL; SQLite's has."""
    first, _, third = commit(line, put(use("a")), put(use("x\x00y")), put(use("c")))
    assert (first, third) == ("put", "put")
    commit(line, act(lambda _f, _a: Decision(None), reads={KeyUse: ("x\x00y",)}))
    assert commit(line, put(use("d"))) == ["put"]
    assert all(line.get(KeyUse, key) for key in "acd")


def test_a_constraint_broken_by_one_act_fails_that_act_alone(
    line: Line, caplog: pytest.LogCaptureFixture
) -> None:
    """Decision 1: constraints and triggers stand behind the guards."""
    run = line.the(Run, "R1")

    def overbook(facts: Facts, _at: datetime) -> Decision[None]:
        facts.put(
            Run(**{n: getattr(run, n) for n in Run.__slots__ if n != "admitted"}, admitted=run.quantity + 1)
        )
        return Decision(None, [("noted", {})])

    commit(line, put(use("taken")))

    def overwrite(facts: Facts, _at: datetime) -> Decision[None]:
        facts.put(use("taken", device="serial:thief"))
        return Decision(None, [("noted", {})])

    for bad in (overbook, overwrite):
        size = line.size()
        name = bad.__name__
        first, second, third = commit(line, put(use(f"{name}-a")), act(bad), put(use(f"{name}-c")))
        assert (first, third) == ("put", "put")
        assert isinstance(second, errors.IntegrityFailure)
        assert second.recorded
        assert [entry["kind"] for entry in line.entries(size)] == ["noted", "refused", "noted"]
        (alone,) = commit(line, act(bad))
        assert isinstance(alone, errors.IntegrityFailure), "alone as in a gang"
    assert line.the(Run, "R1") == run
    assert line.the(KeyUse, "taken").device == "serial:D1"
    assert "the database refused a train of 3" in caplog.text


def test_jobs_that_wait_ride_in_one_train_and_each_gets_its_own_answers(small_line: Line) -> None:
    """While one commit is under way the next train fills."""
    gates: list[Gate] = []

    def wrap(database: Database) -> Database:
        gates.append(Gate(database))
        return gates[0]

    store = small_line.another_service(wrap=wrap).store
    gates[0].shut()
    first = store.submit([note()])
    gates[0].wait_for_train()
    waiting = [store.submit([note({"job": number}), note({"job": number})]) for number in range(20)]
    gates[0].open()
    assert len(first.result(10)) == 1
    notes = set()
    for number, future in enumerate(waiting):
        committed = future.result(10)
        for item in committed:
            (leaf,) = item.leaves
            entry = verify(item.token(leaf.index), small_line.vkey)
            assert entry["job"] == number
            assert item.answer == leaf.index
            notes.add(item.token(leaf.index).rpartition("\n\n")[0].rpartition("\n\n")[2])
    assert len(notes) == 1, "one signature serves them all"


def test_a_train_has_a_greatest_length_but_no_job_is_torn(small_line: Line) -> None:
    size = small_line.size()
    committed = small_line.service.store.submit([note() for _ in range(LONGEST_TRAIN + 1)]).result(10)
    assert [item.answer for item in committed] == list(range(size, size + LONGEST_TRAIN + 1))


def test_who_stops_waiting_before_the_train_leaves_does_not_travel_and_harms_no_other(
    small_line: Line,
) -> None:
    """An event loop cancels the future of a client that went away."""
    gates: list[Gate] = []

    def wrap(database: Database) -> Database:
        gates.append(Gate(database))
        return gates[0]

    store = small_line.another_service(wrap=wrap).store
    gates[0].shut()
    under_way = store.submit([put(use("a"))])
    gates[0].wait_for_train()
    gone, stays = store.submit([put(use("b"))]), store.submit([put(use("c"))])
    assert gone.cancel()
    assert not under_way.cancel(), "what is under way can no longer be called back"
    gates[0].open()
    assert under_way.result(10)[0].answer == "put"
    assert stays.result(10)[0].answer == "put"
    assert [small_line.get(KeyUse, key) is not None for key in "abc"] == [True, False, True]


def test_closing_finishes_what_waits_and_answers_what_comes_later(small_line: Line) -> None:
    store = small_line.another_service().store
    futures: list[Future[Any]] = [store.submit([note()]) for _ in range(30)]
    closing = threading.Thread(target=store.close)
    closing.start()
    closing.join(10)
    assert all(future.result(0)[0].leaves for future in futures)
    with pytest.raises(errors.Unavailable, match="the service is stopping"):
        store.submit([note()]).result(0)
    store.close()


def test_an_act_without_entries_moves_facts_and_no_log(line: Line) -> None:
    size = line.size()

    def quietly(facts: Facts, _at: datetime) -> Decision[None]:
        facts.put(use("quiet"))
        return Decision(None)

    assert commit(line, act(quietly)) == [None]
    assert line.get(KeyUse, "quiet") is not None
    assert line.size() == size
    assert commit(line, note()) == [size], "and the tree goes on where it was"


def test_an_act_that_does_nothing_commits_nothing(line: Line) -> None:
    checkpoint = line.service.store.checkpoint()
    assert commit(line, act(lambda _facts, _at: Decision("nothing"))) == ["nothing"]
    assert line.service.store.checkpoint() == checkpoint


def test_a_value_put_twice_is_written_once_and_last(line: Line) -> None:
    station = line.the(Client, "station:ST01")

    def number(seq: int) -> Act[Any]:
        def decide(facts: Facts, _at: datetime) -> Decision[None]:
            fields = {name: getattr(station, name) for name in Client.__slots__ if name != "last_seq"}
            facts.put(Client(**fields, last_seq=seq))
            return Decision(None, [("noted", {})])

        return act(decide)

    commit(line, number(1), number(2), number(3))
    assert line.the(Client, "station:ST01").last_seq == 3


def test_entries_are_dated_and_never_before_the_ones_before_them(line: Line) -> None:
    """SPEC E3: within the tolerance of a clock that was set back, time stands still."""
    size = line.size()
    line.clock.turn(minutes=1)
    commit(line, note())
    line.clock.turn(seconds=-5)
    commit(line, note())
    line.clock.turn(seconds=4)
    commit(line, note())
    line.clock.turn(seconds=2, microseconds=999)
    commit(line, note())
    dates = [parse_time(entry["at"]) - START for entry in line.entries(size)]
    assert dates == [timedelta(minutes=1)] * 3 + [timedelta(minutes=1, seconds=1)]


def test_a_clock_set_back_too_far_holds_the_line_and_lets_it_go_again(line: Line) -> None:
    line.clock.turn(minutes=1)
    commit(line, note())
    size = line.size()
    line.clock.turn(seconds=-BACKWARD_TOLERANCE.total_seconds(), milliseconds=-1)
    with pytest.raises(
        errors.Unavailable, match=r"the clock says 2026-11-22T10:00:54\.999Z, which is before"
    ):
        commit(line, note())
    assert line.size() == size
    line.clock.turn(milliseconds=1)
    assert commit(line, note()) == [size]


def test_the_line_is_held_while_the_logs_key_cannot_sign(small_line: Line) -> None:
    """SPEC B3, E4."""
    store = small_line.service.store
    down = [errors.Unavailable("the token does not answer")]
    signing = store._sign  # noqa: SLF001  # the port has no other handle

    def sign(body: bytes) -> bytes:
        if down:
            raise down[0]
        return signing(body)

    store._sign = sign  # noqa: SLF001  # what the test is about lies inside
    size = small_line.size()
    with pytest.raises(errors.Unavailable, match="the token does not answer"):
        commit(small_line, put(use("a")))
    assert small_line.size() == size
    assert small_line.get(KeyUse, "a") is None
    down.clear()
    assert commit(small_line, put(use("a"))) == ["put"]


def test_a_probe_writes_and_changes_nothing(line: Line) -> None:
    commit(line, put(use("a")))
    size, checkpoint = line.size(), line.service.store.checkpoint()
    line.clock.turn(seconds=90)
    last = line.service.store.probe()
    assert (line.size(), line.service.store.checkpoint()) == (size, checkpoint)
    assert last == line.clock.now() - timedelta(seconds=90)
    assert line.service.store.health().up


STRAY = (
    "INSERT INTO leaf SELECT max(idx) + 1, hash, entry FROM leaf GROUP BY hash, entry ORDER BY 1 DESC LIMIT 1"
)


def test_a_leaf_beyond_the_head_holds_the_line_with_the_reason(line: Line) -> None:
    """SPEC E4: what somebody wrote into the database is no fault of an act, and nothing to try again."""
    tamper(line.url, (STRAY, ()))
    wanted = "the database refuses an entry of the log: .*leaf"
    with pytest.raises(errors.IntegrityFailure, match=wanted):
        commit(line, note())
    assert not line.service.store.health().up
    for store in (line.service.store, line.another_service().store):
        with pytest.raises(errors.IntegrityFailure, match=f"and there is an entry {line.size()}:"):
            store.probe()
    with pytest.raises(errors.IntegrityFailure, match="and there is an entry"):
        line.another_service().store.submit([note()]).result(10)


def test_health_says_what_became_of_the_last_train_and_since_when(line: Line) -> None:
    store, began = line.service.store, line.clock.now()
    commit(line, put(use("a")))
    line.clock.turn(hours=-1)
    with pytest.raises(errors.Unavailable):
        commit(line, put(use("b")))
    health = store.health()
    assert not health.up
    assert "the clock says" in health.reason
    assert health.since == began - timedelta(hours=1)
    with pytest.raises(errors.Unavailable):
        commit(line, put(use("b")))
    assert store.health() == health
    line.clock.turn(hours=1)
    commit(line, put(use("b")))
    assert (store.health().up, store.health().reason) == (True, "")
