"""Scopes and licences of authorities: what one covers, and that no child reaches further (SPEC A1, A2)."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birthmark import errors
from birthmark.floor.authorities import (
    Authority,
    AuthorityKind,
    AuthorityStatus,
    Custody,
    Dimension,
    Scope,
    count_issuance,
    require_issuing,
    require_within,
)

NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
PARENT = Authority(
    id="graz",
    kind=AuthorityKind.INTERMEDIATE,
    issuer="root",
    custody=Custody.SERVICE,
    key_label="graz",
    profile="intermediate",
    der=b"",
    owner="quality",
    scope="product=CAR|VAN;site=graz",
    profiles="idevid vehicle",
    constraints="[]",
    quota=1000,
    ends_at=NOW + timedelta(days=365),
    status=AuthorityStatus.ACTIVE,
    issued=0,
    ceremony="c1",
)
CHILD = replace(
    PARENT,
    id="vans",
    kind=AuthorityKind.ISSUING,
    issuer="graz",
    scope="product=VAN;site=graz",
    profiles="vehicle",
    quota=10,
)
VALUES = st.text("abcXYZ019 .-_/,:", min_size=1, max_size=10)


@given(st.dictionaries(st.sampled_from(Dimension), st.frozensets(VALUES, min_size=1, max_size=4)))
def test_a_scope_is_read_back_as_it_was_written(limits: dict[Dimension, frozenset[str]]) -> None:
    assert Scope.parse(str(Scope(limits))) == Scope(limits)


@given(st.text(max_size=40))
def test_a_scope_is_read_or_refused(text: str) -> None:
    try:
        scope = Scope.parse(text)
    except errors.MalformedRequest:
        return
    assert Scope.parse(str(scope)) == scope


@pytest.mark.parametrize(
    "text", ["", "VAN", "product", "product=", "product=A|", "colour=red", "product=A;product=B", "site=*"]
)
def test_what_is_no_scope_is_refused(text: str) -> None:
    with pytest.raises(errors.MalformedRequest):
        Scope.parse(text)


def test_a_scope_covers_its_values_and_nothing_else() -> None:
    scope = Scope.parse("product=CAR|VAN;site=graz")
    scope.require_covers("graz", {Dimension.PRODUCT: ("VAN",), Dimension.SITE: ("graz",)})
    with pytest.raises(
        errors.NotPermitted, match="authority graz issues for product CAR or VAN, not for BUS"
    ):
        scope.require_covers("graz", {Dimension.PRODUCT: ("BUS",), Dimension.SITE: ("graz",)})
    with pytest.raises(errors.NotPermitted, match="not for linz"):
        scope.require_covers("graz", {Dimension.PRODUCT: ("CAR",), Dimension.SITE: ("graz", "linz")})
    with pytest.raises(errors.NotPermitted, match="and no site is named"):
        scope.require_covers("graz", {Dimension.PRODUCT: ("CAR",), Dimension.SITE: ("",)})
    Scope.parse("*").require_covers("any", {})


def test_a_child_inside_its_parent_is_allowed() -> None:
    require_within(CHILD, PARENT)
    require_within(CHILD, replace(PARENT, scope="*", profiles="*", quota=None))


@pytest.mark.parametrize(
    ("child", "match"),
    [
        (replace(CHILD, scope="product=BUS;site=graz"), "its product is BUS"),
        (replace(CHILD, scope="product=VAN"), r"its site is \*"),
        (replace(CHILD, scope="*"), r"its product is \*"),
        (replace(CHILD, ends_at=PARENT.ends_at + timedelta(seconds=1)), "may not issue after graz ends"),
        (replace(CHILD, quota=1001), "may not issue more than graz may: 1000"),
        (replace(CHILD, quota=None), "may not issue more than graz may: 1000"),
        (replace(CHILD, profiles="matter-dac"), "graz allows idevid vehicle"),
        (replace(CHILD, profiles="*"), "graz allows idevid vehicle"),
    ],
    ids=["product", "site", "any", "end", "quota", "no quota", "profile", "any profile"],
)
def test_a_child_that_reaches_further_is_refused(child: Authority, match: str) -> None:
    """SPEC A2."""
    with pytest.raises(errors.NotPermitted, match=match):
        require_within(child, PARENT)


@pytest.mark.parametrize("status", [s for s in AuthorityStatus if s is not AuthorityStatus.ACTIVE])
def test_only_a_live_authority_certifies_and_issues(status: AuthorityStatus) -> None:
    """SPEC A5."""
    with pytest.raises(errors.IllegalTransition, match=f"authority graz is {status}"):
        require_within(CHILD, replace(PARENT, status=status))
    with pytest.raises(errors.IllegalTransition, match=f"authority vans is {status}"):
        require_issuing(replace(CHILD, status=status), NOW)


def test_an_issuing_authority_certifies_no_authorities() -> None:
    with pytest.raises(errors.IllegalTransition, match="certifies devices, not authorities"):
        require_within(replace(CHILD, id="deep"), CHILD)


@pytest.mark.parametrize("custody", [Custody.OFFLINE, Custody.FOREIGN])
def test_an_authority_whose_key_is_elsewhere_does_not_issue_here(custody: Custody) -> None:
    """SPEC A4."""
    with pytest.raises(errors.NotPermitted, match=f"its key is {custody}"):
        require_issuing(replace(CHILD, custody=custody), NOW)


def test_an_authority_counts_what_it_issues_and_stops_at_its_quota_and_its_end() -> None:
    authority = replace(CHILD, quota=2)
    for issued in (1, 2):
        authority = count_issuance(authority, NOW)
        assert authority.issued == issued
    with pytest.raises(errors.QuotaExhausted, match="has issued all 2"):
        count_issuance(authority, NOW)
    with pytest.raises(errors.IllegalTransition, match="stopped issuing"):
        count_issuance(CHILD, CHILD.ends_at)


def test_an_authority_allows_what_its_licence_names() -> None:
    assert CHILD.allows("vehicle")
    assert not CHILD.allows("idevid")
    assert not CHILD.allows("vehic")
    assert replace(CHILD, profiles="*").allows("anything")
