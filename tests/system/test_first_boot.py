"""``deploy/first-boot.sh``: a device with curl and openssl and nothing of ours, from its image to its end.

It fetches its identity by EST, proves it, gets a certificate for where it works, renews that, is reset, and
comes to the gateway, which refuses it as soon as it is revoked (SPEC H1, H2, H3).
"""

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from birthmark.ledger.checkpoint import VerifierKey
from birthmark.ledger.proof import verify
from birthmark.pki.certificates import Certificate, from_pem
from tests.support.enrolling import (
    LOCAL,
    DeviceRealm,
    code_for,
    device_realm,
    est,
    openssl,
    operational_run,
)
from tests.support.gateways import GatewayRealm, Vehicle, kinds
from tests.support.programs import need
from tests.support.server import RUN, Server, free_port, until

SCRIPT = Path(__file__).parents[2] / "deploy" / "first-boot.sh"
ONE_BY_ONE = "RUN-2"
LATER = 75


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DeviceRealm, GatewayRealm]]:
    """A served realm with both planes."""
    made = device_realm(tmp_path_factory.mktemp("boot") / "realm", default_run=LOCAL)
    port = free_port()
    with made.realm.settings.open("a", encoding="utf-8") as file:
        file.write(
            f'\n[gateway-plane]\nport = {port}\ncertificate-file = "server.crt"\n'
            'key-file = "secrets/server.key"\nkey-passphrase-file = "secrets/server.passphrase"\n'
        )
    operational_run(made.realm)
    made.realm.open_run(ONE_BY_ONE, 100, "--approval")
    with Server(realm=made.realm) as server:
        yield made, GatewayRealm(realm=made.realm, port=port)
        assert "Traceback" not in server.told()
    made.realm.check()


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What lies on a device, and the only programs it has."""

    name: str
    folder: Path
    plane: DeviceRealm
    path: Path
    """Where its programs are."""

    @property
    def id(self) -> str:
        return f"serial:{self.name}"

    def environment(self, run: str | None) -> dict[str, str]:
        told = {"PATH": str(self.path), "DEVICE": str(self.folder), "HOME": str(self.folder)}
        return told if run is None else told | {"EST": f"{self.plane.url}/.well-known/est/{run}"}

    def boots(self, *steps: str, run: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [need("dash"), SCRIPT, self.name, *steps], capture_output=True, text=True, check=False,
            timeout=100, env=self.environment(run),
        )  # fmt: skip

    def does(self, *steps: str) -> None:
        done = self.boots(*steps)
        assert done.returncode == 0, done.stdout + done.stderr

    def certificate(self, name: str = "local") -> Certificate:
        text = (self.folder / f"{name}.pem").read_text(encoding="ascii")
        return Certificate.from_der(from_pem(text)[0])

    def kinds(self) -> list[str]:
        """Return what the log says of it."""
        return [str(one["kind"]) for one in self.plane.realm.entries() if one.get("device") == self.id]


@pytest.fixture
def device(
    gateway: tuple[DeviceRealm, GatewayRealm], tmp_path: Path, request: pytest.FixtureRequest
) -> Device:
    """A device with an image for one serial number."""
    plane, door = gateway
    name = f"BOOT{abs(hash(request.node.name)) % 10**9}"
    folder, programs = tmp_path / "device", tmp_path / "bin"
    plane.realm.run(
        "bootstrap", "issue", "--name", name, "--hardware-id", f"serial:{name}", "--out", tmp_path / "issued"
    )
    folder.mkdir()
    shutil.copy(tmp_path / "issued" / "station.crt", folder / "provisioning.pem")
    shutil.copy(tmp_path / "issued" / "station.key", folder / "provisioning.key")
    shutil.copy(plane.root, folder / "gateway-ca.pem")
    told = {"est": f"{plane.url}/.well-known/est/{RUN}", "gateway": door.url}
    (folder / "gateway.json").write_text(json.dumps(told, indent=2, sort_keys=True) + "\n")
    programs.mkdir()
    for program in (
        *("curl", "openssl"),
        *("cat", "cp", "grep", "head", "mktemp", "mv", "rm", "sed", "sleep", "sync", "tr"),
    ):
        (programs / program).symlink_to(need(program, "coreutils"))
    return Device(name=name, folder=folder, plane=plane, path=programs)


def test_a_first_boot_ends_at_the_gateway_which_refuses_it_once_it_is_revoked(
    gateway: tuple[DeviceRealm, GatewayRealm], device: Device
) -> None:
    device.does("enrol", "local", "contact")
    assert device.kinds()[:2] == ["device-issued", "device-released"]
    assert {"local-issued", "local-proved"} <= set(device.kinds())
    assert kinds(gateway[1], device.id) == ["device-first-seen"]
    vkey = VerifierKey.parse((device.plane.realm.path / "log.vkey").read_text(encoding="ascii"))
    released = verify((device.folder / "identity.token").read_text(encoding="utf-8"), vkey)
    assert (released["kind"], released["device"]) == ("device-released", device.id)

    size = len(device.plane.realm.entries())
    device.does("enrol", "local", "contact")
    assert len(device.plane.realm.entries()) == size, "what is done is not done again"

    recall(device)
    refused = device.boots("contact")
    assert refused.returncode == 1, refused.stderr
    assert "certificate-revoked" in refused.stderr
    assert kinds(gateway[1], device.id) == ["device-first-seen", "certificate-revoked"]
    # EST takes it for nobody, too.
    assert device.boots("renew").returncode == 1


def test_a_renewed_certificate_ends_only_when_the_next_one_is_used(device: Device) -> None:
    device.does("enrol", "local")
    first = device.certificate()
    # The answer to a renewal is lost: nothing was used, nothing ends.
    key, lost = device.folder / "lost.key", device.folder / "lost.csr"
    held = Vehicle(id=device.id, certificate=device.folder / "local.pem", key=device.folder / "local.pem")
    openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", key)
    openssl(
        "req",
        "-new",
        "-key",
        key,
        "-subj",
        f"/O=Acme Motors/CN={device.name}",
        "-outform",
        "DER",
        "-out",
        lost,
    )
    assert est(device.plane, "simplereenroll", lost, who=held).status == 200
    assert first.serial_hex not in revoked(device)

    device.does("renew")
    second = device.certificate()
    assert second.serial_number != first.serial_number
    assert first.serial_hex in revoked(device)
    assert second.serial_hex not in revoked(device)
    device.does("contact")


def test_after_a_factory_reset_the_identity_gets_another_certificate(device: Device) -> None:
    device.does("enrol", "local")
    first = device.certificate()
    device.does("reset")
    assert sorted(path.name for path in device.folder.glob("*.pem")) == [
        "gateway-ca.pem", "identity.pem", "provisioning.pem",
    ]  # fmt: skip
    device.does("enrol", "local", "contact")
    assert first.serial_hex in revoked(device)
    assert device.certificate().serial_hex not in revoked(device)
    assert device.kinds().count("device-issued") == 1, "it has one identity"


def test_an_answer_that_was_lost_is_had_by_asking_again(device: Device) -> None:
    """The service has committed what it answered; the device asks again, and nothing is done twice."""
    curl = device.path / "curl"
    curl.unlink()
    for lost in ("identity.csr", "identity.signature", "local"):
        step = "local" if lost == "local" else "enrol"
        posts = "body" if lost != "identity.signature" else lost
        losing = f'case "$*" in *--data-binary*{posts}*) exit 52 ;; esac'
        curl.write_text(f'#!{need("dash")}\n{need("curl")} "$@" || exit\n{losing}\n')
        curl.chmod(0o700)
        done = device.boots(step)
        assert (done.returncode, "try again later" in done.stderr) == (LATER, True), done.stderr
        curl.unlink()
        curl.symlink_to(need("curl"))
        if lost != "identity.csr":
            device.does(step)
        curl.unlink()
    curl.symlink_to(need("curl"))
    device.does("contact")
    kinds_of_it = device.kinds()
    assert (kinds_of_it.count("device-issued"), kinds_of_it.count("device-released")) == (1, 1)
    assert kinds_of_it.count("local-proved") == 1


def test_a_device_waits_for_the_person_who_looks_at_its_request(device: Device, tmp_path: Path) -> None:
    """It has a code here, and no certificate."""
    (device.folder / "provisioning.pem").unlink()
    code = code_for(device.plane.realm, f"{device.name}.c", device.id, ONE_BY_ONE)
    (device.folder / "provisioning.code").write_text(f"{device.name}.c:{code}\n", encoding="ascii")
    # Its clock runs fast: half a minute of waiting is nothing to it.
    (device.path / "sleep").unlink()
    (device.path / "sleep").symlink_to(need("true", "coreutils"))
    booting = subprocess.Popen(
        [need("dash"), SCRIPT, device.name, "enrol"],
        env=device.environment(ONE_BY_ONE),
        stderr=subprocess.PIPE,
    )

    def waiting() -> list[str]:
        entries = device.plane.realm.entries()
        return [
            e["enrolment"] for e in entries if e["kind"] == "enrolment-waiting" and e["device"] == device.id
        ]

    try:
        (enrolment,) = until(waiting)
        device.plane.realm.run("enrolment", "approve", enrolment, "--reason", "it is on my desk")
        _, told = booting.communicate(timeout=60)
    finally:
        booting.kill()
        booting.communicate()
    assert booting.returncode == 0, told
    assert b"waits for a person" in told
    assert device.kinds()[-2:] == ["device-issued", "device-released"]


def test_it_tells_what_is_final_from_what_may_pass(device: Device) -> None:
    pinned, kept = device.folder / "gateway-ca.pem", device.folder / "kept.pem"
    pinned.rename(kept)
    openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=Eve",
        "-keyout", device.folder / "eve.key", "-out", pinned,
    )  # fmt: skip
    assert device.boots("enrol").returncode == LATER, "a service that it cannot verify is as good as none"
    kept.replace(pinned)
    wrong = device.boots("enrol", run="NO-SUCH-RUN")
    assert (wrong.returncode, "404" in wrong.stderr) == (1, True), wrong.stderr
    assert device.boots("fly").returncode == 1
    assert device.kinds() == []


def recall(device: Device) -> None:
    """Have two people revoke what a device has."""
    realm = device.plane.realm
    anna, bela = realm.operator, realm.path.parent / "bela"
    if not bela.exists():
        realm.run("operator", "enrol", "bela", "--role", "officer", "--out", bela, "--as", anna)
    order = ("--device", device.id, "--reason=keyCompromise", "--because", "a test")
    said = realm.run("recall", "propose", *order, "--json", "--as", anna).stdout
    realm.run("recall", "approve", json.loads(said)["id"], "--yes", "--as", bela)


def revoked(device: Device) -> set[str]:
    """Return the serial numbers that the log says are revoked."""
    return {serial for entry in device.plane.realm.entries() for serial in entry.get("certificates", ())}
