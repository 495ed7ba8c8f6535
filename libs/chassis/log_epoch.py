"""Which log the tables belong to by now, as those ask who serve one of them."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from chassis.timeline import TimelineUnavailableError

_LOOK_SECONDS: Final = 5.0  # the epoch is raised once in years, by hand


async def wait_superseded(read_epoch: Callable[[], Awaitable[int]], ours: int) -> int:
    """Wait until the tables belong to a newer log epoch than ours; return it.

    No answer (TimelineUnavailableError) is asked again, for reads and writes tell of it: only the tables' own word ends a process.
    """
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        try:
            epoch = await read_epoch()
        except TimelineUnavailableError:
            continue
        if epoch > ours:
            return epoch
