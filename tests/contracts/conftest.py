"""Every contract test runs once for each implementation of its port."""

from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from engine_fixtures import EnginesOfTheRun
from worlds import (
    ConsulRegistryWorld,
    EmbeddedLogWorld,
    EmbeddedTimelineWorld,
    KafkaLogWorld,
    LogWorld,
    MemoryRegistryWorld,
    RegistryWorld,
    TimelineWorld,
)

from chassis.embedded import MemoryDisk


@pytest.fixture(params=["sqlite-file", "sqlite-memory"])
def embedded_data(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path | MemoryDisk]:
    if request.param == "sqlite-file":
        yield tmp_path / "data"
    else:
        with closing(MemoryDisk()) as disk:
            yield disk


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


@pytest.fixture
def timeline_world(embedded_data: Path | MemoryDisk) -> TimelineWorld:
    return EmbeddedTimelineWorld(embedded_data)


@pytest.fixture(params=["memory", pytest.param("consul", marks=pytest.mark.engines("consul"))])
async def registry_world(request: pytest.FixtureRequest) -> AsyncIterator[RegistryWorld]:
    if request.param == "memory":
        yield MemoryRegistryWorld()
        return
    world = ConsulRegistryWorld(request.getfixturevalue("engines").address("consul"))
    yield world
    await world.clean()
