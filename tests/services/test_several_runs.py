"""Runs whose devices get several certificates: opening them, their counters, the check (SPEC A1, C3, E4)."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from birthmark import errors
from birthmark.floor.authorities import Authority
from birthmark.floor.devices import Device, DeviceEvent
from birthmark.floor.runs import Run, RunLicence
from birthmark.ledger import proof as tlog
from birthmark.services.check import check
from birthmark.services.issue import IssueRequest
from tests.support.realm import Line, make_line, open_service, tamper
from tests.support.several import PROFILES, Several, findings, issue, make, open_several, request_of, shown


@pytest.fixture
def several(line: Line) -> Line:
    """A line with a run whose devices get three certificates, on both databases."""
    open_several(line)
    return line


# --- how much


def test_the_run_counts_devices_and_the_authority_certificates(several: Line) -> None:
    """SPEC A1, C3."""
    open_several(several, "R3", quantity=2)
    for name in ("M1", "M2"):
        make(several, name, "R3")
    with pytest.raises(errors.QuotaExhausted, match="all 2 devices are admitted"):
        issue(several, Several(hardware_id="M3").request(), run="R3")
    assert several.the(Authority, "issuing-1").issued == 6
    run = several.the(Run, "R3")
    assert (run.admitted, run.released) == (2, 2)


def test_an_authority_that_has_room_for_some_of_a_device_issues_none_of_it(several: Line) -> None:
    """SPEC A1: the quota is one of certificates, and a device gets all of its own or none."""
    limited = replace(several.the(Authority, "issuing-1"), id="issuing-2", quota=9, issued=0)
    several.establish(limited)
    with pytest.raises(errors.QuotaExhausted, match="may issue 9 more certificates, the run is for 12"):
        open_several(several, "R3", authority="issuing-2", quantity=4)
    open_several(several, "R3", authority="issuing-2", quantity=3)
    open_several(several, "R4", authority="issuing-2", quantity=1, further_profiles=())
    first = Several(hardware_id="X1")
    issue(several, replace(first.request(), further_csrs=()), run="R4")
    for name in ("M1", "M2"):
        make(several, name, "R3")
    with pytest.raises(errors.QuotaExhausted, match="has issued all 9"):
        issue(several, Several(hardware_id="M3").request(), run="R3")
    assert several.the(Authority, "issuing-2").issued == 7
    assert several.get(Device, "serial:M3") is None


# --- opening


def test_a_first_article_of_each_profile_is_inspected_when_the_run_is_opened(several: Line) -> None:
    """SPEC G2."""
    (entry,) = [e for e in several.entries() if e["kind"] == "run-opened" and e["run"] == "R2"]
    assert [one["profile"] for one in entry["inspections"]] == list(PROFILES)
    licence = json.loads(entry["licence"])
    assert licence["further_profiles"] == list(PROFILES[1:])
    catalogue = several.service.runs.catalogue
    assert licence["further_sha256"] == [catalogue.load(name).sha256 for name in PROFILES[1:]]


UNWORKABLE: dict[str, tuple[dict[str, Any], str]] = {
    "another profile than was pinned": (
        {"further_sha256": ("0" * 64, "0" * 64)},
        "the licence is for another profile tpm-idevid",
    ),
    "not every profile pinned": ({"further_sha256": ("0" * 64,)}, "does not pin every one"),
    "the first profile again": ({"further_profiles": ("vehicle",)}, "names a profile twice"),
    "a further profile twice": ({"further_profiles": ("tpm-iak", "tpm-iak")}, "names a profile twice"),
    "an authority's": ({"further_profiles": ("issuing",)}, "is for authorities, not devices"),
    "a client's": ({"further_profiles": ("station",)}, "is for clients, not devices"),
    "another kind of authority's": ({"further_profiles": ("dlms-tls-1",)}, "issued by an authority made as"),
    "a value that only one needs, and none is given": (
        {"further_profiles": ("idevid",)},
        "needs a value for hardware_type",
    ),
    "a value that none uses": (
        {"variables": {"organization": "Acme", "product_id": "8000"}},
        "does not use product_id",
    ),
}


@pytest.mark.parametrize("case", UNWORKABLE)
def test_a_run_is_not_opened_when_a_further_profile_cannot_work(small_line: Line, case: str) -> None:
    changes, complaint = UNWORKABLE[case]
    with pytest.raises(errors.PolicyRefused, match=complaint):
        open_several(small_line, "R3", **changes)
    assert small_line.get(Run, "R3") is None


def test_a_value_may_be_used_by_one_of_the_profiles_only(small_line: Line) -> None:
    variables = {"organization": "Acme Motors", "hardware_type": "1.3.6.1.4.1.32473.1.1"}
    open_several(small_line, "R3", further_profiles=("idevid",), variables=variables)
    device = Several(hardware_id="M1", keys=Several(hardware_id="M1").keys[:2])
    issued = issue(small_line, device.request(), run="R3")
    small_line.prove(request_of(issued, shown(issued, device.keys)))


def test_the_authority_must_allow_every_profile(small_line: Line) -> None:
    """SPEC A2."""
    limited = replace(small_line.the(Authority, "issuing-1"), id="issuing-2", profiles="tpm-idevid vehicle")
    small_line.establish(limited)
    with pytest.raises(errors.NotPermitted, match="not tpm-iak"):
        open_several(small_line, "R3", authority="issuing-2")
    open_several(small_line, "R3", authority="issuing-2", further_profiles=("tpm-idevid",))


def test_a_run_with_one_certificate_that_ends_before_its_authority_is_as_it_was(small_line: Line) -> None:
    """Licences of the time before say nothing of further certificates, and nothing of them is in the log."""
    make_one = Several(hardware_id="M1")
    issued = issue(small_line, replace(make_one.request(), further_csrs=()), run="R1")
    token = small_line.prove(request_of(issued, shown(issued, make_one.keys[:1]))).token
    record: dict[str, Any] = tlog.verify(token, small_line.vkey)["record"]  # type: ignore[assignment]  # JSON, as the test knows it
    assert "further" not in record
    (entry,) = [entry for entry in small_line.entries() if entry["kind"] == "device-issued"]
    assert "further" not in entry
    old = replace(small_line.licence("R9"), profile_sha256="")
    assert b"further" not in old.encode()
    assert RunLicence.decode(old.encode()) == old


# --- the check


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    """A line with a released and a reworked device of three certificates, and one asked for twice."""
    folder = tmp_path_factory.mktemp("several")
    line = make_line(folder, f"sqlite:///{folder / 'line.sqlite'}")
    open_several(line)
    make(line, "M1")
    issue(line, Several(hardware_id="M2").request())
    line.dispose(DeviceEvent.HOLD, "serial:M2")
    line.dispose(DeviceEvent.REWORK, "serial:M2")
    for _ in range(2):
        issue(line, IssueRequest(hardware_id="M3", csr=None, key="lost"))
    yield line
    line.close()


_NOT_RELEASED = "is not what the log says was released"
TAMPERINGS: dict[str, tuple[str, str]] = {
    "a further proof": (
        """UPDATE identity_record SET further = replace(further, '"proof":"30', '"proof":"31')""",
        _NOT_RELEASED,
    ),
    "further credentials gone": ("UPDATE identity_record SET further = ''", _NOT_RELEASED),
    "further credentials that are none": ("UPDATE identity_record SET further = '[1'", _NOT_RELEASED),
    "a further profile": (
        "UPDATE identity_record SET further = replace(further, 'tpm-iak', 'tpm-ekk')",
        _NOT_RELEASED,
    ),
    "the attempt's further certificates": (
        "UPDATE attempt SET further = substr(further, 1, 20) WHERE device = 'serial:M1'",
        "further is",
    ),
    "the attempt's further certificates gone": (
        "UPDATE attempt SET further = '' WHERE device = 'serial:M1'",
        "further is",
    ),
    "further certificates gone": (
        """DELETE FROM device_certificate WHERE device = 'serial:M1'
        AND serial NOT IN (SELECT certificate FROM attempt)""",
        "which is another or gone",
    ),
    "further certificates of another device": (
        """UPDATE device_certificate SET device = 'serial:M9' WHERE device = 'serial:M1'
        AND serial NOT IN (SELECT certificate FROM attempt)""",
        "device is serial:M9",
    ),
    "a further revocation lifted": (
        """DELETE FROM revocation WHERE id LIKE (SELECT '%/' || serial FROM device_certificate
        WHERE device = 'serial:M2' AND serial NOT IN (SELECT certificate FROM attempt) LIMIT 1)""",
        "revo",
    ),
    "keys freed": ("DELETE FROM key_use WHERE device = 'serial:M1'", "key"),
}


def test_a_line_of_devices_with_several_certificates_is_clean(checked: Line) -> None:
    assert findings(checked).findings == []


@pytest.mark.parametrize("case", TAMPERINGS)
def test_tampering_with_what_is_further_is_found(tmp_path: Path, checked: Line, case: str) -> None:
    """SPEC E1, E4."""
    statement, finding = TAMPERINGS[case]
    path = tmp_path / "tampered.sqlite"
    with closing(sqlite3.connect(checked.url.removeprefix("sqlite:///"))) as db:
        db.execute("VACUUM INTO ?", (str(path),))
    url = f"sqlite:///{path}"
    service = open_service(url, checked.keys, checked.clock)
    tamper(url, (statement, ()))
    report = check(service.store, service.store.log, checked.realm)
    service.store.close()
    assert any(finding in each for each in report.findings), report.findings
