"""gRPC without sockets: what generated code registers and calls, joined in memory on any event loop.

It behaves as grpc.aio over the network does, so that services can't tell: messages cross as bytes, deadlines and cancellation
reach the other end, errors are AioRpcError with metadata, a lagging reader holds its writer. tests/rpc holds both to one suite.
Different on purpose: no threads, no wall clock, no compression or call credentials, `wait_for_ready` does not wait.
"""

import asyncio
import contextvars
from collections.abc import Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from chassis.handlers import GuardedGenericHandler, Handler, guard_methods
from chassis.inprocess_calls import Deserializer, Serializer, StreamStreamCall, StreamUnaryCall, UnaryStreamCall, UnaryUnaryCall
from chassis.inprocess_context import InProcessContext, checked_metadata
from chassis.inprocess_rpc import CallStatus, MetadataPairs, Rpc, Wire
from chassis.transport import CHANNEL_MAX_RECEIVE_BYTES, SERVER_MAX_RECEIVE_BYTES


class InProcessServer(grpc.aio.Server):
    """Serves channels of this process as soon as it has handlers; they run in the context in which the server was made."""

    def __init__(self, max_receive_bytes: int = SERVER_MAX_RECEIVE_BYTES) -> None:
        self.max_receive_bytes = max_receive_bytes
        self._methods: dict[str, Handler] = {}
        self._generic_handlers: list[GuardedGenericHandler] = []
        self._running: dict[Rpc, asyncio.Task[Any]] = {}
        self._context = contextvars.copy_context()
        self._stopping = False
        self._stopped = asyncio.Event()

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        self._generic_handlers += [GuardedGenericHandler(handler) for handler in generic_rpc_handlers]

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Handler]) -> None:
        for name, handler in guard_methods(service_name, method_handlers).items():
            self._methods[f"/{service_name}/{name}"] = handler

    def add_insecure_port(self, address: str) -> int:
        raise grpc.aio.UsageError(f"an in-process server has no port such as {address}")

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        raise grpc.aio.UsageError(f"an in-process server has no port such as {address}")

    async def start(self) -> None:
        """Have nothing to start."""

    async def stop(self, grace: float | None) -> None:
        """Refuse new calls, let running ones end for `grace` seconds, cut the rest and wait until their handlers have ended."""
        self._stopping = True
        if grace and self._running:
            await asyncio.wait(list(self._running.values()), timeout=grace)
        self.cut()
        while self._running:
            await asyncio.wait(list(self._running.values()))
        self._stopped.set()

    def cut(self) -> None:
        """Refuse new calls and cut the running ones at once, without waiting for their handlers, as when a process is killed."""
        self._stopping = True
        for rpc in list(self._running):
            rpc.end(CallStatus(grpc.StatusCode.UNAVAILABLE, "Cancelling all calls"))
            rpc.cancel_handler()

    async def wait_for_termination(self, timeout: float | None = None) -> bool:
        try:
            async with asyncio.timeout(timeout):
                await self._stopped.wait()
        except TimeoutError:
            return True
        return False

    @property
    def stopping(self) -> bool:
        """Whether calls are refused."""
        return self._stopping

    def serve(self, rpc: Rpc) -> None:
        """Start the handler of a call that has arrived."""
        if self._stopping:
            rpc.end(CallStatus(grpc.StatusCode.UNAVAILABLE, "the server has stopped"))
            return
        handler = self._methods.get(rpc.method) or self._find(rpc)
        if handler is None:
            rpc.end(CallStatus(grpc.StatusCode.UNIMPLEMENTED, "Method not found!"))
            return
        context = InProcessContext(rpc, handler)
        if handler.request_streaming:
            behavior: Any = handler.stream_stream or handler.stream_unary
            coroutine = behavior(context.requests(), context)
        else:
            coroutine = _with_request(handler.unary_stream or handler.unary_unary, rpc, context)
        task = rpc.task = asyncio.get_running_loop().create_task(coroutine, context=self._context.copy())
        self._running[rpc] = task
        task.add_done_callback(partial(self._on_handler_done, rpc, context, handler.response_streaming))

    def _find(self, rpc: Rpc) -> Handler | None:
        details = _CallDetails(rpc.method, rpc.metadata)
        for generic in self._generic_handlers:
            if (handler := generic.service(details)) is not None:
                return handler
        return None

    def _on_handler_done(self, rpc: Rpc, context: "InProcessContext", streaming: bool, task: asyncio.Task[Any]) -> None:
        del self._running[rpc]
        status = context.end_status(task)
        if not streaming and status.code is grpc.StatusCode.OK and not rpc.server_done:
            response: bytes = task.result()
            rpc.responses.carry(response, partial(rpc.responses.arrive, response))
        rpc.end(status)


async def _with_request(behavior: Any, rpc: Rpc, context: "InProcessContext") -> Any:
    """Call a handler of one request, which usually is there by now."""
    request = await rpc.requests.receive()
    if request is None:
        await context.abort(grpc.StatusCode.INTERNAL, "the request has no message")
    return await behavior(request, context)


class _CallDetails(grpc.HandlerCallDetails):
    """What a generic handler sees of a call."""

    def __init__(self, method: str, invocation_metadata: MetadataPairs) -> None:
        self.method = method
        self.invocation_metadata = invocation_metadata


class InProcessChannel(grpc.aio.Channel):
    """Calls a server of this process; generated stubs take it as they take a grpc.aio channel.

    `server` may be set to another one, or None (nobody listens): later calls go there, as after a reconnect.
    """

    def __init__(
        self,
        server: InProcessServer | None,
        *,
        name: str = "client",
        wire: Wire | None = None,
        max_receive_bytes: int = CHANNEL_MAX_RECEIVE_BYTES,
    ) -> None:
        self.server = server
        self._peer = f"inprocess:{name}"
        self._wire = wire
        self._max_receive_bytes = max_receive_bytes
        self._calls: dict[Rpc, None] = {}  # a dict, not a set: ended in the order of their start, on every run
        self._closed = False

    def cut(self, details: str = "the connection was cut") -> None:
        """End all calls at both ends, as when a connection breaks; the next call connects again."""
        for rpc in list(self._calls):
            rpc.cut(details)

    async def close(self, grace: float | None = None) -> None:
        """Refuse new calls, let running ones end for `grace` seconds and cancel the rest."""
        self._closed = True
        if grace and self._calls:
            waits = [asyncio.ensure_future(rpc.wait_finished()) for rpc in self._calls]
            await asyncio.wait(waits, timeout=grace)
        for rpc in list(self._calls):
            rpc.cancel("Channel is closed.")
        if grace:
            await asyncio.gather(*waits)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        await self.close()

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        if self._closed:
            return grpc.ChannelConnectivity.SHUTDOWN
        listening = self.server is not None and not self.server.stopping
        return grpc.ChannelConnectivity.READY if listening else grpc.ChannelConnectivity.TRANSIENT_FAILURE

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        raise NotImplementedError("an in-process channel does not connect: nothing to wait for")

    async def channel_ready(self) -> None:
        """Have nothing to wait for."""

    def unary_unary(
        self,
        method: str,
        request_serializer: Serializer = None,
        response_deserializer: Deserializer = None,
        _registered_method: bool | None = None,
    ) -> "_UnaryUnary":
        return _UnaryUnary(self, method, request_serializer, response_deserializer)

    def unary_stream(
        self,
        method: str,
        request_serializer: Serializer = None,
        response_deserializer: Deserializer = None,
        _registered_method: bool | None = None,
    ) -> "_UnaryStream":
        return _UnaryStream(self, method, request_serializer, response_deserializer)

    def stream_unary(
        self,
        method: str,
        request_serializer: Serializer = None,
        response_deserializer: Deserializer = None,
        _registered_method: bool | None = None,
    ) -> "_StreamUnary":
        return _StreamUnary(self, method, request_serializer, response_deserializer)

    def stream_stream(
        self,
        method: str,
        request_serializer: Serializer = None,
        response_deserializer: Deserializer = None,
        _registered_method: bool | None = None,
    ) -> "_StreamStream":
        return _StreamStream(self, method, request_serializer, response_deserializer)

    def begin(self, method: str, request: bytes | None, *, unary_response: bool, timeout: float | None, metadata: Any) -> Rpc:
        """Start a call, with its request if that is one message."""
        if self._closed:
            raise grpc.aio.UsageError("Channel is closed.")
        server = self.server
        rpc = Rpc(
            method,
            unary_response=unary_response,
            metadata=checked_metadata(metadata),
            timeout=timeout,
            peer=self._peer,
            wire=self._wire,
            max_request_bytes=0 if server is None else server.max_receive_bytes,
            max_response_bytes=self._max_receive_bytes,
            on_finish=self._on_finish,
            on_cut=self._on_cut,
        )
        self._calls[rpc] = None
        if server is None:
            rpc.cut("failed to connect: nobody listens")
        else:
            rpc.requests.carry(request or b"", partial(rpc.start, server, request))
        return rpc

    def _on_finish(self, rpc: Rpc) -> None:
        self._calls.pop(rpc, None)

    def _on_cut(self, error: ConnectionError) -> None:
        self.cut(str(error) or "the connection was cut")


class _Method:
    """One method of a channel, ready to be called. Credentials and compression are for networks; the rest is as in grpc.aio."""

    def __init__(self, channel: InProcessChannel, method: str, serialize: Serializer, deserialize: Deserializer) -> None:
        self._channel = channel
        self._method = method
        self._serialize = serialize
        self._deserialize = deserialize

    def _encode(self, request: Any) -> bytes:
        encoded: bytes = request if self._serialize is None else self._serialize(request)
        if type(encoded) is not bytes:
            raise TypeError(f"a call carries bytes, not {type(encoded).__name__}: give it a serializer")
        return encoded


class _UnaryUnary(_Method, grpc.aio.UnaryUnaryMultiCallable[Any, Any]):
    def __call__(
        self, request: Any, *, timeout: float | None = None, metadata: Any = None, **_network: Any
    ) -> grpc.aio.UnaryUnaryCall[Any, Any]:
        request = self._encode(request)
        rpc = self._channel.begin(self._method, request, unary_response=True, timeout=timeout, metadata=metadata)
        return UnaryUnaryCall(rpc, self._serialize, self._deserialize)


class _UnaryStream(_Method, grpc.aio.UnaryStreamMultiCallable[Any, Any]):
    def __call__(
        self, request: Any, *, timeout: float | None = None, metadata: Any = None, **_network: Any
    ) -> grpc.aio.UnaryStreamCall[Any, Any]:
        request = self._encode(request)
        rpc = self._channel.begin(self._method, request, unary_response=False, timeout=timeout, metadata=metadata)
        return UnaryStreamCall(rpc, self._serialize, self._deserialize)


class _StreamUnary(_Method, grpc.aio.StreamUnaryMultiCallable[Any, Any]):
    def __call__(
        self, request_iterator: Any = None, timeout: float | None = None, metadata: Any = None, *_network: Any, **_networks: Any
    ) -> grpc.aio.StreamUnaryCall[Any, Any]:
        rpc = self._channel.begin(self._method, None, unary_response=True, timeout=timeout, metadata=metadata)
        return StreamUnaryCall(rpc, self._serialize, self._deserialize, request_iterator)


class _StreamStream(_Method, grpc.aio.StreamStreamMultiCallable[Any, Any]):
    def __call__(
        self, request_iterator: Any = None, timeout: float | None = None, metadata: Any = None, *_network: Any, **_networks: Any
    ) -> grpc.aio.StreamStreamCall[Any, Any]:
        rpc = self._channel.begin(self._method, None, unary_response=False, timeout=timeout, metadata=metadata)
        return StreamStreamCall(rpc, self._serialize, self._deserialize, request_iterator)
