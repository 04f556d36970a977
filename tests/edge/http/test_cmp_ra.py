"""Stations as RAs: what they nest is asked by whoever protected it, one by one (RFC 9483 section 5.2.2)."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from birthmark.floor.clients import Role
from birthmark.floor.devices import Device, DeviceState
from birthmark.pki import cmp, cmp_requests
from birthmark.pki.cmp import BodyKind
from birthmark.pki.cmp_bodies import nested
from birthmark.pki.cmp_checks import verify_signed, verify_under_secret
from birthmark.pki.cmp_protection import MACProtector
from tests.support.cmpplane import CMPPlane, Heard, Party, cmp_plane, heard, nobody, party, request
from tests.support.realm import Line, make_line


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


def nests(ra: Party, *messages: bytes, **more: object) -> bytes:
    return ra.says(BodyKind.NESTED, nested(messages), **more)  # type: ignore[arg-type]  # what the test says


def inside(answer: Heard) -> list[Heard]:
    """Return the answers in a batch."""
    assert answer.kind == "nested"
    return [heard(one.octets) for one in cmp_requests.read_nested(cmp.decode(answer.octets).body)]


def refused(plane: CMPPlane) -> list[tuple[str, str]]:
    return [(str(one["actor"]), str(one.get("rule", one["code"]))) for one in plane.entries("refused")]


def test_what_an_ra_passes_on_is_answered_to_the_device(plane: CMPPlane) -> None:
    """RFC 9483 section 5.2.2.1: one message in another, by signature or under a code; so is what follows."""
    ra, device, boot = plane.station, plane.device(), plane.code()
    for by, kind, body, path in (
        (device, BodyKind.CR, request(), "/p/L1"),
        (boot, BodyKind.IR, request("D7"), "/p/R1/nested"),
    ):
        answer = plane.ask(nests(ra, by.says(kind, body), at=plane.line.clock.now()), path, by=by)
        assert answer.status == 0, answer.text
        assert answer.kind in ("ip", "cp")
        assert plane.ask(nests(ra, by.confirms(answer)), path, by=by).kind == "pkiconf"
    assert plane.line.the(Device, "serial:D7").state is DeviceState.ISSUED
    assert [one["by"] for one in plane.entries("local-proved")] == ["confirmation"]
    assert plane.entries("device-issued")[-1]["actor"] == "bootstrap:dock-1", "not the one that carried it"
    plane.assert_sound()


def test_an_ra_that_asks_itself_has_an_identity_issued_to_a_device(plane: CMPPlane) -> None:
    """RFC 9483 section 5.1.1: what a station signs itself it asks for the device that the request names."""
    answer = plane.ask(plane.station.says(BodyKind.IR, request("D8")), "/p/R1/initialization")
    assert answer.status == 0, answer.text
    assert plane.ask(plane.station.confirms(answer)).kind == "pkiconf"
    assert plane.entries("device-issued")[-1]["actor"] == "station:ST01"
    plane.assert_sound()


def test_in_a_batch_each_succeeds_or_fails_alone_and_on_its_own_account(plane: CMPPlane) -> None:
    """RFC 9483 section 5.2.2.2; a refusal is on record for its sender, or for the RA if that is nobody."""
    ra, first, second, boot = plane.station, plane.device("D1"), plane.device("D2"), plane.code()
    messages = (
        first.says(BodyKind.CR, request("D1")),
        nobody().says(BodyKind.CR, request("D1")),
        second.says(BodyKind.CR, request("D1")),
        boot.says(BodyKind.IR, request("D7")),
        second.says(BodyKind.CR, request("D2")),
    )
    answers = inside(plane.ask(nests(ra, *messages), "/p/L1"))
    assert [(one.kind, one.status, one.failure) for one in answers] == [
        ("cp", 0, ()),
        ("cp", 2, ("signerNotTrusted",)),
        ("cp", 2, ("badCertTemplate",)),
        ("ip", 2, ("notAuthorized",)),
        ("cp", 0, ()),
    ]
    assert refused(plane) == [
        ("station:ST01", "unauthenticated"),
        ("device:serial:D2", "csr-names-the-device"),
        ("bootstrap:dock-1", "not-permitted"),
    ]
    for answer, by in zip(answers, (first, None, second, boot, second), strict=True):
        message = cmp.decode(answer.octets)
        if by is boot:
            assert isinstance(boot.by, MACProtector)
            verify_under_secret(message, boot.by.secret)
        else:
            verify_signed(message)
    done = plane.ask(nests(ra, first.confirms(answers[0]), second.confirms(answers[4])))
    assert [one.kind for one in inside(done)] == ["pkiconf", "pkiconf"]
    assert len(plane.entries("local-proved")) == 2
    plane.assert_sound()


def test_a_batch_whose_answer_was_lost_gets_the_same_certificates(plane: CMPPlane) -> None:
    ra, first, second = plane.station, plane.device("D1"), plane.device("D2")
    batch = nests(ra, first.says(BodyKind.CR, request("D1")), second.says(BodyKind.CR, request("D2")))
    once, twice = inside(plane.ask(batch, "/p/L1")), inside(plane.ask(batch, "/p/L1"))
    assert [one.certificate for one in once] == [one.certificate for one in twice]
    assert len(plane.entries("local-issued")) == 2
    plane.assert_sound()


def test_nobody_but_a_live_station_speaks_for_others(plane: CMPPlane) -> None:
    device = plane.device()
    message = device.says(BodyKind.CR, request())
    line = plane.line
    other = line.enrol(Role.STATION, "ST09")
    line.service.carry(line.service.authorise.revoke(line.operator.caller, "station:ST09", reason="lost"))
    late = line.clock.now() - timedelta(hours=1)
    for ra, more, failure in (
        (device, {}, "notAuthorized"),
        (party(line.operator), {}, "notAuthorized"),
        (nobody(), {}, "signerNotTrusted"),
        (plane.code(), {}, "wrongIntegrity"),
        (party(other), {}, "signerNotTrusted"),
        (plane.station, {"at": late}, "badTime"),
        (plane.station, {"nonce": bytes(16)}, "badRecipientNonce"),
    ):
        answer = plane.ask(nests(ra, message, **more), "/p/L1/nested")
        assert (answer.kind, answer.failure) == ("error", (failure,)), answer.text
    assert len(refused(plane)) == 7
    assert plane.entries("local-issued") == []
    plane.assert_sound()


def test_a_nested_message_holds_no_nested_one_and_something(plane: CMPPlane) -> None:
    ra = plane.station
    message = plane.device().says(BodyKind.CR, request())
    for octets in (
        nests(ra, nests(ra, message)),
        nests(ra, message, nests(ra, message)),
        nests(ra),
        ra.says(BodyKind.NESTED, b"\x30\x02\x30\x00"),
        nests(ra, *[message] * 33),
    ):
        if len(octets) <= 65_536:
            assert plane.ask(octets, "/p/L1").failure == ("badDataFormat",)
    tampered = bytearray(nests(ra, message))
    tampered[-100] ^= 1
    assert plane.post(bytes(tampered), "/p/L1").status in (200, 400)
    assert plane.entries("local-issued") == []
    plane.assert_sound()


def test_under_an_operations_path_a_nested_message_holds_messages_of_that_operation(plane: CMPPlane) -> None:
    ra, device = plane.station, plane.device()
    right = plane.ask(nests(ra, device.says(BodyKind.CR, request())), "/p/L1/certification")
    assert right.status == 0
    wrong = plane.ask(nests(ra, device.says(BodyKind.CR, request())), "/p/L1/keyupdate")
    assert wrong.failure == ("badRequest",)
    direct = plane.ask(device.says(BodyKind.CR, request()), "/p/L1/nested")
    assert direct.failure == ("badRequest",)
    plane.assert_sound()


def test_messages_in_a_batch_are_charged_to_their_senders(line: Line, tmp_path: Path) -> None:
    """Whoever goes too fast holds up the batch; what was done before is done, and told with the next one."""
    with cmp_plane(line, tmp_path, client_burst=1, client_per_minute=1) as plane:
        ra, first, second = plane.station, plane.device("D1"), plane.device("D2")
        messages = first.says(BodyKind.CR, request("D1")), second.says(BodyKind.CR, request("D2"))
        again = first.says(BodyKind.CR, request("D1"))
        assert plane.post(nests(ra, *messages, again), "/p/L1").status == 429
        assert len(plane.entries("local-issued")) == 2
        line.clock.turn(minutes=2)
        answers = inside(plane.ask(nests(ra, *messages), "/p/L1"))
        assert [one.status for one in answers] == [0, 0]
        assert len(plane.entries("local-issued")) == 2
        plane.assert_sound()
