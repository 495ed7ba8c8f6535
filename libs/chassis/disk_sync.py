"""fdatasync of a file that is written here all the time, without a thread that has to win the interpreter's lock twice.

The kernel can do it beside us and ring on an eventfd: Linux's native AIO, which unlike io_uring containers are allowed to use.
Elsewhere a thread does it.
"""

import asyncio
import ctypes
import errno
import os
import platform
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from chassis.executor import Executor

# The numbers of io_setup, io_destroy, io_submit and io_getevents, which no C library has functions for.
_SYSTEM_CALLS: Final = {"x86_64": (206, 207, 209, 208), "aarch64": (0, 1, 2, 4)}
_IOCB_CMD_FDSYNC: Final = 3  # linux/aio_abi.h
_IOCB_FLAG_RESFD: Final = 1
_REWRITE_BYTES: Final = 1 << 20

_Begin = Callable[[], Awaitable[None]]


class DiskSync:
    """Brings a file to the disk; opened by `open_disk_sync`. One call at a time.

    After a failure the kernel takes what it could not write for written, and the next fdatasync says that all is well. So before
    that the whole file is written onto itself: what is to be on the disk has to wait for the disk once more.
    """

    def __init__(self, descriptor: int, executor: Executor, begin: _Begin) -> None:
        self._descriptor = descriptor
        self._executor = executor
        self._begin = begin
        self.in_doubt = False  # the file can be read, and may not be on the disk

    async def sync(self) -> None:
        """Return once all that was written before is on the disk. Raises OSError: nobody knows what is."""
        doubt, self.in_doubt = self.in_doubt, True
        if doubt:
            await self._executor.run(_rewrite, self._descriptor)
        await self._begin()
        self.in_doubt = False


@asynccontextmanager
async def open_disk_sync(path: Path, executor: Executor) -> AsyncIterator[DiskSync]:
    """Open it for a file that is there. The executor does what the kernel does not do beside us."""
    with ExitStack() as stack:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, descriptor)

        async def by_thread() -> None:
            await executor.run(getattr(os, "fdatasync", os.fsync), descriptor)

        begin: _Begin = by_thread
        if platform.system() == "Linux" and platform.machine() in _SYSTEM_CALLS:
            try:
                kernel = _KernelSync(descriptor)
            except OSError:  # a system that has none, or forbids it
                pass
            else:
                stack.callback(kernel.close)
                begin = kernel.begin
        yield DiskSync(descriptor, executor, begin)


class _Request(ctypes.Structure):
    """`struct iocb` of linux/aio_abi.h, little-endian."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("key", ctypes.c_uint32),
        ("rw_flags", ctypes.c_int32),
        ("opcode", ctypes.c_uint16),
        ("priority", ctypes.c_int16),
        ("descriptor", ctypes.c_uint32),
        ("buffer", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("reserved", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("event_descriptor", ctypes.c_uint32),
    )


class _Completion(ctypes.Structure):
    """`struct io_event`."""

    _fields_ = (("data", ctypes.c_uint64), ("request", ctypes.c_uint64), ("result", ctypes.c_int64), ("result2", ctypes.c_int64))


class _KernelSync:
    """One fdatasync at a time, done by the kernel. Raises OSError where it can't."""

    def __init__(self, descriptor: int) -> None:
        self._call = ctypes.CDLL(None, use_errno=True).syscall
        setup, self._destroy, self._submit, self._get = _SYSTEM_CALLS[platform.machine()]
        self._context = ctypes.c_ulong(0)
        self._check(self._call(setup, 1, ctypes.byref(self._context)), "io_setup")
        self._event_descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        request = _Request(
            opcode=_IOCB_CMD_FDSYNC, descriptor=descriptor, flags=_IOCB_FLAG_RESFD, event_descriptor=self._event_descriptor
        )
        self._requests = (ctypes.POINTER(_Request) * 1)(ctypes.pointer(request))
        self._completion = _Completion()
        self._future: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._event_descriptor, self._on_event)

    def begin(self) -> "asyncio.Future[None]":
        future = self._loop.create_future()
        self._check(self._call(self._submit, self._context, 1, self._requests), "io_submit")
        self._future = future
        return future

    def _on_event(self) -> None:
        os.read(self._event_descriptor, 8)
        self._check(self._call(self._get, self._context, 1, 1, ctypes.byref(self._completion), None), "io_getevents")
        self._answer(self._completion.result)

    def _answer(self, result: int) -> None:
        future, self._future = self._future, None
        if future is None or future.done():
            return  # cancelled meanwhile
        if result < 0:
            future.set_exception(OSError(-result, os.strerror(-result)))
        else:
            future.set_result(None)

    def close(self) -> None:
        """Let go of the kernel's part, after what is under way."""
        self._loop.remove_reader(self._event_descriptor)
        self._call(self._destroy, self._context)
        os.close(self._event_descriptor)

    def _check(self, result: int, name: str) -> None:
        if result < 0:
            number = ctypes.get_errno() or errno.EIO
            raise OSError(number, f"{name}: {os.strerror(number)}")


def _rewrite(descriptor: int) -> None:
    """Write a file onto itself, which nobody else writes meanwhile."""
    position = 0
    while piece := os.pread(descriptor, _REWRITE_BYTES, position):
        written = 0
        while written < len(piece):
            written += os.pwrite(descriptor, piece[written:], position + written)
        position += len(piece)
