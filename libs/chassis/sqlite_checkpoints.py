"""How a file's write-ahead log gets to the disk and into the file, beside whoever writes."""

import asyncio
import os
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import structlog

from chassis.executor import Executor
from chassis.sqlite_trouble import storage_error

T = TypeVar("T")

# How often the log is copied into the file: when it has about so many pages (32 MB), to judge by the last time, and no more often,
# for then the writer waits for the disk, 5 ms on a quiet one, and all with it. A second is short enough that the log stays below
# the bound that follows also when a storm comes after calm. Left to SQLite, a commit does it, and took 100 ms.
_AIM_PAGES: Final = 8_000
_MIN_SECONDS: Final = 0.25
_MAX_SECONDS: Final = 1.0

# Pages in the log (128 MB) from which commits do it after all: the bound, if copying beside the writer can't keep up.
COMMIT_CHECKPOINT_PAGES: Final = 32_000

# How often, and from how many rows on (~0.3 MB), a log that its commits do not sync is handed to the disk. Left to the copying, all
# of it would go at once, and what is synced at each commit on the same disk, the log of commands, would wait behind it for 30 ms.
_SPREAD_SECONDS: Final = 0.03
_SPREAD_ROWS: Final = 64

_log = structlog.get_logger()


class Lane(NamedTuple):
    """A connection and the executor on which alone it is used."""

    executor: Executor
    connection: sqlite3.Connection

    async def run(self, function: Callable[[sqlite3.Connection], T]) -> T:
        return await self.executor.run(function, self.connection)


class Checkpoints:
    """The checkpoints of one file. The writer's lane is lent to them now and then."""

    def __init__(self, name: str, writer: Lane, checkpointer: Lane) -> None:
        self._name = name
        self._writer = writer
        self._checkpointer = checkpointer
        self._running = asyncio.Lock()  # the second of two at once would be turned away
        self._committed = asyncio.Event()
        self._rows = 0  # written since the disk got the log
        self._writer_lent = False
        self.held = False  # nothing is copied meanwhile
        self._log_anew = False  # from the checkpoint on: SQLite syncs the first commit of a log that begins anew

    @property
    def commits_wait(self) -> bool:
        """Whether the next commit waits for the disk, of whatever kind the file is."""
        return self._writer_lent or self._log_anew

    def on_commit_begun(self) -> None:
        """Note that a commit begins that may wait for the disk."""
        self._log_anew = self._log_anew and self._writer_lent

    def on_committed(self, rows: int) -> None:
        """Note that so many rows were written."""
        self._rows += rows
        self._committed.set()

    async def make_durable(self) -> bool:
        """Force all that is committed to the disk; False if a reader's hold put it off. Raises sqlite3.Error."""
        async with self._running:
            return (await self._checkpointer.run(_checkpoint))[0]

    async def run(self) -> None:
        """Copy the log into the file from time to time: most of it beside the writer, then the rest, so that it can start anew."""
        told = False
        interval = _MIN_SECONDS
        while True:
            await self._committed.wait()
            await asyncio.sleep(interval)
            self._committed.clear()
            if self.held:
                continue
            try:
                async with self._running:
                    _, pages = await self._checkpointer.run(_checkpoint)
                    self._writer_lent = self._log_anew = True
                    await self._writer.run(_checkpoint)
                interval = min(max(interval * _AIM_PAGES / max(pages, 1), _MIN_SECONDS), _MAX_SECONDS)
            except sqlite3.Error as error:  # the disk's trouble: writes report it; the log grows meanwhile
                if not told:
                    _log.warning("checkpoint put off", error=str(storage_error(self._name, error)))
                told = True
            else:
                told = False
            finally:
                self._writer_lent = False

    async def run_spreading(self, log_path: Path) -> None:
        """Hand the log to the disk bit by bit, for a file whose commits do not."""
        log = os.open(log_path, os.O_RDONLY)  # closing it drops no lock: SQLite has none on this file
        try:
            while True:
                await asyncio.sleep(_SPREAD_SECONDS)
                if self._rows >= _SPREAD_ROWS:
                    self._rows = 0
                    with suppress(OSError):  # the disk's trouble: checkpoints and writes report it
                        await self._checkpointer.executor.run(getattr(os, "fdatasync", os.fsync), log)
                else:
                    await self._committed.wait()
        finally:
            os.close(log)


def _checkpoint(connection: sqlite3.Connection) -> tuple[bool, int]:
    """Copy what the log holds into the file, without making anybody wait; return whether all of it was, and its pages."""
    busy, pages, copied = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    return not busy and pages == copied, pages
