"""The service as those see it who watch it: figures, health, readiness, its log, and what hangs on them."""

import contextlib
import http.server
import json
import os
import re
import signal
import socketserver
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from birthmark import __version__
from birthmark.edge.http.metrics import ROUTES
from tests.support.devices import asked, signed
from tests.support.programs import need, need_extra
from tests.support.server import RUN, Http, RealmDirectory, Server, copy_realm, free_port, tls_context, until
from tests.system.alerts import RULES, rules, used_metrics

ISSUE = f"/v1/runs/{RUN}/issue"
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A server, and where it is watched."""

    server: Server
    port: int

    def get(self, path: str, accept: str = "*/*") -> tuple[int, str, str]:
        """Return status, content type and text."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", headers={"Accept": accept}
        )  # our own
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310  # likewise
                return answer.status, answer.headers["content-type"], answer.read().decode()
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, refused.headers["content-type"], refused.read().decode()

    def json(self, path: str) -> tuple[int, dict[str, Any]]:
        """Return status and document."""
        status, _, text = self.get(path)
        return status, json.loads(text)

    def samples(self) -> Samples:
        """Return all figures."""
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(self.get("/metrics")[2])
            for sample in family.samples
        }

    def figure(self, name: str, **labels: str) -> float | None:
        """Return one figure; None if there is none such."""
        return self.samples().get((name, frozenset(labels.items())))

    def is_ready(self) -> bool:
        """Ask whether the next device can be served."""
        return self.get("/ready")[0] == 200

    def reason(self, part: str) -> str:
        """Return why a part is not ready."""
        reason: str = self.json("/ready")[1]["parts"].get(part, {"reason": ""})["reason"]
        return reason


def watched_realm(path: Path, more: str = "") -> tuple[RealmDirectory, int]:
    realm, port = copy_realm(path), free_port()
    with realm.settings.open("a", encoding="utf-8") as settings:
        settings.write(f"\n[ops-plane]\nport = {port}\nlook-seconds = 1\nsilent-seconds = 2\n{more}")
    return realm, port


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    realm, port = watched_realm(tmp_path_factory.mktemp("watched") / "realm")
    with Server(realm=realm, processes=2) as server:
        watched = Watched(server=server, port=port)
        assert until(watched.is_ready, 30.0), watched.get("/ready")
        yield watched


@pytest.fixture
def station(line: Watched) -> Iterator[Http]:
    with Http(line.server.address, tls_context(line.server.realm.station())) as connection:
        yield connection


def gained(before: Samples, after: Samples) -> dict[str, float]:
    """Return what was counted in between, by name and labels."""
    return {
        f"{name}{{{','.join(f'{label}={value}' for label, value in sorted(labels))}}}": value
        - before.get((name, labels), 0.0)
        for (name, labels), value in after.items()
        if name.endswith("_total") and value != before.get((name, labels), 0.0)
    }


def test_what_happens_at_the_line_is_counted_once(line: Watched, station: Http) -> None:
    before = line.samples()
    seq = station.get("/v1/me").json["last_seq"]
    key, body = asked("COUNTED-1")
    issued = station.post(ISSUE, body, birthmark_seq=str(seq + 1)).json
    assert station.post("/v1/prove", signed(issued, key), birthmark_seq=str(seq + 2)).status == 200
    _, body = asked("COUNTED-2")
    wrong = signed(station.post(ISSUE, body, birthmark_seq=str(seq + 3)).json, key)
    assert station.post("/v1/prove", wrong, birthmark_seq=str(seq + 4)).status == 409
    assert station.post("/v1/devices/serial:COUNTED-2/hold", {}, birthmark_seq=str(seq + 5)).status == 400
    # A request is counted when its answer has gone out, which can be after the station has read it.
    refused = "birthmark_requests_total{route=/v1/devices/{device}/hold,status=400}"
    assert until(lambda: gained(before, line.samples()).get(refused))
    counted = gained(before, line.samples())
    assert counted["birthmark_devices_total{outcome=issued}"] == 2
    assert counted["birthmark_devices_total{outcome=released}"] == 1
    assert counted["birthmark_devices_total{outcome=held}"] == 1
    assert counted["birthmark_requests_total{route=/v1/runs/{run}/issue,status=200}"] == 2
    assert counted["birthmark_requests_total{route=/v1/prove,status=200}"] == 1
    assert counted["birthmark_requests_total{route=/v1/prove,status=409}"] == 1
    assert counted[refused] == 1
    assert counted["birthmark_refusals_total{code=proof-failed}"] == 1
    assert counted["birthmark_refusals_total{code=malformed-request}"] == 1
    assert counted["birthmark_log_entries_total{}"] == 5


def test_what_is_open_is_counted_while_it_is_open(line: Watched) -> None:
    assert until(lambda: line.figure("birthmark_connections_open") == 0)
    with Http(line.server.address, tls_context(line.server.realm.station())) as one:
        one.get("/v1/me")
        assert line.figure("birthmark_connections_open") == 1
        assert line.figure("birthmark_requests_in_flight") == 0
    assert until(lambda: line.figure("birthmark_connections_open") == 0)


def test_who_is_refused_before_the_first_request_is_counted_by_reason(line: Watched) -> None:
    before = line.samples()
    stranger = tls_context(None, root=line.server.realm.station() / "root.crt")
    with (
        Http(line.server.address, stranger) as nobody,
        pytest.raises(OSError, match=r"(?i)alert|closed|reset"),
    ):
        nobody.get("/v1/me")
    name = "birthmark_handshakes_refused_total{reason=certificate}"
    assert until(lambda: gained(before, line.samples()).get(name)) == 1


def test_the_record_s_own_figures_are_there(line: Watched) -> None:
    assert until(lambda: line.figure("birthmark_run_room_devices", run=RUN))
    assert line.figure("birthmark_runs_open") == 1
    assert (line.figure("birthmark_log_size_entries") or 0) > 5
    for whose in ("server", "station", "operator", "authority"):
        assert (line.figure("birthmark_certificate_end_timestamp_seconds", of=whose) or 0) > 1.7e9
    assert (line.figure("birthmark_disk_free_bytes", place="database") or 0) > 0
    assert line.figure("birthmark_key_store_up") == line.figure("birthmark_database_up") == 1
    assert line.figure("birthmark_build_info", version=__version__, realm="acme", environment="test") == 1


def test_both_formats_are_what_their_own_readers_take(line: Watched) -> None:
    _, plain, text = line.get("/metrics")
    assert plain.startswith("text/plain; version=0.0.4")
    assert list(text_string_to_metric_families(text))
    accept = "application/openmetrics-text;version=1.0.0;q=0.5,*/*;q=0.1"
    _, modern, text = line.get("/metrics", accept)
    assert modern.startswith("application/openmetrics-text")
    assert list(openmetrics_families(text))  # type: ignore[no-untyped-call]  # it has no types


def test_promtool_has_nothing_to_say_against_the_figures(line: Watched) -> None:
    done = subprocess.run(
        [need("promtool", "prometheus"), "check", "metrics"],
        input=line.get("/metrics")[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_no_figure_names_a_device_a_client_or_a_certificate(line: Watched, station: Http) -> None:
    seq = station.get("/v1/me").json["last_seq"]
    before = {name for name, _ in line.samples()}
    series = len(line.samples())
    for number in range(5):
        station.post(ISSUE, asked(f"UNNAMED-{number}")[1], birthmark_seq=str(seq + 1 + number))
        station.get(f"/v1/devices/serial:UNNAMED-{number}")
        station.get(f"/v1/nothing-{number}")
    text = line.get("/metrics")[2]
    assert not re.search(r"UNNAMED|serial:|station:|ST01|nothing-|issuing-1", text)
    assert {name for name, _ in line.samples()} == before
    assert len(line.samples()) == series


def test_every_route_of_the_station_plane_has_figures(station: Http) -> None:
    assert station.get("/openapi.json").json["paths"].keys() <= set(ROUTES)


def test_nothing_else_can_be_asked_there(line: Watched) -> None:
    assert line.get("/")[0] == line.get("/metrics/")[0] == line.get("/v1/me")[0] == 404
    request = urllib.request.Request(f"http://127.0.0.1:{line.port}/ready", method="POST", data=b"{}")
    with pytest.raises(urllib.error.HTTPError) as refused, urllib.request.urlopen(request, timeout=20):  # noqa: S310  # our own
        pass
    assert refused.value.code == 405
    refused.value.close()


def test_a_refusal_in_the_log_says_who_where_and_of_which_trace(line: Watched, station: Http) -> None:
    seq = station.get("/v1/me").json["last_seq"]
    told = station.post(
        "/v1/runs/NO-SUCH/issue", asked("LOGGED-1")[1],
        birthmark_seq=str(seq + 1), traceparent=f"00-{TRACE}-{SPAN}-01",
    ).json  # fmt: skip
    (entry,) = until(lambda: [one for one in line.server.events() if one.get("instance") == told["instance"]])
    assert entry["event"] == "refused"
    assert (entry["code"], entry["client"], entry["run"]) == ("not-found", "station:ST01", "NO-SUCH")
    assert (entry["route"], entry["method"]) == ("/v1/runs/{run}/issue", "POST")
    assert (entry["trace_id"], entry["birthmark_version"]) == (TRACE, __version__)
    assert {"level", "logger", "timestamp", "detail"} <= entry.keys()


# --- what goes wrong


def test_counters_outlive_a_process_that_is_killed(line: Watched) -> None:
    line.samples()  # a request is counted after its answer: that of the test before, too
    before, began = line.samples(), "birthmark_process_starts_total{process=station-1}"
    (first, _) = (one["pid"] for one in line.json("/ready")[1]["processes"])
    os.kill(first, signal.SIGKILL)
    assert until(lambda: began in gained(before, line.samples()), 30.0)
    assert gained(before, line.samples()) == {began: 1}
    assert until(line.is_ready, 30.0)
    after = line.samples()
    assert not [name for name, value in before.items() if "_total" in name[0] and after[name] < value]


def test_while_a_process_hangs_the_watchers_are_told_so(line: Watched) -> None:
    first, _ = (one["pid"] for one in line.json("/ready")[1]["processes"])
    os.kill(first, signal.SIGSTOP)
    try:
        assert until(lambda: not line.is_ready())
        _, told = line.json("/ready")
        assert [one["ready"] for one in told["processes"]] == [False, True]
        assert "it hangs" in told["processes"][0]["reason"]
        assert line.json("/health")[0] == 503
        assert (line.figure("birthmark_process_silence_seconds", process="station-1") or 0) > 2
        assert line.figure("birthmark_ready") == 0
    finally:
        os.kill(first, signal.SIGCONT)
    assert until(line.is_ready)
    assert line.json("/health")[0] == 200


def test_what_holds_the_line_is_said_in_one_place_and_gone_when_it_is_mended(line: Watched) -> None:
    realm = line.server.realm
    assert realm.run("status").stdout.startswith("ready\n")
    database, aside = realm.path / "birthmark.db", realm.path / "aside"
    database.rename(aside)
    try:
        assert until(lambda: line.reason("database"))
        assert "birthmark.db is gone" in line.reason("database")
        assert line.figure("birthmark_database_up") == 0
        # what only the record could tell is not known, and nobody says that it is well
        assert until(lambda: line.figure("birthmark_part_ready", part="log-key") is None)
        held = realm.run("status", check=False)
        assert (held.returncode, held.stdout.partition(":")[0]) == (75, "HELD")
        assert "birthmark.db is gone" in held.stdout
        told = json.loads(realm.run("status", "--json", check=False).stdout)
        assert (told["ready"], told["parts"]["database"]["ready"]) == (False, False)
        assert told["parts"]["entropy"]["ready"]
    finally:
        aside.rename(database)
    assert until(line.is_ready)
    assert realm.run("status").returncode == 0
    said = [one for one in line.server.events() if one["event"] in ("not ready", "ready again")]
    of_database = [one["event"] for one in said if one["part"] == "database"]
    # each process says it once, and once that it is over
    assert sorted(of_database) == ["not ready", "not ready", "ready again", "ready again"]


def test_too_little_room_on_the_disk_holds_the_line_and_crls_have_their_end_among_the_figures(
    tmp_path: Path,
) -> None:
    publication = '[publication]\nurl = "http://pki.example.com"\ndirectory = "www"\n'
    realm, port = watched_realm(tmp_path / "realm", f"least-free-megabytes = {1 << 40}\n{publication}")
    realm.run("publish")
    with Server(realm=realm) as server:
        line = Watched(server=server, port=port)
        assert until(lambda: line.reason("disk"))
        assert re.search(r"has \d+ MB left, less than \d+: make room", line.reason("disk"))
        assert line.figure("birthmark_part_ready", part="disk") == 0
        crls: list[Mapping[str, str]] = json.loads((realm.path / "www/index.json").read_text())["crls"]
        assert len(crls) == line.figure("birthmark_crls_published")
        soonest = min(datetime.fromisoformat(one["next_update"]) for one in crls)
        assert line.figure("birthmark_crl_next_update_timestamp_seconds") == soonest.timestamp()


# --- birthmark status without a service


def test_status_tries_by_itself_where_nobody_can_be_asked(tmp_path: Path) -> None:
    realm = copy_realm(tmp_path / "realm")
    size = len(realm.entries())
    told = json.loads(realm.run("status", "--json").stdout)
    assert told["ready"]
    assert told["asked"] is None
    assert len(realm.entries()) == size
    (realm.path / "birthmark.db").rename(realm.path / "aside")
    held = realm.run("status", "--json", check=False)
    assert held.returncode == 75
    assert json.loads(held.stdout)["parts"]["service"]["reason"]


def test_status_says_that_no_service_answers(tmp_path: Path) -> None:
    realm, port = watched_realm(tmp_path / "realm")
    held = realm.run("status", check=False)
    assert held.returncode == 75
    assert f"nobody answers at 127.0.0.1:{port}: is the service running?" in held.stdout


@pytest.mark.parametrize("said", [b"no json", b'{"ready": true, "at": 1, "parts": 3, "processes": []}'])
def test_status_believes_nobody_but_the_ops_plane(tmp_path: Path, said: bytes) -> None:
    realm, port = watched_realm(tmp_path / "realm")

    class Stranger(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_words: object) -> None:
            pass

    with answering(Stranger, port):
        held = realm.run("status", check=False)
    assert held.returncode == 75
    assert "no ops plane of ours" in held.stdout


@contextlib.contextmanager
def answering(handler: type[http.server.BaseHTTPRequestHandler], port: int) -> Iterator[None]:
    with socketserver.TCPServer(("127.0.0.1", port), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def test_the_ops_plane_is_not_served_alone(tmp_path: Path) -> None:
    realm, _ = watched_realm(tmp_path / "realm")
    done = realm.run("serve", "--plane", "ops", check=False)
    assert done.returncode == 66
    assert "the ops plane watches the planes that are served beside it" in done.stderr


# --- traces


def test_traces_reach_a_collector_under_the_client_s_own(tmp_path: Path) -> None:
    need_extra("opentelemetry.exporter.otlp.proto.http.trace_exporter", "tracing")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (  # noqa: PLC0415  # an extra's
        ExportTraceServiceRequest,
        ExportTraceServiceResponse,
    )

    received: list[ExportTraceServiceRequest] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            octets = self.rfile.read(int(self.headers["content-length"]))
            assert (self.path, self.headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
            received.append(ExportTraceServiceRequest.FromString(octets))
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.end_headers()
            self.wfile.write(ExportTraceServiceResponse().SerializeToString())

        def log_message(self, *_words: object) -> None:
            pass

    realm, port = copy_realm(tmp_path / "realm"), free_port()
    with realm.settings.open("a", encoding="utf-8") as settings:
        settings.write(f'\n[tracing]\nendpoint = "http://127.0.0.1:{port}/v1/traces"\n')
    quick = {"OTEL_BSP_SCHEDULE_DELAY": "100"}
    with answering(Collector, port), Server(realm=realm, environment=quick) as server:
        with Http(server.address, tls_context(realm.station())) as station:
            key, body = asked("TRACED-1")
            issued = station.post(ISSUE, body, birthmark_seq="1", traceparent=f"00-{TRACE}-{SPAN}-01").json
            ignored = f"00-{TRACE[::-1]}-{SPAN}-00"  # the client does not keep this trace
            assert station.post("/v1/prove", signed(issued, key), traceparent=ignored).status == 200
            station.get("/v1/me")
        assert until(lambda: b"/v1/me" in b"".join(one.SerializeToString() for one in received))
    with Server(realm=realm) as server:  # and with nobody to send them to
        with Http(server.address, tls_context(realm.station())) as station:
            assert station.get("/v1/me").status == 200
        assert server.stop() == 0
        assert "Traceback" not in server.told()
    batches = [batch for request in received for batch in request.resource_spans]
    about = {one.key: one.value.string_value for one in batches[0].resource.attributes}
    assert (about["service.name"], about["service.version"]) == ("birthmark", __version__)
    spans = [span for batch in batches for scope in batch.scope_spans for span in scope.spans]
    mine = {span.name: span for span in spans if span.trace_id.hex() == TRACE}
    request = mine["/v1/runs/{run}/issue"]
    assert request.parent_span_id.hex() == SPAN
    said = {one.key: one.value for one in request.attributes}
    assert said["http.response.status_code"].int_value == 200
    assert {mine[name].parent_span_id for name in ("think", "train")} == {request.span_id}
    thoughts = {span.span_id for span in spans if span.name == "think"}
    assert mine["token"].parent_span_id in thoughts
    assert request.start_time_unix_nano <= mine["token"].start_time_unix_nano
    assert mine["train"].end_time_unix_nano <= request.end_time_unix_nano
    assert not [span for span in spans if span.trace_id.hex() == TRACE[::-1]]
    assert [span for span in spans if span.name == "/v1/me" and not span.parent_span_id]
    assert b"TRACED-1" not in b"".join(request.SerializeToString() for request in received)


WITHOUT = """
import sys
from pathlib import Path
sys.modules["opentelemetry.exporter"] = None
from birthmark import errors
from birthmark.settings import load
try:
    load(Path(sys.argv[1]))
except errors.MalformedRequest as refused:
    print(refused)
"""


def test_without_the_extra_the_table_is_refused_and_says_what_to_install(tmp_path: Path) -> None:
    realm = copy_realm(tmp_path / "realm")
    with realm.settings.open("a", encoding="utf-8") as settings:
        settings.write('\n[tracing]\nendpoint = "http://127.0.0.1:4318/v1/traces"\n')
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(realm.settings)], capture_output=True, text=True, check=True
    )
    assert "install birthmark[tracing]" in done.stdout


# --- alerts


def test_every_figure_that_an_alert_asks_for_is_there(line: Watched, tmp_path: Path) -> None:
    there = {name for name, _ in line.samples()}
    published = {"birthmark_crl_next_update_timestamp_seconds"}  # where there is a [publication]
    assert used_metrics(rules()) - there - published == set()
    assert RULES.is_file()
