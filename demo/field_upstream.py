"""The application behind the gateway: it knows no certificate, and is told by others who reports.

Either it verifies the token itself, here by OpenSSL with the published key; or nginx stands in front, asks
the gateway about every request (``deploy/gateway/nginx.conf``, only the addresses changed), and passes on
headers.
"""

import base64
import json
import os
import pwd
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from demo.audit import Audit
from demo.field_devices import Answer, Field, Vehicle
from demo.field_line import AUDIENCE
from demo.realm import STOP_SECONDS, WentWrong, free_ports
from demo.waiting import until
from tools.programs import find

PROXY = "edge-1"
_CONFIGURATION = Path(__file__).parents[1] / "deploy" / "gateway" / "nginx.conf"
_HALF = 32
"""Octets of r and of s in a signature by ES256 (RFC 7518 section 3.4)."""


class Upstream:
    """What stands behind one gateway."""

    def __init__(self, field: Field, audit: Audit) -> None:
        """Prepare; ``audit`` keeps what does not hold."""
        self._field = field
        self._audit = audit
        self._place = field.workshop.directory / "edge"

    # --- tokens

    def token(self, vehicle: Vehicle) -> None:
        """Verify what a vehicle was given, with OpenSSL and the published key; then change one claim."""
        token = str(self._field.contact(vehicle).json.get("token") or "")
        published = self._field.workshop.birthmark(
            "gateway", "key-set", answer=lambda lines: [line for line in lines if '"kid"' in line]
        )
        head, body, signature = token.split(".")
        claims = json.loads(_decoded(body))
        shown = ("iss", "sub", "aud", "environment", "authority")
        self._field.screen.output([json.dumps({name: claims.get(name) for name in shown})])
        self._lay_out(json.loads(_decoded(head)), json.loads(published.stdout), _decoded(signature))
        good = self._verifies(head, body, show=True)
        said = (claims["iss"], claims["sub"], claims["aud"]) == ("acme", vehicle.id, AUDIENCE)
        forged = _encoded(json.dumps(claims | {"sub": "vin:ANOTHER"}).encode())
        self._audit.claim(
            f"OpenSSL verifies the token (ES256): {vehicle.id}, for {claims['exp'] - claims['iat']} s; made"
            " out to another vehicle it does not verify",
            holds=good and said and not self._verifies(head, forged),
        )

    def _lay_out(self, header: Mapping[str, str], key_set: Mapping[str, Any], signature: bytes) -> None:
        """Write key and signature in the forms that OpenSSL reads."""
        key = next(one for one in key_set["keys"] if one["kid"] == header["kid"])
        x, y = (int.from_bytes(_decoded(key[name])) for name in ("x", "y"))
        public = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
        octets = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        self._file("token.pub").write_bytes(octets)
        halves = (int.from_bytes(signature[:_HALF]), int.from_bytes(signature[_HALF:]))
        self._file("token.signature").write_bytes(encode_dss_signature(*halves))

    def _verifies(self, head: str, body: str, *, show: bool = False) -> bool:
        signed = self._file("token.signed")
        signed.write_text(f"{head}.{body}")
        done = self._field.run(
            *("openssl", "dgst", "-sha256", "-verify", self._file("token.pub")),
            *("-signature", self._file("token.signature"), signed),
            show=show,
            expect=None,
        )
        if show:
            self._field.screen.output(done.stdout.decode().splitlines())
        return done.returncode == 0

    def _file(self, name: str) -> Path:
        self._place.mkdir(mode=0o700, exist_ok=True)
        return self._place / name

    # --- a proxy

    def proxy(self, vehicle: Vehicle, recalled: Vehicle) -> None:
        """Have nginx ask about a vehicle that may come in and one that was recalled; no nginx, no trial."""
        if (nginx := find("nginx")) is None:
            self._field.screen.say(
                "nginx is not installed, so what it would pass on was SKIPPED (Debian package nginx-light)",
                style="bold yellow",
            )
            return
        self._enrol()
        with _application() as application, self._nginx(nginx, application) as port:
            forged = ("--header", "Birthmark-Device: vin:ANOTHER")
            seen = self._through(port, vehicle, *forged)
            gone = self._through(port, recalled)
        self._audit.claim(
            f"through nginx the application is told {vehicle.id}, whatever the vehicle says of itself; the"
            f" recalled one gets no further than nginx ({gone.status})",
            holds=(seen.status, seen.json.get("birthmark-device"), gone.status) == (200, vehicle.id, 403)
            and "bearer" in str(seen.json.get("authorization")).lower(),
        )

    def _enrol(self) -> None:
        out = self._field.workshop.directory / "edge" / "nginx"
        self._field.workshop.birthmark(
            *("proxy", "enrol", PROXY, "--out", self._field.relative(out)), answer=lambda lines: lines[:1]
        )
        self._field.openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-subj", "/CN=edge", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", out / "server.key", "-out", out / "server.crt"),
        )
        shutil.copy(self._field.workshop.realm / "root.crt", out / "device-anchors.pem")

    def _through(self, port: int, who: Vehicle, *options: str) -> Answer:
        """Ask the application; what it was told comes back."""
        trusted = ("--cacert", self._place / "nginx" / "server.crt")
        answer = self._field.curl(f"https://127.0.0.1:{port}/position", *trusted, *options, who=who)
        told = answer.json
        names = ("birthmark-device", "birthmark-realm", "birthmark-authority")
        self._field.screen.output(f"{name}: {told[name]}" for name in names if name in told)
        return answer

    @contextmanager
    def _nginx(self, program: str, application: int) -> Iterator[int]:
        """Run nginx as ``deploy/gateway`` has it, with addresses of the demo's own."""
        place, (port,) = self._place, free_ports(1)
        text = _CONFIGURATION.read_text()
        for old, new in (
            ("/etc/birthmark", str(place / "nginx")),
            ("127.0.0.1:8446", f"127.0.0.1:{self._field.gateway_port}"),
            ("127.0.0.1:8080", f"127.0.0.1:{application}"),
            ("listen 8443", f"listen 127.0.0.1:{port}"),
        ):
            if old not in text:
                raise WentWrong(f"{_CONFIGURATION.name} has no {old}")
            text = text.replace(old, new)
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = " ".join(f"{kind}_temp_path {place}/{kind};" for kind in kinds)
        user = f"user {pwd.getpwuid(os.geteuid()).pw_name};" if os.geteuid() == 0 else ""
        settings = place / "nginx.conf"
        settings.write_text(
            f"daemon off; {user} pid {place}/pid; error_log {place}/error.log; worker_processes 1;"
            f" events {{}} http {{ access_log off; {temporary}\n{text}\n}}\n"
        )
        realm = self._field.workshop.realm
        words = ["-p", f"{os.path.relpath(place, realm)}/", "-c", settings.name, "-e", "error.log"]
        self._field.screen.command(words, "nginx")
        process = subprocess.Popen(
            [program, *words],
            cwd=realm,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for us first
        )
        try:
            if not until(lambda: process.poll() is not None or _listens(port)) or process.poll() is not None:
                raise WentWrong(f"nginx does not start: see {place / 'error.log'}")
            yield port
        finally:
            process.terminate()
            process.wait(STOP_SECONDS)


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


class _Echo(BaseHTTPRequestHandler):
    """An application that says which headers it was sent."""

    def do_GET(self) -> None:
        """Answer with the headers of the request."""
        body = json.dumps({name.lower(): value for name, value in self.headers.items()}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        """Be quiet."""


@contextmanager
def _application() -> Iterator[int]:
    """Run the application; yield its port."""
    with ExitStack() as until_the_end:
        server = until_the_end.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), _Echo))
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        until_the_end.callback(thread.join, 5)
        until_the_end.callback(server.shutdown)
        yield int(server.server_address[1])


def _decoded(part: str) -> bytes:
    """Return octets from base64url without padding (RFC 7515 section 2)."""
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def _encoded(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()
