"""CMP transactions, by a client that says what it should not (RFC 9810, RFC 9483): who gets what, once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from birthmark.floor.devices import Device, DeviceCertificate, DeviceState
from birthmark.floor.enrolments import CMPStatus, CMPTransaction, LocalIdentity, local_identity_id, waiting_id
from birthmark.pki import cmp, cmp_der, der
from birthmark.pki.certificates import Certificate
from birthmark.pki.cmp import CERT_PROFILE, BodyKind, InfoTypeAndValue, implicit_confirm
from birthmark.pki.cmp_bodies import error
from birthmark.pki.cmp_status import PKIFailureInfo, PKIStatus, PKIStatusInfo
from birthmark.pki.revocation import ReasonCode
from birthmark.services.approvals import Approvals
from tests.pki.cmp_parts import PBMAC1
from tests.support.cmpplane import (
    CMPPlane,
    Heard,
    Party,
    client_of,
    cmp_plane,
    new_key,
    nobody,
    old_certificate,
    pkcs10,
    request,
)
from tests.support.realm import Line, make_line

SHA256 = der.oid("2.16.840.1.101.3.4.2.1")


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    """A line with R1 for identities, and L1 for where devices work."""
    made = make_line(tmp_path, f"sqlite:///{tmp_path / 'line.sqlite'}")
    made.open_run()
    made.open_operational()
    yield made
    made.close()


@pytest.fixture
def plane(line: Line, tmp_path: Path) -> Iterator[CMPPlane]:
    with cmp_plane(line, tmp_path) as served:
        yield served


def named(profile: str) -> InfoTypeAndValue:
    return InfoTypeAndValue(info_type=CERT_PROFILE, value=cmp_der.text_sequence(profile))


def gives_up(heard: Heard, by: Party) -> bytes:
    info = PKIStatusInfo(status=PKIStatus.REJECTION, text=("no",), fail_info=PKIFailureInfo.BAD_REQUEST)
    return by.says(BodyKind.ERROR, error(info), to=heard)


def revoked(plane: CMPPlane, heard: Heard) -> ReasonCode | None:
    """Return why a certificate is not good, by the record."""
    serial = Certificate.from_der(heard.certificate).serial_hex
    return plane.line.status(plane.line.the(DeviceCertificate, serial))


def row_of(plane: CMPPlane, heard: Heard, client: str = "device:serial:D1") -> CMPTransaction:
    return plane.line.the(CMPTransaction, f"{client}/{heard.transaction.hex()}")


def refused(plane: CMPPlane) -> list[str]:
    """Return what the log says was refused: the rule, or the code."""
    return [str(one.get("rule", one["code"])) for one in plane.entries("refused")]


def granted(plane: CMPPlane, by: Party, path: str = "/p/L1", body: bytes | None = None) -> Heard:
    answer = plane.ask(by.says(BodyKind.CR, body or request()), path)
    assert (answer.kind, answer.status) == ("cp", 0), answer.text
    return answer


# --- a whole transaction, in the forms that OpenSSL 3.0 does not have


def test_under_pbmac1_an_identity_is_issued_confirmed_and_waits_for_the_gate(plane: CMPPlane) -> None:
    """RFC 9481 section 6.1.2; the answers are under the same algorithms, and the root comes with them."""
    boot = plane.code(mac=PBMAC1)
    answer = plane.ask(boot.says(BodyKind.IR, request("D7")), "/p/R1/initialization", by=boot)
    assert (answer.kind, answer.status) == ("ip", 0), answer.text
    assert len(answer.body["caPubs"]) == 1
    done = plane.ask(boot.confirms(answer), by=boot)
    assert done.kind == "pkiconf"
    assert plane.line.the(Device, "serial:D7").state is DeviceState.ISSUED, "it has not passed the gate"
    plane.assert_sound()


def test_the_profile_in_a_header_names_the_run(plane: CMPPlane) -> None:
    """certProfile (RFC 9810 section 5.1.1.4); beside a path it may name the profile that certifies there."""
    device = plane.device()
    for path, said in (("", "L1"), ("/p/L1", "L1"), ("/p/L1", "ldevid"), ("/p/L1", "")):
        answer = plane.ask(device.says(BodyKind.CR, request(), info=[named(said)]), path)
        assert answer.status == 0, (path, said, answer.text)
        assert plane.ask(device.confirms(answer), path).kind == "pkiconf"
    other = plane.ask(device.says(BodyKind.CR, request(), info=[named("idevid")]), "/p/L1")
    assert (other.status, other.failure) == (2, ("badRequest",))
    nowhere = plane.ask(device.says(BodyKind.CR, request(), info=[named("NO-RUN")]))
    assert (nowhere.failure, nowhere.text) == (("badCertId",), "there is no run NO-RUN")
    none = plane.ask(device.says(BodyKind.CR, request()))
    assert none.failure == ("badCertId",)
    assert len(plane.entries("local-issued")) == 4
    assert refused(plane) == ["certificate-profile", "not-found", "not-found"]
    plane.assert_sound()


def test_a_kur_replaces_the_certificate_that_signs_it_and_no_other(plane: CMPPlane) -> None:
    """RFC 9483 section 4.1.3: signed with the key to be updated, and oldCertID is that certificate."""
    device, key = plane.device(), new_key()
    first = granted(plane, device, body=request(key=key))
    assert plane.ask(device.confirms(first)).kind == "pkiconf"
    holder = client_of(first.certificate, key)
    for controls in (
        old_certificate(device.certificate),
        old_certificate(first.certificate, issuer=Certificate.from_der(first.certificate).subject_name),
    ):
        other = plane.ask(holder.says(BodyKind.KUR, request(controls=controls)))
        assert (other.kind, other.status, other.failure) == ("kup", 2, ("badCertId",))
    boot = plane.code()
    under_code = plane.ask(boot.says(BodyKind.KUR, request("D7")), "/p/L1", by=boot)
    assert under_code.failure == ("wrongIntegrity",)
    identity_signs = plane.ask(device.says(BodyKind.KUR, request()), "/p/L1")
    assert identity_signs.failure == ("notAuthorized",), "it is of another run"
    renewed = plane.ask(
        holder.says(BodyKind.KUR, request(controls=old_certificate(first.certificate))), "/keyupdate"
    )
    assert renewed.status == 0, renewed.text
    assert revoked(plane, first) is None, "the new one is not confirmed yet"
    assert plane.ask(holder.confirms(renewed)).kind == "pkiconf"
    assert revoked(plane, first) is ReasonCode.SUPERSEDED
    plane.assert_sound()


# --- confirmations (RFC 9810 section 5.3.18)


def test_a_confirmation_is_of_this_certificate_or_it_is_revoked(plane: CMPPlane) -> None:
    """RFC 9810 section 4.2.2.2: where verifying the confirmation fails, what was issued is revoked."""
    device, other = plane.device(), plane.device("D2")
    theirs = granted(plane, other, body=request("D2"))
    wrong = granted(plane, device)
    answer = plane.ask(device.confirms(wrong, certificate=theirs.certificate))
    assert (answer.kind, answer.failure) == ("error", ("badCertId",))
    assert revoked(plane, wrong) is ReasonCode.CESSATION_OF_OPERATION
    numbered = granted(plane, device)
    assert plane.ask(device.confirms(numbered, number=7)).failure == ("badCertId",)
    assert revoked(plane, numbered) is ReasonCode.CESSATION_OF_OPERATION
    early = granted(plane, device)
    assert plane.ask(device.confirms(early, algorithm=SHA256)).failure == ("badCertId",)
    third = plane.ask(device.says(BodyKind.CR, request(), pvno=3), "/p/L1")
    assert plane.ask(device.confirms(third, algorithm=SHA256, pvno=3)).kind == "pkiconf"
    assert plane.line.the(LocalIdentity, local_identity_id("serial:D1", "L1")).certificate is not None
    assert revoked(plane, theirs) is None, "nobody but its own device has a say in it"
    plane.assert_sound()


def test_a_confirmation_with_another_nonce_or_from_somebody_else_changes_nothing(plane: CMPPlane) -> None:
    """RFC 9483 section 3.5: recipNonce repeats our senderNonce, and the sender is the one that began."""
    device, other = plane.device(), plane.device("D2")
    answer = granted(plane, device)
    assert plane.ask(device.confirms(answer, nonce=bytes(16))).failure == ("badRecipientNonce",)
    nonceless = device.says(BodyKind.CERT_CONF, b"\x30\x00", transaction=answer.transaction)
    assert plane.ask(nonceless).failure == ("badRecipientNonce",)
    assert plane.ask(other.confirms(answer)).failure == ("badRequest",)
    assert plane.ask(device.confirms(answer, transaction=bytes(16))).failure == ("badRequest",)
    boot = plane.code(device="serial:D1")
    assert plane.ask(boot.confirms(answer), by=boot).failure == ("badRequest",), "it began with a signature"
    assert row_of(plane, answer).status is CMPStatus.ISSUED
    assert revoked(plane, answer) is None
    assert plane.ask(device.confirms(answer)).kind == "pkiconf"
    plane.assert_sound()


def test_what_was_confirmed_is_not_confirmed_again_nor_given_up(plane: CMPPlane) -> None:
    """certConfirmed (RFC 9810 section 5.2.3) tells whoever lost the answer how it stands."""
    device = plane.device()
    answer = granted(plane, device)
    confirmation = device.confirms(answer)
    assert plane.ask(confirmation).kind == "pkiconf"
    again = plane.ask(confirmation)
    assert (again.kind, again.failure) == ("error", ("certConfirmed",))
    assert plane.ask(gives_up(answer, device)).failure == ("badRequest",)
    assert plane.ask(device.polls(answer)).failure == ("badRequest",)
    assert revoked(plane, answer) is None
    assert len(plane.entries("local-proved")) == 1
    plane.assert_sound()


def test_a_client_that_does_not_take_its_certificate_loses_it(plane: CMPPlane) -> None:
    """An empty certConf, one that rejects, or an error (RFC 9483 section 4.1.1): acknowledged by pkiConf."""
    device = plane.device()
    info = der.encode(der.SEQUENCE, der.integer(2))
    rejects = der.encode(
        der.SEQUENCE,
        der.encode(der.SEQUENCE, der.encode(der.OCTET_STRING, b"x" * 32), der.integer(0), info),
    )
    for body in (b"\x30\x00", rejects, None):
        answer = granted(plane, device)
        refusal = gives_up(answer, device)
        if body is not None:
            refusal = device.says(BodyKind.CERT_CONF, body, to=answer)
        assert plane.ask(refusal).kind == "pkiconf"
        assert revoked(plane, answer) is ReasonCode.CESSATION_OF_OPERATION
        assert plane.ask(device.confirms(answer)).failure == ("badRequest",)
    said = [one["reason"] for one in plane.entries("local-rejected")]
    assert said[2] == "the client gave up: no"
    plane.assert_sound()


# --- the same transaction twice


def test_an_answer_that_was_lost_is_the_same_when_it_is_asked_again(plane: CMPPlane) -> None:
    """RFC 9811 section 3.5: without an answer the client has to assume that nothing came."""
    device = plane.device()
    message = device.says(BodyKind.CR, request())
    first, second = plane.ask(message, "/p/L1"), plane.ask(message, "/p/L1")
    assert first.certificate == second.certificate
    assert first.nonce == second.nonce, "whoever repeats a message spoils nothing for its sender"
    assert plane.ask(device.confirms(first)).kind == "pkiconf"
    replayed = plane.ask(message, "/p/L1")
    assert (replayed.kind, replayed.failure) == ("cp", ("transactionIdInUse",))
    assert len(plane.entries("local-issued")) == 1
    assert len(plane.entries("answer-repeated")) == 1
    plane.assert_sound()


def test_another_request_under_the_same_transaction_is_refused(plane: CMPPlane) -> None:
    """RFC 9810 section 5.1.1: transactionIdInUse."""
    device = plane.device()
    answer = granted(plane, device)
    for kind, body in ((BodyKind.CR, request()), (BodyKind.P10CR, pkcs10())):
        other = plane.ask(device.says(kind, body, transaction=answer.transaction), "/p/L1")
        assert (other.kind, other.failure) == ("cp", ("transactionIdInUse",))
    assert len(plane.entries("local-issued")) == 1
    theirs = plane.device("D2")
    same = plane.ask(theirs.says(BodyKind.CR, request("D2"), transaction=answer.transaction), "/p/L1")
    assert same.status == 0, "it is unique for each client"
    plane.assert_sound()


def test_who_confirms_nothing_gets_its_lost_answer_too_and_has_to_use_the_certificate(
    plane: CMPPlane,
) -> None:
    """implicitConfirm (RFC 9810 section 5.1.1.1)."""
    device = plane.device()
    message = device.says(BodyKind.CR, request(), info=[implicit_confirm()])
    first, second = plane.ask(message, "/p/L1"), plane.ask(message, "/p/L1")
    for one in (first, second):
        assert cmp.decode(one.octets).header.implicit_confirm
    assert first.certificate == second.certificate
    assert row_of(plane, first).status is CMPStatus.CONFIRMED
    assert plane.entries("local-proved") == []
    plane.assert_sound()


def test_a_refusal_ends_a_transaction_and_one_of_the_moment_does_not(plane: CMPPlane) -> None:
    device, far = plane.device(), plane.line
    misnamed = device.says(BodyKind.CR, request("D9"))
    assert plane.ask(misnamed, "/p/L1").failure == ("badCertTemplate",)
    assert plane.ask(misnamed, "/p/L1").failure == ("transactionIdInUse",)
    far.clock.turn(days=2)  # the run is over
    late = plane.ask(device.says(BodyKind.CR, request()), "/p/L1")
    assert late.status == 2
    assert plane.entries("local-issued") == []
    plane.assert_sound()


# --- waiting for a person (RFC 9483 section 4.4)


def test_only_what_waits_is_polled_for_and_only_by_who_asked(plane: CMPPlane) -> None:
    plane.line.open_operational("L2", approval=True)
    device, other = plane.device(), plane.device("D2")
    body = request()
    first = plane.ask(device.says(BodyKind.CR, body), "/p/L2")
    assert (first.kind, first.status) == ("cp", 3)
    assert plane.ask(other.polls(first)).failure == ("badRequest",), "it is not its own"
    assert plane.ask(device.polls(first, number=3)).failure == ("badRequest",)
    early = device.confirms(first, certificate=other.certificate)
    assert plane.ask(early).failure == ("badRequest",), "nothing waits to be confirmed"
    still = plane.ask(device.polls(first))
    assert (still.kind, int(still.body[0]["checkAfter"])) == ("pollRep", 7)
    assert plane.ask(device.polls(first)).failure == ("badRecipientNonce",), "the answer to it is another"
    row = row_of(plane, first)
    settled = Approvals().settle(
        plane.line.operator.caller, waiting_id(row.client, row.key), approved=True, reason="seen"
    )
    plane.line.service.carry(settled)
    got = plane.ask(device.polls(still))
    assert (got.kind, got.status) == ("cp", 0), got.text
    assert plane.ask(device.confirms(got)).kind == "pkiconf"
    assert len(plane.entries("enrolment-waiting")) == 1
    plane.assert_sound()


def test_a_poll_for_nothing_and_a_request_that_a_person_refused(plane: CMPPlane) -> None:
    plane.line.open_operational("L2", approval=True)
    device = plane.device()
    nothing = device.says(BodyKind.POLL_REQ, b"\x30\x05\x30\x03\x02\x01\x00", nonce=bytes(16))
    assert plane.ask(nothing).failure == ("badRequest",)
    first = plane.ask(device.says(BodyKind.CR, request()), "/p/L2")
    row = row_of(plane, first)
    settled = Approvals().settle(
        plane.line.operator.caller, waiting_id(row.client, row.key), approved=False, reason="unknown to us"
    )
    plane.line.service.carry(settled)
    no = plane.ask(device.polls(first))
    assert (no.kind, no.failure) == ("error", ("notAuthorized",))
    assert "refused it: unknown to us" in no.text
    assert plane.entries("local-issued") == []
    plane.assert_sound()


# --- revocation (RFC 9483 section 4.2)


def revokes(certificate: bytes, reason: int | None = None) -> bytes:
    read = Certificate.from_der(certificate)
    serial = der.integer(read.serial_number)
    template = der.encode(der.SEQUENCE, b"\x81" + serial[1:], der.encode(0xA3, read.issuer_name))
    details = b""
    if reason is not None:
        value = der.encode(der.OCTET_STRING, der.encode(0x0A, bytes((reason,))))
        details = der.encode(der.SEQUENCE, der.encode(der.SEQUENCE, der.oid("2.5.29.21"), value))
    return der.encode(der.SEQUENCE, der.encode(der.SEQUENCE, template, details))


def test_a_device_revokes_its_own_for_good_and_once(plane: CMPPlane) -> None:
    device, other = plane.device(), plane.device("D2")
    answer = granted(plane, device)
    plane.ask(device.confirms(answer))
    for by, reason, failure in (
        (other, None, "badCertId"),
        (device, 6, "notAuthorized"),
        (device, 8, "notAuthorized"),
        (plane.station, None, "notAuthorized"),
    ):
        no = plane.ask(by.says(BodyKind.RR, revokes(answer.certificate, reason)), "/revocation")
        assert (no.kind, no.status, no.failure) == ("rp", 2, (failure,)), no.text
    assert revoked(plane, answer) is None
    gone = plane.ask(device.says(BodyKind.RR, revokes(answer.certificate, 5)))
    assert (gone.kind, gone.status) == ("rp", 0)
    assert revoked(plane, answer) is ReasonCode.CESSATION_OF_OPERATION
    again = plane.ask(device.says(BodyKind.RR, revokes(answer.certificate, 5)))
    assert (again.kind, again.failure) == ("rp", ("certRevoked",))
    own = plane.ask(device.says(BodyKind.RR, revokes(device.certificate)))
    assert own.failure == ("notAuthorized",)
    assert len(plane.entries("local-revoked")) == 1
    assert len(refused(plane)) == 6
    plane.assert_sound()


# --- who is believed


def test_strangers_the_revoked_and_answers_are_refused_in_cmp_and_on_record(plane: CMPPlane) -> None:
    """RFC 9483 section 3.5, in its order."""
    device, lost = plane.device(), plane.device("D2")
    mine = granted(plane, lost, body=request("D2", key := new_key()))
    gone = client_of(mine.certificate, key)
    plane.ask(lost.confirms(mine))
    plane.ask(lost.says(BodyKind.RR, revokes(mine.certificate)))
    before = plane.line.size()
    cases = {
        "unsupportedVersion": device.says(BodyKind.CR, request(), pvno=1),
        "signerNotTrusted": nobody().says(BodyKind.CR, request()),
        "badRecipientNonce": device.says(BodyKind.CR, request(), nonce=bytes(16)),
        "badRequest": device.says(BodyKind.IP, b"\x30\x00"),
        "badSenderNonce": device.says(BodyKind.CR, request(), sender_nonce=b"short"),
        "badDataFormat": device.says(BodyKind.CR, request(), transaction=b"short"),
    }
    for failure, message in cases.items():
        assert plane.ask(message, "/p/L1").failure == (failure,), failure
    assert plane.ask(gone.says(BodyKind.CR, request("D2")), "/p/L1").failure == ("signerNotTrusted",)
    assert {one.client for one in plane.line.service.store.scan(CMPTransaction)} == {"device:serial:D2"}
    assert len(list(plane.line.service.store.scan(CMPTransaction))) == 1, "who is shut out begins nothing"
    octets = device.says(BodyKind.CR, request())
    assert plane.ask(octets[:-1] + bytes((octets[-1] ^ 1,)), "/p/L1").failure != ()
    assert plane.line.size() == before + 8
    assert all(one["code"] for one in plane.entries("refused"))
    plane.assert_sound()
