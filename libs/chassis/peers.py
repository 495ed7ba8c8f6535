"""A channel to a service of several instances: each call goes to one that answers.

For unary calls that may be made twice (reads). The registry names the instances; calls take turns among them. One that is away, or
that does not answer within `try_seconds` (a process that was stopped keeps its connections), is left alone for a while and the call
is made at another, until its deadline. gRPC's own round robin would need a resolver that Python can't give it, and would stay with
a connection whose process hangs.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager
from typing import Any, Final

import grpc
import grpc.aio
import structlog
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from chassis.clock import Clock
from chassis.readiness import NotReadyError
from chassis.registry import Instance, Registry
from chassis.tasks import Tasks, open_tasks

OpenChannel = Callable[[Instance], AbstractAsyncContextManager[grpc.aio.Channel]]
TRY_SECONDS: Final = 2.0  # a read takes milliseconds; one that takes longer is better asked for elsewhere
_PING_SECONDS: Final = 4.0  # longer than a service takes to be started anew, shorter than a probe may take
_CALL_SECONDS: Final = 10.0  # for calls without a deadline
_REST_SECONDS: Final = 3.0  # what an instance that did not answer is spared; sooner if there is no other
_PAUSE_SECONDS: Final = 0.1  # before all are asked again: a service that is started anew is back within a second or two
_ELSEWHERE: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)

log = structlog.get_logger()


class _Peer:
    """One instance, with its channel and when to ask it again."""

    def __init__(self, instance: Instance, channel: grpc.aio.Channel, closing: AsyncExitStack) -> None:
        self.instance = instance
        self.channel = channel
        self.closing = closing
        self.rests_until = 0.0
        self.methods: dict[str, Any] = {}  # multicallables by name


class Peers(grpc.aio.Channel):
    """The channel; made by `open_peers`. A stub on it needs no `try`: it raises AioRpcError as any other does."""

    def __init__(self, service: str, open_channel: OpenChannel, clock: Clock, try_seconds: float) -> None:
        self._service = service
        self._open_channel = open_channel
        self._clock = clock
        self._try_seconds = try_seconds
        self._peers: dict[Instance, _Peer] = {}
        self._turn = 0
        self._changed = asyncio.Event()

    @property
    def instances(self) -> Sequence[Instance]:
        """Return who is known."""
        return list(self._peers)

    async def wait_any(self) -> None:
        """Wait until an instance is known."""
        while not self._peers:
            self._changed.clear()
            await self._changed.wait()

    async def ping(self) -> None:
        """Return when an instance has given a sign of life, be it ready or not. Raises NotReadyError: none does."""
        encode, decode = HealthCheckRequest.SerializeToString, HealthCheckResponse.FromString
        try:
            await self.call("/grpc.health.v1.Health/Check", encode, decode, HealthCheckRequest(), _PING_SECONDS, None)
        except grpc.aio.AioRpcError as error:
            raise NotReadyError(f"no {self._service} answers: {error.details()}") from error

    async def follow(self, registry: Registry, tasks: Tasks) -> None:
        """Open and close channels as instances come and go, until cancelled. A channel that is closed lets its calls end first."""
        try:
            async with aclosing(registry.watch_instances(self._service)) as watch:
                async for instances in watch:
                    for gone in self._peers.keys() - set(instances):
                        tasks.spawn(self._retire(self._peers.pop(gone)), name=f"retire.{gone.instance_id}")
                    for instance in instances:
                        if instance not in self._peers:
                            closing = AsyncExitStack()
                            channel = await closing.enter_async_context(self._open_channel(instance))
                            self._peers[instance] = _Peer(instance, channel, closing)
                    self._changed.set()
        finally:
            for peer in self._peers.values():
                await peer.closing.aclose()
            self._peers.clear()

    async def _retire(self, peer: _Peer) -> None:
        try:
            await asyncio.sleep(self._try_seconds)
        finally:
            await peer.closing.aclose()

    async def call(self, method: str, encode: Any, decode: Any, request: Any, timeout: float | None, metadata: Any) -> Any:
        """Make a call at one instance after another until one answers; raises the last AioRpcError at the deadline.

        What an instance answers, a refusal included, is the answer; only UNAVAILABLE and silence send the call on.
        """
        clock = self._clock
        deadline = clock.monotonic() + (_CALL_SECONDS if timeout is None else timeout)
        error: grpc.aio.AioRpcError | None = None
        asked = set[Instance]()
        while (left := deadline - clock.monotonic()) > 0:
            peer = self._choose(asked)
            if peer is None:
                asked.clear()
                await self._pause(left)
                continue
            asked.add(peer.instance)
            multicallable = peer.methods.get(method)
            if multicallable is None:
                multicallable = peer.methods[method] = peer.channel.unary_unary(method, encode, decode)
            try:
                answer = await multicallable(request, timeout=min(left, self._try_seconds), metadata=metadata)
            except grpc.aio.AioRpcError as failure:
                if failure.code() not in _ELSEWHERE:
                    raise
                error = failure
                peer.rests_until = clock.monotonic() + _REST_SECONDS
                log.info("peers.asking_elsewhere", service=self._service, instance=peer.instance.instance_id, why=failure.details())
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                peer.rests_until = clock.monotonic() + _REST_SECONDS  # its channel was closed, not we: it is gone
            else:
                peer.rests_until = 0.0
                return answer
        if error is not None:
            raise error
        raise grpc.aio.AioRpcError(
            grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), f"no {self._service} is known"
        )

    def _choose(self, asked: set[Instance]) -> _Peer | None:
        """Return whose turn it is among those that were not asked yet; one that rests only if no other is left."""
        peers = [peer for instance, peer in self._peers.items() if instance not in asked]
        if not peers:
            return None
        self._turn += 1
        now = self._clock.monotonic()
        awake = [peer for peer in peers if peer.rests_until <= now]
        return awake[self._turn % len(awake)] if awake else min(peers, key=lambda peer: peer.rests_until)

    async def _pause(self, seconds: float) -> None:
        """Wait a moment, or until the instances change."""
        self._changed.clear()
        try:
            async with asyncio.timeout(min(seconds, _PAUSE_SECONDS if self._peers else seconds)):
                await self._changed.wait()
        except TimeoutError:
            return

    def unary_unary(  # type: ignore[override]  # the stub awaits the answer and needs no more of a call than that
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> Callable[..., Any]:
        def call(request: Any, *, timeout: float | None = None, metadata: Any = None) -> Any:
            return self.call(method, request_serializer, response_deserializer, request, timeout, metadata)

        return call

    def unary_stream(self, *_: Any, **__: Any) -> Any:
        raise grpc.aio.UsageError("only unary calls can be made at any instance")

    stream_unary = stream_stream = unary_stream

    async def close(self, grace: float | None = None) -> None:
        raise grpc.aio.UsageError("leaving open_peers closes it")

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return grpc.ChannelConnectivity.READY if self._peers else grpc.ChannelConnectivity.IDLE

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        while self.get_state() is last_observed_state:
            self._changed.clear()
            await self._changed.wait()

    async def channel_ready(self) -> None:
        await self.wait_any()

    async def __aenter__(self) -> "Peers":
        return self

    async def __aexit__(self, *_: object) -> None:
        raise grpc.aio.UsageError("leaving open_peers closes it")


@asynccontextmanager
async def open_peers(
    registry: Registry, service: str, open_channel: OpenChannel, clock: Clock, *, try_seconds: float = TRY_SECONDS
) -> AsyncIterator[Peers]:
    """Hold channels to all instances of a service; leaving cancels their calls."""
    peers = Peers(service, open_channel, clock, try_seconds)
    async with open_tasks(f"peers.{service}") as tasks:
        tasks.spawn(peers.follow(registry, tasks), name="follow")
        yield peers
