"""What goes wrong on the channel to a virtual element goes wrong where it was ordered, and as ordered."""

import pytest

from birthmark import errors
from birthmark.element.apdu import OK, Guarded, relay
from birthmark.element.card_faults import ElementChannel, Fault, FaultKind
from birthmark.element.scp03 import SecurityLevel, initialize_update
from tests.element.hosts import FINAL, GET_STATUS, INITIAL, Host, element_of, get_data, set_of, store

OLD, NEW = set_of(0x40), set_of(0x70)
LOST = (
    FaultKind.TEAR_BEFORE,
    FaultKind.TEAR_AFTER,
    FaultKind.ANSWER_LOST,
    FaultKind.DEAD,
    FaultKind.DEAD_AFTER,
)
CARRIED_OUT = {FaultKind.TEAR_AFTER, FaultKind.ANSWER_LOST, FaultKind.DEAD_AFTER}
BACK_AFTER_A_RESET = {FaultKind.TEAR_BEFORE, FaultKind.TEAR_AFTER}


def host_with(*faults: str) -> tuple[Host, ElementChannel]:
    card = ElementChannel(element_of(), [Fault.parse(text) for text in faults])
    return Host(card), card


@pytest.mark.parametrize("kind", LOST)
def test_a_command_whose_answer_is_lost_has_or_has_not_happened(kind: FaultKind) -> None:
    host, card = host_with(f"{kind}:3")
    assert host.begin(OLD).sw == OK
    assert host.channel is not None
    wrapped, _ = host.channel.wrap(store(b"\x53\x01A"))
    with pytest.raises(errors.Unavailable):
        card.transmit(wrapped.encode())
    assert bool(card.element.state.objects) == (kind in CARRIED_OUT)
    assert card.faults == []


@pytest.mark.parametrize("kind", LOST)
def test_an_element_is_back_at_once_after_a_reset_or_never(kind: FaultKind) -> None:
    _, card = host_with(f"{kind}:1")
    command = get_data(0xCF).encode()
    with pytest.raises(errors.Unavailable):
        card.transmit(command)
    if kind is FaultKind.ANSWER_LOST:
        assert card.transmit(command)[-2:] == b"\x90\x00"
        return
    with pytest.raises(errors.Unavailable):
        card.transmit(command)
    if kind in BACK_AFTER_A_RESET:
        card.reset()
        assert card.transmit(command)[-2:] == b"\x90\x00"
        return
    assert card.dead
    with pytest.raises(errors.Unavailable):
        card.reset()


@pytest.mark.parametrize("kind", [FaultKind.TEAR_BEFORE, FaultKind.TEAR_AFTER])
def test_a_tear_ends_the_session(kind: FaultKind) -> None:
    host, card = host_with(f"{kind}:3")
    host.begin(OLD)
    assert host.channel is not None
    wrapped, _ = host.channel.wrap(GET_STATUS)
    with pytest.raises(errors.Unavailable):
        card.transmit(GET_STATUS.encode())
    assert card.element.process(wrapped.encode()) == b"\x69\x85"
    card.reset()
    assert host.send(GET_STATUS).sw == 0x6985


def test_a_reset_ends_the_session() -> None:
    host, card = host_with()
    host.begin(OLD)
    card.reset()
    assert host.send(GET_STATUS).sw == 0x6985


def test_a_lost_answer_leaves_the_session_open() -> None:
    host, card = host_with("answer-lost:3")
    host.begin(OLD)
    assert host.channel is not None
    wrapped, host.channel = host.channel.wrap(GET_STATUS)
    with pytest.raises(errors.Unavailable):
        card.transmit(wrapped.encode())
    assert host.send(GET_STATUS).sw == OK


def test_a_wrong_answer_is_noticed_by_its_r_mac_and_by_nothing_less() -> None:
    for level, noticed in ((SecurityLevel.FULL, True), (SecurityLevel.C_MAC_C_DECRYPTION, False)):
        host, _ = host_with("wrong-answer:3")
        host.begin(OLD, level=level)
        if noticed:
            with pytest.raises(errors.ProofFailed):
                host.send(GET_STATUS)
        else:
            assert host.send(GET_STATUS).data[-1] == 0x81


def test_a_refusal_has_nothing_in_it_that_could_be_wrong() -> None:
    host, card = host_with("wrong-answer:1", "wrong-answer:2")
    assert host.plain(get_data(0x7F21)).sw == 0x6A88
    assert card.transmit(b"\x00\xa4\x04\x01") == b"\x6a\x86"


def test_faults_can_wait_for_an_instruction() -> None:
    host, card = host_with("dead-after:1:D8")
    assert host.begin(OLD).sw == OK
    assert host.send(GET_STATUS).sw == OK
    with pytest.raises(errors.Unavailable):
        host.put_key(OLD, NEW)
    assert card.dead
    stored = card.element.state.key_set(FINAL)
    assert stored is not None
    assert stored.static_keys == NEW


def test_faults_come_in_order() -> None:
    _, card = host_with("answer-lost:2", "tear-before:1", "dead:3:CA")
    commands = [initialize_update(INITIAL, bytes(8)), get_data(0xCF), get_data(0xE0), get_data(0xCF)]
    said = []
    for command in commands:
        card.reset()
        try:
            card.transmit(command.encode())
            said.append("answered")
        except errors.Unavailable as lost:
            said.append(str(lost).split(": ")[1])
    assert said == [
        "tear-before at command 1",
        "answer-lost at command 2",
        "answered",
        "dead at command 4",
    ]
    assert card.commands == 4


def test_a_relay_stops_where_the_element_is_lost() -> None:
    _, card = host_with("tear-after:2")
    batch = tuple(Guarded(command=get_data(tag).encode()) for tag in (0xCF, 0xE0, 0x66))
    assert len(relay(card, batch)) == 1


def test_a_command_without_an_instruction_is_counted_too() -> None:
    _, card = host_with("dead:2")
    assert card.transmit(b"") == b"\x67\x00"
    with pytest.raises(errors.Unavailable):
        card.transmit(b"\x80")


def test_a_fault_is_read_as_it_is_written() -> None:
    assert Fault.parse("tear-after:12") == Fault(kind=FaultKind.TEAR_AFTER, at=12)
    assert Fault.parse("dead:1:D8") == Fault(kind=FaultKind.DEAD, at=1, ins=0xD8)


@pytest.mark.parametrize(
    "text", ["", "tear", "tear-after", "tear-after:", "tear-after:0", "dead:1:XY", "dead:x"]
)
def test_a_fault_that_there_is_not_is_refused(text: str) -> None:
    with pytest.raises(errors.MalformedRequest):
        Fault.parse(text)
