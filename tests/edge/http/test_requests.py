"""Whatever a client sends, it gets a problem, the record an entry, and the service's log no traceback."""

import base64
import http.client
import json
import socket
import ssl
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from birthmark.ledger.checkpoint import Checkpoint, VerifierKey, open_note
from birthmark.ledger.merkle import verify_consistency
from birthmark.ledger.proof import decode
from birthmark.pki.certificates import Certificate
from tests.support.devices import asked, signed
from tests.support.realm import Workpiece, workpiece
from tests.support.server import RUN, Answer, Http, RealmDirectory, Server, tls_context, until

ISSUE = f"/v1/runs/{RUN}/issue"
BODIES: Mapping[str, Any] = {
    ISSUE: {"hardware_id": "REQ-1", "idempotency_key": "k"},
    f"/v1/runs/{RUN}/gang-issue": {"devices": [{"hardware_id": "REQ-1", "idempotency_key": "k"}]},
    "/v1/prove": {
        "attempt": "0" * 32, "certificate_sha256": "0" * 64, "signature": "AAAA", "idempotency_key": "k",
    },
    "/v1/gang-prove": {
        "proofs": [
            {"attempt": "0" * 32, "certificate_sha256": "0" * 64, "signature": "AAAA", "idempotency_key": "k"}
        ]
    },
    "/v1/devices/serial:REQ-1/hold": {"reason": "r", "idempotency_key": "k"},
    "/v1/devices/serial:REQ-1/rework": {"reason": "r", "idempotency_key": "k"},
    "/v1/devices/serial:REQ-1/scrap": {"reason": "r", "idempotency_key": "k"},
}  # fmt: skip


def is_problem(answer: Answer, status: int, code: str) -> Mapping[str, Any]:
    """Hold an answer against RFC 9457 and the code expected; return the problem."""
    assert (answer.status, answer.type) == (status, "application/problem+json"), answer.body[:300]
    told: Mapping[str, Any] = answer.json
    assert (told["status"], told["code"]) == (status, code), told
    assert told["type"] == f"urn:birthmark:problem:{code}"
    assert told["title"]
    assert told["detail"]
    assert told["instance"].startswith("urn:birthmark:instance:")
    return told


def last_entry(realm: RealmDirectory) -> Mapping[str, Any]:
    return realm.entries()[-1]


@pytest.fixture(autouse=True)
def no_traceback(server: Server) -> Any:
    """Nothing a client sends may be a fault of ours."""
    yield
    assert "Traceback" not in server.told()


# --- the log only grows


def test_tokens_come_with_the_proof_that_the_log_grew_from_the_size_that_was_named(
    server: Server, station: Http
) -> None:
    vkey = VerifierKey.parse(station.get("/v1/me").json["vkey"])

    def known() -> Checkpoint:
        return open_note(station.get("/v1/checkpoint").json["checkpoint"], vkey)

    def proof(name: str) -> Mapping[str, Any]:
        key, body = asked(name)
        return signed(station.post(ISSUE, body).json, key)

    def grew(old: Checkpoint, result: Mapping[str, Any]) -> None:
        (told,) = result["consistency"]
        assert told["since"] == old.size
        now = open_note(decode(result["token"]).checkpoint_note, vkey)
        nodes = [base64.b64decode(node) for node in told["proof"]]
        verify_consistency(old.size, now.size, nodes, old.root, now.root)

    old, first = known(), proof("GREW-1")
    grew(old, station.post(f"/v1/prove?since={old.size}", first).json)
    later = known()
    assert station.post(f"/v1/prove?since={later.size + 1}", first).json["consistency"] == [], "as it was"
    assert station.post("/v1/prove", first).json["consistency"] == []
    gang = {"proofs": [proof("GREW-2"), first, proof("GREW-3")]}
    results = station.post(f"/v1/gang-prove?since={later.size}", gang).json["results"]
    assert [len(result["consistency"]) for result in results] == [1, 0, 0], "one for all of the same commit"
    grew(later, results[0])
    for wrong in ("0", "x", "-1", str(2**63)):
        is_problem(station.post(f"/v1/prove?since={wrong}", first), 400, "malformed-request")


# --- bodies -------------------------------------------------------------------------------------------------

MALFORMED = {
    "nothing": b"",
    "no json": b"{",
    "a list": b"[]",
    "null": b"null",
    "a number": b"1",
    "not utf-8": b'{"hardware_id": "\xff\xfe", "idempotency_key": "a"}',
    "utf-16": '{"hardware_id": "A", "idempotency_key": 1}'.encode("utf-16"),
    "deep": b"[" * 90_000 + b"]" * 90_000,
    "deep objects": b'{"a":' * 30_000 + b"1" + b"}" * 30_000,
    "nan": b'{"hardware_id": NaN, "idempotency_key": "a"}',
    "infinity": b'{"hardware_id": "A", "idempotency_key": -Infinity}',
    "a huge number": b'{"hardware_id": ' + b"9" * 100_000 + b', "idempotency_key": "a"}',
    "a huge exponent": b'{"hardware_id": 1e999999999, "idempotency_key": "a"}',
    "a lone surrogate": b'{"hardware_id": "\\ud800", "idempotency_key": "a"}',
    "a nul": b'{"hardware_id": "A", "idempotency_key": "a\\u0000"}',
    "an unknown field": b'{"hardware_id": "A", "idempotency_key": "a", "x": 1}',
    "a missing field": b'{"hardware_id": "A"}',
    "a wrong type": b'{"hardware_id": ["A"], "idempotency_key": "a"}',
    "a long id": json.dumps({"hardware_id": "A" * 65, "idempotency_key": "a"}).encode(),
    "a long key": json.dumps({"hardware_id": "A", "idempotency_key": "a" * 65}).encode(),
    "a newline in the key": b'{"hardware_id": "A", "idempotency_key": "a\\n"}',
}


@pytest.mark.parametrize("why", MALFORMED)
def test_a_malformed_body_is_refused_and_on_record(server: Server, station: Http, why: str) -> None:
    is_problem(station.post(ISSUE, MALFORMED[why], birthmark_seq="7"), 400, "malformed-request")
    entry = last_entry(server.realm)
    assert (entry["kind"], entry["code"], entry["actor"]) == ("refused", "malformed-request", "station:ST01")
    assert (entry["request"], entry["seq"]) == (f"POST {ISSUE}", 7)
    assert station.get("/v1/me").status == 200  # on the same connection


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    "kind", ["text/plain", "application/xml", "application/x-www-form-urlencoded", "x", None]
)
def test_a_body_that_does_not_say_it_is_json_is_not_read(station: Http, path: str, kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    answer = station.ask("POST", path, json.dumps(BODIES[path]).encode(), headers)
    is_problem(answer, 400, "malformed-request")


@pytest.mark.parametrize("hardware_id", ["A\u0000B", "\u202e", "Ä", "", "A" * 65])
@pytest.mark.parametrize("gang", [False, True])
def test_a_hardware_id_that_cannot_be_one_is_a_malformed_request(
    server: Server, station: Http, hardware_id: str, *, gang: bool
) -> None:
    body: Any = {"hardware_id": hardware_id, "idempotency_key": "id"}
    path = f"/v1/runs/{RUN}/gang-issue" if gang else ISSUE
    is_problem(station.post(path, {"devices": [body]} if gang else body), 400, "malformed-request")
    assert last_entry(server.realm)["request"] == f"POST {path}"


@pytest.mark.parametrize("hardware_id", [" ", "A B", "'; DROP TABLE device; --"])
@pytest.mark.parametrize("gang", [False, True])
def test_a_hardware_id_that_the_run_does_not_take_is_refused_alone_and_recorded(
    server: Server, station: Http, hardware_id: str, *, gang: bool
) -> None:
    body: Any = {"hardware_id": hardware_id, "idempotency_key": f"id-{hardware_id.encode().hex()}-{gang}"}
    if gang:
        answer = station.post(f"/v1/runs/{RUN}/gang-issue", {"devices": [body]})
        (told,) = answer.json["results"]
    else:
        told = station.post(ISSUE, body).json
    assert told["code"] in ("malformed-request", "policy-refused"), told
    entry = last_entry(server.realm)
    assert (entry["kind"], entry["hardware_id"]) == ("refused", hardware_id)


def test_a_gang_of_more_than_the_limit_is_too_large(station: Http) -> None:
    limit = station.get("/v1/me").json["max_gang"]
    devices = [{"hardware_id": f"G{n}", "idempotency_key": f"g{n}"} for n in range(limit + 1)]
    is_problem(station.post(f"/v1/runs/{RUN}/gang-issue", {"devices": devices}), 413, "too-large")


def test_two_devices_of_a_gang_may_not_share_a_key(station: Http) -> None:
    devices = [{"hardware_id": f"H{n}", "idempotency_key": "same"} for n in range(2)]
    is_problem(station.post(f"/v1/runs/{RUN}/gang-issue", {"devices": devices}), 400, "malformed-request")


# --- sizes and times ----------------------------------------------------------------------------------------


def test_a_body_over_the_limit_is_refused_before_it_is_sent(
    server: Server, connect: Callable[..., Http]
) -> None:
    client = connect()
    client.connection.putrequest("POST", ISSUE)
    client.connection.putheader("content-length", "200001")
    client.connection.putheader("birthmark-seq", "8")
    client.connection.endheaders()  # and not one octet of it
    response = client.connection.getresponse()
    answer = Answer(status=response.status, headers=response.headers, body=response.read())
    is_problem(answer, 413, "too-large")
    assert answer.headers["connection"] == "close"
    entry = last_entry(server.realm)
    assert (entry["code"], entry["actor"], entry["seq"]) == ("too-large", "station:ST01", 8)


def test_a_chunked_body_over_the_limit_is_refused(server: Server, connect: Callable[..., Http]) -> None:
    with raw_connection(server) as tls:
        tls.sendall(head(ISSUE, "transfer-encoding: chunked"))
        chunk = b"%x\r\n%b\r\n" % (50_000, b" " * 50_000)
        for _ in range(5):
            tls.sendall(chunk)
        is_problem(answer_of(tls), 413, "too-large")
    assert last_entry(server.realm)["code"] == "too-large"


def test_a_body_up_to_the_limit_is_read(station: Http) -> None:
    body = json.dumps({"hardware_id": "FULL-1", "idempotency_key": "full-1"}).encode()
    answer = station.post(ISSUE, body + b" " * (200_000 - len(body)))
    assert answer.status == 200, answer.body


def test_a_body_that_does_not_arrive_is_given_up_and_does_not_hold_up_others(
    server: Server, station: Http
) -> None:
    with raw_connection(server) as tls:
        tls.sendall(head(ISSUE, "content-length: 1000", "birthmark-seq: 9") + b'{"hardware_id":')
        assert station.get("/v1/me").status == 200
        told = is_problem(answer_of(tls), 400, "malformed-request")
    assert "1 s" in told["detail"]
    entry = last_entry(server.realm)
    assert (entry["code"], entry["actor"], entry["seq"]) == ("malformed-request", "station:ST01", 9)


@pytest.mark.parametrize("sent", [b"", b"GET /v1/me HTTP/1.1\r\nhost:"])
def test_a_request_that_does_not_arrive_is_given_up(server: Server, station: Http, sent: bytes) -> None:
    with raw_connection(server) as tls:
        tls.sendall(sent)
        assert station.get("/v1/me").status == 200
        is_problem(answer_of(tls), 400, "malformed-request")
    assert recorded(server, "no request within 1 s")


def test_a_client_that_hangs_up_in_the_middle_is_on_record(server: Server, station: Http) -> None:
    with raw_connection(server) as tls:
        tls.sendall(head(ISSUE, "content-length: 1000", "birthmark-seq: 77") + b"{")
    assert until(lambda: [entry for entry in server.realm.entries() if entry.get("seq") == 77])


# --- HTTP itself --------------------------------------------------------------------------------------------


def head(path: str, *headers: str) -> bytes:
    return "\r\n".join(
        (f"POST {path} HTTP/1.1", "host: localhost", "content-type: application/json", *headers, "", "")
    ).encode()


def raw_connection(server: Server) -> ssl.SSLSocket:
    raw = socket.create_connection(server.address, 20)
    return tls_context(server.realm.station()).wrap_socket(raw, server_hostname="localhost")


def answer_of(tls: ssl.SSLSocket) -> Answer:
    response = http.client.HTTPResponse(tls)
    response.begin()
    return Answer(status=response.status, headers=response.headers, body=response.read())


def recorded(server: Server, detail: str) -> bool:
    """Wait for a connection's refusal to be on record, under the name of who was connected."""

    def found() -> bool:
        return any(
            entry["kind"] == "refused"
            and (entry["request"], entry["actor"], entry["detail"]) == ("connection", "station:ST01", detail)
            for entry in server.realm.entries()
        )

    return until(found)


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\x01\x02\x03\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /v1/me HTTP/9.9\r\n\r\n",
        b"GET /v1/me HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /v1/me HTTP/1.1\r\nhost: a\r\ncontent-length: x\r\n\r\n",
        b"POST /v1/prove HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/prove HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcdef",
        b"GET /v1/\xc3\xa4 HTTP/1.1\r\nhost: a\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT example.org:443 HTTP/1.1\r\nhost: a\r\n\r\n",
    ],
    ids=lambda sent: ascii(sent[:30]),
)
def test_what_is_not_http_is_a_problem_too(server: Server, station: Http, sent: bytes) -> None:
    with raw_connection(server) as tls:
        tls.sendall(sent)
        is_problem(answer_of(tls), 400, "malformed-request")
    assert recorded(server, "this is not HTTP/1.1")
    assert station.get("/v1/me").status == 200


def test_an_endless_head_is_cut_off(server: Server) -> None:
    with raw_connection(server) as tls:
        tls.sendall(b"GET /v1/me HTTP/1.1\r\nx: " + b"a" * 70_000)
        is_problem(answer_of(tls), 400, "malformed-request")
    assert recorded(server, "the head of a request has at most 65536 octets")


@pytest.mark.parametrize(
    "path", ["/", "/v2/me", "/v1/devices", "/docs", "/v1/runs/../me", "/v1/me/", "/%00", "/v1/%F0"]
)
def test_there_is_nothing_else(server: Server, station: Http, path: str) -> None:
    is_problem(station.ask("GET", path, headers={"birthmark-seq": "11"}), 404, "not-found")
    entry = last_entry(server.realm)
    assert (entry["code"], entry["actor"], entry["seq"]) == ("not-found", "station:ST01", 11)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "POST"])
def test_a_wrong_method_names_the_right_one(station: Http, method: str) -> None:
    answer = station.ask(method, "/v1/me", headers={"content-length": "0"})
    is_problem(answer, 405, "malformed-request")
    assert answer.headers["allow"] == "GET"


@pytest.mark.parametrize("seq", ["0", "-1", "1.5", "x", "", "9" * 16, "1e3", "٣", "1, 2"])
def test_a_request_number_that_is_none_is_refused(
    server: Server, connect: Callable[..., Http], seq: str
) -> None:
    client = connect(server.realm.station("ST07"))
    answer = client.ask(
        "POST", ISSUE, json.dumps(BODIES[ISSUE]).encode(),
        {"content-type": "application/json", "birthmark-seq": seq.encode().decode("latin-1")},
    )  # fmt: skip
    is_problem(answer, 400, "malformed-request")
    entry = last_entry(server.realm)
    assert entry["actor"] == "station:ST07"
    assert "seq" not in entry


@pytest.mark.parametrize("operator", ["x" * 65, "Ä", "", "\t", "nobody"])
def test_an_operator_that_is_none_is_refused(station: Http, operator: str) -> None:
    answer = station.post(
        ISSUE, {"hardware_id": "OP-1", "idempotency_key": f"op-{operator.encode().hex()[:40]}"},
        birthmark_operator=operator,
    )  # fmt: skip
    assert answer.json["code"] in ("malformed-request", "not-permitted")


@pytest.mark.parametrize(
    "path", ["/v1/runs/NOPE", "/v1/devices/serial:NOPE", "/v1/devices/serial:NOPE/token"]
)
def test_a_read_that_finds_nothing_is_on_record(server: Server, station: Http, path: str) -> None:
    is_problem(station.ask("GET", path, headers={"birthmark-seq": "12"}), 404, "not-found")
    entry = last_entry(server.realm)
    assert (entry["request"], entry["actor"], entry["seq"]) == (f"GET {path}", "station:ST01", 12)


@pytest.mark.parametrize("act", ["hold", "rework", "scrap"])
def test_a_disposal_of_nothing_is_on_record(server: Server, operator: Http, act: str) -> None:
    body = {"reason": "scratched", "idempotency_key": f"nothing-{act}"}
    is_problem(operator.post(f"/v1/devices/serial:NOPE/{act}", body), 404, "not-found")
    assert last_entry(server.realm)["actor"] == "operator:anna"


# --- what may be asked --------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", ["rework", "scrap"])
def test_a_station_decides_over_no_device(station: Http, act: str) -> None:
    made(station, "MAY-1")
    body = {"reason": "scratched", "idempotency_key": f"may-{act}"}
    is_problem(station.post(f"/v1/devices/serial:MAY-1/{act}", body), 403, "not-permitted")


def test_an_operator_issues_nothing(operator: Http) -> None:
    body = {"hardware_id": "MAY-2", "idempotency_key": "may-2"}
    is_problem(operator.post(ISSUE, body), 403, "not-permitted")


def made(client: Http, hardware_id: str) -> Workpiece:
    """Have a device issued, however often."""
    device = workpiece(hardware_id)
    assert device.csr is not None
    body = {
        "hardware_id": hardware_id,
        "idempotency_key": f"made-{hardware_id}",
        "csr": base64.b64encode(device.csr).decode(),
    }
    answer = client.post(ISSUE, body)
    if answer.status == 200:
        certificate = Certificate.from_pem(answer.json["certificate"])
        assert certificate.subject_public_key_info
    return device


# --- anything at all ----------------------------------------------------------------------------------------

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=8,
)
_texts = (
    st.text(max_size=70)
    | st.from_regex(r"[A-Z0-9]{1,20}", fullmatch=True)
    | st.binary(max_size=60).map(lambda octets: base64.b64encode(octets).decode())
)


def _near(value: Any) -> st.SearchStrategy[Any]:
    """Return bodies of the right shape with wrong things in it."""
    if isinstance(value, dict):
        return st.fixed_dictionaries({name: _near(item) | _json for name, item in value.items()})
    if isinstance(value, list):
        return st.lists(_near(value[0]), max_size=3)
    return st.just(value) | _texts


@pytest.mark.parametrize("path", BODIES)
@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_body_at_all_makes_the_service_fail(station: Http, path: str, data: st.DataObject) -> None:
    body = data.draw(st.binary(max_size=200) | _near(BODIES[path]) | _json)
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = station.post(path, sent)
    assert answer.status < 500, (sent, answer.body)
    if answer.status == 200:
        assert (
            set(answer.json) == {"results"} or path in (ISSUE, "/v1/prove") or path.startswith("/v1/devices")
        )
    else:
        is_problem(answer, answer.status, answer.json["code"])


def test_a_request_number_that_would_use_up_all_others_is_refused(server: Server, station: Http) -> None:
    """SPEC E5: one slip, or one hostile request, must not leave a station without numbers for ever."""
    last = station.get("/v1/me").json["last_seq"]
    answer = station.post(ISSUE, {"hardware_id": "LEAP-1", "idempotency_key": "leap"}, birthmark_seq="9" * 15)
    is_problem(answer, 400, "malformed-request")
    assert "too far above" in answer.json["detail"]
    assert station.get("/v1/me").json["last_seq"] == last
    entry = server.realm.entries()[-1]
    assert (entry["code"], entry["actor"], "seq" in entry) == ("malformed-request", "station:ST01", False)
