"""Gateways that share one registry, each on sockets of its own, with store and router behind them; devices use the SDK."""

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from gateway_world import KEY, TABLES, token
from prometheus_client import CollectorRegistry

from chassis.channels import open_channel
from chassis.clock import SystemClock
from chassis.embedded import EmbeddedEngines, open_embedded_engines
from chassis.inprocess import InProcessChannel, InProcessServer
from chassis.registry import Instance
from chassis.server import open_server
from parley_client import Client, MemoryStore, open_client
from parley_protocol.slots import slot_of
from parley_protocol.topics import COMMANDS, DEAD_LETTERS, EVENTS, OFFLINE
from services.gateway.app import Gateway, open_gateway
from services.gateway.config import GatewaySettings
from services.gateway.tokens import KeyRing, TokenVerifier, verifying_key
from services.router.app import open_router
from services.router.config import RouterSettings
from services.store.app import open_store
from services.store.config import StoreSettings

SLOTS = 64


@dataclass
class Running:
    """One gateway, and how to be rid of it."""

    gateway: Gateway
    address: str
    _stack: AsyncExitStack

    async def kill(self) -> None:
        """Cut it off at once: no goodbye, and its session in the registry ends as by a failed health check."""
        await self._stack.aclose()


@dataclass
class Cluster:
    """What runs. Gateways are opened by `add`."""

    engines: EmbeddedEngines
    internal: InProcessServer
    channel: InProcessChannel
    settings: dict[str, Any] = field(default_factory=dict)
    gateways: dict[str, Running] = field(default_factory=dict)  # by instance

    def owner_of(self, user: str) -> Running | None:
        """Return the gateway that serves a user."""
        slot = slot_of(user, SLOTS)
        return next((one for one in self.gateways.values() if slot in one.gateway.slots.epochs), None)

    @property
    def is_settled(self) -> bool:
        """Tell whether every slot has one owner, and every gateway its share."""
        owned = [len(one.gateway.slots.epochs) for one in self.gateways.values()]
        return sum(owned) == SLOTS and all(owned)

    def of(self, gateway: Running, prefix: str = "user") -> str:
        """Return a user whom a gateway serves."""
        return next(name for n in range(10_000) if self.owner_of(name := f"{prefix}-{n}") is gateway)

    async def add(self, name: str) -> Running:
        """Open another gateway; it comes to its slots by and by."""
        stack = AsyncExitStack()
        enter, clock, metrics = stack.enter_async_context, SystemClock(), CollectorRegistry()
        key = verifying_key(KEY.public_key())
        assert key is not None
        chosen = {"listen": "127.0.0.1:0", "instance_id": name, "slot_count": SLOTS, "slot_settle_seconds": 0.2, **self.settings}
        gateway = await enter(
            open_gateway(
                GatewaySettings(**chosen),
                log=self.engines.log,
                store_channel=self.channel,
                router_channel=self.channel,
                verifier=TokenVerifier(KeyRing({"": key}), clock),
                clock=clock,
                metrics=metrics,
                rng=random.Random(name),
            )
        )
        inside = await enter(open_server(bind="127.0.0.1:0", register=gateway.register_internal))
        outside = await enter(open_server(bind="127.0.0.1:0", register=gateway.register_public))
        await enter(gateway.own_slots(self.engines.registry, address=inside.address, public_address=outside.address))
        running = self.gateways[name] = Running(gateway, outside.address, stack)
        stack.callback(self.gateways.pop, name)
        return running

    @asynccontextmanager
    async def client(self, user: str, address: str, device: str = "phone") -> AsyncIterator[Client]:
        """Open a device that knows an address."""
        async with open_client(address, token=token(user), device_id=device, store=MemoryStore()) as client:
            yield client


@asynccontextmanager
async def open_cluster(*names: str, **settings: Any) -> AsyncIterator[Cluster]:
    """Open engines, store, router and gateways."""
    clock, metrics = SystemClock(), CollectorRegistry()
    topics = {COMMANDS: 1, EVENTS: 1, OFFLINE: 1, DEAD_LETTERS: 1}
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        engines = await enter(open_embedded_engines(None, topics=topics, durable_topics=(COMMANDS,), tables=TABLES, clock=clock))
        internal = InProcessServer()
        channel = InProcessChannel(internal)
        stack.push_async_callback(internal.stop, None)
        store = await enter(
            open_store(
                StoreSettings(), log=engines.log, timeline=engines.timeline, clock=clock, metrics=metrics, rng=random.Random(1)
            )
        )
        store.register(internal)

        @asynccontextmanager
        async def open_gateway_channel(instance: Instance) -> AsyncIterator[grpc.aio.Channel]:
            async with open_channel(instance.address) as opened:
                yield opened

        router = await enter(
            open_router(
                RouterSettings(slot_count=SLOTS),
                log=engines.log,
                registry=engines.registry,
                store_channel=channel,
                open_gateway_channel=open_gateway_channel,
                clock=clock,
                metrics=metrics,
                rng=random.Random(3),
            )
        )
        router.register(internal)
        cluster = Cluster(engines, internal, channel, settings)
        try:
            for name in names:
                await cluster.add(name)
            yield cluster
        finally:
            for running in list(cluster.gateways.values()):
                await running.kill()
