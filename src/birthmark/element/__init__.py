"""Secure elements: their commands, secure channels, keys and procedures, as values and dialogues without I/O.

Import the modules, not this package: a station carries only what it needs.
"""
