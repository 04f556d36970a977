"""Targets of ``ledger``: entries, checkpoints, proofs, tiles, and the exported bundle."""

import struct
import tempfile
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from birthmark import errors
from birthmark.ledger import entry, merkle, proof, tiles
from birthmark.ledger.bundle import split_notes
from birthmark.ledger.checkpoint import Checkpoint, VerifierKey, decode_base64, decode_decimal, open_note
from birthmark.ledger.proof import TlogProof
from birthmark.ledger.verify import verify_bundle
from birthmark.services.log_reading import skim
from tests.fuzz.mutators import Shape
from tests.fuzz.target import Target, halves, line_text, pieces, text
from tests.ledger.sample import VKEY, Sample, sample, signed

BELIEVED = (errors.MalformedRequest, errors.IntegrityFailure)
SIZE = 7


@cache
def log() -> Sample:
    """A small log."""
    return sample(SIZE)


def token() -> str:
    """A proof of its third entry."""
    leaves = [merkle.leaf_hash(found) for found in log().entries]
    path = merkle.inclusion_proof(2, SIZE, lambda level, index: _node(leaves, level, index))
    return TlogProof(2, log().entries[2], tuple(path), log().checkpoint()).encode()


def _node(leaves: list[bytes], level: int, index: int) -> bytes:
    if level == 0:
        return leaves[index]
    return merkle.node_hash(_node(leaves, level - 1, 2 * index), _node(leaves, level - 1, 2 * index + 1))


def _note(note: str) -> object:
    return open_note(note, VKEY)


def _resigned(body: str) -> object:
    """A note whose text is the input and whose signature fits: what lies behind that is read, too."""
    try:
        checkpoint = Checkpoint.from_body(body)
        return open_note(signed(checkpoint), VKEY)
    except UnicodeEncodeError:
        raise errors.MalformedRequest("not utf-8") from None


def _inclusion(data: bytes) -> None:
    numbers, *hashes = (data[:16], *(data[at : at + 32] for at in range(16, len(data), 32)))
    index, size = struct.unpack(">QQ", numbers.ljust(16, b"\0"))
    leaf, root, *path = [*hashes, b"", b""]
    merkle.verify_inclusion(leaf, index, path, size, root)
    merkle.verify_consistency(index, size, path, leaf, root)


def _edge(data: bytes) -> object:
    size, rest = halves(data, 256)
    return merkle.Edge.from_bytes(size, rest).root()


MEMBERS = ("README.txt", "vkey", "checkpoint", "checkpoints", "entries.jsonl", "records.jsonl")


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="birthmark-fuzz-"))


def _bundle(data: bytes) -> None:
    file = _folder() / "bundle.zip"
    file.write_bytes(data)
    verify_bundle(file, VKEY, earlier=[log().checkpoint(3)])


def zipped(contents: list[bytes]) -> bytes:
    """An archive whose members hold what they should not, with sums and offsets that fit."""
    local, central = b"", b""
    for name, content in zip(MEMBERS, contents, strict=True):
        sums = struct.pack("<IIIHH", zlib.crc32(content), len(content), len(content), len(name), 0)
        head = struct.pack("<HHHHH", 20, 0, 0, 0, 33) + sums
        central += b"PK\x01\x02" + struct.pack("<H", 0x314) + head
        central += struct.pack("<HHHII", 0, 0, 0, 0, len(local)) + name.encode()
        local += b"PK\x03\x04" + head + name.encode() + content
    count = len(MEMBERS)
    return (
        local
        + central
        + b"PK\x05\x06"
        + struct.pack("<4H2IH", 0, 0, count, count, len(central), len(local), 0)
    )


def _contents(data: bytes) -> None:
    _bundle(zipped(pieces(data, len(MEMBERS))))


def _contents_seeds() -> Iterator[bytes]:
    for size in (1, 4, SIZE):
        one = sample(size)
        records = [entry.canonical({**record, "leaf": leaf}) + b"\n" for leaf, record in one.records]
        parts = (
            b"readme", f"{VKEY}\n".encode(), one.checkpoint().encode(), one.checkpoint(1).encode(),
            b"".join(found + b"\n" for found in one.entries), b"".join(records),
        )  # fmt: skip
        yield b"".join(len(part).to_bytes(2, "big") + part for part in parts)


def _notes(data: bytes) -> None:
    for note in split_notes(data.removesuffix(b"\n").split(b"\n")):
        _note(note)


LEDGER_TARGETS = (
    Target(
        name="release-token",
        run=text(lambda found: proof.verify(found, VKEY)),
        seeds=lambda: [token().encode()],
        refuses=BELIEVED,
        longest=8192,
    ),
    Target(name="proof", run=text(proof.decode), seeds=lambda: [token().encode()]),
    Target(
        name="checkpoint",
        run=text(_note),
        seeds=lambda: [log().checkpoint(size).encode() for size in (1, SIZE)],
        refuses=BELIEVED,
    ),
    Target(
        name="checkpoint-text",
        run=text(_resigned),
        seeds=lambda: [Checkpoint(VKEY.name, 4, log().root(4), ("more",)).body()],
        refuses=BELIEVED,
    ),
    Target(name="verifier-key", run=text(VerifierKey.parse), seeds=lambda: [str(VKEY).encode()]),
    Target(name="log-entry", run=entry.decode, seeds=lambda: log().entries[:3], shape=Shape.JSON),
    Target(name="log-entry-skimmed", run=skim, seeds=lambda: log().entries[:3], shape=Shape.JSON),
    Target(name="canonical-json", run=entry.parse, seeds=lambda: log().entries[:3], shape=Shape.JSON),
    Target(name="log-time", run=text(entry.parse_time), seeds=lambda: [b"2026-11-22T10:00:00.000Z"]),
    Target(
        name="tile-path",
        run=text(tiles.parse_path),
        seeds=lambda: [b"tile/0/x001/234", b"tile/entries/000.p/7"],
    ),
    Target(
        name="inclusion-proof",
        run=_inclusion,
        seeds=lambda: [struct.pack(">QQ", 0, 1) + merkle.leaf_hash(b"") * 2],
        refuses=BELIEVED,
        refused_seeds=True,
    ),
    Target(
        name="tree-edge",
        run=_edge,
        seeds=lambda: [b"\x03" + bytes(64)],
        refuses=(errors.IntegrityFailure,),
    ),
    Target(
        name="bundle",
        run=_bundle,
        seeds=lambda: [log().export(), log().export((1, 4))],
        refuses=BELIEVED,
        longest=16384,
    ),
    Target(name="bundle-contents", run=_contents, seeds=_contents_seeds, refuses=BELIEVED, longest=16384),
    Target(
        name="checkpoints",
        run=_notes,
        seeds=lambda: [(log().checkpoint(1) + log().checkpoint(4)).encode()],
        refuses=BELIEVED,
    ),
    Target(name="base64", run=text(decode_base64), seeds=lambda: [b"AAAA", b"Zg=="]),
    Target(name="decimal", run=line_text(decode_decimal), seeds=lambda: [b"0", b"4711"]),
)
