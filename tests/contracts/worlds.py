"""What the contract suites run on: each implementation of a port, with what a test does to it from outside."""

import random
import secrets
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

from aiokafka.admin import AIOKafkaAdminClient
from prometheus_client import CollectorRegistry

from chassis.clock import SystemClock
from chassis.embedded import EmbeddedEngines, MemoryDisk, open_embedded_engines
from chassis.eventlog import EventLog
from chassis.eventlog_kafka import KafkaLog, open_kafka_log
from chassis.eventlog_kafka_connection import KafkaConnection
from chassis.eventlog_kafka_topics import TopicSettings, apply_topics
from chassis.registry import Registry
from chassis.registry_consul import open_consul_registry
from chassis.registry_consul_claim import Claim
from chassis.registry_consul_http import ConsulSettings, open_consul_client
from chassis.registry_memory import MemoryRegistry
from chassis.testing.timeline_memory import MemoryTimeline, Tables
from chassis.timeline import Cell, Point, Row, Timeline
from chassis.timeline_cql import open_cql_timeline
from chassis.timeline_cql_settings import CqlSettings

DURABLE = "durable"  # a topic that must survive power loss
PLAIN = "plain"  # one that need not
HEARTBEAT_SECONDS = 0.3  # of a consumer: members of a group find out about each other that soon, and tests need not wait long


class LogWorld(Protocol):
    """One log that outlives those who open it."""

    def open(self, topics: Mapping[str, int]) -> AbstractAsyncContextManager[EventLog]:
        """Open it as a process does that starts, DURABLE being durable; after leaving again, on the same data."""


class TimelineWorld(Protocol):
    """One database that outlives those who open it."""

    def open(self, tables: Sequence[str]) -> AbstractAsyncContextManager[Timeline]:
        """Open it as a process does that starts; after leaving again, on the same data."""


class RegistryWorld(Protocol):
    """One registry, and its judgement of health."""

    def open(self) -> AbstractAsyncContextManager[Registry]:
        """Open a client."""

    async def fail_health(self, session_id: str) -> None:
        """Let the health check of the session's instance fail."""


class EmbeddedWorld:
    """The engines of one process, on files or in memory."""

    def __init__(self, data: Path | MemoryDisk) -> None:
        self._data = data

    def _engines(self, topics: Mapping[str, int], tables: Sequence[str]) -> AbstractAsyncContextManager[EmbeddedEngines]:
        return open_embedded_engines(self._data, topics=topics, durable_topics=[DURABLE], tables=tables, clock=SystemClock())


class EmbeddedLogWorld(EmbeddedWorld):
    @asynccontextmanager
    async def open(self, topics: Mapping[str, int]) -> AsyncIterator[EventLog]:
        async with self._engines(topics, ()) as engines:
            yield engines.log


class KafkaLogWorld:
    """A log in a cluster that others use, too: its topics have names of their own."""

    def __init__(self, bootstrap_servers: str) -> None:
        self.connection = KafkaConnection(bootstrap_servers)
        self.prefix = f"test-{secrets.token_hex(6)}."

    @asynccontextmanager
    async def open(self, topics: Mapping[str, int]) -> AsyncIterator[KafkaLog]:
        await apply_topics(self.connection, topics, epoch=1, settings=TopicSettings(), prefix=self.prefix)
        async with open_kafka_log(
            self.connection,
            topics,
            epoch=1,
            rng=random.Random(1),
            metrics=CollectorRegistry(),
            prefix=self.prefix,
            start_seconds=10,
            heartbeat_seconds=HEARTBEAT_SECONDS,
        ) as log:
            yield log

    async def remove(self) -> None:
        """Delete its topics: a cluster of many tests' topics is slow."""
        admin = AIOKafkaAdminClient(**self.connection.client_options())
        await admin.start()
        try:
            await admin.delete_topics([name for name in await admin.list_topics() if name.startswith(self.prefix)])
        finally:
            await admin.close()


class EmbeddedTimelineWorld(EmbeddedWorld):
    @asynccontextmanager
    async def open(self, tables: Sequence[str]) -> AsyncIterator[Timeline]:
        async with self._engines({}, tables) as engines:
            yield engines.timeline


class CqlTimelineWorld:
    """A database that all tests share, each with partitions of its own. Its schema is applied and has version 1."""

    def __init__(self, settings: CqlSettings, prefix: str) -> None:
        self._settings = settings
        self._prefix = prefix

    @asynccontextmanager
    async def open(self, tables: Sequence[str]) -> AsyncIterator[Timeline]:
        async with open_cql_timeline(self._settings, tables, schema_version=1, metrics=CollectorRegistry()) as timeline:
            yield OwnPartitions(timeline, self._prefix)


class OwnPartitions:
    """A Timeline whose partitions' names begin with a prefix, unseen by its user."""

    def __init__(self, inner: Timeline, prefix: str) -> None:
        self._inner = inner
        self._prefix = prefix

    async def write(self, rows: Sequence[Row]) -> None:
        await self._inner.write([row._replace(partition=self._prefix + row.partition) for row in rows])

    async def read_points(self, points: Sequence[Point]) -> Mapping[Point, bytes]:
        theirs = {point._replace(partition=self._prefix + point.partition): point for point in points}
        found = await self._inner.read_points([point._replace(partition=self._prefix + point.partition) for point in points])
        return {theirs[point]: value for point, value in found.items()}

    async def read_partitions(self, table: str, partitions: Sequence[str], limit: int = 0) -> Mapping[str, Sequence[Cell]]:
        found = await self._inner.read_partitions(table, [self._prefix + name for name in partitions], limit)
        return {name.removeprefix(self._prefix): cells for name, cells in found.items()}

    async def read_range(
        self, table: str, partition: str, first_key: bytes, last_key: bytes, limit: int, *, descending: bool = False
    ) -> Sequence[Cell]:
        return await self._inner.read_range(table, self._prefix + partition, first_key, last_key, limit, descending=descending)


class MemoryTimelineWorld:
    def __init__(self) -> None:
        self._tables: Tables = {}

    @asynccontextmanager
    async def open(self, tables: Sequence[str]) -> AsyncIterator[Timeline]:
        timeline = MemoryTimeline(tables, self._tables)
        yield timeline
        self._tables = timeline.tables


class MemoryRegistryWorld:
    def __init__(self) -> None:
        self._registry = MemoryRegistry()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Registry]:
        yield self._registry

    async def fail_health(self, session_id: str) -> None:
        self._registry.expire(session_id)


class ConsulRegistryWorld:
    """A corner of a Consul that others use, too."""

    def __init__(self, address: str) -> None:
        self.settings = ConsulSettings(address=address, prefix=f"test-{uuid.uuid4().hex}")

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Registry]:
        async with open_consul_registry(self.settings, claim=Claim("test"), version="0", rng=random.Random(1)) as registry:
            yield registry

    async def fail_health(self, session_id: str) -> None:
        async with open_consul_client(self.settings) as consul:
            _, session = await consul.session.info(session_id)
            [check] = [check for check in session["Checks"] if check.startswith("service:")]
            await consul.agent.check.ttl_fail(check)

    async def clean(self) -> None:
        async with open_consul_client(self.settings) as consul:
            await consul.kv.delete(f"{self.settings.prefix}/", recurse=True)
