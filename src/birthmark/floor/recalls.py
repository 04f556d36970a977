"""Recalls: many certificates are revoked, suspended or reinstated at once, by two people (SPEC F1, E6, K1).

``RecallOrder`` is the document both sign: what is chosen, what happens to it, and why.  It never changes.
``Recall`` is its row: the signatures and how far the order has been carried out.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from birthmark import errors
from birthmark.ledger.entry import canonical, parse, parse_time, time_text
from birthmark.pki.revocation import ReasonCode

__all__ = [
    "REASONS",
    "WINDOWED",
    "Criterion",
    "Recall",
    "RecallAction",
    "RecallOrder",
    "RecallStatus",
    "Selection",
    "SelectionKind",
    "check_order",
]

_TYPE = "birthmark/recall/v1"
LONGEST_JUSTIFICATION = 500
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}", re.ASCII)


class SelectionKind(StrEnum):
    """By what certificates are chosen."""

    DEVICE = "device"
    RUN = "run"
    BATCH = "batch"
    AUTHORITY = "authority"
    """The authority's own certificate: one line on its issuer's CRL ends all that it issued."""
    ISSUED_BY = "issued-by"
    """Every device certificate the authority issued, the authority itself stays good."""
    STATION = "station"
    """What a station asked for, between two instants."""
    INCIDENT = "incident"
    """The certificates of all devices that acts of a kind touched, between two instants: see ``criteria``."""


WINDOWED = frozenset({SelectionKind.STATION, SelectionKind.INCIDENT})
"""Selections between two instants that are over: nothing can be added to them."""


class Criterion(StrEnum):
    """By what the acts of an incident are chosen; those given all hold."""

    STATION = "station"
    """The act came from it."""
    OPERATOR = "operator"
    """The act is theirs, or the station named them with it."""
    AUTHORITY = "authority"
    """The run's certificates are its."""
    RUN = "run"
    FIRMWARE = "firmware"
    """The run's licence names it."""
    ELEMENT = "element"
    """The run's devices have a secure element of this profile."""


class RecallAction(StrEnum):
    """What happens to them."""

    REVOKE = "revoke"
    SUSPEND = "suspend"
    REINSTATE = "reinstate"
    """Lift a suspension."""


class RecallStatus(StrEnum):
    """How far a recall is."""

    PROPOSED = "proposed"
    APPROVED = "approved"
    """Being carried out."""
    DONE = "done"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which certificates."""

    kind: SelectionKind
    value: str
    """Device id, run, batch, authority or station name; empty for an incident."""
    since: datetime | None = None
    """For a station: issued at or after; None for always.  For an incident: of the acts."""
    until: datetime | None = None
    """For a station: issued before.  For an incident: of the acts, and of what was issued."""
    criteria: Mapping[Criterion, str] = field(default_factory=dict)
    """For an incident: which acts; one at least."""

    def chooses(
        self, *, device: str, run: str, batch: str, authority: str, client: str, issued_at: datetime
    ) -> bool:
        """Return whether a device's certificate is among those chosen; ``client`` is who asked for it.

        Of an incident the log has to be asked, which alone knows every act (``services.incidents``).
        """
        if self.kind is SelectionKind.STATION:
            return (
                client == f"station:{self.value}"
                and (self.since is None or issued_at >= self.since)
                and (self.until is None or issued_at < self.until)
            )
        by = {
            SelectionKind.DEVICE: device,
            SelectionKind.RUN: run,
            SelectionKind.BATCH: batch,
            SelectionKind.ISSUED_BY: authority,
        }
        return by.get(self.kind) == self.value

    def __str__(self) -> str:
        window = [
            *([] if self.since is None else [f"since {time_text(self.since)}"]),
            *([] if self.until is None else [f"until {time_text(self.until)}"]),
        ]
        named = [f"{name}={value}" for name, value in sorted(self.criteria.items())]
        return " ".join([str(self.kind), *([self.value] if self.value else []), *named, *window])


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallOrder:
    """What two people sign.  ``encode`` is what gets signed."""

    realm: str
    environment: str
    id: str
    selection: Selection
    action: RecallAction
    reason: ReasonCode
    justification: str
    """In the proposer's words; 1 to 500 characters."""
    previewed: int
    """How many certificates it would have changed when it was proposed."""
    proposed_by: str
    """Client id of the proposing operator."""
    invalidity_date: datetime | None = None
    """Since when the keys are suspected (RFC 5280 section 5.3.2), where that is known."""

    def encode(self) -> bytes:
        """Return the canonical JSON (RFC 8785) of the order: the bytes that are signed."""
        selection = self.selection
        return canonical(
            {
                "type": _TYPE,
                "realm": self.realm,
                "environment": self.environment,
                "recall": self.id,
                "selection": {
                    "kind": selection.kind,
                    "value": selection.value,
                    "since": None if selection.since is None else time_text(selection.since),
                    "until": None if selection.until is None else time_text(selection.until),
                    **({"criteria": dict(selection.criteria)} if selection.criteria else {}),
                },
                "action": self.action,
                "reason": self.reason,
                "justification": self.justification,
                "previewed": self.previewed,
                "proposed_by": self.proposed_by,
                "invalidity_date": None if self.invalidity_date is None else time_text(self.invalidity_date),
            }
        )

    @classmethod
    def decode(cls, document: bytes) -> "RecallOrder":
        """Read an order back.

        Raises:
            errors.MalformedRequest: these bytes are not a recall order.
        """
        try:
            fields: dict[str, Any] = parse(document)
            if fields.pop("type") != _TYPE:
                raise errors.MalformedRequest(f"not a {_TYPE} document")
            chosen, since = fields.pop("selection"), fields.pop("invalidity_date")
            order = cls(
                id=fields.pop("recall"),
                selection=Selection(
                    kind=SelectionKind(chosen["kind"]),
                    value=chosen["value"],
                    since=None if chosen["since"] is None else parse_time(chosen["since"]),
                    until=None if chosen["until"] is None else parse_time(chosen["until"]),
                    criteria={Criterion(name): value for name, value in chosen.get("criteria", {}).items()},
                ),
                action=RecallAction(fields.pop("action")),
                reason=ReasonCode(fields.pop("reason")),
                invalidity_date=None if since is None else parse_time(since),
                **fields,
            )
            if not _is_typed(order) or order.encode() != document:
                raise errors.MalformedRequest("not a recall order: a field is of the wrong type")
        except (AttributeError, KeyError, TypeError, ValueError) as cause:
            raise errors.MalformedRequest("not a recall order") from cause
        return order


def _is_typed(order: RecallOrder) -> bool:
    """Tell whether JSON brought what the annotations say, where nothing else has looked at it."""
    texts: list[Any] = [
        order.realm, order.environment, order.id, order.selection.value, order.justification,
        order.proposed_by, *order.selection.criteria.values(),
    ]  # fmt: skip
    return all(type(text) is str for text in texts) and type(order.previewed) is int


REASONS: Mapping[RecallAction, frozenset[ReasonCode]] = {
    RecallAction.REVOKE: frozenset(ReasonCode)
    - {ReasonCode.CERTIFICATE_HOLD, ReasonCode.REMOVE_FROM_CRL, ReasonCode.AA_COMPROMISE},
    RecallAction.SUSPEND: frozenset({ReasonCode.CERTIFICATE_HOLD}),
    RecallAction.REINSTATE: frozenset({ReasonCode.REMOVE_FROM_CRL}),
}
"""The reasons that go with each action (RFC 5280 section 5.3.1)."""
_COMPROMISE = frozenset({ReasonCode.KEY_COMPROMISE, ReasonCode.CA_COMPROMISE})


def check_order(order: RecallOrder) -> None:
    """Refuse an order that makes no sense, whoever signs it.

    Raises:
        errors.PolicyRefused: names the rule.
    """
    selection = order.selection
    if _ID.fullmatch(order.id) is None:
        raise errors.PolicyRefused(
            "recall", f"a recall is named by 1 to 64 of a-z 0-9 -, not {order.id[:64]!r}"
        )
    if not 1 <= len(order.justification) <= LONGEST_JUSTIFICATION or not order.justification.isprintable():
        raise errors.PolicyRefused("justification", "a recall says in 1 to 500 printable characters why")
    _check_selection(selection)
    if order.reason not in REASONS[order.action]:
        raise errors.PolicyRefused("reason", f"{order.reason} is no reason to {order.action} certificates")
    if order.reason is ReasonCode.CA_COMPROMISE and selection.kind is not SelectionKind.AUTHORITY:
        raise errors.PolicyRefused("reason", f"{order.reason} is for the certificate of an authority")
    if selection.kind is SelectionKind.AUTHORITY and order.action is not RecallAction.REVOKE:
        raise errors.PolicyRefused(
            "action", f"an authority's certificate is revoked or left alone: it takes no {order.action}"
        )
    if order.invalidity_date is not None and order.reason not in _COMPROMISE:
        raise errors.PolicyRefused("invalidity-date", "an invalidity date goes with a compromise only")


def _check_selection(selection: Selection) -> None:
    incident = selection.kind is SelectionKind.INCIDENT
    if incident != bool(selection.criteria) or incident == bool(selection.value):
        raise errors.PolicyRefused(
            "selection", "an incident has criteria and is not named; everything else is named and has none"
        )
    for what, named in selection.criteria.items() if incident else ((selection.kind, selection.value),):
        if not 1 <= len(named) <= 200 or not named.isprintable():
            raise errors.PolicyRefused("selection", f"no {what} is named")
    if selection.kind not in WINDOWED and (selection.since, selection.until) != (None, None):
        raise errors.PolicyRefused("selection", "a window of time goes with a station or an incident only")
    if selection.kind in WINDOWED and selection.until is None:
        # Without an end it would change what it chooses while people look at it.
        raise errors.PolicyRefused("selection", f"the window of a {selection.kind} has an end")
    if incident and selection.since is None:
        raise errors.PolicyRefused("selection", "the window of an incident has a beginning")
    if selection.since is not None and selection.until is not None and selection.since >= selection.until:
        raise errors.PolicyRefused("selection", "the window ends before it begins")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    """An order and how far it is carried out."""

    id: str
    document: bytes
    proposer: str
    """Serial number of the proposing operator's certificate (hex)."""
    proposal: bytes
    """The proposer's signature over ``document``."""
    approver: str | None
    """Serial number of the approving operator's certificate (hex)."""
    approval: bytes | None
    """The approver's signature over ``document``."""
    status: RecallStatus
    cursor: str
    """Where to go on: everything up to this point is done."""
    changed: int
    """Certificates revoked, suspended or reinstated so far."""
    proposed_at: datetime
    approved_at: datetime | None
    """What was issued later is not recalled."""
