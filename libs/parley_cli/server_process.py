"""A server of one's own: `parley up` as a subprocess on a free port, watched, stopped or killed."""

import asyncio
import os
import re
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
import uvloop

from chassis.embedded import LOCK_FILE
from parley_cli.failures import CommandError
from parley_cluster.spawn import PIPE, STDOUT, Spawned, spawn

T = TypeVar("T")

READY_SECONDS = 30.0  # ready takes < 3 s; the rest is for a machine that does other things
STOP_SECONDS = 10.0  # a drain takes < 5 s
_READY = re.compile(rb"\bready\b.*?([\w.\-\[\]:]+:\d+)")
_KEPT_LINES = 30  # of the server's output, for the message when it fails


class ServerProcess:
    """A running `parley up`."""

    def __init__(self, process: Spawned) -> None:
        self._process = process
        self._ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._lines: deque[bytes] = deque(maxlen=_KEPT_LINES)
        self._output = asyncio.create_task(self._read_output(), name="server-output")
        self.pid = process.pid

    async def wait_ready(self) -> str:
        """Return the address that the server names as ready. Raises CommandError with its last words if it does not come up."""
        try:
            return await asyncio.wait_for(asyncio.shield(self._ready), READY_SECONDS)
        except TimeoutError:
            raise CommandError(f"the server did not become ready within {READY_SECONDS:.0f} s{self.last_words()}") from None

    def last_words(self) -> str:
        """Return the end of the server's output, indented below what failed."""
        return "".join(f"\n  {line.decode(errors='replace').rstrip()}" for line in self._lines)

    async def kill(self) -> None:
        """End it as a power cut would: SIGKILL, no drain, nothing flushed."""
        self._process.signal(signal.SIGKILL)
        await self._process.wait()
        await self._output

    async def stop(self) -> None:
        """Ask it to drain and wait. Raises CommandError if it does not end well in time (it is killed then)."""
        self._process.signal(signal.SIGTERM)
        try:
            code = await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
        except TimeoutError:
            await self.kill()
            raise CommandError(f"the server did not stop within {STOP_SECONDS:.0f} s{self.last_words()}") from None
        await self._output
        if code != 0:
            raise CommandError(f"the server ended with exit code {code}{self.last_words()}")

    async def _read_output(self) -> None:
        async for line in self._process.stdout:
            self._lines.append(line)
            if not self._ready.done() and (found := _READY.search(line)):
                self._ready.set_result(found[1].decode())
        if not self._ready.done():
            self._ready.set_exception(CommandError(f"the server ended before it was ready{self.last_words()}"))
            self._ready.exception()  # it may be nobody's business any more


@asynccontextmanager
async def open_server_process(
    data_dir: Path, *, listen: str = "127.0.0.1:0", environ: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[ServerProcess, str]]:
    """Start `parley up` and yield it with its address once it is ready; on leaving, whatever happened, it is gone.

    Should we be killed, it ends by itself: nobody holds its stdin any more.
    """
    command = (sys.executable, "-m", "parley_cli", "up", "--listen", listen, "--data", str(data_dir), "--until-stdin-ends")
    process = await spawn(command, environ=os.environ | dict(environ or {}), stdin=PIPE, stderr=STDOUT)
    server = ServerProcess(process)
    try:
        yield server, await server.wait_ready()
    except BaseException:
        await asyncio.shield(server.kill())
        raise
    else:
        if process.code is None:
            await server.stop()
    finally:
        await server.kill()


def pid_of_server(data_dir: Path) -> int | None:
    """Return the process that holds a data folder, as its lock file names it, if it runs on this machine."""
    try:
        pid = int((data_dir / LOCK_FILE).read_text(encoding="ascii"))
        os.kill(pid, 0)
    except (OSError, ValueError):
        return None
    return pid


def run_until_signal(main: Coroutine[Any, Any, T]) -> T:
    """Run a command on an event loop of its own. Ctrl-C and SIGTERM cancel it, so that what it started ends in order."""

    async def guarded() -> T:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await main

    try:
        return uvloop.run(guarded())
    except asyncio.CancelledError:
        raise click.exceptions.Exit(128 + signal.SIGTERM) from None
