"""What every key store owes to key sets of secure elements (ports.KeyStore: derived, fixed, accepted)."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.cmac import CMAC
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFCMAC, CounterLocation, Mode

from birthmark import errors
from birthmark.adapters.softsecrets import check_value, share_with
from birthmark.element.diversification import (
    Derivation,
    KeyRole,
    Scheme,
    an10922_key,
    an10922_messages,
)
from birthmark.element.keyset import KeyRoute, SoftwareKeys, StaticKeys, decrypt_key
from birthmark.pki.attributes import SecretKind
from birthmark.pki.keys import KeyAlgorithm, KeyLabel
from birthmark.ports import KeyStore
from birthmark.secret import SecretBytes
from tests.support.keystores import TRANSPORT, Sites, sites

VECTORS = Path(__file__).parents[1] / "vectors" / "scp03"
DIVERSIFICATION: dict[str, Any] = json.loads((VECTORS / "diversification.json").read_text())
KEY_LOADING: dict[str, Any] = json.loads((VECTORS / "keyloading.json").read_text())
SIZES = (16, 24, 32)
KDD = bytes(range(10))
KDF3 = Derivation(scheme=Scheme.KDF3, context=KDD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A store that takes keys in."""

    store: KeyStore
    transport: bytes
    """SubjectPublicKeyInfo (DER) of its transport key."""
    officer: SecretBytes | None
    other: "Bench | None" = None

    @classmethod
    def of(cls, place: Sites, transports: tuple[bytes, bytes]) -> "Bench":
        """Two stores with these transport keys."""
        here, there = transports
        mirror = cls(store=place.mirror, transport=there, officer=place.officer)
        return cls(store=place.here, transport=here, officer=place.officer, other=mirror)


@pytest.fixture(scope="module", params=["software", "token"])
def prepared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, tuple[bytes, bytes]]:
    """Two stores of a kind with transport keys, which take a second to make: each test gets copies."""
    folder = tmp_path_factory.mktemp(request.param)
    with sites(request.param, folder) as made:
        here, there = (store.generate_transport(TRANSPORT) for store in (made.here, made.mirror))
    return request.param, folder, (here, there)


@pytest.fixture
def bench(prepared: tuple[str, Path, tuple[bytes, bytes]], tmp_path: Path) -> Iterator[Bench]:
    kind_of_store, folder, transports = prepared
    with sites(kind_of_store, tmp_path, copy_of=folder) as made:
        yield Bench.of(made, transports)


def kind(prefix: str, size: int) -> SecretKind:
    return SecretKind(f"{prefix}-aes-{size * 8}")


def bring(bench: Bench, label: str, prefix: str, value: bytes) -> KeyLabel:
    """Put a known key into a store, as its maker would."""
    name, key = KeyLabel(label), SecretBytes(value)
    share = share_with(bench.transport, key)
    found = bench.store.accept_secret(name, kind(prefix, len(value)), share, TRANSPORT)
    assert found == check_value(kind(prefix, len(value)), key)
    return name


def fixed_set(bench: Bench, dek: bytes) -> StaticKeys:
    """Put a set into the store of which only K-DEK matters."""
    other = bring(bench, f"other-{len(dek)}", "master", bytes(len(dek)))
    return bench.store.fixed_keys((other, other, bring(bench, f"dek-{len(dek)}", "dek", dek)))


def master_of(size: int) -> bytes:
    return bytes(range(0x40, 0x40 + size))


def cmac(key: bytes, message: bytes) -> bytes:
    mac = CMAC(algorithms.AES(key))
    mac.update(message)
    return mac.finalize()


def kdf(master: bytes, fixed: bytes) -> bytes:
    """NIST SP 800-108 in counter mode, the counter in front, as cryptography has it."""
    return KBKDFCMAC(
        algorithms.AES,
        Mode.CounterMode,
        length=len(master),
        rlen=1,
        llen=None,
        location=CounterLocation.BeforeFixed,
        label=None,
        context=None,
        fixed=fixed,
    ).derive(master)


def kdf3(master: bytes, role: KeyRole) -> bytes:
    return kdf(master, bytes((0, 0, 0, role, 0)) + KDD)


def planted(initial: StaticKeys, dek: bytes, final: StaticKeys) -> list[bytes]:
    """Return what the element finds in PUT KEY, and hold the check values against it."""
    keys = []
    for wrapped in initial.wrap(final):
        assert len(wrapped.ciphertext) == wrapped.size + -wrapped.size % 16
        key = decrypt_key(SecretBytes(dek), wrapped.ciphertext, wrapped.size).reveal()
        ecb = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305  # the card's check value
        assert ecb.update(b"\x01" * 16)[:3] == wrapped.check_value
        keys.append(key)
    return keys


@pytest.mark.parametrize("prefix", ["diversify", "master"])
@pytest.mark.parametrize("vector", DIVERSIFICATION["kdf3"], ids=["128", "192", "256"])
def test_a_key_set_is_the_one_of_other_implementations(
    bench: Bench, vector: dict[str, Any], prefix: str
) -> None:
    """GlobalPlatformPro's kdf3, byte for byte, and its check values; made where the kind says."""
    master = bytes.fromhex(vector["master"])
    dek = bytes(reversed(range(len(master))))
    final = bench.store.derived_keys(bring(bench, "master", prefix, master), KDF3)
    keys = planted(fixed_set(bench, dek), dek, final)
    for role, key in zip(KeyRole, keys, strict=True):
        assert key == kdf3(master, role)
        known = vector.get(role.name.lower())
        assert known is None or key == bytes.fromhex(known)
    shown = [wrapped.check_value.hex().upper() for wrapped in fixed_check(bench.store, dek, final)]
    assert shown == vector["kcv"]
    assert final.size == len(master)
    in_token = prefix == "diversify" and not bench.store.development
    assert final.route is (KeyRoute.IN_TOKEN if in_token else KeyRoute.SERVICE)


def fixed_check(store: KeyStore, dek: bytes, final: StaticKeys) -> tuple[Any, ...]:
    """Wrap once more, under the set that ``fixed_set`` made."""
    other = KeyLabel(f"other-{len(dek)}")
    return store.fixed_keys((other, other, KeyLabel(f"dek-{len(dek)}"))).wrap(final)


@pytest.mark.parametrize("vector", DIVERSIFICATION["an10922"], ids=["128", "192", "256"])
def test_a_master_key_of_the_cmac_route_computes_an10922(bench: Bench, vector: dict[str, str]) -> None:
    """The examples of the application note; their input begins with no role of ours."""
    master, size = bytes.fromhex(vector["master"]), len(vector["master"]) // 2
    label = bring(bench, "master", "master", master)
    keys = bench.store.fixed_keys((label, label, bring(bench, "dek", "dek", master)))
    messages = an10922_messages(size, bytes.fromhex(vector["input"]))
    macs = keys.cmac([(KeyRole.ENC, message) for message in messages])
    assert an10922_key(size, macs) == bytes.fromhex(vector["key"])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", [Scheme.AN10922, Scheme.SP800_108])
def test_other_schemes_take_the_cmac_route(bench: Bench, scheme: Scheme, size: int) -> None:
    """Against SP 800-108 of cryptography, and the CMACs of AN10922."""
    master, dek, context = master_of(size), bytes(range(size)), bytes(range(16, 32))
    derivation = Derivation(scheme=scheme, context=context)
    final = bench.store.derived_keys(bring(bench, "master", "master", master), derivation)
    for role, key in zip(KeyRole, planted(fixed_set(bench, dek), dek, final), strict=True):
        if scheme is Scheme.SP800_108:
            label = f"SCP03 K-{role.name}".encode()
            assert key == kdf(master, label + b"\0" + context + (size * 8).to_bytes(2, "big"))
        else:
            messages = an10922_messages(size, bytes((role,)) + context)
            assert key == an10922_key(size, [cmac(master, message) for message in messages])


@pytest.mark.parametrize("size", SIZES)
def test_every_initial_set_takes_every_final_set(bench: Bench, size: int) -> None:
    """Initial: derived in the token, by CMAC, fixed.  Final: derived in the token, by CMAC, in memory."""
    first, second, dek = master_of(size), bytes(reversed(master_of(size))), bytes(range(size))
    derived = kdf3(first, KeyRole.DEK)
    store = bench.store
    initial = [
        (store.derived_keys(bring(bench, "first-d", "diversify", first), KDF3), derived),
        (store.derived_keys(bring(bench, "first-m", "master", first), KDF3), derived),
        (fixed_set(bench, dek), dek),
    ]
    final = [
        store.derived_keys(bring(bench, "second-d", "diversify", second), KDF3),
        store.derived_keys(bring(bench, "second-m", "master", second), KDF3),
        SoftwareKeys.derived(SecretBytes(second), KDF3),
    ]
    before = store.inventory()
    expected = [kdf3(second, role) for role in KeyRole]
    probe = SecretBytes(b"a probe key, 16.")
    for keys, key in initial:
        for new in final:
            assert planted(keys, key, new) == expected
        by_software = SoftwareKeys(enc=SecretBytes(key), mac=SecretBytes(key), dek=SecretBytes(key))
        assert keys.wrap_value(probe) == by_software.wrap_value(probe)
    assert store.inventory() == before


@pytest.mark.parametrize("prefix", ["diversify", "master"])
@pytest.mark.parametrize("size", SIZES)
def test_session_keys_are_computed_under_the_right_key(bench: Bench, size: int, prefix: str) -> None:
    master = master_of(size)
    keys = bench.store.derived_keys(bring(bench, "master", prefix, master), KDF3)
    requests = [(KeyRole.ENC, b""), (KeyRole.MAC, bytes(16)), (KeyRole.ENC, bytes(33)), (KeyRole.MAC, b"m")]
    assert keys.cmac(requests) == [cmac(kdf3(master, role), message) for role, message in requests]
    assert keys.cmac([]) == []


@pytest.mark.parametrize("block", KEY_LOADING["key_blocks"] + KEY_LOADING["ciphertexts"])
def test_a_key_travels_as_in_other_implementations(bench: Bench, block: dict[str, str]) -> None:
    """The ciphertexts of PUT KEY and STORE DATA that scll and kaoh/globalplatform have."""
    dek, key = bytes.fromhex(block["dek"]), bytes.fromhex(block["key"])
    wrapped = fixed_set(bench, dek).wrap_value(SecretBytes(key))
    assert wrapped.ciphertext.hex().upper() == block["ciphertext"]
    assert wrapped.check_value.hex().upper() == block.get("kcv", wrapped.check_value.hex().upper())


def test_a_derived_key_travels_as_in_softhsm_without_us(bench: Bench) -> None:
    (block,) = [one for one in KEY_LOADING["ciphertexts"] if one["source"] == "SoftHSM2, C_WrapKey"]
    final = bench.store.derived_keys(bring(bench, "master", "diversify", master_of(16)), KDF3)
    enc, _mac, _dek = fixed_set(bench, bytes.fromhex(block["dek"])).wrap(final)
    assert enc.ciphertext.hex().upper() == block["ciphertext"]


def refused(attempt: Callable[[], object], rule: str, match: str) -> None:
    with pytest.raises(errors.PolicyRefused, match=match) as refusal:
        attempt()
    assert refusal.value.rule == rule


def test_a_scheme_of_more_than_a_block_is_refused_where_the_key_only_derives(bench: Bench) -> None:
    """Never another route than the kind says; the advice names the kind to make."""
    label = bring(bench, "master", "diversify", master_of(32))
    for scheme in (Scheme.AN10922, Scheme.SP800_108):
        derivation = Derivation(scheme=scheme, context=bytes(16))
        refused(
            lambda wanted=derivation: bench.store.derived_keys(label, wanted),  # type: ignore[misc]  # mypy guesses no default's type
            "key-route",
            r"master-aes-…",
        )
    one_block = Derivation(scheme=Scheme.SP800_108, context=b"7")
    keys = bench.store.derived_keys(label, one_block)
    master_route = bench.store.derived_keys(bring(bench, "by-cmac", "master", master_of(32)), one_block)
    assert keys.cmac([(KeyRole.MAC, b"m")]) == master_route.cmac([(KeyRole.MAC, b"m")])


@pytest.mark.parametrize("prefix", ["diversify", "master"])
def test_a_context_that_the_scheme_cannot_take_is_refused_at_once(bench: Bench, prefix: str) -> None:
    label = bring(bench, "master", prefix, master_of(16))
    with pytest.raises(errors.MalformedRequest, match="10 octets"):
        bench.store.derived_keys(label, Derivation(scheme=Scheme.KDF3, context=bytes(9)))


def test_keys_of_other_kinds_make_no_set(bench: Bench) -> None:
    store = bench.store
    mac, dek = bring(bench, "mac", "master", bytes(16)), bring(bench, "dek", "dek", bytes(16))
    long, deriving = bring(bench, "long", "master", bytes(32)), bring(bench, "d", "diversify", bytes(16))
    kek = KeyLabel("kek")
    store.generate_secret(kek, SecretKind.KEK, officer=bench.officer)
    for label in (dek, kek):
        refused(lambda wrong=label: store.derived_keys(wrong, KDF3), "key-route", "no master key")  # type: ignore[misc]  # mypy guesses no default's type
    for labels in ((dek, mac, dek), (mac, deriving, dek), (mac, mac, mac), (mac, mac, kek)):
        refused(lambda wrong=labels: store.fixed_keys(wrong), "key-route", r"cannot be K-")  # type: ignore[misc]  # mypy guesses no default's type
    refused(lambda: store.fixed_keys((mac, long, dek)), "key-route", "not of one length")
    signing = KeyLabel("signing")
    store.generate(signing, KeyAlgorithm.EC_P256)
    for nobody in (KeyLabel("nobody"), signing):
        with pytest.raises(errors.NotFound, match=nobody):
            store.derived_keys(nobody, KDF3)
        with pytest.raises(errors.NotFound, match=nobody):
            store.fixed_keys((mac, mac, nobody))


def test_no_key_travels_under_a_weaker_one(bench: Bench) -> None:
    initial = fixed_set(bench, bytes(16))
    for prefix in ("diversify", "master"):
        label = bring(bench, f"long-{prefix}", prefix, master_of(32))
        final = bench.store.derived_keys(label, KDF3)
        refused(lambda new=final: initial.wrap(new), "transport-strength", "32 octets")  # type: ignore[misc]  # mypy guesses no default's type
        assert [key.size for key in final.wrap(final)] == [32, 32, 32]
    refused(lambda: initial.wrap_value(SecretBytes(bytes(24))), "transport-strength", "24 octets")


@pytest.mark.parametrize("prepared", ["token"], indirect=True)
def test_a_set_takes_in_no_set_of_another_store(bench: Bench) -> None:
    """The sets of software stores are all in this process, and know no such border."""
    assert bench.other is not None
    final = bench.other.store.derived_keys(bring(bench.other, "m", "diversify", master_of(16)), KDF3)
    for initial in (
        fixed_set(bench, bytes(16)),
        bench.store.derived_keys(bring(bench, "d", "diversify", master_of(16)), KDF3),
        bench.store.derived_keys(bring(bench, "c", "master", master_of(16)), KDF3),
        SoftwareKeys.derived(SecretBytes(master_of(16)), KDF3),
    ):
        refused(lambda keys=initial: keys.wrap(final), "key-route", r"token|own key store")  # type: ignore[misc]  # mypy guesses no default's type
    own = fixed_check(bench.store, bytes(16), bench.store.derived_keys(KeyLabel("d"), KDF3))
    assert len(own) == 3
    other = KeyLabel("other-16")
    fixed = bench.store.fixed_keys((other, other, KeyLabel("dek-16")))
    refused(lambda: fixed.wrap(fixed), "key-route", "derived there")


def test_a_secret_key_is_taken_in_only_as_what_it_is(bench: Bench) -> None:
    """By its length, and under this transport key; what is refused leaves nothing behind."""
    store = bench.store
    public = bench.transport
    before = store.inventory()
    for prefix in ("master", "diversify", "dek"):
        for size in (0, 1, 15, 16, 20, 31, 32, 33, 40):
            share = share_with(public, SecretBytes(bytes(size)))
            with pytest.raises(errors.MalformedRequest, match=r"octets|not encrypted"):
                store.accept_secret(KeyLabel("k"), kind(prefix, 24), share, TRANSPORT)
        share = share_with(public, SecretBytes(bytes(24)))
        for broken in (share[:-1], b"", bytes(384), share + b"\0"):
            with pytest.raises(errors.MalformedRequest):
                store.accept_secret(KeyLabel("k"), kind(prefix, 24), broken, TRANSPORT)
    assert store.inventory() == before
    bring(bench, "k", "dek", bytes(24))
    with pytest.raises(errors.IllegalTransition, match="already"):
        bring(bench, "k", "dek", bytes(24))


def test_many_threads_use_many_sets_at_once(bench: Bench) -> None:
    """Each device its own keys, whoever asks when."""
    masters = {prefix: bring(bench, prefix, prefix, master_of(16)) for prefix in ("diversify", "master")}
    initial = fixed_set(bench, bytes(16))

    def one(number: int) -> bool:
        prefix = ("diversify", "master")[number % 2]
        context = number.to_bytes(10, "big")
        derivation = Derivation(scheme=Scheme.KDF3, context=context)
        keys = bench.store.derived_keys(masters[prefix], derivation)
        oracle = SoftwareKeys.derived(SecretBytes(master_of(16)), derivation)
        request = [(KeyRole.ENC, context), (KeyRole.MAC, context)]
        wrapped = [item.ciphertext for item in initial.wrap(keys)]
        dek = SecretBytes(bytes(16))
        same = [item.ciphertext for item in SoftwareKeys(enc=dek, mac=dek, dek=dek).wrap(oracle)]
        return keys.cmac(request) == oracle.cmac(request) and wrapped == same

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(one, range(160)))


def test_a_closed_store_derives_nothing(bench: Bench) -> None:
    label = bring(bench, "master", "diversify", master_of(16))
    bench.store.close()
    with pytest.raises(RuntimeError, match="closed"):
        bench.store.derived_keys(label, KDF3).cmac([(KeyRole.ENC, b"")])
    with pytest.raises(RuntimeError, match="closed"):
        bench.store.fixed_keys((label, label, label))
