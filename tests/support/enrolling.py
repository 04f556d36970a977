"""A realm with a device plane, and what devices have on board that know nothing of us: curl and openssl.

``Bench`` is a device's folder: keys, requests and certificates are files, made by openssl.  ``est`` is one
request to EST as a process of curl's.  What they answer is read by openssl, too.
"""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.gateways import Vehicle
from tests.support.postgresql import LocalPostgreSQL
from tests.support.programs import need
from tests.support.server import RealmDirectory, copy_realm, free_port

__all__ = ["Bench", "DeviceRealm", "Told", "code_for", "device_realm", "est", "openssl", "operational_run"]

LOCAL = "LOCAL-1"
"""An operational run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRealm:
    """A realm whose settings have a device plane."""

    realm: RealmDirectory
    port: int

    @property
    def url(self) -> str:
        """Where the device plane is."""
        return f"https://127.0.0.1:{self.port}"

    @property
    def root(self) -> Path:
        """What devices trust."""
        return self.realm.path / "root.crt"


def device_realm(path: Path, cluster: LocalPostgreSQL | None = None, **settings: object) -> DeviceRealm:
    """Make a realm of the test's own with a device plane.

    Args:
        path: the directory to make.
        cluster: of its database; SQLite if None.
        settings: of the plane, ``_`` for ``-``.
    """
    realm, port = copy_realm(path, cluster), free_port()
    text = realm.settings.read_text(encoding="utf-8").partition("\n[device-plane]\n")[0]
    table = {"port": port, **{name.replace("_", "-"): value for name, value in settings.items()}}
    lines = (f"{name} = {json.dumps(value)}\n" for name, value in table.items())
    realm.settings.write_text(f"{text}\n[device-plane]\n{''.join(lines)}", encoding="utf-8")
    return DeviceRealm(realm=realm, port=port)


def operational_run(realm: RealmDirectory, run: str = LOCAL, *options: str, quantity: int = 1000) -> None:
    """Open a run that gives released devices certificates for where they work."""
    realm.run(
        "run", "open", run, "--product", "car", "--quantity", str(quantity), "--hardware-id-kind", "serial",
        "--hours", "48", "--operational", *options,
    )  # fmt: skip


def code_for(realm: RealmDirectory, name: str, hardware_id: str, run: str, *options: str) -> str:
    """Return a one-time code for a device."""
    done = realm.run(
        "bootstrap", "code", name, "--hardware-id", hardware_id, "--run", run, "--json", *options
    )
    code: str = json.loads(done.stdout)["code"]
    return code


def openssl(*arguments: str | Path, told: bytes = b"") -> bytes:
    """Run openssl and return what it says; the test fails if it complains."""
    done = subprocess.run(
        [need("openssl"), *map(str, arguments)], input=told, capture_output=True, check=False
    )
    assert done.returncode == 0, f"{arguments}: {done.stderr.decode(errors='replace')}"
    return done.stdout


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What curl got."""

    exit: int
    """Its exit code: 0 for an answer of any status, 35 or 56 where TLS said no."""
    status: int
    body: bytes
    headers: Mapping[str, str]
    complaint: str

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)

    @property
    def reason(self) -> str:
        """What a refusal says it is: its rule if it has one, else its code."""
        problem = self.json
        return str(problem.get("rule") or problem["code"])

    def certificates(self) -> bytes:
        """Return the certificates (PEM) in a certs-only answer, as openssl reads them."""
        assert (self.status, self.headers["content-type"]) == (
            200,
            "application/pkcs7-mime; smime-type=certs-only",
        ), self.body
        assert self.headers["content-length"] == str(len(self.body))
        assert b"\n" not in self.body, "strongSwan reads base64 in one line only"
        decoded = openssl("base64", "-d", "-A", told=self.body)
        return openssl("pkcs7", "-inform", "DER", "-print_certs", told=decoded)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """One device: a folder with what it holds."""

    folder: Path
    name: str

    def file(self, name: str) -> Path:
        """Return one of its files."""
        return self.folder / f"{self.name}-{name}"

    def request(
        self, key: str = "key.pem", *, subject: str | None = None, options: tuple[str, ...] = ()
    ) -> Path:
        """Make a certification request (DER) with openssl, and its key if there is none yet."""
        if not self.file(key).exists():
            openssl(
                "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", self.file(key)
            )
        request = self.file(f"{key}.csr")
        named = f"/CN={self.name}" if subject is None else subject
        openssl(
            "req", "-new", "-key", self.file(key), "-subj", named, "-outform", "DER", "-out", request,
            *options,
        )  # fmt: skip
        return request

    def hold(self, certificates: bytes, key: str = "key.pem", *, chain: bytes = b"") -> Vehicle:
        """Write down a certificate with those above it, and return what shows it."""
        certificate = self.file(f"{key}.crt")
        certificate.write_bytes(certificates + chain)
        return Vehicle(id=f"serial:{self.name}", certificate=certificate, key=self.file(key))


def est(
    realm: DeviceRealm,
    path: str,
    body: bytes | Path | None = None,
    *options: str,
    who: Vehicle | None = None,
    code: tuple[str, str] | None = None,
    wrapped: bool = True,
    content_type: str = "application/pkcs10",
) -> Told:
    """Ask EST by curl.

    Args:
        realm: whose device plane.
        path: below ``/.well-known/est/``.
        body: DER, which goes as base64 of openssl's; octets go as they are.  None to GET.
        options: further ones of curl's.
        who: whose certificate is shown; nobody's if None.
        code: name and one-time code.
        wrapped: have base64 in lines, as openssl writes it.
        content_type: of the body.
    """
    command = [
        need("curl"), "--silent", "--show-error", "--max-time", "30", "--cacert", str(realm.root),
        "--include", "--http1.1", *options,
    ]  # fmt: skip
    command += ["--cert", str(who.certificate), "--key", str(who.key)] if who else []
    command += ["--user", ":".join(code)] if code else []
    told = b""
    if body is not None:
        lines = [] if wrapped else ["-A"]
        told = body if isinstance(body, bytes) else openssl("base64", "-in", body, *lines)
        command += ["--header", f"Content-Type: {content_type}", "--header", "Expect:", "--data-binary", "@-"]
    done = subprocess.run(
        [*command, f"{realm.url}/.well-known/est/{path}"], input=told, capture_output=True, check=False
    )
    head, _, rest = done.stdout.partition(b"\r\n\r\n")
    first, *fields = head.decode("latin-1").split("\r\n") if head else ["HTTP/1.1 0"]
    said = (line.partition(":") for line in fields)
    headers = {name.strip().lower(): value.strip() for name, _, value in said}
    return Told(
        exit=done.returncode,
        status=int(first.split()[1]),
        body=rest,
        headers=headers,
        complaint=done.stderr.decode(errors="replace"),
    )
