"""The tasks in which gRPC serves calls: two for each, of which it gives none away, nor waits for them when it stops.

A handler's task is not enough to know: gRPC makes it two turns of the loop after it took the call, and goes on in it after the
handler has ended. But each is made in the context in which the server was started, or in that of a task made there. So a task
factory sees whose it is.
"""

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

CallTasks = dict[asyncio.Task[Any], None]  # in the order of their start, while they run
_noted_in: ContextVar[CallTasks | None] = ContextVar("_noted_in", default=None)


@contextmanager
def noting_tasks(tasks: CallTasks) -> Iterator[None]:
    """Note each task that is made here, or by one of those, until it ends; not what a handler makes (`begin_handler`)."""
    loop = asyncio.get_running_loop()
    factory = loop.get_task_factory()
    if not isinstance(factory, _Factory):  # which stays: servers of a loop may be closed in any order
        loop.set_task_factory(_Factory(factory))  # type: ignore[arg-type]  # the stub knows no options yet
    token = _noted_in.set(tasks)
    try:
        yield
    finally:
        _noted_in.reset(token)


def begin_handler() -> None:
    """Leave what the current task makes from now on to its handler."""
    _noted_in.set(None)


class _Factory:
    """Makes tasks as the loop did before."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __call__(self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any]
        task = asyncio.Task(coroutine, loop=loop, **options) if self._inner is None else self._inner(loop, coroutine, **options)
        if (noted := _noted_in.get()) is not None:
            noted[task] = None
            task.add_done_callback(noted.pop)
        return task
