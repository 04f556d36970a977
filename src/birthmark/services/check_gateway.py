"""Hold devices in the field against the log; a part of ``check``.

Where a device is, which certificate it showed last and how often it moved is in no entry: those change with
every journey, and a change to them alone is not found.
"""

from birthmark.floor.fleet import FieldDevice, FieldStatus
from birthmark.ledger.entry import time_text
from birthmark.ports import Store
from birthmark.services.check_report import Report, scan
from birthmark.services.gateway_testimony import FieldDeviceSaid, GatewaySaid

__all__ = ["check_gateway"]


def check_gateway(report: Report, store: Store, said: GatewaySaid) -> None:
    """Each device in the field is as the last entry about it says."""
    left = dict(said.devices)
    for device in scan(report, store, FieldDevice):
        report.counts["field devices"] += 1
        if left.pop(device.id, None) != _said_of(device):
            report.find(f"{device.id} in the field is not what the log says of it")
    for name in left:
        report.find(f"the log says {name} was seen in the field; it is gone")


def _said_of(device: FieldDevice) -> FieldDeviceSaid:
    return FieldDeviceSaid(
        fleet_authority=device.authority,
        first_seen_at=time_text(device.first_seen_at),
        first_seen_leaf=device.first_seen_leaf,
        held=(device.reason or "") if device.status is FieldStatus.HELD else None,
    )
