"""A checker that is missing, or dies, is not taken for one that agrees."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.peers.small import AT, WELL, small
from tests.support.checkers import chip, iso15118, running
from tests.support.checkers.chip import Kind
from tests.support.checkers.pyhanko import pyhanko


def ask_pyhanko() -> object:
    with pyhanko() as validator:
        return validator.path_verdict(small().chain(WELL), at=AT)


ASKED: dict[str, Callable[[], object]] = {
    "chip": lambda: chip.format_verdict(small().root.der, Kind.PAA),
    "iso15118": lambda: iso15118.chain_verdict(small().chain(WELL), at=AT),
    "pyhanko": ask_pyhanko,
}


@pytest.mark.parametrize("name", ASKED)
def test_a_missing_checker_skips_here_and_fails_in_ci(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(running, "ROOT", tmp_path)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=f"peers/{name} is not installed"):
        ASKED[name]()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=f"peers/{name} is not installed"):
        ASKED[name]()


COUNTERPARTS = {"atecc", "openbao", "openpgp", "sslyze", "tlslite", "yubikey"}
"""Drivers and a card of others, a scanner, a breaker of handshakes, an authority: run by themselves."""


def test_every_lock_of_a_checker_has_its_driver() -> None:
    locks = (running.ROOT / "requirements/peers").glob("*.txt")
    assert {lock.stem for lock in locks} == ASKED.keys() | COUNTERPARTS


def test_a_checker_that_dies_gives_no_answer() -> None:
    deaf = ["sh", "-c", "read -r question"]
    with pytest.raises(AssertionError, match="ended without an answer"), running.conversing(deaf) as ask:
        ask("anybody there?")
    with pytest.raises(AssertionError, match="chip ended with"):
        running.ask_peer("chip", {"function": "no such function", "certificates": []})


def test_a_program_is_shown_the_date_it_is_given() -> None:
    at = datetime(2039, 4, 5, 6, 7, 8, tzinfo=UTC)
    assert running.ask(["date", "+%FT%TZ"], at=at).stdout.strip() == "2039-04-05T06:07:08Z"
