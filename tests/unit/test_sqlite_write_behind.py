"""Tables that a file gets a moment later: reads see all at once, the file all of a moment or nothing, trouble stops writers."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest

from chassis import eventlog_sqlite_partition
from chassis.clock import SystemClock
from chassis.embedded import TABLES_FILE, EmbeddedEngines, open_embedded_engines
from chassis.eventlog import LogEntry, LogUnavailableError
from chassis.sqlite import StorageError
from chassis.sqlite_write_behind import WriteBehind
from chassis.timeline import Cell, Point, Row, TimelineUnavailableError

HOUR = 3_600


def opened(folder: Path, interval_seconds: float = HOUR) -> Any:
    return open_embedded_engines(
        folder,
        topics={"commands": 1, "events": 1},
        durable_topics=["commands"],
        tables=["t", "u"],
        clock=SystemClock(),
        commit_interval_seconds=interval_seconds,
    )


@pytest.fixture
async def engines(tmp_path: Path) -> AsyncIterator[EmbeddedEngines]:
    async with opened(tmp_path) as engines:  # it writes when it is told to
        yield engines


def behind(engines: EmbeddedEngines) -> WriteBehind:
    assert engines.timeline._write_behind is not None
    return engines.timeline._write_behind


def stored(folder: Path, statement: str = "SELECT count(*) FROM rows_t") -> Any:
    """Ask the file, as who comes after a kill finds it."""
    with closing(sqlite3.connect(folder / TABLES_FILE)) as connection:
        return connection.execute(statement).fetchone()[0]


def failing(monkeypatch: pytest.MonkeyPatch, engines: EmbeddedEngines) -> Callable[[], None]:
    """Let the tables' file take nothing until what is returned is called."""

    def write(*_args: object, **_named: object) -> Awaitable[None]:
        raise StorageError("tables.db: disk full")

    database = engines.timeline._database
    before = database.write
    monkeypatch.setattr(database, "write", write)
    return lambda: monkeypatch.setattr(database, "write", before)


@pytest.mark.parametrize("seed", range(20))
async def test_reads_see_what_is_pending_as_if_it_were_stored(
    engines: EmbeddedEngines, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, timeline = Random(seed), engines.timeline
    model: dict[Point, tuple[int, bytes]] = {}
    points = [Point(table, partition, bytes([key])) for table in "tu" for partition in "pqr" for key in range(6)]
    for step in range(120):
        action = rng.random()
        if action < 0.5:
            rows = []
            for point in rng.sample(points, rng.randint(1, 5)):
                stamp, value = rng.randint(1, 20), b"%d" % step
                rows.append(Row(*point, value, stamp, rng.choice((0, HOUR))))
                if stamp >= model.get(point, (0, b""))[0]:
                    model[point] = (stamp, value)
            await timeline.write(rows)
        elif action < 0.6:
            await behind(engines).settle()
        elif action < 0.7:
            mend = failing(monkeypatch, engines)
            if behind(engines)._marked:
                with pytest.raises(StorageError, match="disk full"):
                    await behind(engines).settle()
            mend()
            await behind(engines).settle()
        table, partition = rng.choice("tu"), rng.choice("pqr")
        cells = [Cell(point.key, model[point][1]) for point in points if point[:2] == (table, partition) and point in model]
        some = rng.sample(points, rng.randint(1, 8))
        assert await timeline.read_points(some) == {point: model[point][1] for point in some if point in model}
        limit = rng.randint(0, 4)
        found = await timeline.read_partitions(table, [partition, "none"], limit)
        assert found == ({partition: cells[:limit] if limit else cells} if cells else {})
        first, last, most = bytes([rng.randint(0, 5)]), bytes([rng.randint(0, 5)]), rng.randint(1, 4)
        between = [cell for cell in cells if first <= cell.key <= last]
        assert await timeline.read_range(table, partition, first, last, most) == between[:most]
        assert await timeline.read_range(table, partition, first, last, most, descending=True) == between[::-1][:most]


async def test_reads_under_way_while_the_file_takes_rows_see_all_of_them(engines: EmbeddedEngines) -> None:
    names = [f"p{n}" for n in range(300)]  # too many for a read in place: it goes to a thread, as the write does
    for stamp in range(1, 20):
        await engines.timeline.write([Row("t", name, b"k", b"%d" % stamp, stamp) for name in names])
        settling = asyncio.create_task(behind(engines).settle())
        for _ in range(3):
            found = await engines.timeline.read_partitions("t", names)
            assert {cells[0].value for cells in found.values()} == {b"%d" % stamp}
            assert len(found) == len(names)
        await settling


async def test_the_file_gets_rows_events_and_offsets_of_a_moment_together(tmp_path: Path) -> None:
    async with opened(tmp_path) as engines, engines.log.open_consumer("commands", "g") as consumer:
        await engines.log.append("commands", 0, [LogEntry(b"k", b"v")])
        batch = await consumer.poll(10)
        await engines.timeline.write([Row("t", "p", b"k", b"v", 1), Row("t", "p", b"l", b"v", 1)])
        await engines.timeline.write([Row("t", "p", b"k", b"w", 2)])
        await engines.log.append("events", 0, [LogEntry(b"k", b"v")])
        consumer.done(batch)
        offset = "SELECT max(next_offset) FROM log_offset WHERE topic = 'commands.e1'"
        statements: list[str] = []
        engines.timeline._database._writer.connection.set_trace_callback(statements.append)
        events = "log_" + str(engines.log._partitions["events"][0]._id)
        assert stored(tmp_path) == stored(tmp_path, f"SELECT count(*) FROM {events}") == 0
        await behind(engines).settle()
        assert statements[0] == "BEGIN IMMEDIATE"
        assert statements.count("COMMIT") == 1
        assert stored(tmp_path) == 2  # each row once
        assert stored(tmp_path, f"SELECT count(*) FROM {events}") == stored(tmp_path, offset) == 1
        await behind(engines).settle()
        assert statements.count("COMMIT") == 1  # nothing new


async def test_what_many_small_batches_published_goes_to_the_file_in_few_statements(engines: EmbeddedEngines) -> None:
    """Each statement takes the interpreter's lock from the loop, which at half load publishes 150 batches meanwhile."""
    for number in range(200):
        await engines.log.append("events", 0, [LogEntry(b"k", b"%d" % number)])
    statements: list[str] = []
    engines.timeline._database._writer.connection.set_trace_callback(statements.append)
    await behind(engines).settle()
    assert sum(statement.startswith("INSERT") for statement in statements) <= 5
    assert [record.value async for record in engines.log.records("events", 0)] == [b"%d" % number for number in range(200)]


async def test_a_moment_later_it_is_in_the_file_unasked_and_at_the_end_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, 0.01) as engines, asyncio.timeout(30):
        written = asyncio.Event()
        monkeypatch.setattr(engines.timeline, "on_written", written.set)
        await engines.timeline.write([Row("t", "p", b"k", b"v", 1)])
        await written.wait()
        assert stored(tmp_path) == 1
    async with opened(tmp_path) as engines:
        await engines.timeline.write([Row("t", "p", b"l", b"v", 1)])
    assert stored(tmp_path) == 2


async def test_while_the_file_takes_nothing_nobody_may_write_more(
    engines: EmbeddedEngines, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mend = failing(monkeypatch, engines)
    await engines.timeline.write([Row("t", "p", b"k", b"v", 1)])
    with pytest.raises(StorageError):
        await behind(engines).settle()
    with pytest.raises(TimelineUnavailableError, match="disk full"):
        await engines.timeline.write([Row("t", "p", b"l", b"v", 1)])
    with pytest.raises(LogUnavailableError, match="disk full"):
        await engines.log.append("events", 0, [LogEntry(b"k", b"v")])
    mend()
    await behind(engines).settle()
    await engines.timeline.write([Row("t", "p", b"m", b"v", 1)])
    assert [cell.key for cell in (await engines.timeline.read_partitions("t", ["p"]))["p"]] == [b"k", b"m"]
    assert stored(tmp_path) == 1


async def test_who_brings_too_much_waits_for_the_file(engines: EmbeddedEngines, tmp_path: Path) -> None:
    for number in range(40):
        await engines.timeline.write([Row("t", "p", b"%d" % number, bytes(1 << 20), 1)])
    assert stored(tmp_path) >= 30


async def test_events_that_memory_let_go_of_are_read_from_the_file(
    engines: EmbeddedEngines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eventlog_sqlite_partition, "_RING_BYTES", 1_000)
    for number in range(50):
        await engines.log.append("events", 0, [LogEntry(b"k", b"%d" % number)])
    values: list[bytes] = []
    async with engines.log.open_consumer("events", "g") as consumer, asyncio.timeout(30):
        while len(values) < 50:
            batch = await consumer.poll(7)
            values += [record.value for record in batch.records]
            consumer.done(batch)
    assert values == [b"%d" % number for number in range(50)]


async def test_one_can_wait_until_a_group_has_done_what_is_there(engines: EmbeddedEngines) -> None:
    await engines.log.wait_done("commands", "g")
    await engines.log.append("commands", 0, [LogEntry(b"k", b"1"), LogEntry(b"k", b"2")])
    waiting = asyncio.create_task(engines.log.wait_done("commands", "g"))
    async with engines.log.open_consumer("commands", "g") as consumer, asyncio.timeout(30):
        consumer.done(await consumer.poll(1))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()
        consumer.done(await consumer.poll(1))
        await waiting
