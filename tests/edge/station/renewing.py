"""Renew a station's certificate in processes that die before their n-th operation on files; then once more.

Run by ``test_renewal.py``; prints one JSON object a death.  Arguments: station directory, server name.
"""

import json
import os
import sys
from pathlib import Path

from birthmark.edge.station import Station, read_station_directory
from tests.edge.station.crashing import DIED, die_before


def renew(nth: int | None, directory: str, server_name: str) -> int:
    """Renew in a process of its own and return its exit code."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with Station(directory, server_name=server_name, patience_seconds=5) as station:
                station.me()
                if nth is not None:
                    die_before(nth)
                station.renew()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    """Die one operation later each time, until somebody lives."""
    directory, server_name = sys.argv[1:]
    nth, code = 0, DIED
    while code == DIED:
        nth += 1
        code = renew(nth, directory, server_name)
        try:
            read_station_directory(directory).tls_context()
            left = "whole"
        except Exception as wrong:  # noqa: BLE001 -- whatever it is, the test shows it
            left = repr(wrong)
        again = renew(None, directory, server_name)
        names = sorted(path.name for path in Path(directory).iterdir() if "station.key" in path.name)
        sys.stdout.write(json.dumps({"first": code, "left": left, "again": again, "keys": names}) + "\n")


if __name__ == "__main__":
    main()
