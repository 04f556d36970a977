"""Runs are opened by a signed licence, and allow-lists are judged whole (SPEC C3, C9)."""

import itertools
import string
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from birthmark import app
from birthmark.edge.cli.allowlists import read_list
from birthmark.floor.hardware_ids import HardwareIdKind, HardwareIdRule, vin_check_digit
from birthmark.floor.runs import AllowedDevice, Run, RunLicence
from birthmark.settings import load
from tests.edge.cli.command import OTHER_VIN, VIN, Place, done
from tests.edge.cli.test_init import NAMES, split_url

RULE = HardwareIdRule(kind=HardwareIdKind.VIN, check_digit=True)


def vins(count: int) -> list[str]:
    """Return VINs with right check digits."""
    found = []
    for number in range(count):
        bare = f"1M8GDM9A0KP{number:06d}"
        found.append(bare[:8] + vin_check_digit(bare) + bare[9:])
    return found


def write(path: Path, *lines: str, end: str = "\n") -> Path:
    path.write_text("".join(f"{line}{end}" for line in lines), encoding="utf-8", newline="")
    return path


def allowed(place: Place) -> list[str]:
    """Return the allow-list lines on record, without their list's hash."""
    application = app.build(load(place.settings))
    try:
        return [one.id.partition("/")[2] for one in application.store.scan(AllowedDevice)]
    finally:
        application.close()


def test_a_run_is_opened_listed_shown_and_closed(realm: Place) -> None:
    arguments = ("--quantity", 3, "--hours", 8, "--batch", "B7", "--born", "--check-digit", "--wmi", "1m8")
    opened = realm.open_run("R1", *arguments, "--json")
    assert opened.code == 0
    document = opened.document
    assert document["hardware_id"] == {"kind": "vin", "check_digit": True, "wmi": ["1M8"], "pattern": None}
    assert document["origins"] == ["born"]
    assert document["opened_by"] == "operator:anna"
    assert document["authority"] == "issuing-1"
    assert [run["id"] for run in realm.done("run", "list", "--json").document] == ["R1"]
    assert realm.done("run", "show", "R1", "--json").document == document
    assert "0 of 0" in realm.done("run", "close", "R1", "--reason", "shift ends").out
    assert realm.done("run", "list", "--status", "open").out == "none\n"
    again = realm("run", "close", "R1", "--reason", "again")
    assert again.code == 1
    assert "closed already" in again.err


def test_the_licence_is_signed_with_the_operators_own_key(realm: Place) -> None:
    assert realm.open_run("R1", "--quantity", 3).code == 0
    application = app.build(load(realm.settings))
    try:
        (run,) = application.store.scan(Run)
    finally:
        application.close()
    assert RunLicence.decode(run.document).quantity == 3
    # Verified by the library itself, with the certificate that lies in the operator's directory.
    from cryptography import x509  # noqa: PLC0415  # only this test needs it
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415  # only this test needs it
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415  # only this test needs it

    pem = (realm.directory / "operators/anna/station.crt").read_bytes()
    key = x509.load_pem_x509_certificate(pem).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    key.verify(run.signature, run.document, ec.ECDSA(hashes.SHA256()))


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--quantity", 0), 1, "quantity"),
        ((), 65, "--quantity"),
        (("--quantity", 1, "--hours", 8, "--until", "2099-01-01"), 65, "--until"),
        (("--quantity", 1, "--until", "2000-01-01"), 1, "ends before it begins"),
        (("--quantity", 1, "--until", "2099-01-01T00:00"), 65, "time zone"),
        (("--quantity", 1, "--until", "tomorrow"), 65, "2026-11-22T06:00Z"),
        (("--quantity", 1, "--until", "2098-01-01"), 77, "stops issuing"),
        (("--quantity", 1, "--station", "NONE"), 66, "no station NONE"),
        (("--quantity", 1, "--bootstrap-only"), 65, "--bootstrap-only"),
        (("--quantity", 1, "--authority", "none"), 66, "no authority none"),
        (("--quantity", 1, "--pattern", "A"), 65, "pattern"),
        (("--quantity", 1, "--wmi", "OOO"), 65, "wmi"),
        (("--quantity", 1, "--profile", "root"), 1, "profile"),
        (("--quantity", 1, "--variable", "novalue"), 65, "name=value"),
        (("--quantity", 1, "--variable", "a=1", "--variable", "a=2"), 65, "each once"),
    ],
)
def test_a_licence_that_cannot_work_is_refused(
    arguments: tuple[object, ...], code: int, says: str, realm: Place
) -> None:
    said = realm.open_run("R1", *arguments)
    assert said.code == code, said
    assert says in said.err
    assert realm.done("run", "list").out == "none\n"


def test_a_run_is_opened_once(realm: Place) -> None:
    assert realm.open_run("R1", "--quantity", 1).code == 0
    said = realm.open_run("R1", "--quantity", 2)
    assert said.code == 1
    assert "there is a run R1 already" in said.err


# --- allow-lists ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        ["hardware_id", VIN, OTHER_VIN],
        [VIN, OTHER_VIN],
        ["\ufeffhardware_id", VIN, OTHER_VIN],
        ["order,Hardware_ID,colour", f"7,{VIN},red", f'8,"{OTHER_VIN}","blue, dark"'],
        ["order;hardware_id", f"7;{VIN}", f"8;{OTHER_VIN}"],
        [f"{VIN}\tred", f"{OTHER_VIN}\tblue"],
        [VIN.lower(), "", OTHER_VIN, "", ""],
    ],
    ids=["heading", "bare", "byte order mark", "second column", "semicolons", "tabs", "empty lines"],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_files_that_spreadsheets_write_are_read(lines: list[str], end: str, tmp_path: Path) -> None:
    listed = read_list(write(tmp_path / "ids.csv", *lines, end=end), RULE, lambda _done, _total: None)
    assert listed.complaints == []
    assert listed.device_ids == [f"vin:{VIN}", f"vin:{OTHER_VIN}"]


def test_all_wrong_lines_are_shown_and_nothing_is_imported(realm: Place, tmp_path: Path) -> None:
    wrong = VIN[:8] + "0" + VIN[9:]
    path = write(tmp_path / "ids.csv", "hardware_id", VIN, wrong, VIN, "SHORT", OTHER_VIN)
    said = realm.open_run("R1", "--check-digit", "--hardware-ids", path)
    assert said.code == 65
    lines = said.err.splitlines()
    assert lines[0] == f"line 3: vin {wrong}: position 9 should be X, is 0"
    assert lines[1] == f"line 4: {VIN} stands in line 2 already"
    assert lines[2].startswith("line 5: vin 'SHORT': has 5 characters")
    assert lines[3].endswith("3 lines are wrong; nothing was imported")
    assert allowed(realm) == []
    assert realm.done("run", "list").out == "none\n"


def test_only_the_first_twenty_wrong_lines_are_shown_and_the_rest_counted(
    realm: Place, tmp_path: Path
) -> None:
    path = write(tmp_path / "ids.csv", VIN, *(f"WRONG{number}" for number in range(50)))
    said = realm.open_run("R1", "--hardware-ids", path)
    lines = said.err.splitlines()
    assert lines[19].startswith("line 21: ")
    assert lines[20] == "… and 30 more"
    assert "50 lines are wrong" in lines[21]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hardware_id\n",
        b"\n\n",
        b"\xff\xfe1\x00M\x008\x00",
        b'"1M8GDM9AXKP042788\n',
        b"PK\x03\x04\xff\xff",
    ],
    ids=["empty", "heading alone", "blank", "utf-16", "open quote", "a spreadsheet"],
)
def test_a_file_that_is_no_list_is_malformed(content: bytes, realm: Place, tmp_path: Path) -> None:
    path = tmp_path / "ids.csv"
    path.write_bytes(content)
    assert realm.open_run("R1", "--hardware-ids", path).code == 65
    assert allowed(realm) == []


def test_a_heading_of_another_name_is_explained(realm: Place, tmp_path: Path) -> None:
    said = realm.open_run("R1", "--hardware-ids", write(tmp_path / "ids.csv", "VIN", VIN))
    assert "name the column hardware_id" in said.err.splitlines()[0]


def test_a_missing_file_is_not_found(realm: Place, tmp_path: Path) -> None:
    assert realm.open_run("R1", "--hardware-ids", tmp_path / "none.csv").code == 66


def test_control_characters_of_a_file_do_not_reach_the_terminal(realm: Place, tmp_path: Path) -> None:
    said = realm.open_run("R1", "--hardware-ids", write(tmp_path / "ids.csv", VIN, "\x1b[2JVIN"))
    assert said.code == 65
    assert "\x1b" not in said.err


def test_the_quantity_is_that_of_the_list_and_never_more(realm: Place, tmp_path: Path) -> None:
    path = write(tmp_path / "ids.csv", VIN, OTHER_VIN)
    assert realm.open_run("R0", "--quantity", 3, "--hardware-ids", path).code == 1
    document = realm.open_run("R1", "--hardware-ids", path, "--json").document
    assert document["quantity"] == 2
    assert document["allow_list"]["count"] == 2
    assert allowed(realm) == [f"vin:{OTHER_VIN}", f"vin:{VIN}"]
    # The same list again is the same list.
    assert realm.open_run("R2", "--hardware-ids", path).code == 0
    assert len(allowed(realm)) == 2


def serials() -> Iterator[str]:
    return ("".join(letters) for letters in itertools.product(string.ascii_uppercase, repeat=4))


def test_serials_are_held_against_the_runs_pattern(realm: Place, tmp_path: Path) -> None:
    path = write(tmp_path / "ids.csv", *itertools.islice(serials(), 3), "A-1")
    common = ("--product", "M", "--station", "ST01", "--hardware-id-kind", "serial", "--hardware-ids", path)
    said = realm("run", "open", "R1", *common, "--pattern", "[A-Z]{4}")
    assert said.code == 65
    assert said.err.splitlines()[0].startswith("line 4: serial 'A-1' does not match")
    assert realm("run", "open", "R1", *common, "--pattern", "[A-Z0-9-]{3,4}").code == 0


def test_a_hundred_thousand_vins_are_imported(database_url: str, tmp_path: Path) -> None:
    place = Place(tmp_path / "nord")
    done("init", place.directory, *NAMES, *split_url(database_url, tmp_path))
    path = write(tmp_path / "ids.csv", "hardware_id", *vins(100_000))
    begun = time.monotonic()
    said = place.open_run("R1", "--check-digit", "--hardware-ids", path, "--json")
    print(  # noqa: T201  # a time to look at, not to judge by
        f"100 000 VINs on {database_url.partition('+')[0]}: {time.monotonic() - begun:.1f} s"
    )
    assert said.code == 0, said
    assert said.document["quantity"] == 100_000
    assert len(allowed(place)) == 100_000


OPERATIONAL = (
    *("--operational", "--product", "T1", "--quantity", "5", "--hours", "8", "--hardware-id-kind", "vin"),
    *("--profile", "ldevid", "--variable", "hardware_type=1.3.6.1.4.1.32473.1"),
)


def test_an_operational_run_names_no_station_and_says_what_it_is(realm: Place) -> None:
    opened = realm.done("run", "open", "L1", *OPERATIONAL, "--approval", "--json").document
    assert (opened["purpose"], opened["looked_at"], opened["stations"]) == ("operational", True, [])
    shown = realm.done("run", "show", "L1", "--json").document
    assert (shown["purpose"], shown["looked_at"]) == ("operational", True)
    (listed,) = realm.done("run", "list", "--json").document
    assert listed["purpose"] == "operational"
    assert "operational" in realm.done("run", "list").out


@pytest.mark.parametrize("also", [("--station", "ST01"), ("--bootstrap-only",)])
def test_an_operational_run_takes_nobody_else(realm: Place, also: tuple[str, ...]) -> None:
    said = realm("run", "open", "L1", *OPERATIONAL, *also)
    assert said.code == 65, said
    assert "--operational" in said.err


def test_what_only_the_line_has_is_refused_for_an_operational_run(realm: Place) -> None:
    said = realm("run", "open", "L1", *OPERATIONAL, "--further", "idevid")
    assert said.code != 0
    assert "an operational run has no further profiles" in said.err


def test_a_run_for_identities_says_so_and_nobody_looks_at_its_requests(realm: Place) -> None:
    opened = realm.open_run("R1", "--quantity", 3, "--json").document
    assert (opened["purpose"], opened["looked_at"]) == ("identity", False)
