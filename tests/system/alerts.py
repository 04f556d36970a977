"""The alert rules, and for each what makes it speak and what does not: input for ``promtool test rules``."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

__all__ = ["CASES", "RULES", "Case", "rule_tests", "rules", "used_metrics"]

RULES = Path(__file__).parents[2] / "deploy/prometheus/birthmark.rules.yml"
DAY = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One alert; series (a value a minute, as promtool writes them) for which it speaks, and others."""

    alert: str
    speaks: Mapping[str, str]
    silent: Mapping[str, str]
    at: str = "20m"
    labels: Mapping[str, str] = field(default_factory=dict)
    """Of the alert, beside its severity."""


def _ends(of: str, seconds: int) -> dict[str, str]:
    # promtool's time begins at 0: what ends at this moment has about so many seconds left.
    return {f'birthmark_certificate_end_timestamp_seconds{{of="{of}"}}': f"{seconds}x200"}


def _quantile(name: str, slow: float, fast: float) -> dict[str, str]:
    """Return a histogram of which so many more observations a minute are over, and under, the threshold."""
    total, over = slow + fast, {"request": "2.5", "commit_train": "0.5"}[name]
    bounds = {"0.005": fast, over: fast, "10.0": total, "+Inf": total}
    label = ',route="r"' if name == "request" else ""
    return {
        f'birthmark_{name}_seconds_bucket{{le="{le}"{label}}}': f"0+{count:g}x60"
        for le, count in bounds.items()
    }


CASES = (
    Case(
        alert="BirthmarkNotWatched",
        speaks={"up": "1x30"},
        silent={'birthmark_build_info{version="1"}': "1x30"},
    ),
    Case(
        alert="BirthmarkDown",
        speaks={'up{job="birthmark"}': "0x30"},
        silent={'up{job="birthmark"}': "1x30", 'up{job="other"}': "0x30"},
        labels={"job": "birthmark"},
    ),
    Case(
        alert="BirthmarkHeld", speaks={"birthmark_ready": "0x30"}, silent={"birthmark_ready": "1x19 0 1x10"}
    ),
    Case(
        alert="BirthmarkProcessHangs",
        speaks={'birthmark_process_silence_seconds{process="station-1"}': "0+60x30"},
        silent={'birthmark_process_silence_seconds{process="station-1"}': "1x30"},
        labels={"process": "station-1"},
    ),
    Case(
        alert="BirthmarkProcessRestarts",
        speaks={'birthmark_process_starts_total{process="station-1"}': "1x10 2 3 4 5x10"},
        silent={'birthmark_process_starts_total{process="station-1"}': "1x10 2x20"},
        labels={"process": "station-1"},
    ),
    Case(
        alert="BirthmarkFault",
        speaks={'birthmark_refusals_total{code="internal"}': "0x10 1x20"},
        silent={
            'birthmark_refusals_total{code="internal"}': "3x30",
            'birthmark_refusals_total{code="not-found"}': "0+5x30",
        },
        labels={"code": "internal"},
    ),
    Case(
        alert="BirthmarkSlow",
        speaks=_quantile("request", 10, 90),
        silent=_quantile("request", 1, 99),
        at="40m",
    ),
    Case(
        alert="BirthmarkDescriptors",
        speaks={
            'birthmark_process_open_fds{process="p"}': "900x30",
            'birthmark_process_max_fds{process="p"}': "1000x30",
        },
        silent={
            'birthmark_process_open_fds{process="p"}': "700x30",
            'birthmark_process_max_fds{process="p"}': "1000x30",
        },
        labels={"process": "p"},
    ),
    Case(
        alert="BirthmarkMemory",
        speaks={'birthmark_process_resident_memory_bytes{process="p"}': "3000000000x30"},
        silent={'birthmark_process_resident_memory_bytes{process="p"}': "300000000x30"},
        labels={"process": "p"},
    ),
    Case(
        alert="BirthmarkDatabaseDown",
        speaks={"birthmark_database_up": "1x10 0x20"},
        silent={"birthmark_database_up": "1x30"},
    ),
    Case(
        alert="BirthmarkTrainsFail",
        speaks={"birthmark_commit_train_failures_total": "0x17 1x10"},
        silent={"birthmark_commit_train_failures_total": "0x5 4x25"},
    ),
    Case(
        alert="BirthmarkTrainsSlow",
        speaks=_quantile("commit_train", 10, 90),
        silent=_quantile("commit_train", 1, 99),
        at="40m",
    ),
    Case(
        alert="BirthmarkActsWait",
        speaks={"birthmark_acts_waiting": "600x30"},
        silent={"birthmark_acts_waiting": "512x30"},
    ),
    Case(
        alert="BirthmarkDiskFills",
        speaks={'birthmark_disk_free_bytes{place="database"}': "1000000000x30"},
        silent={'birthmark_disk_free_bytes{place="database"}': "9000000000x30"},
        labels={"place": "database"},
    ),
    Case(
        alert="BirthmarkKeyStoreDown",
        speaks={"birthmark_key_store_up": "1x10 0x20"},
        silent={"birthmark_key_store_up": "1x30"},
    ),
    Case(
        alert="BirthmarkKeyStoreDegraded",
        speaks={"birthmark_key_store_degraded": "1x30"},
        silent={"birthmark_key_store_degraded": "0x30"},
    ),
    Case(
        alert="BirthmarkKeyStoreFails",
        speaks={"birthmark_key_store_failures_total": "0x17 2x10"},
        silent={"birthmark_key_store_failures_total": "2x30"},
    ),
    Case(
        alert="BirthmarkPartHeld",
        speaks={'birthmark_part_ready{part="entropy"}': "0x30"},
        silent={'birthmark_part_ready{part="entropy"}': "1x30", 'birthmark_part_ready{part="plane"}': "0x30"},
        labels={"part": "entropy"},
    ),
    Case(
        alert="BirthmarkClockHeld",
        speaks={"birthmark_clock_held": "0x10 1x20"},
        silent={"birthmark_clock_held": "0x30"},
    ),
    Case(
        alert="BirthmarkClockSet",
        speaks={"birthmark_clock_offset_seconds": "0x10 -30x20"},
        silent={"birthmark_clock_offset_seconds": "1x30"},
    ),
    Case(
        alert="BirthmarkServerCertificateEnds",
        speaks=_ends("server", 10 * DAY),
        silent=_ends("server", 30 * DAY),
        at="2h",
        labels={"of": "server"},
    ),
    Case(
        alert="BirthmarkClientCertificateEnds",
        speaks=_ends("station", 3 * DAY),
        silent=_ends("station", 10 * DAY),
        at="2h",
        labels={"of": "station"},
    ),
    Case(
        alert="BirthmarkAuthorityEnds",
        speaks=_ends("authority", 100 * DAY),
        silent=_ends("authority", 400 * DAY),
        at="2h",
        labels={"of": "authority"},
    ),
    Case(
        alert="BirthmarkCRLEnds",
        speaks={"birthmark_crl_next_update_timestamp_seconds": f"{DAY // 4}x30"},
        silent={"birthmark_crl_next_update_timestamp_seconds": f"{2 * DAY}x30"},
    ),
    Case(
        alert="BirthmarkDevicesHeld",
        speaks={
            'birthmark_devices_total{outcome="held",instance="h"}': "0+1x30",
            'birthmark_devices_total{outcome="issued",instance="h"}': "0+10x30",
        },
        silent={
            'birthmark_devices_total{outcome="held",instance="h"}': "0+1x30",
            'birthmark_devices_total{outcome="issued",instance="h"}': "0+100x30",
        },
        labels={"instance": "h", "outcome": "held"},
    ),
    Case(
        alert="BirthmarkRunNearlyFull",
        speaks={'birthmark_run_room_devices{run="R"}': "99x30"},
        silent={'birthmark_run_room_devices{run="R"}': "100x30"},
        labels={"run": "R"},
    ),
    Case(
        alert="BirthmarkRateLimited",
        speaks={'birthmark_refusals_total{code="rate-limited"}': "0x15 1x20"},
        silent={'birthmark_refusals_total{code="rate-limited"}': "1x30"},
        labels={"code": "rate-limited"},
    ),
    Case(
        alert="BirthmarkHandshakesRefused",
        speaks={'birthmark_handshakes_refused_total{reason="certificate"}': "0+120x30"},
        silent={
            'birthmark_handshakes_refused_total{reason="certificate"}': "0+30x30",
            'birthmark_handshakes_refused_total{reason="limit"}': "0+999x30",
        },
    ),
    Case(
        alert="BirthmarkClosedDoor",
        speaks={'birthmark_handshakes_refused_total{reason="closed"}': "0+1x30"},
        silent={'birthmark_handshakes_refused_total{reason="closed"}': "0x10 5x20"},
        labels={"reason": "closed"},
    ),
    Case(
        alert="BirthmarkNotPermitted",
        speaks={'birthmark_refusals_total{code="not-permitted"}': "0+1x30"},
        silent={'birthmark_refusals_total{code="not-permitted"}': "0x10 3x20"},
    ),
)


def rules() -> dict[str, Mapping[str, Any]]:
    """Return the rules by the names of their alerts."""
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def used_metrics(described: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Return the names of our figures that the rules ask for."""
    return {name for rule in described.values() for name in re.findall(r"birthmark_[a-z_]+", rule["expr"])}


def rule_tests(cases: Sequence[Case]) -> dict[str, Any]:
    """Return what ``promtool test rules`` reads: each case once speaking, once silent."""
    tests = []
    for case in cases:
        rule = rules()[case.alert]
        alert = {"exp_labels": {**rule["labels"], **case.labels}, "exp_annotations": rule["annotations"]}
        for series, expected in ((case.speaks, [alert]), (case.silent, [])):
            test: dict[str, Any] = {"eval_time": case.at, "alertname": case.alert, "exp_alerts": expected}
            tests.append(
                {
                    "name": case.alert,
                    "interval": "1m",
                    "input_series": [{"series": name, "values": values} for name, values in series.items()],
                    "alert_rule_test": [test],
                }
            )
    return {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}
