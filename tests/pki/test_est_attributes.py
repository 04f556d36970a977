"""What is asked of a request is what will be issued: held against RFC 9908's examples, and read by pyasn1."""

import base64
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key
from pyasn1.codec.der.decoder import decode  # type: ignore[import-untyped]  # it has no types
from pyasn1.codec.der.encoder import encode  # type: ignore[import-untyped]  # nor has it
from pyasn1_alt_modules import rfc5280, rfc8951, rfc9908  # type: ignore[import-untyped]  # nor have they

from birthmark.errors import MalformedRequest, Refusal
from birthmark.pki import der
from birthmark.pki.est_attributes import csr_attributes
from birthmark.pki.keys import KeyAlgorithm
from birthmark.pki.profilelanguage import Extension, Profile, TextTemplate
from birthmark.pki.profiles import load, names
from tests.pki.sample import VARIABLES, realm, spki

VECTORS = Path(__file__).parent.parent / "vectors" / "est"
P256 = KeyAlgorithm.EC_P256
RUN = {name: value for name, value in VARIABLES.items() if name != "hardware_id"}
"""What is known while it is not known who asks."""
CHALLENGE_PASSWORD = der.oid("1.2.840.113549.1.9.7")
EXTENSION_REQUEST = "1.2.840.113549.1.9.14"
TEMPLATE = "1.2.840.113549.1.9.16.2.61"
SERIAL_NUMBER = der.oid("2.5.4.5")


@cache
def issued() -> dict[str, bytes]:
    """A certificate of every packaged profile that the sample authority can issue by."""
    found = {}
    for name in names():
        profile = load(name)
        if profile.is_ca:
            continue
        try:
            found[name] = realm(P256).issue(profile, spki(profile.subject_key_algorithms[0], name))
        except Refusal:
            continue  # it wants an issuer of another kind
    return found


def elements(octets: bytes) -> list[bytes]:
    """The elements of CsrAttrs, each in DER, after pyasn1 has read and written all of it."""
    found, rest = decode(octets, asn1Spec=rfc8951.CsrAttrs())
    assert not rest
    assert encode(found) == octets
    return [encode(one.getComponent()) for one in found]


def example(name: str) -> list[bytes]:
    return elements(base64.b64decode((VECTORS / name).read_bytes()))


def values(octets: bytes, kind: str) -> list[bytes]:
    """The values of the attributes of one type."""
    found, _ = decode(octets, asn1Spec=rfc8951.CsrAttrs())
    return [
        bytes(value)
        for one in found
        if one.getName() == "attribute" and str(one["attribute"]["attrType"]) == kind
        for value in one["attribute"]["attrValues"]
    ]


def template(octets: bytes) -> rfc9908.CertificationRequestInfoTemplate:
    (value,) = values(octets, TEMPLATE)
    found, rest = decode(value, asn1Spec=rfc9908.CertificationRequestInfoTemplate())
    assert not rest
    assert encode(found) == value
    assert int(found["version"]) == 0
    return found


def with_key(algorithm: KeyAlgorithm) -> Profile:
    return replace(load("ldevid"), subject_key_algorithms=(algorithm,))


def test_the_list_for_a_p384_key_is_that_of_rfc_9908() -> None:
    password, *theirs = example("csrattrs-rfc9908-p384.b64")
    assert password == CHALLENGE_PASSWORD
    ours = elements(csr_attributes(with_key(KeyAlgorithm.EC_P384), RUN))
    further = values(csr_attributes(with_key(KeyAlgorithm.EC_P384), RUN), EXTENSION_REQUEST)
    assert [one for one in ours if one in theirs] == theirs
    assert len(ours) == len(theirs) + len(further) + 1


def test_the_list_for_an_rsa_key_is_that_of_rfc_9908() -> None:
    password, *theirs = example("csrattrs-rfc9908-rsa-4096.b64")
    assert password == CHALLENGE_PASSWORD
    ours = elements(csr_attributes(with_key(KeyAlgorithm.RSA_4096), VARIABLES))
    assert [one for one in ours if one in theirs] == theirs


def test_the_template_says_the_size_of_an_rsa_key_with_a_placeholder() -> None:
    for algorithm in (KeyAlgorithm.RSA_2048, KeyAlgorithm.RSA_3072, KeyAlgorithm.RSA_4096):
        info = template(csr_attributes(with_key(algorithm), RUN))["subjectPKInfo"]
        placeholder = der.encode(der.SEQUENCE, encode(info["algorithm"]), encode(info["subjectPublicKey"]))
        key = load_der_public_key(placeholder)
        assert isinstance(key, rsa.RSAPublicKey)
        assert key.key_size == int(algorithm.removeprefix("rsa-"))


@pytest.mark.parametrize("algorithm", [key for key in KeyAlgorithm if not key.startswith("rsa")], ids=str)
def test_the_template_says_the_kind_of_another_key_without_one(algorithm: KeyAlgorithm) -> None:
    info = template(csr_attributes(with_key(algorithm), RUN))["subjectPKInfo"]
    key, _ = decode(spki(algorithm, "device"), asn1Spec=rfc5280.SubjectPublicKeyInfo())
    assert encode(info["algorithm"]) == encode(key["algorithm"])
    assert not info["subjectPublicKey"].isValue


@pytest.mark.parametrize("algorithm", [KeyAlgorithm.ED25519, KeyAlgorithm.ED448], ids=str)
def test_an_edwards_key_says_everything_by_its_name(algorithm: KeyAlgorithm) -> None:
    kind = {KeyAlgorithm.ED25519: "1.3.101.112", KeyAlgorithm.ED448: "1.3.101.113"}[algorithm]
    found = elements(csr_attributes(with_key(algorithm), VARIABLES))
    assert found[0] == der.encode(der.SEQUENCE, der.oid(kind), der.encode(der.SET))
    assert not any(one.startswith(b"\x06") for one in found)


def test_the_key_asked_for_is_the_first_that_the_profile_allows() -> None:
    both = replace(load("ldevid"), subject_key_algorithms=(KeyAlgorithm.EC_P384, P256))
    assert csr_attributes(both, RUN) == csr_attributes(with_key(KeyAlgorithm.EC_P384), RUN)


def test_there_are_certificates_to_compare_with() -> None:
    assert {"idevid", "ldevid", "tpm-iak", "bootstrap", "server", "vehicle", "3gpp-vendor"} <= set(issued())


@pytest.mark.parametrize("name", sorted(issued()))
def test_of_a_known_device_the_subject_and_extensions_are_asked_that_it_will_have(name: str) -> None:
    certificate = x509.load_der_x509_certificate(issued()[name])
    octets = csr_attributes(load(name), VARIABLES)
    found = template(octets)
    assert encode(found["subject"]) == certificate.subject.public_bytes()
    (extensions,) = values(octets, EXTENSION_REQUEST)
    assert encode(found["attributes"][0]["values"][0]) == extensions
    assert len(found["attributes"]) == len(found["attributes"][0]["values"]) == 1
    asked, rest = decode(extensions, asn1Spec=rfc5280.Extensions())
    assert not rest
    theirs, _ = decode(issued()[name], asn1Spec=rfc5280.Certificate())
    of_authority = {
        Extension.CRL_DISTRIBUTION_POINTS,
        Extension.AUTHORITY_INFORMATION_ACCESS,
        Extension.OCSP_NO_CHECK,
        Extension.SUBJECT_KEY_IDENTIFIER,
        Extension.AUTHORITY_KEY_IDENTIFIER,
    }
    assert [encode(one) for one in asked] == [
        encode(one)
        for one in theirs["tbsCertificate"]["extensions"]
        if str(one["extnID"]) not in of_authority
    ]


def test_of_a_device_that_is_not_known_the_client_says_the_name() -> None:
    octets = csr_attributes(load("ldevid"), RUN)
    assert SERIAL_NUMBER in elements(octets)
    subject = template(octets)["subject"]["rdnSequence"]
    known = [encode(name[0]["value"]) for name in subject if name[0]["value"].isValue]
    assert [bytes(value)[2:].decode() for value in known] == ["Example Motors", "Line 1"]
    assert [str(name[0]["type"]) for name in subject if not name[0]["value"].isValue] == ["2.5.4.5"]
    asked, _ = decode(values(octets, EXTENSION_REQUEST)[0], asn1Spec=rfc5280.Extensions())
    assert [str(one["extnID"]) for one in asked] == [Extension.KEY_USAGE, Extension.EXTENDED_KEY_USAGE]


def test_what_a_run_has_no_value_for_is_not_asked_for() -> None:
    octets = csr_attributes(load("ldevid"), {})
    subject = template(octets)["subject"]["rdnSequence"]
    assert [str(name[0]["type"]) for name in subject] == ["2.5.4.5"]
    empty = {**RUN, "organization": "", "organizational_unit": ""}
    assert csr_attributes(load("ldevid"), empty) == octets


def test_an_optional_name_of_the_device_is_the_clients_unless_its_run_has_no_value_for_it() -> None:
    profile = load("ldevid")
    text = TextTemplate(
        "{run} {hardware_id}", (("", "run"), (" ", "hardware_id")), frozenset({"run", "hardware_id"})
    )
    named = replace(profile, subject=(replace(profile.subject[0], value=text),))
    (name,) = template(csr_attributes(named, RUN))["subject"]["rdnSequence"]
    assert not name[0]["value"].isValue
    for without in ({}, {"run": ""}):
        assert not template(csr_attributes(named, without))["subject"].isValue


def test_a_name_that_the_run_should_have_is_the_clients_if_it_must_be_there() -> None:
    octets = csr_attributes(load("station"), {"organization": "Example Motors"})
    blank = [
        name[0]["type"] for name in template(octets)["subject"]["rdnSequence"] if not name[0]["value"].isValue
    ]
    assert [str(kind) for kind in blank] == ["2.5.4.3"]


def test_what_all_certificates_need_and_nobody_gave_is_refused() -> None:
    policies = (
        TextTemplate(
            "{certificate_policy}", (("", "certificate_policy"),), frozenset({"certificate_policy"})
        ),
    )
    with pytest.raises(MalformedRequest, match="certificate_policy"):
        csr_attributes(replace(load("ldevid"), certificate_policies=policies), {})
    with pytest.raises(MalformedRequest, match="serialNumber"):
        csr_attributes(load("ldevid"), {**RUN, "hardware_id": "Ä"})
