"""The blast radius of an incident: all that acts of a kind touched between two instants (SPEC E6).

The acts are chosen by who acted (a station, an operator) and by the run they belong to (the run itself, its
authority, firmware, element); all that is given has to hold.  An act counts if the time of its log entry is
in [since, until).  The log is read twice, whole, and verified both times: once for the acts, once for what
has become of the devices they touched.  Memory grows with what was touched, not with the log.

``listed`` is what a recall of the incident recalls: the certificates of the attempts that were touched,
issued before the window's end.  The window is over, so that list never changes; which are still live does.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from birthmark import errors
from birthmark.floor.clients import PERSON
from birthmark.floor.recalls import Criterion, Selection, SelectionKind
from birthmark.floor.runs import RunLicence
from birthmark.ledger.entry import decode, time_text
from birthmark.pki.revocation import ReasonCode
from birthmark.services.entry_fields import (
    Entry,
    number_of,
    object_of,
    objects_of,
    text_of,
    texts_of,
)
from birthmark.services.log_reading import LogCopy, Told, skim, walk

__all__ = ["Incident", "Listed", "Other", "Touched", "incident", "listed_in"]

_ACTS = {
    "device-issued": "issued",
    "device-reissued": "reissued",
    "local-issued": "enrolled",
    "device-released": "proved",
    "device-held": "held",
    "device-reworked": "reworked",
    "device-scrapped": "scrapped",
    "element-begun": "element",
    "element-step": "element",
    "element-interrupted": "element",
}
"""Kinds of entry that touch a device, and what each is called."""
_OTHERS = (
    "client-",
    "run-",
    "recall-",
    "authority-",
    "key-",
    "ceremony-",
    "exposure-",
    "proposal-",
    "role-",
    "enrolment-",
    "fleet-",
    "foreign-",
    "field-",
)
"""Kinds of entry that are listed one by one: few, and each a decision of somebody's."""
_STATES = {
    "device-issued": "issued",
    "device-reissued": "issued",
    "device-released": "released",
    "device-held": "held",
    "device-reworked": "admitted",
    "device-scrapped": "scrapped",
}


_WHO = frozenset({Criterion.STATION, Criterion.OPERATOR})
_NAMED = ("client", "run", "recall", "authority", "key", "ceremony", "consignment")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A certificate that a recall of the incident recalls."""

    certificate: str
    """Serial number (hex)."""
    device: str
    run: str
    authority: str
    partition: str
    issued_at: str
    reason: str | None
    """Why it is not good now; None if it is live."""


@dataclass(slots=True, kw_only=True)
class Touched:
    """A device, what was done to it in the window, and where it is now."""

    device: str
    acts: Counter[str] = field(default_factory=Counter)
    runs: set[str] = field(default_factory=set)
    attempts: set[str] = field(default_factory=set)
    """Those that were touched."""
    first: str = ""
    last: str = ""
    key_set: str | None = None
    """The profile of the key set that was put into its element, if an act in the window proved it."""
    state: str = "unknown"
    consignment: str | None = None
    shipped_at: str | None = None
    certificates: list[str] = field(default_factory=list)
    """Serial numbers of what is listed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Other:
    """An act of the window that touched no device: a run opened, a client let in, a shipment recorded."""

    index: int
    at: str
    kind: str
    actor: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """All that was touched."""

    selection: Selection
    size: int
    """Entries of the log that was read."""
    devices: Mapping[str, Touched]
    listed: Mapping[str, Listed]
    """By serial number, in the order of their issue."""
    others: tuple[Other, ...]
    actors: Mapping[str, int]
    """Who acted, and how often."""
    operators: Mapping[str, int]
    """Whom stations named, and how often."""
    counts: Mapping[str, int]
    """Acts of the window by what they are."""
    contradictions: tuple[str, ...] = ()

    @property
    def live(self) -> list[str]:
        """Serial numbers of the listed certificates that are good now."""
        return [serial for serial, one in self.listed.items() if one.reason is None]

    def document(self) -> dict[str, Any]:
        """Return it as it is shown."""
        devices = self.devices.values()
        return {
            "selection": {
                "criteria": {str(name): value for name, value in sorted(self.selection.criteria.items())},
                "since": self.selection.since,
                "until": self.selection.until,
            },
            "log_size": self.size,
            "counts": dict(sorted(self.counts.items())),
            "devices": len(self.devices),
            "states": dict(sorted(Counter(one.state for one in devices).items())),
            "shipped": sum(one.shipped_at is not None for one in devices),
            "consignments": dict(
                sorted(Counter(one.consignment for one in devices if one.consignment).items())
            ),
            "key_sets": dict(sorted(Counter(one.key_set for one in devices if one.key_set).items())),
            "certificates": len(self.listed),
            "live": len(self.live),
            "not_live": dict(
                sorted(Counter(one.reason for one in self.listed.values() if one.reason).items())
            ),
            "actors": dict(self.actors),
            "operators": dict(self.operators),
            "contradictions": list(self.contradictions),
        }


Entries = Callable[[], Iterable[tuple[int, bytes]]]
"""Returns all entries of a log, with their indices, once more."""


def incident(copy: LogCopy, selection: Selection, told: Told = lambda _done, _size: None) -> Incident:
    """Read a log and return what an incident touched.

    Raises:
        errors.IntegrityFailure: the log is not what its checkpoint signs, or an entry is none of ours.
        errors.MalformedRequest: it never names one of those whose acts are asked for.
    """
    acts = _Acts(selection)
    first = walk(copy, acts.take, told)
    acts.require_read()
    if acts.unheard:
        names = ", ".join(sorted(f"{name} {selection.criteria[name]!r}" for name in acts.unheard))
        raise errors.MalformedRequest(f"the log never names {names}: look how it is spelled")
    after = _Aftermath(acts.touched, time_text(_bound(selection.until)))
    walk(copy, after.take, told)
    after.require_read()
    return Incident(
        selection=selection,
        size=first.checkpoint.size,
        devices=dict(sorted(acts.touched.items())),
        listed=after.listed,
        others=tuple(acts.others),
        actors=dict(sorted(acts.actors.items())),
        operators=dict(sorted(acts.operators.items())),
        counts=acts.counts,
        contradictions=tuple(after.contradictions),
    )


def listed_in(entries: Entries, selection: Selection) -> Mapping[str, Listed]:
    """Return what a recall of an incident recalls, of a log that somebody else verifies.

    Raises:
        errors.IntegrityFailure: an entry is none of ours.
    """
    acts = _Acts(selection)
    for index, entry in entries():
        acts.take(index, entry)
    acts.require_read()
    after = _Aftermath(acts.touched, time_text(_bound(selection.until)))
    for index, entry in entries():
        after.take(index, entry)
    after.require_read()
    return after.listed


def _bound(moment: datetime | None) -> datetime:
    if moment is None:
        raise errors.MalformedRequest("an incident's window has a beginning and an end")
    return moment


def _names(licence: RunLicence) -> Mapping[Criterion, str | None]:
    return {
        Criterion.RUN: licence.id,
        Criterion.AUTHORITY: licence.authority,
        Criterion.FIRMWARE: licence.firmware,
        Criterion.ELEMENT: licence.element,
    }


class _Reading:
    """What both readings share: the first entry that is none of ours is remembered, and told afterwards."""

    def __init__(self) -> None:
        self._wrong: str | None = None

    def take(self, index: int, raw: bytes) -> bool:
        """Take the next entry; no proof of it will be asked for."""
        try:
            self._take(index, raw)
        except errors.MalformedRequest as refusal:
            self._wrong = self._wrong or f"entry {index} is not one of ours: {refusal}"
        return False

    def _take(self, index: int, raw: bytes) -> None:
        raise NotImplementedError

    def require_read(self) -> None:
        """Refuse to go on with a log in which an entry could not be read.

        Raises:
            errors.IntegrityFailure: names the first.
        """
        if self._wrong is not None:
            raise errors.IntegrityFailure(self._wrong)


class _Acts(_Reading):
    """Finds the acts of the window."""

    def __init__(self, selection: Selection) -> None:
        super().__init__()
        if selection.kind is not SelectionKind.INCIDENT or not selection.criteria:
            raise errors.MalformedRequest("say whose acts: a station, an operator, a run, …")
        self.touched: dict[str, Touched] = {}
        self.others: list[Other] = []
        self.actors: Counter[str] = Counter()
        self.operators: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self._criteria = selection.criteria
        self.unheard = set(selection.criteria)
        """Criteria with a value that no entry has named, in the window or outside."""
        self._since, self._until = time_text(_bound(selection.since)), time_text(_bound(selection.until))
        self._licences: dict[str, RunLicence] = {}
        self._of_run = not selection.criteria.keys() <= _WHO

    def _take(self, index: int, raw: bytes) -> None:
        entry = skim(raw)
        kind: str = entry["kind"]
        if kind in ("run-proposed", "run-opened"):
            licence = RunLicence.decode(text_of(entry, "licence").encode())
            self._licences[text_of(entry, "run")] = licence
            self._hear(_names(licence))
        if self.unheard:
            self._hear_acting(entry)
        if not self._since <= entry["at"] < self._until or not self._is_theirs(entry):
            return
        if kind in _ACTS:
            self._take_act(raw, kind)
        elif kind == "devices-shipped":
            if not self._of_run:
                self._take_other(index, raw)
        elif kind.startswith(_OTHERS):
            if self._fits_other(entry):
                self._take_other(index, raw)
        elif not self._of_run or self._fits(entry.get("run")):
            self._count(kind, entry)

    def _hear(self, named: Mapping[Criterion, str | None]) -> None:
        self.unheard -= {one for one in self.unheard if named.get(one) == self._criteria[one]}

    def _hear_acting(self, entry: Entry) -> None:
        self._hear({Criterion.OPERATOR: entry.get("operator"), Criterion.AUTHORITY: entry.get("authority")})
        for client in (entry["actor"], entry.get("client")):
            kind, _, name = client.partition(":") if isinstance(client, str) else ("", "", "")
            self._hear({Criterion.STATION: name} if kind == "station" else {})
            self._hear({Criterion.OPERATOR: name} if kind == PERSON else {})

    def _is_theirs(self, entry: Entry) -> bool:
        station, operator = (self._criteria.get(one) for one in (Criterion.STATION, Criterion.OPERATOR))
        if station is not None and entry["actor"] != f"station:{station}":
            return False
        return (
            operator is None or f"{PERSON}:{operator}" == entry["actor"] or entry.get("operator") == operator
        )

    def _fits(self, run: object) -> bool:
        """Tell whether a run is one that the criteria choose."""
        if not self._of_run:
            return True
        licence = self._licences.get(run) if isinstance(run, str) else None
        if licence is None:
            return False
        found = _names(licence)
        return all(found.get(name, value) == value for name, value in self._criteria.items())

    def _fits_other(self, entry: Entry) -> bool:
        if "run" in entry and entry["run"] is not None:
            return self._fits(entry["run"])
        wanted = [(name, value) for name, value in self._criteria.items() if name not in _WHO]
        return all(name is Criterion.AUTHORITY and entry.get("authority") == value for name, value in wanted)

    def _take_act(self, raw: bytes, kind: str) -> None:
        entry = decode(raw)
        record = object_of(entry, "record") if kind == "device-released" else entry
        run = text_of(record, "run")
        if not self._fits(run):
            return
        device, at = text_of(entry, "device"), entry["at"]
        found = self.touched.setdefault(device, Touched(device=device, first=str(at)))
        found.last = str(at)
        found.runs.add(run)
        found.attempts.add(text_of(record, "attempt"))
        act = _ACTS[kind]
        found.acts[act] += 1
        if kind == "device-issued" and number_of(entry, "attempt_number") == 1:
            found.acts["admitted"] += 1
            self.counts["admitted"] += 1
        if "key_set" in record and kind == "device-released":
            found.key_set = text_of(object_of(record, "key_set"), "profile")
        self._count(act, entry)

    def _take_other(self, index: int, raw: bytes) -> None:
        entry = decode(raw)
        kind = str(entry["kind"])
        what = [f"{name} {entry[name]}" for name in _NAMED if isinstance(entry.get(name), str)]
        if kind == "devices-shipped":
            what.append(f"{len(texts_of(entry, 'devices'))} devices")
        if "certificates" in entry:
            what.append(f"{len(texts_of(entry, 'certificates'))} certificates")
        self.others.append(
            Other(
                index=index, at=str(entry["at"]), kind=kind, actor=str(entry["actor"]), what=", ".join(what)
            )
        )
        self._count(kind, entry)

    def _count(self, what: str, entry: Entry) -> None:
        self.counts[what] += 1
        self.actors[entry["actor"]] += 1
        if isinstance(operator := entry.get("operator"), str):
            self.operators[operator] += 1


class _Aftermath(_Reading):
    """Finds the certificates of what was touched, and where everything stands at the end of the log."""

    def __init__(self, touched: Mapping[str, Touched], until: str) -> None:
        super().__init__()
        self.listed: dict[str, Listed] = {}
        self.contradictions: list[str] = []
        self._touched = touched
        self._until = until

    def _take(self, index: int, raw: bytes) -> None:
        if not self._touched or not (b'"device' in raw or b'"certificates":' in raw):
            return
        entry = skim(raw)
        kind: str = entry["kind"]
        if kind == "devices-shipped":
            for device in texts_of(entry, "devices"):
                if (gone := self._touched.get(device)) is not None and gone.shipped_at is None:
                    gone.consignment, gone.shipped_at = text_of(entry, "consignment"), entry["at"]
            return
        touching = kind in _STATES or kind == "local-issued"
        if touching and (found := self._touched.get(text_of(entry, "device"))) is not None:
            decode(raw)
            found.state = _STATES.get(kind, found.state)
            if kind in ("device-issued", "device-reissued", "local-issued"):
                self._take_issued(found, entry)
        if "revocation_reason" in entry:
            self._take_revoked(index, entry)

    def _take_issued(self, found: Touched, entry: Entry) -> None:
        if text_of(entry, "attempt") not in found.attempts or entry["at"] >= self._until:
            return
        for one in (entry, *objects_of(entry, "further")):
            serial = text_of(one, "certificate")
            found.certificates.append(serial)
            self.listed[serial] = Listed(
                certificate=serial,
                device=found.device,
                run=text_of(entry, "run"),
                authority=text_of(entry, "authority"),
                partition=text_of(entry, "partition"),
                issued_at=entry["at"],
                reason=None,
            )

    def _take_revoked(self, index: int, entry: Entry) -> None:
        reason = text_of(entry, "revocation_reason")
        now = None if reason == ReasonCode.REMOVE_FROM_CRL else reason
        for serial in texts_of(entry, "certificates"):
            one = self.listed.get(serial)
            if one is None:
                continue
            if one.reason not in (None, str(ReasonCode.CERTIFICATE_HOLD)):
                self.contradictions.append(
                    f"entry {index}: certificate {serial} was revoked for good and changes again"
                )
                continue
            self.listed[serial] = replace(one, reason=now)
