"""A line whose devices have secure elements, as whole programs: service, stations, elements on sockets.

The elements are virtual ones in the test's own process, behind TCP: so a test can cut the power of any of
them at any command, stop there while it does something to the programs, and look afterwards at what is in
the element.  Keys are computed a second time here, by another's code.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from threading import Event
from typing import Any, Self

from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFCMAC, CounterLocation, Mode

from birthmark import errors
from birthmark.app import open_key_store
from birthmark.edge.station import Enclave, Station
from birthmark.edge.station.elements.virtual import on_tcp
from birthmark.element.card import VirtualElement
from birthmark.element.card_faults import ElementChannel, Fault
from birthmark.element.catalogue import parse
from birthmark.element.diversification import KeyRole
from birthmark.element.profiles import ElementProfile
from birthmark.settings import load
from tests.support.elements import chip, give_masters
from tests.support.guessing import real_cost
from tests.support.injecting import Bench, master
from tests.support.postgresql import LocalPostgreSQL
from tests.support.server import RealmDirectory, Server, copy_realm, make_realm_directory, until
from tests.support.softhsm import SoftHSM

__all__ = [
    "CHIPS",
    "Chip",
    "Line",
    "Pause",
    "Program",
    "element_realm",
    "open_line",
    "oracle_keys",
    "profile",
]

CHIPS = "CHIPS"
"""The run whose devices have elements."""
_ROOT = Path(__file__).parents[2]
_WORK_SECONDS = 120.0
_PROFILE = b"""\
name = "chip"
kind = "scp03"
aid = "A000000151000000"
mode = "s8"
parameters = [0x70]
key-size = 16
replacement = "add"

[initial]
kvn = 0x20
master = "maker"
scheme = "kdf3"
context = "kdd"

[final]
kvn = 0x30
master = "ours"
scheme = "kdf3"
context = "kdd"

[[objects]]
tag = 0x7F21
content = "certificate"

[[objects]]
tag = 0xDF20
content = "text:https://enrol.example/{hardware_id}?o={organization}"
"""


def profile() -> ElementProfile:
    """Return the profile of the line's elements."""
    found = parse(_PROFILE, "chip.toml")
    assert isinstance(found, ElementProfile)
    return found


def element_realm(
    path: Path, *, cluster: LocalPostgreSQL | None = None, token: SoftHSM | None = None
) -> RealmDirectory:
    """Make a realm whose key store, a token or the software store, holds the master keys of such elements."""
    if token is None:
        realm = copy_realm(path, cluster)
    else:
        url = {} if cluster is None else {"database_url": cluster.create_database(f"chips_{os.getpid()}")}
        options = ("--token-module", token.module, "--token-label", token.label)
        realm = make_realm_directory(path, *options, "--token-pin-file", token.pin_file, **url)
    elements = path / "elements"
    elements.mkdir()
    (elements / "chip.toml").write_bytes(_PROFILE)
    told = realm.settings.read_text(encoding="utf-8")
    realm.settings.write_text(f'elements-directory = "elements"\n{told}', encoding="utf-8")
    keys = open_key_store(load(realm.settings).key_store)
    try:
        with real_cost():
            give_masters(keys)
    finally:
        keys.close()
    for label in ("maker", "ours"):
        wanted = ("--purpose", "master-diversification", "--users", "provisioning")
        realm.run("keys", "adopt", label, *wanted)
    realm.open_run(CHIPS, 100_000, "--element", "chip")
    return realm


def oracle_keys(name: str, kdd: bytes) -> dict[int, bytes]:
    """Return the three keys of an element by key identifier, as pyca's SP 800-108 derives them (``kdf3``)."""
    return {
        int(role): KBKDFCMAC(
            algorithm=AES,
            mode=Mode.CounterMode,
            length=16,
            rlen=1,
            llen=None,
            location=CounterLocation.BeforeFixed,
            label=None,
            context=None,
            fixed=bytes(3) + bytes((role, 0)) + kdd,
        ).derive(master(name, 16).reveal())
        for role in KeyRole
    }


@dataclass(slots=True, kw_only=True)
class Pause:
    """A moment at which an element stops until it may go on."""

    at: int
    """Command, counted from 1."""
    after: bool
    """Once it was carried out, and before anybody hears of it."""
    arrived: Event = field(default_factory=Event)
    go_on: Event = field(default_factory=Event)

    def stop(self) -> None:
        """Wait here."""
        self.arrived.set()
        assert self.go_on.wait(_WORK_SECONDS), "nobody let the element go on"


class _Watched(ElementChannel):
    """The channel to an element that stops once, and what was seen there."""

    def __init__(self, element: VirtualElement, faults: Iterable[Fault], pause: Pause | None) -> None:
        super().__init__(element, faults)
        self.pause = pause
        self.exchanges: list[tuple[bytes, bytes]] = []
        """Commands that were answered, with their responses."""
        self.keys: set[tuple[int, int, bytes]] = set()
        """Every key the element ever had: version number, identifier, value."""

    def transmit(self, command: bytes) -> bytes:
        pause = self.pause
        here = pause is not None and self.commands + 1 == pause.at
        if pause is not None and here and not pause.after:
            pause.stop()
        response = super().transmit(command)
        self.exchanges.append((command, response))
        self.keys |= {
            (one.kvn, number, key.reveal()) for one in self.element.state.key_sets for number, key in one.keys
        }
        if pause is not None and here and pause.after:
            pause.stop()
        return response


@dataclass(slots=True, kw_only=True)
class Chip:
    """A device with a secure element, behind a port."""

    name: str
    bench: Bench
    channel: _Watched
    port: int
    served: ExitStack = field(repr=False)
    """Closed, nobody reaches it any more."""

    @property
    def device(self) -> str:
        """Its id."""
        return f"serial:{self.name}"

    def holds_what_it_has_to(self, record: Mapping[str, Any]) -> bool:
        """Ask the element's own state: the final set, as others derive it, nothing besides, all objects."""
        state = self.bench.element.state
        (found,) = state.key_sets
        keys = {number: value.reveal() for number, value in found.keys}
        said = {(int(stored["tag"], 16), stored["sha256"]) for stored in record["key_set"]["objects"]}
        stored = {(tag, sha256(octets).hexdigest()) for tag, octets in state.objects}
        return (found.kvn, keys) == (0x30, oracle_keys("ours", self.bench.kdd)) and said == stored

    @property
    def is_as_it_came(self) -> bool:
        """Whether the element has the maker's set and no other."""
        (found,) = self.bench.element.state.key_sets
        keys = {number: value.reveal() for number, value in found.keys}
        return (found.kvn, keys) == (0x20, oracle_keys("maker", self.bench.kdd))


@dataclass(slots=True)
class Program:
    """A station program at work on some devices."""

    line: "Line"
    chips: Sequence[Chip]
    station: str = "ST01"
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start it, for the first time or again."""
        pairs = [f"{one.name}={one.port}" for one in self.chips]
        with self.line.said.open("ab") as said, self.line.trouble.open("ab") as trouble:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "tests.system.element_station",
                    str(self.line.realm.station(self.station)), str(self.line.devices), CHIPS, *pairs,
                ],
                stdin=subprocess.DEVNULL, stdout=said, stderr=trouble, cwd=_ROOT,
                env=_with_tests(os.environ),
            )  # fmt: skip
        return self

    @property
    def pid(self) -> int:
        """The id of its process."""
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """SIGKILL it."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def again(self) -> None:
        """SIGKILL it, and start it again."""
        self.kill()
        self.start()

    def finish(self) -> dict[str, dict[str, Any]]:
        """Wait for its end and return what it said of each device."""
        assert self.process is not None
        code = self.process.wait(_WORK_SECONDS)
        assert code == 0, self.line.trouble.read_text(encoding="utf-8")[-3000:]
        said = self.line.results()
        return {one.name: said[one.name] for one in self.chips}


@dataclass(slots=True, kw_only=True)
class Line:
    """A served realm, its elements and their stations."""

    realm: RealmDirectory
    server: Server
    stack: ExitStack
    made: int = 0
    tears: int = 0
    """Dialogues that were broken off so far, by whatever."""
    killed: int = 0
    """Of them, those whose service was killed."""

    def __post_init__(self) -> None:
        """Make the directory of the devices."""
        self.devices.mkdir()

    @property
    def devices(self) -> Path:
        """Where the devices' own directories are."""
        return self.realm.path.parent / "devices"

    @property
    def said(self) -> Path:
        """What the station programs said."""
        return self.realm.path.parent / "stations.jsonl"

    @property
    def trouble(self) -> Path:
        """What they said besides."""
        return self.realm.path.parent / "stations.log"

    def chip(self, *faults: Fault, pause: Pause | None = None) -> Chip:
        """Make a device whose element has these faults, and serve it until the line is closed."""
        self.made += 1
        bench = chip(profile(), self.made)
        channel = _Watched(bench.element, faults, pause)
        served = self.stack.enter_context(ExitStack())
        port = served.enter_context(on_tcp(channel))
        return Chip(name=f"C{self.made:05}", bench=bench, channel=channel, port=port, served=served)

    def program(self, chips: Sequence[Chip], station: str = "ST01") -> Program:
        """Put a station program to work."""
        program = Program(self, chips, station)
        self.stack.callback(program.kill)
        return program.start()

    def provision(self, chips: Sequence[Chip]) -> dict[str, dict[str, Any]]:
        """Have a station program provision them all."""
        return self.program(chips).finish()

    def provision_here(self, chips: Sequence[Chip]) -> dict[str, dict[str, Any]]:
        """Provision them from this process, one after the other, at another station."""
        said: dict[str, dict[str, Any]] = {}
        with Station(self.realm.station("ST03")) as station:
            for chip in chips:
                with Enclave(str(self.devices / chip.name), card=chip.channel) as device:
                    try:
                        said[chip.name] = {"released": station.provision(CHIPS, chip.name, device).leaf}
                    except errors.Refusal as refused:
                        said[chip.name] = {"refused": refused.code, "reason": str(refused)}
        return said

    def results(self) -> dict[str, dict[str, Any]]:
        """Return what station programs said last of each device."""
        lines = self.said.read_text(encoding="utf-8").splitlines()
        return {said["name"]: said for said in map(json.loads, lines)}

    def await_all(self, pauses: Iterable[Pause]) -> None:
        """Wait until every element stands where it is to stop."""
        waiting = list(pauses)
        there = until(lambda: all(pause.arrived.is_set() for pause in waiting), _WORK_SECONDS)
        assert there, f"elements that never came to {[p for p in waiting if not p.arrived.is_set()]}"

    def restart(self) -> None:
        """Kill the service and start it again, without waiting for it."""
        self.server.kill()
        self.server.start(ready=False)

    def records(self) -> dict[str, Mapping[str, Any]]:
        """Return the identity records in the log, by device: each has one at most."""
        found: dict[str, Mapping[str, Any]] = {}
        for entry in self.realm.entries():
            if entry["kind"] == "device-released":
                assert entry["record"]["device"] not in found
                found[entry["record"]["device"]] = entry["record"]
        return found

    def held(self) -> dict[str, str]:
        """Return why devices were held, by device, as the log says last."""
        return {
            entry["device"]: entry["reason"]
            for entry in self.realm.entries()
            if entry["kind"] == "device-held"
        }


def _with_tests(environment: Mapping[str, str]) -> dict[str, str]:
    others = environment.get("PYTHONPATH")
    return {**environment, "PYTHONPATH": str(_ROOT) if not others else f"{_ROOT}{os.pathsep}{others}"}


@contextmanager
def open_line(realm: RealmDirectory, *, processes: int | None = None) -> Iterator[Line]:
    """Serve a realm."""
    with ExitStack() as stack:
        server = stack.enter_context(Server(realm=realm, processes=processes))
        yield Line(realm=realm, server=server, stack=stack)
