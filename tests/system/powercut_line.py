"""A line on a database file, to be killed: says each release that was answered, one a line.

Started once; each line ``work NAME`` on its standard input forks a service that makes devices until it is
killed, ``killed`` waits for its end and says so.  Forked, because what it imports takes longer than it works.
"""

import base64
import os
import sys
import threading
from pathlib import Path

from birthmark.adapters.softkeys import SoftwareKeyStore
from birthmark.ports import KeyStore, carry
from birthmark.services.acts import recognise
from birthmark.services.issue import Issued, IssueRequest
from birthmark.services.prove import Released
from tests.support.realm import PASSPHRASE, Hands, open_service, proof, workpiece

_STATIONS = 2


def _work(url: str, keys: KeyStore, station: bytes, name: str) -> None:
    service = open_service(url, keys, Hands())

    def make(prefix: str) -> None:
        caller = carry(service.store, recognise(station))
        for number in range(1_000_000):
            device = workpiece(f"{prefix}N{number}")
            request = IssueRequest(hardware_id=device.hardware_id, csr=device.csr, key=device.hardware_id)
            (issued,) = carry(service.store, service.issue(caller, "R1", [request]))
            assert isinstance(issued, Issued), issued
            shown = proof(issued, device.key, idempotency=f"prove-{device.hardware_id}")
            (released,) = carry(service.store, service.prove(caller, [shown]))
            assert isinstance(released, Released), released
            token = base64.b64encode(released.token.encode()).decode()
            os.write(1, f"{released.device} {token}\n".encode())  # one write: one line, whole or not at all

    for number in range(_STATIONS):
        threading.Thread(target=make, args=(f"{name}S{number}",)).start()


def _main(url: str, directory: str, certificate: str) -> None:
    keys = SoftwareKeyStore.open(Path(directory), PASSPHRASE)
    station = Path(certificate).read_bytes()
    os.write(1, b"ready\n")
    child = 0
    for line in sys.stdin:
        word, _, name = line.strip().partition(" ")
        if word == "work":
            child = os.fork()
            if child == 0:
                _work(url, keys, station, name)
                return
            os.write(1, f"child {child}\n".encode())
        elif word == "killed":
            os.waitpid(child, 0)
            os.write(1, b"dead -\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
