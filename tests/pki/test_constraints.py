"""Issuance constraints and their negative tests (SPEC G2)."""

import json
import tomllib
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birthmark.errors import IntegrityFailure, MalformedRequest, PolicyRefused
from birthmark.pki import constraints, profiles
from birthmark.pki.constraints import (
    Check,
    Constraint,
    constraint_tables,
    constraints_text,
    negative_tests,
    parse_constraint,
)
from tests.support.chains import chain_of, variables_of

ARC = "1.3.6.1.4.1.32473"
EXAMPLES: list[tuple[dict[str, object], str, list[str]]] = [
    ({"pattern": "[0-9A-F]{4}", "rejects": ["fff1"]}, "FFF1", ["fff1", "FFF", "FFF1\n", "FFF11", "FFFG"]),
    ({"one-of": ["FFF1", "FFF2"]}, "FFF2", ["FFF3", "FFF", "FFF11", "fff1"]),
    ({"equals": "Example Motors"}, "Example Motors", ["Example Motors ", "example motors"]),
    (
        {"under-arc": ARC},
        f"{ARC}.1.7",
        [ARC, f"{ARC}0.1", "1.3.6.1.4.1.32474.1", "2.999", f"{ARC}.", f"{ARC}.x", f"{ARC}.01", f" {ARC}.1"],
    ),
    ({"prefix-of": ["4D4D4D", "4B414D"]}, "4B414D0000000001", ["4D4D4D", "4C", "0000000000000000"]),
    ({"wmi": ["1M8", "WVW"]}, "WVWZZZ1JZXW000001", ["WVX" + "0" * 14, "1m8" + "0" * 14, "1M8", "1M"]),
]


def made(operands: dict[str, object]) -> Constraint:
    return parse_constraint({"rule": "a-rule", "variable": "hardware_id", **operands})


@pytest.mark.parametrize(("operands", "good", "bad"), EXAMPLES)
def test_a_rule_accepts_what_it_says_and_nothing_near(
    operands: dict[str, object], good: str, bad: list[str]
) -> None:
    rule = made(operands)
    constraints.check([rule], {"hardware_id": good})
    for value in bad:
        with pytest.raises(PolicyRefused) as refusal:
            constraints.check([rule], {"hardware_id": value})
        assert refusal.value.rule == "a-rule"
        assert repr(value[:64]) in str(refusal.value)


@pytest.mark.parametrize(("operands", "good", "bad"), EXAMPLES)
def test_every_kind_has_its_negative_tests(operands: dict[str, object], good: str, bad: list[str]) -> None:
    """Values made by what the rule means; each was refused, and says with which words."""
    rule = made(operands)
    for values in ({}, {"hardware_id": good}):
        done = negative_tests([rule], values)
        assert done
        assert all(test.rule == "a-rule" and test.variable == "hardware_id" for test in done)
        assert good not in {test.tried for test in done}
        assert all(repr(test.tried[:64]) in test.refused_with for test in done)
    assert bad  # what is refused is the other test's


@pytest.mark.parametrize(("operands", "good", "_bad"), EXAMPLES)
def test_a_rule_survives_toml_and_json(operands: dict[str, object], good: str, _bad: list[str]) -> None:
    rule = made(operands)
    assert parse_constraint(json.loads(json.dumps(rule.table()))) == rule
    written = "\n".join(f"{json.dumps(key)} = {json.dumps(value)}" for key, value in rule.table().items())
    assert parse_constraint(tomllib.loads(written)) == rule
    assert rule.accepts(good)


def test_constraints_are_kept_in_one_spelling_and_read_back() -> None:
    tables: list[Mapping[str, object]] = [
        {"variable": "vin", "rule": "wmi", "wmi": ["1HG"]},
        {"rule": "ä", "variable": "x", "equals": "y"},
    ]
    text = constraints_text(tables)
    assert text.startswith('[{"rule":"wmi","variable":"vin","wmi":["1HG"]},{"equals":"y","rule":"ä"')
    assert constraint_tables(text) == tables
    assert constraint_tables(constraints_text([])) == []


@pytest.mark.parametrize("text", ["", "{}", "[1]", "null", "[" * 100_000, '["a"]', '[{"a":1}'])
def test_what_is_no_list_of_tables_is_malformed(text: str) -> None:
    with pytest.raises(MalformedRequest, match="constraints: not"):
        constraint_tables(text)


def test_a_value_that_is_not_there_breaks_no_rule() -> None:
    """Whether one must be there is the profile's business; an empty one is none."""
    rule = made({"equals": "x"})
    constraints.check([rule], {})
    constraints.check([rule], {"hardware_id": ""})
    constraints.check([rule], {"organization": "y"})


def test_good_values_that_are_refused_are_told_before_any_negative_test() -> None:
    with pytest.raises(PolicyRefused):
        negative_tests([made({"equals": "x"})], {"hardware_id": "y"})


def test_a_rule_that_accepts_what_breaks_it_stops_everything() -> None:
    """A constraint made past its parser: accepted is what its own examples say it refuses."""
    blind = Constraint(
        rule="a-rule", variable="hardware_id", check=Check.PATTERN, operands=(".*",), rejects=("x",)
    )
    with pytest.raises(IntegrityFailure, match="a-rule accepts hardware_id 'x', which breaks it"):
        negative_tests([blind])


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ({}, "rule: must be"),
        ({"rule": "A"}, "rule: must be"),
        ({"rule": "a", "variable": 7}, "variable: must be"),
        ({"rule": "a", "variable": "v"}, "exactly one of"),
        ({"rule": "a", "variable": "v", "equals": "x", "wmi": ["1M8"]}, "exactly one of"),
        ({"rule": "a", "variable": "v", "equals": "x", "more": 1}, "more: unknown key"),
        ({"rule": "a", "variable": "v", "equals": ["x", "y"]}, "must be one text"),
        ({"rule": "a", "variable": "v", "equals": ""}, "texts of 1 to 256"),
        ({"rule": "a", "variable": "v", "one-of": []}, "a list of 1 to"),
        ({"rule": "a", "variable": "v", "one-of": ["x", "x"]}, "names one twice"),
        ({"rule": "a", "variable": "v", "one-of": ["x", 7]}, "texts of 1 to 256"),
        ({"rule": "a", "variable": "v", "under-arc": "1.2.x"}, "is no object identifier"),
        ({"rule": "a", "variable": "v", "wmi": "1M"}, "is not three of"),
        ({"rule": "a", "variable": "v", "pattern": "[A-Z]"}, "a pattern needs rejects"),
        ({"rule": "a", "variable": "v", "pattern": "(a+)+", "rejects": ["b"]}, "only characters"),
        ({"rule": "a", "variable": "v", "pattern": "a|b", "rejects": ["c"]}, "only characters"),
        ({"rule": "a", "variable": "v", "pattern": "a*" * 4, "rejects": ["c"]}, "at most 3"),
        ({"rule": "a", "variable": "v", "pattern": "a{9,1}", "rejects": ["c"]}, "min repeat"),
        ({"rule": "a", "variable": "v", "pattern": "a" * 129, "rejects": ["c"]}, "1 to 128"),
        ({"rule": "a", "variable": "v", "equals": "x", "rejects": ["x"]}, "which its rejects say"),
    ],
)
def test_what_is_no_constraint_is_malformed(table: dict[str, object], complaint: str) -> None:
    with pytest.raises(MalformedRequest, match=complaint):
        parse_constraint(table)


texts = st.text("AB1.", min_size=1, max_size=6)


@given(
    kind=st.sampled_from([Check.ONE_OF, Check.EQUALS, Check.PREFIX_OF]),
    operands=st.lists(texts, min_size=1, max_size=4, unique=True),
    tail=texts,
)
def test_made_up_violations_break_the_rule_whatever_its_operands(
    kind: Check, operands: list[str], tail: str
) -> None:
    """Operands that begin each other are where a naive violation would be none."""
    rule = made({str(kind): operands[:1] if kind is Check.EQUALS else operands})
    good = operands[0] + (tail if kind is Check.PREFIX_OF else "")
    assert negative_tests([rule], {"hardware_id": good}) or operands == [operands[0]]


@given(st.lists(st.integers(0, 30), min_size=2, max_size=5), st.lists(st.integers(0, 30), max_size=3))
def test_made_up_object_identifiers_are_outside_of_the_arc(arc: list[int], below: list[int]) -> None:
    dotted = ".".join(map(str, [arc[0] % 3, *arc[1:]]))
    rule = made({"under-arc": dotted})
    assert len(negative_tests([rule], {})) >= 2
    assert rule.accepts(".".join([dotted, *map(str, below)])) is bool(below)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["rule", "variable", "rejects", *Check]), inner, max_size=4)
), max_leaves=8))  # fmt: skip
def test_any_table_is_a_constraint_or_malformed(content: object) -> None:
    if isinstance(content, dict):
        try:
            parse_constraint(content)
        except MalformedRequest:
            return


@pytest.mark.parametrize("name", [name for name in profiles.names() if profiles.load(name).constraints])
def test_each_constraint_of_a_packaged_profile_refuses_something(name: str) -> None:
    """SPEC G2: recorded negative tests; every one of the standard's rules, with the values of its file."""
    profile = profiles.load(name)
    done = negative_tests(profile.constraints, variables_of(name))
    assert {test.rule for test in done} == {constraint.rule for constraint in profile.constraints}
    for constraint in profile.constraints:
        assert len(constraint.rejects) >= 4
        assert constraint.rejects == tuple(
            test.tried for test in done if test.rule == constraint.rule
        )[: len(constraint.rejects)]  # fmt: skip


@pytest.mark.parametrize("name", [name for name in profiles.names() if profiles.load(name).constraints])
def test_what_a_packaged_profile_refuses_is_not_issued(name: str) -> None:
    """SPEC G2: the negative test an auditor makes, by template or ceremony; good values are issued."""
    assert chain_of(name).leaf_der
    for constraint in profiles.load(name).constraints:
        for value in constraint.rejects:
            with pytest.raises(PolicyRefused) as refusal:
                chain_of(name, variables={constraint.variable: value})
            assert refusal.value.rule == constraint.rule


def test_the_profiles_that_constrain_are_these() -> None:
    assert {name.partition("-")[0] for name in profiles.names() if profiles.load(name).constraints} == {
        "dlms", "iso15118", "matter", "wisun",
    }  # fmt: skip
