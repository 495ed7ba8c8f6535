"""Where blocking work runs: a thread in production, in place on virtual time."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol, TypeAlias, TypeVar, TypeVarTuple

T = TypeVar("T")
Args = TypeVarTuple("Args")
_Call: TypeAlias = "tuple[asyncio.AbstractEventLoop, asyncio.Future[Any], Callable[[], Any]]"


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
    """One thread of its own, started by the first call.

    Not a concurrent.futures pool: its future of its own beside the loop's, with a lock each, costs twice as much as all of this.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._thread: Thread | None = None
        self._closed = False

    async def run(self, function: Callable[[*Args], T], /, *args: *Args) -> T:
        if self._closed:
            raise RuntimeError("the executor is closed")
        return await self._submit(function, *args)

    def _submit(self, function: Callable[[*Args], T], /, *args: *Args) -> "asyncio.Future[T]":
        if self._thread is None:
            # A daemon: who forgets to close must not keep the process from ending.
            self._thread = Thread(target=_work, args=(self._calls,), name=self._name, daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._calls.put((loop, future, partial(function, *args)))
        return future

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._thread is not None:
            last = self._submit(_nothing)  # its turn comes after all earlier calls, and waiting for it does not block the loop
            self._calls.put(None)
            await last
            self._thread.join()  # it has nothing left to do: this joins it at once


def _work(calls: "SimpleQueue[_Call | None]") -> None:
    while (call := calls.get()) is not None:
        loop, future, function = call
        if future.cancelled():
            continue
        value: Any = None
        error: BaseException | None = None
        try:
            value = function()
        except BaseException as raised:  # whatever it is, it is the caller's
            error = raised
        with suppress(RuntimeError):  # the loop has ended: nobody waits
            loop.call_soon_threadsafe(_answer, future, value, error)
        del call, future, function, value, error  # hold nothing while waiting


def _answer(future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    if future.done():
        return  # cancelled meanwhile
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)


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
