import asyncio
from contextlib import suppress

import pytest
from prometheus_client import CollectorRegistry, Counter

from chassis.metrics import open_metrics_server
from chassis.readiness import open_readiness
from chassis.server import BindError


async def ask(address, request):
    host, port = address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


@pytest.fixture
async def readiness():
    async with open_readiness() as readiness:
        yield readiness


@pytest.fixture
async def address(readiness):
    registry = CollectorRegistry()
    Counter("things", "What was counted.", registry=registry).inc(3)
    async with open_metrics_server("127.0.0.1:0", registry, readiness) as running:
        yield running.address


async def test_a_scraper_gets_the_numbers(address):
    head, _, body = (await ask(address, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain")
    assert b"things_total 3.0\n" in body
    assert f"Content-Length: {len(body)}".encode() in head


async def test_a_scraper_may_ask_for_openmetrics(address):
    answer = await ask(address, b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text; version=1.0.0\r\n\r\n")
    assert b"application/openmetrics-text" in answer
    assert answer.endswith(b"# EOF\n")


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET / HTTP/1.1", b"404"),
        (b"POST /metrics HTTP/1.1", b"405"),
        (b"POST /healthz HTTP/1.1", b"405"),
        (b"x", b"404"),
        (b"", b"404"),
    ],
)
async def test_anything_else_is_refused(address, request_line, status):
    assert (await ask(address, request_line + b"\r\n\r\n")).split()[1] == status


async def test_head_gets_the_head(address):
    answer = await ask(address, b"HEAD /metrics HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert answer.endswith(b"\r\n\r\n")


async def test_garbage_and_who_says_nothing_do_not_hurt_others(address):
    host, port = address.rsplit(":", 1)
    _, silent = await asyncio.open_connection(host, int(port))
    assert await ask(address, bytes(range(256)) * 100) == b""
    assert b"things_total" in await ask(address, b"GET /metrics HTTP/1.1\r\n\r\n")
    silent.close()
    await silent.wait_closed()


async def test_leaving_ends_what_is_being_served(readiness):
    async with open_metrics_server("127.0.0.1:0", CollectorRegistry(), readiness) as running:
        host, port = running.address.rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /met")
        await writer.drain()
    with suppress(ConnectionResetError):  # what the kernel makes of closing with unread bytes
        assert await reader.read() == b""
    writer.close()
    with suppress(ConnectionResetError):
        await writer.wait_closed()


@pytest.mark.parametrize("port", ["taken", "70000", "x"])
async def test_an_address_that_can_not_be_bound_is_named(address, readiness, port):
    bind = address if port == "taken" else f"127.0.0.1:{port}"
    with pytest.raises(BindError, match=bind):
        await open_metrics_server(bind, CollectorRegistry(), readiness).__aenter__()
