"""What entries of a log come to, replayed one after another: where a credential, a device stood (SPEC E6).

``Chronicle`` is given entries in the log's order and can be asked after each; given those up to an instant it
says what was so at that instant.  It needs no other entries than those about the subject, the authorities and
the runs.  ``testimony`` judges a whole log against the rules; here nothing is judged, but what cannot follow
from what was said before is kept as a contradiction.

Certificates are revoked, suspended and reinstated by any entry with ``certificates`` and
``revocation_reason``, whatever its kind; revoked is for good (RFC 5280 section 5.3.1).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from birthmark import errors
from birthmark.floor.authorities import AuthorityStatus
from birthmark.floor.clients import ClientStatus
from birthmark.floor.devices import DeviceState
from birthmark.floor.locations import DELTA
from birthmark.floor.revocations import AUTHORITIES, CLIENTS, UNPARTITIONED
from birthmark.floor.runs import RunLicence, RunStatus
from birthmark.pki.revocation import ReasonCode
from birthmark.services.chronicle_states import (
    AuthorityState,
    CertificateState,
    ClientState,
    DeviceStanding,
    KeyState,
    Phase,
    RunState,
)
from birthmark.services.entry_fields import Entry, number_of, object_of, objects_of, text_of, texts_of

__all__ = ["Chronicle", "serials_of"]

_DISPOSED = {
    "device-held": DeviceState.HELD,
    "device-reworked": DeviceState.ADMITTED,
    "device-scrapped": DeviceState.SCRAPPED,
}
_STATUS = {f"authority-{status}": status for status in AuthorityStatus}
_ISSUED = frozenset({"device-issued", "device-reissued", "local-issued"})
_KEYS = ("ceremony-performed", "key-recorded", "key-accepted", "key-backed-up", "key-restored")
_KEPT = ("role", "site", "line", "hardware_id", "run")
"""What entries say of a client, where they do."""


@dataclass(slots=True, kw_only=True)
class _Certificate:
    sha256: str
    holder: str
    authority: str
    partition: str
    issued_at: str
    index: int
    phase: Phase
    since: str
    run: str | None = None
    attempt: str | None = None
    reason: str | None = None
    cause: str | None = None
    before: Phase | None = None
    """What it returns to when it is reinstated."""
    listed: str | None = None


@dataclass(slots=True, kw_only=True)
class _Authority:
    issuer: str
    certificate: str
    ends_at: str
    since: str
    status: str = str(AuthorityStatus.ACTIVE)
    reason: str | None = None
    successor: str | None = None


@dataclass(slots=True, kw_only=True)
class _Device:
    state: DeviceState
    since: str
    run: str
    attempt: str
    attempts: int
    reason: str | None = None


@dataclass(slots=True)
class Chronicle:
    """All that the entries taken so far come to."""

    certificates: dict[str, _Certificate] = field(default_factory=dict)
    authorities: dict[str, _Authority] = field(default_factory=dict)
    devices: dict[str, _Device] = field(default_factory=dict)
    contradictions: list[str] = field(default_factory=list)
    _shipped: dict[str, tuple[str, str]] = field(default_factory=dict)
    _clients: dict[str, tuple[str, str, str | None]] = field(default_factory=dict)
    _known: dict[str, dict[str, str | None]] = field(default_factory=dict)
    _runs: dict[str, tuple[str, str, RunLicence]] = field(default_factory=dict)
    _keys: dict[str, KeyState] = field(default_factory=dict)

    # --- taking

    def take(self, index: int, entry: Entry) -> None:
        """Take in the next entry.

        Raises:
            errors.MalformedRequest: a field that its kind has is missing, or of another type.
        """
        kind: str = entry["kind"]
        takers = {
            **dict.fromkeys(_ISSUED, self._take_issued),
            "device-released": self._take_released,
            "local-proved": self._take_proved,
            **dict.fromkeys(_DISPOSED, self._take_disposed),
            **dict.fromkeys(("client-enrolled", "client-renewed"), self._take_enrolled),
            "authority-established": self._take_established,
            **dict.fromkeys(("authority-succeeded", *_STATUS), self._take_authority),
            **dict.fromkeys(("run-proposed", "run-opened", "run-closed"), self._take_run),
            **dict.fromkeys(_KEYS, self._take_keys),
            "devices-shipped": self._take_shipped,
            "crls-published": self._take_published,
        }
        if kind in takers:
            takers[kind](index, entry)
        elif "client" in entry and kind != "refused":
            self._take_client(entry)
        if "revocation_reason" in entry:
            self._take_revoked(index, entry)

    def _take_shipped(self, _index: int, entry: Entry) -> None:
        gone = (text_of(entry, "consignment"), entry["at"])
        for device in texts_of(entry, "devices"):
            self._shipped.setdefault(device, gone)  # the first report of a device counts

    def _take_issued(self, index: int, entry: Entry) -> None:
        device, run, at = text_of(entry, "device"), text_of(entry, "run"), entry["at"]
        attempt = text_of(entry, "attempt")
        for one in (entry, *objects_of(entry, "further")):
            self.certificates[text_of(one, "certificate")] = _Certificate(
                sha256=text_of(one, "certificate_sha256"),
                holder=device,
                authority=text_of(entry, "authority"),
                partition=text_of(entry, "partition"),
                issued_at=at,
                index=index,
                phase=Phase.ISSUED,
                since=at,
                run=run,
                attempt=attempt,
            )
        if entry["kind"] == "device-issued":
            self.devices[device] = _Device(
                state=DeviceState.ISSUED,
                since=at,
                run=run,
                attempt=attempt,
                attempts=number_of(entry, "attempt_number"),
            )

    def _take_released(self, index: int, entry: Entry) -> None:
        record, device = object_of(entry, "record"), text_of(entry, "device")
        for one in (record, *objects_of(record, "further")):
            self._prove(index, entry, text_of(one, "certificate"))
        self._move(index, device, DeviceState.RELEASED, entry, None)

    def _take_proved(self, index: int, entry: Entry) -> None:
        self._prove(index, entry, text_of(entry, "certificate"))

    def _prove(self, index: int, entry: Entry, serial: str) -> None:
        found = self.certificates.get(serial)
        if found is None or found.phase is not Phase.ISSUED:
            self._contradict(index, f"certificate {serial} is proved and was not waiting for a proof")
            return
        found.phase, found.since, found.index = Phase.LIVE, entry["at"], index

    def _take_disposed(self, index: int, entry: Entry) -> None:
        state = _DISPOSED[entry["kind"]]
        reason = None if state is DeviceState.ADMITTED else text_of(entry, "reason")
        self._move(index, text_of(entry, "device"), state, entry, reason)

    def _move(self, index: int, device: str, state: DeviceState, entry: Entry, reason: str | None) -> None:
        found = self.devices.get(device)
        if found is None:
            self._contradict(index, f"{device} is {state} and was never admitted")
            return
        found.state, found.since, found.reason = state, entry["at"], reason

    def _take_revoked(self, index: int, entry: Entry) -> None:
        reason = text_of(entry, "revocation_reason")
        cause = f"recall {entry['recall']}" if "recall" in entry else entry["kind"]
        for serial in texts_of(entry, "certificates"):
            found = self.certificates.get(serial)
            if found is None:
                continue  # another's: an entry names up to a thousand
            if found.phase is Phase.REVOKED:
                self._contradict(index, f"certificate {serial} was revoked for good and changes again")
                continue
            lifted = reason == ReasonCode.REMOVE_FROM_CRL
            if lifted != (found.phase is Phase.SUSPENDED) and (
                lifted or reason == ReasonCode.CERTIFICATE_HOLD
            ):
                self._contradict(index, f"certificate {serial} is {found.phase}, and {reason} follows")
                continue
            if lifted and found.before is not None:
                found.phase, found.since, found.index = found.before, entry["at"], index
                found.reason = found.cause = found.before = found.listed = None
                continue
            if found.phase is not Phase.SUSPENDED:
                found.before = found.phase
            found.phase = Phase.SUSPENDED if reason == ReasonCode.CERTIFICATE_HOLD else Phase.REVOKED
            found.since, found.index, found.reason, found.cause = entry["at"], index, reason, cause
            found.listed = None

    def _take_published(self, index: int, entry: Entry) -> None:
        """Note for each certificate that is not good which published CRL it first stood in."""
        missing = [
            one
            for one in self.certificates.values()
            if one.phase in (Phase.SUSPENDED, Phase.REVOKED) and one.listed is None
        ]
        if not missing:
            return
        size = number_of(entry, "log_size")
        for crl in objects_of(entry, "crls"):
            authority, partition = text_of(crl, "authority"), text_of(crl, "partition")
            number = text_of(crl, "crl_number")
            for one in missing:
                listing = partition in (one.partition, UNPARTITIONED, DELTA) and one.authority == authority
                if listing and one.index < size and one.listed is None:
                    one.listed = (
                        f"CRL {number} of {authority}/{partition}, thisUpdate"
                        f" {text_of(crl, 'this_update')} (entry {index})"
                    )

    def _take_enrolled(self, index: int, entry: Entry) -> None:
        client, at = text_of(entry, "client"), entry["at"]
        self.certificates[text_of(entry, "certificate")] = _Certificate(
            sha256=text_of(entry, "certificate_sha256"),
            holder=client,
            authority=text_of(entry, "authority"),
            partition=CLIENTS,
            issued_at=at,
            index=index,
            phase=Phase.LIVE,
            since=at,
        )
        if client not in self._clients:
            self._clients[client] = (str(ClientStatus.ACTIVE), at, None)
        self._take_client(entry)

    def _take_client(self, entry: Entry) -> None:
        client = text_of(entry, "client")
        known = self._known.setdefault(client, {})
        known |= {name: entry[name] for name in _KEPT if name in entry}
        if entry["kind"] == "client-revoked":
            self._clients[client] = (str(ClientStatus.REVOKED), entry["at"], text_of(entry, "reason"))

    def _take_established(self, index: int, entry: Entry) -> None:
        name, at = text_of(entry, "authority"), entry["at"]
        serial = text_of(entry, "certificate")
        self.authorities[name] = _Authority(
            issuer=text_of(entry, "issuer"),
            certificate=serial,
            ends_at=text_of(entry, "ends_at"),
            since=at,
        )
        self.certificates[serial] = _Certificate(
            sha256=text_of(entry, "certificate_sha256"),
            holder=name,
            authority=text_of(entry, "issuer"),
            partition=AUTHORITIES,
            issued_at=at,
            index=index,
            phase=Phase.LIVE,
            since=at,
        )

    def _take_authority(self, index: int, entry: Entry) -> None:
        name = text_of(entry, "authority")
        found = self.authorities.get(name)
        if found is None:
            self._contradict(index, f"authority {name} was never established")
            return
        if entry["kind"] == "authority-succeeded":
            found.successor = text_of(entry, "successor")
            return
        found.status, found.since = str(_STATUS[entry["kind"]]), entry["at"]
        found.reason = entry.get("reason") or entry.get("revocation_reason")

    def _take_run(self, index: int, entry: Entry) -> None:
        run, kind = text_of(entry, "run"), entry["kind"]
        if kind == "run-closed":
            if run not in self._runs:
                self._contradict(index, f"run {run} is closed and was never opened")
                return
            self._runs[run] = (str(RunStatus.CLOSED), entry["at"], self._runs[run][2])
            return
        status = RunStatus.PROPOSED if kind == "run-proposed" else RunStatus.OPEN
        licence = RunLicence.decode(text_of(entry, "licence").encode())
        self._runs[run] = (str(status), entry["at"], licence)

    def _take_keys(self, index: int, entry: Entry) -> None:
        at = entry["at"]
        if entry["kind"] == "ceremony-performed":
            for one in objects_of(entry, "keys"):
                self._keep_key(text_of(one, "label"), text_of(one, "store"), one, at)
            return
        label = text_of(entry, "key")
        if "purpose" in entry:
            self._keep_key(label, text_of(entry, "key_store"), entry, at)
            return
        was = self._keys.get(label)
        if was is None:
            self._contradict(index, f"key {label} was never put on record, and {entry['kind']} follows")
            return
        backed_up = at if entry["kind"] == "key-backed-up" else was.backed_up_at
        store = was.store or ""
        added = entry.get("key_store")
        if entry["kind"] != "key-backed-up" and isinstance(added, str) and added not in store.split(","):
            store = f"{store},{added}"
        self._keys[label] = KeyState(
            key=label,
            status=was.status,
            since=was.since,
            purpose=was.purpose,
            store=store,
            fingerprint=was.fingerprint,
            backed_up_at=backed_up,
        )

    def _keep_key(self, label: str, store: str, said: Entry, at: str) -> None:
        self._keys[label] = KeyState(
            key=label,
            status="on-record",
            since=at,
            purpose=text_of(said, "purpose"),
            store=store,
            fingerprint=text_of(said, "fingerprint"),
            backed_up_at=said.get("backed_up_at"),
        )

    def _contradict(self, index: int, text: str) -> None:
        self.contradictions.append(f"entry {index}: {text}")

    # --- asking

    def certificate(self, serial: str) -> CertificateState:
        """Return where a certificate stands."""
        found = self.certificates.get(serial)
        if found is None:
            return CertificateState(
                certificate=serial,
                sha256=None,
                phase=Phase.NOT_ISSUED,
                since=None,
                index=None,
                reason=None,
                cause=None,
                holder=None,
                run=None,
                attempt=None,
                issued_at=None,
                authority=None,
                partition=None,
                authorities=(),
            )
        return CertificateState(
            certificate=serial,
            sha256=found.sha256,
            phase=found.phase,
            since=found.since,
            index=found.index,
            reason=found.reason,
            cause=found.cause,
            holder=found.holder,
            run=found.run,
            attempt=found.attempt,
            issued_at=found.issued_at,
            authority=found.authority,
            partition=found.partition,
            authorities=tuple(self._path(found.authority)),
            listed=found.listed,
        )

    def _path(self, authority: str) -> Iterator[AuthorityState]:
        """Iterate over an authority and those above it, the root last."""
        seen: set[str] = set()
        while authority not in seen:
            seen.add(authority)
            yield (state := self.authority(authority))
            if state.issuer is None:
                return
            authority = state.issuer

    def authority(self, name: str) -> AuthorityState:
        """Return where an authority stands."""
        found = self.authorities.get(name)
        return AuthorityState(
            authority=name,
            status="not-established" if found is None else found.status,
            since=None if found is None else found.since,
            reason=None if found is None else found.reason,
            issuer=None if found is None else found.issuer,
            successor=None if found is None else found.successor,
            certificate=None if found is None else found.certificate,
            ends_at=None if found is None else found.ends_at,
        )

    def device(self, device: str) -> DeviceStanding:
        """Return where a device stands."""
        found, gone = self.devices.get(device), self._shipped.get(device)
        return DeviceStanding(
            device=device,
            state="unknown" if found is None else str(found.state),
            since=None if found is None else found.since,
            run=None if found is None else found.run,
            attempt=None if found is None else found.attempt,
            attempts=0 if found is None else found.attempts,
            reason=None if found is None else found.reason,
            consignment=None if gone is None else gone[0],
            shipped_at=None if gone is None else gone[1],
            certificates=self._of(device),
        )

    def client(self, client: str) -> ClientState:
        """Return where a client stands."""
        status, since, reason = self._clients.get(client, ("unknown", None, None))
        return ClientState(
            client=client,
            status=status,
            since=since,
            reason=reason,
            known=dict(self._known.get(client, {})),
            certificates=self._of(client),
        )

    def _of(self, holder: str) -> tuple[CertificateState, ...]:
        return tuple(
            self.certificate(serial) for serial, one in self.certificates.items() if one.holder == holder
        )

    def run(self, run: str) -> RunState:
        """Return where a run stands."""
        status, since, licence = self._runs.get(run, ("unknown", None, None))
        return RunState(
            run=run,
            status=status,
            since=since,
            product=None if licence is None else licence.product,
            batch=None if licence is None else licence.batch,
            authority=None if licence is None else licence.authority,
            quantity=None if licence is None else licence.quantity,
            element=None if licence is None else licence.element or None,
            firmware=None if licence is None else licence.firmware or None,
        )

    def key(self, label: str) -> KeyState:
        """Return where a key stands."""
        unknown = KeyState(
            key=label,
            status="unknown",
            since=None,
            purpose=None,
            store=None,
            fingerprint=None,
            backed_up_at=None,
        )
        return self._keys.get(label, unknown)


def serials_of(entry: Entry) -> set[str]:
    """Return the serial numbers that an entry issues, proves or changes.

    Raises:
        errors.MalformedRequest: a list of them is none.
    """
    found: set[object] = {entry.get("certificate")}
    record = entry.get("record")
    for said in (entry, record if isinstance(record, dict) else {}):
        found.add(said.get("certificate"))
        further = said.get("further", [])
        if not isinstance(further, list):
            raise errors.MalformedRequest("its further certificates are no list")
        found.update(one.get("certificate") for one in further if isinstance(one, dict))
    if "certificates" in entry:
        found.update(texts_of(entry, "certificates"))
    return {serial for serial in found if isinstance(serial, str)}
