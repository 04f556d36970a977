"""Proof that a device holds its key (SPEC C6)."""

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from birthmark.errors import MalformedRequest, ProofFailed
from birthmark.pki.keys import KeyAlgorithm
from birthmark.pki.possession import proof_message, verify_proof
from tests.pki.sample import private_key, signed_by, spki

CHALLENGE = bytes(range(32))
MESSAGE = proof_message(attempt="attempt-1", certificate_sha256="ab" * 32, challenge=CHALLENGE)


def test_the_message_is_text_that_names_its_purpose() -> None:
    assert (
        b"birthmark/proof/v1\nattempt-1\n" + b"ab" * 32 + b"\n" + CHALLENGE.hex().encode() + b"\n" == MESSAGE
    )


@pytest.mark.parametrize("algorithm", KeyAlgorithm)
def test_the_holder_of_the_key_can_prove_it(algorithm: KeyAlgorithm) -> None:
    verify_proof(spki(algorithm, "device"), signed_by(private_key(algorithm, "device"), MESSAGE), MESSAGE)


@pytest.mark.parametrize("algorithm", KeyAlgorithm)
def test_nobody_else_can(algorithm: KeyAlgorithm) -> None:
    with pytest.raises(ProofFailed):
        verify_proof(
            spki(algorithm, "device"), signed_by(private_key(algorithm, "another"), MESSAGE), MESSAGE
        )


@pytest.mark.parametrize(
    "changes",
    [{"attempt": "attempt-2"}, {"certificate_sha256": "ac" * 32}, {"challenge": bytes(32)}],
)
def test_a_proof_of_anything_else_is_none(changes: dict[str, object]) -> None:
    arguments = {"attempt": "attempt-1", "certificate_sha256": "ab" * 32, "challenge": CHALLENGE} | changes
    other = proof_message(**arguments)  # type: ignore[arg-type]  # arguments in a mapping have one type
    key = private_key(KeyAlgorithm.EC_P256, "device")
    with pytest.raises(ProofFailed):
        verify_proof(spki(KeyAlgorithm.EC_P256, "device"), signed_by(key, other), MESSAGE)


def test_the_hash_is_the_curves() -> None:
    key = private_key(KeyAlgorithm.EC_P384, "device")
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    with pytest.raises(ProofFailed):
        verify_proof(
            spki(KeyAlgorithm.EC_P384, "device"), key.sign(MESSAGE, ec.ECDSA(hashes.SHA256())), MESSAGE
        )


@pytest.mark.parametrize(
    "changes",
    [
        {"attempt": ""},
        {"attempt": "a\nb"},
        {"attempt": "a\n"},
        {"attempt": "a b"},
        {"attempt": "é"},
        {"attempt": "x" * 129},
        {"certificate_sha256": "AB" * 32},
        {"certificate_sha256": "ab" * 31},
        {"certificate_sha256": "ab" * 32 + "\n"},
        {"challenge": bytes(15)},
        {"challenge": bytes(65)},
    ],
)
def test_a_message_with_two_readings_cannot_be_made(changes: dict[str, object]) -> None:
    arguments = {"attempt": "attempt-1", "certificate_sha256": "ab" * 32, "challenge": CHALLENGE} | changes
    with pytest.raises(MalformedRequest):
        proof_message(**arguments)  # type: ignore[arg-type]  # arguments in a mapping have one type


@given(st.sampled_from(KeyAlgorithm), st.binary(max_size=120))
def test_any_octets_as_signature_fail_and_nothing_else_happens(
    algorithm: KeyAlgorithm, signature: bytes
) -> None:
    with pytest.raises(ProofFailed):
        verify_proof(spki(algorithm, "device"), signature, MESSAGE)


@given(st.one_of(st.binary(max_size=120), st.binary(min_size=64, max_size=64)), st.binary(max_size=80))
def test_any_octets_as_key_fail_and_nothing_else_happens(key: bytes, signature: bytes) -> None:
    with pytest.raises(ProofFailed):
        verify_proof(key, signature, MESSAGE)
    with pytest.raises(ProofFailed):
        verify_proof(spki(KeyAlgorithm.EC_P256, "device")[:27] + key, signature, MESSAGE)


def test_a_key_of_another_kind_fails() -> None:
    key = rsa.generate_private_key(65537, 2048).public_key()
    with pytest.raises(ProofFailed):
        verify_proof(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo), b"", MESSAGE)
