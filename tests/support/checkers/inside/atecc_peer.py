"""Adafruit's driver of the ATECC on a bus that is us; runs with .tools/peers/atecc.

What the driver does to its bus goes out as a line of JSON and is answered by one; an order comes in likewise:
the first line names what to do, the last line we write is the result.
"""

import importlib
import json
import sys
from typing import Any


class Bus:
    """``busio.I2C`` as the driver uses it; octets go over standard output and input."""

    def try_lock(self) -> bool:
        """Nobody else is there."""
        return True

    def unlock(self) -> None:
        """Nobody else is there."""

    def writeto(self, address: int, octets: bytes, *, start: int = 0, end: int | None = None) -> None:
        """Write; raise if nobody acknowledges, as every driver of a bus does."""
        if self._ask({"write": bytes(octets[start:end]).hex(), "address": address}) is None:
            raise OSError("no acknowledge")

    def readfrom_into(self, address: int, room: Any, *, start: int = 0, end: int | None = None) -> None:
        """Read; raise if nobody acknowledges."""
        size = len(room[start:end])
        answer = self._ask({"read": size, "address": address})
        if answer is None:
            raise OSError("no acknowledge")
        room[start : start + size] = bytes.fromhex(answer)

    def _ask(self, question: dict[str, Any]) -> str | None:
        say(question)
        answer: str | None = json.loads(sys.stdin.readline())
        return answer


def say(line: dict[str, Any]) -> None:
    """Write one line."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def carried_out(order: dict[str, Any]) -> dict[str, Any]:
    """Do what the order says and return what came of it."""
    # By name: our own type checker does not see this environment.
    driver = importlib.import_module("adafruit_atecc.adafruit_atecc")
    util = importlib.import_module("adafruit_atecc.adafruit_atecc_cert_util")
    chip = driver.ATECC(Bus())
    result: dict[str, Any] = {"serial": chip.serial_number, "locked": chip.locked}
    if "configuration" in order:
        chip.write_config(bytearray.fromhex(order["configuration"]))
        chip.lock_all_zones()
    if "generate" in order:
        room = bytearray(64)
        chip.gen_key(room, 0, private_key=order["generate"])
        result["point"] = room.hex()
    if "csr" in order:
        # On CPython its names are octets (it extends a bytearray by them); its own serial number is text.
        request = util.CSR(chip, 0, order["csr"], b"AT", b"", b"Graz", b"Acme", b"")
        request._common = chip.serial_number.encode()  # noqa: SLF001  # its own way leaves text there
        result["csr"] = bytes(request.generate_csr()).decode()
    if "sign" in order:
        result["signature"] = bytes(chip.ecdsa_sign(0, bytes.fromhex(order["sign"]))).hex()
    if "read" in order:
        room = bytearray(32)
        chip._read(2, order["read"], room)  # noqa: SLF001  # what it offers is for the configuration only
        result["read"] = room.hex()
    return result


def main() -> None:
    """Carry out one order."""
    order = json.loads(sys.stdin.readline())
    try:
        result = carried_out(order)
    except Exception as error:  # noqa: BLE001  # whatever it raises is its answer
        result = {"refusal": f"{type(error).__name__}: {error}"}
    say({"result": result})


if __name__ == "__main__":
    main()
