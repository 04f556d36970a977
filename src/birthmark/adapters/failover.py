"""The key store of a service: one store or a pair, and no key but those on record (SPEC B3).

What uses a key asks the active store; when that is down, the other one, which is active from then on, as long
as it serves.  The first store is active again when it was well at so many examinations in a row, so that one
that comes and goes does not take the line with it.  What makes, takes in, wraps or lists keys asks the first
store alone: a pair holds the same keys because the same keys were brought there, never because both make one.

A key is used only if it is the one on record, in either store: whatever else has its label is not.  Of a key
that is not on record (a responder's in a realm for tests, say) the first store's is taken as it is found, and
a standby that was not compared with it is not used.  A key without its twin in the standby is held while the
first store is down.  A label names one key for good, so each store is asked once; a store itself sees to it
that a label does not change its key afterwards.

What is down is told in one sentence, the primary's reason first.  Left to others: how the same keys come
to be in two stores (docs/key-assets.md), examining (``doctor``), breakers (each store has its own).
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Protocol, TypeVar

from birthmark import errors
from birthmark.adapters.doctor import Patient
from birthmark.element.diversification import Derivation, KeyRole
from birthmark.element.keyset import KeyRoute, StaticKeys, WrappedKey
from birthmark.pki.attributes import KeyAttributes, SecretKind, SecretMade
from birthmark.pki.keys import KeyAlgorithm, KeyLabel, check_label
from birthmark.ports import Health, KeyStore
from birthmark.secret import SecretBytes

__all__ = ["FailoverKeyStore", "Member"]

T = TypeVar("T")


class Member(KeyStore, Patient, Protocol):
    """A key store that can be examined."""


Recorded = Callable[[KeyLabel], str | None]
"""Returns what a key is known by on record (``KeyAsset.fingerprint``), or None if it is not there."""


class FailoverKeyStore:
    """A primary store and perhaps a standby.  Safe to call from any thread.

    Args:
        primary: where keys are made.
        standby: a second one, or None.
        recorded: which key a label names; asked once for each key and store.
        return_after: after so many good examinations in a row the primary is active again.
    """

    def __init__(
        self,
        primary: Member,
        standby: Member | None = None,
        *,
        recorded: Recorded,
        return_after: int = 3,
    ) -> None:
        self._primary = primary
        self._standby = standby
        self._recorded = recorded
        self._return_after = return_after
        self._lock = threading.Lock()
        self._active = primary
        self._good_in_a_row = 0
        self._known: dict[KeyLabel, str] = {}
        """What keys are known by: on record, or else in the primary."""
        self._same: set[tuple[int, KeyLabel]] = set()
        """Stores (by ``id``: they live as long as we do) and labels that were found to be the known key."""
        self._changed_at = datetime.now(UTC)

    def __repr__(self) -> str:
        return repr(self._primary) if self._standby is None else f"{self._primary!r}, with a standby"

    @property
    def development(self) -> bool:
        """True if one of the stores keeps keys in process memory."""
        return any(member.development for member in self._members())

    # --- what uses a key

    def public_key(self, label: KeyLabel) -> bytes:
        """See ``ports.KeyStore``."""
        return self._used((label,), lambda store: store.public_key(label))

    def sign(self, label: KeyLabel, message: bytes) -> bytes:
        """See ``ports.KeyStore``."""
        return self._used((label,), lambda store: store.sign(label, message))

    def derived_keys(self, master: KeyLabel, derivation: Derivation) -> StaticKeys:
        """See ``ports.KeyStore``: each use of the set asks the store that is active then."""
        return self._set((master,), lambda store: store.derived_keys(master, derivation))

    def fixed_keys(self, labels: tuple[KeyLabel, KeyLabel, KeyLabel]) -> StaticKeys:
        """See ``ports.KeyStore``: likewise."""
        return self._set(labels, lambda store: store.fixed_keys(labels))

    # --- what only the primary does

    def generate(self, label: KeyLabel, algorithm: KeyAlgorithm, *, exportable: bool = False) -> bytes:
        """See ``ports.KeyStore``; in the primary only."""
        return self._first(lambda store: store.generate(label, algorithm, exportable=exportable))

    def generate_secret(
        self,
        label: KeyLabel,
        kind: SecretKind,
        *,
        recipients: Sequence[bytes] = (),
        officer: SecretBytes | None = None,
    ) -> SecretMade:
        """See ``ports.KeyStore``; in the primary only."""
        return self._first(
            lambda store: store.generate_secret(label, kind, recipients=recipients, officer=officer)
        )

    def generate_transport(self, label: KeyLabel) -> bytes:
        """See ``ports.KeyStore``; in the primary only."""
        return self._first(lambda store: store.generate_transport(label))

    def accept_secret(self, label: KeyLabel, kind: SecretKind, share: bytes, transport: KeyLabel) -> str:
        """See ``ports.KeyStore``; in the primary only."""
        return self._first(lambda store: store.accept_secret(label, kind, share, transport))

    def wrap(self, label: KeyLabel, kek: KeyLabel) -> bytes:
        """See ``ports.KeyStore``; in the primary only."""
        return self._first(lambda store: store.wrap(label, kek))

    def unwrap(self, label: KeyLabel, subject_public_key_info: bytes, wrapped: bytes, kek: KeyLabel) -> None:
        """See ``ports.KeyStore``; in the primary only."""
        self._first(lambda store: store.unwrap(label, subject_public_key_info, wrapped, kek))

    def attributes(self, label: KeyLabel) -> KeyAttributes:
        """See ``ports.KeyStore``; of the primary."""
        return self._first(lambda store: store.attributes(label))

    def inventory(self) -> tuple[KeyAttributes, ...]:
        """See ``ports.KeyStore``; of the primary."""
        return self._first(lambda store: store.inventory())

    def labels(self) -> tuple[KeyLabel, ...]:
        """See ``ports.KeyStore``; of the primary."""
        return self._first(lambda store: store.labels())

    # --- health

    def health(self) -> Health:
        """See ``ports.KeyStore``: a pair is up while one of the two is, and says that it is no pair then."""
        first = self._primary.health()
        if self._standby is None:
            return first
        second = self._standby.health()
        names = (f"primary {first.active}", f"standby {second.active}")
        since = max(first.since, second.since, self._changed_at)
        if not first.up and not second.up:
            reason = _both(first.reason, second.reason)
            return Health(up=False, reason=reason, since=since, active=names[self._active is self._standby])
        if not first.up:
            reason = f"redundancy is lost, only the standby works: {first.reason}"
            return Health(up=True, reason=reason, since=first.since, active=names[1])
        if not second.up:
            reason = f"redundancy is lost, only the primary works: {second.reason}"
            return Health(up=True, reason=reason, since=second.since, active=names[0])
        on_standby = self._active is self._standby
        reason = "the standby works until the primary has been well for long enough" if on_standby else ""
        return Health(up=True, reason=reason, since=since, active=names[on_standby])

    def examine(self) -> None:
        """See ``Patient``: examine both, and go back to the primary if it was well for long enough.

        Raises:
            errors.Refusal: what is wrong with one of them.
        """
        wrong: errors.Refusal | None = None
        for member in self._members():
            try:
                member.examine()
            except errors.Refusal as found:
                wrong = wrong or found
        well = self._primary.health().up
        with self._lock:
            self._good_in_a_row = self._good_in_a_row + 1 if well else 0
            if self._active is not self._primary and self._good_in_a_row >= self._return_after:
                self._activate(self._primary)
        if wrong is not None:
            raise wrong

    def stuck_seconds(self) -> float:
        """See ``Patient``: of a pair, both must be stuck for a new process to be of any use."""
        return min(member.stuck_seconds() for member in self._members())

    def close(self) -> None:
        """See ``ports.KeyStore``."""
        for member in self._members():
            member.close()

    # --- which store

    def _members(self) -> tuple[Member, ...]:
        return (self._primary,) if self._standby is None else (self._primary, self._standby)

    def _first(self, ask: Callable[[KeyStore], T]) -> T:
        try:
            return ask(self._primary)
        except errors.Unavailable as down:
            if self._standby is None:
                raise
            raise errors.Unavailable(f"{down}; its standby makes and manages no keys") from down

    def _used(self, labels: Sequence[KeyLabel], use: Callable[[KeyStore], T]) -> T:
        for label in labels:
            if label not in self._known and (known := self._recorded(check_label(label))) is not None:
                self._known[label] = known
        active = self._active
        try:
            return self._use(active, labels, use)
        except errors.Unavailable as down:
            other = self._standby if active is self._primary else self._primary
            if other is None:
                raise
            try:
                done = self._use(other, labels, use)
            except errors.Unavailable as also:
                reasons = (str(down), str(also)) if active is self._primary else (str(also), str(down))
                raise errors.Unavailable(_both(*reasons)) from also
        with self._lock:
            # A store that is well and only has not this key stays active for the others.
            if self._active is active and not active.health().up:
                self._activate(other)
        return done

    def _use(self, member: Member, labels: Sequence[KeyLabel], use: Callable[[KeyStore], T]) -> T:
        try:
            for label in labels:
                if (id(member), label) not in self._same:
                    self._require_same(member, label)
        except (errors.NotFound, errors.IntegrityFailure) as no_twin:
            if member is self._primary:
                raise
            raise errors.Unavailable(str(no_twin)) from no_twin
        return use(member)

    def _activate(self, member: Member) -> None:
        self._active = member
        self._changed_at = datetime.now(UTC)
        self._good_in_a_row = 0

    def _require_same(self, member: Member, label: KeyLabel) -> None:
        """Refuse a key that is not the one on record.

        Raises:
            errors.NotFound: the store has no such key.
            errors.IntegrityFailure: it has another one.
            errors.Unavailable: the store is down; or nobody knows which key it should be.
        """
        known = self._known.get(label)
        if known is None and member is not self._primary:
            raise errors.Unavailable(
                f"key {label!r} is not on record, and could not be compared with the primary's"
            )
        found = _fingerprint(member, label, known)
        if known is not None and found != known:
            raise errors.IntegrityFailure(f"key {label!r} in {member!r} is not the one on record")
        self._known[label] = found
        self._same.add((id(member), label))

    def _set(self, labels: tuple[KeyLabel, ...], find: Callable[[KeyStore], StaticKeys]) -> StaticKeys:
        keys = _SetOfPair(pair=self, labels=labels, find=find)
        sample = self._used(labels, find)
        if self._standby is None:
            return sample
        return replace(keys, size=sample.size, route=sample.route)

    def use_set(self, labels: Sequence[KeyLabel], use: Callable[[KeyStore], T]) -> T:
        """Have keys of one store do something: for the sets that this store gave out."""
        return self._used(labels, use)


@dataclass(frozen=True, slots=True, kw_only=True)
class _SetOfPair:
    """A key set that either store of a pair can make; both of one call come from one store."""

    pair: FailoverKeyStore = field(repr=False)
    labels: tuple[KeyLabel, ...]
    find: Callable[[KeyStore], StaticKeys] = field(repr=False)
    size: int = 0
    route: KeyRoute = KeyRoute.IN_TOKEN

    def cmac(self, requests: Sequence[tuple[KeyRole, bytes]]) -> list[bytes]:
        """See ``StaticKeys``."""
        return self.pair.use_set(self.labels, lambda store: self.find(store).cmac(requests))

    def wrap(self, keys: StaticKeys) -> tuple[WrappedKey, ...]:
        """See ``StaticKeys``."""
        if not isinstance(keys, _SetOfPair) or keys.pair is not self.pair:
            return self.pair.use_set(self.labels, lambda store: self.find(store).wrap(keys))
        other = keys
        return self.pair.use_set(
            (*self.labels, *other.labels), lambda store: self.find(store).wrap(other.find(store))
        )

    def wrap_value(self, key: SecretBytes) -> WrappedKey:
        """See ``StaticKeys``."""
        return self.pair.use_set(self.labels, lambda store: self.find(store).wrap_value(key))


def _both(primary: str, standby: str) -> str:
    """Say why neither serves: always in this order, so that it stays one reason."""
    return f"primary: {primary}; standby: {standby}"


def _fingerprint(store: KeyStore, label: KeyLabel, known: str | None) -> str:
    """Return what a key of a store is known by; a private key's is computed, a secret key's asked for."""
    if known is None or len(known) == 2 * sha256().digest_size:
        try:
            return sha256(store.public_key(label)).hexdigest()
        except errors.NotFound:
            if known is not None:
                raise
    return store.attributes(label).fingerprint
