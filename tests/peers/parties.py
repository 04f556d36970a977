"""The relying parties by name, asked alike, and what they answer.

The tables say what they do answer, for others' lists and responses and for ours; where one is known to be
wrong the reason stands beside it.  Who publishes status has to live with all of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest

from tests.peers.small import AT
from tests.support.checkers import gnutls, nss, openssl, strongswan
from tests.support.checkers.java import Java
from tests.support.checkers.pyhanko import Pyhanko
from tests.support.checkers.serving import serving
from tests.support.checkers.values import Chain, Status, Verdict

__all__ = [
    "CRLS_DIFFERENT",
    "CRLS_RIGHT",
    "CRL_PARTIES",
    "CRL_PARTIES_THAT_SAY_WHY",
    "OCSP_DIFFERENT",
    "OCSP_PARTIES",
    "OCSP_PARTIES_THAT_SAY_WHY",
    "OCSP_RIGHT",
    "PATH_PARTIES",
    "Desk",
    "Question",
]

_GOOD, _REVOKED, _UNKNOWN, _UNDETERMINED = Status.GOOD, Status.REVOKED, Status.UNKNOWN, Status.UNDETERMINED


class Desk:
    """What a party needs to be asked: empty folders, and the process that is kept for it."""

    def __init__(self, request: pytest.FixtureRequest, folders: pytest.TempPathFactory) -> None:
        self._request, self._folders = request, folders

    def folder(self) -> Path:
        """Return a new folder."""
        return self._folders.mktemp("desk")

    @property
    def jvm(self) -> Java:
        """Return the virtual machine of this run; without Java the test ends here."""
        machine: Java = self._request.getfixturevalue("jvm")
        return machine

    @property
    def pyhanko(self) -> Pyhanko:
        """Return the validator of this run; where it is not installed the test ends here."""
        running: Pyhanko = self._request.getfixturevalue("validator")
        return running


# --- paths ---

PATH_PARTIES: Mapping[str, Callable[[Desk, Chain, datetime], Verdict]] = {
    "gnutls": lambda desk, chain, at: gnutls.path_verdict(chain, desk.folder(), at=at),
    "java": lambda desk, chain, at: desk.jvm.path_verdict(chain, at=at),
    "openssl": lambda desk, chain, at: openssl.path_verdict(chain, desk.folder(), at=at),
    "pyhanko": lambda desk, chain, at: desk.pyhanko.path_verdict(chain, at=at),
    "strongswan": lambda desk, chain, at: strongswan.path_verdict(chain, desk.folder(), at=at),
}


# --- CRLs ---

CRL_PARTIES: Mapping[str, Callable[[Desk, Chain, Sequence[bytes]], Verdict]] = {
    "gnutls": lambda desk, chain, crls: gnutls.crl_verdict(chain, crls, desk.folder(), at=AT),
    "java": lambda desk, chain, crls: desk.jvm.crl_verdict(chain, crls, at=AT),
    "openssl": lambda desk, chain, crls: openssl.crl_verdict(chain, crls, desk.folder(), at=AT),
    "pyhanko": lambda desk, chain, crls: desk.pyhanko.crl_verdict(chain, crls, at=AT),
    "strongswan": lambda desk, chain, crls: strongswan.crl_verdict(chain, crls, desk.folder(), at=AT),
}
CRL_PARTIES_THAT_SAY_WHY = frozenset({"java", "pyhanko", "strongswan"})

CRLS_RIGHT: Mapping[str, Status] = {
    "well, whole list": _GOOD,
    "stolen, whole list": _REVOKED,
    "suspended, whole list": _REVOKED,
    "well, its shard": _GOOD,
    "stolen, its shard": _REVOKED,
    "suspended, its shard": _REVOKED,
    "well, another shard": _UNDETERMINED,
    "stolen, another shard": _UNDETERMINED,
    "stolen, both shards": _REVOKED,
    "suspended, both shards": _REVOKED,
    "well, out of date": _UNDETERMINED,
    "stolen, out of date": _UNDETERMINED,
    "well, signed by a stranger": _UNDETERMINED,
    "stolen, signed by a stranger": _UNDETERMINED,
    "well, none": _UNDETERMINED,
}
CRLS_DIFFERENT: Mapping[str, Mapping[str, Status]] = {
    # certtool --verify reads no issuingDistributionPoint, keeps one list an issuer (the last with a number),
    # asks for no list and looks neither at the date nor at the signature of one; crl_signed is what asks for
    # those.
    "gnutls": {
        "well, another shard": _GOOD,
        "stolen, another shard": _GOOD,
        "stolen, both shards": _GOOD,
        "well, out of date": _GOOD,
        "stolen, out of date": _REVOKED,
        "well, signed by a stranger": _GOOD,
        "stolen, signed by a stranger": _REVOKED,
        "well, none": _GOOD,
    },
    "java": {},
    # It complains of the date and says revoked all the same.
    "openssl": {"stolen, out of date": _REVOKED},
    "pyhanko": {},
    # pki --verify passes over issuingDistributionPoint though it is critical: a revoked certificate is good
    # by another's shard, and of two shards with one number only the first is looked at.
    "strongswan": {
        "well, another shard": _GOOD,
        "stolen, another shard": _GOOD,
        "suspended, both shards": _GOOD,
        "stolen, out of date": _REVOKED,
    },
}


# --- OCSP ---


@dataclass(frozen=True, kw_only=True)
class Question:
    """A device whose status is asked for, and a responder."""

    chain: Callable[[str | None], Chain]
    """The device's path; its certificate names this responder (authorityInfoAccess), if one is given."""
    answer: Callable[[bytes], bytes]
    """What the responder says to a request."""
    beforehand: Callable[[], bytes]
    """What it said before it was asked."""
    signer: bytes
    """The certificate (DER) whose key signs."""

    def ask(self, client: Callable[[str], Verdict]) -> Verdict:
        """Return what a client says that asks the responder at a URL."""
        with serving(self.answer) as url:
            return client(url)


OCSP_PARTIES: Mapping[str, Callable[[Desk, Question], Verdict]] = {
    "gnutls": lambda desk, asked: asked.ask(
        lambda url: gnutls.ocsp_verdict(asked.chain(None), url, desk.folder(), at=AT)
    ),
    "gnutls, offline": lambda desk, asked: gnutls.ocsp_offline_verdict(
        asked.chain(None), asked.beforehand(), desk.folder(), at=AT
    ),
    "java": lambda desk, asked: asked.ask(lambda url: desk.jvm.ocsp_verdict(asked.chain(None), url, at=AT)),
    "nss": lambda desk, asked: asked.ask(
        lambda url: nss.ocsp_verdict(asked.chain(url), desk.folder(), at=AT)
    ),
    "nss, told whom to ask": lambda desk, asked: asked.ask(
        lambda url: nss.ocsp_verdict(asked.chain(None), desk.folder(), at=AT, url=url, responder=asked.signer)
    ),
    "openssl": lambda desk, asked: asked.ask(
        lambda url: openssl.ocsp_verdict(asked.chain(None), url, desk.folder(), at=AT, nonce=True)
    ),
    "openssl, GET": lambda desk, asked: asked.ask(
        lambda url: openssl.ocsp_get_verdict(asked.chain(None), url, desk.folder(), at=AT)
    ),
    "openssl, offline": lambda desk, asked: openssl.ocsp_offline_verdict(
        asked.chain(None), asked.beforehand(), desk.folder(), at=AT
    ),
    "pyhanko": lambda desk, asked: desk.pyhanko.ocsp_verdict(asked.chain(None), asked.beforehand(), at=AT),
}
OCSP_PARTIES_THAT_SAY_WHY = frozenset({"java", "openssl", "openssl, GET", "openssl, offline", "pyhanko"})

OCSP_RIGHT: Mapping[str, Status] = {
    "well": _GOOD,
    "stolen": _REVOKED,
    "suspended": _REVOKED,
    "unknown": _UNKNOWN,
    "well, the issuer itself answers": _GOOD,
    "well, out of date": _UNDETERMINED,
    "stolen, out of date": _UNDETERMINED,
    "well, another device answers": _UNDETERMINED,
    "well, a stranger answers": _UNDETERMINED,
}
# ocsptool verifies who signed and does not look at nextUpdate.
_NO_DATE = {"well, out of date": _GOOD, "stolen, out of date": _REVOKED}
OCSP_DIFFERENT: Mapping[str, Mapping[str, Status]] = {
    "gnutls": _NO_DATE,
    "gnutls, offline": _NO_DATE,
    "java": {},
    # Revoked stays revoked for it, however old the answer.
    "nss": {"stolen, out of date": _REVOKED},
    # Told whom to believe it believes any certificate below its root.
    "nss, told whom to ask": {"stolen, out of date": _REVOKED, "well, another device answers": _GOOD},
    "openssl": {},
    "openssl, GET": {},
    "openssl, offline": {},
    # A status that is unknown is for it one that was not told.
    "pyhanko": {"unknown": _UNDETERMINED},
}
