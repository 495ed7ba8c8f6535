"""Writes that a file gets a moment later: all that came meanwhile in one transaction, each row once.

For a file that loses its last moment in a power loss anyway, because its commits wait for no disk, and whose content something
durable restores. A process that is killed then loses no more than a power loss would: all that one transaction would have brought,
rows, events and offsets alike, so that what is there is what was there at one earlier moment.
"""

import asyncio
import sqlite3
from collections.abc import Callable
from typing import Final, Protocol

import structlog

from chassis.sqlite import SqliteDatabase, StorageError

# What may wait in memory; beyond it those who write wait for the file.
_MAX_BYTES: Final = 32 << 20

Execute = Callable[[sqlite3.Connection], None]

_log = structlog.get_logger()


class Part(Protocol):
    """One who has something to write."""

    def take(self) -> tuple[int, Execute]:
        """Hand over what waits: how many rows, and what writes them. That runs again from the start if its transaction fails."""

    def on_written(self) -> None:
        """Let go of what was taken."""

    def on_failed(self) -> None:
        """Keep what was taken for the next time: it may be in the file or not."""


class WriteBehind:
    """The next transaction of a file, and who takes part in it."""

    def __init__(self, database: SqliteDatabase, interval_seconds: float) -> None:
        self._database = database
        self._interval_seconds = interval_seconds
        self._marked: dict[Part, None] = {}
        self._bytes = 0
        self._dirty = asyncio.Event()
        self._writing = asyncio.Lock()
        self._failure: StorageError | None = None

    def check(self) -> None:
        """Raise the StorageError that keeps what waits already from the file: more must not come."""
        if self._failure is not None:
            raise self._failure

    def mark(self, part: Part, size_bytes: int) -> None:
        """Note that somebody has something, and about how much."""
        self._marked[part] = None
        self._bytes += size_bytes
        self._dirty.set()

    async def make_room(self) -> None:
        """Wait for the file if too much waits for it. Raises StorageError."""
        if self._bytes > _MAX_BYTES:
            await self.settle()

    async def settle(self) -> None:
        """Bring all that waits into the file. Raises StorageError; then it goes on waiting."""
        async with self._writing:
            self._dirty.clear()
            if not self._marked:
                return
            (parts, self._marked), (size_bytes, self._bytes) = (self._marked, {}), (self._bytes, 0)
            taken = [part.take() for part in parts]

            def execute(connection: sqlite3.Connection) -> None:
                for _, write in taken:
                    write(connection)

            try:
                await self._database.write(execute, rows=sum(rows for rows, _ in taken))
            except BaseException as error:
                for part in parts:
                    part.on_failed()
                self._marked = parts | self._marked
                self._bytes += size_bytes
                self._dirty.set()
                if not isinstance(error, Exception):
                    raise  # cancelled: what became of it nobody knows
                self._failure = error if isinstance(error, StorageError) else StorageError(f"{self._database.name}: {error}")
                raise self._failure from error
            self._failure = None
            for part in parts:
                part.on_written()

    async def run(self) -> None:
        """Settle now and then, until cancelled."""
        told = False
        while True:
            await self._dirty.wait()
            await asyncio.sleep(self._interval_seconds)
            try:
                await self.settle()
            except StorageError as error:
                if not told:
                    _log.warning("tables not written", error=str(error))
                told = True
            else:
                told = False
