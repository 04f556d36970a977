"""Requests in CRMF are vetted as those in PKCS #10 are, by a proof over the request itself (RFC 4211)."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birthmark.errors import MalformedRequest, PolicyRefused
from birthmark.pki import cmp_der, crmf, der
from birthmark.pki.algorithms import ALGORITHMS
from birthmark.pki.certificates import from_pem
from birthmark.pki.cmp import decode as decode_message
from birthmark.pki.cmp import directory_name
from birthmark.pki.crmf import CertReqMsg, CertTemplate, decode, encode_template, read_template, vet
from birthmark.pki.csr import SMALL_ORDER
from birthmark.pki.keys import KeyAlgorithm
from tests.pki.cmp_parts import P256, name
from tests.pki.sample import private_key, signed_by, spki

VECTORS = Path(__file__).parents[1] / "vectors"
ALL = list(KeyAlgorithm)
SUBJECT = name("device").public_bytes()
TEMPLATE = CertTemplate(subject=SUBJECT, public_key=spki(P256, "device"))
EMPTY = b"\x30\x00"


def sequences(*items: bytes) -> bytes:
    return der.encode(der.SEQUENCE, *items)


def control(dotted: str, value: bytes = b"\x0c\x01x") -> bytes:
    return sequences(der.oid(dotted), value)


def proof(algorithm: KeyAlgorithm, request: bytes, common_name: str = "device") -> bytes:
    """POPOSigningKey with a signature of this key."""
    signature = signed_by(private_key(algorithm, common_name), request)
    bits = der.encode(der.BIT_STRING, b"\0", signature)
    return der.encode(0xA1, ALGORITHMS[algorithm].signature_algorithm, bits)


def body(
    template: bytes | CertTemplate = TEMPLATE,
    *,
    controls: bytes = b"",
    popo: Callable[[bytes], bytes] = lambda request: proof(P256, request),
    rest: bytes = b"",
) -> bytes:
    """CertReqMessages with one request."""
    octets = template if isinstance(template, bytes) else encode_template(template)
    request = sequences(b"\x02\x01\x00", octets, controls)
    return sequences(sequences(request, popo(request), rest))


def refusal(message: CertReqMsg, **limits: object) -> str:
    with pytest.raises(PolicyRefused) as refused:
        vet(message, **{"allowed": ALL, **limits})  # type: ignore[arg-type]  # what the test says
    return refused.value.rule


@pytest.mark.parametrize("algorithm", ALL)
def test_every_kind_of_key_is_vetted(algorithm: KeyAlgorithm) -> None:
    template = replace(TEMPLATE, public_key=spki(algorithm, "device"))
    message = decode(body(template, popo=lambda request: proof(algorithm, request)))
    vetted = vet(message, allowed=[algorithm])
    assert vetted.key_algorithm is algorithm
    assert vetted.subject_public_key_info == spki(algorithm, "device")
    assert (vetted.subject_common_name, vetted.subject_serial_number) == ("device", None)
    other = KeyAlgorithm.EC_P384 if algorithm is P256 else P256
    assert refusal(message, allowed=[other]) == "key-algorithm"
    assert refusal(message, blocked_spki=[vetted.spki_sha256]) == "known-key"


def test_a_proof_is_of_this_key_over_this_request() -> None:
    for popo in (
        lambda request: proof(P256, request, "another"),
        lambda request: proof(P256, request + b"\0"),
        lambda _: b"",
        lambda _: b"\x80\x00",
        lambda _: b"\xa2\x00",
        lambda _: b"\xa3\x00",
        with_input,
    ):
        assert refusal(decode(body(popo=popo))) == "proof-of-possession"


def with_input(request: bytes) -> bytes:
    """A proof with a poposkInput."""
    plain = proof(P256, request)
    return der.encode(0xA1, der.encode(0xA0, EMPTY), cmp_der.contents(plain, der.children(plain)[0]))


def test_a_proof_with_another_algorithm_is_refused() -> None:
    message = decode(body(popo=lambda request: proof(KeyAlgorithm.ED25519, request)))
    assert refusal(message) == "request-signature"


def test_a_proof_that_cannot_be_read_is_refused() -> None:
    for popo in (b"\xa1\x00", b"\xa1\x02\x30\x00", b"\xa1\x04\x30\x00\x03\x00"):
        with pytest.raises(MalformedRequest):
            vet(decode(body(popo=lambda _, octets=popo: octets)), allowed=ALL)  # type: ignore[misc]  # bound now


def test_subject_and_key_have_to_be_named() -> None:
    for template in (replace(TEMPLATE, subject=None), replace(TEMPLATE, public_key=None)):
        assert refusal(decode(body(template))) == "request-template"


def test_known_and_weak_keys_are_refused_in_this_form_too() -> None:
    published = from_pem((VECTORS / "rfc9500" / "testECCP256.pem").read_text(), "EC PRIVATE KEY")[0]
    point = published[-65:]
    known = ALGORITHMS[P256].spki_prefix + point
    assert refusal(decode(body(replace(TEMPLATE, public_key=known)))) == "known-key"
    small = ALGORITHMS[KeyAlgorithm.ED25519].spki_prefix + min(SMALL_ORDER)
    assert refusal(decode(body(replace(TEMPLATE, public_key=small)))) == "weak-key"
    nowhere = ALGORITHMS[P256].spki_prefix + b"\x04" + b"\x01" * 64
    assert refusal(decode(body(replace(TEMPLATE, public_key=nowhere)))) == "weak-key"


def test_a_subject_that_is_no_name_is_refused() -> None:
    with pytest.raises(MalformedRequest):
        vet(decode(body(replace(TEMPLATE, subject=b"\x30\x02\x05\x00"))), allowed=ALL)


@pytest.mark.parametrize("last", [1, 2])
def test_controls_that_would_be_lost_are_refused(last: int) -> None:
    message = decode(body(controls=sequences(control(f"1.3.6.1.5.5.7.5.1.{last}"))))
    assert refusal(message) == "request-control"


def test_other_controls_and_registration_information_are_passed_over() -> None:
    controls = sequences(control("1.3.6.1.5.5.7.5.1.3"), control("1.2.3"))
    message = decode(body(controls=controls, rest=EMPTY))
    assert vet(message, allowed=ALL).key_algorithm is P256
    assert der.oid("1.2.3") in message.controls
    assert message.old_cert_id is None


@pytest.mark.parametrize(
    "octets",
    [
        EMPTY,
        sequences(EMPTY),
        sequences(sequences(b"\x05\x00")),
        sequences(sequences(sequences(b"\x02\x01\x00"))),
        sequences(*[sequences(sequences(b"\x02\x01\x00", EMPTY))] * 2),
        sequences(sequences(sequences(b"\x02\x01\x00", EMPTY, EMPTY))),
        sequences(sequences(sequences(b"\x02\x01\x00", EMPTY), b"\x80\x00", b"\xa1\x00")),
        sequences(sequences(sequences(b"\x02\x01\x00", EMPTY), EMPTY, b"\x80\x00")),
        sequences(sequences(sequences(b"\x05\x00", EMPTY))),
        body(controls=sequences(sequences(der.oid("1.2.3")))),
        body(controls=sequences(control("1.2.3"), control("1.2.3"))),
        body(controls=sequences(*[control(f"1.2.{last}") for last in range(17)])),
        body(controls=sequences(control("1.3.6.1.5.5.7.5.1.5"))),
        body(controls=sequences(control("1.3.6.1.5.5.7.5.1.5", sequences(directory_name(SUBJECT))))),
        body(controls=sequences(control("1.3.6.1.5.5.7.5.1.5", sequences(b"\x82\x01a", b"\x02\x01\x01")))),
        body(sequences(b"\xaa\x00")),
        body(sequences(b"\xa5\x02\x30\x00", b"\xa3\x02\x30\x00")),
        body(sequences(b"\xa5\x02\x31\x00")),
        body(sequences(b"\x81\x00")),
        body(sequences(b"\x81\x02\x00\x01")),
        body(sequences(b"\xa9\x00")),
        body(sequences(b"\xa9\x02\x30\x00")),
        body(sequences(b"\xa9\x02\x05\x00")),
        body(sequences(der.encode(0xA9, sequences(der.oid("1.2.3"), b"\x04\x00", b"\x01\x01\xff")))),
        body(sequences(der.encode(0xA9, *[sequences(der.oid("1.2.3"), b"\x04\x00")] * 2))),
        body(
            sequences(
                der.encode(0xA9, sequences(der.oid("1.2.3"), b"\x01\x01\xff", b"\x01\x01\xff", b"\x04\x00"))
            )
        ),
    ],
)
def test_what_is_no_request_is_refused(octets: bytes) -> None:
    with pytest.raises(MalformedRequest):
        decode(octets)


@given(st.binary(max_size=80))
def test_any_octets_are_read_or_refused(octets: bytes) -> None:
    for given_octets in (octets, sequences(sequences(sequences(octets)))):
        with pytest.raises(MalformedRequest):
            decode(given_octets)


@pytest.mark.parametrize("file", ["ir", "cr", "kur", "cr-rsa"])
def test_a_template_of_openssl_is_written_as_openssl_wrote_it(file: str) -> None:
    message = decode(decode_message((VECTORS / "cmp" / f"{file}.der").read_bytes()).body)
    _, template, *_ = der.children(message.request, *der.only(message.request, der.SEQUENCE)[2:])
    read = read_template(message.request, template)
    assert read == message.template
    assert encode_template(read) == cmp_der.whole(message.request, template)
    assert vet(message, allowed=ALL).key_algorithm is P256


def test_every_octet_of_a_request_is_covered_by_its_proof() -> None:
    octets = body()
    request = decode(octets).request
    for place in range(len(request)):
        changed = bytearray(octets)
        changed[octets.index(request) + place] ^= 1
        with pytest.raises((MalformedRequest, PolicyRefused)):
            vet(decode(bytes(changed)), allowed=ALL)


def test_fields_that_nobody_looks_at_are_passed_over() -> None:
    validity = der.encode(0xA4, der.encode(0xA0, b"\x17\x0d261122123015Z"))
    octets = sequences(
        b"\x80\x01\x02",
        b"\x81\x01\x05",
        b"\xa2\x04\x06\x02\x2a\x03",
        der.encode(0xA3, SUBJECT),
        validity,
        der.encode(0xA5, SUBJECT),
        b"\x87\x02\x00\x01",
        b"\x88\x02\x00\x01",
        der.encode(0xA9, sequences(der.oid("1.2.3"), b"\x01\x01\xff", b"\x04\x00")),
    )
    template = decode(body(octets)).template
    assert (template.serial_number, template.issuer, template.subject) == (5, SUBJECT, SUBJECT)
    assert template.extensions == sequences(sequences(der.oid("1.2.3"), b"\x01\x01\xff", b"\x04\x00"))
    assert crmf.decode(body(EMPTY)).template == CertTemplate()
