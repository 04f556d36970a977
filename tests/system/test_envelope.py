"""A device fetches its delivered key in an envelope that only its bootstrap key opens (SPEC B7): over TLS."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_private_key, load_pem_private_key

from birthmark import errors
from birthmark.edge.station import Enclave, Station
from birthmark.pki.certificates import Certificate, from_pem
from tests.support.devices import asked
from tests.support.programs import need
from tests.support.server import RUN, Http, RealmDirectory, Server, birthmark, copy_realm, tls_context

ISSUE = f"/v1/runs/{RUN}/issue"
PROVISIONED, ASKED = "ENV-1", "ENV-2"


@pytest.fixture(scope="module", name="realm")
def _realm(tmp_path_factory: pytest.TempPathFactory) -> RealmDirectory:
    realm = copy_realm(tmp_path_factory.mktemp("envelope") / "realm")
    for hardware_id in (PROVISIONED, ASKED):
        realm.run(
            "bootstrap", "issue", "--name", hardware_id, "--hardware-id", f"serial:{hardware_id}",
            "--out", realm.path / hardware_id,
        )  # fmt: skip
    return realm


@pytest.fixture(scope="module", name="server")
def _server(realm: RealmDirectory) -> Iterator[Server]:
    with Server(realm=realm) as running:
        yield running


def issues_of(realm: RealmDirectory, hardware_id: str) -> list[dict[str, object]]:
    """Return what the log says of a device's certificates."""
    kinds = ("device-issued", "device-reissued")
    entries = [dict(entry) for entry in realm.entries() if entry["kind"] in kinds]
    return [entry for entry in entries if entry["device"] == f"serial:{hardware_id}"]


def serial_of(directory: Path) -> str:
    """Return the serial number (hex) of a credential."""
    (der, *_) = from_pem((directory / "station.crt").read_text(encoding="ascii"))
    return Certificate.from_der(der).serial_hex


def test_whoever_provisions_sees_no_difference(server: Server, realm: RealmDirectory, tmp_path: Path) -> None:
    credential = realm.path / PROVISIONED
    command = (
        "provision", "--station", credential, "--run", RUN, "--hardware-id", PROVISIONED,
        "--enclave", tmp_path / "device", "--json", "--delivered", "--envelope",
    )  # fmt: skip
    released = json.loads(birthmark(*command).stdout)
    assert released["state"] == "released"
    key = load_pem_private_key((tmp_path / "device" / "device.key").read_bytes(), None)
    (der,) = from_pem((tmp_path / "device" / "device.crt").read_text(encoding="ascii"))
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert x509.load_der_x509_certificate(der).public_key() == key.public_key()
    (entry,) = issues_of(realm, PROVISIONED)
    assert (entry["origin"], entry["enveloped_to"]) == ("delivered", serial_of(credential))
    # The same command again: it has its identity.
    assert json.loads(birthmark(*command).stdout)["attempt"] == released["attempt"]


def test_openssl_opens_what_the_service_answers(
    server: Server, realm: RealmDirectory, tmp_path: Path
) -> None:
    """The key is nowhere else in the answer, and asking again makes another (ADR 5)."""
    credential, public = realm.path / ASKED, set()
    body = {"hardware_id": ASKED, "idempotency_key": "sealed-1", "envelope": True}
    with Http(server.address, tls_context(credential)) as device:
        for _ in range(2):
            answer = device.post(ISSUE, body)
            assert (answer.status, answer.json["private_key"]) == (200, None)
            (tmp_path / "key.cms").write_text(answer.json["private_key_envelope"], encoding="ascii")
            opened = subprocess.run(
                [
                    need("openssl"), "cms", "-decrypt", "-inform", "PEM", "-in", tmp_path / "key.cms",
                    "-recip", credential / "station.crt", "-inkey", credential / "station.key",
                ],
                check=True, capture_output=True,
            ).stdout  # fmt: skip
            key = load_der_private_key(opened, None)
            assert isinstance(key, ec.EllipticCurvePrivateKey)
            (der,) = from_pem(answer.json["certificate"])
            assert x509.load_der_x509_certificate(der).public_key() == key.public_key()
            public.add(key.public_key().public_numbers())
            scalar = key.private_numbers().private_value.to_bytes(32, "big")
            assert scalar not in answer.body
        refused = device.post(ISSUE, {**body, "envelope": False})
        assert (refused.status, refused.json["code"]) == (409, "idempotency-key-reused")
    assert len(public) == 2
    assert [entry["kind"] for entry in issues_of(realm, ASKED)] == ["device-issued", "device-reissued"]


def test_a_certificate_that_only_signs_gets_no_envelope(server: Server, realm: RealmDirectory) -> None:
    """A station's is for TLS alone; nothing is issued, and nothing comes in the clear instead."""
    with Http(server.address, tls_context(realm.station())) as station:
        body = {"hardware_id": "ENV-3", "idempotency_key": "sealed-2", "envelope": True}
        answer = station.post(ISSUE, body)
        assert (answer.status, answer.json["rule"]) == (422, "envelope-recipient")
        assert "keyAgreement" in answer.json["detail"]
        key = station.post(ISSUE, {**asked("ENV-4")[1], "envelope": True})
        assert (key.status, key.json["code"]) == (400, "malformed-request")
        several = [{**body, "hardware_id": f"ENV-{n}", "idempotency_key": f"sealed-{n}"} for n in (5, 6)]
        gang = station.post(
            f"/v1/runs/{RUN}/gang-issue", {"devices": [several[0], {**several[1], "envelope": False}]}
        )
        first, second = gang.json["results"]
        assert first["rule"] == "envelope-recipient"
        assert second["private_key"].startswith(f"-----{'BEGIN'} PRIVATE KEY-----\n")
        for wrong in ("true", 1, None):
            assert station.post(ISSUE, {**body, "envelope": wrong}).status == 400
    assert issues_of(realm, "ENV-3") == []
    realm.check()


def test_a_station_without_the_right_certificate_is_told(
    server: Server, realm: RealmDirectory, tmp_path: Path
) -> None:
    with Station(realm.station()) as station, Enclave(str(tmp_path / "device")) as device:
        with pytest.raises(errors.PolicyRefused, match="keyAgreement"):
            station.provision(RUN, "ENV-7", device, delivered=True, envelope=True)
        # Nothing is under way: it may be asked for in another way.
        assert station.provision(RUN, "ENV-7", device, delivered=True).device == "serial:ENV-7"
