"""One line of the table: a load on an installation, repeated, and what it cost."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench import load, machine
from bench.devices import Pool
from bench.installation import RUN, Failed, Installation

__all__ = ["Case", "Repeat", "Series", "measure", "percentile", "sit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What to measure."""

    database: str
    processes: int
    gang: int
    connections: int
    prove: bool

    @property
    def asked(self) -> str:
        """What the station does."""
        return "transaction" if self.prove else "issue"


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """One sitting."""

    devices: int
    seconds: float
    rate: float
    """Devices a second."""
    p50: float
    """Milliseconds: of the issue request, or from issue to the answer to the proof."""
    p99: float
    requests: int
    """How many requests (or transactions) the percentiles are of."""
    server_cpu: float
    """Microseconds a device, all processes of the service."""
    database_cpu: float
    """Likewise, of PostgreSQL."""
    client_cpu: float
    """The load generator's, in cores."""
    signing: float
    """Of it the devices' signatures, in cores."""
    refused: int = 0
    """Devices that a server of others gave no certificate; ours would end the measurement."""


@dataclass(slots=True, kw_only=True)
class Series:
    """A case and its repeats."""

    case: Case
    repeats: list[Repeat] = field(default_factory=list)

    def median(self, name: str) -> float:
        """Return the median of a repeat's field."""
        return statistics.median(self._all(name))

    def least(self, name: str) -> float:
        """Return the smallest."""
        return min(self._all(name))

    def most(self, name: str) -> float:
        """Return the largest."""
        return max(self._all(name))

    def _all(self, name: str) -> list[float]:
        return [getattr(repeat, name) for repeat in self.repeats]

    def document(self) -> dict[str, Any]:
        """Return it for the JSON file."""
        case = {name: getattr(self.case, name) for name in Case.__slots__}
        rows = [{name: getattr(repeat, name) for name in Repeat.__slots__} for repeat in self.repeats]
        medians = {name: self.median(name) for name in Repeat.__slots__}
        return {"system": "birthmark", "case": case, "median": medians, "repeats": rows}


def percentile(samples: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile: the least sample that so many percent do not exceed."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def measure(
    site: Installation,
    cases: Sequence[Case],
    pool: Pool,
    *,
    devices: int,
    repeats: int,
    load_processes: int,
    told: Callable[[Series], None],
) -> list[Series]:
    """Measure the cases, which must agree on database and processes, on one served installation.

    The repeats of a case do not follow one another: each round goes through all cases, so that a slow minute
    of the machine falls on all of them alike.  At the end the record must hold every device answered for.

    Raises:
        Failed: a request was refused, or the record and the answers do not agree.
    """
    series, seqs, issued, proved = [Series(case=case) for case in cases], dict[str, int](), 0, 0
    with site.serving(cases[0].processes) as pid:
        warm_up = load.Load(devices=pool.take(64), gang=1, connections=len(site.stations), prove=True)
        load.run(site, warm_up, seqs, load_processes)
        issued, proved = 64, 64
        for _ in range(repeats):
            for one in series:
                wave = one.case.gang * one.case.connections
                count = -(-devices // wave) * wave
                one.repeats.append(sit(site, pid, one.case, pool.take(count), seqs, load_processes))
                issued, proved = issued + count, proved + count * one.case.prove
                if len(one.repeats) == repeats:
                    told(one)
        run = load.read(site, f"/v1/runs/{RUN}")
    if (run["admitted"], run["released"], run["held"]) != (issued, proved, 0):
        raise Failed(f"{issued} issued and {proved} proved, but the record says {run}")
    return series


def sit(
    site: Installation,
    pid: int,
    case: Case,
    devices: Sequence[Any],
    seqs: dict[str, int],
    load_processes: int,
) -> Repeat:
    """Put one load on an installation that is served; ``pid`` is the service's first process.

    Raises:
        Failed: a request was refused.
    """
    asked = load.Load(devices=devices, gang=case.gang, connections=case.connections, prove=case.prove)
    service = machine.family(pid)
    engine = [] if site.postgresql is None else machine.family(site.postgresql.pid or 0)
    before = machine.cpu_seconds(service), machine.cpu_seconds(engine)
    seen = load.run(site, asked, seqs, load_processes)
    after = machine.cpu_seconds(service), machine.cpu_seconds(engine)
    latencies = [seconds * 1000 for seconds in (seen.whole if case.prove else seen.issue)]
    return Repeat(
        devices=seen.devices,
        seconds=seen.wall,
        rate=seen.devices / seen.wall,
        p50=percentile(latencies, 50),
        p99=percentile(latencies, 99),
        requests=len(latencies),
        server_cpu=(after[0] - before[0]) / seen.devices * 1e6,
        database_cpu=(after[1] - before[1]) / seen.devices * 1e6,
        client_cpu=seen.cpu / seen.wall,
        signing=seen.signing / seen.wall,
    )
