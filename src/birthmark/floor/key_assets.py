"""The key assets of a realm: every key, what it is for, how it must be kept, and who may use it (SPEC B4).

A ``KeyAsset`` is what a ceremony decided; ``birthmark.pki.attributes.KeyAttributes`` is what a key store says
it holds.  ``compare`` holds one against the other.  A key that nobody decided on is as much a finding as one
that is gone.

What the purposes and policies are is decided here, in two tables; how a token enforces them is its own
affair.  In a development store every key can be read by whoever has its files, so its custody is one note
and not a finding for each attribute.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from birthmark.pki.attributes import KeyAttributes, KeyClass, SecretKind, TransportKind
from birthmark.pki.keys import KeyAlgorithm

__all__ = [
    "KeyAsset",
    "KeyFinding",
    "KeyPolicy",
    "KeyPurpose",
    "KeySeverity",
    "KeyStatus",
    "compare",
    "kind_of",
    "policy_for",
    "suits",
]


class KeyPurpose(StrEnum):
    """What a key is for."""

    ROOT_CA = "root-ca"
    INTERMEDIATE_CA = "intermediate-ca"
    ISSUING_CA = "issuing-ca"
    LOG = "log"
    CRL = "crl"
    OCSP_RESPONDER = "ocsp-responder"
    TLS = "tls"
    TOKEN = "token"  # noqa: S105  # a purpose
    """Signs what the gateway tells the applications behind it."""
    KEK = "kek"
    TRANSPORT = "transport"
    MASTER_DIVERSIFICATION = "master-diversification"
    """Keys of devices are derived from it: ours, or those their maker put in."""
    STATIC_KEY = "static-key"
    """One of K-ENC, K-MAC and K-DEK of a set that a delivery of elements shares, from their maker."""


class KeyPolicy(StrEnum):
    """How a key must be kept."""

    SIGNING = "signing"
    """A private key made in its token; signs only; never leaves."""
    SIGNING_WITH_BACKUP = "signing-with-backup"
    """As ``signing``, but may leave wrapped under a trusted key-encryption key."""
    SIGNING_RESTORED = "signing-restored"
    """A private key that came in wrapped; signs only; leaves no more."""
    KEK = "kek"
    """Wraps and unwraps; trusted by its token; leaves no more."""
    KEK_ACCEPTED = "kek-accepted"
    """A key-encryption key that came from another token: opens what was wrapped there."""
    TRANSPORT = "transport"
    """Takes a key-encryption key in; never leaves."""
    MASTER = "master"
    """Made in its token; does what its kind says and nothing else; never leaves."""
    SECRET_ACCEPTED = "secret-accepted"  # noqa: S105  # a policy
    """As ``master``, but came in encrypted, from the maker of the elements."""


class KeyStatus(StrEnum):
    """Whether a key should exist."""

    ACTIVE = "active"
    DESTROYED = "destroyed"


_COPIES: Mapping[KeyPolicy, KeyPolicy] = {
    KeyPolicy.SIGNING_WITH_BACKUP: KeyPolicy.SIGNING_RESTORED,
    KeyPolicy.KEK: KeyPolicy.KEK_ACCEPTED,
}
"""How a copy is kept of a key that is kept like this."""


class KeySeverity(StrEnum):
    """What a finding means."""

    ERROR = "error"
    """The key is not what was decided."""
    NOTE = "note"
    """A protection the store could not give; nothing changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyAsset:
    """One key that is decided upon.  A label names one key, for good."""

    label: str
    store: str
    """Which key stores hold it, with commas: the token's label, or ``software``.

    The first is where it was made, under ``policy``; the others hold copies that came in wrapped.
    """
    purpose: KeyPurpose
    kind: str
    """A ``KeyAlgorithm``, ``SecretKind`` or ``TransportKind``."""
    policy: KeyPolicy
    users: str
    """Who may use it: names of services or roles, with commas."""
    fingerprint: str
    """SHA-256 of the SubjectPublicKeyInfo, or a secret key's check value, in hexadecimal digits."""
    ceremony: str | None
    """Id of the ceremony that made it; None for a key made without one."""
    status: KeyStatus
    created_at: datetime
    backed_up_at: datetime | None
    backup_sha256: str | None
    """SHA-256 of the newest backup file, in hexadecimal digits."""

    @property
    def stores(self) -> tuple[str, ...]:
        """The names of the stores that hold it."""
        return tuple(self.store.split(","))

    def policy_in(self, store: str) -> KeyPolicy | None:
        """Return how the key must be kept in this store; None where it should not be."""
        if store not in self.stores:
            return None
        return self.policy if store == self.stores[0] else _COPIES.get(self.policy, self.policy)

    def copied_to(self, store: str) -> "KeyAsset":
        """Return the asset with a copy in one more store."""
        return self if store in self.stores else replace(self, store=f"{self.store},{store}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFinding:
    """One way in which a store differs from the table."""

    label: str
    severity: KeySeverity
    rule: str
    """A word for programs: ``missing``, ``unknown``, ``attribute`` …"""
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Custody:
    """What a policy asks of a live key."""

    key_class: KeyClass
    uses: frozenset[str] | None
    """None for those of the asset's kind."""
    needs: Mapping[str, bool]
    """Attributes that must be so: an error otherwise."""


_KEPT = {"token": True, "private": True, "sensitive": True}
_BORN_HERE = {**_KEPT, "always_sensitive": True, "local": True}
_NEVER_OUT = {**_BORN_HERE, "extractable": False, "never_extractable": True}
_WISHES: Mapping[str, bool] = {"modifiable": False}
"""Attributes that only some tokens give: a note otherwise."""

_CUSTODY: Mapping[KeyPolicy, _Custody] = {
    KeyPolicy.SIGNING: _Custody(key_class=KeyClass.PRIVATE, uses=frozenset({"sign"}), needs=_NEVER_OUT),
    KeyPolicy.SIGNING_WITH_BACKUP: _Custody(
        key_class=KeyClass.PRIVATE,
        uses=frozenset({"sign"}),
        needs={**_BORN_HERE, "extractable": True, "wrap_with_trusted": True},
    ),
    KeyPolicy.SIGNING_RESTORED: _Custody(
        key_class=KeyClass.PRIVATE, uses=frozenset({"sign"}), needs={**_KEPT, "extractable": False}
    ),
    # A KEK that was shared in its ceremony was extractable until then, so never_extractable is not asked.
    KeyPolicy.KEK: _Custody(
        key_class=KeyClass.SECRET,
        uses=frozenset({"wrap", "unwrap"}),
        needs={**_BORN_HERE, "extractable": False, "trusted": True},
    ),
    KeyPolicy.KEK_ACCEPTED: _Custody(
        key_class=KeyClass.SECRET,
        uses=frozenset({"wrap", "unwrap"}),
        needs={**_KEPT, "extractable": False},
    ),
    KeyPolicy.TRANSPORT: _Custody(key_class=KeyClass.PRIVATE, uses=frozenset({"unwrap"}), needs=_NEVER_OUT),
    KeyPolicy.MASTER: _Custody(key_class=KeyClass.SECRET, uses=None, needs=_NEVER_OUT),
    KeyPolicy.SECRET_ACCEPTED: _Custody(
        key_class=KeyClass.SECRET, uses=None, needs={**_KEPT, "extractable": False}
    ),
}

_POLICIES: Mapping[KeyPurpose, KeyPolicy] = {
    KeyPurpose.KEK: KeyPolicy.KEK,
    KeyPurpose.TRANSPORT: KeyPolicy.TRANSPORT,
    KeyPurpose.MASTER_DIVERSIFICATION: KeyPolicy.MASTER,
    KeyPurpose.STATIC_KEY: KeyPolicy.SECRET_ACCEPTED,
}
_ACCEPTED: Mapping[KeyPolicy, KeyPolicy] = {
    KeyPolicy.KEK: KeyPolicy.KEK_ACCEPTED,
    KeyPolicy.MASTER: KeyPolicy.SECRET_ACCEPTED,
}
"""How a key is kept that came in, if it would be kept like this where it was made."""


def policy_for(purpose: KeyPurpose, *, exportable: bool = False, accepted: bool = False) -> KeyPolicy:
    """Return how a key for this purpose must be kept.

    Args:
        purpose: of the key.
        exportable: it may leave its store, wrapped.
        accepted: it was not generated in its store, but came in, encrypted to a transport key.
    """
    signing = KeyPolicy.SIGNING_WITH_BACKUP if exportable else KeyPolicy.SIGNING
    policy = _POLICIES.get(purpose, signing)
    return _ACCEPTED.get(policy, policy) if accepted else policy


def suits(purpose: KeyPurpose, kind: KeyAlgorithm | SecretKind | TransportKind) -> bool:
    """Return whether a key of this kind can serve the purpose."""
    match purpose:
        case KeyPurpose.KEK:
            return kind is SecretKind.KEK
        case KeyPurpose.TRANSPORT:
            return isinstance(kind, TransportKind)
        case KeyPurpose.MASTER_DIVERSIFICATION:
            return isinstance(kind, SecretKind) and kind.uses <= {"sign", "derive"}
        case KeyPurpose.STATIC_KEY:
            return isinstance(kind, SecretKind) and kind.uses in ({"sign"}, {"wrap", "encrypt"})
        case _:
            return isinstance(kind, KeyAlgorithm)


def kind_of(text: str) -> KeyAlgorithm | SecretKind | TransportKind | None:
    """Return the kind of a key from its stored spelling, or None."""
    return next((kind for kind in (*KeyAlgorithm, *SecretKind, *TransportKind) if kind == text), None)


def compare(assets: Iterable[KeyAsset], live: Sequence[KeyAttributes], store: str) -> tuple[KeyFinding, ...]:
    """Hold the assets of one store against what it says it holds; no finding is good.

    Args:
        assets: of all stores; those of others are left out.
        live: all keys of the store (``KeyStore.inventory``).
        store: its name in the assets.
    """
    here = {asset.label: asset for asset in assets if store in asset.stores}
    return tuple(_findings(here, live, store))


def _findings(
    assets: Mapping[str, KeyAsset], live: Sequence[KeyAttributes], store: str
) -> Iterator[KeyFinding]:
    if any(key.development for key in live):
        yield KeyFinding(
            label="",
            severity=KeySeverity.NOTE,
            rule="development",
            detail="a development key store: whoever has its files and passphrase has its keys",
        )
    counted = Counter(key.label for key in live)
    for label, asset in sorted(assets.items()):
        if asset.status is KeyStatus.ACTIVE and not counted[label]:
            yield _error(label, "missing", f"the {asset.purpose} key is not in its store {store}")
    for label, count in sorted(counted.items()):
        if count > 1:
            yield _error(label, "ambiguous", f"{count} keys have this label")
    for key in live:
        found = assets.get(key.label)
        if found is None:
            yield _error(key.label, "unknown", f"a {key.key_class} key that is no asset of this store")
        elif found.status is KeyStatus.DESTROYED:
            yield _error(key.label, "not-destroyed", "the key was to be destroyed and is in the store")
        else:
            yield from _differences(found, found.policy_in(store) or found.policy, key)
        yield from _dangers(key)


def _differences(asset: KeyAsset, policy: KeyPolicy, key: KeyAttributes) -> Iterator[KeyFinding]:
    custody = _CUSTODY[policy]
    if key.key_class is not custody.key_class:
        yield _error(key.label, "class", f"is a {key.key_class} key, should be {custody.key_class}")
        return
    kind = "another" if key.kind is None else str(key.kind)
    if kind != asset.kind:
        yield _error(key.label, "kind", f"is of kind {kind}, should be {asset.kind}")
    if not key.fingerprint:
        yield _error(key.label, "fingerprint", "the store cannot show which key it is")
    elif key.fingerprint != asset.fingerprint:
        yield _error(
            key.label, "fingerprint", f"is another key: {key.fingerprint}, should be {asset.fingerprint}"
        )
    known = kind_of(asset.kind)
    uses = custody.uses or (known.uses if isinstance(known, SecretKind) else frozenset())
    for use in sorted(key.uses - uses):
        yield _error(key.label, "attribute", f"may {use}, which policy {policy} does not allow")
    for use in sorted(uses - key.uses):
        yield _error(key.label, "attribute", f"may not {use}, which policy {policy} wants")
    if key.development:
        return
    for name, wanted in custody.needs.items():
        if getattr(key, name) is not wanted:
            yield _error(
                key.label,
                "attribute",
                f"{_name(name)} is {str(not wanted).lower()}, should be {str(wanted).lower()}",
            )
    for name, wanted in _WISHES.items():
        if getattr(key, name) is not wanted:
            yield KeyFinding(
                label=key.label,
                severity=KeySeverity.NOTE,
                rule="attribute",
                detail=f"{_name(name)} is {str(not wanted).lower()}: the store does not fix it",
            )


def _dangers(key: KeyAttributes) -> Iterator[KeyFinding]:
    """What no key may be, whatever was decided."""
    if key.sign and key.derive:
        yield _error(
            key.label, "sign-and-derive", "may sign and derive: deriving can undo what signing is for"
        )
    if (key.wrap and key.decrypt) or (key.unwrap and key.encrypt):
        # Wrapping and encrypting go together in a K-DEK: neither undoes the other.
        yield _error(
            key.label,
            "wrap-and-decrypt",
            "may wrap and decrypt, or unwrap and encrypt: what it wraps can be read or chosen",
        )
    if not key.development and key.extractable and not key.wrap_with_trusted:
        yield _error(key.label, "unguarded", "may leave the token under any key, not only a trusted one")
    if not key.development and not key.sensitive:
        yield _error(key.label, "readable", "its value can be read from the token")


def _error(label: str, rule: str, detail: str) -> KeyFinding:
    return KeyFinding(label=label, severity=KeySeverity.ERROR, rule=rule, detail=detail)


def _name(attribute: str) -> str:
    return f"CKA_{attribute.upper()}"
