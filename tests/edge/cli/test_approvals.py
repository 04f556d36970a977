"""Two people open a production run at the command line, and what the settings know is in the licence."""

import pytest

from birthmark.settings import load
from tests.edge.cli.command import Place
from tests.support.realm import tamper


@pytest.fixture
def production(realm: Place) -> Place:
    """A realm turned into one of production, with operators anna and bela.

    Its log began as a test realm's, so it would not pass the check; opening runs asks neither.
    """
    out = realm.directory / "operators" / "bela"
    realm.done("operator", "enrol", "bela", "--role", "officer", "--out", out, *person(realm, "anna"))
    settings = realm.settings.read_text()
    assert 'environment = "test"' in settings
    realm.settings.write_text(settings.replace('environment = "test"', 'environment = "production"'))
    tamper(load(realm.settings).database.url, ("UPDATE realm SET environment = 'production'", ()))
    return realm


def person(place: Place, name: str) -> tuple[str, str]:
    return "--as", str(place.directory / "operators" / name)


def test_a_run_is_proposed_by_one_and_opened_by_another(production: Place) -> None:
    place = production
    said = place.open_run("R1", "--quantity", 3, *person(place, "anna"))
    assert said.code == 0, said
    assert "birthmark run approve R1" in said.out
    assert place.done("run", "show", "R1", "--json").document["status"] == "proposed"
    alone = place("run", "approve", "R1", *person(place, "anna"))
    assert (alone.code, "it takes two" in alone.err) == (77, True)
    opened = place.done("run", "approve", "R1", "--json", *person(place, "bela")).document
    assert opened["status"] == "open"
    assert opened["approver"] != opened["signer"]
    assert opened["opening"]["inspections"][0]["findings"] == []
    assert place.done("run", "show", "R1", "--json").document == opened
    assert place("run", "approve", "R9", *person(place, "bela")).code == 66


def publishing(place: Place) -> Place:
    table = '\n[publication]\nurl = "http://pki.example.com"\ndirectory = "published"\n'
    place.settings.write_text(place.settings.read_text() + table)
    return place


def test_locations_come_from_the_settings_with_the_partition_of_the_batch(realm: Place) -> None:
    """SPEC F2: the partition is aligned with the batch, and in the certificates."""
    place = publishing(realm)
    options = ("--quantity", 1, "--profile", "3gpp-vendor", "--batch", "B7", "--json")
    opened = place.open_run("R1", *options).document
    assert opened["partition"] == "batch.B7"
    assert opened["variables"]["crl_url"] == "http://pki.example.com/crl/issuing-1/batch.B7.crl"
    assert opened["variables"]["ocsp_url"] == "http://pki.example.com/ocsp"
    assert opened["variables"]["issuer_url"] == "http://pki.example.com/ca/issuing-1.cer"
    by_run = place.open_run("R2", *options, "--partition", "run").document
    assert by_run["variables"]["crl_url"] == "http://pki.example.com/crl/issuing-1/run.R2.crl"
    whole = place.open_run("R3", *options, "--partition", "none").document
    assert (whole["partition"], whole["variables"]["crl_url"]) == (
        "all",
        "http://pki.example.com/crl/issuing-1.crl",
    )
    own = place.open_run("R4", *options, "--variable", "crl_url=http://other.example/x.crl")
    assert (own.code, "[publication] says what crl_url is" in own.err) == (65, True)


def test_where_nothing_is_published_certificates_name_no_location(realm: Place) -> None:
    plain = realm.open_run("R1", "--quantity", 1, "--json").document
    assert (plain["partition"], plain["variables"]) == ("all", {"organization": "Nord AG"})
    none = realm.open_run("R2", "--quantity", 1, "--partition", "batch")
    assert (none.code, "would name no CRL" in none.err) == (1, True)


def test_class_region_and_site_are_in_the_licence(realm: Place) -> None:
    """SPEC A6."""
    site = realm.done("station", "list", "--json").document[0]["site"]
    options = ("--quantity", 1, "--class", "ecu", "--region", "EU", "--site", site, "--json")
    opened = realm.open_run("R1", *options).document
    assert (opened["class"], opened["region"], opened["site"]) == ("ecu", "EU", site)
    elsewhere = realm.open_run("R2", "--quantity", 1, "--site", "elsewhere")
    assert (elsewhere.code, "the run is for elsewhere" in elsewhere.err) == (77, True)
    twice = realm.open_run(
        "R3", "--quantity", 1, "--further", "idevid", "--variable", "hardware_type=1.3.6.1.4.1.32473.1"
    )
    assert twice.code == 0, twice
