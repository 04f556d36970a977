"""The gateway of a served realm, met by curl: who comes in, who is refused, and what the log says (SPEC H3)."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gateways import GatewayRealm, Vehicle, curl, gateway_realm, kinds, vehicle
from tests.support.postgresql import LocalPostgreSQL
from tests.support.server import Server, until


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def gateway(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayRealm]:
    """A served realm with a gateway of two processes, on each database."""
    cluster: LocalPostgreSQL | None = None
    if request.param == "postgresql":
        cluster = request.getfixturevalue("postgresql")
    made = gateway_realm(tmp_path_factory.mktemp("gateway") / "realm", cluster, processes=2)
    with Server(realm=made.realm) as server:
        yield made
        assert "Traceback" not in server.told()
    made.realm.check()


@pytest.fixture
def car(gateway: GatewayRealm, tmp_path: Path, request: pytest.FixtureRequest) -> Vehicle:
    """A vehicle that was released."""
    return vehicle(gateway.realm, f"CAR{abs(hash(request.node.name)) % 10**9}", tmp_path)


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
