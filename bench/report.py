"""The benchmark's words: a header, a table, the path of one device.  Nothing that was not measured."""

from collections.abc import Mapping, Sequence

from bench.anatomy import OUTSIDE, Anatomy
from bench.floors import Floors
from bench.machine import BUSY
from bench.measure import Series
from bench.spans import PARTS

__all__ = ["HEAD", "anatomy_text", "floors_text", "header_text", "line_text", "notes_text"]

HEAD = (
    f"{'system':<10} {'database':<10} {'proc':>4} {'gang':>4} {'conn':>4}  {'asked':<11}"
    f" {'devices/s (min–max)':>22} {'p50 ms':>8} {'p99 ms (max)':>17}"
    f" {'cpu µs':>7} {'db µs':>6} {'load':>5} {'sign':>5} {'×crypto':>8} {'×disk':>6}"
)


def header_text(described: Mapping[str, str], load: float) -> str:
    """Return what the machine is."""
    lines = [f"{name:<12} {value}" for name, value in described.items()]
    lines.append(f"{'load average':<12} {load:.2f} before the run")
    if load > BUSY:
        lines.append(
            f"WARNING: the machine was busy (load average above {BUSY}); take the ratios, not the figures"
        )
    return "\n".join(lines)


def floors_text(database: str, floors: Floors) -> str:
    """Return the two floors under a database."""
    crypto, storage = floors.crypto, floors.storage
    return (
        f"floors now: {floors.devices_per_second:,.0f} devices/s in signatures on one core (verify request"
        f" {crypto['verify_request_us']:.0f} µs, sign {crypto['sign_certificate_us']:.0f} µs, verify proof"
        f" {crypto['verify_proof_us']:.0f} µs); {floors.commits_per_second:,.0f} plain {database} commits/s,"
        f" {storage['fdatasync_per_second']:,.0f} fdatasync/s; load average {floors.load_average:.2f}"
    )


def line_text(series: Series, floors: Floors) -> str:
    """Return one line of the table."""
    case, rate = series.case, series.median("rate")
    spread = f"{rate:,.0f} ({series.least('rate'):,.0f}–{series.most('rate'):,.0f})"
    tail = f"{series.median('p99'):.1f} ({series.most('p99'):.1f})"
    database = f"{series.median('database_cpu'):.0f}" if case.database == "postgresql" else ""
    return (
        f"{'birthmark':<10} {case.database:<10} {case.processes:>4} {case.gang:>4} {case.connections:>4}"
        f"  {case.asked:<11} {spread:>22} {series.median('p50'):>8.1f} {tail:>17}"
        f" {series.median('server_cpu'):>7.0f} {database:>6} {series.median('client_cpu'):>5.2f}"
        f" {series.median('signing'):>5.2f} {rate / floors.devices_per_second:>8.2f}"
        f" {rate / floors.commits_per_second:>6.2f}"
    )


def notes_text(repeats: int) -> str:
    """Return what the columns mean, in short."""
    few = "" if repeats >= 3 else f"; WARNING: {repeats} repeats are too few for a median"
    return (
        f"Medians of {repeats} repeats{few}. Mutual TLS 1.3, kept connections, one station each, closed loop;"
        " keys born in the device.\n"
        "p50, p99: of a request (issue), or from the first octet asked to the proof's answer (transaction);"
        " of the whole gang if gang > 1.\n"
        "cpu, db: CPU a device of the service's and of PostgreSQL's processes. load: cores the load generator"
        " used, sign: of them for the devices' signatures.\n"
        "×crypto: devices/s over the crypto floor (one core). ×disk: devices/s over the database's plain"
        " durable commits/s; above 1 several devices shared a commit."
    )


def anatomy_text(found: Sequence[Anatomy]) -> str:
    """Return the path of one device, one column a database and gang."""
    width = 46
    heads = [f"{one.database}, {'single' if one.gang == 1 else f'gang of {one.gang}'}" for one in found]
    lines = [f"{'µs a device':<{width}}" + "".join(f"{head:>24}" for head in heads)]

    def row(label: str, values: Sequence[float], totals: Sequence[float] | None = None) -> None:
        shares = (
            [""] * len(values)
            if totals is None
            else [f"{v / t:6.1%}" for v, t in zip(values, totals, strict=True)]
        )
        cells = (f"{value:16,.1f} {share:>7}" for value, share in zip(values, shares, strict=True))
        lines.append(f"{label:<{width}}" + "".join(cells))

    totals = [one.total for one in found]
    row("TLS decrypt, sockets, the client's own work", [one.own[OUTSIDE] for one in found], totals)
    for part, (_, label) in PARTS.items():
        row(label, [one.own[part] for one in found], totals)
    row("sum: what the station waits for", totals, totals)
    lines.append("")
    row("CPU of the service", [one.server_cpu for one in found])
    if any(one.database == "postgresql" for one in found):
        row("CPU of PostgreSQL", [one.database_cpu for one in found])
    row("CPU of the client (without signing)", [one.client_cpu for one in found])
    return "\n".join(lines)
