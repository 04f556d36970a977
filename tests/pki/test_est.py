"""EST's octets are RFC 7030's: held against its examples, OpenSSL, pyasn1 and Python's mail parser."""

import base64
import subprocess
from email import message_from_bytes, policy
from email.message import EmailMessage
from functools import cache
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
    pkcs7,
)
from hypothesis import given
from hypothesis import strategies as st
from pyasn1.codec.der.decoder import decode  # type: ignore[import-untyped]  # it has no types
from pyasn1.codec.der.encoder import encode  # type: ignore[import-untyped]  # nor has it
from pyasn1.type import univ  # type: ignore[import-untyped]  # nor has it
from pyasn1_alt_modules import (  # type: ignore[import-untyped]  # nor have they
    rfc2986,
    rfc4108,
    rfc5652,
    rfc5751,
    rfc7030,
)

from birthmark.errors import MalformedRequest, TooLarge
from birthmark.pki import der
from birthmark.pki.certificates import to_pem
from birthmark.pki.envelope import recipient_of, seal
from birthmark.pki.est import (
    DecryptionKind,
    RequestedDecryption,
    certs_only,
    challenge_password,
    from_body,
    requested_decryption,
    server_key_parts,
    to_base64,
)
from birthmark.pki.keys import KeyAlgorithm
from birthmark.pki.profiles import load
from birthmark.secret import SecretBytes, Vanishing
from tests.pki.sample import private_key, realm, spki
from tests.pki.test_envelope import certified
from tests.support.programs import need

VECTORS = Path(__file__).parent.parent / "vectors" / "est"
LIMIT = 8192
P256 = KeyAlgorithm.EC_P256
AES256_WRAP, RSAES_OAEP = "2.16.840.1.101.3.4.1.45", "1.2.840.113549.1.1.7"


def vector(name: str) -> bytes:
    return (VECTORS / name).read_bytes()


def ran(*command: str, given: bytes = b"") -> bytes:
    done = subprocess.run(command, input=given, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@cache
def chain() -> list[bytes]:
    """A device's certificate and those above it; signed once, as no two signatures are the same."""
    ours = realm(P256)
    return [ours.issue(load("ldevid"), spki(P256, "device")), ours.issuing_der, ours.root_der]


# --- certificates only ---


def test_openssl_finds_every_certificate_in_a_certs_only_response() -> None:
    found = ran(
        need("openssl"), "pkcs7", "-inform", "DER", "-print_certs", given=certs_only(chain())
    ).decode()
    assert found.count("-----BEGIN CERTIFICATE-----") == 3
    for certificate in chain():
        assert to_pem(certificate).strip() in found


def test_a_certs_only_response_is_signed_data_that_nobody_signed() -> None:
    octets = certs_only(chain())
    content, rest = decode(octets, asn1Spec=rfc5652.ContentInfo())
    assert not rest
    assert str(content["contentType"]) == str(rfc5652.id_signedData)
    signed, rest = decode(content["content"], asn1Spec=rfc5652.SignedData())
    assert not rest
    assert int(signed["version"]) == 1
    assert str(signed["encapContentInfo"]["eContentType"]) == str(rfc5652.id_data)
    assert not signed["encapContentInfo"]["eContent"].isValue
    assert len(signed["digestAlgorithms"]) == len(signed["signerInfos"]) == 0
    assert encode(signed) == bytes(content["content"])


def test_the_answer_of_rfc_7030_holds_what_ours_to_the_same_certificate_holds() -> None:
    theirs = base64.b64decode(vector("simpleenroll-response.b64"))
    (certificate,) = pkcs7.load_der_pkcs7_certificates(theirs)
    ours = certs_only([certificate.public_bytes(Encoding.DER)])
    assert pkcs7.load_der_pkcs7_certificates(ours) == [certificate]
    signed = [
        decode(decode(octets, asn1Spec=rfc5652.ContentInfo())[0]["content"], asn1Spec=rfc5652.SignedData())[0]
        for octets in (theirs, ours)
    ]
    for field in ("version", "digestAlgorithms", "encapContentInfo", "certificates", "signerInfos"):
        assert signed[0][field] == signed[1][field]


@pytest.mark.parametrize("certificates", [[], [b""], [b"no certificate"]])
def test_what_is_no_certificate_is_in_no_answer(certificates: list[bytes]) -> None:
    with pytest.raises(ValueError, match=r"certificate|parsing"):
        certs_only(certificates)


# --- bodies ---


def test_base64_is_one_line_without_an_end() -> None:
    octets = certs_only(chain())
    text = to_base64(octets)
    assert not text.split()[1:]
    assert text == text.strip()
    assert ran(need("openssl"), "base64", "-d", "-A", given=text) == octets


def test_a_request_is_read_as_rfc_7030_wraps_it() -> None:
    for name in ("simpleenroll-request.b64", "serverkeygen-request.b64"):
        octets = from_body(vector(name), LIMIT)
        assert x509.load_der_x509_csr(octets).public_bytes(Encoding.DER) == octets


def test_a_request_is_read_in_every_form_that_clients_send() -> None:
    octets = base64.b64decode(vector("simpleenroll-request.b64"))
    text = base64.b64encode(octets)
    for body in (
        octets,
        text,
        text + b"\r\n",
        b"\r\n " + text.replace(b"A", b"A\t \v\f\r\n"),
        base64.encodebytes(octets),
        to_pem(octets, "CERTIFICATE REQUEST").encode(),
        b"\n" + to_pem(octets, "NEW CERTIFICATE REQUEST").replace("\n", "\r\n").encode(),
    ):
        assert from_body(body, len(body)) == octets


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" \r\n",
        b"0",
        b"0\x80\x00\x00",
        b"0\x00\x00",
        base64.b64encode(b"0\x00\x00"),
        base64.b64encode(b"\x31\x00"),
        b"MAA",
        b"MA==",
        b"MAA=MAA=",
        b"MA\x00A=",
        b"MAA\xc3\xa4",
        b"MA-_",
        b"-----BEGIN CERTIFICATE REQUEST-----\nMAA=\n",
        to_pem(b"0\x00", "CERTIFICATE").encode(),
        to_pem(b"0\x00", "CERTIFICATE REQUEST").encode() * 2,
        to_pem(b"\x04\x00", "CERTIFICATE REQUEST").encode(),
        b"-----BEGIN \xff",
    ],
)
def test_a_body_that_is_not_one_sequence_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedRequest):
        from_body(body, LIMIT)


def test_a_body_beyond_the_limit_is_not_looked_at() -> None:
    assert from_body(b"MAA=", 4) == b"0\x00"
    with pytest.raises(TooLarge, match="the limit is 3"):
        from_body(b"MAA=", 3)


@given(st.binary(max_size=300) | st.text("MAG0=+/ \r\n", max_size=64).map(str.encode))
def test_any_octets_are_one_sequence_or_refused(body: bytes) -> None:
    try:
        octets = from_body(body, 200)
    except (MalformedRequest, TooLarge):
        return
    assert der.only(octets, der.SEQUENCE)[3] == len(octets)


# --- what a request says ---


def request(*attributes: rfc2986.Attribute, name: str = "simpleenroll-request.b64") -> bytes:
    """A request of RFC 7030 with other attributes, written by pyasn1; its signature is not looked at."""
    made, _ = decode(base64.b64decode(vector(name)), asn1Spec=rfc2986.CertificationRequest())
    made["certificationRequestInfo"]["attributes"].clear()
    made["certificationRequestInfo"]["attributes"].extend(attributes)
    octets: bytes = encode(made)
    return octets


def attribute(kind: object, *values: bytes) -> rfc2986.Attribute:
    """An attribute with these values (DER)."""
    made = rfc2986.Attribute()
    made["type"] = kind
    made["values"].extend(univ.Any(value) for value in values)
    return made


def password(*values: bytes) -> rfc2986.Attribute:
    return attribute("1.2.840.113549.1.9.7", *values)


def decryption(kind: object, *names: bytes) -> rfc2986.Attribute:
    return attribute(kind, *(encode(univ.OctetString(name)) for name in names))


def capabilities(*algorithms: str) -> rfc2986.Attribute:
    made = rfc5751.SMIMECapabilities()
    for place, algorithm in enumerate(algorithms):
        made[place]["capabilityID"] = univ.ObjectIdentifier(algorithm)
    return attribute(rfc5751.smimeCapabilities, encode(made))


def test_the_requests_of_rfc_7030_say_to_which_session_they_belong() -> None:
    for name, expected in (
        ("simpleenroll-request.b64", "+rrCir/7+EYu50T4"),
        ("serverkeygen-request.b64", "dFsAXmJnjokBtDvr"),
    ):
        octets = from_body(vector(name), LIMIT)
        assert challenge_password(octets) == expected
        assert requested_decryption(octets) is None


def test_a_request_of_openssl_says_its_challenge_password(tmp_path: Path) -> None:
    configuration = tmp_path / "request.cnf"
    configuration.write_text(
        "[req]\nprompt = no\ndistinguished_name = name\nattributes = further\nutf8 = yes\n"
        "[name]\nCN = device\n[further]\nchallengePassword = Zoë 4711\n"
    )
    made = ran(
        *(need("openssl"), "req", "-new", "-config", str(configuration), "-newkey", "ec", "-noenc"),
        *("-pkeyopt", "ec_paramgen_curve:P-256", "-keyout", str(tmp_path / "key"), "-outform", "DER"),
    )
    assert challenge_password(made) == "Zoë 4711"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"\x0c\x02\xc3\xa4", "ä"),
        (b"\x13\x02ab", "ab"),
        (b"\x14\x01\xe4", "ä"),
        (b"\x16\x02ab", "ab"),
        (b"\x1e\x02\x00a", "a"),
        (b"\x0c\x81\xff" + b"a" * 255, "a" * 255),
    ],
)
def test_a_challenge_password_is_text_of_any_kind(value: bytes, text: str) -> None:
    assert challenge_password(request(password(value))) == text


@pytest.mark.parametrize(
    "attributes",
    [
        [password(b"\x0c\x01a", b"\x0c\x01b")],
        [password(b"\x0c\x01a"), password(b"\x13\x01a")],
        [password(b"\x0c\x00")],
        [password(b"\x0c\x82\x01\x00" + b"a" * 256)],
        [password(b"\x04\x01a")],
        [password(b"\x0c\x01\xff")],
        [password(b"\x13\x01\xff")],
        [password(b"\x1e\x02\xd8\x00")],
    ],
)
def test_another_challenge_password_is_refused_and_not_repeated(attributes: list[rfc2986.Attribute]) -> None:
    with pytest.raises(MalformedRequest, match="challengePassword") as refused:
        challenge_password(request(*attributes))
    assert refused.value.__cause__ is None


def test_a_request_without_attributes_says_nothing() -> None:
    assert challenge_password(request()) is None
    assert requested_decryption(request()) is None


def test_a_client_names_a_symmetric_key_and_how_it_may_wrap() -> None:
    found = requested_decryption(
        request(
            decryption(rfc4108.id_aa_decryptKeyID, b"key 4711"),
            capabilities(AES256_WRAP, "2.16.840.1.101.3.4.1.5"),
        )
    )
    assert found == RequestedDecryption(
        kind=DecryptionKind.SYMMETRIC,
        key_identifier=b"key 4711",
        capabilities=(der.oid(AES256_WRAP), der.oid("2.16.840.1.101.3.4.1.5")),
    )


def test_a_client_names_an_asymmetric_key_with_or_without_saying_how() -> None:
    named = decryption(rfc7030.id_aa_asymmDecryptKeyID, bytes(range(20)))
    for further, expected in (([], ()), ([capabilities(RSAES_OAEP)], (der.oid(RSAES_OAEP),))):
        found = requested_decryption(request(named, *further))
        assert found == RequestedDecryption(
            kind=DecryptionKind.ASYMMETRIC, key_identifier=bytes(range(20)), capabilities=expected
        )


def test_a_capability_may_have_parameters() -> None:
    with_parameters = der.encode(der.SEQUENCE, der.encode(der.SEQUENCE, der.oid(AES256_WRAP), b"\x05\x00"))
    found = requested_decryption(
        request(
            decryption(rfc4108.id_aa_decryptKeyID, b"k"),
            attribute(rfc5751.smimeCapabilities, with_parameters),
        )
    )
    assert found is not None
    assert found.capabilities == (der.oid(AES256_WRAP),)


@pytest.mark.parametrize(
    "attributes",
    [
        [decryption(rfc4108.id_aa_decryptKeyID, b"a", b"b")],
        [decryption(rfc4108.id_aa_decryptKeyID, b"a"), decryption(rfc7030.id_aa_asymmDecryptKeyID, b"a")],
        [decryption(rfc4108.id_aa_decryptKeyID, b"")],
        [attribute(rfc4108.id_aa_decryptKeyID, b"\x0c\x01a")],
        *(
            [
                decryption(rfc4108.id_aa_decryptKeyID, b"a"),
                attribute(rfc5751.smimeCapabilities, value),
            ]
            for value in (
                b"\x31\x00",
                b"\x30\x02\x31\x00",
                b"\x30\x02\x30\x00",
                b"\x30\x04\x30\x02\x05\x00",
                b"\x30\x0a\x30\x08\x06\x02\x2a\x03\x05\x00\x05\x00",
                b"\x30\x02\x30\x01",
            )
        ),
    ],
)
def test_a_decryption_key_that_is_not_one_name_is_refused(attributes: list[rfc2986.Attribute]) -> None:
    with pytest.raises(MalformedRequest):
        requested_decryption(request(*attributes))


_INFO = (b"\x02\x01\x00", b"\x30\x00", b"\x30\x00")


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"\x30\x00",
        chain()[0],
        *(
            der.encode(der.SEQUENCE, der.encode(tag, *_INFO, *rest), b"\x30\x00\x03\x01\x00")
            for tag, rest in (
                (der.SEQUENCE, [b"\xa0\x00", b"\xa1\x00"]),
                (der.SEQUENCE, []),
                (der.SET, [b"\xa0\x00"]),
                (der.SEQUENCE, [b"\xa1\x00"]),
                (der.SEQUENCE, [b"\xa0\x02\x31\x00"]),
                (der.SEQUENCE, [b"\xa0\x02\x30\x00"]),
                (der.SEQUENCE, [b"\xa0\x06\x30\x04\x31\x00\x06\x00"]),
                (der.SEQUENCE, [b"\xa0\x06\x30\x04\x06\x00\x31\x00"]),
            )
        ),
    ],
)
def test_what_is_no_request_says_nothing(octets: bytes) -> None:
    with pytest.raises(MalformedRequest):
        challenge_password(octets)
    with pytest.raises(MalformedRequest):
        requested_decryption(octets)


@given(st.data())
def test_a_request_with_any_octet_changed_is_read_or_refused(data: st.DataObject) -> None:
    octets = bytearray(
        request(
            password(b"\x0c\x01a"),
            decryption(rfc7030.id_aa_asymmDecryptKeyID, b"key"),
            capabilities(AES256_WRAP),
        )
    )
    for _ in range(data.draw(st.integers(1, 3))):
        octets[data.draw(st.integers(0, len(octets) - 1))] = data.draw(st.integers(0, 255))
    for read in (challenge_password, requested_decryption):
        try:
            read(bytes(octets))
        except MalformedRequest:
            continue


# --- a private key and its certificate ---


def parts(body: bytes, boundary: str) -> list[EmailMessage]:
    """The parts of a body, as Python's mail parser finds them."""
    header = f'Content-Type: multipart/mixed; boundary="{boundary}"\r\n\r\n'.encode()
    message = message_from_bytes(header + body, policy=policy.HTTP)
    assert not message.defects
    found = [part for part in message.iter_parts() if isinstance(part, EmailMessage)]
    assert not any(part.defects for part in found)
    return found


def payload(part: EmailMessage) -> bytes:
    octets = part.get_payload(decode=True)
    assert isinstance(octets, bytes)
    return octets


def test_a_key_in_the_clear_comes_as_in_rfc_7030() -> None:
    theirs = parts(vector("serverkeygen-response.multipart"), "estServerExampleBoundary")
    key = payload(theirs[0])
    (certificate,) = pkcs7.load_der_pkcs7_certificates(payload(theirs[1]))
    body = server_key_parts(
        SecretBytes(key), certs_only([certificate.public_bytes(Encoding.DER)]), "estServerExampleBoundary"
    )
    ours = parts(bytes(body), "estServerExampleBoundary")
    assert [part.items() for part in ours] == [part.items() for part in theirs]
    assert payload(ours[0]) == key
    assert pkcs7.load_der_pkcs7_certificates(payload(ours[1])) == [certificate]
    public = load_der_private_key(payload(ours[0]), None).public_key()
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert public.public_bytes(*form) == certificate.public_key().public_bytes(*form)


def test_the_lines_of_a_part_are_those_of_mail() -> None:
    key = private_key(P256, "device").private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    body = server_key_parts(SecretBytes(key), certs_only(chain()[:1]), "b")
    assert isinstance(body, Vanishing)
    lines = bytes(body).split(b"\r\n")
    assert max(map(len, lines)) == 76
    assert not any(b"\n" in line or b"\r" in line for line in lines)
    assert lines[0] == b"--b"
    assert lines[-2:] == [b"--b--", b""]
    start = lines.index(b"") + 1
    coded = b"\n".join(lines[start : lines.index(b"--b", 1)]) + b"\n"
    assert ran(need("openssl"), "base64", "-d", given=coded) == key


def test_a_sealed_key_comes_as_pkcs7_and_is_opened_by_openssl(tmp_path: Path) -> None:
    key = private_key(P256, "device").private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    holder = ec.generate_private_key(ec.SECP256R1())
    certificate = certified(holder, "key_agreement")
    envelope = seal(SecretBytes(key), recipient_of(certificate), bytes(12))
    found = parts(
        bytes(server_key_parts(envelope, certs_only(chain()[:1]), "0'()+_,-./:=?")), "0'()+_,-./:=?"
    )
    assert [part.get_content_type() for part in found] == ["application/pkcs7-mime"] * 2
    assert [part.get_param("smime-type") for part in found] == ["server-generated-key", "certs-only"]
    (tmp_path / "key").write_bytes(holder.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "crt").write_text(to_pem(certificate))
    opened = ran(
        *(need("openssl"), "cms", "-decrypt", "-inform", "DER", "-inkey", str(tmp_path / "key")),
        *("-recip", str(tmp_path / "crt")),
        given=payload(found[0]),
    )
    assert opened == key


@pytest.mark.parametrize("boundary", ["", "a" * 71, "a b", "ä", "a\r\nb", '"'])
def test_what_cannot_part_is_no_boundary(boundary: str) -> None:
    with pytest.raises(ValueError, match="boundary"):
        server_key_parts(SecretBytes(b"0\x00"), b"0\x00", boundary)
