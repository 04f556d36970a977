"""Every refusal has its place in HTTP, and a fault of ours says nothing about itself."""

import pytest

from birthmark import errors
from birthmark.edge.http.problems import HTTP_STATUS, MEDIA_TYPE, problem

KINDS = errors.Refusal.__subclasses__()


def made(kind: type[errors.Refusal]) -> errors.Refusal:
    if kind is errors.PolicyRefused:
        return errors.PolicyRefused("some-rule", "this is why")
    return kind("this is why")


def test_the_table_covers_every_refusal_and_nothing_else() -> None:
    assert set(HTTP_STATUS) == set(KINDS)
    assert MEDIA_TYPE == "application/problem+json"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.code)
def test_a_refusal_is_told_in_full(kind: type[errors.Refusal]) -> None:
    told = problem(made(kind), "0123")
    assert told.status == HTTP_STATUS[kind]
    assert told.type == f"urn:birthmark:problem:{kind.code}"
    assert (told.code, told.detail, told.retryable) == (kind.code, "this is why", kind.retryable)
    assert told.instance == "urn:birthmark:instance:0123"
    assert told.rule == ("some-rule" if kind is errors.PolicyRefused else None)


def test_only_what_may_succeed_later_is_answered_503_or_if_it_came_too_fast_429() -> None:
    later = {kind: status for kind, status in HTTP_STATUS.items() if status in {429, 503}}
    assert set(later) == {kind for kind in KINDS if kind.retryable}
    assert {kind for kind, status in later.items() if status == 429} == {errors.RateLimited}


def test_codes_are_all_different() -> None:
    assert len({kind.code for kind in KINDS}) == len(KINDS)


def test_a_kind_of_a_kind_is_told_as_its_parent() -> None:
    class Closer(errors.IllegalTransition):
        """A refusal somebody made more precise."""

    assert problem(Closer("no"), "1").status == HTTP_STATUS[errors.IllegalTransition]


@pytest.mark.parametrize(
    "fault", [ValueError("the key is 4711"), KeyError("s3cr3t"), RuntimeError("x")], ids=repr
)
def test_anything_else_is_internal_without_detail(fault: Exception) -> None:
    told = problem(fault, "0123")
    assert (told.status, told.code, told.retryable) == (500, "internal", False)
    assert str(fault) not in told.model_dump_json()
