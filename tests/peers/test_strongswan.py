"""strongSwan's ``pki --estca`` and ``--est``: an EST client of others, with a TLS stack of its own (SPEC H1).

It speaks TLS 1.2 unless it is told to go further, reads base64 in one line only, and needs the length of each
answer.  With ``--cert`` it renews; without, it enrols by a name and a one-time code.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from birthmark.pki.certificates import Certificate, from_pem
from birthmark.pki.profiles import load
from tests.support.enrolling import LOCAL, Bench, DeviceRealm, code_for, device_realm, est, operational_run
from tests.support.gateways import Vehicle, vehicle
from tests.support.lint import pkilint_findings, unwaived
from tests.support.programs import need
from tests.support.server import RUN, Server, until

ONE_BY_ONE = "RUN-2"
"""A run whose requests a person looks at."""


@pytest.fixture(scope="module")
def realm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeviceRealm]:
    made = device_realm(tmp_path_factory.mktemp("strongswan") / "realm")
    operational_run(made.realm)
    made.realm.open_run(ONE_BY_ONE, 100, "--approval")
    with Server(realm=made.realm) as server:
        yield made
        assert "Traceback" not in server.told()
    said = [entry for entry in made.realm.entries() if entry.get("request") in ("connection", "handshake")]
    assert said == [], "its farewell is a fatal alert in TLS 1.2, and no refusal"
    made.realm.check()


@pytest.fixture(params=["1.2", "1.3"])
def tls(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """strongSwan's settings; without any it offers TLS 1.2."""
    settings = tmp_path / "strongswan.conf"
    wanted = "" if request.param == "1.2" else "libtls {\n  version_min = 1.3\n  version_max = 1.3\n}\n"
    settings.write_text(wanted, encoding="ascii")
    return settings


@pytest.fixture
def bench(tmp_path: Path, request: pytest.FixtureRequest) -> Bench:
    return Bench(folder=tmp_path, name=f"SWAN{abs(hash(request.node.name)) % 10**9}")


def command(realm: DeviceRealm, *arguments: str | Path) -> list[str]:
    program = need("pki", "strongswan-pki")
    return [
        program,
        str(arguments[0]),
        "--url",
        realm.url,
        "--cacert",
        str(realm.root),
        *map(str, arguments[1:]),
    ]


def pki(realm: DeviceRealm, tls: Path, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    """Run strongSwan's pki against the device plane."""
    return subprocess.run(
        command(realm, *arguments), capture_output=True, check=False, timeout=60,
        env={**os.environ, "STRONGSWAN_CONF": str(tls)},
    )  # fmt: skip


def requested(bench: Bench, dn: str, *, key: str = "key.pem") -> Path:
    """Make a request with strongSwan, for a key of openssl's."""
    bench.request(key)
    done = subprocess.run(
        [
            need("pki", "strongswan-pki"), "--req", "--type", "ecdsa", "--in", str(bench.file(key)),
            "--dn", dn,
        ],
        capture_output=True, check=True,
    )  # fmt: skip
    path = bench.file("swan.csr")
    path.write_bytes(done.stdout)
    return path


def issued(done: subprocess.CompletedProcess[bytes]) -> Certificate:
    assert done.returncode == 0, done.stderr.decode()
    certificate = Certificate.from_der(done.stdout)
    assert unwaived(pkilint_findings(certificate.der), load("vehicle")) == []
    return certificate


def chain_of(realm: DeviceRealm, run: str) -> tuple[bytes, ...]:
    return from_pem(est(realm, f"{run}/cacerts").certificates().decode("ascii"))


def test_it_fetches_the_authorities(realm: DeviceRealm, tls: Path, tmp_path: Path) -> None:
    done = pki(realm, tls, "--estca", "--caout", tmp_path / "ca.crt", "--force")
    assert done.returncode == 0, done.stderr.decode()
    (root,) = from_pem(realm.root.read_text(encoding="ascii"))
    found = {path.read_bytes() for path in tmp_path.glob("*.crt")}
    assert root in found
    assert found == set(from_pem(est(realm, "cacerts").certificates().decode("ascii")))
    assert len(found) >= 2


def test_it_enrols_by_a_one_time_code(realm: DeviceRealm, tls: Path, bench: Bench) -> None:
    name = bench.name.lower()
    code = code_for(realm.realm, name, f"serial:{bench.name}", RUN)
    request = requested(bench, f"O=Acme Motors, CN={bench.name}")
    done = pki(realm, tls, "--est", "--in", request, "--userpass", f"{name}:{code}")
    certificate = issued(done)
    assert bench.name in certificate.subject
    again = pki(realm, tls, "--est", "--in", request, "--userpass", f"{name}:{code}")
    assert again.stdout == done.stdout, "the same request gets the same answer"
    other = requested(bench, f"CN={bench.name}", key="another.pem")
    refused = pki(realm, tls, "--est", "--in", other, "--userpass", f"{name}:{code}")
    assert (refused.returncode != 0, refused.stdout) == (True, b"")
    assert realm.realm.entries()[-1]["code"] == "idempotency-key-reused"


def test_a_code_that_is_wrong_gets_nothing(realm: DeviceRealm, tls: Path, bench: Bench) -> None:
    code_for(realm.realm, bench.name, f"serial:{bench.name}", RUN)
    request = requested(bench, f"CN={bench.name}")
    refused = pki(realm, tls, "--est", "--in", request, "--userpass", f"{bench.name}:{'a' * 26}")
    assert (refused.returncode != 0, refused.stdout) == (True, b"")
    assert realm.realm.entries()[-1]["code"] == "unauthenticated"


def test_it_renews_what_it_has_and_the_old_one_ends_when_the_new_one_is_used(
    realm: DeviceRealm, tls: Path, bench: Bench, tmp_path: Path
) -> None:
    authority = _pem_of_issuing(realm)
    born = vehicle(realm.realm, bench.name, tmp_path)
    enrolled = est(realm, f"{LOCAL}/simpleenroll", bench.request(), who=born)
    first = bench.hold(enrolled.certificates(), chain=authority)
    request = requested(bench, f"O=Acme Motors, CN={bench.name}", key="next.pem")
    issuing = bench.file("issuing.crt")
    issuing.write_bytes(authority)
    held = ("--cert", first.certificate, "--key", first.key, "--cacert", issuing)
    certificate = issued(pki(realm, tls, "--est", "--in", request, *held))
    assert certificate.serial_number != first.parsed.serial_number
    assert _revoked(realm, first) is False, "it is good until the new one is used"

    bench.file("next.der").write_bytes(certificate.der)
    second = bench.hold(certificate.pem.encode(), "next.pem", chain=authority)
    request = requested(bench, f"O=Acme Motors, CN={bench.name}", key="third.pem")
    held = ("--cert", second.certificate, "--key", second.key, "--cacert", issuing)
    issued(pki(realm, tls, "--est", "--in", request, *held))
    assert _revoked(realm, first) is True

    renamed = requested(bench, "O=Acme Motors, CN=SOMEBODY", key="fourth.pem")
    refused = pki(realm, tls, "--est", "--in", renamed, *held)
    assert (refused.returncode != 0, refused.stdout) == (True, b"")
    assert realm.realm.entries()[-1]["rule"] == "renewal-names"


def _begins(realm: DeviceRealm, tls: Path, bench: Bench) -> tuple[subprocess.Popen[bytes], str]:
    """Have it ask where a person looks; return it as it waits, and what waits."""
    name = bench.name
    code = code_for(realm.realm, name, f"serial:{name}", ONE_BY_ONE)
    words = command(
        realm, "--est", "--in", requested(bench, f"CN={name}"), "--userpass", f"{name}:{code}",
        "--interval", "1", "--maxpolltime", "100",
    )  # fmt: skip
    polling = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "STRONGSWAN_CONF": str(tls)}
    )

    def waiting() -> list[str]:
        entries = realm.realm.entries()
        return [e["enrolment"] for e in entries if e["kind"] == "enrolment-waiting" and name in e["device"]]

    try:
        (enrolment,) = until(waiting)
    except BaseException:
        _end(polling)
        raise
    return polling, enrolment


def _end(polling: subprocess.Popen[bytes]) -> None:
    polling.kill()
    polling.communicate()


def test_it_is_told_to_wait_while_a_person_has_not_looked(
    realm: DeviceRealm, tls: Path, bench: Bench
) -> None:
    polling, enrolment = _begins(realm, tls, bench)
    assert polling.poll() is None, "it waits"
    _end(polling)
    realm.realm.run("enrolment", "approve", enrolment, "--reason", "it is on my desk")
    words = [str(word) for word in polling.args]  # type: ignore[union-attr]  # it was given a list
    again = subprocess.run(
        words, capture_output=True, check=False, timeout=60, env={**os.environ, "STRONGSWAN_CONF": str(tls)}
    )
    assert bench.name in issued(again).subject


@pytest.mark.soak
def test_it_asks_again_by_itself(realm: DeviceRealm, tls: Path, bench: Bench) -> None:
    """After half a minute: Retry-After counts, and not its own interval."""
    polling, enrolment = _begins(realm, tls, bench)
    try:
        realm.realm.run("enrolment", "approve", enrolment, "--reason", "it is on my desk")
        out, told = polling.communicate(timeout=60)
    finally:
        _end(polling)
    assert bench.name in issued(subprocess.CompletedProcess([], polling.returncode, out, told)).subject


def _pem_of_issuing(realm: DeviceRealm) -> bytes:
    (root,) = from_pem(realm.root.read_text(encoding="ascii"))
    (issuing,) = (der for der in chain_of(realm, RUN) if der != root)
    return Certificate.from_der(issuing).pem.encode("ascii")


def _revoked(realm: DeviceRealm, holder: Vehicle) -> bool:
    serial = holder.parsed.serial_hex
    return any(serial in entry.get("certificates", ()) for entry in realm.realm.entries())
