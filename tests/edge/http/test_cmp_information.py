"""What CMP clients ask besides certificates, as pyasn1 and OpenSSL read it (RFC 9483 section 4.3)."""

from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from pyasn1.codec.der.decoder import decode  # type: ignore[import-untyped]  # it has no types
from pyasn1.codec.der.encoder import encode  # type: ignore[import-untyped]  # likewise
from pyasn1_alt_modules import rfc5280, rfc9480  # type: ignore[import-untyped]  # likewise

from birthmark.floor.locations import Locations
from birthmark.pki import cmp_bodies, cmp_der, der
from birthmark.pki.certificates import Certificate
from birthmark.pki.cmp import BodyKind, InfoTypeAndValue, directory_name, encode_info
from birthmark.pki.crl_reading import read_crl
from birthmark.pki.revocation import encode_time
from tests.support.cmpplane import CMPPlane, Party, cmp_plane, nobody, request
from tests.support.realm import ORGANIZATION, Line, hierarchy, make_line

BASE = "http://pki.example"
RUN_VALUES = {"organization": ORGANIZATION, "hardware_type": "1.3.6.1.4.1.32473.1"}


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    """A line with R1 for identities, and L1 for where devices work, whose certificates name a CRL."""
    made = make_line(tmp_path, f"sqlite:///{tmp_path / 'line.sqlite'}")
    made.open_run()
    made.open_operational(variables={**RUN_VALUES, **Locations(BASE).variables("issuing-1")})
    yield made
    made.close()


@pytest.fixture
def plane(line: Line, tmp_path: Path) -> Iterator[CMPPlane]:
    with cmp_plane(line, tmp_path) as served:
        yield served


def genm(by: Party, kind: bytes, value: bytes | None = None) -> bytes:
    return by.says(BodyKind.GENM, encode_info([InfoTypeAndValue(info_type=kind, value=value)]))


def told(plane: CMPPlane, by: Party, kind: bytes, value: bytes | None = None, path: str = "/p/L1") -> Any:
    """Return what a genp says: type, and value in DER or None."""
    answer = plane.ask(genm(by, kind, value), path)
    assert answer.kind == "genp", answer.text
    (info,) = answer.body
    found = info["infoValue"]
    return encode(info["infoType"]), bytes(found) if found.isValue else None


def test_the_authorities_and_that_no_root_is_newer(plane: CMPPlane) -> None:
    """RFC 9483 sections 4.3.1 and 4.3.2; OpenSSL's NULL in place of nothing is taken."""
    device = plane.device()
    for value in (None, cmp_der.NULL):
        kind, found = told(plane, device, cmp_bodies.CA_CERTS, value, "/p/L1/getcacerts")
        assert (kind, found) == (cmp_bodies.CA_CERTS, der.encode(der.SEQUENCE, hierarchy().issuing))
    root = hierarchy().root
    assert told(plane, device, cmp_bodies.ROOT_CA_CERT, root) == (cmp_bodies.ROOT_CA_KEY_UPDATE, None)


def test_a_template_has_what_the_profile_asks_and_blanks_for_the_rest(plane: CMPPlane) -> None:
    """RFC 9483 section 4.3.3: the device fills in what stands empty; publicKey is never there."""
    device = plane.device()
    answers = {}
    for name, by in (("known", device), ("unknown", plane.station)):
        _, value = told(plane, by, cmp_bodies.CERT_REQ_TEMPLATE, path="/p/L1/getcertreqtemplate")
        content, rest = decode(value, asn1Spec=rfc9480.CertReqTemplateContent())
        assert not rest
        assert not content["certTemplate"]["publicKey"].isValue
        answers[name] = content
    subjects = {name: subject_of(content) for name, content in answers.items()}
    organization = {"2.5.4.10": ORGANIZATION}
    assert subjects == {
        "known": organization | {"2.5.4.5": "D1"},
        "unknown": organization | {"2.5.4.5": ""},
    }
    extensions = {
        str(one["extnID"]): bytes(one["extnValue"]) for one in answers["known"]["certTemplate"]["extensions"]
    }
    got = plane.ask(device.says(BodyKind.CR, request()), "/p/L1")
    issued = {
        one.oid.dotted_string: one.value.public_bytes()
        for one in x509.load_der_x509_certificate(got.certificate).extensions
    }
    assert extensions.keys() == {"2.5.29.15", "2.5.29.37", "2.5.29.17"}
    assert extensions.items() <= issued.items(), "what is asked for is what is issued"
    curves = [
        str(decode(one["value"], asn1Spec=rfc5280.AlgorithmIdentifier())[0]["algorithm"])
        for one in answers["known"]["keySpec"]
    ]
    assert curves == ["1.2.840.10045.2.1"] * 2


def subject_of(content: Any) -> Mapping[str, str]:
    (names,) = content["certTemplate"]["subject"].values()
    return {str(one["type"]): str(decode(one["value"])[0]) for relative in names for one in relative}


def status_list(*sources: tuple[bytes, bytes | None]) -> bytes:
    return der.encode(
        der.SEQUENCE, *(der.encode(der.SEQUENCE, source, time or b"") for source, time in sources)
    )


def by_issuer(name: bytes) -> bytes:
    return der.encode(0xA1, der.encode(der.SEQUENCE, directory_name(name)))


def by_place(url: str) -> bytes:
    return der.encode(0xA0, der.encode(0xA0, der.encode(0x86, url.encode())))


def test_a_crl_is_told_to_whoever_has_none_or_an_older_one(line: Line, tmp_path: Path) -> None:
    """RFC 9483 section 4.3.4; currentCRL is for clients of RFC 4210."""
    publication = {"url": BASE, "directory": str(tmp_path / "www")}
    with cmp_plane(line, tmp_path, publication=publication) as plane:
        device = plane.device()
        own, place = (
            by_issuer(Certificate.from_der(hierarchy().issuing).subject_name),
            f"{BASE}/crl/issuing-1.crl",
        )
        wanted = cmp_bodies.CRL_STATUS_LIST
        assert told(plane, device, wanted, status_list((own, None))) == (cmp_bodies.CRLS, None)
        none = plane.ask(genm(device, cmp_bodies.CURRENT_CRL), "/p/L1")
        assert (none.kind, none.failure) == ("error", ("addInfoNotAvailable",))
        assert plane.application.publish is not None
        plane.application.publish.cycle()
        crl = (tmp_path / "www" / "crl" / "issuing-1.crl").read_bytes()
        at = read_crl(crl).this_update
        listed = der.encode(der.SEQUENCE, crl)
        for source in (own, by_place(place)):
            for time, expected in (
                (None, listed),
                (at - timedelta(seconds=1), listed),
                (at, None),
                (at + timedelta(hours=1), None),
            ):
                asked = status_list((source, None if time is None else encode_time(time)))
                assert told(plane, device, wanted, asked, "/p/L1/getcrls") == (cmp_bodies.CRLS, expected)
        other = by_issuer(Certificate.from_der(hierarchy().root).subject_name)
        elsewhere = status_list((other, None), (by_place("http://10.0.0.1/metadata"), None))
        assert told(plane, device, wanted, elsewhere) == (cmp_bodies.CRLS, None), "nothing is fetched"
        both = status_list((other, None), (own, None))
        assert told(plane, device, wanted, both) == (cmp_bodies.CRLS, listed)
        assert told(plane, device, cmp_bodies.CURRENT_CRL) == (cmp_bodies.CURRENT_CRL, crl)
        assert x509.load_der_x509_crl(crl).is_signature_valid(
            x509.load_der_x509_certificate(hierarchy().issuing).public_key()  # type: ignore[arg-type]  # it signs
        )
        plane.assert_sound()


def test_what_is_not_told_and_to_whom_nothing_is(plane: CMPPlane) -> None:
    device, boot = plane.device(), plane.code()
    for kind, value, failure in (
        (der.oid("1.3.6.1.5.5.7.4.2"), None, "addInfoNotAvailable"),
        (cmp_bodies.CA_CERTS, b"\x30\x00", "badDataFormat"),
        (cmp_bodies.CERT_REQ_TEMPLATE, b"\x04\x00", "badDataFormat"),
        (cmp_bodies.CRL_STATUS_LIST, None, "badDataFormat"),
        (cmp_bodies.CRL_STATUS_LIST, b"\x30\x00", "badDataFormat"),
    ):
        no = plane.ask(genm(device, kind, value), "/p/L1")
        assert (no.kind, no.failure) == ("error", (failure,)), no.text
    nothing = encode_info([])
    assert plane.ask(device.says(BodyKind.GENM, nothing), "/p/L1").failure == ("badDataFormat",)
    assert plane.ask(genm(nobody(), cmp_bodies.CA_CERTS), "/p/L1").failure == ("signerNotTrusted",)
    known = plane.ask(genm(boot, cmp_bodies.CA_CERTS), "/p/R1", by=boot)
    assert known.kind == "genp", "who has a code may ask before it enrols"
    line = plane.line
    line.service.carry(line.service.authorise.revoke(line.operator.caller, "bootstrap:dock-1", reason="lost"))
    gone = plane.ask(genm(boot, cmp_bodies.CA_CERTS), "/p/R1", by=boot)
    assert gone.failure == ("signerNotTrusted",)
    plane.assert_sound()
