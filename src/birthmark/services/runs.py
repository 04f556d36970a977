"""Production runs: opened by a signed licence, checked by everybody who issues under them (SPEC C3)."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any

from birthmark import errors
from birthmark.floor.authorities import Authority, AuthorityKind, AuthorityStatus, Dimension, Scope
from birthmark.floor.clients import Capability, Client, ClientStatus, Credential, Role
from birthmark.floor.realm import Realm
from birthmark.floor.runs import (
    AllowedDevice,
    AllowList,
    Run,
    RunLicence,
    RunStatus,
    allow_list_of,
    require_station,
)
from birthmark.ledger.entry import time_text
from birthmark.pki import profiles
from birthmark.pki.certificates import Certificate
from birthmark.pki.issuance import Template, compile_template
from birthmark.pki.issuer import Issuer
from birthmark.pki.keys import KeyLabel
from birthmark.pki.possession import verify_proof
from birthmark.ports import Act, Committed, Decision, Facts, Look, UseCase
from birthmark.services.acts import Caller, client_reads, live_client, outcomes, refuse

__all__ = ["RunContext", "Runs", "authority_chain", "verified_licence"]

IMPORT_CHUNK = 5000
"""Hardware ids a single act takes in: the line goes on between two of them."""
_RUN_ID = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,64}", re.ASCII)
"""A run's id is a segment of URLs, where ``.`` and ``..`` mean something else (RFC 3986 section 3.3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """All about a run that never changes: read and checked once a process."""

    licence: RunLicence
    template: Template = field(repr=False)
    chain: tuple[bytes, ...] = field(repr=False)
    """The authorities above the device's certificate (DER), the root not included."""


def authority_chain(authority: str) -> UseCase[list[Authority]]:
    """Return an authority and those above it, the root last.

    Raises:
        errors.NotFound: there is no such authority.
    """
    chain: list[Authority] = []
    name = authority
    while True:
        facts: Facts = yield Look({Authority: (name,)})
        found = facts.get(Authority, name)
        if found is None:
            raise errors.NotFound(f"there is no authority {name}")
        chain.append(found)
        if found.issuer == found.id:
            return chain
        name = found.issuer


def verified_licence(run: Run, signer: Credential | None) -> RunLicence:
    """Return the licence of a run, if the operator it names signed it; of which realm is another question.

    Raises:
        errors.IntegrityFailure: the signature, the signer, the id or the row's quantity is not the licence's.
    """
    try:
        licence = RunLicence.decode(run.document)
        if signer is None or signer.client != licence.opened_by:
            raise errors.IntegrityFailure(f"run {run.id} is not signed by {licence.opened_by}")
        verify_proof(
            Certificate.from_der(signer.der).subject_public_key_info, run.signature, licence.encode()
        )
    except (errors.MalformedRequest, errors.ProofFailed) as cause:
        raise errors.IntegrityFailure(
            f"the licence of run {run.id} is not what was signed: {cause}"
        ) from cause
    if licence.id != run.id or licence.quantity != run.quantity:
        raise errors.IntegrityFailure(f"run {run.id} contradicts its licence")
    return licence


class Runs:
    """The runs of a realm."""

    def __init__(self, realm: Realm) -> None:
        """Know the runs of this realm, and no others."""
        self._realm = realm
        self._contexts: dict[str, RunContext] = {}

    def context(self, run: str) -> UseCase[RunContext]:
        """Return what never changes about a run, its licence's signature verified.

        Raises:
            errors.NotFound: there is no such run.
            errors.IntegrityFailure: what is stored is not what the operator signed.
        """
        known = self._contexts.get(run)
        if known is not None:
            return known
        facts: Facts = yield Look({Run: (run,)})
        row = facts.get(Run, run)
        if row is None:
            raise errors.NotFound(f"there is no run {run[:64]}")
        facts = yield Look({Credential: (row.signer,)})
        licence = self.verify(row, facts.get(Credential, row.signer))
        context = yield from self._compile(licence)
        self._contexts[run] = context
        return context

    def verify(self, run: Run, signer: Credential | None) -> RunLicence:
        """Return the licence of a run, if an operator of this realm signed it.

        Raises:
            errors.IntegrityFailure: the signature, the signer, the realm or the row's quantity is not the
                licence's.
        """
        licence = verified_licence(run, signer)
        if licence.realm != self._realm.name or licence.environment != self._realm.environment:
            raise errors.IntegrityFailure(
                f"run {run.id} belongs to realm {licence.realm} ({licence.environment})"
            )
        return licence

    def _compile(self, licence: RunLicence) -> UseCase[RunContext]:
        chain: list[Authority] = yield from authority_chain(licence.authority)
        issuer = Issuer.from_certificate(KeyLabel(chain[0].key_label), chain[0].der)
        template = compile_template(profiles.load(licence.profile), issuer, licence.variables)
        return RunContext(
            licence=licence, template=template, chain=tuple(authority.der for authority in chain[:-1])
        )

    def admitting(self, facts: Facts, context: RunContext, client: Client, at: datetime) -> Run:
        """Return the run's row if it admits devices from this client at this moment.

        Raises:
            errors.IllegalTransition: it is closed, or this is not its time.
            errors.IntegrityFailure: it is gone, or its quantity is not the licence's.
            errors.NotPermitted: the station is not allowed on it.
        """
        licence = context.licence
        run = facts.get(Run, licence.id)
        if run is None:
            raise errors.IntegrityFailure(f"run {licence.id} is gone")
        if run.quantity != licence.quantity:
            raise errors.IntegrityFailure(f"run {run.id} contradicts its licence")
        if run.status is not RunStatus.OPEN:
            raise errors.IllegalTransition(f"run {run.id} is closed")
        if at < licence.not_before:
            raise errors.IllegalTransition(f"run {run.id} opens at {time_text(licence.not_before)}")
        if at >= licence.not_after:
            raise errors.IllegalTransition(f"run {run.id} ended at {time_text(licence.not_after)}")
        self.working(context, client)
        return run

    def working(self, context: RunContext, client: Client) -> None:
        """Refuse a station that the run does not allow."""
        require_station(context.licence, client.role, client.name)

    # --- opening and closing
    # -------------------------------------------------------------------------------------

    def import_list(self, caller: Caller, device_ids: Iterable[str]) -> UseCase[AllowList]:
        """Take in an allow-list; a list is named by its content, so a broken import is simply done again.

        The act that takes in the last of it says so in the log.

        Raises:
            errors.NotPermitted: the caller may not open runs.
        """
        unique = sorted(set(device_ids))
        allow_list = allow_list_of(unique)
        imported = {"count": allow_list.count, "list_sha256": allow_list.sha256}
        for start in range(0, max(len(unique), 1), IMPORT_CHUNK):
            end = start + IMPORT_CHUNK
            keys = [AllowedDevice.key(allow_list, device) for device in unique[start:end]]
            entries = [("hardware-ids-imported", imported)] if end >= len(unique) else []
            committed: list[Committed[None]] = yield [
                Act(
                    actor=caller.client.id,
                    seq=caller.seq,
                    decide=partial(_decide_import, caller, keys, entries),
                    refuse=refuse(caller, "import-list", imported),
                    reads=client_reads(caller) | {AllowedDevice: keys},
                )
            ]
            outcomes(committed)
        return allow_list

    def open(self, caller: Caller, licence: RunLicence, signature: bytes) -> UseCase[Run]:
        """Open a run under a licence its operator signed.

        Raises:
            errors.IllegalTransition: there is such a run already, or its authority does not issue.
            errors.NotPermitted: the licence is not this operator's, or the authority's scope does not cover
                it.
            errors.PolicyRefused: the licence cannot work: an impossible name, window, quantity, profile or
                station.
        """
        run = Run(
            id=licence.id,
            document=licence.encode(),
            signature=signature,
            signer=caller.credential.serial,
            status=RunStatus.OPEN,
            quantity=licence.quantity,
            admitted=0,
            released=0,
            held=0,
            scrapped=0,
        )
        fields = {"run": licence.id}
        try:
            check_licence(licence, self._realm)
            if licence.opened_by != caller.client.id:
                raise errors.NotPermitted(f"the licence is {licence.opened_by}'s, not {caller.client.id}'s")
            self.verify(run, caller.credential)
            yield from self._compile(licence)
            unready: errors.Refusal | None = None
        except errors.IntegrityFailure as cause:
            unready = errors.NotPermitted(str(cause))
        except errors.Refusal as refusal:
            unready = refusal
        stations = [f"station:{name}" for name in licence.stations]
        reads = client_reads(caller) | {Run: (run.id,), Authority: (licence.authority,)}
        reads[Client] = [*reads[Client], *stations]
        committed: list[Committed[Run]] = yield [
            Act(
                actor=caller.client.id,
                seq=caller.seq,
                decide=partial(_decide_open, caller, licence, run, unready),
                refuse=refuse(caller, "open-run", fields),
                reads=reads,
            )
        ]
        return outcomes(committed)[0]

    def close(self, caller: Caller, run: str, reason: str) -> UseCase[Run]:
        """Close a run: it admits nothing more; devices already issued may still be proved.

        Raises:
            errors.NotFound: there is no such run.
            errors.IllegalTransition: it is closed already.
        """

        def decide(facts: Facts, _at: datetime) -> Decision[Run]:
            live_client(facts, caller, Capability.CLOSE_RUN)
            row = facts.get(Run, run)
            if row is None:
                raise errors.NotFound(f"there is no run {run[:64]}")
            if row.status is RunStatus.CLOSED:
                raise errors.IllegalTransition(f"run {run} is closed already")
            closed = replace(row, status=RunStatus.CLOSED)
            facts.put(closed)
            counts = {
                "admitted": row.admitted,
                "released": row.released,
                "held": row.held,
                "scrapped": row.scrapped,
            }
            return Decision(closed, [("run-closed", {"run": run, "reason": reason, **counts})])

        committed: list[Committed[Run]] = yield [
            Act(
                actor=caller.client.id,
                seq=caller.seq,
                decide=decide,
                refuse=refuse(caller, "close-run", {"run": run[:64]}),
                reads=client_reads(caller) | {Run: (run,)},
            )
        ]
        return outcomes(committed)[0]


def check_licence(licence: RunLicence, realm: Realm) -> None:
    """Refuse a licence under which nothing could ever be issued.

    Raises:
        errors.PolicyRefused: names the rule.
    """
    if _RUN_ID.fullmatch(licence.id) is None:
        raise errors.PolicyRefused(
            "run", f"a run is named by 1 to 64 of A-Z a-z 0-9 . _ -, not {licence.id[:64]!r}"
        )
    for field_name, text in (("product", licence.product), ("batch", licence.batch)):
        if not 1 <= len(text) <= 64 or not text.isprintable():
            raise errors.PolicyRefused(
                field_name, f"a {field_name} is 1 to 64 printable characters, not {text[:64]!r}"
            )
    if licence.realm != realm.name or licence.environment != realm.environment:
        raise errors.PolicyRefused("realm", f"the licence is for {licence.realm} ({licence.environment})")
    if not 1 <= licence.quantity <= 100_000_000:
        raise errors.PolicyRefused("quantity", f"a run makes 1 to 100000000 devices, not {licence.quantity}")
    if licence.not_after <= licence.not_before:
        raise errors.PolicyRefused("window", "the run ends before it begins")
    if not licence.origins:
        raise errors.PolicyRefused("origins", "the run allows neither born nor delivered keys")
    if licence.allow_list is not None and licence.allow_list.count < licence.quantity:
        raise errors.PolicyRefused(
            "quantity",
            f"the list holds {licence.allow_list.count} hardware ids, fewer than {licence.quantity}",
        )
    _check_profile(licence)


def _check_profile(licence: RunLicence) -> None:
    profile = profiles.load(licence.profile)
    if profile.is_ca:
        raise errors.PolicyRefused("profile", f"profile {profile.name} is for authorities, not devices")
    if profile.name in set(Role):
        raise errors.PolicyRefused("profile", f"profile {profile.name} is for clients, not devices")
    if "hardware_id" not in profile.variables:
        raise errors.PolicyRefused(
            "profile", f"profile {profile.name} names no hardware_id: its certificates would name no device"
        )
    if "hardware_id" in licence.variables:
        raise errors.PolicyRefused("variables", "hardware_id is each device's own, not the run's")
    missing = sorted(profile.required_variables - licence.variables.keys() - {"hardware_id"})
    unknown = sorted(licence.variables.keys() - profile.variables)
    if missing:
        raise errors.PolicyRefused(
            "variables", f"profile {profile.name} needs a value for {', '.join(missing)}"
        )
    if unknown:
        raise errors.PolicyRefused("variables", f"profile {profile.name} does not use {', '.join(unknown)}")


def _decide_import(
    caller: Caller,
    keys: Sequence[str],
    entries: Sequence[tuple[str, Mapping[str, Any]]],
    facts: Facts,
    _at: datetime,
) -> Decision[None]:
    live_client(facts, caller, Capability.OPEN_RUN)
    for key in keys:
        if facts.get(AllowedDevice, key) is None:
            facts.put(AllowedDevice(id=key))
    return Decision(None, entries)


def _decide_open(
    caller: Caller, licence: RunLicence, run: Run, unready: errors.Refusal | None, facts: Facts, at: datetime
) -> Decision[Run]:
    live_client(facts, caller, Capability.OPEN_RUN)
    if unready is not None:
        raise unready
    if facts.get(Run, run.id) is not None:
        raise errors.IllegalTransition(f"there is a run {run.id} already")
    if at >= licence.not_after:
        raise errors.PolicyRefused("window", f"the run ended at {time_text(licence.not_after)}")
    authority = facts.get(Authority, licence.authority)
    if authority is None:
        raise errors.NotFound(f"there is no authority {licence.authority}")
    if authority.kind is not AuthorityKind.ISSUING or authority.status is not AuthorityStatus.ACTIVE:
        raise errors.IllegalTransition(f"authority {authority.id} is {authority.kind} and {authority.status}")
    Scope.parse(authority.scope).require_covers(
        authority.id,
        {
            Dimension.PRODUCT: (licence.product,),
            Dimension.BATCH: (licence.batch,),
            Dimension.CLASS: (licence.device_class,),
            Dimension.REGION: (licence.region,),
            Dimension.SITE: (licence.site,),
        },
    )
    if not authority.allows(licence.profile):
        raise errors.NotPermitted(
            f"authority {authority.id} issues {authority.profiles}, not {licence.profile}"
        )
    if licence.not_after > authority.ends_at:
        raise errors.NotPermitted(f"authority {authority.id} stops issuing at {time_text(authority.ends_at)}")
    for name in licence.stations:
        station = facts.get(Client, f"station:{name}")
        if station is None:
            raise errors.NotFound(f"there is no station {name}")
        if station.status is not ClientStatus.ACTIVE:
            raise errors.IllegalTransition(f"station {name} was revoked")
    facts.put(run)
    entry: Mapping[str, Any] = {
        "run": run.id,
        "licence": run.document.decode(),
        "signature": run.signature.hex(),
        "signer": run.signer,
    }
    return Decision(run, [("run-opened", entry)])
