"""``birthmark status``: what holds the line, if anything does, on one screen."""

import http.client
import json
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import typer

from birthmark import errors
from birthmark.edge.cli import exits, printing
from birthmark.edge.cli.options import DEFAULT_SETTINGS, AsJson, SettingsPath
from birthmark.edge.cli.session import Session, session_of
from birthmark.edge.readiness import examine
from birthmark.ledger.entry import time_text
from birthmark.settings import OpsPlane, load

__all__ = ["status"]

ANSWER_SECONDS = 5.0
LEAST_FREE_BYTES = 256 << 20
"""Where the settings have no ops plane, which says it."""
ANSWER_OCTETS = 1 << 20


def status(
    context: typer.Context, *, settings: SettingsPath = DEFAULT_SETTINGS, as_json: AsJson = False
) -> None:
    """Say what holds the line, if anything; exit 0 if the next device can be served, 75 if it cannot.

    Asks the running service by its ops plane.  Where the settings have none, tries by itself whether a
    service could: opens record and key store, writes, signs.
    """
    loaded = load(settings)
    table = loaded.ops_table
    shown = _tried(session_of(context), settings) if table is None else _asked(table)
    if as_json:
        printing.line(printing.json_text(shown))
    else:
        _print(shown)
    raise typer.Exit(0 if shown["ready"] else exits.EXIT_CODES[errors.Unavailable])


def _asked(table: OpsPlane) -> Mapping[str, Any]:
    """Return what the ops plane says; that it does not answer is an answer, too."""
    host, place = _reached(table.host), f"{table.host}:{table.port}"
    connection = http.client.HTTPConnection(host, table.port, timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", "/ready")
        return _read(json.loads(connection.getresponse().read(ANSWER_OCTETS)), place)
    except OSError as cause:
        reason = f"nobody answers at {place}: is the service running? ({cause.strerror or cause})"
        return _held("service", reason, asked=place)
    except (http.client.HTTPException, ValueError, KeyError, TypeError, AttributeError):
        return _held("service", f"what answers at {place} is no ops plane of ours", asked=place)
    finally:
        connection.close()


def _read(found: Any, place: str) -> Mapping[str, Any]:
    return {
        "ready": found["ready"] is True,
        "at": str(found["at"]),
        "parts": {
            str(name): {"ready": one["ready"] is True, "reason": str(one["reason"])}
            for name, one in found["parts"].items()
        },
        "processes": [
            {
                "process": str(one["process"]),
                "pid": int(one["pid"]),
                "ready": one["ready"] is True,
                "reason": str(one["reason"]),
            }
            for one in found["processes"]
        ],
        "asked": place,
    }


def _reached(host: str) -> str:
    address = ip_address(host) if ":" in host or host.replace(".", "").isdigit() else None
    if address is None or not address.is_unspecified:
        return host
    return "::1" if address.version == 6 else "127.0.0.1"


def _tried(session: Session, settings: Path) -> Mapping[str, Any]:
    try:
        with session.application(settings) as application:
            found = examine(application, least_free_bytes=LEAST_FREE_BYTES)
    except errors.Refusal as refusal:
        return _held("service", str(refusal))
    return {
        "ready": found.ready,
        "at": time_text(session.factory().clock().now()),
        "parts": {str(part): {"ready": not why, "reason": why} for part, why in found.reasons.items()},
        "processes": [],
        "asked": None,
    }


def _held(part: str, reason: str, *, asked: str | None = None) -> Mapping[str, Any]:
    return {
        "ready": False,
        "parts": {part: {"ready": False, "reason": reason}},
        "processes": [],
        "asked": asked,
    }


def _print(shown: Mapping[str, Any]) -> None:
    printing.line("ready" if shown["ready"] else "HELD: the next device cannot be served")
    rows = [
        (name, "ok" if one["ready"] else "held", one["reason"] or "-") for name, one in shown["parts"].items()
    ]
    rows += [
        (f"{one['process']} ({one['pid']})", "ok" if one["ready"] else "held", one["reason"] or "-")
        for one in shown["processes"]
    ]
    printing.columns(("what", "state", "why"), rows)
    if shown["asked"] is None:
        printing.line("no service was asked: the settings have no [ops-plane]")
