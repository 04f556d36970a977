"""A station's program for a whole day: it makes gangs as it is told, one order a line, one answer a line.

    python -m tests.system.day_line STATION

Orders come on standard input, in JSON:

    {"do": "shift", "operator": NAME, "renew": BOOL}    the station is opened anew, with another operator
    {"do": "work", "run": RUN, "gangs": [[ID, …], …], "wrong": [ID, …]}

``wrong`` names devices that sign their proof with another key than the one they had certified: the service
holds them.  An answer to work says how long each gang took, which devices are released and which are held,
and one release token a gang; ``fault`` is there if anything else happened.

The devices live in memory: what is measured is the service, and a disk for each device would be in the way.
Their keys are made before the clock of their gang starts.
"""

import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from birthmark import errors
from birthmark.edge.station import Release, Station
from birthmark.edge.station.pending import MemoryJournal
from birthmark.secret import SecretBytes
from tests.support.realm import workpiece

__all__ = ["main", "resident_octets"]

PATIENCE_SECONDS = 300.0


def resident_octets(pid: int | str, part: str = "RssAnon") -> int:
    """Return a part of a process's resident memory (proc(5), ``status``): its own, or ``RssFile``."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    (line,) = [line for line in status.splitlines() if line.startswith(f"{part}:")]
    return int(line.split()[1]) * 1024


class DeviceInMemory(MemoryJournal):
    """A device with one key and one certificate, which remembers its own transaction (``DeviceElement``)."""

    def __init__(self, hardware_id: str, *, wrong: bool) -> None:
        super().__init__()
        piece = workpiece(hardware_id)
        assert piece.csr is not None
        self._request: bytes = piece.csr
        self._key = ec.generate_private_key(ec.SECP256R1()) if wrong else piece.key
        self._certificate = b""

    def certification_request(self, _hardware_id: str) -> bytes:
        return self._request

    def install(self, *, certificate: bytes, chain: Sequence[bytes], private_key: SecretBytes | None) -> None:
        assert chain, "no authority came with the certificate"
        assert private_key is None, "a key was delivered"
        self._certificate = certificate

    def read_back(self) -> bytes:
        return self._certificate

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message, ec.ECDSA(hashes.SHA256()))

    def released(self, token: str) -> None:
        """The token is in the release that the station returns."""


def work(station: Station, run: str, gangs: Iterable[Sequence[str]], wrong: set[str]) -> dict[str, Any]:
    """Make gangs, one after the other."""
    seconds: list[float] = []
    held: list[str] = []
    tokens: list[dict[str, str]] = []
    released = 0
    for gang in gangs:
        devices = [(name, DeviceInMemory(name, wrong=name in wrong), False) for name in gang]
        begun = time.perf_counter()
        results = station.provision_gang(run, devices)
        seconds.append((time.perf_counter() - begun) / len(gang))
        for name, result in zip(gang, results, strict=True):
            if isinstance(result, errors.ProofFailed) and name in wrong:
                held.append(f"serial:{name}")
            elif isinstance(result, errors.Refusal):
                return {"fault": f"{name}: {result.code}: {result}"}
        done = [result for result in results if isinstance(result, Release)]
        released += len(done)
        tokens += [
            {
                "device": one.device,
                "attempt": one.attempt,
                "certificate_sha256": one.certificate_sha256,
                "token": one.token,
            }
            for one in done[-1:]
        ]
    return {"seconds": seconds, "released": released, "held": held, "tokens": tokens}


def main(arguments: Sequence[str]) -> int:
    """Do as told until standard input ends."""
    (home,) = arguments
    station: Station | None = None
    for line in sys.stdin:
        order = cast("Mapping[str, Any]", json.loads(line))
        answer: dict[str, Any] = {}
        try:
            if order["do"] == "shift":
                if station is not None:
                    station.close()
                station = Station(home, operator=order["operator"], patience_seconds=PATIENCE_SECONDS)
                if order["renew"]:
                    station.renew()
            else:
                assert station is not None, "nobody is on shift"
                answer = work(station, order["run"], order["gangs"], set(order["wrong"]))
        except errors.Refusal as refused:
            answer = {"fault": f"{refused.code}: {refused}"}
        answer["resident"] = resident_octets("self")
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    if station is not None:
        station.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
