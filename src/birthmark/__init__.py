"""Birthmark: one permanent, provable identity for every device that leaves the line."""

__version__ = "0.1.0"
