"""What tests of secure elements stand on: readers without hardware, and a TPM in software."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pcsc import Daemon, inserted, pcscd
from tests.support.ports import ports
from tests.support.programs import need, need_extra
from tests.support.swtpm import SoftwareTPM

# A PC/SC client of the tests: a process of its own, because libpcsclite remembers the first daemon it met.
CLIENT = """
import sys
from smartcard import scard
done, context = scard.SCardEstablishContext(scard.SCARD_SCOPE_SYSTEM)
if done != scard.SCARD_S_SUCCESS:
    sys.exit(scard.SCardGetErrorMessage(done))
_, names = scard.SCardListReaders(context, [])
print("\\n".join(names))
for name, command in zip(sys.argv[1::2], sys.argv[2::2]):
    state = [(name, scard.SCARD_STATE_UNAWARE)]
    while True:
        done, state = scard.SCardGetStatusChange(context, 20000, state)
        assert done == scard.SCARD_S_SUCCESS, scard.SCardGetErrorMessage(done)
        if state[0][1] & scard.SCARD_STATE_PRESENT:
            break
        state = [state[0][:2]]
    done, card, protocol = scard.SCardConnect(
        context, name, scard.SCARD_SHARE_EXCLUSIVE, scard.SCARD_PROTOCOL_T1)
    assert done == scard.SCARD_S_SUCCESS, scard.SCardGetErrorMessage(done)
    for _ in range(100):
        done, answer = scard.SCardTransmit(card, protocol, list(bytes.fromhex(command)))
        assert done == scard.SCARD_S_SUCCESS, scard.SCardGetErrorMessage(done)
    print(bytes(answer).hex())
    scard.SCardDisconnect(card, scard.SCARD_RESET_CARD)
"""


def client(*words: str, daemon: Daemon | None = None) -> subprocess.CompletedProcess[str]:
    """Run the client with names of readers and commands to the cards in them."""
    need_extra("smartcard", "pcsc")
    environment = dict(os.environ)
    if daemon is not None:
        environment["PCSCLITE_CSOCK_NAME"] = str(daemon.socket)
    return subprocess.run(
        [sys.executable, "-c", CLIENT, *words], env=environment, capture_output=True, text=True, check=False
    )


def test_a_program_talks_to_the_cards_in_two_readers_at_once(readers: Daemon) -> None:
    first, second = readers.readers
    resets: list[str] = []
    with (
        inserted(first, lambda command: b"first " + command, reset=lambda: resets.append("first")),
        inserted(second, lambda command: b"second " + command[:1] + b"\x90\x00"),
    ):
        done = client(first.name, "00A4040000", second.name, "80CA006600")
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert {first.name, second.name} <= set(said[:-2])
    assert said[-2:] == [(b"first " + bytes.fromhex("00A4040000")).hex(), b"second \x80\x90\x00".hex()]
    assert resets


def test_a_daemon_that_was_stopped_answers_nobody_and_comes_back_with_its_readers(readers: Daemon) -> None:
    # Another daemon runs beside it, as in another process of the tests.
    with pcscd(1) as daemon:
        assert client(daemon=daemon).stdout.count("Virtual 0 00 00") == 1
        with daemon.stopped():
            refused = client(daemon=daemon)
            assert refused.returncode != 0
            assert "Service not available" in refused.stderr
            assert client(daemon=readers).returncode == 0
        with inserted(daemon.readers[0], lambda command: command):
            back = client(daemon.readers[0].name, "00B0000000", daemon=daemon)
        assert back.stdout.splitlines()[-1] == "00b0000000", back.stderr
        folder = daemon.socket.parent
    assert not folder.exists()
    assert os.environ["PCSCLITE_CSOCK_NAME"] == str(readers.socket)


def test_the_ports_found_are_free_and_leave_room_for_a_second_slot() -> None:
    found = ports(8)
    taken = {port for first in found for port in (first, first + 1)}
    assert len(taken) == 16
    assert all(1024 < port < 32768 for port in taken)


def test_the_endorsement_key_of_a_tpm_has_a_certificate_by_the_authority(
    tpm: SoftwareTPM, tmp_path: Path
) -> None:
    environment = {**os.environ, "TPM2TOOLS_TCTI": tpm.tcti}
    openssl = need("openssl")

    def tool(name: str, *words: str) -> None:
        command = [need(name, "tpm2-tools"), *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    for index, handle in (("0x01c00002", "0x81010001"), ("0x01c00016", "0x81010016")):
        certificate, key = tmp_path / f"{index}.der", tmp_path / f"{handle}.pem"
        tool("tpm2_nvread", index, "-C", "o", "-o", str(certificate))
        tool("tpm2_readpublic", "-c", handle, "-f", "pem", "-o", str(key))
        # openssl knows nothing of the TPM's critical name (TCG EK Credential Profile section 3.2.9).
        options = ["-partial_chain", "-ignore_critical", "-CAfile", str(tpm.authority)]
        verified = subprocess.run(
            [openssl, "verify", *options, str(certificate)], capture_output=True, text=True, check=False
        )
        assert verified.returncode == 0, verified.stderr
        certified = subprocess.run(
            [openssl, "x509", "-in", str(certificate), "-noout", "-pubkey"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert certified.stdout == key.read_text()


def test_a_tpm_answers_the_library_of_the_extra(tpm: SoftwareTPM) -> None:
    tss = need_extra("tpm2_pytss", "tpm")
    with tss.ESAPI(tpm.tcti) as esys:
        assert len(bytes(esys.get_random(16))) == 16


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_an_extra_that_is_missing_skips_here_and_fails_in_ci(
    monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match=r"requirements/tpm\.txt"):
        need_extra("no_such_module", "tpm")
