"""What is published, as the publisher left it: the file ``index.json``, which is public itself.

It says which CRLs there are, and up to where the record was looked at.  It is no more than a memory: a CRL's
own file decides what number the next one must exceed, and without an index everything is made anew.
"""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from birthmark import errors
from birthmark.floor.locations import INDEX_PATH, crl_path
from birthmark.floor.realm import Realm
from birthmark.ledger.entry import parse_time, time_text

__all__ = ["EPOCH", "Index", "Published"]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
"""When nothing had been published."""

_STRANGE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
    errors.Refusal,
)
"""What becomes of JSON that is something else: numbers without end and depth without end included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A CRL that is published."""

    authority: str
    partition: str
    """``UNPARTITIONED`` for the full one, ``DELTA`` for what was added to it since."""
    number: int
    this_update: datetime
    next_update: datetime
    octets: int
    sha256: str
    as_of: datetime = EPOCH
    """Of a delta: since when the record was read.  Of others: time of the last commit that is in it."""
    base: int | None = None
    """Of a delta: the number of the full CRL that it adds to."""
    stale: bool = False
    """A newer one was wanted and could not be made."""

    @property
    def path(self) -> str:
        """Where it is."""
        return crl_path(self.authority, self.partition)


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """What the last cycle saw and left."""

    size: int = 0
    """Of the log."""
    at: datetime = EPOCH
    """Time of the last entry of that log."""
    log_size: int = 0
    """Of the log as it is published."""
    crls: dict[tuple[str, str], Published] = field(default_factory=dict)

    def encode(self, realm: Realm, at: datetime) -> bytes:
        """Return the file's text (JSON)."""
        listed = [
            {
                "authority": one.authority,
                "partition": one.partition,
                "path": one.path,
                "number": one.number,
                "this_update": time_text(one.this_update),
                "next_update": time_text(one.next_update),
                "octets": one.octets,
                "sha256": one.sha256,
                "as_of": time_text(one.as_of),
                "base": one.base,
                "stale": one.stale,
            }
            for _, one in sorted(self.crls.items())
        ]
        document = {
            "realm": realm.name,
            "environment": str(realm.environment),
            "log_vkey": realm.vkey,
            "written_at": time_text(at),
            "record": {"size": self.size, "at": time_text(self.at)},
            "log_size": self.log_size,
            "crls": listed,
        }
        return json.dumps(document, indent=1).encode() + b"\n"

    @classmethod
    def decode(cls, document: bytes) -> "Index":
        """Read the file back.

        Raises:
            errors.IntegrityFailure: it is not one of ours.
        """
        try:
            table: dict[str, Any] = json.loads(document)
            crls = {}
            for entry in table["crls"]:
                one = Published(
                    authority=entry["authority"],
                    partition=entry["partition"],
                    number=int(entry["number"]),
                    this_update=parse_time(entry["this_update"]),
                    next_update=parse_time(entry["next_update"]),
                    octets=int(entry["octets"]),
                    sha256=entry["sha256"],
                    as_of=parse_time(entry["as_of"]),
                    base=entry["base"],
                    stale=bool(entry["stale"]),
                )
                crls[one.authority, one.partition] = one
            return cls(
                size=int(table["record"]["size"]),
                at=parse_time(table["record"]["at"]),
                log_size=int(table["log_size"]),
                crls=crls,
            )
        except _STRANGE as cause:
            raise errors.IntegrityFailure(f"{INDEX_PATH} is not one of ours: move it away") from cause
