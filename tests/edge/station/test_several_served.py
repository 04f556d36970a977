"""Meters with three certificates and TPMs with two, over the real service (SPEC C5, C6, C7, C9).

The meters' authorities come to be in a ceremony, as DLMS/COSEM has them: a root and a sub-CA of their own.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

import birthmark
from birthmark import errors
from birthmark.edge.station import Enclave, Release, Station
from birthmark.ledger import proof
from birthmark.ledger.checkpoint import VerifierKey
from tests.support.meters import authorities_of_meters
from tests.support.programs import need
from tests.support.server import RealmDirectory, Server, copy_realm
from tests.support.server import birthmark as run_birthmark

METER = ("dlms-signature-1", "dlms-agreement-1", "dlms-tls-1")
METER_2 = ("dlms-signature-2", "dlms-agreement-2", "dlms-tls-2")
TPM = ("tpm-idevid", "tpm-iak")
BOOTSTRAPPED = "4D4D4D0000004000"
USAGE = {
    "dlms-signature-1": {"Digital Signature"},
    "dlms-agreement-1": {"Key Agreement"},
    "dlms-tls-1": {"Digital Signature", "Key Agreement"},
}


def openssl(*arguments: str | Path) -> str:
    return subprocess.run(
        [need("openssl"), *map(str, arguments)], capture_output=True, text=True, check=True
    ).stdout


def _perform(realm: RealmDirectory, folder: Path) -> Path:
    """Establish the meters' authorities; return their root's certificate."""
    public_key = openssl("x509", "-in", realm.operator / "station.crt", "-pubkey", "-noout").strip()
    file = folder / "dlms.yaml"
    file.write_text(authorities_of_meters("acme", "Acme Motors", public_key, kind="ec-p384"))
    passphrase = folder / "passphrase"
    passphrase.touch(mode=0o600)
    passphrase.write_text("opens nothing but a test\n")
    run_birthmark("ceremony", "store", folder / "dlms", "--passphrase-file", passphrase)
    realm.run(
        "ceremony", "perform", file, "--custodian", realm.operator, "--store", f"dlms={folder / 'dlms'}",
        "--reviewed", sha256(file.read_bytes()).hexdigest(), "--out", folder / "done",
    )  # fmt: skip
    return folder / "done" / "certificates" / "dlms-root.crt"


def _open(realm: RealmDirectory, run: str, profiles: tuple[str, ...], *options: str, kind: str) -> None:
    further = [word for profile in profiles[1:] for word in ("--further", profile)]
    realm.run(
        "run", "open", run, "--quantity", "1000", "--hours", "48", "--station", "ST01", "--hardware-id-kind",
        kind, "--profile", profiles[0], *further, *options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def realm(tmp_path_factory: pytest.TempPathFactory) -> RealmDirectory:
    folder = tmp_path_factory.mktemp("several")
    realm = copy_realm(folder / "realm")
    root = _perform(realm, folder)
    named = ("--name", "B1", "--hardware-id", f"system-title:{BOOTSTRAPPED}")
    realm.run("bootstrap", "issue", *named, "--out", realm.path / "bootstrap")
    _open(realm, "M-1", METER, "--product", "meter", kind="system-title")
    _open(realm, "M-2", METER_2, "--product", "meter", kind="system-title")
    _open(realm, "T-1", TPM, "--product", "car", kind="serial")
    realm.run("station", "renew", "ST01", "--out", realm.station())
    (realm.path / "dlms-root.crt").write_text(root.read_text())
    return realm


@pytest.fixture(scope="module")
def server(realm: RealmDirectory) -> Iterator[Server]:
    with Server(realm=realm) as running:
        yield running


@pytest.fixture
def station(server: Server) -> Iterator[Station]:
    with Station(server.realm.station()) as found:
        yield found


def record_of(realm: RealmDirectory, token: str) -> dict[str, Any]:
    entry = proof.verify(token, VerifierKey.parse((realm.path / "log.vkey").read_text().strip()))
    record: dict[str, Any] = entry["record"]  # type: ignore[assignment]  # JSON, as the test knows it
    return record


def check_with_openssl(device: Path, root: Path, profiles: tuple[str, ...]) -> list[str]:
    """Follow each chain to the root, and compare each key with its certificate; return the public keys."""
    keys = []
    for mark in ("", *(f".{profile}" for profile in profiles[1:])):
        certificate, key = device / f"device{mark}.crt", device / f"device{mark}.key"
        chain = device / f"chain{mark}.pem"
        told = openssl("verify", "-x509_strict", "-CAfile", root, "-untrusted", chain, certificate)
        assert told.endswith(": OK\n"), told
        keys.append(openssl("x509", "-in", certificate, "-pubkey", "-noout"))
        assert openssl("pkey", "-in", key, "-pubout") == keys[-1]
    assert len(set(keys)) == len(profiles)
    return keys


@pytest.mark.parametrize("delivered", [False, True])
def test_a_meter_has_its_three_certificates_and_one_token(
    station: Station, realm: RealmDirectory, tmp_path: Path, *, delivered: bool
) -> None:
    scanned = f"4d4d4d00000000{int(delivered):02x}"
    with Enclave(str(tmp_path / "meter")) as meter:
        release = station.provision("M-1", scanned, meter, delivered=delivered)
    assert release.device == f"system-title:{scanned.upper()}"
    record = record_of(realm, release.token)
    assert (record["profile"], record["certificate_sha256"]) == (METER[0], release.certificate_sha256)
    told = tuple((one["profile"], one["certificate_sha256"]) for one in record["further"])
    assert told == release.further
    assert [profile for profile, _ in told] == list(METER[1:])
    check_with_openssl(tmp_path / "meter", realm.path / "dlms-root.crt", METER)
    for mark, profile in zip(("", ".dlms-agreement-1", ".dlms-tls-1"), METER, strict=True):
        file = tmp_path / "meter" / f"device{mark}.crt"
        text = openssl("x509", "-in", file, "-noout", "-ext", "keyUsage,extendedKeyUsage")
        usage = text.split("X509v3 Key Usage: critical\n")[1].splitlines()[0]
        assert {one.strip() for one in usage.split(",")} == USAGE[profile]
        assert ("TLS Web Client Authentication" in text) is (profile == "dlms-tls-1")
        subject = openssl("x509", "-in", file, "-noout", "-subject", "-nameopt", "RFC2253")
        assert subject.strip() == f"subject=CN={scanned.upper()}"


def test_a_meter_of_suite_2_gets_its_three_keys_delivered(
    station: Station, realm: RealmDirectory, tmp_path: Path
) -> None:
    """SPEC B7: the profiles ask for P-384, and so the service makes such keys."""
    with Enclave(str(tmp_path / "meter")) as meter:
        release = station.provision("M-2", "4D4D4D0000000200", meter, delivered=True)
    assert [profile for profile, _ in release.further] == list(METER_2[1:])
    check_with_openssl(tmp_path / "meter", realm.path / "dlms-root.crt", METER_2)
    for mark in ("", *(f".{profile}" for profile in METER_2[1:])):
        text = openssl("x509", "-in", tmp_path / "meter" / f"device{mark}.crt", "-noout", "-text")
        assert "ASN1 OID: secp384r1" in text


def test_a_tpm_has_its_identity_and_its_attestation_key(
    station: Station, realm: RealmDirectory, tmp_path: Path
) -> None:
    with Enclave(str(tmp_path / "tpm")) as tpm:
        release = station.provision("T-1", "TPM-1", tpm)
    assert [profile for profile, _ in release.further] == ["tpm-iak"]
    check_with_openssl(tmp_path / "tpm", realm.path / "root.crt", TPM)
    told = openssl("x509", "-in", tmp_path / "tpm" / "device.tpm-iak.crt", "-noout", "-text")
    assert "2.23.133.11.1.3" in told  # tcg-cap-verifiedTPMRestricted


def test_a_gang_of_meters_is_made_in_two_requests(
    station: Station, realm: RealmDirectory, tmp_path: Path
) -> None:
    gang = [(f"4D4D4D0000001{n:03X}", Enclave(str(tmp_path / f"g{n}")), n % 2 == 1) for n in range(6)]
    results = station.provision_gang("M-1", gang)
    assert all(isinstance(result, Release) for result in results), results
    for number in range(6):
        check_with_openssl(tmp_path / f"g{number}", realm.path / "dlms-root.crt", METER)


def test_a_server_that_dies_between_the_steps_gives_the_same_three(
    server: Server, realm: RealmDirectory, tmp_path: Path
) -> None:
    """SPEC C4: SIGKILL after the certificates are installed, and after the proofs are written down."""

    class Dies(Enclave):
        def sign(self, message: bytes) -> bytes:
            server.restart()
            return super().sign(message)

    with Station(realm.station()) as station:
        with Dies(str(tmp_path / "meter")) as meter:
            release = station.provision("M-1", "4D4D4D0000002000", meter)
        assert station.device(release.device).attempts == 1
    check_with_openssl(tmp_path / "meter", realm.path / "dlms-root.crt", METER)


@pytest.mark.parametrize("origin", ["born", "delivered"])
def test_a_station_that_dies_at_any_step_finishes_both_certificates(
    server: Server, realm: RealmDirectory, tmp_path: Path, origin: str
) -> None:
    """The same deaths as in ``test_crash``, with the real service on the other end."""
    (tmp_path / "devices").mkdir()
    root = Path(__file__).parents[3]
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "tests.edge.station.crashing", realm.station(), tmp_path / "devices"),
            *("T-1", "127.0.0.1", origin, "5"),
        ],
        env=os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{Path(birthmark.__file__).parents[1]}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    results = [json.loads(line) for line in ran.stdout.splitlines()]
    assert len(results) > 8
    assert [(one["again"], one["complaints"]) for one in results] == [(0, [])] * len(results), ran.stderr
    with Station(realm.station()) as station:
        for result in results:
            status = station.device(result["device"].replace("vin:", "serial:"))
            assert (status.state, status.attempts) == ("released", 1)


def test_the_command_line_provisions_a_meter(server: Server, realm: RealmDirectory, tmp_path: Path) -> None:
    done = run_birthmark(
        "provision", "--station", realm.station(), "--run", "M-1", "--hardware-id", "4D4D4D0000003000",
        "--enclave", tmp_path / "meter", "--json",
    )  # fmt: skip
    shown = json.loads(done.stdout)
    assert list(shown["further"]) == list(METER[1:])
    assert record_of(realm, shown["token"])["further"][0]["certificate_sha256"] == shown["further"][METER[1]]
    check_with_openssl(tmp_path / "meter", realm.path / "dlms-root.crt", METER)


def test_a_meter_with_a_bootstrap_credential_fetches_all_three(
    server: Server, realm: RealmDirectory, tmp_path: Path
) -> None:
    """SPEC C9: it learns from the service which certificates its run gives, and of no other run."""
    credential = realm.path / "bootstrap"
    run_birthmark(
        "provision", "--station", credential, "--run", "M-1", "--hardware-id", BOOTSTRAPPED,
        "--enclave", tmp_path / "meter",
    )  # fmt: skip
    check_with_openssl(tmp_path / "meter", realm.path / "dlms-root.crt", METER)
    with Station(credential) as device:
        assert device.run("M-1").further_profiles == METER[1:]
        with pytest.raises(errors.NotPermitted, match="is for system-title:4D4D4D0000004000 only"):
            device.run("T-1")
        with pytest.raises(errors.NotPermitted, match="may not read"):
            device.device(f"system-title:{BOOTSTRAPPED}")
        assert device.checkpoint().size > 0  # it too has to be shown that the log only grew


def test_each_certificate_of_a_device_is_shown_with_its_status(
    station: Station, realm: RealmDirectory, tmp_path: Path
) -> None:
    """SPEC C5, F1: over HTTP and on the command line, good or revoked."""
    with Enclave(str(tmp_path / "tpm")) as tpm:
        release = station.provision("T-1", "TPM-9", tpm)
    status = station.device(release.device)
    ((profile, digest),) = release.further
    (further,) = status.further
    assert (further.profile, further.certificate_sha256, further.revoked) == (profile, digest, None)
    show = ("device", "show", release.device)
    (attempt,) = json.loads(realm.run(*show, "--json").stdout)["history"]
    assert attempt["certificate_sha256"] == release.certificate_sha256
    assert [(one["profile"], one["certificate"], one["revoked"]) for one in attempt["further"]] == [
        ("tpm-iak", further.certificate, None)
    ]
    assert further.certificate in realm.run(*show).stdout
    files = {mark: (tmp_path / "tpm" / f"device{mark}.crt").read_text() for mark in ("", ".tpm-iak")}
    printed = ("device", "certificate", release.device)
    assert realm.run(*printed).stdout == files[""]
    assert realm.run(*printed, "--profile", "tpm-iak").stdout == files[".tpm-iak"]
    assert realm.run(*printed, "--all").stdout == files[""] + files[".tpm-iak"]
    refused = realm.run(*printed, "--profile", "vehicle", check=False)
    assert "no certificate of profile vehicle, but tpm-idevid, tpm-iak" in refused.stderr

    class Forgetful(Enclave):
        def sign(self, message: bytes) -> bytes:
            return super().sign(message + b"?")

    with Forgetful(str(tmp_path / "bad")) as bad, pytest.raises(errors.ProofFailed):
        station.provision("T-1", "TPM-10", bad)
    realm.run("device", "scrap", "serial:TPM-10", "--reason", "broken")
    scrapped = station.device("serial:TPM-10")
    reasons = [scrapped.revoked, *(one.revoked for one in scrapped.further)]
    assert len(set(reasons)) == 1
    assert reasons[0] is not None
    (attempt,) = json.loads(realm.run("device", "show", "serial:TPM-10", "--json").stdout)["history"]
    assert [attempt["revoked"], *(one["revoked"] for one in attempt["further"])] == reasons


def test_afterwards_the_check_finds_nothing(server: Server, realm: RealmDirectory) -> None:
    """Runs last in this file: on all that its tests did."""
    assert realm.check()["counts"]["records"] >= 10
