"""Stations that come by themselves: invited with a one-time code, certified for a key they made (SPEC C2).

The code says who may come and is the only thing a newcomer has to show; the record has its SHA-256.  Whoever
guesses pays from two buckets, one of its own address and one of everybody's, so that 2**128 codes cannot be
tried and the refusals cannot fill a disk.  A used code gives the same certificate again, to the same key, as
long as the code is good: an answer can be lost.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from birthmark import errors
from birthmark.floor.authorities import Authority
from birthmark.floor.clients import CAPABILITIES, Capability, Client, ClientStatus, Credential, Role
from birthmark.floor.exposure import Exposed, Exposure, Plane, exposure_id, require_open
from birthmark.floor.invitations import (
    CODE_OCTETS,
    LONGEST_INVITATION,
    MOST_HOURS,
    Invitation,
    invitation_id,
    redeem,
    require_good,
)
from birthmark.floor.limits import Bucket, Rate, bucket_of, take
from birthmark.ledger.entry import time_text
from birthmark.pki.certificates import Certificate
from birthmark.pki.csr import vet
from birthmark.pki.profiles import Catalogue
from birthmark.ports import Act, Clock, Committed, Decision, Entropy, Facts, Look, UseCase
from birthmark.secret import SecretBytes
from birthmark.services.acts import ANONYMOUS, Caller, decided, live_client, outcomes, record_refusal, refuse
from birthmark.services.authorise import Authorise, Enrolled, Enrolment, judge_enrolment, put_enrolled
from birthmark.services.runs import authority_chain

__all__ = ["Guest", "Invitations"]

EVERYBODY = "everybody"
_SHORTEST = timedelta(minutes=1)
_JOIN = "join"
_EXPOSURE = exposure_id(Exposed.PLANE, Plane.ENROLMENT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """A station somebody invites."""

    name: str
    site: str
    line: str
    authority: str
    runs: tuple[str, ...] = ()
    """The runs it may work on, whichever licences name it; none for all of those."""
    life: timedelta = timedelta(minutes=30)
    """Of the code."""
    hours: int = 72
    """Of its certificates."""

    def __post_init__(self) -> None:
        """Refuse times that make no sense."""
        if not _SHORTEST <= self.life <= LONGEST_INVITATION:
            raise errors.MalformedRequest(
                f"a code is good for at least a minute and at most {LONGEST_INVITATION.days} days"
            )
        if not 1 <= self.hours <= MOST_HOURS:
            raise errors.MalformedRequest(f"a station's certificate is good for 1 to {MOST_HOURS} hours")


class Invitations:
    """The use cases by which a station gets in without anybody carrying a key to it."""

    def __init__(
        self,
        authorise: Authorise,
        clock: Clock,
        entropy: Entropy,
        catalogue: Catalogue,
        organization: str,
        rates: tuple[Rate, Rate],
    ) -> None:
        """Certify as ``authorise`` does; ``rates`` are those of everybody, and of one address."""
        self._authorise = authorise
        self._clock = clock
        self._entropy = entropy
        self._catalogue = catalogue
        self._organization = organization
        self._everybody, self._address = rates

    def invite(self, caller: Caller, guest: Guest) -> UseCase[tuple[SecretBytes, Invitation]]:
        """Make a code and put its hash on record; the code is nowhere else.

        Raises:
            errors.NotFound: there is no such authority.
            errors.IllegalTransition: the name is taken or was revoked, or the authority does not issue.
            errors.NotPermitted: the caller may not let stations in.
        """
        code = SecretBytes(self._entropy.token(CODE_OCTETS))
        said: dict[str, Any] = {
            "client": f"{Role.STATION}:{guest.name}",
            "site": guest.site,
            "line": guest.line,
            "runs": ",".join(guest.runs),
            "authority": guest.authority,
            "hours": guest.hours,
        }
        newcomer = self._enrolment(guest, b"")

        def decide(facts: Facts, at: datetime) -> Decision[Invitation]:
            live_client(facts, caller, Capability.ENROL_STATION, at)
            judge_enrolment(facts, newcomer, at)
            invitation = Invitation(
                id=invitation_id(code),
                client=newcomer.client,
                site=guest.site,
                line=guest.line,
                runs=",".join(guest.runs),
                authority=guest.authority,
                invited_by=caller.client.id,
                hours=guest.hours,
                expires_at=at + guest.life,
                certificate=None,
            )
            facts.put(invitation)
            entry = {"invitation": invitation.id, **said, "expires_at": time_text(invitation.expires_at)}
            return Decision(invitation, [("station-invited", entry)])

        invitation = yield from decided(caller, "invite", said, decide, {Authority: (guest.authority,)})
        return code, invitation

    def join(self, code: SecretBytes, csr: bytes, address: str) -> UseCase[Enrolled]:
        """Let the station in that a code invites, or answer it once more.

        Args:
            code: 16 octets.
            csr: PKCS #10 (DER or PEM) of the key the station made; its names decide nothing.
            address: where it came from, for its bucket.

        Raises:
            errors.Unauthenticated: the code is not good, was used with another key, or whoever invited may
                not let stations in any more.
            errors.MalformedRequest: the request is none.
            errors.PolicyRefused: its key is none the profile allows.
            errors.RateLimited: too many codes were tried of late, from this address or altogether.
        """
        invitation = yield from self._knock(code, address)
        said = {"client": invitation.client, "invitation": invitation.id}
        try:
            allowed = self._catalogue.load(Role.STATION.kind).subject_key_algorithms
            spki = vet(csr, allowed=allowed).subject_public_key_info
            if invitation.certificate is not None:
                return (yield from _again(invitation, spki))
            enrolment = self._enrolment(_guest(invitation), spki)
            chain, certificate = yield from self._authorise.certify(enrolment)
        except errors.Refusal as refusal:
            if not refusal.retryable:
                yield from record_refusal(ANONYMOUS, _JOIN, said, refusal)
                refusal.recorded = True
            raise

        def decide(facts: Facts, at: datetime) -> Decision[Client | Invitation]:
            current = facts.get(Invitation, invitation.id)
            if current is not None and current.certificate is not None:
                return Decision(current)  # the same station, asking twice at once
            now = redeem(_invited(facts, invitation.id, at), at)
            judge_enrolment(facts, enrolment, at)
            decision = put_enrolled(facts, enrolment, certificate, at)
            facts.put(replace(now, certificate=certificate.serial_hex))
            redeemed = {**said, "certificate": certificate.serial_hex, "invited_by": now.invited_by}
            return Decision(decision.answer, [*decision.entries, ("invitation-redeemed", redeemed)])

        committed: list[Committed[Client | Invitation]] = yield [
            Act(
                actor=invitation.client,
                decide=decide,
                refuse=refuse(None, _JOIN, said),
                reads={
                    Invitation: (invitation.id,),
                    Authority: (invitation.authority,),
                    Client: (invitation.invited_by, invitation.client),
                    Exposure: (_EXPOSURE,),
                },
            )
        ]
        (answer,) = outcomes(committed)
        if isinstance(answer, Invitation):
            return (yield from _again(answer, spki))
        return Enrolled(
            client=answer,
            certificate=certificate,
            chain=tuple(authority.der for authority in chain[:-1]),
        )

    def _knock(self, code: SecretBytes, address: str) -> UseCase[Invitation]:
        """Pay for the attempt, and return the invitation if it is good now; it may be used up."""
        name = invitation_id(code)
        buckets = {
            bucket_of(Plane.ENROLMENT, address): self._address,
            bucket_of(Plane.ENROLMENT, EVERYBODY): self._everybody,
        }

        def decide(facts: Facts, at: datetime) -> Decision[Invitation]:
            _pay(facts, buckets, at)
            return Decision(_invited(facts, name, at))

        committed: list[Committed[Invitation]] = yield [
            Act(
                actor=ANONYMOUS,
                decide=decide,
                refuse=_refuse_knock(buckets, address),
                reads={Invitation: (name,), Bucket: tuple(buckets), Exposure: (_EXPOSURE,)},
            )
        ]
        return outcomes(committed)[0]

    def _enrolment(self, guest: Guest, spki: bytes) -> Enrolment:
        return Enrolment(
            role=Role.STATION,
            name=guest.name,
            subject_public_key_info=spki,
            authority=guest.authority,
            variables={"organization": self._organization, Role.STATION.kind: guest.name},
            site=guest.site,
            line=guest.line,
            runs=guest.runs,
            not_after=self._clock.now() + timedelta(hours=guest.hours),
        )


def _invited(facts: Facts, name: str, at: datetime) -> Invitation:
    """Return the invitation if it, the plane and whoever gave it are good now; it may be used up."""
    require_open([facts.get(Exposure, _EXPOSURE)], at)
    invitation = require_good(facts.get(Invitation, name), at)
    host = facts.get(Client, invitation.invited_by)
    if (
        host is None
        or host.status is not ClientStatus.ACTIVE
        or Capability.ENROL_STATION not in CAPABILITIES[host.role]
    ):
        raise errors.Unauthenticated("whoever gave this code may let nobody in any more: ask for a new one")
    return invitation


def _guest(invitation: Invitation) -> Guest:
    return Guest(
        name=invitation.client.partition(":")[2],
        site=invitation.site,
        line=invitation.line,
        authority=invitation.authority,
        runs=tuple(run for run in invitation.runs.split(",") if run),
        hours=invitation.hours,
    )


def _again(invitation: Invitation, spki: bytes) -> UseCase[Enrolled]:
    """Return what this code was redeemed for, to whoever has the same key."""
    serial = invitation.certificate or ""
    facts: Facts = yield Look({Credential: (serial,), Client: (invitation.client,)})
    credential, client = facts.get(Credential, serial), facts.get(Client, invitation.client)
    if credential is None or client is None:
        raise errors.IntegrityFailure(f"certificate {serial} of {invitation.client} is gone")
    certificate = Certificate.from_der(credential.der)
    if certificate.subject_public_key_info != spki:
        raise errors.Unauthenticated("this code was used already: ask for a new one")
    if ClientStatus.REVOKED in (client.status, credential.status):
        raise errors.Unauthenticated(f"{client.id} was revoked")
    chain: list[Authority] = yield from authority_chain(credential.authority)
    return Enrolled(
        client=client, certificate=certificate, chain=tuple(authority.der for authority in chain[:-1])
    )


def _pay(facts: Facts, buckets: Mapping[str, Rate], at: datetime) -> None:
    for name, rate in buckets.items():
        facts.put(take(facts.get(Bucket, name), name, rate, at))


def _refuse_knock(
    buckets: Mapping[str, Rate], address: str
) -> Callable[[Facts, datetime, errors.Refusal], Decision[errors.Refusal]]:
    recorded = refuse(None, _JOIN, {"address": address})

    def decide(facts: Facts, at: datetime, refusal: errors.Refusal) -> Decision[errors.Refusal]:
        _pay(facts, buckets, at)
        return recorded(facts, at, refusal)

    return decide
