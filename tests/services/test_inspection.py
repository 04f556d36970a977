"""Every packaged profile passes what a profile of one's own must pass (SPEC G1, G2)."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from birthmark import errors
from birthmark.adapters.inspection import PkilintInspector
from birthmark.pki import profiles
from birthmark.pki.profiles import Catalogue
from birthmark.services.inspection import inspect_profile

NOW = datetime(2026, 11, 22, tzinfo=UTC)
INSPECTOR = PkilintInspector()
CATALOGUE = Catalogue.read()
VEHICLE = Path("src/birthmark/pki/profiles/vehicle.toml").read_text()


def own(text: str) -> profiles.Profile:
    return profiles.parse(text.replace('name = "vehicle"', 'name = "own"').encode(), "own.toml")


@pytest.mark.parametrize("name", profiles.names())
def test_a_packaged_profile_is_accepted_for_every_key_it_allows(name: str) -> None:
    profile = profiles.load(name)
    report = inspect_profile(CATALOGUE, profile, INSPECTOR, {}, NOW)
    assert report.refusals == ()
    assert [one.algorithm for one in report.inspections] == list(profile.subject_key_algorithms)
    assert [finding for one in report.inspections for finding in one.unwaived] == []
    assert report.accepted
    assert {test.rule for test in report.negative_tests} == {one.rule for one in profile.constraints}


def test_a_finding_without_a_waiver_is_no_acceptance() -> None:
    report = inspect_profile(
        CATALOGUE,
        own(VEHICLE.replace("subject-key-identifier = true", "subject-key-identifier = false")),
        INSPECTOR,
        {},
        NOW,
    )
    assert not report.accepted
    codes = {finding.code for one in report.inspections for finding in one.unwaived}
    assert codes == {"pkix.certificate_skid_end_entity_missing"}


def test_what_our_own_rules_refuse_is_told_for_each_key() -> None:
    report = inspect_profile(CATALOGUE, own(VEHICLE.replace("1024", "300")), INSPECTOR, {}, NOW)
    assert not report.accepted
    assert [algorithm for algorithm, _ in report.refusals] == ["ec-p256", "ec-p384", "ed25519"]
    assert all("the profile allows 300" in str(refusal) for _, refusal in report.refusals)


def test_a_value_that_is_given_must_keep_the_constraints() -> None:
    text = VEHICLE + '\n[[constraints]]\nrule = "maker"\nvariable = "organization"\nequals = "Nord AG"\n'
    report = inspect_profile(CATALOGUE, own(text), INSPECTOR, {}, NOW)
    assert report.values["organization"] == "Nord AG"
    assert {test.tried for test in report.negative_tests} >= {"nORD ag", "Nord A"}
    with pytest.raises(errors.PolicyRefused, match="organization 'Other' is none of Nord AG"):
        inspect_profile(CATALOGUE, own(text), INSPECTOR, {"organization": "Other"}, NOW)
