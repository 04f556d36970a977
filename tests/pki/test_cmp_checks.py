"""A message is believed for the reasons of RFC 9483 section 3.5, and refused with the failure it names."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from birthmark.errors import Refusal
from birthmark.pki import cmp_protection as protection
from birthmark.pki.certificates import Certificate
from birthmark.pki.cmp import BodyKind, PKIHeader, PKIMessage, assemble, decode, encode_header, protected_part
from birthmark.pki.cmp_checks import (
    Expected,
    sender_reference,
    verify_header,
    verify_signed,
    verify_under_secret,
)
from birthmark.pki.cmp_protection import ProtectionKind
from birthmark.pki.cmp_status import PKIFailureInfo, failure_of
from birthmark.pki.keys import KeyAlgorithm
from tests.pki.cmp_parts import P256, SECRET, certificate, header, message, signer, under_secret
from tests.pki.sample import NOW

HOUR = timedelta(hours=1)
ANSWERED = Expected(transaction_id=b"t" * 16, nonce=b"ours" * 4)
FOLLOWING = header(recip_nonce=ANSWERED.nonce)


def failed(check: Callable[[], object]) -> PKIFailureInfo:
    with pytest.raises(Refusal) as refused:
        check()
    return failure_of(refused.value)


@pytest.mark.parametrize("pvno", [2, 3])
def test_a_good_message_is_believed(pvno: int) -> None:
    signed = message(header(pvno=pvno))
    assert verify_header(signed, now=NOW, tolerance=HOUR) is ProtectionKind.SIGNATURE
    assert verify_signed(signed) == Certificate.from_der(certificate("device"))
    kept = message(header(pvno=pvno), under_secret())
    assert verify_header(kept, now=NOW, tolerance=HOUR) is ProtectionKind.PBM
    verify_under_secret(kept, SECRET)


def test_a_message_that_goes_on_is_believed() -> None:
    verify_header(message(FOLLOWING), now=NOW, tolerance=HOUR, expected=ANSWERED)


@pytest.mark.parametrize(
    ("of", "expected", "failure"),
    [
        (header(pvno=1), None, PKIFailureInfo.UNSUPPORTED_VERSION),
        (header(pvno=4), None, PKIFailureInfo.UNSUPPORTED_VERSION),
        (header(transaction_id=None), None, PKIFailureInfo.BAD_DATA_FORMAT),
        (header(transaction_id=b"t" * 15), None, PKIFailureInfo.BAD_DATA_FORMAT),
        (header(transaction_id=b"t" * 65), None, PKIFailureInfo.BAD_DATA_FORMAT),
        (header(sender_nonce=None), None, PKIFailureInfo.BAD_SENDER_NONCE),
        (header(sender_nonce=b"n" * 15), None, PKIFailureInfo.BAD_SENDER_NONCE),
        (header(sender_nonce=b"n" * 65), None, PKIFailureInfo.BAD_SENDER_NONCE),
        (FOLLOWING, None, PKIFailureInfo.BAD_RECIPIENT_NONCE),
        (header(), ANSWERED, PKIFailureInfo.BAD_RECIPIENT_NONCE),
        (header(recip_nonce=b"mine" * 4), ANSWERED, PKIFailureInfo.BAD_RECIPIENT_NONCE),
        (replace(FOLLOWING, transaction_id=b"u" * 16), ANSWERED, PKIFailureInfo.BAD_REQUEST),
        (header(message_time=NOW - 2 * HOUR), None, PKIFailureInfo.BAD_TIME),
        (header(message_time=NOW + 2 * HOUR), None, PKIFailureInfo.BAD_TIME),
    ],
)
def test_each_fault_of_a_header_has_its_failure(
    of: PKIHeader, expected: Expected | None, failure: PKIFailureInfo
) -> None:
    assert failed(lambda: verify_header(message(of), now=NOW, tolerance=HOUR, expected=expected)) is failure


def test_a_device_without_a_clock_is_heard_where_time_does_not_matter() -> None:
    verify_header(message(header(message_time=NOW - 9999 * HOUR)), now=NOW, tolerance=None)
    verify_header(message(header(message_time=None)), now=NOW, tolerance=HOUR)


def bare(of: PKIHeader, bits: bytes | None) -> PKIMessage:
    return decode(assemble(protected_part(encode_header(of), BodyKind.GENM, b"\x30\x00"), bits))


def test_no_protection_and_half_a_protection_are_none() -> None:
    signed = message()
    for incomplete in (
        bare(header(), None),
        bare(header(), signed.protection),
        bare(signed.header, None),
    ):
        refused = failed(lambda one=incomplete: verify_header(one, now=NOW, tolerance=None))  # type: ignore[misc]  # bound now
        assert refused is PKIFailureInfo.BAD_MESSAGE_CHECK


def test_a_protection_of_another_kind_is_refused_by_name() -> None:
    dh = bytes.fromhex("300b06092a864886f67d07421e")
    unknown = replace(header(), protection_alg=dh)
    assert (
        failed(lambda: verify_header(bare(unknown, b"x"), now=NOW, tolerance=None)) is PKIFailureInfo.BAD_ALG
    )


def test_signed_and_under_a_secret_are_not_mistaken_for_each_other() -> None:
    assert failed(lambda: verify_signed(message(by=under_secret()))) is PKIFailureInfo.WRONG_INTEGRITY
    assert failed(lambda: verify_under_secret(message(), SECRET)) is PKIFailureInfo.WRONG_INTEGRITY


OTHER = certificate("other")


@pytest.mark.parametrize(
    "by",
    [
        replace(signer(), certificates=()),
        replace(signer(), certificates=(b"\x30\x00",)),
        replace(signer(), certificates=(OTHER, certificate("device"))),
        replace(signer(), key_identifier=b"another"),
        signer(certificate_der=certificate("device", usage=False)),
        replace(signer(), sign=lambda octets: signer("other").sign(octets)),
        replace(signer(), sign=lambda _: b"\x30\x00"),
    ],
)
def test_each_fault_of_a_signer_fails_the_check(by: protection.SignatureProtector) -> None:
    assert failed(lambda: verify_signed(message(by=by))) is PKIFailureInfo.BAD_MESSAGE_CHECK


def test_a_sender_that_is_no_directory_name_signs_nothing() -> None:
    named = replace(header(), sender=b"\x82\x06device")
    assert failed(lambda: verify_signed(message(named))) is PKIFailureInfo.BAD_MESSAGE_CHECK


def test_an_algorithm_of_another_kind_of_key_is_refused() -> None:
    by = replace(signer(), algorithm=KeyAlgorithm.ED25519)
    assert failed(lambda: verify_signed(message(by=by))) is PKIFailureInfo.BAD_ALG


def test_a_certificate_without_identifier_or_usage_will_do() -> None:
    for plain in (certificate("device", usage=None), certificate("device", identified=False)):
        verify_signed(message(by=signer(certificate_der=plain)))


@pytest.mark.parametrize(
    "algorithm",
    [P256, KeyAlgorithm.EC_P384, KeyAlgorithm.EC_P521, KeyAlgorithm.ED25519, KeyAlgorithm.RSA_2048],
)
def test_every_kind_of_key_signs(algorithm: KeyAlgorithm) -> None:
    verify_signed(message(header(sender="signer"), signer("signer", algorithm)))


def test_a_secret_has_to_be_named() -> None:
    nameless = replace(under_secret(), reference=b"")
    assert failed(lambda: sender_reference(message(by=nameless))) is PKIFailureInfo.BAD_MESSAGE_CHECK
    assert (
        failed(lambda: verify_under_secret(message(by=nameless), SECRET)) is PKIFailureInfo.BAD_MESSAGE_CHECK
    )
