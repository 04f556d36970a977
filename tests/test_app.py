"""The composition root lets go of what it opened, in the right order and also when it fails."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from birthmark import app, errors
from birthmark.edge.cli.main import run
from birthmark.floor.authorities import Authority
from birthmark.services.acts import ANONYMOUS, record_refusal
from birthmark.settings import Settings, load
from tests.support.realm import tamper
from tests.support.softhsm import softhsm_token


def made(directory: Path, *options: object) -> Settings:
    names = ["--realm", "nord", "--organization", "Nord AG", "--operator", "anna"]
    assert run(lambda: app, ["init", str(directory), *names, *map(str, options)]) == 0
    return load(directory / "birthmark.toml")


def open_below(directory: Path) -> list[str]:
    """Return the files of a directory that this process has open."""
    found = []
    for descriptor in list(Path("/proc/self/fd").iterdir()):
        try:
            path = str(descriptor.readlink())
        except FileNotFoundError:  # the one that listed
            continue
        if path.startswith(f"{directory}/"):
            found.append(path)
    return found


def test_closing_commits_what_waits_and_lets_go_of_everything(tmp_path: Path) -> None:
    settings = made(tmp_path / "nord")
    application = app.build(settings)
    assert list(application.store.scan(Authority))
    size = application.log.size()
    waiting = []
    for _ in range(20):
        case = record_refusal(ANONYMOUS, "handshake", {}, errors.Unauthenticated("nobody"))
        waiting.append(application.store.submit(next(case)))  # type: ignore[arg-type]  # its only step is its acts
    application.close()
    application.close()
    # Each was committed, under a checkpoint that the log's key had still to sign.
    assert [len(future.result(timeout=0)) for future in waiting] == [1] * 20
    assert open_below(tmp_path) == []
    with pytest.raises(RuntimeError, match="closed"):
        application.keys.labels()
    again = app.build(settings)
    assert again.log.size() == size + 20
    again.close()


def say_another_log_key(directory: Path, vkey: str) -> str:
    """Change the log's key in the database, past its triggers, and return the one that was there."""
    with closing(sqlite3.connect(directory / "birthmark.db")) as db:
        (before,) = db.execute("SELECT vkey FROM realm").fetchone()
    tamper(f"sqlite:///{directory / 'birthmark.db'}", ("UPDATE realm SET vkey = %s", (vkey,)))
    return str(before)


def test_a_build_that_fails_lets_go_of_the_token_it_had_opened(tmp_path: Path) -> None:
    """A token has one session in a process: one left behind would refuse the next build."""
    with softhsm_token(tmp_path) as token:
        options = ("--token-module", token.module, "--token-label", token.label)
        settings = made(tmp_path / "nord", *options, "--token-pin-file", token.pin_file)
        vkey = say_another_log_key(tmp_path / "nord", "none")
        with pytest.raises(errors.MalformedRequest):
            app.build(settings)
        say_another_log_key(tmp_path / "nord", vkey)
        app.build(settings).close()
        app.build(settings).close()


def test_a_build_for_another_realm_leaves_no_file_open(tmp_path: Path) -> None:
    settings = made(tmp_path / "nord")
    other = settings.model_copy(update={"realm": settings.realm.model_copy(update={"name": "sued"})})
    with pytest.raises(errors.IntegrityFailure, match="belongs to nord"):
        app.build(other)
    (tmp_path / "nord/secrets/keystore.passphrase").chmod(0o644)
    with pytest.raises(errors.NotPermitted):
        app.build(settings)
    assert open_below(tmp_path) == []
