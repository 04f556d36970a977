"""Where the time goes: the path of one device in microseconds, part by part.

One station, one request at a time, against a server that carries stopwatches (``bench.spans``).  What the
client sees is split without a remainder that nobody names: what no stopwatch covers stands in the table as
TLS, sockets and the client's own work.
"""

import json
import sys
from dataclasses import dataclass
from typing import Any

from bench import load, machine
from bench.devices import Pool
from bench.installation import Installation
from bench.spans import PARTS

__all__ = ["Anatomy", "dissect"]

OUTSIDE = "request"
"""What the client sees; the parts hang below it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """The path of a device; everything in microseconds a device."""

    database: str
    gang: int
    devices: int
    own: dict[str, float]
    """Each part's own time, without what it contains; ``request`` is TLS, sockets and the client."""
    calls: dict[str, float]
    total: float
    """What the client sees: issue and prove, without the device's signature."""
    server_cpu: float
    database_cpu: float
    client_cpu: float

    def document(self) -> dict[str, Any]:
        """Return it for the JSON file."""
        return {name: getattr(self, name) for name in self.__slots__}


def dissect(site: Installation, database: str, pool: Pool, *, gang: int, devices: int) -> Anatomy:
    """Follow so many devices, in requests of ``gang`` devices, after a warm-up.

    Raises:
        load.Failed: a request was refused.
    """
    result, seqs = site.folder / f"spans-{gang}.json", dict[str, int]()
    # a template is compiled, caches fill, a database connection opens: not what every device costs
    warm_up = load.Load(devices=pool.take(16 * gang), gang=gang, connections=1, prove=True)
    measured = load.Load(devices=pool.take(devices), gang=gang, connections=1, prove=True)
    command = [sys.executable, "-m", "bench.spans", str(site.settings), str(result), str(2 * 16)]
    with site.running(command) as pid:
        load.run(site, warm_up, seqs, 1)
        family = machine.family(pid)
        engine = [] if site.postgresql is None else machine.family(site.postgresql.pid or 0)
        before = machine.cpu_seconds(family), machine.cpu_seconds(engine)
        seen = load.run(site, measured, seqs, 1)
        after = machine.cpu_seconds(family), machine.cpu_seconds(engine)
    counted: dict[str, list[float]] = json.loads(result.read_text())
    micro = 1e6 / devices
    total = (sum(seen.issue) + sum(seen.prove)) * micro
    own = {OUTSIDE: total} | {part: counted[part][1] * micro for part in PARTS}
    for part, (container, _) in PARTS.items():
        own[container] -= counted[part][1] * micro
    return Anatomy(
        database=database,
        gang=gang,
        devices=devices,
        own=own,
        calls={part: counted[part][0] / devices for part in PARTS},
        total=total,
        server_cpu=(after[0] - before[0]) * micro,
        database_cpu=(after[1] - before[1]) * micro,
        client_cpu=(seen.cpu - seen.signing) * micro,
    )
