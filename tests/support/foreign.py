"""The PKI of somebody else, made by OpenSSL alone: authorities, devices, CRLs, answers, a nonce certified.

Every command runs at the date of the test (faketime).  ``Hosting`` serves octets over HTTP on this machine.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from birthmark.pki.certificates import one_from_pem
from tests.support.checkers.running import ask
from tests.support.programs import need
from tests.support.realm import START

__all__ = ["ForeignPKI", "Hosting", "Issuer", "Served", "hosting"]

_CONFIGURATION = """
[ca]
default_ca = here
[here]
database = {folder}/index.txt
serial = {folder}/serial
crlnumber = {folder}/crlnumber
new_certs_dir = {folder}
default_md = sha256
default_days = 365
default_crl_days = 7
policy = any
unique_subject = no
crl_extensions = crl
copy_extensions = none
[any]
commonName = optional
organizationName = optional
serialNumber = optional
[crl]
authorityKeyIdentifier = keyid
{crl}
"""
ROOT = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n"
DEVICE = (
    "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=clientAuth\n"
    "authorityKeyIdentifier=keyid\n"
)
RESPONDER = "keyUsage=critical,digitalSignature\nextendedKeyUsage=OCSPSigning\nnoCheck=yes\n"


def openssl(*arguments: object, at: datetime) -> str:
    """Run it; it must succeed."""
    done = ask([need("openssl"), *map(str, arguments)], at=at)
    assert done.returncode == 0, done.stderr
    return done.stdout


@dataclass(slots=True, kw_only=True)
class Issuer:
    """An authority: its folder has its key, its certificate and the database of ``openssl ca``."""

    folder: Path
    at: datetime
    crl: str = ""
    """Further extensions of its CRLs."""

    @property
    def certificate(self) -> Path:
        """Its certificate (PEM)."""
        return self.folder / "ca.pem"

    @property
    def der(self) -> bytes:
        """Its certificate (DER)."""
        return one_from_pem(self.certificate.read_text())

    def configuration(self) -> Path:
        """Write what ``openssl ca`` reads."""
        path = self.folder / "ca.cnf"
        path.write_text(_CONFIGURATION.format(folder=self.folder, crl=self.crl))
        return path

    def certify(
        self,
        name: str,
        extensions: str = DEVICE,
        *,
        subject: str = "",
        days: int = 30,
        key: Path | None = None,
    ) -> bytes:
        """Certify a new key; the files are named after it. Return the certificate (DER)."""
        stem = self.folder / name
        if key is None:
            key = stem.with_suffix(".key")
            openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key, at=self.at)
        request, made, said = (stem.with_suffix(end) for end in (".csr", ".pem", ".ext"))
        said.write_text(extensions)
        openssl("req", "-new", "-key", key, "-subj", subject or f"/CN={name}", "-out", request, at=self.at)
        openssl(
            *("ca", "-batch", "-notext", "-config", self.configuration(), "-days", days, "-in", request),
            *("-keyfile", self.folder / "ca.key", "-cert", self.certificate, "-extfile", said, "-out", made),
            at=self.at,
        )
        return one_from_pem(made.read_text())

    def below(self, name: str, extensions: str = ROOT) -> "Issuer":
        """Make an authority below this one."""
        made = _folder(self.folder.parent / name, self.at)
        key = made.folder / "ca.key"
        openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key, at=self.at)
        self.certify(name, extensions, days=300, key=key)
        made.certificate.write_text((self.folder / f"{name}.pem").read_text())
        return made

    def again(self, subject: str) -> "Issuer":
        """Sign this key a certificate of its own under another name."""
        made = _folder(self.folder.parent / f"{self.folder.name}-again", self.at)
        (made.folder / "ca.key").write_bytes((self.folder / "ca.key").read_bytes())
        said = made.folder / "root.cnf"
        said.write_text(f"[req]\ndistinguished_name=dn\n[dn]\n[v3]\n{ROOT}")
        openssl(
            *("req", "-x509", "-new", "-key", made.folder / "ca.key", "-subj", subject, "-days", 3650),
            *("-config", said, "-extensions", "v3", "-sha256", "-out", made.certificate),
            at=self.at,
        )
        return made

    def revoke(self, name: str, reason: str = "keyCompromise") -> None:
        """Revoke what was certified under a name."""
        openssl(
            *("ca", "-config", self.configuration(), "-keyfile", self.folder / "ca.key", "-cert"),
            *(self.certificate, "-revoke", self.folder / f"{name}.pem", "-crl_reason", reason),
            at=self.at,
        )

    def list(self, *, days: float = 7, at: datetime | None = None, digest: str = "sha256") -> bytes:
        """Sign the next CRL (DER)."""
        path = self.folder / "ca.crl"
        openssl(
            *("ca", "-config", self.configuration(), "-gencrl", "-md", digest, "-crlhours", int(days * 24)),
            *("-keyfile", self.folder / "ca.key", "-cert", self.certificate, "-out", path),
            at=at or self.at + timedelta(seconds=self._later()),
        )
        return one_from_pem(path.read_text(), "X509 CRL")

    def _later(self) -> int:
        """Return how much later than the last CRL this one is: openssl takes time, too."""
        return 10 * (int((self.folder / "crlnumber").read_text(), 16) - 0x1000)

    def verification(
        self, nonce: str, *, version_1: bool = True, extensions: str = "", days: int = 1
    ) -> bytes:
        """Certify a throwaway key under a nonce, by the recipe of the documentation (DER)."""
        stem = self.folder / "verification"
        key, request, made, said = (stem.with_suffix(end) for end in (".key", ".csr", ".pem", ".ext"))
        openssl(
            *("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-keyout", key, "-subj", f"/CN={nonce}", "-out", request),
            at=self.at,
        )
        said.write_text(extensions)
        more = [] if version_1 else ["-extfile", said]
        openssl(
            *("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self.folder / "ca.key"),
            *("-CAcreateserial", "-days", days, "-out", made, *more),
            at=self.at,
        )
        return one_from_pem(made.read_text())

    def answer(
        self,
        request: bytes,
        *,
        signer: str | None = None,
        at: datetime | None = None,
        minutes: int | None = 60,
    ) -> bytes:
        """Answer an OCSPRequest from its database, itself or by a responder certified as ``signer``."""
        asked, answered = self.folder / "request.der", self.folder / "response.der"
        asked.write_bytes(request)
        stem = "ca" if signer is None else signer
        openssl(
            *("ocsp", "-index", self.folder / "index.txt", "-CA", self.certificate, "-reqin", asked),
            *("-rsigner", self.folder / f"{stem}.pem", "-rkey", self.folder / f"{stem}.key"),
            *("-respout", answered, *(() if minutes is None else ("-nmin", minutes))),
            at=at or self.at,
        )
        return answered.read_bytes()


def _folder(folder: Path, at: datetime) -> Issuer:
    folder.mkdir(parents=True)
    (folder / "index.txt").write_text("")
    (folder / "serial").write_text("1000\n")
    (folder / "crlnumber").write_text("1000\n")
    return Issuer(folder=folder, at=at)


@dataclass(slots=True, kw_only=True)
class ForeignPKI:
    """Roots of others, in a folder."""

    folder: Path
    at: datetime = START - timedelta(hours=1)

    def root(
        self, name: str = "root", *, subject: str = "/O=Fjord AS/CN=Fjord Fleet Root", extensions: str = ROOT,
        algorithm: tuple[str, ...] = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
        days: int = 3650, digest: str = "sha256",
    ) -> Issuer:  # fmt: skip
        """Make a root."""
        made = _folder(self.folder / name, self.at)
        said = made.folder / "root.cnf"
        said.write_text(f"[req]\ndistinguished_name=dn\n[dn]\n[v3]\n{extensions}")
        openssl(
            *("req", "-x509", *algorithm, "-nodes", "-keyout", made.folder / "ca.key", "-subj", subject),
            *("-config", said, "-extensions", "v3", "-days", days, f"-{digest}", "-out", made.certificate),
            at=self.at,
        )
        return made


Served = bytes | int | Callable[[bytes], bytes] | tuple[int, str]
"""What is at a path: octets, a status, an answer to what was posted, or a status and where to go."""


@dataclass(slots=True)
class Hosting:
    """A web server on this machine."""

    url: str
    paths: dict[str, Served] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)


@contextmanager
def hosting() -> Iterator[Hosting]:
    """Serve what is put into ``paths``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(b"")

        def do_POST(self) -> None:
            self._answer(self.rfile.read(int(self.headers["Content-Length"])))

        def _answer(self, body: bytes) -> None:
            found.asked.append(self.path)
            served = found.paths.get(self.path, 404)
            status, octets, location = 200, b"", ""
            if isinstance(served, tuple):
                status, location = served
            elif isinstance(served, int):
                status = served
            else:
                octets = served if isinstance(served, bytes) else served(body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(octets)))
            if location:
                self.send_header("Location", location)
            self.end_headers()
            self.wfile.write(octets)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the library's name for it
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found = Hosting(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield found
        finally:
            server.shutdown()
            thread.join()
