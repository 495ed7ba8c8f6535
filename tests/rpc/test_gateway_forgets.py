"""Devices that come once and never again: what a gateway keeps does not grow with their number."""

import asyncio
import gc
import sys

import pytest
from gateway_world import World, auth, open_world, token, until

from parley.api.v1.messaging_service_pb2 import LocateRequest
from services.gateway import tokens

_DEVICES = 150  # a turn, each of a user of its own


async def visit(world: World, number: int) -> None:
    """Be a device with a stream that asks something, and leave."""
    device = await world.device(f"visitor-{number:06}")
    await world.stub.Locate(LocateRequest(), metadata=auth(token(f"visitor-{number:06}")))
    device.call.cancel()
    world.calls.remove(device.call)


async def turn(world: World, first: int) -> int:
    """Have devices come and go; return how many blocks of memory Python holds once all of them are gone."""
    for start in range(first, first + _DEVICES, 50):
        await asyncio.gather(*(visit(world, number) for number in range(start, start + 50)))
    await until(lambda: world.value("parley_gateway_streams") == 0)
    rates = world.gateway._calls._rates
    await until(lambda: rates.user_count == 0)
    gc.collect()
    return sys.getallocatedblocks()


async def test_nothing_is_kept_of_devices_that_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_CACHED_TOKENS", 50)
    # Buckets are full again after 0.1 s, which is when a sweep comes, too.
    limits = {"streams_per_second": 10_000, "streams_burst": 10_000, "commands_per_second": 4000, "hello_seconds": 0.4}
    async with open_world(**limits) as world:
        before = await turn(world, 0)
        for count in range(1, 3):
            grown = await turn(world, count * _DEVICES) - before
        assert grown < _DEVICES, "a block of each device would be twice that"
