"""What every key store owes to keys that are secret and keys that travel (SPEC B4, B5; ports.KeyStore)."""

from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.ciphers import algorithms
from cryptography.hazmat.primitives.cmac import CMAC
from cryptography.hazmat.primitives.serialization import load_der_public_key

from birthmark import errors
from birthmark.adapters.softsecrets import check_value
from birthmark.pki.attributes import KeyClass, SecretKind, TransportKind
from birthmark.pki.keys import KeyAlgorithm, KeyLabel
from birthmark.secret import SecretBytes
from tests.support.keystores import KEK, TRANSPORT, Sites, share_kek, sites

CA = KeyLabel("ca")


@pytest.fixture(params=["software", "token", "token-to-software", "software-to-token"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Sites]:
    with sites(request.param, tmp_path) as made:
        yield made


@pytest.fixture(params=["software", "token"])
def same(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Sites]:
    """Two stores of one kind, where it does not matter what the other is."""
    with sites(request.param, tmp_path) as made:
        yield made


def verify(spki: bytes, signature: bytes, message: bytes) -> None:
    """Verify with cryptography; raises InvalidSignature."""
    key = load_der_public_key(spki)
    match key:
        case ec.EllipticCurvePublicKey():
            by_size = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}
            key.verify(signature, message, ec.ECDSA(by_size[key.key_size]))
        case rsa.RSAPublicKey():
            key.verify(signature, message, padding.PKCS1v15(), hashes.SHA256())
        case ed25519.Ed25519PublicKey() | ed448.Ed448PublicKey():
            key.verify(signature, message)
        case _:
            pytest.fail(f"a key of another kind: {key!r}")


EDWARDS = {KeyAlgorithm.ED25519, KeyAlgorithm.ED448}


@pytest.mark.parametrize("algorithm", [each for each in KeyAlgorithm if each != KeyAlgorithm.RSA_4096])
def test_a_key_that_crossed_under_a_kek_signs_at_the_mirror(place: Sites, algorithm: KeyAlgorithm) -> None:
    """B5: the same key, verified by a stranger with the public key it had before.

    SoftHSM 2.6 neither wraps nor unwraps keys of Edwards curves, and that is said.
    """
    made = share_kek(place)
    assert len(made.check_value) == 10
    spki = place.here.generate(CA, algorithm, exportable=True)
    if algorithm in EDWARDS and not place.here.development:
        with pytest.raises(errors.PolicyRefused, match="cannot wrap"):
            place.here.wrap(CA, KEK)
        return
    wrapped = place.here.wrap(CA, KEK)
    if algorithm in EDWARDS and not place.mirror.development:
        with pytest.raises(errors.MalformedRequest, match="no key of its type"):
            place.mirror.unwrap(CA, spki, wrapped, KEK)
        return
    place.mirror.unwrap(CA, spki, wrapped, KEK)
    assert place.mirror.public_key(CA) == spki
    verify(spki, place.mirror.sign(CA, b"made by the mirror"), b"made by the mirror")
    with pytest.raises(errors.PolicyRefused, match="never to leave"):
        place.mirror.wrap(CA, KEK)


def test_a_key_that_was_not_made_exportable_does_not_leave(same: Sites) -> None:
    """B5: nothing that is said later makes it so."""
    share_kek(same)
    same.here.generate(CA, KeyAlgorithm.EC_P256)
    with pytest.raises(errors.PolicyRefused, match="never to leave") as refused:
        same.here.wrap(CA, KEK)
    assert refused.value.rule == "key-not-exportable"


def test_a_wrapped_key_opens_under_its_own_kek_only(same: Sites) -> None:
    """B5: and a damaged one not at all; nothing is kept of either."""
    share_kek(same)
    spki = same.here.generate(CA, KeyAlgorithm.EC_P256, exportable=True)
    other = KeyLabel("other-kek")
    same.here.generate_secret(other, SecretKind.KEK, officer=same.officer)
    under_another = same.here.wrap(CA, other)
    wrapped = same.here.wrap(CA, KEK)
    damaged = wrapped[:-1] + bytes([wrapped[-1] ^ 1])
    for attempt in (under_another, damaged, wrapped[:-8], wrapped[:-3], b"", bytes(72)):
        with pytest.raises(errors.MalformedRequest):
            same.mirror.unwrap(CA, spki, attempt, KEK)
    assert same.mirror.labels() == (KEK, TRANSPORT)
    assert {found.label for found in same.mirror.inventory()} == {KEK, TRANSPORT}
    same.mirror.unwrap(CA, spki, wrapped, KEK)


def test_what_is_not_the_key_of_the_public_key_is_not_kept(same: Sites) -> None:
    """B5: a file with two halves of different keys restores nothing."""
    share_kek(same)
    same.here.generate(CA, KeyAlgorithm.EC_P256, exportable=True)
    another = same.here.generate(KeyLabel("another"), KeyAlgorithm.EC_P256)
    of_another_type = same.here.generate(KeyLabel("longer"), KeyAlgorithm.EC_P384)
    wrapped = same.here.wrap(CA, KEK)
    with pytest.raises(errors.IntegrityFailure):
        same.mirror.unwrap(CA, another, wrapped, KEK)
    with pytest.raises((errors.IntegrityFailure, errors.MalformedRequest)):
        same.mirror.unwrap(CA, of_another_type, wrapped, KEK)
    assert same.mirror.labels() == (KEK, TRANSPORT)


def test_a_share_is_for_one_recipient(same: Sites) -> None:
    made = share_kek(same)
    same.here.generate_transport(TRANSPORT)
    for share in (made.shares[0], made.shares[0][:-1], b"", bytes(384)):
        with pytest.raises(errors.MalformedRequest):
            same.here.accept_secret(KeyLabel("kek2"), SecretKind.KEK, share, TRANSPORT)
    assert same.here.labels() == (KEK, TRANSPORT)


def test_a_recipient_must_be_a_transport_key(same: Sites) -> None:
    ec_key = same.mirror.generate(CA, KeyAlgorithm.EC_P256)
    for recipient in (ec_key, b"", b"\x30\x00"):
        with pytest.raises(errors.MalformedRequest, match="transport"):
            same.here.generate_secret(KEK, SecretKind.KEK, recipients=[recipient], officer=same.officer)
    spki = same.mirror.generate_transport(TRANSPORT)
    with pytest.raises(errors.MalformedRequest, match="only a key-encryption key"):
        same.here.generate_secret(KEK, SecretKind.MASTER_AES_128, recipients=[spki])
    assert same.here.labels() == ()


def test_a_label_is_taken_whatever_kind_of_key_has_it(same: Sites) -> None:
    share_kek(same)
    same.here.generate_transport(TRANSPORT)
    same.here.generate(CA, KeyAlgorithm.EC_P256, exportable=True)
    before = same.here.inventory()
    attempts: tuple[Callable[[KeyLabel], object], ...] = (
        lambda label: same.here.generate(label, KeyAlgorithm.EC_P256),
        lambda label: same.here.generate_secret(label, SecretKind.MASTER_AES_256),
        lambda label: same.here.generate_secret(label, SecretKind.KEK, officer=same.officer),
        same.here.generate_transport,
    )
    for label in (KEK, TRANSPORT, CA):
        for attempt in attempts:
            with pytest.raises(errors.IllegalTransition, match="already"):
                attempt(label)
    assert same.here.inventory() == before


@pytest.mark.parametrize("kind", SecretKind)
def test_attributes_say_what_a_secret_key_may_do(same: Sites, kind: SecretKind) -> None:
    """B4: one use each; a master key never signs and derives."""
    made = same.here.generate_secret(KEK, kind, officer=same.officer)
    found = same.here.attributes(KEK)
    assert found.key_class is KeyClass.SECRET
    assert found.kind is kind
    assert found.fingerprint == made.check_value
    uses = {
        "kek": {"wrap", "unwrap"},
        "master": {"sign"},
        "diversify": {"derive"},
        "dek": {"wrap", "encrypt"},
    }
    assert found.uses == uses[kind.partition("-")[0]]
    assert found.development is same.here.development
    assert same.here.inventory() == (found,)
    assert same.here.labels() == (KEK,)


def test_attributes_say_what_a_private_key_may_do(same: Sites) -> None:
    """B4: read from the live store."""
    kept = same.here.generate(CA, KeyAlgorithm.ED25519)
    mobile = same.here.generate(KeyLabel("mobile"), KeyAlgorithm.EC_P384, exportable=True)
    taker = same.here.generate_transport(TRANSPORT)
    expected = {
        "ca": (KeyAlgorithm.ED25519, kept, {"sign"}),
        "mobile": (KeyAlgorithm.EC_P384, mobile, {"sign"}),
        "transport": (TransportKind.RSA_3072, taker, {"unwrap"}),
    }
    found = {key.label: key for key in same.here.inventory()}
    assert list(found) == list(expected)
    for label, (kind, spki, uses) in expected.items():
        assert found[label].key_class is KeyClass.PRIVATE
        assert found[label].kind is kind
        assert found[label].fingerprint == sha256(spki).hexdigest()
        assert found[label].uses == uses
        assert same.here.attributes(KeyLabel(label)) == found[label]
        assert found[label].wrap_with_trusted is (label == "mobile")
        if not same.here.development:
            assert found[label].sensitive
            assert found[label].extractable is (label == "mobile")
            assert found[label].never_extractable is (label != "mobile")


def test_keys_that_are_not_there_are_not_found(same: Sites) -> None:
    share_kek(same)
    nobody = KeyLabel("nobody")
    attempts: tuple[Callable[[], object], ...] = (
        lambda: same.here.attributes(nobody),
        lambda: same.here.wrap(nobody, KEK),
        lambda: same.mirror.accept_secret(CA, SecretKind.KEK, bytes(384), nobody),
        lambda: same.here.sign(KEK, b"a secret key signs nothing here"),
    )
    for attempt in attempts:
        with pytest.raises(errors.NotFound, match=r"nobody|kek"):
            attempt()
    spki = same.here.generate(CA, KeyAlgorithm.EC_P256, exportable=True)
    with pytest.raises(errors.NotFound, match="nobody"):
        same.here.wrap(CA, nobody)
    with pytest.raises(errors.NotFound, match="nobody"):
        same.mirror.unwrap(CA, spki, bytes(72), nobody)


def test_check_values_are_those_of_the_definition() -> None:
    """The definition in pki.attributes, against the CMAC and the RFC 5649 of others."""
    key = bytes(range(32))
    mac = CMAC(algorithms.AES256(key))
    mac.update(bytes(16))
    assert check_value(SecretKind.MASTER_AES_256, SecretBytes(key)) == mac.finalize()[:5].hex()
    # 16 zero octets under 000102…1f: openssl enc -id-aes256-wrap-pad -iv A65959A6 (OpenSSL 3.0.19).
    assert check_value(SecretKind.KEK, SecretBytes(key)) == "8269b98bae"
    # The development keys 40…4F: their check value on a card is 504A77 (GlobalPlatformPro and others).
    assert check_value(SecretKind.DEK_AES_128, SecretBytes(bytes(range(0x40, 0x50)))).startswith("504a77")
