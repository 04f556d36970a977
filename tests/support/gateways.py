"""A realm with a gateway, vehicles that leave its line, and curl as what they have on board.

A vehicle is its key and its certificate in two files; ``contact`` is a process of curl's, which knows nothing
of us.  Its place is a loopback address: 127.0.0.1 where it is left out.
"""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from birthmark.pki.certificates import Certificate
from tests.support.devices import asked, signed
from tests.support.postgresql import LocalPostgreSQL
from tests.support.programs import need
from tests.support.server import RUN, Http, RealmDirectory, copy_realm, free_port, tls_context

__all__ = ["GatewayRealm", "Told", "Vehicle", "curl", "gateway_realm", "kinds", "vehicle"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayRealm:
    """A realm whose settings have a gateway."""

    realm: RealmDirectory
    port: int

    @property
    def url(self) -> str:
        """Where the gateway is."""
        return f"https://127.0.0.1:{self.port}"

    @property
    def root(self) -> Path:
        """What devices trust."""
        return self.realm.path / "root.crt"


def gateway_realm(path: Path, cluster: LocalPostgreSQL | None = None, **settings: object) -> GatewayRealm:
    """Make a realm of the test's own with a gateway, which shows the server's certificate.

    Args:
        path: the directory to make.
        cluster: of its database; SQLite if None.
        settings: of the gateway, ``_`` for ``-``.
    """
    realm, port = copy_realm(path, cluster), free_port()
    table: dict[str, object] = {
        "port": port,
        "certificate-file": "server.crt",
        "key-file": "secrets/server.key",
        "key-passphrase-file": "secrets/server.passphrase",
    }
    table |= {name.replace("_", "-"): value for name, value in settings.items()}
    with realm.settings.open("a", encoding="utf-8") as file:
        lines = (f"{name} = {json.dumps(value)}\n" for name, value in table.items())
        file.write("\n[gateway-plane]\n" + "".join(lines))
    return GatewayRealm(realm=realm, port=port)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vehicle:
    """A device in the field."""

    id: str
    certificate: Path
    """Its certificate and the authority above it (PEM)."""
    key: Path

    @property
    def parsed(self) -> Certificate:
        """Its certificate."""
        return Certificate.from_pem(self.certificate.read_text(encoding="ascii").partition("\n\n")[0])


def vehicle(
    realm: RealmDirectory, name: str, folder: Path, *, release: bool = True, run: str = RUN
) -> Vehicle:
    """Bring a vehicle through the line of a served realm, or only as far as its certificate."""
    folder.mkdir(exist_ok=True)
    key, body = asked(name)
    with Http(("127.0.0.1", realm.port), tls_context(realm.station())) as station:
        issued = station.post(f"/v1/runs/{run}/issue", body).json
        if release:
            proved = station.post("/v1/prove", signed(issued, key))
            assert proved.status == 200, proved.body
    made = Vehicle(id=issued["device"], certificate=folder / f"{name}.crt", key=folder / f"{name}.key")
    made.certificate.write_text("\n".join([issued["certificate"], *issued["chain"]]), encoding="ascii")
    made.key.touch(mode=0o600)
    made.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What curl got."""

    exit: int
    """Its exit code: 0 for an answer of any status, 35 or 56 where TLS said no."""
    status: int
    body: str
    headers: Mapping[str, str]

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)

    @property
    def rule(self) -> str:
        """The rule that a refusal names; empty for an answer that is none."""
        return str(self.json.get("rule") or "")


def curl(gateway: GatewayRealm, path: str, who: Vehicle | None, *options: str, at: str = "") -> Told:
    """Ask the gateway by curl.

    Args:
        gateway: which.
        path: of the request; ``/v1/contact`` is posted to.
        who: whose certificate is shown; nobody's if None.
        options: further ones of curl's.
        at: the loopback address that it comes from.
    """
    command = [
        need("curl"), "--silent", "--show-error", "--include", "--http1.1", "--tlsv1.3", "--max-time", "30",
        "--cacert", str(gateway.root), *options,
    ]  # fmt: skip
    command += ["--cert", str(who.certificate), "--key", str(who.key)] if who else []
    command += ["--interface", at] if at else []
    command += ["--request", "POST"] if path == "/v1/contact" else []
    done = subprocess.run([*command, f"{gateway.url}{path}"], capture_output=True, text=True, check=False)
    head, _, body = done.stdout.replace("\r\n", "\n").partition("\n\n")
    lines = head.splitlines() or ["HTTP/1.1 0"]
    said = (line.partition(":") for line in lines[1:])
    headers = {name.strip().lower(): value.strip() for name, _, value in said}
    return Told(exit=done.returncode, status=int(lines[0].split()[1]), body=body, headers=headers)


def kinds(gateway: GatewayRealm, device: str) -> list[str]:
    """Return what the log says of a device once it is in the field: kinds of entries, rules of refusals."""
    of_it = [one for one in gateway.realm.entries() if one.get("device") == device]
    return [
        str(one.get("rule", one["kind"])) if one["kind"] == "refused" else str(one["kind"])
        for one in of_it
        if one["kind"] in ("refused", "device-first-seen") or one["kind"].startswith("field-")
    ]
