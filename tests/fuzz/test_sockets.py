"""Garbage on the public port itself, over a real socket: the server lives on and serves others, also meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from random import Random

import grpc
import pytest

from parley.api.v1.messaging_service_pb2 import ConnectRequest, ConnectResponse, Hello
from tests.fuzz.edits import spoiled
from tests.fuzz.targets import targets
from tests.rpc.gateway_world import WAIT_SECONDS, World, message, open_world, token

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
CONNECTIONS = 60  # of garbage; 10 at a time
FRAMES = 400


def http2_frame(rng: Random) -> bytes:
    """Return a frame of any type, with flags, stream and length that fit it or not."""
    payload = rng.randbytes(rng.choice((0, 1, 4, 5, 8, 6 * rng.randint(0, 4), rng.randint(0, 300))))
    length = len(payload) if rng.random() < 0.8 else rng.randint(0, 2**24 - 1)
    stream = rng.choice((0, 1, 2, 3, 2**31 - 1, rng.getrandbits(32)))
    kind = rng.randint(0, 9) if rng.random() < 0.9 else rng.randint(0, 255)
    return length.to_bytes(3, "big") + bytes((kind, rng.randint(0, 255))) + stream.to_bytes(4, "big") + payload


def garbage(rng: Random) -> bytes:
    """Return what one connection sends."""
    frames = b"".join(http2_frame(rng) for _ in range(rng.randint(1, 30)))
    match rng.randint(0, 5):
        case 0:
            return rng.randbytes(rng.randint(1, 2000))
        case 1:
            return b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + rng.randbytes(100)
        case 2:
            return PREFACE[: rng.randint(1, len(PREFACE))]
        case 3:
            return PREFACE + SETTINGS * rng.randint(1, 500)
        case _:
            return PREFACE + SETTINGS + frames


async def throw(address: str, rng: Random) -> None:
    """Connect, send garbage, and leave in one way or another."""
    host, _, port = address.rpartition(":")
    with suppress(ConnectionError):
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(garbage(rng))
            await writer.drain()
            if rng.random() < 0.5:
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.05):  # what it answers, if it does: no verdict depends on it
                        await reader.read()
            if rng.random() < 0.5:
                writer.transport.abort()
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


@pytest.mark.parametrize("seed", range(2))
async def test_whatever_comes_over_a_socket_the_server_serves_others(seed):
    rng = Random(seed)
    async with open_world() as world:
        for _ in range(CONNECTIONS // 10):
            await asyncio.gather(*(throw(world.address, Random(rng.getrandbits(64))) for _ in range(10)), world.alive())
        await world.alive()


async def test_whatever_frames_a_device_sends_it_and_others_are_served_on():
    """Each bad frame gets an answer or none, and costs at most its own stream."""
    rng = Random(3)
    seeds = targets["device_frame"].seeds
    async with open_world(commands_per_second=100_000, commands_burst=100_000) as world:
        sent = 0
        while sent < FRAMES:
            sent += await send_bad_frames(world, rng, seeds)
        await world.alive()


async def send_bad_frames(world: World, rng: Random, seeds: Sequence[bytes]) -> int:
    """Send frames until the stream ends, or 50; return how many."""
    device = world.stream(token("alice"))
    await device.send(ConnectRequest(hello=Hello(device_id="d1")))
    frames = aiter(device.call)
    assert ConnectResponse.FromString(await anext(frames)).HasField("welcome")
    reading = asyncio.create_task(read_on(frames))
    sent = 0
    with suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
        while sent < 50 and not reading.done():
            await device.raw(spoiled(seeds, rng))
            sent += 1
    device.call.cancel()
    with suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
        await reading
    return sent


async def read_on(frames: AsyncIterator[bytes]) -> None:
    """Read to the end also when a write has failed: `call.read` would then leave unread what came before, and the call unended."""
    async for _ in frames:
        pass


@pytest.mark.parametrize("name", ["Submit", "Sync", "ListEvents", "GetConversation", "ListMembers", "Locate", "GetPresence"])
async def test_whatever_bytes_a_call_brings_it_is_answered(name):
    rng = Random(name)
    seeds = [message().SerializeToString(), *targets["question"].seeds]
    async with open_world(commands_per_second=100_000, commands_burst=100_000) as world:
        call = world.channel.unary_unary(f"/parley.api.v1.MessagingService/{name}")
        bearer = (("authorization", f"Bearer {token('alice')}"),)
        codes = set()
        for _ in range(60):
            asked = call(spoiled(seeds, rng), metadata=bearer, timeout=WAIT_SECONDS)
            codes.add(await asked.code())
        assert not codes & {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED}
        await world.alive()
