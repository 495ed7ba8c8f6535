"""How calls end before their time, alike for a server on a socket and one in process: cancelled, overdue, stopped."""

import asyncio

import grpc
import grpc.aio
import pytest
from behaviours import KINDS, failure, open_world


@pytest.fixture(params=KINDS)
async def world(request):
    async with open_world(request.param) as world:
        yield world


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
