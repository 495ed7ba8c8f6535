"""fdatasync beside the loop: what it says, and what it does once the kernel has failed to write."""

import asyncio
import errno
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from random import Random

import pytest

from chassis import disk_sync, eventlog_sqlite_partition, sqlite, sqlite_checkpoints
from chassis.clock import SystemClock
from chassis.disk_sync import DiskSync, open_disk_sync
from chassis.embedded import open_embedded_engines
from chassis.eventlog import LogEntry
from chassis.executor import Executor, InlineExecutor, ThreadExecutor
from chassis.sqlite import SqliteDatabase, StorageError, memory_connection, open_sqlite_database
from chassis.sqlite_checkpoints import Checkpoints, Lane

BLOCK = 512


class Disk:
    """What of a file would be there after a power loss, with a kernel that takes for written what it failed to write."""

    def __init__(self) -> None:
        self.path = Path()
        self.platter = b""
        self.failing = False
        self.begun = asyncio.Event()
        self.held: asyncio.Event | None = None
        self._clean = b""  # the file as it was when the kernel last took all of it for written
        self._rewritten = False

    async def begin(self) -> None:
        content = self.path.read_bytes()
        self.begun.set()
        if self.held is not None:
            await self.held.wait()
        if self.failing:
            self._clean, self._rewritten = content, False
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        blocks = []
        for start in range(0, len(content), BLOCK):
            block = content[start : start + BLOCK]
            is_dirty = self._rewritten or block != self._clean[start : start + BLOCK]
            blocks.append(block if is_dirty else self.platter[start : start + BLOCK].ljust(len(block), b"\0"))
        self.platter, self._clean, self._rewritten = b"".join(blocks), content, False

    def note_write(self, descriptor: int, piece: bytes, position: int) -> int:
        """Stand where the whole file is written onto itself."""
        self._rewritten = True
        return os.pwritev(descriptor, [piece], position)


@pytest.fixture
async def executor() -> AsyncIterator[Executor]:
    executor = ThreadExecutor("sync")
    yield executor
    await executor.close()


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    """The disk below the write-ahead log of a durable database that is opened from now on."""
    disk = Disk()
    monkeypatch.setattr(os, "pwrite", disk.note_write)

    @asynccontextmanager
    async def opened(path: Path, executor: Executor) -> AsyncIterator[DiskSync]:
        disk.path, descriptor = path, os.open(path, os.O_RDWR)
        try:
            yield DiskSync(descriptor, executor, disk.begin)
        finally:
            os.close(descriptor)

    monkeypatch.setattr(sqlite, "open_disk_sync", opened)
    return disk


@asynccontextmanager
async def opened_database(path: Path) -> AsyncIterator[SqliteDatabase]:
    executors = [ThreadExecutor(name) for name in ("writer", "reader", "checkpointer")]
    try:
        async with open_sqlite_database(
            path, durable=True, writer=executors[0], reader=executors[1], checkpointer=executors[2]
        ) as database:
            await database.write(lambda c: c.execute("CREATE TABLE IF NOT EXISTS t (k INTEGER PRIMARY KEY, v BLOB)"))
            yield database
    finally:
        for executor in executors:
            await executor.close()


def insert(key: int) -> Callable[[sqlite3.Connection], object]:
    return lambda connection: connection.execute("INSERT INTO t VALUES (?, zeroblob(900))", (key,))


@pytest.mark.parametrize("machine", ["", "none that we know"], ids=["kernel", "thread"])
async def test_a_file_is_synced_again_and_again(
    tmp_path: Path, executor: Executor, monkeypatch: pytest.MonkeyPatch, machine: str
) -> None:
    if machine:
        monkeypatch.setattr(disk_sync.platform, "machine", lambda: machine)
    path = tmp_path / "file"
    path.write_bytes(b"1")
    async with open_disk_sync(path, executor) as sync, asyncio.timeout(20):
        for count in range(20):
            with path.open("ab") as file:
                file.write(bytes(count))
            await sync.sync()
            assert not sync.in_doubt


async def test_the_loop_goes_on_meanwhile_and_a_wait_that_is_cancelled_breaks_nothing(tmp_path: Path, executor: Executor) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"1")
    async with open_disk_sync(path, executor) as sync:
        task = asyncio.create_task(sync.sync())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])


async def test_what_the_kernel_answers_is_told(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"1")
    descriptor = os.open(path, os.O_RDWR)
    try:
        kernel = disk_sync._KernelSync(descriptor)
        try:
            await kernel.begin()
            future = kernel._future = asyncio.get_running_loop().create_future()
            kernel._answer(-errno.ENOSPC)
            with pytest.raises(OSError, match="No space left") as raised:
                await future
            assert raised.value.errno == errno.ENOSPC
        finally:
            kernel.close()
    finally:
        os.close(descriptor)


async def test_a_file_that_can_not_be_synced_fails(executor: Executor) -> None:
    ends = os.pipe()
    try:
        kernel = disk_sync._KernelSync(ends[0])
        try:
            with pytest.raises(OSError, match="io_submit"):
                kernel.begin()
        finally:
            kernel.close()
    finally:
        for end in ends:
            os.close(end)


async def test_a_write_returns_when_it_is_on_the_disk_and_not_before(tmp_path: Path, disk: Disk) -> None:
    async with opened_database(tmp_path / "test.db") as database:
        for key in range(50):
            disk.held = asyncio.Event()
            shown: list[int] = []
            writing = asyncio.ensure_future(database.write(insert(key), rows=1, committed=lambda shown=shown: shown.append(1)))
            later = asyncio.ensure_future(database.write(insert(1_000 + key), rows=1))
            await database.read(lambda c: c.execute("SELECT count(*) FROM t").fetchone())
            assert not writing.done()
            assert not later.done()
            assert not shown
            disk.held.set()
            await writing
            assert shown
            assert key in surviving(tmp_path, disk)
            await later
            assert 1_000 + key in surviving(tmp_path, disk)


@pytest.mark.parametrize("seed", range(5))
async def test_what_returned_is_there_after_a_power_loss_whatever_the_kernel_did_not_write(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(sqlite_checkpoints, "_MIN_SECONDS", 3_600.0)  # the file is copied while nothing is copied into it
    rng, stored, failed = Random(seed), [], 0
    async with opened_database(tmp_path / "test.db") as database:
        for key in range(60):
            disk.failing = rng.random() < 0.4
            writing = database.write(insert(key), rows=rng.choice((1, 1_000)))  # on the loop, or by the thread
            if disk.failing:
                with pytest.raises(StorageError, match=r"test\.db: Input/output error"):
                    await writing
                assert database.trouble is not None
                failed += 1
            else:
                await writing
                stored.append(key)
                assert database.trouble is None
                assert set(stored) <= set(surviving(tmp_path, disk))
    assert failed > 5


def surviving(folder: Path, disk: Disk) -> list[int]:
    """Return the keys that a power loss would leave."""
    copied = folder / "after" / "test.db"
    copied.parent.mkdir(exist_ok=True)
    copied.write_bytes((folder / "test.db").read_bytes())
    copied.with_name("test.db-wal").write_bytes(disk.platter)
    with closing(sqlite3.connect(copied)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return [key for (key,) in connection.execute("SELECT k FROM t")]


async def test_nothing_is_copied_into_the_file_while_its_log_may_not_be_on_the_disk(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_checkpoints, "_MIN_SECONDS", 3_600.0)
    async with opened_database(tmp_path / "test.db") as database:
        disk.failing = True
        with pytest.raises(StorageError):
            await database.write(insert(1))
        assert database._checkpoints.held
        disk.failing = False
        await database.write(insert(2))
        assert not database._checkpoints.held


async def test_what_is_held_is_not_copied_until_it_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(sqlite_checkpoints, "_MIN_SECONDS", 0.0)
    monkeypatch.setattr(sqlite_checkpoints, "_checkpoint", lambda connection: (calls.append(connection), 0))
    with closing(memory_connection()) as connection:
        lane = Lane(InlineExecutor(), connection)
        checkpoints = Checkpoints("test.db", lane, lane)
        task = asyncio.create_task(checkpoints.run())
        for held, expected in ((True, 0), (False, 2)):
            checkpoints.held = held
            checkpoints.on_committed(1)
            for _ in range(50):
                await asyncio.sleep(0)
            assert len(calls) == expected
        task.cancel()
        await asyncio.wait([task])


async def test_what_is_not_on_the_disk_yet_is_not_shown_to_one_who_reads_the_file_either(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eventlog_sqlite_partition, "_RING_BYTES", 0)
    opening = open_embedded_engines(tmp_path, topics={"t": 1}, durable_topics=["t"], tables=[], clock=SystemClock())
    async with opening as engines, engines.log.open_consumer("t", "g") as consumer, asyncio.timeout(20):
        await engines.log.append("t", 0, [LogEntry(b"k", b"1")])
        disk.held = asyncio.Event()
        disk.begun.clear()
        appending = asyncio.create_task(engines.log.append("t", 0, [LogEntry(b"k", b"2")]))
        await disk.begun.wait()
        batch = await consumer.poll(100)
        disk.held.set()
        await appending
        assert [record.value for record in batch.records] == [b"1"]
        consumer.done(batch)
        assert [record.value for record in (await consumer.poll(100)).records] == [b"2"]
