"""Name constraints: ours against OpenSSL's (RFC 5280 section 4.2.1.10; SPEC G1)."""

import ipaddress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from birthmark.errors import MalformedRequest
from birthmark.pki import issuance, lint, nameconstraints, profiles
from birthmark.pki.algorithms import ALGORITHMS
from birthmark.pki.certificates import assemble
from birthmark.pki.issuer import Issuer
from birthmark.pki.keys import KeyAlgorithm, KeyLabel
from birthmark.pki.nameconstraints import NameLimits, complaint, read_limits
from birthmark.pki.profiles import NameConstraints, NameForm, Subtree, TextTemplate
from tests.pki.sample import FOUNDED, NOW, VARIABLES, private_key, realm, serial, signed_by, spki
from tests.support.lint import openssl_verify

P256 = KeyAlgorithm.EC_P256
LABEL = KeyLabel("confined")


def names(*subject: tuple[str, str]) -> x509.Name:
    kinds = {
        "O": x509.NameOID.ORGANIZATION_NAME,
        "CN": x509.NameOID.COMMON_NAME,
        "C": x509.NameOID.COUNTRY_NAME,
    }
    return x509.Name([x509.NameAttribute(kinds[kind], text) for kind, text in subject])


@dataclass(frozen=True)
class Case:
    permitted: tuple[x509.GeneralName, ...]
    excluded: tuple[x509.GeneralName, ...]
    subject: x509.Name
    alternatives: tuple[x509.GeneralName, ...]
    accepted: bool


dns, uri, directory = x509.DNSName, x509.UniformResourceIdentifier, x509.DirectoryName


def ip(text: str) -> x509.IPAddress:
    return x509.IPAddress(ipaddress.ip_address(text))


def net(text: str) -> x509.IPAddress:
    return x509.IPAddress(ipaddress.ip_network(text))


ACME = names(("O", "Acme"))
CASES = {
    "a host below": Case((dns("a.example"),), (), ACME, (dns("x.y.a.example"),), True),
    "the host itself": Case((dns("a.example"),), (), ACME, (dns("A.Example"),), True),
    "a host that ends alike": Case((dns("a.example"),), (), ACME, (dns("ba.example"),), False),
    "one of two outside": Case((dns("a.example"),), (), ACME, (dns("a.example"), dns("b.example")), False),
    "one of two trees": Case((dns("a.example"), dns("b.example")), (), ACME, (dns("b.example"),), True),
    "an excluded host": Case((), (dns("a.example"),), ACME, (dns("x.a.example"),), False),
    "a host beside": Case((), (dns("a.example"),), ACME, (dns("b.example"),), True),
    "excluded within permitted": Case(
        (dns("example"),), (dns("a.example"),), ACME, (dns("x.a.example"),), False
    ),
    "another form": Case((dns("a.example"),), (), ACME, (ip("192.0.2.1"),), True),
    "an address within": Case((net("192.0.2.0/25"),), (), ACME, (ip("192.0.2.127"),), True),
    "an address without": Case((net("192.0.2.0/25"),), (), ACME, (ip("192.0.2.128"),), False),
    "an address of the other version": Case((net("192.0.2.0/25"),), (), ACME, (ip("2001:db8::1"),), False),
    "an address of version 6": Case((net("2001:db8::/32"),), (), ACME, (ip("2001:db8:1::1"),), True),
    "a host of a uri": Case((uri("a.example"),), (), ACME, (uri("https://a.example/x"),), True),
    "a host below a uri's": Case((uri("a.example"),), (), ACME, (uri("https://x.a.example/x"),), False),
    "a host below, with a period": Case((uri(".a.example"),), (), ACME, (uri("https://x.a.example"),), True),
    "a uri without a host": Case((uri("a.example"),), (), ACME, (uri("urn:example:1"),), False),
    "an organization": Case((directory(ACME),), (), names(("O", "ACME"), ("CN", "x")), (), True),
    "another organization": Case((directory(ACME),), (), names(("O", "Other"), ("CN", "x")), (), False),
    "an organization elsewhere": Case((directory(ACME),), (), names(("CN", "x"), ("O", "Acme")), (), False),
    "an excluded organization, spelled otherwise": Case(
        (), (directory(ACME),), names(("O", "acme"), ("CN", "x")), (), False
    ),
    "an empty subject": Case((directory(ACME),), (), x509.Name([]), (dns("a.example"),), True),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_we_and_openssl_agree(case: Case, tmp_path: Path) -> None:
    """What we refuse cannot be verified, and what we permit can."""
    constraints = x509.NameConstraints(case.permitted or None, case.excluded or None)
    alternative = x509.SubjectAlternativeName(case.alternatives) if case.alternatives else None
    ours = complaint(
        [read_limits(constraints.public_bytes())],
        case.subject.public_bytes(),
        alternative.public_bytes() if alternative else None,
    )
    assert (ours is None) is case.accepted, ours
    authority, leaf = built(constraints, case.subject, alternative)
    theirs = openssl_verify(realm(P256).root_der, [authority], leaf, tmp_path, NOW)
    assert (theirs.returncode == 0) is case.accepted, theirs.stdout + theirs.stderr


def built(
    constraints: x509.NameConstraints, subject: x509.Name, alternative: x509.SubjectAlternativeName | None
) -> tuple[bytes, bytes]:
    """An authority with these constraints, and a certificate below it, by the library."""
    root = x509.load_der_x509_certificate(realm(P256).root_der)
    above = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    key = private_key(P256, LABEL).public_key()
    own = x509.SubjectKeyIdentifier.from_public_key(key)
    usage = [False] * 5 + [True, True] + [False] * 2
    authority = (
        x509.CertificateBuilder()
        .subject_name(names(("CN", "Confined")))
        .issuer_name(root.subject)
        .serial_number(serial("confined"))
        .not_valid_before(FOUNDED)
        .not_valid_after(NOW.replace(year=2030))
        .public_key(key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(*usage), critical=True)
        .add_extension(constraints, critical=True)
        .add_extension(own, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier(above.digest, None, None), critical=False)
    )
    signed = authority.sign(private_key(P256, "root"), ALGORITHMS[P256].hash_algorithm)  # type: ignore[arg-type]  # Ed25519 goes with no hash
    leaf = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signed.subject)
        .serial_number(serial("below"))
        .not_valid_before(FOUNDED)
        .not_valid_after(NOW.replace(year=2029))
        .public_key(private_key(P256, "device").public_key())
        .add_extension(x509.AuthorityKeyIdentifier(own.digest, None, None), critical=False)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(private_key(P256, "device").public_key()),
            critical=False,
        )
    )
    if alternative is not None:
        leaf = leaf.add_extension(alternative, critical=not list(subject))
    below = leaf.sign(private_key(P256, LABEL), ALGORITHMS[P256].hash_algorithm)  # type: ignore[arg-type]  # Ed25519 goes with no hash
    return signed.public_bytes(Encoding.DER), below.public_bytes(Encoding.DER)


def constrained(*trees: Subtree, excluded: tuple[Subtree, ...] = ()) -> profiles.Profile:
    return replace(
        profiles.load("issuing"), name_constraints=NameConstraints(permitted=trees, excluded=excluded)
    )


def tree(form: NameForm, text: str) -> Subtree:
    return Subtree(form=form, value=TextTemplate.constant(text), name=())


OURS = Subtree(
    form=NameForm.DIRECTORY,
    value=None,
    name=(profiles.load("vehicle").subject[0],),
)


def authority_with(profile: profiles.Profile) -> bytes:
    tbs = issuance.build_reference(
        profile,
        realm(P256).root,
        serial_number=serial("confined"),
        subject_public_key_info=spki(P256, LABEL),
        not_before=FOUNDED,
        variables=VARIABLES,
    )
    return issuance.sign_certificate(
        lint.permit(tbs), lambda _, message: signed_by(private_key(P256, "root"), message)
    )


def test_every_form_is_written_read_and_kept(tmp_path: Path) -> None:
    """From a profile to an authority, and from its certificate to what it may sign."""
    profile = constrained(
        tree(NameForm.DNS, "factory.example localhost"),
        tree(NameForm.IP, "192.0.2.0/24 2001:db8::/32"),
        tree(NameForm.URI, ".products.example"),
        OURS,
        excluded=(tree(NameForm.DNS, "secret.factory.example"),),
    )
    signed = authority_with(profile)
    issuer = Issuer.from_certificate(LABEL, signed)
    (limits,) = issuer.name_limits
    assert [tag for tag, _ in limits.permitted] == [0x82, 0x82, 0x87, 0x87, 0x86, 0xA4]
    assert limits.excluded == ((0x82, b"secret.factory.example"),)
    parsed = x509.load_der_x509_certificate(signed).extensions.get_extension_for_class(x509.NameConstraints)
    assert parsed.critical
    for dns_names, accepted in (("line-1.factory.example", True), ("x.secret.factory.example", False)):
        tbs = issuance.compile_template(
            profiles.load("server"), issuer, VARIABLES | {"dns_names": dns_names}
        ).fill(
            serial_number=serial("x"),
            subject_public_key_info=spki(P256, "server"),
            not_before=NOW,
            variables={},
        )
        refused = complaint(
            issuer.name_limits,
            lint.read(tbs.der).subject,
            lint.read(tbs.der).extensions[b"\x06\x03\x55\x1d\x11"],
        )
        assert (refused is None) is accepted
        signature = signed_by(private_key(P256, LABEL), tbs.der)
        leaf = assemble(tbs.der, ALGORITHMS[P256].signature_algorithm, signature)
        verified = openssl_verify(realm(P256).root_der, [signed], leaf, tmp_path, NOW)
        assert (verified.returncode == 0) is accepted, verified.stderr


@pytest.mark.parametrize(
    ("form", "text", "said"),
    [
        (NameForm.DNS, "a..b", "no dns name"),
        (NameForm.DNS, " ", "names nothing"),
        (NameForm.IP, "192.0.2.1/24", "has host bits set"),
        (NameForm.URI, "https://a.example", "no dns name"),
    ],
)
def test_a_constraint_that_is_none_is_refused(form: NameForm, text: str, said: str) -> None:
    with pytest.raises(MalformedRequest, match=said):
        authority_with(constrained(tree(form, text)))


def test_a_form_that_nobody_here_can_judge_refuses_every_name_of_it() -> None:
    """RFC 5280 section 4.2.1.10: process the constraint, or reject the certificate."""
    limits = NameLimits(permitted=((0xA0, b""),), excluded=())
    hardware = x509.SubjectAlternativeName([x509.OtherName(x509.ObjectIdentifier("1.2.3"), b"\x05\x00")])
    assert complaint([limits], ACME.public_bytes(), None) is None
    assert "cannot be judged" in (complaint([limits], ACME.public_bytes(), hardware.public_bytes()) or "")


@pytest.mark.parametrize(
    "value",
    ["3000", "3002a000", "3006a0043002a200", "300ba009300782016180010a81", "3004a000a000", "3002a200"],
)
def test_what_is_no_name_constraints_is_malformed(value: str) -> None:
    """The fourth has a minimum, for which RFC 5280 has no use."""
    octets = bytes.fromhex(value)
    if value != "3006a0043002a200":
        with pytest.raises(MalformedRequest):
            read_limits(octets)
    else:
        assert read_limits(octets) == NameLimits(((0xA2, b""),), ())


@given(st.binary(max_size=40))
def test_any_octets_are_constraints_or_malformed(octets: bytes) -> None:
    try:
        limits = nameconstraints.read_limits(octets)
    except MalformedRequest:
        return
    assert limits.permitted or limits.excluded


@given(st.sampled_from([0x82, 0x86, 0x87, 0xA4, 0xA0]), st.binary(max_size=12), st.binary(max_size=12))
def test_any_names_are_judged_or_malformed(tag: int, base: bytes, name: bytes) -> None:
    limits = NameLimits(permitted=((tag, base),), excluded=())
    alternative = bytes((0x30, len(name) + 2, tag, len(name))) + name
    try:
        complaint([limits], b"\x30\x00", alternative)
    except MalformedRequest:
        return
