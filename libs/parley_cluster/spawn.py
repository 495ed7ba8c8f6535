"""Start a process from an event loop so that nothing of ours runs in it before its own program does.

What is forked from a process with threads may do little but exec: it has copies of locks and memory that other threads were at
work on. uvloop does more there: it runs Python's handlers for a child (PyOS_AfterFork_Child, `os.register_at_fork`), and fork(2)
those of every library (pthread_atfork). Beside gRPC's threads a busy process's children died of SIGSEGV before they were anything.
`subprocess` without preexec_fn takes vfork(2) on Linux, with which no handler runs and no memory is copied; elsewhere it forks,
and still runs no line of Python.
"""

import asyncio
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Final

DEVNULL: Final = subprocess.DEVNULL
PIPE: Final = subprocess.PIPE
STDOUT: Final = subprocess.STDOUT
_LINE_BYTES: Final = 1 << 20  # the longest line that readers may ask for


class Spawned:
    """A process that was started; made by `spawn`. Whoever has it reads its pipes to their ends, ends it and waits for it."""

    def __init__(self, process: "subprocess.Popen[bytes]", ended: "asyncio.Future[int]", pipes: "Sequence[_Pipe]") -> None:
        self.pid = process.pid
        self.stdout = pipes[0].reader
        self.stderr = pipes[1].reader if len(pipes) > 1 else None
        self._process = process
        self._ended = ended
        self._pipes = pipes

    @property
    def code(self) -> int | None:
        """Its exit code, negative for the signal that ended it; None: it runs."""
        return self._ended.result() if self._ended.done() else None

    async def wait(self) -> int:
        """Wait for its end, and until all that it said can be read; return its exit code."""
        for pipe in self._pipes:
            await pipe.closed.wait()
        return await asyncio.shield(self._ended)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; nothing happens if it has ended."""
        self._process.send_signal(number)

    def tell(self, line: str) -> None:
        """Write a line to its stdin, which was asked for as a pipe; nothing happens if it has ended.

        Short ones only: what a pipe does not take at once blocks.
        """
        assert self._process.stdin
        with suppress(BrokenPipeError, ValueError):  # ValueError: it was waited for, and the pipe is closed
            self._process.stdin.write(f"{line}\n".encode())


class _Pipe(asyncio.StreamReaderProtocol):
    """What a process says on one pipe, and whether our end of it is closed: the loop can't be before that is."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.reader = asyncio.StreamReader(_LINE_BYTES, loop)
        self.closed = asyncio.Event()
        self._connection: asyncio.BaseTransport | None = None
        super().__init__(self.reader, loop=loop)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connection = transport

    def close(self) -> None:
        """Hear no more."""
        if self._connection is not None:
            self._connection.close()

    def eof_received(self) -> bool:
        super().eof_received()
        return False  # nothing is ever written here: close it

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.closed.set()


async def spawn(
    command: Sequence[str], *, environ: Mapping[str, str] | None = None, stdin: int = DEVNULL, stderr: int | None = None
) -> Spawned:
    """Start a command in a session of its own: Ctrl-C in the terminal is its starter's alone. Raises OSError.

    Its stdout is a pipe. `stderr` is PIPE, STDOUT, or ours; `environ` is all of its environment, or ours.
    """
    process = _begin(command, environ, stdin, stderr)
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()
    # A thread for each, which sleeps: the loop's pool has few, and uvloop watches only what it has forked itself.
    threading.Thread(target=_wait, args=(process, loop, ended), name=f"wait {process.pid}", daemon=True).start()
    files = [file for file in (process.stdout, process.stderr) if file]
    pipes: list[_Pipe] = []
    try:
        for file in files:
            pipes.append(await _connect(loop, file))  # noqa: PERF401 - those that came so far are closed below
    except BaseException:  # a cancellation: nobody would have it
        process.kill()
        for pipe in pipes:
            pipe.close()  # and its file: closed by us, it would stay with the loop, under a number that others get
        for file in files[len(pipes) :]:
            file.close()
        raise
    return Spawned(process, ended, pipes)


def _begin(command: Sequence[str], environ: Mapping[str, str] | None, stdin: int, stderr: int | None) -> "subprocess.Popen[bytes]":
    """Return once the program runs, which takes the loop's thread a millisecond: whoever is on a leash hangs on that thread."""
    return subprocess.Popen(command, bufsize=0, stdin=stdin, stdout=PIPE, stderr=stderr, env=environ, start_new_session=True)


async def _connect(loop: asyncio.AbstractEventLoop, file: IO[bytes]) -> _Pipe:
    _, pipe = await loop.connect_read_pipe(lambda: _Pipe(loop), file)
    return pipe


def _wait(process: "subprocess.Popen[bytes]", loop: asyncio.AbstractEventLoop, ended: "asyncio.Future[int]") -> None:
    code = process.wait()
    if process.stdin:
        process.stdin.close()
    with suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(ended.set_result, code)
