"""What a CA says in CMP is what pyasn1's reading of RFC 9810 finds in it, and it writes the same octets."""

from typing import Any

import pytest
from pyasn1.codec.der.decoder import decode as pyasn1_decode  # type: ignore[import-untyped]  # it has no types
from pyasn1.codec.der.encoder import encode as pyasn1_encode  # type: ignore[import-untyped]  # nor has it
from pyasn1_alt_modules import rfc4211, rfc9810  # type: ignore[import-untyped]  # nor have they

from birthmark.pki import cmp_bodies, cmp_der, der
from birthmark.pki.cmp import (
    BodyKind,
    InfoTypeAndValue,
    answer_to,
    confirm_wait_time,
    decode,
    implicit_confirm,
    read_info,
)
from birthmark.pki.cmp_bodies import cert_req_template, granted, poll_response, rejected, waiting
from birthmark.pki.cmp_protection import protect
from birthmark.pki.cmp_requests import read_error
from birthmark.pki.cmp_status import ACCEPTED, PKIFailureInfo, PKIStatus, PKIStatusInfo
from birthmark.pki.crmf import CertId, CertTemplate, read_template
from birthmark.pki.keys import KeyAlgorithm
from tests.pki.cmp_parts import PBM, UNTIL, certificate, header, name, signer, under_secret, unprotected
from tests.pki.cmp_responder import crl
from tests.pki.sample import NOW, spki

CERTIFICATE, CA = certificate("device"), certificate("ca")
REFUSED = PKIStatusInfo(status=PKIStatus.REJECTION, text=("no", "not ever"), fail_info=PKIFailureInfo.BAD_POP)


def theirs(kind: BodyKind, body: bytes) -> Any:  # pyasn1 has no types
    """The body in a message, as pyasn1 reads it; it writes the whole message with the same octets."""
    octets = protect(header(), kind, body, signer("ca"), [CA])
    assert decode(octets).body == body
    read, rest = pyasn1_decode(octets, asn1Spec=rfc9810.PKIMessage())
    assert rest == b""
    assert pyasn1_encode(read) == octets
    assert read["body"].getName() == kind.replace("pkiConf", "pkiconf")
    return read["body"].getComponent()


def untagged(component: Any) -> bytes:  # pyasn1 has no types
    """The octets of a component, without the explicit tag that it may have."""
    octets: bytes = pyasn1_encode(component)
    return octets if octets[0] == der.SEQUENCE else octets[der.children(octets)[0][2] :]


@pytest.mark.parametrize("kind", [BodyKind.IP, BodyKind.CP, BodyKind.KUP])
@pytest.mark.parametrize("roots", [[], [CA], [CA, certificate("root", issuer="root")]])
def test_a_certificate_is_granted(kind: BodyKind, roots: list[bytes]) -> None:
    read = theirs(kind, granted(-1, CERTIFICATE, ca_pubs=roots))
    (response,) = read["response"]
    assert int(response["certReqId"]) == -1
    assert int(response["status"]["status"]) == PKIStatus.ACCEPTED
    pair = response["certifiedKeyPair"]["certOrEncCert"]
    assert untagged(pair["certificate"]) == CERTIFICATE
    assert [pyasn1_encode(one) for one in read["caPubs"]] == roots


def test_a_certificate_waits_or_is_refused() -> None:
    (response,) = theirs(BodyKind.CP, waiting(0, "somebody looks at it"))["response"]
    assert int(response["status"]["status"]) == PKIStatus.WAITING
    assert [str(text) for text in response["status"]["statusString"]] == ["somebody looks at it"]
    (response,) = theirs(BodyKind.IP, rejected(0, REFUSED))["response"]
    assert [str(text) for text in response["status"]["statusString"]] == ["no", "not ever"]
    assert response["status"]["failInfo"].prettyPrint().endswith("1")
    assert not response["certifiedKeyPair"].isValue


def test_an_error_says_why() -> None:
    body = cmp_bodies.error(REFUSED)
    assert int(theirs(BodyKind.ERROR, body)["pKIStatusInfo"]["status"]) == PKIStatus.REJECTION
    assert read_error(body) == REFUSED


def test_a_client_is_told_when_to_ask_again() -> None:
    (entry,) = theirs(BodyKind.POLL_REP, poll_response(-1, 300, "at lunch"))
    assert (int(entry["certReqId"]), int(entry["checkAfter"])) == (-1, 300)
    assert [str(text) for text in entry["reason"]] == ["at lunch"]


def test_a_confirmation_is_confirmed() -> None:
    theirs(BodyKind.PKICONF, cmp_bodies.PKICONF)


def test_revocations_are_answered_one_by_one() -> None:
    which = CertId(issuer=name("ca").public_bytes(), serial_number=4711)
    read = theirs(BodyKind.RP, cmp_bodies.revocation_response([ACCEPTED, REFUSED], [which, which]))
    assert [int(one["status"]) for one in read["status"]] == [0, 2]
    assert [int(one["serialNumber"]) for one in read["revCerts"]] == [4711, 4711]
    assert not theirs(BodyKind.RP, cmp_bodies.revocation_response([ACCEPTED]))["revCerts"].isValue


KINDS = {
    cmp_bodies.CA_CERTS: rfc9810.id_it_caCerts,
    cmp_bodies.ROOT_CA_KEY_UPDATE: rfc9810.id_it_rootCaKeyUpdate,
    cmp_bodies.CERT_REQ_TEMPLATE: rfc9810.id_it_certReqTemplate,
    cmp_bodies.ROOT_CA_CERT: rfc9810.id_it_rootCaCert,
    cmp_bodies.CRL_STATUS_LIST: rfc9810.id_it_crlStatusList,
    cmp_bodies.CRLS: rfc9810.id_it_crls,
    cmp_bodies.CURRENT_CRL: rfc9810.id_it_currentCRL,
}


def test_identifiers_are_those_of_the_standard() -> None:
    for ours, standard in KINDS.items():
        assert ours == pyasn1_encode(standard)


def value(info: InfoTypeAndValue) -> Any:  # pyasn1 has no types
    """The value of one piece of information, as pyasn1 reads it."""
    body = cmp_bodies.general_response(info)
    assert read_info(body) == (info,)
    (read,) = theirs(BodyKind.GENP, body)
    if info.value is None:
        assert not read["infoValue"].isValue
        return None
    found, rest = pyasn1_decode(info.value, asn1Spec=SPECS[info.info_type])
    assert rest == b""
    assert pyasn1_encode(found) == info.value
    return found


SPECS = {
    cmp_bodies.CA_CERTS: rfc9810.CaCertsValue(),
    cmp_bodies.ROOT_CA_KEY_UPDATE: rfc9810.RootCaKeyUpdateValue(),
    cmp_bodies.CRLS: rfc9810.CRLsValue(),
    cmp_bodies.CURRENT_CRL: rfc9810.CurrentCRLValue(),
}


def test_authorities_and_lists_are_told() -> None:
    assert len(value(cmp_bodies.ca_certs([CA, CERTIFICATE]))) == 2
    assert value(cmp_bodies.ca_certs([])) is None
    assert len(value(cmp_bodies.crls([crl()]))) == 1
    assert value(cmp_bodies.crls([])) is None
    one = crl()
    assert pyasn1_encode(value(cmp_bodies.current_crl(one))) == one


def test_a_new_root_is_told_with_its_links() -> None:
    new, newer, old = certificate("new", issuer="new"), certificate("new"), certificate("old", issuer="new")
    read = value(cmp_bodies.root_ca_key_update(new, newer, old))
    for field, octets in (("newWithNew", new), ("newWithOld", newer), ("oldWithNew", old)):
        assert untagged(read[field]) == octets
    alone = value(cmp_bodies.root_ca_key_update(new))
    assert not alone["newWithOld"].isValue
    assert value(cmp_bodies.root_ca_key_update(None)) is None


def test_a_template_names_fields_and_kinds_of_key() -> None:
    # Of templates OpenSSL is the judge (test_crmf): pyasn1 writes the tag of a Name, a CHOICE, as implicit.
    wanted = CertTemplate(subject=b"\x30\x00", issuer=name("ca").public_bytes(), extensions=extension())
    kinds = [KeyAlgorithm.EC_P256, KeyAlgorithm.ED25519, KeyAlgorithm.RSA_3072]
    octets = cert_req_template(wanted, kinds).value
    assert octets is not None
    template, keys = der.children(octets, *der.only(octets, der.SEQUENCE)[2:])
    assert read_template(octets, template) == wanted
    specs, rest = pyasn1_decode(cmp_der.whole(octets, keys), asn1Spec=rfc4211.Controls())
    assert rest == b""
    assert [specs[place]["type"] for place in range(3)] == [
        *(rfc9810.id_regCtrl_algId, rfc9810.id_regCtrl_algId, rfc9810.id_regCtrl_rsaKeyLen),
    ]
    assert bytes(specs[2]["value"]) == bytes.fromhex("02020c00")
    assert bytes(specs[1]["value"]) == bytes.fromhex("300506032b6570")
    assert bytes(specs[0]["value"]) == bytes.fromhex("301306072a8648ce3d020106082a8648ce3d030107")


def test_a_template_may_say_nothing_of_keys_or_nothing_at_all() -> None:
    whole = CertTemplate(
        serial_number=-1,
        subject=name("device").public_bytes(),
        public_key=spki(KeyAlgorithm.EC_P256, "device"),
    )
    octets = cert_req_template(whole).value
    assert octets is not None
    (template,) = der.children(octets, *der.only(octets, der.SEQUENCE)[2:])
    assert read_template(octets, template) == whole
    assert value(cert_req_template(None)) is None


def extension() -> bytes:
    """An extension with an empty value, in Extensions (DER)."""
    return bytes.fromhex("300b 3009 0603551d0e 04020400")


# --- headers of answers ---


@pytest.mark.parametrize(("asked", "answered"), [(1, 2), (2, 2), (3, 3), (4, 3)])
def test_an_answer_has_the_version_of_what_it_answers(asked: int, answered: int) -> None:
    ours = answer_to(header(pvno=asked), sender=name("ca").public_bytes(), now=NOW, nonce=b"a" * 16)
    assert ours.pvno == answered


def test_the_header_of_an_answer_is_read_by_pyasn1() -> None:
    asked = header()
    infos = [implicit_confirm(), confirm_wait_time(UNTIL)]
    ours = answer_to(asked, sender=name("ca").public_bytes(), now=NOW, nonce=b"a" * 16, general_info=infos)
    octets = protect(ours, BodyKind.PKICONF, cmp_bodies.PKICONF, under_secret(PBM))
    read, _ = pyasn1_decode(octets, asn1Spec=rfc9810.PKIMessage())
    assert pyasn1_encode(read) == octets
    theirs_read = read["header"]
    assert bytes(theirs_read["recipNonce"]) == asked.sender_nonce
    assert bytes(theirs_read["transactionID"]) == asked.transaction_id
    assert str(theirs_read["messageTime"]) == "20261122123015Z"
    assert [str(info["infoType"]) for info in theirs_read["generalInfo"]] == [
        str(rfc9810.id_it_implicitConfirm),
        str(rfc9810.id_it_confirmWaitTime),
    ]
    again = decode(octets).header
    assert again.implicit_confirm
    assert (again.recipient, again.sender_nonce) == (asked.sender, b"a" * 16)


def test_an_error_to_a_stranger_has_no_protection() -> None:
    octets = unprotected(header(), BodyKind.ERROR, cmp_bodies.error(REFUSED))
    message = decode(octets)
    assert (message.protection, message.header.protection_alg, message.extra_certs) == (None, None, ())
    read, _ = pyasn1_decode(octets, asn1Spec=rfc9810.PKIMessage())
    assert pyasn1_encode(read) == octets


def test_the_chain_follows_the_signer_once() -> None:
    octets = protect(header(), BodyKind.PKICONF, cmp_bodies.PKICONF, signer("ca"), [CA, CERTIFICATE])
    assert decode(octets).extra_certs == (CA, CERTIFICATE)
