"""What the log in SQLite does beyond the contract: memory at the tail, coalesced commits, retention, refusals."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, closing
from pathlib import Path
from random import Random

import pytest

from chassis import eventlog_sqlite_partition
from chassis.clock import SystemClock
from chassis.embedded import COMMANDS_FILE, TABLES_FILE, EmbeddedEngines, MemoryDisk, open_embedded_engines
from chassis.eventlog import EventLog, LogConsumer, LogEntry, LogUnavailableError
from chassis.eventlog_sqlite_partition import pack, unpack
from chassis.testing.virtual_loop import VirtualClock, run_virtual
from chassis.timeline import Row, TimelineUnavailableError

DAY_SECONDS = 86_400


class SteppedClock(SystemClock):
    """Wall time that tests set."""

    now_ms = 1_700_000_000_000

    def wall_ms(self) -> int:
        return self.now_ms


@pytest.fixture
def disk() -> Iterator[MemoryDisk]:
    with closing(MemoryDisk()) as disk:
        yield disk


@pytest.fixture
def clock() -> SteppedClock:
    return SteppedClock()


def opened(
    data: MemoryDisk | Path | None, clock: SteppedClock | VirtualClock, *, commit_interval_seconds: float = 3_600.0
) -> AbstractAsyncContextManager[EmbeddedEngines]:
    return open_embedded_engines(
        data,
        topics={"commands": 1, "events": 2},
        durable_topics=["commands"],
        tables=["t"],
        clock=clock,
        commit_interval_seconds=commit_interval_seconds,
        retention_days={"events": 1.0},
    )


@pytest.fixture
async def engines(disk: MemoryDisk, clock: SteppedClock) -> AsyncIterator[EmbeddedEngines]:
    async with opened(disk, clock) as engines:
        yield engines


async def append(log: EventLog, topic: str, first: int, last: int, partition: int = 0) -> None:
    await log.append(topic, partition, [LogEntry(b"k", b"%d" % number) for number in range(first, last + 1)])


async def take(consumer: LogConsumer, count: int, max_records: int = 100) -> list[int]:
    """Poll and do until `count` records have come; return their values."""
    taken: list[int] = []
    async with asyncio.timeout(20):
        while len(taken) < count:
            batch = await consumer.poll(max_records)
            taken += [int(record.value) for record in batch.records]
            consumer.done(batch)
    return taken


def rows(disk: MemoryDisk, file: str, table: str) -> int:
    count: int = disk.connection(file).execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    return count


def test_packing_is_reversible() -> None:
    rng = Random(1)
    for count in (1, 2, 100):
        entries = [LogEntry(rng.randbytes(rng.randrange(40)), rng.randbytes(rng.randrange(300))) for _ in range(count)]
        assert list(unpack(pack(entries), count)) == entries


async def test_one_append_is_one_row(engines: EmbeddedEngines, disk: MemoryDisk) -> None:
    await append(engines.log, "commands", 1, 500)
    await append(engines.log, "commands", 501, 502)
    assert rows(disk, COMMANDS_FILE, "log_1") == 2


async def test_large_appends_are_cut_into_bounded_rows(engines: EmbeddedEngines, disk: MemoryDisk) -> None:
    await append(engines.log, "commands", 1, 2_000)
    assert rows(disk, COMMANDS_FILE, "log_1") == 4
    await engines.log.append("commands", 0, [LogEntry(b"k", bytes(400_000))] * 9)
    assert rows(disk, COMMANDS_FILE, "log_1") == 4 + 5


async def test_the_tail_is_read_from_memory(engines: EmbeddedEngines, disk: MemoryDisk) -> None:
    async with engines.log.open_consumer("commands", "g") as consumer:
        statements: list[str] = []
        disk.connection(COMMANDS_FILE).set_trace_callback(statements.append)
        for number in range(20):
            await append(engines.log, "commands", number, number)
            assert await take(consumer, 1) == [number]
        assert not [statement for statement in statements if statement.startswith("SELECT")]


async def test_batches_merge_under_backlog(engines: EmbeddedEngines) -> None:
    async with engines.log.open_consumer("commands", "g") as consumer:
        for number in range(50):
            await append(engines.log, "commands", number, number)
        batch = await consumer.poll(40)
        assert [int(record.value) for record in batch.records] == list(range(40))


async def test_one_that_falls_out_of_memory_reads_the_disk_and_catches_up(
    engines: EmbeddedEngines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eventlog_sqlite_partition, "_RING_BYTES", 10_000)
    async with engines.log.open_consumer("commands", "g") as consumer:
        for first in range(0, 1_000, 10):
            await append(engines.log, "commands", first, first + 9)
        partition = engines.log._partitions["commands"][0]
        assert 0 < partition._ring_bytes <= 10_000
        assert await take(consumer, 994, max_records=7) == list(range(994))
        await append(engines.log, "commands", 1_000, 1_009)
        assert await take(consumer, 16) == list(range(994, 1_010))


async def test_a_failed_append_leaves_a_gap_that_readers_pass(engines: EmbeddedEngines, disk: MemoryDisk) -> None:
    connection = disk.connection(COMMANDS_FILE)
    async with engines.log.open_consumer("commands", "g") as consumer:
        await append(engines.log, "commands", 1, 3)
        connection.execute("PRAGMA max_page_count = 1")  # cut to what the file has
        with pytest.raises(LogUnavailableError, match=r"commands/0: commands\.db: disk full"):
            await engines.log.append("commands", 0, [LogEntry(b"k", bytes(200_000))])
        connection.execute("PRAGMA max_page_count = 1000000")
        await append(engines.log, "commands", 4, 5)
        assert await take(consumer, 5) == [1, 2, 3, 4, 5]
    async with engines.log.open_consumer("commands", "later") as consumer:
        offsets = [record.offset for record in (await consumer.poll(100)).records]
        assert offsets == sorted(set(offsets))
        assert len(offsets) == 5


def test_what_is_done_is_committed_after_the_interval() -> None:
    async def main(_rng: Random) -> None:
        with closing(MemoryDisk()) as disk:
            async with opened(disk, VirtualClock(), commit_interval_seconds=0.2) as engines:
                await append(engines.log, "commands", 1, 3)
                async with engines.log.open_consumer("commands", "g") as consumer:
                    assert await take(consumer, 2, max_records=1) == [1, 2]
                    await asyncio.sleep(0.1)
                    assert rows(disk, TABLES_FILE, "log_offset WHERE next_offset = 2") == 0
                    await asyncio.sleep(0.2)
                    disk.kill()
            async with opened(disk, VirtualClock()) as engines, engines.log.open_consumer("commands", "g") as consumer:
                assert await take(consumer, 1) == [3]

    run_virtual(main)


async def test_a_crash_before_the_commit_delivers_again(disk: MemoryDisk, clock: SteppedClock) -> None:
    async with opened(disk, clock) as engines:
        await append(engines.log, "commands", 1, 3)
        async with engines.log.open_consumer("commands", "g") as consumer:
            await take(consumer, 3)
            disk.kill()
            with pytest.raises(LogUnavailableError):
                await append(engines.log, "commands", 4, 4)
    async with opened(disk, clock) as engines, engines.log.open_consumer("commands", "g") as consumer:
        assert await take(consumer, 3) == [1, 2, 3]


async def test_a_zombie_does_not_take_its_group_back(disk: MemoryDisk, clock: SteppedClock) -> None:
    async with opened(disk, clock) as engines:
        await append(engines.log, "commands", 1, 4)
        async with engines.log.open_consumer("commands", "g") as zombie, engines.log.open_consumer("commands", "g") as worker:
            early = await zombie.poll(1)
            assert await take(worker, 4) == [1, 2, 3, 4]
            zombie.done(early)
    async with opened(disk, clock) as engines, engines.log.open_consumer("commands", "g") as consumer:
        await append(engines.log, "commands", 5, 5)
        assert await take(consumer, 1) == [5]


async def test_retention_deletes_what_is_old_and_done_by_all(
    engines: EmbeddedEngines, disk: MemoryDisk, clock: SteppedClock
) -> None:
    log = engines.log
    async with log.open_consumer("commands", "fast") as fast, log.open_consumer("commands", "slow") as slow:
        for first in (1, 11, 21):
            await append(log, "commands", first, first + 9)
            clock.now_ms += 3 * DAY_SECONDS * 1_000
        await take(fast, 30)
        await take(slow, 15, max_records=15)
        await log.trim()
        assert rows(disk, COMMANDS_FILE, "log_1") == 3 - 1  # 9 days old and done by both; the next is not done; the last is young
        await take(slow, 15)
        await log.trim()
        assert rows(disk, COMMANDS_FILE, "log_1") == 2  # 6 days are within a week
        clock.now_ms += 5 * DAY_SECONDS * 1_000
        await log.trim()
        assert rows(disk, COMMANDS_FILE, "log_1") == 0


async def test_retention_waits_for_a_group_that_has_done_nothing(
    engines: EmbeddedEngines, disk: MemoryDisk, clock: SteppedClock
) -> None:
    await append(engines.log, "events", 1, 10)
    await append(engines.log, "events", 1, 10, partition=1)
    async with engines.log.open_consumer("events", "g"):
        pass
    clock.now_ms += 30 * DAY_SECONDS * 1_000
    await engines.log.trim()
    async with engines.log.open_consumer("events", "g") as consumer:
        assert len(await take(consumer, 20)) == 20


async def test_retention_trusts_only_offsets_that_are_committed(disk: MemoryDisk, clock: SteppedClock) -> None:
    """Power loss takes back what is done and not committed: whatever retention does meanwhile, its records must be there."""
    for turns in range(12):
        async with opened(disk, clock) as engines:
            await append(engines.log, "commands", 1, 10)
            clock.now_ms += 30 * DAY_SECONDS * 1_000
            async with engines.log.open_consumer("commands", f"g{turns}") as consumer:
                batch = await consumer.poll(1_000)
                trimming = asyncio.create_task(engines.log.trim())
                for _ in range(turns):
                    await asyncio.sleep(0)
                consumer.done(batch)
                await trimming
                if not rows(disk, COMMANDS_FILE, "log_1"):
                    assert rows(disk, TABLES_FILE, f"log_offset WHERE next_offset > 0 AND consumer_group = 'g{turns}'")


async def test_a_topic_that_nobody_reads_is_kept_for_its_time_only(
    engines: EmbeddedEngines, disk: MemoryDisk, clock: SteppedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eventlog_sqlite_partition, "_TRIM_ROWS", 10)  # several transactions
    for number in range(35):
        await append(engines.log, "events", number, number)
    clock.now_ms += 2 * DAY_SECONDS * 1_000
    await append(engines.log, "events", 35, 35)
    await engines.log.trim()
    assert rows(disk, TABLES_FILE, "log_1") == 1


async def test_offsets_are_not_reused_after_retention_and_restart(disk: MemoryDisk, clock: SteppedClock) -> None:
    for round_number in range(3):
        async with opened(disk, clock) as engines:
            await append(engines.log, "commands", 0, 9)
            async with engines.log.open_consumer("commands", "g") as consumer:
                batch = await consumer.poll(100)
                assert [record.offset for record in batch.records] == list(range(10 * round_number, 10 * round_number + 10))
                consumer.done(batch)
            clock.now_ms += 30 * DAY_SECONDS * 1_000
            await engines.log.trim()
            assert rows(disk, COMMANDS_FILE, "log_1") == 0


async def test_a_group_that_starts_below_the_oldest_record_starts_there(disk: MemoryDisk, clock: SteppedClock) -> None:
    async with opened(disk, clock) as engines:
        await append(engines.log, "commands", 1, 5)
        clock.now_ms += 30 * DAY_SECONDS * 1_000
        await engines.log.trim()
    async with opened(disk, clock) as engines, engines.log.open_consumer("commands", "new") as consumer:
        polling = asyncio.create_task(take(consumer, 2))
        await asyncio.sleep(0)
        await append(engines.log, "commands", 6, 7)
        assert await polling == [6, 7]


def test_retention_and_commits_run_by_themselves() -> None:
    """Thirty days of virtual time, without a call to trim."""

    async def main(_rng: Random) -> Mapping[str, int]:
        with closing(MemoryDisk()) as disk:
            async with opened(disk, VirtualClock(), commit_interval_seconds=0.2) as engines:
                await append(engines.log, "events", 1, 10)
                await append(engines.log, "commands", 1, 10)
                async with engines.log.open_consumer("commands", "g") as consumer:
                    await take(consumer, 10)
                    await asyncio.sleep(0.3)
                    committed = rows(disk, TABLES_FILE, "log_offset WHERE next_offset = 10")
                    await asyncio.sleep(2 * DAY_SECONDS)
                    after_two_days = rows(disk, COMMANDS_FILE, "log_1"), rows(disk, TABLES_FILE, "log_1")
                    await asyncio.sleep(6 * DAY_SECONDS)
                    return {
                        "committed": committed,
                        "commands after 2 days": after_two_days[0],
                        "events after 2 days": after_two_days[1],
                        "commands after 8 days": rows(disk, COMMANDS_FILE, "log_1"),
                    }

    assert run_virtual(main) == {"committed": 1, "commands after 2 days": 1, "events after 2 days": 0, "commands after 8 days": 0}


async def test_a_log_that_ends_before_what_was_done_is_refused(disk: MemoryDisk, clock: SteppedClock) -> None:
    async with opened(disk, clock) as engines:
        await append(engines.log, "commands", 1, 5)
        async with engines.log.open_consumer("commands", "g") as consumer:
            await take(consumer, 5)
    disk.connection(COMMANDS_FILE).execute("DELETE FROM log_1")
    with pytest.raises(LogUnavailableError, match=r"commands\.e1/0 ends at 0, but g has done everything before 5"):
        async with opened(disk, clock):
            pass


def test_a_disk_that_fails_delays_commits_of_offsets_and_loses_none() -> None:
    async def main(_rng: Random) -> None:
        with closing(MemoryDisk()) as disk:
            async with opened(disk, VirtualClock(), commit_interval_seconds=0.2) as engines:
                await append(engines.log, "commands", 1, 5)
                tables = disk.connection(TABLES_FILE)
                tables.execute("PRAGMA query_only = ON")
                async with engines.log.open_consumer("commands", "g") as consumer:
                    await take(consumer, 5)
                    await asyncio.sleep(1)
                    with pytest.raises(LogUnavailableError, match="read-only"):
                        await append(engines.log, "events", 1, 1)
                    tables.execute("PRAGMA query_only = OFF")
                    await asyncio.sleep(1)
                    assert rows(disk, TABLES_FILE, "log_offset WHERE next_offset = 5") == 1

    run_virtual(main)


def test_commands_are_refused_while_nobody_could_apply_them() -> None:
    """A failed commit of the tables speaks for the next one, until one succeeds or nobody has tried for a while."""

    async def main(_rng: Random) -> None:
        with closing(MemoryDisk()) as disk:
            async with opened(disk, VirtualClock()) as engines:
                tables = disk.connection(TABLES_FILE)
                for _ in range(2):
                    tables.execute("PRAGMA query_only = ON")
                    await append(engines.log, "commands", 1, 1)
                    with pytest.raises(TimelineUnavailableError):
                        await engines.timeline.write([Row("t", "p", b"k", b"v", 1)])
                    with pytest.raises(LogUnavailableError, match=r"commands/0: consumers can't write: tables\.db: read-only"):
                        await append(engines.log, "commands", 2, 2)
                    tables.execute("PRAGMA query_only = OFF")
                    await engines.timeline.write([Row("t", "p", b"k", b"v", 1)])
                    await append(engines.log, "commands", 3, 3)
                tables.execute("PRAGMA query_only = ON")
                with pytest.raises(LogUnavailableError):
                    await append(engines.log, "events", 1, 1)
                await asyncio.sleep(5.1)
                await append(engines.log, "commands", 4, 4)

    run_virtual(main)


async def test_tables_that_the_log_can_not_bring_up_to_date_any_more_are_refused(tmp_path: Path, clock: SteppedClock) -> None:
    tables = tmp_path / TABLES_FILE
    async with opened(tmp_path, clock) as engines, engines.log.open_consumer("commands", "g"):
        await append(engines.log, "commands", 1, 5)
    old = tables.read_bytes()
    tables.unlink()
    async with opened(tmp_path, clock) as engines, engines.log.open_consumer("commands", "g") as consumer:
        assert await take(consumer, 5) == [1, 2, 3, 4, 5]
    clock.now_ms += 8 * DAY_SECONDS * 1000
    async with opened(tmp_path, clock) as engines:
        await engines.log.trim()
        async with engines.log.open_consumer("commands", "new"):
            pass
    async with opened(tmp_path, clock):
        pass
    tables.unlink()
    for content in (None, None, old, old):
        if content:
            tables.write_bytes(content)
        with pytest.raises(LogUnavailableError, match=r"commands.*/0 begins at 5, but .* missing or too old"):
            await opened(tmp_path, clock).__aenter__()
