"""CMP as OpenSSL speaks it, against the served program (SPEC H1): every message that its client can send."""

import itertools
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pyasn1.codec.der.decoder import decode  # type: ignore[import-untyped]  # it has no types
from pyasn1_alt_modules import rfc4210  # type: ignore[import-untyped]  # nor has it

from birthmark.pki.certificates import Certificate
from birthmark.pki.profiles import load
from tests.support.cmpclient import CMPDevice, cmp_device
from tests.support.enrolling import DeviceRealm, code_for, device_realm, operational_run
from tests.support.lint import pkilint_findings, unwaived
from tests.support.postgresql import LocalPostgreSQL
from tests.support.programs import need
from tests.support.server import RUN, Server, until

SERIAL = "/serialNumber=D1"


@contextmanager
def served(
    tmp_path: Path, cluster: LocalPostgreSQL | None = None, **settings: object
) -> Iterator[tuple[DeviceRealm, Server, CMPDevice]]:
    plane = device_realm(tmp_path / "realm", cluster, **settings)
    with Server(realm=plane.realm) as server:
        yield plane, server, cmp_device(plane, tmp_path / "device")


def code(plane: DeviceRealm, name: str = "boot", device: str = "serial:D1", run: str = RUN) -> list[str]:
    """Return the options by which a device shows a one-time code."""
    return ["-ref", name, "-secret", f"pass:{code_for(plane.realm, name, device, run)}"]


def operational(plane: DeviceRealm, *options: str) -> None:
    variable = ["--profile", "ldevid", "--variable", "hardware_type=1.3.6.1.4.1.32473.1"]
    operational_run(plane.realm, "FIELD", *variable, *options)


def proves(plane: DeviceRealm, certificate: Path, key: Path) -> str:
    """Pass the gate with curl and openssl; return the release token, or "" where a handshake was enough."""
    show = ["--silent", "--show-error", "--fail-with-body", "--cacert", str(plane.root)]
    show += ["--cert", str(certificate), "--key", str(key), f"{plane.url}/v1/proof"]
    message = subprocess.run([need("curl"), *show], check=True, capture_output=True).stdout
    if not message:
        return ""
    signed = subprocess.run(
        [need("openssl"), "dgst", "-sha256", "-sign", str(key)],
        input=message,
        check=True,
        capture_output=True,
    ).stdout
    posted = subprocess.run(
        [need("curl"), "--data-binary", "@-", *show], input=signed, check=True, capture_output=True
    )
    return posted.stdout.decode()


def entries(plane: DeviceRealm, kind: str) -> list[dict[str, Any]]:
    return [dict(one) for one in plane.realm.entries() if one["kind"] == kind]


def refusals(plane: DeviceRealm) -> list[str]:
    return [str(one.get("rule", one["code"])) for one in entries(plane, "refused")]


def released(plane: DeviceRealm, device: CMPDevice) -> tuple[Path, Path]:
    """Bring the device through the gate by a code; return its identity and the key."""
    key = device.key("idevid")
    said = device.cmp("ir", *code(plane), "-newkey", key, "-subject", SERIAL, path=f"/p/{RUN}", out="idevid")
    assert said.got.der
    assert proves(plane, said.certificate, key).startswith("c2sp.org/tlog-proof@v1\n")
    return said.certificate, key


@pytest.fixture(params=["sqlite", "postgresql"])
def cluster(request: pytest.FixtureRequest) -> LocalPostgreSQL | None:
    """Both databases."""
    if request.param == "sqlite":
        return None
    found: LocalPostgreSQL = request.getfixturevalue("postgresql")
    return found


def test_a_device_enrols_by_a_code_passes_the_gate_and_goes_on_in_the_field(
    tmp_path: Path, cluster: LocalPostgreSQL | None
) -> None:
    """ir under a MAC, the gate, cr and kur by signature, rr: the whole life, by somebody else's client."""
    with served(tmp_path, cluster) as (plane, _, device):
        operational(plane)
        identity, key = released(plane, device)
        assert [one["record"]["client"] for one in entries(plane, "device-released")] == ["device:serial:D1"]
        shows: list[str | Path] = ["-cert", identity, "-key", key]
        first_key = device.key("first")
        first = device.cmp(
            "cr", *shows, "-newkey", first_key, "-subject", SERIAL, path="/p/FIELD/certification", out="first"
        )
        assert unwaived(pkilint_findings(first.got.der), load("ldevid")) == []
        assert [one["by"] for one in entries(plane, "local-proved")] == ["confirmation"]
        second_key = device.key("second")
        second = device.cmp(
            "kur", "-cert", first.certificate, "-key", first_key, "-newkey", second_key, out="second"
        )
        superseded = entries(plane, "local-proved")[-1]["certificates"]
        assert superseded == [first.got.serial_hex], "confirmed, and only then"
        assert second.got.subject_public_key_info != first.got.subject_public_key_info
        gone = device.cmp(
            "rr",
            "-cert",
            second.certificate,
            "-key",
            second_key,
            "-oldcert",
            second.certificate,
            "-revreason",
            "5",
        )
        assert gone.code == 0, gone.text
        assert entries(plane, "local-revoked")[0]["certificates"] == [second.got.serial_hex]
        refused = device.cmp("rr", *shows, "-oldcert", identity)
        assert refused.code != 0
        assert "is an identity: people recall it" in refused.text
        plane.realm.check()


def test_pkcs10_implicit_confirmation_and_what_can_be_asked(tmp_path: Path) -> None:
    with served(tmp_path) as (plane, _, device):
        operational(plane)
        identity, key = released(plane, device)
        shows: list[str | Path] = ["-cert", identity, "-key", key]
        mine = device.key("mine")
        csr = device.csr(mine, SERIAL)
        said = device.cmp("p10cr", *shows, "-csr", csr, path="/p/FIELD/pkcs10", out="mine")
        assert said.got.der
        assert len(entries(plane, "local-proved")) == 1
        other = device.key("other")
        implicit = device.cmp(
            "cr",
            *shows,
            "-newkey",
            other,
            "-subject",
            SERIAL,
            "-implicit_confirm",
            path="/p/FIELD",
            out="other",
        )
        assert implicit.got.der
        assert len(entries(plane, "local-proved")) == 1, "nobody has used it or confirmed it"
        assert proves(plane, implicit.certificate, other) == ""
        assert len(entries(plane, "local-proved")) == 2
        for what, path in (
            ("caCerts", "getcacerts"),
            ("certReqTemplate", "getcertreqtemplate"),
            ("rootCaCert", "getrootupdate"),
        ):
            asked = device.cmp("genm", *shows, "-infotype", what, path=f"/p/FIELD/{path}")
            assert asked.code == 0 or "unknown" in asked.text.lower(), asked.text
        plane.realm.check()


def test_a_certificate_that_nobody_confirms_is_revoked_also_after_a_restart(tmp_path: Path) -> None:
    with served(tmp_path, confirm_seconds=2) as (plane, server, device):
        operational(plane)
        identity, key = released(plane, device)
        shows: list[str | Path] = ["-cert", identity, "-key", key]
        asks: list[str | Path] = ["-subject", SERIAL, "-newkey"]
        kept = device.cmp("cr", *shows, *asks, device.key("kept"), path="/p/FIELD", out="kept")
        lost = device.cmp(
            "cr", *shows, *asks, device.key("lost"), "-disable_confirm", path="/p/FIELD", out="lost"
        )
        assert (kept.code, lost.code) == (0, 0), lost.text
        server.restart()  # what is open is learnt again
        (rejected,) = until(lambda: entries(plane, "local-rejected"))
        assert rejected["certificates"] == [lost.got.serial_hex]
        assert rejected["actor"] == "realm:device-plane"
        again = device.cmp(
            "kur", "-cert", kept.certificate, "-key", device.folder / "kept.key",
            "-newkey", device.key("next"), out="next",
        )  # fmt: skip
        assert again.got.der, "the one before was never in doubt"
        gone = device.cmp(
            "kur",
            "-cert",
            lost.certificate,
            "-key",
            device.folder / "lost.key",
            "-newkey",
            device.key("no"),
            out="no",
        )
        assert gone.code != 0
        assert "is revoked" in gone.text
        plane.realm.check()


def test_a_device_on_the_line_that_confirms_nothing_is_held(tmp_path: Path) -> None:
    with served(tmp_path, confirm_seconds=2) as (plane, _, device):
        said = device.cmp(
            "ir",
            *code(plane),
            "-newkey",
            device.key("k"),
            "-subject",
            SERIAL,
            "-disable_confirm",
            path=f"/p/{RUN}",
        )
        assert said.got.der
        (held,) = until(lambda: entries(plane, "device-held"))
        assert held["certificates"] == [said.got.serial_hex]
        assert held["reason"] == "the client did not confirm its certificate in time"
        plane.realm.check()


def test_who_may_not_is_told_why_in_cmp(tmp_path: Path) -> None:
    with served(tmp_path) as (plane, _, device):
        operational(plane)
        key = device.key("k")
        asks: list[str | Path] = ["-newkey", key, "-subject", SERIAL]
        shown = code(plane)
        wrong = device.cmp("ir", "-ref", "boot", "-secret", "pass:nonsense", *asks, path=f"/p/{RUN}")
        assert wrong.code != 0
        assert "badMessageCheck" in wrong.text
        nobody = device.cmp("ir", "-ref", "nobody", *shown[2:], *asks, path=f"/p/{RUN}")
        assert nobody.code != 0
        other = device.cmp("ir", *shown, "-newkey", key, "-subject", "/serialNumber=D2", path=f"/p/{RUN}")
        assert "names D2, not D1" in other.text
        unheard = device.cmp("ir", *shown, *asks, path="/p/NO-RUN")
        assert "there is no run NO-RUN" in unheard.text
        raverified = device.cmp("ir", *shown, *asks, "-popo", "0", path=f"/p/{RUN}")
        assert "badPOP" in raverified.text
        plain = device.cmp("ir", *asks, "-unprotected_requests", "-unprotected_errors", path=f"/p/{RUN}")
        assert plain.code != 0
        misplaced = device.cmp("ir", *shown, *asks, path=f"/p/{RUN}/keyupdate")
        assert misplaced.code != 0
        good = device.cmp("ir", *shown, *asks, path=f"/p/{RUN}")
        assert good.got.der
        again = device.cmp("ir", *shown, "-newkey", device.key("k2"), "-subject", SERIAL, path=f"/p/{RUN}")
        assert again.code != 0, "a code is good for one key"
        assert len(refusals(plane)) >= 8
        plane.realm.check()


def test_a_request_that_waits_for_a_person_is_polled_for(tmp_path: Path) -> None:
    with served(tmp_path, retry_seconds=5) as (plane, server, device):
        operational(plane, "--approval")
        identity, key = released(plane, device)
        mine = device.key("mine")
        words = device.words(
            "cr", "-cert", identity, "-key", key, "-newkey", mine, "-subject", SERIAL,
            "-certout", device.folder / "mine.crt", "-keep_alive", "0", "-verbosity", "7", path="/p/FIELD",
        )  # fmt: skip
        # Line by line: else what it says comes many polls at a time, and the server goes in the midst of one.
        lines = [need("stdbuf", "coreutils"), "--output=L", *words]
        with subprocess.Popen(lines, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as polling:
            try:
                assert polling.stdout is not None
                said = iter(polling.stdout.readline, "")
                told = "".join(itertools.takewhile(lambda line: "checkAfter" not in line, said))
                polling.send_signal(signal.SIGSTOP)  # it asks again in so many seconds, ready or not
                server.restart()  # while the client waits; a transaction survives that
                (waits,) = entries(plane, "enrolment-waiting")
                plane.realm.run("enrolment", "approve", str(waits["enrolment"]), "--reason", "known")
                polling.send_signal(signal.SIGCONT)
                told += polling.communicate(timeout=100)[0]
            finally:
                polling.kill()
        assert polling.returncode == 0, told
        assert Certificate.from_pem((device.folder / "mine.crt").read_text(encoding="ascii")).der
        assert [one["by"] for one in entries(plane, "local-proved")] == ["confirmation"]
        plane.realm.check()


def test_replayed_tampered_and_cut_messages_change_nothing(tmp_path: Path) -> None:
    with served(tmp_path) as (plane, _, device):
        operational(plane)
        identity, key = released(plane, device)
        mine, sent = device.key("mine"), device.folder / "cr.der"
        confirm = device.folder / "conf.der"
        said = device.cmp(
            "cr", "-cert", identity, "-key", key, "-newkey", mine, "-subject", SERIAL,
            "-reqout", f"{sent} {confirm}", path="/p/FIELD", out="mine",
        )  # fmt: skip
        assert said.got.der
        before = plane.realm.entries()
        replayed = posted(plane, sent.read_bytes())
        assert replayed.startswith(b"\x30"), replayed
        assert failure(replayed) == ["transactionIdInUse"]
        assert failure(posted(plane, confirm.read_bytes())) == ["certConfirmed"]
        octets = sent.read_bytes()
        for place in range(len(octets) - 1, 0, -max(1, len(octets) // 25)):
            changed = bytes((*octets[:place], octets[place] ^ 1, *octets[place + 1 :]))
            posted(plane, changed)
            posted(plane, octets[:place])
        after = plane.realm.entries()[len(before) :]
        assert {one["kind"] for one in after} == {"refused"}
        plane.realm.check()


def posted(plane: DeviceRealm, octets: bytes) -> bytes:
    """Post a message with curl, and return the answer; never a fault of ours."""
    done = subprocess.run(
        [
            need("curl"), "--silent", "--cacert", str(plane.root), "--data-binary", "@-",
            "--write-out", "%{http_code}", "--header", "content-type: application/pkixcmp",
            f"{plane.url}/.well-known/cmp/p/FIELD",
        ],
        input=octets, capture_output=True, check=True,
    )  # fmt: skip
    status = int(done.stdout[-3:])
    assert status in (200, 400, 413), (status, done.stdout)
    return done.stdout[:-3]


def failure(octets: bytes) -> list[str]:
    """Return the failInfo of a CMP answer, as another decoder reads it."""
    message, rest = decode(octets, asn1Spec=rfc4210.PKIMessage())
    assert not rest
    body = message["body"].getComponent()
    status = body["pKIStatusInfo"] if message["body"].getName() == "error" else body["response"][0]["status"]
    return [
        name
        for name, bit in status["failInfo"].namedValues.items()
        if bit < len(status["failInfo"]) and status["failInfo"][bit]
    ]
