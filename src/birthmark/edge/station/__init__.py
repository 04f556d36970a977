"""The station's side: what test-fixture software imports.

    from birthmark.edge.station import Enclave, Station
    from birthmark.errors import Refusal

    with Station("/etc/birthmark/station", operator="mk") as station:
        with Enclave("/mnt/ecu/identity") as device:
            try:
                release = station.provision("2026-W47-A", scanned_vin, device)
            except Refusal as refused:
                show_fail(refused.code, str(refused))
            else:
                show_pass(release.device, release.token)

It needs the standard library and ``cryptography``, nothing of the server.  See ``Station`` for the methods,
``DeviceElement`` for what another kind of device has to offer (``SeveralSlots`` besides, if it can have
several certificates; ``HasSecureElement``, if keys go into its secure element; ``Attestable``, if it has a
TPM), and ``write_station_directory`` for the files.
"""

from birthmark.edge.station.answers import (
    DeviceStatus,
    ElementStatus,
    ElementStep,
    FurtherStatus,
    Issued,
    IssuedCertificate,
    Me,
    Proved,
    Release,
    RunStatus,
)
from birthmark.edge.station.attesting import Answered, Asked, Attestable, Endorsed
from birthmark.edge.station.bodies import InjectItem, IssueItem, ProofItem
from birthmark.edge.station.client import Station
from birthmark.edge.station.credentials import Credentials, read_station_directory, write_station_directory
from birthmark.edge.station.element import DeviceElement, DeviceSlot, HasSecureElement, SeveralSlots
from birthmark.edge.station.enclave import Enclave
from birthmark.edge.station.injecting import Carried
from birthmark.edge.station.pending import Journal, Pending, Phase

__all__ = [
    "Answered",
    "Asked",
    "Attestable",
    "Carried",
    "Credentials",
    "DeviceElement",
    "DeviceSlot",
    "DeviceStatus",
    "ElementStatus",
    "ElementStep",
    "Enclave",
    "Endorsed",
    "FurtherStatus",
    "HasSecureElement",
    "InjectItem",
    "IssueItem",
    "Issued",
    "IssuedCertificate",
    "Journal",
    "Me",
    "Pending",
    "Phase",
    "ProofItem",
    "Proved",
    "Release",
    "RunStatus",
    "SeveralSlots",
    "Station",
    "read_station_directory",
    "write_station_directory",
]
