"""The load generator against a server that refuses, forgets and lies: repairs are made, lies are counted."""

import random
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from chassis.server import open_server
from parley.api.v1.commands_pb2 import Command
from parley.api.v1.events_pb2 import Event
from parley.api.v1.messaging_service_pb2 import ConnectResponse, DeviceBatch, ListEventsRequest, ListEventsResponse
from parley.api.v1.messaging_service_pb2_grpc import MessagingServiceServicer, add_MessagingServiceServicer_to_server
from parley_cli.bench_messages import MessageLoad, measure_messages
from parley_cli.bench_stream import StreamError
from parley_cli.bench_target import Target
from parley_protocol.ids import direct_conversation_id

LOAD = MessageLoad(pairs=3, window=4, seconds=0.3, warm_seconds=0.1)


class Servicer(MessagingServiceServicer):
    """The protocol in memory, honest but for what a test overrides."""

    def __init__(self) -> None:
        self.timelines: dict[str, list[Event]] = defaultdict(list)
        self.streams: dict[str, grpc.aio.ServicerContext] = {}  # type: ignore[type-arg]
        self.seqs: dict[bytes, int] = {}
        self.held: dict[tuple[str, str], int] = {}
        self.rng = random.Random(1)

    async def Connect(self, request_iterator, context):
        user = dict(context.invocation_metadata())["authorization"].removeprefix("Bearer ")
        async for request in request_iterator:
            if request.HasField("hello"):
                self.streams[user] = context
                response = ConnectResponse()
                response.welcome.limits.commands_per_frame = 3
                response.welcome.heartbeat_interval.seconds = 25
                await context.write(response)
            else:
                await self.on_batch(user, request.batch, context)

    async def on_batch(self, user: str, batch: DeviceBatch, context) -> None:
        for skip in batch.skips:
            if self.held.get((user, skip.conversation_id)) == skip.number:
                del self.held[user, skip.conversation_id]
        response = ConnectResponse()
        for number, command in enumerate(batch.commands, batch.first_command_number):
            conversation_id = direct_conversation_id(user, command.to_user_id)
            outcome = response.batch.outcomes.add(request_id=command.request_id)
            key = user, conversation_id
            if self.held.get(key) == number:
                del self.held[key]
            if key in self.held or self.refuses():
                outcome.retry.number = self.held.setdefault(key, number)
                outcome.retry.conversation_id = conversation_id
                outcome.retry.delay.nanos = 5_000_000
                continue
            outcome.accepted.duplicate = command.request_id in self.seqs
            outcome.accepted.seq = self.seqs.get(command.request_id) or await self.store(user, conversation_id, command)
            outcome.accepted.conversation_id = conversation_id
        if response.batch.outcomes:
            await context.write(response)

    async def store(self, user: str, conversation_id: str, command: Command) -> int:
        timeline = self.timelines[conversation_id]
        event = Event(conversation_id=conversation_id, seq=len(timeline) + 1, actor_user_id=user, actor_device_id="d1")
        event.request_id, event.message.body = command.request_id, command.send_message.body
        timeline.append(event)
        self.seqs[command.request_id] = event.seq
        if not self.drops():
            response = ConnectResponse()
            response.batch.events.append(event)
            await self.streams[command.to_user_id].write(response)
        return event.seq

    async def ListEvents(self, request: ListEventsRequest, context) -> ListEventsResponse:
        timeline = self.read(request.conversation_id)
        page = timeline[request.after_seq : request.after_seq + request.page_size]
        return ListEventsResponse(events=page, more=request.after_seq + len(page) < len(timeline))

    def read(self, conversation_id: str) -> list[Event]:
        return self.timelines[conversation_id]

    def refuses(self) -> bool:
        return False

    def drops(self) -> bool:
        return False


class Refusing(Servicer):
    def refuses(self) -> bool:
        return self.rng.random() < 0.05


class Dropping(Servicer):
    """Leaves events out of streams, but for those at the end, which only Sync would find."""

    def drops(self) -> bool:
        return len(self.seqs) < 200 and self.rng.random() < 0.05


class Forgetting(Servicer):
    def read(self, conversation_id: str) -> list[Event]:
        return self.timelines[conversation_id][:-1]


class Altering(Servicer):
    def read(self, conversation_id: str) -> list[Event]:
        first, *rest = self.timelines[conversation_id]
        altered = Event.FromString(first.SerializeToString())
        altered.message.body = b"altered"
        return [altered, *rest]


class Doubling(Servicer):
    def read(self, conversation_id: str) -> list[Event]:
        timeline = self.timelines[conversation_id]
        double = Event.FromString(timeline[0].SerializeToString())
        double.seq = len(timeline) + 1
        return [*timeline, double]


class Ending(Servicer):
    async def on_batch(self, user: str, batch: DeviceBatch, context) -> None:
        response = ConnectResponse()
        response.go_away.reason = 3
        await context.write(response)


@asynccontextmanager
async def serving(servicer: Servicer) -> AsyncIterator[Target]:
    def register(server: Any) -> None:
        add_MessagingServiceServicer_to_server(servicer, server)

    async with open_server(bind="127.0.0.1:0", register=register) as running:  # leaving waits for the handlers
        yield Target(running.address, Path(), lambda user: user, None, "t", random.Random(1))


async def test_an_honest_server_keeps_the_contract():
    async with serving(Servicer()) as target:
        result = await measure_messages(target, LOAD)
    assert result["stories"] == []
    assert result["acked"] == result["stored"] > 0
    assert (result["retries"], result["fetched"], result["server_cpu_us_per_message"]) == (0, 0, None)


async def test_refused_commands_are_sent_again_in_order():
    async with serving(Refusing()) as target:
        result = await measure_messages(target, LOAD)
    assert result["stories"] == []
    assert result["retries"] > 0
    assert result["unanswered"] == 0


async def test_what_a_stream_leaves_out_is_fetched():
    async with serving(Dropping()) as target:
        result = await measure_messages(target, LOAD)
    assert result["stories"] == []
    assert result["fetched"] > 0


@pytest.mark.parametrize(("liar", "fault"), [(Forgetting, "lost"), (Altering, "corrupted"), (Doubling, "duplicated")])
async def test_a_lie_is_counted(liar: type[Servicer], fault: str):
    async with serving(liar()) as target:
        result = await measure_messages(target, LOAD)
    assert result[fault] == LOAD.pairs
    assert result["stories"]


async def test_a_goodbye_ends_the_benchmark_with_its_reason():
    async with serving(Ending()) as target:
        with pytest.raises(StreamError, match="GO_AWAY_REASON_SLOW"):
            await measure_messages(target, LOAD)
