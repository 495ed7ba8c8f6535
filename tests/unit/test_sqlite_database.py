"""One writer with group commit: who shares a transaction, who fails alone, and what is left when the disk fails."""

import asyncio
import os
import resource
import sqlite3
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

import pytest

from chassis import sqlite, sqlite_checkpoints
from chassis.executor import InlineExecutor, ThreadExecutor
from chassis.sqlite import SqliteDatabase, StorageError, memory_connection, open_memory_database, open_sqlite_database
from chassis.sqlite_statements import execute_rows, multi_row, padded, sized


@asynccontextmanager
async def opened(path: Path, durable: bool = False) -> AsyncIterator[SqliteDatabase]:
    writer, reader, checkpointer = (ThreadExecutor(name) for name in ("writer", "reader", "checkpointer"))
    try:
        async with open_sqlite_database(path, durable=durable, writer=writer, reader=reader, checkpointer=checkpointer) as database:
            await database.write(create)
            yield database
    finally:
        for executor in (writer, reader, checkpointer):
            await executor.close()


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[SqliteDatabase]:
    async with opened(tmp_path / "test.db") as database:
        yield database


def create(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE IF NOT EXISTS t (k INTEGER PRIMARY KEY, v BLOB)")


def insert(key: int, value: bytes = b"") -> "sqlite.Callable[[sqlite3.Connection], int]":
    def execute(connection: sqlite3.Connection) -> int:
        connection.execute("INSERT INTO t VALUES (?, ?)", (key, value))
        return key

    return execute


async def keys(database: SqliteDatabase) -> list[int]:
    return [key for (key,) in await database.read(lambda c: c.execute("SELECT k FROM t ORDER BY k").fetchall())]


class HeldWriter:
    """Keeps the writer busy inside a transaction until released."""

    def __init__(self) -> None:
        self.running = threading.Event()
        self.release = threading.Event()

    def __call__(self, connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO t VALUES (-1, '')")
        self.running.set()
        self.release.wait(20)


async def test_writes_that_wait_share_the_next_transaction(database: SqliteDatabase) -> None:
    statements: list[str] = []
    held = HeldWriter()
    first = database.write(lambda c: (c.set_trace_callback(statements.append), held(c)))
    await asyncio.to_thread(held.running.wait)
    rest = [database.write(insert(key)) for key in range(50)]
    held.release.set()
    await first
    assert await asyncio.gather(*rest) == list(range(50))
    assert statements.count("COMMIT") == 2
    assert await keys(database) == [-1, *range(50)]


async def test_a_single_statement_needs_no_transaction_around_it_and_shares_one_with_others(database: SqliteDatabase) -> None:
    statements: list[str] = []
    await database.write(lambda c: c.set_trace_callback(statements.append))
    statements.clear()
    await database.write(insert(1), single=True)
    with pytest.raises(sqlite3.IntegrityError):
        await database.write(insert(1), single=True)
    assert [statement.split()[0] for statement in statements] == ["INSERT", "INSERT"]
    held = HeldWriter()
    first = database.write(held)
    await asyncio.to_thread(held.running.wait)
    waiting = [database.write(insert(key), single=True) for key in (2, 1, 3)]
    held.release.set()
    await first
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [outcomes[0], type(outcomes[1]), outcomes[2]] == [2, sqlite3.IntegrityError, 3]
    assert await keys(database) == [-1, 1, 2, 3]


async def test_readers_do_not_wait_for_a_write(database: SqliteDatabase) -> None:
    held = HeldWriter()
    writing = database.write(held)
    await asyncio.to_thread(held.running.wait)
    assert await keys(database) == []
    held.release.set()
    await writing
    assert await keys(database) == [-1]


async def test_one_that_fails_for_its_own_reason_fails_alone(database: SqliteDatabase) -> None:
    def mistaken(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO t VALUES (99, '')")
        raise ZeroDivisionError

    held = HeldWriter()
    first = database.write(held)
    await asyncio.to_thread(held.running.wait)
    jobs = [insert(1), mistaken, insert(1), lambda c: c.execute("no sql"), insert(2)]
    waiting = [database.write(job) for job in jobs]
    held.release.set()
    await first
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [outcomes[0], outcomes[4]] == [1, 2]
    assert [type(outcome) for outcome in outcomes[1:4]] == [ZeroDivisionError, sqlite3.IntegrityError, sqlite3.OperationalError]
    assert await keys(database) == [-1, 1, 2]


async def test_callbacks_run_in_commit_order_even_if_nobody_waits_any_more(database: SqliteDatabase) -> None:
    order: list[int] = []
    futures = [database.write(insert(key), committed=lambda key=key: order.append(key)) for key in range(10)]
    failing = database.write(insert(3), committed=lambda: order.append(-1))
    for future in futures[:5]:
        assert isinstance(future, asyncio.Future)
        future.cancel()
    await asyncio.gather(*futures[5:])
    with pytest.raises(sqlite3.IntegrityError):
        await failing
    assert order == await keys(database) == list(range(10))


async def test_closing_finishes_what_is_queued_and_refuses_more(tmp_path: Path) -> None:
    async with opened(tmp_path / "test.db") as database:
        waiting = [database.write(insert(key)) for key in range(600)]
    assert await asyncio.gather(*waiting) == list(range(600))
    with pytest.raises(StorageError, match="closed"):
        database.write(insert(1))
    async with opened(tmp_path / "test.db") as database:
        assert await keys(database) == list(range(600))


async def test_the_queue_is_bounded(database: SqliteDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "_QUEUE_JOBS", 10)
    waiting = [database.write(insert(key)) for key in range(10)]
    with pytest.raises(StorageError, match="10 writes wait"):
        database.write(insert(99))
    await asyncio.gather(*waiting)
    await database.write(insert(99))


async def test_whoever_waits_is_told_when_the_writer_is_cancelled() -> None:
    with closing(memory_connection()) as connection:
        opening = open_memory_database("memory", connection, InlineExecutor())
        database = await opening.__aenter__()
        waiting = database.write(create)
        writer = next(task for task in asyncio.all_tasks() if task.get_name().startswith("sqlite writer"))
        writer.cancel()
        with pytest.raises(StorageError, match="closed"):
            await waiting
        with pytest.raises(asyncio.CancelledError):
            await opening.__aexit__(None, None, None)


async def test_the_write_ahead_log_is_copied_beside_the_writer_and_starts_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, copied = asyncio.get_running_loop(), asyncio.Event()
    written = threading.Event()
    calls: list[tuple[bool, int]] = []
    checkpoint = sqlite_checkpoints._checkpoint

    def noting(connection: sqlite3.Connection) -> tuple[bool, int]:
        all_is_written = written.is_set()
        calls.append(checkpoint(connection))
        if all_is_written and len(calls) % 2 == 0:  # beside the writer, then on it
            loop.call_soon_threadsafe(copied.set)
        return calls[-1]

    monkeypatch.setattr(sqlite_checkpoints, "_checkpoint", noting)
    monkeypatch.setattr(sqlite_checkpoints, "_MIN_SECONDS", 0.01)
    async with opened(tmp_path / "test.db") as database:
        for key in range(3):
            await database.write(insert(key, bytes(100_000)))
        await database.write(lambda connection: written.set())  # on the writer's thread: what it copies from here on is all
        async with asyncio.timeout(20):
            await copied.wait()
        wal_bytes = (tmp_path / "test.db-wal").stat().st_size
        assert (tmp_path / "test.db").stat().st_size > 100_000
        await database.write(insert(3))
        assert (tmp_path / "test.db-wal").stat().st_size == wal_bytes
    assert all(whole for whole, _ in calls)


async def test_the_write_ahead_log_is_bounded_without_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_checkpoints, "_MIN_SECONDS", 3_600.0)
    monkeypatch.setattr(sqlite, "COMMIT_CHECKPOINT_PAGES", 1_000)
    async with opened(tmp_path / "test.db") as database:
        for start in range(0, 400, 10):
            await asyncio.gather(*(database.write(insert(start + n, bytes(40_000))) for n in range(10)))
        assert (tmp_path / "test.db").stat().st_size > 12 << 20
        assert (tmp_path / "test.db-wal").stat().st_size < 6 << 20


async def test_a_full_disk_is_named_and_service_resumes_with_space(database: SqliteDatabase) -> None:
    await database.write(insert(0))
    await database.write(lambda c: c.execute("PRAGMA max_page_count = 20").fetchone())
    outcomes = await asyncio.gather(*(database.write(insert(key, bytes(50_000))) for key in (1, 2, 3)), return_exceptions=True)
    for outcome in outcomes:
        with pytest.raises(StorageError, match=r"test\.db: disk full"):
            raise outcome
    assert await keys(database) == [0]
    await database.write(lambda c: c.execute("PRAGMA max_page_count = 100000").fetchone())
    await database.write(insert(4, bytes(50_000)))
    assert await keys(database) == [0, 4]


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """Let writes beyond a file size fail, as the kernel does it: mid-file, partly done."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("durable", [False, True])
async def test_a_write_that_the_kernel_cuts_off_is_undone_and_service_resumes(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "test.db"
    stored, failed = [], []
    async with opened(path, durable) as database:
        for size_bytes in range(100_000, 110_000, 1_111):  # cut at various places within a page
            with file_size_limit(size_bytes):
                for key in range(len(stored) + len(failed), len(stored) + len(failed) + 10):
                    try:
                        stored.append(await database.write(insert(key, bytes(20_000))))
                    except StorageError:
                        failed.append(key)
            assert await keys(database) == stored
            stored.append(await database.write(insert(len(stored) + len(failed))))
    assert failed
    async with opened(path, durable) as database:
        assert await keys(database) == stored


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "test.db").write_bytes(b"something else" * 1_000)
    with pytest.raises(StorageError, match="not a database"):
        async with opened(tmp_path / "test.db"):
            pass


@contextmanager
def read_only_folder() -> Iterator[Path]:
    """A folder of files that this process may read and not write; root gives up its rights for the while."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with closing(sqlite3.connect(folder / "test.db")) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            create(connection)
        (folder / "test.db").chmod(0o444)
        folder.chmod(0o555)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65_534)
        try:
            yield folder
        finally:
            if root:
                os.seteuid(0)
            folder.chmod(0o700)


async def test_a_read_only_folder_is_refused_when_opening() -> None:
    with read_only_folder() as folder, pytest.raises(StorageError, match=r"test\.db: (read-only|cannot open)"):
        async with opened(folder / "test.db"):
            pass


@pytest.mark.parametrize("count", [0, 1, 2, 3, 63, 64, 65, 200])
def test_rows_go_in_few_statements(count: int) -> None:
    statements = multi_row("INSERT INTO t VALUES", "(?, ?)")
    executed: list[str] = []
    with closing(memory_connection()) as connection:
        create(connection)
        connection.set_trace_callback(executed.append)
        execute_rows(connection, statements, [value for key in range(count) for value in (key, b"")], 2)
        assert [key for (key,) in connection.execute("SELECT k FROM t")] == list(range(count))
        assert sum(statement.startswith("INSERT") for statement in executed) == count // 64 + (count % 64).bit_count()


@pytest.mark.parametrize("count", [1, 2, 3, 5, 64])
def test_padding_fills_the_statement_it_is_for(count: int) -> None:
    items = list(range(count))
    full = padded(items)
    assert list(full[:count]) == items
    assert set(full) == set(items)
    assert sized(multi_row("IN (VALUES", "(?)", ")"), count).count("?") == len(full)


async def test_a_log_that_commits_do_not_sync_goes_to_the_disk_bit_by_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, loop = asyncio.Event(), asyncio.get_running_loop()
    names = []

    def noting(log: int) -> None:
        names.append(os.readlink(f"/proc/self/fd/{log}"))
        loop.call_soon_threadsafe(synced.set)

    monkeypatch.setattr(sqlite_checkpoints, "_MIN_SECONDS", 3_600.0)
    monkeypatch.setattr(os, "fdatasync", noting)
    async with opened(tmp_path / "test.db") as database:
        await database.write(insert(1))
        async with asyncio.timeout(20):
            await synced.wait()
    assert set(names) == {str(tmp_path / "test.db-wal")}
