"""OpenSSL's client behind an RA that it knows nothing of: a station nests what it passes on (SPEC H1)."""

import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from birthmark.pki.certificates import from_pem
from birthmark.pki.cmp import BodyKind
from birthmark.pki.cmp_bodies import nested
from tests.support.cmpclient import CMPDevice, Said
from tests.support.cmpplane import Party, client_of
from tests.support.enrolling import DeviceRealm, code_for, device_realm, operational_run
from tests.support.programs import need
from tests.support.server import RUN, Http, Server, tls_context

SERIAL = "/serialNumber=D1"
HARDWARE = ("--profile", "ldevid", "--variable", "hardware_type=1.3.6.1.4.1.32473.1")


def station(plane: DeviceRealm) -> Party:
    """Return the station of a realm as it signs messages."""
    folder = plane.realm.station()
    key = load_pem_private_key((folder / "station.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    certificate = next(iter(from_pem((folder / "station.crt").read_text(encoding="ascii"), "CERTIFICATE")))
    return client_of(certificate, key)


@contextmanager
def registration_authority(plane: DeviceRealm) -> Iterator[str]:
    """Pass on over TLS, nested, what comes in the clear; yield ``host:port``."""
    ra, credentials = station(plane), plane.realm.station()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            octets = self.rfile.read(int(self.headers["Content-Length"]))
            context: ssl.SSLContext = tls_context(credentials)
            with Http(("127.0.0.1", plane.port), context) as upstream:
                answer = upstream.ask(
                    "POST",
                    f"/.well-known/cmp{self.path}",
                    ra.says(BodyKind.NESTED, nested([octets])),
                    {"content-type": "application/pkixcmp"},
                )
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.type)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def asks(ra: str, device: CMPDevice, command: str, *options: str | Path, path: str, out: str) -> Said:
    """Have OpenSSL ask the RA, without TLS."""
    got = device.folder / f"{out}.crt"
    words = [
        need("openssl"), "cmp", "-config", "", "-cmd", command, "-server", ra, "-path", path,
        "-trusted", str(device.plane.root), "-recipient", "/CN=whoever answers", "-total_timeout", "60",
        "-subject", SERIAL, "-certout", str(got), *map(str, options),
    ]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=90)
    return Said(code=done.returncode, text=done.stdout + done.stderr, certificate=got)


def entries(plane: DeviceRealm, kind: str) -> list[dict[str, Any]]:
    return [dict(one) for one in plane.realm.entries() if one["kind"] == kind]


def test_devices_enrol_through_a_station_until_it_is_shut_out(tmp_path: Path) -> None:
    """RFC 9483 section 5.2.2.1: the RA's protection lets it in, the device's own says what is issued."""
    plane = device_realm(tmp_path / "realm")
    operational_run(plane.realm, "FIELD", *HARDWARE)
    (tmp_path / "device").mkdir()
    device = CMPDevice(plane=plane, folder=tmp_path / "device")
    with Server(realm=plane.realm), registration_authority(plane) as ra:
        shown = ["-ref", "boot", "-secret", f"pass:{code_for(plane.realm, 'boot', 'serial:D1', RUN)}"]
        key = device.key("idevid")
        identity = asks(ra, device, "ir", *shown, "-newkey", key, path=f"p/{RUN}", out="idevid")
        assert identity.got.der
        (issued,) = entries(plane, "device-issued")
        assert issued["actor"] == "bootstrap:boot"
        again = asks(ra, device, "ir", *shown, "-newkey", device.key("k2"), path=f"p/{RUN}", out="k2")
        assert again.code != 0, "a code is good for one key"
        assert [one["actor"] for one in entries(plane, "refused")] == ["bootstrap:boot"]
        plane.realm.run("station", "revoke", "ST01", "--reason", "stolen")
        gone = asks(
            ra, device, "cr", "-cert", identity.certificate, "-key", key, "-newkey", device.key("k3"),
            "-unprotected_errors", path="p/FIELD", out="k3",
        )  # fmt: skip
        assert gone.code != 0
        assert entries(plane, "local-issued") == []
        plane.realm.check()
