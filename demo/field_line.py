"""The line of ``--gateway``: a realm with three planes, and vehicles by stations, EST and CMP.

What lets a vehicle come by itself, an image or a one-time code, is made before the service is started.
"""

import json
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from demo.audit import Audit
from demo.field_devices import OPERATIONAL, Field, Vehicle
from demo.floor import STALL_SECONDS
from demo.realm import OPERATOR, WentWrong, Workshop, make_realm
from demo.vins import WMI, vins

RUN = "2026-W47-F"
IMAGE = "image-7"
BOOTED = 4
"""Vehicles that come by themselves with the image."""
SECOND = "bela"
OTHER_REALM = "acme-lab"
AUDIENCE = "https://fleet.acme.example"
"""For whom tokens are."""
AT_ONCE = 8
"""Vehicles."""
_BY_CODE = ("est", "cmp")
_SPARE = 4
"""VINs of vehicles that are not let in: never proved, one too many, a stranger, another realm's."""
_BOOT = Path(__file__).parents[1] / "deploy" / "first-boot.sh"
_STATION = Path(__file__).with_name("station.py")
_VINS = ("--hardware-id-kind", "vin", "--check-digit", "--wmi", WMI, "--hours", "8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast:
    """Who is who: VINs."""

    line: Sequence[str]
    booted: Sequence[str]
    by_code: str
    by_cmp: str
    unproved: str
    too_many: str
    stranger: str
    elsewhere: str


def cast_of(vehicles: int) -> Cast:
    """Give everybody a VIN."""
    numbers = vins()
    own = list(islice(numbers, vehicles))
    spare = list(islice(numbers, _SPARE))
    return Cast(
        booted=own[:BOOTED],
        by_code=own[BOOTED],
        by_cmp=own[BOOTED + 1],
        line=own[BOOTED + len(_BY_CODE) :],
        unproved=spare[0],
        too_many=spare[1],
        stranger=spare[2],
        elsewhere=spare[3],
    )


# --- the realm


class _Together:
    """Commands that do not need each other, run at the same time and shown one after the other."""

    def __init__(self, workshop: Workshop) -> None:
        self._workshop = workshop

    def run(
        self, *commands: Sequence[str], place: Path | None = None
    ) -> list[subprocess.CompletedProcess[str]]:
        with ThreadPoolExecutor(max_workers=2) as pool:
            begun = [(words, self._begin(pool, words, place)) for words in commands]
            done = []
            for words, one in begun:
                done.append(one.result())
                self._workshop.screen.command(words)
                self._workshop.screen.output(_told(done[-1].stdout.splitlines()))
        return done

    def _begin(
        self, pool: ThreadPoolExecutor, words: Sequence[str], place: Path | None
    ) -> "Future[subprocess.CompletedProcess[str]]":
        return pool.submit(self._workshop.birthmark, *words, show=False, place=place)


_SHOWN = ("pin", "key ", "status", "purpose", "quantity", "client", "run ", "archive", "name", "until")


def _told(lines: Sequence[str]) -> list[str]:
    return [line for line in lines if line.startswith(_SHOWN)]


def found(
    field: Field,
    token: str | None,
    database: str | None,
    stations: Sequence[str],
    cast: Cast,
    until_the_end: ExitStack,
) -> None:
    """Make the realm with its three planes, its runs, and what vehicles come with."""
    workshop, together = field.workshop, _Together(field.workshop)
    workshop.screen.chapter("A realm with a line, a plane for devices, and a gateway")
    with ThreadPoolExecutor(1) as meanwhile:
        other = meanwhile.submit(_make_other, workshop, cast.elsewhere)
        more = ("--device-port", str(field.device_port))
        make_realm(workshop, token, database, stations, until_the_end, *more)
        other.result()
    workshop.screen.say(
        f"Beside it, likewise, another realm was made, {OTHER_REALM}; a vehicle of it has a certificate."
    )
    _open_gateway(field, 2 if database == "postgresql" else 1)
    together.run(
        ("gateway", "prepare", "--dns", "localhost", "--ip", "127.0.0.1"),
        ("gateway", "token-key", "tokens-1"),
        ("operator", "enrol", SECOND, "--role", "officer", "--out", f"operators/{SECOND}"),
    )
    workshop.environment["BIRTHMARK_OPERATOR"] = f"operators/{OPERATOR}"
    workshop.screen.command([f"BIRTHMARK_OPERATOR=operators/{OPERATOR}"], "export")
    names = [word for name in stations for word in ("--station", name)]
    quantity = str(len(cast.line) + len(cast.booted) + len(_BY_CODE) + _SPARE)
    operational = ("--operational", "--profile", "ldevid", "--variable", "hardware_type=1.3.6.1.4.1.32473.1")
    together.run(
        ("run", "open", RUN, "--product", "roadster", "--quantity", quantity, *names, *_VINS),
        (
            *("run", "open", OPERATIONAL, "--product", "roadster", "--quantity", "1000", *operational),
            *_VINS,
        ),
    )
    archive = field.relative(workshop.directory / "credentials.zip")
    code = ("bootstrap", "code")
    made = together.run(
        (
            *("shared", "make", IMAGE, "--run", RUN, "--quantity", str(BOOTED + 1), "--hours", "8"),
            *("--network", "127.0.0.0/8", "--first-boot", field.relative(_BOOT), "--out", archive),
        ),
        (*code, _BY_CODE[0], "--hardware-id", f"vin:{cast.by_code}", "--run", RUN),
        (*code, _BY_CODE[1], "--hardware-id", f"vin:{cast.by_cmp}", "--run", RUN),
    )
    _hand_out(workshop, cast, [_code(done.stdout) for done in made[1:]])


def _make_other(workshop: Workshop, vin: str) -> None:
    """Make another realm, and what a vehicle of it shows."""
    workshop.birthmark(
        *("init", "other", "--realm", OTHER_REALM, "--organization", "Acme Motors", "--operator", OPERATOR),
        show=False,
        place=workshop.directory,
    )
    workshop.birthmark(
        *("bootstrap", "issue", "--name", "unit", "--hardware-id", f"vin:{vin}", "--out", "unit"),
        show=False,
        place=workshop.directory / "other",
    )


def _open_gateway(field: Field, processes: int) -> None:
    """Add the gateway to the settings."""
    table: Mapping[str, object] = {
        "port": field.gateway_port,
        "processes": processes,
        "certificate-file": "gateway.crt",
        "key-file": "secrets/gateway.key",
        "key-passphrase-file": "secrets/gateway.passphrase",
        "token-keys": ["tokens-1"],
        "audience": AUDIENCE,
        "other-realms": ["../other/root.crt"],
    }
    lines = ["[gateway-plane]", *(f"{name} = {json.dumps(value)}" for name, value in table.items())]
    with (field.workshop.realm / "birthmark.toml").open("a", encoding="utf-8") as settings:
        settings.write("\n" + "\n".join(lines) + "\n")
    field.screen.say("And at the end of birthmark.toml:")
    field.screen.output(lines)


def _code(said: str) -> str:
    return next(line.split()[1] for line in said.splitlines() if line.startswith("code"))


def _hand_out(workshop: Workshop, cast: Cast, codes: Sequence[str]) -> None:
    """Put the image, or a one-time code in place of its key, into the vehicles' storage."""
    for vin in (*cast.booted, cast.by_code, cast.by_cmp, cast.unproved, cast.too_many):
        (workshop.vehicles / vin).mkdir(mode=0o700)
    with zipfile.ZipFile(workshop.directory / "credentials.zip") as archive:
        for vin in (*cast.booted, cast.unproved, cast.too_many):
            archive.extractall(workshop.vehicles / vin)
        public = [name for name in archive.namelist() if not name.startswith("provisioning.")]
        archive.extractall(workshop.vehicles / cast.by_code, public)
    _write_secret(workshop.vehicles / cast.by_code / "provisioning.code", f"{_BY_CODE[0]}:{codes[0]}")
    _write_secret(workshop.vehicles / cast.by_cmp / "code", codes[1])


def _write_secret(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(f"{text}\n", encoding="ascii")


# --- the line


def make(field: Field, cast: Cast, stations: Sequence[str]) -> tuple[Audit, Mapping[str, Vehicle], Vehicle]:
    """Make all vehicles; return the audit of them, what each shows outside, and the one never proved."""
    workshop, screen = field.workshop, field.screen
    screen.say()
    screen.say(f"{len(cast.line)} vehicles at {len(stations)} stations (demo/station.py):")
    _work(workshop, stations, cast.line)
    screen.say()
    screen.say(
        f"{len(cast.booted)} come by themselves, with one image: a key of their own, its certificate by EST,"
        " the proof, an operational certificate, all by deploy/first-boot.sh. The first, and then the others:"
    )
    field.first_boot(cast.booted[0], "enrol", "local")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda vin: field.first_boot(vin, "enrol", "local", show=False), cast.booted[1:]))
    for vin in cast.booted[1:]:
        screen.lamp("PASS", f"{vin}  by EST, with the same image")
    screen.say("One has a one-time code in place of it:")
    field.first_boot(cast.by_code, "enrol", "local")
    screen.say("One speaks CMP, under a MAC of its one-time code:")
    by_cmp = _by_cmp(field, cast.by_cmp)
    screen.say("And one is issued its certificate, and then nobody proves that it has the key:")
    unproved = _unproved(field, cast.unproved)
    booted = (*cast.booted, cast.by_code)
    for vin in booted:
        field.file_as_the_line_does(vin)
    met = {vin: _off_the_line(workshop, vin) for vin in cast.line}
    met |= {vin: field.booted(vin) for vin in booted} | {cast.by_cmp: by_cmp}
    audit = Audit(workshop)
    audit.claim(
        f"{len(audit.vehicles)} vehicles hold a release token; {unproved.vin} holds none",
        holds={place.name for place in audit.vehicles} == met.keys(),
    )
    return audit, met, unproved


def _work(workshop: Workshop, stations: Sequence[str], numbers: Sequence[str]) -> None:
    """Have the stations make the vehicles, each its share."""
    with ExitStack() as until_they_are_done:
        begun = []
        for at, name in enumerate(stations):
            share = [
                {"vin": vin, "delivered": index % 3 == 0, "miswired": False}
                for index, vin in enumerate(numbers[at :: len(stations)])
            ]
            station = _station(workshop, name, until_they_are_done)
            begun.append((name, station, json.dumps({"gang": len(share) > 1, "vehicles": share}) + "\n"))
        with ThreadPoolExecutor(len(begun)) as pool:
            try:
                said = list(pool.map(lambda one: one[1].communicate(one[2], STALL_SECONDS)[0], begun))
            except BaseException as stopped:
                for _, station, _ in begun:
                    station.kill()  # whoever listens to it hears that it ended
                if isinstance(stopped, subprocess.TimeoutExpired):
                    raise WentWrong(f"the line stands still for {STALL_SECONDS} s") from stopped
                raise
    for (name, _, _), lines in zip(begun, said, strict=True):
        told = Counter(json.loads(line)["event"] for line in lines.splitlines())
        if told["refused"] or not told["done"]:
            raise WentWrong(f"{name} did not make its vehicles: see {workshop.directory}/station-{name}.log")
        workshop.screen.lamp("PASS", f"{name}  {told['released']} vehicles released")


def _station(workshop: Workshop, name: str, until_the_end: ExitStack) -> "subprocess.Popen[str]":
    with (workshop.directory / f"station-{name}.log").open("wb") as complaints:
        process = subprocess.Popen(
            [
                *(sys.executable, str(_STATION), f"stations/{name}", "--run", RUN, "--operator", OPERATOR),
                *("--vehicles", str(workshop.vehicles)),
            ],
            cwd=workshop.realm,
            env=workshop.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            start_new_session=True,  # Ctrl-C is for us first
        )
    until_the_end.callback(process.wait)
    until_the_end.callback(process.kill)  # first; it has ended, unless something went wrong
    return process


def _off_the_line(workshop: Workshop, vin: str) -> Vehicle:
    """Return what a vehicle shows that stations made."""
    place = workshop.vehicles / vin
    shown = place / "shown.pem"
    shown.write_text((place / "device.crt").read_text() + (place / "chain.pem").read_text())
    return Vehicle(vin=vin, certificate=shown, key=place / "device.key")


def _by_cmp(field: Field, vin: str) -> Vehicle:
    """Enrol a vehicle by CMP (RFC 9810: ir, under a MAC), and pass the gate with curl and openssl."""
    place = field.workshop.vehicles / vin
    key, certificate, chain = place / "device.key", place / "device.crt", place / "chain.pem"
    field.openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", key)
    field.openssl(
        *("cmp", "-config", "", "-cmd", "ir", "-server", f"127.0.0.1:{field.device_port}"),
        *("-path", f".well-known/cmp/p/{RUN}", "-tls_used", "-tls_trusted", "root.crt"),
        *("-trusted", "root.crt", "-recipient", "/CN=whoever answers", "-ref", _BY_CODE[1]),
        *("-secret", f"file:{field.relative(place / 'code')}", "-newkey", key, "-subject", f"/CN={vin}"),
        *("-certout", certificate, "-chainout", chain),
        show=True,
    )
    shown = place / "shown.pem"
    shown.write_text(certificate.read_text() + chain.read_text())
    vehicle = Vehicle(vin=vin, certificate=shown, key=key)
    field.prove(vehicle)
    field.screen.lamp("PASS", f"{vin}  by CMP, and the proof by curl and openssl")
    return vehicle


def _unproved(field: Field, vin: str) -> Vehicle:
    """Have a certificate issued by EST, with the image's key, and leave it at that."""
    place = field.workshop.vehicles / vin
    key, request, certificate = place / "device.key", place / "device.csr", place / "shown.pem"
    field.openssl(
        *("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj"),
        *(f"/CN={vin}", "-keyout", key, "-outform", "DER", "-out", request),
        show=True,
    )
    image = Vehicle(vin=vin, certificate=place / "provisioning.pem", key=place / "provisioning.key")
    certificate.write_bytes(field.est(f"{RUN}/simpleenroll", request, who=image) + field.authorities(RUN))
    field.screen.lamp("WAIT", f"{vin}  certified, not released")
    return Vehicle(vin=vin, certificate=certificate, key=key)
