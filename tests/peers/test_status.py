"""What relying parties make of our CRLs and OCSP responses (SPEC F2, F3, F5).

The verdicts are those of ``parties``: every party says of ours what it says of a list or response that
Birthmark had no hand in, right where it is right and wrong where it is known to be wrong.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import pytest

from birthmark.pki.keys import KeyAlgorithm
from tests.peers.ours import Ours, ours
from tests.peers.parties import (
    CRL_PARTIES,
    CRL_PARTIES_THAT_SAY_WHY,
    CRLS_DIFFERENT,
    CRLS_RIGHT,
    OCSP_DIFFERENT,
    OCSP_PARTIES,
    OCSP_PARTIES_THAT_SAY_WHY,
    OCSP_RIGHT,
    Desk,
    Question,
)
from tests.peers.small import AT, DAY, HELD, STOLEN, WELL
from tests.support.checkers import gnutls, openssl
from tests.support.checkers.values import Status
from tests.support.lint import lint_crl, lint_ocsp_response

GOOD, REVOKED, REFUSED = Status.GOOD, Status.REVOKED, Status.REFUSED

CRL_CASES: dict[str, tuple[int, Callable[[Ours], list[bytes]]]] = {
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
    "well, signed by a stranger": (WELL, lambda pki: [pki.crl(stranger=True)]),
    "stolen, signed by a stranger": (STOLEN, lambda pki: [pki.crl(stranger=True)]),
    "well, none": (WELL, lambda pki: []),
}


@dataclass(frozen=True)
class Case:
    """A device that is asked for, and how our responder answers."""

    serial: int
    unknown: bool = False
    at: datetime = AT
    stranger: bool = False

    def question(self, pki: Ours) -> Question:
        return Question(
            chain=lambda url: pki.chain(self.serial, url),
            answer=lambda request: pki.answer(
                request, unknown=self.unknown, at=self.at, stranger=self.stranger
            ),
            beforehand=lambda: pki.beforehand(
                self.serial, unknown=self.unknown, at=self.at, stranger=self.stranger
            ),
            signer=pki.responder_der,
        )


OCSP_CASES = {
    "well": Case(WELL),
    "stolen": Case(STOLEN),
    "suspended": Case(HELD),
    "unknown": Case(STOLEN, unknown=True),
    "well, out of date": Case(WELL, at=AT - 9 * DAY),
    "stolen, out of date": Case(STOLEN, at=AT - 9 * DAY),
    "well, a stranger answers": Case(WELL, stranger=True),
}


@pytest.mark.parametrize("name", CRL_PARTIES)
def test_our_lists_tell_it_what_they_should(name: str, desk: Desk) -> None:
    pki = ours()
    verdicts = {
        case: CRL_PARTIES[name](desk, pki.chain(serial), made(pki))
        for case, (serial, made) in CRL_CASES.items()
    }
    expected = {**CRLS_RIGHT, **CRLS_DIFFERENT[name]}
    assert {case: verdict.status for case, verdict in verdicts.items()} == expected
    if name in CRL_PARTIES_THAT_SAY_WHY:
        assert verdicts["stolen, whole list"].reason == "keyCompromise"
        assert verdicts["suspended, whole list"].reason == "certificateHold"


@pytest.mark.parametrize("name", OCSP_PARTIES)
def test_our_responses_tell_it_what_they_should(name: str, desk: Desk) -> None:
    pki = ours()
    verdicts = {case: OCSP_PARTIES[name](desk, made.question(pki)) for case, made in OCSP_CASES.items()}
    expected = {case: {**OCSP_RIGHT, **OCSP_DIFFERENT[name]}[case] for case in OCSP_CASES}
    assert {case: verdict.status for case, verdict in verdicts.items()} == expected
    if name in OCSP_PARTIES_THAT_SAY_WHY:
        assert verdicts["stolen"].reason == "keyCompromise"
        assert verdicts["suspended"].reason == "certificateHold"


# NSS 3.87 takes no certificate with an Edwards curve in it.
NO_EDWARDS = frozenset({"nss", "nss, told whom to ask"})
CURVES = (KeyAlgorithm.EC_P384, KeyAlgorithm.EC_P521, KeyAlgorithm.ED25519, KeyAlgorithm.ED448)


@pytest.mark.parametrize("algorithm", CURVES)
def test_they_read_what_is_signed_with_other_curves(algorithm: KeyAlgorithm, desk: Desk) -> None:
    pki = ours(algorithm)
    said: dict[str, list[Status]] = {}
    for name, listed in CRL_PARTIES.items():
        said[name] = [listed(desk, pki.chain(serial), [pki.crl()]).status for serial in (WELL, STOLEN)]
        assert said[name] == [GOOD, REVOKED], name
    edwards = algorithm in {KeyAlgorithm.ED25519, KeyAlgorithm.ED448}
    for name, answered in OCSP_PARTIES.items():
        said[name] = [answered(desk, Case(serial).question(pki)).status for serial in (WELL, STOLEN)]
        blind = edwards and name in NO_EDWARDS
        assert said[name] == ([REFUSED, REFUSED] if blind else [GOOD, REVOKED]), name


def test_deltas_tell_openssl_and_pyhanko_of_what_happened_since(desk: Desk) -> None:
    """Java passes them over, and is not alone: deltas can only be offered beside lists."""
    pki = ours()
    lists = [pki.crl(revoked=(), delta=True), pki.crl(at=AT + DAY / 8, base=AT)]
    for serial, expected in ((STOLEN, REVOKED), (HELD, REVOKED), (WELL, GOOD)):
        chain = pki.chain(serial)
        verdict = openssl.crl_verdict(chain, lists, desk.folder(), at=AT, deltas=True)
        assert verdict.status is expected, verdict.said
        assert desk.pyhanko.crl_verdict(chain, lists, at=AT).status is expected
    assert desk.jvm.crl_verdict(pki.chain(STOLEN), lists, at=AT).status is GOOD


@pytest.mark.parametrize("name", ["gnutls", "java", "nss", "openssl", "openssl, GET"])
def test_our_answer_about_anothers_certificate_tells_no_status(name: str, desk: Desk) -> None:
    """It is "unauthorized", without a signature (RFC 5019 section 2.2.3)."""
    pki, other = ours(), ours(KeyAlgorithm.EC_P384)
    asked = Question(
        chain=lambda url: other.chain(WELL, url),
        answer=pki.answer,
        beforehand=lambda: pki.beforehand(WELL),
        signer=pki.responder_der,
    )
    verdict = OCSP_PARTIES[name](desk, asked)
    assert verdict.status is Status.UNDETERMINED, verdict.said


def test_certtool_finds_our_lists_signed_and_in_date(desk: Desk) -> None:
    pki = ours()
    issuer = pki.issuer.certificate
    assert issuer is not None
    for right in (pki.crl(), pki.crl(shard=0), pki.crl(revoked=())):
        verdict = gnutls.crl_signed(right, issuer, desk.folder(), at=AT)
        assert verdict.status is GOOD, verdict.said
    for wrong in (pki.crl(stranger=True), pki.crl(at=AT - 9 * DAY)):
        assert gnutls.crl_signed(wrong, issuer, desk.folder(), at=AT).status is REFUSED


def test_pkilint_finds_nothing_in_our_lists_and_responses() -> None:
    pki = ours()
    lists = {
        "whole": pki.crl(),
        "of nobody": pki.crl(revoked=()),
        "shard": pki.crl(shard=1),
        "with deltas": pki.crl(delta=True),
        "delta": pki.crl(at=AT + DAY / 8, base=AT),
    }
    found = {name: lint_crl(octets) for name, octets in lists.items()}
    assert not any(found.values()), found
    responses = {
        "good": pki.beforehand(WELL),
        "revoked": pki.beforehand(STOLEN),
        "suspended": pki.beforehand(HELD),
        "unknown": pki.beforehand(WELL, unknown=True),
    }
    found = {name: lint_ocsp_response(octets) for name, octets in responses.items()}
    assert not any(found.values()), found
