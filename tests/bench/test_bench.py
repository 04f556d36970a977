"""The benchmark runs, and writes down what it says it does.  How fast anything is, is not tested here."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import options
from bench.measure import percentile
from bench.spans import PARTS
from tests.support.programs import need

TREE = Path(__file__).resolve().parent.parent.parent


def bench(tmp_path: Path, *arguments: str) -> tuple[str, dict[str, Any]]:
    results = tmp_path / "results.json"
    command = [sys.executable, "-m", "bench", "--quick", "--directory", str(tmp_path / "data")]
    command += ["--json", str(results), "--database", "sqlite", "--devices", "32", *arguments]
    done = subprocess.run(command, cwd=TREE, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr + done.stdout
    found: dict[str, Any] = json.loads(results.read_text())
    assert list((tmp_path / "data").iterdir()) == [], "the realm stays behind"
    return done.stdout, found


def test_a_tiny_run_measures_every_case_and_says_under_what_conditions(tmp_path: Path) -> None:
    shown, found = bench(tmp_path, "--concurrency", "2", "--repeats", "1")
    cases = [one["case"] for one in found["measurements"]]
    assert [(case["gang"], case["connections"], case["prove"]) for case in cases] == [
        (1, 2, False),
        (1, 2, True),
        (32, 2, False),
        (32, 2, True),
    ]
    for one in found["measurements"]:
        (repeat,) = one["repeats"]
        wave = one["case"]["gang"] * one["case"]["connections"]
        assert repeat["devices"] == -(-32 // wave) * wave
        assert repeat["requests"] == repeat["devices"] / one["case"]["gang"]
        assert repeat["rate"] == pytest.approx(repeat["devices"] / repeat["seconds"])
        assert 0 < repeat["p50"] <= repeat["p99"]
        assert (repeat["signing"] > 0) == one["case"]["prove"]
        assert repeat["signing"] < repeat["client_cpu"]
        assert one["median"] == repeat
    (under,) = found["floors"]
    assert under["crypto"]["devices_per_second"] == pytest.approx(
        1e6 / sum(cost for name, cost in under["crypto"].items() if name.endswith("_us"))
    )
    assert under["storage"].keys() == {"fdatasync_per_second", "commits_per_second"}
    assert found["durability"] == {"sqlite": {"journal_mode": "wal", "synchronous": "2"}}
    assert {"cpu", "kernel", "file system", "python", "tls", "sqlite"} <= found["machine"].keys()
    assert "1 repeats are too few" in shown
    assert found["anatomy"] == []


def test_the_profile_adds_up_to_what_the_client_saw(tmp_path: Path) -> None:
    shown, found = bench(tmp_path, "--profile")
    assert found["measurements"] == []
    single, gang = found["anatomy"]
    assert (single["gang"], gang["gang"]) == (1, 32)
    for one in (single, gang):
        assert sum(one["own"].values()) == pytest.approx(one["total"])
        assert one["own"].keys() == {"request", *PARTS}
        assert all(
            one["own"][part] > 0 for part in ("vet", "fill", "permit", "sign", "verify", "token", "write")
        )
        for part in ("vet", "fill", "permit", "sign", "reparse", "verify", "token"):
            assert one["calls"][part] == 1, part
        requests = 2 / one["gang"]
        for part in ("endpoint", "caller", "commit", "train", "fetch", "append", "checkpoint", "write"):
            assert one["calls"][part] == requests, part
        assert one["calls"]["decide"] == 2
    for _, label in PARTS.values():
        assert label in shown


@pytest.mark.soak
def test_what_is_published_is_measured_against_openssl_and_the_targets(tmp_path: Path) -> None:
    """SPEC F2, F3."""
    need("openssl")
    need("postgres", "postgresql")
    shown, found = bench(tmp_path, "--publication")
    assert (found["measurements"], found["anatomy"]) == ([], [])
    rates = found["publication"]["ocsp"]
    for name in ("live", "presigned", "presigned_lately", "openssl", "signatures"):
        assert rates[name]["clock"] > 0
        assert rates["ratios"].keys() >= rates["targets"].keys()
    for by in ("clock", "processor"):
        ratio = rates["ratios"]["live / openssl ocsp"][by]
        assert ratio == pytest.approx(rates["live"][by] / rates["openssl"][by])
    lists = found["publication"]["crls"]
    assert (lists["issued"], lists["revoked"]) == (100_000, 60_000)
    assert lists["full_octets"] > 53 * 60_000
    assert lists.keys() >= lists["targets"].keys()
    for name in ("presigned / openssl ocsp", "full_seconds"):
        assert name in shown


def test_a_percentile_is_a_sample_that_was_seen() -> None:
    samples = [float(number) for number in range(200, 0, -1)]
    assert [percentile(samples, percent) for percent in (0, 50, 99, 100)] == [1, 100, 198, 200]
    assert percentile([7.0], 99) == 7


def test_more_connections_than_stations_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        options(["--database", "sqlite", "--concurrency", "33"])
    assert ended.value.code == 2
    assert "32 stations" in capsys.readouterr().err
