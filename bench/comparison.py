"""What the service and certificate authorities of others were seen to do, beside each other and the targets.

Figures, their ratios and their table; ``bench.peers`` finds them.
"""

import os
import statistics
from dataclasses import dataclass, field
from typing import Any, Final

from bench.measure import Repeat

__all__ = ["COMPARED", "GANG", "TARGETS", "Figures", "Line", "Shape"]

GANG: Final = 32
COMPARED: Final = 8
"""Connections at which single requests are held against the targets."""
TARGETS: Final = {
    "issue / best durable peer": ("least", 4.0),
    "p99 of issue, ms": ("most", 30.0),
    "gangs / best durable peer": ("least", 8.0),
    "gangs / cfssl storing nothing": ("least", 1.5),
    "CPU of a transaction in gangs / signatures": ("most", 1.6),
    "CPU of issue / signatures": ("most", 2.5),
}
"""Issue: single requests on 8 connections, against the peer's on as many.  Gangs: issue, against the peer's
best.  Signatures: verify and sign; of a transaction, verify, sign and verify."""


NOTES: Final = """\
Medians of the rounds. Ours over mutual TLS 1.3, the others over plain HTTP; kept connections, closed loop;
every certificate was compared with its request. p50, p99: of a request, a gang counts as one; of a
transaction from the first octet asked to the proof's answer. cpu: milliseconds of processor time a device, of
all processes of the server and of its database. load: the load generator's share of all cores.
×peer: devices/s over the best durable peer's on as many connections; gangs, transactions and batches over
its best. ×sign: processor time over that of the signatures alone.
syncs: fsync and fdatasync a device when they come one by one, counted by strace; empty: not seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What is asked."""

    asked: str
    """``issue``, ``transaction``, or ``batch``: one process that signs all."""
    gang: int
    connections: int


@dataclass(slots=True, kw_only=True)
class Line:
    """One system in one shape."""

    system: str
    store: str
    ours: bool
    durable: bool
    shape: Shape
    repeats: list[Repeat] = field(default_factory=list)

    def median(self, name: str) -> float:
        """Return the median of a repeat's field."""
        seen: list[float] = [getattr(repeat, name) for repeat in self.repeats]
        return statistics.median(seen)

    @property
    def cpu(self) -> float:
        """Microseconds a device: all processes of the server, database included."""
        return statistics.median(repeat.server_cpu + repeat.database_cpu for repeat in self.repeats)

    @property
    def name(self) -> str:
        """The system and what it stores in."""
        return f"{self.system}, {self.store}"


@dataclass(slots=True, kw_only=True)
class Figures:
    """What was found."""

    lines: list[Line] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    """Who does not take part, or fell out, and why."""
    settings: dict[str, dict[str, str]] = field(default_factory=dict)
    syncs: dict[str, float | None] = field(default_factory=dict)
    """fsync and fdatasync a device, one device at a time; None: not counted."""
    signatures: list[dict[str, float]] = field(default_factory=list)
    """Of each round, microseconds of processor time (``bench.floors``)."""

    def floor(self, asked: str) -> float:
        """Return what the signatures of one device cost, in microseconds."""
        parts = ["verify_request_us", "sign_certificate_us"]
        parts += ["verify_proof_us"] if asked == "transaction" else []
        return statistics.median(sum(one[part] for part in parts) for one in self.signatures)

    def best(self, connections: int | None = None) -> Line | None:
        """Return the fastest durable peer on so many connections, or on any number of them."""
        durable = (line for line in self.lines if line.durable and not line.ours and line.repeats)
        some = [line for line in durable if connections is None or line.shape.connections == connections]
        return max(some, key=lambda line: line.median("rate"), default=None)

    def against(self, line: Line) -> Line | None:
        """Return the peer that a line is compared with: on as many connections; for gangs, at its best."""
        single = line.shape.gang == 1 and line.shape.asked == "issue"
        return self.best(line.shape.connections if single else None)

    def targets(self) -> list[dict[str, Any]]:
        """Return, for each of our systems, what was found beside each target; None is not known."""
        nothing = [line for line in self.lines if line.name == "cfssl, nothing"]
        fastest = max((line.median("rate") for line in nothing), default=None)
        found: dict[str, dict[str, float | None]] = {}
        for line in (line for line in self.lines if line.ours):
            peer, shape, said = self.against(line), line.shape, found.setdefault(line.name, {})
            rate, cpu = line.median("rate"), line.cpu / self.floor(shape.asked)
            over = None if peer is None else rate / peer.median("rate")
            if shape == Shape(asked="issue", gang=1, connections=COMPARED):
                said |= {"issue / best durable peer": over, "p99 of issue, ms": line.median("p99")}
                said["CPU of issue / signatures"] = cpu
            elif shape.gang == GANG and shape.asked == "issue":
                said["gangs / best durable peer"] = over
                said["gangs / cfssl storing nothing"] = None if fastest is None else rate / fastest
            elif shape.asked == "transaction":
                said["CPU of a transaction in gangs / signatures"] = cpu
        rows = []
        for system, said in found.items():
            for what, (bound, target) in TARGETS.items():
                met = _met(said.get(what), bound, target)
                if met and what.endswith("peer") and self.missing:
                    met = None  # whoever is missing may be the best
                row = {"system": system, "what": what, "found": said.get(what), "bound": bound}
                rows.append(row | {"target": target, "met": met})
        return rows

    def document(self) -> dict[str, Any]:
        """Return it for the JSON file."""
        lines = []
        for line in self.lines:
            rows = [{name: getattr(repeat, name) for name in Repeat.__slots__} for repeat in line.repeats]
            medians = {name: line.median(name) for name in Repeat.__slots__}
            who = {name: getattr(line, name) for name in ("system", "store", "ours", "durable")}
            shape = {name: getattr(line.shape, name) for name in Shape.__slots__}
            lines.append(who | {"shape": shape, "cpu": line.cpu, "median": medians, "repeats": rows})
        kept = {name: getattr(self, name) for name in ("missing", "settings", "syncs", "signatures")}
        return {"lines": lines, **kept, "targets": self.targets()}

    def text(self) -> str:
        """Return the table, the settings and the targets for the screen."""
        head = (
            f"{'system':<22} {'store':<13} {'asked':<11} {'gang':>4} {'conn':>4}"
            f" {'devices/s (min–max)':>22} {'p50 ms':>8} {'p99 ms':>8} {'cpu ms':>7}"
            f" {'load':>5} {'×peer':>6} {'×sign':>6} {'syncs':>6}"
        )
        lines = [head, *(self._row(line) for line in self.lines)]
        lines += [f"{name:<36} MISSING: {why}" for name, why in self.missing.items()]
        best = {count: self.best(count) for count in sorted({line.shape.connections for line in self.lines})}
        said = (f"{line.name} (conn {count})" for count, line in best.items() if line is not None)
        lines += ["", f"best durable peer: {'; '.join(said) or 'none'}"]
        lines.append(
            f"signatures of a device, one core: {self.floor('issue'):.0f} µs to verify and sign,"
            f" {self.floor('transaction'):.0f} µs to verify, sign and verify"
        )
        lines += [
            f"{name}: {', '.join(f'{key} = {value}' for key, value in settings.items())}"
            for name, settings in self.settings.items()
        ]
        lines += ["", NOTES, "", f"{'':<36} {'':<44} {'found':>8} {'target':>8}"]
        for one in self.targets():
            found = "?" if one["found"] is None else f"{one['found']:.2f}"
            sign = "≥" if one["bound"] == "least" else "≤"
            met = {True: "met", False: "not met", None: "not known"}[one["met"]]
            target = f"{sign} {one['target']:.1f}"
            lines.append(f"{one['system']:<36} {one['what']:<44} {found:>8} {target:>8}  {met}")
        return "\n".join(lines)

    def _row(self, line: Line) -> str:
        shape, rates = line.shape, [repeat.rate for repeat in line.repeats]
        spread = f"{line.median('rate'):,.0f} ({min(rates):,.0f}–{max(rates):,.0f})"
        batch, peer = shape.asked == "batch", self.against(line)
        times = ["" if batch else f"{line.median(name):.1f}" for name in ("p50", "p99")]
        share = line.median("client_cpu") / (os.cpu_count() or 1)
        over = "" if peer is None else f"{line.median('rate') / peer.median('rate'):.2f}"
        syncs = self.syncs.get(line.name)
        refused = sum(repeat.refused for repeat in line.repeats)
        return (
            f"{line.system:<22} {line.store:<13} {shape.asked:<11} {shape.gang:>4} {shape.connections:>4}"
            f" {spread:>22} {times[0]:>8} {times[1]:>8} {line.cpu / 1000:>7.2f} {share:>5.0%} {over:>6}"
            f" {line.cpu / self.floor(shape.asked):>6.1f} {'' if syncs is None else format(syncs, '.1f'):>6}"
            f"{f'  {refused} REFUSED' if refused else ''}"
        )


def _met(found: float | None, bound: str, target: float) -> bool | None:
    if found is None:
        return None
    return found >= target if bound == "least" else found <= target
