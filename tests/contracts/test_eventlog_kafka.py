"""What the log on Kafka does on bad days, beyond what every EventLog owes."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from engine_fixtures import EnginesOfTheRun
from kafka_scene import DEADLINE_SECONDS, TOPIC, append, entries, poll, read_until, rebuilds, stopped, values
from kafka_scene import kafka as kafka
from kafka_scene import log as log
from kafka_scene import registry as registry
from kafka_scene import world as world
from prometheus_client import CollectorRegistry
from worlds import HEARTBEAT_SECONDS, KafkaLogWorld

from chassis.eventlog import EventLog, LogConsumer, LogEntry, LogUnavailableError, RecordTooLargeError
from chassis.eventlog_kafka_consumer import KafkaConsumer
from chassis.eventlog_kafka_metrics import KafkaMetrics
from chassis.eventlog_kafka_topics import MAX_RECORD_BYTES, engine_topic
from chassis.tasks import open_tasks
from parley_engines.state import Started

pytestmark = pytest.mark.engines("kafka")
BEAT_SECONDS = 0.05


async def test_a_record_that_is_too_large_is_refused_and_those_with_it_are_not_in_the_log(log: EventLog) -> None:
    largest = LogEntry(b"k", b"x" * (MAX_RECORD_BYTES - 600))
    await log.append(TOPIC, 0, [largest])
    with pytest.raises(RecordTooLargeError, match="takes"):
        await log.append(TOPIC, 0, [*entries("a"), LogEntry(b"k", b"x" * MAX_RECORD_BYTES)])
    await log.append(TOPIC, 0, entries("b"))
    async with log.open_consumer(TOPIC, "g") as consumer:
        batch = await poll(consumer)
        consumer.done(batch)
        records = list(batch.records)
        while len(records) < 2:
            records += (await poll(consumer)).records
    assert [record.value for record in records] == [largest.value, b"b"]


@asynccontextmanager
async def counting_seconds() -> AsyncIterator[Callable[[], float]]:
    """Count the seconds in which the loop runs: what others take from it, on a busy machine, is not the log's delay."""
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            beats += 1

    async with open_tasks("test") as tasks:
        tasks.spawn(beat(), name="beat")
        yield lambda: beats * BEAT_SECONDS


async def test_an_engine_that_hangs_costs_a_typed_error_within_the_deadline_and_a_new_producer(
    kafka: Started, log: EventLog, registry: CollectorRegistry
) -> None:
    await log.append(TOPIC, 0, entries("before"))
    with stopped(kafka):
        async with counting_seconds() as seconds:
            first, second = (asyncio.create_task(log.append(TOPIC, 0, entries(what))) for what in ("one", "two"))
            with pytest.raises(LogUnavailableError):
                await first
            with pytest.raises(LogUnavailableError):  # what waited behind it must not overtake its repetition
                await second
            assert seconds() < 6
        with pytest.raises(LogUnavailableError):
            await log.ping()
    await append(log, 0, "one", "two")
    await append(log, 0, "three")
    assert rebuilds(registry, "producer") >= 1
    async with log.open_consumer(TOPIC, "g") as consumer:
        read = await read_until(consumer, "three")
    assert read[0] == "before"
    assert read[-3:] == ["one", "two", "three"]
    assert set(read) == {"before", "one", "two", "three"}
    await log.ping()


async def test_a_busy_consumer_fetches_in_company_and_an_idle_one_at_once(log: EventLog) -> None:
    """By aiokafka's own names, which it has before we set them: a version that has others fails here."""

    def fetches(consumer: LogConsumer) -> tuple[int, int]:
        assert isinstance(consumer, KafkaConsumer)
        if consumer._consumer is None:
            return 0, 0
        fetcher = vars(consumer._consumer._fetcher)
        return fetcher["_fetch_max_wait_ms"], fetcher["_fetch_min_bytes"]

    async def wait_fetching(consumer: LogConsumer, wait_ms: int, min_bytes: int) -> None:
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:
                if fetches(consumer) == (wait_ms, min_bytes):
                    return
                await asyncio.sleep(0.001)

    async with log.open_consumer(TOPIC, "g") as consumer:
        await wait_fetching(consumer, 500, 1)
        await log.append(TOPIC, 0, entries("a"))
        await wait_fetching(consumer, 5, 64 * 1024)
        consumer.done(await poll(consumer))
        await wait_fetching(consumer, 500, 1)


async def test_after_an_engine_was_killed_everything_goes_on_by_itself(engines: EnginesOfTheRun, log: EventLog) -> None:
    async with log.open_consumer(TOPIC, "g") as consumer:

        async def read_all(wanted: set[str]) -> None:
            read: set[str] = set()
            while not wanted <= read:
                batch = await poll(consumer)
                read |= set(values(batch))
                consumer.done(batch)

        early, late = ([f"{when} {number}" for number in range(20)] for when in ("early", "late"))
        await asyncio.gather(*(append(log, number % 3, what) for number, what in enumerate(early)))
        await read_all(set(early))
        engines.kill("kafka")
        async with asyncio.TaskGroup() as group:
            for number, what in enumerate(late):
                group.create_task(append(log, number % 3, what))
            with pytest.raises(LogUnavailableError):
                await log.append(TOPIC, 0, entries("lost"))
            engines.started("kafka")  # which blocks the loop until it answers
        await read_all(set(late))


async def test_partitions_that_move_while_a_batch_is_worked_on_lose_nothing(log: EventLog) -> None:
    for partition in range(3):
        await log.append(TOPIC, partition, entries(*(f"{partition}.{number}" for number in range(10))))
    done: set[str] = set()
    async with log.open_consumer(TOPIC, "g") as one:
        held = [await poll(one), await poll(one), await poll(one)]
        async with log.open_consumer(TOPIC, "g") as two:
            # The second one gets partitions whose batches the first one still holds, and does them, too.
            moved = await poll(two)
            assert moved.partition in {batch.partition for batch in held}
            done |= set(values(moved))
            two.done(moved)
            for batch in held[:2]:
                done |= set(values(batch))
                one.done(batch)
            one.retry(held[2])
            with pytest.raises(ValueError, match="held"):
                one.done(held[2])
            await log.append(TOPIC, 0, entries("last"))
            async with asyncio.TaskGroup() as group:

                async def work(consumer: LogConsumer) -> None:
                    while len(done) < 31:
                        try:
                            async with asyncio.timeout(0.5):
                                batch = await consumer.poll(100)
                        except TimeoutError:
                            continue
                        done.update(values(batch))
                        consumer.done(batch)

                group.create_task(work(one))
                group.create_task(work(two))
    assert len(done) == 31


async def test_a_batch_that_is_held_while_its_partition_goes_and_comes_back_is_not_handed_out_twice(log: EventLog) -> None:
    await log.append(TOPIC, 0, entries("a", "b"))
    async with log.open_consumer(TOPIC, "g") as one:
        held = await poll(one)
        async with log.open_consumer(TOPIC, "g"):  # all partitions are taken away and given out anew, twice
            await asyncio.sleep(HEARTBEAT_SECONDS * 2)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(HEARTBEAT_SECONDS * 4):
                await one.poll(100)
        one.done(held)
        await log.append(TOPIC, 0, entries("c"))
        assert values(await poll(one)) == ["c"]


async def test_one_slow_partition_does_not_hold_back_the_others(log: EventLog) -> None:
    await log.append(TOPIC, 0, entries("slow"))
    async with log.open_consumer(TOPIC, "g") as consumer:
        slow = await poll(consumer)
        large = [LogEntry(b"k", b"x" * 500_000)] * 20  # far more than is buffered of a partition
        await log.append(TOPIC, 0, large)
        for number in range(20):
            await log.append(TOPIC, 1, entries(str(number)))
            batch = await poll(consumer)
            assert values(batch) == [str(number)]
            consumer.done(batch)
        consumer.done(slow)
        count = 0
        while count < len(large):
            batch = await poll(consumer)
            assert batch.partition == 0
            count += len(batch.records)
            consumer.done(batch)


async def test_what_is_done_is_committed_before_the_consumer_leaves(world: KafkaLogWorld, log: EventLog) -> None:
    await log.append(TOPIC, 0, entries("a", "b", "c"))
    async with log.open_consumer(TOPIC, "g") as consumer:
        batch = await consumer.poll(2)
        consumer.done(batch)
    assert await committed(world, "g", 0) == 2


def group_options(world: KafkaLogWorld, group: str) -> dict[str, object]:
    topic = engine_topic(world.prefix, TOPIC, 1)
    return world.connection.client_options() | {"group_id": f"{topic}.{group}", "enable_auto_commit": False}


async def committed(world: KafkaLogWorld, group: str, partition: int) -> int | None:
    async with AIOKafkaConsumer(**group_options(world, group)) as consumer:
        offset: int | None = await consumer.committed(TopicPartition(engine_topic(world.prefix, TOPIC, 1), partition))
        return offset


async def test_what_retention_removed_unread_is_counted_and_the_rest_is_read(
    world: KafkaLogWorld, log: EventLog, registry: CollectorRegistry
) -> None:
    await log.append(TOPIC, 0, entries("a", "b", "c", "d"))
    async with log.open_consumer(TOPIC, "g") as consumer:
        consumer.done(await consumer.poll(1))
    admin = AIOKafkaAdminClient(**world.connection.client_options())
    await admin.start()
    try:
        await admin.delete_records({TopicPartition(engine_topic(world.prefix, TOPIC, 1), 0): RecordsToDelete(3)})
    finally:
        await admin.close()
    async with log.open_consumer(TOPIC, "g") as consumer:
        assert values(await poll(consumer)) == ["d"]
    assert registry.get_sample_value("parley_kafka_lost_records_total") == 2


async def test_a_log_that_ends_before_what_was_done_is_not_read_from_the_start(world: KafkaLogWorld, log: EventLog) -> None:
    await log.append(TOPIC, 0, entries("a"))
    topic = TopicPartition(engine_topic(world.prefix, TOPIC, 1), 0)
    async with AIOKafkaConsumer(**group_options(world, "g")) as other:
        other.assign([topic])
        await other.commit({topic: 7})
    async with log.open_consumer(TOPIC, "g") as consumer:
        with pytest.raises(LogUnavailableError, match="ends before 7"):
            async with asyncio.timeout(DEADLINE_SECONDS):
                await consumer.poll(1)


async def test_a_consumer_that_gets_nothing_though_there_is_something_begins_anew(
    world: KafkaLogWorld, log: EventLog, registry: CollectorRegistry
) -> None:
    topic = engine_topic(world.prefix, TOPIC, 1)
    counted = CollectorRegistry()
    consumer = KafkaConsumer(
        world.connection, topic, f"{topic}.g", 3, rng=random.Random(1), metrics=KafkaMetrics(counted),
        heartbeat_seconds=HEARTBEAT_SECONDS, stall_seconds=1, watch_seconds=0.2,
    )  # fmt: skip
    running = asyncio.create_task(consumer.run())
    try:
        await log.append(TOPIC, 0, entries("a"))
        consumer.done(await poll(consumer))
        assert consumer._consumer is not None
        consumer._consumer.pause(*(TopicPartition(topic, number) for number in range(3)))  # stands for a fetcher that died
        await log.append(TOPIC, 0, entries("b"))
        assert values(await poll(consumer)) == ["b"]
        assert rebuilds(counted, "consumer") == 1
    finally:
        running.cancel()
        await asyncio.wait([running])
