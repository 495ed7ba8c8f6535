"""/metrics for Prometheus, on a port of its own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from prometheus_client import GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR, CollectorRegistry, start_http_server

from chassis.server import BindError


@dataclass(frozen=True, slots=True)
class RunningMetrics:
    """Where the metrics are."""

    address: str


@asynccontextmanager
async def open_metrics_server(bind: str, registry: CollectorRegistry) -> AsyncIterator[RunningMetrics]:
    """Serve the registry's metrics, and the process's own, at http://BIND/metrics until the block is left. Raises BindError."""
    for collector in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
        registry.register(collector)
    host, _, port = bind.rpartition(":")
    try:
        server, thread = start_http_server(int(port), host.strip("[]"), registry)
    except OSError as error:
        raise BindError(f"can't serve metrics on {bind}: {error.strerror or error}") from error
    try:
        yield RunningMetrics(f"{host}:{server.server_port}")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
