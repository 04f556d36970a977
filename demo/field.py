"""The story of ``--gateway``: vehicles leave the line and report; who must not is turned away.

How they come to be (``field_line``), what they have on board (``field_devices``), who is turned away
(``field_trials``), another fleet (``field_fleet``), and the application behind (``field_upstream``).
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from demo.audit import TOKEN, Audit
from demo.field_devices import Field, Vehicle
from demo.field_fleet import NAME, Fleet
from demo.field_line import AT_ONCE, BOOTED, IMAGE, OTHER_REALM, Cast, cast_of, found, make
from demo.field_trials import FieldTrials
from demo.field_upstream import Upstream
from demo.realm import Workshop
from demo.trials import Trial, show_trials

VEHICLES = 40
STATIONS = 2
REPORTS = 3
"""How often each reports in the storm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Storm:
    """All vehicles' first contacts."""

    vehicles: int
    contacts: int
    seconds: float


def tell(workshop: Workshop, choices: argparse.Namespace) -> int:
    """Tell the story; return the exit code.

    Raises:
        CannotBegin: something that it needs is missing.
        WentWrong: something is not as it has to be.
    """
    field, screen = Field(workshop), workshop.screen
    stations = [f"ST{number:02}" for number in range(1, (choices.stations or STATIONS) + 1)]
    cast = cast_of(choices.vehicles or VEHICLES)
    trials_place = workshop.directory / "trials"
    trials_place.mkdir(mode=0o700)
    screen.say("Birthmark: vehicles leave the line and report to the gateway.", style="bold")
    screen.say(
        f"A line beginning with $ is a command as it was run, in {os.path.relpath(workshop.realm)}. What"
        " comes after 'ok' was checked; the demo fails if anything is not as it has to be. What vehicles"
        " have on board is curl, openssl and a shell; nothing of ours."
    )
    with ExitStack() as until_the_end:
        found(field, choices.token, choices.database, stations, cast, until_the_end)
        with ExitStack() as until_it_is_stopped:
            screen.chapter("The line: stations, and vehicles that come by themselves")
            processes = 2 if choices.database == "postgresql" else 1
            planes = (field.device_port, field.gateway_port)
            until_it_is_stopped.enter_context(workshop.server(processes=processes, planes=planes))
            audit, met, unproved = make(field, cast, stations)
            screen.chapter("They leave the line and report")
            storm = _report(field, audit, met)
            screen.chapter("Turned away")
            trials = _turn_away(field, trials_place, cast, met, unproved)
            screen.chapter("An application behind the gateway")
            upstream = Upstream(field, audit)
            upstream.token(met[cast.line[0]])
            upstream.proxy(met[cast.line[0]], met[cast.line[1]])
        screen.chapter("What it proves, with everything stopped")
        entries = show_trials(workshop, trials)
        claim_each_once(audit, entries, {vehicle.id for vehicle in met.values()})
        audit.certificates()
        audit.tokens()
        size = audit.log(stations)
        audit.check()
    return _summarise(workshop, choices, audit, trials, storm, size)


# --- outside


def _report(field: Field, audit: Audit, met: Mapping[str, Vehicle]) -> Storm:
    """Have all of them report at once, each several times; one is shown."""
    first, *_ = met.values()
    queue = [vehicle for _ in range(REPORTS) for vehicle in met.values()]
    began = monotonic()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(lambda vehicle: field.contact(vehicle, show=False), queue))
    seconds = monotonic() - began
    again = field.contact(first)
    let_in = sum(
        answer.status == 200 and answer.json.get("device") == vehicle.id
        for vehicle, answer in zip(queue, answers, strict=True)
    )
    seen = {(answer.json.get("device"), answer.json.get("first_seen_at")) for answer in (*answers, again)}
    audit.claim(
        f"{let_in} of {len(queue)} contacts let in: each of {len(met)} vehicles {REPORTS} times, {AT_ONCE} at"
        " a time, as curl processes of one handshake each; each vehicle has one first contact",
        holds=let_in == len(queue) and len(seen) == len(met),
    )
    return Storm(vehicles=len(met), contacts=len(queue), seconds=seconds)


def _turn_away(
    field: Field, place: Path, cast: Cast, met: Mapping[str, Vehicle], unproved: Vehicle
) -> list[Trial]:
    trials, screen = FieldTrials(field, place), field.screen
    done: list[Trial] = []

    def tried(*those: Trial) -> None:
        for trial in those:
            screen.claim(f"as expected: {trial.tried}", holds=trial.as_expected)
        screen.say()
        done.extend(those)

    tried(trials.unreleased(unproved))
    tried(trials.replaced(cast.booted[0]))
    tried(trials.clone(cast.booted[1]))
    tried(trials.recalled(met[cast.line[1]]))
    tried(trials.stranger(cast.stranger))
    tried(trials.no_vehicle(field.workshop.realm / "stations" / "ST01"))
    tried(trials.other_realm(field.workshop.directory / "other" / "unit", OTHER_REALM))
    tried(*trials.fleet(Fleet(field)))
    tried(trials.image_used_up(cast.too_many, IMAGE))
    return done


# --- afterwards


def claim_each_once(audit: Audit, entries: Sequence[Mapping[str, Any]], vehicles: AbstractSet[str]) -> None:
    """Hold the vehicles (ids) that may come in against what the log has of first contacts."""
    seen = Counter(str(entry["device"]) for entry in entries if entry["kind"] == "device-first-seen")
    audit.claim(
        f"the log has one first contact of each of {len(vehicles)} vehicles and one boat, and nobody else's",
        holds=seen == dict.fromkeys([*vehicles, f"fleet:{NAME}/BOAT-1"], 1),
    )


def _summarise(
    workshop: Workshop,
    choices: argparse.Namespace,
    audit: Audit,
    trials: Sequence[Trial],
    storm: Storm,
    size: int,
) -> int:
    screen = workshop.screen
    screen.chapter("Summary")
    rows = {
        "vehicles": f"{storm.vehicles} released and registered by the gateway, each once;"
        f" {BOOTED} with one image, 1 with a code, 1 by CMP; 1 issued and never released",
        "gateway": f"{storm.contacts} contacts in {storm.seconds:.1f} s: {storm.contacts / storm.seconds:.0f}"
        f" handshakes/s on {os.cpu_count()} cores, which curl's processes share with the service",
        "refusals": f"{audit.refused} in the log; {sum(trial.passed for trial in trials)} of"
        f" {len(trials)} trials came out",
        "log": f"{size} entries, verified",
        "all of it": f"{screen.seconds:.0f} s",
        "database": "PostgreSQL, two processes each for line and gateway"
        if choices.database
        else "SQLite, one process a plane",
        "keys": "in a PKCS#11 token (SoftHSM2: stands in for the plant's HSM)"
        if choices.token
        else "software keys: development only",
    }
    for name, text in rows.items():
        screen.row(name, text)
    screen.say()
    failed = [trial.tried for trial in trials if not trial.passed] + audit.failures
    for what in failed:
        screen.claim(what, holds=False)
    if not failed:
        _point(workshop, choices, audit.vehicles[0].name)
    return 1 if failed else 0


def _point(workshop: Workshop, choices: argparse.Namespace, vin: str) -> None:
    """Say where to look next."""
    screen = workshop.screen
    program = os.path.relpath(Path(sys.executable).parent, workshop.realm)
    screen.say("All as expected. To look around:")
    with_database = ("birthmark fleet devices", f"birthmark device show vin:{vin}", "birthmark shared list")
    screen.output(
        [
            f"cd {os.path.relpath(workshop.realm)}; PATH=$PWD/{program}:$PATH",
            *(["export SOFTHSM2_CONF=$PWD/../token/softhsm2.conf"] if choices.token else []),
            f"birthmark log verify-proof ../vehicles/{vin}/{TOKEN} --vkey log.vkey",
            "birthmark log verify ../audit/log.zip --vkey log.vkey",
            *(() if choices.database else with_database),
        ]
    )
    screen.say()
    screen.say("deploy/first-boot.sh is all that such a vehicle needs; docs/gateway.md says who is let in.")
