"""Every kind of certificate a running realm issues, judged by OpenSSL and pkilint (SPEC F5, G1)."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from birthmark.edge.station import Enclave, Station
from birthmark.pki import profiles
from birthmark.pki.certificates import from_pem
from tests.support.lint import openssl_strict, pkilint_findings, pkilint_pair_findings, unwaived
from tests.support.server import STATIONS, RealmDirectory, Server, make_realm_directory

KINDS = (
    "root",
    "issuing",
    "server",
    "station",
    "operator",
    "bootstrap",
    "vehicle",
    "vehicle-delivered",
    "idevid",
)


@pytest.fixture(scope="module")
def realm(tmp_path_factory: pytest.TempPathFactory) -> RealmDirectory:
    names = ("--dns", "localhost", "--dns", "line.acme.example", "--ip", "127.0.0.1", "--ip", "::1")
    return make_realm_directory(tmp_path_factory.mktemp("certificates") / "realm", *names)


@pytest.fixture(scope="module")
def issued(realm: RealmDirectory) -> Mapping[str, tuple[bytes, ...]]:
    """Return one certificate of each kind with what is above it (DER), the root not included."""
    realm.open_run("CARS", 2, kind="vin", stations=STATIONS[:1])
    realm.open_run(
        "METERS",
        1,
        "--profile",
        "idevid",
        "--variable",
        "hardware_type=1.3.6.1.4.1.32473.1",
        stations=STATIONS[:1],
    )
    out = realm.path.parent / "bootstrap"
    realm.run(
        "bootstrap", "issue", "--name", "dongle-7", "--hardware-id", "vin:1M8GDM9AXKP042790", "--out", out
    )
    chains = {
        "server": from_pem((realm.path / "server.crt").read_text(encoding="ascii")),
        "station": from_pem((realm.station() / "station.crt").read_text(encoding="ascii")),
        "operator": from_pem((realm.operator / "station.crt").read_text(encoding="ascii")),
        "bootstrap": from_pem((out / "station.crt").read_text(encoding="ascii")),
        "root": from_pem((realm.path / "root.crt").read_text(encoding="ascii")),
    }
    chains["issuing"] = chains["server"][1:]
    with Server(realm=realm), Station(realm.station()) as station:
        for kind, run, hardware_id, delivered in (
            ("vehicle", "CARS", "1M8GDM9AXKP042788", False),
            ("vehicle-delivered", "CARS", "1M8GDM9AXKP042789", True),
            ("idevid", "METERS", "SN-0001", False),
        ):
            with Enclave(str(realm.path.parent / kind)) as device:
                station.provision(run, hardware_id, device, delivered=delivered)
                chains[kind] = (device.read_back(), *device.chain())
    return chains


@pytest.mark.parametrize("kind", KINDS)
def test_openssl_verifies_it_strictly(
    issued: Mapping[str, tuple[bytes, ...]], kind: str, tmp_path: Path
) -> None:
    leaf, *chain = issued[kind]
    openssl_strict(issued["root"][0], chain, leaf, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_pkilint_finds_nothing_that_the_profile_does_not_waive(
    issued: Mapping[str, tuple[bytes, ...]], kind: str
) -> None:
    profile = profiles.load(kind.partition("-")[0])
    assert unwaived(pkilint_findings(issued[kind][0]), profile) == []
    if kind == "root":
        return  # nobody is above it
    above = (*issued[kind][1:], issued["root"][0])[0]
    assert unwaived(pkilint_pair_findings(above, issued[kind][0]), profile) == []
