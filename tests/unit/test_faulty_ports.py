"""The ports behind seeded faults: as bad as their contracts allow, and no worse."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from random import Random

import pytest

from chassis.embedded import open_embedded_engines
from chassis.eventlog import LogConsumer, LogEntry, LogUnavailableError
from chassis.testing import faults
from chassis.testing.faults import Engine, Faults, Life, Trace
from chassis.testing.faulty_log import FaultyLog, LogEngine
from chassis.testing.faulty_timeline import FaultyTimeline
from chassis.testing.virtual_loop import VirtualClock, run_virtual
from chassis.timeline import PARTITION_WRITE_BYTES, Row, TimelineUnavailableError

GROUPS = [f"p{number}" for number in range(8)]
ROWS = [Row("t", partition, key, b"v", 1) for partition in GROUPS for key in (b"a", b"b")]


class Ports:
    """The real engines, and one process's view of them."""

    def __init__(self, engines, rates: Mapping[str, float], seed: int) -> None:
        self.engines = engines
        self.faults = Faults(seed, Trace(), rates)
        self.database, self.topics = Engine("database"), LogEngine("log")
        self.deaths: list[Life] = []

    def process(self, name: str, **life: int) -> tuple[FaultyLog, FaultyTimeline, Life]:
        stream = self.faults.stream(name)
        incarnation = Life(name, stream, self.deaths.append, **life)
        log = FaultyLog(self.engines.log, self.topics, stream, incarnation)
        return log, FaultyTimeline(self.engines.timeline, self.database, stream, incarnation), incarnation


@asynccontextmanager
async def open_ports(rates: Mapping[str, float], seed: int = 0) -> AsyncIterator[Ports]:
    async with open_embedded_engines(None, topics={"topic": 1}, durable_topics=(), tables=["t"], clock=VirtualClock()) as engines:
        yield Ports(engines, rates, seed)


def on_virtual_time(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    async def main(_rng: Random) -> None:
        await test()

    def run() -> None:
        run_virtual(main)

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


async def offsets_of(consumer: LogConsumer, count: int) -> list[int]:
    offsets: list[int] = []
    while len(offsets) < count:
        batch = await consumer.poll(2)
        offsets += [record.offset for record in batch.records]
        consumer.done(batch)
    return offsets


@on_virtual_time
async def test_without_faults_the_ports_do_what_is_asked():
    async with open_ports({}) as ports:
        log, timeline, _ = ports.process("a")
        await timeline.write(ROWS)
        assert len(await timeline.read_partitions("t", GROUPS)) == len(GROUPS)
        await log.append("topic", 0, [LogEntry(b"", b"1"), LogEntry(b"", b"2")])
        async with log.open_consumer("topic", "g") as consumer:
            assert await offsets_of(consumer, 2) == [0, 1]
        assert ports.faults.counts == {}


@on_virtual_time
async def test_a_failed_write_applies_any_subset_of_whole_groups_some_of_them_late():
    rates = {faults.WRITE_FAILS: 1.0, faults.WRITE_LATE: 0.3, faults.WRITE_LOST: 0.5}
    async with open_ports(rates, seed=3) as ports:
        _, timeline, _ = ports.process("a")
        with pytest.raises(TimelineUnavailableError):
            await timeline.write(ROWS)
        at_once = await ports.engines.timeline.read_partitions("t", GROUPS)
        await ports.database.settle()
        at_last = await ports.engines.timeline.read_partitions("t", GROUPS)
        assert 0 < len(at_once) < len(at_last) < len(GROUPS)
        assert {len(cells) for cells in at_last.values()} == {2}


@on_virtual_time
async def test_a_write_goes_on_when_its_caller_is_gone():
    async with open_ports({faults.SLOW: 1.0}) as ports:
        _, timeline, _ = ports.process("a")
        writing = asyncio.create_task(timeline.write(ROWS))
        await asyncio.sleep(0.01)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        assert not await ports.engines.timeline.read_partitions("t", GROUPS)
        await ports.database.settle()
        assert len(await ports.engines.timeline.read_partitions("t", GROUPS)) == len(GROUPS)


@on_virtual_time
async def test_a_failed_append_leaves_a_prefix_and_may_add_more_later():
    async with open_ports({faults.APPEND_FAILS: 1.0, faults.APPEND_LATE: 1.0}, seed=1) as ports:
        log, _, _ = ports.process("a")
        with pytest.raises(LogUnavailableError):
            await log.append("topic", 0, [LogEntry(b"", bytes([number])) for number in range(6)])
        await ports.topics.settle()
        async with ports.engines.log.open_consumer("topic", "judge") as consumer:
            batch = await consumer.poll(100)
            values = [record.value[0] for record in batch.records]
        assert values == list(range(len(values)))
        assert values


@on_virtual_time
async def test_overlapping_appends_of_one_process_keep_their_order():
    async with open_ports({faults.SLOW: 0.5}) as ports:
        log, _, _ = ports.process("a")
        await asyncio.gather(*(log.append("topic", 0, [LogEntry(b"", bytes([number]))]) for number in range(20)))
        async with ports.engines.log.open_consumer("topic", "judge") as consumer:
            assert [record.value[0] for record in (await consumer.poll(100)).records] == list(range(20))


@on_virtual_time
async def test_what_is_done_but_not_committed_comes_again_after_a_crash():
    async with open_ports({faults.COMMIT_LAGS: 1.0}) as ports:
        log, _, life = ports.process("a.1")
        await log.append("topic", 0, [LogEntry(b"", b"x")] * 6)
        async with log.open_consumer("topic", "g") as consumer:
            assert await offsets_of(consumer, 4) == [0, 1, 2, 3]
            life.die("here")
        log, _, _ = ports.process("a.2")
        async with log.open_consumer("topic", "g") as consumer:
            assert await offsets_of(consumer, 6) == [0, 1, 2, 3, 4, 5]
        async with log.open_consumer("topic", "g") as consumer:  # the second left in order: that commits
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(consumer.poll(1), 5)


@on_virtual_time
async def test_a_laggard_that_is_thrown_out_goes_on_where_the_group_is():
    async with open_ports({faults.REJOIN: 1.0}) as ports:
        ahead, behind = ports.process("a")[0], ports.process("b")[0]
        await ahead.append("topic", 0, [LogEntry(b"", b"x")] * 4)
        async with ahead.open_consumer("topic", "g") as first, behind.open_consumer("topic", "g") as second:
            held = await second.poll(1)
            assert await offsets_of(first, 4) == [0, 1, 2, 3]
            second.done(held)
            await ahead.append("topic", 0, [LogEntry(b"", b"x")])
            assert await offsets_of(second, 1) == [4]


@on_virtual_time
async def test_a_cancelled_poll_and_a_retried_batch_lose_nothing():
    async with open_ports({faults.PAUSE: 0.5}, seed=2) as ports:
        log, _, _ = ports.process("a")
        await log.append("topic", 0, [LogEntry(b"", b"x")] * 3)
        async with log.open_consumer("topic", "g") as consumer:
            for _ in range(10):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(consumer.poll(10), 0)
            batch = await consumer.poll(10)
            consumer.retry(batch)
            assert await offsets_of(consumer, 3) == [0, 1, 2]


@on_virtual_time
async def test_a_partition_that_is_away_for_less_than_a_timer_can_tell_comes_back():
    async with open_ports({}) as ports:
        log, _, _ = ports.process("a")
        await log.append("topic", 0, [LogEntry(b"", b"1")])
        async with log.open_consumer("topic", "g") as consumer:
            ports.topics.take_away("topic", 0, 5e-10)
            assert await offsets_of(consumer, 1) == [0]


@on_virtual_time
async def test_the_dead_touch_nothing():
    async with open_ports({}) as ports:
        log, timeline, life = ports.process("a")
        life.die("here")
        life.die("again")
        assert ports.deaths == [life]
        for attempt in (timeline.write(ROWS), timeline.read_partitions("t", GROUPS), log.append("topic", 0, [LogEntry(b"", b"x")])):
            with pytest.raises(asyncio.CancelledError):
                await attempt
        assert not await ports.engines.timeline.read_partitions("t", GROUPS)


@on_virtual_time
async def test_a_process_dies_at_the_step_that_a_test_names():
    async with open_ports({}) as ports:
        _, timeline, _ = ports.process("a", crash_at_step=2)  # after the write took effect, before its caller knows
        with pytest.raises(asyncio.CancelledError):
            await timeline.write(ROWS)
        assert len(await ports.engines.timeline.read_partitions("t", GROUPS)) == len(GROUPS)


@on_virtual_time
async def test_an_engine_that_is_away_fails_everybody_for_a_while():
    async with open_ports({faults.OUTAGE: 1.0}) as ports:
        _, timeline, _ = ports.process("a")
        with pytest.raises(TimelineUnavailableError):
            await timeline.write(ROWS)
        ports.faults.heal()
        with pytest.raises(TimelineUnavailableError):
            await ports.process("b")[1].read_partitions("t", GROUPS)
        await asyncio.sleep(faults.OUTAGE_SECONDS_MAX)
        await timeline.write(ROWS)


@on_virtual_time
async def test_each_place_draws_for_itself():
    """What one place draws does not move the draws of another: a run that is shrunk stays comparable."""
    busy, calm = Faults(7, Trace(), faults.RATES), Faults(7, Trace(), faults.RATES)
    for _ in range(100):
        busy.stream("elsewhere").happens(faults.CRASH)
    here, there = busy.stream("here"), calm.stream("here")
    assert [here.happens(faults.SLOW) for _ in range(200)] == [there.happens(faults.SLOW) for _ in range(200)]
    assert calm.counts[faults.SLOW] > 0


def test_swarms_leave_some_kinds_out_and_keep_shares():
    drawn = [faults.swarm(faults.RATES, Random(seed)) for seed in range(50)]
    assert {rates[faults.COMMIT_LAGS] for rates in drawn} == {faults.RATES[faults.COMMIT_LAGS]}
    assert 0.0 in {rates[faults.CRASH] for rates in drawn}
    assert max(rate for rates in drawn for rate in rates.values()) <= 1.0


@on_virtual_time
async def test_rows_that_engines_refuse_for_their_size_are_found():
    async with open_ports({}) as ports:
        _, timeline, _ = ports.process("a")
        half = bytes(PARTITION_WRITE_BYTES // 2)
        await timeline.write([Row("t", name, b"", half, 1) for name in "abc"])
        with pytest.raises(AssertionError, match="bytes in one write"):
            await timeline.write([Row("t", "p", key, half, 1) for key in (b"a", b"b")])
