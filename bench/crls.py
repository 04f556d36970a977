"""How long a CRL of a million entries takes, and what one more revocation costs (SPEC F2).

PostgreSQL, ten million certificates issued and a million revoked, put there in bulk by SQL: the rows are what
the service would have written, except that a certificate's own octets are left out, which no CRL reads.
What is timed runs in a process of its own, so that its peak of memory is its own; that counts the pages of
the file it maps, which are the kernel's to take back.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

from birthmark import app
from birthmark.floor.authorities import Authority
from birthmark.floor.devices import DeviceCertificate
from birthmark.floor.revocations import Revocation
from birthmark.ledger.entry import time_text
from birthmark.pki.issuer import Issuer
from birthmark.pki.keys import KeyLabel
from birthmark.pki.revocation import ReasonCode
from birthmark.ports import Act, Decision, Facts, Store
from birthmark.services.acts import refuse
from birthmark.services.published_crls import CRLMaker
from birthmark.services.revocations import line_of, revoke
from birthmark.settings import load
from tools.localpg import LocalPostgreSQL

__all__ = ["TARGETS", "Figures", "measure", "sqlite_realm"]

TARGETS = {
    "full_seconds": 3.0,
    "peak_megabytes": 200.0,
    "batch_seconds": 0.2,
    "revocation_ratio": 1.2,
}
_SERVER = {"maintenance_work_mem": "1GB", "max_wal_size": "8GB", "shared_buffers": "512MB"}
_CHUNK = 1_000_000
BATCH = "batch.B-7"
BATCH_REVOKED = 50_000
SINGLES = 500
REPEATS = 5

# The octets of ``pki.revocation.revoked_entry`` for a serial number of 20 octets and a reason.
_ENTRY = """decode('30330214' || serial || '170d' || encode(%(at)s, 'hex')
    || '300c300a0603551d1504030a0104', 'hex')"""
_SERIAL = "'4' || substr(md5(n::text), 2) || substr(md5((-n)::text), 1, 8)"
_PARTITION = f"CASE WHEN n <= {BATCH_REVOKED} THEN '{BATCH}' ELSE 'all' END"
_NUMBERS = "generate_series(%(first)s::bigint, %(last)s::bigint) n"
_ISSUED = f"""INSERT INTO device_certificate
    SELECT {_SERIAL}, 'issuing-1', 'serial:D' || n, 'a' || n, ''::bytea, md5(n::text), 'BULK', {_PARTITION},
        'station:ST01', %(ms)s FROM {_NUMBERS}"""  # noqa: S608  # constants of this file
_REVOKED = f"""INSERT INTO revocation
    SELECT 'issuing-1/' || partition || '/' || serial, {_ENTRY}, 'superseded', %(ms)s, 'recall:bulk'
    FROM (SELECT {_PARTITION} AS partition, {_SERIAL} AS serial FROM {_NUMBERS}) made"""  # noqa: S608


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What came of it."""

    issued: int
    revoked: int
    generation_seconds: float
    full_seconds: float
    full_octets: int
    peak_megabytes: float
    batch_seconds: float
    batch_octets: int
    batch_entries: int
    first_seconds: float
    """That batch's CRL as the first of a process."""
    few_milliseconds: float
    """One more revocation put on record with 10 revoked: the median."""
    many_milliseconds: float
    """The same with all revoked."""

    @property
    def revocation_ratio(self) -> float:
        """What one more costs with all revoked, compared with 10."""
        return self.many_milliseconds / self.few_milliseconds

    def missed(self) -> list[str]:
        """Return the targets that were missed."""
        return [name for name, most in TARGETS.items() if getattr(self, name) > most]

    def document(self) -> dict[str, Any]:
        """Return what the results file says."""
        said = {name: getattr(self, name) for name in self.__slots__}
        return said | {"revocation_ratio": self.revocation_ratio, "targets": dict(TARGETS)}

    def text(self) -> str:
        """Return the figures as a table."""
        lines = []
        for name, value in self.document().items():
            if name != "targets":
                target = f"  (target {TARGETS[name]:g})" if name in TARGETS else ""
                lines.append(f"{name:26} {value:14,.4g}{target}")
        return "\n".join(lines)


def measure(issued: int = 10_000_000, revoked: int = 1_000_000) -> Figures:
    """Generate and measure."""
    with (
        tempfile.TemporaryDirectory(prefix="birthmark-crls-") as folder,
        LocalPostgreSQL(settings=_SERVER) as cluster,
    ):
        settings = _realm(Path(folder), cluster.create_database("crls"))
        with cluster.connect("crls") as database:
            at = _prepare(database)
            started = time.perf_counter()
            _issue(database, at, issued)
            _fill(database, _REVOKED, at, BATCH_REVOKED + 1, BATCH_REVOKED + 10)
        # The same record twice, one with 10 revoked: asked in turn, so that the machine's moods are shared.
        with cluster.connect("postgres") as server:
            server.autocommit = True
            server.execute("CREATE DATABASE crls_few TEMPLATE crls")
        few_settings = settings.with_name("few.toml")
        few_settings.write_text(settings.read_text().replace("/crls", "/crls_few"))
        with cluster.connect("crls") as database:
            _prepare(database)
            _fill(database, _REVOKED, at, 1, BATCH_REVOKED)
            _fill(database, _REVOKED, at, BATCH_REVOKED + 11, revoked)
            _settle(database)
        with cluster.connect("crls_few") as database:
            database.autocommit = True
            _settle(database)
        generated = time.perf_counter() - started
        singles = _child(settings, "singles", str(issued), str(few_settings))
        full = _child(settings, "full")
        batch = _child(settings, "batch")
    return Figures(
        issued=issued,
        revoked=revoked,
        generation_seconds=generated,
        full_seconds=full["seconds"],
        full_octets=full["octets"],
        peak_megabytes=full["peak"],
        batch_seconds=batch["seconds"],
        batch_octets=batch["octets"],
        batch_entries=BATCH_REVOKED,
        first_seconds=batch["first"],
        few_milliseconds=singles["few"],
        many_milliseconds=singles["many"],
    )


def _realm(folder: Path, url: str) -> Path:
    plain = url.replace("postgresql+psycopg://", "postgresql://")
    account, _, rest = plain.removeprefix("postgresql://").partition("@")
    user, _, password = account.partition(":")
    secret = folder / "password"
    secret.touch(mode=0o600)
    secret.write_text(f"{password}\n")
    options = ["--database-url", f"postgresql://{user}@{rest}", "--database-password-file", str(secret)]
    return _init(folder / "realm", folder / "www", *options)


def sqlite_realm(folder: Path, www: Path) -> Path:
    """Make a realm on SQLite that publishes into a directory; return its settings file."""
    return _init(folder / "realm", www)


def _init(place: Path, www: Path, *options: str) -> Path:
    command = [
        sys.executable, "-m", "birthmark", "init", str(place), "--realm", "bench", "--organization", "Bench",
        "--operator", "anna", "--station", "ST01", *options,
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    settings = place / "birthmark.toml"
    with settings.open("a") as file:
        file.write(f'[publication]\nurl = "http://pki.example"\ndirectory = "{www}"\n')
    return settings


def _prepare(database: psycopg.Connection[Any]) -> datetime:
    """Return a time after which nothing is on record yet."""
    database.autocommit = True
    database.execute("SET synchronous_commit = off")  # the bulk only; the service sets its own
    database.execute("ALTER DATABASE crls SET max_parallel_workers_per_gather = 0")
    row = database.execute("SELECT to_timestamp(at / 1000) FROM head").fetchone()
    assert row is not None
    at: datetime = row[0]
    return at


def _issue(database: psycopg.Connection[Any], at: datetime, issued: int) -> None:
    """Fill the table first and its indexes after: a tenth of the time."""
    table = "device_certificate"
    index, key = (
        database.execute(query.encode()).fetchall()[0][0]
        for query in (
            f"SELECT pg_get_indexdef('{table}_of_run'::regclass)",
            f"SELECT conname FROM pg_constraint WHERE conrelid = '{table}'::regclass AND contype = 'p'",  # noqa: S608
        )
    )
    database.execute(f"ALTER TABLE {table} DROP CONSTRAINT {key}".encode())
    database.execute(f"DROP INDEX {table}_of_run".encode())
    for first in range(1, issued + 1, _CHUNK):
        _fill(database, _ISSUED, at, first, min(first + _CHUNK - 1, issued))
        print(f"issued {min(first + _CHUNK - 1, issued):,}", file=sys.stderr, flush=True)
    database.execute(f"ALTER TABLE {table} ADD CONSTRAINT {key} PRIMARY KEY (serial)".encode())
    database.execute(index.encode())


def _settle(database: psycopg.Connection[Any]) -> None:
    """Have the server finish what the bulk left it to do, so that it does not do it while we measure."""
    database.execute("VACUUM ANALYZE")
    database.execute("CHECKPOINT")


def _fill(database: psycopg.Connection[Any], statement: str, at: datetime, first: int, last: int) -> None:
    encoded = at.strftime("%y%m%d%H%M%SZ").encode()
    values = {"at": encoded, "ms": int(at.timestamp() * 1000), "first": first, "last": last}
    # Literals: md5 over a parameter of unknown type is another function.
    with psycopg.ClientCursor(database) as cursor:
        cursor.execute(statement.encode(), values)


def _child(settings: Path, what: str, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.crls", "--child", what, str(settings), *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


# --- in the child


def _singles(many: Path, few: Path, last: int) -> Mapping[str, float]:
    """Revoke certificates one by one, each durable, in turn with many revoked and with few."""
    times: dict[str, list[float]] = {"few": [], "many": []}
    applications = {"few": app.build(load(few)), "many": app.build(load(many))}
    try:
        for number in range(SINGLES):
            for name, application in applications.items():
                times[name].append(_revoke_one(application.store, _serial(last - number)))
    finally:
        for application in applications.values():
            application.close()
    return {name: statistics.median(taken) * 1000 for name, taken in times.items()}


def _revoke_one(store: Store, serial: str) -> float:
    def decide(facts: Facts, at: datetime) -> Decision[bool]:
        certificate = facts.get(DeviceCertificate, serial)
        assert certificate is not None
        done = revoke(facts, line_of(certificate), ReasonCode.SUPERSEDED, at, "recall:bench")
        return Decision(done, [("noted", {"certificate": serial, "said_at": time_text(at)})])

    reads = {DeviceCertificate: (serial,), Revocation: (f"issuing-1/all/{serial}",)}
    act = Act(actor="operator:anna", decide=decide, refuse=refuse(None, "bench", {}), reads=reads)
    started = time.perf_counter()
    assert store.submit([act]).result()[0].answer is True
    return time.perf_counter() - started


def _serial(n: int) -> str:
    from hashlib import md5  # noqa: PLC0415  # as the SQL above

    first, second = (md5(str(one).encode(), usedforsecurity=False).hexdigest() for one in (n, -n))
    return f"4{first[1:]}{second[:8]}"


def _build(settings: Path, partition: str) -> Mapping[str, float]:
    """Make one CRL, as the publisher's cycle does."""
    application = app.build(load(settings))
    try:
        publication, found = application.publication, application.store.look({Authority: ("issuing-1",)})
        issuing = found.get(Authority, "issuing-1")
        assert publication is not None
        assert issuing is not None
        issuer = Issuer.from_certificate(KeyLabel(issuing.key_label), issuing.der)
        maker = CRLMaker(
            store=application.store,
            keys=application.keys,
            clock=application.clock,
            publication=publication,
            locations=application.settings.publication.locations,
        )
        # A publisher goes on running: the first list of all also compiles the expression that judges entries.
        seconds, octets = [], 0
        for _ in range(1 if partition == "all" else 1 + REPEATS):
            started = time.perf_counter()
            with publication.lock():
                made = maker.whole(issuer, issuing.id, partition, timedelta(hours=48), deltas=False)
            octets = made.octets
            seconds.append(time.perf_counter() - started)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {
            "seconds": statistics.median(seconds[1:] or seconds),
            "octets": octets,
            "peak": peak,
            "first": seconds[0],
        }
    finally:
        application.close()


def main() -> None:
    """Measure and print, or be the child that is measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", nargs="+", metavar="ARGUMENT")
    parser.add_argument("--issued", type=int, default=10_000_000)
    parser.add_argument("--revoked", type=int, default=1_000_000)
    arguments = parser.parse_args()
    if arguments.child is not None:
        what, settings, *rest = arguments.child
        if what == "singles":
            last, few = rest
            print(json.dumps(_singles(Path(settings), Path(few), int(last))))
        else:
            print(json.dumps(_build(Path(settings), "all" if what == "full" else BATCH)))
        return
    figures = measure(arguments.issued, arguments.revoked)
    print(figures.text())
    print("missed:", ", ".join(figures.missed()) or "none")


if __name__ == "__main__":
    main()
