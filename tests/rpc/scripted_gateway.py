"""A gateway that does what a test tells it, on virtual time: for what a real one does rarely, late, or never."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import wraps
from random import Random
from typing import Any

import grpc

from chassis.errors import ServiceError
from chassis.inprocess import InProcessChannel, InProcessServer
from chassis.testing.virtual_loop import VirtualClock, run_virtual
from parley.api.v1 import commands_pb2 as commands
from parley.api.v1 import events_pb2 as events
from parley.api.v1 import messaging_service_pb2 as api
from parley.api.v1.messaging_service_pb2_grpc import MessagingServiceServicer, add_MessagingServiceServicer_to_server
from parley_client import Client, ClientOptions, MemoryStore, open_client
from parley_client.store import Store
from parley_protocol.ids import direct_conversation_id

ME, DEVICE, PEER = "alice", "d1", "bob"
DIRECT = direct_conversation_id(ME, PEER)
HEARTBEAT_SECONDS = 10
LIMIT_SECONDS = 2 * 3600.0  # what a test waits for has happened long before


def virtual(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run a test on virtual time, with a gateway: `async def test(gateway)`."""

    @wraps(test)
    def run() -> None:
        async def main(_rng: Random) -> None:
            await test(Gateway())

        run_virtual(main, limit_seconds=LIMIT_SECONDS)

    del run.__wrapped__  # type: ignore[attr-defined]  # else pytest looks for a fixture of the gateway's name
    return run


async def until(reached: Callable[[], bool]) -> None:
    """Let virtual time pass until something is so."""
    for _ in range(6000):
        if reached():
            return
        await asyncio.sleep(0.1)
    raise AssertionError("not within 10 virtual minutes")


def message(seq: int, actor: str = PEER, conversation: str = DIRECT, device: str = "d9", request_id: bytes = b"") -> events.Event:
    """Return a message event."""
    return events.Event(
        conversation_id=conversation,
        seq=seq,
        actor_user_id=actor,
        actor_device_id=device,
        request_id=request_id or b"%016d" % seq,
        message_count=seq,
        message=commands.SendMessage(body=b"m%d" % seq),
    )


def accepted(command: commands.Command, seq: int, conversation: str = DIRECT) -> commands.Outcome:
    """Return the outcome of a stored command."""
    result = commands.Accepted(conversation_id=conversation, seq=seq, message_count=seq)
    return commands.Outcome(request_id=command.request_id, accepted=result)


def retry(command: commands.Command, number: int, seconds: int, conversation: str = DIRECT) -> commands.Outcome:
    """Return the refusal of a command that has to come again."""
    result = commands.Retry(number=number, conversation_id=conversation)
    result.delay.FromSeconds(seconds)
    return commands.Outcome(request_id=command.request_id, retry=result)


class Stream:
    """One device's stream, from the gateway's side."""

    def __init__(self, context: Any, hello: api.Hello, bearer: str) -> None:
        self._context = context
        self.hello = hello
        self.bearer = bearer
        self.ended = asyncio.Event()
        self.frames: list[api.ConnectRequest] = []

    async def receive(self) -> api.DeviceBatch | None:
        """Return the device's next frame; None at the end."""
        raw = await self._context.read()
        if raw is grpc.aio.EOF:
            return None
        self.frames.append(raw)
        return raw.batch

    async def commands(self, count: int) -> tuple[list[int], list[commands.Command]]:
        """Return the next commands with their numbers; acks and heartbeats in between are passed over."""
        numbers: list[int] = []
        taken: list[commands.Command] = []
        while len(taken) < count:
            batch = await self.receive()
            assert batch is not None, "the stream ended"
            numbers += range(batch.first_command_number, batch.first_command_number + len(batch.commands))
            taken += batch.commands
        return numbers, taken

    async def acks(self) -> list[tuple[int, int]]:
        """Return the watermarks of the next frame that has some."""
        while True:
            batch = await self.receive()
            assert batch is not None, "the stream ended"
            if batch.acks:
                return [(ack.delivered_seq, ack.read_seq) for ack in batch.acks]

    async def send(self, **fields: Any) -> None:
        """Send a ServerBatch."""
        await self._context.write(api.ConnectResponse(batch=api.ServerBatch(**fields)))

    async def go_away(self, name: str, *, delay_seconds: int = 0, reconnect: bool = True, address: str = "") -> None:
        """Say goodbye and end the stream."""
        go_away = api.GoAway(reason=api.GoAwayReason.Value(f"GO_AWAY_REASON_{name}"), reconnect=reconnect, address=address)
        go_away.reconnect_delay.FromSeconds(delay_seconds)
        await self._context.write(api.ConnectResponse(go_away=go_away))
        self.end()

    async def frame(self, response: api.ConnectResponse) -> None:
        """Send any frame."""
        await self._context.write(response)

    def end(self) -> None:
        """End the stream without a word."""
        self.ended.set()


class Gateway(MessagingServiceServicer):
    """What the test says. `timeline` is what ListEvents serves, `rows` what Sync returns, once each; calls are recorded."""

    def __init__(self) -> None:
        self._server = InProcessServer()
        add_MessagingServiceServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        self.channel = InProcessChannel(self._server)
        self.clock = VirtualClock()
        self.streams: asyncio.Queue[Stream] = asyncio.Queue()
        self.timeline: list[events.Event] = []
        self.intervals = [(1, 0)]
        self.rows: list[events.Conversation] = []
        self.rows_per_page = 100
        self.syncs: list[api.SyncRequest] = []
        self.pages: list[api.ListEventsRequest] = []
        self.failures: list[ServiceError | None] = []  # raised by the next calls, one each; None: that call succeeds
        self.page_events = 3
        self.refusal: ServiceError | None = None
        self.is_silent = False  # does not say Welcome

    @asynccontextmanager
    async def client(self, store: Store | None = None, **overrides: Any) -> AsyncIterator[Client]:
        """Open a client on this gateway."""
        arguments: dict[str, Any] = {"token": "t", "device_id": DEVICE, "rng": Random(1), "options": ClientOptions()} | overrides
        async with open_client(channel=self.channel, store=store or MemoryStore(), clock=self.clock, **arguments) as client:
            yield client

    async def stream(self) -> Stream:
        """Wait for the next stream that is welcomed."""
        return await self.streams.get()

    async def Connect(self, _requests: Any, context: Any) -> None:
        bearer = str(dict(context.invocation_metadata())["authorization"])
        if self.refusal is not None:
            raise self.refusal
        hello = await context.read()
        if self.is_silent:
            await asyncio.Event().wait()
        welcome = api.Welcome(session_id="s", user_id=ME, device_id=hello.hello.device_id)
        welcome.heartbeat_interval.FromSeconds(HEARTBEAT_SECONDS)
        await context.write(api.ConnectResponse(welcome=welcome))
        stream = Stream(context, hello.hello, bearer)
        self.streams.put_nowait(stream)
        await stream.ended.wait()

    async def Sync(self, request: api.SyncRequest, _context: Any) -> api.SyncResponse:
        self._fail()
        self.syncs.append(request)
        first = int(request.page_token or 0)
        end = first + self.rows_per_page
        response = api.SyncResponse(conversations=self.rows[first:end])
        if end < len(self.rows):
            response.next_page_token = str(end)
        else:
            self.rows = []
        return response

    async def ListEvents(self, request: api.ListEventsRequest, _context: Any) -> api.ListEventsResponse:
        self._fail()
        self.pages.append(request)
        size = min(request.page_size, self.page_events)
        if request.HasField("after_seq"):
            rest = [event for event in self.timeline if event.seq > request.after_seq]
            page = rest[:size]
        else:
            rest = [event for event in self.timeline if not request.before_seq or event.seq < request.before_seq]
            page = rest[-size:]
        intervals = [events.Interval(first_seq=first, last_seq=last) for first, last in self.intervals]
        head = self.timeline[-1].seq if self.timeline else 0
        return api.ListEventsResponse(
            events=page, visible_intervals=intervals, first_available_seq=1, head_seq=head, more=len(rest) > size
        )

    async def GetConversation(self, request: api.GetConversationRequest, _context: Any) -> api.GetConversationResponse:
        self._fail()
        return api.GetConversationResponse(conversation=self.row(request.conversation_id))

    def row(self, conversation_id: str = DIRECT, **fields: Any) -> events.Conversation:
        """Return the row of a conversation as Sync would."""
        head = self.timeline[-1].seq if self.timeline else 0
        intervals = [events.Interval(first_seq=first, last_seq=last) for first, last in self.intervals]
        kind = events.CONVERSATION_KIND_DIRECT if conversation_id == DIRECT else events.CONVERSATION_KIND_GROUP
        defaults: dict[str, Any] = {"kind": kind, "peer_user_id": PEER, "head_seq": head, "visible_intervals": intervals}
        return events.Conversation(conversation_id=conversation_id, first_available_seq=1, **(defaults | fields))

    def _fail(self) -> None:
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure
