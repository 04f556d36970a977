"""Vehicle identification numbers for vehicles that do not exist: valid, with their check digits computed."""

import secrets
from collections.abc import Iterator

from birthmark.floor.hardware_ids import vin_check_digit

WMI = "1M8"
"""World manufacturer identifier, positions 1 to 3; the one of the well-known sample 1M8GDM9AXKP042788."""

_MODEL_YEAR = "T"
"""Position 10: 2026 (49 CFR 565.15(d), table VII)."""
_MODELS = ("GDM9A", "TRH4S", "KCX7E", "PLB2W")
_PLANTS = "PRD"


def vins() -> Iterator[str]:
    """Yield VINs, each once: the serial number, positions 12 to 17, counts up from a random start."""
    start = secrets.randbelow(500_000)
    for number in range(start, 1_000_000):
        model, plant = secrets.choice(_MODELS), secrets.choice(_PLANTS)
        yield with_check_digit(f"{WMI}{model}0{_MODEL_YEAR}{plant}{number:06}")


def with_check_digit(vin: str) -> str:
    """Return the VIN with position 9 as it must be."""
    return vin[:8] + vin_check_digit(vin) + vin[9:]


def with_wrong_check_digit(vin: str) -> str:
    """Return the VIN with a position 9 that it must not have: what a scanner misread."""
    wrong = next(digit for digit in "0123456789X" if digit != vin_check_digit(vin))
    return vin[:8] + wrong + vin[9:]
