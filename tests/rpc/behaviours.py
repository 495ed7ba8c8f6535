"""A service with handlers of every style, behind a server on a socket or in process."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import grpc.aio
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from chassis import transport
from chassis.channels import open_channel
from chassis.errors import NotFound, ResourceExhausted
from chassis.eventlog import LogUnavailableError
from chassis.inprocess import InProcessChannel, InProcessServer
from chassis.inprocess_rpc import MAX_BUFFERED_MESSAGES
from chassis.server import open_server

KINDS = ["socket", "in process"]
MAX_BYTES = 10_000
SERVICE = "test.Behaviour"
FLOOD_MESSAGES = 10_000  # far more than anything holds, and an end: nobody holding the writer is a test that fails, not all memory

# A client's window grows to megabytes while gRPC probes the bandwidth: how much it takes of a stream that nobody reads would be the
# machine's matter. With these it stays what a server's is.
FIXED_WINDOW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", transport.STREAM_WINDOW_BYTES)]


class Behaviours:
    """Handlers of every style. `events` tells what happened to them."""

    def __init__(self):
        self.events = asyncio.Queue()
        self.sent = 0
        self.release = asyncio.Event()

    async def echo(self, request, context):
        context.set_trailing_metadata((("seen", dict(context.invocation_metadata()).get("ask", "")), ("raw-bin", b"\x00\xff")))
        return request

    async def fail(self, request, context):
        match request:
            case b"service":
                raise ResourceExhausted("RATE_LIMITED", "slower", retry_delay_seconds=2.5)
            case b"bug":
                raise ZeroDivisionError("secret")
            case b"log":
                raise LogUnavailableError
            case b"long":
                raise NotFound("CONVERSATION_NOT_FOUND", "x" * 100_000)
            case b"abort":
                await context.abort(grpc.StatusCode.ABORTED, "on purpose", (("why", "test"),))
            case b"inner cancel":
                future = asyncio.get_running_loop().create_future()
                future.cancel()
                await future
            case b"set code":
                context.set_code(grpc.StatusCode.DATA_LOSS)
                context.set_details("by code")
        return b""

    async def hang(self, request, context):
        await self.events.put(("started", context.time_remaining()))
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            await self.events.put("cancelled")
            raise
        return b"released"

    async def count(self, request, context):
        try:
            for n in range(int(request)):
                yield b"%d" % n
        finally:
            await self.events.put("closed")

    async def count_then_fail(self, request, context):
        for n in range(int(request)):
            await context.write(b"%d" % n)
        raise NotFound("CONVERSATION_NOT_FOUND", "no more")

    async def join(self, requests, context):
        return b",".join([request async for request in requests])

    async def talk(self, requests, context):
        async for request in requests:
            yield b"you said " + request

    async def chat(self, _, context):
        await context.send_initial_metadata((("hello", "there"),))
        try:
            while (request := await context.read()) is not grpc.aio.EOF:
                if request == b"bye":
                    return
                await context.write(request.upper())
            await context.write(b"END")
        finally:
            await self.events.put("ended")

    async def flood(self, _, context):
        try:
            for _ in range(FLOOD_MESSAGES):
                await context.write(bytes(1000))
                self.sent += 1
        finally:  # cancelled, or told by the write that was held: on a socket either may come first
            await self.events.put("ended")

    async def subtask_writes_on(self, _, context):
        """Write from another task after the call was cancelled, as a writer task does that is told last."""
        await context.write(b"ready")
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            try:
                await asyncio.create_task(context.write(b"late"))
            except (grpc.aio.InternalError, grpc.aio.UsageError):
                await self.events.put("refused")
            raise

    def not_async(self, request, context):
        context.set_code(grpc.StatusCode.UNIMPLEMENTED)
        raise NotImplementedError

    async def typed(self, request, context):
        return StringValue(value=request.value * 2)

    async def typed_stream(self, requests, context):
        async for request in requests:
            yield request

    def register(self, server):
        unary, spread = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        gather, stream = grpc.stream_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        codec = {"request_deserializer": StringValue.FromString, "response_serializer": StringValue.SerializeToString}
        handlers = {
            "Echo": unary(self.echo),
            "Fail": unary(self.fail),
            "Hang": unary(self.hang),
            "Count": spread(self.count),
            "CountThenFail": spread(self.count_then_fail),
            "Join": gather(self.join),
            "Talk": stream(self.talk),
            "Chat": stream(self.chat),
            "Flood": stream(self.flood),
            "SubtaskWritesOn": stream(self.subtask_writes_on),
            "NotAsync": unary(self.not_async),
            "Typed": unary(self.typed, **codec),
            "TypedStream": stream(self.typed_stream, **codec),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        server.add_registered_method_handlers(SERVICE, handlers)


class World:
    """A server with the behaviours and a channel to it."""

    def __init__(self, kind, behaviours, channel, stop):
        self.kind, self.behaviours, self.channel, self.stop = kind, behaviours, channel, stop

    def unary(self, name):
        return self.channel.unary_unary(f"/{SERVICE}/{name}")

    def spread(self, name):
        return self.channel.unary_stream(f"/{SERVICE}/{name}")

    def gather(self, name):
        return self.channel.stream_unary(f"/{SERVICE}/{name}")

    def stream(self, name):
        return self.channel.stream_stream(f"/{SERVICE}/{name}")

    async def event(self):
        async with asyncio.timeout(5):
            return await self.behaviours.events.get()


@asynccontextmanager
async def open_world(kind: str) -> AsyncIterator[World]:
    """Serve the behaviours in one of the two kinds; clients take twice as large messages as the server."""
    behaviours = Behaviours()
    async with AsyncExitStack() as stack:
        if kind == "socket":
            opening = open_server(
                bind="127.0.0.1:0", register=behaviours.register, max_receive_bytes=MAX_BYTES, stop_grace_seconds=0.1
            )
            server_stack = await stack.enter_async_context(AsyncExitStack())
            running = await server_stack.enter_async_context(opening)
            channel = await stack.enter_async_context(open_channel(running.address, max_receive_bytes=2 * MAX_BYTES))
            yield World(kind, behaviours, channel, server_stack.aclose)
        else:
            server = InProcessServer(max_receive_bytes=MAX_BYTES)
            behaviours.register(server)
            stack.push_async_callback(server.stop, 0.1)
            channel = await stack.enter_async_context(InProcessChannel(server, max_receive_bytes=2 * MAX_BYTES))
            yield World(kind, behaviours, channel, lambda: server.stop(0.1))


def fix_client_windows(patch: pytest.MonkeyPatch) -> None:
    """Let channels that are opened from now on take no more than `room` says, as servers do."""
    original = transport.channel_options
    patch.setattr("chassis.channels.channel_options", lambda max_bytes: [*original(max_bytes), *FIXED_WINDOW])


def room(kind: str, message_bytes: int) -> int:
    """Return how many messages a stream takes at most that nobody reads.

    On a socket that is a window, and what gRPC grants beyond it for the message that is being read: another at most.
    """
    return 2 * transport.STREAM_WINDOW_BYTES // message_bytes if kind == "socket" else MAX_BUFFERED_MESSAGES


async def at_rest(world: World, progress: Callable[[], int]) -> int:
    """Return where a writer stays while others' calls are answered, on the same connection: he has had his turns as they had."""
    at, answers = progress(), 0
    while answers < 20:
        await world.unary("Echo")(b"", timeout=10)
        at, answers = progress(), answers + 1 if progress() == at else 0
    return at


async def failure(awaitable):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(_result(awaitable), 5)
    return caught.value


async def _result(awaitable):
    return await awaitable
