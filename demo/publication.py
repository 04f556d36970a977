"""The public role: a host of its own, which publishes what others signed and holds no authority's key.

Its directory has its settings, one key that may answer questions for an authority and do nothing else (RFC
6960 section 4.2.2.2), and the files that ``birthmark publish`` writes.  The relying party is OpenSSL: it gets
the root and a vehicle's certificates, and asks where the vehicle's certificate says.  If it is missing, the
CRL is read with Python's cryptography, and OCSP is skipped, aloud.
"""

import json
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from secrets import token_hex
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import AuthorityInformationAccessOID

from birthmark.pki.certificates import from_pem, to_pem
from demo.audit import BATCH, ISSUING, Audit
from demo.realm import WentWrong, Workshop, secret_file
from tools.programs import find

SECONDS = 30
_PUBLISHED = re.compile(r"^published (\S+), (\d+) octets", re.MULTILINE)
_VERDICT = re.compile(r": (good|revoked|unknown)$", re.MULTILINE)
_REVOKED = re.compile(r"^error (\S+): verification failed$", re.MULTILINE)

_HOST = """\
[realm]
name = "acme"
environment = "test"
organization = "Acme Motors"

[database]
{database}

[public-plane]
port = {port}
directory = "www"
ocsp = "live"

[public-plane.key-store]
kind = "software"
directory = "keys"
passphrase-file = "passphrase"
"""
_PUBLICATION = """
[publication]
url = "{url}"
directory = "../public/www"
"""


class PublicHost:
    """The host of the public role, and what others learn from it."""

    def __init__(self, workshop: Workshop) -> None:
        """Use a workshop's directory ``public``; ``found`` fills it."""
        self._workshop = workshop
        self._screen = workshop.screen
        self.url = f"http://127.0.0.1:{workshop.public_port}"
        self.sizes: dict[str, int] = {}
        """Octets of each CRL, as ``birthmark publish`` last said."""

    def found(self) -> None:
        """Write the host's settings, and into the realm's where it publishes: certificates will say so."""
        place, realm = self._workshop.public, self._workshop.realm
        secret_file(place / "passphrase", token_hex(16))
        settings = realm / "birthmark.toml"
        text = _HOST.format(database=_database(settings), port=self._workshop.public_port)
        (place / "birthmark.toml").write_text(text)
        publication = _PUBLICATION.format(url=self.url)
        with settings.open("a") as file:
            file.write(publication)
        self._screen.say("Into birthmark.toml goes where the realm publishes; each certificate will say it:")
        self._screen.output(publication.strip().splitlines())

    @contextmanager
    def open(self, audit: Audit) -> Iterator[None]:
        """Give the host the right to answer, publish for the first time, and serve until the block ends."""
        public_key = self._workshop.public / "responder.pem"
        made = self._workshop.birthmark(
            *("responder", "key", "--settings", "../public/birthmark.toml"), answer=lambda _: []
        )
        public_key.write_text(made.stdout)
        self._workshop.birthmark(
            *("responder", "enrol", "--authority", ISSUING, "--key", "../public/responder.pem")
        )
        self.publish()
        with self._workshop.public_role():
            keys = sorted(path.name for path in (self._workshop.public / "keys").iterdir())
            audit.claim(
                f"the public role's host holds one key ({', '.join(keys)}), which certifies nothing: its"
                " certificate is for OCSP answers only",
                holds=len(keys) == 1 and self._only_answers(made.stdout),
            )
            yield

    def _only_answers(self, public_key: str) -> bool:
        """Tell whether the responder's certificate is of this key, and for nothing but answers."""
        der = (self._workshop.public / "www" / "responders" / "ocsp" / f"{ISSUING}.cer").read_bytes()
        certificate = x509.load_der_x509_certificate(der)
        extensions = certificate.extensions
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
        purposes = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return (
            (key,) == from_pem(public_key, "PUBLIC KEY")
            and not usage.key_cert_sign
            and not usage.crl_sign
            and list(purposes) == [x509.oid.ExtendedKeyUsageOID.OCSP_SIGNING]
        )

    def publish(self) -> int:
        """Publish what changed, and return how many octets of CRLs that is."""
        said = self._workshop.birthmark("publish").stdout
        sizes = {path: int(octets) for path, octets in _PUBLISHED.findall(said)}
        if not sizes:
            raise WentWrong("nothing was published")
        self.sizes |= sizes
        return sum(sizes.values())

    # --- what relying parties see ----------------------------------------------------------------------

    def skipped(self) -> bool:
        """Tell whether nobody is there to ask, and say so."""
        if find("openssl") is not None:
            return False
        self._screen.say(
            "openssl is not installed, so nobody asked for a status: SKIPPED (Debian package openssl)",
            style="bold yellow",
        )
        return True

    def statuses(self, vehicles: Sequence[Path]) -> list[str]:
        """Return what OpenSSL says of each vehicle after asking by OCSP: good, revoked, unknown.

        Returns an empty list if the answer is not to be believed.
        """
        (where,) = {_ocsp_location(_certificate(vehicle)) for vehicle in vehicles}
        asked = [word for vehicle in vehicles for word in ("-cert", self._relative(vehicle / "device.crt"))]
        chain = self._relative(vehicles[0] / "chain.pem")
        words = ["-CAfile", "root.crt", "-issuer", chain, *asked, "-url", where]
        self._screen.command(words, "openssl ocsp")
        done = self._openssl(["ocsp", *words])
        self._screen.output(line.strip() for line in done.stdout.splitlines() if "Update:" not in line)
        if done.returncode != 0 or "Response verify OK" not in done.stderr + done.stdout:
            self._screen.output(done.stderr.splitlines())
            return []
        return _VERDICT.findall(done.stdout)

    def refused(self, vehicles: Sequence[Path]) -> set[Path]:
        """Return the vehicles that the CRL which their certificates name has revoked.

        Raises:
            WentWrong: they name several, or the CRL there is not what was published or not the authority's.
        """
        named = {_crl_location(_certificate(vehicle)) for vehicle in vehicles}
        if len(named) != 1:
            raise WentWrong(f"the certificates name {len(named)} CRLs")
        (url,) = named
        octets = _fetch(url)
        path = url.removeprefix(f"{self.url}/")
        if self.sizes.get(path) != len(octets):
            raise WentWrong(f"{path} has {len(octets)} octets, which is not what was published")
        self._screen.say(f"{url}, where the certificates say it is, has {len(octets)} octets.")
        fetched = self._workshop.audit / "fetched.crl"
        fetched.write_text(to_pem(octets, "X509 CRL"))
        if find("openssl") is None:
            return _refused_without_openssl(octets, vehicles)
        chain = self._relative(vehicles[0] / "chain.pem")
        words = [
            "-crl_check",
            "-CRLfile",
            self._relative(fetched),
            "-CAfile",
            "root.crt",
            "-untrusted",
            chain,
        ]
        self._screen.command(words, "openssl verify", more="../vehicles/*/device.crt")
        refused: set[Path] = set()
        for start in range(0, len(vehicles), BATCH):
            refused |= self._refused_by_openssl(words, vehicles[start : start + BATCH])
        return refused

    def _refused_by_openssl(self, words: Sequence[str], vehicles: Sequence[Path]) -> set[Path]:
        files = {str(place / "device.crt"): place for place in vehicles}
        done = self._openssl(["verify", "-no-CApath", "-no-CAstore", *words, *files])
        good = {line.removesuffix(": OK") for line in done.stdout.splitlines() if line.endswith(": OK")}
        bad = set(_REVOKED.findall(done.stderr))
        errors = {
            line for line in done.stderr.splitlines() if line.startswith("error ") and "lookup:" in line
        }
        if good | bad != files.keys() or errors - {"error 23 at 0 depth lookup: certificate revoked"}:
            raise WentWrong(f"openssl verify did not judge every vehicle: {', '.join(sorted(errors)[:3])}")
        return {files[name] for name in bad}

    def _openssl(self, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["openssl", *words],
            cwd=self._workshop.realm,
            env=self._workshop.environment | {"no_proxy": "127.0.0.1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    def _relative(self, path: Path) -> str:
        return os.path.relpath(path, self._workshop.realm)


def _database(settings: Path) -> str:
    """Return the realm's database as the settings beside it in ``public`` have to name it."""
    table = tomllib.loads(settings.read_text())["database"]
    file = table["url"].removeprefix("sqlite:///")
    if file != table["url"]:
        return f"url = {json.dumps(f'sqlite:///../realm/{file}')}"
    password = os.path.relpath(settings.parent / table["password-file"], settings.parent.parent / "public")
    return f"url = {json.dumps(table['url'])}\npassword-file = {json.dumps(password)}"


def _certificate(vehicle: Path) -> x509.Certificate:
    (der,) = from_pem((vehicle / "device.crt").read_text())
    return x509.load_der_x509_certificate(der)


def _ocsp_location(certificate: x509.Certificate) -> str:
    access = certificate.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    found = [one for one in access if one.access_method == AuthorityInformationAccessOID.OCSP]
    if len(found) != 1:
        raise WentWrong("a certificate does not say whom to ask by OCSP")
    return str(found[0].access_location.value)


def _crl_location(certificate: x509.Certificate) -> str:
    (point,) = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    if point.full_name is None:
        raise WentWrong("a certificate does not say where its CRL is")
    return str(point.full_name[0].value)


def _fetch(url: str) -> bytes:
    where = urlsplit(url)
    try:
        with closing(HTTPConnection(where.netloc, timeout=SECONDS)) as connection:
            connection.request("GET", where.path)
            answer = connection.getresponse()
            octets = answer.read()
    except (OSError, HTTPException) as failed:
        raise WentWrong(f"{url}: {failed}") from failed
    if answer.status != 200:
        raise WentWrong(f"{url}: {answer.status}")
    return octets


def _refused_without_openssl(octets: bytes, vehicles: Sequence[Path]) -> set[Path]:
    crl = x509.load_der_x509_crl(octets)
    issuer = x509.load_der_x509_certificate(from_pem((vehicles[0] / "chain.pem").read_text())[0])
    key = issuer.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not crl.is_signature_valid(key):
        raise WentWrong("the CRL is not signed by the authority")
    revoked = {one.serial_number for one in crl}
    return {vehicle for vehicle in vehicles if _certificate(vehicle).serial_number in revoked}
