"""Fetching from others: with an end to everything, and CRLs that keep themselves fresh."""

import socket
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from birthmark import errors
from birthmark.adapters import foreign
from birthmark.adapters.foreign import ForeignWatcher, Responders, fetch
from birthmark.floor.fleet import FleetPolicy, FleetStatus, ForeignCRL, RevocationRule
from birthmark.pki.certificates import to_pem
from birthmark.services.foreign_lists import WATCHER
from birthmark.services.foreign_status import Answers, Link, Lists, Question, take_answer
from tests.services.test_fleet import Harbour
from tests.support.foreign import ForeignPKI, Hosting, Issuer, hosting
from tests.support.realm import make_line


@pytest.fixture
def web() -> Iterator[Hosting]:
    with hosting() as found:
        yield found


def get(url: str, limit: int = 100, seconds: float = 10.0) -> bytes:
    return fetch(url, limit=limit, seconds=seconds)


def test_what_is_at_a_place_is_fetched_also_when_it_moved_on_its_host(web: Hosting) -> None:
    web.paths |= {"/crl?x=1": b"octets", "/moved": (302, "/crl?x=1"), "/absolute": (301, f"{web.url}/moved")}
    assert get(f"{web.url}/crl?x=1") == b"octets"
    assert get(f"{web.url}/absolute") == b"octets"


def test_nothing_is_fetched_without_an_end(web: Hosting) -> None:
    web.paths |= {"/large": bytes(101), "/round": (302, "/round"), "/gone": 404, "/just": bytes(100)}
    assert len(get(f"{web.url}/just")) == 100
    with pytest.raises(errors.TooLarge, match="more than 100 octets"):
        get(f"{web.url}/large")
    with pytest.raises(errors.Unavailable, match="more than 3 redirects"):
        get(f"{web.url}/round")
    with pytest.raises(errors.Unavailable, match="status 404"):
        get(f"{web.url}/gone")


@pytest.mark.parametrize(
    "elsewhere",
    ["http://127.0.0.2:1/crl", "https://127.0.0.1/crl", "file:///etc/passwd", "//example.com/", ""],
)
def test_nobody_sends_us_to_another_host(web: Hosting, elsewhere: str) -> None:
    web.paths["/moved"] = (302, elsewhere)
    with pytest.raises((errors.Unavailable, errors.MalformedRequest)):
        get(f"{web.url}/moved")
    assert set(web.asked) <= {"/moved"}


def test_what_is_posted_is_not_sent_elsewhere(web: Hosting) -> None:
    web.paths |= {"/moved": (307, "/here"), "/here": b"x"}
    with pytest.raises(errors.Unavailable, match="elsewhere"):
        fetch(f"{web.url}/moved", limit=9, seconds=10.0, body=b"secret", media_type="text/plain")


@pytest.mark.parametrize(
    "url", ["https://h/", "ftp://h/", "http:///x", "http://u:p@h/", "http://h/#f", "http://h:x/"]
)
def test_only_plain_places_are_fetched_from(url: str) -> None:
    with pytest.raises(errors.MalformedRequest, match="fetched by http"):
        get(url)


def trickling(headers: bytes) -> Iterator[str]:
    """Serve one octet after another, for ever."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        over = threading.Event()

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(headers)
                while not over.wait(0.02):
                    try:
                        connection.sendall(b"x")
                    except OSError:
                        return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"
        over.set()
        thread.join()


@pytest.mark.parametrize("headers", [b"", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_who_sends_an_octet_now_and_then_does_not_keep_us_waiting(headers: bytes) -> None:
    for url in trickling(headers):
        with pytest.raises(errors.Unavailable, match="does not answer"):
            get(url, limit=1 << 30, seconds=0.3)


def test_who_stops_in_the_middle_has_said_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhalf")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with pytest.raises(errors.Unavailable, match="IncompleteRead"):
            get(f"http://127.0.0.1:{server.getsockname()[1]}/")
        thread.join()


def test_no_proxy_of_the_environment_is_asked(web: Hosting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.9:1")
    web.paths["/crl"] = b"octets"
    assert get(f"{web.url}/crl") == b"octets"


# --- responders


def test_openssl_as_a_responder_is_asked_and_believed(web: Hosting, tmp_path: Path) -> None:
    root = ForeignPKI(folder=tmp_path / "foreign").root()
    link = Link(certificate=root.certify("d1"), issuer=root.der, crl="fjord", authority=False)
    web.paths["/ocsp"] = root.answer
    asked = question_of(f"{web.url}/ocsp", link)
    answers = Answers()
    take_answer(answers, asked, Responders().ask(asked), root.at)
    found = answers.find(link, root.at)
    assert found is not None
    assert found.status == "good"
    assert answers.find(link, root.at + timedelta(hours=2)) is None, "it has ended"


def question_of(url: str, link: Link) -> Question:
    from birthmark.pki.ocsp_client import question  # noqa: PLC0415  # the name is taken here

    nonce = b"n" * 32
    return Question(url=url, request=question(link.certificate, link.issuer, nonce), link=link, nonce=nonce)


def test_a_responder_that_is_away_is_left_alone_for_a_while(web: Hosting, tmp_path: Path) -> None:
    link = Link(certificate=b"c", issuer=b"i", crl="fjord", authority=False)
    asked = Question(url=f"{web.url}/ocsp", request=b"?", link=link, nonce=b"n" * 32)
    patient, resting = Responders(rest=0.0), Responders()
    for responders in (patient, resting):
        with pytest.raises(errors.Unavailable, match="404"):
            responders.ask(asked)
    web.paths["/ocsp"] = b"answer"
    assert patient.ask(asked) == b"answer"
    with pytest.raises(errors.Unavailable, match="just now"):
        resting.ask(asked)


# --- the watcher


@pytest.fixture
def harbour(tmp_path: Path, database_url: str) -> Iterator[Harbour]:
    line = make_line(tmp_path, database_url)
    yield Harbour(line, ForeignPKI(folder=tmp_path / "foreign"))
    line.close()


def accepted(harbour: Harbour, root: Issuer, url: str) -> None:
    harbour.challenge(root, policy=FleetPolicy(crl_url=url))
    harbour.register(root)


def watcher(harbour: Harbour, lists: Lists | None = None) -> ForeignWatcher:
    return ForeignWatcher(harbour.line.service.store, harbour.line.clock, lists)


def test_the_crl_of_an_authority_is_fetched_and_read_beforehand(harbour: Harbour, web: Hosting) -> None:
    root, lists = harbour.pki.root(), Lists()
    accepted(harbour, root, f"{web.url}/crl")
    web.paths["/crl"] = to_pem(root.list(), "X509 CRL").encode()
    watching = watcher(harbour, lists)
    watching.look()
    row = harbour.line.the(ForeignCRL, "fjord")
    assert lists.find(row) is not None
    entry = harbour.line.entries()[-1]
    assert (entry["kind"], entry["actor"]) == ("foreign-crl-taken", WATCHER)
    watching.look()
    assert web.asked == ["/crl"], "it is fresh"
    assert harbour.findings() == []


def test_a_newer_crl_is_fetched_before_the_last_has_ended(
    harbour: Harbour, web: Hosting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign, "RETRY_SECONDS", 0.0)
    root = harbour.pki.root()
    accepted(harbour, root, f"{web.url}/crl")
    web.paths["/crl"] = root.list()
    watching = watcher(harbour)
    watching.look()
    root.certify("d1")
    root.revoke("d1")
    web.paths["/crl"] = root.list()
    harbour.line.clock.turn(minutes=59)
    watching.look()
    assert harbour.line.the(ForeignCRL, "fjord").entries == 0
    harbour.line.clock.turn(minutes=2)
    watching.look()
    assert harbour.line.the(ForeignCRL, "fjord").entries == 1


def test_a_crl_that_is_refused_is_told_once_and_the_last_one_stays(
    harbour: Harbour, web: Hosting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign, "RETRY_SECONDS", 0.0)
    root, other = harbour.pki.root(), harbour.pki.root("other")
    accepted(harbour, root, f"{web.url}/crl")
    old = root.list()
    web.paths["/crl"] = root.list()
    watching = watcher(harbour)
    watching.look()
    taken = harbour.line.the(ForeignCRL, "fjord")
    for wrong in (old, other.list(), b"nothing at all"):
        web.paths["/crl"] = wrong
        before = harbour.line.size()
        for pause in (timedelta(hours=1), timedelta(minutes=2)):
            harbour.line.clock.at += pause
            watching.look()
        assert harbour.line.size() == before + 1, "once in a while"
        assert (harbour.line.entries()[-1]["kind"], harbour.line.entries()[-1]["actor"]) == (
            "refused",
            WATCHER,
        )
    assert harbour.line.the(ForeignCRL, "fjord") == taken
    web.paths["/crl"] = 500
    harbour.line.clock.turn(hours=1)
    watching.look()
    assert harbour.findings() == []


def test_the_crl_of_an_authority_below_is_fetched_where_it_was_said(harbour: Harbour, web: Hosting) -> None:
    root = harbour.pki.root()
    sub = root.below("sub")
    harbour.challenge(root, policy=FleetPolicy(revocation=RevocationRule.REQUIRED))
    harbour.register(root)
    first = harbour.take(sub.list(), issuer=sub.der, url=f"{web.url}/sub").crl
    web.paths["/sub"] = sub.list()
    watcher(harbour).look()
    second = harbour.line.the(ForeignCRL, first.id)
    assert (second.number, second.issuer, second.url) == ("1001", sub.der, first.url)
    assert harbour.findings() == []


def test_nothing_is_fetched_for_who_is_not_registered_or_retired(harbour: Harbour, web: Hosting) -> None:
    root = harbour.pki.root()
    harbour.challenge(root, policy=FleetPolicy(crl_url=f"{web.url}/crl"))
    watcher(harbour).look()
    harbour.register(root)
    harbour.move(FleetStatus.RETIRED)
    watcher(harbour).look()
    assert web.asked == []


def test_two_processes_that_watch_put_a_crl_on_record_once(harbour: Harbour, web: Hosting) -> None:
    root = harbour.pki.root()
    accepted(harbour, root, f"{web.url}/crl")
    web.paths["/crl"] = root.list()
    first, second = Lists(), Lists()
    watcher(harbour, first).look()
    other = harbour.line.another_service()
    ForeignWatcher(other.store, harbour.line.clock, second).look()
    assert [one["kind"] for one in harbour.line.entries()].count("foreign-crl-taken") == 1
    row = harbour.line.the(ForeignCRL, "fjord")
    assert first.find(row) is not None
    assert second.find(row) is not None


def test_a_slow_server_keeps_no_other_fleet_waiting(harbour: Harbour, web: Hosting) -> None:
    go_on, lists = threading.Event(), Lists()
    for name, path in (("alpha", "/slow"), ("beta", "/quick")):
        root = harbour.pki.root(name, subject=f"/CN={name}")
        harbour.challenge(root, name, policy=FleetPolicy(crl_url=f"{web.url}{path}"))
        harbour.register(root, name)
        web.paths[path] = root.list()
    slow = web.paths["/slow"]
    assert isinstance(slow, bytes)

    def serve(_body: bytes) -> bytes:
        assert go_on.wait(timeout=30.0)
        return slow

    web.paths["/slow"] = serve
    watching = ForeignWatcher(harbour.line.service.store, harbour.line.clock, lists, every_seconds=1.0)
    watching.look()
    assert lists.find(harbour.line.the(ForeignCRL, "beta")) is not None
    assert list(harbour.line.service.store.scan(ForeignCRL)) == [harbour.line.the(ForeignCRL, "beta")]
    go_on.set()
    watching.look()
    assert harbour.line.the(ForeignCRL, "alpha").authority == "alpha"
    assert sorted(web.asked) == ["/quick", "/slow"]


def test_the_thread_looks_and_ends(harbour: Harbour, web: Hosting) -> None:
    root = harbour.pki.root()
    accepted(harbour, root, f"{web.url}/crl")
    fetched = threading.Event()
    crl = root.list()

    def serve(_body: bytes) -> bytes:
        fetched.set()
        return crl

    web.paths["/crl"] = serve
    watching = watcher(harbour)
    watching.start()
    assert fetched.wait(timeout=30.0)
    watching.close()
    watching.close()
