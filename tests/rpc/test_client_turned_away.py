"""A goodbye that comes before the client has written: over real sockets, where grpc.aio lets the late write fail."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import grpc
import pytest

from chassis.clock import SystemClock
from chassis.server import open_server
from parley.api.v1 import messaging_service_pb2 as api
from parley.api.v1.messaging_service_pb2_grpc import (
    MessagingServiceServicer,
    MessagingServiceStub,
    add_MessagingServiceServicer_to_server,
)
from parley_client.connection import Connection, StreamEndedError
from parley_client.device_frames import batch_frame
from parley_client.reconnect import after_go_away

TIMEOUT_SECONDS = 30
MOVED = api.GoAway(reason=api.GO_AWAY_REASON_MOVED, reconnect=True, address="right:7080", detail="elsewhere")
OVERLOADED = api.GoAway(reason=api.GO_AWAY_REASON_OVERLOADED, reconnect=True, detail="full")
OVERLOADED.reconnect_delay.FromSeconds(7)
GOODBYES = pytest.mark.parametrize("goodbye", [MOVED, OVERLOADED], ids=["moved", "overloaded"])


class Gateway(MessagingServiceServicer):
    """Says what it has to say and ends the stream, whatever the device writes."""

    def __init__(self, *frames: api.ConnectResponse, welcomes: bool) -> None:
        self._frames = frames
        self._welcomes = welcomes
        self.ended = asyncio.Event()  # the status is written, too

    async def Connect(self, _requests: Any, context: Any) -> None:
        context.add_done_callback(lambda _context: self.ended.set())
        if self._welcomes:
            await context.read()
            await context.write(api.ConnectResponse(welcome=api.Welcome(user_id="alice", device_id="d1")))
        for frame in self._frames:
            await context.write(frame)

    async def Locate(self, _request: api.LocateRequest, _context: Any) -> api.LocateResponse:
        return api.LocateResponse()


class LateConnection(Connection):
    """Writes when the stream's end is there."""

    def __init__(self, channel: grpc.aio.Channel, end_arrived: Callable[[], Awaitable[None]]) -> None:
        super().__init__(channel, (("authorization", "Bearer t"),), SystemClock())
        self._end_arrived = end_arrived

    async def write(self, frame: bytes) -> None:
        await self._end_arrived()
        await super().write(frame)


@asynccontextmanager
async def channel_to(gateway: Gateway) -> AsyncIterator[tuple[grpc.aio.Channel, Callable[[], Awaitable[None]]]]:
    """Yield a channel to it, and what returns when all of a stream that was opened on it has come, its end too."""
    register = partial(add_MessagingServiceServicer_to_server, gateway)
    async with asyncio.timeout(TIMEOUT_SECONDS):
        async with (
            open_server(bind="127.0.0.1:0", register=register) as running,
            grpc.aio.insecure_channel(running.address) as channel,
        ):

            async def end_arrived() -> None:
                await gateway.ended.wait()
                await MessagingServiceStub(channel).Locate(api.LocateRequest())  # the same connection: answered behind the end

            yield channel, end_arrived
        while len(asyncio.all_tasks()) > 1:  # noqa: ASYNC110 - gRPC's own, which tells nobody
            await asyncio.sleep(0.01)


@GOODBYES
async def test_who_is_turned_away_before_hello_is_written_learns_where_to_and_when(goodbye: api.GoAway) -> None:
    async with channel_to(Gateway(api.ConnectResponse(go_away=goodbye), welcomes=False)) as (channel, end_arrived):
        connection = LateConnection(channel, end_arrived)
        with pytest.raises(StreamEndedError) as caught:
            await connection.open("d1", "test", TIMEOUT_SECONDS)
        assert caught.value.verdict == after_go_away(goodbye)
        await connection.close()


@GOODBYES
async def test_a_write_to_a_stream_that_is_over_leaves_what_came_to_the_reader(goodbye: api.GoAway) -> None:
    last = api.ConnectResponse(batch=api.ServerBatch())
    async with channel_to(Gateway(last, api.ConnectResponse(go_away=goodbye), welcomes=True)) as (channel, end_arrived):
        connection = Connection(channel, (("authorization", "Bearer t"),), SystemClock())
        await connection.open("d1", "test", TIMEOUT_SECONDS)
        await end_arrived()
        with pytest.raises(StreamEndedError):
            await connection.write(batch_frame(0, (), ()))
        assert await connection.read() == last
        with pytest.raises(StreamEndedError) as caught:
            await connection.read()
        assert caught.value.verdict == after_go_away(goodbye)
        await connection.close()
