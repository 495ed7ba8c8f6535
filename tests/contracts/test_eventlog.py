"""What every EventLog owes."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

import pytest
from worlds import DURABLE, PLAIN, LogWorld

from chassis.eventlog import EventLog, LogBatch, LogConsumer, LogEntry, LogRecord, LogSetupError

TOPICS = {DURABLE: 1, PLAIN: 3}
DEADLINE_SECONDS = 20.0
both_topics = pytest.mark.parametrize("topic", [DURABLE, PLAIN])


@pytest.fixture
async def log(log_world: LogWorld) -> AsyncIterator[EventLog]:
    async with log_world.open(TOPICS) as log:
        yield log


def entries(*values: str) -> list[LogEntry]:
    return [LogEntry(b"k", value.encode()) for value in values]


def numbered(first: int, last: int) -> list[LogEntry]:
    return entries(*(str(number) for number in range(first, last + 1)))


def values(records: Sequence[LogRecord]) -> list[str]:
    return [record.value.decode() for record in records]


async def poll(consumer: LogConsumer, max_records: int = 100) -> LogBatch:
    async with asyncio.timeout(DEADLINE_SECONDS):
        return await consumer.poll(max_records)


async def drain(consumer: LogConsumer, count: int, max_records: int = 100) -> list[LogRecord]:
    """Poll and do until `count` records have come."""
    records: list[LogRecord] = []
    while len(records) < count:
        batch = await poll(consumer, max_records)
        records += batch.records
        consumer.done(batch)
    return records


async def assert_nothing_to_poll(consumer: LogConsumer) -> None:
    """Poll for a moment in vain. A log that is slower than this moment passes without proof, never fails."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await consumer.poll(100)


async def test_a_log_that_serves_gives_a_sign_of_life(log: EventLog) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        await log.ping()


@both_topics
async def test_records_come_back_whole_and_in_order(log: EventLog, topic: str) -> None:
    written = [LogEntry(b"", b""), LogEntry(bytes(range(256)), b"\x00\xff"), LogEntry(b"k", b"x" * 1_000_000), *entries("last")]
    await log.append(topic, 0, written)
    async with log.open_consumer(topic, "g") as consumer:
        records = await drain(consumer, len(written))
    assert [LogEntry(record.key, record.value) for record in records] == written
    offsets = [record.offset for record in records]
    assert offsets == sorted(set(offsets))
    assert all(record.time_ms > 1_600_000_000_000 for record in records)


@both_topics
async def test_overlapping_appends_of_a_partition_keep_the_order_of_the_calls(log: EventLog, topic: str) -> None:
    await asyncio.gather(*(log.append(topic, 0, numbered(first, first + 2)) for first in range(0, 300, 3)))
    async with log.open_consumer(topic, "g") as consumer:
        assert values(await drain(consumer, 300)) == [str(number) for number in range(300)]


async def test_an_empty_append_does_nothing(log: EventLog) -> None:
    await log.append(PLAIN, 0, [])
    async with log.open_consumer(PLAIN, "g") as consumer:
        await assert_nothing_to_poll(consumer)


async def test_one_append_may_be_larger_than_any_poll(log: EventLog) -> None:
    await log.append(PLAIN, 0, numbered(1, 3_000))
    async with log.open_consumer(PLAIN, "g") as consumer:
        assert values(await drain(consumer, 3_000, max_records=70)) == [str(number) for number in range(1, 3_001)]


async def test_poll_waits_for_the_next_append(log: EventLog) -> None:
    async with log.open_consumer(DURABLE, "g") as consumer:
        polling = asyncio.create_task(poll(consumer))
        await asyncio.sleep(0)
        assert not polling.done()
        await log.append(DURABLE, 0, entries("a"))
        assert values((await polling).records) == ["a"]


async def test_a_cancelled_poll_consumes_nothing(log: EventLog) -> None:
    async with log.open_consumer(PLAIN, "g") as consumer:
        for turns in range(8):  # cancelled while it waits, and at each step of what follows an append
            polling = asyncio.create_task(consumer.poll(100))
            await asyncio.sleep(0)
            appending = asyncio.create_task(log.append(PLAIN, 0, entries(str(turns))))
            for _ in range(turns):
                await asyncio.sleep(0)
            polling.cancel()
            with suppress(asyncio.CancelledError):
                consumer.retry(await polling)  # it was faster than we
            await appending
        assert values(await drain(consumer, 8)) == [str(turns) for turns in range(8)]


async def test_max_records_bounds_a_batch(log: EventLog) -> None:
    for first in range(0, 100, 10):
        await log.append(DURABLE, 0, numbered(first, first + 9))
    async with log.open_consumer(DURABLE, "g") as consumer:
        batch = await poll(consumer, 7)
        assert 1 <= len(batch.records) <= 7
        consumer.done(batch)
        assert len(await drain(consumer, 93, max_records=33)) == 93


async def test_a_held_partition_waits_while_others_go_on(log: EventLog) -> None:
    for partition in range(3):
        await log.append(PLAIN, partition, entries(f"first {partition}"))
    async with log.open_consumer(PLAIN, "g") as consumer:
        held = await poll(consumer)
        await log.append(PLAIN, held.partition, entries("second"))
        others = [await poll(consumer), await poll(consumer)]
        assert {held.partition, *(batch.partition for batch in others)} == {0, 1, 2}
        await assert_nothing_to_poll(consumer)
        consumer.done(held)
        assert values((await poll(consumer)).records) == ["second"]


async def test_a_busy_partition_does_not_starve_the_others(log: EventLog) -> None:
    await log.append(PLAIN, 0, numbered(1, 100))
    await log.append(PLAIN, 2, entries("other"))
    async with log.open_consumer(PLAIN, "g") as consumer:
        partitions = []
        for _ in range(6):
            batch = await poll(consumer, 10)
            consumer.done(batch)
            partitions.append(batch.partition)
        assert 2 in partitions


async def test_retry_hands_the_records_out_again(log: EventLog) -> None:
    await log.append(DURABLE, 0, entries("a", "b"))
    async with log.open_consumer(DURABLE, "g") as consumer:
        first = await poll(consumer, 1)
        consumer.retry(first)
        await log.append(DURABLE, 0, entries("c"))
        assert values(await drain(consumer, 3)) == ["a", "b", "c"]


async def test_done_and_retry_take_only_a_batch_that_is_held(log: EventLog) -> None:
    await log.append(DURABLE, 0, entries("a", "b"))
    async with log.open_consumer(DURABLE, "g") as consumer:
        batch = await poll(consumer, 1)
        consumer.done(batch)
        for release in (consumer.done, consumer.retry):
            with pytest.raises(ValueError, match="held"):
                release(batch)
        assert values((await poll(consumer)).records) == ["b"]


@both_topics
async def test_a_group_goes_on_after_what_was_done(log: EventLog, topic: str) -> None:
    await log.append(topic, 0, entries("a", "b", "c"))
    async with log.open_consumer(topic, "g") as consumer:
        consumer.done(await poll(consumer, 1))
        assert values((await poll(consumer, 1)).records) == ["b"]  # and is not done
    async with log.open_consumer(topic, "g") as consumer:
        assert values(await drain(consumer, 2)) == ["b", "c"]


async def test_groups_do_not_know_each_other(log: EventLog) -> None:
    await log.append(PLAIN, 1, entries("a", "b"))
    async with log.open_consumer(PLAIN, "g1") as one, log.open_consumer(PLAIN, "g2") as two:
        assert values(await drain(one, 2)) == ["a", "b"]
        assert values(await drain(two, 2)) == ["a", "b"]


async def test_members_of_a_group_see_every_record_between_them(log: EventLog) -> None:
    for partition in range(3):
        await log.append(PLAIN, partition, entries(*(f"{partition}.{number}" for number in range(20))))
    seen: set[str] = set()
    complete = asyncio.Event()

    async def work(consumer: LogConsumer) -> None:
        while True:
            batch = await consumer.poll(7)
            seen.update(values(batch.records))
            consumer.done(batch)
            if len(seen) == 60:
                complete.set()

    async with log.open_consumer(PLAIN, "g") as one, log.open_consumer(PLAIN, "g") as two:
        workers = [asyncio.create_task(work(consumer)) for consumer in (one, two)]
        async with asyncio.timeout(DEADLINE_SECONDS):
            await complete.wait()
        for worker in workers:
            worker.cancel()
        await asyncio.wait(workers)


async def test_one_that_lags_misses_nothing_that_is_appended_meanwhile(log: EventLog) -> None:
    await log.append(PLAIN, 0, numbered(0, 999))
    async with log.open_consumer(PLAIN, "g") as consumer:
        appending = asyncio.gather(*(log.append(PLAIN, 0, numbered(first, first + 9)) for first in range(1_000, 2_000, 10)))
        records = await drain(consumer, 2_000, max_records=23)
        await appending
    assert values(records) == [str(number) for number in range(2_000)]


async def test_a_cancelled_append_happened_or_did_not(log: EventLog) -> None:
    for turns in range(5):
        appending = asyncio.create_task(log.append(DURABLE, 0, entries("a")))
        for _ in range(turns):
            await asyncio.sleep(0)
        appending.cancel()
        await asyncio.wait([appending])
        await log.append(DURABLE, 0, entries("b"))
    async with log.open_consumer(DURABLE, "g") as consumer:
        seen = ""
        while seen.count("b") < 5:
            seen += "".join(values(await drain(consumer, 1)))
    assert all(part in ("", "a") for part in seen.split("b"))


@both_topics
async def test_records_and_groups_survive_a_restart_and_offsets_go_on(log_world: LogWorld, topic: str) -> None:
    async with log_world.open(TOPICS) as log:
        epoch = log.epoch
        await log.append(topic, 0, entries("a", "b"))
        async with log.open_consumer(topic, "g") as consumer:
            consumer.done(await poll(consumer, 1))
    async with log_world.open(TOPICS) as log:
        assert log.epoch == epoch
        await log.append(topic, 0, entries("c"))
        async with log.open_consumer(topic, "g") as consumer, log.open_consumer(topic, "new") as new:
            assert values(await drain(consumer, 2)) == ["b", "c"]
            offsets = [record.offset for record in await drain(new, 3)]
            assert offsets == sorted(set(offsets))


@both_topics
async def test_whoever_looks_into_a_partition_sees_all_of_it_and_moves_nobody(log: EventLog, topic: str) -> None:
    assert [record async for record in log.records(topic, 0)] == []
    written = numbered(1, 2_500)
    await log.append(topic, 0, written)
    async with log.open_consumer(topic, "g") as consumer:
        consumer.done(await poll(consumer, 10))
        seen = [record async for record in log.records(topic, 0)]
        assert [LogEntry(record.key, record.value) for record in seen] == written
        assert (await poll(consumer)).records[0] == seen[10]
    with pytest.raises(ValueError, match="nosuch"):
        [record async for record in log.records("nosuch", 0)]


async def test_the_number_of_partitions_is_fixed(log_world: LogWorld) -> None:
    async with log_world.open(TOPICS) as log:
        assert {topic: await log.partition_count(topic) for topic in TOPICS} == TOPICS
        with pytest.raises(ValueError, match="nosuch"):
            await log.partition_count("nosuch")
    with pytest.raises(LogSetupError, match="partitions"):
        async with log_world.open({DURABLE: 1, PLAIN: 4}):
            pass
    async with log_world.open({DURABLE: 1, PLAIN: 3, "added": 2}) as log:
        assert await log.partition_count("added") == 2
