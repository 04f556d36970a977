"""``birthmark config check``: try everything the settings name, before the line does.

Each check is tried even if another failed, so that one run of the command shows all that is wrong.
"""

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import typer
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from birthmark import errors
from birthmark.edge import hardening
from birthmark.edge.application import Application, Factory
from birthmark.edge.cli import credentials, printing
from birthmark.edge.cli.options import DEFAULT_SETTINGS, AsDirectory, AsJson, SettingsPath
from birthmark.edge.cli.session import built, only_operator, opened, session_of
from birthmark.edge.pins import other_realms
from birthmark.floor.authorities import Authority, AuthorityKind, AuthorityStatus
from birthmark.floor.clients import Client, ClientStatus, Credential, Role
from birthmark.floor.devices import Attempt, Device, DeviceCertificate, IdentityRecord, KeyUse
from birthmark.floor.runs import AllowedDevice, Run
from birthmark.ledger.checkpoint import VerifierKey
from birthmark.pki import jwt
from birthmark.pki.algorithms import ALGORITHMS
from birthmark.pki.certificates import Certificate, from_pem
from birthmark.pki.keys import KeyAlgorithm, KeyLabel
from birthmark.ports import carry
from birthmark.services.acts import recognise
from birthmark.settings import Settings, SoftwareKeys, StationPlane, load
from birthmark.settings_gateway import GatewayPlane

__all__ = ["config"]

config = typer.Typer(name="config", no_args_is_help=True, help="The settings file.")

SOON = timedelta(days=30)
"""What ends sooner is told: whoever renews it needs some time.  A certificate that lives shorter than three
times as long, as a station's does, is told in the last third of its life."""
KINDS = (
    Authority,
    Client,
    Credential,
    Run,
    AllowedDevice,
    Device,
    Attempt,
    DeviceCertificate,
    KeyUse,
    IdentityRecord,
)
"""What a migrated database has a table for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Finding:
    check: str
    verdict: str
    """``ok``, ``soon`` (a certificate has to be renewed), ``warning`` or ``failed``."""
    text: str


class _Warning(Exception):
    """Works, and somebody should see to it."""

    verdict = "warning"


class _Soon(_Warning):
    """Works, and ends before long."""

    verdict = "soon"


class _Checks:
    """Tries one thing after the other."""

    def __init__(self) -> None:
        self.findings: list[_Finding] = []

    def of(self, check: str, attempt: Callable[[], str]) -> None:
        try:
            verdict, text = "ok", attempt()
        except _Warning as warning:
            verdict, text = warning.verdict, str(warning)
        except errors.Refusal as refusal:
            verdict, text = "failed", str(refusal)
        self.findings.append(_Finding(check=check, verdict=verdict, text=text))


@config.command()
def check(
    context: typer.Context,
    *,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
    as_json: AsJson = False,
) -> None:
    """Try all that the settings name: files, modes, database, keys, certificates; exit 1 if one fails.

    A certificate that ends within 30 days, or in the last third of a life shorter than 90, is told as
    "soon": the server's, the acting operator's, and those of the stations and operators on record.
    """
    loaded = load(settings)
    checks = _Checks()
    factory = session_of(context).factory()
    checks.of("settings", lambda: _settings_file(settings))
    checks.of("service user", lambda: _service_user(loaded))
    public = loaded.public_table is not None
    if public:
        checks.of("public plane", lambda: _public_plane(factory, loaded))
    gateway = loaded.gateway_table
    if gateway is not None:
        checks.of("gateway key", lambda: _server_key(factory, gateway))
        checks.of("gateway certificate", lambda: _server_certificate(factory, gateway, "gateway prepare"))
        checks.of("other realms", lambda: ", ".join(other_realms(gateway).values()) or "none named")
    if loaded.station_table is not None or not (public or gateway is not None):
        checks.of("server key", lambda: _server_key(factory, loaded.station_plane))
        checks.of(
            "server certificate", lambda: _server_certificate(factory, loaded.station_plane, "server renew")
        )
        checks.of("client authorities", lambda: _client_authorities(loaded.station_plane))
    if loaded.key_store_table is not None or not public:
        checks.of("key store", lambda: _key_store(factory, loaded))
        _check_service(checks, factory, loaded, settings, as_directory)
    _report(checks.findings, as_json=as_json)
    raise typer.Exit(1 if any(finding.verdict == "failed" for finding in checks.findings) else 0)


def _public_plane(factory: Factory, settings: Settings) -> str:
    application = factory.build_public(settings)
    application.close()
    if not application.directory.is_dir():
        raise _Warning(f"{application.directory} is not there yet: nothing is published")
    return f"{application.directory}, ocsp {settings.public_plane.ocsp}"


def _check_service(
    checks: _Checks, factory: Factory, loaded: Settings, settings: Path, as_directory: Path | None
) -> None:
    try:
        with built(factory, loaded) as application:
            checks.of("database", lambda: _database(application))
            checks.of("log key", lambda: _log_key(application))
            if loaded.station_table is not None:
                checks.of("root", lambda: _root(application))
            if loaded.gateway_table is not None:
                checks.of("keys of tokens", lambda: _token_keys(application))
            for authority in application.store.scan(Authority):
                if (
                    authority.kind is AuthorityKind.ISSUING
                    and authority.status is not AuthorityStatus.RETIRED
                ):
                    checks.of(f"authority {authority.id}", partial(_authority, application, authority))
            checks.of("acting operator", lambda: _acting_operator(application, settings, as_directory))
            for role in (Role.STATION, Role.OPERATOR):
                checks.of(f"{role}s", partial(_clients, application, role))
    except errors.Refusal as refusal:
        failure = str(refusal)
        checks.findings.append(_Finding(check="service", verdict="failed", text=failure))


def _report(findings: list[_Finding], *, as_json: bool) -> None:
    if as_json:
        rows = [{"check": one.check, "verdict": one.verdict, "text": one.text} for one in findings]
        printing.line(printing.json_text(rows))
    else:
        printing.columns(
            ("check", "verdict", "what"), ((one.check, one.verdict, one.text) for one in findings)
        )


def _settings_file(path: Path) -> str:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o022:
        raise errors.NotPermitted(f"{path} may be changed by others (mode {mode:04o}): run chmod go-w {path}")
    return str(path.resolve())


def _service_user(settings: Settings) -> str:
    service = settings.service
    if service.user is not None:
        hardening.require_user(service)
        return f"{service.user}, if root starts it" + (f", group {service.group}" if service.group else "")
    if os.geteuid() != 0 or service.allow_root:
        return "whoever starts it"
    if settings.realm.environment == "production":
        raise _Warning("root is refused: set user in [service], or start the service as another user")
    raise _Warning("root, if root starts it: set user in [service]")


def _leaf_and_chain(plane: StationPlane | GatewayPlane) -> list[Certificate]:
    return [Certificate.from_der(der) for der in from_pem(_text(plane.certificate_file))]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as cause:
        raise errors.NotFound(f"{path} cannot be read: {cause.strerror}") from cause
    except UnicodeDecodeError as cause:
        raise errors.MalformedRequest(f"{path} is not PEM") from cause


def _server_key(factory: Factory, plane: StationPlane | GatewayPlane) -> str:
    passphrase = factory.read_secret(plane.key_passphrase_file)
    pem = _text(plane.key_file)
    mode = stat.S_IMODE(plane.key_file.stat().st_mode)
    if mode & 0o077:
        raise errors.NotPermitted(f"{plane.key_file} is open to others (mode {mode:04o}): run chmod 400")
    try:
        key = load_pem_private_key(pem.encode(), passphrase.reveal())
    except TypeError as cause:
        raise errors.NotPermitted(f"{plane.key_file} is not encrypted") from cause
    except (ValueError, UnsupportedAlgorithm) as cause:
        raise errors.NotPermitted(f"the passphrase does not open {plane.key_file}") from cause
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if public != _leaf_and_chain(plane)[0].subject_public_key_info:
        raise errors.IntegrityFailure(f"{plane.key_file} is not the key of {plane.certificate_file}")
    return f"{plane.key_file}, encrypted"


def _server_certificate(factory: Factory, plane: StationPlane | GatewayPlane, renewal: str) -> str:
    leaf = _leaf_and_chain(plane)[0]
    now = factory.clock().now()
    if leaf.not_after <= now:
        raise errors.NotPermitted(f"{plane.certificate_file} ended {leaf.not_after:%Y-%m-%d}")
    if leaf.not_before > now:
        raise errors.NotPermitted(f"{plane.certificate_file} begins {leaf.not_before:%Y-%m-%d}")
    days = (leaf.not_after - now).days
    said = f"{leaf.subject} until {leaf.not_after:%Y-%m-%d}, {days} days"
    if _ends_soon(leaf, now):
        raise _Soon(f"{said}: run birthmark {renewal}")
    return said


def _ends_soon(certificate: Certificate, now: datetime) -> bool:
    life = certificate.not_after - certificate.not_before
    return certificate.not_after - now < min(SOON, life / 3)


def _acting_operator(application: Application, settings: Path, as_directory: Path | None) -> str:
    """Look at the credential that acts unless another is named; there need not be one here."""
    try:
        directory = as_directory or only_operator(settings)
    except errors.Unauthenticated as undecided:
        return f"not looked at: {undecided}"
    credential = credentials.read(directory)
    client = carry(application.store, recognise(credential.certificate.der)).client
    ends, now = credential.certificate.not_after, application.clock.now()
    said = f"{client.id} in {directory} until {ends:%Y-%m-%d}"
    if ends <= now:
        raise _Warning(f"{said}: it has ended, another operator has to renew it")
    if _ends_soon(credential.certificate, now):
        raise _Soon(f"{said}: run birthmark operator renew {client.name} --out {directory}")
    return said


def _clients(application: Application, role: Role) -> str:
    """Say whose newest certificates end soon; whoever renewed may use an older one until it ends."""
    newest: dict[str, Credential] = {}
    for one in application.store.scan(Credential):
        if one.status is ClientStatus.ACTIVE and (
            one.client not in newest or newest[one.client].not_after < one.not_after
        ):
            newest[one.client] = one
    live = [
        client
        for client in application.store.scan(Client, after=f"{role.kind}:")
        if client.role.kind == role.kind and client.status is ClientStatus.ACTIVE and client.id in newest
    ]
    now = application.clock.now()
    ended, soon = [], []
    for client in live:
        certificate = Certificate.from_der(newest[client.id].der)
        if certificate.not_after <= now:
            ended.append(client.name)
        elif _ends_soon(certificate, now):
            soon.append(f"{client.name} {certificate.not_after:%Y-%m-%d}")
    said = [f"{len(live)} on record"]
    if soon:
        said.append(f"to be renewed before they end: {', '.join(soon)}")
    if ended:
        said.append(f"ended, to be renewed or revoked: {', '.join(ended)}")
    if soon:
        raise _Soon("; ".join(said))
    if ended:
        raise _Warning("; ".join(said))
    return said[0]


def _client_authorities(plane: StationPlane) -> str:
    """Say how many anchors clients are held against; the server's own chain must lead to one."""
    anchors = {
        Certificate.from_der(der).subject_name: Certificate.from_der(der)
        for der in from_pem(_text(plane.client_ca_file))
    }
    last = _leaf_and_chain(plane)[-1]
    if last.issuer_name not in anchors:
        raise errors.IntegrityFailure(
            f"{plane.certificate_file} does not end below an authority in {plane.client_ca_file}"
        )
    return f"{len(anchors)} in {plane.client_ca_file}"


def _key_store(factory: Factory, settings: Settings) -> str:
    custody = settings.key_store
    if isinstance(custody, SoftwareKeys):
        if not custody.directory.is_dir():  # opening it would make it
            raise errors.NotFound(f"there is no key store {custody.directory}")
        with opened(factory, custody):
            said = f"development (software), {custody.directory}"
        if settings.realm.environment == "production":
            raise _Warning(f"{said}: a production realm's keys can be copied")
        return said
    factory.read_secret(custody.pin_file)
    return f"token {custody.token}"


def _database(application: Application) -> str:
    for kind in KINDS:
        for _ in application.store.scan(kind, limit=1):
            break
    realm = application.realm
    organization = application.settings.realm.organization
    return f"realm {realm.name} ({realm.environment}) of {organization}, {application.log.size()} log entries"


def _log_key(application: Application) -> str:
    label = KeyLabel(application.settings.log.key)
    spki = application.keys.public_key(label)
    raw = spki.removeprefix(ALGORITHMS[KeyAlgorithm.ED25519].spki_prefix)
    if raw != VerifierKey.parse(application.realm.vkey).public:
        raise errors.IntegrityFailure(
            f"key {label} is not the log's: the realm says {application.realm.vkey}"
        )
    return application.realm.vkey


def _token_keys(application: Application) -> str:
    labels = application.settings.gateway_plane.token_keys
    kids = [jwt.key_id(application.keys.public_key(KeyLabel(label))) for label in labels]
    return (
        ", ".join(f"{label} {kid}" for label, kid in zip(labels, kids, strict=True)) or "no tokens are given"
    )


def _root(application: Application) -> str:
    roots = [one for one in application.store.scan(Authority) if one.kind is AuthorityKind.ROOT]
    trusted = from_pem(_text(application.settings.station_plane.client_ca_file))
    for root in roots:
        if root.der not in trusted:
            raise errors.IntegrityFailure(
                f"the root on record is not in {application.settings.station_plane.client_ca_file}"
            )
    return ", ".join(f"{root.id} {Certificate.from_der(root.der).fingerprint}" for root in roots)


def _authority(application: Application, authority: Authority) -> str:
    spki = application.keys.public_key(KeyLabel(authority.key_label))
    if spki != Certificate.from_der(authority.der).subject_public_key_info:
        raise errors.IntegrityFailure(f"key {authority.key_label} is not the authority's")
    said = f"{authority.status}, key {authority.key_label}, issues until {authority.ends_at:%Y-%m-%d}"
    if authority.ends_at <= application.clock.now():
        raise _Warning(f"{said}: it has ended")
    return said
