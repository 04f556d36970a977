"""What a log says: its entries, boiled down to how the record must look now.

Entries are taken in their order, each by its kind; kinds that change nothing that is kept (refusals, answers
given again) are passed over.  An entry that lacks a field its kind has, or speaks of what no entry before it
made, is refused: for an auditor that is a finding, never a crash.  Nothing here looks at the record.
"""

from collections import defaultdict
from dataclasses import dataclass, field, replace
from datetime import datetime

from birthmark import errors
from birthmark.floor.authorities import AuthorityStatus
from birthmark.floor.clients import PERSON, Role
from birthmark.floor.devices import DeviceEvent, DeviceState
from birthmark.floor.fleet import owner_id
from birthmark.floor.recalls import RecallOrder, SelectionKind
from birthmark.floor.runs import RunLicence, RunStatus
from birthmark.ledger.entry import parse_time
from birthmark.services.check_ceremonies import CeremonySaid
from birthmark.services.check_proposals import ProposalsSaid
from birthmark.services.confirmations import LOCAL
from birthmark.services.element_testimony import ELEMENT_ENTRIES, ElementsSaid
from birthmark.services.enrolment_testimony import ENROLMENT_ENTRIES, EnrolmentsSaid
from birthmark.services.entry_fields import (
    Entry,
    known,
    number_of,
    objects_of,
    text_of,
    text_or_none,
    texts_of,
    value_of,
)
from birthmark.services.fleet_testimony import FLEET_ENTRIES, FleetSaid
from birthmark.services.gateway_testimony import GATEWAY_ENTRIES, GatewaySaid
from birthmark.services.key_testimony import KEY_ENTRIES, KeysSaid
from birthmark.services.recall_testimony import CARRIED_OUT, ORDERED, RecallsSaid
from birthmark.services.station_testimony import STATION_ENTRIES, StationsSaid

__all__ = [
    "AttemptSaid",
    "AuthoritySaid",
    "CertificateSaid",
    "ClientSaid",
    "CredentialSaid",
    "DeviceSaid",
    "RevokedSaid",
    "RunSaid",
    "Said",
]

_DISPOSED = {
    "device-held": DeviceState.HELD,
    "device-reworked": DeviceState.ADMITTED,
    "device-scrapped": DeviceState.SCRAPPED,
}
_CAUSE = {
    "device-held": str(DeviceEvent.HOLD),
    "device-reworked": str(DeviceEvent.REWORK),
    "device-scrapped": str(DeviceEvent.SCRAP),
}
_OF_MANY = frozenset({"client-revoked", "devices-shipped"} | CARRIED_OUT.keys() | ORDERED)
"""Kinds of entry about many certificates or devices at once."""
_PARTS = KEY_ENTRIES | ELEMENT_ENTRIES | STATION_ENTRIES | ENROLMENT_ENTRIES | FLEET_ENTRIES | GATEWAY_ENTRIES
"""What parts of their own take in."""
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
    """A client's certificate, or one-time code."""

    sha256: str
    client: str
    authority: str
    until: str = ""
    """When a code ends, or what many share; any certificate says so itself."""
    spki_sha256: str = ""
    """Whose key a shared certificate is of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSaid:
    """A client, after the last entry about it."""

    role: str
    site: str
    line: str
    hardware_id: str | None
    run: str | None
    runs: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateSaid:
    """A device's certificate."""

    sha256: str
    device: str
    attempt: str
    authority: str
    partition: str
    run: str
    client: str
    issued_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokedSaid:
    """Why a certificate is on a CRL, or was taken off it, after the last entry about it."""

    reason: str
    at: str
    cause: str
    """As ``Revocation.cause``."""
    invalidity_date: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSaid:
    """A run, after the last entry about it; signatures in hex."""

    licence: str
    signature: str
    signer: str
    approver: str | None
    approval: str | None
    opening: int | None
    """Index of the entry that opened it; None for one of the time before first articles."""
    status: RunStatus


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
    further: str
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
    successors: dict[str, str] = field(default_factory=dict)
    """Authority to the one that takes over from it."""
    ceremonies: dict[str, CeremonySaid] = field(default_factory=dict)
    assets: KeysSaid = field(default_factory=KeysSaid)
    credentials: dict[str, CredentialSaid] = field(default_factory=dict)
    """By serial number."""
    clients: dict[str, ClientSaid] = field(default_factory=dict)
    """Client to site, line, hardware id and run."""
    revoked_clients: set[str] = field(default_factory=set)
    runs: dict[str, RunSaid] = field(default_factory=dict)
    lists: dict[str, int] = field(default_factory=dict)
    """Hash of each imported list of hardware ids to their number."""
    devices: dict[str, DeviceSaid] = field(default_factory=dict)
    attempts: dict[str, AttemptSaid] = field(default_factory=dict)
    certificates: dict[str, CertificateSaid] = field(default_factory=dict)
    """By serial number."""
    revoked: dict[str, RevokedSaid] = field(default_factory=dict)
    """By serial number."""
    recalls: RecallsSaid = field(default_factory=RecallsSaid)
    shipped: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Device to consignment and time."""
    recalled: set[str] = field(default_factory=set)
    """Serial numbers that a recall named: released devices whose certificates need not be good."""
    keys: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each device's SubjectPublicKeyInfo to the device."""
    released: dict[int, Entry] = field(default_factory=dict)
    """Log index to record."""
    elements: ElementsSaid = field(default_factory=ElementsSaid)
    proposals: ProposalsSaid = field(default_factory=ProposalsSaid)
    stations: StationsSaid = field(default_factory=StationsSaid)
    fleet: FleetSaid = field(default_factory=FleetSaid)
    gateway: GatewaySaid = field(default_factory=GatewaySaid)
    enrolments: EnrolmentsSaid = field(default_factory=EnrolmentsSaid)
    numbers: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    """Actor to the numbers of its requests."""
    _batches: dict[str, str] = field(default_factory=dict)

    def take(self, index: int, entry: Entry) -> None:
        """Take in an entry that ``ledger.entry.decode`` has read.

        Raises:
            errors.MalformedRequest: a field is missing or of the wrong type, or the entry speaks of what no
                entry before it made.
        """
        if "seq" in entry:
            self.numbers[entry["actor"]].add(entry["seq"])
        self.proposals.take(index, entry)
        kind: str = entry["kind"]
        if kind in ("device-issued", "device-reissued"):
            self._take_issued(index, entry)
        elif kind == "device-released":
            self._take_released(index, entry)
        elif kind in _DISPOSED:
            self._take_disposed(entry)
        elif kind in ("client-enrolled", "client-renewed", "role-changed"):
            self._take_client(entry)
        elif kind in _OF_MANY:
            self._take_of_many(entry)
        elif kind in ("ceremony-performed", "authority-established", "authority-succeeded"):
            self._take_hierarchy(index, entry)
        elif kind in _PARTS:
            self._take_part(index, entry)
        elif kind in _STATUS:
            self.authority_status[text_of(entry, "authority")] = _STATUS[kind]
        elif kind == "hardware-ids-imported":
            self.lists[text_of(entry, "list_sha256")] = number_of(entry, "count")
        elif kind in ("run-proposed", "run-opened", "run-closed"):
            self._take_run(index, entry)

    def _take_part(self, index: int, entry: Entry) -> None:
        kind = entry["kind"]
        if kind in ENROLMENT_ENTRIES:
            self._take_enrolment(index, entry)
            return
        if kind in FLEET_ENTRIES:
            self._take_fleet(entry)
            return
        if kind in GATEWAY_ENTRIES:
            self.gateway.take(index, entry)
            return
        part: KeysSaid | ElementsSaid | StationsSaid = self.assets if kind in KEY_ENTRIES else self.elements
        (self.stations if kind in STATION_ENTRIES else part).take(entry)

    def _take_fleet(self, entry: Entry) -> None:
        self.fleet.take(entry)
        if entry["kind"] == "fleet-registered":
            owner = owner_id(text_of(entry, "fleet_authority"))
            if self.keys.setdefault(text_of(entry, "spki_sha256"), owner) != owner:
                raise errors.MalformedRequest(f"the key of {owner} was another's before")

    def _take_run(self, index: int, entry: Entry) -> None:
        name, opened = text_of(entry, "run"), entry["kind"] == "run-opened"
        if entry["kind"] == "run-closed":
            self.runs[name] = replace(known(self.runs, "run", name), status=RunStatus.CLOSED)
            return
        two = opened and "approver" in entry
        said = RunSaid(
            licence=text_of(entry, "licence"),
            signature=text_of(entry, "signature"),
            signer=text_of(entry, "signer"),
            approver=text_of(entry, "approver") if two else None,
            approval=text_of(entry, "approval") if two else None,
            opening=index if "inspections" in entry else None,
            status=RunStatus.OPEN if opened else RunStatus.PROPOSED,
        )
        proposed = self.runs.get(name)
        if two != (proposed is not None):
            raise errors.MalformedRequest("two people open a run that one of them proposed, and no other")
        if proposed is not None:
            again = replace(said, approver=None, approval=None, opening=None, status=RunStatus.PROPOSED)
            if proposed != again:
                raise errors.MalformedRequest("it is not the run that was proposed")
        self.runs[name] = said
        if opened:
            self.elements.take_opened(name, RunLicence.decode(said.licence.encode()), entry)

    def _take_issued(self, index: int, entry: Entry) -> None:
        device, attempt, serial = (text_of(entry, name) for name in ("device", "attempt", "certificate"))
        made = [entry, *objects_of(entry, "further")]
        for one in made:
            self.certificates[text_of(one, "certificate")] = CertificateSaid(
                sha256=text_of(one, "certificate_sha256"),
                device=device,
                attempt=attempt,
                authority=text_of(entry, "authority"),
                partition=text_of(entry, "partition"),
                run=text_of(entry, "run"),
                client=entry["actor"],
                issued_at=entry["at"],
            )
            self.keys[text_of(one, "spki_sha256")] = device
        further = " ".join(text_of(one, "certificate") for one in made[1:])
        if entry["kind"] == "device-reissued":
            # The attempt stays who began it; its certificate, and when and where that was issued, are new.
            again = known(self.attempts, "attempt", attempt)
            again.certificate, again.issued_at, again.issue_leaf = serial, entry["at"], index
            again.further = further
            self._take_revoked(entry, "reissue")
            self.elements.take_issued(entry, again.run, device, attempt)
            return
        said = AttemptSaid(
            device=device,
            number=number_of(entry, "attempt_number"),
            run=text_of(entry, "run"),
            client=entry["actor"],
            operator=entry.get("operator"),
            origin=text_of(entry, "origin"),
            certificate=serial,
            further=further,
            issued_at=entry["at"],
            issue_leaf=index,
        )
        self.attempts[attempt] = said
        self.devices[device] = DeviceSaid(
            state=DeviceState.ISSUED, run=said.run, attempt=attempt, attempts=said.number
        )
        self.elements.take_issued(entry, said.run, device, attempt)

    def _take_enrolment(self, index: int, entry: Entry) -> None:
        before = self.attempts.get(self.enrolments.take(entry))
        kind = entry["kind"]
        if not kind.startswith("local-"):
            return
        name = text_of(entry, "attempt")
        if kind == "local-issued":
            if before is not None and before.state is DeviceState.ISSUED:
                before.state = DeviceState.HELD
            self._take_local(index, entry, name)
        attempt = known(self.attempts, "attempt", name)
        if kind == "local-proved":
            attempt.state, attempt.release_leaf = DeviceState.RELEASED, index
            attempt.record = {name: text_of(entry, name) for name in ("challenge", "proof", "released_at")}
        elif kind == "local-rejected":
            attempt.state = DeviceState.HELD
        if "certificates" in entry:
            self._take_revoked(entry, LOCAL)

    def _take_local(self, index: int, entry: Entry, attempt: str) -> None:
        said = AttemptSaid(
            device=text_of(entry, "device"),
            number=number_of(entry, "attempt_number"),
            run=text_of(entry, "run"),
            client=entry["actor"],
            operator=None,
            origin=text_of(entry, "origin"),
            certificate=text_of(entry, "certificate"),
            further="",
            issued_at=entry["at"],
            issue_leaf=index,
        )
        known(self.devices, "device", said.device)
        self.attempts[attempt] = said
        self.keys[text_of(entry, "spki_sha256")] = said.device
        self.certificates[said.certificate] = CertificateSaid(
            sha256=text_of(entry, "certificate_sha256"),
            device=said.device,
            attempt=attempt,
            authority=text_of(entry, "authority"),
            partition=text_of(entry, "partition"),
            run=said.run,
            client=said.client,
            issued_at=said.issued_at,
        )

    def _take_released(self, index: int, entry: Entry) -> None:
        record = entry.get("record")
        if not isinstance(record, dict):
            raise errors.MalformedRequest("its record is missing or no object")
        self.released[index] = record
        device = known(self.devices, "device", text_of(entry, "device"))
        attempt = known(self.attempts, "attempt", name := text_of(record, "attempt"))
        device.state = attempt.state = DeviceState.RELEASED
        attempt.record, attempt.release_leaf = record, index
        self.elements.take_released(record, attempt.run, attempt.device, name)

    def _take_disposed(self, entry: Entry) -> None:
        device = known(self.devices, "device", text_of(entry, "device"))
        attempt = known(self.attempts, "attempt", text_of(entry, "attempt"))
        reason = text_of(entry, "reason")
        device.state = _DISPOSED[entry["kind"]]
        device.reason = None if device.state is DeviceState.ADMITTED else reason
        if device.state is DeviceState.HELD:
            attempt.state = DeviceState.HELD
            self.elements.take_held(entry)
        if "certificates" in entry:
            self._take_revoked(entry, _CAUSE[entry["kind"]])

    def _take_of_many(self, entry: Entry) -> None:
        kind: str = entry["kind"]
        if kind in ORDERED:
            self._take_order(entry)
        elif kind in CARRIED_OUT:
            self._take_recalled(entry)
        elif kind == "client-revoked":
            self.revoked_clients.add(text_of(entry, "client"))
            self._take_revoked(entry, "client")
        else:
            gone = (text_of(entry, "consignment"), entry["at"])
            self.shipped |= dict.fromkeys(texts_of(entry, "devices"), gone)

    def _take_revoked(self, entry: Entry, cause: str) -> None:
        since = None if "invalidity_date" not in entry else text_of(entry, "invalidity_date")
        said = RevokedSaid(
            reason=text_of(entry, "revocation_reason"), at=entry["at"], cause=cause, invalidity_date=since
        )
        self.revoked |= dict.fromkeys(texts_of(entry, "certificates"), said)

    def _take_recalled(self, entry: Entry) -> None:
        """Take in what was done under an order, if it is what two people ordered."""
        kind, recall, serials = entry["kind"], text_of(entry, "recall"), texts_of(entry, "certificates")
        order = self.recalls.carried_out(
            recall, kind, text_of(entry, "revocation_reason"), entry.get("invalidity_date"), len(serials)
        )
        approved_at = self.recalls.approved_at(recall)
        if kind == "authority-revoked":
            authority = text_of(entry, "authority")
            if authority != order.selection.value:
                raise errors.MalformedRequest(f"recall {recall[:64]} chooses another authority")
            self.authority_status[authority] = AuthorityStatus.REVOKED
        else:
            for serial in serials:
                self._require_chosen(order, approved_at, serial)
            self.recalled.update(serials)
        self._take_revoked(entry, f"recall:{recall}")

    def _require_chosen(self, order: RecallOrder, approved_at: datetime, serial: str) -> None:
        certificate = known(self.certificates, "certificate", serial)
        issued_at = parse_time(certificate.issued_at)
        if order.selection.kind is SelectionKind.INCIDENT and issued_at <= approved_at:
            self.recalls.to_judge[order.id].add(serial)  # by the acts of the log, in check_recalls
            return
        if issued_at > approved_at or not order.selection.chooses(
            device=certificate.device,
            run=certificate.run,
            batch=self.batch(certificate.run),
            authority=certificate.authority,
            client=certificate.client,
            issued_at=issued_at,
        ):
            raise errors.MalformedRequest(f"recall {order.id} does not choose certificate {serial[:64]}")

    def batch(self, run: str) -> str:
        """Return the batch that a run's licence names."""
        if run not in self._batches:
            licence = known(self.runs, "run", run).licence
            self._batches[run] = RunLicence.decode(licence.encode()).batch
        return self._batches[run]

    def _take_order(self, entry: Entry) -> None:
        kind, recall, at = entry["kind"], text_of(entry, "recall"), entry["at"]
        if kind == "recall-proposed":
            signed = (text_of(entry, "signer"), text_of(entry, "signature"))
            self.recalls.propose(recall, text_of(entry, "order"), signed, at)
        elif kind == "recall-approved":
            proposal, approval = (
                (text_of(entry, who), text_of(entry, what))
                for who, what in (("proposer", "proposal"), ("approver", "approval"))
            )
            self.recalls.approve(recall, text_of(entry, "order"), proposal, approval, at)
        elif kind == "recall-withdrawn":
            self.recalls.withdraw(recall)
        else:
            self.recalls.finish(recall, number_of(entry, "changed"))

    def _take_client(self, entry: Entry) -> None:
        client = text_of(entry, "client")
        if entry["kind"] == "role-changed":
            before = known(self.clients, "client", client)
            self.clients[client] = replace(before, role=text_of(entry, "role"))
            return
        self.credentials[text_of(entry, "certificate")] = CredentialSaid(
            sha256=text_of(entry, "certificate_sha256"),
            client=client,
            authority=text_of(entry, "authority"),
            until=text_of(entry, "until") if "until" in entry else "",
            spki_sha256=text_of(entry, "spki_sha256") if "spki_sha256" in entry else "",
        )
        if entry["kind"] == "client-enrolled":
            kind = client.partition(":")[0]
            if kind == Role.SHARED:
                self.enrolments.take_shared(entry)
            # Before people had roles every one of them could do what an officer may, and is one since.
            earlier = str(Role.OFFICER) if kind == PERSON else kind
            self.clients[client] = ClientSaid(
                role=text_of(entry, "role") if "role" in entry else earlier,
                site=text_of(entry, "site"),
                line=text_of(entry, "line"),
                hardware_id=text_or_none(entry, "hardware_id"),
                run=text_or_none(entry, "run"),
                runs=text_of(entry, "runs") if "runs" in entry else "",
            )

    def _take_hierarchy(self, index: int, entry: Entry) -> None:
        if entry["kind"] == "authority-established":
            self._take_established(entry)
            return
        if entry["kind"] == "authority-succeeded":
            self.successors[text_of(entry, "authority")] = text_of(entry, "successor")
            return
        name = text_of(entry, "ceremony")
        self.ceremonies[name] = CeremonySaid(
            file_sha256=text_of(entry, "file_sha256"),
            record_sha256=text_of(entry, "record_sha256"),
            leaf=index,
        )
        self.assets.take_ceremony(name, entry)

    def _take_established(self, entry: Entry) -> None:
        name = text_of(entry, "authority")
        self.authorities[name] = AuthoritySaid(
            kind=text_of(entry, "authority_kind"),
            issuer=text_of(entry, "issuer"),
            custody=text_of(entry, "custody"),
            profile=text_of(entry, "profile"),
            profiles=text_of(entry, "profiles"),
            constraints=text_of(entry, "constraints"),
            ceremony=text_of(entry, "ceremony"),
            owner=text_of(entry, "owner"),
            scope=text_of(entry, "scope"),
            quota=None if value_of(entry, "quota") is None else number_of(entry, "quota"),
            ends_at=text_of(entry, "ends_at"),
            sha256=text_of(entry, "certificate_sha256"),
        )
        self.authority_status[name] = AuthorityStatus.ACTIVE
