"""``birthmark element virtual``: secure elements in software, for development and demonstrations.

They are put into virtual readers (pcscd with vpcd) or listen on TCP ports, one element a port, and keep what
they hold in files.  Faults and lies can be ordered, to see what the line does then.
"""

import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from birthmark import errors
from birthmark.edge.cli import printing
from birthmark.edge.cli.options import AsJson
from birthmark.edge.station.elements.virtual import Drawer, derived_keys, initial_keys, on_tcp, on_vpcd
from birthmark.element.card import VirtualElement
from birthmark.element.card_faults import ElementChannel, Fault
from birthmark.element.card_keys import Dishonesty
from birthmark.element.card_state import ISSUER_SECURITY_DOMAIN, CardState, Traits, fresh
from birthmark.element.diversification import Scheme

__all__ = ["virtual"]

_ADDRESS = re.compile(r"(.+):([0-9]{1,5})")
_FIRST_KDD = "00000000000000000001"
_ISSUER_SECURITY_DOMAIN = ISSUER_SECURITY_DOMAIN.hex().upper()

DirectoryOption = Annotated[
    Path,
    typer.Option(
        "--directory",
        metavar="DIR",
        help="Where the elements keep what they hold, with mode 0700; made where it is missing.",
    ),
]
VpcdOption = Annotated[
    str | None,
    typer.Option(
        "--vpcd",
        metavar="HOST:PORT",
        help="Put them into the virtual readers at this port and the next ones, e.g. 127.0.0.1:35963.",
    ),
]
TcpOption = Annotated[
    str | None,
    typer.Option(
        "--tcp", metavar="HOST:PORT", help="Listen at this port and the next ones; 0 for any that are free."
    ),
]
CountOption = Annotated[int, typer.Option("--count", min=1, max=256, help="How many.")]
KeysOption = Annotated[
    Path | None,
    typer.Option(
        "--keys",
        metavar="FILE",
        help="Initial key set of all: K-ENC, K-MAC, K-DEK in hex on three lines; nobody else may read it.",
    ),
]
MasterOption = Annotated[
    Path | None,
    typer.Option(
        "--master",
        metavar="FILE",
        help="Their maker's master key in hex: each element's initial set is derived by its KDD.",
    ),
]
SchemeOption = Annotated[
    Scheme, typer.Option("--scheme", help="How the initial sets follow from the master key.")
]
KddOption = Annotated[
    str,
    typer.Option("--kdd", metavar="HEX", help="Key diversification data of the first; the next count up."),
]
KvnOption = Annotated[
    str,
    typer.Option("--kvn", metavar="HEX", help="Key version number of the initial set; FF for a default set."),
]
ParameterOption = Annotated[
    str, typer.Option("--i", metavar="HEX", help="What they say of their secure channel; 71 is S16.")
]
AidOption = Annotated[str, typer.Option("--aid", metavar="HEX", help="AID of their security domain.")]
FaultOption = Annotated[
    list[str] | None,
    typer.Option(
        "--fault",
        metavar="KIND:N[:INS]",
        help="What happens to each at its N-th command (with this instruction, in hex): tear-before, "
        "tear-after, answer-lost, wrong-answer, dead, dead-after. May be given again.",
    ),
]
LieOption = Annotated[
    str | None,
    typer.Option(
        "--lie",
        metavar="HOW",
        help="Lie about keys that are put in: echo, wrong-check-values, lack:KEYS, garble:KEYS; "
        "KEYS of enc, mac, dek, joined with commas.",
    ),
]
DelayOption = Annotated[int, typer.Option("--delay", min=0, max=10_000, help="Milliseconds a command takes.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Maker:
    """What new elements are like."""

    keys: Path | None
    master: Path | None
    scheme: Scheme
    first_kdd: int
    kvn: int
    traits: Traits

    def state(self, drawer: Drawer, at: int) -> CardState | None:
        """Return the state that the element of this number begins with; None if no key file was given."""
        kdd = ((self.first_kdd + at) % (1 << 80)).to_bytes(10, "big")
        if self.keys is not None:
            keys = initial_keys(drawer.secret(self.keys))
        elif self.master is not None:
            keys = derived_keys(drawer.secret(self.master), self.scheme, kdd)
        else:
            return None
        return fresh(keys, key_diversification_data=kdd, kvn=self.kvn, traits=self.traits)


def virtual(
    *,
    directory: DirectoryOption,
    vpcd: VpcdOption = None,
    tcp: TcpOption = None,
    count: CountOption = 1,
    keys: KeysOption = None,
    master: MasterOption = None,
    scheme: SchemeOption = Scheme.KDF3,
    kdd: KddOption = _FIRST_KDD,
    kvn: KvnOption = "30",
    parameter: ParameterOption = "70",
    aid: AidOption = _ISSUER_SECURITY_DOMAIN,
    fault: FaultOption = None,
    lie: LieOption = None,
    delay: DelayOption = 0,
    as_json: AsJson = False,
) -> None:
    """Run secure elements in software until SIGTERM or Ctrl-C: for development only, never for a device.

    An element whose file is already in the directory goes on with what it holds, whatever the options say
    of how a new one begins.
    """
    if (vpcd is None) == (tcp is None):
        raise errors.MalformedRequest("say where the elements are to be: --vpcd HOST:PORT or --tcp HOST:PORT")
    if keys is not None and master is not None:
        raise errors.MalformedRequest("an element's initial keys come from --keys or from --master, not both")
    host, port = _address(vpcd or tcp or "", count)
    first_kdd = _octets(kdd, "--kdd", range(10, 11))
    maker = _Maker(
        keys=keys,
        master=master,
        scheme=scheme,
        first_kdd=int.from_bytes(first_kdd, "big"),
        kvn=_octets(kvn, "--kvn", range(1, 2))[0],
        traits=Traits(i=_octets(parameter, "--i", range(1, 2))[0], aid=_octets(aid, "--aid", range(5, 17))),
    )
    faults = [Fault.parse(text) for text in fault or ()]
    dishonesty = Dishonesty.parse(lie) if lie is not None else Dishonesty()
    with _until_told() as told, ExitStack() as stack:
        drawer = stack.enter_context(closing(Drawer(directory)))
        elements = [
            drawer.element(f"element-{at}", maker.state(drawer, at), dishonesty=dishonesty)
            for at in range(count)
        ]
        served = []
        for at, (element, was_there) in enumerate(elements):
            card = ElementChannel(element, faults)
            here = port and port + at
            if vpcd is not None:
                stack.enter_context(on_vpcd(card, host, here, delay=delay / 1000))
            else:
                here = stack.enter_context(on_tcp(card, host, here, delay=delay / 1000))
            served.append(
                _row(at, element, f"{'vpcd' if vpcd else 'tcp'}:{host}:{here}", was_there=was_there)
            )
        _tell(served, directory, as_json=as_json)
        told.wait()


@contextmanager
def _until_told() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM sets; Ctrl-C ends the wait for it by itself."""
    told = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        told.set()

    before = signal.signal(signal.SIGTERM, on_signal)
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, before)


def _row(at: int, element: VirtualElement, where: str, *, was_there: bool) -> dict[str, Any]:
    state = element.state
    return {
        "element": at,
        "where": where,
        "kdd": state.key_diversification_data.hex().upper(),
        "i": f"{state.traits.i:02X}",
        "key_sets": " ".join(f"{found.kvn:02X}" for found in state.key_sets),
        "state": "as it was" if was_there else "new",
    }


def _tell(served: Sequence[dict[str, Any]], directory: Path, *, as_json: bool) -> None:
    printing.warn(f"virtual secure elements, for development only: their keys lie in clear in {directory}")
    if as_json:
        printing.line(printing.json_text(served))
    else:
        heads = list(served[0])
        printing.columns(heads, ([row[head] for head in heads] for row in served))
    sys.stdout.flush()


def _address(text: str, count: int) -> tuple[str, int]:
    found = _ADDRESS.fullmatch(text)
    if found is None or int(found[2]) + count - 1 > 0xFFFF:
        raise errors.MalformedRequest(f"an address is written HOST:PORT, with a port for each: not {text!r}")
    return found[1], int(found[2])


def _octets(text: str, option: str, sizes: range) -> bytes:
    try:
        octets = bytes.fromhex(text)
    except ValueError:
        octets = b""
    if len(octets) not in sizes:
        least, most = sizes[0], sizes[-1]
        size = f"{least}" if least == most else f"{least} to {most}"
        raise errors.MalformedRequest(f"{option} takes {size} octets in hex, not {text!r}")
    return octets
