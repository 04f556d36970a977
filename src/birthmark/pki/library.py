"""What pyca/cryptography says of octets that it cannot read: our readers translate it where it appears."""

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

__all__ = ["UNREADABLE"]

UNREADABLE = (
    *(ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion),
    *(x509.DuplicateExtension, x509.UnsupportedGeneralNameType),
)
"""Raised for what is no certificate, request, CRL or key, or one that it does not know how to read.

Not only while it is loaded: extensions and keys are looked at when they are asked for.  That there is no such
extension (``x509.ExtensionNotFound``) is not among them: for some readers that is an answer.
"""
