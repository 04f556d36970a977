"""Reading the record: by a field, and one column of many values as of one moment."""

from datetime import timedelta

import pytest

from birthmark.floor.devices import DeviceCertificate
from birthmark.floor.revocations import Revocation, revocation_key
from birthmark.pki.revocation import ReasonCode, revoked_entry
from tests.support.acts import put
from tests.support.realm import START, Line, workpiece


def revocation(authority: str, partition: str, number: int) -> Revocation:
    return Revocation(
        id=revocation_key(authority, partition, f"{number:040x}"),
        entry=revoked_entry(number, START, ReasonCode.KEY_COMPROMISE),
        reason=ReasonCode.KEY_COMPROMISE,
        revoked_at=START,
        cause="recall:1",
    )


def test_a_scan_by_a_field_finds_its_values_in_order_and_no_others(line: Line) -> None:
    line.open_run("R7")
    line.open_run("R8")
    for number in range(3):
        line.issue(workpiece(f"A{number}"), run="R7")
        line.issue(workpiece(f"B{number}"), run="R8")
    store = line.service.store
    found = list(store.scan(DeviceCertificate, where={"run": "R8"}))
    assert [one.serial for one in found] == sorted(one.serial for one in found)
    assert {one.device for one in found} == {"serial:B0", "serial:B1", "serial:B2"}
    assert list(store.scan(DeviceCertificate, where={"run": "R8"}, after=found[0].serial, limit=1)) == [
        found[1]
    ]
    assert list(store.scan(DeviceCertificate, where={"run": "none"})) == []
    with pytest.raises(ValueError, match="has no colour"):
        list(store.scan(DeviceCertificate, where={"colour": "red"}))


def test_a_column_is_joined_in_the_order_of_its_keys(line: Line) -> None:
    """SPEC F2: a CRL's lines, neighbours whatever else is revoked."""
    mine = [revocation("ca", "batch.1", number) for number in (5, 3, 200)]
    others = [
        revocation("ca", "batch.10", 1),
        revocation("ca", "batch.2", 2),
        revocation("ca-2", "batch.1", 7),
        revocation("c", "batch.1", 8),
    ]
    line.clock.turn(seconds=30)
    store = line.service.store
    store.submit([put(*mine, *others)]).result(10)
    with store.octets(Revocation, "entry", prefix="ca/batch.1/") as octets:
        joined = b"".join(octets.pieces())
        assert joined == b"".join(one.entry for one in sorted(mine, key=lambda one: one.id))
        assert (octets.size, octets.as_of) == (len(joined), START + timedelta(seconds=30))
    with store.octets(Revocation, "entry", prefix="ca/") as octets:
        assert octets.size == sum(len(one.entry) for one in (*mine, *others[:2]))
    with store.octets(Revocation, "entry", prefix="nobody/") as octets:
        assert (octets.size, list(octets.pieces())) == (0, [])


def test_what_is_committed_meanwhile_is_not_in_the_snapshot(line: Line) -> None:
    store = line.service.store
    store.submit([put(*(revocation("ca", "all", number) for number in range(1, 11)))]).result(10)
    with store.octets(Revocation, "entry", prefix="ca/") as octets:
        store.submit([put(revocation("ca", "all", 11))]).result(10)
        size = octets.size
        assert len(b"".join(octets.pieces())) == size
    with store.octets(Revocation, "entry", prefix="ca/") as later:
        assert later.size > size
