"""Calls of one moment made as one: what costs the same for ten as for one is paid once.

Partitions of a log are worked on side by side, each with a few records at a time, and all of them go to the same engines and
services.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Joined(Generic[T, R]):
    """The first to call takes along whoever calls in the same turn of the loop; they share its result, or its error.

    `given_up` makes the error of those whose first caller was cancelled: what they wanted may have been done.
    """

    def __init__(self, call: Callable[[Sequence[T]], Awaitable[R]], given_up: Callable[[], Exception]) -> None:
        self._call = call
        self._given_up = given_up
        self._joining: list[tuple[Sequence[T], asyncio.Future[R]]] | None = None

    async def __call__(self, items: Sequence[T]) -> R:
        """Return what the call with the items of all returned, or raise what it raised."""
        if self._joining is not None:
            future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
            self._joining.append((items, future))
            return await future
        joining = self._joining = []
        try:
            try:
                await asyncio.sleep(0)
            finally:
                self._joining = None
            result = await self._call([*items, *(item for others, _ in joining for item in others)])
        except BaseException as error:
            for _, future in joining:
                if not future.done():  # else its caller was cancelled
                    future.set_exception(error if isinstance(error, Exception) else self._given_up())
            raise
        for _, future in joining:
            if not future.done():
                future.set_result(result)
        return result
