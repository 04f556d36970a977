"""Ceremonies as people conduct them: files, folders, credentials, and a program that may die (SPEC A3)."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from birthmark.adapters.softkeys import SoftwareKeyStore
from birthmark.adapters.system import SystemClock, SystemEntropy
from birthmark.edge.cli.ceremony_folder import answer_text, read_ceremony, read_request
from birthmark.pki import profiles
from birthmark.pki.certificates import Certificate, to_pem
from birthmark.secret import SecretBytes
from birthmark.services.ceremonies import Bench, carry_out, resume
from birthmark.services.ceremony_steps import Progress
from tests.edge.cli.ceremonies import custodians, draft, papers_of, sha256, there
from tests.edge.cli.command import Place, birthmark, done
from tests.support.softhsm import softhsm_token

ISSUING = ("issuing", "--ends", "2035-01-01")


def root_of(realm: Place) -> tuple[str, str]:
    return ("--store", f"root={realm.directory / 'root'}")


def tree_of(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and not path.name.endswith(("-wal", "-shm", ".train"))
    }


# --- before -------------------------------------------------------------------------------------------------


def test_a_rehearsal_shows_what_will_be_and_touches_nothing(realm: Place, tmp_path: Path) -> None:
    file = draft(realm, tmp_path, *ISSUING, "--scope", "product=T9|T10", "--quota", 7)
    before = tree_of(realm.directory)
    said = realm.done("ceremony", "rehearse", file).out
    for text in (
        "CN=nord Issuing CA trucks TEST,O=Nord AG TEST",
        "product=T10|T9",
        "CA: yes, path length: 0, critical",
        "CKA_SIGN",
        sha256(file),
    ):
        assert text in said, text
    document = realm.done("ceremony", "rehearse", file, "--json").document
    assert document["steps"][1]["comes_to"]["quota"] == "7"
    assert realm.done("ceremony", "validate", file, "--json").document["sha256"] == sha256(file)
    after = tree_of(realm.directory)
    assert {name for name in after if after[name] != before.get(name)} <= {"birthmark.db"}
    assert realm.done("log", "checkpoint").out.splitlines()[1] == "6"


def test_a_file_of_a_new_realm_is_rehearsed_without_any_realm(tmp_path: Path) -> None:
    papers = papers_of(tmp_path)
    file = papers[papers.index("--ceremony") + 1]
    said = done("ceremony", "rehearse", file, "--settings", tmp_path / "none.toml").out
    assert "CN=nord Root CA,O=Nord AG" in said


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("issuer: root", "issuer: nobody"), "there is no authority nobody"),
        (("profile: issuing", "profile: vehicle"), "profile vehicle"),
        (("\n    key: trucks", "\n    key: trocks"), "there is no key trocks"),
        (("organization:", "organisation:"), "does not use organisation"),
        (("generate-key: trucks", "generate-key: log"), "there is a key log already"),
        (('realm: "nord"', 'realm: "sued"'), "for realm sued"),
    ],
)
def test_what_can_be_known_without_keys_is_found_before_anybody_comes(
    realm: Place, tmp_path: Path, change: tuple[str, str], complaint: str
) -> None:
    file = draft(realm, tmp_path, *ISSUING)
    text = file.read_text()
    assert change[0] in text
    file.write_text(text.replace(*change))
    said = realm("ceremony", "validate", file)
    assert said.code not in {0, 70}, said
    assert complaint in said.err


# --- performing ---------------------------------------------------------------------------------------------


def test_three_custodians_two_of_whom_suffice_make_a_production_realm(tmp_path: Path) -> None:
    papers = papers_of(tmp_path)
    names = ("--realm", "nord", "--organization", "Nord AG", "--operator", "anna", "--development-keys")
    place = Place(tmp_path / "real")
    done("init", place.directory, *names, "--environment", "production", *papers)
    assert not (place.directory / "root").exists()
    shown = place.done("ceremony", "show", "nord-1").out
    assert "2 of 3" in shown
    assert "emil" in shown
    assert "did not attend" in shown
    place.done("check")
    # What comes later takes two of them, too, and no operator alone.
    file = draft(place, tmp_path, *ISSUING)
    anna = place.directory / "operators/anna"
    root = ("--store", f"root={tmp_path / 'root-store'}", "--reviewed", sha256(file), "--as", anna)
    two = ("--custodian", tmp_path / "dora", "--custodian", tmp_path / "emil")
    for too_few in ((*two[:2], *two[:2]), ("--custodian", anna)):
        said = place("ceremony", "perform", file, *too_few, *root)
        assert said.code == 77
        assert "custodian" in said.err
    place.done("ceremony", "perform", file, *two, *root)
    rows = place.done("ceremony", "list", "--json").document
    assert [row["custodians"] for row in rows] == ["carla, dora", "dora, emil"]
    assert place.done("check", "--json").document["ok"] is True


def test_a_file_that_changed_after_the_review_is_refused(realm: Place, tmp_path: Path) -> None:
    file = draft(realm, tmp_path, *ISSUING)
    attending = there(realm, file)
    file.write_text(file.read_text().replace('owner: "Nord AG"', 'owner: "Mallory"'))
    said = realm("ceremony", "perform", file, *attending, *root_of(realm))
    assert said.code == 77
    assert "not the one that was reviewed" in said.err
    assert "trucks" not in [path.stem for path in (realm.directory / "keys").iterdir()]


def test_strangers_do_not_perform_a_ceremony_before_any_key_is_made(realm: Place, tmp_path: Path) -> None:
    people = custodians(tmp_path)
    file = draft(realm, tmp_path, *ISSUING, *people, "--required", 2)
    two = ("--custodian", tmp_path / "carla", "--custodian", tmp_path / "dora", "--reviewed", sha256(file))
    said = realm("ceremony", "perform", file, *two, *root_of(realm))
    assert said.code == 77
    assert "custodians of nord-1" in said.err
    assert sorted(path.stem for path in (realm.directory / "keys").iterdir()) == ["issuing-1", "log"]


def test_what_a_ceremony_left_verifies_offline_and_every_change_is_found(
    realm: Place, tmp_path: Path
) -> None:
    file = draft(realm, tmp_path, *ISSUING)
    realm.done("ceremony", "perform", file, *there(realm, file), *root_of(realm))
    folder = tmp_path / "trucks.ceremony"
    realm.directory.rename(tmp_path / "away")
    vkey = tmp_path / "away" / "log.vkey"
    assert done("ceremony", "verify", folder, "--vkey", vkey, "--json").document["signed_by"] == "anna"
    assert done("ceremony", "verify", folder / "record.json", "--vkey", vkey).out.endswith("ok\n")
    root = to_pem(Certificate.from_pem((tmp_path / "away" / "root.crt").read_text()).der)
    changes: dict[str, Callable[[str], str]] = {
        "ceremony.yaml": lambda text: text.replace("Nord AG", "Nord SE"),
        "record.json": lambda text: text.replace("anna", "bela"),
        "record.txt": lambda text: text.replace("trucks", "trocks"),
        "record.html": lambda text: text.replace("trucks", "trocks"),
        "record.tlog-proof": lambda text: text.replace("index 6", "index 5"),
        "certificates/trucks.crt": lambda _text: root,
    }
    for name, change in changes.items():
        path = folder / name
        before = path.read_text()
        path.write_text(change(before))
        assert path.read_text() != before, name
        said = birthmark("ceremony", "verify", folder, "--vkey", vkey)
        assert said.code not in {0, 2}, name
        path.write_text(before)
    done("ceremony", "verify", folder, "--vkey", vkey)
    (folder / "certificates/trucks.crt").unlink()
    assert birthmark("ceremony", "verify", folder, "--vkey", vkey).code == 66


# --- a program that dies ------------------------------------------------------------------------------------

_DYING = """
import os, signal, sys
from birthmark import app
from birthmark.edge.cli import ceremony_folder
from birthmark.edge.cli.main import run

left = int(sys.argv[1])

def dying(method):
    def call(*arguments):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return method(*arguments)
    return call

folder = ceremony_folder.CeremonyFolder
for name in ("append", "write_record", "finish"):
    setattr(folder, name, dying(getattr(folder, name)))
sys.exit(run(lambda: app, sys.argv[2:]))
"""


def test_a_ceremony_killed_anywhere_is_performed_again_and_settles(realm: Place, tmp_path: Path) -> None:
    """Killed before each of its writes in turn: keys made and not written down, a record not committed, a
    commit of which nobody heard."""
    file = draft(realm, tmp_path, *ISSUING)
    arguments = ["ceremony", "perform", file, *there(realm, file), *root_of(realm)]
    arguments += ["--settings", realm.settings]
    died = 0
    for number in range(1, 20):
        command = [sys.executable, "-c", _DYING, str(number), *map(str, arguments)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        died += 1
    assert died >= 4
    assert "trucks" in realm.done("authority", "list").out
    assert len(realm.done("ceremony", "list", "--json").document) == 2
    folder = tmp_path / "trucks.ceremony"
    done("ceremony", "verify", folder, "--vkey", realm.vkey)
    assert realm.done("check", "--json").document["ok"] is True
    size = realm.done("log", "checkpoint").out.splitlines()[1]
    realm.done(*arguments[:-2])
    assert realm.done("log", "checkpoint").out.splitlines()[1] == size


# --- a key elsewhere ----------------------------------------------------------------------------------------


def test_a_request_goes_out_and_an_answer_comes_back(realm: Place, tmp_path: Path) -> None:
    """SPEC A1: the root's key is used on a machine that has neither settings nor database."""
    root = realm.directory.parent / "offline machine"
    root.mkdir()
    (realm.directory / "root").rename(root / "root")
    (realm.directory / "operators/anna").rename(root / "anna")
    operator = ("--as", root / "anna")
    said = realm.done("ceremony", "template", *ISSUING, "--id", "nord-2", "--authority", "trucks").out
    file = tmp_path / "trucks.yaml"
    file.write_text(said)
    attending = ("--custodian", root / "anna", "--reviewed", sha256(file))
    waiting = realm("ceremony", "perform", file, *attending, *operator)
    assert waiting.code == 3
    request = tmp_path / "trucks.ceremony/nord-2.request"
    store = ("--store", f"root={root / 'root'}")
    other = tmp_path / "other.yaml"
    other.write_text(file.read_text() + "# changed\n")
    refused = birthmark(
        "ceremony", "sign", request, other, *attending[:2], "--reviewed", sha256(other), *store
    )
    assert refused.code == 77
    assert "another file" in refused.err
    done("ceremony", "sign", request, file, *attending, *store)
    (answer,) = tmp_path.glob("trucks.offline-*/nord-2.answer")
    openssl = subprocess.run(
        ["openssl", "x509", "-in", answer, "-noout", "-subject"], capture_output=True, text=True, check=True
    )  # fmt: skip
    assert "nord Issuing CA trucks TEST" in openssl.stdout
    text = answer.read_text()
    head, _, tail = text.partition("-----END CERTIFICATE-----")
    altered = tmp_path / "altered"
    issuing = Certificate.from_pem(realm.done("authority", "show", "issuing-1", "--pem").out)
    for content, code in (
        (to_pem(issuing.der) + tail.lstrip("\n"), 70),
        (to_pem(issuing.der), 1),
        (f"{head}-----END CERTIFICATE-----\n", 1),
        (tail, 70),
        ("nothing", 65),
    ):
        altered.write_text(content)
        said_no = realm("ceremony", "perform", file, *attending, *operator, "--certificate", altered)
        assert said_no.code in {code, 3}, (said_no, content[:80])
        assert "trucks" not in realm.done("authority", "list").out
    realm.done("ceremony", "perform", file, *attending, *operator, "--certificate", answer)
    assert "trucks" in realm.done("authority", "list").out
    record = realm.done("ceremony", "show", "nord-2").out
    assert "online at" in record
    assert "offline at" in record
    done("ceremony", "verify", tmp_path / "trucks.ceremony", "--vkey", realm.vkey)


def test_a_profile_of_the_realms_own_is_known_where_it_is_brought(realm: Place, tmp_path: Path) -> None:
    """Neither the machine of the root nor the auditor's has settings that would name the directory."""
    own = realm.directory / "profiles"
    own.mkdir()
    packaged = Path("src/birthmark/pki/profiles/issuing.toml").read_text()
    assert 'name = "issuing"' in packaged
    (own / "plant.toml").write_text(packaged.replace('name = "issuing"', 'name = "plant"'))
    realm.settings.write_text('profiles-directory = "profiles"\n' + realm.settings.read_text())
    file = draft(realm, tmp_path, *ISSUING, "--profile", "plant")
    folder = tmp_path / "trucks.ceremony"
    assert realm("ceremony", "perform", file, *there(realm, file)).code == 3
    sign = ("ceremony", "sign", folder / "nord-2.request", file, *there(realm, file), *root_of(realm))
    refused = birthmark(*sign, "--out", tmp_path / "without")
    assert refused.code == 66
    assert "plant" in refused.err
    done(*sign, "--out", tmp_path / "with", "--profiles", own)
    answer = tmp_path / "with" / "nord-2.answer"
    realm.done("ceremony", "perform", file, *there(realm, file), "--certificate", answer)
    verify = ("ceremony", "verify", folder, "--vkey", realm.vkey)
    assert birthmark(*verify).code == 66
    assert done(*verify, "--profiles", own).out.endswith("ok\n")


def test_a_custodians_file_with_two_keys_is_refused(tmp_path: Path) -> None:
    people = custodians(tmp_path)
    carla = tmp_path / "carla" / "carla.pem"
    carla.write_text(carla.read_text() + (tmp_path / "dora" / "dora.pem").read_text())
    names = ("--id", "nord-1", "--realm", "nord", "--organization", "Nord AG", "--ends", "2035-01-01")
    said = birthmark("ceremony", "template", "realm", *names, *people)
    assert said.code == 65
    assert f"{carla}: pem: 2 blocks PUBLIC KEY where one belongs" in said.err


def forged_answer(request: Path, file: Path, place: Path) -> Path:
    """Answer a request with a store of one's own and without any custodian."""
    ceremony = read_ceremony(file)
    asked = read_request(request, ceremony)
    progress = Progress(ceremony, asked.known, profiles.load)
    resume(progress, asked.events[:-1])
    store = SoftwareKeyStore.open(place / "evil", SecretBytes(b"evil" * 8))
    for _ in carry_out(progress, Bench(stores={"root": store}, clock=SystemClock(), entropy=SystemEntropy())):
        pass
    store.close()
    made = progress.events[len(asked.events) - 1 :]
    answer = place / "evil.answer"
    answer.write_text(answer_text(ceremony, list(progress.certificates.values()), made))
    assert Certificate.from_pem(answer.read_text().partition("-----BEGIN BIRTH")[0]).subject
    return answer


def test_a_realm_is_made_with_its_root_on_another_machine_from_the_beginning(tmp_path: Path) -> None:
    """SPEC A1: the root's key never was on the machine of the service."""
    papers = papers_of(tmp_path)
    file, store = Path(papers[papers.index("--ceremony") + 1]), papers[-2:]
    papers = papers[:-2]
    place = Place(tmp_path / "real")
    names = ("--realm", "nord", "--organization", "Nord AG", "--operator", "anna", "--development-keys")
    init = ("init", place.directory, *names, "--environment", "production", *papers)
    people = (*papers[papers.index("--custodian") :][:4], "--reviewed", sha256(file))
    answers: list[object] = []
    request = tmp_path / ".real.waiting/ceremony/nord-1.request"
    for count in (1, 2):
        said = birthmark(*init, *answers)
        assert said.code == 3, said
        assert not place.directory.exists()
        if count == 1:
            evil = birthmark(*init, "--certificate", forged_answer(request, file, tmp_path))
            assert evil.code == 77, evil
            assert "no custodian attended" in evil.err
            assert not place.directory.exists()
        out = tmp_path / f"answer-{count}"
        done("ceremony", "sign", request, file, *people, *store, "--out", out)
        answers = ["--certificate", out / "nord-1.answer"]
    other = birthmark(*init, *answers, "--site", "elsewhere", "--port", 9999)
    assert other.code == 1
    assert "other settings" in other.err
    done(*init, *answers)
    assert not request.exists()
    done("ceremony", "verify", place.directory / "ceremony", "--vkey", place.vkey)
    assert "key offline" in place.done("authority", "tree").out
    assert sorted(path.stem for path in (place.directory / "keys").iterdir()) == ["issuing-1", "log"]
    assert place.done("check", "--json").document["ok"] is True


# --- credentials --------------------------------------------------------------------------------------------


def test_a_custodians_credential_is_encrypted_and_its_owners_alone(tmp_path: Path) -> None:
    said = done("ceremony", "custodian", "carla", tmp_path / "carla")
    assert said.out.startswith("-----BEGIN PUBLIC KEY-----")
    key = tmp_path / "carla/keys/custodian.p8"
    assert b"ENCRYPTED PRIVATE KEY" in key.read_bytes()
    assert key.stat().st_mode & 0o077 == 0
    assert (tmp_path / "carla/passphrase").stat().st_mode & 0o077 == 0
    assert birthmark("ceremony", "custodian", "carla", tmp_path / "carla").code == 1
    assert birthmark("ceremony", "custodian", "../x", tmp_path / "x").code == 65


def test_a_custodians_key_may_be_in_a_token(realm: Place, tmp_path: Path) -> None:
    with softhsm_token(tmp_path) as token:
        options = (
            "--token-module",
            token.module,
            "--token-label",
            token.label,
            "--token-pin-file",
            token.pin_file,
        )
        done("ceremony", "custodian", "carla", tmp_path / "carla", *options)
        people = ("--custodian", f"carla={tmp_path / 'carla/carla.pem'}")
        anna = realm.directory / "operators/anna"
        file = draft(realm, tmp_path, *ISSUING)
        last = file.read_text()
        with_carla = draft(realm, tmp_path, *ISSUING, *people).read_text()
        begin, end = last.index("custodians:\n") + len("custodians:\n"), last.index("steps:")
        file.write_text(
            with_carla.replace("steps:", last[begin:end] + "steps:").replace("required: 1", "required: 2")
        )
        both = ("--custodian", tmp_path / "carla", "--custodian", anna, "--reviewed", sha256(file))
        realm.done("ceremony", "perform", file, *both, *root_of(realm))
    assert realm.done("ceremony", "list", "--json").document[-1]["custodians"] == "anna, carla"
