"""The router's composition."""

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc
from prometheus_client import CollectorRegistry

from chassis.clock import Clock
from chassis.errors import InvalidArgument
from chassis.eventlog import EventLog
from chassis.readiness import Probe
from chassis.registry import Registry
from chassis.tasks import Tasks, open_tasks
from parley.router.v1.router_service_pb2 import ListOnlineRequest, ListOnlineResponse
from parley.router.v1.router_service_pb2_grpc import RouterServiceServicer, add_RouterServiceServicer_to_server
from parley.store.v1.store_service_pb2_grpc import StoreServiceStub
from services.router.config import RouterSettings
from services.router.links import Links, OpenChannel, open_links
from services.router.metrics import RouterMetrics
from services.router.route import Router

_USERS_MAX = 1000  # in one question

CALLERS: Final = frozenset({"gateway"})  # who asks a router


class RouterRpc(RouterServiceServicer):
    """RouterService: questions whose answer lies with the gateways."""

    def __init__(self, links: Links) -> None:
        self._links = links

    async def ListOnline(self, request: ListOnlineRequest, context: grpc.aio.ServicerContext[Any, Any]) -> ListOnlineResponse:
        if len(request.user_ids) > _USERS_MAX:
            raise InvalidArgument("FIELD_INVALID", f"at most {_USERS_MAX} user_ids at once")
        by_owner: dict[str, list[str]] = {}
        for user_id in request.user_ids:
            owner = self._links.table.owner_of(self._links.table.slot_of(user_id))
            if owner is not None:
                by_owner.setdefault(owner.instance_id, []).append(user_id)
        asked = [link.online(users) for name, users in by_owner.items() if (link := self._links.link(name)) is not None]
        return ListOnlineResponse(user_ids=[user_id for answer in await asyncio.gather(*asked) for user_id in answer])


class RouterService:
    """A running router; made by `open_router`."""

    def __init__(self, rpc: RouterRpc, tasks: Tasks, log: EventLog) -> None:
        self._rpc = rpc
        self._tasks = tasks
        self.probes: Mapping[str, Probe] = {"log": log.ping}  # what a router can't work without

    def register(self, server: Any) -> None:
        """Add RouterService to a server, real or in process."""
        add_RouterServiceServicer_to_server(self._rpc, server)

    async def wait_failed(self) -> None:
        """Wait until a loop ended that must not, and raise what ended it."""
        await self._tasks.wait_failed()


@asynccontextmanager
async def open_router(
    settings: RouterSettings,
    *,
    log: EventLog,
    registry: Registry,
    store_channel: grpc.aio.Channel,
    open_gateway_channel: OpenChannel,
    clock: Clock,
    metrics: CollectorRegistry,
    rng: random.Random,
) -> AsyncIterator[RouterService]:
    """Route events until the block is left; a batch under way is routed again by the next router."""
    router_metrics = RouterMetrics(metrics)
    async with (
        open_links(settings, registry, open_gateway_channel, clock, router_metrics, rng) as links,
        open_tasks("router") as tasks,
    ):
        store = StoreServiceStub(store_channel)
        router = Router(settings, log=log, links=links, store=store, clock=clock, metrics=router_metrics, rng=rng)
        tasks.spawn(router.run(tasks), name="route")
        yield RouterService(RouterRpc(links), tasks, log)
