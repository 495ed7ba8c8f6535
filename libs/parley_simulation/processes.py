"""Simulated processes on simulated engines: each runs until it dies, and is started again on what the engines hold."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, MutableMapping, Sequence
from contextvars import Context
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Any, TypeVar

import structlog

from chassis.embedded import EmbeddedEngines, open_embedded_engines
from chassis.eventlog import EventLog
from chassis.registry import Registry
from chassis.registry_memory import MemoryRegistry
from chassis.testing.faults import FREEZE, KILL, RATES, Engine, Faults, Life, Trace, swarm
from chassis.testing.faulty_log import FaultyLog, LogEngine
from chassis.testing.faulty_registry import FaultyRegistry, RegistryEngine
from chassis.testing.faulty_timeline import FaultyTimeline
from chassis.testing.virtual_loop import PROCESS, START_WALL_MS, VirtualClock, VirtualLoop
from chassis.timeline import Cell, Point, Row, Timeline
from parley_checker.verdict import Verdict
from parley_simulation.machine import Machine, open_machine

T = TypeVar("T")

RESTART_SECONDS_MAX = 10.0
WEEK_MS = 7 * 24 * 3600 * 1000


class BrokenError(Exception):
    """A service broke its contract, or failed where it must not. `stories` tell each violation."""

    def __init__(self, message: str, stories: Sequence[str] = ()) -> None:
        super().__init__("\n  ".join([message, *stories]))
        self.stories = stories


class ContractError(BrokenError):
    """The judge found violations."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__("the contract broke:", verdict.stories)
        self.verdict = verdict


@dataclass(frozen=True)
class Incarnation:
    """One run of a process: what it is given, and lost when it dies."""

    name: str
    life: Life
    log: EventLog
    timeline: Timeline
    registry: Registry
    rng: Random


class NotingTimeline:
    """A Timeline that notes which partitions exist and the stamp that each row ended with, to compare tables by."""

    def __init__(self, inner: Timeline, stamps: dict[Point, int] | None = None) -> None:
        self._inner = inner
        self.stamps = {} if stamps is None else stamps

    async def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            point = Point(row.table, row.partition, row.key)
            self.stamps[point] = max(row.stamp, self.stamps.get(point, row.stamp))
        await self._inner.write(rows)

    async def read_points(self, points: Sequence[Point]) -> Mapping[Point, bytes]:
        return await self._inner.read_points(points)

    async def read_partitions(self, table: str, partitions: Sequence[str], limit: int = 0) -> Mapping[str, Sequence[Cell]]:
        return await self._inner.read_partitions(table, partitions, limit)

    async def read_range(
        self, table: str, partition: str, first_key: bytes, last_key: bytes, limit: int, *, descending: bool = False
    ) -> Sequence[Cell]:
        return await self._inner.read_range(table, partition, first_key, last_key, limit, descending=descending)

    async def dump(self) -> dict[Point, tuple[int, bytes]]:
        """Return every row with its stamp."""
        values = await self._inner.read_points(sorted(self.stamps))
        return {point: (self.stamps[point], value) for point, value in sorted(values.items())}


class Simulation:
    """One run: engines, faults, a clock, processes. Open it with `open_simulation`."""

    def __init__(self, seed: int, rates: Mapping[str, float], trace: Trace) -> None:
        self.seed = seed
        self.bug: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # the first exception that a service logged
        self.rng = Random(f"{seed}/workload")
        self.trace = trace
        self.faults = Faults(seed, trace, swarm(rates, Random(f"{seed}/swarm")))
        # Half of the runs begin around the turn of a log week, where rows of one conversation lie in several partitions.
        turn_ms = START_WALL_MS // WEEK_MS * WEEK_MS + self.rng.randint(-1_800_000, 1_800_000)
        self.clock = VirtualClock(turn_ms if self.rng.random() < 0.5 else START_WALL_MS)
        self.tables = Engine("tables")
        self.topics = LogEngine("log")
        self.living: dict[str, Incarnation] = {}  # by the process's name
        self.registry = RegistryEngine("registry", MemoryRegistry())  # on a machine of its own
        self.machine: Machine
        self.log: EventLog
        self.timeline: NotingTimeline
        self._stamps: dict[Point, int] = {}
        self._powered: asyncio.Task[None]  # fails if engines can't be opened again

    def incarnate(self, name: str, *, immortal: bool = False) -> Incarnation:
        """Give a process its ports."""
        stream = self.faults.stream(name)
        life = Life(name, stream, _cancel_tasks, immortal=immortal)
        return Incarnation(
            name,
            life,
            FaultyLog(self.log, self.topics, stream, life),
            FaultyTimeline(self.timeline, self.tables, stream, life),
            FaultyRegistry(self.registry, stream, life),
            Random(f"{self.seed}/{name}/own"),
        )

    async def keep_running(self, name: str, main: Callable[[Incarnation], Awaitable[None]]) -> None:
        """Run a process for ever: whenever it dies, start it again some seconds later. Raises what ends it while it lives."""
        loop = _virtual_loop()
        restarts = Random(f"{self.seed}/{name}/restarts")
        for number in count(1):
            await self.machine.is_on.wait()
            incarnation = self.incarnate(f"{name}.{number}")
            context = Context()
            context.run(PROCESS.set, incarnation.name)
            self.trace.note(incarnation.name, "starts")
            self.living[name] = incarnation
            task = loop.create_task(_run(main, incarnation), context=context)
            try:
                await asyncio.wait((task,))
            finally:
                living = incarnation.life.alive and not task.done()
                if living:
                    incarnation.life.die("the end")
                while left := loop.live_tasks(incarnation.name):
                    await asyncio.wait(left)
            if incarnation.life.alive and not task.cancelled():
                raise BrokenError(f"{incarnation.name} ended by itself") from task.exception()
            if not task.cancelled():
                task.exception()  # the dying may say anything
            await asyncio.sleep(restarts.uniform(0.0, RESTART_SECONDS_MAX))

    async def kill_sometimes(self, names: Sequence[str]) -> None:
        """Kill one of the named processes every now and then, wherever it is, until cancelled."""
        stream = self.faults.stream("killer")
        while True:
            await asyncio.sleep(stream.rng.uniform(1.0, 20.0))
            victim = self.living[stream.rng.choice(names)].life
            if victim.alive and stream.happens(KILL):
                victim.die("any moment")

    async def freeze_sometimes(self, names: Mapping[str, float]) -> None:
        """Let one of the named processes stand still now and then, for at most so many seconds, until cancelled."""
        stream, loop = self.faults.stream("freezer"), _virtual_loop()
        while True:
            await asyncio.sleep(stream.rng.uniform(1.0, 30.0))
            name = stream.rng.choice(list(names))
            victim = self.living[name].life
            if victim.alive and stream.happens(FREEZE):
                stream.note(f"freezes {victim.name}")
                loop.freeze(victim.name)
                try:
                    await asyncio.sleep(names[name] ** stream.rng.random())
                finally:
                    loop.thaw(victim.name)

    async def lose_registry_sometimes(self) -> None:
        """Let the registry lose all its data every now and then, until cancelled."""
        stream = self.faults.stream("registry")
        while True:
            await asyncio.sleep(stream.rng.uniform(10.0, 60.0))
            self.registry.lose_data(stream)

    async def lose_power_sometimes(self, names: Sequence[str]) -> None:
        """Let the machine lose its power every now and then, and with it the named processes, until cancelled."""

        def kill_all() -> None:
            for name in names:
                self.living[name].life.die("a loss of power")
            self.topics.forget()

        await self.machine.lose_power_sometimes(kill_all)

    def have_engines(self, engines: EmbeddedEngines) -> None:
        """Let whoever starts from now on have these."""
        self.log, self.timeline = engines.log, NotingTimeline(engines.timeline, self._stamps)

    async def run(self, *services: Coroutine[Any, Any, None], until: Awaitable[T]) -> T:
        """Run services (`keep_running`) until the awaitable ends. Raises BrokenError if a service ends or logs an exception."""
        drive: asyncio.Future[T] = asyncio.ensure_future(until)
        running = [asyncio.create_task(service) for service in services]
        try:
            ends: list[asyncio.Future[Any]] = [drive, self.bug, self._powered, *running]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if self.bug.done():
                raise BrokenError("a service logged an exception") from self.bug.exception()
            for task in (self._powered, *running):
                if task.done():
                    task.result()
            return drive.result()
        finally:
            drive.cancel()
            for task in running:
                task.cancel()
            await asyncio.gather(drive, *running, return_exceptions=True)

    async def pass_days(self, days: int) -> None:
        """Let days go by in which nobody does anything: only the wall clock moves, and what has expired is removed."""
        self.clock.jump_wall(days * 24 * 3600.0)
        await self.machine.engines.log.trim()
        await self.machine.engines.timeline.sweep()

    async def settle(self) -> None:
        """Wait until nothing is on its way to an engine."""
        await self.tables.settle()
        await self.topics.settle()


async def _run(main: Callable[[Incarnation], Awaitable[None]], incarnation: Incarnation) -> None:
    await main(incarnation)


def _cancel_tasks(life: Life) -> None:
    _virtual_loop().thaw(life.name)  # to be ended, it must run
    for task in _virtual_loop().live_tasks(life.name):
        task.cancel("crash")


def _virtual_loop() -> VirtualLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop


@contextlib.asynccontextmanager
async def open_simulation(
    seed: int,
    *,
    topics: Mapping[str, int],
    durable_topics: Sequence[str],
    tables: Sequence[str],
    rates: Mapping[str, float] = RATES,
    keep_trace: bool = False,
) -> AsyncIterator[Simulation]:
    """Open engines in memory that outlive every process of this run. What services log goes to the trace."""
    trace = Trace(keep_all=keep_trace)
    simulation = Simulation(seed, rates, trace)
    with _logging_to(simulation):
        async with open_machine(
            simulation.faults,
            simulation.have_engines,
            topics=topics,
            durable_topics=durable_topics,
            tables=tables,
            clock=simulation.clock,
        ) as (simulation.machine, simulation._powered):
            try:
                yield simulation
            except BaseException as error:
                error.add_note("the end of the trace:\n  " + "\n  ".join(trace.lines))
                raise


@contextlib.asynccontextmanager
async def open_fresh_timeline(simulation: Simulation, tables: Sequence[str]) -> AsyncIterator[NotingTimeline]:
    """Open empty tables beside the run's own."""
    async with open_embedded_engines(None, topics={}, durable_topics=(), tables=tables, clock=simulation.clock) as engines:
        yield NotingTimeline(engines.timeline)


@contextlib.contextmanager
def _logging_to(simulation: Simulation) -> Iterator[None]:
    def note(_logger: Any, level: str, event: MutableMapping[str, Any]) -> Any:
        details = " ".join(f"{name}={value}" for name, value in event.items() if isinstance(value, str | int | float))
        simulation.trace.note(PROCESS.get(), f"{level}: {details}")
        error = event.get("exc_info")
        if isinstance(error, BaseException) and not simulation.bug.done():
            simulation.bug.set_exception(error)
        raise structlog.DropEvent

    before = structlog.get_config()
    every_level = structlog.make_filtering_bound_logger(0)  # whatever this process logs otherwise: a trace is the same everywhere
    structlog.configure(processors=[note], wrapper_class=every_level, cache_logger_on_first_use=False)
    try:
        yield
    finally:
        structlog.configure(**before)


def hash_of(rows: Mapping[Point, tuple[int, bytes]]) -> str:
    """Return a hash over tables, the same in every process."""
    digest = hashlib.sha256()
    for point, (stamp, value) in rows.items():
        digest.update(f"{point.table}/{point.partition}/{point.key.hex()} {stamp} {value.hex()}\n".encode())
    return digest.hexdigest()
