"""One partition of a log in SQLite: its table, its next offset, and its newest records in memory.

A table a partition, because a table that only grows at its end is the cheapest thing SQLite can write.
"""

import sqlite3
import struct
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final, NamedTuple

from chassis.eventlog import LogEntry, LogRecord
from chassis.sqlite import SqliteDatabase
from chassis.sqlite_statements import execute_rows, multi_row
from chassis.sqlite_write_behind import WriteBehind

# Newest records kept in memory, so that consumers at the tail cost no read: seconds of full traffic, small beside a process.
_RING_BYTES: Final = 4 << 20
_RECORD_OVERHEAD_BYTES: Final = 200  # the objects around a record's bytes

# One row's bounds. Readers decode whole rows, so a row should not be much more than a poll wants.
_ROW_RECORDS: Final = 512
_ROW_BYTES: Final = 1 << 20
# A row costs as much as so many of the tables', each of so many bytes. A large one so goes by way of the writer's thread: the loop
# is then idle for a moment, which the tables' writer needs to win the interpreter's lock, or it falls behind and all wait for it.
_TABLES_ROW_BYTES: Final = 256

_READ_BYTES: Final = 4 << 20  # what one read from the disk brings at most, whatever number of records was asked for
_TRIM_ROWS: Final = 500  # rows deleted in one transaction: a few milliseconds in which appends wait


class _Batch(NamedTuple):
    """Committed records of consecutive offsets."""

    base_offset: int
    end_offset: int
    records: Sequence[LogRecord]
    memory_bytes: int


_LogRow = tuple[int, int, int, bytes]


class LogPartition:
    """Appends to one partition and reads it. `end` is the offset after the last record that is visible."""

    def __init__(
        self,
        database: SqliteDatabase,
        number: int,
        log_id: int,
        trimmed_offset: int,
        next_offset: int,
        write_behind: WriteBehind | None,
    ) -> None:
        self.number = number
        self.trimmed_offset = trimmed_offset  # when it was opened: retention had removed all before it
        self.end = next_offset
        self._database = database
        self._id = log_id
        self._next_offset = next_offset
        self._ring: deque[_Batch] = deque()
        self._ring_bytes = 0
        self._ring_start = next_offset  # every visible record from here on is in the ring
        # OR IGNORE: what was written behind and is written again, because nobody knew, is the same. Many rows a statement: what is
        # written behind comes from a hundred small batches, and each statement takes the interpreter's lock from the loop.
        self._insert = multi_row(f"INSERT {'OR IGNORE ' if write_behind else ''}INTO log_{log_id} VALUES", "(?, ?, ?, ?)")
        self._write_behind = write_behind
        self._unwritten: list[_LogRow] = []
        self._writing: list[_LogRow] = []
        self._select = (
            f"SELECT base_offset, record_count, time_ms, records FROM log_{log_id} WHERE base_offset >= "
            f"coalesce((SELECT max(base_offset) FROM log_{log_id} WHERE base_offset <= ?), 0) ORDER BY base_offset"
        )

    @staticmethod
    def create_table(connection: sqlite3.Connection, log_id: int) -> None:
        # records come last: retention reads the other columns without touching a large value's overflow pages
        connection.execute(
            f"CREATE TABLE log_{log_id} (base_offset INTEGER PRIMARY KEY, record_count INTEGER NOT NULL,"
            " time_ms INTEGER NOT NULL, records BLOB NOT NULL)"
        )

    @classmethod
    async def load(
        cls, database: SqliteDatabase, number: int, log_id: int, write_behind: WriteBehind | None = None
    ) -> "LogPartition":
        """Open a partition that exists. Raises StorageError."""

        def offsets(connection: sqlite3.Connection) -> tuple[int, int]:
            last = connection.execute(
                f"SELECT base_offset + record_count FROM log_{log_id} ORDER BY base_offset DESC LIMIT 1"
            ).fetchone()
            trimmed: int = connection.execute("SELECT next_offset FROM log_partition WHERE id = ?", (log_id,)).fetchone()[0]
            return trimmed, max(trimmed, last[0] if last else 0)

        return cls(database, number, log_id, *await database.read(offsets), write_behind)

    async def append(self, entries: Sequence[LogEntry], time_ms: int, committed: Callable[[], None]) -> None:
        """Append in call order; `committed` is called once the records are visible. Raises StorageError.

        Offsets are given out here, before the commit: a failed append leaves a gap, and nothing has to be taken back.
        """
        if not entries:
            return
        batches, rows = [], []
        for part in _split(entries):
            base, self._next_offset = self._next_offset, self._next_offset + len(part)
            records = [LogRecord(offset, time_ms, key, value) for offset, (key, value) in enumerate(part, base)]
            packed = pack(part)
            batches.append(_Batch(base, self._next_offset, records, len(packed) + len(part) * _RECORD_OVERHEAD_BYTES))
            rows.append((base, len(part), time_ms, packed))

        def show() -> None:
            self._show(batches)
            committed()

        if self._write_behind is None:
            execute = partial(_insert, self._insert, rows)
            cost = sum(1 + len(packed) // _TABLES_ROW_BYTES for _, _, _, packed in rows)
            await self._database.write(execute, committed=show, rows=cost, single=len(batches) == 1)
        else:
            self._write_behind.check()
            self._unwritten += rows
            self._write_behind.mark(self, sum(batch.memory_bytes for batch in batches))
            show()
            await self._write_behind.make_room()

    def take(self) -> tuple[int, Callable[[sqlite3.Connection], None]]:
        """See `chassis.sqlite_write_behind.Part`."""
        self._writing, self._unwritten = self._unwritten, []
        return len(self._writing), partial(_insert, self._insert, self._writing)

    def on_written(self) -> None:
        self._writing = []

    def on_failed(self) -> None:
        self._writing, self._unwritten = [], [*self._writing, *self._unwritten]

    def _show(self, batches: Sequence[_Batch]) -> None:
        ring = self._ring
        for batch in batches:
            ring.append(batch)
            self._ring_bytes += batch.memory_bytes
        self.end = batches[-1].end_offset
        while self._ring_bytes > _RING_BYTES:
            oldest = ring.popleft()
            self._ring_bytes -= oldest.memory_bytes
            self._ring_start = oldest.end_offset

    async def read(self, position: int, max_records: int) -> Sequence[LogRecord]:
        """Return the next records from an offset on, at most `max_records`; none if there are none. Raises StorageError."""
        if position < self._ring_start:
            if self._unwritten or self._writing:
                await self._settled()
            before, end = self._ring_start, self.end
            records = await self._database.read(lambda connection: self._read_disk(connection, position, max_records, end))
            if records:
                return records
            position = before  # retention or failed appends left nothing in between
            if position < self._ring_start:  # and memory has moved on while we looked
                return await self.read(position, max_records)
        return self._read_ring(position, max_records)

    async def _settled(self) -> None:
        """Let the file have what memory may have let go of."""
        if self._write_behind is not None:
            await self._write_behind.settle()

    def _read_ring(self, position: int, max_records: int) -> Sequence[LogRecord]:
        ring = self._ring
        if ring and ring[-1].base_offset == position and len(ring[-1].records) <= max_records:
            return ring[-1].records  # the usual case: what was appended last, whole
        index = bisect_right(ring, position, key=_end_offset)
        if index == len(ring):
            return ()
        first = ring[index]
        skip = max(0, position - first.base_offset)
        records = list(first.records[skip : skip + max_records])
        index += 1
        while index < len(ring) and len(records) < max_records:
            records += ring[index].records[: max_records - len(records)]
            index += 1
        return records

    def _read_disk(self, connection: sqlite3.Connection, position: int, max_records: int, end: int) -> Sequence[LogRecord]:
        """Read up to what was visible when the read began: what the file has beyond may not be on the disk, or never get there."""
        records: list[LogRecord] = []
        total_bytes = 0
        for base, count, time_ms, packed in connection.execute(self._select, (position,)):
            for offset, (key, value) in enumerate(unpack(packed, count), base):
                if position <= offset < end:
                    records.append(LogRecord(offset, time_ms, key, value))
            total_bytes += len(packed)
            if len(records) >= max_records or total_bytes >= _READ_BYTES or base >= end:
                break
        return records[:max_records]

    async def trim(self, before_ms: int, before_offset: int) -> None:
        """Delete the oldest rows as long as they were appended before a time and lie wholly before an offset."""
        while await self._database.write(lambda connection: self._trim(connection, before_ms, before_offset)) == _TRIM_ROWS:
            pass

    def _trim(self, connection: sqlite3.Connection, before_ms: int, before_offset: int) -> int:
        rows = connection.execute(
            f"SELECT base_offset, base_offset + record_count, time_ms FROM log_{self._id} ORDER BY base_offset LIMIT ?",
            (_TRIM_ROWS,),
        ).fetchall()
        old = []
        for base, end, time_ms in rows:
            if time_ms >= before_ms or end > before_offset:
                break
            old.append((base, end))
        if old:
            connection.execute(f"DELETE FROM log_{self._id} WHERE base_offset <= ?", (old[-1][0],))
            connection.execute("UPDATE log_partition SET next_offset = max(next_offset, ?) WHERE id = ?", (old[-1][1], self._id))
        return len(old)


def _insert(statements: Sequence[str], rows: Sequence[_LogRow], connection: sqlite3.Connection) -> None:
    execute_rows(connection, statements, [value for row in rows for value in row], 4)


def _end_offset(batch: _Batch) -> int:
    return batch.end_offset


def _split(entries: Sequence[LogEntry]) -> Iterator[Sequence[LogEntry]]:
    """Cut entries into rows of at most _ROW_RECORDS, and about _ROW_BYTES."""
    start = size = 0
    for index, (key, value) in enumerate(entries):
        size += len(key) + len(value)
        if index - start == _ROW_RECORDS or (size > _ROW_BYTES and index > start):
            yield entries[start:index]
            start, size = index, len(key) + len(value)
    yield entries[start:] if start else entries


def pack(entries: Sequence[LogEntry]) -> bytes:
    """Pack records: the lengths of all keys and values first (32 bits each, little-endian), then their bytes."""
    parts = [part for entry in entries for part in entry]
    return struct.pack(f"<{len(parts)}I", *map(len, parts)) + b"".join(parts)


def unpack(packed: bytes, count: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of `count` packed records."""
    lengths = struct.unpack_from(f"<{2 * count}I", packed)
    position = 8 * count
    for index in range(0, 2 * count, 2):
        middle = position + lengths[index]
        end = middle + lengths[index + 1]
        yield packed[position:middle], packed[middle:end]
        position = end
