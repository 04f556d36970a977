"""Issuance constraints (SPEC G2): what a certificate's variables may be, and proof that others are refused.

A constraint is one rule about one variable.  A profile carries those that its standard asks for (a Matter
vendor id is four capital hex digits); an authority's licence carries those of its contract (this maker's
private enterprise number, these vendor ids, these world manufacturer identifiers), in the same shape, and a
certificate has to keep all of them.  A constraint judges a value that is there; whether one must be there is
the profile's business.

``negative_tests`` is what an auditor asks for: for each rule, values that break it, and how each was refused.
The values are the constraint's own ``rejects`` and, where the rule lets us, ones made from what it accepts.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from birthmark.errors import IntegrityFailure, MalformedRequest, PolicyRefused
from birthmark.pki import der

__all__ = [
    "Check",
    "Constraint",
    "NegativeTest",
    "check",
    "check_pattern",
    "constraint_tables",
    "constraints_text",
    "negative_tests",
    "parse_constraint",
]

_RULE = re.compile(r"[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?")
_VARIABLE = re.compile(r"[a-z][a-z0-9_]{0,63}")
_WMI = re.compile(r"[A-HJ-NPR-Z0-9]{3}")
_LONGEST_PATTERN = 128
_LONGEST_VALUE = 256
_MOST_OPERANDS = 1024
_MOST_VARIABLE = 3


class Check(StrEnum):
    """What a constraint asks of a value; spelled as the key that carries the operand."""

    PATTERN = "pattern"
    """The whole value matches a regular expression without groups and alternatives."""
    ONE_OF = "one-of"
    """The value is one of a set."""
    EQUALS = "equals"
    """The value is this."""
    UNDER_ARC = "under-arc"
    """The value is an object identifier strictly below one of these (RFC 4108 hwType under a maker's arc)."""
    PREFIX_OF = "prefix-of"
    """The value begins with one of these, and is longer (system title: the FLAG id; a name form)."""
    WMI = "wmi"
    """The value begins with one of these world manufacturer identifiers (ISO 3780), three characters each."""


_LISTS = frozenset({Check.ONE_OF, Check.UNDER_ARC, Check.PREFIX_OF, Check.WMI})


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """One rule about one variable."""

    rule: str
    """Its name in refusals and reports: 1 to 64 of ``a-z 0-9 -``."""
    variable: str
    check: Check
    operands: tuple[str, ...]
    """What the check compares with; a pattern and an equal have one."""
    rejects: tuple[str, ...]
    """Values that it must refuse: its negative tests."""

    def accepts(self, value: str) -> bool:
        """Return whether a value keeps the rule."""
        if len(value) > _LONGEST_VALUE:
            return False
        match self.check:
            case Check.PATTERN:
                return re.fullmatch(self.operands[0], value) is not None
            case Check.ONE_OF | Check.EQUALS:
                return value in self.operands
            case Check.UNDER_ARC:
                return _is_oid(value) and any(value.startswith(f"{arc}.") for arc in self.operands)
            case Check.PREFIX_OF | Check.WMI:
                return any(value.startswith(prefix) and value != prefix for prefix in self.operands)

    def table(self) -> dict[str, Any]:
        """Return it as ``parse_constraint`` takes it: texts and lists of texts, for TOML and JSON."""
        operand = list(self.operands) if self.check in _LISTS else self.operands[0]
        table = {"rule": self.rule, "variable": self.variable, str(self.check): operand}
        return table | ({"rejects": list(self.rejects)} if self.rejects else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class NegativeTest:
    """A value that breaks a rule, and how it was refused."""

    rule: str
    variable: str
    tried: str
    refused_with: str
    """The refusal, as whoever asked would have read it."""


def parse_constraint(table: Mapping[str, Any]) -> Constraint:
    """Return the constraint a TOML or JSON table holds.

    ``{rule, variable, rejects = [...]}`` and exactly one of ``pattern = "..."``, ``equals = "..."``,
    ``one-of = [...]``, ``under-arc = [...]``, ``prefix-of = [...]``, ``wmi = [...]``; a list of one may be
    written without brackets.  A pattern needs ``rejects``, because nobody can make up what it refuses.

    Raises:
        MalformedRequest: it is no constraint, or accepts one of its own ``rejects``.
    """
    rest = dict(table)
    rule = _text(rest, "rule", _RULE, "1 to 64 of a-z 0-9 -")
    variable = _text(rest, "variable", _VARIABLE, "the name of a variable")
    rejects = _texts(rest, "rejects", f"constraint {rule}") if "rejects" in rest else ()
    found = [kind for kind in Check if kind in rest]
    if len(found) != 1:
        raise MalformedRequest(f"constraint {rule}: give exactly one of {', '.join(Check)}")
    operands = _texts(rest, found[0], f"constraint {rule}")
    if rest:
        raise MalformedRequest(f"constraint {rule}: {min(rest, key=str)}: unknown key")
    made = Constraint(rule=rule, variable=variable, check=found[0], operands=operands, rejects=rejects)
    _check_operands(made)
    if made.check is Check.PATTERN and not rejects:
        raise MalformedRequest(f"constraint {rule}: a pattern needs rejects, examples that it must refuse")
    for value in rejects:
        if made.accepts(value):
            raise MalformedRequest(f"constraint {rule}: accepts {value!r}, which its rejects say it refuses")
    return made


def constraints_text(tables: Sequence[Mapping[str, object]]) -> str:
    """Return constraints as licences keep them: a JSON list, keys sorted, nothing between the tokens."""
    return json.dumps(list(tables), ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def constraint_tables(text: str) -> list[dict[str, Any]]:
    """Read them back, each a table for ``parse_constraint``.

    Raises:
        MalformedRequest: the text is no JSON list of tables.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MalformedRequest(f"constraints: not json: {error}") from error
    if not isinstance(found, list) or not all(isinstance(table, dict) for table in found):
        raise MalformedRequest("constraints: not a list of tables")
    return found


def check(constraints: Iterable[Constraint], values: Mapping[str, str]) -> None:
    """Refuse values that break a rule; a variable without a value, or with an empty one, breaks none.

    An empty value is none everywhere: what is optional is left out, and what is not has no encoding.

    Raises:
        PolicyRefused: ``rule`` is the constraint's name.
    """
    for constraint in constraints:
        value = values.get(constraint.variable)
        if value and not constraint.accepts(value):
            raise PolicyRefused(constraint.rule, _complaint(constraint, value))


def negative_tests(
    constraints: Sequence[Constraint], values: Mapping[str, str] | None = None
) -> tuple[NegativeTest, ...]:
    """Try for each rule at least one value that breaks it, and return how each was refused.

    Args:
        constraints: all that a certificate must keep.
        values: good values, to make bad ones from; that they are accepted is tested first.

    Raises:
        PolicyRefused: one of ``values`` is not accepted.
        IntegrityFailure: a value that breaks a rule was accepted: nothing may be issued under these.
    """
    good = dict(values or {})
    check(constraints, good)
    done: list[NegativeTest] = []
    for constraint in constraints:
        for tried in filter(None, dict.fromkeys((*constraint.rejects, *_violations(constraint, good)))):
            try:
                check((constraint,), {**good, constraint.variable: tried})
            except PolicyRefused as refusal:
                done.append(
                    NegativeTest(
                        rule=constraint.rule,
                        variable=constraint.variable,
                        tried=tried,
                        refused_with=str(refusal),
                    )
                )
            else:
                raise IntegrityFailure(
                    f"constraint {constraint.rule} accepts {constraint.variable} {tried!r}, which breaks it"
                )
    return tuple(done)


# --- values that break a rule ---


def _violations(constraint: Constraint, good: Mapping[str, str]) -> list[str]:
    """Make values that break a rule by what the rule means, not by asking it."""
    operands = constraint.operands
    value = good.get(constraint.variable)
    match constraint.check:
        case Check.PATTERN:
            return []  # its rejects are asked for at parsing
        case Check.ONE_OF | Check.EQUALS:
            near = [f"{operands[0]}x", operands[0].swapcase(), operands[0][:-1]]
            return [text for text in near if text not in operands]
        case Check.UNDER_ARC:
            # The arc itself, one whose digits begin alike, and a neighbour.
            near = [arc for arc in operands if not _is_below(arc, operands)]
            near += [f"{arc}0.1" for arc in operands if not _is_below(f"{arc}0.1", operands)]
            near += [text for text in ("0.0", "2.999.1") if not _is_below(text, operands)]
            return near
        case Check.PREFIX_OF | Check.WMI:
            tail = _tail(value, operands)
            others = (_another(prefix, operands) for prefix in operands[:1])
            near = [*(f"{other}{tail}" for other in others), operands[0][:-1]]
            return [
                text for text in near if not any(len(text) > len(p) and text[: len(p)] == p for p in operands)
            ]


def _is_below(text: str, arcs: Collection[str]) -> bool:
    numbers = text.split(".")
    return any(
        len(numbers) > arc.count(".") + 1 and numbers[: arc.count(".") + 1] == arc.split(".") for arc in arcs
    )


def _tail(value: str | None, prefixes: Collection[str]) -> str:
    for prefix in prefixes:
        if value is not None and value.startswith(prefix):
            return value[len(prefix) :]
    return "0"


def _another(prefix: str, prefixes: Collection[str]) -> str:
    """Return a text as long as the prefix that none of them begins or is begun by."""
    for character in "0123456789ABCDEFGHJKLMNPRSTUVWXYZ":
        other = character + prefix[1:]
        if not any(other.startswith(taken[: len(other)]) for taken in prefixes):
            return other
    return "\N{REPLACEMENT CHARACTER}"


# --- reading ---


def _complaint(constraint: Constraint, value: str) -> str:
    accepted = ", ".join(constraint.operands[:8]) + (", ..." if len(constraint.operands) > 8 else "")
    shown = repr(value[:64])
    match constraint.check:
        case Check.PATTERN:
            return f"{constraint.variable} {shown} does not match {accepted}"
        case Check.ONE_OF | Check.EQUALS:
            return f"{constraint.variable} {shown} is none of {accepted}"
        case Check.UNDER_ARC:
            return f"{constraint.variable} {shown} is no object identifier under {accepted}"
        case Check.PREFIX_OF | Check.WMI:
            return f"{constraint.variable} {shown} does not begin with {accepted}"


def _is_oid(text: str) -> bool:
    try:
        der.oid(text)
    except MalformedRequest:
        return False
    return True


def _text(rest: dict[str, Any], key: str, form: re.Pattern[str], spoken: str) -> str:
    value = rest.pop(key, None)
    if not isinstance(value, str) or form.fullmatch(value) is None:
        raise MalformedRequest(f"constraint: {key}: must be {spoken}, is {str(value)[:64]!r}")
    return value


def _texts(rest: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = rest.pop(key)
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list | tuple) or not 1 <= len(listed) <= _MOST_OPERANDS:
        raise MalformedRequest(f"{where}: {key}: must be a text or a list of 1 to {_MOST_OPERANDS} texts")
    if not all(isinstance(text, str) and 1 <= len(text) <= _LONGEST_VALUE for text in listed):
        raise MalformedRequest(f"{where}: {key}: must be texts of 1 to {_LONGEST_VALUE} characters")
    if len(set(listed)) != len(listed):
        raise MalformedRequest(f"{where}: {key}: names one twice")
    return tuple(listed)


def _check_operands(made: Constraint) -> None:
    where = f"constraint {made.rule}: {made.check}"
    if made.check in {Check.PATTERN, Check.EQUALS} and len(made.operands) != 1:
        raise MalformedRequest(f"{where}: must be one text")
    for operand in made.operands:
        match made.check:
            case Check.PATTERN:
                check_pattern(operand, where)
            case Check.UNDER_ARC if not _is_oid(operand):
                raise MalformedRequest(f"{where}: {operand!r} is no object identifier in dotted decimals")
            case Check.WMI if _WMI.fullmatch(operand) is None:
                raise MalformedRequest(f"{where}: {operand!r} is not three of A-Z and 0-9 without I, O and Q")


_TOKEN = re.compile(
    r"""(?P<atom>\[(?!\^)(?:[A-Za-z0-9_.:/+ ]|-(?!-)|\\[\[\]^\\-])+\]  # a class, not negated
          |\\[d.+*?()\[\]{}|^$\\/-]                                # a digit, or an escaped character
          |[A-Za-z0-9_:/=,;@%~!"'<>&\# -])                         # a character that stands for itself
        (?P<quantifier>\{\d{1,2}\}|\{\d{0,2},\d{0,2}\}|[?*+])?""",
    re.VERBOSE,
)


def check_pattern(pattern: str, where: str) -> None:
    """Accept a regular expression only if it cannot be slow.

    Backtracking tries at most (length of the value) to the power of (variable quantifiers) ways when there
    are no groups; those are three at most.

    Raises:
        MalformedRequest: it has other than characters, classes and quantifiers, or is too long.
    """
    if not 1 <= len(pattern) <= _LONGEST_PATTERN:
        raise MalformedRequest(f"{where}: a pattern has 1 to {_LONGEST_PATTERN} characters")
    position = variable = 0
    while position < len(pattern):
        token = _TOKEN.match(pattern, position)
        if token is None:
            raise MalformedRequest(
                f"{where}: {pattern!r}: at {position + 1}: only characters, \\d, classes, quantifiers"
            )
        quantifier = token["quantifier"] or ""
        variable += bool(quantifier) and ("," in quantifier or quantifier in "?*+")
        position = token.end()
    if variable > _MOST_VARIABLE:
        raise MalformedRequest(f"{where}: {pattern!r}: {variable} quantifiers of variable length, at most 3")
    try:
        re.compile(pattern)
    except re.error as error:
        raise MalformedRequest(f"{where}: {pattern!r}: {error}") from error
