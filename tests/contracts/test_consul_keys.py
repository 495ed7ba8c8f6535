"""What claims ask of Consul's keys, of Consul itself and of what stands in for it in `tests/simulation/test_claims.py`."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from chassis.registry_consul_http import ConsulSettings, open_consul_client
from chassis.testing.faults import Faults, Trace
from chassis.testing.faulty_consul import ConsulKeys, FaultyKeys


@pytest.fixture(params=["memory", pytest.param("consul", marks=pytest.mark.engines("consul"))])
async def kv(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    if request.param == "memory":
        yield FaultyKeys(ConsulKeys("consul"), Faults(1, Trace(), {}).stream("test")).kv
        return
    address = request.getfixturevalue("engines").address("consul")
    async with open_consul_client(ConsulSettings(address=address)) as client:
        yield client.kv


@pytest.fixture
def key() -> str:
    return f"test-{uuid.uuid4()}/key"


async def test_the_first_write_alone_finds_no_key(kv: Any, key: str) -> None:
    assert (await kv.get(key))[1] is None
    assert await kv.put(key, "first", cas=0) is True
    assert await kv.put(key, "second", cas=0) is False
    assert (await kv.get(key))[1]["Value"] == b"first"


async def test_a_write_that_knows_an_older_one_changes_nothing(kv: Any, key: str) -> None:
    await kv.put(key, "1")
    known = (await kv.get(key))[1]["ModifyIndex"]
    assert await kv.put(key, "2", cas=known) is True
    assert await kv.put(key, "3", cas=known) is False
    assert (await kv.get(key))[1]["Value"] == b"2"


async def test_who_waits_beyond_an_index_is_told_of_the_next_write(kv: Any, key: str) -> None:
    await kv.put(key, "1")
    index, _ = await kv.get(key)
    waiting = asyncio.create_task(kv.get(key, index=int(index), wait="10s"))
    await kv.put(key, "2")
    later, entry = await waiting
    assert int(later) > int(index)
    assert entry["Value"] == b"2"


async def test_who_waits_where_nothing_happens_is_told_so_in_the_end(kv: Any, key: str) -> None:
    await kv.put(key, "1")
    index, _ = await kv.get(key)
    assert (await kv.get(key, index=int(index), wait="1s"))[1]["Value"] == b"1"
