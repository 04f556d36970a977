"""First-article inspection, and what the log keeps of it (SPEC G1, G2; DESIGN: first-article inspection)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from birthmark import errors
from birthmark.adapters.inspection import PkilintInspector
from birthmark.floor.authorities import Authority
from birthmark.floor.runs import Run
from birthmark.pki.articles import Finding, made_up_key
from birthmark.pki.keys import KeyAlgorithm
from birthmark.pki.profiles import Catalogue
from tests.support.realm import Line, Service, tamper

PROFILES = Path("src/birthmark/pki/profiles")
HARDWARE = {"hardware_type": "1.3.6.1.4.1.32473.1"}


@dataclass
class Keeping(PkilintInspector):
    """The real inspector, keeping what it was shown."""

    seen: list[tuple[bytes, bytes | None]] = field(default_factory=list)

    def inspect(self, certificate: bytes, issuer: bytes | None) -> tuple[Finding, ...]:
        """Inspect as always."""
        self.seen.append((certificate, issuer))
        return super().inspect(certificate, issuer)


def opened(line: Line, service: Service | None = None, **fields: Any) -> Mapping[str, Any]:
    """Open run R2 and return its log entry."""
    at = service or line.service
    licence = line.licence("R2", **fields)
    at.carry(at.opening.open(line.operator.caller, licence, line.sign(licence)))
    return line.entries()[-1]


def own(tmp_path: Path, text: str, name: str = "own") -> Catalogue:
    """Return the packaged profiles and one more."""
    directory = tmp_path / "profiles"
    directory.mkdir(exist_ok=True)
    (directory / f"{name}.toml").write_text(text)
    return Catalogue.read(directory)


def test_the_entry_that_opens_a_run_says_what_was_inspected(line: Line) -> None:
    entry = opened(line, profile="idevid", variables=HARDWARE)
    assert entry["kind"] == "run-opened"
    (inspection,) = entry["inspections"]
    assert inspection["inspector"].startswith("pkilint 0.")
    assert inspection["profile"] == "idevid"
    assert inspection["subject_key_algorithm"] == "ec-p256"
    (finding,) = inspection["findings"]
    assert (finding["severity"], finding["code"]) == ("warning", "pkix.certificate_skid_end_entity_missing")
    assert "8.10.2" in finding["waived"]
    run = line.the(Run, "R2")
    assert run.opening == line.size() - 1


def test_the_first_article_is_the_runs_own_and_signed_by_nobody(small_line: Line) -> None:
    """No authority's key signs what is no identity: the signature is that of a key everybody knows."""
    line, inspector = small_line, Keeping()
    service = line.another_service(inspector=inspector)
    entry = opened(line, service, variables={"organization": "Nord AG"})
    ((certificate, issuer),) = inspector.seen
    issuing = line.the(Authority, "issuing-1")
    assert issuer == issuing.der
    parsed = x509.load_der_x509_certificate(certificate)
    assert parsed.subject.rfc4514_string() == f"CN={entry['hardware_id'].partition(':')[2]},O=Nord AG"
    assert parsed.issuer == x509.load_der_x509_certificate(issuing.der).subject
    with pytest.raises(InvalidSignature):
        parsed.verify_directly_issued_by(x509.load_der_x509_certificate(issuing.der))
    nobody = made_up_key(KeyAlgorithm.EC_P256, 1).public_key()
    assert parsed.public_key() == nobody
    assert entry["inspections"][0]["certificate_sha256"] == sha256(certificate).hexdigest()
    assert sha256(certificate).hexdigest() not in str(line.entries()[:-1])


def test_the_first_article_is_one_of_the_list_if_there_is_one(small_line: Line) -> None:
    line = small_line
    line.open_run("R3", listed=["serial:Z9", "serial:M5"])
    assert line.entries()[-1]["hardware_id"] == "serial:M5"


def test_a_finding_that_no_waiver_names_refuses_the_run(small_line: Line, tmp_path: Path) -> None:
    line = small_line
    text = (PROFILES / "idevid.toml").read_text().replace('name = "idevid"', 'name = "own"')
    service = line.another_service(catalogue=own(tmp_path, text[: text.index("[[waivers]]")]))
    pinned = service.runs.catalogue.load("own").sha256
    size = line.size()
    with pytest.raises(errors.PolicyRefused, match=r"warning pkix\.certificate_skid_end_entity") as refused:
        opened(line, service, profile="own", profile_sha256=pinned, variables=HARDWARE)
    assert refused.value.rule == "first-article"
    (entry,) = line.entries(size)
    assert (entry["kind"], entry["rule"]) == ("refused", "first-article")
    assert line.get(Run, "R2") is None


def test_a_first_article_that_our_own_rules_refuse_opens_no_run(small_line: Line, tmp_path: Path) -> None:
    """Here: its certificates would be larger than the profile allows."""
    line = small_line
    text = (PROFILES / "vehicle.toml").read_text().replace('name = "vehicle"', 'name = "own"')
    service = line.another_service(catalogue=own(tmp_path, text.replace("1024", "256")))
    pinned = service.runs.catalogue.load("own").sha256
    with pytest.raises(errors.PolicyRefused, match="octets"):
        opened(line, service, profile="own", profile_sha256=pinned)
    assert line.get(Run, "R2") is None


def test_each_constraint_is_tried_and_what_was_refused_is_on_record(line: Line) -> None:
    """SPEC G2: negative tests, of the profile and of every authority above."""
    rules = [
        {"rule": "maker-arc", "under-arc": "1.3.6.1.4.1.32473", "variable": "hardware_type"},
        {"rule": "maker", "equals": "Nord AG", "variable": "organization"},
    ]
    tamper(line.url, ("UPDATE authority SET constraints = %s WHERE id = 'root'", (json.dumps(rules),)))
    entry = opened(line, profile="idevid", variables=HARDWARE | {"organization": "Nord AG"})
    tests = entry["negative_tests"]
    assert {test["rule"] for test in tests} == {"maker-arc", "maker"}
    assert entry["constraints"] == 2
    assert entry["negative_tests_done"] == len(tests) >= 4
    tried = {test["tried"]: test["refused_with"] for test in tests}
    assert tried["1.3.6.1.4.1.32473"] == (
        "hardware_type '1.3.6.1.4.1.32473' is no object identifier under 1.3.6.1.4.1.32473"
    )


def test_every_certificate_of_a_device_has_its_first_article(small_line: Line) -> None:
    """SPEC C5: a run may give each device several certificates."""
    line = small_line
    pinned = line.service.runs.catalogue.load("idevid").sha256
    entry = opened(
        line,
        further_profiles=("idevid",),
        further_sha256=(pinned,),
        variables=HARDWARE | {"organization": "Nord AG"},
    )
    assert [one["profile"] for one in entry["inspections"]] == ["vehicle", "idevid"]


def test_very_many_negative_tests_still_fit_into_an_entry(small_line: Line) -> None:
    line = small_line
    arcs = ", ".join(f'"1.3.6.1.4.1.32473.{number}"' for number in range(1, 600))
    rule = f'[{{"rule": "arcs", "variable": "hardware_type", "under-arc": [{arcs}]}}]'
    tamper(line.url, ("UPDATE authority SET constraints = %s WHERE id = 'root'", (rule,)))
    entry = opened(line, profile="idevid", variables={"hardware_type": "1.3.6.1.4.1.32473.1.1"})
    assert entry["negative_tests_done"] > 1000
    assert [test["rule"] for test in entry["negative_tests"]] == ["arcs"]
