"""The service beside certificate authorities of others, on the same requests, in turns.

Every round goes through the numbers of connections, and at each asks every system in turn, so that a slow
minute of the machine falls on all of them.  Ours is asked over mutual TLS 1.3 and admits the device, keeps
the log and signs its head; the others are asked over plain HTTP, sign, and store what they store.  All are at
their durable defaults, and what they are is in the output.  What a device costs in signatures alone, in
processor time of one core, is measured in every round too.

How often a system waits for the disk is not taken from its documentation: after the rounds ``strace`` counts
fsync and fdatasync while a few devices come one by one.
"""

import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from bench import authorities, floors, load, machine, plain
from bench.authorities import Missing
from bench.comparison import GANG, Figures, Line, Shape
from bench.devices import Device, Pool
from bench.installation import RUN, Failed, Installation, installation
from bench.measure import Case, Repeat, sit
from tools.programs import find

__all__ = ["measure"]

GANG_CONNECTIONS: Final = 8
WARM_UP: Final = 64
SYNCED: Final = 16
"""Devices that come one by one while writes to the disk are counted."""
_ATTACH_SECONDS: Final = 10.0


@dataclass(slots=True, kw_only=True)
class _System:
    """One that takes part: how to ask it, and what it is."""

    system: str
    store: str
    ours: bool
    durable: bool
    settings: dict[str, str]
    shapes: Sequence[Shape]
    ask: Callable[[Shape, Sequence[Device]], Repeat]
    pids: tuple[int, ...] = ()
    """Its processes' parents; none if it does not stay."""

    @property
    def name(self) -> str:
        """The system and what it stores in, as in ``Line``."""
        return f"{self.system}, {self.store}"


def measure(
    databases: Sequence[str],
    processes: Sequence[int],
    connections: Sequence[int],
    *,
    devices: int,
    repeats: int,
    seconds: float,
) -> Figures:
    """Measure ours, on each database with each number of processes, and every peer that is there.

    Args:
        databases: ``sqlite``, ``postgresql``.
        processes: of our service.
        connections: on which single devices are asked for.
        devices: in each sitting; more if a wave of all connections is larger.
        repeats: rounds.
        seconds: how long each kind of signature is measured at a time, thrice a round.

    Raises:
        Failed: ours refused a request, or the record does not have what was answered.
    """
    singles = [Shape(asked="issue", gang=1, connections=count) for count in connections]
    gangs = [
        Shape(asked=asked, gang=GANG, connections=GANG_CONNECTIONS) for asked in ("issue", "transaction")
    ]
    batch = Shape(asked="batch", gang=devices, connections=1)
    figures = Figures()
    pool = Pool()
    with ExitStack() as stack:
        systems = [
            stack.enter_context(_ours(database, count, [*singles, *gangs]))
            for database in databases
            for count in processes
        ]
        systems += _peers(stack, singles, batch, figures.missing)
        figures.settings |= {system.name: system.settings for system in systems}
        shapes = [*singles, batch, *gangs]
        _round(Figures(), systems, singles[-1], pool.take(WARM_UP))
        for _ in range(repeats):
            figures.signatures.append(floors.crypto(Pool(), seconds, time.process_time))
            for shape in shapes:
                wave = 1 if shape is batch else shape.gang * shape.connections
                _round(figures, systems, shape, pool.take(-(-devices // wave) * wave))
        one = Shape(asked="issue", gang=1, connections=1)
        some = pool.take(SYNCED)
        for system in systems:
            if system.pids and system.name not in figures.missing:
                figures.syncs[system.name] = _syncs(system, partial(system.ask, one, some))
    figures.lines.sort(key=lambda line: shapes.index(line.shape))
    return figures


def _round(figures: Figures, systems: Sequence[_System], shape: Shape, devices: Sequence[Device]) -> None:
    """Ask each system once, with the same devices; a peer that fails takes part no more."""
    for system in systems:
        if shape not in system.shapes or system.name in figures.missing:
            continue
        try:
            seen = system.ask(shape, devices)
        except Failed as failed:
            if system.ours:
                raise
            figures.missing[system.name] = str(failed)
            continue
        _line(figures, system, shape).repeats.append(seen)


def _line(figures: Figures, system: _System, shape: Shape) -> Line:
    for line in figures.lines:
        if (line.name, line.shape) == (system.name, shape):
            return line
    line = Line(
        system=system.system, store=system.store, ours=system.ours, durable=system.durable, shape=shape
    )
    figures.lines.append(line)
    return line


# --- those who take part


@contextmanager
def _ours(database: str, processes: int, shapes: Sequence[Shape]) -> Iterator[_System]:
    """Serve one of our own; in the end its record must hold what was answered, and pass its check."""
    seqs, counted, cores = dict[str, int](), {"issued": 0, "proved": 0}, os.cpu_count() or 1
    with installation(database) as site:
        with site.serving(processes) as pid:

            def ask(shape: Shape, devices: Sequence[Device]) -> Repeat:
                case = Case(
                    database=database,
                    processes=processes,
                    gang=shape.gang,
                    connections=shape.connections,
                    prove=shape.asked == "transaction",
                )
                seen = sit(site, pid, case, devices, seqs, cores)
                counted["issued"] += len(devices)
                counted["proved"] += len(devices) * case.prove
                return seen

            engine = [] if site.postgresql is None else [site.postgresql.pid or 0]
            yield _System(
                system=f"birthmark, {processes} proc.", store=database, ours=True, durable=True,
                settings=site.durability, shapes=shapes, ask=ask, pids=(pid, *engine),
            )  # fmt: skip
            _agree(site, counted)
        site.command("check")


def _agree(site: Installation, counted: dict[str, int]) -> None:
    run = load.read(site, f"/v1/runs/{RUN}")
    if (run["admitted"], run["released"], run["held"]) != (counted["issued"], counted["proved"], 0):
        raise Failed(f"{counted} were answered, but the record says {run}")


def _peers(
    stack: ExitStack, singles: Sequence[Shape], batch: Shape, missing: dict[str, str]
) -> list[_System]:
    """Start every peer; whoever is not there is told in ``missing``."""
    found, cores = [], os.cpu_count() or 1
    servers = {f"cfssl, {store}": authorities.cfssl(store) for store in authorities.CFSSL_STORES}
    servers["openbao, raft + audit"] = authorities.openbao()
    for name, server in servers.items():
        try:
            peer = stack.enter_context(server)
        except (Missing, Failed) as why:
            missing[name] = str(why)
            continue

        def ask(shape: Shape, devices: Sequence[Device], peer: authorities.Authority = peer) -> Repeat:
            return plain.ask(peer, devices, shape.connections, cores)

        found.append(
            _System(
                system=peer.system, store=peer.store, ours=False, durable=peer.durable,
                settings=peer.settings, shapes=singles, ask=ask, pids=peer.pids,
            )
        )  # fmt: skip
    try:
        openssl = stack.enter_context(authorities.openssl_ca())
    except Missing as why:
        missing["openssl ca, text file"] = str(why)
    else:
        found.append(
            _System(
                system="openssl ca", store="text file", ours=False, durable=False, settings=openssl.settings,
                shapes=[batch], ask=lambda _shape, devices: openssl.sign(devices),
            )
        )  # fmt: skip
    return found


# --- how often they wait for the disk


def _syncs(system: _System, ask: Callable[[], Repeat]) -> float | None:
    """Return fsync and fdatasync a device while some come one by one; None where that cannot be seen."""
    strace = find("strace")
    if strace is None:
        return None
    family = [pid for first in system.pids for pid in machine.family(first)]
    with tempfile.NamedTemporaryFile("r") as counts, tempfile.NamedTemporaryFile("r") as words:
        command = [strace, "-f", "-c", "-e", "trace=fsync,fdatasync", "-o", counts.name]
        for pid in family:
            command += ["-p", str(pid)]
        with Path(words.name).open("wb") as said:
            tracer = subprocess.Popen(command, stderr=said)
        try:
            deadline = time.monotonic() + _ATTACH_SECONDS
            while Path(words.name).read_text(errors="replace").count(" attached") < len(family):
                if tracer.poll() is not None or time.monotonic() > deadline:
                    return None
                time.sleep(0.05)
            count = ask().devices
        finally:
            tracer.send_signal(signal.SIGINT)
            tracer.wait(_ATTACH_SECONDS)
        return _calls(counts.read()) / count


def _calls(table: str) -> int:
    """Return the calls in strace's table of counts: the fourth column; the fifth, errors, may be empty."""
    rows = re.findall(r"^ *[\d.]+ +[\d.]+ +\d+ +(\d+) +(?:\d+ +)?f(?:data)?sync$", table, re.MULTILINE)
    return sum(map(int, rows))
