"""The story in docs/recall.md: 50 000 devices are recalled, and relying parties refuse them (SPEC F1).

The fleet is put on record by ``tests.support.recalls.load_fleet``: through the store's own acts, each
certificate signed by the authority's key, but without fifty thousand devices.  From the decision on,
everything is the product: previews, two signatures, acts, CRLs.  The relying party is OpenSSL, which gets its
CRL where the certificate says.
"""

import shutil
import subprocess
import time
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from birthmark.adapters.publication import PublicationDirectory
from birthmark.floor.authorities import Authority, AuthorityStatus
from birthmark.floor.devices import Attempt, Device, DeviceCertificate
from birthmark.floor.locations import Locations, crl_path
from birthmark.floor.recalls import RecallAction, RecallStatus, SelectionKind
from birthmark.floor.revocations import AUTHORITIES, Partitioning, Revocation
from birthmark.pki import crl
from birthmark.pki.issuer import Issuer
from birthmark.pki.revocation import ReasonCode
from birthmark.services.publish import PublicationTerms, Publish
from birthmark.services.shipments import record_shipment
from tests.support.checkers.openssl import crl_verdict
from tests.support.checkers.running import write_pem
from tests.support.checkers.values import Chain, Status
from tests.support.programs import need
from tests.support.realm import ORGANIZATION, ROOT, Line, hierarchy, make_line, open_service
from tests.support.recalls import People, load_fleet, people

STORY = Path(__file__).parents[2] / "docs" / "recall.md"
DEVICES, OTHERS, SHIPPED = 50_000, 20, 30_000
BAD, GOOD = "2026-W47", "2026-W48"
PKI = Locations("http://pki.example.com")


def open_batch(line: Line, run: str, batch: str, quantity: int) -> None:
    """Open a run whose certificates name the CRL of their batch."""
    location = PKI.crl("issuing-1", f"batch.{batch}")
    variables = {"organization": ORGANIZATION, "crl_url": location}
    line.open_run(run, batch=batch, quantity=quantity, partitioning=Partitioning.BATCH, variables=variables)


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Line:
    """A line that made the two batches; its database is copied for each test."""
    folder = tmp_path_factory.mktemp("plant")
    line = make_line(folder, f"sqlite:///{folder / 'line.sqlite'}")
    open_batch(line, "W47-1", BAD, DEVICES)
    open_batch(line, "W48-1", GOOD, OTHERS)
    names = load_fleet(line, "W47-1", DEVICES)
    load_fleet(line, "W48-1", OTHERS, first=DEVICES)
    shipment = record_shipment(line.operator.caller, "ACME-0815", names[:SHIPPED])
    line.service.carry(shipment)
    line.clock.turn(days=2)
    line.close()
    return line


@pytest.fixture
def line(plant: Line, tmp_path: Path) -> Line:
    shutil.copytree(Path(plant.url.removeprefix("sqlite:///")).parent, tmp_path / "plant")
    url = f"sqlite:///{tmp_path / 'plant' / 'line.sqlite'}"
    made = Line(
        url=url, keys=plant.keys, clock=plant.clock, service=open_service(url, plant.keys, plant.clock)
    )
    made.operator, made.station = plant.operator, plant.station
    return made


def publisher(line: Line, www: Path) -> Publish:
    terms = PublicationTerms(
        locations=PKI,
        crl_validity=timedelta(hours=48),
        crl_refresh=timedelta(hours=12),
        crl_alarm=timedelta(hours=24),
        offline_alarm=timedelta(days=14),
        behind=timedelta(minutes=15),
        partitions=True,
        log_entries=False,
    )
    return Publish(
        realm=line.realm,
        store=line.service.store,
        log=line.service.store.log,
        keys=line.keys,
        clock=line.clock,
        publication=PublicationDirectory(www),
        terms=terms,
    )


def certificate(line: Line, number: int) -> DeviceCertificate:
    """Return the certificate of a device of the fleet."""
    device = line.the(Device, f"serial:F{number:011}")
    return line.the(DeviceCertificate, line.the(Attempt, device.attempt).certificate)


def verdict(line: Line, number: int, www: Path, folder: Path, *, days: int = 0) -> Status:
    """Ask OpenSSL about a device, with the CRL its certificate names, as it is published now."""
    leaf = certificate(line, number).der
    points = x509.load_der_x509_certificate(leaf).extensions.get_extension_for_class(
        x509.CRLDistributionPoints
    )
    (point,) = points.value
    assert point.full_name is not None
    path = str(point.full_name[0].value).removeprefix(f"{PKI.base}/")
    chain = Chain(leaf=leaf, between=(hierarchy().issuing,), root=hierarchy().root)
    at = line.clock.at + timedelta(days=days, minutes=1)
    return crl_verdict(chain, [(www / path).read_bytes()], folder, at=at).status


def size(www: Path, authority: str, partition: str = "all") -> int:
    return (www / crl_path(authority, partition)).stat().st_size


def told(octets: int) -> None:
    """Require the story to tell this size, in thousands of octets."""
    assert f"{round(octets / 1000):,} kB".replace(",", " ") in STORY.read_text(), octets


def decide(line: Line) -> People:
    """Close the run, and have two people at hand."""
    three = people(line)
    line.service.carry(line.service.runs.close(three.anna.caller, "W47-1", "keys left the plant"))
    return three


def test_a_batch_is_recalled_from_the_decision_to_the_refusal(line: Line, tmp_path: Path) -> None:
    www = tmp_path / "www"
    publish = publisher(line, www)
    publish.cycle()
    assert verdict(line, 0, www, tmp_path) is Status.GOOD
    assert verdict(line, DEVICES, www, tmp_path) is Status.GOOD
    before = size(www, "issuing-1", f"batch.{BAD}"), size(www, "issuing-1", f"batch.{GOOD}")

    line.clock.turn(minutes=1)
    three = decide(line)
    seen = three.preview(SelectionKind.BATCH, BAD)
    assert (seen.changes, seen.shipped, seen.open_runs) == (DEVICES, SHIPPED, ())
    assert dict(seen.consignments) == {"ACME-0815": SHIPPED}
    assert dict(seen.crls) == {f"issuing-1/batch.{BAD}": DEVICES}
    recall = three.propose(three.order(SelectionKind.BATCH, BAD, RecallAction.REVOKE))
    start, begun = line.size(), time.perf_counter()
    done = three.approve(recall)
    assert time.perf_counter() - begun < 60
    assert (done.status, done.changed) == (RecallStatus.DONE, DEVICES)
    assert line.size() - start == 1 + DEVICES // 1000 + 1

    line.clock.turn(minutes=1)
    built = {one.partition: one for one in publish.cycle().built}
    assert set(built) == {f"batch.{BAD}", "all"}
    assert verdict(line, 0, www, tmp_path) is Status.REVOKED
    assert verdict(line, DEVICES - 1, www, tmp_path) is Status.REVOKED
    assert verdict(line, DEVICES, www, tmp_path) is Status.GOOD
    assert verdict(line, 0, www, tmp_path, days=3) is not Status.GOOD
    after = size(www, "issuing-1", f"batch.{BAD}"), size(www, "issuing-1", f"batch.{GOOD}")
    assert after[1] == before[1]
    assert len(crl_serials(www, BAD)) == DEVICES
    told(after[0])
    told(after[0] + size(www, "issuing-1"))
    line.close()


def crl_serials(www: Path, batch: str) -> set[int]:
    octets = (www / crl_path("issuing-1", f"batch.{batch}")).read_bytes()
    return {one.serial_number for one in x509.load_der_x509_crl(octets)}


def test_a_batch_with_an_authority_of_its_own_goes_with_one_line(line: Line, tmp_path: Path) -> None:
    """The same fleet, if issuing-1 had been made for this batch: the CRL above it is one line longer."""
    www = tmp_path / "www"
    publish = publisher(line, www)
    publish.cycle()
    publish.take_in(root_crl(line))
    before = size(www, "root")
    assert ca_verdict(line, www, tmp_path) == ""
    line.clock.turn(minutes=1)
    three = decide(line)
    seen = three.preview(SelectionKind.AUTHORITY, "issuing-1")
    assert (seen.certificates, seen.changes, seen.shipped) == (DEVICES + OTHERS, 1, SHIPPED)
    assert dict(seen.crls) == {f"root/{AUTHORITIES}": 1}
    assert any("signed in a ceremony" in note for note in seen.notes)
    done = three.recall(SelectionKind.AUTHORITY, "issuing-1", reason=ReasonCode.CA_COMPROMISE)
    assert (done.status, done.changed) == (RecallStatus.DONE, 1)
    assert line.the(Authority, "issuing-1").status is AuthorityStatus.REVOKED
    line.clock.turn(minutes=1)
    publish.take_in(root_crl(line))
    after = size(www, "root")
    said = ca_verdict(line, www, tmp_path)
    assert "certificate revoked" in said, said
    grown = after - before
    assert 40 <= grown <= 64, grown  # one line, its frame, and an ECDSA signature of 70 to 72 octets
    assert after < 1000
    assert line_size(line) == 53
    assert "a line of 53 octets" in STORY.read_text()
    line.close()


def line_size(line: Line) -> int:
    with line.service.store.octets(Revocation, "entry", prefix=f"root/{AUTHORITIES}/") as octets:
        return octets.size


def root_crl(line: Line) -> bytes:
    """Sign the root's CRL of what is on record, as its ceremony does."""
    terms = crl.CRLTerms(
        issuer=Issuer.from_certificate(ROOT, hierarchy().root),
        scope=crl.CRLScope(),
        number=crl.crl_number(line.clock.at),
        this_update=line.clock.at,
        next_update=line.clock.at + timedelta(days=90),
    )
    with line.service.store.octets(Revocation, "entry", prefix=f"root/{AUTHORITIES}/") as octets:
        return crl.assemble_crl(terms, octets.pieces(), line.keys.sign)


def ca_verdict(line: Line, www: Path, folder: Path) -> str:
    """Return what OpenSSL has against a device when it asks about the whole path (``-crl_check_all``)."""
    crls = [(www / crl_path(name)).read_bytes() for name in ("root", "issuing-1")]
    batch = (www / crl_path("issuing-1", f"batch.{BAD}")).read_bytes()
    command = [
        need("openssl"), "verify", "-x509_strict", "-crl_check_all", "-extended_crl",
        "-attime", str(int(line.clock.at.timestamp()) + 1),
        "-CRLfile", write_pem(folder / "all.pem", *crls, batch, label="X509 CRL"),
        "-CAfile", write_pem(folder / "root.pem", hierarchy().root),
        "-untrusted", write_pem(folder / "issuing.pem", hierarchy().issuing),
        write_pem(folder / "device.pem", certificate(line, 0).der),
    ]  # fmt: skip
    answered = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if answered.returncode == 0 else answered.stderr
