"""Vehicles of another fleet at the served gateway: registered while it runs, revoked by others (SPEC H3, H5).

The other fleet's PKI is OpenSSL's, its OCSP responder is on this machine, and its boats
have curl.
"""

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from birthmark.adapters.system import SystemClock
from birthmark.pki.certificates import to_pem
from tests.edge.cli.command import done
from tests.support.foreign import ForeignPKI, Hosting, Issuer, hosting
from tests.support.gateways import GatewayRealm, Vehicle, curl, gateway_realm, kinds
from tests.support.server import Server, until


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayRealm]:
    made = gateway_realm(tmp_path_factory.mktemp("gateway") / "realm", processes=2)
    with Server(realm=made.realm) as server:
        assert until(lambda: curl(made, "/", None).exit != 7), "it listens"
        yield made
        assert "Traceback" not in server.told()
    made.realm.check()


@pytest.fixture
def pki(tmp_path: Path) -> ForeignPKI:
    return ForeignPKI(folder=tmp_path / "foreign", at=SystemClock().now() - timedelta(minutes=5))


@pytest.fixture
def web() -> Iterator[Hosting]:
    with hosting() as served:
        yield served


def command(gateway: GatewayRealm, *words: object) -> str:
    return done(*words, "--settings", gateway.realm.settings, "--as", gateway.realm.operator).out


def registered(gateway: GatewayRealm, name: str, root: Issuer, *policy: object) -> None:
    """Register an authority, whose owner shows the key, while the gateway runs."""
    said = command(gateway, "fleet", "challenge", name, "--certificate", root.certificate, *policy)
    found = re.search(r"\b[0-9a-f]{64}\b", said.partition("nonce")[2])
    assert found, said
    shown = root.folder / "shown.pem"
    shown.write_text(to_pem(root.verification(found[0])))
    command(gateway, "fleet", "register", name, "--verification", shown)


def boat(issuer: Issuer, name: str, *above: Issuer) -> Vehicle:
    """A boat, with the certificates it sends along."""
    der = issuer.certify(name)
    file = issuer.folder / f"{name}-chain.pem"
    file.write_text("".join([to_pem(der), *(to_pem(one.der) for one in above)]))
    return Vehicle(id="", certificate=file, key=issuer.folder / f"{name}.key")


def contact(gateway: GatewayRealm, who: Vehicle) -> tuple[int, str]:
    """Return status and rule of a contact; 0 where the handshake failed."""
    told = curl(gateway, "/v1/contact", who)
    return told.status, told.rule if told.status == 403 else ""


def known_to_both(gateway: GatewayRealm, who: Vehicle) -> bool:
    """Wait until both processes believe the authority above it, and a handshake is done by either."""
    return until(lambda: all(contact(gateway, who)[0] for _ in range(8)))


def test_a_fleet_is_let_in_without_a_restart_and_turned_away_when_it_is_suspended(
    gateway: GatewayRealm, pki: ForeignPKI
) -> None:
    root = pki.root()
    below = root.below("sub")
    first, second = boat(root, "BOAT-1"), boat(below, "BOAT-2", below)
    assert contact(gateway, first)[0] == 0, "nobody knows its authority: no handshake"
    registered(gateway, "fjord", root, "--first-contact", "register", "--revocation", "none")
    assert known_to_both(gateway, first)
    assert contact(gateway, first) == (200, "")
    assert contact(gateway, second) == (200, "")
    assert kinds(gateway, "fleet:fjord/BOAT-2") == ["device-first-seen"]
    command(gateway, "fleet", "suspend", "fjord", "--reason", "unpaid")
    assert contact(gateway, first) == (403, "fleet-authority-closed")
    command(gateway, "fleet", "resume", "fjord", "--reason", "paid")
    assert contact(gateway, first) == (200, "")
    command(gateway, "fleet", "hold", "fleet:fjord/BOAT-1", "--reason", "stolen")
    assert contact(gateway, first) == (403, "device-held")


def test_a_crl_that_is_brought_lets_a_boat_in_and_the_next_one_turns_it_away(
    gateway: GatewayRealm, pki: ForeignPKI
) -> None:
    root = pki.root(subject="/O=Sound AS/CN=Sound Root")
    one = boat(root, "BOAT-1")
    registered(gateway, "sound", root, "--first-contact", "register")
    assert known_to_both(gateway, one)
    assert contact(gateway, one) == (403, "foreign-status-unknown"), "nothing says that it is good"
    command(gateway, "fleet", "crl", "sound", written(root, "1.crl", 1))
    assert contact(gateway, one) == (200, "")
    root.revoke("BOAT-1")
    command(gateway, "fleet", "crl", "sound", written(root, "2.crl", 2))
    assert contact(gateway, one) == (403, "foreign-revoked")


def written(root: Issuer, name: str, minutes: int) -> Path:
    path = root.folder / name
    path.write_bytes(root.list(at=root.at + timedelta(minutes=minutes)))
    return path


def test_a_responder_is_asked_about_a_boat_and_what_it_says_decides(
    gateway: GatewayRealm, pki: ForeignPKI, web: Hosting
) -> None:
    root = pki.root(subject="/O=Strait AS/CN=Strait Root")
    good, bad = boat(root, "BOAT-1"), boat(root, "BOAT-2")
    root.revoke("BOAT-2")
    web.paths["/ocsp"] = root.answer
    registered(gateway, "strait", root, "--first-contact", "register", "--ocsp-url", f"{web.url}/ocsp")
    assert known_to_both(gateway, good)
    assert contact(gateway, good) == (200, "")
    assert contact(gateway, bad) == (403, "foreign-revoked")
    assert "/ocsp" in web.asked
