"""A run outside its authority's licence, or that of any above, cannot be opened (SPEC A2, A6, G1, G2)."""

from pathlib import Path
from typing import Any

import pytest

from birthmark import errors
from birthmark.floor.authorities import Authority, AuthorityStatus
from birthmark.floor.hardware_ids import HardwareIdKind, HardwareIdRule
from birthmark.floor.revocations import Partitioning
from birthmark.floor.runs import AllowList, Run
from birthmark.pki.profiles import Catalogue
from tests.services.test_opening import open_licence
from tests.support.realm import ORGANIZATION, START, Line, proof, tamper, workpiece

DAY = 86_400_000
MATTER = {"vendor_id": "FFF1", "product_id": "8000"}
LOCATIONS = {"crl_url": "http://pki.example.com/crl/issuing-1/batch.B7.crl"}


def authority(line: Line, name: str, **columns: Any) -> None:
    """Change an authority's row as whoever owns the database can: what counts is what is there."""
    for column, value in columns.items():
        tamper(line.url, (f"UPDATE authority SET {column} = %s WHERE id = %s", (value, name)))  # noqa: S608  # names of our own tables


OUTSIDE: dict[str, tuple[str, dict[str, Any], dict[str, Any], type[errors.Refusal], str]] = {
    **{
        f"{name} {status}": (name, {"status": status}, {}, errors.IllegalTransition, f"{name} is {status}")
        for name in ("issuing-1", "root")
        for status in ("suspended", "retired", "revoked")
    },
    "issuing-1 superseded": (
        "issuing-1",
        {"successor": "next"},
        {},
        errors.IllegalTransition,
        "issuing-1 is superseded by next",
    ),
    **{
        f"another {dimension} than {name}'s": (
            name,
            {"scope": f"{dimension}=A|B"},
            {field: "C"},
            errors.NotPermitted,
            f"{name} issues for {dimension} A or B, not for C",
        )
        for name in ("issuing-1", "root")
        for dimension, field in (
            ("product", "product"),
            ("batch", "batch"),
            ("class", "device_class"),
            ("region", "region"),
            ("site", "site"),
        )
    },
    "a dimension that is not said": (
        "root",
        {"scope": "region=EU"},
        {},
        errors.NotPermitted,
        "issues for region EU only, and no region is named",
    ),
    "a profile that the root does not allow": (
        "root",
        {"profiles": "idevid server"},
        {},
        errors.NotPermitted,
        "root issues idevid server, not vehicle",
    ),
    "an end after the root's": (
        "root",
        {"ends_at": int(START.timestamp() * 1000) + DAY // 2},
        {},
        errors.NotPermitted,
        "root stops issuing at 2026-11-22T22",
    ),
    "more than the quota": (
        "issuing-1",
        {"quota": 999},
        {},
        errors.QuotaExhausted,
        "may issue 999 more certificates, the run is for 1000",
    ),
    "more than is left of the quota": (
        "issuing-1",
        {"quota": 1000, "issued": 1},
        {},
        errors.QuotaExhausted,
        "may issue 999 more",
    ),
    "a key that is not here": (
        "issuing-1",
        {"custody": "offline"},
        {},
        errors.NotPermitted,
        "its key is offline",
    ),
    "a value that the root's licence forbids": (
        "root",
        {"constraints": '[{"rule": "maker", "variable": "organization", "equals": "Other"}]'},
        {},
        errors.PolicyRefused,
        f"organization '{ORGANIZATION}' is none of Other",
    ),
    "constraints that nobody can read": (
        "issuing-1",
        {"constraints": '[{"rule": "maker"}]'},
        {},
        errors.IntegrityFailure,
        "the constraints of authority issuing-1 cannot be read",
    ),
    "an authority of another kind than the profile wants": (
        "issuing-1",
        {"owner": "quality"},
        {"profile": "matter-dac", "variables": MATTER},
        errors.PolicyRefused,
        "matter-dac is issued by an authority made as matter-pai; issuing-1 was made as issuing",
    ),
    "another profile than there is": (
        "issuing-1",
        {"owner": "quality"},
        {"profile_sha256": "00" * 32},
        errors.PolicyRefused,
        "for another profile vehicle than the one there is",
    ),
    "a partition of a CRL that no certificate names": (
        "issuing-1",
        {"owner": "quality"},
        {"partitioning": Partitioning.BATCH},
        errors.PolicyRefused,
        "would name no CRL",
    ),
    "a partition that is on another CRL than the certificates name": (
        "issuing-1",
        {"owner": "quality"},
        {
            "profile": "3gpp-vendor",
            "partitioning": Partitioning.RUN,
            "variables": {"organization": "Acme"} | LOCATIONS,
        },
        errors.PolicyRefused,
        "the CRL of partition run.R2 is at crl/issuing-1/run.R2.crl, not at",
    ),
    "a profile twice": (
        "issuing-1",
        {"owner": "quality"},
        {"further_profiles": ("vehicle",), "further_sha256": ("00" * 32,)},
        errors.PolicyRefused,
        "names a profile twice",
    ),
    "a further profile that is not pinned": (
        "issuing-1",
        {"owner": "quality"},
        {"further_profiles": ("idevid",)},
        errors.PolicyRefused,
        "does not pin every one",
    ),
}


@pytest.mark.parametrize("case", OUTSIDE)
def test_a_run_outside_a_licence_above_it_is_refused_and_logged(small_line: Line, case: str) -> None:
    """SPEC A1, A2: product, batch, class, region, site, profiles, end and quota, of the whole chain."""
    line = small_line
    name, columns, changes, kind, complaint = OUTSIDE[case]
    authority(line, name, **columns)
    size = line.size()
    with pytest.raises(kind, match=complaint.replace("|", r"\|")):
        open_licence(line, line.licence("R2", **changes))
    (entry,) = line.entries(size)
    assert (entry["kind"], entry["request"], entry["code"]) == ("refused", "open-run", kind.code)
    assert line.get(Run, "R2") is None


def test_a_run_inside_every_licence_is_opened(line: Line) -> None:
    authority(line, "root", scope="site=Graz;product=car", constraints="[]")
    authority(line, "issuing-1", scope="batch=B7;class=ecu;region=EU|UK;site=Graz", quota=1000)
    inside = line.licence("R2", site="Graz", region="UK", device_class="ecu")
    assert open_licence(line, inside).status == "open"
    partitioned = line.licence(
        "R3",
        profile="3gpp-vendor",
        variables={"organization": "Acme"} | LOCATIONS,
        partitioning=Partitioning.BATCH,
        site="Graz",
        region="EU",
        device_class="ecu",
        quantity=1,
    )
    assert open_licence(line, partitioned).status == "open"


def test_the_stations_of_a_run_are_of_its_site(small_line: Line) -> None:
    """SPEC A6."""
    with pytest.raises(errors.NotPermitted, match="station ST01 is at site Graz, the run is for Wien"):
        open_licence(small_line, small_line.licence("R2", site="Wien"))


@pytest.mark.parametrize("status", [AuthorityStatus.SUSPENDED, AuthorityStatus.REVOKED])
def test_nothing_is_issued_below_an_authority_that_was_stopped(line: Line, status: AuthorityStatus) -> None:
    """SPEC A5: an open run stops with the next device, whoever above it was stopped."""
    line.make("D1")
    authority(line, "root", status=str(status))
    with pytest.raises(errors.IllegalTransition, match=f"authority root, above the run's, is {status}"):
        line.issue(workpiece("D2"))
    authority(line, "root", status="active")
    line.make("D3")


def test_what_a_retired_authority_certified_goes_on(line: Line) -> None:
    """SPEC A5."""
    authority(line, "root", status="retired")
    assert line.make("D1").token
    assert line.the(Authority, "root").status is AuthorityStatus.RETIRED


def test_each_device_keeps_the_constraints_of_every_authority_above(line: Line) -> None:
    """SPEC G2: what changes from device to device is judged for each."""
    rule = '[{"rule": "maker-prefix", "variable": "hardware_id", "prefix-of": ["AC"]}]'
    authority(line, "root", constraints=rule)
    line.open_run("R2")
    entry = line.entries()[-1]
    assert entry["hardware_id"].startswith("serial:AC")
    assert [test["rule"] for test in entry["negative_tests"]] == ["maker-prefix"] * len(
        entry["negative_tests"]
    )
    with pytest.raises(errors.PolicyRefused, match="hardware_id 'D1' does not begin with AC") as refused:
        line.issue(workpiece("D1"), run="R2")
    assert refused.value.rule == "maker-prefix"
    assert line.make("AC1", run="R2").device == "serial:AC1"


def test_a_run_stops_when_its_profile_is_another_and_what_it_issued_is_still_proved(
    small_line: Line, tmp_path: Path
) -> None:
    """SPEC G1: the licence pins the profile's file."""
    line, directory = small_line, tmp_path / "profiles"
    directory.mkdir()
    source = Path("src/birthmark/pki/profiles/vehicle.toml").read_text().replace('"vehicle"', '"own"')
    (directory / "own.toml").write_text(source)
    catalogue = Catalogue.read(directory)
    service = line.another_service(catalogue=catalogue)
    licence = line.licence("R2", profile="own", profile_sha256=catalogue.load("own").sha256)
    service.carry(service.opening.open(line.operator.caller, licence, line.sign(licence)))
    device = workpiece("D1")
    issued = line.issue(device, run="R2", service=service)
    (directory / "own.toml").write_text(f"{source}\n# a remark\n")
    changed = line.another_service(catalogue=Catalogue.read(directory))
    with pytest.raises(errors.IntegrityFailure, match="profile own is not the one that run R2 was signed"):
        line.issue(workpiece("D2"), run="R2", service=changed)
    assert line.prove(proof(issued, device.key), service=changed).device == "serial:D1"
    with pytest.raises(errors.Unavailable, match="does not know profile own of run R2: start it again"):
        line.issue(workpiece("D2"), run="R2")


def test_a_list_that_was_never_imported_opens_no_run(small_line: Line) -> None:
    licence = small_line.licence("R2", allow_list=AllowList(count=1000, sha256="ab" * 32))
    with pytest.raises(errors.PolicyRefused, match=r"no list abab.* of hardware ids was imported"):
        open_licence(small_line, licence)


def test_no_run_is_opened_whose_ids_contradict_its_constraints(small_line: Line) -> None:
    line = small_line
    rule = '[{"rule": "maker-prefix", "variable": "hardware_id", "prefix-of": ["AC"]}]'
    authority(line, "root", constraints=rule)
    licence = line.licence("R2", hardware_id=HardwareIdRule(kind=HardwareIdKind.SERIAL, pattern="B[0-9]{4}"))
    with pytest.raises(errors.PolicyRefused, match="no serial could be made up that the run would take"):
        open_licence(line, licence)
    use_case = line.service.opening.open(line.operator.caller, licence, line.sign(licence), sample="B0001")
    with pytest.raises(errors.PolicyRefused, match="'B0001' does not begin with AC"):
        line.service.carry(use_case)


def test_the_overlap_of_a_rollover_above_stops_no_run(line: Line) -> None:
    """SPEC A5: a root with a successor goes on for what is below it."""
    authority(line, "root", successor="root-2")
    line.open_run("R2")
    line.issue(workpiece("D1"), run="R2")
