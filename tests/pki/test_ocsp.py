"""OCSP responses, as the library writes them and as OpenSSL, GnuTLS and pkilint judge them (SPEC F3, F5)."""

import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp as library
from hypothesis import given, settings
from hypothesis import strategies as st

from birthmark.errors import MalformedRequest, PolicyRefused
from birthmark.pki import der, ocsp_lint, profiles
from birthmark.pki.algorithms import ALGORITHMS
from birthmark.pki.certificates import Certificate, to_pem
from birthmark.pki.keys import KeyAlgorithm
from birthmark.pki.ocsp import (
    CertID,
    CertIDHash,
    OCSPPermit,
    Responder,
    ResponseStatus,
    SingleResponse,
    TBSResponse,
    cert_id,
    decode_request,
    error_response,
    issuer_ids,
    permit,
    response_data,
    sign_response,
)
from birthmark.pki.revocation import CertStatus, ReasonCode
from tests.pki.responders import ENDS, RESPONDER_KEY, responder, responder_der
from tests.pki.sample import FOUNDED, NOW, Realm, private_key, realm, spki
from tests.pki.test_ocsp_request import HASHES, kinds, nonces
from tests.support.lint import lint_ocsp_response
from tests.support.programs import need

P256 = KeyAlgorithm.EC_P256
ALL_KINDS = (P256, KeyAlgorithm.EC_P384, KeyAlgorithm.ED25519)
OTHER_KINDS = (KeyAlgorithm.EC_P521, KeyAlgorithm.ED448, KeyAlgorithm.RSA_3072)
HOUR = timedelta(hours=1)
OURS = realm(P256)
STATUS = {
    CertStatus.GOOD: library.OCSPCertStatus.GOOD,
    CertStatus.REVOKED: library.OCSPCertStatus.REVOKED,
    CertStatus.UNKNOWN: library.OCSPCertStatus.UNKNOWN,
}


def ids_of(ours: Realm, kind: CertIDHash = CertIDHash.SHA1) -> tuple[CertIDHash, bytes, bytes]:
    issuing = Certificate.from_der(ours.issuing_der)
    ids = issuer_ids(issuing.subject_name, issuing.subject_public_key_info)
    return next(found for found in ids if found[0] is kind)


def said(asked: CertID, status: CertStatus = CertStatus.GOOD) -> SingleResponse:
    revoked = status is CertStatus.REVOKED
    return SingleResponse(
        cert_id=asked,
        status=status,
        this_update=NOW,
        next_update=NOW + HOUR,
        revoked_at=NOW - HOUR if revoked else None,
        reason=ReasonCode.KEY_COMPROMISE if revoked else ReasonCode.UNSPECIFIED,
    )


def answer(ours: Realm, octets: bytes, *statuses: CertStatus, by_name: bool = False) -> bytes:
    """What the responder answers, for years: OpenSSL judges the times of an answer by its own clock."""
    request = decode_request(octets)
    who = responder(ours, by_name=by_name)
    responses = [
        replace(said(asked, status), this_update=FOUNDED, next_update=ENDS)
        for asked, status in zip(request.cert_ids, statuses, strict=True)
    ]
    tbs = response_data(who, responses, produced_at=NOW, nonce=request.nonce)
    return sign_response(permit(tbs), ours.sign)


def presigned(ours: Realm, status: CertStatus, *, by_name: bool = False) -> bytes:
    """A response that nobody has asked for yet."""
    asked = said(cert_id(ids_of(ours), 7), status)
    tbs = response_data(responder(ours, by_name=by_name), [asked], produced_at=NOW)
    return sign_response(permit(tbs), ours.sign)


# --- against the library ---


@settings(max_examples=100)
@given(
    st.sampled_from(ALL_KINDS),
    st.booleans(),
    kinds,
    st.integers(1, (1 << 159) - 1),
    st.sampled_from(CertStatus),
    st.sampled_from(sorted(set(ReasonCode) - {ReasonCode.REMOVE_FROM_CRL, ReasonCode.AA_COMPROMISE})),
    nonces,
)
def test_a_response_is_octet_for_octet_the_librarys(
    algorithm: KeyAlgorithm,
    by_name: bool,  # noqa: FBT001  # a case, not a switch
    kind: CertIDHash,
    serial: int,
    status: CertStatus,
    reason: ReasonCode,
    nonce: bytes | None,
) -> None:
    ours = realm(algorithm)
    who = responder(ours, by_name=by_name)
    single = said(cert_id(ids_of(ours, kind), serial), status)
    single = replace(single, this_update=FOUNDED, next_update=ENDS)
    flag = None
    if status is CertStatus.REVOKED:
        single = replace(single, reason=reason, revoked_at=FOUNDED)
        flag = None if reason is ReasonCode.UNSPECIFIED else x509.ReasonFlags(reason.value)
    certificate = x509.load_der_x509_certificate(responder_der(ours))
    encoding = library.OCSPResponderEncoding
    builder = (
        library.OCSPResponseBuilder()
        .add_response_by_hash(
            *single.cert_id.issuer[1:], serial, HASHES[kind], STATUS[status],
            single.this_update, single.next_update, single.revoked_at, flag,
        )
        .responder_id(encoding.NAME if by_name else encoding.HASH, certificate)
        .certificates([certificate])
    )  # fmt: skip
    if nonce is not None:
        builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
    key, hashed = private_key(algorithm, RESPONDER_KEY), ALGORITHMS[algorithm].hash_algorithm
    theirs = builder.sign(key, hashed)  # which takes the machine's time for producedAt
    tbs = response_data(who, [single], produced_at=theirs.produced_at_utc, nonce=nonce)
    assert tbs.der == theirs.tbs_response_bytes
    if algorithm is KeyAlgorithm.ED25519:  # which signs the same way each time
        assert sign_response(permit(tbs), ours.sign) == theirs.public_bytes(Encoding.DER)


@pytest.mark.parametrize("algorithm", ALL_KINDS)
@pytest.mark.parametrize("status", CertStatus)
def test_the_library_reads_what_was_said(status: CertStatus, algorithm: KeyAlgorithm) -> None:
    ours = realm(algorithm)
    parsed = library.load_der_ocsp_response(presigned(ours, status))
    assert parsed.response_status is library.OCSPResponseStatus.SUCCESSFUL
    assert parsed.certificate_status is STATUS[status]
    assert (parsed.serial_number, parsed.hash_algorithm.name) == (7, "sha1")
    assert (parsed.this_update_utc, parsed.next_update_utc) == (_cut(NOW), _cut(NOW + HOUR))
    assert parsed.produced_at_utc == _cut(NOW)
    revoked = status is CertStatus.REVOKED
    assert parsed.revocation_time_utc == (_cut(NOW - HOUR) if revoked else None)
    assert parsed.revocation_reason == (x509.ReasonFlags.key_compromise if revoked else None)
    assert list(parsed.extensions) == []
    (carried,) = parsed.certificates
    whose = x509.load_der_x509_certificate(responder_der(ours))
    assert carried.tbs_certificate_bytes == whose.tbs_certificate_bytes


def _cut(moment: datetime) -> datetime:
    return moment.replace(microsecond=0)


@pytest.mark.parametrize("status", ResponseStatus)
def test_an_error_says_only_which(status: ResponseStatus) -> None:
    """RFC 6960 section 4.2.1: "If the value of responseStatus is one of the error conditions, ..."."""
    theirs = library.OCSPResponseBuilder.build_unsuccessful(library.OCSPResponseStatus(status.value))
    assert error_response(status) == theirs.public_bytes(Encoding.DER)


# --- against pkilint, OpenSSL, GnuTLS ---


@pytest.mark.parametrize("algorithm", ALL_KINDS)
@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("status", CertStatus)
def test_pkilint_finds_nothing(status: CertStatus, by_name: bool, algorithm: KeyAlgorithm) -> None:  # noqa: FBT001  # a case, not a switch
    assert lint_ocsp_response(presigned(realm(algorithm), status, by_name=by_name)) == []


@lru_cache(maxsize=8)
def leaf_of(ours: Realm, name: str) -> bytes:
    return ours.issue(profiles.load(name), spki(P256, name))


class OpenSSL:
    """OpenSSL as a client that asks about three certificates and is shown an answer."""

    def __init__(self, ours: Realm, folder: Path, option: str) -> None:
        self.folder = folder
        (folder / "trusted.pem").write_text(to_pem(ours.root_der) + to_pem(ours.issuing_der))
        (folder / "issuing.pem").write_text(to_pem(ours.issuing_der))
        self.asked: list[str | Path] = ["-issuer", folder / "issuing.pem"]
        for name in ("vehicle", "idevid"):
            (folder / f"{name}.pem").write_text(to_pem(leaf_of(ours, name)))
            self.asked += [option, "-cert", folder / f"{name}.pem"]
        self.asked += [option, "-serial", "0x4711"]

    def request(self) -> bytes:
        self._run(*self.asked, "-nonce", "-reqout", self.folder / "request.der")
        return (self.folder / "request.der").read_bytes()

    def judge(self, response: bytes) -> str:
        """What it says of the statuses, and then of signature and nonce: it looks at one or the other."""
        (self.folder / "response.der").write_bytes(response)
        given: list[str | Path] = [
            "-respin", self.folder / "response.der", "-CAfile", self.folder / "trusted.pem",
            "-attime", str(int(NOW.timestamp()) + 60), "-no_nonce",
        ]  # fmt: skip
        statuses = self._run(*self.asked, *given)
        return statuses + self._run("-reqin", self.folder / "request.der", *given)

    def _run(self, *arguments: str | Path) -> str:
        command = [need("openssl"), "ocsp", *arguments]
        found = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
        return found.stdout + found.stderr


@pytest.mark.parametrize("algorithm", ALL_KINDS + OTHER_KINDS)
@pytest.mark.parametrize(("option", "by_name"), [("-sha1", True), ("-sha256", False), ("-sha512", False)])
def test_openssl_is_told_good_revoked_and_unknown(
    option: str,
    by_name: bool,  # noqa: FBT001  # a case, not a switch
    algorithm: KeyAlgorithm,
    tmp_path: Path,
) -> None:
    ours = realm(algorithm)
    client = OpenSSL(ours, tmp_path, option)
    statuses = (CertStatus.GOOD, CertStatus.REVOKED, CertStatus.UNKNOWN)
    told = client.judge(answer(ours, client.request(), *statuses, by_name=by_name))
    assert told.count("Response verify OK") == 2
    assert "vehicle.pem: good" in told
    assert "idevid.pem: revoked" in told
    assert "Reason: keyCompromise" in told
    assert "0x4711: unknown" in told
    assert "WARNING" not in told


def test_openssl_refuses_a_changed_answer_and_an_old_one(tmp_path: Path) -> None:
    client = OpenSSL(OURS, tmp_path, "-sha256")
    statuses = (CertStatus.GOOD, CertStatus.REVOKED, CertStatus.UNKNOWN)
    old = answer(OURS, client.request(), *statuses)
    told = client.judge(answer(OURS, client.request(), *statuses).replace(b"\x82\x00\x18", b"\x80\x00\x18"))
    assert "Response Verify Failure" in told
    assert "Nonce Verify error" in client.judge(old)


def test_gnutls_verifies_the_response(tmp_path: Path) -> None:
    program = need("ocsptool", "gnutls-bin")
    (tmp_path / "issuing.pem").write_text(to_pem(OURS.issuing_der))
    (tmp_path / "root.pem").write_text(to_pem(OURS.root_der))
    (tmp_path / "response.der").write_bytes(presigned(OURS, CertStatus.GOOD))

    def verified(trusted: str) -> str:
        found = subprocess.run(
            [
                program, "--verify-response", "--load-response", tmp_path / "response.der",
                "--load-trust", tmp_path / trusted,
            ],
            check=False, capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        return found.stdout + found.stderr

    assert "Verifying OCSP Response: Success" in verified("issuing.pem")
    assert "Verifying OCSP Response: Failure" in verified("root.pem")


# --- who may respond ---


@pytest.mark.parametrize(
    ("certificate", "complaint"),
    [
        (lambda: responder_der(OURS, ocsp_signing=False), "not for signing"),
        (lambda: responder_der(OURS, purposes=False), "not a responder's"),
        (lambda: responder_der(OURS, digital_signature=False), "not for signing"),
        (lambda: responder_der(OURS, signer="somebody"), "signature"),
        (lambda: responder_der(realm(KeyAlgorithm.EC_P384)), "authority"),
        (lambda: OURS.issuing_der, "responder"),
    ],
)
def test_only_whom_the_authority_delegated_to_responds(
    certificate: Callable[[], bytes], complaint: str
) -> None:
    """RFC 6960 section 4.2.2.2: issued directly by the authority, with id-kp-OCSPSigning."""
    with pytest.raises(PolicyRefused, match=complaint) as refused:
        Responder.from_certificate(RESPONDER_KEY, certificate(), OURS.issuing)
    assert refused.value.rule == "responder_is_delegated"


def test_what_is_no_certificate_does_not_respond() -> None:
    with pytest.raises(MalformedRequest):
        Responder.from_certificate(RESPONDER_KEY, b"\x30\x00", OURS.issuing)
    with pytest.raises(MalformedRequest, match="none of our encodings"):
        Responder.from_certificate(RESPONDER_KEY, responder_der(OURS, curve=ec.SECP224R1()), OURS.issuing)
    with pytest.raises(PolicyRefused, match="no certificate yet"):
        Responder.from_certificate(
            RESPONDER_KEY, responder_der(OURS), replace(OURS.issuing, certificate=None)
        )


def test_the_packaged_profile_makes_a_responder() -> None:
    certificate = OURS.issue(profiles.load("ocsp-responder"), spki(P256, RESPONDER_KEY))
    who = Responder.from_certificate(RESPONDER_KEY, certificate, OURS.issuing)
    tbs = response_data(who, [said(cert_id(ids_of(OURS), 7))], produced_at=NOW)
    response = sign_response(permit(tbs), OURS.sign)
    assert lint_ocsp_response(response) == []
    (carried,) = library.load_der_ocsp_response(response).certificates
    assert carried.public_bytes(Encoding.DER) == certificate


def test_a_responder_may_have_another_kind_of_key() -> None:
    who = responder(OURS, KeyAlgorithm.ED25519)
    tbs = response_data(who, [said(cert_id(ids_of(OURS), 7))], produced_at=NOW)
    response = sign_response(permit(tbs), realm(KeyAlgorithm.ED25519).sign)
    parsed = library.load_der_ocsp_response(response)
    assert parsed.signature_algorithm_oid == x509.SignatureAlgorithmOID.ED25519


# --- the rules ---

ASKED = (cert_id(ids_of(OURS), 7), cert_id(ids_of(OURS), 8))


def tbs_of(*responses: SingleResponse, nonce: bytes | None = b"nonce", at: datetime = NOW) -> TBSResponse:
    return response_data(responder(OURS), responses, produced_at=at, nonce=nonce)


GOOD, REVOKED = said(ASKED[0]), said(ASKED[1], CertStatus.REVOKED)
TBS = tbs_of(GOOD, REVOKED)


BY_NAME = response_data(responder(OURS, by_name=True), TBS.responses, produced_at=NOW, nonce=b"nonce")


@pytest.mark.parametrize(
    ("rule", "other"),
    [
        ("responder_id_is_the_responders", BY_NAME),
        ("produced_at_is_the_agreed_one", tbs_of(GOOD, REVOKED, at=NOW + timedelta(seconds=1))),
        ("every_certificate_is_answered", tbs_of(GOOD)),
        ("every_certificate_is_answered", tbs_of()),
        ("every_certificate_is_answered", tbs_of(REVOKED, GOOD)),
        ("every_certificate_is_answered", tbs_of(GOOD, REVOKED, GOOD)),
        ("status_is_the_agreed_one", tbs_of(said(ASKED[0], CertStatus.REVOKED), REVOKED)),
        ("status_is_the_agreed_one", tbs_of(said(ASKED[0], CertStatus.UNKNOWN), REVOKED)),
        ("status_is_the_agreed_one", tbs_of(GOOD, said(ASKED[1]))),
        ("status_is_the_agreed_one", tbs_of(GOOD, replace(REVOKED, reason=ReasonCode.SUPERSEDED))),
        ("status_is_the_agreed_one", tbs_of(GOOD, replace(REVOKED, reason=ReasonCode.UNSPECIFIED))),
        ("status_is_the_agreed_one", tbs_of(GOOD, replace(REVOKED, revoked_at=NOW))),
        ("times_are_the_agreed_ones", tbs_of(replace(GOOD, this_update=NOW - HOUR), REVOKED)),
        ("times_are_the_agreed_ones", tbs_of(GOOD, replace(REVOKED, next_update=NOW + 2 * HOUR))),
        ("nonce_is_the_clients", tbs_of(GOOD, REVOKED, nonce=None)),
        ("nonce_is_the_clients", tbs_of(GOOD, REVOKED, nonce=b"other")),
    ],
)  # fmt: skip
def test_octets_that_say_something_else_are_refused(rule: str, other: TBSResponse) -> None:
    permit(TBS)
    with pytest.raises(PolicyRefused) as refused:
        permit(replace(TBS, der=other.der))
    assert refused.value.rule == rule


@pytest.mark.parametrize(
    ("rule", "tbs"),
    [
        ("responder_is_valid", tbs_of(GOOD, at=FOUNDED - timedelta(seconds=1))),
        ("responder_is_valid", tbs_of(GOOD, at=ENDS + timedelta(seconds=1))),
        ("every_certificate_is_answered", tbs_of()),
        ("every_certificate_is_answered", tbs_of(*[GOOD] * 33)),
        ("reason_belongs_to_a_revocation", tbs_of(replace(REVOKED, reason=ReasonCode.REMOVE_FROM_CRL))),
        ("reason_belongs_to_a_revocation", tbs_of(replace(REVOKED, reason=ReasonCode.AA_COMPROMISE))),
        ("revocation_has_happened", tbs_of(replace(REVOKED, revoked_at=NOW + timedelta(seconds=1)))),
        ("status_is_the_agreed_one", tbs_of(replace(GOOD, revoked_at=NOW))),
        ("status_is_the_agreed_one", tbs_of(replace(GOOD, reason=ReasonCode.SUPERSEDED))),
        ("times_are_ordered", tbs_of(replace(GOOD, this_update=NOW + timedelta(seconds=1)))),
        ("times_are_ordered", tbs_of(replace(GOOD, next_update=NOW))),
        ("times_are_ordered", tbs_of(GOOD, at=NOW + HOUR)),
        ("nonce_is_the_clients", tbs_of(GOOD, nonce=b"")),
        ("nonce_is_the_clients", tbs_of(GOOD, nonce=bytes(129))),
    ],
)
def test_what_no_response_may_say_is_refused(rule: str, tbs: TBSResponse) -> None:
    with pytest.raises(PolicyRefused) as refused:
        permit(tbs)
    assert refused.value.rule == rule


def test_a_revocation_without_a_time_is_not_written() -> None:
    with pytest.raises(PolicyRefused, match="not when"):
        tbs_of(replace(REVOKED, revoked_at=None))


def sequence(*parts: bytes) -> bytes:
    return der.encode(der.SEQUENCE, *parts)


TIME, LATER = b"\x18\x0f20261122123015Z", b"\x18\x0f20261122133015Z"
WHO = responder(OURS).responder_id
UNTIL = der.encode(0xA0, LATER)
NONCE = sequence(
    der.oid("1.3.6.1.5.5.7.48.1.2"), der.encode(der.OCTET_STRING, der.encode(der.OCTET_STRING, b"nonce"))
)


OTHER_EXTENSION = NONCE.replace(b"\x01\x02\x04", b"\x01\x03\x04")


def lone(*parts: bytes, extensions: bytes = b"", before: bytes = b"") -> bytes:
    """A ResponseData with one answer put together from these parts."""
    return sequence(before, WHO, TIME, sequence(sequence(ASKED[0].octets, *parts)), extensions)


def of_extensions(*found: bytes) -> bytes:
    return der.encode(0xA1, sequence(*found))


def revoked(*parts: bytes) -> bytes:
    return der.encode(0xA1, *parts)


def with_reason(*octets: int, tag: int = 0x0A) -> bytes:
    return der.encode(0xA0, der.encode(tag, bytes(octets)))


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"\x30\x00",
        lone(b"\x80\x00", TIME, UNTIL) + b"\0",
        lone(b"\x80\x00", TIME, UNTIL, before=b"\xa0\x03\x02\x01\x00"),
        lone(b"\x81\x00", TIME, UNTIL),
        lone(b"\x83\x00", TIME, UNTIL),
        lone(b"\x80\x01\x00", TIME, UNTIL),
        lone(b"\x05\x00", TIME, UNTIL),
        lone(b"\x80\x00", b"\x17\x0d261122123015Z", UNTIL),
        lone(b"\x80\x00", b"\x18\x1120261122123015.5Z", UNTIL),
        lone(b"\x80\x00", b"\x18\x0f20261322123015Z", UNTIL),
        lone(b"\x80\x00", TIME, LATER),
        lone(b"\x80\x00", TIME, UNTIL, der.encode(0xA1, sequence(NONCE))),
        lone(b"\x80\x00", TIME, UNTIL, extensions=of_extensions()),
        lone(b"\x80\x00", TIME, UNTIL, extensions=of_extensions(NONCE, NONCE)),
        lone(b"\x80\x00", TIME, UNTIL, extensions=of_extensions(OTHER_EXTENSION)),
        lone(revoked(), TIME, UNTIL),
        lone(revoked(with_reason(1)), TIME, UNTIL),
        lone(revoked(TIME, with_reason(0)), TIME, UNTIL),
        lone(revoked(TIME, with_reason(7)), TIME, UNTIL),
        lone(revoked(TIME, with_reason(0, 1)), TIME, UNTIL),
        lone(revoked(TIME, with_reason()), TIME, UNTIL),
        lone(revoked(TIME, with_reason(1, tag=2)), TIME, UNTIL),
        lone(revoked(TIME, with_reason(1), with_reason(1)), TIME, UNTIL),
    ],
)  # fmt: skip
def test_what_is_no_response_is_refused(octets: bytes) -> None:
    fine = tbs_of(GOOD, nonce=None)
    permit(replace(fine, der=lone(b"\x80\x00", TIME, UNTIL)))
    with pytest.raises(PolicyRefused) as refused:
        permit(replace(fine, der=octets))
    assert refused.value.rule == "well_formed"


def test_without_next_update_there_is_no_response() -> None:
    """RFC 5019 section 2.2.4."""
    fine = tbs_of(GOOD, nonce=None)
    with pytest.raises(PolicyRefused) as refused:
        permit(replace(fine, der=lone(b"\x80\x00", TIME)))
    assert refused.value.rule == "times_are_the_agreed_ones"


@settings(max_examples=100)
@given(st.integers(0, len(TBS.der) - 1), st.integers(1, 255))
def test_not_one_octet_can_be_another(position: int, flip: int) -> None:
    octets = bytearray(TBS.der)
    octets[position] ^= flip
    with pytest.raises(PolicyRefused):
        permit(replace(TBS, der=bytes(octets)))


def test_every_rule_is_asked_and_says_where_it_comes_from() -> None:
    assert len(set(ocsp_lint.RULES)) == len(ocsp_lint.RULES)
    assert all(rule.__doc__ and rule.__doc__.startswith("RFC ") for rule in ocsp_lint.RULES)


def test_a_permit_cannot_be_made_by_hand() -> None:
    with pytest.raises(TypeError, match="comes from"):
        OCSPPermit(TBS, object())
