"""The options that many commands share, so that each is spelled and explained once."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["DEFAULT_SETTINGS", "AsDirectory", "AsJson", "Csr", "Out", "Reason", "SettingsPath"]

DEFAULT_SETTINGS = Path("birthmark.toml")
"""Where the settings are looked for: in the working directory, which is the realm's own after ``cd``."""

SettingsPath = Annotated[
    Path,
    typer.Option(
        "--settings", envvar="BIRTHMARK_SETTINGS", metavar="PATH", help="The realm's settings file."
    ),
]
AsDirectory = Annotated[
    Path | None,
    typer.Option(
        "--as",
        envvar="BIRTHMARK_OPERATOR",
        metavar="DIR",
        help="The acting operator's credential directory; may be left out while there is only one under "
        "'operators' beside the settings.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Out = Annotated[
    Path,
    typer.Option(
        "--out", metavar="DIR", help="New directory for the credential; must not exist or be empty."
    ),
]
Csr = Annotated[
    Path | None,
    typer.Option(
        "--csr",
        metavar="FILE",
        help="Certify the key of this PKCS #10 request instead of making one; its private key stays there.",
    ),
]
Reason = Annotated[str, typer.Option("--reason", help="Why; goes into the audit log.")]
