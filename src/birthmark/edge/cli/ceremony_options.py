"""The options that commands about ceremonies share."""

from pathlib import Path
from typing import Annotated

import typer

from birthmark import errors
from birthmark.edge.application import Factory
from birthmark.edge.cli.ceremony_conduct import Papers
from birthmark.floor.ceremonies import SERVICE, Ceremony

__all__ = [
    "WAITING",
    "BroughtCertificate",
    "CeremonyFile",
    "Custodians",
    "OfficerPin",
    "OutFolder",
    "OwnProfiles",
    "Reviewed",
    "Stores",
    "papers_of",
]

WAITING = 3
"""Exit code of a ceremony that waits for a key elsewhere."""

CeremonyFile = Annotated[Path, typer.Argument(metavar="FILE", help="The reviewed file (YAML).")]
Custodians = Annotated[
    list[Path],
    typer.Option(
        "--custodian",
        metavar="DIR",
        help="Credential of a custodian who is there; given once for each.",
    ),
]
Reviewed = Annotated[
    list[str],
    typer.Option(metavar="SHA256", help="SHA-256 of the file that was reviewed; may be given by each."),
]
Stores = Annotated[
    list[str] | None,
    typer.Option("--store", metavar="NAME=DIR", help="Folder of an offline key store; may be given again."),
]
BroughtCertificate = Annotated[
    Path | None, typer.Option(metavar="FILE", help="The certificate, or the answer, to a request.")
]
OfficerPin = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="PIN of the token's security officer; for key-encryption keys only."),
]
OutFolder = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder of the ceremony. [FILE's name with .ceremony]")
]
OwnProfiles = Annotated[
    Path | None,
    typer.Option("--profiles", metavar="DIR", help="The realm's own profiles. [only the packaged ones]"),
]


def papers_of(
    factory: Factory,
    ceremony: Ceremony,
    given: tuple[list[Path], list[str], list[str] | None, Path | None, Path | None],
) -> Papers:
    """Return what people bring, from the options.

    Raises:
        errors.MalformedRequest: a store is not written NAME=DIR.
    """
    custodians, reviewed, stores, certificate, officer = given
    folders: dict[str, Path] = {}
    for text in stores or []:
        name, equals, path = text.partition("=")
        if not equals or not path or name in {"", SERVICE} or name in folders:
            raise errors.MalformedRequest(f"a store is written NAME=DIR, each once, not {text!r}")
        folders[name] = Path(path)
    return Papers(
        ceremony=ceremony,
        custodians=custodians,
        reviewed=reviewed,
        stores=folders,
        certificate=certificate,
        officer=None if officer is None else factory.read_secret(officer),
    )
