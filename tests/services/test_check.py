"""The check finds what somebody who owns the database did to it, and names the thing (SPEC E5, E8)."""

# ruff: noqa: E501  # a statement is read better in one piece

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from birthmark import errors
from birthmark.floor.authorities import Authority, AuthorityStatus
from birthmark.floor.clients import Role
from birthmark.floor.devices import DeviceEvent
from birthmark.ledger.entry import decode, encode
from birthmark.services.check import Report, check
from birthmark.services.issue import IssueRequest
from birthmark.services.testimony import Said
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
    act, operator = line.service.carry, line.operator.caller
    meters = replace(line.the(Authority, "issuing-1"), id="issuing-2", scope="product=meter", issued=0)
    line.establish(meters)
    act(line.service.authorise.change(operator, "issuing-2", AuthorityStatus.SUSPENDED, "audit"))
    act(line.service.runs.import_list(operator, ["serial:SPARE"]))
    # Refusals enough for the log to have a full tile.
    nonsense = [IssueRequest(hardware_id="?", csr=None, key=f"nonsense-{number}") for number in range(256)]
    answers = act(line.service.issue(line.station.caller, "R1", nonsense))
    assert all(isinstance(answer, errors.Refusal) for answer in answers)
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


def line_of_d5(statement: str) -> Callable[[Line], list[Statement]]:
    """Change what stands on the CRL for the device that was reworked."""
    return sql(
        f"{statement} WHERE id LIKE"  # noqa: S608  # names of our own tables
        " (SELECT '%/' || serial FROM device_certificate WHERE device = 'serial:D5')"
    )


def flip(line: Line) -> list[Statement]:
    """Flip one bit of an entry, and mend its leaf hash."""
    entry = bytearray(next(iter(line.service.store.log.entries(5))).entry)
    entry[entry.index(b'"v":1') + 4] ^= 1
    return [("UPDATE leaf SET entry = %s WHERE idx = 5", (bytes(entry),))]


def omit(line: Line) -> list[Statement]:
    """Leave a field out of the entry that issued the first device."""
    index, entry = next(
        (index, entry) for index, entry in enumerate(line.entries()) if entry["kind"] == "device-issued"
    )
    rest = {name: value for name, value in entry.items() if name != "device"}
    return [("UPDATE leaf SET entry = %s WHERE idx = %s", (encode(rest), index))]


def reword(line: Line) -> list[Statement]:
    entry = next(iter(line.service.store.log.entries(5))).entry.replace(b"operator:anna", b"operator:bert")
    return [("UPDATE leaf SET entry = %s WHERE idx = 5", (entry,))]


TAMPERINGS: dict[str, Tampering] = {
    "a bit of an entry": Tampering(flip, "entry 5 is not one of ours"),
    "a field of an entry left out": Tampering(omit, "is no device-issued: its device is missing"),
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
        line_of_d5("DELETE FROM revocation"),
        "the log says it was revoked; its CRL does not",
    ),
    "a good certificate revoked": Tampering(
        sql(
            "INSERT INTO revocation SELECT authority || '/' || partition || '/' || serial, x'', 'keyCompromise', 1,"
            " 'recall:1' FROM device_certificate WHERE device = 'serial:D1'"
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
        "station:ST01 is operator, the log says station",
    ),
    "an attempt's proof": Tampering(
        sql("UPDATE attempt SET proof = challenge WHERE device = 'serial:D1'"), "has no released attempt"
    ),
    "an authority's quota": Tampering(
        sql("UPDATE authority SET quota = 9000 WHERE id = 'issuing-1'"),
        "authority issuing-1: its quota is 9000, the log says None",
    ),
    "a suspended authority resumed": Tampering(
        sql("UPDATE authority SET status = 'active' WHERE id = 'issuing-2'"),
        "authority issuing-2: its status is active, the log says suspended",
    ),
    "an authority's end": Tampering(
        sql("UPDATE authority SET ends_at = ends_at + 1 WHERE id = 'issuing-1'"),
        "authority issuing-1: its end is 2099-01-01T00:00:00.001Z, the log says 2099-01-01T00:00:00.000Z",
    ),
    "an authority's scope": Tampering(
        sql("UPDATE authority SET scope = '*' WHERE id = 'issuing-2'"),
        "authority issuing-2: its scope is *, the log says product=meter",
    ),
    "an authority that takes over": Tampering(
        sql("UPDATE authority SET successor = 'issuing-2' WHERE id = 'issuing-1'"),
        "authority issuing-1: its successor is issuing-2, the log says None",
    ),
    "a ceremony removed": Tampering(
        sql("DELETE FROM ceremony"), "the log says ceremony acme-0 was performed; its record is gone"
    ),
    "a ceremony's file": Tampering(
        sql("UPDATE ceremony SET file = CAST(replace(CAST(file AS TEXT), 'quality', 'mallory') AS BLOB)"),
        "ceremony acme-0: its file or its record is another",
    ),
    "a ceremony's record": Tampering(
        sql("UPDATE ceremony SET record = CAST(replace(CAST(record AS TEXT), '2026-', '2025-') AS BLOB)"),
        "ceremony acme-0: its file or its record is another",
    ),
    "a ceremony's hash": Tampering(
        sql("UPDATE ceremony SET record_sha256 = file_sha256"),
        "ceremony acme-0 is not the one the log says was performed",
    ),
    "a key's fingerprint": Tampering(
        sql("UPDATE key_asset SET fingerprint = 'ab' WHERE label = 'issuing-1'"),
        "key issuing-1: its fingerprint is ab, the log says ",
    ),
    "a key's policy": Tampering(
        sql("UPDATE key_asset SET policy = 'signing-with-backup' WHERE label = 'log'"),
        "key log: its policy is signing-with-backup, the log says signing",
    ),
    "a key removed": Tampering(
        sql("DELETE FROM key_asset WHERE label = 'root'"),
        "the log says key root was made; it is not in the table of keys",
    ),
    "an authority's owner": Tampering(
        sql("UPDATE authority SET owner = 'mallory' WHERE id = 'root'"),
        "authority root: its owner is mallory",
    ),
    "an issuing authority made a root": Tampering(
        sql("UPDATE authority SET kind = 'root' WHERE id = 'issuing-1'"),
        "authority issuing-1: its kind is root",
    ),
    "an authority's issuer": Tampering(
        sql("UPDATE authority SET issuer = 'issuing-1' WHERE id = 'issuing-2'"),
        "authority issuing-2: its issuer is issuing-1, the log says root",
    ),
    "a credential revoked by nobody": Tampering(
        sql("UPDATE credential SET status = 'revoked' WHERE client = 'station:ST01'"),
        "of station:ST01: its status is revoked, the log says active",
    ),
    "a credential's profile": Tampering(
        sql("UPDATE credential SET profile = 'operator' WHERE client = 'station:ST01'"),
        "of station:ST01: its profile is operator, the log says station",
    ),
    "a credential's end": Tampering(
        sql("UPDATE credential SET not_after = not_after + 1000 WHERE client = 'station:ST01'"),
        "of station:ST01: its end is",
    ),
    "a client's request number": Tampering(
        sql("UPDATE client SET last_seq = 0 WHERE id = 'station:ST01'"),
        "station:ST01 is at request 0, the log at its request 1",
    ),
    "a client removed": Tampering(
        sql("DELETE FROM client WHERE id = 'station:ST02'"),
        "the log says station:ST02 was enrolled; it is gone",
    ),
    "a released attempt's challenge": Tampering(
        sql("UPDATE attempt SET challenge = proof WHERE device = 'serial:D1'"),
        "at serial:D1: its challenge is",
    ),
    "an attempt's time": Tampering(
        sql("UPDATE attempt SET issued_at = issued_at - 1 WHERE device = 'serial:D3'"),
        "at serial:D3: its time is 2026-11-22T09:59:59.999Z, the log says 2026-11-22T10:00:00.000Z",
    ),
    "an attempt's operator": Tampering(
        sql("UPDATE attempt SET operator = 'bert' WHERE device = 'serial:D3'"),
        "at serial:D3: its operator is bert, the log says None",
    ),
    "an attempt's station": Tampering(
        sql("UPDATE attempt SET client = 'station:ST02' WHERE device = 'serial:D3'"),
        "at serial:D3: its client is station:ST02, the log says station:ST01",
    ),
    "an attempt's origin": Tampering(
        sql("UPDATE attempt SET origin = 'delivered' WHERE device = 'serial:D3'"),
        "at serial:D3: its origin is delivered, the log says born",
    ),
    "an attempt's certificate": Tampering(
        sql(
            "UPDATE attempt SET certificate = (SELECT certificate FROM attempt WHERE device = 'serial:D1')"
            " WHERE device = 'serial:D3'"
        ),
        "at serial:D3: its certificate is",
    ),
    "a re-issued attempt's certificate": Tampering(
        sql(
            "UPDATE attempt SET certificate = (SELECT serial FROM device_certificate WHERE device = 'serial:E1'"
            " AND serial IN (SELECT substr(id, -40) FROM revocation)) WHERE device = 'serial:E1'"
        ),
        "at serial:E1: its certificate is",
    ),
    "an attempt's number": Tampering(
        sql("UPDATE attempt SET number = 2 WHERE device = 'serial:D3'"), "at serial:D3: its number is 2"
    ),
    "an attempt's entry": Tampering(
        sql("UPDATE attempt SET issue_leaf = 1 WHERE device = 'serial:D3'"), "at serial:D3: its entry is 1"
    ),
    "a held attempt let go": Tampering(
        sql("UPDATE attempt SET state = 'issued' WHERE device = 'serial:D4'"),
        "at serial:D4: its state is issued, the log says held",
    ),
    "an attempt removed": Tampering(
        sql("DELETE FROM attempt WHERE device = 'serial:D6'"), "at serial:D6 was begun; it is gone"
    ),
    "a device moved to another run": Tampering(
        sql("UPDATE device SET run = 'R2' WHERE id = 'serial:D3'"),
        "serial:D3: its run is R2, the log says R1",
    ),
    "why a device is held": Tampering(
        sql("UPDATE device SET reason = 'dirty' WHERE id = 'serial:D7'"),
        "serial:D7: its reason is dirty, the log says scratched",
    ),
    "why a certificate is revoked": Tampering(
        line_of_d5("UPDATE revocation SET reason = 'keyCompromise'"),
        "revoked or not, why or when, the log says otherwise",
    ),
    "when a certificate was revoked": Tampering(
        line_of_d5("UPDATE revocation SET revoked_at = revoked_at + 1"),
        "revoked or not, why or when, the log says otherwise",
    ),
    "what the CRL says of a certificate": Tampering(
        line_of_d5("UPDATE revocation SET entry = (SELECT hash FROM leaf WHERE idx = 0)"),
        "is not what its reason and time come to",
    ),
    "a suspension put back without a word": Tampering(
        line_of_d5("UPDATE revocation SET reason = 'removeFromCRL'"),
        "revoked or not, why or when, the log says otherwise",
    ),
    "a certificate moved to another crl": Tampering(
        sql("UPDATE device_certificate SET partition = 'none' WHERE device = 'serial:D3'"),
        "its partition is none, the log says",
    ),
    "a certificate given to another attempt": Tampering(
        sql("UPDATE device_certificate SET attempt = 'none' WHERE device = 'serial:D3'"),
        "its attempt is none, the log says",
    ),
    "the key of a device that is not released forgotten": Tampering(
        sql("DELETE FROM key_use WHERE device = 'serial:D3'"),
        "the key of serial:D3 is not kept as its own: it is gone",
    ),
    "who signed a run": Tampering(
        sql("UPDATE run SET signer = (SELECT serial FROM credential WHERE client = 'station:ST01')"),
        "run R2 is not the one the log says was opened",
    ),
    "a list that no run names": Tampering(
        sql("DELETE FROM allowed_device WHERE id LIKE '%:SPARE'"), "is not the one that was imported"
    ),
    "the newest checkpoint removed": Tampering(
        sql("DELETE FROM checkpoint WHERE size = (SELECT max(size) FROM checkpoint)"),
        "no checkpoint that is stored covers the entries from",
    ),
    "a checkpoint filed under another size": Tampering(
        sql("UPDATE checkpoint SET size = 1000 WHERE size = 5"),
        "the stored checkpoint of size 1000 speaks of 5 entries",
    ),
    "an entry beyond the head": Tampering(
        sql("INSERT INTO leaf SELECT max(idx) + 1, zeroblob(32), entry FROM leaf"),
        "beyond the",
    ),
    "an entry far beyond the head": Tampering(
        sql("INSERT INTO leaf SELECT 100000, zeroblob(32), entry FROM leaf WHERE idx = 0"),
        "there is entry 100000, beyond the",
    ),
    "an entry before the first": Tampering(
        sql("INSERT INTO leaf SELECT -1, zeroblob(32), entry FROM leaf WHERE idx = 0"),
        "there is entry -1, beyond the",
    ),
    "a tile that is not full": Tampering(
        sql("INSERT INTO tile SELECT 0, 7, hash FROM leaf WHERE idx = 0"),
        "there is tile 7 of level 0, beyond the",
    ),
    "a tile of no level": Tampering(
        sql("INSERT INTO tile SELECT 9, 0, hash FROM leaf WHERE idx = 0"),
        "there is tile 0 of level 9, beyond the",
    ),
    "the head dated back": Tampering(sql("UPDATE head SET at = at - 86400000"), "the log's head is dated "),
    "a head beyond the log": Tampering(sql("UPDATE head SET size = size + 1"), "the log's head speaks of"),
    "a time that is none": Tampering(
        sql("UPDATE attempt SET issued_at = 1000000000000000000 WHERE device = 'serial:D3'"),
        "a stored Attempt cannot be read, nor what comes after it",
    ),
    "a tile's root": Tampering(
        sql("UPDATE tile SET root = (SELECT hash FROM leaf WHERE idx = 1) WHERE level = 0 AND idx = 0"),
        "the stored tile of entries 0 to 255 is another",
    ),
    "a tile removed": Tampering(
        sql("DELETE FROM tile WHERE level = 0 AND idx = 0"),
        "the log lacks hashes between 0 and 1 of tile level 1",
    ),
    "a tree's leaf hash": Tampering(
        sql("UPDATE leaf SET hash = (SELECT hash FROM leaf WHERE idx = 1) WHERE idx = 2"),
        "the stored hash of entries 0 to 127 is another",
    ),
    "the last leaf's hash": Tampering(
        sql(
            "UPDATE leaf SET hash = (SELECT hash FROM leaf WHERE idx = 1) WHERE idx = (SELECT size - 1 FROM head)"
        ),
        "the stored hash of entry ",
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


def test_what_no_entry_speaks_of_cannot_be_found(tmp_path: Path) -> None:
    """The limits that the check's description names; who narrows them mends the description."""
    line = make_line(tmp_path, f"sqlite:///{tmp_path / 'line.sqlite'}")
    line.open_run()
    line.issue(workpiece("D1"))
    tamper(
        line.url,
        ("UPDATE attempt SET challenge = zeroblob(32)", ()),
        ("DELETE FROM answer", ()),
        ("INSERT INTO bucket VALUES ('run/R1', 1000000, 0)", ()),
        ("UPDATE authority SET key_label = 'other' WHERE id = 'issuing-1'", ()),
        ("UPDATE client SET last_seq = 99 WHERE id = 'station:ST01'", ()),
        ("INSERT INTO allowed_device VALUES ('stray/serial:D9')", ()),
        ("UPDATE head SET edge = zeroblob(length(edge))", ()),
    )
    assert findings(line).findings == []
    line.close()


def test_an_entry_that_lacks_a_field_is_a_finding_and_no_crash(busy_line: Line) -> None:
    """Somebody who holds the log's key, or a fault of ours, can put anything into an entry."""
    entries = [entry for entry in busy_line.entries() if entry["kind"] != "refused"]
    needed = 0
    for index in {entry["kind"]: index for index, entry in enumerate(entries)}.values():
        for name in set(entries[index]) - {"v", "kind", "at", "realm", "environment", "actor"}:
            values: list[object] = [None, [], {}, 1, "", "?"]
            for value in values:
                said = Said()
                for earlier, entry in enumerate(entries[:index]):
                    said.take(earlier, entry)
                bent = {**entries[index], name: value}
                if value is None:
                    del bent[name]
                try:
                    said.take(index, decode(encode(bent)))
                except errors.MalformedRequest:
                    needed += 1
    assert needed > 100
