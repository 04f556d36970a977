"""SPEC D1–D5: a key set goes in from the service through a station that is trusted with nothing."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from birthmark import errors
from birthmark.element.apdu import CardChannel, relay
from birthmark.element.card_faults import ElementChannel, Fault, FaultKind
from birthmark.element.card_keys import Dishonesty
from birthmark.element.injection import KeySetPhase
from birthmark.floor.clients import Role
from birthmark.floor.devices import Device, DeviceCertificate, DeviceEvent, DeviceState, IdentityRecord
from birthmark.floor.elements import ElementJournal
from birthmark.floor.key_assets import KeyAsset, KeyStatus
from birthmark.ledger.entry import parse
from birthmark.pki.certificates import Certificate
from birthmark.pki.keys import KeyLabel
from birthmark.pki.revocation import ReasonCode
from birthmark.ports import Decision, Facts
from birthmark.services.acts import outcomes
from birthmark.services.dialogues import BEGIN, Commands
from birthmark.services.revocations import line_of, revoke
from tests.support.acts import act, put
from tests.support.elements import ElementLine, chip, make_element_line
from tests.support.injecting import Bench
from tests.support.realm import proof, tamper, workpiece

TEARS = (FaultKind.TEAR_BEFORE, FaultKind.TEAR_AFTER, FaultKind.ANSWER_LOST)


@pytest.fixture
def elements(tmp_path: Path, database_url: str) -> Iterator[ElementLine]:
    made = make_element_line(tmp_path, database_url)
    yield made
    made.line.close()


class Counting:
    """A channel that counts what goes over it."""

    def __init__(self, bench: Bench, faults: Sequence[Fault] = ()) -> None:
        self.inner = ElementChannel(bench.element, faults)
        self.sent = 0

    def transmit(self, command: bytes) -> bytes:
        self.sent += 1
        return self.inner.transmit(command)

    def reset(self) -> None:
        self.inner.reset()


def commands_of_an_injection(elements: ElementLine) -> int:
    bench = chip(elements.profile, 0)
    channel = Counting(bench)
    elements.provision(workpiece("COUNTED"), channel)
    return channel.sent


def is_right(elements: ElementLine, bench: Bench, device: str) -> bool:
    """Ask the record and the element itself."""
    stored = elements.line.the(Device, device)
    return stored.state is DeviceState.RELEASED and bench.holds_only_the_final_set()


def test_four_requests_give_a_device_its_certificate_its_key_set_and_its_release(
    elements: ElementLine,
) -> None:
    bench, device = chip(elements.profile, 1), workpiece("D1")

    released = elements.provision(device, ElementChannel(bench.element))

    assert elements.asked == 4
    assert is_right(elements, bench, device.id)
    entry = elements.line.entries()[-1]
    assert entry["kind"] == "device-released"
    said = entry["record"]["key_set"]
    assert said["master"] == "ours"
    assert said["master_check_value"] == elements.line.keys.attributes(KeyLabel("ours")).fingerprint
    assert said["route"] == "service", "a software store has no token to keep them in"
    assert said["key_diversification_data"] == bench.kdd.hex()
    assert said["key_sets"] == [elements.profile.final.kvn]
    assert said["refused_kvn"] == elements.profile.initial.kvn
    assert [stored["tag"] for stored in said["objects"]] == ["7f21", "53", "df20"]
    objects = dict(bench.element.state.objects)
    assert objects[0xDF20] == b"https://enrol.example/D1?o=Acme Motors"
    assert elements.line.the(ElementJournal, device.id).phase is KeySetPhase.CONFIRMED
    assert released.token.startswith("c2sp.org/tlog-proof@")


def test_the_intent_is_on_record_before_the_key_set_goes_out(elements: ElementLine) -> None:
    bench, device = chip(elements.profile, 1), workpiece("D1")
    seen: list[KeySetPhase | None] = []

    def watching(card: CardChannel, commands: Commands) -> list[bytes]:
        row = elements.line.get(ElementJournal, device.id)
        seen.append(None if row is None else row.phase)
        return relay(card, commands.batch)

    elements.provision(device, ElementChannel(bench.element), carrier=watching)

    assert seen == [None, KeySetPhase.INTENDED, KeySetPhase.INTENDED]


def test_power_cut_at_any_command_ends_in_a_release_with_the_right_keys(elements: ElementLine) -> None:
    number = 1
    for at in range(1, commands_of_an_injection(elements) + 1):
        for kind in TEARS:
            bench, device = chip(elements.profile, number), workpiece(f"T{number}")
            elements.provision(device, ElementChannel(bench.element, [Fault(kind=kind, at=at)]))
            assert is_right(elements, bench, device.id), (kind, at)
            assert bench.most_failures <= elements.profile.failed_authentications
            number += 1


@pytest.mark.parametrize("afterwards", [False, True], ids=["before-the-answer", "after-the-answer"])
def test_a_service_killed_at_any_step_is_asked_again_and_the_element_with_it(
    elements: ElementLine, *, afterwards: bool
) -> None:
    for step in range(4):
        bench, device = chip(elements.profile, step), workpiece(f"K{step}")
        killed = False

        def killing(card: CardChannel, commands: Commands, step: int = step) -> list[bytes]:
            nonlocal killed
            responses = relay(card, commands.batch) if afterwards else []
            if not killed and commands.step == step:
                killed = True
                elements.service = elements.another()
            return responses or relay(card, commands.batch)

        elements.provision(device, ElementChannel(bench.element), carrier=killing)
        assert is_right(elements, bench, device.id), step


@pytest.mark.parametrize(
    "lie",
    [
        "echo",
        "wrong-check-values",
        "lack:enc",
        "lack:mac",
        "lack:dek",
        "garble:enc",
        "garble:mac",
        "garble:dek",
    ],
)
def test_an_element_that_lacks_a_key_is_held(elements: ElementLine, lie: str) -> None:
    bench = chip(elements.profile, 1, dishonesty=Dishonesty.parse(lie))
    device = workpiece("D1")

    with pytest.raises(errors.ProofFailed):
        elements.provision(device, ElementChannel(bench.element))

    assert elements.line.the(Device, device.id).state is DeviceState.HELD
    assert elements.line.entries()[-1]["kind"] == "device-held"
    assert not bench.holds_only_the_final_set()


def test_a_station_that_changes_one_octet_of_any_response_gets_nobody_released(
    elements: ElementLine,
) -> None:
    number = 1
    for step in (1, 2, 3):
        for position in range(12):

            def changing(
                card: CardChannel, commands: Commands, step: int = step, position: int = position
            ) -> list[bytes]:
                responses = relay(card, commands.batch)
                if commands.step == step and position < len(responses):
                    changed = bytearray(responses[position])
                    changed[0] ^= 0x01
                    responses[position] = bytes(changed)
                return responses

            bench, device = chip(elements.profile, number), workpiece(f"H{number}")
            number += 1
            try:
                elements.provision(device, ElementChannel(bench.element), carrier=changing)
            except errors.ProofFailed:
                assert elements.line.the(Device, device.id).state is DeviceState.HELD
            else:
                # It was past the end, or an answer that says nothing: the element has what it has to have.
                assert is_right(elements, bench, device.id), (step, position)


def test_a_station_that_only_says_ok_gets_nobody_released(elements: ElementLine) -> None:
    bench, device = chip(elements.profile, 1), workpiece("D1")

    def saying_ok(_card: CardChannel, commands: Commands) -> list[bytes]:
        return [bytes.fromhex("9000") for _ in commands.batch]

    with pytest.raises(errors.ProofFailed):
        elements.provision(device, ElementChannel(bench.element), carrier=saying_ok)

    assert elements.line.the(Device, device.id).state is DeviceState.HELD


def test_a_step_that_is_sent_again_gets_the_same_commands(elements: ElementLine) -> None:
    bench, device = chip(elements.profile, 1), workpiece("D1")
    card = ElementChannel(bench.element)
    issued = elements.issue(device)
    assert issued.element is not None
    responses = relay(card, issued.element.batch)

    first = elements.inject(issued.attempt, issued.element.step, responses)
    again = elements.inject(issued.attempt, issued.element.step, responses)

    assert again == first
    with pytest.raises(errors.IllegalTransition, match="begin it anew"):
        elements.inject(issued.attempt, issued.element.step, [*responses[:-1], responses[-1][::-1]])


def test_what_was_on_its_way_to_a_dialogue_is_no_lie_in_the_next(elements: ElementLine) -> None:
    bench, device = chip(elements.profile, 1), workpiece("D1")
    card, issued = ElementChannel(bench.element), elements.issue(device)
    assert issued.element is not None
    late = relay(card, issued.element.batch)
    begun = elements.inject(issued.attempt, BEGIN)

    with pytest.raises(errors.IllegalTransition, match="begin it anew"):
        elements.inject(issued.attempt, issued.element.step, late)

    assert elements.line.the(Device, device.id).state is DeviceState.ISSUED
    elements.inject(issued.attempt, begun.step, relay(card, begun.batch))


def test_a_proof_that_is_sent_again_gets_the_same_token(elements: ElementLine) -> None:
    bench, device = chip(elements.profile, 1), workpiece("D1")
    card = ElementChannel(bench.element)
    issued = elements.issue(device)
    commands = issued.element
    assert commands is not None
    while not commands.last:
        commands = elements.inject(issued.attempt, commands.step, relay(card, commands.batch))
    responses, request = relay(card, commands.batch), proof(issued, device.key)

    first = elements.prove(request, commands.step, responses)
    elements.service = elements.another()

    assert elements.prove(request, commands.step, responses) == first


def test_the_last_responses_do_not_count_without_the_certificates_proof(elements: ElementLine) -> None:
    bench, device = chip(elements.profile, 1), workpiece("D1")
    card, issued = ElementChannel(bench.element), elements.issue(device)
    commands = issued.element
    assert commands is not None
    while not commands.last:
        commands = elements.inject(issued.attempt, commands.step, relay(card, commands.batch))
    responses = relay(card, commands.batch)

    with pytest.raises(errors.MalformedRequest, match="go with the proof"):
        elements.inject(issued.attempt, commands.step, responses)
    with pytest.raises(errors.ProofFailed):
        elements.prove(proof(issued, workpiece("OTHER").key), commands.step, responses)

    assert elements.line.the(Device, device.id).state is DeviceState.HELD


def test_nobody_is_released_by_the_certificate_alone(elements: ElementLine) -> None:
    device = workpiece("D1")
    issued = elements.issue(device)

    with pytest.raises(errors.IllegalTransition, match="secure element"):
        elements.line.prove(proof(issued, device.key), service=elements.service)
    elements.service = elements.another()
    with pytest.raises(errors.Interrupted):
        elements.prove(proof(issued, device.key), 3, [b"\x90\x00"])

    assert elements.line.the(Device, device.id).state is DeviceState.ISSUED


def test_a_dead_element_is_held_with_the_reason_and_a_reworked_device_goes_on(elements: ElementLine) -> None:
    bench, device = chip(elements.profile, 1), workpiece("D1")

    with pytest.raises(errors.ProofFailed, match="dialogues with its element broke off"):
        elements.provision(device, ElementChannel(bench.element, [Fault(kind=FaultKind.DEAD, at=4)]))

    held = elements.line.the(Device, device.id)
    assert held.state is DeviceState.HELD
    assert "broke off" in str(held.reason)
    elements.line.dispose(DeviceEvent.REWORK, device.id)
    elements.provision(device, ElementChannel(bench.element))
    assert is_right(elements, bench, device.id)


def test_authentications_that_are_known_to_have_been_accepted_are_not_counted(elements: ElementLine) -> None:
    """SPEC D5: after an authentic response the count is back at none, also if the dialogue broke off then."""
    bench, device = chip(elements.profile, 1), workpiece("D1")
    delete, tries = 0xE4, elements.profile.tries
    lost = [Fault(kind=FaultKind.ANSWER_LOST, at=n + 1, ins=delete) for n in range(tries)]

    with pytest.raises(errors.ProofFailed, match=f"{tries} dialogues with its element broke off"):
        elements.provision(device, ElementChannel(bench.element, lost))

    assert elements.line.the(ElementJournal, device.id).failures == 0
    elements.line.dispose(DeviceEvent.REWORK, device.id)
    elements.provision(device, ElementChannel(bench.element))
    assert is_right(elements, bench, device.id)


def test_a_device_held_for_authentications_of_unknown_outcome_risks_one_more_with_each_rework(
    elements: ElementLine,
) -> None:
    bench, device = chip(elements.profile, 1), workpiece("D1")
    external_authenticate, limit = 0x82, elements.profile.failed_authentications
    lost = [Fault(kind=FaultKind.ANSWER_LOST, at=n + 1, ins=external_authenticate) for n in range(limit + 1)]
    card = ElementChannel(bench.element, lost)

    with pytest.raises(errors.ProofFailed, match="not risking that the element locks itself"):
        elements.provision(device, card)
    assert len(card.faults) == 1
    elements.line.dispose(DeviceEvent.REWORK, device.id)
    with pytest.raises(errors.ProofFailed, match="not risking that the element locks itself"):
        elements.provision(device, card)
    assert card.faults == [], "one more was risked, and no other"
    elements.line.dispose(DeviceEvent.REWORK, device.id)
    elements.provision(device, card)

    assert is_right(elements, bench, device.id)
    assert bench.most_failures == 0


def test_an_element_belongs_to_one_device(elements: ElementLine) -> None:
    first = chip(elements.profile, 1)
    elements.provision(workpiece("D1"), ElementChannel(first.element))
    twin = chip(elements.profile, 1)

    with pytest.raises(errors.PolicyRefused, match="already belongs to serial:D1"):
        elements.provision(workpiece("D2"), ElementChannel(twin.element))

    assert elements.line.the(Device, "serial:D2").state is DeviceState.ISSUED


def test_an_element_that_is_exchanged_under_way_is_held(elements: ElementLine) -> None:
    first, other, device = chip(elements.profile, 1), chip(elements.profile, 2), workpiece("D1")
    torn = ElementChannel(first.element, [Fault(kind=FaultKind.TEAR_AFTER, at=4)])
    issued = elements.issue(device)
    with pytest.raises(errors.Interrupted):
        elements.attempt(device, issued, torn)

    with pytest.raises(errors.ProofFailed):
        elements.attempt(device, replace(issued, element=None), ElementChannel(other.element))

    assert elements.line.the(Device, device.id).state is DeviceState.HELD


def test_two_dialogues_with_the_elements_of_one_device_do_not_both_go_on(elements: ElementLine) -> None:
    """A station that begins at two processes with two elements cannot have either released for the other."""
    ours, theirs, device = chip(elements.profile, 1), chip(elements.profile, 2), workpiece("D1")
    one, issued = elements.service, elements.issue(device)
    assert issued.element is not None
    other = elements.another()
    first = relay(ElementChannel(ours.element), issued.element.batch)
    elements.service = other
    begun = elements.inject(issued.attempt, BEGIN)
    second = relay(ElementChannel(theirs.element), begun.batch)
    elements.service = one
    elements.inject(issued.attempt, issued.element.step, first)

    elements.service = other
    with pytest.raises(errors.Interrupted, match="another dialogue"):
        elements.inject(issued.attempt, begun.step, second)


def test_who_may_not_prove_may_not_speak(elements: ElementLine) -> None:
    stranger = elements.line.enrol(Role.STATION, "ST09")
    bench, device = chip(elements.profile, 1), workpiece("D1")
    issued = elements.issue(device)
    assert issued.element is not None
    responses = relay(ElementChannel(bench.element), issued.element.batch)

    for step, sent in ((issued.element.step, responses), (BEGIN, [])):
        with pytest.raises(errors.NotPermitted, match="not allowed on run"):
            elements.inject(issued.attempt, step, sent, by=stranger)
    with pytest.raises(errors.NotFound):
        elements.inject("0" * 32, BEGIN)

    assert elements.line.entries()[-1]["kind"] == "refused"
    elements.inject(issued.attempt, issued.element.step, responses)  # the dialogue did not move for them


def test_nobody_else_moves_a_dialogue_by_a_proof(elements: ElementLine) -> None:
    stranger = elements.line.enrol(Role.STATION, "ST09")
    bench, device = chip(elements.profile, 1), workpiece("D1")
    issued = elements.issue(device)
    assert issued.element is not None
    responses = relay(ElementChannel(bench.element), issued.element.batch)

    for other in (stranger, elements.line.operator):
        with pytest.raises(errors.NotPermitted):
            elements.prove(proof(issued, device.key), issued.element.step, [b"\x90\x00"], by=other)

    elements.inject(issued.attempt, issued.element.step, responses)


def test_a_key_set_is_not_put_into_a_device_whose_certificate_was_recalled(elements: ElementLine) -> None:
    bench, device = chip(elements.profile, 1), workpiece("D1")
    issued = elements.issue(device)
    assert issued.element is not None
    responses = relay(ElementChannel(bench.element), issued.element.batch)
    certificate = elements.line.the(DeviceCertificate, Certificate.from_der(issued.certificate).serial_hex)

    def decide(facts: Facts, at: datetime) -> Decision[None]:
        revoke(facts, line_of(certificate), ReasonCode.KEY_COMPROMISE, at, "test")
        return Decision(None, [("note", {"text": "revoked"})])

    outcomes(elements.service.store.submit([act(decide)]).result())

    for step, sent in ((issued.element.step, responses), (BEGIN, [])):
        with pytest.raises(errors.IllegalTransition, match="revoked"):
            elements.inject(issued.attempt, step, sent)
    assert bench.element.state.key_sets[0].kvn == elements.profile.initial.kvn


def test_a_run_without_an_element_has_no_dialogues(elements: ElementLine) -> None:
    elements.line.open_run("R2")
    device = workpiece("D1")
    issued = elements.line.issue(device, run="R2", service=elements.service)

    assert issued.element is None
    with pytest.raises(errors.IllegalTransition, match="no key set"):
        elements.inject(issued.attempt, BEGIN)
    with pytest.raises(errors.MalformedRequest, match="no key set"):
        elements.prove(proof(issued, device.key), 1, [])


def test_a_run_is_not_opened_for_keys_that_cannot_be_made(elements: ElementLine) -> None:
    profile = elements.profile
    runs = elements.service.runs

    def refused(changed: object, **fields: str) -> errors.Refusal:
        runs.elements = type(runs.elements)(profiles={"chip": changed})  # type: ignore[dict-item]  # a profile
        licence = elements.line.licence(
            "R3", **{"element": "chip", "element_sha256": profile.sha256, **fields}
        )
        with pytest.raises(errors.Refusal) as refusal:
            elements.service.carry(
                elements.service.opening.open(
                    elements.line.operator.caller, licence, elements.line.sign(licence)
                )
            )
        return refusal.value

    missing = replace(profile, final=replace(profile.final, master="nobody"))
    assert isinstance(refused(missing), errors.NotFound)
    longer = refused(replace(profile, key_size=32))
    assert isinstance(longer, errors.PolicyRefused)
    assert longer.rule == "element"
    other = refused(profile, element_sha256="00" * 32)
    assert isinstance(other, errors.PolicyRefused)
    assert isinstance(refused(profile, element="other"), errors.NotFound)
    objects = (replace(profile.objects[0], content="certificate:dlms-tls-1"),)
    assert isinstance(refused(replace(profile, objects=objects)), errors.PolicyRefused)


def test_a_key_that_is_not_the_one_on_record_is_not_used(elements: ElementLine) -> None:
    """A label alone does not make a master key ours: not for a new run, and not after a restart."""
    line = elements.line
    asset = line.the(KeyAsset, "ours")

    def recorded(changed: KeyAsset) -> None:
        line.service.store.submit([put(changed)]).result()

    def opened() -> None:
        licence = line.licence("R9", element="chip", element_sha256=elements.profile.sha256)
        use_case = elements.service.opening.open(line.operator.caller, licence, line.sign(licence))
        elements.service.carry(use_case)

    tamper(line.url, ("UPDATE key_asset SET fingerprint = %s WHERE label = %s", ("0102030405", "ours")))
    with pytest.raises(errors.IntegrityFailure, match="keys check"):
        opened()
    elements.service = elements.another()
    issued = elements.issue(workpiece("D1"))
    assert issued.element is None
    with pytest.raises(errors.IntegrityFailure, match="another one than on record"):
        elements.inject(issued.attempt, BEGIN)
    tamper(line.url, ("UPDATE key_asset SET fingerprint = %s WHERE label = %s", (asset.fingerprint, "ours")))
    recorded(replace(asset, status=KeyStatus.DESTROYED))
    with pytest.raises(errors.PolicyRefused, match="not on record as in use"):
        elements.inject(issued.attempt, BEGIN)


def test_opening_says_which_way_the_keys_will_go(elements: ElementLine) -> None:
    (opened,) = [entry for entry in elements.line.entries() if entry["kind"] == "run-opened"]

    assert opened["element"] == "chip"
    assert opened["master"] == "ours"
    assert opened["route"] == "service"


def test_the_record_says_what_the_gate_saw(elements: ElementLine) -> None:
    elements.provision(workpiece("D1"), ElementChannel(chip(elements.profile, 1).element))

    (record,) = elements.service.store.scan(IdentityRecord)
    said: Any = parse(record.further.encode())["key_set"]
    assert len(bytes.fromhex(said["host_challenge"])) == 8
    assert len(said["check_values"]) == 3
    assert said["profile_sha256"] == elements.profile.sha256
