"""What no implementation goes below on this machine: the signatures of one device, and one durable write.

Measured on one core, right before what is held against them, so that our figures can be given as ratios:
absolute ones differ from machine to machine and from hour to hour.
"""

import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from bench.devices import Pool
from bench.machine import load_average
from tools.localpg import LocalPostgreSQL

__all__ = ["Floors", "crypto", "find"]

_ECDSA: Final = ec.ECDSA(hashes.SHA256())
_TBS_SIZE = 600
_ROW_SIZE = 1024


def crypto(pool: Pool, seconds: float, clock: Callable[[], float] = time.perf_counter) -> dict[str, float]:
    """Return what one device costs in signatures, in microseconds of one core, and devices a second.

    Verify the request's signature, sign the certificate, verify the device's proof; P-256, ``cryptography``.
    ``clock`` may be that of processor time, which other processes do not lengthen.
    """
    pool.grow(1)
    pool.rewind()
    device = pool.take(1)[0]
    pool.rewind()
    issuer, tbs = ec.generate_private_key(ec.SECP256R1()), os.urandom(_TBS_SIZE)
    message = os.urandom(128)
    proof, public = device.key.sign(message, _ECDSA), device.key.public_key()

    def verify_request() -> None:
        assert x509.load_der_x509_csr(device.csr).is_signature_valid

    costs = {
        "verify_request_us": 1e6 / _rate(verify_request, seconds, clock),
        "sign_certificate_us": 1e6 / _rate(lambda: issuer.sign(tbs, _ECDSA), seconds, clock),
        "verify_proof_us": 1e6 / _rate(lambda: public.verify(proof, message, _ECDSA), seconds, clock),
    }
    return costs | {"devices_per_second": 1e6 / sum(costs.values())}


@dataclass(frozen=True, slots=True, kw_only=True)
class Floors:
    """What was found."""

    load_average: float
    """Of the machine, when it was found."""
    crypto: dict[str, float]
    storage: dict[str, float]

    @property
    def devices_per_second(self) -> float:
        """The signatures of so many devices fit into a second of one core."""
        return self.crypto["devices_per_second"]

    @property
    def commits_per_second(self) -> float:
        """So many plain durable commits, one after the other."""
        return self.storage["commits_per_second"]

    def document(self) -> dict[str, Any]:
        """Return it for the JSON file."""
        return {name: getattr(self, name) for name in self.__slots__}


def find(database: str, pool: Pool, seconds: float) -> Floors:
    """Find the floors under a database; ``seconds`` is the length of each sitting."""
    return Floors(
        load_average=load_average(), crypto=crypto(pool, seconds), storage=_storage(database, seconds)
    )


def _storage(database: str, seconds: float) -> dict[str, float]:
    """Return durable writes a second, one after the other: of a bare file, and commits of the database."""
    with tempfile.TemporaryDirectory(prefix="birthmark-bench-") as name:
        folder = Path(name)
        found = {"fdatasync_per_second": _fdatasync(folder / "plain", seconds)}
        if database == "sqlite":
            found["commits_per_second"] = _sqlite(folder / "plain.db", seconds)
    if database == "postgresql":
        with LocalPostgreSQL() as cluster, cluster.connect() as connection:
            connection.execute("CREATE TABLE plain (id bigserial PRIMARY KEY, row bytea NOT NULL)")
            row = os.urandom(_ROW_SIZE)
            found["commits_per_second"] = _rate(
                lambda: connection.execute("INSERT INTO plain (row) VALUES (%s)", (row,), prepare=True),
                seconds,
            )
    return found


def _fdatasync(path: Path, seconds: float) -> float:
    block = os.urandom(4096)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def append() -> None:
        os.write(file, block)
        os.fdatasync(file)

    try:
        return _rate(append, seconds)
    finally:
        os.close(file)


def _sqlite(path: Path, seconds: float) -> float:
    row = os.urandom(_ROW_SIZE)
    database = sqlite3.connect(path, isolation_level=None)
    try:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        database.execute("CREATE TABLE plain (id INTEGER PRIMARY KEY, row BLOB NOT NULL)")
        return _rate(lambda: database.execute("INSERT INTO plain (row) VALUES (?)", (row,)), seconds)
    finally:
        database.close()


def _rate(act: Callable[[], Any], seconds: float, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return how often a second an act can be done: the median of three sittings."""
    act()
    rates = []
    for _ in range(3):
        done, begun = 0, clock()
        while (passed := clock() - begun) < seconds:
            act()
            done += 1
        rates.append(done / passed)
    return statistics.median(rates)
