"""What has left the building is recorded whole or not at all, and once (SPEC E8)."""

from collections import Counter

import pytest

from birthmark import errors
from birthmark.floor.recalls import RecallAction, SelectionKind
from birthmark.floor.shipments import Shipped
from birthmark.services import shipments
from birthmark.services.check import check
from birthmark.services.shipments import Recorded, record_shipment
from tests.support.realm import START, Line, tamper, workpiece
from tests.support.recalls import people


def record(line: Line, consignment: str, *devices: str) -> Recorded:
    return line.service.carry(record_shipment(line.operator.caller, consignment, devices))


def findings(line: Line) -> list[str]:
    store = line.another_service().store
    return check(store, store.log, line.realm).findings


def test_the_same_list_again_does_no_harm_and_the_first_report_counts(line: Line) -> None:
    for name in ("A1", "A2", "A3"):
        line.make(name)
    assert record(line, "C1", "serial:A1", "serial:A2", "serial:A1") == Recorded(
        consignment="C1", new=2, known=0, elsewhere=0
    )
    size = line.size()
    assert record(line, "C1", "serial:A2", "serial:A1").known == 2
    assert line.size() == size
    assert record(line, "C2", "serial:A1", "serial:A3") == Recorded(
        consignment="C2", new=1, known=0, elsewhere=1
    )
    assert line.the(Shipped, "serial:A1") == Shipped(device="serial:A1", consignment="C1", at=START)
    assert line.entries()[-1]["devices"] == ["serial:A3"]
    assert findings(line) == []


def test_an_unknown_device_is_named_and_nothing_is_recorded(line: Line) -> None:
    line.make("A1")
    with pytest.raises(errors.NotFound, match="there is no device serial:NONE"):
        record(line, "C1", "serial:A1", "serial:NONE")
    assert line.get(Shipped, "serial:A1") is None
    assert line.entries()[-1]["kind"] == "refused"


def test_a_device_that_was_not_released_is_no_shipment(line: Line) -> None:
    line.issue(workpiece("A1"))
    with pytest.raises(errors.IllegalTransition, match=r"serial:A1 \(issued\)"):
        record(line, "C1", "serial:A1")
    assert line.get(Shipped, "serial:A1") is None


def test_twenty_are_named_and_the_others_counted(small_line: Line) -> None:
    with pytest.raises(errors.NotFound, match="serial:X19 and 5 more"):
        record(small_line, "C1", *(f"serial:X{number:02}" for number in range(25)))


@pytest.mark.parametrize("consignment", ["", "a\nb", "x" * 101])
def test_a_consignment_has_a_name(small_line: Line, consignment: str) -> None:
    small_line.make("A1")
    with pytest.raises(errors.MalformedRequest, match="consignment"):
        record(small_line, consignment, "serial:A1")


def test_a_consignment_holds_something(small_line: Line) -> None:
    with pytest.raises(errors.MalformedRequest, match="holds no device"):
        record(small_line, "C1")


def test_a_station_records_no_shipment(small_line: Line) -> None:
    small_line.make("A1")
    with pytest.raises(errors.NotPermitted, match="may not record-shipment"):
        small_line.service.carry(record_shipment(small_line.station.caller, "C1", ["serial:A1"]))


def test_a_long_list_becomes_several_acts(small_line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log entries have at most 65 535 octets."""
    monkeypatch.setattr(shipments, "CHUNK_OCTETS", 30)
    for name in ("A1", "A2", "A3"):
        small_line.make(name)
    start = small_line.size()
    record(small_line, "C1", "serial:A1", "serial:A2", "serial:A3")
    assert [entry["devices"] for entry in small_line.entries(start)] == [
        ["serial:A1", "serial:A2"],
        ["serial:A3"],
    ]


def test_a_recall_knows_what_is_out_and_with_which_consignment(line: Line) -> None:
    """SPEC E6: what is shipped is the radius that hurts."""
    for name in ("A1", "A2", "A3"):
        line.make(name)
    record(line, "C1", "serial:A1", "serial:A2")
    seen = people(line).preview(SelectionKind.BATCH, "B7", RecallAction.REVOKE)
    assert (seen.changes, seen.shipped, seen.consignments) == (3, 2, Counter({"C1": 2}))


@pytest.mark.parametrize(
    ("statement", "finding"),
    [
        ("UPDATE shipped SET consignment = 'C9'", "was shipped otherwise than the log says"),
        ("DELETE FROM shipped", "the log says serial:A1 was shipped with C1; the record does not"),
        (
            "INSERT INTO shipped SELECT 'serial:Z', consignment, at FROM shipped",
            "serial:Z was shipped otherwise",
        ),
    ],
)
def test_the_check_finds_a_changed_shipment(small_line: Line, statement: str, finding: str) -> None:
    small_line.make("A1")
    record(small_line, "C1", "serial:A1")
    tamper(small_line.url, (statement, ()))
    assert any(finding in found for found in findings(small_line))
