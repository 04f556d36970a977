"""Two tokens as a pair: the same keys in both, and no other key in either (SPEC B3, B5)."""

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import pytest

from birthmark import errors
from birthmark.adapters.failover import FailoverKeyStore, Member
from birthmark.adapters.pkcs11 import PKCS11KeyStore
from birthmark.adapters.softkeys import SoftwareKeyStore
from birthmark.element.diversification import Derivation, KeyRole, Scheme
from birthmark.pki.algorithms import verify
from birthmark.pki.attributes import SecretKind
from birthmark.pki.keys import KeyAlgorithm, KeyLabel
from birthmark.secret import SecretBytes
from tests.support.tokenprocess import TokenProcess, cloned, token_process

CA, NEW, OTHER = KeyLabel("ca"), KeyLabel("new"), KeyLabel("other")
MASTER, LONE_MASTER = KeyLabel("master"), KeyLabel("lone-master")
DERIVATION = Derivation(scheme=Scheme.KDF3, context=bytes(range(10)))
RETURN_AFTER = 3


@dataclass(slots=True, kw_only=True)
class Pair:
    """Two tokens, the store over them, and what is on record."""

    first: TokenProcess
    second: TokenProcess
    primary: PKCS11KeyStore
    standby: PKCS11KeyStore
    recorded: dict[KeyLabel, str]
    asked: list[KeyLabel] = field(default_factory=list)

    def store(self) -> FailoverKeyStore:
        """Return what a process that starts now would have."""

        def known(label: KeyLabel) -> str | None:
            self.asked.append(label)
            return self.recorded.get(label)

        return FailoverKeyStore(self.primary, self.standby, recorded=known, return_after=RETURN_AFTER)


def opened(process: TokenProcess) -> PKCS11KeyStore:
    return PKCS11KeyStore.open(
        process.module, process.token.label, process.token.pin, reopen_after_seconds=0.0, timeout_seconds=5
    )


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TokenProcess, TokenProcess]]:
    folder = tmp_path_factory.mktemp("pair")
    with token_process(folder) as first:
        with opened(first) as store:
            store.generate(CA, KeyAlgorithm.EC_P256)
            store.generate(OTHER, KeyAlgorithm.EC_P256)
            store.generate_secret(MASTER, SecretKind.MASTER_AES_128)
        with cloned(first, folder / "twin") as second:
            with opened(first) as store:
                store.generate(NEW, KeyAlgorithm.EC_P256)
                store.generate_secret(LONE_MASTER, SecretKind.MASTER_AES_128)
            yield first, second


@pytest.fixture
def pair(processes: tuple[TokenProcess, TokenProcess]) -> Iterator[Pair]:
    first, second = processes
    with opened(first) as primary, opened(second) as standby:
        recorded = {label: sha256(primary.public_key(label)).hexdigest() for label in (CA, NEW)}
        recorded |= {label: primary.attributes(label).fingerprint for label in (MASTER, LONE_MASTER)}
        try:
            yield Pair(first=first, second=second, primary=primary, standby=standby, recorded=recorded)
        finally:
            for process in processes:
                process.kill()
                process.start()


@contextmanager
def down(process: TokenProcess) -> Iterator[None]:
    process.kill()
    yield
    process.start()


def signs(store: FailoverKeyStore, label: KeyLabel = CA) -> None:
    verify(store.public_key(label), store.sign(label, b"m"), b"m")


def working(store: FailoverKeyStore) -> str:
    return store.health().active.partition(" ")[0]


def test_a_key_signs_as_long_as_one_of_the_two_is_there(pair: Pair) -> None:
    store = pair.store()
    signs(store)
    assert (working(store), store.health().reason) == ("primary", "")
    with down(pair.first):
        signs(store)
        health = store.health()
        assert (health.up, health.active) == (True, "standby token 'floor'")
        assert health.reason == (
            "redundancy is lost, only the standby works: token 'floor' cannot be reached: token not present"
        )
    with down(pair.second):
        signs(store)
        assert "only the primary works" in store.health().reason
    signs(store)


def test_the_primary_works_again_when_it_was_well_for_long_enough(pair: Pair) -> None:
    store = pair.store()
    with down(pair.first):
        signs(store)
    for _ in range(RETURN_AFTER - 1):
        store.examine()
        signs(store)
        assert working(store) == "standby"
        assert "until the primary has been well" in store.health().reason
    with down(pair.first), pytest.raises(errors.Unavailable):
        store.examine()
    for _ in range(RETURN_AFTER - 1):  # from the beginning: it came and went
        store.examine()
        assert working(store) == "standby"
    store.examine()
    assert (working(store), store.health().reason) == ("primary", "")
    signs(store)


def test_when_both_are_down_there_is_one_reason_and_it_goes_on_by_itself(pair: Pair) -> None:
    store = pair.store()
    signs(store)
    reasons = set()
    with down(pair.first):
        signs(store)
        with down(pair.second):
            for label in (CA, NEW) * 3:
                with pytest.raises(errors.Unavailable) as refusal:
                    store.sign(label, b"m")
                reasons.add(str(refusal.value))
            health = store.health()
            assert (health.up, {health.reason}) == (False, reasons)
        signs(store)
    gone = "token 'floor' cannot be reached: token not present"
    assert reasons == {f"primary: {gone}; standby: {gone}"}
    signs(store)


def test_a_key_without_its_twin_is_held_and_not_made_up_for(pair: Pair) -> None:
    store = pair.store()
    signs(store, NEW)
    with down(pair.first):
        signs(store)
        with pytest.raises(
            errors.Unavailable, match=r"primary: token 'floor' cannot .* standby: there is no key 'new'"
        ):
            store.sign(NEW, b"m")
    signs(store, NEW)
    signs(store)
    assert working(store) == "standby", "one key is no reason to leave it"


@pytest.fixture
def liar(pair: Pair, tmp_path: Path) -> Pair:
    """A standby with some key of the same name."""
    other = SoftwareKeyStore.open(tmp_path / "keys", SecretBytes(b"passphrase"))
    other.generate(CA, KeyAlgorithm.EC_P256)
    other.generate(OTHER, KeyAlgorithm.EC_P256)
    pair.standby = other  # type: ignore[assignment]  # a store of another kind, which a pair can have
    return pair


@pytest.mark.parametrize("fresh", [False, True], ids=["known", "after a restart"])
def test_another_key_with_the_same_label_is_not_used(liar: Pair, *, fresh: bool) -> None:
    """Its certificates would be signed by a key that no chain ends at."""
    store = liar.store()
    if not fresh:
        signs(store)
    with down(liar.first), pytest.raises(errors.Unavailable, match=r"'ca' in .* is not the one on record"):
        store.sign(CA, b"m")
    signs(store)


@pytest.mark.parametrize("fresh", [False, True], ids=["compared", "after a restart"])
def test_a_key_that_is_not_on_record_is_the_primarys_or_none(pair: Pair, *, fresh: bool) -> None:
    store = pair.store()
    if not fresh:
        signs(store, OTHER)
    with down(pair.first):
        if fresh:
            with pytest.raises(
                errors.Unavailable, match="'other' is not on record, and could not be compared"
            ):
                store.sign(OTHER, b"m")
        else:
            signs(store, OTHER)
    signs(store, OTHER)


def test_a_primary_whose_key_is_not_the_one_on_record_is_not_used(pair: Pair) -> None:
    """A token that was made anew, and the process, too: nothing else knows which key it should be."""
    pair.recorded[CA] = sha256(b"another").hexdigest()
    alone = FailoverKeyStore(pair.primary, recorded=pair.recorded.get)
    for store in (pair.store(), alone):
        with pytest.raises(errors.IntegrityFailure, match=r"'ca' in .*floor.* is not the one on record"):
            store.sign(CA, b"m")
        with pytest.raises(errors.IntegrityFailure, match="not the one on record"):
            store.public_key(CA)


def test_the_record_is_asked_once_for_each_key(pair: Pair) -> None:
    store = pair.store()
    for _ in range(3):
        signs(store)
        signs(store, NEW)
    assert pair.asked == [CA, NEW]


def test_a_record_that_cannot_be_read_holds_and_blames_no_token(pair: Pair) -> None:
    def unreadable(_label: KeyLabel) -> str | None:
        raise errors.Unavailable("the database is gone")

    store = FailoverKeyStore(pair.primary, pair.standby, recorded=unreadable)
    with pytest.raises(errors.Unavailable, match=r"^the database is gone$"):
        store.sign(CA, b"m")
    assert working(store) == "primary"


def test_keys_are_made_and_managed_in_the_primary_alone(pair: Pair) -> None:
    store = pair.store()
    numbers = itertools.count()

    def label() -> KeyLabel:
        return KeyLabel(f"made-{next(numbers)}")

    uses: tuple[Callable[[], object], ...] = (
        lambda: store.generate(label(), KeyAlgorithm.EC_P256),
        lambda: store.generate_secret(label(), SecretKind.MASTER_AES_128),
        lambda: store.generate_transport(label()),
        lambda: store.accept_secret(label(), SecretKind.KEK, bytes(384), label()),
        lambda: store.wrap(label(), label()),
        lambda: store.unwrap(label(), pair.primary.public_key(CA), bytes(40), label()),
        lambda: store.attributes(CA),
        store.inventory,
        store.labels,
    )
    with down(pair.first):
        signs(store)
        for use in uses:
            with pytest.raises(
                errors.Unavailable, match=r"cannot be reached.*its standby makes and manages no keys"
            ):
                use()
    made = store.generate(label(), KeyAlgorithm.EC_P256)
    assert made not in {pair.standby.public_key(known) for known in (CA, OTHER)}
    assert len(pair.standby.labels()) == 3
    assert len(store.labels()) == len(pair.primary.labels()) > 3


# --- masters of secure elements


def test_a_set_is_derived_by_whichever_store_works(pair: Pair) -> None:
    store = pair.store()
    requests: Sequence[tuple[KeyRole, bytes]] = [(KeyRole.ENC, b"challenge"), (KeyRole.MAC, b"response")]
    keys = store.derived_keys(MASTER, DERIVATION)
    there = pair.primary.derived_keys(MASTER, DERIVATION)
    expected = there.cmac(requests)
    assert (keys.size, keys.route) == (there.size, there.route)
    later = store.derived_keys(MASTER, Derivation(scheme=Scheme.KDF3, context=bytes(10)))
    wrapped, wrapped_value = keys.wrap(later), keys.wrap_value(SecretBytes(bytes(16)))
    for process in (pair.first, pair.second):
        with down(process):
            assert keys.cmac(requests) == expected
            assert keys.wrap(later) == wrapped, "both sets come from the same store"
            assert keys.wrap_value(SecretBytes(bytes(16))) == wrapped_value


def test_a_master_without_its_twin_is_held(pair: Pair) -> None:
    store = pair.store()
    keys = store.derived_keys(LONE_MASTER, DERIVATION)
    lone = pytest.raises(errors.Unavailable, match="standby: there is no key 'lone-master'")
    with down(pair.first), lone:
        keys.cmac([(KeyRole.ENC, b"m")])
    keys.cmac([(KeyRole.ENC, b"m")])


def test_another_master_with_the_same_label_is_not_used(pair: Pair) -> None:
    pair.recorded[MASTER] = "0102030405"
    with pytest.raises(errors.IntegrityFailure, match=r"'master' in .* is not the one on record"):
        pair.store().derived_keys(MASTER, DERIVATION)


# --- at work


def test_sixteen_threads_do_not_notice_that_tokens_die_in_turn(pair: Pair) -> None:
    store = pair.store()
    signs(store)
    spki, over, right, wrong = store.public_key(CA), threading.Event(), [0], list[BaseException]()

    def work(number: int) -> None:
        for turn in itertools.count():
            if over.is_set():
                return
            message = f"{number} {turn}".encode()
            try:
                verify(spki, store.sign(CA, message), message)
                right[0] += 1
            except BaseException as failure:  # noqa: BLE001  # whatever it is, the test says so
                wrong.append(failure)
                return

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for process in (pair.first, pair.second) * 3:
        with down(process):
            seen = right[0]
            while right[0] < seen + 100 and not wrong:
                over.wait(0.005)
        store.examine()
    over.set()
    for thread in threads:
        thread.join(30)
    assert wrong == []
    assert right[0] > 600


def test_one_store_alone_is_as_it_is(pair: Pair) -> None:
    alone = FailoverKeyStore(pair.primary, recorded=pair.recorded.get)
    signs(alone)
    assert alone.health() == pair.primary.health()
    assert repr(alone) == repr(pair.primary)
    assert alone.development is False
    with down(pair.first):
        with pytest.raises(errors.Unavailable, match=r"^token 'floor' cannot be reached: token not present$"):
            alone.sign(CA, b"m")
        with pytest.raises(errors.Unavailable, match=r"^token 'floor' cannot be reached: token not present$"):
            alone.labels()
    alone.examine()
    signs(alone)


def test_stuck_is_a_pair_only_when_both_are(pair: Pair) -> None:
    @dataclass
    class Stuck:
        seconds: float

        def stuck_seconds(self) -> float:
            return self.seconds

    def after(*seconds: float) -> float:
        first, second = (_as_member(Stuck(each)) for each in seconds)
        return FailoverKeyStore(first, second, recorded=lambda _label: None).stuck_seconds()

    assert (after(70, 0), after(0, 70), after(70, 65)) == (0, 0, 65)
    assert pair.store().stuck_seconds() == 0


def _as_member(value: object) -> Member:
    return value  # type: ignore[return-value]  # only what the test asks is asked
