"""Devices boot with the same image, by curl and openssl: each gets a certificate of its own (SPEC H4)."""

import json
import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.support.enrolling import Bench, DeviceRealm, device_realm, est, openssl
from tests.support.gateways import Vehicle
from tests.support.postgresql import LocalPostgreSQL
from tests.support.programs import need
from tests.support.server import RUN, Server, until


@pytest.fixture(params=["sqlite", "postgresql"])
def plane(request: pytest.FixtureRequest, tmp_path: Path) -> DeviceRealm:
    cluster: LocalPostgreSQL | None = None
    if request.param == "postgresql":
        cluster = request.getfixturevalue("postgresql")
    return device_realm(tmp_path / "realm", cluster)


def image(plane: DeviceRealm, tmp_path: Path, name: str, *limits: str) -> Vehicle:
    """Make the archive, and unpack it as whoever builds an image does."""
    out, folder = tmp_path / f"{name}.zip", tmp_path / name
    plane.realm.run("shared", "make", name, "--run", RUN, "--hours", "8", "--out", out, *limits)
    with zipfile.ZipFile(out) as archive:
        archive.extractall(folder)
    told = json.loads((folder / "gateway.json").read_text())
    assert told["est"] == f"{plane.url}/.well-known/est/{RUN}"
    assert (folder / "gateway-ca.pem").read_bytes() == plane.root.read_bytes()
    return Vehicle(
        id=f"shared:{name}", certificate=folder / "provisioning.pem", key=folder / "provisioning.key"
    )


def first_boot(plane: DeviceRealm, shared: Vehicle, device: Bench) -> Vehicle:
    told = est(plane, f"{RUN}/simpleenroll", device.request(), who=shared)
    return device.hold(told.certificates())


def test_devices_with_the_same_image_get_certificates_of_their_own_until_there_are_no_more(
    plane: DeviceRealm, tmp_path: Path
) -> None:
    shared = image(plane, tmp_path, "image-7", "--quantity", "2", "--network", "127.0.0.0/8")
    benches = [Bench(folder=tmp_path, name=name) for name in ("D1", "D2", "D3")]
    with Server(realm=plane.realm):
        own = [first_boot(plane, shared, bench) for bench in benches[:2]]
        named = [openssl("x509", "-in", one.certificate, "-noout", "-subject") for one in own]
        assert [f"D{number}".encode() in subject for number, subject in enumerate(named, 1)] == [True, True]
        full = est(plane, f"{RUN}/simpleenroll", benches[2].request(), who=shared)
        assert (full.status, full.reason) == (409, "quota-exhausted")
    entries = plane.realm.entries()
    assert entries[-1]["actor"] == "shared:image-7"
    assert (entries[-1]["kind"], entries[-1]["code"]) == ("refused", "quota-exhausted")
    (row,) = json.loads(plane.realm.run("shared", "list", "--json").stdout)
    assert (row["used"], row["left"]) == (2, 0)
    plane.realm.check()


def test_elsewhere_and_after_it_was_revoked_it_brings_nothing_in(plane: DeviceRealm, tmp_path: Path) -> None:
    elsewhere = image(plane, tmp_path, "image-8", "--quantity", "2", "--network", "10.4.0.0/16")
    here = image(plane, tmp_path, "image-9", "--quantity", "2")
    device = Bench(folder=tmp_path, name="D1")
    with Server(realm=plane.realm):
        away = est(plane, f"{RUN}/simpleenroll", device.request(), who=elsewhere)
        assert (away.status, away.reason) == (403, "not-permitted")
        assert "10.4.0.0/16 only" in away.json["detail"]
        plane.realm.run("shared", "revoke", "image-9", "--reason", "leaked")
        told = est(plane, f"{RUN}/simpleenroll", device.request(), who=here)
        assert (told.status, told.reason) == (403, "unauthenticated"), told

        def on_record() -> bool:
            """A refusal before the request is read is put on record a moment later."""
            codes = [entry.get("code") for entry in plane.realm.entries() if entry["kind"] == "refused"]
            return {"not-permitted", "unauthenticated"} <= set(codes)

        assert until(on_record)
    assert not any(entry["kind"] == "device-issued" for entry in plane.realm.entries())
    plane.realm.check()


def test_it_is_for_its_run_alone(plane: DeviceRealm, tmp_path: Path) -> None:
    plane.realm.open_run("RUN-2", 10)
    shared = image(plane, tmp_path, "image-7", "--quantity", "2")
    with Server(realm=plane.realm):
        told = est(plane, "RUN-2/simpleenroll", Bench(folder=tmp_path, name="D1").request(), who=shared)
        assert (told.status, told.reason) == (403, "not-permitted")
    plane.realm.check()


def test_the_packed_script_takes_a_device_from_the_image_to_its_release(
    plane: DeviceRealm, tmp_path: Path
) -> None:
    """Nothing but what is in the archive, a shell, curl and openssl."""
    script = Path(__file__).parents[2] / "deploy/first-boot.sh"
    image(plane, tmp_path, "image-7", "--quantity", "2", "--first-boot", str(script))
    with Server(realm=plane.realm):
        for name in ("D1", "D2"):
            board = tmp_path / name
            with zipfile.ZipFile(tmp_path / "image-7.zip") as archive:
                archive.extractall(board)
            (board / "provisioning.key").chmod(0o600)
            booted = subprocess.run(
                [need("sh"), board / "first-boot.sh", name, "enrol"],
                check=False, capture_output=True, text=True, timeout=60,
                env={**os.environ, "DEVICE": str(board)},
            )  # fmt: skip
            assert booted.returncode == 0, booted
            assert (board / "identity.token").read_text().startswith("c2sp.org/tlog-proof@v1\n")
    shown = json.loads(plane.realm.run("shared", "show", "image-7", "--json").stdout)
    assert (shown["used"], shown["devices"]) == (2, ["serial:D1", "serial:D2"])
    plane.realm.check()
