"""The making of a realm: keys, hierarchy, database, log, and who may connect at first.

All of it is built in a directory beside the one asked for, and takes its name in one rename when nothing is
missing: settings that exist are settings of a whole realm.  What was built elsewhere cannot be renamed away:
a token keeps keys, a PostgreSQL database keeps what was written; if it fails after that, the refusal says so,
and what to do.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from birthmark import errors
from birthmark.edge.application import Application, Factory
from birthmark.edge.cli import credentials, settings_text
from birthmark.edge.cli.ceremony_conduct import (
    Papers,
    asked,
    conduct,
    offline_stores,
    sealed,
    service_name,
)
from birthmark.edge.cli.ceremony_folder import CeremonyFolder
from birthmark.edge.cli.credentials import DIRECTORY_MODE, PRIVATE_MODE, write_new_file
from birthmark.edge.cli.key_folders import Attendant, make_key_folder
from birthmark.edge.cli.session import built, opened
from birthmark.edge.cli.settings_text import KeyPlace, Plan
from birthmark.edge.roots import device_roots
from birthmark.edge.station.folder import flush_directory
from birthmark.floor.authorities import Authority, AuthorityKind, Custody
from birthmark.floor.ceremonies import SERVICE, Ceremony, Custodian, GenerateKey
from birthmark.floor.clients import Role
from birthmark.floor.key_assets import KeyPurpose
from birthmark.floor.realm import Realm
from birthmark.ledger import checkpoint
from birthmark.pki import profiles
from birthmark.pki.algorithms import ALGORITHMS
from birthmark.pki.certificates import Certificate, to_pem
from birthmark.pki.keys import KeyAlgorithm
from birthmark.ports import carry
from birthmark.secret import SecretBytes
from birthmark.services.authorise import Enrolled, Enrolment
from birthmark.services.ceremonies import Bench, commit
from birthmark.services.ceremony_file import parse as parse_ceremony
from birthmark.services.ceremony_record import Record
from birthmark.services.ceremony_steps import Known, Progress
from birthmark.services.ceremony_templates import Head, Issuing, realm_file
from birthmark.settings import Settings, load

__all__ = ["Made", "RealmWaits", "make_realm"]

ROOT_ID = "root"
ROOT_STORE = "root"
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
    operators: tuple[str, ...]
    checkpoint: str
    server_not_after: str
    ceremony_sha256: str
    """Of the file that was performed."""


class RealmWaits(errors.NotFound):
    """The ceremony of a new realm waits for an answer; ``request`` is the file that goes out."""

    def __init__(self, reason: str, request: Path) -> None:
        super().__init__(reason)
        self.request = request


@dataclass(slots=True, kw_only=True)
class _Elsewhere:
    """What the making has left outside its directory so far."""

    keys: list[str] = field(default_factory=list)
    database: bool = False


def make_realm(factory: Factory, plan: Plan, directory: Path, papers: Papers | None = None) -> Made:
    """Make a realm in a directory that does not exist or is empty.

    Args:
        factory: builds everything.
        plan: what the realm is to be.
        directory: where.
        papers: of the ceremony that makes its keys and authorities; None to order and attend one as its
            first operator, as a test realm may.

    Raises:
        errors.IllegalTransition: the directory is not empty, the database has a realm, or a key label is
            taken.
        RealmWaits: the ceremony needs a key that is elsewhere; what was made so far is kept.
        errors.Refusal: whatever else went wrong; the directory is as it was.
    """
    plan.check(with_papers=papers is not None)
    _require_empty(directory)
    elsewhere = _Elsewhere()
    with _private_umask(), _built_beside(directory, waits=papers is not None) as place:
        try:
            made = _make(factory, plan, place, elsewhere, papers)
        except RealmWaits:
            raise
        except errors.Refusal as refusal:
            left = _left_behind(plan, elsewhere)
            if left:
                raise _with_text(refusal, f"{refusal}; {left}") from refusal
            raise
        _take_name(place, directory)
    return replace(made, directory=directory)


def _make(factory: Factory, plan: Plan, place: Path, elsewhere: _Elsewhere, papers: Papers | None) -> Made:
    for name in ("secrets", "stations", "operators"):
        (place / name).mkdir(mode=DIRECTORY_MODE, exist_ok=True)
    settings = _write_settings(factory, plan, place)
    operator = credentials.fresh_key()
    if papers is None:
        papers = _own_papers(factory, plan, place, operator)
        people = [Attendant(id=plan.operators[0], sign=lambda message: operator.sign(message, _SHA256))]
    else:
        people = papers.attendants(factory)
    _check_ceremony(plan, papers.ceremony)
    folder = CeremonyFolder(place / "ceremony", papers.ceremony)
    try:
        progress, record = _conduct(factory, plan, settings, papers, people, folder, elsewhere)
        factory.migrate(settings.database)
        elsewhere.database = plan.external_database
        realm = _realm(factory, plan, progress.public_of(plan.label("log")))
        factory.create_realm(settings.database, realm)
        write_new_file(place / "log.vkey", f"{realm.vkey}\n")
        with built(factory, settings) as application:
            performed = carry(application.store, commit(None, progress, record, service_name(settings)))
            folder.finish(progress, record, application.store.token(performed.row.leaf), realm.vkey)
            return _people(application, plan, place, progress, operator)
    finally:
        folder.close()


_SHA256 = ec.ECDSA(hashes.SHA256())


def _own_papers(factory: Factory, plan: Plan, place: Path, operator: credentials.PrivateKey) -> Papers:
    root = place / "root"
    make_key_folder(factory, root, KeyPlace(passphrase_file=plan.root_passphrase_file))
    ceremony = _own_ceremony(factory, plan, operator)
    return Papers(ceremony=ceremony, custodians=(), reviewed=(), stores={ROOT_STORE: root})


def _own_ceremony(factory: Factory, plan: Plan, operator: credentials.PrivateKey) -> Ceremony:
    head = Head(
        ceremony=f"{plan.realm.lower().replace('_', '-').strip('.-') or 'realm'}-1",
        realm=plan.realm,
        environment=str(plan.environment),
        purpose="root, first issuing authority and log key of a new realm",
        required=1,
        custodians=[
            Custodian(
                id=plan.operators[0],
                role="first operator",
                subject_public_key_info=credentials.public_der(operator),
            )
        ],
    )
    issuing = Issuing(
        authority=plan.authority,
        label=plan.label(plan.authority),
        algorithm=plan.key_algorithm,
        issuer=ROOT_ID,
        owner=plan.organization,
        ends=factory.clock().now() + timedelta(days=AUTHORITY_DAYS),
        subject={"organization": plan.organization, "authority": plan.authority_name},
    )
    text = realm_file(
        head,
        issuing,
        root=ROOT_ID,
        root_store=ROOT_STORE,
        organization=plan.organization,
        log=plan.label("log"),
    )
    return parse_ceremony(text.encode())


def _check_ceremony(plan: Plan, ceremony: Ceremony) -> None:
    """Refuse a file that does not make what a realm begins with."""
    if (ceremony.realm, ceremony.environment) != (plan.realm, str(plan.environment)):
        raise errors.NotPermitted(
            f"the ceremony is for realm {ceremony.realm} ({ceremony.environment}), not {plan.realm}"
            f" ({plan.environment})"
        )
    logs = [key.label for key in ceremony.keys.values() if key.purpose is KeyPurpose.LOG]
    if logs != [plan.label("log")]:
        raise errors.PolicyRefused(
            "log-key",
            f"the ceremony of a new realm makes one log key, called {plan.label('log')}, not"
            f" {' and '.join(logs) or 'none'}",
        )
    made = ceremony.keys[plan.label("log")]
    if made.kind is not KeyAlgorithm.ED25519 or made.store != SERVICE:
        raise errors.PolicyRefused(
            "log-key", "the log's key is an ed25519 key (C2SP signed-note) in the service's store"
        )


def _conduct(
    factory: Factory,
    plan: Plan,
    settings: Settings,
    papers: Papers,
    people: Sequence[Attendant],
    folder: CeremonyFolder,
    elsewhere: _Elsewhere,
) -> tuple[Progress, Record]:
    progress = Progress(papers.ceremony, Known(), profiles.load)
    with (
        opened(factory, settings.key_store) as service,
        offline_stores(factory, papers.stores) as offline,
    ):
        stores = {SERVICE: service, **offline}
        answer = papers.answer()
        bench = Bench(
            stores=stores,
            clock=factory.clock(),
            entropy=factory.entropy(),
            brought=answer.certificate,
            officer=papers.officer,
        )
        try:
            waiting = conduct(folder, progress, (people, "online"), bench, answer=answer.events)
        except errors.PolicyRefused as refusal:
            raise _about_the_log(progress, plan, refusal) from refusal
        finally:
            if plan.keys.token is not None:
                elsewhere.keys += [
                    label for label in progress.keys if papers.ceremony.keys[label].store == SERVICE
                ]
        if waiting is not None:
            raise RealmWaits(waiting.reason, asked(folder, progress, people, bench, waiting))
        return progress, sealed(folder, progress, people, factory.clock(), stores)


def _about_the_log(progress: Progress, plan: Plan, refusal: errors.PolicyRefused) -> errors.PolicyRefused:
    step = progress.current
    if not isinstance(step, GenerateKey) or step.label != plan.label("log"):
        return refusal
    return errors.PolicyRefused(
        refusal.rule, f"{refusal}; the log signs with Ed25519 (C2SP signed-note) and has no other choice"
    )


def _write_settings(factory: Factory, plan: Plan, place: Path) -> Settings:
    text, path = settings_text.render(plan), place / "birthmark.toml"
    if path.exists():  # the ceremony goes on where it waited
        if path.read_text(encoding="utf-8") != text:
            raise errors.IllegalTransition(f"{place} waits for a realm with other settings")
        return load(path)
    if plan.keys.token is None and plan.keys.passphrase_file is None:
        _write_passphrase(factory, place / "secrets" / "keystore.passphrase")
    _write_passphrase(factory, place / "secrets" / "server.passphrase")
    if plan.gateway_port is not None:
        _write_passphrase(factory, place / "secrets" / "gateway.passphrase")
    write_new_file(path, text)
    return load(path)


def _write_passphrase(factory: Factory, path: Path) -> SecretBytes:
    passphrase = factory.entropy().token(PASSPHRASE_OCTETS).hex()
    write_new_file(path, f"{passphrase}\n", PRIVATE_MODE)
    return SecretBytes(passphrase.encode())


def _realm(factory: Factory, plan: Plan, log_public: bytes) -> Realm:
    raw = log_public[len(ALGORITHMS[KeyAlgorithm.ED25519].spki_prefix) :]
    return Realm(
        name=plan.realm,
        environment=plan.environment,
        origin=plan.log_origin,
        vkey=checkpoint.vkey(plan.log_origin, raw),
        created_at=factory.clock().now(),
    )


def _people(
    application: Application,
    plan: Plan,
    place: Path,
    progress: Progress,
    operator: credentials.PrivateKey,
) -> Made:
    """Let in the server, the stations and the first officers."""
    issuing = _first_issuing(plan, progress)
    root = issuing
    while root.issuer != root.id:
        root = progress.authority(root.issuer)
    root_pem = to_pem(root.der)
    write_new_file(place / "root.crt", root_pem)
    if (place / "root").is_dir():
        write_new_file(place / "root" / "root.crt", root_pem)
    plan = replace(plan, authority=issuing.id)
    server = _enrol_server(application, plan, place, "server")
    if plan.gateway_port is not None:
        _enrol_server(application, plan, place, "gateway")
    service = credentials.Service(
        url=plan.url,
        root_pem=root_pem,
        device_anchors_pem="".join(to_pem(one.der) for one in device_roots(application)),
        vkey=application.realm.vkey,
    )
    for name in plan.stations:
        _enrol(application, plan, (Role.STATION, name), place / "stations" / name, service)
    for name in plan.operators:
        # The first attended the realm's own ceremony with the key that becomes the officer's.
        own = operator if name == plan.operators[0] else None
        _enrol(application, plan, (Role.OFFICER, name), place / "operators" / name, service, own)
    return Made(
        directory=place,
        realm=application.realm,
        root_sha256=Certificate.from_der(root.der).fingerprint,
        authority=plan.authority,
        key_store="development (software)" if application.keys.development else "token",
        stations=plan.stations,
        operators=plan.operators,
        checkpoint=application.store.checkpoint(),
        server_not_after=f"{server.certificate.not_after:%Y-%m-%d}",
        ceremony_sha256=progress.ceremony.sha256,
    )


def _first_issuing(plan: Plan, progress: Progress) -> Authority:
    """Return the authority that certifies server, stations and operator."""
    ours = [
        authority
        for authority in progress.established
        if authority.kind is AuthorityKind.ISSUING and authority.custody is Custody.SERVICE
    ]
    named = [authority for authority in ours if authority.id == plan.authority]
    if len(named or ours) != 1:
        raise errors.MalformedRequest(
            "say with --authority which of"
            f" {', '.join(one.id for one in ours) or 'the ceremony, which makes none,'} certifies clients"
        )
    return (named or ours)[0]


def _enrol_server(application: Application, plan: Plan, place: Path, name: str) -> Enrolled:
    key = credentials.fresh_key()
    enrolled = carry(
        application.store,
        application.authorise.enrol(
            None,
            Enrolment(
                role=Role.SERVER,
                name=name,
                subject_public_key_info=credentials.public_der(key),
                authority=plan.authority,
                variables=plan.server_variables,
                site=plan.site,
                line=plan.line,
            ),
        ),
    )
    passphrase = SecretBytes((place / "secrets" / f"{name}.passphrase").read_bytes().removesuffix(b"\n"))
    pem = "".join([enrolled.certificate.pem, *map(to_pem, enrolled.chain)])
    write_new_file(place / f"{name}.crt", pem)
    write_new_file(place / "secrets" / f"{name}.key", credentials.private_pem(key, passphrase), PRIVATE_MODE)
    return enrolled


def _enrol(
    application: Application,
    plan: Plan,
    who: tuple[Role, str],
    out: Path,
    service: credentials.Service,
    key: credentials.PrivateKey | None = None,
) -> None:
    (role, name), key = who, key or credentials.fresh_key()
    enrolment = Enrolment(
        role=role,
        name=name,
        subject_public_key_info=credentials.public_der(key),
        authority=plan.authority,
        variables={"organization": plan.organization, role.kind: name},
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
def _built_beside(directory: Path, *, waits: bool) -> Iterator[Path]:
    """Make a directory to build in, on the same file system, and leave nothing of it behind.

    One for a ceremony that may wait keeps its name, and stays while it waits.
    """
    name = f".{directory.resolve().name}.{'waiting' if waits else f'unfinished-{os.getpid()}'}"
    place = directory.resolve().parent / name
    waited = waits and (place / "ceremony").is_dir()
    try:
        place.mkdir(mode=DIRECTORY_MODE, exist_ok=waited)
    except OSError as cause:
        raise errors.Unavailable(f"{place} cannot be made: {cause.strerror}") from cause
    keep = waited  # what was made in the ceremony so far is not thrown away for a mistake now
    try:
        yield place
    except RealmWaits:
        keep = True
        raise
    finally:
        if place.exists() and not keep:
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
