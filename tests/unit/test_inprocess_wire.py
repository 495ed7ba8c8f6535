"""In-process calls over a wire that lags, loses and breaks, on virtual time."""

import asyncio
import math
from contextvars import ContextVar

import grpc
import grpc.aio

from chassis.inprocess import InProcessChannel, InProcessServer
from chassis.inprocess_rpc import MAX_BUFFERED_MESSAGES
from chassis.testing.virtual_loop import run_virtual


class Wire:
    """Lags as told, by who sends; `log` holds what was sent and when."""

    max_messages = MAX_BUFFERED_MESSAGES

    def __init__(self, client=0.0, server=0.0):
        self.lags = {True: client, False: server}
        self.cut_next = False
        self.log = []

    def lag(self, method, sent_by_client, message):
        self.log.append((now(), sent_by_client, message))
        if self.cut_next:
            self.cut_next = False
            raise ConnectionResetError("cut by the test")
        lag = self.lags[sent_by_client]
        return lag(message) if callable(lag) else lag


def now():
    return asyncio.get_running_loop().time()


class Scene:
    """A server that answers and echoes over a wire."""

    def __init__(self, wire):
        self.wire, self.events, self.server = wire, [], InProcessServer()
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        handlers = {"Answer": unary(self.answer), "Hang": unary(self.hang), "Echo": stream(self.echo), "Flood": stream(self.flood)}
        self.server.add_registered_method_handlers("test", handlers)
        self.channel = InProcessChannel(self.server, wire=wire)
        self.answering = self.channel.unary_unary("/test/Answer")
        self.hanging = self.channel.unary_unary("/test/Hang")
        self.echoing = self.channel.stream_stream("/test/Echo")
        self.flooding = self.channel.stream_stream("/test/Flood")

    async def answer(self, request, context):
        self.events.append((now(), "arrived"))
        return request

    async def hang(self, request, context):
        try:
            await asyncio.Event().wait()
        finally:
            self.events.append((now(), "ended"))

    async def echo(self, requests, context):
        try:
            async for request in requests:
                yield request
        finally:
            self.events.append((now(), "ended"))

    async def flood(self, requests, context):
        for n in range(1000):
            await context.write(b"%d" % n)
            self.events.append((now(), n))


def play(story, **lags):
    """Run a story on virtual time, with a scene over a wire of these lags."""

    async def main(_rng):
        scene = Scene(Wire(**lags))
        await story(scene)
        await scene.channel.close()
        await scene.server.stop(None)

    run_virtual(main, limit_seconds=10_000)


async def error_of(awaitable):
    try:
        await awaitable
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("it did not fail")


def test_each_way_takes_its_lag():
    async def story(scene):
        assert await scene.answering(b"x") == b"x"
        assert scene.events == [(1.0, "arrived")]
        assert now() == 3.0

    play(story, client=1.0, server=2.0)


def test_lag_delays_messages_but_not_their_sender():
    async def story(scene):
        call = scene.echoing()
        for n in range(10):
            await call.write(b"%d" % n)
        assert now() == 0.0
        assert [await call.read() for _ in range(10)] == [b"%d" % n for n in range(10)]
        assert now() == 1.5

    play(story, client=1.0, server=0.5)


def test_messages_stay_in_order_whatever_their_lags():
    async def story(scene):
        call = scene.echoing()
        for n in (5, 1, 3, 0, 9, 2):
            await call.write(b"%d" % n)
        await call.done_writing()
        assert [int(m) async for m in call] == [5, 1, 3, 0, 9, 2]
        assert now() == 9.0

    play(story, client=lambda message: float(message or 0))


def test_a_writer_waits_for_what_is_on_its_way():
    async def story(scene):
        call = scene.flooding()
        assert await call.read() == b"0"
        assert now() == 1.0
        assert [event for event in scene.events if event[0] == 0.0][-1][1] < 64
        assert [int(await call.read()) for _ in range(999)] == list(range(1, 1000))
        assert await call.read() is grpc.aio.EOF

    play(story, server=1.0)


def test_a_cancellation_takes_its_lag():
    async def story(scene):
        call = scene.hanging(b"")
        await asyncio.sleep(5)
        call.cancel()
        assert call.done()
        await asyncio.sleep(5)
        assert scene.events == [(6.0, "ended")]

    play(story, client=1.0)


def test_on_a_silent_wire_only_deadlines_end_a_call():
    async def story(scene):
        error = await error_of(scene.answering(b"", timeout=30))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert now() == 30.0
        assert scene.events == []

    play(story, client=math.inf)


def test_a_link_that_goes_silent_leaves_both_ends_as_they_are():
    async def story(scene):
        call = scene.echoing()
        await call.write(b"before")
        assert await call.read() == b"before"
        scene.wire.lags = {True: math.inf, False: math.inf}
        await call.write(b"lost")
        reading = asyncio.create_task(call.read())
        await asyncio.sleep(1000)
        assert not reading.done()
        reading.cancel()
        await asyncio.wait([reading])
        await asyncio.sleep(1000)
        assert scene.events == []  # the handler hears of nothing: a half-open link
        scene.wire.lags = {True: 0.0, False: 0.0}
        await scene.server.stop(None)
        assert scene.events == [(2000.0, "ended")]

    play(story)


def test_a_cut_ends_all_calls_of_the_connection_at_both_ends_and_the_next_connects_again():
    async def story(scene):
        streaming, hanging = scene.echoing(), scene.hanging(b"")
        await streaming.write(b"x")
        assert await streaming.read() == b"x"
        scene.wire.cut_next = True
        await streaming.write(b"y")
        error = await error_of(streaming.read())
        assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "cut by the test")
        assert (await error_of(hanging)).code() is grpc.StatusCode.UNAVAILABLE
        await asyncio.sleep(1)
        assert [event for _, event in scene.events] == ["ended", "ended"]
        assert await scene.answering(b"again") == b"again"

    play(story, client=0.1, server=0.1)


def test_a_cut_by_what_the_server_sends_ends_its_handler():
    async def story(scene):
        call = scene.echoing()
        await call.write(b"x")
        assert await call.read() == b"x"
        await call.write(b"y")
        scene.wire.cut_next = True
        assert (await error_of(call.read())).code() is grpc.StatusCode.UNAVAILABLE
        await asyncio.sleep(1)
        assert [event for _, event in scene.events] == ["ended"]

    play(story)


def test_a_killed_server_cuts_at_once_and_another_takes_its_place():
    async def story(scene):
        call = scene.echoing()
        await call.write(b"x")
        assert await call.read() == b"x"
        scene.server.cut()
        assert (await error_of(call.read())).code() is grpc.StatusCode.UNAVAILABLE
        assert (await error_of(scene.answering(b""))).code() is grpc.StatusCode.UNAVAILABLE
        scene.channel.server = None
        assert (await error_of(scene.answering(b""))).code() is grpc.StatusCode.UNAVAILABLE
        other = Scene(Wire())
        scene.channel.server = other.server
        assert await scene.answering(b"there") == b"there"
        await scene.server.stop(None)

    play(story)


def test_a_call_cancelled_before_it_arrives_runs_no_handler():
    async def story(scene):
        call = scene.answering(b"", timeout=0.5)
        assert (await error_of(call)).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await asyncio.sleep(5)
        assert scene.events == []

    play(story, client=1.0)


def test_handlers_run_in_the_context_of_their_server():
    where = ContextVar("where", default="nowhere")

    async def main(_rng):
        seen = []

        async def look(request, context):
            seen.append(where.get())
            return b""

        where.set("server")
        server = InProcessServer()
        server.add_registered_method_handlers("test", {"Look": grpc.unary_unary_rpc_method_handler(look)})
        where.set("client")
        async with InProcessChannel(server) as channel:
            await channel.unary_unary("/test/Look")(b"")
        assert seen == ["server"]
        await server.stop(None)

    run_virtual(main)
