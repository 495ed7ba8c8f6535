"""Every contract test runs once for each implementation of its port."""

from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from worlds import (
    ConsulRegistryWorld,
    EmbeddedLogWorld,
    EmbeddedTimelineWorld,
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


@pytest.fixture
def log_world(embedded_data: Path | MemoryDisk) -> LogWorld:
    return EmbeddedLogWorld(embedded_data)


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
