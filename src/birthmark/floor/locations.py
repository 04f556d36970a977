"""Where a realm publishes: the locations that certificates name, and the paths under which they are served.

A certificate keeps its locations for life, so they are spelled in one place and never change: a run's
certificates are filled from ``Locations``, the publisher writes the same paths, and the public role serves
them.  Locations are plain ``http``: what is published is signed, and to fetch it over TLS would need a status
check of its own (RFC 5280 section 8, RFC 6960 appendix A).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from birthmark import errors
from birthmark.floor.revocations import AUTHORITIES, CLIENTS, UNPARTITIONED
from birthmark.floor.segments import is_segment

__all__ = [
    "CHECKPOINT_PATH",
    "DELTA",
    "INDEX_PATH",
    "LOG_PREFIX",
    "OCSP_PATH",
    "Locations",
    "answers_path",
    "certificate_path",
    "crl_path",
    "responder_folder",
    "responder_path",
]

CHECKPOINT_PATH = "log/checkpoint"
INDEX_PATH = "index.json"
LOG_PREFIX = "log/"
"""Before the paths of C2SP tlog-tiles."""
OCSP_PATH = "ocsp"
DELTA = "delta"
"""In place of a partition, which never has this name: the delta to an authority's full CRL."""

_BASE = re.compile(r"http://[A-Za-z0-9.-]+(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~-]+)*")


def _segment(name: str) -> str:
    if not is_segment(name):
        raise errors.MalformedRequest(f"{name[:80]!r} cannot stand in a location")
    return name


def crl_path(authority: str, partition: str = UNPARTITIONED) -> str:
    """Return the path of the CRL that speaks of a partition's certificates.

    Certificates of devices that were not partitioned, of clients and of authorities are on the full CRL.

    Raises:
        errors.MalformedRequest: a name has a character that paths here do not have.
    """
    if authority.endswith(f".{DELTA}"):
        raise errors.MalformedRequest(
            f"{authority[:80]!r} cannot stand in a location: deltas have such names"
        )
    if partition == DELTA:
        return f"crl/{_segment(authority)}.{DELTA}.crl"
    if partition in {UNPARTITIONED, CLIENTS, AUTHORITIES}:
        return f"crl/{_segment(authority)}.crl"
    return f"crl/{_segment(authority)}/{_segment(partition)}.crl"


def certificate_path(authority: str) -> str:
    """Return the path of an authority's certificate (DER).

    Raises:
        errors.MalformedRequest: the name has a character that paths here do not have.
    """
    return f"ca/{_segment(authority)}.cer"


def responder_path(responder: str, authority: str) -> str:
    """Return the path of the certificate (DER) with which a responder speaks for an authority.

    Raises:
        errors.MalformedRequest: a name has a character that paths here do not have.
    """
    return f"{responder_folder(responder)}/{_segment(authority)}.cer"


def responder_folder(responder: str) -> str:
    """Return the folder of a responder's certificates.

    Raises:
        errors.MalformedRequest: the name has a character that paths here do not have.
    """
    return f"responders/{_segment(responder)}"


def answers_path(authority: str) -> str:
    """Return the path of an authority's OCSP answers that were signed beforehand; a file for servers.

    Raises:
        errors.MalformedRequest: the name has a character that paths here do not have.
    """
    return f"answers/{_segment(authority)}.sqlite"


@dataclass(frozen=True, slots=True)
class Locations:
    """The locations of a realm's published things, below one base."""

    base: str
    """Like ``http://pki.example.com`` or ``http://example.com/pki``, without a slash at the end."""

    def __post_init__(self) -> None:
        """Refuse a base that certificates cannot name.

        Raises:
            errors.MalformedRequest: it is none.
        """
        if not _BASE.fullmatch(self.base) or len(self.base) > 200:
            raise errors.MalformedRequest(
                f"a location begins like http://pki.example.com, without a slash at the end: not"
                f" {self.base[:100]!r}"
            )

    def crl(self, authority: str, partition: str = UNPARTITIONED) -> str:
        """Return the location of the CRL that speaks of a partition's certificates."""
        return f"{self.base}/{crl_path(authority, partition)}"

    def certificate(self, authority: str) -> str:
        """Return the location of an authority's certificate (DER), for authorityInfoAccess."""
        return f"{self.base}/{certificate_path(authority)}"

    @property
    def ocsp(self) -> str:
        """The location of the OCSP responder, the same for all authorities."""
        return f"{self.base}/{OCSP_PATH}"

    def variables(self, authority: str, partition: str = UNPARTITIONED) -> Mapping[str, str]:
        """Return what a profile's ``crl_url``, ``ocsp_url`` and ``issuer_url`` are.

        Args:
            authority: id of the issuer of the certificate.
            partition: of the certificate, e.g. ``RunLicence.partition``.
        """
        return {
            "crl_url": self.crl(authority, partition),
            "ocsp_url": self.ocsp,
            "issuer_url": self.certificate(authority),
        }
