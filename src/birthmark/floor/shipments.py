"""What has left the building, as the warehouse or the MES says (SPEC E8)."""

from dataclasses import dataclass
from datetime import datetime

__all__ = ["Shipped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipped:
    """A device that was shipped; the first report of it counts."""

    device: str
    """Device id, e.g. ``vin:1M8GDM9AXKP042788``."""
    consignment: str
    """The delivery it went with."""
    at: datetime
    """When it was reported."""
