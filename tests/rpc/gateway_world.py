"""A gateway on a real socket, with the real engines (in memory), store and router behind it, and a bare client in front."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Self

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from prometheus_client import CollectorRegistry

from chassis.call_tasks import CallTasks, noting_tasks
from chassis.clock import SystemClock
from chassis.embedded import EmbeddedEngines, open_embedded_engines
from chassis.eventlog import EventLog
from chassis.inprocess import InProcessChannel, InProcessServer
from chassis.registry import Instance
from chassis.server import open_server
from chassis.timeline import Timeline
from parley.api.v1 import messaging_service_pb2 as api
from parley.api.v1.commands_pb2 import Command, Outcome, SendMessage
from parley.api.v1.messaging_service_pb2_grpc import MessagingServiceStub
from parley_protocol.topics import COMMANDS, DEAD_LETTERS, EVENTS, OFFLINE
from services.gateway.app import Gateway, open_gateway
from services.gateway.config import GatewaySettings
from services.gateway.keys import mint_token
from services.gateway.tokens import KeyRing, TokenVerifier, verifying_key
from services.router.app import open_router
from services.router.config import RouterSettings
from services.store.app import open_store
from services.store.config import StoreSettings

TABLES = ("conversation_state", "timeline", "dedupe", "inbox", "partition_stop")
KEY = Ed25519PrivateKey.generate()
WAIT_SECONDS = 10.0  # far beyond what anything takes; only a failing test waits for it
_numbers = count(1)


def token(user: str, device: str = "", ttl_seconds: float = 600.0) -> str:
    return mint_token(KEY, user, device, ttl_seconds, time.time())


def auth(bearer: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {bearer}"),)


def message(to_user_id: str = "bob", body: bytes = b"hello", request_id: bytes | None = None) -> Command:
    request_id = next(_numbers).to_bytes(16, "big") if request_id is None else request_id
    return Command(request_id=request_id, to_user_id=to_user_id, send_message=SendMessage(body=body))


def batch(*commands: Command, first: int = 1, **fields: Any) -> api.ConnectRequest:
    return api.ConnectRequest(batch=api.DeviceBatch(first_command_number=first, commands=commands, **fields))


async def until(condition: Callable[[], object]) -> None:
    """Wait until something shows that has no event, such as a metric."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


class Device:
    """One Connect stream, as generated stubs see it; `raw` sends bytes that they would not."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self._outcomes: list[Outcome] = []
        self.events: list[Any] = []

    async def send(self, frame: api.ConnectRequest) -> None:
        await self.call.write(frame.SerializeToString())

    async def raw(self, frame: bytes) -> None:
        await self.call.write(frame)

    async def frame(self) -> api.ConnectResponse | None:
        """Return the next frame, None at the end of the stream."""
        raw = await self.call.read()
        return None if raw is grpc.aio.EOF else api.ConnectResponse.FromString(raw)

    async def hello(self, device: str = "d1") -> api.Welcome:
        await self.send(api.ConnectRequest(hello=api.Hello(device_id=device)))
        frame = await self.frame()
        assert frame is not None
        assert frame.HasField("welcome"), frame
        return frame.welcome

    async def outcome(self) -> Outcome:
        """Return the next outcome; events that come meanwhile are kept."""
        while not self._outcomes:
            await self._batch()
        return self._outcomes.pop(0)

    async def event(self) -> Any:
        while not self.events:
            await self._batch()
        return self.events.pop(0)

    async def _batch(self) -> None:
        frame = await self.frame()
        assert frame is not None
        assert frame.HasField("batch"), frame
        self._outcomes += frame.batch.outcomes
        self.events += frame.batch.events

    async def refusal(self) -> Any:
        """Return the status of the FrameError that must come next."""
        frame = await self.frame()
        assert frame is not None
        assert frame.HasField("frame_error"), frame
        return frame.frame_error.status

    async def goodbye(self) -> api.GoAway:
        """Read on until GoAway, then the stream's end."""
        while (frame := await self.frame()) is not None:
            if frame.HasField("go_away"):
                assert await self.frame() is None
                return frame.go_away
        raise AssertionError(f"no GoAway, the stream ended with {await self.call.code()} {await self.call.details()}")


@dataclass
class World:
    """Everything that runs."""

    gateway: Gateway
    address: str
    engines: EmbeddedEngines
    metrics: CollectorRegistry
    channel: grpc.aio.Channel
    internal: InProcessServer
    calls: list[Any] = field(default_factory=list)
    call_tasks: CallTasks = field(default_factory=dict)  # gRPC's own of these calls

    @property
    def stub(self) -> MessagingServiceStub:
        return MessagingServiceStub(self.channel)

    def stream(self, bearer: str | None, channel: grpc.aio.Channel | None = None) -> Device:
        """Open a Connect stream; no token without a bearer."""
        method = (channel or self.channel).stream_stream("/parley.api.v1.MessagingService/Connect")
        with noting_tasks(self.call_tasks):
            call = method(metadata=auth(bearer) if bearer is not None else None, timeout=WAIT_SECONDS)
        self.calls.append(call)
        return Device(call)

    async def device(self, user: str, device: str = "d1") -> Device:
        """Open a stream and say Hello."""
        opened = self.stream(token(user))
        await opened.hello(device)
        return opened

    async def end_calls(self) -> None:
        """Cancel what was opened, and wait until gRPC has done with it: a call that was cancelled says at once that it is."""
        for call in self.calls:
            call.cancel()
        async with asyncio.timeout(WAIT_SECONDS / 2):  # before their deadline, at which even those end that nobody reads
            while self.call_tasks:
                await asyncio.wait(list(self.call_tasks))

    def value(self, name: str, **labels: str) -> float:
        value = self.metrics.get_sample_value(name, labels)
        assert value is not None, name
        return value

    async def alive(self) -> Self:
        """Assert that the gateway serves others."""
        carol = await self.device("carol", "probe")
        command = message("carol", b"alive")
        await carol.send(batch(command))
        outcome = await carol.outcome()
        assert outcome.request_id == command.request_id
        assert outcome.accepted.seq > 0
        carol.call.cancel()
        return self


@dataclass
class Back:
    """What gateways stand on: engines in memory, a store on them, and a server that joins services in this process."""

    engines: EmbeddedEngines
    internal: InProcessServer
    channel: InProcessChannel
    metrics: CollectorRegistry

    def gateway(
        self, settings: GatewaySettings, seed: Any, *, log: EventLog | None = None, metrics: CollectorRegistry | None = None,
        alone: bool = False,
    ) -> AbstractAsyncContextManager[Gateway]:  # fmt: skip
        """Open a gateway that takes tokens of `KEY`."""
        clock, key = SystemClock(), verifying_key(KEY.public_key())
        assert key is not None
        return open_gateway(
            settings,
            log=log or self.engines.log,
            store_channel=self.channel,
            router_channel=self.channel,
            verifier=TokenVerifier(KeyRing({"": key}), clock),
            clock=clock,
            metrics=metrics or self.metrics,
            rng=random.Random(seed),
            alone=alone,
        )

    @asynccontextmanager
    async def router(
        self, settings: RouterSettings, channel_to: Callable[[Instance], AbstractAsyncContextManager[grpc.aio.Channel]]
    ) -> AsyncIterator[None]:
        """Run a router."""
        async with open_router(
            settings,
            log=self.engines.log,
            registry=self.engines.registry,
            store_channel=self.channel,
            open_gateway_channel=channel_to,
            clock=SystemClock(),
            metrics=self.metrics,
            rng=random.Random(3),
        ) as router:
            router.register(self.internal)
            yield


@asynccontextmanager
async def open_back(partitions: int = 1, *, log: EventLog | None = None, timeline: Timeline | None = None) -> AsyncIterator[Back]:
    """Open engines and a store; log and tables may be others than those in memory."""
    clock, metrics = SystemClock(), CollectorRegistry()
    topics = dict.fromkeys((COMMANDS, EVENTS, OFFLINE, DEAD_LETTERS), partitions)
    async with open_embedded_engines(None, topics=topics, durable_topics=(COMMANDS,), tables=TABLES, clock=clock) as opened:
        engines = replace(opened, log=log or opened.log, timeline=timeline or opened.timeline)
        internal = InProcessServer()
        try:
            async with open_store(
                StoreSettings(), log=engines.log, timeline=engines.timeline, clock=clock, metrics=metrics, rng=random.Random(1)
            ) as store:
                store.register(internal)
                yield Back(engines, internal, InProcessChannel(internal), metrics)
        finally:
            await internal.stop(None)


@asynccontextmanager
async def open_world(
    *,
    wrap_log: Callable[[EventLog], EventLog] = lambda log: log,
    log: EventLog | None = None,
    timeline: Timeline | None = None,
    partitions: int = 1,
    server: dict[str, Any] | None = None,
    **settings: Any,
) -> AsyncIterator[World]:
    """Open engines, store, router and gateway; log and tables may be given, and the gateway's log wrapped."""
    configured = GatewaySettings(**{"listen": "127.0.0.1:0", **settings})
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        back = await enter(open_back(partitions, log=log, timeline=timeline))
        gateway = await enter(back.gateway(configured, 2, log=wrap_log(back.engines.log), alone=True))
        gateway.register_internal(back.internal)
        await enter(gateway.own_slots(back.engines.registry, address="in-process"))
        await enter(back.router(RouterSettings(), lambda _: nullcontext(back.channel)))
        running = await enter(
            open_server(
                bind=configured.listen, register=gateway.register_public, max_receive_bytes=configured.frame_bytes, **(server or {})
            )
        )
        public = await enter(grpc.aio.insecure_channel(running.address))
        world = World(gateway, running.address, back.engines, back.metrics, public, back.internal)
        try:
            yield world
        finally:
            await world.end_calls()
            await gateway.drain()
