"""What the tests of the log on Kafka share: a log in a cluster that is stopped and killed, and those who use it patiently."""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager

import pytest
from engine_fixtures import EnginesOfTheRun
from prometheus_client import CollectorRegistry
from worlds import HEARTBEAT_SECONDS, KafkaLogWorld

from chassis.eventlog import EventLog, LogBatch, LogConsumer, LogEntry, LogUnavailableError
from chassis.eventlog_kafka import open_kafka_log
from chassis.eventlog_kafka_connection import KafkaConnection
from chassis.eventlog_kafka_topics import TopicSettings, apply_topics
from parley_engines.state import Started

TOPIC = "t"
TOPICS = {TOPIC: 3}
DEADLINE_SECONDS = 50.0  # an engine's restart on a busy machine included


@pytest.fixture
def kafka(engines: EnginesOfTheRun) -> Started:
    return engines.started("kafka")


@pytest.fixture
async def world(kafka: Started) -> AsyncIterator[KafkaLogWorld]:
    world = KafkaLogWorld(kafka.address)
    await apply(world)
    yield world
    await world.remove()


async def apply(world: KafkaLogWorld, topics: Mapping[str, int] = TOPICS) -> list[str]:
    return await apply_topics(world.connection, topics, epoch=1, settings=TopicSettings(), prefix=world.prefix)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
async def log(world: KafkaLogWorld, registry: CollectorRegistry) -> AsyncIterator[EventLog]:
    """A log that gives up an append after 2 s, so that tests need not wait long."""
    async with open_kafka_log(
        world.connection, TOPICS, epoch=1, rng=random.Random(1), metrics=registry, prefix=world.prefix,
        append_seconds=2, heartbeat_seconds=HEARTBEAT_SECONDS,
    ) as log:  # fmt: skip
        yield log


@contextmanager
def stopped(process: Started) -> Iterator[None]:
    """Let the engine hang: its port takes connections, and nobody answers."""
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


def entries(*values: str) -> list[LogEntry]:
    return [LogEntry(b"k", value.encode()) for value in values]


def values(batch: LogBatch) -> list[str]:
    return [record.value.decode() for record in batch.records]


async def poll(consumer: LogConsumer) -> LogBatch:
    """Poll until there is something; an engine that is away at times is what these tests are about."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            try:
                return await consumer.poll(100)
            except LogUnavailableError:
                continue


async def append(log: EventLog, partition: int, *what: str) -> None:
    """Append as those do who keep order: again and again until it is known to be in the log."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            try:
                return await log.append(TOPIC, partition, entries(*what))
            except LogUnavailableError:
                continue


async def read_until(consumer: LogConsumer, last: str) -> list[str]:
    read: list[str] = []
    while last not in read:
        batch = await poll(consumer)
        read += values(batch)
        consumer.done(batch)
    return read


def rebuilds(registry: CollectorRegistry, client: str) -> float:
    return registry.get_sample_value("parley_kafka_rebuilds_total", {"client": client}) or 0.0


def open_log(
    connection: KafkaConnection, topics: Mapping[str, int] = TOPICS, *, prefix: str = "", epoch: int = 1, seconds: float = 5
) -> AbstractAsyncContextManager[EventLog]:
    return open_kafka_log(
        connection, topics, epoch=epoch, rng=random.Random(1), metrics=CollectorRegistry(), prefix=prefix, start_seconds=seconds
    )
