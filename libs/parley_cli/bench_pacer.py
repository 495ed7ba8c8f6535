"""When things are due, to some 50 us: the loop's own timers round to whole milliseconds, as much as what is measured."""

import asyncio
import ctypes
import os
import random
import time
from collections.abc import AsyncIterator

_CLOCK_MONOTONIC = 1  # linux/time.h; time.monotonic and the loop read the same clock
_TFD_TIMER_ABSTIME = 1


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _TimeSpec), ("value", _TimeSpec))


class Alarm:
    """A Linux timerfd on the running loop (os.timerfd_create came with Python 3.13 only). One waiter."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._rang = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._ring)

    async def wait_until(self, moment: float) -> None:
        """Return at a moment of time.monotonic, at once if it has passed."""
        if moment <= time.monotonic():
            return
        self._rang.clear()
        at = _TimerSpec(value=_TimeSpec(int(moment), int(moment % 1 * 1e9)))
        if self._libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, ctypes.byref(at), None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")
        await self._rang.wait()

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _ring(self) -> None:
        os.read(self._fd, 8)
        self._rang.set()


async def arrivals(rate: float, seconds: float, rng: random.Random) -> AsyncIterator[float]:
    """Yield the moments of a Poisson process for so long, each when it is due or, after a delay, as soon as can be.

    Nothing is left out when the consumer is late: what it measures from the moment on includes its wait.
    """
    alarm = Alarm()
    try:
        due = time.monotonic()
        end = due + seconds
        while (due := due + rng.expovariate(rate)) < end:
            await alarm.wait_until(due)
            yield due
    finally:
        alarm.close()
