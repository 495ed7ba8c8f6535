"""Prometheus metrics and health over HTTP. Services count in classes of their own, with children bound once, into a registry."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from chassis.readiness import Readiness
from chassis.server import BindError, split_bind
from chassis.tasks import open_tasks

_REQUEST_SECONDS: Final = 5.0  # a scraper on the same network needs milliseconds
_REQUEST_BYTES: Final = 8 * 1024  # the head of a request; scrapers send a few hundred bytes


class RunningMetricsServer(NamedTuple):
    """Where the metrics are served."""

    address: str


@asynccontextmanager
async def open_metrics_server(bind: str, registry: CollectorRegistry, readiness: Readiness) -> AsyncIterator[RunningMetricsServer]:
    """Serve `GET /metrics` on `bind` (host:port, port 0: a free one), `/livez`: 200 while the loop answers, and `/healthz`: 200
    when the process is ready, else 503, with the reasons as JSON. Raises BindError.

    On the loop, not in prometheus_client's thread: a scrape sees the numbers of one moment, and nothing outlives the block.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                writer.write(_answer(await reader.readuntil(b"\r\n\r\n"), registry, readiness))
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


def _answer(head: bytes, registry: CollectorRegistry, readiness: Readiness) -> bytes:
    request, *lines = head.decode("latin-1").split("\r\n")
    method, path = (*request.split(" "), "", "")[:2]
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    status, content_type = "200 OK", "text/plain"
    match path.partition("?")[0]:
        case "/metrics":
            encode, content_type = choose_encoder(headers.get("accept", ""))
            body = encode(registry)
        case "/healthz":
            status = status if readiness.ready else "503 Service Unavailable"
            content_type, body = "application/json", readiness.describe().encode()
        case "/livez":
            body = b"live\n"
        case _:
            return _response("404 Not Found", content_type, b"there are /metrics, /healthz and /livez\n")
    if method not in ("GET", "HEAD"):
        return _response("405 Method Not Allowed", "text/plain", b"GET it\n")
    response = _response(status, content_type, body)
    return response if method == "GET" else response.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"


def _response(status: str, content_type: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body
