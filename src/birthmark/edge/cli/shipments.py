"""``birthmark shipment``: what has left the building, so that a recall knows what is out (SPEC E8)."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from birthmark import errors
from birthmark.edge.cli import printing
from birthmark.edge.cli.inputs import device_id
from birthmark.edge.cli.options import DEFAULT_SETTINGS, AsDirectory, AsJson, SettingsPath
from birthmark.edge.cli.session import session_of
from birthmark.edge.cli.spreadsheets import column
from birthmark.floor.shipments import Shipped
from birthmark.ports import carry
from birthmark.services.shipments import record_shipment

__all__ = ["shipments"]

shipments = typer.Typer(
    name="shipment", no_args_is_help=True, help="What has left the building, and with which consignment."
)
HEADING = "device"
_COMPLAINTS = 20


def read_devices(path: Path) -> list[str]:
    """Read device ids, ``vin:…``: a CSV file with a column ``device`` or them first, or a JSON list.

    In JSON each is a text, or an object with a ``device``.

    Raises:
        errors.NotFound: the file cannot be read.
        errors.MalformedRequest: it is none of these, or a device id is none; the first twenty were shown.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            listed = list(_of_json(json.load(file)) if path.suffix == ".json" else _of_csv(file))
    except OSError as cause:
        raise errors.NotFound(f"{path} cannot be read: {cause.strerror}") from cause
    except (ValueError, RecursionError, csv.Error) as cause:
        raise errors.MalformedRequest(f"{path} is neither CSV nor JSON in UTF-8: {cause}") from cause
    devices, wrong = [], 0
    for place, text in listed:
        try:
            devices.append(device_id(text))
        except errors.Refusal as refusal:
            wrong += 1
            if wrong <= _COMPLAINTS:
                printing.warn(printing.shown(f"{place}: {refusal}"))
    if wrong:
        raise errors.MalformedRequest(
            f"{path}: {wrong} of {len(listed)} name no device; nothing was recorded"
        )
    return devices


def _of_csv(file: Iterator[str]) -> Iterator[tuple[str, str]]:
    return ((f"line {line}", text.strip()) for line, text in column(file, HEADING))


def _of_json(value: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(value, list):
        raise errors.MalformedRequest("a shipment in JSON is a list of devices")
    for place, one in enumerate(value, 1):
        text = one.get(HEADING) if isinstance(one, dict) else one
        yield f"item {place}", text if isinstance(text, str) else repr(one)[:100]


@shipments.command()
def record(
    context: typer.Context,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="CSV with a column 'device' (vin:…), or a JSON list.")
    ],
    *,
    consignment: Annotated[str, typer.Option(metavar="NAME", help="The delivery they went with.")],
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
    as_json: AsJson = False,
) -> None:
    """Record that devices were shipped: all of them known and released, or none is recorded.

    The same file again does no harm: the first report of a device counts.
    """
    devices = read_devices(file)
    with (
        session_of(context).acting(settings, as_directory) as (application, operator),
        printing.progress("recording") as advance,
    ):
        use_case = record_shipment(operator.caller, consignment, devices, advance)
        recorded = carry(application.store, use_case)
    shown = {
        "consignment": recorded.consignment,
        "recorded": recorded.new,
        "known": recorded.known,
        "elsewhere": recorded.elsewhere,
    }
    if as_json:
        printing.line(printing.json_text(shown))
        return
    printing.fields(shown)
    if recorded.elsewhere:
        printing.warn(f"{recorded.elsewhere} had gone with another consignment, where they stay")


@shipments.command("list")
def list_shipments(
    context: typer.Context,
    *,
    consignment: Annotated[
        str | None, typer.Option(metavar="NAME", help="List the devices of this one.")
    ] = None,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_json: AsJson = False,
) -> None:
    """List the consignments, or the devices of one."""
    found: dict[str, dict[str, Any]] = {}
    where = {} if consignment is None else {"consignment": consignment}
    with session_of(context).application(settings) as application:
        for shipped in application.store.scan(Shipped, where=where):
            name = shipped.consignment if consignment is None else shipped.device
            row = found.setdefault(name, {"devices": 0, "first": shipped.at, "last": shipped.at})
            row["devices"] += 1
            row["first"], row["last"] = min(row["first"], shipped.at), max(row["last"], shipped.at)
    if consignment is not None and not found:
        raise errors.NotFound(f"there is no consignment {consignment}")
    if consignment is None:
        rows = [{"consignment": name, **row} for name, row in sorted(found.items())]
        heads = ["consignment", "devices", "first", "last"]
    else:
        rows = [{"device": name, "at": row["first"]} for name, row in sorted(found.items())]
        heads = ["device", "at"]
    if as_json:
        printing.line(printing.json_text(rows))
    else:
        printing.columns(heads, ([row[head] for head in heads] for row in rows))
