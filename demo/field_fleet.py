"""Another fleet: an authority that OpenSSL alone made, its boats, its CRL, and how it is registered.

Its owner shows that they hold its key by the recipe that ``birthmark fleet challenge`` prints.
"""

import re
from pathlib import Path

from demo.field_devices import Answer, Field, Vehicle
from demo.realm import WentWrong
from demo.waiting import until

NAME = "fjord"
_CONFIGURATION = """\
[req]
distinguished_name = none
[none]
[root]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[boat]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = clientAuth
[ca]
default_ca = fjord
[fjord]
dir = {place}
database = $dir/index.txt
new_certs_dir = $dir
certificate = $dir/root.pem
private_key = $dir/root.key
serial = $dir/serial
crlnumber = $dir/crlnumber
default_md = sha256
default_days = 30
default_crl_days = 7
policy = any
crl_extensions = crl
[any]
commonName = supplied
[crl]
authorityKeyIdentifier = keyid
"""
_NONCE = re.compile(r"^nonce +([0-9a-f]{64})$", re.MULTILINE)
_SHOWN = ("name", "status", "subject", "nonce", "first_contact", "revocation", "number", "entries", "fleet")
_CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


class Fleet:
    """One fleet, in a directory of its own."""

    def __init__(self, field: Field) -> None:
        """Make its authority, and two boats."""
        self._field = field
        self._run = field.workshop.birthmark
        self.place = field.workshop.directory / "fleet"
        self.place.mkdir(mode=0o700)
        for name, text in (("index.txt", ""), ("serial", "1000\n"), ("crlnumber", "1000\n")):
            (self.place / name).write_text(text)
        self._settings = self.place / "openssl.cnf"
        self._settings.write_text(_CONFIGURATION.format(place=field.relative(self.place)))
        self.root = self.place / "root.pem"
        field.openssl(
            *("req", "-x509", *_CURVE, "-config", self._settings, "-extensions", "root", "-days", "3650"),
            *("-subj", "/O=Fjord AS/CN=Fjord Fleet Root"),
            *("-keyout", self.place / "root.key", "-out", self.root),
            show=True,
        )
        self.good, self.bad = self._boat("BOAT-1"), self._boat("BOAT-2")

    def _boat(self, name: str) -> Vehicle:
        key, request, certificate = (self.place / f"{name}.{end}" for end in ("key", "csr", "pem"))
        self._field.openssl(
            *("req", "-new", *_CURVE, "-config", self._settings, "-subj", f"/CN={name}"),
            *("-keyout", key, "-out", request),
        )
        self._ca("-extensions", "boat", "-batch", "-notext", "-in", request, "-out", certificate)
        return Vehicle(vin=name, certificate=certificate, key=key)

    def _ca(self, *words: str | Path, show: bool = False) -> None:
        self._field.openssl("ca", "-config", self._settings, *words, show=show)

    def register(self) -> None:
        """Have the gateway's people register it, once its owner has shown the key.

        Raises:
            WentWrong: no nonce was given.
        """
        asked = self._run(
            *("fleet", "challenge", NAME, "--certificate", self._field.relative(self.root)),
            *("--first-contact", "register"),
            answer=_told,
        )
        nonce = _NONCE.search(asked.stdout)
        if nonce is None:
            raise WentWrong("the challenge has no nonce")
        key, request, shown = (self.place / f"throwaway.{end}" for end in ("key", "csr", "pem"))
        self._field.openssl(
            "req", "-new", *_CURVE, "-keyout", key, "-subj", f"/CN={nonce[1]}", "-out", request, show=True
        )
        self._field.openssl(
            *("x509", "-req", "-in", request, "-CA", self.root, "-CAkey", self.place / "root.key"),
            *("-CAcreateserial", "-sha256", "-days", "2", "-out", shown),
            show=True,
        )
        self._run("fleet", "register", NAME, "--verification", self._field.relative(shown))

    def revoke_one(self) -> None:
        """Revoke one boat, and bring the CRL that says so."""
        crl = self.place / "fjord.crl"
        self._ca("-revoke", self.bad.certificate, "-crl_reason", "keyCompromise", show=True)
        self._ca("-gencrl", "-out", crl, show=True)
        self._run("fleet", "crl", NAME, self._field.relative(crl), answer=_told)

    def arrival(self) -> Answer:
        """Have the good boat report, again and again until the running gateway has taken its root up."""
        until(lambda: self._field.contact(self.good, show=False).status != 0)
        return self._field.contact(self.good)


def _told(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith(_SHOWN)]
