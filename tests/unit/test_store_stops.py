"""A record that stops a partition, and `parley deadletter skip`: what the tables say of it is what every worker does."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import pytest
from prometheus_client import CollectorRegistry
from store_scene import command_record

from chassis.clock import SystemClock
from chassis.embedded import open_embedded_engines
from chassis.eventlog import EventLog, LogBatch, LogEntry, LogRecord
from chassis.tasks import open_tasks
from chassis.timeline import Cell, Row, Timeline, TimelineUnavailableError
from parley.api.v1.commands_pb2 import SendMessage
from parley.api.v1.events_pb2 import Event
from parley.api.v1.messaging_service_pb2 import ServerBatch
from parley.log.v1.records_pb2 import CommandRecord, DeadLetter, EventBatch
from parley_protocol.topics import COMMANDS, DEAD_LETTERS, EVENTS, topics
from services.store import apply, rows, stops
from services.store.apply import Applier
from services.store.config import StoreSettings
from services.store.metrics import StoreMetrics
from services.store.recent import RecentEvents
from services.store.state import Position

POISON = b"poison"
AT = Position(1, 0, 2)
SETTINGS = StoreSettings(skip_look_seconds=0.01, retry_min_seconds=0.01)
_decide = apply.decide


class PlantedError(Exception):
    """The bug."""


def buggy(state: Any, record: CommandRecord, *rest: Any) -> Any:
    if POISON in record.command.send_message:
        raise PlantedError("can't take this")
    return _decide(state, record, *rest)


def records() -> list[LogEntry]:
    """Five messages, of which the third stops a buggy store."""
    bodies = (b"a", b"b", POISON, b"c", b"d")
    made = [command_record("alice", SendMessage(body=body), number=number, to="bob") for number, body in enumerate(bodies)]
    return [LogEntry(record.conversation_id.encode(), record.SerializeToString()) for record in made]


class Watched:
    """A timeline that tells when something was written."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._written = asyncio.Event()

    async def write(self, written: Sequence[Row]) -> None:
        await self._timeline.write(written)
        self._written.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._timeline, name)

    async def until(self, holds: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(10):
            while True:
                self._written.clear()
                if await holds():
                    return
                await self._written.wait()


class World(NamedTuple):
    """The log with the records, and tables."""

    log: EventLog
    timeline: Any


@asynccontextmanager
async def engines() -> AsyncIterator[World]:
    async with open_embedded_engines(
        None, topics=topics(1), durable_topics=(COMMANDS,), tables=rows.TABLES, clock=SystemClock()
    ) as opened:
        await opened.log.append(COMMANDS, 0, records())
        yield World(opened.log, Watched(opened.timeline))


def applier(opened: World, metrics: CollectorRegistry | None = None, timeline: Timeline | None = None) -> Applier:
    return Applier(
        SETTINGS,
        log=opened.log,
        timeline=timeline or opened.timeline,
        recent=RecentEvents(1000),
        clock=SystemClock(),
        metrics=StoreMetrics(metrics or CollectorRegistry()),
        rng=random.Random(0),
    )


async def read(opened: World, topic: str) -> list[LogRecord]:
    return [record async for record in opened.log.records(topic, 0)]


async def contents(timeline: Timeline) -> Mapping[tuple[str, str], Sequence[Cell]]:
    """Return all rows of the conversation but those that say when a store stopped."""
    conversation = CommandRecord.FromString(records()[0].value).conversation_id
    found: dict[tuple[str, str], Sequence[Cell]] = {}
    week = int(time.time() * 1000) // rows.WEEK_MS
    places = {
        rows.TIMELINE: [f"{conversation}/0"],
        rows.STATE: [conversation],
        rows.INBOX: ["alice", "bob"],
        rows.DEDUPE: [rows.dedupe_partition(conversation, "alice", week + add) for add in (-1, 0, 1)],
    }
    for table, names in places.items():
        for name, cells in (await timeline.read_partitions(table, names)).items():
            found[table, name] = cells
    return found


async def bodies(timeline: Timeline) -> list[bytes]:
    found = await contents(timeline)
    cells = [cell for (table, _), group in found.items() if table == rows.TIMELINE for cell in group]
    return [Event.FromString(cell.value).message.body for cell in cells]


@asynccontextmanager
async def stopped_store(opened: World) -> AsyncIterator[CollectorRegistry]:
    """Run a store until it stands before the record."""
    metrics = CollectorRegistry()
    async with open_tasks("store") as tasks:
        tasks.spawn(applier(opened, metrics).run(tasks), name="apply")

        async def stands() -> bool:
            return await stops.read_stop(opened.timeline, AT) is not None

        await opened.timeline.until(stands)
        yield metrics


def is_stopped(metrics: CollectorRegistry) -> float | None:
    return metrics.get_sample_value("parley_store_partition_stopped", {"partition": "0"})


async def until_applied(opened: World, count: int) -> None:
    async def applied() -> bool:
        return len(await bodies(opened.timeline)) >= count

    await opened.timeline.until(applied)


async def test_a_store_stops_at_the_very_record_and_goes_on_once_it_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply, "decide", buggy)
    async with engines() as opened, stopped_store(opened) as metrics:
        row = await stops.read_stop(opened.timeline, AT)
        assert row is not None
        assert (row.stage, "PlantedError: can't take this" in row.reason) == (stops.STOPPED, True)
        assert (await bodies(opened.timeline), is_stopped(metrics)) == ([b"a", b"b"], 1)

        await stops.write_stop(opened.timeline, AT, stops.SKIPPED, "we looked")
        await until_applied(opened, 4)
        assert await bodies(opened.timeline) == [b"a", b"b", b"c", b"d"]
        assert is_stopped(metrics) == 0

        letters = {DeadLetter.FromString(record.value).offset: record for record in await read(opened, DEAD_LETTERS)}
        letter = DeadLetter.FromString(letters[2].value)
        assert (list(letters), letter.reason, letter.value) == ([2], "skipped: we looked", records()[2].value)
        told = [
            outcome.rejected
            for record in await read(opened, EVENTS)
            for event in EventBatch.FromString(record.value).events
            for outcome in ServerBatch.FromString(event.own).outcomes
            if outcome.HasField("rejected")
        ]
        assert [("DEAD_LETTERED" in str(rejected), "we looked" in str(rejected)) for rejected in told] == [(True, True)]


async def test_all_workers_and_a_replay_skip_what_the_tables_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that could apply the record, too: mended later, they write no other rows than those that went before."""
    monkeypatch.setattr(apply, "decide", buggy)
    async with engines() as opened:
        async with stopped_store(opened):
            await stops.write_stop(opened.timeline, AT, stops.SKIPPED, "we looked")
            await until_applied(opened, 4)
        written = await contents(opened.timeline)

        monkeypatch.setattr(apply, "decide", _decide)
        log = await read(opened, COMMANDS)
        for size in (1, 2, 5):
            await _replay(applier(opened), log, size)
            assert await contents(opened.timeline) == written
            async with open_embedded_engines(None, topics={}, durable_topics=(), tables=rows.TABLES, clock=SystemClock()) as fresh:
                await stops.write_stop(fresh.timeline, AT, stops.SKIPPED, "we looked")
                await _replay(applier(opened, timeline=fresh.timeline), log, size)
                assert await contents(fresh.timeline) == written


async def _replay(worker: Applier, log: list[LogRecord], size: int) -> None:
    for first in range(0, len(log), size):
        await worker.apply(LogBatch(0, log[first : first + size]))


async def test_what_a_mended_store_applied_can_not_be_skipped_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply, "decide", buggy)
    async with engines() as opened:
        async with stopped_store(opened):
            pass
        monkeypatch.setattr(apply, "decide", _decide)
        log = await read(opened, COMMANDS)
        await applier(opened).apply(LogBatch(0, log))
        await stops.write_stop(opened.timeline, AT, stops.SKIPPED, "too late")
        await applier(opened).apply(LogBatch(0, log))
        row = await stops.read_stop(opened.timeline, AT)
        assert row is not None
        assert row.stage == stops.APPLIED
        assert await bodies(opened.timeline) == [b"a", b"b", POISON, b"c", b"d"]
        assert not await read(opened, DEAD_LETTERS)


async def test_a_store_that_stopped_goes_on_once_a_mended_one_has_applied_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is ready again, and goes past the record if the partition comes back to it: all that comes of it is written and told."""
    mended = ContextVar("mended", default=False)  # of the test's own work; the store's tasks have begun before
    monkeypatch.setattr(apply, "decide", lambda *args: (_decide if mended.get() else buggy)(*args))
    async with engines() as opened, stopped_store(opened) as metrics:
        mended.set(True)
        await applier(opened).apply(LogBatch(0, await read(opened, COMMANDS)))
        late = command_record("alice", SendMessage(body=b"late"), number=9, to="bob")
        await opened.log.append(COMMANDS, 0, [LogEntry(late.conversation_id.encode(), late.SerializeToString())])
        await until_applied(opened, 6)
        assert await bodies(opened.timeline) == [b"a", b"b", POISON, b"c", b"d", b"late"]
        assert is_stopped(metrics) == 0
        assert not await read(opened, DEAD_LETTERS)


async def test_a_stopped_store_outlives_tables_that_are_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply, "decide", buggy)
    async with engines() as opened:
        failures = [0]
        real = stops.read_stop

        async def away(timeline: Timeline, position: Position) -> Any:
            failures[0] += 1
            if failures[0] < 3:
                raise TimelineUnavailableError("away")
            return await real(timeline, position)

        monkeypatch.setattr(apply, "read_stop", away)
        async with stopped_store(opened):
            await stops.write_stop(opened.timeline, AT, stops.SKIPPED, "we looked")
            await until_applied(opened, 4)
        assert failures[0] >= 3


async def test_what_can_not_even_be_told_of_is_skipped_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply, "decide", buggy)

    def broken(*_: object) -> None:
        raise PlantedError

    async with engines() as opened:
        await stops.write_stop(opened.timeline, AT, stops.SKIPPED, "we looked")
        monkeypatch.setattr(apply, "_refused_for_good", broken)
        await applier(opened).apply(LogBatch(0, await read(opened, COMMANDS)))
        assert await bodies(opened.timeline) == [b"a", b"b", b"c", b"d"]
        assert len(await read(opened, DEAD_LETTERS)) == 1


class LogOfEpoch:
    """The log under another epoch's name."""

    def __init__(self, log: EventLog, epoch: int) -> None:
        self._log = log
        self.epoch = epoch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)


async def test_a_store_that_meets_rows_of_a_newer_log_stops_for_good_and_changes_nothing() -> None:
    late = command_record("alice", SendMessage(body=b"late"), number=9, to="bob")
    async with engines() as opened:
        newer = opened._replace(log=LogOfEpoch(opened.log, 2))
        async with open_tasks("newer") as tasks:
            tasks.spawn(applier(newer).run(tasks), name="apply")
            await until_applied(opened, 5)
        before = await contents(opened.timeline)
        await opened.log.append(COMMANDS, 0, [LogEntry(late.conversation_id.encode(), late.SerializeToString())])
        metrics = CollectorRegistry()
        older = applier(opened, metrics)
        async with open_tasks("older") as tasks, asyncio.timeout(10):
            tasks.spawn(older.run(tasks), name="apply")
            while not older.stopped:  # noqa: ASYNC110  # it writes nothing that could be waited for
                await asyncio.sleep(0.01)
        assert "was written from log epoch 2, not 1" in older.stopped[0]
        assert is_stopped(metrics) == 1
        assert await contents(opened.timeline) == before
        assert [await stops.read_stop(opened.timeline, Position(1, 0, offset)) for offset in range(6)] == [None] * 6
        async with open_tasks("newer") as tasks:  # whose record it is
            tasks.spawn(applier(newer).run(tasks), name="apply")
            await until_applied(opened, 6)
        assert (await bodies(opened.timeline))[-1] == b"late"
