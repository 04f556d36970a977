"""One station of the line, as the software of a test fixture would be written.

    python demo/station.py STATION_DIRECTORY --run RUN --operator NAME --vehicles DIRECTORY

A station is a process of its own.  It reads what comes down the line from standard input, one job a line
(JSON): some vehicles, one after another or as a gang.  It tells what happens on standard output, one event a
line (JSON): ready, issued, released, refused, done.  Where a vehicle really is a control unit behind a cable,
here it is a directory (``Enclave``); the calls are the same.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from birthmark.edge.station import Enclave, Phase, Release, Station, read_station_directory
from birthmark.errors import NotFound, Refusal
from birthmark.secret import SecretBytes


class Vehicle(Enclave):
    """A vehicle in the fixture; it tells when something happens to it."""

    def __init__(self, directory: Path, vin: str) -> None:
        """Take the vehicle of this VIN."""
        super().__init__(str(directory / vin))
        self.vin = vin

    def install(self, *, certificate: bytes, chain: Sequence[bytes], private_key: SecretBytes | None) -> None:
        """Store the certificate."""
        super().install(certificate=certificate, chain=chain, private_key=private_key)
        tell("issued", vin=self.vin)

    def released(self, token: str) -> None:
        """Store the release token."""
        super().released(token)
        tell("released", vin=self.vin)


class Miswired(Vehicle):
    """A vehicle whose cable leads to another vehicle's control unit: that one signs, with its own key."""

    def sign(self, message: bytes) -> bytes:
        """Sign with a key that is not the certificate's."""
        return ec.generate_private_key(ec.SECP256R1()).sign(message, ec.ECDSA(SHA256()))


Device = tuple[str, Vehicle, bool]
"""What ``provision_gang`` takes: VIN, vehicle, and whether the service makes its key."""


def tell(event: str, **facts: str) -> None:
    """Print one event."""
    sys.stdout.write(json.dumps({"event": event, **facts}) + "\n")
    sys.stdout.flush()


def work(station: Station, name: str, run: str, job: dict[str, Any], vehicles: Path) -> None:
    """Do one job: give each of its vehicles an identity."""
    with ExitStack() as fixture:
        devices: list[Device] = []
        for item in job["vehicles"]:
            kind = Miswired if item["miswired"] else Vehicle
            vehicle = fixture.enter_context(kind(vehicles, item["vin"]))
            take_over(station, name, vehicle)
            devices.append((vehicle.vin, vehicle, item["delivered"]))
        if job["gang"]:
            results = station.provision_gang(run, devices)
        else:
            results = [_alone(station, run, device) for device in devices]
        for (vin, _, _), result in zip(devices, results, strict=True):
            if isinstance(result, Refusal):
                tell("refused", vin=vin, code=result.code, detail=str(result))
    tell("done")


def _alone(station: Station, run: str, device: Device) -> Release | Refusal:
    vin, vehicle, delivered = device
    try:
        return station.provision(run, vin, vehicle, delivered=delivered)
    except Refusal as refused:
        return refused


def take_over(station: Station, name: str, vehicle: Vehicle) -> None:
    """Make a vehicle ours that another station had begun with and could not go on.

    What is under way once the certificate is installed goes on here by itself.  Before that it is the other
    station's; if the service has never heard of the vehicle, nothing is lost by beginning anew.
    """
    pending = vehicle.pending()
    if pending is None or pending.phase is not Phase.ASKING or pending.station == name:
        return
    try:
        station.device(f"vin:{vehicle.vin}")
    except NotFound:
        station.abandon(vehicle.vin, vehicle)


def main() -> None:
    """Work until standard input ends."""
    arguments = argparse.ArgumentParser(description="one station of the line")
    arguments.add_argument("station", type=Path, help="its credential directory")
    arguments.add_argument("--run", required=True)
    arguments.add_argument("--operator", required=True)
    arguments.add_argument("--vehicles", type=Path, required=True)
    given = arguments.parse_args()
    name = read_station_directory(given.station).name
    with Station(given.station, operator=given.operator, keep_checkpoints=True) as station:
        station.me()
        tell("ready")
        for line in sys.stdin:
            work(station, name, given.run, json.loads(line), given.vehicles)


if __name__ == "__main__":
    main()
