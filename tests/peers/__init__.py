"""Verdicts of relying parties that are not ours, about others' certificates and about ours."""
