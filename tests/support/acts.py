"""Small acts, for asking the commit train what it does with them."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from birthmark import errors
from birthmark.floor.devices import KeyUse
from birthmark.ports import Act, Decision, Facts

__all__ = ["act", "note", "put", "use"]


def use(key: str, device: str = "serial:D1") -> KeyUse:
    """Return a value that is quickly made."""
    return KeyUse(spki_sha256=key, device=device)


def refuse(_facts: Facts, _at: datetime, refusal: errors.Refusal) -> Decision[errors.Refusal]:
    """Put a refusal on record as the use cases do."""
    return Decision(refusal, [("refused", {"code": refusal.code, "detail": str(refusal)})])


def act(decide: Callable[[Facts, datetime], Decision[Any]], **fields: Any) -> Act[Any]:
    """Return an act of station ST01 that reads nothing beforehand."""
    values: dict[str, Any] = {"actor": "station:ST01", "refuse": refuse, "reads": {}}
    return Act(decide=decide, **(values | fields))


def note(what: Mapping[str, Any] | None = None, kind: str = "noted") -> Act[Any]:
    """Return an act that writes one entry; it answers the entry's index."""
    return act(lambda facts, _at: Decision(facts.next_leaf, [(kind, dict(what or {}))]))


def put(*values: object) -> Act[Any]:
    """Return an act that puts values and one entry."""

    def decide(facts: Facts, _at: datetime) -> Decision[str]:
        for value in values:
            facts.put(value)
        return Decision("put", [("noted", {})])

    return act(decide)
