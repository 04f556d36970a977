"""Provision device after device in processes that die before their n-th operation on files, then once more.

Run by ``test_crash.py``; prints one JSON object a device.  It forks from a process without threads that has
everything imported, so that a hundred deaths take seconds.

Arguments: station directory, directory for the devices, run, server name, born or delivered; if not every
operation is to be died before, the stride from one to the next; and ``element`` if each device has a secure
element, a virtual one in a file, which dies with the station.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_IMODE
from typing import Any

from cryptography.hazmat.primitives.serialization import load_pem_private_key

from birthmark.edge.station import Enclave, Station
from birthmark.edge.station.elements.virtual import Drawer
from birthmark.edge.station.pending import Pending
from birthmark.element.card_faults import ElementChannel
from birthmark.pki.certificates import from_pem
from tests.edge.station.dialogues import bench_of

DIED = 9
_FILES = {"open", "os.rename", "os.remove", "os.mkdir"}


def die_before(nth: int) -> None:
    """Die without any cleaning up before the n-th time this process opens, renames, removes or flushes."""
    left = nth

    def count() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os._exit(DIED)

    def hook(event: str, _: Any) -> None:
        if event in _FILES:
            count()

    flush, write = os.fsync, os.pwrite

    def fsync(fd: int) -> None:
        count()
        flush(fd)

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        count()
        return write(fd, data, offset)

    os.fsync, os.pwrite = fsync, pwrite  # type: ignore[assignment]  # the test is the saboteur
    sys.addaudithook(hook)


ELEMENT = "element"


@contextmanager
def secure_element(device: Path, hardware_id: str) -> Iterator[ElementChannel | None]:
    """Open the device's secure element, if it has one."""
    if ELEMENT not in sys.argv[7:]:
        yield None
        return
    drawer = Drawer(device.with_suffix(".element"))
    try:
        fresh = bench_of(f"vin:{hardware_id}").element.state
        yield ElementChannel(drawer.element(ELEMENT, fresh)[0])
    finally:
        drawer.close()


def provision(nth: int | None, device: Path, hardware_id: str) -> int:
    """Provision in a process of its own and return its exit code."""
    station, _, run, server_name, origin = sys.argv[1:6]
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if nth is not None:
                die_before(nth)
            with (
                Station(station, server_name=server_name, patience_seconds=5) as client,
                secure_element(device, hardware_id) as card,
                Enclave(str(device), card=card) as enclave,
            ):
                release = client.provision(run, hardware_id, enclave, delivered=origin == "delivered")
                assert enclave.token() == release.token
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def complaints(device: Path) -> list[str]:
    """Look at what a death left behind: each file whole, no key readable by others."""
    found: list[str] = []
    if not device.exists():
        return found
    if S_IMODE(device.stat().st_mode) != 0o700:
        found.append("the directory is open to others")
    for path in device.iterdir():
        mode = S_IMODE(path.stat().st_mode)
        if ".key" in path.name and mode != 0o400:
            found.append(f"{path.name} has the mode {mode:o}")
        try:
            if path.name.startswith("."):
                continue  # what a death left half written has no name yet
            match path.suffix:
                case ".key":
                    load_pem_private_key(path.read_bytes(), None)
                case ".crt" | ".pem":
                    from_pem(path.read_text())
                case ".json":
                    Pending.decode(path.read_bytes())
        except Exception as wrong:  # noqa: BLE001 -- whatever it is, the test shows it
            found.append(f"{path.name}: {wrong!r}")
    return found


def main() -> None:
    """Die once more each time, until somebody lives."""
    stride = int(sys.argv[6]) if len(sys.argv) > 6 else 1
    nth, code = 1 - stride, DIED
    while code == DIED:
        nth += stride
        hardware_id = f"1M8GDM9AXK{sys.argv[5][0].upper()}{nth:06d}"
        device = Path(sys.argv[2]) / f"d{nth}"
        code = provision(nth, device, hardware_id)
        left = complaints(device)
        released = (device / "release.tlog-proof").exists()
        before = {key: key.read_bytes() for key in device.glob("*.key")} if released else {}
        again = provision(None, device, hardware_id)
        left += complaints(device)
        if any(key.read_bytes() != octets for key, octets in before.items()):
            left.append("the key of a released device was replaced")
        result = {"device": f"vin:{hardware_id}", "first": code, "again": again, "complaints": left}
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
