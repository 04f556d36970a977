"""NSS (Firefox, many Linux clients) as a relying party: ``ocspclnt`` with a certificate database of its own.

It has no date of its own for a response, so it runs with the clock set.
"""

from datetime import datetime
from pathlib import Path

from tests.support.checkers.running import ask, write_der
from tests.support.checkers.values import Chain, Status, Verdict
from tests.support.programs import need

__all__ = ["ocsp_verdict"]

_SAYS = {
    "succeeded.": Status.GOOD,
    "Peer's Certificate has been revoked.": Status.REVOKED,
    "The OCSP server has no status for the certificate.": Status.UNKNOWN,
}


def ocsp_verdict(
    chain: Chain, folder: Path, *, at: datetime, url: str | None = None, responder: bytes | None = None
) -> Verdict:
    """Return what ``ocspclnt -S`` says of the leaf's status after asking a responder (POST).

    Args:
        chain: the path.
        folder: an empty one, for the database.
        at: the time to judge for.
        url: the responder to ask; if left out, the one that the leaf names (authorityInfoAccess).
        responder: goes with ``url``: the certificate (DER) to take responses from, whoever issued it, for
            that is what being told so means to NSS.  If left out it judges itself who may answer (RFC 6960
            section 4.2.2.2).
    """
    certutil = need("certutil", "libnss3-tools")
    directory = ["-d", f"sql:{folder}"]
    made = ask([certutil, "-N", *directory, "--empty-password"])
    assert made.returncode == 0, made.stderr
    authorities = [("root", chain.root, "CT,C,C")]
    authorities += [(f"between-{number}", octets, ",,") for number, octets in enumerate(chain.between)]
    names = {octets: name for name, octets, _ in authorities}
    if responder is not None and responder not in names:
        authorities.append(("responder", responder, ",,"))
        names[responder] = "responder"
    for name, octets, trust in authorities:
        path = write_der(folder / f"{name}.der", octets)
        added = ask([certutil, "-A", *directory, "-n", name, "-t", trust, "-i", path])
        if added.returncode != 0:
            return Verdict(status=Status.REFUSED, said=added.stderr.strip())
    leaf = write_der(folder / "leaf.der", chain.leaf)
    command = [need("ocspclnt", "libnss3-tools"), "-S", leaf, *directory]
    if url is not None and responder is not None:
        command += ["-l", url, "-t", names[responder]]
    done = ask(command, at=at)
    said = (done.stdout + done.stderr).strip()
    status = next((status for words, status in _SAYS.items() if said.endswith(words)), Status.UNDETERMINED)
    return Verdict(status=status, said=said)
