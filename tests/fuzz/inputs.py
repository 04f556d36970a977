"""Inputs that once broke a target, kept for ever: tests/vectors/fuzz/NAME/, each folder with its ORIGIN."""

from pathlib import Path

__all__ = ["KEPT", "kept"]

KEPT = Path(__file__).parent.parent / "vectors" / "fuzz"


def kept(name: str) -> list[Path]:
    """Return those of one target."""
    return sorted(file for file in KEPT.glob(f"{name}/*") if file.name != "ORIGIN")
