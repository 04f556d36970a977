"""Which certificates a selection chooses, and what it would mean to recall them (SPEC E6, F1).

A selection is walked run by run, each run along its certificates' serial numbers, a page at a time: memory
does not grow with what is chosen, and a walk that was broken off goes on at its cursor.  Runs are told apart
by their licences; that these are what was signed is for ``birthmark check`` to say.

Nothing here changes anything; ``services.recall`` does.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from birthmark import errors
from birthmark.floor.authorities import Authority, AuthorityStatus, Custody
from birthmark.floor.clients import Client, Credential
from birthmark.floor.devices import Device, DeviceCertificate
from birthmark.floor.enrolments import LocalIdentity
from birthmark.floor.recalls import RecallAction, Selection, SelectionKind
from birthmark.floor.revocations import AUTHORITIES, Revocation
from birthmark.floor.runs import Run, RunLicence, RunStatus
from birthmark.floor.shipments import Shipped
from birthmark.pki.revocation import ReasonCode
from birthmark.ports import Facts, Look, Scan, UseCase
from birthmark.services.revocations import line_of, status

__all__ = [
    "PAGE",
    "Chosen",
    "ListedOf",
    "Preview",
    "Told",
    "changes",
    "choose",
    "gone_since",
    "next_page",
    "preview",
    "selection_document",
    "still_issuing",
]

V = TypeVar("V")
PAGE = 1000
"""Certificates in one act: their serial numbers fit into one log entry of 65 535 octets."""
ListedOf = Callable[[Selection], Iterable[str]]
Told = Callable[[int, int], None]
"""Told how many certificates are done, and of how many."""
_COMPLETE = frozenset({SelectionKind.RUN, SelectionKind.BATCH, SelectionKind.ISSUED_BY})
"""Selections to which whatever is being issued could add."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Where to look for a selection's certificates."""

    selection: Selection
    runs: Mapping[str, RunLicence]
    """Licences of the runs to walk, by run, sorted."""
    issuing: tuple[str, ...]
    """Those of them that were open."""
    authority: Authority | None = None
    """The one that goes, where a selection is an authority."""
    below: tuple[Authority, ...] = ()
    """The authorities under it."""
    listed: tuple[str, ...] = ()
    """For an incident: serial numbers of all that it lists, sorted (``services.incidents``)."""

    def fits(self, certificate: DeviceCertificate) -> bool:
        """Return whether a certificate of these runs is chosen."""
        licence = self.runs[certificate.run]
        if self.authority is not None:
            return certificate.authority == licence.authority
        return self.selection.chooses(
            device=certificate.device,
            run=certificate.run,
            batch=licence.batch,
            authority=certificate.authority,
            client=certificate.client,
            issued_at=certificate.issued_at,
        )

    @property
    def where(self) -> dict[str, str]:
        """Fields that all chosen certificates of a run share."""
        if self.selection.kind is SelectionKind.DEVICE:
            return {"device": self.selection.value}
        if self.selection.kind is SelectionKind.STATION:
            return {"client": f"station:{self.selection.value}"}
        return {}


@dataclass(slots=True, kw_only=True)
class Preview:
    """What a recall would do, counted."""

    selection: Selection
    action: RecallAction
    certificates: int = 0
    """All that are chosen."""
    changes: int = 0
    """How many of them it would revoke, suspend or reinstate; what follows counts these."""
    runs: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    """By the state of the device."""
    already: Counter[str] = field(default_factory=Counter)
    """Those that stay as they are, by the reason for which they are revoked ("good" if they are not)."""
    shipped: int = 0
    consignments: Counter[str] = field(default_factory=Counter)
    first_issued: datetime | None = None
    last_issued: datetime | None = None
    crls: Counter[str] = field(default_factory=Counter)
    """Lines that change, by authority and partition of its CRL."""
    open_runs: tuple[str, ...] = ()
    """Runs that still issue such certificates, and must be closed before the recall is approved."""
    notes: list[str] = field(default_factory=list)
    """What else has to be done, or known."""

    def document(self) -> dict[str, Any]:
        """Return it as it is shown."""
        selection = self.selection
        return {
            "selection": selection_document(selection),
            "action": str(self.action),
            "certificates": self.certificates,
            "changes": self.changes,
            "runs": dict(sorted(self.runs.items())),
            "states": dict(sorted(self.states.items())),
            "already": dict(sorted(self.already.items())),
            "shipped": self.shipped,
            "consignments": dict(sorted(self.consignments.items())),
            "first_issued": self.first_issued,
            "last_issued": self.last_issued,
            "crls": dict(sorted(self.crls.items())),
            "open_runs": list(self.open_runs),
            "notes": self.notes,
        }


def selection_document(selection: Selection) -> dict[str, Any]:
    """Return a selection as it is shown."""
    shown: dict[str, Any] = {
        "kind": str(selection.kind),
        "value": selection.value,
        "since": selection.since,
        "until": selection.until,
    }
    if selection.criteria:
        shown["criteria"] = {str(name): value for name, value in sorted(selection.criteria.items())}
    return shown


def gone_since(chosen: Chosen, action: RecallAction, moment: datetime | None) -> UseCase[tuple[int, int]]:
    """Return how many chosen certificates an action would change now, and how many went since a moment.

    Gone is what the action would not change any more, because of something that came at or after the moment;
    none if that is None.
    """
    left, gone, cursor = 0, 0, ""
    while (page := (yield from next_page(chosen, cursor, None))) is not None:
        certificates, cursor = page
        lines = [line_of(one) for one in certificates]
        facts: Facts = yield Look({Revocation: [line.id for line in lines]})
        for line in lines:
            if changes(action, status(facts, line)):
                left += 1
                continue
            was = facts.get(Revocation, line.id)
            if was is not None and moment is not None and was.revoked_at >= moment:
                gone += 1
    return left, gone


def changes(action: RecallAction, now: ReasonCode | None) -> bool:
    """Return whether an action changes a certificate that is not good for this reason (None: good)."""
    if action is RecallAction.REVOKE:
        return now is None or now is ReasonCode.CERTIFICATE_HOLD
    if action is RecallAction.SUSPEND:
        return now is None
    return now is ReasonCode.CERTIFICATE_HOLD


def scan_all(kind: type[V]) -> UseCase[list[V]]:
    """Return all values of a kind of which there are few."""
    found: list[V] = []
    while True:
        after = "" if not found else str(found[-1].id)  # type: ignore[attr-defined]  # every value of ours that is scanned has an id
        page: list[V] = yield Scan(kind=kind, where={}, after=after, limit=PAGE)
        found += page
        if len(page) < PAGE:
            return found


def choose(selection: Selection, listed: ListedOf) -> UseCase[Chosen]:
    """Find out where a selection's certificates are.

    Args:
        selection: which certificates.
        listed: returns the serial numbers that an incident lists; asked for an incident only.

    Raises:
        errors.NotFound: there is no such device, run, batch, authority or station.
        errors.IntegrityFailure: a licence cannot be read, or the log is not what its checkpoint signs.
    """
    kind, value = selection.kind, selection.value
    if kind is SelectionKind.INCIDENT:
        return Chosen(selection=selection, runs={}, issuing=(), listed=tuple(sorted(listed(selection))))
    missing = errors.NotFound(
        f"there is no {'authority' if kind is SelectionKind.ISSUED_BY else kind} {value}"
    )
    if kind is SelectionKind.DEVICE:
        facts: Facts = yield Look({Device: (value,)})
        device = facts.get(Device, value)
        if device is None:
            raise missing
        local: list[LocalIdentity] = yield Scan(kind=LocalIdentity, where={"device": value})
        names = {device.run, *(one.run for one in local)}
        return (yield from _runs(selection, lambda run, _licence: run in names))
    if kind is SelectionKind.STATION:
        facts = yield Look({Client: (f"station:{value}",)})
        if facts.get(Client, f"station:{value}") is None:
            raise missing
        return (yield from _runs(selection, lambda _run, licence: value in licence.stations))
    if kind in (SelectionKind.AUTHORITY, SelectionKind.ISSUED_BY):
        return (yield from _under(selection, missing))
    by_run = kind is SelectionKind.RUN
    chosen = yield from _runs(selection, lambda run, licence: (run if by_run else licence.batch) == value)
    if not chosen.runs:
        raise missing
    return chosen


def _runs(selection: Selection, wanted: Callable[[str, RunLicence], bool]) -> UseCase[Chosen]:
    licences: dict[str, RunLicence] = {}
    issuing: list[str] = []
    found: list[Run] = yield from scan_all(Run)
    for run in sorted(found, key=lambda run: run.id):
        try:
            licence = RunLicence.decode(run.document)
        except errors.MalformedRequest as cause:
            raise errors.IntegrityFailure(f"the licence of run {run.id} cannot be read") from cause
        if wanted(run.id, licence):
            licences[run.id] = licence
            if run.status is RunStatus.OPEN:
                issuing.append(run.id)
    return Chosen(selection=selection, runs=licences, issuing=tuple(issuing))


def _under(selection: Selection, missing: errors.NotFound) -> UseCase[Chosen]:
    authorities: list[Authority] = yield from scan_all(Authority)
    by_id = {authority.id: authority for authority in authorities}
    found = by_id.get(selection.value)
    if found is None:
        raise missing
    if selection.kind is SelectionKind.ISSUED_BY:
        return (yield from _runs(selection, lambda _run, licence: licence.authority == found.id))
    if found.issuer == found.id:
        raise errors.PolicyRefused(
            "selection", f"{found.id} is a root: no CRL can revoke it; its relying parties must drop it"
        )
    under = _below(found, authorities)
    names = {found.id, *(authority.id for authority in under)}
    chosen = yield from _runs(selection, lambda _run, licence: licence.authority in names)
    return Chosen(selection=selection, runs=chosen.runs, issuing=(), authority=found, below=under)


def _below(authority: Authority, authorities: Sequence[Authority]) -> tuple[Authority, ...]:
    names, found = {authority.id}, list[Authority]()
    while True:
        more = [one for one in authorities if one.issuer in names and one.id not in names]
        if not more:
            return tuple(found)
        found += more
        names |= {one.id for one in more}


def still_issuing(facts: Facts, chosen: Chosen, at: datetime) -> list[str]:
    """Return the runs that could add to the selection now."""
    if chosen.selection.kind not in _COMPLETE:
        return []
    found: list[str] = []
    for name in chosen.issuing:
        run, licence = facts.get(Run, name), chosen.runs[name]
        authority = facts.get(Authority, licence.authority)
        if run is None or authority is None:
            raise errors.IntegrityFailure(f"run {name} or its authority is gone")
        issues = authority.status is AuthorityStatus.ACTIVE and at < authority.ends_at
        if run.status is RunStatus.OPEN and at < licence.not_after and issues:
            found.append(name)
    return found


def next_page(
    chosen: Chosen, cursor: str, before: datetime | None
) -> UseCase[tuple[list[DeviceCertificate], str] | None]:
    """Return the next chosen certificates after a cursor, and the cursor after them; None if that was all.

    Args:
        chosen: where to look.
        cursor: empty to begin with.
        before: only what was issued no later.
    """
    if chosen.selection.kind is SelectionKind.INCIDENT:
        return (yield from _next_listed(chosen.listed, cursor))
    begun, _, serial = cursor.partition("/")
    for run in chosen.runs:
        if run < begun:
            continue
        after = serial if run == begun else ""
        while True:
            where = {"run": run, **chosen.where}
            found: list[DeviceCertificate] = yield Scan(
                kind=DeviceCertificate, where=where, after=after, limit=PAGE
            )
            if not found:
                break
            after = found[-1].serial
            page = [one for one in found if chosen.fits(one) and (before is None or one.issued_at <= before)]
            if page:
                return page, f"{run}/{after}"
    return None


def _next_listed(listed: Sequence[str], cursor: str) -> UseCase[tuple[list[DeviceCertificate], str] | None]:
    """Return the next certificates of an incident; the cursor is the last serial number that was taken."""
    start = bisect_right(listed, cursor)
    page = listed[start : start + PAGE]
    if not page:
        return None
    facts: Facts = yield Look({DeviceCertificate: page})
    found = [facts.get(DeviceCertificate, serial) for serial in page]
    there = [one for one in found if one is not None]
    if len(there) < len(page):
        raise errors.IntegrityFailure("the log lists certificates that are not on record: 'birthmark check'")
    return there, page[-1]


def preview(
    chosen: Chosen, action: RecallAction, at: datetime, told: Told = lambda _done, _total: None
) -> UseCase[Preview]:
    """Count what a recall would do, as of now."""
    seen, cursor = Preview(selection=chosen.selection, action=action), ""
    while (page := (yield from next_page(chosen, cursor, None))) is not None:
        certificates, cursor = page
        yield from _count(seen, certificates)
        told(seen.certificates, seen.certificates)
    if chosen.issuing and action is not RecallAction.REINSTATE:
        names = [chosen.runs[name].authority for name in chosen.issuing]
        facts: Facts = yield Look({Run: chosen.issuing, Authority: names})
        seen.open_runs = tuple(still_issuing(facts, chosen, at))
    if chosen.authority is not None:
        yield from _count_authority(seen, chosen, chosen.authority, at)
    return seen


def _count(seen: Preview, certificates: Sequence[DeviceCertificate]) -> UseCase[None]:
    lines = {one.serial: line_of(one) for one in certificates}
    facts: Facts = yield Look({Revocation: [line.id for line in lines.values()]})
    changing: list[DeviceCertificate] = []
    for one in certificates:
        now = status(facts, lines[one.serial])
        if changes(seen.action, now):
            changing.append(one)
        else:
            seen.already[str(now or "good")] += 1
    seen.certificates += len(certificates)
    if not changing:
        return
    seen.changes += len(changing)
    devices = [one.device for one in changing]
    facts = yield Look({Device: devices, Shipped: devices})
    for one in changing:
        device, gone = facts.get(Device, one.device), facts.get(Shipped, one.device)
        seen.runs[one.run] += 1
        seen.states["unknown" if device is None else str(device.state)] += 1
        seen.crls[f"{one.authority}/{one.partition}"] += 1
        if gone is not None:
            seen.shipped += 1
            seen.consignments[gone.consignment] += 1
    issued = [one.issued_at for one in changing]
    seen.first_issued = min([*issued, *([] if seen.first_issued is None else [seen.first_issued])])
    seen.last_issued = max([*issued, *([] if seen.last_issued is None else [seen.last_issued])])


def _count_authority(seen: Preview, chosen: Chosen, authority: Authority, at: datetime) -> UseCase[None]:
    """Say what one line on the CRL above an authority comes to."""
    line = line_of(authority)
    facts: Facts = yield Look({Revocation: (line.id,), Authority: (authority.issuer,)})
    seen.notes.append(f"all {seen.changes} certificates that are good now end with one line on a CRL")
    seen.changes = 0 if status(facts, line) is not None else 1
    seen.crls = Counter({f"{authority.issuer}/{AUTHORITIES}": seen.changes})
    above = facts.get(Authority, authority.issuer)
    if above is not None and above.custody is not Custody.SERVICE:
        seen.notes.append(
            f"the key of {above.id} is {above.custody}: its CRL must be signed in a ceremony, and until then"
            " nobody outside learns of it"
        )
    held = 0
    for name in (authority.id, *(one.id for one in chosen.below)):
        credentials: list[Credential] = yield Scan(kind=Credential, where={"authority": name})
        held += sum(one.not_after > at for one in credentials)
    if held:
        seen.notes.append(
            f"{held} certificates of stations, operators and servers end with it: renew under another first"
        )
    for one in chosen.below:
        seen.notes.append(f"authority {one.id} lies below it and is retired with it")
