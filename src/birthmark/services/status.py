"""Where a certificate stands, answered in OCSP (SPEC F3; RFC 6960, RFC 9654, RFC 5019).

A ``Delegations`` says for which authorities this responder may speak: those that gave its key a certificate.
``AnswerStatus`` answers requests about their certificates from the record, many at once: all that wait are
looked up together.  What is answered to whom:

- a certificate of such an authority that is on record (a device's, a client's, an authority's): good, or
  revoked with its reason; suspended is revoked with certificateHold;
- a serial number that the authority never gave: unknown (RFC 6960 section 2.2);
- an issuer that is not ours, or has not delegated to this responder, and a request that mixes issuers:
  unauthorized, unsigned (RFC 5019 section 2.2.3), since nobody would believe our signature about it;
- a responder whose certificate has ended, a record that does not answer: tryLater.

Live answers are of the moment in which they are given: thisUpdate is the time of the look-up.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from birthmark import errors
from birthmark.floor.authorities import Authority
from birthmark.floor.clients import Credential
from birthmark.floor.devices import DeviceCertificate
from birthmark.floor.revocations import Revocation
from birthmark.pki import ocsp
from birthmark.pki.certificates import Certificate, serial_hex
from birthmark.pki.issuer import Issuer
from birthmark.pki.keys import KeyLabel
from birthmark.pki.ocsp import (
    CertID,
    IssuerID,
    OCSPRequest,
    Responder,
    ResponseStatus,
    SingleResponse,
    error_response,
)
from birthmark.pki.revocation import CertStatus, ReasonCode
from birthmark.ports import Clock, Store
from birthmark.services.revocations import line_of

__all__ = [
    "AnswerStatus",
    "Answered",
    "Delegation",
    "Delegations",
    "Sign",
    "Standing",
    "delegate",
    "say",
    "standing_of",
]

log = logging.getLogger(__name__)

Sign = Callable[[KeyLabel, bytes], bytes]
"""``KeyStore.sign`` of the store that holds the responder's key."""
_REREAD = timedelta(seconds=10)
"""How long the record's few authorities are remembered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delegation:
    """An authority that lets a responder speak for it."""

    authorities: frozenset[str]
    """Its id; several if it was certified again with the same name and key."""
    issuers: tuple[IssuerID, ...]
    """What requests may call it."""
    responder: Responder


def delegate(authority: str, certificate: bytes, responder: bytes, label: KeyLabel) -> Delegation:
    """Return the delegation of an authority to a responder.

    Args:
        authority: its id.
        certificate: the authority's (DER).
        responder: the responder's (DER), issued by the authority.
        label: of the responder's key.

    Raises:
        errors.MalformedRequest: one of them is no certificate.
        errors.PolicyRefused: the authority did not issue it, or not for this.
    """
    issuer = Issuer.from_certificate(label, certificate)
    spki = Certificate.from_der(certificate).subject_public_key_info
    return Delegation(
        authorities=frozenset({authority}),
        issuers=ocsp.issuer_ids(issuer.subject, spki),
        responder=Responder.from_certificate(label, responder, issuer),
    )


class Delegations:
    """For whom a responder speaks, found by what requests call them."""

    def __init__(self, delegations: Iterable[Delegation] = ()) -> None:
        """Take them in; of two for the same name and key the later certificate counts."""
        self._found: dict[IssuerID, Delegation] = {}
        for one in delegations:
            for issuer in one.issuers:
                other = self._found.get(issuer)
                if other is None:
                    self._found[issuer] = one
                    continue
                newer = max(one, other, key=lambda item: item.responder.not_after)
                self._found[issuer] = Delegation(
                    authorities=one.authorities | other.authorities,
                    issuers=one.issuers,
                    responder=newer.responder,
                )

    def of(self, request: OCSPRequest) -> Delegation | None:
        """Return who is asked about, if it is one authority and it has delegated."""
        found = self._found.get(request.cert_ids[0].issuer)
        if any(self._found.get(one.issuer) is not found for one in request.cert_ids[1:]):
            return None
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What the record says of a certificate."""

    status: CertStatus
    revoked_at: datetime | None = None
    reason: ReasonCode = ReasonCode.UNSPECIFIED


_GOOD, _UNKNOWN = Standing(status=CertStatus.GOOD), Standing(status=CertStatus.UNKNOWN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """An OCSPResponse, and how long it may be kept."""

    octets: bytes
    this_update: datetime | None = None
    """None for one that is no answer, and is not to be kept."""
    next_update: datetime | None = None
    nonce: bool = False


def say(
    delegation: Delegation,
    standings: Sequence[tuple[CertID, Standing]],
    sign: Sign,
    *,
    at: datetime,
    validity: timedelta,
    nonce: bytes | None = None,
) -> Answered:
    """Sign what the record says of some certificates.

    The clocks of record and responder may differ by a little: what was revoked is not answered as if that
    were still to come.

    Raises:
        errors.PolicyRefused: a rule refuses the response, e.g. because the responder's certificate has ended.
        errors.Unavailable: the key store does not answer.
    """
    at = max([at, *(standing.revoked_at for _, standing in standings if standing.revoked_at is not None)])
    until = min(at + validity, delegation.responder.not_after)
    singles = [
        SingleResponse(
            cert_id=cert_id,
            status=standing.status,
            this_update=at,
            next_update=until,
            revoked_at=standing.revoked_at,
            reason=standing.reason,
        )
        for cert_id, standing in standings
    ]
    tbs = ocsp.response_data(delegation.responder, singles, produced_at=at, nonce=nonce)
    return Answered(
        octets=ocsp.sign_response(ocsp.permit(tbs), sign),
        this_update=at,
        next_update=until,
        nonce=nonce is not None,
    )


class AnswerStatus:
    """Answers requests from the record; for one thread."""

    def __init__(self, store: Store, sign: Sign, clock: Clock, validity: timedelta) -> None:
        """Answer with the responder's key; ``validity`` is from thisUpdate to nextUpdate."""
        self._store = store
        self._sign = sign
        self._clock = clock
        self._validity = validity
        self._certified: dict[str, Authority] = {}
        self._read_at: datetime | None = None

    def __call__(self, delegations: Delegations, requests: Sequence[OCSPRequest]) -> list[Answered]:
        """Answer requests, in their order; whatever is wrong with one does not touch the others."""
        known = [(request, delegations.of(request)) for request in requests]
        at = self._clock.now()
        try:
            found = self._look(known, at)
        except errors.Refusal as failed:
            log.error("the status of certificates cannot be looked up: %s", failed)  # noqa: TRY400  # told, not traced
            return [Answered(octets=error_response(ResponseStatus.TRY_LATER)) for _ in requests]
        return [self._answer(request, delegation, found, at) for request, delegation in known]

    def _answer(
        self,
        request: OCSPRequest,
        delegation: Delegation | None,
        found: Mapping[str, tuple[str, Standing]],
        at: datetime,
    ) -> Answered:
        if delegation is None:
            return Answered(octets=error_response(ResponseStatus.UNAUTHORIZED))
        standings = []
        for cert_id in request.cert_ids:
            authority, standing = found.get(_serial(cert_id), ("", _UNKNOWN))
            standings.append((cert_id, standing if authority in delegation.authorities else _UNKNOWN))
        try:
            return say(delegation, standings, self._sign, at=at, validity=self._validity, nonce=request.nonce)
        except errors.Refusal as refusal:
            log.error("an answer cannot be signed: %s", refusal)  # noqa: TRY400  # told, not traced
            return Answered(octets=error_response(ResponseStatus.TRY_LATER))

    def _look(
        self, asked: Iterable[tuple[OCSPRequest, Delegation | None]], at: datetime
    ) -> dict[str, tuple[str, Standing]]:
        """Return authority and standing of every certificate on record that is asked about, by its serial.

        Serial numbers are random and long: no two certificates of a realm share one.
        """
        serials = sorted(
            {
                _serial(cert_id)
                for request, delegation in asked
                if delegation is not None
                for cert_id in request.cert_ids
                if cert_id.serial_number > 0
            }
        )
        if not serials:
            return {}
        devices = self._store.look({DeviceCertificate: serials})
        others = [serial for serial in serials if devices.get(DeviceCertificate, serial) is None]
        credentials = self._store.look({Credential: others})
        lines = {}
        for serial in serials:
            certificate = (
                devices.get(DeviceCertificate, serial)
                or credentials.get(Credential, serial)
                or self._authority(serial, at)
            )
            if certificate is not None:
                lines[serial] = line_of(certificate)
        revoked = self._store.look({Revocation: [line.id for line in lines.values()]})
        return {
            serial: (line.authority, standing_of(revoked.get(Revocation, line.id)))
            for serial, line in lines.items()
        }

    def _authority(self, serial: str, at: datetime) -> Authority | None:
        if self._read_at is None or not self._read_at <= at < self._read_at + _REREAD:
            self._certified = {
                Certificate.from_der(one.der).serial_hex: one for one in self._store.scan(Authority)
            }
            self._read_at = at
        return self._certified.get(serial)


def _serial(cert_id: CertID) -> str:
    return serial_hex(max(cert_id.serial_number, 0))


def standing_of(revocation: Revocation | None) -> Standing:
    """Return the standing of a certificate on record that has this revocation, or none."""
    if revocation is None or (reason := revocation.status) is None:
        return _GOOD
    return Standing(status=CertStatus.REVOKED, revoked_at=revocation.revoked_at, reason=reason)
