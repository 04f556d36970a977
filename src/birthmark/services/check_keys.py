"""Hold the table of keys against the log (SPEC B4); a part of ``check``.

What the key stores hold is another question: ``services.custody.check_keys`` asks it.
"""

from collections.abc import Iterable, Mapping

from birthmark.floor.key_assets import KeyAsset
from birthmark.services.check_report import Report, time_or_none
from birthmark.services.key_testimony import KeySaid

__all__ = ["check_keys"]


def check_keys(report: Report, assets: Iterable[KeyAsset], said: Mapping[str, KeySaid]) -> None:
    """Find every key on record that is not, field by field, what the log's entries come to."""
    left = dict(said)
    for asset in assets:
        report.counts["keys"] += 1
        was = left.pop(asset.label, None)
        if was is None:
            report.find(f"key {asset.label} has no entry in the log")
            continue
        report.compare(
            f"key {asset.label}",
            store=(asset.store, was.store),
            purpose=(asset.purpose, was.purpose),
            kind=(asset.kind, was.kind),
            policy=(asset.policy, was.policy),
            users=(asset.users, was.users),
            fingerprint=(asset.fingerprint, was.fingerprint),
            ceremony=(asset.ceremony, was.ceremony),
            status=(asset.status, was.status),
            time=(time_or_none(asset.created_at), was.created_at),
            backup_time=(time_or_none(asset.backed_up_at), was.backed_up_at),
            backup=(asset.backup_sha256, was.backup_sha256),
        )
    for label in left:
        report.find(f"the log says key {label} was made; it is not in the table of keys")
