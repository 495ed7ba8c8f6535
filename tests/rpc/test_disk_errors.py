"""A disk that fails after the kernel took a write: what the kernel then says, through all that reads it, to a device."""

import asyncio
import ctypes
import errno
import os
import platform
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest
from gateway_world import TABLES, batch, message, open_world, until

from chassis import disk_sync
from chassis.clock import SystemClock
from chassis.embedded import open_embedded_engines
from parley_protocol.topics import COMMANDS, DEAD_LETTERS, EVENTS, OFFLINE

_RESULT_AT: Final = 16  # `res` in `struct io_event` of linux/aio_abi.h


class Kernel:
    """The kernel of this machine; but while the disk fails a completion bears EIO. Notes what happens."""

    def __init__(self) -> None:
        self._call = ctypes.CDLL(None, use_errno=True).syscall
        _, _, self._submit, self._get = disk_sync._SYSTEM_CALLS[platform.machine()]
        self.failing = False
        self.story: list[str] = []

    def syscall(self, number: int, *arguments: Any) -> int:
        result: int = self._call(number, *arguments)
        if number == self._submit:
            self.story.append("sync")
        elif number == self._get and self.failing:
            assert result == 1
            address = ctypes.addressof(arguments[3]._obj)
            ctypes.memmove(address + _RESULT_AT, (-errno.EIO).to_bytes(8, sys.byteorder, signed=True), 8)
            self.story.append("EIO")
        return result

    def write(self, descriptor: int, piece: bytes, position: int) -> int:
        """Stand where the whole file is written onto itself."""
        written = os.pwritev(descriptor, [piece], position)
        if position + written == os.fstat(descriptor).st_size:
            self.story.append("all written again")
        return written


async def test_a_sync_that_failed_acknowledges_nothing_and_all_is_written_again_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel()
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: SimpleNamespace(syscall=kernel.syscall))
    monkeypatch.setattr(os, "pwrite", kernel.write)
    topics = dict.fromkeys((COMMANDS, EVENTS, OFFLINE, DEAD_LETTERS), 1)
    async with (
        open_embedded_engines(tmp_path, topics=topics, durable_topics=(COMMANDS,), tables=TABLES, clock=SystemClock()) as engines,
        open_world(log=engines.log, timeline=engines.timeline) as world,
    ):
        device = await world.device("alice")
        await device.send(batch(message()))
        assert (await device.outcome()).accepted.seq == 1
        kernel.story.clear()
        kernel.failing = True
        await device.send(batch(message(), first=2))
        answer = asyncio.create_task(device.outcome())
        await until(lambda: kernel.story.count("EIO") == 3)
        assert not answer.done()
        kernel.failing = False
        assert (await answer).accepted.seq == 2
        failed = ["sync", "EIO", "all written again"]
        assert kernel.story[:10] == [*failed, *failed, *failed, "sync"]
        await device.send(batch(message(), first=3))
        assert (await device.outcome()).accepted.seq == 3
        assert kernel.story.count("all written again") == 3
