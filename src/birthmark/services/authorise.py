"""Who may connect: the credentials of clients and servers; and whether an authority issues.

Each credential is one certificate under an issuing authority of the realm, put on record in the commit that
makes its client known.  A revoked client stays revoked: its name is not given out again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

from birthmark import errors
from birthmark.floor.authorities import Authority, AuthorityStatus, require_issuing
from birthmark.floor.clients import Capability, Client, ClientStatus, Credential, Role, check_name
from birthmark.floor.realm import Realm
from birthmark.pki.certificates import Certificate
from birthmark.pki.issuance import (
    compile_template,
    serial_number,
    sign_certificate,
)
from birthmark.pki.lint import permit
from birthmark.pki.profiles import Catalogue
from birthmark.pki.revocation import ReasonCode
from birthmark.ports import Act, Clock, Committed, Decision, Entropy, Facts, KeyStore, Scan, UseCase
from birthmark.services.acts import (
    INIT,
    Caller,
    admitted,
    client_reads,
    live_client,
    outcomes,
    recorded,
    refuse,
)
from birthmark.services.revocations import line_of, revoke
from birthmark.services.runs import authority_chain, issuer_of

__all__ = ["Authorise", "Enrolled", "Enrolment"]


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
    not_after: datetime | None = None
    renew: bool = False
    """Give a known client another credential."""

    def __post_init__(self) -> None:
        """Refuse names that cannot stand in an id."""
        check_name(str(self.role), self.name)
        if self.role is Role.BOOTSTRAP and (self.hardware_id is None) == (self.run is None):
            raise errors.MalformedRequest("a bootstrap certificate is for one hardware id or for one run")


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
            errors.PolicyRefused: the certificate would break its profile.
        """
        client_id = f"{enrolment.role}:{enrolment.name}"
        said = {"client": client_id}

        def judge(facts: Facts, at: datetime) -> None:
            _judge_enrol(caller, enrolment, client_id, facts, at)

        yield from admitted(caller, "enrol", said, judge, {Authority: (enrolment.authority,)})
        chain, certificate = yield from recorded(caller, "enrol", said, self._certify(enrolment))
        committed: list[Committed[Client]] = yield [
            Act(
                actor=INIT if caller is None else caller.client.id,
                decide=partial(_decide_enrol, caller, enrolment, certificate, client_id),
                refuse=refuse(caller, "enrol", said),
                reads={Authority: (enrolment.authority,)} if caller is None else client_reads(caller),
            )
        ]
        return Enrolled(
            client=outcomes(committed)[0],
            certificate=certificate,
            chain=tuple(authority.der for authority in chain[:-1]),
        )

    def _certify(self, enrolment: Enrolment) -> UseCase[tuple[list[Authority], Certificate]]:
        chain: list[Authority] = yield from authority_chain(enrolment.authority)
        issuer = issuer_of(chain)
        profile = self._catalogue.load(str(enrolment.role))
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
            live_client(facts, caller, Capability.REVOKE_CLIENT)
            found = facts.get(Client, client)
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
                if one.not_after > at and revoke(facts, line_of(one), because, at, "client")
            ]
            said = {"client": client, "reason": reason, "certificates": serials}
            return Decision(revoked, [("client-revoked", said | {"revocation_reason": str(because)})])

        committed: list[Committed[Client]] = yield [
            Act(
                actor=caller.client.id,
                decide=decide,
                refuse=refuse(caller, "revoke-client", {"client": client[:100]}),
                reads=client_reads(caller),
            )
        ]
        return outcomes(committed)[0]

    def change(
        self, caller: Caller, authority: str, status: AuthorityStatus, reason: str
    ) -> UseCase[Authority]:
        """Suspend, resume or retire an authority.

        Raises:
            errors.NotFound: there is no such authority.
            errors.IllegalTransition: it has that status already, or is retired or revoked.
            errors.NotPermitted: it is to be revoked, which takes two people.
        """

        def decide(facts: Facts, _at: datetime) -> Decision[Authority]:
            live_client(facts, caller, Capability.CHANGE_AUTHORITY)
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

        committed: list[Committed[Authority]] = yield [
            Act(
                actor=caller.client.id,
                decide=decide,
                refuse=refuse(caller, "change-authority", {"authority": authority[:100]}),
                reads=client_reads(caller),
            )
        ]
        return outcomes(committed)[0]


def _judge_enrol(
    caller: Caller | None, enrolment: Enrolment, client_id: str, facts: Facts, at: datetime
) -> tuple[Authority, Client | None]:
    """Return the authority, and the client if it is known; refuse what must not be certified."""
    if caller is not None:
        live_client(facts, caller, Capability.ENROL_CLIENT)
    authority = facts.get(Authority, enrolment.authority)
    if authority is None:
        raise errors.NotFound(f"there is no authority {enrolment.authority[:100]}")
    require_issuing(authority, at)  # the quota counts devices, not stations
    known = facts.get(Client, client_id)
    if known is not None and known.status is ClientStatus.REVOKED:
        raise errors.IllegalTransition(f"{client_id} was revoked: give the new one another name")
    if known is not None and not enrolment.renew:
        raise errors.IllegalTransition(
            f"there is a client {client_id} already; renew it to give it another certificate"
        )
    if known is None and enrolment.renew:
        raise errors.NotFound(f"there is no client {client_id} to renew")
    return authority, known


def _decide_enrol(
    caller: Caller | None,
    enrolment: Enrolment,
    certificate: Certificate,
    client_id: str,
    facts: Facts,
    at: datetime,
) -> Decision[Client]:
    authority, known = _judge_enrol(caller, enrolment, client_id, facts, at)
    client = known or Client(
        id=client_id,
        role=enrolment.role,
        site=enrolment.site,
        line=enrolment.line,
        hardware_id=enrolment.hardware_id,
        run=enrolment.run,
        status=ClientStatus.ACTIVE,
        last_seq=0,
    )
    if known is None:
        facts.put(client)
    facts.put(
        Credential(
            serial=certificate.serial_hex,
            client=client.id,
            authority=authority.id,
            profile=str(enrolment.role),
            der=certificate.der,
            not_after=certificate.not_after,
            status=ClientStatus.ACTIVE,
        )
    )
    entry = {
        "client": client.id,
        "site": client.site,
        "line": client.line,
        "hardware_id": client.hardware_id,
        "run": client.run,
        "authority": authority.id,
        "certificate": certificate.serial_hex,
        "certificate_sha256": certificate.fingerprint,
    }
    return Decision(client, [("client-renewed" if enrolment.renew else "client-enrolled", entry)])
