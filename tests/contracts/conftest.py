"""Every contract test runs once for each implementation of its port."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from engine_fixtures import EnginesOfTheRun
from prometheus_client import CollectorRegistry
from worlds import (
    ConsulRegistryWorld,
    CqlTimelineWorld,
    EmbeddedLogWorld,
    EmbeddedTimelineWorld,
    KafkaLogWorld,
    LogWorld,
    MemoryRegistryWorld,
    MemoryTimelineWorld,
    RegistryWorld,
    TimelineWorld,
)

from chassis.embedded import MemoryDisk
from chassis.timeline_cql_connect import open_cql_session
from chassis.timeline_cql_metrics import CqlMetrics
from chassis.timeline_cql_schema import TableSpec, apply_schema
from chassis.timeline_cql_settings import CqlSettings

SCHEMA = [[TableSpec("events", expiring=True), TableSpec("inbox")]]


@pytest.fixture(params=["sqlite-file", "sqlite-memory", pytest.param("kafka", marks=pytest.mark.engines("kafka"))])
async def log_world(request: pytest.FixtureRequest, engines: EnginesOfTheRun, tmp_path: Path) -> AsyncIterator[LogWorld]:
    if request.param == "kafka":
        kafka = KafkaLogWorld(engines.address("kafka"))
        yield kafka
        await kafka.remove()
    elif request.param == "sqlite-file":
        yield EmbeddedLogWorld(tmp_path / "data")
    else:
        with closing(MemoryDisk()) as disk:
            yield EmbeddedLogWorld(disk)


@pytest.fixture(params=["sqlite-file", "sqlite-memory", "mapping", pytest.param("cql", marks=pytest.mark.engines("scylladb"))])
def timeline_world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TimelineWorld]:
    match request.param:
        case "cql":
            yield CqlTimelineWorld(request.getfixturevalue("cql_database"), f"{uuid.uuid4()}/")
        case "sqlite-file":
            yield EmbeddedTimelineWorld(tmp_path / "data")
        case "mapping":
            yield MemoryTimelineWorld()
        case _:
            with closing(MemoryDisk()) as disk:
                yield EmbeddedTimelineWorld(disk)


@pytest.fixture(scope="session")
def cql_database(engines: EnginesOfTheRun) -> CqlSettings:
    """Where the tables `events` and `inbox` are."""
    settings = CqlSettings(hosts=engines.address("scylladb"), keyspace="contracts")

    async def prepare() -> None:
        async with open_cql_session(settings, CqlMetrics(CollectorRegistry())) as session:
            await apply_schema(session, settings.keyspace, "1", SCHEMA)

    asyncio.run(prepare())
    return settings


@pytest.fixture(params=["memory", pytest.param("consul", marks=pytest.mark.engines("consul"))])
async def registry_world(request: pytest.FixtureRequest) -> AsyncIterator[RegistryWorld]:
    if request.param == "memory":
        yield MemoryRegistryWorld()
        return
    world = ConsulRegistryWorld(request.getfixturevalue("engines").address("consul"))
    yield world
    await world.clean()
