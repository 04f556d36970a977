"""Custody in real tokens: what is enforced there, and what SoftHSM does in its own way (SPEC B4, B5)."""

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap_with_padding
from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, Object, ObjectClass, Session, WrapMixin
from pkcs11 import exceptions as foreign
from pkcs11.exceptions import PKCS11Error

from birthmark import errors
from birthmark.adapters.ecpoint import CURVE_NAMES
from birthmark.adapters.pkcs11 import PKCS11KeyStore
from birthmark.adapters.softkeys import SoftwareKeyStore
from birthmark.adapters.softsecrets import open_share
from birthmark.floor.key_assets import (
    KeyAsset,
    KeyPolicy,
    KeyPurpose,
    KeySeverity,
    KeyStatus,
    compare,
)
from birthmark.pki import profiles
from birthmark.pki.attributes import SecretKind
from birthmark.pki.certificates import to_pem
from birthmark.pki.issuance import build_root, sign_certificate
from birthmark.pki.keys import KeyAlgorithm, KeyLabel
from birthmark.pki.lint import permit
from birthmark.secret import SecretBytes
from tests.support.keystores import KEK, TRANSPORT, Sites, share_kek, sites
from tests.support.programs import need
from tests.support.softhsm import SoftHSM, softhsm_token

CA = KeyLabel("ca")
WRAPPING = MechanismFlag.WRAP | MechanismFlag.UNWRAP
HIDDEN = {Attribute.PRIVATE: True, Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False}
NOW = datetime(2026, 11, 22, tzinfo=UTC)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Sites]:
    with sites("token", tmp_path) as made:
        yield made


@pytest.fixture
def token(tmp_path: Path) -> Iterator[SoftHSM]:
    with softhsm_token(tmp_path) as made:
        yield made


def opened(token: SoftHSM) -> PKCS11KeyStore:
    return PKCS11KeyStore.open(token.module, token.label, token.pin)


def officer(token: SoftHSM) -> SecretBytes:
    return SecretBytes(token.so_pin.encode())


def one(session: Session, label: str, kind: ObjectClass) -> Object:
    (found,) = session.get_objects({Attribute.LABEL: label, Attribute.CLASS: kind})
    return found


def pair(session: Session, label: str, **attributes: bool) -> Object:
    """Make an EC key past our key store."""
    parameters = session.create_domain_parameters(
        KeyType.EC, {Attribute.EC_PARAMS: CURVE_NAMES[KeyAlgorithm.EC_P256][0]}, local=True
    )
    _public, private = parameters.generate_keypair(
        label=label,
        id=label.encode(),
        store=True,
        capabilities=MechanismFlag.SIGN | MechanismFlag.VERIFY,
        private_template={
            **HIDDEN,
            **{Attribute[name]: value for name, value in attributes.items()},
        },
    )
    return private


def recorded(store: PKCS11KeyStore, label: str, purpose: KeyPurpose, policy: KeyPolicy) -> KeyAsset:
    live = store.attributes(KeyLabel(label))
    return KeyAsset(
        label=label,
        store="floor",
        purpose=purpose,
        kind=str(live.kind),
        policy=policy,
        users="ca",
        fingerprint=live.fingerprint,
        ceremony="c1",
        status=KeyStatus.ACTIVE,
        created_at=NOW,
        backed_up_at=None,
        backup_sha256=None,
    )


def rules(assets: list[KeyAsset], store: PKCS11KeyStore) -> set[tuple[str, str]]:
    findings = compare(assets, store.inventory(), "floor")
    return {(each.label, each.rule) for each in findings if each.severity is KeySeverity.ERROR}


def test_a_restored_ca_key_signs_a_certificate_that_openssl_verifies(place: Sites, tmp_path: Path) -> None:
    """B5: made in one token, wrapped, restored into another, and still the same authority."""
    share_kek(place)
    spki = place.here.generate(CA, KeyAlgorithm.EC_P384, exportable=True)
    place.mirror.unwrap(CA, spki, place.here.wrap(CA, KEK), KEK)
    variables = {"organization": "Nord AG", "realm": "nord", "environment_mark": " TEST"}
    made = []
    for number, store in enumerate((place.here, place.mirror), 1):
        tbs = build_root(
            profiles.load("root"),
            key_label=CA,
            serial_number=(1 << 150) + number,
            subject_public_key_info=spki,
            not_before=NOW,
            variables=variables,
        )
        path = tmp_path / f"{number}.pem"
        path.write_text(to_pem(sign_certificate(permit(tbs), store.sign)))
        made.append(str(path))
    shown = set()
    for certificate in made:
        subprocess.run(
            [
                need("openssl"),
                "verify",
                "-check_ss_sig",
                "-no_check_time",
                "-CAfile",
                certificate,
                certificate,
            ],
            check=True,
            capture_output=True,
        )
        read = [need("openssl"), "x509", "-in", certificate, "-noout", "-pubkey"]
        shown.add(subprocess.run(read, check=True, capture_output=True, text=True).stdout)
    assert shown == {to_pem(spki, "PUBLIC KEY")}


def test_each_policy_is_what_the_store_makes(place: Sites) -> None:
    """B4: a store fresh from a ceremony has no finding, and no note."""
    share_kek(place)
    place.here.generate_transport(TRANSPORT)
    place.here.generate_secret(KeyLabel("master"), SecretKind.MASTER_AES_256)
    spki = place.here.generate(CA, KeyAlgorithm.EC_P256, exportable=True)
    place.here.generate(KeyLabel("log"), KeyAlgorithm.ED25519)
    place.mirror.unwrap(CA, spki, place.here.wrap(CA, KEK), KEK)
    assert isinstance(place.here, PKCS11KeyStore)
    assert isinstance(place.mirror, PKCS11KeyStore)
    assets = [
        recorded(place.here, KEK, KeyPurpose.KEK, KeyPolicy.KEK).copied_to("mirror"),
        recorded(place.here, CA, KeyPurpose.ISSUING_CA, KeyPolicy.SIGNING_WITH_BACKUP).copied_to("mirror"),
        recorded(place.here, "log", KeyPurpose.LOG, KeyPolicy.SIGNING),
        recorded(place.here, "master", KeyPurpose.MASTER_DIVERSIFICATION, KeyPolicy.MASTER),
        recorded(place.here, TRANSPORT, KeyPurpose.TRANSPORT, KeyPolicy.TRANSPORT),
    ]
    assert compare(assets, place.here.inventory(), "floor") == ()
    (at_mirror,) = compare(assets, place.mirror.inventory(), "mirror")
    assert (at_mirror.label, at_mirror.rule) == (TRANSPORT, "unknown")


def test_a_key_that_was_tampered_with_is_found(token: SoftHSM) -> None:
    """B4: extractable, of another value, with another use, gone, added: each has its finding."""
    with opened(token) as store:
        for label in ("one", "two", "three", "four"):
            store.generate(KeyLabel(label), KeyAlgorithm.EC_P256)
        assets = [
            recorded(store, label, KeyPurpose.ISSUING_CA, KeyPolicy.SIGNING)
            for label in ("one", "two", "three", "four")
        ]
        assert rules(assets, store) == set()
    with token.session() as session:
        for label in ("one", "two", "three", "four"):
            for kind in (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY):
                one(session, label, kind).destroy()
        pair(session, "one", EXTRACTABLE=True)
        pair(session, "two", DERIVE=True)
        pair(session, "three")
        pair(session, "A key of somebody's", EXTRACTABLE=True, SENSITIVE=False)
        one(session, "three", ObjectClass.PUBLIC_KEY).destroy()
        session.generate_key(
            KeyType.AES, 256, label="hidden", store=True, template=HIDDEN, capabilities=WRAPPING
        )
    with opened(token) as store:
        found = rules(assets, store)
    assert found == {
        ("one", "attribute"),
        ("one", "fingerprint"),
        ("one", "unguarded"),
        ("two", "attribute"),
        ("two", "fingerprint"),
        ("two", "sign-and-derive"),
        ("three", "fingerprint"),
        ("three", "kind"),
        ("four", "missing"),
        ("A key of somebody's", "unknown"),
        ("A key of somebody's", "unguarded"),
        ("A key of somebody's", "readable"),
        ("hidden", "unknown"),
    }


def test_an_unguarded_key_is_not_backed_up(token: SoftHSM) -> None:
    """B5: CKA_EXTRACTABLE without CKA_WRAP_WITH_TRUSTED would go under any key."""
    with opened(token) as store:
        store.generate_secret(KEK, SecretKind.KEK, officer=officer(token))
    with token.session() as session:
        pair(session, "loose", EXTRACTABLE=True)
    with opened(token) as store, pytest.raises(errors.PolicyRefused, match="under any key") as refused:
        store.wrap(KeyLabel("loose"), KEK)
    assert refused.value.rule == "key-unguarded"


def test_a_kek_takes_the_security_officer(token: SoftHSM) -> None:
    """B5: without him there is none, with a wrong PIN neither, and the store goes on."""
    with opened(token) as store:
        with pytest.raises(errors.PolicyRefused) as refused:
            store.generate_secret(KEK, SecretKind.KEK)
        assert refused.value.rule == "token-trust"
        with pytest.raises(errors.NotPermitted, match="security officer") as wrong:
            store.generate_secret(KEK, SecretKind.KEK, officer=SecretBytes(b"wrong-pin-4711"))
        assert "4711" not in str(wrong.value)
        with pytest.raises(errors.MalformedRequest, match="not UTF-8") as no_text:
            store.generate_secret(KEK, SecretKind.KEK, officer=SecretBytes(b"4711\xff"))
        assert no_text.value.__cause__ is None
        assert no_text.value.__suppress_context__
        assert store.labels() == ()
        store.generate_secret(KEK, SecretKind.KEK, officer=officer(token))
        store.generate(CA, KeyAlgorithm.EC_P256)
        assert store.sign(CA, b"the user is logged in again")


def test_softhsm_heeds_wrap_with_trusted(token: SoftHSM) -> None:
    """What the whole of B5 rests on: only a trusted key wraps a guarded one, and a user cannot make one."""
    with opened(token) as store:
        store.generate(CA, KeyAlgorithm.EC_P256, exportable=True)
    with token.session() as session:
        key = one(session, CA, ObjectClass.PRIVATE_KEY)
        own = session.generate_key(KeyType.AES, 256, template=HIDDEN, capabilities=WRAPPING)
        assert isinstance(own, WrapMixin)
        with pytest.raises(foreign.KeyNotWrappable):
            own.wrap_key(key, mechanism=Mechanism.AES_KEY_WRAP_PAD)  # type: ignore[arg-type]  # the stub knows no such mechanism
        with pytest.raises(foreign.AttributeReadOnly):
            own[Attribute.TRUSTED] = True
        with pytest.raises(foreign.AttributeReadOnly):
            own.copy({Attribute.TRUSTED: True})
        with pytest.raises(foreign.AttributeReadOnly):
            session.generate_key(
                KeyType.AES, 256, template={**HIDDEN, Attribute.TRUSTED: True}, capabilities=WRAPPING
            )


@pytest.mark.parametrize("attribute", ["WRAP_WITH_TRUSTED", "SENSITIVE", "DERIVE", "DECRYPT", "SIGN"])
def test_softhsm_keeps_a_fixed_key_as_it_is(token: SoftHSM, attribute: str) -> None:
    """B4: CKA_MODIFIABLE and CKA_COPYABLE are false, and that is heeded (CKR_ACTION_PROHIBITED, 0x1b)."""
    with opened(token) as store:
        store.generate(CA, KeyAlgorithm.EC_P256, exportable=True)
    with token.session() as session:
        key = one(session, CA, ObjectClass.PRIVATE_KEY)
        before = bool(key[Attribute[attribute]])
        with pytest.raises(PKCS11Error, match="0x1b"):
            key[Attribute[attribute]] = not before
        with pytest.raises(PKCS11Error, match="0x1b"):
            key.copy({Attribute[attribute]: not before})
        assert bool(key[Attribute[attribute]]) is before


def test_softhsm_lets_a_key_that_is_not_fixed_be_given_other_uses(token: SoftHSM) -> None:
    """Why keys are made fixed: a user could otherwise let a KEK decrypt, and read what it wrapped."""
    with token.session() as session:
        kek = session.generate_key(KeyType.AES, 256, store=True, template=HIDDEN, capabilities=WRAPPING)
        kek[Attribute.DECRYPT] = True
        assert kek[Attribute.DECRYPT] is True
    with opened(token) as store:
        store.generate_secret(KEK, SecretKind.KEK, officer=officer(token))
    with token.session() as session:
        ours = one(session, KEK, ObjectClass.SECRET_KEY)
        with pytest.raises(PKCS11Error, match="0x1b"):
            ours[Attribute.DECRYPT] = True
        with pytest.raises(PKCS11Error):
            ours.copy({Attribute.DECRYPT: True})
        with pytest.raises(PKCS11Error):
            ours.copy({Attribute.MODIFIABLE: True})


def test_softhsm_keeps_a_restored_key_as_it_is(place: Sites) -> None:
    """B5: it cannot be told not to be copyable, but what is not modifiable it does not copy."""
    share_kek(place)
    spki = place.here.generate(CA, KeyAlgorithm.EC_P256, exportable=True)
    place.mirror.unwrap(CA, spki, place.here.wrap(CA, KEK), KEK)
    assert place.mirror.attributes(CA).copyable
    place.here.close()
    place.mirror.close()
    assert place.token is not None
    with replace(place.token, label="mirror").session() as session:
        key = one(session, CA, ObjectClass.PRIVATE_KEY)
        for changed in (Attribute.DERIVE, Attribute.MODIFIABLE):
            with pytest.raises(PKCS11Error):
                key[changed] = True
            with pytest.raises(PKCS11Error):
                key.copy({changed: True})


def test_the_value_of_a_kek_is_not_on_the_disk(tmp_path: Path) -> None:
    """B5: an object the security officer stores is in clear in SoftHSM's files; ours never is."""
    with sites("token-to-software", tmp_path) as place:
        made = share_kek(place)
        assert isinstance(place.mirror, SoftwareKeyStore)
        assert place.token is not None
        value = open_share(place.mirror._transport(TRANSPORT), SecretKind.KEK, made.shares[0])  # noqa: SLF001  # what the test is about lies inside
        files = [path.read_bytes() for path in place.token.tokens.rglob("*") if path.is_file()]
    assert len(files) > 3
    assert not [content for content in files if value.reveal() in content]


def test_softhsm_stores_what_the_security_officer_makes_in_clear(token: SoftHSM) -> None:
    """Why a KEK is born as an object of a session: the officer can make no private object (pinned)."""
    import pkcs11  # noqa: PLC0415  # only this test needs it

    library = pkcs11.lib(str(token.module.resolve()))
    value = bytes(range(32))
    trusted = {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False, Attribute.TRUSTED: True}
    try:
        session = library.get_token(token_label=token.label).open(rw=True, so_pin=token.so_pin)
        with pytest.raises(foreign.UserNotLoggedIn):
            session.generate_key(KeyType.AES, 256, store=True, template={**trusted, Attribute.PRIVATE: True})
        session.create_object(
            {
                Attribute.CLASS: ObjectClass.SECRET_KEY,
                Attribute.KEY_TYPE: KeyType.AES,
                Attribute.VALUE: value,
                Attribute.TOKEN: True,
                Attribute.PRIVATE: False,
                Attribute.SENSITIVE: True,
            }
        )
        made = session.generate_key(
            KeyType.AES, 256, store=True, template={**HIDDEN, Attribute.PRIVATE: False}
        )
        with pytest.raises(foreign.AttributeReadOnly):
            made[Attribute.TRUSTED] = True  # PKCS#11 would let the officer; SoftHSM only at birth
    finally:
        library.finalize()
    assert [path for path in token.tokens.rglob("*") if path.is_file() and value in path.read_bytes()]


def test_softhsm_cannot_wrap_ed25519(place: Sites) -> None:
    """B5: said when it is asked for; there is no backup of such a key."""
    share_kek(place)
    place.here.generate(CA, KeyAlgorithm.ED25519, exportable=True)
    with pytest.raises(errors.PolicyRefused, match="cannot wrap") as refused:
        place.here.wrap(CA, KEK)
    assert refused.value.rule == "token"


def test_softhsm_pads_a_key_before_it_wraps_it(tmp_path: Path) -> None:
    """RFC 5649 pads by itself and says how much; SoftHSM 2.6 hands it octets it has padded with zeros."""
    with sites("token-to-software", tmp_path) as place:
        made = share_kek(place)
        place.here.generate(CA, KeyAlgorithm.EC_P256, exportable=True)
        wrapped = place.here.wrap(CA, KEK)
        assert isinstance(place.mirror, SoftwareKeyStore)
        kek = open_share(place.mirror._transport(TRANSPORT), SecretKind.KEK, made.shares[0])  # noqa: SLF001  # what the test is about lies inside
    plain = aes_key_unwrap_with_padding(kek.reveal(), wrapped)
    assert len(plain) == 72
    assert plain[1] + 2 == 67
    assert plain.endswith(bytes(5))


def test_softhsm_has_no_check_value_for_an_accepted_key(place: Sites) -> None:
    """Why check values are computed and CKA_CHECK_VALUE is not read."""
    share_kek(place)
    assert place.token is not None
    place.here.close()
    place.mirror.close()
    import pkcs11  # noqa: PLC0415  # only this test needs it

    library = pkcs11.lib(str(place.token.module.resolve()))
    try:
        pin = place.token.pin.reveal().decode()
        session = library.get_token(token_label="mirror").open(user_pin=pin)
        kek = one(session, KEK, ObjectClass.SECRET_KEY)
        assert kek[Attribute.CHECK_VALUE] == b""
        assert kek[Attribute.VALUE_LEN] == 0
    finally:
        library.finalize()


def test_pkcs11_tool_reads_the_same_attributes(place: Sites) -> None:
    """B4: a third party's reader of the token."""
    share_kek(place)
    place.here.generate(CA, KeyAlgorithm.EC_P256, exportable=True)
    place.here.generate(KeyLabel("log"), KeyAlgorithm.EC_P256)
    assert place.token is not None
    done = subprocess.run(
        [
            *(need("pkcs11-tool", "opensc"), "--module", str(place.token.module)),
            *("--token-label", place.token.label, "--login", "--pin", place.token.pin.reveal().decode()),
            "--list-objects",
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    said: dict[str, tuple[str, str]] = {}
    label = usage = kind = ""
    for line in done.stdout.splitlines():
        if not line.startswith(" "):
            kind = line.split(" Object")[0].split(";")[0]
        name, _, value = line.strip().partition(":")
        if name == "label":
            label = value.strip()
        elif name == "Usage":
            usage = value.strip()
        elif name == "Access":
            said[f"{kind} {label}"] = (usage, value.strip())
    assert said["Private Key ca"] == ("sign", "sensitive, always sensitive, extractable, local")
    assert said["Private Key log"] == ("sign", "sensitive, always sensitive, never extractable, local")
    usage, access = next(found for name, found in said.items() if name.endswith(" kek"))
    assert set(usage.split(", ")) == {"wrap", "unwrap"}
    assert "never extractable" not in access


def test_a_fingerprint_is_the_sha256_of_the_key(place: Sites) -> None:
    spki = place.here.generate(CA, KeyAlgorithm.EC_P256)
    assert place.here.attributes(CA).fingerprint == sha256(spki).hexdigest()
