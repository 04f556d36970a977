"""The schema: one description three times (migrations, tables, mappings), and what may never be changed."""

# ruff: noqa: S608  # statements are put together from the names of our own tables

import dataclasses
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy.exc import DBAPIError

from birthmark import errors
from birthmark.adapters.sql.log import CHECKPOINT, HEAD, LEAF, TILE
from birthmark.adapters.sql.migrate import create_realm, migrate
from birthmark.adapters.sql.rows import MAPPINGS
from birthmark.adapters.sql.tables import METADATA
from birthmark.floor.attestations import Attestation
from birthmark.floor.ceremonies import CeremonyRecord
from birthmark.floor.clients import Role
from birthmark.floor.devices import DeviceEvent, IdentityRecord
from birthmark.floor.elements import ElementUse, fresh
from birthmark.floor.enrolments import (
    CMPStatus,
    CMPTransaction,
    LocalIdentity,
    WaitingEnrolment,
    WaitingStatus,
)
from birthmark.floor.exposure import Exposure
from birthmark.floor.fleet import (
    FieldDevice,
    FieldStatus,
    FleetAuthority,
    FleetPolicy,
    FleetStatus,
    ForeignCRL,
    ForeignCRLOctets,
)
from birthmark.floor.invitations import Invitation
from birthmark.floor.key_assets import KeyAsset, KeyPolicy, KeyPurpose, KeyStatus
from birthmark.floor.limits import Bucket
from birthmark.floor.proposals import Proposal, ProposalStatus
from birthmark.floor.realm import Environment, Realm
from birthmark.floor.recalls import Recall, RecallStatus
from birthmark.floor.revocations import Revocation
from birthmark.floor.runs import AllowedDevice
from birthmark.floor.shared import SharedCredential
from birthmark.floor.shipments import Shipped
from birthmark.pki.revocation import ReasonCode
from tests.support.acts import note, put
from tests.support.realm import START, Line, libpq, make_line, workpiece

APPEND_ONLY = (
    "realm",
    "leaf",
    "tile",
    "checkpoint",
    "identity_record",
    "key_use",
    "element_use",
    "allowed_device",
    "shipped",
    "ceremony",
)
FROZEN = {
    "authority": "der",
    "credential": "der",
    "device_certificate": "der",
    "run": "document",
    "attempt": "device",
    "recall": "document",
    "key_asset": "fingerprint",
    "proposal": "document",
    "invitation": "client",
    "local_identity": "device",
    "waiting_enrolment": "request_sha256",
    "cmp_transaction": "request",
    "shared_credential": "quantity",
    "fleet_authority": "der",
    "field_device": "first_seen_leaf",
}
NUMBERS = ("quantity", "first_seen_leaf")
TEXTS = ("client", "device", "fingerprint", "request_sha256")
KEPT = (
    "foreign_crl",
    "foreign_crl_octets",
    "bucket",
    "exposure",
    "head",
    "client",
    "device",
    "element_journal",
    "attestation",
    "answer",
    "revocation",
)
KINDS = {"TEXT": "text", "BIGINT": "bigint", "INTEGER": "bigint", "BLOB": "bytea", "BYTEA": "bytea"}
KINDS['TEXT COLLATE "C"'] = "text"  # whatever the database's collation


REST = (
    Proposal(
        id="pp-1",
        document=b"m",
        proposer="1",
        proposal=b"s",
        approver=None,
        approval=None,
        status=ProposalStatus.PROPOSED,
        proposed_at=START,
    ),
    Invitation(
        id="i",
        client="station:ST03",
        site="Graz",
        line="L1",
        runs="",
        authority="issuing-1",
        hours=72,
        invited_by="operator:anna",
        expires_at=START,
        certificate=None,
    ),
    LocalIdentity(id="d/r", device="d", run="r", attempt="a", attempts=1, certificate=None),
    WaitingEnrolment(
        id="c/k",
        device="d",
        run="r",
        client="c",
        request_sha256="0",
        csr_sha256="1",
        status=WaitingStatus.WAITING,
        asked_at=START,
    ),
    CMPTransaction(
        id="c/t",
        client="c",
        run="r",
        body="ir",
        request=b"0",
        request_id=0,
        key="k",
        nonce=b"0",
        status=CMPStatus.WAITING,
        expires_at=START,
    ),
    SharedCredential(id="shared:s", quantity=2, used=1, networks="", waiting=1),
    FleetAuthority(
        id="f",
        der=b"0",
        policy=FleetPolicy().encode(),
        status=FleetStatus.CHALLENGED,
        nonce="00",
        asked_at=START,
    ),
    ForeignCRL(
        id="f/00",
        issuer=b"0",
        url="",
        number="01",
        sha256="00",
        entries=1,
        this_update=START,
        next_update=START,
    ),
    ForeignCRLOctets(id="f/00", sha256="00", der=b"0"),
    FieldDevice(
        id="fleet:f/d",
        authority="f",
        certificate="00",
        status=FieldStatus.ACTIVE,
        reason=None,
        place="127.0.0.1",
        moved_at=START,
        moves=0,
        counted_from=START,
        first_seen_at=START,
        first_seen_leaf=0,
    ),
    Bucket(id="client/station:ST01", thousandths=1, at=START),
    Exposure(id="station:ST01", opens_at=START, closes_at=None),
    fresh("serial:D1", "a", element="e", master="m"),
    ElementUse(id="m/00", device="serial:D1"),
    Attestation(
        id="a",
        device="serial:D1",
        run="R1",
        client="station:ST01",
        ek_certificate=b"c",
        ek_spki_sha256="e",
        iak=b"i",
        idevid=b"d",
        nonce=b"n",
        secret_sha256="s",
        expires_at=START,
    ),
    Shipped(device="serial:D1", consignment="C1", at=START),
    CeremonyRecord(
        id="c", file=b"x", file_sha256="", record=b"{}", record_sha256="", performed_at=START, leaf=0
    ),
    Recall(
        id="r",
        document=b"{}",
        proposer="aa",
        proposal=b"s",
        approver=None,
        approval=None,
        status=RecallStatus.PROPOSED,
        cursor="",
        changed=0,
        proposed_at=START,
        approved_at=None,
    ),
    Revocation(id="a/p/01", entry=b"", reason=ReasonCode.REMOVE_FROM_CRL, revoked_at=START, cause="x"),
    KeyAsset(
        label="kek-1",
        store="software",
        purpose=KeyPurpose.ISSUING_CA,
        kind="ec-p256",
        policy=KeyPolicy.SIGNING,
        users="issuance",
        fingerprint="00",
        ceremony=None,
        status=KeyStatus.ACTIVE,
        created_at=START,
        backed_up_at=None,
        backup_sha256=None,
    ),
)
"""A row for each table that a day on the line leaves empty."""


@contextmanager
def connected(url: str) -> Iterator[sqlalchemy.Connection]:
    """Connect as anybody with the database's password could."""
    address = url if "+" in url else url.replace("postgresql://", "postgresql+psycopg://")
    engine = sqlalchemy.create_engine(address, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def columns(inspector: sqlalchemy.Inspector, table: str) -> list[tuple[str, str, bool]]:
    return [
        (column["name"], KINDS[str(column["type"])], bool(column["nullable"]))
        for column in inspector.get_columns(table)
    ]


def test_the_migrations_arrive_at_the_tables(database_url: str) -> None:
    """Empty to head, on both engines; and once more changes nothing."""
    migrate(libpq(database_url))
    for _ in range(2):
        with connected(database_url) as connection:
            inspector = sqlalchemy.inspect(connection)
            found = {
                name: (columns(inspector, name), inspector.get_pk_constraint(name)["constrained_columns"])
                for name in inspector.get_table_names()
                if name != "alembic_version"
            }
            version = (
                connection.execute(sqlalchemy.text("SELECT version_num FROM alembic_version")).scalars().all()
            )
        assert version == ["0005"]
        wanted = {
            table.name: (
                [
                    (
                        column.name,
                        {"TEXT": "text", "BIGINT": "bigint", "BLOB": "bytea"}[str(column.type)],
                        bool(column.nullable),
                    )
                    for column in table.columns
                ],
                [column.name for column in table.primary_key],
            )
            for table in METADATA.tables.values()
        }
        assert found == wanted
        migrate(libpq(database_url))


def test_the_mappings_name_the_columns_of_the_tables_in_their_order_and_type() -> None:
    shapes: list[Any] = [*MAPPINGS.values(), HEAD, LEAF, TILE, CHECKPOINT]
    for shape in shapes:
        table = METADATA.tables[shape.table]
        assert shape.columns == tuple(column.name for column in table.columns)
        types = {"TEXT": "text", "BIGINT": "bigint", "BLOB": "bytea"}
        assert shape.types == tuple(types[str(column.type)] for column in table.columns)
    assert {shape.table for shape in shapes} | {"realm"} == set(METADATA.tables)
    for kind, mapping in MAPPINGS.items():
        hints = {field.name: field.type for field in dataclasses.fields(kind)}
        for column in METADATA.tables[mapping.table].columns:
            assert bool(column.nullable) is ("None" in str(hints[column.name])), (mapping.table, column.name)


def test_sqlites_tables_are_strict(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'x.sqlite'}"
    migrate(url)
    with connected(url) as connection:
        strict = connection.execute(sqlalchemy.text("SELECT name FROM pragma_table_list WHERE strict = 1"))
        assert set(strict.scalars()) == set(METADATA.tables)


def test_a_database_belongs_to_one_realm(database_url: str) -> None:
    """SPEC H6."""
    realm = Realm(
        name="acme",
        environment=Environment.TEST,
        origin="acme/log",
        vkey="k",
        created_at=START,
    )
    url = libpq(database_url)
    migrate(url)
    create_realm(url, realm)
    with pytest.raises(errors.IllegalTransition, match="the database already belongs to realm acme"):
        create_realm(url, realm)


def test_a_database_that_cannot_be_reached_is_unavailable() -> None:
    with pytest.raises(errors.Unavailable):
        migrate("postgresql://nobody@127.0.0.1:1/nothing")


def test_what_is_written_once_cannot_be_changed_or_removed(tmp_path: Path, database_url: str) -> None:
    """SPEC E3: append-only in the schema, against whoever has the service's password but not the schema's."""
    line = make_line(tmp_path, database_url)
    line.open_run(listed=["serial:D1", "serial:D2"])
    line.make("D1")
    line.issue(workpiece("D2"))
    line.dispose(DeviceEvent.HOLD, "serial:D2", by=line.station)
    line.enrol(Role.STATION, "ST02", by=line.operator)
    line.service.store.submit([note() for _ in range(260)]).result(10)
    line.service.store.submit([put(*REST)]).result(10)
    line.close()
    postgresql = "postgresql" in database_url
    everything = (*APPEND_ONLY, *FROZEN, *KEPT)
    assert set(everything) == set(METADATA.tables), "every table is somewhere"
    attempts = [f"DELETE FROM {table}" for table in everything]
    if postgresql:
        attempts += [f"TRUNCATE {table}" for table in everything]
    for table in APPEND_ONLY:
        attempts += [
            f"UPDATE {table} SET {column.name} = {column.name}" for column in METADATA.tables[table].columns
        ]
    for table, column in FROZEN.items():
        if column in NUMBERS:
            other = f"{column} + 1"
        elif column in TEXTS:
            other = f"{column} || 'x'"
        else:
            other = "'\\x00'::bytea" if postgresql else "x'00'"
        attempts.append(f"UPDATE {table} SET {column} = {other}")
    with connected(database_url) as connection:
        for table in everything:
            rows = connection.execute(sqlalchemy.text(f"SELECT count(*) FROM {table}")).scalar()
            assert rows, f"{table} is empty: nothing would be refused"
        for statement in attempts:
            with pytest.raises(DBAPIError, match="is append-only"):
                connection.execute(sqlalchemy.text(statement))
            connection.rollback()
        for table, column in FROZEN.items():
            connection.execute(sqlalchemy.text(f"UPDATE {table} SET {column} = {column}"))
        connection.rollback()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE run SET admitted = quantity + 1",
        "UPDATE run SET admitted = -1",
        "UPDATE run SET status = 'ajar'",
        "UPDATE authority SET quota = 0",
        "UPDATE authority SET status = 'tired'",
        "UPDATE client SET role = 'king'",
        "UPDATE device SET state = 'proved'",
        "UPDATE attempt SET state = 'released', proof = NULL",
        "UPDATE revocation SET reason = 'because'",
        "UPDATE recall SET status = 'done'",
        "UPDATE attestation SET certify_signature = iak",
        "UPDATE recall SET status = 'approved', approver = proposer, approval = proposal",
        "INSERT INTO head (id, size, edge, at) SELECT 2, size, edge, at FROM head",
    ],
)
def test_the_database_itself_refuses_what_makes_no_sense(line: Line, statement: str) -> None:
    """CHECK on enums and counters on both engines."""
    line.make("D1")
    line.service.store.submit([put(*REST)]).result(10)
    with connected(line.url) as connection:
        with pytest.raises(DBAPIError, match=r"(?i)check|constraint"):
            connection.execute(sqlalchemy.text(statement))
        connection.rollback()


def test_values_come_back_as_they_went(line: Line) -> None:
    line.make("D1")
    line.issue(workpiece("D2", delivered=True))
    for kind, mapping in MAPPINGS.items():
        value: Any
        for value in line.service.store.scan(kind):
            assert mapping.value(mapping.row(value)) == value
            assert (
                line.service.store.look({kind: (mapping.key(value),)}).get(kind, mapping.key(value)) == value
            )


def test_a_scan_goes_through_all_pages_in_order_and_can_begin_anywhere(line: Line) -> None:
    """``Store.scan``: a page is a thousand."""
    devices = [f"serial:{a}{b}{n}" for a, b in itertools.product("aZ_", "bY-") for n in range(230)]
    listed = line.service.carry(line.service.runs.import_list(line.operator.caller, devices))
    keys = sorted(AllowedDevice.key(listed, device) for device in devices)
    scan = line.service.store.scan
    assert [value.id for value in scan(AllowedDevice)] == keys
    assert [value.id for value in scan(AllowedDevice, limit=1500)] == keys[:1500]
    assert [value.id for value in scan(AllowedDevice, after=keys[999], limit=2)] == keys[1000:1002]
    assert list(scan(AllowedDevice, after=keys[-1])) == []
    assert list(scan(AllowedDevice, limit=0)) == []
    leaves = []
    for name in ("D1", "D2", "D3"):
        line.make(name)
        leaves.append(line.size() - 1)
    assert [record.leaf for record in scan(IdentityRecord)] == leaves
    assert [record.leaf for record in scan(IdentityRecord, after=str(leaves[0]))] == leaves[1:]
