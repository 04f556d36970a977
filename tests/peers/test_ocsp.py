"""What each OCSP client makes of responses, right and wrong ones, that Birthmark had no hand in."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from tests.peers.parties import (
    OCSP_DIFFERENT,
    OCSP_PARTIES,
    OCSP_PARTIES_THAT_SAY_WHY,
    OCSP_RIGHT,
    Desk,
    Question,
)
from tests.peers.small import AT, DAY, HELD, STOLEN, WELL, Entity, Small, small
from tests.support.checkers import openssl
from tests.support.checkers.pyhanko import Pyhanko
from tests.support.checkers.serving import serving
from tests.support.checkers.values import Status, Verdict
from tests.support.lint import lint_ocsp_response

UNDETERMINED = Status.UNDETERMINED


@dataclass(frozen=True)
class Case:
    """A device that is asked for, and a responder."""

    serial: int
    unknown: bool = False
    at: datetime = AT
    by: Callable[[Small], Entity] = lambda pki: pki.responder

    @property
    def question(self) -> Question:
        pki, signer = small(), self.by(small())
        return Question(
            chain=lambda url: pki.naming(self.serial, url) if url else pki.chain(self.serial),
            answer=lambda request: pki.answer(request, unknown=self.unknown, at=self.at, by=signer),
            beforehand=lambda: pki.response(self.serial, unknown=self.unknown, at=self.at, by=signer),
            signer=signer.der,
        )


CASES = {
    "well": Case(WELL),
    "stolen": Case(STOLEN),
    "suspended": Case(HELD),
    "unknown": Case(STOLEN, unknown=True),
    "well, the issuer itself answers": Case(WELL, by=lambda pki: pki.issuing),
    "well, out of date": Case(WELL, at=AT - 9 * DAY),
    "stolen, out of date": Case(STOLEN, at=AT - 9 * DAY),
    "well, another device answers": Case(WELL, by=lambda pki: pki.impostor),
    "well, a stranger answers": Case(WELL, by=lambda pki: pki.stranger),
}


@pytest.mark.parametrize("name", OCSP_PARTIES)
def test_what_it_makes_of_a_response(name: str, desk: Desk) -> None:
    verdicts = {case: OCSP_PARTIES[name](desk, described.question) for case, described in CASES.items()}
    expected = {**OCSP_RIGHT, **OCSP_DIFFERENT[name]}
    assert {case: verdict.status for case, verdict in verdicts.items()} == expected
    if name in OCSP_PARTIES_THAT_SAY_WHY:
        assert verdicts["stolen"].reason == "keyCompromise"
        assert verdicts["suspended"].reason == "certificateHold"


def test_a_response_for_another_device_says_nothing(tmp_path: Path, validator: Pyhanko) -> None:
    pki = small()
    other = pki.response(WELL)
    chain = pki.chain(STOLEN)
    assert openssl.ocsp_offline_verdict(chain, other, tmp_path, at=AT).status is UNDETERMINED
    assert validator.ocsp_verdict(chain, other, at=AT).status is UNDETERMINED


def test_openssl_takes_a_response_made_beforehand_and_none_with_the_nonce_of_another(tmp_path: Path) -> None:
    pki = small()

    def verdict(response: bytes) -> Verdict:
        with serving(lambda request: response) as url:
            return openssl.ocsp_verdict(pki.chain(WELL), url, tmp_path, at=AT, nonce=True)

    beforehand = verdict(pki.response(WELL))
    assert beforehand.good
    assert "WARNING: no nonce in response" in beforehand.said
    of_another = verdict(pki.response(WELL, nonce=x509.OCSPNonce(b"n" * 16)))
    assert of_another.status is UNDETERMINED
    assert "Nonce Verify error" in of_another.said


def test_pkilint_has_nothing_to_say_of_a_right_response_and_something_of_a_wrong_one() -> None:
    pki = small()
    assert lint_ocsp_response(pki.response(STOLEN)) == []
    assert lint_ocsp_response(pki.response(WELL, algorithm=hashes.SHA256())) == []
    # responseStatus malformedRequest, with what only a successful response has.
    right = pki.response(WELL)
    assert right[4:7] == b"\x0a\x01\x00"
    wrong = right[:6] + b"\x01" + right[7:]
    assert ("ERROR", "pkix.ocsp_error_response_has_response_body") in lint_ocsp_response(wrong)
