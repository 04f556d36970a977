"""What the command line says when it refuses, and when it is broken (SPEC K3)."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from birthmark import errors
from birthmark.edge.application import Factory
from birthmark.edge.cli.exits import EXIT_CODES, exit_code
from birthmark.edge.cli.main import run
from tests.edge.cli.command import Place, birthmark


def refusals(kind: type[errors.Refusal] = errors.Refusal) -> Iterator[type[errors.Refusal]]:
    yield kind
    for below in kind.__subclasses__():
        yield from refusals(below)


def test_every_refusal_has_an_exit_code_and_no_code_is_for_nothing() -> None:
    assert set(EXIT_CODES) == {kind for kind in refusals() if kind.__module__ == errors.__name__}


def test_a_kind_of_a_refusal_has_its_exit_code() -> None:
    class Special(errors.ProofFailed):
        """A use case's own kind."""

    assert exit_code(Special("why")) == 76


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.MalformedRequest, 65),
        (errors.NotFound, 66),
        (errors.IntegrityFailure, 70),
        (errors.Unavailable, 75),
        (errors.ProofFailed, 76),
        (errors.Unauthenticated, 77),
        (errors.NotPermitted, 77),
        (errors.TooLarge, 1),
        (errors.IllegalTransition, 1),
        (errors.KeyReused, 1),
        (errors.QuotaExhausted, 1),
    ],
)
def test_the_exit_codes_are_those_that_scripts_rely_on(kind: type[errors.Refusal], code: int) -> None:
    assert exit_code(kind("why")) == code


def test_a_refusal_is_one_line_and_perhaps_what_to_do_and_never_a_traceback(realm: Place) -> None:
    said = realm("device", "show", "vin:1M8GDM9AXKP042788")
    assert said.code == 66
    assert said.err == "birthmark: there is no device vin:1M8GDM9AXKP042788\n"
    assert said.out == ""


def test_what_others_wrote_cannot_break_the_one_line() -> None:
    said = birthmark("run", "list", "--settings", "no\nbirthmark: fine\x1b[2J.toml")
    assert said.code == 66
    assert len(said.err.splitlines()) == 1
    assert "\x1b" not in said.err


class Broken:
    """A factory with a fault, and a secret in it."""

    def __getattr__(self, name: str) -> object:
        raise ZeroDivisionError("the passphrase is 4711")


def broken() -> Factory:
    return Broken()  # type: ignore[return-value]  # that is the fault


def test_an_internal_fault_shows_an_instance_and_no_detail(realm: Place) -> None:
    said = birthmark("run", "list", "--settings", realm.settings, loader=broken)
    assert said.code == 70
    assert said.err.startswith("birthmark: internal fault, instance ")
    assert "4711" not in said.err
    assert "Traceback" not in said.err


def test_an_internal_fault_shows_where_it_happened_when_asked(realm: Place) -> None:
    said = birthmark("--debug", "run", "list", "--settings", realm.settings, loader=broken)
    assert said.code == 70
    assert "Traceback" in said.err
    assert "ZeroDivisionError" in said.err


def test_ctrl_c_is_130(realm: Place) -> None:
    def interrupted() -> Factory:
        raise KeyboardInterrupt

    assert run(interrupted, ["run", "list", "--settings", str(realm.settings)]) == 130


@pytest.mark.parametrize("arguments", [["nonsense"], ["run", "open"], ["run", "list", "--no-such-option"]])
def test_a_command_spelled_wrongly_is_2_and_says_where_to_read(arguments: list[str]) -> None:
    said = birthmark(*arguments)
    assert said.code == 2
    assert said.err.startswith("birthmark: ")
    assert "--help" in said.err


def test_a_missing_settings_file_is_not_found(tmp_path: Path) -> None:
    assert birthmark("check", "--settings", tmp_path / "none.toml").code == 66
