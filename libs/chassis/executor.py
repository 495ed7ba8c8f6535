"""Where blocking work runs: a thread in production, in place on virtual time."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar, TypeVarTuple

T = TypeVar("T")
Args = TypeVarTuple("Args")


class Executor(Protocol):
    """Runs functions one at a time, in the order of the calls."""

    async def run(self, function: Callable[[*Args], T], /, *args: *Args) -> T:
        """Call the function with the arguments; return or raise what it does.

        Cancelling abandons the answer: a call that has begun runs to its end (later ones wait for it), one that has not may
        never run. Raises RuntimeError after `close`.
        """

    async def close(self) -> None:
        """Refuse new calls and wait for those that were made. Again is harmless."""


class ThreadExecutor:
    """One thread of its own, started by the first call."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._closed = False

    async def run(self, function: Callable[[*Args], T], /, *args: *Args) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        last = self._pool.submit(_nothing)  # its turn comes after all earlier calls, and waiting for it does not block the loop
        self._pool.shutdown(wait=False)
        await asyncio.wrap_future(last)
        self._pool.shutdown(wait=True)  # the thread has nothing left to do: this joins it at once


class InlineExecutor:
    """Calls in place, where a thread would race with time that jumps.

    The loop turns once before the answer, as it does when a thread answers: callers that rely on nothing happening in between
    are wrong, and a cancelled caller may well have had its effect.
    """

    def __init__(self) -> None:
        self._closed = False

    async def run(self, function: Callable[[*Args], T], /, *args: *Args) -> T:
        if self._closed:
            raise RuntimeError("the executor is closed")
        try:
            return function(*args)
        finally:
            await asyncio.sleep(0)

    async def close(self) -> None:
        self._closed = True


def _nothing() -> None:
    """Do nothing, in turn."""
