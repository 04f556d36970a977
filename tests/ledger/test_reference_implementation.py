"""The reference implementation of transparency logs, golang.org/x/mod/sumdb, as judge of what we write."""

import os
import subprocess
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path

import pytest

from birthmark.ledger import merkle
from birthmark.ledger.merkle import Frontier, Growth
from tests.ledger.sample import Sample, sample
from tests.ledger.test_bundle import members
from tests.support.programs import missing, need

SIZE = 70
LOG = sample(SIZE)
GOCODE = Path("/usr/share/gocode")
DRIVER = Path(__file__).parents[1] / "system" / "tlog_go" / "main.go"


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    go = need("go", "golang-go")
    if not (GOCODE / "src/golang.org/x/mod/sumdb/tlog").is_dir():
        missing("the Go package x/mod is not installed (Debian package golang-golang-x-mod-dev)")
    place = tmp_path_factory.mktemp("go")
    environment = {**os.environ, "GO111MODULE": "off", "GOPATH": str(GOCODE), "GOCACHE": str(place / "cache")}
    command = [go, "build", "-o", str(place / "judge"), str(DRIVER)]
    built = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return place / "judge"


def line(kind: str, first: int, second: int, *hashes: bytes) -> str:
    return " ".join([kind, str(first), str(second), *(b64encode(value).decode() for value in hashes)])


def subtree(log: Sample, level: int, index: int) -> bytes:
    part = Sample(entries=log.entries[index << level : (index + 1) << level], records=())
    return part.root(1 << level)


def inclusion_proofs(log: Sample) -> list[str]:
    """The last leaves as a train proves them, all leaves as from storage."""
    frontier = Frontier()
    leaves = [merkle.leaf_hash(data) for data in log.entries]
    for leaf in leaves[:41]:
        frontier.append(leaf)
    growth = Growth(frontier.edge)
    for leaf in leaves[41:]:
        growth.append(leaf)
    size, root = growth.size, growth.root()
    lines = [
        line("inclusion", index, size, root, leaves[index], *growth.inclusion_proof(index))
        for index in range(41, size)
    ]
    for index, leaf in enumerate(leaves):
        proof = merkle.inclusion_proof(index, size, lambda level, at: subtree(log, level, at))
        lines.append(line("inclusion", index, size, root, leaf, *proof))
    return lines


def consistency_proofs(log: Sample) -> list[str]:
    new = len(log.entries)
    return [
        line(
            "consistency",
            old,
            new,
            log.root(old),
            log.root(new),
            *merkle.consistency_proof(old, new, lambda level, at: subtree(log, level, at)),
        )
        for old in range(1, new + 1)
    ]


PROOFS = [*inclusion_proofs(LOG), *consistency_proofs(LOG)]


def judged(
    judge: Path, place: Path, contents: dict[str, bytes], proofs: Sequence[str] = PROOFS
) -> subprocess.CompletedProcess[str]:
    for name, data in {**contents, "proofs": "\n".join(proofs).encode()}.items():
        (place / name).write_bytes(data)
    files = ["vkey", "checkpoint", "entries.jsonl", "proofs"]
    return subprocess.run([judge, *files], cwd=place, capture_output=True, text=True, check=False)


def test_the_reference_implementation_agrees_with_note_root_and_all_proofs(
    judge: Path, tmp_path: Path
) -> None:
    """E3, E5."""
    run = judged(judge, tmp_path, members(LOG.export()))
    root = b64encode(LOG.root(SIZE)).decode()
    assert run.returncode == 0, run.stderr
    assert run.stdout == (
        f"note factory.example/log/acme-test {SIZE}\nroot {root}\nproofs {SIZE - 41 + SIZE + SIZE}\n"
    )


def test_the_reference_implementation_refuses_forgeries(judge: Path, tmp_path: Path) -> None:
    contents = members(LOG.export())
    entries, checkpoint = contents["entries.jsonl"], contents["checkpoint"]
    forged = judged(
        judge, tmp_path, {**contents, "entries.jsonl": entries.replace(b"SN00000005", b"SN00000006")}
    )
    assert (forged.returncode, forged.stderr) == (1, "the entries lead to another root\n")
    forged = judged(judge, tmp_path, {**contents, "checkpoint": checkpoint.replace(b"\n70\n", b"\n71\n")})
    assert forged.returncode == 1
    assert "invalid signature" in forged.stderr
    for number in (0, len(PROOFS) - 2):
        words = PROOFS[number].split()
        words[-1] = b64encode(bytes(32)).decode()
        forged = judged(judge, tmp_path, contents, [" ".join(words)])
        assert forged.returncode == 1
        assert "invalid transparency proof" in forged.stderr
