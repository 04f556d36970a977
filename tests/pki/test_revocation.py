"""Revoked entries, as the library writes and reads them (SPEC F1, F2)."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from hypothesis import example, given, settings
from hypothesis import strategies as st

from birthmark.errors import MalformedRequest, PolicyRefused
from birthmark.pki import der
from birthmark.pki.keys import KeyAlgorithm
from birthmark.pki.revocation import (
    REASON_NUMBERS,
    ReasonCode,
    RevokedEntry,
    encode_time,
    read_entry,
    read_time,
    revoked_entry,
)
from tests.pki.sample import NOW, private_key

serials = st.integers(min_value=1, max_value=(1 << 159) - 1) | st.integers(min_value=1, max_value=1 << 18)
moments = st.datetimes(datetime(1950, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC))  # noqa: DTZ001  # made aware by the strategy
reasons = st.sampled_from(ReasonCode)
KNOWN = revoked_entry(0x8000, NOW, ReasonCode.KEY_COMPROMISE, invalidity_date=NOW - timedelta(days=1))


def library_crl(entries: list[x509.RevokedCertificate]) -> x509.CertificateRevocationList:
    """A CRL with these entries by somebody else."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(x509.Name([]))
        .last_update(NOW)
        .next_update(NOW + timedelta(days=1))
    )
    for entry in entries:
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(private_key(KeyAlgorithm.ED25519, "anybody"), None)


def library_entry(
    serial: int, at: datetime, reason: ReasonCode, since: datetime | None
) -> x509.RevokedCertificate:
    """The same entry by the library's builder; "unspecified" is left out (RFC 5280 section 5.3.1)."""
    builder = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(at)
    if reason is not ReasonCode.UNSPECIFIED:
        builder = builder.add_extension(x509.CRLReason(x509.ReasonFlags(reason.value)), critical=False)
    if since is not None:
        builder = builder.add_extension(x509.InvalidityDate(since), critical=False)
    return builder.build()


def octets_of(entry: x509.RevokedCertificate) -> bytes:
    octets = library_crl([entry]).tbs_certlist_bytes
    fields = der.children(octets, *der.only(octets, der.SEQUENCE)[2:])
    return octets[fields[5][2] : fields[5][3]]


def test_the_reasons_are_the_standards() -> None:
    """RFC 5280 section 5.3.1; 7 is not used."""
    assert {reason.value for reason in ReasonCode} == {flag.value for flag in x509.ReasonFlags}
    assert [reason.number for reason in ReasonCode] == [0, 1, 2, 3, 4, 5, 6, 8, 9, 10]
    assert set(REASON_NUMBERS) == set(ReasonCode)


@settings(max_examples=100)
@given(serials, moments, reasons, st.none() | st.timedeltas(timedelta(0), timedelta(days=9999)))
@example(1, datetime(2049, 12, 31, 23, 59, 59, 999999, UTC), ReasonCode.UNSPECIFIED, None)
@example(0x80, datetime(2050, 1, 1, tzinfo=UTC), ReasonCode.AA_COMPROMISE, timedelta(0))
@example((1 << 159) - 1, datetime(2050, 1, 1, tzinfo=UTC), ReasonCode.CERTIFICATE_HOLD, timedelta(days=1))
def test_an_entry_is_octet_for_octet_the_librarys(
    serial: int, at: datetime, reason: ReasonCode, earlier: timedelta | None
) -> None:
    since = None
    if earlier is not None:
        since = max(at - earlier, datetime(1950, 1, 1, tzinfo=UTC)) if at.year > 1990 else at
    ours = revoked_entry(serial, at, reason, invalidity_date=since)
    assert ours == octets_of(library_entry(serial, at, reason, since))
    assert read_entry(ours) == RevokedEntry(
        serial_number=serial,
        revoked_at=at.replace(microsecond=0),
        reason=reason,
        invalidity_date=None if since is None else since.replace(microsecond=0),
    )


@pytest.mark.parametrize("serial", [0, -1, 1 << 159])
def test_a_serial_number_that_no_certificate_has_is_not_revoked(serial: int) -> None:
    """RFC 5280 section 4.1.2.2."""
    with pytest.raises(PolicyRefused, match="serial number") as refused:
        revoked_entry(serial, NOW, ReasonCode.SUPERSEDED)
    assert refused.value.rule == "serial_number_fits"


def test_nothing_becomes_invalid_after_it_was_revoked() -> None:
    with pytest.raises(PolicyRefused, match="after the revocation"):
        revoked_entry(1, NOW, ReasonCode.SUPERSEDED, invalidity_date=NOW + timedelta(seconds=1))


def test_times_change_their_form_in_2050_and_begin_in_1950() -> None:
    """RFC 5280 section 5.1.2.4."""
    assert encode_time(datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC)) == b"\x17\x0d491231235959Z"
    assert encode_time(datetime(2050, 1, 1, tzinfo=UTC)) == b"\x18\x0f20500101000000Z"
    assert encode_time(datetime(1950, 1, 1, tzinfo=UTC)) == b"\x17\x0d500101000000Z"
    assert read_time(der.UTC_TIME, b"500101000000Z") == datetime(1950, 1, 1, tzinfo=UTC)
    with pytest.raises(PolicyRefused, match="before 1950"):
        encode_time(datetime(1949, 12, 31, 23, 59, 59, tzinfo=UTC))
    for tag, contents in (
        (der.GENERALIZED_TIME, b"20491231235959Z"),
        (der.UTC_TIME, b"4912312359Z"),
        (der.UTC_TIME, b"491231235959+"),
        (der.UTC_TIME, b"490229000000Z"),
        (der.GENERALIZED_TIME, b"20500101000000.5Z"),
        (der.OCTET_STRING, b"491231235959Z"),
    ):
        with pytest.raises(MalformedRequest):
            read_time(tag, contents)


def test_another_time_zone_is_turned_into_utc() -> None:
    at = NOW.astimezone(UTC)
    elsewhere = datetime.fromisoformat(at.isoformat()).astimezone(
        datetime.fromisoformat("2026-01-01T00:00:00+05:30").tzinfo
    )
    assert revoked_entry(1, elsewhere, ReasonCode.SUPERSEDED) == revoked_entry(1, at, ReasonCode.SUPERSEDED)


@given(st.binary(max_size=100))
def test_reading_an_entry_is_total(octets: bytes) -> None:
    try:
        read_entry(octets)
    except MalformedRequest:
        return
    pytest.fail("random octets are no entry")  # pragma: no cover  # the test has failed then


@settings(max_examples=100)
@given(st.integers(0, len(KNOWN) - 1), st.integers(1, 255))
def test_a_flipped_octet_is_refused_or_says_something_else(position: int, flip: int) -> None:
    octets = bytearray(KNOWN)
    octets[position] ^= flip
    try:
        found = read_entry(bytes(octets))
    except MalformedRequest:
        return
    assert found != read_entry(KNOWN)


REASON = "300c300a0603551d1504030a0101"
DATE = "170d3236303130313030303030305a"


@pytest.mark.parametrize(
    ("octets", "complaint"),
    [
        ("3003020101", "not serial number, date"),
        ("3012020100" + DATE, "not positive"),
        ("3012020180" + DATE, "not positive"),
        ("301302020001" + DATE, "shortest form"),
        ("3011 0200" + DATE, "not positive"),
        ("3014020101" + DATE + "3000", "empty list"),
        ("3020020101" + DATE + REASON.replace("0a0101", "0a0100"), "unspecified in so many words"),
        ("3020020101" + DATE + REASON.replace("0a0101", "0a0107"), "is none"),
        ("3020020101" + DATE + REASON.replace("0a0101", "020101"), "is none"),
        ("3020020101" + DATE + REASON.replace("551d15", "551d1d"), "in a revoked entry"),
        ("3023020101" + DATE + "300f300d0603551d150101ff04030a0101", "critical"),
        ("302c020101" + DATE + "3018" + 2 * "300a0603551d1504030a0101", "twice"),
    ],
)
def test_an_entry_that_we_would_not_write_is_not_read(octets: str, complaint: str) -> None:
    with pytest.raises(MalformedRequest, match=complaint):
        read_entry(bytes.fromhex(octets))
