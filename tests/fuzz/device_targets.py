"""The device plane as a whole: EST, CMP and the gate, asked by a bootstrap client, a device, or nobody.

The application is the real one over a realm of its own; only sockets and TLS are left out.  An input is a
request in JSON whose body is text, or octets in base64.
"""

import atexit
import base64
import binascii
import json
import shutil
from collections.abc import Iterator, Mapping
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any

from birthmark import app, errors
from birthmark.edge.http.contexts import everybody
from birthmark.edge.http.device import create_device_app
from birthmark.edge.http.identity import ServerIdentity
from birthmark.edge.http.peer import SCOPE_KEY
from birthmark.floor.clients import Role
from birthmark.pki.keys import KeyAlgorithm
from birthmark.settings import Settings
from tests.fuzz.files import folder
from tests.fuzz.mutators import Shape
from tests.fuzz.plane_targets import answer_of, body_of, document_of, loop, scope_of
from tests.fuzz.target import Target
from tests.support.realm import PASSPHRASE, Line, hierarchy, make_line, proof, workpiece

_VECTORS = Path(__file__).parent.parent / "vectors"
_FAST = 1_000_000_000
RUN, LOCAL, DEVICE = "R1", "L1", "D1"


@cache
def device_plane() -> tuple[Any, Mapping[str, bytes]]:
    """The application of a realm with both kinds of runs, and the certificates (DER) of those who may ask."""
    place = folder("device-plane")
    line: Line = make_line(place, f"sqlite:///{place / 'line.sqlite'}")
    line.open_run(RUN)
    line.open_operational(LOCAL)
    device = workpiece(DEVICE)
    issued = line.issue(device)
    line.prove(proof(issued, device.key))
    shown = {
        "bootstrap": line.enrol(Role.BOOTSTRAP, "B1", hardware_id="serial:B1").caller.credential.der,
        "device": issued.certificate,
        "station": line.station.caller.credential.der,
    }
    (place / "passphrase").write_bytes(PASSPHRASE.reveal())
    (place / "passphrase").chmod(0o600)
    unused = str(place / "unused")
    rates = dict.fromkeys(("client-per-minute", "client-burst"), _FAST)
    settings = Settings.model_validate(
        {
            "realm": {"name": "acme", "environment": "test", "organization": "Acme Motors"},
            "database": {"url": f"sqlite:///{place / 'line.sqlite'}"},
            "log": {"key": "log"},
            "key-store": {
                "kind": "software",
                "directory": str(hierarchy().directory),
                "passphrase-file": str(place / "passphrase"),
            },
            "station-plane": {
                **{f"{name}-file": unused for name in ("certificate", "key", "key-passphrase", "client-ca")},
                **rates,
                **{f"{who}-{what}": _FAST for who in ("stranger", "run") for what in ("per-minute", "burst")},
            },
            "device-plane": {
                "default-run": LOCAL,
                "shared-per-minute": _FAST,
                "shared-burst": _FAST,
                **rates,
            },
        }
    )
    server = line.enrol(Role.SERVER, "server")
    identity = ServerIdentity(
        certificates=(server.caller.credential.der,), algorithm=KeyAlgorithm.EC_P256, key=server.key
    )
    line.close()
    application = app.build(settings, clock=line.clock)
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    atexit.register(application.close)
    return create_device_app(application, everybody, identity), shown


def _device(data: bytes) -> None:
    """It is answered, and with no fault; in multipart, base64 or CMP."""
    document = document_of(data)
    application, shown = device_plane()
    peer = shown.get(str(document.get("who")), b"")
    body = body_of(document)
    if isinstance(coded := document.get("base64"), str):
        try:
            body = base64.b64decode(coded, validate=True)
        except (binascii.Error, ValueError):
            raise errors.MalformedRequest("not of the form of this target") from None
    answered = loop().run_until_complete(answer_of(application, scope_of(document) | {SCOPE_KEY: peer}, body))
    if answered.status >= 500:
        raise AssertionError(f"answered {answered.status}: {answered.body[:500]!r}")
    if answered.status == HTTPStatus.UNAUTHORIZED:  # asks who it is, in words, or refuses
        raise errors.MalformedRequest("nobody that is known")
    if answered.status >= 400:
        raise errors.MalformedRequest(json.loads(answered.body)["code"])


def _seed(method: str, path: str, who: str, **more: object) -> bytes:
    return json.dumps({"method": method, "path": path, "who": who, **more}).encode()


def _seeds() -> Iterator[bytes]:
    pkcs10 = {"content-type": "application/pkcs10"}
    for operation in ("cacerts", "csrattrs"):
        for label in ("", f"{RUN}/", f"{LOCAL}/"):
            yield _seed("GET", f"/.well-known/est/{label}{operation}", "device")
    for operation, run, who, name in (
        ("simpleenroll", RUN, "bootstrap", "B1"),
        ("serverkeygen", RUN, "station", "B2"),
        ("simpleenroll", LOCAL, "device", DEVICE),
        ("simplereenroll", LOCAL, "device", DEVICE),
        ("fullcmc", RUN, "", "B3"),
    ):
        coded = base64.b64encode(workpiece(name).csr or b"").decode()
        yield _seed("POST", f"/.well-known/est/{run}/{operation}", who, headers=pkcs10, raw=coded)
    basic = {
        **pkcs10,
        "authorization": f"Basic {base64.b64encode(b'c1:aaaaaaaaaaaaaaaaaaaaaaaaaa').decode()}",
    }
    yield _seed("POST", f"/.well-known/est/{RUN}/simpleenroll", "", headers=basic, raw="MAA=")
    example = (_VECTORS / "est" / "serverkeygen-request.b64").read_text(encoding="ascii")
    yield _seed("POST", "/.well-known/est/serverkeygen", "station", headers=pkcs10, raw=example)
    yield _seed("GET", "/v1/proof", "device")
    yield _seed("POST", "/v1/proof", "device", base64="MAA=")
    cmp = {"content-type": "application/pkixcmp"}
    for path in sorted((_VECTORS / "cmp").glob("*.der")):
        coded = base64.b64encode(path.read_bytes()).decode()
        yield _seed("POST", "/.well-known/cmp", "", headers=cmp, base64=coded)


DEVICE_TARGETS = (
    Target(
        name="device-plane",
        run=_device,
        seeds=_seeds,
        shape=Shape.JSON,
        refused_seeds=True,
        longest=16384,
    ),
)
