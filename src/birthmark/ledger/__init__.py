"""The audit log: its entries, its tree, its signed checkpoints, and the verifier an auditor carries away.

Import the modules, not this package: nothing is loaded here, so that ``birthmark.ledger.verify`` brings no
more than it needs.
"""
