"""The check holds attestations and the owners of TPMs against the log (SPEC C8, D6, E5).

The TPMs are swtpm's; the service is the real one.
"""

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from birthmark import errors
from birthmark.floor.attestations import Attestation
from birthmark.floor.devices import DeviceEvent
from birthmark.ledger.entry import canonical, encode
from birthmark.services.check import check
from birthmark.services.testimony import Said
from tests.support.realm import Line, make_line, open_service, tamper
from tests.support.swtpm import software_tpm
from tests.support.tpms import csrs_of, device_of, make_tpm_line


@pytest.fixture(scope="module")
def attesting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    """A device T1 that was reworked and released, T2 under way, and an attestation nobody answered."""
    folder = tmp_path_factory.mktemp("attesting")
    line = make_line(folder, f"sqlite:///{folder / 'line.sqlite'}")
    (folder / "other").mkdir()
    with (
        software_tpm() as one,
        software_tpm() as two,
        device_of(one, folder) as first,
        device_of(two, folder / "other") as second,
    ):
        tpms = make_tpm_line(line, one, two)
        tpms.issued("T1", first)
        for event in (DeviceEvent.HOLD, DeviceEvent.REWORK):
            line.dispose(event, "serial:T1", service=tpms.service)
        line.prove(tpms.proof(first, tpms.issued("T1", first)), service=tpms.service)
        csrs_of(second, "T2")
        tpms.attest("T2", second.endorsed())
        tpms.issued("T2", second)
    yield line
    line.close()


def copy_of(line: Line, path: Path) -> Line:
    with closing(sqlite3.connect(line.url.removeprefix("sqlite:///"))) as db:
        db.execute("VACUUM INTO ?", (str(path),))
    url = f"sqlite:///{path}"
    return Line(url=url, keys=line.keys, clock=line.clock, service=open_service(url, line.keys, line.clock))


def findings(line: Line) -> list[str]:
    store = line.another_service().store
    return check(store, store.log, line.realm).findings


def test_a_line_with_tpms_has_no_finding(attesting: Line) -> None:
    assert findings(attesting) == []
    used = [row.certify_info is not None for row in attesting.service.store.scan(Attestation)]
    assert sorted(used) == [False, True, True, True]


RELEASED = "id = (SELECT attempt FROM identity_record)"
UNUSED = "certify_info IS NULL"
_OF_T2 = "FROM attestation WHERE device = 'serial:T2' AND certify_info IS NOT NULL"
FIELDS = {
    "the device": ("device = 'serial:T9'", RELEASED, "its device is serial:T9"),
    "the run": ("run = 'R1'", RELEASED, "its run is R1, the log says R2"),
    "who asked": ("client = 'station:ST09'", RELEASED, "its client is station:ST09"),
    "the endorsement key's certificate": (
        f"ek_certificate = (SELECT ek_certificate {_OF_T2})",
        RELEASED,
        "its ek_certificate is",
    ),
    "the endorsement key": ("ek_spki_sha256 = 'ab'", UNUSED, "its ek is ab"),
    "the attestation key": (f"iak = (SELECT iak {_OF_T2})", RELEASED, "its iak is"),
    "the attestation key, which certified": (
        f"iak = (SELECT iak {_OF_T2})",
        RELEASED,
        "does not verify: the certification is not signed by the attestation key",
    ),
    "the identity key": (f"idevid = (SELECT idevid {_OF_T2})", RELEASED, "its idevid is"),
    "a key that is none": ("idevid = x'00'", UNUSED, "its keys cannot be read"),
    "the nonce before it is used": ("nonce = zeroblob(32)", UNUSED, "its nonce is"),
    "the secret before it is used": ("secret_sha256 = 'ab'", UNUSED, "its secret is ab"),
    "the end": ("expires_at = expires_at + 1", UNUSED, "its end is"),
    "an attestation that may be used again": (
        "certify_info = NULL, certify_signature = NULL",
        RELEASED,
        "its certification is None",
    ),
    "an attestation that was never answered": (
        "certify_info = nonce, certify_signature = nonce",
        UNUSED,
        "was used by no attempt",
    ),
    "a signature": (
        f"certify_signature = (SELECT certify_signature {_OF_T2})",
        RELEASED,
        "the certification is not signed by the attestation key",
    ),
    "a signature that is none": ("certify_signature = x'00'", RELEASED, "does not verify: "),
}
"""What is set, where, and what the check must say."""
ROWS = {
    "an attestation removed": (
        "DELETE FROM attestation WHERE certify_info IS NULL",
        "of serial:T2 was begun; it is gone",
    ),
    "an attestation added": (
        """INSERT INTO attestation SELECT 'ab', device, run, client, ek_certificate, ek_spki_sha256, iak,
        idevid, nonce, secret_sha256, expires_at, NULL, NULL FROM attestation WHERE certify_info IS NULL""",
        "attestation ab of serial:T2 has no entry in the log",
    ),
    "certificates in the other order": (
        """UPDATE attempt SET certificate = further, further = certificate
        WHERE id = (SELECT attempt FROM identity_record)""",
        "the certificates of its attempt are for other keys, or gone",
    ),
    "a tpm given to another device": (
        "UPDATE element_use SET device = 'serial:T2' WHERE device = 'serial:T1'",
        "is kept as serial:T2's, the log says serial:T1's",
    ),
    "a tpm free for another device": (
        "DELETE FROM element_use WHERE device = 'serial:T1'",
        "is not kept as serial:T1's: it is gone",
    ),
}


def found_after(statement: str, line: Line, path: Path) -> list[str]:
    copy = copy_of(line, path / "tampered.sqlite")
    tamper(copy.url, (statement, ()))
    found = findings(copy)
    copy.close()
    return found


@pytest.mark.parametrize("case", FIELDS)
def test_a_field_that_is_not_what_the_log_says_is_found(tmp_path: Path, attesting: Line, case: str) -> None:
    change, where, finding = FIELDS[case]
    found = found_after(f"UPDATE attestation SET {change} WHERE {where}", attesting, tmp_path)  # noqa: S608  # names of our own tables
    assert any(finding in one for one in found), found


@pytest.mark.parametrize("case", ROWS)
def test_a_row_that_is_another_or_gone_is_found(tmp_path: Path, attesting: Line, case: str) -> None:
    statement, finding = ROWS[case]
    found = found_after(statement, attesting, tmp_path)
    assert any(finding in one for one in found), found


def last(entries: Sequence[Mapping[str, Any]], kind: str) -> tuple[int, dict[str, Any]]:
    """Return the last entry of a kind, to be changed, and its index."""
    index = max(index for index, entry in enumerate(entries) if entry["kind"] == kind)
    return index, json.loads(json.dumps(entries[index]))


@pytest.mark.parametrize("kind", ["device-issued", "device-released"])
@pytest.mark.parametrize("gone", [True, False])
def test_a_device_whose_tpm_is_missing_or_another_is_found(
    tmp_path: Path, attesting: Line, kind: str, *, gone: bool
) -> None:
    line = copy_of(attesting, tmp_path / "tampered.sqlite")
    index, entry = last(line.entries(), kind)
    said = entry["record"] if kind == "device-released" else entry
    if gone:
        del said["tpm"]
    else:
        said["tpm"]["ek_spki_sha256"] = "ab" * 32
    further = {name: said[name] for name in ("further", "tpm") if name in said}
    tamper(
        line.url,
        ("UPDATE leaf SET entry = %s WHERE idx = %s", (encode(entry), index)),
        ("UPDATE identity_record SET further = %s WHERE leaf = %s", (canonical(further).decode(), index)),
    )
    finding = "does not speak of a tpm, and the licence of run R2" if gone else "tpm"
    found = [one for one in findings(line) if one.startswith(f"entry {index} is no {kind}: ")]
    assert len(found) == 1
    assert finding in found[0]
    line.close()


def test_entries_that_contradict_what_was_said_of_a_tpm_are_refused(attesting: Line) -> None:
    entries = attesting.entries()
    begun = next(index for index, entry in enumerate(entries) if entry["kind"] == "attestation-begun")
    first = next(index for index, entry in enumerate(entries) if entry["kind"] == "device-issued")
    issued = json.loads(json.dumps(entries[first]))
    for before, bent, complaint in (
        (len(entries), entries[begun], "is begun twice"),
        (len(entries), issued, "is of another device or run, or was used"),
        (first, {**issued, "device": "serial:T9"}, "is of another device or run, or was used"),
        (first, {**issued, "attempt": "ab"}, "no entry before it issued attestation ab"),
        (first, {**issued, "tpm": 1}, "its tpm is no object"),
        (begun, {**entries[begun], "nonce": 1}, "its nonce is no text"),
        (begun, {**entries[begun], "tpm": {}}, "its ek_certificate_sha256 is missing"),
    ):
        said = Said()
        for index, entry in enumerate(entries[:before]):
            said.take(index, entry)
        with pytest.raises(errors.MalformedRequest, match=complaint):
            said.take(before, bent)
