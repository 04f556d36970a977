"""The help teaches: every command and every option says what it is for."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main

from birthmark.edge.cli.main import command_tree
from tests.edge.cli.command import birthmark, done

EXPECTED = """
init serve status publish check history incident provision version
run-open run-approve run-list run-show run-close
recall-preview recall-propose recall-approve recall-resume recall-withdraw recall-list recall-show
shipment-record shipment-list
device-list device-show device-hold device-rework device-scrap device-token device-certificate
station-enrol station-list station-show station-renew station-revoke
station-invite station-join station-renew-self
exposure-list exposure-open exposure-close exposure-clear
operator-enrol operator-role operator-request operator-fetch operator-list operator-renew operator-revoke
proposal-list proposal-show proposal-approve proposal-withdraw
bootstrap-issue bootstrap-code bootstrap-list bootstrap-revoke
shared-make shared-fetch shared-list shared-show shared-revoke
enrolment-list enrolment-show enrolment-approve enrolment-refuse
fleet-challenge fleet-register fleet-change fleet-suspend fleet-resume fleet-retire
fleet-list fleet-show fleet-crl fleet-hold fleet-devices
authority-list authority-show authority-tree authority-suspend authority-resume authority-retire
ceremony-template ceremony-validate ceremony-rehearse ceremony-perform ceremony-sign ceremony-verify
ceremony-list ceremony-show ceremony-custodian ceremony-store
keys-list keys-master keys-check keys-adopt keys-transport keys-kek keys-accept keys-backup keys-restore
profile-list profile-show profile-lint profile-add
element-list element-show element-lint element-add element-virtual
responder-key responder-enrol responder-revoke
log-checkpoint log-tail log-export log-verify log-proof log-verify-proof
gateway-prepare gateway-rotate gateway-pins gateway-token-key gateway-key-set
proxy-enrol proxy-renew proxy-revoke proxy-list
server-renew config-check database-migrate backup-create backup-verify restore
"""


def walk(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, below in getattr(command, "commands", {}).items():
        if getattr(below, "commands", None):
            yield from walk(below, (*path, name))
        else:
            yield (*path, name), below


COMMANDS = dict(walk(typer.main.get_command(command_tree())))


def test_the_commands_are_the_ones_we_promise() -> None:
    assert {"-".join(path) for path in COMMANDS} == set(EXPECTED.split())


@pytest.mark.parametrize("path", list(COMMANDS), ids="-".join)
def test_a_command_says_what_it_does_and_what_its_options_are(path: tuple[str, ...]) -> None:
    command = COMMANDS[path]
    assert command.help
    for parameter in command.params:
        if parameter.param_type_name == "option" and parameter.name != "help":
            assert parameter.help, f"{path}: {parameter.name}"
    said = done(*path, "--help")
    first = re.sub(r"\s+", " ", command.help.split("\n\n")[0]).strip()
    assert first[:40] in re.sub(r"\s+", " ", said.out)


@pytest.mark.parametrize(
    "group",
    [
        "run",
        "device",
        "station",
        "operator",
        "bootstrap",
        "authority",
        "ceremony",
        "recall",
        "profile",
        "log",
    ],
)
def test_a_group_alone_shows_its_commands(group: str) -> None:
    said = birthmark(group)
    assert said.code == 2
    assert "list" in said.out or "verify" in said.out
    assert "Traceback" not in said.err
