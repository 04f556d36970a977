# ruff: noqa: ARG001 -- every rule has the same two parameters, whether it needs both or not
"""Our rules for every CRL, on the octets that will be signed.

As ``lint`` does for certificates: ``permit`` reads a TBSCertList's octets, not the values it was made from,
and asks every rule; only with its ``CRLPermit`` can a list be signed.  A rule is a function from the reading
to a complaint or None, and its docstring is its citation.

The entries are read by one expression, in place and in runs: a million take a fraction of a second and no
memory.  That no serial number occurs twice is left to the database the entries come from.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from itertools import product

from cryptography import x509

from birthmark.errors import MalformedRequest, PolicyRefused
from birthmark.pki.algorithms import ALGORITHMS
from birthmark.pki.crl_reading import (
    AUTHORITY_KEY_IDENTIFIER,
    CRITICAL,
    CRL_NUMBER,
    DELTA_CRL_INDICATOR,
    FRESHEST_CRL,
    ISSUING_DISTRIBUTION_POINT,
    Buffer,
    CRLTerms,
    Reading,
    read_tbs,
)
from birthmark.pki.issuer import Issuer
from birthmark.pki.revocation import REASON_NUMBERS, ReasonCode

__all__ = ["RULES", "CRLPermit", "Rule", "permit"]


# --- the rules ---

Rule = Callable[[Reading, CRLTerms], str | None]


def signature_algorithm_is_the_issuers(seen: Reading, terms: CRLTerms) -> str | None:
    """RFC 5280 section 5.1.2.2: signature must be the algorithm of the signature that follows."""
    expected = ALGORITHMS[terms.issuer.key_algorithm].signature_algorithm
    return (
        None if seen.signature_algorithm == expected else f"signature is not {terms.issuer.key_algorithm}'s"
    )


def issuer_is_the_authoritys_subject(seen: Reading, terms: CRLTerms) -> str | None:
    """RFC 5280 section 5.1.2.3: a distinguished name that is not empty; ours octet for octet."""
    if seen.summary.issuer == b"\x30\x00":
        return "issuer is empty"
    same = seen.summary.issuer == terms.issuer.subject
    return None if same else "issuer is not the subject of the issuer's certificate"


def issuer_may_sign_lists(seen: Reading, terms: CRLTerms) -> str | None:
    """RFC 5280 section 6.3.3 (f): where the issuer's certificate has keyUsage, cRLSign must be set."""
    if terms.issuer.certificate is None:
        return "the issuer has no certificate yet"
    extensions = x509.load_der_x509_certificate(terms.issuer.certificate).extensions
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    return None if usage.crl_sign else "the issuer's certificate does not let it sign CRLs"


def dates_are_the_agreed_ones(seen: Reading, terms: CRLTerms) -> str | None:
    """RFC 5280 section 5.1.2.4: thisUpdate is when the list was issued; read_time sees to the encoding."""
    asked = (_seconds(terms.this_update), _seconds(terms.next_update))
    found = (seen.summary.this_update, seen.summary.next_update)
    return None if found == asked else f"thisUpdate or nextUpdate is another: {found[0]}, {found[1]}"


def next_update_follows(seen: Reading, terms: CRLTerms) -> str | None:
    """RFC 5280 section 5.1.2.5: nextUpdate must be there, and a list must not have ended when it begins."""
    after = seen.summary.next_update > seen.summary.this_update
    return None if after else "nextUpdate is not after thisUpdate"


def this_update_lies_within_the_issuers_validity(seen: Reading, terms: CRLTerms) -> str | None:
    """RFC 5280 section 6.3.3 (f): the issuer's path must be valid; finds a clock that stands at 1970."""
    within = terms.issuer.not_before <= seen.summary.this_update <= terms.issuer.not_after
    return None if within else "thisUpdate is outside the validity of the issuer's certificate"


def entries_are_absent_or_some(seen: Reading, terms: CRLTerms) -> str | None:
    """RFC 5280 section 5.1.2.6: without revoked certificates, the list of them must be absent."""
    return "revokedCertificates is empty" if seen.entries and not seen.summary.entries_size else None


def entries_are_well_formed(seen: Reading, terms: CRLTerms) -> str | None:
    """RFC 5280 sections 5.1.2.6 and 5.3: serial number, date, a reason that belongs; nothing critical.

    The serial number is positive and has at most 20 octets (section 4.1.2.2); "unspecified" is left out
    (section 5.3.1); removeFromCRL is for deltas alone.
    """
    if seen.entries is None:
        return None
    pattern = _entries(delta=seen.summary.scope.base is not None)
    position, stop = seen.entries
    while position < stop:
        run = pattern.match(seen.octets, position, stop)
        if run is None:
            return f"the entry at offset {position} is not well-formed or has a reason that does not belong"
        position = run.end()
    return None


def crl_number_is_the_agreed_one(seen: Reading, terms: CRLTerms) -> str | None:
    """RFC 5280 section 5.2.3: at most 20 octets, not negative (the reader sees to that), and growing."""
    return None if seen.summary.number == terms.number else f"CRLNumber is {seen.summary.number}"


def authority_key_identifier_is_the_issuers(seen: Reading, terms: CRLTerms) -> str | None:
    """RFC 5280 section 5.2.1: must be there, with the key identifier method; keyIdentifier alone is ours."""
    expected = b"\x30%c\x80%c" % (len(terms.issuer.key_identifier) + 2, len(terms.issuer.key_identifier))
    same = seen.extensions.get(AUTHORITY_KEY_IDENTIFIER) == expected + terms.issuer.key_identifier
    return None if same else "authorityKeyIdentifier is not the issuer's"


def scope_is_the_agreed_one(seen: Reading, terms: CRLTerms) -> str | None:
    """RFC 5280 sections 5.2.4 to 5.2.6: who reads a list must learn what it does not cover."""
    return None if seen.summary.scope == terms.scope else f"the scope is {seen.summary.scope}"


def base_is_older(seen: Reading, terms: CRLTerms) -> str | None:
    """RFC 5280 section 5.2.4: a delta adds to a complete list that was issued before it."""
    base = seen.summary.scope.base
    return None if base is None or base < seen.summary.number else "the base is not older than the delta"


def extensions_are_the_scopes(seen: Reading, terms: CRLTerms) -> str | None:
    """RFC 5280 section 5.2: these extensions and no others; authorityInformationAccess stays outside."""
    scope = terms.scope
    expected = [AUTHORITY_KEY_IDENTIFIER, CRL_NUMBER]
    expected += [DELTA_CRL_INDICATOR] if scope.base is not None else []
    expected += [ISSUING_DISTRIBUTION_POINT] if scope.limited else []
    expected += [FRESHEST_CRL] if scope.freshest_crl is not None else []
    return None if list(seen.extensions) == expected else "extensions are others"


def criticality_is_the_standards(seen: Reading, terms: CRLTerms) -> str | None:
    """RFC 5280 sections 5.2.4 and 5.2.5: deltaCRLIndicator and issuingDistributionPoint, and only they."""
    expected = tuple(identifier in CRITICAL for identifier in seen.extensions)
    return None if seen.criticality == expected else "criticality is another"


RULES: tuple[Rule, ...] = (
    signature_algorithm_is_the_issuers,
    issuer_is_the_authoritys_subject,
    issuer_may_sign_lists,
    dates_are_the_agreed_ones,
    next_update_follows,
    this_update_lies_within_the_issuers_validity,
    crl_number_is_the_agreed_one,
    authority_key_identifier_is_the_issuers,
    scope_is_the_agreed_one,
    base_is_older,
    extensions_are_the_scopes,
    criticality_is_the_standards,
    entries_are_absent_or_some,
    entries_are_well_formed,
)
"""In the order in which they are asked."""


def _seconds(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(microsecond=0)


@lru_cache(maxsize=2)
def _entries(*, delta: bool) -> re.Pattern[bytes]:
    """Return what up to some thousand entries look like: every combination of lengths that can occur.

    Runs are bounded, so that other threads get their turn while a million entries are read; possessive, so
    that the memory stays flat.  29 February passes in every year.
    """
    reasons = set(REASON_NUMBERS) - {ReasonCode.UNSPECIFIED, ReasonCode.AA_COMPROMISE}
    reasons -= set() if delta else {ReasonCode.REMOVE_FROM_CRL}
    numbers = b"".join(rb"\x%02x" % REASON_NUMBERS[reason] for reason in reasons)
    day = rb"(?:0[13578]|1[02])(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)(?:0[1-9]|[12]\d|30)|02(?:0[1-9]|[12]\d)"
    moment = rb"(?:" + day + rb")(?:[01]\d|2[0-3])[0-5]\d[0-5]\dZ"
    reason = rb"\x30\x0a\x06\x03\x55\x1d\x15\x04\x03\x0a\x01[" + numbers + rb"]"
    invalidity_date = rb"\x30\x18\x06\x03\x55\x1d\x18\x04\x11\x18\x0f\d{4}" + moment
    times = {15: rb"\x17\x0d\d\d" + moment, 17: rb"\x18\x0f(?:20[5-9]|2[1-9]\d|[3-9]\d\d)\d" + moment}
    extensions = {
        14: rb"\x30\x0c" + reason,
        0: b"",
        40: rb"\x30\x26" + reason + invalidity_date,
        28: rb"\x30\x1a" + invalidity_date,
    }
    by_length: dict[int, list[bytes]] = {}
    for octets in range(20, 0, -1):  # ours have 20: what is tried first is found first
        serial = rb"\x02\x%02x(?:[\x01-\x7f].{%d}" % (octets, octets - 1)
        serial += rb"|\x00[\x80-\xff].{%d})" % (octets - 2) if octets > 1 else b")"
        for (time_size, at), (size, extension) in product(times.items(), extensions.items()):
            by_length.setdefault(2 + octets + time_size + size, []).append(serial + at + extension)
    entries = (rb"\x%02x(?:%s)" % (length, b"|".join(forms)) for length, forms in by_length.items())
    return re.compile(rb"(?:\x30(?:%s)){1,4096}+" % b"|".join(entries), re.DOTALL)


# --- permit and signature ---

_BY_PERMIT = object()


@dataclass(frozen=True, slots=True)
class CRLPermit:
    """What ``permit`` gives, and nothing else can make: these octets passed every rule."""

    tbs: Buffer = field(repr=False)
    issuer: Issuer = field(repr=False)
    _granted: object = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        if self._granted is not _BY_PERMIT:
            raise TypeError("a CRLPermit comes from crl.permit")


def permit(tbs: Buffer, terms: CRLTerms) -> CRLPermit:
    """Return the permit to sign exactly these octets, a TBSCertList (DER).

    The octets are read where they are.  A mapped file must stay as it is until it is signed: keep it where
    nobody else writes, and map it with ``mmap.ACCESS_READ``.

    Raises:
        PolicyRefused: a rule refuses; ``rule`` is the rule's name, or "well_formed" for octets that are no
            TBSCertList.
        TypeError: the buffer can be written through.
    """
    with memoryview(tbs) as view:
        if not view.readonly:
            raise TypeError("what is permitted must not change: the buffer is writable")
        try:
            seen = read_tbs(view)
        except MalformedRequest as error:
            raise PolicyRefused("well_formed", str(error)) from error
        for rule in RULES:
            if (complaint := rule(seen, terms)) is not None:
                raise PolicyRefused(rule.__name__, complaint)
    return CRLPermit(tbs, terms.issuer, _BY_PERMIT)
