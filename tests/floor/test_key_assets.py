"""The comparison of what was decided with what a store says, attribute by attribute (SPEC B4)."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from birthmark.floor.key_assets import (
    KeyAsset,
    KeyPolicy,
    KeyPurpose,
    KeySeverity,
    KeyStatus,
    compare,
    kind_of,
    policy_for,
    suits,
)
from birthmark.pki.attributes import KeyAttributes, KeyClass, SecretKind, TransportKind
from birthmark.pki.keys import KeyAlgorithm

LIVE = KeyAttributes(
    label="ca",
    key_class=KeyClass.PRIVATE,
    kind=KeyAlgorithm.EC_P256,
    fingerprint="ab" * 32,
    development=False,
    token=True,
    private=True,
    sensitive=True,
    always_sensitive=True,
    extractable=False,
    never_extractable=True,
    local=True,
    sign=True,
    derive=False,
    wrap=False,
    unwrap=False,
    encrypt=False,
    decrypt=False,
    wrap_with_trusted=False,
    trusted=False,
    modifiable=False,
    copyable=False,
    destroyable=True,
)
ASSET = KeyAsset(
    label="ca",
    store="floor",
    purpose=KeyPurpose.ISSUING_CA,
    kind="ec-p256",
    policy=KeyPolicy.SIGNING,
    users="ca",
    fingerprint="ab" * 32,
    ceremony="c1",
    status=KeyStatus.ACTIVE,
    created_at=datetime(2026, 11, 22, tzinfo=UTC),
    backed_up_at=None,
    backup_sha256=None,
)


def turned(attribute: str) -> KeyAttributes:
    """Return the key with one attribute the other way."""
    changes: dict[str, Any] = {attribute: not getattr(LIVE, attribute)}
    return replace(LIVE, **changes)


def found(asset: KeyAsset, *live: KeyAttributes) -> list[tuple[str, str]]:
    return [(str(each.severity), each.rule) for each in compare([asset], live, "floor")]


def test_a_key_as_it_was_decided_has_no_finding() -> None:
    assert found(ASSET, LIVE) == []


@pytest.mark.parametrize(
    "attribute",
    ["token", "private", "sensitive", "always_sensitive", "extractable", "never_extractable", "local"],
)
def test_every_attribute_of_custody_counts(attribute: str) -> None:
    """B4: turned the other way, each is an error that names it."""
    findings = compare([ASSET], [turned(attribute)], "floor")
    named = [each for each in findings if f"CKA_{attribute.upper()}" in each.detail]
    assert [each.severity for each in named] == [KeySeverity.ERROR]


@pytest.mark.parametrize("use", ["derive", "wrap", "unwrap", "encrypt", "decrypt"])
def test_every_use_that_was_not_decided_counts(use: str) -> None:
    assert ("error", "attribute") in found(ASSET, turned(use))


def test_a_key_that_may_not_sign_is_no_ca_key() -> None:
    assert found(ASSET, replace(LIVE, sign=False)) == [("error", "attribute")]


@pytest.mark.parametrize(
    ("live", "rule"),
    [
        (replace(LIVE, sign=True, derive=True), "sign-and-derive"),
        (replace(LIVE, wrap=True, decrypt=True), "wrap-and-decrypt"),
        (replace(LIVE, unwrap=True, encrypt=True), "wrap-and-decrypt"),
        (replace(LIVE, extractable=True), "unguarded"),
        (replace(LIVE, sensitive=False), "readable"),
    ],
)
def test_what_no_key_may_be_is_found_even_of_a_stranger(live: KeyAttributes, rule: str) -> None:
    stranger = replace(live, label="stranger")
    assert ("error", rule) in found(ASSET, LIVE, stranger)
    assert ("error", "unknown") in found(ASSET, LIVE, stranger)


def test_another_key_of_the_name_is_found() -> None:
    assert found(ASSET, replace(LIVE, fingerprint="cd" * 32)) == [("error", "fingerprint")]
    assert found(ASSET, replace(LIVE, fingerprint="")) == [("error", "fingerprint")]
    assert found(ASSET, replace(LIVE, kind=KeyAlgorithm.EC_P384)) == [("error", "kind")]
    assert found(ASSET, replace(LIVE, kind=None)) == [("error", "kind")]
    secret = replace(LIVE, key_class=KeyClass.SECRET, kind=SecretKind.MASTER_AES_256)
    assert found(ASSET, secret) == [("error", "class")]


def test_keys_that_are_gone_twice_there_or_not_destroyed_are_found() -> None:
    assert found(ASSET) == [("error", "missing")]
    assert ("error", "ambiguous") in found(ASSET, LIVE, replace(LIVE, fingerprint="cd" * 32))
    destroyed = replace(ASSET, status=KeyStatus.DESTROYED)
    assert found(destroyed) == []
    assert found(destroyed, LIVE) == [("error", "not-destroyed")]


def test_a_store_that_does_not_fix_keys_is_noted() -> None:
    assert found(ASSET, replace(LIVE, modifiable=True)) == [("note", "attribute")]


def test_a_development_store_is_one_note_and_its_uses_still_count() -> None:
    """B2: labelled so wherever it shows."""
    file = replace(LIVE, development=True, sensitive=False, extractable=True, never_extractable=False)
    assert found(ASSET, file) == [("note", "development")]
    assert found(ASSET, replace(file, decrypt=True)) == [("note", "development"), ("error", "attribute")]


def test_a_backup_needs_the_guard() -> None:
    asset = replace(ASSET, policy=KeyPolicy.SIGNING_WITH_BACKUP)
    guarded = replace(LIVE, extractable=True, never_extractable=False, wrap_with_trusted=True)
    assert found(asset, guarded) == []
    assert ("error", "unguarded") in found(asset, replace(guarded, wrap_with_trusted=False))
    assert found(asset, LIVE) != []


def test_a_copy_is_held_to_the_policy_of_copies() -> None:
    asset = replace(ASSET, policy=KeyPolicy.SIGNING_WITH_BACKUP).copied_to("mirror")
    assert asset.copied_to("mirror") == asset
    assert (asset.policy_in("mirror"), asset.policy_in("nowhere")) == (KeyPolicy.SIGNING_RESTORED, None)
    restored = replace(LIVE, always_sensitive=False, never_extractable=False, local=False)
    assert compare([asset], [restored], "mirror") == ()
    assert compare([asset], [], "nowhere") == ()
    wrong = compare([asset], [replace(restored, extractable=True, wrap_with_trusted=True)], "mirror")
    assert [each.rule for each in wrong] == ["attribute"]


def test_every_purpose_has_its_policy() -> None:
    special = {
        KeyPurpose.KEK: KeyPolicy.KEK,
        KeyPurpose.TRANSPORT: KeyPolicy.TRANSPORT,
        KeyPurpose.MASTER_DIVERSIFICATION: KeyPolicy.MASTER,
        KeyPurpose.STATIC_KEY: KeyPolicy.SECRET_ACCEPTED,
    }
    came_in = {
        KeyPurpose.KEK: KeyPolicy.KEK_ACCEPTED,
        KeyPurpose.TRANSPORT: KeyPolicy.TRANSPORT,
        KeyPurpose.MASTER_DIVERSIFICATION: KeyPolicy.SECRET_ACCEPTED,
        KeyPurpose.STATIC_KEY: KeyPolicy.SECRET_ACCEPTED,
    }
    for purpose in KeyPurpose:
        assert policy_for(purpose, accepted=True) is came_in.get(purpose, KeyPolicy.SIGNING)
        assert policy_for(purpose) is special.get(purpose, KeyPolicy.SIGNING)
        exportable = policy_for(purpose, exportable=True)
        assert exportable is special.get(purpose, KeyPolicy.SIGNING_WITH_BACKUP)


SECRET = replace(
    LIVE, label="m", key_class=KeyClass.SECRET, kind=SecretKind.DIVERSIFY_AES_256, sign=False, derive=True
)
MASTER = replace(
    ASSET,
    label="m",
    purpose=KeyPurpose.MASTER_DIVERSIFICATION,
    kind=str(SecretKind.DIVERSIFY_AES_256),
    policy=KeyPolicy.MASTER,
)


@pytest.mark.parametrize(
    ("kind", "uses"),
    [
        (SecretKind.MASTER_AES_128, {"sign": True}),
        (SecretKind.DIVERSIFY_AES_256, {"derive": True}),
        (SecretKind.DEK_AES_192, {"wrap": True, "encrypt": True}),
    ],
)
def test_a_secret_key_may_do_what_its_kind_says_and_nothing_else(
    kind: SecretKind, uses: dict[str, bool]
) -> None:
    """A master key that signs as well as derives is an error twice over, and a K-DEK that decrypts."""
    for policy, born in ((KeyPolicy.MASTER, True), (KeyPolicy.SECRET_ACCEPTED, False)):
        asset = replace(MASTER, kind=str(kind), policy=policy)
        live = replace(SECRET, kind=kind, derive=False, local=born, always_sensitive=born)
        live = replace(live, never_extractable=born, **uses)  # type: ignore[arg-type]  # the uses are booleans
        assert found(asset, live) == []
        for use in ("sign", "derive", "wrap", "unwrap", "encrypt", "decrypt"):
            changed = replace(live, **{use: use not in uses})  # type: ignore[arg-type]  # the uses are booleans
            assert ("error", "attribute") in found(asset, changed)
        assert found(asset, replace(live, extractable=True, wrap_with_trusted=True)) != []
    assert ("error", "sign-and-derive") in found(MASTER, replace(SECRET, sign=True))
    assert ("error", "attribute") in found(MASTER, replace(SECRET, local=False))


def test_a_purpose_is_served_by_its_kinds() -> None:
    """K-ENC and K-MAC compute CMACs as a master key of that route does; a K-DEK is no master."""
    served = {
        KeyPurpose.KEK: {"kek"},
        KeyPurpose.TRANSPORT: {"transport"},
        KeyPurpose.MASTER_DIVERSIFICATION: {"master", "diversify"},
        KeyPurpose.STATIC_KEY: {"master", "dek"},
    }
    for purpose in KeyPurpose:
        kinds = {kind for kind in (*KeyAlgorithm, *SecretKind, *TransportKind) if suits(purpose, kind)}
        if purpose in served:
            assert {kind.partition("-")[0] for kind in kinds} == served[purpose]
        else:
            assert kinds == set(KeyAlgorithm)


def test_every_kind_is_spelled_as_it_is_stored() -> None:
    for kind in (*KeyAlgorithm, *SecretKind, *TransportKind):
        assert kind_of(str(kind)) is kind
    assert kind_of("rot13") is None
