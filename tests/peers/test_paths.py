"""Each relying party accepts a path that is right and refuses those that are wrong."""

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.peers.small import AT, WELL, Small, small
from tests.support.checkers import gnutls, openssl, pyhanko, strongswan
from tests.support.checkers.java import Java
from tests.support.checkers.values import Chain, Status, Verdict

Party = Callable[[Chain, datetime], Verdict]

# Known to be wrong: pki loads no plugin that looks at pathLenConstraint (RFC 5280 section 6.1.4 (l) and (m)).
LAX = {("strongswan", "an authority too many")}
PARTIES = ("gnutls", "java", "openssl", "pyhanko", "strongswan")
WRONG: dict[str, Callable[[Small], Chain]] = {
    "another root of the same name": lambda pki: pki.under_stranger(WELL),
    "a signature that is not its issuer's": Small.forged,
    "an issuer that is no authority": Small.by_a_device,
    "an authority too many": Small.too_long,
}


@pytest.fixture
def party(request: pytest.FixtureRequest, tmp_path: Path) -> Party:
    """The relying party that the test is named after."""
    match request.param:
        case "gnutls":
            return lambda chain, at: gnutls.path_verdict(chain, tmp_path, at=at)
        case "openssl":
            return lambda chain, at: openssl.path_verdict(chain, tmp_path, at=at)
        case "pyhanko":
            return lambda chain, at: pyhanko.path_verdict(chain, at=at)
        case "strongswan":
            return lambda chain, at: strongswan.path_verdict(chain, tmp_path, at=at)
    jvm: Java = request.getfixturevalue("jvm")
    return lambda chain, at: jvm.path_verdict(chain, at=at)


@pytest.mark.parametrize("party", PARTIES, indirect=True)
def test_a_right_path_is_accepted(party: Party) -> None:
    verdict = party(small().chain(WELL), AT)
    assert verdict.status is Status.GOOD, verdict.said


@pytest.mark.parametrize(
    ("party", "wrong"),
    [(name, wrong) for name in PARTIES for wrong in WRONG],
    indirect=["party"],
)
def test_a_wrong_path_is_refused(party: Party, wrong: str, request: pytest.FixtureRequest) -> None:
    verdict = party(WRONG[wrong](small()), AT)
    name = request.node.callspec.params["party"]
    expected = Status.GOOD if (name, wrong) in LAX else Status.REFUSED
    assert verdict.status is expected, verdict.said


@pytest.mark.parametrize("party", PARTIES, indirect=True)
@pytest.mark.parametrize("days", [-200, 400], ids=["too early", "too late"])
def test_a_path_out_of_its_time_is_refused(party: Party, days: int) -> None:
    verdict = party(small().chain(WELL), AT + timedelta(days=days))
    assert verdict.status is Status.REFUSED, verdict.said
