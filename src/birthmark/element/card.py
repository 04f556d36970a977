"""A secure element in software: the other side of every procedure here, for development and test.

It speaks SCP03 (both modes, all key sizes, all security levels) and the commands of a security domain that
injection needs.  It is pure: its randomness and the place of its state are given to it, it has no clock, and
being powered off and on is a call.  Each command takes effect whole or not at all, before its answer leaves.

It has no certification of anything, its keys lie in memory, and a file with its state holds them in clear.
It is a security domain and nothing else: no applications, one logical channel, no SCP11, no RSA or EC keys,
and STORE DATA takes no data encrypted under the K-DEK.

Sources: GlobalPlatform Card Specification v2.3 chapter 11, Amendment D v1.2, ISO/IEC 7816-4.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from birthmark import errors
from birthmark.element import tlv
from birthmark.element.apdu import CommandAPDU, ResponseAPDU
from birthmark.element.card_data import card_data, issuer_status, parse_stored, selection_response
from birthmark.element.card_keys import HONEST, Dishonesty, delete_keys, put_keys
from birthmark.element.card_state import MOST_OBJECT_OCTETS, CardState, KeySet, StatusError, StatusWord
from birthmark.element.keyset import SoftwareKeys
from birthmark.element.scp03 import (
    Challenge,
    Parameter,
    SecureChannel,
    SecurityLevel,
    Session,
    establish,
    initialize_update_response,
    pseudo_random_challenge,
)

__all__ = ["VirtualElement"]

_CHAINING = 0x10
_SECURE_MESSAGING = 0x04
_SELECT, _GET_DATA, _GET_RESPONSE = 0xA4, 0xCA, 0xC0
_INITIALIZE_UPDATE, _EXTERNAL_AUTHENTICATE = 0x50, 0x82
_PUT_KEY, _DELETE, _STORE_DATA, _GET_STATUS = 0xD8, 0xE4, 0xE2, 0xF2
_SHORT_RESPONSE = 0x100
_LAST_BLOCK, _ENCRYPTED, _STRUCTURE = 0x80, 0x60, 0x18


@dataclass(frozen=True, slots=True, kw_only=True)
class _Begun:
    """A session between INITIALIZE UPDATE and EXTERNAL AUTHENTICATE."""

    session: Session
    key_set: KeySet
    keys: SoftwareKeys


@dataclass(frozen=True, slots=True, kw_only=True)
class _Open:
    """A session whose host is authenticated."""

    channel: SecureChannel
    keys: SoftwareKeys


@dataclass(frozen=True, slots=True, kw_only=True)
class _Volatile:
    """What a power cut takes away."""

    begun: _Begun | None = None
    open: _Open | None = None
    chain: CommandAPDU | None = field(default=None, repr=False)
    """What has come of a chained command."""
    rest: bytes = field(default=b"", repr=False)
    """What GET RESPONSE will fetch, status word included."""
    blocks: tuple[int, bytes] = field(default=(0, b""), repr=False)
    """Number of the next block of STORE DATA, and the data so far."""


class VirtualElement:
    """One element: command in, response out."""

    def __init__(
        self,
        state: CardState,
        *,
        entropy: Callable[[int], bytes],
        keep: Callable[[CardState], None] | None = None,
        dishonesty: Dishonesty = HONEST,
    ) -> None:
        """Put an element together; it is powered.

        Args:
            state: what it held when it last lost power.
            entropy: so many random octets, for card challenges that are not pseudo-random.
            keep: makes a changed state durable before the answer leaves; what it raises, ``process`` raises,
                and the command has not happened.
            dishonesty: how it lies.
        """
        self._state = state
        self._entropy = entropy
        self._keep = keep
        self._dishonesty = dishonesty
        self._volatile = _Volatile()

    @property
    def state(self) -> CardState:
        """Return what would survive a power cut now."""
        return self._state

    def reset(self) -> None:
        """Cut the power and give it back: sessions, chains and unfetched responses are gone."""
        self._volatile = _Volatile()

    def process(self, command: bytes) -> bytes:
        """Carry out one command, whatever it is made of, and return the response, status word included."""
        try:
            apdu = CommandAPDU.decode(command)
        except errors.MalformedRequest:
            return _answer(StatusWord.WRONG_LENGTH).encode()
        rest, self._volatile = self._volatile.rest, replace(self._volatile, rest=b"")
        try:
            if apdu.ins == _GET_RESPONSE:
                return self._first_part(self._require_rest(rest), apdu)
            whole = self._reassembled(apdu)
            if whole is None:
                return _answer(StatusWord.OK).encode()
            return self._first_part(self._perform(whole).encode(), whole)
        except StatusError as wrong:
            return _answer(wrong.sw).encode()

    # --- transport -----------------------------------------------------------------------------------------

    def _reassembled(self, apdu: CommandAPDU) -> CommandAPDU | None:
        """Return the whole command, or None while more of it is to come (ISO/IEC 7816-4 section 5.3.3)."""
        if apdu.is_extended and not self._state.traits.extended_length:
            raise StatusError(StatusWord.WRONG_LENGTH)
        if apdu.cla & 0x60:
            raise StatusError(StatusWord.CLA_NOT_SUPPORTED)
        if apdu.cla & 0x03:
            raise StatusError(StatusWord.LOGICAL_CHANNEL_NOT_SUPPORTED)
        chain, self._volatile = self._volatile.chain, replace(self._volatile, chain=None)
        bare = replace(apdu, cla=apdu.cla & ~_CHAINING)
        if chain is not None and chain.header == bare.header:
            try:
                bare = replace(bare, data=chain.data + bare.data)
            except errors.MalformedRequest as wrong:
                raise StatusError(StatusWord.WRONG_LENGTH) from wrong
        if apdu.cla & _CHAINING:
            self._volatile = replace(self._volatile, chain=bare)
            return None
        return bare

    def _require_rest(self, rest: bytes) -> bytes:
        if not rest:
            raise StatusError(StatusWord.CONDITIONS_NOT_SATISFIED)
        return rest

    def _first_part(self, response: bytes, command: CommandAPDU) -> bytes:
        """Return as much of a response as the host can take, and keep the rest (section 5.3.4).

        A command without Le is answered as if it took 256 octets, as elements that speak T=1 do.
        """
        most = command.le or _SHORT_RESPONSE
        if len(response) - 2 <= most:
            return response
        rest = response[most:]
        self._volatile = replace(self._volatile, rest=rest)
        return response[:most] + bytes((0x61, min(len(rest) - 2, 0x100) % 0x100))

    # --- sessions ------------------------------------------------------------------------------------------

    def _perform(self, command: CommandAPDU) -> ResponseAPDU:
        if command.ins in (_SELECT, _INITIALIZE_UPDATE, _EXTERNAL_AUTHENTICATE):
            return {
                _SELECT: self._select,
                _INITIALIZE_UPDATE: self._initialize_update,
                _EXTERNAL_AUTHENTICATE: self._external_authenticate,
            }[command.ins](command)
        session = self._volatile.open
        if session is None or session.channel.level is SecurityLevel.NONE:
            if command.cla & _SECURE_MESSAGING:
                raise StatusError(StatusWord.CONDITIONS_NOT_SATISFIED)
            return self._carry_out(command)
        try:
            plain, following = session.channel.accept(command)
        except errors.ProofFailed as wrong:
            self._end_session()
            raise StatusError(StatusWord.SECURITY_STATUS_NOT_SATISFIED) from wrong
        self._volatile = replace(self._volatile, open=replace(session, channel=following))
        try:
            response = self._carry_out(plain)
        except StatusError as wrong:
            response = _answer(wrong.sw)
        return following.protect(response)

    def _end_session(self) -> None:
        self._volatile = replace(self._volatile, begun=None, open=None, blocks=(0, b""))

    def _select(self, command: CommandAPDU) -> ResponseAPDU:
        """SELECT by AID, whole or right-truncated (Card Specification section 11.9); there is one domain.

        It is selected from the start, so an element that was never asked speaks for it all the same.
        """
        if command.cla & ~_SECURE_MESSAGING or (command.p1, command.p2) != (0x04, 0x00):
            raise StatusError(StatusWord.INCORRECT_P1_P2)
        if not self._state.traits.aid.startswith(command.data):
            raise StatusError(StatusWord.FILE_NOT_FOUND)
        self._end_session()
        return ResponseAPDU(StatusWord.OK, selection_response(self._state))

    def _initialize_update(self, command: CommandAPDU) -> ResponseAPDU:
        """INITIALIZE UPDATE (Amendment D section 7.1.1); whatever session there was is over."""
        self._end_session()
        traits = self._state.traits
        if command.cla != 0x80:
            raise StatusError(StatusWord.CLA_NOT_SUPPORTED)
        if command.p2:
            raise StatusError(StatusWord.INCORRECT_P1_P2)
        if len(command.data) != traits.mode:
            raise StatusError(StatusWord.WRONG_LENGTH)
        if self._state.locked:
            raise StatusError(StatusWord.AUTHENTICATION_METHOD_BLOCKED)
        key_set = self._state.session_set(command.p1)
        keys = key_set.static_keys if key_set is not None else None
        if key_set is None or keys is None:
            raise StatusError(StatusWord.REFERENCED_DATA_NOT_FOUND)
        counter = None
        if traits.i & Parameter.PSEUDO_RANDOM:
            key_set = key_set.advanced()
            counter = key_set.counter.to_bytes(3, "big")
            card_challenge = pseudo_random_challenge(keys, traits.mode, counter, traits.aid)
        else:
            card_challenge = self._entropy(traits.mode)
        challenge = Challenge(
            key_diversification_data=self._state.key_diversification_data,
            kvn=key_set.kvn,
            i=traits.i,
            card_challenge=card_challenge,
            card_cryptogram=bytes(traits.mode),
            sequence_counter=counter,
        )
        session = establish(keys, traits.mode, command.data, challenge, None)
        if not traits.counts_successes_only:
            self._commit(self._state.with_key_set(key_set))
        self._volatile = replace(self._volatile, begun=_Begun(session=session, key_set=key_set, keys=keys))
        return ResponseAPDU(
            StatusWord.OK,
            initialize_update_response(replace(challenge, card_cryptogram=session.card_cryptogram)),
        )

    def _external_authenticate(self, command: CommandAPDU) -> ResponseAPDU:
        """EXTERNAL AUTHENTICATE (Amendment D section 7.1.2); a failure is counted and ends the session."""
        begun = self._volatile.begun
        self._end_session()
        if begun is None:
            raise StatusError(StatusWord.CONDITIONS_NOT_SATISFIED)
        # R-MAC and R-ENCRYPTION: bits 6 and 7 of i, bits 5 and 6 of the security level.
        if command.p1 & 0x30 & ~(self._state.traits.i >> 1):
            raise StatusError(StatusWord.INCORRECT_P1_P2)
        if len(command.data) != 2 * self._state.traits.mode:
            raise StatusError(StatusWord.WRONG_LENGTH)
        try:
            channel = begun.session.accept_host(command)
        except errors.MalformedRequest as wrong:
            raise StatusError(StatusWord.INCORRECT_P1_P2) from wrong
        except errors.ProofFailed as wrong:
            self._commit(replace(self._state, failures=self._state.failures + 1))
            raise StatusError(StatusWord.AUTHENTICATION_FAILED) from wrong
        self._commit(replace(self._state, failures=0).with_key_set(begun.key_set))
        channel = replace(channel, counts_empty_commands=self._state.traits.counts_empty_commands)
        self._volatile = replace(self._volatile, open=_Open(channel=channel, keys=begun.keys))
        return _answer(StatusWord.OK)

    # --- commands ------------------------------------------------------------------------------------------

    def _carry_out(self, command: CommandAPDU) -> ResponseAPDU:
        if command.ins == _GET_DATA:
            return self._get_data(command)
        managed: Mapping[int, Callable[[CommandAPDU, _Open], ResponseAPDU]] = {
            _PUT_KEY: self._put_key,
            _DELETE: self._delete,
            _STORE_DATA: self._store_data,
            _GET_STATUS: self._get_status,
        }
        if command.ins not in managed:
            raise StatusError(StatusWord.INS_NOT_SUPPORTED)
        session = self._volatile.open
        if session is None:
            raise StatusError(StatusWord.SECURITY_STATUS_NOT_SATISFIED)
        if command.ins != _STORE_DATA:
            self._volatile = replace(self._volatile, blocks=(0, b""))
        return managed[command.ins](command, session)

    def _put_key(self, command: CommandAPDU, session: _Open) -> ResponseAPDU:
        after, answer = put_keys(
            self._state, session.keys, command.p1, command.p2, command.data, self._dishonesty
        )
        self._commit(after)
        return ResponseAPDU(StatusWord.OK, answer)

    def _delete(self, command: CommandAPDU, _session: _Open) -> ResponseAPDU:
        """DELETE of keys; the octet 00 says that no receipt follows (Card Specification section 11.2.3)."""
        self._commit(delete_keys(self._state, command.data))
        return ResponseAPDU(StatusWord.OK, b"\0")

    def _store_data(self, command: CommandAPDU, _session: _Open) -> ResponseAPDU:
        """STORE DATA (Card Specification v2.3 section 11.11): nothing is stored before the last block."""
        number, data = self._volatile.blocks
        self._volatile = replace(self._volatile, blocks=(0, b""))
        if command.p2 == 0:
            number, data = 0, b""
        if command.p2 != number or command.p1 & _ENCRYPTED == _ENCRYPTED:
            raise StatusError(StatusWord.INCORRECT_P1_P2)
        data += command.data
        if len(data) > MOST_OBJECT_OCTETS:
            raise StatusError(StatusWord.NOT_ENOUGH_SPACE)
        if command.p1 & _LAST_BLOCK:
            objects = parse_stored(data, command.p1 & _STRUCTURE)
            self._commit(self._state.with_objects(objects))
        elif number == 0xFF:
            raise StatusError(StatusWord.INCORRECT_P1_P2)
        else:
            self._volatile = replace(self._volatile, blocks=(number + 1, data))
        return _answer(StatusWord.OK)

    def _get_data(self, command: CommandAPDU) -> ResponseAPDU:
        tag = command.p1 << 8 | command.p2
        found = card_data(self._state, tag)
        if found is None:
            value = dict(self._state.objects).get(tag)
            if value is None:
                raise StatusError(StatusWord.REFERENCED_DATA_NOT_FOUND)
            found = tlv.encode(tag, value)
        return ResponseAPDU(StatusWord.OK, found)

    def _get_status(self, command: CommandAPDU, _session: _Open) -> ResponseAPDU:
        return ResponseAPDU(StatusWord.OK, issuer_status(self._state, command.p1, command.p2, command.data))

    def _commit(self, state: CardState) -> None:
        if self._keep is not None and state != self._state:
            self._keep(state)
        self._state = state


def _answer(sw: StatusWord) -> ResponseAPDU:
    return ResponseAPDU(sw)
