"""A whole realm in this process: hierarchy, log, database, an operator, stations and runs.

``make_line`` gives a line that works, on either database.  A ``Service`` is what one process of the real
thing holds: a store with its commit train, and the use cases over it; a line can have several on one
database.  What is expensive to make and the same everywhere (keys that are encrypted with scrypt, the root)
is made once a test run.
"""

import functools
import itertools
import sqlite3
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_private_key,
    load_der_public_key,
)

from birthmark import errors
from birthmark.adapters.inspection import PkilintInspector
from birthmark.adapters.softkeys import SoftwareKeyStore
from birthmark.adapters.sql.database import Database
from birthmark.adapters.sql.engines import open_database
from birthmark.adapters.sql.migrate import create_realm, migrate
from birthmark.adapters.sql.store import SQLStore
from birthmark.adapters.system import SystemEntropy
from birthmark.element.catalogue import ElementCatalogue
from birthmark.floor.authorities import Authority
from birthmark.floor.clients import Role
from birthmark.floor.devices import DeviceCertificate, DeviceEvent, KeyOrigin
from birthmark.floor.hardware_ids import HardwareIdKind, HardwareIdRule
from birthmark.floor.realm import Environment, Realm
from birthmark.floor.revocations import Revocation
from birthmark.floor.runs import AllowList, RunLicence, RunPurpose
from birthmark.ledger import checkpoint
from birthmark.ledger.entry import decode
from birthmark.pki.certificates import fingerprint
from birthmark.pki.keys import KeyAlgorithm, KeyLabel
from birthmark.pki.possession import proof_message
from birthmark.pki.profiles import Catalogue
from birthmark.pki.revocation import ReasonCode
from birthmark.ports import Act, Clock, Decision, Facts, Inspector, KeyStore, UseCase, carry
from birthmark.secret import SecretBytes
from birthmark.services.acts import Caller, outcomes, recognise, refuse
from birthmark.services.attest import AttestDevices
from birthmark.services.authorise import Authorise, Enrolment
from birthmark.services.ceremonies import commit, establish
from birthmark.services.ceremony_file import parse as parse_ceremony
from birthmark.services.ceremony_record import Record
from birthmark.services.ceremony_steps import Progress
from birthmark.services.ceremony_templates import Head, Issuing, realm_file
from birthmark.services.certifying import Certifier
from birthmark.services.challenges import Challenges
from birthmark.services.confirmations import ConfirmEnrolments
from birthmark.services.dialogues import Dialogues
from birthmark.services.disposition import Disposed, dispose
from birthmark.services.enrolments import EnrolDevices
from birthmark.services.injection import InjectDevices
from birthmark.services.issue import Issued, IssueDevices, IssueRequest
from birthmark.services.opening import OpenRuns
from birthmark.services.prove import ProveDevices, ProveRequest, Released
from birthmark.services.recognition import Codes, recognise_device
from birthmark.services.revocations import line_of, status
from birthmark.services.runs import Runs
from tests.support.ceremonies import Person, carried_out, sealed

__all__ = [
    "PASSPHRASE",
    "START",
    "Client",
    "Hands",
    "Line",
    "Service",
    "Workpiece",
    "hierarchy",
    "libpq",
    "make_line",
    "open_service",
    "proof",
    "provision_in_another_process",
    "tamper",
    "workpiece",
]

T = TypeVar("T")

START = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
"""When a line's clock starts."""
FOREVER = datetime(2099, 1, 1, tzinfo=UTC)
ORGANIZATION = "Acme Motors"
PASSPHRASE = SecretBytes(b"opens nothing but a test")
INSPECTOR = PkilintInspector()
"""The real one: a first article takes it ten milliseconds, once it is loaded."""
LOG, ROOT, ISSUING = KeyLabel("log"), KeyLabel("root"), KeyLabel("issuing-1")

_numbers = itertools.count(1)


class Hands:
    """A clock that goes when it is told to."""

    def __init__(self, at: datetime = START) -> None:
        self.at = at

    def now(self) -> datetime:
        """Return the time it shows."""
        return self.at

    def turn(self, **by: float) -> None:
        """Turn it, forward or back."""
        self.at += timedelta(**by)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hierarchy:
    """What is the same in every realm of a test run."""

    directory: Path
    keys: KeyStore
    root: bytes
    issuing: bytes
    vkey: str
    progress: Progress
    record: Record
    custodian: Person


@functools.cache
def hierarchy() -> Hierarchy:
    """Make the keys and the authorities in one ceremony, once."""
    directory = Path(tempfile.mkdtemp(prefix="birthmark-keys-")) / "keys"
    keys = SoftwareKeyStore.open(directory, PASSPHRASE)
    clock, person = Hands(START - timedelta(days=30)), Person("carla")
    head = Head(
        ceremony="acme-0",
        realm="acme",
        environment="test",
        purpose="keys and authorities of a test",
        required=1,
        custodians=[person.custodian],
    )
    issuing = Issuing(
        authority=str(ISSUING),
        label=ISSUING,
        algorithm=KeyAlgorithm.EC_P256,
        issuer=str(ROOT),
        owner="quality",
        ends=FOREVER,
        subject={"organization": ORGANIZATION, "authority": "acme Issuing 1"},
    )
    file = realm_file(head, issuing, root=ROOT, root_store="root", organization=ORGANIZATION, log=LOG)
    ceremony = parse_ceremony(file.encode())
    progress = carried_out(ceremony, [person], {"service": keys, "root": keys}, clock)
    public = load_der_public_key(progress.public_of(LOG))
    return Hierarchy(
        directory=directory,
        keys=keys,
        root=progress.certificates[ROOT],
        issuing=progress.certificates[ISSUING],
        vkey=checkpoint.vkey("acme/log", public.public_bytes(Encoding.Raw, PublicFormat.Raw)),
        progress=progress,
        record=sealed(progress, [person], clock),
        custodian=person,
    )


def libpq(url: str) -> str:
    """Return a database URL as the settings want it, without a driver's name."""
    return url.replace("postgresql+psycopg://", "postgresql://").replace("sqlite+pysqlite://", "sqlite://")


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What one process holds."""

    store: SQLStore
    runs: Runs
    attest: AttestDevices
    issue: IssueDevices
    inject: InjectDevices
    prove: ProveDevices
    authorise: Authorise
    opening: OpenRuns
    enrolments: EnrolDevices
    confirmations: ConfirmEnrolments
    codes: Codes

    def carry(self, use_case: UseCase[T]) -> T:
        """Carry a use case over this service's store."""
        return carry(self.store, use_case)


def open_service(
    url: str,
    keys: KeyStore,
    clock: Clock,
    wrap: Callable[[Database], Database] | None = None,
    *,
    catalogue: Catalogue | None = None,
    elements: ElementCatalogue | None = None,
    inspector: Inspector = INSPECTOR,
) -> Service:
    """Open what one process holds on a database that has its realm."""
    database = open_database(libpq(url))
    store = SQLStore(database if wrap is None else wrap(database), clock, lambda body: keys.sign(LOG, body))
    catalogue = catalogue or Catalogue.read()
    runs, challenges = Runs(store.realm, catalogue, elements or ElementCatalogue.read()), Challenges()
    dialogues = Dialogues(keys, SystemEntropy())
    entropy = SystemEntropy()
    certifier = Certifier(keys, clock, entropy)
    issue = IssueDevices(runs, challenges, dialogues, certifier, entropy)
    return Service(
        store=store,
        runs=runs,
        attest=AttestDevices(runs, clock, entropy),
        issue=issue,
        inject=InjectDevices(runs, challenges, dialogues),
        prove=ProveDevices(runs, challenges, dialogues),
        authorise=Authorise(store.realm, keys, clock, SystemEntropy(), catalogue),
        opening=OpenRuns(runs, inspector, keys),
        enrolments=EnrolDevices(runs, issue, certifier, entropy),
        confirmations=ConfirmEnrolments(runs),
        codes=Codes(keys, LOG),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Somebody who holds a key and a certificate."""

    key: ec.EllipticCurvePrivateKey
    caller: Caller

    @property
    def id(self) -> str:
        """Role and name."""
        return self.caller.client.id

    def with_seq(self, seq: int) -> "Client":
        """Return the client with its request numbered."""
        return replace(self, caller=replace(self.caller, seq=seq))

    def with_operator(self, operator: str) -> "Client":
        """Return the client naming the operator who stands there."""
        return replace(self, caller=replace(self.caller, operator=operator))


@dataclass(frozen=True, slots=True, kw_only=True)
class Workpiece:
    """A device with its key and its certification request; ``csr`` is None to have a key delivered."""

    hardware_id: str
    key: ec.EllipticCurvePrivateKey
    csr: bytes | None

    @property
    def id(self) -> str:
        """The id of the device on a run of serial numbers."""
        return f"serial:{self.hardware_id}"


def workpiece(
    hardware_id: str,
    *,
    delivered: bool = False,
    names: str | None = None,
    key: ec.EllipticCurvePrivateKey | None = None,
) -> Workpiece:
    """Make a device; its request names ``names``, itself if left out."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    csr = None
    if not delivered:
        named = x509.Name(
            [x509.NameAttribute(x509.NameOID.COMMON_NAME, hardware_id if names is None else names)]
        )
        builder = x509.CertificateSigningRequestBuilder().subject_name(named)
        csr = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
    return Workpiece(hardware_id=hardware_id, key=key, csr=csr)


def successor(shown: bytes, key: ec.EllipticCurvePrivateKey | None = None) -> Workpiece:
    """Make a device a new key; its request has the names of the certificate that it shows (DER)."""
    key, held = key or ec.generate_private_key(ec.SECP256R1()), x509.load_der_x509_certificate(shown)
    builder = x509.CertificateSigningRequestBuilder().subject_name(held.subject)
    for extension in held.extensions:
        if isinstance(extension.value, x509.SubjectAlternativeName):
            builder = builder.add_extension(extension.value, critical=extension.critical)
    csr = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
    return Workpiece(hardware_id="", key=key, csr=csr)


def proof(
    issued: Issued,
    key: ec.EllipticCurvePrivateKey,
    *,
    idempotency: str | None = None,
    challenge: bytes | None = None,
    certificate_sha256: str | None = None,
    attempt: str | None = None,
) -> ProveRequest:
    """Prove possession as the device does; what is given replaces what the device would sign or read back."""
    if issued.private_key is not None:
        delivered = load_der_private_key(issued.private_key.reveal(), None)
        assert isinstance(delivered, ec.EllipticCurvePrivateKey)
        key = delivered
    read_back = certificate_sha256 or fingerprint(issued.certificate)
    message = proof_message(
        attempt=attempt or issued.attempt,
        certificate_sha256=read_back,
        challenge=challenge or issued.challenge,
    )
    return ProveRequest(
        attempt=issued.attempt,
        certificate_sha256=read_back,
        signature=key.sign(message, ec.ECDSA(hashes.SHA256())),
        key=idempotency or f"prove-{next(_numbers)}",
    )


def tamper(url: str, *statements: tuple[str, Sequence[Any]]) -> None:
    """Write past the product and its triggers, as whoever owns the database can; placeholders are ``%s``.

    The triggers are there again afterwards: a database without them is refused whole.
    """
    url = libpq(url)
    if not url.startswith("sqlite:"):
        with psycopg.connect(url, autocommit=True) as server:
            server.execute("SET session_replication_role = replica")
            for statement, parameters in statements:
                server.execute(statement.encode(), parameters)
        return
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as file:
        triggers = file.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            file.execute(f"DROP TRIGGER {name}")
        for statement, parameters in statements:
            file.execute(statement.replace("%s", "?"), parameters)
        for _, text in triggers:
            file.execute(text)


@dataclass(slots=True, kw_only=True)
class Line:
    """A realm at work."""

    url: str
    keys: KeyStore
    clock: Hands
    service: Service
    operator: Client = field(init=False)
    station: Client = field(init=False)
    services: list[Service] = field(default_factory=list)

    @property
    def realm(self) -> Realm:
        """The realm."""
        return self.service.store.realm

    @property
    def vkey(self) -> checkpoint.VerifierKey:
        """The log's verifier key."""
        return checkpoint.VerifierKey.parse(self.realm.vkey)

    def another_service(
        self,
        *,
        wrap: Callable[[Database], Database] | None = None,
        clock: Clock | None = None,
        keys: KeyStore | None = None,
        catalogue: Catalogue | None = None,
        inspector: Inspector = INSPECTOR,
    ) -> Service:
        """Open what another process would hold."""
        service = open_service(
            self.url,
            keys or self.keys,
            clock or self.clock,
            wrap,
            catalogue=catalogue,
            inspector=inspector,
        )
        self.services.append(service)
        return service

    def close(self) -> None:
        """Close everything that is open."""
        for service in (self.service, *self.services):
            with suppress(OSError):  # a test may have closed it itself
                service.store.close()

    def enrol(self, role: Role, name: str, *, by: Client | None = None, **fields: Any) -> Client:
        """Enrol a client with a new key, as the realm's first ones are if ``by`` is left out."""
        key = ec.generate_private_key(ec.SECP256R1())
        variables = {
            "organization": ORGANIZATION,
            role.kind: name,
            "run": name,
            "site": "Graz",
            "line": "L1",
            "hardware_id": "",
            "host": name,
            "dns_names": "localhost",
            "ip_addresses": "127.0.0.1",
        }
        enrolment = Enrolment(
            role=role,
            name=name,
            subject_public_key_info=key.public_key().public_bytes(
                Encoding.DER, PublicFormat.SubjectPublicKeyInfo
            ),
            authority="issuing-1",
            variables=variables,
            site="Graz",
            line="L1",
            **fields,
        )
        enrolled = self.service.carry(
            self.service.authorise.enrol(None if by is None else by.caller, enrolment)
        )
        return Client(key=key, caller=self.service.carry(recognise(enrolled.certificate.der)))

    def establish(self, authority: Authority) -> None:
        """Put an authority on record as a ceremony does, without one."""

        def decide(facts: Facts, at: datetime) -> Decision[None]:
            return Decision(None, [("authority-established", establish(facts, authority, at))])

        act = Act(actor=self.operator.id, decide=decide, refuse=refuse(None, "establish", {}), reads={})
        outcomes(self.service.store.submit([act]).result())

    def licence(self, run: str = "R1", **fields: Any) -> RunLicence:
        """Return a licence under which this line can work."""
        values: dict[str, Any] = {
            "realm": self.realm.name,
            "environment": str(self.realm.environment),
            "id": run,
            "product": "car",
            "batch": "B7",
            "profile": "vehicle",
            "authority": "issuing-1",
            "quantity": 1000,
            "not_before": START - timedelta(hours=1),
            "not_after": START + timedelta(days=1),
            "stations": ("ST01",),
            "hardware_id": HardwareIdRule(kind=HardwareIdKind.SERIAL, pattern="[A-Z0-9]{1,20}"),
            "allow_list": None,
            "origins": (KeyOrigin.BORN, KeyOrigin.DELIVERED),
            "variables": {"organization": ORGANIZATION},
            "opened_by": self.operator.id,
        }
        values |= fields
        catalogue = self.service.runs.catalogue
        if "profile_sha256" not in values and values["profile"] in catalogue.names():
            values["profile_sha256"] = catalogue.load(values["profile"]).sha256
        return RunLicence(**values)

    def open_run(self, run: str = "R1", *, listed: Sequence[str] | None = None, **fields: Any) -> RunLicence:
        """Open a run; ``listed`` are the device ids of its allow-list."""
        if listed is not None:
            allow_list: AllowList = self.service.carry(
                self.service.runs.import_list(self.operator.caller, listed)
            )
            fields = {"allow_list": allow_list, "quantity": len(listed)} | fields
        licence = self.licence(run, **fields)
        self.service.carry(self.service.opening.open(self.operator.caller, licence, self.sign(licence)))
        return licence

    def sign(self, licence: RunLicence, by: Client | None = None) -> bytes:
        """Sign a licence as the operator does."""
        return (by or self.operator).key.sign(licence.encode(), ec.ECDSA(hashes.SHA256()))

    def issue(
        self,
        device: Workpiece,
        *,
        run: str = "R1",
        key: str | None = None,
        by: Client | None = None,
        service: Service | None = None,
    ) -> Issued:
        """Issue to one device, or raise the refusal."""
        request = IssueRequest(
            hardware_id=device.hardware_id, csr=device.csr, key=key or f"issue-{next(_numbers)}"
        )
        at = service or self.service
        (result,) = at.carry(at.issue((by or self.station).caller, run, [request]))
        if isinstance(result, errors.Refusal):
            raise result
        return result

    def prove(
        self, request: ProveRequest, *, by: Client | None = None, service: Service | None = None
    ) -> Released:
        """Prove one device, or raise the refusal."""
        at = service or self.service
        (result,) = at.carry(at.prove((by or self.station).caller, [request]))
        if isinstance(result, errors.Refusal):
            raise result
        return result

    def make(self, hardware_id: str, **fields: Any) -> Released:
        """Give a device born with its key an identity."""
        device = workpiece(hardware_id)
        return self.prove(proof(self.issue(device, **fields), device.key))

    def dispose(
        self,
        event: DeviceEvent,
        device: str,
        *,
        reason: str = "scratched",
        key: str | None = None,
        by: Client | None = None,
        service: Service | None = None,
    ) -> Disposed:
        """Hold, rework or scrap a device; the operator does it if ``by`` is left out."""
        return (service or self.service).carry(
            dispose(
                (by or self.operator).caller,
                device,
                event,
                reason=reason,
                key=key or f"{event}-{next(_numbers)}",
            )
        )

    def open_operational(self, run: str = "L1", **fields: Any) -> RunLicence:
        """Open a run that certifies released devices for where they work."""
        hardware = {"organization": ORGANIZATION, "hardware_type": "1.3.6.1.4.1.32473.1"}
        wanted: dict[str, Any] = {
            "profile": "ldevid",
            "purpose": RunPurpose.OPERATIONAL,
            "stations": (),
            "variables": hardware,
        }
        return self.open_run(run, **(wanted | fields))

    def device(self, certificate: bytes, key: ec.EllipticCurvePrivateKey) -> Client:
        """Return a device that shows a certificate of its own."""
        return Client(key=key, caller=self.service.carry(recognise_device(certificate)))

    def get(self, kind: type[T], key: str) -> T | None:
        """Return a committed value."""
        return self.service.store.look({kind: (key,)}).get(kind, key)

    def the(self, kind: type[T], key: str) -> T:
        """Return a committed value that must be there."""
        value = self.get(kind, key)
        assert value is not None, f"there is no {kind.__name__} {key}"
        return value

    def status(self, certificate: DeviceCertificate) -> ReasonCode | None:
        """Return why a certificate is not good, or None if it is."""
        line = line_of(certificate)
        return status(self.service.store.look({Revocation: (line.id,)}), line)

    def entries(self, start: int = 0) -> list[Mapping[str, Any]]:
        """Return the log's entries."""
        return [decode(item.entry) for item in self.service.store.log.entries(start)]

    def size(self) -> int:
        """Return the log's size."""
        return self.service.store.log.size()


def make_line(tmp_path: Path, database_url: str, *, environment: Environment = Environment.TEST) -> Line:
    """Make a realm in an empty database, with an authority, operator ``anna`` and station ``ST01``."""
    made = hierarchy()
    clock = Hands()
    url = libpq(database_url)
    migrate(url)
    realm = Realm(
        name="acme", environment=environment, origin="acme/log", vkey=made.vkey, created_at=clock.now()
    )
    create_realm(url, realm)
    line = Line(url=url, keys=made.keys, clock=clock, service=open_service(url, made.keys, clock))
    line.service.carry(commit(None, made.progress, made.record, "software"))
    line.operator = line.enrol(Role.OFFICER, "anna")
    line.station = line.enrol(Role.STATION, "ST01")
    return line


def provision_in_another_process(url: str, keys: str, station: bytes, names: list[str]) -> list[str]:
    """Make devices as another process of the service would; return the tokens."""
    service = open_service(url, SoftwareKeyStore.open(Path(keys), PASSPHRASE), Hands())
    caller = carry(service.store, recognise(station))
    tokens = []
    for name in names:
        device = workpiece(name)
        request = IssueRequest(hardware_id=name, csr=device.csr, key=name)
        (issued,) = carry(service.store, service.issue(caller, "R2", [request]))
        if isinstance(issued, Issued):
            (released,) = carry(
                service.store,
                service.prove(caller, [proof(issued, device.key, idempotency=f"prove-{name}")]),
            )
            assert isinstance(released, Released), repr(released)
            tokens.append(released.token)
    service.store.close()
    return tokens
