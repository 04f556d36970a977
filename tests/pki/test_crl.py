"""CRLs, as the library writes them and as OpenSSL, GnuTLS and pkilint judge them (SPEC F2, F5)."""

import mmap
import subprocess
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from birthmark.errors import IntegrityFailure, MalformedRequest, PolicyRefused, TooLarge
from birthmark.pki import der, profiles
from birthmark.pki.algorithms import ALGORITHMS
from birthmark.pki.certificates import assemble, to_pem
from birthmark.pki.crl import (
    Covers,
    CRLScope,
    CRLTerms,
    assemble_crl,
    crl_number,
    frame,
    permit,
    read_crl,
    sign_crl,
    verify_crl,
)
from birthmark.pki.keys import KeyAlgorithm
from birthmark.pki.revocation import ReasonCode, revoked_entry
from tests.pki.sample import FOUNDED, ISSUING_KEY, NOW, Realm, private_key, realm, serial, spki
from tests.pki.test_revocation import library_entry, moments, reasons, serials
from tests.support.lint import lint_crl
from tests.support.programs import need

P256 = KeyAlgorithm.EC_P256
ALL_KINDS = (P256, KeyAlgorithm.EC_P384, KeyAlgorithm.ED25519)
OTHER_KINDS = (KeyAlgorithm.EC_P521, KeyAlgorithm.ED448, KeyAlgorithm.RSA_3072)
SHARD, OTHER_SHARD = "http://pki.example/crl/1.crl", "http://pki.example/crl/2.crl"
DELTAS = "http://pki.example/crl/delta.crl"
WEEK = timedelta(days=7)
SCOPES = {
    "full": CRLScope(),
    "full with deltas": CRLScope(freshest_crl=DELTAS),
    "delta": CRLScope(base=7),
    "partition": CRLScope(covers=Covers.USERS, distribution_point=SHARD),
    "partition with deltas": CRLScope(covers=Covers.USERS, distribution_point=SHARD, freshest_crl=DELTAS),
    "delta of a partition": CRLScope(covers=Covers.USERS, distribution_point=SHARD, base=7),
    "authorities": CRLScope(covers=Covers.AUTHORITIES),
    "everything at one place": CRLScope(distribution_point=SHARD),
}
ENTRIES = (
    revoked_entry(serial("a"), NOW, ReasonCode.KEY_COMPROMISE),
    revoked_entry(serial("b"), NOW, ReasonCode.UNSPECIFIED),
    revoked_entry(3, NOW, ReasonCode.CERTIFICATE_HOLD, invalidity_date=NOW - WEEK),
)


def terms_of(ours: Realm, scope: CRLScope = SCOPES["full"], number: int | None = None) -> CRLTerms:
    return CRLTerms(
        issuer=ours.issuing,
        scope=scope,
        number=crl_number(NOW) if number is None else number,
        this_update=NOW,
        next_update=NOW + WEEK,
    )


def crl_of(
    ours: Realm,
    scope: CRLScope = SCOPES["full"],
    entries: tuple[bytes, ...] = ENTRIES,
    number: int | None = None,
) -> bytes:
    return assemble_crl(terms_of(ours, scope, number), entries, ours.sign)


def shard_profile(location: str) -> profiles.Profile:
    return replace(
        profiles.load("idevid"),
        crl_distribution_point=profiles.TextTemplate(location, ((location, None),), frozenset()),
    )


# --- against the library ---


def library_builder(terms: CRLTerms) -> x509.CertificateRevocationListBuilder:
    """The same list, besides its entries, by the library's builder."""
    assert terms.issuer.certificate is not None
    scope = terms.scope
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(x509.load_der_x509_certificate(terms.issuer.certificate).subject)
        .last_update(terms.this_update)
        .next_update(terms.next_update)
        .add_extension(x509.AuthorityKeyIdentifier(terms.issuer.key_identifier, None, None), critical=False)
        .add_extension(x509.CRLNumber(terms.number), critical=False)
    )
    if scope.base is not None:
        builder = builder.add_extension(x509.DeltaCRLIndicator(scope.base), critical=True)
    location = scope.distribution_point
    if location is not None or scope.covers is not Covers.ALL:
        point = x509.IssuingDistributionPoint(
            full_name=[x509.UniformResourceIdentifier(location)] if location else None,
            relative_name=None,
            only_contains_user_certs=scope.covers is Covers.USERS,
            only_contains_ca_certs=scope.covers is Covers.AUTHORITIES,
            only_some_reasons=None,
            indirect_crl=False,
            only_contains_attribute_certs=False,
        )
        builder = builder.add_extension(point, critical=True)
    if scope.freshest_crl is not None:
        uri = x509.UniformResourceIdentifier(scope.freshest_crl)
        points = x509.FreshestCRL([x509.DistributionPoint([uri], None, None, None)])
        builder = builder.add_extension(points, critical=False)
    return builder


entries_drawn = st.lists(st.tuples(serials, moments, reasons), max_size=5)


@settings(max_examples=60)
@given(
    st.sampled_from(ALL_KINDS),
    st.sampled_from(sorted(SCOPES)),
    st.integers(8, (1 << 159) - 1),
    st.datetimes(datetime(2026, 1, 2), datetime(9000, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001  # made aware by the strategy
    st.timedeltas(timedelta(seconds=1), timedelta(days=400)),
    entries_drawn,
)
def test_a_list_is_octet_for_octet_the_librarys(
    algorithm: KeyAlgorithm,
    scope: str,
    number: int,
    at: datetime,
    lasts: timedelta,
    drawn: list[tuple[int, datetime, ReasonCode]],
) -> None:
    ours = realm(algorithm)
    terms = CRLTerms(
        issuer=ours.issuing, scope=SCOPES[scope], number=number, this_update=at, next_update=at + lasts
    )
    refused = {ReasonCode.AA_COMPROMISE} | (set() if terms.scope.base else {ReasonCode.REMOVE_FROM_CRL})
    drawn = [entry for entry in drawn if entry[2] not in refused]
    crl = assemble_crl(terms, [revoked_entry(*entry) for entry in drawn], ours.sign)
    builder = library_builder(terms)
    for entry in drawn:
        builder = builder.add_revoked_certificate(library_entry(*entry, None))
    key, hashed = private_key(algorithm, ISSUING_KEY), ALGORITHMS[algorithm].hash_algorithm
    theirs = builder.sign(key, hashed)  # type: ignore[arg-type]  # one of the three it takes
    parsed = x509.load_der_x509_crl(crl)
    assert parsed.tbs_certlist_bytes == theirs.tbs_certlist_bytes
    summary = verify_crl(crl, ours.issuing)
    assert (summary.scope, summary.number) == (terms.scope, number)
    assert summary.this_update == at.replace(microsecond=0)
    assert summary.next_update == (at + lasts).replace(microsecond=0)
    assert len(parsed) == len(drawn)


# --- against OpenSSL, GnuTLS, pkilint ---


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, arguments)], check=False, capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize("algorithm", ALL_KINDS)
@pytest.mark.parametrize("scope", sorted(SCOPES))
def test_openssl_and_pkilint_accept_every_scope(scope: str, algorithm: KeyAlgorithm, tmp_path: Path) -> None:
    ours = realm(algorithm)
    (tmp_path / "issuer.pem").write_text(to_pem(ours.issuing_der))
    for entries in ((), ENTRIES):
        crl = crl_of(ours, SCOPES[scope], entries)
        (tmp_path / "crl.pem").write_text(to_pem(crl, "X509 CRL"))
        found = run(
            need("openssl"), "crl", "-in", tmp_path / "crl.pem", "-noout", "-verify", "-CAfile",
            tmp_path / "issuer.pem",
        )  # fmt: skip
        assert (found.returncode, found.stderr.strip()) == (0, "verify OK"), found.stdout
        assert lint_crl(crl, of_authorities=scope == "authorities") == []


@pytest.mark.parametrize("algorithm", ALL_KINDS + OTHER_KINDS)
def test_gnutls_verifies_the_list(algorithm: KeyAlgorithm, tmp_path: Path) -> None:
    """certtool knows no other time than now, so this list lasts."""
    ours = realm(algorithm)
    program = need("certtool", "gnutls-bin")
    lasting = replace(terms_of(ours), this_update=FOUNDED, next_update=datetime(2099, 1, 1, tzinfo=UTC))
    crl = assemble_crl(lasting, ENTRIES, ours.sign)
    (tmp_path / "crl.pem").write_text(to_pem(crl, "X509 CRL"))
    (tmp_path / "issuer.pem").write_text(to_pem(ours.issuing_der))
    (tmp_path / "other.pem").write_text(to_pem(ours.root_der))

    def verified(issuer: str) -> str:
        found = run(
            program, "--verify-crl", "--load-ca-certificate", tmp_path / issuer,
            "--infile", tmp_path / "crl.pem",
        )  # fmt: skip
        return found.stdout + found.stderr

    assert "Verification output: Verified" in verified("issuer.pem")
    assert "Verification output: Not verified" in verified("other.pem")


class Checked:
    """What ``openssl verify`` says of one certificate when it is shown these lists."""

    def __init__(self, ours: Realm, leaf: bytes, folder: Path) -> None:
        self.folder = folder
        (folder / "leaf.pem").write_text(to_pem(leaf))
        (folder / "root.pem").write_text(to_pem(ours.root_der))
        (folder / "issuing.pem").write_text(to_pem(ours.issuing_der))

    def by(self, *crls: bytes, deltas: bool = False) -> str:
        (self.folder / "crls.pem").write_text("".join(to_pem(crl, "X509 CRL") for crl in crls))
        found = run(
            need("openssl"), "verify", "-x509_strict", "-crl_check", "-extended_crl",
            *(["-use_deltas"] if deltas else []), "-attime", str(int(NOW.timestamp()) + 60),
            "-CAfile", self.folder / "root.pem", "-untrusted", self.folder / "issuing.pem",
            "-CRLfile", self.folder / "crls.pem", self.folder / "leaf.pem",
        )  # fmt: skip
        return found.stdout + found.stderr


@pytest.mark.parametrize("algorithm", ALL_KINDS + OTHER_KINDS)
def test_openssl_finds_a_revoked_device_in_its_own_partition_only(
    algorithm: KeyAlgorithm, tmp_path: Path
) -> None:
    ours = realm(algorithm)
    profile = shard_profile(SHARD)
    leaf = Checked(ours, ours.issue(profile, spki(P256, "device")), tmp_path)
    revoked = revoked_entry(serial(profile.name), NOW, ReasonCode.KEY_COMPROMISE)
    here = CRLScope(covers=Covers.USERS, distribution_point=SHARD)
    elsewhere = replace(here, distribution_point=OTHER_SHARD)
    assert ": OK" in leaf.by(crl_of(ours, here))
    assert "certificate revoked" in leaf.by(crl_of(ours, here, (*ENTRIES, revoked)))
    assert "certificate revoked" in leaf.by(crl_of(ours, CRLScope(), (*ENTRIES, revoked)))
    assert "different CRL scope" in leaf.by(crl_of(ours, elsewhere, (revoked,)))
    assert "different CRL scope" in leaf.by(crl_of(ours, CRLScope(covers=Covers.AUTHORITIES)))


def test_openssl_finds_a_revocation_and_its_end_in_deltas(tmp_path: Path) -> None:
    """RFC 5280 section 5.2.4; only OpenSSL's -use_deltas looks there."""
    ours = realm(P256)
    profile = profiles.load("idevid")
    leaf = Checked(ours, ours.issue(profile, spki(P256, "device")), tmp_path)
    number = serial(profile.name)
    held = revoked_entry(number, NOW, ReasonCode.CERTIFICATE_HOLD)
    ended = revoked_entry(number, NOW, ReasonCode.REMOVE_FROM_CRL)
    base = CRLScope(freshest_crl=DELTAS)
    with_it, without = crl_of(ours, base, (held,), 100), crl_of(ours, base, (), 100)
    delta = CRLScope(base=100)
    assert "certificate revoked" in leaf.by(without, crl_of(ours, delta, (held,), 101), deltas=True)
    assert "certificate revoked" in leaf.by(with_it, crl_of(ours, delta, (), 101), deltas=True)
    assert ": OK" in leaf.by(with_it, crl_of(ours, delta, (ended,), 101), deltas=True)


# --- streaming ---


def test_a_list_streamed_through_a_file_is_the_one_made_in_memory(tmp_path: Path) -> None:
    """Ten thousand entries are more than one run of the expression; Ed25519 signs the same each time."""
    ours = realm(KeyAlgorithm.ED25519)
    entries = [revoked_entry(1 << 150 | index, NOW, ReasonCode.SUPERSEDED) for index in range(3)] * 3500
    terms = terms_of(ours, SCOPES["partition"])
    around = frame(terms, sum(map(len, entries)))
    with (tmp_path / "tbs").open("w+b") as file:
        file.writelines((around.prefix, *entries, around.suffix))
        file.flush()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            granted = permit(mapped, terms)
            asked: list[object] = []

            def sign(label: str, message: bytes) -> bytes:
                asked.append(message)
                return ours.sign(ISSUING_KEY, message)

            header, trailer = sign_crl(granted, sign)
            assert asked == [mapped]
            assert asked.pop() is mapped, "the key store is shown the file itself, not a copy"
            crl = header + mapped[:] + trailer
    assert crl == assemble_crl(terms, entries, ours.sign)
    assert len(x509.load_der_x509_crl(crl)) == len(entries)


def test_the_number_grows_with_the_clock() -> None:
    """RFC 5280 section 5.2.3: monotonically increasing, at most 20 octets."""
    later = [NOW + timedelta(microseconds=step) for step in (0, 1, 2, 1_000_000)]
    numbers = [crl_number(at) for at in later]
    assert numbers == sorted(set(numbers))
    assert crl_number(datetime(9999, 12, 31, tzinfo=UTC)) < 1 << 63
    with pytest.raises(PolicyRefused, match="before 1970"):
        crl_number(datetime(1969, 12, 31, tzinfo=UTC))


@pytest.mark.parametrize("number", [-1, 1 << 159])
def test_a_number_of_more_than_20_octets_is_refused(number: int) -> None:
    """RFC 5280 section 5.2.3."""
    with pytest.raises(PolicyRefused, match="20 octets"):
        frame(terms_of(realm(P256), number=number), 0)


def test_a_list_of_four_gibibytes_is_too_large() -> None:
    with pytest.raises(TooLarge, match="4 GiB"):
        frame(terms_of(realm(P256)), 1 << 32)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"distribution_point": "ldap://pki.example/"}, "no http location"),
        ({"freshest_crl": "http://pki.example/a b"}, "no http location"),
        ({"base": -1}, "negative"),
        ({"base": 1 << 159}, "20 octets"),
        ({"base": 1, "freshest_crl": DELTAS}, "no further deltas"),
    ],
)
def test_a_scope_that_no_list_may_have_is_refused(arguments: dict[str, object], complaint: str) -> None:
    with pytest.raises(MalformedRequest, match=complaint):
        CRLScope(**arguments)  # type: ignore[arg-type]  # arguments in a mapping have one type


# --- reading and verifying what is published ---


def test_a_list_of_another_or_a_changed_one_is_not_believed() -> None:
    ours, theirs = realm(P256), realm(KeyAlgorithm.EC_P384)
    crl = crl_of(ours)
    with pytest.raises(IntegrityFailure, match="another issuer"):
        verify_crl(crl, ours.root)
    with pytest.raises(IntegrityFailure, match="another issuer"):
        verify_crl(crl, theirs.issuing)
    changed = bytearray(crl)
    changed[crl.index(ENTRIES[0]) + 10] ^= 1
    with pytest.raises(IntegrityFailure, match="signature"):
        verify_crl(bytes(changed), ours.issuing)


def test_the_lists_of_others_are_read_too() -> None:
    """Unknown extensions that are not critical are passed over; a scope we cannot say is refused."""
    ours = realm(P256)
    key = private_key(P256, ISSUING_KEY)
    hashed = ALGORITHMS[P256].hash_algorithm
    strange = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.32473.1"), b"\x05\x00")
    builder = library_builder(terms_of(ours))
    lenient = builder.add_extension(strange, critical=False).sign(key, hashed)  # type: ignore[arg-type]  # Ed25519 goes with no hash
    assert verify_crl(lenient.public_bytes(Encoding.DER), ours.issuing).scope == CRLScope()
    strict = builder.add_extension(strange, critical=True).sign(key, hashed)  # type: ignore[arg-type]  # Ed25519 goes with no hash
    with pytest.raises(MalformedRequest, match="critical and unknown"):
        read_crl(strict.public_bytes(Encoding.DER))
    some_reasons = x509.IssuingDistributionPoint(
        None, None, False, False, frozenset({x509.ReasonFlags.key_compromise}), False, False
    )
    partial = builder.add_extension(some_reasons, critical=True).sign(key, hashed)  # type: ignore[arg-type]  # Ed25519 goes with no hash
    with pytest.raises(MalformedRequest, match="something else"):
        read_crl(partial.public_bytes(Encoding.DER))


def test_what_is_no_list_is_not_read() -> None:
    ours = realm(P256)
    crl, terms = crl_of(ours), terms_of(ours)
    outside, algorithm = b"\x30\x00", ALGORITHMS[P256].signature_algorithm
    around = frame(terms, 2)
    tbs = around.prefix + b"\x05\x00" + around.suffix
    plain = around.suffix.replace(b"\x06\x03\x55\x1d\x14\x04", b"\x06\x03\x55\x1d\x14\x05")
    for octets, complaint in (
        (crl + outside, "one sequence"),
        (b"\x04\x00", "one sequence"),
        (der.encode(der.SEQUENCE, tbs), "list, algorithm and signature"),
        (assemble(outside, algorithm, b""), "not version"),
        (assemble(tbs, ALGORITHMS[KeyAlgorithm.ED25519].signature_algorithm, b""), "in the signed part"),
        (assemble(around.prefix + b"\x05\x00" + plain, algorithm, b""), "identifier, criticality and value"),
    ):
        with pytest.raises(MalformedRequest, match=complaint):
            read_crl(octets)
    nonsense = assemble(tbs, algorithm, ours.sign(ISSUING_KEY, tbs))
    assert read_crl(nonsense).entries_size == 2, "the entries are not looked at"
    with pytest.raises(MalformedRequest, match="not a CRL"):
        verify_crl(nonsense, ours.issuing)


@given(st.binary(max_size=300))
def test_reading_a_list_is_total(octets: bytes) -> None:
    with pytest.raises(MalformedRequest):
        read_crl(octets)


@settings(max_examples=100)
@given(st.sampled_from(sorted(SCOPES)), st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_reading_a_damaged_list_is_total(scope: str, place: float, flip: int) -> None:
    octets = bytearray(crl_of(realm(KeyAlgorithm.ED25519), SCOPES[scope], ENTRIES[:1]))
    octets[int(place * len(octets))] ^= flip
    with suppress(MalformedRequest):
        read_crl(bytes(octets))
