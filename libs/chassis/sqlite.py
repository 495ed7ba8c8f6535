"""One SQLite file with one writer, group commit, and readers that never wait for it.

Why one writer on its own thread: SQLite allows one anyway, and everybody else's write then costs a place in a queue instead of a
wait for a lock. Why group commit: a commit (of a durable file an fsync) costs as much as twenty rows, so the jobs that queue while
one transaction runs share the next one.
"""

import asyncio
import sqlite3
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import structlog

from chassis.disk_sync import DiskSync, open_disk_sync
from chassis.executor import Executor
from chassis.sqlite_checkpoints import COMMIT_CHECKPOINT_PAGES, Checkpoints, Lane
from chassis.sqlite_trouble import StorageError as StorageError
from chassis.sqlite_trouble import storage_error, trouble_of
from chassis.tasks import open_tasks

T = TypeVar("T")

# Jobs in one transaction: enough to make the commit's share of each small, few enough that the first does not wait for long.
_TRANSACTION_JOBS: Final = 256

# Jobs that may wait. Callers bound what they have in flight far below; beyond it refusing is kinder than growing.
_QUEUE_JOBS: Final = 16_384

# Prepared statements kept: a handful per table, times seven sizes of a multi-row statement.
_CACHED_STATEMENTS: Final = 512

# The writer's page cache. SQLite's own 2 MB make it read back, at each commit, what it wrote a second before: a third of the CPU.
# A file that only grows at its end (a durable one here: the log) never reads back, and gets none.
_WRITER_CACHE_KIB: Final = 32 << 10
_DURABLE_CACHE_KIB: Final = 2 << 10

# Rows that a file takes or gives at once, on the loop, instead of by way of a thread: a millisecond at most. A thread has to win
# the interpreter's lock back for every statement, up to 5 ms each where the loop is busy: measured at 800 messages a second on a
# crowded machine, half of all waited for 93 ms with threads and for 16 ms without.
PROMPT_ROWS: Final = 128

# What a log that had to grow, because a long read held it, is cut back to.
_JOURNAL_LIMIT_BYTES: Final = 64 << 20

# What an operator's own look into the file may hold us up, in seconds.
_BUSY_SECONDS: Final = 5.0

_log = structlog.get_logger()


# How long a failed commit speaks for the file, in seconds: longer than anybody waits who tries again, and no dead end where nobody
# does.
_TROUBLE_SECONDS: Final = 5.0


class _Job(Generic[T]):
    """One caller's part of a transaction."""

    __slots__ = ("committed", "error", "function", "future", "rows", "single", "value")

    def __init__(
        self,
        function: Callable[[sqlite3.Connection], T],
        future: asyncio.Future[T],
        committed: Callable[[], None] | None,
        rows: int,
        single: bool,
    ) -> None:
        self.rows = rows
        self.single = single
        self.function = function
        self.future = future
        self.committed = committed
        self.value: T | None = None
        self.error: BaseException | None = None

    def finish(self) -> None:
        """Tell the caller; `committed` runs even when the caller was cancelled, since cancelling does not undo."""
        if self.error is None:
            if self.committed is not None:
                self.committed()
            if not self.future.done():
                self.future.set_result(self.value)  # type: ignore[arg-type]  # None is what such a function returns
        elif not self.future.done():
            self.future.set_exception(self.error)


class SqliteDatabase:
    """One database file, opened by `open_sqlite_database` or, in memory, by `open_memory_database`."""

    def __init__(
        self,
        name: str,
        *,
        writer: Lane,
        reader: Lane,
        checkpointer: Lane,
        prompt: sqlite3.Connection | None = None,
        sync: DiskSync | None = None,
    ) -> None:
        self.name = name
        self._sync = sync  # brings what was committed to the disk, before anybody hears of it
        self._prompt = prompt  # for small reads on the loop; where there is one, small writes are done there too
        self._writer = writer
        self._reader = reader
        self._checkpoints = Checkpoints(name, writer, checkpointer)
        self._queue: deque[_Job[Any]] = deque()
        self._running: list[_Job[Any]] = []
        self._wake = asyncio.Event()
        self._closing = False
        self._failure: StorageError | None = None
        self._failed_at = 0.0

    @property
    def trouble(self) -> StorageError | None:
        """Why the last commit failed, if that was a moment ago and none has succeeded since."""
        if self._failure is not None and asyncio.get_running_loop().time() - self._failed_at > _TROUBLE_SECONDS:
            self._failure = None
        return self._failure

    def write(
        self,
        function: Callable[[sqlite3.Connection], T],
        *,
        committed: Callable[[], None] | None = None,
        rows: int = PROMPT_ROWS + 1,
        single: bool = False,
    ) -> Awaitable[T]:
        """Queue a function for the writer's next transaction, in call order; await its result, which is there after the commit.

        The function must only execute statements: it runs again from the start if another job of its transaction fails, never
        commits, and never touches the loop. `committed` is called on the loop after the commit, in commit order, even if the
        caller no longer waits. An exception of the function's own undoes that function alone and comes to its caller;
        StorageError means that the file failed. Cancelling the wait does not undo. `rows` says how many the function writes,
        `single` that it executes one statement only.

        Readers of the file may see it earlier, of a durable one before it is on the disk.
        """
        if self._closing:
            raise StorageError(f"{self.name} is closed")
        if len(self._queue) >= _QUEUE_JOBS:
            raise StorageError(f"{self.name}: {_QUEUE_JOBS} writes wait already")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        job = _Job(function, future, committed, rows, single)
        if self._sync is None and rows <= PROMPT_ROWS and self._is_prompt and not (self._queue or self._running):
            self._finish([job], _commit(self.name, [job], self._writer.connection))  # nobody to share with: no turn of the loop
        else:
            self._queue.append(job)
            self._wake.set()
        return future

    async def read(self, function: Callable[[sqlite3.Connection], T], *, rows: int = PROMPT_ROWS + 1) -> T:
        """Run a function on a reader's connection: it sees all writes that returned, and waits for none that is under way.

        Each statement sees one moment; two statements may see two. `rows` says how many the function reads at most. Raises
        StorageError.
        """
        try:
            if self._prompt is not None and rows <= PROMPT_ROWS:
                return function(self._prompt)
            return await self._reader.run(function)
        except sqlite3.Error as error:
            raise storage_error(self.name, error) from error

    async def make_durable(self) -> bool:
        """Force all that is committed to the disk, durable or not; False if a reader's hold put it off."""
        try:
            return await self._checkpoints.make_durable()
        except sqlite3.Error as error:
            raise storage_error(self.name, error) from error

    @property
    def _is_prompt(self) -> bool:
        """Whether a small commit is a matter of microseconds now."""
        return self._prompt is not None and not self._checkpoints.commits_wait

    async def _run_writer(self) -> None:
        """Commit what is queued until closed and empty."""
        while not (self._closing and not self._queue):
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                self._running = [self._queue.popleft() for _ in range(min(len(self._queue), _TRANSACTION_JOBS))]
                commit = partial(_commit, self.name, self._running)
                if self._is_prompt and sum(job.rows for job in self._running) <= PROMPT_ROWS:
                    failure = commit(self._writer.connection)
                else:
                    self._checkpoints.on_commit_begun()
                    failure = await self._writer.run(commit)
                if failure is None and self._sync is not None:
                    failure = await self._synced(self._sync)
                running, self._running = self._running, []
                self._finish(running, failure)

    async def _synced(self, sync: DiskSync) -> StorageError | None:
        """Bring what the running jobs committed to the disk; return what failed them all, if that did."""
        try:
            await sync.sync()
        except OSError as error:
            failure = StorageError(f"{self.name}: {error.strerror}, when the disk was to have what was written")
            for job in self._running:
                job.error = job.error or failure
            return failure
        finally:
            # Copied into the file, of which the disk then has more than of its log, it could go back by halves in a power loss.
            self._checkpoints.held = sync.in_doubt
        return None

    def _finish(self, jobs: Sequence[_Job[Any]], failure: StorageError | None) -> None:
        """Note how a transaction ended, and tell its callers."""
        if failure is None:
            self._checkpoints.on_committed(sum(job.rows for job in jobs))
        else:
            self._failed_at = asyncio.get_running_loop().time()
        self._failure = failure
        for job in jobs:
            job.finish()

    def _on_writer_end(self, _task: asyncio.Task[None]) -> None:
        """Tell whoever still waits because the writer ended early: cancelled, maybe before its first step, or by a bug."""
        self._closing = True
        for job in (*self._running, *self._queue):
            if not job.future.done():
                job.future.set_exception(StorageError(f"{self.name} was closed with this write under way"))
        self._queue.clear()

    async def _close(self, writer_task: asyncio.Task[None]) -> None:
        self._closing = True
        self._wake.set()
        await writer_task


def _commit(name: str, jobs: Sequence[_Job[Any]], connection: sqlite3.Connection) -> StorageError | None:
    """Run the jobs in one transaction; one that fails for its own reasons is left out, and the rest run again.

    Returns what failed them all, if the file did.
    """
    pending = list(jobs)
    while pending:
        failed = None
        # One statement is a transaction by itself: that saves two others, each of which has to win the interpreter's lock back.
        alone = len(pending) == 1 and pending[0].single
        try:
            if connection.in_transaction:  # an earlier rollback failed too; until it succeeds nothing else can
                connection.execute("ROLLBACK")
            if not alone:
                connection.execute("BEGIN IMMEDIATE")
            for job in pending:
                try:
                    job.value = job.function(connection)
                except Exception as error:
                    if isinstance(error, sqlite3.Error) and trouble_of(error):
                        raise
                    failed, job.error = job, error
                    break
            if failed is None:
                if not alone:
                    connection.execute("COMMIT")
                return None
            if not alone:
                connection.execute("ROLLBACK")
            pending.remove(failed)
        except sqlite3.Error as error:
            cause = storage_error(name, error)
            for job in pending:
                job.error = job.error or cause
            _roll_back(connection)
            return cause
    return None


def _roll_back(connection: sqlite3.Connection) -> None:
    try:
        if connection.in_transaction:  # after some errors SQLite has rolled back by itself
            connection.execute("ROLLBACK")
    except sqlite3.Error:
        return  # the same trouble again: the next transaction begins with another try, and tells its callers if that fails


@asynccontextmanager
async def open_sqlite_database(
    path: Path, *, durable: bool, writer: Executor, reader: Executor, checkpointer: Executor
) -> AsyncIterator[SqliteDatabase]:
    """Open or create the file; on leaving, finish the writes that are queued and close it.

    A write that returned survives the process, and power loss if the file is durable; else that leaves the file as it was at some
    earlier commit. The executors are the caller's, who closes them afterwards; several files may share the last two.
    Raises StorageError.
    """

    def connect_writer() -> sqlite3.Connection:
        connection = _connect(path)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")  # commits that have to be on the disk we bring there ourselves
            connection.execute(f"PRAGMA cache_size = -{_DURABLE_CACHE_KIB if durable else _WRITER_CACHE_KIB}")
            connection.execute(f"PRAGMA wal_autocheckpoint = {COMMIT_CHECKPOINT_PAGES}")
            connection.execute(f"PRAGMA journal_size_limit = {_JOURNAL_LIMIT_BYTES}")
            connection.execute("BEGIN IMMEDIATE")  # a folder that can't be written is found out now, not at the first message
            connection.execute("ROLLBACK")
        except BaseException:
            connection.close()
            raise
        return connection

    async with AsyncExitStack() as stack:

        async def lane(executor: Executor, connect: Callable[[], sqlite3.Connection]) -> Lane:
            connection = await executor.run(connect)
            stack.push_async_callback(executor.run, connection.close)
            return Lane(executor, connection)

        try:
            writing = await lane(writer, connect_writer)
            reading = await lane(reader, partial(_connect, path))
            checkpointing = await lane(checkpointer, partial(_connect, path))
        except sqlite3.Error as error:
            raise storage_error(str(path), error) from error
        prompt = _connect(path)
        stack.callback(prompt.close)
        log_path = path.with_name(f"{path.name}-wal")
        sync = await stack.enter_async_context(open_disk_sync(log_path, writer)) if durable else None
        database = SqliteDatabase(path.name, writer=writing, reader=reading, checkpointer=checkpointing, prompt=prompt, sync=sync)
        async with _running(database), open_tasks(f"sqlite {path.name}") as tasks:
            tasks.spawn(database._checkpoints.run(), name="checkpoints")
            if not durable:
                tasks.spawn(database._checkpoints.run_spreading(log_path), name="spreading")
            yield database


@asynccontextmanager
async def open_memory_database(
    name: str, connection: sqlite3.Connection, executor: Executor, *, sync: DiskSync | None = None
) -> AsyncIterator[SqliteDatabase]:
    """Use a `:memory:` connection for writes and reads alike; it is the caller's and stays open. For inline executors."""
    lane = Lane(executor, connection)
    async with _running(SqliteDatabase(name, writer=lane, reader=lane, checkpointer=lane, sync=sync)) as database:
        yield database


@asynccontextmanager
async def _running(database: SqliteDatabase) -> AsyncIterator[SqliteDatabase]:
    task = asyncio.create_task(database._run_writer(), name=f"sqlite writer of {database.name}")
    task.add_done_callback(database._on_writer_end)
    try:
        yield database
    finally:
        await database._close(task)


def memory_connection() -> sqlite3.Connection:
    """Return a new database in memory, for `open_memory_database`."""
    return _connect(":memory:")


def _connect(path: Path | str) -> sqlite3.Connection:
    # isolation_level None: the module begins no transaction by itself. The thread check is off because closing may come from
    # another thread than the executor's; each connection is used by one at a time all the same.
    return sqlite3.connect(
        path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=_CACHED_STATEMENTS
    )
