"""What a realm is to be, and its settings file: the one place where the file's text is made.

Every value is written as a TOML string by one function, so that no name can become syntax; paths inside the
realm's directory are relative to it, so that the directory may be moved.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from birthmark import errors
from birthmark.edge.addresses import plane_url, public_host
from birthmark.floor.clients import FEWEST_OFFICERS, check_name
from birthmark.floor.locations import Locations
from birthmark.floor.realm import Environment
from birthmark.pki.keys import KeyAlgorithm, KeyLabel, check_label
from birthmark.settings import check_database_url

__all__ = ["DEVICE_PORT", "KeyPlace", "Plan", "key_store_text", "render"]

DEVICE_PORT = 8445


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPlace:
    """Where the service's keys are to be: in a token, or in encrypted files."""

    token: Path | None = None
    """The PKCS#11 module."""
    token_label: str = ""
    pin_file: Path | None = None
    passphrase_file: Path | None = None
    """Of the software store; None to generate one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a realm is to be."""

    realm: str
    organization: str
    environment: Environment
    site: str
    line: str
    host: str
    port: int
    dns_names: tuple[str, ...]
    ip_addresses: tuple[str, ...]
    stations: tuple[str, ...]
    operators: tuple[str, ...]
    """Ids of the first officers; the first is the custodian of a test realm's own ceremony."""
    log_origin: str
    database_url: str
    database_password_file: Path | None
    keys: KeyPlace = field(default_factory=KeyPlace)
    root_passphrase_file: Path | None = None
    key_algorithm: KeyAlgorithm = KeyAlgorithm.EC_P256
    authority: str = "issuing-1"
    key_prefix: str = ""
    development_keys: bool = False
    device_port: int | None = None
    """Port of the device plane; None to have none yet."""
    publication_url: str | None = None
    """Base of the locations that certificates name; None to publish nothing yet."""
    gateway_port: int | None = None
    """Where devices in the field report; None for no gateway."""

    def check(self, *, with_papers: bool = False) -> None:
        """Refuse a plan that cannot become a realm.

        Args:
            with_papers: custodians perform a ceremony of their own.

        Raises:
            errors.MalformedRequest: a name, an address or the database's url is not one.
            errors.PolicyRefused: a production realm with its keys in files, and nobody said that this is
                meant, or whose keys nobody but its first operator would have seen made.
        """
        for what, name in (
            *(("station", name) for name in self.stations),
            *(("operator", name) for name in self.operators),
        ):
            check_name(what, name)
        if len(set(self.stations)) != len(self.stations):
            raise errors.MalformedRequest("a station is named twice")
        if len(set(self.operators)) != len(self.operators):
            raise errors.MalformedRequest("an operator is named twice")
        if self.environment is Environment.PRODUCTION and len(self.operators) < FEWEST_OFFICERS:
            raise errors.PolicyRefused(
                "officers",
                f"a production realm begins with {FEWEST_OFFICERS} officers: nobody opens a run or lets"
                " somebody in alone; name them with --operator, given again",
            )
        for label in (self.label("log"), self.label(self.authority)):
            check_label(label)
        if self.device_port is not None and self.device_port == self.port:
            raise errors.MalformedRequest("the station plane and the device plane need a port each")
        for text in self.ip_addresses:
            try:
                ip_address(text)
            except ValueError as cause:
                raise errors.MalformedRequest(f"{text!r} is no IP address") from cause
        self._check_names()
        self._check_custody()
        if self.environment is Environment.PRODUCTION and not with_papers:
            raise errors.PolicyRefused(
                "custodians",
                "the keys of a production realm are made in a ceremony that at least two custodians attend:"
                " begin with 'birthmark ceremony template realm', and give --ceremony FILE",
            )

    def _check_names(self) -> None:
        check_name("realm", self.realm, longest=40)  # the maker's own name is the organization
        text = self.organization
        if not text.strip() or not text.isprintable() or text != text.strip() or len(text) > 50:
            raise errors.MalformedRequest(f"the organization is 1 to 50 visible characters, not {text!r}")
        if any(c.isspace() for c in self.log_origin) or "+" in self.log_origin or not self.log_origin:
            raise errors.MalformedRequest(
                f"a log's origin has no spaces and no plus (C2SP signed-note): {self.log_origin!r}"
            )
        check_database_url(self.database_url)
        if self.publication_url is not None:
            Locations(self.publication_url)

    def _check_custody(self) -> None:
        if self.keys.token is not None:
            if not self.keys.token_label or self.keys.pin_file is None:
                raise errors.MalformedRequest("a token needs --token-label and --token-pin-file")
            if self.keys.passphrase_file is not None or self.development_keys:
                raise errors.MalformedRequest("keys are in a token or in files, not in both")
        elif self.environment is Environment.PRODUCTION and not self.development_keys:
            raise errors.PolicyRefused(
                "production-keys-in-a-token",
                "a production realm keeps its keys in a PKCS#11 token, where they cannot be copied: give"
                " --token-module, or say --development-keys to have them in files on this machine",
            )

    def label(self, name: str) -> KeyLabel:
        """Return the key store's label for a key."""
        return KeyLabel(f"{self.key_prefix}{name}")

    @property
    def authority_name(self) -> str:
        """Common name of the first issuing authority."""
        return f"{self.realm} Issuing CA 1"

    @property
    def external_database(self) -> bool:
        """True if the database is not a file in the realm's directory."""
        return self.database_url != "sqlite:///birthmark.db"

    @property
    def variables(self) -> Mapping[str, str]:
        """What the names of the authorities are made of."""
        return {
            "organization": self.organization,
            "realm": self.realm,
            "environment_mark": self.environment.mark,
        }

    @property
    def server_variables(self) -> Mapping[str, str]:
        """What the server's certificate says."""
        return {
            "organization": self.organization,
            "host": self.public_host,
            "dns_names": " ".join(self.dns_names),
            "ip_addresses": " ".join(self.ip_addresses),
        }

    @property
    def public_host(self) -> str:
        """The name or address under which clients find the server: one that its certificate has."""
        return public_host(self.host, self.dns_names, self.ip_addresses)

    @property
    def url(self) -> str:
        """Where stations find the service."""
        return plane_url(self.public_host, self.port)


def _string(value: object) -> str:
    """Return a TOML basic string; JSON's escapes are TOML's, once DEL is escaped, too."""
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def render(plan: Plan) -> str:
    """Return the text of ``birthmark.toml``."""
    database = f"url = {_string(plan.database_url)}\n"
    if plan.database_password_file is not None:
        database += f"password-file = {_string(plan.database_password_file.resolve())}\n"
    return f"""\
# Birthmark: the settings of one realm.  Relative paths are relative to this file; secrets are in files of
# their own, readable by their owner alone.  'birthmark config check' tries everything that is written here.

[realm]
name = {_string(plan.realm)}
# "test" or "production": as the database was made; what one issues, the other never accepts.
environment = {_string(plan.environment)}
organization = {_string(plan.organization)}

[database]
# sqlite:///FILE, or postgresql://USER@HOST:PORT/NAME with its password in a password-file.
{database}
[key-store]
{key_store_text(plan.keys, "secrets/keystore.passphrase")}
[log]
# Label of the Ed25519 key that signs checkpoints; its public half is in log.vkey.
key = {_string(plan.label("log"))}

[station-plane]
# Mutual TLS 1.3; stations find it at {plan.url}
host = {_string(plan.host)}
port = {plan.port}
certificate-file = "server.crt"
key-file = "secrets/server.key"
key-passphrase-file = "secrets/server.passphrase"
# The realm's root: clients chain to it.
client-ca-file = "root.crt"
# Processes that share the database; one a core is plenty.
processes = 1

{_planes(plan)}
{_gateway(plan)}
{_publication(plan.publication_url)}"""


def _planes(plan: Plan) -> str:
    """Return the tables of the planes that are reached without a certificate, in comments if not wanted."""
    mark = "# " if plan.device_port is None else ""
    return f"""\
# EST (https://HOST:PORT/.well-known/est/RUN) and CMP, for devices that come by themselves with a certificate
# or a one-time code ('birthmark bootstrap code'); the server's certificate is that of the station plane.
{mark}[device-plane]
{mark}host = {_string(plan.host)}
{mark}port = {plan.device_port or DEVICE_PORT}

# Where stations get in with a one-time code ('birthmark station invite').
# [enrolment-plane]
# host = {_string(plan.host)}
# port = 8444
"""


def _gateway(plan: Plan) -> str:
    """Return the ``[gateway-plane]`` table, or a word about it where there is none yet."""
    if plan.gateway_port is None:
        return "# Devices in the field report to a [gateway-plane]: docs/gateway.md\n"
    return f"""\
[gateway-plane]
# Devices in the field report here, and proxies ask about them: mutual TLS 1.3, docs/gateway.md.
host = {_string(plan.host)}
port = {plan.gateway_port}
certificate-file = "gateway.crt"
key-file = "secrets/gateway.key"
key-passphrase-file = "secrets/gateway.passphrase"
# The next pair, which devices are told of beforehand: 'birthmark gateway prepare' makes it.
next-certificate-file = "gateway-next.crt"
next-key-file = "secrets/gateway-next.key"
"""


def _publication(url: str | None) -> str:
    """Return the ``[publication]`` table, in comments where nothing is published yet."""
    mark = "# " if url is None else ""
    return f"""\
# Where CRLs, authorities' certificates, OCSP answers and the log are found: 'birthmark publish' writes them.
# Certificates name the url for life, so runs opened before it stands here get certificates without it.
{mark}[publication]
{mark}url = {_string(url or "http://pki.example.com")}
{mark}directory = "www"
"""


def key_store_text(keys: KeyPlace, passphrase_file: str) -> str:
    """Return the body of a ``[key-store]`` table; ``passphrase_file`` is where a generated one lies."""
    if keys.token is not None and keys.pin_file is not None:
        return (
            'kind = "pkcs11"\n'
            f"module = {_string(keys.token.resolve())}\n"
            f"token = {_string(keys.token_label)}\n"
            f"pin-file = {_string(keys.pin_file.resolve())}\n"
        )
    passphrase = keys.passphrase_file.resolve() if keys.passphrase_file else passphrase_file
    return (
        "# Encrypted files, opened in process memory: a development store.\n"
        'kind = "software"\n'
        'directory = "keys"\n'
        f"passphrase-file = {_string(passphrase)}\n"
    )
