"""Every endpoint × every role, over real TLS: who may do what is the table (SPEC K1, C1).

The endpoints are those of the application; one without a line here fails.  A cell sends the least that gets
as far as the question who asks: what else is wrong with it does not matter.
"""

import base64
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute

from birthmark.edge.http.station import create_app
from birthmark.floor.clients import CAPABILITIES, Capability, Role
from birthmark.settings import load
from tests.edge.cli.command import Place
from tests.support.server import Answer, Http, RealmDirectory, Server, copy_realm, tls_context, until

DEVICE = "serial:M1"
ATTEMPT = "0" * 32
KEY = {"idempotency_key": "a-key-of-its-own"}
RESPONSES = {"step": 0, "responses": []}
PROOF = {
    "attempt": ATTEMPT,
    "certificate_sha256": "00" * 32,
    "signature": base64.b64encode(b"s").decode(),
}
ENDPOINTS: dict[tuple[str, str], tuple[Capability, dict[str, Any] | None]] = {
    ("GET", "/v1/me"): (Capability.READ, None),
    ("GET", "/v1/runs/{run}"): (Capability.READ, None),
    ("GET", "/v1/devices/{device}"): (Capability.READ, None),
    ("GET", "/v1/devices/{device}/token"): (Capability.READ, None),
    ("GET", "/v1/checkpoint"): (Capability.READ, None),
    ("POST", "/v1/me/certificate"): (Capability.RENEW_SELF, {"csr": "none"}),
    ("POST", "/v1/runs/{run}/attest"): (Capability.ISSUE, {}),
    ("POST", "/v1/runs/{run}/issue"): (Capability.ISSUE, {"hardware_id": "M1", "csr": "none", **KEY}),
    ("POST", "/v1/runs/{run}/gang-issue"): (
        Capability.ISSUE,
        {"devices": [{"hardware_id": "M1", "csr": "none", **KEY}]},
    ),
    ("POST", "/v1/inject"): (Capability.PROVE, {"attempt": ATTEMPT, "element": RESPONSES}),
    ("POST", "/v1/gang-inject"): (
        Capability.PROVE,
        {"dialogues": [{"attempt": ATTEMPT, "element": RESPONSES}]},
    ),
    ("POST", "/v1/prove"): (Capability.PROVE, PROOF | KEY),
    ("POST", "/v1/gang-prove"): (Capability.PROVE, {"proofs": [PROOF | KEY]}),
    ("POST", "/v1/devices/{device}/hold"): (Capability.HOLD, {"reason": "r", **KEY}),
    ("POST", "/v1/devices/{device}/rework"): (Capability.REWORK, {"reason": "r", **KEY}),
    ("POST", "/v1/devices/{device}/scrap"): (Capability.SCRAP, {"reason": "r", **KEY}),
}
ALSO_BOOTSTRAP = {("GET", "/v1/me"), ("GET", "/v1/runs/{run}"), ("GET", "/v1/checkpoint")}
"""What a bootstrap credential reads because it cannot provision without."""
UNJUDGED = {("POST", "/v1/runs/{run}/attest")}
"""The run has no TPMs: whoever asks is told so first.  Who may attest: tests/services/test_attest.py."""
PEOPLE = {
    "operator": Role.OPERATOR,
    "line-lead": Role.LINE_LEAD,
    "officer": Role.OFFICER,
    "auditor": Role.AUDITOR,
}
ROLES: dict[str, Role | None] = {
    "station": Role.STATION,
    "bootstrap": Role.BOOTSTRAP,
    **PEOPLE,
    "revoked station": None,
    "revoked officer": None,
}


@pytest.fixture(scope="module")
def realm(tmp_path_factory: pytest.TempPathFactory) -> RealmDirectory:
    realm = copy_realm(tmp_path_factory.mktemp("matrix") / "realm")
    place, anna = Place(realm.path), ("--as", realm.operator)
    for role in PEOPLE:
        place.done("operator", "enrol", role, "--role", role, "--out", realm.path / role, *anna)
    gone, stolen = realm.path / "revoked officer", realm.path / "revoked station"
    place.done("operator", "enrol", "gone", "--role", "officer", "--out", gone, *anna)
    place.done("station", "enrol", "ST99", "--site", "s", "--line", "l", "--out", stolen, *anna)
    own = ("--name", "b1", "--hardware-id", DEVICE, "--out", realm.path / "bootstrap")
    place.done("bootstrap", "issue", *own, *anna)
    licence = ("--product", "car", "--quantity", "5", "--hardware-id-kind", "serial", "--hours", "48")
    place.done("run", "open", "R1", *licence, "--station", "ST01", *anna)
    place.done("operator", "revoke", "gone", "--reason", "left", *anna)
    place.done("station", "revoke", "ST99", "--reason", "stolen", *anna)
    return realm


@pytest.fixture(scope="module")
def server(realm: RealmDirectory) -> Iterator[Server]:
    with Server(realm=realm) as running:
        yield running


@pytest.fixture(scope="module")
def doors(server: Server) -> Iterator[dict[str, Http]]:
    """One connection of each role."""
    place = server.realm.path
    folders = {role: place / role for role in ROLES} | {"station": server.realm.station()}
    opened = {role: Http(server.address, tls_context(folder)) for role, folder in folders.items()}
    yield opened
    for one in opened.values():
        one.connection.close()


def ask(door: Http, endpoint: tuple[str, str], number: int) -> Answer:
    path, (_, body) = endpoint[1].format(run="R1", device=DEVICE), ENDPOINTS[endpoint]
    if body is None:
        return door.get(path)
    return door.post(path, body, birthmark_seq=str(number))


def test_every_endpoint_has_a_line(realm: RealmDirectory) -> None:
    from birthmark import app  # noqa: PLC0415  # only here

    application = app.build(load(realm.settings))
    try:
        routes = [route for route in create_app(application).routes if isinstance(route, APIRoute)]
    finally:
        application.close()
    assert {(method, route.path) for route in routes for method in route.methods or ()} == ENDPOINTS.keys()


@pytest.mark.parametrize("role", ROLES)
def test_a_role_reaches_what_the_table_lets_it_and_each_refused_act_is_an_entry(
    server: Server, doors: dict[str, Http], role: str
) -> None:
    wrong, refused = [], 0
    before = len(server.realm.entries())
    for number, (endpoint, (needed, _)) in enumerate(ENDPOINTS.items(), 1):
        kind = ROLES[role]
        allowed = kind is not None and (
            needed in CAPABILITIES[kind] or (kind is Role.BOOTSTRAP and endpoint in ALSO_BOOTSTRAP)
        )
        try:
            answer = ask(doors[role], endpoint, number)
        except (ConnectionError, ssl.SSLError, OSError):
            # Somebody who was shut out does not get as far as a request.
            assert kind is None, (role, endpoint)
            doors[role].connection.close()
            continue
        status = _status(answer)
        as_told = not _is_role(answer) if allowed else status == 403 or endpoint in UNJUDGED
        if answer.status >= 500 or not as_told:
            wrong.append((endpoint, answer.status, answer.body[:200]))
        refused += not allowed and status == 403
    assert not wrong, wrong
    # Whoever was shut out is refused before there is an act: such refusals are told together, once a second.
    shut_out = ROLES[role] is None
    assert until(lambda: _told(server, before, together=shut_out) >= min(refused, 1)), "a refusal is an entry"
    if not shut_out:
        assert _told(server, before, together=False) >= refused, "the refusal of an act is an entry each"


def _told(server: Server, before: int, *, together: bool) -> int:
    refused = [entry for entry in server.realm.entries()[before:] if entry["kind"] == "refused"]
    return sum(entry.get("count", 1) for entry in refused) if together else len(refused)


def _status(answer: Answer) -> int:
    """Return the status; of a gang, its only item's."""
    (item,) = answer.json["results"] if answer.status == 200 and b'"results"' in answer.body else ({},)
    return int(item.get("status", answer.status))


def _is_role(answer: Answer) -> bool:
    return _status(answer) == 403 and b"does not have it" in answer.body


def test_without_a_certificate_or_with_a_servers_nobody_gets_in(server: Server, tmp_path: Path) -> None:
    context = ssl.create_default_context(cafile=str(server.realm.path / "root.crt"))
    with Http(server.address, context) as nobody, pytest.raises((ssl.SSLError, OSError)):
        nobody.get("/v1/me")
