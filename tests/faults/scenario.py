"""What a scenario of the fault table is, and what several of them begin with."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from birthmark import errors
from birthmark.floor.clients import Role
from birthmark.floor.realm import Environment
from tests.faults.places import FOLDERS, Place
from tests.support.realm import Client, Line

__all__ = ["Prepared", "Scenario", "base_line", "bela", "csr", "folder_of", "one", "spki"]

Prepared = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One request that writes."""

    covers: tuple[str, ...]
    """Use cases (``module.name``) that it goes through; held against what it does go through."""
    request: Callable[[Place, Any], object]
    prepare: Callable[[Line], Prepared] = lambda _line: None
    """May leave files in the line's folder; they are copied with it."""
    environment: Environment = Environment.TEST
    orphan: tuple[str, ...] = ()
    """Steps that make what no commit takes back (a key in a store): once such a step is done and nothing of
    it is on record, the same request is refused (``IllegalTransition``), and people see to it."""
    slow: bool = False
    """It needs an RSA key, or keys that every process opens anew (scrypt): seconds, so only in the soak."""
    mend: Callable[[Place, Any], object] | None = None
    """What they ask then; None if they have to go to the store itself (docs/faults.md)."""


def base_line(line: Line) -> None:
    """Fill a new line with what all scenarios begin with."""
    if line.realm.environment is Environment.TEST:
        line.open_run()


def folder_of(line: Line) -> Path:
    """Return where a line's key stores lie."""
    return FOLDERS[line.url]


def bela(line: Line) -> Client:
    """Return the second officer, who is made anew."""
    return line.enrol(Role.OFFICER, "bob")


def spki() -> bytes:
    """Return a new public key."""
    made = ec.generate_private_key(ec.SECP256R1()).public_key()
    return made.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def csr() -> bytes:
    """Return a request with a new key."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    key = ec.generate_private_key(ec.SECP256R1())
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def one(results: list[Any]) -> Any:
    """Return the one result, or raise it if it is a refusal."""
    (result,) = results
    if isinstance(result, errors.Refusal):
        raise result
    return result
