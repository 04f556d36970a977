"""How the virtual element takes keys in and gives them up, and how it lies about that when it is told to."""

import pytest

from birthmark import errors
from birthmark.element.apdu import OK, CommandAPDU, ResponseAPDU
from birthmark.element.card import VirtualElement
from birthmark.element.card_keys import Dishonesty
from birthmark.element.card_state import Traits
from birthmark.element.diversification import KeyRole
from birthmark.element.keyset import KeyBlockForm, SoftwareKeys, check_value, encode_put_key
from birthmark.element.scp03 import initialize_update, read_challenge
from birthmark.secret import SecretBytes
from tests.element.hosts import FINAL, GET_STATUS, INITIAL, PROBE, Host, delete_set, element_of, set_of
from tests.element.vectors import document, secret

OLD, NEW = set_of(0x40), set_of(0x70)


def opened(
    traits: Traits | None = None, *, size: int = 16, kvn: int = INITIAL, dishonesty: Dishonesty | None = None
) -> tuple[Host, VirtualElement]:
    element = element_of(traits, size=size, kvn=kvn, dishonesty=dishonesty or Dishonesty())
    host = Host.of(element)
    assert host.begin(set_of(0x40, size), 0 if kvn == 0xFF else kvn).sw == OK
    return host, element


def check_values(keys: SoftwareKeys) -> bytes:
    return b"".join(check_value(keys.key(role)) for role in KeyRole)


def put(data: bytes, *, p1: int = 0x00, p2: int = 0x81) -> CommandAPDU:
    return CommandAPDU(0x80, 0xD8, p1, p2, data, 0x100)


def holds(element: VirtualElement, kvn: int, keys: SoftwareKeys) -> bool:
    """Whether the element's own state has exactly these keys."""
    found = element.state.key_set(kvn)
    return found is not None and found.static_keys == keys


# --- PUT KEY ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("i", [0x70, 0x71])
@pytest.mark.parametrize("form", KeyBlockForm)
@pytest.mark.parametrize("size", [16, 24, 32])
@pytest.mark.parametrize("with_check_values", [False, True])
def test_a_set_that_was_added_opens_sessions(
    i: int, form: KeyBlockForm, size: int, *, with_check_values: bool
) -> None:
    host, element = opened(Traits(i=i), size=size)
    keys = set_of(0x70, size)
    response = host.put_key(set_of(0x40, size), keys, form=form, with_check_values=with_check_values)
    assert response == ResponseAPDU(OK, bytes((FINAL,)) + check_values(keys))
    assert holds(element, FINAL, keys)
    assert host.begin(keys, FINAL).sw == OK
    assert host.begin(set_of(0x40, size), INITIAL).sw == OK


@pytest.mark.parametrize("form", ["form_a", "form_b"])
def test_a_published_key_block_is_taken_for_the_key_that_is_in_it(form: str) -> None:
    """scll's block: the key 0F0E…00 under the K-DEK 40…4F."""
    element = element_of()
    opener = SoftwareKeys(enc=OLD.enc, mac=OLD.mac, dek=SecretBytes(bytes(range(0x40, 0x50))))
    host = Host.of(element)
    assert host.begin(OLD).sw == OK
    host.put_key(OLD, opener)
    assert host.begin(opener, FINAL).sw == OK
    block = {
        "form_a": "881110FAC3AF9FB177982EABA2E63D9EF0398603C1CCDA",
        "form_b": "8810FAC3AF9FB177982EABA2E63D9EF0398603C1CCDA",
    }[form]
    assert block in repr(document("keyloading")).upper()
    response = host.send(put(bytes((PROBE,)) + bytes.fromhex(block), p2=0x01))
    assert response == ResponseAPDU(OK, bytes.fromhex("3FC1CCDA"))
    stored = element.state.key_set(PROBE)
    assert stored is not None
    assert stored.keys == ((1, secret("0F0E0D0C0B0A09080706050403020100")),)


def test_a_probe_key_is_listed_and_opens_nothing() -> None:
    host, element = opened()
    key = SecretBytes(bytes(16))
    data = encode_put_key(PROBE, [OLD.wrap_value(key)], KeyBlockForm.WITH_LENGTH, with_check_values=False)
    assert host.send(put(data, p2=0x01)).data == bytes((PROBE,)) + check_value(key)
    assert [(entry.kvn, entry.kid) for entry in element.state.entries()][-1] == (PROBE, 1)
    assert host.send(delete_set(PROBE)).sw == OK
    assert element.state.key_set(PROBE) is None
    host.send(put(data, p2=0x01))
    assert host.plain(initialize_update(PROBE, bytes(8))).sw == 0x6A88


@pytest.mark.parametrize("kvn", [INITIAL, FINAL])
def test_a_set_is_replaced_and_its_counter_begins_anew(kvn: int) -> None:
    host, element = opened()
    assert element.state.key_sets[0].counter == 1
    assert host.put_key(OLD, NEW, kvn, p1=INITIAL).sw == OK
    assert holds(element, kvn, NEW)
    assert [found.kvn for found in element.state.key_sets] == [kvn]
    assert host.begin(NEW, kvn).sw == OK
    with pytest.raises(errors.ProofFailed):
        host.begin(OLD, kvn)


def test_one_key_of_a_set_is_replaced_and_its_counter_goes_on() -> None:
    host, element = opened()
    data = encode_put_key(INITIAL, [OLD.wrap_value(NEW.dek)], KeyBlockForm.WITH_LENGTH)
    assert host.send(put(data, p1=INITIAL, p2=0x03)).sw == OK
    assert holds(element, INITIAL, SoftwareKeys(enc=OLD.enc, mac=OLD.mac, dek=NEW.dek))
    assert element.state.key_sets[0].counter == 1


def test_keys_may_come_one_after_the_other() -> None:
    host, element = opened()
    for role in KeyRole:
        data = encode_put_key(FINAL, [OLD.wrap_value(NEW.key(role))], KeyBlockForm.BARE)
        assert element.state.session_set(FINAL) is None
        assert host.send(put(data, p2=int(role))).sw == OK
    assert host.begin(NEW, FINAL).sw == OK


def test_a_default_set_goes_when_another_one_comes() -> None:
    host, element = opened(kvn=0xFF)
    data = encode_put_key(PROBE, [OLD.wrap_value(NEW.dek)], KeyBlockForm.BARE)
    host.send(put(data, p2=0x01))
    assert element.state.key_set(0xFF) is not None, "one key is no set"
    assert host.put_key(OLD, NEW).sw == OK
    assert element.state.key_set(0xFF) is None
    assert host.send(GET_STATUS).sw == OK, "the session goes on"
    assert read_challenge(host.plain(initialize_update(0x00, bytes(8))).data).kvn == FINAL


def test_keys_travel_under_the_key_that_opened_the_session() -> None:
    host, element = opened()
    host.put_key(OLD, NEW)
    host.begin(NEW, FINAL)
    assert host.put_key(OLD, set_of(0x90), 0x32).sw == 0x6A80, "the check values do not fit"
    assert host.put_key(NEW, set_of(0x90), 0x32).sw == OK
    assert holds(element, 0x32, set_of(0x90))


BLOCKS = encode_put_key(FINAL, OLD.wrap(NEW), KeyBlockForm.WITH_LENGTH)


@pytest.mark.parametrize(
    ("data", "p1", "p2", "sw"),
    [
        (b"", 0x00, 0x81, 0x6A80),
        (b"\x31", 0x00, 0x81, 0x6A80),
        (b"\x00" + BLOCKS[1:], 0x00, 0x81, 0x6A80),
        (b"\x80" + BLOCKS[1:], 0x00, 0x81, 0x6A80),
        (BLOCKS[:-1], 0x00, 0x81, 0x6A80),
        (BLOCKS + b"\x00", 0x00, 0x81, 0x6A80),
        (b"\x31\xa1" + BLOCKS[2:], 0x00, 0x81, 0x6A80),
        (BLOCKS[:-1] + bytes((BLOCKS[-1] ^ 1,)), 0x00, 0x81, 0x6A80),
        (BLOCKS, 0x00, 0x01, 0x6A86),
        (BLOCKS, 0x00, 0x80, 0x6A86),
        (BLOCKS, 0x00, 0xFE, 0x6A86),
        (BLOCKS, 0x80, 0x81, 0x6A86),
        (BLOCKS, 0x32, 0x81, 0x6A88),
        (BLOCKS, INITIAL, 0x82, 0x6A88),
        (b"\x30" + BLOCKS[1:], 0x00, 0x81, 0x6A80),
    ],
)
def test_a_put_key_that_cannot_be_changes_nothing(data: bytes, p1: int, p2: int, sw: int) -> None:
    host, element = opened()
    before = element.state
    assert host.send(put(data, p1=p1, p2=p2)).sw == sw
    assert element.state == before


def test_a_set_moves_whole_and_not_onto_another_one() -> None:
    host, element = opened()
    host.put_key(OLD, NEW)
    before = element.state
    assert host.put_key(OLD, NEW, FINAL, p1=INITIAL).sw == 0x6A80
    one = encode_put_key(0x33, [OLD.wrap_value(NEW.dek)], KeyBlockForm.WITH_LENGTH)
    assert host.send(put(one, p1=INITIAL, p2=0x03)).sw == 0x6A80
    assert element.state == before


def test_some_elements_replace_no_keys() -> None:
    host, element = opened(Traits(replaces_keys=False))
    assert host.put_key(OLD, NEW, INITIAL, p1=INITIAL).sw == 0x6A88
    assert holds(element, INITIAL, OLD)


def test_some_elements_take_no_key_without_its_check_value() -> None:
    host, _ = opened(Traits(needs_check_values=True))
    assert host.put_key(OLD, NEW, with_check_values=False).sw == 0x6A80
    assert host.put_key(OLD, NEW).sw == OK


def test_a_key_does_not_come_in_under_a_weaker_one() -> None:
    host, element = opened()
    with pytest.raises(errors.PolicyRefused):
        host.put_key(OLD, set_of(0x70, 32))
    under = [OLD.wrap_value(SecretBytes(bytes(16))) for _ in KeyRole]
    data = b"\x31" + b"".join(b"\x88\x21\x20" + one.ciphertext * 2 + b"\x00" for one in under)
    assert host.send(put(data)).sw == 0x6A80
    assert element.state.key_set(FINAL) is None


def test_there_is_room_for_sixteen_sets() -> None:
    host, element = opened()
    for kvn in range(1, 16):
        assert host.put_key(OLD, NEW, kvn).sw == OK
    assert host.put_key(OLD, NEW, 16).sw == 0x6A84
    assert len(element.state.key_sets) == 16


# --- DELETE -------------------------------------------------------------------------------------------------


def test_a_set_that_was_deleted_opens_nothing() -> None:
    host, element = opened()
    host.put_key(OLD, NEW)
    host.begin(NEW, FINAL)
    assert host.send(delete_set(INITIAL)) == ResponseAPDU(OK, b"\0")
    assert host.send(GET_STATUS).sw == OK
    assert host.plain(initialize_update(INITIAL, bytes(8))).sw == 0x6A88
    assert [found.kvn for found in element.state.key_sets] == [FINAL]


def test_a_session_outlives_the_set_that_opened_it() -> None:
    host, element = opened()
    host.put_key(OLD, NEW)
    assert host.send(delete_set(INITIAL)).sw == OK
    assert host.put_key(OLD, set_of(0x90), 0x32).sw == OK
    assert holds(element, 0x32, set_of(0x90))


@pytest.mark.parametrize(
    ("data", "sw"),
    [
        ("D20130", 0x6985),
        ("D20131", 0x6A88),
        ("D00101D20130", 0x6A88),
        ("D00101", 0x6A88),
        ("D2023031", 0x6A80),
        ("D20130F200", 0x6A80),
        ("D2", 0x6A80),
        ("", 0x6A80),
    ],
)
def test_a_delete_that_cannot_be_changes_nothing(data: str, sw: int) -> None:
    host, element = opened()
    before = element.state
    assert host.send(CommandAPDU(0x80, 0xE4, 0x00, 0x00, bytes.fromhex(data), 0x100)).sw == sw
    assert element.state == before


# --- lies ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", KeyRole)
@pytest.mark.parametrize("how", ["lack", "garble"])
def test_a_liar_answers_like_an_honest_element_and_has_not_that_key(role: KeyRole, how: str) -> None:
    lie = Dishonesty.parse(f"{how}:{role.name.lower()}")
    honest, _ = opened()
    host, element = opened(dishonesty=lie)
    assert host.put_key(OLD, NEW) == honest.put_key(OLD, NEW)
    stored = element.state.key_set(FINAL)
    assert stored is not None
    for other in KeyRole:
        assert (stored.key(other) == NEW.key(other)) == (other is not role)
    assert (stored.key(role) is None) == (how == "lack")


def test_an_echo_sends_back_what_it_was_sent_and_stores_nothing() -> None:
    host, element = opened(dishonesty=Dishonesty.parse("echo"))
    before = element.state
    wrong = BLOCKS[:-3] + b"\x01\x02\x03"
    assert host.send(put(wrong)).data[-3:] == b"\x01\x02\x03"
    assert host.put_key(OLD, NEW, INITIAL, p1=INITIAL).sw == OK
    assert element.state == before


def test_wrong_check_values_are_not_those_of_the_keys() -> None:
    host, element = opened(dishonesty=Dishonesty.parse("wrong-check-values"))
    answer = host.put_key(OLD, NEW).data
    assert len(answer) == 10
    assert answer[1:] != check_values(NEW)
    assert holds(element, FINAL, NEW)


def test_a_lie_is_about_sets_and_not_about_a_probe() -> None:
    host, element = opened(dishonesty=Dishonesty.parse("garble:enc,mac,dek"))
    key = SecretBytes(bytes(16))
    host.send(put(encode_put_key(PROBE, [OLD.wrap_value(key)], KeyBlockForm.BARE), p2=0x01))
    stored = element.state.key_set(PROBE)
    assert stored is not None
    assert stored.keys == ((1, key),)


@pytest.mark.parametrize("text", ["", "lie", "lack", "garble:", "garble:kek", "echo:enc", "lack:enc,"])
def test_a_lie_that_there_is_not_is_refused(text: str) -> None:
    with pytest.raises(errors.MalformedRequest):
        Dishonesty.parse(text)
