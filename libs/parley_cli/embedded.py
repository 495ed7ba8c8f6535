"""The embedded topology: every service in this process, on engines that need no server. The real pipeline, not a bypass.

What is opened last is drained first: devices are told to go, what they sent reaches the log, then deliveries end, then the worker,
then the engines. Nothing depends on that order for safety: a process that is killed loses as little.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc.aio
from prometheus_client import CollectorRegistry

from chassis.clock import Clock, SystemClock
from chassis.embedded import EmbeddedEngines, MemoryDisk, open_embedded_engines
from chassis.first_of import first_of
from chassis.inprocess import InProcessChannel, InProcessServer
from chassis.readiness import PROCESS, Readiness
from chassis.server import open_server
from parley_protocol.topics import COMMANDS, topics
from services.gateway.app import Gateway, open_gateway, open_verifier
from services.gateway.config import GatewaySettings
from services.gateway.tokens import TokenVerifier
from services.router.app import RouterService, open_router
from services.router.config import RouterSettings
from services.store.app import Store, open_store
from services.store.apply import GROUP
from services.store.config import StoreSettings
from services.store.rows import TABLES

# One partition each: one core serves them all, and every batch shares one commit.
TOPICS = topics(1)
_CATCH_UP_SECONDS: Final = 2.0  # what a killed server left takes milliseconds


@dataclass(frozen=True, slots=True)
class EmbeddedSettings:
    """The settings of all services."""

    gateway: GatewaySettings
    store: StoreSettings = field(default_factory=StoreSettings)
    router: RouterSettings = field(default_factory=RouterSettings)


@asynccontextmanager
async def open_engines(data: Path | MemoryDisk | None, clock: Clock) -> AsyncIterator[EmbeddedEngines]:
    """Open log, tables and registry on a folder, on a simulated disk, or (None) in memory. Raises as open_embedded_engines."""
    async with open_embedded_engines(data, topics=TOPICS, durable_topics=(COMMANDS,), tables=TABLES, clock=clock) as engines:
        yield engines


@dataclass(frozen=True, slots=True)
class Services:
    """What runs in this process."""

    gateway: Gateway
    store: Store
    router: RouterService

    async def wait_failed(self) -> None:
        """Wait until one of them is broken for good, and raise why."""
        await first_of(self.gateway.wait_failed(), self.store.wait_failed(), self.router.wait_failed())


@asynccontextmanager
async def open_services(
    settings: EmbeddedSettings,
    engines: EmbeddedEngines,
    *,
    verifier: TokenVerifier,
    clock: Clock,
    metrics: CollectorRegistry,
    rng: random.Random,
) -> AsyncIterator["Services"]:
    """Join all services in memory and run them; the gateway's public side is the caller's to serve. Runs on any event loop."""
    internal = InProcessServer()  # one for all three: their methods have names of their own
    channel = InProcessChannel(internal)
    async with (
        open_store(settings.store, log=engines.log, timeline=engines.timeline, clock=clock, metrics=metrics, rng=rng) as store,
        open_gateway(
            settings.gateway,
            log=engines.log,
            store_channel=channel,
            router_channel=channel,
            verifier=verifier,
            clock=clock,
            metrics=metrics,
            rng=rng,
            alone=True,
        ) as gateway,
    ):
        store.register(internal)
        gateway.register_internal(internal)
        try:
            async with (
                gateway.own_slots(engines.registry, address="in this process"),
                open_router(
                    settings.router,
                    log=engines.log,
                    registry=engines.registry,
                    store_channel=channel,
                    open_gateway_channel=lambda _: _lent(channel),
                    clock=clock,
                    metrics=metrics,
                    rng=rng,
                ) as router,
            ):
                router.register(internal)
                yield Services(gateway, store, router)
        finally:
            await internal.stop(None)


@dataclass(frozen=True, slots=True)
class Running:
    """A server that devices can reach."""

    address: str
    services: Services


@asynccontextmanager
async def open_embedded(
    settings: EmbeddedSettings, data_dir: Path, *, metrics: CollectorRegistry, readiness: Readiness, rng: random.Random
) -> AsyncIterator[Running]:
    """Serve devices from a data folder; leaving drains. Raises what engines, keys, TLS files and addresses are refused with."""
    clock = SystemClock()
    async with open_engines(data_dir, clock) as engines:
        verifier = open_verifier(settings.gateway, data_dir, clock)
        async with (
            open_services(settings, engines, verifier=verifier, clock=clock, metrics=metrics, rng=rng) as services,
            _applied(engines),
            open_server(
                bind=settings.gateway.listen,
                register=services.gateway.register_public,
                tls=settings.gateway.tls(),
                readiness=readiness,
                max_receive_bytes=settings.gateway.frame_bytes,
            ) as server,
        ):
            readiness.watch(services.store.probes)  # the others stand on the same files
            await readiness.wait_asked()  # not until it is ready: a partition that stopped is for a person, and reads go on
            try:
                yield Running(server.address, services)
            finally:
                readiness.report(PROCESS, "draining")
                await services.gateway.drain()


@asynccontextmanager
async def _applied(engines: EmbeddedEngines) -> AsyncIterator[None]:
    """First apply again what a killed server had in the log, and its tables not yet: who was told of it finds it there."""
    with suppress(TimeoutError):  # a long way behind, or stopped: then reads go on without
        async with asyncio.timeout(_CATCH_UP_SECONDS):
            await engines.log.wait_done(COMMANDS, GROUP)
    yield


@asynccontextmanager
async def _lent(channel: grpc.aio.Channel) -> AsyncIterator[grpc.aio.Channel]:
    """Lend the channel: whoever closes what it was lent closes nothing."""
    yield channel
