"""What each relying party makes of CRLs, right and wrong ones.

The table says what they answer, not what they should: where one is known to be wrong the reason stands beside
it. A service that offers CRLs has to live with all of them.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.peers.small import AT, DAY, HELD, STOLEN, WELL, Small, small
from tests.support.checkers import gnutls, openssl, pyhanko, strongswan
from tests.support.checkers.java import Java
from tests.support.checkers.values import Chain, Status, Verdict
from tests.support.lint import lint_crl

Party = Callable[[Chain, Sequence[bytes]], Verdict]

GOOD, REVOKED, UNDETERMINED = Status.GOOD, Status.REVOKED, Status.UNDETERMINED

CASES: dict[str, tuple[int, Callable[[Small], list[bytes]]]] = {
    "well, whole list": (WELL, lambda pki: [pki.crl()]),
    "stolen, whole list": (STOLEN, lambda pki: [pki.crl()]),
    "suspended, whole list": (HELD, lambda pki: [pki.crl()]),
    "well, its shard": (WELL, lambda pki: [pki.crl(shard=1)]),
    "stolen, its shard": (STOLEN, lambda pki: [pki.crl(shard=0)]),
    "suspended, its shard": (HELD, lambda pki: [pki.crl(shard=1)]),
    "well, another shard": (WELL, lambda pki: [pki.crl(shard=0)]),
    "stolen, another shard": (STOLEN, lambda pki: [pki.crl(shard=1)]),
    "stolen, both shards": (STOLEN, lambda pki: [pki.crl(shard=0), pki.crl(shard=1)]),
    "suspended, both shards": (HELD, lambda pki: [pki.crl(shard=0), pki.crl(shard=1)]),
    "well, out of date": (WELL, lambda pki: [pki.crl(at=AT - 9 * DAY)]),
    "stolen, out of date": (STOLEN, lambda pki: [pki.crl(at=AT - 9 * DAY)]),
    "well, signed by a stranger": (WELL, lambda pki: [pki.crl(by=pki.stranger)]),
    "stolen, signed by a stranger": (STOLEN, lambda pki: [pki.crl(by=pki.stranger)]),
    "well, none": (WELL, lambda pki: []),
}
RIGHT = {
    "well, whole list": GOOD,
    "stolen, whole list": REVOKED,
    "suspended, whole list": REVOKED,
    "well, its shard": GOOD,
    "stolen, its shard": REVOKED,
    "suspended, its shard": REVOKED,
    "well, another shard": UNDETERMINED,
    "stolen, another shard": UNDETERMINED,
    "stolen, both shards": REVOKED,
    "suspended, both shards": REVOKED,
    "well, out of date": UNDETERMINED,
    "stolen, out of date": UNDETERMINED,
    "well, signed by a stranger": UNDETERMINED,
    "stolen, signed by a stranger": UNDETERMINED,
    "well, none": UNDETERMINED,
}
DIFFERENT: dict[str, dict[str, Status]] = {
    # certtool --verify reads no issuingDistributionPoint, keeps one list an issuer (the last with a number),
    # asks for no list and looks neither at the date nor at the signature of one; crl_signed is what asks for
    # those two.
    "gnutls": {
        "well, another shard": GOOD,
        "stolen, another shard": GOOD,
        "stolen, both shards": GOOD,
        "well, out of date": GOOD,
        "stolen, out of date": REVOKED,
        "well, signed by a stranger": GOOD,
        "stolen, signed by a stranger": REVOKED,
        "well, none": GOOD,
    },
    "java": {},
    # It complains of the date and says revoked all the same.
    "openssl": {"stolen, out of date": REVOKED},
    "pyhanko": {},
    # pki --verify passes over issuingDistributionPoint though it is critical: a revoked certificate is good
    # by another's shard, and of two shards with one number only the first is looked at.
    "strongswan": {
        "well, another shard": GOOD,
        "stolen, another shard": GOOD,
        "suspended, both shards": GOOD,
        "stolen, out of date": REVOKED,
    },
}
SAYS_WHY = frozenset({"java", "pyhanko", "strongswan"})


@pytest.fixture
def party(request: pytest.FixtureRequest, tmp_path: Path) -> Party:
    """The relying party that the test is named after."""
    match request.param:
        case "gnutls":
            return lambda chain, crls: gnutls.crl_verdict(chain, crls, tmp_path, at=AT)
        case "openssl":
            return lambda chain, crls: openssl.crl_verdict(chain, crls, tmp_path, at=AT)
        case "pyhanko":
            return lambda chain, crls: pyhanko.crl_verdict(chain, crls, at=AT)
        case "strongswan":
            return lambda chain, crls: strongswan.crl_verdict(chain, crls, tmp_path, at=AT)
    jvm: Java = request.getfixturevalue("jvm")
    return lambda chain, crls: jvm.crl_verdict(chain, crls, at=AT)


@pytest.mark.parametrize(("party", "name"), [(name, name) for name in DIFFERENT], indirect=["party"])
def test_what_it_makes_of_a_list(party: Party, name: str) -> None:
    pki = small()
    verdicts = {case: party(pki.chain(serial), made(pki)) for case, (serial, made) in CASES.items()}
    assert {case: verdict.status for case, verdict in verdicts.items()} == RIGHT | DIFFERENT[name]
    if name in SAYS_WHY:
        assert verdicts["stolen, whole list"].reason == "keyCompromise"
        assert verdicts["suspended, whole list"].reason == "certificateHold"


@pytest.mark.parametrize(("deltas", "expected"), [(True, REVOKED), (False, GOOD)])
def test_openssl_reads_deltas_when_told_to(tmp_path: Path, *, deltas: bool, expected: Status) -> None:
    pki = small()
    lists = [pki.crl(revoked={}, delta=True), pki.crl(base=7)]
    verdict = openssl.crl_verdict(pki.chain(STOLEN), lists, tmp_path, at=AT, deltas=deltas)
    assert verdict.status is expected, verdict.said


def test_pyhanko_reads_deltas() -> None:
    pki = small()
    lists = [pki.crl(revoked={}, delta=True), pki.crl(base=7)]
    assert pyhanko.crl_verdict(pki.chain(STOLEN), lists, at=AT).status is REVOKED
    assert pyhanko.crl_verdict(pki.chain(WELL), lists, at=AT).status is GOOD


def test_java_passes_deltas_over(jvm: Java) -> None:
    """Known to be wrong, with lists from a collection: revoked only in the delta is good."""
    pki = small()
    lists = [pki.crl(revoked={}, delta=True), pki.crl(base=7)]
    assert jvm.crl_verdict(pki.chain(STOLEN), lists, at=AT).status is GOOD


def test_certtool_tells_whether_a_list_is_signed_and_in_date(tmp_path: Path) -> None:
    pki = small()
    issuer = pki.issuing.der
    for right in (pki.crl(), pki.crl(shard=0)):
        verdict = gnutls.crl_signed(right, issuer, tmp_path, at=AT)
        assert verdict.status is GOOD, verdict.said
    for wrong in (pki.crl(by=pki.stranger), pki.crl(at=AT - 9 * DAY)):
        assert gnutls.crl_signed(wrong, issuer, tmp_path, at=AT).status is Status.REFUSED


def test_pkilint_has_nothing_to_say_of_a_right_list_and_something_of_a_wrong_one() -> None:
    pki = small()
    assert lint_crl(pki.crl()) == []
    assert lint_crl(pki.crl(shard=0)) == []
    codes = {code for _, code in lint_crl(pki.crl(numbered=False))}
    assert "pkix.crl_number_missing" in codes
