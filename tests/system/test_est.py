"""Every endpoint of EST by curl and openssl, on a served realm and each database (SPEC H1; RFC 7030, 8951).

What curl gets is read by openssl and by Python's mail parser, and what was issued goes through pkilint.
"""

import base64
import itertools
import ssl
from collections.abc import Iterator
from email import message_from_bytes, policy
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_private_key

from birthmark.pki import der
from birthmark.pki.certificates import Certificate, from_pem
from birthmark.pki.profiles import load
from tests.support.enrolling import (
    LOCAL,
    Bench,
    DeviceRealm,
    Told,
    code_for,
    device_realm,
    est,
    openssl,
    operational_run,
)
from tests.support.gateways import Vehicle, vehicle
from tests.support.lint import openssl_strict, pkilint_findings, unwaived
from tests.support.postgresql import LocalPostgreSQL
from tests.support.server import RUN, Http, Server, tls_context, until

DELIVERING, DUE = "RUN-2", "RUN-3"
"""Runs whose keys are made by the service, and whose requests a person looks at."""
IDEVIDS, LDEVIDS = "RUN-4", "LOCAL-2"
"""Runs of IEEE 802.1AR's profiles, which have alternative names."""
HARDWARE = ("--variable", "hardware_type=1.3.6.1.4.1.32473.1")
_names = itertools.count(1)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def plane(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeviceRealm]:
    """A served realm with a device plane of two processes, on each database."""
    cluster: LocalPostgreSQL | None = None
    if request.param == "postgresql":
        cluster = request.getfixturevalue("postgresql")
    made = device_realm(tmp_path_factory.mktemp("est") / "realm", cluster, processes=2, default_run=LOCAL)
    operational_run(made.realm)
    operational_run(made.realm, LDEVIDS, "--profile", "ldevid", *HARDWARE)
    made.realm.open_run(DELIVERING, 1000, "--delivered")
    made.realm.open_run(DUE, 1000, "--approval")
    made.realm.open_run(IDEVIDS, 1000, "--profile", "idevid", *HARDWARE)
    with Server(realm=made.realm) as server:
        yield made
        assert "Traceback" not in server.told()
        assert "PRIVATE KEY" not in server.told()
    made.realm.check()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(folder=tmp_path, name=f"EST{next(_names)}")


def bootstrap(plane: DeviceRealm, bench: Bench) -> Vehicle:
    """Give a device a bootstrap certificate."""
    out = bench.file("bootstrap")
    plane.realm.run(
        "bootstrap", "issue", "--name", bench.name, "--hardware-id", f"serial:{bench.name}", "--out", out,
    )  # fmt: skip
    return Vehicle(id=f"serial:{bench.name}", certificate=out / "station.crt", key=out / "station.key")


def authorities(plane: DeviceRealm, run: str) -> bytes:
    """Return what stands above a run's certificates (PEM)."""
    return est(plane, f"{run}/cacerts").certificates()


def issued(told: Told, profile: str = "vehicle") -> Certificate:
    """Return the one certificate of an answer, which lints clean."""
    (octets,) = from_pem(told.certificates().decode("ascii"))
    certificate = Certificate.from_der(octets)
    assert unwaived(pkilint_findings(octets), load(profile)) == []
    return certificate


def local(plane: DeviceRealm, bench: Bench, run: str = LOCAL) -> Vehicle:
    """Bring a device through the line, and give it a certificate for where it works."""
    born = vehicle(plane.realm, bench.name, bench.folder)
    told = est(plane, f"{run}/simpleenroll", bench.request(), who=born)
    return bench.hold(told.certificates(), chain=authorities(plane, run))


# --- what everybody may know


def test_the_authorities_above_a_run_are_given_to_anybody(plane: DeviceRealm, tmp_path: Path) -> None:
    told = est(plane, f"{RUN}/cacerts")
    found = set(from_pem(told.certificates().decode("ascii")))
    (root,) = from_pem(plane.root.read_text(encoding="ascii"))
    assert root in found, "RFC 7030 section 4.1.3: all that lead to the root, and that"
    assert "content-transfer-encoding" not in told.headers, "RFC 8951 section 3"
    (issuing,) = found - {root}
    openssl_strict(root, [], issuing, tmp_path)
    for version in ("--tls-max", "1.2"), ("--tlsv1.3",):
        assert set(from_pem(est(plane, "cacerts", None, *version).certificates().decode("ascii"))) == found
    assert est(plane, "NO-RUN/cacerts").status == 404


def test_what_a_request_should_hold_is_told_with_values(plane: DeviceRealm, bench: Bench) -> None:
    told = est(plane, f"{LDEVIDS}/csrattrs")
    assert (told.status, told.headers["content-type"]) == (200, "application/csrattrs")
    shown = openssl("asn1parse", "-inform", "DER", told=openssl("base64", "-d", "-A", told=told.body))
    for wanted in (b"id-ecPublicKey", b"prime256v1", b"ecdsa-with-SHA256", b"Extension Request"):
        assert wanted in shown
    assert bench.name.encode() not in shown
    device = vehicle(plane.realm, bench.name, bench.folder)
    mine = openssl("base64", "-d", "-A", told=est(plane, f"{LDEVIDS}/csrattrs", who=device).body)
    assert bench.name.encode() in openssl("asn1parse", "-inform", "DER", told=mine), "whose it is is known"


def test_full_cmc_is_not_there(plane: DeviceRealm) -> None:
    told = est(plane, "fullcmc", b"MAA=", content_type="application/pkcs7-mime")
    assert (told.status, "simpleenroll" in told.json["detail"]) == (404, True)


# --- certificates


@pytest.mark.parametrize("version", [("--tls-max", "1.2"), ("--tlsv1.3",)], ids=["1.2", "1.3"])
@pytest.mark.parametrize(
    "chunked", [(), ("--header", "Transfer-Encoding: chunked")], ids=["length", "chunked"]
)
def test_a_bootstrap_certificate_becomes_an_identity(
    plane: DeviceRealm, bench: Bench, version: tuple[str, ...], chunked: tuple[str, ...]
) -> None:
    who, request = bootstrap(plane, bench), bench.request()
    told = est(plane, f"{RUN}/simpleenroll", request, *version, *chunked, who=who)
    certificate = issued(told)
    roots = set(from_pem(authorities(plane, RUN).decode("ascii")))
    (root,) = from_pem(plane.root.read_text(encoding="ascii"))
    openssl_strict(root, list(roots - {root}), certificate.der, bench.folder)
    key = openssl("pkey", "-in", bench.file("key.pem"), "-pubout", "-outform", "DER")
    assert certificate.subject_public_key_info == key
    entries = [entry for entry in plane.realm.entries() if entry.get("device") == f"serial:{bench.name}"]
    assert [(entry["kind"], entry["actor"]) for entry in entries] == [
        ("device-issued", f"bootstrap:{bench.name}")
    ]
    again = est(plane, f"{RUN}/simpleenroll", request, *version, who=who, wrapped=False)
    assert again.body == told.body, "the same request gets the same answer, in lines or not"


def test_a_request_in_der_or_pem_is_understood_too(plane: DeviceRealm, bench: Bench) -> None:
    who, request = bootstrap(plane, bench), bench.request()
    octets = request.read_bytes()
    first = est(
        plane, f"{RUN}/simpleenroll", octets, "--header", "Content-Transfer-Encoding: binary", who=who
    )
    pem = openssl("req", "-inform", "DER", "-in", request)
    assert est(plane, f"{RUN}/simpleenroll", pem, who=who).certificates() == first.certificates()


def test_a_code_is_good_for_one_key(plane: DeviceRealm, bench: Bench) -> None:
    code = (bench.name, code_for(plane.realm, bench.name, f"serial:{bench.name}", RUN))
    # The label may be left out: the code is for one run.
    first = est(plane, "simpleenroll", bench.request(), code=code)
    issued(first)
    assert est(plane, "simpleenroll", bench.file("key.pem.csr"), code=code).body == first.body
    for operation in ("simpleenroll", "serverkeygen"):
        other = est(plane, operation, bench.request("other.pem"), code=code)
        assert (other.status, other.reason) == (409, "idempotency-key-reused")
    renewed = est(plane, "simplereenroll", bench.request(), code=code)
    assert (renewed.status, renewed.reason) == (403, "not-permitted")
    refused = [entry["code"] for entry in plane.realm.entries() if entry["kind"] == "refused"]
    assert refused[-3:] == ["idempotency-key-reused"] * 2 + ["not-permitted"]


def test_what_a_code_was_refused_for_does_not_use_it_up(plane: DeviceRealm, bench: Bench) -> None:
    code = (bench.name, code_for(plane.realm, bench.name, f"serial:{bench.name}", RUN))
    openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", bench.file("rsa.pem"))
    refused = est(plane, "simpleenroll", bench.request("rsa.pem"), code=code)
    assert (refused.status, refused.reason) == (422, "key-algorithm")
    issued(est(plane, "simpleenroll", bench.request(), code=code))


def test_whoever_shows_nothing_is_asked_who_it_is(plane: DeviceRealm, bench: Bench) -> None:
    request = bench.request()
    size = len(plane.realm.entries())
    asked = est(plane, f"{RUN}/simpleenroll", request)
    assert (asked.status, asked.body[:15]) == (401, b"nobody is named")
    assert len(plane.realm.entries()) == size, "a question is no refusal"
    told = est(plane, f"{RUN}/simpleenroll", request, code=(bench.name, "a" * 26))
    assert (told.status, told.reason) == (401, "unauthenticated")
    assert "no such name and code" in told.json["detail"]
    assert plane.realm.entries()[-1]["request"] == f"POST /.well-known/est/{RUN}/simpleenroll"
    for one in (asked, told):
        assert one.headers["www-authenticate"] == 'Basic realm="acme", charset="UTF-8"'
    # curl that waits to be asked (--anyauth) is, and then answers.
    made = (bench.name, code_for(plane.realm, bench.name, f"serial:{bench.name}", RUN))
    told = est(plane, f"{RUN}/simpleenroll", request, "--anyauth", code=made)
    assert (told.status, b"HTTP/1.1 200 OK" in told.body) == (401, True)
    revoked = plane.realm.run("bootstrap", "revoke", bench.name, "--reason", "lost")
    assert revoked.returncode == 0
    assert est(plane, f"{RUN}/simpleenroll", request, code=made).status == 403


def test_a_released_device_gets_a_certificate_for_where_it_works_and_renews_it(
    plane: DeviceRealm, bench: Bench
) -> None:
    """Its alternative names are those of IEEE 802.1AR, which openssl copies into the request."""
    idevid = vehicle(plane.realm, bench.name, bench.folder, run=IDEVIDS)
    told = est(plane, f"{LDEVIDS}/simpleenroll", bench.request(), who=idevid)
    first = issued(told, "ldevid")
    ldevid = bench.hold(told.certificates(), chain=authorities(plane, LDEVIDS))
    bench.request("next.pem")
    renewing = bench.file("renewing.pem")
    openssl(
        "x509", "-x509toreq", "-in", ldevid.certificate, "-key", bench.file("next.pem"),
        "-copy_extensions", "copy", "-out", renewing,
    )  # fmt: skip
    # Without a label: the run is that of the certificate that is shown.
    again = est(plane, "simplereenroll", openssl("req", "-in", renewing, "-outform", "DER"), who=ldevid)
    second = issued(again, "ldevid")
    assert second.subject_name == first.subject_name
    assert second.serial_number != first.serial_number
    plain = est(plane, "simplereenroll", bench.request("third.pem"), who=ldevid)
    assert (plain.status, plain.reason) == (422, "renewal-names")
    stranger = est(
        plane, f"{LOCAL}/simplereenroll", openssl("req", "-in", renewing, "-outform", "DER"), who=ldevid
    )
    assert (stranger.status, stranger.reason) == (403, "not-permitted")
    assert "run LOCAL-1" in stranger.json["detail"]


def test_an_identity_is_not_renewed(plane: DeviceRealm, bench: Bench) -> None:
    idevid = vehicle(plane.realm, bench.name, bench.folder)
    request = bench.request(subject=f"/O=Acme Motors/CN={bench.name}")
    told = est(plane, f"{RUN}/simplereenroll", request, who=idevid)
    assert (told.status, told.reason) == (403, "not-permitted"), told.body


def test_a_request_waits_for_a_person_who_may_refuse_it(plane: DeviceRealm, bench: Bench) -> None:
    who, request = bootstrap(plane, bench), bench.request()
    for _ in range(2):
        told = est(plane, f"{DUE}/simpleenroll", request, who=who)
        assert (told.status, told.headers["retry-after"]) == (202, "30"), told.body
    waiting = [
        e for e in plane.realm.entries() if e["kind"] == "enrolment-waiting" and bench.name in e["device"]
    ]
    (entry,) = waiting
    plane.realm.run("enrolment", "approve", entry["enrolment"], "--reason", "it is on my desk")
    issued(est(plane, f"{DUE}/simpleenroll", request, who=who))

    other = Bench(folder=bench.folder, name=f"{bench.name}R")
    who, request = bootstrap(plane, other), other.request()
    assert est(plane, f"{DUE}/simpleenroll", request, who=who).status == 202
    entry = plane.realm.entries()[-1]
    plane.realm.run("enrolment", "refuse", entry["enrolment"], "--reason", "nobody knows it")
    refused = est(plane, f"{DUE}/simpleenroll", request, who=who)
    assert (refused.status, refused.reason) == (403, "not-permitted")
    assert "nobody knows it" in refused.json["detail"]
    assert plane.realm.entries()[-1]["kind"] == "refused"


# --- keys that the service makes


def parts(told: Told) -> tuple[tuple[str, bytes], tuple[str, bytes]]:
    """Return media type and octets of both parts of an answer, as Python's mail parser reads them."""
    assert told.status == 200, told.body
    assert told.headers["content-type"].startswith("multipart/mixed; boundary=")
    assert told.headers["cache-control"] == "no-store"
    head = f"Content-Type: {told.headers['content-type']}\r\n\r\n".encode()
    message = message_from_bytes(head + told.body, policy=policy.HTTP)
    found = [
        (
            f"{part.get_content_type()} {part.get_param('smime-type', '')}".strip(),
            part.get_payload(decode=True),
        )
        for part in message.iter_parts()
    ]
    (one, key), (other, certificates) = found
    assert isinstance(key, bytes)
    assert isinstance(certificates, bytes)
    return (one, key), (other, certificates)


def is_its_key(private: bytes, certificates: bytes) -> Certificate:
    pem = openssl("pkcs7", "-inform", "DER", "-print_certs", told=certificates)
    (octets,) = from_pem(pem.decode("ascii"))
    certificate = Certificate.from_der(octets)
    assert openssl("pkey", "-inform", "DER", "-pubout", "-outform", "DER", told=private) == (
        certificate.subject_public_key_info
    )
    assert unwaived(pkilint_findings(octets), load("vehicle")) == []
    return certificate


def test_a_key_is_delivered_inside_tls(plane: DeviceRealm, bench: Bench) -> None:
    told = est(plane, f"{DELIVERING}/serverkeygen", bench.request(), who=bootstrap(plane, bench))
    (kind, private), (other, certificates) = parts(told)
    assert (kind, other) == ("application/pkcs8", "application/pkcs7-mime certs-only")
    certificate = is_its_key(private, certificates)
    placeholder = openssl("pkey", "-in", bench.file("key.pem"), "-pubout", "-outform", "DER")
    assert certificate.subject_public_key_info != placeholder
    born = est(plane, f"{DELIVERING}/simpleenroll", bench.request("own.pem"), who=bootstrap_again(bench))
    assert (born.status, born.reason) == (403, "not-permitted")


def bootstrap_again(bench: Bench) -> Vehicle:
    out = bench.file("bootstrap")
    return Vehicle(id="", certificate=out / "station.crt", key=out / "station.key")


def sealing(bench: Bench, identifier: bytes, *, kind: str = "54", can: str | None = None) -> bytes:
    """Return a request (DER) that names a key for the private key, made by openssl and put together again."""
    key = der.encode(der.OCTET_STRING, identifier)
    attributes = [_attribute(f"1.2.840.113549.1.9.16.2.{kind}", key)]
    if can is not None:
        able = der.encode(der.SEQUENCE, der.encode(der.SEQUENCE, der.oid(can)))
        attributes.append(_attribute("1.2.840.113549.1.9.15", able))
    octets = bench.request().read_bytes()
    info, algorithm, signature = (
        octets[start:end] for _, start, _, end in der.children(octets, *der.only(octets, der.SEQUENCE)[2:])
    )
    fields = [info[start:end] for _, start, _, end in der.children(info, *der.only(info, der.SEQUENCE)[2:])]
    # The key of such a request is a placeholder, and nothing has to be signed with it (section 4.4.1).
    info = der.encode(der.SEQUENCE, *fields[:3], der.encode(0xA0, *attributes))
    return der.encode(der.SEQUENCE, info, algorithm, signature)


def _attribute(kind: str, value: bytes) -> bytes:
    return der.encode(der.SEQUENCE, der.oid(kind), der.encode(der.SET, value))


def identifier_of(who: Vehicle) -> bytes:
    certificate = x509.load_pem_x509_certificate(who.certificate.read_bytes())
    return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest


def test_a_key_is_sealed_to_the_bootstrap_certificate_and_openssl_opens_and_verifies_it(
    plane: DeviceRealm, bench: Bench
) -> None:
    """RFC 7030 section 4.4.2: signed by who made it, and enveloped."""
    who = bootstrap(plane, bench)
    request = sealing(bench, identifier_of(who), can="2.16.840.1.101.3.4.1.45")
    told = est(plane, f"{DELIVERING}/serverkeygen", request, who=who)
    (kind, envelope), (_, certificates) = parts(told)
    assert kind == "application/pkcs7-mime server-generated-key"
    signed = openssl(
        "cms", "-decrypt", "-inform", "DER", "-recip", who.certificate, "-inkey", who.key, told=envelope
    )
    whole = der.encode(der.SEQUENCE, der.oid("1.2.840.113549.1.7.2"), der.encode(0xA0, signed))
    package = openssl(
        "cms", "-verify", "-inform", "DER", "-CAfile", plane.root, "-purpose", "sslserver", told=whole
    )
    _, _, content, _ = der.only(package, der.SEQUENCE)
    private = package[content:]
    is_its_key(private, certificates)
    read = load_der_private_key(private, None)
    assert isinstance(read, ec.EllipticCurvePrivateKey)
    assert read.private_numbers().private_value.to_bytes(32, "big") not in envelope
    entry = next(e for e in plane.realm.entries() if e.get("device") == f"serial:{bench.name}")
    assert (entry["origin"], entry["enveloped_to"]) == (
        "delivered",
        Certificate.from_pem(_first(who.certificate)).serial_hex,
    )


def _first(path: Path) -> str:
    head, end, _ = path.read_text(encoding="ascii").partition("-----END CERTIFICATE-----\n")
    return head + end


def test_a_key_that_cannot_be_sealed_as_it_was_asked_for_is_not_made(
    plane: DeviceRealm, bench: Bench
) -> None:
    """RFC 7030 section 4.4.1.2: "the request MUST be terminated and an error returned"."""
    who = bootstrap(plane, bench)
    mine, code = (
        identifier_of(who),
        code_for(plane.realm, f"{bench.name}.c", f"serial:{bench.name}", DELIVERING),
    )
    for request, rule in (
        (sealing(bench, b"somebody else's"), "envelope-recipient"),
        (sealing(bench, mine, kind="37"), "envelope-recipient"),
        (sealing(bench, mine, can="1.2.840.113549.3.7"), "envelope-algorithms"),
    ):
        told = est(plane, f"{DELIVERING}/serverkeygen", request, who=who)
        assert (told.status, told.reason) == (422, rule), told.body
    told = est(plane, "serverkeygen", sealing(bench, mine), code=(f"{bench.name}.c", code))
    assert (told.status, told.reason) == (422, "envelope-recipient"), "a code opens nothing"
    assert not any(e["kind"] == "device-issued" and bench.name in e["device"] for e in plane.realm.entries())


def test_nothing_is_sealed_to_an_identity_which_only_signs(plane: DeviceRealm, bench: Bench) -> None:
    idevid = vehicle(plane.realm, bench.name, bench.folder)
    told = est(plane, f"{LOCAL}/serverkeygen", sealing(bench, identifier_of(idevid)), who=idevid)
    assert (told.status, told.reason) == (422, "envelope-recipient")
    assert "keyAgreement" in told.json["detail"]
    (_, private), (_, certificates) = parts(est(plane, f"{LOCAL}/serverkeygen", bench.request(), who=idevid))
    is_its_key(private, certificates)


# --- the connection and the request belong together


def challenged(bench: Bench, password: str) -> Path:
    """Make a request with a challengePassword."""
    config = bench.file("config")
    config.write_text(
        "[req]\ndistinguished_name = dn\nattributes = more\nprompt = no\n"
        f"[dn]\nCN = {bench.name}\n[more]\nchallengePassword = {password}\n",
        encoding="ascii",
    )
    request = bench.request()
    openssl(
        "req", "-new", "-key", bench.file("key.pem"), "-config", config, "-outform", "DER", "-out", request
    )
    return request


def test_a_request_may_be_bound_to_its_connection(plane: DeviceRealm, bench: Bench) -> None:
    """By a client of Python's: curl does not tell what its TLS has."""
    context = tls_context(bench_credentials(plane, bench), root=plane.root)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with Http(("127.0.0.1", plane.port), context) as client:
        client.get("/.well-known/est/cacerts")
        tls = client.connection.sock
        assert isinstance(tls, ssl.SSLSocket)
        binding = tls.get_channel_binding("tls-unique")
        assert binding is not None
        request = challenged(bench, base64.b64encode(binding).decode("ascii"))
        body = base64.b64encode(request.read_bytes())
        path, header = f"/.well-known/est/{RUN}/simpleenroll", {"Content-Type": "application/pkcs10"}
        assert client.ask("POST", path, body, header).status == 200
    with Http(("127.0.0.1", plane.port), context) as another:
        told = another.ask("POST", path, body, header)
        assert (told.status, told.json["rule"]) == (422, "channel-binding"), "it is another connection"


def bench_credentials(plane: DeviceRealm, bench: Bench) -> Path:
    return bootstrap(plane, bench).certificate.parent


def test_a_request_that_names_its_connection_has_to_be_made_for_it(plane: DeviceRealm, bench: Bench) -> None:
    """RFC 7030 section 3.5; TLS 1.3 has no tls-unique to compare."""
    who = bootstrap(plane, bench)
    request = challenged(bench, "dFsAXmJnjokBtDvr")
    for version, why in ((("--tls-max", "1.2"), "not the tls-unique"), (("--tlsv1.3",), "TLS 1.3 has no")):
        told = est(plane, f"{RUN}/simpleenroll", request, *version, who=who)
        assert (told.status, told.reason, why in told.json["detail"]) == (422, "channel-binding", True)
        assert plane.realm.entries()[-1]["rule"] == "channel-binding"


# --- bad input: each is told why, and stands in the log


def der_bomb(depth: int = 2000) -> bytes:
    """Return sequences in sequences."""
    octets = b""
    for _ in range(depth):
        octets = der.encode(der.SEQUENCE, octets)
    return octets


@pytest.mark.parametrize("operation", ["simpleenroll", "simplereenroll", "serverkeygen"])
def test_what_is_no_request_is_refused(plane: DeviceRealm, bench: Bench, operation: str) -> None:
    who, good = bootstrap(plane, bench), bench.request().read_bytes()
    if operation == "simplereenroll":
        who = vehicle(plane.realm, bench.name, bench.folder)
    whole = base64.b64encode(good)
    for body, status, code in (
        (b"", 400, "malformed-request"),
        (b"====", 400, "malformed-request"),
        (whole[:-5] + b"!", 400, "malformed-request"),
        (whole + b"QUFB", 400, "malformed-request"),
        (base64.b64encode(good[:-1]), 400, "malformed-request"),
        (base64.b64encode(der_bomb()), 400, "malformed-request"),
        (b"\x30\x84\xff\xff\xff\xff" + good[4:], 400, "malformed-request"),
        (b"\x30\x80" + good + b"\0\0", 400, "malformed-request"),
        (bytes(range(256)) * 40, 400, "malformed-request"),
        (b"-----BEGIN CERTIFICATE REQUEST-----\n", 400, "malformed-request"),
        (b"A" * 20_000, 413, "too-large"),
        (b"A" * 100_000, 413, "too-large"),
    ):
        size = len(plane.realm.entries())
        told = est(plane, f"{RUN}/{operation}", body, who=who)
        assert (told.status, told.reason) == (status, code), (body[:60], told.body)
        entry = plane.realm.entries()[size]
        assert (entry["kind"], entry["code"]) == ("refused", code)
    for wrong in ("application/json", "application/pkcs10x", "text/plain; application/pkcs10"):
        told = est(plane, f"{RUN}/{operation}", good, who=who, content_type=wrong)
        assert (told.status, "application/pkcs10" in told.json["detail"]) == (415, True)
        assert plane.realm.entries()[-1]["kind"] == "refused"
    assert est(plane, f"{RUN}/{operation}", None, who=who).status == 405
    endless = est(
        plane, f"{RUN}/{operation}", b"A" * 3_000_000, "--header", "Transfer-Encoding: chunked", who=who
    )
    assert endless.status == 413


def test_a_request_for_another_device_is_refused(plane: DeviceRealm, bench: Bench) -> None:
    who = bootstrap(plane, bench)
    other = bench.request("other.pem", subject="/CN=SOMEBODY")
    for run, operation in ((RUN, "simpleenroll"), (DELIVERING, "serverkeygen")):
        told = est(plane, f"{run}/{operation}", other, who=who)
        assert (told.status, told.reason) == (422, "csr-names-the-device"), told.body
        assert plane.realm.entries()[-1]["rule"] == "csr-names-the-device"
    station = Vehicle(
        id="", certificate=plane.realm.station() / "station.crt", key=plane.realm.station() / "station.key"
    )
    nameless = bench.request(subject="/O=Acme Motors")
    for run, operation in ((RUN, "simpleenroll"), (DELIVERING, "serverkeygen")):
        told = est(plane, f"{run}/{operation}", nameless, who=station)
        assert (told.status, told.reason, "names no device" in told.json["detail"]) == (
            422,
            "csr-names-the-device",
            True,
        )
    idevid = vehicle(plane.realm, f"{bench.name}V", bench.folder)
    told = est(plane, f"{LOCAL}/simpleenroll", other, who=idevid)
    assert (told.status, told.reason) == (422, "csr-names-the-device")


def test_a_run_is_for_those_it_is_for(plane: DeviceRealm, bench: Bench) -> None:
    plane.realm.open_run(f"FULL-{bench.name}", 1)
    who, request = bootstrap(plane, bench), bench.request()
    for path, status, code in (
        ("NO-RUN/simpleenroll", 404, "not-found"),
        (f"{'x' * 200}/simpleenroll", 404, "not-found"),
        (f"{LOCAL}/simpleenroll", 403, "not-permitted"),
        (f"{DELIVERING}/simpleenroll", 403, "not-permitted"),
    ):
        size = len(plane.realm.entries())
        told = est(plane, path, request, who=who)
        assert (told.status, told.reason) == (status, code), (path, told.body)
        assert plane.realm.entries()[size]["kind"] == "refused"
    first = Bench(folder=bench.folder, name=f"{bench.name}F")
    issued(est(plane, f"FULL-{bench.name}/simpleenroll", first.request(), who=bootstrap(plane, first)))
    told = est(plane, f"FULL-{bench.name}/simpleenroll", request, who=who)
    assert (told.status, told.reason) == (409, "quota-exhausted")
    # What was refused once is not refused for ever.
    issued(est(plane, f"{RUN}/simpleenroll", request, who=who))


def test_a_device_that_is_not_released_gets_nothing_for_the_field(plane: DeviceRealm, bench: Bench) -> None:
    unproved = vehicle(plane.realm, bench.name, bench.folder, release=False)
    told = est(plane, f"{LOCAL}/simpleenroll", bench.request(), who=unproved)
    assert (told.status, told.reason, "is issued" in told.json["detail"]) == (409, "illegal-transition", True)


def test_a_revoked_bootstrap_certificate_is_nobodys(plane: DeviceRealm, bench: Bench) -> None:
    who, request = bootstrap(plane, bench), bench.request()
    plane.realm.run("bootstrap", "revoke", bench.name, "--reason", "lost")
    told = est(plane, f"{RUN}/simpleenroll", request, who=who)
    assert (told.status, told.reason, told.headers["connection"]) == (403, "unauthenticated", "close")
    refused = [entry for entry in plane.realm.entries() if entry["kind"] == "refused"]
    assert any(bench.name in entry["actor"] and entry.get("code") == "unauthenticated" for entry in refused)


def test_a_closed_plane_lets_nobody_in(plane: DeviceRealm, bench: Bench) -> None:
    who, request = bootstrap(plane, bench), bench.request()
    plane.realm.run("exposure", "close", "plane:device", "--reason", "night")
    try:

        def shut() -> bool:
            return est(plane, f"{RUN}/simpleenroll", request, who=who).exit != 0

        assert until(shut), "the handshake ends with an alert"
    finally:
        plane.realm.run("exposure", "clear", "plane:device", "--reason", "morning")

    # Each process hears of it in its own time, and asking again makes nothing twice.
    def admitted() -> Told | None:
        told = est(plane, f"{RUN}/simpleenroll", request, who=who)
        return told if told.status == 200 else None

    told = until(admitted)
    assert told is not None
    issued(told)
    assert any(
        entry["kind"] == "refused" and entry["request"] in ("handshake", "connection")
        for entry in plane.realm.entries()
    )
