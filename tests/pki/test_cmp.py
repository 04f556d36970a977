"""Messages of CMP are read strictly and written as they were read (RFC 9810 section 5.1)."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birthmark.errors import MalformedRequest, TooLarge
from birthmark.pki import cmp, der
from birthmark.pki.cmp import (
    FROM_CLIENTS,
    BodyKind,
    InfoTypeAndValue,
    PKIHeader,
    assemble,
    confirm_wait_time,
    decode,
    directory_name,
    encode_header,
    implicit_confirm,
    protected_part,
    read_directory_name,
    read_info,
)
from birthmark.pki.cmp_checks import verify_signed, verify_under_secret
from tests.pki.cmp_parts import SECRET, header, message, name
from tests.pki.sample import NOW

VECTORS = sorted((Path(__file__).parents[1] / "vectors" / "cmp").glob("*.der"))
NULL = b"\x05\x00"
AT = datetime(2026, 11, 22, 12, 30, 15, tzinfo=UTC)


def bare(of: bytes | PKIHeader, kind: int = 0xB3, body: bytes = NULL, rest: bytes = b"") -> bytes:
    """A message as octets, of whatever parts."""
    octets = of if isinstance(of, bytes) else encode_header(of)
    return der.encode(der.SEQUENCE, octets, der.encode(kind, body), rest)


@pytest.mark.parametrize("file", VECTORS, ids=[file.stem for file in VECTORS])
def test_messages_of_openssl_are_read_and_written_again(file: Path) -> None:
    octets = file.read_bytes()
    read = decode(octets)
    part = protected_part(encode_header(read.header), read.kind, read.body)
    assert part == read.protected_part
    assert assemble(part, read.protection, read.extra_certs) == octets
    assert read.kind in FROM_CLIENTS
    if read.extra_certs:
        verify_signed(read)
    else:
        verify_under_secret(read, SECRET)


def test_there_are_messages_to_read() -> None:
    assert {decode(file.read_bytes()).kind for file in VECTORS} >= FROM_CLIENTS - {"nested", "error"}


INFOS = st.lists(
    st.builds(
        InfoTypeAndValue,
        info_type=st.sampled_from([der.oid("1.2.3"), der.oid("2.999.1")]),
        value=st.none() | st.binary(max_size=9).map(lambda octets: der.encode(der.OCTET_STRING, octets)),
    ),
    max_size=3,
)
IDENTIFIERS = st.none() | st.binary(max_size=128)
HEADERS = st.builds(
    PKIHeader,
    pvno=st.integers(-300, 300),
    sender=st.sampled_from(
        [directory_name(b"\x30\x00"), directory_name(name("a").public_bytes()), b"\x82\x01a"]
    ),
    recipient=st.sampled_from([directory_name(b"\x30\x00"), b"\x86\x01a", b"\xa0\x05\x06\x01\x2a\xa0\x00"]),
    message_time=st.none() | st.just(AT),
    protection_alg=st.none() | st.just(bytes.fromhex("300506032b6570")),
    sender_kid=IDENTIFIERS,
    recip_kid=IDENTIFIERS,
    transaction_id=IDENTIFIERS,
    sender_nonce=IDENTIFIERS,
    recip_nonce=IDENTIFIERS,
    free_text=st.lists(st.text(st.characters(codec="utf-8"), max_size=9), max_size=3).map(tuple),
    general_info=INFOS.map(tuple),
)


@given(HEADERS, st.sampled_from(BodyKind), st.none() | st.binary(max_size=9))
def test_what_is_written_is_read(of: PKIHeader, kind: BodyKind, protection: bytes | None) -> None:
    part = protected_part(encode_header(of), kind, NULL)
    read = decode(assemble(part, protection, [b"\x30\x00"] if protection else []))
    assert (read.header, read.kind, read.body, read.protection) == (of, kind, NULL, protection)
    assert read.protected_part == part


@given(st.binary(max_size=200))
def test_any_octets_are_read_or_refused(octets: bytes) -> None:
    with pytest.raises(MalformedRequest):
        decode(octets)


def test_a_message_has_a_limit() -> None:
    octets = message().octets
    assert decode(octets, len(octets)).octets == octets
    with pytest.raises(TooLarge, match=f"{len(octets)} octets"):
        decode(octets, len(octets) - 1)


@pytest.mark.parametrize(
    ("number", "called"),
    [(5, "popdecc"), (6, "popdecr"), (9, "krr"), (10, "krp"), (13, "ccr"), (15, "ckuann"), (18, "crlann")],
)
def test_kinds_that_we_do_not_have_are_refused_by_name(number: int, called: str) -> None:
    with pytest.raises(MalformedRequest, match=called):
        decode(bare(header(), 0xA0 + number))


@pytest.mark.parametrize("tag", [0x30, 0x80, 0xBB, 0xBE])
def test_what_is_no_kind_of_message_is_refused(tag: int) -> None:
    with pytest.raises(MalformedRequest, match="no kind of message"):
        decode(bare(header(), tag))


@pytest.mark.parametrize(
    "octets",
    [
        der.encode(der.SEQUENCE, encode_header(header())),  # no body
        bare(header(), body=b""),  # a tag around nothing
        bare(header(), body=NULL + NULL),  # or around two
        bare(header(), rest=b"\xa2\x00"),  # a field that there is not
        bare(header(), rest=b"\xa1\x04\x30\x02\x30\x00\xa0\x04\x03\x02\x00\x00"),  # fields in another order
        bare(header(), rest=b"\xa0\x02\x03\x00"),  # a protection without the count of unused bits
        bare(header(), rest=b"\xa0\x03\x03\x01\x01"),  # with unused bits
        bare(header(), rest=b"\xa0\x03\x04\x01\x00"),  # of another type
        bare(header(), rest=b"\xa1\x02\x30\x00"),  # no certificate at all
        bare(header(), rest=b"\xa1\x04\x30\x02\x05\x00"),  # something else
        bare(header(), rest=b"\xa1\x24\x30\x22" + b"\x30\x00" * 17),  # too many
        bare(b"\x31\x00"),
        bare(b"\x30\x03\x02\x01\x02"),
        bare(der.encode(der.SEQUENCE, b"\x02\x00", directory_name(b"\x30\x00") * 2)),
        bare(der.encode(der.SEQUENCE, b"\x02\x02\x00\x02", directory_name(b"\x30\x00") * 2)),
        bare(der.encode(der.SEQUENCE, b"\x0a\x01\x02", directory_name(b"\x30\x00") * 2)),
        bare(replace(header(), sender=b"\x30\x00")),
        bare(replace(header(), sender=b"\x89\x00")),
        bare(replace(header(), sender=b"\xa4\x00")),
        bare(replace(header(), sender=b"\xa4\x02\x31\x00")),
        bare(replace(header(), recipient=b"\xa6\x00")),
        bare(replace(header(), transaction_id=b"t" * 129)),
        bare(replace(header(), protection_alg=b"\x30\x00")),
        bare(replace(header(), protection_alg=b"\x30\x02\x06\x00")),
        bare(replace(header(), protection_alg=b"\x30\x06\x06\x02\x2a\x03\x05\x00\x05\x00")),
        bare(replace(header(), free_text=("x",) * 17)),
        bare(replace(header(), general_info=(implicit_confirm(), implicit_confirm()))),
        bare(replace(header(), general_info=(InfoTypeAndValue(info_type=der.oid("1.2"), value=None),) * 33)),
        *(
            bare(replace(header(), general_info=(InfoTypeAndValue(info_type=kind, value=value),)))
            for kind, value in (
                (cmp.IMPLICIT_CONFIRM, None),
                (cmp.IMPLICIT_CONFIRM, b"\x30\x00"),
                (cmp.CONFIRM_WAIT_TIME, None),
                (cmp.CONFIRM_WAIT_TIME, NULL),
                (cmp.CONFIRM_WAIT_TIME, b"\x18\x0f20261322123015Z"),
                (cmp.CERT_PROFILE, None),
                (cmp.CERT_PROFILE, b"\x30\x00"),
                (cmp.CERT_PROFILE, b"\x30\x03\x13\x01a"),
                (cmp.CERT_PROFILE, b"\x30\x03\x0c\x01\xff"),
            )
        ),
    ],
)
def test_what_is_no_message_is_refused(octets: bytes) -> None:
    with pytest.raises(MalformedRequest):
        decode(octets)


def test_a_time_of_another_form_is_refused() -> None:
    octets = bare(header(message_time=NOW))
    for other in (b"\x17\x0f", b"\x18\x0f2026112212301,"):
        with pytest.raises(MalformedRequest):
            decode(octets.replace(b"\x18\x0f2026112212301"[: len(other)], other))


def test_profiles_and_confirmations_are_read() -> None:
    names = InfoTypeAndValue(
        info_type=cmp.CERT_PROFILE, value=der.encode(der.SEQUENCE, b"\x0c\x03one", b"\x0c\x03two")
    )
    infos = (names, confirm_wait_time(NOW), implicit_confirm())
    read = decode(bare(replace(header(), general_info=infos))).header
    assert read.cert_profile == ("one", "two")
    assert read.implicit_confirm
    assert header().cert_profile == ()


def test_general_information_is_a_list() -> None:
    assert read_info(b"\x30\x00") == ()
    for octets in (b"", b"\x31\x00", b"\x30\x02\x30\x00", b"\x30\x04\x30\x02\x05\x00"):
        with pytest.raises(MalformedRequest):
            read_info(octets)


def test_only_the_name_of_a_directory_is_a_name() -> None:
    own = name("device").public_bytes()
    assert read_directory_name(directory_name(own)) == own
    assert read_directory_name(b"\x82\x01a") is None
    for octets in (b"", b"\x82\x01a\x82\x01a", b"\xa4\x02\x30"):
        with pytest.raises(MalformedRequest):
            read_directory_name(octets)
