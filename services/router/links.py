"""One stream to each gateway: frames in order, each answered when it lies in the devices' outboxes."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any

import grpc
import structlog

from chassis.clock import Clock
from chassis.registry import Instance, Registry
from chassis.tasks import Tasks, open_tasks
from parley.gateway.v1.gateway_service_pb2 import DeliverRequest, DeliverResponse, ListSessionsRequest, Unreached
from parley.gateway.v1.gateway_service_pb2_grpc import GatewayServiceStub
from parley.log.v1.records_pb2 import EventRecord
from services.router.config import RouterSettings
from services.router.metrics import RouterMetrics

OpenChannel = Callable[[Instance], AbstractAsyncContextManager[grpc.aio.Channel]]
_log = structlog.get_logger()


class LinkBrokenError(Exception):
    """The stream ended before the frame was answered: it may or may not have arrived."""


class GatewayLink:
    """The stream to one gateway, opened again whenever it breaks."""

    def __init__(self, instance: Instance, stub: GatewayServiceStub, settings: RouterSettings, clock: Clock) -> None:
        self.instance = instance
        self._stub = stub
        self._settings = settings
        self._clock = clock
        self._call: Any = None
        self._number = 0
        self._waiting: dict[int, asyncio.Future[Sequence[Unreached]]] = {}
        self._open = asyncio.Event()
        self._writing = asyncio.Lock()

    async def run(self, metrics: RouterMetrics, rng: random.Random) -> None:
        """Keep the stream open until cancelled."""
        failures = 0
        while True:
            self._call = self._stub.Deliver()
            self._open.set()
            try:
                while (response := await self._call.read()) is not grpc.aio.EOF:
                    failures = 0
                    self._answer(response)
            except grpc.aio.AioRpcError as error:
                _log.warning("router.link_broken", gateway=self.instance.instance_id, error=error.details())
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                # The call was cancelled, not we: that is what a timeout does that strikes during a write.
                _log.warning("router.link_broken", gateway=self.instance.instance_id, error="a frame took too long")
            finally:
                self._open.clear()
                self._call.cancel()
                self._break()
            metrics.link_failures.inc()
            failures += 1
            most = min(self._settings.retry_max_seconds, self._settings.retry_min_seconds * 2.0**failures)
            await asyncio.sleep(rng.uniform(0, most))

    def _answer(self, response: DeliverResponse) -> None:
        waiting = self._waiting.pop(response.number, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(response.unreached)

    def _break(self) -> None:
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(LinkBrokenError())
        self._waiting.clear()

    async def deliver(self, events: Sequence[EventRecord]) -> Sequence[Unreached] | None:
        """Return whom the gateway could not reach, None if it could not be reached itself for `unreachable_seconds`.

        After a broken stream the frame is sent again: devices drop what they have.
        """
        deadline = self._clock.monotonic() + self._settings.unreachable_seconds
        while (left := deadline - self._clock.monotonic()) > 0:
            try:
                async with asyncio.timeout(left):
                    await self._open.wait()
                    return await self._send(events)
            except (LinkBrokenError, TimeoutError):
                continue
        return None

    async def _send(self, events: Sequence[EventRecord]) -> Sequence[Unreached]:
        async with self._writing:
            call = self._call
            self._number = number = self._number + 1
            waiting = self._waiting[number] = asyncio.get_running_loop().create_future()
            try:
                await call.write(DeliverRequest(number=number, events=events))
            except (asyncio.InvalidStateError, asyncio.CancelledError, grpc.aio.UsageError, grpc.aio.AioRpcError) as error:
                self._waiting.pop(number, None)
                task = asyncio.current_task()
                if isinstance(error, asyncio.CancelledError) and (task is None or task.cancelling()):
                    raise  # we are cancelled, not the call
                if self._call is call:
                    self._open.clear()  # it has ended: wait for the next one, `run` may not know yet
                raise LinkBrokenError from error
        try:
            answer: Sequence[Unreached] = await waiting
            return answer
        finally:
            self._waiting.pop(number, None)

    async def online(self, user_ids: Sequence[str]) -> Sequence[str]:
        """Return which of the users have a session there; raises grpc.aio.AioRpcError."""
        request = ListSessionsRequest(user_ids=user_ids)
        return (await self._stub.ListSessions(request, timeout=self._settings.question_seconds)).user_ids


class Links:
    """The links to all gateways that the registry names."""

    def __init__(
        self,
        settings: RouterSettings,
        registry: Registry,
        open_channel: OpenChannel,
        clock: Clock,
        metrics: RouterMetrics,
        rng: random.Random,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._open_channel = open_channel
        self._clock = clock
        self._metrics = metrics
        self._rng = rng
        self._links: dict[str, tuple[GatewayLink, asyncio.Task[None]]] = {}
        self._any = asyncio.Event()

    @property
    def all(self) -> list[GatewayLink]:
        return [link for link, _ in self._links.values()]

    async def wait_any(self) -> bool:
        """Wait until a gateway is known, for as long as one may be unreachable; tell whether there is one."""
        if self._any.is_set():
            return True
        try:
            async with asyncio.timeout(self._settings.unreachable_seconds):
                await self._any.wait()
        except TimeoutError:
            return False
        return True

    async def follow(self, tasks: Tasks) -> None:
        """Open and close links as gateways come and go, until cancelled."""
        async with aclosing(self._registry.watch_instances("gateway")) as watch:
            async for instances in watch:
                now = {instance.instance_id: instance for instance in instances}
                for gone in [name for name in self._links if name not in now]:
                    self._links.pop(gone)[1].cancel()
                for name, instance in now.items():
                    if name not in self._links:
                        ready: asyncio.Future[GatewayLink] = asyncio.get_running_loop().create_future()
                        task = tasks.spawn(self._keep(instance, ready), name=f"link.{name}")
                        self._links[name] = (await ready, task)
                if self._links:
                    self._any.set()
                else:
                    self._any.clear()

    async def _keep(self, instance: Instance, ready: asyncio.Future[GatewayLink]) -> None:
        async with self._open_channel(instance) as channel:
            link = GatewayLink(instance, GatewayServiceStub(channel), self._settings, self._clock)
            ready.set_result(link)
            await link.run(self._metrics, self._rng)


@asynccontextmanager
async def open_links(
    settings: RouterSettings,
    registry: Registry,
    open_channel: OpenChannel,
    clock: Clock,
    metrics: RouterMetrics,
    rng: random.Random,
) -> AsyncIterator[Links]:
    """Keep links to all gateways until the block is left."""
    links = Links(settings, registry, open_channel, clock, metrics, rng)
    async with open_tasks("router.links") as tasks:
        tasks.spawn(links.follow(tasks), name="follow")
        yield links
