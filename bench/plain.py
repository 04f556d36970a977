"""The load on certificate authorities of others: kept connections over plain HTTP, in a closed loop.

As ``bench.load`` does to ours: requests rendered before the clock starts, as many processes as it is given,
answers read by the same code.  What an answer says is looked at when the clock has stopped: each must hold a
certificate of its device's key.  An answer with another status than 200 is counted, and its device is
without a certificate.
"""

import gc
import json
import select
import socket
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection as Pipe
from typing import Final

from bench import machine
from bench.authorities import Authority
from bench.devices import Device
from bench.installation import Failed
from bench.load import Connection, Refused, Report, certify, spread
from bench.measure import Repeat, percentile

__all__ = ["ask"]

_TIMEOUT_SECONDS: Final = 120.0


class _Client(Connection):
    """A kept connection to a peer."""

    def __init__(self, peer: Authority) -> None:
        plain = socket.create_connection(("127.0.0.1", peer.port), timeout=_TIMEOUT_SECONDS)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().__init__(plain, f"127.0.0.1:{peer.port}")
        self._more = peer.headers
        self.device: Device | None = None

    def headers(self) -> str:
        """Return what shows who asks."""
        return self._more


class _Worker:
    """One process of the load generator."""

    def __init__(self, peer: Authority, devices: Sequence[Device], connections: int) -> None:
        self._peer, self._report = peer, Report()
        self._jobs = [(device, peer.body(device)) for device in devices]
        self._clients = [_Client(peer) for _ in range(connections)]
        self._answers: list[tuple[Device, bytes]] = []

    def run(self, pipe: Pipe) -> None:
        """Say that all is ready, wait for the start, ask until all is answered, and report."""
        report = self._report
        try:
            pipe.send(None)
            pipe.recv()
            gc.disable()
            cpu, report.started = time.process_time(), time.perf_counter()
            self._carry()
            report.ended, report.cpu = time.perf_counter(), time.process_time() - cpu
            for device, answer in self._answers:
                certify(device, self._peer.certificate(json.loads(answer)))
        except (Failed, OSError, ValueError, KeyError, TypeError) as failed:
            report.failure = f"{self._peer.system}: {type(failed).__name__}: {failed}"
        pipe.send(report)

    def _carry(self) -> None:
        epoll = select.epoll()
        busy: dict[int, _Client] = {}
        for client in self._clients:
            if self._next(client):
                busy[client.socket.fileno()] = client
                epoll.register(client.socket.fileno(), select.EPOLLIN)
        while busy:
            ready = epoll.poll(_TIMEOUT_SECONDS)
            if not ready:
                raise Failed(f"no answer for {_TIMEOUT_SECONDS:.0f} s")
            for number, _ in ready:
                if self._answered(busy[number]) and not self._next(busy[number]):
                    epoll.unregister(number)
                    del busy[number]
        epoll.close()

    def _next(self, client: _Client) -> bool:
        if not self._jobs:
            return False
        client.device, body = self._jobs.pop()
        client.ask(self._peer.path, body)
        return True

    def _answered(self, client: _Client) -> bool:
        """Take in what came; whether the answer is complete."""
        try:
            body = client.answer()
        except Refused:
            self._report.refused += 1
            return True
        if body is None or client.device is None:
            return False
        self._report.issue.append(time.perf_counter() - client.asked)
        self._answers.append((client.device, body))
        return True


def ask(peer: Authority, devices: Sequence[Device], connections: int, processes: int) -> Repeat:
    """Have a peer certify devices, on so many connections, from so many processes.

    Raises:
        Failed: it is gone, or an answer holds no certificate of the device's key, or all were refused.
    """
    processes = min(processes, connections)

    def work(number: int, pipe: Pipe) -> None:
        own = len(range(connections)[number::processes])
        _Worker(peer, devices[number::processes], own).run(pipe)

    before = _used(peer)
    reports = spread(work, processes)
    after = _used(peer)
    latencies = [seconds * 1000 for report in reports for seconds in report.issue]
    if not latencies:
        raise Failed(f"{peer.system} refused every device")
    wall = max(report.ended for report in reports) - min(report.started for report in reports)
    certified = len(latencies)
    return Repeat(
        devices=certified,
        seconds=wall,
        rate=certified / wall,
        p50=percentile(latencies, 50),
        p99=percentile(latencies, 99),
        requests=certified,
        server_cpu=(after[0] - before[0]) / certified * 1e6,
        database_cpu=(after[1] - before[1]) / certified * 1e6,
        client_cpu=sum(report.cpu for report in reports) / wall,
        signing=0.0,
        refused=sum(report.refused for report in reports),
    )


def _used(peer: Authority) -> tuple[float, float]:
    """Return the processor time so far of the server and of its database.

    Processes are looked up each time: databases start one for a connection, and servers of others do not
    keep their connections.  What has ended meanwhile is in its parent's account.
    """
    server, *database = peer.pids
    return (
        machine.cpu_seconds(machine.family(server)),
        machine.cpu_seconds([pid for first in database for pid in machine.family(first)]),
    )
