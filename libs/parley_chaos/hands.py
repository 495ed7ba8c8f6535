"""What does the faults: signals to processes, engines that go and come, links that go bad. Each proves that it happened."""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar

from parley_chaos.plan import Fault, Kind
from parley_chaos.proxy import Link
from parley_cluster.supervisor import Child, Supervisor
from parley_engines.native import NativeEngines

T = TypeVar("T")
_BACK_SECONDS: Final = 90.0  # for a service to be ready again: engines may be slow while it starts
_LOOK_SECONDS: Final = 0.05  # nothing tells that a process has stopped


class NotProvenError(Exception):
    """A fault did not happen as it should have, so a run with it proves nothing."""


class Hands:
    """Does one fault at a time; made by `open_hands`."""

    def __init__(
        self, supervisor: Supervisor, engines: NativeEngines, links: Mapping[str, Link], executor: ThreadPoolExecutor
    ) -> None:
        self._supervisor = supervisor
        self._engines = engines
        self._links = links
        self._executor = executor

    async def do(self, fault: Fault) -> str:
        """Do a fault for its time and heal it; return what proves that it happened. Raises NotProvenError."""
        match fault.kind:
            case Kind.KILL | Kind.DRAIN:
                return await self._end_service(fault)
            case Kind.STOP:
                child = self._supervisor.children[fault.target]
                return await self._stop_process(child.pid, fault)
            case Kind.STOP_ENGINE:
                return await self._stop_process(await self._engine_pid(fault.target), fault)
            case Kind.KILL_ENGINE | Kind.RESTART_ENGINE | Kind.FORGET:
                return await self._end_engine(fault)
            case _:
                return await self._spoil(self._links[fault.target], fault)

    async def _end_service(self, fault: Fault) -> str:
        child = self._supervisor.children[fault.target]
        pid, starts = child.pid, child.starts
        os.kill(pid, signal.SIGKILL if fault.kind is Kind.KILL else signal.SIGTERM)
        await self._wait(child, lambda: child.starts > starts, "started again")
        return f"process {pid} ended, {child.pid} came"

    async def wait_whole(self) -> None:
        """Wait until all services are ready. Raises NotProvenError: one does not come back."""
        for child in self._supervisor.children.values():
            await self._wait(child, child.ready.is_set, "ready")

    async def _wait(self, child: Child, reached: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(_BACK_SECONDS):
                while not reached():  # noqa: ASYNC110  # seldom looked at, and conditions of several kinds
                    await asyncio.sleep(_LOOK_SECONDS)
        except TimeoutError:
            raise NotProvenError(f"{child.spec.name} is not {what} after {_BACK_SECONDS:g} s{child.last_words()}") from None

    async def _stop_process(self, pid: int, fault: Fault) -> str:
        os.kill(pid, signal.SIGSTOP)
        try:
            while _state_of(pid) != "T":  # noqa: ASYNC110  # the kernel has no event for it
                await asyncio.sleep(_LOOK_SECONDS)
            before = _cpu_of(pid)
            await asyncio.sleep(fault.seconds)
            if _cpu_of(pid) != before:
                raise NotProvenError(f"{fault.target} went on while it was stopped")
        finally:
            os.kill(pid, signal.SIGCONT)
        return f"process {pid} used no CPU for {fault.seconds:.1f} s"

    async def _end_engine(self, fault: Fault) -> str:
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
        await self._run(lambda: self._engines.up([name]))
        after = await self._engine_pid(name)
        if after == pid:
            raise NotProvenError(f"{name} is still the same process")
        return f"process {pid} ended, {after} came back{lost}"

    async def _engine_pid(self, name: str) -> int:
        started, _ = (await self._run(lambda: self._engines.status([name])))[name]
        if started is None:
            raise NotProvenError(f"{name} does not run")
        return started.pid

    async def _spoil(self, link: Link, fault: Fault) -> str:
        link.spoil(fault.kind)
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            touched = link.touched
            link.heal()
        if not touched:
            raise NotProvenError(f"nothing went over {link.name} while it was spoilt")
        return f"met {touched} reads or connections"

    async def _run(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)


def _state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _cpu_of(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


@asynccontextmanager
async def open_hands(supervisor: Supervisor, engines: NativeEngines, links: Mapping[str, Link]) -> AsyncIterator[Hands]:
    """Lend hands. One thread starts all engines: those on a leash end with it."""
    executor = ThreadPoolExecutor(1, "chaos-engines")
    try:
        yield Hands(supervisor, engines, links, executor)
    finally:
        executor.shutdown()
