"""The check holds journals, owners and key sets of elements against the log (SPEC D5, E5, E8)."""

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from birthmark import errors
from birthmark.element.apdu import relay
from birthmark.element.card_faults import ElementChannel, Fault, FaultKind
from birthmark.element.card_keys import Dishonesty
from birthmark.element.diversification import ContextSource
from birthmark.element.injection import KeySetPhase
from birthmark.floor.devices import Device, DeviceEvent, DeviceState
from birthmark.floor.elements import ElementJournal, ElementUse
from birthmark.ledger.bundle import write_bundle
from birthmark.ledger.entry import canonical, encode
from birthmark.ledger.verify import verify_bundle
from birthmark.services.check import Report, check
from birthmark.services.testimony import Said
from tests.support.elements import ElementLine, chip, element_profile, make_element_line
from tests.support.realm import Line, open_service, tamper, workpiece

Statement = tuple[str, Sequence[Any]]


def busy(elements: ElementLine) -> None:
    """Leave elements at every phase: clean, torn, dead, reworked, exchanged, lying, under way, a twin."""

    def channel(number: int, *faults: Fault) -> ElementChannel:
        return ElementChannel(chip(elements.profile, number).element, faults)

    dead, torn = (Fault(kind=kind, at=4) for kind in (FaultKind.DEAD, FaultKind.TEAR_AFTER))
    elements.provision(workpiece("CLEAN"), channel(1))
    elements.provision(workpiece("TORN"), channel(2, torn))
    with pytest.raises(errors.ProofFailed, match="broke off"):
        elements.provision(workpiece("DEAD"), channel(3, dead))
    reworked, mended = workpiece("REWORKED"), chip(elements.profile, 4)
    with pytest.raises(errors.ProofFailed, match="broke off"):
        elements.provision(reworked, ElementChannel(mended.element, [dead]))
    elements.line.dispose(DeviceEvent.REWORK, reworked.id)
    elements.provision(reworked, ElementChannel(mended.element))
    exchanged = workpiece("EXCHANGED")
    issued = elements.issue(exchanged)
    with pytest.raises(errors.Interrupted):
        elements.attempt(exchanged, issued, channel(5, torn))
    with pytest.raises(errors.ProofFailed):
        elements.attempt(exchanged, replace(issued, element=None), channel(6))
    lying = chip(elements.profile, 7, dishonesty=Dishonesty.parse("lack:mac"))
    with pytest.raises(errors.ProofFailed):
        elements.provision(workpiece("LYING"), ElementChannel(lying.element))
    under_way = elements.issue(workpiece("UNDERWAY"))
    assert under_way.element is not None
    elements.inject(under_way.attempt, under_way.element.step, relay(channel(8), under_way.element.batch))
    with pytest.raises(errors.PolicyRefused, match="already belongs to serial:CLEAN"):
        elements.provision(workpiece("TWIN"), channel(1))
    scratched = elements.issue(workpiece("SCRATCHED"))
    elements.line.dispose(DeviceEvent.HOLD, scratched.device)
    elements.line.open_run("PLAIN")
    elements.line.make("WITHOUT", run="PLAIN")


@pytest.fixture(scope="module")
def busy_line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    """A line with something of everything, to be copied."""
    folder = tmp_path_factory.mktemp("busy")
    elements = make_element_line(folder, f"sqlite:///{folder / 'line.sqlite'}")
    busy(elements)
    yield elements.line
    elements.line.close()


def copy_of(line: Line, path: Path) -> Line:
    with closing(sqlite3.connect(line.url.removeprefix("sqlite:///"))) as db:
        db.execute("VACUUM INTO ?", (str(path),))
    url = f"sqlite:///{path}"
    return Line(url=url, keys=line.keys, clock=line.clock, service=open_service(url, line.keys, line.clock))


def checked(line: Line) -> Report:
    store = line.another_service().store
    return check(store, store.log, line.realm)


def test_a_line_with_tears_holds_and_rework_has_no_finding(tmp_path: Path, database_url: str) -> None:
    elements = make_element_line(tmp_path, database_url)
    busy(elements)
    report = checked(elements.line)
    assert report.findings == []
    assert report.counts["elements confirmed"] == 3
    assert report.counts["elements intended"] == 4
    assert {entry["kind"] for entry in elements.line.entries()} >= {"element-step", "element-interrupted"}
    held = [device for device in elements.service.store.scan(Device) if device.state is DeviceState.HELD]
    assert len(held) == 4
    elements.line.close()


def test_elements_whose_keys_follow_from_the_device_have_no_owner_to_keep(tmp_path: Path) -> None:
    elements = make_element_line(
        tmp_path,
        f"sqlite:///{tmp_path / 'line.sqlite'}",
        profile=element_profile(context=ContextSource.HARDWARE_ID),
    )
    elements.provision(workpiece("D1"), ElementChannel(chip(elements.profile, 1).element))
    assert list(elements.service.store.scan(ElementUse)) == []
    assert checked(elements.line).findings == []
    elements.line.close()


# --- rows


def journal(change: str, device: str = "CLEAN") -> Callable[[Line], list[Statement]]:
    return lambda _line: [(f"UPDATE element_journal SET {change} WHERE device = 'serial:{device}'", ())]  # noqa: S608  # names of our own tables


def sql(*statements: str) -> Callable[[Line], list[Statement]]:
    return lambda _line: [(statement, ()) for statement in statements]


TAMPERINGS: dict[str, tuple[Callable[[Line], list[Statement]], str]] = {
    "a phase": (
        journal("phase = 'confirmed'", "DEAD"),
        "the element of serial:DEAD: its phase is confirmed, the log says intended",
    ),
    "a phase that is none": (
        sql(
            "PRAGMA ignore_check_constraints = ON",
            "UPDATE element_journal SET phase = 'proved' WHERE device = 'serial:CLEAN'",
        ),
        "a stored ElementJournal cannot be read",
    ),
    "the attempt": (journal("attempt = 'none'"), "the element of serial:CLEAN: its attempt is none"),
    "the profile": (journal("element = 'other'"), "its element is other, the log says chip"),
    "the master key": (journal("master = 'maker'"), "its master is maker, the log says ours"),
    "the diversification data": (
        journal("kdd = x'00010203040506070809'"),
        "its key_diversification_data is 00010203040506070809, the log says",
    ),
    "a counter of the initial set": (journal("initial_counter = 900"), "its initial_counter is 900"),
    "a counter of the final set": (journal("final_counter = -1"), "its final_counter is -1"),
    "authentications forgotten": (journal("failures = 0", "UNDERWAY"), "its failures is 0, the log says 1"),
    "tries forgotten": (journal("tries = 0", "DEAD"), "its tries is 0, the log says 5"),
    "a reason": (journal("reason = 'dirty'", "DEAD"), "the element of serial:DEAD: its reason is dirty"),
    "a journal removed": (
        sql("DELETE FROM element_journal WHERE device = 'serial:TORN'"),
        "the log speaks of the element of serial:TORN; it has no journal",
    ),
    "a journal added": (
        sql(
            "INSERT INTO element_journal SELECT 'serial:GHOST', attempt, element, master, phase, kdd,"
            " initial_counter, final_counter, failures, tries, reason FROM element_journal"
            " WHERE device = 'serial:CLEAN'"
        ),
        "the journal of serial:GHOST's element has no entry in the log",
    ),
    "an element given to another device": (
        sql("UPDATE element_use SET device = 'serial:TWIN' WHERE device = 'serial:CLEAN'"),
        "is kept as serial:TWIN's, the log says serial:CLEAN's",
    ),
    "an element taken from nobody": (
        sql("INSERT INTO element_use VALUES ('ours/00010203040506070809', 'serial:CLEAN')"),
        "element ours/00010203040506070809 is kept as serial:CLEAN's, the log says None's",
    ),
    "an element free for another device": (
        sql("DELETE FROM element_use WHERE device = 'serial:UNDERWAY'"),
        "is not kept as serial:UNDERWAY's: it is gone",
    ),
}


@pytest.mark.parametrize("case", TAMPERINGS)
def test_a_row_that_is_not_what_the_log_says_is_found(tmp_path: Path, busy_line: Line, case: str) -> None:
    line = copy_of(busy_line, tmp_path / "tampered.sqlite")
    statements, finding = TAMPERINGS[case]
    tamper(line.url, *statements(line))
    found = checked(line).findings
    assert any(finding in one for one in found), found
    line.close()


# --- entries: a fault of ours, or somebody who holds the log's key


def entry_of(entries: Sequence[Mapping[str, Any]], kind: str, device: str) -> tuple[int, dict[str, Any]]:
    """Return the first entry of a kind about a device, to be changed, and its index."""
    index = next(
        index
        for index, entry in enumerate(entries)
        if (entry["kind"], entry.get("device")) == (kind, f"serial:{device}")
    )
    return index, json.loads(json.dumps(entries[index]))


def without_key_set(record: dict[str, Any]) -> None:
    del record["key_set"]


def with_another(*path: str) -> Callable[[dict[str, Any]], None]:
    """Change one text of a record's key set."""

    def change(record: dict[str, Any]) -> None:
        inner = record["key_set"]
        for name in path[:-1]:
            inner = inner[name]
        inner[path[-1]] = "other"

    return change


RECORDS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "no key set": (without_key_set, "its record does not speak of a key set, and the licence of run R1"),
    "another profile": (with_another("profile"), "the profile of its key set is not the one of run R1"),
    "another profile's hash": (
        with_another("profile_sha256"),
        "the profile_sha256 of its key set is not the one of run R1",
    ),
    "another master key": (with_another("master"), "the master of its key set is not the one of run R1"),
    "another scheme": (with_another("scheme"), "the scheme of its key set is not the one of run R1"),
    "a key set nobody proved": (with_another("journal", "phase"), "is not confirmed"),
    "a key set of another element": (
        with_another("key_diversification_data"),
        "the key set of its record is not confirmed, or another element's",
    ),
    "a journal of another attempt": (with_another("journal", "attempt"), "its journal is of another attempt"),
    "a journal of another master key": (
        with_another("journal", "master"),
        "the master of serial:CLEAN's element changes",
    ),
    "a tpm": (lambda record: record.update(tpm={}), "it speaks of a tpm, and the licence of run R1"),
}


@pytest.mark.parametrize("case", RECORDS)
def test_a_release_without_the_key_set_its_run_asks_for_is_found(
    tmp_path: Path, busy_line: Line, case: str
) -> None:
    """The row says the same as the entry: only the licence tells."""
    line = copy_of(busy_line, tmp_path / "tampered.sqlite")
    change, finding = RECORDS[case]
    index, entry = entry_of(line.entries(), "device-released", "CLEAN")
    change(entry["record"])
    further = {name: entry["record"][name] for name in ("key_set", "tpm") if name in entry["record"]}
    tamper(
        line.url,
        ("UPDATE leaf SET entry = %s WHERE idx = %s", (encode(entry), index)),
        (
            "UPDATE identity_record SET further = %s WHERE leaf = %s",
            (canonical(further).decode() if further else "", index),
        ),
    )
    found = checked(line).findings
    assert any(f"entry {index} is no device-released: " in one and finding in one for one in found), found
    line.close()


def test_a_key_set_of_a_run_that_asks_for_none_is_found(tmp_path: Path, busy_line: Line) -> None:
    line = copy_of(busy_line, tmp_path / "tampered.sqlite")
    _, other = entry_of(line.entries(), "device-released", "CLEAN")
    index, entry = entry_of(line.entries(), "device-released", "WITHOUT")
    entry["record"]["key_set"] = other["record"]["key_set"]
    tamper(line.url, ("UPDATE leaf SET entry = %s WHERE idx = %s", (encode(entry), index)))
    found = checked(line).findings
    assert any("the licence of run PLAIN asks for none" in one for one in found), found
    line.close()


def refused(entries: Sequence[Mapping[str, Any]], bent: Mapping[str, Any], complaint: str) -> None:
    """Expect that an entry cannot stand where it is put: after all of ``entries``."""
    said = Said()
    for index, entry in enumerate(entries):
        said.take(index, entry)
    with pytest.raises(errors.MalformedRequest, match=complaint):
        said.take(len(entries), bent)


def test_entries_that_contradict_what_was_said_of_an_element_are_refused(busy_line: Line) -> None:
    entries = busy_line.entries()
    _, step = entry_of(entries, "element-step", "CLEAN")
    _, held = entry_of(entries, "device-held", "LYING")
    _, other = entry_of(entries, "element-step", "TORN")
    for bent, complaint in (
        ({**step, "journal": {**step["journal"], "element": "other"}}, "the element of serial:CLEAN's"),
        (
            {**step, "journal": other["journal"] | {"attempt": step["attempt"]}},
            "the key_diversification_data of serial:CLEAN's element changes",
        ),
        ({**step, "device": "serial:NEW"}, "element ours/[0-9a-f]{20} is serial:CLEAN's already"),
        ({**held, "journal": {**held["journal"], "master": "maker"}}, "the master of serial:LYING's"),
        ({**step, "journal": None}, "its journal is no object"),
        ({**step, "journal": {**step["journal"], "tries": "1"}}, "its tries is no number"),
    ):
        refused(entries, bent, complaint)


def test_an_entry_about_an_element_that_lacks_a_field_is_refused_and_no_crash(busy_line: Line) -> None:
    entries = busy_line.entries()
    needed = 0
    for kind in ("element-step", "element-interrupted", "device-held", "device-released"):
        index = max(
            index
            for index, entry in enumerate(entries)
            if entry["kind"] == kind and "'journal'" in str(entry)
        )
        for path in (
            ("journal",),
            ("record", "key_set"),
            ("record", "key_set", "journal"),
            ("record", "tpm"),
        ):
            needed += bent_and_refused(entries, index, path)
    assert needed > 40


def bent_and_refused(entries: Sequence[Mapping[str, Any]], index: int, path: Sequence[str]) -> int:
    """Bend each field under a path of an entry, and the whole; return how often it was refused."""
    count = 0
    inner: Any = entries[index]
    for name in path:
        inner = inner.get(name, {})
    wholes: list[object] = [None, [], {}, 1, "", "?"]
    for name in (None, *inner):
        for value in wholes:
            said = Said()
            for earlier, entry in enumerate(entries[:index]):
                said.take(earlier, entry)
            bent = json.loads(json.dumps(entries[index]))
            place = bent
            for part in path[:-1]:
                place = place.setdefault(part, {})
            if name is None:
                place[path[-1]] = value
            else:
                place[path[-1]][name] = value
            try:
                said.take(index, bent)
            except errors.MalformedRequest:
                count += 1
    return count


def test_a_run_opened_for_another_element_than_its_licence_names_is_refused(busy_line: Line) -> None:
    entries = busy_line.entries()
    index = next(index for index, entry in enumerate(entries) if entry["kind"] == "run-opened")
    for bent in (
        {**entries[index], "element": "other"},
        {**entries[index], "element_sha256": "00" * 32},
        {name: value for name, value in entries[index].items() if not name.startswith("element")},
    ):
        refused(entries[:index], bent, "is opened with another element than its licence's")


# --- the auditor's copy


def test_an_exported_log_with_key_sets_verifies(busy_line: Line, tmp_path: Path) -> None:
    """Bundle and verifier carry records as they are: they need to know no kind of entry but releases."""
    store, path = busy_line.service.store, tmp_path / "log.zip"
    entries = busy_line.entries()
    with path.open("wb") as out:
        write_bundle(
            out,
            vkey=busy_line.vkey,
            checkpoint=store.checkpoint(),
            entries=(item.entry for item in store.log.entries()),
            records=[
                (index, entry["record"])
                for index, entry in enumerate(entries)
                if entry["kind"] == "device-released"
            ],
            earlier=(note for size, note in store.log.checkpoints() if size < len(entries)),
        )
    report = verify_bundle(path, busy_line.vkey)
    assert report.ok, report.findings
    assert report.records == 4
    assert report.counts["element-step"] > 4


def test_the_journal_of_a_released_device_is_confirmed(busy_line: Line) -> None:
    row = busy_line.the(ElementJournal, "serial:REWORKED")
    assert (row.phase, row.tries, row.reason) == (KeySetPhase.CONFIRMED, 0, None)
