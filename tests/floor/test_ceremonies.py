"""Who must attend, and who may appoint whom (SPEC A3)."""

from dataclasses import replace

import pytest

from birthmark import errors
from birthmark.floor.ceremonies import (
    Ceremony,
    Custodian,
    attendance_message,
    record_message,
    require_quorum,
    require_succession,
)

PEOPLE = tuple(
    Custodian(id=name, role="custodian", subject_public_key_info=f"key of {name}".encode())
    for name in ("anna", "bela", "carl")
)
CEREMONY = Ceremony(
    id="acme-1",
    realm="acme",
    environment="production",
    mark="",
    purpose="p",
    required=2,
    custodians=PEOPLE,
    steps=(),
    file=b"",
    sha256="ab" * 32,
)


@pytest.mark.parametrize("present", [("anna", "bela"), ("carl", "anna"), ("anna", "bela", "carl")])
def test_as_many_as_the_file_requires_suffice(present: tuple[str, ...]) -> None:
    require_quorum(CEREMONY, present)


@pytest.mark.parametrize("present", [(), ("anna",), ("anna", "anna")])
def test_fewer_do_not_and_the_same_person_twice_is_one(present: tuple[str, ...]) -> None:
    with pytest.raises(errors.NotPermitted, match="needs 2 of its 3 custodians"):
        require_quorum(CEREMONY, present)


def test_somebody_the_file_does_not_name_is_nobody() -> None:
    with pytest.raises(errors.NotPermitted, match="no custodian dora"):
        require_quorum(CEREMONY, ("anna", "bela", "dora"))


def test_a_message_has_one_reading() -> None:
    message = attendance_message(CEREMONY, "anna", "ab" * 32, bytes(32))
    assert message == (
        b"birthmark/ceremony/v1\nacme-1\n"
        + b"ab" * 32
        + b"\n"
        + b"ab" * 32
        + b"\nanna\n"
        + b"00" * 32
        + b"\n"
    )
    assert record_message("cd" * 32) == b"birthmark/ceremony-record/v1\n" + b"cd" * 32 + b"\n"


def test_another_file_than_the_reviewed_one_is_not_signed_for() -> None:
    with pytest.raises(errors.NotPermitted, match="not the one that anna reviewed"):
        attendance_message(CEREMONY, "anna", "cd" * 32, bytes(32))
    with pytest.raises(errors.MalformedRequest):
        attendance_message(CEREMONY, "anna", "AB" * 32, bytes(32))


# --- from ceremony to ceremony ------------------------------------------------------------------------------


def dora(name: str = "dora", key: bytes = b"key of dora") -> Custodian:
    return Custodian(id=name, role="custodian", subject_public_key_info=key)


def test_the_custodians_before_appoint_new_ones() -> None:
    after = replace(CEREMONY, custodians=(*PEOPLE[:2], dora()))
    require_succession(CEREMONY, after, ("anna", "bela"))
    with pytest.raises(errors.NotPermitted, match="needs 2 of the custodians of acme-1"):
        require_succession(CEREMONY, after, ("anna", "dora"))


def test_whoever_writes_a_file_does_not_appoint_himself() -> None:
    strangers = tuple(dora(name, f"another key {name}".encode()) for name in ("anna", "bela", "carl"))
    with pytest.raises(errors.NotPermitted, match="present: 0"):
        require_succession(CEREMONY, replace(CEREMONY, custodians=strangers), ("anna", "bela", "carl"))


def test_two_people_do_not_become_one() -> None:
    with pytest.raises(errors.NotPermitted, match="requires 1 custodian"):
        require_succession(CEREMONY, replace(CEREMONY, required=1), ("anna", "bela"))
    require_succession(replace(CEREMONY, required=3), replace(CEREMONY, required=2), ("anna", "bela", "carl"))
