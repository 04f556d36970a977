"""Keys on record: adopted, held against their store, backed up, brought back, and refused (SPEC B4, B5)."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from birthmark import errors
from birthmark.adapters.system import SystemEntropy
from birthmark.floor.key_assets import KeyAsset, KeyPolicy, KeyPurpose, KeySeverity
from birthmark.floor.key_backups import KeyBackup
from birthmark.ledger.entry import decode
from birthmark.pki.attributes import SecretKind
from birthmark.pki.keys import KeyAlgorithm, KeyLabel
from birthmark.services.custody import KeyCustody, check_keys
from tests.support.keystores import KEK, TRANSPORT, Sites, share_kek, sites
from tests.support.realm import Line

CA = KeyLabel("ca")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Sites]:
    with sites("software", tmp_path) as made:
        yield made


@pytest.fixture
def custody(small_line: Line) -> KeyCustody:
    return KeyCustody(small_line.realm, small_line.clock, SystemEntropy())


@pytest.fixture
def on_record(small_line: Line, custody: KeyCustody, place: Sites) -> bytes:
    """A CA key and a KEK on record here; the mirror has accepted the KEK.  The CA's public key."""
    share_kek(place)
    spki = place.here.generate(CA, KeyAlgorithm.EC_P256, exportable=True)
    for label, purpose in ((KEK, KeyPurpose.KEK), (CA, KeyPurpose.ISSUING_CA)):
        small_line.service.carry(
            custody.adopt(small_line.operator.caller, place.here, "floor", label, purpose, "ca")
        )
    return spki


def last_entry(line: Line) -> dict[str, Any]:
    log = line.service.store.log
    (entry,) = log.entries(log.size() - 1)
    return dict(decode(entry.entry))


def back_up(line: Line, custody: KeyCustody, place: Sites) -> bytes:
    caller = line.operator.caller
    return line.service.carry(custody.back_up(caller, place.here, "floor", CA, KEK))


def test_an_adopted_key_is_on_record_and_in_the_log(small_line: Line, place: Sites, on_record: bytes) -> None:
    """B4: a row in the table, and an entry that says who put it there."""
    asset = small_line.service.store.look({KeyAsset: (CA,)}).get(KeyAsset, CA)
    assert asset is not None
    assert asset.policy is KeyPolicy.SIGNING_WITH_BACKUP
    assert asset.fingerprint == sha256(on_record).hexdigest()
    entry = last_entry(small_line)
    assert (entry["kind"], entry["key"], entry["actor"]) == ("key-recorded", "ca", small_line.operator.id)
    findings = check_keys(small_line.service.store, place.here, "floor")
    assert [finding for finding in findings if finding.severity is KeySeverity.ERROR] == []


def test_a_key_that_is_not_kept_as_its_purpose_wants_is_not_adopted(
    small_line: Line, custody: KeyCustody, place: Sites
) -> None:
    """B4: a CA key that is in truth a KEK is nobody's CA key."""
    place.here.generate_secret(KEK, SecretKind.KEK)
    adoption = custody.adopt(small_line.operator.caller, place.here, "floor", KEK, KeyPurpose.LOG, "log")
    with pytest.raises(errors.PolicyRefused, match="should be private"):
        small_line.service.carry(adoption)
    assert KEK not in {asset.label for asset in small_line.service.store.scan(KeyAsset)}


def test_a_key_crosses_and_both_stores_are_on_record(
    small_line: Line, custody: KeyCustody, place: Sites, on_record: bytes
) -> None:
    """B5: backup, restore, and what the log and the table say of both."""
    content = back_up(small_line, custody, place)
    digest = sha256(content).hexdigest()
    entry = last_entry(small_line)
    assert (entry["kind"], entry["backup_sha256"], entry["kek"]) == ("key-backed-up", digest, "kek")
    backup = KeyBackup.from_bytes(content)
    assert backup.subject_public_key_info == on_record
    assert backup.to_bytes() == content
    restoration = custody.restore(small_line.operator.caller, place.mirror, "mirror", content)
    asset = small_line.service.carry(restoration)
    assert asset.store == "floor,mirror"
    assert asset.backup_sha256 == digest
    assert asset.policy_in("mirror") is KeyPolicy.SIGNING_RESTORED
    assert last_entry(small_line)["kind"] == "key-restored"
    assert place.mirror.public_key(CA) == on_record
    found = check_keys(small_line.service.store, place.mirror, "mirror")
    unknown = {finding.label for finding in found if finding.severity is KeySeverity.ERROR}
    assert unknown == {KEK, TRANSPORT}, "which nobody put on record here"


def test_a_restore_that_was_cut_short_is_finished_by_another(
    small_line: Line, custody: KeyCustody, place: Sites, on_record: bytes
) -> None:
    """B5: the key is in the store and not on record; a key of another value is not taken for it."""
    content = back_up(small_line, custody, place)
    backup = KeyBackup.from_bytes(content)
    place.mirror.unwrap(CA, on_record, backup.wrapped, KEK)
    caller = small_line.operator.caller
    asset = small_line.service.carry(custody.restore(caller, place.mirror, "mirror", content))
    assert asset.stores == ("floor", "mirror")


def test_a_key_of_the_other_environment_does_not_come_back_here(
    small_line: Line, custody: KeyCustody, place: Sites, on_record: bytes
) -> None:
    """SPEC H6: two realms may have one name; a test realm's key is none of production's."""
    assert on_record
    content = back_up(small_line, custody, place)
    assert b'"environment":"test"' in content
    other = content.replace(b'"environment":"test"', b'"environment":"production"')
    caller = small_line.operator.caller
    with pytest.raises(errors.PolicyRefused, match=r"acme \(production\)"):
        small_line.service.carry(custody.restore(caller, place.mirror, "mirror", other))
    assert (last_entry(small_line)["kind"], last_entry(small_line)["rule"]) == ("refused", "realm")
    assert CA not in place.mirror.labels()


def test_a_backup_of_before_comes_back_where_its_key_is_on_record_and_nowhere_else(
    small_line: Line, custody: KeyCustody, place: Sites, on_record: bytes
) -> None:
    assert on_record
    before = KeyBackup.from_bytes(back_up(small_line, custody, place))
    content = replace(before, environment=None).to_bytes()
    assert b"environment" not in content
    caller = small_line.operator.caller
    elsewhere = replace(before, environment=None, label="cb").to_bytes()
    with pytest.raises(errors.PolicyRefused):
        small_line.service.carry(custody.restore(caller, place.mirror, "mirror", elsewhere))
    asset = small_line.service.carry(custody.restore(caller, place.mirror, "mirror", content))
    assert asset.stores == ("floor", "mirror")


def test_a_backup_is_not_restored_over_another_key(
    small_line: Line, custody: KeyCustody, place: Sites, on_record: bytes
) -> None:
    content = back_up(small_line, custody, place)
    another = place.mirror.generate(CA, KeyAlgorithm.EC_P256)
    restoration = custody.restore(small_line.operator.caller, place.mirror, "mirror", content)
    with pytest.raises(errors.IllegalTransition, match="another key ca"):
        small_line.service.carry(restoration)
    assert place.mirror.public_key(CA) == another != on_record


@pytest.mark.parametrize(
    ("old", "new", "refusal"),
    [
        (b'"realm":"acme"', b'"realm":"acne"', errors.PolicyRefused),
        (b'"kek":"kek"', b'"kek":"kez"', errors.NotFound),
        (b'"label":"ca"', b'"label":"../ca"', errors.MalformedRequest),
        (b'"format":"birthmark-key-backup/v1"', b'"format":"x"', errors.MalformedRequest),
        (b'"wrapped":"', b'"wrapped":"AAAA', errors.MalformedRequest),
        (b'"algorithm":"ec-p256"', b'"algorithm":"ec-p384"', errors.MalformedRequest),
        (b'{"algorithm"', b'{ "algorithm"', errors.MalformedRequest),
    ],
)
@pytest.mark.usefixtures("on_record")
def test_a_changed_backup_restores_nothing(
    small_line: Line,
    custody: KeyCustody,
    place: Sites,
    old: bytes,
    new: bytes,
    refusal: type[errors.Refusal],
) -> None:
    """B5: whatever in it was changed."""
    content = back_up(small_line, custody, place)
    assert content.count(old) == 1
    changed = content.replace(old, new)
    restoration = custody.restore(small_line.operator.caller, place.mirror, "mirror", changed)
    with pytest.raises(refusal):
        small_line.service.carry(restoration)
    assert CA not in place.mirror.labels()


@pytest.mark.usefixtures("on_record")
def test_another_kek_of_the_same_name_is_known_by_its_check_value(
    small_line: Line, custody: KeyCustody, place: Sites, tmp_path: Path
) -> None:
    """B5: before anything is unwrapped under it."""
    content = back_up(small_line, custody, place)
    with sites("software", tmp_path / "third") as third:
        third.here.generate_secret(KEK, SecretKind.KEK)
        restoration = custody.restore(small_line.operator.caller, third.here, "third", content)
        with pytest.raises(errors.PolicyRefused, match="check value") as refused:
            small_line.service.carry(restoration)
        assert refused.value.rule == "kek-check-value"


def test_an_accepted_kek_is_the_one_that_was_read_out(
    small_line: Line, custody: KeyCustody, place: Sites
) -> None:
    """B5: and is on record in both stores."""
    spki = place.mirror.generate_transport(TRANSPORT)
    made = place.here.generate_secret(KEK, SecretKind.KEK, recipients=[spki])
    caller = small_line.operator.caller
    carry = small_line.service.carry
    carry(custody.adopt(caller, place.here, "floor", KEK, KeyPurpose.KEK, "custodians"))
    (share,) = made.shares
    with pytest.raises(errors.IllegalTransition, match="on record with check value"):
        carry(custody.accept(caller, place.mirror, "mirror", KEK, share, TRANSPORT, "0" * 10))
    assert place.mirror.labels() == (TRANSPORT,)
    asset = carry(
        custody.accept(caller, place.mirror, "mirror", KEK, share, TRANSPORT, made.check_value.upper())
    )
    assert asset.stores == ("floor", "mirror")
    assert asset.policy_in("mirror") is KeyPolicy.KEK_ACCEPTED
    assert last_entry(small_line)["kind"] == "key-accepted"


@pytest.mark.usefixtures("on_record")
def test_a_station_backs_up_nothing(small_line: Line, custody: KeyCustody, place: Sites) -> None:
    """B5, K1: the attempt is refused and on record."""
    attempt = custody.back_up(small_line.station.caller, place.here, "floor", CA, KEK)
    with pytest.raises(errors.NotPermitted):
        small_line.service.carry(attempt)
    entry = last_entry(small_line)
    assert (entry["kind"], entry["request"]) == ("refused", "back-up-key")
    asset = small_line.service.store.look({KeyAsset: (CA,)}).get(KeyAsset, CA)
    assert asset is not None
    assert asset.backed_up_at is None


def test_a_key_on_record_that_was_exchanged_is_not_backed_up(
    small_line: Line, custody: KeyCustody, place: Sites, tmp_path: Path, on_record: bytes
) -> None:
    """B4: the store that answers holds other keys under the same labels."""
    with sites("software", tmp_path / "third") as third:
        assert third.here.generate(CA, KeyAlgorithm.EC_P256, exportable=True) != on_record
        third.here.generate_secret(KEK, SecretKind.KEK)
        attempt = custody.back_up(small_line.operator.caller, third.here, "floor", CA, KEK)
        with pytest.raises(errors.IntegrityFailure, match="not the one on record"):
            small_line.service.carry(attempt)
        found = check_keys(small_line.service.store, third.here, "floor")
    assert {(each.label, each.rule) for each in found if each.severity is KeySeverity.ERROR} == {
        (CA, "fingerprint"),
        (KEK, "fingerprint"),
    }
    assert place.here.labels() == (CA, KEK)


def test_times_and_backups_are_told(
    small_line: Line, custody: KeyCustody, place: Sites, on_record: bytes
) -> None:
    small_line.clock.turn(hours=1)
    back_up(small_line, custody, place)
    asset = small_line.service.store.look({KeyAsset: (CA,)}).get(KeyAsset, CA)
    assert asset is not None
    assert asset.backed_up_at is not None
    assert asset.backed_up_at - asset.created_at >= timedelta(minutes=59)
    assert asset.fingerprint == sha256(on_record).hexdigest()
