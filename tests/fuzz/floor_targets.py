"""Targets of what people sign, keep and bring: licences, orders, ceremonies, lists, keys, settings."""

import functools
import json
from collections.abc import Iterator
from contextlib import redirect_stderr
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from io import StringIO
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from birthmark import errors
from birthmark.adapters.custody import read_passphrase_file
from birthmark.adapters.softsecrets import open_share, recipient_key, share_with, unwrapped, wrapped_under
from birthmark.edge.cli.allowlists import read_list
from birthmark.edge.cli.ceremony_folder import answer_text, read_answer, read_ceremony, read_request
from birthmark.edge.cli.inputs import device_id, moment, pairs
from birthmark.edge.cli.logs import read_notes
from birthmark.edge.cli.shipments import read_devices
from birthmark.floor.authorities import Scope
from birthmark.floor.clients import check_name
from birthmark.floor.exposure import parse_exposure
from birthmark.floor.hardware_ids import HardwareIdKind, HardwareIdRule
from birthmark.floor.key_assets import KeyPurpose
from birthmark.floor.key_backups import KeyBackup
from birthmark.floor.proposals import Deed, Motion
from birthmark.floor.recalls import RecallAction, RecallOrder, Selection, SelectionKind, check_order
from birthmark.floor.runs import RunLicence
from birthmark.floor.samples import sample_hardware_id
from birthmark.floor.shared import networks_text
from birthmark.ledger.entry import canonical
from birthmark.pki import profiles
from birthmark.pki.attributes import SecretKind
from birthmark.pki.certificates import one_from_pem, to_pem
from birthmark.pki.keys import KeyAlgorithm, KeyLabel
from birthmark.pki.revocation import ReasonCode
from birthmark.secret import SecretBytes
from birthmark.services.ceremony_file import parse as parse_ceremony
from birthmark.services.ceremony_record import Record, authority_document, known_from, replay
from birthmark.services.investigate import subject_of
from birthmark.services.publication_index import Index
from birthmark.settings import load
from tests.floor.test_runs import LICENCE
from tests.fuzz.files import as_file
from tests.fuzz.mutators import Shape
from tests.fuzz.target import Target, halves, text
from tests.ledger.sample import sample
from tests.pki.sample import NOW, spki
from tests.support.realm import hierarchy

VIN = HardwareIdRule(kind=HardwareIdKind.VIN, check_digit=True, wmi=frozenset({"1M8", "WVW"}))
KINDS = (
    VIN,
    HardwareIdRule(kind=HardwareIdKind.EUI_64),
    HardwareIdRule(kind=HardwareIdKind.EID),
    HardwareIdRule(kind=HardwareIdKind.SYSTEM_TITLE),
    HardwareIdRule(kind=HardwareIdKind.SERIAL, pattern=r"[A-Z]{2}-\d+"),
)


def _hardware_id(data: bytes) -> object:
    chosen, rest = halves(data, len(KINDS))
    return KINDS[chosen].parse(rest.decode("utf-8", "surrogateescape"))


def _hardware_id_seeds() -> Iterator[bytes]:
    titles = (
        b"1M8GDM9AXKP042788",
        b"0011223344556677",
        b"89049032123451234512345678901235",
        b"4D4D4D0000000001",
        b"AB-1",
    )
    for number, found in enumerate(titles):
        yield bytes((number,)) + found


def _pattern(pattern: str) -> None:
    """A pattern that is taken for a rule: one id it accepts is found, and long ones are matched at once."""
    rule = HardwareIdRule(kind=HardwareIdKind.SERIAL, pattern=pattern)
    sample_hardware_id(rule, ())
    for tried in ("A" * 64, "1" * 64, "A1" * 32):
        try:
            rule.parse(tried)
        except errors.PolicyRefused:
            continue


def orders() -> Iterator[bytes]:
    """Recalls: of a device, and of what a station did in a window of time."""
    windows: tuple[tuple[SelectionKind, datetime | None], ...] = (
        (SelectionKind.DEVICE, None),
        (SelectionKind.STATION, datetime(2026, 11, 22, tzinfo=UTC)),
    )
    for kind, since in windows:
        yield RecallOrder(
            realm="acme",
            environment="test",
            id="recall-1",
            selection=Selection(
                kind=kind, value="ST01", since=since, until=since and since + timedelta(days=1)
            ),
            action=RecallAction.REVOKE,
            reason=ReasonCode.KEY_COMPROMISE,
            justification="keys were seen outside",
            previewed=3,
            proposed_by="operator:anna",
            invalidity_date=since,
        ).encode()


MOTION = Motion(
    realm="acme",
    environment="test",
    id="pp-0123456789",
    deed=Deed.CHANGE_ROLE,
    subject="operator:anna",
    terms={"role": "auditor"},
    reason="she has moved",
    proposed_by="operator:bela",
)


def _order(data: bytes) -> None:
    check_order(RecallOrder.decode(data))


# --- ceremonies


@functools.cache
def _file() -> bytes:
    return hierarchy().progress.ceremony.file


def _replayed(data: bytes) -> None:
    """The record of a ceremony, as an auditor gets it."""
    record = Record.decode(data)
    ceremony = parse_ceremony(_file())
    replay(ceremony, record.body, profiles.load).require_complete()
    record.require_signed(ceremony)


_IN_A_FILE = "BIRTHMARK CEREMONY "


def _request(data: bytes) -> object:
    ceremony = parse_ceremony(_file())
    armoured = to_pem(data, f"{_IN_A_FILE}REQUEST").encode()
    return as_file("request.pem", lambda path: read_request(path, ceremony))(armoured)


def _request_seeds() -> Iterator[bytes]:
    body = hierarchy().record.body
    none: list[object] = []
    for events in (body["events"], none):
        yield canonical(
            {
                "file_sha256": sha256(_file()).hexdigest(),
                "before": body["before"],
                "lines": [],
                "events": events,
            }
        )


def _answer(data: bytes) -> object:
    ceremony = parse_ceremony(_file())
    armoured, rest = halves(data, 2)
    content = to_pem(rest, f"{_IN_A_FILE}ANSWER").encode() if armoured else rest
    return as_file("answer.pem", lambda path: read_answer(path, ceremony))(content)


def _answer_seeds() -> Iterator[bytes]:
    ceremony = parse_ceremony(_file())
    yield b"\0" + to_pem(hierarchy().root).encode()
    events = [dict(event) for event in hierarchy().progress.events if event["event"] == "session"]
    whole = answer_text(ceremony, [], events)
    yield b"\1" + one_from_pem(whole, f"{_IN_A_FILE}ANSWER")
    yield b"\0" + whole.encode()


def _known(data: bytes) -> None:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise errors.MalformedRequest("not json") from None
    if not isinstance(document, dict):
        raise errors.MalformedRequest("no object")
    known_from(document)


def _known_seeds() -> Iterator[bytes]:
    authorities = [authority_document(found) for found in hierarchy().progress.authorities.values()]
    stores = [{"label": "root", "store": "root"}]
    yield json.dumps({"authorities": authorities, "stores": stores}).encode()


# --- keys


BACKUP = KeyBackup(
    realm="acme",
    label="issuing-1",
    purpose=KeyPurpose.ISSUING_CA,
    algorithm=KeyAlgorithm.EC_P256,
    users="certify",
    subject_public_key_info=spki(KeyAlgorithm.EC_P256, "backup"),
    store="service",
    kek="kek-1",
    kek_check_value="0" * 6,
    wrapped=b"wrapped",
    made_at=NOW.replace(microsecond=0),
    environment="test",
)
KEK = SecretBytes(bytes(32))


def _wrapped(data: bytes) -> None:
    """Half of the inputs are what is wrapped, half what comes out: nobody guesses what opens."""
    inside, rest = halves(data, 2)
    unwrapped(KEK, wrapped_under(KEK, SecretBytes(rest)) if inside and rest else rest, KeyLabel("kek"))


@functools.cache
def transport() -> rsa.RSAPrivateKey:
    """A transport key."""
    return rsa.generate_private_key(65537, 3072)


def share_key() -> bytes:
    """Its public half."""
    return transport().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _share(data: bytes) -> None:
    open_share(transport(), SecretKind.MASTER_AES_128, data)


# --- what the command is given


def _notes(path: Path) -> object:
    return read_notes([path])


def _shipped(path: Path) -> object:
    with redirect_stderr(StringIO()):  # which devices are none is told there
        return read_devices(path)


def _listed(path: Path) -> object:
    return read_list(path, VIN, lambda _done, _of: None)


SETTINGS = b"""[realm]
name = "nord"
environment = "test"
organization = "Acme"
[database]
url = "sqlite:///line.sqlite"
[key-store]
kind = "software"
directory = "keys"
passphrase-file = "keystore.passphrase"
[station-plane]
certificate-file = "server.crt"
key-file = "server.key"
key-passphrase-file = "server.passphrase"
client-ca-file = "root.crt"
"""
INDEX = json.dumps(
    {
        "record": {"size": 7, "at": "2026-11-22T10:00:00.000Z"},
        "log_size": 7,
        "crls": [
            {
                "authority": "issuing-1",
                "partition": "",
                "number": 7,
                "this_update": "2026-11-22T10:00:00.000Z",
                "next_update": "2026-11-23T10:00:00.000Z",
                "octets": 300,
                "sha256": "0" * 64,
                "as_of": "2026-11-22T10:00:00.000Z",
                "base": None,
                "stale": False,
            }
        ],
    },
    indent=1,
).encode()


FLOOR_TARGETS = (
    Target(
        name="hardware-id",
        run=_hardware_id,
        seeds=_hardware_id_seeds,
        refuses=(errors.MalformedRequest, errors.PolicyRefused),
    ),
    Target(name="run-licence", run=RunLicence.decode, seeds=lambda: [LICENCE.encode()], shape=Shape.JSON),
    Target(
        name="recall-order",
        run=_order,
        seeds=orders,
        refuses=(errors.MalformedRequest, errors.PolicyRefused),
        shape=Shape.JSON,
    ),
    Target(name="motion", run=Motion.decode, seeds=lambda: [MOTION.encode()], shape=Shape.JSON),
    Target(name="exposure", run=text(parse_exposure), seeds=lambda: [b"plane:station", b"run:R1"]),
    Target(
        name="subject-of-a-history",
        run=text(subject_of),
        seeds=lambda: [b"vin:1M8GDM9AXKP042788", b"certificate:0f:00", b"0f00", b"run:R1"],
    ),
    Target(name="scope", run=text(Scope.parse), seeds=lambda: [b"product=VAN|CAR;site=graz", b"*"]),
    Target(
        name="networks",
        run=text(lambda said: networks_text(said.split())),
        seeds=lambda: [b"10.4.0.0/16 fd00::/8", b"192.0.2.1"],
    ),
    Target(
        name="hardware-id-pattern",
        run=text(_pattern),
        seeds=lambda: [rb"[A-Z]{2}-\d+", b"AB?C*[0-9a-f]{1,5}"],
    ),
    Target(
        name="ceremony-file",
        run=parse_ceremony,
        seeds=lambda: [_file()],
        refuses=(errors.MalformedRequest, errors.PolicyRefused, errors.TooLarge),
        longest=16384,
    ),
    Target(
        name="ceremony-record",
        run=_replayed,
        seeds=lambda: [hierarchy().record.encode()],
        refuses=(errors.Refusal,),
        shape=Shape.JSON,
        longest=65536,
    ),
    Target(
        name="ceremony-request",
        run=_request,
        seeds=_request_seeds,
        refused_seeds=True,
        refuses=(errors.MalformedRequest, errors.NotPermitted, errors.ProofFailed),
        shape=Shape.JSON,
        longest=65536,
    ),
    Target(
        name="ceremony-answer",
        run=_answer,
        seeds=_answer_seeds,
        refuses=(errors.MalformedRequest, errors.NotPermitted, errors.IntegrityFailure),
        longest=65536,
    ),
    Target(
        name="ceremony-context",
        run=_known,
        seeds=_known_seeds,
        shape=Shape.JSON,
        longest=65536,
    ),
    Target(name="key-backup", run=KeyBackup.from_bytes, seeds=lambda: [BACKUP.to_bytes()], shape=Shape.JSON),
    Target(name="wrapped-key", run=_wrapped, seeds=lambda: [b"\1\x30\x06\1\1\xff\1\1\xff"]),
    Target(name="transport-key", run=recipient_key, seeds=lambda: [share_key()], shape=Shape.DER),
    Target(name="key-share", run=_share, seeds=lambda: [share_with(share_key(), SecretBytes(bytes(16)))]),
    Target(
        name="passphrase-file",
        run=as_file("passphrase", read_passphrase_file),
        seeds=lambda: [b"opens nothing\r\n"],
        refuses=(errors.MalformedRequest, errors.TooLarge),
    ),
    Target(
        name="settings",
        run=as_file("birthmark.toml", load),
        seeds=lambda: [SETTINGS],
    ),
    Target(
        name="allow-list",
        run=as_file("allowed.csv", _listed),
        seeds=lambda: [b"hardware_id,colour\n1M8GDM9AXKP042788,red\n", b"1M8GDM9AXKP042788\n"],
    ),
    Target(
        name="shipment-csv",
        run=as_file("shipment.csv", _shipped),
        seeds=lambda: [b"device;lot\nvin:1M8GDM9AXKP042788;7\n"],
    ),
    Target(
        name="shipment-json",
        run=as_file("shipment.json", _shipped),
        seeds=lambda: [b'["vin:1M8GDM9AXKP042788", {"device": "serial:AB-1"}]'],
        shape=Shape.JSON,
    ),
    Target(
        name="checkpoint-files",
        run=as_file("checkpoints", _notes),
        seeds=lambda: [(sample(3).checkpoint(1) + sample(3).checkpoint()).encode()],
    ),
    Target(name="moment", run=text(moment), seeds=lambda: [b"2026-11-22T06:00Z", b"2026-11-22"]),
    Target(
        name="device-id",
        run=text(device_id),
        seeds=lambda: [b"vin:1M8GDM9AXKP042788", b"serial:AB-1"],
        refuses=(errors.MalformedRequest, errors.PolicyRefused),
    ),
    Target(name="variables", run=text(lambda given: pairs(given.split("\n"))), seeds=lambda: [b"a=b\nc=d"]),
    Target(name="client-name", run=text(lambda name: check_name("a station", name)), seeds=lambda: [b"ST01"]),
    Target(
        name="ceremony-path",
        run=as_file("ceremony.yaml", read_ceremony),
        seeds=lambda: [_file()],
        refuses=(errors.MalformedRequest, errors.PolicyRefused, errors.TooLarge),
        longest=16384,
    ),
    Target(
        name="publication-index",
        run=Index.decode,
        seeds=lambda: [INDEX],
        refuses=(errors.IntegrityFailure,),
        shape=Shape.JSON,
    ),
)
