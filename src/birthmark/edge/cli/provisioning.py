"""``birthmark provision``: take one device through the line from here, over the wire like any station."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from birthmark.edge.cli import printing
from birthmark.edge.cli.options import AsJson
from birthmark.edge.station import DeviceElement, Enclave, Station
from birthmark.edge.station.elements import CHANNELS, opened, opened_channel, schemes, split
from birthmark.errors import MalformedRequest

__all__ = ["provision"]


def provision(
    *,
    station: Annotated[
        Path,
        typer.Option(
            "--station", metavar="DIR", help="Credential directory of the station, or a bootstrap credential."
        ),
    ],
    run: Annotated[str, typer.Option(metavar="ID", help="The run it belongs to.")],
    hardware_id: Annotated[str, typer.Option(metavar="ID", help="As scanned, e.g. 1M8GDM9AXKP042788.")],
    enclave: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The device: a directory that keeps its keys and certificates; made if missing.",
        ),
    ] = None,
    element: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="With --enclave, the device's secure element: pcsc:READER (its name, a part of it, or its"
            " number) or tcp:HOST:PORT.  Without, a device that keeps its keys and certificates itself; see"
            " docs/elements.md.",
        ),
    ] = None,
    delivered: Annotated[
        bool, typer.Option("--delivered", help="The service makes the keys, instead of the device.")
    ] = False,
    envelope: Annotated[
        bool,
        typer.Option(
            "--envelope",
            help="With --delivered: the keys come enveloped to the bootstrap credential's own key, so that"
            " nobody between here and the service sees them.",
        ),
    ] = False,
    further: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PROFILE",
            help="Another certificate that the run gives each device, in the run's order; may be given again."
            " [what the service says]",
        ),
    ] = None,
    operator: Annotated[str | None, typer.Option(metavar="NAME", help="Who stands at the station.")] = None,
    url: Annotated[
        str | None, typer.Option(help="The service, in place of the one in the credential.")
    ] = None,
    patience: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", min=0, help="How long to repeat a request while the service is away."
        ),
    ] = 120.0,
    as_json: AsJson = False,
) -> None:
    """Give one device its identity: ask, install, prove, and check the release token against the log's key.

    Where the run gives each device several certificates, it gets all of them, and one token.

    Where it puts a key set into the device's secure element, the service speaks with that through here.

    The same command again goes on where it was, whatever was lost in between, and never makes a second
    identity.
    """
    if envelope and not delivered:
        raise MalformedRequest("only keys that are --delivered come in an envelope")
    with (
        Station(station, url, operator=operator, patience_seconds=patience, on_wait=_say_why) as client,
        _device(enclave, element) as device,
    ):
        release = client.provision(
            run, hardware_id, device, delivered=delivered, envelope=envelope, further=further or None
        )
    shown: dict[str, object] = {
        "device": release.device,
        "state": "released",
        "run": release.run,
        "attempt": release.attempt,
        "certificate_sha256": release.certificate_sha256,
        "leaf": release.leaf,
    }
    if enclave is not None:
        shown["enclave"] = str(enclave)
    if release.key_set is not None:
        shown["key_set"] = release.key_set.get("profile")
    elif enclave is not None and element is not None:
        printing.warn(f"run {release.run} puts no key set into a secure element: nothing was done with it")
    if as_json:
        printing.line(printing.json_text({**shown, "further": dict(release.further), "token": release.token}))
    else:
        printing.fields(shown | {f"{profile}_sha256": digest for profile, digest in release.further})


def _say_why(reason: str, seconds: float) -> None:
    printing.warn(f"waiting {seconds:.1f} s: {printing.shown(reason)}")


@contextmanager
def _device(enclave: Path | None, url: str | None) -> Iterator[DeviceElement]:
    """Open the device, and close it afterwards."""
    if enclave is None:
        if url is None:
            raise MalformedRequest("say which device it is: --enclave DIR, --element URL, or both")
        with opened(url) as device:
            yield device
    elif url is None:
        with Enclave(str(enclave)) as device:
            yield device
    else:
        carriers = schemes(CHANNELS)
        if (scheme := split(url)[0]) not in carriers:
            known = ", ".join(f"{name}:" for name in carriers)
            raise MalformedRequest(
                f"{scheme}: is no reader for the secure element of a device in a directory; {known} are. An"
                " element that is a device itself is named without --enclave"
            )
        with opened_channel(url) as card, Enclave(str(enclave), card=card) as device:
            yield device
