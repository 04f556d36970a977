"""A program that floods one port of this machine with so many handshakes and counts what it heard.

    python tls_flood.py PORT STATION_DIRECTORY KIND=COUNT...

Prints one line of JSON: by kind, how often each thing happened.
"""

import asyncio
import json
import ssl
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

AT_ONCE = 100
HALF_OPEN_SECONDS = 2.0
GARBAGE = bytes(range(256)) * 4
REQUEST = b"GET /v1/me HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
SECONDS = 60.0

Deed = Callable[[int, ssl.SSLContext], Awaitable[str]]


async def full(port: int, context: ssl.SSLContext) -> str:
    """Do a whole handshake and ask who we are."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname="localhost"
    )
    try:
        writer.write(REQUEST)
        answer = await reader.read(65_536)
        return f"status {answer[9:12].decode()}" if answer else "closed"
    finally:
        writer.transport.abort()


async def drop(port: int, context: ssl.SSLContext) -> str:
    """Do a whole handshake and go."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
    writer.transport.abort()
    return "dropped"


async def half_open(port: int, _context: ssl.SSLContext) -> str:
    """Begin a handshake and go no further until the other side ends it, or some time has gone."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        async with asyncio.timeout(HALF_OPEN_SECONDS):
            return "told" if await reader.read(100) else "closed"
    except TimeoutError:
        return "left alone"
    finally:
        writer.transport.abort()


async def garbage(port: int, _context: ssl.SSLContext) -> str:
    """Send what is no TLS."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(GARBAGE)
        return "told" if await reader.read(100) else "closed"
    finally:
        writer.transport.abort()


DEEDS: dict[str, Deed] = {"full": full, "drop": drop, "half-open": half_open, "garbage": garbage}


async def flood(port: int, directory: Path, wanted: dict[str, int]) -> dict[str, Counter[str]]:
    """Do everything that is wanted, the kinds mixed, and count."""
    context = ssl.create_default_context(cafile=str(directory / "root.crt"))
    context.load_cert_chain(directory / "station.crt", directory / "station.key")
    heard: dict[str, Counter[str]] = {kind: Counter() for kind in wanted}
    left = dict(wanted)

    async def work() -> None:
        while left:
            for kind in list(left):
                if kind not in left:
                    continue
                left[kind] -= 1
                if not left[kind]:
                    del left[kind]
                try:
                    async with asyncio.timeout(SECONDS):
                        heard[kind][await DEEDS[kind](port, context)] += 1
                except OSError as lost:  # TimeoutError is one
                    heard[kind][type(lost).__name__] += 1

    await asyncio.gather(*[work() for _ in range(AT_ONCE)])
    return heard


def main() -> None:
    """Flood as told by the arguments."""
    port, directory, *wanted = sys.argv[1:]
    counts = {kind: int(count) for kind, _, count in (word.partition("=") for word in wanted)}
    heard = asyncio.run(flood(int(port), Path(directory), counts))
    sys.stdout.write(json.dumps(heard) + "\n")


if __name__ == "__main__":
    main()
