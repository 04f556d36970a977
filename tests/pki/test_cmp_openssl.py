"""OpenSSL's CMP client is understood, and understands (SPEC H1): its messages, then whole transactions."""

from collections.abc import Mapping

import pytest

from birthmark.errors import PolicyRefused, Refusal
from birthmark.pki import crmf, csr
from birthmark.pki.certificates import Certificate, one_from_pem
from birthmark.pki.cmp import BodyKind, PKIMessage, decode, read_info
from birthmark.pki.cmp_bodies import CURRENT_CRL
from birthmark.pki.cmp_checks import sender_reference, verify_header, verify_signed, verify_under_secret
from birthmark.pki.cmp_protection import ProtectionKind, protection_kind
from birthmark.pki.cmp_requests import read_confirmations, read_revocations, verify_confirmation
from birthmark.pki.cmp_status import PKIFailureInfo, PKIStatus
from birthmark.pki.keys import KeyAlgorithm
from birthmark.pki.revocation import ReasonCode
from birthmark.secret import SecretBytes
from tests.pki import cmp_parts
from tests.pki.cmp_parts import IN_SECRET, REFERENCE, SECRET, SIGNED, Client, certificate, name, pem
from tests.pki.cmp_responder import Responder, serving
from tests.pki.sample import NOW, spki

NEW = ("-newkey", "new.key", "-subject", "/CN=new")
CASES: Mapping[str, tuple[str, ...]] = {
    "ir": ("-cmd", "ir", *NEW, *IN_SECRET),
    "ir-implicit": ("-cmd", "ir", *NEW, *IN_SECRET, "-implicit_confirm", "-grant_implicitconf"),
    "ir-no-proof": ("-cmd", "ir", *NEW, *IN_SECRET, "-popo", "-1"),
    "ir-word-of-an-ra": ("-cmd", "ir", *NEW, *IN_SECRET, "-popo", "0"),
    "ir-signed": ("-cmd", "ir", *NEW, *SIGNED),
    "cr": ("-cmd", "cr", *NEW, *SIGNED, "-sans", "new.example", "-digest", "sha512"),
    "cr-rsa": ("-cmd", "cr", *NEW, "-cert", "rsa.pem", "-key", "rsa.key", "-trusted", "ca.pem"),
    "cr-p384": ("-cmd", "cr", *NEW, "-cert", "p384.pem", "-key", "p384.key", "-trusted", "ca.pem"),
    "kur": ("-cmd", "kur", "-newkey", "new.key", "-oldcert", "device.pem", *SIGNED),
    "p10cr": ("-cmd", "p10cr", "-csr", "new.csr", *IN_SECRET),
    "rr": ("-cmd", "rr", "-oldcert", "device.pem", "-revreason", "1", *SIGNED),
    "rr-no-reason": ("-cmd", "rr", "-oldcert", "device.pem", *SIGNED),
    "genm": ("-cmd", "genm", *IN_SECRET),
    "genm-crl": ("-cmd", "genm", "-infotype", "currentCRL", *SIGNED),
    "unprotected": ("-cmd", "ir", *NEW, *IN_SECRET, "-unprotected_requests"),
    **{
        f"genm-{mac}": ("-cmd", "genm", *IN_SECRET, "-mac", mac)
        for mac in ("hmac-sha1", "hmacWithSHA1", "hmacWithSHA256", "hmacWithSHA384", "hmacWithSHA512")
    },
}
BARE = ("-unprotected_requests", "-unprotected_errors")
MACS = [name for name in CASES if name.startswith("genm-hmac")]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(tmp_path_factory.mktemp("cmp"))


@pytest.fixture(scope="module")
def sent(client: Client) -> Mapping[str, list[PKIMessage]]:
    return {case: [decode(octets) for octets in client.asks(*asked)] for case, asked in CASES.items()}


def believe(message: PKIMessage) -> None:
    if protection_kind(message) is ProtectionKind.SIGNATURE:
        verify_signed(message)
    else:
        verify_under_secret(message, SECRET)


@pytest.mark.parametrize("case", sorted(set(CASES) - {"unprotected"}))
def test_every_message_is_read_and_believed(case: str, sent: Mapping[str, list[PKIMessage]]) -> None:
    first, *more = sent[case]
    assert first.kind == case.split("-", maxsplit=1)[0]
    verify_header(first, now=NOW, tolerance=None)
    for message in (first, *more):
        believe(message)
        if protection_kind(message) is not ProtectionKind.SIGNATURE:
            assert sender_reference(message) == REFERENCE
    confirms = case in {"ir", "ir-word-of-an-ra", "ir-signed", "cr", "cr-rsa", "cr-p384", "p10cr"}
    assert [message.kind for message in more] == ([BodyKind.CERT_CONF] if confirms else [])


@pytest.mark.filterwarnings("ignore:Parsed a serial number which wasn't positive")
@pytest.mark.parametrize("case", ["ir", "cr", "kur", "p10cr", "rr", "genm"])
def test_a_message_that_was_changed_anywhere_is_not_believed(
    case: str, sent: Mapping[str, list[PKIMessage]]
) -> None:
    octets = sent[case][0].octets
    own = len(sent[case][0].protected_part)
    for position in [*range(own), *range(own, len(octets), 7)]:
        changed = bytearray(octets)
        changed[position] ^= 1 << position % 8
        try:
            message = decode(bytes(changed))
            believe(message)
        except Refusal:
            continue
        # What no protection covers: certificates beside that of the signer, and tags and lengths around.
        assert message.protected_part == sent[case][0].protected_part
        assert message.protection == sent[case][0].protection


@pytest.mark.parametrize("case", sorted(CASES))
def test_a_message_that_was_cut_is_refused(case: str, sent: Mapping[str, list[PKIMessage]]) -> None:
    for message in sent[case]:
        for size in range(len(message.octets)):
            with pytest.raises(Refusal):
                decode(message.octets[:size])
        with pytest.raises(Refusal):
            decode(message.octets + b"\0")


def test_requests_say_what_is_asked_for(sent: Mapping[str, list[PKIMessage]]) -> None:
    for case in ("ir", "ir-signed", "cr", "cr-rsa", "cr-p384"):
        request = crmf.decode(sent[case][0].body)
        assert request.cert_req_id == 0
        assert request.template.subject == name("new").public_bytes()
        assert request.old_cert_id is None
        vetted = crmf.vet(request, allowed=[KeyAlgorithm.EC_P256])
        assert vetted.subject_public_key_info == spki(KeyAlgorithm.EC_P256, "new")
        assert vetted.subject_common_name == "new"
    assert crmf.decode(sent["cr"][0].body).template.extensions is not None
    assert crmf.decode(sent["ir"][0].body).template.extensions is None


def test_an_update_names_the_certificate_it_replaces(sent: Mapping[str, list[PKIMessage]]) -> None:
    request = crmf.decode(sent["kur"][0].body)
    old = Certificate.from_der(certificate("device"))
    assert request.old_cert_id == crmf.CertId(issuer=old.issuer_name, serial_number=old.serial_number)
    assert crmf.vet(request, allowed=list(KeyAlgorithm)).subject_common_name == "device"
    assert verify_signed(sent["kur"][0]) == old


def test_pkcs10_is_vetted_as_it_always_is(sent: Mapping[str, list[PKIMessage]]) -> None:
    vetted = csr.vet(sent["p10cr"][0].body, allowed=[KeyAlgorithm.EC_P256])
    assert vetted.subject_public_key_info == spki(KeyAlgorithm.EC_P256, "new")


@pytest.mark.parametrize(("case", "why"), [("ir-no-proof", "no proof"), ("ir-word-of-an-ra", "raVerified")])
def test_possession_is_proved_by_a_signature_only(
    case: str, why: str, sent: Mapping[str, list[PKIMessage]]
) -> None:
    with pytest.raises(PolicyRefused, match=why) as refused:
        crmf.vet(crmf.decode(sent[case][0].body), allowed=list(KeyAlgorithm))
    assert refused.value.rule == "proof-of-possession"


def test_revocations_name_a_certificate_and_perhaps_a_reason(sent: Mapping[str, list[PKIMessage]]) -> None:
    for case, reason in (("rr", ReasonCode.KEY_COMPROMISE), ("rr-no-reason", None)):
        (asked,) = read_revocations(sent[case][0].body)
        device = Certificate.from_der(certificate("device"))
        assert asked.certificate.serial_number == device.serial_number
        assert asked.certificate.issuer == device.issuer_name
        assert asked.reason is reason


def test_general_messages_say_what_is_wanted(sent: Mapping[str, list[PKIMessage]]) -> None:
    assert read_info(sent["genm"][0].body) == ()
    (asked,) = read_info(sent["genm-crl"][0].body)
    assert (asked.info_type, asked.value) == (CURRENT_CRL, None)


@pytest.mark.parametrize("case", MACS)
def test_each_mac_is_checked_under_its_own_secret_only(
    case: str, sent: Mapping[str, list[PKIMessage]]
) -> None:
    with pytest.raises(PolicyRefused) as refused:
        verify_under_secret(sent[case][0], SecretBytes(b"another"))
    assert refused.value.rule == "message-protection"


def test_implicit_confirmation_is_seen(sent: Mapping[str, list[PKIMessage]]) -> None:
    assert sent["ir-implicit"][0].header.implicit_confirm
    assert not sent["ir"][0].header.implicit_confirm


def test_what_is_not_protected_is_refused(sent: Mapping[str, list[PKIMessage]]) -> None:
    with pytest.raises(PolicyRefused) as refused:
        verify_header(sent["unprotected"][0], now=NOW, tolerance=None)
    assert refused.value.rule == "message-protection"


@pytest.mark.parametrize("algorithm", ["new", "p384", "rsa", "ed25519", "ed448"])
def test_confirmations_are_of_the_certificate(algorithm: str, client: Client) -> None:
    kind = dict(cmp_parts.OTHERS).get(algorithm, cmp_parts.P256)
    own = certificate(algorithm, kind, issuer=algorithm)  # signed with its own key: each hash once
    (client.folder / "own.pem").write_bytes(pem(own))
    asked = ("-cmd", "ir", "-newkey", f"{algorithm}.key", "-subject", "/CN=new", *IN_SECRET)
    request, confirmation = map(decode, client.asks(*asked, certificate="own.pem"))
    (confirmed,) = read_confirmations(confirmation.body)
    assert confirmed.accepted
    verify_confirmation(confirmed, own, pvno=2)
    with pytest.raises(PolicyRefused):
        verify_confirmation(confirmed, certificate(algorithm, kind), pvno=2)
    assert crmf.vet(crmf.decode(request.body), allowed=[kind]).key_algorithm is kind


# --- whole transactions ---


@pytest.fixture
def responder() -> Responder:
    return Responder()


def enrol(client: Client, responder: Responder, *arguments: str) -> tuple[int, str]:
    with serving(responder) as address:
        done = client.run(
            *("-server", address, "-certout", "got.pem", "-cacertsout", "roots.pem", *arguments),
            *("-keep_alive", "0"),
        )
    return done.returncode, done.stdout + done.stderr


TRANSACTIONS = {
    "ir": (("-cmd", "ir", *NEW, *IN_SECRET), ["ir", "certConf"]),
    "ir-sha512": (("-cmd", "ir", *NEW, *IN_SECRET, "-mac", "hmacWithSHA512"), ["ir", "certConf"]),
    "ir-implicit": (("-cmd", "ir", *NEW, *IN_SECRET, "-implicit_confirm"), ["ir"]),
    "cr": (("-cmd", "cr", *NEW, *SIGNED), ["cr", "certConf"]),
    "kur": (("-cmd", "kur", "-newkey", "new.key", *SIGNED), ["kur", "certConf"]),
    "p10cr": (("-cmd", "p10cr", "-csr", "new.csr", *SIGNED), ["p10cr", "certConf"]),
}


@pytest.mark.parametrize("case", sorted(TRANSACTIONS))
def test_a_client_enrols(case: str, client: Client, responder: Responder) -> None:
    arguments, kinds = TRANSACTIONS[case]
    code, said = enrol(client, responder, *arguments)
    assert code == 0, said
    assert responder.seen == kinds
    got = Certificate.from_der(one_from_pem((client.folder / "got.pem").read_text(encoding="ascii")))
    assert got.subject_public_key_info == spki(KeyAlgorithm.EC_P256, "new")
    assert responder.confirmed == ([got.der] if "certConf" in kinds else [])


def test_a_client_polls_until_it_is_its_turn(client: Client, responder: Responder) -> None:
    responder.waits = 2
    code, said = enrol(client, responder, "-cmd", "cr", *NEW, *SIGNED)
    assert code == 0, said
    assert responder.seen == ["cr", "pollReq", "pollReq", "certConf"]


def test_a_client_is_given_the_roots_with_its_first_certificate(client: Client, responder: Responder) -> None:
    roots = client.folder / "roots.pem"
    roots.unlink(missing_ok=True)
    code, said = enrol(client, responder, "-cmd", "ir", *NEW, *IN_SECRET)
    assert code == 0, said
    assert one_from_pem(roots.read_text(encoding="ascii")) == certificate("ca")


def test_a_client_revokes(client: Client, responder: Responder) -> None:
    code, said = enrol(client, responder, "-cmd", "rr", "-oldcert", "device.pem", "-revreason", "4", *SIGNED)
    assert code == 0, said
    assert [asked.reason for asked in responder.revoked] == [ReasonCode.SUPERSEDED]


@pytest.mark.parametrize("arguments", [("-infotype", "caCerts"), ("-infotype", "currentCRL"), ()])
def test_a_client_asks_what_it_likes(
    arguments: tuple[str, ...], client: Client, responder: Responder
) -> None:
    code, said = enrol(client, responder, "-cmd", "genm", *arguments, *SIGNED)
    assert code == 0, said
    assert responder.seen == ["genm"]


@pytest.mark.parametrize(
    ("arguments", "failure", "text"),
    [
        (("-cmd", "ir", *NEW, *IN_SECRET, "-popo", "-1"), "badPOP", "no proof"),
        (("-cmd", "ir", *NEW, *IN_SECRET, *BARE), "badMessageCheck", "not protected"),
    ],
)
def test_a_client_is_told_why_not(
    arguments: tuple[str, ...], failure: str, text: str, client: Client, responder: Responder
) -> None:
    code, said = enrol(client, responder, *arguments)
    assert code != 0
    assert "rejection" in said
    assert failure in said
    assert text in said


@pytest.mark.parametrize("failure", sorted(PKIFailureInfo))
def test_a_client_reads_every_failure(failure: PKIFailureInfo, client: Client, responder: Responder) -> None:
    responder.fails = failure
    code, said = enrol(client, responder, "-cmd", "genm", *SIGNED)
    assert code != 0
    word = str(failure.name).replace("_", "").lower()
    listed = said.lower().split("pkifailureinfo: ")[1].split(";")[0]
    assert listed.replace(" ", "") == word


def test_a_client_that_rejects_its_certificate_says_so(client: Client, responder: Responder) -> None:
    responder.certifies = spki(KeyAlgorithm.EC_P256, "another")
    code, said = enrol(client, responder, "-cmd", "cr", *NEW, *SIGNED)
    assert code != 0, said
    (said_so,) = responder.rejected
    assert said_so.status is not None
    assert said_so.status.status is PKIStatus.REJECTION
    assert said_so.status.fail_info is PKIFailureInfo.INCORRECT_DATA
