"""Keys of one device from a master key: three schemes, held against what others compute (SPEC D3)."""

from hashlib import sha256
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFCMAC, CounterLocation
from cryptography.hazmat.primitives.kdf.kbkdf import Mode as KBKDFMode
from hypothesis import given
from hypothesis import strategies as st

from birthmark import errors
from birthmark.element.diversification import (
    KEY_SIZES,
    Derivation,
    KeyRole,
    Scheme,
    an10922_key,
    an10922_messages,
    check_derivation,
    cmac_messages,
    context_of,
    derived_key,
    single_blocks,
)
from birthmark.element.keyset import SoftwareKeys, aes_cmac, check_value
from birthmark.secret import SecretBytes
from tests.element.vectors import document, secret

VECTORS = document("diversification")
SIZES = {Scheme.KDF3: (10, 10), Scheme.AN10922: (15, 30), Scheme.SP800_108: (1, 64)}
MASTERS = st.sampled_from(KEY_SIZES).flatmap(lambda size: st.binary(min_size=size, max_size=size))
ROLES = st.sampled_from(list(KeyRole))


def derived(master: bytes, derivation: Derivation, role: KeyRole) -> bytes:
    """Return one key as a token makes it: by CMACs of the messages."""
    messages = cmac_messages(derivation, role, len(master))
    return derived_key(derivation, len(master), [aes_cmac(SecretBytes(master), one) for one in messages])


def ecb(key: bytes, octets: bytes) -> bytes:
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(octets)  # noqa: S305  # the block cipher itself


def doubled(block: bytes) -> bytes:
    """Double in the field of NIST SP 800-38B section 6.1."""
    number = int.from_bytes(block, "big") << 1
    return ((number & ((1 << 128) - 1)) ^ (0x87 if number >> 128 else 0)).to_bytes(16, "big")


def xor(one: bytes, other: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, other, strict=True))


def an10922_by_hand(master: bytes, diversification_input: bytes) -> bytes:
    """Compute AN10922 as it is written, without a CMAC: every input is extended to two blocks."""

    def block(constant: int) -> bytes:
        k1 = doubled(ecb(master, bytes(16)))
        message = bytes((constant,)) + diversification_input
        if len(message) == 32:
            last = k1
        else:
            message, last = (message + b"\x80").ljust(32, b"\0"), doubled(k1)
        return ecb(master, xor(xor(ecb(master, message[:16]), message[16:]), last))

    if len(master) == 16:
        return block(0x01)
    if len(master) == 24:
        first, second = block(0x11), block(0x12)
        return first[:8] + xor(first[8:], second[:8]) + second[8:]
    return block(0x41) + block(0x42)


# --- AN10922 ---------------------------------------------------------------------------------------


def an10922(master: bytes, diversification_input: bytes) -> bytes:
    messages = an10922_messages(len(master), diversification_input)
    return an10922_key(len(master), [aes_cmac(SecretBytes(master), one) for one in messages])


@pytest.mark.parametrize("case", VECTORS["an10922"], ids=lambda case: f"aes-{len(case['key']) * 4}")
def test_an10922_gives_the_keys_of_the_note(case: dict[str, str]) -> None:
    master, given_input = bytes.fromhex(case["master"]), bytes.fromhex(case["input"])
    assert an10922(master, given_input).hex().upper() == case["key"]
    assert an10922_by_hand(master, given_input).hex().upper() == case["key"]


def test_the_subkeys_are_those_of_the_note() -> None:
    case = VECTORS["cmac_subkeys"]
    k1 = doubled(ecb(bytes.fromhex(case["key"]), bytes(16)))
    assert (k1.hex().upper(), doubled(k1).hex().upper()) == (case["k1"], case["k2"])


@given(MASTERS, st.binary(min_size=16, max_size=31))
def test_an10922_is_a_plain_cmac_for_inputs_of_two_blocks(
    master: bytes, diversification_input: bytes
) -> None:
    assert an10922(master, diversification_input) == an10922_by_hand(master, diversification_input)


def test_a_short_input_is_refused_because_a_plain_cmac_gives_another_key() -> None:
    case = VECTORS["an10957_short_input"]
    master, short = bytes.fromhex(case["master"]), bytes.fromhex(case["input"])
    with pytest.raises(errors.MalformedRequest, match="16 to 31 octets"):
        an10922_messages(16, short)
    assert an10922_by_hand(master, short).hex().upper() == case["key"]
    assert aes_cmac(SecretBytes(master), b"\x01" + short).hex().upper() == case["plain_cmac"] != case["key"]


@given(MASTERS, st.binary(max_size=15))
def test_what_is_refused_would_be_wrong(master: bytes, short: bytes) -> None:
    with pytest.raises(errors.MalformedRequest):
        an10922_messages(len(master), short)
    constant = {16: b"\x01", 24: b"\x11", 32: b"\x41"}[len(master)]
    assert an10922_by_hand(master, short)[:8] != aes_cmac(SecretBytes(master), constant + short)[:8]


@given(MASTERS, ROLES, st.binary(min_size=15, max_size=30))
def test_the_role_stands_in_front_of_the_context(master: bytes, role: KeyRole, context: bytes) -> None:
    derivation = Derivation(scheme=Scheme.AN10922, context=context)
    assert derived(master, derivation, role) == an10922_by_hand(master, bytes((role,)) + context)


# --- NIST SP 800-108 -------------------------------------------------------------------------------


@pytest.mark.parametrize("case", VECTORS["kdf3"], ids=lambda case: f"aes-{len(case['master']) * 4}")
def test_kdf3_gives_the_keys_of_globalplatformpro(case: dict[str, Any]) -> None:
    derivation = Derivation(scheme=Scheme.KDF3, context=bytes.fromhex(case["kdd"]))
    keys = SoftwareKeys.derived(secret(case["master"]), derivation)
    assert [check_value(keys.key(role)).hex().upper() for role in KeyRole] == case["kcv"]
    for role in KeyRole:
        assert keys.key(role) == SecretBytes(derived(bytes.fromhex(case["master"]), derivation, role))
        if role.name.lower() in case:
            assert keys.key(role) == secret(case[role.name.lower()])


@given(MASTERS, ROLES, st.binary(min_size=10, max_size=10))
def test_kdf3_is_an_instance_of_sp_800_108(master: bytes, role: KeyRole, kdd: bytes) -> None:
    oracle = KBKDFCMAC(
        algorithms.AES,
        KBKDFMode.CounterMode,
        len(master),
        rlen=1,
        llen=None,
        location=CounterLocation.BeforeFixed,
        label=None,
        context=None,
        fixed=bytes((0, 0, 0, role, 0)) + kdd,
    )
    derivation = Derivation(scheme=Scheme.KDF3, context=kdd)
    assert derived(master, derivation, role) == oracle.derive(master)


@given(MASTERS, ROLES, st.binary(min_size=1, max_size=64))
def test_sp_800_108_has_the_fixed_input_of_its_section_4(
    master: bytes, role: KeyRole, context: bytes
) -> None:
    """The library puts label, zero, context and L together itself."""
    oracle = KBKDFCMAC(
        algorithms.AES,
        KBKDFMode.CounterMode,
        len(master),
        rlen=1,
        llen=2,
        location=CounterLocation.BeforeFixed,
        label=f"SCP03 K-{role.name}".encode(),
        context=context,
        fixed=None,
    )
    derivation = Derivation(scheme=Scheme.SP800_108, context=context)
    assert derived(master, derivation, role) == oracle.derive(master)


# --- contexts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", list(Scheme))
def test_a_context_of_a_size_that_the_scheme_cannot_take_is_refused(scheme: Scheme) -> None:
    least, most = SIZES[scheme]
    for size in range(80):
        derivation = Derivation(scheme=scheme, context=bytes(size))
        if least <= size <= most:
            check_derivation(derivation)
            continue
        with pytest.raises(errors.MalformedRequest, match=f"{scheme} takes a context of {least} to {most}"):
            cmac_messages(derivation, KeyRole.ENC, 16)
        with pytest.raises(errors.MalformedRequest):
            SoftwareKeys.derived(SecretBytes(bytes(16)), derivation)


@pytest.mark.parametrize("scheme", list(Scheme))
def test_a_device_id_makes_a_context_of_the_right_size(scheme: Scheme) -> None:
    one = context_of(scheme, "eid:89049032000001000000012345678901")
    check_derivation(Derivation(scheme=scheme, context=one))
    assert one != context_of(scheme, "eid:89049032000001000000012345678902")
    assert sha256(b"eid:89049032000001000000012345678901").digest().startswith(one)


@given(MASTERS, st.sampled_from(list(Scheme)))
def test_two_devices_and_two_roles_never_have_one_key(master: bytes, scheme: Scheme) -> None:
    found = {
        derived(master, Derivation(scheme=scheme, context=context_of(scheme, device)), role)
        for device in ("serial:1", "serial:2")
        for role in KeyRole
    }
    assert len(found) == 6


# --- keys that never leave a token -----------------------------------------------------------------


@given(MASTERS, ROLES, st.binary(min_size=10, max_size=10))
def test_kdf3_is_so_many_blocks_under_the_master_key(master: bytes, role: KeyRole, kdd: bytes) -> None:
    derivation = Derivation(scheme=Scheme.KDF3, context=kdd)
    subkey = doubled(ecb(master, bytes(16)))
    blocks = single_blocks(derivation, role, len(master), subkey)
    assert blocks is not None
    assert len(blocks) == {16: 16, 24: 32, 32: 32}[len(master)]
    assert ecb(master, blocks)[: len(master)] == derived(master, derivation, role)


@pytest.mark.parametrize(
    ("scheme", "context"),
    [(Scheme.AN10922, bytes(15)), (Scheme.SP800_108, bytes(2)), (Scheme.SP800_108, bytes(32))],
)
def test_longer_inputs_are_not_single_blocks(scheme: Scheme, context: bytes) -> None:
    assert single_blocks(Derivation(scheme=scheme, context=context), KeyRole.ENC, 16, bytes(16)) is None


@given(MASTERS, ROLES, st.binary(min_size=1, max_size=1))
def test_sp_800_108_with_the_shortest_context_is_single_blocks(
    master: bytes, role: KeyRole, context: bytes
) -> None:
    derivation = Derivation(scheme=Scheme.SP800_108, context=context)
    blocks = single_blocks(derivation, role, len(master), doubled(ecb(master, bytes(16))))
    assert blocks is not None
    assert ecb(master, blocks)[: len(master)] == derived(master, derivation, role)
