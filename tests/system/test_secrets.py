"""Nothing that is secret stands anywhere but where it belongs (SPEC B7).

A realm is made with generated passphrases, devices are born, delivered, refused and broken, the log is
carried away and checked; then every private key, passphrase and PIN there is, in each form it could have
taken, is looked for in everything that was written or can be read: outputs, logs, database, bundle, command
lines.
"""

import base64
import contextlib
import os
import signal
import sqlite3
import stat
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from birthmark import errors
from birthmark.edge.station import Enclave, Station
from tests.support.devices import asked, signed
from tests.support.postgresql import LocalPostgreSQL
from tests.support.programs import need
from tests.support.server import (
    RUN,
    STATIONS,
    Http,
    RealmDirectory,
    Server,
    birthmark,
    free_port,
    group_members,
    tls_context,
)
from tests.support.softhsm import softhsm_token

_BELONGS = ("keys/", "secrets/", "root/", "/station.key", "device.key", ".password", "tokens/")
"""Parts of the paths at which secrets belong."""
_ANY_KEY = {
    "an encrypted or plain key in PEM": b"PRIVATE KEY-----",
    "PKCS #8 of P-256, base64": b"MIGHAgEAMBMGByqGSM49",
    "PKCS #8 of P-256, DER": bytes.fromhex("308187020100301306072a8648ce3d"),
    "PKCS #8 of P-256, hex": b"308187020100301306072a8648ce3d",
    "PKCS #8 of Ed25519, base64": b"MC4CAQAwBQYDK2VwBCIEI",
    "PKCS #8 of Ed25519, DER": bytes.fromhex("302e020100300506032b657004220420"),
}
"""What tells a private key that nobody handed to us, such as one that was made and never sent."""


def forms(octets: bytes) -> Iterator[bytes]:
    """Return the ways in which octets may stand in a text or a file."""
    yield octets
    yield octets.hex().encode()
    yield octets.hex().upper().encode()
    yield str(int.from_bytes(octets)).encode()
    yield str(list(octets))[1:-1].encode()
    for shift in range(3):  # wherever they begin in what was encoded
        coded = base64.b64encode(b"\0" * shift + octets)
        inner = coded[4 if shift else 0 : -4]
        yield inner
        yield inner.translate(bytes.maketrans(b"+/", b"-_"))


def scalar(pem: bytes, passphrase: bytes | None = None) -> bytes:
    """Return what is secret in a private key."""
    key = load_pem_private_key(pem, passphrase)
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key.private_numbers().private_value.to_bytes((key.key_size + 7) // 8)


@dataclass(slots=True)
class Search:
    """What is looked for, and where."""

    needles: dict[str, bytes] = field(default_factory=dict)
    places: dict[str, bytes] = field(default_factory=dict)

    def add_key(self, name: str, pem: bytes, passphrase: bytes | None = None) -> None:
        """Look for a private key."""
        for number, form in enumerate(forms(scalar(pem, passphrase))):
            self.needles[f"{name}, form {number}"] = form

    def add_text(self, name: str, path: Path) -> bytes:
        """Look for a passphrase or PIN, as text and as octets; return it."""
        text = path.read_bytes().strip()
        for number, form in enumerate(
            (*forms(text), bytes.fromhex(text.decode()) if len(text) == 64 else text)
        ):
            self.needles[f"{name}, form {number}"] = form
        return text

    def found(self, places: Mapping[str, bytes] | None = None) -> list[tuple[str, str]]:
        """Return which needle is where; line breaks, real or spelled, hide nothing."""
        hits = []
        for place, content in (self.places if places is None else places).items():
            joined = content.replace(b"\r", b"").replace(b"\n", b"").replace(b"\\n", b"")
            hits += [
                (place, name)
                for name, needle in {**self.needles, **_ANY_KEY}.items()
                if needle in content or needle in joined
            ]
        return hits


def processes(pids: Iterable[int]) -> dict[str, bytes]:
    """Return what others can read of processes: command lines and environments."""
    read = {}
    for pid in pids:
        for name in ("cmdline", "environ"):
            with contextlib.suppress(OSError):  # not dumpable: nobody but root may
                read[f"{name} of {pid}"] = Path(f"/proc/{pid}/{name}").read_bytes()
    return read


@pytest.mark.timeout(200)
@pytest.mark.parametrize(("database", "keys"), [("sqlite", "software"), ("postgresql", "token")])
def test_no_secret_is_anywhere_but_where_it_belongs(
    request: pytest.FixtureRequest, tmp_path: Path, database: str, keys: str
) -> None:
    search = Search()
    with contextlib.ExitStack() as stack:
        options: list[str | Path] = []
        if keys == "token":
            token = stack.enter_context(softhsm_token(tmp_path))
            options += [
                "--token-module",
                token.module,
                "--token-label",
                token.label,
                "--token-pin-file",
                token.pin_file,
            ]
        cluster: LocalPostgreSQL | None = None
        if database == "postgresql":
            cluster = request.getfixturevalue("postgresql")
        realm = make(search, tmp_path, cluster, options)
        work(search, realm, stack, spoil=cluster is None)
        collect(search, realm, tmp_path, cluster)
        plant(search, realm, tmp_path, keys)
    # The search finds what is where it belongs, or it would prove nothing.
    at_home = {"station": (realm.station() / "station.key").read_bytes()}
    assert len({name for _, name in search.found(at_home)}) >= 2
    for name in ("device-born", "device-delivered"):
        assert search.found({name: (tmp_path / name / "device.key").read_bytes()})
    assert search.found() == []


def make(
    search: Search, folder: Path, cluster: LocalPostgreSQL | None, options: list[str | Path]
) -> RealmDirectory:
    """Make the realm, keeping what the commands print."""
    port, url = free_port(), "sqlite:///birthmark.db"
    if cluster is not None:
        url = cluster.create_database(f"secrets_{os.getpid()}").replace(
            "postgresql+psycopg://", "postgresql://"
        )
        start, _, rest = url.partition("@")
        scheme, user, password = start.rsplit(":", 2)
        (folder / "db.password").touch(mode=0o600)
        (folder / "db.password").write_text(password, encoding="ascii")
        options = [*options, "--database-password-file", folder / "db.password"]
        bare = f"{scheme}:{user}@{rest}"
    else:
        bare = url
    realm = RealmDirectory(path=folder / "realm", port=port, database_url=url)
    command(
        search, "init", realm.path, "--realm", "acme", "--organization", "Acme Motors", "--operator", "anna",
        "--port", str(port), "--database-url", bare, "--station", STATIONS[0], *options,
    )  # fmt: skip
    command(
        search, "run", "open", RUN, "--product", "car", "--quantity", "100", "--hardware-id-kind", "serial",
        "--station", STATIONS[0], "--settings", realm.settings,
    )  # fmt: skip
    return realm


def command(search: Search, *arguments: str | Path, code: int = 0) -> None:
    """Run a command, with all it might say of a fault, and keep what it prints."""
    done = birthmark("--debug", *arguments, check=False)
    assert done.returncode == code, done.stderr
    search.places[f"output of {arguments[:2]}"] = (done.stdout + done.stderr).encode()


def work(search: Search, realm: RealmDirectory, stack: contextlib.ExitStack, *, spoil: bool) -> None:
    """Let the line do everything it can do with a key, and everything that can go wrong."""
    folder = realm.path.parent
    server = stack.enter_context(Server(realm=realm, processes=2))
    with Station(realm.station(), operator="anna") as station:
        for name, delivered in (("device-born", False), ("device-delivered", True)):
            with Enclave(str(folder / name)) as device:
                station.provision(RUN, name.upper(), device, delivered=delivered)
        refused_proof(station)
    with Http(server.address, tls_context(realm.station())) as client:
        # Somebody mistakes the private key for the request; an answer that is lost has its key made again.
        mistaken = (folder / "device-born" / "device.key").read_text(encoding="ascii")
        for number, csr in enumerate((mistaken, mistaken.replace("PRIVATE KEY", "CERTIFICATE REQUEST"))):
            body = {"hardware_id": f"WRONG-{number}", "idempotency_key": f"wrong-{number}", "csr": csr}
            assert client.post(f"/v1/runs/{RUN}/issue", body).status in (400, 422)
        key, body = asked("HELD-1")
        proof = signed(client.post(f"/v1/runs/{RUN}/issue", body).json, key)
        assert client.post("/v1/prove", proof | {"certificate_sha256": "0" * 64}).status == 409
        lost = {"hardware_id": "LOST-1", "idempotency_key": "lost-1"}
        for number in range(2):
            issued = client.post(f"/v1/runs/{RUN}/issue", lost).json
            search.add_key(f"delivered key {number}", issued["private_key"].encode())
        if spoil:
            fault(realm, client)
    search.places |= processes([os.getpid(), *group_members(server.pid)])
    if spoil:  # SQLite's own files while it works, before the last connection tidies up
        search.places |= {
            f"{path.name} at work": path.read_bytes() for path in realm.path.glob("birthmark.db*")
        }
    assert server.stop(signal.SIGTERM) == 0
    search.places["service log"] = server.log.read_bytes()
    for words in (("log", "export", folder / "bundle"), ("check",), ("device", "list"), ("config", "check")):
        command(search, *words, "--settings", realm.settings)
    command(search, "log", "verify", folder / "bundle", "--vkey", realm.path / "log.vkey")
    command(search, "log", "tail", "--lines", "1000", "--json", "--settings", realm.settings)


def refused_proof(station: Station) -> None:
    """Send a proof that is none for a delivered key."""
    issued = station.issue(RUN, "UNPROVED-1")
    with pytest.raises(errors.Refusal):
        station.prove(issued.attempt, "0" * 64, b"no signature")


def fault(realm: RealmDirectory, client: Http) -> None:
    """Make the service fail while it holds a key that it has just made."""
    spoilt = "UPDATE authority SET status = '{}' WHERE id = 'issuing-1'"
    for status, code in (("nonsense", 500), ("active", 200)):
        with contextlib.closing(sqlite3.connect(realm.path / "birthmark.db", isolation_level=None)) as db:
            db.execute("PRAGMA ignore_check_constraints = ON")
            db.execute(spoilt.format(status))
        body = {"hardware_id": "FAULT-1", "idempotency_key": "fault-1"}
        assert client.post(f"/v1/runs/{RUN}/issue", body).status == code


def collect(search: Search, realm: RealmDirectory, folder: Path, cluster: LocalPostgreSQL | None) -> None:
    """Take in every file that is not where a secret belongs, and the database."""
    for path in folder.rglob("*"):
        shown = str(path.relative_to(folder))
        if path.is_file() and shown != "pin" and not any(part in shown for part in _BELONGS):
            search.places[shown] = path.read_bytes()
    assert {"bundle", "realm/birthmark.toml"} <= set(search.places)
    if cluster is not None:
        url = realm.database_url
        dump = subprocess.run(
            [need("pg_dump", "postgresql-client"), "--inserts", "--dbname", url],
            check=True,
            capture_output=True,
        )
        search.places["pg_dump"] = dump.stdout
        search.places["the database server's log"] = cluster.log.read_bytes()
        raw = cluster.folder / "data"
        search.places |= {
            str(path): path.read_bytes()
            for name in ("base", "pg_wal")
            for path in (raw / name).rglob("*")
            if path.is_file()
        }


def plant(search: Search, realm: RealmDirectory, folder: Path, keys: str) -> None:
    """Look for every secret there is; each of their files is its owner's alone."""
    secret_files = [realm.path / "root" / "passphrase", realm.path / "secrets" / "server.passphrase"]
    root_passphrase = search.add_text("root passphrase", secret_files[0])
    server_passphrase = search.add_text("server passphrase", secret_files[1])
    secret_files += [realm.path / "root" / "keys" / "root.p8", realm.path / "secrets" / "server.key"]
    search.add_key("root key", secret_files[2].read_bytes(), root_passphrase)
    search.add_key("server key", secret_files[3].read_bytes(), server_passphrase)
    for path in (realm.station() / "station.key", realm.operator / "station.key"):
        search.add_key(str(path), path.read_bytes())
        secret_files.append(path)
    for name in ("device-born", "device-delivered"):
        search.add_key(name, (folder / name / "device.key").read_bytes())
        secret_files.append(folder / name / "device.key")
    if keys == "token":
        search.add_text("pin", folder / "pin")
    else:
        secret_files.append(realm.path / "secrets" / "keystore.passphrase")
        passphrase = search.add_text("key store passphrase", secret_files[-1])
        for path in (realm.path / "keys").iterdir():
            search.add_key(path.name, path.read_bytes(), passphrase)
            secret_files.append(path)
    for path in secret_files:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
        assert stat.S_IMODE(path.parent.stat().st_mode) & 0o077 == 0, path.parent
