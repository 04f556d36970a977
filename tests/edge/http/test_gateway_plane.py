"""The gateway plane without sockets: a handshake of one's own is a proof, a proxy's word is none."""

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from birthmark import app
from birthmark.edge.application import Application
from birthmark.edge.http.gateway import create_gateway_app
from birthmark.edge.http.peer import PATH_KEY, SCOPE_KEY
from birthmark.edge.pins import Pins
from birthmark.floor.clients import Role
from birthmark.floor.devices import Attempt, DeviceState
from birthmark.floor.enrolments import LocalIdentity, local_identity_id
from birthmark.services.issue import IssueRequest
from birthmark.settings import Settings
from tests.fuzz.plane_targets import Answered, answer_of, scope_of
from tests.support.realm import PASSPHRASE, Line, hierarchy, make_line, proof, workpiece


class Plane:
    """The plane of a realm whose device D1 has a certificate of an operational run, not proved yet."""

    def __init__(self, line: Line, application: Application, tell: list[str]) -> None:
        self.line, self.application = line, application
        self.app = create_gateway_app(application, pins=lambda: Pins(now="now", next=None), tell=tell.append)
        self.told = tell

    def ask(self, peer: bytes, path: str = "/v1/contact", **headers: str) -> Answered:
        document = {
            "method": "POST" if path == "/v1/contact" else "GET",
            "path": path,
            "headers": {name.replace("_", "-"): value for name, value in headers.items()},
        }
        above = (hierarchy().issuing, hierarchy().root)
        scope: dict[str, Any] = scope_of(document) | {SCOPE_KEY: peer, PATH_KEY: above}
        return asyncio.run(answer_of(self.app, scope, b""))


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    made = make_line(tmp_path, f"sqlite:///{tmp_path / 'line.sqlite'}")
    made.open_run()
    made.open_operational()
    yield made
    made.close()


@pytest.fixture
def ldevid(line: Line) -> bytes:
    device = workpiece("D1")
    issued = line.issue(device)
    line.prove(proof(issued, device.key))
    identity = line.device(issued.certificate, device.key)
    asking = IssueRequest(hardware_id="", csr=workpiece("D1").csr, key="enrol-1")
    granted = line.service.carry(line.service.enrolments.enrol(identity.caller, "L1", asking))
    certificate: bytes = granted.certificate  # type: ignore[union-attr]  # nobody has to approve it
    return certificate


@pytest.fixture
def plane(line: Line, tmp_path: Path) -> Iterator[Plane]:
    passphrase = tmp_path / "passphrase"
    passphrase.write_bytes(PASSPHRASE.reveal())
    passphrase.chmod(0o600)
    unused = str(tmp_path / "unused")
    settings = Settings.model_validate(
        {
            "realm": {"name": "acme", "environment": "test", "organization": "Acme Motors"},
            "database": {"url": f"sqlite:///{tmp_path / 'line.sqlite'}"},
            "log": {"key": "log"},
            "key-store": {
                "kind": "software",
                "directory": str(hierarchy().directory),
                "passphrase-file": str(passphrase),
            },
            "gateway-plane": {
                "certificate-file": unused,
                "key-file": unused,
                "key-passphrase-file": unused,
                "refusals-per-minute": 1,
                "refusals-burst": 2,
            },
        }
    )
    application = app.build(settings, clock=line.clock)
    yield Plane(line, application, [])
    application.close()


def state(line: Line) -> DeviceState:
    return line.the(Attempt, line.the(LocalIdentity, local_identity_id("serial:D1", "L1")).attempt).state


def test_a_devices_own_handshake_proves_the_certificate_it_was_given(plane: Plane, ldevid: bytes) -> None:
    assert state(plane.line) is DeviceState.ISSUED
    answered = plane.ask(ldevid)
    assert answered.status == 200, answered.body
    assert state(plane.line) is DeviceState.RELEASED
    assert plane.told == ["first-seen"]


def test_the_word_of_a_proxy_proves_nothing(plane: Plane, ldevid: bytes) -> None:
    proxy = plane.line.enrol(Role.PROXY, "edge-1").caller.credential.der
    passed_on = f":{base64.b64encode(ldevid).decode()}:"
    asked = plane.ask(proxy, "/v1/authorise", client_cert=passed_on, birthmark_address="192.0.2.1")
    assert (asked.status, b"device-not-released" in asked.body) == (403, True)
    assert state(plane.line) is DeviceState.ISSUED
    assert plane.told == ["device-not-released"]


def test_beyond_their_rate_refusals_are_told_as_too_fast_and_counted(plane: Plane) -> None:
    stranger = plane.line.station.caller.credential.der
    size = plane.line.size()
    answers = [plane.ask(stranger) for _ in range(4)]
    assert [answer.status for answer in answers] == [403, 403, 429, 429]
    assert answers[-1].headers[b"retry-after"]
    assert plane.line.size() == size + 2
    assert plane.told == ["device-unknown"] * 4
