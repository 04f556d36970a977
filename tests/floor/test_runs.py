"""Run licences: what an operator signs is what everybody reads (SPEC C3)."""

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from birthmark import errors
from birthmark.floor.clients import Role
from birthmark.floor.devices import KeyOrigin
from birthmark.floor.hardware_ids import HardwareIdKind, HardwareIdRule
from birthmark.floor.revocations import Partitioning
from birthmark.floor.runs import (
    AllowedDevice,
    AllowList,
    Run,
    RunLicence,
    RunPurpose,
    RunStatus,
    admit,
    allow_list_of,
    require_going,
    require_identities,
    require_station,
)

LICENCE = RunLicence(
    realm="acme",
    environment="test",
    id="R1",
    product="car",
    batch="B7",
    profile="vehicle",
    authority="issuing-1",
    quantity=1000,
    not_before=datetime(2026, 11, 22, 6, tzinfo=UTC),
    not_after=datetime(2026, 11, 23, 6, tzinfo=UTC),
    stations=("ST01", "ST02"),
    hardware_id=HardwareIdRule(kind=HardwareIdKind.VIN, check_digit=True, wmi=frozenset({"1M8", "WVW"})),
    allow_list=AllowList(count=1, sha256="00" * 32),
    origins=(KeyOrigin.BORN, KeyOrigin.DELIVERED),
    variables={"organization": "Acme"},
    opened_by="operator:anna",
    profile_sha256="ab" * 32,
)

texts = st.text(st.characters(codec="utf-8"), max_size=12)
times = st.datetimes(datetime(2000, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)).map(  # noqa: DTZ001  # bounds
    lambda at: at.replace(microsecond=at.microsecond // 1000 * 1000)
)
rules = st.one_of(
    st.builds(
        HardwareIdRule,
        kind=st.just(HardwareIdKind.VIN),
        check_digit=st.booleans(),
        wmi=st.frozensets(st.sampled_from(["1M8", "WVW", "VF1"])),
    ),
    st.builds(
        HardwareIdRule,
        kind=st.just(HardwareIdKind.SERIAL),
        pattern=st.sampled_from([None, "[A-Z]{2}", "\\d+"]),
    ),
    st.just(HardwareIdRule(kind=HardwareIdKind.EID)),
)
licences = st.builds(
    RunLicence,
    realm=texts,
    environment=texts,
    id=texts,
    product=texts,
    batch=texts,
    profile=texts,
    authority=texts,
    quantity=st.integers(-(2**53) + 1, 2**53 - 1),
    not_before=times,
    not_after=times,
    stations=st.lists(texts, max_size=4).map(tuple),
    hardware_id=rules,
    allow_list=st.none() | st.builds(AllowList, count=st.integers(0, 2**40), sha256=texts),
    origins=st.lists(st.sampled_from(KeyOrigin), max_size=2).map(tuple),
    variables=st.dictionaries(st.from_regex("[a-z_]{1,10}", fullmatch=True), texts, max_size=3),
    opened_by=texts,
    device_class=texts,
    site=texts,
    region=texts,
    partitioning=st.sampled_from(Partitioning),
    further_profiles=st.lists(texts, max_size=2).map(tuple),
    further_sha256=st.lists(texts, max_size=2).map(tuple),
    profile_sha256=st.text("0123456789abcdef", min_size=1, max_size=64),
    firmware=texts,
)


@given(licences)
def test_a_licence_reads_back_as_it_was_written(licence: RunLicence) -> None:
    assert RunLicence.decode(licence.encode()) == licence


@given(licences)
def test_what_is_signed_is_canonical_json_by_another_hand(licence: RunLicence) -> None:
    """RFC 8785, with the reference implementation's encoder as judge."""
    assert licence.encode() == rfc8785.dumps(json.loads(licence.encode()))


@given(st.binary(max_size=200))
def test_any_octets_are_a_licence_or_malformed(document: bytes) -> None:
    with pytest.raises(errors.MalformedRequest):
        RunLicence.decode(document)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | texts,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["kind", "wmi", "pattern", "count", "sha256", "check_digit"]), inner, max_size=4
        )
    ),
    max_leaves=6,
)


@given(st.data())
def test_a_licence_with_one_value_replaced_is_read_exactly_or_malformed(data: st.DataObject) -> None:
    """Nothing inside checks again, so what decodes has the types that are declared."""
    fields: dict[str, Any] = json.loads(LICENCE.encode())
    inner = data.draw(st.sampled_from(["", "hardware_id", "allow_list"]))
    target = fields[inner] if inner else fields
    name = data.draw(st.sampled_from(sorted(target)))
    target[name] = data.draw(json_values)
    document = rfc8785.dumps(fields)
    try:
        licence = RunLicence.decode(document)
    except errors.MalformedRequest:
        return
    assert licence.encode() == document
    assert type(licence.quantity) is int
    assert all(type(station) is str for station in licence.stations)
    assert all(type(value) is str for value in licence.variables.values())
    assert type(licence.id) is str
    assert type(licence.opened_by) is str
    assert type(licence.hardware_id.check_digit) is bool
    assert licence.allow_list is None or type(licence.allow_list.count) is int


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("quantity", "1000"),
        ("quantity", True),
        ("stations", "ST01"),
        ("stations", [1]),
        ("variables", []),
        ("variables", {"organization": 1}),
        ("realm", None),
        ("type", "birthmark/run/v2"),
        ("origins", ["derived"]),
        ("not_before", "2026-11-22"),
        ("allow_list", {"count": 1}),
        ("allow_list", {"count": "1", "sha256": ""}),
        ("hardware_id", None),
        ("surprise", 1),
    ],
)
def test_a_field_of_the_wrong_type_or_name_is_malformed(field: str, value: object) -> None:
    fields = json.loads(LICENCE.encode()) | {field: value}
    with pytest.raises(errors.MalformedRequest):
        RunLicence.decode(rfc8785.dumps(fields))


def test_a_missing_field_is_malformed() -> None:
    for name in json.loads(LICENCE.encode()):
        fields = json.loads(LICENCE.encode())
        del fields[name]
        with pytest.raises(errors.MalformedRequest):
            RunLicence.decode(rfc8785.dumps(fields))


def test_a_licence_that_names_no_firmware_is_what_it_was_before_licences_could() -> None:
    assert b"firmware" not in LICENCE.encode()
    named = replace(LICENCE, firmware="bms-4.2.1 sha256:0123")
    assert json.loads(named.encode()) == json.loads(LICENCE.encode()) | {"firmware": named.firmware}
    with pytest.raises(errors.MalformedRequest):  # one spelling: nothing is said by leaving it out
        RunLicence.decode(rfc8785.dumps(json.loads(LICENCE.encode()) | {"firmware": ""}))


def test_every_field_is_in_what_is_signed() -> None:
    """A field that is not signed could be changed by whoever owns the database."""
    other: dict[str, Any] = {
        "quantity": 1001,
        "not_before": LICENCE.not_before + timedelta(milliseconds=1),
        "not_after": LICENCE.not_after + timedelta(milliseconds=1),
        "stations": ("ST02", "ST01"),
        "hardware_id": replace(LICENCE.hardware_id, check_digit=False),
        "allow_list": None,
        "origins": (KeyOrigin.BORN,),
        "variables": {"organization": "Acme2"},
    }
    for name in RunLicence.__slots__:
        changes: dict[str, Any] = {name: other.get(name, "other")}
        changed = replace(LICENCE, **changes)
        assert changed.encode() != LICENCE.encode(), name


@given(st.lists(st.from_regex("serial:[A-Z0-9]{1,8}", fullmatch=True), max_size=20), st.randoms())
def test_an_allow_list_is_named_by_its_content(devices: list[str], chance: Any) -> None:
    listed = allow_list_of(devices)
    shuffled = devices * 2
    chance.shuffle(shuffled)
    assert allow_list_of(shuffled) == listed
    assert listed.count == len(set(devices))
    text = "".join(f"{device}\n" for device in sorted(set(devices)))
    assert listed.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert allow_list_of([*devices, "serial:an-other"]) != listed
    assert AllowedDevice.key(listed, "serial:X") == f"{listed.sha256}/serial:X"


def row() -> Run:
    return Run(
        id="R1",
        document=b"",
        signature=b"",
        signer="01",
        status=RunStatus.OPEN,
        quantity=2,
        admitted=0,
        released=0,
        held=0,
        scrapped=0,
    )


def test_a_run_admits_its_quantity_and_not_one_more() -> None:
    """SPEC C3: the quantity is a hard limit."""
    run = admit(admit(row()))
    assert run.admitted == 2
    with pytest.raises(errors.QuotaExhausted, match="run R1 is full: all 2 devices are admitted"):
        admit(run)


def test_a_run_that_does_not_go_on_says_whether_it_is_proposed_closed_or_over() -> None:
    """SPEC C3: when is part of the licence."""
    last = LICENCE.not_after - timedelta(milliseconds=1)
    require_going(row(), LICENCE, last)
    for status in set(RunStatus) - {RunStatus.OPEN}:
        with pytest.raises(errors.IllegalTransition, match=f"^run R1 is {status}$"):
            require_going(replace(row(), status=status), LICENCE, last)
    with pytest.raises(errors.IllegalTransition, match=r"^run R1 ended at "):
        require_going(row(), LICENCE, LICENCE.not_after)


def test_only_a_run_for_identities_gives_identities() -> None:
    """SPEC H2."""
    require_identities(LICENCE)
    with pytest.raises(errors.NotPermitted, match="run R1 is for devices that have their identity"):
        require_identities(replace(LICENCE, purpose=RunPurpose.OPERATIONAL))


def test_a_station_works_only_on_runs_that_name_it() -> None:
    """SPEC C3: where is part of the licence."""
    require_station(LICENCE, Role.STATION, "ST02")
    for role in (Role.OPERATOR, Role.BOOTSTRAP):
        require_station(LICENCE, role, "ST09")
    for name in ("ST09", "", "ST0"):
        with pytest.raises(errors.NotPermitted, match=f"station:{name} is not allowed on run R1"):
            require_station(LICENCE, Role.STATION, name)
