"""Hold what the log says of a subject against the rows of the record; a part of ``investigate`` (SPEC E6).

The log is the truth: a row that says something else is a contradiction, and is told.  ``check`` does this for
everything and field by field; here it is asked about one subject, and about what decides over it.
"""

from collections.abc import Iterator

from birthmark.floor.authorities import Authority
from birthmark.floor.clients import Client, Credential
from birthmark.floor.devices import Device, DeviceCertificate
from birthmark.floor.key_assets import KeyAsset
from birthmark.floor.revocations import AUTHORITIES, CLIENTS, Revocation, revocation_key
from birthmark.floor.runs import Run
from birthmark.pki.certificates import Certificate, fingerprint
from birthmark.ports import Store
from birthmark.services.chronicle_states import (
    AuthorityState,
    CertificateState,
    ClientState,
    DeviceStanding,
    Phase,
    RunState,
    State,
)
from birthmark.services.investigate import Certificates

__all__ = ["certificates_of", "compare"]


def certificates_of(store: Store) -> Certificates:
    """Return what finds a realm's certificates; they are believed only for their fingerprints."""

    def find(state: CertificateState) -> bytes | None:
        row = _row(store, state)
        return None if row is None else row.der

    return find


def compare(store: Store, now: State) -> tuple[str, ...]:
    """Return where the record contradicts the log; if the log has grown since, it is to be asked again."""
    return tuple(_contradictions(store, now))


def _contradictions(store: Store, now: State) -> Iterator[str]:
    if isinstance(now, CertificateState):
        yield from _certificate(store, now)
    elif isinstance(now, DeviceStanding):
        row = store.look({Device: (now.device,)}).get(Device, now.device)
        stored = None if row is None else (row.state, row.run, row.attempt, row.attempts, row.reason)
        logged = (now.state, now.run, now.attempt, now.attempts, now.reason)
        yield from _differ(now.device, stored, None if now.state == "unknown" else logged)
        for one in now.certificates:
            yield from _certificate(store, one)
    elif isinstance(now, ClientState):
        client = store.look({Client: (now.client,)}).get(Client, now.client)
        yield from _differ(now.client, "unknown" if client is None else str(client.status), now.status)
        for one in now.certificates:
            yield from _certificate(store, one)
    elif isinstance(now, AuthorityState):
        authority = store.look({Authority: (now.authority,)}).get(Authority, now.authority)
        stored_status = None if authority is None else (str(authority.status), authority.successor)
        logged_status = None if now.since is None else (now.status, now.successor)
        yield from _differ(f"authority {now.authority}", stored_status, logged_status)
    elif isinstance(now, RunState):
        run = store.look({Run: (now.run,)}).get(Run, now.run)
        yield from _differ(f"run {now.run}", "unknown" if run is None else str(run.status), now.status)
    else:
        asset = store.look({KeyAsset: (now.key,)}).get(KeyAsset, now.key)
        yield from _differ(f"key {now.key}", None if asset is None else asset.fingerprint, now.fingerprint)


def _certificate(store: Store, now: CertificateState) -> Iterator[str]:
    what = f"certificate {now.certificate}"
    row = _row(store, now)
    yield from _differ(what, None if row is None else fingerprint(row.der), now.sha256)
    if now.authority is None or now.partition is None:
        return
    line = revocation_key(now.authority, now.partition, now.certificate)
    revocation = store.look({Revocation: (line,)}).get(Revocation, line)
    status = None if revocation is None or revocation.status is None else str(revocation.status)
    logged = now.reason if now.phase in (Phase.SUSPENDED, Phase.REVOKED) else None
    yield from _differ(f"the CRL line of {what}", status or "good", logged or "good")


def _row(store: Store, state: CertificateState) -> DeviceCertificate | Credential | Authority | None:
    serial = state.certificate
    if state.partition == AUTHORITIES and state.holder is not None:
        found = store.look({Authority: (state.holder,)}).get(Authority, state.holder)
        return found if found is not None and Certificate.from_der(found.der).serial_hex == serial else None
    if state.partition == CLIENTS:
        return store.look({Credential: (serial,)}).get(Credential, serial)
    return store.look({DeviceCertificate: (serial,)}).get(DeviceCertificate, serial)


def _differ(what: str, stored: object, logged: object) -> Iterator[str]:
    if stored != logged:
        yield f"{what}: the record says {_said(stored)}, the log {_said(logged)}"


def _said(value: object) -> str:
    if value is None:
        return "nothing"
    return (
        ", ".join("-" if one is None else str(one) for one in value)
        if isinstance(value, tuple)
        else str(value)
    )
