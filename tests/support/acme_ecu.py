"""A control unit on the bench: a program that keeps its own identity and answers lines over a socket.

It is what the example in docs/elements.md speaks with.  A line is a verb and hexadecimal words; the answer is
``ok`` and hexadecimal words, or ``no``, a word that says what kind of refusal it is, and text.  What it keeps
is in a directory, so that killing it is a power cut.

It needs nothing of the tests: the example's own test imports it as any fixture's simulator would be.
"""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Self

from birthmark.edge.station.enclave import Enclave
from birthmark.errors import IllegalTransition, Refusal
from birthmark.pki.certificates import to_pem

__all__ = ["ECU"]


class ECU:
    """The program, from outside."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "ecu"
        self.address = ""
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.power_on()
        return self

    def __exit__(self, *exception: object) -> None:
        self.power_off()

    def power_on(self) -> None:
        command = [sys.executable, __file__, str(self.folder)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()

    def power_off(self) -> None:
        if self._process is not None and self._process.stdout is not None:
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process.stdout.close()
            self._process = None

    def flash(self, certificate: bytes) -> None:
        """Write a certificate into its memory with a programmer, past its software."""
        file = self.folder / "device.crt"
        file.unlink(missing_ok=True)
        file.write_text(to_pem(certificate), encoding="ascii")


def answered(device: Enclave, line: str) -> str:
    """Do what a line says."""
    verb, *words = line.split()
    octets = [bytes.fromhex(word) for word in words]
    try:
        match verb, octets:
            case "request", [name]:
                return f"ok {device.certification_request(name.decode()).hex()}"
            case "install", [certificate, *chain]:
                device.install(certificate=certificate, chain=chain, private_key=None)
                return "ok"
            case "certificate", []:
                return f"ok {device.read_back().hex()}"
            case "sign", [message]:
                return f"ok {device.sign(message).hex()}"
            case "release", [token]:
                device.released(token.decode())
                return "ok"
    except IllegalTransition as refusal:
        return f"no final {refusal}"
    except Refusal as refusal:
        return f"no state {refusal}"
    return "no verb unknown"


def main() -> None:
    """Serve one client after the other until the power goes."""
    with Enclave(sys.argv[1]) as device, socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        print(f"{host}:{port}", flush=True)  # noqa: T201  # that is how the address is told
        while True:
            connection, _ = server.accept()
            with connection, connection.makefile("rw", encoding="ascii") as lines:
                for line in lines:
                    lines.write(answered(device, line) + "\n")
                    lines.flush()


if __name__ == "__main__":
    main()
