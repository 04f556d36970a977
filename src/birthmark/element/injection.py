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

EXTERNAL AUTHENTICATE is counted before it is sent, because an element may lock itself after some that fail;
the count begins anew once the element has shown that it accepted one.  What is wrong for certain raises
``errors.ProofFailed``, what is merely not known ``errors.Interrupted``: see ``exchanges``, ``opening`` (a
session's beginning) and ``gate`` (its steps, and what each proves).
"""

import hmac
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeAlias

from birthmark import errors
from birthmark.element.apdu import OK, Batch, ResponseAPDU
from birthmark.element.commands import put_key, select
from birthmark.element.exchanges import Exchange, Transcript, Wanted, batch_of, plain, reading, sealed
from birthmark.element.gate import NO_SUCH_SET, Gate, Passed, pass_gate, script_of, stored
from birthmark.element.keyset import KeyRoute, StaticKeys, WrappedKey
from birthmark.element.opening import (
    NO_COUNTER,
    Greeting,
    Opened,
    agree,
    counter_of,
    opens_with,
    read_greeting,
    reported_as,
)
from birthmark.element.profiles import ElementProfile, Replacement
from birthmark.element.scp03 import initialize_update
from birthmark.secret import SecretBytes

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
    """Greatest sequence counter of a session with the initial set that we went on with; -1 for none."""
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
    """Key version number of the initial set, refused by the element at the end; None if the number now is the
    final set's (replaced, or the default number 00): then the element has answered with the final keys."""
    refusal: int | None
    """Status word of that."""
    objects: Mapping[int, str]
    """SHA-256 (hex) of what was read back, by tag."""
    route: KeyRoute
    transcript_sha256: str
    """Over all commands that were answered and their responses, each with its length (2 octets) in front
    (hex)."""


Injection: TypeAlias = Generator[Step, Sequence[bytes], tuple[Evidence, KeySetState]]
"""Raises ``errors.ProofFailed`` if the element is to be held, ``errors.Interrupted`` if nobody knows."""

_Asking: TypeAlias = Generator[Step, Sequence[bytes], Iterator[ResponseAPDU]]


def inject(order: Order) -> Injection:
    """Carry out an order; see the module.

    Raises:
        ProofFailed: the element is not what it has to be, or would have to be asked too often: hold it.
        Interrupted: the dialogue broke off: begin anew, with the state that was made durable last.
        PolicyRefused: the final set cannot be carried under the initial one (see ``StaticKeys.wrap``) or is
            not as long as the profile says (rule ``key-size``), or an object is too large (``object-size``);
            no PUT KEY was sent.
        Unavailable: the keys cannot be reached.
    """
    stored(order.profile, order.contents)  # what cannot be stored is refused before the element is touched
    transcript = Transcript()
    opened, is_final = yield from _locate(order, transcript)
    data = opened.greeting.challenge.key_diversification_data
    state = replace(order.state, key_diversification_data=data)
    if is_final:
        final_keys, initial_keys = opened.keys, order.initial_keys(data)
        if counter_of(opened.greeting) != NO_COUNTER and order.state.final_counter == NO_COUNTER:
            # No session with the final set was ever gone on with, and the initial one has put it in: that
            # authentication was accepted.
            state = replace(state, failures=0)
    else:
        final_keys, initial_keys = order.final_keys(data), opened.keys
        state = replace(state, initial_counter=counter_of(opened.greeting))
    if final_keys.size != order.profile.key_size:
        raise errors.PolicyRefused(
            "key-size", f"the final keys have {final_keys.size} octets, not {order.profile.key_size}"
        )
    wrapped = initial_keys.wrap(final_keys)
    if not is_final:
        loading = _Loading(initial=opened, keys=final_keys, wrapped=wrapped)
        opened, state = yield from _load(order, transcript, loading, state)
    state = replace(state, final_counter=counter_of(opened.greeting))
    gate = Gate(
        profile=order.profile,
        final=opened,
        initial_keys=initial_keys,
        probe=opened.keys.wrap_value(SecretBytes(order.token(order.profile.key_size))),
        contents=order.contents,
        host_challenge=order.token(order.profile.mode),
        anew=is_final,
    )
    replies = yield from _ask(transcript, script_of(gate), _counted(order, state), last=True)
    passed = pass_gate(gate, replies)
    state = replace(state, phase=KeySetPhase.CONFIRMED, failures=0)
    check_values = tuple(key.check_value for key in wrapped)
    return _evidence(gate, passed, check_values, transcript, put_key_answered=not is_final), state


def _ask(
    transcript: Transcript, script: Sequence[Exchange], state: KeySetState, *, last: bool = False
) -> _Asking:
    batch = batch_of(script)
    responses = yield Step(batch=batch, state=state, last=last)
    transcript.add(batch, responses)
    return reading(script, responses)


def _counted(order: Order, state: KeySetState) -> KeySetState:
    """Return the state before one more EXTERNAL AUTHENTICATE."""
    if state.failures >= order.profile.failed_authentications:
        raise errors.ProofFailed(
            f"held, not risking that the element locks itself: it is not known what became of "
            f"{state.failures} authentications in a row"
        )
    return replace(state, failures=state.failures + 1)


# --- where the element stands ------------------------------------------------------------------------------


def _locate(order: Order, transcript: Transcript) -> Generator[Step, Sequence[bytes], tuple[Opened, bool]]:
    """Begin a session: with the final set if the element has it, else with the initial one.

    The station asks for the initial set only where the element says that it has no final one; so the session
    that is open is that of the last answer.

    Returns:
        The session, and whether it is one with the final set.
    """
    profile = order.profile
    fresh = order.state.phase is KeySetPhase.ABSENT
    same_number = profile.initial.kvn == profile.final.kvn
    for_final, for_initial = order.token(profile.mode), order.token(profile.mode)
    script = [plain(Wanted(name="SELECT", command=select(profile.aid)))]
    if not fresh:
        script.append(_question(profile.final.kvn, for_final, others_follow=not same_number))
    if fresh or not same_number:
        script.append(_question(profile.initial.kvn, for_initial))
    replies = yield from _ask(transcript, script, order.state)
    next(replies)
    if not fresh and (reply := next(replies)).sw == OK:
        greeting = _greeting(order, reply, profile.final.kvn, for_final)
        return _whose(order, greeting, either=same_number)
    greeting = _greeting(order, next(replies), profile.initial.kvn, for_initial)
    keys = order.initial_keys(greeting.challenge.key_diversification_data)
    return _agree(order, greeting, keys, order.state.initial_counter), False


def _question(kvn: int, host_challenge: bytes, *, others_follow: bool = False) -> Exchange:
    return plain(
        Wanted(
            name=f"INITIALIZE UPDATE {kvn:02X}",
            command=initialize_update(kvn, host_challenge),
            accepted=(OK, *NO_SUCH_SET) if others_follow else (OK,),
            guards=NO_SUCH_SET if others_follow else (OK,),
        )
    )


def _greeting(order: Order, reply: ResponseAPDU, kvn: int, host_challenge: bytes) -> Greeting:
    return read_greeting(
        order.profile,
        reply,
        host_challenge=host_challenge,
        kvns=reported_as(kvn),
        key_diversification_data=order.state.key_diversification_data,
    )


def _whose(order: Order, greeting: Greeting, *, either: bool) -> tuple[Opened, bool]:
    """Verify an answer under the final set's number, which was the initial one's too if ``either``."""
    data = greeting.challenge.key_diversification_data
    if either and opens_with(order.profile, greeting, initial := order.initial_keys(data)):
        return _agree(order, greeting, initial, order.state.initial_counter), False
    return _agree(order, greeting, order.final_keys(data), order.state.final_counter), True


def _agree(order: Order, greeting: Greeting, keys: StaticKeys, last_counter: int) -> Opened:
    unknown = order.state.failures > 0
    return agree(order.profile, greeting, keys, last_counter=last_counter, may_repeat=unknown)


# --- the final set goes in ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loading:
    initial: Opened
    keys: StaticKeys = field(repr=False)
    wrapped: tuple[WrappedKey, ...] = field(repr=False)


def _load(
    order: Order, transcript: Transcript, loading: _Loading, state: KeySetState
) -> Generator[Step, Sequence[bytes], tuple[Opened, KeySetState]]:
    """Put the final set in and begin a session with it."""
    profile = order.profile
    kvn = profile.final.kvn
    replaced = profile.initial.kvn if profile.replacement is Replacement.REPLACE else 0
    # The set is a new one: its counter begins anew, whatever was seen of one before it.
    state = replace(state, phase=KeySetPhase.INTENDED, final_counter=NO_COUNTER)
    authenticate, channel = loading.initial.authenticate(profile)
    load = put_key(replaced, kvn, loading.wrapped, profile.key_blocks)
    host_challenge = order.token(profile.mode)
    script = (
        plain(Wanted(name="EXTERNAL AUTHENTICATE with the initial set", command=authenticate)),
        *sealed(channel, (Wanted(name="PUT KEY", command=load),)),
        _question(kvn, host_challenge),
    )
    replies = yield from _ask(transcript, script, _counted(order, state))
    if next(replies).data:
        raise errors.ProofFailed("EXTERNAL AUTHENTICATE was answered with data")
    expected = bytes((kvn,)) + b"".join(key.check_value for key in loading.wrapped)
    if not hmac.compare_digest(next(replies).data, expected):
        raise errors.ProofFailed("PUT KEY was answered with other check values than those of the final set")
    state = replace(state, failures=0)  # an authentic answer: the element has accepted us
    greeting = read_greeting(
        profile,
        next(replies),
        host_challenge=host_challenge,
        kvns=reported_as(kvn),
        key_diversification_data=state.key_diversification_data,
    )
    return agree(profile, greeting, loading.keys, last_counter=NO_COUNTER), state


# --- what is written down ----------------------------------------------------------------------------------


def _evidence(
    gate: Gate,
    passed: Passed,
    check_values: tuple[bytes, ...],
    transcript: Transcript,
    *,
    put_key_answered: bool,
) -> Evidence:
    greeting, session = gate.final.greeting, gate.final.session
    challenge = greeting.challenge
    return Evidence(
        kvn=challenge.kvn,
        key_diversification_data=challenge.key_diversification_data,
        i=challenge.i,
        host_challenge=greeting.host_challenge,
        card_challenge=challenge.card_challenge,
        card_cryptogram=challenge.card_cryptogram,
        host_cryptogram=session.host_cryptogram,
        sequence_counter=challenge.sequence_counter,
        check_values=check_values,
        put_key_answered=put_key_answered,
        key_sets=passed.key_sets,
        refused_kvn=None if passed.refusal is None else gate.profile.initial.kvn,
        refusal=passed.refusal,
        objects=passed.objects,
        route=gate.final.keys.route,
        transcript_sha256=transcript.hexdigest(),
    )
