"""Connections that misbehave below the protocol: garbage, cuts at any byte, drips, clients that never read."""

import asyncio
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import grpc
import pytest
from gateway_world import Device, World, batch, message, open_world, token, until

from parley.api.v1 import messaging_service_pb2 as api

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# A client of gRPC takes megabytes ahead of its application while it probes the bandwidth; this one takes 64 kB.
SMALL_WINDOW = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65536))
RESPONSE_SECONDS = 0.2  # how long garbage may wait for an answer before the client goes


class Proxy:
    """Between a client and the gateway: keeps what the client sent, and passes it on no faster than it is told."""

    def __init__(self, target: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self.sent = bytearray()
        self.drip_seconds = 0.0  # over 0: one byte each

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upwards: bool) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                if upwards:
                    self.sent += data
                for piece in [data[i : i + 1] for i in range(len(data))] if upwards and self.drip_seconds else [data]:
                    writer.write(piece)
                    await writer.drain()
                    if upwards and self.drip_seconds:
                        await asyncio.sleep(self.drip_seconds)
        writer.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection(self._host, self._port)
        try:
            await asyncio.gather(self._forward(reader, inner_writer, True), self._forward(inner_reader, writer, False))
        finally:
            inner_writer.close()
            writer.close()


@asynccontextmanager
async def open_proxy(world: World) -> AsyncIterator[tuple[Proxy, grpc.aio.Channel]]:
    """Put a proxy before the gateway; yield it with a channel that goes through it."""
    proxy = Proxy(world.address)
    running: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        await proxy.serve(reader, writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with grpc.aio.insecure_channel(f"{host}:{port}") as channel:
        yield proxy, channel
    server.close()
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def send_raw(world: World, data: bytes, *, wait: bool = False) -> None:
    """Connect, send, go."""
    host, _, port = world.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    with suppress(ConnectionError):
        await writer.drain()
        if wait:
            with suppress(TimeoutError):
                async with asyncio.timeout(RESPONSE_SECONDS):
                    await reader.read()
        writer.close()
        await writer.wait_closed()


async def test_garbage_on_the_connection_stops_nothing():
    rng = random.Random(11)
    garbage = [
        b"",
        b"\x00" * 1000,
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        PREFACE,
        PREFACE + b"\xff" * 1000,
        PREFACE + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" + b"\xff\xff\xff\x01" * 100,
        PREFACE + (1 << 24).to_bytes(4, "big") * 50,
        *(PREFACE[: rng.randint(0, 24)] + rng.randbytes(rng.randint(1, 2000)) for _ in range(30)),
    ]
    async with open_world() as world:
        alice = await world.device("alice")
        await asyncio.gather(*(send_raw(world, data, wait=True) for data in garbage))
        await alice.send(batch(message()))
        assert (await alice.outcome()).accepted.seq == 1
        await world.alive()


async def test_connection_cut_at_any_byte_stops_nothing_and_leaves_nothing():
    """What a whole session sends is replayed up to each byte."""
    async with open_world(streams_burst=100_000, streams_per_second=100_000) as world:
        async with open_proxy(world) as (proxy, channel):
            alice = world.stream(token("alice"), channel)
            await alice.hello()
            await alice.send(batch(message()))
            await alice.outcome()
            alice.call.cancel()
        recorded = bytes(proxy.sent)
        assert len(recorded) > 300
        for end in range(len(recorded)):
            await send_raw(world, recorded[:end])
        await until(lambda: world.value("parley_gateway_streams") == 0)
        assert world.value("parley_gateway_sessions") == 0
        await world.alive()


async def test_client_that_drips_its_frames_is_ended_and_costs_nobody_anything():
    async with open_world(hello_seconds=0.4) as world, open_proxy(world) as (proxy, channel):
        await channel.channel_ready()
        alice = world.stream(token("alice"), channel)
        await until(lambda: world.value("parley_gateway_streams") == 1)
        proxy.drip_seconds = 0.1
        await alice.send(api.ConnectRequest(hello=api.Hello(device_id="d1")))
        await world.alive()
        assert (await alice.goodbye()).reason == api.GO_AWAY_REASON_IDLE


async def flood(world: World, receiver: str, sender: Device, bytes_wanted: int) -> None:
    """Send bodies to a user until that many bytes are stored."""
    body = os.urandom(16 * 1024)
    number = 1
    for _ in range(bytes_wanted // (16 * len(body)) + 1):
        await sender.send(batch(*(message(receiver, body) for _ in range(16)), first=number))
        number += 16
        for _ in range(16):
            assert (await sender.outcome()).HasField("accepted")


async def test_client_that_never_reads_is_ended_and_costs_nobody_anything():
    """Its outbox is dropped, its stuck write is cut, the call is forgotten once the client is gone."""
    async with (
        # a stuck write is cut well after the outbox has run over, also where the machine is busy
        open_world(outbox_bytes=512 * 1024, write_seconds=1.5, commands_per_second=5000, commands_burst=5000) as world,
        grpc.aio.insecure_channel(world.address, options=SMALL_WINDOW) as own_connection,
    ):
        bob = world.stream(token("bob"), own_connection)
        await bob.hello()
        alice, other = await world.device("alice"), await world.device("bob", "laptop")
        reading = asyncio.ensure_future(read_events(other, 128))
        await flood(world, "bob", alice, 2 * 1024 * 1024)
        await reading
        await until(lambda: world.value("parley_gateway_cut_streams_total") == 1)
        await until(lambda: world.value("parley_gateway_goaways_total", reason="slow") == 1)  # counted once the handler has left
        assert world.value("parley_gateway_sessions") == 2
        assert world.value("parley_gateway_abandoned_calls") == 1
        await world.alive()
        bob.call.cancel()
        await until(lambda: world.value("parley_gateway_abandoned_calls") == 0)


async def read_events(device: Device, count: int) -> None:
    for _ in range(count):
        await device.event()


async def test_client_that_reads_late_is_told_that_it_was_slow():
    async with (
        open_world(outbox_bytes=512 * 1024, commands_per_second=5000, commands_burst=5000) as world,
        grpc.aio.insecure_channel(world.address, options=SMALL_WINDOW) as own_connection,
    ):
        bob = world.stream(token("bob"), own_connection)
        await bob.hello()
        await flood(world, "bob", await world.device("alice"), 2 * 1024 * 1024)
        goodbye = await bob.goodbye()
        assert (goodbye.reason, goodbye.reconnect) == (api.GO_AWAY_REASON_SLOW, True)


async def test_drain_does_not_wait_for_clients_that_never_read():
    async with (
        open_world(outbox_bytes=4 * 1024 * 1024, drain_seconds=0.3, commands_per_second=5000, commands_burst=5000) as world,
        grpc.aio.insecure_channel(world.address, options=SMALL_WINDOW) as own_connection,
    ):
        await world.stream(token("bob"), own_connection).hello()
        await flood(world, "bob", await world.device("alice"), 1024 * 1024)
        async with asyncio.timeout(3):
            await world.gateway.drain()
        await until(lambda: world.value("parley_gateway_streams") == 0)


@pytest.mark.parametrize("action", ["cancel", "close"])
async def test_client_that_vanishes_is_forgotten(action: str):
    async with open_world() as world:
        channel = grpc.aio.insecure_channel(world.address)
        alice = world.stream(token("alice"), channel)
        await alice.hello()
        if action == "cancel":
            alice.call.cancel()
        else:
            await channel.close()
        await until(lambda: world.value("parley_gateway_sessions") == 0)
        await channel.close()
