"""The store alone: live workers on one log and one set of tables, fed with records, judged by what they wrote and published."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from random import Random

from prometheus_client import CollectorRegistry

from chassis.eventlog import EventLog, LogBatch, LogEntry, LogRecord, LogUnavailableError, partition_for
from chassis.testing.faults import LATE_SECONDS_MAX, PAUSE_SECONDS_MAX, WALL_JUMP, WEEKS_JUMP
from chassis.testing.virtual_loop import run_virtual
from parley.log.v1.records_pb2 import CommandRecord, EventBatch, EventRecord
from parley_checker.history import Device
from parley_checker.verdict import Verdict
from parley_protocol.topics import COMMANDS, DEAD_LETTERS, EVENTS, OFFLINE
from parley_simulation.epoch_fact import FACTS, wait_superseded
from parley_simulation.plan import Plan, Scene
from parley_simulation.processes import (
    ContractError,
    Incarnation,
    NotingTimeline,
    Simulation,
    hash_of,
    open_fresh_timeline,
    open_simulation,
)
from parley_simulation.reports import Report
from parley_simulation.store_judge import judge_store
from parley_simulation.store_workload import USERS, Workload
from services.store.app import open_store
from services.store.apply import Applier
from services.store.config import StoreSettings
from services.store.metrics import StoreMetrics
from services.store.recent import RecentEvents
from services.store.rows import TABLES

WEEK_SECONDS = 7 * 24 * 3600.0
WEEKS_MAX = 4.0  # beyond what is remembered of requests
READER = "reader"  # of events, for the judge
WORKERS = 2  # both live, on the same partitions: each is the other's zombie
RUN_LIMIT_SECONDS = 4 * 3600.0
QUIET_SECONDS = LATE_SECONDS_MAX + PAUSE_SECONDS_MAX + 60.0  # after it everybody who was away is back, and everything late came


class StoreWorld:
    """The store's processes in one simulation, and what comes out of them."""

    def __init__(self, simulation: Simulation, plan: Plan, settings: StoreSettings) -> None:
        self.simulation = simulation
        self.workload = Workload.drawn(simulation.rng, USERS[: plan.users])
        self.commands: list[tuple[int, LogRecord]] = []  # all that came to the log, once it was judged
        self._plan = plan
        self._settings = settings
        self._feeder: tuple[EventLog, Incarnation] | None = None
        self.events: list[EventRecord] = []
        self._events_came = asyncio.Event()

    async def run(self) -> Verdict:
        """Feed, heal, wait, replay, judge."""
        simulation = self.simulation
        workers = [simulation.keep_running(f"store-{n}", self._work) for n in range(WORKERS)]
        await simulation.run(*workers, simulation.keep_running(READER, self._read_events), until=self._drive())
        await simulation.settle()
        records = await read_all(simulation.log, COMMANDS)
        self.commands = records
        async with open_fresh_timeline(simulation, TABLES) as fresh:
            await replay(simulation, self._settings, records, fresh)
            return judge_store(
                self.workload,
                [(CommandRecord.FromString(record.value), record.time_ms) for _, record in records],
                self.events,
                [record.value for _, record in await read_all(simulation.log, DEAD_LETTERS)],
                await simulation.timeline.dump(),
                await fresh.dump(),
            )

    async def _work(self, process: Incarnation) -> None:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(
                open_store(
                    self._settings,
                    log=process.log,
                    timeline=process.timeline,
                    clock=self.simulation.clock,
                    metrics=CollectorRegistry(),
                    rng=process.rng,
                )
            )
            await wait_superseded(process.timeline)

    async def _drive(self) -> None:
        """Let the devices ask, end the faults, and wait until all of it is answered and everything is quiet."""
        workload = self.workload
        devices = workload.devices()
        jumps = asyncio.create_task(jump_walls(self.simulation))
        weeks = asyncio.create_task(jump_weeks(self.simulation))
        workers = [f"store-{n}" for n in range(WORKERS)]
        kills = asyncio.create_task(self.simulation.kill_sometimes(workers))
        freezes = asyncio.create_task(self.simulation.freeze_sometimes(dict.fromkeys(workers, PAUSE_SECONDS_MAX)))
        losses = asyncio.create_task(self.simulation.lose_power_sometimes([*workers, READER]))
        asking = asyncio.gather(*(self._ask(device, number) for number, device in enumerate(devices)))
        await asyncio.wait((asking,), timeout=self._plan.seconds)
        for faults in (jumps, weeks, kills, freezes, losses):
            faults.cancel()
        self.simulation.faults.heal()
        await asking
        await asyncio.sleep(QUIET_SECONDS)
        await self.simulation.settle()
        last = []
        for peer in workload.users[:3]:  # a few, so that every partition has a last record that must be answered
            record = workload.message(devices[0], peer, "the last")
            last.append(record.command.request_id)
            await self._append(record)
        while not all(any(request_id in event.own for event in self.events) for request_id in last):
            self._events_came.clear()
            await self._events_came.wait()
        await asyncio.sleep(QUIET_SECONDS)

    async def _ask(self, device: Device, number: int) -> None:
        rng = Random(f"{self.simulation.seed}/device {number}")
        await asyncio.sleep(rng.uniform(0.0, 5.0))
        for record in self.workload.records(device, self._plan.actions):
            await self._append(record)
            await asyncio.sleep(rng.choice((0.0, 0.0, rng.uniform(0.0, 0.1), rng.uniform(0.0, 20.0))))

    async def _append(self, record: CommandRecord) -> None:
        """Append as a gateway does that keeps a sender's order: again until it is known to be in the log."""
        key = record.conversation_id.encode()
        partition = partition_for(key, await self.simulation.log.partition_count(COMMANDS))
        if record.command.request_id:
            self.simulation.trace.note(record.device_id, f"asks {record.command.request_id.hex()} in {record.conversation_id}")
        while True:
            gateway = self._gateway()
            try:
                await gateway.log.append(COMMANDS, partition, [LogEntry(key, record.SerializeToString())])
            except LogUnavailableError:
                await asyncio.sleep(gateway.rng.uniform(0.01, 0.5))
            else:
                return

    def _gateway(self) -> Incarnation:
        """Return who appends to the log that is there now: on another machine, it outlives all losses of power."""
        log = self.simulation.log
        if self._feeder is None or self._feeder[0] is not log:
            self._feeder = log, self.simulation.incarnate("gateway", immortal=True)
        return self._feeder[1]

    async def _read_events(self, _: Incarnation) -> None:
        async with self.simulation.log.open_consumer(EVENTS, "judge") as consumer:
            while True:
                batch = await consumer.poll(100)
                for record in batch.records:
                    self.events.extend(EventBatch.FromString(record.value).events)
                consumer.done(batch)
                self._events_came.set()


class _Unheard:
    """The log of a replay: what is published again goes nowhere."""

    def __init__(self, log: EventLog) -> None:
        self.epoch = log.epoch
        self.partition_count = log.partition_count
        self.open_consumer = log.open_consumer
        self.records = log.records
        self.ping = log.ping

    async def append(self, topic: str, partition: int, entries: Sequence[LogEntry]) -> None:
        """Forget it."""


async def jump_walls(simulation: Simulation) -> None:
    """Move the log's clock an hour back or forward now and then, until cancelled."""
    stream = simulation.faults.stream("clock")
    while True:
        await asyncio.sleep(stream.rng.uniform(1.0, 20.0))
        if stream.happens(WALL_JUMP):
            simulation.clock.jump_wall(stream.rng.choice((-3600.0, 3600.0)))


async def jump_weeks(simulation: Simulation) -> None:
    """Move the log's clock by days or weeks now and then, until cancelled: mostly on, as where nobody asks for so long."""
    stream = simulation.faults.stream("calendar")
    while True:
        await asyncio.sleep(stream.rng.uniform(1.0, 20.0))
        if stream.happens(WEEKS_JUMP):
            simulation.clock.jump_wall(stream.rng.choice((1, 1, 1, -1)) * stream.rng.uniform(0.0, WEEKS_MAX) * WEEK_SECONDS)


async def read_all(log: EventLog, topic: str) -> list[tuple[int, LogRecord]]:
    """Return all that is in a topic now, with its partition, a partition after the other."""
    found: list[tuple[int, LogRecord]] = []
    async with log.open_consumer(topic, f"judge of {topic}") as consumer:
        while True:
            try:
                async with asyncio.timeout(1.0):
                    batch = await consumer.poll(1000)
            except TimeoutError:
                return sorted(found, key=lambda item: (item[0], item[1].offset))
            found.extend((batch.partition, record) for record in batch.records)
            consumer.done(batch)


async def replay(
    simulation: Simulation, settings: StoreSettings, records: list[tuple[int, LogRecord]], fresh: NotingTimeline
) -> None:
    """Apply the log from zero to empty tables, without faults, one record at a time."""
    applier = Applier(
        settings,
        log=_Unheard(simulation.log),
        timeline=fresh,
        recent=RecentEvents(settings.recent_bytes),
        clock=simulation.clock,
        metrics=StoreMetrics(CollectorRegistry()),
        rng=Random(0),
    )
    for partition, record in records:
        await applier.apply(LogBatch(partition, [record]))


def tiny_settings(rng: Random) -> StoreSettings:
    """Draw settings with which a hundred records walk every path: buckets that fill, caches that forget."""
    return StoreSettings(
        poll_records=rng.choice((3, 20, 100)), bucket_bits=2, max_conversations=rng.choice((1, 3, 100)), recent_bytes=2_000
    )


def run_seed(
    seed: int,
    *,
    plan: Plan | None = None,
    rates: Mapping[str, float] | None = None,
    settings: StoreSettings | None = None,
    keep_trace: bool = False,
    report: Report | None = None,
) -> Report:
    """Run one seed and judge it; raises if the contract broke. Without settings the seed draws them, tiny."""
    plan = plan or Plan.of(Scene.STORE, seed)
    found = report or Report()

    async def main(rng: Random) -> Report:
        count = rng.randint(1, 2)  # partitions
        drawn = tiny_settings(rng)
        topics = {COMMANDS: count, EVENTS: count, OFFLINE: count, DEAD_LETTERS: count}
        chances = plan.rates if rates is None else rates
        async with open_simulation(
            seed, topics=topics, durable_topics=(COMMANDS,), tables=(*TABLES, FACTS), rates=chances, keep_trace=keep_trace
        ) as simulation:
            world = StoreWorld(simulation, plan, settings or drawn)
            try:
                found.verdict = await world.run()
                simulation.trace.note("judge", f"tables {hash_of(await simulation.timeline.dump())}")
                if not found.verdict.kept:
                    raise ContractError(found.verdict)
            finally:
                found.take_log(world.commands)
                found.take(simulation)
            return found

    return run_virtual(main, seed, RUN_LIMIT_SECONDS)
