"""``birthmark provision`` for devices with a secure element, over readers and sockets (SPEC D6, D7)."""

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from birthmark.edge.station.elements.virtual import on_tcp, on_vpcd
from birthmark.element.card_faults import ElementChannel
from tests.edge.cli.command import Said, birthmark
from tests.edge.station.dialogues import Dialogues
from tests.edge.station.service import RUN, Server, Service, enrol
from tests.support.injecting import Bench
from tests.support.pcsc import Daemon
from tests.support.programs import need_extra

VIN = "1M8GDM9AXKP042788"
DEVICE = f"vin:{VIN}"


class Place:
    """A station directory and the service it is for."""

    def __init__(self, folder: Path, station: Path, url: str) -> None:
        self.folder = folder
        self._station = station
        self._url = url

    def provision(self, *arguments: object) -> Said:
        return birthmark(
            "provision", "--station", self._station, "--url", self._url, "--run", RUN, "--hardware-id", VIN,
            "--patience", 5, *arguments,
        )  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, service: Service) -> Iterator[Place]:
    server = Server(service, server_name="localhost")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    url = f"https://localhost:{server.server_address[1]}"
    yield Place(tmp_path, enrol(tmp_path / "station", service, url), url)
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def bench(elements: Dialogues) -> Bench:
    return elements.bench(DEVICE)


def test_a_device_and_its_element_behind_a_socket(place: Place, service: Service, bench: Bench) -> None:
    with on_tcp(ElementChannel(bench.element)) as port:
        given = ("--enclave", place.folder / "device", "--element", f"tcp:127.0.0.1:{port}", "--json")
        said = place.provision(*given)
        assert said.code == 0, said
        assert said.document["key_set"] == "bench"
        assert bench.holds_only_the_final_set()
    again = place.provision("--enclave", place.folder / "device", "--json")
    assert (again.code, again.document["leaf"]) == (0, said.document["leaf"])


def test_a_device_and_its_element_in_a_reader(
    place: Place, bench: Bench, request: pytest.FixtureRequest
) -> None:
    need_extra("smartcard", "pcsc")
    readers: Daemon = request.getfixturevalue("readers")
    reader = readers.readers[0]
    with on_vpcd(ElementChannel(bench.element), "127.0.0.1", reader.port):
        said = place.provision(
            "--enclave", place.folder / "device", "--element", f"pcsc:{reader.name}?wait=20"
        )
    assert said.code == 0, said
    assert "bench" in said.out
    assert bench.holds_only_the_final_set()


def test_one_url_may_name_directory_and_element(place: Place, bench: Bench) -> None:
    with on_tcp(ElementChannel(bench.element)) as port:
        said = place.provision(
            "--element", f"tcp:127.0.0.1:{port}?enclave={place.folder / 'device'}", "--json"
        )
    assert said.code == 0, said
    assert bench.holds_only_the_final_set()


def test_an_element_that_nothing_is_put_into_is_told(place: Place, service: Service) -> None:
    card = ElementChannel(Dialogues().bench(DEVICE).element)
    with on_tcp(card) as port:
        said = place.provision(
            "--enclave", place.folder / "device", "--element", f"tcp:127.0.0.1:{port}", "--json"
        )
    assert said.code == 0
    assert "puts no key set into a secure element" in said.err
    assert "key_set" not in said.document
    assert card.commands == 0


def test_a_run_that_wants_one_says_so(place: Place, service: Service, elements: Dialogues) -> None:
    said = place.provision("--enclave", place.folder / "device")
    assert said.code != 0
    assert "has no secure element: name its reader" in said.err
    assert service.devices == {}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "--enclave DIR, --element URL, or both"),
        (("--enclave", "DIR", "--element", "nonsense"), "names no element"),
        (("--enclave", "DIR", "--element", "file:/x"), "is no reader"),
        (("--enclave", "DIR", "--element", "tcp:here"), "write tcp:HOST:PORT"),
        (("--enclave", "DIR", "--element", "tcp:127.0.0.1:1"), "does not answer: connection refused"),
        (("--element", "tcp:127.0.0.1:1?enclave=DIR"), "does not answer: connection refused"),
        (("--element", "tcp:127.0.0.1:1"), "enclave=DIR"),
        (("--element", "acme:x"), "no element answers for 'acme'"),
    ],
)
def test_what_cannot_be_opened_says_what_to_do(
    place: Place, service: Service, arguments: tuple[str, ...], complaint: str
) -> None:
    said = place.provision(*(word.replace("DIR", str(place.folder / "device")) if word.endswith("DIR")
                             else word for word in arguments))  # fmt: skip
    assert said.code != 0
    assert complaint in said.err.replace("\n", " ")
    assert service.requests == [], "nothing was asked"


def test_without_pyscard_the_extra_is_named(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "smartcard.scard", None)
    said = place.provision("--enclave", place.folder / "device", "--element", "pcsc:0")
    assert said.code != 0
    assert "install birthmark[pcsc]" in said.err
