"""The Timeline in SQLite: a table a table, one statement for up to 64 rows or partitions.

A write is a transaction, or (write behind) it takes part in the file's next one, and reads join what waits with what the file has.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, TypeVar

import structlog

from chassis.clock import Clock
from chassis.sqlite import PROMPT_ROWS, SqliteDatabase, StorageError
from chassis.sqlite_statements import STATEMENT_ROWS, execute_rows, multi_row, padded, sized
from chassis.sqlite_write_behind import WriteBehind
from chassis.tasks import open_tasks
from chassis.timeline import Cell, Point, Row, TimelineUnavailableError
from chassis.timeline_pending import PendingRows, Table, merged

T = TypeVar("T")

# "Never before" its time although clocks may be wrong by an hour: one hour when the row was written, one when it is swept.
_CLOCK_TOLERANCE_MS: Final = 2 * 3_600_000

SWEEP_INTERVAL_SECONDS: Final = 6 * 3_600.0  # expired rows cost space only, and a round reads the whole table
_SWEEP_ROWS: Final = 1_000  # one transaction of a sweep: a few milliseconds in which writes wait
_SWEEP_PAUSE_SECONDS: Final = 0.05  # between them: a sweep takes some percent of a core, and rows of a day go in minutes

_log = structlog.get_logger()


class _Table:
    """The statements of one table."""

    def __init__(self, name: str) -> None:
        if not name.isidentifier():
            raise ValueError(f"{name!r} is no table name")
        table = f'"rows_{name}"'
        # The value is last, so that comparing stamps and sweeping never follow a large value's overflow pages.
        self.create = (
            f"CREATE TABLE IF NOT EXISTS {table} (partition TEXT NOT NULL, key BLOB NOT NULL, stamp INTEGER NOT NULL,"
            " expires_ms INTEGER NOT NULL, value BLOB NOT NULL, PRIMARY KEY (partition, key)) WITHOUT ROWID"
        )
        self.upsert = multi_row(
            f"INSERT INTO {table} VALUES",
            "(?, ?, ?, ?, ?)",
            "ON CONFLICT DO UPDATE SET stamp = excluded.stamp, expires_ms = excluded.expires_ms, value = excluded.value"
            " WHERE excluded.stamp >= stamp",
        )
        # CROSS JOIN keeps the order of the loops: SQLite scans the whole table for `(partition, key) IN (VALUES ...)`.
        self.points = multi_row(
            "WITH wanted (p, k) AS (VALUES",
            "(?, ?)",
            f") SELECT partition, key, value, stamp FROM wanted CROSS JOIN {table} ON partition = p AND key = k",
        )
        self.partitions = multi_row(
            f"SELECT partition, key, value, stamp FROM {table} WHERE partition IN (VALUES", "(?)", ") ORDER BY partition, key"
        )
        limited = f"SELECT * FROM (SELECT partition, key, value, stamp FROM {table} WHERE partition = ? ORDER BY key LIMIT ?)"
        self.limited = multi_row("", limited, separator=" UNION ALL ")
        between = f"SELECT key, value, stamp FROM {table} WHERE partition = ? AND key BETWEEN ? AND ? ORDER BY key"
        self.ascending, self.descending = f"{between} LIMIT ?", f"{between} DESC LIMIT ?"
        self.sweep_end = (
            f"SELECT partition, key FROM {table} WHERE (partition, key) > (?, ?)"
            f" ORDER BY partition, key LIMIT 1 OFFSET {_SWEEP_ROWS - 1}"
        )
        expired = f"DELETE FROM {table} WHERE expires_ms BETWEEN 1 AND ? AND (partition, key) > (?, ?)"
        self.sweep_rest, self.sweep_to = expired, f"{expired} AND (partition, key) <= (?, ?)"


class SqliteTimeline:
    """See `chassis.timeline.Timeline`; opened by `open_sqlite_timeline`. Here a whole `write` is in one transaction."""

    def __init__(
        self,
        database: SqliteDatabase,
        tables: Mapping[str, _Table],
        expiring: set[str],
        clock: Clock,
        write_behind: WriteBehind | None,
    ) -> None:
        self._database = database
        self._tables = tables
        self._expiring = expiring  # tables with rows that may expire; the others need no sweep
        self._clock = clock
        self._write_behind = write_behind
        self._pending = PendingRows()

    async def write(self, rows: Sequence[Row]) -> None:
        if not rows:
            return
        for table in {row.table for row in rows}:
            self._table(table)
        behind = self._write_behind
        try:
            if behind is not None:
                behind.check()
                behind.mark(self, self._pending.put(rows, self._clock.wall_ms()))
                await behind.make_room()
            else:
                pending = PendingRows()
                pending.put(rows, self._clock.wall_ms())
                news = pending.expiring - self._expiring
                await self._database.write(self._upserting(pending.begin(), news), rows=len(rows))
                self._expiring.update(news)
        except StorageError as error:
            raise TimelineUnavailableError(str(error)) from error

    def take(self) -> tuple[int, Callable[[sqlite3.Connection], None]]:
        """See `chassis.sqlite_write_behind.Part`."""
        tables = self._pending.begin()
        count = sum(len(cells) for table in tables.values() for cells in table.values())
        return count, self._upserting(tables, self._pending.expiring - self._expiring)

    def on_written(self) -> None:
        self._pending.end()
        self._expiring.update(self._pending.expiring)

    def on_failed(self) -> None:
        self._pending.undo()

    def _upserting(self, tables: Mapping[str, Table], news: Iterable[str]) -> Callable[[sqlite3.Connection], None]:
        def execute(connection: sqlite3.Connection) -> None:
            for name in sorted(news):
                connection.execute("INSERT OR IGNORE INTO expiring_table VALUES (?)", (name,))
            for name, table in tables.items():
                parameters: list[object] = []
                for partition in sorted(table):  # neighbours lie on one page
                    for key, (stamp, expires_ms, value) in table[partition].items():
                        parameters += (partition, key, stamp, expires_ms, value)
                execute_rows(connection, self._tables[name].upsert, parameters, 5)

        return execute

    async def read_points(self, points: Sequence[Point]) -> Mapping[Point, bytes]:
        wanted: dict[str, list[tuple[str, bytes]]] = {}
        for table, partition, key in points:
            wanted.setdefault(table, []).append((partition, key))
        selects = [(table, self._table(table).points, pairs) for table, pairs in wanted.items()]
        pending = {point: entry for point in points if (entry := self._pending.entry(*point)) is not None}

        def select(connection: sqlite3.Connection) -> dict[Point, bytes]:
            found: dict[Point, bytes] = {}
            for table, statements, pairs in selects:
                for chunk in _chunks(pairs):
                    parameters = [value for pair in padded(chunk) for value in pair]
                    for partition, key, value, stamp in connection.execute(sized(statements, len(chunk)), parameters):
                        point = Point(table, partition, key)
                        entry = pending.get(point)
                        found[point] = value if entry is None or entry[0] < stamp else entry[2]
            return found

        def select_at_one_moment(connection: sqlite3.Connection) -> dict[Point, bytes]:
            connection.execute("BEGIN")  # several statements: a partition's points may stand in two of them
            try:
                return select(connection)
            finally:
                connection.execute("COMMIT")

        if not selects:
            return {}
        if any(len(pairs) > STATEMENT_ROWS for _, _, pairs in selects):
            found = await self._read(select_at_one_moment)
        else:
            found = await self._read(select, rows=len(points))
        for point, entry in pending.items():
            found.setdefault(point, entry[2])
        return found

    async def read_partitions(self, table: str, partitions: Sequence[str], limit: int = 0) -> Mapping[str, Sequence[Cell]]:
        names, statements = list(dict.fromkeys(partitions)), self._table(table)
        pending = {name: cells for name in names if (cells := self._pending.find(table, name)) is not None}

        def select(connection: sqlite3.Connection) -> dict[str, list[tuple[bytes, bytes, int]]]:
            found: dict[str, list[tuple[bytes, bytes, int]]] = {}
            for chunk in _chunks(names):
                if limit:
                    parameters: list[object] = [value for name in chunk for value in (name, limit)]
                    parameters += [None, 0] * (len(padded(chunk)) - len(chunk))
                    cursor = connection.execute(sized(statements.limited, len(chunk)), parameters)
                else:
                    cursor = connection.execute(sized(statements.partitions, len(chunk)), padded(chunk))
                for partition, key, value, stamp in cursor:
                    found.setdefault(partition, []).append((key, value, stamp))
            return found

        stored = await self._read(select) if names else {}
        return {name: merged(stored.get(name, ()), pending.get(name), limit) for name in names if name in stored or name in pending}

    async def read_range(
        self, table: str, partition: str, first_key: bytes, last_key: bytes, limit: int, *, descending: bool = False
    ) -> Sequence[Cell]:
        statements = self._table(table)
        statement = statements.descending if descending else statements.ascending
        pending = self._pending.find(table, partition)
        if pending is not None:
            pending = {key: entry for key, entry in pending.items() if first_key <= key <= last_key}

        def select(connection: sqlite3.Connection) -> list[tuple[bytes, bytes, int]]:
            return connection.execute(statement, (partition, first_key, last_key, limit)).fetchall()

        return merged(await self._read(select, rows=limit), pending, limit, descending=descending)

    async def sweep(self) -> None:
        """Delete the rows whose time has passed, in small transactions. Raises TimelineUnavailableError."""
        before_ms = self._clock.wall_ms() - _CLOCK_TOLERANCE_MS
        for name in sorted(self._expiring):
            table = self._tables[name]
            position: tuple[str, bytes] | None = ("", b"")
            while position is not None:
                try:
                    position = await self._database.write(partial(_sweep_chunk, table, position, before_ms))
                except StorageError as error:
                    raise TimelineUnavailableError(f"expiry: {error}") from error
                if position is not None:
                    await asyncio.sleep(_SWEEP_PAUSE_SECONDS)

    def _table(self, name: str) -> _Table:
        try:
            return self._tables[name]
        except KeyError:
            raise ValueError(f"table {name} was not declared when the timeline was opened") from None

    async def _read(self, select: Callable[[sqlite3.Connection], T], *, rows: int = PROMPT_ROWS + 1) -> T:
        try:
            return await self._database.read(select, rows=rows)
        except StorageError as error:
            raise TimelineUnavailableError(str(error)) from error

    async def _run_sweeps(self, interval_seconds: float) -> None:
        while True:
            await asyncio.sleep(interval_seconds)
            try:
                await self.sweep()
            except TimelineUnavailableError as error:  # the disk's trouble: writes report it; the next round comes
                _log.warning("expiry put off", error=str(error))


def _sweep_chunk(
    table: _Table, position: tuple[str, bytes], before_ms: int, connection: sqlite3.Connection
) -> tuple[str, bytes] | None:
    """Delete what expired among the next rows; return the last of them, or None after the table's end."""
    end: tuple[str, bytes] | None = connection.execute(table.sweep_end, position).fetchone()
    if end is None:
        connection.execute(table.sweep_rest, (before_ms, *position))
    else:
        connection.execute(table.sweep_to, (before_ms, *position, *end))
    return end


def _chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), STATEMENT_ROWS):
        yield items[start : start + STATEMENT_ROWS]


@asynccontextmanager
async def open_sqlite_timeline(
    database: SqliteDatabase,
    tables: Sequence[str],
    clock: Clock,
    *,
    write_behind: WriteBehind | None = None,
    sweep_interval_seconds: float = SWEEP_INTERVAL_SECONDS,
) -> AsyncIterator[SqliteTimeline]:
    """Open the timeline, creating tables that do not exist. Raises TimelineUnavailableError."""
    declared = {name: _Table(name) for name in tables}

    def create(connection: sqlite3.Connection) -> set[str]:
        connection.execute("CREATE TABLE IF NOT EXISTS expiring_table (name TEXT PRIMARY KEY) WITHOUT ROWID")
        for table in declared.values():
            connection.execute(table.create)
        return {name for (name,) in connection.execute("SELECT name FROM expiring_table")}

    try:
        expiring = await database.write(create)
    except StorageError as error:
        raise TimelineUnavailableError(str(error)) from error
    timeline = SqliteTimeline(database, declared, expiring & declared.keys(), clock, write_behind)
    async with open_tasks("sqlite timeline") as tasks:
        tasks.spawn(timeline._run_sweeps(sweep_interval_seconds), name="expiry")
        yield timeline
