"""What each relying party makes of CRLs, right and wrong ones, that Birthmark had no hand in."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.peers.parties import CRL_PARTIES, CRL_PARTIES_THAT_SAY_WHY, CRLS_DIFFERENT, CRLS_RIGHT, Desk
from tests.peers.small import AT, DAY, HELD, STOLEN, WELL, Small, small
from tests.support.checkers import gnutls, openssl
from tests.support.checkers.java import Java
from tests.support.checkers.pyhanko import Pyhanko
from tests.support.checkers.values import Status
from tests.support.lint import lint_crl

GOOD, REVOKED = Status.GOOD, Status.REVOKED

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


@pytest.mark.parametrize("name", CRL_PARTIES)
def test_what_it_makes_of_a_list(name: str, desk: Desk) -> None:
    pki = small()
    verdicts = {
        case: CRL_PARTIES[name](desk, pki.chain(serial), made(pki)) for case, (serial, made) in CASES.items()
    }
    expected = {**CRLS_RIGHT, **CRLS_DIFFERENT[name]}
    assert {case: verdict.status for case, verdict in verdicts.items()} == expected
    if name in CRL_PARTIES_THAT_SAY_WHY:
        assert verdicts["stolen, whole list"].reason == "keyCompromise"
        assert verdicts["suspended, whole list"].reason == "certificateHold"


@pytest.mark.parametrize(("deltas", "expected"), [(True, REVOKED), (False, GOOD)])
def test_openssl_reads_deltas_when_told_to(tmp_path: Path, *, deltas: bool, expected: Status) -> None:
    pki = small()
    lists = [pki.crl(revoked={}, delta=True), pki.crl(base=7)]
    verdict = openssl.crl_verdict(pki.chain(STOLEN), lists, tmp_path, at=AT, deltas=deltas)
    assert verdict.status is expected, verdict.said


def test_pyhanko_reads_deltas(validator: Pyhanko) -> None:
    pki = small()
    lists = [pki.crl(revoked={}, delta=True), pki.crl(base=7)]
    assert validator.crl_verdict(pki.chain(STOLEN), lists, at=AT).status is REVOKED
    assert validator.crl_verdict(pki.chain(WELL), lists, at=AT).status is GOOD


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
