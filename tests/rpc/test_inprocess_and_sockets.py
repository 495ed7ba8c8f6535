"""One suite of behaviours for a server on a socket and one in process: services must not be able to tell them apart.

What calls carry: messages, metadata, statuses, streams. How calls end before their time is in test_calls_end.
"""

import asyncio

import grpc
import grpc.aio
import pytest
from behaviours import FLOOD_MESSAGES, KINDS, MAX_BYTES, SERVICE, at_rest, failure, fix_client_windows, open_world, room
from google.protobuf.wrappers_pb2 import StringValue
from structlog.testing import capture_logs

from chassis.errors import carried_status, reason_of, retry_delay_of


@pytest.fixture(params=KINDS)
async def world(request):
    async with open_world(request.param) as world:
        yield world


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


@pytest.mark.parametrize("kind", KINDS)
async def test_a_reader_that_lags_holds_the_writer(kind, monkeypatch):
    fix_client_windows(monkeypatch)
    async with open_world(kind) as world:
        call = world.stream("Flood")()
        assert len(await call.read()) == 1000
        assert await at_rest(world, lambda: world.behaviours.sent) <= 1 + room(kind, 1000) < FLOOD_MESSAGES
        for _ in range(FLOOD_MESSAGES // 2):
            assert len(await call.read()) == 1000
        call.cancel()
        assert await world.event() == "ended"


async def test_a_handler_that_does_not_read_holds_the_clients_writer(world):
    call = world.stream("SubtaskWritesOn")()
    await call.read()
    written = 0

    async def write_on():
        nonlocal written
        for _ in range(FLOOD_MESSAGES):
            await call.write(bytes(1000))
            written += 1

    writer = asyncio.create_task(write_on())
    assert await at_rest(world, lambda: written) <= room(world.kind, 1000)
    writer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writer
    assert call.cancelled()
