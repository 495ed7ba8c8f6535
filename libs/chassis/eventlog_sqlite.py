"""The EventLog in SQLite: what one append hands over is one row, and the tail is read from memory.

Durable topics live in a database that syncs each commit; the others, and the offsets of all consumer groups, live in one that
does not, beside the tables that consumers write, and may get there a moment later together with those. So after power loss (or a
kill) tables, offsets and events are as they were at one earlier moment, the commands after the offsets are all there, and applying
them again restores the rest. While the tables can't be written (a full disk), durable topics take nothing either: their records
would be stored and never answered.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import structlog

from chassis.clock import Clock
from chassis.eventlog import LogEntry, LogRecord, LogSetupError, LogUnavailableError
from chassis.eventlog_sqlite_consumer import SqliteConsumer
from chassis.eventlog_sqlite_partition import LogPartition
from chassis.sqlite import SqliteDatabase, StorageError
from chassis.sqlite_statements import execute_rows, multi_row
from chassis.sqlite_write_behind import WriteBehind
from chassis.tasks import open_tasks

COMMIT_INTERVAL_SECONDS: Final = 0.2  # what a crash delivers again, against one small transaction each time
RETENTION_DAYS: Final = 7.0  # as Kafka's default: how long a stopped consumer group of a forgotten name may be wondered about
TRIM_INTERVAL_SECONDS: Final = 3_600.0  # a share of the retention small enough that the file does not swell noticeably
_READ_RECORDS: Final = 1_000
_FIRST_EPOCH: Final = 1
_DAY_MS: Final = 86_400_000

_SCHEMA: Final = (
    # next_offset only matters once retention removed the last rows; else the rows tell.
    """CREATE TABLE IF NOT EXISTS log_partition (
        id INTEGER PRIMARY KEY, topic TEXT NOT NULL, partition INTEGER NOT NULL, next_offset INTEGER NOT NULL DEFAULT 0,
        UNIQUE (topic, partition))""",
    "CREATE TABLE IF NOT EXISTS log_epoch (epoch INTEGER NOT NULL)",
    """CREATE TABLE IF NOT EXISTS log_offset (
        consumer_group TEXT, topic TEXT, partition INTEGER, next_offset INTEGER NOT NULL,
        PRIMARY KEY (consumer_group, topic, partition)) WITHOUT ROWID""",
)

# A zombie's late commit must not take the group back over work that another has done.
_COMMIT_OFFSETS: Final = multi_row(
    "INSERT INTO log_offset VALUES",
    "(?, ?, ?, ?)",
    "ON CONFLICT DO UPDATE SET next_offset = max(next_offset, excluded.next_offset)",
)

_OffsetKey = tuple[str, str, int]  # group, engine topic, partition

_log = structlog.get_logger()


class SqliteLog:
    """See `chassis.eventlog.EventLog`; opened by `open_sqlite_log`.

    Every consumer of a group gets every partition, from the group's committed offset: two of one group both see all records. That
    is what the port allows a zombie to do, all the time. A group's committed offset is the largest that any of them has done.
    """

    def __init__(
        self,
        *,
        tables: SqliteDatabase,
        clock: Clock,
        epoch: int,
        partitions: Mapping[str, Sequence[LogPartition]],
        offsets: dict[_OffsetKey, int],
        retention_days: Mapping[str, float],
        durable_topics: Collection[str],
        write_behind: WriteBehind | None,
    ) -> None:
        self._tables = tables
        self._write_behind = write_behind
        self._durable_topics = durable_topics
        self._clock = clock
        self._epoch = epoch
        self._partitions = partitions
        self._offsets = offsets
        self._dirty: dict[_OffsetKey, int] = {}
        self._waiting: list[asyncio.Future[None]] = []
        self._flushed: dict[_OffsetKey, int] = {}  # what a transaction that runs has taken
        self._dirtied = asyncio.Event()
        self._flushing = asyncio.Lock()
        self._flush_failed = False
        self._retention_days = retention_days
        self._consumers: dict[str, dict[SqliteConsumer, None]] = {topic: {} for topic in partitions}  # woken in order

    @property
    def epoch(self) -> int:
        return self._epoch

    async def partition_count(self, topic: str) -> int:
        return len(self._partitions_of(topic))

    async def ping(self) -> None:
        if self._tables.trouble is not None:
            raise LogUnavailableError(str(self._tables.trouble))

    async def append(self, topic: str, partition: int, entries: Sequence[LogEntry]) -> None:
        log_partition = self._partitions_of(topic)[partition]
        consumers = self._consumers[topic]
        trouble = self._tables.trouble
        if trouble is not None and topic in self._durable_topics:
            # What nobody can apply would wait for its outcome unanswered, and fill what the disk may still have for the log alone.
            raise LogUnavailableError(f"{topic}/{partition}: consumers can't write: {trouble}") from trouble

        def committed() -> None:
            for consumer in consumers:
                consumer.wake(partition)

        try:
            await log_partition.append(entries, self._clock.wall_ms(), committed)
        except StorageError as error:
            raise LogUnavailableError(f"{topic}/{partition}: {error}") from error

    async def records(self, topic: str, partition: int) -> AsyncIterator[LogRecord]:
        log_partition = self._partitions_of(topic)[partition]
        position, end = 0, log_partition.end
        while position < end:
            try:
                records = await log_partition.read(position, _READ_RECORDS)
            except StorageError as error:
                raise LogUnavailableError(f"{topic}/{partition}: {error}") from error
            if not records:
                return
            for record in records:
                if record.offset < end:
                    yield record
            position = records[-1].offset + 1

    @asynccontextmanager
    async def open_consumer(self, topic: str, group: str) -> AsyncIterator[SqliteConsumer]:
        partitions = self._partitions_of(topic)
        name = self._engine_topic(topic)

        def advance(partition: int, next_offset: int) -> None:
            self._advance((group, name, partition), next_offset)

        for partition in partitions:  # from now on retention waits for this group
            advance(partition.number, 0)
        positions = [self._offsets[group, name, partition.number] for partition in partitions]
        consumer = SqliteConsumer(topic, partitions, positions, advance)
        self._consumers[topic][consumer] = None
        try:
            yield consumer
        finally:
            del self._consumers[topic][consumer]
            await self._flush_or_warn()

    async def wait_done(self, topic: str, group: str) -> None:
        """Wait until a group has done all that the topic holds now."""
        name = self._engine_topic(topic)
        ends = {(group, name, partition.number): partition.end for partition in self._partitions_of(topic)}
        while any(self._offsets.get(key, 0) < end for key, end in ends.items()):
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            try:
                await future
            finally:
                self._waiting.remove(future)

    async def trim(self) -> None:
        """Delete what is older than its topic's retention and done by all groups. Raises LogUnavailableError."""
        try:
            await self._flush()
            # What the file says, not what is done by now: that may not be committed yet. New groups are at the start.
            floors = dict.fromkeys(self._offsets, 0) | await self._tables.read(_read_offsets)
            if not await self._tables.make_durable():
                return  # power loss could take the offsets back below what we are about to delete; the next round comes
            for topic, partitions in self._partitions.items():
                before_ms = self._clock.wall_ms() - int(self._retention_days.get(topic, RETENTION_DAYS) * _DAY_MS)
                name = self._engine_topic(topic)
                for partition in partitions:
                    done = (offset for (_, of, number), offset in floors.items() if (of, number) == (name, partition.number))
                    await partition.trim(before_ms, min(done, default=partition.end))
        except StorageError as error:
            raise LogUnavailableError(f"retention: {error}") from error

    def _partitions_of(self, topic: str) -> Sequence[LogPartition]:
        try:
            return self._partitions[topic]
        except KeyError:
            raise ValueError(f"topic {topic} was not declared when the log was opened") from None

    def _engine_topic(self, topic: str) -> str:
        return _engine_topic(topic, self._epoch)

    def _advance(self, key: _OffsetKey, next_offset: int) -> None:
        if next_offset > self._offsets.get(key, -1):
            self._offsets[key] = self._dirty[key] = next_offset
            self._dirtied.set()
            if self._write_behind is not None:
                self._write_behind.mark(self, 0)
            for future in self._waiting:
                if not future.done():
                    future.set_result(None)

    def take(self) -> tuple[int, Callable[[sqlite3.Connection], None]]:
        """See `chassis.sqlite_write_behind.Part`: offsets are written together with all that was written before they moved."""
        self._flushed, self._dirty = self._dirty, {}
        rows = [value for key, next_offset in self._flushed.items() for value in (*key, next_offset)]
        return len(self._flushed), lambda connection: execute_rows(connection, _COMMIT_OFFSETS, rows, 4)

    def on_written(self) -> None:
        self._flushed = {}

    def on_failed(self) -> None:
        self._dirty = self._flushed | self._dirty

    async def _flush(self) -> None:
        if self._write_behind is not None:
            await self._write_behind.settle()
            return
        async with self._flushing:  # who leaves must not miss what another flush has in its hands
            self._dirtied.clear()
            count, execute = self.take()
            if not count:
                return
            try:
                await self._tables.write(execute, rows=count)
            except BaseException:
                self.on_failed()
                self._dirtied.set()
                raise

    async def _flush_or_warn(self) -> None:
        try:
            await self._flush()
        except StorageError as error:  # costs a second delivery after a restart, no more
            if not self._flush_failed:
                _log.warning("consumer offsets not committed", error=str(error))
            self._flush_failed = True
        else:
            self._flush_failed = False

    async def _run_commits(self, interval_seconds: float) -> None:
        while True:
            await self._dirtied.wait()
            await asyncio.sleep(interval_seconds)
            await self._flush_or_warn()

    async def _run_retention(self, interval_seconds: float) -> None:
        while True:
            await asyncio.sleep(interval_seconds)
            try:
                await self.trim()
            except LogUnavailableError as error:  # the disk's trouble: appends report it; old records wait for the next round
                _log.warning("retention put off", error=str(error))


def _engine_topic(topic: str, epoch: int) -> str:
    return f"{topic}.e{epoch}"


@asynccontextmanager
async def open_sqlite_log(
    *,
    commands: SqliteDatabase,
    tables: SqliteDatabase,
    topics: Mapping[str, int],
    durable_topics: Collection[str],
    clock: Clock,
    write_behind: WriteBehind | None = None,
    commit_interval_seconds: float = COMMIT_INTERVAL_SECONDS,
    retention_days: Mapping[str, float] | None = None,
    trim_interval_seconds: float = TRIM_INTERVAL_SECONDS,
) -> AsyncIterator[SqliteLog]:
    """Open the log; topics that do not exist are created with the given number of partitions.

    `durable_topics` are kept in `commands`, the others and all consumer offsets in `tables`, by way of `write_behind` if there is
    one. Raises LogUnavailableError: the
    databases can't be used, or do not belong together. Raises LogSetupError: they hold a topic with another number of partitions.
    """
    durable = {topic: count for topic, count in topics.items() if topic in durable_topics}
    volatile = {topic: count for topic, count in topics.items() if topic not in durable_topics}
    try:
        await commands.write(_prepare)
        epoch = await commands.write(_begin_epoch)
        tables_are_new = await tables.write(_prepare)
        partitions: dict[str, Sequence[LogPartition]] = {}
        for database, declared, behind in ((commands, durable, None), (tables, volatile, write_behind)):
            for topic, count in declared.items():
                ids = await database.write(partial(_declare, _engine_topic(topic, epoch), count))
                partitions[topic] = [await LogPartition.load(database, number, log_id, behind) for number, log_id in enumerate(ids)]
        offsets = await tables.read(_read_offsets)
        _check_ends(offsets, ((_engine_topic(topic, epoch), parts) for topic, parts in partitions.items()))
        _check_starts(offsets, ((_engine_topic(topic, epoch), partitions[topic]) for topic in durable), are_new=tables_are_new)
        await tables.write(_begin_epoch)  # only now: what was refused once is refused again
    except StorageError as error:
        raise LogUnavailableError(str(error)) from error
    kept = retention_days or {}
    log = SqliteLog(
        tables=tables,
        clock=clock,
        epoch=epoch,
        partitions=partitions,
        offsets=offsets,
        retention_days=kept,
        durable_topics=frozenset(durable),
        write_behind=write_behind,
    )
    async with open_tasks("sqlite log") as tasks:
        if write_behind is None:
            tasks.spawn(log._run_commits(commit_interval_seconds), name="commit consumer offsets")
        tasks.spawn(log._run_retention(trim_interval_seconds), name="retention")
        try:
            yield log
        finally:
            await log._flush_or_warn()


def _prepare(connection: sqlite3.Connection) -> bool:
    """Create what is not there; tell whether the file was never in use."""
    for statement in _SCHEMA:
        connection.execute(statement)
    return connection.execute("SELECT 1 FROM log_epoch").fetchone() is None


def _begin_epoch(connection: sqlite3.Connection) -> int:
    """Note the first epoch if there is none yet; return the present one."""
    connection.execute("INSERT INTO log_epoch SELECT ? WHERE NOT EXISTS (SELECT 1 FROM log_epoch)", (_FIRST_EPOCH,))
    epoch: int = connection.execute("SELECT epoch FROM log_epoch").fetchone()[0]
    return epoch


def _declare(name: str, count: int, connection: sqlite3.Connection) -> list[int]:
    """Create a topic's partitions, or check their number; return the ids of their tables."""
    select = "SELECT id FROM log_partition WHERE topic = ? ORDER BY partition"
    ids = [row[0] for row in connection.execute(select, (name,))]
    if not ids:
        for number in range(count):
            connection.execute("INSERT INTO log_partition (topic, partition) VALUES (?, ?)", (name, number))
        ids = [row[0] for row in connection.execute(select, (name,))]
        for log_id in ids:
            LogPartition.create_table(connection, log_id)
    if len(ids) != count:
        raise LogSetupError(
            f"topic {name} has {len(ids)} partitions here and {count} are configured; it can't change within an epoch"
        )
    return ids


def _read_offsets(connection: sqlite3.Connection) -> dict[_OffsetKey, int]:
    rows = connection.execute("SELECT consumer_group, topic, partition, next_offset FROM log_offset")
    return {(group, topic, partition): next_offset for group, topic, partition, next_offset in rows}


def _check_ends(offsets: Mapping[_OffsetKey, int], topics: Iterable[tuple[str, Sequence[LogPartition]]]) -> None:
    """Refuse a log that ends before what its consumers have done: new records would take the place of lost ones, unread."""
    for name, partitions in topics:
        for (group, of, number), next_offset in offsets.items():
            if of == name and next_offset > partitions[number].end:
                raise LogUnavailableError(
                    f"{name}/{number} ends at {partitions[number].end}, but {group} has done everything before {next_offset}: "
                    "the log's file is older than the tables', put back the one that belongs to them"
                )


def _check_starts(
    offsets: Mapping[_OffsetKey, int], topics: Iterable[tuple[str, Sequence[LogPartition]]], *, are_new: bool
) -> None:
    """Refuse a log that begins after all that its consumers have done: what retention removed in between can't be done again.

    Retention waits for every group, so one at least was beyond what it removed; others may be new.
    """
    for name, partitions in topics:
        for partition in partitions:
            done = [offset for (_, of, number), offset in offsets.items() if (of, number) == (name, partition.number)]
            if max(done, default=0) < partition.trimmed_offset and (done or are_new):
                raise LogUnavailableError(
                    f"{name}/{partition.number} begins at {partition.trimmed_offset}, but no consumer has done all before that: the"
                    " tables' file is missing or too old, put back the one that belongs to the log's"
                )
