# ruff: noqa: ARG001 -- every rule has the same two parameters, whether it needs both or not
"""Our rules for every OCSP response, on the octets that will be signed.

As ``lint`` does for certificates: ``permit`` reads a ResponseData's octets and asks every rule; only with
its ``OCSPPermit`` can a response be signed.  A rule is a function from the reading to a complaint or None,
and its docstring is its citation.  That only the extension we know is there, that times have seconds and no
fraction and that DER's defaults are left out is the reader's part: ``read_tbs`` refuses everything else.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from birthmark.errors import MalformedRequest, PolicyRefused
from birthmark.pki.ocsp_reading import Reading, TBSResponse, read_tbs
from birthmark.pki.ocsp_request import MAX_CERT_IDS, MAX_NONCE_SIZE
from birthmark.pki.revocation import ReasonCode

__all__ = ["RULES", "OCSPPermit", "Rule", "permit"]

Rule = Callable[[Reading, TBSResponse], str | None]


def responder_id_is_the_responders(seen: Reading, tbs: TBSResponse) -> str | None:
    """RFC 6960 section 4.2.2.3: the name or key must be that of the certificate that signs."""
    same = seen.responder_id == tbs.responder.responder_id
    return None if same else "responderID is another responder's"


def produced_at_is_the_agreed_one(seen: Reading, tbs: TBSResponse) -> str | None:
    """RFC 6960 section 2.4: producedAt is when the response was signed."""
    return None if _says(seen.produced_at, tbs.produced_at) else f"producedAt is {seen.produced_at}"


def responder_is_valid(seen: Reading, tbs: TBSResponse) -> str | None:
    """RFC 6960 section 4.2.2.2: clients validate its certificate; finds a clock that stands at 1970."""
    valid = tbs.responder.not_before <= seen.produced_at <= tbs.responder.not_after
    return None if valid else "producedAt is outside the validity of the responder's certificate"


def every_certificate_is_answered(seen: Reading, tbs: TBSResponse) -> str | None:
    """RFC 6960 section 4.2.1: one answer for each certificate asked about, its CertID octet for octet."""
    if not 1 <= len(seen.responses) <= MAX_CERT_IDS:
        return f"there are {len(seen.responses)} answers"
    found = [single.cert_id for single in seen.responses]
    asked = [single.cert_id.octets for single in tbs.responses]
    return None if found == asked else "the certificates answered are not those asked about"


def status_is_the_agreed_one(seen: Reading, tbs: TBSResponse) -> str | None:
    """RFC 6960 section 2.2: good, revoked with time and reason, or unknown."""
    for found, asked in zip(seen.responses, tbs.responses, strict=True):
        same = found.status is asked.status and found.reason is asked.reason
        if not same or not _says(found.revoked_at, asked.revoked_at):
            return f"{asked.cert_id.serial_number:x} is {asked.status}, the response says {found.status}"
    return None


def reason_belongs_to_a_revocation(seen: Reading, tbs: TBSResponse) -> str | None:
    """RFC 5280 section 5.3.1: removeFromCRL is for delta CRLs; aACompromise for attribute authorities."""
    for single in seen.responses:
        if single.reason in {ReasonCode.REMOVE_FROM_CRL, ReasonCode.AA_COMPROMISE}:
            return f"the reason is {single.reason}"
    return None


def revocation_has_happened(seen: Reading, tbs: TBSResponse) -> str | None:
    """RFC 6960 section 2.2: a revocation is a fact; one that lies ahead would be good until then."""
    for single in seen.responses:
        if single.revoked_at is not None and single.revoked_at > seen.produced_at:
            return f"the revocation at {single.revoked_at.isoformat()} is after producedAt"
    return None


def times_are_the_agreed_ones(seen: Reading, tbs: TBSResponse) -> str | None:
    """RFC 6960 section 4.2.2.1: thisUpdate says when the status was known, nextUpdate until when it holds."""
    for found, asked in zip(seen.responses, tbs.responses, strict=True):
        if not _says(found.this_update, asked.this_update) or not _says(found.next_update, asked.next_update):
            return f"thisUpdate or nextUpdate is another: {found.this_update}, {found.next_update}"
    return None


def times_are_ordered(seen: Reading, tbs: TBSResponse) -> str | None:
    """RFC 6960 sections 2.4 and 4.2.2.1, RFC 5019 section 2.2.4: nextUpdate is there and in the future."""
    for single in seen.responses:
        if single.this_update > seen.produced_at:
            return "thisUpdate is after producedAt"
        if single.next_update is None or single.next_update <= seen.produced_at:
            return "nextUpdate is absent or not after producedAt"
    return None


def nonce_is_the_clients(seen: Reading, tbs: TBSResponse) -> str | None:
    """RFC 9654 section 2.1: the nonce of the request, of 1 to 128 octets, or none if there was none."""
    if seen.nonce != tbs.nonce:
        return "the nonce is not the client's"
    if seen.nonce is not None and not 1 <= len(seen.nonce) <= MAX_NONCE_SIZE:
        return f"the nonce has {len(seen.nonce)} octets"
    return None


RULES: tuple[Rule, ...] = (
    responder_id_is_the_responders,
    produced_at_is_the_agreed_one,
    responder_is_valid,
    every_certificate_is_answered,
    status_is_the_agreed_one,
    reason_belongs_to_a_revocation,
    revocation_has_happened,
    times_are_the_agreed_ones,
    times_are_ordered,
    nonce_is_the_clients,
)
"""In the order in which they are asked; later ones may rely on what earlier ones made sure of."""


_NOTHING, _SECOND = timedelta(0), timedelta(seconds=1)


def _says(found: datetime | None, asked: datetime | None) -> bool:
    """Return whether the one is the other without its parts of a second."""
    if found is None or asked is None:
        return found is asked
    return _NOTHING <= asked - found < _SECOND


_BY_PERMIT = object()


@dataclass(frozen=True, slots=True)
class OCSPPermit:
    """What ``permit`` gives, and nothing else can make: these octets passed every rule."""

    tbs: TBSResponse
    _granted: object = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        if self._granted is not _BY_PERMIT:
            raise TypeError("an OCSPPermit comes from ocsp_lint.permit")


def permit(tbs: TBSResponse) -> OCSPPermit:
    """Return the permit to sign exactly these octets.

    Raises:
        PolicyRefused: a rule refuses; ``rule`` is the rule's name, or "well_formed" for octets that are no
            ResponseData.
    """
    try:
        seen = read_tbs(tbs.der)
    except MalformedRequest as error:
        raise PolicyRefused("well_formed", str(error)) from error
    for rule in RULES:
        if (complaint := rule(seen, tbs)) is not None:
            raise PolicyRefused(rule.__name__, complaint)
    return OCSPPermit(tbs, _BY_PERMIT)
