"""What happens to secure elements on a line, and what somebody may try with them.

Each trial is as in ``trials``: what was done, the answer, whether it is the one it has to be, and what it
must have left in the log.  Elements that break and lie are ``birthmark element virtual`` with ``--fault`` and
``--lie``; the station that lies is ``Forger``, here.
"""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager

from birthmark import errors
from birthmark.edge.station import Enclave, Station
from birthmark.edge.station.elements import opened_channel
from birthmark.element.apdu import CardChannel
from demo.makers import INITIAL_KVN
from demo.readers import Readers, inserted
from demo.realm import OPERATOR, Workshop
from demo.trials import Trial, kind

SPARE = 6
"""VINs the trials need."""
ROOM = 6
"""Places in the run: an attempt that is held has one, too."""
_KDD = 0x1000
_PUT_KEY = "D8"
_DONE, _HELD, _LATER = 0, 76, 75
_INITIALIZE_UPDATE = bytes.fromhex(f"8050{INITIAL_KVN:02X}0008") + bytes(range(8)) + b"\0"
_SELECT = bytes.fromhex("00A4040008A00000015100000000")


class Forger:
    """A station's reader that takes the keys for itself, and says 9000 to everything from then on.

    The element is honest, and is asked as long as only it can answer.
    """

    def __init__(self, card: CardChannel) -> None:
        """Stand between the service and an element."""
        self._card = card
        self.forged = 0
        """Commands that the element never saw."""

    def transmit(self, command: bytes) -> bytes:
        """Answer in the element's place from PUT KEY on."""
        if not self.forged and command[1] != int(_PUT_KEY, 16):
            return self._card.transmit(command)
        self.forged += 1
        return b"\x90\x00"

    def reset(self) -> None:
        """Pass it on, and go on lying."""
        self._card.reset()


def opens(card: CardChannel) -> int:
    """Return the status word with which an element answers who wants to open its initial key set."""
    card.transmit(_SELECT)
    return int.from_bytes(card.transmit(_INITIALIZE_UPDATE)[-2:], "big")


class ChipTrials:
    """The trials, over one workshop whose line has done its work."""

    def __init__(self, workshop: Workshop, where: Readers, run: str, spare: Sequence[str]) -> None:
        """Prepare.

        Args:
            workshop: where the service runs.
            where: the readers; empty.
            run: a run with room for ``ROOM`` more vehicles.
            spare: VINs of vehicles that were not made yet; ``SPARE`` of them.
        """
        self._workshop = workshop
        self._where = where
        self._run = run
        self._spare = list(spare)
        self._next = _KDD

    def all(self) -> list[Trial]:
        """Try everything."""
        return [
            self._torn(),
            self._liar(),
            self._forged(),
            self._exchanged(),
            self._another_vehicles(),
        ]

    def _torn(self) -> Trial:
        vin = self._spare.pop()
        with self._element("torn", "--fault", f"tear-after:1:{_PUT_KEY}"):
            _, answer = self._provision(vin)
        return Trial(
            tried="the element loses its power right after it stored the keys; nobody hears its answer",
            answer=f"{answer}: begun anew, and went on from where it stood",
            as_expected=answer == "released",
            leaves={
                "broke off": kind("element-interrupted", f"vin:{vin}"),
                "released": kind("device-released", f"vin:{vin}"),
            },
        )

    def _liar(self) -> Trial:
        vin = self._spare.pop()
        with self._element("liar", "--lie", "echo"):
            code, answer = self._provision(vin)
        self._workshop.birthmark("log", "tail", "--lines", "3", "--json", answer=_reasons)
        return Trial(
            tried="an element answers that it has the keys, check values and all, and stores nothing",
            answer=answer,
            as_expected=code == _HELD,
            leaves={
                "broke off": kind("element-interrupted", f"vin:{vin}", reason="6A88"),
                "held": kind("device-held", f"vin:{vin}"),
            },
        )

    def _forged(self) -> Trial:
        vin, screen = self._spare.pop(), self._workshop.screen
        screen.say("(A station that cheats, demo/chip_trials.py: it keeps the keys and says 9000 itself.)")
        with (
            self._element("robbed"),
            Station(self._workshop.realm / "stations" / "ST01", operator=OPERATOR) as station,
            opened_channel(self._where.url(0)) as card,
        ):
            forger = Forger(card)
            try:
                with Enclave(str(self._workshop.vehicles / vin), card=forger) as device:
                    station.provision(self._run, vin, device)
            except errors.Refusal as refused:
                code, answer = refused.code, str(refused)
            else:
                code, answer = "", "NOT REFUSED"
            screen.lamp("HOLD" if code == "proof-failed" else "PASS", answer)
            card.reset()
            still = opens(card)
        return Trial(
            tried=f"a station says 9000 to {forger.forged} commands that the element never gets",
            answer=f"{answer}. The element is as its maker made it: {still:04X}",
            as_expected=code == "proof-failed" and still == 0x9000,
            leaves={"held": kind("device-held", f"vin:{vin}")},
        )

    def _exchanged(self) -> Trial:
        vin = self._spare.pop()
        with self._element("dead", "--fault", f"dead-after:1:{_PUT_KEY}"):
            first, died = self._provision(vin)
        with self._element("in-its-place"):
            code, answer = self._provision(vin)
        return Trial(
            tried="an element dies in the middle of it, and somebody puts another one in its place",
            answer=f"{died}; then, with the other: {answer}",
            as_expected=first == _LATER and code == _HELD,
            leaves={"held": kind("device-held", f"vin:{vin}")},
        )

    def _another_vehicles(self) -> Trial:
        vin = self._spare.pop()
        with inserted(self._workshop, self._where, "tray-1", kdd=1):
            code, answer = self._provision(vin)
        return Trial(
            tried="the element of a vehicle that is on the road already",
            answer=answer,
            as_expected=code not in (_DONE, _LATER),
            leaves={"held": kind("device-held", f"vin:{vin}")},
        )

    def _element(self, name: str, *more: str) -> AbstractContextManager[None]:
        self._next += 1
        return inserted(self._workshop, self._where, name, kdd=self._next, more=more)

    def _provision(self, vin: str) -> tuple[int, str]:
        """Provision with the command; return its exit code, and the state or the refusal."""
        screen = self._workshop.screen
        done = self._workshop.birthmark(
            *("provision", "--station", "stations/ST01", "--run", self._run, "--hardware-id", vin),
            *("--enclave", f"../vehicles/{vin}", "--element", self._where.url(0, wait=2)),
            expect=None,
            answer=lambda _: [],
        )
        lines = (done.stdout + done.stderr).splitlines()
        state = next((line.split()[-1] for line in lines if line.startswith("state")), "")
        words = state or next(
            (line.removeprefix("birthmark: ") for line in lines if line.startswith("birthmark: ")), ""
        )
        screen.lamp({_DONE: "PASS", _LATER: "WAIT"}.get(done.returncode, "HOLD"), vin if state else words)
        return done.returncode, words


def _reasons(lines: list[str]) -> list[str]:
    """Choose what the entries of a dialogue that broke off say of it."""
    entries = [json.loads(line) for line in lines]
    return [
        f"{entry['kind']}: {entry['reason']}" for entry in entries if entry["kind"] == "element-interrupted"
    ]
