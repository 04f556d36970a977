"""What a ceremony has come to so far, each of its events judged against the file (SPEC A1 to A5).

``Progress`` takes events (``ceremony_events``) in their order and believes none: a key must have the
attributes the file wants, a certificate must be octet for octet the one the file orders, but for its serial
number and its time, and an authority must stay within the licence of the one above.  The same judgement meets
what was made a moment ago, what another machine made, what an interrupted ceremony left, and what an auditor
reads years later.  What is wrong with an event is a refusal; any other exception is our own mistake.

Making things is ``ceremonies``' business; nothing here touches a key.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from birthmark import errors
from birthmark.floor.authorities import (
    Authority,
    AuthorityKind,
    AuthorityStatus,
    Custody,
    require_within,
)
from birthmark.floor.ceremonies import (
    ITSELF,
    SERVICE,
    AcceptKey,
    Ceremony,
    Certify,
    CrossCertify,
    GenerateKey,
    ImportAuthority,
    KeyStep,
    Licence,
    Retire,
    SignCRL,
    Step,
    attendance_message,
    require_quorum,
)
from birthmark.pki import lint
from birthmark.pki.certificates import Certificate, TBSCertificate
from birthmark.pki.constraints import constraint_tables, constraints_text, parse_constraint
from birthmark.pki.issuance import build_reference, build_root
from birthmark.pki.issuer import Issuer
from birthmark.pki.keys import KeyLabel
from birthmark.pki.lint import permit
from birthmark.pki.profiles import Profile
from birthmark.services.ceremony_events import (
    Event,
    HandoverEvent,
    IntentEvent,
    KeyOutcome,
    SessionEvent,
    StepEvent,
    read_event,
)
from birthmark.services.ceremony_handover import REHEARSAL, Stays
from birthmark.services.ceremony_judgement import (
    not_ordered,
    require_authority,
    require_demanded,
    require_listed,
    require_names_within,
    require_ordered,
    require_own_key,
    require_signature,
    require_signed,
    require_unmarked,
)
from birthmark.services.ceremony_keys import KeyMade

__all__ = [
    "Known",
    "Loader",
    "Progress",
    "Session",
]

Loader = Callable[[str], Profile]
"""Returns the profile of a name, or raises ``errors.NotFound``."""
_RESERVED = ("environment_mark", "realm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What there was before the ceremony."""

    authorities: Mapping[str, Authority] = field(default_factory=dict)
    stores: Mapping[str, str] = field(default_factory=dict)
    """Key label to the store that holds the key: ``service``, or the name of an offline store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Who attended, once."""

    at: datetime
    place: str
    present: tuple[str, ...]


class Progress:
    """A ceremony, as far as it has come."""

    def __init__(
        self,
        ceremony: Ceremony,
        known: Known,
        load: Loader,
        *,
        rehearsal: bool = False,
        lines: Mapping[str, bytes] | None = None,
        profiles: Mapping[str, str] | None = None,
    ) -> None:
        """Begin.

        Args:
            ceremony: what the file orders.
            known: what there was before.
            load: finds profiles.
            rehearsal: keys of before are stood in for, so signatures with them are not looked at.
            lines: CRL entries (DER) by authority, where they can be asked; None where they cannot.
            profiles: SHA-256 of the profiles the ceremony used, for one of long ago: a certificate whose
                profile is another now is not built again, and is named in ``unjudged``.
        """
        self.ceremony = ceremony
        self.known = known
        self.authorities: dict[str, Authority] = dict(known.authorities)
        self.keys: dict[str, KeyMade] = {}
        self.certificates: dict[str, bytes] = {}
        """By name, in the order of the steps; DER."""
        self.crls: dict[str, bytes] = {}
        """By authority; DER."""
        self.replaced: dict[str, str] = {}
        """Authority to the one that takes over from it."""
        self.retired: dict[str, str] = {}
        """Authority to reason."""
        self.sessions: list[Session] = []
        self.intended: set[str] = set()
        """Labels of keys that were about to be made."""
        self.events: list[Event] = []
        self.unjudged: list[str] = []
        self.profiles: dict[str, str] = dict(profiles or {})
        """SHA-256 of the profiles in use, by name."""
        self._load = load
        self._rehearsal = rehearsal
        self._lines = lines
        self._place = ""
        self._at: dict[str, datetime] = {}
        """Time of the last event by place: two machines' clocks need not agree."""
        self._next = 0
        self._stays = Stays(ceremony)

    @property
    def number(self) -> int:
        """How many steps are done."""
        return self._next

    @property
    def current(self) -> Step | None:
        """The step that is to be done, or None when all are."""
        steps = self.ceremony.steps
        return steps[self._next] if self._next < len(steps) else None

    @property
    def established(self) -> tuple[Authority, ...]:
        """The authorities that the ceremony makes or changes, in the order of the steps."""
        made = [step.authority for step in self.ceremony.steps if isinstance(step, Certify | ImportAuthority)]
        return tuple(self.authorities[name] for name in made if name in self.authorities)

    @property
    def attended(self) -> tuple[str, ...]:
        """Everybody who attended, sorted."""
        return tuple(sorted({person for session in self.sessions for person in session.present}))

    # --- events ---

    def take(self, event: Event) -> None:
        """Take in an event, if it is what the file wants next.

        Raises:
            errors.MalformedRequest: it is none.
            errors.NotPermitted: too few custodians attended, or an authority would reach too far.
            errors.PolicyRefused: something is not as the file orders it (rule ``as-ordered``), or breaks a
                rule of the linter or of a profile.
            errors.ProofFailed: a custodian did not sign, or what was made elsewhere is unsigned.
            errors.IllegalTransition: something exists that may not, or does not that must.
        """
        read = read_event(event, self.current)
        place = read.place if isinstance(read, SessionEvent) else self._place
        if read.at < self._at.get(place, read.at):
            raise errors.MalformedRequest("an event of a ceremony is dated before the one before it")
        match read:
            case SessionEvent():
                self._take_session(read)
                self._stays.begin(event, read)
            case HandoverEvent():
                self._stays.close(read)
            case IntentEvent() if read.step == self._next and self._stays.under_way:
                self.intended.add(self._key_step().label)
            case StepEvent() if read.step == self._next and self._stays.under_way:
                self._take_step(read.outcome, read.at)
                self._next += 1
            case _:
                raise self._out_of_place(event["event"])
        if isinstance(read, IntentEvent | StepEvent):
            self._stays.add(event)
        self._place, self._at[place] = place, read.at
        self.events.append(event)

    def handover_message(self, context: str) -> bytes:
        """Return what those who attend sign before their events leave them; see ``Stays.message``."""
        return self._stays.message(context)

    def require_complete(self) -> None:
        """Refuse a ceremony with a step left, or with something made offline that nobody signed.

        Raises:
            errors.IntegrityFailure: a step is left.
            errors.ProofFailed: it is unsigned.
        """
        if self.current is not None:
            raise errors.IntegrityFailure(f"the record ends before step {self.number + 1}")
        self._stays.require_closed()

    def _out_of_place(self, kind: str) -> errors.MalformedRequest:
        return errors.MalformedRequest(f"no event {kind!r} belongs after step {self._next}")

    def _key_step(self) -> KeyStep:
        step = self.current
        if not isinstance(step, KeyStep):
            raise errors.MalformedRequest(f"step {self._next + 1} makes no key")
        return step

    def _take_session(self, event: SessionEvent) -> None:
        if (event.place == REHEARSAL) != self._rehearsal:
            raise errors.MalformedRequest("a rehearsal is no ceremony")
        self._stays.require_may_begin(event.place)
        present: list[str] = []
        for answer in event.attendances:
            person = self.ceremony.custodian(answer.custodian)
            if len(answer.challenge) != 32:
                raise errors.MalformedRequest("a custodian's challenge has 32 octets")
            message = attendance_message(self.ceremony, person.id, answer.reviewed, answer.challenge)
            if not self._rehearsal:
                require_signature(person.subject_public_key_info, answer.signature, message, person.id)
            present.append(person.id)
        require_quorum(self.ceremony, present)
        people = tuple(sorted(set(present)))
        self.sessions.append(Session(at=event.at, place=event.place, present=people))

    def _take_step(self, outcome: KeyOutcome | bytes | None, at: datetime) -> None:
        match self.current, outcome:
            case (GenerateKey() | AcceptKey()) as step, KeyOutcome() as key:
                self._take_key(step, key, at)
            case Certify() as step, bytes() as octets:
                self._take_certificate(step, octets, at)
            case CrossCertify() as step, bytes() as octets:
                self._take_cross(step, octets, at)
            case ImportAuthority() as step, None:
                self._establish(self._imported(step), at)
                self.certificates[step.authority] = step.certificate
            case SignCRL() as step, bytes() as octets:
                self._take_crl(step, octets, at)
            case Retire() as step, None:
                found = self.authority(step.authority)
                if found.status is AuthorityStatus.RETIRED:
                    raise errors.IllegalTransition(f"authority {found.id} is retired already")
                self.authorities[found.id] = replace(found, status=AuthorityStatus.RETIRED)
                self.retired[found.id] = step.reason
            case _:
                raise self._out_of_place("step")

    # --- keys ---

    def _take_key(self, step: KeyStep, outcome: KeyOutcome, at: datetime) -> None:
        if step.label not in self.intended:
            raise errors.MalformedRequest(f"nobody said before that the key {step.label} would be made")
        if step.label in self.keys or step.label in self.known.stores:
            raise errors.IllegalTransition(f"there is a key {step.label} already: a label names one for good")
        made = KeyMade(
            step=step,
            public=outcome.public,
            attributes=outcome.attributes,
            shares=outcome.shares,
            at=at,
        )
        findings = made.findings(self.ceremony.id, rehearsal=self._rehearsal)
        if findings:
            not_ordered(f"the key {step.label}", "; ".join(findings))
        self.keys[step.label] = made

    def store_of(self, label: str) -> str:
        """Return which store holds a key, made in this ceremony or before.

        Raises:
            errors.NotFound: there is no such key.
        """
        ordered = self.ceremony.keys.get(label)
        store = ordered.store if ordered is not None else self.known.stores.get(label)
        if store is None:
            raise errors.NotFound(f"there is no key {label}: no step makes it, and no authority has it")
        return store

    def public_of(self, label: str) -> bytes:
        """Return the public key of a label (DER).

        Raises:
            errors.NotFound: the key was not made yet, or there is none.
        """
        if label in self.keys:
            return self.keys[label].public
        for authority in self.authorities.values():
            if authority.key_label == label:
                return Certificate.from_der(authority.der).subject_public_key_info
        raise errors.NotFound(f"there is no key {label} before step {self._next + 1}")

    # --- certificates ---

    def authority(self, name: str) -> Authority:
        """Return an authority of before, or of an earlier step.

        Raises:
            errors.NotFound: there is none.
        """
        found = self.authorities.get(name)
        if found is None:
            raise errors.NotFound(f"there is no authority {name[:64]} before step {self._next + 1}")
        return found

    def issuer_of(self, step: Certify | CrossCertify) -> Authority | None:
        """Return the authority that is to sign, or None for a root."""
        return None if step.issuer == ITSELF else self.authority(step.issuer)

    def subject_key(self, step: Certify | CrossCertify) -> KeyLabel:
        """Return the label of the key that is to be certified."""
        if isinstance(step, Certify):
            return step.key
        return KeyLabel(self.authority(step.authority).key_label)

    def order(self, step: Certify | CrossCertify, serial_number: int, not_before: datetime) -> TBSCertificate:
        """Return the certificate that a step orders, not linted.

        Raises:
            errors.PolicyRefused: a variable breaks a rule or does not belong there, or the issuer is of the
                wrong kind.
            errors.MalformedRequest: a variable is missing or does not fit.
        """
        if isinstance(step, Certify):
            require_own_key(step.key, self.public_of(step.key), self.authorities.values())
        profile, above = self._load(step.profile), self.issuer_of(step)
        values = self._values(step, profile)
        if not profile.is_ca:
            raise errors.PolicyRefused("profile", f"profile {profile.name} is not for authorities")
        spki = self.public_of(self.subject_key(step))
        if above is None:
            return build_root(
                profile,
                key_label=self.subject_key(step),
                serial_number=serial_number,
                subject_public_key_info=spki,
                not_before=not_before,
                not_after=step.not_after,
                variables=values,
            )
        ordered = build_reference(
            profile,
            self.signer(above),
            serial_number=serial_number,
            subject_public_key_info=spki,
            not_before=not_before,
            not_after=None if above.custody is Custody.FOREIGN else step.not_after,
            variables=values,
            constraints=[parse_constraint(entry) for entry in constraint_tables(above.constraints)],
        )
        require_names_within(ordered)
        return ordered

    def signer(self, authority: Authority) -> Issuer:
        """Return an authority as the one who signs, with the limits of all that are above it."""
        above: list[bytes] = []
        upper = authority
        while upper.issuer != upper.id:
            upper = self.authority(upper.issuer)
            above.append(upper.der)
        return Issuer.from_certificate(
            KeyLabel(authority.key_label), authority.der, above=above, profile=authority.profile or None
        )

    def _values(self, step: Certify | CrossCertify, profile: Profile) -> Mapping[str, str]:
        for name in step.variables:
            if name in _RESERVED:
                raise errors.PolicyRefused("variables", f"{name} is the realm's, not the file's to choose")
            if name not in profile.variables:
                raise errors.PolicyRefused("variables", f"profile {profile.name} does not use {name}")
        return {
            **step.variables,
            "environment_mark": self.ceremony.mark,
            "realm": self.ceremony.realm,
        }

    def _judge(self, step: Certify | CrossCertify, octets: bytes, at: datetime) -> Certificate:
        """Return a certificate that is the one the step orders."""
        name = step.authority if isinstance(step, Certify) else step.name
        found, above = Certificate.from_der(octets), self.issuer_of(step)
        profile = self._load(step.profile).sha256
        if self.profiles.setdefault(step.profile, profile) != profile:
            self.unjudged.append(name)
        elif above is not None and above.custody is Custody.FOREIGN:
            until = [moment for moment in (step.not_after, getattr(step, "licence", _NONE).ends_at) if moment]
            require_demanded(f"the certificate of {name}", found, self.order(step, 1 << 80, at), at, until)
        else:
            ordered = permit(self.order(step, found.serial_number, found.not_before)).tbs
            require_ordered(f"the certificate of {name}", found, ordered, at)
        if not self._rehearsal:
            signer = octets if above is None else above.der
            require_signed(octets, signer, f"the certificate of {name}", step.issuer)
        return found

    def subject_of(self, step: Certify | CrossCertify, at: datetime) -> bytes:
        """Return the name a step orders (DER)."""
        return lint.read(self.order(step, 1 << 80, at).der).subject

    def _take_certificate(self, step: Certify, octets: bytes, at: datetime) -> None:
        require_own_key(step.key, self.public_of(step.key), self.authorities.values())
        found = self._judge(step, octets, at)
        store = self.store_of(step.key)
        self._establish(
            self._licensed(
                step.licence,
                id=step.authority,
                kind=step.kind,
                issuer=step.authority if step.issuer == ITSELF else step.issuer,
                custody=Custody.SERVICE if store == SERVICE else Custody.OFFLINE,
                key_label=str(step.key),
                profile=step.profile,
                certificate=found,
            ),
            at,
        )
        self.certificates[step.authority] = octets
        if step.replaces is not None:
            self._replace(step.replaces, self.authorities[step.authority])

    def _licensed(self, licence: Licence, *, certificate: Certificate, **fields: Any) -> Authority:
        ends_at = licence.ends_at or certificate.not_after
        if ends_at - timedelta(seconds=1) > certificate.not_after:
            raise errors.NotPermitted(
                f"authority {fields['id']} cannot issue until {ends_at:%Y-%m-%d}: its certificate ends"
                f" {certificate.not_after:%Y-%m-%d}"
            )
        for profile in [] if licence.profiles == "*" else licence.profiles.split(" "):
            self._load(profile)
        return Authority(
            der=certificate.der,
            owner=licence.owner,
            scope=licence.scope,
            profiles=licence.profiles,
            constraints=self._constraints(licence, fields["id"], fields["issuer"]),
            quota=licence.quota,
            ends_at=ends_at,
            status=AuthorityStatus.ACTIVE,
            issued=0,
            ceremony=self.ceremony.id,
            **fields,
        )

    def _constraints(self, licence: Licence, name: str, issuer: str) -> str:
        """Return the constraints of a licence after those of the authority above: they hold here, too."""
        above: list[Any] = [] if issuer == name else constraint_tables(self.authority(issuer).constraints)
        own = constraint_tables(licence.constraints)
        named = {parse_constraint(entry).rule: entry for entry in above}
        for entry in own:
            rule = parse_constraint(entry).rule
            if named.get(rule, entry) != entry:
                raise errors.NotPermitted(f"constraint {rule} of {name} is not that of {issuer}")
        return constraints_text(above + [entry for entry in own if entry not in above])

    def _imported(self, step: ImportAuthority) -> Authority:
        found = Certificate.from_der(step.certificate)
        require_authority(step.certificate, f"the certificate of {step.authority}")
        require_unmarked(self.ceremony, step)
        signer = step.certificate if step.issuer == ITSELF else self.authority(step.issuer).der
        require_signed(step.certificate, signer, f"the certificate of {step.authority}", step.issuer)
        return self._licensed(
            step.licence,
            id=step.authority,
            kind=step.kind,
            issuer=step.authority if step.issuer == ITSELF else step.issuer,
            custody=Custody.FOREIGN,
            key_label="",
            profile="",
            certificate=found,
        )

    def _establish(self, authority: Authority, at: datetime) -> None:
        if authority.id in self.authorities:
            raise errors.IllegalTransition(f"there is an authority {authority.id} already")
        if authority.issuer != authority.id:
            require_within(authority, self.authority(authority.issuer))
        elif authority.kind is not AuthorityKind.ROOT:
            raise errors.MalformedRequest(f"authority {authority.id} is no root and names itself")
        if authority.ends_at <= at:
            raise errors.MalformedRequest(f"authority {authority.id} would have ended already")
        self.authorities[authority.id] = authority

    def _replace(self, before: str, after: Authority) -> None:
        found = self.authority(before)
        if found.kind is not after.kind or found.status is not AuthorityStatus.ACTIVE:
            raise errors.IllegalTransition(
                f"authority {after.id} cannot take over from {found.id}, a {found.status} {found.kind}"
            )
        if found.successor is not None:
            raise errors.IllegalTransition(f"{found.successor} took over from {found.id} already")
        self.authorities[found.id] = replace(found, successor=after.id)
        self.replaced[found.id] = after.id

    def _take_cross(self, step: CrossCertify, octets: bytes, at: datetime) -> None:
        found, whose = self._judge(step, octets, at), self.authority(step.authority)
        if found.subject_name != Certificate.from_der(whose.der).subject_name:
            not_ordered(f"the certificate {step.name}", f"its subject is not {whose.id}'s")
        self.certificates[step.name] = octets

    # --- lists of revocations ---

    def lister(self, step: SignCRL) -> Authority:
        """Return the authority that is to sign a list, whose key somebody here has.

        One that is suspended or retired signs on: what it issued can still be revoked.

        Raises:
            errors.NotFound: there is no such authority.
            errors.NotPermitted: its key is somebody else's.
            errors.IllegalTransition: it was revoked, so nobody believes its lists.
        """
        found = self.authority(step.authority)
        if found.custody is Custody.FOREIGN:
            raise errors.NotPermitted(
                f"the key of authority {found.id} is somebody else's: it signs no list here"
            )
        if found.status is AuthorityStatus.REVOKED:
            raise errors.IllegalTransition(
                f"authority {found.id} is {found.status}: nobody believes its lists"
            )
        return found

    def _take_crl(self, step: SignCRL, octets: bytes, at: datetime) -> None:
        found = self.lister(step)
        signer = None if self._rehearsal else found.der
        require_listed(f"the CRL of {found.id}", octets, step, at, signer)
        lines = None if self._lines is None else self._lines.get(found.id, b"")
        if lines is not None and lines not in octets:
            not_ordered(f"the CRL of {found.id}", "a reason or a time in it is not the one on record")
        self.crls[found.id] = octets


_NONE = Licence(owner="", scope="*", profiles="*", constraints="[]", quota=None, ends_at=None)
