"""One suite of behaviours for a server on a socket and one in process: services must not be able to tell them apart."""

import asyncio
from contextlib import AsyncExitStack

import grpc
import grpc.aio
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from structlog.testing import capture_logs

from chassis.channels import open_channel
from chassis.errors import NotFound, ResourceExhausted, carried_status, reason_of, retry_delay_of
from chassis.eventlog import LogUnavailableError
from chassis.inprocess import InProcessChannel, InProcessServer
from chassis.server import open_server

MAX_BYTES = 10_000
SERVICE = "test.Behaviour"


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
            while True:
                await context.write(bytes(1000))
                self.sent += 1
        except asyncio.CancelledError:
            await self.events.put("cancelled")
            raise

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

    def __init__(self, behaviours, channel, stop):
        self.behaviours, self.channel, self.stop = behaviours, channel, stop

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


@pytest.fixture(params=["socket", "in process"])
async def world(request):
    behaviours = Behaviours()
    async with AsyncExitStack() as stack:
        if request.param == "socket":
            opening = open_server(
                bind="127.0.0.1:0", register=behaviours.register, max_receive_bytes=MAX_BYTES, stop_grace_seconds=0.1
            )
            server_stack = await stack.enter_async_context(AsyncExitStack())
            running = await server_stack.enter_async_context(opening)
            channel = await stack.enter_async_context(open_channel(running.address, max_receive_bytes=2 * MAX_BYTES))
            stop = server_stack.aclose
        else:
            server = InProcessServer(max_receive_bytes=MAX_BYTES)
            behaviours.register(server)
            stop = lambda: server.stop(0.1)  # noqa: E731
            stack.push_async_callback(stop)
            channel = await stack.enter_async_context(InProcessChannel(server, max_receive_bytes=2 * MAX_BYTES))
        yield World(behaviours, channel, stop)


async def failure(awaitable):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(_result(awaitable), 5)
    return caught.value


async def _result(awaitable):
    return await awaitable


# Unary


async def test_a_request_is_answered_with_metadata(world):
    call = world.unary("Echo")(b"hi", metadata=(("ask", "this"),), timeout=10)
    assert await call == b"hi"
    assert await call.code() is grpc.StatusCode.OK
    assert await call.details() == ""
    assert dict(await call.trailing_metadata()) == {"seen": "this", "raw-bin": b"\x00\xff"}
    assert dict(await call.initial_metadata()) == {}
    assert call.done()
    assert not call.cancelled()
    assert await call == b"hi"


async def test_an_empty_message_is_a_message(world):
    assert await world.unary("Echo")(b"") == b""


async def test_many_calls_at_once_each_get_their_own_answer(world):
    requests = [b"%d" % n for n in range(200)]
    assert await asyncio.gather(*(world.unary("Echo")(request) for request in requests)) == requests


async def test_messages_are_copied_through_their_encoding(world):
    sent = StringValue(value="ab")
    typed = world.channel.unary_unary(f"/{SERVICE}/Typed", StringValue.SerializeToString, StringValue.FromString)
    call = typed(sent)
    sent.value = "changed"
    assert (await call).value in ("abab", "changedchanged")
    assert sent.value == "changed"


async def test_an_unknown_method_is_unimplemented(world):
    error = await failure(world.unary("Nothing")(b""))
    assert (error.code(), error.details()) == (grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
    assert (await failure(world.stream("Nothing")().read())).code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_handler_that_is_not_async_is_unimplemented(world):
    assert (await failure(world.unary("NotAsync")(b""))).code() is grpc.StatusCode.UNIMPLEMENTED


# Errors


async def test_a_service_error_arrives_with_reason_and_delay(world):
    with capture_logs() as logs:
        error = await failure(world.unary("Fail")(b"service"))
    assert (error.code(), error.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "slower")
    status = carried_status(error)
    assert (reason_of(status), retry_delay_of(status)) == ("RATE_LIMITED", 2.5)
    assert logs == []


async def test_a_bug_is_internal_and_told_by_reference_only(world):
    with capture_logs() as logs:
        error = await failure(world.unary("Fail")(b"bug"))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert reason_of(carried_status(error)) == "INTERNAL"
    assert "secret" not in error.details()
    assert len(logs) == 1
    assert isinstance(logs[0]["exc_info"], ZeroDivisionError)
    assert logs[0]["method"] == f"/{SERVICE}/Fail"
    assert logs[0]["reference"] in error.details()


async def test_an_engine_that_is_away_is_unavailable_and_no_bug(world):
    with capture_logs() as logs:
        error = await failure(world.unary("Fail")(b"log"))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert retry_delay_of(carried_status(error)) > 0
    assert logs == []


async def test_a_handler_whose_inner_wait_was_cancelled_is_a_bug_and_answers(world):
    with capture_logs() as logs:
        error = await failure(world.unary("Fail")(b"inner cancel", timeout=5))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert len(logs) == 1


async def test_an_error_text_that_is_too_long_for_metadata_is_cut(world):
    error = await failure(world.unary("Fail")(b"long"))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert error.details().startswith("xxx")


async def test_abort_ends_with_its_status_and_metadata(world):
    error = await failure(world.unary("Fail")(b"abort"))
    assert (error.code(), error.details()) == (grpc.StatusCode.ABORTED, "on purpose")
    assert ("why", "test") in tuple(error.trailing_metadata())


async def test_a_code_set_by_the_handler_ends_the_call(world):
    error = await failure(world.unary("Fail")(b"set code"))
    assert (error.code(), error.details()) == (grpc.StatusCode.DATA_LOSS, "by code")


async def test_bytes_that_are_no_message_are_malformed(world):
    with capture_logs() as logs:
        error = await failure(world.unary("Typed")(b"\xff\xff\xff"))
        assert (error.code(), reason_of(carried_status(error))) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED")
        call = world.stream("TypedStream")()
        await call.write(StringValue(value="good").SerializeToString())
        assert StringValue.FromString(await call.read()).value == "good"
        await call.write(b"\xff\xff\xff")
        error = await failure(call.read())
        assert (error.code(), reason_of(carried_status(error))) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED")
    assert logs == []


async def test_messages_over_the_servers_limit_are_refused(world):
    assert await world.unary("Echo")(bytes(MAX_BYTES)) == bytes(MAX_BYTES)
    error = await failure(world.unary("Echo")(bytes(MAX_BYTES + 1)))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.details() == "SERVER: Received message larger than max (10001 vs. 10000)"
    call = world.stream("Chat")()
    await call.write(b"a")
    assert await call.read() == b"A"
    await call.write(bytes(MAX_BYTES + 1))
    assert (await failure(call.read())).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await world.event() == "ended"


async def test_messages_over_the_clients_limit_are_refused(world):
    call = world.gather("Join")(iter([bytes(MAX_BYTES)] * 3))
    error = await failure(call)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "CLIENT: Received message larger than max" in error.details()


# Streams


@pytest.mark.parametrize("count", [0, 1, 5, 1000])
async def test_a_generator_streams_all_it_yields_in_order(world, count):
    assert [n async for n in world.spread("Count")(b"%d" % count)] == [b"%d" % n for n in range(count)]
    assert await world.event() == "closed"


async def test_read_gives_eof_after_the_last_message_and_again(world):
    call = world.spread("Count")(b"2")
    assert [await call.read() for _ in range(4)] == [b"0", b"1", grpc.aio.EOF, grpc.aio.EOF]
    assert await call.code() is grpc.StatusCode.OK


async def test_a_status_comes_after_the_messages_before_it(world):
    call = world.spread("CountThenFail")(b"3")
    await asyncio.sleep(0.01)
    assert [await call.read() for _ in range(3)] == [b"0", b"1", b"2"]
    assert (await failure(call.read())).code() is grpc.StatusCode.NOT_FOUND
    assert (await failure(call.read())).code() is grpc.StatusCode.NOT_FOUND


async def test_a_client_stream_from_an_iterator_or_by_writes_gets_one_answer(world):
    async def requests():
        for n in range(200):
            yield b"%d" % n

    expected = b",".join(b"%d" % n for n in range(200))
    assert await world.gather("Join")(requests()) == expected
    assert await world.gather("Join")(iter([b"a", b"b"])) == b"a,b"
    call = world.gather("Join")()
    await call.write(b"x")
    await call.write(b"")
    await call.done_writing()
    assert await call == b"x,"


async def test_an_iterator_of_requests_that_fails_cancels_the_call(world):
    def requests():
        yield b"one"
        raise KeyError

    call = world.gather("Join")(requests())
    with capture_logs(), pytest.raises(asyncio.CancelledError):
        await call
    assert call.cancelled()


async def test_both_ends_stream_at_once(world):
    responses = [m async for m in world.stream("Talk")(iter([b"a", b"b"]))]
    assert responses == [b"you said a", b"you said b"]


async def test_half_close_ends_the_handlers_reading_not_its_writing(world):
    call = world.stream("Chat")()
    assert ("hello", "there") in tuple(await call.initial_metadata())
    await call.write(b"one")
    assert await call.read() == b"ONE"
    await call.done_writing()
    await call.done_writing()
    with pytest.raises(asyncio.InvalidStateError):
        await call.write(b"two")
    assert [await call.read(), await call.read()] == [b"END", grpc.aio.EOF]
    assert await world.event() == "ended"


async def test_the_call_ends_when_the_handler_returns(world):
    call = world.stream("Chat")()
    await call.write(b"bye")
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK
    with pytest.raises(asyncio.InvalidStateError):
        await call.write(b"more")
    await call.done_writing()


async def test_reading_and_iterating_do_not_mix(world):
    call = world.stream("Chat")()
    await call.write(b"a")
    await call.read()
    with pytest.raises(grpc.aio.UsageError):
        call.__aiter__()
    call.cancel()
    call = world.stream("Talk")(iter([b"a"]))
    with pytest.raises(grpc.aio.UsageError):
        await call.write(b"b")
    assert [message async for message in call] == [b"you said a"]


async def test_a_reader_that_lags_holds_the_writer(world):
    call = world.stream("Flood")()
    assert len(await call.read()) == 1000
    held_at = -1
    while held_at != world.behaviours.sent:  # a writer without bounds never comes to rest
        held_at = world.behaviours.sent
        await asyncio.sleep(0.1)
    assert held_at < 5000
    for _ in range(5000):
        assert len(await call.read()) == 1000
    call.cancel()
    assert await world.event() == "cancelled"


async def test_a_handler_that_does_not_read_holds_the_clients_writer(world):
    call = world.stream("SubtaskWritesOn")()
    await call.read()
    written = 0

    async def write_on():
        nonlocal written
        while True:
            await call.write(bytes(10_000))
            written += 1

    writer = asyncio.create_task(write_on())
    await asyncio.sleep(0.2)
    assert written < 1000
    writer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writer
    assert call.cancelled()


# Cancellation and deadlines


async def test_cancelling_a_call_cancels_its_handler(world):
    call = world.unary("Hang")(b"")
    assert await world.event() == ("started", None)
    assert call.cancel()
    assert not call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await world.event() == "cancelled"
    assert call.cancelled()
    assert await call.code() is grpc.StatusCode.CANCELLED


async def test_cancelling_who_awaits_a_call_cancels_it(world):
    async def caller():
        await world.unary("Hang")(b"")

    task = asyncio.create_task(caller())
    await world.event()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await world.event() == "cancelled"


async def test_cancelling_a_stream_cancels_its_handler_and_its_reader(world):
    call = world.stream("Chat")()
    await call.write(b"a")
    assert await call.read() == b"A"
    reader = asyncio.create_task(call.read())
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert await world.event() == "ended"
    with pytest.raises(asyncio.CancelledError):
        await call.read()


async def test_cancelling_a_read_cancels_the_call(world):
    call = world.stream("Chat")()
    await call.write(b"a")
    assert await call.read() == b"A"
    reader = asyncio.create_task(call.read())
    await asyncio.sleep(0.01)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert call.cancelled()
    assert await world.event() == "ended"


async def test_a_generator_is_closed_when_its_call_is_cancelled(world):
    call = world.spread("Count")(b"1000000")
    await call.read()
    call.cancel()
    assert await world.event() == "closed"


async def test_a_task_that_writes_to_a_dead_call_is_told(world):
    call = world.stream("SubtaskWritesOn")()
    assert await call.read() == b"ready"
    call.cancel()
    assert await world.event() == "refused"


async def test_a_deadline_ends_the_call_at_both_ends(world):
    error = await failure(world.unary("Hang")(b"", timeout=0.2))
    assert (error.code(), error.details()) == (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
    name, remaining = await world.event()
    assert name == "started"
    assert 0 < remaining <= 0.25
    assert await world.event() == "cancelled"


async def test_a_deadline_ends_a_stream_also_for_who_reads(world):
    call = world.stream("Chat")(timeout=0.2)
    assert 0 < call.time_remaining() <= 0.25
    await call.write(b"a")
    assert await call.read() == b"A"
    assert (await failure(call.read())).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert await world.event() == "ended"


async def test_done_callbacks_run_once_when_the_call_ends(world):
    call, done = world.unary("Echo")(b""), []
    call.add_done_callback(done.append)
    await call
    await asyncio.sleep(0.01)
    assert done == [call]


# The server's end


async def test_a_stopped_server_cuts_what_still_runs_and_refuses_more(world):
    stream, unary = world.stream("Chat")(), world.unary("Hang")(b"")
    await stream.write(b"a")
    assert await stream.read() == b"A"
    await world.event()
    await world.stop()
    assert (await failure(unary)).code() is grpc.StatusCode.UNAVAILABLE
    assert (await failure(stream.read())).code() is grpc.StatusCode.UNAVAILABLE
    assert {await world.event(), await world.event()} == {"cancelled", "ended"}
    assert (await failure(world.unary("Echo")(b""))).code() is grpc.StatusCode.UNAVAILABLE


async def test_a_stopping_server_lets_calls_end_within_its_grace(world):
    call = world.unary("Hang")(b"")
    await world.event()
    stopping = asyncio.create_task(world.stop())
    await asyncio.sleep(0.02)
    world.behaviours.release.set()
    assert await call == b"released"
    await stopping


async def test_a_closed_channel_refuses_calls(world):
    call = world.stream("Chat")()
    await call.write(b"a")
    await call.read()
    await world.channel.close()
    assert await call.code() is grpc.StatusCode.CANCELLED
    assert await world.event() == "ended"
    with pytest.raises(grpc.aio.UsageError):
        await world.unary("Echo")(b"")
