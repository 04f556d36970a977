"""Many devices, with requests that carry all of them; each succeeds or fails alone.

What is known about one device is ``provisioning.Work``; here is the order in which a gang is asked about.
Secure elements are spoken to by a thread each, so that a gang takes as long as its slowest reader.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from birthmark import errors
from birthmark.edge.station.answers import ElementStep, Issued, Proved, Release
from birthmark.edge.station.bodies import InjectItem, IssueItem, ProofItem
from birthmark.edge.station.pending import Phase
from birthmark.edge.station.provisioning import Wanted, Work
from birthmark.edge.station.transport import Transport

__all__ = ["Gang", "Requests", "patiently"]

_T = TypeVar("_T")
_Item = TypeVar("_Item")
_MOST_READERS = 64
"""Threads that speak to secure elements at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """What a gang asks the station for.

    A refusal among the results is one device's, one that is raised is each one's.
    """

    new_seq: Callable[[], int]
    """Takes a request number."""
    most: Callable[[], int]
    """Devices that one request takes."""
    issue: Callable[[Sequence[IssueItem], int], list[Issued | errors.Refusal]]
    inject: Callable[[Sequence[InjectItem]], list[ElementStep | errors.Refusal]]
    prove: Callable[[Sequence[ProofItem], int | None], list[Proved | errors.Refusal]]


class Gang:
    """Devices that go through the line together."""

    def __init__(self, requests: Requests) -> None:
        """Prepare; nothing is asked yet."""
        self._requests = requests
        self._works: dict[int, Work] = {}
        self._results: dict[int, Release | errors.Refusal] = {}

    def provision(
        self,
        works: Sequence[Work],
        *,
        delivered: Sequence[bool],
        envelope: bool,
        wanted: Callable[[], Wanted],
    ) -> list[Release | errors.Refusal]:
        """Take the devices from wherever they are to their release tokens.

        Args:
            works: the devices.
            delivered: True for those whose keys the service makes.
            envelope: True to have those in envelopes.
            wanted: returns what the run wants of its devices.

        Returns:
            A release or a refusal for each, in order.
        """
        # One number for all that is asked for the first time; what was asked before keeps its own (SPEC E5).
        fresh, once = _Once(self._requests.new_seq), _Once(wanted)
        for index, (work, is_delivered) in enumerate(zip(works, delivered, strict=True)):
            with self._noting(index):
                work.begin(delivered=is_delivered, envelope=envelope, wanted=once, new_seq=fresh)
                self._works[index] = work
        self._issue_all()
        while self._left():
            # Those whose dialogue broke off at the proof come round again.
            self._carry_all()
            self._prove_all()
        return [self._results[index] for index in range(len(works))]

    def _left(self) -> dict[int, Work]:
        """Return the devices that have no result yet."""
        return {index: work for index, work in self._works.items() if index not in self._results}

    # --- the steps -------------------------------------------------------------------------------------

    def _issue_all(self) -> None:
        asking = {i: work for i, work in self._left().items() if work.pending.phase is Phase.ASKING}
        for seq, gang in self._gangs(asking, lambda work: work.pending.issue_seq):
            items = [asking[index].request() for index in gang]
            for index, issued in _each(gang, partial(self._requests.issue, items, seq)):
                with self._noting(index):
                    if isinstance(issued, errors.Refusal):
                        asking[index].issue_refused(issued)
                        raise issued
                    asking[index].accept(issued)

    def _carry_all(self) -> None:
        """Stand between the service and the secure elements until the proofs are what comes next."""
        self._refuse_shared_cards()
        while items := self._carry_once():
            indices = list(items)
            most = self._requests.most()
            for start in range(0, len(indices), most):
                gang = indices[start : start + most]
                asked = [items[index] for index in gang]
                for index, step in _each(gang, partial(self._requests.inject, asked)):
                    with self._noting(index):
                        if isinstance(step, errors.Refusal):
                            self._works[index].inject_refused(step)
                        else:
                            self._works[index].take(step)

    def _carry_once(self) -> dict[int, InjectItem]:
        """Carry one batch to each secure element that waits for one; return what to ask next."""
        carrying = {index: work for index, work in self._left().items() if work.carries}
        items: dict[int, InjectItem] = {}

        def carry(index: int) -> None:
            with self._noting(index):
                item = carrying[index].carry()
                if item is not None:
                    items[index] = item

        if len(carrying) == 1:
            carry(*carrying)
        elif carrying:
            with ThreadPoolExecutor(min(len(carrying), _MOST_READERS), "secure-element") as readers:
                list(readers.map(carry, carrying))  # raises what is no refusal
        return {index: items[index] for index in sorted(items)}

    def _refuse_shared_cards(self) -> None:
        """Two devices on one channel: their commands would get mixed up in one element, and lock it."""
        devices: dict[int, list[int]] = {}
        for index, work in self._left().items():
            if work.carries:
                with self._noting(index):
                    devices.setdefault(id(work.card()), []).append(index)
        for indices in devices.values():
            if len(indices) > 1:
                shared = errors.MalformedRequest(
                    "two devices of the gang have the same secure element's channel"
                )
                self._results.update(dict.fromkeys(indices, shared))

    def _prove_all(self) -> None:
        fresh = _Once(self._requests.new_seq)
        for index, work in self._left().items():
            with self._noting(index):
                work.prepare(new_seq=fresh)
        proving = self._left()
        for seq, gang in self._gangs(proving, lambda work: work.pending.prove_seq):
            items = [proving[index].proof() for index in gang]
            for index, proved in _each(gang, partial(self._requests.prove, items, seq)):
                with self._noting(index):
                    release = (
                        proving[index].prove_refused(proved)
                        if isinstance(proved, errors.Refusal)
                        else proving[index].finish(proved)
                    )
                    if release is not None:
                        self._results[index] = release

    # --- pieces ----------------------------------------------------------------------------------------

    def _gangs(
        self, works: Mapping[int, Work], seq_of: Callable[[Work], int | None]
    ) -> Iterator[tuple[int, list[int]]]:
        """Split devices into gangs, each with the request number its devices were given."""
        by_seq: dict[int, list[int]] = {}
        for index, work in works.items():
            by_seq.setdefault(seq_of(work) or 0, []).append(index)
        most = self._requests.most() if works else 1
        for seq, indices in by_seq.items():
            for start in range(0, len(indices), most):
                # More devices than one request takes: the second and further gangs are requests of their own.
                yield (seq if start == 0 else self._requests.new_seq()), indices[start : start + most]

    @contextmanager
    def _noting(self, index: int) -> Iterator[None]:
        """Make a refusal the result of one device, so that the others go on."""
        try:
            yield
        except errors.Refusal as refused:
            self._results[index] = refused


class _Once(Generic[_T]):
    """What is asked for when the first one wants it, and shared by the others; a refusal is shared too."""

    def __init__(self, ask: Callable[[], _T]) -> None:
        self._ask = ask
        self._answers: list[_T | errors.Refusal] = []

    def __call__(self) -> _T:
        if not self._answers:
            try:
                self._answers.append(self._ask())
            except errors.Refusal as refused:
                self._answers.append(refused)
        (answer,) = self._answers
        if isinstance(answer, errors.Refusal):
            raise answer
        return answer


def _each(
    gang: Sequence[int], ask: Callable[[], list[_T | errors.Refusal]]
) -> Iterable[tuple[int, _T | errors.Refusal]]:
    """Ask for a gang; a refusal of the whole request is each one's."""
    try:
        return zip(gang, ask(), strict=True)
    except errors.Refusal as refused:
        return [(index, refused) for index in gang]


def patiently(
    transport: Transport,
    items: Sequence[_Item],
    ask: Callable[[Sequence[_Item]], list[_T | errors.Refusal]],
) -> list[_T | errors.Refusal]:
    """Ask for a gang, and again for those that went too fast, until the patience ends.

    The request is the same as far as they go: same number, same idempotency keys.
    """
    results, patience = ask(items), transport.patience()
    while hasty := [i for i, one in enumerate(results) if isinstance(one, errors.RateLimited)]:
        try:
            patience.wait(str(results[hasty[0]]))
        except errors.Unavailable:
            break  # they stay refused as too fast; the same call goes on where they are
        for index, result in zip(hasty, ask([items[index] for index in hasty]), strict=True):
            results[index] = result
    return results
