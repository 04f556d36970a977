"""Devices with a TPM: what is attested is issued, and every lie about it is found out (SPEC C8, D6).

The TPMs are swtpm's, with certificates of makers of their own; the service is the real one.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from birthmark import errors
from birthmark.edge.station.elements.tpm import IAK, IDEVID, TPMElement, template
from birthmark.element.tpm import Algorithm, Attest, Attributes, Public, Signature, check_certified
from birthmark.floor.attestations import Attestation
from birthmark.floor.devices import Attempt, Device, DeviceEvent, DeviceState, IdentityRecord, KeyOrigin
from birthmark.ledger import proof as tlog
from birthmark.pki.keys import KeyAlgorithm
from birthmark.secret import SecretBytes
from birthmark.services.attest import LIFETIME
from birthmark.services.attestations import Attested
from birthmark.services.check import check
from birthmark.services.issue import Issued
from tests.support.realm import Line, workpiece
from tests.support.swtpm import SoftwareTPM, software_tpm
from tests.support.tpms import (
    PROFILES,
    TPMLine,
    asked,
    csrs_of,
    device_of,
    make_tpm_line,
    open_tpm_run,
    wipe,
)

_handles = itertools.count(0x81020010)


@pytest.fixture(scope="module")
def tpms() -> Iterator[tuple[SoftwareTPM, SoftwareTPM]]:
    """Two TPMs, of two makers."""
    with software_tpm() as one, software_tpm() as other:
        yield one, other


@pytest.fixture
def element(tpms: tuple[SoftwareTPM, SoftwareTPM], tmp_path: Path) -> Iterator[TPMElement]:
    """A device with the first TPM, as it comes from its maker."""
    wipe(tpms[0])
    with device_of(tpms[0], tmp_path) as made:
        yield made


@pytest.fixture
def other(tpms: tuple[SoftwareTPM, SoftwareTPM], tmp_path: Path) -> Iterator[TPMElement]:
    """A device with the second one."""
    wipe(tpms[1])
    (tmp_path / "other").mkdir()
    with device_of(tpms[1], tmp_path / "other") as made:
        yield made


@pytest.fixture
def small(small_line: Line, tpms: tuple[SoftwareTPM, SoftwareTPM]) -> TPMLine:
    """A line that accepts both makers, on SQLite."""
    return make_tpm_line(small_line, *tpms)


def refused(rule: str) -> pytest.RaisesExc[errors.PolicyRefused]:
    """Expect a refusal under this rule."""
    return pytest.raises(errors.PolicyRefused, check=lambda refusal: refusal.rule == rule)


def answered(line: TPMLine, element: TPMElement, hardware_id: str = "T1") -> Attested:
    """Take an honest device to where its certificates can be asked for."""
    csrs_of(element, hardware_id)
    return line.answer(element, line.attest(hardware_id, element.endorsed()))


def key_of(public: bytes) -> bytes:
    return Public.decode(public).subject_public_key_info


# --- the truth


@pytest.mark.parametrize("algorithm", ["ec-p256", "ec-p384", "rsa-2048"])
@pytest.mark.parametrize("ek", ["ec-p384", "rsa-2048"])
def test_a_device_with_a_tpm_is_released_with_both_certificates(
    small_line: Line, tpms: tuple[SoftwareTPM, SoftwareTPM], tmp_path: Path, algorithm: str, ek: str
) -> None:
    """From the endorsement key to the release, for every kind of key, and both endorsement keys."""
    line = make_tpm_line(small_line, tpms[0])
    wipe(tpms[0])
    with device_of(tpms[0], tmp_path, algorithm=algorithm, ek=ek) as element:
        issued = line.issued("T1", element)
        line.line.prove(line.proof(element, issued), service=line.service)
        endorsed = element.endorsed()
    assert line.line.the(Device, "serial:T1").state is DeviceState.RELEASED
    spkis = [
        x509.load_der_x509_certificate(der)
        .public_key()
        .public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for der in issued.certificates
    ]
    assert spkis == [key_of(endorsed.idevid), key_of(endorsed.iak)]


def test_the_record_says_what_was_attested_and_it_can_be_verified_again(
    line: Line, tpms: tuple[SoftwareTPM, SoftwareTPM], element: TPMElement
) -> None:
    """On both databases: log, record and row tell the same, and what is kept still verifies."""
    tpm_line = make_tpm_line(line, tpms[0])
    issued = tpm_line.issued("T1", element)
    token = line.prove(tpm_line.proof(element, issued), service=tpm_line.service).token
    endorsed = element.endorsed()
    kept = line.the(Attestation, issued.attempt)
    assert line.the(Attempt, issued.attempt).id == kept.id
    said = {
        "ek_certificate_sha256": sha256(endorsed.ek_certificate).hexdigest(),
        "ek_spki_sha256": kept.ek_spki_sha256,
        "iak_name": Public.decode(endorsed.iak).name.hex(),
        "idevid_name": Public.decode(endorsed.idevid).name.hex(),
    }
    assert kept.certify_info is not None
    assert kept.certify_signature is not None
    certified = said | {"certify_sha256": sha256(kept.certify_info).hexdigest()}
    entries = {entry["kind"]: entry for entry in line.entries() if "tpm" in entry}
    assert entries["attestation-begun"]["tpm"] == said
    assert entries["device-issued"]["tpm"] == certified
    record = tlog.verify(token, line.vkey)["record"]
    assert isinstance(record, dict)
    assert record["tpm"] == certified
    (stored,) = line.service.store.scan(IdentityRecord)
    assert json.loads(stored.further)["tpm"] == certified
    check_certified(
        iak=Public.decode(kept.iak),
        certified=Public.decode(kept.idevid),
        attest=Attest.decode(kept.certify_info),
        signature=Signature.decode(kept.certify_signature),
        nonce=kept.nonce,
    )
    store = tpm_line.service.store
    assert check(store, store.log, line.realm).findings == []


def test_the_secret_is_kept_nowhere(small: TPMLine, element: TPMElement, tmp_path: Path) -> None:
    answer = answered(small, element)
    small.issue("T1", csrs_of(element, "T1"), answer)
    secret = answer.secret.reveal()
    for file in tmp_path.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert secret not in content, file
            assert secret.hex().encode() not in content, file
    assert secret.hex() not in json.dumps(small.line.entries(), default=str)


def test_a_repeated_request_gets_the_same_answer(small: TPMLine, element: TPMElement) -> None:
    """The attestation is used by then: what counts is the idempotency key."""
    answer, csrs = answered(small, element), csrs_of(element, "T1")
    first = small.issue("T1", csrs, answer, key="again")
    assert small.issue("T1", csrs, answer, key="again") == first


def test_a_reworked_device_is_attested_again(small: TPMLine, element: TPMElement) -> None:
    first = small.issued("T1", element)
    for event in (DeviceEvent.HOLD, DeviceEvent.REWORK):
        small.line.dispose(event, "serial:T1", service=small.service)
    second = small.issued("T1", element)
    assert second.attempt != first.attempt
    small.line.prove(small.proof(element, second), service=small.service)
    assert small.line.the(Device, "serial:T1").state is DeviceState.RELEASED


def test_a_run_may_give_its_devices_the_identity_certificate_alone(
    small: TPMLine, element: TPMElement
) -> None:
    open_tpm_run(small, "R3", further_profiles=(), further_sha256=())
    csr = element.certification_request("T1")
    answer = small.answer(element, small.attest("T1", element.endorsed(), "R3"))
    issued = small.issue("T1", [csr], answer, "R3")
    assert issued.further == ()


# --- lies about what the TPM is


def test_a_maker_that_the_profile_does_not_name_is_refused(
    small_line: Line, tpms: tuple[SoftwareTPM, SoftwareTPM], other: TPMElement
) -> None:
    line = make_tpm_line(small_line, tpms[0])
    csrs_of(other, "T1")
    with refused("ek-certificate"):
        line.attest("T1", other.endorsed())


def test_another_tpms_endorsement_certificate_opens_nothing_here(
    small: TPMLine, element: TPMElement, other: TPMElement
) -> None:
    """A TPM with our keys and another's certificate: the credential is for the other."""
    csrs_of(element, "T1")
    lie = replace(element.endorsed(), ek_certificate=other.endorsed().ek_certificate)
    asking = small.attest("T1", lie)
    with pytest.raises(errors.ProofFailed, match="not for this tpm"):
        element.attested(asked(asking))
    csrs_of(other, "T1")
    with pytest.raises(errors.ProofFailed, match="not for this tpm"):
        other.attested(asked(asking))  # it can decrypt, but holds no such attestation key


class Software:
    """Keys in a file, that say they are in a TPM."""

    def __init__(self, *, restricted: bool) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        point = self.key.public_key().public_numbers()
        unique = b"".join(b"\0\x20" + number.to_bytes(32, "big") for number in (point.x, point.y))
        self.public = template(KeyAlgorithm.EC_P256, restricted=restricted)[:-4] + unique

    def csr(self, hardware_id: str) -> bytes:
        made = workpiece(hardware_id, key=self.key).csr
        assert made is not None
        return made

    def sign(self, message: bytes) -> bytes:
        """Return a TPMT_SIGNATURE."""
        numbers = decode_dss_signature(self.key.sign(message, ec.ECDSA(hashes.SHA256())))
        head = Algorithm.ECDSA.to_bytes(2, "big") + Algorithm.SHA256.to_bytes(2, "big")
        return head + b"".join(b"\0\x20" + number.to_bytes(32, "big") for number in numbers)


def forged(name: bytes, nonce: bytes) -> bytes:
    """Return a TPMS_ATTEST of a certification that no TPM has made."""
    sized = [len(part).to_bytes(2, "big") + part for part in (b"\0\x0b" + bytes(32), nonce)]
    named = len(name).to_bytes(2, "big") + name
    return b"\xff\x54\x43\x47\x80\x17" + b"".join(sized) + bytes(25) + named + named


def test_keys_in_software_with_a_real_tpms_certificate_are_refused(
    small: TPMLine, element: TPMElement
) -> None:
    """The whole of a pretence: everything verifies, but nobody could open the credential."""
    iak, idevid = Software(restricted=True), Software(restricted=False)
    lie = replace(element.endorsed(), iak=iak.public, idevid=idevid.public)
    asking = small.attest("T1", lie)
    with pytest.raises(errors.ProofFailed, match="not for this tpm"):
        element.attested(asked(asking))
    info = forged(Public.decode(idevid.public).name, asking.nonce)
    answer = Attested(
        attestation=asking.attestation,
        secret=SecretBytes(bytes(32)),
        certify_info=info,
        certify_signature=iak.sign(info),
    )
    with refused("tpm-activation"):
        small.issue("T1", [idevid.csr("T1"), iak.csr("T1")], answer)
    assert small.line.get(Device, "serial:T1") is None


def test_an_identity_key_in_software_beside_a_real_attestation_key_is_refused(
    small: TPMLine, element: TPMElement
) -> None:
    """The credential opens; but the TPM certifies no key that it does not hold."""
    csrs = csrs_of(element, "T1")
    idevid = Software(restricted=False)
    asking = small.attest("T1", replace(element.endorsed(), idevid=idevid.public))
    honest = small.answer(element, asking)  # the TPM certifies its own key
    info = forged(Public.decode(idevid.public).name, asking.nonce)
    signed = Software(restricted=True).sign(info)
    for answer in (
        honest,
        replace(honest, certify_info=info),
        replace(honest, certify_info=info, certify_signature=signed),
    ):
        with refused("tpm-certify"):
            small.issue("T1", [idevid.csr("T1"), csrs[1]], answer)


def test_the_attestation_key_signs_no_forgery(element: TPMElement) -> None:
    """TPM2_Sign with a restricted key refuses what begins like something the TPM generated."""
    csrs_of(element, "T1")
    with pytest.raises(errors.PolicyRefused, match="the tpm refuses to sign"):
        element.chip.sign(IAK, Algorithm.SHA256, forged(b"\0\x0b" + bytes(32), bytes(32)))
    assert element.chip.sign(IDEVID, Algorithm.SHA256, forged(b"\0\x0b" + bytes(32), bytes(32)))


# --- lies about what the keys may do

_IAK_LIES: dict[str, Callable[[int], int]] = {
    "restricted": lambda bits: bits & ~Attributes.RESTRICTED,
    "fixedTPM": lambda bits: bits & ~Attributes.FIXED_TPM,
    "fixedParent": lambda bits: bits & ~Attributes.FIXED_PARENT,
    "sensitiveDataOrigin": lambda bits: bits & ~Attributes.SENSITIVE_DATA_ORIGIN,
    "sign": lambda bits: bits & ~Attributes.SIGN,
    "decrypt": lambda bits: bits | Attributes.DECRYPT,
}


def changed(public: bytes, change: Callable[[int], int]) -> bytes:
    """Return a public area with other attributes."""
    bits = change(int.from_bytes(public[4:8], "big"))
    return public[:4] + bits.to_bytes(4, "big") + public[8:]


@pytest.mark.parametrize("attribute", _IAK_LIES)
def test_an_attestation_key_without_the_right_attributes_is_refused(
    small: TPMLine, element: TPMElement, attribute: str
) -> None:
    csrs_of(element, "T1")
    endorsed = element.endorsed()
    with refused("iak-attributes") as refusal:
        small.attest("T1", replace(endorsed, iak=changed(endorsed.iak, _IAK_LIES[attribute])))
    assert attribute in str(refusal.value) or attribute == "decrypt"


@pytest.mark.parametrize("attribute", [*_IAK_LIES][1:])
def test_an_identity_key_without_the_right_attributes_is_refused(
    small: TPMLine, element: TPMElement, attribute: str
) -> None:
    csrs_of(element, "T1")
    endorsed = element.endorsed()
    with refused("idevid-attributes"):
        small.attest("T1", replace(endorsed, idevid=changed(endorsed.idevid, _IAK_LIES[attribute])))


def test_a_restricted_identity_key_is_refused(small: TPMLine, element: TPMElement) -> None:
    csrs_of(element, "T1")
    with refused("idevid-attributes"):
        small.attest("T1", replace(element.endorsed(), idevid=element.endorsed().iak))


def test_an_unrestricted_key_that_says_it_is_restricted_opens_no_credential(
    small: TPMLine, element: TPMElement
) -> None:
    """Attributes are part of the Name, and the TPM knows the real one."""
    csrs_of(element, "T1")
    endorsed = element.endorsed()
    real = element.chip.make(IAK, template(KeyAlgorithm.EC_P256, restricted=False))
    lie = changed(real, lambda bits: bits | Attributes.RESTRICTED)
    asking = small.attest("T1", replace(endorsed, iak=lie))
    with pytest.raises(errors.ProofFailed, match="not for this tpm"):
        element.chip.activate(
            "EK-HIGH-ECC384", IAK, asking.credential.id_object, asking.credential.encrypted_secret
        )


def test_an_identity_key_that_can_leave_the_tpm_and_says_it_cannot_is_refused(
    small: TPMLine, element: TPMElement
) -> None:
    csrs = csrs_of(element, "T1")
    endorsed = element.endorsed()
    stays = Attributes.FIXED_TPM | Attributes.FIXED_PARENT
    leaves = changed(template(KeyAlgorithm.EC_P256, restricted=False), lambda bits: bits & ~stays)
    handle = next(_handles)
    real = element.chip.make(handle, leaves)
    lie = changed(real, lambda bits: bits | stays)
    asking = small.attest("T1", replace(endorsed, idevid=lie))
    honest = small.answer(element, asking)
    info, signature = element.chip.certify(handle, IAK, asking.nonce)
    with refused("tpm-certify"):
        small.issue("T1", csrs, replace(honest, certify_info=info, certify_signature=signature))


# --- answers of another time, another device, another key


def test_a_certification_for_another_nonce_is_refused(small: TPMLine, element: TPMElement) -> None:
    earlier, later = answered(small, element), answered(small, element)
    stale = replace(later, certify_info=earlier.certify_info, certify_signature=earlier.certify_signature)
    with refused("tpm-certify"):
        small.issue("T1", csrs_of(element, "T1"), stale)


def test_a_certification_by_another_key_of_the_same_tpm_is_refused(
    small: TPMLine, element: TPMElement
) -> None:
    csrs = csrs_of(element, "T1")
    asking = small.attest("T1", element.endorsed())
    handle = next(_handles)
    another = template(KeyAlgorithm.EC_P256, restricted=True)[:-4] + b"\0\x01x\0\x01y"
    element.chip.make(handle, another)
    info, signature = element.chip.certify(IDEVID, handle, asking.nonce)
    honest = small.answer(element, asking)
    with refused("tpm-certify"):
        small.issue("T1", csrs, replace(honest, certify_info=info, certify_signature=signature))


def test_another_devices_secret_is_refused(small: TPMLine, element: TPMElement, other: TPMElement) -> None:
    mine, its = answered(small, element, "T1"), answered(small, other, "T2")
    with refused("tpm-activation"):
        small.issue("T1", csrs_of(element, "T1"), replace(mine, secret=its.secret))


def test_another_devices_attestation_is_refused(small: TPMLine, element: TPMElement) -> None:
    answer = answered(small, element, "T1")
    with refused("tpm-attestation"):
        small.issue("T2", csrs_of(element, "T2"), answer)


def test_an_attestation_of_another_run_is_refused(small: TPMLine, element: TPMElement) -> None:
    open_tpm_run(small, "R3")
    answer = answered(small, element)
    with refused("tpm-attestation"):
        small.issue("T1", csrs_of(element, "T1"), answer, "R3")


def test_an_attestation_is_used_once(small: TPMLine, element: TPMElement) -> None:
    answer, csrs = answered(small, element), csrs_of(element, "T1")
    small.issue("T1", csrs, answer)
    for event in (DeviceEvent.HOLD, DeviceEvent.REWORK):
        small.line.dispose(event, "serial:T1", service=small.service)
    with refused("tpm-attestation"):
        small.issue("T1", csrs, answer)
    assert small.line.the(Device, "serial:T1").state is DeviceState.ADMITTED


def test_an_attestation_expires(small: TPMLine, element: TPMElement) -> None:
    answer, csrs = answered(small, element), csrs_of(element, "T1")
    small.line.clock.turn(seconds=LIFETIME.total_seconds())
    with refused("tpm-attestation"):
        small.issue("T1", csrs, answer)


def test_an_invented_attestation_is_refused(small: TPMLine, element: TPMElement) -> None:
    answer = replace(answered(small, element), attestation="0" * 32)
    with refused("tpm-attestation"):
        small.issue("T1", csrs_of(element, "T1"), answer)


def test_no_attestation_no_certificate(small: TPMLine, element: TPMElement) -> None:
    with refused("tpm-attestation"):
        small.issue("T1", csrs_of(element, "T1"), None)


def test_a_tpm_is_in_one_device(small: TPMLine, element: TPMElement) -> None:
    """Its keys would give it away too; with new ones, the endorsement key still does."""
    small.issued("T1", element)
    slots = (element, element.slot("tpm-iak"))
    for handle, restricted in ((IDEVID, False), (IAK, True)):
        other = template(KeyAlgorithm.EC_P256, restricted=restricted)[:-4] + b"\0\x01p\0\x01q"
        element.chip.make(handle, other)
    csrs = [slot.certification_request("T2") for slot in slots]
    answer = small.answer(element, small.attest("T2", element.endorsed()))
    with refused("tpm-is-unique"):
        small.issue("T2", csrs, answer)


# --- certificates for other keys


def test_certificates_are_for_the_attested_keys_in_their_order(small: TPMLine, element: TPMElement) -> None:
    answer, csrs = answered(small, element), csrs_of(element, "T1")
    software = Software(restricted=False).csr("T1")
    for wrong in ([csrs[1], csrs[0]], [software, csrs[1]], [csrs[0], software]):
        with refused("attested-key"):
            small.issue("T1", wrong, answer)
    assert isinstance(small.issue("T1", csrs, answer), Issued)


def test_a_run_without_tpms_takes_no_attestation(small: TPMLine, element: TPMElement) -> None:
    csrs_of(element, "T1")
    with pytest.raises(errors.MalformedRequest, match="without a tpm"):
        small.attest("T1", element.endorsed(), "R1")
    with pytest.raises(errors.MalformedRequest, match="without a tpm"):
        small.issue("T1", [Software(restricted=False).csr("T1")], answered(small, element), "R1")


def test_a_refused_attestation_stands_in_the_log(small: TPMLine, element: TPMElement) -> None:
    csrs_of(element, "T1")
    with refused("iak-attributes"):
        small.attest("T1", replace(element.endorsed(), iak=element.endorsed().idevid))
    last = small.line.entries()[-1]
    assert (last["kind"], last["request"], last["rule"]) == ("refused", "attest", "iak-attributes")


def test_a_run_that_no_tpm_could_have_keys_for_is_not_opened(small: TPMLine) -> None:
    service = small.service
    third = service.runs.catalogue.load("vehicle")
    pinned = (service.runs.catalogue.load(PROFILES[1]).sha256, third.sha256)

    with refused("element"):
        open_tpm_run(small, "R3", further_profiles=(PROFILES[1], third.name), further_sha256=pinned)
    with refused("element"):
        open_tpm_run(small, "R3", origins=(KeyOrigin.DELIVERED,))
