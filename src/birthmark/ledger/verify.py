"""The offline verifier: is this log, as exported, whole and unchanged?

It needs a bundle and the log's public key, and imports only its neighbours in this package,
``birthmark.errors`` and ``cryptography``, so that an auditor can carry it away and read all of it.  It trusts
the key it is given and nothing in the bundle.

What it can show is that the log is one history, signed, whole and in agreement with the records.  That this
history is the *same* that others saw it can show only with their checkpoints: give it those that left the
building (``earlier``), from stations, headquarters or printed reports.

    python -m birthmark.ledger.verify BUNDLE --vkey FILE [--checkpoint FILE ...] [--json]

Exit status: 0 nothing found, 1 findings, 65 the bundle, key or a given checkpoint cannot be read.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TextIO

from birthmark import errors
from birthmark.ledger import entry as entries_format
from birthmark.ledger import merkle
from birthmark.ledger.bundle import README, Bundle, record_line, split_notes
from birthmark.ledger.checkpoint import Checkpoint, VerifierKey, open_note

__all__ = [
    "STEPS",
    "Finding",
    "Gap",
    "Report",
    "Severity",
    "main",
    "verdicts",
    "verify_bundle",
]

STEPS: Mapping[int, str] = {
    1: "the checkpoint is signed by the log",
    2: "the earlier checkpoints are signed by the log and not larger than it",
    3: "every entry is canonical, and there are as many as the checkpoint says",
    4: "the root over the entries is the root in the checkpoint",
    5: "each earlier checkpoint is a prefix of this log",
    6: "time does not run backwards, in one realm and one environment",
    7: "the numbers of every actor's requests have no gap",
    8: "records and device-released entries agree",
}
"""What ``verify_bundle`` does, in its order."""

RELEASED = "device-released"
"""The kind of entry that carries an identity record, in its field ``record``."""

_DETAIL_LIMIT = 20
_PROGRESS_EVERY = 1 << 15


class Severity(StrEnum):
    """How bad a finding is."""

    ERROR = "error"
    """What the bundle claims is not shown."""
    WARNING = "warning"
    """Nothing that is claimed fails, but somebody should look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that is not as it should be, and the step that noticed."""

    step: int
    severity: Severity
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Requests ``first`` to ``last`` of an actor that left no entry."""

    actor: str
    first: int
    last: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a bundle holds and what was found in it.

    ``size`` and ``root`` are the checkpoint's; ``counts`` are entries by kind; ``earlier`` is how many
    earlier checkpoints were found to be prefixes, ``records`` how many records agree with their entries.
    """

    origin: str
    size: int
    root: str
    realm: str | None = None
    environment: str | None = None
    first_at: str | None = None
    last_at: str | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    earlier: int = 0
    records: int = 0
    gaps: tuple[Gap, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def ok(self) -> bool:
        """True if there is no finding of severity error."""
        return all(finding.severity is not Severity.ERROR for finding in self.findings)


def verify_bundle(
    path: str | Path,
    vkey: VerifierKey,
    *,
    earlier: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Check an exported bundle by the steps in ``STEPS``; the first that fails alone ends it early.

    Args:
        path: the bundle.
        vkey: the log's key, from somebody the auditor trusts.
        earlier: signed checkpoints of this log that others kept.
        progress: called now and then with the entries done and the entries in all.

    Raises:
        errors.MalformedRequest: the file is no bundle, or a checkpoint in it or given is none.
        OSError: the file cannot be opened.
    """
    # One long function: it is the procedure, in its order.
    findings = _Findings()
    with Path(path).open("rb") as file, Bundle(file) as bundle:
        # 1.  What is not signed tells nothing, not even how much of it to read.
        try:
            checkpoint = open_note(bundle.checkpoint, vkey)
        except errors.IntegrityFailure as refusal:
            findings.add(1, str(refusal))
            return Report(origin=vkey.name, size=0, root="", findings=findings.all())
        if bundle.vkey != f"{vkey}\n":
            findings.add(1, "the bundle names another verifier key than the one given")
        if bundle.readme != README:
            findings.add(1, "README.txt is not the one we write: do not follow it", Severity.WARNING)
        # 2.
        prefixes = _Prefixes(findings, checkpoint)
        prefixes.read(bundle.earlier(), vkey)
        for number, note in enumerate(earlier, 1):
            prefixes.add(note, vkey, number)
        # 3. to 8.  One pass over the entries.
        tree = merkle.Frontier()
        history = _History(findings)
        sequences = _Sequences()
        records = _Records(findings, bundle.records(), checkpoint.size)
        counts: Counter[str] = Counter()
        for index, line in enumerate(_entries(bundle, checkpoint, findings)):
            prefixes.compare(tree)
            tree.append(merkle.leaf_hash(line))
            try:
                entry = entries_format.decode(line)
            except errors.MalformedRequest as refusal:
                findings.add(3, f"entry {index}: {refusal}")
                continue
            kind, actor = str(entry["kind"]), str(entry["actor"])
            counts[kind] += 1
            history.follow(index, entry)
            if isinstance(seq := entry.get("seq"), int):
                sequences.see(actor, seq)
            if kind == RELEASED:
                records.compare(index, entry.get("record"))
            if progress is not None and not index % _PROGRESS_EVERY:
                progress(index, checkpoint.size)
        # 4. and 5.
        if tree.root() != checkpoint.root:
            findings.add(4, "the entries lead to another root than the checkpoint's")
        prefixes.compare(tree)
        prefixes.finish(tree.size)
        # 7. and 8.
        gaps = sequences.gaps()
        _report_gaps(gaps, findings)
        records.finish()
    if progress is not None:
        progress(tree.size, checkpoint.size)
    return Report(
        origin=checkpoint.origin,
        size=checkpoint.size,
        root=checkpoint.root.hex(),
        realm=history.realm,
        environment=history.environment,
        first_at=history.first_at,
        last_at=history.last_at,
        counts=dict(sorted(counts.items())),
        earlier=prefixes.agreeing,
        records=records.agreeing,
        gaps=gaps,
        findings=findings.all(),
    )


def _entries(bundle: Bundle, checkpoint: Checkpoint, findings: "_Findings") -> Iterator[bytes]:
    """Yield as many entries as are signed for; note when there are more or fewer."""
    seen = 0
    for line in bundle.entries():
        if seen == checkpoint.size:
            findings.add(3, f"there are more entries than the {checkpoint.size} of the checkpoint")
            return
        yield line
        seen += 1
    if seen < checkpoint.size:
        findings.add(3, f"there are {seen} entries, and {checkpoint.size} in the checkpoint")


class _Findings:
    """Collects findings; a step that finds the same a million times is cut short and counted."""

    def __init__(self) -> None:
        self._found: list[Finding] = []
        self._steps: Counter[int] = Counter()
        self._severity: dict[int, Severity] = {}

    def add(self, step: int, text: str, severity: Severity = Severity.ERROR) -> None:
        self._steps[step] += 1
        if self._severity.get(step) is not Severity.ERROR:
            self._severity[step] = severity
        if self._steps[step] <= _DETAIL_LIMIT:
            self._found.append(Finding(step=step, severity=severity, text=text))

    def all(self) -> tuple[Finding, ...]:
        more = [
            Finding(
                step=step,
                severity=self._severity[step],
                text=f"and {number - _DETAIL_LIMIT} more of this step",
            )
            for step, number in self._steps.items()
            if number > _DETAIL_LIMIT
        ]
        return tuple(sorted((*self._found, *more), key=lambda finding: finding.step))


class _Prefixes:
    """Earlier checkpoints, waiting for the tree to reach their size."""

    def __init__(self, findings: _Findings, latest: Checkpoint) -> None:
        self._findings = findings
        self._latest = latest
        self._waiting: dict[int, list[tuple[bytes, str]]] = {}
        self.agreeing = 0

    def read(self, notes: Iterable[str], vkey: VerifierKey) -> None:
        """Take the bundle's own: each size once and in order, so that they are no more than the entries."""
        above = -1
        for note in notes:
            checkpoint = self._accept(note, vkey, f"the earlier checkpoint after size {above}")
            if checkpoint is None:
                return
            if checkpoint.size <= above:
                self._findings.add(2, f"the earlier checkpoint after size {above} is out of order")
                return
            above = checkpoint.size

    def add(self, note: str, vkey: VerifierKey, number: int) -> None:
        """Take one that others kept."""
        self._accept(note, vkey, f"given checkpoint {number}")

    def _accept(self, note: str, vkey: VerifierKey, whose: str) -> Checkpoint | None:
        try:
            checkpoint = open_note(note, vkey)
        except errors.IntegrityFailure as refusal:
            self._findings.add(2, f"{whose}: {refusal}")
            return None
        size = checkpoint.size
        if size > self._latest.size:
            self._findings.add(2, f"{whose} is over {size} entries: the log was longer than it is now")
            return None
        self._waiting.setdefault(size, []).append((checkpoint.root, whose))
        return checkpoint

    def compare(self, tree: merkle.Frontier) -> None:
        waiting = self._waiting.pop(tree.size, None)
        if waiting is None:
            return
        root = tree.root()
        for expected, whose in waiting:
            if expected == root:
                self.agreeing += 1
            else:
                self._findings.add(5, f"{whose}: the first {tree.size} entries were others then")

    def finish(self, size: int) -> None:
        for waiting in self._waiting.values():
            for _, whose in waiting:
                self._findings.add(5, f"{whose} cannot be compared: the bundle ends after {size} entries")


class _History:
    """Time, realm and environment of the entries."""

    def __init__(self, findings: _Findings) -> None:
        self._findings = findings
        self.realm: str | None = None
        self.environment: str | None = None
        self.first_at: str | None = None
        self.last_at: str | None = None  # the latest, not the last

    def follow(self, index: int, entry: Mapping[str, object]) -> None:
        at, realm, environment = str(entry["at"]), str(entry["realm"]), str(entry["environment"])
        if self.last_at is None:
            self.realm, self.environment, self.first_at, self.last_at = realm, environment, at, at
        if (realm, environment) != (self.realm, self.environment):
            self._findings.add(6, f"entry {index} belongs to {realm}, {environment}")
        # Times in their one spelling sort as text; the train dates its entries, so none is before another.
        if at >= self.last_at:
            self.last_at = at
        else:
            self._findings.add(6, f"entry {index} is of {at}, after one of {self.last_at}")


class _Sequences:
    """Request numbers by actor; one number may come often, because a request can cover many devices."""

    def __init__(self) -> None:
        self._next: dict[str, int] = {}  # all numbers below were seen
        self._ahead: dict[str, set[int]] = {}

    def see(self, actor: str, seq: int) -> None:
        following = self._next.setdefault(actor, 1)
        if seq == following:
            following += 1
            ahead = self._ahead.get(actor)
            while ahead and following in ahead:
                ahead.remove(following)
                following += 1
            self._next[actor] = following
        elif seq > following:
            self._ahead.setdefault(actor, set()).add(seq)

    def gaps(self) -> tuple[Gap, ...]:
        found = []
        for actor in sorted(self._ahead):
            following = self._next[actor]
            for seq in sorted(self._ahead[actor]):
                if seq > following:
                    found.append(Gap(actor=actor, first=following, last=seq - 1))
                following = seq + 1
        return tuple(found)


def _report_gaps(gaps: Iterable[Gap], findings: _Findings) -> None:
    for gap in gaps:
        numbers = f"request {gap.first}" if gap.first == gap.last else f"requests {gap.first} to {gap.last}"
        # A request that was numbered and never arrived leaves a gap too, so a gap is a question, not a proof.
        findings.add(7, f"{gap.actor}: {numbers} left no entry", Severity.WARNING)


class _Records:
    """Walks the records beside the entries; both are in the order of the leaves."""

    def __init__(self, findings: _Findings, lines: Iterator[bytes], size: int) -> None:
        self._findings = findings
        self._lines = lines
        self._size = size
        self._leaf = -1
        self._line: bytes | None = next(lines, None)
        self.agreeing = 0

    def compare(self, index: int, record: object) -> None:
        try:
            expected = record_line(index, record) if isinstance(record, dict) else None
        except errors.MalformedRequest:
            expected = None
        if expected is None:
            self._findings.add(8, f"entry {index} releases a device and has no proper record")
        if expected is not None and self._line == expected:
            self.agreeing += 1
            self._advance(index)
            return
        while (leaf := self._leaf_of(self._line)) is not None and leaf <= index:
            if leaf == index:
                self._findings.add(8, f"the record of leaf {leaf} differs from its entry")
                self._advance(leaf)
                return
            self._findings.add(8, f"the record of leaf {leaf} belongs to no device-released entry")
            self._advance(leaf)
        self._findings.add(8, f"entry {index} releases a device and is missing from the records")

    def finish(self) -> None:
        while (leaf := self._leaf_of(self._line)) is not None:
            self._findings.add(8, f"the record of leaf {leaf} belongs to no device-released entry")
            self._advance(leaf)

    def _advance(self, leaf: int) -> None:
        self._leaf = leaf
        self._line = next(self._lines, None)

    def _leaf_of(self, line: bytes | None) -> int | None:
        """Return the leaf a record names; if that cannot be the next, say so and read no further."""
        if line is None:
            return None
        try:
            leaf = entries_format.parse(line).get("leaf")
        except errors.MalformedRequest:
            leaf = None
        if type(leaf) is int and self._leaf < leaf < self._size:
            return leaf
        self._findings.add(8, f"the record after that of leaf {self._leaf} is none, or out of order")
        self._line = None
        return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verifier from the command line and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="birthmark.ledger.verify", description="Check an exported audit log with the log's public key."
    )
    parser.add_argument("bundle", type=Path, help="the exported bundle")
    parser.add_argument("--vkey", type=Path, required=True, metavar="FILE", help="the log's verifier key")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="signed checkpoints that others kept; may be given again",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args(arguments)
    try:
        vkey = VerifierKey.parse(options.vkey.read_text(encoding="utf-8"))
        earlier = [note for path in options.checkpoint for note in _notes(path)]
        report = verify_bundle(options.bundle, vkey, earlier=earlier, progress=_progress(sys.stderr))
    except (errors.Refusal, OSError, UnicodeDecodeError) as wrong:
        sys.stderr.write(f"cannot be read: {wrong}\n")
        return 65
    sys.stdout.write(_as_json(report) if options.json else _as_text(report))
    return 0 if report.ok else 1


def _notes(path: Path) -> list[str]:
    """Read a file of checkpoints; none in it is an error, because somebody meant to give one."""
    lines = path.read_bytes().split(b"\n")
    if lines.pop() != b"" or not (notes := list(split_notes(lines))):
        raise errors.MalformedRequest(f"{path.name} holds no signed checkpoint")
    return notes


def _progress(stream: TextIO) -> Callable[[int, int], None]:
    def show(done: int, size: int) -> None:
        if size <= _PROGRESS_EVERY or not done:
            return
        if stream.isatty():
            stream.write(f"\r{done} of {size} entries" + ("\n" if done >= size else ""))
            stream.flush()
        elif done >= size or not done % (_PROGRESS_EVERY << 3):
            stream.write(f"{done} of {size} entries\n")

    return show


def _as_json(report: Report) -> str:
    return json.dumps({"ok": report.ok, **asdict(report)}, indent=2) + "\n"


def verdicts(report: Report) -> list[tuple[int, str, str]]:
    """Return each step with its claim and what became of it: ok, QUESTION, FAILED or not tried."""
    worst = {finding.step: "QUESTION" for finding in report.findings}
    worst |= {f.step: "FAILED" for f in report.findings if f.severity is Severity.ERROR}
    untried = "not tried" if worst.get(1) == "FAILED" and not report.size else "ok"
    return [(step, claim, worst.get(step, untried)) for step, claim in STEPS.items()]


def _as_text(report: Report) -> str:
    lines = [f"log      {report.origin}", f"entries  {report.size}", f"root     {report.root}"]
    if report.realm is not None:
        lines.append(f"realm    {report.realm}, {report.environment}, {report.first_at} to {report.last_at}")
    lines.append(f"agreeing {report.earlier} earlier checkpoints, {report.records} records")
    lines.extend(f"  {number:>9} {kind}" for kind, number in report.counts.items())
    lines.extend(f"{step}. {claim}: {verdict}" for step, claim, verdict in verdicts(report))
    lines.extend(f"{finding.severity}: {finding.text} (step {finding.step})" for finding in report.findings)
    lines.append("ok" if report.ok else "NOT OK")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
