"""The story of ``--element scp03``: a line whose devices have secure elements, in readers.

Master keys and profile (``makers``), readers (``readers``), stations (``chip_station``), what must not work
(``chip_trials``), and what the record says afterwards (``chip_audit``).
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

from demo.audit import Audit
from demo.chip_audit import ChipAudit
from demo.chip_trials import ROOM, SPARE, ChipTrials
from demo.floor import STALL_SECONDS
from demo.makers import PROFILE, make_masters, take_profile_in
from demo.readers import Readers, inserted, readers
from demo.realm import OPERATOR, CannotBegin, WentWrong, Workshop, make_realm
from demo.trials import Trial, show_trials
from demo.vins import WMI, vins

RUN = "2026-W47-G"
VEHICLES = 24
STATIONS = 2
READERS = 4
"""In front of each station."""
_MOST_STATIONS = 4
_PROGRAM = Path(__file__).with_name("chip_station.py")
_OPENED = ("status", "quantity", "opened_by", "element", "hardware_id")


@dataclass(slots=True)
class Line:
    """What came off the line."""

    released: list[dict[str, Any]] = field(default_factory=list)
    refused: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    """With elements in the readers: putting them in is not counted."""


def tell(workshop: Workshop, choices: argparse.Namespace) -> int:
    """Tell the story; return the exit code.

    Raises:
        CannotBegin: something that it needs is missing.
        WentWrong: something is not as it has to be.
    """
    names = [f"ST{number:02}" for number in range(1, (choices.stations or STATIONS) + 1)]
    if len(names) > _MOST_STATIONS:
        raise CannotBegin(f"with --element there are up to {_MOST_STATIONS} stations: a pcscd has 16 readers")
    screen = workshop.screen
    screen.say("Birthmark: a production line whose devices have secure elements.", style="bold")
    screen.say(
        f"A line beginning with $ is a command as it was run, in {os.path.relpath(workshop.realm)}. What"
        " comes after 'ok' was checked; the demo fails if anything is not as it has to be."
    )
    with ExitStack() as until_the_end:
        where = _found(workshop, choices, names, until_the_end)
        numbers = vins()
        with ExitStack() as until_it_is_stopped:
            screen.chapter("The line")
            _introduce(workshop, where)
            processes = 2 if choices.database == "postgresql" else 1
            until_it_is_stopped.enter_context(workshop.server(processes=processes))
            line = _produce(workshop, where, names, list(islice(numbers, choices.vehicles or VEHICLES)))
            screen.chapter("What must not work, and what must work all the same")
            trials = ChipTrials(workshop, where, RUN, list(islice(numbers, SPARE))).all()
            show_trials(workshop, trials)
        screen.chapter("Years later: what is known of a key set, with the service stopped")
        audit = Audit(workshop)
        audit.tokens()
        chips = ChipAudit(workshop, where, audit, token=bool(choices.token))
        chips.record(line.released[0]["vin"])
        chips.elements(line.released[0])
        size = audit.log(names)
        audit.check()
    return _summarise(workshop, choices, where, line, trials, audit, size)


def _found(
    workshop: Workshop, choices: argparse.Namespace, names: Sequence[str], until_the_end: ExitStack
) -> Readers:
    """Make the realm, its master keys, its profile and its run; connect the readers."""
    screen = workshop.screen
    for place in ("maker", "elements"):
        (workshop.directory / place).mkdir(mode=0o700)
    where = until_the_end.enter_context(readers(workshop, len(names) * READERS))
    screen.chapter("A realm, the master keys of secure elements, and a run")
    make_realm(workshop, choices.token, choices.database, names, until_the_end)
    make_masters(workshop)
    take_profile_in(workshop)
    quantity = (choices.vehicles or VEHICLES) + ROOM
    workshop.birthmark(
        *("run", "open", RUN, "--product", "roadster", "--quantity", str(quantity)),
        *(word for name in names for word in ("--station", name)),
        *("--hardware-id-kind", "vin", "--check-digit", "--wmi", WMI, "--hours", "8", "--element", PROFILE),
        answer=lambda lines: [line for line in lines if line.startswith(_OPENED)],
    )
    return where


def _introduce(workshop: Workshop, where: Readers) -> None:
    if where.missing is not None:
        workshop.screen.say(
            f"There is no PC/SC here: {where.missing}. The elements are reached over TCP instead; nothing"
            " below goes through a reader.",
            style="bold yellow",
        )
        workshop.screen.say()


def _produce(workshop: Workshop, where: Readers, names: Sequence[str], numbers: Sequence[str]) -> Line:
    """Take all vehicles through the line, one tray after the other."""
    screen, line = workshop.screen, Line()
    size = len(where.slots)
    through = "over TCP" if where.missing else f"pcscd, {size} readers (vpcd)"
    screen.say(
        f"{len(numbers)} vehicles in trays of {size}; {len(names)} stations, {READERS} readers each, all at"
        f" once; {through}. The elements are software, in a process of their own; takt: from a vehicle in"
        " front of its reader to its release token."
    )
    screen.say()
    with ExitStack() as until_the_end:
        stations = [until_the_end.enter_context(_station(workshop, name)) for name in names]
        for start in range(0, len(numbers), size):
            tray = numbers[start : start + size]
            with inserted(
                workshop, where, f"tray-{start // size + 1}", count=len(tray), kdd=start + 1, show=not start
            ):
                _take_through(workshop, where, stations, names, tray, line)
    if line.refused or len(line.released) != len(numbers):
        raise WentWrong(f"{len(line.released)} of {len(numbers)} vehicles were released")
    return line


def _take_through(
    workshop: Workshop,
    where: Readers,
    stations: Sequence[subprocess.Popen[str]],
    names: Sequence[str],
    tray: Sequence[str],
    line: Line,
) -> None:
    """Let all stations work on what stands before them."""
    jobs = [{"vin": vin, "reader": where.url(at)} for at, vin in enumerate(tray)]
    began = monotonic()
    shares = [jobs[at * READERS : (at + 1) * READERS] for at in range(len(stations))]
    busy = [pair for pair in zip(stations, names, shares, strict=True) if pair[2]]
    with ThreadPoolExecutor(max_workers=len(busy)) as pool:
        served = [pool.submit(_serve, workshop, station, name, share, line) for station, name, share in busy]
        try:
            for one in served:
                one.result(STALL_SECONDS)
        except BaseException as stopped:
            for station in stations:
                station.kill()  # whoever listens to it hears that it ended
            if isinstance(stopped, TimeoutError):
                raise WentWrong(f"a tray is not done after {STALL_SECONDS} s") from stopped
            raise
    line.seconds += monotonic() - began


def _serve(
    workshop: Workshop,
    station: subprocess.Popen[str],
    name: str,
    jobs: Sequence[dict[str, str]],
    line: Line,
) -> None:
    """Hand a station its part of a tray and show what it tells."""
    assert station.stdin is not None
    assert station.stdout is not None
    station.stdin.write(json.dumps(jobs) + "\n")
    station.stdin.flush()
    for said in station.stdout:
        event = json.loads(said)
        if event["event"] == "done":
            return
        passed = event["event"] == "released"
        (line.released if passed else line.refused).append(event)
        about = event["reader"].partition(":")[2].partition("?")[0]
        detail = (
            f"element …{event['kdd'][-4:]}  {event['commands']} commands  {event['seconds'] * 1000:5.0f} ms"
            if passed
            else event["detail"]
        )
        workshop.screen.lamp("PASS" if passed else "HOLD", f"{event['vin']}  {name}  {about:<16}  {detail}")
    raise WentWrong(f"{name}'s program ended: see {workshop.directory / f'station-{name}.log'}")


@contextmanager
def _station(workshop: Workshop, name: str) -> Iterator["subprocess.Popen[str]"]:
    """Run a station's program."""
    words = [str(_PROGRAM), f"stations/{name}", "--run", RUN, "--operator", OPERATOR]
    log = workshop.directory / f"station-{name}.log"
    with log.open("wb") as complaints:
        process = subprocess.Popen(
            [sys.executable, *words, "--vehicles", str(workshop.vehicles)],
            cwd=workshop.realm,
            env=workshop.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            start_new_session=True,  # Ctrl-C is for us first
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with process.stdin, process.stdout:
            if "ready" not in process.stdout.readline():
                raise WentWrong(f"{name}'s program does not start: see {os.path.relpath(log)}")
            yield process
    finally:
        process.terminate()
        process.wait()


def _summarise(
    workshop: Workshop,
    choices: argparse.Namespace,
    where: Readers,
    line: Line,
    trials: Sequence[Trial],
    audit: Audit,
    size: int,
) -> int:
    screen = workshop.screen
    screen.chapter("Summary")
    count = len(line.released)
    takt = sorted(event["seconds"] * 1000 for event in line.released)
    carrying = median(event["carrying"] * 1000 for event in line.released)
    commands = median(event["commands"] for event in line.released)
    held = sum(trial.passed and "held" in trial.leaves for trial in trials)
    through = "over TCP (no PC/SC here)" if where.missing else "through pcscd"
    rows = {
        "devices": f"{len(audit.vehicles)} released, each with its key set proved; {held} held",
        "the line": f"{count} injections in {line.seconds:.1f} s {through}: {count / line.seconds:.1f}/s on"
        f" {os.cpu_count()} cores, which stations, elements and service share; putting elements into"
        " readers is not counted",
        "takt": f"median {median(takt):.0f} ms, longest {takt[-1]:.0f} ms, {len(where.slots)} at a time; of"
        f" that {carrying:.0f} ms for {commands:.0f} commands to a virtual element. A chip takes longer",
        "log": f"{size} entries, verified",
        "all of it": f"{screen.seconds:.0f} s",
        "database": "PostgreSQL, two server processes" if choices.database else "SQLite, one server process",
        "keys": "in a PKCS#11 token (SoftHSM2: stands in for the plant's HSM), key sets derived and wrapped"
        " in it"
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
        _point(workshop, choices, line.released[0]["vin"])
    return 1 if failed else 0


def _point(workshop: Workshop, choices: argparse.Namespace, vin: str) -> None:
    """Say where to look next."""
    screen = workshop.screen
    program = os.path.relpath(Path(sys.executable).parent, workshop.realm)
    screen.say("All as expected. To look around:")
    with_database = (f"birthmark device show vin:{vin}", "birthmark keys list")
    screen.output(
        [
            f"cd {os.path.relpath(workshop.realm)}; PATH=$PWD/{program}:$PATH",
            *(["export SOFTHSM2_CONF=$PWD/../token/softhsm2.conf"] if choices.token else []),
            f"birthmark log verify-proof ../vehicles/{vin}/release.tlog-proof --vkey log.vkey",
            "birthmark log verify ../audit/log.zip --vkey log.vkey",
            *(() if choices.database else with_database),
        ]
    )
    screen.say()
    screen.say(
        "demo/chip_station.py is such a station in a hundred lines; docs/element-profiles.md says what a"
        " profile may say."
    )
