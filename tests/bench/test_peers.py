"""Ours beside certificate authorities of others: they are really asked, and the table says what was found."""

import json
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import authorities, plain
from bench.comparison import TARGETS, Figures, Line, Shape
from bench.devices import Device, Pool
from bench.installation import Failed
from bench.load import Connection, Refused
from bench.measure import Repeat
from tests.support.programs import missing, need

TREE = Path(__file__).resolve().parent.parent.parent
SINGLE = Shape(asked="issue", gang=1, connections=8)
CHUNKED = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"a":\r\n3;x=y\r\n 1}\r\n0\r\n\r\n'


def test_cfssl_certifies_the_devices_and_its_processor_time_is_seen() -> None:
    need("cfssl", "golang-cfssl")
    with authorities.cfssl("sqlite") as peer:
        seen = plain.ask(peer, Pool().take(48), 4, 2)
    assert (seen.devices, seen.requests, seen.refused) == (48, 48, 0)
    assert seen.rate == pytest.approx(48 / seen.seconds)
    assert 0 < seen.p50 <= seen.p99
    assert seen.server_cpu > 0
    assert peer.durable
    assert peer.settings["journal_mode"] == "delete"


def test_a_certificate_of_another_key_ends_the_measurement_and_a_refusal_is_counted() -> None:
    need("cfssl", "golang-cfssl")
    devices = Pool().take(6)
    with authorities.cfssl("nothing") as peer:

        def silent(device: Device) -> bytes:
            return b"{}" if device is devices[4] else peer.body(device)

        assert not peer.durable
        with pytest.raises(Failed, match="another key"):
            plain.ask(replace(peer, body=lambda _: peer.body(devices[0])), devices, 2, 1)
        seen = plain.ask(replace(peer, body=silent), devices, 2, 1)
    assert (seen.devices, seen.refused) == (5, 1)


def test_openssl_signs_a_batch() -> None:
    need("openssl")
    with authorities.openssl_ca() as openssl:
        pool = Pool()
        for _ in range(2):
            seen = openssl.sign(pool.take(20))
            assert (seen.devices, seen.requests) == (20, 1)
            assert seen.server_cpu > 0
    assert "not synced" in openssl.settings["index"]


def test_who_is_not_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(authorities.Missing, match="Debian package golang-cfssl"),
        authorities.cfssl("nothing"),
    ):
        pass
    figures = beside(ours=4000.0, peer=100.0)
    figures.missing["cfssl, nothing"] = "cfssl is not installed"
    assert "cfssl, nothing                       MISSING: cfssl is not installed" in figures.text()


def test_a_chunked_answer_is_put_together_wherever_it_was_cut() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = Connection(ours, "host")
        for cut in range(1, len(CHUNKED)):
            theirs.sendall(CHUNKED[:cut])
            assert connection.answer() is None
            theirs.sendall(CHUNKED[cut:] + b"HTTP/1.1 400 Bad\r\nContent-Length: 2\r\n\r\n{}")
            assert connection.answer() == b'{"a": 1}'
            with pytest.raises(Refused, match="400 Bad"):
                connection.answer()


def line(rate: float, shape: Shape, *, ours: bool, store: str, cpu: float = 400.0, p99: float = 20.0) -> Line:
    seen = Repeat(
        devices=100, seconds=100 / rate, rate=rate, p50=10.0, p99=p99, requests=100, server_cpu=cpu - 100,
        database_cpu=100.0, client_cpu=0.1, signing=0.0,
    )  # fmt: skip
    return Line(
        system="birthmark" if ours else "cfssl", store=store, ours=ours, durable=store != "nothing",
        shape=shape, repeats=[seen],
    )  # fmt: skip


def beside(*, ours: float, peer: float) -> Figures:
    gang = Shape(asked="issue", gang=32, connections=8)
    return Figures(
        lines=[
            line(ours, SINGLE, ours=True, store="sqlite"),
            line(peer, SINGLE, ours=False, store="sqlite"),
            line(peer / 2, SINGLE, ours=False, store="postgresql"),
            line(2 * peer, Shape(asked="issue", gang=1, connections=32), ours=False, store="postgresql"),
            line(10 * peer, SINGLE, ours=False, store="nothing"),
            line(4 * ours, gang, ours=True, store="sqlite"),
            line(2 * ours, replace(gang, asked="transaction"), ours=True, store="sqlite", cpu=321.0),
        ],
        signatures=[{"verify_request_us": 100.0, "sign_certificate_us": 50.0, "verify_proof_us": 50.0}],
    )


def test_the_targets_are_held_against_the_best_durable_peer() -> None:
    figures = beside(ours=400.0, peer=100.0)
    found = {one["what"]: (one["found"], one["met"]) for one in figures.targets()}
    assert found == {
        "issue / best durable peer": (4.0, True),  # on as many connections
        "p99 of issue, ms": (20.0, True),
        "gangs / best durable peer": (8.0, True),  # at its best
        "gangs / cfssl storing nothing": (1.6, True),
        "CPU of a transaction in gangs / signatures": (pytest.approx(1.605), False),
        "CPU of issue / signatures": (pytest.approx(400 / 150), False),
    }
    assert found.keys() == TARGETS.keys()
    assert figures.document()["targets"] == figures.targets()


def test_no_target_is_met_against_a_peer_that_was_not_there() -> None:
    figures = beside(ours=400.0, peer=100.0)
    figures.missing["openbao, raft + audit"] = "OpenBao is not installed"
    met = {one["what"]: one["met"] for one in figures.targets()}
    assert met["issue / best durable peer"] is None
    assert met["gangs / best durable peer"] is None
    assert met["p99 of issue, ms"] is True
    figures.lines = [one for one in figures.lines if one.ours]
    assert {one["what"]: one["found"] for one in figures.targets()}["gangs / cfssl storing nothing"] is None
    assert "not known" in figures.text()


@pytest.mark.soak
def test_a_tiny_run_asks_everybody_and_leaves_nothing_behind(tmp_path: Path) -> None:
    need("cfssl", "golang-cfssl")
    need("postgres", "postgresql")
    need("openssl")
    need("strace")
    if not (TREE / ".tools/peers/openbao/.installed").exists():
        missing(".tools/peers/openbao is not installed (scripts/install --bench)")
    results = tmp_path / "results.json"
    command = [sys.executable, "-m", "bench", "--peers", "--quick", "--directory", str(tmp_path / "data")]
    command += ["--json", str(results), "--devices", "16", "--repeats", "1", "--concurrency", "8"]
    done = subprocess.run(command, cwd=TREE, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr + done.stdout
    assert list((tmp_path / "data").iterdir()) == []
    found: dict[str, Any] = json.loads(results.read_text())["peers"]
    assert found["missing"] == {}
    assert [(one["system"], one["store"], one["shape"]["asked"]) for one in found["lines"]] == [
        ("birthmark, 1 proc.", "sqlite", "issue"),
        ("cfssl", "nothing", "issue"),
        ("cfssl", "sqlite", "issue"),
        ("cfssl", "postgresql", "issue"),
        ("openbao", "raft + audit", "issue"),
        ("openssl ca", "text file", "batch"),
        ("birthmark, 1 proc.", "sqlite", "issue"),
        ("birthmark, 1 proc.", "sqlite", "transaction"),
    ]
    syncs = found["syncs"]
    assert syncs["cfssl, nothing"] == 0
    assert all(count >= 1 for name, count in syncs.items() if name != "cfssl, nothing")
    assert len(found["targets"]) == len(TARGETS)
