"""The gateway under ten thousand devices that come for the first time, and its benchmark (SPEC H3)."""

import socket
from collections import Counter
from pathlib import Path

import pytest

from bench.devices import Pool
from bench.gateway import CONTACT, gateway_of, measure, meet, released
from bench.installation import installation
from birthmark.adapters.sql.engines import open_database
from birthmark.adapters.sql.log import LogReader
from birthmark.ledger.entry import decode
from birthmark.secret import SecretBytes
from birthmark.settings import load
from tests.support.programs import need
from tests.support.server import until

COUNT, WAVE = 10_000, 2000


def first_seen(settings: Path) -> Counter[str]:
    """Return how often the log says of each device that it was seen first."""
    table = load(settings).database
    secret = None if table.password_file is None else SecretBytes(table.password_file.read_bytes().strip())
    database = open_database(table.url, secret)
    try:
        vkey = (settings.parent / "log.vkey").read_text(encoding="ascii")
        entries = (decode(item.entry) for item in LogReader(database, vkey).entries())
        return Counter(str(one["device"]) for one in entries if one["kind"] == "device-first-seen")
    finally:
        database.close()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.soak
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
@pytest.mark.timeout(1800)
def test_ten_thousand_first_contacts_register_each_device_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: str
) -> None:
    """Every device comes twice in each wave, and three processes of the gateway answer."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    if database == "postgresql":
        need("postgres", "postgresql")
    with installation(database) as site:
        port, root = gateway_of(site, processes=3), site.folder / "root.crt"
        with site.serving(1):
            cars = released(site, Pool().take(COUNT))
            assert until(lambda: listens(port))
            for start in range(0, COUNT, WAVE):
                wave = cars[start : start + WAVE]
                meet([*wave, *reversed(wave)], root, port, CONTACT)
        assert first_seen(site.settings) == Counter(car.id for car in cars)
        site.command("check")


@pytest.mark.soak
def test_the_benchmark_holds_the_gateway_against_the_bare_stack() -> None:
    figures = measure(30)
    assert figures.ratios().keys() == {"handshakes", "first contacts", "again"}
    assert all(clock > 0 and cpu > 0 for clock, cpu in figures.ratios().values())
    assert {len(sittings) for sittings in (*figures.gateway.values(), *figures.bare.values())} == {3}
    assert "first contacts" in figures.text()
