"""What is shared between processes, what is made of it, and who may see it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birthmark import errors
from birthmark.edge.http.board import Board, Desk, Kind, Layout, Metric
from birthmark.edge.http.metrics import LAYOUT, METRICS, REFUSALS, Meter
from birthmark.edge.http.ops import readiness
from birthmark.edge.http.tracecontext import decode_traceparent, trace_of
from birthmark.edge.readiness import Part
from birthmark.settings import OpsPlane, Settings, load
from tests.support.server import RealmDirectory

COUNT = Metric(name="count_total", kind=Kind.COUNTER, help="-", labels=(("route", ("a", "b", "other")),))
NOW = Metric(name="now", kind=Kind.GAUGE, help="-")
TIMES = Metric(name="times", kind=Kind.HISTOGRAM, help="-", buckets=(1.0, 2.0))


@pytest.fixture
def board() -> Board:
    return Board(["station-1", "station-2"], Layout([COUNT, NOW, TIMES]))


def test_who_begins_in_a_place_goes_on_counting_and_forgets_what_was_only_true_then(board: Board) -> None:
    desk, layout = board.desk("station-1"), board.layout
    desk.take()
    desk.add(layout.cell(COUNT, "a"), 3)
    desk.put(layout.cell(NOW), 7)
    desk.observe(layout.cell(TIMES), TIMES.buckets, 1.5)
    desk.note({"monotonic": 1.0})
    desk.stage(2)
    desk.take()
    assert (desk.value(layout.cell(COUNT, "a")), desk.value(layout.cell(NOW)), desk.starts) == (3, 0, 2)
    assert board.total(layout.cell(TIMES) + 1) == 1
    assert (desk.noted(), desk.looking[0]) == (None, 0)


def test_a_place_knows_nothing_of_another_and_the_total_is_of_all(board: Board) -> None:
    one, two = board.desks
    cell = board.layout.cell(COUNT, "b")
    one.add(cell)
    two.add(cell, 2)
    assert (one.value(cell), two.value(cell), board.total(cell)) == (1, 2, 3)
    assert board.total(board.layout.cell(COUNT, "a")) == 0


def test_a_label_nobody_knows_makes_no_new_figure(board: Board) -> None:
    cells = {board.layout.cell(COUNT, value) for value in ("a", "b", "other", "vin:1", "vin:2", "")}
    assert len(cells) == 3
    assert board.layout.cell(COUNT, "vin:1") == board.layout.cell(COUNT, "other")


@given(values=st.lists(st.floats(0, 5), max_size=30))
def test_a_histogram_counts_every_value_once_below_its_bound(values: list[float]) -> None:
    board = Board(["p"], Layout([TIMES]))
    (desk,), cell = board.desks, board.layout.cell(TIMES)
    for value in values:
        desk.observe(cell, TIMES.buckets, value)
    counted = [desk.value(cell + at) for at in range(3)]
    assert counted == [
        sum(value <= 1 for value in values),
        sum(1 < value <= 2 for value in values),
        sum(value > 2 for value in values),
    ]
    assert desk.value(cell + 3) == pytest.approx(sum(values))


def test_a_text_that_was_torn_or_is_too_long_is_nothing() -> None:
    layout = Layout([COUNT])
    memory = bytearray(layout.cells * 8 + 64)
    desk = Desk("p", layout, memoryview(memory))
    assert desk.noted() is None
    desk.note({"a": "b"})
    assert desk.noted() == {"a": "b"}
    memory[layout.cells * 8 + 10] ^= 1
    assert desk.noted() is None
    desk.note({"a": "b"})
    desk.note({"a": "b" * 64})
    assert desk.noted() == {"a": "b"}
    memory[layout.cells * 8 : layout.cells * 8 + 4] = b"\xff\xff\xff\xff"
    assert desk.noted() is None


def test_every_refusal_has_a_figure_of_its_own() -> None:
    ((_, codes),) = REFUSALS.labels
    board = Board(["p"], LAYOUT)
    meter = Meter(board.desks[0])
    for kind in errors.Refusal.__subclasses__():
        assert kind.code in codes
        meter.refused(kind.code)
        assert board.total(LAYOUT.cell(REFUSALS, kind.code)) >= 1


def test_names_follow_the_conventions_and_no_label_names_a_device() -> None:
    for metric in METRICS:
        assert metric.name.startswith("birthmark_")
        assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER), metric.name
        assert {name for name, _ in metric.labels} <= {"route", "status", "code", "outcome", "reason"}
    assert LAYOUT.cells < 4096


TABLE = OpsPlane(look_seconds=10, silent_seconds=15)


def looked(desk: Desk, at: float, **reasons: str) -> None:
    desk.take()
    parts = {str(part): "" for part in Part} | {name.replace("_", "-"): why for name, why in reasons.items()}
    desk.note({"monotonic": at, "parts": parts})


def test_it_is_ready_if_every_process_looked_lately_and_found_nothing(board: Board) -> None:
    for desk in board.desks:
        looked(desk, at=1000.0)
    assert readiness(board, TABLE, now=1005.0).ready
    late = readiness(board, TABLE, now=1100.0)
    assert not late.ready
    assert [why for _, _, why in late.processes] == ["it has not looked for 100 s"] * 2


def test_what_one_process_finds_holds_the_line(board: Board) -> None:
    looked(board.desks[0], at=1000.0)
    looked(board.desks[1], at=1000.0, key_store="token 'acme' is not there")
    found = readiness(board, TABLE, now=1000.0)
    assert not found.ready
    assert {name: why for name, why in found.parts.items() if why} == {
        "key-store": "token 'acme' is not there"
    }


def test_a_process_that_never_began_or_has_not_looked_is_not_ready(board: Board) -> None:
    looked(board.desks[0], at=1000.0)
    assert readiness(board, TABLE, now=1000.0).processes[1][2] == "it has not begun yet"
    board.desks[1].take()
    found = readiness(board, TABLE, now=1000.0)
    assert not found.ready
    assert found.processes[1][2] == "it has not looked yet"


def test_what_does_not_come_back_is_named(board: Board) -> None:
    for desk in board.desks:
        looked(desk, at=1000.0)
    impatient = OpsPlane.model_construct(look_seconds=10, silent_seconds=0)
    board.desks[0].stage(list(Part).index(Part.LOG_KEY) + 1)
    found = readiness(board, impatient, now=1000.0)
    assert found.parts["log-key"] == "the log-key has not answered for 0 s"
    assert not found.ready


def test_a_public_host_is_ready_when_its_processes_go_round() -> None:
    board = Board(["public-1"], LAYOUT)
    assert not readiness(board, TABLE, now=0.0).ready
    board.desks[0].take()
    found = readiness(board, TABLE, now=0.0)
    assert found.ready
    assert found.parts == {}


# --- who may see it


def with_table(realm: RealmDirectory, tmp_path: Path, text: str) -> Settings:
    file = tmp_path / "birthmark.toml"
    file.write_text(realm.settings.read_text(encoding="utf-8") + text, encoding="utf-8")
    return load(file)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "localhost", "factory.example"])  # noqa: S104  # refused
def test_it_listens_where_others_reach_it_only_if_that_is_said(
    realm: RealmDirectory, tmp_path: Path, host: str
) -> None:
    with pytest.raises(errors.MalformedRequest, match="no loopback address: say exposed = true"):
        with_table(realm, tmp_path, f'[ops-plane]\nhost = "{host}"\n')
    assert with_table(realm, tmp_path, f'[ops-plane]\nhost = "{host}"\nexposed = true\n').ops_plane.exposed


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1"])
def test_on_a_loopback_address_it_listens(realm: RealmDirectory, tmp_path: Path, host: str) -> None:
    assert with_table(realm, tmp_path, f'[ops-plane]\nhost = "{host}"\n').ops_plane.host == host


def test_a_host_nobody_watches_says_so(realm: RealmDirectory) -> None:
    with pytest.raises(errors.NotFound, match=r"no \[ops-plane\]"):
        _ = load(realm.settings).ops_plane


@pytest.mark.parametrize(
    "endpoint", ["collector", "ftp://h/", "http:///v1/traces", "http://me:secret@h:4318/"]
)
def test_a_collector_has_an_address_and_no_password(
    realm: RealmDirectory, tmp_path: Path, endpoint: str
) -> None:
    with pytest.raises(errors.MalformedRequest, match="endpoint") as refused:
        with_table(realm, tmp_path, f'[tracing]\nendpoint = "{endpoint}"\n')
    assert "secret" not in str(refused.value)


# --- the client's trace (W3C Trace Context, section 3.2.2.5 and the algorithm of 4.3)

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(("flags", "sampled"), [("01", True), ("00", False), ("ff", True)])
def test_a_traceparent_is_read(flags: str, sampled: bool) -> None:  # noqa: FBT001  # a column
    found = decode_traceparent(f"00-{TRACE}-{SPAN}-{flags}")
    assert found is not None
    assert (found.trace_id, found.span_id, found.sampled) == (TRACE, SPAN, sampled)


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01-more",  # version 00 has four fields
        f"ff-{TRACE}-{SPAN}-01",  # the version that is forbidden
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f" 00-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01\n",
    ],
)
def test_what_is_no_traceparent_is_no_trace(text: str) -> None:
    assert decode_traceparent(text) is None


def test_a_later_version_is_read_as_far_as_it_is_known() -> None:
    found = decode_traceparent(f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like")
    assert found is not None
    assert found.trace_id == TRACE


def test_two_traceparents_are_none() -> None:
    header = (b"traceparent", f"00-{TRACE}-{SPAN}-01".encode())
    assert trace_of([header, (b"accept", b"*/*")]) is not None
    assert trace_of([header, header]) is None


@given(st.binary(max_size=600))
def test_any_header_is_a_traceparent_or_none(value: bytes) -> None:
    trace_of([(b"traceparent", value)])
