"""The check finds what somebody who owns the database did to it, and names the thing (SPEC E5, E8)."""

# ruff: noqa: E501  # a statement is read better in one piece

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from birthmark import errors
from birthmark.floor.clients import Role
from birthmark.floor.devices import DeviceEvent
from birthmark.services.check import Report, check
from tests.support.realm import Line, make_line, open_service, proof, tamper, workpiece

Statement = tuple[str, Sequence[Any]]


def busy(line: Line) -> None:
    """Leave a device in every state, a closed run, a revoked station, and refusals."""
    line.open_run("R1", listed=[f"serial:D{number}" for number in range(1, 8)])
    line.open_run("R2")
    station = line.station.with_seq(1)
    line.make("D1", by=station)
    line.make("D2")
    line.issue(workpiece("D3"))
    held = workpiece("D4")
    with pytest.raises(errors.ProofFailed):
        line.prove(proof(line.issue(held), workpiece("X").key))
    for name in ("D5", "D6", "D7"):
        line.issue(workpiece(name, delivered=True), key=name)
        line.dispose(DeviceEvent.HOLD, f"serial:{name}")
    line.dispose(DeviceEvent.SCRAP, "serial:D5")
    line.dispose(DeviceEvent.REWORK, "serial:D6")
    delivered = workpiece("E1", delivered=True)
    line.issue(delivered, run="R2", key="k")
    line.issue(delivered, run="R2", key="k")
    line.enrol(Role.STATION, "ST02", by=line.operator)
    line.service.carry(line.service.authorise.revoke(line.operator.caller, "station:ST02", "stolen"))
    line.service.carry(line.service.runs.close(line.operator.caller, "R2", "done"))


@pytest.fixture(scope="module")
def busy_line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    """A line with something of everything, to be copied."""
    line = make_line(folder := tmp_path_factory.mktemp("busy"), f"sqlite:///{folder / 'line.sqlite'}")
    busy(line)
    yield line
    line.close()


def reopen(url: str, line: Line) -> Line:
    """Return a line over a copy of another's database."""
    return Line(url=url, keys=line.keys, clock=line.clock, service=open_service(url, line.keys, line.clock))


def findings(line: Line, received: Sequence[str] = ()) -> Report:
    store = line.another_service().store
    return check(store, store.log, line.realm, received_checkpoints=received)


def test_a_clean_line_has_no_finding(tmp_path: Path, database_url: str) -> None:
    line = make_line(tmp_path, database_url)
    busy(line)
    told: list[str] = []
    store = line.service.store
    report = check(
        store,
        store.log,
        line.realm,
        progress=lambda stage, _done: told.append(stage),
        received_checkpoints=[store.checkpoint()],
    )
    assert report.findings == []
    assert report.ok
    assert report.counts["devices released"] == 2
    assert report.counts["records"] == 2
    assert report.counts["entries"] == line.size()
    line.close()


def test_a_gap_in_a_stations_request_numbers_is_a_note(tmp_path: Path) -> None:
    """SPEC E5: completeness by the stations' own numbers."""
    line = make_line(tmp_path, f"sqlite:///{tmp_path / 'line.sqlite'}")
    line.open_run()
    for number in (1, 2, 5):
        line.issue(workpiece(f"D{number}"), by=line.station.with_seq(number))
    report = findings(line)
    assert report.findings == []
    assert report.notes == ["station:ST01: 2 request numbers are not in the log, the first is 3"]
    line.close()


@dataclass(frozen=True)
class Tampering:
    """What is done, and what the check must say."""

    statements: Callable[[Line], list[Statement]]
    finding: str


def sql(*statements: str) -> Callable[[Line], list[Statement]]:
    return lambda _line: [(statement, ()) for statement in statements]


def flip(line: Line) -> list[Statement]:
    """Flip one bit of an entry, and mend its leaf hash."""
    entry = bytearray(next(iter(line.service.store.log.entries(5))).entry)
    entry[entry.index(b'"v":1') + 4] ^= 1
    return [("UPDATE leaf SET entry = %s WHERE idx = 5", (bytes(entry),))]


def reword(line: Line) -> list[Statement]:
    entry = next(iter(line.service.store.log.entries(5))).entry.replace(b"operator:anna", b"operator:bert")
    return [("UPDATE leaf SET entry = %s WHERE idx = 5", (entry,))]


TAMPERINGS: dict[str, Tampering] = {
    "a bit of an entry": Tampering(flip, "entry 5 is not one of ours"),
    "a word of an entry": Tampering(reword, "contradicts the log"),
    "an entry removed": Tampering(sql("DELETE FROM leaf WHERE idx = 9"), "the log has no entry 9"),
    "the last entries removed": Tampering(
        sql("DELETE FROM leaf WHERE idx >= (SELECT size - 3 FROM head)"), "a checkpoint speaks of"
    ),
    "a checkpoint replaced": Tampering(
        sql("UPDATE checkpoint SET note = replace(note, 'acme/log', 'acme/lug') WHERE size = 5"),
        "a stored checkpoint does not verify",
    ),
    "a counter of admitted": Tampering(
        sql("UPDATE run SET admitted = 6, held = 1 WHERE id = 'R1'"), "run R1 counts"
    ),
    "a counter of released": Tampering(
        sql("UPDATE run SET released = released - 1 WHERE id = 'R1'"), "run R1 counts"
    ),
    "a quantity": Tampering(
        sql("UPDATE run SET quantity = 9000 WHERE id = 'R1'"), "run R1 contradicts its licence"
    ),
    "a signature": Tampering(
        sql("UPDATE run SET signature = (SELECT proof FROM identity_record LIMIT 1) WHERE id = 'R1'"),
        "the licence of run R1 is not what was signed",
    ),
    "a closed run opened": Tampering(
        sql("UPDATE run SET status = 'open' WHERE id = 'R2'"), "run R2 is open, the log says otherwise"
    ),
    "a run removed": Tampering(
        sql("DELETE FROM run WHERE id = 'R2'"), "the log says run R2 was opened; it is gone"
    ),
    "an authority's count": Tampering(
        sql("UPDATE authority SET issued = issued - 1 WHERE id = 'issuing-1'"), "authority issuing-1 counts"
    ),
    "an authority's certificate": Tampering(
        sql("UPDATE authority SET der = (SELECT der FROM credential LIMIT 1) WHERE id = 'root'"),
        "authority root is not the one",
    ),
    "a line on the allow-list": Tampering(
        sql(
            "INSERT INTO allowed_device SELECT replace(id, ':D1', ':Z9') FROM allowed_device WHERE id LIKE '%D1'"
        ),
        "the hardware-id list of run R1 is not the one that was signed",
    ),
    "a line off the allow-list": Tampering(
        sql("DELETE FROM allowed_device WHERE id LIKE '%D1'"), "the hardware-id list of run R1"
    ),
    "a device added": Tampering(
        sql(
            "INSERT INTO device SELECT 'serial:GHOST', state, run, attempt, attempts, reason FROM device WHERE id = 'serial:D1'"
        ),
        "serial:GHOST is released, the log says otherwise",
    ),
    "a device removed": Tampering(
        sql("DELETE FROM device WHERE id = 'serial:D3'"),
        "the log speaks of serial:D3; there is no such device",
    ),
    "a device released without proof": Tampering(
        sql("UPDATE device SET state = 'released' WHERE id = 'serial:D3'"),
        "serial:D3 is released, the log says otherwise",
    ),
    "a certificate taken back from its revocation": Tampering(
        sql("UPDATE device_certificate SET revoked = NULL, revoked_at = NULL WHERE device = 'serial:D5'"),
        "revoked or not, the log says otherwise",
    ),
    "a good certificate revoked": Tampering(
        sql(
            "UPDATE device_certificate SET revoked = 'keyCompromise', revoked_at = 1 WHERE device = 'serial:D1'"
        ),
        "serial:D1 is released and its certificate is not live",
    ),
    "a certificate exchanged": Tampering(
        sql(
            "UPDATE device_certificate SET der = (SELECT der FROM device_certificate WHERE device = 'serial:D2')"
            " WHERE device = 'serial:D1'"
        ),
        "is not the one its fingerprint names",
    ),
    "a certificate removed": Tampering(
        sql("DELETE FROM device_certificate WHERE device = 'serial:D1'"), "which is another or gone"
    ),
    "a record's proof": Tampering(
        sql(
            "UPDATE identity_record SET proof = (SELECT proof FROM attempt WHERE device = 'serial:D2')"
            " WHERE device = 'serial:D1'"
        ),
        "the proof of serial:D1 does not verify",
    ),
    "a record's station": Tampering(
        sql("UPDATE identity_record SET client = 'station:ST09' WHERE device = 'serial:D1'"),
        "of serial:D1 is not what the log says was released",
    ),
    "a record removed": Tampering(
        sql("DELETE FROM identity_record WHERE device = 'serial:D1'"),
        "says serial:D1 was released; there is no such record",
    ),
    "a key given to another device": Tampering(
        sql("UPDATE key_use SET device = 'serial:D9' WHERE device = 'serial:D1'"),
        "the key of serial:D1 is not kept as its own",
    ),
    "a revoked station let in again": Tampering(
        sql("UPDATE client SET status = 'active' WHERE id = 'station:ST02'"),
        "station:ST02 is active, the log says otherwise",
    ),
    "a station's certificate removed": Tampering(
        sql("DELETE FROM credential WHERE client = 'station:ST01'"), "was issued; it is gone"
    ),
    "a station's certificate given to another": Tampering(
        sql("UPDATE credential SET client = 'operator:anna' WHERE client = 'station:ST01'"),
        "the log says it is station:ST01's",
    ),
    "a station made an operator": Tampering(
        sql("UPDATE client SET role = 'operator' WHERE id = 'station:ST01'"),
        "station:ST01 is not the client that was enrolled",
    ),
    "an attempt's proof": Tampering(
        sql("UPDATE attempt SET proof = challenge WHERE device = 'serial:D1'"), "has no released attempt"
    ),
    "a tree's leaf hash": Tampering(
        sql("UPDATE leaf SET hash = (SELECT hash FROM leaf WHERE idx = 1) WHERE idx = 2"),
        "the stored hash of entry 2 is another",
    ),
}


@pytest.mark.parametrize("case", TAMPERINGS)
def test_a_tampering_is_found_and_named(tmp_path: Path, busy_line: Line, case: str) -> None:
    path = tmp_path / "tampered.sqlite"
    with closing(sqlite3.connect(busy_line.url.removeprefix("sqlite:///"))) as db:
        db.execute("VACUUM INTO ?", (str(path),))
    line = reopen(f"sqlite:///{path}", busy_line)
    tampering = TAMPERINGS[case]
    tamper(line.url, *tampering.statements(line))
    report = findings(line)
    assert any(tampering.finding in finding for finding in report.findings), report.findings
    assert not report.ok
    line.close()
