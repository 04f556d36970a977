"""The fault table: each step of provisioning, broken in each way a commit can break, and what a retry says.

SPEC C4: a retry after a lost answer gets the same result; SPEC E2, E4: all or nothing, and never unknown.
"""

import fcntl
import os
import resource
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from birthmark import errors
from birthmark.adapters.sql.database import Database
from birthmark.adapters.sql.sqlite import SQLite
from birthmark.adapters.sql.store import SQLStore
from birthmark.floor.devices import Attempt, Device, DeviceCertificate, DeviceEvent, DeviceState, KeyUse
from birthmark.ledger.proof import verify
from birthmark.pki.certificates import Certificate
from birthmark.services.check import check
from tests.support.acts import put, use
from tests.support.faults import Failing, Fault
from tests.support.postgresql import start
from tests.support.realm import Line, Service, libpq, make_line, proof, tamper, workpiece


class Bench:
    """A line, and a service on it whose database fails when told to."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.failing: list[Failing] = []
        self.service: Service = line.another_service(wrap=self._wrap)

    def _wrap(self, database: Database) -> Database:
        self.failing.append(Failing(database))
        return self.failing[0]

    def broken(self, fault: Fault, step: Callable[[], Any]) -> None:
        """Break a step: nobody learns what became of it, and it is done or it is not."""
        size, done = self.line.size(), fault is Fault.IN_COMMIT_BUT_DONE
        before = self.facts()
        self.failing[0].fault = fault
        with pytest.raises(errors.Unavailable, match="connection lost") as caught:
            step()
        assert caught.value.retryable
        assert self.line.size() == size + done
        if not done:
            assert self.facts() == before

    def facts(self) -> list[object]:
        """Return everything that is stored."""
        store = self.line.service.store
        return [
            *store.scan(Device),
            *store.scan(Attempt),
            *store.scan(DeviceCertificate),
            *store.scan(KeyUse),
        ]

    def clean(self) -> None:
        """Nothing that is stored contradicts anything else."""
        report = check(self.line.service.store, self.line.service.store.log, self.line.realm)
        assert report.findings == []


@pytest.fixture
def bench(line: Line) -> Bench:
    """A line whose service's database fails when told to."""
    return Bench(line)


@pytest.mark.parametrize("fault", Fault)
def test_issue(bench: Bench, fault: Fault) -> None:
    line, device, done = bench.line, workpiece("D1"), fault is Fault.IN_COMMIT_BUT_DONE
    bench.broken(fault, lambda: line.issue(device, key="k", service=bench.service))
    assert (line.get(Device, device.id) is not None) is done
    issued = line.issue(device, key="k", service=bench.service)
    kinds = [entry["kind"] for entry in line.entries()]
    assert kinds.count("device-issued") == 1
    assert kinds[-1] == ("answer-repeated" if done else "device-issued")
    (certificate,) = line.service.store.scan(DeviceCertificate)
    assert certificate.der == issued.certificate
    assert line.prove(proof(issued, device.key)).device == device.id
    bench.clean()


@pytest.mark.parametrize("fault", Fault)
def test_issue_of_a_delivered_key(bench: Bench, fault: Fault) -> None:
    """Decision 5: the key whose delivery nobody saw is superseded."""
    line, device, done = bench.line, workpiece("D1", delivered=True), fault is Fault.IN_COMMIT_BUT_DONE
    bench.broken(fault, lambda: line.issue(device, key="k", service=bench.service))
    issued = line.issue(device, key="k", service=bench.service)
    certificates = list(line.service.store.scan(DeviceCertificate))
    assert len(certificates) == 1 + done
    assert [c.der for c in certificates if line.status(c) is None] == [issued.certificate]
    assert line.prove(proof(issued, device.key)).device == device.id
    bench.clean()


@pytest.mark.parametrize("fault", Fault)
def test_reissue_of_a_delivered_key(bench: Bench, fault: Fault) -> None:
    line, device, done = bench.line, workpiece("D1", delivered=True), fault is Fault.IN_COMMIT_BUT_DONE
    first = line.issue(device, key="k", service=bench.service)
    bench.broken(fault, lambda: line.issue(device, key="k", service=bench.service))
    if not done:
        stored = line.the(DeviceCertificate, Certificate.from_der(first.certificate).serial_hex)
        assert line.status(stored) is None
    issued = line.issue(device, key="k", service=bench.service)
    certificates = list(line.service.store.scan(DeviceCertificate))
    assert len(certificates) == 2 + done
    assert [c.der for c in certificates if line.status(c) is None] == [issued.certificate]
    with pytest.raises(errors.ProofFailed):
        line.prove(proof(first, device.key))
    bench.clean()


@pytest.mark.parametrize("fault", Fault)
def test_prove(bench: Bench, fault: Fault) -> None:
    line, device, done = bench.line, workpiece("D1"), fault is Fault.IN_COMMIT_BUT_DONE
    request = proof(line.issue(device, service=bench.service), device.key)
    bench.broken(fault, lambda: line.prove(request, service=bench.service))
    state = line.the(Device, device.id).state
    assert state is (DeviceState.RELEASED if done else DeviceState.ISSUED)
    released = line.prove(request, service=bench.service)
    entry = verify(released.token, line.vkey)
    assert entry["kind"] == "device-released"
    kinds = [found["kind"] for found in line.entries()]
    assert kinds.count("device-released") == 1
    assert line.prove(request) == released, "and everybody gets the same token"
    bench.clean()


@pytest.mark.parametrize("fault", Fault)
def test_a_wrong_proof(bench: Bench, fault: Fault) -> None:
    line, device = bench.line, workpiece("D1")
    request = proof(line.issue(device, service=bench.service), workpiece("X").key)
    bench.broken(fault, lambda: line.prove(request, service=bench.service))
    with pytest.raises(errors.ProofFailed, match="serial:D1 is held"):
        line.prove(request, service=bench.service)
    assert line.the(Device, device.id).state is DeviceState.HELD
    assert [entry["kind"] for entry in line.entries()].count("device-held") == 1
    bench.clean()


@pytest.mark.parametrize("fault", Fault)
@pytest.mark.parametrize("event", [DeviceEvent.HOLD, DeviceEvent.REWORK])
def test_a_disposition(bench: Bench, fault: Fault, event: DeviceEvent) -> None:
    line, device, done = bench.line, workpiece("D1"), fault is Fault.IN_COMMIT_BUT_DONE
    line.issue(device)
    if event is not DeviceEvent.HOLD:
        line.dispose(DeviceEvent.HOLD, device.id)
    size = line.size()
    bench.broken(fault, lambda: line.dispose(event, device.id, key="k", service=bench.service))
    disposed = line.dispose(event, device.id, key="k", service=bench.service)
    assert line.the(Device, device.id).state is disposed.state
    kind = {"hold": "device-held", "rework": "device-reworked"}[event]
    assert [entry["kind"] for entry in line.entries(size)] == [kind, *(["answer-repeated"] * done)]
    bench.clean()


@pytest.mark.parametrize("fault", Fault)
def test_a_refusal(bench: Bench, fault: Fault) -> None:
    line, done = bench.line, fault is Fault.IN_COMMIT_BUT_DONE
    line.make("D1")
    size = line.size()
    bench.broken(fault, lambda: line.issue(workpiece("D1"), key="k", service=bench.service))
    assert [entry["kind"] for entry in line.entries(size)] == ["refused"] * done


# --- real outages ---


def test_a_postgresql_server_that_dies_holds_the_line_and_lets_it_go_again(tmp_path: Path) -> None:
    """SPEC C4: whatever was answered is there afterwards; nobody has to restart the service."""
    with start() as cluster:
        line = make_line(tmp_path, cluster.create_database("line"))
        line.open_run()
        device = workpiece("D1")
        issued = line.issue(device, key="k")
        request = proof(issued, device.key)
        cluster.kill()
        for act in (
            lambda: line.issue(workpiece("D2")),
            lambda: line.prove(request),
            lambda: line.get(Device, device.id),
            line.size,
        ):
            with pytest.raises(errors.Unavailable):
                act()
        cluster.restart()
        assert line.issue(device, key="k").certificate == issued.certificate
        released = line.prove(request)
        assert verify(released.token, line.vkey)["device"] == device.id
        cluster.restart()
        assert line.prove(request) == released, "the lost connection is replaced without a word"
        report = check(line.service.store, line.service.store.log, line.realm)
        assert report.findings == []
        line.close()


@pytest.mark.parametrize("setting", ["fsync", "full_page_writes"])
def test_a_postgresql_server_that_may_forget_is_refused(tmp_path: Path, setting: str) -> None:
    """SPEC E2: durable, or not at all."""
    with (
        start({setting: "off"}) as cluster,
        pytest.raises(errors.IntegrityFailure, match=f"{setting}=off"),
    ):
        make_line(tmp_path, cluster.create_database("line"))


def _sqlite_path(line: Line) -> Path:
    return Path(line.url.removeprefix("sqlite:///"))


def test_a_file_that_somebody_else_locks_holds_the_line_and_lets_it_go_again(small_line: Line) -> None:
    path = _sqlite_path(small_line)
    store = small_line.another_service(wrap=lambda _: SQLite(path, lock_timeout_seconds=0.05)).store
    with closing(sqlite3.connect(path, isolation_level=None)) as stranger:
        stranger.execute("BEGIN IMMEDIATE")
        with pytest.raises(errors.Unavailable, match="database is locked"):
            store.submit([put(use("a"))]).result(10)
        stranger.execute("ROLLBACK")
    assert store.submit([put(use("a"))]).result(10)[0].answer == "put"


def test_a_train_that_failed_to_begin_leaves_the_lock_to_other_processes(small_line: Line) -> None:
    path = _sqlite_path(small_line)
    database = SQLite(path, lock_timeout_seconds=0.05)
    with closing(sqlite3.connect(path, isolation_level=None)) as stranger:
        stranger.execute("BEGIN IMMEDIATE")
        with pytest.raises(errors.Unavailable):
            database.begin([])
        stranger.execute("ROLLBACK")
    lock = os.open(f"{path}.train", os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises if it is still held
    finally:
        os.close(lock)
    database.close()


def test_a_process_that_stops_in_the_middle_of_a_train_holds_the_others_no_longer_than_they_wait(
    small_line: Line,
) -> None:
    path = _sqlite_path(small_line)
    store = small_line.another_service(wrap=lambda _: SQLite(path, lock_timeout_seconds=0.05)).store
    stopped = os.open(f"{path}.train", os.O_RDWR)
    fcntl.flock(stopped, fcntl.LOCK_EX)
    with pytest.raises(errors.Unavailable, match="another process has held"):
        store.submit([put(use("a"))]).result(10)
    os.close(stopped)
    assert store.submit([put(use("a"))]).result(10)[0].answer == "put"


@contextmanager
def _files_no_larger_than(octets: int) -> Iterator[None]:
    """Let no file of this process grow: what a full disk is to a program that appends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (octets, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_takes_no_more_holds_the_line_and_lets_it_go_again(small_line: Line) -> None:
    line, device = small_line, workpiece("D1")
    issued = line.issue(device, key="k")
    size, wal = line.size(), Path(f"{_sqlite_path(line)}-wal")
    with _files_no_larger_than(wal.stat().st_size):
        failures = []
        for number in range(3):
            with pytest.raises(errors.Unavailable) as caught:
                line.issue(workpiece(f"E{number}"))
            failures.append(str(caught.value))
    assert all(failure.startswith("database: ") for failure in failures)
    assert line.size() == size
    assert line.issue(device, key="k").certificate == issued.certificate
    assert line.prove(proof(issued, device.key)).device == device.id
    report = check(line.service.store, line.service.store.log, line.realm)
    assert report.findings == []


@pytest.mark.parametrize("suffix", ["", "-wal"])
def test_a_database_whose_files_are_taken_away_while_it_serves_holds_the_line(
    small_line: Line, suffix: str
) -> None:
    """SPEC E2: SQLite would go on committing to what no longer has a name."""
    device = workpiece("D1")
    issued = small_line.issue(device, key="k")
    path = Path(f"{_sqlite_path(small_line)}{suffix}")
    away = path.rename(path.with_name("away"))
    with pytest.raises(errors.Unavailable, match="is gone"):
        small_line.prove(proof(issued, device.key))
    assert not path.exists()
    path.write_bytes(away.read_bytes())
    with pytest.raises(errors.Unavailable, match="was replaced"):
        small_line.prove(proof(issued, device.key))
    away.replace(path)
    assert small_line.prove(proof(issued, device.key)).device == device.id


def test_a_log_that_is_shorter_than_it_was_stops_the_line(small_line: Line) -> None:
    """A backup was put back, or a replica that lagged took over: to go on would be a second history."""
    path = _sqlite_path(small_line)
    small_line.issue(workpiece("D1"))
    with closing(sqlite3.connect(path)) as db, closing(sqlite3.connect(":memory:")) as backup:
        db.backup(backup)
        small_line.issue(workpiece("D2"))
        backup.backup(db)
    with pytest.raises(errors.IntegrityFailure, match="put back"):
        small_line.issue(workpiece("D3"))


def test_a_file_that_is_damaged_stops_the_line(small_line: Line) -> None:
    """That is no outage to wait for."""
    path = _sqlite_path(small_line)
    small_line.close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    data = bytearray(path.read_bytes())
    data[:100] = bytes(100)
    path.write_bytes(data)
    with pytest.raises(errors.IntegrityFailure, match="not a database"):
        SQLStore(SQLite(path), small_line.clock, bytes)


def test_a_database_that_is_not_there_is_not_made_by_looking_for_it(tmp_path: Path) -> None:
    with pytest.raises(errors.NotFound, match="birthmark init"):
        SQLite(tmp_path / "nothing.sqlite")
    assert not list(tmp_path.iterdir())
    assert libpq("postgresql+psycopg://h/d") == "postgresql://h/d"


def test_a_head_that_its_newest_checkpoint_does_not_say_is_not_built_upon(small_line: Line) -> None:
    """SPEC E3: one wrong byte in the stored edge must not make us sign a log that contradicts itself."""
    running = small_line.another_service().store
    assert running.submit([put(use("a"))]).result(10)[0].answer == "put"
    size = small_line.size()
    with closing(sqlite3.connect(_sqlite_path(small_line))) as file:
        (edge,) = file.execute("SELECT edge FROM head").fetchone()
    tamper(small_line.url, ("UPDATE head SET edge = %s", (bytes((edge[0] ^ 1,)) + edge[1:],)))
    with pytest.raises(errors.IntegrityFailure, match="not what its newest checkpoint says"):
        small_line.another_service().store.submit([put(use("b"))]).result(10)
    with pytest.raises(errors.IntegrityFailure, match="put back"):
        running.submit([put(use("b"))]).result(10)
    assert small_line.size() == size
