"""Ceremonies with a key elsewhere: in an offline store, or with somebody else (SPEC A3, A4)."""

import subprocess
from base64 import b64decode, b64encode
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from birthmark import errors
from birthmark.adapters.softkeys import SoftwareKeyStore
from birthmark.adapters.system import SystemClock
from birthmark.floor.authorities import Custody
from birthmark.pki import profiles
from birthmark.pki.algorithms import ALGORITHMS
from birthmark.pki.certificates import Certificate, assemble, to_pem
from birthmark.pki.keys import KeyAlgorithm, KeyLabel
from birthmark.ports import KeyStore
from birthmark.services.ceremonies import resume
from birthmark.services.ceremony_events import Event
from birthmark.services.ceremony_file import parse
from birthmark.services.ceremony_steps import Known, Progress
from tests.services.ceremonies import (
    ANNA,
    BELA,
    MALLORY,
    Journey,
    begun,
    journey_in,
    session,
    steps,
)
from tests.support.ceremonies import Person, carried_out, sealed
from tests.support.ceremony_files import realm_text
from tests.support.programs import need
from tests.support.realm import PASSPHRASE, START, Hands, hierarchy

# --- a key elsewhere ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Journey]:
    with journey_in(tmp_path_factory.mktemp("journey")) as found:
        yield found


def test_what_was_made_offline_is_taken_when_it_is_what_the_file_orders(journey: Journey) -> None:
    progress = begun(journey.text)
    resume(progress, [*journey.asked, *journey.answer])
    assert progress.current is None
    assert progress.authorities["root"].custody is Custody.OFFLINE
    assert {one.place for one in progress.sessions} == {"online", "offline"}
    assert sealed(progress, [ANNA, BELA], journey.clock).signers == ("anna", "bela")


_ALTERED: dict[str, tuple[dict[str, Any], str]] = {
    "another subject": ({"subject": "Mallory CA"}, "subject"),
    "another key": ({"key": MALLORY.key.public_key()}, "subject public key info"),
    "another issuer": ({"issuer": "Mallory Root"}, "issuer"),
    "another begin": ({"begin": timedelta(seconds=30)}, "it begins"),
    "an earlier end": ({"end": datetime(2031, 1, 1, tzinfo=UTC)}, "not after"),
    "a short serial number": ({"serial": 5}, "serialNumber has"),
    "another path length": ({"replace": x509.BasicConstraints(ca=True, path_length=1)}, "extensions"),
    "no authority": ({"replace": x509.BasicConstraints(ca=False, path_length=None)}, "extensions"),
    "a missing extension": ({"drop": x509.KeyUsage}, "extensions"),
    "one more extension": (
        {"add": x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])}, "extensions"
    ),
    "another criticality": ({"critical": False}, "criticality"),
    "another signer": ({"signer": MALLORY}, "signed by root"),
}  # fmt: skip


def altered(original: bytes, root: KeyStore, changes: dict[str, Any]) -> bytes:
    """Return the certificate with one thing changed, signed all the same."""
    old = x509.load_der_x509_certificate(original)

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    builder = (
        x509.CertificateBuilder()
        .serial_number(changes.get("serial", old.serial_number))
        .issuer_name(name(changes["issuer"]) if "issuer" in changes else old.issuer)
        .subject_name(name(changes["subject"]) if "subject" in changes else old.subject)
        .not_valid_before(old.not_valid_before_utc + changes.get("begin", timedelta()))
        .not_valid_after(changes.get("end", old.not_valid_after_utc))
        .public_key(changes.get("key", old.public_key()))
    )
    for extension in old.extensions:
        value = extension.value
        if isinstance(value, changes.get("drop", ())):
            continue
        if isinstance(value, x509.BasicConstraints):
            value = changes.get("replace", value)
            critical = changes.get("critical", True)
        else:
            critical = extension.critical
        builder = builder.add_extension(value, critical=critical)
    if "add" in changes:
        builder = builder.add_extension(changes["add"], critical=False)
    made = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    signer: Person | None = changes.get("signer")
    tbs = made.tbs_certificate_bytes
    signature = signer.sign(tbs) if signer else root.sign(KeyLabel("root"), tbs)
    return assemble(tbs, ALGORITHMS[KeyAlgorithm.EC_P256].signature_algorithm, signature)


@pytest.mark.parametrize("case", _ALTERED)
def test_a_certificate_from_offline_that_differs_in_anything_is_refused(journey: Journey, case: str) -> None:
    changes, complaint = _ALTERED[case]
    octets = altered(b64decode(journey.answer[1]["certificate"]), journey.there, changes)
    progress = begun(journey.text)
    resume(progress, [*journey.asked, journey.answer[0]])
    with pytest.raises(errors.PolicyRefused, match=complaint):
        progress.take(dict(journey.answer[1], certificate=b64encode(octets).decode()))
    progress.take(journey.answer[1])


def test_an_answer_that_too_few_attended_is_refused(journey: Journey) -> None:
    progress = begun(journey.text)
    resume(progress, journey.asked)
    alone = dict(journey.answer[0], custodians=journey.answer[0]["custodians"][:1])
    with pytest.raises(errors.NotPermitted, match="needs 2 of its 3 custodians"):
        progress.take(alone)


# --- keys and certificates of others (SPEC A4) --------------------------------------------------------------


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root that OpenSSL made, and that knows nothing of us."""
    place = tmp_path_factory.mktemp("group")
    subprocess.run(
        [
            need("openssl"), "req", "-x509", "-newkey", "rsa:3072", "-nodes", "-days", "7300",
            "-keyout", place / "root.key", "-out", place / "root.crt", "-subj", "/O=Group/CN=Group Root",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign",
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    return place


_FOREIGN = """\
  - import-authority: group
    kind: root
    issuer: self
    sha256: {sha256}
    certificate: |
{pem}
    licence:
      owner: the group's own authority
"""
_OURS = """\
  - generate-key: below-group
    store: service
    purpose: issuing-ca
    kind: ec-p256
  - certificate: below-group
    kind: issuing
    profile: issuing
    key: below-group
    issuer: group
    subject: {organization: Acme Motors, authority: Acme under Group}
    not-after: 2030-01-01
    licence:
      owner: quality
      ends: 2030-01-01
"""


def now_hands() -> Hands:
    """A clock that shows what OpenSSL's shows, and a minute more."""
    return Hands(SystemClock().now().replace(microsecond=0) + timedelta(minutes=1))


def foreign_text(group: Path, rest: str = _OURS) -> str:
    root = Certificate.from_pem((group / "root.crt").read_text())
    pem = "\n".join(f"      {line}" for line in root.pem.splitlines())
    top = realm_text([ANNA]).partition("steps:\n")[0] + "steps:\n"
    return top + _FOREIGN.format(sha256=root.fingerprint, pem=pem) + rest


def signed_by_group(group: Path, request: bytes, *, days: int = 3650, extensions: str) -> bytes:
    """Return what the group's people make of our request."""
    (group / "our.csr").write_text(to_pem(request, "CERTIFICATE REQUEST"))
    (group / "ext").write_text(extensions)
    subprocess.run(
        [
            need("openssl"), "x509", "-req", "-in", group / "our.csr", "-CA", group / "root.crt",
            "-CAkey", group / "root.key", "-CAcreateserial", "-days", str(days), "-extfile", group / "ext",
            "-out", group / "our.crt",
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    return Certificate.from_pem((group / "our.crt").read_text()).der


GOOD = (
    "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\n"
    "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
)


@pytest.fixture(scope="module")
def asked_group(group: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Event], bytes]:
    """Events up to the request, and the request."""
    keys = SoftwareKeyStore.open(tmp_path_factory.mktemp("byo") / "keys", PASSPHRASE)
    clock = now_hands()
    progress = begun(foreign_text(group))
    progress.take(session(progress, [ANNA], clock))
    waiting = steps(progress, {"service": keys}, clock)
    keys.close()
    assert (waiting.step, waiting.store) == (3, "")
    return list(progress.events), waiting.request


def test_our_authority_under_a_foreign_root_is_established_with_its_certificate(
    group: Path, asked_group: tuple[list[Event], bytes]
) -> None:
    events, request = asked_group
    certificate = signed_by_group(group, request, extensions=GOOD)
    progress = begun(foreign_text(group))
    resume(progress, events)
    assert steps(progress, {}, now_hands(), brought=certificate) is None
    ours, theirs = progress.authorities["below-group"], progress.authorities["group"]
    assert (ours.issuer, ours.custody, theirs.custody) == ("group", Custody.SERVICE, Custody.FOREIGN)
    assert theirs.key_label == ""
    (group / "ours.crt").write_text(to_pem(ours.der))
    subprocess.run(
        [need("openssl"), "verify", "-x509_strict", "-CAfile", group / "root.crt", group / "ours.crt"],
        check=True, capture_output=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("extensions", "days", "complaint"),
    [
        (GOOD.replace(",pathlen:0", ""), 3650, "path length"),
        (GOOD.replace("pathlen:0", "pathlen:3"), 3650, "path length"),
        (GOOD.replace("CA:TRUE,pathlen:0", "CA:FALSE"), 3650, "does not let it certify"),
        (GOOD.replace(",cRLSign", ""), 3650, "key usage"),
        (GOOD, 30, "its end"),
    ],
    ids=["no path length", "longer path", "no authority", "signs no lists", "ends early"],
)
def test_a_foreign_certificate_that_falls_short_is_refused(
    group: Path, asked_group: tuple[list[Event], bytes], extensions: str, days: int, complaint: str
) -> None:
    events, request = asked_group
    certificate = signed_by_group(group, request, extensions=extensions, days=days)
    progress = begun(foreign_text(group))
    resume(progress, events)
    with pytest.raises(errors.PolicyRefused, match=complaint):
        steps(progress, {}, now_hands(), brought=certificate)


def test_a_certificate_for_another_key_or_of_another_root_is_refused(
    group: Path, asked_group: tuple[list[Event], bytes]
) -> None:
    events, _ = asked_group
    for certificate in (hierarchy().issuing, hierarchy().root):
        progress = begun(foreign_text(group))
        resume(progress, events)
        with pytest.raises(errors.PolicyRefused, match="not as the ceremony's file orders"):
            steps(progress, {}, now_hands(), brought=certificate)


def test_a_foreign_certificate_is_imported_by_its_hash_only(group: Path) -> None:
    text = foreign_text(group, "")
    with pytest.raises(errors.MalformedRequest, match="sha256: the certificate's is"):
        begun(text.replace("sha256: ", "sha256: 00"))
    issuing_pem = to_pem(hierarchy().issuing)
    root = Certificate.from_pem((group / "root.crt").read_text())
    block = "\n".join(f"      {line}" for line in root.pem.splitlines())
    other = "\n".join(f"      {line}" for line in issuing_pem.splitlines())
    wrong = text.replace(block, other).replace(
        root.fingerprint, Certificate.from_der(hierarchy().issuing).fingerprint
    )
    progress = begun(wrong)
    progress.take(session(progress, [ANNA], now_hands()))
    with pytest.raises(errors.PolicyRefused, match="not signed by self"):
        steps(progress, {}, now_hands())


def test_a_foreign_certificate_with_names_nobody_reads_is_one_refusal(group: Path) -> None:
    """An x400Address (RFC 5280 section 4.2.1.6) is a name that the library does not read."""
    text = foreign_text(group, "")
    root = Certificate.from_pem((group / "root.crt").read_text())
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Group Root")])
    names = x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, bytes.fromhex("3004a3023000"))
    odd = to_pem(
        x509.CertificateBuilder(name, name, key.public_key(), 7, START, datetime(2030, 1, 1, tzinfo=UTC))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.DER)
    )
    block, other = ("\n".join(f"      {line}" for line in pem.splitlines()) for pem in (root.pem, odd))
    progress = begun(
        text.replace(block, other).replace(root.fingerprint, Certificate.from_pem(odd).fingerprint)
    )
    progress.take(session(progress, [ANNA], now_hands()))
    with pytest.raises(errors.PolicyRefused, match="x400Address"):
        steps(progress, {}, now_hands())


def test_a_cross_certificate_has_the_authoritys_name_and_key(keys: KeyStore, tmp_path: Path) -> None:
    """SPEC A5: whoever believes the old root believes what the new one certifies."""
    text = realm_text([ANNA, BELA], required=2, environment="production")
    first = text.partition("  - generate-key: issuing-1")[0]
    first = first.replace('organization: "Acme Motors"', 'organization: "Acme Motors"\n      path-len: "2"')
    second = first[first.index("  - generate-key: root\n") :].replace('"Acme Motors"', '"Acme Neu"')
    for old in ("generate-key: root", "certificate: root", "    key: root"):
        second = second.replace(old, f"{old}-2")
    cross = (
        "  - cross-certificate: root-2-by-root\n    authority: root-2\n    issuer: root\n"
        "    profile: intermediate\n"
        "    subject: {organization: Acme Neu, authority: NAME, path-len: '1'}\n"
    )
    stores, people = {"service": keys, "root": keys}, [ANNA, BELA]
    made = carried_out(
        parse((first + second + cross.replace("NAME", "acme Root CA")).encode()), people, stores, Hands()
    )
    assert set(made.authorities) == {"root", "root-2"}
    for name in ("root", "root-2-by-root"):
        (tmp_path / f"{name}.crt").write_text(to_pem(made.certificates[name]))
    command: list[str | Path] = [
        need("openssl"),
        "verify",
        "-no_check_time",
        "-x509_strict",
        "-CAfile",
        tmp_path / "root.crt",
    ]
    subprocess.run([*command, tmp_path / "root-2-by-root.crt"], check=True, capture_output=True)
    first_one = Certificate.from_der(made.certificates["root-2"])
    crossed = Certificate.from_der(made.certificates["root-2-by-root"])
    assert first_one.subject_name == crossed.subject_name
    assert first_one.subject_public_key_info == crossed.subject_public_key_info
    wrong = Progress(
        parse((first + second + cross.replace("NAME", "Root CA")).encode()), Known(), profiles.load
    )
    assert wrong.ceremony.sha256 != made.ceremony.sha256
    fresh = SoftwareKeyStore.open(tmp_path / "fresh", PASSPHRASE)
    wrong.take(session(wrong, people, Hands()))
    with pytest.raises(errors.PolicyRefused, match="its subject is not root-2's"):
        steps(wrong, {"service": fresh, "root": fresh}, Hands())
    fresh.close()


def test_a_new_authority_never_has_the_key_of_another(tmp_path: Path) -> None:
    """SPEC A5: to take over is to have a new key; ``replaces`` changes nothing about that."""
    text = realm_text([ANNA], ceremony="acme-twice")
    again = text[text.index("  - certificate: issuing-1\n") :]
    again = again.replace("certificate: issuing-1", "certificate: issuing-2").replace("CA 1", "CA 2")
    over = again.replace("    licence:", "    replaces: issuing-1\n    licence:")
    for number, one in enumerate((again, over)):
        fresh = SoftwareKeyStore.open(tmp_path / str(number), PASSPHRASE)
        progress = begun(text + one)
        progress.take(session(progress, [ANNA], Hands()))
        with pytest.raises(errors.PolicyRefused, match="the key issuing-1 is authority issuing-1's"):
            steps(progress, {"service": fresh, "root": fresh}, Hands())
        fresh.close()


def test_an_intermediate_below_a_root_that_lets_none_follow_is_told_what_the_root_lacks(
    tmp_path: Path,
) -> None:
    text = realm_text([ANNA], ceremony="acme-tier")
    text = text.replace(
        "kind: issuing\n    profile: issuing", "kind: intermediate\n    profile: intermediate"
    )
    text = text.replace("purpose: issuing-ca", "purpose: intermediate-ca")
    for organization, refused in (
        ('"Acme Motors"\n    licence', True),
        ('"Acme Motors"\n      path-len: "2"\n    licence', False),
    ):
        fresh = SoftwareKeyStore.open(tmp_path / str(refused), PASSPHRASE)
        progress = begun(text.replace('"Acme Motors"\n    licence', organization, 1))
        progress.take(session(progress, [ANNA], Hands()))
        if refused:
            with pytest.raises(errors.PolicyRefused, match='needs path_len: "2"'):
                steps(progress, {"service": fresh, "root": fresh}, Hands())
        else:
            assert steps(progress, {"service": fresh, "root": fresh}, Hands()) is None
        fresh.close()
