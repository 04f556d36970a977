"""Which certificates of endorsement keys are accepted: those with a path to a maker of the profile."""

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from birthmark.element.profiles import TPMProfile
from birthmark.element.tpm_endorsement import EK_CERTIFICATE, check_endorsement
from birthmark.errors import MalformedRequest, PolicyRefused
from tests.support.programs import need
from tests.support.swtpm import SoftwareTPM
from tests.support.tpms import device_of, tpm_profile

NOW = datetime(2026, 11, 22, tzinfo=UTC)
DAY = timedelta(days=1)
FOREVER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def extensions_of_an_authority(path_length: int | None = None) -> list[tuple[x509.ExtensionType, bool]]:
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    return [(x509.BasicConstraints(True, path_length), True), (usage, True)]


def extensions_of_an_endorsement_key(*, rsa_key: bool = False) -> list[tuple[x509.ExtensionType, bool]]:
    """TCG EK Credential Profile 2.5 section 3.2; the TPM's maker, model and version in a critical name."""
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=rsa_key, data_encipherment=False,
        key_agreement=not rsa_key, key_cert_sign=False, crl_sign=False, encipher_only=False,
        decipher_only=False,
    )  # fmt: skip
    name = x509.Name(
        [
            x509.NameAttribute(x509.ObjectIdentifier(f"2.23.133.2.{arc}"), value)
            for arc, value in enumerate(("id:00001014", "swtpm", "id:1"), start=1)
        ]
    )
    return [
        (usage, True),
        (x509.BasicConstraints(False, None), True),
        (x509.ExtendedKeyUsage([EK_CERTIFICATE]), False),
        (x509.SubjectAlternativeName([x509.DirectoryName(name)]), True),
    ]


@dataclass(frozen=True, kw_only=True)
class Made:
    """A certificate and its key."""

    key: Key
    certificate: x509.Certificate

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)


def make(
    subject: str,
    issuer: Made | None,
    extensions: Sequence[tuple[x509.ExtensionType, bool]],
    *,
    key: Key | None = None,
    not_before: datetime = NOW - DAY,
    not_after: datetime = FOREVER,
) -> Made:
    key = key or ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)] if subject else [])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name if issuer is None else issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return Made(key=key, certificate=builder.sign(key if issuer is None else issuer.key, hashes.SHA256()))


ROOT = make("maker", None, extensions_of_an_authority())
ISSUING = make("maker's issuing", ROOT, extensions_of_an_authority(0))
PROFILE = TPMProfile(name="maker", sha256="", anchors=(ROOT.der,), intermediates=(ISSUING.der,))


def endorsement(issuer: Made = ISSUING, **changes: Any) -> bytes:
    extensions = changes.pop("extensions", None) or extensions_of_an_endorsement_key()
    return make("", issuer, extensions, **changes).der


def without(kind: type[x509.ExtensionType]) -> list[tuple[x509.ExtensionType, bool]]:
    return [(one, critical) for one, critical in extensions_of_an_endorsement_key() if type(one) is not kind]


def test_a_certificate_with_an_empty_subject_and_a_critical_name_is_accepted() -> None:
    found = check_endorsement(PROFILE, endorsement(), (), NOW)
    assert isinstance(found.key, ec.EllipticCurvePublicKey)
    key = rsa.generate_private_key(65537, 2048)
    extensions = extensions_of_an_endorsement_key(rsa_key=True)
    assert isinstance(
        check_endorsement(PROFILE, endorsement(key=key, extensions=extensions), (), NOW).key,
        rsa.RSAPublicKey,
    )


def test_authorities_between_come_from_the_profile_or_from_the_tpm() -> None:
    bare = replace(PROFILE, intermediates=())
    with pytest.raises(PolicyRefused, match="no path"):
        check_endorsement(bare, endorsement(), (), NOW)
    check_endorsement(bare, endorsement(), (ISSUING.der,), NOW)
    check_endorsement(replace(bare, anchors=(ISSUING.der,)), endorsement(), (), NOW)


def test_whoever_sends_an_authority_along_is_not_believed_for_it() -> None:
    own = make("maker", None, extensions_of_an_authority())
    with pytest.raises(PolicyRefused, match="no path"):
        check_endorsement(PROFILE, endorsement(own), (own.der,), NOW)


_OTHER_USAGE = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
_UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.57264.999"), b"\x05\x00")
_NOT_AN_AUTHORITY = [(x509.BasicConstraints(False, None), True), extensions_of_an_authority()[1]]

REFUSED: dict[str, Callable[[], bytes]] = {
    "expired": lambda: endorsement(not_after=NOW - timedelta(seconds=1)),
    "not yet valid": lambda: endorsement(not_before=NOW + DAY),
    "no extended key usage": lambda: endorsement(extensions=without(x509.ExtendedKeyUsage)),
    "another extended key usage": lambda: endorsement(
        extensions=[*without(x509.ExtendedKeyUsage), (_OTHER_USAGE, False)]
    ),
    "no key usage": lambda: endorsement(extensions=without(x509.KeyUsage)),
    "the key usage of another kind of key": lambda: endorsement(
        extensions=extensions_of_an_endorsement_key(rsa_key=True)
    ),
    "an authority": lambda: endorsement(
        extensions=[*without(x509.BasicConstraints), (x509.BasicConstraints(True, None), True)]
    ),
    "an unknown critical extension": lambda: endorsement(
        extensions=[*extensions_of_an_endorsement_key(), (_UNKNOWN, True)]
    ),
    "a curve without a template": lambda: endorsement(key=ec.generate_private_key(ec.SECP256K1())),
    "signed by another": lambda: endorsement(replace(ISSUING, key=ec.generate_private_key(ec.SECP256R1()))),
}


@pytest.mark.parametrize("what", REFUSED)
def test_another_kind_of_certificate_is_refused(what: str) -> None:
    with pytest.raises(PolicyRefused, check=lambda refusal: refusal.rule == "ek-certificate"):
        check_endorsement(PROFILE, REFUSED[what](), (), NOW)


AUTHORITIES: dict[str, Callable[[], Made]] = {
    "is none": lambda: make("other", ROOT, _NOT_AN_AUTHORITY),
    "may not sign certificates": lambda: make("other", ROOT, extensions_of_an_authority()[:1]),
    "has expired": lambda: make("other", ROOT, extensions_of_an_authority(), not_after=NOW - DAY / 2),
    "is below one that may have none": lambda: make("other", ISSUING, extensions_of_an_authority()),
}


@pytest.mark.parametrize("what", AUTHORITIES)
def test_an_authority_that_may_not_certify_it_is_refused(what: str) -> None:
    between = AUTHORITIES[what]()
    with pytest.raises(PolicyRefused, check=lambda refusal: refusal.rule == "ek-certificate"):
        check_endorsement(PROFILE, endorsement(between), (between.der,), NOW)


@given(st.binary(max_size=200))
def test_any_octets_are_refused_as_a_certificate(octets: bytes) -> None:
    with pytest.raises(MalformedRequest):
        check_endorsement(PROFILE, octets, (), NOW)
    with pytest.raises(MalformedRequest):
        check_endorsement(PROFILE, ISSUING.der, (octets,), NOW)


def test_long_certificates_and_long_chains_are_not_read() -> None:
    with pytest.raises(MalformedRequest, match="too long"):
        check_endorsement(PROFILE, bytes(5000), (), NOW)
    with pytest.raises(MalformedRequest, match="at most 4"):
        check_endorsement(PROFILE, endorsement(), (ISSUING.der,) * 5, NOW)


@pytest.mark.parametrize("ek", ["ec-p384", "rsa-2048"])
def test_openssl_finds_the_same_path_for_a_tpms_certificate(
    tpm: SoftwareTPM, tmp_path: Path, ek: str
) -> None:
    """OpenSSL has no policy for these certificates: it is told to overlook what it does not know."""
    with device_of(tpm, tmp_path, ek=ek) as element:
        found = element.endorsed().ek_certificate
    at = x509.load_der_x509_certificate(found).not_valid_before_utc + DAY
    check_endorsement(tpm_profile(tpm), found, (), at)
    file = tmp_path / "ek.crt"
    file.write_bytes(x509.load_der_x509_certificate(found).public_bytes(Encoding.PEM))
    command = [need("openssl"), "verify", "-partial_chain", "-ignore_critical"]
    command += ["-attime", str(int(at.timestamp()))]
    other = tmp_path / "other.crt"
    other.write_bytes(ROOT.certificate.public_bytes(Encoding.PEM))
    for anchor, verdict in ((tpm.authority, 0), (other, 2)):
        done = subprocess.run([*command, "-CAfile", str(anchor), str(file)], check=False, capture_output=True)
        assert done.returncode == verdict, done.stderr
    with pytest.raises(PolicyRefused, match="no path"):
        check_endorsement(PROFILE, found, (), at)
