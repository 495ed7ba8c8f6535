"""What the timeline in SQLite does beyond the contract: expiry, few and indexed statements, one transaction a write."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, closing
from random import Random

import pytest

from chassis.embedded import TABLES_FILE, EmbeddedEngines, MemoryDisk, open_embedded_engines
from chassis.testing.virtual_loop import VirtualClock, run_virtual
from chassis.timeline import Point, Row, Timeline, TimelineUnavailableError

HOUR = 3_600


@pytest.fixture
def disk() -> Iterator[MemoryDisk]:
    with closing(MemoryDisk()) as disk:
        yield disk


def opened(disk: MemoryDisk) -> AbstractAsyncContextManager[EmbeddedEngines]:
    return open_embedded_engines(disk, topics={}, durable_topics=(), tables=["t", "u"], clock=VirtualClock())


@pytest.fixture
async def timeline(disk: MemoryDisk) -> AsyncIterator[Timeline]:
    async with opened(disk) as engines:
        yield engines.timeline


@pytest.fixture
def statements(disk: MemoryDisk, timeline: Timeline) -> list[str]:
    traced: list[str] = []
    disk.connection(TABLES_FILE).set_trace_callback(traced.append)
    return traced


def keys(disk: MemoryDisk, table: str = "t") -> list[bytes]:
    return [key for (key,) in disk.connection(TABLES_FILE).execute(f"SELECT key FROM rows_{table} ORDER BY partition, key")]


async def test_a_write_is_one_transaction_of_few_statements(timeline: Timeline, statements: list[str]) -> None:
    await timeline.write([Row("tu"[n % 2], f"p{n}", b"k", b"v", 1) for n in range(200)])
    assert [statement.split()[0] for statement in statements] == ["BEGIN", *["INSERT"] * 6, "COMMIT"]  # 100 = 64 + 32 + 4


async def test_reads_take_a_statement_for_each_64_and_no_scan(timeline: Timeline, disk: MemoryDisk, statements: list[str]) -> None:
    await timeline.read_points([Point("t", f"p{n}", b"k") for n in range(100)])
    await timeline.read_partitions("t", [f"p{n}" for n in range(100)])
    await timeline.read_partitions("t", [f"p{n}" for n in range(100)], limit=3)
    await timeline.read_range("t", "p", b"a", b"b", 10, descending=True)
    reads = [statement for statement in statements if statement.lstrip().startswith(("SELECT", "WITH"))]
    assert len(reads) == 2 + 2 + 2 + 1
    assert [statement for statement in statements if statement not in reads] == ["BEGIN", "COMMIT"]  # points of one moment
    for statement in reads:
        plan = [row[3] for row in disk.connection(TABLES_FILE).execute(f"EXPLAIN QUERY PLAN {statement}")]
        assert any("PRIMARY KEY" in step for step in plan), statement
        assert not any("SCAN rows_t" in step or "TEMP B-TREE" in step for step in plan), statement


async def test_a_write_fails_as_a_whole_and_says_why(timeline: Timeline, disk: MemoryDisk) -> None:
    connection = disk.connection(TABLES_FILE)
    connection.execute("PRAGMA max_page_count = 1")
    with pytest.raises(TimelineUnavailableError, match=r"tables\.db: disk full"):
        await timeline.write([Row("t", f"p{n}", b"k", bytes(1_000), 1) for n in range(200)])
    assert keys(disk) == []
    connection.execute("PRAGMA max_page_count = 100000")
    await timeline.write([Row("t", f"p{n}", b"k", bytes(1_000), 1) for n in range(200)])
    assert len(keys(disk)) == 200


async def test_reads_of_a_lost_database_are_unavailable(timeline: Timeline, disk: MemoryDisk) -> None:
    disk.kill()
    for reading in (
        timeline.read_points([Point("t", "p", b"k")]),
        timeline.read_partitions("t", ["p"]),
        timeline.read_range("t", "p", b"", b"k", 1),
    ):
        with pytest.raises(TimelineUnavailableError, match="closed"):
            await reading


def test_expired_rows_go_and_the_others_stay() -> None:
    """Swept after their time plus the two hours by which clocks may differ; also after a restart."""

    async def main(_rng: Random) -> None:
        with closing(MemoryDisk()) as disk:
            async with opened(disk) as engines:
                rows = [Row("t", f"p{n % 50}", b"%05d" % n, b"v", 1, HOUR if n % 2 else 0) for n in range(5_000)]
                await engines.timeline.write(rows)
                await engines.timeline.write([Row("t", "p", b"long", b"v", 1, 100 * HOUR), Row("u", "p", b"kept", b"v", 1)])
                await asyncio.sleep(2.9 * HOUR)
                await engines.timeline.sweep()
                assert len(keys(disk)) == 5_001
            async with opened(disk) as engines:
                await asyncio.sleep(7 * HOUR)
                assert len(keys(disk)) == 2_501
                await asyncio.sleep(110 * HOUR)
                assert len(keys(disk)) == 2_500
                assert keys(disk, "u") == [b"kept"]

    run_virtual(main)


def test_a_row_written_again_without_expiry_stays() -> None:
    async def main(_rng: Random) -> None:
        with closing(MemoryDisk()) as disk:
            async with opened(disk) as engines:
                await engines.timeline.write([Row("t", "p", b"k", b"v", 1, HOUR), Row("t", "p", b"gone", b"v", 1, HOUR)])
                await engines.timeline.write([Row("t", "p", b"k", b"v", 2)])
                await asyncio.sleep(24 * HOUR)
                assert keys(disk) == [b"k"]

    run_virtual(main)


def test_a_sweep_goes_on_after_a_failure() -> None:
    async def main(_rng: Random) -> None:
        with closing(MemoryDisk()) as disk:
            async with opened(disk) as engines:
                await engines.timeline.write([Row("t", "p", b"k", b"v", 1, HOUR)])
                disk.connection(TABLES_FILE).execute("PRAGMA query_only = ON")
                await asyncio.sleep(24 * HOUR)
                assert keys(disk) == [b"k"]
                disk.connection(TABLES_FILE).execute("PRAGMA query_only = OFF")
                await asyncio.sleep(24 * HOUR)
                assert keys(disk) == []

    run_virtual(main)


async def test_names_of_tables_are_checked(disk: MemoryDisk) -> None:
    with pytest.raises(ValueError, match="no table name"):
        async with open_embedded_engines(disk, topics={}, durable_topics=(), tables=["a b"], clock=VirtualClock()):
            pass
    assert isinstance(disk.connection(TABLES_FILE), sqlite3.Connection)
