"""``birthmark publish`` and ``responder``: options that contradict, and two that write (SPEC F2, F3)."""

import pytest

from birthmark.adapters.publication import PublicationDirectory
from tests.support.server import RealmDirectory, copy_realm

PUBLICATION = '\n[publication]\nurl = "http://pki.example.com"\ndirectory = "www"\n'


@pytest.fixture(scope="module")
def publishing(tmp_path_factory: pytest.TempPathFactory) -> RealmDirectory:
    """A realm that publishes into ``www`` of its directory."""
    realm = copy_realm(tmp_path_factory.mktemp("publishing") / "realm")
    with realm.settings.open("a") as settings:
        settings.write(PUBLICATION)
    return realm


@pytest.mark.parametrize(
    "options",
    [
        ("--check", "--ocsp"),
        ("--watch", "--ocsp"),
        ("--watch", "--check"),
        ("--run", "R1"),
        ("--batch", "B-1"),
        ("--check", "--authority", "issuing-1"),
        ("--watch", "--run", "R1"),
    ],
)
def test_options_that_would_be_ignored_are_refused(
    publishing: RealmDirectory, options: tuple[str, ...]
) -> None:
    """SPEC F2, F3: --check changes nothing, and --watch signs what the settings say."""
    done = publishing.run("publish", *options, check=False)
    assert done.returncode == 65
    assert "--ocsp" in done.stderr or "--watch" in done.stderr
    assert not (publishing.path / "www").exists()


def test_a_responder_that_is_enrolled_or_revoked_while_another_publishes_is_published_next(
    publishing: RealmDirectory,
) -> None:
    """SPEC F3: what is on record is done; nothing of what the other one writes is taken away."""
    www = publishing.path / "www"
    path, publication = www / "responders/ocsp/issuing-1.cer", PublicationDirectory(www)
    with publication.lock(), publication.answers("issuing-1", anew=True):
        done = publishing.run("responder", "enrol", "--authority", "issuing-1")
        assert "the next 'birthmark publish'" in done.stderr
        busy = publishing.run("publish", check=False)
        assert busy.returncode == 75
        assert "another process is publishing" in busy.stderr
    assert (www / "answers/issuing-1.sqlite").is_file()
    assert not path.exists()
    publishing.run("publish")
    assert path.is_file()
    with publication.lock():
        done = publishing.run("responder", "revoke", "ocsp", "--reason", "the host was sold")
        assert "the next 'birthmark publish'" in done.stderr
    assert path.is_file()
    publishing.run("publish")
    assert not path.exists()


def test_a_responders_certificate_is_published_and_withdrawn_at_once(publishing: RealmDirectory) -> None:
    """SPEC F3."""
    folder = publishing.path / "www/responders/second"
    done = publishing.run("responder", "enrol", "--authority", "issuing-1", "--name", "second")
    assert done.stderr == ""
    assert (folder / "issuing-1.cer").is_file()
    publishing.run("responder", "revoke", "second", "--reason", "no longer wanted")
    assert not folder.exists()
    refused = publishing.run("responder", "enrol", "--authority", "issuing-1", "--name", ".x", check=False)
    assert refused.returncode == 65
    assert "does not begin with a dot" in refused.stderr


def test_a_crl_or_a_responders_certificate_that_is_gone_comes_back_with_the_next_publish(
    publishing: RealmDirectory,
) -> None:
    """SPEC F2, F3: --check says what to do, and doing it suffices."""
    www = publishing.path / "www"
    publishing.run("responder", "enrol", "--authority", "issuing-1", "--name", "third")
    publishing.run("publish")
    gone = [www / "crl/issuing-1.crl", www / "responders/third/issuing-1.cer", www / "ca/issuing-1.cer"]
    for file in gone:
        file.unlink()
    checked = publishing.run("publish", "--check", check=False)
    assert checked.returncode == 1
    assert "run 'birthmark publish'" in checked.stdout
    assert publishing.run("publish").stdout.rstrip().endswith("ok")
    assert all(file.is_file() for file in gone)
    publishing.run("publish", "--check")
