"""Runs the command in this process, as ``python -m birthmark`` would, and keeps what it says."""

import io
import json
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from birthmark import app
from birthmark.edge.application import Factory
from birthmark.edge.cli.main import run

VIN = "1M8GDM9AXKP042788"
OTHER_VIN = "1HGCM82633A004352"


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The standard output as JSON."""
        return json.loads(self.out)


def real_factory() -> Factory:
    return app


def birthmark(*arguments: object, loader: Callable[[], Factory] = real_factory) -> Said:
    """Run a command."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = run(loader, [str(argument) for argument in arguments])
    return Said(code=code, out=out.getvalue(), err=err.getvalue())


def done(*arguments: object, loader: Callable[[], Factory] = real_factory) -> Said:
    """Run a command that must succeed."""
    said = birthmark(*arguments, loader=loader)
    assert said.code == 0, said
    return said


@dataclass(frozen=True, slots=True)
class Place:
    """A realm's directory."""

    directory: Path

    @property
    def settings(self) -> Path:
        return self.directory / "birthmark.toml"

    @property
    def vkey(self) -> Path:
        return self.directory / "log.vkey"

    def __call__(self, *arguments: object) -> Said:
        """Run a command in this realm."""
        return birthmark(*arguments, "--settings", self.settings)

    def done(self, *arguments: object) -> Said:
        """Run a command in this realm that must succeed."""
        return done(*arguments, "--settings", self.settings)

    def open_run(self, run: str, *arguments: object) -> Said:
        """Open a run for vehicles at station ST01."""
        common = ("--product", "T1", "--station", "ST01", "--hardware-id-kind", "vin")
        return self("run", "open", run, *common, *arguments)
