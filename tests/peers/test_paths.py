"""Each relying party accepts a path that is right and refuses those that are wrong."""

from collections.abc import Callable
from datetime import timedelta

import pytest

from tests.peers.parties import PATH_PARTIES, Desk
from tests.peers.small import AT, WELL, Small, small
from tests.support.checkers.values import Chain, Status

WRONG: dict[str, Callable[[Small], Chain]] = {
    "another root of the same name": lambda pki: pki.under_stranger(WELL),
    "a signature that is not its issuer's": Small.forged,
    "an issuer that is no authority": Small.by_a_device,
    "an authority too many": Small.too_long,
}
# Known to be wrong: pki loads no plugin that looks at pathLenConstraint (RFC 5280 section 6.1.4 (l) and (m)).
LAX = {("strongswan", "an authority too many")}


@pytest.mark.parametrize("name", PATH_PARTIES)
def test_it_accepts_a_right_path(name: str, desk: Desk) -> None:
    verdict = PATH_PARTIES[name](desk, small().chain(WELL), AT)
    assert verdict.status is Status.GOOD, verdict.said


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", PATH_PARTIES)
def test_it_refuses_a_wrong_path(name: str, wrong: str, desk: Desk) -> None:
    verdict = PATH_PARTIES[name](desk, WRONG[wrong](small()), AT)
    expected = Status.GOOD if (name, wrong) in LAX else Status.REFUSED
    assert verdict.status is expected, verdict.said


@pytest.mark.parametrize("days", [-200, 400], ids=["too early", "too late"])
@pytest.mark.parametrize("name", PATH_PARTIES)
def test_it_refuses_a_path_out_of_its_time(name: str, days: int, desk: Desk) -> None:
    verdict = PATH_PARTIES[name](desk, small().chain(WELL), AT + timedelta(days=days))
    assert verdict.status is Status.REFUSED, verdict.said
