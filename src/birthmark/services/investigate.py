"""The time machine: all that the log says of one subject, and where it stood at any instant (SPEC E6).

A subject is a device, a certificate, a client, an authority, a run or a key.  The log is read whole, once
(``log_reading``): every entry about the subject is found by looking at its octets for the subject's name,
then read and judged by its fields, and replayed up to the instant asked about (``chronicle``).  Rows of the
record decide nothing; ``investigate_record`` compares what they say of the present.

What a client did, what was done on a run and what an authority issued can be most of a log: that is counted
by kind, not listed.  When a certificate ends, no entry says: ``Certificates`` finds the certificate itself,
which is believed only if its SHA-256 is the one in the log.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from hashlib import sha256

from birthmark import errors
from birthmark.floor.clients import PERSON, Role
from birthmark.floor.exposure import Exposed, exposure_id
from birthmark.floor.hardware_ids import HardwareIdKind
from birthmark.floor.proposals import Motion
from birthmark.floor.recalls import RecallOrder, Selection, SelectionKind
from birthmark.ledger.entry import decode, time_text
from birthmark.pki.certificates import Certificate, serial_hex
from birthmark.services.chronicle import Chronicle, serials_of
from birthmark.services.chronicle_states import CertificateState, ClientState, DeviceStanding, Phase, State
from birthmark.services.entry_fields import Entry, objects_of, text_of
from birthmark.services.log_reading import LogCopy, Told, Walked, skim, walk

__all__ = ["Acts", "Certificates", "Event", "History", "Subject", "SubjectKind", "history", "subject_of"]

Certificates = Callable[[CertificateState], bytes | None]
"""Finds a certificate (DER) by what the log says of it; None if it is not at hand."""

_SERIAL = re.compile(r"[0-9a-fA-F]{1,42}", re.ASCII)
_CONTEXT = (
    b'"kind":"authority-',
    b'"kind":"run-',
    b'"kind":"recall-',
    b'"kind":"proposal-',
    b'"kind":"ceremony-performed"',
)
"""What a subject's state may depend on, or what names it inside a signed document; none of it is frequent."""
_PUBLISHED = b'"kind":"crls-published"'
_DEVICE_ACTS = ("device-", "element-", "attestation-")


class SubjectKind(StrEnum):
    """What can be asked about."""

    DEVICE = "device"
    CERTIFICATE = "certificate"
    CLIENT = "client"
    AUTHORITY = "authority"
    RUN = "run"
    KEY = "key"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Whom or what a history is about."""

    kind: SubjectKind
    name: str

    def __str__(self) -> str:
        named = self.kind in (SubjectKind.DEVICE, SubjectKind.CLIENT)
        return self.name if named else f"{self.kind}:{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An entry about the subject."""

    index: int
    entry: bytes
    """As the log hashes it."""

    def read(self) -> Entry:
        """Return its fields."""
        return decode(self.entry)


@dataclass(frozen=True, slots=True, kw_only=True)
class Acts:
    """How often something happened that is not listed; times as entries spell them."""

    count: int
    first: str
    last: str


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What the log says of a subject, up to an instant."""

    subject: Subject
    at: datetime | None
    """The instant that was asked about; None for the end of the log."""
    state: State
    """Where it stood then."""
    now: State
    """Where it stands at the end of the log."""
    events: tuple[Event, ...]
    """Up to that instant."""
    later: int
    """How many entries about the subject are of after that instant."""
    acts: Mapping[str, Acts]
    """By kind: what a client did, what was done to a run's devices, what an authority issued."""
    contradictions: tuple[str, ...]
    """What cannot follow from what the log says before."""
    log: Walked = field(repr=False)

    def proof(self, event: Event) -> str:
        """Return the proof of one entry under the newest checkpoint (C2SP ``.tlog-proof``)."""
        return self.log.proof(event.index, event.entry)


def subject_of(text: str) -> Subject:
    """Read how a subject is named.

    ``vin:…`` and the like are devices, ``station:…`` and the like clients; ``authority:``, ``run:``, ``key:``
    and ``certificate:`` say what they are; hexadecimal digits alone are a certificate's serial number.

    Raises:
        errors.MalformedRequest: it is none of these.
    """
    unknown = errors.MalformedRequest(
        "say whom the history is of: vin:…, station:…, operator:…, authority:…, run:…, key:… or the serial"
        f" number of a certificate, not {text[:80]!r}"
    )
    kind, colon, name = text.partition(":")
    digits = (text if not colon else name).replace(":", "")
    if kind == SubjectKind.CERTIFICATE or not colon:
        if _SERIAL.fullmatch(digits) is None:
            raise unknown
        return Subject(kind=SubjectKind.CERTIFICATE, name=serial_hex(int(digits, 16)))
    if colon and name:
        if kind in set(HardwareIdKind):
            return Subject(kind=SubjectKind.DEVICE, name=text)
        if kind in {role.kind for role in Role}:
            return Subject(kind=SubjectKind.CLIENT, name=text)
        if kind in (SubjectKind.AUTHORITY, SubjectKind.RUN, SubjectKind.KEY):
            return Subject(kind=SubjectKind(kind), name=name)
    raise unknown


def history(
    copy: LogCopy,
    subject: Subject,
    *,
    at: datetime | None = None,
    certificates: Certificates = lambda _state: None,
    told: Told = lambda _done, _size: None,
) -> History:
    """Read the whole log and return all that it says of a subject, with its state at an instant.

    An act counts from the time of its entry on, that instant included.

    Raises:
        errors.NotFound: no entry speaks of the subject, at whatever time.
        errors.IntegrityFailure: the log is not what its checkpoint signs, or an entry is none of ours.
    """
    search = _Search(subject, None if at is None else time_text(at))
    log = walk(copy, search.take, told)
    if search.wrong is not None:
        raise errors.IntegrityFailure(search.wrong)
    if not search.events and not search.acts and not search.later:
        raise errors.NotFound(f"no entry of the log speaks of {subject}")
    return History(
        subject=subject,
        at=at,
        state=_dated(_state(search.then, subject), at, certificates),
        now=_state(search.now, subject),
        events=tuple(sorted(search.events, key=lambda event: event.index)),
        later=search.later,
        acts=dict(sorted(search.acts.items())),
        contradictions=tuple(search.now.contradictions),
        log=log,
    )


def _state(chronicle: Chronicle, subject: Subject) -> State:
    match subject.kind:
        case SubjectKind.DEVICE:
            return chronicle.device(subject.name)
        case SubjectKind.CERTIFICATE:
            return chronicle.certificate(subject.name)
        case SubjectKind.CLIENT:
            return chronicle.client(subject.name)
        case SubjectKind.AUTHORITY:
            return chronicle.authority(subject.name)
        case SubjectKind.RUN:
            return chronicle.run(subject.name)
        case SubjectKind.KEY:
            return chronicle.key(subject.name)


def _dated(state: State, at: datetime | None, certificates: Certificates) -> State:
    """Return the state with the end of each certificate, where the certificate itself is at hand."""
    if isinstance(state, CertificateState):
        return _ended(state, at, certificates)
    if isinstance(state, DeviceStanding | ClientState):
        return replace(state, certificates=tuple(_ended(one, at, certificates) for one in state.certificates))
    return state


def _ended(state: CertificateState, at: datetime | None, certificates: Certificates) -> CertificateState:
    der = certificates(state) if state.sha256 is not None else None
    if der is None or sha256(der).hexdigest() != state.sha256:
        return state
    not_after = Certificate.from_der(der).not_after
    over = at is not None and not_after < at and state.phase not in (Phase.REVOKED, Phase.NOT_ISSUED)
    if not over:
        return replace(state, not_after=not_after)
    return replace(state, not_after=not_after, phase=Phase.EXPIRED, since=time_text(not_after), index=None)


class _Search:
    """Takes the entries of a log and keeps those about one subject."""

    def __init__(self, subject: Subject, until: str | None) -> None:
        self.now = Chronicle()
        self.then = self.now if until is None else Chronicle()
        self.events: list[Event] = []
        self.later = 0
        self.acts: dict[str, Acts] = {}
        self.wrong: str | None = None
        self._subject = subject
        self._until = until
        self._needles = [_quoted(subject.name)]
        self._own: set[str] = set()
        """Serial numbers, attempts, recalls and proposals of the subject's own, learnt on the way."""
        if subject.kind is SubjectKind.CLIENT and subject.name.startswith(f"{PERSON}:"):
            self._needles.append(b'"operator":' + _quoted(subject.name.partition(":")[2]))
        if subject.kind in (SubjectKind.DEVICE, SubjectKind.CERTIFICATE, SubjectKind.CLIENT):
            self._needles.append(_PUBLISHED)
        if subject.kind is SubjectKind.DEVICE:
            self._needles.append(b'"hardware_id":' + _quoted(subject.name.partition(":")[2]))
        if subject.kind is SubjectKind.RUN:
            self._needles.append(_quoted(_exposed(subject.name)))
        self._waiting: dict[str, list[tuple[int, bytes, bool]]] = {}
        """Entries about each recall and ceremony, of which it is not known yet whether they concern it."""

    def take(self, index: int, raw: bytes) -> bool:
        """Take the next entry; return whether it is about the subject."""
        if not any(needle in raw for needle in (*self._needles, *_CONTEXT)):
            return False
        try:
            return self._take(index, raw)
        except errors.MalformedRequest as refusal:
            self.wrong = self.wrong or f"entry {index} is not one of ours: {refusal}"
            return False

    def _take(self, index: int, raw: bytes) -> bool:
        entry = skim(raw)
        passed = self._until is not None and entry["at"] > self._until
        if self._is_act(entry):
            if not passed:
                self._count(entry)
            return False
        about = self._is_about(entry)
        if about or _is_context(entry):
            decode(raw)
            self.now.take(index, entry)
            if not passed and self.then is not self.now:
                self.then.take(index, entry)
        if about:
            self._keep(index, raw, passed=passed)
            self._learn(entry)
            return True
        cause = entry.get("recall", entry.get("ceremony"))
        if not isinstance(cause, str) or not entry["kind"].startswith(("recall-", "ceremony-")):
            return False
        self._waiting.setdefault(cause, []).append((index, raw, passed))
        return True

    def _keep(self, index: int, raw: bytes, *, passed: bool) -> None:
        if passed:
            self.later += 1
        else:
            self.events.append(Event(index=index, entry=raw))

    def _count(self, entry: Entry) -> None:
        kind, at = entry["kind"], entry["at"]
        was = self.acts.get(kind)
        first, count = (at, 0) if was is None else (was.first, was.count)
        self.acts[kind] = Acts(count=count + 1, first=first, last=at)

    def _is_act(self, entry: Entry) -> bool:
        """Tell whether an entry is one of the many in which the subject takes part without changing."""
        kind, name = entry["kind"], self._subject.name
        match self._subject.kind:
            case SubjectKind.CLIENT:
                person = name.removeprefix(f"{PERSON}:")
                took_part = entry["actor"] == name or (person != name and entry.get("operator") == person)
                return took_part and not _names(entry, name)
            case SubjectKind.RUN:
                record = entry.get("record")
                run = record.get("run") if isinstance(record, dict) else entry.get("run")
                return run == name and (
                    kind.startswith(_DEVICE_ACTS) or kind in ("refused", "answer-repeated")
                )
            case SubjectKind.AUTHORITY:
                record = entry.get("record")
                authority = record.get("authority") if isinstance(record, dict) else entry.get("authority")
                issued = kind.startswith("device-") or kind in ("client-enrolled", "client-renewed")
                return authority == name and issued
            case _:
                return False

    def _is_about(self, entry: Entry) -> bool:
        name, kind = self._subject.name, entry["kind"]
        if kind.startswith(("recall-", "proposal-")):
            document = entry.get("recall", entry.get("proposal"))
            return document in self._own or self._is_ordered(entry) or self._is_moved(entry)
        if kind == "ceremony-performed" and entry.get("ceremony") in self._own:
            return True
        match self._subject.kind:
            case SubjectKind.DEVICE:
                bare = entry.get("hardware_id") == name.partition(":")[2]
                named = (bare or _names(entry, name)) and not kind.startswith("run-")
                return named or bool(self._own & serials_of(entry))
            case SubjectKind.CERTIFICATE:
                return name in serials_of(entry) or entry.get("attempt") in self._own or self._of_own(entry)
            case SubjectKind.KEY:
                made = kind == "ceremony-performed" and any(
                    one.get("label") == name for one in objects_of(entry, "keys")
                )
                return made or name in (entry.get("key"), entry.get("master"))
            case SubjectKind.AUTHORITY:
                return _names(entry, name) or self._of_own(entry)
            case SubjectKind.RUN:
                return _names(entry, name) or entry.get("exposure") == _exposed(name)
            case _:
                return _names(entry, name)

    def _of_own(self, entry: Entry) -> bool:
        """Tell whether an entry is about the authority whose certificate, or which itself, is the subject."""
        return entry["kind"].startswith("authority-") and bool(self._own & serials_of(entry))

    def _is_moved(self, entry: Entry) -> bool:
        """Tell whether a proposal's motion is about the subject."""
        if "motion" not in entry or self._subject.kind not in (SubjectKind.CLIENT, SubjectKind.AUTHORITY):
            return False
        return Motion.decode(str(entry["motion"]).encode()).subject == self._subject.name

    def _is_ordered(self, entry: Entry) -> bool:
        """Tell whether a recall's order names the subject."""
        if "order" not in entry:
            return False
        chosen: Selection = RecallOrder.decode(str(entry["order"]).encode()).selection
        kinds = {
            SubjectKind.DEVICE: {SelectionKind.DEVICE},
            SubjectKind.RUN: {SelectionKind.RUN},
            SubjectKind.AUTHORITY: {SelectionKind.AUTHORITY, SelectionKind.ISSUED_BY},
            SubjectKind.CLIENT: {SelectionKind.STATION},
        }.get(self._subject.kind, set())
        if self._subject.kind is SubjectKind.RUN and chosen.kind is SelectionKind.BATCH:
            return chosen.value == self.now.run(self._subject.name).batch
        name = self._subject.name
        value = f"station:{chosen.value}" if self._subject.kind is SubjectKind.CLIENT else chosen.value
        return chosen.kind in kinds and value == name

    def _learn(self, entry: Entry) -> None:
        """Note under which other names entries may speak of the subject."""
        kind, found = entry["kind"], set[str]()
        issued = kind in ("device-issued", "device-reissued", "local-issued")
        if self._subject.kind is SubjectKind.DEVICE and issued:
            found |= {text_of(one, "certificate") for one in (entry, *objects_of(entry, "further"))}
        if self._subject.kind is SubjectKind.CERTIFICATE and issued:
            found.add(text_of(entry, "attempt"))
        if self._subject.kind is SubjectKind.AUTHORITY and entry.get("authority") == self._subject.name:
            found |= serials_of(entry)
        causes = (entry.get("recall"), entry.get("ceremony"), entry.get("proposal"))
        found |= {one for one in causes if isinstance(one, str)}
        for one in found - self._own:
            self._needles.append(_quoted(one))
            for waiting, raw, passed in self._waiting.pop(one, ()):
                self._keep(waiting, raw, passed=passed)
        self._own |= found


def _is_context(entry: Entry) -> bool:
    kind: str = entry["kind"]
    return kind.startswith(("authority-", "run-", "crls-published"))


def _exposed(run: str) -> str:
    return exposure_id(Exposed.RUN, run)


def _names(entry: Entry, name: str) -> bool:
    """Tell whether an entry names somebody or something, other than as the one who acts."""
    listed = entry.get("devices", ())
    return any(value == name for field, value in entry.items() if field not in ("actor", "operator")) or (
        isinstance(listed, list) and name in listed
    )


def _quoted(text: str) -> bytes:
    """Return a text as it stands in canonical JSON (RFC 8785 section 3.2.2.2)."""
    return json.dumps(text, ensure_ascii=False).encode()
