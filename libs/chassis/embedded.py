"""The engines of one process that needs no server: SQLite files in a folder, or memory that outlives a simulated crash."""

import errno
import fcntl
import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from chassis.clock import Clock
from chassis.disk_sync import DiskSync
from chassis.eventlog_sqlite import COMMIT_INTERVAL_SECONDS, SqliteLog, open_sqlite_log
from chassis.executor import Executor, InlineExecutor, ThreadExecutor
from chassis.registry_memory import MemoryRegistry
from chassis.sqlite import SqliteDatabase, StorageError, memory_connection, open_memory_database, open_sqlite_database
from chassis.sqlite_write_behind import WriteBehind
from chassis.tasks import open_tasks
from chassis.timeline_sqlite import SqliteTimeline, open_sqlite_timeline

COMMANDS_FILE: Final = "commands.db"  # what must survive power loss
TABLES_FILE: Final = "tables.db"  # what applying the commands again restores
LOCK_FILE: Final = "lock"


class DataFolderError(Exception):
    """The data folder can't be used: another process has it, or it can't be written."""


@dataclass(frozen=True, slots=True)
class EmbeddedEngines:
    """The three ports' embedded implementations, open."""

    log: SqliteLog
    timeline: SqliteTimeline
    registry: MemoryRegistry


class MemoryDisk:
    """Two databases in memory that stay when the engines on them are closed or crash: a simulated process's disk.

    `sync_delay` is awaited until the platter has what was committed to the commands before; without it it has that at once.
    """

    def __init__(self, sync_delay: Callable[[], Awaitable[None]] | None = None) -> None:
        self._connections = {COMMANDS_FILE: memory_connection(), TABLES_FILE: memory_connection()}
        self._on_platter = {COMMANDS_FILE: b"", TABLES_FILE: b""}
        self._sync_delay = sync_delay
        self._written_at_once = {COMMANDS_FILE} if sync_delay is None else set()

    def connection(self, name: str) -> sqlite3.Connection:
        """Return the database that a new process sees."""
        return self._connections[name]

    def commands_sync(self, executor: Executor) -> DiskSync | None:
        """Return what brings the commands of a new process to the platter, if that takes time."""
        connection, delay = self._connections[COMMANDS_FILE], self._sync_delay
        if delay is None:
            return None

        async def begin() -> None:
            content = connection.serialize()  # no more than that is promised: what is committed meanwhile waits for the next sync
            await delay()
            if self._connections[COMMANDS_FILE] is not connection:
                raise OSError(errno.EIO, "the disk is gone")
            self._on_platter[COMMANDS_FILE] = content

        return DiskSync(-1, executor, begin)

    def kill(self) -> None:
        """Cut off whoever has the databases open: their writes fail from now on; what they committed is there for the next."""
        for name in self._connections:
            self._reload(name, self._connections[name].serialize())

    def sync_tables(self) -> None:
        """Let the tables' present state survive the next power loss. The commands do once they are synced."""
        self._on_platter[TABLES_FILE] = self._connections[TABLES_FILE].serialize()

    def lose_power(self, *, written_back: Collection[str] = ()) -> None:
        """As `kill`, and files go back to what the platter has. Those `written_back` happen to be there up to the last commit."""
        self.kill()
        for name, content in self._on_platter.items():
            if name not in {*written_back, *self._written_at_once}:
                self._reload(name, content)

    def close(self) -> None:
        """Free the memory."""
        for connection in self._connections.values():
            connection.close()

    def _reload(self, name: str, content: bytes) -> None:
        self._connections[name].close()
        self._connections[name] = memory_connection()
        if content:
            self._connections[name].deserialize(content)


@asynccontextmanager
async def open_embedded_engines(
    data: Path | MemoryDisk | None,
    *,
    topics: Mapping[str, int],
    durable_topics: Collection[str],
    tables: Sequence[str],
    clock: Clock,
    commit_interval_seconds: float = COMMIT_INTERVAL_SECONDS,
    retention_days: Mapping[str, float] | None = None,
    writes_behind: bool = False,
) -> AsyncIterator[EmbeddedEngines]:
    """Open the engines on a folder, created if it is not there, or in memory (None: gone when closed).

    In a folder all work is done on four threads, and the tables get what is written every `commit_interval_seconds`; in memory
    all is done in place, so that it runs on any loop, also on virtual time, and the tables get it at once unless it
    `writes_behind` as a folder does. Raises DataFolderError, StorageError, LogUnavailableError, TimelineUnavailableError.
    """
    async with AsyncExitStack() as stack:
        if isinstance(data, Path):
            commands_database, tables_database = await _open_folder(stack, data)
        else:
            if data is None:
                data = MemoryDisk()
                stack.callback(data.close)
            commands_database, tables_database = await _open_memory(stack, data)
        write_behind = None
        if writes_behind or isinstance(data, Path):
            write_behind = WriteBehind(tables_database, commit_interval_seconds)
            tasks = await stack.enter_async_context(open_tasks("embedded"))
            tasks.spawn(write_behind.run(), name="write behind")
            stack.push_async_callback(_settled, write_behind)
        log = await stack.enter_async_context(
            open_sqlite_log(
                commands=commands_database,
                tables=tables_database,
                topics=topics,
                durable_topics=durable_topics,
                clock=clock,
                write_behind=write_behind,
                commit_interval_seconds=commit_interval_seconds,
                retention_days=retention_days,
            )
        )
        timeline = await stack.enter_async_context(open_sqlite_timeline(tables_database, tables, clock, write_behind=write_behind))
        yield EmbeddedEngines(log, timeline, MemoryRegistry())


async def _settled(write_behind: WriteBehind) -> None:
    with suppress(StorageError):  # it has been told: what is not in the tables is applied again
        await write_behind.settle()


async def _open_folder(stack: AsyncExitStack, folder: Path) -> tuple[SqliteDatabase, SqliteDatabase]:
    stack.enter_context(hold_folder(folder))

    def thread(name: str) -> ThreadExecutor:
        executor = ThreadExecutor(name)
        stack.push_async_callback(executor.close)
        return executor

    # One reader for both files: the commands are read from the disk only after a restart or by one who lags.
    reader, checkpointer = thread("reader"), thread("checkpointer")

    async def database(name: str, *, durable: bool) -> SqliteDatabase:
        opening = open_sqlite_database(
            folder / name, durable=durable, writer=thread(name), reader=reader, checkpointer=checkpointer
        )
        return await stack.enter_async_context(opening)

    return await database(COMMANDS_FILE, durable=True), await database(TABLES_FILE, durable=False)


async def _open_memory(stack: AsyncExitStack, disk: MemoryDisk) -> tuple[SqliteDatabase, SqliteDatabase]:
    executor = InlineExecutor()
    stack.push_async_callback(executor.close)
    opening = open_memory_database(COMMANDS_FILE, disk.connection(COMMANDS_FILE), executor, sync=disk.commands_sync(executor))
    commands = await stack.enter_async_context(opening)
    tables = await stack.enter_async_context(open_memory_database(TABLES_FILE, disk.connection(TABLES_FILE), executor))
    return commands, tables


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Create the folder if need be and keep other processes out of it. Raises DataFolderError.

    The lock is the kernel's: it ends with the process, however that ends, and a stale file means nothing.
    """
    try:
        if not folder.exists():
            folder.mkdir(mode=0o700, parents=True)
            _sync_folder(folder.parent)  # else power loss could take the whole new folder, acknowledged messages included
        # Not flock's sibling lockf: that belongs to the process, so a second opener in the same process would pass.
        descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DataFolderError(f"the data folder {folder} can't be used: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            raise DataFolderError(f"the data folder {folder} is in use by process {owner or '(unknown)'}") from error
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        except OSError as error:
            raise DataFolderError(f"the data folder {folder} can't be used: {error.strerror}") from error
        yield
    finally:
        # Closing alone would leave the lock to a child that is just being forked, until it has become its program.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
