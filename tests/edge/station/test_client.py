"""Single requests: connections, refusals, numbers, the log's key, checkpoints (SPEC C1, C2, E3, E5)."""

import base64
import json
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from birthmark import errors
from birthmark.edge.station import Enclave, IssueItem, Release, Station, read_station_directory
from birthmark.edge.station.records import StationRecords
from birthmark.edge.station.transport import decode_object, refusal
from birthmark.ledger.bundle import split_notes
from birthmark.ledger.checkpoint import open_note
from birthmark.ledger.proof import decode
from tests.edge.station import service as misbehaviour
from tests.edge.station.authorities import authority
from tests.edge.station.service import RUN, Problem, Server, Service, enrol

VIN = "1M8GDM9AXKP042788"
DEVICE = f"vin:{VIN}"


def _statuses() -> dict[type[errors.Refusal], int]:
    return {
        errors.MalformedRequest: 400,
        errors.Unauthenticated: 403,
        errors.NotPermitted: 403,
        errors.NotFound: 404,
        errors.IllegalTransition: 409,
        errors.KeyReused: 409,
        errors.QuotaExhausted: 409,
        errors.ProofFailed: 409,
        errors.TooLarge: 413,
        errors.PolicyRefused: 422,
        errors.IntegrityFailure: 500,
    }


def test_every_refusal_but_unavailable_has_a_status_here() -> None:
    assert set(errors.Refusal.__subclasses__()) >= set(_statuses()) | {errors.Unavailable}


# --- refusals and answers


@pytest.mark.parametrize("kind", list(_statuses()))
def test_a_problem_comes_back_as_the_refusal_it_was(
    service: Service, station: Station, kind: type[errors.Refusal]
) -> None:
    """SPEC C4; RFC 9457."""
    rule = "wmi" if kind is errors.PolicyRefused else None

    def refuse(path: str) -> None:
        if path != "/v1/me":
            raise Problem(_statuses()[kind], kind.code, "the reason, as the service says it", rule)

    service.refuse = refuse
    with pytest.raises(kind, match=r"^the reason, as the service says it$") as refused:
        station.run(RUN)
    assert type(refused.value) is kind
    if isinstance(refused.value, errors.PolicyRefused):
        assert refused.value.rule == "wmi"
    assert len(service.requests) == 1, "asked once"


def test_a_code_of_a_later_version_is_shown(service: Service, station: Station) -> None:
    service.refuse = lambda _: (_ for _ in ()).throw(Problem(418, "teapot", "short and stout"))
    with pytest.raises(errors.Refusal, match=r"^teapot: short and stout$") as refused:
        station.me()
    assert type(refused.value) is errors.Refusal


@pytest.mark.parametrize(
    "garbage",
    [
        misbehaviour.answers(200, "text/html", b"<h1>It works!</h1>"),
        misbehaviour.answers(200, "application/json", b"[1]"),
        misbehaviour.answers(200, "application/json", b"\xff\xfe"),
        misbehaviour.answers(200, "application/json", b"[" * 100_000),
        misbehaviour.answers(200, "application/json", b'{"client": 3}'),
        misbehaviour.answers(500, "text/html", b"<h1>Internal Server Error</h1>"),
        misbehaviour.answers(400, "application/json", b'{"detail": "no problem of ours"}'),
        misbehaviour.answers(409, "application/problem+json", b'{"title": "somebody else"}'),
        misbehaviour.answers(302, "text/html", b"", Location="https://elsewhere.test/"),
        misbehaviour.answers(204, "text/plain", b""),
    ],
)
def test_garbage_stops_the_line(service: Service, station: Station, garbage: misbehaviour.Mishap) -> None:
    service.mishaps.append(("me", garbage))
    with pytest.raises(errors.IntegrityFailure):
        station.me()
    assert len(service.requests) == 1


@given(
    st.binary(max_size=60)
    | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(json.dumps).map(str.encode)
)
def test_reading_an_answer_is_total(octets: bytes) -> None:
    try:
        body = decode_object(octets)
    except errors.IntegrityFailure:
        return
    with suppress(errors.IntegrityFailure):
        assert isinstance(refusal(body), errors.Refusal)


def test_no_exception_carries_an_answer_with_a_key_in_it(service: Service, station: Station) -> None:
    """SPEC C5: a delivered key is seen by nobody else."""
    secret = "MIGHAgEAMBMGByqGSM49"
    body = json.dumps({"private_key": secret})[:-1].encode()  # truncated: no JSON
    for answer in (
        misbehaviour.answers(200, "application/json", body),
        misbehaviour.answers(200, "application/json", body + b"}"),
        misbehaviour.answers(409, "application/problem+json", body),
    ):
        service.mishaps.append(("issue", answer))
        with pytest.raises(errors.IntegrityFailure) as refused:
            station.issue(RUN, VIN)
        error: BaseException | None = refused.value
        assert secret not in "".join(traceback.format_exception(refused.value))
        while error is not None:
            assert secret not in repr(vars(error)) + repr(error.args)
            error = error.__cause__ or error.__context__


# --- every method


def test_reading_and_disposing(service: Service, station: Station) -> None:
    me = station.me()
    assert (me.client, me.max_gang) == ("station:ST01", 4)
    issued = station.issue(RUN, VIN)
    assert issued.device == DEVICE
    assert "PRIVATE" not in repr(issued)
    assert issued.private_key is not None
    assert station.issue(RUN, "1M8GDM9AXKP042789", key="k").private_key is not None
    assert station.run(RUN).admitted == 2
    assert station.device(DEVICE).state == "issued"
    assert station.hold(DEVICE, "scratched").state == "held"
    assert station.scrap(DEVICE, "beyond repair").state == "scrapped"
    with pytest.raises(errors.NotFound):
        station.token("vin:nobody")
    items = [IssueItem(hardware_id=f"1M8GDM9AXKP0427{number}", key=f"g{number}") for number in range(10, 16)]
    assert len(station.gang_issue(RUN, items)) == 6
    with pytest.raises(errors.MalformedRequest):
        station.device("")


def test_the_operator_is_named_with_every_request(service: Service, connect: Callable[..., Station]) -> None:
    station = connect(operator="mk")
    station.me()
    assert service.requests[-1][3] == "mk"
    with pytest.raises(errors.MalformedRequest, match="visible ascii"):
        connect(operator="m\r\nX: y")


# --- waiting


def test_waiting_is_told_and_ends(service: Service, connect: Callable[..., Station]) -> None:
    told: list[tuple[str, float]] = []
    station = connect(on_wait=lambda reason, seconds: told.append((reason, seconds)))
    away = json.dumps(Problem(503, "unavailable", "the token is away").body).encode()
    service.mishaps += [
        ("me", misbehaviour.busy()),
        ("me", misbehaviour.answers(503, "application/problem+json", away)),
        ("me", misbehaviour.lose_the_request),
    ]  # fmt: skip
    station.me()
    assert [reason for reason, _ in told[:2]] == ["the service answered 503", "the token is away"]
    assert len(service.requests) == 4
    assert all(earlier < 4 * later for (_, earlier), (_, later) in pairwise(told))


def test_retry_after_is_obeyed(service: Service, connect: Callable[..., Station]) -> None:
    told: list[float] = []
    station = connect(on_wait=lambda _, seconds: told.append(seconds), patience_seconds=0.5)
    service.mishaps.append(("me", misbehaviour.answers(503, "text/html", b"", Retry_After="2")))
    with pytest.raises(errors.Unavailable):  # two seconds are more than its patience
        station.me()
    assert told == []


def test_a_silent_service_is_asked_again(service: Service, connect: Callable[..., Station]) -> None:
    station = connect(timeout_seconds=0.2)
    service.mishaps.append(("me", misbehaviour.say_nothing))
    station.me()
    assert len(service.requests) == 2


def test_closing_a_station_wakes_whoever_waits(service: Service, connect: Callable[..., Station]) -> None:
    waits = threading.Event()
    station = connect(on_wait=lambda *_: waits.set(), first_pause_seconds=60.0, patience_seconds=600.0)
    service.mishaps.append(("me", misbehaviour.busy()))
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(station.me)
        assert waits.wait(10)
        station.close()
        with pytest.raises(errors.Unavailable, match="closed"):
            asked.result(10)


def test_a_connection_is_kept_and_a_stale_one_is_replaced_without_waiting(
    service: Service, connect: Callable[..., Station]
) -> None:
    waited: list[str] = []
    station = connect(on_wait=lambda reason, _: waited.append(reason))
    for _ in range(3):
        station.me()
    assert service.connections == 1
    service.mishaps.append(("me", misbehaviour.lose_the_request))
    station.me()
    assert service.connections == 2
    assert waited == []


# --- TLS


def test_a_service_of_another_name_is_not_asked(service: Service, connect: Callable[..., Station]) -> None:
    """SPEC C1."""
    with pytest.raises(errors.IntegrityFailure, match="not to be trusted"):
        connect(server_name="elsewhere.test").me()
    with pytest.raises(errors.IntegrityFailure, match="not to be trusted"):
        connect(server_name=None).me()  # the certificate does not hold 127.0.0.1
    assert service.requests == []


@pytest.fixture
def impostor(service: Service) -> Iterator[Server]:
    server = Server(service, issuer=authority("Root"))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_service_of_another_root_is_not_asked(
    service: Service, connect: Callable[..., Station], home: Path, impostor: Server
) -> None:
    with pytest.raises(errors.IntegrityFailure, match="not to be trusted"):
        connect(home, url=impostor.url).me()
    assert service.requests == []


def test_a_station_of_another_root_is_turned_away(
    service: Service, connect: Callable[..., Station], tmp_path: Path, server: Server
) -> None:
    """SPEC C1: rejected in the handshake; the client says so at once instead of waiting."""
    stranger = enrol(tmp_path / "stranger", service, server.url, issuer=authority("Root"))
    with pytest.raises(errors.Refusal) as refused:
        connect(stranger, patience_seconds=2.0).me()
    assert isinstance(refused.value, errors.Unauthenticated | errors.Unavailable)
    assert service.requests == []


def test_an_older_tls_is_not_spoken(home: Path) -> None:
    context = read_station_directory(home).tls_context()
    assert context.minimum_version.name == "TLSv1_3"
    assert context.check_hostname


@pytest.mark.parametrize("url", ["http://h", "https://", "https://h/path", "https://u@h", "https://h:x", "h"])
def test_only_a_plain_https_url_is_taken(connect: Callable[..., Station], url: str) -> None:
    with pytest.raises(errors.MalformedRequest, match="https"):
        connect(url=url)


# --- numbers


def test_requests_are_numbered_without_gaps_by_many_threads(
    service: Service, connect: Callable[..., Station]
) -> None:
    """SPEC E5."""
    station, other = connect(), connect()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: (station, other)[n % 2].issue(RUN, f"1M8GDM9AXKP{n:06d}"), range(40)))
    numbers = [int(seq) for _, path, seq, _ in service.requests if seq is not None]
    assert sorted(numbers) == list(range(1, 41))
    assert all(seq is None for method, _, seq, _ in service.requests if method == "GET")


def test_numbers_go_on_from_the_file_and_from_the_service(
    service: Service, connect: Callable[..., Station], home: Path
) -> None:
    connect().issue(RUN, VIN)
    service.last_seq = 0
    connect().hold(DEVICE, "r")
    assert service.requests[-1][2] == "2", "the file knows"
    (home / "sequence").write_bytes(b"")
    service.last_seq = 41
    connect().scrap(DEVICE, "r")
    assert service.requests[-1][2] == "42", "the service knows"


def test_a_station_in_memory_leaves_nothing_on_disk(
    service: Service, connect: Callable[..., Station], home: Path
) -> None:
    credentials = read_station_directory(home)
    before = sorted(home.iterdir())
    station = connect(credentials)
    station.issue(RUN, VIN)
    station.hold(DEVICE, "r")
    assert station.checkpoint().size == 1
    assert [seq for _, _, seq, _ in service.requests if seq] == ["1", "2"]
    assert sorted(home.iterdir()) == before


# --- the log


def test_the_key_of_the_log_is_pinned_on_first_contact(
    service: Service, connect: Callable[..., Station], home: Path
) -> None:
    connect().me()
    assert (home / "vkey").read_text() == f"{service.vkey}\n"
    service.log_key = Ed25519PrivateKey.generate()
    with pytest.raises(errors.IntegrityFailure, match="used to be"):
        connect().me()
    with pytest.raises(errors.IntegrityFailure):
        connect().checkpoint()


def test_a_log_that_shrinks_or_forks_stops_the_line(
    service: Service, connect: Callable[..., Station], home: Path
) -> None:
    """SPEC E3, E5: the station is a witness, across restarts too."""
    station = connect()
    for number in range(5):
        station.issue(RUN, f"1M8GDM9AXKP{number:06d}")
    assert station.checkpoint().size == 5
    note = (home / "checkpoint").read_text()
    assert open_note(note, service.vkey).size == 5
    kept = list(service.entries)
    del service.entries[3:]
    for witness in (station, connect()):
        with pytest.raises(errors.IntegrityFailure, match="went back: it had 5 entries and has 3"):
            witness.checkpoint()
    service.entries[:] = [kept[1], kept[0], *kept[2:]]
    for witness in (station, connect()):
        with pytest.raises(errors.IntegrityFailure, match="went back: its 5 entries do not begin"):
            witness.checkpoint()
    service.entries[:] = [kept[1], kept[0], *kept[2:], kept[0]]
    for witness in (station, connect()):
        with pytest.raises(errors.IntegrityFailure, match="went back: its 6 entries do not begin"):
            witness.checkpoint()
    service.entries[:] = kept
    assert station.checkpoint().size == 5
    assert (home / "checkpoint").read_text() == note


def test_every_distinct_checkpoint_is_kept_for_an_audit(
    service: Service, connect: Callable[..., Station], home: Path
) -> None:
    station = connect(keep_checkpoints=True)
    for number in range(3):
        station.issue(RUN, f"1M8GDM9AXKP{number:06d}")
        station.checkpoint()
        station.checkpoint()
    lines = (home / "checkpoints").read_bytes().split(b"\n")[:-1]
    assert [open_note(note, service.vkey).size for note in split_notes(lines)] == [1, 2, 3]


def test_an_older_checkpoint_in_a_token_is_no_shrinking(service: Service) -> None:
    """Answers overtake each other; what counts is that the service's newest one has all of them."""
    for number in range(4):
        service.log("test", number=number)
    records = StationRecords(None)
    records.pin(str(service.vkey))
    records.prove([], service.checkpoint(4), {})
    older = records.open(service.checkpoint(2))
    unproved = records.unproved(older)
    assert [one.size for one in unproved] == [4, 2]
    proofs = {
        one["since"]: [base64.b64decode(node) for node in one["proof"]]
        for one in service.consistency("since=4&since=2")
    }
    records.prove(unproved, service.checkpoint(4), proofs)
    assert records.newest == records.open(service.checkpoint(4))
    assert records.unproved(older) == []
    with pytest.raises(errors.IntegrityFailure, match="went back"):
        records.prove(unproved, service.checkpoint(3), proofs)


def test_a_service_that_proves_nothing_of_its_log_is_not_believed(
    service: Service, connect: Callable[..., Station]
) -> None:
    """An answer without a proof, or with one of another size, is no proof."""
    for number in range(3):
        service.log("test", number=number)
    connect().checkpoint()
    service.log("test", number=3)
    for proofs in ([], service.consistency("since=2")):
        service.forge = lambda path, body, proofs=proofs: (  # type: ignore[misc]  # the default binds it now
            body | {"consistency": proofs} if "checkpoint" in path else body
        )
        with pytest.raises(errors.IntegrityFailure, match="went back"):
            connect().issue(RUN, VIN)
    assert service.devices == {}, "nothing is asked of such a service"


def _two_devices(station: Station, folder: Path) -> list[Release]:
    releases = []
    for name in (VIN, "WVWZZZ1JZ3W386752"):
        with closing(Enclave(str(folder / name))) as device:
            releases.append(station.provision(RUN, name, device))
    return releases


def test_the_first_token_brings_the_question_whether_the_log_only_grew_and_the_next_its_proof(
    service: Service, connect: Callable[..., Station], home: Path, tmp_path: Path
) -> None:
    releases = _two_devices(connect(keep_checkpoints=True), tmp_path)
    assert service.witnessed == ["since=2"]
    assert (home / "checkpoint").read_text() == decode(releases[1].token).checkpoint_note
    assert (home / "checkpoints").read_text().count(service.vkey.name + "\n") == 2


def test_every_token_of_an_older_service_brings_that_question(
    service: Service, station: Station, tmp_path: Path
) -> None:
    service.proves_growth = False
    _two_devices(station, tmp_path)
    assert service.witnessed == ["since=2", "since=2&since=4"]


def test_a_proof_with_a_token_that_proves_nothing_stops_the_line(
    service: Service, station: Station, tmp_path: Path
) -> None:
    def other_proof(path: str, body: dict[str, Any]) -> dict[str, Any]:
        nothing = [{"since": one["since"], "proof": []} for one in body.get("consistency", ())]
        return body | {"consistency": nothing} if "prove" in path else body

    service.forge = other_proof
    with pytest.raises(errors.IntegrityFailure, match="went back: its 4 entries do not begin with the 2"):
        _two_devices(station, tmp_path)
    service.forge = lambda _, body: body
    assert [release.leaf for release in _two_devices(station, tmp_path)] == [1, 3]


def test_a_proof_from_what_is_not_the_newest_checkpoint_any_more_shows_nothing(service: Service) -> None:
    """Another request was answered meanwhile."""
    for number in range(4):
        service.log("test", number=number)
    records = StationRecords(None)
    records.pin(str(service.vkey))
    token = service.checkpoint(4)
    proofs = {
        one["since"]: [base64.b64decode(node) for node in one["proof"]]
        for one in service.consistency("since=2", 4)
    }
    assert not records.grown(token, proofs), "nothing is known yet"
    records.prove([], service.checkpoint(3), {})
    assert not records.grown(token, proofs)
    assert [one.size for one in records.unproved(records.open(token))] == [3, 4]
    younger = StationRecords(None)
    younger.pin(str(service.vkey))
    younger.prove([], service.checkpoint(2), {})
    assert younger.grown(token, proofs)
    assert younger.newest == younger.open(token)
    assert younger.unproved(younger.open(token)) == []


def test_a_checkpoint_that_is_none_is_refused(service: Service, station: Station) -> None:
    service.forge = lambda path, body: {"checkpoint": "none"} if "checkpoint" in path else body
    with pytest.raises(errors.IntegrityFailure, match="no checkpoint"):
        station.checkpoint()


def test_repr_shows_no_secret(home: Path, station: Station) -> None:
    secret = (home / "station.key").read_text().split("\n")[1]
    credentials: Any = read_station_directory(home)
    assert secret not in repr(credentials) + repr(station)
