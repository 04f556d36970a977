"""``birthmark fleet``: another fleet's authority, from its certificate to its devices, by command."""

import re
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from birthmark.settings import load
from tests.edge.cli.command import Place
from tests.support.foreign import ForeignPKI, Issuer
from tests.support.programs import need
from tests.support.realm import tamper


@pytest.fixture
def root(tmp_path: Path) -> Issuer:
    now = datetime.now(UTC)  # noqa: TID251  # the command has no other clock
    return ForeignPKI(folder=tmp_path / "foreign", at=now - timedelta(minutes=1)).root()


def test_an_authority_is_registered_by_the_recipe_that_the_command_prints(
    realm: Place, root: Issuer, tmp_path: Path
) -> None:
    said = realm.done(
        *("fleet", "challenge", "fjord", "--certificate", root.certificate),
        *("--naming", "serial-number", "--first-contact", "register", "--crl-url", "http://crl.example/1"),
    )
    recipe = re.findall(r"^  (openssl [^\\]*\\\n.*)$", said.out, re.MULTILINE)
    assert len(recipe) == 2
    script = "\n".join(recipe).replace("THEIR.key", str(root.folder / "ca.key"))
    subprocess.run([need("bash"), "-euc", script], cwd=tmp_path, check=True, capture_output=True)
    verification = tmp_path / "verification.pem"
    registered = realm.done("fleet", "register", "fjord", "--verification", verification)
    assert registered.out == "fleet authority fjord is active\n"
    shown = realm.done("fleet", "show", "fjord", "--json").document
    assert (shown["status"], shown["naming"], shown["nonce"], shown["crls"]) == (
        *("active", "serial-number"), None, [],
    )  # fmt: skip
    assert realm("fleet", "register", "fjord", "--verification", verification).code == 1
    assert realm.done("check").code == 0


def accepted(realm: Place, root: Issuer, *options: object) -> None:
    said = realm.done("fleet", "challenge", "fjord", "--certificate", root.certificate, *options, "--json")
    root.verification(said.document["nonce"])
    realm.done("fleet", "register", "fjord", "--verification", root.folder / "verification.pem")


def test_a_crl_is_imported_by_hand(realm: Place, root: Issuer) -> None:
    accepted(realm, root)
    root.list()
    crl = root.folder / "ca.crl"
    assert "yes" in realm.done("fleet", "crl", "fjord", crl).out
    (listed,) = realm.done("fleet", "show", "fjord", "--json").document["crls"]
    assert (listed["number"], listed["entries"]) == ("4096", 0)
    sub = root.below("sub")
    sub.list()
    below = ("fleet", "crl", "fjord", sub.folder / "ca.crl", "--issuer", sub.certificate)
    realm.done(*below, "--url", "http://crl.example/sub")
    assert len(realm.done("fleet", "show", "fjord", "--json").document["crls"]) == 2
    assert "fjord" in realm.done("fleet", "show", "fjord").out
    assert realm("fleet", "crl", "fjord", sub.folder / "ca.crl").code == 1
    assert realm("fleet", "crl", "fjord", root.folder / "nothing").code == 66
    assert realm.done("check").code == 0


def test_a_policy_is_changed_option_by_option_and_a_list_names_devices(
    realm: Place, root: Issuer, tmp_path: Path
) -> None:
    accepted(realm, root, "--crl-url", "http://crl.example/1")
    listed = tmp_path / "devices.csv"
    listed.write_text("device;colour\nD1;red\nD2;blue\n")
    because = ("--reason", "agreed")
    realm.done("fleet", "change", "fjord", "--allow-list", listed, *because)
    shown = realm.done("fleet", "show", "fjord", "--json").document
    assert (shown["first_contact"], shown["crl_url"]) == ("listed", "http://crl.example/1")
    assert len(shown["allow_list"]) == 64
    realm.done("fleet", "change", "fjord", "--pattern", "D[0-9]{1,8}", *because)
    assert realm.done("fleet", "show", "fjord", "--json").document["allow_list"] == shown["allow_list"]
    realm.done("fleet", "change", "fjord", "--first-contact", "refuse", "--revocation", "none", *because)
    bare = realm.done("fleet", "show", "fjord", "--json").document
    assert (bare["allow_list"], bare["crl_url"], bare["revocation"]) == (None, None, "none")
    wrong = realm("fleet", "change", "fjord", "--first-contact", "listed", *because)
    assert (wrong.code, "--allow-list" in wrong.err) == (65, True)
    listed.write_text("device\nD 1\n")
    assert realm("fleet", "change", "fjord", "--allow-list", listed, *because).code == 1
    assert realm("fleet", "change", "fjord", "--crl-url", "file:///etc/passwd", *because).code == 65
    assert realm("fleet", "change", "fjord", "--pattern", "(a+)+", *because).code == 65
    assert realm.done("check").code == 0


def test_an_authority_is_suspended_resumed_and_retired(realm: Place, root: Issuer) -> None:
    accepted(realm, root)
    for verb, status in (("suspend", "suspended"), ("resume", "active"), ("retire", "retired")):
        said = realm.done("fleet", verb, "fjord", "--reason", "because")
        assert said.out == f"fleet authority fjord is {status}\n"
    assert "retired" in realm.done("fleet", "list").out
    assert [one["name"] for one in realm.done("fleet", "list", "--json").document] == ["fjord"]
    assert realm("fleet", "resume", "fjord", "--reason", "because").code == 1


def test_a_device_that_was_never_met_is_not_held(realm: Place) -> None:
    assert realm("fleet", "hold", "serial:D1", "--reason", "stolen").code == 66
    assert realm("fleet", "resume", "serial:D1", "--reason", "found").code == 66
    assert realm.done("fleet", "devices").out == "none\n"
    assert realm.done("fleet", "devices", "--status", "held", "--authority", "fjord", "--json").document == []


@pytest.fixture
def production(realm: Place) -> Place:
    """A realm turned into one of production, with officers anna and bela; its log began as a test realm's."""
    out = realm.directory / "operators" / "bela"
    realm.done("operator", "enrol", "bela", "--role", "officer", "--out", out)
    settings = realm.settings.read_text()
    realm.settings.write_text(settings.replace('environment = "test"', 'environment = "production"'))
    tamper(load(realm.settings).database.url, ("UPDATE realm SET environment = 'production'", ()))
    return realm


def test_in_production_the_command_proposes_and_another_officer_approves(
    production: Place, root: Issuer, tmp_path: Path
) -> None:
    place = production
    anna, bela = (("--as", place.directory / "operators" / name) for name in ("anna", "bela"))
    said = place.done("fleet", "challenge", "fjord", "--certificate", root.certificate, "--json", *anna)
    root.verification(said.document["nonce"])
    verification = root.folder / "verification.pem"
    proposed = place.done("fleet", "register", "fjord", "--verification", verification, *anna)
    approve(place, proposed.out, bela, refused=anna)
    assert place.done("fleet", "list", "--json").document[0]["status"] == "active"
    place.done("fleet", "suspend", "fjord", "--reason", "alone", *anna)
    resumed = place.done("fleet", "resume", "fjord", "--reason", "together", *anna)
    assert place.done("fleet", "list", "--json").document[0]["status"] == "suspended"
    approve(place, resumed.out, bela, refused=anna)
    changed = place.done("fleet", "change", "fjord", "--naming", "uri", "--reason", "agreed", *anna)
    approve(place, changed.out, bela, refused=anna)
    shown = place.done("fleet", "show", "fjord", "--json").document
    assert (shown["status"], shown["naming"]) == ("active", "uri")
    marked = ForeignPKI(folder=tmp_path / "marked", at=root.at).root(subject="/CN=Fjord Root TEST")
    refused = place("fleet", "challenge", "marked", "--certificate", marked.certificate, *anna)
    assert (refused.code, "test realm" in refused.err) == (1, True)


def approve(place: Place, said: str, who: tuple[object, ...], *, refused: tuple[object, ...]) -> None:
    (name,) = set(re.findall(r"pp-[0-9a-f]{10}", said))
    assert place("proposal", "approve", name, "--yes", *refused).code == 77
    place.done("proposal", "approve", name, "--yes", *who)
