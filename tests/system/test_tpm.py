"""Devices with a TPM through the whole of it: a realm, the server, the command line (SPEC D6)."""

import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from birthmark import errors
from birthmark.edge.station import Station
from birthmark.edge.station.attesting import attest_body
from birthmark.edge.station.elements.tpm import IAK_CERTIFICATE, IDEVID_CERTIFICATE, TPMElement
from birthmark.ledger import proof as tlog
from birthmark.ledger.checkpoint import VerifierKey
from birthmark.secret import SecretBytes
from tests.edge.http.test_openapi import Judge
from tests.support.postgresql import LocalPostgreSQL
from tests.support.programs import need, need_extra
from tests.support.server import Http, RealmDirectory, Server, birthmark, copy_realm, tls_context
from tests.support.swtpm import SoftwareTPM, software_tpm
from tests.support.tpms import NAME, PROFILES, csrs_of, device_of, profile_text, wipe

TPM_RUN = "TPM-1"


@pytest.fixture(scope="module")
def stranger() -> Iterator[SoftwareTPM]:
    """A TPM of a maker that the line does not accept."""
    with software_tpm() as made:
        yield made


@pytest.fixture(params=["sqlite", "postgresql"])
def realm(request: pytest.FixtureRequest, tmp_path: Path, tpm: SoftwareTPM) -> RealmDirectory:
    """A realm with a run of devices with TPMs of one maker, on each database."""
    need_extra("tpm2_pytss", "tpm")
    cluster: LocalPostgreSQL | None = None
    if request.param == "postgresql":
        cluster = request.getfixturevalue("postgresql")
    made = copy_realm(tmp_path / "realm", cluster)
    made.settings.write_text('elements-directory = "elements"\n' + made.settings.read_text())
    (made.path / "elements").mkdir(mode=0o700)
    file = tmp_path / f"{NAME}.toml"
    file.write_text(profile_text(tpm))
    made.run("element", "add", file)
    made.open_run(
        TPM_RUN, 10, "--profile", PROFILES[0], "--further", PROFILES[1], "--element", NAME, "--born"
    )
    wipe(tpm)
    return made


def provision(
    realm: RealmDirectory, tpm: SoftwareTPM, hardware_id: str, *options: str
) -> subprocess.CompletedProcess[str]:
    return birthmark(
        "provision", "--station", realm.station(), "--run", TPM_RUN, "--hardware-id", hardware_id,
        "--element", f"tpm:{tpm.tcti}?beside={realm.path.parent / hardware_id}", "--json", *options,
        check=False,
    )  # fmt: skip


def test_a_tpm_goes_from_its_makers_certificate_to_its_release(
    realm: RealmDirectory, tpm: SoftwareTPM, tmp_path: Path
) -> None:
    with Server(realm=realm):
        done = provision(realm, tpm, "T1")
        assert done.returncode == 0, done.stderr
        again = provision(realm, tpm, "T1")
        assert (again.returncode, "its identity stays" in again.stderr) == (1, True), again.stderr
    shown = json.loads(done.stdout)
    vkey = VerifierKey.parse((realm.path / "log.vkey").read_text(encoding="ascii").strip())
    record = tlog.verify(shown["token"], vkey)["record"]
    assert isinstance(record, dict)
    assert set(record["tpm"]) == {
        "ek_certificate_sha256", "ek_spki_sha256", "iak_name", "idevid_name", "certify_sha256"
    }  # fmt: skip
    # Others read the TPM's memory, and find certificates of the realm for the keys that are in it.
    for index, handle in ((IDEVID_CERTIFICATE, 0x81020000), (IAK_CERTIFICATE, 0x81020001)):
        public = tmp_path / "public.pem"
        tools(tpm, "tpm2_readpublic", "-c", hex(handle), "-f", "pem", "-o", str(public))
        der = tools(tpm, "tpm2_nvread", hex(index), "-C", "o")
        certificate = x509.load_der_x509_certificate(der)
        assert openssl("x509", "-pubkey", "-noout", stdin=der) == public.read_bytes()
        chain, leaf = tmp_path / "T1" / "chain.pem", tmp_path / "leaf.pem"
        leaf.write_bytes(certificate.public_bytes(Encoding.PEM))
        openssl("verify", "-CAfile", str(realm.path / "root.crt"), "-untrusted", str(chain), str(leaf))
    assert (tmp_path / "T1" / "release.tlog-proof").read_text() == shown["token"]
    realm.check()


def test_a_tpm_of_another_maker_gets_nothing(realm: RealmDirectory, stranger: SoftwareTPM) -> None:
    with Server(realm=realm):
        done = provision(realm, stranger, "T2")
    assert done.returncode == 1, done.stdout
    assert "no path to an anchor" in done.stderr
    last = realm.entries()[-1]
    assert (last["kind"], last["request"], last["rule"]) == ("refused", "attest", "ek-certificate")
    assert not [entry for entry in realm.entries() if entry["kind"] == "device-issued"]


class Torn(TPMElement):
    """A device whose power is cut when its first certificate comes."""

    cut = False

    def install(self, *, certificate: bytes, chain: Sequence[bytes], private_key: SecretBytes | None) -> None:
        if self.cut:
            raise errors.Unavailable("the device has no power")
        super().install(certificate=certificate, chain=chain, private_key=private_key)


def test_a_device_that_was_cut_off_after_its_issue_goes_on_with_the_same_attestation(
    realm: RealmDirectory, tpm: SoftwareTPM, tmp_path: Path
) -> None:
    """What the TPM answered is written down with the request, which is sent again as it was."""
    from birthmark.edge.station.elements.tpm_commands import Chip  # noqa: PLC0415  # an extra

    with Server(realm=realm), Station(realm.station()) as station:
        element = Torn(Chip(tpm.tcti), str(tmp_path / "beside"))
        try:
            element.cut = True
            with pytest.raises(errors.Unavailable, match="no power"):
                station.provision(TPM_RUN, "T3", element)
            element.cut = False
            release = station.provision(TPM_RUN, "T3", element)
        finally:
            element.close()
    entries = [entry for entry in realm.entries() if entry.get("device") == "serial:T3"]
    assert [entry["kind"] for entry in entries] == [
        "attestation-begun", "device-issued", "answer-repeated", "device-released"
    ]  # fmt: skip
    assert release.attempt == entries[0]["attestation"]
    assert not list(realm.station().glob("pending-*"))
    realm.check()


def test_a_gang_has_a_tpm_each_and_a_stranger_among_them_is_refused_alone(
    realm: RealmDirectory, tpm: SoftwareTPM, stranger: SoftwareTPM, tmp_path: Path
) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with (
        Server(realm=realm),
        Station(realm.station()) as station,
        device_of(tpm, tmp_path / "one") as one,
        device_of(stranger, tmp_path / "two") as two,
    ):
        results = station.provision_gang(TPM_RUN, [("T4", one, False), ("T5", two, False)])
    assert not isinstance(results[0], errors.Refusal)
    assert isinstance(results[1], errors.PolicyRefused)


def test_the_answer_to_an_attest_request_is_as_documented(
    realm: RealmDirectory, tpm: SoftwareTPM, tmp_path: Path
) -> None:
    with Server(realm=realm) as server, device_of(tpm, tmp_path) as element:
        csrs_of(element, "T6")
        body = attest_body("T6", element.endorsed())
        with Http(server.address, tls_context(realm.station())) as client:
            judge = Judge(client.get("/openapi.json").json)
            path, run = "/v1/runs/{run}/attest", f"/v1/runs/{TPM_RUN}/attest"
            good = judge.take("post", path, client.post(run, body))
            judge.take("post", path, client.post(run, body | {"ek_certificate": body["iak"]}))
            judge.take("post", path, client.post(run, body | {"iak": body["idevid"]}))
            judge.take("post", path, client.post(run, {}))
    assert good.status == 200
    assert {status for _, _, status in judge.seen} == {200, 400, 422}


def tools(tpm: SoftwareTPM, program: str, *arguments: str) -> bytes:
    """Run a program of tpm2-tools and return what it says."""
    command = [need(program, "tpm2-tools"), "-T", tpm.tcti, *arguments]
    return subprocess.run(command, check=True, capture_output=True, timeout=30).stdout


def openssl(*arguments: str, stdin: bytes = b"") -> bytes:
    command = [need("openssl"), *arguments]
    return subprocess.run(command, check=True, capture_output=True, input=stdin, timeout=30).stdout
