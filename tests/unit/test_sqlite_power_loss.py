"""Power loss: the tables go back to an older state, the commands do not, and applying them again restores everything.

`tables.db` is not synced at each commit, so after power loss its write-ahead log may end anywhere. A worker that does what a store
does (rows, state, event, done) runs on a copy of the files with that log cut at many places.
"""

import asyncio
import shutil
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, closing
from pathlib import Path
from random import Random

import pytest

from chassis import sqlite_checkpoints
from chassis.clock import SystemClock
from chassis.embedded import COMMANDS_FILE, TABLES_FILE, EmbeddedEngines, MemoryDisk, open_embedded_engines
from chassis.eventlog import LogEntry, LogUnavailableError
from chassis.executor import InlineExecutor
from chassis.timeline import Point, Row, Timeline

COMMANDS = 40
STATE = Point("state", "c", b"")


def opened(data: Path | MemoryDisk, *, writes_behind: bool = False) -> AbstractAsyncContextManager[EmbeddedEngines]:
    return open_embedded_engines(
        data,
        topics={"commands": 1, "events": 1},
        durable_topics=["commands"],
        tables=["rows", "state"],
        clock=SystemClock(),
        commit_interval_seconds=0.001,  # so that commits of offsets lie everywhere between the other writes
        writes_behind=writes_behind,
    )


async def append_commands(engines: EmbeddedEngines) -> None:
    await engines.log.append("commands", 0, [LogEntry(b"c", b"%d" % number) for number in range(COMMANDS)])


async def applied_count(timeline: Timeline) -> int:
    """Return how many commands the state says were applied."""
    return int((await timeline.read_points([STATE])).get(STATE, b"0"))


def done_count(engines: EmbeddedEngines) -> int:
    """Return how many commands the group's offset says were done."""
    return engines.log._offsets.get(("store", "commands.e1", 0), 0)


async def apply(engines: EmbeddedEngines, until: int, rng: Random) -> None:
    """Apply commands up to one: in two phases, then the event, then done."""
    async with engines.log.open_consumer("commands", "store") as consumer, asyncio.timeout(60):
        while done_count(engines) < until:
            batch = await consumer.poll(rng.randint(1, 6))
            stamp = batch.records[-1].offset + 1
            rows = [Row("rows", "c", b"%06d" % r.offset, r.value * rng.randint(1, 99), r.offset + 1) for r in batch.records]
            await engines.timeline.write(rows)
            await engines.timeline.write([Row(*STATE, b"%d" % stamp, stamp)])
            await engines.log.append("events", 0, [LogEntry(b"c", b"%d" % record.offset) for record in batch.records])
            consumer.done(batch)
            if rng.random() < 0.5:
                await engines.log._flush()  # a transaction of the tables: else all would be one


async def look(engines: EmbeddedEngines, group: str) -> Mapping[str, int]:
    """Return how far each part is, having checked that each is whole up to there."""
    cells = (await engines.timeline.read_partitions("rows", ["c"])).get("c", [])
    assert [cell.key for cell in cells] == [b"%06d" % number for number in range(len(cells))]
    events: list[int] = []
    end = engines.log._partitions["events"][0].end
    async with engines.log.open_consumer("events", group) as consumer:
        while len(events) < end:
            batch = await consumer.poll(1_000)
            assert [record.offset for record in batch.records] == list(range(len(events), len(events) + len(batch.records)))
            events += [int(record.value) for record in batch.records]
            consumer.done(batch)
    published: list[int] = []  # the first of each: those that come again come in order, too
    for event in events:
        if event == len(published):
            published.append(event)
        else:
            assert event < len(published), f"event {event} after {len(published)} others"
    state, done = await applied_count(engines.timeline), done_count(engines)
    return {"rows": len(cells), "state": state, "events": len(published), "done": done}


def copy(source: Path, target: Path, cut: int) -> None:
    """Copy what power loss leaves: both files, the commands' log whole, the tables' log up to a byte."""
    target.mkdir()
    for name in (COMMANDS_FILE, f"{COMMANDS_FILE}-wal", TABLES_FILE):
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)
    (target / f"{TABLES_FILE}-wal").write_bytes((source / f"{TABLES_FILE}-wal").read_bytes()[:cut])


@pytest.mark.parametrize("checkpoint", [False, True], ids=["from-the-start", "after-a-checkpoint"])
async def test_a_tables_log_cut_anywhere_is_an_older_state_that_replay_completes(
    tmp_path: Path, checkpoint: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_checkpoints, "_MIN_SECONDS", 3_600.0)  # the copies must not be made during one
    rng = Random(7)
    async with opened(tmp_path / "live") as engines:
        await append_commands(engines)
        if checkpoint:
            await apply(engines, COMMANDS // 2, rng)
            assert await engines.log._tables.make_durable()
        await apply(engines, COMMANDS, rng)
        wal_bytes = (tmp_path / "live" / f"{TABLES_FILE}-wal").stat().st_size
        cuts = [0, 1, 31, 32, 33, wal_bytes - 1, wal_bytes, *(rng.randrange(wal_bytes) for _ in range(16))]
        for cut in cuts:
            copy(tmp_path / "live", tmp_path / f"cut-{cut}", cut)
    states = set()
    for cut in sorted(set(cuts)):
        async with opened(tmp_path / f"cut-{cut}") as engines:
            found = await look(engines, "before")
            assert COMMANDS >= found["rows"] >= found["state"] >= found["events"] >= found["done"], (cut, found)
            assert found["state"] >= (COMMANDS // 2 if checkpoint else 0)
            states.add(found["state"])
            await apply(engines, COMMANDS, rng)
            assert await look(engines, "after") == dict.fromkeys(("rows", "state", "events", "done"), COMMANDS)
    assert len(states) > 5, "the cuts did not cut anything"


async def test_memory_loses_power_likewise() -> None:
    rng = Random(7)
    with closing(MemoryDisk()) as disk:
        async with opened(disk) as engines:
            await append_commands(engines)
            await apply(engines, COMMANDS // 2, rng)
        disk.sync_tables()
        async with opened(disk) as engines:
            await apply(engines, COMMANDS, rng)
            disk.lose_power()
        async with opened(disk) as engines:
            found = await look(engines, "before")
            assert COMMANDS // 2 <= found["state"] == found["done"] < COMMANDS
            await apply(engines, COMMANDS, rng)
            assert await look(engines, "after") == dict.fromkeys(("rows", "state", "events", "done"), COMMANDS)


async def test_a_command_that_memory_was_told_to_have_survives_and_no_other() -> None:
    asked, may_sync = asyncio.Event(), asyncio.Event()
    may_sync.set()

    async def delay() -> None:
        asked.set()
        await may_sync.wait()

    async def append(engines: EmbeddedEngines, value: bytes) -> None:
        await engines.log.append("commands", 0, [LogEntry(b"c", value)])

    with closing(MemoryDisk(delay)) as disk:
        async with opened(disk) as engines:
            await append(engines, b"told of")
            asked.clear()
            may_sync.clear()
            told = asyncio.ensure_future(append(engines, b"not yet"))
            await asked.wait()
            disk.lose_power()
            may_sync.set()
            with pytest.raises(LogUnavailableError, match="the disk is gone"):
                await told
        async with opened(disk) as engines:
            assert [record.value async for record in engines.log.records("commands", 0)] == [b"told of"]


async def test_a_sync_of_memory_covers_what_was_committed_before_it_was_asked_for_and_no_more() -> None:
    asked, may_sync = asyncio.Event(), asyncio.Event()

    async def delay() -> None:
        asked.set()
        await may_sync.wait()

    with closing(MemoryDisk(delay)) as disk:
        for name in (COMMANDS_FILE, TABLES_FILE):  # SQLite serializes no file that has nothing
            disk.connection(name).execute("CREATE TABLE kept (number)")
        file = disk.connection(COMMANDS_FILE)
        file.execute("INSERT INTO kept VALUES (1)")
        sync = disk.commands_sync(InlineExecutor())
        assert sync is not None
        syncing = asyncio.ensure_future(sync.sync())
        await asked.wait()
        file.execute("INSERT INTO kept VALUES (2)")
        may_sync.set()
        await syncing
        disk.lose_power()
        assert disk.connection(COMMANDS_FILE).execute("SELECT number FROM kept").fetchall() == [(1,)]


@pytest.mark.parametrize("written_back", [(), (TABLES_FILE,)], ids=["as-synced", "as-committed"])
async def test_memory_that_writes_behind_is_at_one_moment_after_power_loss(written_back: tuple[str, ...]) -> None:
    rng = Random(7)
    with closing(MemoryDisk()) as disk:
        async with opened(disk, writes_behind=True) as engines:
            await append_commands(engines)
            await apply(engines, COMMANDS // 2, rng)
        disk.sync_tables()
        async with opened(disk, writes_behind=True) as engines:
            await apply(engines, COMMANDS - 1, rng)
            await engines.timeline.write([Row(*STATE, b"99", 99)])  # which the file has not yet
            disk.lose_power(written_back=written_back)
        async with opened(disk, writes_behind=True) as engines:
            found = await look(engines, "before")
            assert found["rows"] == found["state"] == found["events"] == found["done"] < 99
            assert (found["done"] > COMMANDS // 2 + 6) == bool(written_back)  # the last batch may have gone beyond the half
            await apply(engines, COMMANDS, rng)
            assert await look(engines, "after") == dict.fromkeys(("rows", "state", "events", "done"), COMMANDS)
