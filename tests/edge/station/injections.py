"""What tests of devices with secure elements look at."""

import json
from typing import Any

from birthmark.edge.station import Enclave, Release
from birthmark.ledger import proof
from tests.edge.station.service import Service
from tests.support.injecting import Bench


def check_released(service: Service, device: Enclave, release: Release, bench: Bench) -> None:
    """The log says what the element holds."""
    assert service.devices[release.device].state == "released"
    assert service.devices[release.device].number == 1, "one attempt"
    assert device.token() == release.token
    entry: dict[str, Any] = proof.verify(release.token, service.vkey)
    assert entry["record"]["key_set"] == release.key_set
    assert bench.holds_only_the_final_set()
    assert bench.holds_the_objects()
    assert bench.most_failures <= 1


def paths(service: Service) -> list[str]:
    return [path for _, path, _, _ in service.requests]


def bodies(service: Service, path: str) -> list[dict[str, Any]]:
    return [
        json.loads(body)
        for (_, asked, _, _), body in zip(service.requests, service.bodies, strict=True)
        if asked == path
    ]
