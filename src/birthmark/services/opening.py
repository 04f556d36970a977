"""Opening a run: licence judged, first article inspected, second person asked (SPEC A2, A6, C3, G2, K1).

A run is opened by the operator who signs its licence; in production that only proposes it, and another
operator, who signs the same document, opens it.  Before either is put on record the licence must be one that
can work: inside the scope of its authority and of all above, with values that keep every constraint, and
with a first article that no linter finds fault with.  What was tried and found is in the entry that opens it.

The commit decides again on what may change meanwhile: authorities, stations, time.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from birthmark import errors
from birthmark.element.catalogue import ElementCatalogue
from birthmark.element.profiles import ElementProfile
from birthmark.floor.authorities import Authority
from birthmark.floor.clients import Capability, Client, ClientStatus, Credential, Role
from birthmark.floor.devices import KeyOrigin
from birthmark.floor.hardware_ids import HardwareId
from birthmark.floor.key_assets import KeyAsset
from birthmark.floor.locations import crl_path
from birthmark.floor.revocations import Partitioning
from birthmark.floor.runs import AllowedDevice, Run, RunLicence, RunPurpose, RunStatus, require_authorised
from birthmark.floor.samples import VARIABLE, sample_hardware_id
from birthmark.floor.segments import is_segment
from birthmark.ledger.entry import ENTRY_LIMIT, canonical, time_text
from birthmark.pki.articles import article, subject_algorithms
from birthmark.pki.constraints import Constraint, NegativeTest, check, negative_tests
from birthmark.pki.profiles import Profile, ProfileKind
from birthmark.ports import Decision, Facts, Inspector, KeyStore, Look, Scan, UseCase
from birthmark.services.acts import Caller, decided, live_client
from birthmark.services.dialogues import check_objects, labels_of, object_variables, rehearse, require_assets
from birthmark.services.inspection import RULE, inspect_article
from birthmark.services.runs import (
    Runs,
    authority_chain,
    constraints_of,
    issuer_of,
    signers,
    values_for,
)
from birthmark.services.two_people import require_second, verify_signed

__all__ = ["OpenRuns"]

LONGEST_FIRMWARE = 128
_TESTS_SIZE = 24_576
"""Octets of negative tests that an entry takes in full; beyond that it has each rule's first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """A licence that can work, as far as anybody can tell before the commit."""

    authorities: tuple[str, ...]
    evidence: Mapping[str, Any] = field(repr=False)
    """What was inspected and tried, as the log takes it."""


class OpenRuns:
    """The use cases by which a run comes to admit devices."""

    def __init__(self, runs: Runs, inspector: Inspector, keys: KeyStore) -> None:
        """Open runs that ``runs`` will know, having their first articles inspected.

        Args:
            runs: of the realm.
            inspector: of first articles.
            keys: with the master keys of the key sets that are put into secure elements.
        """
        self._runs = runs
        self._inspector = inspector
        self._keys = keys

    def open(
        self, caller: Caller, licence: RunLicence, signature: bytes, *, sample: str | None = None
    ) -> UseCase[Run]:
        """Open a run under a licence its operator signed; in production, propose it.

        Args:
            caller: the operator whose licence it is.
            licence: what may be issued.
            signature: of the operator's key over ``licence.encode()``.
            sample: a hardware id for the first article, where none can be made up.

        Raises:
            errors.IllegalTransition: there is such a run already, or an authority above it does not issue.
            errors.NotPermitted: the licence is not this operator's, or an authority's scope does not cover
                it.
            errors.QuotaExhausted: its authority may not issue as many any more.
            errors.PolicyRefused: the licence cannot work: an impossible name, window, quantity, profile or
                station, a value that breaks a constraint, or a first article that is found fault with.
        """
        proposed = Run(
            id=licence.id,
            document=licence.encode(),
            signature=signature,
            signer=caller.credential.serial,
            status=RunStatus.PROPOSED,
            quantity=licence.quantity,
            admitted=0,
            released=0,
            held=0,
            scrapped=0,
        )
        ready: _Judged | errors.Refusal
        try:
            if licence.opened_by != caller.client.id:
                raise errors.NotPermitted(f"the licence is {licence.opened_by}'s, not {caller.client.id}'s")
            _require_signed(licence, caller, signature)
            ready = yield from self._judge(licence, sample)
        except errors.Refusal as refusal:
            ready = refusal
        decide = partial(_decide_open, caller, licence, proposed, ready)
        reads = _reads(licence.id, licence, ready)
        return (yield from decided(caller, "open-run", {"run": licence.id}, decide, reads))

    def approve(
        self, caller: Caller, run: str, signature: bytes, *, sample: str | None = None
    ) -> UseCase[Run]:
        """Open a run that another operator proposed.

        Args:
            caller: the second person.
            run: its id.
            signature: of the second person's key over the run's ``document``.
            sample: as for ``open``.

        Raises:
            errors.NotFound: there is no such run.
            errors.NotPermitted: it is the person who proposed it, under whatever name.
            errors.IllegalTransition: it is open or closed already, or who proposed it may not any more.
            errors.Refusal: as ``open`` does; everything is judged again.
        """
        facts: Facts = yield Look({Run: (run,)})
        row = facts.get(Run, run)
        licence: RunLicence | None = None
        ready: _Judged | errors.Refusal
        try:
            if row is None:
                raise errors.NotFound(f"there is no run {run[:64]}")
            facts = yield Look({Credential: signers(row)})
            licence = self._runs.verify(row, facts)
            _require_signed(licence, caller, signature)
            ready = yield from self._judge(licence, sample)
        except errors.Refusal as refusal:
            ready = refusal
        decide = partial(_decide_approve, caller, run, licence, signature, ready)
        reads = _reads(run, licence, ready)
        return (yield from decided(caller, "approve-run", {"run": run[:64]}, decide, reads))

    def _judge(self, licence: RunLicence, sample: str | None) -> UseCase[_Judged]:
        """Refuse a licence that cannot work, and return what shows that this one can."""
        self._check_licence(licence)
        profiles = self._check_profiles(licence)
        chain: list[Authority] = yield from authority_chain(licence.authority)
        require_authorised(licence, chain)
        for profile in profiles:
            _check_issuer(profile, chain[0])
        constraints = [one for profile in profiles for one in profile.constraints]
        constraints += (one for authority in chain for one in constraints_of(authority))
        constraints = list(dict.fromkeys(constraints))
        check(constraints, licence.variables)
        device = yield from self._device(licence, constraints, sample)
        tests = negative_tests(constraints, {**licence.variables, VARIABLE: device.text})
        rehearsed = yield from self._rehearse(licence, device.device)
        evidence = {
            **rehearsed,
            "hardware_id": device.device,
            "inspections": [self._inspect(licence, profile, chain, device) for profile in profiles],
            **_told(constraints, tests),
        }
        if len(canonical({**evidence, "licence": licence.encode().decode()})) > ENTRY_LIMIT - 4096:
            raise errors.TooLarge(f"what opening run {licence.id} comes to does not fit into a log entry")
        return _Judged(authorities=tuple(authority.id for authority in chain), evidence=evidence)

    def _device(
        self, licence: RunLicence, constraints: Sequence[Constraint], sample: str | None
    ) -> UseCase[HardwareId]:
        """Return a hardware id for the first article: one of the list if there is one."""
        if licence.allow_list is not None:
            prefix = AllowedDevice.key(licence.allow_list, "")
            listed: list[AllowedDevice] = yield Scan(kind=AllowedDevice, where={}, after=prefix, limit=1)
            if not listed or not listed[0].id.startswith(prefix):
                raise errors.PolicyRefused(
                    "allow-list", f"no list {licence.allow_list.sha256} of hardware ids was imported"
                )
            sample = listed[0].id.removeprefix(prefix).partition(":")[2]
        if sample is not None:
            device = licence.hardware_id.parse(sample)
            check(constraints, {VARIABLE: device.text})
            return device
        found = sample_hardware_id(licence.hardware_id, constraints)
        if found is None:
            raise errors.PolicyRefused(
                RULE, f"no {licence.hardware_id.kind} could be made up that the run would take: give a sample"
            )
        return found

    def _rehearse(self, licence: RunLicence, device: str) -> UseCase[Mapping[str, Any]]:
        """Make a key set for an element that there is not, as the run will for each of its own (SPEC D3).

        Raises:
            errors.PolicyRefused: the licence does not pin the element's profile (rule ``element``), or its
                keys cannot be made in this key store (``key-route`` and others).
            errors.NotFound: there is no such profile, or no such key.
        """
        if not licence.element:
            if licence.element_sha256:
                raise errors.PolicyRefused("element", "the licence pins an element's profile and names none")
            return {}
        profile = self._runs.elements.load(licence.element)
        if profile.sha256 != licence.element_sha256:
            raise errors.PolicyRefused(
                "element", f"the licence is for another profile {profile.name} than the one there is"
            )
        said = {"element": profile.name, "element_sha256": profile.sha256}
        if not isinstance(profile, ElementProfile):
            if len(licence.profiles) > 2 or KeyOrigin.BORN not in licence.origins:
                raise errors.PolicyRefused(
                    "element",
                    "a tpm makes its keys itself, and has one or two to certify: its identity key, and"
                    " its attestation key",
                )
            return said
        check_objects(profile, licence)
        labels = labels_of(profile)
        require_assets(self._keys, (yield Look({KeyAsset: labels})), labels)
        route = rehearse(self._keys, profile, device)
        return {**said, "master": profile.final.master, "scheme": str(profile.final.scheme), "route": route}

    def _inspect(
        self, licence: RunLicence, profile: Profile, chain: Sequence[Authority], device: HardwareId
    ) -> Mapping[str, Any]:
        """Make and inspect a first article.

        Dated at the run's last moment: what its authority can sign then, it can sign all the time.
        """
        issuer = issuer_of(chain)
        algorithm = subject_algorithms(profile, issuer)[0]
        values = {**values_for(profile, licence), VARIABLE: device.text}
        last = max(licence.not_before, licence.not_after - timedelta(seconds=1))
        certificate = article(profile, issuer, values, algorithm=algorithm, at=last)
        inspection = inspect_article(self._inspector, profile, chain[0].der, certificate, algorithm)
        inspection.require_accepted()
        return {"profile": profile.name, **inspection.document()}

    # --- the licence by itself
    # -----------------------------------------------------------------------------------

    def _check_licence(self, licence: RunLicence) -> None:
        """Refuse a licence under which nothing could ever be issued."""
        realm = self._runs.realm
        if not is_segment(licence.id):
            raise errors.PolicyRefused(
                "run",
                "a run is named by 1 to 64 of A-Z a-z 0-9 . _ - that do not begin with a dot, not"
                f" {licence.id[:64]!r}",
            )
        for name, text, shortest in (
            ("product", licence.product, 1),
            ("batch", licence.batch, 1),
            ("class", licence.device_class, 0),
            ("region", licence.region, 0),
            ("site", licence.site, 0),
        ):
            if not shortest <= len(text) <= 64 or not text.isprintable():
                raise errors.PolicyRefused(
                    name, f"a {name} is 1 to 64 printable characters, not {text[:64]!r}"
                )
        firmware = licence.firmware
        plain = firmware.isascii() and firmware.isprintable() and firmware == firmware.strip()
        if not plain or len(firmware) > LONGEST_FIRMWARE:
            raise errors.PolicyRefused(
                "firmware", f"firmware is named by up to {LONGEST_FIRMWARE} printable ASCII characters"
            )
        if licence.realm != realm.name or licence.environment != realm.environment:
            raise errors.PolicyRefused("realm", f"the licence is for {licence.realm} ({licence.environment})")
        if not 1 <= licence.quantity <= 100_000_000:
            raise errors.PolicyRefused(
                "quantity", f"a run makes 1 to 100000000 devices, not {licence.quantity}"
            )
        if licence.not_after <= licence.not_before:
            raise errors.PolicyRefused("window", "the run ends before it begins")
        if not licence.origins:
            raise errors.PolicyRefused("origins", "the run allows neither born nor delivered keys")
        if licence.purpose is RunPurpose.OPERATIONAL:
            _check_operational(licence)
        if licence.allow_list is not None and licence.allow_list.count < licence.quantity:
            raise errors.PolicyRefused(
                "quantity",
                f"the list holds {licence.allow_list.count} hardware ids, fewer than {licence.quantity}",
            )

    def _check_profiles(self, licence: RunLicence) -> tuple[Profile, ...]:
        if len(licence.further_profiles) != len(licence.further_sha256):
            raise errors.PolicyRefused("profile", "the licence does not pin every one of its profiles")
        names = [name for name, _ in licence.profiles]
        if len(set(names)) != len(names):
            raise errors.PolicyRefused("profile", "the licence names a profile twice")
        profiles = tuple(self._runs.catalogue.load(name) for name in names)
        for profile in profiles:
            _check_profile(profile)
        _check_variables(licence, profiles, self._runs.elements)
        _check_partitioning(licence, profiles)
        for profile, (_, pinned) in zip(profiles, licence.profiles, strict=True):
            if profile.sha256 != pinned:
                raise errors.PolicyRefused(
                    "profile",
                    f"the licence is for another profile {profile.name} than the one there is",
                )
        return profiles


def _check_operational(licence: RunLicence) -> None:
    """Refuse what only the line has: stations, elements, several certificates at once."""
    for what, there in (
        ("stations", licence.stations),
        ("an element", licence.element),
        ("further profiles", licence.further_profiles),
    ):
        if there:
            raise errors.PolicyRefused(
                "operational",
                f"an operational run has no {what.removeprefix('an ')}: devices ask by themselves",
            )


def _check_profile(profile: Profile) -> None:
    if profile.kind is not ProfileKind.DEVICE:
        whose = "authorities" if profile.is_ca else f"{profile.kind}s"
        raise errors.PolicyRefused("profile", f"profile {profile.name} is for {whose}, not devices")
    if VARIABLE not in profile.variables:
        raise errors.PolicyRefused(
            "profile", f"profile {profile.name} names no hardware_id: its certificates would name no device"
        )


def _check_issuer(profile: Profile, authority: Authority) -> None:
    if profile.issued_by and authority.profile not in profile.issued_by:
        raise errors.PolicyRefused(
            "issued-by",
            f"profile {profile.name} is issued by an authority made as {' or '.join(profile.issued_by)};"
            f" {authority.id} was made as {authority.profile or 'something foreign'}",
        )


def _check_variables(licence: RunLicence, profiles: Sequence[Profile], elements: ElementCatalogue) -> None:
    if VARIABLE in licence.variables:
        raise errors.PolicyRefused("variables", "hardware_id is each device's own, not the run's")
    names = " and ".join(profile.name for profile in profiles)
    required = frozenset[str]().union(*(profile.required_variables for profile in profiles))
    used = frozenset[str]().union(*(profile.variables for profile in profiles))
    if licence.element and isinstance(element := elements.load(licence.element), ElementProfile):
        asked = object_variables(element)
        required, used = required | asked, used | asked
    missing = sorted(required - licence.variables.keys() - {VARIABLE})
    unknown = sorted(licence.variables.keys() - used)
    if missing:
        raise errors.PolicyRefused("variables", f"profile {names} needs a value for {', '.join(missing)}")
    if unknown:
        raise errors.PolicyRefused("variables", f"profile {names} does not use {', '.join(unknown)}")


def _check_partitioning(licence: RunLicence, profiles: Sequence[Profile]) -> None:
    """Refuse a licence whose devices would be revoked on another CRL than their certificates name."""
    if licence.partitioning is Partitioning.NONE:
        return
    location = licence.variables.get("crl_url")
    if location is None or any(profile.crl_distribution_point is None for profile in profiles):
        raise errors.PolicyRefused(
            "partitioning",
            f"certificates of the run would name no CRL: there can be none of its {licence.partitioning}",
        )
    path = crl_path(licence.authority, licence.partition)
    if not location.endswith(f"/{path}"):
        raise errors.PolicyRefused(
            "partitioning", f"the CRL of partition {licence.partition} is at {path}, not at {location[:200]}"
        )


def _require_signed(licence: RunLicence, caller: Caller, signature: bytes) -> None:
    try:
        verify_signed(caller.credential, signature, licence.encode())
    except errors.ProofFailed as cause:
        raise errors.NotPermitted(
            f"the licence of run {licence.id} is not what was signed: {cause}"
        ) from cause


def _told(constraints: Sequence[Constraint], tests: Sequence[NegativeTest]) -> dict[str, Any]:
    """Return the negative tests as the log takes them; only each rule's first if they are very many."""
    documents = [
        {"rule": test.rule, "tried": test.tried, "refused_with": test.refused_with[:400]} for test in tests
    ]
    if len(canonical({"tests": documents})) > _TESTS_SIZE:
        documents = list({test["rule"]: test for test in reversed(documents)}.values())[::-1]
    return {
        "constraints": len(constraints),
        "negative_tests": documents,
        "negative_tests_done": len(tests),
    }


def _reads(
    run: str, licence: RunLicence | None, ready: _Judged | errors.Refusal
) -> dict[type, Sequence[str]]:
    reads: dict[type, Sequence[str]] = {Run: (run,)}
    if licence is not None:
        reads[Client] = (licence.opened_by, *_stations(licence))
    if isinstance(ready, _Judged):
        reads[Authority] = ready.authorities
    return reads


def _stations(licence: RunLicence) -> Iterable[str]:
    return (f"station:{name}" for name in licence.stations)


# --- the commit
# ----------------------------------------------------------------------------------------------------


def _decide_open(
    caller: Caller,
    licence: RunLicence,
    proposed: Run,
    ready: _Judged | errors.Refusal,
    facts: Facts,
    at: datetime,
) -> Decision[Run]:
    live_client(facts, caller, Capability.OPEN_RUN, at)
    if isinstance(ready, errors.Refusal):
        raise ready
    if facts.get(Run, proposed.id) is not None:
        raise errors.IllegalTransition(f"there is a run {proposed.id} already")
    _require_openable(facts, licence, ready, at)
    if licence.takes_two:
        proposed = replace(proposed, proposed_at=at)
        facts.put(proposed)
        return Decision(proposed, [("run-proposed", _entry(proposed))])
    run = replace(proposed, status=RunStatus.OPEN, opening=facts.next_leaf)
    facts.put(run)
    return Decision(run, [("run-opened", {**_entry(run), **ready.evidence})])


def _decide_approve(
    caller: Caller,
    run: str,
    licence: RunLicence | None,
    signature: bytes,
    ready: _Judged | errors.Refusal,
    facts: Facts,
    at: datetime,
) -> Decision[Run]:
    live_client(facts, caller, Capability.APPROVE_RUN, at)
    row = facts.get(Run, run)
    if row is not None and row.status is not RunStatus.PROPOSED:
        raise errors.IllegalTransition(f"run {run} is {row.status}, not proposed")
    if row is not None and licence is not None:
        proposer, what = facts.get(Credential, row.signer), f"run {run}"
        require_second(facts, caller.credential, proposer, Capability.OPEN_RUN, row.proposed_at, at, what)
    if isinstance(ready, errors.Refusal):
        raise ready
    if row is None or licence is None or row.document != licence.encode():
        raise errors.IntegrityFailure(f"run {run} is not the one that was proposed")
    _require_openable(facts, licence, ready, at)
    opened = replace(
        row,
        status=RunStatus.OPEN,
        approver=caller.credential.serial,
        approval=signature,
        opening=facts.next_leaf,
    )
    facts.put(opened)
    return Decision(opened, [("run-opened", {**_entry(opened), **ready.evidence})])


def _require_openable(facts: Facts, licence: RunLicence, ready: _Judged, at: datetime) -> None:
    """Refuse what has become impossible since the licence was judged."""
    if at >= licence.not_after:
        raise errors.PolicyRefused("window", f"the run ended at {time_text(licence.not_after)}")
    found = [facts.get(Authority, name) for name in ready.authorities]
    chain = [authority for authority in found if authority is not None]
    if len(chain) != len(found):
        raise errors.IntegrityFailure(f"an authority above run {licence.id} is gone")
    require_authorised(licence, chain)
    for name in licence.stations:
        station = facts.get(Client, f"{Role.STATION}:{name}")
        if station is None:
            raise errors.NotFound(f"there is no station {name}")
        if station.status is not ClientStatus.ACTIVE:
            raise errors.IllegalTransition(f"station {name} was revoked")
        if licence.site and station.site != licence.site:
            raise errors.NotPermitted(
                f"station {name} is at site {station.site or 'none'}, the run is for {licence.site}"
            )


def _entry(run: Run) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "run": run.id,
        "licence": run.document.decode(),
        "signature": run.signature.hex(),
        "signer": run.signer,
    }
    if run.approver is not None and run.approval is not None:
        entry |= {"approver": run.approver, "approval": run.approval.hex()}
    return entry
