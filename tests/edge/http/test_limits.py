"""What one client, one address or one request may cost (SPEC C1), at a service whose limits are small."""

import base64
import importlib
import json
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birthmark import errors
from birthmark.edge.http.screening import MOST_DEPTH, MOST_MEMBERS, MOST_NAMES, screen
from tests.support.devices import asked
from tests.support.server import RUN, Http, RealmDirectory, Server, copy_realm, tls_context, until

# By name: it has no types.
algos, csr, keys, x509 = (
    importlib.import_module(f"asn1crypto.{name}") for name in ("algos", "csr", "keys", "x509")
)

HANDSHAKES, OF_ONE, OF_ADDRESS, OF_ALL = 4, 3, 8, 12
ISSUE = f"/v1/runs/{RUN}/issue"
ELSEWHERE = "127.0.0.2"
Keep = Callable[[socket.socket], socket.socket]


@pytest.fixture(scope="module")
def realm(tmp_path_factory: pytest.TempPathFactory) -> RealmDirectory:
    return copy_realm(tmp_path_factory.mktemp("limits") / "realm")


@pytest.fixture(scope="module")
def server(realm: RealmDirectory) -> Iterator[Server]:
    small = realm.listening_on(
        realm.port, request_seconds="60", answer_seconds="2", keep_alive_seconds="2", handshake_seconds="3",
        max_handshakes=str(HANDSHAKES), max_connections_per_client=str(OF_ONE),
        max_connections_per_address=str(OF_ADDRESS), max_connections=str(OF_ALL),
    )  # fmt: skip
    with Server(realm=small) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_left(server: Server) -> Iterator[None]:
    """Each test finds all places free, and no fault of ours in the log."""
    assert until(lambda: inside(server) == 0), "somebody is still there"
    yield
    assert "Traceback" not in server.told()


@pytest.fixture
def keep() -> Iterator[Keep]:
    """Keep connections open until the test ends, however it ends."""
    with ExitStack() as kept:
        yield kept.enter_context


def inside(server: Server) -> int:
    """Return how many connections the server's socket has (proc(5), net/tcp: 01 is ESTABLISHED)."""
    port = f":{server.realm.port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
    return sum(row[1].endswith(port) and row[3] in ("01", "08") for row in rows)


def plain(server: Server, source: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(server.address, 20, (source, 0))


def greeted(server: Server, station: str = "ST01", source: str = "127.0.0.1") -> ssl.SSLSocket:
    context = tls_context(server.realm.station(station))
    return context.wrap_socket(plain(server, source), server_hostname="localhost")


def settled(server: Server, station: str, source: str = "127.0.0.1") -> ssl.SSLSocket:
    """Return a connection that the server, too, holds for established, in the middle of a request."""
    tls = greeted(server, station, source)
    head = b"GET /v1/me HTTP/1.1\r\nhost: a\r\n"
    tls.sendall(head + b"\r\n")
    assert tls.recv(65_536).startswith(b"HTTP/1.1 200 ")
    tls.sendall(head)
    return tls


def told(server: Server, detail: str) -> list[Mapping[str, Any]]:
    """Return the entries of refusals with this reason, when there are any."""
    return until(lambda: refusals(server, detail))


def refusals(server: Server, detail: str) -> list[Mapping[str, Any]]:
    """Return them as they are now."""
    entries = server.realm.entries()
    return [entry for entry in entries if entry["kind"] == "refused" and detail in str(entry["detail"])]


def read_all(connection: socket.socket) -> bytes:
    """Return everything until the end, however it ends."""
    octets = b""
    try:
        while more := connection.recv(65_536):
            octets += more
    except OSError:
        pass
    return octets


# --- places -------------------------------------------------------------------------------------------------


def test_a_certificate_has_so_many_connections_and_no_more(server: Server, keep: Keep) -> None:
    kept = [keep(settled(server, "ST01")) for _ in range(OF_ONE)]
    with greeted(server) as one_more:
        answer = read_all(one_more)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nretry-after: 1\r\n" in answer
    assert b"a certificate has at most 3 connections" in answer
    with greeted(server, "ST02") as other:
        other.sendall(b"GET /v1/me HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        assert read_all(other).startswith(b"HTTP/1.1 200 ")
    (entry,) = told(server, "a certificate has at most")
    assert (entry["actor"], entry["code"], entry["request"]) == ("station:ST01", "unavailable", "connection")
    kept[0].close()
    assert until(lambda: asks(server)), "the place did not become free"


def asks(server: Server, source: str = "127.0.0.1", station: str = "ST01") -> bool:
    """Return whether a station gets an answer."""
    try:
        with greeted(server, station, source) as tls:
            tls.sendall(b"GET /v1/me HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            return read_all(tls).startswith(b"HTTP/1.1 200 ")
    except OSError:
        return False


def test_an_address_has_so_many_and_the_newcomer_hears_that_it_is_not_its_fault(
    server: Server, keep: Keep
) -> None:
    for number in range(OF_ADDRESS):
        keep(settled(server, f"ST0{1 + number // OF_ONE}"))
    with pytest.raises(OSError, match=r"(?i)internal error|reset|broken pipe|eof"):
        greeted(server, "ST08")
    assert asks(server, ELSEWHERE, "ST08")
    (entry,) = told(server, "an address has at most 8 connections")
    assert (entry["actor"], entry["code"]) == ("peer:anonymous", "unavailable")
    assert until(
        lambda: [event for event in server.events() if event["event"] == "connections found no place"]
    )


def test_all_have_so_many_together(server: Server, keep: Keep) -> None:
    for number in range(6):
        keep(settled(server, f"ST0{1 + number // OF_ONE}"))
        keep(settled(server, f"ST0{3 + number // OF_ONE}", ELSEWHERE))
    with pytest.raises(OSError, match=r"(?i)internal error|reset|broken pipe|eof"):
        greeted(server, "ST08", "127.0.0.3")
    assert told(server, "there are at most 12 connections")


def test_handshakes_that_are_never_finished_give_way_to_those_that_are(server: Server, keep: Keep) -> None:
    """A hundred half-open connections, from the station's own address too, and the station is served."""
    for number in range(100):
        keep(plain(server, ELSEWHERE if number % 2 else "127.0.0.1"))
        if number % 10 == 9:
            assert asks(server)

    def gave_way() -> int:
        return sum(int(entry["count"]) for entry in refusals(server, "gave way to a newer one"))

    assert until(lambda: gave_way() >= 50), gave_way()


def test_a_handshake_has_to_be_done_in_time(server: Server) -> None:
    with plain(server) as silent:
        assert read_all(silent) == b""
    assert told(server, "no handshake within 3 s")


def test_who_leaves_during_the_handshake_is_counted(server: Server) -> None:
    def counted() -> int:
        return sum(int(entry["count"]) for entry in refusals(server, "left during the handshake"))

    before = counted()
    for _ in range(HANDSHAKES - 1):
        with plain(server) as leaving:
            leaving.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
    assert until(lambda: counted() >= before + HANDSHAKES - 1)


def test_an_answer_that_is_not_taken_ends_the_connection(server: Server) -> None:
    with plain(server) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        tls = tls_context(server.realm.station()).wrap_socket(raw, server_hostname="localhost")
        # More than the buffers of both sides hold, asked for at once.
        tls.sendall(b"GET /openapi.json HTTP/1.1\r\nhost: a\r\n\r\n" * 30)
        assert until(lambda: inside(server) == 0)
        tls.close()


def test_a_connection_on_which_nothing_is_asked_is_not_kept_by_empty_lines(server: Server) -> None:
    with greeted(server) as tls:
        tls.sendall(b"GET /v1/me HTTP/1.1\r\nhost: a\r\n\r\n")
        assert tls.recv(65_536).startswith(b"HTTP/1.1 200 ")

        def ended() -> bool:
            try:
                tls.sendall(b"\r\n")
            except OSError:
                return True
            return inside(server) == 0

        assert until(ended)


# --- HTTP ---------------------------------------------------------------------------------------------------

_HEAD = b"POST /v1/prove HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
_SMUGGLED = b"GET /v1/checkpoint HTTP/1.1\r\nhost: a\r\n\r\n"
AMBIGUOUS = {
    "both lengths": b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "both, the other way round": b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": b"content-length: 2\r\ncontent-length: 3\r\n\r\n{} ",
    "a list of lengths": b"content-length: 2, 3\r\n\r\n{} ",
    "a signed length": b"content-length: +2\r\n\r\n{}",
    "a negative length": b"content-length: -2\r\n\r\n{}",
    "a hexadecimal length": b"content-length: 0x2\r\n\r\n{}",
    "an enormous length": b"content-length: 99999999999999999999999\r\n\r\n{}",
    "a length with a blank before the colon": b"content-length : 2\r\n\r\n{}",
    "a folded header": b"x: a\r\n content-length: 2\r\ncontent-length: 3\r\n\r\n{} ",
    "a folded coding": b"transfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "chunked, but not last": b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "a coding before chunked": b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "a coding in a line before chunked": (
        b"transfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "an unknown coding": b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked twice": b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "a chunk size of no number": b"transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "a chunk size with a sign": b"transfer-encoding: chunked\r\n\r\n+2\r\n{}\r\n0\r\n\r\n",
    "an enormous chunk size": b"transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n{}\r\n0\r\n\r\n",
    "a chunk longer than it says": b"transfer-encoding: chunked\r\n\r\n1\r\n{}\r\n0\r\n\r\n",
    "a nul in a header": b"x: a\0b\r\ncontent-length: 2\r\n\r\n{}",
    "a bare carriage return": b"x: a\rcontent-length: 2\r\n\r\n{}",
    "a header without a name": b": a\r\ncontent-length: 2\r\n\r\n{}",
}


@pytest.mark.parametrize("why", AMBIGUOUS)
def test_a_request_that_two_may_read_differently_is_refused_and_what_follows_is_not_read(
    server: Server, why: str
) -> None:
    """RFC 9112 sections 5.2, 6.1, 6.3 and 11.2: another one before us may have ended it elsewhere."""
    with greeted(server) as tls:
        tls.sendall(_HEAD + AMBIGUOUS[why] + _SMUGGLED)
        answer = read_all(tls)
    assert answer.startswith(b"HTTP/1.1 400 "), answer[:200]
    assert answer.count(b"HTTP/1.1 ") == 1, answer
    assert b"connection: close" in answer


_ASKED = b"GET /v1/me HTTP/1.1\r\n"
NO_PLACE = {
    "none": _ASKED + b"\r\n",
    "two": _ASKED + b"host: a\r\nhost: b\r\n\r\n",
    "the same twice": _ASKED + b"host: a\r\nHost: a\r\n\r\n",
    "a list": _ASKED + b"host: a, b\r\n\r\n",
    "a path": _ASKED + b"host: a/b\r\n\r\n",
    "a user": _ASKED + b"host: a@b\r\n\r\n",
    "a port of no number": _ASKED + b"host: a:b\r\n\r\n",
    "two before HTTP/1.1": b"GET /v1/me HTTP/1.0\r\nhost: a\r\nhost: b\r\n\r\n",
}


@pytest.mark.parametrize("what", NO_PLACE)
def test_a_request_says_once_and_well_to_which_host(server: Server, what: str) -> None:
    """RFC 9112 section 3.2: a server must answer 400 to none, to several and to an invalid one."""
    with greeted(server) as tls:
        tls.sendall(NO_PLACE[what] + _SMUGGLED)
        answer = read_all(tls)
    assert answer.startswith(b"HTTP/1.1 400 "), answer[:200]
    assert answer.count(b"HTTP/1.1 ") == 1, answer
    assert b"connection: close" in answer


PLACES = [
    b"GET /v1/me HTTP/1.1\r\nhost:%b\r\nconnection: close\r\n\r\n" % place
    for place in (b"", b" a", b" a.example:8443", b" a:", b" [::1]:8443", b" 127.0.0.1", b" a%20b!", b"\ta ")
]


@pytest.mark.parametrize("sent", [*PLACES, b"GET /v1/me HTTP/1.0\r\n\r\n"])
def test_any_host_is_answered_and_before_http_1_1_none_need_be_told(server: Server, sent: bytes) -> None:
    """RFC 3986 section 3.2.2; who is asked the certificate says."""
    with greeted(server) as tls:
        tls.sendall(sent)
        assert read_all(tls).startswith(b"HTTP/1.1 200 ")


EXCESSIVE = {
    "headers": (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 70 + b"\r\n", b"at most 64 headers"),
    "an address": (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n", b"at most 8192 octets"),
    "a header": (b"GET / HTTP/1.1\r\na: " + b"b" * 70_000, b"at most 65536 octets"),
    "requests": (b"GET /v1/me HTTP/1.1\r\nhost: a\r\n\r\n" * 200, b"HTTP/1.1 200 "),
    "a trailer": (
        _HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nx: " + b"b" * 400_000,
        b"at most 65536 octets",
    ),
    "empty lines": (b"\r\n" * 40_000, b"at most 65536 octets"),
}  # fmt: skip


@pytest.mark.parametrize("what", EXCESSIVE)
def test_too_much_of_anything_ends_the_connection_and_says_why(server: Server, what: str) -> None:
    sent, expected = EXCESSIVE[what]
    with greeted(server) as tls:
        tls.sendall(sent)
        answer = read_all(tls)
    assert expected in answer, answer[:300]
    assert until(lambda: inside(server) == 0)


@pytest.mark.parametrize("protocol", [b"websocket", b"h2c"])
def test_another_protocol_is_not_spoken_and_nothing_is_read_behind_the_offer(
    server: Server, protocol: bytes
) -> None:
    """RFC 9110 section 7.8: the offer may be ignored; octets of the other protocol are no requests."""
    with greeted(server) as tls:
        offer = b"connection: upgrade\r\nupgrade: " + protocol
        tls.sendall(b"GET /v1/me HTTP/1.1\r\nhost: a\r\n" + offer + b"\r\n\r\n" + _SMUGGLED)
        answer = read_all(tls)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert told(server, "no other protocol is spoken here")


def test_who_asks_too_far_ahead_gets_the_answer_under_way_and_no_other(server: Server) -> None:
    with greeted(server) as tls:
        tls.sendall(b"GET /v1/me HTTP/1.1\r\nhost: a\r\n\r\n" * 200)
        answer = read_all(tls)
    assert 1 <= answer.count(b"HTTP/1.1 200 ") <= 33
    assert b"HTTP/1.1 4" not in answer
    assert told(server, "at most 32 requests may wait for their answers")


def test_a_refusal_does_not_overtake_the_answer_to_the_request_before(server: Server) -> None:
    """It would be taken for that answer: a device that was issued would be counted as refused."""
    _key, body = asked("AHEAD-1")
    octets = json.dumps(body).encode()
    with greeted(server) as tls:
        tls.sendall(
            b"POST %b HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
            % (ISSUE.encode(), len(octets), octets)
            + b"this is no request\r\n\r\n"
        )
        answer = read_all(tls)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b'"state":"issued"' in answer
    assert told(server, "this is not HTTP/1.1")


_ME = b"GET /v1/me HTTP/1.1\r\nhost: a\r\n\r\n"
BEHIND = {
    "a body that is none": (_ME + _HEAD + AMBIGUOUS["a chunk size of no number"], "this is not HTTP/1.1"),
    "a head behind one that waits": (_ME * 2 + b"this is no request\r\n\r\n", "this is not HTTP/1.1"),
    "too many": (_ME * 34, "at most 32 requests may wait for their answers"),
}


@pytest.mark.parametrize("what", BEHIND)
def test_what_is_refused_behind_requests_that_wait_lets_the_answer_under_way_out_and_ends_at_once(
    server: Server, what: str
) -> None:
    """What was read last is not what is being answered; that answer says that it is the last."""
    sent, detail = BEHIND[what]
    before = counted(server, detail)
    with greeted(server) as tls:
        tls.sendall(sent)
        answer = read_all(tls)
    assert answer.startswith(b"HTTP/1.1 200 "), answer[:200]
    assert answer.count(b"HTTP/1.1 ") == 1, answer
    assert b"connection: close" in answer, "it was left to the limit of idle connections"
    assert until(lambda: counted(server, detail) > before)


def counted(server: Server, detail: str) -> int:
    """Return how often this was refused."""
    return sum(int(entry["count"]) for entry in refusals(server, detail))


def test_a_trailer_is_no_header(server: Server) -> None:
    """RFC 9110 section 6.5.1: what comes after the body must not say who the operator is."""
    with greeted(server) as tls:
        tls.sendall(
            b"POST /v1/prove HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
            b"2\r\n{}\r\n0\r\ncontent-type: application/json\r\nbirthmark-seq: x\r\n\r\n"
        )
        answer = read_all(tls)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"birthmark-seq" not in answer


def test_a_client_that_wants_to_be_told_to_go_on_is_told(server: Server) -> None:
    """RFC 9110 section 10.1.1; another expectation may be ignored."""
    for expectation, first in ((b"100-continue", b"HTTP/1.1 100 "), (b"wonders", b"HTTP/1.1 400 ")):
        with greeted(server) as tls:
            tls.sendall(
                _HEAD + b"connection: close\r\nexpect: " + expectation + b"\r\ncontent-length: 2\r\n\r\n"
            )
            if expectation == b"100-continue":
                assert tls.recv(12) == first[:12]
            tls.sendall(b"{}")
            assert b"HTTP/1.1 400 " in read_all(tls)


# --- JSON ---------------------------------------------------------------------------------------------------


def expensive() -> Mapping[str, bytes]:
    return {
        "deep arrays": b"[" * 2_000_000,
        "deep objects": b'{"a":' * 500_000,
        "a little too deep": b'{"devices":' + b"[" * MOST_DEPTH + b"]" * MOST_DEPTH + b"}",
        "arrays": b'{"devices":[' + b"[]," * 1_300_000 + b"[]]}",
        "objects": b'{"devices":[' + b"{}," * 1_300_000 + b"{}]}",
        "names": b"{" + b",".join(b'"%d":1' % n for n in range(MOST_NAMES + 1)) + b"}",
        "quotation marks": b'"' * 4_000_000,
        "escapes": b'"' + b"\\n" * 2_000_000 + b'"',
        "utf-16": '{"a": 1}'.encode("utf-16-le"),
        "utf-32": '{"a": 1}'.encode("utf-32"),
    }


@pytest.mark.parametrize("why", sorted(expensive()))
def test_a_body_that_costs_more_to_read_than_to_write_is_refused(server: Server, why: str) -> None:
    with Http(server.address, tls_context(server.realm.station())) as client:
        answer = client.post("/v1/gang-prove", expensive()[why])
        assert (answer.status, answer.json["code"]) == (400, "malformed-request")


def test_such_bodies_leave_no_memory_behind(server: Server) -> None:
    with Http(server.address, tls_context(server.realm.station())) as client:
        for why in ("arrays", "objects", "names"):
            client.post("/v1/gang-prove", expensive()[why])
        before = peak_kilobytes(server)
        for _ in range(4):
            for why in ("arrays", "objects", "names", "deep arrays"):
                client.post("/v1/gang-prove", expensive()[why])
    assert peak_kilobytes(server) - before < 32_768  # 48 such bodies, each of which would become 100 MB


def peak_kilobytes(server: Server) -> int:
    status = Path(f"/proc/{server.pid}/status").read_text(encoding="ascii").splitlines()
    (line,) = [line for line in status if line.startswith("VmHWM:")]
    return int(line.split()[1])


_json: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='ab"\\[]{},:\n', max_size=8),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(alphabet='a"\\[{', max_size=3), inner)
    ),
    max_leaves=12,
)


def depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    here = 1 if isinstance(value, dict | list) else 0
    return here + max(map(depth, inner), default=0)


@given(value=_json, more=st.integers(min_value=0, max_value=MOST_DEPTH + 2), ascii_only=st.booleans())
def test_json_is_as_deep_as_the_parser_finds_it(value: Any, more: int, *, ascii_only: bool) -> None:
    for _ in range(more):
        value = [value]
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    if depth(value) <= MOST_DEPTH:
        screen(body)
    else:
        with pytest.raises(errors.MalformedRequest, match="levels deep"):
            screen(body)


@given(body=st.binary(max_size=300) | st.text(alphabet='"\\[]{},:a\0', max_size=60).map(str.encode))
def test_whatever_is_screened_passes_or_is_malformed(body: bytes) -> None:
    try:
        screen(body)
    except errors.MalformedRequest:
        return


def test_the_largest_gang_passes() -> None:
    responses = ["9000"] * 128
    element = {"step": 1, "responses": responses}
    dialogues = [{"attempt": "0" * 32, "element": element}] * 512
    body = json.dumps({"dialogues": dialogues}).encode()
    assert 60_000 < body.count(b",") < MOST_MEMBERS
    screen(body)


# --- keys ---------------------------------------------------------------------------------------------------


def request_for(public_key: Any) -> str:
    """Return a certification request for a key that signed nothing: it is refused before."""
    info = csr.CertificationRequestInfo(
        {
            "version": "v1",
            "subject": x509.Name.build({"common_name": "x"}),
            "subject_pk_info": public_key,
            "attributes": [],
        }
    )
    signature = algos.SignedDigestAlgorithm({"algorithm": "sha256_rsa"})
    made = csr.CertificationRequest(
        {"certification_request_info": info, "signature_algorithm": signature, "signature": b"x" * 256}
    )
    return base64.b64encode(made.dump()).decode()


def rsa_key(bits: int, exponent: int = 65_537) -> Any:
    modulus = (1 << bits) - 1 - (1 << 7)
    return keys.PublicKeyInfo.wrap(
        keys.RSAPublicKey({"modulus": modulus, "public_exponent": exponent}), "rsa"
    )


def point(curve: str, octets: int) -> Any:
    return keys.PublicKeyInfo(
        {
            "algorithm": {
                "algorithm": "ec",
                "parameters": keys.ECDomainParameters(name="named", value=curve),
            },
            "public_key": keys.ECPointBitString(b"\x04" + b"\x01" * octets),
        }
    )


ABSURD: Mapping[str, Callable[[], Any]] = {
    "rsa of 16384 bits": lambda: rsa_key(16_384),
    "rsa of 512 bits": lambda: rsa_key(512),
    "rsa with the exponent 3": lambda: rsa_key(3072, 3),
    "rsa with an exponent of 3000 bits": lambda: rsa_key(3072, (1 << 3000) + 1),
    "rsa with the exponent 1": lambda: rsa_key(3072, 1),
    "secp256k1": lambda: point("secp256k1", 64),
    "secp192r1": lambda: point("secp192r1", 48),
    "a curve of nobody": lambda: point("1.2.3.4.5", 64),
    "no point of its curve": lambda: point("secp256r1", 64),
    "a point too long": lambda: point("secp256r1", 2000),
}


def test_absurd_keys_are_refused_each_alone(server: Server) -> None:
    devices = [
        {"hardware_id": f"ABSURD-{n}", "idempotency_key": f"absurd-{n}", "csr": request_for(make())}
        for n, make in enumerate(ABSURD.values())
    ]
    _key, good = asked("ABSURD-GOOD")
    with Http(server.address, tls_context(server.realm.station())) as client:
        answer = client.post(f"/v1/runs/{RUN}/gang-issue", {"devices": [*devices, good]})
        over = client.post(ISSUE, {**devices[0], "csr": "A" * 16_385})
    assert answer.status == 200, answer.body
    *refused, issued = answer.json["results"]
    assert issued["state"] == "issued"
    for why, result in zip(ABSURD, refused, strict=True):
        assert result["status"] in (400, 413, 422), (why, result)
    assert over.status == 400
