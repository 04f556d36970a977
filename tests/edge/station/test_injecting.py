"""Carrying between the service and a device's secure element (SPEC D1, D2, D5)."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from birthmark import errors
from birthmark.edge.station import Carried, DeviceElement, Enclave, InjectItem, ProofItem, Station
from birthmark.edge.station.pending import Phase
from birthmark.element.card_faults import ElementChannel, Fault, FaultKind
from tests.edge.station import service as misbehaviour
from tests.edge.station.dialogues import Dialogues
from tests.edge.station.injections import bodies, check_released, paths
from tests.edge.station.service import RUN, Problem, Service, enrol
from tests.support.injecting import Bench

pytestmark = pytest.mark.usefixtures("elements")

VIN = "1M8GDM9AXKP042788"
DEVICE = f"vin:{VIN}"
COMMANDS = 14
"""Of an injection into the bench's element that nothing disturbs."""


@pytest.fixture
def bench(elements: Dialogues) -> Bench:
    return elements.bench(DEVICE)


@pytest.fixture
def card(bench: Bench) -> ElementChannel:
    return ElementChannel(bench.element)


@pytest.fixture
def device(tmp_path: Path, card: ElementChannel) -> Iterator[Enclave]:
    with Enclave(str(tmp_path / "device"), card=card) as enclave:
        yield enclave


# --- the whole story


def test_a_device_with_a_secure_element_is_released_in_four_requests(
    service: Service, station: Station, device: Enclave, bench: Bench, card: ElementChannel
) -> None:
    release = station.provision(RUN, VIN, device)
    check_released(service, device, release, bench)
    assert release.key_set is not None
    assert release.key_set["profile"] == "bench"
    assert paths(service) == [
        f"/v1/runs/{RUN}",
        "/v1/me",
        f"/v1/runs/{RUN}/issue",
        "/v1/inject",
        "/v1/inject",
        "/v1/prove",
    ]
    assert card.commands == COMMANDS


def test_a_service_that_has_no_commands_yet_is_asked_for_them(
    service: Service, station: Station, device: Enclave, bench: Bench, elements: Dialogues
) -> None:
    elements.begins_at_once = False
    check_released(service, device, station.provision(RUN, VIN, device), bench)
    assert [body["element"]["step"] for body in bodies(service, "/v1/inject")] == [0, 1, 2]


def test_a_released_device_gives_the_same_release_again_and_its_element_is_left_alone(
    service: Service, station: Station, device: Enclave, card: ElementChannel
) -> None:
    first = station.provision(RUN, VIN, device)
    card.dead = True
    again = station.provision(RUN, VIN, device)
    assert (again.attempt, again.leaf, again.key_set) == (first.attempt, first.leaf, first.key_set)


def test_a_run_without_secure_elements_does_not_touch_one(
    service: Service, station: Station, device: Enclave, card: ElementChannel
) -> None:
    service.elements = None
    assert station.provision(RUN, VIN, device).key_set is None
    assert card.commands == 0


# --- devices without one


class Bare:
    """A device that is an element of certificates and nothing else."""

    def __init__(self, inner: DeviceElement) -> None:
        self.certification_request = inner.certification_request
        self.install = inner.install
        self.read_back = inner.read_back
        self.sign = inner.sign
        self.released = inner.released


class Chipped(Bare):
    """A third party's device that has a secure element besides, and remembers nothing itself."""

    def __init__(self, inner: DeviceElement, card: ElementChannel) -> None:
        super().__init__(inner)
        self._card = card

    def card(self) -> ElementChannel:
        return self._card


def test_a_device_without_a_secure_element_is_refused_before_it_is_admitted(
    service: Service, station: Station, tmp_path: Path
) -> None:
    with Enclave(str(tmp_path / "none")) as none:
        with pytest.raises(errors.MalformedRequest, match="has no secure element"):
            station.provision(RUN, VIN, none)
        assert none.pending() is None
    assert service.devices == {}


def test_where_the_run_could_not_be_asked_nothing_is_installed_and_the_right_device_goes_on(
    service: Service,
    station: Station,
    device: Enclave,
    bench: Bench,
    card: ElementChannel,
    home: Path,
) -> None:
    def may_not_read(path: str) -> None:
        if path == f"/v1/runs/{RUN}":
            raise Problem(403, "not-permitted", "a bootstrap client may not read")

    service.refuse = may_not_read
    with pytest.raises(errors.MalformedRequest, match="this device has none"):
        station.provision(RUN, VIN, Bare(device))
    with pytest.raises(errors.NotFound):
        device.read_back()
    assert len(list(home.glob("pending-*"))) == 1
    release = station.provision(RUN, VIN, Chipped(device, card))
    check_released(service, device, release, bench)
    assert list(home.glob("pending-*")) == []


def test_the_station_remembers_for_a_device_that_cannot(
    service: Service,
    connect: Callable[..., Station],
    device: Enclave,
    bench: Bench,
    card: ElementChannel,
) -> None:
    service.mishaps += [("prove", misbehaviour.lose_the_answer), *[("prove", misbehaviour.busy())] * 2]
    with pytest.raises(errors.Unavailable):
        connect(patience_seconds=0.0).provision(RUN, VIN, Chipped(device, card))
    card.dead = True
    release = connect().provision(RUN, VIN, Chipped(device, card))
    check_released(service, device, release, bench)


# --- what goes wrong with the element


@pytest.mark.parametrize("kind", [FaultKind.TEAR_BEFORE, FaultKind.TEAR_AFTER, FaultKind.ANSWER_LOST])
@pytest.mark.parametrize("at", range(1, COMMANDS + 1))
def test_whatever_breaks_off_is_begun_anew_in_the_same_call(
    service: Service,
    station: Station,
    device: Enclave,
    bench: Bench,
    card: ElementChannel,
    kind: FaultKind,
    at: int,
) -> None:
    """SPEC D5: any command may be the last one the element hears."""
    card.faults.append(Fault(kind=kind, at=at))
    check_released(service, device, station.provision(RUN, VIN, device), bench)
    assert card.faults == []


def test_two_breaks_in_a_row_are_begun_anew_twice(
    service: Service, station: Station, device: Enclave, bench: Bench, card: ElementChannel
) -> None:
    card.faults += [Fault(kind=FaultKind.TEAR_AFTER, at=at) for at in (5, 9)]
    check_released(service, device, station.provision(RUN, VIN, device), bench)


def test_an_element_that_lies_is_held_and_nothing_is_under_way_any_more(
    service: Service, station: Station, device: Enclave, card: ElementChannel
) -> None:
    card.faults.append(Fault(kind=FaultKind.WRONG_ANSWER, at=1, ins=0xD8))
    with pytest.raises(errors.ProofFailed):
        station.provision(RUN, VIN, device)
    assert service.devices[DEVICE].state == "held"
    assert device.pending() is None
    assert device.token() is None


def test_a_dead_element_is_told_and_a_living_one_goes_on(
    service: Service, station: Station, device: Enclave, bench: Bench, card: ElementChannel
) -> None:
    card.faults.append(Fault(kind=FaultKind.DEAD_AFTER, at=1, ins=0xD8))
    with pytest.raises(errors.Unavailable, match="does not answer any more"):
        station.provision(RUN, VIN, device)
    pending = device.pending()
    assert pending is not None
    assert (pending.phase, pending.attempt) == (Phase.INSTALLED, service.devices[DEVICE].attempt)
    card.dead = False
    check_released(service, device, station.provision(RUN, VIN, device), bench)


def test_the_service_holds_a_device_whose_element_keeps_breaking_off(
    service: Service, station: Station, device: Enclave, card: ElementChannel, elements: Dialogues
) -> None:
    card.faults += [Fault(kind=FaultKind.TEAR_BEFORE, at=at, ins=0x50) for at in range(1, 20)]
    with pytest.raises(errors.ProofFailed, match="too often"):
        station.provision(RUN, VIN, device)
    assert elements.begun[DEVICE] == elements.tries
    assert device.pending() is None


def test_a_service_that_does_not_count_is_left_after_a_while_and_everything_stays(
    service: Service, station: Station, device: Enclave, card: ElementChannel, elements: Dialogues
) -> None:
    elements.tries = 1000
    card.faults += [Fault(kind=FaultKind.TEAR_BEFORE, at=at, ins=0x50) for at in range(1, 1000)]
    with pytest.raises(errors.Interrupted):
        station.provision(RUN, VIN, device)
    assert elements.begun[DEVICE] == 32
    assert device.pending() is not None


# --- what goes wrong with the service


@pytest.mark.parametrize("step", ["issue", "inject", "prove"])
@pytest.mark.parametrize(
    "mishap",
    [misbehaviour.lose_the_answer, misbehaviour.lose_the_request, misbehaviour.busy(503)],
    ids=["answer-lost", "request-lost", "503"],
)
def test_a_request_that_got_lost_is_sent_again_as_it_was(
    service: Service,
    station: Station,
    device: Enclave,
    bench: Bench,
    elements: Dialogues,
    step: str,
    mishap: misbehaviour.Mishap,
) -> None:
    service.mishaps.append((step, mishap))
    check_released(service, device, station.provision(RUN, VIN, device), bench)
    assert elements.broken[DEVICE] == 0
    asked = [body for body, path in zip(service.bodies, paths(service), strict=True) if step in path]
    assert asked[0] == asked[1], "byte for byte"


@pytest.mark.parametrize("step", ["issue", "inject", "prove"])
def test_a_station_that_gave_up_goes_on_later(
    service: Service,
    connect: Callable[..., Station],
    device: Enclave,
    bench: Bench,
    elements: Dialogues,
    step: str,
) -> None:
    impatient = connect(patience_seconds=0.0)
    service.mishaps += [(step, misbehaviour.lose_the_answer), *[(step, misbehaviour.busy())] * 2]
    with pytest.raises(errors.Unavailable, match="gave up"):
        impatient.provision(RUN, VIN, device)
    check_released(service, device, connect().provision(RUN, VIN, device), bench)


def test_a_repeated_proof_is_the_same_and_the_element_is_not_asked_again(
    service: Service, connect: Callable[..., Station], device: Enclave, bench: Bench, card: ElementChannel
) -> None:
    service.mishaps += [("prove", misbehaviour.lose_the_answer), *[("prove", misbehaviour.busy())] * 2]
    with pytest.raises(errors.Unavailable):
        connect(patience_seconds=0.0).provision(RUN, VIN, device)
    pending = device.pending()
    assert pending is not None
    assert pending.phase is Phase.PROVING
    card.dead = True
    check_released(service, device, connect().provision(RUN, VIN, device), bench)
    proofs = bodies(service, "/v1/prove")
    assert len(proofs) > 1
    assert all(body == proofs[0] for body in proofs)
    assert proofs[0]["element"]["step"] == 3


def test_a_service_that_was_started_anew_is_followed(
    service: Service, station: Station, device: Enclave, bench: Bench, elements: Dialogues
) -> None:
    def restart(handler: misbehaviour.Handler) -> bool:
        elements.restart()
        return False

    service.mishaps += [("inject", restart), ("prove", restart)]
    check_released(service, device, station.provision(RUN, VIN, device), bench)
    assert elements.begun[DEVICE] == 3
    assert elements.broken[DEVICE] == 0


@pytest.mark.parametrize("step", ["inject", "prove"])
def test_a_dialogue_that_somebody_else_began_anew_is_begun_once_more(
    service: Service, station: Station, device: Enclave, bench: Bench, elements: Dialogues, step: str
) -> None:
    def meddle(handler: misbehaviour.Handler) -> bool:
        elements.begin(service.devices[DEVICE].attempt, DEVICE)
        return False

    service.mishaps += [("inject", lambda _: False), (step, meddle)]
    check_released(service, device, station.provision(RUN, VIN, device), bench)
    assert elements.begun[DEVICE] == 3, "by us, by somebody, by us"


def test_another_station_finishes_what_one_began(
    service: Service,
    server: misbehaviour.Server,
    connect: Callable[..., Station],
    device: Enclave,
    bench: Bench,
    tmp_path: Path,
) -> None:
    service.mishaps += [("inject", misbehaviour.busy())] * 2
    with pytest.raises(errors.Unavailable):
        connect(patience_seconds=0.0).provision(RUN, VIN, device)
    other = enrol(tmp_path / "other", service, server.url)
    check_released(service, device, connect(other).provision(RUN, VIN, device), bench)


@pytest.mark.parametrize(
    ("path", "code", "stays"),
    [
        ("inject", "not-permitted", True),
        ("inject", "internal", True),
        ("inject", "policy-refused", True),
        ("inject", "not-found", False),
        ("prove", "not-permitted", True),
        ("prove", "internal", True),
        ("prove", "not-found", False),
    ],
)
def test_what_a_refusal_means_for_what_is_written_down(
    service: Service, station: Station, device: Enclave, bench: Bench, path: str, code: str, *, stays: bool
) -> None:
    def refuse(asked: str) -> None:
        if asked == f"/v1/{path}":
            raise Problem(409, code, "no", "rule")

    service.refuse = refuse
    with pytest.raises(errors.Refusal):
        station.provision(RUN, VIN, device)
    assert (device.pending() is not None) is stays
    service.refuse = lambda _: None
    if stays:
        check_released(service, device, station.provision(RUN, VIN, device), bench)


def test_a_device_that_was_held_meanwhile_is_not_gone_on_with(
    service: Service, station: Station, device: Enclave
) -> None:
    def hold(handler: misbehaviour.Handler) -> bool:
        service.devices[DEVICE].state = "held"
        return False

    service.mishaps += [("inject", hold)]
    with pytest.raises(errors.IllegalTransition, match="is held"):
        station.provision(RUN, VIN, device)
    assert device.pending() is None


# --- answers that are not to be believed

STRANGE: list[Any] = [
    1,
    [],
    {},
    {"step": 1, "last": False},
    {"step": 1, "last": False, "commands": []},
    {"step": 0, "last": False, "commands": [{"command": "00A40400", "status_words": ["9000"]}]},
    {"step": True, "last": False, "commands": [{"command": "00A40400", "status_words": ["9000"]}]},
    {"step": 1, "last": 0, "commands": [{"command": "00A40400", "status_words": ["9000"]}]},
    {"step": 1, "last": False, "commands": ["00A40400"]},
    {"step": 1, "last": False, "commands": [{"command": "00A4", "status_words": ["9000"]}]},
    {"step": 1, "last": False, "commands": [{"command": "00A40400zz", "status_words": ["9000"]}]},
    {"step": 1, "last": False, "commands": [{"command": "00 A4 04 00", "status_words": ["9000"]}]},
    {"step": 1, "last": False, "commands": [{"command": 5, "status_words": ["9000"]}]},
    {"step": 1, "last": False, "commands": [{"command": "00A40400", "status_words": []}]},
    {"step": 1, "last": False, "commands": [{"command": "00A40400", "status_words": ["90"]}]},
    {"step": 1, "last": False, "commands": [{"command": "00A40400", "status_words": [36864]}]},
    {
        "step": 1,
        "last": False,
        "commands": [{"command": "00A40400", "status_words": ["9000"], "response_sha256": "00"}],
    },
]


@pytest.mark.parametrize("strange", STRANGE, ids=range(len(STRANGE)))
@pytest.mark.parametrize("path", ["issue", "inject"])
def test_strange_commands_are_not_carried_and_stop_the_line(
    service: Service,
    station: Station,
    device: Enclave,
    bench: Bench,
    card: ElementChannel,
    path: str,
    strange: Any,
) -> None:
    service.forge = lambda asked, body: body | {"element": strange} if asked.endswith(path) else body
    with pytest.raises(errors.IntegrityFailure):
        station.provision(RUN, VIN, device)
    assert card.commands == (0 if path == "issue" else 2)
    assert device.pending() is not None
    service.forge = lambda _, body: body
    check_released(service, device, station.provision(RUN, VIN, device), bench)


def test_commands_of_another_attempt_are_not_carried(
    service: Service, station: Station, device: Enclave, card: ElementChannel
) -> None:
    service.forge = lambda path, body: body | {"attempt": "0" * 32} if path == "/v1/inject" else body
    with pytest.raises(errors.IntegrityFailure, match="another attempt"):
        station.provision(RUN, VIN, device)
    assert card.commands == 2


def test_a_dialogue_that_does_not_end_is_left(service: Service, station: Station, device: Enclave) -> None:
    step = {
        "step": 1,
        "last": False,
        "commands": [{"command": "00a40400", "status_words": ["9000"], "response_sha256": None}],
    }
    attempts = service.devices

    def answer(handler: misbehaviour.Handler) -> bool:
        body = {"attempt": attempts[DEVICE].attempt, "element": step}
        handler.send(200, "application/json", json.dumps(body).encode())
        return True

    service.mishaps += [("/v1/inject", answer)] * 50
    with pytest.raises(errors.IntegrityFailure, match="more than 16 steps"):
        station.provision(RUN, VIN, device)


@pytest.mark.parametrize("says", ["nothing", "something"])
def test_a_token_says_of_the_key_set_what_was_carried(
    service: Service, station: Station, device: Enclave, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = service.log

    def forged(kind: str, **fields: Any) -> int:
        if "record" in fields:
            fields["record"].pop("key_set", None)
            if says == "something":
                fields["record"]["key_set"] = {"profile": "bench"}
        return log(kind, **fields)

    monkeypatch.setattr(service, "log", forged)
    if says == "something":
        service.elements = None
    with pytest.raises(errors.IntegrityFailure, match=f"says {says} of a key set"):
        station.provision(RUN, VIN, device)
    assert device.token() is None


# --- what shows


def test_commands_and_responses_show_in_no_repr_and_no_message(
    service: Service, connect: Callable[..., Station], device: Enclave, card: ElementChannel
) -> None:
    station = connect(patience_seconds=0.0)
    service.mishaps += [("prove", misbehaviour.busy())] * 2
    with pytest.raises(errors.Unavailable) as unavailable:
        station.provision(RUN, VIN, device)
    pending = device.pending()
    assert pending is not None
    assert pending.element is not None
    response = pending.element.responses[0]
    carried = Carried(step=3, responses=(bytes.fromhex(response),))
    shown = [
        repr(pending),
        repr(carried),
        repr(InjectItem(attempt="a", carried=carried)),
        repr(ProofItem(attempt="a", certificate_sha256="", signature=b"", key="k", element=carried)),
        repr(unavailable.value),
    ]
    issued = station.issue(RUN, "1M8GDM9AXKP042700")
    assert issued.element is not None
    command = issued.element.batch[0].command
    shown += [repr(issued), repr(issued.element)]
    for text in shown:
        assert response not in text
        assert repr(bytes.fromhex(response)) not in text
        assert repr(command) not in text
