"""The configuration: one TOML file, read once, frozen; a typo is an error at start, not a default.

Paths are relative to the file's own directory.  Secrets are given as paths of files, never as values.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Literal, cast
from urllib.parse import parse_qsl, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from birthmark import errors

__all__ = [
    "DatabaseSettings",
    "KeyStoreSettings",
    "RealmSettings",
    "Settings",
    "StationPlane",
    "check_database_url",
    "load",
]


def _kebab(name: str) -> str:
    return name.replace("_", "-")


def check_database_url(url: str) -> None:
    """Refuse a database URL that is none of ours, or that holds a password.

    Raises:
        errors.MalformedRequest: it does; the message does not repeat it.
    """
    if not url.startswith(("sqlite:///", "postgresql://")):
        raise errors.MalformedRequest(
            f"a database url starts with sqlite:/// or postgresql://, not {url.partition(':')[0]}:"
        )
    try:
        parts = urlsplit(url)
        asked = dict(parse_qsl(parts.query, keep_blank_values=True))
    except ValueError as cause:
        raise errors.MalformedRequest("the database url is none") from cause
    # libpq takes any of its parameters from the query, too (PostgreSQL 15, section 34.1.1.2).
    if parts.password is not None or not asked.keys().isdisjoint({"password", "sslpassword"}):
        raise errors.MalformedRequest(
            "the database url holds a password, which others have seen now: change it, and put the password"
            " into a password-file"
        )


class _Table(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=_kebab,
        populate_by_name=True,
        hide_input_in_errors=True,  # a value that does not belong here may be a secret
    )


class RealmSettings(_Table):
    """Which realm this service serves; it must be the database's."""

    name: str
    environment: Literal["test", "production"]
    organization: str


class DatabaseSettings(_Table):
    """Where the record lies."""

    url: str
    """``sqlite:///FILE`` or ``postgresql://USER@HOST:PORT/NAME``, without a password."""
    password_file: Path | None = None

    @field_validator("url")
    @classmethod
    def _checked(cls, url: str) -> str:
        try:
            check_database_url(url)
        except errors.MalformedRequest as wrong:
            raise ValueError(str(wrong)) from wrong
        return url


class SoftwareKeys(_Table):
    """Encrypted key files: for development."""

    kind: Literal["software"]
    directory: Path
    passphrase_file: Path


class TokenKeys(_Table):
    """A PKCS#11 token."""

    kind: Literal["pkcs11"]
    module: Path
    token: str
    pin_file: Path


KeyStoreSettings = Annotated[SoftwareKeys | TokenKeys, Field(discriminator="kind")]


class LogSettings(_Table):
    """The log's key."""

    key: str = "log"


class StationPlane(_Table):
    """The listener stations and bootstrapping devices talk to: mutual TLS 1.3, nothing else."""

    host: str = "127.0.0.1"
    port: int = Field(default=8443, ge=0, le=65535)
    certificate_file: Path
    """The server's certificate and the authorities above it (PEM)."""
    key_file: Path
    key_passphrase_file: Path
    client_ca_file: Path
    """The realm's root: clients chain to it (PEM)."""
    processes: int = Field(default=1, ge=1, le=64)
    max_body_bytes: int = Field(default=4_194_304, ge=1024)
    max_gang: int = Field(default=256, ge=1, le=512)
    request_seconds: int = Field(default=30, ge=1)
    """How long a request may take to arrive."""


class Settings(_Table):
    """The whole configuration."""

    realm: RealmSettings
    database: DatabaseSettings
    key_store: KeyStoreSettings
    log: LogSettings = LogSettings()
    station_plane: StationPlane


def load(path: Path) -> Settings:
    """Read the settings file.

    Raises:
        errors.NotFound: there is no such file.
        errors.MalformedRequest: it is not TOML, has an unknown key, or a value that cannot be.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as cause:
        raise errors.NotFound(f"cannot read the settings file {path}: {cause.strerror}") from cause
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as cause:
        raise errors.MalformedRequest(f"{path} is not TOML: {cause}") from cause
    try:
        settings = Settings.model_validate(table)
    except ValidationError as cause:
        first = cause.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        said = first["msg"].removeprefix("Value error, ")  # how pydantic begins what a validator of ours says
        raise errors.MalformedRequest(f"{path}: {place}: {said}") from cause
    return _anchored(settings, path.resolve().parent)


def _anchored(settings: Settings, base: Path) -> Settings:
    """Return the settings with every relative path made absolute."""

    def anchor(table: _Table) -> _Table:
        changes: dict[str, object] = {}
        for name in type(table).model_fields:
            value = getattr(table, name)
            if isinstance(value, Path):
                changes[name] = value if value.is_absolute() else base / value
            elif isinstance(value, _Table):
                changes[name] = anchor(value)
        return table.model_copy(update=changes)

    anchored = cast("Settings", anchor(settings))
    url = anchored.database.url
    if url.startswith("sqlite:///") and not url.startswith("sqlite:////"):
        absolute = f"sqlite:///{base / url.removeprefix('sqlite:///')}"
        anchored = anchored.model_copy(
            update={"database": anchored.database.model_copy(update={"url": absolute})}
        )
    return anchored
