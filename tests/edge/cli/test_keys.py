"""``birthmark keys``: the realm's keys on the command line (SPEC B4, B5)."""

import json
from hashlib import sha256
from pathlib import Path

import pytest
from pkcs11 import Attribute, KeyType

from birthmark.adapters.custody import read_passphrase_file
from birthmark.adapters.pkcs11 import PKCS11KeyStore
from birthmark.adapters.softkeys import SoftwareKeyStore
from birthmark.adapters.softsecrets import share_with
from birthmark.pki.certificates import one_from_pem
from birthmark.pki.keys import KeyAlgorithm, KeyLabel
from birthmark.secret import SecretBytes
from birthmark.settings import SoftwareKeys, load
from tests.edge.cli.command import Place
from tests.support.realm import tamper
from tests.support.softhsm import softhsm_token

CA = KeyLabel("ca-2")


@pytest.fixture
def mirror(tmp_path: Path) -> list[object]:
    """An empty software store, as options of the command."""
    directory, passphrase = tmp_path / "mirror", tmp_path / "passphrase"
    directory.mkdir(mode=0o700)
    passphrase.touch(mode=0o600)
    passphrase.write_text("of the mirror\n")
    return ["--directory", directory, "--passphrase-file", passphrase, "--store", "mirror"]


def own_store(realm: Place) -> SoftwareKeyStore:
    """Open the realm's key store past the command."""
    settings = load(realm.settings).key_store
    assert isinstance(settings, SoftwareKeys)
    return SoftwareKeyStore.open(settings.directory, read_passphrase_file(settings.passphrase_file))


def exportable(realm: Place) -> bytes:
    store = own_store(realm)
    spki = store.generate(CA, KeyAlgorithm.EC_P384, exportable=True)
    store.close()
    return spki


def shown(text: str, name: str) -> str:
    (line,) = (line for line in text.splitlines() if line.startswith(f"{name}  "))
    return line.removeprefix(name).strip()


def test_a_key_nobody_decided_on_fails_the_check(realm: Place) -> None:
    """B4: exit 1, one line a finding, and the same as JSON; adopting it settles it."""
    before = {finding["label"] for finding in realm("keys", "check", "--json").document["findings"]}
    exportable(realm)
    said = realm("keys", "check")
    assert said.code == 1
    assert [line for line in said.out.splitlines() if "ca-2" in line] == [
        "error: ca-2: a private key that is no asset of this store [unknown]"
    ]
    document = realm("keys", "check", "--json").document
    assert document["ok"] is False
    assert {finding["label"] for finding in document["findings"]} - before == {"ca-2"}
    realm.done("keys", "adopt", CA, "--purpose", "issuing-ca", "--users", "ca")
    after = realm("keys", "check", "--json").document
    assert {finding["label"] for finding in after["findings"]} == before
    assert {"label": "", "severity": "note", "rule": "development"}.items() <= after["findings"][0].items()
    listed = {row["label"]: row for row in realm.done("keys", "list", "--json").document}
    assert listed["ca-2"]["policy"] == "signing-with-backup"


def test_a_key_crosses_to_the_mirror_by_commands_alone(
    realm: Place, mirror: list[object], tmp_path: Path
) -> None:
    """B5: transport key, KEK, share, backup, restore, as custodians do it."""
    spki = exportable(realm)
    realm.done("keys", "adopt", CA, "--purpose", "issuing-ca", "--users", "ca")
    public, share, backup = (tmp_path / name for name in ("mirror.pem", "mirror.share", "ca-2.backup"))
    taker = realm.done("keys", *mirror, "transport", "transport", "--out", public)
    unread = realm("keys", "kek", "kek", "--recipient", public)
    assert (unread.code, "which nobody read out" in unread.err) == (1, True)
    made = realm.done(
        "keys", "kek", "kek", "--recipient", public, "--fingerprint", shown(taker.out, "fingerprint")
    )
    value = shown(made.out, "check value")
    take = ("keys", *mirror, "accept", "kek", share, "--transport", "transport", "--check-value")
    assert realm(*take, "0" * 10).code == 1
    realm.done(*take, value)
    kept = realm.done("keys", "backup", CA, "--kek", "kek", "--out", backup)
    assert shown(kept.out, "sha256") == sha256(backup.read_bytes()).hexdigest()
    assert realm("keys", "backup", CA, "--kek", "kek", "--out", backup).code == 1
    document = json.loads(backup.read_text())
    assert (document["label"], document["kek_check_value"]) == ("ca-2", value)
    restored = realm.done("keys", *mirror, "restore", backup)
    assert "the key has signed" in restored.out
    checked = realm("keys", *mirror, "check", "--json").document
    assert [finding["severity"] for finding in checked["findings"]] == ["note"]
    assert checked["assets"] == 3
    store = SoftwareKeyStore.open(tmp_path / "mirror", read_passphrase_file(tmp_path / "passphrase"))
    assert store.public_key(CA) == spki


def test_a_key_that_may_not_leave_is_refused_by_its_rule(realm: Place, tmp_path: Path) -> None:
    """B5: one line, and no file."""
    store = own_store(realm)
    store.generate(CA, KeyAlgorithm.EC_P256)
    store.close()
    realm.done("keys", "adopt", CA, "--purpose", "issuing-ca", "--users", "ca")
    realm.done("keys", "kek", "kek")
    said = realm("keys", "backup", CA, "--kek", "kek", "--out", tmp_path / "backup")
    assert said.code == 1
    assert "never to leave" in said.err
    assert not (tmp_path / "backup").exists()


def test_one_operator_makes_no_kek_in_production(realm: Place, mirror: list[object], tmp_path: Path) -> None:
    """B5, K1: a ceremony does; nothing is made, and the attempt is on record."""
    text = realm.settings.read_text()
    realm.settings.write_text(text.replace('environment = "test"', 'environment = "production"'))
    tamper(load(realm.settings).database.url, ("UPDATE realm SET environment = 'production'", ()))
    before = own_store(realm).labels()
    for command in (
        ("keys", "kek", "kek"),
        ("keys", "master", "m", "--kind", "diversify-aes-256"),
        ("keys", *mirror, "transport", "t", "--out", tmp_path / "t.pem"),
    ):
        said = realm(*command)
        assert (said.code, "in production a ceremony makes key" in said.err) == (77, True), said
    assert own_store(realm).labels() == before
    assert list((tmp_path / "mirror").iterdir()) == []
    assert not (tmp_path / "t.pem").exists()
    last = [json.loads(line) for line in realm.done("log", "tail", "--json").out.splitlines()[-2:]]
    assert [(entry["kind"], entry["request"]) for entry in last] == [("refused", "generate-key")] * 2
    (tmp_path / "share").write_bytes(bytes(384))
    said = realm(
        *("keys", "accept", "m", tmp_path / "share", "--transport", "t", "--check-value", "0123456789"),
        *("--kind", "dek-aes-128", "--purpose", "static-key"),
    )
    assert (said.code, "in production a ceremony takes key" in said.err) == (77, True)


def test_a_share_as_a_ceremony_leaves_it_is_accepted(
    realm: Place, mirror: list[object], tmp_path: Path
) -> None:
    """B5: octets, as in the folder's ``shares``; two shares in one file are none."""
    public, share = tmp_path / "mirror.pem", tmp_path / "mirror.share"
    taker = realm.done("keys", *mirror, "transport", "transport", "--out", public)
    options = ("--recipient", public, "--fingerprint", shown(taker.out, "fingerprint"))
    value = shown(realm.done("keys", "kek", "kek", *options).out, "check value")
    plain, twice = tmp_path / "kek-1.bin", tmp_path / "twice"
    plain.write_bytes(one_from_pem(share.read_text(), "KEY SHARE"))
    twice.write_text(share.read_text() * 2)
    take = ("--transport", "transport", "--check-value", value)
    assert realm("keys", *mirror, "accept", "kek", twice, *take).code == 65
    realm.done("keys", *mirror, "accept", "kek", plain, *take)


def test_options_that_name_no_store_are_refused(realm: Place, tmp_path: Path) -> None:
    for options, code in (
        (("--token", "t", "--directory", tmp_path), 65),
        (("--directory", tmp_path), 65),
        (("--directory", tmp_path / "none", "--passphrase-file", tmp_path), 66),
        (("--token", "t"), 65),
    ):
        assert realm("keys", *options, "check").code == code


def test_the_check_asks_a_real_token(realm: Place, tmp_path: Path) -> None:
    """B4: keys of a token that is not the settings' own; adopted, then one of them made otherwise by hand."""
    place = tmp_path / "softhsm"
    place.mkdir()
    with softhsm_token(place) as token:
        with PKCS11KeyStore.open(token.module, token.label, token.pin) as store:
            store.generate(CA, KeyAlgorithm.EC_P256)
        options = ["--token", token.label, "--module", token.module, "--pin-file", token.pin_file]
        realm.done("keys", *options, "adopt", CA, "--purpose", "issuing-ca", "--users", "ca")
        assert realm.done("keys", *options, "check").out == "1 keys on record in floor: ok\n"
        with token.session() as session:
            loose = {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: True}
            session.generate_key(KeyType.AES, 256, label="planted", store=True, template=loose)
        said = realm("keys", *options, "check")
        assert said.code == 1
        found = {
            line.rpartition("[")[2] for line in said.out.splitlines() if line.startswith("error: planted")
        }
        assert found == {"unknown]", "unguarded]", "wrap-and-decrypt]"}


def test_a_master_key_is_made_and_one_of_somebody_else_is_taken_in(realm: Place, tmp_path: Path) -> None:
    """By commands alone, in a realm for tests; both are on record and as they should be."""
    before = {finding["label"] for finding in realm("keys", "check", "--json").document["findings"]}
    made = realm.done("keys", "master", "elements-1", "--kind", "diversify-aes-256")
    assert len(shown(made.out, "check value")) == 10
    realm.done("keys", "transport", "taker", "--out", tmp_path / "taker.pem")
    spki = one_from_pem((tmp_path / "taker.pem").read_text(), "PUBLIC KEY")
    share, value = tmp_path / "share", SecretBytes(bytes(range(0x40, 0x50)))
    share.write_bytes(share_with(spki, value))
    arguments = ["keys", "accept", "maker-dek", share, "--transport", "taker", "--check-value", "504a77e6e4"]
    kind = ["--kind", "dek-aes-128", "--purpose"]
    assert "nothing for log" in realm(*arguments, *kind, "log").err
    realm.done(*arguments, *kind, "static-key", "--users", "service")
    listed = {row["label"]: row for row in realm.done("keys", "list", "--json").document}
    assert listed["maker-dek"]["kind"] == "dek-aes-128"
    assert (listed["maker-dek"]["users"], listed["maker-dek"]["purpose"]) == ("service", "static-key")
    assert listed["elements-1"]["policy"] == "master"
    assert {f["label"] for f in realm("keys", "check", "--json").document["findings"]} == before


def test_a_key_of_somebody_else_with_another_check_value_is_refused(realm: Place, tmp_path: Path) -> None:
    realm.done("keys", "transport", "taker", "--out", tmp_path / "taker.pem")
    spki = one_from_pem((tmp_path / "taker.pem").read_text(), "PUBLIC KEY")
    share = tmp_path / "share"
    share.write_bytes(share_with(spki, SecretBytes(bytes(16))))
    said = realm(
        *("keys", "accept", "maker", share, "--transport", "taker", "--check-value", "0123456789"),
        *("--kind", "diversify-aes-128", "--purpose", "master-diversification"),
    )
    assert said.code != 0
    assert "check value" in said.err
    assert "maker" not in {row["label"] for row in realm.done("keys", "list", "--json").document}
