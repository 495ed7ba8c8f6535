"""A server whose Kafka or database runs out of disk: devices are told to wait, and what was accepted is there afterwards."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from engine_fixtures import EnginesOfTheRun
from gateway_world import World, auth, batch, message, open_world, token
from own_engine import OwnEngine, open_own_engine
from prometheus_client import CollectorRegistry

from chassis.errors import carried_status, reason_of, retry_delay_of
from chassis.eventlog_kafka import open_kafka_log
from chassis.eventlog_kafka_connection import KafkaConnection
from chassis.eventlog_kafka_topics import TopicSettings, apply_topics
from chassis.timeline_cql import open_cql_timeline
from chassis.timeline_cql_connect import open_cql_session
from chassis.timeline_cql_metrics import CqlMetrics
from chassis.timeline_cql_schema import apply_schema
from chassis.timeline_cql_settings import CqlSettings
from parley.api.v1 import messaging_service_pb2 as api
from parley.api.v1.commands_pb2 import Command
from parley_engines.cassandra import KEEPS_ALL
from parley_protocol.ids import direct_conversation_id
from parley_protocol.topics import topics
from services.store.rows import TABLES
from services.store.schema import SCHEMA

TEST_SECONDS = 240.0  # an engine's start on a crowded machine, twice
ROOM = 500_000  # bytes left on the disk: some messages still find place
BODY = b"x" * 15_000


class Chat:
    """A bot that writes to somebody, and what it was told."""

    def __init__(self, world: World, user: str, to: str) -> None:
        self._world = world
        self._metadata = auth(token(user))
        self._to = to
        self._conversation = direct_conversation_id(user, to)
        self.accepted: dict[int, bytes] = {}  # by seq

    async def submit(self, command: Command) -> grpc.aio.AioRpcError | None:
        """Send it once; return what came instead of an acceptance."""
        request = api.SubmitRequest(device_id="bot", command=command)
        try:
            answer = await self._world.stub.Submit(request, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            return error
        self.accepted[answer.accepted.seq] = command.request_id
        return None

    async def until_refused(self) -> Command:
        """Write until one is not accepted; return that one."""
        while True:
            command = message(self._to, BODY)
            if error := await self.submit(command):
                assert error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED), error
                return command

    async def until_accepted(self, command: Command) -> None:
        """Send a command again as devices do."""
        while await self.submit(command):  # noqa: ASYNC110  # nothing tells that an engine is back
            await asyncio.sleep(0.2)

    async def stored(self) -> dict[int, bytes]:
        """Read the conversation, as far as it answers."""
        found: dict[int, bytes] = {}
        while True:
            request = api.ListEventsRequest(conversation_id=self._conversation, after_seq=len(found))
            page = await self._world.stub.ListEvents(request, metadata=self._metadata)
            if not page.events:
                return found
            found.update((event.seq, event.request_id) for event in page.events)


def bounded(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test on a loop of its own, for longer than one may take that starts no engines."""

    async def run() -> None:
        async with asyncio.timeout(TEST_SECONDS):
            await test()

    asyncio.run(run())


@asynccontextmanager
async def kafka_world(kafka: OwnEngine) -> AsyncIterator[World]:
    connection = KafkaConnection(kafka.started.address)
    await apply_topics(connection, topics(1), epoch=1, settings=TopicSettings())
    opening = open_kafka_log(
        connection, topics(1), epoch=1, rng=random.Random(1), metrics=CollectorRegistry(), append_seconds=2, heartbeat_seconds=0.5
    )
    async with opening as log, open_world(log=log, submit_seconds=3) as world:
        yield world


@pytest.mark.engines("kafka")
def test_a_broker_without_room_ends_and_devices_wait_until_it_is_back(engines: EnginesOfTheRun, tmp_path: Path) -> None:
    engines.require("kafka")

    async def test() -> None:
        async with kafka_world(kafka) as world:
            chat = Chat(world, "alice", "bob")
            await chat.until_accepted(message(body=BODY))
            disk.fill(but=ROOM)
            unsure = await chat.until_refused()
            assert kafka.wait_ended(20), "Kafka ends when it has no folder for its log any more"
            assert len(chat.accepted) > 1
            while (error := await chat.submit(message())) and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                pass  # taken before the log was known to be away
            assert error is not None
            status = carried_status(error)
            assert status is not None
            assert (error.code(), reason_of(status)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
            assert retry_delay_of(status)
            device = await world.device("carol")
            await device.send(batch(message("alice")))
            retry = (await device.outcome()).retry
            assert (reason_of(retry.reason), retry.delay.ToMilliseconds() > 0) == ("OVERLOADED", True)
            stored = await chat.stored()
            assert stored == stored | chat.accepted, "reads go on, and nothing was accepted that is not there"

            disk.empty()
            assert kafka.started.address
            await chat.until_accepted(unsure)
            await chat.until_accepted(message(body=b"last"))
            stored = await chat.stored()
            assert stored == stored | chat.accepted
            assert len(set(stored.values())) == len(stored), "nothing twice"

    with open_own_engine("kafka", tmp_path, disk_size="64m") as kafka:
        assert kafka.disk is not None
        disk = kafka.disk
        bounded(test)


@asynccontextmanager
async def database_world(database: OwnEngine) -> AsyncIterator[World]:
    settings = CqlSettings(hosts=database.started.address, keyspace="full_disk", request_seconds=2)
    async with open_cql_session(settings, CqlMetrics(CollectorRegistry())) as session:
        await apply_schema(session, settings.keyspace, "1", SCHEMA)
    opening = open_cql_timeline(settings, TABLES, schema_version=len(SCHEMA), metrics=CollectorRegistry())
    async with opening as timeline, open_world(timeline=timeline, submit_seconds=3) as world:
        yield world


@pytest.mark.engines("scylladb")
def test_a_database_without_room_ends_and_what_was_taken_is_applied_later(engines: EnginesOfTheRun, tmp_path: Path) -> None:
    engines.require("scylladb")

    async def test() -> None:
        async with database_world(database) as world:
            chat, late = Chat(world, "alice", "bob"), Chat(world, "carol", "bob")
            await chat.until_accepted(message(body=BODY))
            disk.fill()
            unsure = await chat.until_refused()
            assert database.wait_ended(20), "the node ends when it can't write, by its settings for such a case"
            with pytest.raises(grpc.aio.AioRpcError) as unread:
                await chat.stored()
            assert unread.value.code() is grpc.StatusCode.UNAVAILABLE
            error = await late.submit(message())  # into the log, which has room: it has no outcome yet
            assert error is not None
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED

            disk.empty()
            assert database.started.address
            await chat.until_accepted(unsure)
            assert list(await late.stored()) == [1], "and it came before"
            await chat.until_accepted(message(body=b"last"))
            stored = await chat.stored()
            assert stored == stored | chat.accepted, "nothing was accepted that is not there"
            assert len(set(stored.values())) == len(stored), "nothing twice"

    keeps_all = {KEEPS_ALL: "yes"}  # else the node, alone, may lose what it took in the last moment before it ended
    with open_own_engine("scylladb", tmp_path, disk_size="256m", environ=keeps_all) as database:
        assert database.disk is not None
        disk = database.disk
        bounded(test)
