"""Everything that must not work, tried: strangers, wrong numbers, wrong keys, lost answers.

Each trial says what was tried, the answer it got, whether that is the answer it has to get, and which entry
of the audit log it must have left.  ``locate`` then looks for those entries in the log; a refusal that left
none counts as failed.
"""

import json
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from birthmark import errors
from birthmark.edge.station import Enclave, Station
from demo.floor import Floor
from demo.foreign import foreign_client
from demo.proxy import LossyNetwork
from demo.realm import OPERATOR, Workshop
from demo.vins import with_wrong_check_digit

Entry = Mapping[str, Any]
Matches = Callable[[Entry], bool]
SPARE = 5
"""VINs the trials need."""
ROOM = 2
"""Vehicles they make: after a lost answer, and with a bootstrap certificate."""


@dataclass(slots=True, kw_only=True)
class Trial:
    """One thing that was tried."""

    tried: str
    answer: str
    """As it came back, or what could be seen."""
    as_expected: bool
    leaves: Mapping[str, Matches]
    """What it must have left in the log: a name for each entry, and how to recognise it."""
    found: dict[str, int] = field(default_factory=dict)
    """Index of each of those entries, once they were looked for."""

    @property
    def passed(self) -> bool:
        """True if the answer was the right one and the log shows it."""
        return self.as_expected and self.found.keys() == self.leaves.keys()

    def where(self) -> str:
        """Return where it stands in the log."""
        return "\n".join(f"{self.found.get(name, '?'):>5} {name}" for name in self.leaves)


def locate(trials: Sequence[Trial], entries: Sequence[Entry]) -> None:
    """Find each trial's entries: for each the last that matches."""
    for trial in trials:
        for name, matches in trial.leaves.items():
            for index in range(len(entries) - 1, -1, -1):
                if matches(entries[index]):
                    trial.found[name] = index
                    break


def show_trials(workshop: Workshop, trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Find each trial's entries in the log, show what came of it, and return the log's entries."""
    shown = workshop.birthmark("log", "tail", "--lines", "1000000", "--json", answer=_count)
    entries = [json.loads(line) for line in shown.stdout.splitlines()]
    locate(trials, entries)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), width=98)
    table.add_column("", width=6)
    table.add_column("tried", ratio=35)
    table.add_column("what happened", ratio=45)
    table.add_column("log entry", width=16)
    for trial in trials:
        mark = "[green]ok[/]" if trial.passed else "[bold red]FAILED[/]"
        table.add_row(mark, trial.tried, trial.answer, trial.where(), end_section=True)
    workshop.screen.show(table)
    return entries


def _count(lines: list[str]) -> list[str]:
    return [f"({len(lines)} entries; where each trial stands among them is in the last column)"]


def kind(name: str, device: str | None = None, **facts: str) -> Matches:
    """Match entries of a kind, about a device, with these facts in them."""

    def matches(entry: Entry) -> bool:
        if entry["kind"] != name or (device is not None and entry.get("device") != device):
            return False
        return all(wanted in str(entry.get(fact, "")) for fact, wanted in facts.items())

    return matches


class Trials:
    """The trials, over one workshop whose line has done its work."""

    def __init__(
        self,
        workshop: Workshop,
        floor: Floor,
        *,
        run: str,
        spare: Sequence[str],
        released: str,
    ) -> None:
        """Prepare.

        Args:
            workshop: where the service runs.
            floor: the line; its held vehicles and its revoked station are part of the story.
            run: a run with room for ``ROOM`` more vehicles.
            spare: VINs of vehicles that were not made yet; ``SPARE`` of them.
            released: the VIN of one that was.
        """
        self._workshop = workshop
        self._floor = floor
        self._run = run
        self._spare, self._released = list(spare), released
        self._root = workshop.realm / "root.crt"
        self._directory = workshop.directory / "trials"
        self._directory.mkdir(mode=0o700)

    def all(self) -> list[Trial]:
        """Try everything."""
        with Station(self._workshop.realm / "stations" / "ST01", operator=OPERATOR) as station:
            return [
                self._no_certificate(),
                self._foreign_certificate(),
                self._old_tls(),
                self._wrong_check_digit(station),
                self._twice(station),
                self._revoked_station(),
                self._lost_answer(),
                self._held_and_reworked(self._floor.held[0]),
                self._scrapped(self._floor.held[1]),
                self._bootstrap(),
                self._full(station),
            ]

    # --- at the door -----------------------------------------------------------------------------------

    def _no_certificate(self) -> Trial:
        answer = self._knock(_context(self._root))
        return Trial(
            tried="connect without a certificate",
            answer=answer,
            as_expected="certificate required" in answer,
            leaves={"refused": _handshake("peer did not return a certificate")},
        )

    def _foreign_certificate(self) -> Trial:
        context = _context(self._root)
        context.load_cert_chain(*foreign_client(self._directory))
        answer = self._knock(context)
        return Trial(
            tried="connect as ST01, certified by somebody else's authority",
            answer=answer,
            as_expected="unknown ca" in answer,
            leaves={"refused": _handshake("certificate verify failed")},
        )

    def _old_tls(self) -> Trial:
        context = _context(self._root)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
        station = self._workshop.realm / "stations" / "ST01"
        context.load_cert_chain(station / "station.crt", station / "station.key")
        answer = self._knock(context)
        return Trial(
            tried="connect with ST01's own certificate, but TLS 1.2",
            answer=answer,
            as_expected="protocol version" in answer,
            leaves={"refused": _handshake("unsupported protocol")},
        )

    def _knock(self, context: ssl.SSLContext) -> str:
        """Try to get an answer to a request; return why there is none."""
        try:
            with (
                socket.create_connection(("127.0.0.1", self._workshop.port), 10) as plain,
                context.wrap_socket(plain, server_hostname="127.0.0.1") as tls,
            ):
                tls.sendall(b"GET /v1/me HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
                answer = tls.recv(100)
        except ssl.SSLError as refused:
            return f"handshake refused: {(refused.reason or 'no reason').lower().replace('_', ' ')}"
        except OSError as lost:
            return f"no answer: {lost}"
        return f"NOT REFUSED: the service answered {answer[:30]!r}"

    # --- wrong requests --------------------------------------------------------------------------------

    def _refusal(self, station: Station, vin: str, name: str) -> tuple[str, str]:
        """Ask for a vehicle's identity; return the code of the refusal and its words."""
        with Enclave(str(self._directory / name)) as device:
            try:
                release = station.provision(self._run, vin, device)
            except errors.Refusal as refused:
                return refused.code, str(refused)
        return "", f"NOT REFUSED: {release.device} is released"

    def _wrong_check_digit(self, station: Station) -> Trial:
        vin = with_wrong_check_digit(self._spare.pop())
        code, answer = self._refusal(station, vin, "misread")
        return Trial(
            tried="a misread VIN: its check digit is wrong",
            answer=f"{code}: {answer}",
            as_expected=code == "malformed-request" and "position 9 should be" in answer,
            leaves={"refused": kind("refused", code=code, hardware_id=vin)},
        )

    def _twice(self, station: Station) -> Trial:
        vin = self._released
        code, answer = self._refusal(station, vin, "clone")
        return Trial(
            tried="a second vehicle with a VIN that is on the road already",
            answer=f"{code}: {answer}",
            as_expected=code == "illegal-transition" and "released" in answer,
            leaves={"refused": kind("refused", code=code, hardware_id=vin)},
        )

    def _full(self, station: Station) -> Trial:
        vin, run = self._spare.pop(), station.run(self._run)
        code, answer = self._refusal(station, vin, "one-too-many")
        return Trial(
            tried=f"vehicle {run.admitted + 1} of a run that is licensed for {run.quantity}",
            answer=f"{code}: {answer}",
            as_expected=run.admitted == run.quantity and code == "quota-exhausted",
            leaves={"refused": kind("refused", code=code, hardware_id=vin)},
        )

    # --- broken things ---------------------------------------------------------------------------------

    def _lost_answer(self) -> Trial:
        vin = self._spare.pop()
        directory = self._workshop.realm / "stations" / "ST01"
        with (
            LossyNetwork(self._workshop.port) as network,
            Station(directory, network.url, operator=OPERATOR) as station,
            _Unlucky(str(self._workshop.vehicles / vin), network) as device,
        ):
            station.me()  # asked once, as is what shows that the log grew; neither is to be lost
            station.checkpoint()
            try:
                held = station.provision(self._run, vin, device).certificate_sha256
            except errors.Refusal as refused:
                held = str(refused)
        device_id = f"vin:{vin}"
        return Trial(
            tried="the connection breaks after the request, before the answer; the station asks again",
            answer=f"same request, same certificate: {held[:16]}… and only this one",
            as_expected=network.cuts == 1 and len(held) == 64,
            leaves={
                "issued": kind("device-issued", device_id, certificate_sha256=held),
                "repeated": kind("answer-repeated", device_id),
                "released": kind("device-released", device_id),
            },
        )

    def _held_and_reworked(self, vin: str) -> Trial:
        device = f"vin:{vin}"
        show = self._workshop.birthmark("device", "show", device, answer=lambda lines: lines[:5])
        self._workshop.birthmark("device", "rework", device, "--reason", "cable harness exchanged")
        again = self._provision(vin, f"../vehicles/{vin}", expect=0)
        held = "held" in show.stdout and "does not verify" in show.stdout
        reason = next((line for line in show.stdout.splitlines() if line.startswith("reason")), "")
        return Trial(
            tried="a vehicle whose proof is made with another key (miswired on the line)",
            answer=f"held: {reason.removeprefix('reason').strip()}; reworked by {OPERATOR}; released",
            as_expected=held and again == "released",
            leaves={
                "held": kind("device-held", device),
                "reworked": kind("device-reworked", device),
                "released": kind("device-released", device),
            },
        )

    def _scrapped(self, vin: str) -> Trial:
        device = f"vin:{vin}"
        self._workshop.birthmark("device", "scrap", device, "--reason", "control unit is cracked")
        answer = self._provision(vin, f"../vehicles/{vin}", expect=1)
        return Trial(
            tried="a vehicle that was scrapped, tried once more",
            answer=answer,
            as_expected="it is scrapped" in answer,
            leaves={
                "held": kind("device-held", device),
                "scrapped": kind("device-scrapped", device),
                "refused": kind("refused", code="illegal-transition", hardware_id=vin),
            },
        )

    def _bootstrap(self) -> Trial:
        own, other = self._spare.pop(), self._spare.pop()
        name = f"unit-{own[-6:]}"
        out = f"../trials/{name}"
        self._workshop.birthmark(
            *("bootstrap", "issue", "--name", name, "--hardware-id", f"vin:{own}", "--out", out),
            answer=lambda lines: lines[:3],
        )
        mine = self._provision(own, f"../vehicles/{own}", expect=0, station=out)
        answer = self._provision(other, "../trials/stranger", expect=77, station=out)
        return Trial(
            tried="a device with a bootstrap certificate: its own VIN, then another's",
            answer=f"its own: {mine}; the other: {answer}",
            as_expected=mine == "released" and "only" in answer,
            leaves={
                "released": kind("device-released", f"vin:{own}", actor=f"bootstrap:{name}"),
                "refused": kind("refused", code="not-permitted", hardware_id=other),
            },
        )

    def _provision(self, vin: str, enclave: str, *, expect: int, station: str = "stations/ST01") -> str:
        """Provision with the command; return the state, or the refusal."""
        done = self._workshop.birthmark(
            *("provision", "--station", station, "--run", self._run),
            *("--hardware-id", vin, "--enclave", enclave),
            expect=expect,
            answer=lambda lines: lines[:2],
        )
        for line in (done.stdout + done.stderr).splitlines():
            if line.startswith("state"):
                return line.split()[-1]
        return done.stderr.splitlines()[0].removeprefix("birthmark: ")

    def _revoked_station(self) -> Trial:
        floor = self._floor
        words = next(iter(floor.shut_out.values()), "NOT REFUSED")
        name = next(name for name, one in floor.counters.items() if one.state == "revoked")
        count = len(floor.shut_out)
        return Trial(
            tried=f"station {name}, revoked while the line runs, goes on",
            answer=f"{words}; its {count} vehicles went to the other stations",
            as_expected="revoked" in words and sorted(floor.taken_over) == sorted(floor.shut_out),
            leaves={
                "revoked": kind("client-revoked", client=f"station:{name}"),
                "refused": kind("refused", code="unauthenticated", actor=f"station:{name}"),
            },
        )


class _Unlucky(Enclave):
    """A vehicle whose request for a certificate is answered, and nobody hears it."""

    def __init__(self, directory: str, network: LossyNetwork) -> None:
        """Take the vehicle in a directory, on a network."""
        super().__init__(directory)
        self._network = network

    def certification_request(self, hardware_id: str) -> bytes:
        """Make the key; what the service says to the request is lost."""
        self._network.lose_next_answer()
        return super().certification_request(hardware_id)


def silent_after_revocation(entries: Sequence[Entry]) -> bool:
    """Tell whether every revoked client did nothing at all after the entry that says so."""
    revoked: set[str] = set()
    for entry in entries:
        if entry["actor"] in revoked and entry["kind"] != "refused":
            return False
        if entry["kind"] == "client-revoked":
            revoked.add(str(entry["client"]))
    return bool(revoked)


def _context(root: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(root)
    return context


def _handshake(reason: str) -> Matches:
    return kind("refused", request="handshake", detail=reason)
