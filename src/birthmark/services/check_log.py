"""Compute a log again from its entries: tree, tiles, checkpoints, and what each says; a part of ``check``."""

from collections import defaultdict
from collections.abc import Iterable
from itertools import count

from birthmark import errors
from birthmark.floor.realm import Realm
from birthmark.ledger.checkpoint import VerifierKey, open_note
from birthmark.ledger.entry import decode, time_text
from birthmark.ledger.merkle import Frontier, complete_root, leaf_hash, node_hash
from birthmark.ports import Log, LogEntry
from birthmark.services.check_report import PROGRESS_EVERY, Progress, Report
from birthmark.services.testimony import Said

__all__ = ["check_log"]

_BLOCK = 7
"""Leaf hashes are compared 2**7 at a time: one read for a block, and half of one tile."""
_TILE = 8
"""A tile covers 2**8 nodes (C2SP tlog-tiles)."""


def check_log(report: Report, log: Log, realm: Realm, received: Iterable[str], told: Progress) -> Said:
    """Compute the tree again; every checkpoint ever signed or received must be one of its prefixes."""
    said, (expected, covered) = Said(), _checkpoint_roots(report, log, realm, received)
    tree, nodes, last = Frontier(), _Nodes(report, log), ""
    for item in log.entries():
        if item.index != tree.size:
            report.find(f"the log has no entry {tree.size}")
            break
        digest = leaf_hash(item.entry)
        tree.append(digest)
        nodes.append(item.index, digest)
        roots = expected.pop(tree.size, None)
        if roots is not None and roots != {tree.root()}:
            report.find(f"a checkpoint of size {tree.size} contradicts the log")
        last = _check_entry(report, said, realm, item, last)
        if tree.size % PROGRESS_EVERY == 0:
            told("log", tree.size)
    nodes.finish(tree.size)
    for size in sorted(expected):
        report.find(f"a checkpoint speaks of {size} entries, the log has {tree.size}")
    if covered < tree.size:
        report.find(f"no checkpoint that is stored covers the entries from {covered} to {tree.size - 1}")
    if log.size() != tree.size:
        report.find(f"the log's head speaks of {log.size()} entries, the log has {tree.size}")
    for stray in log.strays():
        report.find(f"there is {stray}, beyond the {log.size()} entries that the log's head speaks of")
    if time_text(log.moved_at()) < last:
        report.find(f"the log's head is dated {time_text(log.moved_at())}, its last entry {last}")
    report.counts["entries"] = tree.size
    for actor, numbers in said.numbers.items():
        missing = max(numbers) - len(numbers)
        if missing:
            first = next(number for number in count(1) if number not in numbers)
            report.notes.append(
                f"{actor}: {missing} request numbers are not in the log, the first is {first}"
            )
    return said


class _Nodes:
    """Holds what the log keeps for its proofs, leaf hashes and roots of tiles, against what entries make."""

    def __init__(self, report: Report, log: Log) -> None:
        self._report = report
        self._log = log
        self._leaves: list[bytes] = []
        self._halves: list[bytes] = []
        self._tiles: list[list[bytes]] = []
        """Roots of full tiles by level, as long as the tile above them is not full."""

    def append(self, index: int, digest: bytes) -> None:
        """Take the next leaf, and compare what it completes."""
        self._leaves.append(digest)
        if len(self._leaves) < 1 << _BLOCK:
            return
        self._halves.append(complete_root(self._leaves))
        self._leaves.clear()
        self._compare(_BLOCK, index >> _BLOCK, self._halves[-1])
        if len(self._halves) < 2:
            return
        root, level = node_hash(*self._halves), 0
        self._halves.clear()
        while True:
            height = _TILE * (level + 1)
            self._compare(height, index >> height, root)
            if level == len(self._tiles):
                self._tiles.append([])
            self._tiles[level].append(root)
            if len(self._tiles[level]) < 1 << _TILE:
                return
            root = complete_root(self._tiles[level])
            self._tiles[level].clear()
            level += 1

    def finish(self, size: int) -> None:
        """Compare the leaves that complete nothing yet; the log has ``size`` of them."""
        for index, digest in enumerate(self._leaves, size - len(self._leaves)):
            self._compare(0, index, digest)

    def _compare(self, level: int, index: int, digest: bytes) -> None:
        try:
            stored = self._log.node(level, index)
        except errors.IntegrityFailure as cause:
            self._report.find(str(cause))
            return
        if stored != digest:
            first, last = index << level, ((index + 1) << level) - 1
            which = f"entry {first}" if first == last else f"entries {first} to {last}"
            what = "hash" if level < _TILE else "tile"
            self._report.find(f"the stored {what} of {which} is another")


def _checkpoint_roots(
    report: Report, log: Log, realm: Realm, received: Iterable[str]
) -> tuple[dict[int, set[bytes]], int]:
    """Return the roots that checkpoints claim, by tree size, and the size of the largest one stored."""
    key = VerifierKey.parse(realm.vkey)
    roots: dict[int, set[bytes]] = defaultdict(set)
    covered = 0
    for source, notes in (("stored", log.checkpoints()), ("received", ((None, note) for note in received))):
        for size, note in notes:
            try:
                checkpoint = open_note(note, key)
            except errors.Refusal as refusal:
                report.find(f"a {source} checkpoint does not verify: {refusal}")
                continue
            roots[checkpoint.size].add(checkpoint.root)
            report.counts[f"checkpoints {source}"] += 1
            if size is not None:
                covered = max(covered, checkpoint.size)
                if size != checkpoint.size:
                    report.find(f"the stored checkpoint of size {size} speaks of {checkpoint.size} entries")
    return roots, covered


def _check_entry(report: Report, said: Said, realm: Realm, item: LogEntry, last: str) -> str:
    """Check one entry by itself, remember what it says, and return its time."""
    try:
        entry = decode(item.entry)
    except errors.Refusal as refusal:
        report.find(f"entry {item.index} is not one of ours: {refusal}")
        return last
    at = str(entry["at"])
    if (entry["realm"], entry["environment"]) != (realm.name, realm.environment):
        report.find(f"entry {item.index} belongs to {entry['realm']} ({entry['environment']})")
    if at < last:
        report.find(f"entry {item.index} is dated before the one before it")
    report.counts[f"entries {entry['kind']}"] += 1
    try:
        said.take(item.index, entry)
    except errors.MalformedRequest as refusal:
        report.find(f"entry {item.index} is no {entry['kind']}: {refusal}")
    return at
