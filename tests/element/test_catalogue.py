"""Element profiles are read totally: a file is one, or a complaint that names file and key (SPEC D)."""

import base64
import hashlib
import tempfile
import tomllib
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from birthmark.element import catalogue
from birthmark.element.catalogue import ElementCatalogue
from birthmark.element.diversification import ContextSource, Scheme
from birthmark.element.keyset import KeyBlockForm
from birthmark.element.profiles import (
    DerivedKeys,
    ElementKind,
    ElementProfile,
    FixedKeys,
    Replacement,
    StoredObject,
    TPMProfile,
)
from birthmark.element.scp03 import Mode
from birthmark.errors import MalformedRequest, NotFound, Unavailable
from birthmark.pki.keys import check_label

GOOD = """\
name = "x"
kind = "scp03"
aid = "a000000151000000"
mode = "s8"
parameters = [0x60, 0x70]
key-size = 16
replacement = "add"
key-blocks = "with-length"
probe-kvn = 0x3F
probe-check-value = false
bare-key-information = false
counts-empty-commands = true
extended-length = false
failed-authentications = 3
tries = 5

[initial]
kvn = 0x30
master = "theirs"
scheme = "kdf3"
context = "kdd"

[final]
kvn = 0x31
master = "ours"
scheme = "sp800-108"
context = "hardware-id"

[[objects]]
tag = 0x7F21
content = "certificate"

[[objects]]
tag = 0xC0
content = "text:{hardware_id}/{lot}"
"""
DERIVED = 'kvn = 0x30\nmaster = "theirs"\nscheme = "kdf3"\ncontext = "kdd"\n'


def good(*changes: tuple[str, str]) -> bytes:
    """Return the good profile with some texts replaced, each of which is in it."""
    text = GOOD
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    return text.encode()


def profile(*changes: tuple[str, str]) -> ElementProfile:
    found = catalogue.parse(good(*changes), "x.toml")
    assert isinstance(found, ElementProfile)
    return found


def test_every_key_becomes_what_it_says() -> None:
    assert profile() == ElementProfile(
        name="x",
        sha256=hashlib.sha256(GOOD.encode()).hexdigest(),
        aid=bytes.fromhex("A000000151000000"),
        mode=Mode.S8,
        parameters=frozenset({0x60, 0x70}),
        key_size=16,
        initial=DerivedKeys(kvn=0x30, master="theirs", scheme=Scheme.KDF3, context=ContextSource.KDD),
        final=DerivedKeys(
            kvn=0x31, master="ours", scheme=Scheme.SP800_108, context=ContextSource.HARDWARE_ID
        ),
        objects=(
            StoredObject(tag=0x7F21, content="certificate"),
            StoredObject(tag=0xC0, content="text:{hardware_id}/{lot}"),
        ),
    )
    other = profile(
        ('"s8"', '"s16"'),
        ("[0x60, 0x70]", "[0x71]"),
        ("key-size = 16", "key-size = 32"),
        ('"add"', '"replace"'),
        ('"with-length"', '"bare"'),
        ("0x3F", "0x3E"),
        ("probe-check-value = false", "probe-check-value = true"),
        ("bare-key-information = false", "bare-key-information = true"),
        ("counts-empty-commands = true", "counts-empty-commands = false"),
        ("extended-length = false", "extended-length = true"),
        ("authentications = 3", "authentications = 10"),
        ("tries = 5", "tries = 20"),
        (DERIVED, 'kvn = 1\nkeys = ["enc", "mac", "dek"]\n'),
    )
    assert other.mode is Mode.S16
    assert other.parameters == {0x71}
    assert other.key_size == 32
    assert other.replacement is Replacement.REPLACE
    assert other.key_blocks is KeyBlockForm.BARE
    assert other.probe_kvn == 0x3E
    assert other.probe_check_value
    assert other.bare_key_information
    assert not other.counts_empty_commands
    assert other.extended_length
    assert (other.failed_authentications, other.tries) == (10, 20)
    assert other.initial == FixedKeys(kvn=1, labels=("enc", "mac", "dek"))
    assert other.kind is ElementKind.SCP03


def test_what_may_be_left_out_is_what_most_elements_are() -> None:
    lines = GOOD.splitlines(keepends=True)
    kept = [*lines[:6], *lines[16 : lines.index("[[objects]]\n")]]
    short = catalogue.parse("".join(kept).encode(), "x.toml")
    assert isinstance(short, ElementProfile)
    assert short.objects == ()
    assert (short.replacement, short.key_blocks, short.probe_kvn) == ("add", "with-length", 0x3F)
    assert (short.failed_authentications, short.tries, short.counts_empty_commands) == (3, 5, True)


KEPT = {
    "the element's default set": ((DERIVED, 'kvn = 0\nkeys = ["k", "k", "d"]\n'),),
    "one set in the place of the other": (('"add"', '"replace"'), ("0x31", "0x30")),
    "two-octet tag, first": (("0x7F21", "0x5F1F"),),
    "two-octet tag, last": (("0x7F21", "0xBF7F"),),
    "one-octet tag, last": (("0xC0", "0xFE"),),
    "the chain": (('"certificate"', '"chain"'),),
    "a further certificate": (('"certificate"', '"certificate:matter-dac"'),),
    "braces in a text": (("text:{hardware_id}/{lot}", "text:{{}} ü"),),
    "an10922 by hardware id": (('scheme = "sp800-108"', 'scheme = "an10922"'),),
    "kdf3 by hardware id": (('scheme = "sp800-108"', 'scheme = "kdf3"'),),
    "aes-192": (("key-size = 16", "key-size = 24"),),
    "the longest aid": (("a000000151000000", "A0" * 16),),
    "the shortest aid": (("a000000151000000", "A0" * 5),),
}


@pytest.mark.parametrize("case", KEPT)
def test_what_elements_can_be_is_taken(case: str) -> None:
    assert profile(*KEPT[case]).name == "x"


FINAL = 'kvn = 0x31\nmaster = "ours"'
REFUSED: dict[str, tuple[tuple[tuple[str, str], ...], str]] = {
    "no toml": ((("[final]", "[final"),), "not a toml file"),
    "an unknown key": ((("tries", "colour"),), "colour: unknown key"),
    "an unknown key below": ((("[final]\n", "[final]\ncolour = 1\n"),), r"final\.colour: unknown key"),
    "another name": ((('"x"', '"y"'),), "name: 'y' must be the file's name"),
    "no kind": ((('kind = "scp03"\n', ""),), "kind: missing"),
    "another kind": ((('"scp03"', '"sim"'),), "kind: 'sim' is none of scp03, tpm"),
    "an aid that is too short": ((("a000000151000000", "A0000001"),), "aid: 'A0000001' is not 5 to 16"),
    "an aid that is too long": ((("a000000151000000", "A0" * 17),), "is not 5 to 16 octets"),
    "an aid with spaces": ((("a000000151000000", "A0 00 00 01 51"),), "is not 5 to 16 octets"),
    "another mode": ((('"s8"', '"s32"'),), "mode: 's32' is none of s8, s16"),
    "no parameters": ((("[0x60, 0x70]", "[]"),), "parameters: must name at least one"),
    "a parameter twice": ((("[0x60, 0x70]", "[0x60, 96]"),), "parameters: must name at least one, and none"),
    "a parameter that is a text": ((("[0x60, 0x70]", '["60"]'),), "parameters: must be a list of integers"),
    "a parameter that is a truth": ((("[0x60, 0x70]", "[true]"),), "parameters: must be a list of integers"),
    "a parameter with unknown bits": ((("[0x60, 0x70]", "[0x68]"),), "parameters: 68 has bits that mean"),
    "a parameter beyond an octet": ((("[0x60, 0x70]", "[0x160]"),), "parameters: 160 has bits"),
    "a negative parameter": ((("[0x60, 0x70]", "[-1]"),), "parameters: -1 has bits"),
    "no r-encryption": ((("[0x60, 0x70]", "[0x30]"),), "parameters: 30: the proof needs R-MAC and R-ENC"),
    "no r-mac": ((("[0x60, 0x70]", "[0x40]"),), "parameters: 40: the proof needs"),
    "s16 said in s8": ((("[0x60, 0x70]", "[0x61]"),), "parameters: 61 contradicts mode"),
    "s8 said in s16": ((('"s8"', '"s16"'),), "parameters: 60 contradicts mode"),
    "another key size": ((("key-size = 16", "key-size = 20"),), "key-size: 20 is none of 16, 24, 32"),
    "a key size in words": ((("key-size = 16", 'key-size = "16"'),), "key-size: must be an integer"),
    "aes-192 without its length": (
        (("key-size = 16", "key-size = 24"), ('"with-length"', '"bare"')),
        "key-blocks: an AES-192 key says its length",
    ),
    "another form": ((('"with-length"', '"long"'),), "key-blocks: 'long' is none of"),
    "another replacement": ((('"add"', '"swap"'),), "replacement: 'swap' is none of add, replace"),
    "no initial set": ((("[initial]\n" + DERIVED, ""),), "initial: missing"),
    "no final set": ((("[final]\n", "[other]\n"),), "final: missing"),
    "a set that is no table": (
        (("[initial]\n" + DERIVED, ""), ('kind = "scp03"', 'kind = "scp03"\ninitial = 1')),
        "initial: must be a table",
    ),
    "a derived default set": (
        ((DERIVED, DERIVED.replace("0x30", "0")),),
        r"initial\.kvn: 00 is not between 01",
    ),
    "an initial set beyond 7F": ((("0x30", "0x80"),), r"initial\.kvn: 80 is not between 01 and 7F"),
    "fixed keys beyond 7F": (
        ((DERIVED, 'kvn = 0xFF\nkeys = ["a", "b", "c"]\n'),),
        r"initial\.kvn: FF is not between 00 and 7F",
    ),
    "a final set 00": ((("0x31", "0"),), r"final\.kvn: 00 is not between 01 and 7F"),
    "a probe 00": ((("0x3F", "0"),), "probe-kvn: 00 is not between 01 and 7F"),
    "two sets in one place": ((("0x31", "0x30"),), r"final\.kvn: 30 is the initial set's"),
    "the probe on the final set": ((("0x3F", "0x31"),), "probe-kvn: 31 is that of a key set"),
    "the probe on the initial set": ((("0x3F", "0x30"),), "probe-kvn: 30 is that of a key set"),
    "another set that is ours": (
        (("probe-kvn = 0x3F", "probe-kvn = 0x3F\nother-key-sets = [0x31]"),),
        "other-key-sets: 31 is a set of this profile",
    ),
    "replacing the default set": (
        (('"add"', '"replace"'), (DERIVED, 'kvn = 0\nkeys = ["a", "b", "c"]\n')),
        r"initial\.kvn: PUT KEY replaces a set by its version number",
    ),
    "one master for both": (
        ((FINAL, FINAL.replace("ours", "theirs")),),
        r"final\.master: theirs is a key of",
    ),
    "a transport key as master": (
        ((DERIVED, 'kvn = 0x30\nkeys = ["a", "b", "ours"]\n'),),
        r"final\.master: ours is a key of the initial set",
    ),
    "two labels": (
        ((DERIVED, 'kvn = 0x30\nkeys = ["a", "b"]\n'),),
        r"initial\.keys: are the labels of K-ENC",
    ),
    "k-dek that is k-mac": (
        ((DERIVED, 'kvn = 1\nkeys = ["a", "b", "b"]\n'),),
        r"initial\.keys: b: a key that wraps",
    ),
    "no labels": (((DERIVED, "kvn = 0x30\nkeys = []\n"),), r"initial\.keys: are the labels"),
    "keys and a master": (
        ((DERIVED, DERIVED + 'keys = ["a", "b", "c"]\n'),),
        r"initial\.master: unknown key",
    ),
    "a label that is none": ((('"ours"', '"Our Key"'),), r"final\.master: 'Our Key' is no label"),
    "fixed labels that are none": (
        ((DERIVED, 'kvn = 0x30\nkeys = ["a", "b", ""]\n'),),
        r"initial\.keys: '' is no label",
    ),
    "fixed final keys": (((FINAL, FINAL + '\nkeys = ["a", "b", "c"]'),), r"final\.keys: unknown key"),
    "no scheme": ((('scheme = "sp800-108"\n', ""),), r"final\.scheme: missing"),
    "another scheme": ((('"sp800-108"', '"visa2"'),), r"final\.scheme: 'visa2' is none of kdf3, an10922"),
    "another context": ((('"hardware-id"', '"uid"'),), r"final\.context: 'uid' is none of kdd, hardware-id"),
    "an10922 of ten octets": (
        (('scheme = "kdf3"', 'scheme = "an10922"'),),
        r"initial\.context: an10922 takes at least 15 octets and kdd has 10",
    ),
    "no failed authentication at all": (
        (("authentications = 3", "authentications = 0"),),
        "0 is not between 1",
    ),
    "many failed authentications": (
        (("authentications = 3", "authentications = 11"),),
        "failed-authentications",
    ),
    "no try": ((("tries = 5", "tries = 0"),), "tries: 0 is not between 1 and 20"),
    "many tries": ((("tries = 5", "tries = 21"),), "tries: 21 is not between 1 and 20"),
    "objects that are no tables": (
        ((GOOD[GOOD.index("[[objects]]") :], ""), ("tries = 5", "tries = 5\nobjects = [1]")),
        "objects: must be a list of tables",
    ),
    "one tag twice": ((("0xC0", "0x7F21"),), "objects: two have one tag"),
    "the tag of key information": ((("0xC0", "0xE0"),), r"objects\[1\]\.tag: E0 is the element's key"),
    "no content": ((('content = "certificate"\n', ""),), r"objects\[0\]\.content: missing"),
    "another content": ((('"certificate"', '"csr"'),), r"objects\[0\]\.content: 'csr' is neither"),
    "a certificate of no profile": ((('"certificate"', '"certificate:"'),), "'certificate:' is neither"),
    "a certificate of a file": ((('"certificate"', '"certificate:../x"'),), "is neither"),
    "a chain of something": ((('"certificate"', '"chain:x"'),), "'chain:x' is neither"),
    "a text without colon": ((('"certificate"', '"text"'),), "'text' is neither"),
    "an empty text": ((("text:{hardware_id}/{lot}", "text:"),), "a text is not empty"),
    "a text of two lines": ((("{hardware_id}/{lot}", "a\\nb"),), "no control characters"),
    "half a brace": ((("{hardware_id}/{lot}", "{hardware_id"),), r"objects\[1\]\.content: '{hardware_id'"),
    "a variable that is none": ((("{lot}", "{lot.__class__}"),), r"\{lot.__class__\} is no variable"),
    "a variable without name": ((("{lot}", "{}"),), r"\{\} is no variable"),
    "a variable with a format": ((("{lot}", "{lot:>9}"),), r"\{lot\} is no variable"),
    "a variable with a conversion": ((("{lot}", "{lot!r}"),), r"\{lot\} is no variable"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_element_can_be_is_refused_by_file_and_key(case: str) -> None:
    changes, complaint = REFUSED[case]
    with pytest.raises(MalformedRequest, match=complaint) as refused:
        profile(*changes)
    assert str(refused.value).startswith("element profile x.toml: ")


@pytest.mark.parametrize("tag", [0, -1, 0x1F, 0x3F, 0x5F00, 0x5F1E, 0x5F80, 0x4021, 0x5F8101, 0x17F21])
def test_a_number_that_is_no_tag_is_refused(tag: int) -> None:
    with pytest.raises(MalformedRequest, match="is no BER-TLV tag"):
        profile(("0x7F21", str(tag)))


def test_there_are_at_most_thirty_two_objects() -> None:
    def objects(count: int) -> bytes:
        tables = (f"[[objects]]\ntag = {0xDF20 + at}\ncontent = 'chain'\n" for at in range(count))
        return (GOOD + "".join(tables)).encode()

    assert len(getattr(catalogue.parse(objects(30), "x.toml"), "objects", ())) == 32
    with pytest.raises(MalformedRequest, match="33 are more than 32"):
        catalogue.parse(objects(31), "x.toml")


@given(st.one_of(st.binary(max_size=200), st.integers(0, len(GOOD)).map(lambda end: GOOD[:end].encode())))
def test_any_octets_are_a_profile_or_malformed(octets: bytes) -> None:
    try:
        catalogue.parse(octets, "x.toml")
    except MalformedRequest:
        return


@given(st.data())
def test_any_value_of_any_key_is_a_profile_or_malformed(data: st.DataObject) -> None:
    lines = GOOD.splitlines()
    place = data.draw(st.integers(0, len(lines) - 1))
    values = ["1", "-1", "true", '""', '"{"', "[]", "[1]", "{}", "[{}]", "1979-05-27", "nan", '"x"', '["x"]']
    lines[place] = lines[place].partition("=")[0] + "= " + data.draw(st.sampled_from(values))
    try:
        catalogue.parse("\n".join(lines).encode(), "x.toml")
    except MalformedRequest:
        return


@pytest.mark.parametrize("text", ["a = " + "9" * 5000, "a = " + "[" * 5000, "a = \xff"])
def test_a_file_that_breaks_other_readers_is_malformed(text: str) -> None:
    with pytest.raises(MalformedRequest, match=r"x\.toml: not a toml file"):
        catalogue.parse(text.encode("latin-1"), "x.toml")


def test_labels_are_those_of_the_key_store() -> None:
    """The rule is the key store's (``pki.keys.check_label``), which this package cannot see."""
    for label in ("a", "a.b-c.9", "a" * 64):
        assert profile(('"ours"', f'"{label}"')).final.master == check_label(label)
    for label in ("", "A", "a b", "a_b", "a" * 65):
        with pytest.raises(MalformedRequest):
            check_label(label)
        with pytest.raises(MalformedRequest):
            profile(('"ours"', f'"{label}"'))


def test_the_documentation_names_every_key() -> None:
    text = Path("docs/element-profiles.md").read_text(encoding="utf-8")
    document = tomllib.loads(GOOD)
    tables = (
        document,
        document["initial"],
        document["objects"][0],
        {"keys": 1, "anchors": 1, "intermediates": 1},
    )
    named = {key for table in tables for key in table} - {"initial", "final", "objects"}
    assert not {key for key in named if f"| `{key}` |" not in text}


# --- TPMs ------------------------------------------------------------------------------------------


@cache
def certificate(name: str, *, ca: bool | None = True) -> str:
    """Return a certificate (PEM); with no basicConstraints if ``ca`` is None."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime(2026, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2036, 1, 1, tzinfo=UTC))
    )
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def tpm(anchors: str, intermediates: str | None = None, more: str = "") -> TPMProfile:
    text = f'name = "t"\nkind = "tpm"\nanchors = """\n{anchors}"""\n{more}'
    if intermediates is not None:
        text += f'intermediates = """\n{intermediates}"""\n'
    found = catalogue.parse(text.encode(), "t.toml")
    assert isinstance(found, TPMProfile)
    return found


def der(pem: str) -> bytes:
    return x509.load_pem_x509_certificate(pem.encode()).public_bytes(Encoding.DER)


def test_a_tpm_profile_holds_the_authorities_of_makers() -> None:
    root, other, between = certificate("root"), certificate("other"), certificate("between")
    found = tpm(f"# Maker 1\n{root}# Maker 2\n{other}", between)
    assert found.anchors == (der(root), der(other))
    assert found.intermediates == (der(between),)
    assert found.kind is ElementKind.TPM
    assert tpm(root).intermediates == ()


def _private_key() -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def test_what_is_no_authority_of_a_maker_is_refused() -> None:
    root = certificate("root")
    body = root.splitlines()[1]
    # The octets of basicConstraints (2.5.29.19) become those of an extension that is none.
    broken = der(root).replace(bytes.fromhex("30030101FF"), bytes.fromhex("30030102FF"))
    for anchors, intermediates, complaint in (
        ("", None, "anchors: holds no certificate"),
        ("nothing", None, "anchors: holds no certificate"),
        (_private_key(), None, "anchors: holds certificates"),
        (root + _private_key(), None, "anchors: holds certificates"),
        (root.replace(body, "????"), None, "anchors: not certificates in PEM"),
        (root.replace(body, "AAAA"), None, "anchors: not certificates in PEM"),
        (certificate("end", ca=False), None, "anchors: certificate 1 is not that of an authority"),
        (root + certificate("old", ca=None), None, "anchors: certificate 2 is not that of an authority"),
        (x509_pem(broken), None, "anchors: (certificate 1 is not|not certificates)"),
        (root, certificate("end", ca=False), "intermediates: certificate 1 is not"),
        (root, root, "intermediates: a certificate is there twice"),
        (root + root, None, "intermediates: a certificate is there twice"),
        (certificate("root") * 257, None, "at most 256"),
    ):
        with pytest.raises(MalformedRequest, match=complaint) as refused:
            tpm(anchors, intermediates)
        assert str(refused.value).startswith("element profile t.toml: ")


def x509_pem(octets: bytes) -> str:
    return (
        "-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(octets).decode() + "-----END CERTIFICATE-----\n"
    )


def test_a_tpm_has_no_key_set() -> None:
    with pytest.raises(MalformedRequest, match="aid: unknown key"):
        tpm(certificate("root"), more='aid = "A000000151000000"\n')
    with pytest.raises(MalformedRequest, match="anchors: missing"):
        catalogue.parse(b'name = "t"\nkind = "tpm"\n', "t.toml")


# --- the catalogue ---------------------------------------------------------------------------------


def test_packaged_profiles_are_profiles() -> None:
    packaged = ElementCatalogue.read()
    assert packaged.names() == catalogue.names() == ("scp03-generic", "scp03-replace")
    for name in packaged.names():
        found = packaged.load(name)
        assert found is catalogue.load(name)
        assert isinstance(found, ElementProfile)
    with pytest.raises(NotFound, match="there is no element profile 'x'"):
        catalogue.load("x")


def test_a_catalogue_holds_the_packaged_profiles_and_those_of_a_directory(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(GOOD)
    (tmp_path / "README").write_text("not a profile")
    found = ElementCatalogue.read(tmp_path)
    assert found.names() == ("scp03-generic", "scp03-replace", "x")
    assert found.load("x") == profile()
    with pytest.raises(NotFound, match=r"there is no element profile '\.\./x'; there are scp03-generic"):
        found.load("../x")
    with pytest.raises(TypeError):
        found.profiles["x"] = profile()  # type: ignore[index]  # what must not be possible


@pytest.mark.parametrize(
    ("file_name", "content", "complaint"),
    [
        (
            "scp03-generic.toml",
            GOOD.replace('"x"', '"scp03-generic"'),
            "'scp03-generic' is a packaged profile",
        ),
        ("y.toml", GOOD, "element profile y.toml: name: 'x' must be the file's name"),
        ("X.toml", GOOD.replace('"x"', '"X"'), "must be the file's name"),
        ("x.toml", GOOD + "#" * 262_144, "more than 262144 octets"),
    ],
)
def test_one_bad_file_is_no_catalogue(tmp_path: Path, file_name: str, content: str, complaint: str) -> None:
    (tmp_path / file_name).write_text(content)
    with pytest.raises(MalformedRequest, match=complaint):
        ElementCatalogue.read(tmp_path)


def test_too_many_files_are_no_catalogue(tmp_path: Path) -> None:
    for number in range(1025):
        (tmp_path / f"{number}.toml").touch()
    with pytest.raises(MalformedRequest, match="1025 files, at most 1024"):
        ElementCatalogue.read(tmp_path)


def test_a_directory_that_cannot_be_read_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="nowhere"):
        ElementCatalogue.read(tmp_path / "nowhere")
    (tmp_path / "x.toml").mkdir()
    with pytest.raises(Unavailable, match=r"x\.toml"):
        ElementCatalogue.read(tmp_path)


@given(octets=st.binary(max_size=100))
def test_any_file_is_a_profile_or_malformed(octets: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "x.toml").write_bytes(octets)
        with pytest.raises(MalformedRequest):
            ElementCatalogue.read(Path(folder))
