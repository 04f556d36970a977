"""The locations that certificates name (SPEC F2, F4)."""

import pytest

from birthmark import errors
from birthmark.floor.locations import Locations, certificate_path, crl_path
from birthmark.floor.revocations import AUTHORITIES, CLIENTS, UNPARTITIONED, Partitioning, partition_name


def test_a_partitions_certificates_name_its_own_crl_and_all_others_the_full_one() -> None:
    """SPEC F2."""
    here = Locations("http://pki.example.com")
    assert here.crl("issuing-1") == "http://pki.example.com/crl/issuing-1.crl"
    for partition in (UNPARTITIONED, CLIENTS, AUTHORITIES):
        assert here.crl("issuing-1", partition) == here.crl("issuing-1")
    batch = partition_name(Partitioning.BATCH, "RUN-1", "B-7")
    assert here.crl("issuing-1", batch) == "http://pki.example.com/crl/issuing-1/batch.B-7.crl"


def test_a_profiles_variables_are_the_locations() -> None:
    """SPEC F4, G."""
    assert Locations("http://example.com:8080/pki").variables("ca", "run.R") == {
        "crl_url": "http://example.com:8080/pki/crl/ca/run.R.crl",
        "ocsp_url": "http://example.com:8080/pki/ocsp",
        "issuer_url": "http://example.com:8080/pki/ca/ca.cer",
    }


@pytest.mark.parametrize(
    "base",
    [
        "",
        "https://pki.example.com",
        "http://",
        "http://a/",
        "http://a?b",
        "http://a b",
        "http://a\n",
        "http://a/../b/",
    ],
)
def test_a_base_that_certificates_cannot_name_is_refused(base: str) -> None:
    """SPEC F4."""
    with pytest.raises(errors.MalformedRequest):
        Locations(base)


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a b", "é", "a\n", "x" * 65])
def test_a_name_that_could_leave_its_folder_has_no_path(name: str) -> None:
    """SPEC F4."""
    with pytest.raises(errors.MalformedRequest):
        certificate_path(name)
    with pytest.raises(errors.MalformedRequest):
        crl_path(name)
    with pytest.raises(errors.MalformedRequest):
        crl_path("ca", name)
