"""MACs and signatures over messages are what RFC 4211, 8018 and 9481 say: OpenSSL computes the same."""

import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from pyasn1.codec.der.decoder import decode as pyasn1_decode  # type: ignore[import-untyped]  # it has no types
from pyasn1.codec.der.encoder import encode as pyasn1_encode  # type: ignore[import-untyped]  # nor has it
from pyasn1_alt_modules import rfc4211, rfc8018  # type: ignore[import-untyped]  # nor have they

from birthmark.errors import MalformedRequest, PolicyRefused
from birthmark.pki import cmp_der, der
from birthmark.pki.algorithms import ALGORITHMS
from birthmark.pki.cmp import BodyKind, PKIMessage, assemble, decode, encode_header, protected_part
from birthmark.pki.cmp_protection import (
    ITERATIONS,
    MACAlgorithm,
    MACProtector,
    ProtectionKind,
    encode_mac_algorithm,
    protection_kind,
    read_mac_algorithm,
    verify_mac,
    verify_signature,
)
from birthmark.pki.cmp_signatures import is_signature_algorithm, verify_named
from birthmark.pki.keys import KeyAlgorithm
from birthmark.secret import SecretBytes
from tests.pki.cmp_parts import PBM, PBMAC1, REFERENCE, SECRET, header, message, under_secret, unprotected
from tests.pki.sample import private_key, spki
from tests.support.programs import need

SHA2 = {"SHA256": "1", "SHA384": "2", "SHA512": "3"}
HMACS = {"SHA256": "9", "SHA384": "10", "SHA512": "11"}


def hmac_oid(name: str) -> bytes:
    return der.oid("1.2.840.113549.2." + HMACS[name])


def sha2_oid(name: str) -> bytes:
    return der.oid("2.16.840.1.101.3.4.2." + SHA2[name])


def openssl(*arguments: str, octets: bytes | None = None, folder: Path) -> bytes:
    if octets is not None:
        (folder / "in.bin").write_bytes(octets)
    done = subprocess.run([need("openssl"), *arguments], cwd=folder, capture_output=True, check=True)
    return bytes.fromhex(done.stdout.decode().replace(":", "").strip().split("=")[-1].strip())


def openssl_mac(digest: str, key: bytes, octets: bytes, folder: Path) -> bytes:
    asked = ("mac", "-digest", digest, "-macopt", f"hexkey:{key.hex()}", "-in", "in.bin", "HMAC")
    return openssl(*asked, octets=octets, folder=folder)


@pytest.mark.parametrize("hashed", HMACS)
@pytest.mark.parametrize("mac", HMACS)
def test_pbmac1_is_what_openssl_computes(hashed: str, mac: str, tmp_path: Path) -> None:
    algorithm = replace(PBMAC1, hashed=hmac_oid(hashed), mac=hmac_oid(mac), key_size=48)
    made = message(by=under_secret(algorithm))
    key = openssl(
        *("kdf", "-keylen", "48", "-kdfopt", f"digest:{hashed}", "-kdfopt", f"iter:{algorithm.iterations}"),
        *(
            "-kdfopt",
            f"hexpass:{SECRET.reveal().hex()}",
            "-kdfopt",
            f"hexsalt:{algorithm.salt.hex()}",
            "PBKDF2",
        ),
        folder=tmp_path,
    )
    assert made.protection == openssl_mac(mac, key, made.protected_part, tmp_path)
    assert protection_kind(made) is ProtectionKind.PBMAC1
    verify_mac(made, SECRET)


@pytest.mark.parametrize("hashed", SHA2)
def test_pbm_is_what_openssl_computes(hashed: str, tmp_path: Path) -> None:
    algorithm = replace(PBM, hashed=sha2_oid(hashed), iterations=100)
    made = message(by=under_secret(algorithm))
    key = SECRET.reveal() + algorithm.salt
    for _ in range(100):
        key = hashes_of(hashed, key)
    assert openssl("dgst", f"-{hashed.lower()}", "in.bin", octets=b"abc", folder=tmp_path) == hashes_of(
        hashed, b"abc"
    )
    assert made.protection == openssl_mac("SHA256", key, made.protected_part, tmp_path)
    verify_mac(made, SECRET)


def hashes_of(name: str, octets: bytes) -> bytes:
    digest = hashes.Hash(HASHES[name])
    digest.update(octets)
    return digest.finalize()


def test_the_parameters_are_read_by_pyasn1() -> None:
    _, parameters = der.children(encode_mac_algorithm(PBM), *der.only(encode_mac_algorithm(PBM), 0x30)[2:])
    octets = cmp_der.whole(encode_mac_algorithm(PBM), parameters)
    pbm, rest = pyasn1_decode(octets, asn1Spec=rfc4211.PBMParameter())
    assert rest == b""
    assert pyasn1_encode(pbm) == octets
    assert (bytes(pbm["salt"]), int(pbm["iterationCount"])) == (PBM.salt, PBM.iterations)
    identifier = encode_mac_algorithm(PBMAC1)
    _, parameters = der.children(identifier, *der.only(identifier, 0x30)[2:])
    octets = cmp_der.whole(identifier, parameters)
    read, rest = pyasn1_decode(octets, asn1Spec=rfc8018.PBMAC1_params())
    assert rest == b""
    assert pyasn1_encode(read) == octets
    assert read["keyDerivationFunc"]["algorithm"] == rfc8018.id_PBKDF2
    assert read["messageAuthScheme"]["algorithm"] == rfc8018.id_hmacWithSHA384
    pbkdf2, _ = pyasn1_decode(
        bytes(read["keyDerivationFunc"]["parameters"]), asn1Spec=rfc8018.PBKDF2_params()
    )
    assert int(pbkdf2["iterationCount"]) == PBMAC1.iterations
    assert int(pbkdf2["keyLength"]) == PBMAC1.key_size


@pytest.mark.parametrize("algorithm", [PBM, PBMAC1])
def test_a_mac_is_of_one_secret_and_one_message(algorithm: MACAlgorithm) -> None:
    made = message(by=under_secret(algorithm))
    verify_mac(made, SecretBytes(SECRET.reveal()))
    for other in (
        replace(made, protected_part=made.protected_part + b"\0"),
        replace(made, protection=b""),
        replace(made, protection=(made.protection or b"")[:-1]),
    ):
        with pytest.raises(PolicyRefused):
            verify_mac(other, SECRET)
    with pytest.raises(PolicyRefused):
        verify_mac(made, SecretBytes(b""))


@pytest.mark.parametrize("algorithm", [PBM, PBMAC1])
def test_an_answer_is_under_the_same_secret_with_a_salt_of_its_own(algorithm: MACAlgorithm) -> None:
    asked = message(by=under_secret(algorithm))
    by = MACProtector.answering(asked, SECRET, b"another salt 123")
    assert by.algorithm == replace(algorithm, salt=b"another salt 123")
    answer = message(by=by)
    assert answer.header.sender_kid == REFERENCE
    assert answer.protection != asked.protection
    verify_mac(answer, SECRET)
    with pytest.raises(MalformedRequest):
        MACProtector.answering(decode(unprotected(header(), BodyKind.GENM, b"\x30\x00")), SECRET, b"s" * 16)


@pytest.mark.parametrize("algorithm", [PBM, PBMAC1])
def test_parameters_are_read_back(algorithm: MACAlgorithm) -> None:
    assert read_mac_algorithm(encode_mac_algorithm(algorithm)) == algorithm


@pytest.mark.parametrize(
    "algorithm",
    [
        replace(PBM, salt=b"7 octet"),
        replace(PBM, iterations=ITERATIONS[0] - 1),
        replace(PBM, iterations=ITERATIONS[-1] + 1),
        replace(PBM, iterations=1 << 150),
        replace(PBM, iterations=0),
        replace(PBM, hashed=der.oid("1.3.14.3.2.26")),  # SHA-1
        replace(PBM, mac=der.oid("1.2.840.113549.2.5")),  # HMAC-MD5
        replace(PBMAC1, iterations=999),
        replace(PBMAC1, iterations=ITERATIONS[-1] + 1),
        replace(PBMAC1, hashed=der.oid("1.2.840.113549.2.7")),
        replace(PBMAC1, mac=der.oid("1.2.840.113549.2.7")),
    ],
)
def test_weak_or_costly_parameters_are_refused_before_anything_is_computed(algorithm: MACAlgorithm) -> None:
    with pytest.raises(PolicyRefused) as refused:
        read_mac_algorithm(encode_mac_algorithm(algorithm))
    assert refused.value.rule == "protection-algorithm"


def changed(old: str, new: str, algorithm: MACAlgorithm) -> bytes:
    """The parameters with one element exchanged for another of the same length."""
    octets = encode_mac_algorithm(algorithm)
    assert octets.count(bytes.fromhex(old)) >= 1
    assert len(old) == len(new)
    return octets.replace(bytes.fromhex(old), bytes.fromhex(new), 1)


PBKDF2 = der.oid("1.2.840.113549.1.5.12").hex()


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"\x30\x00",
        der.encode(der.SEQUENCE, der.oid("1.2.840.113533.7.66.13")),
        der.encode(der.SEQUENCE, der.oid("1.2.840.113533.7.66.13"), b"\x30\x00"),
        der.encode(der.SEQUENCE, der.oid("1.2.840.113549.1.5.14"), b"\x30\x00"),
        ALGORITHMS[KeyAlgorithm.EC_P256].signature_algorithm,
        changed("0410", "0310", PBM),
        encode_mac_algorithm(replace(PBM, salt=b"s" * 65)),
        encode_mac_algorithm(replace(PBMAC1, salt=b"s" * 65)),
        encode_mac_algorithm(replace(PBMAC1, key_size=15)),
        encode_mac_algorithm(replace(PBMAC1, key_size=65)),
    ],
)
def test_other_parameters_cannot_be_read(octets: bytes) -> None:
    with pytest.raises(MalformedRequest):
        read_mac_algorithm(octets)


@pytest.mark.parametrize(
    "octets",
    [
        changed(PBKDF2, PBKDF2[:-2] + "0b", PBMAC1),
        changed("0500", "0400", PBMAC1),  # a parameter of an HMAC that is not NULL
        changed("020203e8", "040203e8", PBMAC1),  # iterationCount
        changed("0500", "0400", PBM),
    ],
)
def test_other_functions_are_refused(octets: bytes) -> None:
    with pytest.raises(PolicyRefused) as refused:
        read_mac_algorithm(octets)
    assert refused.value.rule == "protection-algorithm"


# --- signatures ---


def pss(name: str, null: bytes) -> bytes:
    """RSASSA-PSS-params, spelled out (RFC 4055 section 3.1)."""
    hashed = der.encode(der.SEQUENCE, sha2_oid(name), null)
    mgf1 = der.encode(der.SEQUENCE, der.oid("1.2.840.113549.1.1.8"), hashed)
    salt = der.encode(0xA2, der.integer({"SHA256": 32, "SHA384": 48, "SHA512": 64}[name]))
    parameters = der.encode(der.SEQUENCE, der.encode(0xA0, hashed), der.encode(0xA1, mgf1), salt)
    return der.encode(der.SEQUENCE, der.oid("1.2.840.113549.1.1.10"), parameters)


def signed(identifier: bytes, sign: Callable[[bytes], bytes]) -> PKIMessage:
    part = protected_part(
        encode_header(replace(header(), protection_alg=identifier)), BodyKind.GENM, b"\x30\x00"
    )
    return decode(assemble(part, sign(part)))


HASHES: Mapping[str, hashes.HashAlgorithm] = {
    "SHA256": hashes.SHA256(),
    "SHA384": hashes.SHA384(),
    "SHA512": hashes.SHA512(),
}


@pytest.mark.parametrize("name", SHA2)
@pytest.mark.parametrize("null", [b"\x05\x00", b""])
def test_rsa_signs_as_it_likes(name: str, null: bytes) -> None:
    key = private_key(KeyAlgorithm.RSA_2048, "signer")
    assert isinstance(key, rsa.RSAPrivateKey)
    own = spki(KeyAlgorithm.RSA_2048, "signer")
    salted = padding.PSS(padding.MGF1(HASHES[name]), padding.PSS.DIGEST_LENGTH)
    verify_signature(signed(pss(name, null), lambda part: key.sign(part, salted, HASHES[name])), own)
    number = {"SHA256": 11, "SHA384": 12, "SHA512": 13}[name]
    plain = der.encode(der.SEQUENCE, der.oid(f"1.2.840.113549.1.1.{number}"), null)
    made = signed(plain, lambda part: key.sign(part, padding.PKCS1v15(), HASHES[name]))
    verify_signature(made, own)
    with pytest.raises(PolicyRefused):
        verify_signature(made, spki(KeyAlgorithm.RSA_2048, "another"))


@pytest.mark.parametrize("name", SHA2)
@pytest.mark.parametrize("algorithm", [KeyAlgorithm.EC_P256, KeyAlgorithm.EC_P384])
def test_ecdsa_signs_with_the_hash_it_likes(name: str, algorithm: KeyAlgorithm) -> None:
    key = private_key(algorithm, "signer")
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    number = {"SHA256": 2, "SHA384": 3, "SHA512": 4}[name]
    identifier = der.encode(der.SEQUENCE, der.oid(f"1.2.840.10045.4.3.{number}"))
    verify_signature(
        signed(identifier, lambda part: key.sign(part, ec.ECDSA(HASHES[name]))), spki(algorithm, "signer")
    )


def test_what_is_no_key_of_ours_verifies_nothing() -> None:
    identifier = ALGORITHMS[KeyAlgorithm.EC_P256].signature_algorithm
    off_curve = ALGORITHMS[KeyAlgorithm.EC_P256].spki_prefix + b"\x04" + b"\x01" * 64
    for key, rule in ((b"\x30\x00", "key-algorithm"), (off_curve, "weak-key")):
        with pytest.raises(PolicyRefused) as refused:
            verify_named(key, identifier, b"", b"", rule="message-protection")
        assert refused.value.rule == rule


def test_an_edwards_key_signs_with_its_own_algorithm_only() -> None:
    own = ALGORITHMS[KeyAlgorithm.ED448].signature_algorithm
    assert is_signature_algorithm(own)
    with pytest.raises(PolicyRefused) as refused:
        verify_named(spki(KeyAlgorithm.ED25519, "signer"), own, b"", b"", rule="message-protection")
    assert refused.value.rule == "request-signature"


def test_a_mac_is_no_signature() -> None:
    with pytest.raises(PolicyRefused) as refused:
        verify_signature(message(by=under_secret()), spki(KeyAlgorithm.EC_P256, "device"))
    assert refused.value.rule == "protection-kind"
    with pytest.raises(PolicyRefused) as refused:
        verify_mac(message(), SECRET)
    assert refused.value.rule == "protection-kind"


def test_a_secret_does_not_show() -> None:
    assert SECRET.reveal().decode() not in repr(under_secret())
