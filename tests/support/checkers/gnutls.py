"""GnuTLS as a relying party: ``certtool`` for paths and CRLs, ``ocsptool`` for OCSP.

Neither takes a date, so both run with the clock set.
"""

import re
import subprocess
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from tests.support.checkers.running import ask, write_der, write_pem
from tests.support.checkers.values import Chain, Status, Verdict
from tests.support.programs import need

__all__ = ["crl_signed", "crl_verdict", "ocsp_offline_verdict", "ocsp_verdict", "path_verdict"]

_STATUS = re.compile(r"^\s*Certificate Status: (good|revoked|unknown)$", re.MULTILINE)
_VERIFIED = re.compile(r"^Verifying OCSP Response: Success\.$", re.MULTILINE)


def path_verdict(chain: Chain, folder: Path, *, at: datetime) -> Verdict:
    """Return what ``certtool --verify`` says of a path."""
    return crl_verdict(chain, (), folder, at=at)


def crl_verdict(chain: Chain, crls: Sequence[bytes], folder: Path, *, at: datetime) -> Verdict:
    """Return what ``certtool --verify`` says of a path with these CRLs (DER) loaded.

    It takes a CRL of each issuer for what there is: without one it does not ask, and it knows no scopes.
    """
    command = [
        need("certtool", "gnutls-bin"), "--verify",
        "--load-ca-certificate", write_pem(folder / "root.pem", chain.root),
        "--infile", write_pem(folder / "path.pem", chain.leaf, *chain.between),
    ]  # fmt: skip
    if crls:
        command += ["--load-crl", write_pem(folder / "crls.pem", *crls, label="X509 CRL")]
    done = ask(command, at=at)
    said = (done.stdout + done.stderr).strip()
    outcome = said.rpartition("Chain verification output:")[2]
    if done.returncode == 0 and outcome.startswith(" Verified."):
        return Verdict(status=Status.GOOD, said=said)
    if "revoked" in outcome:
        return Verdict(status=Status.REVOKED, said=said)
    about_crl = "revocation data" in outcome
    return Verdict(status=Status.UNDETERMINED if about_crl else Status.REFUSED, said=said)


def crl_signed(crl: bytes, issuer: bytes, folder: Path, *, at: datetime) -> Verdict:
    """Return whether ``certtool --verify-crl`` finds a CRL (DER) signed by its issuer and in date."""
    done = ask(
        [
            need("certtool", "gnutls-bin"), "--verify-crl",
            "--load-ca-certificate", write_pem(folder / "issuer.pem", issuer),
            "--infile", write_pem(folder / "crl.pem", crl, label="X509 CRL"),
        ],
        at=at,
    )  # fmt: skip
    said = (done.stdout + done.stderr).strip()
    verified = done.returncode == 0 and "Verification output: Verified" in said
    return Verdict(status=Status.GOOD if verified else Status.REFUSED, said=said)


def ocsp_verdict(chain: Chain, url: str, folder: Path, *, at: datetime, nonce: bool = False) -> Verdict:
    """Return what ``ocsptool --ask`` says of the leaf after asking a responder (POST)."""
    arguments = [f"--ask={url}", *(["--nonce"] if nonce else [])]
    return _ocsp(ask([*_about(chain, folder), *arguments], at=at))


def ocsp_offline_verdict(chain: Chain, response: bytes, folder: Path, *, at: datetime) -> Verdict:
    """Return what ``ocsptool --verify-response`` says of a response (DER)."""
    arguments = ["--verify-response", "--load-response", write_der(folder / "response.der", response)]
    return _ocsp(ask([*_about(chain, folder), *arguments], at=at))


def _about(chain: Chain, folder: Path) -> list[str]:
    return [
        need("ocsptool", "gnutls-bin"),
        "--load-cert", write_pem(folder / "leaf.pem", chain.leaf),
        "--load-issuer", write_pem(folder / "issuer.pem", chain.issuer),
        "--load-trust", write_pem(folder / "trusted.pem", chain.issuer, chain.root),
    ]  # fmt: skip


def _ocsp(done: subprocess.CompletedProcess[str]) -> Verdict:
    said = (done.stdout + done.stderr).strip()
    status = _STATUS.search(said)
    if status is None or not _VERIFIED.search(said):
        return Verdict(status=Status.UNDETERMINED, said=said)
    return Verdict(status=Status(status[1]), said=said)
