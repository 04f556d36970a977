"""An OpenPGP card of others (smartcard-app-openpgp) behind a socket; runs with .tools/peers/openpgp.

Started with a directory, it keeps the card there (ZODB: each command is committed before it is answered, so a
kill is a power cut), says its port on standard output, and answers one client after the other in vpcd's
framing: messages of one octet are about power, all others are commands.
"""

import importlib
import socket
import sys
import threading
from typing import Any

_ATR = 4
"""The message that asks for the answer to reset; the others are power off, on and reset."""
_FILE = b"\x12\x34"
"""Identifier of the application's file: it is selected by name, any will do."""


def opened(directory: str) -> tuple[Any, Any]:
    """Return the card in a directory, and its application; both are made if they are missing."""
    # By name: our own type checker does not see this environment.
    smartcard = importlib.import_module("smartcard")
    utils = importlib.import_module("smartcard.utils")
    storage = importlib.import_module("ZODB.FileStorage").FileStorage(f"{directory}/card.fs")
    database = importlib.import_module("ZODB.DB").DB(storage=storage, pool_size=1)
    root = database.open(transaction_manager=utils.transaction_manager).root
    openpgp = importlib.import_module("smartcard.app.openpgp").OpenPGP
    with utils.transaction_manager:
        if not hasattr(root, "card"):
            root.card = smartcard.Card(name=b"card of a test")
            application = openpgp(identifier=_FILE)
            application.activateSelf()
            root.application = application
            root.card.createFile(root.card.traverse((smartcard.MASTER_FILE_IDENTIFIER,)), application)
        card, application = root.card, root.application
    card.setupVolatileSurvivors()
    application.setupVolatileSurvivors()
    return card, application


def ready(application: Any) -> None:
    """Wait until the card's thread has keys to give: a command for which it has none fails."""
    wait = threading.Event()
    while None in application._v_s_keygen_key_list:  # noqa: SLF001  # there is no other way to see it
        wait.wait(0.01)


def exactly(connection: socket.socket, count: int) -> bytes:
    """Return so many octets, or fewer when the client has hung up."""
    octets = b""
    while len(octets) < count:
        piece = connection.recv(count - len(octets))
        if not piece:
            break
        octets += piece
    return octets


def serve(connection: socket.socket, card: Any, application: Any) -> None:
    """Answer one client until it hangs up."""
    while True:
        size = exactly(connection, 2)
        if len(size) < 2:
            return
        message = exactly(connection, int.from_bytes(size, "big"))
        if len(message) == 1:
            if message[0] != _ATR:
                card.clearVolatile()
                continue
            answer = b"\x3b\x80\x80\x01\x01"
        else:
            ready(application)
            answer = bytes(card.runAPDU(bytearray(message)))
        connection.sendall(len(answer).to_bytes(2, "big") + answer)


def main() -> None:
    """Serve the card until somebody ends us."""
    card, application = opened(sys.argv[1])
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], flush=True)  # noqa: T201  # that is how the port is told
        while True:
            connection, _ = server.accept()
            with connection:
                serve(connection, card, application)


if __name__ == "__main__":
    main()
