"""The gate: nothing is released that has not passed it (SPEC D4).

Under a session with the final set, in one batch, in this order:

1.  EXTERNAL AUTHENTICATE.  INITIALIZE UPDATE before it has shown K-MAC.
2.  GET STATUS at level 33: the element reads an encrypted command and encrypts its answer.  Shows K-ENC.
3.  PUT KEY of a random probe key.  Its check value is not sent along (unless the profile says that the
    element loads no key without one), and has to come back.  Shows K-DEK, and K-ENC once more.  The station
    goes on only if this answer is right.
4.  DELETE of the probe key, and of the initial set.
5.  STORE DATA, and GET DATA of every object: equal to the octet.
6.  The key information template: the final set and nothing else.
7.  INITIALIZE UPDATE of the initial set: refused, or, where its number now is the final set's, not answered
    with the initial keys.

A dialogue that finds the final set in the element does all of this, too.  It cannot know how far an earlier
one came, so it deletes a probe key that may be left, and takes "there is no such set" for an answer to
DELETE; that this is true is shown by step 6.
"""

import hmac
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256

from birthmark import errors
from birthmark.element import tlv
from birthmark.element.apdu import OK, ResponseAPDU
from birthmark.element.commands import delete_key_set, get_data, get_status, put_key, store_data
from birthmark.element.diversification import KeyRole
from birthmark.element.exchanges import Exchange, Wanted, plain, sealed
from birthmark.element.keyset import KeyEntry, StaticKeys, WrappedKey
from birthmark.element.opening import (
    DEFAULT_KVN,
    FACTORY_KVN,
    Opened,
    agree,
    counter_of,
    opens_with,
    read_greeting,
)
from birthmark.element.profiles import ElementProfile, Replacement
from birthmark.element.scp03 import initialize_update

__all__ = ["NO_SUCH_SET", "Gate", "Passed", "pass_gate", "script_of", "stored"]

NO_SUCH_SET = (0x6A88, 0x6A86, 0x6A82, 0x6A80)
"""Status words with which elements say that they have no key set of a number; nothing protects them."""
_REFUSALS = range(0x6900, 0x6B00)
"""Command not allowed, wrong parameters (ISO/IEC 7816-4 section 5.1.3): understood, and refused."""
_AES = 0x88


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What the gate is made of."""

    profile: ElementProfile
    final: Opened
    initial_keys: StaticKeys = field(repr=False)
    probe: WrappedKey = field(repr=False)
    """A random key under the final K-DEK."""
    contents: Mapping[int, bytes]
    host_challenge: bytes
    """For the last INITIALIZE UPDATE."""
    anew: bool
    """The final set was there when this dialogue began: an earlier one may have been at the gate."""

    @property
    def same_number(self) -> bool:
        """Return whether asking for the initial set now asks for the final one."""
        return self.profile.initial.kvn == self.profile.final.kvn


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """What the element has shown."""

    key_sets: tuple[int, ...]
    """Key version numbers that it lists."""
    objects: Mapping[int, str]
    """SHA-256 (hex) of what was read back, by tag."""
    refusal: int | None
    """Status word with which the initial set was refused; None where its number is the final set's now."""


def stored(profile: ElementProfile, contents: Mapping[int, bytes]) -> tuple[Wanted, ...]:
    """Return the commands that write a profile's objects.

    Raises:
        PolicyRefused: an object is too large (rule ``object-size``).
    """
    return tuple(
        Wanted(name=f"STORE DATA {entry.tag:X}", command=command)
        for entry in profile.objects
        for command in store_data(
            entry.tag, contents[entry.tag], profile.mode, extended_length=profile.extended_length
        )
    )


def script_of(gate: Gate) -> tuple[Exchange, ...]:
    """Return the batch."""
    profile = gate.profile
    authenticate, channel = gate.final.authenticate(profile)
    return (
        plain(Wanted(name="EXTERNAL AUTHENTICATE with the final set", command=authenticate)),
        *sealed(channel, _commands(gate)),
        plain(
            Wanted(
                name=f"INITIALIZE UPDATE {profile.initial.kvn:02X} at the end",
                command=initialize_update(profile.initial.kvn, gate.host_challenge),
                accepted=frozenset((OK, *_REFUSALS)),
                guards=NO_SUCH_SET,
            )
        ),
    )


def _commands(gate: Gate) -> Iterator[Wanted]:
    profile = gate.profile
    yield Wanted(name="GET STATUS", command=get_status())
    if gate.anew:
        yield _deletion("DELETE of a probe key that may be left", profile.probe_kvn, or_absent=True)
    yield Wanted(
        name="PUT KEY of the probe key",
        command=put_key(
            0,
            profile.probe_kvn,
            (gate.probe,),
            profile.key_blocks,
            with_check_values=profile.probe_check_value,
        ),
        foretold=ResponseAPDU(OK, _probe_answer(gate)),
    )
    yield _deletion("DELETE of the probe key", profile.probe_kvn, or_absent=False)
    if profile.replacement is Replacement.ADD:
        # The first PUT KEY replaces a factory set on some elements; it is then not there to be deleted.
        by_default = profile.initial.kvn == DEFAULT_KVN
        number = FACTORY_KVN if by_default else profile.initial.kvn
        yield _deletion("DELETE of the initial set", number, or_absent=by_default or gate.anew)
    yield from stored(profile, gate.contents)
    for entry in profile.objects:
        yield Wanted(
            name=f"GET DATA {entry.tag:X}",
            command=get_data(entry.tag, extended_length=profile.extended_length),
        )
    yield Wanted(name="GET DATA of the key information", command=get_data(tlv.KEY_INFORMATION_TEMPLATE))


def _deletion(name: str, kvn: int, *, or_absent: bool) -> Wanted:
    status_words = (OK, *NO_SUCH_SET) if or_absent else (OK,)
    return Wanted(name=name, command=delete_key_set(kvn), accepted=status_words, guards=status_words)


def _probe_answer(gate: Gate) -> bytes:
    return bytes((gate.profile.probe_kvn,)) + gate.probe.check_value


def pass_gate(gate: Gate, replies: Iterator[ResponseAPDU]) -> Passed:
    """Judge the responses to the batch; ``replies`` are those of ``exchanges.reading``.

    Raises:
        ProofFailed: the element has shown that it is not as it has to be.
        Interrupted: it is not known how it is.
    """
    profile = gate.profile
    if next(replies).data:
        raise errors.ProofFailed("EXTERNAL AUTHENTICATE was answered with data")
    if not next(replies).data:
        raise errors.ProofFailed("GET STATUS was answered without data, which shows no K-ENC")
    if gate.anew:
        next(replies)
    if not hmac.compare_digest(next(replies).data, _probe_answer(gate)):
        raise errors.ProofFailed("the check value of the probe key is wrong: the element lacks the K-DEK")
    next(replies)
    if profile.replacement is Replacement.ADD:
        next(replies)
    for _ in stored(profile, gate.contents):
        next(replies)
    objects = {
        entry.tag: _judge_object(entry.tag, gate.contents[entry.tag], next(replies).data)
        for entry in profile.objects
    }
    key_sets = _judge_key_information(profile, next(replies).data)
    return Passed(key_sets=key_sets, objects=objects, refusal=_judge_refusal(gate, next(replies)))


def _judge_object(tag: int, wanted: bytes, found: bytes) -> str:
    """Compare what was read back; elements answer GET DATA with the whole object or with its value."""
    if found not in (wanted, tlv.encode(tag, wanted)):
        raise errors.ProofFailed(f"object {tag:X} was read back, and is not what was stored")
    return sha256(wanted).hexdigest()


def _judge_key_information(profile: ElementProfile, data: bytes) -> tuple[int, ...]:
    try:
        listed = tlv.read_key_information(data, bare=profile.bare_key_information)
    except errors.MalformedRequest as error:
        raise errors.ProofFailed(str(error)) from error
    expected = [
        KeyEntry(kvn=profile.final.kvn, kid=role, key_type=_AES, size=profile.key_size) for role in KeyRole
    ]
    ours = [entry for entry in sorted(listed) if entry.kvn not in profile.other_key_sets]
    if ours != expected:
        found = ", ".join(f"{entry.kvn:02X}/{entry.kid:02X}" for entry in sorted(listed)) or "nothing"
        raise errors.ProofFailed(
            f"the element lists keys {found}, not just the {profile.key_size * 8} bit "
            f"AES keys 01 to 03 of set {profile.final.kvn:02X}"
        )
    return tuple(sorted({entry.kvn for entry in listed}))


def _judge_refusal(gate: Gate, response: ResponseAPDU) -> int | None:
    """Judge the answer for the initial set; return the status word of a refusal."""
    profile = gate.profile
    if response.sw != OK:
        if gate.same_number:
            raise errors.Interrupted(f"the final set was refused at the end, with {response.sw:04X}")
        return response.sw
    if not gate.same_number and profile.initial.kvn != DEFAULT_KVN:
        raise errors.ProofFailed(f"the element still has the initial set {profile.initial.kvn:02X}")
    greeting = read_greeting(
        profile,
        response,
        host_challenge=gate.host_challenge,
        kvns=(profile.final.kvn,),
        key_diversification_data=gate.final.greeting.challenge.key_diversification_data,
    )
    if opens_with(profile, greeting, gate.initial_keys):
        raise errors.ProofFailed("the initial keys still open the element")
    agree(profile, greeting, gate.final.keys, last_counter=counter_of(gate.final.greeting))
    return None
