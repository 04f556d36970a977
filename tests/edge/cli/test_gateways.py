"""The gateway's certificates and keys, and proxies, by hand: who may, and what is refused (SPEC H3, K1)."""

import json
from pathlib import Path

import pytest

from birthmark.edge.pins import pins_of
from birthmark.settings import load
from tests.edge.cli.command import Place, done

ANNA = ("--as", "operators/anna")


@pytest.fixture
def plant(realm: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A realm whose settings have a gateway, and officer anna and operator otto."""
    monkeypatch.chdir(realm.directory)
    with realm.settings.open("a") as file:
        file.write(
            '\n[gateway-plane]\nport = 18446\ncertificate-file = "gateway.crt"\n'
            'key-file = "secrets/gateway.key"\nkey-passphrase-file = "secrets/gateway.passphrase"\n'
            'next-certificate-file = "gateway-next.crt"\nnext-key-file = "secrets/gateway-next.key"\n'
        )
    realm.done("operator", "enrol", "otto", "--role", "operator", "--out", "operators/otto", *ANNA)
    return realm


def test_a_certificate_the_next_one_and_the_change(plant: Place) -> None:
    refused = plant("gateway", "prepare", *ANNA)
    assert (refused.code, "say with --dns and --ip" in refused.err) == (65, True)
    first = plant.done("gateway", "prepare", "--dns", "gw.example.com", "--json", *ANNA).document
    assert plant.done("gateway", "pins", "--json").document == {"pin": first["pin"], "next_pin": None}
    assert plant("gateway", "rotate").code == 66, "there is no next one"
    following = plant.done("gateway", "prepare", "--json", *ANNA).document
    assert following["file"].endswith("gateway-next.crt")
    again = plant("gateway", "prepare", *ANNA)
    assert (again.code, "rotate to it first" in again.err) == (1, True)
    both = {"pin": first["pin"], "next_pin": following["pin"]}
    assert plant.done("gateway", "pins", "--json").document == both
    changed = plant.done("gateway", "rotate", "--json").document
    assert changed == {"pin": following["pin"], "before": first["pin"]}
    assert plant.done("gateway", "pins", "--json").document == {"pin": following["pin"], "next_pin": None}
    assert not Path("secrets/gateway-next.key").exists()
    for path in (Path("secrets/gateway.key"), Path("secrets/gateway.passphrase")):
        assert path.resolve().stat().st_mode & 0o077 == 0
    assert plant.done("check", "--json").document["findings"] == []


def test_a_change_that_broke_off_after_the_key_was_made_goes_on(plant: Place) -> None:
    plant.done("gateway", "prepare", "--dns", "gw.example.com", *ANNA)
    Path("secrets/gateway-next.key").write_text("half")
    plant.done("gateway", "prepare", *ANNA)
    plant.done("gateway", "rotate")
    plane = load(plant.settings).gateway_plane
    assert pins_of(plane).next is None


def test_who_may_not_makes_no_certificate_and_no_file(plant: Place) -> None:
    refused = plant("gateway", "prepare", "--dns", "gw.example.com", "--as", "operators/otto")
    assert refused.code == 77
    assert not Path("gateway.crt").exists()


def test_a_token_key_is_an_asset_of_the_realm(plant: Place) -> None:
    plant.done("gateway", "token-key", "tokens-1", *ANNA)
    assert plant("gateway", "token-key", "tokens-1", *ANNA).code == 1, "the label is taken"
    refused = plant("gateway", "token-key", "tokens-2", "--algorithm", "rsa-2048", *ANNA)
    assert (refused.code, "the key of tokens is ec-p256 or ed25519" in refused.err) == (65, True)
    assert plant.done("keys", "check").code == 0
    text = plant.settings.read_text().replace("port = 18446", 'port = 18446\ntoken-keys = ["tokens-1"]')
    plant.settings.write_text(text)
    (key,) = json.loads(plant.done("gateway", "key-set").out)["keys"]
    assert (key["alg"], key["use"]) == ("ES256", "sig")


def test_a_proxy_is_let_in_renewed_and_shut_out(plant: Place) -> None:
    plant.done("proxy", "enrol", "edge-1", "--out", "edge-1", *ANNA)
    assert sorted(path.name for path in Path("edge-1").iterdir()) == ["proxy.crt", "proxy.key", "root.crt"]
    assert Path("edge-1/proxy.key").stat().st_mode & 0o777 == 0o400
    assert plant("proxy", "enrol", "edge-2", "--out", "edge-1", *ANNA).code == 1, "it is not empty"
    assert plant("proxy", "renew", "edge-1", "--out", "otto", "--as", "operators/otto").code == 77
    plant.done("proxy", "renew", "edge-1", "--out", "edge-1b", *ANNA)
    plant.done("proxy", "revoke", "edge-1", "--reason", "gone", *ANNA)
    (shown,) = plant.done("proxy", "list", "--json").document
    assert (shown["name"], shown["status"]) == ("edge-1", "revoked")
    assert plant.done("check", "--json").document["findings"] == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("next-key-file = 'x'", "go together"),
        ("token-keys = ['No Label']", "a key label is"),
        ("audience = ''", "audience"),
        ("nothing = 1", "nothing"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(realm: Place, line: str, said: str) -> None:
    with realm.settings.open("a") as file:
        file.write(
            f'\n[gateway-plane]\ncertificate-file = "a"\nkey-file = "b"\nkey-passphrase-file = "c"\n{line}\n'
        )
    refused = realm("gateway", "pins")
    assert (refused.code, said in refused.err) == (65, True), refused


def test_init_makes_a_gateway_when_it_is_asked_to(tmp_path: Path) -> None:
    place = Place(tmp_path / "nord")
    done(
        *("init", place.directory, "--realm", "nord", "--organization", "Nord", "--operator", "anna"),
        *("--gateway-port", "18447"),
    )
    assert plan_of(place) == ("gateway.crt", 18447)
    rows = {row["check"]: row["verdict"] for row in place.done("config", "check", "--json").document}
    wanted = ("gateway key", "gateway certificate", "other realms", "keys of tokens", "root")
    assert {name: rows[name] for name in wanted} == dict.fromkeys(wanted, "ok")
    assert place.done("check", "--json").document["findings"] == []
    (place.directory / "gateway.crt").unlink()
    checked = place("config", "check", "--json")
    failed = {row["check"] for row in checked.document if row["verdict"] == "failed"}
    assert (checked.code, failed) == (1, {"gateway key", "gateway certificate"})


def plan_of(place: Place) -> tuple[str, int]:
    plane = load(place.settings).gateway_plane
    return plane.certificate_file.name, plane.port
