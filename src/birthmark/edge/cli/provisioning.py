"""``birthmark provision``: take one device through the line from here, over the wire like any station."""

from pathlib import Path
from typing import Annotated

import typer

from birthmark.edge.cli import printing
from birthmark.edge.cli.options import AsJson
from birthmark.edge.station import Enclave, Station

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
        Path,
        typer.Option(
            metavar="DIR", help="The device: a directory that keeps its key and certificate; made if missing."
        ),
    ],
    delivered: Annotated[
        bool, typer.Option("--delivered", help="The service makes the key, instead of the device.")
    ] = False,
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

    The same command again goes on where it was, whatever was lost in between, and never makes a second
    identity.
    """
    with (
        Station(station, url, operator=operator, patience_seconds=patience, on_wait=_say_why) as client,
        Enclave(str(enclave)) as device,
    ):
        release = client.provision(run, hardware_id, device, delivered=delivered)
    shown = {
        "device": release.device,
        "state": "released",
        "run": release.run,
        "attempt": release.attempt,
        "certificate_sha256": release.certificate_sha256,
        "leaf": release.leaf,
        "enclave": str(enclave),
    }
    if as_json:
        printing.line(printing.json_text({**shown, "token": release.token}))
    else:
        printing.fields(shown)


def _say_why(reason: str, seconds: float) -> None:
    printing.warn(f"waiting {seconds:.1f} s: {printing.shown(reason)}")
