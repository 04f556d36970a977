"""No key of a secure element is anywhere but in the key store and in the element (SPEC B7, D2, D4).

The master keys are known here, and so are all keys that follow from them; probe and session keys are learnt
from the element.  After injections by the programs that are shipped, every one of them, in each form it could
have taken, is looked for in all that was written or can be read of a process, in the memory of the station
while it carries them and afterwards, and, where a token keeps the master keys, in the service's own memory.
"""

import base64
import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from birthmark.element.apdu import CommandAPDU, ResponseAPDU
from birthmark.element.scp03 import establish, read_challenge
from birthmark.ledger.entry import encode
from tests.support.injecting import master
from tests.support.postgresql import LocalPostgreSQL
from tests.support.programs import missing, need
from tests.support.server import group_members, until
from tests.support.softhsm import softhsm_token
from tests.system.element_line import Chip, Line, Pause, element_realm, open_line, oracle_keys, profile
from tests.system.test_secrets import forms, processes

PUT_KEY, PROBE = 4, 8
"""Which commands of an injection carry the final set and the probe key."""
_INITIALIZE_UPDATE = 0x50
_WRITABLE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) rw", re.MULTILINE)
_PAGE = 4096
_EMPTY = bytes(_PAGE)
Needles = Mapping[str, bytes]


def static_keys(chips: Iterable[Chip]) -> dict[str, bytes]:
    """Return the master keys, and what follows from them for each element."""
    found = {f"master key {name}": master(name, 16).reveal() for name in ("maker", "ours")}
    for chip in chips:
        for name, kvn in (("maker", 0x20), ("ours", 0x30)):
            keys = oracle_keys(name, chip.bench.kdd)
            assert {(kvn, number, key) for number, key in keys.items()} <= chip.channel.keys
            found |= {f"{chip.name}: key {kvn:02X}/{number:02X}": key for number, key in keys.items()}
    return found


def passing_keys(chips: Iterable[Chip]) -> dict[str, bytes]:
    """Return the probe keys, and the keys of all sessions."""
    found = {}
    for chip in chips:
        probes = [key for kvn, _, key in chip.channel.keys if kvn == profile().probe_kvn]
        assert len(probes) == 1
        found[f"{chip.name}: probe key"] = probes[0]
        for number, (sent, answered) in enumerate(chip.channel.exchanges):
            command, response = CommandAPDU.decode(sent), ResponseAPDU.decode(answered)
            if command.ins != _INITIALIZE_UPDATE or response.sw != 0x9000:
                continue
            challenge = read_challenge(response.data)
            bench = chip.bench
            static = bench.final(bench.kdd) if challenge.kvn == 0x30 else bench.initial(bench.kdd)
            session = establish(static, profile().mode, command.data, challenge, profile().aid)
            session.verify_card(challenge)
            for name, key in (("ENC", session.s_enc), ("MAC", session.s_mac), ("RMAC", session.s_rmac)):
                found[f"{chip.name}: S-{name} of command {number}"] = key.reveal()
    return found


def found_in(places: Mapping[str, bytes], needles: Needles) -> list[tuple[str, str]]:
    """Return which needle is where."""
    spelled = {name: set(forms(needle)) for name, needle in needles.items()}
    return [
        (place, name)
        for place, content in places.items()
        for name, spellings in spelled.items()
        if any(spelling in content for spelling in spellings)
    ]


def found_in_memory(memory: bytes, needles: Needles) -> list[str]:
    """Return which needles are in a process, as they are, in hexadecimal or in base64 from its beginning."""
    return [
        name
        for name, needle in needles.items()
        if any(
            spelling in memory
            for spelling in (
                needle,
                needle.hex().encode(),
                needle.hex().upper().encode(),
                base64.b64encode(needle).rstrip(b"=")[:-1],
            )
        )
    ]


def memory_of(pid: int) -> bytes:
    """Return all pages that a process can write to and has: what it computes with is nowhere else."""
    maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
    pieces = []
    try:
        memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    except PermissionError:
        missing("the memory of other processes can be read by root alone")
    try:
        for begin, end in _WRITABLE.findall(maps):
            at, last = int(begin, 16), int(end, 16)
            while at < last and (piece := os.pread(memory, min(last - at, 1 << 24), at)):
                pages = (piece[start : start + _PAGE] for start in range(0, len(piece), _PAGE))
                pieces += [page for page in pages if page != _EMPTY]
                at += len(piece)
    finally:
        os.close(memory)
    return b"".join(pieces)


def served_memory(line: Line) -> bytes:
    """Return the memory of the processes that serve: with a token, another one watches over them."""
    return b"".join(map(memory_of, line.server.workers()))


def files_below(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Return everything in a folder, key store and token not left out: there, keys are encrypted."""
    for path in folder.rglob("*"):
        if path.is_file():
            yield str(path), path.read_bytes()


def dumped(line: Line, cluster: LocalPostgreSQL) -> dict[str, bytes]:
    """Return what a database server has of the realm."""
    url = line.realm.database_url.replace("postgresql+psycopg://", "postgresql://")
    dump = [need("pg_dump", "postgresql-client"), "--inserts", "--dbname", url]
    told = subprocess.run(dump, check=True, capture_output=True).stdout
    assert b"element-step".hex().encode() in told, "entries stand there in hexadecimal"
    raw = {
        place: octets
        for name in ("base", "pg_wal")
        for place, octets in files_below(cluster.folder / "data" / name)
    }
    return {"pg_dump": told, "the database server's log": cluster.log.read_bytes(), **raw}


@pytest.mark.timeout(200)
@pytest.mark.parametrize(("database", "keys"), [("sqlite", "software"), ("postgresql", "token")])
def test_no_key_of_an_element_is_anywhere_else(
    request: pytest.FixtureRequest, tmp_path: Path, database: str, keys: str
) -> None:
    with ExitStack() as stack:
        cluster: LocalPostgreSQL | None = None
        if database == "postgresql":
            cluster = request.getfixturevalue("postgresql")
        token = stack.enter_context(softhsm_token(tmp_path)) if keys == "token" else None
        realm = element_realm(tmp_path / "realm", cluster=cluster, token=token)
        line = stack.enter_context(open_line(realm))

        pauses = [Pause(at=2, after=False), Pause(at=PUT_KEY, after=True), Pause(at=PROBE, after=True)]
        chips = [line.chip(pause=pause) for pause in pauses]
        program = line.program(chips)
        line.await_all(pauses)
        station, service = [memory_of(program.pid)], [served_memory(line)]
        places = processes([program.pid, *group_members(line.server.pid)])
        under_way = {
            f"{one.name}: the command it stopped at": one.channel.exchanges[-1][0] for one in chips[1:]
        }
        for pause in pauses[1:]:
            pause.go_on.set()
        until(lambda: len(line.results()) == 2)
        # The program still waits for the first one.
        station.append(memory_of(program.pid))
        pauses[0].go_on.set()
        said = program.finish()
        records = line.records()
        for chip in chips:
            assert "released" in said[chip.name]
            assert chip.holds_what_it_has_to(records[chip.device])
        service.append(served_memory(line))
        places |= dict(files_below(tmp_path))
        assert line.server.stop() == 0
        places |= dict(files_below(tmp_path))
        if cluster is not None:
            places |= dumped(line, cluster)
        places |= {f"entry {n}": encode(entry) for n, entry in enumerate(realm.entries())}
    static, passing = static_keys(chips), passing_keys(chips)

    # The search finds what is there, or it would prove nothing.
    assert len(found_in_memory(station[0], under_way)) == len(under_way)
    assert len(found_in_memory(service[0], under_way)) == len(under_way)
    assert found_in(places, {"key diversification data": chips[1].bench.kdd})
    planted = {name: b"... " + base64.b64encode(b"?" + key) for name, key in (static | passing).items()}
    assert len(found_in(planted, static | passing)) >= len(planted)

    assert found_in(places, static | passing) == []
    for memory in station:
        assert found_in_memory(memory, static | passing) == []
    if token is None:
        # A software store keeps them in this process: there the search has to find them.
        masters = {name: key for name, key in static.items() if name.startswith("master")}
        assert len(found_in_memory(service[-1], masters)) == len(masters)
    else:
        # The keys of a session are there as long as its dialogue lives, and no longer.
        there = set(found_in_memory(service[0], static | passing))
        assert there <= set(passing)
        assert any("S-ENC" in name for name in there)
        assert found_in_memory(service[-1], static | passing) == []
