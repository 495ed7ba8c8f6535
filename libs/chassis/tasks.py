"""Tasks with an owner: nothing runs on after the block that started it."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, NoReturn, TypeVar

import structlog

T = TypeVar("T")
log = structlog.get_logger()


class Tasks:
    """The tasks of one owner; made by `open_tasks`.

    Unlike asyncio.TaskGroup one task's failure does not cancel its siblings: the owner decides, told by `wait_failed`.
    """

    def __init__(self, name: str, told: tuple[type[Exception], ...] = ()) -> None:
        self._name = name
        self._told = told
        self._tasks: dict[asyncio.Task[Any], None] = {}  # a dict, not a set: cancelled in the order of their start, on every run
        self._failure: BaseException | None = None
        self._failed = asyncio.Event()
        self._closing = False

    def spawn(self, coroutine: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Start a task. An exception that ends it is logged once and raised by `wait_failed`. Raises RuntimeError if closing."""
        if self._closing:
            coroutine.close()
            raise RuntimeError(f"{self._name} is closing and starts no {name}")
        task = asyncio.create_task(coroutine, name=f"{self._name}.{name}")
        self._tasks[task] = None
        task.add_done_callback(self._on_done)
        return task

    async def wait_failed(self) -> NoReturn:
        """Wait until a task fails and raise the first failure, now and ever after."""
        await self._failed.wait()
        assert self._failure is not None
        raise self._failure

    def _on_done(self, task: asyncio.Task[Any]) -> None:
        del self._tasks[task]
        error = None if task.cancelled() else task.exception()
        if error is None:
            return
        if not isinstance(error, self._told):
            log.error("task failed", task=task.get_name(), exc_info=error)
        if self._failure is None:
            self._failure = error
            self._failed.set()

    async def _close(self) -> None:
        """Cancel all and wait for all, also while cancelled oneself. Tasks are told once, so that their cleanup is whole."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        cancelled: asyncio.CancelledError | None = None
        while self._tasks:
            try:
                await asyncio.wait(list(self._tasks))
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled


@asynccontextmanager
async def open_tasks(name: str, *, told: tuple[type[Exception], ...] = ()) -> AsyncIterator[Tasks]:
    """Own tasks: leaving cancels them and waits until all have ended.

    `told` are errors that end the process with a line for a person: a traceback in the log before it would only frighten.
    """
    tasks = Tasks(name, told)
    try:
        yield tasks
    finally:
        await tasks._close()
