"""Every profile's certificates are accepted by the relying parties that will meet them (SPEC G1, G2).

General ones judge every path: OpenSSL (strict), GnuTLS, strongSwan, the JDK and pyhanko-certvalidator;
pkilint judges every certificate, less what the profile waives with its reason.  Those that know one world
judge what is made for it: Matter's SDK, EcoG for ISO 15118-2.
"""

from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from birthmark.pki import profiles
from birthmark.pki.keys import KeyAlgorithm
from tests.peers.parties import PATH_PARTIES, Desk
from tests.peers.small import key_usage
from tests.pki.sample import NOW, VARIABLES, PrivateKey
from tests.support import chains
from tests.support.checkers import chip, iso15118
from tests.support.checkers.chip import Kind, Numbers
from tests.support.checkers.values import Chain, Status
from tests.support.lint import pkilint_findings, pkilint_pair_findings, unwaived

NAMES = profiles.names()
EVERY_KEY = [(name, algorithm) for name in NAMES for algorithm in profiles.load(name).subject_key_algorithms]


def path(profile: str, algorithm: KeyAlgorithm | None = None, *, located: bool = False) -> Chain:
    """Our path to a certificate of this profile; with locations of revocation where the profile has them."""
    variables = chains.LOCATIONS if located else {}
    return as_chain(chains.chain_of(profile, algorithm=algorithm, variables=variables))


def as_chain(made: chains.Chain) -> Chain:
    """The same path as the checkers take it."""
    return Chain(root=made.root_der, between=made.intermediates, leaf=made.leaf_der)


@pytest.mark.parametrize(("profile", "algorithm"), EVERY_KEY)
def test_general_parties_accept_its_path_with_every_kind_of_key(
    profile: str, algorithm: KeyAlgorithm, desk: Desk
) -> None:
    for located in (False, True):
        chain = path(profile, algorithm, located=located)
        verdicts = {name: party(desk, chain, NOW) for name, party in PATH_PARTIES.items()}
        assert {name: verdict.said for name, verdict in verdicts.items() if not verdict.good} == {}


@pytest.mark.parametrize("profile", NAMES)
def test_pkilint_finds_in_its_certificate_only_what_the_profile_waives(profile: str) -> None:
    described = profiles.load(profile)
    for located in (False, True):
        chain = path(profile, located=located)
        findings = pkilint_findings(chain.leaf)
        if chain.leaf != chain.root:
            findings += pkilint_pair_findings(chain.issuer, chain.leaf)
        assert unwaived(findings, described) == []


@pytest.mark.parametrize("name", PATH_PARTIES)
def test_general_parties_refuse_the_path_of_another_root(name: str, desk: Desk) -> None:
    """Of the same name and algorithm, but another key."""
    chain = replace(path("idevid"), root=other_root(path("idevid").root))
    assert PATH_PARTIES[name](desk, chain, NOW).status is Status.REFUSED


# --- Matter ---


def test_the_matter_sdk_accepts_our_hierarchy_and_reads_its_numbers() -> None:
    chain = path("matter-dac")
    kinds = ((chain.root, Kind.PAA), (chain.issuer, Kind.PAI), (chain.leaf, Kind.DAC))
    for certificate, kind in kinds:
        assert len(certificate) <= 600
        verdict = chip.format_verdict(certificate, kind)
        assert verdict.good, f"{kind.name}: {verdict.said}"
    assert chip.chain_verdict(chain).good
    vendor, product = int(VARIABLES["vendor_id"], 16), int(VARIABLES["product_id"], 16)
    assert chip.numbers_of(chain.leaf) == Numbers(vendor=vendor, product=product)
    assert chip.numbers_of(chain.issuer).vendor == vendor


def test_the_matter_sdk_refuses_our_device_certificate_with_one_key_usage_more() -> None:
    made = chains.chain_of("matter-dac")
    usage = key_usage(digital_signature=True, key_agreement=True)
    assert chip.format_verdict(resigned(made.leaf_der, made.issuer_keys[0]), Kind.DAC).good
    assert chip.format_verdict(resigned(made.leaf_der, made.issuer_keys[0], usage), Kind.DAC).status is (
        Status.REFUSED
    )


def test_the_matter_sdk_refuses_other_roots_and_other_identities() -> None:
    chain = path("matter-dac")
    assert chip.chain_verdict(replace(chain, root=other_root(chain.root))).status is Status.REFUSED
    assert chip.format_verdict(path("idevid").leaf, Kind.DAC).status is Status.REFUSED
    assert chip.format_verdict(path("vehicle").leaf, Kind.DAC).status is Status.REFUSED


# --- ISO 15118-2 ---


def test_ecog_accepts_our_provisioning_chain_and_refuses_another_root() -> None:
    chain = path("iso15118-2-oem-prov")
    stranger = replace(chain, root=other_root(chain.root))
    accepted, refused = iso15118.chain_verdicts([chain, stranger], at=NOW)
    assert accepted.good, accepted.said
    assert "CertSignatureError" in refused.said


# --- what is not ours ---


def other_root(root: bytes) -> bytes:
    """A root certificate that says the same of another key."""
    return resigned(root, ec.generate_private_key(ec.SECP256R1()), self_signed=True)


def resigned(
    certificate: bytes,
    key: PrivateKey,
    usage: x509.KeyUsage | None = None,
    *,
    self_signed: bool = False,
) -> bytes:
    """The same certificate put together anew, with another keyUsage if one is given."""
    parsed = x509.load_der_x509_certificate(certificate)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    builder = x509.CertificateBuilder(
        issuer_name=parsed.issuer,
        subject_name=parsed.subject,
        public_key=key.public_key() if self_signed else parsed.public_key(),
        serial_number=parsed.serial_number,
        not_valid_before=parsed.not_valid_before_utc,
        not_valid_after=parsed.not_valid_after_utc,
    )
    for found in parsed.extensions:
        value = usage if usage and isinstance(found.value, x509.KeyUsage) else found.value
        builder = builder.add_extension(value, critical=found.critical)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
