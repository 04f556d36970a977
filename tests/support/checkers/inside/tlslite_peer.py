"""tlslite-ng as a client that does what no client does; runs with .tools/peers/tlslite.

Standard input has one question, in JSON: where the server is, a client's chain and key (PEM), and the names
of deeds.  Each deed is one connection.  Standard output has one line of JSON: by name, what the server made
of it; without deeds, their names.
"""

import importlib
import json
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

# By name: our own type checker does not see this environment.
api: Any = importlib.import_module("tlslite.api")
constants: Any = importlib.import_module("tlslite.constants")
messages: Any = importlib.import_module("tlslite.messages")
extensions: Any = importlib.import_module("tlslite.extensions")
errors: Any = importlib.import_module("tlslite.errors")
settings_module: Any = importlib.import_module("tlslite.handshakesettings")

CONTENT = constants.ContentType
TYPE = constants.HandshakeType
SECONDS = 20.0
REQUEST = b"GET /v1/me HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"

Mutate = Callable[[Any, Any], Iterator[Any]]
"""Gets the connection and a message about to be sent; yields those to be sent in its place."""


def handshake(octets: bytes) -> Any:
    """Return a handshake message as it is."""
    return messages.Message(CONTENT.handshake, bytearray(octets))


def is_of(message: Any, kind: int) -> bool:
    """Return whether it is a handshake message of this type."""
    return bool(message.contentType == CONTENT.handshake and message.write()[0] == kind)


def framed(kind: int, body: bytes) -> bytes:
    """Return a handshake message's octets (RFC 8446 section 4)."""
    return bytes([kind]) + len(body).to_bytes(3, "big") + body


def certificates(*ders: bytes) -> bytes:
    """Return a Certificate message (RFC 8446 section 4.4.2)."""
    entries = b"".join(len(der).to_bytes(3, "big") + der + b"\0\0" for der in ders)
    return framed(TYPE.certificate, b"\0" + len(entries).to_bytes(3, "big") + entries)


def replaced(kind: int, *others: Callable[[Any], Any]) -> Mutate:
    """Send these in place of a message."""

    def mutate(_connection: Any, message: Any) -> Iterator[Any]:
        if is_of(message, kind):
            for other in others:
                yield other(message)
        else:
            yield message

    return mutate


def same(message: Any) -> Any:
    """Send it as it is."""
    return message


def flipped(message: Any) -> Any:
    """Return it with its last bit turned over."""
    octets = bytearray(message.write())
    octets[-1] ^= 1
    return handshake(bytes(octets))


def constant(octets: bytes) -> Callable[[Any], Any]:
    """Send this, whatever it was."""
    return lambda _message: handshake(octets)


def alert(level: int, description: int) -> Callable[[Any], Any]:
    """Send an alert."""
    return lambda _message: messages.Alert().create(description, level)


def data(octets: bytes) -> Callable[[Any], Any]:
    """Send application data."""
    return lambda _message: messages.ApplicationData().create(bytearray(octets))


def of_chain(make: Callable[[list[bytes]], bytes]) -> Callable[[Any], Any]:
    """Send a Certificate message made from the true chain."""

    def other(message: Any) -> Any:
        return handshake(make([bytes(entry.certificate.bytes) for entry in message.certificate_list]))

    return other


def hello_with(*more: Any) -> Mutate:
    """Send a ClientHello with further extensions, before the last."""

    def mutate(_connection: Any, message: Any) -> Iterator[Any]:
        if is_of(message, TYPE.client_hello):
            message.extensions[-1:-1] = more
        yield message

    return mutate


def bogus_ticket(_connection: Any, message: Any) -> Iterator[Any]:
    """Offer a session nobody gave, with early data (RFC 8446 section 4.2.10)."""
    if not is_of(message, TYPE.client_hello):
        yield message
        return
    identity = extensions.PskIdentity().create(bytearray(b"x" * 64), 1)
    offered = extensions.PreSharedKeyExtension().create([identity], [bytearray(b"y" * 32)])
    early = extensions.TLSExtension(extType=constants.ExtensionType.early_data).create(bytearray())
    modes = extensions.PskKeyExchangeModesExtension().create([1])
    known = {constants.ExtensionType.psk_key_exchange_modes, constants.ExtensionType.pre_shared_key}
    message.extensions[:] = [one for one in message.extensions if one.extType not in known]
    message.extensions += [modes, early, offered]
    yield message
    yield messages.ApplicationData().create(bytearray(b"early" * 100))


LARGE = 1 << 20
IN_HANDSHAKE: dict[str, Mutate] = {
    "a good client": lambda _connection, message: iter([message]),
    "a finished that is wrong": replaced(TYPE.finished, flipped),
    "a finished that is short": replaced(TYPE.finished, constant(framed(TYPE.finished, b"x"))),
    "no finished, but a request": replaced(TYPE.finished, data(REQUEST)),
    "a signature that is wrong": replaced(TYPE.certificate_verify, flipped),
    "a signature of no octets": replaced(
        TYPE.certificate_verify, constant(framed(TYPE.certificate_verify, b"\x04\x03\0\0"))
    ),
    "a signature with sha-1": replaced(
        TYPE.certificate_verify, constant(framed(TYPE.certificate_verify, b"\x02\x03\0\x08" + b"x" * 8))
    ),
    "a signature longer than it is": replaced(
        TYPE.certificate_verify, constant(framed(TYPE.certificate_verify, b"\x04\x03\xff\xff" + b"x" * 70))
    ),
    "no signature": replaced(TYPE.certificate_verify),
    "no certificate message": replaced(TYPE.certificate),
    "an empty certificate message": replaced(TYPE.certificate, constant(certificates())),
    "a certificate message twice": replaced(TYPE.certificate, same, same),
    "a certificate of garbage": replaced(TYPE.certificate, constant(certificates(b"\x30\x03garbage"))),
    "a certificate of no octets": replaced(TYPE.certificate, constant(certificates(b""))),
    "a certificate cut short": replaced(
        TYPE.certificate, of_chain(lambda chain: certificates(chain[0][:-9]))
    ),
    "a certificate with a tail": replaced(
        TYPE.certificate, of_chain(lambda chain: certificates(chain[0] + b"x"))
    ),
    "a list longer than it is": replaced(
        TYPE.certificate, constant(framed(TYPE.certificate, b"\0\xff\xff\xff\0\0\x01x\0\0"))
    ),
    "a chain of 100": replaced(
        TYPE.certificate, of_chain(lambda chain: certificates(chain[0], *[chain[-1]] * 99))
    ),
    "a chain of a megabyte": replaced(
        TYPE.certificate, of_chain(lambda chain: certificates(*chain, b"\x30\x83" + bytes(LARGE)))
    ),
    "a message of sixteen megabytes": replaced(
        TYPE.certificate, constant(bytes([TYPE.certificate]) + b"\xff\xff\xff" + bytes(LARGE))
    ),
    "a fatal alert in the middle": replaced(TYPE.certificate_verify, alert(2, 80)),
    "a warning in the middle": replaced(TYPE.certificate_verify, alert(1, 90), same),
    "a farewell in the middle": replaced(TYPE.certificate_verify, alert(1, 0)),
    "an unknown alert": replaced(TYPE.certificate_verify, alert(7, 255)),
    "a request in the middle": replaced(TYPE.certificate_verify, data(REQUEST)),
    "an unknown message": replaced(TYPE.certificate_verify, constant(framed(99, b"?"))),
    "the messages of another order": replaced(
        TYPE.certificate, constant(framed(TYPE.finished, b"x" * 48)), same
    ),
    "an extension twice": hello_with(
        *[extensions.TLSExtension(extType=0xFAFA).create(bytearray(b"x"))] * 2,
    ),
    "a known extension twice": hello_with(extensions.SupportedVersionsExtension().create([(3, 4)])),
    "an extension of 60 000 octets": hello_with(
        extensions.TLSExtension(extType=0xFAFA).create(bytearray(60_000))
    ),
    "early data with a ticket of nobody": bogus_ticket,
}


class Client(api.TLSConnection):  # type: ignore[misc]  # it has no types here
    """A client that sends something else than it should."""

    mutate: Mutate = staticmethod(IN_HANDSHAKE["a good client"])

    def _sendMsg(self, msg: Any, *rest: Any, **named: Any) -> Iterator[Any]:  # noqa: N802  # tlslite's name
        for other in self.mutate(self, msg):
            yield from super()._sendMsg(other, *rest, **named)


def send(client: Any, message: Any) -> None:
    """Send one message now."""
    for _ in client._sendMsg(message):  # noqa: SLF001  # what its users are not meant to do
        pass


def renegotiate(client: Any) -> None:
    """Say hello again."""
    hello = messages.ClientHello().create((3, 3), bytearray(32), bytearray(), [0x1301], extensions=[])
    send(client, hello)


def update_keys(client: Any) -> None:
    """Ask for new keys two thousand times, and hear none of the answers."""
    for _ in range(2000):
        for _ in client.send_keyupdate_request(1):
            pass
    client.write(REQUEST)


def update_keys_wrongly(client: Any) -> None:
    """Ask for new keys in a way there is none."""
    send(client, messages.KeyUpdate().create(2))


def empty_records(client: Any) -> None:
    """Send records with nothing in them."""
    for _ in range(1000):
        send(client, messages.ApplicationData().create(bytearray()))
    client.write(REQUEST)


def large_record(client: Any) -> None:
    """Send a record of 2^14 + 1 octets (RFC 8446 section 5.1)."""
    client.recordSize = 1 << 15
    layer = client._recordLayer  # noqa: SLF001  # as above
    layer.send_record_limit = 1 << 15
    send(client, messages.ApplicationData().create(bytearray((1 << 14) + 1)))


def corrupt_record(client: Any) -> None:
    """Send a record that nobody can decrypt."""
    client.sock.socket.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))


def farewell(client: Any) -> None:
    """Say goodbye, and ask all the same."""
    send(client, messages.Alert().create(0, 1))
    client.write(REQUEST)


AFTERWARDS: dict[str, Callable[[Any], None]] = {
    "a second hello": renegotiate,
    "two thousand new keys": update_keys,
    "new keys of no kind": update_keys_wrongly,
    "a thousand empty records": empty_records,
    "a record that is too large": large_record,
    "a record of zeros": corrupt_record,
    "a second finished": lambda client: send(client, handshake(framed(TYPE.finished, b"x" * 48))),
    "a farewell and a request": farewell,
}


def heard(client: Any) -> str:
    """Return what the server answered: a status, an alert, or that it closed."""
    try:
        answer = bytes(client.read(max=12, min=12))
    except errors.TLSRemoteAlert as told:
        return f"alert {told.description}"
    except (errors.TLSError, OSError) as lost:
        return f"closed ({type(lost).__name__})"
    return f"status {answer[9:12].decode()}" if answer else "closed"


def do(name: str, address: tuple[str, int], chain: Any, key: Any) -> str:
    """Do one deed and return what the server made of it."""
    settings = settings_module.HandshakeSettings()
    settings.minVersion = settings.maxVersion = (3, 4)
    settings.keyShares = ["secp256r1"]
    with socket.create_connection(address, SECONDS) as plain:
        client = Client(plain)
        client.mutate = IN_HANDSHAKE.get(name, IN_HANDSHAKE["a good client"])
        try:
            client.handshakeClientCert(chain, key, settings=settings)
            if name in AFTERWARDS:
                AFTERWARDS[name](client)
            else:
                client.write(REQUEST)
        except errors.TLSRemoteAlert as told:
            return f"alert {told.description}"
        except (errors.TLSError, OSError):
            pass  # it may have said why
        return heard(client)


def main() -> None:
    """Do all that is asked for."""
    question = json.load(sys.stdin)
    if not question.get("deeds"):
        sys.stdout.write(json.dumps({"deeds": [*IN_HANDSHAKE, *AFTERWARDS]}))
        return
    chain = api.X509CertChain()
    chain.parsePemList(question["chain"])
    key = api.parsePEMKey(question["key"], private=True)
    address = (question["host"], question["port"])
    sys.stdout.write(json.dumps({name: do(name, address, chain, key) for name in question["deeds"]}))


if __name__ == "__main__":
    main()
