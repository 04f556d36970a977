"""A real service, and a token that dies, hangs, loses keys or is another one (SPEC B1, B3, E4).

The token is a process of its own.  Stations see 503 with the reason and nothing else; nobody restarts the
service; at the end every entry of the log, every certificate and every checkpoint is held against the others.
"""

import itertools
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

from birthmark.adapters.pkcs11 import PKCS11KeyStore
from birthmark.pki.keys import KeyAlgorithm, KeyLabel
from tests.adapters.test_doctor import aside, destroy
from tests.support.devices import asked, signed
from tests.support.programs import need
from tests.support.server import (
    RUN,
    Http,
    RealmDirectory,
    Server,
    copy_realm,
    free_port,
    make_realm_directory,
    tls_context,
    until,
)
from tests.support.tokenprocess import TokenProcess, cloned, token_process

GONE = "token 'floor' cannot be reached: token not present"
CUT = "token 'floor' cannot be reached: device error"
_numbers = itertools.count(1)


@dataclass(slots=True, kw_only=True)
class Floor:
    """A realm whose keys are in a token that is a process."""

    realm: RealmDirectory
    token: TokenProcess

    def serving(self, **key_store: str) -> Server:
        """Return a server with these further settings of ``[key-store]``, which looks at its token often."""
        port = free_port()
        realm = self.realm.listening_on(port)
        settings = {"check-seconds": "0.1", "answer-seconds": "5", "give-up-seconds": "60", **key_store}
        lines = "".join(f"{name} = {value}\n" for name, value in settings.items())
        text = realm.settings.read_text(encoding="utf-8")
        assert 'kind = "pkcs11"\n' in text
        realm.settings.write_text(
            text.replace('kind = "pkcs11"\n', f'kind = "pkcs11"\n{lines}'), encoding="utf-8"
        )
        return Server(realm=realm)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Floor]:
    folder = tmp_path_factory.mktemp("outage")
    with token_process(folder) as token:
        options = ("--token-module", token.module, "--token-label", token.token.label)
        realm = make_realm_directory(folder / "realm", *options, "--token-pin-file", token.token.pin_file)
        yield Floor(realm=realm, token=token)


@pytest.fixture
def floor(made: Floor) -> Iterator[Floor]:
    """The realm, with its token running; a test may do with the token what it likes."""
    kept = made.token.folder / "kept"
    shutil.copytree(made.token.token.tokens, kept)
    yield made
    put_back(made.token, kept)
    made.realm.check()


def put_back(token: TokenProcess, kept: Path) -> None:
    """Give a token the objects that were kept, and serve it."""
    token.kill()
    shutil.rmtree(token.token.tokens)
    kept.rename(token.token.tokens)
    token.start()


@dataclass(slots=True)
class Line:
    """Stations that give one device after the other its identity, and write down what they are told."""

    server: Server
    made: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    others: list[Mapping[str, Any]] = field(default_factory=list)
    cut: int = 0
    """How often a process of the service did not answer any more."""
    over: threading.Event = field(default_factory=threading.Event)

    def device(self, station: Http) -> None:
        """Make one device; each request is sent until it is answered, as the station kit does."""
        name = f"DEV-{next(_numbers)}"
        key, body = asked(name)
        issued = self._sent(station, f"/v1/runs/{RUN}/issue", body)
        if issued is not None and self._sent(station, "/v1/prove", signed(issued, key)) is not None:
            self.made.append(name)

    def _sent(self, station: Http, path: str, body: object) -> Mapping[str, Any] | None:
        while not self.over.is_set():
            try:
                answer = station.post(path, body)
            except (OSError, HTTPException):
                self.cut += 1
                station.connection.close()  # it connects again
                self.over.wait(0.05)
                continue
            if answer.status == 200:
                found: Mapping[str, Any] = answer.json
                return found
            if answer.status != 503:
                self.others.append(answer.json)
                return None
            assert answer.headers["retry-after"]
            self.reasons.append(answer.json["detail"])
            self.over.wait(0.02)
        return None

    def work(self) -> None:
        """Work until it is over."""
        with client(self.server) as station:
            while not self.over.is_set():
                self.device(station)

    def makes(self, count: int) -> bool:
        """Wait until so many more devices are made."""
        target = len(self.made) + count
        return until(lambda: len(self.made) >= target or bool(self.others), 60) and not self.others

    def is_held(self) -> bool:
        """Wait until some more requests are refused."""
        target = len(self.reasons) + 5
        return until(lambda: len(self.reasons) >= target or bool(self.others), 60) and not self.others


@contextmanager
def at_work(server: Server, stations: int = 3) -> Iterator[Line]:
    line = Line(server)
    threads = [threading.Thread(target=line.work) for _ in range(stations)]
    for thread in threads:
        thread.start()
    try:
        yield line
    finally:
        line.over.set()
        for thread in threads:
            thread.join(30)
    assert line.others == []


def client(server: Server) -> Http:
    return Http(server.address, tls_context(server.realm.station()))


def one_device(server: Server) -> str:
    """Ask once for one device, and return why not; empty if it has it."""
    key, body = asked(f"DEV-{next(_numbers)}")
    with client(server) as station:
        answer = station.post(f"/v1/runs/{RUN}/issue", body)
        if answer.status == 200:
            answer = station.post("/v1/prove", signed(answer.json, key))
    assert answer.status in (200, 503), answer.body
    return "" if answer.status == 200 else str(answer.json["detail"])


def is_told(server: Server, words: str, times: int) -> bool:
    """Wait until the service's log has said something so often."""
    return until(lambda: sum(words in event["event"] for event in server.events()) == times, 60)


def errors_told(server: Server) -> list[str]:
    return [event["event"] for event in server.events() if event["level"] in ("error", "critical")]


def test_a_token_that_is_killed_holds_the_line_with_one_reason_and_nobody_restarts_anything(
    floor: Floor,
) -> None:
    with floor.serving() as server:
        workers = server.workers()
        with at_work(server) as line:
            assert line.makes(5)
            for times in (1, 2):
                floor.token.kill()
                assert line.is_held()
                assert is_told(server, GONE, times)
                floor.token.start()
                assert line.makes(5)
                assert is_told(server, "is well again", times)
            floor.token.drop_connections()
            assert line.makes(5)
        assert line.cut == 0
        # A call that is under way when the process dies ends otherwise than those that come after it.
        assert {reason.partition(": ")[2] for reason in line.reasons} <= {GONE, CUT}
        assert {reason.partition(": ")[0] for reason in line.reasons} <= {
            "the key issuing-1 cannot sign",
            "the log's key cannot sign",
        }
        assert server.workers() == workers
        told = errors_told(server)
        assert (told.count(GONE), set(told) <= {GONE, CUT}) == (2, True), told
        assert server.stop() == 0


def test_the_service_starts_without_its_token_and_works_when_it_comes(floor: Floor) -> None:
    """After a power cut nobody knows which of the two is up first."""
    floor.token.kill()
    with floor.serving() as server:
        assert GONE in one_device(server)
        floor.token.start()
        assert until(lambda: one_device(server) == "")
        assert server.stop() == 0


@pytest.mark.soak
def test_a_token_that_hangs_for_ever_costs_a_process_and_not_the_service(floor: Floor) -> None:
    """A call that does not come back cannot be ended: its process is, and the next one is held as well."""
    with floor.serving(**{"answer-seconds": "0.5", "give-up-seconds": "2"}) as server:
        before = server.workers()
        with at_work(server, stations=2) as line:
            assert line.makes(2)
            floor.token.hang()
            assert until(lambda: server.workers() and not set(server.workers()) & set(before), 30)
            line.over.set()
        assert {reason.partition(": ")[2] for reason in line.reasons} == {
            "token 'floor' did not answer within 0.5 s"
        }
        (said,) = {told for told in errors_told(server) if "has not come back from a call for" in told}
        assert said.endswith("this process ends, to be started again")
        died = [event for event in server.events() if event["event"] == "a process of the service died"]
        assert {event["code"] for event in died} == {75}
        floor.token.kill()
        floor.token.start()
        server.wait_ready()
        assert until(lambda: one_device(server) == "", 30)
        assert server.stop() == 0


@pytest.mark.soak
def test_a_key_of_the_log_that_goes_holds_the_line_until_it_is_back(floor: Floor) -> None:
    kept = floor.token.folder / "with-the-key"
    shutil.copytree(floor.token.token.tokens, kept)
    with floor.serving() as server:
        assert one_device(server) == ""
        destroy(floor.token, "log")
        missing = "there is no key 'log' in token 'floor'"
        assert one_device(server) == f"the log's key cannot sign: {missing}"
        assert until(lambda: missing in errors_told(server))
        refused = floor.realm.run("serve", "--settings", server.realm.settings, check=False)
        put_back(floor.token, kept)
        assert until(lambda: one_device(server) == "")
        assert server.stop() == 0
    assert (refused.returncode, missing in refused.stderr) == (70, True)


@pytest.mark.soak
def test_a_token_that_was_made_anew_signs_nothing(floor: Floor) -> None:
    """Keys of the same names in a token of the same label: not even a new process takes them."""
    kept = floor.token.folder / "the-right-one"
    shutil.copytree(floor.token.token.tokens, kept)
    with floor.serving() as server:
        assert one_device(server) == ""
        floor.token.kill()
        subprocess.run(
            [need("softhsm2-util", "softhsm2"), "--delete-token", "--token", "floor"],
            check=True,
            capture_output=True,
            env={**os.environ, "SOFTHSM2_CONF": str(floor.token.token.configuration)},
        )
        floor.token.token.initialise("floor")
        floor.token.start()
        assert until(lambda: "there is no key 'issuing-1' in token 'floor'" in one_device(server))
        with PKCS11KeyStore.open(floor.token.module, "floor", floor.token.token.pin) as keys:
            keys.generate(KeyLabel("issuing-1"), KeyAlgorithm.EC_P256)
            keys.generate(KeyLabel("log"), KeyAlgorithm.ED25519)
        other = "key 'issuing-1' in token 'floor' is another one than before"
        assert until(lambda: other in one_device(server))
        refused = floor.realm.run("serve", "--settings", server.realm.settings, check=False)
        put_back(floor.token, kept)
        assert until(lambda: one_device(server) == "")
        assert server.stop() == 0
    assert refused.returncode == 70
    assert "key 'log' in PKCS11KeyStore(token 'floor') is not the one on record" in refused.stderr


@pytest.mark.soak
def test_a_changed_pin_is_tried_once_and_the_service_is_not_started_again_with_it(floor: Floor) -> None:
    """Tokens lock after a few."""
    with floor.serving() as server:
        assert one_device(server) == ""
        aside(
            "session = token.open(rw=True, so_pin=sys.argv[2])\nsession.init_pin('another-1')\n",
            floor.token,
            floor.token.token.so_pin,
        )
        floor.token.drop_connections()
        refuses = "token 'floor' refuses the PIN (pin incorrect); it is not tried again"
        for _ in range(3):
            assert refuses in one_device(server)
        assert server.stop() == 0
        ended = floor.realm.run("serve", "--settings", server.realm.settings, check=False)
        assert ended.returncode == 77
        assert ended.stderr.count(refuses) == 1
        aside(
            "session = token.open(rw=True, so_pin=sys.argv[2])\nsession.init_pin(sys.argv[3])\n",
            floor.token,
            floor.token.token.so_pin,
            floor.token.token.pin.reveal().decode(),
        )
        server.start()
        assert one_device(server) == ""


@pytest.mark.soak
def test_a_pair_works_as_long_as_one_of_the_two_is_there(floor: Floor, tmp_path: Path) -> None:
    """B3, B5: killed in turn under load, the stations do not notice; both gone, they get one reason."""
    with cloned(floor.token, tmp_path / "twin") as twin:
        standby = f'{{ module = "{twin.module}", token = "floor", pin-file = "{twin.token.pin_file}" }}'
        with floor.serving(standby=standby, **{"return-checks": "2"}) as server:
            workers = server.workers()
            with at_work(server) as line:
                assert line.makes(5)
                for turn, process in enumerate((floor.token, twin) * 2):
                    process.kill()
                    assert line.makes(5)
                    assert is_told(server, "redundancy is lost", turn + 1)
                    process.start()
                    assert is_told(server, "is well again", turn + 1)
                assert line.reasons == []
                floor.token.kill()
                twin.kill()
                assert line.is_held()
                twin.start()
                assert line.makes(5)
                floor.token.start()
                assert line.makes(5)
            assert {reason.partition(": ")[2] for reason in line.reasons} == {
                f"primary: {GONE}; standby: {GONE}"
            }
            assert server.workers() == workers
            told = [event["event"] for event in server.events() if event["level"] == "warning"]
            assert f"redundancy is lost, only the standby works: {GONE}" in told
            assert f"redundancy is lost, only the primary works: {GONE}" in told
            checked = server.realm.run("keys", "check", "--json")
            assert '"standby"' in checked.stdout
            assert '"ok": true' in checked.stdout
            assert server.stop() == 0


# --- keys in files


def test_a_log_key_in_a_file_that_goes_holds_the_line_until_it_is_back(tmp_path: Path) -> None:
    realm = copy_realm(tmp_path / "realm")
    file, away = realm.path / "keys" / "log.p8", tmp_path / "away"
    with Server(realm=realm) as server:
        assert one_device(server) == ""
        file.rename(away)
        assert one_device(server) == "the log's key cannot sign: there is no key 'log'"
        away.rename(file)
        assert one_device(server) == ""
        assert server.stop() == 0
    realm.check()
