"""One small supervisor: processes that are started in order, started again when they end, and stopped in order.

A process is ready when it says so on stdout. What it says on stderr is passed on, each line under its name. The addresses that it
has bound are pinned: it comes back where it was, so that whoever reached it reaches it again.
"""

import asyncio
import os
import re
import signal
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from chassis.service import EXIT_UNUSABLE, STOP_SECONDS
from parley_cluster.spawn import PIPE, spawn
from parley_engines.leash import on_leash

READY_SECONDS: Final = 90.0  # to be ready for the first time; engines are there, so it takes seconds
KILL_SECONDS: Final = STOP_SECONDS + 5.0  # a process ends by itself sooner, or hangs as a whole
_FIRST_PAUSE_SECONDS: Final = 0.2
_LAST_PAUSE_SECONDS: Final = 5.0
_STEADY_SECONDS: Final = 20.0  # one that ran for so long is started again at once
_FIRST_TRIES: Final = 3  # of one that was never ready: it would not be the fourth time
_KEPT_LINES: Final = 30  # of what it said, for when it fails
_ADDRESS: Final = r"[\w.\-\[\]:]+:\d+"

log = structlog.get_logger()


class ProcessFailedError(Exception):
    """A process can't begin; the message holds its last words."""


@dataclass(frozen=True)
class Spec:
    """One process to keep running."""

    name: str  # of this process among all: gateway-1
    role: str  # what it is: gateway
    command: Sequence[str]
    environ: Mapping[str, str]  # all of it
    # What its ready line tells -> the setting that pins it for the next start.
    pins: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Child:
    """A process as it is now; `addresses` are by what its ready line calls them, "" being where it serves."""

    spec: Spec
    pid: int = 0  # 0: it does not run
    starts: int = 0
    addresses: dict[str, str] = field(default_factory=dict)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    stopping: bool = False
    lines: "deque[str]" = field(default_factory=lambda: deque(maxlen=_KEPT_LINES))

    def last_words(self) -> str:
        """Return the end of what it said, indented below what failed."""
        return "".join(f"\n  {line}" for line in self.lines)


def ready_addresses(line: str) -> dict[str, str] | None:
    """Read a ready line: `gateway is ready on A, internal on B, metrics on http://C/metrics`; None: it is another line."""
    if not (found := re.search(rf"\bis ready on ({_ADDRESS})", line)):
        return None
    others = re.findall(rf", (\w+) on (?:http://)?({_ADDRESS})", line)
    return {"": found[1], **dict(others)}


class Supervisor:
    """Keeps processes running; made by `open_supervisor`."""

    def __init__(self, say: Callable[[str, str], None], changed: Callable[[], None]) -> None:
        self.children: dict[str, Child] = {}
        self._say = say
        self._changed = changed
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def start(self, specs: Iterable[Spec]) -> None:
        """Start processes together and wait until all are ready. Raises ProcessFailedError."""
        started = [Child(spec) for spec in specs]
        for child in started:
            self.children[child.spec.name] = child
            self._keepers[child.spec.name] = asyncio.create_task(self._keep(child), name=f"supervisor.{child.spec.name}")
        ready = asyncio.ensure_future(_all_ready(started))
        try:
            await asyncio.wait({ready, self._failed}, timeout=READY_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if self._failed.done():
                self._failed.result()
            if not ready.done():
                late = next(child for child in started if not child.ready.is_set())
                raise ProcessFailedError(f"{late.spec.name} was not ready within {READY_SECONDS:g} s{late.last_words()}")
        finally:
            ready.cancel()

    async def wait_failed(self) -> None:
        """Wait until a process can't be started again at all, and raise ProcessFailedError."""
        await asyncio.shield(self._failed)

    async def stop(self, names: Iterable[str]) -> None:
        """Ask processes to drain, all at once, and wait until they have ended; one that does not is killed."""
        chosen = [self.children[name] for name in names]
        for child in chosen:
            child.stopping = True
            _signal(child, signal.SIGTERM)
        keepers = [self._keepers[child.spec.name] for child in chosen]
        if keepers:
            _, late = await asyncio.wait(keepers, timeout=KILL_SECONDS)
            for child in chosen:
                if self._keepers[child.spec.name] in late:
                    log.error("supervisor.killed", process=child.spec.name, after_seconds=KILL_SECONDS)
                    _signal(child, signal.SIGKILL)
            if late:
                await asyncio.wait(late)

    async def kill_all(self) -> None:
        """End what still runs, at once."""
        for child in self.children.values():
            child.stopping = True
            _signal(child, signal.SIGKILL)
        if self._keepers:
            await asyncio.wait(self._keepers.values())

    async def _keep(self, child: Child) -> None:
        """Run the process, again and again, until it is to stop."""
        pause = 0.0
        while not child.stopping:
            if pause:
                await asyncio.sleep(pause)
                if child.stopping:
                    return
            begin = time.monotonic()
            code = await self._run(child)
            if child.stopping:
                return
            ran = time.monotonic() - begin
            if not child.addresses and (code == EXIT_UNUSABLE or child.starts >= _FIRST_TRIES):
                if not self._failed.done():
                    self._failed.set_exception(ProcessFailedError(f"{child.spec.name} can't begin{child.last_words()}"))
                    self._failed.exception()  # it may be nobody's business any more
                return
            # One that was told to end (for an upgrade), or ran well so far, is back at once.
            well = code == 0 or ran >= _STEADY_SECONDS
            pause = 0.0 if well else min(_LAST_PAUSE_SECONDS, 2 * pause or _FIRST_PAUSE_SECONDS)
            log.warning("supervisor.ended", process=child.spec.name, code=code, after_seconds=round(ran, 1), again_in=pause)

    async def _run(self, child: Child) -> int:
        """Run it once; return its exit code, negative for the signal that ended it."""
        spec = child.spec
        child.ready.clear()
        pinned = {spec.pins[name]: address for name, address in child.addresses.items() if name in spec.pins}
        process = await spawn(on_leash(spec.command, Path.cwd()), environ={**spec.environ, **pinned}, stderr=PIPE)
        child.pid = process.pid
        child.starts += 1
        self._changed()
        if child.stopping:
            _signal(child, signal.SIGKILL)  # it was told to stop while it was being born
        assert process.stderr is not None
        try:
            await asyncio.gather(
                self._follow(child, process.stdout, self._on_stdout), self._follow(child, process.stderr, self._on_stderr)
            )
            return await process.wait()
        finally:
            child.pid = 0
            child.ready.clear()
            self._changed()

    async def _follow(self, child: Child, stream: asyncio.StreamReader, on_line: Callable[[Child, str], None]) -> None:
        rest = b""
        while chunk := await stream.read(65536):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                on_line(child, line.decode(errors="replace"))
        if rest:
            on_line(child, rest.decode(errors="replace"))

    def _on_stdout(self, child: Child, line: str) -> None:
        child.lines.append(line)
        if (addresses := ready_addresses(line)) is not None:
            child.addresses = addresses
            child.ready.set()
            self._changed()

    def _on_stderr(self, child: Child, line: str) -> None:
        child.lines.append(line)
        self._say(child.spec.name, line)


async def _all_ready(children: Sequence[Child]) -> None:
    for child in children:
        await child.ready.wait()


def _signal(child: Child, number: signal.Signals) -> None:
    if child.pid:
        with suppress(ProcessLookupError):
            os.kill(child.pid, number)


@asynccontextmanager
async def open_supervisor(say: Callable[[str, str], None], changed: Callable[[], None]) -> AsyncIterator[Supervisor]:
    """Own processes: leaving ends at once what still runs; `stop` before.

    `say` gets each line that a process writes to stderr, with its name; `changed` is called after one started, became ready, or
    ended.
    """
    supervisor = Supervisor(say, changed)
    try:
        yield supervisor
    finally:
        await asyncio.shield(supervisor.kill_all())
