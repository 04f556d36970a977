"""The beginning of a session, judged: what an element answers to INITIALIZE UPDATE.

First what any element of the profile could say (``read_greeting``), then whether this one holds the key set
(``agree``).  Nothing is sent to an element that has not passed both: an EXTERNAL AUTHENTICATE with wrong keys
brings it nearer to locking itself.
"""

import hmac
from collections.abc import Container
from dataclasses import dataclass, field, replace

from birthmark import errors
from birthmark.element.apdu import CommandAPDU, ResponseAPDU
from birthmark.element.keyset import StaticKeys
from birthmark.element.profiles import ElementProfile
from birthmark.element.scp03 import (
    PROVABLE,
    Challenge,
    SecureChannel,
    SecurityLevel,
    Session,
    establish,
    read_challenge,
)

__all__ = [
    "DEFAULT_KVN",
    "FACTORY_KVN",
    "NO_COUNTER",
    "Greeting",
    "Opened",
    "agree",
    "counter_of",
    "opens_with",
    "read_greeting",
    "reported_as",
]

DEFAULT_KVN = 0x00
"""Asks for whichever set is the element's first."""
FACTORY_KVN = 0xFF
"""How the set from the factory is reported; it cannot be asked for."""
NO_COUNTER = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeting:
    """An answer that an element of the profile could give; which keys it holds is not known yet."""

    host_challenge: bytes
    challenge: Challenge


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A session with an element that has shown the K-MAC of a set; we have not shown anything yet."""

    keys: StaticKeys = field(repr=False)
    greeting: Greeting
    session: Session

    def authenticate(self, profile: ElementProfile) -> tuple[CommandAPDU, SecureChannel]:
        """Return EXTERNAL AUTHENTICATE at the highest level, and the channel it opens."""
        command, channel = self.session.external_authenticate(SecurityLevel.FULL)
        return command, replace(channel, counts_empty_commands=profile.counts_empty_commands)


def reported_as(kvn: int) -> tuple[int, ...]:
    """Return the key version numbers under which an element may report the set asked for by this one."""
    return (DEFAULT_KVN, FACTORY_KVN) if kvn == DEFAULT_KVN else (kvn,)


def read_greeting(
    profile: ElementProfile,
    response: ResponseAPDU,
    *,
    host_challenge: bytes,
    kvns: Container[int],
    key_diversification_data: bytes,
) -> Greeting:
    """Judge an answer to INITIALIZE UPDATE as far as that takes no key.

    Args:
        profile: of the element.
        response: a success.
        host_challenge: ours.
        kvns: key version numbers it may report.
        key_diversification_data: as first seen; empty for anything.

    Raises:
        ProofFailed: it is not the answer of such an element, or that of another one.
    """
    try:
        challenge = read_challenge(response.data)
    except errors.MalformedRequest as error:
        raise errors.ProofFailed(str(error)) from error
    if challenge.kvn not in kvns:
        raise errors.ProofFailed(f"the element answered with key set {challenge.kvn:02X}, not the one asked")
    if challenge.i not in profile.parameters:
        raise errors.ProofFailed(f"the element says i={challenge.i:02X}, which its profile does not allow")
    if challenge.i & PROVABLE != PROVABLE:
        raise errors.ProofFailed(f"the element says i={challenge.i:02X}: its answers could not be believed")
    if challenge.mode is not profile.mode:
        raise errors.ProofFailed(f"the element speaks {challenge.mode.name}, not {profile.mode.name}")
    if key_diversification_data not in (b"", challenge.key_diversification_data):
        raise errors.ProofFailed(
            f"another element: key diversification data {challenge.key_diversification_data.hex()}, "
            f"not {key_diversification_data.hex()}"
        )
    return Greeting(host_challenge=host_challenge, challenge=challenge)


def counter_of(greeting: Greeting) -> int:
    """Return the sequence counter of an answer, or ``NO_COUNTER``."""
    counter = greeting.challenge.sequence_counter
    return NO_COUNTER if counter is None else int.from_bytes(counter, "big")


def agree(
    profile: ElementProfile,
    greeting: Greeting,
    keys: StaticKeys,
    *,
    last_counter: int,
    may_repeat: bool = False,
) -> Opened:
    """Verify that the element holds a key set.

    Args:
        profile: of the element.
        greeting: its answer.
        keys: the set.
        last_counter: greatest sequence counter seen of this set; ``NO_COUNTER`` for none.
        may_repeat: that very counter is all right, too: some elements count only the sessions whose EXTERNAL
            AUTHENTICATE they accepted, and it is not known whether they got the last one.

    Raises:
        ProofFailed: the cryptogram or the pseudo-random challenge is not of this set, or the sequence counter
            was there before.
    """
    session = establish(keys, profile.mode, greeting.host_challenge, greeting.challenge, profile.aid)
    session.verify_card(greeting.challenge)
    counter = counter_of(greeting)
    least = last_counter if may_repeat else last_counter + 1
    if last_counter != NO_COUNTER and counter < least:
        raise errors.ProofFailed(
            f"the element's sequence counter is {counter}, and {last_counter} was seen before: "
            "a copy, or an earlier state of it"
        )
    return Opened(keys=keys, greeting=greeting, session=session)


def opens_with(profile: ElementProfile, greeting: Greeting, keys: StaticKeys) -> bool:
    """Return whether an element's cryptogram is that of a key set."""
    session = establish(keys, profile.mode, greeting.host_challenge, greeting.challenge, None)
    return hmac.compare_digest(greeting.challenge.card_cryptogram, session.card_cryptogram)
