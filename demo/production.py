"""The whole story: a realm, a line, what must not work, a recall, and the verification of all of it.

It ends with 0 only if every expectation held; with 1 if one did not; with 2 if it could not begin.  Whatever
was started is stopped, also on Ctrl-C.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from demo import chips, field
from demo.audit import Audit
from demo.floor import Floor, Order, jobs_of
from demo.publication import PublicHost
from demo.realm import (
    CannotBegin,
    WentWrong,
    Workshop,
    make_directory,
    make_realm,
)
from demo.recall import Recall
from demo.screen import Screen
from demo.trials import ROOM, SPARE, Trial, Trials, show_trials, silent_after_revocation
from demo.vins import WMI, vins

RUN = "2026-W47-A"
VEHICLES = 500
STATIONS = 3
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return its exit code."""
    choices = _choices(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    screen = Screen(plain=choices.plain)
    directory: Path = choices.directory
    workshop = None
    try:
        make_directory(directory)
        workshop = Workshop(directory, screen)
        story = field.tell if choices.gateway else _tell if choices.element is None else chips.tell
        return story(workshop, choices)
    except CannotBegin as reason:
        screen.say(f"The demo cannot begin: {reason}", style="bold red")
        return 2
    except WentWrong as wrong:
        _lament(screen, workshop, f"This went wrong: {wrong}")
        return 1
    except KeyboardInterrupt:
        _lament(screen, None, "Interrupted; everything that was started is stopped.")
        return INTERRUPTED
    except BaseException:
        _lament(screen, workshop, "The demo itself failed:")
        raise


def _choices(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="demo/line.py", description="A production line on this machine.")
    parser.add_argument("--token", choices=["softhsm2"], help="keep the service's keys in a PKCS#11 token")
    parser.add_argument("--database", choices=["postgresql"], help="two server processes on PostgreSQL")
    stories = parser.add_mutually_exclusive_group()
    stories.add_argument("--element", choices=["scp03"], help="devices with secure elements, in readers")
    stories.add_argument("--gateway", action="store_true", help="vehicles leave the line and report")
    parser.add_argument(
        "--vehicles",
        type=_number(20, 100_000),
        help=f"20 or more [{VEHICLES}; {chips.VEHICLES} with elements, {field.VEHICLES} with a gateway]",
    )
    parser.add_argument(
        "--stations",
        type=_number(2, 16),
        help=f"2 to 16 [{STATIONS}; {chips.STATIONS} with elements or a gateway]",
    )
    parser.add_argument("--directory", type=Path, default=Path("demo-realm"), help="[demo-realm]")
    parser.add_argument("--plain", action="store_true", help="no colour, no moving display")
    return parser.parse_args(arguments)


def _number(least: int, most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{least} to {most}, not {value}")
        return value

    return number


def _interrupt(_signal: int, _frame: object) -> None:
    # Only once: what follows is the stopping of everything, which nobody should interrupt.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _lament(screen: Screen, workshop: Workshop | None, what: str) -> None:
    screen.say()
    screen.say(what, style="bold red")
    words = [] if workshop is None else workshop.last_words()
    if workshop is not None and words:
        screen.say(f"The last lines of {os.path.relpath(workshop.log)}:")
        screen.output(words)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """What the summary is made of."""

    floor: Floor
    trials: Sequence[Trial]
    audit: Audit
    recall: Recall
    entries: int


def _tell(workshop: Workshop, choices: argparse.Namespace) -> int:
    vehicles = choices.vehicles or VEHICLES
    stations = [f"ST{number:02}" for number in range(1, (choices.stations or STATIONS) + 1)]
    screen = workshop.screen
    where = os.path.relpath(workshop.realm)
    screen.say("Birthmark: a production line on this machine.", style="bold")
    screen.say(
        f"A line beginning with $ is a command as it was run, in {where} (the first one beside it). What"
        " comes after 'ok' was checked; the demo fails if anything is not as it has to be."
    )
    host = PublicHost(workshop)
    with ExitStack() as until_the_end:
        _found(workshop, host, choices, stations, until_the_end)
        with ExitStack() as until_it_is_stopped:
            screen.chapter("The line")
            processes = 2 if choices.database == "postgresql" else 1
            until_it_is_stopped.enter_context(workshop.server(processes=processes))
            numbers = vins()
            floor = _produce(workshop, stations, list(islice(numbers, vehicles)))
            trials, entries = _try(workshop, floor, list(islice(numbers, SPARE)))
        audit = Audit(workshop)
        screen.chapter("What the vehicles' identities rest on, with the service stopped")
        audit.authorities()
        audit.certificates()
        audit.tokens()
        recall = _recall(workshop, host, audit, entries)
        screen.chapter("What it proves, with everything stopped")
        size = audit.log(stations)
        audit.check()
    outcome = _Outcome(
        floor=floor,
        trials=trials,
        audit=audit,
        recall=recall,
        entries=size,
    )
    return _summarise(workshop, choices, outcome)


def _found(
    workshop: Workshop,
    host: PublicHost,
    choices: argparse.Namespace,
    stations: Sequence[str],
    until_the_end: ExitStack,
) -> None:
    """Make the realm and open the runs."""
    workshop.screen.chapter("A realm: its authorities, its log, its stations, its operator")
    make_realm(workshop, choices.token, choices.database, stations, until_the_end)
    names = [word for name in stations for word in ("--station", name)]
    host.found()
    quantity = (choices.vehicles or VEHICLES) + ROOM
    workshop.birthmark(
        *("run", "open", RUN, "--product", "roadster", "--quantity", str(quantity), *names),
        *("--hardware-id-kind", "vin", "--check-digit", "--wmi", WMI, "--hours", "8"),
        answer=lambda lines: [line for line in lines if line.startswith(_OPENED)],
    )


_OPENED = ("status", "quantity", "opened_by", "signature", "hardware_id")


def _produce(workshop: Workshop, stations: Sequence[str], numbers: Sequence[str]) -> Floor:
    """Run the line; the third vehicle and one in its middle are miswired."""
    miswired = {2, len(numbers) // 3}
    orders = [
        Order(vin=vin, delivered=index % 3 == 0 and index not in miswired, miswired=index in miswired)
        for index, vin in enumerate(numbers)
    ]
    gang = min(32, max(2, len(orders) // 10))
    delivered = sum(order.delivered for order in orders)
    jobs = jobs_of(orders, gang)
    single = sum(len(job.orders) for job in jobs if not job.gang)
    workshop.screen.say()
    workshop.screen.say(
        f"{len(orders)} vehicles at {len(stations)} stations: {len(orders) - delivered} make their own key,"
        f" {delivered} have it delivered; {len(orders) - single} in gangs of up to {gang},"
        f" {single} one by one. Two are miswired. Half-way, {stations[-1]} is revoked."
    )
    workshop.screen.say()
    floor = Floor(workshop, RUN, stations, jobs, shut_out=stations[-1])
    floor.work()
    return floor


def _try(
    workshop: Workshop, floor: Floor, spare: Sequence[str]
) -> tuple[list[Trial], list[dict[str, object]]]:
    """Try what must not work, and find what it left in the log."""
    screen = workshop.screen
    screen.chapter("What must not work, and what must work all the same")
    screen.say(
        "Tried by clients of all kinds (demo/trials.py), and where an operator has to act, by command:"
    )
    screen.say()
    released = next(path for path in sorted(workshop.vehicles.iterdir()) if path.name not in floor.held).name
    trials = Trials(workshop, floor, run=RUN, spare=spare, released=released).all()
    entries = show_trials(workshop, trials)
    silent = silent_after_revocation(entries)
    screen.claim(
        "after the entry of its revocation the log has nothing from that station but refusals", holds=silent
    )
    if not silent:
        raise WentWrong("a revoked station went on working")
    return trials, entries


def _recall(
    workshop: Workshop, host: PublicHost, audit: Audit, entries: Sequence[Mapping[str, object]]
) -> Recall:
    """Publish, take some vehicles back, and publish again."""
    recall = Recall(workshop, host, audit, entries)
    workshop.screen.chapter("Publication: who asks is answered, by a host without any authority's key")
    with host.open(audit):
        recall.before()
        workshop.screen.chapter(f"A recall: somebody had opened {recall.station}'s fixture")
        recall.carry_out()
        recall.after()
    return recall


def _summarise(workshop: Workshop, choices: argparse.Namespace, outcome: _Outcome) -> int:
    floor, screen = outcome.floor, workshop.screen
    failed = [trial.tried for trial in outcome.trials if not trial.passed] + outcome.audit.failures
    screen.chapter("Summary")
    keys = "in a PKCS#11 token (SoftHSM2: stands in for the plant's HSM, protects like a file)"
    database = "PostgreSQL, two server processes" if choices.database else "SQLite, one server process"
    rows = {
        "vehicles": f"{len(outcome.audit.vehicles)} released, {len(floor.held)} held on the way:"
        " 1 reworked and released, 1 scrapped",
        "recalled": f"{outcome.recall.count} vehicles, by two operators;"
        f" {outcome.recall.octets} octets published",
        "refusals": f"{outcome.audit.refused} in the log",
        "log": f"{outcome.entries} entries, verified",
        "the line": f"{floor.released} vehicles in {floor.seconds:.1f} s:"
        f" {floor.released / max(floor.seconds, 0.001):.0f} vehicles/s on {os.cpu_count()} cores,"
        " vehicles and stations included",
        "all of it": f"{screen.seconds:.0f} s",
        "database": database,
        "keys": keys if choices.token else "software keys: development only",
    }
    for name, text in rows.items():
        screen.row(name, text)
    screen.say()
    if failed:
        for what in failed:
            screen.claim(what, holds=False)
        return 1
    _point(workshop, choices, floor)
    return 0


def _point(workshop: Workshop, choices: argparse.Namespace, floor: Floor) -> None:
    """Say where to look next."""
    screen = workshop.screen
    vin = min(path.name for path in workshop.vehicles.iterdir() if path.name not in floor.held)
    program = os.path.relpath(Path(sys.executable).parent, workshop.realm)
    screen.say("All as expected. To look around:")
    screen.output(
        [
            f"cd {os.path.relpath(workshop.realm)}; PATH=$PWD/{program}:$PATH",
            *(["export SOFTHSM2_CONF=$PWD/../token/softhsm2.conf"] if choices.token else []),
            f"ls -l ../vehicles/{vin}",
            f"birthmark log verify-proof ../vehicles/{vin}/release.tlog-proof --vkey log.vkey",
            "birthmark log verify ../audit/log.zip --vkey log.vkey",
            *(_WITH_DATABASE if not choices.database else []),
        ]
    )
    if choices.database:
        screen.say("The demo's PostgreSQL is gone, and with it the database; what was exported stays.")
    screen.say()
    screen.say("demo/station.py is a station in a hundred lines; README.md and ARCHITECTURE.md say the rest.")


_WITH_DATABASE = (
    "birthmark log tail",
    "birthmark device list -n 5",
    "birthmark recall list",
    "birthmark serve",
)
