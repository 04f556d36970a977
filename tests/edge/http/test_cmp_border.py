"""CMP where something is missing: database, token, opening hours, patience; and what is no message at all.

What may be sent again as it is gets a status of HTTP, because an error in CMP ends a transaction for the
client (RFC 9811 sections 3.3 and 5); then it is sent again: nothing is lost, and nothing is issued twice.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from birthmark import errors
from birthmark.adapters.sql.database import Database, Reads, Row, TableShape
from birthmark.edge.http.border import Border
from birthmark.edge.http.cmp_unconfirmed import Unconfirmed
from birthmark.floor.devices import DeviceCertificate
from birthmark.floor.enrolments import CMPStatus, CMPTransaction, waiting_id
from birthmark.pki.certificates import Certificate
from birthmark.pki.cmp import BodyKind
from birthmark.pki.keys import KeyLabel
from birthmark.pki.revocation import ReasonCode
from birthmark.ports import KeyStore
from birthmark.services.approvals import Approvals
from birthmark.services.exposures import clear_exposure, close_now
from tests.support.cmpplane import CMPPlane, cmp_plane, request
from tests.support.faults import Failing, Fault, Passing
from tests.support.realm import Line, make_line


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    """A line with R1 for identities, and L1 for where devices work."""
    made = make_line(tmp_path, f"sqlite:///{tmp_path / 'line.sqlite'}")
    made.open_run()
    made.open_operational()
    yield made
    made.close()


@pytest.fixture
def plane(line: Line, tmp_path: Path) -> Iterator[CMPPlane]:
    with cmp_plane(line, tmp_path) as served:
        yield served


class Away(Passing):
    """A database that can be away."""

    away = False

    def _here(self) -> Database:
        if self.away:
            raise errors.Unavailable("database: connection lost")
        return self.database

    def begin(self, reads: Reads) -> tuple[Row, list[list[Row]]]:
        """Pass on, or fail."""
        return self._here().begin(reads)

    def select(self, shape: TableShape, keys: Any) -> list[Row]:
        """Pass on, or fail."""
        return self._here().select(shape, keys)

    def query(self, statement: str, parameters: Any = ()) -> list[Row]:
        """Pass on, or fail."""
        return self._here().query(statement, parameters)

    def snapshot(self) -> Any:
        """Pass on, or fail."""
        return self._here().snapshot()


class Keys:
    """A key store of which some keys are gone for a while."""

    def __init__(self, keys: KeyStore) -> None:
        self._keys = keys
        self.gone: set[str] = set()

    def sign(self, label: KeyLabel, message: bytes) -> bytes:
        """Sign, unless the key is gone."""
        if label in self.gone:
            raise errors.Unavailable("token: it is gone")
        return self._keys.sign(label, message)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._keys, name)


def unavailable(plane: CMPPlane, message: bytes) -> None:
    answered = plane.post(message, "/p/L1")
    assert (answered.status, answered.headers[b"retry-after"]) == (503, b"1"), answered.body
    told = json.loads(answered.body)
    assert (told["code"], told["retryable"]) == ("unavailable", True)


# --- something we need is away


@pytest.mark.parametrize("fault", Fault)
@pytest.mark.parametrize("train", [0, 1, 2])
def test_a_commit_that_fails_loses_nothing_and_issues_nothing_twice(
    line: Line, tmp_path: Path, fault: Fault, train: int
) -> None:
    """Whichever train of a transaction it is: the first two of a cr, or that of its certConf."""
    made: list[Failing] = []

    def wrap(database: Database) -> Database:
        made.append(Failing(database))
        return made[0]

    with cmp_plane(line, tmp_path, wrap=wrap) as plane:
        device, left = plane.device(), train
        (database,) = made
        begin = database.begin

        def counted(reads: Reads) -> tuple[Row, list[list[Row]]]:
            nonlocal left
            if left == 0:
                database.fault = fault
            left -= 1
            return begin(reads)

        database.begin = counted  # type: ignore[method-assign]  # so that it fails at one train
        message = device.says(BodyKind.CR, request())
        answered = plane.post(message, "/p/L1")
        if train < 2:
            assert answered.status == 503, answered.body
            answered = plane.post(message, "/p/L1")
        answer = plane.heard(answered.body)
        assert answer.status == 0, answer.text
        confirmation = device.confirms(answer)
        answered = plane.post(confirmation)
        if train == 2:
            assert answered.status == 503, answered.body
            answered = plane.post(confirmation)
        ended = plane.heard(answered.body)
        confirmed_before = train == 2 and fault is Fault.IN_COMMIT_BUT_DONE
        assert (ended.kind, ended.failure) == (
            ("error", ("certConfirmed",)) if confirmed_before else ("pkiconf", ())
        )
        assert len(plane.entries("local-issued")) == 1
        assert len(plane.entries("local-proved")) == 1
        plane.assert_sound()


def test_while_the_database_is_away_a_transaction_waits(line: Line, tmp_path: Path) -> None:
    line.open_operational("L2", approval=True)
    made: list[Away] = []

    def wrap(database: Database) -> Database:
        made.append(Away(database))
        return made[0]

    with cmp_plane(line, tmp_path, wrap=wrap) as plane:
        device = plane.device()
        first = plane.ask(device.says(BodyKind.CR, request()), "/p/L2")
        poll, new = device.polls(first), device.says(BodyKind.CR, request())
        made[0].away = True
        for message in (poll, new, b"\x30\x00", device.says(BodyKind.GENM, b"\x30\x00")):
            unavailable(plane, message)
        made[0].away = False
        assert plane.ask(poll).kind == "pollRep"
        assert plane.ask(new, "/p/L1").status == 0
        plane.assert_sound()


@pytest.mark.parametrize("key", ["issuing-1", "log"])
def test_while_a_key_is_gone_nothing_is_ended(line: Line, tmp_path: Path, key: str) -> None:
    keys = Keys(line.keys)
    with cmp_plane(line, tmp_path, keys=cast("KeyStore", keys)) as plane:
        device = plane.device()
        message = device.says(BodyKind.CR, request())
        keys.gone = {key}
        unavailable(plane, message)
        keys.gone = set()
        answer = plane.ask(message, "/p/L1")
        assert answer.status == 0, answer.text
        if key == "log":
            keys.gone = {key}
            unavailable(plane, device.confirms(answer))
            keys.gone = set()
        assert plane.ask(device.confirms(answer)).kind == "pkiconf"
        assert len(plane.entries("local-issued")) == 1
        plane.assert_sound()


# --- who may not now


def test_a_plane_that_is_closed_refuses_and_ends_nothing(plane: CMPPlane) -> None:
    line = plane.line
    line.open_operational("L2", approval=True)
    device = plane.device()
    first = plane.ask(device.says(BodyKind.CR, request()), "/p/L2")
    line.service.carry(close_now(line.operator.caller, "plane:device", "night"))
    new = device.says(BodyKind.CR, request())
    for message in (device.polls(first), new):
        no = plane.ask(message, "/p/L1")
        assert no.failure == ("notAuthorized",), no.text
    rows = list(line.service.store.scan(CMPTransaction))
    assert [row.status for row in rows] == [CMPStatus.WAITING], "the second never began"
    line.service.carry(clear_exposure(line.operator.caller, "plane:device", "day"))
    settled = Approvals().settle(
        line.operator.caller, waiting_id(rows[0].client, rows[0].key), approved=True, reason="seen"
    )
    line.service.carry(settled)
    assert plane.ask(device.polls(first)).status == 0
    assert plane.ask(new, "/p/L1").status == 0
    plane.assert_sound()


def test_who_goes_too_fast_is_told_when_to_come_again(line: Line, tmp_path: Path) -> None:
    """429 (RFC 6585 section 4); a message costs one act, and one that is turned away leaves nothing."""
    with cmp_plane(line, tmp_path, client_burst=2, client_per_minute=2) as plane:
        device = plane.device()
        answer = plane.ask(device.says(BodyKind.CR, request()), "/p/L1")
        assert plane.ask(device.confirms(answer)).kind == "pkiconf"
        message = device.says(BodyKind.CR, request())
        for _ in range(3):
            turned_away = plane.post(message, "/p/L1")
            assert turned_away.status == 429
            assert int(turned_away.headers[b"retry-after"]) >= 1
        assert len(list(line.service.store.scan(CMPTransaction))) == 1
        assert len(plane.entries("refused")) == 0
        line.clock.turn(minutes=1)
        assert plane.ask(message, "/p/L1").status == 0
        plane.assert_sound()


def test_refusals_are_limited_too_and_hold_up_nobody_else(line: Line, tmp_path: Path) -> None:
    with cmp_plane(line, tmp_path, client_burst=3, client_per_minute=1) as plane:
        device = plane.device()
        misnamed = [device.says(BodyKind.CR, request("D9")) for _ in range(5)]
        assert [plane.post(one, "/p/L1").status for one in misnamed] == [200, 200, 200, 429, 429]
        assert len(plane.entries("refused")) == 3
        other = plane.device("D2")
        assert plane.ask(other.says(BodyKind.CR, request("D2")), "/p/L1").status == 0


# --- nobody confirms


def sweep(plane: CMPPlane, unconfirmed: Unconfirmed) -> None:
    plane.run(unconfirmed.sweep())


def test_what_nobody_confirms_is_revoked_when_its_time_is_over_by_whichever_process(plane: CMPPlane) -> None:
    """RFC 9810 section 5.1.1.2; a process that comes later learns from the record what is open."""
    line, device = plane.line, plane.device()
    lost = plane.ask(device.says(BodyKind.CR, request()), "/p/L1")
    border = Border(plane.application)
    later = Unconfirmed(border, plane.application)

    async def learn() -> None:
        await later.begin()
        await later.end()

    plane.run(learn())
    sweep(plane, later)
    certificate = line.the(DeviceCertificate, Certificate.from_der(lost.certificate).serial_hex)
    assert line.status(certificate) is None
    line.clock.turn(seconds=600)
    sweep(plane, later)
    assert line.status(certificate) is ReasonCode.CESSATION_OF_OPERATION
    assert [one["actor"] for one in plane.entries("local-rejected")] == ["realm:device-plane"]
    sweep(plane, later)
    assert len(plane.entries("local-rejected", "refused")) == 1
    assert plane.ask(device.confirms(lost)).failure == ("badRequest",)
    border.close()
    plane.assert_sound()


def test_one_that_cannot_be_ended_keeps_no_other_from_it(line: Line, tmp_path: Path) -> None:
    made: list[Failing] = []

    def wrap(database: Database) -> Database:
        made.append(Failing(database))
        return made[0]

    with cmp_plane(line, tmp_path, wrap=wrap) as plane:
        for name in ("D1", "D2"):
            device = plane.device(name)
            plane.ask(device.says(BodyKind.CR, request(name)), "/p/L1")
        border = Border(plane.application)
        watch = Unconfirmed(border, plane.application)
        for row in line.service.store.scan(CMPTransaction):
            watch.watch(row)
        line.clock.turn(seconds=601)
        made[0].fault = Fault.IN_COMMIT_NOT_DONE
        sweep(plane, watch)
        assert len(plane.entries("local-rejected")) == 1
        sweep(plane, watch)
        assert len(plane.entries("local-rejected")) == 2
        border.close()
        plane.assert_sound()


# --- no message


def deep(levels: int) -> bytes:
    octets = b""
    for _ in range(levels):
        size = len(octets)
        length = bytes((size,)) if size < 128 else b"\x82" + size.to_bytes(2, "big")
        octets = b"\x30" + length + octets
    return octets


def test_what_is_no_message_is_refused_by_http(plane: CMPPlane) -> None:
    """RFC 9811 section 3.3: there is nobody to answer in CMP."""
    message = plane.device().says(BodyKind.CR, request())
    problems: tuple[tuple[Callable[[], tuple[int, str, str]], int, str], ...] = (
        (lambda: plane.problem(b""), 400, "malformed-request"),
        (lambda: plane.problem(deep(10_000)), 400, "malformed-request"),
        (lambda: plane.problem(message[:-1]), 400, "malformed-request"),
        (lambda: plane.problem(message + b"\0"), 400, "malformed-request"),
        (lambda: plane.problem(b"\x30\x83\x01\x00\x00" + bytes(65_536)), 413, "too-large"),
        (lambda: plane.problem(message, media_type="application/pkcs10"), 415, "malformed-request"),
        (lambda: plane.problem(message, media_type=""), 415, "malformed-request"),
        (lambda: plane.problem(message, "/p/L1/enroll"), 404, "not-found"),
        (lambda: plane.problem(message, "/p/L1/keyupdate/more"), 404, "not-found"),
        (lambda: plane.problem(b"", method="GET"), 405, "malformed-request"),
    )
    for ask, status, code in problems:
        assert ask()[:2] == (status, code)
    assert len(plane.entries("refused")) == len(problems)
    plane.assert_sound()


def test_a_message_under_another_operations_path_is_refused_in_cmp(plane: CMPPlane) -> None:
    device = plane.device()
    for path in ("/keyupdate", "/p/L1/getcacerts", "/p/L1/revocation"):
        no = plane.ask(device.says(BodyKind.CR, request()), path)
        assert (no.kind, no.failure) == ("cp", ("badRequest",))
        assert "does not belong under" in no.text
    assert plane.post(device.says(BodyKind.CR, request()), "/keyupdate").headers[b"connection"] == b"close"
    assert plane.ask(device.says(BodyKind.CR, request(), pvno=2), "/p/L1/certification").status == 0
    plane.assert_sound()
