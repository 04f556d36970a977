"""What the packaged profiles produce, as OpenSSL and pkilint see it (SPEC A2, F5, G1)."""

from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509

from birthmark.pki import profiles
from birthmark.pki.certificates import Certificate
from birthmark.pki.keys import KeyAlgorithm
from tests.pki.sample import LEAF_PROFILES, NOW, VIN, extension_texts, realm, spki
from tests.support.lint import (
    openssl_strict,
    openssl_verify,
    pkilint_findings,
    pkilint_pair_findings,
    unwaived,
)

ISSUERS = (KeyAlgorithm.EC_P256, KeyAlgorithm.EC_P384)


@pytest.mark.parametrize("algorithm", ISSUERS)
@pytest.mark.parametrize("name", LEAF_PROFILES)
def test_openssl_and_pkilint_accept_every_leaf(name: str, algorithm: KeyAlgorithm, tmp_path: Path) -> None:
    ours, profile = realm(algorithm), profiles.load(name)
    leaf = ours.issue(profile, spki(algorithm, "device"))
    openssl_strict(ours.root_der, [ours.issuing_der], leaf, tmp_path, NOW)
    assert unwaived(pkilint_findings(leaf), profile) == []
    assert pkilint_pair_findings(ours.issuing_der, leaf) == []
    assert len(leaf) <= profile.max_der_size


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


@pytest.mark.parametrize("name", LEAF_PROFILES)
def test_every_waiver_is_needed(name: str) -> None:
    profile = profiles.load(name)
    leaf = realm(KeyAlgorithm.EC_P256).issue(profile, spki(KeyAlgorithm.EC_P256, "device"))
    assert profile.waived("pkilint") <= {code for _, code in pkilint_findings(leaf)}


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
