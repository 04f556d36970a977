"""The making of a realm: keys, hierarchy, database, log, and who may connect at first.

All of it is built in a directory beside the one asked for, and takes its name in one rename when nothing is
missing: settings that exist are settings of a whole realm.  What was built elsewhere cannot be renamed away:
a token keeps keys, a PostgreSQL database keeps what was written; if it fails after that, the refusal says so,
and what to do.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

from birthmark import errors
from birthmark.edge.application import Application, Factory
from birthmark.edge.cli import credentials, settings_text
from birthmark.edge.cli.credentials import DIRECTORY_MODE, PRIVATE_MODE, write_new_file
from birthmark.edge.cli.session import built, opened
from birthmark.edge.cli.settings_text import Plan
from birthmark.edge.station.folder import flush_directory
from birthmark.floor.authorities import ANY, Authority, AuthorityKind, AuthorityStatus, Custody
from birthmark.floor.clients import Role
from birthmark.floor.realm import Realm
from birthmark.ledger import checkpoint
from birthmark.pki.algorithms import ALGORITHMS
from birthmark.pki.certificates import Certificate, to_pem
from birthmark.pki.issuer import Issuer
from birthmark.pki.keys import KeyAlgorithm, KeyLabel
from birthmark.ports import KeyStore, carry
from birthmark.secret import SecretBytes
from birthmark.services.authorise import Enrolled, Enrolment, make_issuing, make_root
from birthmark.settings import Settings, SoftwareKeys, load

__all__ = ["Made", "make_realm"]

ROOT_LABEL = KeyLabel("root")
ROOT_ID = "root"
PASSPHRASE_OCTETS = 32
AUTHORITY_DAYS = 3650
"""How long the first issuing authority may issue; its certificate itself does not expire
(profiles/issuing.toml)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A realm, made."""

    directory: Path
    realm: Realm
    root_sha256: str
    authority: str
    key_store: str
    stations: tuple[str, ...]
    operator: str
    checkpoint: str
    server_not_after: str


@dataclass(slots=True, kw_only=True)
class _Elsewhere:
    """What the making has left outside its directory so far."""

    keys: list[str] = field(default_factory=list)
    database: bool = False


def make_realm(factory: Factory, plan: Plan, directory: Path) -> Made:
    """Make a realm in a directory that does not exist or is empty.

    Raises:
        errors.IllegalTransition: the directory is not empty, the database has a realm, or a key label is
            taken.
        errors.Refusal: whatever else went wrong; the directory is as it was.
    """
    plan.check()
    _require_empty(directory)
    elsewhere = _Elsewhere()
    with _private_umask(), _built_beside(directory) as place:
        try:
            made = _make(factory, plan, place, elsewhere)
        except errors.Refusal as refusal:
            left = _left_behind(plan, elsewhere)
            if left:
                raise _with_text(refusal, f"{refusal}; {left}") from refusal
            raise
        _take_name(place, directory)
    return replace(made, directory=directory)


def _make(factory: Factory, plan: Plan, place: Path, elsewhere: _Elsewhere) -> Made:
    for name in ("root", "secrets", "stations", "operators"):
        (place / name).mkdir(mode=DIRECTORY_MODE)
    settings = _write_settings(factory, plan, place)
    root_keys, root_der = _make_root(factory, plan, place)
    factory.migrate(settings.database)
    elsewhere.database = plan.external_database
    with opened(factory, settings.key_store) as keys:
        log_public = _generate(keys, plan.label("log"), KeyAlgorithm.ED25519, plan, elsewhere)
        authority_spki = _generate(keys, plan.label(plan.authority), plan.key_algorithm, plan, elsewhere)
    issuing_der = make_issuing(
        root_keys,
        Issuer.from_certificate(ROOT_LABEL, root_der),
        authority_spki,
        factory.clock(),
        factory.entropy(),
        {**plan.variables, "authority": plan.authority_name},
    )
    root_keys.close()
    realm = _realm(factory, plan, log_public)
    factory.create_realm(settings.database, realm)
    write_new_file(place / "log.vkey", f"{realm.vkey}\n")
    write_new_file(place / "root.crt", to_pem(root_der))
    with built(factory, settings) as application:
        return _people(application, plan, place, root_der, issuing_der)


def _write_settings(factory: Factory, plan: Plan, place: Path) -> Settings:
    if plan.keys.token is None and plan.keys.passphrase_file is None:
        _write_passphrase(factory, place / "secrets" / "keystore.passphrase")
    _write_passphrase(factory, place / "secrets" / "server.passphrase")
    write_new_file(place / "birthmark.toml", settings_text.render(plan))
    return load(place / "birthmark.toml")


def _write_passphrase(factory: Factory, path: Path) -> SecretBytes:
    passphrase = factory.entropy().token(PASSPHRASE_OCTETS).hex()
    write_new_file(path, f"{passphrase}\n", PRIVATE_MODE)
    return SecretBytes(passphrase.encode())


def _make_root(factory: Factory, plan: Plan, place: Path) -> tuple[KeyStore, bytes]:
    passphrase_file = plan.root_passphrase_file
    if passphrase_file is None:
        passphrase_file = place / "root" / "passphrase"
        _write_passphrase(factory, passphrase_file)
    custody = SoftwareKeys(
        kind="software", directory=place / "root" / "keys", passphrase_file=passphrase_file
    )
    keys = factory.open_key_store(custody)
    der = make_root(keys, ROOT_LABEL, plan.key_algorithm, factory.clock(), factory.entropy(), plan.variables)
    write_new_file(place / "root" / "root.crt", to_pem(der))
    return keys, der


def _generate(
    keys: KeyStore, label: KeyLabel, algorithm: KeyAlgorithm, plan: Plan, elsewhere: _Elsewhere
) -> bytes:
    try:
        spki = keys.generate(label, algorithm)
    except errors.PolicyRefused as refusal:
        if algorithm is KeyAlgorithm.ED25519:
            raise errors.PolicyRefused(
                refusal.rule,
                f"{refusal}; the log signs with Ed25519 (C2SP signed-note) and has no other choice",
            ) from refusal
        raise
    if plan.keys.token is not None:
        elsewhere.keys.append(label)
    return spki


def _realm(factory: Factory, plan: Plan, log_public: bytes) -> Realm:
    raw = log_public[len(ALGORITHMS[KeyAlgorithm.ED25519].spki_prefix) :]
    return Realm(
        name=plan.realm,
        environment=plan.environment,
        origin=plan.log_origin,
        vkey=checkpoint.vkey(plan.log_origin, raw),
        created_at=factory.clock().now(),
    )


def _people(application: Application, plan: Plan, place: Path, root_der: bytes, issuing_der: bytes) -> Made:
    """Put the authorities on record, and let in the server, the stations and the first operator."""
    now = application.clock.now()
    establish = application.authorise.establish
    root = Authority(
        id=ROOT_ID,
        kind=AuthorityKind.ROOT,
        issuer=ROOT_ID,
        custody=Custody.OFFLINE,
        key_label=ROOT_ID,
        profile="root",
        der=root_der,
        owner=plan.organization,
        scope=ANY,
        profiles=ANY,
        constraints="[]",
        ceremony="",
        quota=None,
        ends_at=Certificate.from_der(root_der).not_after,
        status=AuthorityStatus.ACTIVE,
        issued=0,
    )
    issuing = replace(
        root,
        id=plan.authority,
        kind=AuthorityKind.ISSUING,
        custody=Custody.SERVICE,
        profile="issuing",
        key_label=str(plan.label(plan.authority)),
        der=issuing_der,
        ends_at=now + timedelta(days=AUTHORITY_DAYS),
    )
    carry(application.store, establish(None, root))
    carry(application.store, establish(None, issuing))
    server = _enrol_server(application, plan, place)
    service = credentials.Service(url=plan.url, root_pem=to_pem(root_der), vkey=application.realm.vkey)
    for name in plan.stations:
        _enrol(application, plan, Role.STATION, name, place / "stations" / name, service)
    _enrol(application, plan, Role.OPERATOR, plan.operator, place / "operators" / plan.operator, service)
    return Made(
        directory=place,
        realm=application.realm,
        root_sha256=Certificate.from_der(root_der).fingerprint,
        authority=plan.authority,
        key_store="development (software)" if application.keys.development else "token",
        stations=plan.stations,
        operator=plan.operator,
        checkpoint=application.store.checkpoint(),
        server_not_after=f"{server.certificate.not_after:%Y-%m-%d}",
    )


def _enrol_server(application: Application, plan: Plan, place: Path) -> Enrolled:
    key = credentials.fresh_key()
    enrolled = carry(
        application.store,
        application.authorise.enrol(
            None,
            Enrolment(
                role=Role.SERVER,
                name="server",
                subject_public_key_info=credentials.public_der(key),
                authority=plan.authority,
                variables=plan.server_variables,
                site=plan.site,
                line=plan.line,
            ),
        ),
    )
    passphrase = SecretBytes((place / "secrets" / "server.passphrase").read_bytes().removesuffix(b"\n"))
    pem = "".join([enrolled.certificate.pem, *map(to_pem, enrolled.chain)])
    write_new_file(place / "server.crt", pem)
    write_new_file(place / "secrets" / "server.key", credentials.private_pem(key, passphrase), PRIVATE_MODE)
    return enrolled


def _enrol(
    application: Application, plan: Plan, role: Role, name: str, out: Path, service: credentials.Service
) -> None:
    key = credentials.fresh_key()
    enrolment = Enrolment(
        role=role,
        name=name,
        subject_public_key_info=credentials.public_der(key),
        authority=plan.authority,
        variables={"organization": plan.organization, str(role): name},
        site=plan.site,
        line=plan.line if role is Role.STATION else "",
    )
    enrolled = carry(application.store, application.authorise.enrol(None, enrolment))
    credentials.write(out, name, enrolled, key, service)


# --- the directory ------------------------------------------------------------------------------------------


def _require_empty(directory: Path) -> None:
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise errors.IllegalTransition(f"{directory} is not a directory")
    if directory.is_dir() and any(directory.iterdir()):
        raise errors.IllegalTransition(f"{directory} is not empty: a realm is made in a directory of its own")
    if not directory.parent.is_dir():
        raise errors.NotFound(f"there is no directory {directory.parent} to make {directory.name} in")


@contextmanager
def _built_beside(directory: Path) -> Iterator[Path]:
    """Make a directory to build in, on the same file system, and leave nothing of it behind."""
    place = directory.resolve().parent / f".{directory.resolve().name}.unfinished-{os.getpid()}"
    try:
        place.mkdir(mode=DIRECTORY_MODE)
    except OSError as cause:
        raise errors.Unavailable(f"{place} cannot be made: {cause.strerror}") from cause
    try:
        yield place
    finally:
        if place.exists():
            shutil.rmtree(place)


def _take_name(place: Path, directory: Path) -> None:
    try:
        place.rename(directory)  # replaces an empty directory, and nothing else (rename(2))
        flush_directory(directory.resolve().parent)
    except OSError as cause:
        raise errors.Unavailable(f"{directory} cannot be made: {cause.strerror}") from cause


@contextmanager
def _private_umask() -> Iterator[None]:
    """Let nobody else into the files that others (the database) make meanwhile."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def _left_behind(plan: Plan, elsewhere: _Elsewhere) -> str:
    left: list[str] = []
    if elsewhere.keys:
        left.append(f"delete the keys {', '.join(elsewhere.keys)} from token {plan.keys.token_label}")
    if elsewhere.database:
        left.append("drop the database and make an empty one")
    return "" if not left else f"before trying again {' and '.join(left)}"


def _with_text(refusal: errors.Refusal, text: str) -> errors.Refusal:
    if isinstance(refusal, errors.PolicyRefused):
        return errors.PolicyRefused(refusal.rule, text)
    return type(refusal)(text)
