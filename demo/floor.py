"""The stations at work.

Each station is a process (``station.py``) with a thread here that hands it its jobs and listens to what it
tells.  Jobs wait in one queue; what a station cannot do goes back to the front for the others.  The last job
is kept back until the station that is shut out has been refused, so that this happens in every demo, however
fast the line is.
"""

import json
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Condition, Thread
from time import monotonic, strftime
from typing import Any, Self

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from demo.realm import OPERATOR, WentWrong, Workshop
from demo.screen import Screen

PROGRAM = Path(__file__).with_name("station.py")
STALL_SECONDS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One vehicle to be made."""

    vin: str
    delivered: bool = False
    """True if the service makes its key."""
    miswired: bool = False
    """True if its proof is going to be wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a station gets at a time."""

    orders: tuple[Order, ...]
    gang: bool


@dataclass(slots=True)
class Counters:
    """One station, as the screen shows it."""

    state: str = "starting"
    issued: int = 0
    released: int = 0
    held: int = 0
    last: float = 0.0
    process: subprocess.Popen[str] | None = field(default=None, repr=False)


def jobs_of(orders: Sequence[Order], gang: int) -> list[Job]:
    """Split orders into jobs: three of four vehicles in gangs, the others one by one, a few to a job."""
    jobs: list[Job] = []
    rest = list(orders)
    while rest:
        for size, as_gang in ((gang, True), (max(1, gang // 3), False)):
            if rest:
                jobs.append(Job(orders=tuple(rest[:size]), gang=as_gang))
                del rest[:size]
    return jobs


class Floor:
    """The stations of one run."""

    def __init__(
        self, workshop: Workshop, run: str, stations: Sequence[str], jobs: Sequence[Job], shut_out: str
    ) -> None:
        """Prepare; ``work`` begins.  ``shut_out`` is the station that is going to be revoked."""
        self._workshop = workshop
        self._run = run
        self._jobs = deque(jobs)
        self._total = sum(not order.miswired for job in jobs for order in job.orders)
        self._doomed = shut_out
        self._revoked = False
        self._change = Condition()
        self._in_work = 0
        self._over = False
        self._events: deque[str] = deque(maxlen=5)
        self._began = self._heard = monotonic()
        self.seconds = 0.0
        """From the first job to the last release."""
        self.counters = {name: Counters() for name in stations}
        self.held: list[str] = []
        self.shut_out: dict[str, str] = {}
        """VIN of each vehicle that the revoked station was refused, and with what words."""
        self.taken_over: list[str] = []
        """VINs that others released in the revoked station's place."""
        self.surprises: list[str] = []

    @property
    def released(self) -> int:
        """How many vehicles have left the line."""
        return sum(one.released for one in self.counters.values())

    # --- working ---------------------------------------------------------------------------------------

    def work(self) -> None:
        """Do all jobs, and revoke a station half-way.

        Raises:
            WentWrong: the line stands still, or a station's program failed.
        """
        threads = [Thread(target=self._tend, args=(name,), daemon=True) for name in self.counters]
        revocation = Thread(target=self._revoke, daemon=True)
        self._began = self._heard = monotonic()
        try:
            for thread in threads:
                thread.start()
            with _display(self._workshop.screen, self) as show:
                while any(thread.is_alive() for thread in threads):
                    if not revocation.ident and self.released * 2 >= self._total:
                        revocation.start()
                    with self._change:
                        self._change.wait(0.1)
                        if monotonic() - self._heard > STALL_SECONDS:
                            raise WentWrong(f"nothing happened on the line for {STALL_SECONDS} s")
                    self._workshop.require_server()
                    show()
                self.seconds = max(one.last for one in self.counters.values())
                show(last=True)
        finally:
            self._stop()
        if self.surprises:
            raise WentWrong(self.surprises[0])

    def _revoke(self) -> None:
        words = ("station", "revoke", self._doomed, "--reason", "fixture sent to another plant")
        try:
            done = self._workshop.birthmark(*words, show=False)
        except WentWrong as wrong:
            self._surprise(str(wrong))
        else:
            # Shown in one piece: meanwhile the line goes on, and its display with it.
            self._workshop.screen.command(words)
            self._workshop.screen.output(done.stdout.splitlines())
        with self._change:
            self._revoked = True
            self._change.notify_all()

    def _stop(self) -> None:
        with self._change:
            self._over = True
            self._change.notify_all()
        for one in self.counters.values():
            if one.process is not None and one.process.poll() is None:
                one.process.terminate()
                one.process.wait()

    def _next(self, name: str) -> Job | None:
        """Wait for a job."""
        with self._change:
            while not self._over:
                last_goes = self._revoked if name == self._doomed else bool(self.shut_out)
                if self._jobs and (len(self._jobs) > 1 or last_goes):
                    self._in_work += 1
                    return self._jobs.popleft()
                if not self._jobs and not self._in_work:
                    break
                self._change.wait()
            self._change.notify_all()
            return None

    def _tend(self, name: str) -> None:
        try:
            self._run_station(name)
        except (OSError, ValueError) as broken:  # a pipe that broke, a line that is no event
            if not self._over:
                self._surprise(f"{name}'s program failed ({broken}): see {self._log(name)}")

    def _run_station(self, name: str) -> None:
        counters = self.counters[name]
        words = [str(PROGRAM), f"stations/{name}", "--run", self._run, "--operator", OPERATOR]
        with self._log(name).open("wb") as log:
            process = counters.process = subprocess.Popen(
                [sys.executable, *words, "--vehicles", str(self._workshop.vehicles)],
                cwd=self._workshop.realm,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # Ctrl-C is for us first
            )
        assert process.stdin is not None
        assert process.stdout is not None
        if "ready" not in process.stdout.readline():
            self._surprise(f"{name}'s program does not start: see {self._log(name)}")
        self._ready(counters)
        while (job := self._next(name)) is not None:
            counters.state = "working"
            process.stdin.write(_line(job))
            process.stdin.flush()
            left = {order.vin: order for order in job.orders}
            for line in process.stdout:
                event = json.loads(line)
                if event["event"] == "done":
                    break
                self._note(name, event, left)
            else:
                self._surprise(f"{name}'s program ended: see {self._log(name)}")
            if self._finish(name, job, left):
                break
        process.stdin.close()
        process.wait()
        if counters.state != "revoked":
            counters.state = "finished"

    def _log(self, name: str) -> Path:
        return self._workshop.directory / f"station-{name}.log"

    def _ready(self, counters: Counters) -> None:
        """Begin to measure with the first station that is ready; programs are started once a shift."""
        with self._change:
            counters.state = "waiting"
            if not any(one.state == "working" for one in self.counters.values()) and not self.released:
                self._began = monotonic()

    def _finish(self, name: str, job: Job, left: dict[str, Order]) -> bool:
        """Put back what is left of a job; return True if the station is shut out."""
        with self._change:
            self._in_work -= 1
            out = self.counters[name].state == "revoked"
            if left and out:
                self._jobs.appendleft(Job(orders=tuple(left.values()), gang=job.gang))
            elif left:
                self._surprise(f"{name} lost {', '.join(left)}")
            self._change.notify_all()
        return out or self._over

    def _note(self, name: str, event: dict[str, Any], left: dict[str, Order]) -> None:
        vin, counters = event["vin"], self.counters[name]
        with self._change:
            self._heard = monotonic()
            told = event["event"]
            if told == "issued":
                counters.issued += 1
            elif told == "released":
                counters.released += 1
                counters.last = monotonic() - self._began
                left.pop(vin)
                if vin in self.shut_out:
                    self.taken_over.append(vin)
            else:
                told = self._note_refusal(name, event, left)
            self._events.append(f"{strftime('%H:%M:%S')}  {name}  {vin}  {told}")

    def _note_refusal(self, name: str, event: dict[str, Any], left: dict[str, Order]) -> str:
        vin, counters = event["vin"], self.counters[name]
        if event["code"] == "proof-failed" and left[vin].miswired:
            counters.held += 1
            if vin in self.shut_out:
                self.taken_over.append(vin)
            left.pop(vin)
            self.held.append(vin)
            return "HELD: the proof is wrong"
        if event["code"] == "unauthenticated" and name == self._doomed and vin in left:
            counters.state = "revoked"
            self.shut_out[vin] = event["detail"]
            return "REFUSED: the station is revoked"
        self._surprise(f"{vin} was refused at {name}: {event['detail']} ({event['code']})")
        return f"refused: {event['code']}"

    def _surprise(self, what: str) -> None:
        with self._change:
            self.surprises.append(what)
            self._over = True
            self._change.notify_all()

    # --- showing ---------------------------------------------------------------------------------------

    def panel(self) -> Group:
        """Return what a terminal shows while the line works."""
        seconds = max(monotonic() - self._began, 0.001)
        table = Table(box=None, padding=(0, 2, 0, 0))
        for head in ("station", "", "issued", "released", "held", "vehicles/s", "takt"):
            table.add_column(head, justify="left" if head in ("station", "") else "right", min_width=8)
        for name, one in self.counters.items():
            rate = one.released / max(one.last, 0.001)
            style = {"working": "green", "revoked": "bold red"}.get(one.state, "dim")
            takt = f"{1000 / rate:.0f} ms" if one.released else ""
            cells = [str(one.issued), str(one.released), str(one.held), f"{rate:.1f}", takt]
            table.add_row(name, Text(one.state, style=style), *cells)
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            ProgressBar(self._total, self.released, width=50),
            Text(f"{self.released}/{self._total} released, {self.released / seconds:.0f}/s"),
        )
        events = Text("\n".join(self._events), style="dim")
        return Group("", _indented(table), "", _indented(bar), "", _indented(events))

    def summary(self) -> str:
        """Return what happened so far, in one line."""
        stations = "  ".join(f"{name} {one.released}" for name, one in self.counters.items())
        seconds = max(monotonic() - self._began, 0.001)
        return (
            f"{seconds:5.1f} s  {stations}  held {len(self.held)}"
            f"  all {self.released}/{self._total}, {self.released / seconds:.0f}/s"
        )


def _line(job: Job) -> str:
    vehicles = [
        {"vin": order.vin, "delivered": order.delivered, "miswired": order.miswired} for order in job.orders
    ]
    return json.dumps({"gang": job.gang, "vehicles": vehicles}) + "\n"


def _indented(thing: object) -> Table:
    grid = Table.grid(padding=0)
    grid.add_row("     ", thing)  # type: ignore[arg-type]  # whatever rich can render
    return grid


class _display:  # noqa: N801  # a context manager, used like a function
    """Shows the floor: moving on a terminal, elsewhere a line a second."""

    def __init__(self, screen: Screen, floor: Floor) -> None:
        self._screen, self._floor = screen, floor
        self._live = Live(console=screen.console, auto_refresh=False) if screen.live else None
        self._next = 0.0

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, *, last: bool = False) -> None:
        if self._live is not None:
            self._live.update(self._floor.panel(), refresh=True)
        elif last:
            self._screen.show(self._floor.panel())
        elif monotonic() >= self._next and any(
            one.state != "starting" for one in self._floor.counters.values()
        ):
            self._next = monotonic() + 1
            self._screen.output([self._floor.summary()])
