"""A TCP link that can be bad in every way that real ones are."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from chassis.tasks import Tasks, open_tasks
from parley_chaos.plan import Kind

_CHUNK_BYTES: Final = 65536
_DELAY_SECONDS: Final = 0.15  # each way, for every read: a satellite, or a queue that is full
_TRICKLE_SECONDS: Final = 0.002  # a byte: 500 a second
_AWAY_SECONDS: Final = 0.5  # before a dead upstream's refusal is passed on


class Link:
    """One link; made by `open_link`. `touched` counts what the present fault did: connections cut, reads held or spoilt."""

    def __init__(self, name: str, upstream: str, tasks: Tasks) -> None:
        self.name = name
        self.address = ""
        self.touched = 0
        self._host, _, port = upstream.rpartition(":")
        self._port = int(port)
        self._tasks = tasks
        self._fault: Kind | None = None
        self._whole = asyncio.Event()
        self._whole.set()
        self._writers: dict[asyncio.StreamWriter, None] = {}

    def spoil(self, kind: Kind) -> None:
        """Begin a fault."""
        self._fault, self.touched = kind, 0
        self._whole.clear()
        if kind is Kind.CUT:
            self._reset_all()

    def heal(self) -> None:
        """End it. What a link has swallowed never comes: its connections are reset, as a peer does that has lost count."""
        fault, self._fault = self._fault, None
        self._whole.set()
        if fault in (Kind.BLACKHOLE, Kind.HALF_OPEN):
            self._reset_all()

    def _reset_all(self) -> None:
        self.touched += len(self._writers)
        for writer in self._writers:
            writer.transport.abort()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take a connection."""
        self._tasks.spawn(self._join(reader, writer), name=f"link.{self.name}")

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers[writer] = None
        there: asyncio.StreamWriter | None = None
        try:
            if self._fault is Kind.CUT:
                self.touched += 1
                writer.transport.abort()
                return
            try:
                answers, opened = await asyncio.open_connection(self._host, self._port)
            except OSError:
                await asyncio.sleep(_AWAY_SECONDS)
                writer.transport.abort()
                return
            there = opened
            self._writers[opened] = None
            for stream in (writer, opened):
                stream.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, opened, forth=True))
                group.create_task(self._pump(answers, writer, forth=False))
        finally:
            for end in (writer, there):
                if end is not None:
                    self._writers.pop(end, None)
                    end.transport.abort()

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, forth: bool) -> None:
        with suppress(ConnectionError, RuntimeError):  # RuntimeError: the other pump, or a fault, has closed it
            while data := await source.read(_CHUNK_BYTES):
                fault = self._fault
                if fault is not None:
                    self.touched += 1
                if fault is Kind.BLACKHOLE or (fault is Kind.HALF_OPEN and forth):
                    continue  # until the connection is reset
                if fault is Kind.DELAY:
                    await asyncio.sleep(_DELAY_SECONDS)
                elif fault is Kind.TRICKLE:
                    await self._trickle(data, target)
                    continue
                target.write(data)
                await target.drain()
            if target.can_write_eof():
                target.write_eof()

    async def _trickle(self, data: bytes, target: asyncio.StreamWriter) -> None:
        for index in range(len(data)):
            if self._fault is not Kind.TRICKLE:
                target.write(data[index:])
                break
            target.write(data[index : index + 1])
            await target.drain()
            await asyncio.sleep(_TRICKLE_SECONDS)
        await target.drain()


@asynccontextmanager
async def open_link(name: str, upstream: str) -> AsyncIterator[Link]:
    """Pass connections on to host:port, which may come and go, from `address`."""
    async with open_tasks(f"chaos.{name}") as tasks:
        link = Link(name, upstream, tasks)
        server = await asyncio.start_server(link.accept, "127.0.0.1", 0)
        try:
            link.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            yield link
        finally:
            server.close()
