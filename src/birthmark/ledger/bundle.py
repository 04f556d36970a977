"""The exported bundle: a log in one file that somebody can carry away.

A ZIP archive of six members, always all of them and in this order:

    README.txt      what this is, and how to check it without our program
    vkey            the log's verifier key; a convenience, never the one to trust
    checkpoint      the signed checkpoint over all entries
    checkpoints     earlier signed checkpoints, one after another; may be empty
    entries.jsonl   the entries, one a line, exactly as the log hashes them
    records.jsonl   the identity records, one a line: the log entry's ``record`` and its ``leaf``

Canonical JSON has no newline in it, so a line without its newline is a leaf, octet for octet.  The same log
makes the same archive.  Writing and reading stream: memory does not grow with the log.  A reader that stops
at the size in the checkpoint never reads more than that times 64 KiB, however much the archive could be made
to unpack to.
"""

import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import BinaryIO, Self

from birthmark import errors
from birthmark.ledger import entry as entries_format
from birthmark.ledger import merkle
from birthmark.ledger.checkpoint import NOTE_LIMIT, VerifierKey, open_note

__all__ = ["LINE_LIMIT", "MEMBERS", "README", "Bundle", "record_line", "split_notes", "write_bundle"]

MEMBERS = ("README.txt", "vkey", "checkpoint", "checkpoints", "entries.jsonl", "records.jsonl")
"""Names of the members, in their order."""

LINE_LIMIT = entries_format.ENTRY_LIMIT + 64
"""Longest line we read, in octets without its newline: an entry, or a record and its leaf index."""

_SMALL_LIMIT = NOTE_LIMIT
_CHUNK = 1 << 20
_EPOCH = (1980, 1, 1, 0, 0, 0)
_SIGNATURE_LINE = "— ".encode()

README = """\
An audit log, exported by Birthmark
===================================

Every line of entries.jsonl is one entry of the log, in its order.  The log is a Merkle tree (RFC 6962) over
these lines; "checkpoint" holds its size and root, signed by the log (C2SP tlog-checkpoint, Ed25519 signed
note).  "checkpoints" holds earlier ones.  records.jsonl repeats the identity record of each device-released
entry with the number of its line, counted from 0.

What it proves: whoever kept an earlier checkpoint of this log (a station, headquarters, a printed report) can
tell that nothing before it was changed, dropped or put in.  Compare the key in "vkey" with one that you got
from somebody you trust, not from here.

With our verifier
-----------------

    python -m birthmark.ledger.verify BUNDLE --vkey FILE [--checkpoint FILE ...]

Without it: the root
--------------------

Save as root.py beside the unpacked files and run it with Python; it prints the number of entries and the
root, which are the second and third line of "checkpoint".

    import base64, hashlib

    def sha256(*parts):
        return hashlib.sha256(b"".join(parts)).digest()

    subtrees = []                                   # (number of leaves, hash), largest first
    size = 0
    for line in open("entries.jsonl", "rb"):
        subtrees.append((1, sha256(b"\\x00", line.removesuffix(b"\\n"))))
        size += 1
        while len(subtrees) > 1 and subtrees[-1][0] == subtrees[-2][0]:
            (n, right), (_, left) = subtrees.pop(), subtrees.pop()
            subtrees.append((2 * n, sha256(b"\\x01", left, right)))
    root = subtrees.pop()[1] if subtrees else sha256()
    while subtrees:
        root = sha256(b"\\x01", subtrees.pop()[1], root)
    print(size)
    print(base64.b64encode(root).decode())

Without it: the signature
-------------------------

In a shell, with OpenSSL 3, beside the unpacked files, where the last line of "checkpoint" is the log's
signature:

    (printf '\\060\\052\\060\\005\\006\\003\\053\\145\\160\\003\\041\\000'
     cut -d+ -f3- vkey | base64 -d | tail -c 32) > key.der
    head -n 3 checkpoint > text
    tail -n 1 checkpoint | cut -d' ' -f3 | base64 -d | tail -c 64 > signature
    openssl pkeyutl -verify -pubin -keyform DER -inkey key.der -rawin -in text -sigfile signature
"""
"""The member README.txt, the same in every bundle."""


def record_line(leaf: int, record: Mapping[str, object]) -> bytes:
    """Spell a line of records.jsonl: the record's own fields and ``leaf``, canonical JSON, no newline.

    Raises:
        errors.MalformedRequest: the record has a field named leaf, or a value that entries do not have.
    """
    if "leaf" in record:
        raise errors.MalformedRequest("a record has no field named leaf of its own")
    return entries_format.canonical({**record, "leaf": leaf})


def write_bundle(
    out: BinaryIO,
    *,
    vkey: VerifierKey,
    checkpoint: str,
    entries: Iterable[bytes],
    records: Iterable[tuple[int, Mapping[str, object]]],
    earlier: Iterable[str] = (),
) -> None:
    """Write a bundle; what was written before an error is no bundle and belongs in no hands.

    Args:
        out: where to; need not be seekable.
        vkey: the log's key.
        checkpoint: the signed checkpoint over exactly these entries.
        entries: all entries from the first, as the log keeps them.
        records: leaf index and identity record of each released device, in the order of the leaves.
        earlier: earlier checkpoints, signed, in the order of their sizes, each size once.

    Raises:
        errors.IntegrityFailure: the entries do not lead to the checkpoint, or the checkpoint is not the
            log's.
        errors.MalformedRequest: an entry, a record or a note cannot be written.
    """
    opened = open_note(checkpoint, vkey)
    tree = merkle.Frontier()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        _write(archive, "README.txt", [README.encode()])
        _write(archive, "vkey", [f"{vkey}\n".encode()])
        _write(archive, "checkpoint", [checkpoint.encode()])
        _write(archive, "checkpoints", (note.encode() for note in earlier))
        _write(archive, "entries.jsonl", _entry_lines(entries, tree))
        _write(archive, "records.jsonl", (record_line(leaf, record) + b"\n" for leaf, record in records))
    if (tree.size, tree.root()) != (opened.size, opened.root):
        raise errors.IntegrityFailure(
            f"{tree.size} entries do not lead to the checkpoint over {opened.size} entries"
        )


def _entry_lines(entries: Iterable[bytes], tree: merkle.Frontier) -> Iterator[bytes]:
    for entry in entries:
        if b"\n" in entry or len(entry) > entries_format.ENTRY_LIMIT:
            raise errors.MalformedRequest(f"entry {tree.size} does not fit a line")
        tree.append(merkle.leaf_hash(entry))
        yield entry + b"\n"


def _write(archive: zipfile.ZipFile, name: str, parts: Iterable[bytes]) -> None:
    member = zipfile.ZipInfo(name, _EPOCH)
    member.compress_type = zipfile.ZIP_DEFLATED
    member.create_system = 3  # the same archive wherever it is made
    member.external_attr = 0o100444 << 16
    with archive.open(member, "w", force_zip64=True) as stream:
        waiting: list[bytes] = []
        size = 0
        for part in parts:
            waiting.append(part)
            size += len(part)
            if size >= _CHUNK:
                stream.write(b"".join(waiting))
                waiting, size = [], 0
        stream.write(b"".join(waiting))


class Bundle:
    """A bundle opened for reading; believes nothing and checks no hash.  Close it, or use it in ``with``.

    Every method raises ``errors.MalformedRequest``, and nothing else, for a file that is no bundle.
    """

    def __init__(self, file: BinaryIO) -> None:
        with _unreadable():
            self._archive = zipfile.ZipFile(file)
        try:
            self._check_members()
            self.readme = self._small("README.txt")
            self.vkey = self._small("vkey")
            self.checkpoint = self._small("checkpoint")
        except BaseException:
            self._archive.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the file back; it stays open."""
        self._archive.close()

    def earlier(self) -> Iterator[str]:
        """Yield the earlier checkpoints, each a signed note."""
        return split_notes(self._lines("checkpoints"))

    def entries(self) -> Iterator[bytes]:
        """Yield the entries' octets."""
        return self._lines("entries.jsonl")

    def records(self) -> Iterator[bytes]:
        """Yield the lines of the identity records."""
        return self._lines("records.jsonl")

    def _check_members(self) -> None:
        members = self._archive.infolist()
        if tuple(member.filename for member in members) != MEMBERS:
            raise errors.MalformedRequest(f"a bundle is an archive of {', '.join(MEMBERS)}")
        if self._archive.comment or members[0].header_offset != 0:
            raise errors.MalformedRequest("the archive has something before, behind or beside its members")
        for member in members:
            if member.flag_bits & 1 or member.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                raise errors.MalformedRequest(f"{member.filename} is encrypted or packed in an unknown way")

    def _small(self, name: str) -> str:
        with _unreadable(), self._archive.open(name) as stream:
            data = stream.read(_SMALL_LIMIT + 1)
            if len(data) > _SMALL_LIMIT:
                raise errors.MalformedRequest(f"{name} is larger than {_SMALL_LIMIT} octets")
            return data.decode()

    def _lines(self, name: str) -> Iterator[bytes]:
        """Yield a member's lines without their newlines; only at its end is its checksum checked."""
        rest = b""
        with _unreadable():
            stream = self._archive.open(name)
        with stream:
            while True:
                with _unreadable():
                    chunk = stream.read(_CHUNK)
                if not chunk:
                    break
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > LINE_LIMIT or any(len(line) > LINE_LIMIT for line in lines):
                    raise errors.MalformedRequest(f"{name} has a line of more than {LINE_LIMIT} octets")
                yield from lines
        if rest:
            raise errors.MalformedRequest(f"{name} ends within a line")


def split_notes(lines: Iterable[bytes]) -> Iterator[str]:
    """Split lines into the signed checkpoints they hold one after another.

    A checkpoint's first blank line ends its text, and its signature lines end where the next origin begins: a
    log of ours has no space in its name, so no origin looks like a signature line.

    Raises:
        errors.MalformedRequest: a note is too long or not UTF-8.
    """
    note: list[bytes] = []
    size = 0
    signatures = False
    for line in lines:
        if signatures and not line.startswith(_SIGNATURE_LINE):
            yield _note(note)
            note, size, signatures = [], 0, False
        signatures = signatures or line == b""
        note.append(line)
        size += len(line) + 1
        if size > NOTE_LIMIT:
            raise errors.MalformedRequest(f"a note is not longer than {NOTE_LIMIT} octets")
    if note:
        yield _note(note)


def _note(lines: list[bytes]) -> str:
    try:
        return b"\n".join([*lines, b""]).decode()
    except UnicodeDecodeError as wrong:
        raise errors.MalformedRequest("a note is not UTF-8") from wrong


@contextmanager
def _unreadable() -> Iterator[None]:
    """Translate what zipfile raises for bytes that are no archive, or a damaged one."""
    try:
        yield
    except errors.Refusal:
        raise
    except (
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        zlib.error,
        EOFError,
        LookupError,
        NotImplementedError,
        OSError,
        OverflowError,
        RuntimeError,
        struct.error,
        ValueError,
    ) as wrong:
        raise errors.MalformedRequest("the file is no bundle, or a damaged one") from wrong
