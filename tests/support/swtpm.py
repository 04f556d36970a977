"""A TPM 2.0 of the tests' own, as a maker delivers it: with endorsement keys and their certificates.

swtpm_setup makes RSA-2048 and ECC P-384 endorsement keys (persistent 0x81010001 and 0x81010016), has a local
authority made for this TPM certify them, and stores the certificates in NV 0x01C00002 and 0x01C00016 (TCG EK
Credential Profile section 2.2.1.4).  It has no resource manager: three transient objects fit.
"""

import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.ports import ports
from tests.support.programs import need

__all__ = ["SoftwareTPM", "software_tpm"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftwareTPM:
    """A running TPM: the TCTI to reach it, and the certificate (PEM) of who certified its keys."""

    tcti: str
    authority: Path


@contextmanager
def software_tpm() -> Iterator[SoftwareTPM]:
    """Make and start a TPM (a second or two); skip the test where swtpm is not installed."""
    program = need("swtpm")
    setup = need("swtpm_setup", "swtpm-tools")
    authority = need("swtpm_localca", "swtpm-tools")
    need("certtool", "gnutls-bin")
    need("setpriv", "util-linux")
    with tempfile.TemporaryDirectory(prefix="swtpm-") as name:
        folder = Path(name)
        _manufacture(folder, setup, authority)
        (port,) = ports(1)
        process = _started(folder, program, port)
        try:
            yield SoftwareTPM(
                tcti=f"swtpm:host=127.0.0.1,port={port}", authority=folder / "authority/issuercert.pem"
            )
        finally:
            process.terminate()
            process.wait(10)


def _started(folder: Path, program: str, port: int) -> subprocess.Popen[bytes]:
    """Start swtpm and wait until it listens."""
    # It takes the socket of its control channel, and answers there once it listens for commands.  Clients
    # find the control port after the port of the TPM.
    with socket.socket() as control:
        control.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        control.bind(("127.0.0.1", port + 1))
        control.listen()
        process = subprocess.Popen(
            [
                # It dies with the tests, also when these are killed.
                *("setpriv", "--pdeathsig", "KILL", program, "socket", "--tpm2"),
                *("--tpmstate", f"dir={folder / 'state'}"),
                *("--server", f"type=tcp,port={port},bindaddr=127.0.0.1"),
                *("--ctrl", f"type=tcp,fd={control.fileno()}"),
                *("--flags", "not-need-init,startup-clear"),
                *("--log", f"file={folder / 'log'}"),
            ],
            pass_fds=[control.fileno()],
            stdin=subprocess.DEVNULL,
        )
        asking = socket.create_connection(("127.0.0.1", port + 1))
    with asking:
        try:
            asking.sendall((1).to_bytes(4))  # CMD_GET_CAPABILITY, swtpm_ioctls(3)
            answered = bool(asking.recv(1))
        except OSError:
            answered = False
    if not answered:
        process.kill()
        process.wait(10)
        raise RuntimeError(f"swtpm did not start: {(folder / 'log').read_text()}")
    return process


def _manufacture(folder: Path, setup: str, authority: str) -> None:
    """Make the keys, the authority and the certificates, as swtpm_setup(8) and swtpm_localca(8) do it."""
    for part in ("state", "authority"):
        (folder / part).mkdir()
    home = folder / "authority"
    (folder / "authority.conf").write_text(
        f"statedir = {home}\n"
        f"signingkey = {home / 'signkey.pem'}\n"
        f"issuercert = {home / 'issuercert.pem'}\n"
        f"certserial = {home / 'certserial'}\n"
    )
    (folder / "authority.options").write_text(
        "--platform-manufacturer Example\n--platform-version 1\n--platform-model ModelX\n"
    )
    (folder / "setup.conf").write_text(
        f"create_certs_tool = {authority}\n"
        f"create_certs_tool_config = {folder / 'authority.conf'}\n"
        f"create_certs_tool_options = {folder / 'authority.options'}\n"
        "active_pcr_banks = sha256\n"
    )
    done = subprocess.run(
        [
            *(setup, "--tpm2", "--tpmstate", str(folder / "state"), "--config", str(folder / "setup.conf")),
            *("--ecc", "--create-ek-cert", "--create-platform-cert", "--lock-nvram"),
        ],
        env={**os.environ, "XDG_CONFIG_HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"swtpm_setup: {done.stdout}{done.stderr}")
