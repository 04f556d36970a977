"""The whole line by hand: serve, provision, and what remains: papers, log, bundle (SPEC C4, E1 to E5)."""

import json
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.edge.cli.command import OTHER_VIN, VIN, Place, birthmark, done
from tests.support.programs import need

THIRD_VIN = "WVWZZZ1JZXW000001"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A realm with an open run and its service running."""
    place = Place(tmp_path_factory.mktemp("line") / "nord")
    names = ("--realm", "nord", "--organization", "Nord AG", "--operator", "anna")
    done("init", place.directory, *names, "--port", free_port())
    ids = place.directory / "ids.csv"
    ids.write_text(f"{VIN}\n{OTHER_VIN}\n{THIRD_VIN}\n")
    assert place.open_run("R1", "--hardware-ids", ids).code == 0
    with (place.directory / "serve.log").open("wb") as output:
        service = subprocess.Popen(
            [sys.executable, "-m", "birthmark", "serve", "--settings", place.settings],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield place
        finally:
            service.send_signal(signal.SIGTERM)
            service.wait(timeout=30)


def provision(place: Place, credential: Path, vin: str, *arguments: object) -> dict[str, object]:
    """Provision a device; the station kit waits for the service to come up."""
    given = (
        "--run",
        "R1",
        "--hardware-id",
        vin,
        "--enclave",
        place.directory / f"device-{vin}",
        "--patience",
        60,
    )
    released: dict[str, object] = done(
        "provision", "--station", credential, *given, *arguments, "--json"
    ).document
    return released


@pytest.fixture(scope="module")
def released(line: Place) -> dict[str, object]:
    return provision(line, line.directory / "stations/ST01", VIN)


def test_a_device_is_provisioned_and_its_papers_are_in_order(
    line: Place, released: dict[str, object], tmp_path: Path
) -> None:
    device = f"vin:{VIN}"
    assert released["device"] == device
    shown = line.done("device", "show", device.lower(), "--json").document
    assert (shown["state"], shown["run"], shown["attempts"]) == ("released", "R1", 1)
    assert shown["history"][0]["origin"] == "born"
    # The token on record proves the same entry as the one the station got.
    token = tmp_path / "token"
    token.write_text(line.done("device", "token", device).out)
    entry = done("log", "verify-proof", token, "--vkey", line.vkey).document
    assert entry["kind"] == "device-released"
    assert entry["record"]["device"] == device
    assert entry["record"]["certificate_sha256"] == released["certificate_sha256"]
    pem = tmp_path / "device.pem"
    pem.write_text(line.done("device", "certificate", "--chain", device).out)
    verify: list[str | Path] = ["verify", "-CAfile", line.directory / "root.crt", "-untrusted", pem, pem]
    subprocess.run([need("openssl"), *verify], check=True, capture_output=True)


def test_the_same_command_again_makes_no_second_identity(line: Place, released: dict[str, object]) -> None:
    again = provision(line, line.directory / "stations/ST01", VIN)
    assert again["attempt"] == released["attempt"]
    assert again["leaf"] == released["leaf"]


def test_a_device_with_a_bootstrap_credential_fetches_its_own_identity_and_no_other(line: Place) -> None:
    credential = line.directory / "boot"
    line.done("bootstrap", "issue", "--name", "B1", "--out", credential, "--hardware-id", f"vin:{OTHER_VIN}")
    given = ("--run", "R1", "--hardware-id", THIRD_VIN, "--enclave", line.directory / "wrong")
    assert birthmark("provision", "--station", credential, *given).code == 77
    assert provision(line, credential, OTHER_VIN, "--delivered")["device"] == f"vin:{OTHER_VIN}"


def test_a_device_that_is_not_listed_is_refused(line: Place, released: dict[str, object]) -> None:
    given = ("--run", "R1", "--hardware-id", "1FTFW1ET5DFC10312", "--enclave", line.directory / "stranger")
    said = birthmark("provision", "--station", line.directory / "stations/ST01", *given)
    assert said.code == 1
    assert "(rule " in said.err


def test_a_released_device_is_not_held_and_the_refusal_is_on_record(
    line: Place, released: dict[str, object]
) -> None:
    said = line("device", "hold", f"vin:{VIN}", "--reason", "too late")
    assert said.code == 1
    assert "it has its identity" in said.err
    last = json.loads(line.done("log", "tail", "-n", 1, "--json").out)
    assert (last["kind"], last["actor"], last["code"]) == ("refused", "operator:anna", "illegal-transition")


def test_a_device_is_held_reworked_and_scrapped(line: Place) -> None:
    """The device is issued over the wire by the kit, and its proof withheld."""
    from birthmark.edge.station import Station  # noqa: PLC0415  # only this test needs it

    with Station(line.directory / "stations/ST01") as station:
        station.issue("R1", THIRD_VIN)
    device = f"vin:{THIRD_VIN}"
    assert line("device", "token", device).code == 1
    line.done("device", "hold", device, "--reason", "scratched")
    held = line.done("device", "list", "--state", "held", "--json").document
    assert [(row["id"], row["reason"]) for row in held] == [(device, "scratched")]
    line.done("device", "rework", device, "--reason", "painted")
    shown = line.done("device", "show", device, "--json").document
    assert (shown["state"], shown["history"][0]["revoked"]) == ("admitted", "superseded")
    line.done("device", "hold", device, "--reason", "scratched again")
    assert "scrapped" in line.done("device", "scrap", device, "--reason", "beyond repair").out
    assert line("device", "rework", device, "--reason", "no").code == 1


def test_the_exported_log_verifies_and_a_changed_one_does_not(
    line: Place, released: dict[str, object], tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.write_text(line.done("log", "checkpoint").out)
    bundle = tmp_path / "log.zip"
    line.done("log", "export", bundle)
    verify = ("log", "verify", bundle, "--vkey", line.vkey, "--checkpoint", checkpoint)
    report = done(*verify, "--json").document
    assert report["ok"] is True
    assert report["counts"]["device-released"] == report["records"] >= 1
    assert "NOT OK" not in done(*verify).out
    # The same on a machine that has nothing but the ledger package's verifier.
    command: list[str | Path] = [sys.executable, "-m", "birthmark.ledger.verify", bundle, "--vkey", line.vkey]
    subprocess.run(command, check=True, capture_output=True)
    assert line("log", "export", bundle).code == 1  # is not overwritten
    changed = tmp_path / "changed.zip"
    with zipfile.ZipFile(bundle) as source, zipfile.ZipFile(changed, "w") as target:
        for member in source.infolist():
            content = source.read(member)
            if member.filename == "entries.jsonl":
                content = content.replace(VIN.encode(), OTHER_VIN.encode())
            target.writestr(member, content)
    said = birthmark("log", "verify", changed, "--vkey", line.vkey)
    assert said.code == 1
    assert "4. the root over the entries is the root in the checkpoint: FAILED" in said.out
    assert "NOT OK" in said.out


def test_the_realm_agrees_with_the_checkpoints_that_left_it(
    line: Place, released: dict[str, object], realm: Place, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.write_text(line.done("log", "checkpoint").out)
    assert line.done("check", "--received-checkpoints", checkpoint, "--json").document["ok"] is True
    # The same checkpoint is none of another realm's log.
    said = realm("check", "--received-checkpoints", checkpoint)
    assert said.code == 1
    assert "NOT OK" in said.out


# --- the log without a line -------------------------------------------------------------------------------


def test_the_log_is_not_verified_with_another_logs_key(realm: Place, line: Place, tmp_path: Path) -> None:
    bundle, proof = tmp_path / "log.zip", tmp_path / "proof"
    realm.done("log", "export", bundle)
    proof.write_text(realm.done("log", "proof", 3).out)
    assert birthmark("log", "verify", bundle, "--vkey", line.vkey).code == 1
    assert birthmark("log", "verify-proof", proof, "--vkey", line.vkey).code == 70
    assert done("log", "verify-proof", proof, "--vkey", realm.vkey).document["kind"] == "client-enrolled"


def test_files_that_are_none_are_named(realm: Place, tmp_path: Path) -> None:
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"\xff\x00garbage")
    bundle = tmp_path / "log.zip"
    realm.done("log", "export", bundle)
    assert birthmark("log", "verify", garbage, "--vkey", realm.vkey).code == 65
    assert birthmark("log", "verify", bundle, "--vkey", garbage).code == 65
    assert birthmark("log", "verify", bundle, "--vkey", realm.vkey, "--checkpoint", garbage).code == 65
    assert birthmark("log", "verify", tmp_path / "none", "--vkey", realm.vkey).code == 66
    assert birthmark("log", "verify-proof", garbage, "--vkey", realm.vkey).code == 65
    assert realm("log", "proof", 99).code == 66
    assert realm("log", "export", tmp_path / "no" / "where.zip").code == 75


def test_the_last_entries_are_shown_for_people_and_for_programs(realm: Place) -> None:
    lines = realm.done("log", "tail", "-n", 2).out.splitlines()
    assert [line.split()[0] for line in lines] == ["4", "5"]
    assert "client-enrolled realm:init" in lines[1]
    entries = [json.loads(line) for line in realm.done("log", "tail", "-n", 100, "--json").out.splitlines()]
    made = ["ceremony-performed"] + ["authority-established"] * 2
    assert [entry["kind"] for entry in entries] == made + ["client-enrolled"] * 3


def test_following_the_log_shows_new_entries_until_interrupted(realm: Place) -> None:
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "birthmark",
        "log",
        "tail",
        "-n",
        "1",
        "-f",
        "--settings",
        realm.settings,
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("5 ")
        realm.done("authority", "suspend", "issuing-1", "--reason", "drill")
        assert "authority-suspended" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
    finally:
        process.kill()
        process.communicate()


def test_a_reader_that_goes_away_is_no_fault(realm: Place) -> None:
    command = f"{sys.executable} -m birthmark log tail --settings {realm.settings} | head -c 1"
    result = subprocess.run(
        ["/bin/sh", "-c", command], capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stderr == ""
