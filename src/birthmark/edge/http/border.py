"""The border between the event loop and everything else, which is synchronous.

A use case thinks, and asks the store.  With keys in this process thinking is pure computation and runs on the
loop; with a token it waits for the token, and runs on one thread beside the loop.  Reading and committing
never run on the loop.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, TypeVar

from birthmark.edge.application import Application
from birthmark.ports import Look, ProofOf, Scan, UseCase

__all__ = ["Border"]

T = TypeVar("T")


class Border:
    """Carries use cases for one event loop."""

    def __init__(self, application: Application) -> None:
        """Carry over the application's store."""
        self._store = application.store
        self._observer = application.observer
        self._readers = ThreadPoolExecutor(4, thread_name_prefix="read")
        self._thinker = (
            None if application.keys.development else ThreadPoolExecutor(1, thread_name_prefix="think")
        )

    async def carry(self, use_case: UseCase[T]) -> T:
        """Carry a use case until it returns; what it raises passes through."""
        loop = asyncio.get_running_loop()
        answer: Any = None
        while True:
            if self._thinker is None:
                done, step = self._think(use_case, answer)
            else:
                # The context is the request's: what the thread does belongs to it.
                context = copy_context()
                done, step = await loop.run_in_executor(
                    self._thinker, context.run, self._think, use_case, answer
                )
            if done:
                value: T = step
                return value
            if isinstance(step, Look):
                answer = await loop.run_in_executor(self._readers, self._store.look, step.reads)
            elif isinstance(step, Scan):
                answer = await loop.run_in_executor(self._readers, self._scan, step)
            elif isinstance(step, ProofOf):
                answer = await loop.run_in_executor(self._readers, self._store.token, step.index)
            else:
                with self._observer.span("train"):
                    answer = await asyncio.wrap_future(self._store.submit(step))

    def _think(self, use_case: UseCase[T], answer: Any) -> tuple[bool, Any]:
        with self._observer.span("think"):
            return _advance(use_case, answer)

    def _scan(self, step: Scan) -> list[Any]:
        return list(self._store.scan(step.kind, where=step.where, after=step.after, limit=step.limit))

    async def read(self, function: Any, *arguments: Any) -> Any:
        """Run a read of the store or log beside the loop."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, function, *arguments)

    def close(self) -> None:
        """Let the threads go."""
        self._readers.shutdown()
        if self._thinker is not None:
            self._thinker.shutdown()


def _advance(use_case: UseCase[T], answer: Any) -> tuple[bool, Any]:
    # A StopIteration must not travel through a future, so the end of the dialogue is a value here.
    try:
        return False, use_case.send(answer)
    except StopIteration as done:
        return True, done.value
