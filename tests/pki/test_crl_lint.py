"""Each rule refuses a list that is broken in exactly its way (SPEC F2, F5)."""

import mmap
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from birthmark.errors import PolicyRefused
from birthmark.pki import crl_lint, der
from birthmark.pki.algorithms import ALGORITHMS
from birthmark.pki.crl import Covers, CRLPermit, CRLScope, CRLTerms, assemble_crl, frame, permit
from birthmark.pki.issuer import Issuer
from birthmark.pki.keys import KeyAlgorithm
from birthmark.pki.revocation import ReasonCode, encode_time, read_entry, revoked_entry
from tests.pki.sample import FOUNDED, ISSUING_KEY, NOW, private_key, realm
from tests.pki.test_revocation import moments, serials

P256 = KeyAlgorithm.EC_P256
OURS = realm(P256)
ENTRY = revoked_entry(0x80, NOW, ReasonCode.KEY_COMPROMISE)
AKI, NUMBER, DELTA, POINT, FRESHEST = "2.5.29.35", "2.5.29.20", "2.5.29.27", "2.5.29.28", "2.5.29.46"
AIA = "1.3.6.1.5.5.7.1.1"
FULL, DELTA_SCOPE = CRLScope(), CRLScope(base=7)
PARTITION = CRLScope(covers=Covers.USERS, distribution_point="http://pki.example/crl/1.crl")


def terms_of(scope: CRLScope = FULL, number: int = 1000) -> CRLTerms:
    return CRLTerms(
        issuer=OURS.issuing,
        scope=scope,
        number=number,
        this_update=NOW,
        next_update=NOW + timedelta(days=7),
    )


def tbs_of(terms: CRLTerms, *entries: bytes) -> bytes:
    joined = b"".join(entries)
    around = frame(terms, len(joined))
    return around.prefix + joined + around.suffix


@dataclass
class Parts:
    """A TBSCertList taken apart by the library's eyes, to be put together otherwise."""

    fields: list[bytes]
    """Version, signature, issuer, thisUpdate, nextUpdate."""
    entries: bytes | None
    extensions: list[tuple[str, bool, bytes]]

    @classmethod
    def of(cls, terms: CRLTerms) -> "Parts":
        octets = tbs_of(terms, ENTRY)
        fields = der.children(octets, *der.only(octets, der.SEQUENCE)[2:])
        parsed = x509.load_der_x509_crl(assemble_crl(terms, [ENTRY], OURS.sign))
        extensions = [
            (found.oid.dotted_string, found.critical, found.value.public_bytes())
            for found in parsed.extensions
        ]
        return cls([octets[found[1] : found[3]] for found in fields[:5]], ENTRY, extensions)

    def assemble(self) -> bytes:
        extensions = [
            der.encode(
                der.SEQUENCE,
                der.oid(identifier),
                b"\x01\x01\xff" if critical else b"",
                der.encode(der.OCTET_STRING, value),
            )
            for identifier, critical, value in self.extensions
        ]
        entries = b"" if self.entries is None else der.encode(der.SEQUENCE, self.entries)
        wrapped = der.encode(0xA0, der.encode(der.SEQUENCE, *extensions))
        return der.encode(der.SEQUENCE, *self.fields, entries, wrapped)


def field(index: int, octets: bytes) -> Callable[[Parts], None]:
    return lambda parts: parts.fields.__setitem__(index, octets)


def value(identifier: str, octets: bytes) -> Callable[[Parts], None]:
    def change(parts: Parts) -> None:
        found = [name for name, _, _ in parts.extensions].index(identifier)
        parts.extensions[found] = (identifier, parts.extensions[found][1], octets)

    return change


def critical(identifier: str, mark: bool) -> Callable[[Parts], None]:  # noqa: FBT001  # a case, not a switch
    def change(parts: Parts) -> None:
        found = [name for name, _, _ in parts.extensions].index(identifier)
        parts.extensions[found] = (identifier, mark, parts.extensions[found][2])

    return change


def without(identifier: str) -> Callable[[Parts], None]:
    def change(parts: Parts) -> None:
        parts.extensions = [found for found in parts.extensions if found[0] != identifier]

    return change


def extra(identifier: str, *, mark: bool = False) -> Callable[[Parts], None]:
    return lambda parts: parts.extensions.append((identifier, mark, b"\x30\x00"))


def entries(octets: bytes) -> Callable[[Parts], None]:
    return lambda parts: setattr(parts, "entries", octets)


def delta_of_seven(parts: Parts) -> None:
    parts.extensions.append((DELTA, True, der.integer(7)))


def twice(parts: Parts) -> None:
    parts.extensions.append(parts.extensions[0])


TOO_EARLY = FOUNDED - timedelta(seconds=1)
OTHER_ALGORITHM = ALGORITHMS[KeyAlgorithm.EC_P384].signature_algorithm


def point(shard: int | None, *flags: bool) -> x509.IssuingDistributionPoint:
    """users, authorities, indirect, attributes."""
    uri = x509.UniformResourceIdentifier(f"http://pki.example/crl/{shard}.crl")
    users, authorities, indirect, attributes = flags
    return x509.IssuingDistributionPoint(
        full_name=None if shard is None else [uri],
        relative_name=None,
        only_contains_user_certs=users,
        only_contains_ca_certs=authorities,
        only_some_reasons=None,
        indirect_crl=indirect,
        only_contains_attribute_certs=attributes,
    )


WRONG_POINTS = (
    point(1, False, False, False, False),
    point(1, False, True, False, False),
    point(2, True, False, False, False),
    point(None, True, False, False, False),
)
OTHER_POINTS = (point(1, True, False, True, False), point(None, False, False, False, True))


@pytest.mark.parametrize(
    ("scope", "rule", "change"),
    [
        (FULL, "well_formed", field(0, b"\x02\x01\x00")),
        (FULL, "well_formed", field(0, b"")),
        (FULL, "signature_algorithm_is_the_issuers", field(1, OTHER_ALGORITHM)),
        (FULL, "issuer_is_the_authoritys_subject", field(2, OURS.root.subject)),
        (FULL, "issuer_is_the_authoritys_subject", field(2, b"\x30\x00")),
        (FULL, "dates_are_the_agreed_ones", field(3, encode_time(NOW + timedelta(seconds=1)))),
        (FULL, "dates_are_the_agreed_ones", field(4, encode_time(NOW + timedelta(days=8)))),
        (FULL, "well_formed", field(3, b"\x18\x0f20261122123015Z")),
        (FULL, "well_formed", field(4, b"")),
        (FULL, "crl_number_is_the_agreed_one", value(NUMBER, der.integer(1001))),
        (FULL, "well_formed", value(NUMBER, der.integer(1 << 160))),
        (FULL, "well_formed", value(NUMBER, b"\x02\x01\xff")),
        (FULL, "well_formed", value(NUMBER, b"\x02\x02\x00\x01")),
        (FULL, "well_formed", value(NUMBER, b"\x02\x00")),
        (FULL, "well_formed", without(NUMBER)),
        (FULL, "authority_key_identifier_is_the_issuers", without(AKI)),
        (FULL, "authority_key_identifier_is_the_issuers", value(AKI, b"\x30\x03\x80\x01\x01")),
        (FULL, "extensions_are_the_scopes", extra(AIA)),
        (FULL, "well_formed", extra(AIA, mark=True)),
        (FULL, "well_formed", twice),
        (FULL, "scope_is_the_agreed_one", delta_of_seven),
        (FULL, "well_formed", critical(NUMBER, mark=True)),
        (DELTA_SCOPE, "criticality_is_the_standards", critical(DELTA, mark=False)),
        (DELTA_SCOPE, "scope_is_the_agreed_one", without(DELTA)),
        (DELTA_SCOPE, "scope_is_the_agreed_one", value(DELTA, der.integer(8))),
        (DELTA_SCOPE, "well_formed", extra(FRESHEST)),
        (PARTITION, "criticality_is_the_standards", critical(POINT, mark=False)),
        (PARTITION, "scope_is_the_agreed_one", without(POINT)),
        (PARTITION, "well_formed", value(POINT, b"\x30\x00")),
        (PARTITION, "well_formed", value(POINT, b"\x30\x03\x81\x01\x00")),
        *((PARTITION, "scope_is_the_agreed_one", value(POINT, p.public_bytes())) for p in WRONG_POINTS),
        *((PARTITION, "well_formed", value(POINT, p.public_bytes())) for p in OTHER_POINTS),
        (FULL, "entries_are_absent_or_some", entries(b"")),
    ],
)  # fmt: skip
def test_a_broken_list_is_refused(scope: CRLScope, rule: str, change: Callable[[Parts], None]) -> None:
    terms = terms_of(scope)
    parts = Parts.of(terms)
    permit(parts.assemble(), terms)
    change(parts)
    with pytest.raises(PolicyRefused) as refused:
        permit(parts.assemble(), terms)
    assert refused.value.rule == rule


@pytest.mark.parametrize(
    ("rule", "changed"),
    [
        ("next_update_follows", replace(terms_of(), next_update=NOW)),
        ("next_update_follows", replace(terms_of(), next_update=NOW - timedelta(days=1))),
        ("this_update_lies_within_the_issuers_validity", replace(terms_of(), this_update=TOO_EARLY)),
        ("base_is_older", terms_of(CRLScope(base=1000))),
        ("base_is_older", terms_of(CRLScope(base=1001))),
    ],
)  # fmt: skip
def test_terms_that_no_list_may_have_are_refused(rule: str, changed: CRLTerms) -> None:
    with pytest.raises(PolicyRefused) as refused:
        permit(tbs_of(changed), changed)
    assert refused.value.rule == rule


def test_an_authority_that_may_not_sign_lists_does_not() -> None:
    """RFC 5280 section 6.3.3 (f)."""
    certificate = x509.load_der_x509_certificate(OURS.issuing_der)
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    assert (usage.key_cert_sign, usage.crl_sign) == (True, True)
    certifies_only = x509.UnrecognizedExtension(usage.oid, b"\x03\x02\x02\x04")
    builder = (
        x509.CertificateBuilder()
        .subject_name(certificate.subject)
        .issuer_name(certificate.issuer)
        .serial_number(1)
        .not_valid_before(FOUNDED)
        .not_valid_after(NOW + timedelta(days=1))
        .public_key(certificate.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier(OURS.issuing.key_identifier), critical=False)
        .add_extension(certifies_only, critical=True)
    )
    signed = builder.sign(private_key(P256, "root"), ALGORITHMS[P256].hash_algorithm)  # type: ignore[arg-type]  # Ed25519 goes with no hash
    idle = Issuer.from_certificate(ISSUING_KEY, signed.public_bytes(Encoding.DER))
    for issuer in (idle, replace(idle, certificate=None)):
        terms = replace(terms_of(), issuer=issuer)
        with pytest.raises(PolicyRefused) as refused:
            permit(tbs_of(terms), terms)
        assert refused.value.rule == "issuer_may_sign_lists"


def refusal(terms: CRLTerms, *octets: bytes) -> str | None:
    """The rule that refuses a list of these entries, or None."""
    try:
        permit(tbs_of(terms, *octets), terms)
    except PolicyRefused as error:
        return error.rule
    return None


WELL_FORMED = "entries_are_well_formed"
TIME = b"\x17\x0d260101000000Z"


def entry(*parts: bytes) -> bytes:
    return der.encode(der.SEQUENCE, *parts)


def reason(number: int, *, mark: bytes = b"", tag: int = 0x0A) -> bytes:
    value = der.encode(der.OCTET_STRING, bytes((tag, 1, number)))
    return der.encode(der.SEQUENCE, der.encode(der.SEQUENCE, der.oid("2.5.29.21"), mark, value))


@pytest.mark.parametrize(
    "octets",
    [
        b"\x30\x00",
        b"\x05\x00",
        entry(b"\x02\x00", TIME),
        entry(b"\x02\x01\x00", TIME),
        entry(b"\x02\x01\x80", TIME),
        entry(b"\x02\x02\x00\x01", TIME),
        entry(der.encode(der.INTEGER, b"\x01" * 21), TIME),
        entry(b"\x02\x01\x01"),
        entry(b"\x02\x01\x01", b"\x17\x0d261301000000Z"),
        entry(b"\x02\x01\x01", b"\x17\x0d260431000000Z"),
        entry(b"\x02\x01\x01", b"\x17\x0d260101240000Z"),
        entry(b"\x02\x01\x01", b"\x17\x0b2601010000Z"),
        entry(b"\x02\x01\x01", b"\x18\x0f20490101000000Z"),
        entry(b"\x02\x01\x01", TIME, b"\x30\x00"),
        entry(b"\x02\x01\x01", TIME, reason(0)),
        entry(b"\x02\x01\x01", TIME, reason(7)),
        entry(b"\x02\x01\x01", TIME, reason(10)),
        entry(b"\x02\x01\x01", TIME, reason(11)),
        entry(b"\x02\x01\x01", TIME, reason(1, mark=b"\x01\x01\xff")),
        entry(b"\x02\x01\x01", TIME, reason(1, tag=0x02)),
        entry(b"\x02\x01\x01", TIME, reason(1), b"\x05\x00"),
        ENTRY[:-1],
        ENTRY + b"\0",
    ],
    ids=lambda octets: octets.hex()[:40],
)
def test_an_entry_that_is_not_well_formed_is_refused_wherever_it_stands(octets: bytes) -> None:
    good = [ENTRY] * 5000
    assert refusal(terms_of(), octets) == WELL_FORMED
    assert refusal(terms_of(), *good, octets) == WELL_FORMED
    assert refusal(terms_of(), octets, *good) == WELL_FORMED
    assert refusal(terms_of(), *good) is None


def test_what_leaves_a_list_stands_in_deltas_alone() -> None:
    """RFC 5280 section 5.3.1: removeFromCRL "may only appear in delta CRLs"."""
    removed = revoked_entry(1, NOW, ReasonCode.REMOVE_FROM_CRL)
    assert refusal(terms_of(FULL), removed) == WELL_FORMED
    assert refusal(terms_of(PARTITION), removed) == WELL_FORMED
    assert refusal(terms_of(DELTA_SCOPE), removed) is None


accepted = st.sampled_from(sorted(set(ReasonCode) - {ReasonCode.AA_COMPROMISE, ReasonCode.REMOVE_FROM_CRL}))


@settings(max_examples=100)
@given(serials, moments, accepted, st.booleans())
def test_every_entry_we_write_passes(serial: int, at: datetime, why: ReasonCode, since: bool) -> None:  # noqa: FBT001  # a case, not a switch
    written = revoked_entry(serial, at, why, invalidity_date=at if since else None)
    assert refusal(terms_of(), written) is None


@settings(max_examples=100)
@given(serials, moments, accepted, st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_what_passes_can_be_read(serial: int, at: datetime, why: ReasonCode, place: float, flip: int) -> None:
    """The expression is no laxer than the decoder, except that it takes 29 February in every year."""
    octets = bytearray(revoked_entry(serial, at, why))
    octets[int(place * len(octets))] ^= flip
    if (rule := refusal(terms_of(), bytes(octets))) is not None:
        assert rule == WELL_FORMED
    elif b"0229" not in octets:
        read_entry(bytes(octets))


def test_every_rule_is_asked_and_says_where_it_comes_from() -> None:
    assert len(set(crl_lint.RULES)) == len(crl_lint.RULES)
    assert all(rule.__doc__ and "RFC 5280 section" in rule.__doc__ for rule in crl_lint.RULES)


def test_a_permit_cannot_be_made_by_hand() -> None:
    with pytest.raises(TypeError, match="comes from"):
        CRLPermit(b"", OURS.issuing, object())


def test_what_can_still_be_written_is_not_permitted(tmp_path: Path) -> None:
    octets, terms = tbs_of(terms_of(), ENTRY), terms_of()
    permit(memoryview(octets), terms)
    with pytest.raises(TypeError, match="writable"):
        permit(memoryview(bytearray(octets)), terms)
    (tmp_path / "tbs").write_bytes(octets)
    with (
        (tmp_path / "tbs").open("r+b") as file,
        mmap.mmap(file.fileno(), 0) as shared,
        pytest.raises(TypeError, match="writable"),
    ):
        permit(shared, terms)


@given(st.binary(max_size=300))
def test_permitting_is_total(octets: bytes) -> None:
    with pytest.raises(PolicyRefused) as refused:
        permit(octets, terms_of())
    assert refused.value.rule == "well_formed"
