"""One process's life: run, be told to stop, drain; told twice, end at once."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable

import uvloop

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_KILLED = 128  # a shell's convention: 128 + the signal


class Stop(asyncio.Event):
    """Set when the process is asked to end; whoever waits for it drains."""


def run(main: Callable[[Stop], Awaitable[None]]) -> None:
    """Run `main` on uvloop until it returns. The first SIGINT or SIGTERM sets its Stop, the second ends the process at once."""

    async def guarded() -> None:
        stop = Stop()
        loop = asyncio.get_running_loop()

        def on_signal(number: signal.Signals) -> None:
            if stop.is_set():
                os._exit(_KILLED + number)  # no cleanup on purpose: draining is what takes too long for somebody
            stop.set()

        for number in _SIGNALS:
            loop.add_signal_handler(number, on_signal, number)
        try:
            await main(stop)
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    uvloop.run(guarded())
