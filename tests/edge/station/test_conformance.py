"""Our elements keep the contract, and the checks notice elements that do not."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from birthmark.edge.station.conformance import CHECKS, Bench, NotConforming, hold
from birthmark.edge.station.enclave import Enclave
from birthmark.errors import NotFound, Unavailable
from birthmark.pki.algorithms import signature_by, throwaway_key
from birthmark.pki.keys import KeyAlgorithm
from birthmark.secret import SecretBytes
from tests.support.benches import ATECCBench, EnclaveBench, OpenPGPBench, PKCS11Bench, TPMBench

BENCHES: dict[str, Callable[[Path], Bench]] = {
    "atecc": ATECCBench,
    "enclave": EnclaveBench,
    "openpgp": OpenPGPBench,
    "pkcs11": PKCS11Bench,
    "tpm": TPMBench,
}


@pytest.fixture(params=list(BENCHES))
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    made = BENCHES[request.param](tmp_path)
    with made if isinstance(made, AbstractContextManager) else nullcontext():
        yield made


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_our_elements_keep_the_contract(check: Callable[[Bench], None], bench: Bench) -> None:
    check(bench)


# --- elements that break it, each in one way ----------------------------------------------------------------


class Caching(Enclave):
    """Tells what it was given a moment ago."""

    _given: bytes | None = None

    def install(self, *, certificate: bytes, chain: Sequence[bytes], private_key: SecretBytes | None) -> None:
        super().install(certificate=certificate, chain=chain, private_key=private_key)
        self._given = certificate

    def read_back(self) -> bytes:
        return self._given or super().read_back()


class Forgetful(Enclave):
    """Keeps the certificate in memory only."""

    _given: bytes | None = None

    def install(self, *, certificate: bytes, chain: Sequence[bytes], private_key: SecretBytes | None) -> None:
        self._given = certificate

    def read_back(self) -> bytes:
        if self._given is None:
            raise NotFound("there is none")
        return self._given


class Changeable(Enclave):
    """Takes another certificate after its release."""

    def released(self, token: str) -> None:
        pass


class Misnamed(Enclave):
    """Asks in another name."""

    def certification_request(self, hardware_id: str) -> bytes:
        return super().certification_request("ANOTHER-1")


class Inventive(Enclave):
    """Always has something to read back."""

    def read_back(self) -> bytes:
        try:
            return super().read_back()
        except NotFound:
            return b"\x30\x00"


class Swapped(Enclave):
    """Signs with a key that it did not ask a certificate for."""

    def sign(self, message: bytes) -> bytes:
        return signature_by(throwaway_key(KeyAlgorithm.EC_P256), message)


BREACHES: dict[type[Enclave], set[str]] = {
    Caching: {"read_back_asks_the_device"},
    Forgetful: {"installed_is_durable", "read_back_asks_the_device"},
    Changeable: {"a_released_device_keeps_its_identity", "released_is_durable"},
    Misnamed: {"a_request_carries_the_devices_key_and_name"},
    Inventive: {"an_empty_device_reads_nothing_back"},
    Swapped: {check.__name__ for check in CHECKS if "key_signs" in check.__name__},
}


@pytest.mark.parametrize("kind", BREACHES, ids=lambda kind: kind.__name__)
def test_an_element_that_breaks_the_contract_is_noticed(kind: type[Enclave], tmp_path: Path) -> None:
    class Liar(EnclaveBench):
        def open(self) -> Enclave:
            return kind(str(self._path))

    folders = iter(range(len(CHECKS)))

    def new_bench() -> Bench:
        folder = tmp_path / str(next(folders))
        folder.mkdir()
        return Liar(folder)

    verdicts = hold(new_bench)
    complaints = {name for name, verdict in verdicts.items() if verdict is not None}
    assert BREACHES[kind] <= complaints, verdicts


class HalfWritingBench(EnclaveBench):
    """A device whose certificate file is written in place: a power cut leaves half of it."""

    def open_until(self, moment: int) -> Enclave:
        path = self._path

        class HalfWriting(Enclave):
            def install(
                self, *, certificate: bytes, chain: Sequence[bytes], private_key: SecretBytes | None
            ) -> None:
                if moment == 1:
                    mine.replace_certificate(certificate[:-10] + bytes(10))
                    raise Unavailable("the device has no power")
                super().install(certificate=certificate, chain=chain, private_key=private_key)

        mine = self
        return HalfWriting(str(path))


def test_half_a_certificate_is_noticed(tmp_path: Path) -> None:
    check = next(check for check in CHECKS if "power_cut_in_install" in check.__name__)
    with pytest.raises(NotConforming, match="cut at moment 1, the device reads half a certificate back"):
        check(HalfWritingBench(tmp_path))
