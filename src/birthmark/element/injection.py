"""Put a key set into a secure element, and have it proved there (SPEC D1, D4, D5).

add → prove → delete, as one dialogue that can be begun anew whatever became of it before:

1.  The security domain is selected and a session with the initial set is wanted.  After a dialogue that broke
    off, the final set is asked for first: the element says where it stands, nobody guesses.
2.  The element has shown the initial set's K-MAC.  PUT KEY carries the final set, and a session with it is
    wanted at once.
3.  The check values came back authentic, and the element has shown the final set's K-MAC.  Under level 33 it
    now shows K-ENC (it reads an encrypted command and encrypts its response), K-DEK (it decrypts a probe key
    and answers its check value, which was not sent along), and only then the initial set is deleted, data
    objects are written and read back, and the initial set is refused.
4.  All of that is judged here: what the station let through proves nothing.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from birthmark.element.apdu import Batch
from birthmark.element.keyset import KeyRoute, StaticKeys
from birthmark.element.profiles import ElementProfile

__all__ = ["Evidence", "Injection", "KeySetPhase", "KeySetState", "Order", "Step", "inject"]


class KeySetPhase(StrEnum):
    """How far the final key set of an element has come, as far as we know."""

    ABSENT = "absent"
    """No PUT KEY was ever sent."""
    INTENDED = "intended"
    """PUT KEY may have been sent: ask the element."""
    CONFIRMED = "confirmed"
    """Proved by all that the gate asks for; the initial set is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySetState:
    """What has to be known about an element before it is spoken to again."""

    phase: KeySetPhase
    key_diversification_data: bytes
    """10 octets, as first seen; empty before."""
    initial_counter: int
    """Greatest sequence counter seen of the initial set; -1 for none."""
    final_counter: int
    failures: int
    """EXTERNAL AUTHENTICATEs sent since the last one that is known to have been accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be done with one element."""

    profile: ElementProfile
    state: KeySetState
    initial_keys: Callable[[bytes], StaticKeys]
    """The initial set of the element with these key diversification data."""
    final_keys: Callable[[bytes], StaticKeys]
    contents: Mapping[int, bytes]
    """Value to store under each tag of the profile's objects."""
    token: Callable[[int], bytes]
    """So many random octets: for challenges and the probe key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Commands for the element, and what must be durable before they are sent."""

    batch: Batch = field(repr=False)
    state: KeySetState
    last: bool
    """With the responses to this the dialogue ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What the gate saw, without any key: enough to check again for whoever holds the keys."""

    kvn: int
    key_diversification_data: bytes
    i: int
    host_challenge: bytes
    card_challenge: bytes
    card_cryptogram: bytes
    host_cryptogram: bytes
    sequence_counter: bytes | None
    check_values: tuple[bytes, ...]
    """Of K-ENC, K-MAC, K-DEK: 3 octets each."""
    put_key_answered: bool
    """False where the answer to PUT KEY was lost and the element was asked instead."""
    key_sets: tuple[int, ...]
    """Key version numbers that the element lists at the end."""
    refused_kvn: int | None
    """Key version number of the initial set, refused by the element at the end; None if it was replaced."""
    refusal: int | None
    """Status word of that."""
    objects: Mapping[int, str]
    """SHA-256 (hex) of what was read back, by tag."""
    route: KeyRoute
    transcript_sha256: str
    """Over all commands and responses of the dialogue, each with its length (2 octets) in front (hex)."""


Injection: TypeAlias = Generator[Step, Sequence[bytes], tuple[Evidence, KeySetState]]
"""Raises ``errors.ProofFailed`` if the element is to be held, ``errors.Interrupted`` if nobody knows."""


def inject(order: Order) -> Injection:
    """Carry out an order; see the module."""
    yield Step(batch=(), state=order.state, last=True)
    raise NotImplementedError
