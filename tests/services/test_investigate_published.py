"""What relying parties could know of a revocation, and since which CRL (SPEC E6, F2)."""

from datetime import datetime
from pathlib import Path

from birthmark.floor.devices import Attempt, Device
from birthmark.floor.recalls import RecallAction, SelectionKind
from birthmark.pki import crl
from birthmark.services.chronicle_states import CertificateState
from birthmark.services.investigate import history, subject_of
from birthmark.services.log_reading import log_of
from tests.services.test_publish import publisher
from tests.support.realm import Line
from tests.support.recalls import people


def listed(line: Line, serial: str, at: datetime | None = None) -> str | None:
    copy = log_of(line.service.store.log, line.realm)
    state = history(copy, subject_of(serial), at=at).state
    assert isinstance(state, CertificateState)
    return state.listed


def test_the_first_published_crl_that_has_a_revocation_is_named(line: Line, tmp_path: Path) -> None:
    made, www, publish = people(line), tmp_path / "www", publisher(line, tmp_path / "www")
    line.make("A1")
    publish.cycle()
    serial = line.the(Attempt, line.the(Device, "serial:A1").attempt).certificate
    line.clock.turn(minutes=1)
    made.recall(SelectionKind.DEVICE, "serial:A1", RecallAction.SUSPEND)
    suspended = line.clock.now()
    assert listed(line, serial) is None
    line.clock.turn(minutes=1)
    (built,) = (one for one in publish.cycle().built if one.authority == "issuing-1")
    first = listed(line, serial)
    assert first is not None
    assert first.startswith(f"CRL {built.number} of issuing-1/all, thisUpdate 2026-11-22T10:02:00.000Z")
    octets = (www / built.path).read_bytes()
    assert crl.read_crl(octets).number == built.number
    line.clock.turn(hours=13)
    made.recall(SelectionKind.DEVICE, "serial:A1")
    assert listed(line, serial) is None  # that it is revoked, and not suspended, no list says yet
    line.clock.turn(minutes=1)
    publish.cycle()
    second = listed(line, serial)
    assert second is not None
    assert second != first
    assert listed(line, serial, suspended) is None


def test_a_cycle_that_makes_nothing_leaves_no_entry(small_line: Line, tmp_path: Path) -> None:
    publish = publisher(small_line, tmp_path / "www")
    publish.cycle()
    size = small_line.size()
    small_line.clock.turn(minutes=1)
    assert publish.cycle().built == ()
    assert small_line.size() == size
