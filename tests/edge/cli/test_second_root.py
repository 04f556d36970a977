"""Meters have a root of their own: everybody is still certified under the right one (SPEC A1)."""

import shutil
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from birthmark.edge.station import read_station_directory
from birthmark.pki.certificates import from_pem
from tests.edge.cli.ceremonies import there
from tests.edge.cli.command import Place, done
from tests.support.meters import authorities_of_meters

METER = ("--profile", "dlms-signature-1", "--further", "dlms-tls-1", "--hardware-id-kind", "system-title")


@pytest.fixture(scope="module")
def made_twice_rooted(made_realm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A realm with the authorities ``issuing-1`` under ``root`` and ``dlms-1`` under ``dlms-root``."""
    folder = tmp_path_factory.mktemp("rooted")
    realm = Place(folder / "nord")
    shutil.copytree(made_realm, realm.directory)
    der = from_pem((realm.directory / "operators/anna/station.crt").read_text())[0]
    public = x509.load_der_x509_certificate(der).public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    file, store = folder / "dlms.yaml", folder / "dlms"
    file.write_text(authorities_of_meters("nord", "Nord AG", pem))
    done("ceremony", "store", store)
    attend = [*there(realm, file), "--store", f"dlms={store}", "--out", folder / "done"]
    realm.done("ceremony", "perform", file, *attend)
    return realm.directory


@pytest.fixture
def rooted(made_twice_rooted: Path, tmp_path: Path) -> Place:
    directory = tmp_path / "nord"
    shutil.copytree(made_twice_rooted, directory)
    return Place(directory)


def names(pems: tuple[bytes, ...]) -> list[str]:
    found = [x509.load_der_x509_certificate(der).subject for der in pems]
    return [str(one.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value) for one in found]


@pytest.mark.parametrize("named", [(), ("--authority", "issuing-1")])
def test_a_station_believes_one_root_about_the_service_and_both_about_devices(
    named: tuple[str, ...], rooted: Place, tmp_path: Path
) -> None:
    where = ("--site", "S", "--line", "L", "--out", tmp_path / "ST02")
    rooted.done("station", "enrol", "ST02", *where, *named)
    found = read_station_directory(tmp_path / "ST02")
    assert found.root_pem == (rooted.directory / "root.crt").read_text()
    assert len(found.anchors()) == 1
    assert names(found.device_anchors()) == ["Nord AG Meters Root TEST", *names(found.anchors())]
    found.tls_context()
    (shown,) = rooted.done("station", "show", "ST02", "--json").document["credentials"]
    assert shown["authority"] == "issuing-1"


def test_an_older_station_learns_the_second_root_when_it_is_renewed(rooted: Place) -> None:
    out = rooted.directory / "stations/ST01"
    assert len(read_station_directory(out).device_anchors()) == 1
    rooted.done("station", "renew", "ST01", "--out", out)
    found = read_station_directory(out)
    assert (len(found.anchors()), len(found.device_anchors())) == (1, 2)


def test_operators_bootstraps_and_the_server_are_certified_under_the_services_root(
    rooted: Place, tmp_path: Path
) -> None:
    rooted.done("operator", "enrol", "bela", "--role", "officer", "--out", tmp_path / "bela")
    device = ("--hardware-id", "system-title:4D4D4D0000000001")
    rooted.done("bootstrap", "issue", "--name", "B1", *device, "--out", tmp_path / "B1")
    rooted.done("server", "renew")
    root = x509.load_der_x509_certificate(from_pem((rooted.directory / "root.crt").read_text())[0])
    for file in (tmp_path / "bela/station.crt", tmp_path / "B1/station.crt", rooted.directory / "server.crt"):
        path = [x509.load_der_x509_certificate(der) for der in from_pem(file.read_text())]
        path[-1].verify_directly_issued_by(root)
    for name in ("bela", "B1"):
        assert len(read_station_directory(tmp_path / name).device_anchors()) == 2
    assert rooted.done("check", "--json").document["ok"] is True


def test_a_run_is_certified_by_who_may_issue_all_its_profiles(rooted: Place) -> None:
    common = ("--station", "ST01", "--quantity", "5", "--json")
    opened = rooted.done("run", "open", "M1", "--product", "meter", *METER, *common).document
    assert opened["authority"] == "dlms-1"
    assert rooted.open_run("V1", "--quantity", "5", "--json").document["authority"] == "issuing-1"
    nobody = rooted("run", "open", "M2", "--product", "gas", *METER, *common)
    assert nobody.code == 66
    assert "for gas that may issue dlms-signature-1, dlms-tls-1" in nobody.err
    mixed = ("--further", "vehicle", "--product", "meter")
    assert rooted("run", "open", "M3", *METER, *mixed, *common).code != 0


def test_two_authorities_that_both_may_are_told_apart_by_who_asks(rooted: Place, tmp_path: Path) -> None:
    """SPEC A1: the one asked for is the one that certifies, or the command asks back."""
    template = ("ceremony", "template", "issuing", "--id", "nord-3", "--authority", "trucks")
    asked = rooted(*template, "--ends", "2035-01-01")
    assert asked.code == 65
    assert "say with --issuer which of dlms-root, root is meant" in asked.err
    file = tmp_path / "trucks.yaml"
    file.write_text(rooted.done(*template, "--ends", "2035-01-01", "--issuer", "root").out)
    assert "issuer: root" in file.read_text()
    replaced = rooted.done(*template, "--ends", "2035-01-01", "--replaces", "issuing-1").out
    assert "issuer: root" in replaced
