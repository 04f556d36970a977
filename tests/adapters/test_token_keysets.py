"""Key sets in real tokens: what is enforced there, and what SoftHSM does in its own way (ADR 16)."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pkcs11
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from pkcs11 import Attribute, DeriveMixin, KeyType, Mechanism, MechanismFlag, Object, ObjectClass, WrapMixin
from pkcs11 import exceptions as foreign
from pkcs11.exceptions import PKCS11Error

from birthmark import errors
from birthmark.adapters.pkcs11 import PKCS11KeyStore
from birthmark.adapters.softsecrets import share_with
from birthmark.adapters.tokenderiving import derived, subkey
from birthmark.element.diversification import Derivation, KeyRole, Scheme, single_blocks
from birthmark.element.keyset import SoftwareKeys, StaticKeys
from birthmark.floor.key_assets import KeyPolicy, KeyPurpose, KeySeverity, compare
from birthmark.pki.attributes import SecretKind
from birthmark.pki.certificates import to_pem
from birthmark.pki.keys import KeyLabel
from birthmark.secret import SecretBytes
from tests.adapters.test_pkcs11 import close_all_sessions, finalise_library, open_store, restart_library
from tests.adapters.test_token_custody import recorded
from tests.support.keystores import TRANSPORT
from tests.support.programs import need
from tests.support.softhsm import SoftHSM, softhsm_token

MASTER, BY_CMAC, DEK, STATIC = (KeyLabel(name) for name in ("master", "by-cmac", "dek", "static"))
VALUE = bytes(range(0x40, 0x60))
KDF3 = Derivation(scheme=Scheme.KDF3, context=bytes(range(10)))
ORACLE = SoftwareKeys.derived(SecretBytes(VALUE), KDF3)
REQUEST = [(KeyRole.ENC, b"enc"), (KeyRole.MAC, b"mac")]


@pytest.fixture
def token(tmp_path: Path) -> Iterator[SoftHSM]:
    with softhsm_token(tmp_path) as made:
        yield made


@pytest.fixture
def store(token: SoftHSM) -> Iterator[PKCS11KeyStore]:
    """A store with one key of each kind, all of the same known value."""
    with open_store(token) as opened:
        public = opened.generate_transport(TRANSPORT)
        share = share_with(public, SecretBytes(VALUE))
        for label, kind in (
            (MASTER, SecretKind.DIVERSIFY_AES_256),
            (BY_CMAC, SecretKind.MASTER_AES_256),
            (STATIC, SecretKind.MASTER_AES_256),
            (DEK, SecretKind.DEK_AES_256),
        ):
            opened.accept_secret(label, kind, share, TRANSPORT)
        yield opened


def uses(store: PKCS11KeyStore) -> list[Callable[[], object]]:
    """Return everything that is done with key sets, on every route; each checks what it gets."""
    final = store.derived_keys(MASTER, KDF3)
    by_cmac = store.derived_keys(BY_CMAC, KDF3)
    fixed = store.fixed_keys((STATIC, STATIC, DEK))
    dek = SecretBytes(VALUE)
    outside = SoftwareKeys(enc=dek, mac=dek, dek=dek)

    def check(keys: StaticKeys, oracle: SoftwareKeys) -> None:
        assert keys.cmac(REQUEST) == oracle.cmac(REQUEST)

    return [
        lambda: check(final, ORACLE),
        lambda: check(by_cmac, ORACLE),
        lambda: check(fixed, outside),
        lambda: _same(final.wrap(final), ORACLE.wrap(ORACLE)),
        lambda: _same(by_cmac.wrap(final), ORACLE.wrap(ORACLE)),
        lambda: _same(by_cmac.wrap(by_cmac), ORACLE.wrap(ORACLE)),
        lambda: _same(fixed.wrap(by_cmac), outside.wrap(ORACLE)),
        lambda: _same(fixed.wrap(final), outside.wrap(ORACLE)),
        lambda: _same(final.wrap_value(dek), ORACLE.wrap_value(dek)),
    ]


def _same(found: object, wanted: object) -> None:
    assert found == wanted


@pytest.mark.parametrize("lose", [close_all_sessions, restart_library, finalise_library])
def test_a_lost_session_is_opened_again_amid_a_dialogue(
    store: PKCS11KeyStore, token: SoftHSM, lose: Callable[[SoftHSM], None]
) -> None:
    """B3: the set that a dialogue holds goes on; nothing of it was in the session."""
    for use in uses(store):
        lose(token)
        use()
    assert len(store.inventory()) == 5


def test_while_the_token_is_gone_every_use_says_so_and_then_goes_on(
    store: PKCS11KeyStore, token: SoftHSM
) -> None:
    """B3: held with one clear reason, never an answer of the wrong key."""
    attempts = uses(store)
    with token.gone():
        for use in attempts:
            with pytest.raises(errors.Unavailable, match="cannot be reached"):
                use()
    for use in attempts:
        use()


def test_nothing_is_left_behind_in_the_token(store: PKCS11KeyStore) -> None:
    """Objects of sessions are found as those of the token are: after each use there is none more."""
    before = store.inventory()
    for use in uses(store):
        use()
        assert store.inventory() == before
    longer = store.derived_keys(MASTER, KDF3)
    store.generate_secret(KeyLabel("short"), SecretKind.DEK_AES_128)
    store.generate_secret(KeyLabel("enc"), SecretKind.MASTER_AES_128)
    short = store.fixed_keys((KeyLabel("enc"), KeyLabel("enc"), KeyLabel("short")))
    before = store.inventory()
    with pytest.raises(errors.PolicyRefused):
        short.wrap(longer)
    assert store.inventory() == before


def one(session: pkcs11.Session, label: str) -> Object:
    (found,) = session.get_objects({Attribute.LABEL: label, Attribute.CLASS: ObjectClass.SECRET_KEY})
    return found


def test_a_derived_key_lives_for_a_block_and_shows_nothing(store: PKCS11KeyStore, token: SoftHSM) -> None:
    """What the token says of the objects while they are there, and that they are gone, also on failure."""
    store.close()
    with token.session() as session:
        master = one(session, MASTER)
        assert isinstance(master, DeriveMixin)
        blocks = single_blocks(KDF3, KeyRole.ENC, 32, subkey(master).reveal())
        assert blocks is not None
        for use, extractable in ((MechanismFlag.SIGN, False), (MechanismFlag.ENCRYPT, True)):
            with derived(master, blocks, 32, use, extractable=extractable) as key:
                said = {
                    name: key[Attribute[name]]
                    for name in ("TOKEN", "PRIVATE", "SENSITIVE", "EXTRACTABLE", "LOCAL", "DERIVE", "DECRYPT")
                }
                assert said == {
                    "TOKEN": False,
                    "PRIVATE": True,
                    "SENSITIVE": True,
                    "EXTRACTABLE": extractable,
                    "LOCAL": False,
                    "DERIVE": False,
                    "DECRYPT": False,
                }
                assert (key[Attribute.SIGN], key[Attribute.ENCRYPT]) == (not extractable, extractable)
                with pytest.raises(foreign.AttributeSensitive):
                    _ = key[Attribute.VALUE]
            assert len(list(session.get_objects({Attribute.CLASS: ObjectClass.SECRET_KEY}))) == 4
        with pytest.raises(ZeroDivisionError), derived(master, blocks, 32, MechanismFlag.SIGN):
            _ = 1 // 0
        assert len(list(session.get_objects({Attribute.CLASS: ObjectClass.SECRET_KEY}))) == 4


def test_a_key_that_came_in_cannot_be_read_or_leave(store: PKCS11KeyStore, token: SoftHSM) -> None:
    """B2: nor is its value in the token's files."""
    store.close()
    with token.session() as session:
        scale = session.generate_key(
            KeyType.AES, 256, capabilities=MechanismFlag.WRAP, template={Attribute.SENSITIVE: True}
        )
        assert isinstance(scale, WrapMixin)
        for label in (MASTER, BY_CMAC, DEK):
            key = one(session, label)
            with pytest.raises(foreign.AttributeSensitive):
                _ = key[Attribute.VALUE]
            with pytest.raises(foreign.KeyUnextractable):
                scale.wrap_key(key, mechanism=Mechanism.AES_KEY_WRAP_PAD)  # type: ignore[arg-type]  # the stub knows no such mechanism
            with pytest.raises(PKCS11Error):
                key[Attribute.DECRYPT] = True
            with pytest.raises(PKCS11Error):
                key.copy({Attribute.EXTRACTABLE: True})
    files = [path.read_bytes() for path in token.tokens.rglob("*") if path.is_file()]
    assert len(files) > 6
    assert not [content for content in files if VALUE in content or VALUE[:16] in content]


def test_the_maker_of_elements_encrypts_with_openssl(token: SoftHSM, tmp_path: Path) -> None:
    """What a maker needs is the public key and RSAES-OAEP; both ends agree on the check value."""
    value, public, share = tmp_path / "value", tmp_path / "transport.pem", tmp_path / "share"
    value.write_bytes(VALUE)
    with open_store(token) as store:
        public.write_text(to_pem(store.generate_transport(TRANSPORT), "PUBLIC KEY"))
        encrypt = [need("openssl"), "pkeyutl", "-encrypt", "-pubin", "-inkey", str(public), "-in", str(value)]
        subprocess.run(
            [*encrypt, "-pkeyopt", "rsa_padding_mode:oaep", "-out", str(share)],
            check=True,
            capture_output=True,
        )
        mac = [need("openssl"), "mac", "-cipher", "AES-256-CBC", "-macopt", f"hexkey:{VALUE.hex()}"]
        said = subprocess.run(
            [*mac, "-in", "/dev/stdin", "CMAC"], input=bytes(16), check=True, capture_output=True
        )
        found = store.accept_secret(MASTER, SecretKind.DIVERSIFY_AES_256, share.read_bytes(), TRANSPORT)
        assert said.stdout.decode().lower().startswith(found)
        assert store.derived_keys(MASTER, KDF3).cmac(REQUEST) == ORACLE.cmac(REQUEST)


def test_each_key_is_as_its_policy_wants(store: PKCS11KeyStore) -> None:
    """B4: those that were made here, and those that came in; no finding but what SoftHSM cannot fix."""
    made = {
        MASTER: (KeyPurpose.MASTER_DIVERSIFICATION, KeyPolicy.SECRET_ACCEPTED),
        BY_CMAC: (KeyPurpose.MASTER_DIVERSIFICATION, KeyPolicy.SECRET_ACCEPTED),
        STATIC: (KeyPurpose.STATIC_KEY, KeyPolicy.SECRET_ACCEPTED),
        DEK: (KeyPurpose.STATIC_KEY, KeyPolicy.SECRET_ACCEPTED),
        TRANSPORT: (KeyPurpose.TRANSPORT, KeyPolicy.TRANSPORT),
    }
    for kind in (SecretKind.DIVERSIFY_AES_128, SecretKind.MASTER_AES_192):
        made[KeyLabel(f"own-{kind}")] = (KeyPurpose.MASTER_DIVERSIFICATION, KeyPolicy.MASTER)
        store.generate_secret(KeyLabel(f"own-{kind}"), kind)
    assets = [recorded(store, label, *row) for label, row in made.items()]
    assert compare(assets, store.inventory(), "floor") == ()
    as_if_born_here = [recorded(store, MASTER, KeyPurpose.MASTER_DIVERSIFICATION, KeyPolicy.MASTER)]
    found = [each for each in compare(as_if_born_here, store.inventory(), "floor") if each.label == MASTER]
    assert {each.severity for each in found} == {KeySeverity.ERROR}


def test_another_master_key_under_a_known_label_stops_the_line(store: PKCS11KeyStore, token: SoftHSM) -> None:
    """B3: a device would get keys that nobody can derive again."""
    held = store.derived_keys(MASTER, KDF3)
    held.cmac(REQUEST)
    replace_key(token)
    restart_library(token)
    for keys in (held, store.derived_keys(MASTER, KDF3)):
        with pytest.raises(errors.IntegrityFailure, match="another one than before"):
            keys.cmac(REQUEST)


REPLACE = """
import pathlib, sys
import pkcs11
from pkcs11 import Attribute, KeyType, MechanismFlag, ObjectClass
library = pkcs11.lib(sys.argv[1])
pin = pathlib.Path(sys.argv[2]).read_text().strip()
with library.get_token(token_label="floor").open(rw=True, user_pin=pin) as session:
    (old,) = session.get_objects({Attribute.LABEL: "master", Attribute.CLASS: ObjectClass.SECRET_KEY})
    old.destroy()
    hidden = {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False}
    session.generate_key(
        KeyType.AES, 256, label="master", store=True, capabilities=MechanismFlag.DERIVE, template=hidden
    )
"""


def replace_key(token: SoftHSM) -> None:
    """Put another master key in its place, as another process."""
    program = [sys.executable, "-c", REPLACE, str(token.module.resolve()), str(token.pin_file)]
    subprocess.run(program, check=True, timeout=60)


def test_a_master_key_with_another_use_is_not_used(store: PKCS11KeyStore, token: SoftHSM) -> None:
    """A key that derives and signs has an encryption oracle beside its CMACs (pkcs11 facts in ADR 16)."""
    store.close()
    hidden = {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False, Attribute.PRIVATE: True}
    both = MechanismFlag.SIGN | MechanismFlag.DERIVE
    with token.session() as session:
        session.generate_key(KeyType.AES, 256, label="both", store=True, capabilities=both, template=hidden)
    with (
        open_store(token) as again,
        pytest.raises(errors.PolicyRefused, match="no kind of key may") as refused,
    ):
        again.derived_keys(KeyLabel("both"), KDF3)
    assert refused.value.rule == "key-route"


@pytest.mark.parametrize(
    ("missing", "kind"),
    [
        ("CKM_AES_ECB_ENCRYPT_DATA", SecretKind.DIVERSIFY_AES_128),
        ("CKM_AES_CBC", SecretKind.DEK_AES_128),
        ("CKM_AES_CMAC", SecretKind.MASTER_AES_128),
    ],
)
def test_a_token_without_the_mechanism_makes_no_key_of_the_kind(
    tmp_path: Path, missing: str, kind: SecretKind
) -> None:
    """Said when the key is made, not when the first device waits for it."""
    offered = {"CKM_AES_KEY_GEN", "CKM_AES_ECB_ENCRYPT_DATA", "CKM_AES_CBC", "CKM_AES_CMAC"} - {missing}
    with (
        softhsm_token(tmp_path, mechanisms=",".join(sorted(offered))) as token,
        open_store(token) as store,
    ):
        with pytest.raises(errors.PolicyRefused, match=missing) as refused:
            store.generate_secret(MASTER, kind)
        assert refused.value.rule == "token-mechanism"
        assert store.labels() == ()


def test_softhsm_wraps_no_aes_192_key_in_cbc(token: SoftHSM) -> None:
    """Why such a key travels as the first 24 of 32 derived octets; the rest is the padding (pinned)."""
    with token.session() as session:
        hidden = {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: True}
        dek = session.generate_key(KeyType.AES, 256, capabilities=MechanismFlag.WRAP, template=hidden)
        key = session.generate_key(KeyType.AES, 192, capabilities=MechanismFlag.SIGN, template=hidden)
        assert isinstance(dek, WrapMixin)
        with pytest.raises(foreign.GeneralError):
            dek.wrap_key(key, mechanism=Mechanism.AES_CBC, mechanism_param=bytes(16))


def test_the_padding_of_an_aes_192_key_is_the_rest_of_its_block(token: SoftHSM) -> None:
    """Nothing of the key, and nothing constant: the octets that the derivation throws away."""
    with open_store(token) as store:
        share = share_with(store.generate_transport(TRANSPORT), SecretBytes(VALUE[:24]))
        store.accept_secret(MASTER, SecretKind.DIVERSIFY_AES_192, share, TRANSPORT)
        store.accept_secret(DEK, SecretKind.DEK_AES_192, share, TRANSPORT)
        store.accept_secret(STATIC, SecretKind.MASTER_AES_192, share, TRANSPORT)
        wrapped = store.fixed_keys((STATIC, STATIC, DEK)).wrap(store.derived_keys(MASTER, KDF3))
        macs = store.fixed_keys((STATIC, STATIC, DEK))
        for role, item in zip(KeyRole, wrapped, strict=True):
            cbc = Cipher(algorithms.AES(VALUE[:24]), modes.CBC(bytes(16))).decryptor()
            first, second = macs.cmac(
                [(KeyRole.ENC, bytes((number, 0, 0, 0, role, 0)) + KDF3.context) for number in (1, 2)]
            )
            assert cbc.update(item.ciphertext) == first + second
            assert item.size == 24


def test_softhsm_lets_a_key_that_only_derives_be_read_block_by_block(token: SoftHSM) -> None:
    """Why the token's PIN is what protects the devices' keys, on either route (pinned)."""
    with open_store(token) as store:
        share = share_with(store.generate_transport(TRANSPORT), SecretBytes(VALUE))
        store.accept_secret(MASTER, SecretKind.DIVERSIFY_AES_256, share, TRANSPORT)
    with token.session() as session:
        master = one(session, MASTER)
        assert isinstance(master, DeriveMixin)
        key = master.derive_key(
            KeyType.AES,
            128,
            mechanism=Mechanism.AES_ECB_ENCRYPT_DATA,
            mechanism_param=b"a block to learn",
            template={Attribute.SENSITIVE: False, Attribute.EXTRACTABLE: True},
        )
        ecb = Cipher(algorithms.AES(VALUE), modes.ECB()).encryptor()  # noqa: S305  # what the oracle gives away
        assert key[Attribute.VALUE] == ecb.update(b"a block to learn")
