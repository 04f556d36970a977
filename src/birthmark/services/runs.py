"""Production runs, as everybody who works under them sees them: signed, and checked again (SPEC C3).

A run's row is believed for its counters and its status only.  What it may do is in the licence, whose
signatures are verified by every process before it first relies on it: one in a test realm, in production two,
of different people.  How a run comes to be opened is in ``opening``.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any

from birthmark import errors
from birthmark.element.catalogue import ElementCatalogue
from birthmark.element.profiles import AnyElementProfile
from birthmark.floor.authorities import Authority, AuthorityKind, AuthorityStatus, Custody
from birthmark.floor.clients import Capability, Client, Credential, Role
from birthmark.floor.exposure import Exposed, Exposure, exposure_id, require_open
from birthmark.floor.limits import Bucket, Rate, bucket_of, take
from birthmark.floor.realm import Realm
from birthmark.floor.runs import (
    AllowedDevice,
    AllowList,
    Run,
    RunLicence,
    RunStatus,
    allow_list_of,
    require_going,
    require_station,
    require_unbroken,
)
from birthmark.floor.samples import VARIABLE
from birthmark.ledger.entry import time_text
from birthmark.pki.constraints import Constraint, check, constraint_tables, parse_constraint
from birthmark.pki.issuance import Template, compile_template
from birthmark.pki.issuer import Issuer
from birthmark.pki.keys import KeyLabel
from birthmark.pki.profiles import Catalogue, Profile
from birthmark.ports import Decision, Facts, Look, Scan, UseCase
from birthmark.services.acts import Caller, decided, live_client
from birthmark.services.two_people import require_two, verify_signed

__all__ = [
    "RunContext",
    "Runs",
    "authorities_above",
    "authority_chain",
    "check_scope",
    "check_sees",
    "constraints_of",
    "issuer_of",
    "licence_of",
    "signers",
    "values_for",
    "values_known",
    "verified_licence",
]

IMPORT_CHUNK = 5000
"""Hardware ids a single act takes in: the line goes on between two of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """All about a run that never changes: read and checked once a process."""

    licence: RunLicence
    compiled: tuple[Template, ...] | errors.Refusal = field(repr=False)
    """What each device's certificates are made from, or why none may be made: a profile is another."""
    chain: tuple[bytes, ...] = field(repr=False)
    """The authorities above the device's certificate (DER), the root not included."""
    authorities: tuple[str, ...]
    """Ids of the authority, those above it, the root last."""
    constraints: tuple[Constraint, ...] = field(repr=False)
    """What a device's hardware id must keep; the run's own values were judged when it was opened."""
    equipment: AnyElementProfile | errors.Refusal | None = None
    """The secure element each device has, or why it is not known; None for none."""

    @property
    def element(self) -> AnyElementProfile | None:
        """Return the profile of the secure element each device has; None for none.

        Raises:
            errors.IntegrityFailure: the profile is not the one that was signed for.
            errors.Unavailable: this process was started before the profile was added.
        """
        if isinstance(self.equipment, errors.Refusal):
            raise self.equipment
        return self.equipment

    @property
    def templates(self) -> tuple[Template, ...]:
        """Return what each device's certificates are made from.

        Raises:
            errors.IntegrityFailure: the profile is not the one that was signed for.
            errors.Unavailable: this process was started before the profile was added.
        """
        if isinstance(self.compiled, errors.Refusal):
            raise self.compiled
        return self.compiled

    @property
    def template(self) -> Template:
        """Return what the first certificate is made from; see ``templates``."""
        return self.templates[0]

    @property
    def further(self) -> tuple[Template, ...]:
        """Return what the further certificates are made from; see ``templates``."""
        return self.templates[1:]

    def judge(self, hardware_id: str) -> None:
        """Refuse a hardware id that the profile or an authority of the chain does not allow (SPEC G2).

        Raises:
            errors.PolicyRefused: names the rule.
        """
        check(self.constraints, {VARIABLE: hardware_id})

    def issuing(self, facts: Facts) -> Authority:
        """Return the authority's row, if those above it let it issue.

        Raises:
            errors.IllegalTransition: one above it is suspended or revoked.
            errors.IntegrityFailure: one is gone.
        """
        found = [facts.get(Authority, name) for name in self.authorities]
        chain = [authority for authority in found if authority is not None]
        if len(chain) != len(found):
            raise errors.IntegrityFailure(f"an authority of run {self.licence.id} is gone")
        require_unbroken(chain[1:])
        return chain[0]


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


def authorities_above(context: RunContext | None) -> UseCase[list[bytes]]:
    """Return the authorities (DER) above a run's certificates; without one above all that are issued here."""
    if context is not None:
        facts: Facts = yield Look({Authority: context.authorities})
        found = [facts.get(Authority, name) for name in context.authorities]
        return [authority.der for authority in found if authority is not None]
    every: list[Authority] = yield Scan(kind=Authority, where={})
    known, wanted = {one.id: one for one in every}, dict[str, bytes]()
    for one in every:
        issues = one.kind is AuthorityKind.ISSUING and one.custody is Custody.SERVICE
        if not issues or one.status is AuthorityStatus.REVOKED:
            continue
        name = one.id
        while name not in wanted:
            wanted[name], name = known[name].der, known[name].issuer
    return list(wanted.values())


def constraints_of(authority: Authority) -> tuple[Constraint, ...]:
    """Return the issuance constraints of an authority's licence.

    Raises:
        errors.IntegrityFailure: what is stored is none.
    """
    try:
        return tuple(parse_constraint(table) for table in constraint_tables(authority.constraints))
    except errors.MalformedRequest as cause:
        raise errors.IntegrityFailure(
            f"the constraints of authority {authority.id} cannot be read: {cause}"
        ) from cause


def issuer_of(chain: Sequence[Authority]) -> Issuer:
    """Return an authority as the one who signs.

    Args:
        chain: the authority, those above it, the root last.

    Raises:
        errors.Refusal: its certificate is none that can certify.
    """
    return Issuer.from_certificate(
        KeyLabel(chain[0].key_label),
        chain[0].der,
        above=[authority.der for authority in chain[1:]],
        profile=chain[0].profile or None,
    )


def values_for(profile: Profile, licence: RunLicence) -> Mapping[str, str]:
    """Return the values of a licence that a profile uses."""
    return {name: value for name, value in licence.variables.items() if name in profile.variables}


def values_known(profile: Profile, licence: RunLicence, client: Client | None) -> Mapping[str, str]:
    """Return the values that a profile uses as far as they are known: the licence's, and who asks."""
    values = dict(values_for(profile, licence))
    if client is not None and client.hardware_id is not None:
        values["hardware_id"] = client.hardware_id.partition(":")[2]
    return values


def signers(run: Run) -> tuple[str, ...]:
    """Return the serial numbers of the credentials that signed a run."""
    return (run.signer,) if run.approver is None else (run.signer, run.approver)


def verified_licence(run: Run, signer: Credential | None, approver: Credential | None = None) -> RunLicence:
    """Return the licence of a run, if all who must have signed it.

    In production that are two people, but for a run that was only proposed and so never admitted anything.
    Of which realm it is, is another question.

    Raises:
        errors.IntegrityFailure: a signature, a signer, the id or the row's quantity is not the licence's.
    """
    try:
        licence = RunLicence.decode(run.document)
    except errors.MalformedRequest as cause:
        raise errors.IntegrityFailure(
            f"the licence of run {run.id} is not what was signed: {cause}"
        ) from cause
    if signer is None or signer.client != licence.opened_by:
        raise errors.IntegrityFailure(f"run {run.id} is not signed by {licence.opened_by}")
    _require_signed(run, signer, run.signature, licence)
    if run.approver is not None:
        if approver is None or run.approval is None:
            raise errors.IntegrityFailure(f"run {run.id} is not signed by a second person")
        _require_signed(run, approver, run.approval, licence)
        try:
            require_two(signer, approver)
        except errors.NotPermitted as cause:
            raise errors.IntegrityFailure(
                f"run {run.id} is not signed by a second person: {cause}"
            ) from cause
    elif licence.takes_two and not _never_opened(run):
        raise errors.IntegrityFailure(f"run {run.id} is {run.status} with one signature: it takes two")
    if licence.id != run.id or licence.quantity != run.quantity:
        raise errors.IntegrityFailure(f"run {run.id} contradicts its licence")
    return licence


def licence_of(realm: Realm, run: Run, signer: Credential | None, approver: Credential | None) -> RunLicence:
    """Return the licence of a run of this realm; see ``verified_licence``.

    Raises:
        errors.IntegrityFailure: also if it is another realm's.
    """
    licence = verified_licence(run, signer, approver)
    if licence.realm != realm.name or licence.environment != realm.environment:
        raise errors.IntegrityFailure(
            f"run {run.id} belongs to realm {licence.realm} ({licence.environment})"
        )
    return licence


def _require_signed(run: Run, credential: Credential, signature: bytes, licence: RunLicence) -> None:
    try:
        verify_signed(credential, signature, licence.encode())
    except (errors.MalformedRequest, errors.NotPermitted, errors.ProofFailed) as cause:
        raise errors.IntegrityFailure(
            f"the licence of run {run.id} is not what was signed: {cause}"
        ) from cause


def _never_opened(run: Run) -> bool:
    return run.status is RunStatus.PROPOSED or (run.status is RunStatus.CLOSED and run.admitted == 0)


class Runs:
    """The runs of a realm."""

    def __init__(
        self, realm: Realm, catalogue: Catalogue, elements: ElementCatalogue, rate: Rate | None = None
    ) -> None:
        """Know the runs of this realm, and no others, and the profiles their licences name.

        Args:
            realm: whose runs they are.
            catalogue: the profiles of certificates.
            elements: the profiles of secure elements.
            rate: how fast each run admits devices; None for as fast as they come.
        """
        self.realm = realm
        self._rate = rate
        self.catalogue = catalogue
        self.elements = elements
        self._contexts: dict[str, RunContext] = {}

    def context(self, run: str) -> UseCase[RunContext]:
        """Return what never changes about a run, for whoever issues under it.

        Raises:
            errors.NotFound: there is no such run.
            errors.IllegalTransition: it was proposed only.
            errors.IntegrityFailure: what is stored is not what was signed, or the profile has changed since.
            errors.Unavailable: this process was started before the run's profile was added.
        """
        found = yield from self.known(run)
        _ = found.templates
        return found

    def known(self, run: str) -> UseCase[RunContext]:
        """Return what never changes about a run, also when nothing more can be issued under it.

        What was issued before its profile changed can still be proved.

        Raises:
            errors.NotFound: there is no such run.
            errors.IllegalTransition: it was proposed only.
            errors.IntegrityFailure: what is stored is not what was signed.
        """
        found = self._contexts.get(run)
        if found is not None:
            return found
        facts: Facts = yield Look({Run: (run,)})
        row = facts.get(Run, run)
        if row is None:
            raise errors.NotFound(f"there is no run {run[:64]}")
        facts = yield Look({Credential: signers(row)})
        licence = self.verify(row, facts)
        if licence.takes_two and row.approver is None:
            raise errors.IllegalTransition(f"run {row.id} is proposed: a second operator opens it")
        found = yield from self.compile(licence)
        self._contexts[run] = found
        return found

    def verify(self, run: Run, facts: Facts) -> RunLicence:
        """Return the licence of a run, if operators of this realm signed it.

        Args:
            run: its row.
            facts: with the credentials of its ``signers``.

        Raises:
            errors.IntegrityFailure: a signature, a signer, the realm or the row's quantity is not the
                licence's.
        """
        approver = None if run.approver is None else facts.get(Credential, run.approver)
        return licence_of(self.realm, run, facts.get(Credential, run.signer), approver)

    def compile(self, licence: RunLicence) -> UseCase[RunContext]:
        """Return the context of a licence.

        Raises:
            errors.NotFound: there is no such authority.
            errors.IntegrityFailure: an authority's constraints cannot be read.
        """
        chain: list[Authority] = yield from authority_chain(licence.authority)
        constraints = [one for authority in chain for one in constraints_of(authority)]
        compiled: tuple[Template, ...] | errors.Refusal
        try:
            issuer = issuer_of(chain)
            profiles = self.pinned(licence)
            constraints += (one for profile in profiles for one in profile.constraints)
            compiled = tuple(
                compile_template(profile, issuer, values_for(profile, licence)) for profile in profiles
            )
        except errors.Refusal as refusal:
            compiled = refusal
        equipment: AnyElementProfile | errors.Refusal | None
        try:
            equipment = self.pinned_element(licence)
        except errors.Refusal as refusal:
            equipment = refusal
        return RunContext(
            licence=licence,
            equipment=equipment,
            compiled=compiled,
            chain=tuple(authority.der for authority in chain[:-1]),
            authorities=tuple(authority.id for authority in chain),
            constraints=tuple(one for one in constraints if one.variable == VARIABLE),
        )

    def pinned(self, licence: RunLicence) -> tuple[Profile, ...]:
        """Return the profiles of a licence, if they are those that were signed for.

        Raises:
            errors.Unavailable: this process was started before a profile was added.
            errors.IntegrityFailure: one is another.
        """
        found: list[Profile] = []
        for name, pinned in licence.profiles:
            try:
                profile = self.catalogue.load(name)
            except errors.NotFound as cause:
                raise errors.Unavailable(
                    f"this process does not know profile {name} of run {licence.id}: start it again"
                ) from cause
            if pinned and profile.sha256 != pinned:
                raise errors.IntegrityFailure(
                    f"profile {name} is not the one that run {licence.id} was signed for: it has changed"
                )
            found.append(profile)
        return tuple(found)

    def pinned_element(self, licence: RunLicence) -> AnyElementProfile | None:
        """Return the profile of a licence's secure element, if it is the one that was signed for.

        Raises:
            errors.Unavailable: this process was started before the profile was added.
            errors.IntegrityFailure: it is another.
        """
        if not licence.element:
            return None
        try:
            profile = self.elements.load(licence.element)
        except errors.NotFound as cause:
            raise errors.Unavailable(
                f"this process does not know element {licence.element} of run {licence.id}: start it again"
            ) from cause
        if profile.sha256 != licence.element_sha256:
            raise errors.IntegrityFailure(
                f"element {profile.name} is not the one that run {licence.id} was signed for: it has changed"
            )
        return profile

    def admitting(self, facts: Facts, context: RunContext, client: Client, at: datetime) -> Run:
        """Return the run's row if it admits devices from this client at this moment.

        Raises:
            errors.IllegalTransition: it is closed, or this is not its time.
            errors.IntegrityFailure: it is gone, or its quantity is not the licence's.
            errors.NotPermitted: the station is not allowed on it, or it is closed at this time.
            errors.RateLimited: it admits devices faster than any run may.
        """
        licence = context.licence
        run = facts.get(Run, licence.id)
        if run is None:
            raise errors.IntegrityFailure(f"run {licence.id} is gone")
        if run.quantity != licence.quantity:
            raise errors.IntegrityFailure(f"run {run.id} contradicts its licence")
        require_going(run, licence, at)
        if at < licence.not_before:
            raise errors.IllegalTransition(f"run {run.id} opens at {time_text(licence.not_before)}")
        self.working(licence, client)
        require_open([facts.get(Exposure, exposure_id(Exposed.RUN, run.id))], at)
        if self._rate is not None:
            name = bucket_of("run", run.id)
            facts.put(take(facts.get(Bucket, name), name, self._rate, at))
        return run

    def admitting_reads(self, run: str) -> dict[type, Sequence[str]]:
        """Return what ``admitting`` is going to look at."""
        reads: dict[type, Sequence[str]] = {Run: (run,), Exposure: (exposure_id(Exposed.RUN, run),)}
        return reads if self._rate is None else reads | {Bucket: (bucket_of("run", run),)}

    def working(self, licence: RunLicence, client: Client) -> None:
        """Refuse a station that the run does not allow, or whose own certificate is for other runs."""
        require_station(licence, client.role, client.name)
        if client.runs and licence.id not in client.runs.split(","):
            raise errors.NotPermitted(f"{client.id} may work on {client.runs} only, not on run {licence.id}")

    # --- lists, and the end
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
            decide = partial(_decide_import, caller, keys, entries)
            yield from decided(caller, "import-list", imported, decide, {AllowedDevice: keys})
        return allow_list

    def close(self, caller: Caller, run: str, reason: str) -> UseCase[Run]:
        """Close a run, or withdraw a proposed one; what was issued under it may still be proved.

        Raises:
            errors.NotFound: there is no such run.
            errors.IllegalTransition: it is closed already.
        """

        def decide(facts: Facts, at: datetime) -> Decision[Run]:
            live_client(facts, caller, Capability.CLOSE_RUN, at)
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

        return (yield from decided(caller, "close-run", {"run": run[:64]}, decide, {Run: (run,)}))


def _decide_import(
    caller: Caller,
    keys: Sequence[str],
    entries: Sequence[tuple[str, Mapping[str, Any]]],
    facts: Facts,
    at: datetime,
) -> Decision[None]:
    live_client(facts, caller, Capability.OPEN_RUN, at)
    for key in keys:
        if facts.get(AllowedDevice, key) is None:
            facts.put(AllowedDevice(id=key))
    return Decision(None, entries)


def check_scope(facts: Facts, client: Client, context: RunContext, device: str) -> None:
    """Refuse a device that the run's list or the client's own certificate does not cover (SPEC C9)."""
    allow_list = context.licence.allow_list
    if allow_list is not None and facts.get(AllowedDevice, AllowedDevice.key(allow_list, device)) is None:
        raise errors.PolicyRefused(
            "hardware-id-is-listed", f"{device} is not on the list of run {context.licence.id}"
        )
    if client.role not in (Role.BOOTSTRAP, Role.SHARED, Role.DEVICE):
        return
    if client.hardware_id is not None and client.hardware_id != device:
        raise errors.NotPermitted(f"{client.id} may provision {client.hardware_id} only, not {device}")
    if client.run is None:
        return
    # A shared credential brings in so many devices; a bootstrap one its own, or those that a list names.
    unlisted = allow_list is None and client.role is Role.BOOTSTRAP and client.hardware_id is None
    if client.run != context.licence.id or unlisted:
        raise errors.NotPermitted(f"{client.id} may provision only the devices that run {client.run} lists")


def check_sees(facts: Facts, client: Client, licence: RunLicence) -> None:
    """Refuse a bootstrap credential a look at a run under which it may provision nothing (SPEC C9).

    Args:
        facts: with the line of the run's list for the credential's device, where there are both.
        client: who asks.
        licence: of the run.

    Raises:
        errors.NotPermitted: says what the credential is for.
    """
    if client.role is not Role.BOOTSTRAP:
        return
    if client.run is not None and client.run != licence.id:
        raise errors.NotPermitted(f"{client.id} is for run {client.run} only")
    device, allow_list = client.hardware_id, licence.allow_list
    if device is None:
        return
    listed = allow_list is None or facts.get(AllowedDevice, AllowedDevice.key(allow_list, device)) is not None
    if device.partition(":")[0] != licence.hardware_id.kind or not listed:
        raise errors.NotPermitted(f"{client.id} is for {device} only, which run {licence.id} is not for")
