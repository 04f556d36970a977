"""Relying parties that are not ours: each says what it thinks of a path, a CRL or an OCSP response.

A profile or a status service is right when those who will meet its output say so.  Each module here drives
one of them in a process of its own, hands it DER, and turns what it said into a ``Verdict``; nothing in here
decides anything itself.  What they think of good and of broken input is shown in ``tests/peers``, with
certificates that Birthmark had no hand in, so that a driver that says yes to everything is found out.
"""
