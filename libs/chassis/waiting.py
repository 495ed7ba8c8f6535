"""Wait for an engine that is not there yet: say so, and give up after a bound with a clear error."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Final, TypeVar

import structlog

from chassis.clock import Clock
from chassis.readiness import Readiness

_T = TypeVar("_T")
_PAUSE_SECONDS: Final = 0.5  # between two tries: engines take seconds to come up
_SAY_SECONDS: Final = 5.0  # between two lines about it

log = structlog.get_logger()


class EnginesAbsentError(Exception):
    """An engine did not come up in time."""


@asynccontextmanager
async def open_when_there(
    name: str,
    opening: Callable[[], AbstractAsyncContextManager[_T]],
    *,
    absent: type[Exception],
    seconds: float,
    clock: Clock,
    readiness: Readiness,
) -> AsyncIterator[_T]:
    """Enter what `opening` makes, again and again while entering raises `absent`.

    While it waits, `readiness` says why, and the log tells. Raises EnginesAbsentError after `seconds`; any
    other error at once: what is wrong with more than the engine's presence does not get better by waiting.
    """
    begin = clock.monotonic()
    told = -_SAY_SECONDS
    async with AsyncExitStack() as stack:
        while True:
            try:
                opened = await stack.enter_async_context(opening())
                break
            except absent as error:
                readiness.report(name, str(error))
                waited = clock.monotonic() - begin
                if waited >= seconds:
                    raise EnginesAbsentError(f"{name} is not there after {seconds:g} s: {error}") from error
                if waited - told >= _SAY_SECONDS:
                    told = waited
                    log.warning("service.waiting", engine=name, why=str(error), gives_up_in=round(seconds - waited))
                await asyncio.sleep(_PAUSE_SECONDS)
        readiness.report(name)
        if told >= 0:
            log.warning("service.waited", engine=name, seconds=round(clock.monotonic() - begin, 1))
        yield opened
