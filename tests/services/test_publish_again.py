"""Published files that are gone, damaged or put back are published again (SPEC F2, F4)."""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from birthmark import errors
from birthmark.floor.locations import DELTA
from birthmark.ledger.checkpoint import open_note
from birthmark.pki import crl
from birthmark.pki.revocation import ReasonCode
from birthmark.services.check import check
from birthmark.services.publish import Publish
from tests.services.test_publish import listed, made, mark, number, publisher, root_crl
from tests.support.realm import Line

FULL = "crl/issuing-1.crl"


def _remove(file: Path) -> None:
    file.unlink()


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _flip_a_signatures_bit(file: Path) -> None:
    octets = bytearray(file.read_bytes())
    octets[-1] ^= 1
    file.write_bytes(octets)


def _raise_its_number(file: Path) -> None:
    octets = file.read_bytes()
    was = crl.read_crl(octets).number.to_bytes(7, "big")
    assert octets.count(was) == 1
    file.write_bytes(octets.replace(was, b"\x7f" + was[1:]))


HARM = [_remove, _truncate, _empty, _flip_a_signatures_bit, _raise_its_number]


@pytest.mark.parametrize("harm", HARM)
def test_a_crl_that_is_gone_or_damaged_is_told_and_made_anew(
    small_line: Line, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    """SPEC F2: the index alone is no proof that relying parties find the list."""
    line, www = small_line, tmp_path / "www"
    certificate = made(line, "A1")
    mark(line, certificate, ReasonCode.KEY_COMPROMISE)
    publisher(line, www).cycle()
    before = number(www, FULL)
    line.clock.turn(minutes=1)
    harm(www / FULL)
    (alarm,) = publisher(line, www).check().alarms
    assert alarm.kind == "crl-missing"
    assert FULL in alarm.detail
    assert "run 'birthmark publish'" in alarm.detail
    report = publisher(line, www).cycle()
    assert ([one.path for one in report.built], report.alarms) == ([FULL], ())
    assert number(www, FULL) > before
    assert set(listed(www, FULL)) == {int(certificate.serial, 16)}
    assert publisher(line, www).cycle().built == ()


@pytest.mark.parametrize("harm", [_remove, _truncate, _raise_its_number])
def test_who_watches_sees_it_too(small_line: Line, tmp_path: Path, harm: Callable[[Path], None]) -> None:
    """SPEC F2: one process that goes on for ever."""
    line, www = small_line, tmp_path / "www"
    watching = publisher(line, www)
    watching.cycle()
    watching.cycle()
    harm(www / FULL)
    line.clock.turn(minutes=1)
    assert [one.path for one in watching.cycle().built] == [FULL]
    assert watching.check().alarms == ()


def test_an_older_crl_that_was_put_back_is_replaced(small_line: Line, tmp_path: Path) -> None:
    """SPEC F2: it is genuine and current, and lacks what was revoked since."""
    line, www = small_line, tmp_path / "www"
    publisher(line, www).cycle()
    older = (www / FULL).read_bytes()
    certificate = made(line, "A1")
    mark(line, certificate, ReasonCode.KEY_COMPROMISE)
    line.clock.turn(minutes=1)
    publisher(line, www).cycle()
    newer = number(www, FULL)
    (www / FULL).write_bytes(older)
    line.clock.turn(minutes=1)
    assert len(publisher(line, www).cycle().built) == 1
    assert number(www, FULL) > newer
    assert set(listed(www, FULL)) == {int(certificate.serial, 16)}


@pytest.mark.parametrize("harm", [_remove, _empty])
def test_a_crl_that_is_gone_gets_no_smaller_number_from_a_clock_that_went_back(
    small_line: Line, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    """SPEC F2: the index remembers the number that relying parties saw."""
    line, www = small_line, tmp_path / "www"
    publisher(line, www).cycle()
    harm(www / FULL)
    line.clock.turn(seconds=-5)
    report = publisher(line, www).cycle()
    assert [alarm.kind for alarm in report.alarms] == ["crl-failed", "crl-missing"]
    assert "the clock has gone back" in report.alarms[0].detail
    assert report.built == ()


def test_a_delta_that_is_gone_is_made_anew(small_line: Line, tmp_path: Path) -> None:
    """SPEC F2."""
    line, www = small_line, tmp_path / "www"

    def publish() -> Publish:
        return publisher(line, www, delta=timedelta(hours=4))

    publish().cycle()
    (www / "crl/issuing-1.delta.crl").unlink()
    line.clock.turn(minutes=1)
    assert [one.partition for one in publish().cycle().built] == [DELTA]
    assert publish().check().alarms == ()


def test_an_offline_authoritys_crl_that_is_gone_can_be_taken_in_again_and_no_older_one(
    small_line: Line, tmp_path: Path
) -> None:
    """SPEC A3, F2."""
    line, www = small_line, tmp_path / "www"
    older = root_crl(line)
    line.clock.turn(minutes=1)
    newer = root_crl(line)
    publish = publisher(line, www)
    publish.take_in(newer)
    (www / "crl/root.crl").unlink()
    with pytest.raises(errors.PolicyRefused, match="the list is an old one"):
        publish.take_in(older)
    publish.take_in(newer)
    assert (www / "crl/root.crl").read_bytes() == newer


def test_certificates_tiles_and_checkpoint_that_are_gone_are_published_again(
    small_line: Line, tmp_path: Path
) -> None:
    """SPEC F4: what is there stays untouched; every file comes back as it was."""
    line, www = small_line, tmp_path / "www"
    for index in range(140):
        line.make(f"D{index}")
    assert line.size() > 256
    publisher(line, www, log_entries=True).cycle()
    files = {
        file: file.read_bytes() for file in www.rglob("*") if file.is_file() and ".new" not in file.parts
    }
    log = [file for file in files if file.is_relative_to(www / "log")]
    paths = {str(file.relative_to(www / "log")).partition(".p/")[0] for file in log}
    full = line.size() // 256
    assert paths == {
        "checkpoint",
        "tile/1/000",
        *(f"tile/{level}/{n:03d}" for level in ("0", "entries") for n in range(full + 1)),
    }
    for gone in [*log, www / "ca/issuing-1.cer"]:
        kept = {file: file.stat().st_ino for file in log if file not in {gone, www / "log/checkpoint"}}
        gone.unlink()
        publisher(line, www, log_entries=True).cycle()
        assert gone.read_bytes() == files[gone]
        assert {file: file.stat().st_ino for file in kept} == kept
    checkpoint = open_note((www / "log/checkpoint").read_text(), line.vkey)
    assert checkpoint.size == line.size() == json.loads((www / "index.json").read_text())["log_size"]


def test_who_watches_publishes_a_log_again_whose_checkpoint_is_gone(small_line: Line, tmp_path: Path) -> None:
    """SPEC F4: whoever took that away may have taken tiles, too."""
    line, www = small_line, tmp_path / "www"
    watching = publisher(line, www)
    watching.cycle()
    log = {file: file.read_bytes() for file in (www / "log").rglob("*") if file.is_file()}
    for file in log:
        file.unlink()
    watching.cycle()
    assert {file: file.read_bytes() for file in log} == log


def test_whoever_monitors_by_a_wrong_clock_leaves_no_entry(small_line: Line, tmp_path: Path) -> None:
    """SPEC E3, F2: an entry dates all later ones, so a check is told and not recorded."""
    line, www = small_line, tmp_path / "www"
    publish = publisher(line, www)
    publish.cycle()
    before = line.size()
    line.clock.turn(hours=24 * 365)
    assert [alarm.kind for alarm in publish.check().alarms] == ["crl-late"]
    assert line.size() == before
    line.clock.turn(hours=-24 * 365)
    (www / FULL).unlink()
    (www / FULL).mkdir()  # it cannot be replaced
    line.clock.turn(minutes=1)
    assert "crl-missing" in {alarm.kind for alarm in publish.cycle().alarms}
    assert line.size() > before
    assert check(line.service.store, line.service.store.log, line.realm).ok
