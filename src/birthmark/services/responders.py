"""Who answers for an authority: credentials of OCSP responders, and answers signed beforehand (SPEC F3).

A responder is a client with one key and, from every authority that delegates to it, one short certificate
with the purpose OCSPSigning (profile ``ocsp-responder``; nothing revokes it, so it lives for days).  An
officer enrols it; the publisher renews its certificates as long as the client is live, for the same key and
the same authority, and publishes them, so that a public host without any other secret learns of them.

``sign_answers`` is the lightweight profile (RFC 5019): an answer for every device certificate of an
authority, signed before anybody asks.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from birthmark import errors
from birthmark.floor.authorities import Authority, AuthorityStatus, Custody
from birthmark.floor.clients import Capability, Client, ClientStatus, Credential, Role, check_name
from birthmark.floor.devices import DeviceCertificate
from birthmark.floor.locations import responder_folder, responder_path
from birthmark.floor.revocations import Revocation
from birthmark.floor.runs import Run, RunLicence
from birthmark.floor.segments import is_segment
from birthmark.pki import ocsp
from birthmark.pki.certificates import Certificate
from birthmark.pki.issuance import compile_template, serial_number, sign_certificate
from birthmark.pki.keys import KeyLabel
from birthmark.pki.lint import permit
from birthmark.pki.profiles import Catalogue
from birthmark.ports import (
    Act,
    Clock,
    Committed,
    Decision,
    Entropy,
    Facts,
    KeyStore,
    Publication,
    SignedAnswer,
    Store,
    UseCase,
    carry,
)
from birthmark.services.acts import Caller, admitted, decided, live_client, outcomes, recorded, refuse
from birthmark.services.publication_alarms import PUBLICATION
from birthmark.services.revocations import line_of
from birthmark.services.runs import authority_chain, issuer_of
from birthmark.services.status import Sign, Standing, delegate, say, standing_of

__all__ = ["PROFILE", "AnswerSelection", "Responders", "SignedBeforehand", "sign_answers"]

log = logging.getLogger(__name__)

PROFILE = "ocsp-responder"
_BATCH = 500


class Responders:
    """The use cases around responders' credentials."""

    def __init__(
        self,
        keys: KeyStore,
        clock: Clock,
        entropy: Entropy,
        catalogue: Catalogue,
        organization: str,
        mark: str,
    ) -> None:
        """Certify with the authorities' keys in ``keys``; certificates of a test realm bear a ``mark``."""
        self._keys = keys
        self._clock = clock
        self._entropy = entropy
        self._catalogue = catalogue
        self._variables = {"organization": organization, "environment_mark": mark}

    def enrol(
        self, caller: Caller, name: str, authority: str, subject_public_key_info: bytes
    ) -> UseCase[Certificate]:
        """Let a key answer for an authority.

        Args:
            caller: an officer.
            name: of the responder; it may answer for several authorities.
            authority: id.
            subject_public_key_info: the responder's key (DER).

        Raises:
            errors.NotFound: there is no such authority.
            errors.IllegalTransition: the authority is revoked, or the responder was.
            errors.NotPermitted: the authority's key is not in the service's hands.
            errors.PolicyRefused: the certificate would break its profile.
        """
        said = {"client": f"{Role.RESPONDER}:{name[:64]}"}

        def judge(facts: Facts, at: datetime) -> None:
            live_client(facts, caller, Capability.ENROL_SERVICE, at)
            check_name("responder", name, longest=40)
            _judge(facts, name, authority)

        yield from admitted(caller, "enrol", said, judge, {Authority: (authority,)})
        certifying = self._certify(name, authority, subject_public_key_info)
        certificate = yield from recorded(caller, "enrol", said, certifying)
        decide = partial(_decide, caller, name, authority, certificate)
        return (yield from decided(caller, "enrol", said, decide, {}))

    def renew(self, store: Store, publication: Publication) -> int:
        """Renew what is in the last third of its life, and publish what is not published; return how many.

        A responder that was revoked, or an authority that may no longer sign, is passed over; what the former
        has is published no more.

        Raises:
            errors.Unavailable: the record or the directory does not answer, or somebody else is publishing.
        """
        with publication.lock():
            for client in _responders(store):
                if client.status is not ClientStatus.ACTIVE and is_segment(client.name):
                    publication.withdraw(responder_folder(client.name))
            return self._renew(store, publication)

    def _renew(self, store: Store, publication: Publication) -> int:
        now, count = self._clock.now(), 0
        for client, authority, credential in _newest(store):
            certificate = Certificate.from_der(credential.der)
            try:
                path = responder_path(client.name, authority)
            except errors.MalformedRequest as nowhere:
                log.error("%s cannot be published: %s", client.id, nowhere)  # noqa: TRY400  # told
                continue
            life = certificate.not_after - certificate.not_before
            if certificate.not_after - now <= life / 3:
                try:
                    certificate = carry(store, self._renewal(client, authority, certificate))
                    count += 1
                except errors.Refusal as refusal:
                    log.error("%s is not renewed for %s: %s", client.id, authority, refusal)  # noqa: TRY400  # told
            with publication.read(path) as octets:
                known = octets is not None and bytes(octets) == certificate.der
            if not known:
                publication.publish(path, (certificate.der,))
        return count

    def _renewal(self, client: Client, authority: str, before: Certificate) -> UseCase[Certificate]:
        certificate = yield from self._certify(client.name, authority, before.subject_public_key_info)
        committed: list[Committed[Certificate]] = yield [
            Act(
                actor=PUBLICATION,
                decide=partial(_decide, None, client.name, authority, certificate),
                refuse=refuse(None, "renew", {"client": client.id}),
                reads={Client: (client.id,), Authority: (authority,)},
            )
        ]
        return outcomes(committed)[0]

    def _certify(self, name: str, authority: str, subject_public_key_info: bytes) -> UseCase[Certificate]:
        chain: list[Authority] = yield from authority_chain(authority)
        _require_signing(chain[0])
        template = compile_template(
            self._catalogue.load(PROFILE), issuer_of(chain), self._variables | {"responder": name}
        )
        tbs = template.fill(
            serial_number=serial_number(self._entropy.token(20)),
            subject_public_key_info=subject_public_key_info,
            not_before=self._clock.now(),
            not_after=None,
            variables={},
        )
        return Certificate.from_der(sign_certificate(permit(tbs), self._keys.sign))


def _require_signing(authority: Authority) -> None:
    # A suspended or retired authority issues nothing to devices; what it issued is asked about all the same.
    if authority.custody is not Custody.SERVICE:
        raise errors.NotPermitted(
            f"authority {authority.id} does not sign here: its key is {authority.custody}"
        )
    if authority.status is AuthorityStatus.REVOKED:
        raise errors.IllegalTransition(f"authority {authority.id} is revoked")


def _judge(facts: Facts, name: str, authority: str) -> Client | None:
    """Return the responder if it is known; refuse one that was revoked, and an authority that cannot sign."""
    found = facts.get(Authority, authority)
    if found is None:
        raise errors.NotFound(f"there is no authority {authority[:100]}")
    _require_signing(found)
    client_id = f"{Role.RESPONDER}:{name}"
    client = facts.get(Client, client_id)
    if client is not None and client.status is not ClientStatus.ACTIVE:
        raise errors.IllegalTransition(f"{client_id} was revoked: give the new one another name")
    return client


def _decide(
    caller: Caller | None,
    name: str,
    authority: str,
    certificate: Certificate,
    facts: Facts,
    at: datetime,
) -> Decision[Certificate]:
    if caller is not None:
        live_client(facts, caller, Capability.ENROL_SERVICE, at)
    client_id = f"{Role.RESPONDER}:{name}"
    client = _judge(facts, name, authority)
    known = client is not None
    if client is None:
        client = Client(
            id=client_id,
            role=Role.RESPONDER,
            site="",
            line="",
            hardware_id=None,
            run=None,
            status=ClientStatus.ACTIVE,
            last_seq=0,
        )
        facts.put(client)
    facts.put(
        Credential(
            serial=certificate.serial_hex,
            client=client_id,
            authority=authority,
            profile=str(Role.RESPONDER),
            der=certificate.der,
            not_after=certificate.not_after,
            status=ClientStatus.ACTIVE,
        )
    )
    entry = {
        "client": client_id,
        "role": str(client.role),
        "site": client.site,
        "line": client.line,
        "hardware_id": None,
        "run": None,
        "runs": client.runs,
        "authority": authority,
        "certificate": certificate.serial_hex,
        "certificate_sha256": certificate.fingerprint,
    }
    return Decision(certificate, [("client-renewed" if known else "client-enrolled", entry)])


def _responders(store: Store) -> Iterator[Client]:
    for client in store.scan(Client, after=f"{Role.RESPONDER}:"):
        if client.role is not Role.RESPONDER:
            return
        yield client


def _newest(store: Store) -> Iterator[tuple[Client, str, Credential]]:
    """Return each live responder with the newest certificate that each authority gave it."""
    for client in _responders(store):
        if client.status is not ClientStatus.ACTIVE:
            continue
        newest: dict[str, Credential] = {}
        for one in store.scan(Credential, where={"client": client.id}):
            if one.authority not in newest or newest[one.authority].not_after < one.not_after:
                newest[one.authority] = one
        for authority, credential in sorted(newest.items()):
            yield client, authority, credential


# --- answers signed beforehand


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerSelection:
    """Which certificates get answers beforehand."""

    authority: str
    runs: frozenset[str] = frozenset()
    """Ids; with ``batches`` empty for all of the authority."""
    batches: frozenset[str] = frozenset()

    def covers(self, licence: RunLicence) -> bool:
        """Return whether a run's certificates are meant."""
        everything = not self.runs and not self.batches
        named = licence.id in self.runs or licence.batch in self.batches
        return licence.authority == self.authority and (everything or named)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedBeforehand:
    """What was signed."""

    authority: str
    answers: int
    until: datetime


def sign_answers(
    store: Store,
    publication: Publication,
    sign: Sign,
    clock: Clock,
    selection: AnswerSelection,
    *,
    responder: str,
    validity: timedelta,
    algorithms: Iterable[str] = ("sha1",),
) -> SignedBeforehand:
    """Sign an answer for every device certificate selected, and publish them together.

    Without runs and batches the authority's answers are replaced as a whole, otherwise those of the selected
    certificates.  The record is read in batches; nothing grows with the number of certificates but the file.

    Raises:
        errors.NotFound: there is no such authority, or it has not delegated to this responder.
        errors.PolicyRefused: a rule refuses an answer: the responder's certificate has ended.
        errors.Unavailable: record, key store or directory does not answer, or somebody else is publishing.
    """
    authority = store.look({Authority: (selection.authority,)}).get(Authority, selection.authority)
    credential = next(
        (
            found
            for client, name, found in _newest(store)
            if client.name == responder and name == selection.authority
        ),
        None,
    )
    if authority is None or credential is None:
        raise errors.NotFound(f"no responder {responder} answers for {selection.authority}: enrol it")
    delegation = delegate(authority.id, authority.der, credential.der, KeyLabel(responder))
    issuers = [one for one in delegation.issuers if one[0] in set(algorithms)]
    at, count = clock.now(), 0
    anew = not selection.runs and not selection.batches
    with publication.lock(), publication.answers(authority.id, anew=anew) as signed:
        for batch in _batches(store, selection):
            lines = {one.serial: line_of(one) for one in batch}
            facts = store.look({Revocation: [line.id for line in lines.values()]})
            answers = []
            for serial, line in lines.items():
                standing: Standing = standing_of(facts.get(Revocation, line.id))
                for issuer in issuers:
                    cert_id = ocsp.cert_id(issuer, int(serial, 16))
                    said = say(delegation, [(cert_id, standing)], sign, at=at, validity=validity)
                    if said.this_update is None or said.next_update is None:
                        raise errors.Fault("an answer without times")
                    answers.append(
                        SignedAnswer(
                            algorithm=str(issuer[0]),
                            serial_number=cert_id.serial_number,
                            octets=said.octets,
                            this_update=said.this_update,
                            next_update=said.next_update,
                        )
                    )
            signed.put(answers)
            count += len(answers)
    return SignedBeforehand(authority=authority.id, answers=count, until=at + validity)


def _batches(store: Store, selection: AnswerSelection) -> Iterator[list[DeviceCertificate]]:
    for run in store.scan(Run):
        if not selection.covers(RunLicence.decode(run.document)):
            continue
        batch: list[DeviceCertificate] = []
        for certificate in store.scan(DeviceCertificate, where={"run": run.id}):
            # A run has one authority in its licence; what a ceremony put in its place may have issued, too.
            if certificate.authority == selection.authority:
                batch.append(certificate)
            if len(batch) == _BATCH:
                yield batch
                batch = []
        if batch:
            yield batch
