"""What each OCSP client makes of responses, right and wrong ones.

The table says what they answer; where one is known to be wrong the reason stands beside it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from tests.peers.small import AT, DAY, HELD, STOLEN, WELL, Entity, Small, small
from tests.support.checkers import gnutls, nss, openssl, pyhanko
from tests.support.checkers.java import Java
from tests.support.checkers.serving import serving
from tests.support.checkers.values import Status, Verdict
from tests.support.lint import lint_ocsp_response

GOOD, REVOKED, UNKNOWN, UNDETERMINED = Status.GOOD, Status.REVOKED, Status.UNKNOWN, Status.UNDETERMINED


@dataclass(frozen=True)
class Case:
    """A responder and the device it is asked for."""

    serial: int
    unknown: bool = False
    at: datetime = AT
    by: Callable[[Small], Entity] = lambda pki: pki.responder


Party = Callable[[Case], Verdict]

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
RIGHT = {
    "well": GOOD,
    "stolen": REVOKED,
    "suspended": REVOKED,
    "unknown": UNKNOWN,
    "well, the issuer itself answers": GOOD,
    "well, out of date": UNDETERMINED,
    "stolen, out of date": UNDETERMINED,
    "well, another device answers": UNDETERMINED,
    "well, a stranger answers": UNDETERMINED,
}
# ocsptool verifies who signed and does not look at nextUpdate; GnuTLS itself does, in a TLS handshake.
_NO_DATE = {"well, out of date": GOOD, "stolen, out of date": REVOKED}
DIFFERENT: dict[str, dict[str, Status]] = {
    "gnutls": _NO_DATE,
    "gnutls, offline": _NO_DATE,
    "java": {},
    # Revoked stays revoked for it, however old the answer.
    "nss": {"stolen, out of date": REVOKED},
    # Told whom to believe it believes any certificate below its root.
    "nss, told whom to ask": {"stolen, out of date": REVOKED, "well, another device answers": GOOD},
    "openssl": {},
    "openssl, GET": {},
    "openssl, offline": {},
    # A status that is unknown is for it one that was not told.
    "pyhanko": {"unknown": UNDETERMINED},
}
SAYS_WHY = frozenset({"java", "openssl", "openssl, GET", "openssl, offline", "pyhanko"})


def response(case: Case) -> bytes:
    """A response made beforehand."""
    pki = small()
    return pki.response(case.serial, unknown=case.unknown, at=case.at, by=case.by(pki))


def asked(case: Case, ask: Callable[[str], Verdict]) -> Verdict:
    """What a client says that asks a responder at a URL."""
    pki = small()
    with serving(
        lambda request: pki.answer(request, unknown=case.unknown, at=case.at, by=case.by(pki))
    ) as url:
        return ask(url)


@pytest.fixture
def party(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Party:
    """The relying party that the test is named after."""
    pki = small()

    def folder() -> Path:
        return tmp_path_factory.mktemp("party")

    parties: dict[str, Party] = {
        "gnutls": lambda case: asked(
            case, lambda url: gnutls.ocsp_verdict(pki.chain(case.serial), url, folder(), at=AT)
        ),
        "gnutls, offline": lambda case: gnutls.ocsp_offline_verdict(
            pki.chain(case.serial), response(case), folder(), at=AT
        ),
        "nss": lambda case: asked(
            case, lambda url: nss.ocsp_verdict(pki.naming(case.serial, url), folder(), at=AT)
        ),
        "nss, told whom to ask": lambda case: asked(
            case,
            lambda url: nss.ocsp_verdict(
                pki.chain(case.serial), folder(), at=AT, url=url, responder=case.by(pki).der
            ),
        ),
        "openssl": lambda case: asked(
            case, lambda url: openssl.ocsp_verdict(pki.chain(case.serial), url, folder(), at=AT, nonce=True)
        ),
        "openssl, GET": lambda case: asked(
            case, lambda url: openssl.ocsp_get_verdict(pki.chain(case.serial), url, folder(), at=AT)
        ),
        "openssl, offline": lambda case: openssl.ocsp_offline_verdict(
            pki.chain(case.serial), response(case), folder(), at=AT
        ),
        "pyhanko": lambda case: pyhanko.ocsp_verdict(pki.chain(case.serial), response(case), at=AT),
    }
    if request.param == "java":
        jvm: Java = request.getfixturevalue("jvm")
        return lambda case: asked(case, lambda url: jvm.ocsp_verdict(pki.chain(case.serial), url, at=AT))
    return parties[request.param]


@pytest.mark.parametrize(("party", "name"), [(name, name) for name in DIFFERENT], indirect=["party"])
def test_what_it_makes_of_a_response(party: Party, name: str) -> None:
    verdicts = {case: party(described) for case, described in CASES.items()}
    assert {case: verdict.status for case, verdict in verdicts.items()} == RIGHT | DIFFERENT[name]
    if name in SAYS_WHY:
        assert verdicts["stolen"].reason == "keyCompromise"
        assert verdicts["suspended"].reason == "certificateHold"


def test_a_response_for_another_device_says_nothing(tmp_path: Path) -> None:
    pki = small()
    other = pki.response(WELL)
    chain = pki.chain(STOLEN)
    assert openssl.ocsp_offline_verdict(chain, other, tmp_path, at=AT).status is UNDETERMINED
    assert pyhanko.ocsp_verdict(chain, other, at=AT).status is UNDETERMINED


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
