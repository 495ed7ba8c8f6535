"""Gateways that share one registry, each on sockets of its own, with store and router behind them; devices use the SDK."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from gateway_world import Back, open_back, token
from prometheus_client import CollectorRegistry

from chassis.channels import open_channel
from chassis.server import open_server
from parley_client import Client, MemoryStore, open_client
from parley_protocol.slots import slot_of
from services.gateway.app import Gateway
from services.gateway.config import GatewaySettings
from services.router.config import RouterSettings

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

    back: Back
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
        enter = stack.enter_async_context
        chosen = {"listen": "127.0.0.1:0", "instance_id": name, "slot_count": SLOTS, "slot_settle_seconds": 0.2, **self.settings}
        gateway = await enter(self.back.gateway(GatewaySettings(**chosen), name, metrics=CollectorRegistry()))
        inside = await enter(open_server(bind="127.0.0.1:0", register=gateway.register_internal))
        outside = await enter(open_server(bind="127.0.0.1:0", register=gateway.register_public))
        await enter(gateway.own_slots(self.back.engines.registry, address=inside.address, public_address=outside.address))
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
    async with open_back() as back, back.router(RouterSettings(slot_count=SLOTS), lambda instance: open_channel(instance.address)):
        cluster = Cluster(back, settings)
        try:
            for name in names:
                await cluster.add(name)
            yield cluster
        finally:
            for running in list(cluster.gateways.values()):
                await running.kill()
