"""One reviewed file, with one reading (SPEC A3)."""

import re
from contextlib import suppress

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from birthmark import errors
from birthmark.floor.authorities import AuthorityKind
from birthmark.floor.ceremonies import AcceptKey, Certify, GenerateKey, SignCRL
from birthmark.floor.key_assets import KeyPurpose
from birthmark.pki.attributes import SecretKind
from birthmark.pki.keys import KeyAlgorithm, KeyLabel
from birthmark.services.ceremony_file import parse
from tests.support.ceremonies import Person
from tests.support.ceremony_files import issuing_text, realm_text

ANNA, BELA, CARL = (Person(name) for name in ("anna", "bela", "carl"))
TEXT = realm_text([ANNA, BELA, CARL], required=2)


def test_a_file_is_what_it_says() -> None:
    ceremony = parse(TEXT.encode())
    assert (ceremony.id, ceremony.realm, ceremony.environment, ceremony.required) == (
        "acme-1",
        "acme",
        "test",
        2,
    )
    assert [person.id for person in ceremony.custodians] == ["anna", "bela", "carl"]
    log, root_key, root, _, issuing = ceremony.steps
    assert isinstance(log, GenerateKey)
    assert (log.store, log.kind, log.purpose) == ("service", KeyAlgorithm.ED25519, KeyPurpose.LOG)
    assert isinstance(root_key, GenerateKey)
    assert root_key.store == "root"
    assert isinstance(root, Certify)
    assert (root.kind, root.issuer, root.licence.quota) == (AuthorityKind.ROOT, "self", None)
    assert isinstance(issuing, Certify)
    assert issuing.variables["authority"] == "acme Issuing CA 1"


def test_another_yaml_reader_sees_the_same(tmp_path: object) -> None:
    document = yaml.safe_load(TEXT)
    assert document["required"] == 2
    assert [next(iter(step)) for step in document["steps"]] == [
        "generate-key", "generate-key", "certificate", "generate-key", "certificate",
    ]  # fmt: skip


def test_words_that_yaml_takes_for_something_else_stay_words() -> None:
    text = TEXT.replace('purpose: "realm"', "purpose: no").replace('id: "anna"', "id: 0o17")
    ceremony = parse(text.encode())
    assert ceremony.purpose == "no"
    assert ceremony.custodians[0].id == "0o17"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("required: 2", "required: 4"), "4 of 3 custodians"),
        (("required: 2", "required: 0"), "0 of 3 custodians"),
        (("required: 2", "required: two"), "required: is a number"),
        (("required: 2", "required: 2\nrequired: 3"), "line 8: required is there twice"),
        (("required: 2", "required: 2\ncolour: red"), "colour: unknown key"),
        (("kind: ed25519", "kind: ed25519\n    size: 3"), "steps 1: size: unknown key"),
        (("kind: ed25519", "kind: dsa"), "steps 1: kind: is one of"),
        (("kind: ed25519", "kind: kek"), "a kek key is nothing for log"),
        (("store: offline root", "store: offline"), "steps 2: store: is 'service' or 'offline NAME'"),
        (("store: offline root", "store: offline service"), "steps 2: store"),
        (("generate-key: log", "generate-kee: log"), "steps 1: a step begins with one of generate-key"),
        (("issuer: self", "issuer: root"), "steps 3: issuer: a root"),
        (("generate-key: issuing-1", "generate-key: root"), "the key root is ordered twice"),
        (("certificate: issuing-1", "certificate: root"), "the certificate root is ordered twice"),
        (("certificate: issuing-1", "certificate: .ca"), "certificate: is 1 to 64 of a-z 0-9 . -, not"),
        (("certificate: issuing-1", 'certificate: "."'), "certificate: is 1 to 64 of a-z 0-9 . -, not"),
        (("certificate: issuing-1", 'certificate: ".."'), "certificate: is 1 to 64 of a-z 0-9 . -, not"),
        (("certificate: issuing-1", "certificate: a.delta"), "certificate: 'a.delta' cannot stand"),
        (('scope: "*"', 'scope: "colour=red"'), "steps 5: licence: scope"),
        (('scope: "*"', "scope:"), "steps 5: licence: scope: is empty"),
        (('scope: "*"', 'scope: ""'), "steps 5: licence: scope: is empty"),
        (("ends: 2030-01-01T00:00:00Z", "ends: 2030-01-01T00:00:00"), "time zone"),
        (("ends: 2030-01-01T00:00:00Z", "ends: soon"), "is a day like"),
        (('id: "anna"', 'id: "bela"'), "one id is there twice"),
        (('id: "anna"', "id: &x anna"), "an anchor or a tag"),
        (('id: "anna"', "id: !!python/name:os.system anna"), "an anchor or a tag"),
        (('id: "anna"', "id: *x"), "an alias"),
        (('realm: "acme"', 'realm: "../acme"'), "realm"),
        (("ceremony: acme-1", "ceremony: Acme 1"), "ceremony: is 1 to 64"),
        (("ceremony: acme-1", "? [a]\n: b\nceremony: acme-1"), "a key is a word"),
        (("BEGIN PUBLIC KEY", "BEGIN PUBLIC KEE"), "custodians 1: public-key"),
        (("environment: test", "environment: prod"), "environment: is one of test, production"),
    ],
)  # fmt: skip
def test_a_mistake_is_refused_with_its_place(change: tuple[str, str], complaint: str) -> None:
    assert change[0] in TEXT
    with pytest.raises(errors.MalformedRequest, match=re.escape(complaint)):
        parse(TEXT.replace(*change, 1).encode())


ACCEPT = """
  - accept-key: maker-1
    store: service
    purpose: master-diversification
    kind: diversify-aes-256
    transport: transport-1
    share: MTIzNA==
    check-value: 6f2f9be174
"""


def test_a_key_of_somebody_else_is_taken_in_as_ordered() -> None:
    step = parse((TEXT + ACCEPT).encode()).steps[-1]
    assert step == AcceptKey(
        label=KeyLabel("maker-1"),
        store="service",
        purpose=KeyPurpose.MASTER_DIVERSIFICATION,
        kind=SecretKind.DIVERSIFY_AES_256,
        users="master-diversification",
        share=b"1234",
        transport=KeyLabel("transport-1"),
        check_value="6f2f9be174",
    )
    assert parse((TEXT + ACCEPT).encode()).keys["maker-1"] is not None


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("kind: diversify-aes-256", "kind: dek-aes-256"), "nothing for master-diversification"),
        (("kind: diversify-aes-256", "kind: kek"), "nothing for master-diversification"),
        (("kind: diversify-aes-256", "kind: ec-p256"), "kind: is one of kek"),
        (("purpose: master-diversification", "purpose: kek"), "nothing for kek"),
        (("purpose: master-diversification", "purpose: static-key"), "nothing for static-key"),
        (("purpose: master-diversification", "purpose: log"), "nothing for log"),
        (("share: MTIzNA==", "share: MTIzNA="), "share: is no base64"),
        (("share: MTIzNA==", "share: ''"), "share: is missing"),
        (("check-value: 6f2f9be174", "check-value: 6f2f9b"), "check-value: is 10 hexadecimal digits"),
        (("check-value: 6f2f9be174", "check-value: 6F2F9BE174"), "check-value: is 10 hexadecimal digits"),
        (("transport: transport-1", "transport: ''"), "transport: is missing"),
        (("accept-key: maker-1", "accept-key: log"), "the key log is ordered twice"),
    ],
)
def test_a_mistake_in_a_key_of_somebody_else_is_refused_with_its_place(
    change: tuple[str, str], complaint: str
) -> None:
    assert change[0] in ACCEPT
    with pytest.raises(errors.MalformedRequest, match=re.escape(complaint)):
        parse((TEXT + ACCEPT.replace(*change, 1)).encode())


def test_a_static_key_is_not_made_here() -> None:
    """K-ENC, K-MAC and K-DEK of a delivery are the maker's; a key of ours would open no element."""
    made = ACCEPT.partition("    transport")[0].replace("accept-key", "generate-key")
    assert isinstance(parse((TEXT + made).encode()).steps[-1], GenerateKey)
    for kind in ("master-aes-128", "dek-aes-128"):
        wrong = made.replace("master-diversification", "static-key").replace("diversify-aes-256", kind)
        with pytest.raises(errors.MalformedRequest, match="nothing for static-key"):
            parse((TEXT + wrong).encode())


def test_an_authority_without_variables_makes_a_file_that_is_read() -> None:
    """A profile may need none; a bare ``subject:`` would be an empty text, and no table."""
    text = issuing_text([ANNA, BELA], ceremony="acme-2", subject={})
    assert "subject" not in text
    certify = parse(text.encode()).steps[-1]
    assert isinstance(certify, Certify)
    assert certify.variables == {}


def test_a_custodian_has_one_key() -> None:
    key = next(part for part in TEXT.split("    public-key: |\n")[1:]).partition("  - id:")[0]
    with pytest.raises(errors.MalformedRequest, match="custodians 1: public-key: pem: 2 blocks PUBLIC KEY"):
        parse(TEXT.replace(key, key + key, 1).encode())


def test_two_custodians_with_one_key_are_one_person() -> None:
    with pytest.raises(errors.MalformedRequest, match="same key"):
        parse(realm_text([ANNA, Person("bela", ANNA.key)], required=2).encode())


def test_production_requires_two() -> None:
    with pytest.raises(errors.PolicyRefused, match="at least two") as refused:
        parse(realm_text([ANNA, BELA], required=1, environment="production").encode())
    assert refused.value.rule == "custodians"
    assert parse(realm_text([ANNA, BELA], required=2, environment="production").encode()).mark == ""


def test_a_list_of_revocations_names_every_serial_number() -> None:
    head = TEXT.partition("steps:\n")[0]
    step = "  - sign-crl: root\n    next-update: 2027-01-01\n    revoked: [{}]\n"
    ceremony = parse(f"{head}steps:\n{step.format('4b, 4a')}".encode())
    (only,) = ceremony.steps
    assert isinstance(only, SignCRL)
    assert only.revoked == ("4a", "4b")
    for wrong in ("4A", "4a, 4a", "xyz", "4"):
        with pytest.raises(errors.MalformedRequest, match="revoked"):
            parse(f"{head}steps:\n{step.format(wrong)}".encode())


@given(st.binary(max_size=200) | st.text(alphabet="[]{}:-&*!|>'\" \n\tabc0123", max_size=200).map(str.encode))
@settings(max_examples=100, deadline=None)
def test_any_octets_are_a_ceremony_or_one_refusal(octets: bytes) -> None:
    with pytest.raises(errors.Refusal):
        parse(octets)


@given(at=st.integers(0, len(TEXT) - 1), by=st.sampled_from(["", ":", "\n", "[", "{", "0", "é", "\0", "  "]))
@settings(max_examples=100, deadline=None)
def test_a_broken_file_is_a_ceremony_or_one_refusal(at: int, by: str) -> None:
    with suppress(errors.Refusal):
        parse((TEXT[:at] + by + TEXT[at + 1 :]).encode())


def test_deep_and_long_files_are_refused() -> None:
    with pytest.raises(errors.MalformedRequest):
        parse(b"[" * 100_000)
    with pytest.raises(errors.TooLarge):
        parse(b"#" * 300_000)
