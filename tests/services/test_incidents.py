"""Everything an incident touched, as a list that two people recall: exactly that list (SPEC E6, K1)."""

import io
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birthmark import errors
from birthmark.floor.clients import Role
from birthmark.floor.devices import Attempt, Device, DeviceEvent
from birthmark.floor.recalls import (
    Criterion,
    Recall,
    RecallAction,
    RecallOrder,
    RecallStatus,
    Selection,
    SelectionKind,
    check_order,
)
from birthmark.ledger.bundle import Bundle, write_bundle
from birthmark.ledger.entry import canonical, parse
from birthmark.pki.revocation import ReasonCode
from birthmark.ports import Decision, Facts
from birthmark.services import blastradius
from birthmark.services.check import check
from birthmark.services.incidents import Incident, incident
from birthmark.services.log_reading import log_of, log_of_bundle
from birthmark.services.shipments import record_shipment
from tests.support.acts import act
from tests.support.realm import START, Client, Line, make_line, proof, workpiece
from tests.support.recalls import People, people, sign

STATION, OPERATOR, RUN = Criterion.STATION, Criterion.OPERATOR, Criterion.RUN
FIRMWARE, AUTHORITY, ELEMENT = Criterion.FIRMWARE, Criterion.AUTHORITY, Criterion.ELEMENT
HOUR = timedelta(hours=1)


class Stop(Exception):  # no error: somebody pulled the plug
    """Whoever carried a recall out is gone."""


def at(hours: float) -> datetime:
    return START + hours * HOUR


@pytest.fixture
def plant(line: Line) -> People:
    """A plant on both databases."""
    return work(line)


@pytest.fixture
def small_plant(small_line: Line) -> People:
    """A plant on SQLite."""
    return work(small_line)


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Iterator[People]:
    """A plant on SQLite in which nothing happens any more."""
    folder = tmp_path_factory.mktemp("still")
    line = make_line(folder, f"sqlite:///{folder / 'line.sqlite'}")
    line.open_run()
    yield work(line)
    line.close()


def work(line: Line) -> People:
    """Two stations and two runs at work for four hours.

    Hour 0: ST01 makes A1 on R1.  Hour 1: ST02, where dora stands, makes B1 on R1 and B2 on R2.  Hour 2: ST01,
    where dora stands, makes C1 on R2 and issues to C2; anna holds C2.  Hour 3: ST01 makes D1, and B1 is
    shipped; C2 is reworked and made again.  Now it is hour 4.
    """
    made = people(line)
    second = line.enrol(Role.STATION, "ST02", by=line.operator)
    line.enrol(Role.OPERATOR, "dora", by=line.operator)
    line.service.carry(line.service.runs.close(line.operator.caller, "R1", "opened for two stations"))
    line.open_run("W1", stations=("ST01", "ST02"), batch="B1")
    line.open_run("W2", stations=("ST01", "ST02"), batch="B2", firmware="bms-4.2.1 sha256:00")
    make(line, "A1", "W1", line.station)
    line.clock.turn(hours=1)
    make(line, "B1", "W1", second.with_operator("dora"))
    make(line, "B2", "W2", second.with_operator("dora"))
    line.clock.turn(hours=1)
    make(line, "C1", "W2", line.station.with_operator("dora"))
    line.issue(workpiece("C2"), run="W2", by=line.station)
    line.dispose(DeviceEvent.HOLD, "serial:C2", by=made.anna)
    line.clock.turn(hours=1)
    make(line, "D1", "W1", line.station)
    line.service.carry(record_shipment(made.anna.caller, "ACME-1", ["serial:B1"]))
    line.dispose(DeviceEvent.REWORK, "serial:C2", by=made.anna)
    make(line, "C2", "W2", line.station)
    line.clock.turn(hours=1)
    return made


def make(line: Line, name: str, run: str, by: Client) -> None:
    piece = workpiece(name)
    line.prove(proof(line.issue(piece, run=run, by=by), piece.key), by=by)


def window(criteria: Mapping[Criterion, str], since: float, until: float) -> Selection:
    return Selection(
        kind=SelectionKind.INCIDENT, value="", since=at(since), until=at(until), criteria=criteria
    )


def found(plant: People, criteria: Mapping[Criterion, str], since: float = 0, until: float = 4) -> Incident:
    line = plant.line
    return incident(log_of(line.service.store.log, line.realm), window(criteria, since, until))


def devices(one: Incident) -> list[str]:
    return [device.removeprefix("serial:") for device in one.devices]


def listed(one: Incident) -> list[str]:
    return [f"{each.device.removeprefix('serial:')} {each.reason or 'live'}" for each in one.listed.values()]


def findings(plant: People) -> list[str]:
    store = plant.line.another_service().store
    return check(store, store.log, plant.line.realm).findings


def order(plant: People, selection: Selection, **fields: Any) -> RecallOrder:
    seen = plant.line.service.carry(plant.recalls.preview(selection, RecallAction.REVOKE))
    draft = plant.recalls.draft(plant.anna.caller, seen, ReasonCode.KEY_COMPROMISE, "keys left the plant")
    return replace(draft, **fields)


@pytest.mark.parametrize(
    ("criteria", "since", "until", "expected"),
    [
        ({STATION: "ST02"}, 0, 4, ["B1", "B2"]),
        ({STATION: "ST01"}, 0, 4, ["A1", "C1", "C2", "D1"]),
        ({STATION: "ST01"}, 1, 3, ["C1", "C2"]),
        ({OPERATOR: "dora"}, 0, 4, ["B1", "B2", "C1"]),
        ({OPERATOR: "dora", STATION: "ST02"}, 0, 4, ["B1", "B2"]),
        ({OPERATOR: "dora", FIRMWARE: "bms-4.2.1 sha256:00"}, 0, 4, ["B2", "C1"]),
        ({OPERATOR: "dora", STATION: "ST02", RUN: "W2"}, 0, 4, ["B2"]),
        ({OPERATOR: "anna"}, 0, 4, ["C2"]),
        ({RUN: "W2"}, 0, 4, ["B2", "C1", "C2"]),
        ({FIRMWARE: "bms-4.2.1 sha256:00"}, 2, 3, ["C1", "C2"]),
        ({AUTHORITY: "issuing-1"}, 1, 2, ["B1", "B2"]),
        ({RUN: "W2"}, 0, 1, []),
    ],
)
def test_what_the_criteria_choose_is_listed_and_nothing_else(
    still: People, criteria: Mapping[Criterion, str], since: float, until: float, expected: list[str]
) -> None:
    assert devices(found(still, criteria, since, until)) == expected


@pytest.mark.parametrize(
    ("criteria", "named"),
    [
        ({STATION: "NOPE"}, "station 'NOPE'"),
        ({OPERATOR: "an"}, "operator 'an'"),
        ({RUN: "W"}, "run 'W'"),
        ({AUTHORITY: "issuing-9", STATION: "ST01"}, "authority 'issuing-9'"),
        ({ELEMENT: "acme-ecu"}, "element 'acme-ecu'"),
        ({FIRMWARE: "bms-4.2.2"}, "firmware 'bms-4.2.2'"),
    ],
)
def test_a_name_that_the_log_never_has_is_refused_instead_of_found_innocent(
    still: People, criteria: Mapping[Criterion, str], named: str
) -> None:
    with pytest.raises(errors.MalformedRequest, match=f"the log never names {named}: look"):
        found(still, criteria)


def test_the_first_instant_counts_and_the_last_does_not(still: People) -> None:
    assert devices(found(still, {STATION: "ST02"}, 1, 2)) == ["B1", "B2"]
    assert devices(found(still, {STATION: "ST02"}, 1 + 1 / 3_600_000, 2)) == []
    assert devices(found(still, {STATION: "ST02"}, 0, 1)) == []


def test_it_is_told_by_what_act_and_what_became_of_it(still: People) -> None:
    one = found(still, {RUN: "W2"}, 2, 4)
    c2 = one.devices["serial:C2"]
    assert dict(c2.acts) == {"issued": 2, "admitted": 1, "held": 1, "reworked": 1, "proved": 1}
    assert (c2.state, c2.first, c2.last) == (
        "released",
        "2026-11-22T12:00:00.000Z",
        "2026-11-22T13:00:00.000Z",
    )
    assert sorted(listed(one)) == ["C1 live", "C2 live", "C2 superseded"]
    assert (dict(one.operators), one.actors["station:ST01"]) == ({"dora": 2}, 5)
    gone = found(still, {STATION: "ST02"})
    assert (gone.devices["serial:B1"].consignment, gone.document()["shipped"]) == ("ACME-1", 1)


def test_acts_that_touch_no_device_are_listed_too(still: People) -> None:
    one = found(still, {OPERATOR: "anna"}, 0, 4)
    told = [(other.kind, other.what) for other in one.others]
    assert ("client-enrolled", "client station:ST02, authority issuing-1") in told
    assert ("run-opened", "run W2") in told
    assert ("run-closed", "run R1") in told
    assert ("devices-shipped", "consignment ACME-1, 1 devices") in told
    of_firmware = found(still, {FIRMWARE: "bms-4.2.1 sha256:00"}, 0, 4)
    assert [(other.kind, other.what) for other in of_firmware.others] == [("run-opened", "run W2")]


def test_two_people_recall_exactly_what_is_listed_and_live(plant: People) -> None:
    line = plant.line
    selection = window({OPERATOR: "dora"}, 0, 4)
    recall = plant.propose(order(plant, selection))
    read = RecallOrder.decode(recall.document)
    assert (read.selection, read.previewed) == (selection, 3)
    assert str(read.selection) == (
        "incident operator=dora since 2026-11-22T10:00:00.000Z until 2026-11-22T14:00:00.000Z"
    )
    done = plant.approve(recall)
    assert (done.status, done.changed) == (RecallStatus.DONE, 3)
    after = found(plant, {OPERATOR: "dora"})
    assert sorted(listed(after)) == [f"{name} keyCompromise" for name in ("B1", "B2", "C1")]
    assert after.live == []
    others = [one for one in listed(found(plant, {AUTHORITY: "issuing-1"})) if one.endswith(" live")]
    assert sorted(others) == ["A1 live", "C2 live", "D1 live"]
    assert line.the(Recall, recall.id).changed == 3
    assert findings(plant) == []


def test_a_device_that_was_only_held_in_the_window_goes_with_what_it_had_then(still: People) -> None:
    """Listed is what acts touched, whatever they were; what was issued after the window is not of it."""
    one = found(still, {OPERATOR: "anna"}, 2, 3)
    assert (devices(one), listed(one)) == (["C2"], ["C2 superseded"])
    later = found(still, {OPERATOR: "anna"}, 2, 3.5)
    assert listed(later) == ["C2 superseded"]
    whole = found(still, {STATION: "ST01"}, 2, 4)
    assert sorted(listed(whole)) == ["C1 live", "C2 live", "C2 superseded", "D1 live"]


def test_what_went_meanwhile_is_no_reason_to_refuse_and_anything_else_is(small_plant: People) -> None:
    selection = window({OPERATOR: "dora"}, 0, 4)
    recall = small_plant.propose(order(small_plant, selection))
    small_plant.recall(SelectionKind.DEVICE, "serial:B2")
    assert small_plant.approve(recall).changed == 2
    wrong = order(small_plant, window({STATION: "ST01"}, 0, 4), previewed=7)
    with pytest.raises(errors.IllegalTransition, match="is for 7 certificates; there are 3, and 0 went"):
        small_plant.propose(wrong)
    assert findings(small_plant) == []


def test_a_count_that_changed_otherwise_is_not_approved(small_plant: People) -> None:
    """A suspension that is lifted adds to what a suspension would change: nobody signed for that."""
    small_plant.recall(SelectionKind.DEVICE, "serial:B1", RecallAction.SUSPEND)
    selection = window({OPERATOR: "dora"}, 0, 4)
    seen = small_plant.line.service.carry(small_plant.recalls.preview(selection, RecallAction.SUSPEND))
    assert seen.changes == 2
    draft = small_plant.recalls.draft(
        small_plant.anna.caller, seen, ReasonCode.CERTIFICATE_HOLD, "looked into"
    )
    recall = small_plant.propose(draft)
    small_plant.line.clock.turn(minutes=1)
    small_plant.recall(SelectionKind.DEVICE, "serial:B1", RecallAction.REINSTATE)
    with pytest.raises(errors.IllegalTransition, match="is for 2 certificates; there are 3, and 0 went"):
        small_plant.approve(recall)
    assert small_plant.line.the(Recall, recall.id).status is RecallStatus.PROPOSED


def test_a_broken_off_recall_of_an_incident_is_carried_on(
    small_plant: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blastradius, "PAGE", 1)
    recall = small_plant.propose(order(small_plant, window({AUTHORITY: "issuing-1"}, 0, 4)))

    class Stop(Exception):  # no error: somebody pulled the plug
        pass

    def stop(done: int, _total: int) -> None:
        if done == 3:
            raise Stop

    with pytest.raises(Stop):
        small_plant.approve(recall, told=stop)
    assert small_plant.line.the(Recall, recall.id).status is RecallStatus.APPROVED
    done = small_plant.line.service.carry(small_plant.recalls.resume(small_plant.carl.caller, recall.id))
    assert (done.status, done.changed) == (RecallStatus.DONE, 6)
    assert findings(small_plant) == []


def test_check_finds_a_certificate_that_the_acts_do_not_choose_and_one_that_was_left_out(
    small_plant: People,
) -> None:
    line = small_plant.line
    recall = small_plant.propose(order(small_plant, window({OPERATOR: "dora"}, 0, 4)))
    stray = line.the(Attempt, line.the(Device, "serial:A1").attempt).certificate

    def slip(_done: int, _total: int) -> None:
        entry = {"recall": recall.id, "certificates": [stray], "revocation_reason": "keyCompromise"}
        if not slipped:
            slipped.append(True)
            line.service.store.submit(
                [act(lambda _facts, _at: Decision(None, [("certificates-revoked", entry)]))]
            ).result()

    slipped: list[bool] = []
    small_plant.approve(recall, told=slip)
    told = "\n".join(findings(small_plant))
    assert f"recall {recall.id} does not choose certificate {stray}" in told


def test_check_finds_a_recall_that_is_called_done_and_left_certificates_out(
    small_plant: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blastradius, "PAGE", 1)
    recall = small_plant.propose(order(small_plant, window({OPERATOR: "dora"}, 0, 4)))

    def stop(done: int, _total: int) -> None:
        if done == 1:
            raise Stop

    with pytest.raises(Stop):
        small_plant.approve(recall, told=stop)

    def call_it_done(facts: Facts, _at: datetime) -> Decision[None]:
        row = facts.get(Recall, recall.id)
        assert row is not None
        facts.put(replace(row, status=RecallStatus.DONE))
        return Decision(None, [("recall-done", {"recall": recall.id, "changed": 1})])

    small_plant.line.service.store.submit([act(call_it_done)]).result()
    left = found(small_plant, {OPERATOR: "dora"}).live
    assert len(left) == 2
    assert findings(small_plant) == [
        f"recall {recall.id} is done; it left out certificate {serial}" for serial in left
    ]


def test_an_exported_log_tells_the_same(plant: People) -> None:
    line, out = plant.line, io.BytesIO()
    store = line.service.store
    write_bundle(
        out,
        vkey=line.vkey,
        checkpoint=store.checkpoint(),
        entries=(item.entry for item in store.log.entries()),
        records=(),
    )
    with Bundle(out) as bundle:
        away = incident(log_of_bundle(bundle, line.vkey), window({OPERATOR: "dora"}, 0, 4))
    assert away == found(plant, {OPERATOR: "dora"})


# --- orders

SELECTION = window({OPERATOR: "anna", FIRMWARE: "bms-4.2.1"}, 0, 1)
ORDER = RecallOrder(
    realm="acme",
    environment="test",
    id="rc-1",
    selection=SELECTION,
    action=RecallAction.REVOKE,
    reason=ReasonCode.KEY_COMPROMISE,
    justification="keys left the plant",
    previewed=3,
    proposed_by="operator:anna",
)


def test_an_order_says_selection_window_and_count_and_reads_back() -> None:
    check_order(ORDER)
    assert RecallOrder.decode(ORDER.encode()) == ORDER
    said = parse(ORDER.encode())
    assert said["previewed"] == 3
    assert said["selection"] == {
        "kind": "incident",
        "value": "",
        "since": "2026-11-22T10:00:00.000Z",
        "until": "2026-11-22T11:00:00.000Z",
        "criteria": {"operator": "anna", "firmware": "bms-4.2.1"},
    }


def test_an_order_of_before_stays_byte_for_byte_what_was_signed() -> None:
    signed = (
        b'{"action":"revoke","environment":"test","invalidity_date":null,"justification":"keys left",'
        b'"previewed":3,"proposed_by":"operator:anna","realm":"acme","reason":"keyCompromise","recall":"rc-1",'
        b'"selection":{"kind":"station","since":null,"until":"2026-11-22T11:00:00.000Z","value":"ST01"},'
        b'"type":"birthmark/recall/v1"}'
    )
    assert RecallOrder.decode(signed).encode() == signed


@pytest.mark.parametrize(
    "selection",
    [
        replace(SELECTION, criteria={}),
        replace(SELECTION, value="ST01"),
        replace(SELECTION, since=None),
        replace(SELECTION, until=None),
        replace(SELECTION, until=SELECTION.since),
        replace(SELECTION, criteria={OPERATOR: ""}),
        replace(SELECTION, criteria={OPERATOR: "a\nb"}),
        replace(SELECTION, criteria={OPERATOR: "a" * 201}),
        Selection(kind=SelectionKind.RUN, value="R1", criteria={OPERATOR: "anna"}),
    ],
)
def test_an_incident_that_makes_no_sense_is_refused(selection: Selection) -> None:
    with pytest.raises(errors.PolicyRefused) as refusal:
        check_order(replace(ORDER, selection=selection))
    assert refusal.value.rule == "selection"


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["run", "x"]), inner),
    max_leaves=5,
)


@given(JSON)
def test_criteria_of_any_other_form_are_malformed_and_nothing_else(criteria: Any) -> None:
    said = parse(ORDER.encode())
    assert isinstance(said["selection"], dict)
    said["selection"]["criteria"] = criteria
    try:
        read = RecallOrder.decode(canonical(said))
    except errors.MalformedRequest:
        return
    assert read.selection.criteria == criteria


def test_an_incident_needs_somebody_or_something(still: People) -> None:
    with pytest.raises(errors.MalformedRequest, match="say whose acts"):
        found(still, {})
    copy = log_of(still.line.service.store.log, still.line.realm)
    with pytest.raises(errors.MalformedRequest, match="has a beginning and an end"):
        incident(copy, replace(SELECTION, until=None))


def test_the_second_person_signs_the_same_document(small_plant: People) -> None:
    recall = small_plant.propose(order(small_plant, window({OPERATOR: "dora"}, 0, 4)))
    with pytest.raises(errors.NotPermitted):
        small_plant.line.service.carry(
            small_plant.recalls.approve(
                small_plant.anna.caller, recall.id, sign(small_plant.anna, recall.document)
            )
        )
