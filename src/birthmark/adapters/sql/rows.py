"""Values to rows and back: one mapping a table, derived from the value's own fields.

Times become milliseconds, enums their stored spelling, everything else stays what it is.  A test holds the
mappings against ``tables``.
"""

import dataclasses
import types
import typing
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Generic, TypeVar

from birthmark.floor.answers import Answer
from birthmark.floor.attestations import Attestation
from birthmark.floor.authorities import Authority
from birthmark.floor.ceremonies import CeremonyRecord
from birthmark.floor.clients import Client, Credential
from birthmark.floor.devices import Attempt, Device, DeviceCertificate, IdentityRecord, KeyUse
from birthmark.floor.elements import ElementJournal, ElementUse
from birthmark.floor.enrolments import CMPTransaction, LocalIdentity, WaitingEnrolment
from birthmark.floor.exposure import Exposure
from birthmark.floor.fleet import FieldDevice, FleetAuthority, ForeignCRL, ForeignCRLOctets
from birthmark.floor.invitations import Invitation
from birthmark.floor.key_assets import KeyAsset
from birthmark.floor.limits import Bucket
from birthmark.floor.proposals import Proposal
from birthmark.floor.recalls import Recall
from birthmark.floor.revocations import Revocation
from birthmark.floor.runs import AllowedDevice, Run
from birthmark.floor.shared import SharedCredential
from birthmark.floor.shipments import Shipped

__all__ = ["MAPPINGS", "Mapping", "milliseconds", "moment"]

V = TypeVar("V")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


def milliseconds(at: datetime) -> int:
    """Return a time as whole milliseconds since 1970."""
    return (at - _EPOCH) // _MILLISECOND


def moment(ms: int) -> datetime:
    """Return the time that is so many milliseconds after 1970."""
    return _EPOCH + timedelta(milliseconds=ms)


def _reader(kind: Any) -> tuple[str, Callable[[Any], Any] | None, Callable[[Any], Any] | None]:
    """Return the column type, the way out and the way in (None: as it is) of a field."""
    if isinstance(kind, types.UnionType):
        (inner,) = (arm for arm in typing.get_args(kind) if arm is not types.NoneType)
        column, out, back = _reader(inner)
        return (
            column,
            None if out is None else lambda value: None if value is None else out(value),
            None if back is None else lambda value: None if value is None else back(value),
        )
    if kind is datetime:
        return "bigint", milliseconds, moment
    if kind is int:
        return "bigint", None, None
    if kind is bytes:
        return "bytea", None, None
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return "text", str, kind
    if kind is str:
        return "text", None, None
    raise TypeError(f"no column for {kind}")


class Mapping(Generic[V]):
    """One type of value and its table."""

    def __init__(self, kind: type[V], table: str) -> None:
        hints = typing.get_type_hints(kind)
        self.kind = kind
        self.table = table
        self.columns = tuple(field.name for field in dataclasses.fields(kind))  # type: ignore[arg-type]  # values only
        readers = [_reader(hints[name]) for name in self.columns]
        self.types = tuple(column for column, _, _ in readers)
        self._out = [(index, out) for index, (_, out, _) in enumerate(readers) if out is not None]
        self._back = [(index, back) for index, (_, _, back) in enumerate(readers) if back is not None]

    def key(self, value: V) -> Any:
        """Return the value's key."""
        return getattr(value, self.columns[0])

    def row(self, value: V) -> list[Any]:
        """Return the value as a row."""
        row = [getattr(value, name) for name in self.columns]
        for index, out in self._out:
            row[index] = out(row[index])
        return row

    def value(self, row: Sequence[Any]) -> V:
        """Return the value of a row."""
        fields = list(row)
        for index, back in self._back:
            fields[index] = back(fields[index])
        return self.kind(**dict(zip(self.columns, fields, strict=True)))


MAPPINGS: dict[type, Mapping[Any]] = {
    kind: Mapping(kind, table)
    for kind, table in (
        (Answer, "answer"),
        (Authority, "authority"),
        (Client, "client"),
        (Credential, "credential"),
        (Run, "run"),
        (Proposal, "proposal"),
        (Invitation, "invitation"),
        (Bucket, "bucket"),
        (Exposure, "exposure"),
        (AllowedDevice, "allowed_device"),
        (Device, "device"),
        (Attempt, "attempt"),
        (DeviceCertificate, "device_certificate"),
        (KeyUse, "key_use"),
        (ElementJournal, "element_journal"),
        (ElementUse, "element_use"),
        (Attestation, "attestation"),
        (IdentityRecord, "identity_record"),
        (Revocation, "revocation"),
        (Recall, "recall"),
        (Shipped, "shipped"),
        (CeremonyRecord, "ceremony"),
        (KeyAsset, "key_asset"),
        (LocalIdentity, "local_identity"),
        (WaitingEnrolment, "waiting_enrolment"),
        (CMPTransaction, "cmp_transaction"),
        (SharedCredential, "shared_credential"),
        (FleetAuthority, "fleet_authority"),
        (ForeignCRL, "foreign_crl"),
        (ForeignCRLOctets, "foreign_crl_octets"),
        (FieldDevice, "field_device"),
    )
}
"""The mapping of each kind of value."""
