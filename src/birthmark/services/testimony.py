"""What a log says: its entries, boiled down to how the record must look now.

Entries are taken in their order, each by its kind; kinds that change nothing that is kept (refusals, answers
given again) are passed over.  An entry that lacks a field its kind has, or speaks of what no entry before it
made, is refused: for an auditor that is a finding, never a crash.  Nothing here looks at the record.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from birthmark import errors
from birthmark.floor.authorities import AuthorityStatus
from birthmark.floor.devices import DeviceState
from birthmark.pki.revocation import ReasonCode

__all__ = [
    "AttemptSaid",
    "AuthoritySaid",
    "CertificateSaid",
    "CredentialSaid",
    "DeviceSaid",
    "RunSaid",
    "Said",
]

T = TypeVar("T")
Entry = Mapping[str, Any]

_DISPOSED = {
    "device-held": DeviceState.HELD,
    "device-reworked": DeviceState.ADMITTED,
    "device-scrapped": DeviceState.SCRAPPED,
}
_RECALLED = {
    "client-revoked": None,
    "certificates-revoked": None,
    "certificates-suspended": str(ReasonCode.CERTIFICATE_HOLD),
    "certificates-reinstated": str(ReasonCode.REMOVE_FROM_CRL),
}
"""Kinds of entry that change many certificates, and the reason that goes with each (None: it is said)."""
_STATUS = {f"authority-{status}": status for status in AuthorityStatus}


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthoritySaid:
    """An authority as it was established; certificate as fingerprint, times as entries spell them."""

    kind: str
    issuer: str
    custody: str
    profile: str
    profiles: str
    constraints: str
    ceremony: str
    owner: str
    scope: str
    quota: int | None
    ends_at: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialSaid:
    """A client's certificate."""

    sha256: str
    client: str
    authority: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateSaid:
    """A device's certificate."""

    sha256: str
    device: str
    attempt: str
    authority: str
    partition: str
    run: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSaid:
    """A run as it was opened."""

    licence: str
    signature: str
    signer: str


@dataclass(slots=True, kw_only=True)
class AttemptSaid:
    """An attempt, after the last entry about it."""

    device: str
    number: int
    run: str
    client: str
    operator: str | None
    origin: str
    certificate: str
    issued_at: str
    issue_leaf: int
    state: DeviceState = DeviceState.ISSUED
    release_leaf: int | None = None
    record: Entry = field(default_factory=dict)
    """What was released; empty before that."""


@dataclass(slots=True, kw_only=True)
class DeviceSaid:
    """A device, after the last entry about it."""

    state: DeviceState
    run: str
    attempt: str
    attempts: int
    reason: str | None = None


@dataclass(slots=True)
class Said:
    """All that the entries taken so far come to."""

    authorities: dict[str, AuthoritySaid] = field(default_factory=dict)
    authority_status: dict[str, AuthorityStatus] = field(default_factory=dict)
    credentials: dict[str, CredentialSaid] = field(default_factory=dict)
    """By serial number."""
    clients: dict[str, tuple[str, str, str | None, str | None]] = field(default_factory=dict)
    """Client to site, line, hardware id and run."""
    revoked_clients: set[str] = field(default_factory=set)
    runs: dict[str, RunSaid] = field(default_factory=dict)
    closed: set[str] = field(default_factory=set)
    lists: dict[str, int] = field(default_factory=dict)
    """Hash of each imported list of hardware ids to their number."""
    devices: dict[str, DeviceSaid] = field(default_factory=dict)
    attempts: dict[str, AttemptSaid] = field(default_factory=dict)
    certificates: dict[str, CertificateSaid] = field(default_factory=dict)
    """By serial number."""
    revoked: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Serial number to reason and time."""
    keys: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each device's SubjectPublicKeyInfo to the device."""
    released: dict[int, Entry] = field(default_factory=dict)
    """Log index to record."""
    numbers: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    """Actor to the numbers of its requests."""

    def take(self, index: int, entry: Entry) -> None:
        """Take in an entry that ``ledger.entry.decode`` has read.

        Raises:
            errors.MalformedRequest: a field is missing or of the wrong type, or the entry speaks of what no
                entry before it made.
        """
        if "seq" in entry:
            self.numbers[entry["actor"]].add(entry["seq"])
        kind: str = entry["kind"]
        if kind in ("device-issued", "device-reissued"):
            self._take_issued(index, entry)
        elif kind == "device-released":
            self._take_released(index, entry)
        elif kind in _DISPOSED:
            self._take_disposed(entry)
        elif kind in ("client-enrolled", "client-renewed"):
            self._take_enrolled(entry)
        elif kind in _RECALLED:
            self._take_revoked(entry)
        elif kind == "authority-established":
            self._take_established(entry)
        elif kind in _STATUS:
            self.authority_status[_text(entry, "authority")] = _STATUS[kind]
        elif kind == "hardware-ids-imported":
            self.lists[_text(entry, "list_sha256")] = _number(entry, "count")
        elif kind == "run-opened":
            self.runs[_text(entry, "run")] = RunSaid(
                licence=_text(entry, "licence"),
                signature=_text(entry, "signature"),
                signer=_text(entry, "signer"),
            )
        elif kind == "run-closed":
            self.closed.add(_text(entry, "run"))

    def _take_issued(self, index: int, entry: Entry) -> None:
        device, attempt, serial = (_text(entry, name) for name in ("device", "attempt", "certificate"))
        self.certificates[serial] = CertificateSaid(
            sha256=_text(entry, "certificate_sha256"),
            device=device,
            attempt=attempt,
            authority=_text(entry, "authority"),
            partition=_text(entry, "partition"),
            run=_text(entry, "run"),
        )
        self.keys[_text(entry, "spki_sha256")] = device
        if entry["kind"] == "device-reissued":
            # The attempt stays who began it; its certificate, and when and where that was issued, are new.
            again = _known(self.attempts, "attempt", attempt)
            again.certificate, again.issued_at, again.issue_leaf = serial, entry["at"], index
            self.revoked[_text(entry, "superseded")] = (_text(entry, "reason"), entry["at"])
            return
        said = AttemptSaid(
            device=device,
            number=_number(entry, "attempt_number"),
            run=_text(entry, "run"),
            client=entry["actor"],
            operator=entry.get("operator"),
            origin=_text(entry, "origin"),
            certificate=serial,
            issued_at=entry["at"],
            issue_leaf=index,
        )
        self.attempts[attempt] = said
        self.devices[device] = DeviceSaid(
            state=DeviceState.ISSUED, run=said.run, attempt=attempt, attempts=said.number
        )

    def _take_released(self, index: int, entry: Entry) -> None:
        record = entry.get("record")
        if not isinstance(record, dict):
            raise errors.MalformedRequest("its record is missing or no object")
        self.released[index] = record
        device = _known(self.devices, "device", _text(entry, "device"))
        attempt = _known(self.attempts, "attempt", _text(record, "attempt"))
        device.state = attempt.state = DeviceState.RELEASED
        attempt.record, attempt.release_leaf = record, index

    def _take_disposed(self, entry: Entry) -> None:
        device = _known(self.devices, "device", _text(entry, "device"))
        attempt = _known(self.attempts, "attempt", _text(entry, "attempt"))
        reason = _text(entry, "reason")
        device.state = _DISPOSED[entry["kind"]]
        device.reason = None if device.state is DeviceState.ADMITTED else reason
        if device.state is DeviceState.HELD:
            attempt.state = DeviceState.HELD
        if "revoked" in entry:
            self.revoked[_text(entry, "revoked")] = (_text(entry, "revocation_reason"), entry["at"])

    def _take_revoked(self, entry: Entry) -> None:
        if entry["kind"] == "client-revoked":
            self.revoked_clients.add(_text(entry, "client"))
        reason = _RECALLED[entry["kind"]] or _text(entry, "revocation_reason")
        self.revoked.update(dict.fromkeys(_texts(entry, "certificates"), (reason, entry["at"])))

    def _take_enrolled(self, entry: Entry) -> None:
        client = _text(entry, "client")
        self.credentials[_text(entry, "certificate")] = CredentialSaid(
            sha256=_text(entry, "certificate_sha256"), client=client, authority=_text(entry, "authority")
        )
        if entry["kind"] == "client-enrolled":
            self.clients[client] = (
                _text(entry, "site"),
                _text(entry, "line"),
                _text_or_none(entry, "hardware_id"),
                _text_or_none(entry, "run"),
            )

    def _take_established(self, entry: Entry) -> None:
        name = _text(entry, "authority")
        self.authorities[name] = AuthoritySaid(
            kind=_text(entry, "authority_kind"),
            issuer=_text(entry, "issuer"),
            custody=_text(entry, "custody"),
            profile=_text(entry, "profile"),
            profiles=_text(entry, "profiles"),
            constraints=_text(entry, "constraints"),
            ceremony=_text(entry, "ceremony"),
            owner=_text(entry, "owner"),
            scope=_text(entry, "scope"),
            quota=None if _there(entry, "quota") is None else _number(entry, "quota"),
            ends_at=_text(entry, "ends_at"),
            sha256=_text(entry, "certificate_sha256"),
        )
        self.authority_status[name] = AuthorityStatus.ACTIVE


def _there(entry: Entry, name: str) -> object:
    if name not in entry:
        raise errors.MalformedRequest(f"its {name} is missing")
    value: object = entry[name]
    return value


def _text(entry: Entry, name: str) -> str:
    value = _there(entry, name)
    if not isinstance(value, str):
        raise errors.MalformedRequest(f"its {name} is no text")
    return value


def _texts(entry: Entry, name: str) -> list[str]:
    value = _there(entry, name)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise errors.MalformedRequest(f"its {name} is no list of texts")
    return list(value)


def _text_or_none(entry: Entry, name: str) -> str | None:
    return None if _there(entry, name) is None else _text(entry, name)


def _number(entry: Entry, name: str) -> int:
    value = _there(entry, name)
    if type(value) is not int:
        raise errors.MalformedRequest(f"its {name} is no number")
    return value


def _known(said: Mapping[str, T], what: str, name: str) -> T:
    found = said.get(name)
    if found is None:
        raise errors.MalformedRequest(f"no entry before it issued {what} {name[:100]}")
    return found
