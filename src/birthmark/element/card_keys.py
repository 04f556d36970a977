"""How a virtual element takes keys in and gives them up: PUT KEY and DELETE, as functions of its state.

An element can be made to lie (``Dishonesty``), so that the host's proofs have something to find.

Sources: GlobalPlatform Card Specification v2.3 sections 11.2 (DELETE) and 11.8 (PUT KEY), Amendment D v1.2
section 7.2.  What the standard leaves open is answered as real elements do: a set that came under FF vanishes
when another whole set is loaded, sets are deleted whole (D2), and the last one that can open a session stays.
"""

import hmac
from dataclasses import dataclass

from birthmark import errors
from birthmark.element import tlv
from birthmark.element.card_state import FACTORY_KVN, CardState, KeySet, StatusError, StatusWord
from birthmark.element.diversification import KeyRole
from birthmark.element.keyset import LoadedKey, SoftwareKeys, check_value, decode_put_key, decrypt_key
from birthmark.secret import SecretBytes

__all__ = ["HONEST", "Dishonesty", "delete_keys", "put_keys"]

_SEVERAL = 0x80
_KEY_IDENTIFIER, _KEY_VERSION_NUMBER = 0xD0, 0xD2
_MOST_KEY_SETS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Dishonesty:
    """How an element lies about the keys it is given."""

    lacks: frozenset[KeyRole] = frozenset()
    """It answers as if it had these keys of a set, and stores nothing in their place."""
    garbles: frozenset[KeyRole] = frozenset()
    """It answers as if it had these keys of a set, and stores other ones."""
    echoes: bool = False
    """It takes any check value that came along for true and sends it back."""
    wrong_check_values: bool = False
    """It answers check values that are not those of the keys."""

    @classmethod
    def parse(cls, text: str) -> "Dishonesty":
        """Read ``echo`` (it stores nothing), ``wrong-check-values``, ``lack:KEYS`` or ``garble:KEYS``.

        KEYS are of ``enc``, ``mac`` and ``dek``, joined with commas.

        Raises:
            MalformedRequest: it is something else.
        """
        how, colon, names = text.partition(":")
        roles = {role.name.lower(): role for role in KeyRole}
        keys = names.split(",") if colon else []
        if not set(keys) <= set(roles) or bool(keys) != (how in ("lack", "garble")):
            how = ""
        meant = frozenset(roles[key] for key in keys) if how else frozenset()
        match how:
            case "echo":
                return cls(lacks=frozenset(KeyRole), echoes=True)
            case "wrong-check-values":
                return cls(wrong_check_values=True)
            case "lack":
                return cls(lacks=meant)
            case "garble":
                return cls(garbles=meant)
        raise errors.MalformedRequest(
            f"a lie is echo, wrong-check-values, lack:KEYS or garble:KEYS, e.g. garble:enc,dek; not {text!r}"
        )


HONEST = Dishonesty()


def put_keys(
    state: CardState, opener: SoftwareKeys, p1: int, p2: int, data: bytes, dishonesty: Dishonesty = HONEST
) -> tuple[CardState, bytes]:
    """Carry out PUT KEY: all keys or none.

    Args:
        state: before.
        opener: the set that opened the session; its K-DEK protects the keys.
        p1: 00 to add keys, or the key version number of the set to replace.
        p2: identifier of the first key, and in bit 8 that several may follow.
        data: of the command, in clear but for the keys.
        dishonesty: what to do otherwise.

    Returns:
        The state after, and the response data: key version number and check values.

    Raises:
        StatusError: the keys are refused; nothing has changed.
    """
    try:
        kvn, blocks = decode_put_key(data)
    except errors.MalformedRequest as wrong:
        raise StatusError(StatusWord.INCORRECT_DATA) from wrong
    first = p2 & ~_SEVERAL
    if first == 0 or first + len(blocks) > 0x80 or p1 > 0x7F or (len(blocks) > 1 and not p2 & _SEVERAL):
        raise StatusError(StatusWord.INCORRECT_P1_P2)
    loaded = [_load(state, opener, block, dishonesty) for block in blocks]
    keys = {first + n: key for n, (key, _) in enumerate(loaded)}
    return _with_keys(state, p1, kvn, keys, dishonesty), bytes((kvn,)) + b"".join(
        answer for _, answer in loaded
    )


def _load(
    state: CardState, opener: SoftwareKeys, block: LoadedKey, dishonesty: Dishonesty
) -> tuple[SecretBytes, bytes]:
    """Return a key and the check value that is answered for it."""
    if block.size > opener.size or (state.traits.needs_check_values and block.check_value is None):
        raise StatusError(StatusWord.INCORRECT_DATA)
    key = decrypt_key(opener.dek, block.ciphertext, block.size)
    right = check_value(key)
    answer = right
    if block.check_value is not None:
        if dishonesty.echoes:
            answer = block.check_value
        elif not hmac.compare_digest(block.check_value, right):
            raise StatusError(StatusWord.INCORRECT_DATA)
    if dishonesty.wrong_check_values:
        answer = bytes(octet ^ 0x5A for octet in answer)
    return key, answer


def _with_keys(
    state: CardState, p1: int, kvn: int, keys: dict[int, SecretBytes], dishonesty: Dishonesty
) -> CardState:
    old = state.key_set(p1 or kvn)
    there = dict(old.keys) if old is not None else {}
    if p1 == 0:
        if there.keys() & keys.keys():
            raise StatusError(StatusWord.INCORRECT_DATA)
    else:
        if old is None or not keys.keys() <= there.keys() or not state.traits.replaces_keys:
            raise StatusError(StatusWord.REFERENCED_DATA_NOT_FOUND)
        if kvn != p1 and (keys.keys() != there.keys() or state.key_set(kvn) is not None):
            raise StatusError(StatusWord.INCORRECT_DATA)
    stored = _stored(keys, dishonesty)
    if not stored:
        return state
    merged = there | stored
    changed = KeySet(
        kvn=kvn,
        keys=tuple((kid, merged[kid]) for kid in sorted(merged)),
        counter=old.counter if old is not None and not there.keys() <= keys.keys() else 0,
    )
    after = state.with_key_set(changed, at=p1 or kvn)
    if changed.static_keys is not None:
        after = after.without_key_set(FACTORY_KVN)
    if len(after.key_sets) > _MOST_KEY_SETS:
        raise StatusError(StatusWord.NOT_ENOUGH_SPACE)
    return after


def _stored(keys: dict[int, SecretBytes], dishonesty: Dishonesty) -> dict[int, SecretBytes]:
    """Return what is really stored; only whole sets are lied about: a probe is answered as it can be."""
    if len(keys) < len(KeyRole):
        return keys
    return {
        kid: SecretBytes(bytes(octet ^ 0xA5 for octet in key.reveal())) if kid in dishonesty.garbles else key
        for kid, key in keys.items()
        if kid not in dishonesty.lacks
    }


def delete_keys(state: CardState, data: bytes) -> CardState:
    """Carry out DELETE of a key set: all keys of one key version number.

    Raises:
        StatusError: there is no such set, single keys are meant, or no session could be opened any more.
    """
    try:
        named = {found.tag: found.value for found in tlv.decode(data)}
    except errors.MalformedRequest as wrong:
        raise StatusError(StatusWord.INCORRECT_DATA) from wrong
    kvn = named.pop(_KEY_VERSION_NUMBER, None)
    if _KEY_IDENTIFIER in named:
        raise StatusError(StatusWord.REFERENCED_DATA_NOT_FOUND)
    if kvn is None or len(kvn) != 1 or named:
        raise StatusError(StatusWord.INCORRECT_DATA)
    if state.key_set(kvn[0]) is None:
        raise StatusError(StatusWord.REFERENCED_DATA_NOT_FOUND)
    after = state.without_key_set(kvn[0])
    if after.session_set(0) is None:
        raise StatusError(StatusWord.CONDITIONS_NOT_SATISFIED)
    return after
