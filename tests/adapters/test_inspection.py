"""The inspector says what pkilint's own commands say, and is loaded when it is first asked."""

import subprocess
import sys

import pytest

from birthmark import errors
from birthmark.adapters.inspection import PkilintInspector
from birthmark.pki import profiles
from birthmark.pki.articles import Severity
from birthmark.pki.keys import KeyAlgorithm
from tests.pki import sample
from tests.support.lint import pkilint_findings, pkilint_pair_findings

INSPECTOR = PkilintInspector()
LEAVES = ("bootstrap", "idevid", "operator", "server", "station", "vehicle")


@pytest.mark.parametrize("algorithm", [KeyAlgorithm.EC_P256, KeyAlgorithm.ED25519])
@pytest.mark.parametrize("name", LEAVES)
def test_it_finds_what_pkilints_commands_find(name: str, algorithm: KeyAlgorithm) -> None:
    realm, profile = sample.realm(algorithm), profiles.load(name)
    certificate = realm.issue(profile, sample.spki(profile.subject_key_algorithms[0], name))
    expected = {*pkilint_findings(certificate), *pkilint_pair_findings(realm.issuing_der, certificate)}
    found = INSPECTOR.inspect(certificate, realm.issuing_der)
    assert {(str(finding.severity).upper(), finding.code) for finding in found} == expected
    assert len(found) == len(set(found))


def test_it_finds_that_the_issuer_is_another() -> None:
    realm, other = sample.realm(KeyAlgorithm.EC_P256), sample.realm(KeyAlgorithm.EC_P384)
    certificate = realm.issue(profiles.load("vehicle"), sample.spki(KeyAlgorithm.EC_P256, "D1"))
    found = INSPECTOR.inspect(certificate, other.issuing_der)
    assert (Severity.ERROR, "pkix.issuer_and_subject_key_identifier_not_equal") in {
        (finding.severity, finding.code) for finding in found
    }


def test_a_root_is_inspected_by_itself() -> None:
    assert INSPECTOR.inspect(sample.realm(KeyAlgorithm.EC_P256).root_der, None) == ()


@pytest.mark.parametrize("octets", [b"", b"\x30\x00", b"nothing", b"\x30\x03\x02\x01\x01"])
def test_what_is_no_certificate_is_refused(octets: bytes) -> None:
    with pytest.raises(errors.MalformedRequest, match="pkilint cannot read the certificate"):
        INSPECTOR.inspect(octets, None)


def test_it_is_loaded_when_it_is_first_asked() -> None:
    """A process that serves a line never pays for it."""
    code = "import sys, birthmark.app; sys.exit('pkilint' in sys.modules or 'pyasn1' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_it_says_who_it_is() -> None:
    assert INSPECTOR.name == "pkilint"
    assert INSPECTOR.version.startswith("0.")
