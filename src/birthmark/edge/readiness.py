"""Can the next device be served?  Part by part, with one reason each, and the figures that the record has.

Every part is really tried: the database is written to, the log's key signs, randomness is drawn.  What is not
known is not ready (SPEC E4).  Used by the processes of the station plane, which leave what they found for the
ops plane, and by ``birthmark status`` where there is none.
"""

import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from birthmark import errors
from birthmark.edge.application import Application
from birthmark.floor.authorities import Authority, AuthorityKind, AuthorityStatus
from birthmark.floor.clients import Client, ClientStatus, Credential, Role
from birthmark.floor.exposure import Exposed, Exposure, Plane, exposure_id, why_closed
from birthmark.floor.runs import Run, RunStatus
from birthmark.ledger.checkpoint import VerifierKey, open_note, sign_note
from birthmark.ledger.entry import time_text
from birthmark.pki.certificates import Certificate, from_pem
from birthmark.pki.keys import KeyLabel
from birthmark.ports import BACKWARD_TOLERANCE

__all__ = ["Examined", "Figures", "Part", "directories", "examine", "figures", "free_bytes"]

log = logging.getLogger(__name__)

MEGABYTE = 1 << 20
MOST_RUNS = 32
"""Runs whose room is told one by one: those with the least."""
_ENTROPY_OCTETS = 32


class Part(StrEnum):
    """What has to be well before a device can be served."""

    DATABASE = "database"
    KEY_STORE = "key-store"
    LOG_KEY = "log-key"
    CLOCK = "clock"
    ENTROPY = "entropy"
    DISK = "disk"
    PLANE = "plane"


_ON_RECORD = frozenset({Part.LOG_KEY, Part.PLANE})
"""What cannot be tried without reading the record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """What was found."""

    reasons: Mapping[Part, str]
    """Why a part is not ready, in one line; empty if it is.  What only the database could tell is left out
    while that is away: it is not known, and held already."""
    last_entry: datetime | None
    """Time of the log's last entry; None if the database could not be asked."""

    @property
    def ready(self) -> bool:
        """True if every part is."""
        return self.reasons.keys() == set(Part) and not any(self.reasons.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What the record says of itself; times are seconds since 1970."""

    log_entries: int
    runs_open: int
    room: tuple[tuple[str, int], ...]
    """Open runs and for how many devices they have room; the ``MOST_RUNS`` with the least."""
    certificates: Mapping[str, float] = field(default_factory=dict)
    """The soonest end: of a live ``station`` or ``operator``, of the ``server``, of an ``authority``."""

    def document(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


def examine(
    application: Application,
    *,
    least_free_bytes: int,
    stage: Callable[[Part | None], None] = lambda _part: None,
) -> Examined:
    """Try every part.

    Args:
        application: built from the settings of this host.
        least_free_bytes: that a disk must have left.
        stage: told what is tried next, and at the end None, so that others see where it hangs.
    """
    last_entry: datetime | None = None

    def database() -> str:
        nonlocal last_entry
        last_entry = application.store.probe()
        return ""

    trials: Mapping[Part, Callable[[], str]] = {
        Part.DATABASE: database,
        Part.KEY_STORE: lambda: _key_store(application),
        Part.LOG_KEY: lambda: _log_key(application),
        Part.CLOCK: lambda: _clock(application, last_entry),
        Part.ENTROPY: lambda: _entropy(application),
        Part.DISK: lambda: _disk(directories(application), least_free_bytes),
        Part.PLANE: lambda: _plane(application),
    }
    reasons: dict[Part, str] = {}
    for part, trial in trials.items():
        if part in _ON_RECORD and reasons[Part.DATABASE]:
            continue
        stage(part)
        try:
            reasons[part] = trial()
        except errors.Refusal as refusal:
            reasons[part] = str(refusal)
        except Exception as fault:
            log.exception("%s could not be examined", part)
            reasons[part] = f"could not be examined: {type(fault).__name__}; see the service's log"
    stage(None)
    return Examined(reasons=reasons, last_entry=last_entry)


def _key_store(application: Application) -> str:
    health = application.keys.health()
    return "" if health.up else health.reason


def _log_key(application: Application) -> str:
    """Sign the newest checkpoint once more: the log's key says nothing it has not said already."""
    body, _, _ = application.store.checkpoint().rpartition("\n\n")
    key = VerifierKey.parse(application.realm.vkey)
    label = KeyLabel(application.settings.log.key)
    note = sign_note(
        f"{body}\n".encode(), key.name, key.public, lambda octets: application.keys.sign(label, octets)
    )
    open_note(note, key)
    return ""


def _clock(application: Application, last_entry: datetime | None) -> str:
    now = application.clock.now()
    if last_entry is not None and now < last_entry - BACKWARD_TOLERANCE:
        return (
            f"the clock says {time_text(now)}, which is before the log's last entry ({time_text(last_entry)})"
        )
    return ""


def _entropy(application: Application) -> str:
    application.entropy.token(_ENTROPY_OCTETS)
    return ""


def directories(application: Application) -> dict[str, Path]:
    """Return what this host writes into: the database's directory, if it is here, and what is published."""
    found = {}
    database = application.settings.database.url.removeprefix("sqlite:///")
    if database != application.settings.database.url:
        found["database"] = Path(database).parent
    if application.settings.publication_table is not None:
        found["publication"] = application.settings.publication_table.directory
    return found


def free_bytes(places: Mapping[str, Path]) -> dict[str, int]:
    """Return what the disks of these directories have left; one that is not there yet is left out."""
    return {name: shutil.disk_usage(place).free for name, place in places.items() if place.is_dir()}


def _disk(places: Mapping[str, Path], least: int) -> str:
    for name, free in free_bytes(places).items():
        if free < least:
            return (
                f"the disk of the {name} ({places[name]}) has {free // MEGABYTE} MB left,"
                f" less than {least // MEGABYTE}: make room"
            )
    return ""


def _plane(application: Application) -> str:
    name = exposure_id(Exposed.PLANE, Plane.STATION)
    facts = application.store.look({Exposure: (name,)})
    return why_closed(facts.get(Exposure, name), application.clock.now()) or ""


# --- figures


def figures(application: Application) -> Figures:
    """Read what the record says of itself; looks at every run and every client's certificates.

    Raises:
        errors.Refusal: the record cannot be read.
        OSError: the server's certificate cannot.
    """
    store = application.store
    open_runs = [run for run in store.scan(Run) if run.status is RunStatus.OPEN]
    room = sorted((run.quantity - run.admitted, run.id) for run in open_runs)
    return Figures(
        log_entries=application.log.size(),
        runs_open=len(open_runs),
        room=tuple((name, left) for left, name in room[:MOST_RUNS]),
        certificates=_soonest_ends(application),
    )


def _soonest_ends(application: Application) -> dict[str, float]:
    """Return the soonest end of each sort of certificate; of a client's several, the last one counts."""
    newest: dict[str, datetime] = {}
    for credential in application.store.scan(Credential):
        if credential.status is ClientStatus.ACTIVE:
            before = newest.get(credential.client)
            newest[credential.client] = (
                credential.not_after if before is None else max(before, credential.not_after)
            )
    ends: dict[str, list[datetime]] = {}
    for client in application.store.scan(Client):
        if client.status is ClientStatus.ACTIVE and client.id in newest:
            if client.role is Role.STATION:
                ends.setdefault("station", []).append(newest[client.id])
            elif client.role.kind == Role.OPERATOR.kind:
                ends.setdefault("operator", []).append(newest[client.id])
    ends["authority"] = [
        authority.ends_at
        for authority in application.store.scan(Authority)
        if authority.kind is AuthorityKind.ISSUING and authority.status is not AuthorityStatus.RETIRED
    ]
    table = application.settings.station_table
    if table is not None:
        (leaf, *_) = from_pem(table.certificate_file.read_text(encoding="utf-8"))
        ends["server"] = [Certificate.from_der(leaf).not_after]
    return {name: min(times).timestamp() for name, times in ends.items() if times}
