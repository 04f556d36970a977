"""Who may connect is let in, renewed and shut out, and who acts must hold the key (SPEC A1, A2, C2)."""

import shutil
import subprocess
from pathlib import Path

import pytest

from birthmark.edge.station import read_station_directory
from tests.edge.cli.ceremonies import draft, there
from tests.edge.cli.command import OTHER_VIN, VIN, Place, Said, done
from tests.support.programs import need


def enrol(realm: Place, name: str, out: Path, *arguments: object) -> Said:
    return realm("station", "enrol", name, "--site", "S", "--line", "L", "--out", out, *arguments)


def one_station(realm: Place, name: str) -> dict[str, object]:
    found = [row for row in realm.done("station", "list", "--json").document if row["name"] == name]
    assert len(found) == 1
    row: dict[str, object] = found[0]
    return row


def test_a_station_is_enrolled_shown_renewed_and_revoked(realm: Place, tmp_path: Path) -> None:
    out = tmp_path / "ST02"
    assert enrol(realm, "ST02", out).code == 0
    assert read_station_directory(out).url == "https://127.0.0.1:8443"
    assert one_station(realm, "ST02")["site"] == "S"
    first = (out / "station.crt").read_text()
    realm.done("station", "renew", "ST02", "--out", out)
    assert (out / "station.crt").read_text() != first
    read_station_directory(out).tls_context()
    shown = realm.done("station", "show", "ST02", "--json").document
    assert len(shown["credentials"]) == 2
    assert shown["line"] == "L"
    realm.done("station", "revoke", "ST02", "--reason", "stolen")
    assert one_station(realm, "ST02")["status"] == "revoked"
    again = enrol(realm, "ST02", tmp_path / "again")
    assert again.code == 1
    assert "revoked" in again.err
    assert not (tmp_path / "again").exists()
    assert realm.done("check", "--json").document["ok"] is True


def test_a_station_keeps_the_key_that_its_request_is_for(realm: Place, tmp_path: Path) -> None:
    openssl = need("openssl")
    key, csr, out = tmp_path / "own.key", tmp_path / "own.csr", tmp_path / "ST02"
    made = [
        "req",
        "-new",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        "/CN=anything",
    ]
    subprocess.run([openssl, *made, "-keyout", key, "-out", csr], check=True, capture_output=True)
    said = enrol(realm, "ST02", out, "--csr", csr)
    assert said.code == 0
    assert not (out / "station.key").exists()
    shutil.copy(key, out / "station.key")
    (out / "station.key").chmod(0o400)
    read_station_directory(out).tls_context()
    assert "CN=ST02" in realm.done("station", "show", "ST02").out or "anything" not in said.out


@pytest.mark.parametrize("content", [b"no request", b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n"])
def test_a_request_that_is_none_is_refused(content: bytes, realm: Place, tmp_path: Path) -> None:
    csr = tmp_path / "x.csr"
    csr.write_bytes(content)
    assert enrol(realm, "ST02", tmp_path / "out", "--csr", csr).code == 65
    assert enrol(realm, "ST02", tmp_path / "out", "--csr", tmp_path / "none").code == 66


def test_nothing_is_certified_that_cannot_be_written(realm: Place, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").touch()
    assert enrol(realm, "ST02", full).code == 1
    assert enrol(realm, "ST02", tmp_path / "no" / "where").code == 66
    assert "ST02" not in realm.done("station", "list").out


@pytest.mark.parametrize("name", ["a/b", "", "x" * 65, "käse"])
def test_a_name_that_cannot_be_is_refused(name: str, realm: Place, tmp_path: Path) -> None:
    assert enrol(realm, name, tmp_path / "out").code == 65


def test_an_end_earlier_than_the_profiles_is_kept_and_a_later_one_refused(
    realm: Place, tmp_path: Path
) -> None:
    assert enrol(realm, "ST02", tmp_path / "late", "--until", "2400-01-01").code == 1
    realm.done(
        "operator", "enrol", "ben", "--role", "officer", "--out", tmp_path / "ben", "--until", "2027-01-01"
    )
    (ben,) = [row for row in realm.done("operator", "list", "--json").document if row["name"] == "ben"]
    assert ben["credentials"][0]["not_after"] == "2027-01-01T00:00:00.000Z"


# --- who acts ---------------------------------------------------------------------------------------------


def test_another_operator_acts_by_naming_the_credential(realm: Place, tmp_path: Path) -> None:
    ben = tmp_path / "ben"
    realm.done("operator", "enrol", "ben", "--role", "officer", "--out", ben)
    run = realm.open_run("R1", "--quantity", 1, "--as", ben, "--json")
    assert run.document["opened_by"] == "operator:ben"
    realm.done("operator", "revoke", "ben", "--reason", "left")
    said = realm.open_run("R2", "--quantity", 1, "--as", ben)
    assert said.code == 77
    assert "revoked" in said.err


def test_with_two_operators_beside_the_settings_one_must_be_named(realm: Place) -> None:
    operators = realm.directory / "operators"
    realm.done("operator", "enrol", "ben", "--role", "officer", "--out", operators / "ben")
    said = realm.open_run("R1", "--quantity", 1)
    assert said.code == 77
    assert "anna, ben" in said.err
    assert realm.open_run("R1", "--quantity", 1, "--as", operators / "ben").code == 0


def test_without_any_operator_it_says_whose_credential_is_missing(realm: Place) -> None:
    shutil.rmtree(realm.directory / "operators")
    said = realm.open_run("R1", "--quantity", 1)
    assert said.code == 77
    assert "--as DIR" in said.err


def test_a_certificate_without_its_key_is_nobody(realm: Place, tmp_path: Path) -> None:
    anna, ben = realm.directory / "operators/anna", tmp_path / "ben"
    realm.done("operator", "enrol", "ben", "--role", "officer", "--out", ben)
    (ben / "station.crt").write_bytes((anna / "station.crt").read_bytes())
    said = realm.open_run("R1", "--quantity", 1, "--as", ben)
    assert said.code in {65, 77}
    assert realm.done("run", "list").out == "none\n"


def test_a_key_that_others_may_read_is_refused(realm: Place) -> None:
    (realm.directory / "operators/anna/station.key").chmod(0o444)
    said = realm.open_run("R1", "--quantity", 1)
    assert said.code == 77
    assert "chmod" in said.err


def test_a_station_may_not_do_what_operators_do(realm: Place) -> None:
    station = realm.directory / "stations/ST01"
    assert realm.open_run("R1", "--quantity", 1, "--as", station).code == 77
    assert realm("authority", "suspend", "issuing-1", "--reason", "x", "--as", station).code == 77
    refused = [line for line in realm.done("log", "tail").out.splitlines() if " refused " in line]
    assert len(refused) == 2


def test_an_operator_of_another_realm_is_nobody_here(realm: Place, tmp_path: Path) -> None:
    done("init", tmp_path / "sued", "--realm", "sued", "--organization", "Sued AG", "--operator", "anna")
    said = realm.open_run("R1", "--quantity", 1, "--as", tmp_path / "sued/operators/anna")
    assert said.code == 77
    assert "no client of this realm" in said.err


# --- bootstrap credentials --------------------------------------------------------------------------------


def test_bootstrap_credentials_are_for_one_device_or_for_one_run(realm: Place, tmp_path: Path) -> None:
    issue = ("bootstrap", "issue", "--name", "B1", "--out", tmp_path / "b1")
    assert realm(*issue).code == 65
    assert realm(*issue, "--hardware-id", f"vin:{VIN}", "--run", "R1").code == 65
    assert realm(*issue, "--hardware-id", VIN).code == 65
    assert realm(*issue, "--hardware-id", "vin:SHORT").code == 65
    realm.done(*issue, "--hardware-id", f"vin:{VIN.lower()}")
    realm.done("bootstrap", "issue", "--name", "B2", "--out", tmp_path / "b2", "--run", "R1")
    rows = {row["name"]: row for row in realm.done("bootstrap", "list", "--json").document}
    assert rows["B1"]["hardware_id"] == f"vin:{VIN}"
    assert rows["B2"]["run"] == "R1"
    realm.done("bootstrap", "revoke", "B1", "--reason", "lost")
    assert OTHER_VIN not in realm.done("bootstrap", "list").out
    read_station_directory(tmp_path / "b2").tls_context()


# --- authorities ------------------------------------------------------------------------------------------


def test_a_further_authority_is_made_in_a_ceremony_with_the_roots_folder(
    realm: Place, tmp_path: Path
) -> None:
    file = draft(realm, tmp_path, "issuing", "--scope", "T9", "--quota", 5, "--ends", "2035-01-01")
    assert realm("ceremony", "perform", file, *there(realm, file), "--store", f"root={tmp_path}").code == 66
    root = f"root={realm.directory / 'root'}"
    realm.done("ceremony", "perform", file, *there(realm, file), "--store", root)
    made = realm.done("authority", "show", "trucks", "--json").document
    assert made["scope"] == "product=T9"
    assert made["ceremony"] == "nord-2"
    assert made["subject"].startswith("CN=nord Issuing CA trucks TEST")
    openssl = need("openssl")
    pem = tmp_path / "trucks.crt"
    pem.write_text(realm.done("authority", "show", "trucks", "--pem").out)
    verify: list[str | Path] = ["verify", "-x509_strict", "-CAfile", realm.directory / "root.crt", pem]
    subprocess.run([openssl, *verify], check=True, capture_output=True)
    realm.done("config", "check")
    # Two could certify the product now, so one must be named; another product has only one.
    common = ("--station", "ST01", "--hardware-id-kind", "vin", "--quantity", 1)
    assert realm("run", "open", "R1", "--product", "T9", *common).code == 65
    named = realm.done("run", "open", "R1", "--product", "T9", "--authority", "trucks", *common, "--json")
    assert named.document["authority"] == "trucks"
    assert (
        realm.done("run", "open", "R2", "--product", "T1", *common, "--json").document["authority"]
        == "issuing-1"
    )
    tree = realm.done("authority", "tree").out.splitlines()
    assert tree[0].startswith("root, root, active, key offline")
    assert tree[2].startswith("└─ trucks, issuing, active, for product=T9, 0 of 5, until 2035-01-01")
    assert realm.done("check", "--json").document["ok"] is True


def test_the_root_of_another_realm_certifies_nothing_here(realm: Place, tmp_path: Path) -> None:
    done("init", tmp_path / "sued", "--realm", "sued", "--organization", "Sued AG")
    file = draft(realm, tmp_path, "issuing", "--ends", "2035-01-01")
    root = f"root={tmp_path / 'sued/root'}"
    said = realm("ceremony", "perform", file, *there(realm, file), "--store", root)
    assert said.code == 77
    assert "another realm's" in said.err
    assert "trucks" not in realm.done("authority", "list").out


def test_an_authority_is_suspended_resumed_and_retired(realm: Place) -> None:
    realm.done("authority", "suspend", "issuing-1", "--reason", "drill")
    refused = realm.open_run("R1", "--quantity", 1)
    assert refused.code == 66
    assert realm("authority", "suspend", "issuing-1", "--reason", "drill").code == 1
    realm.done("authority", "resume", "issuing-1", "--reason", "drill ended")
    assert realm.open_run("R1", "--quantity", 1).code == 0
    realm.done("authority", "retire", "issuing-1", "--reason", "old")
    assert realm("authority", "resume", "issuing-1", "--reason", "no").code == 1
    assert realm("authority", "show", "none").code == 66


def test_who_has_a_request_and_no_certificate_is_told_to_fetch_it(realm: Place, tmp_path: Path) -> None:
    out = tmp_path / "lena"
    done("operator", "request", "lena", "--out", out)
    said = realm("station", "revoke", "ST01", "--reason", "x", "--as", out)
    assert said.code == 66
    assert f"fetch the certificate first (birthmark operator fetch lena --out {out})" in said.err


def test_a_time_with_too_many_digits_is_called_too_long(realm: Place) -> None:
    what = ("exposure", "open", "station:ST01", "--reason", "x", "--for")
    said = realm(*what, "99999999h")
    assert said.code == 65
    assert "99999999h is too long" in said.err
