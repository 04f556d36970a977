import io
import subprocess
import sys
import textwrap
import zipfile
from base64 import b64encode
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from birthmark import errors
from birthmark.ledger import bundle
from birthmark.ledger.bundle import Bundle
from birthmark.ledger.merkle import EMPTY_ROOT
from tests.ledger.sample import VKEY, sample
from tests.support.programs import need

LOG = sample(40)
EXPORT = LOG.export(earlier=[5, 17, 32])


def members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(contents: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in contents.items():
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=method)
    return out.getvalue()


def test_a_bundle_reads_back() -> None:
    with Bundle(io.BytesIO(EXPORT)) as read:
        assert read.vkey == f"{VKEY}\n"
        assert read.checkpoint == LOG.checkpoint()
        assert list(read.earlier()) == [LOG.checkpoint(size) for size in (5, 17, 32)]
        assert tuple(read.entries()) == LOG.entries
        assert list(read.records()) == [bundle.record_line(leaf, record) for leaf, record in LOG.records]


def test_an_empty_log_can_be_exported() -> None:
    with Bundle(io.BytesIO(sample(0).export())) as read:
        assert not list(read.entries()) + list(read.records()) + list(read.earlier())


def test_the_same_log_makes_the_same_bundle_also_into_a_pipe() -> None:
    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.written = b""

        def writable(self) -> bool:
            return True

        def write(self, data: object) -> int:
            octets = bytes(data)  # type: ignore[call-overload]  # JSON, as the test knows it
            self.written += octets
            return len(octets)

    pipe = Pipe()
    bundle.write_bundle(
        pipe,  # type: ignore[arg-type]  # not seekable: all the methods it has are needed
        vkey=VKEY,
        checkpoint=LOG.checkpoint(),
        entries=LOG.entries,
        records=LOG.records,
        earlier=[LOG.checkpoint(size) for size in (5, 17, 32)],
    )
    assert LOG.export(earlier=[5, 17, 32]) == EXPORT
    assert members(pipe.written) == members(EXPORT)


def test_entries_that_do_not_lead_to_the_checkpoint_are_not_exported() -> None:
    for entries in (LOG.entries[:-1], (*LOG.entries, LOG.entries[0]), LOG.entries[::-1]):
        with pytest.raises(errors.IntegrityFailure):
            bundle.write_bundle(
                io.BytesIO(), vkey=VKEY, checkpoint=LOG.checkpoint(), entries=entries, records=LOG.records
            )


def test_an_entry_of_two_lines_is_not_exported() -> None:
    with pytest.raises(errors.MalformedRequest):
        bundle.write_bundle(
            io.BytesIO(), vkey=VKEY, checkpoint=LOG.checkpoint(), entries=[b"{}\n{}"], records=[]
        )


def test_the_readme_computes_the_root_without_our_program(tmp_path: Path) -> None:
    """E5: the instructions in the bundle are run as they stand."""
    contents = members(EXPORT)
    code = bundle.README.split("    import base64")[1].split("\n\nWithout it")[0]
    for size, entries in ((40, contents["entries.jsonl"]), (0, b"")):
        (tmp_path / "entries.jsonl").write_bytes(entries)
        (tmp_path / "root.py").write_text(textwrap.dedent("    import base64" + code))
        run = subprocess.run([sys.executable, "root.py"], cwd=tmp_path, capture_output=True, check=True)
        printed = run.stdout.decode().split()
        if size:
            assert printed == contents["checkpoint"].decode().split("\n")[1:3]
        else:
            assert printed == ["0", b64encode(EMPTY_ROOT).decode()]


def test_the_readme_checks_the_signature_with_openssl(tmp_path: Path) -> None:
    """E5: the instructions in the bundle are run as they stand, and refuse another root."""
    need("openssl")
    contents = members(EXPORT)
    commands = textwrap.dedent("    (printf" + bundle.README.split("    (printf")[1])
    for checkpoint, status in (
        (contents["checkpoint"], 0),
        (contents["checkpoint"].replace(b"\n40\n", b"\n41\n"), 1),
    ):
        (tmp_path / "vkey").write_bytes(contents["vkey"])
        (tmp_path / "checkpoint").write_bytes(checkpoint)
        run = subprocess.run([need("bash"), "-c", commands], cwd=tmp_path, capture_output=True, check=False)
        assert run.returncode == status, run.stderr


def test_dropped_added_renamed_doubled_or_reordered_members_are_refused() -> None:
    contents = members(EXPORT)
    names = list(contents)
    for name in names:
        without = {key: value for key, value in contents.items() if key != name}
        renamed = {(f"../{key}" if key == name else key): value for key, value in contents.items()}
        for wrong in (without, renamed, {**without, name: contents[name]} if name != names[-1] else without):
            with pytest.raises(errors.MalformedRequest):
                Bundle(io.BytesIO(packed(wrong)))
    for extra in ("more.txt", "/etc/passwd", "entries.jsonl/", "x/../vkey"):
        with pytest.raises(errors.MalformedRequest):
            Bundle(io.BytesIO(packed({**contents, extra: b""})))
    out = io.BytesIO(EXPORT)
    with zipfile.ZipFile(out, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("vkey", b"another")
    with pytest.raises(errors.MalformedRequest):
        Bundle(out)


def test_something_before_or_behind_the_archive_is_refused() -> None:
    commented = io.BytesIO(EXPORT)
    with zipfile.ZipFile(commented, "a") as archive:
        archive.comment = b"hello"
    for data in (b"#!/bin/sh\n" + EXPORT, commented.getvalue()):
        with pytest.raises(errors.MalformedRequest):
            Bundle(io.BytesIO(data))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_ways_of_packing_are_refused(method: int) -> None:
    with pytest.raises(errors.MalformedRequest):
        Bundle(io.BytesIO(packed(members(EXPORT), method)))


def test_a_bundle_may_be_stored_unpacked() -> None:
    with Bundle(io.BytesIO(packed(members(EXPORT), zipfile.ZIP_STORED))) as read:
        assert tuple(read.entries()) == LOG.entries


@pytest.mark.parametrize("name", ["README.txt", "vkey", "checkpoint"])
def test_a_small_member_that_unpacks_to_much_is_refused(name: str) -> None:
    with pytest.raises(errors.MalformedRequest, match="larger"):
        Bundle(io.BytesIO(packed({**members(EXPORT), name: b"x" * 50_000_000})))


@pytest.mark.parametrize("name", ["checkpoints", "entries.jsonl", "records.jsonl"])
def test_a_line_that_unpacks_to_much_is_refused_before_it_is_held(name: str) -> None:
    data = packed({**members(EXPORT), name: b"x" * 50_000_000 + b"\n"})
    with Bundle(io.BytesIO(data)) as read, pytest.raises(errors.MalformedRequest, match="more than"):
        list(
            {"checkpoints": read.earlier, "entries.jsonl": read.entries, "records.jsonl": read.records}[
                name
            ]()
        )


def test_a_note_of_many_lines_is_refused_before_it_is_held() -> None:
    data = packed({**members(EXPORT), "checkpoints": b"line\n" * 1_000_000})
    with Bundle(io.BytesIO(data)) as read, pytest.raises(errors.MalformedRequest, match="longer"):
        list(read.earlier())
    with pytest.raises(errors.MalformedRequest, match="UTF-8"):
        list(bundle.split_notes([b"\xff"]))


def test_a_log_larger_than_what_is_written_at_once_reads_back() -> None:
    large = sample(40, {number: {"filler": "x" * 60_000} for number in range(40)})
    with Bundle(io.BytesIO(large.export())) as read:
        assert tuple(read.entries()) == large.entries


def test_a_member_that_ends_within_a_line_is_refused() -> None:
    contents = members(EXPORT)
    cut = packed({**contents, "entries.jsonl": contents["entries.jsonl"][:-1]})
    with Bundle(io.BytesIO(cut)) as read, pytest.raises(errors.MalformedRequest, match="within a line"):
        list(read.entries())


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_any_octets_are_a_bundle_or_refused(data: st.DataObject) -> None:
    octets = bytearray(EXPORT)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(octets)))
        octets[at : at + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=40))
    try:
        with Bundle(io.BytesIO(bytes(octets))) as read:
            for stream in (read.earlier(), read.entries(), read.records()):
                list(stream)
    except errors.MalformedRequest:
        pass
