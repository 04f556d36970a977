"""The OpenAPI description is true: real answers validate against it, and schemathesis finds no other ones."""

import base64
import json
import os
import re
import ssl
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from birthmark.edge.http.problems import HTTP_STATUS
from tests.support.devices import asked, signed
from tests.support.postgresql import LocalPostgreSQL
from tests.support.server import RUN, Answer, Http, Server, copy_realm, tls_context

OF_ELEMENTS = {
    ("post", "/v1/inject"), ("post", "/v1/gang-inject"), ("post", "/v1/runs/{run}/attest")
}  # fmt: skip
"""For devices that have elements: judged where there are some (``test_device_status``, ``test_tpm``)."""


@pytest.fixture(scope="module")
def description(server: Server) -> Mapping[str, Any]:
    with Http(server.address, tls_context(server.realm.station())) as client:
        described: Mapping[str, Any] = client.get("/openapi.json").json
    return described


ON_A_LINE_WITH_ELEMENTS = {"/v1/runs/{run}/attest", "/v1/inject", "/v1/gang-inject"}
"""Judged where devices have elements: tests/system/test_tpm.py and test_tears.py."""


class Judge:
    """Holds answers against the description, and remembers which it has seen."""

    def __init__(self, description: Mapping[str, Any]) -> None:
        self.description = description
        self.seen: set[tuple[str, str, int]] = set()

    def take(self, method: str, path: str, answer: Answer) -> Answer:
        """Validate an answer to a request to a documented path."""
        told = self.description["paths"][path][method]["responses"]
        assert str(answer.status) in told, f"{method} {path} answered {answer.status}"
        content = told[str(answer.status)]["content"]
        assert answer.type in content, f"{method} {path} answered {answer.type}"
        schema = {**content[answer.type]["schema"], "components": self.description["components"]}
        value = answer.json if answer.type.endswith("json") else answer.body.decode()
        jsonschema_rs.Draft202012Validator(schema).validate(value)
        self.seen.add((method, path, answer.status))
        return answer


def test_every_documented_answer_is_given_and_is_as_documented(
    description: Mapping[str, Any], station: Http, operator: Http
) -> None:
    judge = Judge(description)
    issue, gang = "/v1/runs/{run}/issue", "/v1/runs/{run}/gang-issue"
    device = "/v1/devices/{device}"
    key, body = asked("API-1")
    issued = judge.take("post", issue, station.post(f"/v1/runs/{RUN}/issue", body)).json
    judge.take("post", "/v1/prove", station.post("/v1/prove?since=1", signed(issued, key)))
    delivered = {"hardware_id": "API-2", "idempotency_key": "issue-API-2"}
    judge.take("post", issue, station.post(f"/v1/runs/{RUN}/issue", delivered))
    keys = dict(asked(f"API-{number}") for number in (3, 4))
    answer = station.post(
        f"/v1/runs/{RUN}/gang-issue", {"devices": [*keys.values(), delivered | {"hardware_id": "x y"}]}
    )
    results = judge.take("post", gang, answer).json["results"]
    assert results[2]["status"] == 409
    proofs = [signed(result, key) for result, key in zip(results, keys, strict=False)]
    wrong = {**proofs[0], "signature": base64.b64encode(b"nothing").decode(), "idempotency_key": "wrong"}
    answer = station.post("/v1/gang-prove?since=1", {"proofs": [wrong, proofs[1]]})
    results = judge.take("post", "/v1/gang-prove", answer).json["results"]
    assert [result.get("code", result.get("state")) for result in results] == ["proof-failed", "released"]
    for name in ("API-1", "API-2", "API-3"):
        judge.take("get", device, station.get(f"/v1/devices/serial:{name}"))
    judge.take("get", device + "/token", station.get("/v1/devices/serial:API-1/token"))
    judge.take("get", device + "/token", station.get("/v1/devices/serial:API-2/token"))
    judge.take("get", "/v1/me", station.get("/v1/me"))
    judge.take("get", "/v1/me", operator.get("/v1/me"))
    judge.take("get", "/v1/runs/{run}", station.get(f"/v1/runs/{RUN}"))
    judge.take("get", "/v1/checkpoint", station.get("/v1/checkpoint"))
    for act, name in (("hold", "API-2"), ("rework", "API-2"), ("scrap", "API-3")):
        disposal = {"reason": "scratched", "idempotency_key": f"api-{act}"}
        judge.take("post", f"{device}/{act}", operator.post(f"/v1/devices/serial:{name}/{act}", disposal))
        judge.take("post", f"{device}/{act}", operator.post(f"/v1/devices/serial:{name}/{act}", {}))
        judge.take("post", f"{device}/{act}", operator.post(f"/v1/devices/serial:API-1/{act}", disposal))
    judge.take(
        "post", "/v1/prove", station.post("/v1/prove", {**signed(issued, key), "idempotency_key": "again"})
    )
    _, renewal = asked("ST01")
    judge.take("post", "/v1/me/certificate", station.post("/v1/me/certificate", {"csr": renewal["csr"]}))
    judge.take("post", "/v1/me/certificate", station.post("/v1/me/certificate", {"csr": "none"}))
    judge.take("get", "/v1/checkpoint", station.get("/v1/checkpoint?since=1&since=2"))
    judge.take("get", "/v1/checkpoint", station.get("/v1/checkpoint?since=0"))
    good = {(method, path) for method, path, status in judge.seen if status == 200}
    documented = {(method, path) for path, item in description["paths"].items() for method in item}
    assert good == documented - OF_ELEMENTS


def test_the_description_knows_no_status_that_the_table_does_not(description: Mapping[str, Any]) -> None:
    known = {"200", *map(str, HTTP_STATUS.values())}
    for path, item in description["paths"].items():
        for method, operation in item.items():
            assert set(operation["responses"]) == known, f"{method} {path}"


def test_nobody_else_gets_the_description(server: Server, tmp_path: Path) -> None:
    """It needs the handshake like everything else."""
    with (
        Http(server.address, tls_context(None, root=server.realm.path / "root.crt")) as client,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        client.get("/openapi.json")


CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
)
# The only links are ours (``linked``): those that would be guessed lead from one refusal to the next.
# Real names for the paths of half of the operations, so that requests get further than "not found"; and 409
# and 413 are ways to reject what the schema does not allow, too.
SCHEMATHESIS = f"""
[checks]
negative_data_rejection.expected-statuses = [400, 403, 404, 405, 409, 413, 422]

[phases.stateful]
inference.algorithms = []

[[operations]]
include-name = ["POST /v1/runs/{{run}}/issue", "GET /v1/runs/{{run}}"]
parameters = {{ run = "{RUN}" }}

[[operations]]
include-name = ["GET /v1/devices/{{device}}", "POST /v1/devices/{{device}}/hold"]
parameters = {{ device = "serial:API-9" }}
"""


def linked(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return the description with links (OpenAPI 3.1 section 4.20): which answer leads to which request.

    Keys are delivered in it: nobody makes up a certification request that is good.
    """
    linked: dict[str, Any] = json.loads(json.dumps(description))
    device = {
        act: {
            "operationRef": f"#/paths/~1v1~1devices~1{{device}}{path}/{method}",
            "parameters": {"device": "$response.body#/device"},
        }
        for act, path, method in (
            ("look", "", "get"), ("token", "~1token", "get"), ("hold", "~1hold", "post"),
            ("rework", "~1rework", "post"), ("scrap", "~1scrap", "post"),
        )
    }  # fmt: skip
    attempt = {
        act: {
            "operationRef": f"#/paths/~1v1~1{act}/post",
            "requestBody": {"attempt": "$response.body#/attempt"},
        }
        for act in ("prove", "inject")
    }
    linked["paths"]["/v1/runs/{run}/issue"]["post"]["responses"]["200"]["links"] = device | attempt
    for name in ("Issue", "Prove"):
        body = linked["components"]["schemas"][name]
        body["properties"] = {member: body["properties"][member] for member in body["required"]}
    return linked


def run_schemathesis(server: Server, who: Path, folder: Path, *options: str, links: bool = False) -> str:
    """Run schemathesis against the server with somebody's credentials; whatever it finds fails the test."""
    (folder / "schemathesis.toml").write_text(SCHEMATHESIS, encoding="utf-8")
    with Http(server.address, tls_context(server.realm.station())) as client:
        client.post(f"/v1/runs/{RUN}/issue", {"hardware_id": "API-9", "idempotency_key": "issue-API-9"})
        described = client.get("/openapi.json").json
    described = linked(described) if links else described
    (folder / "openapi.json").write_text(json.dumps(described), encoding="utf-8")
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", "openapi.json",
        "--url", server.realm.url, "--tls-verify", str(who / "root.crt"),
        "--request-cert", str(who / "station.crt"), "--request-cert-key", str(who / "station.key"),
        "--checks", ",".join(CHECKS),
        "--generation-database", "none", "--no-color",
        *options,
    ]  # fmt: skip
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=2900, cwd=folder,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-6000:]
    assert "Traceback" not in server.told()
    return said


def test_schemathesis_finds_nothing(server: Server, tmp_path: Path) -> None:
    """A few requests of each kind, alone and one after another; the long version makes thousands."""
    options = ("--phases", "fuzzing,stateful", "--mode", "positive", "--max-examples", "3")
    said = run_schemathesis(server, server.realm.station(), tmp_path, *options, links=True)
    assert "Tested: " in said, said[-3000:]


@pytest.mark.soak
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("who", ["station", "operator"])
def test_schemathesis_finds_nothing_for_long(tmp_path: Path, postgresql: LocalPostgreSQL, who: str) -> None:
    """On PostgreSQL, which is pickier about what it is given than SQLite."""
    realm = copy_realm(tmp_path / "realm", postgresql)
    home = realm.station() if who == "station" else realm.operator
    with Server(realm=realm) as server:
        each = ("--phases", "examples,coverage,fuzzing", "--max-examples", "200")
        run_schemathesis(server, home, tmp_path, *each)
        more = ("--phases", "stateful", "--mode", "positive", "--max-examples", "300")
        said = run_schemathesis(server, home, tmp_path, *more, links=True)
        covered = re.search(r"API Links: +(\d+) covered", said)
        assert covered is not None, said[-3000:]
        assert (int(covered[1]) > 0) is (who == "station"), said[-3000:]  # an operator issues nothing
        assert server.stop() == 0
        realm.check()
