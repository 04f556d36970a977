"""What a log says of keys: made in ceremonies, put on record, copied, backed up, restored (SPEC B4, B5).

``KeysSaid`` takes the entries in their order; what it holds in the end is how the table of keys must look.  A
part of ``testimony``, which knows the other kinds of entry.
"""

from dataclasses import dataclass, field, replace

from birthmark import errors
from birthmark.services.entry_fields import Entry, known, objects_of, text_of, text_or_none, value_of

__all__ = ["KEY_ENTRIES", "KeySaid", "KeysSaid"]

KEY_ENTRIES = frozenset({"key-recorded", "key-accepted", "key-backed-up", "key-restored"})


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySaid:
    """A key, after the last entry about it: fields as ``KeyAsset`` has them, times as entries spell them."""

    store: str
    purpose: str
    kind: str
    policy: str
    users: str
    fingerprint: str
    ceremony: str | None
    created_at: str
    status: str = "active"
    backed_up_at: str | None = None
    backup_sha256: str | None = None


@dataclass(slots=True)
class KeysSaid:
    """All keys that entries speak of."""

    by_label: dict[str, KeySaid] = field(default_factory=dict)

    def take_ceremony(self, ceremony: str, entry: Entry) -> None:
        """Take the keys that a ceremony made.

        Raises:
            errors.MalformedRequest: the entry lists no keys, or one that there was before.
        """
        value_of(entry, "keys")
        for one in objects_of(entry, "keys"):
            said = KeySaid(
                store=text_of(one, "store"),
                purpose=text_of(one, "purpose"),
                kind=text_of(one, "kind"),
                policy=text_of(one, "policy"),
                users=text_of(one, "users"),
                fingerprint=text_of(one, "fingerprint"),
                ceremony=ceremony,
                created_at=text_of(one, "created_at"),
            )
            self._new(text_of(one, "label"), said)

    def take(self, entry: Entry) -> None:
        """Take an entry about one key.

        Raises:
            errors.MalformedRequest: a field is missing, the key is another than before, or there is none.
        """
        kind, label = entry["kind"], text_of(entry, "key")
        # A backup that is restored where its key was never on record puts it there.
        if kind == "key-recorded" or "purpose" in entry:
            self._take_new(label, entry)
            return
        was = known(self.by_label, "key", label)
        if text_of(entry, "fingerprint") != was.fingerprint:
            raise errors.MalformedRequest(f"key {label[:64]} has another fingerprint than before")
        if kind == "key-backed-up":
            digest = text_of(entry, "backup_sha256")
            self.by_label[label] = replace(was, backed_up_at=entry["at"], backup_sha256=digest)
            return
        store = text_of(entry, "key_store")
        if store not in was.store.split(","):
            self.by_label[label] = replace(was, store=f"{was.store},{store}")

    def _take_new(self, label: str, entry: Entry) -> None:
        said = KeySaid(
            store=text_of(entry, "key_store"),
            purpose=text_of(entry, "purpose"),
            kind=text_of(entry, "key_kind"),
            policy=text_of(entry, "policy"),
            users=text_of(entry, "users"),
            fingerprint=text_of(entry, "fingerprint"),
            ceremony=text_or_none(entry, "ceremony"),
            created_at=text_of(entry, "created_at"),
            backed_up_at=text_or_none(entry, "backed_up_at"),
            backup_sha256=text_or_none(entry, "backup_sha256"),
        )
        self._new(label, said)

    def _new(self, label: str, said: KeySaid) -> None:
        if label in self.by_label:
            raise errors.MalformedRequest(f"key {label[:64]} is on record already")
        self.by_label[label] = said
