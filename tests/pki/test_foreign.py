"""Other people's certificates, CRLs and OCSP answers, as OpenSSL makes them: what is believed, what not."""

import hashlib
import subprocess
import sys
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birthmark.errors import MalformedRequest, PolicyRefused, ProofFailed, TooLarge
from birthmark.pki import crl_index, der
from birthmark.pki.certificates import Certificate, to_pem
from birthmark.pki.crl_index import CRLIndex, crl_der, index_crl
from birthmark.pki.crl_reading import Covers
from birthmark.pki.ocsp_client import OCSPAnswer, question, read_answer
from birthmark.pki.ownership import certificate_der, is_marked, verify_ownership, vet_authority
from birthmark.pki.paths import verify_authority, verify_path
from birthmark.pki.revocation import CertStatus, ReasonCode, revoked_entry
from tests.support.foreign import DEVICE, ROOT, ForeignPKI, Issuer
from tests.support.realm import START

NONCE = "ab" * 32


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> ForeignPKI:
    return ForeignPKI(folder=tmp_path_factory.mktemp("foreign"))


@pytest.fixture(scope="module")
def root(pki: ForeignPKI) -> Issuer:
    return pki.root()


@pytest.fixture(scope="module")
def sub(root: Issuer) -> Issuer:
    return root.below("sub")


@pytest.fixture(scope="module")
def now(pki: ForeignPKI) -> datetime:
    return pki.at + timedelta(hours=1)


# --- who holds an authority's key


def test_a_nonce_certified_by_the_recipe_shows_that_the_key_is_held(root: Issuer, now: datetime) -> None:
    assert vet_authority(root.der, now).subject == "CN=Fjord Fleet Root,O=Fjord AS"
    for version_1 in (True, False):
        shown = root.verification(NONCE, version_1=version_1, extensions=DEVICE)
        verify_ownership(root.der, shown, NONCE, now)


def test_a_certificate_over_another_nonce_or_by_another_key_shows_nothing(
    pki: ForeignPKI, root: Issuer, now: datetime
) -> None:
    with pytest.raises(ProofFailed, match="not the nonce"):
        verify_ownership(root.der, root.verification("cd" * 32), NONCE, now)
    namesake = pki.root("namesake")
    with pytest.raises(ProofFailed, match="not signed by the authority's key"):
        verify_ownership(root.der, namesake.verification(NONCE), NONCE, now)


def test_a_verification_certificate_counts_while_it_is_valid_and_is_no_authority(
    root: Issuer, now: datetime
) -> None:
    shown = root.verification(NONCE)
    for at in (now + timedelta(days=2), now - timedelta(days=2)):
        with pytest.raises(ProofFailed, match="not valid at this time"):
            verify_ownership(root.der, shown, NONCE, at)
    authority = root.verification(NONCE, version_1=False, extensions="basicConstraints=critical,CA:TRUE\n")
    with pytest.raises(ProofFailed, match="is an authority's"):
        verify_ownership(root.der, authority, NONCE, now)


def test_what_is_no_authority_is_not_registered(pki: ForeignPKI, root: Issuer, now: datetime) -> None:
    with pytest.raises(PolicyRefused, match="is no authority"):
        vet_authority(root.certify("plain"), now)
    with pytest.raises(PolicyRefused, match="not valid at this time"):
        vet_authority(root.der, now + timedelta(days=5000))
    unsigning = pki.root("unsigning", extensions=ROOT.replace("keyCertSign,", ""))
    with pytest.raises(PolicyRefused, match="is no authority"):
        vet_authority(unsigning.der, now)
    strange = pki.root("strange", extensions=ROOT + "1.2.3.4=critical,DER:0500\n")
    with pytest.raises(PolicyRefused, match=r"extension 1\.2\.3\.4 is critical"):
        vet_authority(strange.der, now)


def test_an_authority_with_a_key_or_hash_that_we_do_not_accept_is_not_registered(
    pki: ForeignPKI, now: datetime
) -> None:
    small = pki.root("small", algorithm=("-newkey", "rsa:1024"))
    with pytest.raises(PolicyRefused) as refused:
        vet_authority(small.der, now)
    assert refused.value.rule == "key-algorithm"
    old = pki.root("old", digest="sha1")
    with pytest.raises(PolicyRefused, match="signed with sha1"):
        vet_authority(old.der, now)


def test_a_name_is_marked_whatever_its_case_and_the_spaces_beside_it(pki: ForeignPKI, root: Issuer) -> None:
    assert not is_marked(Certificate.from_der(root.der), " TEST")
    for number, subject in enumerate(("/O=Fjord/CN=Fjord Root TEST", "/O=Fjord test /CN=Fjord Root")):
        assert is_marked(Certificate.from_der(pki.root(f"m{number}", subject=subject).der), " TEST")
    assert not is_marked(Certificate.from_der(pki.root("m3", subject="/CN=Testing Root").der), " TEST")


# --- paths


def test_a_device_leads_to_its_authority_directly_and_by_one_between(
    root: Issuer, sub: Issuer, now: datetime
) -> None:
    near, far = root.certify("near"), sub.certify("far")
    assert verify_path(near, [], root.der, now) == (near, root.der)
    assert verify_path(far, [sub.der], root.der, now) == (far, sub.der, root.der)
    assert verify_path(far, [sub.der, root.der], root.der, now) == (far, sub.der, root.der)
    assert verify_path(far, [sub.der, root.der], sub.der, now) == (far, sub.der), "the lowest that is trusted"
    with pytest.raises(PolicyRefused, match="do not lead to the fleet authority"):
        verify_path(far, [], root.der, now)
    with pytest.raises(PolicyRefused, match="do not lead to the fleet authority"):
        verify_path(far, [sub.certify("other")], root.der, now)


def test_what_cannot_certify_is_nothing_between(root: Issuer, now: datetime) -> None:
    liar = root.below("liar", DEVICE)
    with pytest.raises(PolicyRefused, match="is no authority"):
        verify_path(liar.certify("victim"), [liar.der], root.der, now)


def test_a_path_is_no_deeper_than_its_authorities_allow(root: Issuer, now: datetime) -> None:
    shallow = root.below("shallow", ROOT.replace("CA:TRUE", "CA:TRUE,pathlen:0"))
    deeper = shallow.below("deeper")
    assert verify_path(shallow.certify("d0"), [shallow.der], root.der, now)
    with pytest.raises(PolicyRefused, match="allows 0 authorities below it"):
        verify_path(deeper.certify("d1"), [deeper.der, shallow.der], root.der, now)
    with pytest.raises(PolicyRefused, match="allows 0 authorities below it"):
        verify_authority(deeper.der, [shallow.der], root.der, now)
    verify_authority(shallow.der, [], root.der, now)


def test_names_outside_of_what_an_authority_may_name_are_refused(root: Issuer, now: datetime) -> None:
    narrow = root.below("narrow", ROOT + "nameConstraints=critical,permitted;DNS:fjord.example\n")
    inside = narrow.certify("inside", DEVICE + "subjectAltName=DNS:d1.fjord.example\n")
    assert verify_path(inside, [narrow.der], root.der, now)
    outside = narrow.certify("outside", DEVICE + "subjectAltName=DNS:d1.other.example\n")
    with pytest.raises(PolicyRefused, match="outside of what the issuer may name"):
        verify_path(outside, [narrow.der], root.der, now)


@pytest.mark.parametrize(
    ("extensions", "match"),
    [
        (ROOT, "an authority's"),
        (DEVICE.replace("clientAuth", "serverAuth"), "not for a device that connects"),
        (DEVICE + "1.2.3.4=critical,DER:0500\n", "critical and unknown"),
    ],
)
def test_a_certificate_that_is_for_something_else_is_no_devices(
    root: Issuer, now: datetime, extensions: str, match: str
) -> None:
    name = f"n{hashlib.sha256(extensions.encode()).hexdigest()[:8]}"
    with pytest.raises(PolicyRefused, match=match):
        verify_path(root.certify(name, extensions), [], root.der, now)


def test_a_certificate_that_ended_leads_nowhere(root: Issuer, now: datetime) -> None:
    short = root.certify("short", days=1)
    with pytest.raises(PolicyRefused, match="not valid at this time"):
        verify_path(short, [], root.der, now + timedelta(days=3))


# --- CRLs


def test_a_crl_that_openssl_signed_says_who_is_revoked_and_why(pki: ForeignPKI, now: datetime) -> None:
    issuer = pki.root("crl-root", subject="/CN=CRL Root")
    empty = index_crl(issuer.list(), issuer.der)
    assert (empty.entries, empty.number, empty.is_fresh(now)) == (0, 0x1000, True)
    serials = {name: Certificate.from_der(issuer.certify(name)).serial_number for name in ("a", "b", "c")}
    issuer.revoke("a", "keyCompromise")
    issuer.revoke("b", "certificateHold")
    listed = index_crl(issuer.list(), issuer.der)
    assert listed.number == 0x1001
    assert listed.find(serials["a"]) is ReasonCode.KEY_COMPROMISE
    assert listed.find(serials["b"]) is ReasonCode.CERTIFICATE_HOLD
    assert listed.find(serials["c"]) is None
    assert not listed.is_fresh(now + timedelta(days=8))
    assert not listed.is_fresh(now - timedelta(hours=2))
    assert crl_der(to_pem(issuer.list(), "X509 CRL").encode()) != b""


def test_a_crl_of_another_issuer_or_a_changed_one_is_not_believed(pki: ForeignPKI) -> None:
    issuer, namesake = (pki.root(name, subject="/CN=Twin Root") for name in ("twin-1", "twin-2"))
    other = pki.root("another", subject="/CN=Another Root")
    crl = issuer.list()
    with pytest.raises(PolicyRefused, match="another issuer's"):
        index_crl(crl, other.der)
    with pytest.raises(PolicyRefused, match="not signed with the key"):
        index_crl(crl, namesake.der)
    for place in range(8, len(crl), 7):
        changed = crl[:place] + bytes((crl[place] ^ 1,)) + crl[place + 1 :]
        with pytest.raises((PolicyRefused, MalformedRequest)):
            index_crl(changed, issuer.der)


@pytest.mark.parametrize(
    ("extension", "error", "match"),
    [
        (
            "issuingDistributionPoint=critical,@idp\n[idp]\nindirectCRL=TRUE",
            MalformedRequest,
            "something else",
        ),
        ("issuingDistributionPoint=critical,@idp\n[idp]\nonlyCA=TRUE", PolicyRefused, "authorities only"),
        (
            "issuingDistributionPoint=critical,@idp\n[idp]\nonlysomereasons=keyCompromise",
            MalformedRequest,
            "something else",
        ),
        (
            "issuingDistributionPoint=critical,@idp\n[idp]\nfullname=URI:http://x.example/1.crl",
            PolicyRefused,
            "one distribution point",
        ),
        ("2.5.29.27=critical,DER:020101", PolicyRefused, "a delta"),
        ("1.2.3.4=critical,DER:0500", MalformedRequest, "critical and unknown"),
    ],
)
def test_a_crl_of_a_part_is_taken_for_no_whole(
    pki: ForeignPKI, extension: str, error: type[Exception], match: str
) -> None:
    folder = f"part-{hashlib.sha256(extension.encode()).hexdigest()[:8]}"
    issuer = pki.root(folder, subject="/CN=Part Root")
    issuer.crl = extension
    with pytest.raises(error, match=match):
        index_crl(issuer.list(), issuer.der)


def test_a_crl_of_devices_only_says_so(pki: ForeignPKI) -> None:
    issuer = pki.root("users", subject="/CN=Users Root")
    issuer.crl = "issuingDistributionPoint=critical,@idp\n[idp]\nonlyuser=TRUE"
    assert index_crl(issuer.list(), issuer.der).covers is Covers.USERS


def test_a_crl_with_a_broken_hash_or_by_who_may_not_sign_one_is_not_believed(pki: ForeignPKI) -> None:
    issuer = pki.root("broken", subject="/CN=Broken Root")
    with pytest.raises(PolicyRefused, match="signed with sha1"):
        index_crl(issuer.list(digest="sha1"), issuer.der)
    silent = pki.root("silent", subject="/CN=Silent Root", extensions=ROOT.replace(",cRLSign", ""))
    with pytest.raises(PolicyRefused, match="may not sign CRLs"):
        index_crl(silent.list(), silent.der)


def test_a_crl_that_is_too_large_is_not_read(root: Issuer) -> None:
    with pytest.raises(TooLarge, match="at most"):
        index_crl(bytes(crl_index.LARGEST_CRL + 1), root.der)
    with pytest.raises(TooLarge, match="at most"):
        crl_der(bytes(2 * crl_index.LARGEST_CRL + 1))


# Entries of every shape, signed by nobody: what is asked is the table.
ENTRY = st.builds(
    revoked_entry,
    st.one_of(st.integers(1, 300), st.integers(1, (1 << 159) - 1)),
    st.just(datetime.fromisoformat("2026-11-22T10:00:00Z")),
    st.sampled_from([ReasonCode.UNSPECIFIED, ReasonCode.KEY_COMPROMISE, ReasonCode.CERTIFICATE_HOLD]),
)


@given(st.lists(ENTRY, max_size=40))
def test_a_certificate_is_found_if_and_only_if_it_is_listed(entries: list[bytes]) -> None:
    wanted = {}
    for entry in entries:
        fields = der.children(entry, *der.only(entry, der.SEQUENCE)[2:])
        wanted[int.from_bytes(entry[fields[0][2] : fields[0][3]])] = entry
    table = b"".join(sorted(crl_index.records(_unsigned(list(wanted.values())))))
    index = CRLIndex(
        sha256="",
        number=1,
        this_update=START,
        next_update=START,
        entries=len(wanted),
        covers=Covers.ALL,
        table=table,
    )
    for serial in wanted:
        assert index.find(serial) is not None
        if serial + 1 not in wanted:
            assert index.find(serial + 1) is None


@given(st.binary(max_size=200))
def test_entries_are_read_or_refused_whatever_they_are(octets: bytes) -> None:
    try:
        for record in crl_index.records(_unsigned([octets])):
            assert len(record) == 22
    except (MalformedRequest, PolicyRefused):
        pass


def _unsigned(entries: list[bytes]) -> bytes:
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")
    number = der.encode(der.SEQUENCE, der.oid("2.5.29.20"), der.encode(der.OCTET_STRING, der.integer(1)))
    tbs = der.encode(
        der.SEQUENCE,
        *(der.integer(1), algorithm, b"\x30\x00"),
        *(b"\x17\x0d261122100000Z", b"\x17\x0d271122100000Z"),
        *([der.encode(der.SEQUENCE, *entries)] if entries else []),
        der.encode(0xA0, der.encode(der.SEQUENCE, number)),
    )
    return der.encode(der.SEQUENCE, tbs, algorithm, b"\x03\x01\x00")


@pytest.mark.soak
def test_a_crl_of_a_million_entries_is_read_in_bounded_memory(pki: ForeignPKI, tmp_path: Path) -> None:
    """Signed by OpenSSL's key; the entries are OpenSSL's, too: its database has a million lines."""
    issuer = pki.root("million", subject="/CN=Million Root")
    lines = (
        f"R\t361122100000Z\t261122090000Z,keyCompromise\t{number:032X}\tunknown\t/CN=d{number}\n"
        for number in range(1 << 127, (1 << 127) + 1_000_000)
    )
    with (issuer.folder / "index.txt").open("w") as file:
        file.writelines(lines)
    crl = tmp_path / "million.crl"
    crl.write_bytes(issuer.list())
    (tmp_path / "ca.der").write_bytes(issuer.der)
    program = (
        "import resource, sys, pathlib\n"
        "from birthmark.pki.crl_index import index_crl\n"
        "crl, ca = (pathlib.Path(name).read_bytes() for name in sys.argv[1:])\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "index = index_crl(crl, ca)\n"
        "assert index.entries == 1_000_000\n"
        "assert index.find((1 << 127) + 999_999) and not index.find(1 << 126)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, crl, tmp_path / "ca.der"],
        capture_output=True,
        check=True,
        timeout=100,
        text=True,
    )
    assert int(done.stdout) < 400_000, "kilobytes, with a CRL of some fifty megabytes"


# --- OCSP


@pytest.fixture(scope="module")
def answering(pki: ForeignPKI) -> Issuer:
    issuer = pki.root("answering", subject="/CN=Answering Root")
    for name in ("good", "bad"):
        issuer.certify(name)
    issuer.revoke("bad")
    issuer.certify("responder", "keyUsage=critical,digitalSignature\nextendedKeyUsage=OCSPSigning\n")
    issuer.certify("impostor")
    return issuer


def shown(issuer: Issuer, name: str) -> bytes:
    return Certificate.from_pem((issuer.folder / f"{name}.pem").read_text()).der


def asked(issuer: Issuer, name: str, at: datetime, **how: object) -> OCSPAnswer:
    nonce = b"n" * 32
    request = question(shown(issuer, name), issuer.der, nonce)
    octets = issuer.answer(request, at=at, **how)  # type: ignore[arg-type]  # as the test says
    return read_answer(octets, shown(issuer, name), issuer.der, nonce, at)


def test_openssl_answers_what_we_ask_and_is_believed(answering: Issuer, now: datetime) -> None:
    good = asked(answering, "good", now)
    assert (good.status, good.until - good.this_update) == (CertStatus.GOOD, timedelta(minutes=60))
    bad = asked(answering, "bad", now, signer="responder")
    assert (bad.status, bad.reason) == (CertStatus.REVOKED, ReasonCode.KEY_COMPROMISE)
    unending = asked(answering, "good", now, minutes=None)
    assert unending.until == unending.this_update + timedelta(minutes=5)


def test_a_responder_that_was_not_certified_for_it_is_not_believed(answering: Issuer, now: datetime) -> None:
    with pytest.raises(PolicyRefused, match="neither by the issuer nor"):
        asked(answering, "good", now, signer="impostor")


def test_a_responder_whose_certificate_has_ended_is_not_believed(answering: Issuer, now: datetime) -> None:
    with pytest.raises(PolicyRefused, match="neither by the issuer nor"):
        asked(answering, "good", now + timedelta(days=31), signer="responder")


def test_an_answer_about_another_with_another_nonce_or_of_another_time_is_not_believed(
    answering: Issuer, now: datetime
) -> None:
    good, bad, nonce = shown(answering, "good"), shown(answering, "bad"), b"n" * 32
    octets = answering.answer(question(good, answering.der, nonce), at=now)
    with pytest.raises(PolicyRefused, match="other certificates"):
        read_answer(octets, bad, answering.der, nonce, now)
    with pytest.raises(PolicyRefused, match="another nonce"):
        read_answer(octets, good, answering.der, b"m" * 32, now)
    for late in (timedelta(hours=2), -timedelta(hours=1)):
        with pytest.raises(PolicyRefused, match="not of this time"):
            read_answer(octets, good, answering.der, nonce, now + late)
    presigned = answering.answer(question(good, answering.der, None), at=now)
    assert read_answer(presigned, good, answering.der, nonce, now).status is CertStatus.GOOD


def test_no_octet_of_an_answer_can_be_changed(answering: Issuer, now: datetime) -> None:
    good, nonce = shown(answering, "good"), b"n" * 32
    octets = answering.answer(question(good, answering.der, nonce), signer="responder", at=now)
    believed = read_answer(octets, good, answering.der, nonce, now)
    for place in range(0, len(octets), 3):
        changed = octets[:place] + bytes((octets[place] ^ 2,)) + octets[place + 1 :]
        try:
            said = read_answer(changed, good, answering.der, nonce, now)
        except (MalformedRequest, PolicyRefused):
            continue
        assert said == believed, f"octet {place} changes what is believed"


@given(st.binary(max_size=300))
def test_files_and_answers_of_any_octets_are_read_or_refused(octets: bytes) -> None:
    for read in (certificate_der, crl_der):
        with suppress(MalformedRequest):
            read(octets)
