"""A link that is bad in every way, and whole again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from parley_chaos.plan import Kind
from parley_chaos.proxy import Link, open_link

SOON_SECONDS = 0.3
HEALTHY_SECONDS = 10


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1024):
        writer.write(data)
    writer.close()


class Caller:
    """A connection over the link."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def __aenter__(self) -> "Caller":
        host, _, port = self._link.address.rpartition(":")
        self._reader, self._writer = await asyncio.open_connection(host, int(port))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.transport.abort()

    async def ask(self, text: bytes, seconds: float = HEALTHY_SECONDS) -> bytes:
        self._writer.write(text)
        async with asyncio.timeout(seconds):
            return await self._reader.readexactly(len(text))


@asynccontextmanager
async def linked() -> AsyncIterator[Link]:
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    try:
        async with open_link("echo", f"127.0.0.1:{server.sockets[0].getsockname()[1]}") as link:
            yield link
    finally:
        server.close()


async def test_a_whole_link_passes_everything_on() -> None:
    async with linked() as link, Caller(link) as caller:
        assert await caller.ask(b"x" * 100_000) == b"x" * 100_000
    assert link.touched == 0


async def test_a_cut_link_resets_what_there_is_and_what_comes() -> None:
    async with linked() as link, Caller(link) as caller:
        await caller.ask(b"hi")
        link.spoil(Kind.CUT)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await caller.ask(b"hi")
        async with Caller(link) as another:
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await another.ask(b"hi")
        assert link.touched >= 2
        link.heal()
        async with Caller(link) as another:
            assert await another.ask(b"hi") == b"hi"


@pytest.mark.parametrize("kind", [Kind.BLACKHOLE, Kind.HALF_OPEN])
async def test_a_link_that_swallows_is_silent_and_then_reset(kind: Kind) -> None:
    async with linked() as link, Caller(link) as caller:
        await caller.ask(b"hi")
        link.spoil(kind)
        with pytest.raises(TimeoutError):
            await caller.ask(b"lost", SOON_SECONDS)
        assert link.touched
        link.heal()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await caller.ask(b"more")
        async with Caller(link) as another:
            assert await another.ask(b"hi") == b"hi"


@pytest.mark.parametrize("kind", [Kind.DELAY, Kind.TRICKLE])
async def test_a_slow_link_loses_nothing(kind: Kind) -> None:
    async with linked() as link, Caller(link) as caller:
        link.spoil(kind)
        begin = asyncio.get_running_loop().time()
        assert await caller.ask(b"0123456789" * 20) == b"0123456789" * 20
        assert asyncio.get_running_loop().time() - begin > 0.2
        link.heal()
        assert await caller.ask(b"hi") == b"hi"


async def test_a_dead_upstream_shows_as_an_end() -> None:
    async with open_link("nowhere", "127.0.0.1:1") as link, Caller(link) as caller:
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await caller.ask(b"hi")
