"""What the packaged profiles produce, as OpenSSL and pkilint see it (SPEC A2, F5, G1)."""

from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509

from birthmark.pki import profiles
from birthmark.pki.certificates import Certificate
from birthmark.pki.keys import KeyAlgorithm
from tests.pki.sample import NOW, VIN, extension_texts, realm, spki
from tests.support.chains import LOCATIONS, chain_of
from tests.support.lint import (
    openssl_strict,
    openssl_verify,
    pkilint_findings,
    pkilint_pair_findings,
    unwaived,
    waived,
)

ISSUERS = (KeyAlgorithm.EC_P256, KeyAlgorithm.EC_P384)

EVERY = [
    (name, algorithm)
    for name in profiles.names()
    for algorithm in profiles.load(name).subject_key_algorithms
    # Of RSA one size will do: their certificates differ in nothing but length.
    if algorithm not in {KeyAlgorithm.RSA_2048, KeyAlgorithm.RSA_4096}
]


@pytest.mark.parametrize(("name", "algorithm"), EVERY)
def test_openssl_and_pkilint_accept_every_profile(name: str, algorithm: KeyAlgorithm, tmp_path: Path) -> None:
    """SPEC G1: the whole path of each, with and without places for revocation, under its own authorities."""
    profile = profiles.load(name)
    for locations in ({}, LOCATIONS):
        chain = chain_of(name, algorithm=algorithm, variables=locations)
        openssl_strict(chain.root_der, list(chain.intermediates), chain.leaf_der, tmp_path, NOW)
        assert unwaived(pkilint_findings(chain.leaf_der), profile) == []
        if chain.issuers:
            above = (*chain.intermediates, chain.root_der)[0]
            assert pkilint_pair_findings(above, chain.leaf_der) == []
        assert len(chain.leaf_der) <= profile.max_der_size
        assert "crl_url" not in profile.variables or (b"/crl/1.crl" in chain.leaf_der) is bool(locations)


@pytest.mark.parametrize("name", profiles.names())
def test_every_waiver_is_needed(name: str) -> None:
    """A waiver that waives nothing would hide the next finding."""
    found = {code for _, code in pkilint_findings(chain_of(name).leaf_der)}
    assert waived(profiles.load(name)) <= found


def test_a_path_too_long_is_refused_by_openssl_too(tmp_path: Path) -> None:
    """The control: the same oracle refuses a chain with a tier left out, and one with another root."""
    chain = chain_of("iso15118-2-oem-prov")
    stranger = chain_of("iso15118-20-oem-prov")
    for root, between in (
        (chain.root_der, chain.intermediates[:1]),
        (stranger.root_der, chain.intermediates),
    ):
        assert openssl_verify(root, list(between), chain.leaf_der, tmp_path, NOW).returncode != 0


@pytest.mark.parametrize("name", [name for name in profiles.names() if name.startswith("matter")])
def test_a_matter_certificate_has_what_the_verifier_looks_for(name: str) -> None:
    """A.2: subject attributes as UTF8String, basicConstraints on the DAC, identifiers of 20 octets."""
    parsed = x509.load_der_x509_certificate(chain_of(name).leaf_der)
    by_oid = {attribute.oid.dotted_string: attribute.value for attribute in parsed.subject}
    assert by_oid["1.3.6.1.4.1.37244.2.1"] == "FFF1"
    assert by_oid.get("1.3.6.1.4.1.37244.2.2") == (None if name == "matter-paa" else "80A1")
    constraints = parsed.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value.path_length == {"matter-paa": 1, "matter-pai": 0, "matter-dac": None}[name]
    digest = parsed.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert len(digest) == 20


def test_a_wisun_device_is_named_by_its_hardware_alone() -> None:
    """A.4: empty subject, one critical hardwareModuleName whose serial is the EUI-64 in eight octets."""
    parsed = x509.load_der_x509_certificate(chain_of("wisun-device").leaf_der)
    assert list(parsed.subject) == []
    alternative = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert alternative.critical
    (name,) = alternative.value
    assert isinstance(name, x509.OtherName)
    # SEQUENCE { hwType 1.3.6.1.4.1.32473.1.7, hwSerialNum OCTET STRING } by hand.
    assert name.value.hex() == "3016060a2b0601040181fd590107" + "0408" + "00173b0000000001"
    usage = parsed.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    assert [found.dotted_string for found in usage.value] == ["1.3.6.1.4.1.45605.1", "1.3.6.1.5.5.7.3.2"]
    assert extension_texts(chain_of("wisun-device").leaf_der) == [
        "2.5.29.15",
        "2.5.29.37",
        "2.5.29.17",
        "2.5.29.35",
    ]


def test_a_tpms_keys_say_where_they_live() -> None:
    """A.1, TCG: residency, and fixed for the identity or restricted for attestation; RFC 4043 beside it."""
    for name, last in (("tpm-idevid", "2.23.133.11.1.2"), ("tpm-iak", "2.23.133.11.1.3")):
        parsed = x509.load_der_x509_certificate(chain_of(name).leaf_der)
        policies = parsed.extensions.get_extension_for_class(x509.CertificatePolicies)
        assert not policies.critical
        assert [found.policy_identifier.dotted_string for found in policies.value] == [
            "2.23.133.11.1.1",
            last,
        ]
        names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        hardware, permanent = names.get_values_for_type(x509.OtherName)
        assert hardware.value.hex() == "301a" + "0605678105" + "0102" + "0411" + VIN.encode().hex()
        assert permanent.type_id.dotted_string == "1.3.6.1.5.5.7.8.3"
        assert permanent.value.hex() == "3013" + "0c11" + VIN.encode().hex()


def test_an_ocsp_responder_is_not_asked_about() -> None:
    """RFC 6960 section 4.2.2.2.1: id-pkix-ocsp-nocheck is NULL."""
    parsed = x509.load_der_x509_certificate(chain_of("ocsp-responder").leaf_der)
    assert parsed.extensions.get_extension_for_class(x509.OCSPNoCheck).value.public_bytes() == b"\x05\x00"
    usage = parsed.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [x509.oid.ExtendedKeyUsageOID.OCSP_SIGNING]
    assert (parsed.not_valid_after_utc - parsed.not_valid_before_utc).days == 29


@pytest.mark.parametrize("algorithm", ISSUERS)
def test_openssl_and_pkilint_accept_the_authorities(algorithm: KeyAlgorithm, tmp_path: Path) -> None:
    ours = realm(algorithm)
    openssl_strict(ours.root_der, [], ours.issuing_der, tmp_path, NOW)
    for name, certificate in (("root", ours.root_der), ("issuing", ours.issuing_der)):
        assert unwaived(pkilint_findings(certificate), profiles.load(name)) == []
    assert pkilint_pair_findings(ours.root_der, ours.issuing_der) == []


@pytest.mark.parametrize("name", ["idevid", "server"])
def test_the_extensions_a_profile_may_add_are_accepted_too(name: str, tmp_path: Path) -> None:
    """basicConstraints on a leaf, policies, CRL and access locations: no packaged profile names them."""

    def template(text: str) -> profiles.TextTemplate:
        return profiles.TextTemplate(text, ((text, None),), frozenset())

    ours = realm(KeyAlgorithm.EC_P256)
    profile = replace(
        profiles.load(name),
        basic_constraints=profiles.BasicConstraints(ca=False, path_len_constraint=None),
        certificate_policies=(template("1.3.6.1.4.1.32473.9"), template("1.3.6.1.4.1.32473.10")),
        crl_distribution_point=template("http://pki.example/crl/1.crl"),
        ocsp_responder=template("http://pki.example/ocsp"),
        ca_issuers=template("http://pki.example/ca/1.cer"),
    )
    leaf = ours.issue(profile, spki(KeyAlgorithm.EC_P256, "device"))
    openssl_strict(ours.root_der, [ours.issuing_der], leaf, tmp_path, NOW)
    assert unwaived(pkilint_findings(leaf), profile) == []


def test_openssl_accepts_a_realm_of_ed25519(tmp_path: Path) -> None:
    ours = realm(KeyAlgorithm.ED25519)
    leaf = ours.issue(profiles.load("vehicle"), spki(KeyAlgorithm.ED25519, "device"))
    openssl_strict(ours.root_der, [ours.issuing_der], leaf, tmp_path, NOW)


def test_openssl_refuses_another_realms_leaf(tmp_path: Path) -> None:
    ours, theirs = realm(KeyAlgorithm.EC_P256), realm(KeyAlgorithm.EC_P384)
    leaf = ours.issue(profiles.load("vehicle"), spki(KeyAlgorithm.EC_P256, "device"))
    assert openssl_verify(theirs.root_der, [theirs.issuing_der], leaf, tmp_path, NOW).returncode != 0


def test_an_idevid_is_what_802_1ar_asks_for() -> None:
    """IEEE 802.1AR-2018 section 8, RFC 4108 section 5."""
    der = realm(KeyAlgorithm.EC_P256).issue(profiles.load("idevid"), spki(KeyAlgorithm.EC_P256, "device"))
    parsed = x509.load_der_x509_certificate(der)
    assert [attribute.value for attribute in parsed.subject] == ["Example Motors", "Line 1", VIN]
    assert parsed.not_valid_after_utc.isoformat() == "9999-12-31T23:59:59+00:00"
    assert b"99991231235959Z" in der
    assert extension_texts(der) == ["2.5.29.15", "2.5.29.17", "2.5.29.35"]
    usage = parsed.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign
    names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    (other,) = names.get_values_for_type(x509.OtherName)
    assert other.type_id.dotted_string == "1.3.6.1.5.5.7.8.4"
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [
        f"https://products.example/line-1/{VIN}"
    ]
    # SEQUENCE { hwType 1.3.6.1.4.1.32473.1.7, hwSerialNum OCTET STRING } by hand.
    assert other.value.hex() == "301f060a2b0601040181fd590107" + "0411" + VIN.encode().hex()


def test_a_test_realms_authorities_say_so_in_their_names() -> None:
    """SPEC H6: a certificate of a test authority cannot be mistaken for one of production."""
    ours = realm(KeyAlgorithm.EC_P256)
    assert Certificate.from_der(ours.root_der).subject == "CN=Lab TEST Root CA,O=Example Motors TEST"
    issuing = Certificate.from_der(ours.issuing_der)
    assert issuing.subject == "CN=Line 1 Issuing CA TEST,OU=Line 1,O=Example Motors TEST"


def test_a_station_certificate_ends_when_its_profile_says() -> None:
    """SPEC C2; RFC 5280 section 4.1.2.5: both ends count, so thirty days end one second earlier."""
    der = realm(KeyAlgorithm.EC_P256).issue(profiles.load("station"), spki(KeyAlgorithm.EC_P256, "device"))
    found = Certificate.from_der(der)
    assert found.not_before == NOW.replace(microsecond=0)
    assert found.not_after.isoformat() == "2026-12-22T12:30:14+00:00"
