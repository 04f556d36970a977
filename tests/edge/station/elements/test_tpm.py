"""The TPM as a device element: what its contract's checks do not ask (``test_conformance`` asks the rest)."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from birthmark import errors
from birthmark.edge.station import Attestable, SeveralSlots
from birthmark.edge.station.elements.tpm import IAK, IDEVID, TPMElement, element, template
from birthmark.element.tpm import Algorithm, Public
from birthmark.pki.algorithms import verify
from birthmark.pki.keys import KeyAlgorithm
from birthmark.secret import SecretBytes
from tests.support.programs import need
from tests.support.swtpm import SoftwareTPM, software_tpm
from tests.support.tpms import device_of, wipe


@pytest.fixture
def device(tpm: SoftwareTPM, tmp_path: Path) -> Iterator[TPMElement]:
    wipe(tpm)
    with device_of(tpm, tmp_path) as made:
        yield made
    wipe(tpm)


def test_a_message_of_any_length_is_signed_with_both_keys(device: TPMElement) -> None:
    """The TPM hashes at most 1024 octets at once; the ends of its pieces are where mistakes are."""
    for slot in (device, device.slot("tpm-iak")):
        request = x509.load_der_x509_csr(slot.certification_request("T1"))
        assert request.is_signature_valid
    for handle, slot in ((IDEVID, device), (IAK, device.slot("tpm-iak"))):
        public = device.chip.public(handle)
        assert public is not None
        key = Public.decode(public).subject_public_key_info
        for size in (1, 1023, 1024, 1025, 2048, 2049, 5000):
            message = bytes(index % 251 for index in range(size))
            verify(key, slot.sign(message), message)


def test_clearing_the_tpm_does_not_change_its_keys(tmp_path: Path) -> None:
    """TPM2_Clear leaves the endorsement seed alone (part 3 section 24.6): made again they are the same.

    On a TPM of its own: the endorsement keys that were kept in it go, too.
    """
    with software_tpm() as tpm, device_of(tpm, tmp_path) as device:
        before = device.endorsed()
        command = [need("tpm2_clear", "tpm2-tools"), "-T", tpm.tcti, "-c", "p"]
        done = subprocess.run(command, check=False, capture_output=True)
        assert done.returncode == 0, done.stderr
        assert device.chip.public(IDEVID) is None
        assert device.endorsed() == before


def test_a_key_of_another_algorithm_makes_room(tpm: SoftwareTPM, tmp_path: Path, device: TPMElement) -> None:
    before = device.endorsed()
    device.close()
    with device_of(tpm, tmp_path, algorithm="ec-p384") as other:
        assert other.endorsed().idevid != before.idevid


def test_it_can_have_two_certificates_and_be_attested(device: TPMElement) -> None:
    assert isinstance(device, SeveralSlots)
    assert isinstance(device, Attestable)
    with pytest.raises(errors.MalformedRequest, match="iak=PROFILE"):
        device.slot("vehicle")


def test_a_certificate_that_does_not_fit_is_told(device: TPMElement) -> None:
    with pytest.raises(errors.TooLarge, match="no room for 4000 octets"):
        device.install(certificate=bytes(4000), chain=(), private_key=None)
    with pytest.raises(errors.NotFound):
        device.read_back()


def test_a_delivered_key_is_not_taken(device: TPMElement) -> None:
    with pytest.raises(errors.PolicyRefused, check=lambda refusal: refusal.rule == "key-origin"):
        device.install(certificate=b"c", chain=(), private_key=SecretBytes(b"k"))


def test_a_released_device_changes_neither_keys_nor_certificates(
    device: TPMElement, tpm: SoftwareTPM, tmp_path: Path
) -> None:
    for slot in (device, device.slot("tpm-iak")):
        slot.certification_request("T1")
        slot.install(certificate=b"a certificate", chain=(), private_key=None)
    device.released("a token")
    device.released("a token")  # the power was cut before anybody knew
    for slot in (device, device.slot("tpm-iak")):
        assert slot.read_back() == b"a certificate"
        with pytest.raises(errors.IllegalTransition):
            slot.install(certificate=b"another", chain=(), private_key=None)
        with pytest.raises(errors.IllegalTransition):
            slot.certification_request("T1")
    # Nor does the TPM let others write.
    (tmp_path / "other").write_bytes(b"other")
    write = [need("tpm2_nvwrite", "tpm2-tools"), "-T", tpm.tcti, "0x01c90000", "-C", "o"]
    done = subprocess.run(
        [*write, "-i", str(tmp_path / "other")], check=False, capture_output=True, text=True
    )
    assert (done.returncode != 0, "locked" in done.stderr) == (True, True), done.stderr


def test_the_directory_stays_with_its_tpm(tpm: SoftwareTPM, tmp_path: Path) -> None:
    with device_of(tpm, tmp_path):
        pass
    with (
        software_tpm() as other,
        pytest.raises(errors.NotPermitted, match="belongs to"),
        device_of(other, tmp_path),
    ):
        pass


def test_there_is_no_key_to_sign_with_before_one_is_made(device: TPMElement) -> None:
    with pytest.raises(errors.NotFound, match="no key under 81020000"):
        device.sign(b"message")
    with pytest.raises(errors.NotFound):
        device.chip.certify(IDEVID, IAK, b"nonce")
    with pytest.raises(errors.NotFound):
        device.chip.sign(0x8102FFFF, Algorithm.SHA256, b"message")


@pytest.mark.parametrize(
    ("place", "options", "refusal", "said"),
    [
        ("", {}, errors.MalformedRequest, "names no tpm"),
        ("device:/dev/null", {"algorithm": "ed25519"}, errors.MalformedRequest, "not 'ed25519'"),
        ("device:/dev/null", {"ek": "rsa"}, errors.MalformedRequest, "not 'rsa'"),
        ("device:/dev/null", {"pin": "x"}, errors.MalformedRequest, "no option 'pin'"),
        ("swtpm:host=127.0.0.1,port=1", {}, errors.Unavailable, "there is no tpm behind"),
        ("nonsense", {}, errors.Unavailable, "there is no tpm behind"),
    ],
)
def test_what_cannot_be_opened_says_why(
    tpm: SoftwareTPM, place: str, options: dict[str, str], refusal: type[errors.Refusal], said: str
) -> None:
    with pytest.raises(refusal, match=said):
        element(place, options)


def test_a_template_is_for_keys_that_tpms_have() -> None:
    with pytest.raises(errors.MalformedRequest, match="a tpm's keys are"):
        template(KeyAlgorithm.ED25519, restricted=False)
