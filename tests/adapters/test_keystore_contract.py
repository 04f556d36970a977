"""What every key store owes its users, asked of each of them (SPEC B1, B2; ports.KeyStore)."""

import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from birthmark import errors
from birthmark.adapters.pkcs11 import PKCS11KeyStore
from birthmark.adapters.softkeys import SoftwareKeyStore
from birthmark.pki.algorithms import recognise
from birthmark.pki.keys import KeyAlgorithm, KeyLabel
from birthmark.ports import KeyStore
from birthmark.secret import SecretBytes
from tests.support.programs import need
from tests.support.softhsm import softhsm_token

LABEL = KeyLabel("ca.floor-7")
QUICK = [kind for kind in KeyAlgorithm if kind not in {KeyAlgorithm.RSA_3072, KeyAlgorithm.RSA_4096}]
"""Those whose keys are made in no time."""
SECRET = "passphrase-never-to-be-seen-4711"


@dataclass(kw_only=True)
class Bench:
    """A store under test, and how to open it again as another process would."""

    store: KeyStore
    reopen: Callable[[], KeyStore]
    secret: str
    development: bool


@pytest.fixture(params=["software", "token"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    with ExitStack() as stack:
        if request.param == "software":
            directory = tmp_path / "keys"

            def open_files() -> KeyStore:
                return SoftwareKeyStore.open(directory, SecretBytes(SECRET.encode()))

            yield Bench(store=open_files(), reopen=open_files, secret=SECRET, development=True)
            return
        token = stack.enter_context(softhsm_token(tmp_path))
        opened = [stack.enter_context(PKCS11KeyStore.open(token.module, token.label, token.pin))]

        def open_token() -> KeyStore:
            opened.pop().close()
            opened.append(stack.enter_context(PKCS11KeyStore.open(token.module, token.label, token.pin)))
            return opened[-1]

        yield Bench(
            store=opened[-1], reopen=open_token, secret=token.pin.reveal().decode(), development=False
        )


def verify(subject_public_key_info: bytes, signature: bytes, message: bytes) -> None:
    """Verify with cryptography; raises InvalidSignature."""
    key = load_der_public_key(subject_public_key_info)
    match key:
        case ed25519.Ed25519PublicKey() | ed448.Ed448PublicKey():
            key.verify(signature, message)
        case rsa.RSAPublicKey():
            key.verify(signature, message, padding.PKCS1v15(), hashes.SHA256())
        case ec.EllipticCurvePublicKey(curve=ec.SECP256R1()):
            key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
        case ec.EllipticCurvePublicKey(curve=ec.SECP384R1()):
            key.verify(signature, message, ec.ECDSA(hashes.SHA384()))
        case ec.EllipticCurvePublicKey(curve=ec.SECP521R1()):
            key.verify(signature, message, ec.ECDSA(hashes.SHA512()))
        case _:
            pytest.fail(f"a key of another kind: {key!r}")


def verify_with_openssl(
    directory: Path, algorithm: KeyAlgorithm, spki: bytes, signature: bytes, message: bytes
) -> None:
    """Verify with the openssl program, a second reader of our encodings."""
    names = {"key": spki, "signature": signature, "message": message}
    for name, content in names.items():
        (directory / name).write_bytes(content)
    digests = {KeyAlgorithm.EC_P384: "sha384", KeyAlgorithm.EC_P521: "sha512"}
    if algorithm in {KeyAlgorithm.ED25519, KeyAlgorithm.ED448}:
        arguments = "pkeyutl -verify -pubin -keyform DER -inkey key -rawin -in message -sigfile signature"
    else:
        digest = digests.get(algorithm, "sha256")
        arguments = f"dgst -{digest} -keyform DER -verify key -signature signature message"
    command = [need("openssl"), *arguments.split()]
    done = subprocess.run(command, cwd=directory, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("algorithm", KeyAlgorithm)
def test_signatures_verify_for_two_strangers(bench: Bench, algorithm: KeyAlgorithm, tmp_path: Path) -> None:
    """B1, B2: what is generated, told as public and signed belongs together, whoever looks."""
    spki = bench.store.generate(LABEL, algorithm)
    assert recognise(spki) is algorithm
    assert bench.store.public_key(LABEL) == spki
    for message in (b"", b"to be signed", bytes(70_000)):
        signature = bench.store.sign(LABEL, message)
        verify(spki, signature, message)
        # pkeyutl of OpenSSL 3.0 refuses an empty file.
        if message:
            verify_with_openssl(tmp_path, algorithm, spki, signature, message)


def test_keys_outlive_the_process_that_made_them(bench: Bench) -> None:
    """B1: durable on return."""
    made = {
        KeyLabel(f"k-{algorithm}"): bench.store.generate(KeyLabel(f"k-{algorithm}"), algorithm)
        for algorithm in QUICK
    }
    again = bench.reopen()
    assert again.labels() == tuple(sorted(made))
    for label, spki in made.items():
        assert again.public_key(label) == spki
        verify(spki, again.sign(label, b"again"), b"again")


def test_an_empty_store_holds_nothing(bench: Bench) -> None:
    assert bench.store.labels() == ()


def test_an_unknown_label_is_not_found(bench: Bench) -> None:
    with pytest.raises(errors.NotFound, match=r"ca\.floor-7"):
        bench.store.public_key(LABEL)
    with pytest.raises(errors.NotFound, match=r"ca\.floor-7"):
        bench.store.sign(LABEL, b"message")


def test_a_taken_label_is_refused_and_its_key_stays(bench: Bench) -> None:
    spki = bench.store.generate(LABEL, KeyAlgorithm.EC_P256)
    stores: tuple[Callable[[], KeyStore], ...] = (lambda: bench.store, bench.reopen)
    for find in stores:
        store = find()
        with pytest.raises(errors.IllegalTransition, match=r"ca\.floor-7"):
            store.generate(LABEL, KeyAlgorithm.ED25519)
        assert store.public_key(LABEL) == spki


@pytest.mark.parametrize(
    "label", ["", "x" * 65, "Root", "a/b", "../up", "a b", "a_b", "ä", "a\n", "a\0", "x" * 100_000]
)
def test_a_label_that_is_none_is_refused_everywhere(bench: Bench, label: str) -> None:
    wrong = KeyLabel(label)
    attempts: tuple[Callable[[], object], ...] = (
        lambda: bench.store.generate(wrong, KeyAlgorithm.ED25519),
        lambda: bench.store.public_key(wrong),
        lambda: bench.store.sign(wrong, b"message"),
    )
    for attempt in attempts:
        with pytest.raises(errors.MalformedRequest, match=r"1 to 64 of a-z 0-9 - \."):
            attempt()
    assert bench.store.labels() == ()


@pytest.mark.parametrize("label", ["a", "x" * 64, "..", ".", "-", "0", ".hidden", "ca.p8", "2026-07.root"])
def test_every_label_of_the_syntax_is_a_name(bench: Bench, label: str) -> None:
    spki = bench.store.generate(KeyLabel(label), KeyAlgorithm.ED25519)
    again = bench.reopen()
    assert again.labels() == (label,)
    verify(spki, again.sign(KeyLabel(label), b"m"), b"m")


def test_eight_threads_may_sign_at_once_with_several_keys(bench: Bench) -> None:
    """B3: one store serves every thread; each gets the signature of its own message."""
    spki = {
        KeyLabel(f"k-{algorithm}"): bench.store.generate(KeyLabel(f"k-{algorithm}"), algorithm)
        for algorithm in QUICK
    }
    store = bench.reopen()

    def sign(number: int) -> None:
        for label, key in spki.items():
            message = f"{number} with {label}".encode()
            verify(key, store.sign(label, message), message)

    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(sign, range(64)))) == 64


def test_of_eight_threads_that_want_a_label_one_gets_it(bench: Bench) -> None:
    def generate(_: int) -> bytes | None:
        try:
            return bench.store.generate(LABEL, KeyAlgorithm.EC_P256)
        except errors.IllegalTransition:
            return None

    with ThreadPoolExecutor(8) as pool:
        made = [spki for spki in pool.map(generate, range(8)) if spki is not None]
    assert made == [bench.store.public_key(LABEL)]
    assert bench.reopen().public_key(LABEL) == made[0]


def test_a_store_says_whether_it_is_for_development(bench: Bench) -> None:
    """B2: labelled "development" wherever it shows."""
    assert bench.store.development is bench.development
    assert ("development" in repr(bench.store)) is bench.development


def test_the_public_half_of_a_transport_key_is_told_and_it_signs_nothing(bench: Bench) -> None:
    """A ceremony that was killed right after it made one goes on with it."""
    made = bench.store.generate_transport(LABEL)
    stores: tuple[Callable[[], KeyStore], ...] = (lambda: bench.store, bench.reopen)
    for find in stores:
        store = find()
        assert store.public_key(LABEL) == made
        with pytest.raises(errors.Refusal, match=r"ca\.floor-7"):
            store.sign(LABEL, b"message")


def test_a_store_that_was_asked_and_answered_is_well(bench: Bench) -> None:
    bench.store.generate(LABEL, KeyAlgorithm.ED25519)
    health = bench.store.health()
    assert (health.up, health.reason) == (True, "")
    assert health.since.utcoffset() == timedelta(0)
    assert health.since <= datetime.now(UTC)
    assert health.active == ("software" if bench.development else "token 'floor'")


def test_a_closed_store_answers_no_more_and_its_keys_are_still_there(bench: Bench) -> None:
    """B7: what is closed holds no open key; not even what it knew by heart is told."""
    spki = bench.store.generate(LABEL, KeyAlgorithm.ED25519)
    bench.store.sign(LABEL, b"message")
    bench.store.close()
    bench.store.close()
    attempts: tuple[Callable[[], object], ...] = (
        lambda: bench.store.generate(KeyLabel("another"), KeyAlgorithm.ED25519),
        lambda: bench.store.public_key(LABEL),
        lambda: bench.store.sign(LABEL, b"message"),
        bench.store.labels,
    )
    for attempt in attempts:
        with pytest.raises(RuntimeError, match="closed"):
            attempt()
    again = bench.reopen()
    assert again.labels() == (LABEL,)
    verify(spki, again.sign(LABEL, b"again"), b"again")


def test_nothing_secret_shows(bench: Bench) -> None:
    """B7: not in the representation, and not in what is raised."""
    bench.store.generate(LABEL, KeyAlgorithm.EC_P256)
    shown = [repr(bench.store), str(bench.store), f"{bench.store}"]
    attempts: tuple[Callable[[], object], ...] = (
        lambda: bench.store.generate(LABEL, KeyAlgorithm.EC_P256),
        lambda: bench.store.sign(KeyLabel("nobody"), b"message"),
        lambda: bench.store.sign(KeyLabel("NOBODY"), b"message"),
    )
    for attempt in attempts:
        with pytest.raises(errors.Refusal) as refusal:
            attempt()
        link: BaseException | None = refusal.value
        while link is not None:
            shown.append(repr(link) + str(link))
            link = link.__cause__ or link.__context__
    assert not [text for text in shown if bench.secret in text]
