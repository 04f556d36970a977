"""``python -m bench``: devices a second, latency, CPU, one device's path, CRLs and OCSP, on this machine.

Every database and number of processes gets an installation of its own, made by ``birthmark init`` and served
by ``birthmark serve``.  Results go to the screen and, whole, to a JSON file.  ``docs/performance.md`` says
what the columns mean.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bench import crls, elements, floors, gateway, machine, peers, report, status
from bench.anatomy import Anatomy, dissect
from bench.devices import Pool
from bench.installation import STATIONS, Failed, installation
from bench.measure import Case, Series, measure
from tools.programs import find

DATABASES: Final = ("sqlite", "postgresql")
MODES: Final = ("profile", "publication", "elements", "gateway", "peers")
"""Parts that can be asked for alone."""
GANG: Final = 32
SITTING_SECONDS: Final = {False: 0.4, True: 0.1}
"""How long a floor is measured at a time, thrice; by ``--quick``."""
OCSP_SECONDS: Final = {False: 15.0, True: 1.5}
"""How long each responder is asked; by ``--quick``."""
CRL_ENTRIES: Final = {False: (10_000_000, 1_000_000), True: (100_000, 60_000)}
"""Certificates issued and revoked; by ``--quick``."""
INJECTIONS: Final = {False: 500, True: 50}
"""Into secure elements, for each key store, way and size of keys; by ``--quick``."""
CONTACTS: Final = {False: 3000, True: 150}
"""Vehicles that report to the gateway; by ``--quick``."""
WIDEST_GANG_LOAD: Final = 8
"""Connections that send gangs; more would only queue."""


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line and fill in what follows from it."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument(
        "--quick", action="store_true", help="small counts, SQLite, one process, no CRLs: under a minute"
    )
    parser.add_argument("--profile", action="store_true", help="only the path of one device, in microseconds")
    parser.add_argument(
        "--publication", action="store_true", help="only CRLs and OCSP; with --quick few of them"
    )
    parser.add_argument("--elements", action="store_true", help="only secure elements")
    parser.add_argument("--gateway", action="store_true", help="only the gateway, against the bare TLS stack")
    parser.add_argument(
        "--peers", action="store_true", help="only ours beside certificate authorities of others"
    )
    parser.add_argument("--devices", type=int, metavar="N", help="devices a repeat (1024; quick: 128)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="repeats of each measurement (3)")
    parser.add_argument("--database", action="append", choices=DATABASES, help="may be given twice (both)")
    parser.add_argument(
        "--processes", type=int, action="append", metavar="N", help="of the service (1 and 2)"
    )
    parser.add_argument(
        "--concurrency", type=int, action="append", metavar="N", help="connections (1, 8 and 32)"
    )
    parser.add_argument("--directory", type=Path, help="where the databases lie (the temporary directory)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the results (bench-results/TIME.json)")
    chosen = parser.parse_args(arguments)
    chosen.devices = chosen.devices or (128 if chosen.quick else 1024)
    chosen.database = chosen.database or (["sqlite"] if chosen.quick else _installed())
    chosen.processes = chosen.processes or ([1] if chosen.quick else [1, 2])
    chosen.concurrency = chosen.concurrency or ([1, 8] if chosen.quick else [1, 8, 32])
    if min(chosen.devices, chosen.repeats, *chosen.processes, *chosen.concurrency) < 1:
        parser.error("every number is 1 or more")
    if max(chosen.concurrency) > STATIONS:
        parser.error(f"there are {STATIONS} stations: no more connections than that")
    return chosen


def _installed() -> list[str]:
    if find("postgres") is not None:
        return list(DATABASES)
    print("PostgreSQL is not installed (Debian package postgresql): only SQLite is measured", file=sys.stderr)
    return ["sqlite"]


def _cases(chosen: argparse.Namespace, database: str, processes: int) -> list[Case]:
    shapes = [(1, connections) for connections in chosen.concurrency]
    shapes += [(GANG, connections) for connections in chosen.concurrency if connections <= WIDEST_GANG_LOAD]
    return [
        Case(database=database, processes=processes, gang=gang, connections=connections, prove=prove)
        for gang, connections in shapes
        for prove in (False, True)
    ]


def _measurements(chosen: argparse.Namespace, pool: Pool, found: dict[str, Any]) -> list[Series]:
    done: list[Series] = []
    print("\n" + report.HEAD)

    for database in chosen.database:
        for processes in chosen.processes:
            under = floors.find(database, pool, SITTING_SECONDS[chosen.quick])
            found["floors"].append({"database": database, "processes": processes} | under.document())
            print(report.floors_text(database, under), flush=True)

            def told(series: Series, under: floors.Floors = under) -> None:
                print(report.line_text(series, under), flush=True)

            pool.rewind()
            with installation(database) as site:
                found["durability"][database] = site.durability
                done += measure(
                    site,
                    _cases(chosen, database, processes),
                    pool,
                    devices=chosen.devices,
                    repeats=chosen.repeats,
                    load_processes=os.cpu_count() or 1,
                    told=told,
                )
    print("\n" + report.notes_text(chosen.repeats))
    return done


def _anatomies(chosen: argparse.Namespace, pool: Pool, found: dict[str, Any]) -> list[Anatomy]:
    done: list[Anatomy] = []
    for database in chosen.database:
        pool.rewind()
        with installation(database) as site:
            found["durability"][database] = site.durability
            done += [dissect(site, database, pool, gang=gang, devices=chosen.devices) for gang in (1, GANG)]
    print("\nThe path of one device: one station, one request at a time, one process; wall clock\n")
    print(report.anatomy_text(done))
    return done


def _publication(chosen: argparse.Namespace, found: dict[str, Any]) -> None:
    """Measure what is published; CRLs need PostgreSQL."""
    rates = status.measure(OCSP_SECONDS[chosen.quick])
    found["publication"]["ocsp"] = rates.document()
    print(
        "\nOCSP on one core, by POST without a nonce;"
        f" load average {machine.load_average():.2f}\n\n{rates.text()}",
        flush=True,
    )
    if find("postgres") is None:
        print("\nCRLs are not measured: PostgreSQL is not installed")
        return
    figures = crls.measure(*CRL_ENTRIES[chosen.quick])
    found["publication"]["crls"] = figures.document()
    print(f"\nCRLs, PostgreSQL; load average {machine.load_average():.2f}\n\n{figures.text()}")


def _elements(chosen: argparse.Namespace, found: dict[str, Any]) -> None:
    figures = elements.measure(INJECTIONS[chosen.quick])
    line = elements.whole_line(INJECTIONS[chosen.quick])
    found["elements"] = {"injections": [one.document() for one in figures], "line": line.document()}
    print(
        "\nSecure elements: injection with its gate; load average"
        f" {machine.load_average():.2f}\n\n{elements.text(figures, line)}",
        flush=True,
    )


def _gateway(chosen: argparse.Namespace, found: dict[str, Any]) -> None:
    found["gateway"] = {}
    for database in chosen.database:
        figures = gateway.measure(CONTACTS[chosen.quick], database)
        found["gateway"][database] = figures.document()
        print(
            f"\nThe gateway on {database}, {figures.processes} processes, against the bare TLS stack;"
            f" load average {machine.load_average():.2f}\n\n{figures.text()}",
            flush=True,
        )


def _peers(chosen: argparse.Namespace, found: dict[str, Any]) -> None:
    before = machine.load_average()
    figures = peers.measure(
        chosen.database,
        chosen.processes,
        chosen.concurrency,
        devices=chosen.devices,
        repeats=chosen.repeats,
        seconds=SITTING_SECONDS[chosen.quick],
    )
    found["peers"] = figures.document()
    print(
        f"\nBeside certificate authorities of others: P-256, the same requests in turns, {chosen.repeats}"
        f" rounds; load average {before:.2f} before, {machine.load_average():.2f} after\n\n{figures.text()}",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    chosen = options(arguments)
    if chosen.directory is not None:
        chosen.directory.mkdir(parents=True, exist_ok=True)
        tempfile.tempdir = str(chosen.directory.resolve())
    described, load = machine.describe(Path(tempfile.gettempdir())), machine.load_average()
    print(report.header_text(described, load), flush=True)
    pool = Pool()
    found: dict[str, Any] = {
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": described,
        "load_average": load,
        "repeats": chosen.repeats,
        "floors": [],
        "durability": {},
        "publication": {},
    }
    try:
        everything = not any(getattr(chosen, mode) for mode in MODES)
        series = _measurements(chosen, pool, found) if everything else []
        profiled = chosen.profile or (everything and not chosen.quick)
        anatomies = _anatomies(chosen, pool, found) if profiled else []
        if chosen.publication or (everything and not chosen.quick):
            _publication(chosen, found)
        if chosen.elements or (everything and not chosen.quick):
            _elements(chosen, found)
        if chosen.gateway or (everything and not chosen.quick):
            _gateway(chosen, found)
        if chosen.peers or (everything and not chosen.quick):
            _peers(chosen, found)
    except Failed as failed:
        print(f"bench: {failed}", file=sys.stderr)
        return 1
    for database, said in found["durability"].items():
        print(
            f"\n{database} as the service opens it: "
            + ", ".join(f"{name} = {value}" for name, value in said.items())
        )
    found["measurements"] = [one.document() for one in series]
    found["anatomy"] = [one.document() for one in anatomies]
    path = chosen.json or Path("bench-results") / f"{found['began'].replace(':', '')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(f"\nresults: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
