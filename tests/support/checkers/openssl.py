"""OpenSSL as a relying party: strict path validation, CRLs (partitioned, with deltas), and its OCSP client.

What a path is worth without a question about its status is in ``tests.support.lint`` (``openssl_strict``).
"""

import base64
import re
import subprocess
from collections.abc import Sequence
from datetime import datetime
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import quote, urlsplit

from tests.support.checkers.running import ask, write_der, write_pem
from tests.support.checkers.values import Chain, Status, Verdict
from tests.support.programs import need

__all__ = ["crl_verdict", "ocsp_get_verdict", "ocsp_offline_verdict", "ocsp_verdict", "path_verdict"]

# X509_V_ERR_CERT_REVOKED, and those that speak of a CRL and not of the path: no CRL (3), its signature cannot
# be read (5) or is wrong (8), it is not yet valid (11) or no more (12), its dates are malformed (15, 16), no
# issuer of it (33), its issuer may not sign it (35), a critical extension nobody knows (36), of another scope
# (44), its path is wrong (54).
_REVOKED = 23
_ABOUT_CRL = frozenset({3, 5, 8, 11, 12, 15, 16, 33, 35, 36, 44, 54})
_ERROR = re.compile(r"^error (\d+) at (\d+) depth lookup: (.*)$", re.MULTILINE)
_OCSP_STATUS = re.compile(r"^\S*: (good|revoked|unknown)$", re.MULTILINE)
_REASON = re.compile(r"^\s*Reason: (\w+)$", re.MULTILINE)
_LOOPBACK_SECONDS = 10.0


def path_verdict(chain: Chain, folder: Path, *, at: datetime) -> Verdict:
    """Return what ``openssl verify -x509_strict`` says of a path."""
    return _verify(chain, folder, at, [])


def crl_verdict(
    chain: Chain, crls: Sequence[bytes], folder: Path, *, at: datetime, deltas: bool = False
) -> Verdict:
    """Return what ``openssl verify -crl_check -extended_crl`` says of a path and of its leaf's status.

    Args:
        chain: the path.
        crls: CRLs (DER).
        folder: where to write the files.
        at: the time to verify for.
        deltas: also ``-use_deltas``, without which OpenSSL passes delta CRLs over.
    """
    arguments = ["-crl_check", "-extended_crl", *(["-use_deltas"] if deltas else [])]
    if crls:
        arguments += ["-CRLfile", write_pem(folder / "crls.pem", *crls, label="X509 CRL")]
    return _verify(chain, folder, at, arguments)


def ocsp_verdict(chain: Chain, url: str, folder: Path, *, at: datetime, nonce: bool = False) -> Verdict:
    """Return what ``openssl ocsp -url`` (POST) says of the leaf after asking a responder."""
    arguments = ["-url", url, "-timeout", "10", "-nonce" if nonce else "-no_nonce"]
    return _ocsp(chain, folder, at, arguments)


def ocsp_get_verdict(chain: Chain, url: str, folder: Path, *, at: datetime) -> Verdict:
    """Return what OpenSSL says of the answer to its own request sent by GET (RFC 6960 appendix A.1).

    It has no GET of its own, so it writes the request and reads the response, and Python's client carries
    them.
    """
    request = folder / "request.der"
    made = ask([*_about(chain, folder), "-no_nonce", "-reqout", str(request)])
    assert made.returncode == 0, made.stderr
    encoded = quote(base64.b64encode(request.read_bytes()).decode(), safe="")
    where = urlsplit(url)
    connection = HTTPConnection(where.netloc, timeout=_LOOPBACK_SECONDS)
    try:
        connection.request("GET", f"{where.path.rstrip('/')}/{encoded}")
        response = connection.getresponse().read()
    finally:
        connection.close()
    return ocsp_offline_verdict(chain, response, folder, at=at)


def ocsp_offline_verdict(chain: Chain, response: bytes, folder: Path, *, at: datetime) -> Verdict:
    """Return what ``openssl ocsp -respin`` says of a response (DER) for the leaf."""
    return _ocsp(chain, folder, at, ["-no_nonce", "-respin", write_der(folder / "response.der", response)])


def _verify(chain: Chain, folder: Path, at: datetime, arguments: list[str]) -> Verdict:
    command = [
        need("openssl"), "verify", "-x509_strict", "-check_ss_sig", "-no-CApath", "-no-CAstore",
        "-attime", str(int(at.timestamp())), "-CAfile", write_pem(folder / "root.pem", chain.root),
    ]  # fmt: skip
    command += arguments
    if chain.between:
        command += ["-untrusted", write_pem(folder / "between.pem", *chain.between)]
    done = ask([*command, write_pem(folder / "leaf.pem", chain.leaf)])
    said = (done.stdout + done.stderr).strip()
    if done.returncode == 0:
        return Verdict(status=Status.GOOD, said=said)
    errors = {int(code) for code, _, _ in _ERROR.findall(said)}
    # A CRL that is too old is complained of and then still read.
    if errors - _ABOUT_CRL == {_REVOKED}:
        return Verdict(status=Status.REVOKED, said=said)
    about_crl = bool(errors) and errors <= _ABOUT_CRL
    return Verdict(status=Status.UNDETERMINED if about_crl else Status.REFUSED, said=said)


def _about(chain: Chain, folder: Path) -> list[str]:
    return [
        need("openssl"), "ocsp", "-issuer", write_pem(folder / "issuer.pem", chain.issuer),
        "-cert", write_pem(folder / "leaf.pem", chain.leaf),
    ]  # fmt: skip


def _ocsp(chain: Chain, folder: Path, at: datetime, arguments: list[str]) -> Verdict:
    command = [*_about(chain, folder), "-CAfile", write_pem(folder / "root.pem", chain.root), *arguments]
    if chain.between:
        command += ["-verify_other", write_pem(folder / "between.pem", *chain.between)]
    return _ocsp_answer(ask(command, at=at))


def _ocsp_answer(done: subprocess.CompletedProcess[str]) -> Verdict:
    said = f"{done.stdout}\n{done.stderr}".strip()
    status = _OCSP_STATUS.search(done.stdout)
    trusted = "Response verify OK" in done.stderr
    # It prints the status also of a response it does not believe or that is too old, and says so beside it.
    stale = "WARNING: Status times invalid" in said
    if status is None or not trusted or stale:
        return Verdict(status=Status.UNDETERMINED, said=said)
    reason = _REASON.search(done.stdout)
    return Verdict(status=Status(status[1]), reason=reason[1] if reason else None, said=said)
