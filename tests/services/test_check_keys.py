"""The check holds the table of keys against every entry about keys (SPEC B4, B5, E5)."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from birthmark import errors
from birthmark.adapters.system import SystemEntropy
from birthmark.floor.key_assets import KeyAsset, KeyPurpose
from birthmark.pki.attributes import SecretKind
from birthmark.pki.keys import KeyAlgorithm, KeyLabel
from birthmark.services.check import check
from birthmark.services.custody import KeyCustody
from birthmark.services.testimony import Said
from tests.support.keystores import KEK, share_kek, sites
from tests.support.realm import Line, make_line, open_service, tamper

CA, LOST = KeyLabel("ca"), KeyLabel("lost")


def keep(line: Line, folder: Path) -> None:
    """Adopt keys, back two of them up, and restore them: one of them where it was never on record."""
    custody = KeyCustody(line.realm, line.clock, SystemEntropy())
    caller, carry = line.operator.caller, line.service.carry
    with sites("software", folder) as place:
        share_kek(place)
        place.here.generate(CA, KeyAlgorithm.EC_P256, exportable=True)
        place.here.generate(LOST, KeyAlgorithm.EC_P384, exportable=True)
        for label, purpose in ((KEK, KeyPurpose.KEK), (CA, KeyPurpose.ISSUING_CA), (LOST, KeyPurpose.LOG)):
            carry(custody.adopt(caller, place.here, "floor", label, purpose, "ca"))
        line.clock.turn(hours=1)
        for label in (CA, LOST):
            backup = carry(custody.back_up(caller, place.here, "floor", label, KEK))
            if label == CA:
                carry(custody.restore(caller, place.mirror, "mirror", backup))


@pytest.fixture(scope="module")
def keeping(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    folder = tmp_path_factory.mktemp("keeping")
    line = make_line(folder, f"sqlite:///{folder / 'line.sqlite'}")
    keep(line, folder)
    yield line
    line.close()


def checked(line: Line) -> list[str]:
    store = line.another_service().store
    return check(store, store.log, line.realm).findings


def test_keys_that_were_adopted_backed_up_and_restored_are_as_the_log_says(
    tmp_path: Path, database_url: str
) -> None:
    line = make_line(tmp_path, database_url)
    keep(line, tmp_path)
    assert checked(line) == []
    kinds = {entry["kind"] for entry in line.entries()}
    assert {"ceremony-performed", "key-recorded", "key-backed-up", "key-restored"} <= kinds
    assert line.the(KeyAsset, CA).store == "floor,mirror"
    line.close()


def test_a_key_that_is_accepted_elsewhere_is_in_both_stores(tmp_path: Path) -> None:
    """SPEC B5: and a check of the log says the same."""
    line = make_line(tmp_path, f"sqlite:///{tmp_path / 'line.sqlite'}")
    custody = KeyCustody(line.realm, line.clock, SystemEntropy())
    caller, carry = line.operator.caller, line.service.carry
    with sites("software", tmp_path) as place:
        transport = KeyLabel("transport")
        spki = place.mirror.generate_transport(transport)
        made = place.here.generate_secret(KEK, SecretKind.KEK, recipients=[spki])
        carry(custody.adopt(caller, place.here, "floor", KEK, KeyPurpose.KEK, "custodians"))
        (share,) = made.shares
        carry(custody.accept(caller, place.mirror, "mirror", KEK, share, transport, made.check_value))
    assert checked(line) == []
    tamper(line.url, ("UPDATE key_asset SET store = 'floor' WHERE label = 'kek'", ()))
    assert checked(line) == ["key kek: its store is floor, the log says floor,mirror"]
    line.close()


def test_a_key_that_is_restored_where_it_was_never_on_record_is_put_there(tmp_path: Path) -> None:
    """SPEC B5: the entry says all that the table holds, and no more is needed to check it."""
    line = make_line(tmp_path, f"sqlite:///{tmp_path / 'line.sqlite'}")
    (tmp_path / "old").mkdir()
    old = make_line(tmp_path / "old", f"sqlite:///{tmp_path / 'old' / 'line.sqlite'}")
    with sites("software", tmp_path) as place:
        share_kek(place)
        place.here.generate(CA, KeyAlgorithm.EC_P256, exportable=True)
        custody = KeyCustody(old.realm, old.clock, SystemEntropy())
        for label, purpose in ((KEK, KeyPurpose.KEK), (CA, KeyPurpose.ISSUING_CA)):
            old.service.carry(custody.adopt(old.operator.caller, place.here, "floor", label, purpose, "ca"))
        made = custody.back_up(old.operator.caller, place.here, "floor", CA, KEK)
        backup = old.service.carry(made)
        line.clock.turn(days=1)
        custody = KeyCustody(line.realm, line.clock, SystemEntropy())
        restoration = custody.restore(line.operator.caller, place.mirror, "mirror", backup)
        asset = line.service.carry(restoration)
    assert asset.stores == ("mirror",)
    assert checked(line) == []
    tamper(line.url, ("UPDATE key_asset SET users = 'mallory' WHERE label = 'ca'", ()))
    assert checked(line) == ["key ca: its users is mallory, the log says ca"]
    for one in (line, old):
        one.close()


TAMPERINGS = {
    "the store": ("store = 'floor'", "its store is floor, the log says floor,mirror"),
    "the purpose": ("purpose = 'root-ca'", "its purpose is root-ca, the log says issuing-ca"),
    "the kind": ("kind = 'rsa-2048'", "its kind is rsa-2048, the log says ec-p256"),
    "the policy": ("policy = 'signing'", "its policy is signing, the log says signing-with-backup"),
    "the users": ("users = 'mallory'", "its users is mallory, the log says ca"),
    "the fingerprint": ("fingerprint = 'ab'", "its fingerprint is ab, the log says"),
    "the ceremony": ("ceremony = 'acme-0'", "its ceremony is acme-0, the log says None"),
    "the status": ("status = 'destroyed'", "its status is destroyed, the log says active"),
    "the time": ("created_at = created_at + 1", "its time is"),
    "the time of the backup": ("backed_up_at = backed_up_at + 1", "its backup_time is"),
    "a backup that was never made": ("backup_sha256 = 'cd'", "its backup is cd, the log says"),
    "a backup that was forgotten": ("backed_up_at = NULL", "its backup_time is None, the log says"),
}


def copy_of(line: Line, path: Path) -> Line:
    with closing(sqlite3.connect(line.url.removeprefix("sqlite:///"))) as db:
        db.execute("VACUUM INTO ?", (str(path),))
    url = f"sqlite:///{path}"
    return Line(url=url, keys=line.keys, clock=line.clock, service=open_service(url, line.keys, line.clock))


@pytest.mark.parametrize("case", TAMPERINGS)
def test_a_key_that_was_changed_on_record_is_found(case: str, keeping: Line, tmp_path: Path) -> None:
    line = copy_of(keeping, tmp_path / "tampered.sqlite")
    change, finding = TAMPERINGS[case]
    tamper(line.url, (f"UPDATE key_asset SET {change} WHERE label = 'ca'", ()))  # noqa: S608 -- ours
    (found,) = checked(line)
    assert found.startswith(f"key ca: {finding}")
    line.close()


def test_a_key_that_no_entry_speaks_of_and_one_that_is_gone_are_found(keeping: Line, tmp_path: Path) -> None:
    line = copy_of(keeping, tmp_path / "tampered.sqlite")
    tamper(line.url, ("UPDATE key_asset SET label = 'found', ceremony = NULL WHERE label = 'lost'", ()))
    assert checked(line) == [
        "key found has no entry in the log",
        "the log says key lost was made; it is not in the table of keys",
    ]
    line.close()


def test_entries_that_contradict_what_was_said_of_a_key_are_refused(keeping: Line) -> None:
    entries = list(keeping.entries())
    last = {entry["kind"]: entry for entry in entries}
    for bent, complaint in (
        (last["key-recorded"], "key lost is on record already"),
        ({**last["key-backed-up"], "key": "none"}, "no entry before it issued key none"),
        ({**last["key-backed-up"], "fingerprint": "ab"}, "key lost has another fingerprint than before"),
        ({**last["key-restored"], "fingerprint": "ab"}, "key ca has another fingerprint than before"),
        ({**last["key-restored"], "key_store": 7}, "its key_store is no text"),
        (last["ceremony-performed"], "is on record already"),
    ):
        said = Said()
        for index, entry in enumerate(entries):
            said.take(index, entry)
        with pytest.raises(errors.MalformedRequest, match=complaint):
            said.take(len(entries), bent)


def test_a_backup_is_as_old_as_its_entry(keeping: Line) -> None:
    asset = keeping.the(KeyAsset, CA)
    assert asset.backed_up_at is not None
    assert asset.backed_up_at - asset.created_at >= timedelta(minutes=59)
