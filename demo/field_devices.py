"""What vehicles have on board, and what they do with it: curl, openssl and a shell script; nothing of ours.

Each call is a process, run as the screen shows it, in the realm's directory.  Secrets are in files; none is
an argument.
"""

import json
import os
import select
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from birthmark.pki.certificates import from_pem, to_pem
from demo.audit import TOKEN
from demo.realm import COMMAND_SECONDS, CannotBegin, WentWrong, Workshop, free_ports
from tools.programs import find

OPERATIONAL = "FIELD-1"
"""The run that gives released vehicles a certificate for where they work."""
_NEEDED = ("curl", "openssl", "sh")


@dataclass(frozen=True, slots=True, kw_only=True)
class Vehicle:
    """A vehicle in the field, or what says that it is one."""

    vin: str
    certificate: Path
    """Its certificate and the authorities above it (PEM)."""
    key: Path

    @property
    def id(self) -> str:
        """What it is called on record."""
        return f"vin:{self.vin}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What curl got."""

    status: int
    """0 if there was no answer."""
    body: str
    complaint: str
    """What curl itself said."""

    @property
    def json(self) -> dict[str, Any]:
        """The body; empty if it is no JSON object."""
        try:
            found = json.loads(self.body)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def reason(self) -> str:
        """What a refusal says it is: its rule if it has one, else its code."""
        return str(self.json.get("rule") or self.json.get("code") or "")

    @property
    def words(self) -> str:
        """It in one line."""
        if self.status == 0:
            *_, last = self.complaint.strip().splitlines() or ["no answer"]
            _, failed, alert = last.partition("SSL routines::")
            return f"no answer but a TLS alert: {alert.partition(',')[0]}" if failed else last
        if not self.reason:
            return f"{self.status} {self.json.get('status', '')} {self.json.get('device', '')}".rstrip()
        return f"{self.status} {self.reason}: {self.json.get('detail', '')}"


class Field:
    """Vehicles outside, and the two planes that they know."""

    def __init__(self, workshop: Workshop) -> None:
        """Take the ports of both planes.

        Raises:
            CannotBegin: a program is missing.
        """
        missing = [name for name in _NEEDED if find(name) is None]
        if missing:
            raise CannotBegin(f"--gateway needs {' and '.join(missing)} (Debian packages of the same names)")
        self.workshop = workshop
        self.screen = workshop.screen
        self.device_port, self.gateway_port = free_ports(2)
        self.device_url = f"https://127.0.0.1:{self.device_port}"
        self.gateway_url = f"https://127.0.0.1:{self.gateway_port}"

    # --- programs

    def run(
        self,
        program: str,
        *words: str | Path,
        show: bool = True,
        expect: int | None = 0,
        told: bytes = b"",
        variables: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run somebody else's program in the realm's directory.

        Raises:
            WentWrong: it ended with another exit code than ``expect``, if that is not None; or not at all.
        """
        said = [self.relative(word) if isinstance(word, Path) else word for word in words]
        if show:
            before = "".join(f"{name}={value} " for name, value in (variables or {}).items())
            self.screen.command(said, f"{before}{program}")
        try:
            done = subprocess.run(
                [program, *said],
                cwd=self.workshop.realm,
                env=self.workshop.environment | dict(variables or {}),
                input=told,
                capture_output=True,
                timeout=COMMAND_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as hung:
            raise WentWrong(f"{program} does not end") from hung
        if expect is not None and done.returncode != expect:
            complaint = done.stderr.decode(errors="replace").strip() or done.stdout.decode(errors="replace")
            raise WentWrong(f"{program} {said[0]} ended with {done.returncode}: {complaint[-500:]}")
        return done

    def relative(self, path: Path) -> str:
        """Return a path as it is seen from the realm's directory."""
        return os.path.relpath(path, self.workshop.realm)

    def curl(self, url: str, *options: str | Path, who: Vehicle | None = None, show: bool = True) -> Answer:
        """Ask something; the answer is shown in one line."""
        shown: list[str | Path] = [] if who is None else ["--cert", who.certificate, "--key", who.key]
        words = ["-sSi", "--cacert", "root.crt", *shown, *options, url]
        done = self.run("curl", *words, show=show, expect=None)
        said = done.stdout.decode(errors="replace").replace("\r\n", "\n")
        head, _, body = said.partition("\n\n")
        status = int(head.split()[1]) if head.startswith("HTTP/") else 0
        answer = Answer(status=status, body=body, complaint=done.stderr.decode(errors="replace"))
        if show:
            self.screen.output([answer.words])
        return answer

    def openssl(self, *words: str | Path, show: bool = False, told: bytes = b"") -> bytes:
        """Run openssl; it has to succeed."""
        return self.run("openssl", *words, show=show, told=told).stdout

    # --- the gateway

    def contact(self, who: Vehicle, *, at: str | None = None, show: bool = True) -> Answer:
        """Report to the gateway, from a loopback address."""
        place = () if at is None else ("--interface", at)
        return self.curl(f"{self.gateway_url}/v1/contact", "-X", "POST", *place, who=who, show=show)

    @contextmanager
    def connected(self, who: Vehicle) -> Iterator[Callable[[], Answer]]:
        """Keep a connection to the gateway open (openssl s_client); what is yielded reports over it."""
        words = [
            *("s_client", "-quiet", "-tls1_3", "-verify_return_error", "-CAfile", "root.crt"),
            *("-connect", f"127.0.0.1:{self.gateway_port}", "-cert", self.relative(who.certificate)),
            *("-cert_chain", self.relative(who.certificate), "-key", self.relative(who.key)),
        ]
        self.screen.command(words, "openssl")
        process = subprocess.Popen(
            ["openssl", *words],
            cwd=self.workshop.realm,
            env=self.workshop.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield lambda: self._over(process)
        finally:
            process.kill()
            process.communicate()

    def _over(self, process: subprocess.Popen[bytes]) -> Answer:
        """Report over a connection that is open."""
        request = b"POST /v1/contact HTTP/1.1\r\nHost: gateway\r\nContent-Length: 0\r\n\r\n"
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(request)
        process.stdin.flush()
        head, _, body = _message(process.stdout.fileno()).partition("\r\n\r\n")
        answer = Answer(status=int(head.split()[1]), body=body, complaint="")
        self.screen.output(["POST /v1/contact", answer.words])
        return answer

    # --- the device plane

    def first_boot(
        self, vin: str, *steps: str, show: bool = True, expect: int | None = 0
    ) -> subprocess.CompletedProcess[bytes]:
        """Run what the image has as its first boot."""
        place = self.workshop.vehicles / vin
        variables = {"DEVICE": self.relative(place), "LOCAL_RUN": OPERATIONAL}
        done = self.run(
            "sh", place / "first-boot.sh", vin, *steps, show=show, expect=expect, variables=variables
        )
        if show:
            self.screen.output(_without_octets(line) for line in done.stderr.decode().splitlines())
        return done

    def booted(self, vin: str, *, name: str = "local") -> Vehicle:
        """Return a vehicle as it is after its first boot."""
        pem = self.workshop.vehicles / vin / f"{name}.pem"
        return Vehicle(vin=vin, certificate=pem, key=pem)

    def est(self, path: str, request: Path, *options: str | Path, who: Vehicle | None = None) -> bytes:
        """Post a PKCS #10 request (DER) to EST by curl; return the certificates of the answer (PEM).

        Raises:
            WentWrong: there are none.
        """
        body = request.with_suffix(".b64")
        self.openssl("base64", "-in", request, "-out", body, show=True)
        header = ("--header", "Content-Type: application/pkcs10", "--data-binary", f"@{self.relative(body)}")
        url = f"{self.device_url}/.well-known/est/{path}"
        got = self.curl(url, *header, *options, who=who)
        if got.status != 200:
            raise WentWrong(f"EST answered {got.words}")
        return self._certificates(got.body)

    def authorities(self, run: str) -> bytes:
        """Return what EST says the authorities are (PEM)."""
        return self._certificates(self.curl(f"{self.device_url}/.well-known/est/{run}/cacerts").body)

    def _certificates(self, body: str) -> bytes:
        der = self.openssl("base64", "-d", "-A", told=body.encode())
        return self.openssl("pkcs7", "-inform", "DER", "-print_certs", told=der)

    def prove(self, who: Vehicle) -> None:
        """Pass the gate: sign what the service tells with the new key, and keep the release token.

        Raises:
            WentWrong: the vehicle is not released.
        """
        place = who.certificate.parent
        signature = place / "signature"
        challenge = self.curl(f"{self.device_url}/v1/proof", who=who, show=False)
        self.openssl("dgst", "-sha256", "-sign", who.key, "-out", signature, told=challenge.body.encode())
        header = (
            "--header",
            "Content-Type: application/octet-stream",
            "--data-binary",
            f"@{self.relative(signature)}",
        )
        got = self.curl(f"{self.device_url}/v1/proof", *header, who=who, show=False)
        if got.status != 200:
            raise WentWrong(f"{who.id} was not released: {got.words}")
        (place / TOKEN).write_text(got.body)

    def file_as_the_line_does(self, vin: str) -> None:
        """Lay what a first boot brought where stations lay it, so that one audit is for all."""
        place = self.workshop.vehicles / vin
        certificate, *above = from_pem((place / "identity.pem").read_text())
        (place / "device.crt").write_text(to_pem(certificate))
        (place / "chain.pem").write_text("".join(map(to_pem, above)))
        (place / TOKEN).write_bytes((place / "identity.token").read_bytes())


def _without_octets(line: str) -> str:
    """Return a line of the script's as it is shown: its answers go on with a token."""
    return line.partition(',"token"')[0]


def _message(descriptor: int) -> str:
    """Read one answer (HTTP/1.1, with a Content-Length) from a pipe."""
    octets, wanted = b"", -1
    while wanted < 0 or len(octets) < wanted:
        ready, _, _ = select.select([descriptor], [], [], COMMAND_SECONDS)
        more = os.read(descriptor, 65536) if ready else b""
        if not more:
            raise WentWrong("the gateway ended the connection without an answer")
        octets += more
        head, blank, _ = octets.partition(b"\r\n\r\n")
        if blank:
            wanted = len(head) + len(blank) + _length(head.decode("latin-1").splitlines())
    return octets.decode()


def _length(lines: Sequence[str]) -> int:
    fields = (line.partition(":") for line in lines)
    return int(next(value for name, _, value in fields if name.lower() == "content-length"))
