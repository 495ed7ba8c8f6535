"""Prometheus metrics over HTTP. Services count in classes of their own, with children bound once, into a registry given to them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from chassis.server import BindError, split_bind
from chassis.tasks import open_tasks

_REQUEST_SECONDS: Final = 5.0  # a scraper on the same network needs milliseconds
_REQUEST_BYTES: Final = 8 * 1024  # the head of a request; scrapers send a few hundred bytes


class RunningMetricsServer(NamedTuple):
    """Where the metrics are served."""

    address: str


@asynccontextmanager
async def open_metrics_server(bind: str, registry: CollectorRegistry) -> AsyncIterator[RunningMetricsServer]:
    """Serve `GET /metrics` on `bind` (host:port, port 0: a free one). Raises BindError.

    On the loop, not in prometheus_client's thread: a scrape sees the numbers of one moment, and nothing outlives the block.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                writer.write(_answer(await reader.readuntil(b"\r\n\r\n"), registry))
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, TimeoutError):
            return  # nobody there, or nobody who speaks HTTP: nothing to answer
        finally:
            writer.close()

    host, port = split_bind(bind)
    async with open_tasks("metrics") as tasks:

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            tasks.spawn(serve(reader, writer), name="scrape")

        try:
            server = await asyncio.start_server(accept, host.strip("[]"), port, limit=_REQUEST_BYTES)
        except OSError as error:
            raise BindError(f"can't listen on {bind}: {error}") from error
        async with server:
            yield RunningMetricsServer(f"{host}:{server.sockets[0].getsockname()[1]}")


def _answer(head: bytes, registry: CollectorRegistry) -> bytes:
    request, *lines = head.decode("latin-1").split("\r\n")
    method, path = (*request.split(" "), "", "")[:2]
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if path.partition("?")[0] != "/metrics":
        return _response("404 Not Found", "text/plain", b"the metrics are at /metrics\n")
    if method not in ("GET", "HEAD"):
        return _response("405 Method Not Allowed", "text/plain", b"GET it\n")
    encode, content_type = choose_encoder(headers.get("accept", ""))
    response = _response("200 OK", content_type, encode(registry))
    return response if method == "GET" else response.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"


def _response(status: str, content_type: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body
