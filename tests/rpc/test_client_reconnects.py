"""How a client finds a server again: over real sockets what gRPC's channels do meanwhile, on virtual time how long it waits."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from random import Random
from typing import Any

import grpc
import pytest
from scripted_gateway import DEVICE, HEARTBEAT_SECONDS, Gateway, until, virtual

from chassis.errors import ResourceExhausted, Unavailable
from chassis.server import open_server
from parley.api.v1.messaging_service_pb2_grpc import add_MessagingServiceServicer_to_server
from parley_client import Client, ConnectionChanged, ConnectionState, MemoryStore, NoticeStream, open_client

PAUSE_SECONDS = 0.05
TIMEOUT_SECONDS = 30


class Steady(Random):
    """Draws the same short pause each time: shorter than any backoff of gRPC's."""

    def uniform(self, a: float, b: float) -> float:
        return PAUSE_SECONDS


class Latest(Random):
    """Draws the longest pause each time."""

    def uniform(self, a: float, b: float) -> float:
        return max(b, 10.0)


@asynccontextmanager
async def opened(address: str) -> AsyncIterator[tuple[Client, NoticeStream]]:
    async with open_client(address, token="t", device_id=DEVICE, store=MemoryStore(), rng=Steady()) as client:
        with client.changes() as notices:
            yield client, notices


async def next_state(notices: NoticeStream, *states: ConnectionState) -> ConnectionState:
    """Wait for the next change of the connection to one of the states."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        async for notice in notices:
            if isinstance(notice, ConnectionChanged) and notice.state in states:
                return notice.state
    raise AssertionError("the client ended")


async def relay(address: str, delay_seconds: float, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Join a connection to a server whose bytes come late."""
    host, port = address.rsplit(":", 1)
    behind, ahead = await asyncio.open_connection(host, int(port))
    loop = asyncio.get_running_loop()

    async def pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter, seconds: float) -> None:
        try:
            while data := await source.read(65_536):
                loop.call_later(seconds, sink.write, data) if seconds else sink.write(data)
        except ConnectionError:
            pass
        sink.close()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(pass_on(reader, ahead, 0.0))
        tasks.create_task(pass_on(behind, writer, delay_seconds))


async def test_the_first_attempt_after_a_server_is_back_finds_it() -> None:
    gateway, loop = Gateway(), asyncio.get_running_loop()
    async with open_server(bind="127.0.0.1:0", register=partial(add_MessagingServiceServicer_to_server, gateway)) as running:
        door = socket.socket()
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind(("127.0.0.1", 0))  # nobody listens: refused
        async with opened(f"127.0.0.1:{door.getsockname()[1]}") as (_, notices):
            for _ in range(6):  # by now gRPC's own backoff would be a second
                await next_state(notices, ConnectionState.WAITING)
            protocol = partial(_protocol, running.address, 0.0)
            door.listen()  # in the same moment as the last failure was told: the next attempt begins after it
            async with await loop.create_server(protocol, sock=door):
                assert await next_state(notices, ConnectionState.CONNECTED, ConnectionState.WAITING) is ConnectionState.CONNECTED
            (await gateway.stream()).end()


@pytest.mark.parametrize("turns", range(6))
async def test_a_client_that_is_closed_in_the_moment_of_its_connecting_ends(turns: int) -> None:
    """A call that is cancelled before it has begun would leave whoever writes to it waiting for ever."""
    async with (
        asyncio.timeout(TIMEOUT_SECONDS),
        grpc.aio.insecure_channel("127.0.0.1:2") as channel,
        open_client(channel=channel, token="t", device_id=DEVICE, store=MemoryStore()),
    ):
        for _ in range(turns):
            await asyncio.sleep(0)
    while len(asyncio.all_tasks()) > 1:  # noqa: ASYNC110 - gRPC's own, which tells nobody
        await asyncio.sleep(0.01)


async def test_a_slow_line_is_not_cut_off_while_it_connects() -> None:
    gateway, loop = Gateway(), asyncio.get_running_loop()
    async with open_server(bind="127.0.0.1:0", register=partial(add_MessagingServiceServicer_to_server, gateway)) as running:
        door = await loop.create_server(partial(_protocol, running.address, 0.3), "127.0.0.1", 0)
        async with door, opened(f"127.0.0.1:{door.sockets[0].getsockname()[1]}") as (_, notices):
            assert await next_state(notices, ConnectionState.CONNECTED, ConnectionState.WAITING) is ConnectionState.CONNECTED
            (await gateway.stream()).end()


def _protocol(address: str, delay_seconds: float) -> asyncio.StreamReaderProtocol:
    reader = asyncio.StreamReader()
    return asyncio.StreamReaderProtocol(reader, partial(relay, address, delay_seconds))


@virtual
async def test_a_channel_that_failed_or_fell_silent_is_not_used_again(gateway: Gateway) -> None:
    opened_at: list[float] = []

    @asynccontextmanager
    async def open_channel(_address: str) -> AsyncIterator[Any]:
        opened_at.append(gateway.clock.monotonic())
        yield gateway.channel

    gateway.refusal = Unavailable("UNAVAILABLE", "nobody there")
    async with open_client(
        "home", token="t", device_id=DEVICE, store=MemoryStore(), open_channel=open_channel, clock=gateway.clock
    ):
        await until(lambda: len(opened_at) >= 3)
        gateway.refusal = None
        await (await gateway.stream()).go_away("SLOW")
        used = len(opened_at)
        await gateway.stream()
        assert len(opened_at) == used, "a server that says goodbye is there"
        last = gateway.clock.monotonic()
        await gateway.stream()
        assert len(opened_at) == used + 1
        assert opened_at[-1] >= last + 2 * HEARTBEAT_SECONDS


@virtual
async def test_who_is_told_to_hurry_waits_for_what_the_server_asked_and_a_second(gateway: Gateway) -> None:
    gateway.refusal = ResourceExhausted("OVERLOADED", "many", retry_delay_seconds=5)
    away = Unavailable("UNAVAILABLE", "gone")
    async with gateway.client(rng=Latest()) as client:
        with client.changes() as notices:
            for seconds, next_refusal in ((5, away), (1, away), (1, None)):
                await next_state(notices, ConnectionState.WAITING)
                begin = gateway.clock.monotonic()
                gateway.refusal = next_refusal
                client.hurry()
                client.hurry()
                await next_state(notices, ConnectionState.CONNECTING)
                assert gateway.clock.monotonic() - begin == seconds
            await gateway.stream()
            client.hurry()
