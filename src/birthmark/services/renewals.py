"""A client's next certificate, asked for with the one it has (SPEC C2).

It is as long as the last one was, for a new key, from the authority that certified the last one or the one
that took over from it.  Who the client is does not change, and its other certificates stay good until they
end.
"""

from dataclasses import replace
from datetime import datetime, timedelta

from birthmark import errors
from birthmark.floor.authorities import Authority
from birthmark.floor.clients import Capability, Client, Credential
from birthmark.floor.limits import Bucket, Rate, bucket_of, take
from birthmark.pki.certificates import Certificate
from birthmark.pki.csr import vet
from birthmark.pki.profiles import Catalogue
from birthmark.ports import Clock, Decision, Facts, Look, Scan, UseCase
from birthmark.services.acts import Caller, admitted, decided, live_client, recorded
from birthmark.services.authorise import Authorise, Enrolled, Enrolment, judge_enrolment, put_enrolled
from birthmark.services.blastradius import PAGE

__all__ = ["Renewals"]

RENEWAL_RATE = Rate(per_minute=1, burst=10)
"""A certificate costs a signature of the authority and a row for ever."""
_REQUEST = "renew-self"


class Renewals:
    """The use case by which a client has a further certificate for itself."""

    def __init__(self, authorise: Authorise, clock: Clock, catalogue: Catalogue, organization: str) -> None:
        """Certify as ``authorise`` does."""
        self._authorise = authorise
        self._clock = clock
        self._catalogue = catalogue
        self._organization = organization

    def renew(self, caller: Caller, csr: bytes) -> UseCase[Enrolled]:
        """Certify a new key of the caller's.

        Args:
            caller: by the certificate it has.
            csr: PKCS #10 (DER or PEM) of the new key; its names decide nothing.

        Raises:
            errors.MalformedRequest: it is no request.
            errors.NotPermitted: the caller's role may not.
            errors.PolicyRefused: the key is not a new one, or another client's (rule ``new-key``), or none
                the profile allows.
            errors.RateLimited: it renews too often.
        """
        said = {"client": caller.client.id}
        bucket = bucket_of("renewal", caller.client.id)
        # Whoever is admitted has paid: what the authority has signed by then is not refused as too fast.
        asking, caller = caller, replace(caller, rate=None)

        def judge(facts: Facts, at: datetime) -> None:
            live_client(facts, asking, Capability.RENEW_SELF, at)
            facts.put(take(facts.get(Bucket, bucket), bucket, RENEWAL_RATE, at))

        yield from admitted(asking, _REQUEST, said, judge)
        enrolment = yield from recorded(caller, _REQUEST, said, self._enrolment(caller, csr))
        chain, certificate = yield from recorded(caller, _REQUEST, said, self._authorise.certify(enrolment))

        def decide(facts: Facts, at: datetime) -> Decision[Client]:
            live_client(facts, caller, Capability.RENEW_SELF, at)
            judge_enrolment(facts, enrolment, at)
            return put_enrolled(facts, enrolment, certificate, at)

        client = yield from decided(caller, _REQUEST, said, decide, {Authority: (enrolment.authority,)})
        return Enrolled(
            client=client,
            certificate=certificate,
            chain=tuple(authority.der for authority in chain[:-1]),
        )

    def _enrolment(self, caller: Caller, csr: bytes) -> UseCase[Enrolment]:
        client = caller.client
        profile = self._catalogue.load(client.role.kind)
        spki = vet(csr, allowed=profile.subject_key_algorithms).subject_public_key_info
        current = Certificate.from_der(caller.credential.der)
        if spki == current.subject_public_key_info:
            raise errors.PolicyRefused(
                "new-key", "the request is for the key that the client has: make a new one"
            )
        yield from _require_nobody_elses(client, spki)
        life = current.not_after - current.not_before
        whole = profile.validity
        ends = None if whole is None or life >= whole - timedelta(seconds=1) else self._clock.now() + life
        authority = yield from _successor(caller.credential.authority)
        return Enrolment(
            role=client.role,
            name=client.name,
            subject_public_key_info=spki,
            authority=authority,
            variables={"organization": self._organization, client.role.kind: client.name},
            site=client.site,
            line=client.line,
            not_after=ends,
            renew=True,
        )


def _require_nobody_elses(client: Client, spki: bytes) -> UseCase[None]:
    """Refuse a key that another client has a certificate for; reads all of them, page by page.

    Raises:
        errors.PolicyRefused: somebody has (rule ``new-key``).
    """
    page: list[Credential] = []
    while True:
        after = page[-1].serial if page else ""
        page = yield Scan(kind=Credential, where={}, after=after, limit=PAGE)
        if any(spki in one.der for one in page if one.client != client.id):
            raise errors.PolicyRefused("new-key", "the request is for a key that another client has")
        if len(page) < PAGE:
            return


def _successor(authority: str) -> UseCase[str]:
    """Return the authority that issues in the place of this one: itself, or who took over from it."""
    seen = set()
    while authority not in seen:
        seen.add(authority)
        facts: Facts = yield Look({Authority: (authority,)})
        found = facts.get(Authority, authority)
        if found is None or found.successor is None:
            return authority
        authority = found.successor
    raise errors.IntegrityFailure(f"authority {authority} is its own successor")
