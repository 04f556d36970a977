"""``openssl cmp`` as what a device has on board: one process a request, and all that follows from it."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from birthmark.pki.certificates import Certificate
from tests.support.enrolling import DeviceRealm
from tests.support.programs import need

__all__ = ["CMPDevice", "Said", "cmp_device"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """How ``openssl cmp`` ended."""

    code: int
    text: str
    certificate: Path
    """Where the certificate is, if it got one."""

    @property
    def got(self) -> Certificate:
        """The certificate it got."""
        assert self.code == 0, self.text
        return Certificate.from_pem(self.certificate.read_text(encoding="ascii"))


@dataclass(frozen=True, slots=True, kw_only=True)
class CMPDevice:
    """A directory with keys, and a program that knows nothing of us."""

    plane: DeviceRealm
    folder: Path

    def key(self, name: str, *, curve: str = "P-256") -> Path:
        """Make a key."""
        path = self.folder / f"{name}.key"
        command = ["genpkey", "-algorithm", "EC", "-pkeyopt", f"ec_paramgen_curve:{curve}", "-out", str(path)]
        subprocess.run([need("openssl"), *command], check=True, capture_output=True)
        return path

    def csr(self, key: Path, subject: str) -> Path:
        """Make a PKCS #10 request."""
        path = key.with_suffix(".csr")
        command = ["req", "-new", "-key", str(key), "-subj", subject, "-out", str(path)]
        subprocess.run([need("openssl"), *command], check=True, capture_output=True)
        return path

    def words(self, command: str, *options: str | Path, path: str = "") -> list[str]:
        """Return the command line of a request."""
        return [
            need("openssl"), "cmp", "-config", "", "-cmd", command,
            "-server", f"127.0.0.1:{self.plane.port}", "-path", f".well-known/cmp{path}",
            "-tls_used", "-tls_trusted", str(self.plane.root), "-trusted", str(self.plane.root),
            "-msg_timeout", "30", "-total_timeout", "100", "-recipient", "/CN=whoever answers",
            *map(str, options),
        ]  # fmt: skip

    def cmp(self, command: str, *options: str | Path, path: str = "", out: str = "got") -> Said:
        """Send one request, and do all that follows from it."""
        got = self.folder / f"{out}.crt"
        got.unlink(missing_ok=True)
        wanted: list[str | Path] = ["-certout", got] if command in ("ir", "cr", "kur", "p10cr") else []
        words = self.words(command, *wanted, *options, path=path)
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
        return Said(code=done.returncode, text=done.stdout + done.stderr, certificate=got)


def cmp_device(plane: DeviceRealm, folder: Path) -> CMPDevice:
    """Return a device with an empty directory."""
    folder.mkdir()
    return CMPDevice(plane=plane, folder=folder)
