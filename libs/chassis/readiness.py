"""Whether a process should be given work, and if not, why: what `/healthz` and gRPC health tell.

A process is live while its loop answers, and ready while everything answers that it can't work without. Live and not ready means:
send work elsewhere, and leave it running, for it becomes ready by itself or waits for a person, as its reason says. So that this is
true of an idle process, too, the engines are asked for a sign of life now and then. A composition root does it in this order:

    async with open_readiness() as readiness:  # says "starting"
        ... open_metrics_server(bind, registry, readiness)  # GET /healthz, GET /livez
        ... open engines and services, open_server(bind=..., register=..., readiness=readiness)  # grpc.health.v1
        readiness.watch(store.probes)  # from now on as ready as what is asked
        ...
        readiness.report(PROCESS, "draining")  # when told to stop, before anything is closed

What a service can do without for a while (the registry: its last table is kept) is no part of it.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final

import grpc.aio

from chassis.eventlog import LogUnavailableError
from chassis.registry import RegistryUnavailableError
from chassis.tasks import Tasks, open_tasks
from chassis.timeline import TimelineUnavailableError

Probe = Callable[[], Awaitable[object]]

PROCESS: Final = "process"  # the component that is the process's own life: starting, draining
PROBE_INTERVAL_SECONDS: Final = 2.0  # an engine's loss shows within seconds, and costs it one small question a process
PROBE_SECONDS: Final = 5.0  # an engine that is merely busy answers sooner; also what an engine that hangs takes to show
_NOT_ASKED: Final = "not asked yet"


class NotReadyError(Exception):
    """What a probe raises whose component can't work for a reason of its own."""


_UNAVAILABLE: Final = (
    NotReadyError, LogUnavailableError, TimelineUnavailableError, RegistryUnavailableError, grpc.aio.AioRpcError, OSError,
)  # fmt: skip


class Readiness:
    """What components report; made by `open_readiness`."""

    def __init__(self, tasks: Tasks, interval_seconds: float, timeout_seconds: float) -> None:
        self._tasks = tasks
        self._interval_seconds = interval_seconds
        self._timeout_seconds = timeout_seconds
        self._problems = {PROCESS: "starting"}
        self._changed = asyncio.Event()

    @property
    def ready(self) -> bool:
        """Tell whether no component has a problem."""
        return not any(self._problems.values())

    @property
    def problems(self) -> Mapping[str, str]:
        """Return the components' problems, for a person; an empty text is none."""
        return self._problems

    def report(self, component: str, problem: str = "") -> None:
        """Note why a component can't work, or that it can."""
        if self._problems.get(component) != problem:
            self._problems[component] = problem
            self._changed.set()
            self._changed = asyncio.Event()

    async def wait_until(self, ready: bool) -> None:
        """Wait until the process is ready, or is not."""
        while self.ready is not ready:
            await self._changed.wait()

    async def wait_asked(self) -> None:
        """Wait until each component that is watched has been asked once, whatever came of it."""
        while _NOT_ASKED in self._problems.values():
            await self._changed.wait()

    def describe(self) -> str:
        """Return what `/healthz` says: JSON, whether ready and each component's problem or `ok`."""
        components = {name: problem or "ok" for name, problem in sorted(self._problems.items())}
        return json.dumps({"ready": self.ready, "components": components}, indent=2, ensure_ascii=False) + "\n"

    def watch(self, probes: Mapping[str, Probe]) -> None:
        """End the start, and ask each component for a sign of life, over and over: not ready until all have answered once.

        A probe raises what its port calls unavailable, or NotReadyError. Anything else that it raises is a bug: it is logged with
        its traceback, and the component stays unready.
        """
        for name, probe in probes.items():
            self.report(name, _NOT_ASKED)
            self._tasks.spawn(self._ask(name, probe), name=name)
        self.report(PROCESS)

    async def _ask(self, name: str, probe: Probe) -> None:
        while True:
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    await probe()
            except TimeoutError:
                self.report(name, f"no answer within {self._timeout_seconds:g} s")
            except _UNAVAILABLE as error:
                self.report(name, str(error) or type(error).__name__)
            except Exception as error:
                self.report(name, f"its check is broken, see the log: {error!r}")
                raise
            else:
                self.report(name)
            await asyncio.sleep(self._interval_seconds)


@asynccontextmanager
async def open_readiness(
    *, interval_seconds: float = PROBE_INTERVAL_SECONDS, timeout_seconds: float = PROBE_SECONDS
) -> AsyncIterator[Readiness]:
    """Keep a process's readiness until the block is left."""
    async with open_tasks("readiness") as tasks:
        yield Readiness(tasks, interval_seconds, timeout_seconds)
