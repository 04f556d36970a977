"""The verification afterwards: by OpenSSL, by arithmetic, and by the stand-alone verifier of the log.

Nothing here asks a service: they are stopped by then.  What the vehicles hold is compared with what the log
says of them; then one byte of the exported log is changed, and that has to be found.
"""

import itertools
import os
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from birthmark.errors import Refusal
from birthmark.ledger import proof
from birthmark.ledger.checkpoint import VerifierKey
from birthmark.pki.certificates import fingerprint, from_pem
from demo.realm import WentWrong, Workshop
from tools.programs import find

BATCH = 1000
ISSUING = "issuing-1"
_ROOT = "root"
_CEREMONY = (
    "ceremony",
    "purpose",
    "custodians",
    "sha256",
    "signed_by",
    "certificates",
    "keys",
    "note",
    "ok",
    "birthmark:",
)
TOKEN = "release.tlog-proof"  # noqa: S105  # a file name


class Audit:
    """The audit of one workshop."""

    def __init__(self, workshop: Workshop) -> None:
        """Collect the vehicles that hold a release token."""
        self._workshop = workshop
        self._screen = workshop.screen
        self.vehicles = sorted(path.parent for path in workshop.directory.glob(f"*/*/{TOKEN}"))
        """Their directories."""
        self.failures: list[str] = []
        self.refused = 0
        """How many refusals the log has; known once it is exported."""

    def claim(self, text: str, *, holds: bool) -> None:
        """Show what was checked; the demo fails if it does not hold."""
        self._screen.claim(text, holds=holds)
        if not holds:
            self.failures.append(text)

    # --- authorities -----------------------------------------------------------------------------------

    def authorities(self) -> None:
        """Show the hierarchy, and verify the record of the ceremony that made it."""
        tree = self._workshop.birthmark("authority", "tree").stdout.splitlines()
        verified = self._workshop.birthmark(
            *("ceremony", "verify", "ceremony", "--vkey", "log.vkey"),
            expect=None,
            answer=lambda lines: [line for line in lines if line.startswith(_CEREMONY)],
        )
        self.claim(
            "the hierarchy came to be in a ceremony; its record, keys and certificates hold together, by the"
            " log's key alone",
            holds=verified.returncode == 0 and verified.stdout.endswith("ok\n"),
        )
        made = self._workshop.realm / "ceremony" / "certificates"
        chain = from_pem((self.vehicles[0] / "chain.pem").read_text())
        used = [chain[0], *from_pem((self._workshop.realm / "root.crt").read_text())]
        self.claim(
            f"the vehicles' chain is what that ceremony made; {_ROOT}'s key is offline",
            holds=used == [from_pem((made / f"{name}.crt").read_text())[0] for name in (ISSUING, _ROOT)]
            and any(line.startswith(_ROOT) and line.endswith("key offline") for line in tree),
        )

    # --- certificates ----------------------------------------------------------------------------------

    def certificates(self) -> None:
        """Verify every vehicle's certificate against the root, with OpenSSL."""
        if find("openssl") is None:
            self._certificates_without_openssl()
            return
        files = [str(place / "device.crt") for place in self.vehicles]
        chain = self.vehicles[0] / "chain.pem"
        self._screen.command(
            ["verify", "-x509_strict", "-CAfile", "root.crt", "-untrusted", self._relative(chain)],
            "openssl",
            more="../vehicles/*/device.crt",
        )
        good = sum(
            self._openssl(files[start : start + BATCH], chain) for start in range(0, len(files), BATCH)
        )
        foreign = self._openssl([str(self._workshop.directory / "trials" / "foreign.crt")], chain)
        self.claim(
            f"OpenSSL accepts {good} of {len(files)} certificates (-x509_strict), and not the foreign one",
            holds=good == len(files) and foreign == 0,
        )

    def _openssl(self, files: Sequence[str], chain: Path) -> int:
        """Return how many of the certificates OpenSSL accepts."""
        words = ["verify", "-x509_strict", "-no-CApath", "-no-CAstore"]
        done = subprocess.run(
            ["openssl", *words, "-CAfile", "root.crt", "-untrusted", str(chain), *files],
            cwd=self._workshop.realm,
            capture_output=True,
            text=True,
            check=False,
        )
        return len({line for line in done.stdout.splitlines() if line.endswith(": OK")})

    def _certificates_without_openssl(self) -> None:
        good = 0
        (root,) = _certificates(self._workshop.realm / "root.crt")
        for place in self.vehicles:
            chain = [*_certificates(place / "device.crt"), *_certificates(place / "chain.pem"), root]
            try:
                for lower, upper in itertools.pairwise(chain):
                    lower.verify_directly_issued_by(upper)
            except (InvalidSignature, ValueError, TypeError):
                continue
            good += 1
        self.claim(
            f"the signatures over {good} of {len(self.vehicles)} certificates lead to the root",
            holds=good == len(self.vehicles),
        )
        self._screen.say(
            "openssl is not installed, so the independent check was SKIPPED: this was Python's cryptography,"
            " which issued them (Debian package openssl)",
            style="bold yellow",
        )

    # --- release tokens --------------------------------------------------------------------------------

    def tokens(self) -> None:
        """Verify every release token offline, and that it is for the certificate in the vehicle."""
        vkey = VerifierKey.parse((self._workshop.realm / "log.vkey").read_text())
        good = sum(_token_holds(place, vkey) for place in self.vehicles)
        example = self._relative(self.vehicles[-1] / TOKEN)
        self._workshop.birthmark(
            *("log", "verify-proof", example, "--vkey", "log.vkey"),
            answer=lambda lines: [line for line in lines if '"kind"' in line or '"device"' in line],
        )
        self.claim(
            f"{good} of {len(self.vehicles)} release tokens are proved by the log's key alone, each for the"
            " certificate in its vehicle",
            holds=good == len(self.vehicles),
        )

    # --- the log ---------------------------------------------------------------------------------------

    def log(self, stations: Sequence[str]) -> int:
        """Export the log, verify it with what the stations saw of it, and return how many entries it has."""
        bundle = self._workshop.audit / "log.zip"
        exported = self._workshop.birthmark("log", "export", self._relative(bundle))
        size = int(exported.stdout.split()[0])
        with zipfile.ZipFile(bundle) as archive:
            self.refused = archive.read("entries.jsonl").count(b'"kind":"refused"')
        witnessed = [
            word
            for name in stations
            if (self._workshop.realm / "stations" / name / "checkpoints").exists()
            for word in ("--checkpoint", f"stations/{name}/checkpoints")
        ]
        verified = self._workshop.birthmark(
            *("log", "verify", self._relative(bundle), "--vkey", "log.vkey", *witnessed), expect=None
        )
        self.claim(
            f"all {size} entries are those that the log signed and the stations saw",
            holds=verified.returncode == 0 and verified.stdout.endswith("ok\n"),
        )
        self._tampered(bundle)
        return size

    def _tampered(self, bundle: Path) -> None:
        forged = self._workshop.audit / "log-forged.zip"
        index, before, after = forge(bundle, forged)
        self._screen.say()
        self._screen.say(
            f"Now one byte of entry {index} is changed: …{before}… becomes …{after}…; the archive is"
            " packed anew so that its own checksums are right."
        )
        found = self._workshop.birthmark(
            *("log", "verify", self._relative(forged), "--vkey", "log.vkey"),
            expect=None,
            answer=lambda lines: [
                line for line in lines if "FAILED" in line or line.startswith(("error", "NOT OK"))
            ][:6],
        )
        self.claim(
            f"the changed byte is found (exit code {found.returncode})",
            holds=found.returncode == 1 and found.stdout.endswith("NOT OK\n"),
        )

    def check(self) -> None:
        """Hold everything in the database against everything else, and against the log."""
        checked = self._workshop.birthmark("check", expect=None)
        self.claim(
            "records, certificates, counters and log agree with each other",
            holds=checked.returncode == 0 and checked.stdout.endswith("ok\n"),
        )

    def _relative(self, path: Path) -> str:
        return os.path.relpath(path, self._workshop.realm)


def _token_holds(place: Path, vkey: VerifierKey) -> bool:
    (certificate,) = from_pem((place / "device.crt").read_text())
    try:
        entry = proof.verify((place / TOKEN).read_text(), vkey)
    except Refusal:
        return False
    record = entry.get("record")
    if entry["kind"] != "device-released" or not isinstance(record, dict):
        return False
    return bool(record["certificate_sha256"] == fingerprint(certificate))


def _certificates(path: Path) -> list[x509.Certificate]:
    return [x509.load_der_x509_certificate(der) for der in from_pem(path.read_text())]


def forge(bundle: Path, forged: Path) -> tuple[int, str, str]:
    """Copy a bundle and change one byte of the release entry in its middle: the last digit of the VIN.

    Returns:
        The entry's index, and the VIN before and after.

    Raises:
        WentWrong: there is no release in it.
    """
    with zipfile.ZipFile(bundle) as original, zipfile.ZipFile(forged, "x") as copy:
        content = {member: original.read(member) for member in original.infolist()}
        entries = original.getinfo("entries.jsonl")
        lines = content[entries].splitlines(keepends=True)
        releases = [index for index, line in enumerate(lines) if b'"kind":"device-released"' in line]
        if not releases:
            raise WentWrong(f"{bundle} holds no release")
        index = releases[len(releases) // 2]
        at = lines[index].index(b'"device":"vin:') + len(b'"device":"vin:')
        vin = lines[index][at : at + 17]
        changed = vin[:-1] + bytes([vin[-1] ^ 1])
        lines[index] = lines[index][:at] + changed + lines[index][at + 17 :]
        content[entries] = b"".join(lines)
        for member, octets in content.items():
            copy.writestr(member, octets)
    return index, vin.decode(), changed.decode()
