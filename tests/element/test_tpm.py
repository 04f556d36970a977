"""What a TPM says of its keys, and credentials for it; the other side is a TPM of others (swtpm)."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFHMAC, CounterLocation, Mode
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from hypothesis import given
from hypothesis import strategies as st

from birthmark.edge.station.elements.tpm import template
from birthmark.element.tpm import (
    HASHES,
    Algorithm,
    Attest,
    Attributes,
    Public,
    Signature,
    check_certified,
    check_iak,
    check_idevid,
)
from birthmark.element.tpm_credential import check_endorsement_key, kdfa, kdfe, make_credential
from birthmark.errors import MalformedRequest, PolicyRefused
from birthmark.pki.algorithms import recognise
from birthmark.pki.keys import KeyAlgorithm
from birthmark.secret import SecretBytes
from tests.support.programs import need_extra
from tests.support.swtpm import SoftwareTPM

SECRET = SecretBytes(bytes(range(32)))
ALGORITHMS = (KeyAlgorithm.EC_P256, KeyAlgorithm.EC_P384, KeyAlgorithm.RSA_2048)


def counted(start: int = 0) -> Callable[[int], bytes]:
    """Return what gives octets that are different each time, and the same in each run."""
    count = iter(range(start, start + 1000))
    return lambda size: (sha256(next(count).to_bytes(4, "big")).digest() * 5)[:size]


class Esys:
    """The TSS's own interface to a TPM."""

    def __init__(self, tcti: str) -> None:
        need_extra("tpm2_pytss", "tpm")
        self.types: Any = importlib.import_module("tpm2_pytss.types")
        self.constants: Any = importlib.import_module("tpm2_pytss.constants")
        self.utils: Any = importlib.import_module("tpm2_pytss.utils")
        self.esys: Any = importlib.import_module("tpm2_pytss.ESAPI").ESAPI(tcti)
        self.tr: Any = self.constants.ESYS_TR

    def primary(self, public: bytes) -> tuple[Any, bytes, bytes]:
        """Make a primary key; return handle, public area and the Name that the TPM knows it by."""
        area, _ = self.types.TPM2B_PUBLIC.unmarshal(len(public).to_bytes(2, "big") + public)
        handle, made, *_ = self.esys.create_primary(None, area, self.tr.ENDORSEMENT)
        _, name, _ = self.esys.read_public(handle)
        return handle, bytes(made.publicArea.marshal()), bytes(name)

    def endorsement(self, kind: str) -> tuple[Any, Any]:
        """Make the endorsement key of a template of TCG's; return handle and public area."""

        def nothing(index: int) -> bytes:
            raise self.utils.NoSuchIndex(index)

        _, area = self.utils.create_ek_template(kind, nothing)
        handle, made, *_ = self.esys.create_primary(None, area, self.tr.ENDORSEMENT)
        return handle, made

    def activate(self, key: Any, ek: Any, id_object: bytes, encrypted_secret: bytes) -> bytes:
        """Open a credential under a low-range template's policy (PolicySecret of the hierarchy)."""
        session = self.esys.start_auth_session(
            self.tr.NONE,
            self.tr.NONE,
            self.constants.TPM2_SE.POLICY,
            self.types.TPMT_SYM_DEF(algorithm=self.constants.TPM2_ALG.NULL),
            self.constants.TPM2_ALG.SHA256,
        )
        self.esys.policy_secret(self.tr.ENDORSEMENT, session)
        secret = self.esys.activate_credential(
            key,
            ek,
            self.types.TPM2B_ID_OBJECT.unmarshal(id_object)[0],
            self.types.TPM2B_ENCRYPTED_SECRET.unmarshal(encrypted_secret)[0],
            session1=self.tr.PASSWORD,
            session2=session,
        )
        self.esys.flush_context(session)
        return bytes(secret)


@pytest.fixture
def esys(tpm: SoftwareTPM) -> Iterator[Esys]:
    made = Esys(tpm.tcti)
    yield made
    made.esys.close()


@pytest.fixture
def flushed(esys: Esys) -> Iterator[list[Any]]:
    """Handles that are flushed after the test."""
    handles: list[Any] = []
    yield handles
    for handle in handles:
        esys.esys.flush_context(handle)


# --- against a TPM


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("restricted", [True, False])
def test_the_name_is_the_one_the_tpm_knows(
    esys: Esys, flushed: list[Any], algorithm: KeyAlgorithm, *, restricted: bool
) -> None:
    handle, public, name = esys.primary(template(algorithm, restricted=restricted))
    flushed.append(handle)
    read = Public.decode(public)
    assert read.name == name
    assert recognise(read.subject_public_key_info) is algorithm
    (check_iak if restricted else check_idevid)(read)
    with pytest.raises(PolicyRefused):
        (check_idevid if restricted else check_iak)(read)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_certification_by_a_tpm_is_believed_and_nothing_beside_it(
    esys: Esys, flushed: list[Any], algorithm: KeyAlgorithm
) -> None:
    signer, iak, _ = esys.primary(template(algorithm, restricted=True))
    key, idevid, _ = esys.primary(template(algorithm, restricted=False))
    flushed += [signer, key]
    scheme = esys.types.TPMT_SIG_SCHEME(scheme=esys.constants.TPM2_ALG.NULL)
    info, signed = esys.esys.certify(key, signer, b"n" * 32, scheme)
    attest, signature = Attest.decode(bytes(info)), Signature.decode(bytes(signed.marshal()))
    check = partial(check_certified, iak=Public.decode(iak), certified=Public.decode(idevid), nonce=b"n" * 32)
    check(attest=attest, signature=signature)
    later = bytearray(attest.octets)
    later[-1] ^= 1
    lies: dict[str, Callable[[], None]] = {
        "nonce": lambda: check(attest=attest, signature=signature, nonce=b"m" * 32),
        "key": lambda: check(attest=attest, signature=signature, certified=Public.decode(iak)),
        "signer": lambda: check(attest=attest, signature=signature, iak=Public.decode(idevid)),
        "octets": lambda: check(attest=replace(attest, octets=bytes(later)), signature=signature),
        "scheme": lambda: check(attest=attest, signature=replace(signature, hash_algorithm=Algorithm.SHA512)),
    }
    for lie in lies.values():
        with pytest.raises(PolicyRefused, check=lambda refusal: refusal.rule == "tpm-certify"):
            lie()


@pytest.mark.parametrize("kind", ["EK-RSA2048", "EK-ECC256"])
def test_a_tpm_opens_our_credential(esys: Esys, flushed: list[Any], kind: str) -> None:
    """With the low-range templates; those of the high range are in ``tests/services/test_attest``.

    Several times, because a coordinate that begins with a zero octet comes once in a while only.
    """
    key, _, name = esys.primary(template(KeyAlgorithm.EC_P256, restricted=True))
    ek, public = esys.endorsement(kind)
    flushed += [key, ek]
    endorsement_key = check_endorsement_key(esys_key(public))
    for start in range(0, 40, 2):
        made = make_credential(endorsement_key, name, SECRET, counted(start))
        assert esys.activate(key, ek, made.id_object, made.encrypted_secret) == SECRET.reveal()


def esys_key(public: Any) -> Any:
    """Return the key of a public area as the TSS reads it."""
    return load_pem_public_key(public.to_pem())


@pytest.mark.parametrize(
    ("algorithm", "bits"),
    [(Algorithm.SHA256, 128), (Algorithm.SHA256, 256), (Algorithm.SHA256, 512), (Algorithm.SHA384, 256)],
)
def test_keys_are_derived_as_others_do_it(algorithm: Algorithm, bits: int) -> None:
    """SP 800-108 and SP 800-56A, as ``cryptography`` has them."""
    key, u, v = b"k" * 32, b"u" * 34, b"v"
    counter = KBKDFHMAC(
        algorithm=HASHES[algorithm],
        mode=Mode.CounterMode,
        length=bits // 8,
        rlen=4,
        llen=4,
        location=CounterLocation.BeforeFixed,
        label=None,
        context=None,
        fixed=b"STORAGE\0" + u + v + bits.to_bytes(4, "big"),
    )
    assert kdfa(algorithm, key, b"STORAGE", u, v, bits) == counter.derive(key)
    concatenation = ConcatKDFHash(HASHES[algorithm], bits // 8, b"IDENTITY\0" + u + v)
    assert kdfe(algorithm, key, b"IDENTITY", u, v, bits) == concatenation.derive(key)


# --- what is refused


@given(st.binary(max_size=300))
@pytest.mark.parametrize("read", [Public.decode, Attest.decode, Signature.decode])
def test_any_octets_are_a_value_or_a_refusal(read: Callable[[bytes], Any], octets: bytes) -> None:
    with suppress(MalformedRequest):
        read(octets)


_POINT = b"".join(
    b"\0\x20" + number.to_bytes(32, "big")
    for number in (
        # The base point of P-256 (SP 800-186 section 3.2.1.3).
        0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
        0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
    )
)
GOOD: dict[str, tuple[Callable[[bytes], Any], bytes]] = {
    "public": (Public.decode, template(KeyAlgorithm.EC_P256, restricted=True)[:-4] + _POINT),
    "rsa": (
        Public.decode,
        template(KeyAlgorithm.RSA_2048, restricted=True)[:-2] + b"\x01\0" + b"\xc5" * 256,
    ),
    "attest": (Attest.decode, b"\xffTCG\x80\x17" + b"\0\x01s\0\x01n" + bytes(25) + b"\0\x01o\0\x01q"),
    "ecdsa": (Signature.decode, b"\0\x18\0\x0b\0\x01r\0\x01s"),
    "rsassa": (Signature.decode, b"\0\x14\0\x0b\0\x01r"),
}


@pytest.mark.parametrize("what", GOOD)
def test_nothing_may_be_missing_or_left_over(what: str) -> None:
    read, octets = GOOD[what]
    read(octets)
    for size in range(len(octets)):
        with pytest.raises(MalformedRequest):
            read(octets[:size])
    with pytest.raises(MalformedRequest, match="left over"):
        read(octets + b"\0")
    with pytest.raises(MalformedRequest, match="too many"):
        read(octets + bytes(4096))


@given(st.data())
@pytest.mark.parametrize("what", GOOD)
def test_a_changed_octet_is_another_value_or_a_refusal(what: str, data: st.DataObject) -> None:
    read, octets = GOOD[what]
    at = data.draw(st.integers(0, len(octets) - 1))
    changed = octets[:at] + bytes((data.draw(st.integers(0, 255)),)) + octets[at + 1 :]
    try:
        found = read(changed)
    except MalformedRequest:
        return
    if isinstance(found, Public):
        assert (found.name == read(octets).name) == (changed == octets)


@pytest.mark.parametrize("read", [Public.decode, Signature.decode])
def test_sha1_is_no_hash_of_a_key(read: Callable[[bytes], Any]) -> None:
    octets = GOOD["public" if read == Public.decode else "ecdsa"][1]
    with pytest.raises(MalformedRequest):
        read(octets[:2] + b"\0\x04" + octets[4:])


def test_a_point_that_is_not_on_its_curve_is_no_key() -> None:
    with pytest.raises(MalformedRequest, match="no public key"):
        Public.decode(GOOD["public"][1][:-1] + b"\0")


@pytest.mark.parametrize("missing", [flag for flag in Attributes if flag is not Attributes.DECRYPT])
def test_an_attestation_key_needs_every_attribute(missing: Attributes) -> None:
    key = Public.decode(GOOD["public"][1])
    check_iak(key)
    with pytest.raises(PolicyRefused, check=lambda refusal: refusal.rule == "iak-attributes"):
        check_iak(replace(key, attributes=key.attributes & ~missing))
    with pytest.raises(PolicyRefused, match="decrypt"):
        check_iak(replace(key, attributes=key.attributes | Attributes.DECRYPT))


def test_an_attestation_key_has_a_scheme_of_its_own() -> None:
    key = Public.decode(GOOD["public"][1])
    with pytest.raises(PolicyRefused, match="scheme"):
        check_iak(replace(key, scheme=Algorithm.NULL))


@pytest.mark.parametrize(
    "make",
    [
        lambda: ec.generate_private_key(ec.SECP256K1()),
        lambda: ec.generate_private_key(ec.BrainpoolP256R1()),
        lambda: rsa.generate_private_key(65537, 2560),
        ed25519.Ed25519PrivateKey.generate,
    ],
)
def test_only_tcgs_templates_have_endorsement_keys(make: Callable[[], Any]) -> None:
    with pytest.raises(PolicyRefused, check=lambda refusal: refusal.rule == "ek-certificate"):
        check_endorsement_key(make().public_key())


def test_a_secret_has_at_most_the_length_of_a_hash() -> None:
    key = check_endorsement_key(ec.derive_private_key(7, ec.SECP256R1()).public_key())
    with pytest.raises(MalformedRequest):
        make_credential(key, b"name", SecretBytes(bytes(33)), counted())
