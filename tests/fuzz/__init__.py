"""Fuzzing: every decoder of foreign octets, driven until it breaks (docs/testing.md)."""
