"""An element profile of one's own is one file and one command (SPEC D)."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.edge.cli.command import Place, birthmark, done

PACKAGED = Path("src/birthmark/element/packaged/scp03-generic.toml")


def gateway(folder: Path, *, change: Callable[[str], str] = str, name: str = "gateway") -> Path:
    """Write a profile of one's own: the generic one, with a certificate in the element."""
    text = PACKAGED.read_text().replace('name = "scp03-generic"', f'name = "{name}"')
    text += '\n[[objects]]\ntag = 0x7F21\ncontent = "certificate:vehicle"\n'
    file = folder / f"{name}.toml"
    file.write_text(change(text))
    return file


@pytest.fixture
def place(realm: Place) -> Place:
    """A realm with a directory for its own element profiles."""
    realm.settings.write_text('elements-directory = "elements"\n' + realm.settings.read_text())
    (realm.directory / "elements").mkdir()
    return realm


def test_packaged_element_profiles_are_listed_and_shown_without_a_realm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    listed = done("element", "list", "--json").document
    assert [(one["name"], one["origin"], one["kind"]) for one in listed] == [
        ("scp03-generic", "packaged", "scp03"),
        ("scp03-replace", "packaged", "scp03"),
    ]
    assert "scp03-generic" in done("element", "list").out
    shown = done("element", "show", "scp03-generic", "--json").document
    assert (shown["final"], shown["parameters"]) == ("31: kdf3 of element-final by kdd", ["60", "70"])
    assert "transport-enc, transport-mac, transport-dek" in done("element", "show", "scp03-replace").out
    assert birthmark("element", "show", "lorry").code == 66


def test_an_element_profile_is_linted_and_added(place: Place, tmp_path: Path) -> None:
    file = gateway(tmp_path)
    assert place.done("element", "lint", file, "--json").document["objects"] == ["7F21 certificate:vehicle"]
    assert "7F21 certificate:vehicle" in place.done("element", "lint", file).out
    said = place.done("element", "add", file)
    assert "the key store has no key element-final yet" in said.out
    assert (place.directory / "elements" / "gateway.toml").read_bytes() == file.read_bytes()
    assert ("gateway", "own") in {
        (one["name"], one["origin"]) for one in place.done("element", "list", "--json").document
    }


def tpm(place: Place, folder: Path, *, comment: str = "") -> Path:
    """Write the profile of TPMs that the realm's own root has certified."""
    root = next(path for path in place.directory.rglob("*.crt") if "root" in path.name).read_text()
    file = folder / "tpm2-acme.toml"
    file.write_text(f'{comment}name = "tpm2-acme"\nkind = "tpm"\nanchors = """\n{root}"""\n')
    return file


def test_a_tpm_profile_is_added_and_shown(place: Place, tmp_path: Path) -> None:
    place.done("element", "add", tpm(place, tmp_path))
    shown = place.done("element", "show", "tpm2-acme", "--json").document
    assert (shown["kind"], shown["anchors"], shown["intermediates"]) == ("tpm", 1, 0)


def test_an_element_profile_that_a_run_was_signed_for_is_not_replaced(place: Place, tmp_path: Path) -> None:
    place.done("element", "add", tpm(place, tmp_path))
    opened = place.open_run("R1", "--quantity", 1, "--profile", "vehicle", "--element", "tpm2-acme")
    assert opened.code == 0, opened
    place.done("element", "add", tpm(place, tmp_path))
    said = place("element", "add", tpm(place, tmp_path, comment="# better\n"))
    assert said.code == 1
    assert "run R1 was signed for another element profile tpm2-acme" in said.err
    assert "# better" not in (place.directory / "elements" / "tpm2-acme.toml").read_text()


def test_the_example_of_the_documentation_is_an_element_profile(place: Place, tmp_path: Path) -> None:
    text = Path("docs/element-profiles.md").read_text(encoding="utf-8")
    file = tmp_path / "gateway-element.toml"
    file.write_text(text.partition("```toml\n")[2].partition("```")[0])
    shown = place.done("element", "lint", file, "--json").document
    assert shown["objects"] == ["7F21 certificate", "5F50 text:{hardware_id}"]
    place.done("element", "add", file)


REFUSED: dict[str, tuple[Callable[[str], str], str, int, str]] = {
    "no toml": (lambda _text: "name = ", "gateway", 65, "not a toml file"),
    "an unknown key": (lambda text: "colour = 'red'\n" + text, "gateway", 65, "colour: unknown key"),
    "a contradiction": (lambda text: text.replace('"s8"', '"s16"'), "gateway", 65, "60 contradicts mode"),
    "a certificate that no profile describes": (
        lambda text: text.replace("certificate:vehicle", "certificate:lorry"),
        "gateway",
        66,
        "there is no profile 'lorry'",
    ),
    "a certificate that is no device's": (
        lambda text: text.replace("certificate:vehicle", "certificate:root"),
        "gateway",
        65,
        "root is no profile of a device's certificates",
    ),
    "the name of a packaged one": (str, "scp03-replace", 1, "is a packaged element profile"),
    "too long a file": (lambda text: text + "#" * 300_000, "gateway", 1, "more than 262144 octets"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("command", ["lint", "add"])
def test_an_element_profile_that_is_not_good_is_refused(
    place: Place, tmp_path: Path, case: str, command: str
) -> None:
    change, name, code, complaint = REFUSED[case]
    said = place("element", command, gateway(tmp_path, change=change, name=name))
    assert said.code == code, said
    assert complaint in said.err
    assert list((place.directory / "elements").iterdir()) == []


def test_there_must_be_a_file_and_a_directory_for_element_profiles(realm: Place, tmp_path: Path) -> None:
    said = realm("element", "add", gateway(tmp_path))
    assert (said.code, "names no elements-directory" in said.err) == (66, True)
    assert realm("element", "lint", tmp_path / "nowhere.toml").code == 66
