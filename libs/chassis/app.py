"""A process's life: run until told to stop, drain, and go at once when told twice."""

import asyncio
import gc
import os
import resource
import select
import signal
import stat
import sys
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Final

import uvloop

_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_GC_ALLOCATIONS: Final = 20_000  # objects more than freed; ~5 MB of garbage in cycles at most before it is found
_GC_GENERATIONS: Final = 20
_MAX_OPEN_FILES: Final = 1_048_576  # Linux's own bound for a process; beyond it, also where there is no bound, it would be refused
_STDIN, _STDOUT, _STDERR = range(3)
_READ_BYTES: Final = 4_096  # of what nobody should write
_EXIT_BY_SIGNAL: Final = 128  # a shell's convention: the exit code of a process that a signal ended is 128 + its number


class Stop(asyncio.Event):
    """Set when the process shall stop: finish what has begun and return."""


def allow_open_files() -> None:
    """Let this process and its children hold as many files open as the system lets it choose.

    A connection is a file, and the usual 1,024 would leave the next device waiting unanswered.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = min(hard, _MAX_OPEN_FILES) if hard != resource.RLIM_INFINITY else _MAX_OPEN_FILES
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def prefer_throughput() -> None:
    """Ask for longer time slices: fewer preemptions while a batch is under way (docs/performance.md has the measurement)."""
    if hasattr(os, "sched_setscheduler"):
        try:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        except PermissionError:  # a container may forbid it: the server is slower, not wrong
            return


def is_pipe(file: int) -> bool:
    """Tell whether a file descriptor is something whose end one can wait for."""
    mode = os.fstat(file).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def run(main: Callable[[Stop], Awaitable[None]], *, until_stdin_ends: bool = False) -> None:
    """Run `main` on a uvloop event loop until it returns; raise what it raises.

    The first SIGINT or SIGTERM sets its Stop, the second ends the process at once, with 128 + its number and no cleanup. The end
    of stdin, if asked for and a pipe, sets it, too: whoever held its other end closed it or, however that came, is no more.
    """
    # What is imported lives as long as the process: never look through it again. And look less often: a batch makes thousands of
    # objects that are no garbage, and with the default threshold of 700 an eighth of the CPU went into finding that out.
    gc.freeze()
    gc.set_threshold(_GC_ALLOCATIONS, _GC_GENERATIONS, _GC_GENERATIONS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(main, until_stdin_ends))


async def _run(main: Callable[[Stop], Awaitable[None]], until_stdin_ends: bool) -> None:
    stop, loop = Stop(), asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        if stop.is_set():
            _exit_at_once(number, None)
        stop.set()
        # From now on not through the loop: a drain that blocks it must not hold up the second signal.
        for each in _STOP_SIGNALS:
            loop.remove_signal_handler(each)
            signal.signal(each, _exit_at_once)

    def on_stdin() -> None:
        if not os.read(_STDIN, _READ_BYTES):
            loop.remove_reader(_STDIN)
            _speak_to_nobody()
            stop.set()

    for each in _STOP_SIGNALS:
        loop.add_signal_handler(each, on_signal, each)
    if until_stdin_ends:
        loop.add_reader(_STDIN, on_stdin)
    try:
        await main(stop)
    finally:
        loop.remove_reader(_STDIN)
        for each in _STOP_SIGNALS:
            loop.remove_signal_handler(each)


def _speak_to_nobody() -> None:
    """Let what is said to somebody who is gone go nowhere: it would fail, and the drain with it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for output in (_STDOUT, _STDERR):
        listening = select.poll()
        listening.register(output, 0)
        if any(event & select.POLLERR for _, event in listening.poll(0)):
            os.dup2(nowhere, output)
    os.close(nowhere)


def _exit_at_once(number: int, _frame: FrameType | None) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(_EXIT_BY_SIGNAL + number)
