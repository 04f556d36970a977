"""Put on record which CRLs were published: so the log can say what relying parties could know (SPEC E6, F2).

An entry says of how many log entries the record was when the lists were made: whatever those entries revoked
stands in them.  What came while they were being made may stand in them, too; of that the next ones tell.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

from birthmark.ledger.entry import time_text
from birthmark.ports import Act, Committed, Decision, Facts, UseCase
from birthmark.services.acts import outcomes, refuse
from birthmark.services.publication_alarms import PUBLICATION
from birthmark.services.publication_index import Published

__all__ = ["record_published"]

_TOGETHER = 100
"""CRLs in one log entry, which has at most 65 535 octets."""


def record_published(crls: Sequence[Published], log_size: int) -> UseCase[range]:
    """Put on record that these CRLs are published, made of a record of at least so many log entries.

    Returns the log indices of the entries.
    """
    return (yield from _record([{"log_size": log_size, "crls": page} for page in _pages(crls)]))


def _pages(crls: Sequence[Published]) -> Iterator[list[dict[str, Any]]]:
    for start in range(0, len(crls), _TOGETHER):
        yield [
            {
                "authority": one.authority,
                "partition": one.partition,
                "crl_number": str(one.number),
                "this_update": time_text(one.this_update),
                "next_update": time_text(one.next_update),
                "sha256": one.sha256,
            }
            for one in crls[start : start + _TOGETHER]
        ]


def _record(entries: Iterable[dict[str, Any]]) -> UseCase[range]:
    said = [("crls-published", entry) for entry in entries]

    def decide(_facts: Facts, _at: datetime) -> Decision[None]:
        return Decision(None, said)

    committed: list[Committed[None]] = yield [
        Act(actor=PUBLICATION, decide=decide, refuse=refuse(None, "record-published", {}), reads={})
    ]
    outcomes(committed)
    leaves = committed[0].leaves
    return range(leaves[0].index, leaves[-1].index + 1)
