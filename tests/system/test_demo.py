"""The demo, run as a newcomer runs it, only smaller: it must come out, clean up after itself, and be able to
fail."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.audit import Audit, forge
from demo.chip_audit import ChipAudit
from demo.field import claim_each_once
from demo.field_devices import Answer, Field, Vehicle
from demo.field_trials import FieldTrials
from demo.field_upstream import Upstream
from demo.floor import Job, Order, jobs_of
from demo.production import main
from demo.publication import PublicHost
from demo.readers import readers
from demo.realm import CannotBegin, WentWrong, Workshop, make_directory
from demo.recall import asked_for_by
from demo.screen import WIDTH, Screen
from demo.trials import Trial, kind, locate, silent_after_revocation
from demo.vins import vins, with_wrong_check_digit
from tests.support.programs import missing, need, need_extra
from tools.pcsc import wanting

ROOT = Path(__file__).parents[2]
DEMO = [sys.executable, str(ROOT / "demo/line.py"), "--plain"]
SECONDS = 300


def run_demo(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [*DEMO, "--directory", str(directory), *words]
    return subprocess.run(
        command, cwd=directory.parent, capture_output=True, text=True, timeout=SECONDS, check=False
    )


def processes_in(directory: Path) -> list[str]:
    """Return the command lines of processes that work below a directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").resolve().is_relative_to(directory.resolve()):
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A demo that has run: its directory and what it said."""
    directory = tmp_path_factory.mktemp("demo") / "realm-of-a-test"
    done = run_demo(directory, "--vehicles", "40")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert done.stderr == ""
    return directory, done.stdout


@pytest.fixture
def workshop(finished: tuple[Path, str], tmp_path: Path) -> Workshop:
    """A copy of it that may be damaged."""
    shutil.copytree(finished[0], tmp_path / "copy")
    return Workshop(tmp_path / "copy", Screen(plain=True))


@pytest.mark.timeout(SECONDS)
def test_every_demonstration_comes_out_and_says_where_it_is_in_the_log(finished: tuple[Path, str]) -> None:
    """SPEC C1, C3, C4, C6, C9, C10, E1 to E5, all in one."""
    _, said = finished
    table = said.partition("what happened")[2].partition("4. What the vehicles")[0]
    rows = re.findall(r"^  (ok|FAILED) .*?(\d+|\?) [a-z]+$", table, re.MULTILINE)
    assert [mark for mark, _ in rows] == ["ok"] * 11
    assert all(leaf.isdigit() for _, leaf in rows)
    assert "41 released, 2 held on the way: 1 reworked and released, 1 scrapped" in said
    assert "software keys: development only" in said
    for part in ("41 of 41 certificates", "41 of 41 release tokens", "the changed byte is found"):
        assert part in said


@pytest.mark.timeout(SECONDS)
def test_the_second_act_shows_a_recall_as_others_see_it(finished: tuple[Path, str]) -> None:
    """SPEC F1 to F4, K1: good, then revoked by OCSP at once, then by the CRL that the certificates name."""
    need("openssl")
    _, said = finished
    flat = " ".join(said.split())
    act = flat.partition("5. Publication")[2].partition("7. What it proves")[0]
    station, count = re.findall(r"(\d+) of 41 vehicles are refused, exactly those that (ST\d+)", act)[0][::-1]
    assert 0 < int(count) < 41
    assert re.findall(r"device\.crt: (good|revoked)", act) == ["good", "good", "revoked", "good"]
    assert f"{count} certificates are revoked: as many as" in act
    assert "ok none of 41 vehicles is on the CRL" in act
    assert "ok anna cannot do it alone (exit code 77)" in act
    assert re.search(
        r"octets were published for it, \d+ more than before: 53 a certificate on each of 2", act
    )
    assert "holds one key (ocsp.p8), which certifies nothing" in act
    assert f"somebody had opened {station}'s fixture" in act
    assert f"recalled {count} vehicles, by two operators" in flat
    assert "ok the hierarchy came to be in a ceremony" in flat


@pytest.mark.timeout(SECONDS)
def test_what_it_says_can_be_pasted_into_a_page(finished: tuple[Path, str]) -> None:
    _, said = finished
    assert max(map(len, said.splitlines())) <= WIDTH
    assert "\x1b" not in said
    assert not [line for line in said.splitlines() if line != line.rstrip()]


@pytest.mark.timeout(SECONDS)
def test_nothing_of_it_runs_on(finished: tuple[Path, str]) -> None:
    assert processes_in(finished[0]) == []


@pytest.mark.timeout(SECONDS)
def test_the_commands_it_names_in_the_end_work(finished: tuple[Path, str]) -> None:
    directory, said = finished
    commands = [line.strip() for line in said.partition("To look around:")[2].splitlines()]
    tried = [line.split() for line in commands if line.startswith("birthmark ") and "serve" not in line]
    assert len(tried) >= 5
    for _, *words in tried:
        program = str(Path(sys.executable).with_name("birthmark"))
        done = subprocess.run(
            [program, *words], cwd=directory / "realm", capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (words, done.stderr)
        assert done.stdout


@pytest.mark.timeout(SECONDS)
def test_openssl_agrees_that_each_vehicle_has_its_own_vin(finished: tuple[Path, str]) -> None:
    openssl, seen = need("openssl"), set()
    for place in (finished[0] / "vehicles").iterdir():
        if not (place / "release.tlog-proof").exists():
            continue
        words = [
            openssl,
            "x509",
            "-in",
            str(place / "device.crt"),
            "-noout",
            "-subject",
            "-nameopt",
            "multiline",
        ]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        assert place.name in done.stdout
        seen.add(place.name)
    assert len(seen) == 41


# --- it can fail --------------------------------------------------------------------------------------------


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("openssl", [True, False])
def test_the_audit_accepts_what_the_line_made_with_openssl_and_without(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, openssl: bool
) -> None:
    if openssl:
        need("openssl")
    else:
        monkeypatch.setenv("PATH", "/nonexistent")
    audit = Audit(workshop)
    audit.certificates()
    assert audit.failures == []
    assert ("SKIPPED" in capsys.readouterr().out) is not openssl


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("openssl", [True, False])
def test_the_audit_finds_a_certificate_of_somebody_else(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, *, openssl: bool
) -> None:
    if openssl:
        need("openssl")
    else:
        monkeypatch.setenv("PATH", "/nonexistent")
    audit = Audit(workshop)
    certificate = audit.vehicles[5] / "device.crt"
    certificate.unlink()
    shutil.copy(workshop.directory / "trials" / "foreign.crt", certificate)
    audit.certificates()
    audit.tokens()
    assert len(audit.failures) == 2


@pytest.mark.timeout(SECONDS)
def test_the_audit_finds_two_exchanged_vehicles(workshop: Workshop) -> None:
    """Both certificates are good, and so are both tokens; they only do not belong together."""
    audit = Audit(workshop)
    one, other = (place / "device.crt" for place in audit.vehicles[3:5])
    one_pem, other_pem = one.read_bytes(), other.read_bytes()
    for path, pem in ((one, other_pem), (other, one_pem)):
        path.unlink()
        path.write_bytes(pem)
    audit.tokens()
    assert audit.failures == [f"39 of 41 {_TOKENS}"]


_TOKENS = "release tokens are proved by the log's key alone, each for the certificate in its vehicle"


@pytest.mark.timeout(SECONDS)
def test_the_forged_bundle_differs_in_one_byte(finished: tuple[Path, str], tmp_path: Path) -> None:
    bundle = finished[0] / "audit" / "log.zip"
    forge(bundle, tmp_path / "forged.zip")
    with zipfile.ZipFile(bundle) as before, zipfile.ZipFile(tmp_path / "forged.zip") as after:
        assert before.namelist() == after.namelist()
        changed = [
            (name, sum(a != b for a, b in zip(before.read(name), after.read(name), strict=True)))
            for name in before.namelist()
            if before.read(name) != after.read(name)
        ]
    assert changed == [("entries.jsonl", 1)]


@pytest.mark.timeout(SECONDS)
def test_the_audit_finds_a_ceremony_record_that_was_changed(workshop: Workshop) -> None:
    """SPEC A3: and a chain that the ceremony did not make."""
    audit = Audit(workshop)
    record = workshop.realm / "ceremony" / "record.json"
    text = record.read_text()
    record.chmod(0o600)
    record.write_text(text.replace("acme-1", "acme-2"))
    chain = audit.vehicles[0] / "chain.pem"
    chain.unlink()
    shutil.copy(workshop.directory / "trials" / "foreign.crt", chain)
    audit.authorities()
    assert [what.partition(" ")[0] for what in audit.failures] == ["the", "the"]


@pytest.fixture
def public(workshop: Workshop) -> PublicHost:
    """The public host of the copy, which keeps the address that the certificates name."""
    table = tomllib.loads((workshop.public / "birthmark.toml").read_text())
    workshop.public_port = table["public-plane"]["port"]
    host = PublicHost(workshop)
    www = workshop.public / "www"
    host.sizes = {str(path.relative_to(www)): path.stat().st_size for path in www.rglob("*.crl")}
    return host


@pytest.mark.timeout(SECONDS)
def test_a_status_that_is_not_as_published_is_noticed(workshop: Workshop, public: PublicHost) -> None:
    need("openssl")
    vehicles = Audit(workshop).vehicles
    with workshop.public_role():
        gone = public.refused(vehicles)
        kept = [vehicle for vehicle in vehicles if vehicle not in gone]
        assert gone
        assert public.statuses([*sorted(gone)[:1], kept[0]]) == ["revoked", "good"]
        (crl,) = (workshop.public / "www").rglob("batch.*.crl")
        octets = crl.read_bytes()
        _replace(crl, octets[:-1] + bytes([octets[-1] ^ 1]))
        with pytest.raises(WentWrong, match="did not judge every vehicle"):
            public.refused(vehicles)
        _replace(crl, octets + b"more")
        with pytest.raises(WentWrong, match="not what was published"):
            public.refused(vehicles)
    assert public.statuses(kept[:1]) == []
    with pytest.raises(WentWrong, match="refused"):
        public.refused(vehicles)


def _replace(path: Path, octets: bytes) -> None:
    path.unlink()
    path.write_bytes(octets)


@pytest.mark.timeout(SECONDS)
def test_without_openssl_the_crl_is_read_all_the_same(
    workshop: Workshop,
    public: PublicHost,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    vehicles = Audit(workshop).vehicles
    with workshop.public_role():
        monkeypatch.setenv("PATH", "/nonexistent")
        assert 0 < len(public.refused(vehicles)) < len(vehicles)
        assert public.skipped()
    assert "SKIPPED" in capsys.readouterr().out


def test_a_vehicle_belongs_to_the_station_that_asked_for_what_it_holds() -> None:
    def issued(device: str, actor: str) -> dict[str, str]:
        return {"kind": "device-issued", "device": f"vin:{device}", "actor": f"station:{actor}"}

    entries = [issued("A", "ST03"), issued("B", "ST03"), issued("C", "ST01"), issued("B", "ST01")]
    released = {"kind": "device-released", "device": "vin:C", "actor": "station:ST03"}
    vehicles = [Path("A"), Path("B"), Path("C")]
    assert asked_for_by("ST03", [*entries, released], vehicles) == [Path("A")]


def test_a_refusal_that_left_nothing_in_the_log_counts_as_failed() -> None:
    def trial() -> Trial:
        leaves = {"refused": kind("refused", code="not-permitted", hardware_id="X")}
        return Trial(tried="x", answer="y", as_expected=True, leaves=leaves)

    logged, unlogged = trial(), trial()
    entry = {"kind": "refused", "actor": "station:ST01", "code": "not-permitted", "hardware_id": "X"}
    locate([logged], [{**entry, "code": "other"}, entry])
    locate([unlogged], [{**entry, "hardware_id": "Y"}])
    assert logged.passed
    assert logged.where() == "    1 refused"
    assert not unlogged.passed


def test_a_revoked_station_that_went_on_is_noticed() -> None:
    issued = {"kind": "device-issued", "actor": "station:ST03"}
    refused = {"kind": "refused", "actor": "station:ST03"}
    revoked = {"kind": "client-revoked", "actor": "operator:anna", "client": "station:ST03"}
    assert silent_after_revocation([issued, revoked, refused])
    assert not silent_after_revocation([revoked, refused, issued])
    assert not silent_after_revocation([issued, refused])


# --- the way in and the way out -----------------------------------------------------------------------------


def test_a_directory_of_somebody_else_stays(tmp_path: Path) -> None:
    (tmp_path / "demo-realm").mkdir()
    (tmp_path / "demo-realm" / "thesis.tex").write_text("five years")
    done = run_demo(tmp_path / "demo-realm")
    assert done.returncode == 2
    assert "was not made by the demo" in " ".join(done.stdout.split())
    assert (tmp_path / "demo-realm" / "thesis.tex").read_text() == "five years"


def test_a_link_to_a_directory_is_not_followed(tmp_path: Path) -> None:
    make_directory(tmp_path / "demo-realm")
    (tmp_path / "link").symlink_to(tmp_path / "demo-realm")
    with pytest.raises(CannotBegin):
        make_directory(tmp_path / "link")


def test_a_directory_of_its_own_is_made_anew(tmp_path: Path) -> None:
    make_directory(tmp_path / "demo-realm")
    (tmp_path / "demo-realm" / "vehicles" / "old").mkdir()
    make_directory(tmp_path / "demo-realm")
    assert not (tmp_path / "demo-realm" / "vehicles" / "old").exists()


@pytest.fixture
def under_way(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A demo whose line has begun to work."""
    directory = tmp_path / "demo-realm"
    command = [*DEMO, "--directory", str(directory), "--vehicles", "5000"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if re.search(r"all [1-9]\d*/4998", line):
                break
        try:
            yield directory, process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.timeout(SECONDS)
def test_ctrl_c_stops_everything_that_was_started(under_way: tuple[Path, subprocess.Popen[str]]) -> None:
    directory, process = under_way
    assert len(processes_in(directory)) >= 4  # the server and three stations
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.rstrip().endswith("Interrupted; everything that was started is stopped.")
    assert "Traceback" not in said
    assert processes_in(directory) == []


@pytest.mark.timeout(SECONDS)
def test_a_server_that_dies_ends_the_demo_with_the_servers_last_words(
    under_way: tuple[Path, subprocess.Popen[str]],
) -> None:
    directory, process = under_way
    for found in Path("/proc").glob("[0-9]*"):
        try:
            ours = (found / "cwd").resolve() == directory.resolve() / "realm"
            if ours and "serve" in (found / "cmdline").read_text().split("\0"):
                os.kill(int(found.name), signal.SIGKILL)
        except OSError:
            continue
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "the server ended by itself" in said
    assert "Application startup complete" in said
    assert processes_in(directory) == []


# --- secure elements ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chipped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A demo with secure elements that has run, in readers: its directory and what it said."""
    need_extra("smartcard", "pcsc")
    if (reason := wanting()) is not None:
        missing(reason)
    directory = tmp_path_factory.mktemp("demo") / "chips-of-a-test"
    done = run_demo(directory, "--element", "scp03", "--vehicles", "20")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert done.stderr == ""
    return directory, done.stdout


@pytest.mark.timeout(SECONDS)
def test_secure_elements_get_their_keys_through_readers(chipped: tuple[Path, str]) -> None:
    """SPEC D1 to D5: several readers at once; what lies, is torn or exchanged is held or goes on; proved."""
    _, said = chipped
    passed = re.findall(r"^    PASS   (\w{17})  (ST\d+)  (Virtual \d 00 0\d) ", said, re.MULTILINE)
    assert len({vin for vin, _, _ in passed}) == 20
    assert len({reader for _, _, reader in passed}) == 8
    table = said.partition("what happened")[2].partition("4. Years later")[0]
    rows = re.findall(r"^  (ok|FAILED) .*?(\d+|\?) [a-z ]+$", table, re.MULTILINE)
    assert [mark for mark, _ in rows] == ["ok"] * 5
    assert all(leaf.isdigit() for _, leaf in rows)
    flat = " ".join(said.split())
    assert "ok 21 of 21 release tokens say: key set 31 of acme-elements-2026, kdf3, route service" in flat
    assert "ok 21 of 21 elements gave the vehicle's certificate back" in flat
    assert "its maker's key set is refused (6A88), its certificate is the vehicle's" in flat
    assert re.search(r"20 injections in [\d.]+ s through pcscd: [\d.]+/s", flat)


@pytest.mark.timeout(SECONDS)
def test_a_demo_with_readers_leaves_nothing_running_and_no_key_where_anybody_reads(
    chipped: tuple[Path, str],
) -> None:
    directory, said = chipped
    assert processes_in(directory) == []
    master = (directory / "maker" / "master").read_text().strip()
    assert len(master) == 64
    assert master not in said
    told = [path for path in directory.rglob("*") if path.is_file() and path.parent.name != "maker"]
    assert not [path for path in told if master.encode() in path.read_bytes()]


@pytest.mark.timeout(SECONDS)
def test_the_audit_finds_an_element_that_is_not_as_its_token_says(
    chipped: tuple[Path, str], tmp_path: Path
) -> None:
    shutil.copytree(chipped[0], tmp_path / "copy")
    workshop = Workshop(tmp_path / "copy", Screen(plain=True))
    audit = Audit(workshop)
    certificate = audit.vehicles[3] / "device.crt"
    certificate.unlink()
    shutil.copy(audit.vehicles[4] / "device.crt", certificate)
    with readers(workshop, 2) as where:
        ChipAudit(workshop, where, audit, token=True).record(audit.vehicles[0].name)
    assert [what.partition(" of ")[0] for what in audit.failures] == ["0", "20"]


@pytest.mark.timeout(SECONDS)
@pytest.mark.soak
def test_without_readers_it_says_so_and_reaches_the_elements_over_tcp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tools.pcsc.wanting", lambda: "pcscd is not installed (Debian package pcscd)")
    words = ["--plain", "--element", "scp03", "--vehicles", "20", "--directory", str(tmp_path / "chips")]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = main(words)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    said = " ".join(capsys.readouterr().out.split())
    assert code == 0, said[-4000:]
    assert "There is no PC/SC here: pcscd is not installed (Debian package pcscd)." in said
    assert "over TCP (no PC/SC here)" in said
    assert processes_in(tmp_path) == []


# --- the field ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A demo with a gateway that has run: its directory and what it said."""
    for program in ("curl", "openssl"):
        need(program)
    directory = tmp_path_factory.mktemp("demo") / "field-of-a-test"
    done = run_demo(directory, "--gateway", "--vehicles", "20")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert done.stderr == ""
    return directory, done.stdout


@pytest.mark.timeout(SECONDS)
def test_vehicles_report_and_a_clone_and_an_unreleased_one_are_turned_away(
    reported: tuple[Path, str],
) -> None:
    """SPEC H1 to H6, C9, G1: each refusal is the right one and stands in the log."""
    _, said = reported
    table = said.partition("what happened")[2].partition("the log has one first contact")[0]
    rows = re.findall(r"^  (ok|FAILED) .*?(\d+|\?) [A-Za-z ]+$", table, re.MULTILINE)
    assert [mark for mark, _ in rows] == ["ok"] * 10
    assert all(leaf.isdigit() for _, leaf in rows)
    flat = " ".join(said.split())
    for rule in ("device-not-released", "device-cloned", "device-unknown", "wrong-realm", "foreign-revoked"):
        assert f"403 {rule}: " in table
    for part in (
        "ok 20 vehicles hold a release token",
        "ok 60 of 60 contacts let in: each of 20 vehicles 3 times",
        "ok the log has one first contact of each of 20 vehicles and one boat, and nobody else's",
        "ok OpenSSL accepts 20 of 20 certificates",
        "ok 20 of 20 release tokens are proved by the log's key alone",
        "ok OpenSSL verifies the token (ES256)",
        "one handshake each",
        "10 of 10 trials came out",
        "4 with one image, 1 with a code, 1 by CMP; 1 issued and never released",
    ):
        assert part in flat
    assert re.search(r"60 contacts in [\d.]+ s: \d+ handshakes/s on \d+ cores", flat)


@pytest.mark.timeout(SECONDS)
def test_the_application_behind_nginx_is_told_who_reports(reported: tuple[Path, str]) -> None:
    need("nginx", "nginx-light")
    flat = " ".join(reported[1].split())
    assert "SKIPPED" not in flat
    assert re.search(r"ok through nginx the application is told vin:\w{17}, whatever the vehicle says", flat)


@pytest.mark.timeout(SECONDS)
def test_the_demo_of_the_field_leaves_nothing_running_and_shows_no_secret(
    reported: tuple[Path, str],
) -> None:
    directory, said = reported
    assert processes_in(directory) == []
    assert max(map(len, said.splitlines())) <= WIDTH
    assert not [line for line in said.splitlines() if line != line.rstrip()]
    codes = [path.read_text().strip() for path in directory.glob("vehicles/*/code")]
    codes += [path.read_text().strip() for path in directory.glob("vehicles/*/provisioning.code")]
    assert len(codes) == 2
    assert not [code for code in codes if code.rpartition(":")[2] in said]
    commands = [line.split() for line in said.partition("To look around:")[2].splitlines()]
    tried = [words for words in commands if words[:1] == ["birthmark"]]
    assert len(tried) == 5
    for _, *words in tried:
        program = str(Path(sys.executable).with_name("birthmark"))
        done = subprocess.run(
            [program, *words], cwd=directory / "realm", capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (words, done.stderr)


@pytest.mark.timeout(SECONDS)
def test_a_vehicle_that_was_registered_twice_or_never_is_noticed(
    reported: tuple[Path, str], tmp_path: Path
) -> None:
    shutil.copytree(reported[0], tmp_path / "copy")
    workshop = Workshop(tmp_path / "copy", Screen(plain=True))
    told = workshop.birthmark("log", "tail", "--lines", "100000", "--json", show=False).stdout
    entries = [json.loads(line) for line in told.splitlines()]
    vehicles = {str(entry["device"]) for entry in entries if entry["kind"] == "device-released"}
    first = next(at for at, entry in enumerate(entries) if entry["kind"] == "device-first-seen")
    audit = Audit(workshop)
    claim_each_once(audit, entries, vehicles)
    assert audit.failures == []
    claim_each_once(audit, [*entries, entries[first]], vehicles)
    claim_each_once(audit, entries[:first] + entries[first + 1 :], vehicles)
    claim_each_once(audit, [*entries, {**entries[first], "device": "vin:UNPROVED"}], vehicles)
    assert len(audit.failures) == 3


@pytest.mark.timeout(SECONDS)
def test_a_gateway_that_does_not_answer_is_no_refusal(reported: tuple[Path, str], tmp_path: Path) -> None:
    """What is turned away has to be turned away by the gateway, and for the right reason."""
    shutil.copytree(reported[0], tmp_path / "copy")
    field = Field(Workshop(tmp_path / "copy", Screen(plain=True)))
    some = next(field.workshop.vehicles.glob("*/shown.pem"))
    vehicle = Vehicle(vin=some.parent.name, certificate=some, key=some.with_name("device.key"))
    trials = FieldTrials(field, tmp_path)
    assert not trials.unreleased(vehicle).as_expected
    assert not trials.no_vehicle(field.workshop.realm / "stations" / "ST01").as_expected
    assert not trials.stranger("1M8GDM9AXKP042788").as_expected
    answer = field.contact(vehicle)
    assert (answer.status, answer.reason) == (0, "")
    assert answer.words.startswith("curl: (7)")


def test_an_answer_is_told_in_one_line() -> None:
    def words(body: str, status: int = 403, complaint: str = "") -> str:
        return Answer(status=status, body=body, complaint=complaint).words

    assert words('{"code": "policy", "rule": "device-held", "detail": "it is"}') == "403 device-held: it is"
    assert words('{"status": "accepted", "device": "vin:A"}', 200) == "200 accepted vin:A"
    assert words("<html>", 502) == "502"
    assert words("[1]", 200) == "200"
    assert words("", 0, "curl: (56) x:SSL routines::alert unknown ca, errno 0\n") == (
        "no answer but a TLS alert: alert unknown ca"
    )
    assert words("", 0) == "no answer"


def test_without_curl_there_is_no_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_directory(tmp_path / "demo-realm")
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(CannotBegin, match="needs curl and openssl"):
        Field(Workshop(tmp_path / "demo-realm", Screen(plain=True)))


@pytest.mark.timeout(SECONDS)
def test_without_nginx_it_says_so(
    reported: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(reported[0], tmp_path / "copy")
    field = Field(Workshop(tmp_path / "copy", Screen(plain=True)))
    vehicle = Vehicle(vin="A", certificate=tmp_path / "a", key=tmp_path / "a")
    audit = Audit(field.workshop)
    monkeypatch.setattr("demo.field_upstream.find", lambda _program: None)
    Upstream(field, audit).proxy(vehicle, vehicle)
    assert "SKIPPED" in capsys.readouterr().out
    assert audit.failures == []


# --- pieces -------------------------------------------------------------------------------------------------


def test_its_vins_are_valid_and_each_comes_once() -> None:
    """49 CFR 565.15(c), computed here with the table as the regulation prints it."""
    values = {**{str(n): n for n in range(10)}, **dict(zip("ABCDEFGH", range(1, 9), strict=True))}
    values |= dict(zip("JKLMN", range(1, 6), strict=True)) | {"P": 7, "R": 9}
    values |= dict(zip("STUVWXYZ", range(2, 10), strict=True))
    weights = (8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2)
    made = [vin for vin, _ in zip(vins(), range(500), strict=False)]
    assert len(set(made)) == 500
    for vin in made:
        remainder = sum(weight * values[letter] for weight, letter in zip(weights, vin, strict=True)) % 11
        assert vin[8] == "0123456789X"[remainder]
        wrong = with_wrong_check_digit(vin)
        assert (wrong[:8], wrong[9:]) == (vin[:8], vin[9:])
        assert wrong[8] != vin[8]


@pytest.mark.parametrize(("count", "gang"), [(500, 32), (40, 4), (20, 2), (33, 32)])
def test_every_vehicle_gets_a_place_in_one_job(count: int, gang: int) -> None:
    orders = [Order(vin=str(number)) for number in range(count)]
    jobs: list[Job] = jobs_of(orders, gang)
    assert [order for job in jobs for order in job.orders] == orders
    assert max(len(job.orders) for job in jobs if job.gang) <= gang


# --- with a token and another database ----------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("token", [False, True], ids=["files", "softhsm2"])
@pytest.mark.parametrize("database", [False, True], ids=["sqlite", "postgresql"])
@pytest.mark.parametrize("story", ["enclaves", "scp03", "gateway"])
def test_the_whole_demo_with_every_token_and_database(
    tmp_path: Path, *, token: bool, database: bool, story: str
) -> None:
    words: list[str] = []
    element = story == "scp03"
    if element:
        need_extra("smartcard", "pcsc")
        need("pcscd")
        words += ["--element", "scp03"]
    if story == "gateway":
        need("curl")
        need("openssl")
        words += ["--gateway"]
    if token:
        need("softhsm2-util", "softhsm2")
        need("pkcs11-tool", "opensc")
        words += ["--token", "softhsm2"]
    if database:
        need("postgres", "postgresql")
        words += ["--database", "postgresql"]
    done = run_demo(tmp_path / "demo-realm", *words)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    shown = {
        "enclaves": "501 of 501 certificates",
        "scp03": "25 of 25 elements are different ones",
        "gateway": "40 of 40 certificates",
    }
    assert shown[story] in done.stdout
    assert ("route in-token" in " ".join(done.stdout.split())) is (element and token)
    assert ("development only" in done.stdout) is not token
    if token:
        kept = json.dumps(sorted(path.name for path in (tmp_path / "demo-realm" / "realm").iterdir()))
        assert '"keys"' not in kept
