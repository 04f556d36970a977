"""Second opinions on what we sign: pkilint, and OpenSSL's strict path validation.

pkilint runs in this process, through the entry points of its own commands, because starting it takes longer
than linting.  A finding is a pair of severity and code; what a profile waives is for the test to take off, so
that a waiver is visible where it is used.
"""

import json
import subprocess
import tempfile
import warnings
from contextlib import redirect_stdout
from datetime import datetime
from io import StringIO
from pathlib import Path

from birthmark.pki.certificates import to_pem
from birthmark.pki.profiles import Profile
from tests.support.programs import need

Finding = tuple[str, str]
"""Severity (NOTICE, WARNING, ERROR, FATAL) and code."""


def pkilint_findings(certificate: bytes) -> list[Finding]:
    """Return what ``lint_pkix_cert lint -s NOTICE`` finds in a certificate (DER)."""
    return _lint("lint_pkix_cert", [to_pem(certificate)])


def pkilint_pair_findings(issuer: bytes, subject: bytes) -> list[Finding]:
    """Return what ``lint_pkix_signer_signee_cert_chain`` finds between an issuer and a subject (DER)."""
    return _lint("lint_pkix_signer_signee_cert_chain", [to_pem(issuer), to_pem(subject)])


def lint_crl(crl: bytes, *, of_authorities: bool = False) -> list[Finding]:
    """Return what ``lint_crl lint -p PKIX -s NOTICE`` finds in a CRL (DER).

    Args:
        crl: the list.
        of_authorities: it is a list of revoked authorities (pkilint's ARL).
    """
    kind = "ARL" if of_authorities else "CRL"
    return _lint("lint_crl", [to_pem(crl, "X509 CRL")], "-t", kind, "-p", "PKIX")


def lint_ocsp_response(response: bytes) -> list[Finding]:
    """Return what ``lint_ocsp_response lint -s NOTICE`` finds in an OCSP response (DER)."""
    return _lint("lint_ocsp_response", [to_pem(response, "OCSP RESPONSE")])


def unwaived(findings: list[Finding], profile: Profile) -> list[Finding]:
    """Return the findings that the profile does not waive."""
    return [finding for finding in findings if finding[1] not in waived(profile)]


def waived(profile: Profile) -> set[str]:
    """Return the codes that the profile waives."""
    return {waiver.finding for waiver in profile.waivers if waiver.linter == "pkilint"}


def _lint(command: str, documents: list[str], *options: str) -> list[Finding]:
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")  # pkilint's and its libraries' deprecations are not our findings
        main = __import__(f"pkilint.bin.{command}", fromlist=["main"]).main
        paths = []
        for index, document in enumerate(documents):
            path = Path(folder) / f"{index}.pem"
            path.write_text(document)
            paths.append(str(path))
        output = StringIO()
        with redirect_stdout(output):
            count = main(["lint", *options, "-s", "NOTICE", "-f", "JSON", *paths])
    report = json.loads(output.getvalue())
    findings = [
        (description["severity"], description["code"])
        for result in report["results"]
        for description in result["finding_descriptions"]
    ]
    assert count == len(findings), "pkilint's exit status is the number of its findings"
    return findings


def openssl_strict(
    root: bytes, chain: list[bytes], leaf: bytes, folder: Path, at: datetime | None = None
) -> str:
    """Return the output of ``openssl verify -x509_strict`` for a path (DER); the test fails if it refuses.

    Args:
        root: the trust anchor.
        chain: the certificates between, in any order.
        leaf: what is to be verified.
        folder: where to write the files, such as pytest's ``tmp_path``.
        at: the time to verify for; now if left out.
    """
    found = openssl_verify(root, chain, leaf, folder, at)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


def openssl_verify(
    root: bytes, chain: list[bytes], leaf: bytes, folder: Path, at: datetime | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``openssl verify -x509_strict`` on a path (DER) and return how it ended."""
    (folder / "root.pem").write_text(to_pem(root))
    (folder / "leaf.pem").write_text(to_pem(leaf))
    arguments = ["-CAfile", str(folder / "root.pem")]
    if chain:
        (folder / "chain.pem").write_text("".join(to_pem(certificate) for certificate in chain))
        arguments += ["-untrusted", str(folder / "chain.pem")]
    if at is not None:
        arguments += ["-attime", str(int(at.timestamp()))]
    return subprocess.run(
        [
            need("openssl"), "verify", "-x509_strict", "-check_ss_sig", "-no-CApath", "-no-CAstore",
            *arguments, str(folder / "leaf.pem"),
        ],
        check=False, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
