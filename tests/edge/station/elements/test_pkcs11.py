"""A PKCS#11 token as device element: what OpenSC sees of it, PINs that are not wasted, what is not there.

That the element keeps its contract is for ``tests/edge/station/test_conformance.py``.
"""

import re
import subprocess
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pkcs11
import pytest
from cryptography import x509

from birthmark import errors
from birthmark.edge.station.conformance import what_is_installed_is_read_back_and_its_key_signs
from birthmark.edge.station.elements import opened
from birthmark.edge.station.elements.pkcs11 import PKCS11Element
from birthmark.pki.csr import vet
from birthmark.pki.keys import KeyAlgorithm
from birthmark.secret import SecretBytes
from tests.support.benches import PKCS11Bench
from tests.support.programs import need

WRONG = SecretBytes(b"wrong-pin")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[PKCS11Bench]:
    with PKCS11Bench(tmp_path) as made:
        yield made


class Keeping:
    """The bench, and the element that a check has opened on it last."""

    element: PKCS11Element

    def __init__(self, bench: PKCS11Bench) -> None:
        self._bench = bench
        self.power_cut = bench.power_cut
        self.replace_certificate = bench.replace_certificate

    def open(self) -> PKCS11Element:
        self.element = self._bench.open()
        return self.element


def opensc(bench: PKCS11Bench, *arguments: str) -> bytes:
    """What OpenSC's pkcs11-tool says of the token."""
    command = [need("pkcs11-tool", "opensc"), "--module", str(bench.hsm.module), "--token-label", "device"]
    done = subprocess.run([*command, *arguments], capture_output=True, check=True, timeout=30)
    return done.stdout


def url(bench: PKCS11Bench, **options: str) -> str:
    chosen = {"token": "device", "pin": str(bench.hsm.pin_file)} | options
    return f"pkcs11:{bench.hsm.module}?" + "&".join(f"{name}={value}" for name, value in chosen.items())


def test_opensc_finds_a_key_that_cannot_leave_and_the_certificate(bench: PKCS11Bench) -> None:
    what_is_installed_is_read_back_and_its_key_signs(bench)
    listed = opensc(bench, "--login", "--pin", bench.hsm.pin.reveal().decode(), "--list-objects").decode()
    private = listed[listed.index("Private Key Object") :]
    access = re.search(r"Access: *(.*)", private)
    assert access is not None, listed
    assert set(access[1].split(", ")) >= {"sensitive", "always sensitive", "never extractable", "local"}
    usage = re.search(r"Usage: *(.*)", private)
    assert usage is not None, listed
    assert usage[1].strip() == "sign"
    certificate = opensc(bench, "--read-object", "--type", "cert", "--label", "birthmark device")
    assert x509.load_der_x509_certificate(certificate).serial_number == 1


def test_a_refused_pin_is_given_once_and_not_by_the_next_program_either(bench: PKCS11Bench) -> None:
    library, label = str(bench.hsm.module), bench.hsm.label
    with pytest.raises(errors.NotPermitted, match="refuses the PIN; it is not given again"):
        PKCS11Element(library, label, WRONG)
    for pin in (WRONG, bench.hsm.pin):
        with pytest.raises(errors.NotPermitted, match="a wrong PIN was given to the token 'device'"):
            PKCS11Element(library, label, pin)
    with bench.hsm.session():  # somebody enters the right one by hand
        pass
    bench.open().close()


def test_a_token_is_one_device(bench: PKCS11Bench) -> None:
    element = bench.open()
    with pytest.raises(errors.Unavailable, match="open in this process already"):
        bench.open()
    element.close()
    bench.open().close()


def test_a_key_on_p384_signs_its_request(bench: PKCS11Bench) -> None:
    with opened(url(bench, algorithm="ec-p384")) as element:
        request = element.certification_request("VIN-1")
        assert request is not None
        assert vet(request, allowed=(KeyAlgorithm.EC_P384,)).subject_common_name == "VIN-1"


def test_a_key_that_somebody_took_away_signs_nothing(bench: PKCS11Bench) -> None:
    element = bench.open()
    element.certification_request("VIN-1")
    library = pkcs11.lib(str(bench.hsm.module.resolve()))
    session = library.get_token(token_label="device").open(rw=True)
    for one in list(session.get_objects({pkcs11.Attribute.CLASS: pkcs11.ObjectClass.PRIVATE_KEY})):
        one.destroy()
    session.close()
    with pytest.raises(errors.NotFound, match="holds 0 device keys"):
        element.sign(b"message")
    element.close()


def test_what_is_no_certificate_changes_nothing(bench: PKCS11Bench) -> None:
    kept = Keeping(bench)
    what_is_installed_is_read_back_and_its_key_signs(kept)
    element = kept.element
    before = element.read_back()
    with pytest.raises(errors.MalformedRequest, match="no certificate"):
        element.install(certificate=b"\x30\x00", chain=(), private_key=None)
    assert element.read_back() == before
    element.close()


def test_nobody_gives_it_a_key(bench: PKCS11Bench) -> None:
    element = bench.open()
    with pytest.raises(errors.PolicyRefused, match="takes no delivered key"):
        element.install(certificate=b"\x30\x00", chain=(), private_key=SecretBytes(b"key"))
    element.close()


def test_several_tokens_of_one_library_are_used_by_several_threads(bench: PKCS11Bench) -> None:
    """Without the lock SoftHSM crashes or answers nonsense: python-pkcs11 asks it for no locking."""
    labels = [f"device-{number}" for number in range(4)]
    for label in labels:
        bench.hsm.initialise(label)
    elements = [PKCS11Element(str(bench.hsm.module), label, bench.hsm.pin) for label in labels]

    def work(element: PKCS11Element) -> str | None:
        requests = [element.certification_request("VIN-1") for _ in range(4)]
        return vet(requests[-1], allowed=(KeyAlgorithm.EC_P256,)).subject_common_name

    with ThreadPoolExecutor(len(elements)) as threads:
        assert list(threads.map(work, elements)) == ["VIN-1"] * len(elements)
    for element in elements:
        element.close()


@pytest.mark.parametrize(
    ("changes", "refusal", "complaint"),
    [
        ({"token": "another"}, errors.NotFound, "0 tokens labelled 'another'"),
        ({"algorithm": "ed25519"}, errors.MalformedRequest, "algorithm is one of ec-p256, ec-p384"),
        ({"algorithm": "rot13"}, errors.MalformedRequest, "algorithm is one of ec-p256, ec-p384"),
        ({"pin": "/nowhere/pin"}, errors.NotFound, "no directory /nowhere"),
        ({"slot": "1"}, errors.MalformedRequest, "no option 'slot'; it has token, pin, algorithm"),
    ],
)
def test_a_url_that_names_no_token_is_refused(
    bench: PKCS11Bench, changes: dict[str, str], refusal: type[errors.Refusal], complaint: str
) -> None:
    with pytest.raises(refusal, match=complaint), opened(url(bench, **changes)):
        pass


def test_a_pin_that_is_no_text_is_not_shown(bench: PKCS11Bench) -> None:
    pin = b"\xff1234"
    with pytest.raises(errors.MalformedRequest, match="not UTF-8") as refused:
        PKCS11Element(str(bench.hsm.module), "device", SecretBytes(pin))
    assert refused.value.__cause__ is None
    assert "1234" not in "".join(traceback.format_exception(refused.value))
    bench.open().close()


def test_what_is_no_library_is_told(bench: PKCS11Bench, tmp_path: Path) -> None:
    pin = bench.hsm.pin_file
    with (
        pytest.raises(errors.NotFound, match=r"no pkcs#11 library /nowhere\.so"),
        opened(f"pkcs11:/nowhere.so?token=device&pin={pin}"),
    ):
        pass
    (tmp_path / "text.so").write_text("no library")
    with (
        pytest.raises(errors.NotFound, match="is no pkcs#11 library"),
        opened(f"pkcs11:{tmp_path}/text.so?token=device&pin={pin}"),
    ):
        pass
