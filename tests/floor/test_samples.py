"""Sample values are what the rules themselves take (SPEC G2)."""

import re
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birthmark import errors
from birthmark.floor.hardware_ids import HardwareIdKind, HardwareIdRule
from birthmark.floor.samples import example_of, sample_hardware_id, sample_values
from birthmark.pki.constraints import Constraint, parse_constraint
from birthmark.pki.profiles import load

TOKENS = st.sampled_from(
    [
        "A",
        "[A-F0-9]",
        "[0-9]",
        r"\d",
        r"\.",
        r"[\]x]",
        "-",
        "[a-z]{3}",
        "[0-9]{2,4}",
        "B?",
        r"\d+",
        "C*",
        "X{0,2}",
    ]
)


@given(st.lists(TOKENS, min_size=1, max_size=5).map("".join))
def test_an_example_matches_its_pattern(pattern: str) -> None:
    assert re.fullmatch(pattern, example_of(pattern))


def constraint(**table: Any) -> Constraint:
    return parse_constraint({"rule": "rule", "variable": "hardware_id", **table})


SAMPLES: dict[str, tuple[Mapping[str, Any], Mapping[str, Any] | None]] = {
    "any vin": ({"kind": "vin"}, None),
    "a maker's vin with a check digit": ({"kind": "vin", "check_digit": True, "wmi": {"WVW"}}, None),
    "a vin under a maker's constraint": ({"kind": "vin"}, {"wmi": ["1HG"]}),
    "an eui-64": ({"kind": "eui-64"}, None),
    "an eui-64 of a maker": ({"kind": "eui-64"}, {"prefix-of": ["ACDE48"]}),
    "an eid": ({"kind": "eid"}, None),
    "an eid of an issuer": ({"kind": "eid"}, {"prefix-of": ["8904"]}),
    "a serial": ({"kind": "serial"}, None),
    "a serial with a pattern": ({"kind": "serial", "pattern": "[A-Z]{2}[0-9]{6}"}, None),
    "a serial with a form": ({"kind": "serial"}, {"pattern": "[0-9]{3}-[0-9]{4}", "rejects": ["x"]}),
    "one of two": ({"kind": "serial"}, {"one-of": ["P1", "P2"]}),
}


@pytest.mark.parametrize("case", SAMPLES)
def test_a_sample_is_taken_by_the_rule_and_keeps_the_constraints(case: str) -> None:
    fields, table = SAMPLES[case]
    rule = HardwareIdRule(**{**fields, "kind": HardwareIdKind(fields["kind"])})
    constraints = [] if table is None else [constraint(**table)]
    found = sample_hardware_id(rule, constraints)
    assert found is not None
    assert rule.parse(found.text) == found
    assert all(one.accepts(found.text) for one in constraints)


def test_where_nothing_fits_there_is_none() -> None:
    rule = HardwareIdRule(kind=HardwareIdKind.VIN)
    assert sample_hardware_id(rule, [constraint(equals="no vin")]) is None
    impossible = [constraint(equals="A"), constraint(equals="B")]
    with pytest.raises(errors.NotFound, match="no hardware_id could be made up"):
        sample_values(load("vehicle"), impossible, {})


def test_values_that_are_given_stay() -> None:
    values = sample_values(load("vehicle"), [], {"organization": "Nord AG", "unused": "1"})
    assert values["organization"] == "Nord AG"
    assert values.keys() == load("vehicle").variables
