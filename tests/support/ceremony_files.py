"""Texts of ceremony files, made as the command makes them."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from birthmark.pki.keys import KeyAlgorithm
from birthmark.services.ceremony_templates import Head, Issuing, issuing_file, realm_file
from tests.support.ceremonies import Person

__all__ = ["ENDS", "head", "issuing", "issuing_text", "realm_text"]

ENDS = datetime(2030, 1, 1, tzinfo=UTC)


def head(people: Sequence[Person], *, required: int = 1, ceremony: str = "acme-1", **fields: Any) -> Head:
    """Return what a file of realm ``acme`` says first."""
    values: dict[str, Any] = {"realm": "acme", "environment": "test", "purpose": "realm"} | fields
    custodians = [person.custodian for person in people]
    return Head(ceremony=ceremony, required=required, custodians=custodians, **values)


def issuing(**fields: Any) -> Issuing:
    """Return the order of an issuing authority."""
    values: dict[str, Any] = {
        "authority": "issuing-1",
        "label": "issuing-1",
        "algorithm": KeyAlgorithm.EC_P256,
        "issuer": "root",
        "owner": "quality",
        "ends": ENDS,
        "subject": {"organization": "Acme Motors", "authority": "acme Issuing CA 1"},
    } | fields
    return Issuing(**values)


def realm_text(people: Sequence[Person], *, required: int = 1, **fields: Any) -> str:
    """Return the file of a new realm."""
    return realm_file(
        head(people, required=required, **fields),
        issuing(),
        root="root",
        root_store="root",
        organization="Acme Motors",
        log="log",
    )


def issuing_text(people: Sequence[Person], *, required: int = 1, ceremony: str, **fields: Any) -> str:
    """Return the file of one more authority."""
    return issuing_file(head(people, required=required, ceremony=ceremony), issuing(**fields))
