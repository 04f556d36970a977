"""Software TPMs (swtpm), made as a maker makes them: with endorsement keys, and certificates for them.

A ``Maker`` is a directory with a certification authority of its own (``swtpm_localca``); what it makes is a
directory too, the state of one TPM, which ``running`` puts behind a port of 127.0.0.1.
"""

import functools
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.support.programs import need
from tests.support.server import free_port, until

__all__ = ["Maker", "Running", "maker"]

_STARTS_SECONDS = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A TPM that answers."""

    tcti: str
    """As the TSS spells it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Maker:
    """Who makes TPMs, and certifies their endorsement keys."""

    path: Path

    @property
    def root(self) -> bytes:
        """Certificate of its root authority (DER)."""
        return self._certificate("swtpm-localca-rootca-cert.pem")

    @property
    def issuing(self) -> bytes:
        """Certificate of the authority that certifies endorsement keys (DER)."""
        return self._certificate("issuercert.pem")

    def _certificate(self, name: str) -> bytes:
        pem = (self.path / "ca" / name).read_bytes()
        return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)

    def make(self, state: Path) -> Path:
        """Make a TPM, its state in a new directory: with two endorsement keys, RSA-2048 and P-384."""
        setup = need("swtpm_setup", "swtpm-tools")
        state.mkdir()
        command = [setup, "--tpm2", "--tpmstate", str(state), "--config", str(self.path / "setup.conf")]
        command += ["--create-ek-cert", "--overwrite", "--ecc"]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        return state

    @contextmanager
    def running(self, state: Path) -> Iterator[Running]:
        """Run a TPM on two ports of 127.0.0.1 as long as the context lasts."""
        program, port = need("swtpm"), _free_pair()
        socket = "type=tcp,bindaddr=127.0.0.1,port={}"
        process = subprocess.Popen(
            [program, "socket", "--tpm2", "--tpmstate", f"dir={state}",
             "--server", socket.format(port), "--ctrl", socket.format(port + 1),
             "--flags", "not-need-init,startup-clear"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            # Its lock file says that it has its state; a probe of the port would be its one client.
            assert until(lambda: _listens(port) or process.poll() is not None, _STARTS_SECONDS)
            assert process.poll() is None, process.stderr.read() if process.stderr else b""
            yield Running(tcti=f"swtpm:host=127.0.0.1,port={port}")
        finally:
            process.kill()
            process.communicate(timeout=10)


def _listens(port: int) -> bool:
    """Say whether somebody listens, without connecting."""
    wanted = f"0100007F:{port:04X}"
    lines = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    return any(fields[1] == wanted and fields[3] == "0A" for fields in map(str.split, lines))


def _free_pair() -> int:
    """Return a port that nobody has, and the next one neither: the TSS expects the control port there."""
    for _ in range(100):
        port = free_port()
        if not _listens(port + 1):
            return port
    raise OSError("no two free ports beside each other")


@functools.cache
def maker(name: str = "example") -> Maker:
    """Return a maker of this name, with its own authority; made once a test run."""
    need("swtpm_localca", "swtpm-tools")
    path = Path(tempfile.mkdtemp(prefix=f"birthmark-tpms-{name}-"))
    authority = path / "ca"
    authority.mkdir()
    (path / "localca.conf").write_text(
        f"statedir = {authority}\nsigningkey = {authority}/signkey.pem\n"
        f"issuercert = {authority}/issuercert.pem\ncertserial = {authority}/certserial\n"
    )
    (path / "localca.options").write_text(
        f"--platform-manufacturer {name}\n--platform-version 1\n--platform-model ModelX\n"
    )
    (path / "setup.conf").write_text(
        f"create_certs_tool = {need('swtpm_localca', 'swtpm-tools')}\n"
        f"create_certs_tool_config = {path}/localca.conf\n"
        f"create_certs_tool_options = {path}/localca.options\nactive_pcr_banks = sha256\n"
    )
    made = Maker(path=path)
    # The authority comes with the first TPM.
    shutil.rmtree(made.make(path / "first"))
    return made
