"""A profile of one's own is one file and one command (SPEC G)."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.edge.cli.command import Place, birthmark, done

PACKAGED = Path("src/birthmark/pki/profiles")
WAIVER = """
[[waivers]]
linter = "pkilint"
finding = "pkix.certificate_skid_end_entity_missing"
reason = "our gateways look keys up by issuer and serial number"
"""


def gateway(folder: Path, *, change: Callable[[str], str] = str, name: str = "gateway") -> Path:
    """Write a profile of one's own: a vehicle's without subjectKeyIdentifier, and a maker's name."""
    text = (PACKAGED / "vehicle.toml").read_text().replace('name = "vehicle"', f'name = "{name}"')
    text = text.replace("subject-key-identifier = true", "subject-key-identifier = false")
    text += '\n[[constraints]]\nrule = "maker"\nvariable = "organization"\none-of = ["Nord AG", "Sued AG"]\n'
    file = folder / f"{name}.toml"
    file.write_text(change(text + WAIVER))
    return file


@pytest.fixture
def place(realm: Place) -> Place:
    """A realm with a directory for its own profiles."""
    text = realm.settings.read_text()
    realm.settings.write_text('profiles-directory = "profiles"\n' + text)
    (realm.directory / "profiles").mkdir()
    return realm


def test_packaged_profiles_are_listed_and_shown_without_a_realm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    listed = done("profile", "list", "--json").document
    assert {"vehicle", "idevid", "matter-dac"} <= {one["name"] for one in listed}
    assert {one["origin"] for one in listed} == {"packaged"}
    shown = done("profile", "show", "matter-dac", "--json").document
    assert shown["issued_by"] == ["matter-pai"]
    assert {one["rule"] for one in shown["constraints"]} >= {"matter-vendor-id"}
    assert "matterVID={vendor_id}" in done("profile", "show", "matter-dac").out
    assert birthmark("profile", "show", "lorry").code == 66


def test_a_profile_is_linted_added_and_used(place: Place, tmp_path: Path) -> None:
    file = gateway(tmp_path)
    said = place.done("profile", "lint", file)
    assert "waived: our gateways look keys up" in said.out
    assert "profile gateway is accepted" in said.out
    report = place.done("profile", "lint", file, "--json").document
    assert [one["subject_key_algorithm"] for one in report["inspections"]] == [
        "ec-p256",
        "ec-p384",
        "ed25519",
    ]
    assert {test["rule"] for test in report["negative_tests"]} == {"maker"}
    place.done("profile", "add", file)
    assert ("gateway", "own") in {
        (one["name"], one["origin"]) for one in place.done("profile", "list", "--json").document
    }
    opened = place.open_run("R1", "--quantity", 1, "--profile", "gateway", "--json").document
    assert opened["profile_sha256"] == report["sha256"]
    (inspection,) = opened["opening"]["inspections"]
    assert inspection["findings"][0]["waived"] == "our gateways look keys up by issuer and serial number"
    shown = place.done("run", "show", "R1")
    assert "pkilint 0." in shown.out
    assert "organization 'nORD ag' is none of Nord AG, Sued AG" in shown.out
    assert place.done("check").code == 0


REFUSED: dict[str, tuple[Callable[[str], str], str, int, str]] = {
    "a finding that is not waived": (
        lambda text: text.replace(WAIVER, ""),
        "gateway",
        1,
        "pkix.certificate_skid_end_entity_missing",
    ),
    "no toml": (lambda _text: "name = ", "gateway", 65, "not a toml file"),
    "an unknown key": (lambda text: "colour = 'red'\n" + text, "gateway", 65, "colour: unknown key"),
    "a contradiction": (
        lambda text: text.replace('kind = "device"', 'kind = "authority"'),
        "gateway",
        65,
        "authority and ca = true go together",
    ),
    "an issuer there is not": (
        lambda text: text.replace('kind = "device"', 'kind = "device"\nissued-by = ["nobody"]'),
        "gateway",
        66,
        "there is no profile 'nobody'",
    ),
    "the name of a packaged one": (str, "station", 1, "station is a packaged profile"),
    "a certificate larger than it allows": (
        lambda text: text.replace("1024", "300"),
        "gateway",
        1,
        "the profile allows 300",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("command", ["lint", "add"])
def test_a_profile_that_is_not_good_is_refused(place: Place, tmp_path: Path, case: str, command: str) -> None:
    change, name, code, complaint = REFUSED[case]
    said = place("profile", command, gateway(tmp_path, change=change, name=name))
    assert said.code == code, said
    assert complaint in said.out + said.err
    assert list((place.directory / "profiles").iterdir()) == []


def test_a_profile_that_a_run_was_signed_for_is_not_replaced(place: Place, tmp_path: Path) -> None:
    place.done("profile", "add", gateway(tmp_path))
    place.done("profile", "add", gateway(tmp_path, change=lambda text: f"{text}\n# better\n"))
    assert place.open_run("R1", "--quantity", 1, "--profile", "gateway").code == 0
    place.done("profile", "add", gateway(tmp_path, change=lambda text: f"{text}\n# better\n"))
    said = place("profile", "add", gateway(tmp_path))
    assert said.code == 1
    assert "run R1 was signed for another profile gateway" in said.err
    assert "# better" in (place.directory / "profiles" / "gateway.toml").read_text()


def test_there_must_be_a_directory_for_profiles_of_ones_own(realm: Place, tmp_path: Path) -> None:
    said = realm("profile", "add", gateway(tmp_path))
    assert (said.code, "profiles-directory" in said.err) == (66, True)
    unused = realm("profile", "lint", gateway(tmp_path), "--variable", "run=R1")
    assert (unused.code, "does not use run" in unused.err) == (65, True)
    other = realm("profile", "lint", gateway(tmp_path), "--variable", "organization=Other")
    assert (other.code, "is none of Nord AG" in other.err) == (1, True)


def test_the_example_of_the_documentation_is_a_profile(place: Place, tmp_path: Path) -> None:
    text = Path("docs/profiles.md").read_text(encoding="utf-8")
    example = text.partition("```toml\n")[2].partition("```")[0]
    file = tmp_path / "gateway.toml"
    file.write_text(example)
    report = place.done("profile", "lint", file, "--json").document
    assert report["accepted"]
    assert report["unused_waivers"] == []
    place.done("profile", "add", file)
    kind = ("--hardware-id-kind", "serial", "--station", "ST01", "--product", "T1")
    opened = place.done(
        "run", "open", "R1", *kind, "--profile", "gateway", "--quantity", 1, "--json"
    ).document
    assert {test["tried"] for test in opened["opening"]["negative_tests"]} == {"GW1234567", "XX12345678"}


def test_the_documentation_names_every_key_of_the_language() -> None:
    text = Path("docs/profiles.md").read_text(encoding="utf-8")
    reader = Path("src/birthmark/pki/profiles.py").read_text(encoding="utf-8")
    keys = set(re.findall(r'(?:take|table|tables|template|texts|plain_tables)\("([a-z-]+)"', reader))
    assert {"name", "subject", "waivers", "serial-encoding"} <= keys
    assert {
        key
        for key in keys
        if f"`{key}`" not in text and f"`[{key}]`" not in text and f"`[[{key}]]`" not in text
    } == set()
