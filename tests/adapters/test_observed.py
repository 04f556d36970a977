"""A key store that is watched answers like one that is not, and the watcher hears how long it took."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from birthmark import errors
from birthmark.adapters.observed import ObservedKeyStore
from birthmark.adapters.softkeys import SoftwareKeyStore
from birthmark.element.diversification import Derivation, KeyRole, Scheme
from birthmark.pki.attributes import SecretKind
from birthmark.pki.keys import KeyAlgorithm, KeyLabel
from birthmark.ports import KeyStore
from birthmark.secret import SecretBytes

LOG, MASTER = KeyLabel("log"), KeyLabel("master")


class Ear:
    """Hears of the key store."""

    def __init__(self) -> None:
        self.used: list[bool] = []
        """For each use, whether it failed."""
        self.spans: list[str] = []

    def span(self, name: str) -> AbstractContextManager[object]:
        self.spans.append(name)
        return nullcontext()

    def refused(self, code: str) -> None: ...

    def waiting(self, acts: int) -> None: ...

    def committed(self, acts: int, kinds: Sequence[str], seconds: float) -> None: ...

    def not_committed(self, acts: int) -> None: ...

    def key_used(self, seconds: float, *, failed: bool) -> None:
        assert seconds >= 0
        self.used.append(failed)


@pytest.fixture
def plain(tmp_path: Path) -> SoftwareKeyStore:
    return SoftwareKeyStore.open(tmp_path / "keys", SecretBytes(b"passphrase"))


def test_a_signature_is_the_same_and_is_heard_of(plain: SoftwareKeyStore) -> None:
    ear = Ear()
    watched: KeyStore = ObservedKeyStore(plain, ear)
    watched.generate(LOG, KeyAlgorithm.ED25519)
    assert watched.sign(LOG, b"message") == plain.sign(LOG, b"message")
    assert (ear.used, ear.spans) == ([False], ["token"])
    assert watched.public_key(LOG) == plain.public_key(LOG)
    assert watched.labels() == plain.labels() == (LOG,)
    assert watched.health() == plain.health()
    assert watched.development


def test_a_key_that_is_not_there_is_a_failure_and_passes_through(plain: SoftwareKeyStore) -> None:
    ear = Ear()
    with pytest.raises(errors.NotFound):
        ObservedKeyStore(plain, ear).sign(LOG, b"message")
    assert ear.used == [True]


def test_a_key_set_takes_in_one_of_the_same_store_though_both_are_watched(plain: SoftwareKeyStore) -> None:
    ear = Ear()
    watched = ObservedKeyStore(plain, ear)
    watched.generate_secret(MASTER, SecretKind.MASTER_AES_128)
    derivations = [Derivation(scheme=Scheme.KDF3, context=bytes([number]) * 10) for number in (1, 2)]
    one, two = (watched.derived_keys(MASTER, derivation) for derivation in derivations)
    own, other = (plain.derived_keys(MASTER, derivation) for derivation in derivations)
    assert one.cmac([(KeyRole.ENC, b"message")]) == own.cmac([(KeyRole.ENC, b"message")])
    assert [key.check_value for key in one.wrap(two)] == [key.check_value for key in own.wrap(other)]
    assert (one.size, one.route) == (own.size, own.route)
    assert ear.used == [False, False]
