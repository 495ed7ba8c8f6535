"""The engines of one process: a folder belongs to one, a killed one loses nothing it acknowledged, memory needs no thread."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from random import Random

import pytest

from chassis.clock import SystemClock
from chassis.embedded import DataFolderError, EmbeddedEngines, MemoryDisk, hold_folder, open_embedded_engines
from chassis.eventlog import LogEntry
from chassis.testing.virtual_loop import VirtualClock, run_virtual
from chassis.timeline import Point, Row
from tests.unit.test_sqlite_database import file_size_limit, read_only_folder

HOLDER = """
import sys
from pathlib import Path
from chassis.embedded import hold_folder
with hold_folder(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""

APPENDER = """
import asyncio, sys
from pathlib import Path
from chassis.clock import SystemClock
from chassis.embedded import open_embedded_engines
from chassis.eventlog import LogEntry

async def main():
    async with open_embedded_engines(
        Path(sys.argv[1]), topics={"commands": 1}, durable_topics=["commands"], tables=[], clock=SystemClock()
    ) as engines:
        for number in range(1_000_000):
            await engines.log.append("commands", 0, [LogEntry(b"k", b"%d" % number)])
            print(number, flush=True)

asyncio.run(main())
"""


def opened(data: Path | MemoryDisk | None) -> AbstractAsyncContextManager[EmbeddedEngines]:
    return open_embedded_engines(data, topics={"commands": 1}, durable_topics=["commands"], tables=["t"], clock=SystemClock())


def start(program: str, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_folder_belongs_to_one_process_until_it_dies(tmp_path: Path) -> None:
    with start(HOLDER, tmp_path / "data") as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(DataFolderError, match=f"in use by process {holder.pid}"), hold_folder(tmp_path / "data"):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with hold_folder(tmp_path / "data"):
            pass


async def test_a_folder_is_not_opened_twice_in_one_process(tmp_path: Path) -> None:
    async with opened(tmp_path):
        with pytest.raises(DataFolderError, match=f"in use by process {os.getpid()}"):
            async with opened(tmp_path):
                pass
    async with opened(tmp_path):
        pass


def test_a_child_that_was_just_forked_does_not_keep_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, really_open = [], os.open
    monkeypatch.setattr(os, "open", lambda *args: opened.append(really_open(*args)) or opened[-1])
    with hold_folder(tmp_path):
        copies = [os.dup(descriptor) for descriptor in opened]  # as fork makes them
    with hold_folder(tmp_path):
        pass
    for copy in copies:
        os.close(copy)


def test_a_new_folder_is_for_its_owner_only(tmp_path: Path) -> None:
    with hold_folder(tmp_path / "new" / "data"):
        assert (tmp_path / "new" / "data").stat().st_mode & 0o777 == 0o700


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataFolderError, match=r"file/data can't be used: Not a directory"), hold_folder(tmp_path / "file" / "data"):
        pass


def test_a_folder_without_room_or_rights_is_named(tmp_path: Path) -> None:
    with file_size_limit(0), pytest.raises(DataFolderError, match="can't be used: File too large"), hold_folder(tmp_path):
        pass
    with (
        read_only_folder() as folder,
        pytest.raises(DataFolderError, match="can't be used: Permission denied"),
        hold_folder(folder),
    ):
        pass
    with hold_folder(tmp_path):
        assert (tmp_path / "lock").read_text() == str(os.getpid())


async def test_what_a_killed_process_was_told_is_stored(tmp_path: Path) -> None:
    acknowledged = -1
    with start(APPENDER, tmp_path / "data") as appender:
        assert appender.stdout is not None
        for line in appender.stdout:
            acknowledged = int(line)
            if acknowledged == 200:
                appender.send_signal(signal.SIGKILL)
    stored: list[int] = []
    async with opened(tmp_path / "data") as engines, engines.log.open_consumer("commands", "g") as consumer:
        end = engines.log._partitions["commands"][0].end
        while len(stored) < end:
            batch = await consumer.poll(1_000)
            stored += [int(record.value) for record in batch.records]
            consumer.done(batch)
    assert stored == list(range(len(stored)))
    assert acknowledged < len(stored) <= acknowledged + 2


def test_memory_works_on_virtual_time_without_threads() -> None:
    async def main(_rng: Random) -> None:
        point = Point("t", "p", b"k")
        async with open_embedded_engines(
            None, topics={"commands": 1}, durable_topics=["commands"], tables=["t"], clock=VirtualClock()
        ) as engines:
            await engines.timeline.write([Row(*point, b"v", 1)])
            assert await engines.timeline.read_points([point]) == {point: b"v"}
            async with engines.log.open_consumer("commands", "g") as consumer:
                polling = asyncio.ensure_future(consumer.poll(10))
                await asyncio.sleep(1_000)
                await engines.log.append("commands", 0, [LogEntry(b"k", b"v")])
                consumer.done(await polling)

    before = threading.active_count()
    run_virtual(main)
    assert threading.active_count() == before


async def test_memory_that_is_nobody_else_s_is_gone_when_closed() -> None:
    point = Point("t", "p", b"k")
    for _ in range(2):
        async with opened(None) as engines:
            assert await engines.timeline.read_points([point]) == {}
            await engines.timeline.write([Row(*point, b"v", 1)])
