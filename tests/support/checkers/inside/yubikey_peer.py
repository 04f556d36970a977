"""Yubico's host of a security domain (yubikit) at a reader; runs with .tools/peers/yubikey.

The question names the reader, the form of commands and the steps; the answer has what came of each step: its
value, or the class of what was raised, with the status word if the card said one.
"""

import importlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any


def main() -> None:
    """Answer the question on standard input."""
    question = json.load(sys.stdin)
    # By name: our own type checker does not see this environment.
    domain = importlib.import_module("yubikit.securitydomain")
    connection = connected(question["reader"], extended=question["extended"])
    session = domain.SecurityDomainSession(connection)
    sys.stdout.write(json.dumps([came_of(session, step) for step in question["steps"]]) + "\n")
    connection.close()


def connected(name: str, *, extended: bool) -> Any:
    """Return a connection to the card in a reader, which nobody else has meanwhile."""
    pcsc = importlib.import_module("ykman.pcsc")
    (reader,) = [
        found for found in importlib.import_module("smartcard.System").readers() if found.name == name
    ]
    exclusive = importlib.import_module("smartcard.ExclusiveConnectCardConnection")
    nothing_there = importlib.import_module("smartcard.Exceptions").SmartcardException
    patience, connection = 100, None
    while connection is None:  # pcscd looks for cards a few times a second
        try:
            connection = pcsc.ScardSmartCardConnection(
                exclusive.ExclusiveConnectCardConnection(reader.createConnection())
            )
        except nothing_there:
            if patience == 0:
                raise
            patience -= 1
            time.sleep(0.1)
    # It takes a card of our ATR for one in the field of a contactless reader, and is brief with those.
    transport = importlib.import_module("yubikit.core").TRANSPORT
    connection._transport = transport.USB if extended else transport.NFC  # noqa: SLF001  # no other way
    return connection


def came_of(session: Any, step: dict[str, Any]) -> dict[str, Any]:
    """Carry out one step."""
    try:
        return {"value": ACTIONS[step["do"]](session, step)}
    except Exception as refused:  # noqa: BLE001  # whatever it is, it is the answer
        return {"refused": type(refused).__name__, "sw": getattr(refused, "sw", None)}


def authenticate(session: Any, step: dict[str, Any]) -> None:
    """Open a session at level 33."""
    scp = importlib.import_module("yubikit.core.smartcard.scp")
    session.authenticate(scp.Scp03KeyParams(ref=key_ref(step), keys=static_keys(step)))


def put_key(session: Any, step: dict[str, Any]) -> None:
    """Load a set; what the card answers is compared with the check values."""
    session.put_key(key_ref(step), static_keys(step), step.get("replace", 0))


def key_ref(step: dict[str, Any]) -> Any:
    """Return the name of an SCP03 set."""
    scp = importlib.import_module("yubikit.core.smartcard.scp")
    return scp.KeyRef(scp.ScpKid.SCP03, step["kvn"])


def static_keys(step: dict[str, Any]) -> Any:
    """Return a set."""
    scp = importlib.import_module("yubikit.core.smartcard.scp")
    return scp.StaticKeys(*(bytes.fromhex(key) for key in step["keys"]))


ACTIONS: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "authenticate": authenticate,
    "put": put_key,
    "keys": lambda session, _step: sorted((key.kvn, key.kid) for key in session.get_key_information()),
    "recognition": lambda session, _step: bytes(session.get_card_recognition_data()).hex(),
    "store": lambda session, step: session.store_data(bytes.fromhex(step["data"])),
    "get": lambda session, step: bytes(session.get_data(step["tag"])).hex(),
    "delete": lambda session, step: session.delete_key(kvn=step["kvn"]),
}

main()
