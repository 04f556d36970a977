"""A station's program for devices with secure elements, as a fixture's author would write it.

    python -m tests.system.element_station STATION DEVICES RUN NAME=PORT…

Each device is provisioned by a thread of its own, its element being behind ``PORT``, until it is released or
refused; one line of JSON on standard output says which.  Started again after it was killed, it goes on from
what the devices' own directories say.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from birthmark import errors
from birthmark.edge.station import Enclave, Station
from birthmark.edge.station.elements.tcp import TCPChannel

PATIENCE_SECONDS = 90.0


def provision(station: Station, run: str, device: Path, name: str, port: int) -> dict[str, object]:
    """Provision one device; again and again while the service or the element is away."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            with (
                TCPChannel("127.0.0.1", port, timeout_seconds=PATIENCE_SECONDS) as card,
                Enclave(str(device), card=card) as enclave,
            ):
                return {"released": station.provision(run, name, enclave).leaf}
        except errors.Unavailable as away:
            if time.monotonic() > deadline:
                return {"refused": away.code, "reason": str(away)}
        except errors.Refusal as refused:
            return {"refused": refused.code, "reason": str(refused)}


def main(arguments: Sequence[str]) -> int:
    """Do it."""
    home, devices, run, *pairs = arguments

    def one(pair: str) -> None:
        name, _, port = pair.partition("=")
        said = provision(station, run, Path(devices) / name, name, int(port))
        os.write(1, json.dumps({"name": name, **said}).encode() + b"\n")  # whole, whoever else writes

    with (
        Station(home, patience_seconds=PATIENCE_SECONDS, first_pause_seconds=0.05) as station,
        ThreadPoolExecutor(max(1, len(pairs))) as threads,
    ):
        for done in [threads.submit(one, pair) for pair in pairs]:
            done.result()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
