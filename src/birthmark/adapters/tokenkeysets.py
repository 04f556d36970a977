"""Key sets of secure elements whose keys are in a PKCS#11 token, or come from one (``element.keyset``).

Three kinds of set, by where their keys are while they are used:

- derived in the token (``diversify-aes-…``): the keys are objects of the session, made for one job;
- fixed (``master-aes-…`` and ``dek-aes-…``): the keys are objects of the token;
- derived by AES-CMAC (``master-aes-…``): the keys are in this process for the length of a call.

Rules kept here: every method of a set is one job of ``tokenworker`` (two, where keys are made in this process
and used in the token), so what it derives is destroyed in it, and a session that is lost in between is lost
as a whole and the job done once more; keys in the token leave it under the K-DEK of another set of the same
store and in no other way; a master key that is another one than before is not used.

Left to others: what is derived from what (``element.diversification``), which kinds go together
(``keyroutes``), deriving (``tokenderiving``).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from pkcs11 import (
    Attribute,
    DeriveMixin,
    KeyType,
    Mechanism,
    MechanismFlag,
    Object,
    ObjectClass,
    Session,
    SignMixin,
    WrapMixin,
)
from pkcs11 import exceptions as foreign

from birthmark import errors
from birthmark.adapters.keyroutes import RULE, require_fixed_set, require_master, require_single_blocks
from birthmark.adapters.tokenattributes import check_value, flag, kind_of_secret
from birthmark.adapters.tokenderiving import BLOCK, derived, encrypted, subkey
from birthmark.element.diversification import (
    Derivation,
    KeyRole,
    cmac_messages,
    derived_key,
    single_blocks,
)
from birthmark.element.keyset import (
    CHECKED_BLOCK,
    KCV_OCTETS,
    KeyRoute,
    SoftwareKeys,
    StaticKeys,
    WrappedKey,
    require_strength,
)
from birthmark.element.keyset import check_value as kcv
from birthmark.pki.attributes import SecretKind
from birthmark.pki.keys import KeyLabel
from birthmark.secret import SecretBytes

__all__ = ["MECHANISMS_OF_SECRETS", "Ask", "KeySets"]

T = TypeVar("T")

_BY_USE: Mapping[str, tuple[Mechanism, ...]] = {
    "sign": (Mechanism.AES_CMAC,),
    "derive": (Mechanism.AES_ECB_ENCRYPT_DATA, Mechanism.AES_CMAC, Mechanism.AES_CBC),
    "encrypt": (Mechanism.AES_CBC,),
    "wrap": (),
    "unwrap": (Mechanism.AES_KEY_WRAP_PAD,),
}
MECHANISMS_OF_SECRETS: Mapping[SecretKind, frozenset[Mechanism]] = {
    kind: frozenset(mechanism for use in kind.uses for mechanism in _BY_USE[use]) for kind in SecretKind
}
"""What a token needs for a key of this kind, and for those that are derived from it."""

_NO_IV = bytes(BLOCK)
"""GlobalPlatform Amendment D v1.2 section 6.2.8: keys are encrypted in CBC mode with an IV of zeros."""


class Ask(Protocol):
    """Has the worker of a token do a job in its session: ``PKCS11KeyStore``."""

    def __call__(self, operation: Callable[[Session], T], *, repeat: bool = True) -> T:
        """Do it, and once more in a new session if the session is lost and it may be repeated."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Secret:
    """A key of the token, as one session sees it."""

    session: Session
    key: Object
    kind: SecretKind
    check_value: str
    subkey: SecretBytes
    """K1 of a key that derives; empty for others."""


class KeySets:
    """What the sets of one store share: the way to the token, and what is known of its keys."""

    __slots__ = ("_find", "_known", "_secrets", "ask")

    def __init__(self, ask: Ask, find: Callable[[Session, KeyLabel], Object]) -> None:
        self.ask = ask
        self._find = find
        # Written by the worker, read by every thread; a label never changes its key while we live.
        self._known: dict[KeyLabel, _Secret] = {}
        # Touched by the worker alone.
        self._secrets: dict[KeyLabel, _Secret] = {}

    def derived(self, master: KeyLabel, derivation: Derivation) -> StaticKeys:
        """See ``ports.KeyStore.derived_keys``."""
        kind = require_master(master, self._kind(master))
        if "derive" not in kind.uses:
            cmac_messages(derivation, KeyRole.ENC, kind.size)  # refuses the context here, not in a dialogue
            return _CMACKeys(sets=self, master=master, derivation=derivation, size=kind.size)
        require_single_blocks(master, derivation, kind.size)
        return _DerivedKeys(sets=self, master=master, derivation=derivation, size=kind.size)

    def fixed(self, labels: tuple[KeyLabel, KeyLabel, KeyLabel]) -> StaticKeys:
        """See ``ports.KeyStore.fixed_keys``."""
        enc, mac, dek = (self._kind(label) for label in labels)
        size = require_fixed_set(labels, (enc, mac, dek))
        return _FixedKeys(sets=self, labels=dict(zip(KeyRole, labels, strict=True)), size=size)

    def _kind(self, label: KeyLabel) -> SecretKind:
        known = self._known.get(label)
        return (known or self.ask(lambda session: self.secret(session, label))).kind

    def examine(self, session: Session) -> None:
        """Look for every key that was used, by its label.  For jobs only.

        Raises:
            errors.NotFound: one is there no more.
            errors.IntegrityFailure: one is another one than before.
        """
        for label in tuple(self._known):
            self._secrets.pop(label, None)
            self.secret(session, label)

    def secret(self, session: Session, label: KeyLabel) -> _Secret:
        """Return a key, from the token if this session has not seen it.  For jobs only."""
        known = self._secrets.get(label)
        if known is not None and known.session is session:
            return known
        key = self._find(session, label)
        kind = kind_of_secret(key)
        if kind is None or any(flag(key, Attribute[use.upper()]) for use in _ALL_USES - kind.uses):
            raise errors.PolicyRefused(
                RULE,
                f"key {label!r} may do what no kind of key may: run keys check, it is not used",
            )
        found = _Secret(
            session=session,
            key=key,
            kind=kind,
            check_value=check_value(session, key, kind),
            subkey=subkey(key) if isinstance(key, DeriveMixin) else SecretBytes(b""),
        )
        before = self._known.setdefault(label, found)
        if (before.kind, before.check_value) != (found.kind, found.check_value):
            raise errors.IntegrityFailure(f"key {label!r} in the token is another one than before")
        self._secrets[label] = found
        return found


_ALL_USES = frozenset({"sign", "derive", "wrap", "unwrap", "encrypt", "decrypt"})


class _Carrier(StaticKeys, Protocol):
    """A set whose keys another one of the same store can take: what they look like in its session."""

    @property
    def sets(self) -> KeySets:
        """The store's."""
        ...

    def under(self, session: Session, dek: Object) -> tuple[WrappedKey, ...]:
        """Return the keys, encrypted under a K-DEK that is in the token.  For jobs only."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _DerivedKeys:
    """A set that is derived in the token."""

    sets: KeySets = field(repr=False)
    master: KeyLabel
    derivation: Derivation
    size: int

    @property
    def route(self) -> KeyRoute:
        """The keys are in the token, session by session."""
        return KeyRoute.IN_TOKEN

    def cmac(self, requests: Sequence[tuple[KeyRole, bytes]]) -> list[bytes]:
        """See ``StaticKeys``."""
        roles = {role for role, _ in requests}

        def compute(session: Session) -> list[bytes]:
            with ExitStack() as stack:
                keys = {
                    role: stack.enter_context(self._key(session, role, MechanismFlag.SIGN)) for role in roles
                }
                return [_cmac(keys[role], message) for role, message in requests]

        return self.sets.ask(compute)

    def wrap(self, keys: StaticKeys) -> tuple[WrappedKey, ...]:
        """See ``StaticKeys``."""
        return _wrap(self.sets, self.size, self._dek, keys)

    def wrap_value(self, key: SecretBytes) -> WrappedKey:
        """See ``StaticKeys``."""
        return _wrap_value(self.sets, self.size, self._dek, key)

    def under(self, session: Session, dek: Object) -> tuple[WrappedKey, ...]:
        """See ``_Carrier``: the token wraps keys that nobody has seen."""
        return tuple(self._wrapped(session, role, dek) for role in KeyRole)

    def _wrapped(self, session: Session, role: KeyRole, dek: Object) -> WrappedKey:
        padded = self.size + -self.size % BLOCK
        with ExitStack() as stack:
            key = stack.enter_context(self._key(session, role, MechanismFlag.ENCRYPT, extractable=True))
            checked = encrypted(key, CHECKED_BLOCK, Mechanism.AES_ECB)
            if padded != self.size:
                # CKM_AES_CBC wraps whole blocks: an AES-192 key travels with the rest of its second block,
                # which is as good a padding as any (GlobalPlatform Amendment D v1.2 section 7.2).
                key = stack.enter_context(
                    self._key(session, role, MechanismFlag(0), size=padded, extractable=True)
                )
            return WrappedKey(
                ciphertext=_wrapped_by(dek, key), check_value=checked[:KCV_OCTETS], size=self.size
            )

    def _dek(self, session: Session) -> AbstractContextManager[Object]:
        return self._key(session, KeyRole.DEK, MechanismFlag.WRAP | MechanismFlag.ENCRYPT)

    def _key(
        self,
        session: Session,
        role: KeyRole,
        use: MechanismFlag,
        *,
        size: int | None = None,
        extractable: bool = False,
    ) -> AbstractContextManager[Object]:
        master = self.sets.secret(session, self.master)
        blocks = single_blocks(self.derivation, role, self.size, master.subkey.reveal())
        if blocks is None or not isinstance(master.key, DeriveMixin):
            raise errors.IntegrityFailure(f"key {self.master!r} derives no longer")
        return derived(master.key, blocks, size or self.size, use, extractable=extractable)


@dataclass(frozen=True, slots=True, kw_only=True)
class _FixedKeys:
    """A set that stands in the token."""

    sets: KeySets = field(repr=False)
    labels: Mapping[KeyRole, KeyLabel]
    size: int

    @property
    def route(self) -> KeyRoute:
        """The keys are in the token."""
        return KeyRoute.IN_TOKEN

    def cmac(self, requests: Sequence[tuple[KeyRole, bytes]]) -> list[bytes]:
        """See ``StaticKeys``."""
        return self.sets.ask(
            lambda session: [_cmac(self._key(session, role), message) for role, message in requests]
        )

    def wrap(self, keys: StaticKeys) -> tuple[WrappedKey, ...]:
        """See ``StaticKeys``."""
        return _wrap(self.sets, self.size, self._dek, keys)

    def wrap_value(self, key: SecretBytes) -> WrappedKey:
        """See ``StaticKeys``."""
        return _wrap_value(self.sets, self.size, self._dek, key)

    def _dek(self, session: Session) -> AbstractContextManager[Object]:
        return nullcontext(self._key(session, KeyRole.DEK))

    def _key(self, session: Session, role: KeyRole) -> Object:
        return self.sets.secret(session, self.labels[role]).key


@dataclass(frozen=True, slots=True, kw_only=True)
class _CMACKeys:
    """A set that is derived by AES-CMAC under a key of the token, and used in this process."""

    sets: KeySets = field(repr=False)
    master: KeyLabel
    derivation: Derivation
    size: int

    @property
    def route(self) -> KeyRoute:
        """The keys are here, call by call."""
        return KeyRoute.SERVICE

    def cmac(self, requests: Sequence[tuple[KeyRole, bytes]]) -> list[bytes]:
        """See ``StaticKeys``."""
        return self.sets.ask(self.keys).cmac(requests)

    def wrap(self, keys: StaticKeys) -> tuple[WrappedKey, ...]:
        """See ``StaticKeys``."""
        if isinstance(keys, _CMACKeys) and keys.sets is self.sets:
            return self.sets.ask(self.keys).wrap(self.sets.ask(keys.keys))
        return _wrap(self.sets, self.size, self._dek, keys)

    def wrap_value(self, key: SecretBytes) -> WrappedKey:
        """See ``StaticKeys``."""
        return self.sets.ask(self.keys).wrap_value(key)

    def under(self, session: Session, dek: Object) -> tuple[WrappedKey, ...]:
        """See ``_Carrier``."""
        keys = self.keys(session)
        return tuple(_encrypted_key(dek, keys.key(role)) for role in KeyRole)

    def keys(self, session: Session) -> SoftwareKeys:
        """Return the keys.  For jobs only."""
        master = self.sets.secret(session, self.master).key

        def derive(role: KeyRole) -> SecretBytes:
            macs = [_cmac(master, message) for message in cmac_messages(self.derivation, role, self.size)]
            return SecretBytes(derived_key(self.derivation, self.size, macs))

        return SoftwareKeys(enc=derive(KeyRole.ENC), mac=derive(KeyRole.MAC), dek=derive(KeyRole.DEK))

    @contextmanager
    def _dek(self, session: Session) -> Iterator[Object]:
        """Bring K-DEK into the token for one job, so that keys that are in there can travel under it."""
        made = session.create_object(
            {
                Attribute.CLASS: ObjectClass.SECRET_KEY,
                Attribute.KEY_TYPE: KeyType.AES,
                Attribute.VALUE: self.keys(session).dek.reveal(),
                Attribute.TOKEN: False,
                Attribute.PRIVATE: True,
                Attribute.SENSITIVE: True,
                Attribute.EXTRACTABLE: False,
                Attribute.WRAP: True,
                Attribute.ENCRYPT: True,
            }
        )
        try:
            yield made
        finally:
            made.destroy()


# --- with a K-DEK in the token


def _wrap(
    sets: KeySets,
    size: int,
    dek: Callable[[Session], AbstractContextManager[Object]],
    keys: StaticKeys,
) -> tuple[WrappedKey, ...]:
    require_strength(size, keys.size)
    if isinstance(keys, SoftwareKeys):
        software = keys

        def encrypt(session: Session) -> tuple[WrappedKey, ...]:
            with dek(session) as transport:
                return tuple(_encrypted_key(transport, software.key(role)) for role in KeyRole)

        return sets.ask(encrypt)
    if not isinstance(keys, _DerivedKeys | _CMACKeys) or keys.sets is not sets:
        raise errors.PolicyRefused(RULE, "a set takes in sets of its own key store that are derived there")
    carrier: _Carrier = keys

    def wrap(session: Session) -> tuple[WrappedKey, ...]:
        with dek(session) as transport:
            return carrier.under(session, transport)

    return sets.ask(wrap)


def _wrap_value(
    sets: KeySets,
    size: int,
    dek: Callable[[Session], AbstractContextManager[Object]],
    key: SecretBytes,
) -> WrappedKey:
    require_strength(size, len(key))

    def encrypt(session: Session) -> WrappedKey:
        with dek(session) as transport:
            return _encrypted_key(transport, key)

    return sets.ask(encrypt)


def _encrypted_key(dek: Object, key: SecretBytes) -> WrappedKey:
    padded = key.reveal() + bytes(-len(key) % BLOCK)
    return WrappedKey(
        ciphertext=encrypted(dek, padded, Mechanism.AES_CBC, _NO_IV),
        check_value=kcv(key),
        size=len(key),
    )


def _cmac(key: Object, message: bytes) -> bytes:
    if not isinstance(key, SignMixin):
        raise errors.IntegrityFailure("the token gave a key other uses than asked: it may not sign")
    return bytes(key.sign(message, mechanism=Mechanism.AES_CMAC))


def _wrapped_by(dek: Object, key: Object) -> bytes:
    if not isinstance(dek, WrapMixin):
        raise errors.IntegrityFailure("the token gave a key other uses than asked: it may not wrap")
    try:
        return bytes(dek.wrap_key(key, mechanism=Mechanism.AES_CBC, mechanism_param=_NO_IV))  # type: ignore[arg-type]  # the stub knows no such mechanism
    except (foreign.KeyNotWrappable, foreign.KeyUnextractable) as refused:
        raise errors.PolicyRefused(
            RULE,
            "the token does not let a derived key out, not even wrapped: "
            "use a master key of a kind master-aes-…",
        ) from refused
