"""What a CA wants requests in CMP to look like: CertTemplate by a profile (RFC 9483 section 4.3.3).

The subject is given, but for what comes with each device: there an empty string stands, which the client
fills in.  Extensions have their values.  What follows from key or authority is not asked for; the key
algorithms are said beside the template (``cmp_bodies.cert_req_template``).
"""

from collections.abc import Mapping

from birthmark.pki.crmf import CertTemplate
from birthmark.pki.est_attributes import asked_extensions, asked_subject
from birthmark.pki.profilelanguage import Profile

__all__ = ["wanted"]

_BLANK = b"\x0c\x00"
"""UTF8String of no character (DER)."""


def wanted(profile: Profile, variables: Mapping[str, str]) -> CertTemplate:
    """Return the fields that a request for a certificate of this profile should have.

    Args:
        profile: of an end entity.
        variables: those that are known: the run's, and the device's if it is known who asks.

    Raises:
        MalformedRequest: a value does not fit its field, or one that all certificates have in common is
            missing.
    """
    subject, _ = asked_subject(profile, variables, blank=_BLANK)
    return CertTemplate(subject=subject or None, extensions=asked_extensions(profile, variables))
