"""The published values of tests/vectors/scp03, and keys made of them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from birthmark.element.apdu import CommandAPDU, ResponseAPDU
from birthmark.element.keyset import SoftwareKeys
from birthmark.element.scp03 import Challenge, Mode, Session, establish, read_challenge
from birthmark.secret import SecretBytes

_FOLDER = Path(__file__).parents[1] / "vectors" / "scp03"

WELL_KNOWN = bytes(range(0x40, 0x50))
"""The development key of most elements."""


def document(name: str) -> Any:
    """Return one file of values."""
    return json.loads((_FOLDER / f"{name}.json").read_text())


def secret(text: str) -> SecretBytes:
    return SecretBytes(bytes.fromhex(text))


def key_set(enc: bytes, mac: bytes | None = None, dek: bytes | None = None) -> SoftwareKeys:
    """Return a set; keys that are left out are the first one."""
    return SoftwareKeys(enc=SecretBytes(enc), mac=SecretBytes(mac or enc), dek=SecretBytes(dek or enc))


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One command of a recorded session."""

    plain: CommandAPDU
    wrapped: bytes
    response: ResponseAPDU | None
    """As it came; None if it was not recorded."""
    answer: ResponseAPDU | None
    """In clear."""
    overpadded: bool
    """The element padded the answer with a block more than it has to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A session of somebody else's host, in places with somebody else's card."""

    name: str
    keys: SoftwareKeys
    aid: bytes | None
    """Of the security domain, where the card challenge follows from it."""
    initialize_update: bytes | None
    """As it was sent; None where only the challenges are known."""
    host_challenge: bytes
    challenge: Challenge
    external_authenticate: bytes
    exchanges: tuple[Exchange, ...]

    def establish(self) -> Session:
        return establish(self.keys, self.challenge.mode, self.host_challenge, self.challenge, self.aid)


def recorded_sessions() -> list[Recorded]:
    lines = (_FOLDER / "sessions.jsonl").read_text().splitlines()
    return [_session(json.loads(line)) for line in lines]


def _session(line: dict[str, Any]) -> Recorded:
    keys = [bytes.fromhex(line["keys"][role]) for role in ("enc", "mac", "dek")]
    sent = bytes.fromhex(line["initialize_update"]) if "initialize_update" in line else None
    if sent is None:
        host, card = bytes.fromhex(line["host_challenge"]), bytes.fromhex(line["card_challenge"])
        challenge = made_up(card)
    else:
        host = CommandAPDU.decode(sent).data
        challenge = read_challenge(bytes.fromhex(line["challenge"]))
    return Recorded(
        name=line["name"],
        keys=key_set(*keys),
        aid=bytes.fromhex(line["aid"]) if line["aid"] else None,
        initialize_update=sent,
        host_challenge=host,
        challenge=challenge,
        external_authenticate=bytes.fromhex(line["external_authenticate"]),
        exchanges=tuple(_exchange(command) for command in line["commands"]),
    )


def _exchange(command: dict[str, Any]) -> Exchange:
    def response(key: str) -> ResponseAPDU | None:
        return ResponseAPDU.decode(bytes.fromhex(command[key])) if key in command else None

    return Exchange(
        plain=CommandAPDU.decode(bytes.fromhex(command["plain"])),
        wrapped=bytes.fromhex(command["wrapped"]),
        response=response("response"),
        answer=response("answer"),
        overpadded="overpadded" in command,
    )


def made_up(card_challenge: bytes) -> Challenge:
    """Return a random challenge as an element would send it, without its cryptogram."""
    mode = Mode(len(card_challenge))
    return Challenge(
        key_diversification_data=bytes(10),
        kvn=0x30,
        i=0x60 | (mode is Mode.S16),
        card_challenge=card_challenge,
        card_cryptogram=bytes(mode),
        sequence_counter=None,
    )
