"""The server's and the operators' credentials are renewed, and it is told in time (SPEC A1, C2).

The server's key and certificate belong together whenever a service might read them: the test ends the
renewal before each of its steps, as a power cut would.
"""

import fcntl
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from birthmark import app
from birthmark.edge.application import Application, Factory
from birthmark.edge.cli.server_files import ServerFiles
from birthmark.edge.station import read_station_directory
from birthmark.pki.certificates import from_pem
from birthmark.ports import Clock, Observer
from birthmark.settings import Settings
from tests.edge.cli.command import Place, birthmark
from tests.support.programs import need

PASSPHRASE = "one-for-all"


def leaf(certificate_file: Path) -> x509.Certificate:
    return x509.load_der_x509_certificate(from_pem(certificate_file.read_text())[0])


def names(certificate: x509.Certificate) -> list[str]:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = found.get_values_for_type(x509.IPAddress)
    return [*found.get_values_for_type(x509.DNSName), *(str(address) for address in addresses)]


def load_pair(directory: Path, passphrase: str) -> None:
    """Load key and certificate as a service does; OpenSSL refuses two that do not belong together."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "server.crt", directory / "secrets/server.key", passphrase)


def renewals(realm: Place) -> list[str]:
    lines = realm.done("log", "tail").out.splitlines()
    return [line for line in lines if " client-renewed " in line]


# --- the server -------------------------------------------------------------------------------------------


def test_the_server_gets_another_key_under_its_present_names(realm: Place) -> None:
    passphrase = (realm.directory / "secrets/server.passphrase").read_text().strip()
    before = leaf(realm.directory / "server.crt")
    said = realm.done("server", "renew")
    assert "restart the service" in said.out
    after = leaf(realm.directory / "server.crt")
    assert after.public_key() != before.public_key()
    assert names(after) == names(before) == ["localhost", "127.0.0.1"]
    assert after.subject == before.subject
    load_pair(realm.directory, passphrase)
    assert (realm.directory / "secrets/server.key").stat().st_mode & 0o777 == 0o400
    (entry,) = renewals(realm)
    assert "client=server:server" in entry
    assert f"{after.serial_number:x}" in entry
    realm.done("config", "check")
    assert realm.done("check", "--json").document["ok"] is True
    verify = ["verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", "localhost"]
    root, server = realm.directory / "root.crt", realm.directory / "server.crt"
    command: list[str | Path] = [need("openssl"), *verify, "-CAfile", root, "-untrusted", server, server]
    subprocess.run(command, check=True, capture_output=True)


def test_names_that_are_given_take_the_place_of_all(realm: Place) -> None:
    said = realm.done(
        "server", "renew", "--dns", "line.example", "--ip", "::1", "--ip", "127.0.0.1", "--json"
    )
    assert said.document["names"] == ["line.example", "::1", "127.0.0.1"]
    assert names(leaf(realm.directory / "server.crt")) == ["line.example", "::1", "127.0.0.1"]
    assert "localhost" in said.err  # who used that name has to change the url
    realm.done("server", "renew", "--dns", "line.example")
    assert names(leaf(realm.directory / "server.crt")) == ["line.example"]
    realm.done("server", "renew")
    assert names(leaf(realm.directory / "server.crt")) == ["line.example"]


@pytest.mark.parametrize(
    "wrong", [("--dns", "a b"), ("--dns", ""), ("--ip", "localhost"), ("--ip", "127.0.0.1", "--dns", "ä")]
)
def test_a_name_that_is_none_changes_nothing(wrong: tuple[str, ...], realm: Place) -> None:
    before = (realm.directory / "server.crt").read_bytes()
    assert realm("server", "renew", *wrong).code == 65
    assert (realm.directory / "server.crt").read_bytes() == before
    assert renewals(realm) == []


def test_nothing_is_certified_while_the_files_cannot_be_changed(realm: Place) -> None:
    place = realm.directory / "secrets/server.key.d"
    place.mkdir(mode=0o700)
    descriptor = os.open(place, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        said = realm("server", "renew")
    finally:
        os.close(descriptor)
    assert said.code == 75
    assert "somebody else is renewing" in said.err
    place.rmdir()
    place.touch()
    assert realm("server", "renew").code == 75
    place.unlink()
    (realm.directory / "secrets/server.key").unlink()
    assert realm("server", "renew").code == 66
    assert renewals(realm) == []


def test_a_station_may_not_renew_the_server(realm: Place) -> None:
    before = (realm.directory / "server.crt").read_bytes()
    assert realm("server", "renew", "--as", realm.directory / "stations/ST01").code == 77
    assert (realm.directory / "server.crt").read_bytes() == before


@pytest.mark.parametrize("symlinks", [False, True], ids=["links followed", "links kept"])
def test_a_renewed_realm_may_be_copied_and_renewed_again(
    symlinks: bool,  # noqa: FBT001  # a case, not a switch
    realm: Place,
    tmp_path: Path,
) -> None:
    realm.done("server", "renew")
    copy = Place(tmp_path / "copy")
    shutil.copytree(realm.directory, copy.directory, symlinks=symlinks)
    shutil.rmtree(realm.directory)
    before = leaf(copy.directory / "server.crt")
    copy.done("config", "check")
    copy.done("server", "renew")
    copy.done("server", "renew")
    assert leaf(copy.directory / "server.crt") != before
    copy.done("config", "check")
    kept = {path.name for path in (copy.directory / "secrets/server.key.d").iterdir()}
    assert len(kept) == 2
    assert "current" in kept


def test_a_service_that_starts_after_a_renewal_shows_the_new_certificate(realm: Place) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    toml = realm.settings.read_text()
    realm.settings.write_text(toml.replace("port = 8443", f"port = {port}"))
    realm.done("server", "renew")
    log = realm.directory / "serve.log"
    with log.open("wb") as output:
        command: list[str | Path] = [sys.executable, "-m", "birthmark", "serve", "--settings", realm.settings]
        service = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        context = read_station_directory(realm.directory / "stations/ST01").tls_context()
        shown = b""
        deadline = time.monotonic() + 30
        while not shown and service.poll() is None and time.monotonic() < deadline:
            try:
                with (
                    socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
                    context.wrap_socket(plain, server_hostname="localhost") as tls,
                ):
                    shown = tls.getpeercert(binary_form=True) or b""
            except ConnectionError:
                continue
    finally:
        service.send_signal(signal.SIGTERM)
        service.wait(timeout=30)
    assert x509.load_der_x509_certificate(shown) == leaf(realm.directory / "server.crt")
    # One style of log, one JSON object a line, whatever the libraries below would say.
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert not [event for event in events if event["logger"].startswith("alembic")]


# --- a crash between any two steps ------------------------------------------------------------------------

CRASHING = """
import os, shutil, sys
from pathlib import Path
from birthmark.edge.cli.server_files import ServerFiles

start, out, certificate, key = map(Path, sys.argv[1:])
changes = ("open", "os.", "shutil.", "tempfile.")

def change(place, step):
    seen = 0
    def count(event, arguments):
        nonlocal seen
        if event.startswith(changes):
            seen += 1
            if seen == step:
                os._exit(9)
    texts = certificate.read_text(), key.read_text()
    sys.addaudithook(count)
    files = ServerFiles(place / "server.crt", place / "secrets" / "server.key")
    files.directory.mkdir(mode=0o700, exist_ok=True)
    files.make_links()
    files.put(*texts)
    os._exit(0)

step = 0
while True:
    step += 1
    place = out / f"{step:03}"
    shutil.copytree(start, place, symlinks=True)
    child = os.fork()
    if child == 0:
        try:
            change(place, step)
        finally:
            os._exit(70)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 0:
        print(step)
        break
    assert code == 9, code
"""


def make_pair(name: str) -> tuple[str, str]:
    """Return a certificate and its encrypted key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = app.clock().now()
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .sign(key, SHA256())
    )
    encryption = BestAvailableEncryption(PASSPHRASE.encode())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    return certificate.public_bytes(Encoding.PEM).decode(), private.decode()


@pytest.mark.parametrize("start", ["plain files", "links", "half linked"])
def test_whatever_step_a_crash_comes_after_the_pair_can_be_loaded(start: str, tmp_path: Path) -> None:
    """C2: a service that restarts at any moment finds a key and a certificate that belong together."""
    old, new, newer = (make_pair(name) for name in ("old", "new", "newer"))
    realm, crashed, given = tmp_path / "realm", tmp_path / "crashed", tmp_path / "new"
    for directory in (realm, realm / "secrets", crashed, given):
        directory.mkdir()
    certificate, key = realm / "server.crt", realm / "secrets/server.key"
    certificate.write_text(old[0])
    key.write_text(old[1])
    if start != "plain files":
        files = ServerFiles(certificate, key)
        files.directory.mkdir()
        files.make_links()
    if start == "half linked":
        certificate.unlink()
        certificate.write_text(old[0])
    (given / "crt").write_text(new[0])
    (given / "key").write_text(new[1])
    done = subprocess.run(
        [sys.executable, "-c", CRASHING, realm, crashed, given / "crt", given / "key"],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    places = sorted(crashed.iterdir())
    assert len(places) == int(done.stdout) > 10
    found = []
    for place in places:
        load_pair(place, PASSPHRASE)
        found.append((place / "server.crt").read_text())
    for place, was in zip(places, found, strict=True):
        files = ServerFiles(place / "server.crt", place / "secrets/server.key")
        files.directory.mkdir(exist_ok=True)
        files.make_links()
        load_pair(place, PASSPHRASE)
        assert (place / "server.crt").read_text() == was
        files.put(*newer)
        load_pair(place, PASSPHRASE)
        assert (place / "server.crt").read_text() == newer[0]
        assert len(list(files.directory.iterdir())) == 2
    # It changes once, from the old pair to the new one, and not only in the run that nothing ended.
    turn = found.index(new[0])
    assert 0 < turn < len(found) - 1
    assert set(found[:turn]) == {old[0]}
    assert set(found[turn:]) == {new[0]}


# --- operators --------------------------------------------------------------------------------------------


def test_an_operator_renews_the_credential_that_acts(realm: Place, tmp_path: Path) -> None:
    anna = realm.directory / "operators/anna"
    before = (anna / "station.crt").read_text()
    copy = tmp_path / "copy"
    shutil.copytree(anna, copy)
    realm.done("operator", "renew", "anna", "--out", anna)
    assert (anna / "station.crt").read_text() != before
    (entry,) = renewals(realm)
    assert "client=operator:anna" in entry
    assert realm.open_run("R1", "--quantity", 1).code == 0
    assert realm.open_run("R2", "--quantity", 1, "--as", copy).code == 0  # good until it ends
    realm.done("operator", "renew", "anna", "--out", tmp_path / "new", "--until", "2027-01-01")
    assert realm.open_run("R3", "--quantity", 1, "--as", tmp_path / "new").code == 0
    (row,) = realm.done("operator", "list", "--json").document
    assert len(row["credentials"]) == 3
    assert realm("operator", "renew", "ben", "--out", tmp_path / "ben").code == 66
    assert not (tmp_path / "ben").exists()
    assert realm.done("check", "--json").document["ok"] is True


# --- told in time -----------------------------------------------------------------------------------------


class Later:
    """The real factory, some days later."""

    def __init__(self, days: float) -> None:
        self._ahead = timedelta(days=days)

    def now(self) -> datetime:
        return app.clock().now() + self._ahead

    def clock(self) -> Clock:
        return self

    def build(self, settings: Settings, *, observer: Observer | None = None) -> Application:
        return app.build(settings, clock=self, observer=observer)

    def __getattr__(self, name: str) -> Any:
        return getattr(app, name)


def verdicts(realm: Place, days: float) -> tuple[int, dict[str, tuple[str, str]]]:
    """Return the exit code of ``config check`` some days from now, and each check's verdict and text."""

    def loader() -> Factory:
        return Later(days)

    said = birthmark("config", "check", "--json", "--settings", realm.settings, loader=loader)
    return said.code, {row["check"]: (row["verdict"], row["text"]) for row in said.document}


@pytest.mark.parametrize(
    ("days", "code", "server", "operator", "stations"),
    [
        (0, 0, "ok", "ok", "ok"),
        (19, 0, "ok", "ok", "ok"),
        (21, 0, "ok", "ok", "soon"),
        (31, 0, "ok", "ok", "warning"),
        (366, 0, "ok", "ok", "warning"),
        (368, 0, "soon", "soon", "warning"),
        (396, 0, "soon", "soon", "warning"),
        (398, 1, "failed", "warning", "warning"),
    ],
)
def test_a_certificate_that_ends_is_told_before(
    days: int, code: int, server: str, operator: str, stations: str, realm: Place
) -> None:
    """A station's lives 30 days, and is told in the last ten; the others' 397, and in the last 30."""
    exit_code, said = verdicts(realm, days)
    assert exit_code == code
    assert said["server certificate"][0] == server
    assert said["acting operator"][0] == operator
    assert said["operators"][0] == operator
    assert said["stations"][0] == stations
    for check in ("acting operator", "operators", "stations"):
        assert said[check][0] == "ok" or "anna" in said[check][1] or "ST01" in said[check][1]


def test_what_was_renewed_or_revoked_is_told_no_more(realm: Place, tmp_path: Path) -> None:
    realm.done("station", "enrol", "ST02", "--site", "S", "--line", "L", "--out", tmp_path / "ST02")
    soon = app.clock().now() + timedelta(days=15)
    realm.done(
        "operator", "enrol", "ben", "--role", "officer", "--out", tmp_path / "ben", "--until", soon.date()
    )
    _, before = verdicts(realm, 11)
    assert before["operators"][0] == "soon"
    assert "ben" in before["operators"][1]
    assert "anna" not in before["operators"][1]
    realm.done("operator", "renew", "ben", "--out", tmp_path / "ben")
    assert verdicts(realm, 11)[1]["operators"] == ("ok", "2 on record")
    realm.done("station", "revoke", "ST02", "--reason", "scrapped")
    assert "ST02" not in verdicts(realm, 31)[1]["stations"][1]


def test_with_several_operators_the_acting_one_is_named(realm: Place) -> None:
    ben = realm.directory / "operators/ben"
    realm.done("operator", "enrol", "ben", "--role", "officer", "--out", ben)
    said = realm.done("config", "check", "--json").document
    (row,) = [row for row in said if row["check"] == "acting operator"]
    assert row["verdict"] == "ok"
    assert "anna, ben" in row["text"]
    named = realm.done("config", "check", "--as", ben).out
    assert "operator:ben in" in named
