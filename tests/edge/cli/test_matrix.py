"""Every command × every role: who may do what is the table, and a refusal is an entry (SPEC K1).

Every command of the tree that acts for somebody (it has ``--as``) needs a line here that says which
capability it takes and how it is given so that nothing but who asks stands in its way.  A command without one
fails.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import typer

from birthmark import app
from birthmark.edge.application import Application
from birthmark.edge.cli.main import command_tree
from birthmark.floor.clients import CAPABILITIES, Capability, Role
from birthmark.ledger.entry import decode
from birthmark.settings import Settings
from tests.edge.cli.command import Place, Said, birthmark, done

PERSONS = {
    "operator": Role.OPERATOR,
    "line-lead": Role.LINE_LEAD,
    "officer": Role.OFFICER,
    "auditor": Role.AUDITOR,
    "gone": Role.OFFICER,
}
"""Who acts; ``gone`` was an officer and is revoked."""


@dataclass(frozen=True, slots=True)
class Act:
    """How a command is given, and what it takes."""

    needs: Capability
    arguments: Callable[[Path], tuple[object, ...]]


def act(needs: Capability, *arguments: object) -> Act:
    return Act(needs, lambda _place: arguments)


def with_file(needs: Capability, name: str, text: str, *arguments: object) -> Act:
    def given(place: Path) -> tuple[object, ...]:
        (place / name).write_text(text)
        return tuple(place / name if one == name else one for one in arguments)

    return Act(needs, given)


def out(needs: Capability, *arguments: object) -> Act:
    def given(place: Path) -> tuple[object, ...]:
        shutil.rmtree(place / "out", ignore_errors=True)
        return (*arguments, "--out", place / "out")

    return Act(needs, given)


DEVICE, REASON = "vin:1M8GDM9AXKP042788", ("--reason", "a test")
PUBLIC_KEY = """-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEaxfR8uEsQkf4vOblY6RA8ncDfYEt
6zOg9KE5RdiYwpZP40Li/hp/m47n60p8D54WK84zV2sxXs7LtkBoN79R9Q==
-----END PUBLIC KEY-----
"""
"""The base point of P-256."""
ACTS: dict[str, Act] = {
    "run open": Act(
        Capability.OPEN_RUN,
        lambda place: (
            f"RX-{place.name[-20:]}",
            *("--product", "T1", "--station", "ST01", "--hardware-id-kind", "vin"),
            *("--quantity", "1", "--hours", "1"),
        ),
    ),
    "run approve": act(Capability.APPROVE_RUN, "R0"),
    "run close": act(Capability.CLOSE_RUN, "R0", *REASON),
    "device hold": act(Capability.HOLD, DEVICE, *REASON),
    "device rework": act(Capability.REWORK, DEVICE, *REASON),
    "device scrap": act(Capability.SCRAP, DEVICE, *REASON),
    "recall propose": act(
        Capability.PROPOSE_RECALL, "--run", "R0", "--reason", "keyCompromise", "--because", "a test"
    ),
    "recall resume": act(Capability.PROPOSE_RECALL, "rc-0000000000"),
    "recall withdraw": act(Capability.PROPOSE_RECALL, "rc-0000000000", "--because", "a test"),
    "shipment record": with_file(
        Capability.RECORD_SHIPMENT, "devices.txt", f"{DEVICE}\n", "devices.txt", "--consignment", "C1"
    ),
    "station revoke": act(Capability.REVOKE_CLIENT, "ST09", *REASON),
    "station enrol": out(Capability.ENROL_STATION, "ST02", "--site", "s", "--line", "l"),
    "station renew": out(Capability.ENROL_STATION, "ST01"),
    "operator revoke": act(Capability.REVOKE_PERSON, "gone", *REASON),
    "operator enrol": out(Capability.CHANGE_ROLES, "dora", "--role", "auditor"),
    "operator renew": out(Capability.CHANGE_ROLES, "anna"),
    "operator role": act(Capability.CHANGE_ROLES, "gone", "--role", "operator", *REASON),
    "bootstrap revoke": act(Capability.REVOKE_CLIENT, "b0", *REASON),
    "bootstrap issue": out(Capability.ENROL_STATION, "--name", "b1", "--hardware-id", DEVICE),
    "bootstrap code": Act(
        Capability.ENROL_STATION,
        lambda place: (f"b-{place.name[-20:]}", "--hardware-id", DEVICE, "--run", "R0"),
    ),
    "shared make": Act(
        Capability.SHARE_CREDENTIAL,
        lambda place: (
            f"s-{place.name[-20:]}",
            *("--run", "R0", "--quantity", "1", "--hours", "1", "--url", "https://b.example:8445"),
            *("--out", place / "credentials.zip"),
        ),
    ),
    "shared revoke": act(Capability.REVOKE_CLIENT, "s0", *REASON),
    "enrolment approve": act(Capability.APPROVE_ENROLMENT, "bootstrap:b0/code", *REASON),
    "enrolment refuse": act(Capability.APPROVE_ENROLMENT, "bootstrap:b0/code", *REASON),
    "server renew": act(Capability.ENROL_SERVICE),
    "gateway token-key": act(Capability.KEEP_KEYS, "gateway-tokens"),
    "proxy enrol": out(Capability.ENROL_SERVICE, "edge-1"),
    "proxy revoke": act(Capability.REVOKE_CLIENT, "edge-0", *REASON),
    "responder enrol": with_file(
        Capability.ENROL_SERVICE, "r.pem", PUBLIC_KEY, "--authority", "nobody", "--key", "r.pem"
    ),
    "authority suspend": act(Capability.CHANGE_AUTHORITY, "nobody", *REASON),
    "authority resume": act(Capability.CHANGE_AUTHORITY, "nobody", *REASON),
    "authority retire": act(Capability.CHANGE_AUTHORITY, "nobody", *REASON),
    "proposal withdraw": act(Capability.READ, "pp-0000000000", *REASON),
    "fleet challenge": with_file(
        Capability.CHANGE_FLEET, "root.der", "none", "nobody", "--certificate", "root.der"
    ),
    "fleet register": with_file(
        Capability.CHANGE_FLEET, "ver.der", "none", "nobody", "--verification", "ver.der"
    ),
    "fleet change": act(Capability.CHANGE_FLEET, "nobody", "--naming", "uri", *REASON),
    "fleet suspend": act(Capability.CHANGE_FLEET, "nobody", *REASON),
    "fleet resume": act(Capability.CHANGE_FLEET, "nobody", *REASON),
    "fleet retire": act(Capability.CHANGE_FLEET, "nobody", *REASON),
    "fleet crl": with_file(Capability.CHANGE_FLEET, "list.crl", "none", "nobody", "list.crl"),
    "fleet hold": act(Capability.MEET_DEVICES, "serial:NOBODY", *REASON),
    "keys adopt": act(Capability.KEEP_KEYS, "nokey", "--purpose", "log", "--users", "u"),
    "keys transport": out(Capability.KEEP_KEYS, "carry"),
    "keys kek": act(Capability.KEEP_KEYS, "kek-1"),
    "keys master": act(Capability.KEEP_KEYS, "master-1", "--kind", "master-aes-128"),
    "exposure open": act(Capability.SET_EXPOSURE, "station:ST01", "--for", "8h", *REASON),
    "exposure close": act(Capability.SET_EXPOSURE, "station:ST01", *REASON),
    "exposure clear": act(Capability.SET_EXPOSURE, "station:ST01", *REASON),
    "station invite": act(Capability.ENROL_STATION, "ST05", "--site", "s", "--line", "l"),
}
ELSEWHERE = {
    "recall approve": "what is approved must be there first: tests/services/test_recall.py",
    "proposal approve": "likewise: tests/services/test_proposals.py",
    "responder revoke": "as station revoke; a responder has to be there: test_responders.py",
    "gateway prepare": "needs a gateway in the settings: tests/edge/cli/test_gateways.py",
    "proxy renew": "as proxy enrol; a proxy has to be there: tests/edge/cli/test_gateways.py",
    "keys accept": "needs another store's share: test_keys.py",
    "keys backup": "needs a KEK of a token: test_keys.py",
    "keys restore": "likewise: test_keys.py",
    "ceremony perform": "needs custodians: test_ceremonies.py",
    "config check": "reads, and says who would act",
    "incident": "reads; proposes as recall propose does: test_incidents.py",
    "restore": "writes into an empty database, which knows nobody: tests/system/test_backup.py",
}
"""Commands that a cell cannot stand for, and where they are held to the table."""


def acting() -> set[str]:
    """Return the commands that act for somebody."""

    def walk(command: Any, path: tuple[str, ...]) -> Iterator[str]:
        for name, below in getattr(command, "commands", {}).items():
            yield from walk(below, (*path, name))
        if any("--as" in getattr(parameter, "opts", ()) for parameter in command.params):
            yield " ".join(path)

    return set(walk(typer.main.get_command(command_tree()), ()))


class Kept:
    """Builds the application once, for all commands."""

    def __init__(self) -> None:
        self._built: Application | None = None

    def build(self, settings: Settings) -> Application:
        if self._built is None:
            self._built = app.build(settings)
        return replace(self._built, close=lambda: None)

    def close(self) -> None:
        assert self._built is not None
        self._built.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(app, name)


class Realm:
    """A realm with a person of each role, a run and a device."""

    def __init__(self, place: Place, kept: Kept) -> None:
        self.place, self.kept = place, kept

    def __call__(self, who: str, command: str, *arguments: object) -> Said:
        person = self.place.directory / "operators" / who
        words = (*command.split(), *arguments, "--as", person, "--settings", self.place.settings)
        return birthmark(*words, loader=lambda: self.kept)  # type: ignore[arg-type,return-value]  # a factory of its own

    def last(self) -> dict[str, Any]:
        log = self.kept.build(None).log  # type: ignore[arg-type]  # built long since
        *_, last = log.entries(log.size() - 1)
        return dict(decode(last.entry))


@pytest.fixture(scope="module")
def realm(made_realm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Realm]:
    directory = tmp_path_factory.mktemp("matrix") / "nord"
    shutil.copytree(made_realm, directory)
    place = Place(directory)
    anna = ("--as", directory / "operators/anna")
    for name, role in PERSONS.items():
        place.done("operator", "enrol", name, "--role", role, "--out", directory / "operators" / name, *anna)
    assert place.open_run("R0", "--quantity", "1", "--hours", "1", *anna).code == 0
    done("operator", "revoke", "gone", "--reason", "left", "--settings", place.settings, *anna)
    kept = Kept()
    yield Realm(place, kept)
    kept.close()


def test_every_command_that_acts_has_a_line() -> None:
    commands = acting()
    assert commands - ACTS.keys() - ELSEWHERE.keys() == set(), "say what a new command takes"
    assert ACTS.keys() - commands == set(), "a command is gone"
    assert ELSEWHERE.keys() - commands == set(), "a command is gone"


@pytest.mark.parametrize("command", ACTS)
@pytest.mark.parametrize("who", PERSONS)
def test_a_command_does_what_the_table_lets_this_role_do(
    realm: Realm, tmp_path: Path, who: str, command: str
) -> None:
    wanted = ACTS[command]
    said = realm(who, command, *wanted.arguments(tmp_path))
    if who != "gone" and wanted.needs in CAPABILITIES[PERSONS[who]]:
        assert "may not" not in said.err, said
        assert said.code != 70, said
        return
    assert said.code == 77, said
    last = realm.last()
    assert (last["kind"], last["actor"]) == ("refused", f"operator:{who}"), (said, last)
    assert last["code"] == ("unauthenticated" if who == "gone" else "not-permitted")
