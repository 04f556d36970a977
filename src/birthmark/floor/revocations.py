"""What is revoked, in which partition of whose CRL, and why (SPEC F1, F2).

One ``Revocation`` is one line of a CRL, encoded when it happened.  Its id begins with the authority and the
partition, so that a CRL is a walk along the key, whatever else is revoked.  Nothing is deleted: a suspension
that was lifted keeps its row, without a line.
"""

import hashlib
import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from birthmark.pki.revocation import ReasonCode

__all__ = [
    "AUTHORITIES",
    "CLIENTS",
    "UNPARTITIONED",
    "Partitioning",
    "Revocation",
    "partition_name",
    "revocation_key",
]

UNPARTITIONED = "all"
"""Partition of device certificates that name the authority's full CRL."""
CLIENTS = "clients"
"""Partition of the certificates of stations, operators, servers and responders."""
AUTHORITIES = "authorities"
"""Partition of the certificates of authorities below this one."""
_PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,50}")


class Partitioning(StrEnum):
    """How an authority's CRL is divided among the devices of a run: baked into their certificates."""

    NONE = "none"
    """The certificates name the authority's full CRL, or none."""
    RUN = "run"
    BATCH = "batch"


def partition_name(partitioning: Partitioning, run: str, batch: str) -> str:
    """Return the partition of a run's certificates: 3 to 58 of ``A-Z a-z 0-9 . _ -``, a segment of URLs.

    A batch whose name cannot stand there is named by its hash.
    """
    if partitioning is Partitioning.NONE:
        return UNPARTITIONED
    name = run if partitioning is Partitioning.RUN else batch
    if not _PLAIN.fullmatch(name):
        name = f"-{hashlib.sha256(name.encode()).hexdigest()[:32]}"
    return f"{partitioning}.{name}"


def revocation_key(authority: str, partition: str, serial: str) -> str:
    """Return the id of a certificate's revocation; ids of one CRL are neighbours."""
    return f"{authority}/{partition}/{serial}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """One certificate's place on a CRL."""

    id: str
    """See ``revocation_key``."""
    entry: bytes
    """Element of revokedCertificates (DER, RFC 5280 section 5.1); empty when a suspension was lifted."""
    reason: ReasonCode
    """``removeFromCRL`` when a suspension was lifted."""
    revoked_at: datetime
    """When it was revoked or suspended, or the suspension lifted; a CRL says it in whole seconds."""
    cause: str
    """What did it: ``recall:ID``, ``rework``, ``scrap``, ``reissue``, ``client``."""

    @property
    def status(self) -> ReasonCode | None:
        """Return why the certificate is not good now, or None if it is good again."""
        return None if self.reason is ReasonCode.REMOVE_FROM_CRL else self.reason
