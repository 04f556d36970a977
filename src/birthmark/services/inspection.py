"""First-article inspection: what a linter that is not ours says of a profile's certificates (SPEC G1, G2).

A finding that the profile does not waive refuses.  ``inspect_article`` judges one certificate, when a run is
opened; ``inspect_profile`` makes one for every algorithm that a profile allows, under authorities that are
made up for it, before a profile is taken in.  How our own rules judge the same octets is in ``pki.lint``:
they have done so before anything comes here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from birthmark import errors
from birthmark.floor.samples import sample_values
from birthmark.pki.algorithms import ALGORITHMS
from birthmark.pki.articles import NOBODY, Finding, article, root_article, subject_algorithms
from birthmark.pki.certificates import fingerprint
from birthmark.pki.constraints import NegativeTest, negative_tests
from birthmark.pki.issuer import Issuer
from birthmark.pki.keys import KeyAlgorithm
from birthmark.pki.profiles import Catalogue, Profile
from birthmark.ports import Inspector

__all__ = ["RULE", "Inspection", "ProfileReport", "inspect_article", "inspect_profile"]

RULE = "first-article"
"""Of refusals because of what the linters say about a run's first article."""
_DEEPEST = 5
"""Authorities that are made up above one another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What was found in one certificate."""

    inspector: str
    """Name and version."""
    certificate: bytes
    """DER."""
    algorithm: KeyAlgorithm
    """Of the subject's key."""
    findings: tuple[tuple[Finding, str | None], ...]
    """Each with the reason why the profile waives it, or None."""

    @property
    def unwaived(self) -> tuple[Finding, ...]:
        """Return what the profile does not waive."""
        return tuple(finding for finding, reason in self.findings if reason is None)

    def require_accepted(self) -> None:
        """Refuse what has a finding that is not waived.

        Raises:
            errors.PolicyRefused: names the findings.
        """
        if self.unwaived:
            said = "; ".join(_said(finding) for finding in self.unwaived)
            raise errors.PolicyRefused(RULE, f"{self.inspector} refuses the first article: {said}")

    def document(self) -> dict[str, Any]:
        """Return it as it is recorded."""
        return {
            "inspector": self.inspector,
            "certificate_sha256": fingerprint(self.certificate),
            "subject_key_algorithm": str(self.algorithm),
            "findings": [
                {
                    "severity": str(finding.severity),
                    "code": finding.code,
                    "detail": finding.detail,
                    "waived": reason,
                }
                for finding, reason in self.findings
            ],
        }


def _said(finding: Finding) -> str:
    return f"{finding.severity} {finding.code}" + (f" ({finding.detail})" if finding.detail else "")


def inspect_article(
    inspector: Inspector, profile: Profile, issuer: bytes | None, certificate: bytes, algorithm: KeyAlgorithm
) -> Inspection:
    """Have a certificate (DER) inspected under its issuer's (None if it is its own)."""
    waivers = {waiver.finding: waiver.reason for waiver in profile.waivers if waiver.linter == inspector.name}
    return Inspection(
        inspector=f"{inspector.name} {inspector.version}",
        certificate=certificate,
        algorithm=algorithm,
        findings=tuple(
            (finding, waivers.get(finding.code)) for finding in inspector.inspect(certificate, issuer)
        ),
    )


# --- a profile, before it is used
# ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileReport:
    """What was found in a profile's certificates, one for each algorithm a subject's key may have."""

    values: Mapping[str, str]
    """The values they were made with."""
    inspections: tuple[Inspection, ...]
    refusals: tuple[tuple[KeyAlgorithm, errors.Refusal], ...]
    """Algorithms for which our own rules allow no certificate, each with the rule's complaint."""
    negative_tests: tuple[NegativeTest, ...]

    @property
    def accepted(self) -> bool:
        """Return whether nothing was found that is not waived."""
        return not self.refusals and not any(inspection.unwaived for inspection in self.inspections)


def inspect_profile(
    catalogue: Catalogue, profile: Profile, inspector: Inspector, given: Mapping[str, str], at: datetime
) -> ProfileReport:
    """Make a certificate of a profile for every algorithm and have each inspected.

    Args:
        catalogue: where the profiles of its authorities are.
        profile: perhaps not in the catalogue yet.
        inspector: the linter.
        given: values for its variables; the others are made up.
        at: notBefore of everything that is made.

    Raises:
        errors.NotFound: a value could not be made up.
        errors.PolicyRefused: one that was given breaks a constraint.
    """
    values = sample_values(profile, profile.constraints, given)
    tests = negative_tests(profile.constraints, values)
    inspections: list[Inspection] = []
    refusals: list[tuple[KeyAlgorithm, errors.Refusal]] = []
    for algorithm in profile.subject_key_algorithms:
        try:
            certificate, *above = _made(catalogue, profile, values, algorithm, at, _DEEPEST)
        except (errors.PolicyRefused, errors.MalformedRequest) as refusal:
            refusals.append((algorithm, refusal))
        else:
            inspections.append(
                inspect_article(inspector, profile, above[0] if above else None, certificate, algorithm)
            )
    return ProfileReport(
        values=values, inspections=tuple(inspections), refusals=tuple(refusals), negative_tests=tests
    )


def _made(
    catalogue: Catalogue,
    profile: Profile,
    values: Mapping[str, str],
    algorithm: KeyAlgorithm,
    at: datetime,
    deepest: int,
) -> tuple[bytes, ...]:
    """Return a certificate of a profile and those above it, the root's last, all made up."""
    key = 1 + deepest % 2  # another than the next authority's
    if profile.self_signed:
        return (root_article(profile, values, algorithm=algorithm, at=at, key=key),)
    refused: errors.Refusal | None = None
    for above, strong in _issuers(catalogue, profile, algorithm) if deepest else ():
        try:
            named = {**values, "authority": f"Sample {above.name}", "path_len": ""}
            above_values = sample_values(above, above.constraints, named)
            chain = _made(catalogue, above, above_values, strong, at, deepest - 1)
            issuer = Issuer.from_certificate(NOBODY, chain[0], above=chain[1:], profile=above.name)
            if algorithm in subject_algorithms(profile, issuer):
                end = _end(profile, issuer, at)
                made = article(profile, issuer, values, algorithm=algorithm, at=at, not_after=end, key=key)
                return (made, *chain)
        except (errors.PolicyRefused, errors.MalformedRequest, errors.NotFound) as refusal:
            refused = refused or refusal
    raise refused or errors.PolicyRefused(
        "issued-by", f"no authority's profile may issue {profile.name} for {algorithm}"
    )


def _end(profile: Profile, issuer: Issuer, at: datetime) -> datetime | None:
    """Return the issuer's end for a certificate that would outlive it, where the profile allows less."""
    if not profile.shorter_validity:
        return None
    return issuer.not_after if profile.validity is None or at + profile.validity > issuer.not_after else None


def _issuers(
    catalogue: Catalogue, profile: Profile, algorithm: KeyAlgorithm
) -> Iterator[tuple[Profile, KeyAlgorithm]]:
    """Yield profiles of the authority that may be above, and algorithms its key may have."""
    names = profile.issued_by or (("root",) if profile.is_ca else ("issuing", "root"))
    for above in (catalogue.load(name) for name in names):
        # The subject's own algorithm first: that is how most hierarchies are made.
        for strong in sorted(above.subject_key_algorithms, key=lambda one: one is not algorithm):
            if profile.issuer_key_algorithms and strong not in profile.issuer_key_algorithms:
                continue
            if (
                profile.issuer_at_least_as_strong
                and ALGORITHMS[strong].strength < ALGORITHMS[algorithm].strength
            ):
                continue
            yield above, strong
