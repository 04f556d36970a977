"""The configuration: one TOML file, read once, frozen; a typo is an error at start, not a default.

Paths are relative to the file's own directory.  Secrets are given as paths of files, never as values.  What a
host does follows from the tables its file has: a public host has neither ``[key-store]`` nor
``[station-plane]``, and what needs one of them says so.
"""

import tomllib
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar, cast
from urllib.parse import parse_qsl, urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator

from birthmark import errors
from birthmark.floor.limits import Rate
from birthmark.floor.locations import Locations
from birthmark.settings_device import DevicePlane
from birthmark.settings_enrolment import EnrolmentPlane
from birthmark.settings_gateway import GatewayPlane
from birthmark.settings_table import Table as _Table

__all__ = [
    "DatabaseSettings",
    "EnrolmentPlane",
    "KeyStoreSettings",
    "OpsPlane",
    "PublicPlane",
    "PublicationSettings",
    "RealmSettings",
    "ServiceSettings",
    "Settings",
    "SoftwareKeys",
    "StationPlane",
    "Tracing",
    "check_database_url",
    "load",
]


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


class RealmSettings(_Table):
    """Which realm this service serves; it must be the database's."""

    name: str
    environment: Literal["test", "production"]
    organization: str


class DatabaseSettings(_Table):
    """Where the record lies."""

    url: str
    """``sqlite:///FILE`` or ``postgresql://USER@HOST:PORT/NAME``, without a password; a server and its
    standbys are ``postgresql://USER@HOST:PORT,HOST:PORT/NAME``."""
    password_file: Path | None = None
    synchronous_standbys: int = Field(default=0, ge=0, le=16)
    """How many synchronous standbys PostgreSQL must wait for at least; a server that waits for fewer is
    refused."""

    @field_validator("url")
    @classmethod
    def _checked(cls, url: str) -> str:
        try:
            check_database_url(url)
        except errors.MalformedRequest as wrong:
            raise ValueError(str(wrong)) from wrong
        return url

    @model_validator(mode="after")
    def _has_standbys(self) -> Self:
        if self.synchronous_standbys and self.url.startswith("sqlite:"):
            raise ValueError("an embedded database has no synchronous-standbys")
        return self


class SoftwareKeys(_Table):
    """Encrypted key files: for development."""

    kind: Literal["software"]
    directory: Path
    passphrase_file: Path


class StandbyToken(_Table):
    """A second token with the same keys."""

    module: Path
    token: str
    pin_file: Path


class TokenKeys(_Table):
    """A PKCS#11 token, and perhaps one that stands in for it."""

    kind: Literal["pkcs11"]
    module: Path
    token: str
    pin_file: Path
    answer_seconds: float = Field(default=10, gt=0, le=600)
    """How long the service waits for the token before it says that it hangs."""
    check_seconds: float = Field(default=5, gt=0, le=3600)
    """How often the running service examines the token and the keys it has used."""
    give_up_seconds: float = Field(default=60, gt=0, le=86400)
    """How long a call may hang before the service's process ends, to be started again."""
    standby: StandbyToken | None = None
    """Works while this token does not; keys are never made there."""
    return_checks: int = Field(default=3, ge=1, le=1000)
    """After so many good examinations in a row the token works again in place of its standby."""

    @model_validator(mode="after")
    def _checked(self) -> Self:
        if self.give_up_seconds <= self.answer_seconds:
            raise ValueError("give-up-seconds must be longer than answer-seconds")
        if self.standby is not None and (self.standby.module, self.standby.token) == (
            self.module,
            self.token,
        ):
            raise ValueError("the standby is the token itself")
        return self


KeyStoreSettings = Annotated[SoftwareKeys | TokenKeys, Field(discriminator="kind")]


class ServiceSettings(_Table):
    """As whom ``birthmark serve`` works, where root starts it: to bind a port below 1024, say."""

    user: str | None = None
    """It becomes this user for good when its sockets are bound."""
    group: str | None = None
    """And a member of this group; of the user's own where it is left out."""
    allow_root: bool = False
    """Root may serve a realm of production."""

    @model_validator(mode="after")
    def _checked(self) -> Self:
        if self.group is not None and self.user is None:
            raise ValueError("a group is that of a user: set user, too")
        return self


class ClockSettings(_Table):
    """The machine's clock."""

    jump_seconds: float = Field(default=30, gt=0, le=86400)
    """The service is held while the time of day is farther than this from where it should be."""


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
    require_operator: bool = False
    """Refuse what a station does without saying who stands at it."""
    client_per_minute: int = Field(default=6000, ge=1)
    """How many acts a client may make a minute on average; a device takes two to five."""
    client_burst: int = Field(default=3000, ge=1)
    """How many it may make at once."""
    stranger_per_minute: int = Field(default=60, ge=1)
    """How many refusals of those who are no clients are put on record a minute on average; the others are
    counted."""
    stranger_burst: int = Field(default=600, ge=1)
    run_per_minute: int = Field(default=60_000, ge=1)
    """How many devices a run admits a minute on average."""
    run_burst: int = Field(default=30_000, ge=1)
    request_seconds: int = Field(default=30, ge=1)
    """How long a request may take to arrive."""
    answer_seconds: int = Field(default=30, ge=1)
    """How long an answer may wait for the client to take it."""
    keep_alive_seconds: int = Field(default=75, ge=1)
    """How long a connection is kept on which nothing is asked."""
    handshake_seconds: int = Field(default=10, ge=1, le=60)
    """How long a handshake may take."""
    max_connections: int = Field(default=1000, ge=1, le=100_000)
    """Of one process, as the next three."""
    max_connections_per_address: int = Field(default=500, ge=1)
    """From one IPv4 address, or one IPv6 network of 64 bits."""
    max_connections_per_client: int = Field(default=100, ge=1)
    """With one certificate."""
    max_handshakes: int = Field(default=200, ge=1)
    """Not finished at a time; who comes then takes the place of the oldest."""

    @model_validator(mode="after")
    def _gangs_fit(self) -> Self:
        if self.max_gang > min(self.client_burst, self.run_burst):
            raise ValueError("a gang of max-gang devices would never fit into client-burst and run-burst")
        return self

    @property
    def client_rate(self) -> Rate:
        """How fast each client may go."""
        return Rate(per_minute=self.client_per_minute, burst=self.client_burst)

    @property
    def stranger_rate(self) -> Rate:
        """How fast refusals of all who are no clients are put on record."""
        return Rate(per_minute=self.stranger_per_minute, burst=self.stranger_burst)

    @property
    def run_rate(self) -> Rate:
        """How fast each run admits devices."""
        return Rate(per_minute=self.run_per_minute, burst=self.run_burst)


class PublicationSettings(_Table):
    """What the realm publishes, and when (SPEC F2); written by ``birthmark publish``."""

    url: str
    """Base of the locations that certificates name, e.g. ``http://pki.example.com``: never changes again."""
    directory: Path
    crl_hours: int = Field(default=48, ge=1, le=24 * 366)
    """From a CRL's thisUpdate to its nextUpdate."""
    crl_refresh_hours: int = Field(default=12, ge=1, le=24 * 366)
    """After so long a CRL is made anew, even if nothing changed."""
    crl_alarm_hours: int = Field(default=24, ge=1, le=24 * 366)
    """So long before nextUpdate a CRL that was not replaced is an alarm."""
    delta_hours: int | None = Field(default=None, ge=1, le=24 * 366)
    """From a delta CRL's thisUpdate to its nextUpdate; without it there are none, and the full CRL is made
    anew whenever something changed."""
    offline_alarm_hours: int = Field(default=14 * 24, ge=1, le=24 * 366)
    """The same for the CRLs of authorities whose keys are offline: a ceremony has to be called."""
    behind_minutes: int = Field(default=15, ge=1)
    """A revocation that is not published after so long is an alarm."""
    watch_seconds: int = Field(default=10, ge=1, le=3600)
    """How often ``birthmark publish --watch`` looks."""
    partitions: bool = True
    """Publish the CRLs of runs and batches that were partitioned."""
    log_entries: bool = False
    """Publish what the log's entries say: every device, for everyone.  Their hashes are published anyway."""
    ocsp: bool = False
    """Sign answers for every certificate beforehand (RFC 5019)."""
    ocsp_hours: int = Field(default=72, ge=1, le=24 * 366)
    """From thisUpdate to nextUpdate of an answer that was signed beforehand."""
    ocsp_refresh_hours: int = Field(default=24, ge=1, le=24 * 366)
    ocsp_hashes: tuple[Literal["sha1", "sha256"], ...] = ("sha1",)
    """With which hashes clients may ask; the lightweight profile asks with SHA-1 (RFC 5019 section 2.1.1)."""

    @model_validator(mode="after")
    def _checked(self) -> Self:
        try:
            Locations(self.url)
        except errors.MalformedRequest as wrong:
            raise ValueError(str(wrong)) from wrong
        if self.crl_refresh_hours + self.crl_alarm_hours > self.crl_hours:
            raise ValueError("a CRL that is refreshed in time would raise the alarm: crl-hours is too short")
        if self.delta_hours is not None and self.delta_hours >= self.crl_hours:
            raise ValueError("a delta would outlive the CRL that it adds to: delta-hours is too long")
        if self.ocsp_refresh_hours >= self.ocsp_hours:
            raise ValueError("answers would end before they are refreshed: ocsp-hours is too short")
        return self

    @property
    def locations(self) -> Locations:
        """What certificates name."""
        return Locations(self.url)


class PublicPlane(_Table):
    """The listener for everyone: plain HTTP, no key of an authority, nothing that is not public (SPEC F4)."""

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    directory: Path | None = None
    """What is served; that of ``[publication]`` where it is left out."""
    prefix: str = Field(default="", pattern=r"^(/[A-Za-z0-9._~-]+)*$")
    """Before every path, as in the locations that certificates name: ``/pki``."""
    processes: int = Field(default=1, ge=1, le=64)
    ocsp: Literal["live", "presigned", "off"] = "off"
    """Answer from the database with the responder's key, from files without any, or not at all."""
    ocsp_minutes: int = Field(default=60, ge=1)
    """From thisUpdate to nextUpdate of a live answer."""
    responder: str = "ocsp"
    """Name of the responder, and label of its key."""
    key_store: KeyStoreSettings | None = None
    """Where the responder's key is; never the store of the authorities' keys."""
    crl_cache_seconds: int = Field(default=3600, ge=0)
    """The longest that others may go on serving a CRL from their caches."""
    request_seconds: int = Field(default=10, ge=1)
    """How long a request may take to arrive, and a quarter of a megabyte to leave."""
    max_connections: int = Field(default=1000, ge=1, le=100_000)
    """Of one process, as the next."""
    max_connections_per_address: int | None = Field(default=None, ge=1)
    """From one IPv4 address, or one IPv6 network of 64 bits; behind a proxy all have the same."""

    @model_validator(mode="after")
    def _checked(self) -> Self:
        if self.ocsp == "live" and self.key_store is None:
            raise ValueError("live answers need a key-store of the responder's own")
        return self


class OpsPlane(_Table):
    """The listener for those who watch the service: figures, health, readiness (SPEC K4); plain HTTP."""

    host: str = "127.0.0.1"
    port: int = Field(default=9464, ge=0, le=65535)
    exposed: bool = False
    """Listen on another address than a loopback one: everyone who reaches it can read the figures."""
    look_seconds: int = Field(default=10, ge=1, le=600)
    """How often it is tried whether the next device could be served."""
    silent_seconds: int = Field(default=15, ge=1, le=600)
    """A process whose event loop has not gone round for so long hangs."""
    least_free_megabytes: int = Field(default=256, ge=1)
    """What the disks that are written to must have left."""
    request_seconds: int = Field(default=5, ge=1)
    """How long a request may take to arrive."""
    max_connections: int = Field(default=64, ge=1)

    @model_validator(mode="after")
    def _checked(self) -> Self:
        if not self.exposed and not _is_loopback(self.host):
            raise ValueError(
                f"{self.host} is no loopback address: say exposed = true if others on its network may read"
            )
        return self


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


class Tracing(_Table):
    """Where traces of requests are sent (OpenTelemetry, OTLP over HTTP); nowhere without this table."""

    endpoint: str
    """E.g. ``http://127.0.0.1:4318/v1/traces``."""
    ratio: float = Field(default=1.0, ge=0.0, le=1.0)
    """How many of the traces that no client has decided about are kept."""

    @model_validator(mode="after")
    def _checked(self) -> Self:
        parts = urlsplit(self.endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("the endpoint is the address of a collector, http://HOST:4318/v1/traces")
        if parts.username is not None or parts.password is not None:
            raise ValueError(
                "the endpoint holds a password: put a collector on this host before the other one"
            )
        if not _has_tracing():
            raise ValueError(
                "traces need the extra: install birthmark[tracing] (requirements/tracing.txt), or take the"
                " table out"
            )
        return self


def _has_tracing() -> bool:
    try:
        return find_spec("opentelemetry.exporter.otlp.proto.http.trace_exporter") is not None
    except ModuleNotFoundError:
        return False


_T = TypeVar("_T")


def _need(table: _T | None, name: str, why: str) -> _T:
    if table is None:
        raise errors.NotFound(f"the settings have no [{name}]: {why}")
    return table


class Settings(_Table):
    """The whole configuration.

    The tables that not every host has are behind properties, which raise ``errors.NotFound`` where it is
    missing.
    """

    realm: RealmSettings
    database_table: DatabaseSettings | None = Field(default=None, alias="database")
    key_store_table: KeyStoreSettings | None = Field(default=None, alias="key-store")
    log: LogSettings = LogSettings()
    clock: ClockSettings = ClockSettings()
    service: ServiceSettings = ServiceSettings()
    profiles_directory: Path | None = None
    """Where this installation's own certificate profiles are; the packaged ones are always there."""
    elements_directory: Path | None = None
    """Likewise, the profiles of secure elements."""
    station_table: StationPlane | None = Field(default=None, alias="station-plane")
    enrolment_table: EnrolmentPlane | None = Field(default=None, alias="enrolment-plane")
    device_table: DevicePlane | None = Field(default=None, alias="device-plane")
    gateway_table: GatewayPlane | None = Field(default=None, alias="gateway-plane")
    publication_table: PublicationSettings | None = Field(default=None, alias="publication")
    public_table: PublicPlane | None = Field(default=None, alias="public-plane")
    ops_table: OpsPlane | None = Field(default=None, alias="ops-plane")
    tracing_table: Tracing | None = Field(default=None, alias="tracing")

    @model_validator(mode="after")
    def _checked(self) -> Self:
        for name, table in (("enrolment", self.enrolment_table), ("device", self.device_table)):
            if table is not None and self.station_table is None:
                raise ValueError(
                    f"{name}-plane: it has the certificate of the [station-plane], which is missing"
                )
        public = self.public_table
        if public is None:
            return self
        if public.directory is None and self.publication_table is None:
            raise ValueError("public-plane: a directory is needed where there is no [publication]")
        if public.ocsp == "live" and self.database_table is None:
            raise ValueError("public-plane: live answers need a [database]")
        if public.key_store is not None and public.key_store == self.key_store_table:
            raise ValueError("public-plane: its key-store is that of the authorities' keys")
        return self

    @property
    def database(self) -> DatabaseSettings:
        """Where the record lies."""
        return _need(self.database_table, "database", "this host has no record")

    @property
    def key_store(self) -> KeyStoreSettings:
        """Where the authorities' keys and the log's are."""
        if self.key_store_table is None:
            raise errors.NotFound("the settings have no [key-store]: this host holds no authority's key")
        return self.key_store_table

    @property
    def station_plane(self) -> StationPlane:
        """The listener for stations."""
        return _need(self.station_table, "station-plane", "this host serves no stations")

    @property
    def enrolment_plane(self) -> EnrolmentPlane:
        """The listener for stations that were invited."""
        return _need(self.enrolment_table, "enrolment-plane", "this host lets no stations in by a code")

    @property
    def device_plane(self) -> DevicePlane:
        """The listener for devices that enrol."""
        return _need(self.device_table, "device-plane", "this host lets no devices enrol")

    @property
    def gateway_plane(self) -> GatewayPlane:
        """The listener for devices in the field."""
        return _need(self.gateway_table, "gateway-plane", "this host meets no devices in the field")

    @property
    def publication(self) -> PublicationSettings:
        """What is published."""
        return _need(self.publication_table, "publication", "this host publishes nothing")

    @property
    def public_plane(self) -> PublicPlane:
        """The listener for everyone."""
        return _need(self.public_table, "public-plane", "this host serves nothing to the public")

    @property
    def ops_plane(self) -> OpsPlane:
        """The listener for those who watch."""
        return _need(self.ops_table, "ops-plane", "nobody watches this host over HTTP")

    @property
    def public_directory(self) -> Path:
        """What the public plane serves."""
        return self.public_plane.directory or self.publication.directory

    @property
    def responder_key_store(self) -> KeyStoreSettings:
        """Where the key of the OCSP responder is: its own store, or where answers are signed beforehand."""
        own = None if self.public_table is None else self.public_table.key_store
        return own or self.key_store


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
    except (ValueError, RecursionError) as cause:
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
                changes[name] = base / value  # which is the value, if it is absolute
            elif isinstance(value, tuple):
                changes[name] = tuple(base / one if isinstance(one, Path) else one for one in value)
            elif isinstance(value, _Table):
                changes[name] = anchor(value)
        return table.model_copy(update=changes)

    anchored = cast("Settings", anchor(settings))
    database = anchored.database_table
    url = "" if database is None else database.url
    if database is not None and url.startswith("sqlite:///") and not url.startswith("sqlite:////"):
        absolute = f"sqlite:///{base / url.removeprefix('sqlite:///')}"
        anchored = anchored.model_copy(
            update={"database_table": database.model_copy(update={"url": absolute})}
        )
    return anchored
