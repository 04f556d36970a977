"""The table of targets: everything that reads octets from outside, the most exposed first."""

from collections.abc import Mapping

from tests.fuzz.cmp_plane_targets import CMP_PLANE_TARGETS
from tests.fuzz.cmp_targets import CMP_TARGETS
from tests.fuzz.device_targets import DEVICE_TARGETS
from tests.fuzz.element_targets import ELEMENT_TARGETS
from tests.fuzz.est_targets import EST_TARGETS
from tests.fuzz.fleet_targets import FLEET_TARGETS
from tests.fuzz.floor_targets import FLOOR_TARGETS
from tests.fuzz.gateway_targets import GATEWAY_TARGETS
from tests.fuzz.ledger_targets import LEDGER_TARGETS
from tests.fuzz.pki_targets import PKI_TARGETS
from tests.fuzz.plane_targets import PLANE_TARGETS
from tests.fuzz.sealed_targets import SEALED_TARGETS
from tests.fuzz.station_targets import STATION_TARGETS
from tests.fuzz.target import Target

__all__ = ["TARGETS"]

TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        *PLANE_TARGETS,
        *DEVICE_TARGETS,
        *CMP_PLANE_TARGETS,
        *GATEWAY_TARGETS,
        *PKI_TARGETS,
        *CMP_TARGETS,
        *EST_TARGETS,
        *FLEET_TARGETS,
        *ELEMENT_TARGETS,
        *LEDGER_TARGETS,
        *SEALED_TARGETS,
        *STATION_TARGETS,
        *FLOOR_TARGETS,
    )
}
