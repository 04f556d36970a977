"""EcoG's verify_certs accepts a chain of ISO 15118-2 and refuses others; what it cannot judge is known."""

from dataclasses import replace
from datetime import timedelta
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from tests.peers.small import AT, CA_USE, Entity, issued, key_usage, named
from tests.support.checkers import iso15118
from tests.support.checkers.values import Chain, Status

LEAF_USE = key_usage(digital_signature=True, key_agreement=True)


@cache
def chain(name: str = "OEM", *, edition_20: bool = False) -> Chain:
    """Root, two authorities and a vehicle; with P-521 and SHA-512 as ISO 15118-20 has them, or P-256."""
    curve: ec.EllipticCurve = ec.SECP521R1() if edition_20 else ec.SECP256R1()
    digest = hashes.SHA512() if edition_20 else hashes.SHA256()
    above: Entity | None = None
    authorities: list[Entity] = []
    for kind, length in (("Root", 2), ("Sub 1", 1), ("Sub 2", 0)):
        constraints = x509.BasicConstraints(ca=True, path_length=length)
        above = issued(
            named(f"{name} {kind}"), above, constraints=constraints, usage=CA_USE, curve=curve, digest=digest
        )
        authorities.insert(0, above)
    constraints = x509.BasicConstraints(ca=False, path_length=None)
    leaf = issued(
        named("WAUB0000000000001"), above, constraints=constraints, usage=LEAF_USE, curve=curve, digest=digest
    )
    sub_2, sub_1, root = authorities
    return Chain(root=root.der, between=(sub_2.der, sub_1.der), leaf=leaf.der)


def test_a_right_chain_is_accepted() -> None:
    verdict = iso15118.chain_verdict(chain(), at=AT)
    assert verdict.good, verdict.said


def test_wrong_chains_are_refused() -> None:
    right, other = chain(), chain("Another OEM")
    wrong = {
        "the root of another": (replace(right, root=other.root), "CertSignatureError"),
        "the leaf of another": (replace(right, leaf=other.leaf), "CertSignatureError"),
        "an authority missing": (replace(right, between=right.between[:1]), "CertSignatureError"),
        "no authority": (replace(right, between=()), "CertChainLengthError"),
        "another signature": (
            replace(right, leaf=right.leaf[:-1] + bytes([right.leaf[-1] ^ 1])),
            "CertSignatureError",
        ),
    }
    verdicts = iso15118.chain_verdicts([made for made, _ in wrong.values()], at=AT)
    for (what, (_, why)), verdict in zip(wrong.items(), verdicts, strict=True):
        assert verdict.status is Status.REFUSED, what
        assert why in verdict.said, what


def test_a_chain_out_of_its_time_is_refused() -> None:
    for days, why in ((-200, "CertNotYetValidError"), (4000, "CertExpiredError")):
        verdict = iso15118.chain_verdict(chain(), at=AT + timedelta(days=days))
        assert why in verdict.said


def test_it_cannot_judge_the_later_edition() -> None:
    """It verifies with SHA-256 whatever the certificate says: ISO 15118-20 is for others to judge."""
    assert "CertSignatureError" in iso15118.chain_verdict(chain(edition_20=True), at=AT).said


def test_what_it_only_writes_to_its_log_counts_as_a_refusal() -> None:
    """With a key of a kind it does not know it logs an error and returns as if all were well."""
    with_edwards = replace(chain(), root=edwards_root())
    verdict = iso15118.chain_verdict(with_edwards, at=AT)
    assert verdict.status is Status.REFUSED
    assert "KeyTypeError" in verdict.said


def edwards_root() -> bytes:
    """A self-signed authority with an Ed25519 key."""
    key = Ed25519PrivateKey.generate()
    builder = (
        x509.CertificateBuilder()
        .subject_name(named("OEM Root"))
        .issuer_name(named("OEM Root"))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(AT - timedelta(days=1))
        .not_valid_after(AT + timedelta(days=1))
    )
    return builder.sign(key, None).public_bytes(Encoding.DER)
