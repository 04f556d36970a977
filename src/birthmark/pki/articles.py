"""First articles: a certificate of a profile that is made only to be looked at.

Everything in it is what the line would write, but the subject's key is one that everybody knows and the
signature is made with another: an authority's own key never signs anything that is not an identity.  Our own
rules (``lint.permit``) judge it here, as they will judge every certificate; what a linter that is not ours
says is for ``services.inspection``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cache
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from birthmark.errors import PolicyRefused
from birthmark.pki import lint
from birthmark.pki.algorithms import ALGORITHMS, PrivateKey, signature_by
from birthmark.pki.certificates import TBSCertificate
from birthmark.pki.issuance import (
    build_reference,
    build_root,
    compile_template,
    serial_number,
    sign_certificate,
)
from birthmark.pki.issuer import Issuer
from birthmark.pki.keys import KeyAlgorithm, KeyLabel
from birthmark.pki.profiles import Profile

__all__ = ["NOBODY", "Finding", "Severity", "article", "made_up_key", "root_article", "subject_algorithms"]

NOBODY = KeyLabel("nobody")
"""Label of the key of authorities that are made to be looked at."""


class Severity(StrEnum):
    """How bad a linter finds something."""

    FATAL = "fatal"
    ERROR = "error"
    WARNING = "warning"
    NOTICE = "notice"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a linter says about a certificate."""

    severity: Severity
    code: str
    """The linter's own name for it: what a profile's waiver names."""
    detail: str
    """More of it, for people; may be empty."""


_BELOW = {2048: (105, 179, 1397), 3072: (3453, 4977, 7769), 4096: (1557, 2543, 7437)}
"""By size of a modulus: how far the three largest primes of half its size lie below the power of two."""
_PAIRS = ((0, 1), (0, 2), (1, 2))


@cache
def made_up_key(algorithm: KeyAlgorithm, number: int) -> PrivateKey:
    """Return a key that everybody knows: for each number from 1 to 3 another.

    Its private value is the number, or two of the largest primes of their size, so that nobody takes it for
    a secret.
    """
    match algorithm:
        case KeyAlgorithm.EC_P256:
            return ec.derive_private_key(number, ec.SECP256R1())
        case KeyAlgorithm.EC_P384:
            return ec.derive_private_key(number, ec.SECP384R1())
        case KeyAlgorithm.EC_P521:
            return ec.derive_private_key(number, ec.SECP521R1())
        case KeyAlgorithm.ED25519:
            return ed25519.Ed25519PrivateKey.from_private_bytes(number.to_bytes(32, "big"))
        case KeyAlgorithm.ED448:
            return ed448.Ed448PrivateKey.from_private_bytes(number.to_bytes(57, "big"))
        case KeyAlgorithm.RSA_2048 | KeyAlgorithm.RSA_3072 | KeyAlgorithm.RSA_4096:
            bits = ALGORITHMS[algorithm].signature_size * 8
            p, q = ((1 << bits // 2) - _BELOW[bits][index] for index in _PAIRS[number - 1])
            e = 65537
            d = pow(e, -1, (p - 1) * (q - 1))
            return rsa.RSAPrivateNumbers(
                p=p,
                q=q,
                d=d,
                dmp1=d % (p - 1),
                dmq1=d % (q - 1),
                iqmp=pow(q, -1, p),
                public_numbers=rsa.RSAPublicNumbers(e, p * q),
            ).private_key()


def subject_algorithms(profile: Profile, issuer: Issuer) -> tuple[KeyAlgorithm, ...]:
    """Return the algorithms that a subject's key may have under this issuer, as the profile lists them.

    Raises:
        PolicyRefused: none may.
    """
    strength = ALGORITHMS[issuer.key_algorithm].strength
    if profile.issuer_key_algorithms and issuer.key_algorithm not in profile.issuer_key_algorithms:
        wanted = ", ".join(profile.issuer_key_algorithms)
        raise PolicyRefused(
            "issuer-key-algorithms",
            f"profile {profile.name} is signed with {wanted}, not with {issuer.key_algorithm}",
        )
    found = tuple(
        algorithm
        for algorithm in profile.subject_key_algorithms
        if not profile.issuer_at_least_as_strong or ALGORITHMS[algorithm].strength <= strength
    )
    if not found:
        raise PolicyRefused(
            "issuer-at-least-as-strong",
            f"every key that profile {profile.name} allows is stronger than the authority's"
            f" {issuer.key_algorithm}",
        )
    return found


def article(
    profile: Profile,
    issuer: Issuer,
    values: Mapping[str, str],
    *,
    algorithm: KeyAlgorithm,
    at: datetime,
    not_after: datetime | None = None,
    key: int = 1,
) -> bytes:
    """Return a certificate (DER) of a profile that keeps all our rules, signed by nobody.

    Args:
        profile: not of a root.
        issuer: whose name and key identifier it carries.
        values: of all variables that it needs.
        algorithm: of the subject's key.
        at: its notBefore.
        not_after: an earlier end, where the profile allows it.
        key: number of the made-up key it is for; another than its issuer's, if that one is made up, too.

    Raises:
        MalformedRequest: a value is missing or does not fit its field.
        PolicyRefused: it would break one of our rules, which is named.
    """
    number = serial_number(sha256(f"{profile.name} {algorithm}".encode()).digest())
    spki = _spki(algorithm, key)
    if profile.is_ca:
        tbs = build_reference(
            profile,
            issuer,
            serial_number=number,
            subject_public_key_info=spki,
            not_before=at,
            not_after=not_after,
            variables=values,
        )
    else:
        tbs = compile_template(profile, issuer, values).fill(
            serial_number=number,
            subject_public_key_info=spki,
            not_before=at,
            not_after=not_after,
            variables={},
        )
    return _signed(tbs, issuer.key_algorithm, 1)


def root_article(
    profile: Profile, values: Mapping[str, str], *, algorithm: KeyAlgorithm, at: datetime, key: int = 1
) -> bytes:
    """Return a self-signed certificate (DER) of a root's profile; see ``article``."""
    tbs = build_root(
        profile,
        key_label=NOBODY,
        serial_number=serial_number(sha256(f"{profile.name} {algorithm}".encode()).digest()),
        subject_public_key_info=_spki(algorithm, key),
        not_before=at,
        variables=values,
    )
    return _signed(tbs, algorithm, key)


def _spki(algorithm: KeyAlgorithm, number: int) -> bytes:
    public = made_up_key(algorithm, number).public_key()
    return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _signed(tbs: TBSCertificate, algorithm: KeyAlgorithm, number: int) -> bytes:
    key = made_up_key(algorithm, number)
    return sign_certificate(lint.permit(tbs), lambda _label, message: signature_by(key, message))
