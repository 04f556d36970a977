"""The keys of a realm: put on record, held against their stores, backed up and brought back (SPEC B4, B5).

Whoever asks is judged first; then the key store acts, and the record follows in one commit with its entry in
the log.  What the store refuses is on record as a refusal only, and what it did without the record is found
by ``check_keys`` as a key that is no asset.
A restored key has opened under a key-encryption key whose check value is the file's, belongs to the file's
public key, and has signed, before anything says that it is there.

Left to others: ceremonies that decide on keys, files, and who watches whom.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from hashlib import sha256
from typing import Any, TypeVar

from birthmark import errors
from birthmark.floor.clients import Capability
from birthmark.floor.key_assets import (
    KeyAsset,
    KeyFinding,
    KeyPolicy,
    KeyPurpose,
    KeyStatus,
    compare,
    policy_for,
    suits,
)
from birthmark.floor.key_backups import KeyBackup
from birthmark.floor.realm import Environment, Realm
from birthmark.ledger.entry import time_text
from birthmark.pki.attributes import SecretKind
from birthmark.pki.keys import KeyAlgorithm, KeyLabel
from birthmark.pki.possession import verify_proof
from birthmark.ports import Clock, Decision, Entropy, Facts, KeyStore, Look, Store, UseCase
from birthmark.services.acts import Caller, admitted, decided, live_client, recorded

__all__ = ["KeyCustody", "check_keys"]

T = TypeVar("T")
_NO_TRIAL_BEGINS_LIKE_THIS = b"birthmark/restored-key/v1\n"


def check_keys(store: Store, keys: KeyStore, name: str) -> tuple[KeyFinding, ...]:
    """Hold the table against one live key store.

    Args:
        store: where the assets are on record.
        keys: the key store.
        name: of the key store, in the table.
    """
    return compare(store.scan(KeyAsset), keys.inventory(), name)


class KeyCustody:
    """The use cases that change what is on record of keys."""

    def __init__(self, realm: Realm, clock: Clock, entropy: Entropy) -> None:
        """Work for a realm."""
        self._realm = realm
        self._clock = clock
        self._entropy = entropy

    def record(self, caller: Caller | None, assets: Sequence[KeyAsset]) -> UseCase[tuple[KeyAsset, ...]]:
        """Put keys on record; ``caller`` is None only while a realm is made.

        Raises:
            errors.IllegalTransition: a label is on record for another key.
        """

        def decide(facts: Facts, at: datetime) -> Decision[tuple[KeyAsset, ...]]:
            _require_may(caller, facts, at)
            for asset in assets:
                if facts.get(KeyAsset, asset.label) is not None:
                    raise errors.IllegalTransition(f"key {asset.label} is on record already")
                facts.put(asset)
            return Decision(tuple(assets), [("key-recorded", _entry(asset)) for asset in assets])

        labels = [asset.label for asset in assets]
        return (yield from _commit(caller, "record-key", {"keys": labels}, labels, decide))

    def adopt(  # what is decided on a key
        self,
        caller: Caller | None,
        keys: KeyStore,
        name: str,
        label: KeyLabel,
        purpose: KeyPurpose,
        users: str,
        *,
        ceremony: str | None = None,
    ) -> UseCase[KeyAsset]:
        """Put a key that is in a store on record as it is there, under the policy of its purpose.

        Raises:
            errors.NotFound: the store has no such key.
            errors.PolicyRefused: it is not kept as its purpose wants (rule ``key-custody``).
            errors.IllegalTransition: the label is on record.
        """
        said = {"keys": [label]}
        yield from _admitted(caller, "record-key", said)
        as_it_is = self._as_it_is(keys, name, label, purpose, users, ceremony)
        asset = yield from recorded(caller, "record-key", said, as_it_is)
        (kept,) = yield from self.record(caller, [asset])
        return kept

    def generate(
        self,
        caller: Caller,
        keys: KeyStore,
        name: str,
        label: KeyLabel,
        purpose: KeyPurpose,
        make: Callable[[], T],
    ) -> UseCase[T]:
        """Make a key that has no ceremony, and put it on record: in a realm for tests only.

        Args:
            caller: an operator.
            keys: where it is made.
            name: of that store, in the table.
            label: of the key.
            purpose: of the key: to take key-encryption keys in, or to be one.
            make: makes it; called only once the caller is admitted.

        Raises:
            errors.NotPermitted: the realm is one of production, where a ceremony makes every key.
            errors.IllegalTransition: the label is taken, or on record.
            errors.PolicyRefused: the store makes none that is kept as its purpose wants.
        """

        def judge(facts: Facts, at: datetime) -> None:
            _require_may(caller, facts, at)
            if self._realm.environment is not Environment.TEST:
                raise errors.NotPermitted(
                    f"in production a ceremony makes key {label}: see 'birthmark ceremony template'"
                )
            if facts.get(KeyAsset, label) is not None:
                raise errors.IllegalTransition(f"key {label} is on record already")

        def made() -> UseCase[tuple[T, KeyAsset]]:
            outcome = make()
            asset = yield from self._as_it_is(keys, name, label, purpose, "custodians", None)
            return outcome, asset

        said = {"key": label}
        yield from admitted(caller, "generate-key", said, judge, {KeyAsset: [label]})
        outcome, asset = yield from recorded(caller, "generate-key", said, made())
        yield from self.record(caller, [asset])
        return outcome

    def _as_it_is(
        self,
        keys: KeyStore,
        name: str,
        label: KeyLabel,
        purpose: KeyPurpose,
        users: str,
        ceremony: str | None,
    ) -> UseCase[KeyAsset]:
        """Return a key of a store as an asset, if it is none yet and is kept as its purpose wants."""
        facts: Facts = yield Look({KeyAsset: (label,)})
        if facts.get(KeyAsset, label) is not None:
            raise errors.IllegalTransition(f"key {label} is on record already")
        live = keys.attributes(label)
        policy = policy_for(
            purpose,
            exportable=live.extractable and live.wrap_with_trusted,
            accepted=not live.local and not live.development,
        )
        asset = KeyAsset(
            label=label,
            store=name,
            purpose=purpose,
            kind=str(live.kind),
            policy=policy,
            users=users,
            fingerprint=live.fingerprint,
            ceremony=ceremony,
            status=KeyStatus.ACTIVE,
            created_at=self._clock.now(),
            backed_up_at=None,
            backup_sha256=None,
        )
        wrong = [finding for finding in compare([asset], [live], name) if finding.severity == "error"]
        if wrong:
            raise errors.PolicyRefused("key-custody", f"key {label}: {wrong[0].detail}")
        if live.kind is None or not suits(purpose, live.kind):
            raise errors.PolicyRefused(
                "key-custody", f"key {label}: a {live.kind} key is nothing for {purpose}"
            )
        return asset

    def accept(
        self,
        caller: Caller,
        keys: KeyStore,
        name: str,
        label: KeyLabel,
        share: bytes,
        transport: KeyLabel,
        check_value: str,
        *,
        kind: SecretKind = SecretKind.KEK,
        purpose: KeyPurpose = KeyPurpose.KEK,
        users: str = "custodians",
    ) -> UseCase[KeyAsset]:
        """Take a secret key into a store from its share; it must be the one that was read out.

        Given again after it was broken off, it goes on with the key that is there.

        Raises:
            errors.PolicyRefused: it has another check value (rule ``kek-check-value``, or ``check-value`` for
                other kinds), and stays in the store, where nothing uses it, for the custodians to destroy; or
                its kind is nothing for the purpose (``key-custody``).
            errors.NotPermitted: it is no KEK, and the realm is one of production, where a ceremony takes
                such a key in.
            errors.IllegalTransition: the label is taken, or on record for another key.
        """
        said = {"key": label}

        def judge(facts: Facts, at: datetime) -> None:
            _require_may(caller, facts, at)
            if kind is not SecretKind.KEK and self._realm.environment is not Environment.TEST:
                raise errors.NotPermitted(
                    f"in production a ceremony takes key {label} in: see 'birthmark ceremony template'"
                )
            if not suits(purpose, kind):
                raise errors.PolicyRefused("key-custody", f"a {kind} key is nothing for {purpose}")

        def taken_in() -> UseCase[KeyAsset | None]:
            facts: Facts = yield Look({KeyAsset: (label,)})
            known = facts.get(KeyAsset, label)
            if known is not None and known.fingerprint != check_value.lower():
                raise errors.IllegalTransition(
                    f"key {label} is on record with check value {known.fingerprint}"
                )
            if known is not None and known.kind != kind:
                raise errors.IllegalTransition(f"key {label} is on record as a {known.kind} key")
            try:
                found = keys.accept_secret(label, kind, share, transport)
            except errors.IllegalTransition:
                # Perhaps taken in before, and broken off before it was on record: then it is the same key.
                found = _taken_in_before(keys, name, label, kind, known)
            if found != check_value.lower():
                raise errors.PolicyRefused(
                    "kek-check-value" if kind is SecretKind.KEK else "check-value",
                    f"key {label} has check value {found}, not {check_value[:16]}",
                )
            if known is not None:
                return None
            return (yield from self._as_it_is(keys, name, label, purpose, users, None))

        yield from admitted(caller, "accept-key", said, judge)
        new = yield from recorded(caller, "accept-key", said, taken_in())
        if new is not None:
            (kept,) = yield from self.record(caller, [new])
            return kept

        def decide(facts: Facts, at: datetime) -> Decision[KeyAsset]:
            _require_may(caller, facts, at)
            asset = _active(facts, label).copied_to(name)
            facts.put(asset)
            entry = {"key": label, "key_store": name, "fingerprint": asset.fingerprint}
            return Decision(asset, [("key-accepted", entry)])

        return (yield from _commit(caller, "accept-key", said, [label], decide))

    def back_up(
        self, caller: Caller, keys: KeyStore, name: str, label: KeyLabel, kek: KeyLabel
    ) -> UseCase[bytes]:
        """Wrap a key under a key-encryption key and return its backup file, which is in the log.

        Raises:
            errors.NotFound: the key is not on record, or not in the store.
            errors.IllegalTransition: it was destroyed.
            errors.PolicyRefused: it may not leave its store, or not under this key (see ``KeyStore.wrap``).
            errors.IntegrityFailure: the store holds another key under this label.
        """
        said = {"key": label}
        yield from _admitted(caller, "back-up-key", said)
        wrapping = self._wrapped(keys, name, label, kek)
        backup = yield from recorded(caller, "back-up-key", said, wrapping)
        content = backup.to_bytes()
        digest = sha256(content).hexdigest()

        def decide(facts: Facts, at: datetime) -> Decision[bytes]:
            _require_may(caller, facts, at)
            known = _active(facts, label)
            facts.put(replace(known, backed_up_at=at, backup_sha256=digest))
            entry = {"key": label, "key_store": name, "kek": kek, "kek_check_value": backup.kek_check_value}
            return Decision(
                content,
                [("key-backed-up", {**entry, "fingerprint": backup.fingerprint, "backup_sha256": digest})],
            )

        return (yield from _commit(caller, "back-up-key", said, [label], decide))

    def _wrapped(self, keys: KeyStore, name: str, label: KeyLabel, kek: KeyLabel) -> UseCase[KeyBackup]:
        facts: Facts = yield Look({KeyAsset: (label, kek)})
        asset, kek_asset = _active(facts, label), _active(facts, kek)
        spki, live_kek = keys.public_key(label), keys.attributes(kek)
        for known, found in ((asset, sha256(spki).hexdigest()), (kek_asset, live_kek.fingerprint)):
            if known.fingerprint != found:
                raise errors.IntegrityFailure(f"key {known.label} in {name} is not the one on record")
        return KeyBackup(
            realm=self._realm.name,
            label=label,
            purpose=asset.purpose,
            algorithm=KeyAlgorithm(asset.kind),
            users=asset.users,
            subject_public_key_info=spki,
            store=name,
            kek=kek,
            kek_check_value=live_kek.fingerprint,
            wrapped=keys.wrap(label, kek),
            made_at=self._clock.now(),
            environment=str(self._realm.environment),
        )

    def restore(
        self, caller: Caller, keys: KeyStore, name: str, content: bytes, kek: KeyLabel | None = None
    ) -> UseCase[KeyAsset]:
        """Bring a key back from its backup file into a store that holds the key-encryption key.

        1. The file is one of this realm, and of the key that is on record under its label, if any is.
        2. The store's key-encryption key has the check value in the file.
        3. The wrapped key opens under it, and belongs to the public key in the file.
        4. The key signs a fresh message, and the public key in the file verifies it.
        5. The store is on record as one that holds the key.

        A restore that was cut short after step 3 is finished by doing it again.

        Raises:
            errors.MalformedRequest: the file is no backup, or does not open.
            errors.PolicyRefused: it is another realm's (rule ``realm``), or the key-encryption key is another
                one (``kek-check-value``).
            errors.IllegalTransition: the label is taken by another key.
            errors.IntegrityFailure: what was wrapped is not the key the file says.
        """
        digest = sha256(content).hexdigest()
        said = {"backup_sha256": digest}
        yield from _admitted(caller, "restore-key", said)
        unwrapping = self._unwrapped(keys, name, content, kek)
        backup = yield from recorded(caller, "restore-key", said, unwrapping)
        label = backup.label

        def decide(facts: Facts, at: datetime) -> Decision[KeyAsset]:
            _require_may(caller, facts, at)
            known = facts.get(KeyAsset, label)
            _require_same(known, backup)
            asset = _restored(backup, name, digest, at) if known is None else known.copied_to(name)
            facts.put(asset)
            said = {"key": label, "key_store": name, "fingerprint": asset.fingerprint}
            entry = (said if known is not None else _entry(asset)) | {"backup_sha256": digest}
            return Decision(asset, [("key-restored", entry)])

        return (yield from _commit(caller, "restore-key", said, [label], decide))

    def _unwrapped(
        self, keys: KeyStore, name: str, content: bytes, kek: KeyLabel | None
    ) -> UseCase[KeyBackup]:
        """Take steps 1 to 4 of ``restore``."""
        backup = KeyBackup.from_bytes(content)
        label = KeyLabel(backup.label)
        facts: Facts = yield Look({KeyAsset: (label,)})
        known = facts.get(KeyAsset, label)
        self._require_own(backup, known)
        _require_same(known, backup)
        opener = KeyLabel(backup.kek) if kek is None else kek
        _require_check_value(keys, opener, backup)
        if label not in keys.labels():
            keys.unwrap(label, backup.subject_public_key_info, backup.wrapped, opener)
        elif keys.attributes(label).fingerprint != backup.fingerprint:
            raise errors.IllegalTransition(f"there is another key {label} in {name} already")
        trial = _NO_TRIAL_BEGINS_LIKE_THIS + self._entropy.token(32)
        try:
            verify_proof(backup.subject_public_key_info, keys.sign(label, trial), trial)
        except errors.ProofFailed as wrong:
            raise errors.IntegrityFailure(f"key {label} does not sign as its public key says") from wrong
        return backup

    def _require_own(self, backup: KeyBackup, known: KeyAsset | None) -> None:
        """Refuse a key of another realm, also of one of the same name in the other environment (SPEC H6)."""
        environment = backup.environment
        if environment is None:  # a file of before they said it: the record has to know its key
            environment = "?" if known is None else self._realm.environment
        if (backup.realm, environment) != (self._realm.name, self._realm.environment):
            raise errors.PolicyRefused(
                "realm",
                f"the backup is of realm {backup.realm[:64]} ({environment[:16]}), this is {self._realm.name}"
                f" ({self._realm.environment})",
            )


def _commit(
    caller: Caller | None,
    request: str,
    said: Mapping[str, Any],
    labels: Sequence[str],
    decide: Callable[[Facts, datetime], Decision[T]],
) -> UseCase[T]:
    return (yield from decided(caller, request, said, decide, {KeyAsset: labels}))


def _admitted(caller: Caller | None, request: str, said: Mapping[str, Any]) -> UseCase[None]:
    return admitted(caller, request, said, partial(_require_may, caller))


def _require_may(caller: Caller | None, facts: Facts, at: datetime) -> None:
    if caller is not None:
        live_client(facts, caller, Capability.KEEP_KEYS, at)


def _taken_in_before(
    keys: KeyStore, name: str, label: KeyLabel, kind: SecretKind, known: KeyAsset | None
) -> str:
    """Return the check value of a key that is in a store and not on record there.

    Raises:
        errors.IllegalTransition: it is on record there, or is of another kind.
    """
    live = keys.attributes(label)
    if live.kind is not kind or (known is not None and name in known.stores):
        raise errors.IllegalTransition(f"there is a key labelled {label!r} already")
    return live.fingerprint


def _active(facts: Facts, label: str) -> KeyAsset:
    asset = facts.get(KeyAsset, label)
    if asset is None:
        raise errors.NotFound(f"key {label} is not on record: see 'birthmark keys adopt'")
    if asset.status is not KeyStatus.ACTIVE:
        raise errors.IllegalTransition(f"key {label} is {asset.status}")
    return asset


def _require_same(asset: KeyAsset | None, backup: KeyBackup) -> None:
    if asset is None:
        return
    if asset.fingerprint != backup.fingerprint:
        raise errors.IllegalTransition(f"key {asset.label} on record is another than the backup's")
    if asset.status is not KeyStatus.ACTIVE:
        raise errors.IllegalTransition(f"key {asset.label} is {asset.status}")


def _require_check_value(keys: KeyStore, kek: KeyLabel, backup: KeyBackup) -> None:
    live = keys.attributes(kek)
    if live.kind is not SecretKind.KEK:
        raise errors.PolicyRefused("kek", f"{kek} is no key-encryption key")
    if live.fingerprint != backup.kek_check_value:
        raise errors.PolicyRefused(
            "kek-check-value",
            f"key-encryption key {kek} has check value {live.fingerprint}, "
            f"the backup was made under {backup.kek_check_value[:16]}",
        )


def _restored(backup: KeyBackup, name: str, digest: str, at: datetime) -> KeyAsset:
    return KeyAsset(
        label=backup.label,
        store=name,
        purpose=backup.purpose,
        kind=str(backup.algorithm),
        policy=KeyPolicy.SIGNING_RESTORED,
        users=backup.users,
        fingerprint=backup.fingerprint,
        ceremony=None,
        status=KeyStatus.ACTIVE,
        created_at=at,
        backed_up_at=backup.made_at,
        backup_sha256=digest,
    )


def _entry(asset: KeyAsset) -> dict[str, Any]:
    return {
        "key": asset.label,
        "key_store": asset.store,
        "purpose": str(asset.purpose),
        "key_kind": asset.kind,
        "policy": str(asset.policy),
        "users": asset.users,
        "fingerprint": asset.fingerprint,
        "ceremony": asset.ceremony,
        "created_at": time_text(asset.created_at),
        "backed_up_at": None if asset.backed_up_at is None else time_text(asset.backed_up_at),
        "backup_sha256": asset.backup_sha256,
    }
