"""The way into the log: batches, order over failures, and who has to wait meanwhile. On virtual time."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from random import Random

from prometheus_client import CollectorRegistry

from chassis.embedded import open_embedded_engines
from chassis.eventlog import EventLog, LogEntry, LogUnavailableError, partition_for
from chassis.tasks import open_tasks
from chassis.testing.virtual_loop import VirtualClock, run_virtual
from parley.log.v1.records_pb2 import CommandRecord
from parley_protocol.topics import COMMANDS
from services.gateway import log_writer
from services.gateway.acks import AckMerger
from services.gateway.log_writer import LogWriter, start_log_writer
from services.gateway.metrics import Metrics
from services.gateway.records import origin_fields

PARTITIONS = 2
KEYS = [next(key for key in (b"%d" % n for n in range(100)) if partition_for(key, PARTITIONS) == p) for p in range(PARTITIONS)]


class GatedLog:
    """Passes appends on to a real log after a gate that a test sets for each partition: wait, fail, or fail after the append."""

    def __init__(self, inner: EventLog) -> None:
        self._inner = inner
        self.gates: dict[int, Callable[[], Awaitable[None]]] = {}
        self.after: dict[int, Callable[[], Awaitable[None]]] = {}
        self.batches: list[tuple[int, list[bytes]]] = []

    @property
    def epoch(self) -> int:
        return self._inner.epoch

    async def partition_count(self, topic: str) -> int:
        return await self._inner.partition_count(topic)

    async def append(self, topic: str, partition: int, entries: Sequence[LogEntry]) -> None:
        if partition in self.gates:
            await self.gates[partition]()
        self.batches.append((partition, [entry.value for entry in entries]))
        await self._inner.append(topic, partition, entries)
        if partition in self.after:
            await self.after[partition]()

    def open_consumer(self, topic: str, group: str):  # type: ignore[no-untyped-def]
        return self._inner.open_consumer(topic, group)


class World:
    def __init__(self, log: GatedLog, writer: LogWriter, metrics: Metrics, registry: CollectorRegistry) -> None:
        self.log, self.writer, self.metrics, self.registry = log, writer, metrics, registry

    def offer(self, value: bytes, partition: int = 0) -> float:
        return self.writer.lane_of(KEYS[partition]).offer(KEYS[partition], value)

    async def stored(self, partition: int = 0) -> list[bytes]:
        """Read what is in the log now."""
        values: list[bytes] = []
        async with self.log.open_consumer(COMMANDS, "test") as consumer:
            with suppress(TimeoutError):
                async with asyncio.timeout(1):
                    while True:
                        batch = await consumer.poll(1000)
                        values += [record.value for record in batch.records if batch.partition == partition]
                        consumer.done(batch)
        return values


@asynccontextmanager
async def open_world() -> AsyncIterator[World]:
    clock, registry = VirtualClock(), CollectorRegistry()
    metrics = Metrics(registry)
    async with (
        open_embedded_engines(
            None, topics={COMMANDS: PARTITIONS}, durable_topics=(COMMANDS,), tables=("t",), clock=clock
        ) as engines,
        open_tasks("test") as tasks,
    ):
        log = GatedLog(engines.log)
        writer = await start_log_writer(log, COMMANDS, tasks, clock=clock, rng=Random(1), metrics=metrics)
        yield World(log, writer, metrics, registry)


def on_virtual_time(test: Callable[[World], Awaitable[None]]) -> Callable[[], None]:
    async def main(_rng: Random) -> None:
        async with open_world() as world:
            await test(world)

    def run() -> None:
        run_virtual(main)

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


async def unavailable() -> None:
    raise LogUnavailableError("away")


@on_virtual_time
async def test_what_comes_during_an_append_goes_into_the_next(world: World) -> None:
    gate = asyncio.Event()
    world.log.gates[0] = lambda: gate.wait()  # type: ignore[assignment, return-value]
    assert world.offer(b"1") == 0.0
    await asyncio.sleep(0.01)
    for value in (b"2", b"3", b"4"):
        assert world.offer(value) == 0.0
    gate.set()
    await world.writer.wait_idle()
    assert world.log.batches == [(0, [b"1"]), (0, [b"2", b"3", b"4"])]


@on_virtual_time
async def test_failed_append_closes_its_partition_until_the_log_takes_it(world: World) -> None:
    """Nothing overtakes what is unresolved; the other partition goes on."""
    world.log.gates[0] = unavailable
    world.offer(b"1")
    await asyncio.sleep(0.001)
    assert world.offer(b"refused") > 0.0
    assert world.offer(b"other", partition=1) == 0.0
    await asyncio.sleep(60)
    assert world.offer(b"refused, too") > 0.0
    assert await world.stored(1) == [b"other"]
    del world.log.gates[0]
    await world.writer.wait_idle()
    assert world.offer(b"2") == 0.0
    await world.writer.wait_idle()
    assert await world.stored(0) == [b"1", b"2"]
    assert world.registry.get_sample_value("parley_gateway_closed_partitions") == 0
    assert world.registry.get_sample_value("parley_gateway_append_failures_total") > 5


@on_virtual_time
async def test_append_that_failed_after_it_was_taken_is_repeated_in_order(world: World) -> None:
    world.log.after[0] = unavailable
    world.offer(b"1")
    world.offer(b"2")
    await asyncio.sleep(0.001)
    del world.log.after[0]
    await world.writer.wait_idle()
    world.offer(b"3")
    await world.writer.wait_idle()
    assert await world.stored(0) == [b"1", b"2", b"1", b"2", b"3"]


@on_virtual_time
async def test_append_that_hangs_closes_its_partition_and_is_waited_for(world: World) -> None:
    gate = asyncio.Event()
    world.log.gates[0] = lambda: gate.wait()  # type: ignore[assignment, return-value]
    world.offer(b"1")
    await asyncio.sleep(3)
    world.writer.close_stalled(asyncio.get_running_loop().time())
    assert world.offer(b"2") == 0.0
    await asyncio.sleep(3)
    world.writer.close_stalled(asyncio.get_running_loop().time())
    assert world.offer(b"refused") > 0.0
    gate.set()
    await world.writer.wait_idle()
    assert await world.stored(0) == [b"1", b"2"]


@on_virtual_time
async def test_queue_is_bounded_and_readers_wait_for_room_before_that(world: World) -> None:
    gate = asyncio.Event()
    world.log.gates[0] = lambda: gate.wait()  # type: ignore[assignment, return-value]
    world.offer(b"1")
    await asyncio.sleep(0.001)
    lane = world.writer.lane_of(KEYS[0])
    size = log_writer._MAX_BYTES // 8
    while not lane.crowded:
        assert world.offer(bytes(size)) == 0.0
    waiting = asyncio.ensure_future(lane.wait_room())
    while world.offer(bytes(size)) == 0.0:
        pass
    await asyncio.sleep(1)
    assert not waiting.done()
    gate.set()
    await waiting
    await world.writer.wait_idle()
    assert world.offer(b"2") == 0.0
    await world.writer.wait_idle()


@on_virtual_time
async def test_nobody_waits_for_room_in_a_closed_partition(world: World) -> None:
    """A retry is the answer there, and the stream must be able to hear other things."""
    world.log.gates[0] = unavailable
    world.offer(b"1")
    await asyncio.sleep(0.001)
    await world.writer.lane_of(KEYS[0]).wait_room()


def ack_of(value: bytes) -> tuple[str, str, int, int]:
    record = CommandRecord.FromString(value)
    return record.user_id, record.ack.conversation_id, record.ack.delivered_seq, record.ack.read_seq


def origin(user: str) -> bytes:
    return origin_fields(user_id=user, device_id="d", gateway_id="g", session_id="s", member_cap=5)


@on_virtual_time
async def test_watermarks_of_a_moment_become_one_record_with_the_highest(world: World) -> None:
    acks = AckMerger(world.writer, world.metrics)
    for delivered, read in ((1, 0), (5, 2), (3, 4)):
        acks.add("alice", origin("alice"), "c", delivered, read)
    acks.add("bob", origin("bob"), "c", 1, 1)
    await asyncio.sleep(0.02)
    assert not world.log.batches
    await asyncio.sleep(0.05)
    await world.writer.wait_idle()
    assert [ack_of(value) for _, values in world.log.batches for value in values] == [("alice", "c", 5, 4), ("bob", "c", 1, 1)]


@on_virtual_time
async def test_watermarks_wait_and_merge_while_their_partition_takes_nothing(world: World) -> None:
    """A device that stays connected would not say them again."""
    world.log.gates.update({0: unavailable, 1: unavailable})
    world.offer(b"1", 0)
    world.offer(b"1", 1)
    await asyncio.sleep(0.001)
    acks = AckMerger(world.writer, world.metrics)
    acks.add("alice", origin("alice"), "c", 1, 1)
    acks.flush()
    acks.add("alice", origin("alice"), "c", 3, 2)
    await asyncio.sleep(3)
    assert not world.log.batches
    world.log.gates.clear()
    await asyncio.sleep(10)
    assert [ack_of(value) for _, values in world.log.batches for value in values if value != b"1"] == [("alice", "c", 3, 2)]
    acks.close()
