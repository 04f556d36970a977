"""Stations at a served realm: let in by a code, shut out in the handshake, slowed down (SPEC C1, C2)."""

import shutil
import signal
import socket
import ssl
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from birthmark import errors
from birthmark.adapters.system import SystemClock
from birthmark.edge.station import Enclave, Station
from birthmark.edge.station import joining as joining_module
from birthmark.edge.station.codes import JoinCode
from birthmark.edge.station.joining import join
from birthmark.ledger.entry import time_text
from tests.edge.cli.command import Said, done
from tests.support.devices import asked
from tests.support.postgresql import LocalPostgreSQL
from tests.support.server import RUN, Http, RealmDirectory, Server, copy_realm, free_port, tls_context, until


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, int]]:
    """Serve a realm with both planes; also the port of the enrolment plane."""
    realm = copy_realm(tmp_path_factory.mktemp("stations") / "realm")
    port = free_port()
    with realm.settings.open("a", encoding="utf-8") as settings:
        settings.write(f"\n[enrolment-plane]\nport = {port}\n")
    with Server(realm=realm) as server:
        yield server, port


def command(realm: RealmDirectory, *arguments: object) -> Said:
    return done(*arguments, "--settings", realm.settings)


def invite(realm: RealmDirectory, name: str) -> JoinCode:
    said = command(realm, "station", "invite", name, "--site", "Graz", "--line", "L1", "--for", "10m")
    (line,) = [line for line in said.out.splitlines() if line.startswith("code")]
    return JoinCode.parse(line.removeprefix("code"))


def greeted(port: int, context: ssl.SSLContext) -> str:
    """Finish a handshake and wait for what the server says by itself; return the alert, or nothing."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as tls,
    ):
        tls.settimeout(1.0)
        try:
            return tls.recv(4096).decode()
        except TimeoutError:
            return ""


def shaken(port: int, context: ssl.SSLContext) -> str:
    try:
        return greeted(port, context)
    except ssl.SSLError as refused:
        return str(refused.reason)


def anonymous(realm: RealmDirectory) -> ssl.SSLContext:
    return tls_context(None, root=realm.path / "root.crt")


def test_a_station_comes_in_with_a_code_and_nothing_else(
    served: tuple[Server, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, port = served
    realm, url = server.realm, f"https://127.0.0.1:{port}"
    assert "ACCESS_DENIED" in shaken(port, anonymous(realm)), "nobody is invited: no handshake"
    code = invite(realm, "ST50")
    assert until(lambda: shaken(port, anonymous(realm)) == "")
    # Somebody in between has another root: the secret half of the code is not sent.
    with pytest.raises(errors.IntegrityFailure, match="another fingerprint"):
        join(url, JoinCode(secret=code.secret, pin=bytes(16)), tmp_path / "ST50")
    # The station dies when the answer is there and nothing is written.
    with monkeypatch.context() as broken:
        broken.setattr(joining_module, "write_station_directory", lambda *_, **__: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            join(url, code, tmp_path / "ST50")
    assert join(url, code, tmp_path / "ST50") == "ST50"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ST50"], "nothing is left of the way there"
    assert (tmp_path / "ST50/station.key").stat().st_mode & 0o777 == 0o400
    with Station(tmp_path / "ST50") as station:
        assert station.me().client == "station:ST50"
        station.renew()
        assert station.me().last_seq == 1
    with pytest.raises(errors.Unauthenticated, match="used already"):
        join(url, code, tmp_path / "thief")
    shown = command(realm, "station", "show", "ST50", "--json").document
    assert (shown["last_seq"], shown["gaps"], len(shown["credentials"])) == (1, "", 2)
    kinds = [entry["kind"] for entry in realm.entries() if entry.get("client") == "station:ST50"]
    assert kinds == [
        "station-invited", "client-enrolled", "invitation-redeemed", "client-renewed", "refused"
    ]  # fmt: skip


def test_who_is_closed_or_revoked_is_turned_away_in_the_handshake_and_loses_open_connections(
    served: tuple[Server, int],
) -> None:
    server, _ = served
    realm, port = server.realm, server.realm.port
    home = tls_context(realm.station("ST02"))
    with Http(server.address, home) as inside:
        assert inside.get("/v1/me").status == 200
        assert greeted(port, home) == ""
        command(realm, "exposure", "close", "station:ST02", "--reason", "night")
        assert until(lambda: "station:ST02 is closed since" in greeted(port, home))
        assert greeted(port, tls_context(realm.station("ST03"))) == ""
        refused = inside.get("/v1/me")
        assert (refused.status, refused.json["code"]) == (403, "not-permitted")
        assert refused.headers["connection"] == "close"
    # Open for a moment: it closes by itself, with nobody doing anything.
    ends = time_text(SystemClock().now() + timedelta(seconds=6))
    command(realm, "exposure", "open", "station:ST02", "--until", ends, "--reason", "a moment")
    assert until(lambda: greeted(port, home) == "")
    with Http(server.address, home) as inside:
        assert inside.get("/v1/me").status == 200
        assert until(lambda: "is closed since" in greeted(port, home))
        assert inside.get("/v1/me").status == 403
    command(realm, "exposure", "clear", "station:ST02", "--reason", "day")
    assert until(lambda: greeted(port, home) == "")
    with Http(server.address, home) as inside:
        assert inside.get("/v1/me").status == 200
        command(realm, "station", "revoke", "ST02", "--reason", "stolen")
        refused = inside.get("/v1/me")
        assert (refused.status, refused.headers["connection"]) == (403, "close")
    assert until(lambda: "station:ST02 was revoked" in greeted(port, home))


def test_a_closed_plane_says_goodbye_to_everyone_before_they_say_who_they_are(
    served: tuple[Server, int],
) -> None:
    server, _ = served
    realm, home = server.realm, tls_context(server.realm.station("ST03"))
    command(realm, "exposure", "close", "plane:station", "--reason", "inventory")
    assert until(lambda: "ACCESS_DENIED" in shaken(realm.port, home))
    told = [entry["detail"] for entry in realm.entries() if entry.get("request") == "handshake"]
    assert any("plane:station is closed since" in detail for detail in told) or until(
        lambda: any("plane:station is closed" in str(entry.get("detail")) for entry in realm.entries())
    )
    command(realm, "exposure", "clear", "plane:station", "--reason", "done")
    assert until(lambda: shaken(realm.port, home) == "")


@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgresql", marks=pytest.mark.soak)])
def test_a_bucket_holds_for_two_processes_and_after_kill_9(
    tmp_path: Path, request: pytest.FixtureRequest, database: str
) -> None:
    cluster: LocalPostgreSQL | None = (
        request.getfixturevalue("postgresql") if database == "postgresql" else None
    )
    realm = copy_realm(tmp_path / "realm", cluster)
    realm = realm.listening_on(realm.port, max_gang="4", client_per_minute="1", client_burst="12")
    granted, told = 0, 0
    with Server(realm=realm, processes=2) as server:
        for number in range(20):
            if number == 6:
                server.restart()
            _, body = asked(f"R{number:03}")
            with Http(server.address, tls_context(realm.station())) as client:
                answer = client.post(f"/v1/runs/{RUN}/issue", body)
            if answer.status == 429:
                told += 1
                assert 1 <= int(answer.headers["retry-after"]) <= 60
                assert answer.json["retryable"]
            else:
                assert answer.status == 200
                granted += 1
        assert 12 <= granted <= 14, "what the burst and a minute or two give"
        assert server.stop(signal.SIGTERM) == 0
    entries = [one for one in realm.entries() if one.get("request") == "requests"]
    assert sum(int(one["count"]) for one in entries) == told
    assert {one["detail"].split(" ", 1)[1] for one in entries} == {
        "requests of station:ST01 were refused as too fast"
    }
    realm.check()


def test_a_gang_waits_for_its_tokens_and_no_number_is_missing(tmp_path: Path) -> None:
    realm = copy_realm(tmp_path / "realm")
    realm = realm.listening_on(realm.port, max_gang="4", client_per_minute="60", client_burst="4")
    waits: list[str] = []
    with Server(realm=realm), Station(realm.station(), on_wait=lambda why, _: waits.append(why)) as station:
        devices = [Enclave(str(tmp_path / f"d{number}")) for number in range(6)]
        results = station.provision_gang(RUN, [(f"W{n}", one, False) for n, one in enumerate(devices)])
        assert [repr(one) for one in results if isinstance(one, errors.Refusal)] == []
        station.renew()
        for one in devices:
            one.close()
    assert any("60 requests a minute" in why for why in waits)
    shown = command(realm, "station", "show", "ST01", "--json").document
    assert (shown["gaps"], shown["last_seq"] > 3) == ("", True)
    assert realm.check()["notes"] == []


def test_a_restored_backup_stops_the_line(tmp_path: Path) -> None:
    """The service forgot what it told; the station did not, whatever the log becomes afterwards."""
    realm = copy_realm(tmp_path / "realm")
    server = Server(realm=realm)

    def provision(station: str, hardware_id: str) -> None:
        with Station(realm.station(station)) as client, Enclave(str(tmp_path / hardware_id)) as device:
            client.provision(RUN, hardware_id, device)

    with server:
        provision("ST01", "B1")
        server.stop()
        shutil.copy(realm.path / "birthmark.db", tmp_path / "backup.db")
        server.start()
        with Station(realm.station()) as running, Enclave(str(tmp_path / "B2")) as device:
            running.provision(RUN, "B2", device)
            seen = running.checkpoint().size
            server.kill()
            for file in realm.path.glob("birthmark.db*"):
                file.unlink()
            shutil.copy(tmp_path / "backup.db", realm.path / "birthmark.db")
            server.start()
            with pytest.raises(errors.IntegrityFailure, match=f"went back: it had {seen} entries"):
                running.checkpoint()
        with pytest.raises(errors.IntegrityFailure, match="the service's log went back"):
            provision("ST01", "B3")
        assert not any(entry.get("device") == "serial:B3" for entry in realm.entries()), "nothing was asked"
        for number in range(4, 8):
            provision("ST04", f"B{number}")  # one that has seen nothing yet
        assert len(realm.entries()) > seen
        with pytest.raises(errors.IntegrityFailure, match="do not begin with"):
            provision("ST01", "B3")
        with Station(realm.station()) as again, pytest.raises(errors.IntegrityFailure, match="went back"):
            again.renew()
