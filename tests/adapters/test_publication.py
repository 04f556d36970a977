"""The directory that is published: two writers, crashes, and readers that look again (SPEC F2, F4)."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from birthmark import errors
from birthmark.adapters.publication import PublicationDirectory, PublishedAnswers
from birthmark.ports import SignedAnswer


def answer(serial: int, octets: bytes = b"good") -> SignedAnswer:
    return SignedAnswer(
        algorithm="sha1",
        serial_number=serial,
        octets=octets,
        this_update=datetime(2030, 1, 1, tzinfo=UTC),
        next_update=datetime(2030, 1, 4, tzinfo=UTC),
    )


def sign(directory: Path, answers: Iterable[SignedAnswer], *, anew: bool = True) -> None:
    """Publish signed answers of authority ``a``."""
    publication = PublicationDirectory(directory)
    with publication.lock(), publication.answers("a", anew=anew) as signed:
        for one in answers:
            signed.put([one])


def left(directory: Path) -> list[str]:
    return [file.name for file in (directory / ".new").iterdir()]


# --- two writers


def _answers(directory: PublicationDirectory) -> None:
    with directory.answers("a", anew=True):
        pass


WRITERS: dict[str, Callable[[PublicationDirectory], None]] = {
    "publish": lambda directory: directory.publish("crl/a.crl", [b"x"]),
    "withdraw": lambda directory: directory.withdraw("responders/a"),
    "answers": _answers,
}


@pytest.mark.parametrize("writer", WRITERS)
def test_nobody_writes_without_the_lock(tmp_path: Path, writer: str) -> None:
    """SPEC F2: the next one who takes it would clear away what is being written."""
    directory, write = PublicationDirectory(tmp_path), WRITERS[writer]
    with pytest.raises(errors.Fault, match="without the lock"):
        write(directory)
    with directory.lock():
        write(directory)
    with pytest.raises(errors.Fault, match="without the lock"):
        write(directory)
    with pytest.raises(ZeroDivisionError), directory.lock():
        raise ZeroDivisionError
    with pytest.raises(errors.Fault, match="without the lock"):
        write(directory)


def test_a_second_writer_is_refused_and_takes_nothing_from_the_first(tmp_path: Path) -> None:
    """SPEC F2: neither a file that is half written nor answers that are being signed."""
    first, second = PublicationDirectory(tmp_path), PublicationDirectory(tmp_path)

    def pieces() -> Iterator[bytes]:
        yield b"one half, "
        with pytest.raises(errors.Unavailable, match="another process is publishing"), second.lock():
            pass
        assert len(left(tmp_path)) == 2
        yield b"the other"

    with first.lock(), first.answers("a", anew=True) as signed:
        signed.put([answer(1)])
        first.publish("crl/a.crl", pieces())
        signed.put([answer(2)])
    assert (tmp_path / "crl/a.crl").read_bytes() == b"one half, the other"
    assert left(tmp_path) == []
    published = PublishedAnswers(tmp_path, "a")
    published.refresh()
    assert [published.find("sha1", serial) for serial in (1, 2, 3)] == [answer(1), answer(2), None]
    published.close()
    with second.lock():
        second.publish("crl/a.crl", [b"the second's"])
    assert (tmp_path / "crl/a.crl").read_bytes() == b"the second's"


# --- crashes

_KILLED = """
import os, signal, sys
from pathlib import Path
from birthmark.adapters.publication import PublicationDirectory
from tests.adapters.test_publication import answer
directory = PublicationDirectory(Path(sys.argv[1]))
def pieces():
    yield b"half of the new one"
    os.kill(os.getpid(), signal.SIGKILL)
with directory.lock(), directory.answers("a", anew=False) as signed:
    signed.put([answer(1, b"revoked"), answer(2)])
    directory.publish("crl/a.crl", pieces())
"""


def test_a_writer_that_is_killed_leaves_what_was_there_and_the_next_clears_up(tmp_path: Path) -> None:
    """SPEC F2."""
    directory = PublicationDirectory(tmp_path)
    with directory.lock():
        directory.publish("crl/a.crl", [b"the old one"])
    sign(tmp_path, [answer(1)])
    environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", _KILLED, str(tmp_path)]
    done = subprocess.run(command, check=False, env=environment)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "crl/a.crl").read_bytes() == b"the old one"
    published = PublishedAnswers(tmp_path, "a")
    published.refresh()
    assert [published.find("sha1", serial) for serial in (1, 2)] == [answer(1), None]
    published.close()
    assert len(left(tmp_path)) == 2
    with directory.lock():  # which died with its holder
        assert left(tmp_path) == []


def test_answers_whose_signing_fails_replace_nothing(tmp_path: Path) -> None:
    """SPEC F3."""
    sign(tmp_path, [answer(1)])

    def answers() -> Iterator[SignedAnswer]:
        yield answer(2)
        raise errors.Unavailable("the token is gone")

    with pytest.raises(errors.Unavailable, match="token"):
        sign(tmp_path, answers())
    published = PublishedAnswers(tmp_path, "a")
    published.refresh()
    assert [published.find("sha1", serial) for serial in (1, 2)] == [answer(1), None]
    published.close()


# --- looking again


def test_a_reader_goes_on_with_what_it_has_until_it_looks_again(tmp_path: Path) -> None:
    """SPEC F3: answers are there, replaced, added to, taken away, and there again."""
    published = PublishedAnswers(tmp_path, "a")

    def found() -> list[bytes | None]:
        answers = [published.find("sha1", serial) for serial in (1, 2)]
        return [None if one is None else one.octets for one in answers]

    published.refresh()
    assert found() == [None, None]
    sign(tmp_path, [answer(1)])
    assert found() == [None, None]
    published.refresh()
    assert found() == [b"good", None]
    sign(tmp_path, [answer(1, b"revoked")])
    sign(tmp_path, [answer(2)], anew=False)
    assert found() == [b"good", None]
    published.refresh()
    assert found() == [b"revoked", b"good"]
    (tmp_path / "answers/a.sqlite").unlink()
    published.refresh()
    assert found() == [None, None]
    sign(tmp_path, [answer(2)])
    published.refresh()
    assert found() == [None, b"good"]
    published.close()


def test_answers_that_cannot_be_looked_at_are_an_outage_and_not_answers_that_there_are_none_of(
    tmp_path: Path,
) -> None:
    """SPEC F3: who asks is told to try later, and not that nobody speaks for the authority."""
    published = PublishedAnswers(tmp_path, "a")
    (tmp_path / "answers").symlink_to("answers")  # ELOOP, for every user
    with pytest.raises(errors.Unavailable, match="symbolic links"):
        published.refresh()
    (tmp_path / "answers").unlink()
    sign(tmp_path, [answer(1)])
    (tmp_path / "answers/a.sqlite").write_bytes(b"no database" * 1000)
    published.refresh()
    with pytest.raises(errors.Unavailable):
        published.find("sha1", 1)
    sign(tmp_path, [answer(1)])
    published.refresh()
    assert published.find("sha1", 1) == answer(1)
    published.close()


def test_what_is_published_can_be_read_by_whoever_serves_it_and_drafts_by_nobody(tmp_path: Path) -> None:
    """SPEC F4."""
    mask = os.umask(0o077)
    try:
        publication = PublicationDirectory(tmp_path / "www")
        with publication.lock():
            publication.publish("crl/a/b.crl", [b"x"])
        sign(tmp_path / "www", [answer(1)])
    finally:
        os.umask(mask)
    files = {
        str(file.relative_to(tmp_path / "www")): file.stat().st_mode & 0o777 for file in _published(tmp_path)
    }
    assert files == {
        "crl": 0o755,
        "crl/a": 0o755,
        "crl/a/b.crl": 0o644,
        "answers": 0o755,
        "answers/a.sqlite": 0o644,
    }
    assert (tmp_path / "www/.lock").stat().st_mode & 0o777 == 0o600


def _published(tmp_path: Path) -> list[Path]:
    return [file for file in (tmp_path / "www").rglob("*") if not file.name.startswith(".")]


# --- a disk that is full


@contextmanager
def _room_for(octets: int) -> Iterator[None]:
    """Let no file grow beyond so much: writing fails as on a full disk, and when a file is closed, too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (octets, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _draft_much(directory: PublicationDirectory) -> None:
    with directory.draft() as draft:
        for _ in range(40):
            draft.write(bytes(100_000))


def _draft_little(directory: PublicationDirectory) -> None:
    with directory.draft() as draft:
        draft.write(bytes(300_000))
        with draft.octets():
            pass


def _publish(directory: PublicationDirectory) -> None:
    directory.publish("crl/a.crl", [bytes(300_000)])


@pytest.mark.parametrize("write", [_draft_much, _draft_little, _publish])
def test_a_full_disk_is_an_outage_that_names_the_place_and_replaces_nothing(
    tmp_path: Path, write: Callable[[PublicationDirectory], None]
) -> None:
    """SPEC F2: on a write, on what was buffered, and when the file is closed after that."""
    directory = PublicationDirectory(tmp_path)
    with directory.lock():
        directory.publish("crl/a.crl", [b"before"])
        place = "crl/a.crl" if write is _publish else str(tmp_path / ".new")
        with _room_for(200_000), pytest.raises(errors.Unavailable, match=f"{place}: File too large"):
            write(directory)
    assert (tmp_path / "crl/a.crl").read_bytes() == b"before"
    with directory.lock():
        assert left(tmp_path) == []


def test_a_draft_that_nobody_read_is_dropped_without_a_word_though_the_disk_is_full(tmp_path: Path) -> None:
    """SPEC F2: what else went wrong is told, and not that the rest of a draft could not be written."""
    directory = PublicationDirectory(tmp_path)

    def fail() -> None:
        with directory.draft() as draft:
            draft.write(bytes(300_000))
            raise errors.NotFound("the reason")

    with directory.lock(), _room_for(200_000), pytest.raises(errors.NotFound, match="the reason"):
        fail()
