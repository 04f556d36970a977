"""A ceremony's record is checked by anybody, offline, and shows what was changed (SPEC A3)."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from birthmark import errors
from birthmark.floor.ceremonies import CeremonyRecord
from birthmark.ledger.checkpoint import VerifierKey
from birthmark.ledger.entry import canonical
from birthmark.pki import profiles
from birthmark.pki.profiles import Profile
from birthmark.services.ceremony_file import parse
from birthmark.services.ceremony_pages import render_html
from birthmark.services.ceremony_record import Record, Verified, pages, verify
from birthmark.services.ceremony_steps import Known
from tests.support.ceremonies import Person, carried_out, sealed
from tests.support.ceremony_files import issuing_text
from tests.support.realm import Hands, Line, hierarchy, make_line


@dataclass(frozen=True, slots=True, kw_only=True)
class Paper:
    """All that an auditor gets."""

    file: bytes
    record: bytes
    text: str
    html: str
    proof: str
    vkey: VerifierKey

    def verify(self, load: Callable[[str], Profile] = profiles.load) -> Verified:
        return verify(self.file, self.record, (self.text, self.html), self.proof, self.vkey, load)

    def altered(self, change: Callable[[dict[str, object]], None]) -> "Paper":
        """Return the paper with another record, its pages rendered again, signatures as they were."""
        record = Record.decode(self.record)
        body = dict(record.body)
        change(body)
        return replace(self, record=replace(record, body=body).encode())


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    return make_line(
        Path(tmp_path_factory.mktemp("line")), f"sqlite:///{tmp_path_factory.mktemp('db')}/line.db"
    )


@pytest.fixture(scope="module")
def paper(line: Line) -> Paper:
    row = line.the(CeremonyRecord, "acme-0")
    text, html = pages(hierarchy().progress, hierarchy().record)
    proof = line.service.store.token(row.leaf)
    return Paper(file=row.file, record=row.record, text=text, html=html, proof=proof, vkey=line.vkey)


def test_an_untouched_record_verifies(paper: Paper) -> None:
    found = paper.verify()
    assert found.record.signers == ("carla",)
    assert set(found.progress.certificates) == {"root", "issuing-1"}
    assert found.notes == ()


def test_the_pages_say_in_words_what_the_record_says(paper: Paper) -> None:
    issuing = hierarchy().progress.keys["issuing-1"]
    for page in (paper.text, paper.html):
        for said in (
            hierarchy().record.sha256,
            hierarchy().progress.ceremony.sha256,
            issuing.attributes.fingerprint,
            "CKA_SIGN",
            "CN=acme Issuing 1 TEST,O=Acme Motors TEST",
            "carla",
            "birthmark 0",
            "development (software)",
        ):
            assert said in page, said


def test_the_page_is_escaped() -> None:

    anna = Person("anna")
    text = issuing_text([anna], ceremony="acme-x").partition("steps:")[0]
    text = text.replace('purpose: "realm"', 'purpose: "<script>alert(1)</script>"')
    text += "steps:\n  - retire: issuing-1\n    reason: a & b\n"

    known = Known(authorities=hierarchy().progress.authorities)
    progress = carried_out(parse(text.encode()), [anna], {}, Hands(), known=known)
    record = sealed(progress, [anna], Hands())
    html = render_html(progress, record.body, record.sha256, record.signers)
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "a &amp; b" in html


def _set(name: str, value: object, body: dict[str, object]) -> None:
    assert name in body
    body[name] = value


def _drop_event(body: dict[str, object]) -> None:
    body["events"] = list(body["events"])[:-1]  # type: ignore[call-overload]  # JSON, as the test knows it


def _change_event(field: str, value: object, body: dict[str, object]) -> None:
    events = [dict(event) for event in body["events"]]  # type: ignore[attr-defined]  # JSON, as the test knows it
    next(event for event in events if field in event)[field] = value
    body["events"] = events


@pytest.mark.parametrize(
    "change",
    [
        functools.partial(_set, "purpose", "another"),
        functools.partial(_set, "performed_at", "2026-01-01T00:00:00.000Z"),
        functools.partial(_set, "software", "birthmark 9"),
        functools.partial(_set, "stores", []),
        functools.partial(_set, "required", 0),
        functools.partial(_set, "events", []),
        _drop_event,
        functools.partial(_change_event, "attributes", {}),
        functools.partial(_change_event, "certificate", "AAAA"),
        functools.partial(_change_event, "at", "2020-01-01T00:00:00.000Z"),
        functools.partial(_change_event, "custodians", []),
    ],
)
def test_a_changed_record_is_found(paper: Paper, change: Callable[[dict[str, object]], None]) -> None:
    with pytest.raises(errors.Refusal):
        paper.altered(change).verify()


def test_another_file_is_found(paper: Paper) -> None:
    with pytest.raises(errors.IntegrityFailure, match="another file"):
        replace(paper, file=paper.file + b"# one more line\n").verify()


@pytest.mark.parametrize("name", ["text", "html"])
def test_a_changed_page_is_found(paper: Paper, name: str) -> None:
    page: str = getattr(paper, name)
    changed = page.replace("quality", "mallory")
    assert changed != page
    with pytest.raises(errors.IntegrityFailure, match=f"the record's {name}"):
        replace(paper, **{name: changed}).verify()  # type: ignore[arg-type]  # arguments in a mapping have one type


def test_signatures_of_others_are_found(paper: Paper) -> None:
    record = Record.decode(paper.record)
    forged = replace(record, signatures=(("carla", Person("carla").sign(record.message)),))
    with pytest.raises(errors.ProofFailed):
        replace(paper, record=forged.encode()).verify()
    with pytest.raises(errors.NotPermitted):
        replace(paper, record=replace(record, signatures=()).encode()).verify()


def test_a_proof_of_something_else_or_of_another_log_is_found(paper: Paper, line: Line) -> None:
    with pytest.raises(errors.IntegrityFailure, match="its kind is another"):
        replace(paper, proof=line.service.store.token(1)).verify()
    other = paper.proof.replace(line.realm.origin, "other/log")
    with pytest.raises(errors.Refusal):
        replace(paper, proof=other).verify()


def test_a_record_whose_profiles_changed_since_still_verifies_and_says_so(paper: Paper) -> None:
    def later(name: str) -> Profile:
        return replace(profiles.load(name), sha256="00" * 32, max_der_size=256)

    notes = paper.verify(later).notes
    assert len(notes) == 2
    assert all("was not built again" in note for note in notes)


def test_what_is_no_record_is_refused(paper: Paper) -> None:
    for octets in (b"", b"{}", b"[]", canonical({"record": {}, "signatures": []}), paper.record + b" "):
        with pytest.raises(errors.MalformedRequest):
            replace(paper, record=octets).verify()
