"""A token that fails in every way we know of, and what the store in front of it does (SPEC B3)."""

import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from birthmark import errors
from birthmark.adapters.doctor import LONGEST_WAIT_SECONDS, Breaker, Doctor
from birthmark.adapters.pkcs11 import PKCS11KeyStore
from birthmark.adapters.softkeys import SoftwareKeyStore
from birthmark.element.diversification import Derivation, Scheme
from birthmark.pki.algorithms import verify
from birthmark.pki.attributes import SecretKind
from birthmark.pki.keys import KeyAlgorithm, KeyLabel
from birthmark.ports import Health
from birthmark.secret import SecretBytes
from tests.support.programs import need
from tests.support.server import until
from tests.support.tokenprocess import TokenProcess, token_process

LOG, CA = KeyLabel("log"), KeyLabel("ca")
GONE = "token 'floor' cannot be reached: "


# --- the breaker by itself


@dataclass(slots=True)
class Hours:
    """A clock that a test turns."""

    at: float = 0.0

    def __call__(self) -> float:
        return self.at


def refused(breaker: Breaker) -> str:
    with pytest.raises(errors.Unavailable) as refusal:
        breaker.admit()
    return str(refusal.value)


def test_an_open_breaker_refuses_all_with_the_one_reason_and_lets_one_try_when_it_is_time() -> None:
    hours = Hours()
    breaker = Breaker("it", first_wait_seconds=1.0, monotonic=hours)
    assert breaker.admit() is False
    assert breaker.admit() is False, "closed, it lets all through"
    assert str(breaker.failed("it is gone", trying=False)) == "it is gone"
    assert refused(breaker) == "it is gone"
    hours.at = 0.999
    assert refused(breaker) == "it is gone"
    hours.at = 1.0
    assert breaker.admit() is True
    assert refused(breaker) == "it is gone", "one at a time tries"
    breaker.answered(trying=True)
    assert breaker.admit() is False
    assert breaker.health().up


def test_the_waits_grow_to_the_longest_and_begin_anew_with_the_next_outage() -> None:
    hours = Hours()
    breaker = Breaker("it", first_wait_seconds=1.0, monotonic=hours)

    def waits(count: int) -> list[float]:
        found = []
        breaker.failed("gone", trying=False)
        for _ in range(count):
            begun = hours.at
            while True:
                with suppress(errors.Unavailable):
                    assert breaker.admit()
                    break
                hours.at += 0.5
            found.append(hours.at - begun)
            breaker.failed("gone", trying=True)
        return found

    assert waits(8) == [1, 2, 4, 8, 16, 30, 30, 30]
    assert LONGEST_WAIT_SECONDS == 30
    hours.at += 30
    assert breaker.admit()
    breaker.answered(trying=True)
    assert waits(3) == [1, 2, 4]


def test_those_who_fail_after_it_opened_change_nothing() -> None:
    """They were let through before; only who tries prolongs the wait, and only its answer closes."""
    hours = Hours()
    breaker = Breaker("it", first_wait_seconds=1.0, monotonic=hours)
    breaker.failed("gone", trying=False)
    for _ in range(50):
        breaker.failed("another word for it", trying=False)
        breaker.answered(trying=False)
    assert refused(breaker) == "gone"
    with pytest.raises(errors.Unavailable, match="gone"):
        breaker.require(trying=False)
    breaker.require(trying=True)
    hours.at = 1.0
    assert breaker.admit()


def test_health_says_since_when() -> None:
    begun = datetime.now(UTC)
    breaker = Breaker("it", first_wait_seconds=0.0)
    well = breaker.health()
    assert (well.up, well.reason, well.active) == (True, "", "it")
    breaker.failed("gone", trying=False)
    down = breaker.health()
    assert (down.up, down.reason) == (False, "gone")
    assert begun <= well.since <= down.since <= datetime.now(UTC)
    breaker.admit()
    breaker.failed("still gone", trying=True)
    assert breaker.health().since == down.since, "the outage is the same"


# --- the doctor by itself


@dataclass(slots=True)
class Store:
    """A store that is as a test has it."""

    now: Health = field(default_factory=lambda: health(""))
    raises: Exception | None = None
    stuck: float = 0.0
    examined: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def __repr__(self) -> str:
        return "the store"

    def health(self) -> Health:
        return self.now

    def examine(self) -> None:
        self.examined.release()
        if self.raises is not None:
            raise self.raises

    def stuck_seconds(self) -> float:
        return self.stuck


def health(reason: str, *, up: bool | None = None) -> Health:
    return Health(up=not reason if up is None else up, reason=reason, since=datetime.now(UTC), active="it")


@dataclass(slots=True)
class Attended:
    """A doctor at work."""

    store: Store
    doctor: Doctor
    given_up: list[str]

    def examinations(self, count: int) -> None:
        """Wait until so many more have begun; all before them are over."""
        for _ in range(count):
            assert self.store.examined.acquire(timeout=10)


@pytest.fixture
def attended() -> Iterator[Attended]:
    store, given_up = Store(), list[str]()
    doctor = Doctor(store, every_seconds=0.001, give_up_seconds=5, give_up=given_up.append)
    yield Attended(store, doctor, given_up)
    doctor.dismiss()


def test_the_doctor_tells_each_change_once(attended: Attended, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for reason, up in (("it is gone", False), ("redundancy is lost", True), ("", True)):
        attended.store.now = health(reason, up=up)
        attended.store.raises = errors.Unavailable(reason) if reason else None
        attended.examinations(5)
    told = [(record.levelname, record.getMessage().partition(";")[0]) for record in caplog.records]
    assert told == [
        ("ERROR", "it is gone"),
        ("WARNING", "redundancy is lost"),
        ("INFO", "the store is well again"),
    ]


def test_an_outage_between_two_examinations_is_told(
    attended: Attended, caplog: pytest.LogCaptureFixture
) -> None:
    attended.examinations(2)
    attended.store.now = health("")
    attended.examinations(3)
    (record,) = caplog.records
    assert "the store was down for a moment" in record.getMessage()


def test_the_doctor_outlives_what_nobody_foresaw(
    attended: Attended, caplog: pytest.LogCaptureFixture
) -> None:
    attended.store.raises = ValueError("never seen")
    attended.examinations(3)
    assert "the store could not be examined" in caplog.text
    assert attended.given_up == []


def test_the_doctor_gives_up_a_store_that_never_comes_back(attended: Attended) -> None:
    attended.store.stuck = 4.9
    attended.examinations(3)
    assert attended.given_up == []
    attended.store.stuck = 5.1
    attended.examinations(3)
    assert "the store has not come back from a call for 5 s, and never may" in attended.given_up[0]


# --- a token that is a process


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TokenProcess]:
    """A token with two keys."""
    with token_process(tmp_path_factory.mktemp("token")) as process:
        with open_store(process) as store:
            store.generate(LOG, KeyAlgorithm.ED25519)
            store.generate(CA, KeyAlgorithm.EC_P256)
        yield process


@pytest.fixture
def process(made: TokenProcess) -> Iterator[TokenProcess]:
    """The token, running; a test may do with it what it likes."""
    kept = made.folder / "kept"
    shutil.copytree(made.token.tokens, kept)
    yield made
    made.kill()
    shutil.rmtree(made.token.tokens)
    kept.rename(made.token.tokens)
    made.start()


def open_store(
    process: TokenProcess, *, reopen_after: float = 0.0, timeout: float = 10.0, patient: bool = False
) -> PKCS11KeyStore:
    return PKCS11KeyStore.open(
        process.module,
        process.token.label,
        process.token.pin,
        reopen_after_seconds=reopen_after,
        timeout_seconds=timeout,
        patient=patient,
    )


@pytest.fixture
def store(process: TokenProcess) -> Iterator[PKCS11KeyStore]:
    """A store that has used both keys, and tries a token that was gone at every call."""
    with open_store(process) as opened:
        signs(opened)
        yield opened


def signs(store: PKCS11KeyStore) -> None:
    for label in (LOG, CA):
        verify(store.public_key(label), store.sign(label, b"m"), b"m")


def aside(program: str, process: TokenProcess, *arguments: str) -> None:
    """Run a program that uses SoftHSM itself, beside the token's own process."""
    head = "import sys\nimport pkcs11\nfrom pkcs11 import Attribute, KeyType, ObjectClass\n"
    head += "token = pkcs11.lib(sys.argv[1]).get_token(token_label='floor')\n"
    subprocess.run(
        [sys.executable, "-c", head + program, str(process.token.module), *arguments],
        check=True,
        timeout=60,
        env={**os.environ, "SOFTHSM2_CONF": str(process.token.configuration)},
    )


def destroy(process: TokenProcess, label: str) -> None:
    aside(
        "session = token.open(rw=True, user_pin=sys.argv[2])\n"
        "for key in list(session.get_objects({Attribute.LABEL: sys.argv[3]})):\n"
        "    key.destroy()\n",
        process,
        process.token.pin.reveal().decode(),
        label,
    )


def test_a_connection_that_dies_is_made_anew_without_anybody_noticing(
    store: PKCS11KeyStore, process: TokenProcess
) -> None:
    """All handles, of session and objects, are void then."""
    begun = store.health()
    for _ in range(3):
        process.drop_connections()
        signs(store)
    assert store.health() == begun


def test_a_token_that_is_killed_is_down_and_up_again(store: PKCS11KeyStore, process: TokenProcess) -> None:
    for _ in range(2):
        process.kill()
        uses: list[Callable[[], object]] = [
            lambda: store.sign(CA, b"m"),
            store.labels,
            store.examine,
            lambda: store.attributes(LOG),
        ]
        reasons = set()
        for use in uses * 3:
            with pytest.raises(errors.Unavailable, match=GONE) as refusal:
                use()
            reasons.add(str(refusal.value))
        down = store.health()
        assert (reasons, down.up) == ({down.reason}, False)
        process.start()
        assert not store.health().up, "health is what was seen, not what is"
        signs(store)
        assert store.health().up


def test_while_a_token_is_left_alone_it_is_not_asked(process: TokenProcess) -> None:
    with open_store(process, reopen_after=3600) as store:
        process.kill()
        with pytest.raises(errors.Unavailable, match=GONE):
            store.sign(CA, b"m")
        process.start()
        for _ in range(20):
            with pytest.raises(errors.Unavailable, match=GONE):
                store.sign(CA, b"m")
        # Who looked whether it listens is gone by and by; nobody else came.
        assert until(lambda: process.connections() == 0)


def test_those_who_wait_when_a_token_dies_do_not_try_it_one_by_one(process: TokenProcess) -> None:
    with open_store(process, reopen_after=3600, timeout=30) as store:
        signs(store)
        process.hang()
        said: list[str] = []

        def sign() -> None:
            try:
                store.sign(CA, b"m")
            except errors.Unavailable as down:
                said.append(str(down))

        threads = [threading.Thread(target=sign) for _ in range(32)]
        for thread in threads:
            thread.start()
        assert until(lambda: store.stuck_seconds() > 0)
        process.kill()
        for thread in threads:
            thread.join(30)
        assert len(said) == 32
        assert len(set(said)) == 1


def test_a_token_that_hangs_is_down_and_comes_back(process: TokenProcess) -> None:
    with open_store(process, timeout=0.5) as store:
        signs(store)
        process.hang()
        for _ in range(20):
            with pytest.raises(errors.Unavailable, match=r"'floor' did not answer within 0\.5 s"):
                store.sign(CA, b"m")
        assert store.stuck_seconds() > 0.5
        assert not store.health().up
        process.go_on()
        assert until(lambda: store.stuck_seconds() == 0)
        signs(store)
        assert store.health().up


def test_a_token_that_hangs_for_ever_makes_the_doctor_give_up(process: TokenProcess) -> None:
    with open_store(process, timeout=0.2) as store:
        signs(store)
        given_up: list[str] = []
        doctor = Doctor(store, every_seconds=0.05, give_up_seconds=0.5, give_up=given_up.append)
        process.hang()
        assert until(lambda: given_up)
        doctor.dismiss()
        assert "PKCS11KeyStore(token 'floor') has not come back from a call for" in given_up[0]
        process.kill()


def test_a_doctor_finds_the_outage_and_its_end_though_nobody_asks(process: TokenProcess) -> None:
    with open_store(process) as store:
        doctor = Doctor(store, every_seconds=0.02, give_up_seconds=60, give_up=pytest.fail)
        process.kill()
        assert until(lambda: not store.health().up)
        process.start()
        assert until(lambda: store.health().up)
        doctor.dismiss()


def slot(process: TokenProcess) -> str:
    """Return the number of the slot the token is in, as a new connection sees it."""
    program = "import sys, pkcs11\nfor slot in pkcs11.lib(sys.argv[1]).get_slots(token_present=True):\n"
    program += "    if slot.get_token().label == 'floor': print(slot.slot_id)\n"
    command = [sys.executable, "-c", program, str(process.module)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def test_a_token_in_another_slot_is_found_by_its_label(store: PKCS11KeyStore, process: TokenProcess) -> None:
    before = slot(process)
    for number in range(32):
        process.token.initialise(f"other-{number}")
        if slot(process) != before:
            break
    assert slot(process) != before
    process.drop_connections()
    signs(store)
    assert store.labels() == (CA, LOG)


def test_a_token_directory_that_is_moved_away_and_back(store: PKCS11KeyStore, process: TokenProcess) -> None:
    with process.token.gone(), pytest.raises(errors.Unavailable, match=GONE):
        store.examine()
    assert not store.health().up
    store.examine()
    assert store.health().up
    signs(store)


def test_a_pin_that_the_security_officer_changed_is_sent_once(
    store: PKCS11KeyStore, process: TokenProcess
) -> None:
    """A token locks after a few wrong ones: everybody is told, and nobody tries again."""
    aside(
        "session = token.open(rw=True, so_pin=sys.argv[2])\nsession.init_pin('another-1')\n",
        process,
        process.token.so_pin,
    )
    process.drop_connections()
    for _ in range(3):
        with pytest.raises(errors.NotPermitted, match=r"refuses the PIN \(pin incorrect\); it is not tried"):
            store.sign(CA, b"m")
    down = store.health()
    assert (down.up, "refuses the PIN" in down.reason) == (False, True)
    aside(
        "session = token.open(rw=True, so_pin=sys.argv[2])\nsession.init_pin(sys.argv[3])\n",
        process,
        process.token.so_pin,
        process.token.pin.reveal().decode(),
    )
    with pytest.raises(errors.NotPermitted, match="refuses the PIN"):
        store.sign(CA, b"m")
    store.close()
    with open_store(process) as again:
        signs(again)


def test_a_token_that_was_made_anew_is_not_the_token_that_went(
    store: PKCS11KeyStore, process: TokenProcess
) -> None:
    """The same label, the same PIN, keys of the same names: other keys."""
    process.kill()
    utility = need("softhsm2-util", "softhsm2")
    subprocess.run(
        [utility, "--delete-token", "--token", "floor"],
        check=True,
        capture_output=True,
        env={**os.environ, "SOFTHSM2_CONF": str(process.token.configuration)},
    )
    process.token.initialise("floor")
    process.start()
    with pytest.raises(errors.NotFound, match="there is no key 'ca'"):
        store.sign(CA, b"m")
    aside(
        "session = token.open(rw=True, user_pin=sys.argv[2])\n"
        "curve = bytes.fromhex('06082a8648ce3d030107')\n"
        "curve = session.create_domain_parameters(KeyType.EC, {Attribute.EC_PARAMS: curve}, local=True)\n"
        "curve.generate_keypair(label='ca', store=True)\n",
        process,
        process.token.pin.reveal().decode(),
    )
    process.drop_connections()
    with pytest.raises(errors.IntegrityFailure, match="'ca' in token 'floor' is another one than before"):
        store.sign(CA, b"m")
    with pytest.raises(errors.Refusal):
        store.examine()
    assert not store.health().up


def test_a_key_that_goes_from_the_token_is_missed_and_welcome_back(
    store: PKCS11KeyStore, process: TokenProcess
) -> None:
    """E4: the log's key, say; nobody has to use it to notice."""
    kept = process.folder / "with-the-key"
    shutil.copytree(process.token.tokens, kept)
    destroy(process, "log")
    with pytest.raises(errors.NotFound, match="there is no key 'log' in token 'floor'"):
        store.examine()
    down = store.health()
    assert (down.up, down.reason) == (False, "there is no key 'log' in token 'floor'")
    with pytest.raises(errors.NotFound, match="there is no key 'log'"):
        store.sign(LOG, b"m")
    store.sign(CA, b"m")
    with pytest.raises(errors.NotFound):
        store.examine()
    assert store.health() == down, "it is wrong since it was found"
    shutil.rmtree(process.token.tokens)
    kept.rename(process.token.tokens)
    process.drop_connections()
    store.examine()
    assert store.health().up
    signs(store)


def test_a_patient_store_opens_before_its_token_is_there(process: TokenProcess) -> None:
    process.kill()
    with pytest.raises(errors.Unavailable, match=GONE):
        open_store(process)
    with open_store(process, patient=True) as store:
        with pytest.raises(errors.Unavailable, match=GONE):
            store.public_key(LOG)
        assert not store.health().up
        process.start()
        signs(store)
        assert store.health().up


def test_the_public_half_of_a_transport_key_is_told(process: TokenProcess) -> None:
    """A ceremony that was killed right after it made one goes on with it."""
    label = KeyLabel("transport")
    with open_store(process) as store:
        made = store.generate_transport(label)
        assert store.public_key(label) == made
    with open_store(process) as again:
        assert again.public_key(label) == made
        with pytest.raises(errors.IntegrityFailure, match="may not sign"):
            again.sign(label, b"m")


# --- keys in files


@pytest.fixture
def files(tmp_path: Path) -> SoftwareKeyStore:
    return SoftwareKeyStore.open(tmp_path / "keys", SecretBytes(b"passphrase"))


def test_a_key_whose_file_goes_is_used_no_more_until_it_is_back(
    files: SoftwareKeyStore, tmp_path: Path
) -> None:
    """It is still in memory; but what is in the files is what counts."""
    spki = files.generate(LOG, KeyAlgorithm.ED25519)
    verify(spki, files.sign(LOG, b"m"), b"m")
    file, away = tmp_path / "keys" / "log.p8", tmp_path / "away"
    begun = files.health()
    assert begun.up
    for _ in range(2):
        file.rename(away)
        with pytest.raises(errors.NotFound, match="there is no key 'log'"):
            files.sign(LOG, b"m")
        down = files.health()
        assert (down.up, "'log' is no longer in" in down.reason) == (False, True)
        assert files.health() == down
        away.rename(file)
        verify(spki, files.sign(LOG, b"m"), b"m")
        assert files.health().up


def test_another_file_under_a_known_label_is_not_the_key(files: SoftwareKeyStore, tmp_path: Path) -> None:
    files.generate(LOG, KeyAlgorithm.ED25519)
    other = SoftwareKeyStore.open(tmp_path / "others", SecretBytes(b"passphrase"))
    other.generate(LOG, KeyAlgorithm.ED25519)
    file = tmp_path / "keys" / "log.p8"
    file.unlink()
    with pytest.raises(errors.NotFound):
        files.sign(LOG, b"m")
    (tmp_path / "others" / "log.p8").rename(file)
    with pytest.raises(errors.IntegrityFailure, match="another one than before"):
        files.sign(LOG, b"m")


def test_a_master_key_whose_file_goes_is_used_no_more(files: SoftwareKeyStore, tmp_path: Path) -> None:
    label = KeyLabel("master")
    made = files.generate_secret(label, SecretKind.MASTER_AES_128)
    derivation = Derivation(scheme=Scheme.KDF3, context=bytes(10))
    keys = files.derived_keys(label, derivation)
    file, away = tmp_path / "keys" / "master.secret", tmp_path / "away"
    file.rename(away)
    with pytest.raises(errors.NotFound, match="there is no key 'master'"):
        files.derived_keys(label, derivation)
    assert not files.health().up
    away.rename(file)
    assert files.derived_keys(label, derivation) == keys
    assert files.attributes(label).fingerprint == made.check_value


def test_the_public_half_of_a_transport_key_in_a_file_is_told(files: SoftwareKeyStore) -> None:
    label = KeyLabel("transport")
    assert files.generate_transport(label) == files.public_key(label)
    files.close()
    with pytest.raises(RuntimeError, match="closed"):
        files.public_key(label)
