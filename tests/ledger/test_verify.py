import io
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from birthmark import errors
from birthmark.ledger import entry, verify
from birthmark.ledger.bundle import split_notes
from birthmark.ledger.checkpoint import Checkpoint, VerifierKey, open_note
from birthmark.ledger.verify import Gap, Report, Severity, verdicts, verify_bundle
from tests.ledger.sample import ORIGIN, START, VKEY, Sample, entry_fields, sample, signed
from tests.ledger.test_bundle import members, packed

LOG = sample(40)
EARLIER = [5, 17, 32]
EXPORT = LOG.export(EARLIER)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundles") / "bundle.zip"


def judged(place: Path, data: bytes, vkey: VerifierKey = VKEY, **options: object) -> Report:
    place.write_bytes(data)
    return verify_bundle(place, vkey, **options)  # type: ignore[arg-type]  # arguments in a mapping have one type


def steps(report: Report) -> set[int]:
    return {finding.step for finding in report.findings}


def changed(name: str, change: Callable[[bytes], bytes], export: bytes = EXPORT) -> bytes:
    contents = members(export)
    return packed({**contents, name: change(contents[name])})


def resigned(entries: tuple[bytes, ...], **contents: bytes) -> bytes:
    """What the holder of the log key could export over other entries."""
    log = Sample(entries=entries, records=LOG.records)
    lines = b"".join(data + b"\n" for data in entries)
    new = {**members(EXPORT), "entries.jsonl": lines, "checkpoint": log.checkpoint().encode()}
    return packed({**new, **{name.replace("_", "."): data for name, data in contents.items()}})


def test_a_whole_log_is_found_whole(place: Path) -> None:
    """E5."""
    seen: list[tuple[int, int]] = []
    report = judged(place, EXPORT, progress=lambda done, size: seen.append((done, size)))
    assert report.findings == ()
    assert report.ok
    assert (report.origin, report.size, report.root) == (ORIGIN, 40, LOG.root(40).hex())
    assert report.counts == {"device-admitted": 27, "device-released": 13}
    assert (report.earlier, report.records, report.gaps) == (3, 13, ())
    assert (report.realm, report.environment) == ("acme", "test")
    assert (report.first_at, report.last_at) == ("2026-11-22T10:00:00.000Z", "2026-11-22T10:00:09.750Z")
    assert seen[-1] == (40, 40)


def test_an_empty_log_is_whole(place: Path) -> None:
    report = judged(place, sample(0).export())
    assert (report.ok, report.findings, report.size) == (True, (), 0)


def test_another_key_signed_nothing_here(place: Path) -> None:
    report = judged(place, EXPORT, VerifierKey(ORIGIN, bytes(31) + b"\x09"))
    assert not report.ok
    assert steps(report) == {1}


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_no_octet_of_a_bundle_changes_unnoticed(place: Path, data: st.DataObject) -> None:
    """Changed, dropped, doubled, moved or cut: refused, found, or every member still says the same."""
    octets = bytearray(EXPORT)
    at, length = data.draw(st.integers(0, len(octets) - 1)), data.draw(st.integers(1, 60))
    piece = octets[at : at + length]
    match data.draw(st.sampled_from(["flip", "drop", "double", "cut", "move"])):
        case "flip":
            octets[at] ^= data.draw(st.integers(1, 255))
        case "drop":
            del octets[at : at + length]
        case "double":
            octets[at:at] = piece
        case "cut":
            del octets[at:]
        case "move":
            del octets[at : at + length]
            to = data.draw(st.integers(0, len(octets)))
            octets[to:to] = piece
    assert noticed(place, bytes(octets)) or members(bytes(octets)) == members(EXPORT)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_no_line_of_any_member_changes_unnoticed(place: Path, data: st.DataObject) -> None:
    """The same by somebody who packs the archive again, so that its checksums are right."""
    contents = members(EXPORT)
    name = data.draw(st.sampled_from(list(contents)))
    lines = contents[name].splitlines(keepends=True)
    at, to = (data.draw(st.integers(0, len(lines) - 1)) for _ in range(2))
    match data.draw(st.sampled_from(["octet", "drop", "double", "swap", "cut", "empty"])):
        case "octet":
            where = data.draw(st.integers(0, len(lines[at]) - 1))
            new = lines[at][:where] + data.draw(st.binary(max_size=2)) + lines[at][where + 1 :]
            lines[at] = new
        case "drop":
            del lines[at]
        case "double":
            lines.insert(to, lines[at])
        case "swap":
            lines[at], lines[to] = lines[to], lines[at]
        case "cut":
            del lines[at:]
        case "empty":
            lines = []
    new_contents = {**contents, name: b"".join(lines)}
    if new_contents != contents and not noticed(place, packed(new_contents)):
        # A signature line twice says nothing new; leaving out an earlier checkpoint only shows less.
        assert name in {"checkpoint", "checkpoints"}
        assert statements(new_contents[name]) <= statements(contents[name])
        assert name == "checkpoints" or statements(new_contents[name])


def statements(notes: bytes) -> set[Checkpoint]:
    return {open_note(note, VKEY) for note in split_notes(notes.splitlines())}


def noticed(place: Path, data: bytes) -> bool:
    try:
        return judged(place, data).findings != ()
    except errors.MalformedRequest:
        return True


@pytest.mark.parametrize(
    "forge",
    [
        lambda entries: entries[:7] + entries[8:],
        lambda entries: (*entries[:7], entries[8], entries[7], *entries[9:]),
        lambda entries: (*entries[:7], entries[7].replace(b"acme", b"acne"), *entries[8:]),
        lambda entries: (*entries[:7], entries[3], *entries[7:]),
    ],
)
def test_a_history_rewritten_by_the_holder_of_the_key_contradicts_an_earlier_checkpoint(
    place: Path, forge: Callable[[tuple[bytes, ...]], tuple[bytes, ...]]
) -> None:
    """Whoever kept an earlier checkpoint can tell."""
    data = resigned(forge(LOG.entries), checkpoints=b"")
    kept = judged(place, data, earlier=[LOG.checkpoint(17)])
    assert 5 in steps(kept)
    assert 5 not in steps(judged(place, data))
    assert 5 not in steps(judged(place, data, earlier=[LOG.checkpoint(7)]))


def test_a_log_cut_back_contradicts_an_earlier_checkpoint(place: Path) -> None:
    report = judged(place, sample(30).export(), earlier=[LOG.checkpoint(32)])
    assert steps(report) == {2}
    assert "longer than it is now" in report.findings[0].text


def test_two_checkpoints_of_one_size_show_the_fork(place: Path) -> None:
    fork = signed(Checkpoint(ORIGIN, 17, bytes(32)))
    report = judged(place, EXPORT, earlier=[LOG.checkpoint(17), fork, LOG.checkpoint(0), LOG.checkpoint(40)])
    assert steps(report) == {5}
    assert report.earlier == len(EARLIER) + 3


def test_an_earlier_checkpoint_of_a_stranger_is_a_finding(place: Path) -> None:
    forged = LOG.checkpoint(17).replace("\n17\n", "\n18\n")
    assert steps(judged(place, EXPORT, earlier=[forged])) == {2}
    assert 2 in steps(judged(place, changed("checkpoints", lambda _: forged.encode())))
    with pytest.raises(errors.MalformedRequest):
        judged(place, EXPORT, earlier=["nonsense"])


def test_earlier_checkpoints_in_a_bundle_are_in_order(place: Path) -> None:
    doubled = changed("checkpoints", lambda notes: notes + LOG.checkpoint(32).encode())
    assert steps(judged(place, doubled)) == {2}


def test_entries_that_are_none_are_found_though_they_are_in_the_tree(place: Path) -> None:
    odd = LOG.entries[3].replace(b'"v":1', b'"v": 1')
    report = judged(place, resigned((*LOG.entries[:3], odd, *LOG.entries[4:]), checkpoints=b""))
    assert steps(report) == {3, 7}  # what it said its number was is not believed either


def test_fewer_or_more_entries_than_signed_are_found(place: Path) -> None:
    for change in (
        lambda data: data[: data.rindex(b"\n", 0, -1) + 1],
        lambda data: data + LOG.entries[0] + b"\n",
    ):
        assert 3 in steps(judged(place, changed("entries.jsonl", change)))


def logged(changes: Mapping[int, Mapping[str, object]]) -> bytes:
    return sample(40, changes).export()


def test_a_number_that_left_no_entry_is_a_gap(place: Path) -> None:
    """E5: completeness by station.  Entries 10, 12 and 14 carry numbers 6, 7 and 8 of ST00."""
    report = judged(place, logged({10: {"seq": 30}, 12: {"seq": 5}, 39: {"seq": 21}}))
    assert report.ok, "a gap is a question for somebody, not a proof of anything"
    assert {finding.severity for finding in report.findings} == {Severity.WARNING}
    assert steps(report) == {7}
    assert [verdict for _, _, verdict in verdicts(report)] == ["ok"] * 6 + ["QUESTION", "ok"]
    assert report.gaps == (
        Gap(actor="station:ST00", first=6, last=7),
        Gap(actor="station:ST00", first=21, last=29),
        Gap(actor="station:ST01", first=20, last=20),
    )


def test_an_actor_that_does_not_number_its_requests_has_no_gap(place: Path) -> None:
    fields = [{name: value for name, value in entry_fields(at).items() if name != "seq"} for at in range(2)]
    log = Sample(entries=tuple(entry.encode(item) for item in fields), records=())
    assert judged(place, log.export()).findings == ()


def test_a_first_number_that_is_not_one_is_a_gap(place: Path) -> None:
    report = judged(place, logged({0: {"actor": "station:ST09", "seq": 3}}))
    assert Gap(actor="station:ST09", first=1, last=2) in report.gaps


def test_numbers_that_come_often_or_out_of_order_are_no_gap(place: Path) -> None:
    changes: dict[int, dict[str, object]] = {number: {"actor": "station:ST07"} for number in range(40)}
    for number, seq in enumerate([2, 1, 1, 5, 4, 4, 3, 3, *range(6, 38)]):
        changes[number]["seq"] = seq
    report = judged(place, logged(changes))
    assert report.gaps == ()
    assert report.ok


def test_time_that_runs_back_is_found_and_time_that_stands_still_is_not(place: Path) -> None:
    def at(**offset: float) -> dict[str, object]:
        return {"at": entry.time_text(START + timedelta(**offset))}

    later = {number: at(seconds=60) for number in range(11, 40)}
    assert judged(place, logged({10: at(seconds=60), **later})).ok
    report = judged(place, logged({10: at(seconds=60.001), **later}))
    assert steps(report) == {6}


@pytest.mark.parametrize("change", [{"realm": "other"}, {"environment": "production"}])
def test_an_entry_of_another_realm_or_environment_is_found(place: Path, change: dict[str, object]) -> None:
    """H6: nothing of test in production."""
    assert steps(judged(place, logged({20: change}))) == {6}


def test_a_record_that_differs_from_its_entry_is_found(place: Path) -> None:
    """E5: record and leaf agree."""
    report = judged(
        place, changed("records.jsonl", lambda lines: lines.replace(b"SN00000005", b"SN00000006"))
    )
    assert [finding.text for finding in report.findings] == ["the record of leaf 5 differs from its entry"]
    assert report.records == 12


def test_a_record_that_says_one_where_its_entry_says_true_differs(place: Path) -> None:
    log = sample(3, {2: {"record": {"flag": True}}})
    swap = changed("records.jsonl", lambda lines: lines.replace(b"true", b"1"), log.export())
    assert steps(judged(place, swap)) == {8}


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines[1:],
        lambda lines: lines[:-1],
        lambda lines: [*lines[:4], *lines[5:]],
        lambda lines: [*lines, lines[-1].replace(b'"leaf":38', b'"leaf":39')],
        lambda lines: [lines[0].replace(b'"leaf":2', b'"leaf":1'), *lines],
        lambda lines: [*lines, lines[-1]],
        lambda lines: [*lines, lines[-1].replace(b'"leaf":38', b'"leaf":40')],
        lambda lines: [*lines[:4], b"{}\n", *lines[4:]],
        lambda lines: [*lines[:4], b"nonsense\n", *lines[4:]],
        lambda lines: [],
    ],
)
def test_a_record_too_few_or_too_many_is_found(
    place: Path, change: Callable[[list[bytes]], list[bytes]]
) -> None:
    data = changed("records.jsonl", lambda text: b"".join(change(text.splitlines(keepends=True))))
    assert steps(judged(place, data)) == {8}


def test_a_record_repeated_for_ever_is_not_read_for_ever(place: Path) -> None:
    data = changed("records.jsonl", lambda lines: lines + lines.splitlines(keepends=True)[-1] * 10_000)
    report = judged(place, data)
    assert [finding.text for finding in report.findings] == [
        "the record after that of leaf 38 is none, or out of order"
    ]


@pytest.mark.parametrize("record", [None, "text", {"leaf": 2}])
def test_a_released_device_without_a_proper_record_is_found(place: Path, record: object) -> None:
    log = sample(3, {2: {"record": record}})
    data = replace(log, records=()).export()
    assert steps(judged(place, data)) == {8}


def test_what_the_bundle_says_about_itself_is_not_believed(place: Path) -> None:
    other = str(VerifierKey(ORIGIN, bytes(31) + b"\x09")).encode() + b"\n"
    assert steps(judged(place, changed("vkey", lambda _: other))) == {1}
    report = judged(place, changed("README.txt", lambda text: text + b"Call this number instead.\n"))
    assert report.ok
    assert [finding.severity for finding in report.findings] == [Severity.WARNING]


def test_a_million_of_the_same_finding_are_counted_not_listed(place: Path) -> None:
    report = judged(place, logged({number: {"realm": "other"} for number in range(1, 40)}))
    assert len(report.findings) == 21
    assert report.findings[-1].text == "and 19 more of this step"


def test_the_command_says_what_it_found_and_its_status_says_it_shortly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """K3: exit codes a script can use."""

    def run(*arguments: object) -> tuple[int, str, str]:
        status = verify.main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    (tmp_path / "vkey").write_text(f"{VKEY}\n")
    (tmp_path / "kept").write_text(LOG.checkpoint(17) + LOG.checkpoint(33))
    (tmp_path / "fork").write_text(signed(Checkpoint(ORIGIN, 17, bytes(32))))
    (tmp_path / "stranger").write_text(str(VerifierKey(ORIGIN, bytes(31) + b"\x09")))
    (tmp_path / "good.zip").write_bytes(EXPORT)
    (tmp_path / "bad.zip").write_bytes(changed("entries.jsonl", lambda text: text.replace(b"acme", b"acne")))
    options = ("--vkey", tmp_path / "vkey")
    good = run(tmp_path / "good.zip", *options, "--checkpoint", tmp_path / "kept")
    assert (good[0], good[2]) == (0, "")
    assert "agreeing 5 earlier checkpoints, 13 records" in good[1]
    assert good[1].endswith("\nok\n")
    assert all(f"{step}. {claim}: ok" in good[1] for step, claim in verify.STEPS.items())

    bad = run(tmp_path / "bad.zip", *options)
    assert bad[0] == 1
    assert "4. the root over the entries is the root in the checkpoint: FAILED" in bad[1]
    assert bad[1].endswith("\nNOT OK\n")

    stranger = run(tmp_path / "good.zip", "--vkey", tmp_path / "stranger")
    assert stranger[0] == 1
    assert "1. the checkpoint is signed by the log: FAILED\n2." in stranger[1]
    assert stranger[1].count(": not tried") == 7

    report = json.loads(run(tmp_path / "good.zip", *options, "--json", "--checkpoint", tmp_path / "fork")[1])
    assert (report["ok"], report["size"], report["findings"][0]["step"]) == (False, 40, 5)

    for wrong in (
        (tmp_path / "vkey", *options),
        (tmp_path / "missing.zip", *options),
        (tmp_path / "good.zip", "--vkey", tmp_path / "good.zip"),
        (tmp_path / "good.zip", *options, "--checkpoint", tmp_path / "vkey"),
        (tmp_path / "good.zip", *options, "--checkpoint", tmp_path / "missing"),
    ):
        status, printed, complaint = run(*wrong)
        assert (status, printed) == (65, "")
        assert complaint.startswith("cannot be read: ")


def test_the_command_shows_progress_on_a_long_bundle(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(verify, "_PROGRESS_EVERY", 16)
    place.write_bytes(EXPORT)
    key = place.with_name("vkey")
    key.write_text(str(VKEY))
    assert verify.main([str(place), "--vkey", str(key), "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "40 of 40 entries\n"
    assert json.loads(captured.out)["ok"] is True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert verify.main([str(place), "--vkey", str(key)]) == 0
    assert terminal.getvalue() == "\r16 of 40 entries\r32 of 40 entries\r40 of 40 entries\n"


def test_the_verifier_brings_nothing_else_of_ours() -> None:
    """E5: an auditor can carry it away."""
    code = (
        "import sys, birthmark.ledger.verify; print(*(m for m in sys.modules if m.startswith('birthmark')))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(loaded.stdout.split()) == {
        "birthmark",
        "birthmark.errors",
        "birthmark.ledger",
        *(f"birthmark.ledger.{name}" for name in ("bundle", "checkpoint", "entry", "merkle", "verify")),
    }


def test_the_verifier_works_where_only_it_was_carried(tmp_path: Path) -> None:
    """E5: the ledger folder and errors.py are all it takes."""
    source = Path(verify.__file__).parents[1]
    (tmp_path / "birthmark" / "ledger").mkdir(parents=True)
    for path in (source / "__init__.py", source / "errors.py", *(source / "ledger").glob("*.py")):
        (tmp_path / "birthmark" / path.relative_to(source)).write_bytes(path.read_bytes())
    (tmp_path / "bundle.zip").write_bytes(EXPORT)
    command = [sys.executable, "-W", "error", "-m", "birthmark.ledger.verify", "bundle.zip", "--vkey", "vkey"]
    for origin, status in ((VKEY.name, 0), ("another.example", 1)):
        (tmp_path / "vkey").write_text(str(VerifierKey(origin, VKEY.public)))
        carried = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (carried.returncode, carried.stderr) == (status, "")


def test_a_bundle_may_hold_a_checkpoint_for_every_size(place: Path) -> None:
    report = judged(place, LOG.export(list(range(41))))
    assert (report.ok, report.earlier) == (True, 41)


def test_a_file_that_is_no_bundle_is_malformed(place: Path) -> None:
    for data in (b"", b"PK", io.BytesIO(EXPORT).read(100), EXPORT[:-1]):
        with pytest.raises(errors.MalformedRequest):
            judged(place, data)
