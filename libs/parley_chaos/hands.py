"""What does the faults: signals to processes, engines that go and come, links that go bad. Each proves that it happened."""

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

from chassis.eventlog import LogUnavailableError
from parley_chaos.clocks import Jumper
from parley_chaos.plan import Fault, Kind
from parley_chaos.proxy import Link
from parley_chaos.rebalance import join_group
from parley_cluster.supervisor import Child, Supervisor
from parley_engines.errors import EngineError
from parley_engines.native import NativeEngines

T = TypeVar("T")
_BACK_SECONDS: Final = 90.0  # for a service to be ready again: engines may be slow while it starts
_LOOK_SECONDS: Final = 0.05  # nothing tells that a process has stopped
_ENGINE_TRIES: Final = 3  # of 90 s each
_MET_SECONDS: Final = 30.0  # until somebody meets a fault that lasts: whoever has no other reason looks for signs of life
_JUMP_SECONDS: Final = 3600  # what G20 promises to survive


class NotProvenError(Exception):
    """A fault did not happen as it should have, so a run with it proves nothing."""


class NotBackError(Exception):
    """A service that was ended does not come back."""


Meanwhile = Callable[[], Awaitable[None]]


class Hands:
    """Does faults, also two at once."""

    def __init__(
        self,
        supervisor: Supervisor,
        engines: NativeEngines,
        links: Mapping[str, Link],
        clocks: Mapping[str, Jumper],
        environ: Mapping[str, str],
        executor: ThreadPoolExecutor,
    ) -> None:
        self._supervisor = supervisor
        self._engines = engines
        self._links = links
        self._clocks = clocks
        self._environ = environ
        self._executor = executor

    async def do(self, fault: Fault, meanwhile: Meanwhile) -> str:
        """Do a fault for its time and heal it; return what proves that it happened. Raises NotProvenError, NotBackError.

        `meanwhile` is awaited while a fault that lasts does.
        """
        match fault.kind:
            case Kind.KILL | Kind.RESTART | Kind.DRAIN:
                return await self._end_service(fault)
            case Kind.STOP:
                child = self._supervisor.children[fault.target]
                return await self._stop_process(child.pid, fault, meanwhile)
            case Kind.STOP_ENGINE:
                return await self._stop_process(await self._engine_pid(fault.target), fault, meanwhile)
            case Kind.KILL_ENGINE | Kind.RESTART_ENGINE | Kind.FORGET:
                return await self._end_engine(fault, meanwhile)
            case Kind.CLOCK_AHEAD | Kind.CLOCK_BEHIND:
                return await self._jump(self._clocks[fault.target], fault)
            case Kind.REBALANCE:
                return await self._rebalance(fault)
            case _:
                return await self._spoil(self._links[fault.target], fault, meanwhile)

    async def _end_service(self, fault: Fault) -> str:
        child = self._supervisor.children[fault.target]
        pid, starts = child.pid, child.starts
        if not pid:
            raise NotProvenError(f"{fault.target} does not run")
        os.kill(pid, signal.SIGKILL if fault.kind is Kind.KILL else signal.SIGTERM)
        await self._wait(child, lambda: child.starts > starts, "started again")
        return f"process {pid} ended, {child.pid} came"

    async def wait_whole(self) -> None:
        """Wait until all services are ready. Raises NotBackError."""
        for child in self._supervisor.children.values():
            await self._wait(child, child.ready.is_set, "ready")

    async def _wait(self, child: Child, reached: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(_BACK_SECONDS):
                while not reached():  # noqa: ASYNC110  # seldom looked at, and conditions of several kinds
                    await asyncio.sleep(_LOOK_SECONDS)
        except TimeoutError:
            raise NotBackError(f"{child.spec.name} is not {what} after {_BACK_SECONDS:g} s{child.last_words()}") from None

    async def _stop_process(self, pid: int, fault: Fault, meanwhile: Meanwhile) -> str:
        if not pid:
            raise NotProvenError(f"{fault.target} does not run")
        os.kill(pid, signal.SIGSTOP)
        try:
            while _state_of(pid) != "T":  # noqa: ASYNC110  # the kernel has no event for it
                await asyncio.sleep(_LOOK_SECONDS)
            before, begin = _cpu_of(pid), time.monotonic()
            await asyncio.sleep(fault.seconds)
            await meanwhile()
            if _cpu_of(pid) != before:
                raise NotProvenError(f"{fault.target} went on while it was stopped")
        finally:
            os.kill(pid, signal.SIGCONT)
        return f"process {pid} used no CPU for {time.monotonic() - begin:.1f} s"

    async def _end_engine(self, fault: Fault, meanwhile: Meanwhile) -> str:
        name = fault.target
        pid = await self._engine_pid(name)
        if fault.kind is Kind.KILL_ENGINE:
            os.kill(pid, signal.SIGKILL)
        await self._run(lambda: self._engines.down([name]))
        lost = ""
        if fault.kind is Kind.FORGET:
            shutil.rmtree(self._engines.data / name / "data")
            lost = " without its data"
        await asyncio.sleep(fault.seconds)
        await meanwhile()
        await self._bring_back(name)
        after = await self._engine_pid(name)
        if after == pid:
            raise NotProvenError(f"{name} is still the same process")
        return f"process {pid} ended, {after} came back{lost}"

    async def _bring_back(self, name: str) -> None:
        """Start an engine; one that a crowded machine keeps from being ready in time is started again."""
        for tries_left in reversed(range(_ENGINE_TRIES)):
            try:
                await self._run(lambda: self._engines.up([name]))
            except EngineError:
                if not tries_left:
                    raise
            else:
                return

    async def _engine_pid(self, name: str) -> int:
        started, _ = (await self._run(lambda: self._engines.status([name])))[name]
        if started is None:
            raise NotProvenError(f"{name} does not run")
        return started.pid

    async def _spoil(self, link: Link, fault: Fault, meanwhile: Meanwhile) -> str:
        link.spoil(fault.kind)
        try:
            await asyncio.sleep(fault.seconds)
            await meanwhile()
            await _until(lambda: link.touched > 0, f"nothing went over {link.name} while it was spoilt")
        finally:
            touched = link.touched
            link.heal()
        return f"met {touched} reads or connections"

    async def _jump(self, clock: Jumper, fault: Fault) -> str:
        before = clock.told()
        clock.jump(_JUMP_SECONDS if fault.kind is Kind.CLOCK_AHEAD else -_JUMP_SECONDS)
        try:
            await asyncio.sleep(fault.seconds)
            await _until(lambda: clock.told() > before, f"nobody asked what time it is at {fault.target}")
        finally:
            clock.jump(0)
        return f"a wrong time was told {clock.told() - before} times"

    async def _rebalance(self, fault: Fault) -> str:
        try:
            joined = await join_group(self._environ, fault.target, fault.seconds)
        except (LogUnavailableError, TimeoutError) as error:
            raise NotProvenError(f"nobody could join the group {fault.target}: {error!r}") from error
        return f"partitions {sorted(joined.partitions)} went to another member, {joined.records} records with them"

    async def _run(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)


async def _until(met: Callable[[], bool], otherwise: str) -> None:
    """Wait until somebody has met a fault. Raises NotProvenError."""
    try:
        async with asyncio.timeout(_MET_SECONDS):
            while not met():  # noqa: ASYNC110  # it stands in a file, or is counted far away
                await asyncio.sleep(_LOOK_SECONDS)
    except TimeoutError:
        raise NotProvenError(otherwise) from None


def _state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _cpu_of(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


@contextmanager
def open_engine_thread() -> Iterator[ThreadPoolExecutor]:
    """Own the one thread that starts engines: those on a leash end with it, so it is to outlive whoever uses them."""
    executor = ThreadPoolExecutor(1, "chaos-engines")
    try:
        yield executor
    finally:
        executor.shutdown()
