"""``birthmark shared``: an archive for an image, made by one person or two, counted and shut (SPEC H4)."""

import json
import subprocess
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography import x509

from birthmark import app, errors
from birthmark.edge.application import Application
from birthmark.edge.cli.shared_files import packed, write_archive
from birthmark.pki.certificates import from_pem
from birthmark.ports import carry
from birthmark.secret import SecretBytes
from birthmark.services.acts import recognise
from birthmark.services.enrolments import Granted
from birthmark.services.issue import IssueRequest
from birthmark.settings import load
from tests.edge.cli.command import OTHER_VIN, VIN, Place, Said
from tests.support.programs import need
from tests.support.realm import tamper, workpiece

LIMITS = ("--run", "R1", "--quantity", "2", "--hours", "8", "--network", "10.4.0.0/16")
URL = ("--url", "https://birthmark.example:8445/")
MEMBERS = ["gateway-ca.pem", "gateway.json", "provisioning.key", "provisioning.pem"]


@pytest.fixture
def line(realm: Place) -> Place:
    assert realm.open_run("R1", "--quantity", "5", "--hours", "8").code == 0
    return realm


def make(place: Place, out: Path, *more: object, name: str = "image-7") -> Said:
    return place("shared", "make", name, *LIMITS, *URL, "--out", out, *more)


def unpacked(archive: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(archive) as file:
        assert file.testzip() is None
        return {name: file.read(name) for name in file.namelist()}


@contextmanager
def opened(place: Place) -> Iterator[Application]:
    application = app.build(load(place.settings))
    try:
        yield application
    finally:
        application.close()


def boots(place: Place, archive: Path, vin: str, address: str = "10.4.1.1") -> Granted:
    """Ask for a certificate as a device with this image does at its first boot."""
    (shown, *_) = from_pem(unpacked(archive)["provisioning.pem"].decode())
    with opened(place) as application:
        caller = replace(carry(application.store, recognise(shown)), plane="device", address=address)
        csr = workpiece(vin).csr or b""
        key = f"est-{sha256(csr).hexdigest()[:40]}"  # as EST makes it
        request = IssueRequest(hardware_id="", csr=csr, key=key, keeps_refusal=False)
        answer = carry(application.store, application.enrolments.enrol(caller, None, request))
    assert isinstance(answer, Granted)
    return answer


def test_the_archive_has_what_a_device_needs_and_openssl_agrees(line: Place, tmp_path: Path) -> None:
    """The key is the certificate's, and the certificate verifies under the root, says somebody else."""
    need("openssl")
    out = tmp_path / "credentials.zip"
    said = make(line, out)
    assert said.code == 0, said
    assert out.stat().st_mode & 0o777 == 0o600
    files = unpacked(out)
    assert sorted(files) == MEMBERS
    for name, octets in files.items():
        (tmp_path / name).write_bytes(octets)
    assert json.loads(files["gateway.json"]) == {
        "realm": "nord",
        "environment": "test",
        "credential": "shared:image-7",
        "run": "R1",
        "device_plane": "https://birthmark.example:8445",
        "est": "https://birthmark.example:8445/.well-known/est/R1",
        "gateway": None,
    }

    def openssl(*words: object) -> str:
        done = subprocess.run(
            ["openssl", *map(str, words)],
            check=True, capture_output=True, text=True, cwd=tmp_path, timeout=30,
        )  # fmt: skip
        return done.stdout

    chain = ("-untrusted", "provisioning.pem", "provisioning.pem")
    assert "OK" in openssl("verify", "-purpose", "sslclient", "-CAfile", "gateway-ca.pem", *chain)
    of_key = openssl("pkey", "-in", "provisioning.key", "-pubout")
    assert openssl("x509", "-in", "provisioning.pem", "-noout", "-pubkey") == of_key
    assert "BEGIN PRIVATE KEY" in files["provisioning.key"].decode()


def test_the_key_is_in_the_archive_and_nowhere_else(line: Place, tmp_path: Path) -> None:
    out = tmp_path / "credentials.zip"
    said = make(line, out)
    body = b"".join(unpacked(out)["provisioning.key"].splitlines()[1:-1])[
        50:90
    ]  # after what all keys begin with
    assert body.decode() not in said.out + said.err
    for path in (path for path in line.directory.rglob("*") if path.is_file()):
        assert body not in path.read_bytes(), path
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["credentials.zip"]


def test_the_same_contents_are_the_same_octets() -> None:
    def once() -> bytes:
        with packed({"b": 1, "a": 2}, "root\n", "chain\n", SecretBytes(b"key\n"), b"#!/bin/sh\n") as archive:
            return archive.reveal()

    assert once() == once()
    assert sha256(once()).hexdigest() == sha256(once()).hexdigest()


def test_the_modes_of_the_files_are_those_they_are_unpacked_with(tmp_path: Path) -> None:
    out = tmp_path / "a.zip"
    with packed({}, "root\n", "chain\n", SecretBytes(b"key\n"), b"#!/bin/sh\n") as archive:
        write_archive(out, archive)
        with pytest.raises(errors.IllegalTransition):
            write_archive(out, archive)
    with zipfile.ZipFile(out) as file:
        modes = {one.filename: one.external_attr >> 16 & 0o777 for one in file.infolist()}
    assert (modes["provisioning.key"], modes["first-boot.sh"], modes["gateway.json"]) == (0o600, 0o755, 0o644)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_devices_are_counted_and_shown_until_none_is_left(line: Place, tmp_path: Path) -> None:
    out = tmp_path / "credentials.zip"
    make(line, out)
    boots(line, out, VIN)
    (row,) = line.done("shared", "list", "--json").document
    assert (row["used"], row["left"], row["networks"]) == (1, 1, ["10.4.0.0/16"])
    with pytest.raises(errors.NotPermitted):
        boots(line, out, OTHER_VIN, "192.0.2.1")
    boots(line, out, OTHER_VIN)
    with pytest.raises(errors.QuotaExhausted):
        boots(line, out, "5YJ3E1EA7KF317000")
    shown = line.done("shared", "show", "image-7", "--json").document
    assert (shown["used"], shown["left"]) == (2, 0)
    assert shown["devices"] == sorted([f"vin:{VIN}", f"vin:{OTHER_VIN}"])
    assert VIN in line.done("shared", "show", "image-7").out
    assert line.done("check", "--json").document["findings"] == []


def test_a_revoked_one_brings_nothing_in(line: Place, tmp_path: Path) -> None:
    out = tmp_path / "credentials.zip"
    make(line, out)
    line.done("shared", "revoke", "image-7", "--reason", "leaked")
    with pytest.raises(errors.Unauthenticated):
        boots(line, out, VIN)
    (row,) = line.done("shared", "list", "--json").document
    assert row["status"] == "revoked"
    again = make(line, tmp_path / "again.zip")
    assert (again.code, "another name" in again.err) == (1, True)
    assert not (tmp_path / "again.zip").exists()
    assert line.done("check", "--json").document["findings"] == []


@pytest.mark.parametrize(
    ("more", "code"),
    [
        (("--network", "here"), 65),
        (("--run", "R9"), 66),
        (("--quantity", "6"), 1),
        (("--url", "http://birthmark.example"), 65),
        (("--first-boot", "/nowhere/first-boot.sh"), 66),
        (("--hours", "0"), 2),
    ],
)
def test_what_makes_no_sense_is_refused_and_leaves_nothing(
    line: Place, tmp_path: Path, more: tuple[str, str], code: int
) -> None:
    said = make(line, tmp_path / "credentials.zip", *more)
    assert said.code == code, said
    assert list(tmp_path.glob("*credentials*")) == []
    assert line.done("shared", "list").out == "none\n"


def test_what_is_there_is_not_written_over(line: Place, tmp_path: Path) -> None:
    out = tmp_path / "credentials.zip"
    out.write_text("mine")
    assert make(line, out).code == 1
    assert (out.read_text(), line.done("shared", "list").out) == ("mine", "none\n")
    assert make(line, tmp_path / "no" / "where.zip").code == 66


def test_without_a_device_plane_somebody_has_to_say_where_devices_ask(line: Place, tmp_path: Path) -> None:
    out = tmp_path / "credentials.zip"
    said = line("shared", "make", "image-7", *LIMITS, "--out", out)
    assert (said.code, "--url" in said.err) == (65, True)
    with line.settings.open("a", encoding="utf-8") as settings:
        settings.write("\n[device-plane]\nport = 9445\n")
    line.done("shared", "make", "image-7", *LIMITS, "--out", out)
    assert json.loads(unpacked(out)["gateway.json"])["device_plane"] == "https://127.0.0.1:9445"


# --- production


@pytest.fixture
def production(line: Place) -> Place:
    """The line turned into one of production, as in ``test_approvals``; its run was opened before."""
    out = line.directory / "operators" / "bela"
    line.done("operator", "enrol", "bela", "--role", "officer", "--out", out, *person(line, "anna"))
    settings = line.settings.read_text()
    line.settings.write_text(settings.replace('environment = "test"', 'environment = "production"'))
    tamper(load(line.settings).database.url, ("UPDATE realm SET environment = 'production'", ()))
    return line


def person(place: Place, name: str) -> tuple[str, str]:
    return "--as", str(place.directory / "operators" / name)


def test_in_production_the_archive_comes_after_the_second_person(production: Place, tmp_path: Path) -> None:
    place, out = production, tmp_path / "credentials.zip"
    said = make(place, out, *person(place, "anna"))
    assert said.code == 0, said
    key = tmp_path / "credentials.zip.key"
    assert (out.exists(), key.stat().st_mode & 0o777) == (False, 0o400)
    assert place("shared", "fetch", "image-7", "--out", out, *URL).code == 66
    (row,) = place.done("proposal", "list", "--json").document
    terms = row["terms"]
    assert (row["deed"], terms["run"], terms["quantity"], terms["networks"]) == (
        "share-credential",
        "R1",
        "2",
        "10.4.0.0/16",
    )
    assert place("proposal", "approve", row["id"], "--yes", *person(place, "anna")).code == 77
    assert place.done("shared", "list").out == "none\n"
    place.done("proposal", "approve", row["id"], "--yes", *person(place, "bela"))
    assert place.done("shared", "fetch", "image-7", "--out", out, *URL).code == 0
    assert (sorted(unpacked(out)), key.exists()) == (MEMBERS, False)
    files = unpacked(out)
    leaf = x509.load_pem_x509_certificate(files["provisioning.pem"])
    assert leaf.subject.rfc4514_string() == "CN=image-7,OU=Shared R1,O=Nord AG"


def test_a_key_that_others_read_or_that_is_another_is_not_taken(production: Place, tmp_path: Path) -> None:
    place, out = production, tmp_path / "credentials.zip"
    make(place, out, *person(place, "anna"))
    make(place, tmp_path / "other.zip", *person(place, "anna"), name="image-8")
    for row in place.done("proposal", "list", "--json").document:
        place.done("proposal", "approve", row["id"], "--yes", *person(place, "bela"))
    key, other = tmp_path / "credentials.zip.key", tmp_path / "other.zip.key"
    wrong = place("shared", "fetch", "image-8", "--out", out, *URL)
    assert (wrong.code, "not that of shared:image-8" in wrong.err) == (65, True)
    key.chmod(0o644)
    assert place("shared", "fetch", "image-7", "--out", out, *URL).code == 77
    other.chmod(0o600)
    other.write_text("no key")
    assert place("shared", "fetch", "image-8", "--out", tmp_path / "other.zip", *URL).code == 65
    assert not out.exists()
