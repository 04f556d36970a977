"""How the demo speaks: chapters, commands, claims and tables, at most 100 columns wide.

On a terminal in colour and with a moving display; elsewhere, or with ``--plain``, as plain lines.
"""

import shlex
import sys
from collections.abc import Iterable, Sequence
from textwrap import wrap
from time import monotonic

from rich.console import Console, RenderableType
from rich.text import Text

WIDTH = 100
_LAMPS = {"PASS": "green", "HOLD": "red", "WAIT": "blue"}


class Screen:
    """Standard output."""

    def __init__(self, *, plain: bool) -> None:
        """Speak plainly if told to, or if nobody sits at a terminal."""
        self.live = sys.stdout.isatty() and not plain
        terminal = Console()
        self.console = Console(
            width=min(WIDTH, terminal.width) if self.live else WIDTH,
            force_terminal=self.live,
            no_color=not self.live,
            highlight=False,
            soft_wrap=False,
        )
        self._began = monotonic()
        self._chapter = 0

    @property
    def seconds(self) -> float:
        """How long the demo has been running."""
        return monotonic() - self._began

    def chapter(self, title: str) -> None:
        """Begin a chapter."""
        self._chapter += 1
        self.console.print()
        self.console.print(Text(f"{self._chapter}. {title}", style="bold cyan"))
        self.console.print()

    def say(self, text: str = "", style: str = "") -> None:
        """Print a paragraph."""
        for line in wrap(text, WIDTH - 6) or [""]:
            self._verbatim(f"   {line}" if line else "", style)

    def row(self, name: str, text: str) -> None:
        """Print a name and what is said of it."""
        for at, line in enumerate(wrap(text, WIDTH - 18)):
            self._verbatim(f"   {'' if at else name:<10} {line}", "")

    def command(self, words: Sequence[str], program: str = "birthmark", *, more: str = "") -> None:
        """Print a command as it could be typed; ``more`` is for the shell to expand."""
        groups = [f"$ {program}"]  # an option stays with its value
        for word in map(shlex.quote, words):
            if groups[-1].startswith("-") and " " not in groups[-1] and not word.startswith("-"):
                groups[-1] += f" {word}"
            else:
                groups.append(word)
        lines = [groups[0]]
        for group in [*groups[1:], *([more] if more else [])]:
            if len(lines[-1]) + len(group) > WIDTH - 8:
                lines[-1] += " \\"
                lines.append("     ")
            lines[-1] += f" {group}"
        for line in lines:
            self._verbatim(f"   {line}", "bold")

    def output(self, lines: Iterable[str]) -> None:
        """Print what a command answered."""
        for line in lines:
            shown = line if len(line) <= WIDTH - 6 else line[: WIDTH - 7] + "…"
            self._verbatim(f"     {shown}", "dim")

    def claim(self, text: str, *, holds: bool) -> None:
        """Print something that was checked, and whether it holds."""
        first, *more = wrap(text, WIDTH - 12)
        mark = ("ok     ", "bold green") if holds else ("FAILED ", "bold red")
        self.console.print(Text.assemble("   ", mark, first), soft_wrap=True)
        for line in more:
            self._verbatim(f"          {line}", "")

    def lamp(self, lamp: str, text: str) -> None:
        """Show what the lamp over a station shows (PASS, HOLD or WAIT), and why."""
        mark = (f" {lamp} ", f"bold white on {_LAMPS[lamp]}")
        first, *more = wrap(text, WIDTH - 12)
        self.console.print(Text.assemble("   ", mark, "  ", first), soft_wrap=True)
        for line in more:
            self._verbatim(f"           {line}", "")

    def show(self, thing: RenderableType) -> None:
        """Print a table or the like."""
        with self.console.capture() as capture:
            self.console.print(thing)
        # What is pasted somewhere should not end in spaces.
        sys.stdout.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))
        sys.stdout.flush()

    def _verbatim(self, line: str, style: str) -> None:
        self.console.print(Text(line, style=style), soft_wrap=True)
