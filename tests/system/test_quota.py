"""A run's quantity is a hard limit, however many processes admit at once (SPEC C3)."""

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.support.devices import asked, signed
from tests.support.postgresql import LocalPostgreSQL
from tests.support.server import STATIONS, Http, RealmDirectory, Server, copy_realm, free_port, tls_context

ORDER = "QUOTA"


@dataclass(slots=True, kw_only=True)
class Crowd:
    """Clients that all ask at once, each for devices of its own; what they were answered."""

    servers: Sequence[Server]
    clients: int
    each: int
    gang: int
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[BaseException] = field(default_factory=list)

    def run(self) -> None:
        """Let them in, and wait until all have gone."""
        gate = threading.Barrier(self.clients)
        threads = [threading.Thread(target=self._client, args=(n, gate)) for n in range(self.clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.failures:
            raise self.failures[0]

    def _client(self, number: int, gate: threading.Barrier) -> None:
        try:
            server = self.servers[number % len(self.servers)]
            home = server.realm.station(STATIONS[number % len(STATIONS)])
            devices = dict(asked(f"Q{number:02}-{n:04}") for n in range(self.each))
            with Http(server.address, tls_context(home), timeout=60) as client:
                gate.wait(60)
                waiting = list(devices.items())
                while waiting:
                    gang, waiting = waiting[: self.gang], waiting[self.gang :]
                    self._take(client, gang)
        except BaseException as failure:  # noqa: BLE001  # a thread has nobody else to tell
            self.failures.append(failure)

    def _take(
        self, client: Http, gang: Sequence[tuple[ec.EllipticCurvePrivateKey, Mapping[str, Any]]]
    ) -> None:
        bodies = [body for _, body in gang]
        if self.gang == 1:
            issued = [client.post(f"/v1/runs/{ORDER}/issue", bodies[0]).json]
        else:
            issued = client.post(f"/v1/runs/{ORDER}/gang-issue", {"devices": bodies}).json["results"]
        proofs = [
            signed(one, key)
            for (key, _), one in zip(gang, issued, strict=True)
            if one.get("state") == "issued"
        ]
        if not proofs:
            proved: list[Any] = []
        elif self.gang == 1:
            proved = [client.post("/v1/prove", proofs[0]).json]
        else:
            proved = client.post("/v1/gang-prove", {"proofs": proofs}).json["results"]
        self.outcomes.update(one["code"] for one in issued if "code" in one)
        self.outcomes.update(one.get("code", one.get("state")) for one in proved)


def overrun(servers: Sequence[Server], *, quantity: int, clients: int, each: int, gang: int) -> None:
    """Ask for more than a run may admit; exactly its quantity is released and the rest refused."""
    realm = servers[0].realm
    realm.open_run(ORDER, quantity)
    crowd = Crowd(servers=servers, clients=clients, each=each, gang=gang)
    crowd.run()
    assert crowd.outcomes == {"released": quantity, "quota-exhausted": clients * each - quantity}
    with Http(servers[0].address, tls_context(realm.station())) as client:
        status = client.get(f"/v1/runs/{ORDER}").json
    assert (status["quantity"], status["admitted"], status["released"]) == (quantity,) * 3
    for server in servers:
        assert server.stop() == 0
    counts = realm.check()["counts"]
    assert counts["devices released"] == quantity


def serving(stack: ExitStack, realm: RealmDirectory, *, instances: int, processes: int) -> list[Server]:
    """Start several instances of the service on one realm."""
    realms = [realm, *(realm.listening_on(free_port()) for _ in range(instances - 1))]
    servers = [Server(realm=each, processes=processes) for each in realms]
    for server in servers:
        stack.callback(server.kill)
        server.start(ready=False)
    for server in servers:
        server.wait_ready()
    return servers


@pytest.mark.parametrize("gang", [1, 8])
def test_four_processes_admit_exactly_the_quantity(
    tmp_path: Path, postgresql: LocalPostgreSQL, gang: int
) -> None:
    realm = copy_realm(tmp_path / "realm", postgresql)
    with ExitStack() as stack:
        servers = serving(stack, realm, instances=2, processes=2)
        overrun(servers, quantity=120, clients=8, each=24, gang=gang)


def test_two_services_on_sqlite_admit_exactly_the_quantity_in_one_order(tmp_path: Path) -> None:
    """The log of both is one: ``check`` finds no gap, and every checkpoint is a prefix of it."""
    realm = copy_realm(tmp_path / "realm")
    with ExitStack() as stack:
        overrun(serving(stack, realm, instances=2, processes=1), quantity=60, clients=6, each=16, gang=1)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("gang", [1, 16])
@pytest.mark.parametrize(("instances", "processes"), [(8, 1), (1, 8)])
def test_eight_processes_admit_exactly_a_thousand(
    tmp_path: Path, postgresql: LocalPostgreSQL, instances: int, processes: int, gang: int
) -> None:
    realm = copy_realm(tmp_path / "realm", postgresql)
    with ExitStack() as stack:
        servers = serving(stack, realm, instances=instances, processes=processes)
        overrun(servers, quantity=1000, clients=16, each=80, gang=gang)
