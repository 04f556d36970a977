"""Hold ceremonies and the keys they made against the log (SPEC A3, B4).

``CeremonySaid`` and ``KeySaid`` are what the log's entries come to; what does not agree is told to ``find``.
The record itself is judged again, event for event, as its auditor would.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from birthmark import errors
from birthmark.floor.ceremonies import CeremonyRecord
from birthmark.floor.key_assets import KeyAsset
from birthmark.services import ceremony_file
from birthmark.services.ceremony_record import Record, replay
from birthmark.services.ceremony_steps import Loader

__all__ = ["CeremonySaid", "KeySaid", "check_ceremonies", "check_made_keys", "keys_said"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CeremonySaid:
    """A ceremony as the log speaks of it."""

    file_sha256: str
    record_sha256: str
    leaf: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySaid:
    """A key as the log says it was made."""

    ceremony: str
    store: str
    purpose: str
    kind: str
    policy: str
    fingerprint: str


def keys_said(ceremony: str, listed: object) -> dict[str, KeySaid]:
    """Return the keys that an entry lists.

    Raises:
        errors.MalformedRequest: that is no list of keys.
    """
    try:
        return {
            str(key["label"]): KeySaid(
                ceremony=ceremony,
                **{name: str(key[name]) for name in ("store", "purpose", "kind", "policy", "fingerprint")},
            )
            for key in _listed(listed)
        }
    except (KeyError, TypeError) as wrong:
        raise errors.MalformedRequest("its keys are no list of keys") from wrong


def _listed(listed: object) -> list[Mapping[str, Any]]:
    if not isinstance(listed, list):
        raise TypeError("not a list")
    return listed


def check_ceremonies(
    find: Callable[[str], None],
    rows: Iterable[CeremonyRecord],
    said: dict[str, CeremonySaid],
    load: Loader,
) -> None:
    """Find every ceremony whose row, file or record is not what the log says."""
    for row in rows:
        told = said.pop(row.id, None)
        if told is None or (told.file_sha256, told.record_sha256, told.leaf) != (
            row.file_sha256,
            row.record_sha256,
            row.leaf,
        ):
            find(f"ceremony {row.id} is not the one the log says was performed")
        try:
            ceremony, record = ceremony_file.parse(row.file), Record.decode(row.record)
            if (ceremony.id, ceremony.sha256, record.sha256) != (row.id, row.file_sha256, row.record_sha256):
                find(f"ceremony {row.id}: its file or its record is another")
            record.require_signed(ceremony)
            if replay(ceremony, record.body, load).current is not None:
                find(f"ceremony {row.id}: its record ends early")
        except errors.Refusal as refusal:
            find(f"ceremony {row.id}: {refusal}")
    for name in said:
        find(f"the log says ceremony {name} was performed; its record is gone")


def check_made_keys(
    find: Callable[[str], None], assets: Iterable[KeyAsset], said: dict[str, KeySaid]
) -> None:
    """Find every key of a ceremony whose row is not what the log says."""
    for asset in assets:
        told = said.pop(asset.label, None)
        if told is None and asset.ceremony is None:
            continue  # made without a ceremony, or brought from elsewhere: another entry's business
        stored = KeySaid(
            ceremony=asset.ceremony or "",
            store=asset.stores[0],
            purpose=str(asset.purpose),
            kind=asset.kind,
            policy=str(asset.policy),
            fingerprint=asset.fingerprint,
        )
        if told != stored:
            find(f"key {asset.label} is not the one the log says was made")
    for label in said:
        find(f"the log says key {label} was made; it is not in the table of keys")
