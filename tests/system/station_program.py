"""A station's program, as a fixture's author would write it: an identity for each device, whatever happens.

    python -m tests.system.station_program STATION DEVICES RUN FIRST COUNT

It goes through the devices alone and in gangs, some born with their keys and some not, and writes one line
into ``DEVICES/../STATION.done`` for each that is released.  Started again after it was killed, it goes on
from what the devices' own directories say.  It ends with 0 when all are released; a refusal that repeating
cannot mend ends it with 1 and a line on standard error.
"""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from birthmark import errors
from birthmark.edge.station import Enclave, Station

GANG = 5
PATIENCE_SECONDS = 90.0


def delivered(number: int) -> bool:
    """Return whether a device gets its key from the service."""
    return number % 3 == 0


def hardware_id(number: int) -> str:
    """Return a device's serial number."""
    return f"K{number:06}"


def provision(station: Station, run: str, devices: Path, numbers: Sequence[int]) -> None:
    """Provision one device alone, or several as a gang; again and again while the service is away."""
    while True:
        with ExitStack() as stack:
            enclaves = [stack.enter_context(Enclave(str(devices / hardware_id(n)))) for n in numbers]
            work = [
                (hardware_id(n), enclave, delivered(n))
                for n, enclave in zip(numbers, enclaves, strict=True)
                if enclave.token() is None
            ]
            try:
                if len(work) == 1:
                    station.provision(run, work[0][0], work[0][1], delivered=work[0][2])
                    return
                results = station.provision_gang(run, work)
            except errors.Unavailable:
                continue
        refused = [result for result in results if isinstance(result, errors.Refusal)]
        if not refused:
            return
        for refusal in refused:
            if not refusal.retryable:
                raise refusal


def main(arguments: Sequence[str]) -> int:
    """Do it."""
    home, devices, run, first, count = arguments
    last = int(first) + int(count)
    done = Path(devices).parent / f"{Path(home).name}.done"
    with (
        Station(
            home, operator="anna", patience_seconds=PATIENCE_SECONDS, first_pause_seconds=0.01,
            keep_checkpoints=True,
        ) as station,
        done.open("a", encoding="ascii", buffering=1) as progress,
    ):  # fmt: skip
        number = int(first)
        while number < last:
            size = GANG if number % 2 else 1
            numbers = range(number, min(number + size, last))
            try:
                provision(station, run, Path(devices), numbers)
            except errors.Refusal as refusal:
                sys.stderr.write(f"{numbers}: {refusal.code}: {refusal}\n")
                return 1
            progress.writelines(f"{hardware_id(n)}\n" for n in numbers)
            number = numbers.stop
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
