"""People's side of enrolment: one-time codes, and requests that wait for somebody (SPEC C9, H1)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from birthmark import app, errors
from birthmark.edge.application import Application
from birthmark.floor.clients import Credential
from birthmark.ports import carry
from birthmark.secret import SecretBytes
from birthmark.services.acts import Caller
from birthmark.services.enrolments import Granted, Waiting
from birthmark.services.issue import IssueRequest
from birthmark.settings import load
from tests.edge.cli.command import OTHER_VIN, VIN, Place
from tests.support.realm import workpiece

CODE = ("bootstrap", "code", "dock-1", "--hardware-id", f"vin:{VIN}", "--run", "R1")


@contextmanager
def opened(place: Place) -> Iterator[Application]:
    application = app.build(load(place.settings))
    try:
        yield application
    finally:
        application.close()


def asks(place: Place, name: str, code: str, csr: bytes | None) -> Granted | Waiting:
    """Ask as the device does, by name and code."""
    with opened(place) as application:
        known: Caller = carry(
            application.store, application.codes.recognise(name, SecretBytes(code.encode()))
        )
        request = IssueRequest(hardware_id="", csr=csr, key="code")
        return carry(application.store, application.enrolments.enrol(known, None, request))


@pytest.fixture
def line(realm: Place) -> Place:
    """A realm with run R1, whose requests nobody looks at."""
    assert realm.open_run("R1", "--quantity", "5", "--hours", "8").code == 0
    return realm


def test_a_code_is_printed_once_and_lets_one_device_in(line: Place) -> None:
    given = line.done(*CODE, "--minutes", "30", "--json").document
    assert (given["client"], given["device"], given["run"]) == ("bootstrap:dock-1", f"vin:{VIN}", "R1")
    assert len(given["code"]) == 26
    granted = asks(line, "dock-1", given["code"], workpiece(VIN).csr)
    assert isinstance(granted, Granted)
    assert granted.device == f"vin:{VIN}"
    listed = line.done("bootstrap", "list", "--json")
    assert given["code"] not in listed.out
    (row,) = listed.document
    assert row["credentials"][0]["certificate"] == "code:dock-1"
    assert line.done("check", "--json").document["findings"] == []


def test_a_name_is_good_once_and_a_revoked_code_for_nothing(line: Place) -> None:
    code = line.done(*CODE, "--json").document["code"]
    again = line(*CODE)
    assert again.code == 1, again
    assert "was used" in again.err
    line.done("bootstrap", "revoke", "dock-1", "--reason", "lost")
    with pytest.raises(errors.Unauthenticated):
        asks(line, "dock-1", code, workpiece(VIN).csr)
    assert line.done("check", "--json").document["findings"] == []


def test_without_a_device_plane_the_command_says_that_nobody_takes_the_code(line: Place) -> None:
    assert "no [device-plane]" in line.done(*CODE).err
    with line.settings.open("a", encoding="utf-8") as settings:
        settings.write("\n[device-plane]\nport = 9445\n")
    said = line.done("bootstrap", "code", "dock-2", *CODE[3:])
    assert (said.err, "https://127.0.0.1:9445" in said.out) == ("", True)


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        (("--run", "R9"), 66),
        (("--hardware-id", "serial:X1"), 1),
        (("--hardware-id", "nothing"), 65),
        (("--minutes", "0"), 65),
        (("--minutes", "43201"), 65),
    ],
)
def test_a_code_that_makes_no_sense_is_refused(line: Place, changed: tuple[str, str], code: int) -> None:
    said = line(*CODE, *changed)
    assert said.code != 0, said
    assert said.code != 70, said
    assert (said.out, said.err.startswith("birthmark: ")) == ("", True), code


def test_the_code_is_in_nothing_that_is_kept(line: Place) -> None:
    code = line.done(*CODE, "--json").document["code"].encode()
    kept = [path for path in line.directory.rglob("*") if path.is_file()]
    assert kept
    for path in kept:
        assert code not in path.read_bytes(), path
    with opened(line) as application:
        (credential,) = [one for one in application.store.scan(Credential) if one.serial == "code:dock-1"]
        assert len(credential.der) == 16


# --- what waits


@pytest.fixture
def waiting(realm: Place) -> tuple[Place, dict[str, str], bytes]:
    """A realm whose run R1 has a person look at each request; one of dock-1 waits."""
    assert realm.open_run("R1", "--quantity", "5", "--hours", "8", "--approval").code == 0
    code = realm.done(*CODE, "--json").document["code"]
    csr = workpiece(VIN).csr
    assert csr is not None
    assert isinstance(asks(realm, "dock-1", code, csr), Waiting)
    (row,) = realm.done("enrolment", "list", "--json").document
    return realm, {**row, "code": code}, csr


def test_what_waits_shows_what_can_be_compared(waiting: tuple[Place, dict[str, str], bytes]) -> None:
    from hashlib import sha256  # noqa: PLC0415  # only this test

    place, row, csr = waiting
    assert row["csr_sha256"] == sha256(csr).hexdigest()
    assert (row["id"], row["device"], row["client"]) == (
        "bootstrap:dock-1/code",
        f"vin:{VIN}",
        "bootstrap:dock-1",
    )
    assert (row["run"], row["status"]) == ("R1", "waiting")
    assert row["csr_sha256"] in place.done("enrolment", "list").out
    assert place.done("enrolment", "list", "--run", "R2").out == "none\n"
    assert place.done("enrolment", "show", row["id"], "--json").document["status"] == "waiting"


def test_what_is_approved_goes_on(waiting: tuple[Place, dict[str, str], bytes]) -> None:
    place, row, csr = waiting
    assert "approved" in place.done("enrolment", "approve", row["id"], "--reason", "compared").out
    granted = asks(place, "dock-1", row["code"], csr)
    assert isinstance(granted, Granted)
    assert place.done("enrolment", "list").out == "none\n"
    (settled,) = place.done("enrolment", "list", "--all", "--json").document
    assert (settled["status"], settled["decided_by"], settled["reason"]) == (
        "approved",
        "operator:anna",
        "compared",
    )
    again = place("enrolment", "refuse", row["id"], "--reason", "late")
    assert (again.code, "approved, by operator:anna" in again.err) == (1, True)
    assert place.done("check", "--json").document["findings"] == []


def test_what_is_refused_stays_out_and_hears_why(waiting: tuple[Place, dict[str, str], bytes]) -> None:
    place, row, csr = waiting
    place.done("enrolment", "refuse", row["id"], "--reason", "nobody knows it")
    with pytest.raises(errors.NotPermitted, match="nobody knows it"):
        asks(place, "dock-1", row["code"], csr)
    assert place.done("check", "--json").document["findings"] == []


def test_another_request_does_not_go_under_the_approval_of_the_first(
    waiting: tuple[Place, dict[str, str], bytes],
) -> None:
    place, row, _ = waiting
    place.done("enrolment", "approve", row["id"], "--reason", "compared")
    with pytest.raises(errors.KeyReused):
        asks(place, "dock-1", row["code"], workpiece(VIN).csr)


def test_what_nobody_asked_for_cannot_be_settled(line: Place, tmp_path: Path) -> None:
    for command in ("approve", "refuse"):
        said = line("enrolment", command, "bootstrap:x/code", "--reason", "none")
        assert (said.code, "waits" in said.err) == (66, True), said
    assert line("enrolment", "show", "bootstrap:x/code").code == 66
    assert OTHER_VIN != VIN
