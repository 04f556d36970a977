"""Is this what was ordered?  The questions a ceremony asks of certificates and signatures.

A certificate of our own must be the ordered one octet for octet, but for the signature, which is verified;
one of somebody else's must have what only we can give (name and key) and be good for what we need.  Each
refusal names the field.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NoReturn

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from birthmark import errors
from birthmark.floor.authorities import Authority
from birthmark.floor.ceremonies import Ceremony, ImportAuthority, SignCRL
from birthmark.floor.realm import Environment, Realm
from birthmark.pki import der, lint
from birthmark.pki.algorithms import verify
from birthmark.pki.certificates import Certificate, TBSCertificate, assemble, issued_by, serial_hex
from birthmark.pki.crl import verify_crl
from birthmark.pki.issuer import Issuer
from birthmark.pki.keys import KeyLabel
from birthmark.pki.library import UNREADABLE
from birthmark.pki.nameconstraints import complaint, read_limits
from birthmark.pki.ownership import is_marked
from birthmark.pki.profiles import Extension

__all__ = [
    "not_ordered",
    "require_authority",
    "require_demanded",
    "require_listed",
    "require_names_within",
    "require_ordered",
    "require_own_key",
    "require_realm",
    "require_signature",
    "require_signed",
    "require_unmarked",
]

_BASIC_CONSTRAINTS = der.oid(Extension.BASIC_CONSTRAINTS)
_NAME_CONSTRAINTS = der.oid(Extension.NAME_CONSTRAINTS)
_IP_ADDRESS = 0x87
_NO_NAME = b"\x30\x00"
_UNREADABLE = (*UNREADABLE, x509.ExtensionNotFound, errors.MalformedRequest)
"""What the library says of somebody's octets; anything else is our own mistake."""


def require_ordered(what: str, found: Certificate, ordered: TBSCertificate, at: datetime) -> None:
    """Refuse a certificate that differs from the ordered one in anything but its signature.

    Args:
        what: how it is called in refusals.
        found: the certificate.
        ordered: built anew, with the same serial number and begin.
        at: when it was made.

    Raises:
        errors.PolicyRefused: rule ``as-ordered``; names the field.
    """
    if found.not_before != at.replace(microsecond=0):
        not_ordered(what, f"it begins {found.not_before.isoformat()}, and was made {at.isoformat()}")
    parsed = x509.load_der_x509_certificate(found.der)
    seen, wanted = _read(parsed, what), lint.read(ordered.der)
    for field_name, value in wanted._asdict().items():
        if field_name != "octets" and getattr(seen, field_name) != value:
            not_ordered(what, f"its {field_name.replace('_', ' ')} is another")
    whole = assemble(ordered.der, wanted.signature_algorithm, parsed.signature)
    if parsed.tbs_certificate_bytes != ordered.der or found.der != whole:
        not_ordered(what, "its octets are others")


def require_demanded(
    what: str, found: Certificate, ordered: TBSCertificate, at: datetime, until: Sequence[datetime]
) -> None:
    """Refuse somebody else's certificate for our key that is not good for what the file demands.

    Args:
        what: how it is called in refusals.
        found: the certificate.
        ordered: what we would have made: its name, key, issuer and path length are demanded.
        at: when it was taken.
        until: how long it must be valid at least.

    Raises:
        errors.PolicyRefused: rule ``as-ordered``; names the field.
    """
    parsed = x509.load_der_x509_certificate(found.der)
    seen, wanted = _read(parsed, what), lint.read(ordered.der)
    issuer = Issuer.from_certificate(KeyLabel(""), found.der)  # refuses what is no authority's
    # Two names are the same whatever string types an encoder chose.
    as_we = x509.load_der_x509_certificate(assemble(ordered.der, wanted.signature_algorithm, b"\0"))
    try:
        subject = parsed.subject
        usage = parsed.extensions.get_extension_for_class(x509.KeyUsage).value
    except _UNREADABLE as cause:
        not_ordered(what, f"it cannot be read: {cause}")
    wrong = {
        "key": found.subject_public_key_info != wanted.subject_public_key_info,
        "issuer": found.issuer_name != wanted.issuer,
        "subject": subject != as_we.subject,
        "path length": seen.extensions.get(_BASIC_CONSTRAINTS) != wanted.extensions[_BASIC_CONSTRAINTS],
        "key usage": not usage.crl_sign,
        "serial number": not 0 < found.serial_number < 1 << 160,
        "begin": found.not_before > at,
        "end": issuer.not_after <= at or any(found.not_after < moment for moment in until),
    }
    for field_name, differs in wrong.items():
        if differs:
            not_ordered(what, f"its {field_name} is not what the file demands")


def _read(parsed: x509.Certificate, what: str) -> lint.Reading:
    try:
        return lint.read(parsed.tbs_certificate_bytes)
    except errors.MalformedRequest as wrong:
        not_ordered(what, str(wrong))


def require_names_within(ordered: TBSCertificate) -> None:
    """Refuse name constraints that permit what those above do not.

    RFC 5280 section 6.1.4 (g) intersects them: such a certificate would promise what no path keeps.

    Raises:
        errors.PolicyRefused: rule ``name-constraints``.
    """
    value = lint.read(ordered.der).extensions.get(_NAME_CONSTRAINTS)
    if value is None or not ordered.issuer.name_limits:
        return
    for tag, base in read_limits(value).permitted:
        name = base[: len(base) // 2] if tag == _IP_ADDRESS else base
        alternative = der.encode(der.SEQUENCE, der.encode(tag, name))
        wrong = complaint(ordered.issuer.name_limits, _NO_NAME, alternative)
        if wrong is not None:
            raise errors.PolicyRefused("name-constraints", f"permits more than the authority above: {wrong}")


def require_own_key(label: str, public: bytes, authorities: Iterable[Authority]) -> None:
    """Refuse a new authority with the key of another: what either signs would pass as the other's.

    Raises:
        errors.PolicyRefused: rule ``own-key``.
    """
    for other in authorities:
        if Certificate.from_der(other.der).subject_public_key_info == public:
            raise errors.PolicyRefused(
                "own-key",
                f"the key {label} is authority {other.id}'s: a new authority has a new key, also when it"
                " takes over; the same authority under another issuer is a cross-certificate",
            )


def require_authority(octets: bytes, what: str) -> None:
    """Refuse a certificate (DER) that is not of a certification authority.

    Raises:
        errors.PolicyRefused: rule ``ca``.
    """
    try:
        parsed = x509.load_der_x509_certificate(octets)
        constraints = parsed.extensions.get_extension_for_class(x509.BasicConstraints).value
    except _UNREADABLE as wrong:
        raise errors.PolicyRefused("ca", f"{what}: {wrong}") from wrong
    if not constraints.ca:
        raise errors.PolicyRefused("ca", f"{what} is not an authority's")


def require_listed(what: str, octets: bytes, ordered: SignCRL, at: datetime, signer: bytes | None) -> None:
    """Refuse a CRL (DER) that does not list exactly what a step orders.

    Args:
        what: how it is called in refusals.
        octets: the list.
        ordered: the step.
        at: when it was made.
        signer: certificate (DER) of who signed; None in a rehearsal, whose keys are not the certificate's.

    Raises:
        errors.PolicyRefused: rule ``as-ordered``; names what differs.
        errors.MalformedRequest: it is no CRL.
        errors.IntegrityFailure: it is not of this signer.
    """
    if signer is not None:
        verify_crl(octets, Issuer.from_certificate(KeyLabel(""), signer))
    try:
        parsed = x509.load_der_x509_crl(octets)
        serials = tuple(sorted(serial_hex(entry.serial_number) for entry in parsed))
        times = parsed.last_update_utc, parsed.next_update_utc
    except _UNREADABLE as wrong:
        raise errors.MalformedRequest(f"{what} cannot be read: {wrong}") from wrong
    if serials != ordered.revoked:
        not_ordered(what, f"it lists {', '.join(serials) or 'nothing'}")
    if times != (at.replace(microsecond=0), ordered.next_update):
        not_ordered(what, "its times are others")


def not_ordered(what: str, complaint: str) -> NoReturn:
    """Refuse what is not as the file orders it.

    Raises:
        errors.PolicyRefused: always; rule ``as-ordered``.
    """
    raise errors.PolicyRefused("as-ordered", f"{what} is not as the ceremony's file orders it: {complaint}")


def require_signed(octets: bytes, signer: bytes, what: str, issuer: str) -> None:
    """Refuse a certificate (DER) that the key in another certificate (DER) did not sign.

    Raises:
        errors.PolicyRefused: rule ``signature``.
    """
    if not issued_by(octets, signer):
        raise errors.PolicyRefused("signature", f"{what} is not signed by {issuer}")


def require_signature(spki: bytes, signature: bytes, message: bytes, who: str) -> None:
    """Refuse a signature that is not a custodian's.

    Raises:
        errors.ProofFailed: it is not.
    """
    try:
        verify(spki, signature, message)
    except (InvalidSignature, errors.MalformedRequest) as wrong:
        raise errors.ProofFailed(
            f"the signature of custodian {who} is not of the key the file names"
        ) from wrong


def require_realm(realm: Realm, ceremony: Ceremony) -> None:
    """Refuse a ceremony of another realm, or one that brings a test realm's authority into production.

    Raises:
        errors.NotPermitted: it is another realm's.
        errors.PolicyRefused: see ``require_unmarked``.
    """
    if (ceremony.realm, ceremony.environment) != (realm.name, str(realm.environment)):
        raise errors.NotPermitted(
            f"the ceremony is for realm {ceremony.realm} ({ceremony.environment}); this is {realm.name}"
            f" ({realm.environment})"
        )
    for step in ceremony.steps:
        if isinstance(step, ImportAuthority):
            require_unmarked(ceremony, step)


def require_unmarked(ceremony: Ceremony, step: ImportAuthority) -> None:
    """Refuse to import a test realm's authority into production (SPEC H6).

    Raises:
        errors.PolicyRefused: its name, or its issuer's, has the mark of test realms (rule ``realm``).
        errors.MalformedRequest: its certificate is none.
    """
    found = Certificate.from_der(step.certificate)
    if ceremony.environment == Environment.PRODUCTION and is_marked(found, Environment.TEST.mark):
        raise errors.PolicyRefused(
            "realm", f"authority {step.authority} is a test realm's: it does not come into production"
        )
