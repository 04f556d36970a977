"""The gateway of a served realm, met by curl: who comes in, who is refused, what the log says (SPEC H3)."""

import json
import ssl
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.devices import Pool
from bench.gateway import CONTACT, fleet, meet
from tests.edge.cli.command import done
from tests.support.gateways import GatewayRealm, Vehicle, curl, gateway_realm, kinds, vehicle
from tests.support.postgresql import LocalPostgreSQL
from tests.support.programs import need
from tests.support.server import RUN, Http, RealmDirectory, Server, tls_context, until

_names = iter(range(1, 10_000))


def cluster_of(request: pytest.FixtureRequest, database: str) -> LocalPostgreSQL | None:
    return request.getfixturevalue("postgresql") if database == "postgresql" else None


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def gateway(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayRealm]:
    """A served realm with a gateway of two processes, on each database."""
    folder, cluster = tmp_path_factory.mktemp("gateway"), cluster_of(request, request.param)
    # Another realm of the same shape, whose root the gateway knows as another's.
    other = RealmDirectory(path=folder / "other", port=0, database_url="")
    done(
        *("init", other.path, "--realm", "other", "--organization", "Acme Motors", "--operator", "anna"),
        *("--station", "ST01"),
    )
    made = gateway_realm(folder / "realm", cluster, processes=2, other_realms=[str(other.path / "root.crt")])
    done("operator", "enrol", "bela", "--role", "officer", "--out", made.realm.path / "operators/bela",
         "--settings", made.realm.settings, "--as", made.realm.operator)  # fmt: skip
    with Server(realm=made.realm) as server:
        yield made
        assert "Traceback" not in server.told()
        assert server.stop() == 0
    made.realm.check()


@pytest.fixture
def car(gateway: GatewayRealm, tmp_path: Path) -> Vehicle:
    """A vehicle that was released."""
    return vehicle(gateway.realm, f"CAR{next(_names)}", tmp_path)


def command(gateway: GatewayRealm, *words: object, who: str = "anna") -> str:
    """Give a command as one of the two officers."""
    operator = gateway.realm.path / "operators" / who
    return done(*words, "--settings", gateway.realm.settings, "--as", operator).out


def recalled(gateway: GatewayRealm, car: Vehicle, how: str) -> None:
    """Have two people recall one device."""
    said = command(gateway, "recall", "propose", "--device", car.id, how, "--because", "a test", "--json")
    command(gateway, "recall", "approve", json.loads(said)["id"], "--yes", who="bela")


def context_of(gateway: GatewayRealm, car: Vehicle) -> ssl.SSLContext:
    """Return the TLS context of a vehicle that keeps its connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(gateway.root)
    context.load_cert_chain(car.certificate, car.key)
    return context


def test_a_released_vehicle_comes_in_and_is_registered_once(gateway: GatewayRealm, car: Vehicle) -> None:
    first = curl(gateway, "/v1/contact", car)
    assert first.status == 200, first.body
    told = first.json
    assert (told["device"], told["realm"], told["environment"]) == (car.id, "acme", "test")
    assert (told["status"], told["authority"], told["token"]) == ("accepted", "issuing-1", None)
    size = len(gateway.realm.entries())
    again = curl(gateway, "/v1/status", car)
    assert (again.status, again.json["first_seen_at"]) == (200, told["first_seen_at"])
    assert len(gateway.realm.entries()) == size, "a contact that changes nothing commits nothing"
    assert kinds(gateway, car.id) == ["device-first-seen"]


def test_a_vehicle_that_never_left_the_line_is_refused_until_it_is_released(
    gateway: GatewayRealm, tmp_path: Path
) -> None:
    early = vehicle(gateway.realm, f"EARLY{next(_names)}", tmp_path, release=False)
    refused = curl(gateway, "/v1/contact", early)
    assert (refused.status, refused.rule) == (403, "device-not-released")
    assert "is issued, not released" in refused.json["detail"]
    assert refused.headers["connection"] == "close"
    assert kinds(gateway, early.id) == ["device-not-released"]


def test_a_vehicle_held_at_the_line_is_refused(gateway: GatewayRealm, tmp_path: Path) -> None:
    held = vehicle(gateway.realm, f"HELD{next(_names)}", tmp_path, release=False)
    command(gateway, "device", "hold", held.id, "--reason", "scratched")
    refused = curl(gateway, "/v1/contact", held)
    assert (refused.status, refused.rule) == (403, "device-held")
    assert "held at the line: scratched" in refused.json["detail"]
    assert kinds(gateway, held.id) == ["device-held"]


def test_a_vehicle_is_refused_at_the_next_contact_after_its_recall(
    gateway: GatewayRealm, car: Vehicle
) -> None:
    assert curl(gateway, "/v1/contact", car).status == 200
    recalled(gateway, car, "--suspend")
    refused = curl(gateway, "/v1/contact", car)
    assert (refused.status, refused.rule) == (403, "certificate-suspended")
    recalled(gateway, car, "--reinstate")
    assert curl(gateway, "/v1/contact", car).status == 200
    recalled(gateway, car, "--reason=keyCompromise")
    refused = curl(gateway, "/v1/contact", car)
    assert (refused.status, refused.rule) == (403, "certificate-revoked")
    assert kinds(gateway, car.id) == ["device-first-seen", "certificate-suspended", "certificate-revoked"]


def test_an_open_connection_ends_with_the_recall(gateway: GatewayRealm, car: Vehicle) -> None:
    """Nothing is remembered from the last request: the very next one is refused, and the connection ends."""
    with Http(("127.0.0.1", gateway.port), context_of(gateway, car)) as kept:
        assert kept.post("/v1/contact", {}).status == 200
        assert kept.get("/v1/status").status == 200
        recalled(gateway, car, "--reason=keyCompromise")
        refused = kept.get("/v1/status")
    assert (refused.status, refused.json["rule"]) == (403, "certificate-revoked")
    assert refused.headers["connection"] == "close"


def test_a_certificate_that_nobody_has_on_record_is_refused_though_it_is_under_our_root(
    gateway: GatewayRealm,
) -> None:
    station = gateway.realm.station()
    stranger = Vehicle(id="", certificate=station / "station.crt", key=station / "station.key")
    refused = curl(gateway, "/v1/contact", stranger)
    assert (refused.status, refused.rule) == (403, "device-unknown")
    entry = next(one for one in reversed(gateway.realm.entries()) if one["kind"] == "refused")
    assert (entry["rule"], entry["address"], entry["actor"]) == ("device-unknown", "127.0.0.1", "peer:device")


def test_a_device_of_another_realm_is_refused_as_one(gateway: GatewayRealm) -> None:
    station = gateway.realm.path.parent / "other/stations/ST01"
    stranger = Vehicle(id="", certificate=station / "station.crt", key=station / "station.key")
    refused = curl(gateway, "/v1/contact", stranger)
    assert (refused.status, refused.rule) == (403, "wrong-realm")
    assert "other" in refused.json["detail"]


def test_whoever_chains_to_nobody_we_know_gets_no_further_than_the_handshake(
    gateway: GatewayRealm, tmp_path: Path
) -> None:
    key, certificate = tmp_path / "own.key", tmp_path / "own.crt"
    subprocess.run(
        [need("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-subj", "/CN=stranger", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    refused = curl(gateway, "/v1/contact", Vehicle(id="", certificate=certificate, key=key))
    assert refused.exit != 0
    assert curl(gateway, "/v1/contact", None).exit != 0
    assert until(
        lambda: any(
            one.get("request") == "handshake" and "self-signed" in str(one.get("detail"))
            for one in gateway.realm.entries()
        )
    )


def test_two_with_one_identity_at_two_places_are_both_refused_until_a_person_decides(
    gateway: GatewayRealm, car: Vehicle
) -> None:
    """The clone has key and certificate, and connects from somewhere else while the first is connected."""
    with Http(("127.0.0.1", gateway.port), context_of(gateway, car)) as first:
        assert first.post("/v1/contact", {}).status == 200
        assert curl(gateway, "/v1/contact", car, at="127.0.0.9").status == 200, "it may have moved there"
        refused = first.post("/v1/contact", {})
    assert (refused.status, refused.json["rule"]) == (403, "device-cloned")
    assert "127.0.0.1" in refused.json["detail"]
    assert "127.0.0.9" in refused.json["detail"]
    for place in ("127.0.0.1", "127.0.0.9"):
        assert curl(gateway, "/v1/contact", car, at=place).rule == "device-held"
    assert kinds(gateway, car.id) == ["device-first-seen", "field-device-held", "device-held", "device-held"]


def test_a_vehicle_that_travels_is_let_in_wherever_it_connects_anew(
    gateway: GatewayRealm, car: Vehicle
) -> None:
    for place in ("127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.1"):
        assert curl(gateway, "/v1/contact", car, at=place).status == 200
    assert kinds(gateway, car.id) == ["device-first-seen"]


def test_a_closed_gateway_meets_nobody(gateway: GatewayRealm, car: Vehicle) -> None:
    command(gateway, "exposure", "close", "plane:gateway", "--reason", "a test")
    try:
        assert until(lambda: curl(gateway, "/v1/contact", car).exit != 0), "refused in the handshake"
    finally:
        command(gateway, "exposure", "clear", "plane:gateway", "--reason", "a test")
    # Two processes answer, and each hears of it in its own time.
    assert until(lambda: all(curl(gateway, "/v1/contact", car).status == 200 for _ in range(12)))


def test_a_storm_of_first_contacts_registers_each_once(gateway: GatewayRealm, tmp_path: Path) -> None:
    """Two hundred devices, each twice and at about the same time; two processes answer."""
    realm = gateway.realm
    devices = Pool().take(200)
    cars = fleet(("127.0.0.1", realm.port), tls_context(realm.station()), RUN, devices, tmp_path / "cars")
    meet([*cars, *reversed(cars)], gateway.root, gateway.port, CONTACT)
    seen = [str(one["device"]) for one in realm.entries() if one["kind"] == "device-first-seen"]
    assert Counter(seen) & Counter({car.id: 400 for car in cars}) == Counter(car.id for car in cars)
