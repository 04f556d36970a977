"""Who may connect: the credentials of clients and servers; and whether an authority issues.

Each credential is one certificate under an issuing authority of the realm, put on record in the commit that
makes its client known.  A revoked client stays revoked: its name is not given out again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from birthmark import errors
from birthmark.floor.authorities import Authority, AuthorityStatus, require_issuing
from birthmark.floor.clients import (
    PEOPLE,
    Capability,
    Client,
    ClientStatus,
    Credential,
    Role,
    check_name,
    client_id,
    takes_two,
)
from birthmark.floor.realm import Realm
from birthmark.pki.certificates import Certificate, fingerprint
from birthmark.pki.issuance import (
    compile_template,
    serial_number,
    sign_certificate,
)
from birthmark.pki.lint import permit
from birthmark.pki.profiles import Catalogue
from birthmark.pki.revocation import ReasonCode
from birthmark.ports import Clock, Decision, Entropy, Facts, KeyStore, Scan, UseCase
from birthmark.services.acts import Caller, admitted, decided, live_client, recorded
from birthmark.services.recognition import is_code
from birthmark.services.revocations import line_of, revoke
from birthmark.services.runs import authority_chain, issuer_of

__all__ = [
    "Authorise",
    "Enrolled",
    "Enrolment",
    "enrolled_entry",
    "judge_enrolment",
    "put_changed",
    "put_enrolled",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """Somebody to be let in."""

    role: Role
    name: str
    """See ``check_name``."""
    subject_public_key_info: bytes
    authority: str
    variables: Mapping[str, str]
    """For the role's certificate profile; ``organization`` at least."""
    site: str = ""
    line: str = ""
    hardware_id: str | None = None
    run: str | None = None
    runs: tuple[str, ...] = ()
    """For a station: the runs it may work on, whichever licences name it; none for all of those."""
    not_after: datetime | None = None
    renew: bool = False
    """Give a known client another credential."""

    def __post_init__(self) -> None:
        """Refuse names that cannot stand in an id."""
        check_name(str(self.role), self.name)
        if self.role is Role.CUSTODIAN:
            raise errors.MalformedRequest("a custodian is named by a ceremony's file and enrolled nowhere")
        if self.role is Role.DEVICE:
            raise errors.MalformedRequest("a device is admitted by a run and enrolled nowhere")
        if self.role is Role.SHARED and self.run is None:
            raise errors.MalformedRequest("a shared credential is for one run")
        for run in self.runs:
            check_name("run", run)
        if self.role is Role.BOOTSTRAP and (self.hardware_id is None) == (self.run is None):
            raise errors.MalformedRequest("a bootstrap certificate is for one hardware id or for one run")

    @property
    def client(self) -> str:
        """The id of whoever is let in."""
        return client_id(self.role, self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolled:
    """A credential."""

    client: Client
    certificate: Certificate
    chain: tuple[bytes, ...]
    """The authorities above it (DER), the root not included."""


class Authorise:
    """The use cases that let somebody in or shut somebody out."""

    def __init__(
        self, realm: Realm, keys: KeyStore, clock: Clock, entropy: Entropy, catalogue: Catalogue
    ) -> None:
        """Certify with the authorities' keys in ``keys``, by the profiles of ``catalogue``."""
        self._realm = realm
        self._keys = keys
        self._clock = clock
        self._entropy = entropy
        self._catalogue = catalogue

    def enrol(self, caller: Caller | None, enrolment: Enrolment) -> UseCase[Enrolled]:
        """Certify a client's key and put it on record; ``caller`` is None only while a realm is made.

        Raises:
            errors.NotFound: there is no such authority.
            errors.IllegalTransition: the name is taken, or was revoked.
            errors.NotPermitted: the caller may not, or it takes two people.
            errors.PolicyRefused: the certificate would break its profile.
        """
        said = {"client": enrolment.client}

        def judge(facts: Facts, at: datetime) -> None:
            if caller is not None:
                self._require_may_enrol(caller, enrolment, facts, at)
            judge_enrolment(facts, enrolment, at)

        def decide(facts: Facts, at: datetime) -> Decision[Client]:
            if caller is not None:
                self._require_may_enrol(caller, enrolment, facts, at)
            return put_enrolled(facts, enrolment, certificate, at)

        yield from admitted(caller, "enrol", said, judge, {Authority: (enrolment.authority,)})
        chain, certificate = yield from recorded(caller, "enrol", said, self.certify(enrolment))
        client = yield from decided(caller, "enrol", said, decide, {Authority: (enrolment.authority,)})
        return Enrolled(
            client=client,
            certificate=certificate,
            chain=tuple(authority.der for authority in chain[:-1]),
        )

    def _require_may_enrol(self, caller: Caller, enrolment: Enrolment, facts: Facts, at: datetime) -> None:
        """Refuse whoever may not let this client in, or not alone.

        To renew somebody else's certificate is to be able to act as that person: it takes as many as to let
        one in.
        """
        if enrolment.renew and enrolment.client == caller.client.id:
            live_client(facts, caller, Capability.RENEW_SELF, at)
            return
        if enrolment.role is Role.SHARED:
            raise errors.NotPermitted("a shared credential has limits: 'birthmark shared make' gives it some")
        if enrolment.role not in PEOPLE:
            guests = enrolment.role in (Role.STATION, Role.BOOTSTRAP)
            needed = Capability.ENROL_STATION if guests else Capability.ENROL_SERVICE
            live_client(facts, caller, needed, at)
            return
        live_client(facts, caller, Capability.CHANGE_ROLES, at)
        if takes_two(Capability.CHANGE_ROLES, self._realm.environment):
            raise errors.NotPermitted(
                f"{enrolment.client} gets a certificate by two people: propose it, another approves"
            )

    def certify(self, enrolment: Enrolment) -> UseCase[tuple[list[Authority], Certificate]]:
        """Sign a certificate, and return the authorities above it too; nothing is on record yet."""
        chain: list[Authority] = yield from authority_chain(enrolment.authority)
        issuer = issuer_of(chain)
        profile = self._catalogue.load(enrolment.role.kind)
        certificate_der = sign_certificate(
            permit(
                compile_template(profile, issuer, enrolment.variables).fill(
                    serial_number=serial_number(self._entropy.token(20)),
                    subject_public_key_info=enrolment.subject_public_key_info,
                    not_before=self._clock.now(),
                    not_after=enrolment.not_after,
                    variables={},
                )
            ),
            self._keys.sign,
        )
        return chain, Certificate.from_der(certificate_der)

    def revoke(self, caller: Caller, client: str, reason: str) -> UseCase[Client]:
        """Shut a client out, from the commit of this act on.

        Raises:
            errors.NotFound: there is no such client.
            errors.IllegalTransition: it is revoked already.
            errors.NotPermitted: it is the caller itself, or the caller may not.
        """
        held: list[Credential] = yield Scan(kind=Credential, where={"client": client})

        def decide(facts: Facts, at: datetime) -> Decision[Client]:
            found = facts.get(Client, client)
            person = found is not None and found.role in PEOPLE
            live_client(facts, caller, Capability.REVOKE_PERSON if person else Capability.REVOKE_CLIENT, at)
            if found is None:
                raise errors.NotFound(f"there is no client {client[:100]}")
            if found.status is ClientStatus.REVOKED:
                raise errors.IllegalTransition(f"{client} is revoked already")
            if found.id == caller.client.id:
                # The last operator would leave a realm that nobody can act in.
                raise errors.NotPermitted(f"{client} cannot revoke itself: another operator does")
            revoked = replace(found, status=ClientStatus.REVOKED)
            facts.put(revoked)
            because = ReasonCode.PRIVILEGE_WITHDRAWN
            serials = [
                one.serial
                for one in held
                if one.not_after > at
                and not is_code(one)
                and revoke(facts, line_of(one), because, at, "client")
            ]
            said = {"client": client, "reason": reason, "certificates": serials}
            return Decision(revoked, [("client-revoked", said | {"revocation_reason": str(because)})])

        return (yield from decided(caller, "revoke-client", {"client": client[:100]}, decide, {}))

    def change(
        self, caller: Caller, authority: str, status: AuthorityStatus, reason: str
    ) -> UseCase[Authority]:
        """Suspend, resume or retire an authority, where one person may; else see ``proposals``.

        Raises:
            errors.NotFound: there is no such authority.
            errors.IllegalTransition: it has that status already, or is retired or revoked.
            errors.NotPermitted: the caller may not, or it takes two people.
        """

        def decide(facts: Facts, at: datetime) -> Decision[Authority]:
            live_client(facts, caller, Capability.CHANGE_AUTHORITY, at)
            if takes_two(Capability.CHANGE_AUTHORITY, self._realm.environment):
                raise errors.NotPermitted(
                    f"authority {authority[:100]} is changed by two people: propose it, another approves"
                )
            return put_changed(facts, authority, status, reason)

        return (yield from decided(caller, "change-authority", {"authority": authority[:100]}, decide, {}))


def put_changed(facts: Facts, authority: str, status: AuthorityStatus, reason: str) -> Decision[Authority]:
    """Give an authority another status; whether anybody may is judged before.

    Raises:
        errors.NotFound: there is no such authority.
        errors.IllegalTransition: it has that status already, or is retired or revoked.
        errors.NotPermitted: it is to be revoked.
    """
    found = facts.get(Authority, authority)
    if found is None:
        raise errors.NotFound(f"there is no authority {authority[:100]}")
    if status is AuthorityStatus.REVOKED:
        raise errors.NotPermitted("an authority is revoked by two people, with a recall")
    if found.status in (status, AuthorityStatus.RETIRED, AuthorityStatus.REVOKED):
        raise errors.IllegalTransition(f"authority {authority} is {found.status}")
    changed = replace(found, status=status)
    facts.put(changed)
    return Decision(changed, [(f"authority-{status}", {"authority": authority, "reason": reason})])


def judge_enrolment(facts: Facts, enrolment: Enrolment, at: datetime) -> tuple[Authority, Client | None]:
    """Return the authority, and the client if it is known; refuse what must not be certified.

    Raises:
        errors.NotFound: there is no such authority, or no such client to renew.
        errors.IllegalTransition: the authority does not issue, the name is taken, or was revoked.
    """
    authority, name = facts.get(Authority, enrolment.authority), enrolment.client
    if authority is None:
        raise errors.NotFound(f"there is no authority {enrolment.authority[:100]}")
    require_issuing(authority, at)  # the quota counts devices, not stations
    known = facts.get(Client, name)
    if known is not None and known.status is ClientStatus.REVOKED:
        raise errors.IllegalTransition(f"{name} was revoked: give the new one another name")
    if known is not None and not enrolment.renew:
        raise errors.IllegalTransition(
            f"there is a client {name} already; renew it to give it another certificate"
        )
    if known is None and enrolment.renew:
        raise errors.NotFound(f"there is no client {name} to renew")
    return authority, known


def put_enrolled(
    facts: Facts, enrolment: Enrolment, certificate: Certificate, at: datetime
) -> Decision[Client]:
    """Put a client and its certificate on record; whether anybody may is judged before."""
    authority, known = judge_enrolment(facts, enrolment, at)
    client = known or Client(
        id=enrolment.client,
        role=enrolment.role,
        site=enrolment.site,
        line=enrolment.line,
        hardware_id=enrolment.hardware_id,
        run=enrolment.run,
        status=ClientStatus.ACTIVE,
        last_seq=0,
        runs=",".join(enrolment.runs),
    )
    if known is None:
        facts.put(client)
    credential = Credential(
        serial=certificate.serial_hex,
        client=client.id,
        authority=authority.id,
        profile=enrolment.role.kind,
        der=certificate.der,
        not_after=certificate.not_after,
        status=ClientStatus.ACTIVE,
    )
    facts.put(credential)
    kind = "client-renewed" if enrolment.renew else "client-enrolled"
    return Decision(client, [(kind, enrolled_entry(client, credential))])


def enrolled_entry(client: Client, credential: Credential) -> dict[str, Any]:
    """Return what the log says of a client that got a credential."""
    return {
        "client": client.id,
        "role": str(client.role),
        "site": client.site,
        "line": client.line,
        "hardware_id": client.hardware_id,
        "run": client.run,
        "runs": client.runs,
        "authority": credential.authority,
        "certificate": credential.serial,
        "certificate_sha256": fingerprint(credential.der),
    }
