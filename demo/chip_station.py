"""A station with several readers, as the software of a test fixture would be written.

    python demo/chip_station.py STATION_DIRECTORY --run RUN --operator NAME --vehicles DIRECTORY

As ``station.py``, with what a secure element takes besides: where the element is (a URL: ``pcsc:NAME``), and
``Enclave(…, card=…)``.  A job is a tray of vehicles, one in front of each reader, and each is served by a
thread of its own.  Keys pass by here encrypted for the element; nothing of this program could read them.
"""

import argparse
import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from time import perf_counter

from birthmark.edge.station import Enclave, Station
from birthmark.edge.station.elements import opened_channel
from birthmark.element.apdu import CardChannel
from birthmark.errors import Refusal

_telling = threading.Lock()


class Timed:
    """A ``CardChannel`` that counts what goes to the element, and how long it takes."""

    def __init__(self, card: CardChannel) -> None:
        """Stand before the element."""
        self._card = card
        self.commands = 0
        self.seconds = 0.0

    def transmit(self, command: bytes) -> bytes:
        """Pass a command on."""
        began = perf_counter()
        try:
            return self._card.transmit(command)
        finally:
            self.commands += 1
            self.seconds += perf_counter() - began

    def reset(self) -> None:
        """Pass it on."""
        self._card.reset()


def tell(event: str, **facts: object) -> None:
    """Print one event."""
    with _telling:
        sys.stdout.write(json.dumps({"event": event, **facts}) + "\n")
        sys.stdout.flush()


def work(station: Station, run: str, vehicles: Path, job: dict[str, str]) -> None:
    """Give one vehicle its identity, and its secure element its keys."""
    vin, reader = job["vin"], job["reader"]
    try:
        with opened_channel(reader) as channel:
            card = Timed(channel)
            began = perf_counter()
            with Enclave(str(vehicles / vin), card=card) as device:
                release = station.provision(run, vin, device)
    except Refusal as refused:
        tell("refused", vin=vin, reader=reader, code=refused.code, detail=str(refused))
        return
    key_set = release.key_set or {}
    tell(
        "released",
        vin=vin,
        reader=reader,
        kdd=key_set.get("key_diversification_data"),
        seconds=perf_counter() - began,
        commands=card.commands,
        carrying=card.seconds,
    )


def main() -> None:
    """Work until standard input ends."""
    arguments = argparse.ArgumentParser(description="one station of the line, with readers")
    arguments.add_argument("station", type=Path, help="its credential directory")
    arguments.add_argument("--run", required=True)
    arguments.add_argument("--operator", required=True)
    arguments.add_argument("--vehicles", type=Path, required=True)
    given = arguments.parse_args()
    with Station(given.station, operator=given.operator, keep_checkpoints=True) as station:
        station.me()
        tell("ready")
        for line in sys.stdin:
            jobs = json.loads(line)
            with ThreadPoolExecutor(max_workers=len(jobs)) as readers:
                for _ in readers.map(partial(work, station, given.run, given.vehicles), jobs):
                    pass
            tell("done")


if __name__ == "__main__":
    main()
