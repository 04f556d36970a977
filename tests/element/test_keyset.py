"""Key sets and how they travel (SPEC D2, D4)."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birthmark import errors
from birthmark.element.diversification import KEY_SIZES, KeyRole
from birthmark.element.keyset import (
    KeyBlockForm,
    KeyEntry,
    KeyRoute,
    SoftwareKeys,
    StaticKeys,
    WrappedKey,
    aes_cmac,
    check_value,
    decode_put_key,
    decrypt_key,
    encode_put_key,
)
from birthmark.secret import SecretBytes
from tests.element.vectors import document, key_set, secret

VECTORS = document("keyloading")
DIVERSIFIED = document("diversification")["kdf3"][2]
KEYS = st.sampled_from(KEY_SIZES).flatmap(lambda size: st.binary(min_size=size, max_size=size))


def of_size(size: int) -> SoftwareKeys:
    return key_set(bytes(range(size)), bytes(range(1, size + 1)), bytes(range(2, size + 2)))


@pytest.mark.parametrize("case", VECTORS["check_values"], ids=lambda case: case["kcv"])
def test_check_values_are_theirs(case: dict[str, str]) -> None:
    assert check_value(secret(case["key"])).hex().upper() == case["kcv"]


@pytest.mark.parametrize("case", VECTORS["key_blocks"])
@pytest.mark.parametrize("form", list(KeyBlockForm))
def test_a_key_block_is_theirs_in_both_forms(case: dict[str, str], form: KeyBlockForm) -> None:
    keys = key_set(bytes(16), bytes(16), bytes.fromhex(case["dek"]))
    wrapped = keys.wrap_value(secret(case["key"]))
    assert (wrapped.ciphertext.hex().upper(), wrapped.check_value.hex().upper(), wrapped.size) == (
        case["ciphertext"],
        case["kcv"],
        16,
    )
    data = encode_put_key(0x31, [wrapped], form)
    assert data.hex().upper() == "31" + case[form.replace("-", "_")]
    kvn, (read,) = decode_put_key(data)
    assert (kvn, read.size, read.ciphertext, read.check_value) == (
        0x31,
        16,
        wrapped.ciphertext,
        wrapped.check_value,
    )


@pytest.mark.parametrize("case", VECTORS["ciphertexts"], ids=lambda case: case["source"])
def test_encrypted_keys_are_theirs(case: dict[str, str]) -> None:
    keys = key_set(bytes(16), bytes(16), bytes.fromhex(case["dek"]))
    assert keys.wrap_value(secret(case["key"])).ciphertext.hex().upper() == case["ciphertext"]
    assert decrypt_key(keys.dek, bytes.fromhex(case["ciphertext"]), 16) == secret(case["key"])


def test_a_longer_key_that_a_token_wrapped_is_read_and_not_written() -> None:
    """SoftHSM2 wraps an AES-256 key under an AES-128 one; we do not."""
    dek = secret("0A02A6D687406DCFA09DC70B3EDB7E38")
    wrapped = bytes.fromhex("873A05DFA93BE1A908FFC07CA1C7181F570F4532AEA07470698BA57C1ECDB05C")
    assert decrypt_key(dek, wrapped, 32) == secret(DIVERSIFIED["enc"])
    with pytest.raises(errors.PolicyRefused, match="32 octets does not travel under one of 16") as refused:
        key_set(dek.reveal()).wrap_value(secret(DIVERSIFIED["enc"]))
    assert refused.value.rule == "transport-strength"


@pytest.mark.parametrize("under", KEY_SIZES)
@pytest.mark.parametrize("size", KEY_SIZES)
def test_a_set_travels_under_one_that_is_as_long_and_no_shorter(size: int, under: int) -> None:
    if size > under:
        with pytest.raises(errors.PolicyRefused):
            of_size(under).wrap(of_size(size))
        return
    carrier, carried = of_size(under), of_size(size)
    for form in KeyBlockForm:
        kvn, loaded = decode_put_key(encode_put_key(0x7F, carrier.wrap(carried), form))
        assert kvn == 0x7F
        for role, key in zip(KeyRole, loaded, strict=True):
            assert decrypt_key(carrier.dek, key.ciphertext, key.size) == carried.key(role)
            assert key.check_value == check_value(carried.key(role))


@pytest.mark.parametrize("form", list(KeyBlockForm))
def test_an_aes_192_key_always_says_its_length(form: KeyBlockForm) -> None:
    wrapped = of_size(24).wrap_value(SecretBytes(bytes(24)))
    data = encode_put_key(0x31, [wrapped], form)
    assert data[:4] == bytes.fromhex("31882118")
    assert len(wrapped.ciphertext) == 32


def test_check_values_may_be_kept_to_ourselves() -> None:
    keys = of_size(16)
    data = encode_put_key(0x3F, keys.wrap(keys), KeyBlockForm.WITH_LENGTH, with_check_values=False)
    assert len(data) == 1 + 3 * (2 + 17 + 1)
    _, loaded = decode_put_key(data)
    assert [key.check_value for key in loaded] == [None, None, None]
    assert check_value(keys.enc) not in data


@given(st.binary(max_size=120))
def test_any_octets_are_put_key_or_malformed(octets: bytes) -> None:
    try:
        decode_put_key(octets)
    except errors.MalformedRequest:
        return


@given(st.data())
def test_a_put_key_that_was_cut_or_changed_is_put_key_or_malformed(data: st.DataObject) -> None:
    keys = of_size(data.draw(st.sampled_from(KEY_SIZES)))
    whole = bytearray(encode_put_key(0x31, keys.wrap(keys), data.draw(st.sampled_from(list(KeyBlockForm)))))
    whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        kvn, loaded = decode_put_key(bytes(whole[: data.draw(st.integers(0, len(whole)))]))
    except errors.MalformedRequest:
        return
    for key in loaded:
        assert key.size in KEY_SIZES
        assert len(key.ciphertext) in (16, 32)
        assert key.check_value is None or len(key.check_value) == 3
    assert 1 <= kvn <= 0x7F


BLOCK = "00" * 16


@pytest.mark.parametrize(
    ("octets", "complaint"),
    [
        ("", "key version number"),
        ("00", "key version number"),
        ("80", "key version number"),
        ("31", "holds no key"),
        ("3188", "else than AES"),
        (f"31801110{BLOCK}00", "else than AES"),
        (f"318810{BLOCK}", "else than AES"),
        ("31880000", "contradicts itself"),
        ("3188011000", "contradicts itself"),
        (f"31881120{BLOCK}00", "contradicts itself"),
        (f"31881108{BLOCK}00", "contradicts itself"),
        (f"318818{BLOCK}{'00' * 8}00", "contradicts itself"),
        (f"318830{BLOCK * 3}00", "contradicts itself"),
        (f"318810{BLOCK}02AABB", "3 octets, or is left out"),
        (f"318810{BLOCK}03AABB", "3 octets, or is left out"),
        (f"318810{BLOCK}C8AABBCC", "3 octets, or is left out"),
        (f"318810{BLOCK}05", "3 octets, or is left out"),
        (f"318810{BLOCK}00FF", "else than AES"),
    ],
)
def test_what_is_no_put_key_is_malformed(octets: str, complaint: str) -> None:
    with pytest.raises(errors.MalformedRequest, match=complaint):
        decode_put_key(bytes.fromhex(octets))


@pytest.mark.parametrize(("octets", "size"), [(0, 16), (15, 16), (17, 16), (16, 24), (16, 32)])
def test_an_encrypted_key_of_another_length_is_malformed(octets: int, size: int) -> None:
    with pytest.raises(errors.MalformedRequest, match="no whole number of blocks"):
        decrypt_key(SecretBytes(bytes(16)), bytes(octets), size)


@pytest.mark.parametrize(("enc", "mac", "dek"), [(16, 16, 24), (15, 15, 15), (0, 0, 0), (32, 16, 16)])
def test_keys_that_are_no_set_are_refused(enc: int, mac: int, dek: int) -> None:
    with pytest.raises(errors.MalformedRequest, match="three keys of 16, 24 or 32 octets"):
        SoftwareKeys(enc=SecretBytes(bytes(enc)), mac=SecretBytes(bytes(mac)), dek=SecretBytes(bytes(dek)))


class _InToken:
    """A set of which nothing is known but where it is."""

    size = 16
    route = KeyRoute.IN_TOKEN

    def cmac(self, requests: Sequence[tuple[KeyRole, bytes]]) -> list[bytes]:
        raise AssertionError

    def wrap(self, keys: StaticKeys) -> tuple[WrappedKey, ...]:
        raise AssertionError

    def wrap_value(self, key: SecretBytes) -> WrappedKey:
        raise AssertionError


def test_keys_in_a_token_do_not_travel_under_one_outside() -> None:
    with pytest.raises(errors.PolicyRefused) as refused:
        of_size(16).wrap(_InToken())
    assert refused.value.rule == "key-route"


def test_each_key_of_a_set_computes_its_own_macs() -> None:
    keys = of_size(32)
    assert (keys.size, keys.route) == (32, KeyRoute.SERVICE)
    macs = keys.cmac([(role, b"message") for role in KeyRole])
    assert macs == [aes_cmac(key, b"message") for key in (keys.enc, keys.mac, keys.dek)]
    assert len(set(macs)) == 3


@given(KEYS)
def test_a_set_does_not_show_its_keys(key: bytes) -> None:
    shown = repr(key_set(key)) + str(key_set(key))
    assert repr(key)[2:-1] not in shown
    assert key.hex() not in shown


def test_entries_of_the_key_information_are_in_order() -> None:
    entries = [KeyEntry(kvn=kvn, kid=kid, key_type=0x88, size=16) for kvn in (2, 1) for kid in (2, 1)]
    assert [(entry.kvn, entry.kid) for entry in sorted(entries)] == [(1, 1), (1, 2), (2, 1), (2, 2)]
