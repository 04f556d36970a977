"""Vetting of certification requests (SPEC C5, C8; RFC 2986)."""

import base64
import math
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from birthmark.errors import MalformedRequest, PolicyRefused, Refusal, TooLarge
from birthmark.pki import der
from birthmark.pki.algorithms import throwaway_key
from birthmark.pki.certificates import assemble, to_pem
from birthmark.pki.csr import SMALL_ORDER, SMALL_ORDER_448, device_of, vet
from birthmark.pki.keys import KeyAlgorithm
from tests.pki.sample import PrivateKey, private_key, signed_by, spki
from tests.support.programs import need

Digest = hashes.SHA224 | hashes.SHA256 | hashes.SHA384 | hashes.SHA512
ALL = frozenset(KeyAlgorithm)
VECTORS = Path(__file__).parent.parent / "vectors" / "rfc9500"


def request(
    key: PrivateKey,
    digest: Digest | None = None,
    **names: str,
) -> bytes:
    """A request (DER) by the library; names by NameOID attribute."""
    subject = x509.Name([x509.NameAttribute(getattr(NameOID, kind), text) for kind, text in names.items()])
    by_itself = isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)
    signed = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(
        key, None if by_itself else digest or hashes.SHA256()
    )  # fmt: skip
    return signed.public_bytes(Encoding.DER)


def refused_by(octets: bytes, **limits: frozenset[KeyAlgorithm] | frozenset[str]) -> str:
    with pytest.raises(PolicyRefused) as refusal:
        vet(octets, **({"allowed": ALL} | limits))  # type: ignore[arg-type]  # arguments in a mapping have one type
    return refusal.value.rule


GOOD = request(
    private_key(KeyAlgorithm.EC_P256, "device"), COMMON_NAME="1M8GDM9AXKP042788", SERIAL_NUMBER="7"
)


@pytest.mark.parametrize("algorithm", KeyAlgorithm)
def test_a_good_request_gives_its_key(algorithm: KeyAlgorithm) -> None:
    found = vet(request(private_key(algorithm, "device")), allowed={algorithm})
    assert found.key_algorithm is algorithm
    assert found.subject_public_key_info == spki(algorithm, "device")
    assert found.subject_common_name is None


def test_names_are_shown_for_comparison() -> None:
    found = vet(GOOD, allowed=ALL)
    assert (found.subject_common_name, found.subject_serial_number) == ("1M8GDM9AXKP042788", "7")


def test_a_name_that_occurs_twice_is_no_name() -> None:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text) for text in ("a", "b")])
    key = private_key(KeyAlgorithm.EC_P256, "device")
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    signed = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    assert vet(signed.public_bytes(Encoding.DER), allowed=ALL).subject_common_name is None


def test_a_request_is_for_the_device_of_its_serial_number_or_else_of_its_common_name() -> None:
    """SPEC H1: one device has one name; of two nobody knows which is meant."""
    number, common = NameOID.SERIAL_NUMBER, NameOID.COMMON_NAME
    for wanted, pairs in (
        ("7", ((common, "a"), (number, "7"))),
        ("a", ((common, "a"),)),
        (None, ((NameOID.ORGANIZATION_NAME, "Acme"),)),
    ):
        named = x509.Name([x509.NameAttribute(kind, text) for kind, text in pairs])
        assert device_of(named.public_bytes()) == wanted
    for kind in (number, common):
        twice = x509.Name([x509.NameAttribute(kind, text) for text in ("a", "b")])
        with pytest.raises(MalformedRequest, match="2 names of one kind"):
            device_of(twice.public_bytes())


@pytest.mark.parametrize("curve", ["P-256", "P-384", "P-521"])
def test_openssls_requests_pass_in_der_and_pem(curve: str, tmp_path: Path) -> None:
    made = subprocess.run(
        [
            need("openssl"), "req", "-new", "-newkey", "ec", "-nodes",
            "-pkeyopt", f"ec_paramgen_curve:{curve}", "-keyout", tmp_path / "key.pem",
            "-subj", "/CN=device", "-addext", "subjectAltName=DNS:a.example",
        ],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    pem = made.stdout
    octets = base64.b64decode("".join(pem.decode().splitlines()[1:-1]))
    assert vet(pem, allowed=ALL) == vet(octets, allowed=ALL)
    assert (
        vet(pem.replace(b"CERTIFICATE REQ", b"NEW CERTIFICATE REQ"), allowed=ALL).subject_common_name
        == "device"
    )


def test_a_request_signed_with_another_key_is_refused() -> None:
    """RFC 2986 section 3: the signature is the proof of possession."""
    ours, theirs = spki(KeyAlgorithm.EC_P256, "device"), spki(KeyAlgorithm.EC_P256, "another")
    assert refused_by(GOOD.replace(ours, theirs)) == "proof-of-possession"


def test_a_request_whose_name_was_changed_is_refused() -> None:
    assert refused_by(GOOD.replace(b"1M8GDM9AXKP042788", b"1M8GDM9AXKP042789")) == "proof-of-possession"


def test_a_key_that_is_no_point_of_the_curve_is_refused() -> None:
    key = spki(KeyAlgorithm.EC_P256, "device")
    assert refused_by(GOOD.replace(key, key[:-64] + b"\x01" * 64)) == "weak-key"


def test_a_key_of_a_kind_not_allowed_is_refused() -> None:
    assert refused_by(GOOD, allowed=frozenset({KeyAlgorithm.EC_P384})) == "key-algorithm"
    assert refused_by(request(ec.generate_private_key(ec.SECP256K1()))) == "key-algorithm"


@pytest.mark.parametrize(
    ("exponent", "bits", "said"),
    [(65537, 1024, "rsa of 1024 bits"), (65537, 2056, "rsa of 2056 bits"),
     (3, 2048, "rsa of 2048 bits with the exponent 3")],
)  # fmt: skip
def test_an_rsa_key_of_another_size_or_exponent_is_refused(exponent: int, bits: int, said: str) -> None:
    key = rsa.generate_private_key(exponent, bits)
    with pytest.raises(PolicyRefused, match=f"the key is {said}; allowed are") as refusal:
        vet(request(key), allowed=sorted(ALL))
    assert refusal.value.rule == "key-algorithm"


def test_an_rsa_key_that_is_not_allowed_is_refused() -> None:
    octets = request(private_key(KeyAlgorithm.RSA_2048, "device"))
    assert refused_by(octets, allowed=frozenset({KeyAlgorithm.RSA_3072})) == "key-algorithm"


ROCA_PRIMES = [n for n in range(3, 168, 2) if all(n % d for d in range(3, n, 2))]


def with_modulus(modulus: int) -> bytes:
    """A good request, its modulus exchanged: the key is looked at before the signature."""
    own = spki(KeyAlgorithm.RSA_2048, "device")
    weak = rsa.RSAPublicNumbers(65537, modulus).public_key()
    key = weak.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert len(key) == len(own)
    return request(private_key(KeyAlgorithm.RSA_2048, "device")).replace(own, key)


def weak_because(octets: bytes) -> str:
    with pytest.raises(PolicyRefused) as refusal:
        vet(octets, allowed=ALL)
    assert refusal.value.rule == "weak-key"
    return str(refusal.value)


def test_an_rsa_modulus_that_anybody_can_factor_is_refused() -> None:
    """CVE-2017-15361 (k * M + 65537^a mod M for both primes), CVE-2022-26320, and a factor one can guess."""
    primorial = 2 * math.prod(ROCA_PRIMES)

    def infineon(seed: int) -> int:
        return (3 << 1022 | seed << 700) // primorial * primorial + pow(65537, seed, primorial)

    assert "ROCA" in weak_because(with_modulus(infineon(10**9 + 7) * infineon(10**9 + 9)))
    assert "close together" in weak_because(with_modulus(((1 << 1024) - 105) * ((1 << 1024) - 179)))
    own = private_key(KeyAlgorithm.RSA_2048, "device")
    assert isinstance(own, rsa.RSAPrivateKey)
    modulus = own.public_key().public_numbers().n
    assert "small factor" in weak_because(with_modulus((modulus // 2039 // 2 * 2 - 1) * 2039))
    assert "small factor" in weak_because(with_modulus(modulus - 1))


@pytest.mark.parametrize(
    "algorithm", [kind for kind in KeyAlgorithm if kind not in {KeyAlgorithm.RSA_3072, KeyAlgorithm.RSA_4096}]
)
def test_the_throwaway_keys_are_refused(algorithm: KeyAlgorithm) -> None:
    """Their private keys are in our source, for everybody to see."""
    assert refused_by(request(throwaway_key(algorithm))) in {"known-key", "weak-key"}


def test_a_compressed_point_is_refused() -> None:
    """One key, one encoding: a duplicate is found by its octets (SPEC C8)."""
    key = private_key(KeyAlgorithm.EC_P256, "device")
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    point = key.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    compressed = bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200") + point
    info = x509.load_der_x509_csr(GOOD).tbs_certrequest_bytes
    version, subject, _, attributes = der.children(info, *der.only(info, der.SEQUENCE)[2:])
    parts = (info[version[1] : version[3]], info[subject[1] : subject[3]], compressed)
    changed = der.encode(der.SEQUENCE, *parts, info[attributes[1] : attributes[3]])
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")
    octets = assemble(changed, algorithm, signed_by(key, changed))
    assert x509.load_der_x509_csr(octets).is_signature_valid
    assert refused_by(octets) == "key-algorithm"


@pytest.mark.parametrize("digest", [hashes.SHA384(), hashes.SHA512()])
def test_any_sha2_of_the_usual_sizes_may_sign(digest: Digest) -> None:
    found = vet(request(private_key(KeyAlgorithm.EC_P256, "device"), digest), allowed=ALL)
    assert found.key_algorithm is KeyAlgorithm.EC_P256


def test_sha1_may_not_sign() -> None:
    octets = GOOD.replace(bytes.fromhex("300a06082a8648ce3d040302"), bytes.fromhex("300906072a8648ce3d0401"))
    shortened = bytearray(octets)
    assert shortened[1] == 0x81
    shortened[2] -= 1
    assert refused_by(bytes(shortened)) == "request-signature"
    assert (
        refused_by(request(private_key(KeyAlgorithm.EC_P256, "device"), hashes.SHA224()))
        == "request-signature"
    )


@pytest.mark.parametrize("name", ["testECCP256", "testECCP384", "testECCP521", "testRSA2048"])
def test_the_published_test_keys_are_refused(name: str) -> None:
    """RFC 9500 sections 2.1 and 2.3."""
    key = load_pem_private_key((VECTORS / f"{name}.pem").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey)
    assert refused_by(request(key)) == "known-key"


def test_a_blocked_key_is_refused() -> None:
    blocked = vet(GOOD, allowed=ALL).spki_sha256
    assert refused_by(GOOD, blocked_spki=frozenset({blocked})) == "known-key"


def test_every_ed25519_key_of_small_order_is_refused() -> None:
    """Eight times such a point is the neutral element; counted here with RFC 8032's own formulas."""
    for encoded in SMALL_ORDER:
        assert times_eight(encoded) == (0, 1)
    assert len({decode(encoded) for encoded in SMALL_ORDER}) == 8
    ours = request(private_key(KeyAlgorithm.ED25519, "device"))
    key = spki(KeyAlgorithm.ED25519, "device")[-32:]
    for encoded in SMALL_ORDER:
        assert refused_by(ours.replace(key, encoded)) == "weak-key"
    assert times_eight(key) != (0, 1)


def test_every_ed448_key_of_small_order_is_refused() -> None:
    """Four times such a point is the neutral element (RFC 8032 section 5.2)."""
    for encoded in SMALL_ORDER_448:
        y = int.from_bytes(encoded[:56], "little") % PRIME_448
        square = (1 - y * y) * pow(1 + 39081 * y * y, -1, PRIME_448) % PRIME_448
        x = pow(square, (PRIME_448 + 1) // 4, PRIME_448)
        assert x * x % PRIME_448 == square, "not on the curve"
        for _ in range(2):
            product = -39081 * x * x * y * y
            x, y = (
                2 * x * y * pow(1 + product, -1, PRIME_448) % PRIME_448,
                (y * y - x * x) * pow(1 - product, -1, PRIME_448) % PRIME_448,
            )
        assert (x, y) == (0, 1)
    ours = request(private_key(KeyAlgorithm.ED448, "device"))
    key = spki(KeyAlgorithm.ED448, "device")[-57:]
    for encoded in SMALL_ORDER_448:
        assert refused_by(ours.replace(key, encoded)) == "weak-key"


PRIME_448 = 2**448 - 2**224 - 1
PRIME = 2**255 - 19
D = -121665 * pow(121666, -1, PRIME) % PRIME


def decode(encoded: bytes) -> tuple[int, int]:
    """RFC 8032 section 5.1.3, without its refusal of unreduced y and of x = 0 with the sign set."""
    number = int.from_bytes(encoded, "little")
    y, sign = (number & (1 << 255) - 1) % PRIME, number >> 255
    square = (y * y - 1) * pow(D * y * y + 1, -1, PRIME) % PRIME
    x = pow(square, (PRIME + 3) // 8, PRIME)
    if (x * x - square) % PRIME:
        x = x * pow(2, (PRIME - 1) // 4, PRIME) % PRIME
    assert (x * x - square) % PRIME == 0, "not on the curve"
    return (PRIME - x) % PRIME if x & 1 != sign else x, y


def times_eight(encoded: bytes) -> tuple[int, int]:
    x, y = decode(encoded)
    for _ in range(3):
        product = D * x * x * y * y
        x, y = (
            2 * x * y * pow(1 + product, -1, PRIME) % PRIME,
            (y * y + x * x) * pow(1 - product, -1, PRIME) % PRIME,
        )
    return x, y


def test_a_request_that_is_too_large_is_refused_unseen() -> None:
    with pytest.raises(TooLarge):
        vet(bytes(8193), allowed=ALL)
    with pytest.raises(TooLarge):
        vet(GOOD, allowed=ALL, max_size=len(GOOD) - 1)
    assert vet(GOOD, allowed=ALL, max_size=len(GOOD)).subject_serial_number == "7"


def test_trailing_octets_are_malformed() -> None:
    with pytest.raises(MalformedRequest):
        vet(GOOD + b"\0", allowed=ALL)


def test_pem_with_two_requests_or_none_is_malformed() -> None:
    pem = to_pem(GOOD, "CERTIFICATE REQUEST")
    assert vet(pem.encode(), allowed=ALL) == vet(GOOD, allowed=ALL)
    for text in (pem + pem, to_pem(GOOD, "CERTIFICATE")):
        with pytest.raises(MalformedRequest, match="pem"):
            vet(text.encode(), allowed=ALL)


@given(
    st.one_of(
        st.binary(max_size=300),
        st.binary(max_size=100).map(lambda octets: b"-----BEGIN CERTIFICATE REQUEST-----\n" + octets),
        st.binary(max_size=100).map(
            lambda octets: (
                b"-----BEGIN CERTIFICATE REQUEST-----\n"
                + base64.b64encode(octets)
                + b"\n-----END CERTIFICATE REQUEST-----\n"
            )
        ),
    )
)
def test_any_octets_are_malformed(octets: bytes) -> None:
    with pytest.raises(MalformedRequest):
        vet(octets, allowed=ALL)


@given(
    st.sampled_from([GOOD, *(request(private_key(kind, "device")) for kind in KeyAlgorithm)]),
    st.integers(0, 1200),
    st.binary(min_size=1, max_size=3),
)
def test_a_patched_request_is_the_same_or_refused(good: bytes, place: int, patch: bytes) -> None:
    """The signature covers all that counts, so no patch gives another key or name."""
    place %= len(good)
    patched = good[:place] + patch + good[place + len(patch) :]
    try:
        found = vet(patched, allowed=ALL)
    except Refusal:
        return
    assert found == vet(good, allowed=ALL)
